"""What a report says about controls and about the paper's rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from made_runs import compose, make_config, make_run

from experiments.headline import headline, literal_rule, warnings
from experiments.report import find
from experiments.results import Arm, Run, read_run
from experiments.roles import control_of, is_literal_rule, missing_controls, without_edge
from experiments.sections import task_sections
from experiments.summary import Summary
from lamorel_ext.config import CONFIG_DIR, load_config

ONLINE = [
    "teacher_frozen",
    "teacher_feedback_previous_online",
    "teacher_feedback_td_online",
    "control_random_online",
    "control_inverted_online",
]


def make_arms(folder: Path, names: Sequence[str], *overrides: str) -> list[Arm]:
    runs = [read_run(make_run(make_config(name, 0, folder, names, *overrides), [0.0, 0.0])) for name in names]
    return [Arm(run.config.arm.name, {0: run}) for run in runs]


def compare(folder: Path, heights: Mapping[str, Sequence[float]]) -> Summary:
    """Flat curves, so that a height is an area; one per seed."""
    for arm, levels in heights.items():
        for seed, level in enumerate(levels):
            make_run(make_config(arm, seed, folder, list(heights)), [level] * 3)
    return find(folder).whole


# --- matching -----------------------------------------------------------------------------------------------------------------------


def test_a_control_has_the_arms_agent_and_rhythm(tmp_path: Path) -> None:
    names = [
        *ONLINE,
        "control_random",
        "control_shuffled",
        "teacher_feedback_gae",
        "llm_policy",
        "llm_policy_feedback_gae",
        "llm_policy_control_random",
    ]
    arms = {arm.label: arm for arm in make_arms(tmp_path, names)}
    everything = list(arms.values())

    def partners(label: str) -> list[str | None]:
        found = [
            without_edge(arms[label], everything),
            *(control_of(arms[label], kind, everything) for kind in ("random", "shuffled", "inverted")),
        ]
        return [arm.label if arm else None for arm in found]

    assert partners("teacher_feedback/td/online") == ["teacher_frozen", "control/random/online", None, "control/inverted/online"]
    assert partners("teacher_feedback/gae") == ["teacher_frozen", "control/random", "control/shuffled", None]
    assert partners("llm_policy+feedback/gae") == ["llm_policy", "llm_policy+control/random", None, None]


def test_of_two_controls_the_one_with_fewer_other_differences_is_taken(tmp_path: Path) -> None:
    (arm,) = make_arms(tmp_path / "arm", ["teacher_feedback_gae"])
    (far,) = make_arms(tmp_path / "far", ["control_random"], "feedback.kl_coef=0.1")
    (near,) = make_arms(tmp_path / "near", ["control_random"])
    assert control_of(arm, "random", [far, near]) is near
    (other,) = make_arms(tmp_path / "other", ["control_random"], "feedback.loss=clipped")
    assert control_of(arm, "random", [other]) is None


def test_missing_controls_are_named_with_their_files_and_impossible_ones_are_not_asked_for(tmp_path: Path) -> None:
    names = [
        "teacher_feedback_gae_clipped",
        "teacher_feedback_td_online",
        "control_inverted_online",
        "llm_policy_feedback_gae",
        "llm_policy_control_random",
    ]
    found = {missing.arm: missing for missing in missing_controls(make_arms(tmp_path, names, "env.num_envs=1"))}
    assert found["teacher_feedback/gae/clipped"].files == (
        "control_random with feedback.loss=clipped", "control_shuffled with feedback.loss=clipped", "control_inverted with feedback.loss=clipped")  # fmt: skip
    assert (found["teacher_feedback/td/online"].kinds, found["teacher_feedback/td/online"].files) == (
        ("random",),
        ("control_random_online",),
    )
    assert found["llm_policy+feedback/gae"].files == ("llm_policy_control_shuffled", "llm_policy_control_inverted")


@pytest.mark.parametrize("name", ["demo", "signals", "long", "figure2_40", "figure2_2100", "reproduce_small"])
def test_the_shipped_comparisons_have_every_control_of_their_feedback_arms(name: str) -> None:
    config = load_config((), name)
    configs = [dataclasses.replace(compose(f"arm={arm}"), env=config.env) for arm in config.compare.arms]
    assert missing_controls([Arm(arm.arm.name, {0: Run(Path(), arm, "complete", {}, {}, {})}) for arm in configs]) == []


def test_the_literal_rule_is_the_papers_and_none_of_its_variants() -> None:
    literal = [path.stem for path in (CONFIG_DIR / "arm").glob("*.yaml") if is_literal_rule(compose(f"arm={path.stem}"))]
    assert sorted(literal) == [
        "llm_policy_feedback_previous", "llm_policy_feedback_previous_online", "teacher_feedback_previous", "teacher_feedback_previous_online"]  # fmt: skip


# --- what is said -----------------------------------------------------------------------------------------------------------------------


def test_a_report_without_controls_says_so_and_names_the_files(tmp_path: Path) -> None:
    summary = compare(tmp_path, {"teacher_frozen": (0.5, 0.5), "teacher_feedback_gae": (0.75, 1.0), "control_random": (0.5, 0.25)})
    (warning,) = warnings([summary])
    assert warning.startswith("Controls are missing: teacher_feedback/gae has no complete run with the shuffled or inverted sign")
    assert warning.endswith("Add to compare.arms: control_shuffled, control_inverted.")
    nothing = {"curves": (), "costs": (), "differences": (), "controls": ()}
    (section,) = [section for section in task_sections(summary, nothing) if "<h2>Controls" in section]
    assert 'class="alarm"' in section and "no shuffled, no inverted sign. Add control_shuffled, control_inverted." in section
    # Paired by seed: 0.25 and 0.5 over the frozen teacher, 0.25 and 0.75 over the random sign.
    cells = section.split("<tbody>")[1].replace("\N{NO-BREAK SPACE}", " ")
    assert "<td>+0.375 [+0.250, +0.500]</td><td>+0.500 [+0.250, +0.750]</td><td>missing</td><td>missing</td>" in cells


def test_with_all_controls_there_is_no_warning(tmp_path: Path) -> None:
    summary = compare(tmp_path, dict.fromkeys(ONLINE, (0.5, 0.5)))
    assert warnings([summary]) == []
    nothing = {"curves": (), "costs": (), "differences": (), "controls": ()}
    (section,) = [section for section in task_sections(summary, nothing) if "<h2>Controls" in section]
    assert "alarm" not in section and section.count("impossible") == 2 and "No shuffled signs for" in section


def test_no_feedback_no_controls(tmp_path: Path) -> None:
    summary = compare(tmp_path, {"llm_policy": (0.5, 0.5), "teacher_frozen": (0.75, 1.0)})
    nothing = {"curves": (), "costs": (), "differences": (), "controls": ()}
    assert warnings([summary]) == [] and not [section for section in task_sections(summary, nothing) if "Controls" in section]


def test_where_the_papers_rule_fails_the_variant_that_helps_is_named_with_its_interval(tmp_path: Path) -> None:
    summary = compare(tmp_path, {
        "teacher_frozen": (0.5, 0.5), "teacher_feedback_previous_online": (0.25, 0.5), "teacher_feedback_td_online": (0.75, 1.0),
        "teacher_feedback_state_online": (0.5, 0.75), "control_random_online": (0.5, 0.25),
    })  # fmt: skip
    failed, variant = literal_rule(summary)
    assert failed == (
        "The paper's literal rule (previous) shows no benefit: teacher_feedback/previous/online −0.125 [−0.250, +0.000] against teacher_frozen and "
        "+0.000 [−0.250, +0.250] against control/random/online."
    )
    assert variant == (
        "Of the 2 other feedback arms tried, 1 is better than both the arm without feedback and the random sign; by most "
        "teacher_feedback/td/online +0.375 [+0.250, +0.500] against teacher_frozen and +0.500 [+0.250, +0.750] against control/random/online."
    )
    assert headline(summary)[1:3] == [failed, variant]


def test_where_no_variant_helps_that_is_said(tmp_path: Path) -> None:
    summary = compare(tmp_path, {
        "teacher_frozen": (0.5, 0.5), "teacher_feedback_previous_online": (0.25, 0.5), "teacher_feedback_td_online": (0.75, 0.5),
        "control_random_online": (0.5, 0.25),
    })  # fmt: skip
    assert literal_rule(summary)[1] == (
        "Of one other feedback arm tried, none is better than both the arm without feedback and the random sign. The closest is "
        "teacher_feedback/td/online +0.125 [+0.000, +0.250] against teacher_frozen and +0.250 [+0.250, +0.250] against control/random/online."
    )


def test_where_the_papers_rule_helps_nothing_else_is_looked_for(tmp_path: Path) -> None:
    summary = compare(tmp_path, {
        "teacher_frozen": (0.25, 0.25), "teacher_feedback_previous": (0.5, 0.75), "teacher_feedback_td": (0.75, 0.75), "control_random": (0.25, 0.0)})  # fmt: skip
    (sentence,) = literal_rule(summary)
    assert sentence.startswith(
        "The paper's literal rule (previous) helps: teacher_feedback/previous +0.375 [+0.250, +0.500] against teacher_frozen"
    )


@pytest.mark.parametrize(
    ("heights", "word"),
    [
        ({"teacher_frozen": (0.5,), "teacher_feedback_previous": (0.25,), "control_random": (0.5,)}, "cannot be judged here"),  # one seed
        ({"teacher_frozen": (0.25, 0.25), "teacher_feedback_previous": (0.5, 0.5)}, "cannot be judged here"),  # ahead, but no random sign
        ({"teacher_frozen": (0.5, 0.5), "teacher_feedback_previous": (0.25, 0.25)}, "shows no benefit"),  # behind already
    ],
)
def test_the_rule_is_judged_by_what_there_is(tmp_path: Path, heights: dict[str, tuple[float, ...]], word: str) -> None:
    assert literal_rule(compare(tmp_path, heights))[0].startswith(f"The paper's literal rule (previous) {word}: teacher_feedback/previous")


def test_without_the_papers_rule_nothing_is_said_about_it(tmp_path: Path) -> None:
    assert literal_rule(compare(tmp_path, {"teacher_frozen": (0.5, 0.5), "teacher_feedback_td": (0.25, 0.5)})) == []


@pytest.mark.parametrize(
    ("random_sign", "words"),
    [
        ([0.60, 0.71, 0.80], "Against the same edge with a random sign it is +0.003 [−0.010, +0.020], so the gain is not shown"),
        ([0.42, 0.50, 0.60], "Against the same edge with a random sign it is +0.200 [+0.200, +0.200], so the sign itself helps."),
        ([0.62, 0.71, 0.80], "It is a control: its signs say nothing about the guidance."),
    ],
)
def test_the_answer_says_whether_the_sign_earned_the_lead(tmp_path: Path, random_sign: Sequence[float], words: str) -> None:
    heights = {"llm_policy": [0.5, 0.6, 0.7], "llm_policy_feedback_gae": [0.62, 0.7, 0.8], "llm_policy_control_random": random_sign}
    assert words in headline(compare(tmp_path, heights))[0]
