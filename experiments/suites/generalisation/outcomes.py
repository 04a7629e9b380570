"""Testing frozen policies: each run under each condition, beside the unchanged condition evaluated
in the same way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from experiments.report.statistics import Interval, mean_interval, wilson_interval
from experiments.runs.build import llm_of
from experiments.suites.generalisation.conditions import (
    TEXT_GROUPS,
    UNCHANGED,
    Condition,
    changed,
    hindrance,
)
from lamorel_ext.agents.actors import UniformActor
from lamorel_ext.config import Config
from lamorel_ext.errors import ConfigError, LevelError
from lamorel_ext.experience import Actor
from lamorel_ext.methods.feedback.signals import FeedbackSignals
from lamorel_ext.training.building import make_env, make_evaluator
from lamorel_ext.training.evaluate import Evaluation
from lamorel_ext.training.recorder import Checkpoint
from lamorel_ext.training.rewording import RewordedClient
from lamorel_ext.training.run import TrainingRun

RANDOM = "random actions"
ZERO_SHOT = "zero-shot"
Kind = Literal["auto", "episodes"]


@dataclass(frozen=True)
class Policy:
    """Somebody to be tested.

    Attributes:
        arm: Label of the arm.
        config: Of the run; its seed is the policy's.
        load: Reads the checkpoint; None is a policy that was never trained.
        acts: False for uniformly random actions.
    """

    arm: str
    config: Config
    load: Callable[[], Checkpoint] | None = None
    acts: bool = True


@dataclass(frozen=True)
class Outcome:
    """One policy under one condition.

    Attributes:
        arm: Label of the arm.
        seed: Of the run.
        condition: The test.
        reads: True for a policy that reads prompts.
        config: What it was evaluated with.
        result: How it did.
        unchanged: How it does in the condition it was trained in: exactly where ``result`` is
            exact, else on episodes of the same seeds.
    """

    arm: str
    seed: int
    condition: Condition
    reads: bool
    config: Config
    result: Evaluation
    unchanged: Evaluation

    @property
    def change(self) -> float:
        """Change of the success rate."""
        return self.result.success - self.unchanged.success

    def interval(self) -> Interval:
        """The success rate, with Wilson's interval over episodes; an exact rate has none."""
        if self.result.exact:
            return Interval(self.result.success, np.nan, np.nan)
        return wilson_interval(int(self.result.successes.sum()), len(self.result.successes))

    def change_interval(self) -> Interval:
        """The change, with Student's t interval over episodes, which are paired; an exact change
        has none.
        """
        if self.result.exact:
            return Interval(self.change, np.nan, np.nan)
        return mean_interval(
            [self.result.successes.astype(float) - self.unchanged.successes.astype(float)]
        ).within(-1, 1)


@dataclass(frozen=True)
class LeftOut:
    """A test that an arm could not take, and why."""

    arm: str
    condition: Condition
    reason: str


@dataclass
class Bench:
    """One policy and everything it is tested with.

    Attributes:
        policy: Whose configuration says how.
        actor: The policy itself.
        signals: What prompts say of the last guidance, where the run has them say it.
        client: Says things in other words; None where there is no LLM.
        unchanged: How it does in the condition it was trained in, as far as that was needed.
    """

    policy: Policy
    actor: Actor
    signals: FeedbackSignals | None = None
    client: RewordedClient | None = None
    unchanged: dict[Kind, Evaluation] = field(default_factory=dict)

    def examine(self, condition: Condition) -> Outcome:
        """Evaluate under a condition.

        Raises:
            ConfigError: Its missions cannot be said in the run's prompts, or it changes nothing
                that the policy reads.
            LevelError: It has no valid scenes.
        """
        arm, trained, reads = self.policy.arm, self.policy.config, self.actor.reads_prompts
        config = changed(trained, condition)
        result = self._evaluate(config, condition, "auto")
        if condition.wording and self.client is not None and not self.client.changed:
            raise ConfigError("nothing that the policy reads or chooses from has these words")
        kind: Kind = "auto" if result.exact else "episodes"
        if kind not in self.unchanged:
            self.unchanged[kind] = self._evaluate(trained, UNCHANGED, kind)
        unchanged = self.unchanged[kind]
        return Outcome(arm, trained.run.seed, condition, reads, config, result, unchanged)

    def _evaluate(self, config: Config, condition: Condition, kind: Kind) -> Evaluation:
        how = dataclasses.replace(config, run=dataclasses.replace(config.run, evaluation=kind))
        worded = nullcontext() if self.client is None else self.client.speaking(condition.wording)
        with closing(make_evaluator(how, make_env)) as evaluator, worded:
            return evaluator.evaluate(self.actor, self.signals)


def examine_policy(
    policy: Policy, conditions: Sequence[Condition], client: RewordedClient
) -> tuple[list[Outcome], list[LeftOut]]:
    """Load a policy and put it under every condition that it can take.

    Raises:
        CheckpointError: It cannot be loaded.
        RpcError: A server is gone.
    """
    if not policy.acts:
        others = [each for each in conditions if each.group not in TEXT_GROUPS]
        return _examine(Bench(policy, UniformActor()), others)
    llm = llm_of(policy.config, client)
    with TrainingRun(policy.config, llm, make_env) as run:
        run.take_over(policy.load() if policy.load is not None else None)
        signals = run.edge.signals if run.edge.speaks else None
        bench = Bench(policy, run.agent, signals, None if llm is None else client)
        return _examine(bench, conditions)


def _examine(bench: Bench, conditions: Sequence[Condition]) -> tuple[list[Outcome], list[LeftOut]]:
    outcomes, left_out, policy = [], [], bench.policy
    for condition in conditions:
        reason = hindrance(policy.config, condition)
        if not reason:
            try:
                outcomes.append(bench.examine(condition))
            except (ConfigError, LevelError) as error:
                reason = str(error)
        if reason:
            left_out.append(LeftOut(policy.arm, condition, reason))
    return outcomes, left_out
