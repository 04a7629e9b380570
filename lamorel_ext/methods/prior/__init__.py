"""The LLM's action distribution as a prior: the student is drawn to it by a KL divergence whose
weight anneals (Hu and Sadigh 2023, InstructRL, arXiv 2304.07297; Zhou et al. 2023, LLM4Teach,
arXiv 2311.13373).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from lamorel_ext.agents.llm_teachers import candidate_table, told_shares
from lamorel_ext.agents.network import IMPOSSIBLE
from lamorel_ext.agents.student import StudentAgent
from lamorel_ext.agents.student_ppo import LossTerm
from lamorel_ext.errors import ConfigError
from lamorel_ext.experience import Note, Rollout
from lamorel_ext.methods.base import Method, MethodSetting
from lamorel_ext.options import number
from lamorel_ext.randomness import log_softmax, uniform
from lamorel_ext.rl import kl_divergence


@dataclass(frozen=True)
class PriorOptions:
    """Options of ``Prior``.

    Attributes:
        coef: Weight of the divergence at the start, in units of the student's loss.
        anneal_steps: Environment steps, over all environments, until the weight is 0, on a straight
            line; 0 keeps it.
        direction: ``student``: KL(student || LLM), as InstructRL has it. ``llm``: KL(LLM ||
            student), as a teacher's distribution is distilled.
        temperature: The LLM's log-probabilities are divided by it.
        source: Whose distribution: the ``llm``'s, or ``uniform`` as a control, which asks no LLM.
    """

    coef: float = number(0.5, at_least=0)
    anneal_steps: int = number(0, at_least=0)
    direction: Literal["student", "llm"] = "student"
    temperature: float = number(1.0, above=0)
    source: Literal["llm", "uniform"] = "llm"


class Prior(Method):
    """See the module. Its columns: ``kl``, in nats, the mean over the rollout's minibatches, and
    ``weight``.
    """

    name = "prior"
    columns = ("kl", "weight")
    arguments_type: ClassVar[type | None] = PriorOptions
    controls = {"source": ("uniform",)}

    def __init__(self, setting: MethodSetting, options: PriorOptions) -> None:
        super().__init__(setting, options)
        if not isinstance(setting.agent, StudentAgent):
            raise ConfigError(
                f"method: a prior draws a student, but arm.agent is {setting.config.arm.agent}"
            )
        self._args = options
        self._steps_seen = 0
        self._weight = 0.0
        self._divergences: list[Tensor] = []

    def loss_term(self, rollout: Rollout) -> LossTerm | None:
        """See ``Method``."""
        self._weight, self._divergences = self._present_weight(), []
        self._steps_seen += rollout.rewards.size
        if self._weight == 0.0:
            return None
        table = self._log_probs(rollout)
        copies = len(rollout.turns[0].prompts)
        for step, turn in enumerate(rollout.turns):
            answered = told_shares(turn.candidates[0], table[step * copies])
            changed = f"draws the student with weight {self._weight:.3f}"
            self.notes.append(Note(turn.prompts[0], answered, changed, step))
        prior = torch.from_numpy(table).float()

        def term(rows: Tensor, log_probs: Tensor) -> Tensor:
            pair = (log_probs, prior[rows])
            divergence = kl_divergence(*(pair if self._args.direction == "student" else pair[::-1]))
            mean = divergence.mean()
            self._divergences.append(mean.detach())
            return self._weight * mean

        return term

    def learn(self, rollout: Rollout) -> dict[str, float]:
        """See ``Method``; nobody teaches the LLM."""
        found = {"weight": self._weight}
        if self._divergences:
            found["kl"] = float(torch.stack(self._divergences).mean())
        return found

    def state(self) -> dict[str, Any]:
        """See ``Method``."""
        return {"steps_seen": self._steps_seen}

    def restore(self, state: dict[str, Any]) -> None:
        """See ``Method``."""
        self._steps_seen = int(state["steps_seen"])

    def _present_weight(self) -> float:
        args = self._args
        left = 1.0 - self._steps_seen / args.anneal_steps if args.anneal_steps else 1.0
        return args.coef * max(0.0, left)

    def _log_probs(self, rollout: Rollout) -> np.ndarray:
        """``(num_steps * num_envs, actions)`` in nats: the LLM's distribution in each state."""
        prompts = tuple(prompt for turn in rollout.turns for prompt in turn.prompts)
        offered = tuple(texts for turn in rollout.turns for texts in turn.candidates)
        if self._args.source == "uniform":
            with np.errstate(divide="ignore"):
                table = np.log(uniform(offered))
        else:
            table = candidate_table(self.setting.llm, prompts, offered) / self._args.temperature
        # As the student has it: what a state does not offer is about impossible for both.
        logs: np.ndarray = np.maximum(log_softmax(table), IMPOSSIBLE)
        return logs
