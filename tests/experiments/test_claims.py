"""What a report may claim: of the sign, on few seeds, between unlike evaluations, at equal cost."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from made_runs import make_config, make_row, make_run

from experiments import recompute
from experiments.report.headline import headline, warnings
from experiments.report.making import find
from experiments.report.results import Run, group_tasks
from experiments.report.roles import step_size
from experiments.report.sections import provenance_sections, task_sections
from experiments.report.summary import Summary, summarise
from experiments.report.tables import curve_table, difference_table, resampling_settings
from lamorel_ext.config import load_config
from lamorel_ext.methods.feedback.edge import _options

NOTHING: dict[str, tuple[()]] = {"curves": (), "costs": (), "differences": (), "controls": ()}


def runs_of(arm: str, curves: Sequence[Sequence[Mapping[str, float]]]) -> list[Run]:
    """One complete run per seed from its evaluations, as they would be read from its folder."""
    found = []
    for seed, rows in enumerate(curves):
        config = make_config(arm, seed, Path(), ())
        columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
        found.append(Run(Path(config.run.output_dir), config, "complete", {}, {}, columns))
    return found


def flat(arm: str, heights: Sequence[float], **more: float) -> list[Run]:
    """Flat curves, so that a height is an area; one per seed."""
    return runs_of(
        arm,
        [[make_row(steps, height, **more) for steps in (0.0, 10.0, 20.0)] for height in heights],
    )


def compare(heights: Mapping[str, Sequence[float]]) -> Summary:
    return summary_of(*(flat(arm, levels) for arm, levels in heights.items()))


def summary_of(*arms: Sequence[Run]) -> Summary:
    """In the order given, the first the baseline."""
    (task,) = group_tasks([run for runs in arms for run in runs])
    by_name = {arm.config.arm.name: arm for arm in task.arms}
    ordered = tuple(by_name[runs[0].config.arm.name] for runs in arms)
    return summarise([dataclasses.replace(task, arms=ordered)], samples=200)


def sections(summary: Summary) -> dict[str, str]:
    parts = [*task_sections(summary, NOTHING), *provenance_sections([summary], [], [])]
    return {
        re.findall("<h2>(.*?)</h2>", part)[0]: part.replace("\N{NO-BREAK SPACE}", " ")
        for part in parts
    }


# --- the sign -------------------------------------------------------------------------------------

SEEDS = 10
GAE = [0.5 + 0.01 * seed for seed in range(SEEDS)]
FAR, NEAR = (
    [level - 0.2 for level in GAE],
    [level + (0.1 if seed < 5 else -0.1) for seed, level in enumerate(GAE)],
)
FOUR = (
    "teacher_frozen",
    "teacher_feedback+signal=gae",
    "teacher_feedback+signal=constant+sign=random",
    "teacher_feedback+signal=gae+sign=shuffled",
    "teacher_feedback+signal=gae+sign=inverted",
)


def test_the_sign_helps_where_every_control_is_beaten() -> None:
    first = headline(compare(dict(zip(FOUR, (FAR, GAE, FAR, FAR, FAR), strict=True))))[1]
    assert first.startswith(
        "teacher_feedback/gae is better than teacher_frozen: "
        "area under the success curve +0.200 [+0.200, +0.200]"
    )
    assert first.endswith(
        " It is ahead of teacher_feedback/constant/random sign (+0.200 [+0.200, +0.200]), "
        "teacher_feedback/gae/shuffled sign (+0.200 [+0.200, +0.200]) "
        "and teacher_feedback/gae/inverted sign (+0.200 [+0.200, +0.200]) "
        "too, so the sign itself helps."
    )


def test_a_lead_over_the_random_sign_alone_is_no_merit_of_the_sign() -> None:
    summary = compare(dict(zip(FOUR, (FAR, GAE, FAR, NEAR, NEAR), strict=True)))
    first = headline(summary)[1]
    near = next(
        difference
        for difference in summary.differences
        if difference.theirs == "teacher_feedback/gae/inverted sign"
    ).interval
    assert near.low < 0 < near.high
    assert first.startswith(
        "teacher_feedback/gae is better than teacher_frozen: "
        "area under the success curve +0.200 [+0.200, +0.200]"
    )
    ends = f"[−{-near.low:.3f}, +{near.high:.3f}]"
    assert first.endswith(
        f" But it is not shown to be ahead of teacher_feedback/gae/shuffled sign (+0.000 {ends}) "
        f"or teacher_feedback/gae/inverted sign (+0.000 {ends}), "
        "so its signs are not shown to be what helps."
    )


def test_controls_that_were_not_run_are_no_controls_beaten() -> None:
    first = headline(compare(dict(zip(FOUR[:3], (FAR, GAE, FAR), strict=True))))[1]
    assert first.endswith(
        "too; without the shuffled or inverted sign that "
        "does not yet show that its signs are what helps."
    )


def test_a_control_that_is_ahead_speaks_for_no_sign() -> None:
    first = headline(compare(dict(zip(FOUR[:3], (FAR, FAR, GAE), strict=True))))[1]
    assert first.endswith(" It is a control: its signs say nothing about the guidance.")


def test_the_same_is_not_said_of_the_same_arm_twice() -> None:
    answer = headline(
        compare({"llm_policy": FAR} | dict(zip(FOUR, (FAR, GAE, FAR, NEAR, NEAR), strict=True)))
    )
    assert answer[2].startswith("teacher_feedback/gae is better than teacher_frozen")
    assert [sentence.count("not shown to be ahead of") for sentence in answer[1:3]] == [1, 0]


def test_an_arm_whose_signs_help_answers_before_one_with_a_larger_lead_alone() -> None:
    above = [level + 0.2 for level in GAE]
    td = {"teacher_feedback+signal=td": above, "teacher_feedback+signal=td+sign=random": above}
    gae = dict(zip(FOUR, (FAR, GAE, FAR, FAR, FAR), strict=True))
    assert headline(compare({**gae, **td}))[0].startswith(
        "Did the feedback help? Yes: teacher_feedback/gae against teacher_frozen and ahead of every"
        " control: area +0.200 "
    )
    # Nor does an arm of which nothing is shown stand before it, however large its mean.
    wild = {"teacher_feedback+signal=td": [1.0 if seed % 2 else 0.5 for seed in range(SEEDS)]}
    assert "Yes: teacher_feedback/gae against" in headline(compare({**gae, **wild}))[0]


# --- the baseline ---------------------------------------------------------------------------------


def test_a_baseline_that_the_comparison_did_not_name_is_told_of(tmp_path: Path) -> None:
    arms = ["llm_policy", "teacher_frozen", "student_alone"]
    for arm in arms:
        make_run(make_config(arm, 0, tmp_path, arms), [0.0, 0.25, 0.5])
    assert warnings(find(tmp_path).tasks) == []
    (tmp_path / "llm_policy" / "seed_0" / "status.json").write_text('{"state": "failed"}')
    assert warnings(find(tmp_path).tasks) == [
        "llm_policy, the comparison's baseline, has no complete run on GoToRedBallNoDists;"
        " differences are to teacher_frozen."
    ]
    assert warnings(find(tmp_path / "student_alone").tasks) == []  # nothing is compared


def test_a_baseline_is_ahead_of_every_other_arm_only_where_each_is_shown_to_be_behind() -> None:
    near, wild = [level - 0.1 for level in GAE], [0.88 * (seed % 2) for seed in range(SEEDS)]
    sentences = [
        headline(compare({"llm_policy": [level + 0.2 for level in GAE], **others}))[1]
        for others in (
            {"teacher_frozen": near, "student_alone": wild},
            {"teacher_frozen": near, "student_alone": FAR},
            {"teacher_frozen": near, "student_alone": FAR[:3]},
        )
    ]
    assert [sentence.partition("; next")[0] for sentence in sentences] == [
        "llm_policy is ahead of 1 of 2 other arms",
        "llm_policy is ahead of every other arm",
        "llm_policy is ahead of every other arm on 3 seeds, which is a tendency",
    ]
    assert all("; next comes teacher_frozen. teacher_frozen is worse" in one for one in sentences)


# --- few seeds ------------------------------------------------------------------------------------


def test_on_few_seeds_the_first_sentence_calls_a_lead_a_tendency() -> None:
    summary = compare(
        {arm: levels[:3] for arm, levels in zip(FOUR, (FAR, GAE, FAR, FAR, FAR), strict=True)}
    )
    answer = headline(summary)
    assert answer[1].startswith(
        "teacher_feedback/gae is ahead of teacher_frozen on 3 seeds, "
        "which is a tendency: area under the success curve +0.200 "
    )
    assert answer[1].endswith("too, which speaks for the signs themselves.")
    assert "Ahead of teacher_frozen, after the correction: teacher_feedback/gae." in answer
    shown = sections(summary)
    assert answer[0].startswith(
        "Did the feedback help? Tentatively, yes: "
        "teacher_feedback/gae against teacher_frozen: area +0.200 "
    )
    assert answer[0].endswith(", corrected p < .001, 3 seeds, 1 feedback arm compared.")
    assert (
        "Fewer than 10 seeds are called a tendency whatever the p value"
        in shown["Against the baseline, teacher_frozen"]
    )


@pytest.mark.parametrize(("seeds", "word"), [(3, "Tentatively, no"), (SEEDS, "No")])
def test_harm_on_few_seeds_is_a_tendency_too(seeds: int, word: str) -> None:
    summary = compare({"teacher_frozen": GAE[:seeds], FOUR[1]: FAR[:seeds]})
    assert headline(summary)[0].startswith(f"Did the feedback help? {word}, it did harm: teacher_")


def test_with_ten_seeds_nothing_is_called_a_tendency() -> None:
    summary = compare(dict(zip(FOUR, (FAR, GAE, FAR, FAR, FAR), strict=True)))
    assert "tendency" not in " ".join(headline(summary))


# --- evaluations ----------------------------------------------------------------------------------


def test_a_difference_between_unlike_evaluations_says_so() -> None:
    sampled = flat(
        "teacher_feedback+signal=previous+channel=prompt+credit=chosen",
        (0.75, 0.75),
        eval_exact=0.0,
    )
    summary = summary_of(
        flat("teacher_frozen", (0.5, 0.5)),
        flat("teacher_feedback+signal=previous", (0.25, 0.25)),
        sampled,
    )
    words = (
        "Not evaluated alike: teacher_feedback/previous/prompt/chosen on held-out episodes, "
        "teacher_frozen exactly."
    )
    assert [sentence for sentence in headline(summary) if sentence.startswith(words)]
    shown = sections(summary)
    assert words in shown["Against the baseline, teacher_frozen"] and words in shown["Controls"]
    assert "200 held-out episodes each (teacher_feedback/previous/prompt/chosen)" in shown["Arms"]
    header, rows = difference_table([summary])
    place = header.index("evaluated_alike")
    assert {(row[1], row[place]) for row in rows if row[4] == ""} == {
        ("teacher_feedback/previous", "1"),
        ("teacher_feedback/previous/prompt/chosen", "0"),
    }


def test_few_episodes_that_show_the_same_on_every_seed_are_no_certainty() -> None:
    def sampled(arm: str, lead: float, seeds: int) -> list[Run]:
        return flat(arm, [lead + level for level in [0.3, 0.5, 0.4, 0.6] * 3][:seeds], eval_exact=0)

    leads = dict(zip(FOUR, (0.0, 0.1, 0.0, 0.0, 0.0), strict=True))
    few, many = (
        summary_of(*(sampled(arm, lead, seeds) for arm, lead in leads.items())) for seeds in (3, 12)
    )
    assert headline(few)[0].startswith(
        "Did the feedback help? That is not shown: the best feedback arm, teacher_feedback/gae,"
        " against teacher_frozen: area +0.100 [–, –], corrected p = 0.250, 3 seeds"
    )
    assert headline(few)[1].startswith("teacher_feedback/gae is not distinguishable from")
    assert headline(many)[1].startswith("teacher_feedback/gae is better than teacher_frozen")
    shown = sections(few)["Against the baseline, teacher_frozen"].replace("<wbr>", "")
    assert "none where the episodes of every seed show the same difference" in shown
    assert "<td>teacher_feedback/gae</td><td>+0.100</td><td>1.000</td>" in shown
    for summary in (few, many):
        tables = [
            [dict(zip(header, row, strict=True)) for row in rows]
            for header, rows in (curve_table(summary.tasks), difference_table([summary]))
        ]
        curves = recompute.Curves(tables[0], resampling_settings(200))
        for row in tables[1]:
            wanted = recompute.expected_difference(curves, row, curves.tasks)
            for name in ("low", "p", "success_difference_low"):
                assert row["seed"] or recompute.number(row[name]) == pytest.approx(
                    wanted[name], abs=1e-12, nan_ok=True
                )


def test_equal_evaluations_need_no_word() -> None:
    summary = summary_of(
        *(
            flat(arm, (0.5, 0.5), eval_exact=0.0)
            for arm in (
                "teacher_frozen",
                "teacher_feedback+signal=previous+channel=prompt+credit=chosen",
            )
        )
    )
    assert "Not evaluated alike" not in " ".join([*headline(summary), *sections(summary).values()])


# --- controls of other signs ----------------------------------------------------------------------


def test_coins_of_a_constant_have_no_magnitudes() -> None:
    arms = (
        *FOUR,
        "teacher_feedback+signal=weighted",
        "teacher_feedback+signal=weighted+sign=shuffled",
    )
    note = sections(compare(dict.fromkeys(arms, (0.5, 0.5))))["Controls"]
    assert (
        "teacher_feedback/constant/random sign says ±1, without the magnitudes of "
        "teacher_feedback/weighted; teacher_feedback/weighted/shuffled sign keeps them."
    ) in note


# --- costs ----------------------------------------------------------------------------------------


def costly(arm: str, calls: float, seconds: float, before: float = 0) -> list[Run]:
    """Success rises from 0 to 1 over the run, and what it costs rises evenly, the calls from those
    made ``before`` the first evaluation.
    """
    shares = (0.0, 0.5, 1.0)
    rows = [
        make_row(
            20 * share,
            share,
            llm_calls=before + (calls - before) * share,
            llm_tokens=calls * share,
            seconds=seconds * share,
        )
        for share in shares
    ]
    return runs_of(arm, [rows])


def test_an_area_over_a_cost_ends_where_the_cheaper_of_the_two_arms_does() -> None:
    summary = summary_of(
        costly("llm_policy", 400, 50),
        costly("teacher_frozen", 200, 4),
        costly("student_alone", 0, 1),
    )
    found = {difference.ours: difference for difference in summary.against_baseline}
    # Each against llm_policy at the cheaper one's total: after one second llm_policy has come to
    # 0.02.
    assert found["student_alone"].cut_at == {"seconds": 1} and found["student_alone"].by_cost[
        "seconds"
    ].estimate == pytest.approx(0.49, abs=1e-12)
    assert found["teacher_frozen"].cut_at["seconds"] == 4 and found["teacher_frozen"].by_cost[
        "seconds"
    ].estimate == pytest.approx(0.46, abs=1e-12)
    costs = sections(summary)["Costs"].replace("<wbr>", "")
    assert "<td>student_alone</td><td>–</td><td>–</td><td>+0.490 in 1.0 seconds</td>" in costs
    header, rows = difference_table([summary])
    (row,) = [row for row in rows if (row[1], row[3], row[4]) == ("student_alone", "baseline", "")]
    named = dict(zip(header, row, strict=True))
    assert (
        named["area_by_seconds_until"],
        named["area_by_llm_calls_until"],
        named["area_by_llm_calls_difference"],
    ) == ("1", "", "")


def test_what_one_arm_spends_before_its_curve_begins_is_not_compared() -> None:
    summary = summary_of(
        costly("llm_policy", 40, 50, before=20),
        costly("teacher_frozen", 8, 50),
        costly("teacher_random", 20, 50),
    )
    less, even = summary.against_baseline
    assert set(less.by_cost) == {"llm_tokens", "seconds"}
    assert even.cut_at["llm_calls"] == 20  # llm_policy has come to 0 there, the other one to 0.5
    assert even.by_cost["llm_calls"].estimate == pytest.approx(0.5, abs=1e-12)
    header, rows = curve_table(summary.tasks)
    curves = recompute.Curves(
        [dict(zip(header, row, strict=True)) for row in rows], resampling_settings(200)
    )
    (task,) = curves.tasks
    assert math.isnan(curves.cheapest(task, ["llm_policy", "teacher_frozen"], "llm_calls"))
    assert curves.cheapest(task, ["llm_policy", "teacher_random"], "llm_calls") == 20


def test_the_students_updates_are_those_of_the_whole_run() -> None:
    # A rollout has 512 steps: two lie before the second row, one and one of 64 steps before the
    # last. Four epochs, each in four minibatches.
    config = load_config(["arm=student_alone"])
    assert (config.num_steps, config.env.num_envs) == (32, 16)
    rows = [
        make_row(
            steps,
            0.5,
            student_update_steps=each,
            student_update_samples=samples,
            llm_update_steps=steps,
        )
        for steps, each, samples in ((0, math.nan, math.nan), (1024, 16, 2048), (1600, 16, 1152))
    ]
    costs = sections(summary_of(runs_of("student_alone", [rows, rows])))["Costs"]
    table = costs.partition("What each side learnt from")[2].replace("<wbr>", "")
    header, cells = (
        re.findall(pattern, table) for pattern in ("<th .*?>(.*?)</th>", "<td>(.*?)</td>")
    )
    shown = dict(zip(header, cells, strict=True))
    assert shown["optimiser steps of the LLM"] == "1,600"
    assert shown["optimiser steps of the student"] == "64"
    assert shown["samples of the student"] == "6,400"


# --- step sizes -----------------------------------------------------------------------------------


def test_the_step_size_that_an_arm_uses_is_shown() -> None:
    summary = compare(
        dict.fromkeys(
            ("teacher_frozen", "teacher_feedback+signal=td", "teacher_feedback+signal=td+every=1"),
            (0.5,),
        )
    )
    part = sections(summary)["What the arms differ in"]
    assert '<th scope="col">step size of the feedback, lr or lr_online</th>' in part
    ends = [row.split("</td><td>")[-1] for row in re.findall("<tr><td>(.*?)</td></tr>", part)]
    assert ends == ["–", "0.0001", "1e-05"]


def test_the_step_size_shown_is_the_one_sent_to_the_servers() -> None:
    for arm in (
        "teacher_feedback+signal=td",
        "teacher_feedback+signal=td+every=1",
        "llm_policy_feedback+signal=previous+every=1",
    ):
        config = load_config([f"arm={arm}", "feedback.lr=0.3", "feedback.lr_online=0.2"])
        assert step_size(config) == _options(config)["lr"]
    assert (
        step_size(load_config(["arm=teacher_frozen"])) is None
        and step_size(
            load_config(["arm=teacher_feedback+signal=previous+channel=prompt+credit=chosen"])
        )
        is None
    )
