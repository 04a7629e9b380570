"""What a report says about controls and about the paper's rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from made_runs import make_config, make_run

from experiments.report.headline import amount, headline, literal_rule, warnings
from experiments.report.making import find
from experiments.report.results import Arm, read_run
from experiments.report.roles import control_of, is_literal_rule, without_edge
from experiments.report.sections import task_sections
from experiments.report.summary import Summary
from lamorel_ext.config import load_config

PLAIN = ("feedback.credit=chosen", "feedback.ties=positive", "feedback.epochs=1")
"""The edge without what was added to the paper's."""

ONLINE = [
    "teacher_frozen",
    "teacher_feedback+signal=previous+every=1",
    "teacher_feedback+signal=td+every=1",
    "teacher_feedback+signal=constant+every=1+sign=random",
    "teacher_feedback+signal=previous+every=1+sign=inverted",
    "teacher_feedback+signal=td+every=1+sign=inverted",
]


def make_arms(folder: Path, names: Sequence[str], *overrides: str) -> list[Arm]:
    runs = [
        read_run(make_run(make_config(name, 0, folder, names, *PLAIN, *overrides), [0.0, 0.0]))
        for name in names
    ]
    return [Arm(run.config.arm.name, {0: run}) for run in runs]


def compare(folder: Path, heights: Mapping[str, Sequence[float]], *overrides: str) -> Summary:
    """Flat curves, so that a height is an area; one per seed."""
    for arm, levels in heights.items():
        for seed, level in enumerate(levels):
            make_run(make_config(arm, seed, folder, list(heights), *PLAIN, *overrides), [level] * 3)
    return find(folder).whole


# --- matching -------------------------------------------------------------------------------------


def test_a_control_is_the_arm_with_another_sign(tmp_path: Path) -> None:
    names = [
        "teacher_frozen", "teacher_feedback+signal=gae", "teacher_feedback+signal=gae+sign=random",
        "teacher_feedback+signal=gae+sign=inverted", "teacher_feedback+signal=gae+credit=posterior",
        "teacher_feedback+signal=gae+credit=posterior+sign=random", "llm_policy",
        "llm_policy_feedback+signal=gae", "llm_policy_feedback+signal=gae+sign=shuffled",
    ]  # fmt: skip
    arms = {arm.label: arm for arm in make_arms(tmp_path, names)}

    def partners(label: str) -> list[str | None]:
        everything = list(arms.values())
        found = [
            without_edge(arms[label], everything),
            *(
                control_of(arms[label], kind, everything)
                for kind in ("random", "shuffled", "inverted")
            ),
        ]
        return [arm.label if arm else None for arm in found]

    gae, posterior = "teacher_feedback/gae", "teacher_feedback/gae/posterior"
    assert partners(gae) == ["teacher_frozen", f"{gae}/random sign", None, f"{gae}/inverted sign"]
    assert partners(posterior) == ["teacher_frozen", f"{posterior}/random sign", None, None]
    assert partners("llm_policy+feedback/gae") == [
        "llm_policy",
        None,
        "llm_policy+feedback/gae/shuffled sign",
        None,
    ]


@pytest.mark.parametrize(
    "other",
    ["feedback.kl_coef=0.1", "feedback.loss=reinforce", "student.kappa=2", "feedback.epochs=4"],
)
def test_a_run_that_differs_in_anything_else_is_no_control(tmp_path: Path, other: str) -> None:
    (arm,) = make_arms(tmp_path / "arm", ["teacher_feedback+signal=td"])
    (far,) = make_arms(tmp_path / "far", ["teacher_feedback+signal=td+sign=random"], other)
    (near,) = make_arms(tmp_path / "near", ["teacher_feedback+signal=td+sign=random"])
    assert control_of(arm, "random", [far, near]) is near
    assert control_of(arm, "random", [far]) is None


@pytest.mark.parametrize(
    "other", ["student.lr=0.5", "lamorel_args.llm_args.model_path=other", "arm.weights=fresh"]
)
def test_an_arm_that_differs_in_more_than_the_feedback_is_not_the_arm_without_it(
    tmp_path: Path, other: str
) -> None:
    (arm,) = make_arms(tmp_path / "arm", ["teacher_feedback+signal=td"])
    (far,) = make_arms(tmp_path / "far", ["teacher_frozen"], other)
    (near,) = make_arms(tmp_path / "near", ["teacher_frozen"], "feedback.epochs=3")
    assert without_edge(arm, [far, near]) is near
    assert without_edge(arm, [far]) is None


def test_the_answer_names_what_else_the_nearest_arm_without_feedback_differs_in(
    tmp_path: Path,
) -> None:
    for arm, more in (("teacher_frozen", "student.lr=0.5"), ("teacher_feedback", "ppo.lr=0.002")):
        for seed in range(3):
            make_run(make_config(arm, seed, tmp_path, [arm], more), [0.1 * seed] * 3)
    assert headline(find(tmp_path).whole)[0] == (
        "Did the feedback help? Not answered here: no feedback arm stands beside the same arm"
        " without feedback (teacher_frozen differs from teacher_feedback in student.lr, ppo.lr"
        " too)."
    )


@pytest.mark.parametrize("taught", ["preferences", "constitution", "prompt_search"])
def test_a_teacher_that_a_method_teaches_is_not_the_frozen_one(tmp_path: Path, taught: str) -> None:
    assert compare(tmp_path / "alone", {taught: [0.5], "student_alone": [0.2]}).frozen is None
    summary = compare(tmp_path / "both", {taught: [0.5], "teacher_frozen": [0.4]})
    assert summary.frozen == "teacher_frozen"


def test_the_random_sign_of_earlier_run_folders_controls_every_signal(tmp_path: Path) -> None:
    arms = make_arms(
        tmp_path,
        [
            "teacher_feedback+signal=weighted",
            "teacher_feedback+signal=previous+ties=zero",
            "teacher_feedback+signal=td+every=1",
        ],
    )
    (old,) = make_arms(tmp_path / "old", ["teacher_feedback"], "feedback.signal=random")
    assert [control_of(arm, "random", [old]) for arm in arms] == [
        old,
        old,
        None,
    ]  # the last one has another rhythm


def test_missing_controls_are_named_and_impossible_ones_are_not_asked_for(tmp_path: Path) -> None:
    names = [
        "teacher_feedback+signal=td+every=1",
        "teacher_feedback+signal=td+every=1+sign=inverted",
        "llm_policy_feedback+signal=gae",
        "teacher_feedback+signal=previous+channel=both",
    ]
    make_arms(tmp_path / "1", names, "env.num_envs=1")
    assert {edge.label: edge.not_run for edge in find(tmp_path / "1").whole.edges} == {
        "teacher_feedback/td/every=1": ["random"],
        "llm_policy+feedback/gae": ["random", "shuffled", "inverted"],
        "teacher_feedback/previous/both": ["random", "inverted"],
    }
    make_arms(tmp_path / "16", names[:2])
    assert [edge.not_run for edge in find(tmp_path / "16").whole.edges] == [["random", "shuffled"]]


def test_the_literal_rule_is_the_papers_and_none_of_its_variants() -> None:
    names = [
        f"{base}+signal={signal}{rest}"
        for base in ("teacher_feedback", "llm_policy_feedback")
        for signal in ("previous", "td")
        for rest in ("", "+every=1", "+ties=zero", "+warmup_steps=512")
    ]
    ties = "feedback.ties=positive"
    plain = {name: [text for text in PLAIN if text != ties or "ties" not in name] for name in names}
    literal = [
        name for name in names if is_literal_rule(load_config([f"arm={name}", *plain[name]]))
    ]
    assert literal == [
        "teacher_feedback+signal=previous", "teacher_feedback+signal=previous+every=1",
        "llm_policy_feedback+signal=previous", "llm_policy_feedback+signal=previous+every=1",
    ]  # fmt: skip


# --- what is said ---------------------------------------------------------------------------------


def test_a_report_without_controls_says_so_and_names_the_files(tmp_path: Path) -> None:
    summary = compare(
        tmp_path,
        {
            "teacher_frozen": (0.5, 0.5),
            "teacher_feedback+signal=gae": (0.75, 1.0),
            "teacher_feedback+signal=constant+sign=random": (0.5, 0.25),
        },
    )
    (warning,) = warnings([summary])
    assert warning.startswith(
        "Controls are missing: "
        "teacher_feedback/gae has no complete run with the shuffled or inverted sign"
    )
    assert warning.endswith("Set compare.controls=[shuffled,inverted].")
    nothing = {"curves": (), "costs": (), "differences": (), "controls": ()}
    (section,) = [
        section for section in task_sections(summary, nothing) if "<h2>Controls" in section
    ]
    assert (
        'class="alarm"' in section
        and "no shuffled, no inverted sign. Set compare.controls=[shuffled,inverted]." in section
    )
    # 0.75 and 1 against 0.5 twice: standard error 1/8, one degree of freedom, 12.706 / 8 to either
    # side, p = 1 - 2 / pi * atan(3). Against 0.5 and 0.25: standard error sqrt(2) / 8, two degrees
    # of freedom.
    cells = section.split("<tbody>")[1].replace("\N{NO-BREAK SPACE}", " ")
    assert (
        "<td>+0.375 [−1.213, +1.963] p = 0.205</td><td>+0.500 [−0.261, +1.261] p = 0.106</td>"
        "<td>missing</td><td>missing</td>"
    ) in cells


def test_with_all_controls_there_is_no_warning(tmp_path: Path) -> None:
    summary = compare(tmp_path, dict.fromkeys(ONLINE, (0.5, 0.5)), "env.num_envs=1")
    assert warnings([summary]) == []
    nothing = {"curves": (), "costs": (), "differences": (), "controls": ()}
    (section,) = [
        section for section in task_sections(summary, nothing) if "<h2>Controls" in section
    ]
    assert (
        "alarm" not in section
        and section.count("impossible") == 2
        and "No shuffled signs for" in section
    )


def test_no_feedback_no_controls(tmp_path: Path) -> None:
    summary = compare(tmp_path, {"llm_policy": (0.5, 0.5), "teacher_frozen": (0.75, 1.0)})
    nothing = {"curves": (), "costs": (), "differences": (), "controls": ()}
    assert warnings([summary]) == [] and not [
        section for section in task_sections(summary, nothing) if "Controls" in section
    ]


def shown(summary: Summary, signal: str, kind: str) -> str:
    """The difference of a feedback arm as sentences have it; test_statistics has the arithmetic."""
    edge = next(edge for edge in summary.edges if f"/{signal}" in edge.label)
    return amount(edge.differences[kind].interval)


def test_where_the_papers_rule_fails_the_variant_that_helps_is_named_with_its_interval(
    tmp_path: Path,
) -> None:
    summary = compare(
        tmp_path,
        {
            "teacher_frozen": 3 * (0.5, 0.5),
            "teacher_feedback+signal=previous+every=1": 3 * (0.25, 0.5),
            "teacher_feedback+signal=td+every=1": 3 * (0.75, 1.0),
            "teacher_feedback+signal=state+every=1": 3 * (0.5, 0.75),
            "teacher_feedback+signal=constant+every=1+sign=random": 3 * (0.5, 0.25),
        },
    )
    failed, variant = literal_rule(summary)
    assert failed == (
        "The paper's literal rule (previous) shows no benefit: "
        f"teacher_feedback/previous/every=1 {shown(summary, 'previous', 'without_edge')} "
        f"against teacher_frozen and {shown(summary, 'previous', 'random')} "
        "against teacher_feedback/constant/every=1/random sign."
    )
    assert variant == (
        "Of the 2 other feedback arms tried, 1 is ahead of both the arm without feedback "
        "and every control that was run, a tendency; by most teacher_feedback/td/every=1 "
        f"{shown(summary, 'td', 'without_edge')} against teacher_frozen and "
        f"{shown(summary, 'td', 'random')} against teacher_feedback/constant/every=1/random sign."
    )
    assert headline(summary)[2:4] == [failed, variant]


def test_where_no_variant_helps_that_is_said(tmp_path: Path) -> None:
    summary = compare(
        tmp_path,
        {
            "teacher_frozen": 3 * (0.5, 0.5),
            "teacher_feedback+signal=previous+every=1": 3 * (0.25, 0.5),
            "teacher_feedback+signal=td+every=1": 3 * (0.75, 0.5),
            "teacher_feedback+signal=constant+every=1+sign=random": 3 * (0.5, 0.25),
        },
    )
    assert literal_rule(summary)[1] == (
        "Of one other feedback arm tried, none is ahead of both the arm without feedback "
        "and every control that was run. The closest is teacher_feedback/td/every=1 "
        f"{shown(summary, 'td', 'without_edge')} against teacher_frozen and "
        "+0.250 [+0.250, +0.250] against teacher_feedback/constant/every=1/random sign."
    )


def test_where_the_papers_rule_helps_nothing_else_is_looked_for(tmp_path: Path) -> None:
    summary = compare(
        tmp_path,
        {
            "teacher_frozen": 3 * (0.25, 0.25),
            "teacher_feedback+signal=previous": 3 * (0.5, 0.75),
            "teacher_feedback+signal=td": 3 * (0.75, 0.75),
            "teacher_feedback+signal=constant+sign=random": 3 * (0.25, 0.0),
        },
    )
    (sentence,) = literal_rule(summary)
    assert sentence.startswith(
        "The paper's literal rule (previous) is ahead, "
        "on so few seeds a tendency: teacher_feedback/previous "
        f"{shown(summary, 'previous', 'without_edge')} against teacher_frozen"
    )


def test_the_papers_rule_helps_only_where_no_control_is_missing(tmp_path: Path) -> None:
    arms = {
        "teacher_frozen": 0.25,
        "teacher_feedback+signal=previous": 0.5,
        "teacher_feedback+signal=previous+sign=random": 0.25,
        "teacher_feedback+signal=previous+sign=inverted": 0.25,
    }
    heights = {arm: 10 * [level] for arm, level in arms.items()}
    (sentence,) = literal_rule(compare(tmp_path / "16", heights))
    assert sentence.startswith(
        "The paper's literal rule (previous) is ahead, but not of the shuffled sign, which was not"
        " run: teacher_feedback/previous +0.250"
    )
    shuffled = {"teacher_feedback+signal=previous+sign=shuffled": 10 * [0.25]}
    (sentence,) = literal_rule(compare(tmp_path / "all", {**heights, **shuffled}))
    assert sentence.startswith("The paper's literal rule (previous) helps: ")


def test_the_papers_rule_has_to_beat_every_control_that_was_run(tmp_path: Path) -> None:
    heights = {
        "teacher_frozen": [0.25],
        "teacher_feedback+signal=previous": [0.5],
        "teacher_feedback+signal=constant+sign=random": [0.25],
        "teacher_feedback+signal=previous+sign=inverted": [0.5],
    }
    summary = compare(tmp_path, {arm: 10 * levels for arm, levels in heights.items()})
    (sentence,) = literal_rule(summary)
    assert sentence == (
        "The paper's literal rule (previous) shows no benefit: teacher_feedback/previous "
        "+0.250 [+0.250, +0.250] against teacher_frozen and +0.000 [+0.000, +0.000] "
        "against teacher_feedback/previous/inverted sign, the hardest of 2 controls to beat."
    )


@pytest.mark.parametrize(
    ("heights", "word"),
    [
        (
            {
                "teacher_frozen": (0.5,),
                "teacher_feedback+signal=previous": (0.25,),
                "teacher_feedback+signal=constant+sign=random": (0.5,),
            },
            "cannot be judged here",
        ),  # one seed
        (
            {"teacher_frozen": (0.25, 0.25), "teacher_feedback+signal=previous": (0.5, 0.5)},
            "cannot be judged here",
        ),  # ahead, but no random sign
        (
            {"teacher_frozen": (0.5, 0.5), "teacher_feedback+signal=previous": (0.25, 0.25)},
            "shows no benefit",
        ),  # behind already
    ],
)
def test_the_rule_is_judged_by_what_there_is(
    tmp_path: Path, heights: dict[str, tuple[float, ...]], word: str
) -> None:
    assert literal_rule(compare(tmp_path, heights))[0].startswith(
        f"The paper's literal rule (previous) {word}: teacher_feedback/previous"
    )


def test_without_the_papers_rule_nothing_is_said_about_it(tmp_path: Path) -> None:
    assert (
        literal_rule(
            compare(
                tmp_path, {"teacher_frozen": (0.5, 0.5), "teacher_feedback+signal=td": (0.25, 0.5)}
            )
        )
        == []
    )
