"""The order of work at a server, and servers in threads."""

import threading
from concurrent.futures import Future

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lamorel_ext.errors import PeerDiedError, RemoteError, RpcError
from lamorel_ext.rpc.caller import Caller
from lamorel_ext.rpc.transport import Inbox, InProcessTransport, gather
from lamorel_ext.types import Answer, CallResult, Done, Failure, Request, ResetRequest, SaveRequest


@given(st.permutations(range(1, 7)))
def test_tickets_come_out_in_order_however_they_arrive(order: list[int]) -> None:
    inbox: Inbox[int] = Inbox()
    for ticket in order:
        inbox.put(ticket, ticket)
    assert [inbox.get() for _ in order] == [1, 2, 3, 4, 5, 6]


def test_what_has_no_ticket_is_not_held_back_and_keeps_its_order() -> None:
    inbox: Inbox[str] = Inbox()
    inbox.put("second update", 2)
    inbox.put("score a")
    inbox.put("score b")
    inbox.put("first update", 1)
    inbox.put("score c")
    assert [inbox.get() for _ in range(5)] == [
        "score a",
        "score b",
        "first update",
        "second update",
        "score c",
    ]


def test_a_failure_wakes_who_waits_and_comes_before_what_waits() -> None:
    inbox: Inbox[str] = Inbox()
    assert inbox.failure(0.0) is None
    caught: list[BaseException] = []

    def wait() -> None:
        try:
            inbox.get()
        except RpcError as error:
            caught.append(error)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    first = RpcError("first")
    inbox.fail(first)
    inbox.fail(RpcError("second"))
    thread.join(15)
    assert caught == [first] and inbox.failure(0.0) is first
    inbox.put("work")
    with pytest.raises(RpcError, match="first"):
        inbox.get()


def test_servers_in_threads_work_at_the_same_time_and_keep_the_order() -> None:
    meeting = threading.Barrier(2)
    seen: list[list[Request]] = [[], []]

    def handler(index: int):  # type: ignore[no-untyped-def]
        def handle(request: Request) -> Answer:
            # Passes only when both servers are here at once.
            meeting.wait(15)
            seen[index].append(request)
            return Done()

        return handle

    transport = InProcessTransport([handler(0), handler(1)])
    futures = [
        future
        for seed in range(5)
        for future in transport.submit_together([ResetRequest(seed), ResetRequest(seed)])
    ]
    assert [future.result(20) for future in futures] == [Done()] * 10
    assert seen[0] == seen[1] == [ResetRequest(seed) for seed in range(5)]
    transport.close()
    transport.close()
    with pytest.raises(RpcError, match="closed"):
        transport.submit(0, ResetRequest(0))


def test_requests_of_several_threads_come_in_the_same_order_to_every_server() -> None:
    seen: list[list[str]] = [[], [], []]

    def handler(index: int):  # type: ignore[no-untyped-def]
        def handle(request: Request) -> Answer:
            assert isinstance(request, SaveRequest)
            seen[index].append(request.folder)
            return Done()

        return handle

    transport = InProcessTransport([handler(index) for index in range(3)])

    def send(name: str) -> None:
        for number in range(30):
            transport.submit_together([SaveRequest(f"{name}{number}")] * 3)

    threads = [threading.Thread(target=send, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    transport.close()
    assert seen[0] == seen[1] == seen[2] and len(seen[0]) == 90


def settled(answer: Answer | Exception) -> Future[Answer]:
    future: Future[Answer] = Future()
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)
    return future


def test_nobody_waits_for_the_answers_to_no_question() -> None:
    assert gather([], list).result(1) == []
    caller = Caller(InProcessTransport([lambda request: CallResult({})]))
    assert caller.call({}) == [] and caller.call({}, together=True) == []
    caller.close()


def test_answers_are_gathered_in_the_order_of_the_futures() -> None:
    futures: list[Future[Answer]] = [Future(), Future()]
    gathered = gather(futures, list)
    futures[1].set_result(Done())
    assert not gathered.done()
    failure = Failure(0, "llm server 0", "KeyError", "x", "")
    futures[0].set_result(failure)
    with pytest.raises(RemoteError, match="KeyError"):
        gathered.result(1)
    assert gather([settled(Done()), settled(Done())], len).result(1) == 2


def test_a_dead_server_ends_the_wait_for_the_others() -> None:
    gathered = gather(
        [Future(), settled(PeerDiedError(2, "llm server 1", "its connection was closed"))], list
    )
    with pytest.raises(PeerDiedError, match="rank 2"):
        gathered.result(0)


@pytest.mark.parametrize("kind", ["OtherServerFailed", "OtherServerRefused"])
def test_the_server_that_failed_first_hand_is_believed(kind: str) -> None:
    second_hand = Failure(1, "llm server 0", kind, "given up because llm server 1 failed", "")
    first_hand = Failure(2, "llm server 1", "ArithmeticError", "the loss is not finite", "")
    with pytest.raises(RemoteError, match="rank 2 .* ArithmeticError: the loss is not finite"):
        gather([settled(second_hand), settled(first_hand)], list).result(1)
    with pytest.raises(RemoteError, match="given up"):
        gather([settled(second_hand), settled(Done())], list).result(1)


def test_answers_that_cannot_be_merged_raise_where_the_result_is_wanted() -> None:
    with pytest.raises(RuntimeError, match="shape|size|dim"):
        gather([settled(Done())], lambda _: torch.zeros(2) @ torch.zeros(3)).result(1)
