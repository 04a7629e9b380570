"""Reading with decoder-only models: the prompt and, behind it, the candidate tree, in one forward
pass of transformers.

The tree's tokens lie behind the prompt in one sequence; a four-dimensional attention mask lets each
see the prompt and its own prefix alone, and position ids count its depth. What all prompts of a
minibatch begin with is computed once and kept as keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from lamorel_ext.llm.devices import put, put_integers
from lamorel_ext.llm.scoring.candidate_tree import CandidateTree, Tokens, TreeBatch, batch_trees
from lamorel_ext.llm.scoring.packing import cut_rows, make_packing
from lamorel_ext.llm.scoring.plain import rope_limit
from lamorel_ext.llm.scoring.products import fast_linears
from lamorel_ext.llm.scoring.scorer import Reading
from lamorel_ext.llm.scoring.vocabulary_head import compute_logits, edge_log_probs

TREE_MODELS = frozenset(
    {
        "llama",
        "gpt2",
        "gpt_neox",
        "mistral",
        "olmo2",
        "opt",
        "phi",
        "phi3",
        "qwen2",
        "qwen3",
        "smollm3",
    }
)
"""Architectures that take such a mask and such positions, and whose logits are nothing but the
output layer's; tests compare each with plain passes.
"""

MASKED = frozenset(
    {"model", "decoder", "transformer", "gpt_neox", "layers", "h", "self_attn", "attn", "attention"}
)
"""Names of the parts that such a mask goes through; each must heed it."""

MIN_SHARED = 8
"""A shared beginning shorter than this is not worth a pass of its own."""
GPU_SAVED = 16_384
"""Positions that such a pass must save on a GPU, which takes as long for hundreds as for one."""


def takes_trees(model: PreTrainedModel) -> bool:
    """Whether ``CausalEngine`` is right for the model."""
    config: Any = model.config
    window = (
        getattr(config, "sliding_window", None)
        if getattr(config, "use_sliding_window", True)
        else None
    )
    return (
        config.model_type in TREE_MODELS
        and window is None
        and rope_limit(config) is None
        and not getattr(config, "add_cross_attention", False)
    )


class CausalEngine:
    """See ``scoring.Engine``."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model: Any = model
        self._vocab_size: int = model.config.vocab_size

    @property
    def _device(self) -> torch.device:
        device: torch.device = next(self._model.parameters()).device
        return device

    def read(
        self,
        prompts: Sequence[Tokens],
        rounds: Sequence[Sequence[CandidateTree]],
        with_states: bool,
    ) -> Reading:
        with fast_linears(self._model):
            return self._read(prompts, rounds, with_states)

    def _read(
        self,
        prompts: Sequence[Tokens],
        rounds: Sequence[Sequence[CandidateTree]],
        with_states: bool,
    ) -> Reading:
        shared = self._shared(prompts, rounds)
        past = self._read_shared(prompts[0][:shared]) if shared else None
        head = partial(compute_logits, self._model.get_output_embeddings())
        lengths = [len(prompt) - shared for prompt in prompts]
        edges: list[Tensor] = []
        states: list[Tensor] = []
        for number, trees in enumerate(rounds):
            pieces = []
            widths = [tree.num_nodes for tree in trees]
            for chunk in cut_rows(lengths, widths, self._device):
                batch = batch_trees(trees[chunk], self._device)
                nodes = self._read_chunk(
                    [prompt[shared:] for prompt in prompts[chunk]], batch, past, shared
                )
                pieces.append(
                    edge_log_probs(
                        head, nodes, batch.edge_nodes, batch.edge_tokens, self._vocab_size
                    )
                )
                if with_states and number == 0:
                    states.append(nodes[batch.roots.to(nodes.device)])
            edges.append(torch.cat(pieces))
        return Reading(
            edges, torch.cat(states) if with_states else None, self.count(prompts, rounds)
        )

    def count(self, prompts: Sequence[Tokens], rounds: Sequence[Sequence[CandidateTree]]) -> int:
        """See ``scoring.Engine``."""
        shared = self._shared(prompts, rounds)
        reread = sum(len(prompt) - shared for prompt in prompts) * len(rounds)
        return shared + reread + sum(tree.num_nodes - 1 for trees in rounds for tree in trees)

    def _shared(self, prompts: Sequence[Tokens], rounds: Sequence[Sequence[CandidateTree]]) -> int:
        """Tokens that are read once for all prompts."""
        shared = _shared_length(prompts)
        saved = (len(prompts) * len(rounds) - 1) * shared
        least = GPU_SAVED if self._device.type == "cuda" else 1
        return shared if shared >= MIN_SHARED and saved >= least else 0

    def _read_shared(self, tokens: Tokens) -> Any:
        ids = put_integers(tokens, self._device)[None]
        return self._model.base_model(
            input_ids=ids, past_key_values=DynamicCache(), use_cache=True
        ).past_key_values

    def _read_chunk(
        self, prompts: Sequence[Tokens], trees: TreeBatch, past: Any, shared: int
    ) -> Tensor:
        """Hidden states of every tree's nodes, ``(total_nodes, d)``; node 0 is the last position of
        its prompt.
        """
        width, tokens, positions, visible = _lay_out(prompts, trees, shared, self._device)
        mask = torch.zeros(visible.shape, dtype=self._model.dtype, device=self._device)
        mask.masked_fill_(~visible, torch.finfo(mask.dtype).min)
        outputs = self._model.base_model(
            input_ids=tokens,
            attention_mask=mask[:, None],
            position_ids=positions,
            past_key_values=None if past is None else _repeat(past, len(prompts)),
            use_cache=past is not None,
        )
        hidden: Tensor = outputs.last_hidden_state
        return make_packing(trees.counts, hidden.device).unpad(hidden[:, width - 1 :])


def _lay_out(
    prompts: Sequence[Tokens], trees: TreeBatch, shared: int, device: torch.device
) -> tuple[int, Tensor, Tensor, Tensor]:
    """One padded batch: prompts padded on the left to one width, the trees' nodes but the first
    behind them.

    Returns:
        The width; tokens ``(n, length)``; positions ``(n, length)``, counted from the start of the
        whole prompt; ``(n, length, shared + length)`` bool, True where a position (row) attends.
    """
    n, lengths = len(prompts), np.asarray([len(prompt) for prompt in prompts])
    width, behind = int(lengths.max()), max(trees.counts) - 1
    column = np.arange(width)
    real = column[None, :] >= width - lengths[:, None]
    ids = np.zeros((n, width), dtype=np.int64)
    ids[real] = [token for prompt in prompts for token in prompt]
    before = np.maximum(column[None, :] - (width - lengths[:, None]), 0)

    prompt_ids, prompt_real, prompt_positions, sizes = (
        put(array, device) for array in (ids, real, before, lengths)
    )
    packing = make_packing(trees.counts, device)
    tokens = torch.cat([prompt_ids, packing.pad(trees.node_tokens.clamp(min=0))[:, 1:]], dim=1)
    positions = (
        torch.cat([prompt_positions, sizes[:, None] - 1 + trees.depths.expand(n, -1)[:, 1:]], dim=1)
        + shared
    )

    visible = torch.zeros(
        n, width + behind, shared + width + behind, dtype=torch.bool, device=device
    )
    visible[:, :, :shared] = True
    own = visible[:, :, shared:]
    causal = torch.ones(width, width, dtype=torch.bool, device=device).tril()
    # A padding position attends to itself: a row without any key would be a division by zero.
    own[:, :width, :width] = (causal & prompt_real[:, None, :]) | torch.eye(
        width, dtype=torch.bool, device=device
    )
    own[:, width:, :width] = prompt_real[:, None, :]
    own[:, width:, width:] = trees.attends.expand(n, -1, -1)[:, 1:, 1:]
    return width, tokens, positions, visible


def _repeat(past: Any, times: int) -> Any:
    repeated = DynamicCache()
    for index, layer in enumerate(past.layers):
        repeated.update(
            layer.keys.expand(times, -1, -1, -1), layer.values.expand(times, -1, -1, -1), index
        )
    return repeated


def _shared_length(prompts: Sequence[Tokens]) -> int:
    """Tokens that all prompts begin with, short of the last one of the shortest."""
    first, last = min(prompts), max(prompts)
    most = min(len(prompt) for prompt in prompts) - 1
    return next((i for i in range(most) if first[i] != last[i]), most)
