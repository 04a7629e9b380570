"""A report from run folders alone, with numbers that can be checked by hand."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from made_runs import VERSIONS, make_config, make_row, make_run
from scipy import stats

from experiments import recompute
from experiments.publish import publish
from experiments.report.figures import Picture
from experiments.report.headline import headline
from experiments.report.making import (
    compose_page,
    earlier_files,
    file_names,
    find,
    make_report,
)
from experiments.report.plots import _series
from experiments.report.results import group_arms, never_begun, read_runs
from experiments.report.summary import is_exact
from experiments.runs.identity import method
from experiments.runs.run_folder import RunFolder
from lamorel_ext.config import Plug
from lamorel_ext.errors import CheckpointError

ARMS = ["llm_policy", "teacher_frozen", "teacher_feedback+signal=gae"]
# Areas over 20 steps, (a + 2 b + c) / 4, of the three arms; in both seeds gae is ahead of the
# baseline by 0.25 and 0.375.
CURVES = {
    ("llm_policy", 0): [0.0, 0.25, 0.5],  # 0.25
    ("llm_policy", 1): [0.0, 0.0, 0.5],  # 0.125
    ("teacher_frozen", 0): [0.5, 0.5, 0.5],  # 0.5
    ("teacher_frozen", 1): [0.25, 0.5, 0.25],  # 0.375
    ("teacher_feedback+signal=gae", 0): [0.25, 0.5, 0.75],  # 0.5
    ("teacher_feedback+signal=gae", 1): [0.25, 0.375, 1.0],  # 0.5
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    for (arm, seed), curve in CURVES.items():
        make_run(make_config(arm, seed, root, ARMS), curve)
    return root


@pytest.fixture(scope="module")
def report(runs: Path) -> Path:
    return make_report(runs)


def page_without_figures(folder: Path) -> str:
    """Drawing takes most of the time."""
    findings = find(folder)
    nothing: dict[str, list[Picture]] = {
        "curves": [],
        "costs": [],
        "differences": [],
        "controls": [],
    }
    return compose_page(findings, nothing, [nothing] * len(findings.tasks))


def rows(report: Path, name: str) -> list[dict[str, str]]:
    with (report.parent / "tables" / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def first_lines(folder: Path) -> list[str]:
    return headline(find(folder).whole)[1:]


def test_the_first_lines_answer_the_question(runs: Path) -> None:
    sentences = first_lines(runs)
    # gae minus llm_policy: 0.25 and 0.375, mean 0.3125; every run of gae is above every run of
    # llm_policy.
    assert sentences[0] == (
        # Unpaired: 0.5 twice against 0.25 and 0.125, standard error 1/16, one degree of freedom:
        # 12.706 / 16 = 0.794 to either side, p = 1 - 2 / pi * atan(5) = 0.12567; the frozen
        # teacher's 0.105 comes first in Holm's order: twice that holds for both.
        "teacher_feedback/gae is not distinguishable from llm_policy: area under the "
        "success curve +0.312 [−0.482, +1.107] (corrected p = 0.211, 2 arms compared), "
        "ahead in 2 of 2 paired seeds, probability of improvement 1.00."
    )
    # gae minus frozen: 0 and 0.125, mean 0.0625; one degree of freedom again, p = 0.5. Of the four
    # pairs two are won and two are ties.
    assert sentences[1] == (
        "teacher_feedback/gae is not distinguishable from teacher_frozen: area under the "
        "success curve +0.062 [−0.732, +0.857] (corrected p = 0.500, 2 arms compared), "
        "ahead in 1 of 2 paired seeds, probability of improvement 0.75."
    )
    assert (
        "3 arms were tried" in sentences[-1]
        and "2 paired seeds show a tendency; a claim needs 10" in sentences[-1]
    )


def test_a_control_may_be_the_best_arm_but_speaks_for_no_feedback(tmp_path: Path) -> None:
    arms = [
        "llm_policy",
        "teacher_frozen",
        "teacher_feedback+signal=td",
        "teacher_feedback+signal=constant+sign=random",
    ]
    for arm, height in zip(arms, (0.1, 0.25, 0.5, 0.75), strict=True):
        for seed in (0, 1):
            make_run(make_config(arm, seed, tmp_path, arms), [height, height, height])
    first, second, better, *_ = first_lines(tmp_path)
    assert first.startswith(
        "teacher_feedback/constant/random sign is ahead of llm_policy on 2 seeds, "
        "which is a tendency: area under the success curve +0.650"
    )
    assert second.startswith(
        "teacher_feedback/td is ahead of teacher_frozen on 2 seeds, "
        "which is a tendency: area under the success curve +0.250"
    )
    assert better == (
        "Ahead of llm_policy, after the correction: teacher_frozen, "
        "teacher_feedback/td, teacher_feedback/constant/random sign."
    )


def test_the_best_taught_arm_is_named_also_where_the_frozen_teacher_is_the_baseline(
    tmp_path: Path,
) -> None:
    arms = [
        "teacher_frozen",
        "teacher_feedback+signal=td",
        "teacher_feedback+signal=constant+sign=random",
    ]
    for arm, height in zip(arms, (0.25, 0.5, 0.75), strict=True):
        for seed in (0, 1):
            make_run(make_config(arm, seed, tmp_path, arms), [height, height, height])
    first, second, *_ = first_lines(tmp_path)
    assert first.startswith(
        "teacher_feedback/constant/random sign is ahead of teacher_frozen"
    ) and second.startswith("teacher_feedback/td is ahead of teacher_frozen")


def test_where_the_baseline_is_the_best_arm_that_comes_first(tmp_path: Path) -> None:
    arms = ["llm_policy", "teacher_frozen", "student_alone"]
    for arm, height in zip(arms, (0.9, 0.5, 0.25), strict=True):
        for seed in (0, 1):
            make_run(make_config(arm, seed, tmp_path, arms), [height, height, height])
    assert first_lines(tmp_path)[0].startswith(
        "llm_policy is ahead of every other arm on 2 seeds, which is a tendency; "
        "next comes teacher_frozen. teacher_frozen is behind llm_policy on 2 seeds, "
        "which is a tendency: area under the success curve −0.400 [−0.400, −0.400]"
    )


def test_an_arm_that_follows_the_bot_is_a_bound_and_not_the_best(tmp_path: Path) -> None:
    arms = ["llm_policy", "teacher_frozen", "teacher_oracle"]
    for arm, height in zip(arms, (0.1, 0.25, 0.9), strict=True):
        for seed in (0, 1):
            make_run(make_config(arm, seed, tmp_path, arms), [height, height, height])
    sentences = first_lines(tmp_path)
    assert sentences[0].startswith(
        "teacher_frozen is ahead of llm_policy on 2 seeds, "
        "which is a tendency: area under the success curve +0.150"
    )
    assert sentences[-1].startswith(
        "teacher_oracle follows the bot, a bound and no rival. 3 arms were tried"
    )


@pytest.mark.parametrize(
    ("level", "words"),
    [
        ("BabyAI-OpenDoorsOrderN4Debug-v0", "it failed the mission in 8 and"),
        ("BabyAI-KeyInBox-v0", "ran out of time in 19"),
        ("BabyAI-GoToLocal-v0", ""),
    ],
)
def test_what_the_bot_loses_is_told_apart_from_the_students(
    level: str, words: str, tmp_path: Path
) -> None:
    arms = ["llm_policy", "teacher_oracle"]
    for arm in arms:
        config = make_config(arm, 0, tmp_path, arms)
        env = dataclasses.replace(config.env, level=level)
        run = dataclasses.replace(config.run, evaluation="episodes")
        make_run(dataclasses.replace(config, env=env, run=run), [0.5, 0.5, 0.5])
    caution = first_lines(tmp_path)[-1]
    assert words in caution and ("is no student's failure" in caution) == bool(words)


def test_the_summary_holds_the_numbers_worked_out_by_hand(report: Path) -> None:
    baseline, frozen, gae = rows(report, "summary")
    assert [row["arm"] for row in (baseline, frozen, gae)] == [
        "llm_policy",
        "teacher_frozen",
        "teacher_feedback/gae",
    ]
    assert (float(gae["success"]), float(gae["return"]), float(gae["return_x20"])) == (
        0.875,
        0.4375,
        8.75,
    )
    assert (float(gae["area"]), float(gae["area_low"]), float(gae["area_high"])) == (0.5, 0.5, 0.5)
    assert (float(baseline["area"]), float(baseline["area_low"]), float(baseline["area_high"])) == (
        0.1875,
        0,
        pytest.approx(0.1875 + 12.706204736 / 16, abs=1e-8),
    )
    # The mean of two seeds' middle half is that of both; 0.25 and 0.125 resampled give 0.125,
    # 0.1875 or 0.25.
    assert [float(baseline[name]) for name in ("area_iqm", "area_iqm_low", "area_iqm_high")] == [
        0.1875,
        0.125,
        0.25,
    ]
    # 75 and 100 % at the end: the median of (never, 20 steps) is never.
    assert (
        gae["steps_to_80"] == ""
        and float(gae["llm_calls"]) == 40
        and float(gae["llm_tokens"]) == 400
        and float(gae["seconds"]) == 2
    )


def test_the_differences_are_listed_seed_by_seed(report: Path) -> None:
    found = {
        (row["arm"], row["minus"], row["seed"]): float(row["area_difference"])
        for row in rows(report, "differences")
    }
    assert found[("teacher_feedback/gae", "llm_policy", "0")] == 0.25
    assert found[("teacher_feedback/gae", "llm_policy", "1")] == 0.375
    assert found[("teacher_feedback/gae", "llm_policy", "")] == 0.3125
    assert found[("llm_policy", "teacher_frozen", "1")] == -0.25
    improvement = [
        row["probability_of_improvement"]
        for row in rows(report, "differences")
        if row["seed"] == ""
    ]
    assert improvement[0] == "1"
    against = {(row["arm"], row["minus"]): row["against"] for row in rows(report, "differences")}
    assert (
        against[("teacher_feedback/gae", "llm_policy")] == "baseline"
        and against[("llm_policy", "teacher_frozen")] == "frozen_teacher"
    )


def test_the_curves_are_listed_point_by_point(report: Path) -> None:
    found = rows(report, "curves")
    assert len(found) == 18
    assert [
        row["success"]
        for row in found
        if (row["arm"], row["seed"]) == ("teacher_feedback/gae", "1")
    ] == ["0.25", "0.375", "1"]


def test_the_page_needs_nothing_outside_itself(report: Path) -> None:
    text = report.read_text()
    named = set(re.findall(r"""(?:src|href)=["'](?!data:|#)([^"']*)""", text))
    assert named and named == {f"tables/{Path(name).name}" for name in named}
    assert all((report.parent / name).is_file() for name in named)
    assert "<script" not in text and "@import" not in text and re.findall(r"url\((?!#)", text) == []
    assert 'name="viewport"' in text and "@media print" in text
    images = re.findall(r"<svg [^>]*>", text)
    assert len(images) == 8 and "<img" not in text
    assert all(re.search(r'role="img" aria-label="[^"]{20,}"', image) for image in images)
    headings = (
        "Arms",
        "Curves",
        "Against the baseline, llm_policy",
        "Against the frozen teacher",
        "Controls",
        "Costs",
        "What the arms differ in",
    )
    for heading in headings:
        assert f"<h2>{heading}" in text
    linked, places = (
        re.findall('<a href="#([^"]+)"', text),
        re.findall('<section id="([^"]+)"', text),
    )
    assert linked == places and len(set(places)) == len(places) == 9
    assert "python -m launchers compare --config-name hand" in text and "commit abc" in text
    assert "exact, by enumeration" in text


def pictures(text: str) -> list[str]:
    return re.findall(r"<svg role=.*?</svg>", text, re.DOTALL)


def test_every_picture_of_the_page_has_ids_of_its_own_and_refers_to_them(report: Path) -> None:
    text = report.read_text()
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids)) > 100
    for picture in pictures(text):
        own = set(re.findall(r'\bid="([^"]+)"', picture))
        assert set(re.findall(r'(?:href="|url\()#([^")]+)', picture)) <= own


def test_pictures_tell_their_values_under_the_pointer(report: Path) -> None:
    text = report.read_text()
    (curves,) = [picture for picture in pictures(text) if "success-by-steps-" in picture]
    told = re.findall(r"<circle [^>]*><title>(.*?)</title>", curves)
    by_point: dict[tuple[str, str], list[float]] = {}
    for row in rows(report, "curves"):
        by_point.setdefault((row["arm"], row["env_steps"]), []).append(float(row["success"]))
    for (arm, steps), values in by_point.items():
        start = f"{arm}: success rate {sum(values) / len(values):.3f}"
        assert any(
            line.startswith(start) and line.endswith(f" at {steps} (environment steps)")
            for line in told
        ), start
    for name in ("success_by_steps", "difference_to_baseline", "controls"):
        assert "<title>" in (report.parent / "figures" / f"{name}.svg").read_text()


def test_every_colour_of_the_pictures_has_one_for_the_dark(report: Path) -> None:
    text = report.read_text()
    used = set(re.findall(r"var\(--c(\w{6}), #\1\)", text))
    dark = text[text.rindex("prefers-color-scheme: dark") :].split("</style>")[0]
    assert used == set(re.findall(r"--c(\w{6}): #\w{6};", dark)) and "000000" in used
    styles = re.findall(r'style="([^"]*)"', "".join(pictures(text)))
    assert not any("#" in re.sub(r"(var|url)\(.*?\)", "", style) for style in styles)


def test_every_figure_is_there_as_svg_and_png(report: Path) -> None:
    names = {
        "success_by_steps",
        "return_by_steps",
        "success_by_llm_calls",
        "success_by_llm_tokens",
        "success_by_seconds",
        "difference_to_baseline",
        "difference_to_frozen_teacher",
        "controls",
    }
    for name in names:
        assert (report.parent / "figures" / f"{name}.svg").read_text().startswith("<?xml")
        assert (report.parent / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((report.parent / "figures").iterdir())) == 2 * len(names)


def test_a_report_made_twice_is_the_same_to_the_byte(
    runs: Path, report: Path, tmp_path: Path
) -> None:
    again = make_report(runs, tmp_path)
    assert again.read_bytes() == report.read_bytes()


def test_what_arms_differ_in_is_shown(report: Path) -> None:
    part = report.read_text().split("<h2>What the arms differ in")[1].split("</section>")[0]
    headers = re.findall(r'<th scope="col">([^<]*)</th>', part)
    assert headers == [
        "arm", "arm.agent", "feedback.loss", "feedback.epochs", "feedback.signal",
        "feedback.credit", "feedback.ties",
    ]  # fmt: skip


def test_unfinished_runs_are_left_out_and_named(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    status = tmp_path / "teacher_feedback+signal=gae" / "seed_1" / "status.json"
    status.write_text(json.dumps({"state": "failed", "error": "rank 1 died\nmore"}))
    text = page_without_figures(tmp_path)
    assert "Runs left out: 1" in text and "seed_1: failed: rank 1 died" in text
    assert "<td>1 of 1</td>" in text  # pairs won against the baseline


@pytest.mark.parametrize("moved", [False, True])
def test_runs_that_were_never_begun_are_named(tmp_path: Path, moved: bool) -> None:
    """A job of an array may have failed before it made its folder."""
    root = tmp_path / "made"
    own = (f"compare.output_dir={root}", "compare.seeds=[0,1]")
    for arm, seed in (("llm_policy", 0), ("llm_policy", 1), ("student_alone", 1)):
        make_run(make_config(arm, seed, root, ["llm_policy", "student_alone"], *own), [0.0, 0.5])
    if moved:
        root = root.rename(tmp_path / "moved")
    text = page_without_figures(root)
    assert "Runs not begun: 1" in text and f"{root}/student_alone/seed_0" in text
    assert never_begun(read_runs(root / "student_alone"), root / "student_alone") == []  # a part
    shutil.copytree(root / "student_alone/seed_1", root / "student_alone/seed_0")
    assert never_begun(read_runs(root), root) == []


def test_runs_of_two_comparisons_are_missed_in_each(tmp_path: Path) -> None:
    for name, seeds in (("a", "[0,1]"), ("b", "[5]")):
        own = (f"compare.output_dir={tmp_path / name}", f"compare.seeds={seeds}")
        seed = int(seeds[1])
        make_run(make_config("llm_policy", seed, tmp_path / name, ["llm_policy"], *own), [0.0, 0.5])
    assert never_begun(read_runs(tmp_path), tmp_path) == [tmp_path / "a/llm_policy/seed_1"]


def test_runs_of_one_arm_with_other_settings_are_another_arm(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs, tmp_path / "first")
    make_run(
        make_config("teacher_feedback+signal=gae", 0, tmp_path / "second", ARMS, "feedback.lr=0.5"),
        [0.0, 0.0, 0.0],
    )
    labels = [arm.label for arm in group_arms(read_runs(tmp_path))]
    assert labels[:2] == ["llm_policy", "teacher_frozen"]
    assert sorted(labels[2:]) == [
        "teacher_feedback/gae (feedback.lr=0.0001)",
        "teacher_feedback/gae (feedback.lr=0.5)",
    ]


def test_runs_with_and_without_a_curriculum_are_told_apart(tmp_path: Path) -> None:
    stages = (
        "env.curriculum=[{level:BabyAI-GoToObj-v0,steps:9},"
        "{level:BabyAI-GoToLocal-v0,num_distractors:2,success:0.5}]"
    )
    for root, overrides in ((tmp_path / "with", (stages,)), (tmp_path / "without", ())):
        make_run(
            make_config("student_alone", 0, root, ("student_alone",), *overrides), [0.0, 0.5, 1.0]
        )
    assert make_report(tmp_path / "with").exists()
    listed = (
        "('level=BabyAI-GoToObj-v0, steps=9', "
        "'level=BabyAI-GoToLocal-v0, num_distractors=2, success=0.5')"
    )
    labels = [arm.label for arm in group_arms(read_runs(tmp_path))]
    assert labels == [
        f"student_alone (env.curriculum={listed})",
        "student_alone (env.curriculum=())",
    ]


def test_the_same_run_twice_is_refused(runs: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        shutil.copytree(runs, tmp_path / name)
    with pytest.raises(CheckpointError, match="the same configuration and the same seed 0"):
        make_report(tmp_path)


def report_command(folder: Path) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, "-m", "experiments.report", str(folder)],
        cwd=root,
        env=os.environ,
        capture_output=True,
        text=True,
    )


def test_the_command_prints_the_path_last(runs: Path) -> None:
    done = report_command(runs)
    assert (
        done.returncode == 0 and done.stdout.splitlines()[-1] == f"report: {runs / 'report.html'}"
    )


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no run"),
        ({"a/config.yaml": "run: {seeds: 1}\n"}, "run.seeds: unknown key"),
        ({"a/config.yaml": "run: {seed: 1}\n"}, "none of them complete"),
        ({"a/config.yaml": "run: {seed: 1}\n", "a/status.json": "{"}, "status.json cannot be read"),
        (
            {"a/config.yaml": "run: {seed: 1}\n", "a/metrics.csv": "a,b\n1\n"},
            "metrics.csv, line 2: expected 2 cells, got 1",
        ),
    ],
)
def test_a_bad_folder_ends_with_one_message(
    tmp_path: Path, files: dict[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from experiments.report.making import report
    from experiments.runs.entry import run_main

    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert run_main(report, [str(tmp_path)], reads=True) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and message in errors and "Traceback" not in errors


@pytest.mark.parametrize(
    "arm, option",
    [
        ("reward_program", "method.programs=['distance']"),
        ("prompt_search", "method.edits=['', 'Look.']"),
        ("constitution", "method.principles=['Be kind.']"),
    ],
)
def test_a_methods_lists_tell_arms_apart(arm: str, option: str, tmp_path: Path) -> None:
    runs = [
        make_config(arm, 0, tmp_path / str(place), [arm], *overrides)
        for place, overrides in enumerate(([], [option]))
    ]
    for config in runs:
        make_run(config, [0.1, 0.2])
    labels = [found.label for found in group_arms(read_runs(tmp_path))]
    assert len(labels) == 2 and option.partition("=")[0] in labels[1]


def test_lists_in_lists_and_groups_in_them_make_an_identity(tmp_path: Path) -> None:
    config = make_config("prompt_search", 0, tmp_path, [])
    plug = Plug("mine.Method", json.dumps({"pairs": [[1, [2]], [{"a": 1}]]}))
    found = method(dataclasses.replace(config, method=plug))
    assert found["method.pairs"] == ((1, (2,)), ("a=1",)) and hash(tuple(found.items()))


@pytest.mark.parametrize(
    "arm, option, others",
    [
        ("preferences", "method.ranks", ("coin",)),
        ("constitution", "method.with_principles", ("false",)),
        ("skills", "agent.choose", ("llm", "values")),
    ],
)
def test_a_method_stands_against_its_own_controls(
    arm: str, option: str, others: tuple[str, ...], tmp_path: Path
) -> None:
    cells = [arm, *(f"{arm}+{option}={other}" for other in others)]
    for place, cell in enumerate([*cells, f"{arm}+student.lr=0.5"]):
        for seed in range(3):
            curve = [0.1 * place, 0.2 * place + 0.01 * seed * place]
            make_run(make_config(cell, seed, tmp_path, cells), curve)
    make_report(tmp_path)
    with (tmp_path / "tables" / "differences.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["against"] == "own_control"]
    compared = {(row["arm"], row["minus"]) for row in rows}
    controls = [label.rpartition("=")[2] for _, label in compared]
    assert sorted(controls) == sorted(others) and all(
        row["compared"] in ("", str(len(others))) for row in rows
    )
    page = (tmp_path / "report.html").read_text()
    assert "Methods against their own controls" in page


def test_the_code_of_a_strangers_method_is_not_imported_for_its_controls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "foreign_method.py").write_text("raise SystemExit('was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert Plug("foreign_method.Method").known() is None
    assert Plug("foreign_method:Method").known() is None
    assert Plug("lamorel_ext.methods.goals.Goals").known().controls == {"choice": ("random",)}
    assert Plug("lamorel_ext.methods.goals.Nothing").known() is None
    assert Plug("json.JSONEncoder").known() is json.JSONEncoder  # it is there already


def test_a_report_says_that_it_does_not_know_a_strangers_controls(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for seed in range(2):
        config = make_config("teacher_frozen", seed, tmp_path, ["teacher_frozen"])
        own = dataclasses.replace(config, method=Plug("foreign_method.Method"))
        make_run(own, [0.1, 0.2])
    said = "The controls of foreign_method.Method are unknown"
    assert said in page_without_figures(tmp_path) and caplog.text.count(said) == 1


@pytest.mark.parametrize("returns", [(-31.0, -29.0, -35.0), (7.0, 9.0, 8.5), (-0.5, 0.5, 0.75)])
def test_the_interval_of_a_return_is_cut_nowhere(
    tmp_path: Path, returns: tuple[float, ...]
) -> None:
    for seed, value in enumerate(returns):
        config = make_config("student_alone", seed, tmp_path, ["student_alone"])
        with RunFolder(Path(config.run.output_dir), config, VERSIONS) as run:
            for steps in (0.0, 10.0, 20.0):
                run.write(make_row(steps, 0.4 * seed, **{"return": value}))
    make_report(tmp_path)
    with (tmp_path / "tables" / "summary.csv").open() as file:
        (row,) = csv.DictReader(file)
    ends = stats.ttest_1samp(returns, 0).confidence_interval(0.95)
    found = [float(row[name]) for name in ("return", "return_low", "return_high")]
    assert found == pytest.approx([np.mean(returns), ends.low, ends.high], abs=1e-9)
    # Those of the success, 0, 0.4 and 0.8, lie outside of what a rate can be.
    assert (row["success_low"], row["success_high"]) == ("0", "1")
    assert recompute.main([str(tmp_path)]) == 0
    (task,) = find(tmp_path).tasks
    series = _series(task.arms[0].arm, "env_steps", "return")
    assert (series.low[-1], series.high[-1]) == pytest.approx((ends.low, ends.high), abs=1e-9)


@pytest.mark.parametrize("kept", [1, 2])
def test_a_complete_curve_that_ends_before_the_budget_is_damage(tmp_path: Path, kept: int) -> None:
    for seed in (0, 1):
        folder = make_run(make_config("llm_policy", seed, tmp_path, ARMS), [0.0, 0.25, 0.5])
    curve = folder / "metrics.csv"
    curve.write_text("".join(curve.read_text().splitlines(keepends=True)[: 1 + kept]))
    with pytest.raises(CheckpointError, match="has lost its last rows.*expected one at 20 env_st"):
        find(tmp_path)
    (folder / "status.json").write_text('{"state": "failed"}')
    assert [run.seed for run in find(tmp_path).unfinished] == [1]


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        ((512, 1024), "lost its first rows: a run is evaluated at 0 env_steps, the first one is"),
        ((0, 1024), "lost rows between 0 and 1024 env_steps: run.eval_every is 10, a rollout 512"),
        ((0, 512), "lost its last rows"),
        ((0, 512, 1024), ""),
    ],
)
def test_a_complete_curve_that_lacks_a_row_is_damage(
    tmp_path: Path, kept: tuple[int, ...], words: str
) -> None:
    config = make_config("student_alone", 0, tmp_path, ARMS, "run.total_steps=1024")
    with RunFolder(Path(config.run.output_dir), config, VERSIONS) as run:
        for steps in kept:
            run.write(make_row(steps, 0.5))
    if words:
        with pytest.raises(CheckpointError, match=words):
            find(tmp_path)
    else:
        assert find(tmp_path).tasks[0].arms[0].area.estimate == 0.5


def test_a_curve_may_end_beyond_the_budget_as_copies_are_stepped_together(tmp_path: Path) -> None:
    config = make_config("llm_policy", 0, tmp_path, ARMS, "run.total_steps=17")
    assert find(make_run(config, [0.0, 0.25, 0.5]).parents[1]).tasks[0].arms[0].runs


def by_arm(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "tables" / "summary.csv").open() as file:
        return {row["arm"]: row for row in csv.DictReader(file)}


@pytest.mark.parametrize(("budget", "success"), [(20, 0.5), (15, 0.375), (5, 0.125)])
def test_a_longer_budget_is_compared_where_the_shortest_ends(
    tmp_path: Path, budget: int, success: float
) -> None:
    names = ["student_alone", "teacher_frozen"]
    for seed in (0, 1):
        short = make_config("student_alone", seed, tmp_path, names, f"run.total_steps={budget}")
        make_run(short, [0.0, 0.25, 0.75 + 0.05 * seed])
        long = make_config("teacher_frozen", seed, tmp_path, names, "run.total_steps=40")
        make_run(long, [0.0, 0.25, 0.5, 0.75, 1.0])
    make_report(tmp_path)
    rows = by_arm(tmp_path)
    assert float(rows["teacher_frozen"]["success"]) == pytest.approx(success, abs=1e-12)
    assert float(rows["teacher_frozen"]["return"]) == pytest.approx(success / 2, abs=1e-12)
    # The shortest budget is the run's own end, though its copies went on to step 20 together.
    assert float(rows["student_alone"]["success"]) == pytest.approx(0.775, abs=1e-12)
    difference = find(tmp_path).tasks[0].against_baseline[0].success
    assert difference.estimate == pytest.approx(success - 0.775, abs=1e-12)
    assert recompute.main([str(tmp_path)]) == 0


def published(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_second_publication_leaves_nothing_of_the_first(tmp_path: Path) -> None:
    runs, target = tmp_path / "runs", tmp_path / "published"
    for task in ("go_to_local_d4", "open_door"):
        for arm in ("student_alone", "teacher_frozen"):
            make_run(make_config(arm, 0, runs / task, [arm], f"task={task}"), [0.5] * 3)
    publish(runs, target)
    (target / "README.md").write_text("of somebody's own")
    (target / "my_controls.png").write_text("of somebody's own")
    report = make_report(runs)
    first = {path.name for path in (report.parent / "figures").iterdir()}
    assert "overall.csv" in published(target) and "overall_profiles.svg" in first
    assert "open_door_success_by_steps.png" in published(target) & first
    shutil.rmtree(runs / "open_door")
    publish(runs, target)
    assert published(target) - published(publish_into(runs, tmp_path / "anew")) == {
        "README.md",
        "my_controls.png",
    }
    assert recompute.main([str(target)]) == 0
    make_report(runs)
    anew = make_report(runs, tmp_path / "other").parent
    for name in ("figures", "tables"):
        assert published(runs / name) == published(anew / name)


def publish_into(runs: Path, target: Path) -> Path:
    publish(runs, target)
    return target


def test_figures_have_no_other_names_than_those_that_a_second_report_removes(
    tmp_path: Path,
) -> None:
    for task in ("go_to_local_d4", "open_door"):
        for arm in ARMS:
            make_run(make_config(arm, 0, tmp_path / task, ARMS, f"task={task}"), [0.5] * 3)
    make_report(tmp_path)
    tables, figures = tmp_path / "tables", tmp_path / "figures"
    written = {*tables.glob("*.csv"), *figures.iterdir()}
    assert earlier_files(tables, figures) == written


def test_links_to_folders_are_followed_once_and_loops_not_at_all(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    for seed in range(3):
        make_run(make_config("student_alone", seed, root, ARMS), [0.5] * 3)
    (root / "student_alone" / "seed_2").rename(tmp_path / "elsewhere")
    (root / "student_alone" / "seed_2").symlink_to(tmp_path / "elsewhere")
    (root / "a_link").symlink_to(root / "student_alone")
    (root / "student_alone" / "up").symlink_to(tmp_path)
    (root / "student_alone" / "nowhere").symlink_to(tmp_path / "gone")
    (tmp_path / "elsewhere" / "itself").symlink_to(tmp_path / "elsewhere")
    found = [run.folder.relative_to(root) for run in read_runs(root)]
    assert found == [Path("student_alone", f"seed_{seed}") for seed in range(3)]
    (tmp_path / "link").symlink_to(root)
    assert len(read_runs(tmp_path / "link")) == 3


def test_what_wandb_keeps_in_a_run_is_no_run(tmp_path: Path) -> None:
    folder = make_run(make_config("random", 0, tmp_path / "wandb", ["random"]), [0.5, 0.5])
    sent = folder / "wandb" / "run-20260101_000000-abc" / "files"
    sent.mkdir(parents=True)
    (sent / "config.yaml").write_text("arm:\n  value: {name: random}\n", encoding="utf-8")
    assert [run.folder for run in read_runs(tmp_path)] == [folder]


def test_an_evaluation_that_does_not_say_that_it_is_exact_is_not(tmp_path: Path) -> None:
    run = read_runs(make_run(make_config("student_alone", 0, tmp_path, ARMS), [0.5] * 3))[0]
    assert is_exact([run])
    unknown = np.array([1, 1, np.nan])
    assert not is_exact([dataclasses.replace(run, columns={**run.columns, "eval_exact": unknown})])


@pytest.mark.parametrize("name", ["$_$", "$x$ and $\\frac$"])
def test_a_dollar_in_a_name_is_no_formula(name: str, tmp_path: Path) -> None:
    for arm in ("llm_policy", "student_alone"):
        config = make_config(arm, 0, tmp_path, ["llm_policy", "student_alone"])
        named = dataclasses.replace(config.arm, name=f"{arm} {name}")
        make_run(dataclasses.replace(config, arm=named), [0.25, 0.5, 0.75])
    make_report(tmp_path)
    for figure in ("success_by_steps", "difference_to_baseline"):
        assert name in (tmp_path / "figures" / f"{figure}.svg").read_text(encoding="utf-8")


def test_labels_that_give_one_file_name_are_numbered() -> None:
    labels = ["go-to local", "go_to_local", "go to local", "open"]
    assert file_names(labels) == ["go_to_local", "go_to_local_2", "go_to_local_3", "open"]
    assert [len(name) for name in file_names(2 * ["x" * 300])] == [200, 202]
