"""Policies to compare with, on the same held-out episodes: uniformly random actions, and the
expert.
"""

from __future__ import annotations

from contextlib import closing

from lamorel_ext.agents.actors import ExpertActor, UniformActor
from lamorel_ext.config import Config
from lamorel_ext.training.building import EnvFactory, make_env, make_evaluator
from lamorel_ext.training.evaluate import Evaluation


def evaluate_random(
    config: Config, env_factory: EnvFactory = make_env, actions: tuple[int, ...] | None = None
) -> Evaluation:
    """Uniformly random actions, evaluated as ``config.run`` says.

    Args:
        actions: Ids to choose from; None means all that are offered.
    """
    with closing(make_evaluator(config, env_factory)) as evaluator:
        return evaluator.evaluate(UniformActor() if actions is None else UniformActor(actions))


def evaluate_bot(config: Config, env_factory: EnvFactory = make_env) -> Evaluation:
    """The environment's expert (shortest paths, or the BabyAI bot), evaluated as ``config.run``
    says.
    """
    with closing(make_evaluator(config, env_factory, with_experts=True)) as evaluator:
        return evaluator.evaluate(ExpertActor())
