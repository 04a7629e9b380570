"""Small calls of a T5 on a GPU as CUDA graphs.

A call of a rollout has a few dozen prompts: a GPU has done that before the host has started the
some 500 kernels it takes. A graph of them is started at once. It holds for one shape, so prompts
are padded to a few sizes; and for tensors at the places in memory where they were, so that weights
that change in place are seen, and all graphs are dropped where a weight has moved.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lamorel_ext.llm.devices import put
from lamorel_ext.llm.scoring.candidate_tree import CandidateTree, Tokens, batch_trees
from lamorel_ext.llm.scoring.packing import Packing
from lamorel_ext.llm.scoring.scorer import Reading
from lamorel_ext.llm.scoring.t5_forward import T5Engine, T5Forward
from lamorel_ext.llm.scoring.vocabulary_head import token_log_probs
from lamorel_ext.llm.state import Memory

SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
"""Prompts of a graph; a call with more keeps a GPU busy by itself."""
WIDTHS = range(16, 257, 16)
"""Positions that prompts are padded to."""
MAX_POSITIONS = 8192
"""Of all prompts together: beyond, padding costs more than starting kernels."""
MAX_NODES = 1024
"""Of the decoder in one graph, whose logits lie in its memory."""
MAX_GRAPHS = 64


class GraphEngine(T5Engine):
    """See ``scorer.Engine``. Small calls without gradients go through a graph.

    A shape's first call runs the same kernels without a graph: many shapes come only once. So the
    numbers do not depend on which calls were made before.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self._modules = list(model.modules())
        self._calls: Memory[tuple[int, int, CandidateTree], _Call] = Memory(MAX_GRAPHS)
        self._places: tuple[int, ...] = ()
        self._pool: Any = None

    def read(
        self,
        prompts: Sequence[Tokens],
        rounds: Sequence[Sequence[CandidateTree]],
        with_states: bool,
    ) -> Reading:
        """See ``scorer.Engine``."""
        shape = None if torch.is_grad_enabled() else shape_of(prompts, rounds)
        if shape is None:
            return super().read(prompts, rounds, with_states)
        if (places := self._present_places()) != self._places:
            self._calls.clear()
            self._places = places
        size, width = shape
        key = size, width, rounds[0][0]
        call = self._calls.get(key)
        if call is None:
            call = _Call(self._forward, *key)
            self._calls.put(key, call)
            edges, states = call.run(prompts)
        else:
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            edges, states = call.replay(prompts, self._pool)
        return Reading([edges], states if with_states else None, self.count(prompts, rounds))

    def _present_places(self) -> tuple[int, ...]:
        """Where in memory the weights are."""
        tensors = (
            tensor
            for module in self._modules
            for tensor in (*module._parameters.values(), *module._buffers.values())
        )
        return tuple([0 if tensor is None else tensor.data_ptr() for tensor in tensors])


def shape_of(
    prompts: Sequence[Tokens], rounds: Sequence[Sequence[CandidateTree]]
) -> tuple[int, int] | None:
    """Prompts and positions of the graph for a call, or None where none suits it: it is large, or
    its prompts have no, different or many candidates, or one is empty.
    """
    trees = rounds[0]
    tree = trees[0]
    if len(rounds) > 1 or not tree.num_edges or any(other is not tree for other in trees):
        return None
    size = next((size for size in SIZES if size >= len(prompts)), None)
    width = next((width for width in WIDTHS if width >= len(prompts[-1])), None)
    if size is None or width is None or not prompts[0]:
        return None
    if size * width > MAX_POSITIONS or size * tree.num_nodes > MAX_NODES:
        return None
    return size, width


class _Call:
    """Calls of one shape with one tree of candidates.

    Args:
        forward: Of the model.
        size: Prompts, those that fill up included.
        width: Positions of each.
        tree: Behind each prompt.
    """

    def __init__(self, forward: T5Forward, size: int, width: int, tree: CandidateTree) -> None:
        device = forward.device
        self._forward, self._size, self._width, self._tree = forward, size, width, tree
        self._tokens = torch.zeros(size, width, dtype=torch.int64, device=device)
        self._mask = torch.ones(size, width, dtype=torch.bool, device=device)
        self._trees = batch_trees([tree] * size, device)
        self._roots = self._trees.roots
        self._edge_nodes, self._edge_tokens = (
            put(array, device) for array in (self._trees.edge_nodes, self._trees.edge_tokens)
        )
        self._graph: torch.cuda.CUDAGraph | None = None
        self._answer: tuple[Tensor, Tensor] | None = None

    def run(self, prompts: Sequence[Tokens]) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the edges, ``(num_prompts * num_edges,)``, and states at the roots,
        ``(num_prompts, d)``.
        """
        self._fill(prompts)
        return self._cut(self._compute(), len(prompts))

    def replay(self, prompts: Sequence[Tokens], pool: Any) -> tuple[Tensor, Tensor]:
        """The same by the graph, which is made in this memory the first time."""
        self._fill(prompts)
        if self._graph is None:
            self._graph = self._capture(pool)
        self._graph.replay()
        assert self._answer is not None
        # The next replay writes over them.
        return self._cut(tuple(part.clone() for part in self._answer), len(prompts))

    def _fill(self, prompts: Sequence[Tokens]) -> None:
        lengths = np.ones(self._size, dtype=np.int64)  # of those that fill up, too
        lengths[: len(prompts)] = [len(prompt) for prompt in prompts]
        mask = np.arange(self._width) < lengths[:, None]
        tokens = np.zeros(mask.shape, dtype=np.int64)
        tokens[: len(prompts)][mask[: len(prompts)]] = [*itertools.chain(*prompts)]
        self._tokens.copy_(put(tokens, self._tokens.device))
        self._mask.copy_(put(mask, self._mask.device))

    def _compute(self) -> tuple[Tensor, Tensor]:
        """Of all prompts; what it needs of the host is there already."""
        forward = self._forward
        packing = Packing((self._width,) * self._size, self._width, None, None, self._mask)
        words = forward.words((), ())
        states = forward.encode_rows(
            self._tokens.flatten(), packing, forward.encoder_bias(self._width), words
        )
        nodes = forward.decode(states, packing, self._trees, words)
        # Every node has an edge, so that all of them are wanted.
        edges = token_log_probs(forward.head, nodes, self._edge_nodes, self._edge_tokens)
        return edges, nodes[self._roots]

    def _capture(self, pool: Any) -> torch.cuda.CUDAGraph:
        device = self._tokens.device
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(device):
            # Libraries take what memory they need for a stream at their first call there.
            side = torch.cuda.Stream(device)
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):
                self._compute()
            torch.cuda.current_stream(device).wait_stream(side)
            # Other threads of a server may work on the GPU meanwhile.
            with torch.cuda.graph(graph, pool, side, capture_error_mode="thread_local"):
                self._answer = self._compute()
        return graph

    def _cut(self, answer: tuple[Tensor, ...], prompts: int) -> tuple[Tensor, Tensor]:
        edges, states = answer
        return edges[: prompts * self._tree.num_edges], states[:prompts]
