"""Where the rows of a learning curve go besides ``metrics.csv``: TensorBoard always, Weights &
Biases on request.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from experiments.runs.files import writing
from lamorel_ext.config import Config, to_mapping
from lamorel_ext.errors import ConfigError


class Tracker(Protocol):
    """Takes the rows of one run. Everything heavy is imported when the first row comes."""

    def log(self, row: Mapping[str, float], step: int) -> None:
        """Take a row; ``step`` counts environment steps."""

    def resume(self, rows: Sequence[Mapping[str, float]]) -> None:
        """The run begins, or goes on after these rows."""

    def close(self) -> None:
        """The run is over, or failed."""


class TensorBoard:
    """Events in ``folder/tensorboard``.

    A resumed run writes those of the rows before it anew: a crash may have torn them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "tensorboard"
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

    def close(self) -> None:
        """See ``Tracker``."""
        if self._writer is None and self._before:
            with writing(self._folder):
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
        for row in self._before:
            self._add(row, int(row.get("env_steps", 0)))
        self._writer.flush()
        for path in torn:
            path.unlink()
        self._before = []

    def _add(self, row: Mapping[str, float], step: int) -> None:
        for name, value in _measured(row).items():
            self._writer.add_scalar(tag(name), value, step)


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
    keeps it on this machine.

    Raises:
        ConfigError: The package is not installed.
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
            self._run = self._wandb.init(
                project="lamorel-ext",
                group=arm,
                name=f"{arm}/seed_{seed}",
                dir=str(self._folder),
                config=to_mapping(self._config),
            )
        self._run.log(_measured(row), step=step)

    def close(self) -> None:
        """See ``Tracker``."""
        if self._run is not None:
            self._run.finish()


def make_trackers(folder: Path, config: Config) -> list[Tracker]:
    """The trackers that ``run.tracker`` asks for."""
    trackers: list[Tracker] = [TensorBoard(folder)]
    if config.run.tracker == "wandb":
        trackers.append(WeightsAndBiases(folder, config))
    return trackers


def _measured(row: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if not math.isnan(value)}
