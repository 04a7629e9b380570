"""Gradients of large tables are added to a sum that is there, and are otherwise PyTorch's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamorel_ext.llm.scoring import gradient_sums, products
from lamorel_ext.llm.scoring.gradient_sums import look_up
from lamorel_ext.llm.scoring.products import apply_linear

TOKENS, WIDTH = 23, 5
SEEN = [torch.tensor(tokens) for tokens in ([3, 1, 22], [0, 3], [7])]


class Plain(nn.Module):
    """A table of tokens and an output head, the same one where ``tied``."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(TOKENS, WIDTH), nn.Linear(WIDTH, TOKENS, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.loss(self.head(torch.tanh(self.table(tokens))))

    def loss(self, logits: Tensor) -> Tensor:
        return torch.log_softmax(logits, -1).square().mean()


class Ours(Plain):
    """The same by the functions under test."""

    def forward(self, tokens: Tensor) -> Tensor:
        return self.loss(apply_linear(self.head, torch.tanh(look_up(self.table, tokens))))


@pytest.fixture(autouse=True)
def every_table_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Added in three parts, the last one smaller."""
    monkeypatch.setattr(products, "LARGE", 1)
    monkeypatch.setattr(products, "LEAST", 1)
    monkeypatch.setattr(gradient_sums, "BLOCK", 10 * WIDTH)


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The numbers of gradients that were added to sums at once."""
    added: list[int] = []
    add = gradient_sums.add_product

    def noting(
        total: Tensor, gradient: Tensor, x: Tensor, multiply: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        added.append(total.numel())
        return add(total, gradient, x, multiply)

    monkeypatch.setattr(products, "add_product", noting)
    yield added


def _layouts(model: Plain) -> list[torch.layout]:
    """Of what reaches the table's sum, filled in each backward pass."""
    seen: list[torch.layout] = []
    node = torch.autograd.graph.get_gradient_edge(model.table.weight).node
    node.register_prehook(lambda found: seen.extend(each.layout for each in found))
    model.node = node  # the graph does not keep it
    return seen


def _same(ours: Plain, plain: Plain) -> None:
    for found, expected in zip(ours.parameters(), plain.parameters(), strict=True):
        assert found.grad is not None and expected.grad is not None
        assert found.grad.layout == torch.strided
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("tied", [False, True])
def test_sums_over_passes_are_pytorchs(tied: bool, parts: list[int]) -> None:
    ours, plain = Ours(tied), Plain(tied)
    layouts = _layouts(ours)
    for tokens in SEEN:
        ours(tokens).backward()
        plain(tokens).backward()
        _same(ours, plain)
    assert parts == [TOKENS * WIDTH] * 2  # the first pass has nothing to add to
    assert layouts == [torch.strided, torch.sparse_coo, torch.sparse_coo]
    ours.zero_grad()
    plain.zero_grad()
    ours(SEEN[0]).backward()
    plain(SEEN[0]).backward()
    _same(ours, plain)


def test_several_calls_in_one_pass_add_up() -> None:
    ours, plain = Ours(False), Plain(False)
    for model in (ours, plain):
        model(SEEN[0]).backward()
        torch.stack([model(tokens) for tokens in SEEN]).sum().backward()
    _same(ours, plain)


def test_a_gradient_that_is_asked_for_is_given_and_added_to_nothing(parts: list[int]) -> None:
    ours, plain = Ours(False), Plain(False)
    for model in (ours, plain):
        model(SEEN[0]).backward()
    found, expected = (
        torch.autograd.grad(model(SEEN[1]), list(model.parameters())) for model in (ours, plain)
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    _same(ours, plain)
    assert parts == []


def test_only_the_parameters_that_a_pass_is_for_get_gradients() -> None:
    ours, plain = Ours(False), Plain(False)
    for model in (ours, plain):
        model(SEEN[0]).backward()
        model(SEEN[1]).backward(inputs=[model.table.weight])
    _same(ours, plain)


def test_hooks_see_the_whole_gradient_and_may_change_it(parts: list[int]) -> None:
    ours, plain = Ours(False), Plain(False)
    for model in (ours, plain):
        for weight in model.parameters():
            weight.register_hook(lambda gradient: 2 * gradient.clamp(max=0.01))
        for tokens in SEEN:
            model(tokens).backward()
    _same(ours, plain)
    assert parts == []


def test_what_waits_for_the_sum_is_called_once_a_pass_when_it_is_whole() -> None:
    ours, sums = Ours(False), []
    for weight in ours.parameters():
        weight.register_post_accumulate_grad_hook(lambda own: sums.append(own.grad.clone()))
    plain = Plain(False)
    for tokens in SEEN:
        sums.clear()
        ours(tokens).backward()
        plain(tokens).backward()
        assert len(sums) == 2
    _same(ours, plain)
    for weight in ours.parameters():
        assert any(torch.equal(weight.grad, each) for each in sums)


def test_frozen_tables_get_no_gradient() -> None:
    ours = Ours(False)
    ours.table.weight.requires_grad_(False)
    for tokens in SEEN:
        ours(tokens).backward()
    assert ours.table.weight.grad is None and ours.head.weight.grad is not None


def test_a_second_derivative_of_a_look_up() -> None:
    table = nn.Embedding(TOKENS, WIDTH)
    table.weight.grad = torch.ones(TOKENS, WIDTH)
    (first,) = torch.autograd.grad(
        look_up(table, SEEN[0]).pow(3).sum(), table.weight, create_graph=True
    )
    (second,) = torch.autograd.grad(first.sum(), table.weight)
    rows = torch.zeros(TOKENS, 1).index_fill_(0, SEEN[0], 1.0)
    torch.testing.assert_close(second, 6 * table.weight * rows)


@pytest.mark.parametrize(
    "asked", [{"padding_idx": 3}, {"max_norm": 0.5}, {"scale_grad_by_freq": True}, {"sparse": True}]
)
def test_a_table_that_does_more_than_look_up_is_called(asked: dict[str, float]) -> None:
    torch.manual_seed(0)
    table = nn.Embedding(TOKENS, WIDTH, **asked)
    torch.manual_seed(0)
    plain = nn.Embedding(TOKENS, WIDTH, **asked)
    for _ in range(2):
        look_up(table, SEEN[0]).square().sum().backward()
        plain(SEEN[0]).square().sum().backward()
    assert table.weight.grad is not None and plain.weight.grad is not None
    assert torch.equal(table.weight.grad.to_dense(), plain.weight.grad.to_dense())


def test_without_pytorchs_own_function_gradients_are_dense(
    monkeypatch: pytest.MonkeyPatch, parts: list[int]
) -> None:
    monkeypatch.setattr(gradient_sums, "_will_run", None)
    ours, plain = Ours(False), Plain(False)
    layouts = _layouts(ours)
    for tokens in SEEN:
        ours(tokens).backward()
        plain(tokens).backward()
    _same(ours, plain)
    assert parts == [] and layouts == [torch.strided] * 3


def test_a_small_head_is_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "LARGE", TOKENS * WIDTH + 1)
    monkeypatch.setattr(products, "_is_wide_amd", lambda: False)
    head, x = nn.Linear(WIDTH, TOKENS), torch.randn(2, WIDTH)
    logits = apply_linear(head, x)
    assert torch.equal(logits, F.linear(x, head.weight, head.bias))
    assert type(logits.grad_fn).__name__ == "AddmmBackward0"
