"""A curriculum: levels to train on before the one that a run is about."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from typing import Any

from lamorel_ext.config import Config, StageArgs
from lamorel_ext.errors import CheckpointError
from lamorel_ext.experience import Rollout

WINDOW = 100
"""Episodes of a stage over which its success is taken."""


class Curriculum:
    """Where a run stands in ``env.curriculum``.

    A stage begins with episode 0 of its level in every environment, so that all arms of one seed
    meet the same episodes there. Rollouts end with the stage's last step.

    Args:
        config: Of the run.

    Attributes:
        stage: Stages finished.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self.stage = 0
        self._steps = 0
        self._successes: deque[bool] = deque(maxlen=WINDOW)

    @property
    def config(self) -> Config:
        """The run's configuration with the level that is trained on now."""
        stage = self._running
        if stage is None:
            return self._config
        env = dataclasses.replace(
            self._config.env, level=stage.level, num_distractors=stage.num_distractors
        )
        return dataclasses.replace(self._config, env=env)

    @property
    def steps_left(self) -> float:
        """Steps of all environments together until the stage's steps are over, rounded up; infinite
        where there is no such end.
        """
        stage = self._running
        if stage is None or stage.steps is None:
            return math.inf
        return math.ceil((stage.steps - self._steps) / self._config.env.num_envs)

    def note(self, rollout: Rollout) -> bool:
        """Count a rollout in; True where the next stage, or training on the run's own level, begins
        now.
        """
        stage = self._running
        if stage is None:
            return False
        self._steps += rollout.rewards.size
        self._successes.extend((rollout.rewards[rollout.done] > 0).tolist())
        mastered = (
            stage.success is not None
            and len(self._successes) == WINDOW
            and sum(self._successes) >= stage.success * WINDOW
        )
        over = mastered or (stage.steps is not None and self._steps >= stage.steps)
        if over:
            self.stage, self._steps = self.stage + 1, 0
            self._successes.clear()
        return over

    def state(self) -> dict[str, Any]:
        """Where it stands, as JSON can hold it."""
        return {"stage": self.stage, "steps": self._steps, "successes": list(self._successes)}

    def restore(self, state: dict[str, Any]) -> None:
        """Come back to a saved state.

        Raises:
            CheckpointError: ``state`` is not what ``state()`` gives.
        """
        try:
            stage, steps = int(state["stage"]), int(state["steps"])
            successes = [bool(value) for value in state["successes"]]
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"not a saved curriculum: {error!r}") from error
        if not 0 <= stage <= len(self._config.env.curriculum):
            raise CheckpointError(
                f"the saved curriculum is at stage {stage}, this one has"
                f" {len(self._config.env.curriculum)}"
            )
        self.stage, self._steps = stage, steps
        self._successes = deque(successes, maxlen=WINDOW)

    @property
    def _running(self) -> StageArgs | None:
        stages = self._config.env.curriculum
        return stages[self.stage] if self.stage < len(stages) else None
