"""Where the rows of a learning curve go besides ``metrics.csv``: TensorBoard always, Weights & Biases on request."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from experiments.files import writing
from lamorel_ext.config import Config, to_mapping
from lamorel_ext.errors import ConfigError


class Tracker(Protocol):
    """Takes the rows of one run. Everything heavy is imported when the first row comes."""

    def log(self, row: Mapping[str, float], step: int) -> None:
        """Take a row; ``step`` counts environment steps."""

    def close(self) -> None:
        """The run is over, or failed."""


class TensorBoard:
    """Events in ``folder/tensorboard``. A resumed run hides the events that it writes again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "tensorboard"
        self._writer: Any = None

    def log(self, row: Mapping[str, float], step: int) -> None:
        """See ``Tracker``."""
        with writing(self._folder):
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter  # a second of imports that a report does not need

                self._writer = SummaryWriter(str(self._folder), purge_step=step)
            for name, value in _measured(row).items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()

    def close(self) -> None:
        """See ``Tracker``."""
        if self._writer is not None:
            self._writer.close()


class WeightsAndBiases:
    """A run of wandb per run of ours; arm and seed are its group and name. ``WANDB_MODE=offline`` keeps it on this machine.

    Raises:
        ConfigError: The package is not installed.
    """

    def __init__(self, folder: Path, config: Config) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ConfigError("run.tracker: wandb is not installed: pip install 'lamorel-ext[trackers]'") from error
        self._wandb: Any = wandb
        self._folder, self._config = folder, config
        self._run: Any = None

    def log(self, row: Mapping[str, float], step: int) -> None:
        """See ``Tracker``."""
        if self._run is None:
            arm, seed = self._config.arm.name, self._config.run.seed
            self._run = self._wandb.init(
                project="lamorel-ext", group=arm, name=f"{arm}/seed_{seed}", dir=str(self._folder), config=to_mapping(self._config)
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
