"""What is read at a time: within the bound that was set, and with every score in its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lamorel_ext.llm.scoring import scorer as scoring
from lamorel_ext.llm.scoring.candidate_tree import CandidateTree, Tokens
from lamorel_ext.llm.scoring.scorer import Reading, Scorer
from tests.llm.tiny_models import ACTIONS, PROMPTS, make_host, make_t5

tokens = st.lists(st.integers(0, 3), max_size=4).map(tuple)
texts = st.lists(tokens, min_size=1, max_size=7, unique=True)


def token_value(prompt: Tokens, prefix: Tokens, token: int) -> float:
    """A number of its own for every token after every prefix after every prompt."""
    return hash((prompt, prefix, token)) % 9973 / 9973


class CountingEngine:
    """Gives ``token_value`` for every edge; remembers how many prompts and decoder positions it was
    given at a time.
    """

    def __init__(self) -> None:
        self.sizes: list[tuple[int, int]] = []

    def read(
        self,
        prompts: Sequence[Tokens],
        rounds: Sequence[Sequence[CandidateTree]],
        with_states: bool,
    ) -> Reading:
        edges: list[Tensor] = []
        for trees in rounds:
            self.sizes.append((len(prompts), sum(tree.num_nodes for tree in trees)))
            values: list[float] = []
            for prompt, tree in zip(prompts, trees, strict=True):
                spelled = [
                    tuple(int(tree.node_tokens[seen]) for seen in row.nonzero()[0])[1:]
                    for row in tree.attends
                ]
                leave = zip(tree.edge_nodes, tree.edge_tokens, strict=True)
                values += [token_value(prompt, spelled[node], int(token)) for node, token in leave]
            edges.append(torch.tensor(values, dtype=torch.float64))
        return Reading(edges, None, 0)


@given(
    candidates=st.lists(st.lists(tokens, max_size=7, unique=True), min_size=1, max_size=7),
    size=st.integers(1, 5),
    data=st.data(),
)
def test_every_score_is_in_its_place_and_no_read_is_too_large(
    candidates: list[list[Tokens]], size: int, data: st.DataObject
) -> None:
    prompts = data.draw(
        st.lists(tokens, min_size=len(candidates), max_size=len(candidates), unique=True)
    )
    engine = CountingEngine()
    with torch.no_grad():
        got = (
            Scorer(engine, size, torch.float64)
            .score(prompts, [tuple(own) for own in candidates])
            .log_probs
        )
    expected = [
        sum(token_value(prompt, one[:place], one[place]) for place in range(len(one)))
        for prompt, own in zip(prompts, candidates, strict=True)
        for one in own
    ]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9)
    longest = max((len(one) for own in candidates for one in own), default=0)
    assert all(
        read <= size and positions <= size * max(1, longest) for read, positions in engine.sizes
    )


def test_prompts_with_many_candidates_are_read_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "MAX_TREE", 2)
    engine = CountingEngine()
    # Three trees of two candidates each for two of the prompts, one tree for the third.
    many = tuple((first, last) for first in range(3) for last in range(2))
    with torch.no_grad():
        Scorer(engine, 8).score([(1,), (2,), (3,)], [many, many[:1], many])
    assert engine.sizes == [(1, 2), (2, 4), (2, 4), (2, 4)]


def test_with_gradients_one_read_does_for_all() -> None:
    engine = CountingEngine()
    Scorer(engine, 1).score([(1,), (2,), (3,)], [((0, 1), (2,)), ((3,),), ()])
    assert engine.sizes == [(3, 4)]


@pytest.mark.parametrize("own_head", [True, False])
def test_the_gradient_of_the_table_of_all_tokens_is_made_once(
    own_head: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = make_t5(own_head=own_head)
    table, calls, made = model.shared, [], nn.functional.embedding
    for module in (model.encoder.embed_tokens, model.decoder.embed_tokens):
        assert type(module) is nn.Embedding and module.weight is table.weight

    def spy(tokens: Tensor, weight: Tensor, *args: Any) -> Tensor:
        if weight is table.weight:
            calls.append(len(tokens))
        return made(tokens, weight, *args)

    # Not the module's own forward: a model with another one is called as it is.
    monkeypatch.setattr(nn.functional, "embedding", spy)
    make_host(model, minibatch_size=2).score(
        PROMPTS, [ACTIONS] * len(PROMPTS), require_grad=True
    ).log_probs.sum().backward()
    assert len(calls) == 1
    assert calls[0] < sum(len(prompt.split()) for prompt in PROMPTS)  # distinct tokens alone
