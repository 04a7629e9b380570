"""Two halves of the environments in turns: the same rollouts and curves as all of them together, in
a fixed order, from any checkpoint.
"""

import dataclasses
import os
import socket
import threading
from concurrent.futures import Future

import numpy as np
import pytest

from experiments.runs.build import alone, build_server
from lamorel_ext.agents.making import make_agent
from lamorel_ext.agents.metering import MeteredClient
from lamorel_ext.config import load_config
from lamorel_ext.envs.babyai.batched import make_batched_env, training_seeds
from lamorel_ext.envs.babyai.minigrid_batch import MinigridBatch
from lamorel_ext.envs.babyai.saved_states import cut_state, join_states
from lamorel_ext.errors import CheckpointError, ConfigError, PeerDiedError, RemoteError
from lamorel_ext.experience import join
from lamorel_ext.llm.serving import in_process
from lamorel_ext.prompts import PromptHistory
from lamorel_ext.randomness import Draws
from lamorel_ext.rpc.caller import Caller
from lamorel_ext.rpc.transport import InProcessTransport
from lamorel_ext.training.building import make_halves
from lamorel_ext.training.loop import train
from lamorel_ext.training.pipeline import HalvedEnv, collect_rollout
from lamorel_ext.training.run import TrainingRun
from lamorel_ext.training.scenes import PromptedEnv
from lamorel_ext.types import ScoreRequest, ScoreResult
from tests.experiments.tiny_llm import save_tiny_llm
from tests.rpc.rpc_fakes import FakeHost, threaded_launch
from tests.training.student_fakes import (
    CorridorEnv,
    MemoryRecorder,
    TableLlm,
    make_corridor,
    small_config,
)

LLM_POLICY = {"arm": {"agent": "llm_policy"}, "feedback": {"signal": "none"}}
ARMS = {
    "teacher": {},
    "random signs": {"feedback": {"signal": "constant", "sign": "random"}},
    "subgoals": {"guidance": {"vocabulary": "subgoal"}},
    "policy": LLM_POLICY,
    "policy, odd number": {**LLM_POLICY, "env": {"num_envs": 5}},
    "policy with history": {**LLM_POLICY, "env": {"num_envs": 2, "prompt": "glam"}},
}


class Deaf:
    online = False

    def after_step(self, turn, discount):
        return None


def draws():
    return Draws(np.random.default_rng(1), np.random.default_rng(2))


def assert_same(first, second, atol=0.0):
    """Two dataclasses of arrays and tuples: numbers to ``atol``, everything else exactly."""
    assert type(first) is type(second)
    if dataclasses.is_dataclass(first):
        for field in dataclasses.fields(first):
            assert_same(getattr(first, field.name), getattr(second, field.name), atol)
    elif isinstance(first, np.ndarray):
        assert first.dtype == second.dtype
        np.testing.assert_allclose(
            first, second, rtol=0, atol=atol if first.dtype.kind == "f" else 0
        )
    elif isinstance(first, tuple) and first and dataclasses.is_dataclass(first[0]):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same(one, other, atol)
    else:
        assert first == second


# --- one rollout ----------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ARMS)
def test_a_rollout_is_the_same_in_halves(arm):
    config = small_config(**ARMS[arm])
    whole = PromptedEnv(make_corridor(config, False), PromptHistory(config.env.prompt))
    results = []
    for env in (whole, make_halves(config, make_corridor)):
        agent, drawn = make_agent(config, TableLlm()), draws()
        scene, rollouts = env.reset(), []
        for _ in range(2):  # the second one begins where the first one ended
            rollout, scene = collect_rollout(env, agent, Deaf(), scene, 15, drawn)
            rollouts.append(rollout)
        results.append((rollouts, scene, (drawn.actions.random(), drawn.guidance.random())))
    (rollouts, scene, next_draws), (others, other_scene, other_draws) = results
    assert rollouts[0].done.any()
    for rollout, other in zip(rollouts, others, strict=True):
        # The table says the same to half as many prompts, the student's own network rounds
        # differently when it reads half as many states.
        assert_same(rollout, other, atol=0.0 if arm.startswith("policy") else 1e-6)
    assert_same(scene, other_scene)
    assert next_draws == other_draws


class Diary(TableLlm):
    """Notes when it is asked and when its answers are taken."""

    def __init__(self):
        super().__init__()
        self.notes = []

    def submit_score(self, request):
        half = "A" if request.prompts[0] == self.first else "B"
        self.notes.append(f"ask {half}")
        notes, pending = self.notes, super().submit_score(request)

        class Noted:
            def result(self):
                notes.append(f"take {half}")
                return pending.result()

        return Noted()


def test_each_half_acts_and_is_stepped_while_the_prompts_of_the_other_are_being_scored():
    config = small_config(**LLM_POLICY)
    llm = Diary()
    agent = make_agent(config, llm)

    class Standing(CorridorEnv):
        """Nobody moves: the prompts tell the halves apart."""

        def step(self, actions):
            llm.notes.append(f"step {'AB'[self._first // 2]}")
            return super().step(np.full(2, 5))

    halves = [PromptedEnv(Standing(2, seed=0, first=first), PromptHistory()) for first in (0, 2)]
    env = HalvedEnv(halves)
    scene = env.reset()
    llm.first = scene.prompts[0]
    assert scene.prompts[2] != llm.first
    collect_rollout(env, agent, Deaf(), scene, 3, draws())
    turn = ["take A", "step A", "ask A", "take B", "step B", "ask B"]
    last = ["take A", "step A", "take B", "step B"]
    assert llm.notes == ["ask A", "ask B", *turn, *turn, *last]


def test_no_question_is_left_open_at_the_end_and_each_call_is_counted_when_it_is_answered():
    config = small_config(**LLM_POLICY)
    llm = TableLlm()
    meter = MeteredClient(llm)
    env = make_halves(config, make_corridor)
    collect_rollout(env, make_agent(config, meter), Deaf(), env.reset(), 7, draws())
    scored = [
        request for request in llm.requests if isinstance(request, ScoreRequest) and request.score
    ]
    values = len(llm.requests) - len(scored)  # of the last states
    assert (
        len(scored) == 14
        and [len(request.prompts) for request in scored] == [2] * 14
        and values == 1
    )
    assert meter.counts["llm_calls"] == 15 and meter.counts["llm_prompts"] == sum(
        len(request.prompts) for request in llm.requests
    )
    with meter.paused():
        meter.submit_score(scored[0]).result()
    assert meter.counts["llm_calls"] == 15


def test_a_listener_that_must_hear_of_every_step_at_once_is_refused():
    config = small_config(**LLM_POLICY)
    env, listener = make_halves(config, make_corridor), Deaf()
    listener.online = True
    with pytest.raises(ValueError, match="same step"):
        collect_rollout(env, make_agent(config, TableLlm()), listener, env.reset(), 1, draws())


def test_what_is_none_on_one_side_only_cannot_be_joined():
    env = PromptedEnv(CorridorEnv(2, 0), PromptHistory())
    scene = env.reset()
    assert len(join([scene, scene])) == 4
    with pytest.raises(ValueError, match="cannot join NoneType, ndarray"):
        join([scene, scene.saying(np.zeros(2))])


# --- whole runs -----------------------------------------------------------------------------------


def run(tmp_path, pipelined, recorder=None, **groups):
    recorder = recorder or MemoryRecorder(tmp_path)
    config = small_config(**{**groups, "run": {"pipeline": pipelined, **groups.get("run", {})}})
    llm = TableLlm()
    train(config, llm, recorder, make_corridor)
    return recorder.rows, llm


def assert_curves(rows, others, *differing, rtol=1e-4):
    assert len(rows) == len(others)
    for row, other in zip(rows, others, strict=True):
        assert row.keys() == other.keys()
        for name in row.keys() - {"seconds", *differing}:
            np.testing.assert_allclose(row[name], other[name], rtol=rtol, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("arm", ARMS)
def test_a_learning_curve_is_the_same_but_for_the_number_of_calls(arm, tmp_path):
    rows, llm = run(tmp_path, False, **ARMS[arm])
    others, _ = run(tmp_path, True, **ARMS[arm])
    assert_curves(rows, others, "llm_calls")
    turns = rows[-1]["env_steps"] / small_config(**ARMS[arm]).env.num_envs
    assert others[-1]["llm_calls"] == rows[-1]["llm_calls"] + turns
    assert others[-1]["llm_prompts"] == rows[-1]["llm_prompts"]


class Stops(Exception):
    """The power went out."""


class FragileRecorder(MemoryRecorder):
    """Raises at the third checkpoint."""

    left = 2

    def checkpoint(self, checkpoint, save_llm):
        self.left -= 1
        if self.left < 0:
            raise Stops
        super().checkpoint(checkpoint, save_llm)


@pytest.mark.parametrize("arm", ["teacher", "policy with history"])
@pytest.mark.parametrize("afterwards", [True, False, "the other way"])
def test_a_run_that_was_stopped_goes_on_in_halves_or_not(arm, afterwards, tmp_path):
    before, after = (False, True) if afterwards == "the other way" else (True, afterwards)
    unbroken, _ = run(tmp_path, True, **ARMS[arm])
    fragile = FragileRecorder(tmp_path)
    with pytest.raises(Stops):
        run(tmp_path, before, fragile, **ARMS[arm])
    fragile.left = 99
    rows, _ = run(tmp_path, after, fragile, **ARMS[arm])
    if before and after:
        assert [{**row, "seconds": 0} for row in map(repr_of, rows)] == [
            {**row, "seconds": 0} for row in map(repr_of, unbroken)
        ]
    else:
        assert_curves(rows, unbroken, "llm_calls")


def repr_of(row):
    return {name: repr(value) for name, value in row.items()}


def save_settings(folder):
    """A tiny T5 with random weights, eight environments, two updates."""
    llm = f"lamorel_args.llm_args.model_path={save_tiny_llm(folder)}"
    sizes = (
        "env.num_envs=8",
        "ppo.num_steps=16",
        "student.num_steps=16",
        "run.total_steps=256",
        "run.eval_every=128",
        "run.checkpoint_every=0",
    )
    return (
        llm,
        *sizes,
        "lamorel_args.llm_args.num_threads=1",
        "lamorel_args.llm_args.value_head_hidden=8",
        "model=embedded",
    )


@pytest.mark.parametrize("arm", ["llm_policy", "teacher_feedback+signal=gae"])
def test_over_two_servers_with_a_real_model_the_curve_is_the_same_to_rounding(arm, tmp_path):
    settings = save_settings(tmp_path / "model")
    curves = []
    for pipelined in ("false", "true"):
        config = load_config(
            [
                f"arm={arm}",
                *settings,
                f"run.pipeline={pipelined}",
                "ppo.lr=1e-3",
                "feedback.lr=1e-3",
            ]
        )
        args = config.lamorel_args
        with in_process([build_server(args, alone(args)) for _ in range(2)]) as caller:
            recorder = MemoryRecorder(tmp_path / pipelined)
            train(config, caller, recorder)
        curves.append(recorder.rows)
    # Each server remembers its own answers, and half a batch is divided among them at another
    # place.
    assert_curves(*curves, "llm_calls", "llm_tokens")
    assert curves[0][-1]["success"] != curves[0][0]["success"]


# --- when -----------------------------------------------------------------------------------------


def is_halved(config, remote=True, env_factory=make_corridor):
    with TrainingRun(config, TableLlm(remote=remote), env_factory) as made:
        return isinstance(made.env, HalvedEnv)


@pytest.mark.parametrize(
    "groups",
    [
        {"feedback": {"signal": "td", "every": 4}},
        {"feedback": {"signal": "td", "channel": "prompt"}},
        {"guidance": {"vocabulary": "free"}},
        {"arm": {"teacher": "none"}, "feedback": {"signal": "none"}},
        {"arm": {"agent": "cloning"}, "feedback": {"signal": "none"}},
        {"env": {"num_envs": 1}},
    ],
)
def test_there_are_no_halves_where_the_arm_does_not_allow_it(groups):
    assert is_halved(small_config(run={"pipeline": True}))
    assert not is_halved(small_config(**groups, run={"pipeline": True}))


def minigrid(config, held_out, copies=None):
    return MinigridBatch(
        "BabyAI-GoToRedBallNoDists-v0",
        len(copies or range(config.env.num_envs)),
        "en",
        training_seeds(0),
    )


def test_by_itself_it_is_done_where_it_was_measured_to_pay(monkeypatch):
    def auto(num_envs=32, **groups):
        return small_config(env={"num_envs": num_envs}, **groups)

    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2})
    assert is_halved(auto(), env_factory=minigrid)
    assert not is_halved(auto(num_envs=31), env_factory=minigrid)
    assert not is_halved(auto(), remote=False, env_factory=minigrid)
    assert not is_halved(auto(), env_factory=make_corridor)  # too fast, for all one knows
    assert not is_halved(auto(run={"pipeline": False}), env_factory=minigrid)
    # One for the client, one for the server, none to spare, though the machine may have more.
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {4, 5})
    assert not is_halved(auto(), env_factory=minigrid)


def test_a_value_that_is_none_of_the_three_is_refused():
    with pytest.raises(ConfigError, match="run.pipeline: expected bool or one of auto, got 'on'"):
        load_config(["run.pipeline=on"])


def test_servers_behind_sockets_are_remote_and_those_in_threads_are_not():
    with threaded_launch() as launch:
        assert MeteredClient(launch.callers[0]).remote
    with Caller(InProcessTransport([])) as caller:
        assert not MeteredClient(caller).remote


# --- failures -------------------------------------------------------------------------------------


class DelayedFailure(TableLlm):
    """Its third answer is an error that comes while nobody waits for it."""

    def submit_score(self, request):
        if len(self.requests) < 2:
            return super().submit_score(request)
        pending: Future[ScoreResult] = Future()
        threading.Timer(
            0.05, pending.set_exception, [RemoteError(1, "llm server 0", "ValueError", "no", "")]
        ).start()
        return pending


def test_an_error_of_a_server_is_raised_when_its_half_would_act():
    config = small_config(**LLM_POLICY)
    env = make_halves(config, make_corridor)
    with pytest.raises(RemoteError, match="llm server 0"):
        collect_rollout(env, make_agent(config, DelayedFailure()), Deaf(), env.reset(), 5, draws())


def test_a_server_that_dies_with_two_calls_pending_is_reported_before_any_answer(monkeypatch):
    class Holding(PromptHistory):
        """After the first step the servers hold their answers back."""

        def step(self, actions, step):
            return dataclasses.replace(
                super().step(actions, step), current=("held",) * len(actions)
            )

    class Held(FakeHost):
        def score(self, prompts, *args, **kwargs):
            if prompts[0] == "held":
                self.gate.wait(60)
                answered.append(prompts)
            return super().score(prompts, *args, **kwargs)

    answered, asked = [], []
    with threaded_launch(1, 2, hosts=[Held(), Held()]) as launch:
        caller, sock = launch.callers[0], launch.listeners[1]._links[0]._sock
        submit = caller.submit_score

        def submit_score(request):
            pending = submit(request)
            asked.append(request.prompts[0])
            if asked[-2:] == ["held", "held"]:
                sock.shutdown(socket.SHUT_RDWR)
            return pending

        monkeypatch.setattr(caller, "submit_score", submit_score)
        env = HalvedEnv([PromptedEnv(CorridorEnv(2, 0, first), Holding()) for first in (0, 2)])
        agent, scene = make_agent(small_config(**LLM_POLICY), caller), env.reset()
        with pytest.raises(PeerDiedError, match=r"rank 2 .llm server 1. died"):
            collect_rollout(env, agent, Deaf(), scene, 5, draws())
        assert asked[2:] == ["held", "held"] and not answered


# --- saved environments ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "backend"),
    [
        ("BabyAI-GoToRedBallNoDists-v0", "table"),
        ("BabyAI-GoToLocal-v0", "vector"),
        ("BabyAI-GoToLocal-v0", "minigrid"),
    ],
)
def test_a_saved_batch_goes_on_in_two_parts_and_back(level, backend):
    def make(first, count):
        return make_batched_env(
            level, count, episode_seed=training_seeds(7, first), backend=backend
        )

    rng = np.random.default_rng(0)
    whole = make(0, 5)
    whole.reset()
    for _ in range(70):
        whole.step(rng.integers(6, size=5))
        whole.expert_actions()
    saved = whole.state()
    parts = [make(0, 3), make(3, 2)]
    cut = cut_state(saved, (3, 2))
    for part, own in zip(parts, cut, strict=True):
        part.restore(own)
    assert join_states(cut) == saved == join_states([part.state() for part in parts])
    for _ in range(70):
        actions = rng.integers(6, size=5)
        np.testing.assert_array_equal(
            whole.expert_actions(), np.concatenate([part.expert_actions() for part in parts])
        )
        together = whole.step(actions)
        apart = [
            part.step(own) for part, own in zip(parts, (actions[:3], actions[3:]), strict=True)
        ]
        assert_same(together, join(apart))
    assert max(saved["episodes"]) > 0


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "not a saved environment"),
        ({"halves": [{"env": {}}, {"env": {}}]}, "not a saved environment"),
        ({"env": {"episodes": [0] * 3}, "history": [{}] * 3}, "3 saved environments, expected 4"),
        (
            {"env": {"random": [1, 2, 3]}, "history": [{}] * 4},
            "cannot be cut into 2 and 2 environments: random has 3 numbers",
        ),
        (
            {"env": {"lengths": [1] * 4, "actions": [0] * 5}, "history": [{}] * 4},
            "actions has 5 numbers",
        ),
    ],
)
def test_what_cannot_be_restored_in_halves_is_named(state, message):
    env = make_halves(small_config(), make_corridor)
    with pytest.raises(CheckpointError, match=message):
        env.restore(state)


def test_halves_of_different_kinds_cannot_be_restored_as_one():
    env = PromptedEnv(CorridorEnv(4, 0), PromptHistory())
    halves = [
        {"env": {"episodes": [0, 0]}, "history": []},
        {"env": {"states": [0, 0]}, "history": []},
    ]
    with pytest.raises(CheckpointError, match="different kinds"):
        env.restore({"halves": halves})


def test_a_batch_that_cannot_be_cut_still_comes_back_as_the_halves_it_was_saved_in():
    class Opaque(CorridorEnv):
        def state(self):
            return {**super().state(), "random": [1, 2, 3, 4, 5]}

    def make(config, held_out, copies=None):
        return Opaque(len(copies), 0, copies.start)

    env = make_halves(small_config(), make)
    scene = env.reset()
    assert_same(make_halves(small_config(), make).restore(env.state()), scene)
