"""What a viewer's page holds: recorded rollouts of one run or of a comparison, as JSON that repeats
no text.

Texts, views and grids stand in tables of their own and are referred to by their places. A page has
a size that it must not exceed: first come the first and the last two rollouts of every run, seed by
seed, then the others; what does not fit any more comes on a further page.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.report.results import Run, group_arms, read_runs
from experiments.runs.run_folder import trace_files
from experiments.viewer.reading import LARGEST, Episode, Line, RecordedRollout, read_trace
from experiments.viewer.replay import replay
from lamorel_ext.errors import CheckpointError, NotThereError

MAX_BYTES = 4_500_000
"""Of a page's data."""
_FACTS = (
    *("agent", "teacher", "vocabulary", "signal", "loss", "channel", "every", "actions"),
    "method",
)


@dataclass
class Table:
    """Values by place, each once."""

    values: list[Any] = field(default_factory=list)
    size: int = 0
    _places: dict[Any, int] = field(default_factory=dict)

    def place(self, value: Any) -> int:
        """Where it stands."""
        if value not in self._places:
            self._places[value] = len(self.values)
            self.values.append(value)
            self.size += len(json.dumps(value)) + 1
        return self._places[value]


@dataclass
class Content:
    """A page's data in the making."""

    texts: Table = field(default_factory=Table)
    views: Table = field(default_factory=Table)
    grids: Table = field(default_factory=Table)
    runs: dict[tuple[str, int], Line] = field(default_factory=dict)
    size: int = 0

    def add(self, name: str, run: Run, path: Path) -> None:
        """One recorded rollout."""
        seed = run.seed
        recorded = read_trace(path)
        _check_origin(path, recorded.header, run)
        made = self._rollout(recorded)
        self.size += len(json.dumps(made))
        facts = {key: recorded.header.get(key) for key in _FACTS}
        facts["sign"] = run.config.feedback.sign
        shown = seed if seed <= LARGEST else str(seed)
        entry = self.runs.setdefault(
            (name, seed), {"label": name, "seed": shown, "facts": facts, "rollouts": []}
        )
        entry["rollouts"].append(made)

    def data(self, title: str) -> Line:
        """What the page's script reads."""
        for run in self.runs.values():
            run["rollouts"].sort(key=lambda rollout: rollout["env_steps"])
        return {
            "title": title,
            "texts": self.texts.values,
            "views": self.views.values,
            "grids": [list(grid) for grid in self.grids.values],
            "runs": list(self.runs.values()),
        }

    def _rollout(self, recorded: RecordedRollout) -> Line:
        header = recorded.header
        before = self.texts.size + self.views.size + self.grids.size
        made = {
            "env_steps": header["env_steps"],
            "rollout": header["rollout"],
            "level": header["level"],
            "left_out": header["left_out"],
            "updates": [
                {"samples": update["samples"], "stats": update["stats"]}
                for update in recorded.updates
            ],
            "notes": [self._note(note) for note in recorded.notes if note["step"] is None],
            "episodes": [self._episode(header, episode) for episode in recorded.episodes],
        }
        steps = [step for episode in made["episodes"] for step in episode["steps"]]
        for note in recorded.notes:
            if note["step"] is not None and 0 <= note["step"] < len(steps):
                steps[note["step"]].setdefault("notes", []).append(self._note(note))
        self.size += self.texts.size + self.views.size + self.grids.size - before
        return made

    def _episode(self, header: Line, episode: Episode) -> Line:
        line, poses = episode.line, replay(header, episode)
        said = line["candidates"]
        placed = None
        if poses is not None:
            placed = [
                [pose.x, pose.y, pose.direction, self.grids.place((pose.width, pose.grid))]
                for pose in poses
            ]
        return {
            "number": line["number"],
            "before": None if line["actions"] is None else len(line["actions"]),
            "poses": placed,
            "mission": self.texts.place(line["mission"]),
            "candidates": None if said is None else [self.texts.place(text) for text in said],
            "steps": [self._step(step) for step in episode.steps],
        }

    def _note(self, note: Line) -> Line:
        return {key: self.texts.place(note[key]) for key in ("asked", "answered", "changed")}

    def _step(self, step: Line) -> Line:
        own = {
            key: value
            for key, value in step.items()
            if key not in ("kind", "prompt", "sentences", "view")
        }
        for group in ("llm", "guidance"):
            if step[group] is not None:
                own[group] = {**step[group], "text": self.texts.place(step[group]["text"])}
        if step.get("offered") is not None:
            own["offered"] = [self.texts.place(text) for text in step["offered"]]
        sentences = [self.texts.place(sentence) for sentence in step["sentences"]]
        return {
            "prompt": self.texts.place(step["prompt"]),
            "sentences": sentences,
            "view": self.views.place(step["view"]),
            **own,
        }


def _check_origin(path: Path, header: Line, run: Run) -> None:
    """Raises CheckpointError where a trace is of another run: its episodes would be played again
    with other seeds.
    """
    env = run.config.env
    levels = [
        (env.own.target or env.level, env.num_distractors),
        *((stage.level, stage.num_distractors) for stage in env.curriculum),
    ]
    if (
        header["seed"] != run.seed
        or (header["level"], header["num_distractors"]) not in levels
        or header["env"] != 0
        or header.get("arm") not in (None, run.config.arm.name)
    ):
        raise CheckpointError(
            f"{path} is of another run than {run.folder}: level {header['level']!r}, seed"
            f" {header['seed']}, arm {header.get('arm')}"
        )


def make_content(
    folder: Path, arms: Sequence[str] = (), seeds: Sequence[int] = (), steps: Sequence[int] = ()
) -> Iterator[Line]:
    """Everything recorded below a folder, page by page; every recorded rollout is on one of them.

    Args:
        folder: Of one run, or of a comparison.
        arms: Labels, or names of the folders, of the arms to show; none means all.
        seeds: Likewise.
        steps: Environment steps before the rollouts to show; none means all.

    Raises:
        NotThereError: Nothing was recorded.
        CheckpointError: A file cannot be read.
    """
    runs = [(arm.label, run) for arm in group_arms(read_runs(folder)) for run in arm.runs.values()]
    _check_choice(folder, runs, arms, seeds)
    chosen = [
        (name, run)
        for name, run in sorted(runs, key=lambda pair: pair[1].seed)
        if (not arms or {name, run.folder.parent.name} & set(arms))
        and (not seeds or run.seed in seeds)
    ]
    traces = [(name, run, trace_files(run.folder)) for name, run in chosen]
    there = sorted({at for _, _, paths in traces for at in paths})
    if there and (missing := sorted(set(steps) - set(there))):
        near = sorted(there, key=lambda at: abs(at - missing[0]))[:3]
        raise NotThereError(
            f"{folder}: no rollout was recorded at {missing[0]} steps; the nearest are at"
            f" {', '.join(map(str, sorted(near)))}"
        )
    recorded = [
        (name, run, [path for at, path in paths.items() if not steps or at in steps])
        for name, run, paths in traces
    ]
    if not there:
        why = "run.trace_every was 0, or too high" if chosen else "no arm has a run of this seed"
        raise NotThereError(f"{folder} holds no recorded rollout of {len(chosen)} run(s): {why}")
    name = os.fsencode(os.path.basename(os.path.realpath(folder)))
    return _pages(recorded, name.decode("utf-8", "replace"))  # any bytes may stand in a name


def _check_choice(
    folder: Path, runs: Sequence[tuple[str, Run]], arms: Sequence[str], seeds: Sequence[int]
) -> None:
    """Raises NotThereError where an arm or a seed that is asked for is none of the runs'."""
    labels = dict.fromkeys(name for name, _ in runs)
    known = {*labels, *(run.folder.parent.name for _, run in runs)}
    there = dict.fromkeys(sorted(run.seed for _, run in runs))
    if strangers := [arm for arm in arms if arm not in known]:
        raise NotThereError(
            f"{folder} holds no arm {', '.join(strangers)}; there are the arms {', '.join(labels)}"
        )
    if unlike := [str(seed) for seed in seeds if seed not in there]:
        raise NotThereError(
            f"{folder} holds no seed {', '.join(unlike)}; there are {', '.join(map(str, there))}"
        )


def _pages(recorded: Sequence[tuple[str, Run, list[Path]]], title: str) -> Iterator[Line]:
    content = Content()
    for name, run, path in _in_turn(recorded):
        if content.size >= MAX_BYTES:
            yield content.data(title)
            content = Content()
        content.add(name, run, path)
    yield content.data(title)


def _in_turn(recorded: Sequence[tuple[str, Run, list[Path]]]) -> Iterator[tuple[str, Run, Path]]:
    """First and last rollouts of every run, then the others."""
    ends = [(name, run, paths[:1] + paths[1:][-2:]) for name, run, paths in recorded]
    others = [(name, run, paths[1:-2]) for name, run, paths in recorded]
    for name, run, paths in [*ends, *others]:
        yield from ((name, run, path) for path in paths)
