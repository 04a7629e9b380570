"""Environments and evaluators as the configuration asks for them."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from lamorel_ext.config import Config
from lamorel_ext.envs.babyai.batch_checks import EpisodeSeed
from lamorel_ext.envs.babyai.batched import make_batched_env, training_seeds
from lamorel_ext.envs.own import look_at, own_batch
from lamorel_ext.envs.own_keys import offers
from lamorel_ext.errors import ConfigError
from lamorel_ext.experience import BABYAI, Actor, StepListener
from lamorel_ext.prompts import PromptHistory
from lamorel_ext.training.evaluate import Evaluator
from lamorel_ext.training.exact import ExactEvaluator
from lamorel_ext.training.pipeline import HalvedEnv, can_be_halved, worth_halving
from lamorel_ext.training.scenes import PromptedEnv
from lamorel_ext.types import BatchedEnv, TaskSpec


class EnvFactory(Protocol):
    """The plug point of environments.

    Policies are evaluated on held-out episodes of what it makes, whatever ``env.level`` says; a
    factory that is an ``EnumerableEnvs`` as well has them evaluated exactly where that is possible.
    """

    def __call__(self, config: Config, held_out: bool, copies: range | None = None) -> BatchedEnv:
        """Make the environments of a run.

        Args:
            config: Its ``env`` group names the level.
            held_out: False for training: ``env.num_envs`` copies, whose episodes follow from
                ``run.seed``. True for evaluation: ``run.eval_episodes`` copies, copy ``i`` playing
                the episode of seed ``run.eval_seed + i``.
            copies: Which of these copies are wanted, a range of consecutive numbers; None means
                all. Copy ``i`` has the same episodes whichever others are made with it. Given only
                where ``run.pipeline`` has the environments stepped in two halves, or several RL
                clients share them.
        """


@runtime_checkable
class EnumerableEnvs(Protocol):
    """What a factory offers besides, whose environments' states can be listed."""

    def exact_evaluator(self, config: Config, with_experts: bool) -> ExactEvaluator:
        """Solves the environments of the configuration; asked only where ``why_not_exact`` names no
        reason.

        Args:
            config: As the factory gets it.
            with_experts: True where the actor has to see the expert's actions.
        """


class ConfiguredEnvs:
    """The environment that ``env._target_`` names, or else a level of BabyAI-Text: an
    ``EnvFactory`` and ``EnumerableEnvs``.
    """

    def __call__(self, config: Config, held_out: bool, copies: range | None = None) -> BatchedEnv:
        """See ``EnvFactory``."""
        env, run = config.env, config.run
        copies = copies or range(run.eval_episodes if held_out else env.num_envs)
        first = copies.start
        seeds: EpisodeSeed = (
            (lambda copy, episode: run.eval_seed + first + copy)
            if held_out
            else training_seeds(run.seed, first)
        )
        if env.own:
            return own_batch(env, len(copies), seeds, first)
        return make_batched_env(
            env.level,
            len(copies),
            env.language,
            episode_seed=seeds,
            backend=env.backend,
            num_distractors=env.num_distractors,
            num_workers=env.num_workers,
        )

    def exact_evaluator(self, config: Config, with_experts: bool) -> ExactEvaluator:
        """See ``EnumerableEnvs``."""
        if config.env.own:
            offered: ExactEvaluator = config.env.own.locate("env").exact_evaluator(
                config, with_experts
            )
            return offered
        return ExactEvaluator(config.env, with_experts)


make_env = ConfiguredEnvs()
"""The factory of every run that brings no other."""


def task_of(config: Config, env_factory: EnvFactory = make_env) -> TaskSpec:
    """What the environments of a run ask of its agent.

    Raises:
        ConfigError: The environment cannot be had, or has no expert where the arm needs one.
        EnvError: It is no environment.
    """
    if not config.env.own or not isinstance(env_factory, ConfiguredEnvs):
        return BABYAI
    task = look_at(config.env, config.run.eval_seed)
    if needs_experts(config, held_out=False) and not task.has_expert:
        arm = config.arm
        key, kind = ("teacher", arm.teacher) if arm.agent == "student" else ("agent", arm.agent)
        raise ConfigError(
            f"arm.{key}: {kind} needs an expert, but {config.env.own.target} offers no"
            " expert_action"
        )
    return task


def make_prompted_env(
    config: Config, env: BatchedEnv, with_experts: bool = False, held_out: bool = False
) -> PromptedEnv:
    """Put the prompts of the configuration to an environment.

    Args:
        with_experts: True asks the environment for expert actions even where the arm does not need
            them.
        held_out: True for evaluation.
    """
    history = PromptHistory(config.env.prompt, config.env.history, config.env.language)
    return PromptedEnv(env, history, with_experts or needs_experts(config, held_out))


def make_training_env(
    config: Config, env_factory: EnvFactory, actor: Actor, listener: StepListener, remote: bool
) -> PromptedEnv | HalvedEnv:
    """The training environments, in two halves where ``run.pipeline`` has it so.

    Args:
        remote: True where the LLM servers are processes of their own.
    """
    env, pipeline = env_factory(config, False), config.run.pipeline
    if pipeline is not False and can_be_halved(actor, listener, env.num_envs):
        if pipeline is True or (remote and worth_halving(env, config.lamorel_args)):
            env.close()
            return make_halves(config, env_factory)
    return make_prompted_env(config, env)


def make_halves(config: Config, env_factory: EnvFactory) -> HalvedEnv:
    """The training environments in two halves, the first one larger by one where their number is
    odd.
    """
    num_envs = config.env.num_envs
    middle = (num_envs + 1) // 2
    return HalvedEnv(
        [
            make_prompted_env(config, env_factory(config, False, copies))
            for copies in (range(middle), range(middle, num_envs))
        ]
    )


def make_evaluator(
    config: Config, env_factory: EnvFactory, with_experts: bool = False
) -> Evaluator:
    """The evaluator of the configuration's level; nothing is built before it is needed."""

    def held_out() -> PromptedEnv:
        return make_prompted_env(config, env_factory(config, True), with_experts, held_out=True)

    chosen = isinstance(env_factory, ConfiguredEnvs) and config.env.own
    if not isinstance(env_factory, EnumerableEnvs) or (
        chosen and not offers(config.env, "exact_evaluator")
    ):
        return Evaluator(config, held_out, None)
    offered, experts = env_factory, with_experts or needs_experts(config, held_out=True)
    return Evaluator(config, held_out, lambda: offered.exact_evaluator(config, experts))


def needs_experts(config: Config, held_out: bool) -> bool:
    """True where the arm needs the expert's actions: as guidance, as its own, or, in training
    alone, to clone them.
    """
    arm = config.arm
    return (
        (arm.agent == "student" and arm.teacher == "oracle")
        or arm.agent == "bot"
        or (arm.agent == "cloning" and not held_out)
    )
