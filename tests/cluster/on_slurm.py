"""Jobs as ``python -m launchers --slurm...`` writes them, on a real Slurm."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.conftest import ROOT, SHARED, SMALL, curve, launch_words
from tests.cluster.slurm_cluster import PATIENCE_S, SlurmCluster, running_cluster

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
TWO_NODES = ("lamorel_args.accelerate_args.num_machines=2",)
LONG = ("run.total_steps=200000", "run.eval_every=512", "student.num_steps=8")
"""Enough for a run to be interrupted, with a checkpoint after each rollout, which is short."""


@pytest.fixture(scope="module")
def slurm() -> Iterator[SlurmCluster]:
    folder = SHARED / "slurm"
    folder.mkdir()
    with running_cluster(folder) as cluster:
        yield cluster


def submit(slurm: SlurmCluster, folder: Path, *arguments: str) -> list[str]:
    """Numbers of the jobs that ``--submit`` names; their logs lie in ``folder``."""
    words = launch_words("--submit", f"--sbatch=output={folder}/%x-%A_%a.out", *arguments)
    lines = slurm.run(*words, cwd=ROOT).splitlines()
    return [line.split()[1].rstrip(",") for line in lines]


def log(folder: Path) -> str:
    """What the jobs of a test printed."""
    return "\n".join(path.read_text() for path in sorted(folder.glob("*.out")))


def status(run: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((run / "status.json").read_text())
    return found


def wait_for_checkpoint(run: Path) -> None:
    until(lambda: any((run / "checkpoints").glob("*")))


def ranks_alive() -> list[str]:
    """Command lines of the ranks in this namespace of processes."""
    listed = subprocess.run(["ps", "-eo", "stat,args"], capture_output=True, text=True, check=True)
    return [
        line
        for line in listed.stdout.splitlines()
        if "-m lamorel_ext" in line and " elastic " not in line and not line.startswith("Z")
    ]


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline, f"not so within {PATIENCE_S:g} s"
        time.sleep(0.5)


def end_soon(slurm: SlurmCluster, job: str) -> None:
    """Give a running job two minutes more. Slurm looks every 30 s, and signals as much too early
    rather than too late.
    """
    hours, minutes, _ = map(int, slurm.field(job, "RunTime").split(":"))
    slurm.run("scontrol", "update", f"JobId={job}", f"TimeLimit={60 * hours + minutes + 2}")


@pytest.fixture(autouse=True)
def ended_jobs(slurm: SlurmCluster) -> Iterator[None]:
    """A test that fails leaves no job to the next one."""
    yield
    slurm.end_jobs()


# --- one job --------------------------------------------------------------------------------------


def test_a_job_on_one_node_gives_the_curve_of_this_machine(
    slurm: SlurmCluster, tmp_path: Path, expected: list[dict[str, str]]
) -> None:
    run = tmp_path / "run"
    (job,) = submit(
        slurm, tmp_path, "--slurm", "--sbatch=exclusive", "--setup", 'PS1=$PS1; echo "set up"',
        "--srun=--label", "train", *SMALL, f"run.output_dir={run}",
    )  # fmt: skip
    slurm.wait_for(job, *ENDED)
    assert slurm.field(job, "JobState") == "COMPLETED", log(tmp_path)
    assert curve(run) == expected
    assert "set up" in log(tmp_path) and f"0: run: {run}" in log(tmp_path)


def test_a_job_on_two_nodes_gives_the_curve_of_one_machine(
    slurm: SlurmCluster, tmp_path: Path, expected: list[dict[str, str]]
) -> None:
    run = tmp_path / "run"
    (job,) = submit(
        slurm, tmp_path, "--slurm", "train", *SMALL, *TWO_NODES, f"run.output_dir={run}"
    )
    slurm.wait_for(job, *ENDED)
    assert slurm.field(job, "JobState") == "COMPLETED", log(tmp_path)
    assert slurm.field(job, "NodeList") == "n[1-2]"
    assert curve(run) == expected


def test_nothing_of_the_environment_need_be_on_path(slurm: SlurmCluster, tmp_path: Path) -> None:
    text = slurm.run(*launch_words("--slurm", "train", *SMALL, "run.total_steps=512",
                                   f"run.output_dir={tmp_path / 'run'}"), cwd=ROOT)  # fmt: skip
    job = slurm.run(
        "env", "PATH=/usr/bin:/bin", "sbatch", "--parsable", f"--output={tmp_path}/%x-%j.out",
        text=text, cwd=ROOT,
    ).strip()  # fmt: skip
    slurm.wait_for(job, *ENDED)
    assert slurm.field(job, "JobState") == "COMPLETED", log(tmp_path)


# --- arrays ---------------------------------------------------------------------------------------


def test_an_array_trains_every_run_and_its_report_comes_after_it(
    slurm: SlurmCluster, tmp_path: Path
) -> None:
    folder = tmp_path / "comparison"
    own = (
        "--config-name", "demo", "run.total_steps=512", "compare.controls=[]",
        "compare.arms=[student_alone,teacher_frozen]", "compare.seeds=[0,1]",
        f"compare.output_dir={folder}",
    )  # fmt: skip
    array, report = submit(
        slurm, tmp_path, "--slurm-array", "--max-concurrent=2", "--sbatch=time=00:10:00",
        "compare", *own,
    )  # fmt: skip
    assert slurm.field(report, "Dependency").startswith(f"afterany:{array}")
    slurm.wait_for(report, *ENDED)
    assert slurm.states(array) == ["COMPLETED"] * 4, log(tmp_path)
    assert slurm.field(report, "JobState") == "COMPLETED", log(tmp_path)
    page = (folder / "report.html").read_text()
    assert "teacher_frozen" in page and (folder / "viewer.html").exists()

    (evaluation,) = submit(
        slurm,
        tmp_path,
        "--slurm-array",
        "--max-concurrent=2",
        "evaluate",
        *own[:2],
        *own[3:],
        "run.eval_episodes=20",
    )
    slurm.wait_for(evaluation, *ENDED)
    assert slurm.states(evaluation) == ["COMPLETED"] * 4, log(tmp_path)
    evaluated = {line for line in log(tmp_path).splitlines() if line.startswith('{"policy"')}
    assert {json.loads(line)["policy"] for line in evaluated} == {
        f"{folder}/{arm}/seed_{seed}"
        for arm in ("student_alone", "teacher_frozen")
        for seed in (0, 1)
    }


# --- interruptions --------------------------------------------------------------------------------


def test_a_requeued_job_goes_on_from_its_checkpoint(
    slurm: SlurmCluster, tmp_path: Path, expected: list[dict[str, str]]
) -> None:
    run = tmp_path / "run"
    (job,) = submit(
        slurm, tmp_path, "--slurm", "--sbatch=requeue", "train", *SMALL, *TWO_NODES,
        f"run.output_dir={run}",
    )  # fmt: skip
    wait_for_checkpoint(run)
    slurm.run("scontrol", "requeue", job)
    until(lambda: slurm.field(job, "Restarts") == "1")
    slurm.wait_for(job, *ENDED)
    assert slurm.field(job, "JobState") == "COMPLETED", log(tmp_path)
    assert curve(run) == expected


@pytest.mark.parametrize("nodes", [(), TWO_NODES], ids=["one node", "two nodes"])
def test_before_its_time_limit_a_run_saves_and_goes_back_into_the_queue(
    slurm: SlurmCluster, tmp_path: Path, nodes: tuple[str, ...]
) -> None:
    run = tmp_path / "run"
    (job,) = submit(
        slurm, tmp_path, "--slurm", "--save-before-limit=90", "--sbatch=time=01:00:00", "train",
        *SMALL, *LONG, *nodes, f"run.output_dir={run}",
    )  # fmt: skip
    wait_for_checkpoint(run)
    end_soon(slurm, job)
    until(lambda: slurm.field(job, "Restarts") == "1")
    assert status(run)["signal"] == "SIGUSR1" and status(run)["exit_status"] == 138
    assert "saved at step" in log(tmp_path), log(tmp_path)
    first = len(curve(run))
    slurm.run("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    until(lambda: len(curve(run)) > first)
    assert "stopped by SIGUSR1" in log(tmp_path)
    assert status(run)["state"] == "running"


def test_a_task_of_an_array_goes_back_without_the_others(
    slurm: SlurmCluster, tmp_path: Path
) -> None:
    """The number of an array's last task is the array's own, which names all of its tasks."""
    folder = tmp_path / "comparison"
    array, _ = submit(
        slurm, tmp_path, "--slurm-array", "--save-before-limit=90", "--sbatch=time=01:00:00",
        "compare", "--config-name", "demo", *LONG, "compare.controls=[]",
        "compare.arms=[student_alone]", "compare.seeds=[0,1]", f"compare.output_dir={folder}",
    )  # fmt: skip
    runs = [folder / "student_alone" / f"seed_{seed}" for seed in (0, 1)]
    for run in runs:
        wait_for_checkpoint(run)
    tasks = [f"{array}_{place}" for place in (0, 1)]
    assert array in [slurm.field(task, "JobId") for task in tasks]
    last = next(place for place in (0, 1) if slurm.field(tasks[place], "JobId") == array)
    end_soon(slurm, tasks[last])
    until(lambda: slurm.field(tasks[last], "Restarts") == "1")
    assert status(runs[last])["signal"] == "SIGUSR1"
    assert slurm.field(tasks[1 - last], "Restarts") == "0"
    assert slurm.field(tasks[1 - last], "JobState") == "RUNNING"


def test_a_chain_goes_on_where_the_job_before_was_stopped(
    slurm: SlurmCluster, tmp_path: Path, expected: list[dict[str, str]]
) -> None:
    run = tmp_path / "run"
    first, second = submit(
        slurm, tmp_path, "--slurm", "--chain=2", "train", *SMALL, f"run.output_dir={run}"
    )
    wait_for_checkpoint(run)
    slurm.run("scancel", first)
    slurm.wait_for(second, *ENDED)
    assert slurm.field(first, "JobState") == "CANCELLED"
    assert slurm.field(second, "JobState") == "COMPLETED", log(tmp_path)
    assert curve(run) == expected


@pytest.mark.parametrize("nodes", [(), TWO_NODES], ids=["one node", "two nodes"])
def test_a_cancelled_run_saves_and_leaves_no_process(
    slurm: SlurmCluster, tmp_path: Path, nodes: tuple[str, ...]
) -> None:
    run = tmp_path / "run"
    (job,) = submit(
        slurm, tmp_path, "--slurm", "train", *SMALL, *LONG, *nodes, f"run.output_dir={run}"
    )
    wait_for_checkpoint(run)
    slurm.run("scancel", job)
    slurm.wait_for(job, "CANCELLED")
    until(lambda: not ranks_alive())
    assert status(run)["state"] == "stopped" and status(run)["signal"] == "SIGTERM"
    assert re.search(r"stopped by SIGTERM", log(tmp_path))
