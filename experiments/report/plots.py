"""Every figure of a report: curves against steps and costs, differences, controls, and what there
is over all tasks.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from experiments.report.figures import Picture, dots, forest
from experiments.report.panels import Series, draw, lay_out
from experiments.report.results import CALLS, RETURN, SECONDS, STEPS, SUCCESS, TEACHER, TOKENS, Arm
from experiments.report.statistics import mean_columns
from experiments.report.summary import NO_EDGE, Summary, pays
from experiments.report.tables import PROFILE_STEPS, profile

Axis = tuple[str, str]
COST_AXES = (
    (CALLS, "calls of the LLM"),
    (TOKENS, "tokens through the LLM"),
    (SECONDS, "seconds of collecting and updating"),
)
BANDS = (
    "means over seeds; bands are 95 % t intervals over seeds, left out for the controls, in grey"
)


def draw_task(summary: Summary, prefix: str = "") -> dict[str, list[Picture]]:
    """The figures of one task: ``curves``, ``costs``, ``differences`` and ``controls``.

    Args:
        summary: Of one task.
        prefix: Before each file's name.
    """
    arms = [row.arm for row in summary.arms]
    panels = lay_out(arms)

    def curves(name: str, x: Axis, y: Axis, wanted: Callable[[Arm], bool]) -> list[Picture]:
        series = {arm.label: _series(arm, x[0], y[0]) for arm in arms if wanted(arm)}
        caption = f"{y[1][0].upper()}{y[1][1:]} against {x[1]}: {BANDS}."
        followed = {
            arm.label: _series(arm, x[0], TEACHER)
            for arm in arms
            if y[0] == SUCCESS and _is_followed(arm)
        }
        if followed:
            caption += (
                " Thin dotted lines of the same colour: the arm's teacher followed blindly, without"
                " the student."
            )
        return (
            [draw(prefix + name, caption, panels, series, (x[1], y[1]), beside=followed)]
            if series
            else []
        )

    steps, success = (STEPS, "environment steps"), (SUCCESS, "success rate")
    found = {
        "curves": [
            *curves("success_by_steps", steps, success, lambda arm: True),
            *curves("return_by_steps", steps, (RETURN, "return (unscaled)"), lambda arm: True),
            *curves(
                "teacher_by_steps", steps, (TEACHER, "success of the teacher alone"), _is_followed
            ),
        ],
        "costs": [
            picture
            for cost in COST_AXES
            for picture in curves(
                f"success_by_{cost[0]}",
                cost,
                success,
                lambda arm, cost=cost: pays(list(arm.runs.values()), cost[0]),  # type: ignore[misc]
            )
        ],
    }
    return found | _differences(summary, prefix)


def draw_overall(overall: Summary, samples: int) -> dict[str, list[Picture]]:
    """The figures over all tasks: ``aggregates``, ``profiles``, ``differences``, ``controls``."""
    levels = np.arange(PROFILE_STEPS + 1) / PROFILE_STEPS
    series = {row.label: Series(levels, *profile(row, overall, samples)) for row in overall.arms}
    axes = ("area under the success curve, above", "share of runs")
    caption = (
        "Performance profiles, with 95 % percentile bootstrap bands: the share of runs whose area"
        f" is above a level, mean over {len(overall.tasks)} tasks; further right is better. Names"
        " stand at the height of the mean area."
    )
    aggregates = dots(
        "overall_scores",
        "Area under the success curve over all tasks, 95 % intervals over seeds: t for the mean,"
        " percentile bootstrap for the interquartile mean.",
        "area under the success curve",
        [row.label for row in overall.arms],
        {
            "interquartile mean": [row.area_iqm for row in overall.arms],
            "mean": [row.area for row in overall.arms],
        },
    )
    heights = {row.label: row.area.estimate for row in overall.arms}
    profiles = draw(
        "overall_profiles",
        caption,
        lay_out([row.arm for row in overall.arms]),
        series,
        axes,
        heights,
    )
    return {"aggregates": [aggregates], "profiles": [profiles]} | _differences(overall, "overall_")


def _differences(summary: Summary, prefix: str) -> dict[str, list[Picture]]:
    forests = []
    for name, differences in (
        ("difference_to_baseline", summary.against_baseline),
        ("difference_to_frozen_teacher", summary.against_frozen),
    ):
        paired = [difference for difference in differences if difference.pairs]
        if paired and not (
            name == "difference_to_frozen_teacher" and summary.frozen == summary.baseline
        ):
            forests.append(forest(prefix + name, paired))
    return {"differences": forests, "controls": _controls(summary, prefix)}


CONTROL_TITLES = {
    NO_EDGE: "without feedback",
    "random": "random sign",
    "shuffled": "shuffled signs",
    "inverted": "inverted sign",
}


def _controls(summary: Summary, prefix: str) -> list[Picture]:
    """Each feedback arm minus the arm without feedback and minus its controls."""
    checked = [edge for edge in summary.edges if edge.differences]
    series = {
        title: [
            edge.differences[kind].interval if kind in edge.differences else None
            for edge in checked
        ]
        for kind, title in CONTROL_TITLES.items()
        if any(kind in edge.differences for edge in checked)
    }
    if not series:
        return []
    caption = (
        "Each feedback arm minus the same arm without feedback and minus its controls, with 95 % t"
        " intervals. Feedback that carries information lies to the right of zero against all of"
        " them."
    )
    return [
        dots(
            f"{prefix}controls",
            caption,
            "area under the success curve, feedback minus control",
            [edge.label for edge in checked],
            series,
        )
    ]


def _is_followed(arm: Arm) -> bool:
    return all(
        not np.isnan(run.columns.get(TEACHER, np.array(np.nan))).any() for run in arm.runs.values()
    )


def _series(arm: Arm, x: str, y: str) -> Series:
    """Mean over seeds at each evaluation."""
    runs = list(arm.runs.values())
    points = min(len(run.columns[y]) for run in runs)
    heights = np.stack([run.columns[y][:points] for run in runs])
    places = np.mean([run.columns[x][:points] for run in runs], axis=0)
    mean, low, high = mean_columns(heights)
    if y != RETURN:  # the others are rates
        low, high = np.clip(low, 0, 1), np.clip(high, 0, 1)
    return Series(places, mean, low, high)
