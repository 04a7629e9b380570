"""The BabyAI bot as an expert that can be asked in any state of an episode, and that always
answers.
"""

from __future__ import annotations

import csv
import logging
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from minigrid.envs.babyai.core.roomgrid_level import RoomGridLevel
from minigrid.utils.baby_ai_bot import BabyAIBot

_NUM_OFFERED = 6
_log = logging.getLogger(__name__)

MAX_SEARCHES = 200
"""Searches for a path in one plan at most; plans that come to an end were seen to need seven."""

EXPERTS = Path(__file__).with_name("experts.csv")
"""What the expert was measured to do, level by level; ``experiments.expert_table`` writes it."""


class Measured(NamedTuple):
    """The expert over some episodes of one level.

    Attributes:
        level: Its id.
        episodes: How many.
        won: Those that ended with a reward.
        failed: Those that the mission itself ended without one.
        timeouts: Those that the step limit ended without one.
        gave_up: How often the bot had no answer, over all episodes.
        mean_return: Unscaled.
    """

    level: str
    episodes: int
    won: int
    failed: int
    timeouts: int
    gave_up: int
    mean_return: float

    @property
    def success(self) -> float:
        """Share of the episodes that it won."""
        return self.won / self.episodes


def _measured(cells: list[str]) -> Measured:
    won, failed, timeouts, gave_up = map(int, cells[2:6])
    return Measured(cells[0], int(cells[1]), won, failed, timeouts, gave_up, float(cells[6]))


@cache
def measured_experts() -> dict[str, Measured]:
    """What was measured, by level."""
    with EXPERTS.open(newline="", encoding="utf-8") as file:
        rows = [_measured(row) for row in list(csv.reader(file))[1:]]
    return {row.level: row for row in rows}


def expert_shortfall(level: str) -> str:
    """What to know before one relies on a level's expert; empty where it always succeeded."""
    row = measured_experts().get(level)
    if row is None or row.won == row.episodes:
        return ""
    return (
        f"the expert won {row.won} of {row.episodes} episodes of {level}: it failed the mission in "
        f"{row.failed} and ran out of time in {row.timeouts} (docs/experts.md)"
    )


class _BoundedBot(BabyAIBot):  # type: ignore[misc, unused-ignore]
    """The bot, which gives up where it would plan in a circle forever, as it does on
    UnlockToUnlock.
    """

    def replan(self, action_taken: int | None = None) -> int:
        self._searches_left = MAX_SEARCHES
        return int(super().replan(action_taken))

    def _breadth_first_search(self, *arguments: Any, **named: Any) -> Any:
        self._searches_left -= 1
        if self._searches_left < 0:
            raise RuntimeError("it plans in a circle")
        return super()._breadth_first_search(*arguments, **named)


class Expert:
    """The bot over one episode of one level.

    The bot remembers what it has seen and plans ahead, so it is told every action. Where it was not
    asked for a step, or has failed, a new one takes over that knows only the current state. Where
    that one fails too (the bot cannot solve KeyInBox, or missions whose object is lost), the answer
    is one of the six actions at random, the same for the same episode and step.

    Args:
        level: The level; the episode must be at its start.
        seed: Seed of the episode.
    """

    def __init__(self, level: RoomGridLevel, seed: int) -> None:
        self.level = level
        self.seed = seed
        self.failures = 0
        self._bot: BabyAIBot | None = None
        self._first = self._last = -1
        self._answer = 0

    def action(self, taken: list[int]) -> int:
        """What to do now.

        Args:
            taken: Actions since the start of the episode.

        Returns:
            An action id, 0 to 5.
        """
        now = len(taken)
        if now == self._last:
            return self._answer
        follows = self._bot is not None and now == self._last + 1
        answer = self._ask(taken[-1]) if follows else None
        if answer is None:
            self._first = now
            answer = self._ask_new()
        self._last = now
        self._answer = self._at_random(now) if answer is None else answer
        return self._answer

    def span(self, now: int) -> tuple[int, int]:
        """First and last step at which the living bot was asked; ``(-1, -1)`` where the next
        question goes to a new one anyway.
        """
        return (self._first, self._last) if self._last >= 0 and self._last >= now - 1 else (-1, -1)

    def _ask_new(self) -> int | None:
        try:
            self._bot = _BoundedBot(self.level)
        # the bot fails with assertions and worse; an expert that is silent would end a run
        except Exception as error:
            self._give_up(error)
            return None
        return self._ask(None)

    def _ask(self, action_taken: int | None) -> int | None:
        bot = self._bot
        if bot is None:
            return None
        try:
            suggested = int(bot.replan(action_taken))
        except Exception as error:  # as above
            self._give_up(error)
            return None
        if suggested >= _NUM_OFFERED:
            self._give_up("it thinks that it is done, but the episode goes on")
            return None
        return suggested

    def _give_up(self, reason: object) -> None:
        self.failures += 1
        self._bot = None
        _log.debug("the BabyAI bot gives up on %r: %r", self.level.mission, reason)

    def _at_random(self, now: int) -> int:
        return int(np.random.default_rng((self.seed, now)).integers(_NUM_OFFERED))
