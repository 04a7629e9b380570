"""One run, one folder: configuration, versions, learning curve, TensorBoard events, checkpoint and
status.

    config.yaml     the resolved configuration
    versions.json   interpreter, packages, commit, command
    status.json     running, complete, stopped (and by which signal) or failed, with exit status and
                    error
    metrics.csv     one row per evaluation
    system.jsonl    how it uses its machines, every 5 to 60 seconds (lamorel_ext/training/system.py)
    warnings.log    warnings of its first client, where there were any
    tensorboard/    the same numbers as events
    traces/         single rollouts step by step, one file each, named after the environment steps
                    before it (lamorel_ext/training/trace.py)
    checkpoints/    see ``checkpoint_files``

A crash at any moment leaves a folder that can be resumed. What is damaged since is noticed by its
checksum; a damaged ``status.json``, ``versions.json``, ``current.json`` or ``metrics.csv`` is made
anew from the checkpoint.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from experiments.checkpoint_files import (
    CURVE,
    Stored,
    curve_is_damaged,
    digest,
    go_on_from,
    read_stored,
    remove_others,
    stored_identity,
    stored_steps,
    write_checkpoint,
)
from experiments.report.results import decoded, read_rows, readable_json
from experiments.runs.files import (
    csv_cell,
    held_alone,
    replace_json,
    replace_text,
    why_not_writable,
    writing,
)
from experiments.runs.identity import differing_keys, run_identity
from experiments.runs.samples import SYSTEM, WARNINGS, read_samples, warnings_kept
from experiments.runs.trackers import Tracker, make_trackers
from lamorel_ext.config import CompareArgs, Config, read_config, to_yaml
from lamorel_ext.errors import CheckpointError, ConfigError
from lamorel_ext.processes.stopping import Stopped
from lamorel_ext.training.recorder import Checkpoint, SaveLlm
from lamorel_ext.training.trace import Trace

log = logging.getLogger(__name__)

ProgressListener = Callable[[int, int, Mapping[str, float]], None]


def run_state(folder: Path) -> str:
    """``complete``, ``failed``, ``stopped``, ``running`` (also what a killed process leaves), or
    ``absent``.
    """
    if not (folder / "config.yaml").exists():
        return "absent"
    status = readable_json(folder / "status.json")
    if "state" not in status and _goes_to_the_end(folder):
        return "complete"  # the report takes it so too
    state = str(status.get("state", "running"))
    return "running" if state == "complete" and curve_is_damaged(folder) else state


def _goes_to_the_end(folder: Path) -> bool:
    """True where the curve has the row of the last step, and no checkpoint says that it is another
    one.
    """
    if curve_is_damaged(folder):
        return False
    try:
        rows = read_rows(folder / CURVE, decoded(folder / CURVE))
        total = read_config(folder / "config.yaml").run.total_steps
        return bool(rows) and float(rows[-1]["env_steps"]) >= total
    except (OSError, KeyError, ValueError, CheckpointError, ConfigError):
        return False


def steps_done(folder: Path) -> int:
    """Environment steps up to the last checkpoint; 0 where there is none."""
    return stored_steps(folder / "checkpoints")


def differences(folder: Path, config: Config) -> list[str]:
    """Why ``folder`` cannot take the run that ``config`` asks for: each key that differs, with both
    values.

    A folder without a checkpoint, of a run that is not complete, holds nothing that would be lost.
    Where the checkpoint is of the run asked for, ``config.yaml`` may be gone, damaged, or of
    another command that was refused: it is written anew.
    """
    made, asked = stored_identity(folder / "checkpoints"), run_identity(config)
    if made == _plain(asked):
        return []
    state = run_state(folder)
    if state == "absent" and made is not None:
        asked = _plain(asked)
        stored = {key: made.get(key, value) for key, value in asked.items()}
    elif state == "absent" or (
        state != "complete" and not any((folder / "checkpoints").glob("step-*"))
    ):
        return []
    else:
        stored = run_identity(read_config(folder / "config.yaml"))
    return [
        f"{key}: {folder} was made with {stored.get(key)!r}, asked for is {asked.get(key)!r}"
        for key in differing_keys([stored, asked])
    ]


def check_folders(runs: Iterable[tuple[Path, Config]]) -> None:
    """Make sure that every folder can be written, and that none holds another run than the one
    asked for.

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


def complete_already(folder: Path, config: Config) -> bool:
    """Whether the run asked for is complete; its ``config.yaml`` is written anew where it cannot be
    read.

    Args:
        config: Of the run; went through ``check_folders``.
    """
    if run_state(folder) != "complete":
        return False
    try:
        read_config(folder / "config.yaml")
    except ConfigError:
        replace_text(folder / "config.yaml", to_yaml(config))
    return True


def note_comparison(folder: Path, asked: CompareArgs) -> None:
    """Have a complete run's configuration say which comparison it is now part of: the report takes
    its name and its order of arms from there.
    """
    stored = read_config(folder / "config.yaml")
    if stored.compare != asked:
        replace_text(folder / "config.yaml", to_yaml(dataclasses.replace(stored, compare=asked)))


def trace_files(folder: Path) -> dict[int, Path]:
    """The recorded rollouts of a run folder, by the environment steps before them."""
    found = {}
    for path in (folder / "traces").glob("step_*.jsonl"):
        digits = path.stem.removeprefix("step_")
        if digits.isdecimal() and path.is_file():
            found[int(digits)] = path
    return dict(sorted(found.items()))


class RunFolder:
    """Keeps a run on disk; see ``lamorel_ext.training.recorder.Recorder``. A context manager:
    leaving it settles the status.

    Args:
        folder: Made on entering.
        config: The run.
        versions: Written to ``versions.json``.
        on_progress: Hears of every rollout: steps, of how many, counters and the last row.
    """

    def __init__(
        self,
        folder: Path,
        config: Config,
        versions: Mapping[str, Any],
        on_progress: ProgressListener | None = None,
    ) -> None:
        self.folder = folder
        self._config = config
        self._versions = versions
        self._on_progress = on_progress
        self._columns: list[str] = []
        self._rows = 0
        self._last_row: Mapping[str, float] = {}
        self._lines: list[str] = []
        self._older = False
        self._env_steps = 0
        self._started = time.time()
        self._trackers: list[Tracker] = []
        self._held = ExitStack()

    # --- begin and end ----------------------------------------------------------------------------

    def __enter__(self) -> RunFolder:
        check_folders([(self.folder, self._config)])
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            held.enter_context(held_alone(self.folder))
            replace_text(self.folder / "config.yaml", to_yaml(self._config))
            replace_json(self.folder / "versions.json", self._versions)
            self._env_steps = steps_done(self.folder)
            self._trackers = make_trackers(self.folder, self._config)
            self._set_status("running")
            held.enter_context(warnings_kept(self.folder / WARNINGS))
            self._held = held.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._held:
            self._settle(error)

    def _settle(self, error: BaseException | None) -> None:
        failure: CheckpointError | None = None
        for tracker in self._trackers:
            try:
                tracker.close()
            except CheckpointError as second:
                if error or failure:
                    log.warning("%s", second)
                else:
                    failure = second
        self._note_end(error or failure)
        if failure is not None:
            raise failure

    def _note_end(self, error: BaseException | None) -> None:
        if error is None:
            self._set_status("complete", exit_status=0)
            remove_others(
                self._checkpoints, readable_json(self._checkpoints / "current.json").get("folder")
            )
            return
        if isinstance(error, Stopped):
            stop, self._env_steps = error.stop, steps_done(self.folder)
            with suppress(CheckpointError):
                self._set_status(
                    "stopped", exit_status=stop.exit_status, error=str(error), signal=stop.why
                )
            return
        try:
            message = (
                "interrupted"
                if isinstance(error, KeyboardInterrupt)
                else str(error) or type(error).__name__
            )
            status = getattr(error, "exit_status", 1)
            self._set_status(
                "failed", exit_status=status, error=message, error_type=type(error).__name__
            )
        except CheckpointError as second:  # a full disk: what made the run fail is the error to see
            log.warning("the failure of this run could not be noted: %s", second)

    # --- Recorder ---------------------------------------------------------------------------------

    def write(self, row: Mapping[str, float]) -> None:
        """Append a row to ``metrics.csv`` and give it to the trackers.

        Raises:
            CheckpointError: The disk is full, or the row has other columns than the rows before it.
        """
        path = self.folder / "metrics.csv"
        if self._rows == 0:
            self._columns, self._lines = list(row), []
            self._append(path, self._columns, "w")
        elif self._older and set(self._columns) <= set(row):
            row = {name: row[name] for name in self._columns}  # a later version measures more
        elif list(row) != self._columns:
            raise CheckpointError(
                f"{path} has the columns {self._columns}, the next row has {list(row)}"
            )
        self._append(path, [csv_cell(value) for value in row.values()], "a")
        self._rows += 1
        self._last_row = row
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
        for tracker in self._trackers:
            tracker.trace(trace)

    def system(self, sample: Mapping[str, float]) -> None:
        """Append a sample to ``system.jsonl`` and give it to TensorBoard.

        Raises:
            CheckpointError: The disk is full.
        """
        path, line = self.folder / SYSTEM, {"time": round(time.time(), 3), **sample}
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        for tracker in self._trackers:
            tracker.system(sample, int(sample["env_steps"]))

    def checkpoint(self, checkpoint: Checkpoint, save_llm: SaveLlm | None) -> None:
        """Write a checkpoint beside the last one and make it the current one; the last one is kept
        until the next, or the end.

        Raises:
            CheckpointError: It cannot be written; the last one is still the current one.
        """
        traces = {
            path.name: digest(path)
            for steps, path in trace_files(self.folder).items()
            if steps < checkpoint.env_steps
        }
        facts = {
            "rows": self._rows,
            "traces": traces,
            "identity": _plain(run_identity(self._config)),
        }
        write_checkpoint(self._checkpoints, checkpoint, save_llm, "".join(self._lines), facts)
        self._env_steps = checkpoint.env_steps
        self._set_status("running")

    def resume(self) -> Checkpoint | None:
        """The last whole checkpoint. The curve is brought back to what it was then, to the byte;
        events and traces after it are dropped.

        Raises:
            CheckpointError: A file of it is missing or damaged, and there is none before it.
            ConfigError: It was made by another run.
        """
        stored = read_stored(self._checkpoints)
        if stored is not None:
            self._check_identity(stored)
            go_on_from(stored)
        self._bring_back_curve(stored)
        self._env_steps = 0 if stored is None else stored.checkpoint.env_steps
        self._bring_back_traces({} if stored is None else stored.traces)
        self._bring_back_system()
        rows = read_rows(self.folder / CURVE, "".join(self._lines))
        self._last_row = rows[-1] if rows else {}
        for tracker in self._trackers:
            tracker.resume(rows)
        return None if stored is None else stored.checkpoint

    def progress(self, env_steps: int, total_steps: int, info: Mapping[str, float]) -> None:
        """Note how far the run is and pass it on, with the last row of the curve."""
        self._env_steps = env_steps
        if self._on_progress is not None:
            self._on_progress(env_steps, total_steps, {**self._last_row, **info})

    # --- files ------------------------------------------------------------------------------------

    def _append(self, path: Path, cells: list[str], mode: str) -> None:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(cells)
        with writing(path), path.open(mode, encoding="utf-8", newline="") as file:
            file.write(line.getvalue())
            file.flush()
            os.fsync(file.fileno())
        self._lines.append(line.getvalue())

    @property
    def _checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def _check_identity(self, stored: Stored) -> None:
        """``config.yaml`` may be gone, or be that of another run."""
        if unlike := _made_otherwise(stored, self._config):
            raise ConfigError([*unlike, "choose another output_dir, or remove what is there"])

    def _bring_back_curve(self, stored: Stored | None) -> None:
        """``metrics.csv`` as it was at the checkpoint, whatever became of it since."""
        path = self.folder / CURVE
        if stored is None:
            with writing(path):
                path.unlink(missing_ok=True)
            self._lines, self._rows = [], 0
            return
        self._lines = (
            _first_rows(path, stored.rows)
            if stored.curve is None
            else stored.curve.splitlines(keepends=True)
        )
        self._rows, self._columns = stored.rows, next(csv.reader(self._lines[:1]), [])
        self._older = stored.curve is None
        replace_text(path, "".join(self._lines))

    def _bring_back_traces(self, traces: Mapping[str, str]) -> None:
        """Drop the traces that will be made again; put aside those that are damaged, which cannot
        be.
        """
        for env_steps, path in trace_files(self.folder).items():
            with writing(path):
                if env_steps >= self._env_steps:
                    path.unlink()
                elif path.name in traces and digest(path) != traces[path.name]:
                    log.warning(
                        "%s is damaged since it was written; it is put aside as %s.damaged",
                        path,
                        path.name,
                    )
                    path.replace(path.with_name(f"{path.name}.damaged"))

    def _bring_back_system(self) -> None:
        """Drop the samples of what will be done again."""
        path = self.folder / SYSTEM
        if path.exists():
            kept = [line for line in read_samples(path) if line["env_steps"] <= self._env_steps]
            replace_text(path, "".join(json.dumps(line) + "\n" for line in kept))

    def _set_status(self, state: str, **more: Any) -> None:
        times = {"started": self._started, "updated": time.time()}
        replace_json(
            self.folder / "status.json",
            {"state": state, "env_steps": self._env_steps, **times, **more},
        )


def read_checkpoint(folder: Path) -> Checkpoint:
    """The current checkpoint of a run folder.

    Raises:
        CheckpointError: There is none, a file of it is missing or damaged, or it is of another run
            than ``config.yaml``; the message names the file.
        ConfigError: ``config.yaml`` cannot be read.
    """
    stored = read_stored(folder / "checkpoints")
    if stored is None:
        raise CheckpointError(f"{folder / 'checkpoints'} holds no checkpoint")
    if unlike := _made_otherwise(stored, read_config(folder / "config.yaml")):
        raise CheckpointError(f"{folder} has the checkpoint of another run: {'; '.join(unlike)}")
    return stored.checkpoint


def _made_otherwise(stored: Stored, config: Config) -> list[str]:
    """The keys in which a checkpoint is of another run than this one, with both values."""
    asked = _plain(run_identity(config))
    return [
        f"{key}: {stored.folder} was made with {value!r}, asked for is {asked[key]!r}"
        for key, value in stored.identity.items()
        if key in asked and asked[key] != value
    ]


def _plain(identity: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back."""
    return dict(json.loads(json.dumps(identity, default=str)))


def _first_rows(path: Path, rows: int) -> list[str]:
    """Header and first rows of the curve of an earlier version's checkpoint, which does not hold
    it.

    Raises:
        CheckpointError: They are not all there.
    """
    if not rows:
        return []
    lines = decoded(path).splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    if len(whole) < rows + 1:
        raise CheckpointError(
            f"{path} has {max(len(whole) - 1, 0)} rows, its checkpoint was made after {rows}"
        )
    kept = whole[: rows + 1]
    read_rows(path, "".join(kept))
    return kept
