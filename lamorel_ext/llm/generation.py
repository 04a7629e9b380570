"""Continuing prompts with transformers' ``generate``, and the exact log-probabilities of what came
out.
"""

from __future__ import annotations

import inspect
import itertools
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from lamorel_ext.errors import RequestError
from lamorel_ext.llm.answers import TextEncoder, merge
from lamorel_ext.llm.devices import seeded
from lamorel_ext.llm.fsdp import model_is_divided
from lamorel_ext.llm.scoring.candidate_tree import Tokens
from lamorel_ext.llm.scoring.engines import callable_of, unwrap
from lamorel_ext.llm.scoring.plain import nothing_read, padding_is_nan, rope_limit
from lamorel_ext.llm.scoring.scorer import Scorer
from lamorel_ext.llm.scoring.t5_forward import decoder_start
from lamorel_ext.types import GenerateRequest, GenerateResult, Scalar

MAX_SEED = 2**63 - 1
"""What PyTorch's generators take, to either side of 0."""
DEFAULT_NEW_TOKENS = 20
OPTIONS = frozenset(
    {
        "max_new_tokens",
        "min_new_tokens",
        "do_sample",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "typical_p",
        "num_beams",
        "num_return_sequences",
        "repetition_penalty",
        "length_penalty",
        "no_repeat_ngram_size",
        "early_stopping",
        "seed",
    }
)
"""Options of a request: transformers' own, and ``seed``, which fixes the sampling."""

_COUNTS = "create_position_ids_from_input_ids"
"""Of RoBERTa's kin, whose positions begin behind the number of their padding token, not at 0."""


class Generator:
    """Generates with one model.

    Args:
        model: Any generating model of transformers.
        tokenizer: Its tokenizer.
        encoder: Tokenises prompts.
        scorer: Scores what was generated, with the same model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        encoder: TextEncoder,
        scorer: Scorer,
    ) -> None:
        self._model: Any = model
        self._tokenizer: Any = tokenizer
        self._encoder, self._scorer = encoder, scorer

    @torch.no_grad()
    def generate(self, request: GenerateRequest, minibatch_size: int) -> GenerateResult:
        """Continue each prompt, greedily unless ``do_sample`` or ``num_beams`` say otherwise.

        Args:
            request: Prompts and options.
            minibatch_size: Sequences generated at a time at most.

        Returns:
            The sequences of each prompt. Their log-probabilities are those of the model itself,
            whatever temperature, ``top_k`` and the like made of it while sampling; an
            end-of-sequence token counts as a token.

        Raises:
            RequestError: An option is unknown or impossible, or a prompt is too long.
        """
        started = time.perf_counter()
        options, seed = _checked(request.options)
        prompts = self._encoder.encode_prompts(
            request.prompts, behind=[int(options["max_new_tokens"])] * len(request.prompts)
        )
        # Greedy and beam search give equal prompts equal sequences.
        asked = list(prompts) if options["do_sample"] else list(dict.fromkeys(prompts))
        with nullcontext() if seed is None else seeded(seed, self._model.device):
            generated = self._run(asked, options, minibatch_size)
        if not options["do_sample"]:
            of = dict(zip(asked, generated, strict=True))
            generated = [of[prompt] for prompt in prompts]
        log_probs, scored = self._score(prompts, generated)
        sequences = [sequence for own in generated for sequence in own]
        stats = {
            "prompts": float(len(prompts)),
            "distinct_prompts": float(len(set(prompts))),
            "cached_prompts": 0.0,
            "tokens": float(sum(map(len, sequences)) + sum(map(len, asked)) + scored),
            "seconds": time.perf_counter() - started,
        }
        return GenerateResult(
            texts=tuple(
                tuple(
                    self._tokenizer.decode(list(sequence), skip_special_tokens=True)
                    for sequence in own
                )
                for own in generated
            ),
            tokens=torch.tensor(
                [token for sequence in sequences for token in sequence], dtype=torch.int64
            ),
            token_log_probs=log_probs,
            lengths=tuple(map(len, sequences)),
            stats=stats,
        )

    def _run(
        self, prompts: Sequence[Tokens], options: Mapping[str, Any], minibatch_size: int
    ) -> list[list[Tokens]]:
        """Sequences of each prompt.

        Prompts of similar length run together, an empty one only with empty ones; of one length
        where the model would read the padding before the shorter one.
        """
        each = max(int(options["num_return_sequences"]), int(options["num_beams"]))
        at_once = max(1, minibatch_size // each)
        places = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
        padded = self._model.config.is_encoder_decoder or takes_left_padding(self._model)
        found: dict[int, list[Tokens]] = {}
        for _, same in itertools.groupby(
            places, lambda at: bool(prompts[at]) if padded else len(prompts[at])
        ):
            group = list(same)
            for start in range(0, len(group), at_once):
                batch = group[start : start + at_once]
                found |= dict(
                    zip(
                        batch,
                        self._run_batch([prompts[place] for place in batch], options),
                        strict=True,
                    )
                )
        return [found[place] for place in range(len(prompts))]

    def _run_batch(
        self, prompts: Sequence[Tokens], options: Mapping[str, Any]
    ) -> list[list[Tokens]]:
        inputs, behind = self._inputs(prompts)
        if self._model.config.is_encoder_decoder:  # as its scores begin
            inputs["decoder_start_token_id"] = decoder_start(self._model)
        try:
            # Never "synced": that would sum over all ranks of the launch, the clients too.
            sequences = self._model.generate(
                **inputs,
                **options,
                pad_token_id=pad_token(self._model, self._tokenizer),
                synced_gpus=False,
            )
        except (ValueError, TypeError) as error:
            raise RequestError(f"generate cannot be run with {dict(options)}: {error}") from error
        ends = end_tokens(self._model)
        rows = [tuple(row[: length_to_end(row, ends)]) for row in sequences[:, behind:].tolist()]
        each = int(options["num_return_sequences"])
        return [rows[start : start + each] for start in range(0, len(rows), each)]

    def _inputs(self, prompts: Sequence[Tokens]) -> tuple[dict[str, Any], int]:
        """Arguments of ``generate``, and the length that its output has before the first generated
        token.
        """
        device = self._model.device
        if not any(prompts):
            return {
                "encoder_outputs": nothing_read(self._model, len(prompts)),
                "attention_mask": torch.ones(len(prompts), 1, device=device),
            }, 1
        inputs, behind = padded(self._model, prompts, pad_token(self._model, self._tokenizer))
        if self._model.config.is_encoder_decoder and model_is_divided(self._model):
            # ``generate`` would call the encoder alone, whose weights are whole in a pass of the
            # whole model only.
            first = torch.zeros(len(prompts), 1, dtype=torch.int64, device=device)
            read = self._model(**inputs, decoder_input_ids=first, use_cache=False)
            del inputs["input_ids"]
            inputs["encoder_outputs"] = BaseModelOutput(read.encoder_last_hidden_state)
        return inputs, behind

    def _score(
        self, prompts: Sequence[Tokens], generated: Sequence[Sequence[Tokens]]
    ) -> tuple[Tensor, int]:
        """``(total_tokens,)`` log-probabilities, sequence after sequence, and the positions
        computed.
        """
        asked = merge(list(prompts), [tuple(own) for own in generated])
        scores = self._scorer.score(*asked.distinct, per_token=True)
        rows = scores.log_probs.cpu()[asked.score_rows]
        sequences = itertools.chain(*generated)
        parts = [row[: len(one)] for row, one in zip(rows, sequences, strict=True)]
        return torch.cat([torch.zeros(0, dtype=self._scorer.dtype), *parts]), scores.num_tokens


def pad_token(model: Any, tokenizer: Any) -> int:
    """What fills a row of tokens up."""
    # Not every model's configuration knows of padding (CodeGen's, RWKV's).
    own = getattr(model.config, "pad_token_id", None)
    known = (tokenizer.pad_token_id, own, *end_tokens(model), 0)
    return next(int(token) for token in known if token is not None)


def end_tokens(model: Any) -> tuple[int, ...]:
    """The tokens with which a sequence ends, unless a call has its own."""
    return as_tokens(unwrap(model).generation_config.eos_token_id)


def as_tokens(end: Any) -> tuple[int, ...]:
    """``eos_token_id`` as transformers takes it: none, one, or several."""
    return () if end is None else tuple(end) if isinstance(end, (list, tuple)) else (int(end),)


def length_to_end(tokens: Sequence[int], ends: Sequence[int]) -> int:
    """Number of tokens up to the first end token, that one included; behind it there is only
    padding.
    """
    return next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))


def padded(model: Any, rows: Sequence[Sequence[int]], filler: int) -> tuple[dict[str, Any], int]:
    """Arguments of ``generate``, and the length that its output has before the first generated
    token.

    An encoder is padded on the right; what a decoder continues must end where its batch ends.

    Args:
        model: Of transformers.
        rows: Tokens of each prompt, at least one of them not empty.
        filler: ``pad_token``.
    """
    causal, width = not model.config.is_encoder_decoder, max(map(len, rows))
    tokens, masks = [], []
    for row in rows:
        padding, gap = [filler] * (width - len(row)), [0] * (width - len(row))
        tokens.append([*padding, *row] if causal else [*row, *padding])
        masks.append(gap + [1] * len(row) if causal else [1] * len(row) + gap)
    inputs: dict[str, Any] = {
        "input_ids": torch.tensor(tokens, device=model.device),
        "attention_mask": torch.tensor(masks, device=model.device),
    }
    return inputs | (needs_of(model, inputs["input_ids"]) if causal else {}), width if causal else 1


def takes_left_padding(model: Any) -> bool:
    """Whether a decoder-only model answers behind padding what it answers without.

    It does where it attends by a mask alone and can be told positions that count from 0. Not a
    recurrent model, nor one that counts positions by itself, nor one whose positions change with
    the longest row (LongRoPE); and a learnt prompt (PEFT's) stands before the padding.
    """
    inner = unwrap(model)
    arguments = inspect.signature(inner.forward).parameters
    return (
        callable_of(model) is inner
        and "position_ids" in arguments
        and "past_key_values" in arguments
        and not getattr(inner, "_is_stateful", False)
        and rope_limit(inner.config) is None
        and not padding_is_nan(inner)
        and not any(hasattr(part, _COUNTS) for part in inner.modules())
    )


def needs_of(model: Any, tokens: Tensor) -> dict[str, Any]:
    """What transformers' ``generate`` must be told of some models to continue as they are.

    Args:
        model: Decoder-only.
        tokens: ``(n, length)``, without padding unless ``takes_left_padding``.
    """
    inner = unwrap(model)
    if inner.config.model_type == "rwkv":
        return {"use_cache": False}  # its state is right for a single sequence only
    if "position_ids" in inspect.signature(inner.forward).parameters:
        for part in inner.modules():
            if (positions := getattr(part, _COUNTS, None)) is not None:
                return {"position_ids": positions(tokens, part.padding_idx)}
    return {}


def _checked(options: Mapping[str, Scalar]) -> tuple[dict[str, Any], int | None]:
    if unknown := sorted(options.keys() - OPTIONS):
        raise RequestError(
            f"unknown options of generate: {', '.join(unknown)}; there are:"
            f" {', '.join(sorted(OPTIONS))}"
        )
    chosen: dict[str, Any] = {
        "max_new_tokens": DEFAULT_NEW_TOKENS,
        "do_sample": False,
        "num_beams": 1,
        "num_return_sequences": 1,
        **options,
    }
    seed = chosen.pop("seed", None)
    for name in ("max_new_tokens", "num_beams", "num_return_sequences"):
        if isinstance(chosen[name], bool) or not isinstance(chosen[name], int) or chosen[name] < 1:
            raise RequestError(
                f"{name} of generate must be an integer of at least 1, got {chosen[name]!r}"
            )
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise RequestError(f"seed of generate must be an integer, got {seed!r}")
    if seed is not None and not -MAX_SEED <= seed <= MAX_SEED:
        raise RequestError(f"seed of generate must be within ±{MAX_SEED}, got {seed}")
    return chosen, seed
