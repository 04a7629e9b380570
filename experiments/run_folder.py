"""One run, one folder: configuration, versions, learning curve, TensorBoard events, checkpoint and status.

    config.yaml     the resolved configuration
    versions.json   interpreter, packages, commit, command
    status.json     running, complete, stopped (and by which signal) or failed, with exit status and error
    metrics.csv     one row per evaluation
    tensorboard/    the same numbers as events
    traces/         single rollouts step by step, one file each, named after the environment steps before it (lamorel_ext/student/trace.py)
    checkpoints/    current.json names the folder of the last one: client.safetensors, state.json, llm/

A crash at any moment leaves a folder that can be resumed: a checkpoint counts once ``current.json`` names it.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from experiments.files import csv_cell, held_alone, replace_json, replace_text, why_not_writable, writing
from experiments.identity import differing_keys, run_identity
from experiments.results import read_json
from experiments.trackers import Tracker, make_trackers
from lamorel_ext.config import Config, read_config, save_config
from lamorel_ext.errors import CheckpointError, ConfigError
from lamorel_ext.processes.stopping import Stopped
from lamorel_ext.student.recorder import Checkpoint, SaveLlm
from lamorel_ext.student.trace import Trace

log = logging.getLogger(__name__)

ProgressListener = Callable[[int, int, Mapping[str, float]], None]


def run_state(folder: Path) -> str:
    """``complete``, ``failed``, ``stopped``, ``running`` (also what a killed process leaves), or ``absent``."""
    if not (folder / "config.yaml").exists():
        return "absent"
    return str(read_json(folder / "status.json").get("state", "running"))


def steps_done(folder: Path) -> int:
    """Environment steps up to the current checkpoint; 0 where there is none."""
    steps = read_json(folder / "checkpoints" / "current.json").get("env_steps", 0)
    return steps if isinstance(steps, int) else 0


def differences(folder: Path, config: Config) -> list[str]:
    """Why ``folder`` cannot take the run that ``config`` asks for: each key that differs, with both values.

    A folder without a checkpoint, of a run that is not complete, holds nothing that would be lost.
    """
    if run_state(folder) == "absent" or (run_state(folder) != "complete" and not (folder / "checkpoints" / "current.json").exists()):
        return []
    stored, asked = run_identity(read_config(folder / "config.yaml")), run_identity(config)
    return [f"{key}: {folder} was made with {stored[key]!r}, asked for is {asked[key]!r}" for key in differing_keys([stored, asked])]


def check_folders(runs: Iterable[tuple[Path, Config]]) -> None:
    """Make sure that every folder can be written, and that none holds another run than the one asked for.

    Raises:
        CheckpointError: One cannot be written.
        ConfigError: Naming every folder that holds another run, and each key that differs.
    """
    runs = list(runs)
    for folder, _ in runs:
        if reason := why_not_writable(folder):
            raise CheckpointError(f"{folder} cannot be written: {reason}")
    problems = [problem for folder, config in runs for problem in differences(folder, config)]
    if problems:
        raise ConfigError([*problems, "choose another output_dir, or remove what is there"])


def trace_files(folder: Path) -> dict[int, Path]:
    """The recorded rollouts of a run folder, by the environment steps before them."""
    found = {}
    for path in (folder / "traces").glob("step_*.jsonl"):
        digits = path.stem.removeprefix("step_")
        if digits.isdecimal():
            found[int(digits)] = path
    return dict(sorted(found.items()))


class RunFolder:
    """Keeps a run on disk; see ``lamorel_ext.student.recorder.Recorder``. A context manager: leaving it settles the status.

    Args:
        folder: Made on entering.
        config: The run.
        versions: Written to ``versions.json``.
        on_progress: Hears of every rollout.
    """

    def __init__(self, folder: Path, config: Config, versions: Mapping[str, Any], on_progress: ProgressListener | None = None) -> None:
        self.folder = folder
        self._config = config
        self._versions = versions
        self._on_progress = on_progress
        self._columns: list[str] = []
        self._rows = 0
        self._env_steps = 0
        self._started = time.time()
        self._trackers: list[Tracker] = []
        self._held = ExitStack()

    # --- begin and end --------------------------------------------------------------------------------------------------------

    def __enter__(self) -> RunFolder:
        check_folders([(self.folder, self._config)])
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            held.enter_context(held_alone(self.folder))
            with writing(self.folder):
                save_config(self._config, self.folder / "config.yaml")
            replace_json(self.folder / "versions.json", self._versions)
            self._env_steps = steps_done(self.folder)
            self._trackers = make_trackers(self.folder, self._config)
            self._set_status("running")
            self._held = held.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        with self._held:
            self._settle(error)

    def _settle(self, error: BaseException | None) -> None:
        for tracker in self._trackers:
            tracker.close()
        if error is None:
            self._set_status("complete", exit_status=0)
            return
        if isinstance(error, Stopped):
            stop, self._env_steps = error.stop, steps_done(self.folder)
            with suppress(CheckpointError):
                self._set_status("stopped", exit_status=stop.exit_status, error=str(error), signal=stop.why)
            return
        try:
            message = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__
            self._set_status("failed", exit_status=1, error=message, error_type=type(error).__name__)
        except CheckpointError as second:  # a full disk: what made the run fail is the error to see
            log.warning("the failure of this run could not be noted: %s", second)

    # --- Recorder ---------------------------------------------------------------------------------------------------------------

    def write(self, row: Mapping[str, float]) -> None:
        """Append a row to ``metrics.csv`` and give it to the trackers.

        Raises:
            CheckpointError: The disk is full, or the row has other columns than the rows before it.
        """
        path = self.folder / "metrics.csv"
        if self._rows == 0:
            self._columns = list(row)
            self._append(path, self._columns, "w")
        elif list(row) != self._columns:
            raise CheckpointError(f"{path} has the columns {self._columns}, the next row has {list(row)}")
        self._append(path, [csv_cell(value) for value in row.values()], "a")
        self._rows += 1
        for tracker in self._trackers:
            tracker.log(row, int(row.get("env_steps", self._rows)))

    def trace(self, trace: Trace) -> None:
        """Write a recorded rollout to a file of its own.

        Raises:
            CheckpointError: The disk is full.
        """
        path = self.folder / "traces" / f"step_{trace.env_steps:06d}.jsonl"
        with writing(path.parent):
            path.parent.mkdir(exist_ok=True)
        replace_text(path, trace.text())

    def checkpoint(self, checkpoint: Checkpoint, save_llm: SaveLlm | None) -> None:
        """Write a checkpoint beside the last one, then make it the current one, then remove the last one.

        Raises:
            CheckpointError: It cannot be written; the last one is still the current one.
        """
        root = self.folder / "checkpoints"
        last = read_json(root / "current.json").get("folder")
        _remove_others(root, last)
        target = root / (f"step-{checkpoint.env_steps}" if last != f"step-{checkpoint.env_steps}" else f"{last}-again")
        with writing(target):
            target.mkdir(parents=True)
            try:
                tensors = {name: tensor.detach().contiguous() for name, tensor in checkpoint.tensors.items()}
                save_file(tensors, target / "client.safetensors")
                (target / "state.json").write_text(json.dumps(checkpoint.state), encoding="utf-8")
            except SafetensorError as error:
                raise OSError(str(error)) from error
        if save_llm is not None:
            save_llm(str((target / "llm").resolve()))
        _flush_to_disk(target)
        replace_json(
            root / "current.json",
            {"folder": target.name, "env_steps": checkpoint.env_steps, "rows": self._rows, "llm": save_llm is not None},
        )
        _remove_others(root, target.name)
        self._env_steps = checkpoint.env_steps
        self._set_status("running")

    def resume(self) -> Checkpoint | None:
        """The current checkpoint; rows, events and traces after it are dropped.

        Raises:
            CheckpointError: A file of it is missing or corrupt.
        """
        current = read_json(self.folder / "checkpoints" / "current.json")
        checkpoint = read_checkpoint(self.folder) if current else None
        self._keep_rows(int(current["rows"]) if current else 0)
        self._env_steps = checkpoint.env_steps if checkpoint else 0
        for env_steps, path in trace_files(self.folder).items():
            if env_steps >= self._env_steps:
                with writing(path):
                    path.unlink()
        return checkpoint

    def progress(self, env_steps: int, total_steps: int, info: Mapping[str, float]) -> None:
        """Note how far the run is and pass it on."""
        self._env_steps = env_steps
        if self._on_progress is not None:
            self._on_progress(env_steps, total_steps, info)

    # --- files --------------------------------------------------------------------------------------------------------------------

    def _append(self, path: Path, cells: list[str], mode: str) -> None:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(cells)
        with writing(path), path.open(mode, encoding="utf-8", newline="") as file:
            file.write(line.getvalue())
            file.flush()
            os.fsync(file.fileno())

    def _keep_rows(self, rows: int) -> None:
        """Cut ``metrics.csv`` to its header and ``rows`` rows; a line that a crash cut short goes with the rest."""
        path = self.folder / "metrics.csv"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if rows and path.exists() else []
        if rows and len(lines) < rows + 1:
            raise CheckpointError(f"{path} has {max(len(lines) - 1, 0)} rows, its checkpoint was made after {rows}")
        with writing(path):
            if rows:
                os.truncate(path, sum(len(line.encode()) for line in lines[: rows + 1]))
            else:
                path.unlink(missing_ok=True)
        self._columns = next(csv.reader(lines[:1])) if rows else []
        self._rows = rows

    def _set_status(self, state: str, **more: Any) -> None:
        times = {"started": self._started, "updated": time.time()}
        replace_json(self.folder / "status.json", {"state": state, "env_steps": self._env_steps, **times, **more})


def read_checkpoint(folder: Path) -> Checkpoint:
    """The current checkpoint of a run folder.

    Raises:
        CheckpointError: There is none, or a file of it is missing or corrupt; the message names the file.
    """
    root = folder / "checkpoints"
    current = read_json(root / "current.json")
    try:
        target, env_steps, with_llm = root / str(current["folder"]), int(current["env_steps"]), bool(current["llm"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{root / 'current.json'} names no checkpoint: {current}") from error
    tensor_file, state_file = target / "client.safetensors", target / "state.json"
    try:
        tensors = load_file(tensor_file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{tensor_file} cannot be read: {error}. Without {root} the run starts over") from error
    if not state_file.exists():
        raise CheckpointError(f"{state_file} is missing. Without {root} the run starts over")
    return Checkpoint(env_steps, tensors, read_json(state_file), str((target / "llm").resolve()) if with_llm else None)


def _remove_others(root: Path, kept: str | None) -> None:
    """Remove what a crash, or the checkpoint before, has left."""
    with writing(root):
        for other in root.glob("step-*"):
            if other.name != kept:
                shutil.rmtree(other)


def _flush_to_disk(folder: Path) -> None:
    """A pointer must never reach the disk before what it points to."""
    with writing(folder):
        for path in folder.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
