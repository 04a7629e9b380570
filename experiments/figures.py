"""The figures of a report, as SVG and PNG: readable in print, on a phone and by the colour-blind."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from experiments.results import CALLS, RETURN, SECONDS, STEPS, SUCCESS, TEACHER, TOKENS, Arm
from experiments.statistics import Interval, bootstrap
from experiments.summary import Difference

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C564B")
"""Okabe and Ito's palette (2008), without its yellow, which vanishes on paper; and brown."""
Dashes = tuple[int, tuple[float, ...]] | str
Line = tuple[str, Dashes]
Axis = tuple[str, str]
DASHES: tuple[Dashes, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)))
MARKERS = ("o", "s", "^")
STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "report",
    "axes.grid": True,
    "grid.alpha": 0.25,
}
WIDTH_INCHES = 5.2


@dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        name: File name without ending.
        caption: What it shows and how to read it.
        svg: Vector graphics.
        png: Pixels.
    """

    name: str
    caption: str
    svg: str
    png: bytes


def draw_all(arms: Sequence[Arm], baseline: Sequence[Difference], frozen: Sequence[Difference], samples: int) -> list[Picture]:
    """Every figure for which there is something to draw."""
    lines = {arm.label: (COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)]) for i, arm in enumerate(arms)}
    pictures = [
        curves("success_by_steps", arms, lines, (STEPS, "environment steps"), (SUCCESS, "success rate"), samples),
        curves("return_by_steps", arms, lines, (STEPS, "environment steps"), (RETURN, "return (unscaled)"), samples),
    ]
    costs = ((CALLS, "calls of the LLM"), (TOKENS, "tokens through the LLM"), (SECONDS, "seconds of collecting and updating"))
    for cost in costs:
        paying = [arm for arm in arms if all(cost[0] in run.columns and run.last(cost[0]) > 0 for run in arm.runs.values())]
        if paying:
            pictures.append(curves(f"success_by_{cost[0]}", paying, lines, cost, (SUCCESS, "success rate"), samples))
    followed = [arm for arm in arms if all(not np.isnan(run.columns.get(TEACHER, np.array(np.nan))).any() for run in arm.runs.values())]
    if followed:
        success = (TEACHER, "success rate of the teacher alone")
        pictures.append(curves("teacher_by_steps", followed, lines, (STEPS, "environment steps"), success, samples))
    for name, differences in (("difference_to_baseline", baseline), ("difference_to_frozen_teacher", frozen)):
        if any(difference.per_seed for difference in differences):
            pictures.append(forest(name, [difference for difference in differences if difference.per_seed]))
    return pictures


def curves(name: str, arms: Sequence[Arm], lines: Mapping[str, Line], x: Axis, y: Axis, samples: int) -> Picture:
    """Mean over seeds of each arm, with a bootstrap interval over seeds.

    Args:
        name: File name without ending.
        arms: What to draw.
        lines: Colour and dashes by label, the same in every figure.
        x: Column and label.
        y: Column and label.
        samples: Resamples behind each interval.
    """

    def draw(axes: Axes) -> None:
        for arm in arms:
            runs = list(arm.runs.values())
            points = min(len(run.columns[y[0]]) for run in runs)
            heights = np.stack([run.columns[y[0]][:points] for run in runs])
            places = np.mean([run.columns[x[0]][:points] for run in runs], axis=0)
            intervals = [bootstrap(heights[:, point], samples=samples) for point in range(points)]
            colour, dashes = lines[arm.label]
            axes.plot(places, heights.mean(axis=0), color=colour, linestyle=dashes, marker="o", markersize=3, label=arm.label)
            if len(runs) > 1:
                axes.fill_between(places, [i.low for i in intervals], [i.high for i in intervals], color=colour, alpha=0.13, linewidth=0)
        axes.set_xlabel(x[1])
        axes.set_ylabel(y[1])
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(7))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2, frameon=False, fontsize=8)

    caption = f"{y[1][0].upper()}{y[1][1:]} against {x[1]}: mean over seeds; bands are 95 % bootstrap intervals over seeds."
    return _render(name, caption, draw, 3.0 + 0.16 * ((len(arms) + 1) // 2))


def forest(name: str, differences: Sequence[Difference]) -> Picture:
    """Difference of each arm with its interval, and every seed as a dot."""
    theirs = differences[0].theirs

    def draw(axes: Axes) -> None:
        places = np.arange(len(differences))[::-1]
        axes.axvline(0, color="#555555", linewidth=0.8)
        for place, difference in zip(places, differences, strict=True):
            interval = difference.interval
            values = list(difference.per_seed.values())
            axes.plot(values, np.full(len(values), place - 0.22), "o", color="#999999", markersize=3)
            axes.plot([interval.low, interval.high], [place, place], color=COLOURS[0], linewidth=2)
            axes.plot([interval.estimate], [place], "D", color=COLOURS[0], markersize=5)
        axes.set_yticks(places, [difference.ours for difference in differences])
        axes.set_ylim(-0.6, len(differences) - 0.5)
        axes.set_xlabel(f"area under the success curve, minus {theirs}")

    caption = f"Difference to {theirs}, seed by seed: diamonds are means, bars 95 % bootstrap intervals over seeds, grey dots single seeds."
    return _render(name, caption, draw, 0.9 + 0.36 * len(differences))


def dots(name: str, caption: str, label: str, rows: Sequence[str], series: Mapping[str, Sequence[Interval | None]]) -> Picture:
    """Several series of intervals side by side, one row below the other.

    Args:
        name: File name without ending.
        caption: What it shows.
        label: Of the axis of values.
        rows: Labels of the rows, from the top.
        series: One interval per row, or None where there is none.
    """
    spread = 0.76 / max(len(series), 1)
    height = 0.9 + max(0.24, 0.07 * len(series)) * len(rows)

    def draw(axes: Axes) -> None:
        for number, (title, intervals) in enumerate(series.items()):
            shown = [(len(rows) - 1 - row + 0.38 - spread * (number + 0.5), i) for row, i in enumerate(intervals) if i is not None]
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number // len(COLOURS) % len(MARKERS)]
            for place, interval in shown:
                axes.plot([interval.low, interval.high], [place, place], color=colour, linewidth=1.2)
            axes.plot([i.estimate for _, i in shown], [place for place, _ in shown], marker, color=colour, markersize=3.5, label=title)
        axes.axvline(0, color="#555555", linewidth=0.8)
        axes.set_yticks(range(len(rows)), rows[::-1])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_xlabel(label)
        axes.legend(loc="upper center", bbox_to_anchor=(0.3, -0.5 / height), ncols=2, frameon=False, fontsize=8)

    return _render(name, caption, draw, height)


def _render(name: str, caption: str, draw: Callable[[Axes], None], height_inches: float) -> Picture:
    """Without dates or random ids, so that equal runs give equal files."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, height_inches))
        draw(figure.add_subplot())
        vector, pixels = io.StringIO(), io.BytesIO()
        figure.savefig(vector, format="svg", bbox_inches="tight", metadata={"Date": None})
        figure.savefig(pixels, format="png", bbox_inches="tight", dpi=200, metadata={"Software": None})
    return Picture(name, caption, vector.getvalue(), pixels.getvalue())
