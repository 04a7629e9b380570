"""Environments with their prompts: what an agent is shown at one time, and stepping it on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from lamorel_ext.prompts import PromptHistory, with_feedback
from lamorel_ext.student.saved_envs import as_whole
from lamorel_ext.types import BatchedEnv, ObservationBatch, StepBatch


@dataclass(frozen=True)
class Scene:
    """What ``n`` environments show.

    Attributes:
        observations: The symbolic views and sentences.
        prompts: The prompts of these states, without feedback sentences.
        experts: ``(n,)`` int64, the expert's actions, or None where nobody asks for them.
        signals: ``(n,)``, the f of the last guidance, which the prompts are to say in words; None says nothing.
    """

    observations: ObservationBatch
    prompts: tuple[str, ...]
    experts: np.ndarray | None = None
    signals: np.ndarray | None = None

    @property
    def shown(self) -> tuple[str, ...]:
        """The prompts as the LLM reads them, with the feedback sentence where there is one."""
        if self.signals is None:
            return self.prompts
        return tuple(with_feedback(prompt, float(f)) for prompt, f in zip(self.prompts, self.signals, strict=True))

    def saying(self, signals: np.ndarray | None) -> Scene:
        """The same scene, with ``signals`` to be said in the prompts."""
        return dataclasses.replace(self, signals=signals)

    def take(self, indices: np.ndarray) -> Scene:
        """The scene of some of the environments."""
        seen = self.observations
        observations = ObservationBatch(
            missions=tuple(seen.missions[i] for i in indices),
            descriptions=tuple(seen.descriptions[i] for i in indices),
            images=seen.images[indices],
            directions=seen.directions[indices],
        )
        experts = None if self.experts is None else self.experts[indices]
        signals = None if self.signals is None else self.signals[indices]
        return Scene(observations, tuple(self.prompts[i] for i in indices), experts, signals)

    def __len__(self) -> int:
        return len(self.prompts)


class AllStates(Scene):
    """All that a level can show, to evaluate exactly: what an LLM answers is kept as long as its weights stay."""


@dataclass(frozen=True)
class SceneStep:
    """What one step led to; ``reached`` and ``current`` as in ``StepBatch``."""

    reached: Scene
    current: Scene
    step: StepBatch


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

    def step(self, actions: np.ndarray) -> SceneStep:
        """Take one action, ``(num_envs,)``, in each environment."""
        step = self._env.step(actions)
        prompts = self._history.step(actions, step)
        return SceneStep(Scene(step.reached, prompts.reached), self._scene(step.current, prompts.current), step)

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
        return Scene(observations, prompts, self._env.expert_actions() if self._with_experts else None)
