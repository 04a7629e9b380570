"""What a reset brings back and the reference holds, whatever was done to the model meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lamorel_ext.errors import RequestError, UpdateError
from lamorel_ext.llm.host import ModelHost
from lamorel_ext.llm.module_functions import BaseModuleFunction
from lamorel_ext.llm.updaters import BaseUpdater, SupervisedUpdater
from lamorel_ext.types import UpdateRequest
from tests.llm.tiny_models import ACTIONS, make_causal, make_host, make_t5

PROMPT = ("you see a red ball",)
ASKED = (PROMPT, (ACTIONS,))


class Scaled(nn.Module):
    """A part in the place of another, with a parameter and a buffer of its own."""

    def __init__(self, inner: nn.Module, persistent: bool = False) -> None:
        super().__init__()
        self.inner = inner
        self.gain = nn.Parameter(torch.ones(16, dtype=torch.float64))
        self.register_buffer("shift", torch.zeros(16, dtype=torch.float64), persistent=persistent)

    def forward(self, states: Tensor) -> Any:
        return self.inner(states) * self.gain + self.shift


def put_in(model: Any) -> Any:
    """``Scaled`` in the place of a layer of the encoder."""
    layers = model.encoder.block[0].layer
    layers[-1] = Scaled(layers[-1])
    return layers[-1]


def add_parameter(model: Any) -> None:
    layer = model.encoder.block[0].layer[-1]
    layer.bias = nn.Parameter(torch.ones(16, dtype=torch.float64))
    layer.register_forward_hook(lambda module, _, output: output + module.bias)


def add_lora(model: Any) -> None:
    peft = pytest.importorskip("peft")
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["q", "v"]), model)


def scores(host: ModelHost) -> Tensor:
    return host.score(*ASKED).log_probs


# --- what comes into the model late


@pytest.mark.parametrize("change", [add_parameter, add_lora, put_in])
def test_what_comes_after_the_start_cannot_be_reset_and_is_named(
    change: Callable[[Any], Any],
) -> None:
    host = make_host(make_t5())
    start = scores(host)
    change(host.model)
    name = "bias|base_layer|gain"
    with pytest.raises(RequestError, match=f"({name}).* was put into the model after its start"):
        host.score_reference(*ASKED)
    with torch.no_grad():
        host.model.lm_head.weight.add_(1.0)
    trained = scores(host)
    with pytest.raises(RequestError, match=f"({name}).* was put into the model after its start"):
        host.reset(0)
    assert torch.equal(scores(host), trained) and not torch.equal(trained, start)


def test_a_parameter_that_is_gone_is_named() -> None:
    host = make_host(make_t5())
    put_in(host.model)
    scores(host)
    host.model.encoder.block[0].layer[-1].gain = None
    with pytest.raises(RequestError, match="gain is no longer in the model"):
        host.reset(0)


class Adapting(BaseUpdater):
    """Wraps the model in adapters when it gets it, as a Lamorel updater may."""

    def set_llm_module(self, llm_module: Any) -> None:
        super().set_llm_module(llm_module)
        peft = pytest.importorskip("peft")
        config = peft.LoraConfig(r=2, target_modules=["q", "v"])
        llm_module.model = peft.get_peft_model(llm_module.model, config).eval()


@pytest.mark.parametrize("change", [add_parameter, add_lora, put_in])
def test_what_comes_before_the_first_question_is_reset_too(change: Callable[[Any], Any]) -> None:
    host = make_host(make_t5())
    change(host.model)
    start = scores(host)
    with torch.no_grad():
        for parameter in host.trainable_parameters():
            parameter.add_(0.3)
    assert not torch.allclose(scores(host), start)
    torch.testing.assert_close(host.score_reference(*ASKED).log_probs, start, rtol=0, atol=1e-9)
    host.reset(0)
    torch.testing.assert_close(scores(host), start, rtol=0, atol=1e-9)


def test_adapters_of_an_updater_are_reset_and_no_part_of_the_reference() -> None:
    host = make_host(make_t5())
    plain = scores(make_host(make_t5()))
    Adapting().set_llm_module(host)
    scores(host)
    with torch.no_grad():
        for name, parameter in host.named_trainable_parameters():
            assert "lora" in name
            parameter.add_(0.3)
    assert not torch.allclose(scores(host), plain)
    torch.testing.assert_close(host.score_reference(*ASKED).log_probs, plain, rtol=0, atol=1e-9)
    host.reset(0)
    torch.testing.assert_close(scores(host), plain, rtol=0, atol=1e-9)


# --- fresh weights


@pytest.mark.parametrize("weights", ["fresh", "embeddings"])
def test_an_initializers_own_parameter_is_reset_with_fresh_weights(weights: Any) -> None:
    model = make_t5()
    layer = model.encoder.block[0].layer[-1]
    layer.gain = nn.Parameter(torch.ones(16, dtype=torch.float64))
    layer.register_forward_hook(lambda module, _, output: output * module.gain)
    host = make_host(model)
    host.reset(3, weights)
    start = scores(host)
    with torch.no_grad():
        layer.gain.fill_(5.0)
    assert not torch.allclose(scores(host), start)
    host.reset(3, weights)
    assert torch.equal(scores(host), start)


def test_fresh_weights_of_a_model_with_another_head_than_its_configuration_says() -> None:
    model = make_causal("gpt2")
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    host = make_host(model)
    before = scores(host)
    with pytest.raises(RequestError, match="gpt2 has an output head of its own"):
        host.reset(3, "fresh")
    model = make_causal("llama")
    model.lm_head.weight = model.get_input_embeddings().weight
    with pytest.raises(RequestError, match=r"lm_head\.weight of a llama is not in this model"):
        make_host(model).reset(3, "fresh")
    assert torch.equal(scores(host), before)


def test_fresh_weights_of_a_model_with_a_part_of_somebodys_own() -> None:
    model = make_t5()
    put_in(model)
    with pytest.raises(RequestError, match=r"fresh weights cannot be drawn: encoder.*not in this"):
        make_host(model).reset(3, "fresh")


# --- what is no weight


@pytest.mark.parametrize("replace", [True, False])
def test_buffers_that_no_checkpoint_holds_are_reset(tmp_path: Path, replace: bool) -> None:
    model = make_t5()
    part = put_in(model)
    host = make_host(model)
    start = scores(host)
    if replace:
        part.shift = part.shift + 2.0
    else:
        part.shift.add_(2.0)
    assert not torch.allclose(scores(host), start)
    assert torch.equal(host.score_reference(*ASKED).log_probs, start)
    host.save(tmp_path)
    host.reset(0)
    assert torch.equal(scores(host), start)
    host.load(tmp_path)
    assert torch.equal(scores(host), start)


def test_what_was_frozen_since_the_start_is_trained_again() -> None:
    host = make_host(make_t5(), {"head": Built()})
    host.model.shared.weight.requires_grad_(False)  # before the first question: so it stays
    scores(host)
    names = [name for name, _ in host.named_trainable_parameters()]
    host.model.encoder.requires_grad_(False)
    host.module_functions["head"].requires_grad_(False)
    host.model.shared.weight.requires_grad_(True)
    host.reset(0)
    assert [name for name, _ in host.named_trainable_parameters()] == names


def test_the_active_adapter_stays_the_trained_one() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q", "v"])
    model = peft.get_peft_model(make_t5(), config, adapter_name="one").eval()
    model.add_adapter("two", config)
    host = make_host(model)
    scores(host)
    model.set_adapter("two")
    host.reset(0)
    assert {name.split(".")[-2] for name, _ in host.named_trainable_parameters()} == {"two"}


def test_what_is_frozen_or_put_in_between_updates_is_named() -> None:
    host, updater = make_host(make_t5()), SupervisedUpdater()
    updater.set_llm_module(host)
    data = {"targets": torch.tensor([0])}
    request = UpdateRequest("supervised", *ASKED, torch.tensor([0]), 1, data, {})
    updater.update(request)
    host.model.lm_head.requires_grad_(False)
    with pytest.raises(UpdateError, match=r"model\.lm_head\.weight was frozen or taken out since"):
        updater.update(request)
    host.model.lm_head.requires_grad_(True)
    add_parameter(host.model)
    with pytest.raises(UpdateError, match=r"1\.bias was put in or unfrozen since"):
        updater.update(request)


@pytest.mark.parametrize("persistent", [True, False])
def test_a_part_that_counts_its_calls_leaves_the_start_as_it_was(persistent: bool) -> None:
    class Counting(Scaled):
        def forward(self, states: Tensor) -> Any:
            self.shift.add_(1.0)
            return super().forward(states)

    def asked() -> Tensor:
        host.forget()
        return host.score_reference(*ASKED).log_probs

    model = make_t5()
    model.encoder.block[0].layer[-1] = Counting(model.encoder.block[0].layer[-1], persistent)
    host = make_host(model, cache_size=0)
    start = asked()
    scores(host)
    assert torch.equal(asked(), start) and torch.equal(asked(), start)
    host.reset(0)
    assert float(model.encoder.block[0].layer[-1].shift[0]) == 0


# --- module functions


class Built(BaseModuleFunction):
    """Builds its layer in ``__init__``, or partly there."""

    needs = "state"

    def __init__(self, start: bool = True) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 1).double() if start else None
        self.register_buffer("mean", torch.zeros(1, dtype=torch.float64), persistent=False)

    def initialize(self) -> None:
        if self.layer is None:
            self.layer = nn.Linear(16, 1).double()
        self.mean.add_(1.0)

    def forward(
        self, forward_outputs: Any, minibatch: Any, tokenized_contexts: Any, **kwargs: Any
    ) -> Tensor:
        assert self.layer is not None
        value: Tensor = self.layer(forward_outputs["decoder_hidden_states"][-1][:, 0]) - self.mean
        return value


@pytest.mark.parametrize("built_in_init", [True, False])
def test_a_module_function_built_in_init_is_drawn_anew_as_well(built_in_init: bool) -> None:
    host = make_host(make_t5(), {"head": Built(built_in_init)}, seed=3)

    def value() -> Tensor:
        return host.score(*ASKED, modules=("head",)).modules["head"]

    start, parameters = value(), host.trainable_parameters()
    with torch.no_grad():
        host.module_functions["head"].layer.weight.add_(1.0)
        host.module_functions["head"].mean.add_(1.0)
    host.forget()
    assert not torch.allclose(value(), start)
    host.reset(3)
    assert torch.equal(value(), start)
    assert all(a is b for a, b in zip(parameters, host.trainable_parameters(), strict=True))


def test_a_module_function_with_a_lazy_layer_is_named() -> None:
    class Lazy(Built):
        def initialize(self) -> None:
            self.layer = nn.LazyLinear(1)

    with pytest.raises(TypeError, match=r"'head': layer\.weight has no size"):
        make_host(make_t5(), {"head": Lazy()})


def test_a_module_function_that_grows_later_cannot_be_drawn_anew() -> None:
    host = make_host(make_t5(), {"head": Built()})
    start = scores(host)
    host.module_functions["head"].extra = nn.Linear(2, 2)
    with pytest.raises(RequestError, match=r"'head': extra\.bias was put in"):
        host.reset(0)
    assert torch.equal(scores(host), start)
