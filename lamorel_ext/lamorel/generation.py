"""Continuing contexts with every argument of transformers' ``generate``, and Lamorel's names for
what comes out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from lamorel_ext.errors import RequestError
from lamorel_ext.llm.answers import beginning
from lamorel_ext.llm.devices import seeded
from lamorel_ext.llm.generation import (
    as_tokens,
    end_tokens,
    length_to_end,
    pad_token,
    padded,
    takes_left_padding,
)


@torch.no_grad()
def generate(
    model: Any,
    tokenizer: Any,
    contexts: Sequence[str],
    return_logprobs: bool,
    arguments: Mapping[str, Any],
) -> list[list[dict[str, Any]]]:
    """Continue each context.

    Args:
        model: Any generating model of transformers, with adapters or without.
        tokenizer: Its tokenizer.
        contexts: ``n`` texts.
        return_logprobs: Logarithms (nats) in place of probabilities.
        arguments: Of transformers' ``generate``; ``seed`` fixes the sampling.

    Returns:
        For each context a list with a dictionary per sequence: ``text``, ``tokens`` (up to the end
        token), ``text_logprob`` and ``tokens_logprob`` (or ``..._probability``), which are those
        of the distribution that was sampled from, after temperature, top-k and the like;
        ``model_text_logprob`` and ``model_tokens_logprob``, those of the model itself; and
        ``beam_score`` where beams were searched.

    Raises:
        RequestError: transformers refuses an argument, and the message has its reason; or one
            stands for the contexts.
    """
    if not contexts:
        return []
    options = {**arguments}
    seed = options.pop("seed", None)
    for name, value in _FORCED.items():
        if options.setdefault(name, value) != value:
            raise RequestError(
                f"{name}={options[name]!r} of generate cannot be had: the answer is built from its"
                " outputs"
            )
    for name in _OF_CONTEXTS:
        if options.get(name) is not None:
            raise RequestError(
                f"{name} of generate cannot be had: it has a row for each context, and is made of"
                " the contexts"
            )
    if options.get("stop_strings") is not None:
        options["tokenizer"] = tokenizer
    filler = pad_token(model, tokenizer)
    options.setdefault("pad_token_id", filler)
    tokens = _tokens(model, tokenizer, contexts, filler)
    answers: dict[int, list[dict[str, Any]]] = {}
    try:
        with nullcontext() if seed is None else seeded(int(seed), model.device):
            for places in _together(model, tokens):
                inputs, behind = padded(model, [tokens[place] for place in places], filler)
                found = model.generate(**{**inputs, **options})
                rows = _rows(model, tokenizer, found, behind, len(places), options, return_logprobs)
                answers |= zip(places, rows, strict=True)
    except _REFUSALS as error:
        shown = ", ".join(f"{name}={value!r:.40}" for name, value in arguments.items())
        raise RequestError(
            f"generate cannot be run with {shown}: {' '.join(str(error).split())}"
        ) from error
    return [answers[place] for place in range(len(contexts))]


_REFUSALS = (ValueError, TypeError, AttributeError, NotImplementedError, ImportError, OSError)
_FORCED = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
_OF_CONTEXTS = (
    "inputs",
    "input_ids",
    "inputs_embeds",
    "attention_mask",
    "position_ids",
    "decoder_input_ids",
    "decoder_inputs_embeds",
    "decoder_attention_mask",
    "encoder_outputs",
    "past_key_values",
)
"""Arguments that have a row for each context; contexts are cut among servers and padded here."""


def _together(model: Any, rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Places of the contexts that are continued together: all, or those of one length where the
    model would read the padding before a shorter one.
    """
    if model.config.is_encoder_decoder or takes_left_padding(model):
        return [list(range(len(rows)))]
    places: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(len(row), []).append(place)
    return list(places.values())


def _tokens(model: Any, tokenizer: Any, contexts: Sequence[str], filler: int) -> list[list[int]]:
    """Of each context; what stands for an empty one in its place."""
    seq2seq = model.config.is_encoder_decoder
    rows = []
    for place, context in enumerate(contexts):
        if not isinstance(context, str):
            raise RequestError(f"contexts[{place}] is {context!r:.80}, expected a text")
        row = list(tokenizer(context, add_special_tokens=False)["input_ids"])
        rows.append(row or [filler if seq2seq else beginning(tokenizer, f"contexts[{place}]")])
    return rows


def _rows(
    model: Any,
    tokenizer: Any,
    found: Any,
    behind: int,
    num_contexts: int,
    options: Mapping[str, Any],
    logarithms: bool,
) -> list[list[dict[str, Any]]]:
    sequences = found.sequences[:, behind:]
    beams = getattr(found, "beam_indices", None)
    sampled = _chosen(torch.stack(found.scores, 1), sequences, beams)
    own = _chosen(torch.stack(found.logits, 1), sequences, beams)
    ends = as_tokens(options["eos_token_id"]) if "eos_token_id" in options else end_tokens(model)
    each = len(sequences) // num_contexts
    answers: list[list[dict[str, Any]]] = []
    for place in range(num_contexts):
        rows = []
        for number in range(place * each, (place + 1) * each):
            new = sequences[number].tolist()
            if beams is not None:
                new = new[: int((beams[number] >= 0).sum()) or len(new)]
            length = length_to_end(new, ends)
            tokens = sequences[number, :length].cpu()
            kept, plain = sampled[number, :length].float().cpu(), own[number, :length].float().cpu()
            row: dict[str, Any] = {
                "text": tokenizer.decode(sequences[number], skip_special_tokens=True),
                "tokens": tokens,
            }
            if logarithms:
                row |= {"text_logprob": kept.sum().numpy()[()], "tokens_logprob": kept.numpy()}
            else:
                row |= {
                    "text_probability": kept.sum().exp().numpy()[()],
                    "tokens_probability": kept.exp().numpy(),
                }
            row |= {
                "model_text_logprob": plain.sum().numpy()[()],
                "model_tokens_logprob": plain.numpy(),
            }
            if getattr(found, "sequences_scores", None) is not None:
                row["beam_score"] = float(found.sequences_scores[number])
            rows.append(row)
        answers.append(rows)
    return answers


def _chosen(scores: Tensor, sequences: Tensor, beams: Tensor | None) -> Tensor:
    """``(n, length)`` log-probabilities of the chosen tokens; ``scores`` ``(rows, steps, v)``."""
    steps = min(scores.shape[1], sequences.shape[1])
    if beams is None:
        picked = scores[:, :steps]
    else:
        rows = beams[:, :steps].clamp(min=0)
        picked = scores[rows, torch.arange(steps, device=scores.device)[None, :]]
    # Where nothing was allowed but one token, the others are minus infinity: its logarithm is 0.
    logs = picked.float().log_softmax(-1)
    return torch.gather(logs, 2, sequences[:, :steps, None]).squeeze(-1)
