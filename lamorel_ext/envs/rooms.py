"""Many single rooms stepped at once: arrays of cells and poses, minigrid's seven actions, and when missions are done."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lamorel_ext.envs.room_codes import EMPTY, FIRST, FIRST_BOX, LOOK, SECOND, WALL, Start, empty_room
from lamorel_ext.envs.room_levels import RoomLevel
from lamorel_ext.envs.room_views import view_table

_FORWARD, _PICKUP, _DROP, _TOGGLE = 2, 3, 4, 5
_FLAG_BITS = 5
_IS_FIRST, _IS_SECOND = FIRST >> _FLAG_BITS, SECOND >> _FLAG_BITS


class Rooms:
    """The states of ``num_envs`` episodes of one level.

    Args:
        level: The level.
        num_envs: Rooms.

    Attributes:
        cells: ``(num_envs, size * size + 2)`` uint8, codes of each room's cells; then one unseen cell, and what the agent carries.
        goals: ``(num_envs, size * size)`` uint8, 1 where a thing of the mission's first description counts as lying, 2 of its second. As in
            minigrid, that is where they lay at the last attempt to drop something, or at the start.
        poses: ``(num_envs,)`` int64, ``4 * cell + direction``.
        steps: ``(num_envs,)`` int64, actions taken.
        progress: ``(num_envs,)`` uint8, parts of the mission that are done, as bits.
        missions: In words.
        stale: ``(num_envs,)`` bool, True where anything but the pose has changed since somebody set it to False.
    """

    def __init__(self, level: RoomLevel, num_envs: int) -> None:
        self.level = level
        self.num_cells = level.size**2
        self.table = view_table(level.size)
        self.cells = np.zeros((num_envs, self.num_cells + 2), dtype=np.uint8)
        self.goals = np.zeros((num_envs, self.num_cells), dtype=np.uint8)
        self.poses = np.zeros(num_envs, dtype=np.int64)
        self.steps = np.zeros(num_envs, dtype=np.int64)
        self.progress = np.zeros(num_envs, dtype=np.uint8)
        self.missions = [""] * num_envs
        self.stale = np.ones(num_envs, dtype=bool)
        self.bases = np.arange(num_envs, dtype=np.int64) * (self.num_cells + 2)
        self.flat = self.cells.reshape(-1)
        self._flat_goals = self.goals.reshape(-1)
        self._goal_bases = np.arange(num_envs, dtype=np.int64) * self.num_cells
        self._rewards = np.array([1 - 0.9 * (step / level.max_steps) for step in range(level.max_steps + 1)])
        self._empty = np.concatenate([empty_room(level.size), np.array([0, EMPTY], dtype=np.uint8)])

    def start(self, rows: np.ndarray, starts: Sequence[Start]) -> None:
        """Put the rooms ``rows`` ``(m,)`` into the given first states."""
        self.cells[rows] = self._empty
        places = [(base + cell, code) for base, start in zip(self.bases[rows].tolist(), starts, strict=True) for cell, code in start.things]
        if places:
            where, codes = zip(*places, strict=True)
            self.flat[list(where)] = codes
        self.cells[rows, -1] = [start.hand for start in starts]
        self.poses[rows] = [start.pose for start in starts]
        self.steps[rows] = self.progress[rows] = 0
        self.goals[rows] = self.cells[rows, : self.num_cells] >> _FLAG_BITS
        self.stale[rows] = True
        for row, start in zip(rows.tolist(), starts, strict=True):
            self.missions[row] = start.mission

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Take ``actions`` ``(num_envs,)``; episodes that end are left as they are.

        Returns:
            Rewards float64, terminated and truncated, each ``(num_envs,)``.
        """
        self.steps += 1
        ahead = self.bases + self.table.ahead.take(self.poses)
        blocked = (actions == _FORWARD) & (self.flat.take(ahead) != EMPTY)
        moved = self.table.moves[actions, self.poses]
        self.poses = np.where(blocked, self.poses, moved)
        hands = np.flatnonzero((actions >= _PICKUP) & (actions <= _TOGGLE))
        picked, dropped, wrong = self._use_hands(hands, actions[hands], ahead[hands])
        success = self._done(hands, picked, dropped)
        terminated = success.copy()
        if self.level.strict:
            terminated[hands[wrong]] = True
        return np.where(success, self._rewards[self.steps], 0.0), terminated, self.steps >= self.level.max_steps

    def _use_hands(self, rows: np.ndarray, actions: np.ndarray, ahead: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pick up, drop and toggle in the rooms ``rows``.

        Returns:
            For each of them what was picked up, what was dropped (0 for nothing), and whether a pick-up left something in the hand.
        """
        there, hand = self.flat[ahead], self.cells[rows, -1]
        free_hand = hand == EMPTY
        pick = (actions == _PICKUP) & free_hand & (there > WALL)
        drop = (actions == _DROP) & ~free_hand & (there == EMPTY)
        emptied = pick | (actions == _TOGGLE) & (there & LOOK >= FIRST_BOX)
        self.flat[ahead] = np.where(emptied, EMPTY, np.where(drop, hand, there))
        self.cells[rows, -1] = np.where(pick, there, np.where(drop, EMPTY, hand))
        attempts = rows[actions == _DROP]
        self.goals[attempts] = self.cells[attempts, : self.num_cells] >> _FLAG_BITS
        self.stale[rows] |= emptied | drop | (actions == _DROP)
        return np.where(pick, there, 0), np.where(drop, hand, 0), (actions == _PICKUP) & (~free_hand | pick)

    def _done(self, rows: np.ndarray, picked: np.ndarray, dropped: np.ndarray) -> np.ndarray:
        """``(num_envs,)`` bool: whether the mission is done. Of pick-ups and drops in the rooms ``rows``."""
        task = self.level.task
        success = np.zeros(len(self.poses), dtype=bool)
        if task == "pickup":
            success[rows] = picked & FIRST > 0
        elif task == "putnext":
            success[rows] = (dropped & FIRST > 0) & self._beside_second(rows)
        elif task == "pickup_pickup":
            self.progress[rows] |= (picked & FIRST) >> _FLAG_BITS
            success[rows] = (picked & SECOND > 0) & (self.progress[rows] > 0)
        elif task == "pickup_goto":
            self.progress[rows] |= (picked & FIRST) >> _FLAG_BITS
            success = (self._faced() & _IS_SECOND > 0) & (self.progress > 0)
        elif task == "goto_both":
            before, self.progress = self.progress, self.progress | self._faced()
            self.stale |= before != self.progress
            success = self.progress == _IS_FIRST | _IS_SECOND
        else:
            success = self._faced() & _IS_FIRST > 0
        return success

    def _faced(self) -> np.ndarray:
        """Goals in the cells ahead of the agents."""
        return self._flat_goals.take(self._goal_bases + self.table.ahead.take(self.poses))

    def _beside_second(self, rows: np.ndarray) -> np.ndarray:
        """Whether a thing of the second description lies beside the cell ahead."""
        size = self.level.size
        places = (self._goal_bases + self.table.ahead[self.poses])[rows]
        beside = np.clip(places[:, None] + np.array([1, -1, size, -size]), 0, self._flat_goals.size - 1)
        return (self._flat_goals[beside] & _IS_SECOND > 0).any(axis=1)
