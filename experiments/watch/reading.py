"""What run folders say about how the runs go. Reads only, and locks nothing."""

from __future__ import annotations

import math
import re
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from experiments.report.results import (
    CHECKPOINTS,
    RETURN,
    STEPS,
    SUCCESS,
    Run,
    files_below,
    read_run,
)
from experiments.runs.samples import SYSTEM, WARNINGS, last_lines, read_samples
from lamorel_ext.errors import CheckpointError, NotThereError
from lamorel_ext.processes.identity import process, read
from lamorel_ext.processes.memory import MEMORY_OF_RANK

FILES = ("config.yaml", "status.json", "metrics.csv", SYSTEM, WARNINGS)
MOST_WARNINGS = 5
Stamps = dict[str, tuple[int, int]]
"""Time of the last change in ns, and bytes, of each file that there is."""
PHASE, SERVER, ANSWER = "seconds_", "server_", "answer_seconds_p"
"""Before the names of what ``lamorel_ext.training.system`` measures."""


@dataclass(frozen=True)
class Seen:
    """A run as its folder shows it.

    Attributes:
        name: Of its folder, below the one that is watched.
        state: As in ``status.json``; ``gone`` where it says running, and its process is not there;
            ``broken`` where the folder cannot be read.
        env_steps: Done so far, as far as the folder knows.
        total_steps: The run's budget; 0 where it cannot be read.
        updated: When the folder last changed, in seconds since 1970.
        success: Of the last evaluation; NaN without one.
        returned: The same for the return.
        sample: The last of ``system.jsonl``; empty without one.
        warnings: The last ones.
        problem: Why it failed, stopped, or cannot be read.
        comparison: Folder of the comparison that it belongs to; empty where it belongs to none, or
            a part of it is watched.
        planned: Runs of that comparison.
    """

    name: str
    state: str
    env_steps: int = 0
    total_steps: int = 0
    updated: float = 0.0
    success: float = math.nan
    returned: float = math.nan
    sample: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    problem: str = ""
    comparison: str = ""
    planned: int = 0

    @property
    def phases(self) -> dict[str, float]:
        """Share of each phase in the time of the last sample; the rest is ``other``."""
        whole = self.sample.get("seconds", 0.0)
        found = self._named(PHASE)
        if whole <= 0 or not found:
            return {}
        shares = {name: seconds / whole for name, seconds in found.items()}
        return {**shares, "other": max(0.0, 1.0 - sum(shares.values()))}

    @property
    def memory_mib(self) -> dict[int, float]:
        """Of each rank, clients first."""
        named = self._named(MEMORY_OF_RANK).items()
        return dict(sorted((int(name), value) for name, value in named if name.isdecimal()))

    @property
    def of_servers(self) -> dict[str, float]:
        """Means over the calls of the last sample, such as ``queue_seconds``."""
        return self._named(SERVER)

    @property
    def waits(self) -> dict[str, float]:
        """Seconds within which a share of the last answers came, by per cent."""
        return self._named(ANSWER)

    def _named(self, prefix: str) -> dict[str, float]:
        return {
            name.removeprefix(prefix): value
            for name, value in self.sample.items()
            if name.startswith(prefix)
        }


def planned(runs: Sequence[Seen]) -> int:
    """How many runs there are to be: those of each comparison, and those that belong to none."""
    comparisons: dict[str, int] = {}
    for seen in runs:
        comparisons[seen.comparison] = max(comparisons.get(seen.comparison, 0), seen.planned)
    alone = [seen for seen in runs if not seen.comparison and seen.state != "broken"]
    return max(len(runs), sum(comparisons.values()) + len(alone))


class Reader:
    """Reads the runs below a folder again and again; what has not changed is not read twice. Links
    to folders are followed.

    Args:
        folder: Of a run or a comparison.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[Path, tuple[Stamps, Seen]] = {}

    def look(self) -> list[Seen]:
        """Every run, in the order of its folder's name.

        Raises:
            NotThereError: There is none.
        """
        if not self.folder.is_dir():
            raise NotThereError(f"{self.folder} is no folder")
        found = files_below(self.folder, *FILES[:3], leave_out=(CHECKPOINTS,))
        folders = sorted({path.parent for path in found})
        if not folders:
            raise NotThereError(
                f"{self.folder} holds no run: no {', '.join(FILES[:3])} in it or below it"
            )
        return [self._look_at(each) for each in folders]

    def _look_at(self, folder: Path) -> Seen:
        stamps = _stamps(folder)
        known = self._known.get(folder)
        if known is None or known[0] != stamps:
            name = str(folder.relative_to(self.folder))
            seen = _read(folder, name, stamps)
            if name == ".":
                seen = replace(seen, name=folder.absolute().name)
            known = self._known[folder] = (stamps, seen)
        seen = known[1]
        return _gone(folder, seen) if seen.state == "running" else seen


def _read(folder: Path, name: str, stamps: Stamps) -> Seen:
    """One run; what cannot be read is said in ``problem``."""
    updated = max((time_ns for time_ns, _ in stamps.values()), default=0) / 1e9
    warnings = tuple(last_lines(folder / WARNINGS, MOST_WARNINGS))
    try:
        run = read_run(folder)
    except CheckpointError as error:
        problem = str(error)
        return Seen(name, "broken", updated=updated, warnings=warnings, problem=problem)
    samples = read_samples(folder / SYSTEM)
    sample = samples[-1] if samples else {}
    steps = [_number(run.status.get("env_steps")), sample.get("env_steps", 0.0)]
    steps += [float(run.columns[STEPS][-1])] if len(run.columns.get(STEPS, ())) else []
    return Seen(
        name,
        run.state,
        int(max(steps)),
        run.config.budget,
        updated,
        _last(run, SUCCESS),
        _last(run, RETURN),
        sample,
        warnings,
        str(run.status.get("error", "")),
        *_comparison(run, Path(name)),
    )


def _comparison(run: Run, place: Path) -> tuple[str, int]:
    """The comparison among whose folders this one's lies, and the number of its runs.

    Args:
        run: The run.
        place: Of its folder, in what is watched.
    """
    compare, folder = run.config.compare, Path(run.config.run.output_dir)
    if not folder.is_relative_to(compare.output_dir):
        return "", 0
    if len(place.parts) < len(folder.relative_to(compare.output_dir).parts):
        return "", 0  # an arm or a run is watched, not the whole
    number = max(len(compare.tasks), 1) * len(compare.arms) * len(compare.seeds)
    return compare.output_dir, number


def _gone(folder: Path, seen: Seen) -> Seen:
    """A run whose process was killed says nothing any more; another machine's cannot be seen."""
    holder = ""
    with suppress(OSError):
        holder = (folder / ".lock").read_text(encoding="utf-8", errors="replace")
    said, _, identity = holder.partition("\n")
    found = re.fullmatch(r"process (\d+) on (.+)", said.strip())
    if found is None or found[2] != socket.gethostname():
        return seen
    # An earlier version left the number alone, which may be another process's by now.
    known = read(identity.strip()) or process(int(found[1]))
    if not known.visible or known.alive:
        return seen
    problem = (
        f"{found[0]} is not there any more; the run's command goes on from its last checkpoint"
    )
    return replace(seen, state="gone", problem=problem)


def _last(run: Run, column: str) -> float:
    values = run.columns.get(column)
    return math.nan if values is None or not len(values) else float(values[-1])


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) and abs(value) < 1e15 else 0.0


def _stamps(folder: Path) -> Stamps:
    found = {}
    for name in FILES:
        with suppress(OSError):
            stat = (folder / name).stat()
            found[name] = (stat.st_mtime_ns, stat.st_size)
    return found


def age(seen: Seen, now: float | None = None) -> float:
    """Seconds since the folder changed."""
    return max(0.0, (time.time() if now is None else now) - seen.updated)
