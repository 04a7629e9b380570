"""What a method is: one way in which the LLM and the agent teach each other, beside the feedback
edge. A method is a folder here, or a class of the user's own: ``method._target_`` names it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from lamorel_ext.agents.making import Agent
from lamorel_ext.agents.student_ppo import LossTerm
from lamorel_ext.config import Config
from lamorel_ext.errors import ConfigError
from lamorel_ext.experience import Note, Rollout, Turn
from lamorel_ext.prompts import Wording
from lamorel_ext.types import LlmClient


@dataclass(frozen=True)
class MethodSetting:
    """What a method works with.

    Attributes:
        config: The run.
        llm: The servers; calls of a method are counted as all others are.
        agent: Who learns to act.
        rng: The method's own stream of random numbers, saved with the run.
        reword: From now on everything is put to the LLM in this wording.
    """

    config: Config
    llm: LlmClient
    agent: Agent
    rng: np.random.Generator
    reword: Callable[[Wording], None]

    @property
    def llm_guides(self) -> bool:
        """True where the agent's actions in training depend on what the LLM makes of prompts: not
        where the agent reads them itself (DRRN), nor where the expert acts (cloning).
        """
        return self.agent.reads_prompts and self.config.arm.agent not in ("drrn", "cloning")

    @property
    def llm_speaks(self) -> bool:
        """The same where they depend on texts, which can be made likelier: action heads choose
        without texts.
        """
        return self.llm_guides and not self.config.arm.action_heads


class Method:
    """The half on the client. A subclass overrides what it needs; as it stands nothing happens.

    ``begin_run`` comes first. For each rollout the calls come in the order ``begin_rollout``,
    ``rewards``, ``loss_term``, ``learn``; ``begin_evaluation`` comes before each evaluation, by
    whichever program.

    Args:
        setting: What it works with.
        options: Where the class declares ``arguments_type``, a dataclass: the arguments beside
            ``_target_``, checked by its types and bounds. Else they are keyword arguments.

    Attributes:
        name: Before the names of its columns, as in ``prior_kl``.
        columns: Names of the numbers that ``learn`` gives.
        arguments_type: The dataclass of its options, with ``options.number`` for bounds.
        updaters: The half on the servers: dotted names of ``BaseUpdater`` classes, by the names
            that its update requests have. The client never imports them.
        controls: By option the values that take the information out and keep the mechanism; a
            report compares the method with those that were run.
        notes: See ``NoteTaker``: what a recorded rollout says of it.
    """

    name: ClassVar[str] = "method"
    columns: ClassVar[tuple[str, ...]] = ()
    arguments_type: ClassVar[type | None] = None
    updaters: ClassVar[Mapping[str, str]] = {}
    controls: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    def __init__(self, setting: MethodSetting, options: Any = None) -> None:
        self.setting, self.options = setting, options
        self.notes: list[Note] = []

    def begin_run(self) -> None:
        """A new run begins; not called when one is resumed from a checkpoint or evaluated. A budget
        that is too small can be refused here.
        """

    def begin_rollout(self) -> None:
        """The agent acts to learn from now on."""

    def begin_evaluation(self) -> None:
        """An evaluation begins: use what was learnt, explore nothing."""

    def rewards(self, turns: Sequence[Turn]) -> np.ndarray | None:
        """What the agent learns from in place of the environment's rewards; a method that
        overrides this is refused beside agents that learn from none.

        Evaluations and the columns of training stay with the environment's.

        Returns:
            ``(num_steps, num_envs)``, unscaled; None leaves them as they are.
        """
        return None

    def loss_term(self, rollout: Rollout) -> LossTerm | None:
        """What is added to the student's loss while it learns from this rollout; a method that
        overrides this is refused beside other agents.
        """
        return None

    def learn(self, rollout: Rollout) -> dict[str, float]:
        """Teach the LLM, or learn how to ask it; the agent has learnt by then.

        Returns:
            Numbers by ``columns``; absent ones were not measured.
        """
        return {}

    def state(self) -> dict[str, Any]:
        """What changes while a run goes on, as JSON gives it back: no tuples, texts as keys."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Come back to a saved ``state``; a wording is to be said again, here or when a rollout or
        an evaluation begins.
        """

    def tensors(self) -> dict[str, Tensor]:
        """The same, of weights."""
        return {}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Come back to saved ``tensors``."""

    def forget_episodes(self) -> None:
        """The environments begin anew: nothing is left of the unfinished episodes."""


def make_method(setting: MethodSetting) -> Method:
    """The method that ``method._target_`` names.

    Raises:
        ConfigError: It cannot be had, or refuses this configuration.
    """
    made: Method = setting.config.method.make("method", setting)
    if not isinstance(made, Method):
        raise ConfigError(
            f"method: {setting.config.method.target} gives a {type(made).__name__}, expected a"
            " lamorel_ext.methods.base.Method"
        )
    return made
