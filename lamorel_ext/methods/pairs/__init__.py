"""Pairs teach the LLM: of two texts after a prompt the better one is to become likelier. A method
says which pairs, and who ranks them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lamorel_ext.experience import Note, Rollout
from lamorel_ext.methods.base import Method, MethodSetting
from lamorel_ext.methods.pairs.options import PairLoss, PairOptions
from lamorel_ext.methods.told import read_lines
from lamorel_ext.options import in_common
from lamorel_ext.types import Scalar, UpdateRequest

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
    updaters = {UPDATER: "lamorel_ext.methods.pairs.updater.PairUpdater"}

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
        options = in_common(PairOptions, self._loss) | self._shuffling()
        prompts = tuple(pair.prompt for pair in pairs)
        candidates = tuple((pair.better, pair.worse) for pair in pairs)
        stats = self._update(UPDATER, prompts, candidates, {}, options)
        steps = steps_of_prompts(rollout)
        for pair in pairs:
            changed = f"{pair.better!r} is made likelier against {pair.worse!r}"
            step = steps.get(pair.prompt)
            self.notes.append(Note(self.question(pair), f"better: {pair.better}", changed, step))
        return {"pairs": float(len(pairs))} | {
            name: stats[name] for name in PAIR_COLUMNS if name in stats
        }

    def _shuffling(self) -> dict[str, Scalar]:
        """The seed of an update, where it is cut into minibatches."""
        if not self._loss.minibatch_size:
            return {}
        return {"seed": int(self.setting.rng.integers(2**31))}

    def _update(
        self,
        updater: str,
        prompts: tuple[str, ...],
        candidates: tuple[tuple[str, ...], ...],
        data: dict[str, Tensor],
        options: dict[str, Scalar],
    ) -> dict[str, float]:
        """One update on the servers; gives what they say of it."""
        places = torch.arange(len(prompts))
        request = UpdateRequest(updater, prompts, candidates, places, len(prompts), data, options)
        return dict(self.setting.llm.update_batch(request).stats)


def steps_of_prompts(rollout: Rollout) -> dict[str, int]:
    """Where the first environment's guidance was asked for with a prompt, the first time."""
    steps: dict[str, int] = {}
    for step, turn in enumerate(rollout.turns):
        if turn.decision.said is not None:
            steps.setdefault(turn.decision.said.prompts[0], step)
    return steps


def read_rankings(path: Path) -> list[Pair]:
    """Read a file of rankings.

    Raises:
        NotThereError: There is no such file.
        ConfigError: Naming the line that is none, or ranks a text above itself.
    """
    return read_lines("method.rankings", path, "rankings", _read_pair)


def _read_pair(values: Any) -> Pair | str:
    """A ranking, or what is wrong with it."""
    keys = ("prompt", "better", "worse")
    if not isinstance(values, dict) or set(values) != set(keys):
        return f"expected an object with {', '.join(keys)}, got {json.dumps(values)[:80]}"
    if not all(isinstance(values[key], str) and values[key].strip() for key in keys):
        return "prompt, better and worse must be texts that are not empty"
    if values["better"].strip() == values["worse"].strip():
        return f"a tie: {values['better']!r} is better and worse"
    try:
        "".join(values.values()).encode()
    except UnicodeEncodeError as error:
        return f"half a character in a text: {error.reason}"
    return Pair(**values)
