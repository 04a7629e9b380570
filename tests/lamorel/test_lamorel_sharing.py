"""A pass that shares work gives module functions what transformers' pass gives, gradients too."""

import threading
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lamorel_ext import BaseModuleFunction
from lamorel_ext.config import LlmArgs
from lamorel_ext.lamorel import model as lamorel_model
from lamorel_ext.lamorel.model import LamorelModel, initialised
from lamorel_ext.lamorel.optimisers import fused_adam
from lamorel_ext.lamorel.settings import LlmSettings
from lamorel_ext.lamorel.sharing import SharedOutputs, can_share
from lamorel_ext.llm.loading import load_model
from lamorel_ext.llm.module_functions import LogScores

CONTEXTS = [
    "You see a red ball",
    "go",
    "You see a red ball",
    "",
    "You see a green ball 2 steps left",
]
CANDIDATES = [
    ["turn left", "turn right"],
    ["drop"],
    ["turn left", "go"],
    ["", "drop"],
    ["drop", "drop"],
]


class Reads(BaseModuleFunction):
    """Gives what a function of the outputs gives."""

    def __init__(self, read: Callable[[Any, Any], torch.Tensor]) -> None:
        super().__init__()
        self._read = read

    def initialize(self) -> None:
        pass

    def forward(
        self, forward_outputs: Any, minibatch: Any, tokenized_contexts: Any, **kwargs: Any
    ) -> torch.Tensor:
        return self._read(forward_outputs, minibatch)


def real(minibatch: Any, states: torch.Tensor) -> torch.Tensor:
    return (states * minibatch["decoder_attention_mask"][:, :, None]).flatten(1).sum(-1)


READS: dict[str, Callable[[Any, Any], torch.Tensor]] = {
    "first": lambda out, batch: out["decoder_hidden_states"][-1][:, 0].square(),
    "attribute": lambda out, batch: out.decoder_hidden_states[-1][:, 0].square(),
    "every position": lambda out, batch: real(batch, out["decoder_hidden_states"][-1].square()),
    "logits": lambda out, batch: real(batch, out.logits.log_softmax(-1)[:, :, :50]),
    "encoder": lambda out, batch: (
        out.encoder_last_hidden_state.square().mean(-1).mul(batch["attention_mask"]).sum(-1)
    ),
    "first layers": lambda out, batch: out["decoder_hidden_states"][1][:, 0].square(),
    "encoder's layers": lambda out, batch: out["encoder_hidden_states"][0][:, 0].square(),
    "by number": lambda out, batch: out[0][:, 0, :50],
    "layers in one": lambda out, batch: real(
        batch, torch.stack(out["decoder_hidden_states"]).square().sum(0)
    ),
    "number of layers": lambda out, batch: torch.tensor(
        [len(out["decoder_hidden_states"])] * len(batch["attention_mask"])
    ),
}


@cache
def parts() -> tuple[Any, Any]:
    model, tokenizer, _ = load_model(LlmArgs(), torch.device("cpu"))
    return model, tokenizer


def make(pre_encode: bool, **functions: Any) -> LamorelModel:
    args = replace(LlmArgs(minibatch_size=4), pre_encode_inputs=pre_encode)
    settings = LlmSettings("", "0.2", args, range(1))
    model, tokenizer = parts()
    return initialised(LamorelModel(model, tokenizer, settings), functions, settings, {})


def answers(model: LamorelModel, name: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    rows = model([name], CONTEXTS, candidates=CANDIDATES, require_grad=True)
    column = torch.cat([row[name] for row in rows])
    if column.requires_grad:
        column.double().sum().backward()
    return column.detach(), {
        key: value.grad.clone() for key, value in model.named_parameters() if value.grad is not None
    }


@pytest.mark.parametrize("pre_encode", [True, False])
@pytest.mark.parametrize("name", READS)
def test_module_functions_find_values_and_gradients_of_the_own_pass(
    name: str, pre_encode: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if pre_encode and name == "encoder's layers":
        pytest.skip("a pass that is given the encoder's states has no others")
    model = make(pre_encode, **{name: Reads(READS[name])})
    assert can_share(model._LLM_model)
    shared, gradients = answers(model, name)
    monkeypatch.setattr(lamorel_model, "can_share", lambda model: False)
    own, expected = answers(model, name)
    torch.testing.assert_close(shared, own, atol=1e-4, rtol=1e-4)
    for key, gradient in gradients.items():
        scale = expected[key].abs().max().item() + 1e-6
        torch.testing.assert_close(gradient / scale, expected[key] / scale, atol=1e-3, rtol=1e-3)
    assert gradients.keys() == expected.keys()


def test_scores_as_a_module_function_equal_those_of_the_own_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make(True, plain=LogScores())
    shared, _ = answers(model, "plain")
    monkeypatch.setattr(lamorel_model, "can_share", lambda model: False)
    torch.testing.assert_close(shared, answers(model, "plain")[0], atol=1e-4, rtol=1e-4)


def test_the_encoder_reads_each_distinct_context_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    made = SharedOutputs.__init__

    def spy(self: Any, *args: Any) -> None:
        made(self, *args)
        seen.append(len(self._packing.lengths))

    monkeypatch.setattr(SharedOutputs, "__init__", spy)
    model = make(True, first=Reads(READS["first"]))
    model(["first"], CONTEXTS, candidates=CANDIDATES, minibatch_size=100)
    assert seen == [len(set(CONTEXTS))]


def test_states_of_every_layer_are_a_tuple_and_cost_no_second_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(SharedOutputs, "_all", lambda self: pytest.fail("a pass was made"))
    seen: list[int] = []

    def read(out: Any, batch: Any) -> torch.Tensor:
        states = out["decoder_hidden_states"]
        seen.append(len((*states, *(states + (states[0],)))))
        return real(batch, states[1])

    model = make(False, reads=Reads(read))
    model(["reads"], CONTEXTS, candidates=CANDIDATES, minibatch_size=100)
    assert seen == [2 * (model.get_model_config().num_decoder_layers + 1) + 1]


def test_dropout_and_hooks_make_a_model_run_its_own_pass() -> None:
    model = make(True)._LLM_model
    tokens = torch.tensor([[3, 4]])
    model(input_ids=tokens, decoder_input_ids=tokens, output_hidden_states=True)
    assert can_share(model)  # whatever transformers has left on it
    model.decoder.train()
    assert not can_share(model)
    model.eval()
    handle = model.decoder.block[0].register_forward_hook(lambda *args: None)
    assert not can_share(model)
    handle.remove()
    assert can_share(model)


def test_scores_of_a_model_with_a_hook_are_those_of_its_own_pass() -> None:
    model = make(True, own=LogScores())

    def scores(name: str) -> torch.Tensor:
        rows = model([name], CONTEXTS, candidates=CANDIDATES)
        return torch.cat([row[name] for row in rows]).flatten()

    before = scores("__score")
    block = model._LLM_model.decoder.block[0]
    handle = block.register_forward_hook(lambda _, __, output: (output[0] + 3.0, *output[1:]))
    try:
        assert (scores("__score") - before).abs().max() > 1e-2
        torch.testing.assert_close(scores("__score"), scores("own").to(before.dtype))
    finally:
        handle.remove()
    torch.testing.assert_close(scores("__score"), before)


# --- Adam -----------------------------------------------------------------------------------------


def steps(**kwargs: Any) -> tuple[torch.Tensor, torch.optim.Optimizer]:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(7, 5))
    optimizer = torch.optim.AdamW([weight], lr=1e-2, **kwargs)
    for _ in range(5):
        optimizer.zero_grad()
        weight.pow(3).sum().backward()
        optimizer.step()
    return weight.detach(), optimizer


def test_another_server_may_begin_and_end_an_update_while_this_one_steps() -> None:
    def other_server(*_: Any) -> None:
        def update() -> None:
            with fused_adam():
                pass

        thread = threading.Thread(target=update)
        thread.start()
        thread.join()

    handle = register_optimizer_step_pre_hook(other_server)
    try:
        with fused_adam():
            _, optimizer = steps()
    finally:
        handle.remove()
    assert optimizer.param_groups[0]["fused"]


def test_adam_in_one_kernel_steps_as_the_plain_one() -> None:
    plain, _ = steps()
    with fused_adam():
        fused, optimizer = steps()
    assert optimizer.param_groups[0]["fused"]
    torch.testing.assert_close(fused, plain, atol=1e-6, rtol=1e-6)


def cut_out(shape: tuple[int, int], turned: bool) -> torch.Tensor:
    """A parameter after two steps: the first gradient as it is, the second a column of several
    tasks' gradients.
    """
    torch.manual_seed(0)
    layer = torch.nn.Parameter(torch.zeros(shape[::-1]).t() if turned else torch.zeros(shape))
    optimizer = torch.optim.AdamW([layer], lr=0.1)
    for each in (torch.randn(*shape), torch.randn(*shape, 3)[..., 1]):
        layer.grad = each
        optimizer.step()
    return layer.detach()


@pytest.mark.parametrize("turned", [False, True])
def test_gradients_cut_out_of_a_matrix_are_read_where_they_are(turned: bool) -> None:
    plain = cut_out((4, 5), turned)
    with fused_adam():
        fused = cut_out((4, 5), turned)
    torch.testing.assert_close(fused, plain, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kwargs", [{"foreach": False}, {"fused": False}, {"foreach": True}])
def test_an_optimiser_that_was_told_how_keeps_its_way(kwargs: dict[str, Any]) -> None:
    with fused_adam():
        fused, optimizer = steps(**kwargs)
    assert not optimizer.param_groups[0]["fused"]
    assert torch.equal(fused, steps(**kwargs)[0])


def test_adam_steps_plainly_outside_of_updates() -> None:
    with fused_adam():
        pass
    assert steps()[1].param_groups[0]["fused"] is None
