"""What is remembered belongs to the settings that it was computed with: adapters, modes, hooks, and
weights changed behind the host's back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.llm.tiny_models import ACTIONS, make_host, make_t5

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
        torch.testing.assert_close(host.reference_log_probs([PROMPT], [ACTIONS]), fresh(host))


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
