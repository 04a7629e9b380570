"""Curves of many arms so that each can be told apart: small panels by kind of arm, a label at the
end of every line, controls in grey.

A panel holds one family of arms and, in black, the arm without feedback that it is to be compared
with. A colour means the same signal in every panel. A figure is drawn panel by panel, for a page
whose width decides how many stand side by side, and as a whole, for a paper.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from experiments.report.figures import STYLE, Dashes, Picture, as_png, as_svg
from experiments.report.inline import Values, luminance
from experiments.report.results import Arm
from experiments.report.roles import has_edge, is_control, is_online, without_edge

PALETTE = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C564B", "#5B3A8C")
"""Okabe and Ito's colours (2008) without yellow, which vanishes on paper, and black, which is the
arm without feedback; brown and violet.
"""
SIGNAL_COLOURS = {
    "previous": PALETTE[0],
    "gae": PALETTE[1],
    "td": PALETTE[2],
    "state": PALETTE[3],
    "weighted": PALETTE[4],
}
GREY, BLACK = "#8A8A8A", "#000000"
DASHES: tuple[Dashes, ...] = (
    "-",
    (0, (5, 2)),
    (0, (1, 1.3)),
    (0, (6, 2, 1, 2)),
    (0, (9, 2, 2, 2, 2, 2)),
)
CONTROL_DASHES: dict[str, Dashes] = {
    "random": "-",
    "shuffled": (0, (5, 2)),
    "inverted": (0, (1, 1.3)),
    "positive": (0, (6, 2, 1, 2)),
}
ONE_PANEL_ARMS = 7
PANEL_INCHES = (4.3, 2.7)
AA_CONTRAST = 4.55
"""WCAG's 4.5, with room for the rounding to eight bits."""
TOLD_AT_MOST = 50
"""Values of a curve that can be pointed at."""
LETTER_INCHES = 0.064
"""Width of a letter of a label, on average and with room to spare."""
LABEL_SAMPLE_INCHES = 0.24
"""What the piece of a line before its label takes."""
LABEL_INCHES = 0.124
"""Least distance of the middles of two labels."""


@dataclass(frozen=True)
class Line:
    """How an arm is drawn in a panel."""

    arm: str
    label: str
    colour: str
    dashes: Dashes
    faint: bool


@dataclass(frozen=True)
class Panel:
    """A family of arms."""

    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Series:
    """A curve with its band: places, estimates and ends, each ``(points,)``; a band of NaN is not
    drawn.
    """

    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray


def lay_out(arms: Sequence[Arm]) -> list[Panel]:
    """The panels in which ``arms`` are drawn: one for a few arms, otherwise one for each family
    that there is.
    """
    if len(arms) <= ONE_PANEL_ARMS:
        return [Panel("", _lines(arms, ""))]
    groups: dict[str, list[Arm]] = {}
    for arm in arms:
        groups.setdefault(_family(arm), []).append(arm)
    panels = []
    for family in FAMILIES:
        members = groups.get(family, [])
        if members:
            beside = without_edge(members[0], arms) if family != OTHERS else None
            panels.append(Panel(family, _lines([*([beside] if beside else []), *members], family)))
    return panels


OTHERS = "Without feedback"
ON_POLICY, PER_ROLLOUT, ONLINE = (
    "LLM as policy, with feedback",
    "Teacher, updated per rollout",
    "Teacher, updated while acting",
)
FAMILIES = (OTHERS, ON_POLICY, PER_ROLLOUT, ONLINE)


def _family(arm: Arm) -> str:
    if not has_edge(arm.config):
        return OTHERS
    if arm.config.arm.agent == "llm_policy":
        return ON_POLICY
    return ONLINE if is_online(arm.config) else PER_ROLLOUT


def _lines(arms: Sequence[Arm], family: str) -> tuple[Line, ...]:
    lines: list[Line] = []
    for arm in arms:
        signal = arm.config.feedback.signal
        label = _short(arm.label, family)
        if is_control(arm.config):
            dashes = _free(GREY, lines, CONTROL_DASHES[arm.config.feedback.sign])
            lines.append(Line(arm.label, label, GREY, dashes, True))
        elif family in ("", OTHERS) or has_edge(arm.config):
            colour = _colour(SIGNAL_COLOURS.get(signal), lines)
            lines.append(Line(arm.label, label, colour, _free(colour, lines, "-"), False))
        else:
            lines.append(Line(arm.label, label, BLACK, "-", False))
    return tuple(lines)


def _colour(wanted: str | None, lines: Sequence[Line]) -> str:
    """The signal's own; otherwise the first that no line has, black first."""
    if wanted:
        return wanted
    used = {line.colour for line in lines}
    return next(
        (colour for colour in (BLACK, *reversed(PALETTE)) if colour not in used), PALETTE[-1]
    )


def _free(colour: str, lines: Sequence[Line], wanted: Dashes) -> Dashes:
    """``wanted``, or the first dashes that no line of this colour has."""
    used = [line.dashes for line in lines if line.colour == colour]
    return next((dashes for dashes in (wanted, *DASHES) if dashes not in used), wanted)


def _short(label: str, family: str) -> str:
    """Without what the panel's title says already."""
    if not family:
        return label
    short = (
        label.removeprefix("teacher_feedback/")
        .removeprefix("llm_policy+")
        .removeprefix("feedback/")
    )
    return short.removesuffix("/every=1") if family == ONLINE else short


def draw(
    name: str,
    caption: str,
    panels: Sequence[Panel],
    series: Mapping[str, Series],
    axes_labels: tuple[str, str],
    label_heights: Mapping[str, float] | None = None,
    beside: Mapping[str, Series] | None = None,
) -> Picture:
    """A figure as a whole and panel by panel.

    Args:
        name: File name without ending.
        caption: What it shows and how to read it.
        panels: As ``lay_out`` makes them; arms without a series are left out.
        series: By arm.
        axes_labels: Of x and y.
        label_heights: Where each label is to stand, by arm, for curves that all end in one place;
            otherwise at the end of its curve.
        beside: By arm, a second curve of the same colour, thin and dotted, without label and band.
    """
    shown = [
        Panel(panel.title, tuple(line for line in panel.lines if line.arm in series))
        for panel in panels
    ]
    # A panel with nothing but an arm that stands in another one too says nothing.
    telling = [
        panel for panel in shown if len(panel.lines) > 1 or (panel.lines and len(shown) == 1)
    ]
    shown = telling or [panel for panel in shown if panel.lines][:1]
    x_max = max(float(curve.x.max()) for curve in series.values())
    ends = _heights([*series.values(), *(beside or {}).values()])

    def fill(axes: Axes, panel: Panel, told: Values) -> None:
        for line in panel.lines:
            if beside and line.arm in beside:
                other = beside[line.arm]
                _tell(told, axes, f"{line.arm}, its teacher followed blindly", other, axes_labels)
                axes.plot(
                    other.x, other.y, color=line.colour, linestyle=":", linewidth=0.9, zorder=2.5
                )
        _fill(axes, panel, series, axes_labels, x_max or 1.0, ends, label_heights)
        for line in panel.lines:
            _tell(told, axes, line.arm, series[line.arm], axes_labels)

    columns = 1 if len(shown) == 1 else 2
    room = LABEL_SAMPLE_INCHES if label_heights else 0.0
    whole = _figure(shown, columns, fill, room)
    parts = tuple(
        (panel.title, as_svg(*(_figure([panel], 1, fill, room) if len(shown) > 1 else whole)))
        for panel in shown
    )
    return Picture(
        name, caption, parts[0][1] if len(parts) == 1 else as_svg(*whole), as_png(whole[0]), parts
    )


def _heights(curves: Sequence[Series]) -> tuple[float, float]:
    """Where the vertical axis begins and ends: at zero, or below the lowest where that is below."""
    values = np.concatenate([part for curve in curves for part in (curve.y, curve.low, curve.high)])
    lowest, highest = float(np.nanmin(values)), float(np.nanmax(values))
    if lowest >= 0:
        return 0.0, 1.04 * highest or 1.0
    room = 0.04 * (highest - lowest) or 1.0
    return lowest - room, highest + room


def _tell(told: Values, axes: Axes, name: str, curve: Series, labels: tuple[str, str]) -> None:
    """The values of a curve, of a long one some, for who points at them."""
    for i in range(0, len(curve.x), -(-len(curve.x) // TOLD_AT_MOST)):
        x, y, low, high = (float(part[i]) for part in (curve.x, curve.y, curve.low, curve.high))
        ends = "" if np.isnan(low) else f" [{low:.3f}, {high:.3f}]"
        place = f"{x:,.0f}" if curve.x.max() > 10 else f"{x:.2f}"
        told.add(axes, x, y, f"{name}: {labels[1]} {y:.3f}{ends} at {place} ({labels[0]})")


def _figure(
    panels: Sequence[Panel], columns: int, fill: Callable[[Axes, Panel, Values], None], room: float
) -> tuple[Figure, Values]:
    """Panels of one size, each with room for its labels, whatever they are; and their values."""
    longest = max(len(line.label) for panel in panels for line in panel.lines)
    labels = 0.22 + room + LETTER_INCHES * longest
    most = max(len(panel.lines) for panel in panels)
    rows = -(-len(panels) // columns)
    width = max(PANEL_INCHES[0], 0.52 + PANEL_INCHES[0] / 3 + labels)
    height = max(PANEL_INCHES[1], 0.7 + LABEL_INCHES * (most - 1))
    told = Values()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(columns * width, rows * height))
        for place, panel in enumerate(panels):
            left, top = place % columns * width + 0.52, (rows - place // columns) * height - 0.24
            box = (left, top - height + 0.7, width - 0.52 - labels, height - 0.7)
            fill(
                figure.add_axes(
                    (
                        box[0] / columns / width,
                        box[1] / rows / height,
                        box[2] / columns / width,
                        box[3] / rows / height,
                    )
                ),
                panel,
                told,
            )
    return figure, told


def _fill(
    axes: Axes,
    panel: Panel,
    series: Mapping[str, Series],
    labels: tuple[str, str],
    x_max: float,
    ends: tuple[float, float],
    label_heights: Mapping[str, float] | None,
) -> None:
    for order, line in enumerate(panel.lines):
        curve, width = series[line.arm], 1.1 if line.faint else 1.7
        axes.plot(
            curve.x,
            curve.y,
            color=line.colour,
            linestyle=line.dashes,
            linewidth=width,
            zorder=3 if line.faint else 5 + order,
        )
        if not line.faint and not np.isnan(curve.low).all():
            axes.fill_between(
                curve.x, curve.low, curve.high, color=line.colour, alpha=0.12, linewidth=0, zorder=2
            )
    axes.set_xlim(0, x_max)
    axes.set_ylim(*ends)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.set_title(panel.title, loc="left", fontsize=9, fontweight="bold")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    if x_max >= 1000:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if label_heights is None:
        _label_ends(axes, panel, series, x_max, ends)
    else:
        _label_samples(axes, panel, label_heights)


def _label_ends(
    axes: Axes,
    panel: Panel,
    series: Mapping[str, Series],
    x_max: float,
    ends: tuple[float, float],
) -> None:
    """Write each line's name beside its end, and move apart those that would overlap."""
    tips = []
    for line in panel.lines:
        x, y = float(series[line.arm].x[-1]), float(series[line.arm].y[-1])
        tips.append((x / x_max, (y - ends[0]) / (ends[1] - ends[0]), line))
    for (x, y, line), place in zip(tips, spread([y for _, y, _ in tips], _gap(axes)), strict=True):
        axes.annotate(
            line.label,
            xy=(x, y),
            xytext=(1.035, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            color=_ink(line),
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": line.colour,
                "linewidth": 0.6,
                "alpha": 0.45,
                "linestyle": ":",
                "shrinkA": 1,
                "shrinkB": 0,
            },
        )


def _label_samples(axes: Axes, panel: Panel, heights: Mapping[str, float]) -> None:
    """Write each line's name behind a piece of it, the highest first."""
    places = spread([heights[line.arm] for line in panel.lines], _gap(axes))
    for line, place in zip(panel.lines, places, strict=True):
        axes.plot(
            [1.02, 1.09],
            [place, place],
            color=line.colour,
            linestyle=line.dashes,
            transform=axes.transAxes,
            clip_on=False,
            linewidth=1.4,
        )
        axes.text(
            1.11,
            place,
            line.label,
            transform=axes.transAxes,
            va="center",
            fontsize=8,
            color=_ink(line),
        )


def _gap(axes: Axes) -> float:
    """``LABEL_INCHES`` as a share of the height."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    return LABEL_INCHES / (axes.get_position().height * figure.get_figheight())


def _ink(line: Line) -> str:
    """Grey lines have darker words, and so have pale colours."""
    return "#5f5f5f" if line.faint else readable(line.colour)


def readable(colour: str) -> str:
    """The colour, darkened as little as words on white need (WCAG 2, level AA)."""
    shares = np.linspace(1.0, 0.0, 101)
    tones = shares[:, None] * np.array(to_rgb(colour))
    return str(to_hex(tones[np.argmax(1.05 / (luminance(tones) + 0.05) >= AA_CONTRAST)]))


def spread(places: Sequence[float], gap: float) -> list[float]:
    """The places, moved as little as needed to be ``gap`` apart and, where there is room, within 0
    and 1. In the order given.

    Least squares under an order (pool adjacent violators): without the gaps, neighbours in the
    wrong order share their mean.
    """
    order = sorted(range(len(places)), key=lambda i: places[i])
    pools: list[list[float]] = []
    for rank, i in enumerate(order):
        pools.append([places[i] - rank * gap])
        while len(pools) > 1 and _mean(pools[-2]) >= _mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    room = max(0.0, 1 - gap * (len(places) - 1))
    levels = [min(max(_mean(pool), 0.0), room) for pool in pools for _ in pool]
    found = [0.0] * len(places)
    for rank, i in enumerate(order):
        found[i] = levels[rank] + rank * gap
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
