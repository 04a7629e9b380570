"""What is remembered belongs to the settings that it was computed with: adapters, modes, hooks, and
weights changed behind the host's back. What may change unseen is not remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lamorel_ext.llm.handlers import RequestHandler
from lamorel_ext.llm.module_functions import BaseModuleFunction
from lamorel_ext.llm.updaters import BaseUpdater, SupervisedUpdater
from lamorel_ext.rpc.groups import LockstepGroup, make_thread_groups
from lamorel_ext.types import ScoreRequest, UpdateRequest, UpdateResult
from tests.llm.tiny_models import (
    ACTIONS,
    make_causal,
    make_host,
    make_t5,
    make_tokenizer,
    plain_scores,
)

PROMPT = "you see a red ball"


class Adapted(nn.Module):
    """A linear layer with named low-rank additions beside it, as adapters are built; needs no
    library.
    """

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.additions = nn.ModuleDict({"one": self._addition(0), "two": self._addition(1)})
        self.active, self.disabled, self.scaling, self.merged = (
            ["one"],
            False,
            {"one": 1.0, "two": 1.0},
            [],
        )

    def _addition(self, seed: int) -> nn.Linear:
        layer = nn.Linear(
            self.base.in_features, self.base.out_features, bias=False, dtype=self.base.weight.dtype
        )
        layer.weight.data.normal_(generator=torch.Generator().manual_seed(seed))
        return layer

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.base(x)
        for name in self.active if not (self.disabled or self.merged) else []:
            result = result + self.scaling[name] * self.additions[name](x)
        return result

    def merge(self) -> None:
        self.base.weight.data += self.additions["one"].weight.data  # PyTorch counts no change here
        self.merged.append("one")


def adapted_host() -> tuple[Any, Adapted]:
    model = make_t5()
    attention = model.decoder.block[0].layer[0].SelfAttention
    attention.v = layer = Adapted(attention.v)
    return make_host(model), layer


def score(host: Any) -> Tensor:
    scores: Tensor = host.score([PROMPT], [ACTIONS]).log_probs
    return scores


def fresh(host: Any) -> Tensor:
    host.forget()
    return score(host)


def disable(layer: Adapted) -> None:
    layer.disabled = True


def choose(layer: Adapted) -> None:
    layer.active = ["two"]


def choose_in_place(layer: Adapted) -> None:
    layer.active.append("two")


def rescale(layer: Adapted) -> None:
    layer.scaling["one"] = 3.0


def hook(layer: Adapted) -> None:
    layer.base.register_forward_hook(lambda module, inputs, output: output * 2)


def replace_forward(layer: Adapted) -> None:
    layer.base.forward = lambda x: x.new_ones(*x.shape[:-1], layer.base.out_features)  # type: ignore[method-assign]


def edit_in_place(layer: Adapted) -> None:
    with torch.no_grad():
        layer.base.weight.mul_(3)


def put_another(layer: Adapted) -> None:
    layer.base.weight = nn.Parameter(layer.base.weight.detach() * 3)


def swap_data(layer: Adapted) -> None:
    layer.base.weight.data = layer.base.weight.data * 3


CHANGES = [
    disable,
    choose,
    choose_in_place,
    rescale,
    Adapted.merge,
    hook,
    replace_forward,
    edit_in_place,
    put_another,
    swap_data,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_no_answer_of_other_settings_or_weights_is_given(change: Callable[[Adapted], None]) -> None:
    host, layer = adapted_host()
    before = score(host)
    change(layer)
    after = score(host)
    assert torch.equal(after, fresh(host)) or change is Adapted.merge
    assert change is Adapted.merge or (after - before).abs().max() > 1e-4
    assert torch.equal(score(host), after)


def test_each_setting_keeps_what_is_remembered_of_it_and_comes_back_to_it() -> None:
    host, layer = adapted_host()
    on = score(host)
    layer.disabled = True
    off = score(host)
    assert not torch.equal(on, off)
    for disabled, expected in ((False, on), (True, off), (False, on)):
        layer.disabled = disabled
        result = host.score([PROMPT], [ACTIONS])
        assert torch.equal(result.log_probs, expected) and result.stats["cached_prompts"] == 1.0


def test_the_reference_follows_the_adapter_too() -> None:
    host, layer = adapted_host()
    for disabled in (True, False, True):
        layer.disabled = disabled
        torch.testing.assert_close(host.score_reference([PROMPT], [ACTIONS]).log_probs, fresh(host))


class Counting(nn.Module):
    """Counts its calls, which changes no answer."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base, self.calls = base, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        result: Tensor = self.base(x)
        return result


def test_a_module_that_counts_its_calls_does_not_empty_the_memory() -> None:
    model = make_t5()
    attention = model.decoder.block[0].layer[0].SelfAttention
    attention.o = Counting(attention.o)
    host = make_host(model)
    score(host)
    assert host.score([PROMPT], [ACTIONS]).stats["cached_prompts"] == 1.0
    assert host.score(["another"], [ACTIONS]).stats["cached_prompts"] == 0.0
    assert host.score([PROMPT, "another"], [ACTIONS] * 2).stats["cached_prompts"] == 2.0


@contextmanager
def merged(model: Any) -> Iterator[None]:
    model.merge_adapter()
    yield
    model.unmerge_adapter()


@contextmanager
def other_adapter(model: Any) -> Iterator[None]:
    model.set_adapter("two")
    yield
    model.set_adapter("default")


@pytest.mark.parametrize("switch", ["disable", "other", "merge"])
def test_adapters_of_peft_are_told_apart(switch: str) -> None:
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(r=2, target_modules=["q", "v"], init_lora_weights=False)
    torch.manual_seed(0)
    model = peft.get_peft_model(make_t5(), lora)
    model.add_adapter("two", lora)
    host = make_host(model)
    before = score(host)
    context = {
        "disable": lambda: model.disable_adapter(),
        "other": lambda: other_adapter(model),
        "merge": lambda: merged(model),
    }
    with context[switch]():
        inside = score(host)
        torch.testing.assert_close(inside, fresh(host))
        assert switch == "merge" or (inside - before).abs().max() > 1e-5
    torch.testing.assert_close(score(host), before)
    torch.testing.assert_close(fresh(host), before)


# --- what may change unseen -----------------------------------------------------------------------


class Steered(nn.Module):
    """A layer and a push beside it, whose strength is kept somewhere."""

    def __init__(self, inner: nn.Module, strength: Callable[[], Any], **kept: Any) -> None:
        super().__init__()
        self.inner, self.strength = inner, strength
        for name, value in kept.items():
            setattr(self, name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs) + self.strength()


class Dial:
    """Something of the user's own."""

    def __init__(self) -> None:
        self.strength = 0.0


def layer_of(model: Any) -> Any:
    return (
        model.encoder.block[0].layer if model.config.is_encoder_decoder else model.model.layers[0]
    )


def number_in_a_dictionary(model: Any) -> Callable[[], None]:
    kept = {"strength": 0.0}
    layer_of(model)[-1].register_forward_hook(lambda *call: call[2] + kept["strength"])
    return lambda: kept.update(strength=4.0)


def vector_in_a_closure(model: Any) -> Callable[[], None]:
    vector = torch.zeros(16, dtype=torch.float64)
    layer_of(model)[-1].register_forward_hook(lambda *call: call[2] + vector)
    return lambda: vector.__setitem__(0, 4.0)


def own_forward_function(model: Any) -> Callable[[], None]:
    kept, layer = [0.0], layer_of(model)[-1]
    made = layer.forward
    layer.forward = lambda *args: made(*args) + kept[0]
    return lambda: kept.__setitem__(0, 4.0)


def own_part_with_a_namespace(model: Any) -> Callable[[], None]:
    kept = SimpleNamespace(strength=0.0)
    layer_of(model)[-1] = Steered(layer_of(model)[-1], lambda: kept.strength, kept=kept)
    return lambda: setattr(kept, "strength", 4.0)


def own_linear_layer_with_an_object(model: Any) -> Callable[[], None]:
    """One that every engine calls, so that the fast one stays."""
    kept, attention = Dial(), layer_of(model)[0].SelfAttention
    attention.q = Steered(attention.q, lambda: kept.strength, kept=[kept])
    return lambda: setattr(kept, "strength", 4.0)


UNSEEN = [
    number_in_a_dictionary,
    vector_in_a_closure,
    own_forward_function,
    own_part_with_a_namespace,
    own_linear_layer_with_an_object,
]


@pytest.mark.parametrize("steer", UNSEEN, ids=lambda steer: steer.__name__)
def test_an_answer_that_may_change_unseen_is_not_remembered(
    steer: Callable[[Any], Callable[[], None]],
) -> None:
    model = make_t5()
    turn = steer(model)
    host = make_host(model)
    before, reference = score(host), host.score_reference([PROMPT], [ACTIONS]).log_probs
    turn()
    after = score(host)
    assert (after - before).abs().max() > 1e-4
    assert torch.equal(after, fresh(host))
    torch.testing.assert_close(reference, before)
    torch.testing.assert_close(host.score_reference([PROMPT], [ACTIONS]).log_probs, after)


@pytest.mark.parametrize("steer", UNSEEN, ids=lambda steer: steer.__name__)
def test_the_reference_of_a_steered_model_has_the_weights_of_the_start(
    steer: Callable[[Any], Callable[[], None]],
) -> None:
    model = make_t5()
    steer(model)
    host = make_host(model)
    before = score(host)
    asked = host.score([PROMPT], [ACTIONS], require_grad=True).log_probs
    with torch.no_grad():
        model.lm_head.weight.data.mul_(0.5)
    host.weights_changed()
    torch.testing.assert_close(host.score_reference([PROMPT], [ACTIONS]).log_probs, before)
    asked.sum().backward()  # what was asked before the reference can still be learnt from
    assert (score(host) - before).abs().max() > 1e-4


def test_questions_of_one_call_are_still_asked_once() -> None:
    model = make_t5()
    number_in_a_dictionary(model)
    host = make_host(model)
    for _ in range(2):
        stats = host.score([PROMPT, "another", PROMPT], [ACTIONS] * 3).stats
        assert (stats["distinct_prompts"], stats["cached_prompts"]) == (2.0, 0.0)
    requests = [ScoreRequest((PROMPT,), (ACTIONS,))] * 2
    for each in host.score_together(requests):
        assert (each.stats["distinct_prompts"], each.stats["cached_prompts"]) == (1.0, 0.0)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_a_model_as_it_was_made_remembers(kind: str) -> None:
    host = make_host(make_t5() if kind == "t5" else make_causal(kind))
    score(host)
    assert host.score([PROMPT], [ACTIONS]).stats["cached_prompts"] == 1.0


def test_a_steered_model_let_go_of_remembers_again() -> None:
    model = make_t5()
    host = make_host(model)
    score(host)
    handle = model.encoder.register_forward_hook(lambda *call: None)
    score(host)
    handle.remove()
    assert host.score([PROMPT], [ACTIONS]).stats["cached_prompts"] == 1.0


class Scaled(BaseModuleFunction):
    """A module function that keeps something."""

    needs = "state"

    def __init__(self, kept: Any) -> None:
        super().__init__()
        self.kept = kept

    def initialize(self) -> None:
        """Nothing to build."""

    def forward(
        self, forward_outputs: Any, minibatch: Any, tokenized_contexts: Any, **kwargs: Any
    ) -> Tensor:
        states: Tensor = forward_outputs["decoder_hidden_states"][-1][:, 0]
        return states.sum(-1) * getattr(self.kept, "strength", 1.0)


@pytest.mark.parametrize("kept", [Dial(), SimpleNamespace(strength=0.0)], ids=["own", "namespace"])
def test_a_module_function_gives_what_it_would_give_now(kept: Any) -> None:
    host = make_host(make_t5(), {"scaled": Scaled(kept)})
    assert host.score([PROMPT], [ACTIONS], ["scaled"]).modules["scaled"].item() == 0.0
    kept.strength = 2.0
    assert host.score([PROMPT], [ACTIONS], ["scaled"]).modules["scaled"].item() != 0.0


@pytest.mark.parametrize("kept", [None, "text", [1, {"a": 2}], torch.float32, torch.sigmoid, {3}])
def test_what_cannot_change_unseen_leaves_the_memory(kept: Any) -> None:
    host = make_host(make_t5(), {"scaled": Scaled(kept)})
    score(host)
    assert host.score([PROMPT], [ACTIONS]).stats["cached_prompts"] == 1.0


@pytest.mark.parametrize("make", [make_t5, make_causal], ids=["t5", "causal"])
@pytest.mark.parametrize("method", ["lora", "prompt"])
def test_a_model_with_pefts_adapters_remembers(make: Callable[[], Any], method: str) -> None:
    peft = pytest.importorskip("peft")
    model = make()
    seq2seq = model.config.is_encoder_decoder
    task = "SEQ_2_SEQ_LM" if seq2seq else "CAUSAL_LM"
    adapter = (
        peft.LoraConfig(r=2, target_modules=["q" if seq2seq else "q_proj"], task_type=task)
        if method == "lora"
        else peft.PromptTuningConfig(task_type=task, num_virtual_tokens=3)
    )
    host = make_host(peft.get_peft_model(model, adapter).double())
    score(host)
    assert host.score([PROMPT], [ACTIONS]).stats["cached_prompts"] == 1.0


# --- settings of the library's own modules --------------------------------------------------------


def scale_llama(model: Any) -> None:
    for layer in model.model.layers:
        layer.self_attn.scaling *= 5


def scale_gpt2(model: Any) -> None:
    model.transformer.h[0].attn.scaling = 1.0


def widen_the_norm_of_gpt2(model: Any) -> None:
    model.transformer.ln_f.eps = 1.0


def leave_early(model: Any) -> None:
    model.config.num_hidden_layers = 1


def widen_the_norms_of_t5(model: Any) -> None:
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 1.0


def scale_the_decoder(model: Any) -> None:
    model.config.scale_decoder_outputs = True


def scale_t5(model: Any) -> None:
    model.encoder.block[1].layer[0].SelfAttention.scaling = 0.5


def shorten_distances(model: Any) -> None:
    model.encoder.block[0].layer[0].SelfAttention.relative_attention_max_distance = 5


LIBRARY_SETTINGS: list[tuple[str, Callable[[Any], None]]] = [
    ("llama", scale_llama),
    ("llama", leave_early),
    ("gpt2", scale_gpt2),
    ("gpt2", widen_the_norm_of_gpt2),
    ("t5", widen_the_norms_of_t5),
    ("t5", scale_the_decoder),
    ("t5", scale_t5),
    ("t5", shorten_distances),
]


@pytest.mark.parametrize(
    ("kind", "change"), LIBRARY_SETTINGS, ids=lambda value: getattr(value, "__name__", value)
)
def test_a_changed_setting_of_the_library_gives_other_answers(
    kind: str, change: Callable[[Any], None]
) -> None:
    model = make_t5() if kind == "t5" else make_causal(kind)
    host = make_host(model)
    before = score(host)
    change(model)
    after = score(host)
    assert host.score([PROMPT], [ACTIONS]).stats["cached_prompts"] == 1.0
    assert (after - before).abs().max() > 1e-4
    torch.testing.assert_close(
        after, plain_scores(model, make_tokenizer(), [PROMPT], [ACTIONS]).detach()
    )


def test_an_answer_in_automatic_precision_is_another() -> None:
    host = make_host(make_t5(dtype=torch.float32))
    before = score(host)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = score(host)
        assert torch.equal(score(host), within)
    assert not torch.equal(within, before)
    assert torch.equal(score(host), before)


# --- updaters of the user's own -------------------------------------------------------------------


class Evolving(BaseUpdater):
    """Draws weights and asks what they are worth, in Lamorel's way."""

    name = "evolving"

    def perform_update(
        self, contexts: Any, candidates: Any, _current_batch_ids: Any, **kwargs: Any
    ) -> dict[str, float]:
        host: Any = self._llm_module
        before = host.score(contexts, candidates).log_probs.sum()
        host.model.lm_head.weight.data.mul_(0.5)
        return {"gain": float(host.score(contexts, candidates).log_probs.sum() - before)}


class Decaying(SupervisedUpdater):
    """One of ours, and something behind it."""

    name = "decaying"

    def update(self, request: UpdateRequest) -> UpdateResult:
        result = super().update(request)
        host: Any = self._host
        host.score(request.prompts, request.candidates)
        for parameter in host.trainable_parameters():
            parameter.data.mul_(0.5)
        return result


@pytest.mark.parametrize("make", [Evolving, Decaying], ids=["base", "supervised"])
def test_weights_that_an_updater_of_the_users_own_writes_unseen_count(
    make: Callable[[], Any],
) -> None:
    host = make_host(make_t5())
    updater = make()
    group = LockstepGroup(make_thread_groups(1)[0])
    handler = RequestHandler(host, {updater.name: updater}, group, 0, "llm server 0")
    handler.open()
    before = score(host)
    request = UpdateRequest(
        updater.name,
        (PROMPT,),
        (ACTIONS,),
        torch.tensor([0]),
        1,
        {"targets": torch.tensor([0])},
        {},
    )
    answer = handler.handle(request)
    assert isinstance(answer, UpdateResult), answer
    assert make is Decaying or abs(answer.stats["gain"]) > 1e-2
    after = score(host)
    assert (after - before).abs().max() > 1e-2
    assert torch.equal(after, fresh(host))
    assert host.score([PROMPT], [ACTIONS]).stats["cached_prompts"] == 1.0


def test_a_host_remembers_again_when_its_weights_are_counted_again() -> None:
    host = make_host(make_t5())
    with host.remembering_nothing():
        score(host)
        assert host.score([PROMPT], [ACTIONS]).stats["cached_prompts"] == 0.0
    assert host.score([PROMPT], [ACTIONS]).stats["cached_prompts"] == 0.0
    assert host.score([PROMPT], [ACTIONS]).stats["cached_prompts"] == 1.0
