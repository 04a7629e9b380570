"""Requests of several clients that wait at a server: answered together, each as if alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lamorel_ext.errors import RemoteError
from lamorel_ext.llm.module_functions import BaseModuleFunction, ValueHead
from lamorel_ext.llm.server import ALONE, Merging
from lamorel_ext.rpc.tcp_listener import Call
from lamorel_ext.rpc.transport import Inbox
from lamorel_ext.types import ForgetRequest, Request, ScoreRequest, ScoreResult
from tests.llm.tiny_models import ACTIONS, PROMPTS, make_causal, make_host, make_t5
from tests.rpc.rpc_fakes import FakeHost, ThreadedLaunch, fake_log_prob, threaded_launch

MERGING = Merging(prompts=8)


def asking(*prompts: str, modules: tuple[str, ...] = ()) -> ScoreRequest:
    return ScoreRequest(prompts, (("a", "bb"),) * len(prompts), modules)


class MergingHost(FakeHost):
    """Notes what it answers together."""

    def score_together(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        self.log.append(f"together {' | '.join(','.join(each.prompts) for each in requests)}")
        return [self.score(each.prompts, each.candidates, each.modules) for each in requests]


def arrive(launch: ThreadedLaunch, number: int) -> None:
    """Wait until so many requests wait at the server."""
    until = time.monotonic() + 10
    while len(launch.listeners[0]._inbox._ready) < number:
        assert time.monotonic() < until, "a request does not arrive"
        time.sleep(0.001)


def busy(launch: ThreadedLaunch) -> FakeHost:
    """The only server, at work on something else."""
    host = launch.hosts[0]
    launch.callers[0].submit_score(asking("wait"))
    assert host.busy.wait(10)
    return host


def send(launch: ThreadedLaunch, requests: Sequence[tuple[int, ScoreRequest]]) -> list[Future[Any]]:
    """Each request from its client, in this order."""
    sent = []
    for number, (client, request) in enumerate(requests, 1):
        sent.append(launch.callers[client].submit_score(request))
        arrive(launch, number)
    return sent


# --- over sockets ---------------------------------------------------------------------------------


def test_what_two_clients_wait_for_is_answered_at_once_and_each_gets_its_own() -> None:
    with threaded_launch(2, 1, hosts=[MergingHost()], merging=MERGING) as launch:
        host = busy(launch)
        asked = [asking("x", "yyy", modules=("value",)), asking("zz", modules=("value",))]
        sent = send(launch, list(enumerate(asked)))
        host.gate.set()
        for request, future in zip(asked, sent, strict=True):
            result = future.result(10)
            expected = [fake_log_prob(p, c) for p in request.prompts for c in ("a", "bb")]
            assert torch.equal(result.log_probs, torch.tensor(expected))
            assert result.modules["value"].shape == (len(request.prompts), 1)
            assert result.stats["merged"] == 1 and result.stats["queue_seconds"] > 0
        assert host.log[1] == "together x,yyy | zz"
        assert [caller.stats["merged_calls"] for caller in launch.callers] == [1, 1]
        assert all(caller.stats["queue_seconds"] > 0 for caller in launch.callers)
    assert launch.errors == {}


@pytest.mark.parametrize(
    ("requests", "together"),
    [
        ([(0, asking("x")), (0, asking("y"))], []),
        ([(0, asking("x")), (1, asking("y", modules=("value",)))], []),
        ([(0, asking("x")), (1, asking(*"abcdefgh"))], []),
        (
            [(0, asking("x")), (1, asking("y")), (0, asking("z")), (1, asking("u"))],
            ["x | y", "z | u"],
        ),
        ([(0, asking("x")), (0, asking("y")), (1, asking("z"))], ["y | z"]),
    ],
)
def test_only_requests_of_several_clients_for_the_same_are_put_together(
    requests: list[tuple[int, ScoreRequest]], together: list[str]
) -> None:
    with threaded_launch(2, 1, hosts=[MergingHost()], merging=MERGING) as launch:
        host = busy(launch)
        sent = send(launch, requests)
        host.gate.set()
        for (_, request), future in zip(requests, sent, strict=True):
            assert len(future.result(10).counts) == len(request.prompts)
        assert [each[9:] for each in host.log if each.startswith("together")] == together


def test_nothing_is_put_together_where_the_key_says_so() -> None:
    with threaded_launch(2, 1, hosts=[MergingHost()], merging=ALONE) as launch:
        host = busy(launch)
        sent = send(launch, [(0, asking("x")), (1, asking("y"))])
        host.gate.set()
        assert [future.result(10).stats.get("merged", 0.0) for future in sent] == [0, 0]


@pytest.mark.parametrize("barrier", ["update", "reset", "forget", "generate"])
def test_no_request_overtakes_what_came_between(barrier: str) -> None:
    with threaded_launch(2, 1, hosts=[MergingHost()], merging=MERGING) as launch:
        host = busy(launch)
        weights = host.weights_version
        first = send(launch, [(0, asking("x"))])[0]
        between = {
            "update": lambda: launch.callers[1].update(["u"], [("a",)], signals=[1.0]),
            "reset": lambda: launch.callers[1].reset(7),
            "forget": lambda: launch.callers[1].forget(),
            "generate": lambda: launch.callers[1].generate(["g"]),
        }
        thread = threading.Thread(target=between[barrier], daemon=True)
        thread.start()
        arrive(launch, 2)
        second = launch.callers[0].submit_score(asking("y"))
        arrive(launch, 3)
        host.gate.set()
        for future in (first, second):
            assert not future.result(10).stats.get("merged")
        thread.join(10)
        assert not [line for line in host.log if line.startswith("together")]
        if barrier in ("update", "reset"):
            own = [line for line in host.log if line.startswith(barrier)]
            places = [host.log.index(line) for line in ("score x", own[0], "score y")]
            assert places == sorted(places) and host.weights_version == weights + 1


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_an_error_of_one_harms_no_other(bad: int) -> None:
    with threaded_launch(3, 1, hosts=[MergingHost()], merging=MERGING) as launch:
        host = busy(launch)
        prompts = ["raise this" if client == bad else f"p{client}" for client in range(3)]
        sent = send(launch, [(client, asking(prompts[client])) for client in range(3)])
        host.gate.set()
        for client, future in enumerate(sent):
            if client == bad:
                with pytest.raises(RemoteError, match="the fake host was asked to: raise this"):
                    future.result(10)
            else:
                assert future.result(10).log_probs[0] == fake_log_prob(prompts[client], "a")
        assert host.log[1] == f"together {' | '.join(prompts)}"


def test_a_server_waits_for_other_clients_only_while_there_are_some() -> None:
    merging = Merging(prompts=8, wait_s=1000)
    with threaded_launch(2, 1, hosts=[MergingHost()], merging=merging) as launch:
        first = launch.callers[0].submit_score(asking("x"))
        assert not first.done()
        launch.callers[1].score_batch(asking("y"))  # for nobody else: every client has asked
        assert first.result(10).stats["merged"] == 1
        first = launch.callers[0].submit_score(asking("x"))
        launch.callers[1].close()
        assert first.result(10).stats.get("merged", 0.0) == 0
        assert launch.callers[0].score_batch(asking("z")).stats.get("merged", 0.0) == 0
    assert launch.errors == {}


# --- the order of a queue -------------------------------------------------------------------------


@given(st.lists(st.integers(0, 5), min_size=1), st.integers(0, 6))
def test_what_is_taken_together_is_a_beginning_of_the_queue(items: list[int], most: int) -> None:
    inbox: Inbox[int] = Inbox()
    for item in items:
        inbox.put(item)
    order: list[int] = []
    for _ in items:
        if len(order) == len(items):
            break
        first = inbox.get()
        behind = inbox.get_behind([first], lambda taken, new: new > taken[-1], most, 0.0)
        assert len(behind) <= most and [first, *behind] == sorted({first, *behind})
        order += [first, *behind]
    assert order == items


@given(st.lists(st.sampled_from(["a", "b", "known", "heads", "forget"]), min_size=2, max_size=2))
def test_which_requests_join(kinds: list[str]) -> None:
    requests: dict[str, Request] = {
        "a": asking("p"),
        "b": asking("q"),
        "known": ScoreRequest(("p",), (("a",),), known=(0,)),
        "heads": asking("p", modules=("value",)),
        "forget": ForgetRequest(),
    }
    first, second = (Call(requests[kind], lambda answer: None) for kind in kinds)
    expected = set(kinds) <= {"a", "b"} or set(kinds) == {"heads"}
    joined = MERGING.may_begin(first.request) and MERGING.joins([first], second)
    assert joined == expected


# --- the same answers -----------------------------------------------------------------------------


class Whole(BaseModuleFunction):
    """One number per pair, from a whole pass."""

    def initialize(self) -> None:
        """Nothing to draw."""

    def forward(self, forward_outputs: Any, minibatch: Any, contexts: Any, **_: Any) -> Any:
        return forward_outputs["logits"][:, 0].amax(-1, keepdim=True)


BATCHES = (
    ((0, 1, 2, 1), (ACTIONS, ("drop",), ("",), ("drop",))),
    ((1, 3, 0), (("drop",), ACTIONS, ACTIONS)),
    ((4, 1), (("go forward and turn left", "go forward"), ("drop",))),
)


@pytest.mark.parametrize("model", ["t5", "llama", "gpt2", "bloom"])
@pytest.mark.parametrize(
    ("modules", "with_score"),
    [
        ((), True),
        (("value",), True),
        (("value",), False),
        (("value", "whole"), True),
        (("whole",), False),
    ],
)
@pytest.mark.parametrize("cache_size, minibatch_size", [(0, 192), (100, 192), (100, 2)])
def test_merged_answers_and_costs_are_those_of_one_request_after_the_other(
    model: str, modules: tuple[str, ...], with_score: bool, cache_size: int, minibatch_size: int
) -> None:
    def host() -> Any:
        return make_host(
            make_t5() if model == "t5" else make_causal(model),
            {"value": ValueHead(8), "whole": Whole()},
            cache_size=cache_size,
            minibatch_size=minibatch_size,
        )

    requests = [
        ScoreRequest(tuple(PROMPTS[row] for row in rows), candidates, modules, with_score)
        for rows, candidates in BATCHES
    ]
    one, several = host(), host()
    for host_ in (one, several):  # something is remembered already
        host_.score(PROMPTS[:1], [ACTIONS], modules, with_score)
    expected = [one.score(e.prompts, e.candidates, modules, with_score) for e in requests]
    for found, alone in zip(several.score_together(requests), expected, strict=True):
        assert found.counts == alone.counts
        torch.testing.assert_close(found.log_probs, alone.log_probs, rtol=0, atol=1e-12)
        for name in modules:
            torch.testing.assert_close(
                found.modules[name], alone.modules[name], rtol=0, atol=1e-12, check_dtype=True
            )
        counters = {name: value for name, value in found.stats.items() if name != "seconds"}
        assert counters == {name: alone.stats[name] for name in counters} and len(counters) == 4


def test_in_single_precision_merged_answers_differ_in_the_last_digits_at_most() -> None:
    requests = [ScoreRequest(tuple(PROMPTS[row] for row in rows), own) for rows, own in BATCHES]
    one, several = (make_host(make_t5(dtype=torch.float32), cache_size=0) for _ in range(2))
    for found, request in zip(several.score_together(requests), requests, strict=True):
        alone = one.score(request.prompts, request.candidates)
        torch.testing.assert_close(found.log_probs, alone.log_probs, rtol=1e-6, atol=1e-6)
