"""Several copies of one level stepped together, each resetting itself: the batch that a rollout
steps.

The backends give the same steps. ``minigrid`` runs any level, one copy after the other;
``processes`` does so in several processes; ``vector`` runs levels that lie in one room, with doors
or without, in arrays over all copies; ``table`` looks GoToRedBallNoDists up.
"""

from __future__ import annotations

from lamorel_ext.envs.babyai.arrays.table_batch import TableBatch
from lamorel_ext.envs.babyai.arrays.vector_batch import VectorBatch
from lamorel_ext.envs.babyai.backends import Backend, choose_backend
from lamorel_ext.envs.babyai.batch_checks import EpisodeSeed
from lamorel_ext.envs.babyai.describe import Language
from lamorel_ext.envs.babyai.episodes import SEED_BOUND, TrainingSeeds
from lamorel_ext.envs.babyai.gym_env import sentence_language
from lamorel_ext.envs.babyai.minigrid_batch import MinigridBatch
from lamorel_ext.envs.babyai.process_batch import ProcessBatch
from lamorel_ext.errors import LevelError
from lamorel_ext.types import BatchedEnv

__all__ = ["SEED_BOUND", "Backend", "make_batched_env", "training_seeds"]


def make_batched_env(
    level: str,
    num_envs: int,
    language: Language = "en",
    seed: int = 0,
    episode_seed: EpisodeSeed | None = None,
    backend: Backend = "auto",
    num_distractors: int | None = None,
    num_workers: int = 0,
) -> BatchedEnv:
    """Build ``num_envs`` copies of a level, still to be reset.

    Args:
        level: Id of a level, see ``levels.level_ids``.
        num_envs: Copies.
        language: Language of the sentences; missions stay English.
        seed: Seed of the run, from which the default ``episode_seed`` is derived.
        episode_seed: Seed of each episode. None takes ``training_seeds(seed)``.
        backend: ``auto`` takes the fastest that knows the level.
        num_distractors: See ``levels.make_level``.
        num_workers: Processes of the ``processes`` backend. With 0 ``auto`` starts none, with more
            it takes this backend for the levels that only minigrid knows.

    Raises:
        LevelError: The level is unknown, ``num_envs`` is below 1, the backend does not know the
            level, or ``processes`` has no workers.
    """
    if num_envs < 1:
        raise LevelError(f"num_envs must be at least 1, got {num_envs}")
    seeds = training_seeds(seed) if episode_seed is None else episode_seed
    spoken = sentence_language(level, language)
    match choose_backend(level, backend, num_distractors, num_workers):
        case "table":
            return TableBatch(num_envs, spoken, seeds)
        case "vector":
            return VectorBatch(level, num_envs, spoken, seeds, num_distractors)
        case "processes":
            return ProcessBatch(level, num_envs, spoken, seeds, num_distractors, num_workers)
        case _:
            return MinigridBatch(level, num_envs, spoken, seeds, num_distractors)


def training_seeds(seed: int, first_copy: int = 0) -> TrainingSeeds:
    """The default ``episode_seed`` of a run, for a batch that begins with copy ``first_copy`` of
    the run's.
    """
    return TrainingSeeds(seed, first_copy)
