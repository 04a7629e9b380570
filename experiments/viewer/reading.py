"""Read recorded rollouts back; ``lamorel_ext/training/trace.py`` has their format."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lamorel_ext.errors import CheckpointError
from lamorel_ext.training.trace_lines import VERSION

Line = dict[str, Any]

_COUNT, _TEXT, _NULL = (int,), (str,), type(None)
_KINDS: dict[str, dict[str, tuple[type, ...]]] = {
    "trace": {
        **dict.fromkeys(("version", "env_steps", "rollout", "env", "seed", "left_out"), _COUNT),
        **dict.fromkeys(("level", "agent", "vocabulary", "signal", "loss", "channel"), _TEXT),
        "num_distractors": (int, _NULL),
        "teacher": (str, _NULL),
        "every": (str, int),
        "actions": (list, _NULL),
    },
    "episode": {
        "number": (int, _NULL),
        "mission": _TEXT,
        **dict.fromkeys(("actions", "candidates"), (list, _NULL)),
    },
    "step": {
        **dict.fromkeys(("direction", "action"), _COUNT),
        **dict.fromkeys(("prompt", "view"), _TEXT),
        **dict.fromkeys(
            ("probability", "reward", "value", "error", "previous", "advantage", "signal"),
            (int, float, _NULL),
        ),
        **dict.fromkeys(("llm", "guidance", "policy"), (dict, _NULL)),
        "sentences": (list,),
        "end": (str, _NULL),
    },
    "update": {"number": (int, _NULL), "samples": (int, _NULL), "stats": (dict,)},
    "note": {"step": (int, _NULL), **dict.fromkeys(("asked", "answered", "changed"), _TEXT)},
}
"""What is needed of each kind of line, with the types of the values."""
_TEXTS = ("sentences", "candidates", "offered")
LARGEST = 2**53
"""Of any number but the seed, which the page has as a text then: its script counts no further."""


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
        notes: Of method and agent, likewise.
    """

    header: Line
    episodes: list[Episode]
    updates: list[Line]
    notes: list[Line]


def read_trace(path: Path) -> RecordedRollout:
    """Read one file.

    Raises:
        CheckpointError: It is not such a file, or of another version; the message names the line.
    """
    try:
        texts = path.read_text(encoding="utf-8").removesuffix("\n")
        lines = [
            _parsed(number, text)
            for number, text in enumerate(texts.split("\n") if texts else [], start=1)
        ]
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        line = line if isinstance(line, dict) else {}
        kind = str(line.get("kind"))
        missing = sorted(set(_KINDS.get(kind, {"kind"})) - set(line))
        if kind not in _KINDS or missing or (kind == "trace") != (number == 1):
            raise CheckpointError(
                f"{path}, line {number}: not a line of a trace"
                + (f", it lacks {', '.join(missing)}" if missing else "")
            )
        if wrong := _wrong_value(kind, line):
            raise CheckpointError(f"{path}, line {number}: {wrong}")
    if not lines or lines[0]["version"] != VERSION:
        found = lines[0]["version"] if lines else "an empty file"
        raise CheckpointError(f"{path}: expected a trace of version {VERSION}, got {found}")
    return _cut(path, lines)


def _parsed(number: int, text: str) -> Any:
    """One line; a number that is not finite is none (Python writes and reads ``NaN``, JSON does
    not).
    """

    def refuse(name: str) -> float:
        raise ValueError(f"line {number} holds {name}, which is no number of JSON")

    def finite(digits: str) -> float:
        return float(digits) if math.isfinite(float(digits)) else refuse(digits)

    try:
        return json.loads(text, parse_constant=refuse, parse_float=finite)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number} is cut off or damaged: {error}") from error


def _wrong_value(kind: str, line: Line) -> str:
    """The first value of a line that the page could not show; empty where there is none."""
    for key, kinds in sorted(_KINDS[kind].items()):
        value = line[key]
        if not isinstance(value, kinds) or isinstance(value, bool):
            names = " or ".join("null" if one is _NULL else one.__name__ for one in kinds)
            return f"{key} is {value!r:.60}, expected {names}"
        if isinstance(value, (int, float)) and abs(value) > LARGEST and key != "seed":
            return f"{key} is {value!r:.60}, too large"
    if not isinstance(won := line.get("won"), bool | None):
        return f"won is {won!r:.60}, expected bool or null"
    for key in (*_TEXTS, "actions"):
        if not isinstance(value := line.get(key), list | None):
            return f"{key} is {value!r:.60}, expected list or null"
    for key in _TEXTS:
        if not all(isinstance(text, str) for text in line.get(key) or ()):
            return f"{key} holds something else than texts"
    wanted = str if kind == "trace" else int
    if not all(
        isinstance(item, wanted) and not isinstance(item, bool)
        for item in line.get("actions") or ()
    ):
        return f"actions holds something else than {wanted.__name__}"
    for group in ("llm", "guidance"):
        inner = line.get(group) if kind == "step" else None
        if inner is not None and not isinstance(inner.get("text"), str):
            return f"{group}.text is {inner.get('text')!r:.60}, expected str"
    return ""


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
        lines[0],
        [episode for episode in episodes if episode.steps],
        *([line for line in lines if line["kind"] == kind] for kind in ("update", "note")),
    )
