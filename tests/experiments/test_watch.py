"""``lamorel-ext-watch``: what a folder says, whatever state it is in."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from made_runs import VERSIONS, make_config, make_row, make_run

from experiments.report.results import read_runs
from experiments.runs.run_folder import RunFolder
from experiments.runs.samples import SYSTEM, WARNINGS, read_samples
from experiments.watch.__main__ import over, picture, run, show
from experiments.watch.reading import Reader, Seen, planned
from experiments.watch.text import details, plain
from lamorel_ext.errors import NotThereError
from lamorel_ext.processes.identity import this_process
from lamorel_ext.processes.stopping import Stop, Stopped

ARMS = ["llm_policy", "student_alone"]
SAMPLE = {
    "env_steps": 20.0,
    "seconds": 10.0,
    "seconds_scoring": 6.0,
    "seconds_collecting": 1.0,
    "env_steps_per_s": 2.0,
    "tokens_per_s": 300.0,
    "memory_hits": 0.25,
    "server_queue_seconds": 0.012,
    "answer_seconds_p50": 0.02,
    "answer_seconds_p99": 0.25,
    "memory_mib_rank_0": 100.0,
    "memory_mib_rank_1": 612.4,
}


def complete(root: Path, arm: str = "llm_policy", seed: int = 0) -> Path:
    own = (f"compare.output_dir={root}", "compare.seeds=[0]", "env.num_envs=1")
    return make_run(make_config(arm, seed, root, ARMS, *own), [0.5, 0.75])


def begun(root: Path, arm: str = "llm_policy", seed: int = 0) -> RunFolder:
    config = make_config(arm, seed, root, ARMS)
    return RunFolder(Path(config.run.output_dir), config, VERSIONS)


def only(root: Path) -> Seen:
    (seen,) = Reader(root).look()
    return seen


def state_of(root: Path) -> tuple[str, str]:
    seen = only(root)
    return seen.state, seen.problem


# --- states ---------------------------------------------------------------------------------------


def test_a_complete_run_shows_its_last_evaluation(tmp_path: Path) -> None:
    complete(tmp_path)
    seen = only(tmp_path)
    assert (seen.state, seen.env_steps, seen.total_steps) == ("complete", 20, 20)
    assert (seen.name, seen.success, seen.problem) == ("llm_policy/seed_0", 0.75, "")


def test_a_run_that_goes_on_shows_how_it_uses_its_machines(tmp_path: Path) -> None:
    with begun(tmp_path) as folder:
        folder.resume()
        folder.write(make_row(0, 0.25))
        folder.system(SAMPLE)
        logging.getLogger("a.part").warning("the disk is nearly full")
        seen = only(tmp_path)
        assert (seen.state, seen.env_steps, seen.success) == ("running", 20, 0.25)
        assert seen.phases == pytest.approx({"scoring": 0.6, "collecting": 0.1, "other": 0.3})
        assert seen.memory_mib == {0: 100.0, 1: 612.4}
        assert "WARNING a.part: the disk is nearly full" in seen.warnings[0]
        text = plain([seen])
        assert "25%" in text and "12.0 ms" in text and "rank 1 612 MiB" in text
        assert "answers: 50 % within 20.0 ms, 99 % within 250.0 ms" in text
    logging.getLogger("a.part").warning("after the run")
    assert len((tmp_path / "llm_policy/seed_0" / WARNINGS).read_text().splitlines()) == 1


@pytest.mark.parametrize(("copies", "budget"), [(1, 20), (3, 21), (16, 32)])
def test_the_budget_is_what_the_copies_reach_together(
    tmp_path: Path, copies: int, budget: int
) -> None:
    config = make_config("llm_policy", 0, tmp_path, ARMS, f"env.num_envs={copies}")
    with RunFolder(Path(config.run.output_dir), config, VERSIONS) as folder:
        folder.resume()
        folder.write(make_row(0, 0.25))
        folder.write(make_row(budget, 0.25))
        folder.progress(budget, budget, {})
    assert f"{budget} of {budget}" in plain([only(tmp_path)])


def test_a_run_without_a_warning_has_no_file_of_them(tmp_path: Path) -> None:
    assert not (complete(tmp_path) / WARNINGS).exists()


def test_a_run_that_was_stopped_or_failed_says_why(tmp_path: Path) -> None:
    with pytest.raises(Stopped), begun(tmp_path / "stopped"):
        raise Stopped(Stop(15, "SIGTERM"), "saved at step 8")
    with pytest.raises(ValueError, match="a level"), begun(tmp_path / "failed"):
        raise ValueError("a level failed")
    assert state_of(tmp_path / "stopped") == ("stopped", "stopped by SIGTERM: saved at step 8")
    assert state_of(tmp_path / "failed") == ("failed", "a level failed")


@pytest.mark.parametrize("host", ["", "another-host"])
def test_a_killed_process_is_gone_where_it_can_be_seen(tmp_path: Path, host: str) -> None:
    folder = begun(tmp_path)
    folder.__enter__()
    assert state_of(tmp_path)[0] == "running"
    dead = subprocess.Popen(["true"])
    dead.wait()
    lock = tmp_path / "llm_policy/seed_0/.lock"
    lock.write_text(f"process {dead.pid} on {host or socket.gethostname()}\n")
    state, problem = state_of(tmp_path)
    assert state == ("running" if host else "gone")
    assert host or f"process {dead.pid}" in problem
    folder.__exit__(None, None, None)


@pytest.mark.parametrize(
    ("change", "state"),
    [({}, "running"), ({"started": 1}, "gone"), ({"space": "pid:[1]"}, "running")],
)
def test_a_process_that_only_has_the_number_of_the_one_that_was_killed_is_another(
    tmp_path: Path, change: dict[str, Any], state: str
) -> None:
    folder = begun(tmp_path)
    folder.__enter__()
    lock = tmp_path / "llm_policy/seed_0/.lock"
    whose, identity = lock.read_text().splitlines()
    assert identity == this_process().text
    lock.write_text(f"{whose}\n{dataclasses.replace(this_process(), **change).text}\n")
    assert state_of(tmp_path)[0] == state
    folder.__exit__(None, None, None)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("config.yaml", "run: [", "config.yaml"),
        ("config.yaml", None, "config.yaml"),
        ("metrics.csv", "env_steps,success\n1\n", "metrics.csv, line 2: expected 2 cells, got 1"),
        ("status.json", "{", ""),  # its curve goes to the end of what there is
        (SYSTEM, '{"time": 1, "env_steps"', ""),
        (SYSTEM, b"\xff\xfe\n[1]\n7\nnull\n", ""),
    ],
)
def test_a_damaged_folder_is_shown_with_what_is_wrong(
    tmp_path: Path, name: str, text: str | bytes | None, said: str
) -> None:
    path = complete(tmp_path) / name
    complete(tmp_path, "student_alone")
    if text is None:
        path.unlink()
    else:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    damaged, sound = Reader(tmp_path).look()
    assert sound.state == "complete"
    assert (damaged.state == "broken") == bool(said) and said in damaged.problem
    picture([damaged, sound])


@pytest.mark.parametrize("name", ["nowhere", "empty", "a file"])
def test_a_folder_without_a_run_is_the_users_mistake(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a file").touch()
    with pytest.raises(NotThereError, match=name):
        Reader(tmp_path / name).look()


# --- which folders, and how many there are to be --------------------------------------------------


@pytest.mark.parametrize("level", ["run", "arm", "comparison"])
def test_runs_behind_links_are_watched_as_they_are_reported(tmp_path: Path, level: str) -> None:
    folder = complete(tmp_path / "elsewhere")
    target = {"run": folder, "arm": folder.parent, "comparison": folder.parent.parent}[level]
    watched = tmp_path / "watched"
    watched.mkdir()
    (watched / "linked").symlink_to(target)
    (watched / "around").symlink_to(watched)  # a circle
    (seen,) = Reader(watched).look()
    assert seen.state == "complete" and seen.name.startswith("linked")
    assert [run.state for run in read_runs(watched)] == ["complete"]


def test_a_run_watched_from_within_has_its_folders_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(complete(tmp_path))
    assert only(Path()).name == "seed_0"


def test_folders_that_vanish_meanwhile_are_passed_over(tmp_path: Path) -> None:
    """A run writes and removes folders below ``checkpoints`` after each of its rollouts."""
    folder, ended = complete(tmp_path), threading.Event()

    def churn() -> None:
        while not ended.is_set():
            for place in ("checkpoints", "traces"):
                (folder / place / "step-1/llm/heads").mkdir(parents=True)
                shutil.rmtree(folder / place / "step-1")

    writer = threading.Thread(target=churn)
    writer.start()
    try:
        for _ in range(300):
            assert only(tmp_path).state == "complete"
    finally:
        ended.set()
        writer.join()


def test_several_comparisons_are_over_when_each_of_them_is(tmp_path: Path) -> None:
    for name in ("a", "b"):
        complete(tmp_path / name)
    complete(tmp_path / "b", "student_alone")
    runs = Reader(tmp_path).look()
    assert planned(runs) == 4 and not over(runs)
    assert plain(runs).startswith("3 of 4 runs: 3 complete")
    complete(tmp_path / "a", "student_alone")
    assert over(Reader(tmp_path).look())


def test_a_part_of_a_comparison_is_over_by_itself(tmp_path: Path) -> None:
    own = (f"compare.output_dir={tmp_path}", "compare.seeds=[0,1]")
    for seed in (0, 1):
        make_run(make_config("llm_policy", seed, tmp_path, ARMS, *own), [0.5, 0.75])
    assert planned(Reader(tmp_path).look()) == 4
    for part in (tmp_path / "llm_policy", tmp_path / "llm_policy/seed_1"):
        assert over(Reader(part).look()) and " of " not in plain(Reader(part).look()).split("\n")[0]


def test_a_broken_run_is_one_of_those_that_were_planned(tmp_path: Path) -> None:
    (complete(tmp_path) / "config.yaml").write_text("run: [")
    complete(tmp_path, "student_alone")
    assert planned(Reader(tmp_path).look()) == 2


# --- the picture ----------------------------------------------------------------------------------


def test_nothing_is_written_into_a_folder_that_is_watched(tmp_path: Path) -> None:
    complete(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    Reader(tmp_path).look()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_without_a_terminal_everything_is_printed_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    complete(tmp_path)
    assert run([str(tmp_path)]) == 0
    logging.disable(logging.NOTSET)
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "1 of 2 runs: 1 complete"


def test_a_comparison_is_drawn_until_its_last_run_is_complete(tmp_path: Path) -> None:
    from rich.console import Console

    complete(tmp_path)
    reader = Reader(tmp_path)
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            complete(tmp_path, "student_alone")

    screen = io.StringIO()
    runs = reader.look()
    assert not over(runs) and runs[0].planned == 2
    show(reader, runs, 2.5, sleep, Console(file=screen, force_terminal=True, width=160))
    assert waits == [2.5, 2.5] and "student_alone/seed_0" in screen.getvalue()
    assert "1 of 2 runs: 1 complete" in screen.getvalue()


def test_words_of_a_run_are_no_markup(tmp_path: Path) -> None:
    from rich.console import Console

    seen = Seen("[red]arm[/nonsense]", "failed", problem="expected [/] got [bold]")
    screen = io.StringIO()
    Console(file=screen, width=200).print(picture([seen]))
    assert "[red]arm[/nonsense]" in screen.getvalue() and "[/] got [bold]" in screen.getvalue()
    assert details(seen) == [("failed", "expected [/] got [bold]")]


# --- what a run folder keeps ----------------------------------------------------------------------


def test_samples_of_what_is_done_again_are_dropped(tmp_path: Path) -> None:
    with begun(tmp_path) as folder:
        folder.resume()
        folder.write(make_row(0, 0.25))
        folder.system({**SAMPLE, "env_steps": 0.0})
        folder.system(SAMPLE)
        with (tmp_path / "llm_policy/seed_0" / SYSTEM).open("a") as file:
            file.write('{"time": 3, "env_')  # the process was killed here
    with begun(tmp_path) as folder:
        folder.resume()
        folder.system({**SAMPLE, "env_steps": 10.0})
    samples = read_samples(tmp_path / "llm_policy/seed_0" / SYSTEM)
    assert [sample["env_steps"] for sample in samples] == [0.0, 10.0]


def test_tensorboard_has_them_below_system(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for steps in (10.0, 20.0):  # the second one goes on with a folder that has the first one's
        with begun(tmp_path) as folder:
            folder.resume()
            folder.write(make_row(steps, 0.25))
            folder.system({**SAMPLE, "env_steps": 0.0})
    events = EventAccumulator(str(tmp_path / "llm_policy/seed_0/tensorboard"))
    events.Reload()
    told = events.Scalars("system/tokens_per_s")
    assert [(each.step, each.value) for each in told] == [(0, 300.0), (0, 300.0)]
    assert "system/memory_mib_rank_1" in events.Tags()["scalars"]
    assert not [
        tag for tag in events.Tags()["scalars"] if tag in ("system/time", "system/env_steps")
    ]


def test_the_command_prints_a_text_through_a_pipe(tmp_path: Path) -> None:
    complete(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "lamorel_ext", "watch", str(tmp_path / "llm_policy" / "seed_0")],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "seed_0" in done.stdout and "complete" in done.stdout and done.stderr == ""
    missing = subprocess.run(
        [sys.executable, "-m", "lamorel_ext", "watch", str(tmp_path / "no")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert missing.returncode == 2 and missing.stderr.count("\n") == 1
    assert json.dumps(str(tmp_path / "no"))[1:-1] in missing.stderr
