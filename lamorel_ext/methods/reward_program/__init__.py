"""The LLM writes the reward: it proposes programs, the student is trained on each for a while from
the same start, and what came of them stands before the next question (Ma et al. 2023, Eureka, arXiv
2310.12931; Xie et al. 2023, Text2Reward, arXiv 2309.11489).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from lamorel_ext.agents.features import views_of
from lamorel_ext.agents.llm_teachers import candidate_table, sample_texts, told_shares
from lamorel_ext.agents.optimizer import below
from lamorel_ext.agents.student import StudentAgent
from lamorel_ext.errors import ConfigError
from lamorel_ext.experience import Note, Rollout, Turn
from lamorel_ext.methods.base import Method, MethodSetting
from lamorel_ext.methods.reward_program.language import (
    TASK,
    Program,
    derived,
    features_of,
    read_program,
)
from lamorel_ext.options import number
from lamorel_ext.randomness import log_softmax, sample_rows

MOST = 4
"""Programs that are proposed at a time, where nobody says how many."""
ANNEALED = ("steps_seen", "student.trust")
"""Tensors of a student whose kappa follows the run's steps."""


@dataclass(frozen=True)
class RewardProgramOptions:
    """Options of ``RewardProgram``.

    Attributes:
        coef: Weight of a program's value beside the environment's reward.
        limit: A program's value is clipped to plus and minus this.
        proposals: ``chosen``: the LLM scores the productions of a grammar. ``written``: it writes
            expressions itself. ``random``: productions are drawn, as a control; it asks no LLM.
        count: Programs that are proposed at a time; 0: as many as the run has rollouts for,
            ``MOST`` at most.
        rounds: How often; the best of a round is tried again beside the next proposals.
        trial_rollouts: Rollouts that the student learns from one program; what the environment paid
            in all but the first, which a student without it collects, is what it is judged by.
        max_terms: Of a program of the grammar.
        max_new_tokens: Of one that is written.
        programs: Programs in place of the LLM's, tried once.
    """

    coef: float = number(0.1, at_least=0)
    limit: float = number(1.0, above=0)
    proposals: Literal["chosen", "written", "random"] = "chosen"
    count: int = number(0, at_least=0)
    rounds: int = number(2, at_least=1)
    trial_rollouts: int = number(2, at_least=2)
    max_terms: int = number(3, at_least=1, at_most=3)
    max_new_tokens: int = number(48, at_least=1)
    programs: tuple[str, ...] = ()


@dataclass
class Search:
    """Where the search stands, as JSON can hold it.

    Attributes:
        round: Rounds that are over.
        tried: Texts and words of the round's programs, of which the one at ``place`` is tried now.
        rollouts: Learnt from it so far; in all but the first of them ``earned`` was paid a step by
            the environment, summed.
        best: Text and words of the best one of the last round, or of this one so far.
        fitness: Its mean reward of a step; None before the first trial of a round is over.
        told: What the next question tells, a line for each program.
        refused: Proposals that were no programs.
    """

    round: int = 0
    tried: list[list[str]] = field(default_factory=list)
    place: int = 0
    rollouts: int = 0
    earned: float = 0.0
    best: list[str] | None = None
    fitness: float | None = None
    told: list[str] = field(default_factory=list)
    refused: int = 0


class RewardProgram(Method):
    """See the module. The student of a round's best program goes on, also when the search is over.

    Its columns: ``bonus``, the mean of what is added to a step's reward; ``fitness``, what the
    environment paid a step in the best trial of the round; ``refused``, proposals so far that were
    no programs. In a row of the curve, means over the rollouts since the last one.
    """

    name = "reward_program"
    columns = ("bonus", "fitness", "refused")
    arguments_type: ClassVar[type | None] = RewardProgramOptions
    controls = {"proposals": ("random",)}

    def __init__(self, setting: MethodSetting, options: RewardProgramOptions) -> None:
        super().__init__(setting, options)
        agent = setting.agent
        if not isinstance(agent, StudentAgent) or not agent.task.symbolic:
            raise ConfigError("method: reward_program needs a student that sees BabyAI's views")
        problems = []
        if setting.config.feedback_trains:
            problems.append(
                "feedback.signal: must be none beside reward_program, whose trials begin with the"
                " same student: the teacher would keep what it learnt in the others"
            )
        for place, text in enumerate(options.programs):
            try:
                read_program(text)
            except ConfigError as error:
                problems.append(f"method.programs[{place}]: {error.problems[0]}")
        if options.programs and options.proposals == "random":
            problems.append(
                "method.proposals: must not be random where method.programs names what is tried:"
                " it would be no control"
            )
        if problems:
            raise ConfigError(problems)
        self._args, self._agent = options, agent
        self._rounds = 1 if options.programs else options.rounds
        config = setting.config
        self._size = config.num_steps * config.env.num_envs
        self._rollouts = math.ceil(config.run.total_steps / self._size)
        trials = self._rollouts // options.trial_rollouts - (self._rounds - 1)
        self._count = options.count or max(1, min(MOST, trials // self._rounds))
        self._search = Search()
        self._program: Program | None = None
        self._start: dict[str, Tensor] = {}
        self._best: dict[str, Tensor] = {}
        self._numbers: dict[str, float] = {}

    def begin_run(self) -> None:
        """See ``Method``.

        Raises:
            ConfigError: The run may end before the search does, with a student of a trial.
        """
        args, steps = self._args, self.setting.config.run.total_steps
        if args.programs:
            trials, of = len(set(args.programs)), f"method.programs={list(args.programs)}"
        else:  # from the second round on the best of the one before is tried again
            trials = self._rounds * self._count + self._rounds - 1
            of = f"method.rounds={args.rounds}, method.count={self._count}"
        needed = trials * args.trial_rollouts
        if needed > self._rollouts:
            raise ConfigError(
                f"{of}, method.trial_rollouts={args.trial_rollouts}: up to {needed} rollouts are"
                f" needed, but run.total_steps={steps} are {self._rollouts} of {self._size} steps"
                " (env.num_envs x student.num_steps);"
                f" run.total_steps={needed * self._size} are enough"
            )

    def rewards(self, turns: Sequence[Turn]) -> np.ndarray | None:
        """See ``Method``."""
        missions = turns[0].stepped.reached.observations.missions
        if self._search.round < self._rounds and not self._search.tried:
            self._begin_round(missions[0])
        self._numbers = {"bonus": 0.0}
        if self._program is None:
            return None
        bonus = np.stack([self._bonus(turn, self._program) for turn in turns])
        self._numbers = {"bonus": float(bonus.mean())}
        rewards: np.ndarray = np.stack([turn.step.rewards for turn in turns]) + bonus
        return rewards

    def learn(self, rollout: Rollout) -> dict[str, float]:
        """See ``Method``: judges the program whose trial is over, and goes on with the next."""
        search = self._search
        if search.tried:
            search.rollouts += 1
            if search.rollouts > 1:
                search.earned += float(rollout.rewards.mean())
            if search.rollouts == self._args.trial_rollouts:
                self._end_trial()
        numbers = self._numbers | {"refused": float(search.refused)}
        return numbers | ({} if search.fitness is None else {"fitness": search.fitness})

    def state(self) -> dict[str, Any]:
        """See ``Method``."""
        return asdict(self._search)

    def restore(self, state: dict[str, Any]) -> None:
        """See ``Method``."""
        self._search = Search(**state)
        self._choose()

    def tensors(self) -> dict[str, Tensor]:
        """See ``Method``: the student at the start of a trial, and the one of the best so far."""
        held = {"start": self._start, "best": self._best}
        return {f"{of}.{name}": own for of, kept in held.items() for name, own in kept.items()}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """See ``Method``."""
        self._start, self._best = below("start.", tensors), below("best.", tensors)

    def _begin_round(self, mission: str) -> None:
        """Ask for programs, and put the best of the round before first among them."""
        search = self._search
        told, search.told = "".join(f"Reward: {line}\n" for line in search.told), []
        proposed = self._proposed(f"Goal of the agent: {mission}\n{told}")
        best = [] if search.best is None else [search.best]
        by_text = {own[0]: own for own in (*best, *proposed)}
        search.tried = list(by_text.values())
        search.fitness, self._start, self._best = None, self._agent.tensors(), {}
        if not proposed:  # the student goes on as it did until the next rollout asks again
            search.tried, search.round = [], search.round + 1
        self._choose()

    def _end_trial(self) -> None:
        """Judge a program; the next one's trial begins, or the best one's student goes on."""
        search = self._search
        own, earned = search.tried[search.place], search.earned / (search.rollouts - 1)
        search.told.append(f"{own[1]}. Result: {earned:.4f}")
        self.notes.append(Note("", own[1], f"judged: the environment paid {earned:.4f} a step"))
        if search.fitness is None or earned > search.fitness:
            search.best, search.fitness, self._best = own, earned, self._agent.tensors()
        search.place, search.rollouts, search.earned = search.place + 1, 0, 0.0
        if search.place == len(search.tried):
            self._become(self._best)
            search.tried, search.place, search.round = [], 0, search.round + 1
            self._start, self._best = {}, {}
        else:
            self._become(self._start)
        self._choose()

    def _become(self, tensors: dict[str, Tensor]) -> None:
        """Have an earlier student go on; an annealed kappa stays where the run's steps are."""
        own = self._agent.tensors()
        kept = ANNEALED if self._agent.args.kappa_mode == "annealed" else ()
        self._agent.load_tensors(tensors | {name: own[name] for name in kept})

    def _choose(self) -> None:
        """Pay by the program that is tried, or else by the best one."""
        search = self._search
        own = search.tried[search.place] if search.tried else search.best
        self._program = read_program(*own) if own else None
        if own:
            self.notes.append(Note("", own[1], f"the student is paid by {own[0]}"))

    def _bonus(self, turn: Turn, program: Program) -> np.ndarray:
        """``(num_envs,)``: what a program adds to the rewards of a step."""
        seen, decision = turn.stepped.reached.observations, turn.decision
        if decision.features is None:
            raise ValueError("this rollout is not a student's")
        before = views_of(decision.features)
        features = features_of(before, seen.images, decision.actions, seen.missions)
        limit = self._args.limit
        paid: np.ndarray = self._args.coef * np.clip(program.pays(features), -limit, limit)
        return paid

    def _proposed(self, about: str) -> list[list[str]]:
        """Texts and words of the programs to try, by goal and what came of those before."""
        args, setting = self._args, self.setting
        if args.programs:
            return [[text, text] for text in args.programs]
        if args.proposals == "written":
            return self._written(about)

        def choose(rule: str, options: tuple[str, ...]) -> str:
            prompt = f"{about}Better reward: {rule}".strip()
            table = np.zeros((1, len(options)))
            if args.proposals == "chosen":
                table = candidate_table(setting.llm, (prompt,), (options,))
            chosen = options[int(sample_rows(table, setting.rng)[0])]
            answered = told_shares(options, log_softmax(table)[0])
            self.notes.append(Note(prompt, answered, f"chosen: {chosen}"))
            return chosen

        programs = [derived(choose, args.max_terms) for _ in range(self._count)]
        return [[program.text, program.words] for program in programs]

    def _written(self, about: str) -> list[list[str]]:
        """What the LLM writes, where it is a program; what is none is told in the next question."""
        args, search = self._args, self._search
        prompts = (f"{TASK}{about}Better reward:",) * self._count
        seed = int(self.setting.rng.integers(2**31))
        texts, _ = sample_texts(self.setting.llm, prompts, args.max_new_tokens, seed)
        found = []
        for text in texts:
            line = text.strip("`\n ").partition("\n")[0].strip("` ")
            try:
                found.append([read_program(line).text] * 2)
            except ConfigError as error:
                search.refused += 1
                search.told.append(f"{line[:80]}. Error: {error.problems[0][:160]}")
                self.notes.append(Note(prompts[0], line, f"refused: {error.problems[0]}"))
            else:
                self.notes.append(Note(prompts[0], line, "will be tried"))
        return found
