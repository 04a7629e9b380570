"""Environments and evaluators as the configuration asks for them."""

from __future__ import annotations

from typing import Protocol

from lamorel_ext.config import Config
from lamorel_ext.envs.batched import make_batched_env
from lamorel_ext.prompts import PromptHistory
from lamorel_ext.student.evaluate import Evaluator
from lamorel_ext.student.exact import ExactEvaluator, can_enumerate
from lamorel_ext.student.scenes import PromptedEnv
from lamorel_ext.types import BatchedEnv


class EnvFactory(Protocol):
    """The plug point of environments."""

    def __call__(self, config: Config, held_out: bool) -> BatchedEnv:
        """Make the environments of a run.

        Args:
            config: Its ``env`` group names the level.
            held_out: False for training: ``env.num_envs`` copies, whose episodes follow from ``run.seed``. True for evaluation:
                ``run.eval_episodes`` copies, copy ``i`` playing the episode of seed ``run.eval_seed + i``.
        """


def make_env(config: Config, held_out: bool) -> BatchedEnv:
    """The environments of BabyAI-Text. See ``EnvFactory``."""
    env, run = config.env, config.run
    if held_out:
        return make_batched_env(
            env.level, run.eval_episodes, env.language, num_distractors=env.num_distractors, backend=env.backend, num_workers=env.num_workers,
            episode_seed=lambda copy, episode: run.eval_seed + copy,
        )  # fmt: skip
    return make_batched_env(
        env.level,
        env.num_envs,
        env.language,
        run.seed,
        backend=env.backend,
        num_distractors=env.num_distractors,
        num_workers=env.num_workers,
    )


def make_prompted_env(config: Config, env: BatchedEnv, with_experts: bool = False, held_out: bool = False) -> PromptedEnv:
    """Put the prompts of the configuration to an environment.

    Args:
        with_experts: True asks the environment for expert actions even where the arm does not need them.
        held_out: True for evaluation.
    """
    history = PromptHistory(config.env.prompt, config.env.history, config.env.language)
    return PromptedEnv(env, history, with_experts or needs_experts(config, held_out))


def make_evaluator(config: Config, env_factory: EnvFactory, with_experts: bool = False) -> Evaluator:
    """The evaluator of the configuration's level; nothing is built before it is needed."""

    def held_out() -> PromptedEnv:
        return make_prompted_env(config, env_factory(config, True), with_experts, held_out=True)

    def exact() -> ExactEvaluator:
        return ExactEvaluator(config.env, with_experts or needs_experts(config, held_out=True))

    return Evaluator(config, held_out, exact if can_enumerate(config.env) else None)


def needs_experts(config: Config, held_out: bool) -> bool:
    """True where the arm needs the expert's actions: as guidance, as its own, or, in training alone, to clone them."""
    arm = config.arm
    return (arm.agent == "student" and arm.teacher == "oracle") or arm.agent == "bot" or (arm.agent == "cloning" and not held_out)
