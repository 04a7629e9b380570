"""An LLM server: takes one request after the other and answers it, score requests of several
clients together.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lamorel_ext.errors import ModelLoadError
from lamorel_ext.llm.handlers import Host, RequestHandler, Updater
from lamorel_ext.processes.memory import return_freed_memory
from lamorel_ext.rpc.groups import LockstepGroup
from lamorel_ext.rpc.link import VERDICT_S, Peer
from lamorel_ext.rpc.tcp_listener import Call, TcpListener
from lamorel_ext.types import Answer, ScoreRequest, ScoreResult, ServerGroup, UpdateResult


@dataclass(frozen=True)
class Merging:
    """Which score requests of several clients are answered by one reading of the model.

    Attributes:
        prompts: At most so many prompts together; 0 answers each request by itself.
        wait_s: Seconds for which a request waits for those of other clients.
    """

    prompts: int = 0
    wait_s: float = 0.0

    def may_begin(self, request: object) -> bool:
        """Whether another request could be answered together with this one."""
        # What is known to a client is counted by places in its own request.
        return isinstance(request, ScoreRequest) and not request.known and self._fits([request])

    def joins(self, taken: Sequence[Call], following: Call) -> bool:
        """Whether the next call is answered together with those taken so far."""
        first, request = taken[0].request, following.request
        return (
            isinstance(first, ScoreRequest)
            and isinstance(request, ScoreRequest)
            and self.may_begin(request)
            and (request.modules, request.score) == (first.modules, first.score)
            and self._fits([*(each.request for each in taken), request])
        )

    def _fits(self, requests: Sequence[object]) -> bool:
        scores = [request for request in requests if isinstance(request, ScoreRequest)]
        return sum(len(request.prompts) for request in scores) <= self.prompts


ALONE = Merging()
TIDY_AFTER_S = 5.0
"""Seconds of updates after which a server tidies: to take 300 MiB from the system again costs the
next update about half a second.
"""


class Server:
    """One LLM server. The constructor stores; ``serve`` runs.

    Args:
        host: The language model.
        updaters: By name.
        listener: Where requests come from.
        group: The LLM servers among themselves.
        me: Global rank and role of this process.
        merging: Which requests are answered together; none where nothing is said.
        one_model: See ``RequestHandler``.
    """

    def __init__(
        self,
        host: Host,
        updaters: Mapping[str, Updater],
        listener: TcpListener,
        group: ServerGroup,
        me: Peer,
        merging: Merging = ALONE,
        one_model: bool = False,
    ) -> None:
        self._listener, self._group = listener, LockstepGroup(group)
        self._merging = merging
        self._untidy_s = 0.0
        self._handler = RequestHandler(
            host, dict(updaters), self._group, me.rank, me.role, one_model=one_model
        )

    def serve(self) -> None:
        """Answer requests until every client has said that it is done.

        A request that raises is answered with a ``Failure``; the server goes on.

        Raises:
            ModelLoadError: The servers have not loaded the same model.
            RpcError: A client or another server is gone.
            Exception: The servers cannot talk to each other any more.
        """
        self._handler.open()
        self._compare()
        while (call := self._listener.get()) is not None:
            for each, answer in self._answered(call):
                each.answer(answer)
                self._tidy_after(answer)
            if self._group.broken is not None:
                # The group tells that something broke, the connections tell which rank it was.
                raise self._listener.loss(VERDICT_S) or self._group.broken

    def _compare(self) -> None:
        if not self._handler.comparable:
            return
        try:
            found = self._group.together(self._handler.unlike)
        except Exception:
            if self._group.broken is None:
                raise
            raise self._listener.loss(VERDICT_S) or self._group.broken from None
        if found:
            raise ModelLoadError(
                f"{found}: each machine needs the same model files and the same lamorel_args"
                ".llm_args; dtype: auto goes by the processor"
            )

    def _tidy_after(self, answer: Answer) -> None:
        """Once the client has its answer: memory goes with the largest update that ever was, else,
        and with the longest prompts that happened to come together in one.
        """
        if not isinstance(answer, UpdateResult):
            return
        self._untidy_s += answer.stats["seconds"]
        if self._untidy_s >= TIDY_AFTER_S:
            return_freed_memory()
            self._untidy_s = 0.0

    def _answered(self, call: Call) -> list[tuple[Call, Answer]]:
        """A call with its answer, and those of other clients that were answered with it."""
        if not isinstance(call.request, ScoreRequest):
            return [(call, self._handler.handle(call.request))]
        calls = [call]
        if self._handler.together is not None and self._merging.may_begin(call.request):
            calls += self._listener.get_behind(call, self._merging.joins, self._merging.wait_s)
        begin = time.perf_counter()
        requests = [each.request for each in calls if isinstance(each.request, ScoreRequest)]
        answers = self._handler.handle_together(requests)
        return [
            (each, _queued(answer, begin - each.arrived))
            for each, answer in zip(calls, answers, strict=True)
        ]


def _queued(answer: Answer, seconds: float) -> Answer:
    if not isinstance(answer, ScoreResult):
        return answer
    return replace(answer, stats={**answer.stats, "queue_seconds": seconds})
