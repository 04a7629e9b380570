"""What the student's network reads: views, missions and guidance as vectors of fixed size."""

from __future__ import annotations

import functools
import hashlib
import zlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from lamorel_ext.types import ObservationBatch, TaskSpec

_KINDS = (11, 6, 4)
"""Object types, colours and states that minigrid's encoding knows."""
_CELL = sum(_KINDS)
_VIEW = 7 * 7 * _CELL
_MISSION = 64
TEXT_SIZE = 64
"""Size of the vector of a free guidance."""
FEATURE_SIZE = _VIEW + 4 + _MISSION
"""Size of the vector of a state of BabyAI."""
_SENTENCES = 512
ACTION_SIZE = 1 + TEXT_SIZE
"""Size of the vector of an action where each state lists its own."""

_OFFSETS = np.arange(49)[:, None] * _CELL + np.cumsum((0, *_KINDS[:-1]))


def encode_observations(observations: ObservationBatch) -> np.ndarray:
    """One-hot views and directions, and hashed missions.

    Returns:
        ``(n, FEATURE_SIZE)`` float32.
    """
    n = len(observations.missions)
    features = np.zeros((n, FEATURE_SIZE), dtype=np.float32)
    rows = np.arange(n)
    features[rows[:, None], (observations.images.reshape(n, 49, 3) + _OFFSETS).reshape(n, -1)] = 1.0
    features[rows, _VIEW + observations.directions] = 1.0
    for row, mission in enumerate(observations.missions):
        features[row, _VIEW + 4 :] = hashed_mission(mission)
    return features


def views_of(features: np.ndarray) -> np.ndarray:
    """The views that ``encode_observations`` has read: ``(n, 7, 7, 2)``, types and colours."""
    cells = features[:, :_VIEW].reshape(len(features), 7, 7, _CELL)
    kinds, colours = _KINDS[:2]
    pair = (cells[..., :kinds], cells[..., kinds : kinds + colours])
    return np.stack([one_hot.argmax(axis=-1) for one_hot in pair], axis=-1)


def feature_size(task: TaskSpec) -> int:
    """Size of the vectors that ``encode_states`` gives."""
    if task.symbolic:
        return FEATURE_SIZE
    return (task.feature_size or _SENTENCES) + _MISSION


def encode_states(observations: ObservationBatch, task: TaskSpec) -> np.ndarray:
    """What a student reads of an environment: BabyAI's views; else its features, or, where it has
    none, its text; and the mission.

    Of a text these are its words and pairs of neighbouring words, hashed: a linear layer on them
    learns a vector for each. Mission and text may be single words, or differ in the last one; so
    neither is read by ``hashed_words``.

    Returns:
        ``(n, feature_size(task))`` float32.
    """
    if task.symbolic:
        return encode_observations(observations)
    missions = np.stack([word_signs(_counted(mission)) for mission in observations.missions])
    if task.feature_size:
        seen = observations.features
    else:
        said = observations.descriptions
        seen = np.stack([hashed_text(" ".join(lines)) for lines in said])
    return np.concatenate([seen, missions], axis=1)


def encode_actions(offered: Sequence[Sequence[str]]) -> np.ndarray:
    """The texts of the actions that states list: a 1 and their words' signs each; zeros behind the
    end of a list.

    Returns:
        ``(n, longest list, ACTION_SIZE)`` float32.
    """
    longest = max(map(len, offered), default=0)
    table = np.zeros((len(offered), longest, ACTION_SIZE), dtype=np.float32)
    for rows, texts in zip(table, offered, strict=True):
        for row, text in zip(rows, texts, strict=False):
            row[0], row[1:] = 1.0, word_signs(text)
    return table


def hashed_mission(mission: str) -> np.ndarray:
    """``hashed_words``, where a word that comes again counts as another word: "put the red ball
    next to the green ball" and its reverse have the same words and pairs.

    Returns:
        ``(64,)`` float32. Shared between calls: do not change it.
    """
    return hashed_words(_counted(mission), _MISSION)


@functools.lru_cache(maxsize=65536)
def hashed_text(text: str) -> np.ndarray:
    """Words and pairs of neighbouring words, each hashed to two places and signs, scaled to length
    1.

    With ``hashed_words`` 128 of "you are at 0" to "you are at 499" would look like another: CRC-32
    is linear, so that two last words with one place have pairs with one place too.

    Returns:
        ``(512,)`` float32. Shared between calls: do not change it.
    """
    vector = np.zeros(_SENTENCES, dtype=np.float32)
    for gram in _grams(text):
        digest = hashlib.blake2b(gram.encode(errors="surrogatepass"), digest_size=8).digest()
        for code in np.frombuffer(digest, dtype="<u4").tolist():
            vector[(code >> 1) % _SENTENCES] += 1.0 if code & 1 else -1.0
    return _unit(vector)


@functools.lru_cache(maxsize=65536)
def hashed_words(text: str, size: int) -> np.ndarray:
    """Words and pairs of neighbouring words, each hashed to a place and a sign, scaled to length 1.

    The hash is CRC-32, so that the vector is the same in every process. An empty text gives zeros.

    Returns:
        ``(size,)`` float32. Shared between calls: do not change it.
    """
    vector = np.zeros(size, dtype=np.float32)
    for gram in _grams(text):
        code = zlib.crc32(gram.encode(errors="surrogatepass"))
        vector[(code >> 1) % size] += 1.0 if code & 1 else -1.0
    return _unit(vector)


@functools.lru_cache(maxsize=65536)
def word_signs(text: str) -> np.ndarray:
    """Words and pairs of neighbouring words, each as signs that are the bits of its hash, added up
    and scaled to length 1: what is chosen between may differ in a single word, and of any hundred
    words some have the one place and sign of ``hashed_words`` in common.

    Returns:
        ``(TEXT_SIZE,)`` float32, zeros for an empty text. Shared between calls: do not change it.
    """
    vector = np.zeros(TEXT_SIZE, dtype=np.float32)
    for gram in _grams(text):
        code = hashlib.blake2b(gram.encode(errors="surrogatepass"), digest_size=TEXT_SIZE // 8)
        vector += 2.0 * np.unpackbits(np.frombuffer(code.digest(), dtype=np.uint8)) - 1.0
    return _unit(vector)


def _unit(vector: np.ndarray) -> np.ndarray:
    """The vector scaled to length 1; zeros stay zeros."""
    length = float(np.linalg.norm(vector))
    return vector / length if length else vector


@functools.lru_cache(maxsize=65536)
def _counted(mission: str) -> str:
    """Its words, with a number behind one that came before."""
    seen = Counter[str]()
    words = []
    for word in mission.lower().split():
        seen[word] += 1
        words.append(word if seen[word] == 1 else f"{word}#{seen[word]}")
    return " ".join(words)


def _grams(text: str) -> tuple[str, ...]:
    """Its words, and pairs of neighbouring words."""
    words = text.lower().split()
    pairs = zip(words, words[1:], strict=False)
    return (*words, *(f"{first} {second}" for first, second in pairs))
