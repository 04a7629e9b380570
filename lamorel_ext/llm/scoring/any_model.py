"""Reading with any other model: one padded sequence per candidate, by plain forward passes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lamorel_ext.llm.devices import put
from lamorel_ext.llm.scoring.candidate_tree import CandidateTree, Tokens
from lamorel_ext.llm.scoring.plain import Pair, PlainForward, PlainPass
from lamorel_ext.llm.scoring.scorer import Reading


class PlainEngine:
    """See ``scoring.Engine``. Candidates that another one continues are read from its pass."""

    def __init__(self, model: PreTrainedModel, seq2seq: bool, minibatch_size: int) -> None:
        self._forward = PlainForward(model, seq2seq, minibatch_size)

    def read(
        self,
        prompts: Sequence[Tokens],
        rounds: Sequence[Sequence[CandidateTree]],
        with_states: bool,
    ) -> Reading:
        edges, states = [], None
        for trees in rounds:
            pairs, rows, depths = _pairs(prompts, trees)
            token_log_probs, firsts = self._read_pairs(pairs, with_states and states is None)
            edges.append(
                token_log_probs[
                    put(rows, token_log_probs.device), put(depths, token_log_probs.device)
                ]
            )
            if firsts is not None:
                starts = np.cumsum([0, *[max(1, len(tree.leaves)) for tree in trees[:-1]]])
                states = firsts[put(starts, firsts.device)]
        return Reading(edges, states, self.count(prompts, rounds))

    def count(self, prompts: Sequence[Tokens], rounds: Sequence[Sequence[CandidateTree]]) -> int:
        """See ``scoring.Engine``."""
        pairs = [pair for trees in rounds for pair in _pairs(prompts, trees)[0]]
        return sum(len(prompt) + len(candidate) for prompt, candidate in pairs)

    def _read_pairs(self, pairs: Sequence[Pair], with_states: bool) -> tuple[Tensor, Tensor | None]:
        """``(n, longest)`` token log-probabilities, and the hidden states that predicted the first
        tokens.
        """
        longest = max(len(candidate) for _, candidate in pairs)
        values, states, places = [], [], []
        for one in self._forward.run(pairs, hidden_states=with_states):
            values.append(
                torch.nn.functional.pad(
                    _token_log_probs(one), (0, longest - one.candidates.shape[1])
                )
            )
            if with_states:
                hidden = (
                    one.outputs.decoder_hidden_states
                    if self._forward.seq2seq
                    else one.outputs.hidden_states
                )
                states.append(hidden[-1][:, one.first])
            places += one.places
        order = put(np.argsort(places), values[0].device)
        return torch.cat(values)[order], torch.cat(states)[order] if with_states else None


def _pairs(
    prompts: Sequence[Tokens], trees: Sequence[CandidateTree]
) -> tuple[list[Pair], np.ndarray, np.ndarray]:
    """The pairs to run, and for every edge the pair and the token of its candidate that have its
    log-probability.
    """
    pairs: list[Pair] = []
    rows, depths = [], []
    for prompt, tree in zip(prompts, trees, strict=True):
        rows.append(tree.edge_leaves + len(pairs))
        depths.append(tree.node_depths[tree.edge_nodes])
        pairs += [(prompt, tree.candidates[leaf]) for leaf in tree.leaves] or [(prompt, ())]
    return pairs, np.concatenate(rows), np.concatenate(depths)


def _token_log_probs(one: PlainPass) -> Tensor:
    """``(pairs, longest)``, padding included."""
    logits: Tensor = one.outputs.logits[:, one.first : one.first + one.candidates.shape[1]]
    log_probs = torch.log_softmax(
        logits, dim=-1, dtype=torch.float64 if logits.dtype == torch.float64 else torch.float32
    )
    return log_probs.gather(2, one.candidates[:, :, None]).squeeze(2)
