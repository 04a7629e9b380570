"""Episodes to learn from: BabyAI levels walked by a distracted bot, every state in English and
French.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from minigrid.minigrid_env import MiniGridEnv
from minigrid.utils.baby_ai_bot import BabyAIBot

from lamorel_ext.envs.babyai.describe import describe
from lamorel_ext.envs.babyai.levels import make_level

FIRST_HELD_OUT_SEED = 1_000_000_000
"""Evaluation draws its episodes from this seed on; nothing is learnt from them."""
SEEDS_PER_LEVEL = 1_000_000
_LONGEST_EPISODE = 32
_BOT_SHARES = (0.0, 0.5, 0.9)


@dataclass(frozen=True)
class State:
    """One state of an episode.

    Attributes:
        english: Sentences of the state.
        french: The same in French.
        bot_action: What the BabyAI bot would do, 0 to 5; None where it has no answer.
        action: What was done instead, 0 to 5.
    """

    mission: str
    english: tuple[str, ...]
    french: tuple[str, ...]
    bot_action: int | None
    action: int


Episode = tuple[State, ...]


def collect_episodes(states_per_level: Mapping[str, int], seed: int) -> list[Episode]:
    """Walk every level for about so many states.

    Each episode follows the bot with a probability of its own and takes one of the six actions at
    random otherwise.

    Raises:
        ValueError: So many levels that their seeds would reach the held-out ones.
    """
    if seed < 0 or (seed + 1) * len(states_per_level) * SEEDS_PER_LEVEL > FIRST_HELD_OUT_SEED:
        raise ValueError(
            f"seed {seed} with {len(states_per_level)} levels reaches the held-out seeds from"
            f" {FIRST_HELD_OUT_SEED}"
        )
    episodes: list[Episode] = []
    for index, (level, num_states) in enumerate(states_per_level.items()):
        first_seed = (seed * len(states_per_level) + index) * SEEDS_PER_LEVEL
        episodes += _collect_level(level, num_states, first_seed)
    return episodes


def _collect_level(level: str, num_states: int, first_seed: int) -> list[Episode]:
    environment = make_level(level)
    rng = np.random.default_rng(first_seed)
    episodes: list[Episode] = []
    missing = num_states
    while missing > 0:
        episodes.append(_walk(environment, first_seed + len(episodes), rng)[:missing])
        missing -= len(episodes[-1])
    environment.close()
    return episodes


def _walk(environment: MiniGridEnv, seed: int, rng: np.random.Generator) -> Episode:
    observation, _ = environment.reset(seed=seed)
    bot: BabyAIBot | None = BabyAIBot(environment)
    bot_share = rng.choice(_BOT_SHARES)
    states: list[State] = []
    action: int | None = None
    for _ in range(_LONGEST_EPISODE):
        bot, bot_action = _ask(bot, action)
        follows = bot_action is not None and rng.random() < bot_share
        action = bot_action if follows else int(rng.integers(6))
        image = observation["image"]
        states.append(
            State(
                environment.mission,
                describe(image),
                describe(image, language="fr"),
                bot_action,
                int(action or 0),
            )
        )
        observation, _, terminated, truncated, _ = environment.step(action)
        if terminated or truncated:
            break
    return tuple(states)


def _ask(bot: BabyAIBot | None, last_action: int | None) -> tuple[BabyAIBot | None, int | None]:
    """The bot gives up for the rest of an episode when what was done does not fit its plans, such
    as a box that is gone.
    """
    if bot is None:
        return None, None
    try:
        action = int(bot.replan(last_action))
    except Exception:  # the bot fails with assertions and worse
        return None, None
    return (bot, action) if action < 6 else (None, None)
