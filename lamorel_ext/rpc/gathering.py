"""Several answers into one result, without a thread that waits for them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

from lamorel_ext.rpc.failures import error_of
from lamorel_ext.rpc.groups import OtherServerFailed
from lamorel_ext.types import Answer, Failure

T = TypeVar("T")


def gather(futures: Sequence[Future[Answer]], finish: Callable[[Sequence[Answer]], T]) -> Future[T]:
    """A future of ``finish(answers)``, with the answers in the order of ``futures``.

    A lost server or a timeout ends it at once, without the other answers. A ``Failure`` waits for
    them, because the server that failed first
    knows the reason: one that only gave up because of another is believed last.
    """
    return _Gathering(futures, finish).result


class _Gathering(Generic[T]):
    def __init__(
        self, futures: Sequence[Future[Answer]], finish: Callable[[Sequence[Answer]], T]
    ) -> None:
        self.result: Future[T] = Future()
        self.result.set_running_or_notify_cancel()
        self._futures, self._finish = list(futures), finish
        self._num_missing = len(self._futures)
        self._lock = threading.Lock()
        for future in self._futures:
            future.add_done_callback(self._on_done)

    def _on_done(self, future: Future[Answer]) -> None:
        error = future.exception()
        with self._lock:
            self._num_missing -= 1
            if self.result.done() or (error is None and self._num_missing):
                return
            if error is not None:
                self.result.set_exception(error)
                return
        answers = [each.result() for each in self._futures]
        failures = [answer for answer in answers if isinstance(answer, Failure)]
        if failures:
            first_hand = [
                failure for failure in failures if failure.type_name != OtherServerFailed.__name__
            ]
            self.result.set_exception(error_of((first_hand or failures)[0]))
            return
        try:
            merged = self._finish(answers)
        except Exception as problem:
            self.result.set_exception(problem)
        else:
            self.result.set_result(merged)
