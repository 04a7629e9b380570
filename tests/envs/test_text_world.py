"""TextWorld as an environment of the user's own."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lamorel_ext.config import EnvArgs, Plug
from lamorel_ext.envs.own import look_at, own_batch
from lamorel_ext.errors import ConfigError

TARGET = "lamorel_ext.envs.text_world.TextWorldQuest"


def test_without_games_it_says_where_they_come_from(tmp_path: Path) -> None:
    pytest.importorskip("textworld", reason="textworld is not installed (extra textworld)")
    with pytest.raises(ConfigError, match="env.games: .*see tw-make"):
        own_batch(EnvArgs(own=Plug(TARGET, f'{{"games": "{tmp_path}"}}')), 1, lambda i, k: k)


def test_a_generated_quest_is_played_and_comes_back(tmp_path: Path) -> None:
    pytest.importorskip("textworld", reason="textworld is not installed (extra textworld)")
    maker = Path(sys.executable).with_name("tw-make")
    if not maker.is_file():
        pytest.skip("tw-make is not beside this Python")
    quest = ["--world-size", "2", "--nb-objects", "4", "--quest-length", "3", "--seed", "1"]
    game = tmp_path / "quest.z8"
    subprocess.run([maker, "custom", *quest, "--output", game], check=True, timeout=300)
    args = EnvArgs(own=Plug(TARGET, f'{{"games": "{game}"}}'), max_steps=10)
    assert look_at(args, 0).by_state
    env, rng = own_batch(args, 2, lambda i, k: k), np.random.default_rng(0)
    seen = env.reset()
    for _ in range(4):
        seen = env.step(np.array([rng.integers(len(texts)) for texts in seen.actions])).current
    other = own_batch(args, 2, lambda i, k: k)
    again = other.restore(env.state())
    assert (again.descriptions, again.actions) == (seen.descriptions, seen.actions)
