"""Any level, its copies shared among worker processes: for the levels that only minigrid knows,
where one core is not enough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lamorel_ext.envs.babyai.batch_checks import EpisodeSeed, checked_actions, read_episodes
from lamorel_ext.envs.babyai.describe import Language
from lamorel_ext.envs.babyai.worker_pool import WorkerPool
from lamorel_ext.errors import LevelError
from lamorel_ext.types import ObservationBatch, StepBatch

Answers = Mapping[int, dict[str, Any]]


class ProcessBatch:
    """``BatchedEnv`` over minigrid in ``num_workers`` processes; gives the same steps as the
    minigrid backend, and saves the same states.

    The processes start with the first ``reset`` or ``restore``, and end with ``close`` or an error;
    a ``reset`` after that starts new ones. Seeds are asked for in this process alone.

    Args:
        level: Id of the level.
        num_envs: Copies.
        language: Language of the sentences.
        episode_seed: Seed of each episode.
        num_distractors: See ``levels.make_level``.
        num_workers: Processes, of which each steps an equal share of the copies; not more than
            there are copies.
    """

    def __init__(
        self,
        level: str,
        num_envs: int,
        language: Language,
        episode_seed: EpisodeSeed,
        num_distractors: int | None = None,
        num_workers: int = 1,
    ) -> None:
        self.num_envs = num_envs
        self.episode_seed = episode_seed
        self._shares = [
            share.tolist()
            for share in np.array_split(np.arange(num_envs), min(num_workers, num_envs))
        ]
        self._options = [
            {
                "level": level,
                "num_copies": len(share),
                "language": language,
                "num_distractors": num_distractors,
                "first_copy": share[0],
            }
            for share in self._shares
        ]
        self._pool: WorkerPool | None = None
        self._running = False
        self._episodes = [0] * num_envs
        self._taken: list[list[int]] = [[] for _ in range(num_envs)]

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers; empty before they start and after they end."""
        return [] if self._pool is None else self._pool.pids

    def reset(self) -> ObservationBatch:
        """Start episode 0 everywhere.

        Raises:
            EnvWorkerError: A worker raised or died.
        """
        everywhere = list(range(self.num_envs))
        self._episodes = [0] * self.num_envs
        self._taken = [[] for _ in everywhere]
        answers = self._start(everywhere)
        self._running = True
        return _observations(answers)

    def step(self, actions: Sequence[int] | np.ndarray) -> StepBatch:
        """Take ``actions`` ``(num_envs,)``; where an episode ends, the next one starts.

        Raises:
            LevelError: The actions do not fit, or there was no reset before.
            EnvWorkerError: A worker raised or died.
        """
        self._check_running()
        checked: list[int] = checked_actions(actions, self.num_envs).tolist()
        answers = self._ask(
            {
                worker: {"do": "step", "actions": [checked[env] for env in share]}
                for worker, share in enumerate(self._shares)
            }
        )
        for taken, action in zip(self._taken, checked, strict=True):
            taken.append(action)
        reached = current = _observations(answers)
        rewards = np.array(_joined(answers, "rewards"), dtype=np.float64)
        terminated, truncated = (
            np.array(_joined(answers, name), dtype=bool) for name in ("terminated", "truncated")
        )
        ended: list[int] = np.flatnonzero(terminated | truncated).tolist()
        if ended:
            for env in ended:
                self._episodes[env] += 1
                self._taken[env] = []
            current = reached.replaced(ended, _observations(self._start(ended)))
        return StepBatch(reached, current, rewards, terminated, truncated)

    def expert_actions(self) -> np.ndarray:
        """``(num_envs,)`` int64: what the BabyAI bot would do; see ``expert.Expert`` for where it
        gives up.
        """
        self._check_running()
        return np.array(_joined(self._ask_all("expert"), "actions"), dtype=np.int64)

    def state(self) -> dict[str, list[int]]:
        """Episode numbers, and the actions since each episode's start, one environment after the
        other.
        """
        self._check_running()
        return {
            "episodes": list(self._episodes),
            "lengths": [len(taken) for taken in self._taken],
            "actions": [action for taken in self._taken for action in taken],
            "experts": _joined(self._ask_all("spans"), "spans"),
        }

    def restore(self, state: dict[str, list[int]]) -> ObservationBatch:
        """Replay the saved episodes up to where they were.

        Raises:
            CheckpointError: The state is of another batch.
            EnvWorkerError: A worker raised or died.
        """
        saved = read_episodes(state, self.num_envs)
        self._episodes = [episode.episode for episode in saved]
        self._taken = [list(episode.actions) for episode in saved]
        commands = {}
        for worker, share in enumerate(self._shares):
            episodes = [saved[env] for env in share]
            commands[worker] = {
                "do": "replay",
                "episodes": [one.episode for one in episodes],
                "seeds": self._seeds(share),
                "actions": [one.actions for one in episodes],
                "consulted": [[one.consulted.start, one.consulted.stop] for one in episodes],
            }
        answers = self._ask(commands)
        self._running = True
        return _observations(answers)

    def close(self) -> None:
        """End the processes. May be called twice."""
        self._running = False
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _start(self, envs: list[int]) -> Answers:
        """Start episodes whose numbers are set before."""
        commands = {}
        for worker, share in enumerate(self._shares):
            starting = [env for env in envs if share[0] <= env <= share[-1]]
            if starting:
                commands[worker] = {
                    "do": "start",
                    "copies": [env - share[0] for env in starting],
                    "seeds": self._seeds(starting),
                    "episodes": [self._episodes[env] for env in starting],
                }
        return self._ask(commands)

    def _seeds(self, envs: list[int]) -> list[int]:
        return [int(self.episode_seed(env, self._episodes[env])) for env in envs]

    def _ask_all(self, what: str) -> Answers:
        return self._ask({worker: {"do": what} for worker in range(len(self._shares))})

    def _ask(self, commands: Mapping[int, Mapping[str, Any]]) -> Answers:
        """After an error there are neither workers nor a running batch."""
        try:
            self._pool = self._pool or WorkerPool(self._options)
            return self._pool.ask(commands)
        except BaseException:
            self._pool, self._running = None, False
            raise

    def _check_running(self) -> None:
        if not self._running:
            raise LevelError("reset the environments first")


def _joined(answers: Answers, name: str) -> list[Any]:
    """Lists of all workers one after the other."""
    return [value for worker in sorted(answers) for value in answers[worker][name]]


def _observations(answers: Answers) -> ObservationBatch:
    digits = "".join(answers[worker]["images"] for worker in sorted(answers))
    images = np.frombuffer(bytearray.fromhex(digits), dtype=np.uint8)  # can be written to
    return ObservationBatch(
        missions=tuple(_joined(answers, "missions")),
        descriptions=tuple(tuple(sentences) for sentences in _joined(answers, "descriptions")),
        images=images.reshape(-1, 7, 7, 3),
        directions=np.array(_joined(answers, "directions"), dtype=np.int64),
    )
