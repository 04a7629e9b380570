"""Answers to score requests: texts to tokens, each distinct prompt read once, module functions
evaluated, results per prompt again.

Tokens are as Lamorel has them: prompts and candidates alike without special tokens, so no
end-of-sequence token is appended.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from lamorel_ext.errors import RequestError
from lamorel_ext.llm.devices import put_integers
from lamorel_ext.llm.module_functions import BaseModuleFunction
from lamorel_ext.llm.scoring.candidate_tree import Tokens
from lamorel_ext.llm.scoring.plain import PlainForward
from lamorel_ext.llm.scoring.scorer import Scorer
from lamorel_ext.llm.state import Memory

REMEMBERED_TEXTS_BYTES = 2**23
"""Full within minutes, and enough for those of a few thousand samples, which an update asks for
again: to tokenise a text takes 3 % of a small model's update with it, of a large one's nothing.
"""
_TEXT_BYTES = 250
"""What a remembered text takes besides its characters and tokens, about."""

RELATIVE_POSITIONS = frozenset({"t5", "mt5", "umt5", "longt5", "switch_transformers"})
"""Architectures that take any length, whatever their configuration says about positions."""

Question = tuple[str, tuple[str, ...]]
"""A prompt and its candidates."""


@dataclass(frozen=True)
class Answer:
    """What one question got.

    Attributes:
        log_probs: ``(num_candidates,)``, on the CPU.
        modules: For each module function its rows for this question, on the CPU.
    """

    log_probs: Tensor
    modules: dict[str, Tensor] = field(default_factory=dict)


ELSEWHERE = Answer(torch.zeros(0))
"""Remembered in place of an answer that the client has."""


class TextEncoder:
    """Tokenises prompts and candidates, and remembers what it tokenised.

    Args:
        tokenizer: The model's tokenizer.
        config: The model's configuration.
        max_prompt_tokens: Longest prompt allowed; None leaves the model's own limit, where it has
            one.
        as_trained: Whether rotary positions end where training ended; else they go on, and learnt
            ones alone are a limit.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        config: PretrainedConfig,
        max_prompt_tokens: int | None = None,
        as_trained: bool = True,
    ) -> None:
        self._tokenizer: Any = tokenizer
        self._config: Any = config
        self._seq2seq = bool(config.is_encoder_decoder)
        rotary = bool(getattr(config, "rope_parameters", None))
        self._positions = None if rotary and not as_trained else _position_limit(config)
        self._decoded = _position_limit(config, "decoder") if self._seq2seq else None
        self._max_prompt_tokens = max_prompt_tokens
        self._known: Memory[str, Tokens] = Memory(REMEMBERED_TEXTS_BYTES, _bytes_of)
        self._numbers: dict[int, int] = {}

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """Tokens of each text, without special tokens.

        Raises:
            RequestError: The tokenizer knows nothing of a text, or a token that the model does not.
        """
        known = {
            text: tokens for text in set(texts) if (tokens := self._known.get(text)) is not None
        }
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            encoded = self._tokenizer(
                new, add_special_tokens=False, return_attention_mask=False, verbose=False
            )["input_ids"]
            for text, ids in zip(new, encoded, strict=True):
                self._check_tokens(text, ids)
                # One object for each number: a tokenizer's own take four fifths of the memory.
                known[text] = tuple(map(self._numbers.setdefault, ids, ids))
                self._known.put(text, known[text])
        return [known[text] for text in texts]

    def encode_prompts(
        self,
        prompts: Sequence[str],
        behind: Sequence[int] | None = None,
    ) -> list[Tokens]:
        """Tokens of each prompt. An empty prompt of a decoder-only model is its beginning-of-text
        token: something must come before a candidate.

        Args:
            prompts: The prompts.
            behind: Tokens that will follow each prompt at most; None means none.

        Raises:
            RequestError: A prompt, or what follows it, is longer than allowed, or a prompt is empty
                where the tokenizer has no beginning-of-text token.
        """
        encoded = self.encode(prompts)
        for i, tokens in enumerate(encoded):
            if not tokens and not self._seq2seq:
                encoded[i] = (beginning(self._tokenizer, "a prompt"),)
            self._check_length(prompts[i], len(tokens), 0 if behind is None else behind[i])
        return encoded

    def _check_tokens(self, text: str, tokens: Sequence[int]) -> None:
        if text.strip() and not tokens:  # it would score as nothing does: 0, for certain
            raise RequestError(f"{text!r:.80} has no tokens: the tokenizer knows nothing of it")
        known, last = getattr(self._config, "vocab_size", None), max(tokens, default=0)
        if known is not None and last >= known:  # on a GPU an assertion, behind which nothing works
            name = self._tokenizer.convert_ids_to_tokens(last)
            raise RequestError(
                f"{text!r:.80} has the token {name!r} with number {last}; the model has"
                f" {known} tokens: its tokenizer is another one's, or had tokens added"
            )

    def _check_length(self, prompt: str, length: int, behind: int) -> None:
        # By its text: its place here is not that in the request of a client, which several servers
        # share and an update sorts.
        which = f"the prompt {prompt!r:.80}"
        if self._max_prompt_tokens is not None and length > self._max_prompt_tokens:
            raise RequestError(
                f"{which} has {length} tokens; max_prompt_tokens allows {self._max_prompt_tokens}"
            )
        needed = length if self._seq2seq else length + behind
        if self._positions is not None and needed > self._positions:
            more = f" and up to {behind} behind it" if needed > length else ""
            raise RequestError(
                f"{which} has {length} tokens{more}; the model has {self._positions} positions"
            )
        if self._decoded is not None and behind >= self._decoded:
            raise RequestError(
                f"{which} has up to {behind} tokens behind it; the model's decoder has"
                f" {self._decoded} positions, the first for its start token"
            )


def _bytes_of(text: str, tokens: Tokens) -> int:
    return _TEXT_BYTES + len(text) + 8 * len(tokens)


def beginning(tokenizer: Any, which: str) -> int:
    """The token that stands for an empty text, which a decoder-only model cannot read.

    Raises:
        RequestError: There is none; the message names ``which`` text.
    """
    for name in ("bos_token_id", "eos_token_id"):
        token = getattr(tokenizer, name, None)
        if token is not None:
            return int(token)
    raise RequestError(
        f"{which} is empty, and the tokenizer has no beginning-of-text token to stand for it"
    )


def _position_limit(config: PretrainedConfig, part: str = "encoder") -> int | None:
    if config.model_type in RELATIVE_POSITIONS:
        return None
    own = f"max_{part}_position_embeddings"  # LED's
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", own):
        limit = getattr(config, name, None)
        if isinstance(limit, int) and limit > 0:
            return limit
    return None


class Answerer:
    """Answers distinct questions with one model.

    Args:
        encoder: Tokenises.
        scorer: Scores tokens.
        plain: For module functions that need a whole forward pass.
        cut_context: Whether those see the candidates' part of a decoder-only model's pass alone, as
            Lamorel has it with ``pre_encode_inputs``.
    """

    def __init__(
        self, encoder: TextEncoder, scorer: Scorer, plain: PlainForward, cut_context: bool
    ) -> None:
        self.encoder, self.scorer, self.plain = encoder, scorer, plain
        self.cut_context = cut_context

    def answer(
        self,
        questions: Sequence[Question],
        modules: Mapping[str, BaseModuleFunction],
        with_score: bool,
    ) -> tuple[list[Answer], dict[str, float]]:
        """Answer distinct questions; gradients flow where they are enabled.

        Args:
            questions: At least one.
            modules: Module functions to evaluate.
            with_score: False to evaluate the module functions only.

        Returns:
            One answer per question, and counters ``distinct_prompts`` and ``tokens``.

        Raises:
            RequestError: A prompt is too long, or a module function gave something of the wrong
                shape.
        """
        asked = self._tokenise(questions, with_score)
        counts = [len(own) for own in asked.candidates]
        states = {name: function for name, function in modules.items() if function.needs == "state"}
        scores = self.scorer.score(*asked.distinct, with_states=bool(states))
        found: dict[str, tuple[Tensor, list[int]]] = {}
        if states and scores.states is not None:
            at = put_integers(asked.prompt_rows, scores.states.device)
            for name, function in states.items():
                result = self._from_states(name, function, scores.states, list(asked.merged))
                found[name] = (result[at.to(result.device)], [1] * len(questions))
        tokens = scores.num_tokens
        full = {name: function for name, function in modules.items() if name not in states}
        if full:
            pairs = [max(1, len(own)) for _, own in questions]
            results, counted = self._from_passes(full, asked)
            found |= {name: (result, pairs) for name, result in results.items()}
            tokens += counted
        log_probs = scores.log_probs[put_integers(asked.score_rows, scores.log_probs.device)].cpu()
        answers = _take_apart(
            log_probs, counts if with_score else [0] * len(questions), found, self.scorer.dtype
        )
        return answers, {"distinct_prompts": float(len(asked.merged)), "tokens": float(tokens)}

    def count(
        self,
        questions: Sequence[Question],
        modules: Mapping[str, BaseModuleFunction],
        with_score: bool,
    ) -> dict[str, float]:
        """The counters that ``answer`` would give.

        Raises:
            RequestError: A prompt is too long.
        """
        asked = self._tokenise(questions, with_score)
        needs = {function.needs for function in modules.values()}
        tokens = self.scorer.count(*asked.distinct, "state" in needs)
        if "full" in needs:
            tokens += _tokens_of(_pairs(asked))
        return {"distinct_prompts": float(len(asked.merged)), "tokens": float(tokens)}

    def _tokenise(self, questions: Sequence[Question], with_score: bool) -> Asked:
        lists = dict.fromkeys(own for _, own in questions)
        tokens_of = {own: tuple(self.encoder.encode(own)) for own in lists}
        candidates = [tokens_of[own] for _, own in questions]
        behind = [max(map(len, own), default=0) for own in candidates]
        prompts = self.encoder.encode_prompts([prompt for prompt, _ in questions], behind)
        return merge(prompts, candidates, with_score)

    def _from_states(
        self, name: str, function: BaseModuleFunction, states: Tensor, prompts: Sequence[Tokens]
    ) -> Tensor:
        key = "decoder_hidden_states" if self.plain.seq2seq else "hidden_states"
        contexts = _Contexts(prompts)
        return _checked(
            name,
            # A copy: one that works in place would change what the next one reads.
            function({key: (states[:, None].to(function.device, copy=True),)}, {}, contexts),
            len(prompts),
        )

    def _from_passes(
        self, functions: Mapping[str, BaseModuleFunction], asked: Asked
    ) -> tuple[dict[str, Tensor], int]:
        """One row per pair, in the order of the questions and their candidates."""
        pairs = _pairs(asked)
        values: dict[str, list[Tensor]] = {name: [] for name in functions}
        places: list[int] = []
        for one in self.plain.run(pairs, hidden_states=True):
            outputs, minibatch = one.outputs, one.minibatch
            if self.cut_context and not self.plain.seq2seq:
                outputs, minibatch = _cut(outputs, minibatch, one.first)
            read = _tensors_of(outputs)
            for number, (name, function) in enumerate(functions.items()):
                versions = _changes(read)
                values[name].append(
                    _checked(name, function(outputs, minibatch, one.prompts), len(one.places))
                )
                if number + 1 < len(functions) and _changes(read) != versions:
                    raise RequestError(
                        f"module function {name!r} changed in place what the others read of the"
                        " pass; let it work on a clone"
                    )
            places += one.places
        order = sorted(range(len(places)), key=lambda row: places[row])
        return {name: torch.cat(parts)[order] for name, parts in values.items()}, _tokens_of(pairs)


class _Contexts(Sequence[dict[str, list[int]]]):
    """Prompts without padding, as module functions see them; made when looked at, which most never
    do.
    """

    def __init__(self, prompts: Sequence[Tokens]) -> None:
        self._prompts = prompts

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return _Contexts(self._prompts[place])
        prompt = self._prompts[place]
        return {"input_ids": list(prompt), "attention_mask": [1] * len(prompt)}


@dataclass(frozen=True)
class Asked:
    """Questions as tokens.

    Attributes:
        prompts: Of each question.
        candidates: Of each question.
        merged: Distinct prompts, each with the distinct candidates to score after it and their
            places among these.
        prompt_rows: Where each question's prompt is in ``merged``.
        score_rows: Where each candidate of each question is among all candidates of ``merged``.
    """

    prompts: list[Tokens]
    candidates: list[tuple[Tokens, ...]]
    merged: dict[Tokens, dict[Tokens, int]]
    prompt_rows: list[int]
    score_rows: list[int]

    @property
    def distinct(self) -> tuple[list[Tokens], list[tuple[Tokens, ...]]]:
        """The distinct prompts, and the distinct candidates of each."""
        return list(self.merged), [tuple(own) for own in self.merged.values()]


def _pairs(asked: Asked) -> list[tuple[Tokens, Tokens]]:
    """What whole passes are made of: a prompt with each candidate, or alone where it has none."""
    return [
        (prompt, own)
        for prompt, all_own in zip(asked.prompts, asked.candidates, strict=True)
        for own in all_own or ((),)
    ]


def _tokens_of(pairs: Sequence[tuple[Tokens, Tokens]]) -> int:
    return sum(len(prompt) + len(own) for prompt, own in pairs)


def merge(
    prompts: list[Tokens], candidates: list[tuple[Tokens, ...]], with_score: bool = True
) -> Asked:
    """Find the distinct prompts, and what is to be scored after each; without scores nothing is."""
    # Each prompt is looked up once: a long one is slow to hash.
    row_of: dict[Tokens, int] = {}
    prompt_rows = [row_of.setdefault(prompt, len(row_of)) for prompt in prompts]
    scored: list[dict[Tokens, int]] = [{} for _ in row_of]
    for row, own in zip(prompt_rows, candidates, strict=True):
        places = scored[row]
        for candidate in own if with_score else ():
            places.setdefault(candidate, len(places))
    starts = [0, *itertools.accumulate(map(len, scored))]
    score_rows = [
        starts[row] + scored[row][candidate]
        for row, own in zip(prompt_rows, candidates, strict=True)
        for candidate in (own if with_score else ())
    ]
    merged = dict(zip(row_of, scored, strict=True))
    return Asked(prompts, candidates, merged, prompt_rows, score_rows)


def _cut(
    outputs: Any, minibatch: Mapping[str, Any], first: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The part of a decoder-only model's pass from the last position of the prompt on."""
    cut = {
        "logits": outputs.logits[:, first:],
        "hidden_states": tuple(layer[:, first:] for layer in outputs.hidden_states),
    }
    return cut, {
        "input_ids": minibatch["input_ids"][:, first:],
        "attention_mask": minibatch["attention_mask"],
    }


def _tensors_of(outputs: Any) -> list[Tensor]:
    """What module functions read of a pass."""
    found = [outputs["logits"]]
    for key in ("hidden_states", "decoder_hidden_states"):
        found += outputs.get(key) or ()
    return found


def _changes(tensors: Sequence[Tensor]) -> list[int]:
    return [0 if tensor.is_inference() else tensor._version for tensor in tensors]


def _checked(name: str, result: object, rows: int) -> Tensor:
    if not isinstance(result, Tensor) or result.dim() == 0 or len(result) != rows:
        got = (
            f"a tensor of shape {tuple(result.shape)}"
            if isinstance(result, Tensor)
            else type(result).__name__
        )
        raise RequestError(
            f"module function {name!r} gave {got}; expected a tensor with {rows} rows"
        )
    return result


def _take_apart(
    log_probs: Tensor,
    counts: list[int],
    found: Mapping[str, tuple[Tensor, list[int]]],
    dtype: torch.dtype,
) -> list[Answer]:
    split = {
        name: torch.split(result.to("cpu", dtype), rows) for name, (result, rows) in found.items()
    }
    parts = torch.split(log_probs, counts)
    return [
        Answer(own, {name: pieces[i] for name, pieces in split.items()})
        for i, own in enumerate(parts)
    ]


def join(
    answers: Sequence[Answer], names: Sequence[str], dtype: torch.dtype
) -> tuple[Tensor, tuple[int, ...], dict[str, Tensor]]:
    """Log-probabilities of all answers one after the other, the candidates of each, and each module
    function's rows.
    """
    counts = tuple(len(answer.log_probs) for answer in answers)
    log_probs = torch.cat([torch.zeros(0, dtype=dtype), *(answer.log_probs for answer in answers)])
    modules = {
        name: torch.cat([answer.modules[name] for answer in answers])
        if answers
        else torch.zeros(0, 1, dtype=dtype)
        for name in names
    }
    return log_probs, counts, modules
