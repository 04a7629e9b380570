"""A run's folder: what stands in it, what a crash leaves, and what is said about a bad one."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from made_runs import VERSIONS, make_config, make_row, make_run

from experiments.report.results import read_columns, read_run
from experiments.runs.files import file_to_write, held_alone, why_not_writable
from experiments.runs.run_folder import (
    RunFolder,
    check_folders,
    complete_already,
    note_comparison,
    read_checkpoint,
    run_state,
)
from experiments.runs.trackers import TensorBoard, episode_text, tag
from lamorel_ext.config import Config, read_config
from lamorel_ext.errors import CheckpointError, ConfigError, WriteError
from lamorel_ext.training.recorder import Checkpoint
from lamorel_ext.training.trace import Trace


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return make_config("teacher_feedback+signal=gae", 3, tmp_path, ["teacher_feedback+signal=gae"])


def folder_of(config: Config) -> Path:
    return Path(config.run.output_dir)


def save_llm(folder: str) -> None:
    Path(folder).mkdir(parents=True)
    Path(folder, "model.safetensors").write_bytes(b"weights")


def a_checkpoint(steps: int) -> Checkpoint:
    return Checkpoint(
        steps,
        {"w": torch.full((2, 3), float(steps)), "view": torch.arange(6).reshape(2, 3).t()},
        {"rng": [1, 2], "steps": steps},
    )


# --- what stands in it ----------------------------------------------------------------------------


def test_a_complete_run_reads_back_with_everything(config: Config) -> None:
    run = read_run(make_run(config, [0.25, 0.5, 1.0]))
    assert (run.state, run.seed, run.config) == ("complete", 3, config)
    assert run.status["exit_status"] == 0 and run.versions == VERSIONS
    assert run.columns["env_steps"].tolist() == [0, 10, 20] and run.columns["success"].tolist() == [
        0.25,
        0.5,
        1.0,
    ]
    assert run.area("success", 20) == 0.5625 and run.cost_to(0.5) == 10
    assert run.cost_to(0.25) == 0 and run.cost_to(1.1) == math.inf


def test_the_rows_are_events_of_tensorboard_too(config: Config) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(make_run(config, [0.25, 0.5]) / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("eval/success")] == [
        (0, 0.25),
        (20, 0.5),
    ]


RECORDED = (
    {"kind": "trace", "env_steps": 10, "actions": ["turn left", "go forward"]},
    {"kind": "episode", "mission": "go to the red ball"},
    {"kind": "step", "action": 1, "reward": 0.0, "end": None, "signal": -1.0, "llm": None,
     "guidance": {"text": "go forward"}},
    {"kind": "step", "action": 0, "reward": 0.5, "end": "terminated", "signal": None, "llm": None,
     "guidance": None},
    {"kind": "episode", "mission": "another"},
)  # fmt: skip


def test_tensorboard_has_hyper_parameters_and_recorded_episodes_after_a_resume_too(
    config: Config,
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):
        with RunFolder(folder_of(config), config, VERSIONS) as run:
            run.resume()
            run.write(make_row(0, 0.1))
            run.trace(Trace(10, RECORDED))
            run.checkpoint(a_checkpoint(20), None)
    events = EventAccumulator(str(folder_of(config) / "tensorboard")).Reload()
    assert "_hparams_/experiment" in events.summary_metadata
    (tag_of_text,) = [one for one in events.Tags()["tensors"] if one.startswith("episodes/")]
    text = events.Tensors(tag_of_text)[0].tensor_proto.string_val[0].decode()
    assert text.split("\n\n") == [
        "**go to the red ball**",
        "1. heard *go forward*, did **go forward**, reward 0.0, f -1",
        "2. did **turn left**, reward 0.5, terminated",
    ]


def test_an_episode_of_actions_by_state_is_text_too() -> None:
    steps = [
        {"offered": ["go north", "look"], "action": 1,
         **dict.fromkeys(("llm", "guidance", "signal", "end")), "reward": 0.0},
        {"offered": ["take key"], "action": 0,
         **dict.fromkeys(("llm", "guidance", "signal", "end")), "reward": 1.0},
    ]  # fmt: skip
    lines = [
        {"env_steps": 8, "actions": []},
        {"mission": ""},
        *({"kind": "step"} | one for one in steps),
    ]
    text = "1. did **look**, reward 0.0\n\n2. did **take key**, reward 1.0"
    assert episode_text(lines) == (text, 8)


@pytest.mark.parametrize("lines", [(), ({"kind": "trace"},), RECORDED[1:], (1, 2)])
def test_what_is_no_record_of_a_rollout_gives_no_text(lines: Any) -> None:
    assert episode_text(lines) == ("", 0)


def test_a_number_that_was_not_measured_is_an_empty_cell(config: Config) -> None:
    with RunFolder(folder_of(config), config, VERSIONS) as run:
        run.write(make_row(0, 0.1, teacher_success=math.nan))
        run.write(make_row(10, 0.1234567890123456789, teacher_success=0.5))
    columns = read_columns(folder_of(config) / "metrics.csv")
    assert math.isnan(columns["teacher_success"][0]) and columns["teacher_success"][1] == 0.5
    assert columns["success"][1] == 0.1234567890123456789


def test_rows_of_one_run_have_the_same_columns(config: Config) -> None:
    with (
        pytest.raises(CheckpointError, match="has the columns"),
        RunFolder(folder_of(config), config, VERSIONS) as run,
    ):
        run.write({"env_steps": 0.0})
        run.write({"env_steps": 1.0, "more": 2.0})


def test_the_status_follows_the_run(config: Config) -> None:
    assert run_state(folder_of(config)) == "absent"
    with pytest.raises(RuntimeError), RunFolder(folder_of(config), config, VERSIONS) as run:
        assert run_state(folder_of(config)) == "running"
        run.progress(7, 20, {})
        raise RuntimeError("the server is gone")
    status = json.loads((folder_of(config) / "status.json").read_text())
    assert (status["state"], status["exit_status"], status["error"], status["env_steps"]) == (
        "failed",
        1,
        "the server is gone",
        7,
    )
    assert status["error_type"] == "RuntimeError"


def test_progress_is_passed_on(config: Config) -> None:
    heard: list[tuple[int, int]] = []
    with RunFolder(
        folder_of(config), config, VERSIONS, lambda done, total, info: heard.append((done, total))
    ) as run:
        run.progress(5, 20, {})
        run.progress(20, 20, {})
    assert heard == [(5, 20), (20, 20)]


# --- checkpoints ----------------------------------------------------------------------------------


def test_a_run_without_a_checkpoint_starts_over(config: Config) -> None:
    make_run(config, [0.25, 0.5])
    with RunFolder(folder_of(config), config, VERSIONS) as run:
        assert run.resume() is None
        run.write(make_row(0, 0.125))
        run.write(make_row(20, 0.75))
    assert read_run(folder_of(config)).columns["success"].tolist() == [0.125, 0.75]


def test_a_checkpoint_comes_back_whole_and_later_rows_are_dropped(config: Config) -> None:
    with RunFolder(folder_of(config), config, VERSIONS) as run:
        run.write(make_row(0, 0.1))
        run.checkpoint(a_checkpoint(5), save_llm)
        run.write(make_row(10, 0.2))
        run.checkpoint(a_checkpoint(12), save_llm)
        run.write(make_row(20, 0.3))
    with (folder_of(config) / "metrics.csv").open("a") as file:
        file.write("30,0.")  # cut short by a crash
    with RunFolder(folder_of(config), config, VERSIONS) as run:
        checkpoint = run.resume()
        run.write(make_row(20, 0.4))
    assert checkpoint is not None and (checkpoint.env_steps, checkpoint.state) == (
        12,
        {"rng": [1, 2], "steps": 12},
    )
    assert torch.equal(checkpoint.tensors["w"], torch.full((2, 3), 12.0))
    assert torch.equal(checkpoint.tensors["view"], torch.tensor([[0, 3], [1, 4], [2, 5]]))
    assert (
        checkpoint.llm_folder is not None
        and Path(checkpoint.llm_folder, "model.safetensors").read_bytes() == b"weights"
    )
    assert read_columns(folder_of(config) / "metrics.csv")["success"].tolist() == [0.1, 0.2, 0.4]
    assert [path.name for path in (folder_of(config) / "checkpoints").glob("step-*")] == ["step-12"]


def test_a_checkpoint_that_fails_half_way_leaves_the_one_before(config: Config) -> None:
    def full(folder: str) -> None:
        save_llm(folder)
        raise CheckpointError("No space left on device")

    with pytest.raises(CheckpointError), RunFolder(folder_of(config), config, VERSIONS) as run:
        run.write(make_row(0, 0.1))
        run.checkpoint(a_checkpoint(5), save_llm)
        run.checkpoint(a_checkpoint(9), full)
    with RunFolder(folder_of(config), config, VERSIONS) as run:
        checkpoint = run.resume()
        assert checkpoint is not None and checkpoint.env_steps == 5
        run.checkpoint(a_checkpoint(5), None)
    assert [path.name for path in (folder_of(config) / "checkpoints").glob("step-*")] == [
        "step-5-again"
    ]
    assert read_checkpoint(folder_of(config)).llm_folder is None


def test_a_server_that_writes_on_another_machine_makes_no_checkpoint_that_looks_whole(
    config: Config,
) -> None:
    folder = folder_of(config)
    with (
        pytest.raises(CheckpointError, match="step-9: .* on another machine; run.output_dir must"),
        RunFolder(folder, config, VERSIONS) as run,
    ):
        run.write(make_row(0, 0.1))
        run.checkpoint(a_checkpoint(5), save_llm)
        run.checkpoint(a_checkpoint(9), lambda folder: None)
    assert read_checkpoint(folder).env_steps == 5


def test_a_first_checkpoint_that_failed_half_way_does_not_block_the_next(config: Config) -> None:
    for name in ("", "client.safetensors"):
        rest = folder_of(config) / "checkpoints" / "step-5" / name
        rest.parent.mkdir(parents=True, exist_ok=True)
        rest.write_bytes(b"half") if name else rest.mkdir()
        with RunFolder(folder_of(config), config, VERSIONS) as run:
            assert run.resume() is None
            run.write(make_row(0, 0.1))
            run.checkpoint(a_checkpoint(5), save_llm)
        with RunFolder(folder_of(config), config, VERSIONS) as run:
            checkpoint = run.resume()
        assert checkpoint is not None and checkpoint.env_steps == 5
        shutil.rmtree(folder_of(config))


def test_a_disk_that_is_full_at_the_start_of_a_resume_leaves_the_configuration(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_stopped_run(config)
    before = (folder_of(config) / "config.yaml").read_text()

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("experiments.runs.files.os.fsync", full)
        with pytest.raises(CheckpointError, match="No space left"):
            RunFolder(folder_of(config), config, VERSIONS).__enter__()
    assert (folder_of(config) / "config.yaml").read_text() == before
    assert resumed(config)[0] is not None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("step-5/client.safetensors", b"not safetensors"),
        ("step-5/client.safetensors", b""),
        ("step-5/state.json", b"{"),
        ("step-5/manifest.json", b"{}"),
        ("step-5/metrics.csv", b"env_steps,success"),
    ],
)
def test_a_corrupt_checkpoint_is_named(config: Config, name: str, content: bytes) -> None:
    with RunFolder(folder_of(config), config, VERSIONS) as run:
        run.checkpoint(a_checkpoint(5), None)
    (folder_of(config) / "checkpoints" / name).write_bytes(content)
    with (
        pytest.raises(CheckpointError, match=name.split("/")[-1]),
        RunFolder(folder_of(config), config, VERSIONS) as run,
    ):
        run.resume()


def test_a_checkpoint_of_an_earlier_version_without_its_rows_is_refused(config: Config) -> None:
    with RunFolder(folder_of(config), config, VERSIONS) as run:
        run.write(make_row(0, 0.1))
        run.checkpoint(a_checkpoint(5), None)
    make_it_old(folder_of(config))
    (folder_of(config) / "metrics.csv").unlink()
    with (
        pytest.raises(
            CheckpointError, match="metrics.csv has 0 rows, its checkpoint was made after 1"
        ),
        RunFolder(folder_of(config), config, VERSIONS) as run,
    ):
        run.resume()


def make_it_old(folder: Path) -> None:
    """As a version without checksums wrote it."""
    current = folder / "checkpoints" / "current.json"
    pointer = json.loads(current.read_text())
    del pointer["manifest"]
    current.write_text(json.dumps(pointer))
    for name in ("manifest.json", "metrics.csv"):
        (folder / "checkpoints" / pointer["folder"] / name).unlink()


def a_stopped_run(config: Config) -> Path:
    """Two checkpoints, three rows, and the end of a process that was killed."""
    run = RunFolder(folder_of(config), config, VERSIONS).__enter__()
    run.write(make_row(0, 0.1))
    run.checkpoint(a_checkpoint(5), save_llm)
    run.write(make_row(10, 0.2))
    run.checkpoint(a_checkpoint(12), save_llm)
    run.write(make_row(20, 0.3))
    run._held.close()
    return folder_of(config)


def resumed(config: Config) -> tuple[Checkpoint | None, str]:
    with RunFolder(folder_of(config), config, VERSIONS) as run:
        found = run.resume()
        return found, (folder_of(config) / "metrics.csv").read_text()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-3], lambda data: data[:5], lambda data: b"",
        lambda data: data + bytes(4096), lambda data: data.replace(b"0.1", b"0.9"),
        lambda data: data.replace(b"success", b"sucess"), lambda data: b"\xff\xfe" + data, None,
    ],
)  # fmt: skip
def test_whatever_became_of_the_curve_it_comes_back_as_it_was(config: Config, damage: Any) -> None:
    path = a_stopped_run(config) / "metrics.csv"
    whole = "".join(path.read_text().splitlines(keepends=True)[:3])
    path.unlink() if damage is None else path.write_bytes(damage(path.read_bytes()))
    checkpoint, curve = resumed(config)
    assert checkpoint is not None and checkpoint.env_steps == 12 and curve == whole


@pytest.mark.parametrize(
    "name",
    ["client.safetensors", "state.json", "llm/model.safetensors", "manifest.json", "metrics.csv"],
)
def test_a_flipped_bit_costs_the_way_from_the_checkpoint_before(
    config: Config, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = a_stopped_run(config) / "checkpoints" / "step-12" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    checkpoint, curve = resumed(config)
    assert checkpoint is not None and checkpoint.env_steps == 5 and len(curve.splitlines()) == 2
    assert "DAMAGED CHECKPOINT" in caplog.text and str(path) in caplog.text


@pytest.mark.parametrize(
    "shared", [lambda w: w, lambda w: w[0], lambda w: w.t(), lambda w: w.view(-1)[2:]]
)
def test_weights_that_share_their_memory_are_saved_each_by_its_name(
    config: Config, shared: Any
) -> None:
    weights = torch.arange(6.0).reshape(2, 3)
    checkpoint = Checkpoint(5, {"own": weights, "tied": shared(weights)}, {})
    with RunFolder(folder_of(config), config, VERSIONS) as run:
        run.write(make_row(0, 0.1))
        run.checkpoint(checkpoint, None)
    found = read_checkpoint(folder_of(config)).tensors
    assert torch.equal(found["own"], weights) and torch.equal(found["tied"], shared(weights))


@pytest.mark.parametrize("pointer", ["kept", "empty", "gone"])
def test_what_a_run_goes_on_from_stays_until_the_next_checkpoint_is_whole(
    config: Config, pointer: str
) -> None:
    checkpoints = a_stopped_run(config) / "checkpoints"
    (checkpoints / "step-12" / "state.json").write_text("{}")
    current = checkpoints / "current.json"
    if pointer != "kept":
        current.write_text("") if pointer == "empty" else current.unlink()
    for _ in range(2):  # killed while it writes the next one, again and again
        with (
            pytest.raises(KeyboardInterrupt),
            RunFolder(folder_of(config), config, VERSIONS) as run,
        ):
            found = run.resume()
            assert found is not None and found.env_steps == 5
            run.write(make_row(10, 0.2))
            run.checkpoint(a_checkpoint(12), MagicMock(side_effect=KeyboardInterrupt))
    with RunFolder(folder_of(config), config, VERSIONS) as run:
        run.resume()
        run.write(make_row(10, 0.2))
        run.checkpoint(a_checkpoint(12), save_llm)
        assert {path.name for path in checkpoints.glob("step-*")} == {"step-5", "step-12"}
    assert read_checkpoint(folder_of(config)).env_steps == 12


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", None])
@pytest.mark.parametrize("name", ["status.json", "versions.json", "checkpoints/current.json"])
def test_what_can_be_made_anew_does_not_block_a_resume(
    config: Config, name: str, content: bytes | None
) -> None:
    path = a_stopped_run(config) / name
    path.unlink() if content is None else path.write_bytes(content)
    checkpoint, _ = resumed(config)
    assert checkpoint is not None and checkpoint.env_steps == 12


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", None, b"run: {seed: 3}\n"])
def test_a_run_goes_on_whatever_became_of_its_configuration(
    config: Config, content: bytes | None
) -> None:
    path = a_stopped_run(config) / "config.yaml"
    whole = path.read_bytes()
    path.unlink() if content is None else path.write_bytes(content)
    checkpoint, _ = resumed(config)
    assert checkpoint is not None and checkpoint.env_steps == 12 and path.read_bytes() == whole


@pytest.mark.parametrize("damage", ["config.yaml", "checkpoints/current.json"])
def test_a_command_that_was_refused_does_not_lock_a_run_out(config: Config, damage: str) -> None:
    (a_stopped_run(config) / "config.yaml").unlink()
    (folder_of(config) / damage).unlink(missing_ok=True)
    other = dataclasses.replace(config, run=dataclasses.replace(config.run, eval_every=7))
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"run\.eval_every: .* was made with 10"):
            resumed(other)
    assert not (folder_of(config) / "config.yaml").exists()
    checkpoint, _ = resumed(config)
    assert checkpoint is not None and checkpoint.env_steps == 12


@pytest.mark.parametrize("status", [None, "", "{}"])
def test_a_curve_that_goes_to_the_end_is_kept_without_its_status(
    config: Config, status: str | None
) -> None:
    total = config.run.total_steps
    folder = folder_of(config)
    with RunFolder(folder, config, VERSIONS) as run:
        run.write(make_row(total - 1, 0.5))
    (folder / "status.json").unlink()
    if status is not None:
        (folder / "status.json").write_text(status)
    assert run_state(folder) == "running"
    with RunFolder(folder, config, VERSIONS) as run:
        run.write(make_row(total, 0.5))
    (folder / "status.json").unlink()
    if status is not None:
        (folder / "status.json").write_text(status)
    assert run_state(folder) == "complete"
    other = dataclasses.replace(config, student=dataclasses.replace(config.student, lr=0.5))
    with pytest.raises(ConfigError, match=r"student.lr"):
        check_folders([(folder, other)])


def test_a_complete_run_says_which_comparison_it_is_part_of_now(config: Config) -> None:
    folder = folder_of(config)
    with RunFolder(folder, config, VERSIONS) as run:
        run.write(make_row(config.run.total_steps, 0.5))
    asked = dataclasses.replace(config.compare, name="mine", bootstrap_samples=77)
    note_comparison(folder, asked)
    assert read_config(folder / "config.yaml") == dataclasses.replace(config, compare=asked)
    assert run_state(folder) == "complete"


@pytest.mark.parametrize("content", [b"", b"run: [", b"\xff"])
def test_a_complete_run_gets_its_configuration_back(config: Config, content: bytes) -> None:
    folder = folder_of(config)
    with RunFolder(folder, config, VERSIONS) as run:
        run.write(make_row(config.run.total_steps, 0.5))
        run.checkpoint(a_checkpoint(config.run.total_steps), None)
    whole = (folder / "config.yaml").read_bytes()
    (folder / "config.yaml").write_bytes(content)
    check_folders([(folder, config)])
    assert complete_already(folder, config) and (folder / "config.yaml").read_bytes() == whole


def test_a_complete_run_whose_curve_is_damaged_is_done_again_from_its_checkpoint(
    config: Config,
) -> None:
    with RunFolder(folder_of(config), config, VERSIONS) as run:
        run.write(make_row(20, 0.5))
        run.checkpoint(a_checkpoint(20), None)
    path = folder_of(config) / "metrics.csv"
    whole = path.read_text()
    assert run_state(folder_of(config)) == "complete"
    path.write_text(whole[:-4])
    assert (
        run_state(folder_of(config)) == "running"
        and resumed(config)[1] == whole
        and run_state(folder_of(config)) == "complete"
    )


def test_a_changed_digit_of_a_complete_curve_is_not_reported(config: Config) -> None:
    with RunFolder(folder_of(config), config, VERSIONS) as run:
        run.write(make_row(0, 0.25))
        run.write(make_row(config.run.total_steps, 0.5))
        run.checkpoint(a_checkpoint(config.run.total_steps), None)
    path = folder_of(config) / "metrics.csv"
    assert read_run(folder_of(config)).columns["success"].tolist() == [0.25, 0.5]
    path.write_text(path.read_text().replace("0.5", "0.6"))
    with pytest.raises(CheckpointError, match=r"not the curve that its checkpoint holds\. The run"):
        read_run(folder_of(config))


def test_another_runs_checkpoint_is_not_read_as_this_ones(config: Config, tmp_path: Path) -> None:
    other = dataclasses.replace(
        config,
        run=dataclasses.replace(config.run, seed=4, output_dir=str(tmp_path / "other")),
    )
    for one in (config, other):
        with RunFolder(folder_of(one), one, VERSIONS) as run:
            run.checkpoint(a_checkpoint(5), None)
    shutil.rmtree(folder_of(config) / "checkpoints")
    shutil.copytree(folder_of(other) / "checkpoints", folder_of(config) / "checkpoints")
    with pytest.raises(CheckpointError, match=r"another run: run\.seed: .* with 4, asked for is 3"):
        read_checkpoint(folder_of(config))


def test_what_a_user_puts_beside_checkpoints_and_traces_stops_no_run(config: Config) -> None:
    folder = folder_of(config)
    with RunFolder(folder, config, VERSIONS) as run:
        run.checkpoint(a_checkpoint(5), None)
        (folder / "checkpoints" / "step-5.tar.gz").write_bytes(b"a copy")
        (folder / "checkpoints" / "step-best").symlink_to("step-5")
        (folder / "traces" / "step_000001.jsonl").mkdir(parents=True)
        (folder / "traces" / "step_000002.jsonl").symlink_to("gone")
        run.checkpoint(a_checkpoint(9), None)
        run.checkpoint(a_checkpoint(12), None)
    assert read_checkpoint(folder).env_steps == 12
    there = {path.name for path in (folder / "checkpoints").glob("step-*")}
    assert there == {"step-5.tar.gz", "step-best", "step-12"}


def test_a_checkpoint_without_checksums_still_loads_with_a_note(
    config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    make_it_old(a_stopped_run(config))
    checkpoint, curve = resumed(config)
    assert checkpoint is not None and checkpoint.env_steps == 12 and len(curve.splitlines()) == 3
    assert "without checksums" in caplog.text


# --- a full disk ----------------------------------------------------------------------------------


def test_a_full_disk_gives_a_clear_message_and_keeps_what_was_written(
    config: Config, tmp_path: Path
) -> None:
    finished = make_run(make_config("llm_policy", 3, tmp_path, ["llm_policy"]), [0.5, 0.75])
    folder = folder_of(config)
    with (
        pytest.raises(
            CheckpointError, match=r"metrics.csv cannot be written: No space left on device"
        ),
        RunFolder(folder, config, VERSIONS) as run,
    ):
        (folder / "metrics.csv").symlink_to("/dev/full")
        run.write(make_row(0, 0.1))
    assert (
        run_state(folder) == "failed"
        and "No space left on device" in json.loads((folder / "status.json").read_text())["error"]
    )
    assert read_run(finished).columns["success"].tolist() == [0.5, 0.75]


def test_a_status_or_a_warning_that_cannot_be_written_does_not_hide_the_error(
    config: Config,
) -> None:
    folder = folder_of(config)
    with (
        pytest.raises(CheckpointError, match="metrics.csv cannot be written"),
        RunFolder(folder, config, VERSIONS) as run,
    ):
        for name in ("metrics.csv", "status.json.part", "warnings.log"):
            (folder / name).symlink_to("/dev/full")
        run.write(make_row(0, 0.1))
    assert run_state(folder) == "running"  # the old file is still whole


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # its writer
def test_a_disk_that_is_full_for_tensorboard_alone_is_named_and_the_run_has_failed(
    config: Config,
) -> None:
    folder = folder_of(config)
    with (
        pytest.raises(CheckpointError, match="tensorboard cannot be written: No space left"),
        RunFolder(folder, config, VERSIONS) as run,
    ):
        run.write(make_row(0, 0.1))
        (events,) = (folder / "tensorboard").glob("events*")
        events.unlink()
        events.symlink_to("/dev/full")
        for row in range(1, 200):
            run.write(make_row(row, 0.1))
            time.sleep(0.01)
    assert run_state(folder) == "failed"


def test_a_tracker_that_cannot_be_closed_hides_no_error_and_leaves_no_run_complete(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tracker: object) -> None:
        raise WriteError("tensorboard cannot be written: No space left on device")

    monkeypatch.setattr(TensorBoard, "close", full)
    folder = folder_of(config)
    with pytest.raises(WriteError, match="tensorboard"), RunFolder(folder, config, VERSIONS) as run:
        run.write(make_row(0, 0.1))
    assert run_state(folder) == "failed"
    with pytest.raises(ZeroDivisionError), RunFolder(folder, config, VERSIONS):
        raise ZeroDivisionError("what made it fail")
    assert "what made it fail" in (folder / "status.json").read_text()


@pytest.mark.parametrize("name", ["x" * 256, "é" * 128])
def test_a_name_that_no_file_system_takes_is_refused_at_once(name: str, tmp_path: Path) -> None:
    for folder in (tmp_path / name, tmp_path / "none" / name / "run"):
        assert "a name has at most 255 bytes" in why_not_writable(folder)
    assert why_not_writable(tmp_path / "none" / name[:60]) == ""
    with pytest.raises(argparse.ArgumentTypeError, match="a name has at most 255 bytes"):
        file_to_write(str(tmp_path / name / "page.html"))


def test_a_disk_that_is_full_where_a_folder_is_taken_is_named(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with (
            pytest.raises(WriteError, match=r"\.lock cannot be written: File too large"),
            held_alone(tmp_path),
        ):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fills_up_under_a_checkpoint_is_named(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with (
        pytest.raises(CheckpointError, match="step-5 cannot be written: No space left"),
        RunFolder(folder_of(config), config, VERSIONS) as run,
    ):
        run.checkpoint(a_checkpoint(5), None)


# --- another run's folder -------------------------------------------------------------------------


def test_the_folder_of_another_run_is_refused_with_every_key_that_differs(
    config: Config, tmp_path: Path
) -> None:
    make_run(config, [0.5])
    other = make_config("teacher_feedback+signal=td", 4, tmp_path, ["llm_policy"], "student.lr=0.5")
    with pytest.raises(ConfigError) as caught:
        check_folders([(folder_of(config), other)])
    text = str(caught.value)
    for key in ("arm.name", "feedback.signal", "run.seed", "student.lr"):
        assert f"{key}: " in text
    assert "was made with 'gae', asked for is 'td'" in text and "compare" not in text


def test_a_second_process_is_kept_out_of_a_run_that_is_being_written(config: Config) -> None:
    folder = Path(config.run.output_dir)
    program = (
        "import sys; from pathlib import Path; from experiments.runs.files import held_alone\n"
        "with held_alone(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    folder.mkdir(parents=True)
    with subprocess.Popen(
        [sys.executable, "-c", program, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with (
            pytest.raises(
                CheckpointError, match=f"in use by process {other.pid} on .*two processes"
            ),
            RunFolder(folder, config, {}),
        ):
            pass
        assert not (folder / "config.yaml").exists()
        other.kill()
    with RunFolder(folder, config, {}):
        pass
    with RunFolder(folder, config, {}):
        pass


def test_how_a_run_runs_may_change_when_it_is_resumed(config: Config, tmp_path: Path) -> None:
    folder = make_run(config, [0.5])
    same = make_config(
        "teacher_feedback+signal=gae",
        3,
        tmp_path,
        ["a", "b"],
        "lamorel_args.distributed_setup_args.n_llm_processes=3",
        "run.checkpoint_every=7",
    )
    check_folders([(folder, same)])
    with RunFolder(folder, same, VERSIONS):
        pass
    assert read_config(folder / "config.yaml") == same


def test_a_tracker_that_is_not_installed_is_named(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    asked = dataclasses.replace(config, run=dataclasses.replace(config.run, tracker="wandb"))
    with pytest.raises(ConfigError, match=r"run\.tracker: wandb is not installed"):
        make_run(asked, [0.25])


def test_weights_and_biases_gets_every_measured_value_with_its_step(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = MagicMock()
    monkeypatch.setitem(sys.modules, "wandb", MagicMock(init=MagicMock(return_value=run)))
    asked = dataclasses.replace(config, run=dataclasses.replace(config.run, tracker="wandb"))
    make_run(asked, [0.25, 0.5])
    logged = [(call.args[0]["success"], call.kwargs["step"]) for call in run.log.call_args_list]
    assert [value for value, _ in logged] == [0.25, 0.5]
    assert [step for _, step in logged] == sorted({step for _, step in logged})
    run.finish.assert_called_once_with()


def test_why_weights_and_biases_refuses_a_run_is_said_with_the_key(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = MagicMock()
    wandb.errors.Error = type("Error", (Exception,), {})
    wandb.init.side_effect = wandb.errors.Error("api_key not configured (no-tty)")
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    asked = dataclasses.replace(config, run=dataclasses.replace(config.run, tracker="wandb"))
    with pytest.raises(ConfigError, match=r"run\.tracker: .* api_key not configured \(no-tty\)"):
        make_run(asked, [0.25])
    status = json.loads((Path(config.run.output_dir) / "status.json").read_text())
    assert (status["state"], status["exit_status"]) == ("failed", 2)  # as the program ends


@pytest.mark.parametrize(
    "between, same", [(None, True), ("no id!", False), ("", False), ("\xe9", False)]
)
def test_a_run_that_goes_on_is_the_same_one_at_weights_and_biases(
    config: Config, monkeypatch: pytest.MonkeyPatch, between: str | None, same: bool
) -> None:
    wandb = MagicMock()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    asked = dataclasses.replace(config, run=dataclasses.replace(config.run, tracker="wandb"))
    for success in (0.25, 0.5):
        folder = make_run(asked, [success])
        if between is not None and success < 0.5:
            (folder / "wandb_id.txt").write_text(between)
    first, second = (call.kwargs for call in wandb.init.call_args_list)
    assert (first["id"] == second["id"]) is same and first["resume"] == "allow"
    assert (folder / "wandb_id.txt").read_text() == f"{second['id']}\n"


@pytest.mark.parametrize(
    "column, expected",
    [("success", "eval/success"), ("eval_exact", "eval/exact"), ("feedback_kl", "feedback/kl"),
     ("train_return", "train/return"), ("student_grad_norm", "student/grad_norm"),
     ("llm_calls", "llm/calls"), ("seconds", "run/seconds"), ("env_steps", "run/env_steps")],
)  # fmt: skip
def test_tensorboard_shows_columns_in_groups(column: str, expected: str) -> None:
    assert tag(column) == expected
