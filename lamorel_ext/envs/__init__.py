"""BabyAI-Text: levels, sentences, a Gymnasium environment and batches of environments.

Importing this package registers every level with Gymnasium, under ``BabyAI-Text/``.
"""

from lamorel_ext.envs.babyai.describe import describe
from lamorel_ext.envs.babyai.gym_env import BabyAITextEnv, register
from lamorel_ext.envs.babyai.levels import level_ids, make_level

register()

__all__ = ["BabyAITextEnv", "describe", "level_ids", "make_level", "register"]
