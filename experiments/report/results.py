"""Read run folders back: what a report is made of. Nothing here needs the programme that made the
runs.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import logging
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.report.statistics import TIE, area_under_curve
from experiments.runs.identity import differing_keys, flat, method
from experiments.runs.planning import place_of
from lamorel_ext.config import Config, read_config
from lamorel_ext.errors import CheckpointError, ConfigError, NotThereError

log = logging.getLogger(__name__)

CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"
"""Folder of a run in which none is."""
WANDB = "wandb"
"""The same, of wandb: what it sends has a ``config.yaml`` too."""
STEPS = "env_steps"
SUCCESS = "success"
RETURN = "return"
CALLS = "llm_calls"
TOKENS = "llm_tokens"
SECONDS = "seconds"
TEACHER = "teacher_success"
EXACT = "eval_exact"
"""1 where an evaluation went through all states, 0 where it played held-out episodes."""
NEEDED = (STEPS, SUCCESS, RETURN, CALLS, TOKENS, SECONDS)
"""Columns that every curve of a complete run has, and without which there is nothing to report."""
PER_ROLLOUT = ("student_update_steps", "student_update_samples")
"""Counts of which a row has the mean over the rollouts since the row before."""
NOT_THE_TASK = (
    "env.name",
    "env._target_",
    "env.num_envs",
    "env.curriculum",
    "env.prompt",
    "env.history",
    "env.backend",
    "env.num_workers",
)
"""Keys of ``env`` that do not make the task: its names, and what two arms of one task may differ
in, as an evaluation is on the same episodes with any of it.
"""
SET_BY_TASKS = ("run.total_steps", "run.eval_every", "run.eval_episodes", "run.evaluation")
"""What a task's file sets beside ``env``: an arm keeps its name with another value on another task.
"""
_LARGEST = 1e15
"""Of any number of a curve: beyond it floating point does not count in ones."""


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        folder: Where it lies.
        config: Its resolved configuration.
        state: ``running``, ``complete``, ``stopped`` or ``failed``; ``running`` is also what a
            killed process leaves behind.
        status: All of ``status.json``.
        versions: All of ``versions.json``.
        columns: The learning curve, column by column, each ``(evaluations,)`` float64; NaN where
            nothing was measured.
    """

    folder: Path
    config: Config
    state: str
    status: Mapping[str, Any]
    versions: Mapping[str, Any]
    columns: Mapping[str, np.ndarray]

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return self.config.run.seed

    @property
    def level(self) -> str:
        """What was trained on: ``env.level``, or the name of an environment that the run brought
        itself.
        """
        env = self.config.env
        return str(self.status.get("environment", env.own.target or env.level))

    @property
    def task(self) -> dict[str, Any]:
        """What makes its task, by key: all of ``env`` but ``NOT_THE_TASK``, and an environment that
        the run brought itself.
        """
        keys = {key: value for key, value in flat(self.config).items() if _makes_task(key)}
        own = {} if self.level == self.config.env.level else {"environment": self.level}
        return own | keys

    def last(self, column: str) -> float:
        """Value at the last evaluation."""
        return float(self.columns[column][-1])

    def total(self, column: str) -> float:
        """A count over the whole run. Where stages of a curriculum cut rollouts off between two
        rows, counts ``PER_ROLLOUT`` come out too small.
        """
        if column not in PER_ROLLOUT:
            return self.last(column)
        rollout = self.config.num_steps * self.config.env.num_envs  # the last one may be shorter
        rollouts = np.ceil(np.diff(self.columns[STEPS]) / rollout)
        return float((self.columns[column][1:] * rollouts).sum())

    def at(self, column: str, until: float) -> float:
        """Value at ``until`` steps, as ``area`` has it; at the last evaluation where the budget is
        no larger than that.
        """
        if self.config.run.total_steps <= until or self.last(STEPS) <= until:
            return self.last(column)
        return float(np.interp(until, self.columns[STEPS], self.columns[column]))

    def area(self, column: str, until: float) -> float:
        """Mean height of a curve over environment steps."""
        return area_under_curve(self.columns[STEPS], self.columns[column], until)

    def area_by(self, cost: str, until: float) -> float:
        """Mean success over what was spent of ``cost``; where nothing was spent between two
        evaluations, the later one counts.
        """
        spent, success = self.columns[cost], self.columns[SUCCESS]
        last = np.append(np.diff(spent) > 0, True)
        return area_under_curve(spent[last], success[last], until)

    def cost_to(self, threshold: float, cost: str = STEPS) -> float:
        """What was spent of ``cost``, environment steps by default, until an evaluation succeeds
        this often; infinite where none does, or the curve does not say.
        """
        reached = self.columns[SUCCESS] >= threshold
        known = cost in self.columns and reached.any()
        return float(self.columns[cost][reached.argmax()]) if known else math.inf


def _makes_task(key: str) -> bool:
    return key.startswith("env.") and key not in NOT_THE_TASK


@dataclass(frozen=True)
class Arm:
    """Runs that differ in nothing but their seed.

    Attributes:
        label: Name for people, unlike that of any other arm.
        runs: By seed.
    """

    label: str
    runs: Mapping[int, Run]

    @property
    def config(self) -> Config:
        """The configuration, with the seed of the first run."""
        return next(iter(self.runs.values())).config


@dataclass(frozen=True)
class Task:
    """The runs of one level.

    Attributes:
        label: Name for people, unlike that of any other task.
        arms: With labels that are the same for the same arm in other tasks.
    """

    label: str
    arms: tuple[Arm, ...]

    @property
    def until(self) -> float:
        """Environment steps that areas reach to: the end of the shortest curve, at most the
        smallest budget.
        """
        runs = [run for arm in self.arms for run in arm.runs.values()]
        return min(min(run.last(STEPS), float(run.config.run.total_steps)) for run in runs)

    def arm(self, label: str) -> Arm | None:
        """The arm of this label."""
        return next((arm for arm in self.arms if arm.label == label), None)


def read_runs(folder: Path) -> list[Run]:
    """Every run below ``folder``, in the order of their folders' names; links to folders are
    followed.

    Raises:
        CheckpointError: There is none, or a file of one cannot be read.
    """
    runs = [read_run(path.parent) for path in sorted(files_below(folder, CONFIG))]
    if not runs:
        raise NotThereError(f"{folder} holds no run: no config.yaml in it or below it")
    return runs


def never_begun(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Folders that the comparisons in ``folder`` ask for, and in which no run is.

    Args:
        runs: All that are below ``folder``.
        folder: What is read.
    """
    asked: dict[Path, None] = {}
    for run in runs:
        compare, own = run.config.compare, Path(run.config.run.output_dir)
        if not own.is_relative_to(compare.output_dir):
            continue
        place = own.relative_to(compare.output_dir).parts
        if not place or run.folder.parts[-len(place) :] != place:
            continue  # it lies elsewhere by now
        whole = run.folder.parents[len(place) - 1]
        if whole.is_relative_to(folder):
            every = itertools.product(compare.tasks or ("",), compare.arms, compare.seeds)
            asked.update(dict.fromkeys(whole / place_of(*one) for one in every))
    there = {run.folder for run in runs}
    return [path for path in asked if path not in there]


def files_below(folder: Path, *names: str, leave_out: Collection[str] = ()) -> list[Path]:
    """Files of these names in a folder, below it, and below the folders that links in it lead to;
    none twice, whatever leads there, and nothing around ``folder`` itself. What vanishes meanwhile
    is passed over, and so is what wandb has in the folder of a run.

    Args:
        folder: Where to begin.
        names: Of the files.
        leave_out: Names of folders that are not looked into.
    """
    found: list[Path] = []
    start, links = _real(folder), [folder]
    seen: set[Path] = set()
    for top in links:  # grows: what lies below a folder itself comes before what links lead to
        real = _real(top)
        if real in seen or (top is not folder and start.is_relative_to(real)):
            continue
        for where, folders, files in os.walk(top):
            seen.add(_real(Path(where)))
            found += [Path(where, name) for name in names if name in files]
            left_out = {*leave_out, *([WANDB] if CONFIG in files else [])}
            below = [Path(where, own) for own in sorted(folders) if own not in left_out]
            links += [path for path in below if path.is_symlink()]
            folders[:] = [
                path.name for path in below if not path.is_symlink() and _real(path) not in seen
            ]
    return found


def _real(path: Path) -> Path:
    """Where a path leads; ``Path.resolve`` raises for a link that leads to itself."""
    return Path(os.path.realpath(path))


def read_run(folder: Path) -> Run:
    """Read one run folder.

    What is not needed to understand a curve may be damaged: without ``versions.json`` its makers
    are unknown, without ``status.json`` a curve up to the end of the budget is complete, and what
    stands in the way of a run that is not complete is its error.

    Raises:
        CheckpointError: A file is missing or cannot be read.
    """
    try:
        config = read_config(folder / CONFIG)
    except ConfigError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    status, versions = _status(folder / "status.json"), readable_json(folder / "versions.json")
    path, state = folder / "metrics.csv", str(status.get("state", "running"))
    try:
        columns = read_columns(path)
        if state == "complete" or columns:
            _check_curve(path, columns)
        if state == "complete":
            _check_whole(path, columns[STEPS], config)
            _check_unchanged(path)
    except CheckpointError as error:
        if state == "complete":
            raise CheckpointError(
                f"{error}. The run's own command makes the curve anew from its checkpoint, where it"
                " has one"
            ) from error
        return Run(folder, config, state, {"error": str(error), **status}, versions, {})
    if "state" not in status and columns and columns[STEPS][-1] >= config.run.total_steps:
        log.warning(
            "%s is gone or damaged; its curve goes to the end, so the run is taken as complete",
            folder / "status.json",
        )
        state = "complete"
    return Run(folder, config, state, status, versions, columns)


def _status(path: Path) -> dict[str, Any]:
    """What a status says; of a damaged one, that it cannot be read."""
    try:
        return read_json(path)
    except CheckpointError as error:
        return {"error": str(error)}


def _check_unchanged(path: Path) -> None:
    """Raises CheckpointError where the run's last checkpoint holds another curve."""
    from experiments.checkpoint_files import curve_is_damaged  # which imports this module

    if curve_is_damaged(path.parent):
        raise CheckpointError(f"{path} is not the curve that its checkpoint holds")


def _check_curve(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    """Raises CheckpointError where these columns cannot be a learning curve."""
    if missing := [name for name in NEEDED if name not in columns]:
        raise CheckpointError(
            f"{path} is no learning curve: it has no column of numbers {', '.join(missing)}"
        )
    if not len(columns[STEPS]):
        raise CheckpointError(f"{path} has no row below its header")
    for name, values in columns.items():
        if np.isinf(values).any():
            raise CheckpointError(f"{path}: {name} holds a number that is not finite")
    for name in NEEDED:
        lowest = -np.inf if name == RETURN else 0
        if not np.all(columns[name] >= lowest):
            raise CheckpointError(f"{path}: {name} holds an empty cell, or a number below 0")
        if np.any(np.abs(columns[name]) > _LARGEST):
            raise CheckpointError(f"{path}: {name} holds a number above {_LARGEST:.0e}")
    if np.any(columns[SUCCESS] > 1 + TIE):  # an exact evaluation is a sum, and rounded
        raise CheckpointError(
            f"{path}: {SUCCESS} is a share, but {columns[SUCCESS].max():g} is above 1"
        )
    for name in (STEPS, CALLS, TOKENS, SECONDS):
        if np.any(np.diff(columns[name]) < 0):
            raise CheckpointError(f"{path}: {name} goes down from one row to the next")
    if np.any(np.diff(columns[STEPS]) == 0):
        raise CheckpointError(f"{path}: {STEPS} does not go up from one row to the next")


def _check_whole(path: Path, steps: np.ndarray, config: Config) -> None:
    """Raises CheckpointError where evaluations of a complete run are gone.

    The first comes before any training, and each other one with the first rollout that ends at the
    next multiple of ``run.eval_every`` or later. Training goes on to the first multiple of
    ``env.num_envs`` that is not below the budget, and a row stands at such a multiple: one below
    that is below the budget itself.
    """
    if steps[0] > 0:
        raise CheckpointError(
            f"{path} has lost its first rows: a run is evaluated at 0 {STEPS}, the first one is at"
            f" {steps[0]:g}"
        )
    every, rollout = config.run.eval_every, config.num_steps * config.env.num_envs
    late = steps[1:] >= (steps[:-1] // every + 1) * every + rollout
    if late.any():
        place = int(late.argmax())
        raise CheckpointError(
            f"{path} has lost rows between {steps[place]:g} and {steps[place + 1]:g} {STEPS}:"
            f" run.eval_every is {every}, a rollout {rollout}"
        )
    if steps[-1] < config.run.total_steps:
        raise CheckpointError(
            f"{path} has lost its last rows: the run is complete, expected one at"
            f" {config.run.total_steps} {STEPS} or later, the last is at {steps[-1]:g}"
        )


def readable_json(path: Path) -> dict[str, Any]:
    """``read_json`` for what can be made anew: with a warning, a damaged file counts as one that is
    not there.
    """
    try:
        return read_json(path)
    except CheckpointError as error:
        log.warning("%s; it is passed over", error)
        return {}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no file.

    Raises:
        CheckpointError: It cannot be read, or is no JSON object.
    """
    try:
        if not path.exists():  # which raises where the folder is closed to us
            return {}
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(found).__name__}")
    return found


def read_columns(path: Path) -> dict[str, np.ndarray]:
    """The numbers of a CSV file, column by column; NaN where a cell is empty, no column where it
    holds words.

    Raises:
        CheckpointError: A row has more or fewer cells than the header, or two columns have one
            name.
    """
    if not path.exists():
        return {}
    header, rows = _cells(path, decoded(path))
    columns = {}
    for name, *cells in zip(header, *rows, strict=True):
        try:
            columns[name] = np.array([float(cell) if cell else np.nan for cell in cells])
        except ValueError:
            continue
    return columns


def read_rows(path: Path, text: str) -> list[dict[str, float]]:
    """The rows of a curve, NaN where a cell is empty.

    Args:
        path: Named by errors.
        text: What stands in it.

    Raises:
        CheckpointError: A row has more or fewer cells than the header, or one that is no number.
    """
    header, rows = _cells(path, text)
    try:
        return [
            {name: float(cell or "nan") for name, cell in zip(header, row, strict=True)}
            for row in rows
        ]
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def decoded(path: Path) -> str:
    """Text of a file, line ends as they are.

    Raises:
        CheckpointError: It cannot be read, or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _cells(path: Path, text: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows."""
    try:
        header, *rows = list(csv.reader(io.StringIO(text, newline=""))) or [[]]
    except csv.Error as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise CheckpointError(
                f"{path}, line {number}: expected {len(header)} cells, got {len(row)}"
            )
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise CheckpointError(f"{path} has several columns of the name {', '.join(twice)}")
    return header, rows


def group_tasks(runs: Sequence[Run], unfinished: Sequence[Run] = ()) -> list[Task]:
    """Runs grouped by the name of their task and by what makes it, in the order of
    ``compare.tasks``, and by arm within each. An arm has one label on all tasks, and no other has
    it.

    Args:
        runs: Those that are complete.
        unfinished: Others of their folder: in no group, but labels do not change when they are
            complete.

    Raises:
        CheckpointError: Two runs of a task have the same configuration and the same seed.
    """
    every = [*runs, *unfinished]
    tasks = max((run.config.compare.tasks for run in every), key=len, default=())
    every.sort(
        key=lambda run: (
            tasks.index(run.config.env.name) if run.config.env.name in tasks else len(tasks)
        ),
    )
    groups, complete = list(_by_task(every).values()), {id(run) for run in runs}
    labels, found = _arm_labels(groups), []
    for label, members in zip(_task_labels(groups), groups, strict=True):
        kept = [run for run in members if id(run) in complete]
        if kept:
            found.append(Task(label, tuple(_arms(kept, labels))))
    return found


def _by_task(runs: Sequence[Run]) -> dict[tuple[Any, ...], list[Run]]:
    """Runs by name and task; one without a name belongs to the only name that its task has."""
    named: dict[tuple[Any, ...], dict[str, None]] = {}
    what = [tuple(run.task.items()) for run in runs]
    for run, task in zip(runs, what, strict=True):
        if run.config.env.name:
            named.setdefault(task, {})[run.config.env.name] = None
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run, task in zip(runs, what, strict=True):
        names = list(named.get(task, {}))
        name = run.config.env.name or (names[0] if len(names) == 1 else "")
        groups.setdefault((name, *task), []).append(run)
    return groups


def _task_labels(groups: Sequence[Sequence[Run]]) -> list[str]:
    """The name of each task, or its level's, with the values that set it apart from namesakes."""
    names = []
    for members in groups:
        named = [run.config.env.name for run in members if run.config.env.name]
        names.append(named[0] if named else _level_label(members[0]))
    labels = []
    for name, members in zip(names, groups, strict=True):
        namesakes = [other[0].task for own, other in zip(names, groups, strict=True) if own == name]
        labels.append(_set_apart(name, members[0].task, differing_keys(namesakes)))
    return distinct(labels, " ({})")


def _level_label(run: Run) -> str:
    short = run.level.removeprefix("BabyAI-").removesuffix("-v0")
    number = run.config.env.num_distractors
    return short if number is None else f"{short}, num_distractors={number}"


def _set_apart(name: str, own: Mapping[str, Any], keys: Sequence[str]) -> str:
    """A name, with the values of the keys that its namesakes do not share."""
    apart = ", ".join(f"{key}={own.get(key)}" for key in keys)
    return f"{name} ({apart})" if apart else name


def distinct(names: Sequence[str], number: str) -> list[str]:
    """The names, with a number behind each that stands before it already.

    Args:
        number: How the number is written, such as ``_{}``.
    """
    found: list[str] = []
    for name in names:
        count, own = 1, name
        while own in found:
            count += 1
            own = name + number.format(count)
        found.append(own)
    return found


def group_arms(runs: Sequence[Run]) -> list[Arm]:
    """Runs grouped by configuration, in the order of ``compare.arms`` where the folders are named
    after them.

    Raises:
        CheckpointError: Two runs have the same configuration and the same seed.
    """
    return _arms(runs, _arm_labels([runs]))


def _arms(runs: Sequence[Run], labels: Mapping[int, str]) -> list[Arm]:
    """Runs of one task by arm, with the label that each run has by its ``id``."""
    groups: dict[tuple[Any, ...], dict[int, Run]] = {}
    arms = max((run.config.compare.arms for run in runs), key=len, default=())
    for run in sorted(runs, key=lambda run: _order(run, arms)):
        members = groups.setdefault((run.config.arm.name, *method(run.config).items()), {})
        if run.seed in members:
            raise CheckpointError(
                f"{run.folder} and {members[run.seed].folder} have the same configuration and the"
                f" same seed {run.seed}"
            )
        members[run.seed] = run
    return [
        Arm(labels[id(next(iter(members.values())))], dict(sorted(members.items())))
        for members in groups.values()
    ]


def _arm_labels(tasks: Sequence[Sequence[Run]]) -> dict[int, str]:
    """The label of each run's arm, by the run's ``id``: the arm's name, with the values that set it
    apart from others of that name on any task.
    """
    by_name: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for run, own in _what_arms_are(tasks):
        by_name.setdefault(run.config.arm.name, []).append((id(run), own))
    found: dict[int, tuple[str, tuple[Any, ...]]] = {}
    for name, members in by_name.items():
        keys = differing_keys([own for _, own in members])
        for which, own in members:
            found[which] = (_set_apart(name, own, keys), (name, *own.items()))
    arms = {what: label for label, what in found.values()}
    numbered = dict(zip(arms, distinct(list(arms.values()), " ({})"), strict=True))
    return {which: numbered[what] for which, (_, what) in found.items()}


def _what_arms_are(tasks: Sequence[Sequence[Run]]) -> list[tuple[Run, dict[str, Any]]]:
    """Each run with the values that make its arm the same arm on every task: its method without
    what its task sets.

    A task sets what all of its arms share, where each task has several; and, of what makes a task
    and of its budget, what the runs of an arm's name share.
    """
    values = [[(run, method(run.config)) for run in members] for members in tasks]
    several = all(len({run.config.arm.name for run in members}) > 1 for members in tasks)
    apart = _apart_within(values)
    found = []
    for name in dict.fromkeys(run.config.arm.name for members in tasks for run in members):
        ours = [[pair for pair in members if pair[0].config.arm.name == name] for members in values]
        own_apart = _apart_within(ours)
        for run, own in (pair for members in ours for pair in members):
            kept = {
                key: value
                for key, value in own.items()
                if key in own_apart
                or not (key in SET_BY_TASKS or _makes_task(key) or (several and key not in apart))
            }
            found.append((run, kept))
    return found


def _apart_within(tasks: Sequence[Sequence[tuple[Run, Mapping[str, Any]]]]) -> set[str]:
    """Keys in which two runs of one task differ."""
    found: set[str] = set()
    for members in tasks:
        found.update(differing_keys([own for _, own in members]))
    return found


def _order(run: Run, arms: Sequence[str]) -> tuple[int, str, int]:
    """As asked for, then by name."""
    name = run.folder.parent.name
    return (arms.index(name) if name in arms else len(arms), str(run.folder.parent), run.seed)
