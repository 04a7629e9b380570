"""Where a run's numbers and checkpoints go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

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

    def system(self, sample: Mapping[str, float]) -> None:
        """Hear how it uses its machines: what ``SystemMeter.sample`` gives."""
