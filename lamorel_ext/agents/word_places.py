"""Texts as numbers: a word-level vocabulary of BabyAI-Text's language that is the same in every
process, without a tokenizer's files.
"""

from __future__ import annotations

import functools
import re
import zlib
from collections.abc import Sequence

import numpy as np

WORDS = tuple(
    dict.fromkeys(
        """
        . , : ' ? ! 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16
        goal of the agent observation action possible you see carry a an wall step steps forward
        left right and floor door key ball box lava object red green blue purple yellow grey open
        closed locked turn go pick up drop toggle done to put next in front behind on your then
        after tu vois portes un une mur à pas devant gauche droite et sol porte clef balle boîte
        but lave rouge verte bleue violette jaune grise ouverte fermée actions possibles pour l de
        la le aller
        """.split()
    )
)
BUCKETS, DIGITS = 64, 3
"""Places for words that are not among ``WORDS``; such a word is read as so many of them one after
the other, digits of its hash: a single one would be that of other words too.
"""
VOCABULARY_SIZE = 1 + len(WORDS) + BUCKETS
"""Place 0 is padding."""

_PLACES = {word: place for place, word in enumerate(WORDS, start=1)}
_TOKEN = re.compile(r"\w+|[^\w\s]")


@functools.lru_cache(maxsize=65536)
def word_places(text: str) -> tuple[int, ...]:
    """The places of a text's words and punctuation marks, in lower case; at least one, padding for
    an empty text.
    """
    found = (match.group() for match in _TOKEN.finditer(text.lower()))
    return tuple(place for word in found for place in _places_of(word)) or (0,)


def _places_of(word: str) -> tuple[int, ...]:
    if known := _PLACES.get(word):
        return (known,)
    code = zlib.crc32(word.encode(errors="surrogatepass"))
    return tuple(1 + len(WORDS) + code // BUCKETS**digit % BUCKETS for digit in range(DIGITS))


def padded(texts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Texts of places side by side.

    Returns:
        ``(n, longest)`` int64, 0 behind the end of a text, and the lengths ``(n,)`` int64.
    """
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    table = np.zeros((len(texts), lengths.max(initial=1)), dtype=np.int64)
    for row, text in zip(table, texts, strict=True):
        row[: len(text)] = text
    return table, lengths
