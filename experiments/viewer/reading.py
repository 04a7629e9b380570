"""Read recorded rollouts back; ``lamorel_ext/student/trace.py`` has their format."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lamorel_ext.errors import CheckpointError
from lamorel_ext.student.trace_lines import VERSION

Line = dict[str, Any]

_KEYS = {
    "trace": {"version", "env_steps", "rollout", "env", "seed", "level", "num_distractors", "agent", "teacher", "vocabulary", "signal", "loss", "channel", "every", "actions", "left_out"},
    "episode": {"number", "actions", "mission", "candidates"},
    "step": {"prompt", "sentences", "view", "direction", "action", "probability", "reward", "end", "value", "error", "previous", "advantage", "signal", "llm",
             "guidance", "policy"},
    "update": {"number", "samples", "stats"},
}  # fmt: skip
"""What is needed of each kind of line."""


@dataclass(frozen=True)
class Episode:
    """An episode, or the part of it that was recorded.

    Attributes:
        line: Its own line.
        steps: Those of its steps.
    """

    line: Line
    steps: list[Line] = field(default_factory=list)


@dataclass(frozen=True)
class RecordedRollout:
    """A file of ``traces/``.

    Attributes:
        header: Its first line.
        episodes: In their order.
        updates: Of the teacher, in their order.
    """

    header: Line
    episodes: list[Episode]
    updates: list[Line]


def read_trace(path: Path) -> RecordedRollout:
    """Read one file.

    Raises:
        CheckpointError: It is not such a file, or of another version; the message names the line.
    """
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        kind = line.get("kind") if isinstance(line, dict) else None
        missing = sorted(_KEYS.get(str(kind), {"kind"}) - set(line if isinstance(line, dict) else ()))
        if kind not in _KEYS or missing or (kind == "trace") != (number == 1):
            raise CheckpointError(f"{path}, line {number}: not a line of a trace" + (f", it lacks {', '.join(missing)}" if missing else ""))
    if not lines or lines[0]["version"] != VERSION:
        found = lines[0]["version"] if lines else "an empty file"
        raise CheckpointError(f"{path}: expected a trace of version {VERSION}, got {found}")
    return _cut(path, lines)


def _cut(path: Path, lines: list[Line]) -> RecordedRollout:
    episodes: list[Episode] = []
    for number, line in enumerate(lines, start=1):
        if line["kind"] == "episode":
            episodes.append(Episode(line))
        elif line["kind"] == "step":
            if not episodes:
                raise CheckpointError(f"{path}, line {number}: a step before any episode")
            episodes[-1].steps.append(line)
    return RecordedRollout(
        lines[0], [episode for episode in episodes if episode.steps], [line for line in lines if line["kind"] == "update"]
    )
