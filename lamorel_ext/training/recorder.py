"""Where a run's numbers and checkpoints go: the protocol, and a recorder that keeps everything in
memory.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from lamorel_ext.errors import CheckpointError
from lamorel_ext.finite import not_finite, not_finite_value
from lamorel_ext.training.trace import Trace


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to go on as if it had never stopped.

    Attributes:
        env_steps: Environment steps done.
        tensors: Weights and optimiser state of the client.
        state: Counters, random streams, environments, memories, as JSON can hold them.
        llm_folder: Folder that the servers' ``save`` has written, or None in a run without an LLM.
    """

    env_steps: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    llm_folder: str | None = None

    def check_finite(self) -> None:
        """Make sure that it holds nothing but finite numbers.

        Raises:
            CheckpointError: It does not; names the tensor, or the place in ``state``.
        """
        if found := not_finite(self.tensors) or not_finite_value(self.state, "state"):
            raise CheckpointError(
                f"the checkpoint at step {self.env_steps} cannot be used: {found}"
            )


SaveLlm = Callable[[str], None]
"""Writes the LLM below a folder, which it makes; returns when everything is written."""


class Recorder(Protocol):
    """The plug point for whoever keeps a run's results.

    A checkpoint replaces the one before as a whole: ``checkpoint`` writes everything beside the old
    one, the LLM too, and only then makes the new one the one that ``resume`` finds. A run killed at
    any moment finds the old one or the new one.
    """

    def write(self, row: Mapping[str, float]) -> None:
        """Keep one row of the learning curve.

        Every row of a run has the same keys; NaN means not measured.
        """

    def trace(self, trace: Trace) -> None:
        """Keep what was recorded of one rollout."""

    def checkpoint(self, checkpoint: Checkpoint, save_llm: SaveLlm | None) -> None:
        """Replace the last checkpoint.

        Args:
            checkpoint: Its ``llm_folder`` is not set yet: the recorder chooses the folder.
            save_llm: To be called once with a folder of the recorder's choice, which it makes; None
                in a run without an LLM.
        """

    def resume(self) -> Checkpoint | None:
        """The last checkpoint, or None.

        Rows and traces of later rollouts are forgotten: the run makes them again.
        """

    def progress(self, env_steps: int, total_steps: int, info: Mapping[str, float]) -> None:
        """Hear how far the run is, after every rollout."""


@runtime_checkable
class EnvironmentListener(Protocol):
    """What a recorder may be besides, to know what the run's environment is."""

    def environment(self, name: str) -> None:
        """Hear the name of ``env.level``, or of an environment that the run brings itself."""


@dataclass
class MemoryRecorder:
    """Keeps rows and the last checkpoint in memory; only the LLM goes to disk.

    Args:
        folder: Where the LLM's checkpoints go; only needed in a run with an LLM.
    """

    folder: Path | None = None
    rows: list[dict[str, float]] = field(default_factory=list)
    traces: dict[int, Trace] = field(default_factory=dict)
    last: Checkpoint | None = None
    _rows_at_checkpoint: int = 0

    def write(self, row: Mapping[str, float]) -> None:
        """See ``Recorder``."""
        self.rows.append(dict(row))

    def trace(self, trace: Trace) -> None:
        """See ``Recorder``."""
        self.traces[trace.env_steps] = trace

    def checkpoint(self, checkpoint: Checkpoint, save_llm: SaveLlm | None) -> None:
        """See ``Recorder``."""
        llm_folder = None
        if save_llm is not None:
            if self.folder is None:
                raise ValueError("a run with an LLM needs a folder for its checkpoints")
            target = self.folder / f"llm-{checkpoint.env_steps}"
            save_llm(str(target))
            llm_folder = str(target)
        tensors = {name: tensor.clone() for name, tensor in checkpoint.tensors.items()}
        self.last = Checkpoint(
            checkpoint.env_steps, tensors, copy.deepcopy(checkpoint.state), llm_folder
        )
        self._rows_at_checkpoint = len(self.rows)

    def resume(self) -> Checkpoint | None:
        """See ``Recorder``."""
        del self.rows[self._rows_at_checkpoint :]
        done = 0 if self.last is None else self.last.env_steps
        self.traces = {steps: trace for steps, trace in self.traces.items() if steps < done}
        return self.last

    def progress(self, env_steps: int, total_steps: int, info: Mapping[str, float]) -> None:
        """Nobody is watching."""
