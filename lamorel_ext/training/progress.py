"""What a run has done so far: counters, and means since the last row of the learning curve."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from lamorel_ext.errors import CheckpointError
from lamorel_ext.experience import Rollout


@dataclass
class Averages:
    """Means of named numbers since the last ``take``; a number may be absent at times."""

    totals: dict[str, float] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)

    def add(self, numbers: Mapping[str, float], weight: float = 1.0) -> None:
        """Count numbers in, each with the same weight."""
        for name, value in numbers.items():
            self.totals[name] = self.totals.get(name, 0.0) + weight * value
            self.counts[name] = self.counts.get(name, 0.0) + weight

    def take(self, names: tuple[str, ...]) -> dict[str, float]:
        """The means by name, NaN where nothing came; starts anew."""
        means = {
            name: self.totals[name] / self.counts[name] if self.counts.get(name) else math.nan
            for name in names
        }
        self.totals.clear()
        self.counts.clear()
        return means


@dataclass
class Progress:
    """Counters of a run.

    Attributes:
        env_steps: Steps of all environments together.
        episodes: Episodes finished.
        rollouts: Rollouts finished.
        seconds: Wall-clock time of collecting and updating; evaluations and checkpoints are left
            out.
        next_eval: Environment steps at which the next evaluation is due.
        running_returns: ``num_envs`` unscaled returns of the unfinished episodes.
        averages: What the next row will say.
        last_row: The last row that was written, None for NaN.
    """

    env_steps: int = 0
    episodes: int = 0
    rollouts: int = 0
    seconds: float = 0.0
    next_eval: int = 0
    running_returns: list[float] = field(default_factory=list)
    averages: Averages = field(default_factory=Averages)
    last_row: dict[str, float | None] = field(default_factory=dict)

    def note(self, rollout: Rollout, seconds: float) -> None:
        """Count a rollout in."""
        running = np.array(self.running_returns or [0.0] * rollout.rewards.shape[1])
        finished: list[float] = []
        successes: list[bool] = []
        failures: list[bool] = []  # the mission itself ended without success
        for turn, rewards, done in zip(rollout.turns, rollout.rewards, rollout.done, strict=True):
            running += rewards
            told = turn.step.succeeded
            finished += running[done].tolist()
            won = running > 0 if told is None else told
            successes += won[done].tolist()
            failures += (turn.step.terminated & ~won)[done].tolist()
            running[done] = 0.0
        self.running_returns = running.tolist()
        self.env_steps += rollout.rewards.size
        self.rollouts += 1
        self.seconds += seconds
        self.episodes += len(finished)
        if finished:
            returns = np.array(finished)
            self.averages.add(
                {
                    "train_success": float(np.mean(successes)),
                    "train_return": float(returns.mean()),
                    "train_failed": float(np.mean(failures)),
                },
                weight=len(finished),
            )

    def state(self) -> dict[str, Any]:
        """Plain values, as JSON can hold them."""
        return asdict(self)

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> Progress:
        """What ``state`` has saved.

        Raises:
            CheckpointError: A key is missing or unknown.
        """
        try:
            return cls(**{**state, "averages": Averages(**state["averages"])})
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"not a saved progress: {error!r}") from error
