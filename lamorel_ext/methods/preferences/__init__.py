"""Preferences teach the LLM: of two guidances for the same state the one after which the student
did better is to become likelier (Ouyang et al. 2022, arXiv 2203.02155, with the loss of Rafailov
et al. 2023, arXiv 2305.18290). A file of a human's rankings is read in the same form.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from lamorel_ext.errors import ConfigError, NotThereError
from lamorel_ext.experience import Note, Rollout
from lamorel_ext.methods.base import Method, MethodSetting
from lamorel_ext.methods.preferences.options import PairLoss, PairOptions, PreferencesOptions
from lamorel_ext.options import in_common
from lamorel_ext.types import UpdateRequest

UPDATER = "preferences"
PAIR_COLUMNS = ("pairs", "loss", "margin", "accuracy")


@dataclass(frozen=True)
class Pair:
    """One ranking: of two texts after a prompt the better and the worse one."""

    prompt: str
    better: str
    worse: str


class PairMethod(Method):
    """Teaches the LLM from pairs; a subclass says which.

    Its columns: ``pairs`` of a rollout, and what the servers say of the update (``PairUpdater``).
    """

    columns = PAIR_COLUMNS
    updaters = {UPDATER: "lamorel_ext.methods.preferences.updater.PairUpdater"}

    def __init__(self, setting: MethodSetting, options: PairLoss) -> None:
        super().__init__(setting, options)
        self._loss = options

    def pairs(self, rollout: Rollout) -> list[Pair]:
        """What is to be learnt from a rollout."""
        raise NotImplementedError(f"{type(self).__name__} must write pairs()")

    def question(self, pair: Pair) -> str:
        """What was asked to rank a pair, for a note."""
        return pair.prompt

    def learn(self, rollout: Rollout) -> dict[str, float]:
        """See ``Method``."""
        pairs = self.pairs(rollout)
        if not pairs:
            return {"pairs": 0.0}
        options = in_common(PairOptions, self._loss)
        if self._loss.minibatch_size:
            options["seed"] = int(self.setting.rng.integers(2**31))
        request = UpdateRequest(
            UPDATER,
            tuple(pair.prompt for pair in pairs),
            tuple((pair.better, pair.worse) for pair in pairs),
            torch.arange(len(pairs)),
            len(pairs),
            {},
            options,
        )
        stats = self.setting.llm.update_batch(request).stats
        steps = steps_of_prompts(rollout)
        for pair in pairs:
            changed = f"{pair.better!r} is made likelier against {pair.worse!r}"
            step = steps.get(pair.prompt)
            self.notes.append(Note(self.question(pair), f"better: {pair.better}", changed, step))
        return {"pairs": float(len(pairs))} | {
            name: stats[name] for name in PAIR_COLUMNS if name in stats
        }


class Preferences(PairMethod):
    """See the module. A state's best guidance is paired with its worst, by the mean of the
    student's advantages after each; a tie is no pair.
    """

    name = "preferences"
    arguments_type: ClassVar[type | None] = PreferencesOptions

    def __init__(self, setting: MethodSetting, options: PreferencesOptions) -> None:
        super().__init__(setting, options)
        self._ranks = options.ranks
        self._file = read_rankings(Path(options.rankings)) if options.rankings else None
        if self._file is None and not setting.agent.reads_prompts:
            raise ConfigError("method: preferences needs an LLM that gives guidance, or rankings")

    def pairs(self, rollout: Rollout) -> list[Pair]:
        """See ``PairMethod``."""
        return self._turned(self._file if self._file is not None else ranked(rollout))

    def _turned(self, pairs: Sequence[Pair]) -> list[Pair]:
        if self._ranks == "student":
            return list(pairs)
        coins = self.setting.rng.integers(2, size=len(pairs))
        return [
            Pair(pair.prompt, pair.worse, pair.better) if coin else pair
            for pair, coin in zip(pairs, coins, strict=True)
        ]


def steps_of_prompts(rollout: Rollout) -> dict[str, int]:
    """Where the first environment's guidance was asked for with a prompt, the first time."""
    steps: dict[str, int] = {}
    for step, turn in enumerate(rollout.turns):
        if turn.decision.said is not None:
            steps.setdefault(turn.decision.said.prompts[0], step)
    return steps


def ranked(rollout: Rollout) -> list[Pair]:
    """For each prompt after which different things were said the best and the worst of them."""
    told: dict[str, dict[str, list[float]]] = {}
    for turn, advantages in zip(rollout.turns, rollout.advantages, strict=True):
        said = turn.decision.said
        if said is None:
            continue
        for env, prompt in enumerate(said.prompts):
            text = said.candidates[env][said.chosen[env]]
            if text:
                told.setdefault(prompt, {}).setdefault(text, []).append(float(advantages[env]))
    pairs = []
    for prompt, by_text in told.items():
        means = {text: float(np.mean(values)) for text, values in by_text.items()}
        better, worse = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
        if means[better] > means[worse]:
            pairs.append(Pair(prompt, better, worse))
    return pairs


def read_rankings(path: Path) -> list[Pair]:
    """Read a file of rankings.

    Raises:
        NotThereError: There is no such file.
        ConfigError: Naming the line that is none, or ranks a text above itself.
    """
    try:
        # Not splitlines: a JSON text may hold other separators. Editors may put a mark first.
        lines = path.expanduser().read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError as error:
        raise NotThereError(f"method.rankings: {path}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"method.rankings: {path}: {error}") from error
    pairs, problems = [], []
    for place, line in enumerate(lines, 1):
        if line.strip():
            found = _read_pair(line)
            if isinstance(found, Pair):
                pairs.append(found)
            else:
                problems.append(f"method.rankings: {path}, line {place}: {found}")
    if not pairs and not problems:
        problems.append(f"method.rankings: {path}: no rankings in it")
    if len(problems) > 10:
        problems[10:] = [f"method.rankings: {path}: {len(problems) - 10} more lines are wrong"]
    if problems:
        raise ConfigError(problems)
    return pairs


def _read_pair(line: str) -> Pair | str:
    """A line of the file, or what is wrong with it."""
    try:
        values: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"no JSON: {error}"
    keys = ("prompt", "better", "worse")
    if not isinstance(values, dict) or set(values) != set(keys):
        return f"expected an object with {', '.join(keys)}, got {line.strip()[:80]}"
    if not all(isinstance(values[key], str) and values[key].strip() for key in keys):
        return "prompt, better and worse must be texts that are not empty"
    if values["better"].strip() == values["worse"].strip():
        return f"a tie: {values['better']!r} is better and worse"
    try:
        "".join(values.values()).encode()
    except UnicodeEncodeError as error:
        return f"half a character in a text: {error.reason}"
    return Pair(**values)
