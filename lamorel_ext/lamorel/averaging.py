"""Gradients averaged over the servers whatever the updater does with them: what
DistributedDataParallel is to Lamorel's updaters.

A hook on the parameters averages their gradients at the end of every backward pass, before anybody
can clip them or step. Servers need not make equally many passes: one that is done, or has no part
of the batch, sits by while the others average among themselves, and takes over their weights
afterwards. Buffers, such as running statistics, are taken from one server after every update, and
so are weights that are no longer the same: drawn anew, or stepped by a server's own loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lamorel_ext.lamorel.optimisers import fused_adam
from lamorel_ext.llm.updaters.agreement import bit_sum
from lamorel_ext.llm.updaters.base import SingleServer
from lamorel_ext.llm.updaters.gradients import sum_dtype, sum_over_servers
from lamorel_ext.rpc.groups import gather_numbers
from lamorel_ext.types import ServerGroup

T = TypeVar("T")


class AveragedModule(nn.Module):
    """The model as an updater gets it: callable as the model is, with the model itself as
    ``module``.

    Args:
        module: The model.

    Attributes:
        group: The servers, once ``begin`` was called.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.group: ServerGroup = SingleServer()
        self._hooked: dict[int, nn.Parameter] = {}
        self._averaged: set[int] = set()
        self._queued = False
        self._updating = False
        self._alone = self._next_alone = False
        self._passes = 0
        self._all_passes = 0
        self._uneven = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model gives."""
        self._hook()
        self._alone = self._next_alone
        return self.module(*args, **kwargs)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """As in DistributedDataParallel: the backward passes of what the model gives meanwhile are
        not averaged. Gradients add up until one that is.
        """
        before, self._next_alone = self._next_alone, True
        try:
            yield
        finally:
            self._next_alone = before

    def begin(self, group: ServerGroup) -> None:
        """Take the group, and the first server's weights and buffers. Every server must call it,
        once.
        """
        self.group = group
        self._copy_from(0, [*self.module.parameters(), *self.module.buffers()])

    def update(self, work: Callable[[], T] | None) -> T | None:
        """Run an update on this server's part of a batch; every server must call it.

        Args:
            work: The updater; None where this server has no part of the batch.

        Returns:
            What ``work`` gives.
        """
        self._hook()
        self._passes, self._updating, self._alone = 0, True, False
        try:
            with fused_adam():
                result = work() if work is not None else None
            self._sit_by()
        finally:
            self._updating = self._queued = False
        self._even_out(took_part=work is not None)
        return result

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy, such as a reference model: it is this server's own, and averages nothing."""
        alone = {"group": SingleServer(), "_hooked": {}, "_averaged": set(), "_updating": False}
        return {**self.__dict__, **alone}

    # --- inside ----------------------------------------------------------------------------------

    def _hook(self) -> None:
        """Watch every parameter, also those that take no gradients now: an updater may freeze and
        free them, or name another adapter, at any time before a backward pass.
        """
        if not self._several:
            return  # nothing is averaged, and 200 calls in each backward pass are spared
        for parameter in self.module.parameters():
            if parameter.is_floating_point() and id(parameter) not in self._hooked:
                self._hooked[id(parameter)] = parameter
                takes = parameter.requires_grad
                parameter.requires_grad_(True)  # PyTorch puts a hook on no other
                parameter.register_post_accumulate_grad_hook(self._on_gradient)
                parameter.requires_grad_(takes)

    def _on_gradient(self, parameter: Tensor) -> None:
        if self._updating and not self._queued and not self._alone and self._several:
            self._queued = True
            torch.autograd.Variable._execution_engine.queue_callback(self._on_backward_done)

    def _on_backward_done(self) -> None:
        self._queued = False
        self._passes += 1
        self._average(active=True)

    @property
    def _several(self) -> bool:
        return self.group.size > 1

    def _average(self, active: bool) -> bool:
        """Average once, if any server is at it; gives whether one was."""
        # All of them: where there is no part of the batch nobody has frozen or freed any.
        parameters = list(self.module.parameters())
        servers = torch.tensor([float(active)], dtype=torch.float64)
        self.group.all_reduce_sum(servers)
        count = int(servers)
        if not count:
            return False
        # Parameters that no server has a gradient for stay without one: an optimiser passes them
        # over.
        has = torch.tensor(
            [float(active and p.requires_grad and p.grad is not None) for p in parameters]
        )
        self.group.all_reduce_sum(has)
        wanted = [p for p, number in zip(parameters, has.tolist(), strict=True) if number]
        if not wanted:
            return True
        self._averaged.update(map(id, wanted))
        gradients = [
            p.grad if active and p.grad is not None else torch.zeros_like(p) for p in wanted
        ]
        sums = sum_over_servers(gradients, self.group, sum_dtype(gradients))
        if active:
            for parameter, summed in zip(wanted, sums, strict=True):
                mean = (summed / count).to(parameter.device, parameter.dtype)
                if parameter.grad is None:
                    parameter.grad = mean.clone()
                else:
                    parameter.grad.copy_(mean)
        return True

    def _sit_by(self) -> None:
        """Take part in what the others average, with nothing, until all are done."""
        while self._several and self._average(active=False):
            pass

    def _even_out(self, took_part: bool) -> None:
        """Take the buffers of the server that made most passes in this update, or at least had a
        part of the batch, and its weights where the servers' are not the same.
        """
        if not self._several:
            return
        self._all_passes += self._passes
        mine = [self._passes if took_part else -1, self._all_passes]
        counts = [tuple(each) for each in gather_numbers(mine, self.group).tolist()]
        self._uneven = self._uneven or len({now for now, _ in counts}) > 1
        # Among equals whoever has made most passes before: its optimiser has seen most.
        leader = counts.index(max(counts))
        self._copy_from(leader, [*self._unlike(), *_kept_buffers(self.module)])

    def _unlike(self) -> list[nn.Parameter]:
        """The weights whose bits add up to another number on another server: an updater may write
        into them itself, or step by what it alone sees. After unequal passes also all that have had
        gradients. The rest, most of a frozen model, is the same everywhere and need not travel.
        """
        weights = [each for each in self.module.parameters() if each.is_floating_point()]
        sums = gather_numbers([bit_sum(each) for each in weights], self.group)
        same = (sums == sums[0]).all(0).tolist()
        return [
            each
            for each, is_same in zip(weights, same, strict=True)
            if (self._uneven and id(each) in self._averaged) or not is_same
        ]

    def _copy_from(self, leader: int, tensors: Iterable[Tensor]) -> None:
        if not self._several:
            return
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            if tensor.is_floating_point():
                by_dtype.setdefault(tensor.dtype, []).append(tensor)
            elif not isinstance(tensor, nn.Parameter) and not tensor.is_complex():
                # Counters and masks: gloo does not sum every kind of integer, nor bools. Parameters
                # of integers are quantised and stay as they were loaded.
                by_dtype.setdefault(torch.int64, []).append(tensor)
        mine = self.group.rank == leader
        with torch.no_grad():
            for dtype, same in by_dtype.items():
                sums = sum_over_servers(
                    [each if mine else torch.zeros_like(each) for each in same], self.group, dtype
                )
                for tensor, value in zip(same, sums, strict=True):
                    tensor.copy_(value)


def _kept_buffers(module: nn.Module) -> list[Tensor]:
    """Those that a checkpoint would hold. Others are computed: a rotary embedding puts new ones in
    their place on the server that reads a longer text.
    """
    return [
        buffer
        for part in module.modules()
        for name, buffer in part.named_buffers(recurse=False)
        if name not in part._non_persistent_buffers_set
    ]
