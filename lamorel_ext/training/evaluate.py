"""Evaluation with the policy frozen and sampled as it was trained: exactly where that is possible,
otherwise on held-out episodes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from lamorel_ext.config import Config
from lamorel_ext.envs.own_copies import LONGEST
from lamorel_ext.errors import ConfigError
from lamorel_ext.experience import Actor
from lamorel_ext.methods.feedback.signals import FeedbackSignals
from lamorel_ext.randomness import Draws, make_rng
from lamorel_ext.rl import td_errors
from lamorel_ext.training import deciding
from lamorel_ext.training.exact import ExactEvaluator
from lamorel_ext.training.exactness import why_not_exact
from lamorel_ext.training.scenes import PromptedEnv

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """How good a policy is.

    Attributes:
        success: Share of episodes that succeed.
        expected_return: Mean unscaled return.
        exact: True where both are exact.
        successes: ``(episodes,)`` bool of a simulated evaluation, else empty.
        returns: ``(episodes,)`` float64, unscaled, likewise.
        lengths: ``(episodes,)`` int64, steps, likewise.
        failures: ``(episodes,)`` bool, True where the mission itself ended the episode without a
            reward, likewise.
    """

    success: float
    expected_return: float
    exact: bool
    successes: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))
    returns: np.ndarray = field(default_factory=lambda: np.zeros(0))
    lengths: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    failures: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))


def run_episodes(
    env: PromptedEnv, actor: Actor, draws: Draws, signals: FeedbackSignals | None = None
) -> Evaluation:
    """One episode in each copy of the environment, from a reset.

    Args:
        env: Has as many copies as episodes are wanted.
        actor: Asked only about copies whose episode still runs.
        draws: Streams behind the samples.
        signals: Computes what the prompts say of the last guidance, from the actor's own values;
            None says nothing.
    """
    scene = env.reset()
    successes, failures = np.zeros(env.num_envs, dtype=bool), np.zeros(env.num_envs, dtype=bool)
    returns, lengths = np.zeros(env.num_envs), np.zeros(env.num_envs, dtype=np.int64)
    running = np.arange(env.num_envs)
    said = None
    while len(running):
        shown = scene.take(running).saying(said)
        decision = deciding.decide(actor, shown, draws)
        actions = np.zeros(env.num_envs, dtype=np.int64)
        actions[running] = decision.actions
        stepped = env.step(actions, running)
        rewards, done = stepped.step.rewards[running], stepped.step.done[running]
        terminated = stepped.step.terminated[running]
        returns[running] += rewards
        lengths[running] += 1
        told = stepped.step.succeeded
        successes[running] = returns[running] > 0 if told is None else told[running]
        failures[running] = terminated & ~successes[running]
        if signals is not None:
            next_values = deciding.values(actor, stepped.reached.take(running))
            errors = td_errors(
                rewards * actor.discount.reward_scale,
                decision.values,
                next_values,
                terminated,
                actor.discount.gamma,
            )
            said = signals.step(errors, shown.prompts, done, envs=running)[~done]
        running, scene = running[~done], stepped.current
        if len(running) and (steps := int(lengths.max())) % LONGEST == 0:
            log.warning(
                "an evaluation waits for %d of its %d episodes to end, after %d steps",
                len(running),
                env.num_envs,
                steps,
            )
    return Evaluation(
        float(successes.mean()), float(returns.mean()), False, successes, returns, lengths, failures
    )


class Evaluator:
    """Evaluates exactly where the configuration and the actor allow it, on held-out episodes
    otherwise.

    Args:
        config: Its ``run`` group says how.
        make_env: Makes the held-out environment, with ``run.eval_episodes`` copies; called when it
            is first needed.
        make_exact: Makes the exact evaluator; called when it is first needed, and only where
            ``why_not_exact`` names no reason. None where the environment does not offer one.
    """

    def __init__(
        self,
        config: Config,
        make_env: Callable[[], PromptedEnv],
        make_exact: Callable[[], ExactEvaluator] | None,
    ) -> None:
        self._config = config
        self._make_env = make_env
        self._make_exact = make_exact
        self._env: PromptedEnv | None = None
        self._exact: ExactEvaluator | None = None

    def evaluate(self, actor: Actor, signals: FeedbackSignals | None = None) -> Evaluation:
        """Evaluate an actor.

        Args:
            actor: The policy.
            signals: What prompts say of the last guidance, where the run has them say it; it is
                copied, not changed.

        Raises:
            ConfigError: ``run.evaluation`` is ``exact`` and this policy cannot be evaluated
                exactly.
        """
        kind = self._config.run.evaluation
        hindrance = self.hindrance(actor, signals)
        if kind == "exact" and hindrance:
            raise ConfigError(f"run.evaluation: exact is not possible: {hindrance}")
        if kind == "episodes" or hindrance or self._make_exact is None:
            return self._simulate(actor, signals)
        if self._exact is None:
            self._exact = self._make_exact()
        return Evaluation(*self._exact.evaluate(actor), exact=True)

    def hindrance(self, actor: Actor, signals: FeedbackSignals | None = None) -> str:
        """Why an actor cannot be evaluated exactly; empty where it can."""
        if self._make_exact is None and not self._config.env.own:
            return (
                "the run brings an environment of its own, which offers no exact_evaluator"
                " (training.building.EnumerableEnvs)"
            )
        return why_not_exact(
            self._config.env,
            actor.reads_prompts,
            actor.enumerable,
            signals is not None,
            self._make_exact is not None,
        )

    def close(self) -> None:
        """Close the held-out environment. May be called twice."""
        if self._env is not None:
            self._env.close()
            self._env = None

    def _simulate(self, actor: Actor, signals: FeedbackSignals | None) -> Evaluation:
        if self._env is None:
            self._env = self._make_env()
        seed = self._config.run.seed
        if signals is not None:
            signals = signals.fork(self._env.num_envs, make_rng(seed, "evaluation"))
        return run_episodes(self._env, actor, Draws.of_evaluation(seed), signals)
