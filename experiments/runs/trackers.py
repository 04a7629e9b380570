"""Where the rows of a learning curve go besides ``metrics.csv``: TensorBoard always, Weights &
Biases on request.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from experiments.runs.files import replace_text, writing
from experiments.runs.identity import flat
from experiments.runs.samples import SYSTEM, read_samples
from lamorel_ext.config import Config, to_mapping
from lamorel_ext.errors import ConfigError
from lamorel_ext.training.trace import Trace

SHOWN_STEPS = 64
"""Steps of an episode that are shown as text."""


class Tracker(Protocol):
    """Takes the rows of one run. Everything heavy is imported when the first row comes."""

    def log(self, row: Mapping[str, float], step: int) -> None:
        """Take a row; ``step`` counts environment steps."""

    def trace(self, trace: Trace) -> None:
        """Take a recorded rollout; its file is written."""

    def system(self, sample: Mapping[str, float], step: int) -> None:
        """Take what ``system.jsonl`` has got; it is written."""

    def resume(self, rows: Sequence[Mapping[str, float]]) -> None:
        """The run begins, or goes on after these rows."""

    def close(self) -> None:
        """The run is over, or failed."""


class TensorBoard:
    """Events in ``folder/tensorboard``: the rows, the run's hyper-parameters, the first episode of
    every recorded rollout as text, and how the run uses its machines below ``system/``.

    A resumed run writes those of what was before it anew: a crash may have torn them.
    """

    def __init__(self, folder: Path, config: Config) -> None:
        self._folder, self._traces = folder / "tensorboard", folder / "traces"
        self._samples = folder / SYSTEM
        self._config = config
        self._writer: Any = None
        self._before: list[Mapping[str, float]] = []

    def resume(self, rows: Sequence[Mapping[str, float]]) -> None:
        """See ``Tracker``. The old events stay until the new ones are written."""
        self._before = list(rows)

    def log(self, row: Mapping[str, float], step: int) -> None:
        """See ``Tracker``."""
        with writing(self._folder):
            self._open()
            self._add(row, step)
            self._writer.flush()

    def trace(self, trace: Trace) -> None:
        """See ``Tracker``."""
        with writing(self._folder):
            if self._writer is None:
                self._open()  # which reads this one's file too
            else:
                self._add_episode(trace.lines)
            self._writer.flush()

    def system(self, sample: Mapping[str, float], step: int) -> None:
        """See ``Tracker``."""
        with writing(self._folder):
            if self._writer is None:
                self._open()  # which reads this one too
            else:
                self._add_sample(sample, step)
            self._writer.flush()

    def close(self) -> None:
        """See ``Tracker``."""
        with writing(self._folder):
            if self._writer is None and self._before:
                self._open()
            if self._writer is not None:
                self._writer.close()

    def _open(self) -> None:
        if self._writer is not None:
            return
        from torch.utils.tensorboard import (
            SummaryWriter,
        )  # a second of imports that a report does not need

        torn = list(self._folder.glob("events.out.tfevents.*"))
        self._writer = SummaryWriter(str(self._folder))
        self._add_hyper_parameters()
        for path in sorted(self._traces.glob("step_*.jsonl")):
            with suppress(ValueError, OSError):  # the viewer says what is wrong with it
                lines = path.read_text(encoding="utf-8").splitlines()
                self._add_episode([json.loads(line) for line in lines])
        for row in self._before:
            self._add(row, int(row.get("env_steps", 0)))
        for sample in read_samples(self._samples):
            self._add_sample(sample, int(sample["env_steps"]))
        self._writer.flush()
        for path in torn:
            path.unlink()
        self._before = []

    def _add(self, row: Mapping[str, float], step: int) -> None:
        for name, value in _measured(row).items():
            self._writer.add_scalar(tag(name), value, step)

    def _add_sample(self, sample: Mapping[str, float], step: int) -> None:
        for name, value in sample.items():
            if name not in ("time", "env_steps"):
                self._writer.add_scalar(f"system/{name}", value, step)

    def _add_hyper_parameters(self) -> None:
        from torch.utils.tensorboard.summary import hparams

        values = {
            key: value if isinstance(value, (bool, int, float, str)) else str(value)
            for key, value in flat(self._config).items()
            if not key.startswith("compare.")
        }
        for summary in hparams(values, {"eval/success": 0.0, "eval/return": 0.0}):
            self._writer.file_writer.add_summary(summary)

    def _add_episode(self, lines: Sequence[Mapping[str, Any]]) -> None:
        text, steps = episode_text(lines)
        if text:
            self._writer.add_text("episodes/first of a recorded rollout", text, steps)


def episode_text(lines: Sequence[Mapping[str, Any]]) -> tuple[str, int]:
    """The first episode of a recorded rollout in Markdown, and the environment steps before it; ""
    where the lines are none of such a record.

    Args:
        lines: As ``lamorel_ext.training.trace`` has them.
    """
    try:
        header, episode, *rest = lines
        until = next((n for n, line in enumerate(rest) if line["kind"] != "step"), len(rest))
        shown = [f"**{episode['mission']}**"] if episode["mission"] else []
        for number, step in enumerate(rest[: min(until, SHOWN_STEPS)], start=1):
            said = (step["guidance"] or {}).get("text") or (step["llm"] or {}).get("text")
            heard = f" heard *{said}*," if said else ""
            signal = "" if step["signal"] is None else f", f {step['signal']:+g}"
            offered = step.get("offered") or header["actions"]  # each state's own, or all states'
            action = offered[step["action"]]
            end = f", {step['end']}" if step["end"] else ""
            shown.append(f"{number}.{heard} did **{action}**, reward {step['reward']}{signal}{end}")
        return "\n\n".join(shown), int(header["env_steps"])
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return "", 0


_GROUPS = ("train", "student", "teacher", "feedback", "ppo", "llm")
_EVALUATED = ("success", "return", "eval_exact")


def tag(column: str) -> str:
    """A column of ``metrics.csv`` in TensorBoard's groups: ``eval/success``, ``feedback/kl``."""
    if column in _EVALUATED:
        return f"eval/{column.removeprefix('eval_')}"
    group, separator, rest = column.partition("_")
    return f"{group}/{rest}" if separator and group in _GROUPS else f"run/{column}"


class WeightsAndBiases:
    """A run of wandb per run of ours; arm and seed are its group and name. ``WANDB_MODE=offline``
    keeps it on this machine. A run that goes on is the same run there: its id is in
    ``wandb_id.txt``.

    Raises:
        ConfigError: The package is not installed, or refuses the run, such as for want of a login.
    """

    def __init__(self, folder: Path, config: Config) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(
                "run.tracker: wandb is not installed: pip install 'lamorel-ext[trackers]'"
            ) from error
        self._wandb: Any = wandb
        self._folder, self._config = folder, config
        self._run: Any = None

    def resume(self, rows: Sequence[Mapping[str, float]]) -> None:
        """What was sent before stays where it is."""

    def log(self, row: Mapping[str, float], step: int) -> None:
        """See ``Tracker``."""
        if self._run is None:
            arm, seed = self._config.arm.name, self._config.run.seed
            try:
                self._run = self._wandb.init(
                    project="lamorel-ext",
                    group=arm,
                    name=f"{arm}/seed_{seed}",
                    dir=str(self._folder),
                    config=to_mapping(self._config),
                    id=self._id(),
                    resume="allow",
                )
            except self._wandb.errors.Error as error:
                raise ConfigError(
                    f"run.tracker: wandb does not begin a run: {error}; WANDB_MODE=offline keeps it"
                    " on this machine"
                ) from error
        self._run.log(_measured(row), step=step)

    def trace(self, trace: Trace) -> None:
        """Recorded rollouts stay on this machine."""

    def system(self, sample: Mapping[str, float], step: int) -> None:
        """It looks after the machine by itself."""

    def close(self) -> None:
        """See ``Tracker``."""
        if self._run is not None:
            self._run.finish()

    def _id(self) -> str:
        """Of the run at wandb: drawn once, and kept in the run's folder."""
        path = self._folder / "wandb_id.txt"
        with writing(path):
            kept = path.read_text("ascii", "replace").strip() if path.exists() else ""
        if not (kept.isalnum() and kept.isascii()):
            kept = uuid.uuid4().hex
            replace_text(path, f"{kept}\n")
        return kept


def make_trackers(folder: Path, config: Config) -> list[Tracker]:
    """The trackers that ``run.tracker`` asks for."""
    trackers: list[Tracker] = [TensorBoard(folder, config)]
    if config.run.tracker == "wandb":
        trackers.append(WeightsAndBiases(folder, config))
    return trackers


def _measured(row: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if not math.isnan(value)}
