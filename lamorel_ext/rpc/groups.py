"""The LLM servers among themselves where they live in one process.

``distributed`` has the group of separate processes.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from lamorel_ext.errors import RequestError, UpdateError
from lamorel_ext.types import ServerGroup

T = TypeVar("T")

_END, _BARRIER = -1, -2
"""What a server is about to do where it does not sum a tensor."""


class OtherServerFailed(UpdateError):
    """Work that the servers do together was given up here because another server failed in it."""


class OtherServerRefused(RequestError):
    """A batch was given up here because another server found fault with its part."""


SECOND_HAND = frozenset({OtherServerFailed.__name__, OtherServerRefused.__name__})
"""Failures whose reason another server knows."""


class ThreadGroup:
    """One of several servers that are threads of one process.

    Args:
        rank: Which server this is.
        meeting: Shared by all of them; see ``make_thread_groups``.
    """

    def __init__(self, rank: int, meeting: _Meeting) -> None:
        self.rank, self.size, self._meeting = rank, meeting.size, meeting

    def all_reduce_sum(self, *tensors: Tensor) -> None:
        """Replace each of ``tensors`` by its sum over all servers, in place.

        Raises:
            UpdateError: Another server did not come in time.
        """
        for tensor in tensors:
            self._meeting.meet(self.rank, tensor)

    def barrier(self) -> None:
        """Wait until every server is here.

        Raises:
            UpdateError: Another server did not come in time.
        """
        self._meeting.meet(self.rank, torch.zeros(0))


class _Meeting:
    """Where the threads meet: each lays its tensor down, one adds them up in order of rank, each
    copies the sum.
    """

    def __init__(self, size: int, timeout_s: float) -> None:
        self.size = size
        self._tensors: list[Tensor] = [torch.zeros(0)] * size
        self._sum = torch.zeros(0)
        self._timeout_s = timeout_s
        self._arrived = threading.Barrier(size, action=self._add_up)
        self._copied = threading.Barrier(size)

    def meet(self, rank: int, tensor: Tensor) -> None:
        self._tensors[rank] = tensor.detach()
        self._wait(self._arrived, rank)
        tensor.detach().copy_(self._sum)
        self._wait(self._copied, rank)

    def _add_up(self) -> None:
        self._sum = self._tensors[0].clone()
        for tensor in self._tensors[1:]:
            self._sum += tensor

    def _wait(self, barrier: threading.Barrier, rank: int) -> None:
        try:
            barrier.wait(self._timeout_s)
        except threading.BrokenBarrierError as error:
            raise UpdateError(
                f"llm server {rank} waited for the other servers; one did not come within"
                f" {self._timeout_s:g} s"
            ) from error


def make_thread_groups(size: int, timeout_s: float = 60.0) -> list[ThreadGroup]:
    """One group object per server thread.

    Args:
        size: Number of servers.
        timeout_s: Seconds after which a server that waits for the others gives up; the group is of
            no use afterwards.
    """
    meeting = _Meeting(size, timeout_s)
    return [ThreadGroup(rank, meeting) for rank in range(size)]


def gather_numbers(numbers: Sequence[int], group: ServerGroup) -> Tensor:
    """The numbers of each server, ``(servers, n)``: each adds its own to zeros of the others. Every
    server must call it.
    """
    rows = torch.zeros(group.size, len(numbers), dtype=torch.int64)
    rows[group.rank] = torch.tensor(numbers, dtype=torch.int64)
    if group.size > 1:
        group.all_reduce_sum(rows)
    return rows


def gather_bytes(payload: bytes, sizes: Sequence[int], group: ServerGroup) -> list[bytes]:
    """What each server brings, in order of rank. Every server must call it.

    Args:
        payload: This server's.
        sizes: Length of each server's.
        group: The servers.
    """
    ends = list(itertools.accumulate(sizes))
    joined = torch.zeros(ends[-1], dtype=torch.uint8)
    own = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
    joined[ends[group.rank] - len(payload) : ends[group.rank]] = own
    if group.size > 1:
        group.all_reduce_sum(joined)
    whole = joined.numpy().tobytes()
    return [whole[end - size : end] for end, size in zip(ends, sizes, strict=True)]


class LockstepGroup:
    """A group in which no server waits for one that failed.

    Every sum is preceded by a word from each server: "I am well, and my tensors have so many
    elements". A server that fails in work they do together says so in the place of its next word,
    so that the others leave at the very point where they would have waited for it; all have made
    the same optimiser steps by then. Sums of different sizes, the usual mistake of an updater with
    an empty shard, fail the same way instead of hanging.

    Args:
        inner: Does the sums.

    Attributes:
        broken: The error with which ``inner`` itself failed; the servers cannot talk to each other
            any more then.
    """

    def __init__(self, inner: ServerGroup) -> None:
        self._inner = inner
        self.rank, self.size = inner.rank, inner.size
        self.broken: Exception | None = None
        self._given_up: OtherServerFailed | None = None

    def all_reduce_sum(self, *tensors: Tensor) -> None:
        """Replace each of ``tensors`` by its sum over all servers, in place.

        Raises:
            OtherServerFailed: Another server failed, or sums something else.
        """
        if self.size > 1:
            self._agree(sum(tensor.numel() for tensor in tensors))
            self._sum(*tensors)

    def barrier(self) -> None:
        """Wait until every server is here.

        Raises:
            OtherServerFailed: Another server failed.
        """
        if self.size > 1:
            self._agree(_BARRIER)

    def same(self, number: int, what: str) -> None:
        """Check that every server has the same number, before they do something that needs it.

        Raises:
            OtherServerFailed: They do not agree on ``what``.
        """
        if self.size > 1:
            self._agree(
                number, f"the servers do not agree: llm server {self.rank} has {number} {what}"
            )

    def together(self, work: Callable[[], T]) -> T:
        """Do something on every server: all of them finish it, or all of them raise.

        Raises:
            OtherServerFailed: It failed on another server.
            Exception: It failed here.
        """
        if self.size == 1:
            return work()
        if self.broken is not None:
            raise UpdateError(
                f"llm server {self.rank} has lost touch with the other servers: {self.broken}"
            )
        self._given_up = None
        try:
            result = work()
        except (Exception, SystemExit) as error:
            self._tell_failure(error)
            raise
        self._agree(_END)
        return result

    def _tell_failure(self, error: BaseException) -> None:
        if self.broken is None and self._given_up is None:
            try:
                self._exchange(_END, failed=True)
            except Exception as second:
                error.add_note(f"the other servers could not be told: {second}")

    def _agree(self, num_elements: int, complaint: str = "") -> None:
        if self._given_up is None:
            failed, numbers = self._exchange(num_elements, failed=False)
            if failed:
                self._given_up = OtherServerFailed(
                    f"given up because {' and '.join(f'llm server {rank}' for rank in failed)}"
                    " failed"
                )
            elif len(set(numbers)) > 1:
                self._given_up = OtherServerFailed(
                    complaint
                    or f"the servers do not sum the same thing: llm server {self.rank} came"
                    f" {_describe(num_elements)}; every server must call all_reduce_sum equally"
                    " often with tensors of the same size, also with an empty shard"
                )
        # An updater that swallows the error must not go on to wait for servers that have left.
        if self._given_up is not None:
            raise self._given_up

    def _exchange(self, num_elements: int, failed: bool) -> tuple[list[int], list[int]]:
        """Ranks of the servers that failed, and the number of each: every server fills in its own
        places only.
        """
        word = torch.zeros(2, self.size, dtype=torch.int64)
        word[0, self.rank], word[1, self.rank] = int(failed), num_elements
        self._sum(word)
        flags, numbers = word.tolist()
        return [rank for rank, flag in enumerate(flags) if flag], numbers

    def _sum(self, *tensors: Tensor) -> None:
        try:
            self._inner.all_reduce_sum(*tensors)
        except Exception as error:
            self.broken = error
            raise


def _describe(num_elements: int) -> str:
    if num_elements < 0:
        return "to a barrier" if num_elements == _BARRIER else "to the end of the work"
    return f"to sum {num_elements} numbers"
