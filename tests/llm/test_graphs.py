"""Small calls on a GPU as graphs, as far as a CPU can show: what they compute. ``tests.gpu`` shows
the rest.
"""

from __future__ import annotations

import pytest
import torch

from lamorel_ext.llm.scoring.candidate_tree import CandidateTree, Tokens, make_tree
from lamorel_ext.llm.scoring.engines import can_capture
from lamorel_ext.llm.scoring.graphs import GraphEngine, shape_of
from lamorel_ext.llm.scoring.t5_forward import T5Engine
from tests.llm.tiny_models import make_t5

TREE = make_tree([(3, 4), (3, 5), (6,)])
TEXTS: list[Tokens] = [(5,), (5, 6, 7), (8, 9, 10), tuple(range(2, 22))]


def read(engine: T5Engine, prompts: list[Tokens]) -> list[torch.Tensor]:
    with torch.no_grad():
        reading = engine.read(prompts, [[TREE] * len(prompts)], with_states=True)
    assert reading.states is not None
    assert reading.num_tokens == sum(map(len, prompts)) + 2 * len(prompts)
    return [reading.edges[0], reading.states]


@pytest.mark.parametrize("prompts", [TEXTS, TEXTS[:3], TEXTS[1:2]])
@pytest.mark.parametrize("own_head", [True, False])
def test_padded_prompts_and_prompts_that_fill_up_change_no_answer(
    prompts: list[Tokens], own_head: bool
) -> None:
    model = make_t5(own_head=own_head, dtype=torch.float64)
    graphs = GraphEngine(model)
    for ours, exact in zip(read(graphs, prompts), read(T5Engine(model), prompts), strict=True):
        torch.testing.assert_close(ours, exact, rtol=0, atol=1e-9)
    assert len(graphs._calls) == 1


def test_a_weight_that_moved_in_memory_drops_the_graphs_and_one_that_changed_does_not() -> None:
    model = make_t5()
    engine = GraphEngine(model)
    read(engine, TEXTS)
    (call,) = engine._calls._values.values()
    with torch.no_grad():
        model.shared.weight.mul_(2)
    assert engine._present_places() == engine._places
    model.shared.weight.data = model.shared.weight.data.clone()
    read(engine, TEXTS)
    assert call not in engine._calls._values.values()


@pytest.mark.parametrize(
    ("prompts", "rounds", "shape"),
    [
        ([(1,)], [[TREE]], (1, 16)),
        ([(1,)] * 5 + [(1,) * 17], [[TREE] * 6], (8, 32)),
        ([(1,)] * 64, [[TREE] * 64], (64, 16)),
        ([(1,)] * 65, [[TREE] * 65], None),
        ([(1,) * 257], [[TREE]], None),
        ([(1,)] * 63 + [(1,) * 129], [[TREE] * 64], None),
        ([(), (1,)], [[TREE] * 2], None),
        ([(1,)], [[TREE], [TREE]], None),
        ([(1,)] * 2, [[TREE, make_tree([(3,)])]], None),
        ([(1,)], [[make_tree([])]], None),
        ([(1,)] * 64, [[make_tree([(k, k) for k in range(40)])] * 64], None),
    ],
)
def test_which_calls_are_small(
    prompts: list[Tokens], rounds: list[list[CandidateTree]], shape: tuple[int, int] | None
) -> None:
    assert shape_of(prompts, rounds) == shape


def test_with_gradients_there_is_no_graph() -> None:
    engine = GraphEngine(make_t5())
    engine.read(TEXTS, [[TREE] * 4], with_states=False).edges[0].sum().backward()
    assert not len(engine._calls)


def test_on_a_cpu_there_are_none() -> None:
    assert not can_capture(make_t5())
