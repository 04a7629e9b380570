"""Microsoft's TextWorld as an environment of the user's own (extra ``textworld``):
``env._target_=lamorel_ext.envs.text_world.TextWorldQuest env.games=games``.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import gymnasium

from lamorel_ext.errors import ConfigError

SUFFIXES = (".z8", ".ulx")


class TextWorldQuest(gymnasium.Env[Any, str]):
    """Games that ``tw-make`` made. The seed of an episode says which of them is played; the game
    itself draws nothing. Each state lists its admissible commands.

    Args:
        games: A game, or a folder of games.
        max_steps: Commands after which an episode is cut off.

    Raises:
        ConfigError: TextWorld is not installed, or there is no game.
    """

    def __init__(self, games: str, max_steps: int = 20) -> None:
        try:
            import textworld
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"env._target_: TextWorld cannot be had: {error}; pip install"
                " 'lamorel-ext[textworld]'"
            ) from error
        place = Path(games)
        found = place.iterdir() if place.is_dir() else [place]
        self._games = sorted(path for path in found if path.suffix in SUFFIXES and path.is_file())
        if not self._games:
            raise ConfigError(f"env.games: {games}: no game ({' or '.join(SUFFIXES)}); see tw-make")
        self.max_steps = max_steps
        self.observation_space = gymnasium.spaces.Dict(
            {
                name: gymnasium.spaces.Text(10_000, min_length=0, charset=string.printable)
                for name in ("text", "mission")
            }
        )
        self.action_space = gymnasium.spaces.Text(1_000, charset=string.printable)
        self._start = textworld.start
        self._infos = textworld.EnvInfos(
            admissible_commands=True,
            description=True,
            inventory=True,
            objective=True,
            won=True,
            lost=True,
            score=True,
        )
        self._running: dict[Path, Any] = {}
        self._score, self._steps = 0.0, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, str], dict[str, Any]]:
        """Begin the game that the seed chooses."""
        super().reset(seed=seed)
        path = self._games[int(self.np_random.integers(len(self._games)))]
        if path not in self._running:
            self._running[path] = self._start(str(path), self._infos)
        self._game = self._running[path]
        self._score, self._steps = 0.0, 0
        state = self._game.reset()
        self._mission = " ".join(str(state.objective or "").split())
        return self._seen(state), self._info(state)

    def step(self, action: str) -> tuple[dict[str, str], float, bool, bool, dict[str, Any]]:
        """Type a command."""
        state, score, done = self._game.step(action)
        reward, self._score = float(score or 0.0) - self._score, float(score or 0.0)
        self._steps += 1
        truncated = not done and self._steps >= self.max_steps
        return self._seen(state), reward, bool(done), truncated, self._info(state)

    def close(self) -> None:
        """End the games."""
        for game in self._running.values():
            game.close()
        self._running.clear()

    def _seen(self, state: Any) -> dict[str, str]:
        lines = [str(text or "") for text in (state.description, state.inventory)]
        return {"text": " ".join("\n".join(lines).split()), "mission": self._mission}

    def _info(self, state: Any) -> dict[str, Any]:
        return {"admissible_commands": sorted(state.admissible_commands), "won": bool(state.won)}
