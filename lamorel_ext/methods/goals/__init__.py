"""The LLM sets goals: it is asked what the agent should reach from what it sees, and the agent is
paid once an episode for each goal that a transition's description comes close to (Du et al. 2023,
ELLM, arXiv 2302.06692).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from lamorel_ext.agents.features import TEXT_SIZE, hashed_words
from lamorel_ext.agents.llm_teachers import candidate_table, sample_texts
from lamorel_ext.errors import ConfigError
from lamorel_ext.experience import Note, Rollout, Turn
from lamorel_ext.methods.base import Method, MethodSetting
from lamorel_ext.methods.goals.sentences import sentence_encoder
from lamorel_ext.options import number
from lamorel_ext.prompts import present_of, state_of

_THING = r"(?:open |closed |locked )?((?:red|green|blue|purple|yellow|grey) (?:ball|box|key|door))"
_SEEN = re.compile(rf"You see an? {_THING} (.+)")
_CARRIED = re.compile(rf"You carry an? {_THING}")
AT_HAND = "1 step forward"


@dataclass(frozen=True)
class GoalsOptions:
    """Options of ``Goals``.

    Attributes:
        coef: Bonus of a goal reached, in units of reward.
        num_goals: Goals that the LLM sets in each state.
        threshold: Cosine similarity from which on a description counts as the goal.
        encoder: ``words`` compares hashed words; ``minilm`` sentences, by all-MiniLM-L6-v2 (extra
            ``goals``).
        choice: ``llm`` scores a list of goals; ``written``: it writes goals of its own, of which
            empty ones are none; ``random`` draws them from the list, as a control, and asks no LLM.
        max_new_tokens: Length of a written goal, at most.
    """

    coef: float = number(0.1, at_least=0)
    num_goals: int = number(1, at_least=1)
    threshold: float = number(0.99, at_least=-1, at_most=1)
    encoder: Literal["words", "minilm"] = "words"
    choice: Literal["llm", "written", "random"] = "llm"
    max_new_tokens: int = number(12, at_least=1)


class Goals(Method):
    """See the module. Its columns: ``reached``, goals paid per step, and ``bonus``, the mean of
    what is added to a step's reward.
    """

    name = "goals"
    columns = ("reached", "bonus")
    arguments_type: ClassVar[type | None] = GoalsOptions
    controls = {"choice": ("random",)}

    def __init__(self, setting: MethodSetting, options: GoalsOptions) -> None:
        super().__init__(setting, options)
        env = setting.config.env
        if env.own or env.language != "en":
            place = f"env._target_ is {env.own.target}" if env.own else "env.language is fr"
            raise ConfigError(f"method: goals reads BabyAI's English sentences, but {place}")
        self._args = options
        words = functools.partial(hashed_words, size=TEXT_SIZE)
        self._encode: Callable[[str], np.ndarray] = (
            words if options.encoder == "words" else sentence_encoder()
        )
        self._numbers: dict[str, float] = {}
        self.forget_episodes()

    def forget_episodes(self) -> None:
        """See ``Method``."""
        copies = self.setting.config.env.num_envs
        self._paid: list[set[str]] = [set() for _ in range(copies)]
        self._carried: list[tuple[str, ...]] = [()] * copies

    def rewards(self, turns: Sequence[Turn]) -> np.ndarray:
        """See ``Method``."""
        goals = self._set_goals(turns)
        bonus = np.zeros((len(turns), len(turns[0].prompts)))
        reached_goals = 0
        for step, turn in enumerate(turns):
            reached = turn.stepped.reached.observations.descriptions
            for env, sentences in enumerate(reached):
                told = captions(sentences, self._carried[env])
                self._carried[env] = carried(sentences)
                for goal in goals[step][env]:
                    if goal not in self._paid[env] and self._close(goal, told):
                        self._paid[env].add(goal)
                        reached_goals += 1
                        bonus[step, env] += self._args.coef
                if env == 0:
                    changed = f"{bonus[step, env]:+.4f} to the reward of this step"
                    asked = self._question(turn.prompts[env])
                    self.notes.append(Note(asked, ", ".join(goals[step][env]), changed, step))
                if turn.step.done[env]:
                    self._paid[env], self._carried[env] = set(), ()
        self._numbers = {"reached": reached_goals / bonus.size, "bonus": float(bonus.mean())}
        return np.stack([turn.step.rewards for turn in turns]) + bonus

    def learn(self, rollout: Rollout) -> dict[str, float]:
        """See ``Method``; nobody teaches the LLM."""
        return self._numbers

    def state(self) -> dict[str, Any]:
        """See ``Method``."""
        carried = [list(carried) for carried in self._carried]
        return {"paid": [sorted(paid) for paid in self._paid], "carried": carried}

    def restore(self, state: dict[str, Any]) -> None:
        """See ``Method``."""
        self._paid = [set(paid) for paid in state["paid"]]
        self._carried = [tuple(carried) for carried in state["carried"]]

    def _set_goals(self, turns: Sequence[Turn]) -> list[list[tuple[str, ...]]]:
        """The goals in each step and environment, in the states acted in."""
        prompts = [prompt for turn in turns for prompt in turn.prompts]
        chosen = self._written(prompts) if self._args.choice == "written" else self._listed(prompts)
        copies = len(turns[0].prompts)
        return [chosen[place : place + copies] for place in range(0, len(chosen), copies)]

    def _listed(self, prompts: Sequence[str]) -> list[tuple[str, ...]]:
        """The best goals of each prompt's list, or some of it."""
        offered = [goals_of(prompt) for prompt in prompts]
        if self._args.choice == "random":
            ranked = [self.setting.rng.permutation(len(texts)) for texts in offered]
        else:
            asked = tuple(map(self._question, prompts))
            table = candidate_table(self.setting.llm, asked, tuple(offered))
            ranked = [
                np.argsort(-scores[: len(texts)], kind="stable")
                for texts, scores in zip(offered, table, strict=True)
            ]
        return [
            tuple(texts[place] for place in order[: self._args.num_goals])
            for texts, order in zip(offered, ranked, strict=True)
        ]

    def _written(self, prompts: Sequence[str]) -> list[tuple[str, ...]]:
        """Goals in the LLM's own words, the same ones wherever a prompt comes again."""
        distinct = tuple(dict.fromkeys(prompts))
        asked = tuple(
            self._question(prompt) for prompt in distinct for _ in range(self._args.num_goals)
        )
        seed = int(self.setting.rng.integers(2**31))
        texts, _ = sample_texts(self.setting.llm, asked, self._args.max_new_tokens, seed)
        size = self._args.num_goals
        goals = {
            prompt: tuple(dict.fromkeys(filter(None, texts[place * size : (place + 1) * size])))
            for place, prompt in enumerate(distinct)
        }
        return [goals[prompt] for prompt in prompts]

    def _question(self, prompt: str) -> str:
        """What the LLM is asked; nothing where goals are drawn."""
        if self._args.choice == "random":
            return ""
        return f"{state_of(prompt)}Next goal:"

    def _close(self, goal: str, told: Sequence[str]) -> bool:
        return goal in told or any(  # a vector's product with itself may round below 1
            float(self._encode(goal) @ self._encode(caption)) >= self._args.threshold
            for caption in told
        )


def goals_of(prompt: str) -> tuple[str, ...]:
    """What could be set as a goal where a prompt's current observation is seen, in the order
    seen.
    """
    seen = present_of(prompt).replace(", You ", "\nYou ")
    objects = dict.fromkeys(name for name, _ in _SEEN.findall(seen))
    near = [text for name in objects for text in (f"go to the {name}", f"pick up the {name}")]
    return (*near, "look around")


def captions(sentences: Sequence[str], carried_before: Sequence[str]) -> list[str]:
    """What a transition came to, in the words that goals have.

    Args:
        sentences: Of the state reached.
        carried_before: What was carried in the state before.
    """
    told = [f"pick up the {name}" for name in carried(sentences) if name not in carried_before]
    for sentence in sentences:
        found = _SEEN.fullmatch(sentence)
        if found and found[2] == AT_HAND:
            told.append(f"go to the {found[1]}")
    return told


def carried(sentences: Sequence[str]) -> tuple[str, ...]:
    """What the agent carries, by the sentences of a state."""
    found = [_CARRIED.fullmatch(sentence) for sentence in sentences]
    return tuple(match[1] for match in found if match)
