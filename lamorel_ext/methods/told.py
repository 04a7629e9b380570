"""What the LLM said and how the student did after it, from a rollout or from recorded ones."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lamorel_ext.config import Config
from lamorel_ext.errors import ConfigError, NotThereError
from lamorel_ext.experience import Rollout
from lamorel_ext.randomness import log_softmax

log = logging.getLogger(__name__)

Read = TypeVar("Read")


@dataclass(frozen=True)
class Told:
    """One guidance.

    Attributes:
        prompt: What the LLM read.
        candidates: What it could have said; of free guidance what it did say.
        chosen: Which of them it said.
        advantage: The student's after it, in units of its scaled rewards.
        log_probs: ``(candidates,)`` in nats, when it was said; empty where it was recorded.
        step: Of the rollout, where the first environment was told it.
    """

    prompt: str
    candidates: tuple[str, ...]
    chosen: int
    advantage: float
    log_probs: np.ndarray = field(default_factory=lambda: np.zeros(0), compare=False)
    step: int | None = None

    @property
    def text(self) -> str:
        """What was said."""
        return self.candidates[self.chosen]


def told_in(rollout: Rollout) -> list[Told]:
    """All guidance of a rollout but empty texts, step by step."""
    told = []
    for step, (turn, advantages) in enumerate(zip(rollout.turns, rollout.advantages, strict=True)):
        said = turn.decision.said
        if said is None:
            continue
        table = said.log_probs[:, None] if said.scores is None else log_softmax(said.scores)
        for env, prompt in enumerate(said.prompts):
            texts, chosen = said.candidates[env], int(said.chosen[env])
            if texts[chosen]:
                place = step if env == 0 else None
                advantage = float(advantages[env])
                told.append(Told(prompt, texts, chosen, advantage, table[env], place))
    return told


def read_traces(folder: Path, config: Config | None = None) -> list[Told]:
    """The guidance in the recorded rollouts of a run (``run.trace_every``).

    Args:
        folder: The run's.
        config: Of the run that is to learn from them; what its prompts have otherwise is warned
            of. None holds them against nothing.

    Raises:
        NotThereError: Nothing was recorded there.
        ConfigError: Naming the file and line that is no trace's, or is of another vocabulary.
    """
    paths = sorted(Path(os.path.expanduser(folder)).glob("traces/*.jsonl"))
    if not paths:
        raise NotThereError(f"method.traces: {folder}: no recorded rollouts (traces/*.jsonl) in it")
    told: list[Told] = []
    differs: dict[str, str] = {}
    for path in paths:
        reader = _TraceReader(config)
        told += read_lines("method.traces", path, "guidance of an LLM", reader.read)
        differs = reader.differs | differs
    for what in differs.values():
        log.warning("method.traces: %s: %s: its prompts may not come up here", folder, what)
    return told


def fingerprint_of(known: Sequence[Any]) -> str:
    """Equal where the same can be learnt, in the same order."""
    found = hashlib.sha256()
    for each in known:
        values = vars(each) | {"log_probs": None}
        found.update(json.dumps(values, sort_keys=True).encode())
    return found.hexdigest()


def _vocabulary(agent: Any, vocabulary: Any) -> Any:
    """What an LLM says beside an agent; one that acts itself says actions, whatever is set."""
    return "action_hint" if agent in ("llm_policy", "cloning") else vocabulary


class _TraceReader:
    """Reads a trace line by line: the first one says of what run it is, an episode's line what can
    be said in its steps.

    Args:
        config: Of the run that is to learn from it.

    Attributes:
        differs: By key in words what is otherwise in ``config``, but for the vocabulary.
    """

    def __init__(self, config: Config | None) -> None:
        self._config = config
        self._by_state = True
        self._candidates: list[str] | None = None
        self.differs: dict[str, str] = {}

    def read(self, values: Any) -> Told | str | None:
        """What a line tells; None where it is about something else."""
        try:
            if values["kind"] == "trace":
                return self._begin(values)
            if values["kind"] == "episode":
                self._candidates = values["candidates"]
            if values["kind"] != "step" or values["llm"] is None or not values["llm"]["text"]:
                return None
            said, advantage = values["llm"]["text"], float(values["advantage"])
            listed = self._candidates
            if listed and self._by_state:  # each state may have a list of its own
                listed = values.get("offered") or listed
            candidates = tuple(listed or [said])
            if not math.isfinite(advantage):
                return f"advantage: expected a number, got {values['advantage']}"
            if said not in candidates:
                could = ", ".join(candidates)[:200]
                return f"llm: {said!r} is none of what could be said: {could}"
            return Told(str(values["prompt"]), candidates, candidates.index(said), advantage)
        except (KeyError, TypeError, ValueError) as error:
            return f"not a line of a trace: {error!r}"

    def _begin(self, header: dict[str, Any]) -> str | None:
        """Hold the header against this run's configuration; what it lacks is taken as fitting."""
        vocabulary = _vocabulary(header.get("agent"), header.get("vocabulary"))
        self._by_state = vocabulary in ("action_hint", None)
        config = self._config
        if config is None:
            return None
        own = _vocabulary(config.arm.agent, config.guidance.vocabulary)
        if vocabulary not in (own, None):
            return (
                f"recorded with guidance.vocabulary={vocabulary}, but it is {own} here: the LLM"
                " would learn what it cannot say"
            )
        env = config.env
        levels = [env.own.target or env.level, *(stage.level for stage in env.curriculum)]
        for key, expected in (
            ("level", levels),
            ("language", [env.language]),
            ("prompt", [env.prompt]),
        ):
            got = header.get(key)
            if got not in (None, *expected):
                self.differs[key] = f"recorded with env.{key}={got}, here it is {expected[0]}"
        return None


def read_lines(
    key: str, path: Path, what: str, read: Callable[[Any], Read | str | None]
) -> list[Read]:
    """What the lines of JSON in a file say.

    Args:
        key: Of the configuration, for messages.
        path: The file.
        what: Is expected in it.
        read: Gives what a line says, None for nothing, or in words what is wrong with it.
    """
    try:
        # Not splitlines: a JSON text may hold other separators. Editors may put a mark first.
        text = Path(os.path.expanduser(path)).read_text(encoding="utf-8-sig")
        lines = text.split("\n")
    except FileNotFoundError as error:
        raise NotThereError(f"{key}: {path}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{key}: {path}: {error}") from error
    found: list[Read] = []
    problems = []
    for place, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            one = read(json.loads(line))
        except (ValueError, RecursionError) as error:
            one = f"no JSON: {error}"
        if isinstance(one, str):
            problems.append(f"{key}: {path}, line {place}: {one}")
        elif one is not None:
            found.append(one)
    if not found and not problems:
        problems.append(f"{key}: {path}: no {what} in it")
    if len(problems) > 10:
        problems[10:] = [f"{key}: {path}: {len(problems) - 10} more lines are wrong"]
    if problems:
        raise ConfigError(problems)
    return found
