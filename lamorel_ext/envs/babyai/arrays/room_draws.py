"""The first state of an episode of a single-room level: minigrid's random draws, in its order,
without its objects.

Cells are numbers and sets of cells are bits of one number, so that looking for a free cell or for
what can be reached costs little.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache

from minigrid.core.constants import COLOR_NAMES, COLOR_TO_IDX
from minigrid.envs.babyai.core.roomgrid_level import RejectSampling

from lamorel_ext.envs.babyai.arrays.room_codes import (
    KINDS,
    NUM_COLORS,
    kind_and_color,
    look_of,
    mask_of,
    wall_cells,
)
from lamorel_ext.envs.babyai.arrays.streams import words_of

COLORS = tuple(COLOR_TO_IDX[name] for name in COLOR_NAMES)
"""minigrid draws from names in alphabetical order."""
_MAX_TRIES = 1000
_WORD = 2**32 - 1
_STEP_X, _STEP_Y = (1, 0, -1, 0), (0, 1, 0, -1)  # right, down, left, up


class Rejected(RejectSampling):
    """The scene is not valid; the next one follows in the same stream of random words."""


class Stuck(RecursionError):
    """Something could not be placed, or no description fits."""


class Words:
    """The 32-bit words of one seed's generator, and minigrid's draws from them.

    Args:
        seed: Seed of the episode.
        words: The first words, an even number; more are drawn when needed.
    """

    __slots__ = ("_drawn", "_place", "_seed", "_words")

    def __init__(self, seed: int, words: list[int]) -> None:
        self._seed, self._words, self._place, self._drawn = seed, words, 0, len(words)

    def below(self, bound: int) -> int:
        """``integers(0, bound)``: Lemire's method, which rejects the few words that would favour
        some numbers. A bound of 1 uses no word.
        """
        if bound == 1:
            return 0
        if self._place >= len(self._words):
            self._extend()
        product = self._words[self._place] * bound
        self._place += 1
        if product & _WORD < bound:
            threshold = (2**32 - bound) % bound
            if product & _WORD < threshold:
                return self.below(bound)
        return product >> 32

    def free_cell(self, size: int, blocked: int) -> int:
        """Column and row below ``size``, drawn until the cell is none of the bits of ``blocked``.

        Most of a scene's words end here, so ``below`` is written out; words that it might reject
        are left to it.

        Raises:
            Stuck: minigrid would give up.
        """
        words, place = self._words, self._place
        for _ in range(_MAX_TRIES + 1):
            if place + 2 > len(words):
                self._extend()
                words = self._words
            x, y = words[place] * size, words[place + 1] * size
            place += 2
            if x & _WORD < size or y & _WORD < size:
                self._place = place - 2
                x, y = self.below(size) << 32, self.below(size) << 32
                words, place = self._words, self._place
            cell = (y >> 32) * size + (x >> 32)
            if not blocked >> cell & 1:
                self._place = place
                return cell
        self._place = place
        raise Stuck

    def skip_float(self) -> None:
        """``uniform()``, which uses a whole 64-bit number and leaves the upper half of the one
        before for the next integer.
        """
        while self._place + 3 > len(self._words):
            self._extend()
        if self._place % 2:
            del self._words[self._place + 1 : self._place + 3]
        else:
            self._place += 2

    def _extend(self) -> None:
        more = words_of(self._seed, self._drawn, max(64, self._drawn))
        self._drawn += len(more)
        self._words = self._words + more


Thing = tuple[int, int]
"""Something that lies in the room: cell and look."""


@dataclass(frozen=True)
class Mission:
    """A mission in words, and the things that it means.

    Attributes:
        words: In words.
        first: Things of its first description.
        second: Things of its second description.
        task: What it asks for; None where all missions of the level ask for the same.
        rooms: Rooms that count for the step limit; None takes all of the level's.
        room: Column and row of the room that was drawn.
    """

    words: str
    first: Collection[Thing]
    second: Collection[Thing] = ()
    task: str | None = None
    rooms: int | None = None
    room: tuple[int, int] = (0, 0)


class Scene:
    """A room while it is drawn.

    Args:
        size: Side of the room, walls included.
        words: Where the draws come from.
    """

    __slots__ = ("_around", "_walls", "agent", "direction", "size", "taken", "things", "words")

    def __init__(self, size: int, words: Words) -> None:
        self.size, self.words = size, words
        self._walls, self._around = room_masks(size)
        self.clear()

    def clear(self) -> None:
        """An empty room; the random words go on."""
        self.agent, self.direction = (
            self.size // 2 * (self.size + 1),
            0,
        )  # until it is placed, it counts as standing in the middle
        self.taken = 0
        self.things: list[Thing] = []

    def place_agent(self) -> None:
        """Anywhere free, but not facing something."""
        while True:
            self.agent = self.words.free_cell(self.size, self._walls | self.taken)
            self.direction = self.words.below(4)
            ahead = self.agent + _STEP_X[self.direction] + _STEP_Y[self.direction] * self.size
            if not self.taken >> ahead & 1:
                return

    def add_things(self, count: int, unique: bool) -> None:
        """``add_distractors``: colour and kind at random; unique ones differ from everything in the
        room.
        """
        wanted = len(self.things) + count
        while len(self.things) < wanted:
            color, kind = COLORS[self.words.below(6)], self.words.below(3)
            look = look_of(kind, color)
            if not unique or all(look != other for _, other in self.things):
                self.add_thing(look)

    def add_thing(self, look: int) -> None:
        """Somewhere free that is not beside the agent."""
        cell = self.words.free_cell(self.size, self._walls | self.taken | self._around[self.agent])
        self.taken |= 1 << cell
        self.things.append((cell, look))

    def add_door(self, side: int, along: int, look: int) -> Thing:
        """A door in the wall, of which the room's other side is not drawn; the same as
        ``add_thing`` for who looks for free cells.

        Args:
            side: 0 right, 1 down, 2 left, 3 up.
            along: Place along the wall, from 1.
            look: Of the door.
        """
        end = self.size - 1
        x, y = ((end, along), (along, end), (0, along), (along, 0))[side]
        door = y * self.size + x, look
        self.taken |= 1 << door[0]
        return door

    def reachable(self) -> bool:
        """True where the agent can walk up to every thing and every door."""
        size, free = self.size, ~(self._walls | self.taken)
        reached = 1 << self.agent
        while True:
            spread = reached << 1 | reached >> 1 | reached << size | reached >> size
            grown = reached | spread & free
            if grown == reached:
                return not self.taken & ~spread
            reached = grown

    def chosen(self, things: Sequence[Thing]) -> Thing:
        """One of them at random."""
        return things[self.words.below(len(things))]

    def matching(self, looks: frozenset[int], location: str | None = None) -> list[Thing]:
        """Things that a description means. Locations are as the agent sees them."""
        found = [thing for thing in self.things if thing[1] in looks]
        return (
            found
            if location is None
            else [thing for thing in found if self.is_at(thing[0], location)]
        )

    def adjacent(self, one: int, other: int) -> bool:
        """True where two different cells lie side by side."""
        return bool(self._around[one] >> other & 1)

    def is_at(self, cell: int, location: str) -> bool:
        """True where the agent sees a cell on that side."""
        x, y = (
            cell % self.size - self.agent % self.size,
            cell // self.size - self.agent // self.size,
        )
        ahead_x, ahead_y = _STEP_X[self.direction], _STEP_Y[self.direction]
        ahead, right = x * ahead_x + y * ahead_y, y * ahead_x - x * ahead_y
        return {"left": right < 0, "right": right > 0, "front": ahead > 0, "behind": ahead < 0}[
            location
        ]


@cache
def room_masks(size: int) -> tuple[int, tuple[int, ...]]:
    """The walls, and each cell with its four neighbours."""
    around = [
        mask_of(
            other
            for other in range(size * size)
            if abs(other % size - cell % size) + abs(other // size - cell // size) < 2
        )
        for cell in range(size * size)
    ]
    return mask_of(wall_cells(size)), tuple(around)


@cache
def looks_of(kind: int | None, color: int | None) -> frozenset[int]:
    """Looks that a description allows; None leaves kind or colour open."""
    kinds = range(len(KINDS)) if kind is None else (kind,)
    colors = range(NUM_COLORS) if color is None else (color,)
    return frozenset(look_of(one, other) for one in kinds for other in colors)


def described(scene: Scene, thing: Thing) -> tuple[list[Thing], str]:
    """Everything that looks like a thing, and its description."""
    kind, color = kind_and_color(thing[1])
    meant = scene.matching(looks_of(kind, color))
    return meant, said(kind, color, len(meant))


@cache
def said(kind: int | None, color: int | None, count: int, location: str | None = None) -> str:
    """A description in words.

    Args:
        kind: Index into ``KINDS``, None for any.
        color: minigrid's code, None for any.
        count: How many things it means: one is ``the``, more are ``a``.
        location: As in ``Scene.matching``.
    """
    words = [_COLOR_WORDS[color]] if color is not None else []
    words.append("object" if kind is None else KINDS[kind])
    if location is not None:
        words.append(placed_in_words(location))
    return f"{'the' if count == 1 else 'a'} {' '.join(words)}"


def placed_in_words(location: str) -> str:
    """A location as descriptions say it."""
    return {"front": "in front of you", "behind": "behind you"}.get(location, f"on your {location}")


_COLOR_WORDS = {code: name for name, code in COLOR_TO_IDX.items()}
