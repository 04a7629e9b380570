"""Many rooms stepped at once: arrays of cells and poses, minigrid's seven actions, and when
missions are done.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lamorel_ext.envs.babyai.arrays.room_codes import (
    CLOSED,
    EMPTY,
    FIRST,
    FIRST_BOX,
    FIRST_DOOR,
    FIRST_THING,
    FLAG_BITS,
    KINDS,
    LOCKED,
    LOOK,
    NUM_COLORS,
    OPEN,
    SECOND,
    Start,
    door_look,
    empty_room,
    look_of,
)
from lamorel_ext.envs.babyai.arrays.room_levels import RoomLevel, Task
from lamorel_ext.envs.babyai.arrays.room_views import view_table

_FORWARD, _PICKUP, _DROP, _TOGGLE = 2, 3, 4, 5
_IS_FIRST, _IS_SECOND = FIRST >> FLAG_BITS, SECOND >> FLAG_BITS
_BY_HAND = ("pickup", "putnext", "pickup_pickup", "open", "open_open")
"""Tasks that only picking up, dropping or toggling can bring to an end."""


class Rooms:
    """The states of ``num_envs`` episodes of one level.

    Args:
        level: The level.
        num_envs: Rooms.

    Attributes:
        cells: ``(num_envs, num_cells + 2)`` uint8, codes of each room's cells; then one unseen
            cell, and what the agent carries.
        goals: ``(num_envs, num_cells)`` uint8, 1 where a thing of the mission's first description
            counts as lying, 2 of its second. As in minigrid, that is where they lay at the last
            attempt to drop something, or at the start.
        poses: ``(num_envs,)`` int64, ``4 * cell + direction``.
        steps: ``(num_envs,)`` int64, actions taken.
        limits: ``(num_envs,)`` int64, actions allowed.
        tasks: ``(num_envs,)`` int64, what each mission asks for, as places among the level's tasks.
        progress: ``(num_envs,)`` uint8, parts of the mission that are done, as bits.
        missions: In words.
        stale: ``(num_envs,)`` bool, True where anything but the pose has changed since somebody set
            it to False.
    """

    def __init__(self, level: RoomLevel, num_envs: int) -> None:
        self.level = level
        self.table = view_table(level.size, level.columns, level.rows)
        self.width, self.num_cells = self.table.width, len(self.table.ahead) // 4
        self.cells = np.zeros((num_envs, self.num_cells + 2), dtype=np.uint8)
        self.goals = np.zeros((num_envs, self.num_cells), dtype=np.uint8)
        self.poses = np.zeros(num_envs, dtype=np.int64)
        self.steps = np.zeros(num_envs, dtype=np.int64)
        self.limits = np.ones(num_envs, dtype=np.int64)
        self.tasks = np.zeros(num_envs, dtype=np.int64)
        self.progress = np.zeros(num_envs, dtype=np.uint8)
        self.missions = [""] * num_envs
        self.stale = np.ones(num_envs, dtype=bool)
        self.bases = np.arange(num_envs, dtype=np.int64) * (self.num_cells + 2)
        self.flat = self.cells.reshape(-1)
        self._flat_goals = self.goals.reshape(-1)
        self._goal_bases = np.arange(num_envs, dtype=np.int64) * self.num_cells
        self._empty = np.concatenate(
            [
                empty_room(level.size, level.columns, level.rows),
                np.array([0, EMPTY], dtype=np.uint8),
            ]
        )

    def start(self, rows: np.ndarray, starts: Sequence[Start]) -> None:
        """Put the rooms ``rows`` ``(m,)`` into the given first states."""
        self.cells[rows] = self._empty
        places = [
            (base + cell, code)
            for base, start in zip(self.bases[rows].tolist(), starts, strict=True)
            for cell, code in start.things
        ]
        if places:
            where, codes = zip(*places, strict=True)
            self.flat[list(where)] = codes
        self.cells[rows, -1] = [start.hand for start in starts]
        self.poses[rows] = [start.pose for start in starts]
        self.limits[rows] = [start.limit or self.level.max_steps for start in starts]
        self.tasks[rows] = [start.task for start in starts]
        self.steps[rows] = self.progress[rows] = 0
        self.goals[rows] = self.cells[rows, : self.num_cells] >> FLAG_BITS
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
        blocked = (actions == _FORWARD) & ~_PASSABLE.take(self.flat.take(ahead))
        moved = self.table.moves[actions, self.poses]
        self.poses = np.where(blocked, self.poses, moved)
        hands = np.flatnonzero((actions >= _PICKUP) & (actions <= _TOGGLE))
        success, failure = self._judge(hands, *self._use_hands(hands, actions[hands], ahead[hands]))
        rewards = np.where(success, 1 - 0.9 * (self.steps / self.limits), 0.0)
        return rewards, success | failure, self.steps >= self.limits

    def _use_hands(
        self, rows: np.ndarray, actions: np.ndarray, ahead: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Pick up, drop and toggle in the rooms ``rows``.

        Returns:
            For each of them what was picked up, what was dropped, what a toggled cell holds now (0
            for nothing), and whether a pick-up left something in the hand.
        """
        there, hand = self.flat[ahead], self.cells[rows, -1]
        free_hand = hand == EMPTY
        toggle = actions == _TOGGLE
        pick = (actions == _PICKUP) & free_hand & _PORTABLE[there]
        drop = (actions == _DROP) & ~free_hand & (there == EMPTY)
        unlocked = toggle & (_KEYS[there] == hand & LOOK) & (_KEYS[there] > 0)
        toggled = np.where(
            unlocked, there - (LOCKED - OPEN), np.where(toggle, _TOGGLED[there], there)
        )
        self.flat[ahead] = np.where(pick, EMPTY, np.where(drop, hand, toggled))
        self.cells[rows, -1] = np.where(pick, there, np.where(drop, EMPTY, hand))
        attempts = rows[actions == _DROP]
        self.goals[attempts] = self.cells[attempts, : self.num_cells] >> FLAG_BITS
        self.stale[rows] |= pick | drop | (toggled != there) | (actions == _DROP)
        wrong = (actions == _PICKUP) & (~free_hand | pick)
        return (
            np.where(pick, there, 0),
            np.where(drop, hand, 0),
            np.where(toggle, toggled, 0),
            wrong,
        )

    def _judge(
        self,
        rows: np.ndarray,
        picked: np.ndarray,
        dropped: np.ndarray,
        toggled: np.ndarray,
        wrong: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """``(num_envs,)`` bool: where the mission is done, and where it has failed. Hands were used
        in the rooms ``rows``.
        """
        success, failure = (np.zeros(len(self.poses), dtype=bool) for _ in range(2))
        for place, task in enumerate(self.level.tasks):
            mine = slice(None) if len(self.level.tasks) == 1 else self.tasks[rows] == place
            own = rows[mine]
            if task in _BY_HAND:
                success[own], failure[own] = self._judge_hands(
                    task, own, picked[mine], dropped[mine], toggled[mine]
                )
            elif len(self.level.tasks) == 1:
                success = self._judge_places(task, own, picked[mine])
            else:
                success |= self._judge_places(task, own, picked[mine]) & (self.tasks == place)
        if self.level.strict[0] and "pickup" in self.level.tasks:
            failure[rows] |= wrong
        return success, failure

    def _judge_hands(
        self,
        task: Task,
        rows: np.ndarray,
        picked: np.ndarray,
        dropped: np.ndarray,
        toggled: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        never = np.zeros(len(rows), dtype=bool)
        if task == "pickup":
            return picked & FIRST > 0, never
        if task == "putnext":
            return (dropped & FIRST > 0) & self._beside_second(rows), never
        if task == "pickup_pickup":
            self.progress[rows] |= (picked & FIRST) >> FLAG_BITS
            return (picked & SECOND > 0) & (self.progress[rows] > 0), never
        open_now, is_door = _OPEN_DOOR[toggled], toggled & LOOK >= FIRST_DOOR
        first = open_now & (toggled & FIRST > 0)
        strict_first, strict_second = self.level.strict
        if task == "open":
            return first, is_door & ~first & strict_first
        before = self.progress[rows] > 0
        self.progress[rows] |= first
        after = (
            self.progress[rows] > 0
        )  # the door that does the first part is also judged as an attempt at the second
        second = after & open_now & (toggled & SECOND > 0)
        return second, is_door & ~second & (
            (after & strict_second) | (~before & ~first & strict_first)
        )

    def _judge_places(self, task: Task, rows: np.ndarray, picked: np.ndarray) -> np.ndarray:
        """``(num_envs,)`` bool: tasks that walking and turning can bring to an end."""
        if task == "goto":
            return self._faced() & _IS_FIRST > 0
        if task == "pickup_goto":
            self.progress[rows] |= (picked & FIRST) >> FLAG_BITS
            return (self._faced() & _IS_SECOND > 0) & (self.progress > 0)
        before, self.progress = self.progress, self.progress | self._faced()
        self.stale |= before != self.progress
        done: np.ndarray = self.progress == _IS_FIRST | _IS_SECOND
        return done

    def _faced(self) -> np.ndarray:
        """Goals in the cells ahead of the agents."""
        ahead = self._goal_bases + self.table.ahead.take(self.poses)
        goals: np.ndarray = self._flat_goals.take(ahead)
        return goals

    def _beside_second(self, rows: np.ndarray) -> np.ndarray:
        """Whether a thing of the second description lies beside the cell ahead."""
        places = (self._goal_bases + self.table.ahead[self.poses])[rows]
        beside = np.clip(
            places[:, None] + np.array([1, -1, self.width, -self.width]),
            0,
            self._flat_goals.size - 1,
        )
        found: np.ndarray = (self._flat_goals[beside] & _IS_SECOND > 0).any(axis=1)
        return found


def _by_code(values: np.ndarray) -> np.ndarray:
    """``(256,)``: what is tabulated by look, for codes with any flags."""
    return np.tile(values, 256 >> FLAG_BITS)


_LOOKS = np.arange(LOOK + 1, dtype=np.uint8)
_DOORS = (_LOOKS >= FIRST_DOOR) & (_LOOKS < FIRST_DOOR + 3 * NUM_COLORS)
_STATES = np.where(_DOORS, (_LOOKS - FIRST_DOOR) % 3, LOCKED + 1)
_OPEN_DOOR = _by_code(_STATES == OPEN)
_PASSABLE = _by_code((_LOOKS == EMPTY) | (_STATES == OPEN))
_PORTABLE = _by_code((_LOOKS >= FIRST_THING) & (_LOOKS < FIRST_DOOR))


def _toggled_codes() -> np.ndarray:
    """``(256,)`` uint8: boxes vanish, doors that are not locked change between open and closed; all
    else stays.
    """
    codes = np.arange(256, dtype=np.uint8)
    looks, states = codes & LOOK, _by_code(_STATES)
    after = np.where(
        states == OPEN,
        codes + (CLOSED - OPEN),
        np.where(states == CLOSED, codes - (CLOSED - OPEN), codes),
    )
    return np.where((looks >= FIRST_BOX) & (looks < FIRST_DOOR), EMPTY, after).astype(np.uint8)


def _matching_keys() -> np.ndarray:
    """``(256,)`` uint8: look of the key that opens a locked door, 0 for all else."""
    keys = np.zeros(LOOK + 1, dtype=np.uint8)
    for color in range(NUM_COLORS):
        keys[door_look(color, LOCKED)] = look_of(KINDS.index("key"), color)
    return _by_code(keys)


_TOGGLED, _KEYS = _toggled_codes(), _matching_keys()
