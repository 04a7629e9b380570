"""Plain forward passes of transformers over padded pairs of prompt and candidate: the slow way that
suits every model.

``PlainEngine`` reads scores from them; module functions that want a whole forward pass, as
Lamorel's do, get it from ``PlainForward``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_outputs import BaseModelOutput

from lamorel_ext.errors import RequestError
from lamorel_ext.llm.devices import put
from lamorel_ext.llm.scoring.candidate_tree import CandidateTree, Tokens
from lamorel_ext.llm.scoring.scorer import Reading
from lamorel_ext.llm.scoring.t5_forward import decoder_start, is_t5

Pair = tuple[Tokens, Tokens]
"""A prompt and a candidate that follows it."""


@dataclass(frozen=True)
class PlainPass:
    """One forward pass.

    Attributes:
        places: Where its pairs are in the whole list.
        outputs: What the model returned: ``logits`` and, where asked for, hidden states.
        minibatch: What it was given, ``(pairs, ...)``.
        first: Position whose logits predict a candidate's first token.
        candidates: ``(pairs, longest)`` int64, 0 after a candidate's end.
        prompts: The prompts, padded to the same length, as ``{"input_ids", "attention_mask"}`` in
            lists.
    """

    places: list[int]
    outputs: Any
    minibatch: dict[str, Any]
    first: int
    candidates: Tensor
    prompts: list[dict[str, list[int]]]


class PlainForward:
    """Forward passes over pairs.

    A decoder-only model only ever gets prompts of one length together, so that nothing is padded
    before a candidate: right for models that cannot mask (recurrent ones) or that count positions
    by themselves. And none on both sides of its ``rope_limit``. Nothing is padded at all where
    ``padding_is_nan``.

    Args:
        model: Any model with an output head of transformers.
        seq2seq: Whether it is an encoder-decoder.
        minibatch_size: Pairs of one pass at most.
    """

    def __init__(self, model: PreTrainedModel, seq2seq: bool, minibatch_size: int) -> None:
        self.model: Any = model
        self.seq2seq, self.minibatch_size = seq2seq, minibatch_size

    def run(self, pairs: Sequence[Pair], hidden_states: bool) -> Iterator[PlainPass]:
        """Passes over all pairs, in an order of their own.

        Raises:
            RequestError: A prompt is empty, and the model has no answer to that.
        """
        for places in self._minibatches(pairs):
            chosen = [pairs[place] for place in places]
            minibatch, first, prompts = (
                self._encoder_decoder(chosen) if self.seq2seq else self._decoder(chosen)
            )
            outputs = self.model(**minibatch, output_hidden_states=hidden_states, use_cache=False)
            given = minibatch["decoder_input_ids" if self.seq2seq else "input_ids"]
            _drop_learnt_prompt(outputs, given.shape[1])
            yield PlainPass(
                places,
                outputs,
                minibatch,
                first,
                self._put(_pad([candidate for _, candidate in chosen])[0]),
                prompts,
            )

    def _minibatches(self, pairs: Sequence[Pair]) -> Iterator[list[int]]:
        """Places in order of the prompts' lengths."""
        limit = None if self.seq2seq else rope_limit(self.model.config)
        # Attention of somebody else's, without masks of its own, would heed the padding.
        attention = getattr(self.model.config, "_attn_implementation", None) or "eager"
        pads = self.seq2seq and attention in ALL_MASK_ATTENTION_FUNCTIONS

        alone = padding_is_nan(self.model)

        def kind(place: int) -> tuple[int, int]:
            prompt, candidate = pairs[place]
            if alone:
                return len(prompt), len(candidate)
            if pads:
                return int(bool(prompt)), False
            return len(prompt), limit is not None and len(prompt) + len(candidate) > limit

        order = sorted(range(len(pairs)), key=lambda place: (len(pairs[place][0]), kind(place)))
        for _, alike in groupby(order, kind):
            group = list(alike)
            for start in range(0, len(group), self.minibatch_size):
                yield group[start : start + self.minibatch_size]

    def _encoder_decoder(
        self, pairs: Sequence[Pair]
    ) -> tuple[dict[str, Any], int, list[dict[str, list[int]]]]:
        start = decoder_start(self.model)
        decoder_ids, decoder_mask = _pad([(start, *candidate) for _, candidate in pairs])
        minibatch: dict[str, Any] = {
            "decoder_input_ids": self._put(decoder_ids),
            "decoder_attention_mask": self._put(decoder_mask),
        }
        ids, mask = _pad([prompt for prompt, _ in pairs])
        if ids.shape[1]:
            minibatch |= {"input_ids": self._put(ids), "attention_mask": self._put(mask)}
        else:
            minibatch["encoder_outputs"] = nothing_read(self.model, len(pairs))
        return minibatch, 0, _as_lists(ids, mask)

    def _decoder(
        self, pairs: Sequence[Pair]
    ) -> tuple[dict[str, Any], int, list[dict[str, list[int]]]]:
        """Lamorel's layout: the prompt but for its last token, then that and the candidate."""
        ids, mask = _pad([prompt + candidate for prompt, candidate in pairs])
        first = len(pairs[0][0]) - 1
        return (
            {"input_ids": self._put(ids), "attention_mask": self._put(mask)},
            first,
            _as_lists(ids[:, :first], mask[:, :first]),
        )

    def _put(self, values: np.ndarray) -> Tensor:
        return put(values, self.model.device)


def padding_is_nan(model: Any) -> bool:
    """Whether a position that sees nothing but padding is NaN, and with it what comes behind.

    In transformers' eager attention, Gemma 2's own, a softmax is taken in float32, in which the
    least number of float64 is an infinite one.
    """
    attention = getattr(model.config, "_attn_implementation", None)
    return bool(model.dtype == torch.float64 and attention == "eager")


def rope_limit(config: Any) -> int | None:
    """Tokens up to which rotary positions have one set of frequencies; the longest row of a pass
    decides which set all its rows get (LongRoPE). None where there is one set.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    each = [rope, *(values for values in rope.values() if isinstance(values, dict))]
    limits = [
        values.get("original_max_position_embeddings")
        or getattr(config, "original_max_position_embeddings", None)
        for values in each
        if values.get("rope_type") == "longrope"
    ]
    return min((int(limit) for limit in limits if limit), default=None)


def _drop_learnt_prompt(outputs: Any, width: int) -> None:
    """Leave the decoder's last ``width`` positions: a learnt prompt (PEFT's) stands before them."""
    if outputs.logits.shape[1] == width:
        return
    outputs["logits"] = outputs.logits[:, -width:]
    for key in ("hidden_states", "decoder_hidden_states"):
        if (layers := outputs.get(key)) is not None:
            outputs[key] = tuple(layer[:, -width:] for layer in layers)


def nothing_read(model: Any, n: int) -> BaseModelOutput:
    """Encoder states of ``n`` empty prompts: one of zeros each. T5 has no biases, so that
    cross-attention adds nothing.

    Raises:
        RequestError: The model is not a T5.
    """
    if not is_t5(model):
        raise RequestError(f"an empty prompt has no answer from {type(model).__name__}")
    return BaseModelOutput(
        last_hidden_state=torch.zeros(
            n, 1, model.config.d_model, dtype=model.dtype, device=model.device
        )
    )


def _pad(sequences: Sequence[Tokens]) -> tuple[np.ndarray, np.ndarray]:
    """``(n, longest)`` int64 tokens, padded on the right with 0, as Lamorel's module functions
    expect, and 1 where they are real.
    """
    width = max(map(len, sequences))
    ids = np.asarray(
        [[*sequence, *[0] * (width - len(sequence))] for sequence in sequences], dtype=np.int64
    ).reshape(len(sequences), width)
    mask = (
        np.arange(width)[None, :] < np.asarray([len(sequence) for sequence in sequences])[:, None]
    )
    return ids, mask.astype(np.int64)


def _as_lists(ids: np.ndarray, mask: np.ndarray) -> list[dict[str, list[int]]]:
    return [
        {"input_ids": row, "attention_mask": seen}
        for row, seen in zip(ids.tolist(), mask.tolist(), strict=True)
    ]


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
