"""What the student's network reads: symbolic views, missions and guidance as vectors of fixed size."""  # noqa: E501

from __future__ import annotations

import functools
import zlib

import numpy as np

from lamorel_ext.types import ObservationBatch

_KINDS = (11, 6, 4)
"""Object types, colours and states that minigrid's encoding knows."""
_CELL = sum(_KINDS)
_VIEW = 7 * 7 * _CELL
_MISSION = 64
TEXT_SIZE = 64
"""Size of the vector of a free guidance."""
FEATURE_SIZE = _VIEW + 4 + _MISSION
"""Size of the vector of a state."""

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
        features[row, _VIEW + 4 :] = hashed_words(mission, _MISSION)
    return features


@functools.lru_cache(maxsize=65536)
def hashed_words(text: str, size: int) -> np.ndarray:
    """Words and pairs of neighbouring words, each hashed to a place and a sign, scaled to length 1.

    The hash is CRC-32, so that the vector is the same in every process. An empty text gives zeros.

    Returns:
        ``(size,)`` float32. Shared between calls: do not change it.
    """
    words = text.lower().split()
    vector = np.zeros(size, dtype=np.float32)
    for gram in (
        *words,
        *(f"{first} {second}" for first, second in zip(words, words[1:], strict=False)),
    ):
        code = zlib.crc32(gram.encode())
        vector[(code >> 1) % size] += 1.0 if code & 1 else -1.0
    length = float(np.linalg.norm(vector))
    return vector / length if length else vector
