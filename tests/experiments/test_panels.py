"""Which arm is drawn in which panel, in which colour, and labels that do not stand on top of each
other.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_runs import compose_cell
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from experiments.report.inline import DARK, Values, in_the_dark
from experiments.report.panels import (
    BLACK,
    GREY,
    PALETTE,
    Line,
    Panel,
    Series,
    _figure,
    _fill,
    _heights,
    draw,
    lay_out,
    readable,
    spread,
)
from experiments.report.results import Arm, Run


def make_arms(*names: str) -> list[Arm]:
    configs = [compose_cell(name) for name in names]
    return [
        Arm(config.arm.name, {0: Run(Path(), config, "complete", {}, {}, {})}) for config in configs
    ]


MANY = make_arms(
    "llm_policy", "llm_policy_feedback+signal=gae", "llm_policy_feedback+signal=gae+sign=random",
    "student_alone", "teacher_frozen", "teacher_feedback+signal=gae",
    "teacher_feedback+signal=previous", "teacher_feedback+signal=constant+sign=random",
    "teacher_feedback+signal=gae+sign=inverted", "teacher_feedback+signal=td+every=1",
    "teacher_feedback+signal=constant+every=1+sign=random",
)  # fmt: skip


def test_a_few_arms_share_a_panel_and_keep_their_names() -> None:
    (panel,) = lay_out(MANY[:6])
    assert [line.label for line in panel.lines] == [arm.label for arm in MANY[:6]]
    assert len({(line.colour, str(line.dashes)) for line in panel.lines}) == 6


def test_many_arms_have_a_panel_for_each_family_with_the_arm_without_feedback() -> None:
    panels = {panel.title: [line.label for line in panel.lines] for panel in lay_out(MANY)}
    assert panels == {
        "Without feedback": ["llm_policy", "student_alone", "teacher_frozen"],
        "LLM as policy, with feedback": ["llm_policy", "gae", "gae/random sign"],
        "Teacher, updated per rollout": [
            "teacher_frozen",
            "gae",
            "previous",
            "constant/random sign",
            "gae/inverted sign",
        ],
        "Teacher, updated while acting": ["teacher_frozen", "td", "constant/every=1/random sign"],
    }


def test_a_colour_means_a_signal_everywhere_and_controls_are_grey_with_dashes_of_their_own() -> (
    None
):
    lines = [line for panel in lay_out(MANY) for line in panel.lines]
    assert len({line.colour for line in lines if line.label == "gae"}) == 1
    assert {line.colour for line in lines if line.label.endswith(" sign")} == {GREY}
    assert {line.colour for line in lines if not line.label.endswith(" sign")}.isdisjoint({GREY})
    for panel in lay_out(MANY):
        assert len({(line.colour, str(line.dashes)) for line in panel.lines}) == len(panel.lines)


def contrast_on_white(colour: str) -> float:
    """WCAG 2's ratio."""
    light = 0.0
    for place, weight in ((1, 0.2126), (3, 0.7152), (5, 0.0722)):
        part = int(colour[place : place + 2], 16) / 255
        light += weight * (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4)
    return 1.05 / (light + 0.05)


@pytest.mark.parametrize("colour", [*PALETTE, GREY, BLACK, "#FFFF00", "#FFFFFF"])
def test_words_on_white_have_enough_contrast_whatever_the_colour_of_their_line(
    colour: str,
) -> None:
    ink = readable(colour)
    assert contrast_on_white(ink) >= 4.5
    assert (ink == colour.lower()) == (contrast_on_white(colour) >= 4.55)


def contrast_in_the_dark(colour: str) -> float:
    return 1.05 / contrast_on_white(colour) / (1.05 / contrast_on_white(DARK))


@pytest.mark.parametrize("colour", [*PALETTE, GREY, BLACK, "#555555", "#b5b5b5"])
def test_lines_and_words_are_as_clear_in_the_dark_as_on_white(colour: str) -> None:
    wanted = min(14.0, max(3.0, contrast_on_white(colour)))
    assert contrast_in_the_dark(in_the_dark(colour)) == pytest.approx(wanted, rel=0.1)  # 8 bits


def test_grounds_are_dark_and_stripes_a_little_lighter() -> None:
    assert in_the_dark("#ffffff") == DARK
    assert 1 < contrast_in_the_dark(in_the_dark("#f4f6f8")) < 1.3


def test_a_value_stands_where_its_point_is_drawn() -> None:
    figure, told = Figure(figsize=(4, 2)), Values()
    axes = figure.add_axes((0.25, 0.25, 0.5, 0.5))
    axes.set_xlim(0, 10)
    axes.set_ylim(0, 1)
    told.add(axes, 10, 1, "a <b> & c")
    told.add(axes, 0, 0, "below")
    told.add(axes, float("nan"), 0, "nowhere")
    made = told.put_into("<svg></svg>\n", figure)
    assert re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', made) == [
        ("216.0", "36.0"),
        ("72.0", "108.0"),
    ]
    assert "<title>a &lt;b&gt; &amp; c</title>" in made and made.endswith("</g>\n</svg>\n")
    assert Values().put_into("<svg></svg>", figure) == "<svg></svg>"


def test_a_figure_is_drawn_as_a_whole_and_panel_by_panel() -> None:
    steps, flat = np.array([0.0, 10.0, 20.0]), np.array([0.5, 0.5, 0.5])
    series = {arm.label: Series(steps, flat, flat - 0.1, flat + 0.1) for arm in MANY}
    picture = draw("name", "caption", lay_out(MANY), series, ("steps", "success"))
    assert [title for title, _ in picture.parts] == [
        "Without feedback",
        "LLM as policy, with feedback",
        "Teacher, updated per rollout",
        "Teacher, updated while acting",
    ]
    assert (
        picture.png.startswith(b"\x89PNG")
        and all("<svg" in svg for _, svg in picture.parts)
        and picture.svg not in dict(picture.parts).values()
    )
    alone = draw(
        "name",
        "caption",
        lay_out(MANY),
        {"student_alone": series["student_alone"]},
        ("steps", "success"),
    )
    assert len(alone.parts) == 1


def test_many_and_long_labels_lie_within_the_picture() -> None:
    steps = np.array([0.0, 10.0])
    names = [f"teacher_feedback/previous/credit=posterior/kappa={n}" for n in range(30)]
    curves = {n: Series(steps, np.full(2, 0.5), steps * np.nan, steps * np.nan) for n in names}
    panel = Panel("", tuple(Line(name, name, BLACK, "-", False) for name in names))

    def fill(axes: Axes, panel: Panel, told: Values) -> None:
        _fill(axes, panel, curves, ("steps", "success"), 10.0, (0.0, 1.0), None)

    figure, _ = _figure([panel], 1, fill, 0.0)
    figure.draw_without_rendering()  # places them
    boxes = [Text.get_window_extent(text) for text in figure.axes[0].texts]
    assert all(box.x1 <= figure.bbox.x1 and 0 <= box.y0 < box.y1 <= figure.bbox.y1 for box in boxes)
    assert all(above.y0 > below.y0 for below, above in itertools.pairwise(boxes))


@pytest.mark.parametrize(
    ("heights", "ends"),
    [
        ([0.25, 0.5], (0, 0.52)),
        ([0.0, 0.0], (0, 1)),
        ([-35.0, -10.0], (-36, -9)),
        ([-1.0, 24.0], (-2, 25)),
        ([-3.0, -3.0], (-4, -2)),
    ],
)
def test_an_axis_holds_every_value_and_begins_at_zero_where_none_is_below(
    heights: list[float], ends: tuple[float, float]
) -> None:
    unknown = np.full(2, np.nan)
    found = _heights([Series(np.arange(2.0), np.array(heights), unknown, unknown)])
    assert found == pytest.approx(ends)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=14))
def test_labels_keep_their_distance_and_their_order(places: list[float]) -> None:
    gap = 0.062
    moved = spread(places, gap)
    ordered = sorted(moved)
    assert all(
        above - below >= gap - 1e-9 for below, above in zip(ordered, ordered[1:], strict=False)
    )
    assert min(moved) >= -1e-9 and max(moved) <= 1 + 1e-9
    for i, j in zip(*np.triu_indices(len(places), 1), strict=True):
        assert (moved[i] - moved[j]) * (places[i] - places[j]) >= 0


def test_labels_with_room_stay_where_they_are() -> None:
    assert spread([0.9, 0.1, 0.5], 0.06) == pytest.approx([0.9, 0.1, 0.5])
