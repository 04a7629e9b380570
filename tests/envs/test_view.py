"""The fast view against minigrid's own."""

from __future__ import annotations

import numpy as np
import pytest
from minigrid.minigrid_env import MiniGridEnv

from lamorel_ext.envs.babyai.levels import make_level
from lamorel_ext.envs.babyai.view import symbolic_view

WALK = [0, 1, 2, 2, 2, 2, 3, 4, 5, 5]


@pytest.mark.parametrize(
    "level",
    [
        "GoToRedBall",
        "BossLevel",
        "UnlockToUnlock",
        "KeyInBox",
        "GoToObjMazeS4",
        "PutNextS5N2Carrying",
        "KeyCorridorS3R3",
        "GoToOpen",
    ],
)
def test_view_is_minigrids_along_random_walks(level: str) -> None:
    env = make_level(f"BabyAI-{level}-v0")
    generator = np.random.default_rng(0)
    for seed in range(3):
        env.reset(seed=seed)
        for action in generator.choice(WALK, size=60).tolist():
            reference = MiniGridEnv.gen_obs(env)
            view = env.gen_obs()
            assert view["image"].dtype == reference["image"].dtype and np.array_equal(
                view["image"], reference["image"]
            )
            assert (view["direction"], view["mission"]) == (
                reference["direction"],
                reference["mission"],
            )
            env.step(action)


def test_nothing_is_hidden_from_who_sees_through_walls() -> None:
    env = make_level("BabyAI-BossLevel-v0")
    env.reset(seed=0)
    hidden = symbolic_view(env)
    env.see_through_walls = True
    open_view = symbolic_view(env)
    assert np.array_equal(open_view, MiniGridEnv.gen_obs(env)["image"])
    assert (hidden[:, :, 0] == 0).any() and (open_view[:, :, 0] > 0).all()
