"""Candidates merged into a prefix tree, so that what they have in common is computed once.

An *edge* of the tree is one token after one prefix; its log-probability is the same for every
candidate that runs over it. A *node* is a prefix that something follows; only nodes are fed to the
model. "turn left" and "turn right" make the nodes "" and "turn", and the edges "turn", "left" and
"right". Nodes lie one after the other in a short sequence in which each attends to its own prefix
alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lamorel_ext.llm.devices import put

Tokens = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class CandidateTree:
    """The prefix tree of one set of candidates; node 0 is the empty prefix, parents come before
    their children.

    Attributes:
        candidates: The candidates, distinct, as tokens.
        node_tokens: ``(num_nodes,)`` int64, last token of each prefix; -1 for node 0, which has
            none.
        node_depths: ``(num_nodes,)`` int64, length of each prefix.
        attends: ``(num_nodes, num_nodes)`` bool, True where the row's prefix starts with the
            column's.
        edge_nodes: ``(num_edges,)`` int64, the node each edge leaves, ascending.
        edge_tokens: ``(num_edges,)`` int64.
        paths: ``(num_candidates, longest)`` int64, edges of each candidate from the first token on;
            ``num_edges`` after its end.
        leaves: Positions in ``candidates`` of those that no other continues; together they run over
            every edge.
        edge_leaves: ``(num_edges,)`` int64, position in ``leaves`` of one that runs over the edge,
            at the depth of the edge's node.
    """

    candidates: tuple[Tokens, ...]
    node_tokens: np.ndarray
    node_depths: np.ndarray
    attends: np.ndarray
    edge_nodes: np.ndarray
    edge_tokens: np.ndarray
    paths: np.ndarray
    leaves: tuple[int, ...]
    edge_leaves: np.ndarray

    @property
    def num_nodes(self) -> int:
        return len(self.node_tokens)

    @property
    def num_edges(self) -> int:
        return len(self.edge_tokens)


def make_tree(candidates: Sequence[Tokens]) -> CandidateTree:
    """Merge candidates, which may be empty, into their prefix tree.

    Without candidates the tree is its root alone.
    """
    distinct = tuple(candidates)
    prefixes = list(dict.fromkeys(c[:end] for c in distinct for end in range(1, len(c) + 1)))
    # A shorter prefix is met before the longer ones that continue it, so parents come first.
    nodes = {
        prefix: i
        for i, prefix in enumerate(dict.fromkeys([(), *(prefix[:-1] for prefix in prefixes)]))
    }
    edges = {
        prefix: i
        for i, prefix in enumerate(sorted(prefixes, key=lambda prefix: nodes[prefix[:-1]]))
    }
    continued = set(nodes)
    leaves = tuple(
        i for i, candidate in enumerate(distinct) if candidate and candidate not in continued
    )
    through = {
        distinct[leaf][:end]: i
        for i, leaf in enumerate(leaves)
        for end in range(1, len(distinct[leaf]) + 1)
    }
    longest = max(map(len, distinct), default=0)
    return CandidateTree(
        candidates=distinct,
        node_tokens=_int64([prefix[-1] if prefix else -1 for prefix in nodes]),
        node_depths=_int64([len(prefix) for prefix in nodes]),
        attends=_ancestors(nodes),
        edge_nodes=_int64([nodes[prefix[:-1]] for prefix in edges]),
        edge_tokens=_int64([prefix[-1] for prefix in edges]),
        paths=_int64(
            [
                [edges[c[: k + 1]] if k < len(c) else len(edges) for k in range(longest)]
                for c in distinct
            ]
        ).reshape(len(distinct), longest),
        leaves=leaves,
        edge_leaves=_int64([through[prefix] for prefix in edges]),
    )


def _ancestors(nodes: dict[Tokens, int]) -> np.ndarray:
    attends = np.eye(len(nodes), dtype=bool)
    for prefix, node in nodes.items():
        if prefix:
            attends[node] |= attends[nodes[prefix[:-1]]]
    return attends


def _int64(values: Sequence[object]) -> np.ndarray:
    return np.asarray(values, dtype=np.int64)


@dataclass(frozen=True)
class TreeBatch:
    """Several trees side by side, one per prompt, as index arrays on a device.

    Nodes and edges of all trees are numbered through, tree after tree.

    Attributes:
        counts: Nodes of each tree.
        node_tokens: ``(total_nodes,)``, -1 for every tree's node 0.
        attends: ``(b, n, n)`` bool, n the most nodes of a tree, b the trees, or 1 where all are the
            same. Rows of padding attend to column 0.
        depths: ``(b, n)``, 0 on padding.
        edge_nodes: ``(total_edges,)`` on the host, into the nodes of all trees, ascending.
        edge_tokens: ``(total_edges,)`` on the host.
    """

    counts: tuple[int, ...]
    node_tokens: Tensor
    attends: Tensor
    depths: Tensor
    edge_nodes: np.ndarray
    edge_tokens: np.ndarray

    @property
    def roots(self) -> Tensor:
        """``(num_trees,)``, where each tree's node 0 is among the nodes of all."""
        return put(np.cumsum([0, *self.counts[:-1]]), self.node_tokens.device)


def batch_trees(trees: Sequence[CandidateTree], device: torch.device) -> TreeBatch:
    """Lay at least one tree side by side."""
    counts = [tree.num_nodes for tree in trees]
    squares = list(trees[:1]) if _alike(trees) else list(trees)
    width = max(counts)
    attends = np.zeros((len(squares), width, width), dtype=bool)
    depths = np.zeros((len(squares), width), dtype=np.int64)
    attends[:, :, 0] = True
    for row, tree in enumerate(squares):
        attends[row, : tree.num_nodes, : tree.num_nodes] = tree.attends
        depths[row, : tree.num_nodes] = tree.node_depths
    return TreeBatch(
        counts=tuple(counts),
        node_tokens=put(_side_by_side([tree.node_tokens for tree in squares], len(trees)), device),
        attends=put(attends, device),
        depths=put(depths, device),
        edge_nodes=_side_by_side([tree.edge_nodes for tree in squares], len(trees), counts),
        edge_tokens=_side_by_side([tree.edge_tokens for tree in squares], len(trees)),
    )


def _alike(trees: Sequence[CandidateTree]) -> bool:
    return all(tree is trees[0] for tree in trees)


def _side_by_side(
    arrays: Sequence[np.ndarray], times: int, counts: Sequence[int] | None = None
) -> np.ndarray:
    """One array per tree, one after the other; a single one stands for all ``times`` of them. What
    each counts up is added to the next.
    """
    joined = np.concatenate(arrays) if len(arrays) == times else np.tile(arrays[0], times)
    if counts is None:
        return joined
    sizes = [len(array) for array in arrays] if len(arrays) == times else len(arrays[0])
    places: np.ndarray = joined + np.repeat(np.cumsum([0, *counts[:-1]]), sizes)
    return places


def gather_paths(edge_log_probs: Tensor, trees: Sequence[CandidateTree]) -> Tensor:
    """Token log-probabilities of every candidate.

    Args:
        edge_log_probs: ``(total_edges,)``, tree after tree.

    Returns:
        ``(total_candidates, longest)``, 0 after a candidate's end.
    """
    paths = _all_paths(trees, len(edge_log_probs))
    padded = torch.cat([edge_log_probs, edge_log_probs.new_zeros(1)])
    return padded[put(paths, edge_log_probs.device)]


def _all_paths(trees: Sequence[CandidateTree], end: int) -> np.ndarray:
    """``(total_candidates, longest)`` int64, edges numbered through; ``end`` after a candidate's
    end.
    """
    longest = max((tree.paths.shape[1] for tree in trees), default=0)
    if trees and _alike(trees):  # the common case, without a loop
        tree, first = trees[0], np.arange(len(trees))[:, None, None] * trees[0].num_edges
        return np.where(tree.paths < tree.num_edges, tree.paths + first, end).reshape(
            len(trees) * len(tree.candidates), longest
        )
    paths = np.full((sum(len(tree.candidates) for tree in trees), longest), end, dtype=np.int64)
    row = edge = 0
    for tree in trees:
        inside = tree.paths < tree.num_edges
        rows, depth = tree.paths.shape
        paths[row : row + rows, :depth][inside] = tree.paths[inside] + edge
        row, edge = row + rows, edge + tree.num_edges
    return paths
