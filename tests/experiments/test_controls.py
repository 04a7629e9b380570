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
from experiments.roles import control_of, foreign_base, is_literal_rule, missing_controls, without_edge
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
        "teacher_feedback_gae_clipped", "teacher_feedback_td_online", "control_inverted_online", "llm_policy_feedback_gae",
        "llm_policy_control_random", "teacher_feedback_weighted", "teacher_feedback_previous_both",
    ]  # fmt: skip
    found = {missing.arm: missing for missing in missing_controls(make_arms(tmp_path, names, "env.num_envs=1"))}
    clipped = "a copy of configs/arm/control_{}.yaml with feedback.loss: clipped and feedback.epochs: 4"
    assert found["teacher_feedback/gae/clipped"].files == tuple(map(clipped.format, ("random", "shuffled", "inverted")))
    assert (found["teacher_feedback/td/online"].kinds, found["teacher_feedback/td/online"].files) == (
        ("random",),
        ("control_random_online",),
    )
    assert found["llm_policy+feedback/gae"].files == ("llm_policy_control_shuffled", "llm_policy_control_inverted")
    assert found["teacher_feedback/weighted"].files == ("control_random", "control_shuffled_weighted", "control_inverted_weighted")
    # The signs are said in the next prompt, before the rollout is over: nothing can be permuted.
    both = found["teacher_feedback/previous/both"]
    assert both.kinds == ("random", "inverted")
    assert both.files[0] == "a copy of configs/arm/control_random.yaml with feedback.channel: both"
    assert both.files[1] == "a copy of configs/arm/control_inverted_both_online.yaml with feedback.every: rollout"


def test_the_advice_can_be_followed(tmp_path: Path) -> None:
    arms = make_arms(tmp_path / "runs", ["teacher_feedback_previous_both"])
    ((random, inverted),) = [missing.files for missing in missing_controls(arms)]
    copies = []
    for sentence in (random, inverted):
        file, change = sentence.removeprefix("a copy of configs/").split(" with ")
        key, value = change.split(": ")
        config = load_config([f"arm={Path(file).stem}", f"{key}={value}"])
        copies.append(Arm(config.arm.name, {0: dataclasses.replace(arms[0].runs[0], config=config)}))
    assert missing_controls([*arms, *copies]) == []


def test_the_control_made_of_the_arms_own_signs_is_taken(tmp_path: Path) -> None:
    names = [
        "teacher_feedback_gae", "teacher_feedback_previous", "teacher_feedback_previous_ties_zero", "teacher_feedback_weighted",
        "control_inverted", "control_inverted_previous", "control_shuffled", "control_shuffled_weighted",
    ]  # fmt: skip
    arms = {arm.label.removeprefix("teacher_feedback/"): arm for arm in make_arms(tmp_path, names)}

    def partner(label: str, kind: str, among: Sequence[Arm]) -> tuple[str, str | None]:
        control = control_of(arms[label], kind, among)
        assert control is not None
        return control.label, foreign_base(arms[label], control)

    every = list(arms.values())
    assert partner("gae", "inverted", every) == ("control/inverted", None)
    assert partner("previous", "inverted", every) == ("control/inverted/previous", None)
    assert partner("weighted", "inverted", every) == ("control/inverted", "gae")
    assert partner("weighted", "shuffled", every[::-1]) == ("control/shuffled/weighted", None)
    assert partner("previous", "shuffled", every) == ("control/shuffled", "gae")
    # A tie is +1 for the control and no feedback for the arm: nearer than another signal, and not the same.
    assert partner("previous/ties_zero", "inverted", every) == ("control/inverted/previous", "previous with feedback.ties=positive")


@pytest.mark.parametrize(
    "name",
    [
        "default", "demo", "signals", "long", "harder", "figure2_40", "figure2_2100", "reproduce_small", "literal_search", "literal_rule",
        "curriculum",
    ],
)  # fmt: skip
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
    assert (
        'class="alarm"' in section and "no shuffled, no inverted sign. Add to compare.arms: control_shuffled, control_inverted." in section
    )
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
        "Of the 2 other feedback arms tried, 1 is ahead of both the arm without feedback and every control that was run, a tendency; by most "
        "teacher_feedback/td/online +0.375 [+0.250, +0.500] against teacher_frozen and +0.500 [+0.250, +0.750] against control/random/online."
    )
    assert headline(summary)[1:3] == [failed, variant]


def test_where_no_variant_helps_that_is_said(tmp_path: Path) -> None:
    summary = compare(tmp_path, {
        "teacher_frozen": (0.5, 0.5), "teacher_feedback_previous_online": (0.25, 0.5), "teacher_feedback_td_online": (0.75, 0.5),
        "control_random_online": (0.5, 0.25),
    })  # fmt: skip
    assert literal_rule(summary)[1] == (
        "Of one other feedback arm tried, none is ahead of both the arm without feedback and every control that was run. The closest is "
        "teacher_feedback/td/online +0.125 [+0.000, +0.250] against teacher_frozen and +0.250 [+0.250, +0.250] against control/random/online."
    )


def test_where_the_papers_rule_helps_nothing_else_is_looked_for(tmp_path: Path) -> None:
    summary = compare(tmp_path, {
        "teacher_frozen": (0.25, 0.25), "teacher_feedback_previous": (0.5, 0.75), "teacher_feedback_td": (0.75, 0.75), "control_random": (0.25, 0.0)})  # fmt: skip
    (sentence,) = literal_rule(summary)
    assert sentence.startswith(
        "The paper's literal rule (previous) is ahead, on so few seeds a tendency: teacher_feedback/previous +0.375 [+0.250, +0.500] against "
        "teacher_frozen"
    )


def test_the_papers_rule_has_to_beat_every_control_that_was_run(tmp_path: Path) -> None:
    heights = {"teacher_frozen": [0.25], "teacher_feedback_previous": [0.5], "control_random": [0.25], "control_inverted_previous": [0.5]}
    summary = compare(tmp_path, {arm: 10 * levels for arm, levels in heights.items()})
    (sentence,) = literal_rule(summary)
    assert sentence == (
        "The paper's literal rule (previous) shows no benefit: teacher_feedback/previous +0.250 [+0.250, +0.250] against teacher_frozen and "
        "+0.000 [+0.000, +0.000] against control/inverted/previous, the hardest of 2 controls to beat."
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
