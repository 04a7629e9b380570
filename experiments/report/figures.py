"""What a figure is, and figures of intervals, as SVG and PNG: readable in print, on a phone and by
the colour-blind.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.report.inline import Values
from experiments.report.statistics import Interval
from experiments.report.summary import Difference, bracket, plain, signed

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C564B")
"""Okabe and Ito's palette (2008), without its yellow, which vanishes on paper; and brown."""
Dashes = tuple[int, tuple[float, ...]] | str
MARKERS = ("o", "s", "^")
"""Where there are more series than colours, as many arms give."""
STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "report",
    "axes.grid": True,
    "grid.alpha": 0.25,
    "text.parse_math": False,  # a dollar in a name is one
}
WIDTH_INCHES = 4.6


@dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        name: File name without ending.
        caption: What it shows and how to read it.
        svg: Vector graphics, which tell each value under the pointer.
        png: Pixels.
        parts: Title and vector graphics of each panel, where a page may place them one by one.
    """

    name: str
    caption: str
    svg: str
    png: bytes
    parts: tuple[tuple[str, str], ...] = ()


def forest(name: str, differences: Sequence[Difference]) -> Picture:
    """Difference of each arm with its interval, and every pair of runs as a dot."""
    theirs, rows = differences[0].theirs, len(differences)

    def draw(axes: Axes, told: Values) -> None:
        for row, difference in enumerate(differences):
            place, interval = rows - 1 - row, difference.interval
            values = list(difference.per_run.values())
            for (task, seed), value in difference.per_run.items():
                words = f"{difference.ours}, {task}, seed {seed}: {signed(value)}"
                told.add(axes, value, place - 0.14, words)
            words = f"{difference.ours}: {signed(interval.estimate)} {bracket(interval, signed)}"
            told.add(axes, interval.estimate, place, words)
            colour = COLOURS[0] if difference.is_ahead or difference.is_behind else "#6b6b6b"
            axes.plot(
                values, np.full(len(values), place - 0.14), "o", color="#b5b5b5", markersize=2.5
            )
            axes.plot(
                [interval.low, interval.high],
                [place, place],
                color=colour,
                linewidth=2,
                solid_capstyle="butt",
            )
            axes.plot([interval.estimate], [place], "D", color=colour, markersize=4.5)
        _name_rows(axes, [difference.ours for difference in differences], 0.2)
        axes.set_xlabel(f"area under the success curve, minus {theirs}")

    caption = (
        f"Difference to {theirs}: diamonds are means, bars 95 % t intervals over seeds, blue where"
        " zero is left out after Holm's correction; pale dots are single pairs of runs."
    )
    return _render(name, caption, draw, 0.7 + 0.34 * rows)


def dots(
    name: str,
    caption: str,
    label: str,
    rows: Sequence[str],
    series: Mapping[str, Sequence[Interval | None]],
) -> Picture:
    """Several series of intervals side by side, one row below the other.

    Args:
        name: File name without ending.
        caption: What it shows.
        label: Of the axis of values.
        rows: Labels of the rows, from the top.
        series: One interval per row, or None where there is none.
    """
    row_inches = 0.2 + 0.085 * len(series)
    named = 0.17 / row_inches  # the share of a row that its name takes

    def draw(axes: Axes, told: Values) -> None:
        for number, (title, intervals) in enumerate(series.items()):
            offset = 0.5 - named - (1 - named) * (number + 0.5) / len(series)
            shown = [
                (len(rows) - 1 - row + offset, i)
                for row, i in enumerate(intervals)
                if i is not None
            ]
            colour = COLOURS[number % len(COLOURS)]
            marker = MARKERS[number // len(COLOURS) % len(MARKERS)]
            named_rows = [row for row, i in zip(rows, intervals, strict=True) if i is not None]
            for row, (place, interval) in zip(named_rows, shown, strict=True):
                axes.plot(
                    [interval.low, interval.high], [place, place], color=colour, linewidth=1.3
                )
                words = f"{row}, {title}: {plain(interval.estimate)} {bracket(interval)}"
                told.add(axes, interval.estimate, place, words)
            axes.plot(
                [i.estimate for _, i in shown],
                [place for place, _ in shown],
                marker,
                color=colour,
                markersize=3.5,
                label=title,
            )
        _name_rows(axes, rows, 0.5 - named)
        axes.set_xlabel(label)
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=2,
            frameon=False,
            fontsize=8,
            borderpad=0,
            handletextpad=0.3,
        )

    return _render(name, caption, draw, 0.75 + 0.16 * -(-len(series) // 2) + row_inches * len(rows))


def _name_rows(axes: Axes, names: Sequence[str], above: float) -> None:
    """Names above their rows, inside the axes, where they stay legible on a phone; stripes tell the
    rows apart.
    """
    backing = {
        "facecolor": "white",
        "alpha": 0.7,
        "linewidth": 0,
        "pad": 0.5,
    }  # over the line at zero
    for row, name in enumerate(names):
        place = len(names) - 1 - row
        axes.text(
            0.008,
            place + above,
            name,
            transform=axes.get_yaxis_transform(),
            fontsize=8,
            va="bottom",
            zorder=6,
            bbox=backing,
        )
        if row % 2 == 0:
            axes.axhspan(place - 0.5, place + 0.5, color="#f4f6f8", linewidth=0, zorder=0)
    axes.axvline(0, color="#555555", linewidth=0.8, zorder=1)
    axes.set_ylim(-0.5, len(names) - 0.5)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(axis="y", visible=False)


def _render(
    name: str, caption: str, draw: Callable[[Axes, Values], None], height_inches: float
) -> Picture:
    told = Values()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
        draw(figure.add_subplot(), told)
    return Picture(name, caption, as_svg(figure, told), as_png(figure))


def as_svg(figure: Figure, told: Values) -> str:
    """Without dates or random ids, so that equal runs give equal files."""
    text = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return told.put_into(text.getvalue(), figure)


def as_png(figure: Figure) -> bytes:
    """Likewise."""
    pixels = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(pixels, format="png", dpi=200, metadata={"Software": None})
    return pixels.getvalue()
