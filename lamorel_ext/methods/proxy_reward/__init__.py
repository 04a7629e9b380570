"""The LLM as a proxy for a reward: it is asked whether what happened so far serves the mission, and
its log-odds of "yes" against "no" are added to the environment's reward (Kwon et al. 2023, arXiv
2303.00001), as a potential (Ng et al. 1999), so that the best policy stays the best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from lamorel_ext.agents.llm_teachers import candidate_table
from lamorel_ext.experience import Note, Turn
from lamorel_ext.methods.base import Method, MethodSetting
from lamorel_ext.options import number

ANSWERS = ("yes", "no")


@dataclass(frozen=True)
class ProxyRewardOptions:
    """Options of ``ProxyReward``.

    Attributes:
        coef: Weight of the log-odds, in units of reward per nat.
        every: Steps of an episode between two questions.
        window: Last steps, with their observations, that a question contains.
        limit: Log-odds are clipped to plus and minus this, in nats.
        potential: True: the reward is the discounted change of the log-odds, which are 0 at an
            episode's start and where the task ends it. False, as in the paper: the log-odds
            themselves, at each question and at an episode's end.
        transcripts: ``shuffled`` gives each question the answer of another one of its rollout, or,
            where it is the only one, of the one before it, as a control.
    """

    coef: float = number(0.05, at_least=0)
    every: int = number(4, at_least=1)
    window: int = number(4, at_least=1)
    limit: float = number(5.0, above=0)
    potential: bool = True
    transcripts: Literal["own", "shuffled"] = "own"


class ProxyReward(Method):
    """See the module. Its columns: ``log_odds``, in nats, the mean over the questions before they
    are cut off, and ``bonus``, the mean of what is added to a step's reward.
    """

    name = "proxy_reward"
    columns = ("log_odds", "bonus")
    arguments_type: ClassVar[type | None] = ProxyRewardOptions
    controls = {"transcripts": ("shuffled",)}

    def __init__(self, setting: MethodSetting, options: ProxyRewardOptions) -> None:
        super().__init__(setting, options)
        self._args = options
        self._numbers: dict[str, float] = {}
        self._before = 0.0  # the answer to the last question; none is no opinion
        self.forget_episodes()

    def forget_episodes(self) -> None:
        """See ``Method``."""
        copies = self.setting.config.env.num_envs
        self._told: list[list[str]] = [[] for _ in range(copies)]
        self._steps = [0] * copies
        self._potential = np.zeros(copies)

    def rewards(self, turns: Sequence[Turn]) -> np.ndarray:
        """See ``Method``."""
        places, questions = self._questions(turns)
        odds = self._log_odds(questions)
        if self._args.transcripts == "shuffled":
            odds = self._of_others(odds)
        answers = {}
        for place, value in zip(places, odds, strict=True):
            answers[place] = float(np.clip(value, -self._args.limit, self._args.limit))
        bonus = np.stack([self._bonus(step, turn, answers) for step, turn in enumerate(turns)])
        for (step, env), asked, value in zip(places, questions, odds, strict=True):
            if env == 0:
                answered = f"log-odds of yes against no: {value:+.3f} nats"
                changed = f"{bonus[step, env]:+.4f} to the reward of this step"
                self.notes.append(Note(asked, answered, changed, step))
        self._numbers = {"bonus": float(bonus.mean())}
        if len(odds):
            self._numbers["log_odds"] = float(np.mean(odds))
        rewards: np.ndarray = np.stack([turn.step.rewards for turn in turns]) + bonus
        return rewards

    def learn(self, rollout: Any) -> dict[str, float]:
        """See ``Method``; nobody teaches the LLM."""
        return self._numbers

    def state(self) -> dict[str, Any]:
        """See ``Method``."""
        standing = {"told": self._told, "steps": self._steps, "before": self._before}
        return standing | {"potential": self._potential.tolist()}

    def restore(self, state: dict[str, Any]) -> None:
        """See ``Method``."""
        self._told = [list(lines) for lines in state["told"]]
        self._steps = [int(steps) for steps in state["steps"]]
        self._potential = np.array(state["potential"], dtype=np.float64)
        self._before = float(state.get("before", 0.0))

    def _questions(self, turns: Sequence[Turn]) -> tuple[list[tuple[int, int]], list[str]]:
        """The steps and environments that a question is asked about, and the questions."""
        places, questions = [], []
        for step, turn in enumerate(turns):
            reached = turn.stepped.reached.observations
            for env, action in enumerate(turn.decision.actions):
                seen = ", ".join(reached.descriptions[env])
                told = self._told[env]
                told.append(f"{turn.candidates[env][action]}: {seen}")
                del told[: -self._args.window]
                self._steps[env] += 1
                ended = bool(turn.step.done[env])
                asked_at_end = ended and not self._args.potential
                if self._steps[env] % self._args.every == 0 or asked_at_end:
                    places.append((step, env))
                    questions.append(question(reached.missions[env], told))
                if ended:
                    self._told[env], self._steps[env] = [], 0
        return places, questions

    def _log_odds(self, questions: Sequence[str]) -> np.ndarray:
        """``(n,)``, log P(yes) - log P(no) in nats."""
        if not questions:
            return np.zeros(0)
        table = candidate_table(self.setting.llm, tuple(questions), (ANSWERS,) * len(questions))
        odds: np.ndarray = table[:, 0] - table[:, 1]
        return odds

    def _of_others(self, odds: np.ndarray) -> np.ndarray:
        """``(n,)``: each question has the answer of another one."""
        before = self._before
        if not len(odds):
            return odds
        self._before = float(odds[-1])
        if len(odds) == 1:
            return np.array([before])
        order, mixed = self.setting.rng.permutation(len(odds)), np.empty_like(odds)
        mixed[order] = odds[np.roll(order, 1)]  # one circle of all: nobody keeps their own
        return mixed

    def _bonus(self, step: int, turn: Turn, answers: dict[tuple[int, int], float]) -> np.ndarray:
        """``(num_envs,)``: what is added to the rewards of a step."""
        present = self._potential.copy()
        asked = [env for env in range(len(present)) if (step, env) in answers]
        for env in asked:
            self._potential[env] = answers[step, env]
        if not self._args.potential:
            bonus = np.zeros(len(present))
            bonus[asked] = self._args.coef * self._potential[asked]
            return bonus
        # The task's own end is worth 0 whatever was said; a cut-off episode is not over.
        reached = np.where(turn.step.terminated, 0.0, self._potential)
        self._potential = np.where(turn.step.done, 0.0, self._potential)
        gamma = self.setting.agent.discount.gamma
        shaped: np.ndarray = self._args.coef * (gamma * reached - present)
        return shaped


def question(mission: str, told: Sequence[str]) -> str:
    """What the LLM is asked about an episode.

    Args:
        told: The last steps, oldest first: the action's name and what was seen then.
    """
    lines = "\n".join(told)
    return f"Goal of the agent: {mission}\n{lines}\nDoes this serve the goal, yes or no? Answer:"
