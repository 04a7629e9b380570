"""The programmes from end to end, with a tiny language model: training, comparing, resuming,
evaluating, and what goes wrong.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_llm import save_tiny_llm

from experiments import compare, evaluate, train
from experiments.report.results import read_run
from experiments.runs.build import alone, build_server
from experiments.runs.entry import run_main
from experiments.runs.progress import Ticker, describe_seconds
from experiments.runs.run_folder import read_checkpoint
from lamorel_ext.config import CONFIG_DIR, load_config
from lamorel_ext.errors import ConfigError, LamorelExtError
from lamorel_ext.llm.serving import in_process
from lamorel_ext.training.building import make_env
from lamorel_ext.training.run import TrainingRun
from tests import warm

ROOT = Path(__file__).parents[2]
SMALL = [
    "env.num_envs=4", "student.num_steps=8", "ppo.num_steps=8", "run.total_steps=64",
    "run.eval_every=32", "run.evaluation=episodes", "run.eval_episodes=4",
]  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides for a run of a second."""
    folder = save_tiny_llm(tmp_path_factory.mktemp("tiny_llm"))
    return [
        *SMALL,
        f"lamorel_args.llm_args.model_path={folder}",
        "lamorel_args.llm_args.value_head_hidden=8",
    ]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log stays pytest's: a handler on a captured stream would outlive it."""
    for programme in (train, compare, evaluate):
        monkeypatch.setattr(programme, "start_log", lambda level: None)


def two_arms(tiny: list[str], folder: Path) -> list[str]:
    arms = "compare.arms=[llm_policy_feedback+signal=gae,teacher_feedback+signal=previous]"
    return [*tiny, arms, "compare.controls=[]", "compare.seeds=[5]", f"compare.output_dir={folder}"]


def curves(folder: Path) -> dict[str, dict[str, list[float]]]:
    """Every column but the time, of every run; NaN as None, so that equal means equal."""
    found = {}
    for config in sorted(folder.rglob("config.yaml")):
        columns = read_run(config.parent).columns
        found[config.parent.parent.name] = {
            name: [None if np.isnan(value) else float(value) for value in values]
            for name, values in columns.items()
            if name != "seconds"
        }
    return found  # type: ignore[return-value]


# --- comparing ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison that ran through."""
    folder = tmp_path_factory.mktemp("finished")
    assert compare.run(two_arms(tiny, folder)) == 0
    return folder


def test_a_comparison_trains_every_arm_and_reports(finished: Path) -> None:
    found = curves(finished)
    assert set(found) == {"llm_policy_feedback+signal=gae", "teacher_feedback+signal=previous"}
    for columns in found.values():
        assert columns["env_steps"] == [0, 32, 64] and columns["llm_calls"][-1] > 0
    page = (finished / "report.html").read_text()
    assert "llm_policy+feedback/gae" in page and "teacher_feedback/previous" in page
    versions = json.loads(
        (finished / "teacher_feedback+signal=previous" / "seed_5" / "versions.json").read_text()
    )
    assert versions["torch"] == torch.__version__ and versions["command"].startswith(
        "python -m experiments.compare env.num_envs=4"
    )


def test_complete_runs_are_skipped(
    finished: Path,
    tiny: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*arguments: object) -> None:
        raise RuntimeError("nothing is left to train, and a report asks no model")

    monkeypatch.setattr(compare, "train_one", refuse)
    monkeypatch.setattr(compare, "run_as_ranked", refuse)
    before = curves(finished)
    with caplog.at_level(logging.INFO, logger="experiments"):
        assert compare.run(two_arms(tiny, finished)) == 0
    assert "all 2 runs are complete already" in caplog.text and curves(finished) == before
    assert capsys.readouterr().out.splitlines()[-1] == f"report: {finished / 'report.html'}"


def test_an_interrupted_comparison_goes_on_as_if_nothing_had_happened(
    finished: Path, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[int] = []

    def interrupt(
        ticker: Ticker, name: str, done: int, total: int, measured: object = None
    ) -> None:
        heard.append(done)
        if len(heard) == 3:  # the second run, after its first rollout and checkpoint
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Ticker, "tell", interrupt)
        assert run_main(compare.run, two_arms(tiny, tmp_path)) == 130
    assert heard == [32, 64, 32]
    states = {
        path.parent.parent.name: json.loads(path.read_text())["state"]
        for path in tmp_path.rglob("status.json")
    }
    assert states == {
        "llm_policy_feedback+signal=gae": "complete",
        "teacher_feedback+signal=previous": "failed",
    }
    assert compare.run(two_arms(tiny, tmp_path)) == 0
    for arm, columns in curves(finished).items():
        for name, values in columns.items():
            if (
                name != "llm_tokens"
            ):  # a new server has forgotten the answers of the old one, and computes them again
                assert curves(tmp_path)[arm][name] == pytest.approx(values, abs=1e-6), name


def test_a_launch_with_two_clients_makes_the_comparison_of_one_process(
    finished: Path, tiny: list[str], tmp_path: Path
) -> None:
    words = [*two_arms(tiny, tmp_path), "lamorel_args.distributed_setup_args.n_rl_processes=2"]
    command = [sys.executable, "-m", "launchers", "compare", *words]
    ranks = {"PYTHON_EXEC": warm.interpreter(PYTHONPATH=str(ROOT)), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | ranks, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert curves(tmp_path) == curves(finished)
    assert done.stdout.count("report: ") == 1 and (tmp_path / "report.html").exists()


def test_a_failure_ends_with_its_message_and_keeps_what_is_complete(
    finished: Path, tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = tmp_path / "teacher_feedback+signal=previous" / "seed_5"
    full.mkdir(parents=True)
    (full / "versions.json.part").symlink_to("/dev/full")
    assert run_main(compare.run, two_arms(tiny, tmp_path)) == 1
    errors = capsys.readouterr().err
    assert (
        f"error: {full / 'versions.json'} cannot be written: No space left on device" in errors
        and "Traceback" not in errors
    )
    assert (
        curves(tmp_path)["llm_policy_feedback+signal=gae"]
        == curves(finished)["llm_policy_feedback+signal=gae"]
    )


def test_another_configuration_is_refused_with_every_key_that_differs(
    finished: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run_main(compare.run, [*two_arms(tiny, finished), "feedback.lr=0.25", "env.language=fr"])
        == 2
    )
    errors = capsys.readouterr().err
    assert (
        errors.count("feedback.lr: ") == 2
        and errors.count("env.language: ") == 2
        and "Traceback" not in errors
    )


# --- planning -------------------------------------------------------------------------------------


def test_a_plan_has_every_arm_for_a_seed_before_the_next_seed() -> None:
    planned = compare.plan(
        [
            "compare.seeds=[3,1]",
            "compare.arms=[student_alone,teacher_frozen]",
            "run.total_steps=40",
        ],
        "demo",
    )
    assert [run.name for run in planned] == [
        "student_alone, seed 3",
        "teacher_frozen, seed 3",
        "student_alone, seed 1",
        "teacher_frozen, seed 1",
    ]
    assert [str(run.folder) for run in planned][0] == "runs/demo/student_alone/seed_3"
    assert {(run.config.arm.teacher, run.config.run.seed) for run in planned} == {
        ("none", 3),
        ("llm", 3),
        ("none", 1),
        ("llm", 1),
    }
    assert all(
        run.config.run.total_steps == 40 and run.config.run.evaluation == "exact" for run in planned
    )


def test_a_plan_over_tasks_has_a_folder_for_each_task_and_the_experiments_values_win() -> None:
    words = [
        "compare.tasks=[go_to_local_d4,open_door]",
        "compare.arms=[student_alone,llm_policy]",
        "compare.seeds=[3,1]",
        "env.num_envs=2",
    ]
    planned = compare.plan(words, "demo")
    assert [str(run.folder) for run in planned] == [
        f"runs/demo/{task}/{arm}/seed_{seed}"
        for seed in (3, 1)
        for task in ("go_to_local_d4", "open_door")
        for arm in ("student_alone", "llm_policy")
    ]
    assert planned[0].name == "go_to_local_d4, student_alone, seed 3"
    first, last = planned[0].config, planned[-1].config
    assert (first.env.level, first.env.num_distractors, first.arm.teacher) == (
        "BabyAI-GoToLocal-v0",
        4,
        "none",
    )
    assert (last.env.level, last.env.num_distractors, last.arm.agent) == (
        "BabyAI-OpenDoor-v0",
        None,
        "llm_policy",
    )
    # The task's 50,000 steps give way to the demonstration's 2,100; what neither it nor the command
    # line says is the task's.
    assert {run.config.run.total_steps for run in planned} == {2100} and {
        run.config.env.num_envs for run in planned
    } == {2}
    assert (first.run.eval_episodes, last.run.eval_episodes) == (200, 100)


def test_parts_of_a_plan_are_every_run_once(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    monkeypatch.setattr(
        compare, "compare", lambda runs, *others: trained.extend(run.name for run in runs)
    )
    words = [
        *tiny,
        "compare.arms=[student_alone,teacher_random]",
        "compare.seeds=[0,1,2]",
        f"compare.output_dir={tmp_path}",
    ]
    for part in ("1/2", "2/2"):
        assert compare.run([*words, "--part", part]) == 0
    assert trained == [
        "student_alone, seed 0", "student_alone, seed 1", "student_alone, seed 2",
        "teacher_random, seed 0", "teacher_random, seed 1", "teacher_random, seed 2"]  # fmt: skip


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "a/b"])
def test_a_part_that_there_is_not_is_refused(part: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compare.run(["--part", part])
    assert "expected K/N with K from 1 to N" in capsys.readouterr().err


def test_one_run_of_a_plan_is_what_train_makes_of_the_same_words() -> None:
    cell = "teacher_feedback+signal=constant+sign=random"
    common = [f"compare.arms=['{cell}']", "compare.seeds=[2]", "student.lr=0.5"]
    planned = compare.plan(common, "demo")[0]
    words = [*common, f"arm={cell}", "run.seed=2"]
    assert load_config([*words, f"run.output_dir={planned.folder}"], "demo") == planned.config


def test_a_plan_lists_the_problems_of_every_arm() -> None:
    with pytest.raises(ConfigError) as caught:
        arms = (
            "[llm_policy,teacher_feedback+signal=gae,'teacher_feedback+signal=gae+sign=shuffled']"
        )
        compare.plan(["feedback.every=1", f"compare.arms={arms}"], "default")
    (problem,) = caught.value.problems
    both = "teacher_feedback+signal=gae, teacher_feedback+signal=gae+sign=shuffled"
    assert problem.startswith(f"with arm={both}: feedback.signal: gae needs the whole rollout")


def test_what_every_arm_has_in_common_is_said_once() -> None:
    with pytest.raises(ConfigError) as caught:
        compare.plan(["run.total_step=1"], "demo")
    assert caught.value.problems == ("run.total_step: unknown key (did you mean total_steps?)",)


def test_the_arm_that_nobody_asked_for_need_not_be_possible() -> None:
    # The default arm waits for the whole rollout, and is none of these.
    compare.plan(["feedback.every=1", "compare.arms=[teacher_feedback+signal=td,llm_policy]"])


@pytest.mark.parametrize(
    "override", ["arm=llm_policy", "task=open_door", "run.seed=1", "run.output_dir=x"]
)
def test_what_a_comparison_sets_itself_cannot_be_set(override: str) -> None:
    with pytest.raises(ConfigError, match="a comparison sets this itself; set compare"):
        compare.plan([override], "demo")


def test_arms_that_want_other_servers_cannot_share_a_launch(tmp_path: Path) -> None:
    (tmp_path / "arm").mkdir()
    (tmp_path / "default.yaml").write_text(
        "defaults: [_self_, {arm: one}]\ncompare: {arms: [one, two], controls: []}\n"
    )
    (tmp_path / "arm" / "one.yaml").write_text("# @package _global_\narm: {name: one}\n")
    (tmp_path / "arm" / "two.yaml").write_text(
        "# @package _global_\narm: {name: two}\nlamorel_args: {llm_args: {dtype: bfloat16}}\n"
    )
    with pytest.raises(ConfigError, match="with arm=two it differs"):
        compare.plan([], "default", tmp_path)


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "status", "message"),
    [
        (["run.total_step=3"], 2, "run.total_step: unknown key (did you mean total_steps?)"),
        (
            ["env.level=BabyAI-GoToRedBal-v0"],
            2,
            "env.level: no level 'BabyAI-GoToRedBal-v0'; did you mean",
        ),
        (
            ["env.curriculum=[{level:BabyAI-GoToOb-v0,steps:9}]"],
            2,
            "env.curriculum[0].level: no level 'BabyAI-GoToOb-v0'; did you mean",
        ),
        (
            ["env.num_distractors=2"],
            2,
            (
                "env.num_distractors: "
                "BabyAI-GoToRedBallNoDists-v0 does not take a number of distractors"
            ),
        ),
        (["lamorel_args.llm_args.model_path=./no/such/model"], 2, "no/such/model does not exist"),
        (
            ["run.evaluation=exact", "env.prompt=glam", "arm=llm_policy"],
            2,
            "run.evaluation: exact is not possible",
        ),
        (
            ["run.output_dir=/dev/null/run"],
            1,
            "/dev/null/run cannot be written: /dev/null is not a folder",
        ),
    ],
)
def test_a_mistake_ends_with_one_message(
    tiny: list[str],
    tmp_path: Path,
    overrides: list[str],
    status: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_main(train.run, [*tiny, f"run.output_dir={tmp_path / 'run'}", *overrides]) == status
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and message in errors and "Traceback" not in errors


def test_a_corrupt_checkpoint_is_named(
    finished: Path, tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*tiny, "arm=teacher_feedback+signal=previous", f"run.output_dir={tmp_path}"]
    assert train.run(words) == 0
    (model,) = (tmp_path / "checkpoints").rglob("model.safetensors")
    model.write_bytes(model.read_bytes()[:100])
    (tmp_path / "status.json").write_text('{"state": "running"}')
    assert run_main(train.run, words) == 1
    errors = capsys.readouterr().err
    assert (
        errors.startswith("error: ") and "model.safetensors" in errors and "Traceback" not in errors
    )


# --- evaluating -----------------------------------------------------------------------------------


def scores_of(printed: str) -> Mapping[str, Mapping[str, Mapping[str, float]]]:
    return {score["name"]: score for score in json.loads(printed.splitlines()[-1])["scores"]}


def test_a_run_is_evaluated_beside_random_and_the_bot(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finished / "teacher_feedback+signal=previous" / "seed_5"
    assert evaluate.run([f"policy={folder}", "run.eval_episodes=16"]) == 0
    printed = capsys.readouterr().out
    found = scores_of(printed)
    assert list(found) == [str(folder), "its teacher, followed", "random", "bot"]
    assert found["bot"]["success"]["estimate"] == 1.0 and found["bot"]["returned"]["low"] > 0.8
    # Wilson with 16 of 16: 16 / (16 + z^2).
    assert found["bot"]["success"]["low"] == pytest.approx(16 / (16 + 3.841459), abs=1e-6)
    assert found["random"]["success"]["estimate"] < 1.0 and found["random"]["exact_success"] is None
    assert printed.splitlines()[0].startswith(
        "BabyAI-GoToRedBallNoDists-v0, 16 held-out episodes from seed 1000000000"
    )


def test_a_run_that_acts_with_something_else_says_so(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finished / "teacher_feedback+signal=previous" / "seed_5"
    words = ["arm=random", "run.eval_episodes=2", "env.num_envs=4", "run.num_threads=1"]
    assert evaluate.run([f"policy={folder}", *words]) == 0
    found = scores_of(capsys.readouterr().out)
    assert list(found) == [f"{folder} with arm=random", "random", "bot"]


@pytest.mark.parametrize(
    "arm", ["teacher_feedback+signal=previous", "llm_policy_feedback+signal=gae"]
)
def test_a_run_is_evaluated_wherever_one_wants(
    arm: str, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = f"policy={finished / arm / 'seed_5'}"
    for elsewhere in (
        ["env.level=BabyAI-GoToLocal-v0"],
        ["env.level=BabyAI-PickupLoc-v0", "env.num_envs=1"],
        ["env.backend=minigrid"],
    ):
        assert (
            evaluate.run([policy, "run.eval_episodes=2", "run.evaluation=episodes", *elsewhere])
            == 0
        )
        assert capsys.readouterr().out.startswith(
            elsewhere[0]
            .removeprefix("env.level=")
            .replace("env.backend=minigrid", "BabyAI-GoToRed")
        )


def test_a_checkpoint_that_is_gone_gives_way_to_the_next_and_a_broken_one_does_not(
    tiny: list[str], tmp_path: Path
) -> None:
    """A run that goes on removes its checkpoints while the servers of an evaluation start."""
    words = [*tiny, "arm=teacher_frozen"]
    assert train.run([*words, f"run.output_dir={tmp_path / 'run'}"]) == 0
    config, later = load_config(words), read_checkpoint(tmp_path / "run")
    gone = dataclasses.replace(later, env_steps=1, llm_folder=str(tmp_path / "gone"))
    broken = dataclasses.replace(gone, llm_folder=str(tmp_path))
    with in_process([build_server(config.lamorel_args, alone(config.lamorel_args))]) as llm:
        with TrainingRun(config, llm, make_env) as run:
            taken = evaluate.take_over(run, gone, str(tmp_path / "run"))
            assert taken is not None and taken.env_steps == later.env_steps
            for lost, policy in ((broken, tmp_path / "run"), (gone, tmp_path)):
                with pytest.raises(LamorelExtError):
                    evaluate.take_over(run, lost, str(policy))


def test_what_a_checkpoint_has_learnt_is_taken_over(tiny: list[str], tmp_path: Path) -> None:
    """The agent's and the teacher's weights, and what the signals remember of the prompts."""
    words = [
        *tiny,
        "arm=teacher_feedback+signal=state+every=1",
        "feedback.channel=both",
        "run.seed=3",
    ]
    assert train.run([*words, f"run.output_dir={tmp_path}"]) == 0
    config = load_config([*words, "env.num_envs=2"])
    with in_process([build_server(config.lamorel_args, alone(config.lamorel_args))]) as llm:
        with TrainingRun(config, llm, make_env) as run:
            fresh = run.agent.tensors()
            before = llm.score(["a prompt"], [["turn left", "go forward"]])[0]
            run.take_over(read_checkpoint(tmp_path))
            stored = read_checkpoint(tmp_path)
            assert run.agent.tensors().keys() == stored.tensors.keys() == fresh.keys()
            assert all(
                torch.equal(run.agent.tensors()[key], tensor)
                for key, tensor in stored.tensors.items()
            )
            assert any(
                not torch.equal(fresh[key], tensor) for key, tensor in stored.tensors.items()
            )
            assert not torch.equal(
                before, llm.score(["a prompt"], [["turn left", "go forward"]])[0]
            )
            assert run.edge.signals.state()["means"] == stored.state["signals"]["means"] != {}


def test_the_model_as_it_is_can_be_evaluated_exactly(
    tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.run([*tiny, "run.evaluation=exact"]) == 0
    found = scores_of(capsys.readouterr().out)
    # METHOD of the level: uniformly random actions succeed in 26.4 %, return 0.155; the optimum is
    # 100 %, 0.934.
    assert (found["random"]["exact_success"], found["random"]["exact_return"]) == pytest.approx(
        (0.264, 0.155), abs=1e-3
    )
    assert (found["bot"]["exact_success"], found["bot"]["exact_return"]) == pytest.approx(
        (1.0, 0.934), abs=1e-3
    )
    assert 0 <= float(found["zero_shot"]["exact_success"]) <= 1  # type: ignore[arg-type]


def test_what_is_no_run_cannot_be_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(evaluate.run, [f"policy={tmp_path}"]) == 2
    assert "neither zero_shot nor a run folder" in capsys.readouterr().err


# --- several ranks --------------------------------------------------------------------------------


def launch(words: list[str]) -> subprocess.CompletedProcess[str]:
    argv = [
        sys.executable,
        "-m",
        "launchers",
        "train",
        "lamorel_args.distributed_setup_args.n_llm_processes=2",
        *words,
    ]
    return subprocess.run(
        argv,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_a_launch_with_two_servers_gives_the_numbers_of_one_process(
    finished: Path, tiny: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "teacher_feedback+signal=previous" / "seed_5"
    words = [
        *tiny,
        "arm=teacher_feedback+signal=previous",
        "run.seed=5",
        f"run.output_dir={folder}",
    ]
    done = launch(words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"run: {folder}"
    one, two = (
        curves(finished)["teacher_feedback+signal=previous"],
        curves(tmp_path)["teacher_feedback+signal=previous"],
    )
    del one["llm_tokens"]  # each server remembers answers of its own
    for name, values in one.items():
        assert two[name] == pytest.approx(values, abs=1e-4), name

    (state,) = (folder / "checkpoints").rglob("state.json")
    state.write_text("{")
    (folder / "status.json").write_text('{"state": "running"}')
    done = launch(words)
    assert (
        done.returncode != 0
        and f"{state} is damaged" in done.stderr
        and "Traceback" not in done.stderr
    )


# --- progress -------------------------------------------------------------------------------------


def test_the_time_left_follows_from_the_steps_done_so_far(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    ticker = Ticker(total_steps=1000, clock=lambda: now[0])
    with caplog.at_level(logging.INFO, logger="experiments"):
        now[0] = 10.0
        ticker.tell("a", 100, 500)  # 10 steps a second, 900 left
        now[0] = 12.0
        ticker.tell("a", 120, 500)  # too soon after the last line
        now[0] = 100.0
        ticker.tell("a", 500, 500)  # 5 steps a second, 500 left
        ticker.skip(300)  # the second run has a checkpoint at 300: 500 steps in 100 s, 200 left
        ticker.tell("b", 300, 500)
        now[0] = 106.0
        ticker.tell("b", 500, 500)
    assert caplog.messages == [
        "a: 100 of 500 steps, about 2 min left in all",
        "a: 500 of 500 steps, about 2 min left in all",
        "b: 500 of 500 steps",
    ]


def test_times_are_rounded_for_people() -> None:
    assert [describe_seconds(seconds) for seconds in (45.4, 89.0, 720.0, 11100.0)] == [
        "45 s",
        "89 s",
        "12 min",
        "3 h 05 min",
    ]


def test_the_shipped_folder_of_configurations_is_the_default() -> None:
    assert (CONFIG_DIR / "default.yaml").is_file()
