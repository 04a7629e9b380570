"""The first states of many episodes of a single-room level at once: the draws of ``room_draws``, in
arrays over all seeds.

Every seed reads its own words, at its own place. What is rare is left to ``room_draws``: a word
that Lemire's method rejects, and seeds that need more words than they were given. Those are
``lost`` here.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from lamorel_ext.envs.babyai.arrays.room_codes import NUM_COLORS, look_of
from lamorel_ext.envs.babyai.arrays.room_draws import COLORS, room_masks

MAX_SIZE = 8
"""Cells of a room are the bits of a 64-bit number."""
_TRIES = 4
"""Pairs of words that are looked at together: about half of all places are free."""
_PAIRS = np.arange(0, 2 * _TRIES, 2)
_PADDING = 2 * _TRIES
_WORD, _HALF, _ONE = np.uint64(2**32 - 1), np.uint64(32), np.uint64(1)
_COLOR_CODES = np.array(COLORS)


class Scenes:
    """Rooms while they are drawn. ``rows`` are always numbers of seeds, each at most once.

    Args:
        size: Side of the room, walls included; at most ``MAX_SIZE``.
        words: ``(n, num_words)`` uint32, the first words of each seed.
        capacity: Things that a room will hold at most.

    Attributes:
        agents: ``(n,)`` int64, cells.
        directions: ``(n,)`` int64.
        cells: ``(n, capacity)`` int64, where each thing lies.
        looks: ``(n, capacity)`` int64, what it is.
        flags: ``(n, capacity)`` int64, whether the mission means it.
        missions: In words.
    """

    def __init__(self, size: int, words: np.ndarray, capacity: int) -> None:
        num_seeds, self._num_words = words.shape
        self.size = size
        self._words = np.zeros(
            (num_seeds, self._num_words + _PADDING), dtype=np.uint64
        )  # where words end, 0 means a wall
        self._words[:, : self._num_words] = words
        self._flat = self._words.reshape(-1)
        self._drawn_cells = np.empty(0, dtype=np.uint8)
        self._bases = np.arange(num_seeds) * self._words.shape[1]
        self._places = np.zeros(num_seeds, dtype=np.int64)
        self._walls, self._around, self._steps = _masks(size)
        self._taken = np.zeros(num_seeds, dtype=np.uint64)
        self.agents = np.zeros(num_seeds, dtype=np.int64)
        self.directions = np.zeros(num_seeds, dtype=np.int64)
        self.cells, self.looks, self.flags = (
            np.zeros((num_seeds, capacity), dtype=np.int64) for _ in range(3)
        )
        self.missions = [""] * num_seeds
        self.count = 0

    def begin(self, rows: np.ndarray) -> None:
        """Empty rooms; the random words go on."""
        self._taken[rows] = 0
        self.agents[rows], self.directions[rows] = self.size // 2 * (self.size + 1), 0
        self.flags[rows] = 0
        self.count = 0

    def lost(self, rows: np.ndarray) -> np.ndarray:
        """True where the words did not suffice: what was drawn there means nothing."""
        over: np.ndarray = self._places[rows] > self._num_words
        return over

    def below(self, rows: np.ndarray, bound: int) -> np.ndarray:
        """``(len(rows),)`` int64: see ``Words.below``."""
        if bound == 1:
            return np.zeros(len(rows), dtype=np.int64)
        places = self._places[rows]
        products = self._flat.take(
            self._bases[rows] + np.minimum(places, self._num_words)
        ) * np.uint64(bound)
        self._places[rows] = places + 1
        self._lose_rejected(rows, products, bound)
        drawn: np.ndarray = (products >> _HALF).astype(np.int64)
        return drawn

    def skip_float(self, rows: np.ndarray) -> None:
        """See ``Words.skip_float``: the half of a number that waits is moved behind the number that
        the float uses.
        """
        places = np.minimum(self._places[rows], self._num_words)
        waiting = places % 2 == 1
        begins = self._bases[rows] + places
        self._flat[begins[waiting] + 2] = self._flat[begins[waiting]]
        self._places[rows] += 2
        self._drawn_cells = np.empty(0, dtype=np.uint8)

    def place_agents(self, rows: np.ndarray) -> None:
        """See ``Scene.place_agent``."""
        while len(rows):
            self.agents[rows] = self._free_cells(rows, self._taken[rows] | self._walls)
            self.directions[rows] = self.below(rows, 4)
            ahead = self.agents[rows] + self._steps[self.directions[rows]]
            rows = rows[
                (self._taken[rows] >> ahead.astype(np.uint64) & _ONE).astype(bool)
                & ~self.lost(rows)
            ]

    def add_things(self, rows: np.ndarray, count: int, unique: bool) -> None:
        """See ``Scene.add_things``."""
        for _ in range(count):
            looks = self._random_looks(rows)
            again = np.flatnonzero(self._present(rows, looks)) if unique else rows[:0]
            while len(again):
                looks[again] = self._random_looks(rows[again])
                again = again[self._present(rows[again], looks[again]) & ~self.lost(rows[again])]
            self.add_thing(rows, looks)

    def add_thing(self, rows: np.ndarray, looks: np.ndarray | int) -> None:
        """See ``Scene.add_thing``."""
        cells = self._free_cells(rows, self._taken[rows] | self._around[self.agents[rows]])
        self._taken[rows] |= _ONE << cells.astype(np.uint64)
        self.cells[rows, self.count], self.looks[rows, self.count] = cells, looks
        self.count += 1

    def reachable(self, rows: np.ndarray) -> np.ndarray:
        """``(len(rows),)`` bool: see ``Scene.reachable``."""
        across, taken = np.uint64(self.size), self._taken[rows]
        free = ~(taken | self._walls)
        reached = _ONE << self.agents[rows].astype(np.uint64)
        while True:
            spread = reached << _ONE | reached >> _ONE | reached << across | reached >> across
            grown = reached | spread & free
            if np.array_equal(grown, reached):
                all_met: np.ndarray = taken & ~spread == 0
                return all_met
            reached = grown

    def seen(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``(len(rows), things)`` int64: how far things lie ahead of the agent and to the right."""
        (dy, dx), directions = (
            np.divmod(self.cells[rows, : self.count], self.size),
            self.directions[rows],
        )
        y, x = np.divmod(self.agents[rows], self.size)
        dx, dy = dx - x[:, None], dy - y[:, None]
        ahead_x, ahead_y = (
            np.array(part)[directions][:, None] for part in ((1, 0, -1, 0), (0, 1, 0, -1))
        )
        return dx * ahead_x + dy * ahead_y, dy * ahead_x - dx * ahead_y

    def adjacent(self, ones: np.ndarray, others: np.ndarray) -> np.ndarray:
        """True where two different cells lie side by side."""
        beside: np.ndarray = (self._around[ones] >> others.astype(np.uint64) & _ONE).astype(bool)
        return beside

    def any_adjacent(self, rows: np.ndarray, ones: np.ndarray, others: np.ndarray) -> np.ndarray:
        """True where one of the things ``ones`` ``(len(rows), things)`` lies beside another one of
        ``others``; none may be in both.
        """
        cells = self.cells[rows, : self.count]
        around = np.bitwise_or.reduce(np.where(ones, self._around[cells], np.uint64(0)), axis=1)
        places = np.bitwise_or.reduce(
            np.where(others, _ONE << cells.astype(np.uint64), np.uint64(0)), axis=1
        )
        beside: np.ndarray = around & places > 0
        return beside

    def _random_looks(self, rows: np.ndarray) -> np.ndarray:
        colors = _COLOR_CODES[self.below(rows, NUM_COLORS)]
        looks: np.ndarray = look_of(0, 0) + self.below(rows, 3) * NUM_COLORS + colors
        return looks

    def _present(self, rows: np.ndarray, looks: np.ndarray) -> np.ndarray:
        found: np.ndarray = (self.looks[rows, : self.count] == looks[:, None]).any(axis=1)
        return found

    def _free_cells(self, rows: np.ndarray, blocked: np.ndarray) -> np.ndarray:
        """See ``Words.free_cell``."""
        if not len(self._drawn_cells):
            self._draw_cells()
        found = np.zeros(len(rows), dtype=np.int64)
        left = np.arange(len(rows))
        while len(left):
            some = rows[left]
            places = np.minimum(self._places[some], self._num_words)
            cells = self._drawn_cells.take((self._bases[some] + places)[:, None] + _PAIRS)
            free = (blocked[left, None] >> cells & _ONE) == 0
            first = free.argmax(axis=1)
            ok = free[np.arange(len(left)), first]
            found[left] = cells[np.arange(len(left)), first]
            used = np.where(ok, 2 * first + 2, 2 * _TRIES)
            over = ~ok & (places + 2 * _TRIES > self._num_words)
            self._places[some] = np.where(
                over, self._num_words + 1, np.maximum(self._places[some], places + used)
            )
            left = left[~ok & ~over]
        return found

    def _draw_cells(self) -> None:
        """The cell that each word would give with the word after it."""
        products = self._flat * np.uint64(self.size)
        self._lose_rejected(
            np.arange(len(self._words)),
            products.reshape(self._words.shape)[:, : self._num_words],
            self.size,
        )
        products >>= _HALF
        parts = products.astype(np.uint8)
        self._drawn_cells = np.zeros(len(parts), dtype=np.uint8)
        self._drawn_cells[:-1] = parts[:-1] + parts[1:] * np.uint8(self.size)

    def _lose_rejected(self, rows: np.ndarray, products: np.ndarray, bound: int) -> None:
        """Words that Lemire's method might reject: some in a hundred million."""
        if threshold := 2**32 % bound:
            rejected = (products & _WORD) < threshold
            if rejected.any():
                self._places[rows[rejected.reshape(len(rows), -1).any(axis=1)]] = (
                    self._num_words + 1
                )


@cache
def _masks(size: int) -> tuple[np.uint64, np.ndarray, np.ndarray]:
    """The walls, each cell with its neighbours and the walls, and how far a step leads in each
    direction.
    """
    walls, around = room_masks(size)
    masks = np.array([mask | walls for mask in around], dtype=np.uint64)
    return np.uint64(walls), masks, np.array([1, size, -1, -size])
