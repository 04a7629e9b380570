"""Products of matrices by the other library are the same products."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lamorel_ext.llm.scoring import products
from lamorel_ext.llm.scoring.causal import CausalEngine
from lamorel_ext.llm.scoring.products import apply_linear, fast_linears, prefers_onednn
from lamorel_ext.llm.scoring.t5_forward import T5Engine
from tests.llm.tiny_models import ACTIONS, PROMPTS, make_causal, make_host, make_t5

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN"
)
ROWS = products.LEAST // (64 * 96) + 1


@pytest.fixture
def preferred(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """oneDNN is preferred for all sizes; gives how many products it made, in a list of one."""
    made, multiply = [0], products._multiply

    def counting(*operands: torch.Tensor) -> torch.Tensor:
        made[0] += 1
        return multiply(*operands)

    monkeypatch.setattr(products, "_is_wide_amd", lambda: True)
    monkeypatch.setattr(products, "LEAST", 1)
    monkeypatch.setattr(products, "_multiply", counting)
    yield made


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(ROWS,), (3, ROWS), (2, 1, ROWS)])
def test_products_and_gradients_are_those_of_the_layer(
    preferred: list[int], bias: bool, shape: tuple[int, ...]
) -> None:
    layer, into = nn.Linear(64, 96, bias=bias), torch.randn(*shape, 96)
    x = torch.randn(*shape, 64, requires_grad=True)
    tensors = [x, *layer.parameters()]
    ours, plain = apply_linear(layer, x), layer(x)
    assert preferred == [1]
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)
    expected = torch.autograd.grad(plain, tensors, into)
    for found, exact in zip(torch.autograd.grad(ours, tensors, into), expected, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-3)
    assert preferred == [3]


@pytest.mark.filterwarnings("error")
def test_second_derivatives_are_those_of_the_layer(preferred: list[int]) -> None:
    layer, x = nn.Linear(8, 6), torch.randn(5, 8, requires_grad=True)
    tensors, found = [x, layer.weight], []
    for product in (apply_linear(layer, x), layer(x)):
        first = torch.autograd.grad(product.pow(3).sum(), tensors, create_graph=True)
        penalty = torch.stack([each.square().sum() for each in first]).sum()
        found.append(torch.autograd.grad(penalty, tensors))
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-3)
    assert preferred[0]


def test_a_gradient_that_is_one_number_everywhere(preferred: list[int]) -> None:
    layer, x = nn.Linear(64, 96, bias=False), torch.randn(ROWS, 64)
    apply_linear(layer, x).sum().backward()
    assert layer.weight.grad is not None and preferred == [2]  # none for x, which asks for none
    torch.testing.assert_close(layer.weight.grad, x.sum(0).expand(96, 64), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", ["t5", "llama", "opt"])
def test_a_model_answers_and_learns_alike(
    preferred: list[int], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for wide in (False, True):
        monkeypatch.setattr(products, "LEAST", 1 if wide else 2**60)
        made = preferred[0]
        own = {"dtype": torch.float32}
        model = make_t5(**own) if kind == "t5" else make_causal(kind, **own)
        host = make_host(model)
        assert isinstance(host._answerer.scorer.engine, (T5Engine, CausalEngine))
        scores = host.score(PROMPTS, [ACTIONS] * len(PROMPTS), require_grad=True).log_probs
        scores.sum().backward()
        assert (preferred[0] > made) == wide
        found.append([scores, *[each.grad for each in model.parameters()]])
    for plain, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)


def test_other_modules_sizes_and_numbers_are_left_to_pytorch(
    preferred: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    x, layer = torch.randn(ROWS, 64), Doubled(64, 96)
    assert torch.equal(apply_linear(layer, x), layer(x))
    for dtype in (torch.float64, torch.bfloat16):
        plain = nn.Linear(64, 96, dtype=dtype)
        assert torch.equal(apply_linear(plain, x.to(dtype)), plain(x.to(dtype)))
    monkeypatch.setattr(products, "LEAST", 2**60)
    plain = nn.Linear(64, 96)
    assert torch.equal(apply_linear(plain, x), plain(x)) and preferred == [0]


def test_it_is_for_wide_amd_processors_and_not_where_arithmetic_is_to_be_portable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file, capability = tmp_path / "cpuinfo", "AVX512"
    monkeypatch.setattr(products, "CPUINFO", file)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)

    def preferred(vendor: str) -> bool:
        file.write_text(f"processor: 0\nvendor_id\t: {vendor}\n")
        products._is_wide_amd.cache_clear()
        return prefers_onednn()

    try:
        assert preferred("AuthenticAMD") and not preferred("GenuineIntel")
        assert preferred("AuthenticAMD")
        before = torch.backends.mkldnn.set_flags(False)
        try:
            assert not prefers_onednn()  # as ``run.portable`` leaves it
        finally:
            torch.backends.mkldnn.set_flags(*before)
        capability = "AVX2"
        assert not preferred("AuthenticAMD")
    finally:
        products._is_wide_amd.cache_clear()


def test_a_model_in_training_is_called_as_it_is(preferred: list[int]) -> None:
    layer, x = nn.Linear(64, 96), torch.randn(ROWS, 64)
    for mode, count in ((True, 0), (False, 1)):
        with fast_linears(layer.train(mode)):
            F.linear(x, layer.weight, layer.bias)
        assert preferred == [count]
