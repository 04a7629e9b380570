"""Answers of a model that is never trained: asked for once, and part of the run's checkpoint.

An answer's last digits follow from what else was asked in the same call. So a resumed run must know
what the run before it knew, and the answers are saved with it.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lamorel_ext.errors import CheckpointError
from lamorel_ext.types import ScoreRequest, ScoreResult

MOST_ANSWERS = 2**15
"""Answers that are kept at most: with six candidates they take 1.5 MB of a checkpoint."""

_KEY_BYTES = 16
_NAMES = ("kept.keys", "kept.counts", "kept.log_probs")


@dataclass(frozen=True)
class PartlyKnown:
    """A request, and what was known of it when it was made.

    Attributes:
        request: Names in ``known`` the prompts that ``rows`` has.
        keys: Of each prompt with its candidates.
        rows: Scores of each prompt, ``(num_candidates,)``; None where they are not known.
    """

    request: ScoreRequest
    keys: tuple[bytes, ...]
    rows: tuple[Tensor | None, ...]

    @property
    def complete(self) -> bool:
        """True where everything is known."""
        return len(self.request.known) == len(self.keys)


class KeptAnswers:
    """Scores by prompt and candidates.

    Args:
        limit: Answers at most; later ones are not kept.
    """

    def __init__(self, limit: int = MOST_ANSWERS) -> None:
        self._limit = limit
        self._answers: dict[bytes, Tensor] = {}

    def __len__(self) -> int:
        return len(self._answers)

    def clear(self) -> None:
        """Forget everything."""
        self._answers.clear()

    def look_up(self, request: ScoreRequest, about: str) -> PartlyKnown:
        """What is known of a request for scores alone.

        Args:
            request: Names nothing as known.
            about: What the answer depends on besides; equal questions differ where it does.
        """
        keys = _keys(request, about)
        rows = tuple(self._answers.get(key) for key in keys)
        known = tuple(place for place, row in enumerate(rows) if row is not None)
        return PartlyKnown(replace(request, known=known) if known else request, keys, rows)

    def fill(self, asked: PartlyKnown, result: ScoreResult | None) -> ScoreResult:
        """The answer to a whole request; what is new in it is kept.

        Args:
            asked: From ``look_up``.
            result: The servers' answer; None where nothing was left to ask.
        """
        told = asked.rows if result is None else result.split()
        rows = []
        for key, own, row in zip(asked.keys, asked.rows, told, strict=True):
            if own is None and row is not None:
                self._keep(key, row)
            rows.append(row if own is None else own)
        found = [row for row in rows if row is not None]
        stats = {} if result is None else result.stats
        return ScoreResult(torch.cat(found), tuple(map(len, found)), {}, stats)

    def keep(self, request: ScoreRequest, about: str, result: ScoreResult) -> None:
        """Keep the servers' answer to a whole request, but for what is kept already."""
        for key, row in zip(_keys(request, about), result.split(), strict=True):
            self._keep(key, row)

    def tensors(self) -> dict[str, Tensor]:
        """Everything, for a checkpoint; nothing where there are no answers.

        Returns:
            ``kept.keys`` ``(n, 16)`` uint8, ``kept.counts`` ``(n,)`` int64, and
            ``kept.log_probs`` ``(sum(counts),)``.
        """
        if not self._answers:
            return {}
        rows = list(self._answers.values())
        keys = torch.frombuffer(bytearray(b"".join(self._answers)), dtype=torch.uint8)
        counts = torch.tensor([len(row) for row in rows])
        values = (keys.view(-1, _KEY_BYTES), counts, torch.cat(rows))
        return dict(zip(_NAMES, values, strict=True))

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Know what ``tensors`` gave, and nothing else; a checkpoint without them knows nothing.

        Raises:
            CheckpointError: They do not fit together.
        """
        self.clear()
        present = [name for name in _NAMES if name in tensors]
        if not present:
            return
        if len(present) < len(_NAMES):
            raise CheckpointError(f"expected {', '.join(_NAMES)}, got {', '.join(present)}")
        keys, counts, log_probs = (tensors[name] for name in _NAMES)
        if (
            keys.dtype != torch.uint8
            or keys.shape != (len(counts), _KEY_BYTES)
            or counts.dtype != torch.int64
            or counts.min() < 0
            or log_probs.shape != (int(counts.sum()),)
        ):
            shapes = [tuple(tensors[name].shape) for name in _NAMES]
            raise CheckpointError(f"{', '.join(_NAMES)} do not fit together: shapes {shapes}")
        rows = log_probs.split(counts.tolist())
        self._answers = {
            bytes(key.tolist()): row.clone() for key, row in zip(keys, rows, strict=True)
        }

    def _keep(self, key: bytes, row: Tensor) -> None:
        """A checkpoint holds nothing but finite numbers."""
        if key in self._answers or len(self._answers) >= self._limit:
            return
        if bool(torch.isfinite(row).all()):
            self._answers[key] = row.detach().clone()


def _keys(request: ScoreRequest, about: str) -> tuple[bytes, ...]:
    """One per prompt; equal ones are the same question."""
    keys = []
    for prompt, candidates in zip(request.prompts, request.candidates, strict=True):
        digest = _begun(candidates, about).copy()
        digest.update(_bytes(prompt))
        keys.append(digest.digest())
    return tuple(keys)


@functools.lru_cache(maxsize=4096)
def _begun(candidates: tuple[str, ...], about: str) -> hashlib.blake2b:
    """A digest of all but the prompt."""
    digest = hashlib.blake2b(digest_size=_KEY_BYTES)
    for text in (about, str(len(candidates)), *candidates):
        part = _bytes(text)
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
