"""Several RL clients train one run: the curve, the costs, the checkpoints and the environments are
those of one client.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.runs.build import clients_of
from lamorel_ext.config import Config, StageArgs
from lamorel_ext.envs.babyai.batched import make_batched_env
from lamorel_ext.errors import (
    CheckpointError,
    ConfigError,
    LamorelExtError,
    LevelError,
    RemoteError,
    RpcError,
    UpdateError,
)
from lamorel_ext.processes import stopping
from lamorel_ext.rpc.caller import Caller
from lamorel_ext.rpc.clients import Clients, ThreadClients, make_thread_clients
from lamorel_ext.rpc.transport import InProcessTransport
from lamorel_ext.training.loop import train
from lamorel_ext.training.shared import LedRecorder, SharedBatch, SharedClient, agreed_stop
from tests.training import test_training
from tests.training.student_fakes import (
    CorridorEnv,
    MemoryRecorder,
    TableLlm,
    make_corridor,
    small_config,
)
from tests.training.test_training import FragileRecorder, Stops, without_seconds

ARMS: dict[str, Any] = dict(test_training.ARMS)
FEW_COPIES = {"env": {"num_envs": 1}}
CURRICULUM = {"env": {"curriculum": (StageArgs("Short", steps=40), StageArgs("Middle", steps=30))}}
MORE: dict[str, Any] = {
    "pipeline": {"run": {"pipeline": True}, "env": {"num_envs": 5}},
    "pipeline, llm_policy": {**ARMS["llm_policy"], "run": {"pipeline": True}},
    "curriculum": CURRICULUM,
    "one copy, every step": {
        **FEW_COPIES,
        "feedback": {"signal": "previous", "every": 1},
        "run": {"total_steps": 32},
    },
    "posterior": {"feedback": {"signal": "gae", "credit": "posterior"}},
    "rival": {"feedback": {"signal": "td", "credit": "rival"}},
    "traces": {"run": {"trace_every": 1}},
}
EVERYTHING: dict[str, Any] = {**ARMS, **MORE}
TELLING = (
    *("llm_policy", "llm_policy+online", "teacher_feedback", "random", "shuffled", "free"),
    *("teacher_random", "drrn", "cloning", *MORE),
)
"""One for each agent, signal and granularity that draws or sums in its own way."""


def together(size: int, work: Callable[[Clients], Any]) -> list[Any]:
    """What ``work`` gives, or raises, on each of several clients."""
    found: list[Any] = [None] * size

    def one(clients: Clients) -> None:
        try:
            found[clients.rank] = work(clients)
        except BaseException as error:
            found[clients.rank] = error

    threads = [
        threading.Thread(target=one, args=(each,)) for each in make_thread_clients(size, 300.0)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600.0)
        assert not thread.is_alive(), "a client hangs"
    return found


def run(
    size: int,
    recorder: MemoryRecorder,
    factory: Any = make_corridor,
    llm: TableLlm | None = None,
    **groups: Any,
) -> list[Any]:
    """Train on that many clients; gives what ``train`` gave or raised on each."""
    config = small_config(**groups)
    llm = llm or TableLlm()

    def client(clients: Clients) -> Any:
        led = LedRecorder(recorder if clients.rank == 0 else None, clients)
        own = SharedClient(llm, clients) if config.asks_llm else None
        return train(config, own, led, factory, clients)

    return together(size, client)


def alone(recorder: MemoryRecorder, factory: Any = make_corridor, **groups: Any) -> MemoryRecorder:
    """The same on one client."""
    config = small_config(**groups)
    train(config, TableLlm() if config.asks_llm else None, recorder, factory)
    return recorder


@pytest.mark.parametrize("name", TELLING)
def test_the_curve_of_several_clients_is_that_of_one(name: str, tmp_path: Path) -> None:
    one = alone(MemoryRecorder(tmp_path / "one"), **EVERYTHING[name])
    for size in (
        (2, 4) if name in ("llm_policy", "teacher_feedback", "one copy, every step") else (3,)
    ):
        several = MemoryRecorder(tmp_path / str(size))
        summaries = run(size, several, **EVERYTHING[name])
        assert not [each for each in summaries if isinstance(each, BaseException)]
        assert without_seconds(several.rows) == without_seconds(one.rows), size
        assert several.last is not None and one.last is not None
        assert [summary.env_steps for summary in summaries] == [one.last.env_steps] * size
        for key, tensor in one.last.tensors.items():
            assert torch.equal(tensor, several.last.tensors[key]), key
        assert several.traces.keys() == one.traces.keys()
        assert all(
            trace.text() == one.traces[step].text() for step, trace in several.traces.items()
        )


@pytest.mark.parametrize(
    "name, size",
    [
        ("teacher_feedback", 1),
        ("teacher_feedback", 4),
        ("llm_policy", 3),
        ("previous_online", 4),
        ("curriculum", 1),
        ("drrn", 4),
        ("pipeline", 3),
    ],
)
def test_a_run_of_two_clients_goes_on_with_another_number(
    name: str, size: int, tmp_path: Path
) -> None:
    one = alone(MemoryRecorder(tmp_path / "one"), **EVERYTHING[name])
    fragile = FragileRecorder(tmp_path / "several")
    first, second = run(2, fragile, **EVERYTHING[name])
    assert isinstance(first, Stops) and isinstance(second, RemoteError) and fragile.last is not None
    fragile.rollouts_left = 9
    if size == 1:
        alone(fragile, **EVERYTHING[name])
    else:
        run(size, fragile, **EVERYTHING[name])
    assert without_seconds(fragile.rows) == without_seconds(one.rows)


def test_each_copy_is_stepped_by_one_client_and_evaluation_by_the_first_alone(
    tmp_path: Path,
) -> None:
    made: list[tuple[bool, range | None]] = []

    def factory(config: Config, held_out: bool, copies: range | None = None) -> CorridorEnv:
        made.append((held_out, copies))
        return make_corridor(config, held_out, copies)

    run(3, MemoryRecorder(tmp_path), factory, env={"num_envs": 5})
    assert sorted(
        copies.start for held_out, copies in made if not held_out and copies is not None
    ) == [0, 2, 4]
    assert [copies for held_out, copies in made if held_out] == [None]


def test_every_request_reaches_the_llm_once(tmp_path: Path) -> None:
    one, several = TableLlm(), TableLlm()
    config = small_config(feedback={"signal": "gae"})
    train(config, one, MemoryRecorder(tmp_path / "one"), make_corridor)
    run(4, MemoryRecorder(tmp_path / "several"), llm=several, feedback={"signal": "gae"})
    assert [type(each) for each in several.requests] == [type(each) for each in one.requests]
    assert several.requests[3] == one.requests[3] and several.reset_seeds == one.reset_seeds


# --- what goes wrong ------------------------------------------------------------------------------


class BrokenEnv(CorridorEnv):
    def step(self, actions: np.ndarray) -> Any:
        raise LevelError("the floor is gone")


def test_an_environment_that_fails_on_one_client_ends_the_run_on_all(tmp_path: Path) -> None:
    def factory(config: Config, held_out: bool, copies: range | None = None) -> CorridorEnv:
        last = copies is not None and copies.start == 2
        return BrokenEnv(2, 0, 2) if last else make_corridor(config, held_out, copies)

    first, second = run(2, MemoryRecorder(tmp_path), factory)
    assert isinstance(second, LevelError)
    assert isinstance(first, RemoteError) and (first.role, first.type_name) == (
        "rl client 1",
        "LevelError",
    )


class LeavingEnv(CorridorEnv):
    """An environment of somebody's own, part of which takes the process for its own."""

    def step(self, actions: np.ndarray) -> Any:
        raise SystemExit(0)


def test_an_exit_in_the_middle_of_a_run_is_a_failure_whatever_its_status(tmp_path: Path) -> None:
    def factory(config: Config, held_out: bool, copies: range | None = None) -> CorridorEnv:
        return LeavingEnv(4, 0)

    with pytest.raises(LamorelExtError, match=r"clients.py, line \d+, ended.*SystemExit\(0\)"):
        train(small_config(), TableLlm(), MemoryRecorder(tmp_path), factory)


def test_an_exit_on_one_client_is_told_there_and_ends_the_other(tmp_path: Path) -> None:
    def factory(config: Config, held_out: bool, copies: range | None = None) -> CorridorEnv:
        last = copies is not None and copies.start == 2
        return LeavingEnv(2, 0, 2) if last else make_corridor(config, held_out, copies)

    def client(clients: Clients) -> Any:
        led = LedRecorder(MemoryRecorder(tmp_path) if clients.rank == 0 else None, clients)
        try:
            return train(small_config(), SharedClient(TableLlm(), clients), led, factory, clients)
        except LamorelExtError:
            barrier.abort()  # as the end of a process breaks its connections
            raise

    found: list[Any] = [None, None]
    barrier, table = threading.Barrier(2, timeout=300.0), [b"", b""]

    def one(rank: int) -> None:
        try:
            client(Clients(ThreadClients(rank, table, barrier)))
        except BaseException as error:
            found[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600.0)
    assert "SystemExit(0)" in str(found[1]) and isinstance(found[1], LamorelExtError)
    assert isinstance(found[0], RpcError)


def test_what_failed_here_is_said_although_no_other_client_is_left_to_hear_it() -> None:
    barrier = threading.Barrier(2)
    barrier.abort()
    clients = Clients(ThreadClients(0, [b"", b""], barrier))

    def work() -> None:
        raise LevelError("the floor is gone")

    with pytest.raises(LevelError, match="the floor is gone"):
        clients.share(work)
    with pytest.raises(RpcError, match="another client is gone"):
        clients.share(lambda: 1)


def test_an_update_that_fails_ends_the_run_on_all(tmp_path: Path) -> None:
    class Fails(TableLlm):
        def update_batch(self, request: Any) -> Any:
            raise UpdateError("the loss is not finite")

    first, second = run(2, MemoryRecorder(tmp_path), llm=Fails(), **ARMS["llm_policy"])
    assert (
        isinstance(first, UpdateError)
        and isinstance(second, RemoteError)
        and second.type_name == "UpdateError"
    )


def test_a_full_disk_of_the_first_client_ends_the_run_on_all(tmp_path: Path) -> None:
    class Full(MemoryRecorder):
        def write(self, row: Any) -> None:
            raise CheckpointError("no space left")

    first, second = run(2, Full(tmp_path))
    assert (
        isinstance(first, CheckpointError)
        and isinstance(second, RemoteError)
        and "no space left" in str(second)
    )


def test_one_of_several_clients_cannot_train_by_itself(tmp_path: Path) -> None:
    def work(clients: Clients) -> None:
        group: Any = clients._group
        with Caller(InProcessTransport([]), clients=group) as caller:
            train(small_config(), caller, MemoryRecorder(tmp_path), make_corridor)

    for error in together(2, work):
        assert isinstance(
            error, ConfigError
        ) and "n_rl_processes: several clients train a run with" in str(error)


@pytest.mark.parametrize(
    ("of_second", "said"),
    [
        ([{"env": {"num_envs": 8}}], "env.num_envs: 8 at rl client 1, "),
        ([{}, {}], "rl client 1 was started for 2 runs, rl client 0 for 1"),
        ([{"run": {"output_dir": "elsewhere", "num_threads": 3}}], ""),
    ],
)
def test_clients_that_were_started_for_other_runs_are_told_so(
    of_second: list[dict[str, Any]], said: str
) -> None:
    def work(clients: Clients) -> Any:
        runs = [small_config(**groups) for groups in (of_second if clients.rank == 1 else [{}])]
        group: Any = clients._group
        with Caller(InProcessTransport([]), clients=group) as caller:
            return clients_of(caller, runs).rank

    told = together(3, work)
    if not said:
        assert told == [0, 1, 2]
        return
    for error in told:
        assert isinstance(error, ConfigError) and said in str(error)
        assert "every machine needs the same command" in str(error)


def test_clients_that_choose_differently_are_found() -> None:
    def work(clients: Clients) -> Any:
        env = SharedBatch(lambda own: CorridorEnv(len(own), 0, own.start), range(4), clients)
        env.reset()
        return env.step(np.full(4, clients.rank))

    for error in together(2, work):
        assert isinstance(error, LamorelExtError) and "do not choose the same actions" in str(error)


def test_clients_whose_agents_differ_are_named() -> None:
    def work(clients: Clients) -> None:
        clients.same(lambda: "other" if clients.rank == 2 else "same", "at step 8 the agent")

    for error in together(3, work):
        assert "at step 8 the agent of rl client 2 is not that of rl client 0" in str(error)


def test_a_request_to_one_client_stops_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = stopping.Stop(10, "SIGUSR1")
    own = threading.local()
    monkeypatch.setattr(stopping, "asked", lambda: getattr(own, "stop", None))

    def work(clients: Clients) -> Any:
        own.stop = asked if clients.rank == 1 else None
        return agreed_stop(clients)

    assert together(3, work) == [asked] * 3


def test_states_that_know_no_copies_are_refused_by_name() -> None:
    class Opaque(CorridorEnv):
        def state(self) -> Any:
            return {"episodes": 3}

    def work(clients: Clients) -> Any:
        env = SharedBatch(lambda own: Opaque(len(own), 0, own.start), range(4), clients)
        env.reset()
        return env.state()

    for error in together(2, work):
        assert isinstance(error, CheckpointError) and "no list of numbers per copy" in str(error)


@pytest.mark.parametrize(
    "numbers, words",
    [
        (lambda copies: {"steps": [7]}, "cannot be cut into 2 and 1 environments"),
        (lambda copies: {"steps": list(range(copies)), "at": [1] * 3}, "would come back otherwise"),
        (lambda copies: {"steps": [1] * (3 - copies)}, "would come back otherwise"),
    ],
)
def test_states_that_could_not_be_divided_again_are_refused_when_they_are_saved(
    numbers: Callable[[int], dict[str, list[int]]], words: str
) -> None:
    class Odd(CorridorEnv):
        def state(self) -> dict[str, list[int]]:
            return numbers(self.num_envs)

    def work(clients: Clients) -> Any:
        env = SharedBatch(lambda own: Odd(len(own), 0, own.start), range(3), clients)
        env.reset()
        return env.state()

    for error in together(2, work):
        assert isinstance(error, CheckpointError) and words in str(error), error


# --- environments ---------------------------------------------------------------------------------


@pytest.mark.parametrize("backend, workers", [("table", 0), ("minigrid", 0), ("processes", 2)])
def test_shared_environments_give_the_steps_of_one_batch(backend: Any, workers: int) -> None:
    def make(own: range) -> Any:
        def seeds(index: int, episode: int) -> int:
            return 1000 * (own.start + index) + episode

        level = "BabyAI-GoToRedBallNoDists-v0"  # episodes of 64 steps at most
        return make_batched_env(
            level, len(own), episode_seed=seeds, backend=backend, num_workers=workers
        )

    actions = np.random.default_rng(0).integers(0, 3, size=(80, 5))

    def follow(env: Any) -> list[Any]:
        seen = [_plain(env.reset())]
        for row in actions[:70]:
            step = env.step(row)
            seen += [
                _plain(step.reached),
                _plain(step.current),
                step.rewards.tolist(),
                step.done.tolist(),
            ]
            seen.append(env.expert_actions().tolist())
        state = copy.deepcopy(env.state())
        seen += [state, _plain(env.restore(state))]
        for row in actions[70:]:
            seen.append(env.step(row).rewards.tolist())
        env.close()
        return seen

    expected = follow(make(range(5)))
    assert any(any(done) for done in expected[4:350:5])  # episodes end
    for found in together(3, lambda clients: follow(SharedBatch(make, range(5), clients))):
        assert found == expected


def _plain(seen: Any) -> Any:
    return seen.missions, seen.descriptions, seen.images.tolist(), seen.directions.tolist()


def test_the_first_client_hears_of_the_memory_of_all(tmp_path: Path) -> None:
    recorder = MemoryRecorder(tmp_path)

    assert not [each for each in run(3, recorder) if isinstance(each, BaseException)]
    named = [name for name in recorder.samples[-1] if name.startswith("memory_mib_rank_")]
    assert named == [f"memory_mib_rank_{rank}" for rank in range(3)]
