"""A report over several tasks: what is said over all of them and for each, with numbers that can be
checked by hand.
"""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from made_runs import make_config, make_run

from experiments.report.figures import Picture
from experiments.report.headline import headline
from experiments.report.making import compose_page, find, make_report
from experiments.report.results import group_tasks, read_runs

ARMS = [
    "llm_policy",
    "teacher_frozen",
    "teacher_feedback+signal=gae",
    "teacher_feedback+signal=constant+sign=random",
]
TASKS = ["go_to_local_d4", "open_door"]
# Flat curves, so that a height is an area: by task, arm and seed.
HEIGHTS = {
    "go_to_local_d4": {
        "llm_policy": (0.25, 0.5),
        "teacher_frozen": (0.5, 0.5),
        "teacher_feedback+signal=gae": (0.75, 1.0),
        "teacher_feedback+signal=constant+sign=random": (0.5, 0.25),
    },
    "open_door": {
        "llm_policy": (0.0, 0.25),
        "teacher_frozen": (0.0, 0.0),
        "teacher_feedback+signal=gae": (0.25, 0.25),
        "teacher_feedback+signal=constant+sign=random": (0.0, 0.0),
    },
}


def make_matrix(root: Path) -> Path:
    for task, by_arm in HEIGHTS.items():
        for arm, heights in by_arm.items():
            for seed, height in enumerate(heights):
                config = make_config(
                    arm,
                    seed,
                    root / task,
                    ARMS,
                    f"task={task}",
                    f"compare.tasks=[{','.join(TASKS)}]",
                )
                make_run(config, [height] * 3)
    return root


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_report(make_matrix(tmp_path_factory.mktemp("matrix")))


def rows(report: Path, name: str) -> list[dict[str, str]]:
    with (report.parent / "tables" / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def numbers(row: dict[str, str], *names: str) -> list[float]:
    return [float(row[name]) for name in names]


def test_links_of_the_contents_lead_to_the_task_they_name(tmp_path: Path) -> None:
    names = {"任务一": "GoToLocal", "任务二": "OpenDoor", "a b": "PickupLoc", "a-b": "GoToObj"}
    for name, level in names.items():
        own = (f"env.name={name}", f"env.level=BabyAI-{level}-v0")
        make_run(make_config("bot", 0, tmp_path / level, ["bot"], *own), [0.5] * 3)
    findings = find(tmp_path)
    nothing: dict[str, list[Picture]] = dict.fromkeys(
        ("curves", "costs", "differences", "controls", "aggregates", "profiles"), []
    )
    text = compose_page(findings, nothing, [nothing] * len(findings.tasks))
    places = re.findall(r'<section id="([^"]*)">\n<h2>(.*?)</h2>', text)
    assert len(dict(places)) == len(places)
    assert sorted(re.findall(r'<a href="#([^"]*)"', text)) == sorted(dict(places))


def test_runs_are_grouped_by_task_and_arms_have_the_same_name_everywhere(report: Path) -> None:
    tasks = group_tasks(read_runs(report.parent))
    assert [task.label for task in tasks] == TASKS
    assert [[arm.label for arm in task.arms] for task in tasks] == [
        [
            "llm_policy",
            "teacher_frozen",
            "teacher_feedback/gae",
            "teacher_feedback/constant/random sign",
        ]
    ] * 2


def test_tasks_without_a_name_are_called_by_their_level(tmp_path: Path) -> None:
    make_run(make_config("llm_policy", 0, tmp_path / "one", ARMS), [0.0, 0.0])
    make_run(
        make_config(
            "llm_policy",
            0,
            tmp_path / "two",
            ARMS,
            "env.level=BabyAI-GoToLocal-v0",
            "env.num_distractors=4",
        ),
        [0.0, 0.0],
    )
    assert {task.label for task in group_tasks(read_runs(tmp_path))} == {
        "GoToRedBallNoDists",
        "GoToLocal, num_distractors=4",
    }


@pytest.mark.parametrize(
    ("one", "two", "labels"),
    [
        ("env.size=4", "env.size=9", {"Env (env.size=4)", "Env (env.size=9)"}),
        ("env.max_steps=5", "env.max_steps=6", {"Env (env.max_steps=5)", "Env (env.max_steps=6)"}),
        ("env.level=a", "env.level=b", {"Env (env.level=a)", "Env (env.level=b)"}),
        ("env.name=small", "env.name=big", {"small", "big"}),
        (
            "env.name=same",
            "+env.name=same env.size=9",
            {"same (env.size=None)", "same (env.size=9)"},
        ),
    ],
)
def test_tasks_that_differ_in_anything_of_the_environment_are_not_one(
    tmp_path: Path, one: str, two: str, labels: set[str]
) -> None:
    for place, words in enumerate((one, two)):
        for arm in ARMS[:2]:
            added = [f"+{word}" if word.startswith("env.size") else word for word in words.split()]
            config = make_config(arm, 0, tmp_path / str(place), ARMS, "env._target_=Env", *added)
            folder = make_run(config, [0.5 * place] * 3)
            (folder / "status.json").write_text('{"state": "complete", "environment": "Env"}')
    tasks = group_tasks(read_runs(tmp_path))
    assert {task.label for task in tasks} == labels
    assert [[arm.label for arm in task.arms] for task in tasks] == [ARMS[:2]] * 2


def test_arms_of_one_task_may_be_asked_and_stepped_in_different_ways(tmp_path: Path) -> None:
    ways = ["env.prompt=glam", "env.num_envs=4", "env.backend=minigrid", "env.history=2"]
    for place, way in enumerate(ways):
        make_run(make_config("llm_policy", 0, tmp_path / str(place), ARMS, way), [0.0] * 3)
    (task,) = group_tasks(read_runs(tmp_path))
    assert len(task.arms) == len(ways)


def test_a_run_without_a_task_name_belongs_to_the_task_of_the_same_environment(
    tmp_path: Path,
) -> None:
    make_run(make_config(ARMS[0], 0, tmp_path / "a", ARMS, "task=go_to_local_d4"), [0.0] * 3)
    alike = ("env.level=BabyAI-GoToLocal-v0", "env.num_distractors=4")
    make_run(make_config(ARMS[1], 0, tmp_path / "b", ARMS, *alike), [0.0] * 3)
    (task,) = group_tasks(read_runs(tmp_path))
    assert (task.label, [arm.label for arm in task.arms]) == ("go_to_local_d4", ARMS[:2])


def test_a_lost_status_leaves_a_run_in_its_own_environment(tmp_path: Path) -> None:
    for seed in (0, 1):
        own = make_config(ARMS[0], seed, tmp_path, ARMS, "env._target_=mine.Env")
        folder = make_run(own, [0.0] * 3)
        (folder / "status.json").write_text('{"state": "complete", "environment": "mine.Env"}')
    (folder / "status.json").unlink()
    (task,) = group_tasks(read_runs(tmp_path))
    assert (task.label, list(task.arms[0].runs)) == ("mine.Env", [0, 1])


def test_over_all_tasks_every_task_counts_the_same(report: Path) -> None:
    overall = {row["arm"]: row for row in rows(report, "overall")}
    gae = overall["teacher_feedback/gae"]
    # Task means 0.875 and 0.25. Variance of the first mean 1/32 / 2, of the second 0: standard
    # error 1/16, one degree of freedom, t = 12.7: the ends lie beyond what an area can be.
    assert numbers(gae, "area", "area_low", "area_high") == [0.5625, 0, 1]
    # Interquartile mean of (0.75, 1, 0.25, 0.25): the middle two, 0.25 and 0.75.
    assert numbers(gae, "area_iqm", "tasks", "runs") == [0.5, 2, 4]
    # Ranks by task and seed: gae is first four times. Of llm_policy: 4, 2.5 (with the frozen
    # teacher); 3 (with two others), 1.5 (with gae).
    assert numbers(gae, "mean_rank", "mean_rank_low", "mean_rank_high")[0] == 1.125
    assert numbers(overall["llm_policy"], "mean_rank") == [(4 + 2.5 + 3 + 1.5) / 4]


def test_the_difference_over_all_tasks_is_the_mean_of_the_tasks(report: Path) -> None:
    (row,) = [
        row
        for row in rows(report, "overall_differences")
        if (row["arm"], row["against"]) == ("teacher_feedback/gae", "baseline")
    ]
    # By seed 0.5 and 0.5 on the first task, 0.25 and 0 on the second: (0.5 + 0.125) / 2. Two pairs
    # on each of two tasks leave one degree of freedom for a correlation: unpaired. The means of two
    # seeds that are 1/4 apart have the variance 1/64; three of the four are such: standard error
    # sqrt(3 / 64 / 4), with Satterthwaite's 3 degrees of freedom, t = 3.182446.
    half = 3.182446305 * (3 / 256) ** 0.5
    assert numbers(row, "pairs", "area_difference", "low", "high") == pytest.approx(
        [4, 0.3125, 0.3125 - half, 0.3125 + half], abs=1e-8
    )
    assert numbers(row, "paired") == [0]
    # Of the first task all four pairs are won; of the second, against 0 and 0.25, two are won and
    # two are ties: (1 + 0.75) / 2.
    assert numbers(row, "probability_of_improvement") == [0.875]


def test_profiles_say_which_share_of_the_runs_is_above_a_level(report: Path) -> None:
    profile = {
        (row["arm"], row["area_above"]): float(row["share"]) for row in rows(report, "profiles")
    }
    assert [
        profile["teacher_feedback/gae", level]
        for level in ("0", "0.24", "0.25", "0.74", "0.75", "1")
    ] == [1, 1, 0.5, 0.5, 0.25, 0]


def test_the_first_lines_answer_over_all_tasks_and_then_for_each(report: Path) -> None:
    answer = re.findall(
        "<p>(.*?)</p>", report.read_text().split('<div class="answer">')[1].split("</div>")[0]
    )
    # Two seeds a task show nothing, even where every run of one arm is above every run of the
    # other.
    assert answer[0].startswith(
        "Did the feedback help? Over 2 tasks, that is not shown: the best feedback arm, "
        "teacher_feedback/gae, against teacher_frozen: area +0.312"
    )
    assert answer[1].startswith(
        "Over 2 tasks, teacher_feedback/gae is not distinguishable from llm_policy: "
        "area under the success curve +0.312 [−0.032, +0.657] (corrected p = "
    )
    assert answer[1].endswith(
        "3 arms compared), ahead in 3 of 4 pairs of runs, probability of improvement 0.88."
    )
    assert [
        line
        for line in answer
        if line.startswith(
            "On go_to_local_d4: teacher_feedback/gae is not distinguishable from llm_policy: "
        )
    ]
    assert [
        line
        for line in answer
        if line.startswith(
            "On open_door: teacher_feedback/gae is not distinguishable from llm_policy"
        )
    ]


def test_each_task_has_its_tables_and_figures(report: Path) -> None:
    text = report.read_text()
    for heading in (
        "Over all tasks",
        "go_to_local_d4: Curves",
        "open_door: Curves",
        "open_door: Controls",
        "What the tasks differ in",
    ):
        assert f"<h2>{heading}</h2>" in text
    assert {(row["task"], row["arm"]) for row in rows(report, "summary")} == {
        (task, arm)
        for task in TASKS
        for arm in (
            "llm_policy",
            "teacher_frozen",
            "teacher_feedback/gae",
            "teacher_feedback/constant/random sign",
        )
    }
    names = {path.name for path in (report.parent / "figures").iterdir()}
    for name in (
        "overall_profiles",
        "overall_scores",
        "overall_controls",
        "go_to_local_d4_success_by_steps",
        "open_door_success_by_llm_tokens",
    ):
        assert {f"{name}.svg", f"{name}.png"} <= names
    differing = text.split("<h2>What the tasks differ in")[1].split("</section>")[0]
    assert re.findall(r'<th scope="col">([^<]*)</th>', differing) == [
        "task",
        "env.level",
        "env.num_distractors",
        "run.eval_episodes",
    ]


def test_an_arm_that_lacks_runs_on_a_task_is_left_out_over_all_tasks_alone(tmp_path: Path) -> None:
    make_matrix(tmp_path)
    for seed in (0, 1):
        status = tmp_path / "open_door" / "teacher_frozen" / f"seed_{seed}" / "status.json"
        status.write_text(json.dumps({"state": "failed"}))
    findings = find(tmp_path)
    assert findings.overall is not None and len(findings.unfinished) == 2
    assert [row.label for row in findings.overall.arms] == [
        "llm_policy",
        "teacher_feedback/gae",
        "teacher_feedback/constant/random sign",
    ]
    assert [[row.label for row in task.arms] for task in findings.tasks] == [
        [
            "llm_policy",
            "teacher_frozen",
            "teacher_feedback/gae",
            "teacher_feedback/constant/random sign",
        ],
        ["llm_policy", "teacher_feedback/gae", "teacher_feedback/constant/random sign"],
    ]


LEVELS = {"one": "env.level=BabyAI-GoToLocal-v0", "two": "env.level=BabyAI-GoToRedBall-v0"}


def make_sweep(
    root: Path, heights: dict[tuple[str, str, str], float], *failed: tuple[str, str, str]
) -> Path:
    """Three runs of each task, arm and override."""
    for (task, arm, more), height in heights.items():
        for seed in range(3):
            where = root / task / f"{arm},{more}".replace("/", "_")
            config = make_config(arm, seed, where, [arm], LEVELS[task], *more.split())
            folder = make_run(config, [height + 0.01 * seed] * 3)
            if (task, arm, more) in failed:
                (folder / "status.json").write_text(json.dumps({"state": "failed"}))
    return root


def overall_arms(root: Path) -> dict[str, set[float]]:
    """The step sizes of the student behind each row over all tasks."""
    overall = find(root).overall
    rows = overall.arms if overall else ()
    return {row.label: {run.config.student.lr for run in row.runs} for row in rows}


FAST, SLOW = "student.lr=0.1", "student.lr=0.01"
SWEEP = {
    (task, arm, more): height
    for task in LEVELS
    for arm, more, height in (
        ("student_alone", "", 0.3),
        ("teacher_frozen", FAST, 0.9),
        ("teacher_frozen", SLOW, 0.1),
    )
}


@pytest.mark.parametrize(
    ("failed", "left"),
    [
        ((), [FAST, SLOW]),
        ((("two", "teacher_frozen", SLOW),), [FAST]),
        ((("one", "teacher_frozen", FAST), ("two", "teacher_frozen", SLOW)), []),
    ],
)
def test_an_arm_of_a_sweep_meets_itself_on_the_other_task_whatever_is_complete(
    tmp_path: Path, failed: tuple[tuple[str, str, str], ...], left: list[str]
) -> None:
    found = overall_arms(make_sweep(tmp_path, SWEEP, *failed))
    assert found.pop("student_alone") == {0.002}
    assert found == {f"teacher_frozen ({lr})": {float(lr.partition("=")[2])} for lr in left}


def test_an_arm_with_another_model_on_another_task_is_not_the_same_arm(tmp_path: Path) -> None:
    model = "lamorel_args.llm_args.model_path="
    runs = {("one", "student_alone", ""): 0.1, ("two", "student_alone", ""): 0.1}
    runs |= {(task, "teacher_frozen", f"{model}{task}"): 0.5 for task in LEVELS}
    make_sweep(tmp_path, runs)
    assert list(overall_arms(tmp_path)) == ["student_alone"]
    answer = headline(find(tmp_path).whole, find(tmp_path).tasks)
    assert answer[0] == (
        "Only one arm, student_alone, has complete runs on every task: there is nothing to compare"
        " it with."
    )
    assert answer[1].startswith(f"On GoToLocal: teacher_frozen ({model}one) is ")


def test_a_single_arm_with_other_values_on_each_task_is_two_arms(tmp_path: Path) -> None:
    make_sweep(tmp_path, {("one", "student_alone", FAST): 0.1, ("two", "student_alone", SLOW): 0.1})
    assert find(tmp_path).overall is None


def test_what_a_task_sets_for_all_of_its_arms_leaves_them_the_same_arms(tmp_path: Path) -> None:
    settings = {"one": f"{FAST} run.eval_episodes=50", "two": f"{SLOW} run.eval_episodes=60"}
    make_sweep(
        tmp_path, {(task, arm, more): 0.5 for task, more in settings.items() for arm in ARMS[:2]}
    )
    assert list(overall_arms(tmp_path)) == ARMS[:2]  # fmt: skip


def test_an_arm_that_ran_longer_on_one_task_leaves_the_others_together(tmp_path: Path) -> None:
    runs = {(task, arm, ""): 0.5 for task in LEVELS for arm in ARMS[:2]}
    make_sweep(tmp_path, runs | {("two", ARMS[1], "run.eval_every=5"): 0.5})
    assert ARMS[0] in overall_arms(tmp_path)


def test_labels_that_would_read_alike_are_numbered(tmp_path: Path) -> None:
    for value in ("null", "'None'"):
        more = f"lamorel_args.llm_args.model_path=mine lamorel_args.llm_args.gguf_file={value}"
        make_sweep(tmp_path / value.strip("'"), {("one", "student_alone", more): 0.1})
    (task,) = group_tasks(read_runs(tmp_path))
    start = "student_alone (lamorel_args.llm_args.gguf_file=None)"
    assert [arm.label for arm in task.arms] == [start, f"{start} (2)"]
