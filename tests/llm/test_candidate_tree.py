"""Prefix trees: small ones by hand, many at random against their definition."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from lamorel_ext.llm.scoring.candidate_tree import batch_trees, gather_paths, make_tree
from lamorel_ext.llm.scoring.packing import make_packing

tokens = st.lists(st.integers(0, 2), max_size=5).map(tuple)
candidate_lists = st.lists(tokens, max_size=8, unique=True)


def test_a_tree_by_hand() -> None:
    # turn left, turn right, drop: the nodes are "" and "turn"; the edges leave "" for turn and
    # drop, and "turn" for left and right.
    turn, left, right, drop = 7, 1, 2, 5
    tree = make_tree([(turn, left), (turn, right), (drop,)])
    assert tree.node_tokens.tolist() == [-1, turn]
    assert tree.node_depths.tolist() == [0, 1]
    assert tree.attends.tolist() == [[True, False], [True, True]]
    assert tree.edge_nodes.tolist() == [0, 0, 1, 1]
    assert tree.edge_tokens.tolist() == [turn, drop, left, right]
    assert tree.paths.tolist() == [[0, 2], [0, 3], [1, 4]]  # 4 = no edge
    assert tree.leaves == (0, 1, 2)


@given(candidate_lists)
def test_paths_spell_the_candidates_and_nothing_is_there_twice(
    candidates: list[tuple[int, ...]],
) -> None:
    tree = make_tree(candidates)
    prefixes = {c[:end] for c in candidates for end in range(1, len(c) + 1)}
    assert tree.num_edges == len(prefixes)
    assert tree.num_nodes == len({prefix[:-1] for prefix in prefixes} | {()})
    for candidate, path in zip(candidates, tree.paths, strict=True):
        assert tuple(tree.edge_tokens[edge] for edge in path if edge < tree.num_edges) == candidate
    assert (tree.edge_nodes[1:] >= tree.edge_nodes[:-1]).all()


@given(candidate_lists)
def test_a_node_sees_its_own_prefix_alone(candidates: list[tuple[int, ...]]) -> None:
    tree = make_tree(candidates)
    spelled = [
        tuple(tree.node_tokens[seen] for seen in row.nonzero()[0])[1:] for row in tree.attends
    ]
    assert sorted(spelled) == sorted({c[:end] for c in candidates for end in range(len(c))} | {()})
    assert tree.node_depths.tolist() == [len(prefix) for prefix in spelled]
    for edge, (leaf, depth) in enumerate(
        zip(tree.edge_leaves, tree.node_depths[tree.edge_nodes], strict=True)
    ):
        through = candidates[tree.leaves[leaf]]
        assert (
            through[depth] == tree.edge_tokens[edge]
            and through[:depth] == spelled[tree.edge_nodes[edge]]
        )


@given(st.lists(candidate_lists, min_size=1, max_size=4))
def test_batched_trees_gather_what_single_ones_do(lists: list[list[tuple[int, ...]]]) -> None:
    trees = [make_tree(candidates) for candidates in lists]
    batch = batch_trees(trees, torch.device("cpu"))
    values = torch.arange(1.0, len(batch.edge_tokens) + 1)
    together = gather_paths(values, trees)
    start, rows = 0, []
    for tree in trees:
        rows += gather_paths(values[start : start + tree.num_edges], [tree]).sum(-1).tolist()
        start += tree.num_edges
    assert together.sum(-1).tolist() == rows
    assert batch.node_tokens[batch.roots].tolist() == [-1] * len(trees)
    assert batch.attends.any(
        -1
    ).all()  # padding too attends to something, or its softmax would divide by zero


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_packing_comes_back(lengths: list[int]) -> None:
    packing = make_packing(lengths, torch.device("cpu"))
    rows = torch.arange(2 * sum(lengths)).view(-1, 2)
    padded = packing.pad(rows)
    assert padded.shape == (len(lengths), max(lengths), 2)
    assert torch.equal(packing.unpad(padded), rows)
    assert [own[:length].tolist() for own, length in zip(padded, lengths, strict=True)] == [
        part.tolist() for part in rows.split(lengths)
    ]
    if packing.mask is not None:
        assert packing.mask.sum(-1).tolist() == lengths


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_no_gradient_comes_from_padding(lengths: list[int]) -> None:
    packing = make_packing(lengths, torch.device("cpu"))
    rows = torch.randn(sum(lengths), 2, requires_grad=True)
    weights = torch.randn(len(lengths), max(lengths), 2)
    (packing.pad(rows) * weights).sum().backward()
    assert rows.grad is not None and torch.equal(rows.grad, packing.unpad(weights))
