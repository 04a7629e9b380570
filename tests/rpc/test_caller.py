"""The caller's two halves, typed and in Lamorel's call shape, over servers in this process."""

import math
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from lamorel_ext.errors import ProtocolError, RemoteError, RequestError, RpcError
from lamorel_ext.llm.serving import Hosted, in_process
from lamorel_ext.rpc.caller import Caller
from lamorel_ext.rpc.clients import Clients, make_thread_clients
from lamorel_ext.rpc.passing import PassingClient
from lamorel_ext.rpc.transport import Handler, InProcessTransport, OneModelTransport
from lamorel_ext.training.shared import SharedClient
from lamorel_ext.types import (
    Answer,
    Done,
    GenerateRequest,
    LlmClient,
    Request,
    ScoreRequest,
    ScoreResult,
    UpdateRequest,
    UpdateResult,
)
from tests.rpc.rpc_fakes import ACTIONS, FakeHost, SumUpdater, fake_log_prob, threaded_launch


@pytest.fixture(params=[1, 2, 3])
def caller(request: pytest.FixtureRequest) -> Iterator[Caller]:
    with in_process(
        [Hosted(FakeHost(), {"sum": SumUpdater()}) for _ in range(request.param)]
    ) as made:
        yield made


def test_caller_is_an_llm_client(caller: Caller) -> None:
    client: LlmClient = caller
    assert client.info()["name"] == "fake"
    assert client.info()["num_servers"] == caller.num_servers


def test_servers_in_the_clients_process_have_no_memory_of_their_own(caller: Caller) -> None:
    assert not [name for name in caller.info() if name.startswith("memory")]


@pytest.mark.parametrize("num_prompts", [1, 2, 5])
def test_scores_come_back_in_the_order_of_the_prompts(caller: Caller, num_prompts: int) -> None:
    prompts = tuple("p" * (i + 1) for i in range(num_prompts))
    result = caller.score_batch(ScoreRequest(prompts, (ACTIONS,) * num_prompts, ("value",)))
    expected = [[fake_log_prob(prompt, action) for action in ACTIONS] for prompt in prompts]
    assert torch.equal(result.padded(), torch.tensor(expected))
    assert result.modules["value"].flatten().tolist() == [float(len(prompt)) for prompt in prompts]


def test_calls_can_overlap(caller: Caller) -> None:
    futures = [caller.submit_score(ScoreRequest((f"{'x' * n}",), (("a",),))) for n in range(1, 8)]
    assert [future.result(10).log_probs.item() for future in futures] == pytest.approx(
        [-n - 0.01 for n in range(1, 8)], abs=1e-6
    )


def asked_in_a_callback(caller: Caller, ask: Callable[[], Any]) -> Any:
    """What came of ``ask`` where an answer arrives: on the thread that reads answers, since none
    is given before the callback is there.
    """
    found: queue.Queue[Any] = queue.Queue()
    added, score = threading.Event(), FakeHost.score

    def score_then(host: FakeHost, *given: Any, **named: Any) -> ScoreResult:
        added.wait(10)
        return score(host, *given, **named)

    def again(_: Any) -> None:
        try:
            found.put(ask())
        except Exception as error:
            found.put(error)

    request = ScoreRequest(("a", "b", "c"), (ACTIONS,) * 3)
    with mock.patch.object(FakeHost, "score", score_then):
        caller.submit_score(request).add_done_callback(again)
        added.set()
        return found.get(timeout=10)


WAITING: dict[str, Callable[[Caller], Any]] = {
    "score": lambda caller: caller.score(["d"], [ACTIONS]),
    "generate": lambda caller: caller.generate(["d"]),
    "update": lambda caller: caller.update(["d"], [ACTIONS], signals=[1.0]),
    "info": lambda caller: caller.info(),
    "forget": lambda caller: caller.forget(),
}


@pytest.mark.parametrize("what", WAITING)
def test_a_callback_that_would_wait_for_itself_is_told_so(caller: Caller, what: str) -> None:
    error = asked_in_a_callback(caller, lambda: WAITING[what](caller))
    assert isinstance(error, RequestError) and "submit_score" in str(error)
    before = caller.stats
    assert len(caller.score(["d"], [ACTIONS])) == 1  # nothing is stuck, and nothing was sent
    assert (before["llm_calls"], before["update_calls"]) == (1, 0)


def test_a_callback_may_ask_for_more(caller: Caller) -> None:
    request = ScoreRequest(("d",), (ACTIONS,))
    pending = asked_in_a_callback(caller, lambda: caller.submit_score(request))
    assert pending.result(10).log_probs[0] == fake_log_prob("d", ACTIONS[0])


@pytest.mark.parametrize(("clients", "kind"), [(1, Future), (2, RequestError)])
def test_a_callback_is_told_where_asking_servers_of_one_model_would_wait_for_a_ticket(
    clients: int, kind: type
) -> None:
    request = ScoreRequest(("d",), (ACTIONS,))
    with threaded_launch(clients, 2) as launch:
        caller = Caller(OneModelTransport(launch.callers[0]._transport))
        found = asked_in_a_callback(caller, lambda: caller.submit_score(request))
        assert isinstance(found, kind)
        assert len(caller.score(["d"], [ACTIONS])) == 1  # nothing is stuck


def test_an_update_reaches_every_sample_once(caller: Caller) -> None:
    request = UpdateRequest(
        "sum", ("a", "b"), (ACTIONS,) * 2, torch.arange(2), 2, {"signals": torch.tensor([1.0, 4.0])}
    )
    assert caller.update_batch(request).stats["weight"] == 5.0
    assert caller.update_batch(request).stats["weight"] == 10.0
    caller.reset(3)
    assert caller.update_batch(request).stats["weight"] == 5.0


def test_a_saved_state_comes_back_on_every_server(caller: Caller, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"contexts": ["a"], "candidates": [ACTIONS], "signals": [2.0]}
    caller.update(**arguments)
    caller.save(str(tmp_path / "state"))
    caller.update(**arguments)
    caller.load(str(tmp_path / "state"))
    assert [stats["weight"] for stats in caller.update(**arguments)] == [4.0] * caller.num_servers


def test_lamorel_score_gives_one_tensor_per_context(caller: Caller) -> None:
    scores = caller.score(["one", "three"], [["a"], ["b", "cc"]])
    assert [score.tolist() for score in scores] == [  # type: ignore[union-attr]
        pytest.approx([-3.01], abs=1e-5),
        pytest.approx([-5.01, -5.02], abs=1e-5),
    ]


def test_lamorel_score_with_module_functions_gives_dictionaries(caller: Caller) -> None:
    rows: Any = caller.score(
        ["one", "three"], [["a"], ["b", "cc"]], additional_module_function_keys=["value"]
    )
    assert [sorted(row) for row in rows] == [["__score", "value"]] * 2
    assert rows[1]["__score"].shape == (2,) and rows[1]["value"].tolist() == [[5.0]]


def test_lamorel_module_functions_need_no_candidates(caller: Caller) -> None:
    rows = caller.custom_module_fns(["value"], contexts=["one", "three"])
    assert [list(row) for row in rows] == [["value"]] * 2 and [
        row["value"][0].item() for row in rows
    ] == [3.0, 5.0]
    with_score = caller.custom_module_fns(
        ["__score", "value"],
        contexts=["one"],
        candidates=[["a", "b"]],
        require_grad=False,
        minibatch_size=4,
    )
    assert with_score[0]["__score"].shape == (2,)


@pytest.mark.parametrize(("return_logprobs", "suffix"), [(False, "probability"), (True, "logprob")])
def test_lamorel_generate_gives_a_dictionary_per_sequence(
    caller: Caller, return_logprobs: bool, suffix: str
) -> None:
    rows = caller.generate(
        ["p", "qq", "r"], return_logprobs=return_logprobs, num_return_sequences=2, do_sample=True
    )
    assert [len(sequences) for sequences in rows] == [2, 2, 2]
    first, second = rows[1]
    assert (first["text"], second["text"]) == ("qq+0+0", "qq+0+1")
    assert len(first["tokens"]) == 2 and len(second["tokens"]) == 3
    # Each token has probability one half: two tokens 1/4, three tokens 1/8.
    expected = [math.log(0.25), math.log(0.125)] if return_logprobs else [0.25, 0.125]
    assert [float(row[f"text_{suffix}"]) for row in (first, second)] == pytest.approx(
        expected, abs=1e-6
    )
    assert second[f"tokens_{suffix}"].shape == (3,)
    assert set(first) == {"text", "tokens", f"text_{suffix}", f"tokens_{suffix}"}


def test_lamorel_update_gives_one_result_per_server(caller: Caller) -> None:
    results = caller.update(
        ["a", "b", "c"],
        [ACTIONS] * 3,
        signals=torch.tensor([1.0, 2.0, 3.0]),
        updater="sum",
        steps=2,
    )
    assert [stats["weight"] for stats in results] == [6.0] * caller.num_servers
    assert sum(stats["shard"] for stats in results) == 3


class Recorder:
    """A server that keeps the last request."""

    def __init__(self) -> None:
        self.last: Any = None

    def __call__(self, request: Any) -> UpdateResult:
        self.last = request
        return UpdateResult()


def test_lamorel_update_tells_data_from_options() -> None:
    server = Recorder()
    with Caller(InProcessTransport([server])) as caller:
        caller.update(
            ["a", "b"],
            [["x"], ["x"]],
            actions=[1, 0],
            advantages=np.array([0.5, 1.5]),
            logprobs=[torch.tensor(0.25), torch.tensor(0.75)],
            hidden=torch.ones(2, 3),
            lr=1e-4,
            epochs=np.int64(4),
            clip=torch.tensor(0.5),
            path="here",
            save=True,
        )
    request = server.last
    assert request.updater == "" and request.total == 2 and request.indices.tolist() == [0, 1]
    assert {
        name: (tensor.dtype, tensor.tolist())
        for name, tensor in request.data.items()
        if name != "hidden"
    } == {
        "actions": (torch.int64, [1, 0]),
        "advantages": (torch.float64, [0.5, 1.5]),
        "logprobs": (torch.float32, [0.25, 0.75]),
    }
    assert request.data["hidden"].shape == (2, 3)
    assert request.options == {"lr": 1e-4, "epochs": 4, "clip": 0.5, "path": "here", "save": True}
    assert request.candidates[0] is request.candidates[1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: c.score([], []), "prompts is empty"),
        (lambda c: c.score("prompt", [["a"]]), "contexts is a single string"),
        (lambda c: c.score(["a", 3], [["a"], ["a"]]), r"prompts\[1\] is 3, expected a string"),
        (lambda c: c.score(["a", "b"], [["a"]]), "candidates has 1 lists, expected 2"),
        (lambda c: c.score(["a", "b"], [["a"], []]), r"candidates\[1\] is empty"),
        (
            lambda c: c.score(["a", "b"], [["a"], "turn left"]),
            r"candidates\[1\] is 'turn left', expected a list of strings",
        ),
        (lambda c: c.score(["a"], [["a", None]]), r"candidates\[0\]\[1\] is None"),
        (lambda c: c.score(["a"], [["a"]], require_grad=True), "require_grad=True has no meaning"),
        (lambda c: c.score(["a"], [["a"]], temperature=1.0), "temperature=1.0 has no meaning"),
        (lambda c: c.custom_module_fns([], ["a"]), "nothing is asked for"),
        (
            lambda c: c.score(["a"], [["b"]], "value"),
            "additional_module_function_keys is a single string",
        ),
        (lambda c: c.custom_module_fns("value", ["a"]), "module_function_keys is a single string"),
        (lambda c: c.generate([]), "prompts is empty"),
        (lambda c: c.generate(["a"], bad_words=["b"]), "bad_words is .* expected a number"),
        (lambda c: c.update([], []), "prompts is empty"),
        (
            lambda c: c.update(["a", "b"], [["a"]] * 2, actions=[1]),
            "actions has 1 rows, expected 2",
        ),
        (
            lambda c: c.update(["a", "b"], [["a"]] * 2, names=["x", "y"]),
            "names is no tensor, array or list of numbers",
        ),
        (lambda c: c.update(["a", "b"], [["a"]] * 2, ragged=[[1], [1, 2]]), "ragged is no tensor"),
        (lambda c: c.update(["a"], [["a"]], path=None), "path is None"),
        (lambda c: c.update(["a"], [["a"]], updater=3), "updater is 3"),
        (
            lambda c: c.generate_batch(GenerateRequest(("a",), {"x": [1]})),
            r"options\['x'\] is \[1\]",
        ),  # type: ignore[dict-item]
    ],
)
def test_what_can_never_be_answered_is_refused_before_anything_is_sent(
    call: Any, message: str
) -> None:
    server = Recorder()
    with Caller(InProcessTransport([server])) as caller:
        with pytest.raises(RequestError, match=message):
            call(caller)
    assert server.last is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"indices": torch.tensor([0, 2])}, "lie between 0 and 2, expected 0 to 1"),
        ({"indices": torch.tensor([1, 1])}, "names a place twice"),
        ({"indices": torch.tensor([0.0, 1.0])}, "expected torch.int64"),
        ({"total": 0}, "total is 0"),
        ({"data": {"x": torch.zeros(())}}, "'x'. has no rows"),
        ({"data": {"x": torch.zeros(3, 2)}}, "'x'. has 3 rows, expected 2"),
    ],
)
def test_an_inconsistent_update_request_names_what_is_wrong(
    changes: dict[str, Any], message: str
) -> None:
    good: dict[str, Any] = {
        "updater": "sum",
        "prompts": ("a", "b"),
        "candidates": (("x",),) * 2,
        "indices": torch.arange(2),
        "total": 2,
    }
    with Caller(InProcessTransport([Recorder()])) as caller:
        with pytest.raises(RequestError, match=message):
            caller.update_batch(UpdateRequest(**{**good, **changes}))


@pytest.mark.parametrize(
    "call",
    [
        lambda caller: caller.update(["a"], candidates=None),
        lambda caller: caller.update(["a"], candidates=3),
        lambda caller: caller.update(None, candidates=[["x"]]),
        lambda caller: caller.update(["a"], candidates="x"),
        lambda caller: caller.score(contexts=3, candidates=[["x"]]),
        lambda caller: caller.generate(contexts=None),
        lambda caller: caller.custom_module_fns(None, ["a"]),
    ],
)
def test_what_is_no_list_is_refused_by_its_name(caller: Caller, call: Any) -> None:
    with pytest.raises(
        RequestError, match="(candidates|contexts|module_function_keys) is .*, expected a list"
    ):
        call(caller)


def test_an_exception_on_a_server_is_raised_with_its_traceback(caller: Caller) -> None:
    with pytest.raises(RemoteError) as raised:
        caller.score(["fine", "raise here"], [["a"], ["a"]])
    assert raised.value.type_name == "ZeroDivisionError" and "llm server" in raised.value.role
    assert (
        "the fake host was asked to: raise here" in raised.value.remote_traceback
        and "rpc_fakes.py" in raised.value.remote_traceback
    )
    assert caller.score(["fine"], [["a"]])[0].shape == (1,)  # type: ignore[union-attr]


def test_an_answer_of_another_kind_is_a_protocol_error() -> None:
    with Caller(InProcessTransport([lambda request: Done()])) as caller:
        with pytest.raises(
            ProtocolError, match="expected ScoreResult from every server, got .'Done'"
        ):
            caller.score(["a"], [["a"]])


def test_counters_tell_calls_prompts_tokens_and_seconds(caller: Caller) -> None:
    began = time.perf_counter()
    caller.score(["sleep 0.1", "b"], [["a"], ["a"]])
    caller.generate(["abc"])
    caller.update(["a"], [["a"]], signals=[1.0])
    elapsed = time.perf_counter() - began
    stats = caller.stats
    # Tokens of the fake host: characters of the scored prompts, 9 + 1, and two generated ones.
    assert (
        stats["llm_calls"],
        stats["llm_prompts"],
        stats["llm_tokens"],
        stats["update_calls"],
    ) == (2, 3, 12, 1)
    assert stats["server_seconds"] >= 0.1 and stats["transport_seconds"] > 0
    assert stats["server_seconds"] + stats["transport_seconds"] <= elapsed


def test_without_a_launch_there_is_no_group_of_clients(caller: Caller) -> None:
    with pytest.raises(RpcError, match="no group of RL processes"):
        caller.get_rl_dist_group()


# --- several clients, and shards cut by prompt ----------------------------------------------------


def servers(number: int) -> list[Hosted]:
    return [Hosted(FakeHost(), {"sum": SumUpdater()}) for _ in range(number)]


@pytest.mark.parametrize("num_clients", [1, 2, 5])
@pytest.mark.parametrize("shards", ["contiguous", "distinct"])
def test_the_shares_of_several_clients_are_the_shards_of_one(shards: Any, num_clients: int) -> None:
    prompts = tuple("p" * length for length in (3, 1, 3, 2, 1, 5, 4))
    request = ScoreRequest(prompts, (ACTIONS,) * len(prompts), ("value",))
    with in_process(servers(3), shards) as one, in_process(several := servers(3), shards) as many:
        expected = one.score_batch(request)
        asked = [many.submit_share(request, client, num_clients) for client in range(num_clients)]
        answers = {server: answer for share in asked for server, answer in share.own().items()}
        found = asked[-1].whole([answers[server] for server in sorted(answers)])
        assert torch.equal(found.log_probs, expected.log_probs) and found.counts == expected.counts
        assert torch.equal(found.modules["value"], expected.modules["value"])
        assert found.stats["tokens"] == expected.stats["tokens"]
        assert [len(hosted.host.log) for hosted in several] == [1, 1, 1]  # type: ignore[attr-defined]


def test_clients_with_requests_of_their_own_ask_equal_prompts_of_one_server() -> None:
    asked: dict[str, set[int]] = {}

    def handler(server: int) -> Handler:
        def answer(request: Request) -> Answer:
            assert isinstance(request, ScoreRequest)
            for prompt in request.prompts:
                asked.setdefault(prompt, set()).add(server)
            return FakeHost().score(request.prompts, request.candidates)

        return answer

    prompts = [f"prompt {number}" for number in range(12)]
    transport = InProcessTransport([handler(server) for server in range(3)])
    for rank in range(3):
        caller = Caller(transport, rank, clients=make_thread_clients(3)[rank], shards="distinct")  # type: ignore[arg-type]
        caller.score(prompts[2 * rank : 2 * rank + 8], [ACTIONS] * 8)
        caller.score(prompts[rank : rank + 2] * 2, [ACTIONS] * 4)
    transport.close()
    assert len(asked) == 12 and all(len(servers_) == 1 for servers_ in asked.values())
    assert {place for servers_ in asked.values() for place in servers_} == {0, 1, 2}


def test_shards_cut_by_prompt_ask_equal_prompts_of_one_server_and_the_same_one_again() -> None:
    asked: list[tuple[str, ...]] = []

    class Listening(FakeHost):
        def score(self, prompts: Any, *arguments: Any, **options: Any) -> Any:
            asked.append(tuple(prompts))
            return super().score(prompts, *arguments, **options)

    with in_process(
        [Hosted(Listening(), {"sum": SumUpdater()}) for _ in range(2)], "distinct"
    ) as caller:
        caller.score(["a", "bb", "a", "a"], [ACTIONS] * 4)
        assert sorted(asked) == [("a", "a", "a"), ("bb",)]
        asked.clear()
        caller.score(["bb", "a"], [ACTIONS] * 2)
        assert sorted(asked) == [("a",), ("bb",)]
        caller.forget()
        asked.clear()
        caller.score(["bb"], [ACTIONS])
        caller.score(["ccc", "a", "bb"], [ACTIONS] * 3)
        assert sorted(asked) == [("a",), ("bb",), ("ccc", "bb")]


def test_every_server_is_told_whether_to_forget_the_reference_too() -> None:
    told: list[bool] = []

    class Forgetful(FakeHost):
        def forget(self, reference: bool = True) -> None:
            told.append(reference)

    with in_process([Hosted(Forgetful(), {}) for _ in range(2)]) as caller:
        for client in (caller, PassingClient(caller), SharedClient(caller, Clients())):
            client.forget(reference=False)
            client.forget()
            assert sorted(told) == [False, False, True, True]
            told.clear()
