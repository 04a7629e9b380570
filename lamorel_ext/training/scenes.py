"""Environments with their prompts: what an agent is shown at one time, and stepping it on."""

from __future__ import annotations

from typing import Any

import numpy as np

from lamorel_ext.experience import Scene, SceneStep
from lamorel_ext.prompts import PromptHistory
from lamorel_ext.training.saved_envs import as_whole
from lamorel_ext.types import BatchedEnv, ObservationBatch


class PromptedEnv:
    """A batched environment and the prompts of its states.

    Args:
        env: Closed with this object.
        history: Makes the prompts.
        with_experts: True asks the environment for the expert's actions at every step.
    """

    def __init__(self, env: BatchedEnv, history: PromptHistory, with_experts: bool = False) -> None:
        self._env = env
        self._history = history
        self._with_experts = with_experts

    @property
    def num_envs(self) -> int:
        """Environments stepped together."""
        return self._env.num_envs

    def reset(self) -> Scene:
        """Start episode 0 everywhere."""
        observations = self._env.reset()
        return self._scene(observations, self._history.reset(observations))

    def step(self, actions: np.ndarray, running: np.ndarray | None = None) -> SceneStep:
        """Take one action, ``(num_envs,)``, in each environment.

        Args:
            running: Places of those that are still of interest; None means all. Where an
                environment has a ``rest_action``, it leaves the others as they are.
        """
        taken, rest = actions, getattr(self._env, "rest_action", None)
        if running is not None and rest is not None:
            taken = np.full_like(actions, rest)
            taken[running] = actions[running]
        step = self._env.step(taken)
        prompts = self._history.step(actions, step)
        return SceneStep(
            Scene(step.reached, prompts.reached), self._scene(step.current, prompts.current), step
        )

    def state(self) -> dict[str, Any]:
        """Where environments and histories stand, as JSON can hold it."""
        return {"env": self._env.state(), "history": self._history.state()}

    def restore(self, state: dict[str, Any]) -> Scene:
        """Come back to a saved state, also to that of two halves; gives the scene there.

        Raises:
            CheckpointError: ``state`` is not what ``state()`` gives.
        """
        saved = as_whole(state)
        return self._scene(self._env.restore(saved["env"]), self._history.restore(saved["history"]))

    def close(self) -> None:
        """Free what is held. May be called twice."""
        self._env.close()

    def _scene(self, observations: ObservationBatch, prompts: tuple[str, ...]) -> Scene:
        return Scene(
            observations, prompts, self._env.expert_actions() if self._with_experts else None
        )
