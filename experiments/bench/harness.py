"""Measuring contenders side by side, and the rows that come of it.

A ratio of two programs means something only when both ran on the same machine at the same time. So
contenders take turns (A B A B ...), a ratio is formed within each turn, and the row holds the
median of the turns and how far they lie apart.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from experiments.runs.versions import processor_name

Detail = bool | int | float | str | None

UNKNOWN = "no reason is known"


@dataclass(frozen=True)
class Seconds:
    """What a contender returns that has looked at the clock itself."""

    value: float


@dataclass(frozen=True)
class Contender:
    """One program that does the work of a benchmark.

    Attributes:
        run: The timed call; where it returns ``Seconds``, these count instead.
        prepare: Called before each timed call, untimed: empties a cache, restores weights.
        scale: Work of the whole benchmark over the work of one ``run``; above 1 where only a fair
            sample is run.
        warm_up: Called once before the first turn; None calls ``prepare`` and ``run``.
    """

    run: Callable[[], object]
    prepare: Callable[[], object] | None = None
    scale: float = 1.0
    warm_up: Callable[[], object] | None = None


@dataclass(frozen=True)
class Row:
    """One line of ``bench.json``.

    Attributes:
        name: Name of the benchmark.
        value: What was measured; None where it could not be, then ``detail["reason"]`` says why.
        bar: What the project promises, or None where it promises nothing.
        unit: Unit of value, bar and spread.
        spread: Highest minus lowest value over the repetitions; None with fewer than two.
        threads: Threads of PyTorch in each process while it was measured.
        better: Whether the bar is a floor (``higher``) or a ceiling (``lower``).
        detail: What else was seen: the contenders' own figures, sizes, how a sample was scaled;
            where the bar is missed, ``in_the_way`` says what keeps the value from it.
        processor: Name of the machine's.
    """

    name: str
    value: float | None
    bar: float | None
    unit: str
    spread: float | None
    threads: int = field(default_factory=torch.get_num_threads)
    better: Literal["higher", "lower"] = "higher"
    detail: dict[str, Detail] = field(default_factory=dict)
    processor: str = field(default_factory=processor_name)

    @property
    def passed(self) -> bool | None:
        """Whether the bar is reached; None without a value or a bar."""
        if self.value is None or self.bar is None:
            return None
        return self.value >= self.bar if self.better == "higher" else self.value <= self.bar

    def to_json(self) -> str:
        """The row as one line of JSON."""
        return json.dumps({**asdict(self), "passed": self.passed})


def take_turns(contenders: Mapping[str, Contender], repetitions: int) -> dict[str, list[float]]:
    """Warm the contenders up, then time them in turns.

    Args:
        contenders: By name, in the order of each turn.
        repetitions: Number of turns.

    Returns:
        Seconds of the whole work by contender, one per turn, ``scale`` applied.
    """
    for contender in contenders.values():
        _time_once(contender) if contender.warm_up is None else contender.warm_up()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repetitions):
        for name, contender in contenders.items():
            seconds[name].append(_time_once(contender) * contender.scale)
    return seconds


def _time_once(contender: Contender) -> float:
    if contender.prepare is not None:
        contender.prepare()
    start = time.perf_counter()
    result = contender.run()
    elapsed = time.perf_counter() - start
    return result.value if isinstance(result, Seconds) else elapsed


def seconds_of(work: Callable[[], object]) -> float:
    """Seconds of one run of it."""
    return _time_once(Contender(work))


def warm() -> None:
    """The warm-up of a contender that has just run already, or needs none."""


def ratios(slower: Sequence[float], faster: Sequence[float]) -> list[float]:
    """How many times faster, turn by turn."""
    return [slow / fast for slow, fast in zip(slower, faster, strict=True)]


def make_row(
    name: str,
    values: Sequence[float],
    bar: float | None,
    unit: str,
    better: Literal["higher", "lower"] = "higher",
    detail: Mapping[str, Detail] | None = None,
    in_the_way: str = UNKNOWN,
) -> Row:
    """A row from the values of the repetitions: their median and how far they lie apart.

    Args:
        in_the_way: One sentence, for the details of a row that misses its bar.
    """
    own = {"repetitions": len(values), **(detail or {})}
    spread = max(values) - min(values) if len(values) > 1 else None
    row = Row(name, statistics.median(values), bar, unit, spread, better=better, detail=own)
    return row if row.passed is not False else replace(row, detail=own | {"in_the_way": in_the_way})


def missing_row(name: str, bar: float | None, unit: str, reason: str) -> Row:
    """A row without a value, with the reason."""
    return Row(name, None, bar, unit, None, detail={"reason": reason})


def rounded(value: float) -> float:
    """Four significant digits, for the details of a row."""
    return float(f"{value:.4g}")


def rates(work: float, unit: str, seconds: Mapping[str, Sequence[float]]) -> dict[str, Detail]:
    """For the details of a row: how much of ``unit`` each contender does in a second, by the median
    of its turns.
    """
    return {
        f"{name}_{unit}_per_s": rounded(work / statistics.median(turns))
        for name, turns in seconds.items()
    }


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Write ``bench.json``: a list of the rows' objects."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[\n" + ",\n".join(row.to_json() for row in rows) + "\n]\n", encoding="utf-8")
