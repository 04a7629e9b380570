"""What a server answers to each type of request, and what it keeps when something goes wrong."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from lamorel_ext.errors import RemoteError, RequestError
from lamorel_ext.llm import handlers, server
from lamorel_ext.llm.handlers import RequestHandler
from lamorel_ext.llm.server import Server
from lamorel_ext.llm.serving import Hosted, in_process
from lamorel_ext.rpc.caller import Caller
from lamorel_ext.rpc.groups import LockstepGroup, make_thread_groups
from lamorel_ext.rpc.link import Peer
from lamorel_ext.rpc.tcp_listener import Call
from lamorel_ext.types import (
    Answer,
    CloseRequest,
    Done,
    Failure,
    InfoRequest,
    InfoResult,
    Request,
    ResetRequest,
    ScoreRequest,
    ScoreResult,
    UpdateRequest,
    UpdateResult,
)
from tests.rpc.rpc_fakes import ACTIONS, FakeHost, SumUpdater


def make_desk(**updaters: SumUpdater) -> RequestHandler:
    handler = RequestHandler(
        FakeHost(), updaters, LockstepGroup(make_thread_groups(1)[0]), 4, "llm server 1"
    )
    handler.open()
    return handler


@contextmanager
def servers(number: int) -> Iterator[tuple[Caller, list[FakeHost]]]:
    hosts = [FakeHost() for _ in range(number)]
    with in_process([Hosted(host, {"sum": SumUpdater()}) for host in hosts]) as caller:
        yield caller, hosts


def test_an_exception_is_answered_with_rank_role_type_and_traceback() -> None:
    answer = make_desk().handle(ScoreRequest(("raise this",), (("a",),)))
    assert isinstance(answer, Failure)
    assert (answer.rank, answer.role, answer.type_name) == (4, "llm server 1", "ZeroDivisionError")
    assert (
        answer.message == "the fake host was asked to: raise this"
        and "Traceback" in answer.remote_traceback
    )


@pytest.mark.parametrize(
    "request_", [ScoreRequest((), ()), ScoreRequest(("a",), ()), ScoreRequest(("a",), ((),))]
)
def test_a_bad_request_is_refused_before_the_host_sees_it(request_: Request) -> None:
    handler = make_desk()
    answer = handler.handle(request_)
    assert isinstance(answer, Failure) and answer.type_name == "RequestError"
    assert isinstance(handler.host, FakeHost) and handler.host.log == []


def test_seconds_are_those_of_the_server() -> None:
    handler, began = make_desk(), time.perf_counter()
    answer = handler.handle(ScoreRequest(("sleep 0.05",), (("a",),)))
    elapsed = time.perf_counter() - began
    assert isinstance(answer, ScoreResult) and 0.05 <= answer.stats["seconds"] <= elapsed


def test_info_names_host_and_updaters() -> None:
    answer = make_desk(one=SumUpdater(), two=SumUpdater()).handle(InfoRequest())
    assert answer == InfoResult({"name": "fake", "weight": 0.0, "updaters": "one, two"})


def test_an_update_without_a_name_goes_to_the_only_updater() -> None:
    with servers(2) as (caller, _):
        assert len(caller.update(["a"], [ACTIONS], signals=[1.0])) == 2
        with pytest.raises(RemoteError, match="no updater 'ppo' on llm server 0; there are: sum"):
            caller.update(["a"], [ACTIONS], signals=[1.0], updater="ppo")
    with in_process([Hosted(FakeHost(), {"one": SumUpdater(), "two": SumUpdater()})]) as caller:
        with pytest.raises(RemoteError, match="no updater '' .* there are: one, two"):
            caller.update(["a"], [ACTIONS], signals=[1.0])


def test_only_the_first_server_writes_and_every_server_reads(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "state"
    with servers(3) as (caller, hosts):
        caller.update(["a"], [ACTIONS], signals=[2.0])
        for host in hosts[1:]:
            host.save = lambda folder: pytest.fail("another server wrote")  # type: ignore[method-assign]
        caller.save(str(folder))
        caller.reset(5)
        assert [host.weight for host in hosts] == [0.0] * 3
        caller.load(str(folder))
        assert [host.weight for host in hosts] == [2.0] * 3
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.txt")) == [
        "model/weight.txt",
        "updaters/sum/seed.txt",
    ]


def test_an_updater_that_joined_after_the_save_stays_as_it_is(tmp_path: Path) -> None:
    with servers(1) as (caller, _):
        caller.update(["a"], [ACTIONS], signals=[2.0])
        caller.save(str(tmp_path / "state"))
    host, late = FakeHost(), SumUpdater()
    with in_process([Hosted(host, {"sum": SumUpdater(), "late": late})]) as caller:
        caller.reset(5)
        caller.load(str(tmp_path / "state"))
    assert (host.weight, late.seed) == (2.0, 5)


class LeavingUpdater(SumUpdater):
    """One of somebody's own that ends the process, as a command line's parser does."""

    def update(self, request: UpdateRequest) -> UpdateResult:
        raise SystemExit(0)


@pytest.mark.parametrize("number", [1, 2])
def test_an_updater_that_leaves_the_process_is_an_answer_not_a_good_end(number: int) -> None:
    hosted = [Hosted(FakeHost(), {"leaves": LeavingUpdater()}) for _ in range(number)]
    with in_process(hosted) as caller:
        with pytest.raises(RemoteError, match=r"raised SystemExit: 0"):
            caller.update(["a", "b"], [ACTIONS] * 2, updater="leaves")
        assert len(caller.score(["a"], [ACTIONS])) == 1  # it still serves


def test_every_server_hears_what_a_reset_starts_from() -> None:
    with servers(2) as (caller, hosts):
        caller.reset(5, "fresh", ("actions", "other"))
        assert [host.log for host in hosts] == [["reset 5 fresh without actions, other"]] * 2


def test_what_is_no_checkpoint_is_not_replaced_by_one(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("three years")
    (tmp_path / "empty").mkdir()
    with servers(2) as (caller, _):
        for taken in (tmp_path / "mine", tmp_path / "mine" / "thesis.txt"):
            with pytest.raises(
                RemoteError, match="CheckpointError: .* holds something else than a checkpoint"
            ):
                caller.save(str(taken))
        caller.save(str(tmp_path / "empty"))
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "three years" and (
        tmp_path / "empty" / "model"
    ).is_dir()


def test_a_save_that_fails_leaves_the_earlier_one_whole(tmp_path: Path) -> None:
    folder = tmp_path / "state"

    def fail(folder: Path) -> None:
        (folder / "weight.txt").write_text("half")
        raise OSError("disk full")

    with servers(2) as (caller, hosts):
        caller.update(["a"], [ACTIONS], signals=[2.0])
        caller.save(str(folder))
        caller.update(["a"], [ACTIONS], signals=[2.0])
        good, hosts[0].save = hosts[0].save, fail  # type: ignore[method-assign]
        with pytest.raises(
            RemoteError, match="CheckpointError: .*state cannot be written: disk full"
        ):
            caller.save(str(folder))
        caller.load(str(folder))
        assert [host.weight for host in hosts] == [2.0, 2.0]
        hosts[0].save = good  # type: ignore[method-assign]
        caller.update(["a"], [ACTIONS], signals=[3.0])
        caller.save(str(folder))
    assert (folder / "model" / "weight.txt").read_text() == "5.0"
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_what_a_kill_between_the_renames_of_a_save_left_aside_is_brought_back(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "state"

    def fail(folder: Path) -> None:
        raise OSError("disk full")

    with servers(2) as (caller, hosts):
        caller.update(["a"], [ACTIONS], signals=[2.0])
        caller.save(str(folder))
        caller.update(["a"], [ACTIONS], signals=[2.0])
        folder.rename(tmp_path / ".state.old")
        caller.load(str(folder))
        assert [host.weight for host in hosts] == [2.0, 2.0]
        folder.rename(tmp_path / ".state.old")
        good, hosts[0].save = hosts[0].save, fail  # type: ignore[method-assign]
        with pytest.raises(RemoteError, match="disk full"):
            caller.save(str(folder))
        hosts[0].save = good  # type: ignore[method-assign]
        caller.load(str(folder))
        caller.save(str(folder))
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_link_to_a_folder_elsewhere_stays_one(tmp_path: Path) -> None:
    (tmp_path / "scratch" / "mine").mkdir(parents=True)
    folder = tmp_path / "state"
    folder.symlink_to(tmp_path / "scratch" / "mine")
    with servers(2) as (caller, _):
        for weight in ("2.0", "4.0", "6.0"):
            caller.update(["a"], [ACTIONS], signals=[2.0])
            caller.save(str(folder))
            assert (tmp_path / "scratch" / "mine" / "model" / "weight.txt").read_text() == weight
        caller.load(str(folder))
    assert folder.is_symlink() and [path.name for path in folder.resolve().parent.iterdir()] == [
        "mine"
    ]


def test_a_folder_without_checkpoint_is_named_and_changes_nothing(tmp_path: Path) -> None:
    with servers(2) as (caller, hosts):
        caller.update(["a"], [ACTIONS], signals=[2.0])
        with pytest.raises(RemoteError, match="CheckpointError: .*nowhere is no checkpoint"):
            caller.load(str(tmp_path / "nowhere"))
        assert [host.weight for host in hosts] == [2.0, 2.0]
        assert len(caller.update(["a"], [ACTIONS], signals=[2.0])) == 2


def test_after_a_load_that_failed_on_one_server_all_refuse_to_train_until_a_good_one(
    tmp_path: Path,
) -> None:
    def fail(folder: Path) -> None:
        raise OSError("stale file handle")

    with servers(2) as (caller, hosts):
        caller.update(["a"], [ACTIONS], signals=[2.0])
        caller.save(str(tmp_path / "state"))
        good, hosts[1].load = hosts[1].load, fail  # type: ignore[method-assign]
        with pytest.raises(
            RemoteError, match="rank 1 .llm server 1. raised CheckpointError: .*stale file handle"
        ):
            caller.load(str(tmp_path / "state"))
        with pytest.raises(RemoteError, match="no sound weights since a reset or load that failed"):
            caller.update(["a"], [ACTIONS], signals=[2.0])
        hosts[1].load = good  # type: ignore[method-assign]
        caller.load(str(tmp_path / "state"))
        assert [stats["weight"] for stats in caller.update(["a"], [ACTIONS], signals=[2.0])] == [
            4.0,
            4.0,
        ]


def test_a_server_alone_refuses_to_train_after_a_load_that_failed(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        raise OSError("stale file handle")

    with servers(1) as (caller, hosts):
        caller.save(str(tmp_path / "state"))
        good, hosts[0].load = hosts[0].load, fail  # type: ignore[method-assign]
        with pytest.raises(RemoteError, match="stale file handle"):
            caller.load(str(tmp_path / "state"))
        with pytest.raises(RemoteError, match="no sound weights since a reset or load that failed"):
            caller.update(["a"], [ACTIONS], signals=[2.0])
        hosts[0].load = good  # type: ignore[method-assign]
        caller.load(str(tmp_path / "state"))
        assert caller.update(["a"], [ACTIONS], signals=[2.0])[0]["weight"] == 2.0


@pytest.mark.parametrize("number", [1, 2])
def test_a_refused_reset_changes_nothing_and_training_goes_on(number: int, tmp_path: Path) -> None:
    def refuse(*arguments: object) -> None:
        raise RequestError("no such kind of weights; nothing was changed")

    with servers(number) as (caller, hosts):
        good = [host.reset for host in hosts]
        for host in hosts:
            host.reset = refuse  # type: ignore[method-assign]
        with pytest.raises(RemoteError, match="nothing was changed"):
            caller.reset(0)
        assert caller.update(["a"], [ACTIONS], signals=[2.0])[0]["weight"] == 2.0
        caller.save(str(tmp_path / "state"))
        for host, reset in zip(hosts, good, strict=True):
            host.reset = reset  # type: ignore[method-assign]


class ListListener:
    """A listener with its calls prepared."""

    known_loss: BaseException | None = None

    def __init__(self, *requests: Request) -> None:
        self.answers: list[Answer] = []
        self._calls = [Call(request, self.answers.append) for request in requests]

    def get(self) -> Call | None:
        return self._calls.pop(0) if self._calls else None

    def loss(self, timeout_s: float) -> BaseException | None:
        return self.known_loss

    def fail(self, error: BaseException) -> None:
        raise AssertionError("nobody failed")

    def close(self) -> None:
        """Nothing is open."""


def test_a_server_begins_only_when_it_serves_and_returns_when_the_clients_are_done() -> None:
    listener, updater = (
        ListListener(
            InfoRequest(), ScoreRequest(("raise",), (("a",),)), ResetRequest(1), CloseRequest()
        ),
        SumUpdater(),
    )
    server = Server(
        FakeHost(), {"sum": updater}, listener, make_thread_groups(1)[0], Peer(1, "llm server 0")
    )
    assert listener.answers == [] and not hasattr(updater, "_host")
    server.serve()
    assert [type(answer) for answer in listener.answers] == [InfoResult, Failure, Done, Done]


def test_a_server_tidies_behind_an_answer_after_so_many_seconds_of_updates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handlers, "_timed", lambda stats, _: {**stats, "seconds": 3.0})
    indices, data = torch.tensor([0]), {"signals": torch.ones(1)}
    update = UpdateRequest("sum", ("p",), (ACTIONS,), indices, 1, data)
    unknown = UpdateRequest("none", ("p",), (ACTIONS,), indices, 1, data)
    score = ScoreRequest(("p",), (ACTIONS,))
    listener = ListListener(update, score, score, unknown, update, update, score)
    group, seen = make_thread_groups(1)[0], listener.answers

    def tidy() -> None:
        seen.append(Done())

    monkeypatch.setattr(server, "return_freed_memory", tidy)
    me = Peer(1, "llm server 0")
    Server(FakeHost(), {"sum": SumUpdater()}, listener, group, me).serve()
    assert [type(answer) for answer in seen] == [
        UpdateResult, ScoreResult, ScoreResult, Failure, UpdateResult, Done, UpdateResult,
        ScoreResult,
    ]  # fmt: skip


class BrokenGroup:
    """The group of a server whose peer is gone."""

    rank, size = 0, 2

    def all_reduce_sum(self, tensor: torch.Tensor) -> None:
        raise RuntimeError("connection closed by peer")

    def barrier(self) -> None:
        raise RuntimeError("connection closed by peer")


@pytest.mark.parametrize(
    ("known", "expected"),
    [(None, "connection closed by peer"), (ConnectionError("rank 2 died"), "rank 2 died")],
)
def test_a_server_that_lost_its_peers_answers_and_ends(
    known: Exception | None, expected: str
) -> None:
    listener = ListListener(ResetRequest(1), InfoRequest())
    listener.known_loss = known
    server = Server(FakeHost(), {}, listener, BrokenGroup(), Peer(1, "llm server 0"))
    with pytest.raises(Exception, match=expected):
        server.serve()
    assert [type(answer) for answer in listener.answers] == [Failure]
