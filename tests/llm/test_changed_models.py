"""Models that a user changed are asked as they are: hooks, forward functions and parts of their own
make, learnt prompts. Each answer is held against a plain pass of the very same model.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import AttentionInterface, T5ForConditionalGeneration
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from lamorel_ext.llm.module_functions import BaseModuleFunction
from lamorel_ext.types import GenerateRequest
from tests.llm.tiny_models import (
    ACTIONS,
    VOCAB,
    ids,
    make_causal,
    make_host,
    make_t5,
    make_tokenizer,
)

PROMPTS = ("you see a red ball 2 steps forward", "you see a wall")


def expected(model: Any) -> torch.Tensor:
    """One pair at a time, by calling the model."""
    tokenizer, scores = make_tokenizer(), []
    for prompt in (ids(tokenizer, text) for text in PROMPTS):
        for candidate in (ids(tokenizer, text) for text in ACTIONS):
            if model.config.is_encoder_decoder:
                inputs = {"input_ids": [prompt], "decoder_input_ids": [[0, *candidate]]}
            else:
                inputs = {"input_ids": [prompt + candidate]}
            tensors = {name: torch.tensor(values) for name, values in inputs.items()}
            tensors["attention_mask"] = torch.ones_like(tensors["input_ids"])
            with torch.no_grad():
                logits = model(**tensors, use_cache=False).logits[0, -1 - len(candidate) : -1]
            rows = torch.log_softmax(logits, dim=-1)
            scores.append(rows[range(len(candidate)), candidate].sum())
    return torch.stack(scores)


def scored(host: Any) -> torch.Tensor:
    found: torch.Tensor = host.score(PROMPTS, [ACTIONS] * len(PROMPTS)).log_probs
    return found


def block_of(model: Any) -> Any:
    return model.decoder.block[1] if model.config.is_encoder_decoder else model.model.layers[1]


def steer_block(model: Any) -> None:
    def push(module: Any, inputs: Any, output: Any) -> Any:
        return (output[0] + 1.0, *output[1:]) if isinstance(output, tuple) else output + 1.0

    block_of(model).register_forward_hook(push)


def cool_the_whole_model(model: Any) -> None:
    def cool(module: Any, inputs: Any, output: Any) -> Any:
        output.logits = output.logits / 3.0
        return output

    model.register_forward_hook(cool)


def own_forward(model: Any) -> None:
    made = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = made(*args, **kwargs)
        output.logits = output.logits / 3.0
        return output

    model.forward = forward


def own_class(model: Any) -> None:
    class Cooler(type(model)):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(*args, **kwargs)
            output.logits = output.logits / 3.0
            return output

    model.__class__ = Cooler


def hold_to_itself(model: Any, change: Callable[[Any], None], late: bool) -> None:
    """A model, changed before it is hosted or between two questions, answers as a plain pass of it
    does, and had a fast engine before.
    """
    before = expected(model)
    if not late:
        change(model)
    host = make_host(model)
    if late:
        torch.testing.assert_close(scored(host), before)
        assert host.info()["engine"] != "PlainEngine"
        change(model)
    after = expected(model)
    assert (after - before).abs().max() > 1e-2
    torch.testing.assert_close(scored(host), after)


CHANGES = [steer_block, cool_the_whole_model, own_forward, own_class]


@pytest.mark.parametrize("late", [False, True], ids=["before", "between two questions"])
@pytest.mark.parametrize("make", [make_t5, make_causal], ids=["t5", "causal"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_changed_model_answers_as_it_is(
    change: Callable[[Any], None], make: Callable[[], Any], late: bool
) -> None:
    hold_to_itself(make(), change, late)


def test_a_part_of_another_class_is_called() -> None:
    model = make_t5()
    layer = model.encoder.block[0].layer[1]

    class Doubled(type(layer)):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return 2.0 * super().forward(*args, **kwargs)

    before = expected(model)
    layer.__class__ = Doubled
    assert (expected(model) - before).abs().max() > 1e-2
    torch.testing.assert_close(scored(make_host(model)), expected(model))


def test_a_removed_hook_gives_the_fast_engine_back() -> None:
    model = make_t5()
    host = make_host(model)
    before = scored(host)
    handle = model.encoder.register_forward_hook(lambda *args: None)
    scored(host)
    assert host.info()["engine"] == "PlainEngine"
    handle.remove()
    assert torch.equal(scored(host), before)
    assert host.info()["engine"] == "T5Engine"


# --- learnt prompts -------------------------------------------------------------------------------


LEARNT = ("PromptTuningConfig", "PrefixTuningConfig", "PromptEncoderConfig")


def with_prompt(model: Any, kind: str) -> Any:
    peft = pytest.importorskip("peft", reason="the extra lora is not installed")
    seq2seq = model.config.is_encoder_decoder
    task = "SEQ_2_SEQ_LM" if seq2seq else "CAUSAL_LM"
    adapted = peft.get_peft_model(
        model, getattr(peft, kind)(task_type=task, num_virtual_tokens=3)
    ).double()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "prompt_encoder" in name:
                parameter.normal_()
    return adapted.eval()


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
@pytest.mark.parametrize("make", [make_t5, make_causal], ids=["t5", "causal"])
def test_learnt_prompts_take_part_in_scores_and_learn(make: Callable[[], Any], kind: str) -> None:
    if make is make_t5:
        model = make_t5(d_kv=4, d_model=12)  # a prefix is cut into heads of d_model / heads
    else:
        model = make_causal()
    before = expected(model)
    adapted = with_prompt(model, kind)
    host = make_host(adapted)
    assert (expected(adapted) - before).abs().max() > 1e-2
    torch.testing.assert_close(scored(host), expected(adapted))
    host.score(PROMPTS, [ACTIONS] * len(PROMPTS), require_grad=True).log_probs.sum().backward()
    learnt = [name for name, value in host.named_trainable_parameters() if value.grad is not None]
    assert learnt and all("prompt_encoder" in name for name in learnt)
    with adapted.disable_adapter():
        torch.testing.assert_close(scored(host), before)
    torch.testing.assert_close(scored(host), expected(adapted))


def test_generated_texts_follow_a_learnt_prompt() -> None:
    adapted = with_prompt(make_t5(), "PromptTuningConfig")
    found = make_host(adapted).generate(GenerateRequest(PROMPTS[:1], {"max_new_tokens": 4}))
    tokens = ids(make_tokenizer(), PROMPTS[0])
    own = adapted.generate(
        input_ids=torch.tensor([tokens]),
        attention_mask=torch.ones(1, len(tokens), dtype=torch.int64),
        max_new_tokens=4,
    )
    assert found.tokens.tolist() == own[0, 1 : 1 + len(found.tokens)].tolist()


class Shapes(BaseModuleFunction):
    """Lamorel's way to score, which needs outputs as long as the tokens it was given."""

    def initialize(self) -> None:
        pass

    def forward(
        self, forward_outputs: Any, minibatch: Any, tokenized_contexts: Any, **kwargs: Any
    ) -> torch.Tensor:
        tokens, states = minibatch["input_ids"], forward_outputs["hidden_states"][-1]
        logits = forward_outputs["logits"]
        assert logits.shape[1] == tokens.shape[1] == states.shape[1]
        behind = tokens.shape[1] - minibatch["attention_mask"].shape[1]
        start = len(tokenized_contexts[0]["input_ids"]) if not behind else 0
        chosen = logits[:, :-1].log_softmax(-1).gather(2, tokens[:, 1:, None]).squeeze(2)
        return chosen[:, start:].masked_fill(tokens[:, 1 + start :] == 0, 0).sum(-1)


@pytest.mark.parametrize("kind", LEARNT)
@pytest.mark.parametrize("cut", [True, False])
def test_module_functions_see_no_position_of_a_learnt_prompt(cut: bool, kind: str) -> None:
    host = make_host(
        with_prompt(make_causal(), kind),
        {"mine": Shapes()},
        pre_encode_inputs=cut,
        minibatch_size=4,
    )
    result = host.score(PROMPTS, [ACTIONS] * len(PROMPTS), ("mine",))
    torch.testing.assert_close(result.modules["mine"], result.log_probs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", LEARNT)
def test_texts_behind_a_learnt_prompt_are_the_same_in_any_company(kind: str) -> None:
    adapted = with_prompt(make_causal(), kind)
    adapted.base_model.generation_config.eos_token_id = None
    adapted.generation_config.eos_token_id = None
    host = make_host(adapted)

    def texts(*prompts: str) -> list[int]:
        return host.generate(GenerateRequest(prompts, {"max_new_tokens": 5})).tokens.tolist()

    prompts = [prompt for prompt in PROMPTS if prompt]
    assert texts(*prompts) == [token for prompt in prompts for token in texts(prompt)]


def test_a_subclass_that_changes_nothing_is_still_right() -> None:
    class Renamed(T5ForConditionalGeneration):
        pass

    model = make_t5()
    before = scored(make_host(model))
    model.__class__ = Renamed
    torch.testing.assert_close(scored(make_host(model)), before)


# --- the library itself ---------------------------------------------------------------------------


def sharp(module: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
    return sdpa_attention_forward(module, 3.0 * query, *args, **kwargs)


def own_attention(model: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setitem(AttentionInterface._global_mapping, "sharp", sharp)
    model.set_attn_implementation("sharp")
    attention = next(part for part in block_of(model).modules() if hasattr(part, "config"))
    if attention.config._attn_implementation != "sharp":
        pytest.skip(f"transformers {transformers.__version__} does not tell this model's layers")


def own_attention_under_a_known_name(model: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setitem(AttentionInterface._global_mapping, "sdpa", sharp)


def own_attention_in_one_layer(model: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setitem(AttentionInterface._global_mapping, "sharp", sharp)
    attention = next(part for part in block_of(model).modules() if hasattr(part, "config"))
    attention.config = copy.copy(attention.config)
    attention.config._attn_implementation_internal = "sharp"


def weaker(made: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(made)  # says that it was written where ``made`` was
    def forward(*args: Any, **kwargs: Any) -> Any:
        output = made(*args, **kwargs)
        if isinstance(output, torch.Tensor):
            return output / 3.0
        output.logits = output.logits / 3.0
        return output

    return forward


def class_forward(model: Any, patch: pytest.MonkeyPatch) -> None:
    seq2seq = model.config.is_encoder_decoder
    kind: Any = type(model.encoder.block[0].layer[1]) if seq2seq else type(model)
    patch.setattr(kind, "forward", weaker(kind.forward))


def class_method(model: Any, patch: pytest.MonkeyPatch) -> None:
    seq2seq = model.config.is_encoder_decoder
    kind: Any = type(block_of(model).layer[0].SelfAttention) if seq2seq else nn.Linear
    name = "compute_bias" if seq2seq else "forward"
    patch.setattr(kind, name, weaker(getattr(kind, name)))


def own_method(model: Any, patch: pytest.MonkeyPatch) -> None:
    if model.config.is_encoder_decoder:
        attention = model.encoder.block[0].layer[0].SelfAttention
        attention.compute_bias = weaker(attention.compute_bias)
    else:
        model.forward = weaker(model.forward)


def hook_on_every_module(model: Any, patch: pytest.MonkeyPatch) -> None:
    def weaken(module: Any, inputs: Any, output: Any) -> Any:
        return output / 3.0 if "Norm" in type(module).__name__ else None

    patch.setitem(nn.modules.module._global_forward_hooks, 10**9, weaken)


LIBRARY_CHANGES = [
    own_attention,
    own_attention_under_a_known_name,
    own_attention_in_one_layer,
    class_forward,
    class_method,
    own_method,
    hook_on_every_module,
]


@pytest.mark.parametrize("late", [False, True], ids=["before", "between two questions"])
@pytest.mark.parametrize("make", [make_t5, make_causal], ids=["t5", "causal"])
@pytest.mark.parametrize("change", LIBRARY_CHANGES, ids=lambda change: change.__name__)
def test_a_model_of_a_changed_library_answers_as_it_is(
    change: Callable[..., None],
    make: Callable[[], Any],
    late: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make()
    before = expected(model)
    if not late:
        change(model, monkeypatch)
    host = make_host(model)
    if late:
        torch.testing.assert_close(scored(host), before)
        change(model, monkeypatch)
    after = expected(model)
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(scored(host), after)


@pytest.mark.parametrize("make", [make_t5, make_causal], ids=["t5", "causal"])
def test_a_library_put_right_again_gives_the_fast_engine_back(
    make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make()
    host = make_host(model)
    before, engine = scored(host), host.info()["engine"]
    for change in (class_forward, hook_on_every_module, own_attention_under_a_known_name):
        change(model, monkeypatch)
        scored(host)
        assert host.info()["engine"] == "PlainEngine"
        monkeypatch.undo()
        assert torch.equal(scored(host), before)
        assert host.info()["engine"] == engine


def test_attention_that_heeds_no_mask_reads_a_tree_of_candidates_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def blind(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
        return sdpa_attention_forward(module, query, key, value, None, is_causal=True)

    monkeypatch.setitem(AttentionInterface._global_mapping, "blind", blind)
    model = make_causal()
    model.set_attn_implementation("blind")
    torch.testing.assert_close(scored(make_host(model)), expected(model))


# --- parts of a T5 whose weights are read ---------------------------------------------------------


def in_feed_forward(name: str, make: Callable[[], nn.Module]) -> Callable[[Any], None]:
    return lambda model: setattr(model.encoder.block[0].layer[1], name, make())


class Kept(nn.Module):
    """Remembers what it looked up."""

    def __init__(self, table: nn.Module) -> None:
        super().__init__()
        self.table = table
        self.kept: dict[tuple[int, ...], torch.Tensor] = {}

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        key = tuple(tokens.flatten().tolist())
        if key not in self.kept:
            self.kept[key] = self.table(tokens).detach()
        found: torch.Tensor = self.kept[key].view(*tokens.shape, -1)
        return found


PARTS: dict[str, Callable[[Any], Any]] = {
    "layer": lambda model: model.encoder.block[1].layer.__setitem__(1, nn.Identity()),
    "inner layer": in_feed_forward("DenseReluDense", nn.Identity),
    "nn.RMSNorm": in_feed_forward("layer_norm", lambda: nn.RMSNorm(16, dtype=torch.float64)),
    "nn.LayerNorm": in_feed_forward("layer_norm", lambda: nn.LayerNorm(16, dtype=torch.float64)),
    "another model's norm": in_feed_forward("layer_norm", lambda: LlamaRMSNorm(16).double()),
    "dropout": in_feed_forward("dropout", nn.Tanh),
    "last dropout": lambda model: setattr(model.decoder, "dropout", nn.Tanh()),
    "first block": lambda model: setattr(model.encoder, "block", model.encoder.block[1:]),
    "blocks in another order": lambda model: setattr(
        model.decoder, "block", nn.ModuleList(reversed(model.decoder.block))
    ),
    "head": lambda model: setattr(model, "lm_head", nn.Linear(16, VOCAB, dtype=torch.float64)),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_t5_with_another_part_in_its_place_answers_as_it_is(part: str) -> None:
    model = make_t5()
    PARTS[part](model)
    torch.testing.assert_close(scored(make_host(model)), expected(model))


def test_parts_that_do_nothing_leave_a_t5_its_engine() -> None:
    model = make_t5()
    model.encoder.dropout = nn.Identity()
    host = make_host(model)
    torch.testing.assert_close(scored(host), expected(model))
    assert host.info()["engine"] == "T5Engine"


@pytest.mark.parametrize("place", ["encoder", "decoder"])
def test_an_embedding_that_keeps_what_it_gives_finds_it_as_it_was(place: str) -> None:
    model = make_t5()
    before = expected(model)
    stack = getattr(model, place)
    stack.embed_tokens = Kept(stack.embed_tokens)
    host = make_host(model, cache_size=0)
    for _ in range(3):
        torch.testing.assert_close(scored(host), before)


# --- adapters' wrappers ---------------------------------------------------------------------------


def with_lora(model: Any, **options: Any) -> Any:
    peft = pytest.importorskip("peft", reason="the extra lora is not installed")
    seq2seq = model.config.is_encoder_decoder
    lora = peft.LoraConfig(
        r=2,
        target_modules=["q", "v"] if seq2seq else ["q_proj", "v_proj"],
        task_type="SEQ_2_SEQ_LM" if seq2seq else "CAUSAL_LM",
        init_lora_weights=False,
        **options,
    )
    return peft.get_peft_model(model, lora).double().eval()


@pytest.mark.parametrize("late", [False, True], ids=["before", "between two questions"])
@pytest.mark.parametrize("make", [make_t5, make_causal], ids=["t5", "causal"])
@pytest.mark.parametrize("change", CHANGES[1:], ids=lambda change: change.__name__)
def test_what_is_put_on_an_adapters_wrapper_takes_part(
    change: Callable[[Any], None], make: Callable[[], Any], late: bool
) -> None:
    hold_to_itself(with_lora(make()), change, late)


def test_a_hook_on_what_holds_the_adapters_takes_part() -> None:
    model = with_lora(make_causal())
    before = expected(model)
    cool_the_whole_model(model.base_model)
    assert (expected(model) - before).abs().max() > 1e-2
    torch.testing.assert_close(scored(make_host(model)), expected(model))


def test_adapters_that_begin_at_a_word_begin_there() -> None:
    model = with_lora(make_causal(), alora_invocation_tokens=ids(make_tokenizer(), "red"))
    host = make_host(model)
    with model.disable_adapter():
        before = expected(model)
    assert (expected(model) - before).abs().max() > 1e-2
    torch.testing.assert_close(scored(host), expected(model))
    found = host.generate(GenerateRequest(PROMPTS[:1], {"max_new_tokens": 4}))
    tokens = torch.tensor([ids(make_tokenizer(), PROMPTS[0])])
    own = model.generate(
        input_ids=tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=4, do_sample=False
    )
    assert found.tokens.tolist() == own[0, tokens.shape[1] :].tolist()[: len(found.tokens)]


def test_adapters_that_are_mixed_for_each_prompt_are_mixed(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="the extra lora is not installed")
    model = make_causal(dtype=torch.float32)
    adapters = {name: str(tmp_path / name) for name in ("0", "1")}
    for folder in adapters.values():
        with_lora(copy.deepcopy(model)).float().save_pretrained(folder)
    model.config.use_cache = False
    mixed = peft.get_peft_model(
        model,
        peft.XLoraConfig(task_type="CAUSAL_LM", hidden_size=16, xlora_depth=1, adapters=adapters),
    ).eval()
    torch.testing.assert_close(scored(make_host(mixed)), expected(mixed))
