"""Ranks that talk over real sockets: order, failures, deaths, silence and strangers."""

import contextlib
import os
import queue
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from lamorel_ext.config import DistributedSetupArgs
from lamorel_ext.errors import (
    PeerDiedError,
    ProtocolError,
    RemoteError,
    RequestError,
    RequestTimeout,
    RpcError,
)
from lamorel_ext.processes import stopping
from lamorel_ext.rpc import rendezvous
from lamorel_ext.rpc.clients import Clients
from lamorel_ext.rpc.distributed import TorchClients
from lamorel_ext.rpc.handshake import examine, introduce
from lamorel_ext.rpc.link import SILENCE_S, Link, Peer
from lamorel_ext.rpc.rendezvous import accept_peers, connect_to_servers
from lamorel_ext.rpc.tcp_listener import TcpListener
from lamorel_ext.rpc.tcp_transport import TcpTransport
from lamorel_ext.rpc.wire.codec import MAGIC, PREFIX, VERSION, Kind, frame, pack
from lamorel_ext.types import Failure, ScoreRequest, UpdateRequest
from tests.rpc.rpc_fakes import ACTIONS, FakeHost, fake_log_prob, threaded_launch


def links_of(transport: object) -> list[Link]:
    """The connections inside, to harm them."""
    links: list[Link] = transport._links  # type: ignore[attr-defined]
    return links


def cut(link: Link) -> None:
    """What the kernel does to the connections of a process that is killed."""
    with contextlib.suppress(OSError):  # the others have ended it by themselves
        link._sock.shutdown(socket.SHUT_RDWR)


def seconds_until(call: Callable[[], object], error: type[BaseException], match: str) -> float:
    started = time.monotonic()
    with pytest.raises(error, match=match):
        call()
    return time.monotonic() - started


@pytest.mark.parametrize("clients", [1, 2])
def test_a_callback_over_sockets_waits_for_nothing(clients: int) -> None:
    """With several clients an update needs a ticket, which arrives there too."""
    found: queue.Queue[object] = queue.Queue()
    with threaded_launch(clients, 2) as launch:
        caller = launch.callers[0]

        def again(_: object) -> None:
            if threading.current_thread() is here:  # the answer was there before the callback
                return found.put(None)
            for ask in (caller.score, caller.update):
                try:
                    found.put(ask(["b"], [ACTIONS]))
                except RequestError as error:
                    found.put(error)

        here, first = threading.current_thread(), None
        while first is None:
            caller.submit_score(ScoreRequest(("a",), (ACTIONS,))).add_done_callback(again)
            first = found.get(timeout=10)
        for answer in (first, found.get(timeout=10)):
            assert isinstance(answer, RequestError)
        assert len(caller.update(["b"], [ACTIONS], signals=[1.0])) == 2


def test_scores_heads_texts_and_updates_travel() -> None:
    with threaded_launch(1, 2) as launch:
        caller = launch.callers[0]
        prompts = tuple(f"prompt {i}" for i in range(5))
        result = caller.score_batch(ScoreRequest(prompts, (ACTIONS,) * 5, ("value",)))
        assert torch.equal(
            result.padded(),
            torch.tensor(
                [[fake_log_prob(prompt, action) for action in ACTIONS] for prompt in prompts]
            ),
        )
        assert result.modules["value"].shape == (5, 1)
        assert caller.generate(["abc"])[0][0]["text"] == "abc+0+0"
        assert [
            stats["weight"]
            for stats in caller.update(["a", "b", "c"], [ACTIONS] * 3, signals=[1.0, 2.0, 3.0])
        ] == [6.0, 6.0]
    assert launch.errors == {} and launch.ends == []


def test_a_large_message_travels_in_both_directions() -> None:
    with threaded_launch(1, 1) as launch:
        prompts = tuple("x" * 2000 + str(i) for i in range(1000))
        result = launch.callers[0].score_batch(
            ScoreRequest(prompts, (tuple(str(i) for i in range(1000)),) * 1000)
        )
        assert result.log_probs.shape == (1_000_000,)
        signals = torch.rand(1000, 500)
        (stats,) = launch.callers[0].update(prompts, [("a",)] * 1000, signals=signals)
        assert stats["weight"] == pytest.approx(float(signals.sum()), rel=1e-5)


def test_connections_are_tuned_for_small_messages_and_vanishing_machines() -> None:
    with threaded_launch(1, 1) as launch:
        sock = links_of(launch.callers[0]._transport)[0]._sock
        option = lambda name: sock.getsockopt(socket.IPPROTO_TCP, name)  # noqa: E731
        assert option(socket.TCP_NODELAY) and sock.getsockopt(
            socket.SOL_SOCKET, socket.SO_KEEPALIVE
        )
        assert (
            option(socket.TCP_KEEPIDLE) + option(socket.TCP_KEEPINTVL) * option(socket.TCP_KEEPCNT)
            <= SILENCE_S
        )
        assert option(socket.TCP_USER_TIMEOUT) == SILENCE_S * 1000


# --- several clients ------------------------------------------------------------------------------


def test_updates_of_several_clients_are_in_the_same_order_on_every_server() -> None:
    with threaded_launch(3, 3) as launch:

        def work(rank: int) -> None:
            caller = launch.callers[rank]
            for number in range(15):
                caller.update(
                    ["a", "b"], [ACTIONS] * 2, signals=[1.0, 1.0], name=f"{rank}.{number}", steps=2
                )
                caller.score([f"{rank}"], [["a"]])
                if number % 5 == 0:
                    caller.reset(rank)

        threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive(), "the clients block each other"
        together = [
            [line for line in host.log if not line.startswith("score")] for host in launch.hosts
        ]
        assert together[0] == together[1] == together[2] and len(together[0]) == 3 * (15 + 3)
        for rank in range(3):
            own = [line for line in together[0] if line.startswith(f"update {rank}.")]
            assert own == [f"update {rank}.{number}" for number in range(15)]
    assert launch.errors == {}


def test_a_failed_update_of_one_client_does_not_block_the_others() -> None:
    with threaded_launch(2, 2) as launch:
        first, second = launch.callers
        for _ in range(3):
            with pytest.raises(RemoteError, match="asked to fail"):
                first.update(["a"], [ACTIONS], signals=[1.0], fail_rank=1)
            with pytest.raises(RemoteError, match="no updater 'missing'"):
                second.update(["a"], [ACTIONS], updater="missing")
            assert len(second.update(["a"], [ACTIONS], signals=[1.0])) == 2


def test_a_client_that_leaves_early_leaves_the_servers_to_the_others() -> None:
    with threaded_launch(2, 1) as launch:
        launch.callers[0].close()
        assert len(launch.callers[1].score(["a"], [["b"]])) == 1
        assert launch.threads[0].is_alive()
    assert launch.errors == {} and launch.ends == []


def test_a_client_that_takes_leave_twice_leaves_the_servers_to_the_others() -> None:
    """As where an interrupt broke off the first time: the end of the process is the second."""
    with threaded_launch(2, 1) as launch:
        leaving, staying = launch.callers
        waits = staying.submit_score(ScoreRequest(("wait",), (("a",),)))
        assert launch.hosts[0].busy.wait(10)
        threads = [threading.Thread(target=leaving.close) for _ in range(2)]
        for thread in threads:
            thread.start()
        time.sleep(0.2)  # both have said so
        launch.hosts[0].gate.set()
        for thread in threads:
            thread.join(10)
        assert len(waits.result(10).counts) == 1
        assert len(staying.score(["a"], [["b"]])) == 1
    assert launch.errors == {} and launch.ends == []


def test_small_requests_of_several_clients_go_to_different_servers() -> None:
    with threaded_launch(2, 2) as launch:
        for rank, caller in enumerate(launch.callers):
            caller.score([f"from {rank}"], [["a"]])
        assert [host.log for host in launch.hosts] == [["score from 0"], ["score from 1"]]


# --- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{"fail_rank": 1}, {"fail_rank": 0, "fail_step": 1}, {"fail_rank": 2, "fail_step": 2}],
)
def test_an_update_that_raises_on_one_server_fails_everywhere_at_once_and_the_servers_live_on(
    options: dict[str, int],
) -> None:
    with threaded_launch(1, 3) as launch:
        caller = launch.callers[0]
        update = lambda **more: caller.update(  # noqa: E731
            ["a", "b", "c", "d"], [ACTIONS] * 4, signals=[1.0] * 4, steps=3, **more
        )
        index = options["fail_rank"]
        assert (
            seconds_until(
                lambda: update(**options),
                RemoteError,
                f"rank {index + 1} .llm server {index}. raised ArithmeticError",
            )
            < 10  # half of what the servers would wait for each other
        )
        assert [stats["weight"] for stats in update()] == [4.0] * 3


def test_servers_whose_weights_differ_after_a_failure_answer_nothing_until_a_reset() -> None:
    with threaded_launch(1, 2) as launch:
        caller = launch.callers[0]
        update = lambda **more: caller.update(["a", "b"], [ACTIONS] * 2, signals=[1.0] * 2, **more)  # noqa: E731
        update()
        with pytest.raises(RemoteError, match="ArithmeticError"):
            # After its last sum: the other server has made the step by then.
            update(fail_rank=1, fail_step=1)
        assert [host.weight for host in launch.hosts] == [4.0, 2.0]
        for call in (update, update, lambda: caller.score(["a"] * 2, [ACTIONS] * 2)):
            with pytest.raises(RemoteError, match="no sound weights .* load a checkpoint or reset"):
                call()
        caller.reset(0)
        assert [stats["weight"] for stats in update()] == [2.0, 2.0]


class Unsayable(Exception):
    def __str__(self) -> str:
        return str(self.args[0])


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Unsayable(), "Unsayable: without a text: its __str__ raised IndexError"),
        (Unsayable("x" * 65 * 2**20), "Unsayable: xxx"),
    ],
)
def test_a_server_outlives_an_exception_whose_text_cannot_be_had_or_sent(
    error: Exception, said: str
) -> None:
    class Raises(FakeHost):
        def score(self, prompts: Any, *rest: Any, **more: Any) -> Any:
            if prompts[0] == "raise":
                raise error
            return super().score(prompts, *rest, **more)

    with threaded_launch(1, 1, hosts=[Raises()]) as launch:
        with pytest.raises(RemoteError, match=f"llm server 0. raised {said}"):
            launch.callers[0].score(["raise"], [["a"]])
        assert len(launch.callers[0].score(["a"], [["b"]])) == 1


def test_an_updater_that_forgets_a_sum_fails_instead_of_hanging() -> None:
    with threaded_launch(1, 2) as launch:
        update = lambda: launch.callers[0].update(["a"], [ACTIONS], signals=[1.0], skip_rank=1)  # noqa: E731
        assert seconds_until(update, RemoteError, "the servers do not sum the same thing") < 10


def test_a_request_that_only_a_server_can_refuse_comes_back_as_failure() -> None:
    with threaded_launch(1, 1) as launch:
        caller = launch.callers[0]
        bad = UpdateRequest("sum", ("a",), (("x",),), torch.tensor([5]), 2, {}, {})
        future = caller._transport.submit_together([bad])[0]
        assert "indices lie between 5 and 5" in future.result(5).message  # type: ignore[union-attr]
        assert caller.score(["a"], [["b"]])


def test_a_message_that_is_none_of_ours_is_answered_with_a_failure() -> None:
    with threaded_launch(1, 1) as launch:
        transport = launch.callers[0]._transport
        assert isinstance(transport, TcpTransport)
        call_id, pending = transport._expect(0, "nonsense")
        header = b'{"type":"Popen","fields":{},"tensors":[]}'
        transport._write(
            call_id, [PREFIX.pack(MAGIC, VERSION, 0, call_id, 0, len(header), 0), header]
        )
        answer = pending.future.result(5)
        assert (
            answer.type_name == "ProtocolError"
            and "unknown type of message: 'Popen'" in answer.message
        )
        assert launch.callers[0].score(["a"], [["b"]])


# --- deaths ---------------------------------------------------------------------------------------


def test_a_server_that_dies_ends_the_call_before_any_answer() -> None:
    with threaded_launch(1, 2) as launch:
        caller = launch.callers[0]
        future = caller.submit_score(ScoreRequest(("wait", "wait"), (("a",),) * 2))
        assert all(host.busy.wait(10) for host in launch.hosts)
        cut(launch.listeners[1]._links[0])
        with pytest.raises(PeerDiedError, match=r"rank 2 .llm server 1. died: its connection was"):
            future.result(10)
        assert seconds_until(lambda: caller.score(["a"], [["b"]]), PeerDiedError, "rank 2") < 10
    assert set(launch.errors) == {0, 1}


def test_a_client_that_dies_ends_its_servers_and_their_line_names_it() -> None:
    with threaded_launch(1, 2) as launch:
        for link in links_of(launch.callers[0]._transport):
            cut(link)
        launch.join()
    # Each sees it for itself, or hears of it from the other one.
    assert (
        all("rank 0 (rl client 0) died" in str(error) for error in launch.errors.values())
        and len(launch.errors) == 2
    )


def test_a_server_whose_main_thread_is_stuck_is_ended_after_the_grace_time() -> None:
    with threaded_launch(1, 1, grace_s=0.2) as launch:
        launch.callers[0].submit_score(ScoreRequest(("wait",), (("a",),)))
        assert launch.hosts[0].busy.wait(10)
        cut(links_of(launch.callers[0]._transport)[0])
        until = time.monotonic() + 10
        while not launch.ends and time.monotonic() < until:
            time.sleep(0.01)
        assert launch.ends == [
            "rank 1 (llm server 0) ends: rank 0 (rl client 0) died: its connection was closed"
        ]


def test_a_server_notices_that_another_server_died() -> None:
    with threaded_launch(1, 2) as launch:
        to_the_other = launch.listeners[0]._links[1]
        assert to_the_other.peer == Peer(2, "llm server 1")
        cut(to_the_other)
        launch.join()
        assert {type(error) for error in launch.errors.values()} <= {
            PeerDiedError,
            RemoteError,
        } and len(launch.errors) == 2
        with pytest.raises(RpcError, match="llm server"):
            launch.callers[0].score(["a"], [["b"]])


def test_the_last_word_of_a_server_is_raised_at_the_client() -> None:
    with threaded_launch(1, 2) as launch:
        future = launch.callers[0].submit_score(ScoreRequest(("wait", "wait"), (("a",),) * 2))
        launch.listeners[1].fail(MemoryError("the weights do not fit"))
        with pytest.raises(RemoteError, match=r"rank 2 .llm server 1. raised MemoryError: the wei"):
            future.result(10)


def test_the_last_word_of_a_client_is_raised_at_the_servers() -> None:
    with threaded_launch(1, 2) as launch:
        with pytest.raises(KeyError):
            with launch.callers[0]:
                raise KeyError("no such level")
        launch.join()
    for error in launch.errors.values():
        assert (
            isinstance(error, RemoteError)
            and (error.rank, error.type_name) == (0, "KeyError")
            and "no such level" in error.remote_traceback
        )
    assert len(launch.errors) == 2


def test_whoever_cannot_answer_a_peer_that_ends_hears_its_last_word_at_once() -> None:
    """On the thread that reads, which would wait for itself."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        theirs = socket.create_connection(listening.getsockname())
        ours, _ = listening.accept()
    ours.shutdown(socket.SHUT_WR)
    link, heard = Link(ours, Peer(1, "rl client 1")), queue.Queue[RpcError]()
    theirs.sendall(b"".join(frame(kind=Kind.TICKET, call_id=1)))
    last_word = Failure(1, "rl client 1", "KeyError", "no such level", "")
    theirs.sendall(b"".join(frame(pack(last_word), Kind.LAST_WORD)))
    link.start(lambda _, received: link.send(frame(kind=Kind.TICKET)), lambda _, e: heard.put(e))
    assert "raised KeyError: no such level" in str(heard.get(timeout=9))


def test_a_client_that_waits_for_another_hears_from_the_servers_why_it_does_not_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*given: object, **named: object) -> None:
        raise RuntimeError("Connection closed by peer")  # gloo is the first to notice

    monkeypatch.setattr(dist, "all_reduce", broken)
    for name, number in {"get_rank": 0, "get_world_size": 2}.items():
        monkeypatch.setattr(dist, name, lambda group, number=number: number)
    with threaded_launch(2, 2) as launch:
        transport: TcpTransport = launch.callers[0]._transport  # type: ignore[assignment]
        clients = Clients(TorchClients(None, transport.loss))
        assert transport.loss(0.01) is None
        later = threading.Timer(0.2, launch.callers[1].fail, [KeyError("no such level")])
        later.start()
        with pytest.raises(RemoteError, match=r"rank 1 .rl client 1. raised KeyError: 'no such l"):
            clients.share(lambda: 1)
        later.join()
        launch.join()


def test_whoever_waits_in_another_thread_hears_that_the_caller_failed() -> None:
    with threaded_launch(1, 1) as launch:
        future = launch.callers[0].submit_score(ScoreRequest(("wait",), (("a",),)))
        with pytest.raises(KeyError):
            with launch.callers[0]:
                raise KeyError("no such level")
        with pytest.raises(RpcError, match="the caller failed: KeyError: 'no such level'"):
            future.result(10)


@pytest.mark.parametrize(
    "first", ["the client", "the client, as another says", "the server", "another client"]
)
def test_a_client_lets_others_end_first_only_where_they_failed_first(
    first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class AnswersAtOnce:
        def start(self, on_frame: object, on_lost: Callable[[object, RpcError], None]) -> None:
            self.on_lost = on_lost

        def say_last_word(self, failure: object) -> None:
            self.on_lost(self, RemoteError(1, "llm server 0", "KeyError", "x", ""))

    waits: list[int] = []
    monkeypatch.setattr(stopping, "let_another_end_first", lambda: waits.append(0))
    link = AnswersAtOnce()
    transport = TcpTransport([link], Peer(0, "rl client 0"), 1.0, with_tickets=False)  # type: ignore[list-item]
    if first == "the server":
        link.say_last_word(None)
    if first == "the client, as another says":
        link.on_lost(link, RemoteError(0, "rl client 0", "ArithmeticError", "mine", ""))
    theirs = RemoteError(2, "rl client 1", "KeyError", "x", "")
    transport.fail(theirs if first == "another client" else ArithmeticError("mine"))
    assert bool(waits) == (not first.startswith("the client"))


def test_a_client_that_ends_well_inside_the_block_is_no_failure() -> None:
    with threaded_launch(1, 1) as launch:
        with pytest.raises(SystemExit):
            with launch.callers[0]:
                raise SystemExit(0)
        launch.join()
    assert launch.errors == {}


def test_no_answer_in_time_is_a_timeout_that_names_rank_and_seconds() -> None:
    with threaded_launch(1, 1, timeout_s=0.3) as launch:
        late = "rank 1 .llm server 0. did not answer ScoreRequest within 0.3 s"
        with pytest.raises(RequestTimeout, match=late):
            launch.callers[0].score(["wait"], [["a"]])


def test_a_ticket_that_comes_too_late_does_not_block_the_other_clients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    late = threading.Event()
    give = TcpListener._give_ticket

    def hesitate(self: TcpListener, link: Link, call_id: int) -> None:
        if link.peer.rank == 0:
            late.wait(30)
        give(self, link, call_id)

    monkeypatch.setattr(TcpListener, "_give_ticket", hesitate)
    with threaded_launch(2, 2, timeout_s=0.4) as launch:
        first, second = launch.callers
        with pytest.raises(RequestTimeout, match="did not answer ticket within 0.4 s"):
            first.update(["a"], [ACTIONS], signals=[1.0])
        for caller in (first, second):
            caller._transport._timeout_s = 30.0  # type: ignore[attr-defined]
        late.set()
        for caller in (second, first):
            assert len(caller.update(["a"], [ACTIONS], signals=[1.0])) == 2
    assert launch.errors == {}


def test_nothing_follows_half_a_frame() -> None:
    """What raises out of a handler of signals, a limit of the user's own for one, and goes on."""

    class TooSlow(Exception):
        pass

    def interrupt(signum: int, frame: object) -> None:
        raise TooSlow

    lost: queue.Queue[RpcError] = queue.Queue()
    with socket.create_server(("127.0.0.1", 0)) as door:
        link = Link(socket.create_connection(door.getsockname()), Peer(1, "llm server 0"))
        peer, _ = door.accept()
    link.start(lambda *_: None, lambda _, error: lost.put(error))
    data = bytes(2**26)  # more than a connection holds that nobody reads from
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(TooSlow):
            link.send([data])
    finally:
        signal.signal(signal.SIGALRM, before)
    assert "rank 1 (llm server 0) was ended: TooSlow was raised here" in str(lost.get(timeout=10))
    with pytest.raises(RpcError, match="TooSlow was raised here"):
        link.send([b"what comes next"])
    with peer, peer.makefile("rb") as stream:
        arrived = stream.read()
    assert 0 < len(arrived) < len(data) and not arrived.strip(b"\0")


def test_an_update_that_reached_some_servers_alone_is_not_completed_by_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with threaded_launch(1, 2) as launch:
        caller = launch.callers[0]
        transport: Any = caller._transport
        send = transport._send

        def interrupted(server: int, *message: Any) -> Any:
            if server == 1:
                raise KeyboardInterrupt
            return send(server, *message)

        update = lambda *signals: caller.update(["a", "b"], [ACTIONS] * 2, signals=[*signals])  # noqa: E731
        with monkeypatch.context() as patched:
            patched.setattr(transport, "_send", interrupted)
            with pytest.raises(KeyboardInterrupt):
                update(1.0, 2.0)
        assert seconds_until(lambda: update(10.0, 20.0), RpcError, "KeyboardInterrupt was") < 10
    assert [host.weight for host in launch.hosts] == [0.0, 0.0]


def test_nonsense_on_an_open_connection_is_a_protocol_error_at_the_other_end() -> None:
    with threaded_launch(1, 1) as launch:
        links_of(launch.callers[0]._transport)[0]._sock.sendall(
            b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
        )
        launch.join()
    assert isinstance(launch.errors[0], ProtocolError) and "starts with b'GET '" in str(
        launch.errors[0]
    )


# --- strangers ------------------------------------------------------------------------------------


def connected_pair() -> tuple[socket.socket, socket.socket]:
    left, right = socket.socketpair()
    left.settimeout(5)
    right.settimeout(5)
    return left, right


@pytest.mark.parametrize("same_token", [True, False])
def test_handshake_needs_the_same_token_at_both_ends(same_token: bool) -> None:
    token = secrets.token_bytes(32)
    server, client = connected_pair()
    outcome: list[object] = []

    def answer() -> None:
        try:
            outcome.append(examine(server, token, 3))
        except ProtocolError as error:
            outcome.append(error)
            server.close()

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    if same_token:
        introduce(client, token, 1, 3)
        thread.join(15)
        assert outcome == [1]
    else:
        with pytest.raises(ProtocolError):
            introduce(client, secrets.token_bytes(32), 1, 3)
        thread.join(15)
        assert isinstance(outcome[0], ProtocolError) and "stranger" in str(outcome[0])
    client.close()
    server.close()


def test_a_false_server_is_recognised() -> None:
    server, client = connected_pair()
    # It has seen a challenge and sends some proof, without knowing the token.
    server.sendall(MAGIC + bytes([VERSION]) + os.urandom(16) + os.urandom(32))
    with pytest.raises(ProtocolError, match="rank 3 does not know this launch's token"):
        introduce(client, secrets.token_bytes(32), 1, 3)


class GivesUp(OSError):
    """In the place of a handshake's timeout."""


class Impatient:
    """A connection whose owner gives up after so many words of the other end.

    Args:
        sock: Of the connection.
        hears: Words that are still waited for.
    """

    def __init__(self, sock: socket.socket, hears: int) -> None:
        self._sock, self._hears = sock, hears

    def recv(self, num_bytes: int) -> bytes:
        if not self._hears:
            self._sock.close()
            raise GivesUp
        self._hears -= 1
        return self._sock.recv(num_bytes)

    def sendall(self, data: bytes) -> None:
        self._sock.sendall(data)


@pytest.mark.parametrize("hears", [0, 1])
@pytest.mark.parametrize("times", [1, 3])
def test_a_rank_that_gave_up_a_handshake_comes_in_with_the_next_one(hears: int, times: int) -> None:
    """Both ends of a connection may be cut off, or stopped, for longer than a handshake waits: what
    was sent arrives all the same, from somebody who is not there any more.
    """
    token = secrets.token_bytes(32)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = listening.getsockname()
        expected = {0: Peer(0, "rl client 0")}
        result: list[list[Link]] = []
        thread = threading.Thread(
            target=lambda: result.append(accept_peers(listening, token, 1, expected, 20.0)),
            daemon=True,
        )
        thread.start()
        for _ in range(times):
            sock = Impatient(socket.create_connection(address, timeout=5), hears)
            with pytest.raises(GivesUp):
                introduce(sock, token, 0, 1)  # type: ignore[arg-type]
        thread.join(0.3)  # what has arrived is looked at
        assert thread.is_alive()
        client = socket.create_connection(address, timeout=5)
        introduce(client, token, 0, 1)
        thread.join(15)
        (link,) = result[0]
    heard: queue.Queue[int] = queue.Queue()
    link.start(lambda _, received: heard.put(received.prefix.call_id), lambda _, error: None)
    client.sendall(b"".join(frame(kind=Kind.STOP, call_id=15)))
    assert heard.get(timeout=15) == 15
    link.close()
    client.close()


def test_strangers_silent_ones_and_impostors_do_not_keep_the_peers_out() -> None:
    token = secrets.token_bytes(32)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = listening.getsockname()
        result: list[list[Link]] = []
        expected = {0: Peer(0, "rl client 0")}
        thread = threading.Thread(
            target=lambda: result.append(accept_peers(listening, token, 1, expected, 10.0)),
            daemon=True,
        )
        thread.start()
        silent = socket.create_connection(address)
        stranger = socket.create_connection(address, timeout=15)
        assert len(stranger.recv(21, socket.MSG_WAITALL)) == 21
        stranger.sendall(b"x" * 57)
        with (
            pytest.raises((ProtocolError, OSError)),
            socket.create_connection(address, timeout=5) as impostor,
        ):
            introduce(impostor, secrets.token_bytes(32), 0, 1)
        # It knows the token but is not expected.
        unknown = socket.create_connection(address, timeout=5)
        introduce(unknown, token, 7, 1)
        assert thread.is_alive()
        client = socket.create_connection(address, timeout=5)
        introduce(client, token, 0, 1)
        thread.join(15)
        assert [link.peer for link in result[0]] == [Peer(0, "rl client 0")]
        assert unknown.recv(1) == b""
        assert stranger.recv(1) == b""
    for sock in (silent, stranger, unknown, client):
        sock.close()
    result[0][0].close()


def test_peers_that_do_not_come_are_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        expected = {0: Peer(0, "rl client 0"), 2: Peer(2, "llm server 1")}
        with pytest.raises(
            RpcError,
            match=(
                r"rank 0 .rl client 0., rank 2 .llm server 1. "
                r"did not connect to rank 1 within 0.1 s"
            ),
        ):
            accept_peers(listening, secrets.token_bytes(32), 1, expected, 0.1)


def test_a_server_that_is_not_there_any_more_is_named() -> None:
    store = dist.HashStore()
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    store.set("address of rank 1", f"{port} 127.0.0.1")
    with pytest.raises(
        PeerDiedError, match=r"rank 1 .llm server 0. died: 127.0.0.1:\d+ cannot be reached"
    ):
        connect_to_servers(store, DistributedSetupArgs(1, 1), 0, 1.0, b"token")


def test_a_server_that_never_tells_its_address_is_waited_for_only_so_long() -> None:
    with pytest.raises(
        RpcError, match="no file of the secret in the store of the launch within 0.1 s"
    ):
        connect_to_servers(dist.HashStore(), DistributedSetupArgs(1, 1), 0, 0.1)


def test_a_crowd_of_silent_strangers_locks_no_rank_out() -> None:
    token = secrets.token_bytes(32)
    store = dist.HashStore()
    with socket.create_server(("127.0.0.1", 0), backlog=200) as listening:
        address = listening.getsockname()
        result: list[list[Link]] = []
        peers = {0: Peer(0, "rl client 0")}
        thread = threading.Thread(
            target=lambda: result.append(accept_peers(listening, token, 1, peers, 20.0)),
            daemon=True,
        )
        thread.start()
        crowd = [socket.create_connection(address) for _ in range(3 * rendezvous.MAX_STRANGERS)]
        store.set("address of rank 1", f"{address[1]} 127.0.0.1")
        links = connect_to_servers(store, DistributedSetupArgs(1, 1), 0, 20.0, token)
        thread.join(10)
        assert [link.peer.rank for link in result[0]] == [0]
    for each in (*crowd, links[0], result[0][0]):
        each.close()


def test_a_rank_with_another_token_is_told_so_at_once() -> None:
    store = dist.HashStore()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        store.set("address of rank 1", f"{listening.getsockname()[1]} 127.0.0.1")
        peers = {0: Peer(0, "rl client 0")}

        def accept() -> None:
            with contextlib.suppress(RpcError):
                accept_peers(listening, b"one", 1, peers, 20.0)

        threading.Thread(target=accept, daemon=True).start()
        with pytest.raises(ProtocolError, match="do not have the same token"):
            connect_to_servers(store, DistributedSetupArgs(1, 1), 0, 20.0, b"other")


@pytest.mark.parametrize("followed", [True, False])
def test_a_stuck_server_too_lets_whoever_raised_end_first(
    followed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    monkeypatch.setattr(stopping, "let_another_end_first", lambda: done.append("waits"))
    listener = TcpListener([], [], Peer(1, "llm server 0"), 0.0, lambda line: done.append("ends"))
    raised = RemoteError(0, "rl client 0", "KeyError", "x", "")
    died = PeerDiedError(0, "rl client 0", "its connection was closed")
    listener._on_lost(None, raised if followed else died)  # type: ignore[arg-type]
    assert done == (["waits", "ends"] if followed else ["ends"])
