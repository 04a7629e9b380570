"""From observations to prompts: the window over each environment's episode that a ``glam`` prompt
shows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lamorel_ext.errors import CheckpointError, ConfigError
from lamorel_ext.prompts.templates import (
    ACTION_NAMES,
    Template,
    action_name,
    can_say,
    glam_prompt,
    glam_prompt_french,
    lamorel_prompt,
)

if TYPE_CHECKING:  # launchers read the templates beside this file, without torch
    from lamorel_ext.types import ObservationBatch, StepBatch


@dataclass(frozen=True)
class PromptStep:
    """Prompts of one step, apart as in ``StepBatch``.

    Attributes:
        reached: Prompts of the states reached, with the history of the episode they belong to: for
            bootstrapping.
        current: Prompts of the states in which the next actions are taken; a new episode's has no
            history.
    """

    reached: tuple[str, ...]
    current: tuple[str, ...]


@dataclass
class _Window:
    """The newest part of one episode: one action between every two observations."""

    mission: str
    """Of the present state: an environment of the user's own may say another one in each."""
    observations: deque[tuple[str, ...]]
    actions: deque[str] = field(default_factory=deque)
    offered: tuple[str, ...] | None = None
    """Texts of the actions of the present state, where the environment says them."""


class PromptHistory:
    """Turns the observations of several environments into prompts, and remembers what their
    templates show.

    Args:
        template: ``lamorel`` (the current observation) or ``glam`` (action list and history).
        history: Observations in a ``glam`` prompt, the current one included.
        language: ``fr`` takes the French form of the ``glam`` template, which can only say go-to
            missions. ``lamorel`` has one form.
    """

    def __init__(
        self,
        template: Template = "lamorel",
        history: int = 3,
        language: Literal["en", "fr"] = "en",
    ) -> None:
        if template not in ("lamorel", "glam"):
            raise ConfigError(f"env.prompt: expected lamorel or glam, got {template!r}")
        if history < 1:
            raise ConfigError(f"env.history: must be at least 1, got {history}")
        self.template = template
        self.history = history
        self.language = language
        self._windows: list[_Window] = []

    def reset(self, observations: ObservationBatch) -> tuple[str, ...]:
        """Forget everything; the prompts of episodes that start here.

        Raises:
            ConfigError: A mission cannot be said in the chosen template and language.
        """
        self._windows = [
            self._start(observations, index) for index in range(len(observations.missions))
        ]
        return self._prompts()

    def step(self, actions: Sequence[int] | np.ndarray, step: StepBatch) -> PromptStep:
        """Add a step to every window and empty those whose episode ended.

        Args:
            actions: ``(num_envs,)``, the environment actions that were taken.
            step: What they led to.
        """
        for place, (window, action, sentences) in enumerate(
            zip(self._windows, actions, step.reached.descriptions, strict=True)
        ):
            offered = window.offered
            window.actions.append(action_name(int(action)) if offered is None else offered[action])
            window.mission = step.reached.missions[place]
            window.offered = _offered(step.reached, place)
            window.observations.append(sentences)
            if len(window.observations) > self.history:
                window.observations.popleft()
                window.actions.popleft()
        reached = self._prompts()
        ended = np.flatnonzero(step.done)
        if not len(ended):
            return PromptStep(reached, reached)
        current = list(reached)
        for index in ended:
            self._windows[index] = self._start(step.current, int(index))
            current[index] = self._prompt(self._windows[index])
        return PromptStep(reached, tuple(current))

    def state(self) -> list[dict[str, Any]]:
        """The windows as plain lists that JSON can hold."""
        return [
            {
                "mission": window.mission,
                "observations": [list(sentences) for sentences in window.observations],
                "actions": list(window.actions),
                **({} if window.offered is None else {"offered": list(window.offered)}),
            }
            for window in self._windows
        ]

    def restore(self, state: Sequence[dict[str, Any]]) -> tuple[str, ...]:
        """Come back to a saved state; gives the prompts there.

        Raises:
            CheckpointError: ``state`` is not what ``state()`` gives.
        """
        try:
            self._windows = [
                _Window(
                    str(saved["mission"]),
                    deque(tuple(sentences) for sentences in saved["observations"]),
                    deque(saved["actions"]),
                    tuple(saved["offered"]) if "offered" in saved else None,
                )
                for saved in state
            ]
            return self._prompts()
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"not a saved prompt history: {error!r}") from error

    def _start(self, observations: ObservationBatch, index: int) -> _Window:
        mission = observations.missions[index]
        if not can_say(mission, self.template, self.language):
            raise ConfigError(
                f"env.prompt: the French glam prompt can only say go-to missions, got {mission!r};"
                " take env.prompt=lamorel or env.language=en"
            )
        return _Window(
            mission,
            deque([tuple(observations.descriptions[index])]),
            offered=_offered(observations, index),
        )

    def _prompts(self) -> tuple[str, ...]:
        return tuple(self._prompt(window) for window in self._windows)

    def _prompt(self, window: _Window) -> str:
        if self.template == "lamorel":
            return lamorel_prompt(window.mission, window.observations[-1])
        render = glam_prompt_french if self.language == "fr" else glam_prompt
        offered = ACTION_NAMES if window.offered is None else window.offered
        return render(window.mission, window.observations, window.actions, offered)


def _offered(observations: ObservationBatch, index: int) -> tuple[str, ...] | None:
    return observations.actions[index] if observations.actions else None
