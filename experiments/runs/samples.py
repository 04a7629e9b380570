"""How a run uses its machines, and its warnings, as its folder keeps them."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path

SYSTEM = "system.jsonl"
WARNINGS = "warnings.log"
LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"
MOST_BYTES = 2**20


def read_samples(path: Path) -> list[dict[str, float]]:
    """The samples of ``system.jsonl``; lines that are torn or no samples are passed over.

    Returns:
        In their order; each has ``time`` (seconds since 1970) and ``env_steps``.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [sample for line in lines if (sample := _sample(line))]


def _sample(line: str) -> dict[str, float]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    numbers = {
        name: float(value)
        for name, value in found.items()
        if isinstance(value, (int, float)) and abs(value) < 1e300 and math.isfinite(value)
    }
    return numbers if {"time", "env_steps"} <= set(numbers) else {}


def last_lines(path: Path, number: int) -> list[str]:
    """The last lines of a text file; none where it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 65536))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    return text.splitlines()[-number:]


class _Quiet(RotatingFileHandler):
    """A disk that is full makes no second failure of a warning."""

    def handleError(self, record: logging.LogRecord) -> None:
        """The line is lost."""

    def close(self) -> None:
        """What could not be written stays in the buffer, and closing tries once more."""
        with suppress(OSError):
            super().close()


@contextmanager
def warnings_kept(path: Path) -> Iterator[None]:
    """Write warnings of this process to a file meanwhile, which is made with the first one."""
    handler = _Quiet(path, maxBytes=MOST_BYTES, backupCount=1, encoding="utf-8", delay=True)
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter(LINE))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
