"""The shape of an updater, as in Lamorel: what a user subclasses to bring their own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import Parameter

from lamorel_ext.errors import UpdateError
from lamorel_ext.llm.updaters.gradients import sum_dtype, sum_over_servers
from lamorel_ext.types import ScoreResult, ServerGroup, UpdateRequest, UpdateResult

log = logging.getLogger(__name__)


class Host(Protocol):
    """What an updater needs of a ``lamorel_ext.llm.host.ModelHost``."""

    @property
    def device(self) -> torch.device: ...

    @property
    def rounded(self) -> bool: ...

    def score(
        self,
        prompts: Sequence[str],
        candidates: Sequence[Sequence[str]],
        modules: Sequence[str] = (),
        with_score: bool = True,
        require_grad: bool = False,
    ) -> ScoreResult: ...

    def score_reference(
        self, prompts: Sequence[str], candidates: Sequence[Sequence[str]]
    ) -> ScoreResult: ...

    def named_trainable_parameters(self) -> list[tuple[str, Parameter]]: ...

    def weights_changed(self) -> None: ...


class SingleServer:
    """The group of a server that is alone."""

    rank = 0
    size = 1

    def all_reduce_sum(self, *tensors: Tensor) -> None:
        """The sum over one server is there already."""

    def barrier(self) -> None:
        """Nobody to wait for."""


_WARNED: set[tuple[type, str]] = set()


def _has_learnt(value: Any) -> bool:
    """Whether it is one of PyTorch's optimisers, or holds some, with moments or the like."""
    if isinstance(value, (list, tuple)):
        return any(map(_has_learnt, value))
    if isinstance(value, dict):
        return any(map(_has_learnt, value.values()))
    return isinstance(value, torch.optim.Optimizer) and bool(value.state)


class BaseUpdater:
    """Changes the LLM from a batch. Subclasses implement ``perform_update`` (Lamorel's way) or
    ``update``.

    Attributes:
        name: Name under which requests ask for it, and in the names of its files.
    """

    name = "custom"

    def __init__(self) -> None:
        self._llm_module: Any = None
        self._group: ServerGroup = SingleServer()

    def set_llm_module(self, llm_module: Any) -> None:
        """Called once by the server with its ``lamorel_ext.llm.host.ModelHost``; by a server of
        Lamorel's interface with the module that ``docs/migration.md`` describes.
        """
        self._llm_module = llm_module

    def set_group(self, group: ServerGroup) -> None:
        """Called once by the server with the group of all LLM servers."""
        self._group = group

    def perform_update(
        self,
        contexts: Sequence[str],
        candidates: Sequence[Sequence[str]],
        _current_batch_ids: Any,
        **kwargs: Any,
    ) -> dict[str, float]:
        """Update from this server's part of a batch.

        Args:
            contexts: ``n`` prompts of this server; ``n`` may be 0.
            candidates: ``n`` tuples of candidates.
            _current_batch_ids: ``(n,)`` int64, places of these samples in the whole batch:
                ``kwargs["actions"][_current_batch_ids]``.
            **kwargs: Data of the whole batch, each ``(total, ...)``, and options. Data of the other
                servers' samples is zero.

        Returns:
            Statistics by name. The client gets the first server's, so they should be of the whole
            batch.
        """
        raise NotImplementedError(
            f"{type(self).__name__} implements neither perform_update nor update"
        )

    def update(self, request: UpdateRequest) -> UpdateResult:
        """Called by the server; hands the request to ``perform_update``."""
        data = {}
        for key, values in request.data.items():
            data[key] = values.new_zeros((request.total, *values.shape[1:]))
            data[key][request.indices] = values
        stats = self.perform_update(
            request.prompts, request.candidates, request.indices, **data, **request.options
        )
        try:
            return UpdateResult({str(key): float(own) for key, own in (stats or {}).items()})
        except (TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise UpdateError(
                f"updater {request.updater!r}: {type(self).__name__}.perform_update: expected"
                f" statistics, a dictionary of numbers, got {stats!r:.200}"
            ) from error

    def average_gradients(self) -> None:
        """Average the gradients over all servers: to be called between ``loss.backward()`` and
        ``optimizer.step()``, by every server, also by one without samples.

        It does what DistributedDataParallel does for Lamorel's updaters: each server counts alike,
        however many samples it had.
        """
        if self._group.size == 1:
            return
        parameters = [parameter for _, parameter in self._llm_module.named_trainable_parameters()]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        sums = sum_over_servers(gradients, self._group, sum_dtype(gradients))
        for parameter, summed in zip(parameters, sums, strict=True):
            parameter.grad = (summed / self._group.size).to(parameter.device, parameter.dtype)

    def reset(self, seed: int) -> None:
        """Forget what was learnt; the host goes back to its initial weights at the same time. Here
        nothing, with a warning where an optimiser has learnt something.
        """
        self._warn_of_optimizer("reset", "after a reset it goes on with what it has learnt")

    def save(self, folder: Path) -> None:
        """Write the updater's state into ``folder``; called on the first server only. Here nothing,
        with a warning where an optimiser has something to write.
        """
        self._warn_of_optimizer("save", "a run that goes on from a checkpoint starts it anew")

    def give_parts(self) -> None:
        """Take part in ``save`` where the servers hold one model together: called on the others
        while the first one saves. To be implemented where ``save`` talks to the other ranks.
        """

    def load(self, folder: Path) -> None:
        """Read what ``save`` wrote; called on every server, once the host has its weights."""

    def _warn_of_optimizer(self, method: str, consequence: str) -> None:
        """Once for each class that leaves ``method`` as it is."""
        kind = type(self)
        own = [name for name, value in vars(self).items() if _has_learnt(value)]
        left = getattr(kind, method) is getattr(BaseUpdater, method)
        if own and left and (kind, method) not in _WARNED:
            _WARNED.add((kind, method))
            names = ", ".join(own)
            log.warning(
                "%s: its optimizer (%s) is not in %s(): %s",
                kind.__name__, names, method, consequence,
            )  # fmt: skip
