"""Text to tokens, the way Lamorel has it: prompts and candidates alike without special tokens, so
no end-of-sequence token is appended.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from lamorel_ext.errors import RequestError
from lamorel_ext.llm.memory import Memory
from lamorel_ext.llm.scoring.candidate_tree import Tokens

REMEMBERED_TEXTS = 50_000

RELATIVE_POSITIONS = frozenset({"t5", "mt5", "umt5", "longt5", "switch_transformers"})
"""Architectures that take any length, whatever their configuration says about positions."""


class TextEncoder:
    """Tokenises prompts and candidates, and remembers what it tokenised.

    Args:
        tokenizer: The model's tokenizer.
        config: The model's configuration.
        max_prompt_tokens: Longest prompt allowed; None leaves the model's own limit, where it has
            one.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        config: PretrainedConfig,
        max_prompt_tokens: int | None = None,
    ) -> None:
        self._tokenizer: Any = tokenizer
        self._seq2seq = bool(config.is_encoder_decoder)
        self._positions = _position_limit(config)
        self._max_prompt_tokens = max_prompt_tokens
        self._known: Memory[str, Tokens] = Memory(REMEMBERED_TEXTS)

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """Tokens of each text, without special tokens."""
        known = {
            text: tokens for text in set(texts) if (tokens := self._known.get(text)) is not None
        }
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            encoded = self._tokenizer(
                new, add_special_tokens=False, return_attention_mask=False, verbose=False
            )["input_ids"]
            for text, ids in zip(new, encoded, strict=True):
                known[text] = tuple(ids)
                self._known.put(text, known[text])
        return [known[text] for text in texts]

    def encode_prompts(
        self,
        prompts: Sequence[str],
        places: Sequence[int] | None = None,
        behind: Sequence[int] | None = None,
    ) -> list[Tokens]:
        """Tokens of each prompt. An empty prompt of a decoder-only model is its beginning-of-text
        token: something must come before a candidate.

        Args:
            prompts: The prompts.
            places: Where each is in the request, for messages; None means in this order.
            behind: Tokens that will follow each prompt at most; None means none.

        Raises:
            RequestError: A prompt is longer than allowed, or empty where the tokenizer has no
                beginning-of-text token.
        """
        encoded = self.encode(prompts)
        for i, tokens in enumerate(encoded):
            place = i if places is None else places[i]
            if not tokens and not self._seq2seq:
                encoded[i] = (self._beginning(place),)
            self._check_length(place, len(tokens), 0 if behind is None else behind[i])
        return encoded

    def _check_length(self, place: int, length: int, behind: int) -> None:
        if self._max_prompt_tokens is not None and length > self._max_prompt_tokens:
            raise RequestError(
                f"prompt {place} has {length} tokens; max_prompt_tokens allows"
                f" {self._max_prompt_tokens}"
            )
        needed = length if self._seq2seq else length + behind
        if self._positions is not None and needed > self._positions:
            more = f" and up to {behind} behind it" if needed > length else ""
            raise RequestError(
                f"prompt {place} has {length} tokens{more}; the model has {self._positions}"
                " positions"
            )

    def _beginning(self, place: int) -> int:
        for name in ("bos_token_id", "eos_token_id"):
            token = getattr(self._tokenizer, name, None)
            if token is not None:
                return int(token)
        raise RequestError(
            f"prompt {place} is empty, and the tokenizer has no beginning-of-text token to stand"
            " for it"
        )


def _position_limit(config: PretrainedConfig) -> int | None:
    if config.model_type in RELATIVE_POSITIONS:
        return None
    for name in ("max_position_embeddings", "n_positions"):
        limit = getattr(config, name, None)
        if isinstance(limit, int) and limit > 0:
            return limit
    return None
