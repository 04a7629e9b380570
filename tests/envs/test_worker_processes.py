"""Worker processes: the same steps as in this process, and no hang, zombie or silence when one of
them fails.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_batched import assert_same_observations, assert_same_steps, random_actions

from lamorel_ext.config import load_config
from lamorel_ext.envs.babyai import worker_pool
from lamorel_ext.envs.babyai.arrays.vector_batch import VectorBatch
from lamorel_ext.envs.babyai.batched import make_batched_env, training_seeds
from lamorel_ext.envs.babyai.process_batch import ProcessBatch
from lamorel_ext.errors import CheckpointError, ConfigError, EnvWorkerError, LevelError
from lamorel_ext.processes.identity import how_it_ended, signal_name
from lamorel_ext.training.building import make_env

LEVEL = "BabyAI-GoToSeqS5R2-v0"
PLAIN = "BabyAI-GoToRedBallNoDists-v0"


def workers(num_envs: int = 3, num_workers: int = 2, level: str = LEVEL) -> ProcessBatch:
    return ProcessBatch(level, num_envs, "en", training_seeds(3), None, num_workers)


def is_gone(pid: int) -> bool:
    """True where there is no such process, not even a dead one that waits to be collected."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_steps_are_minigrids() -> None:
    """Five copies do not divide evenly; the advice of the bot is followed half of the time, so that
    episodes end both ways.
    """
    ours = make_batched_env(LEVEL, 5, "fr", seed=3, backend="processes", num_workers=2)
    minigrids = make_batched_env(LEVEL, 5, "fr", seed=3, backend="minigrid")
    assert_same_observations(ours.reset(), minigrids.reset())
    ends = 0
    for t, actions in enumerate(random_actions(0, 80, 5)):
        if t % 40 < 30:
            actions = ours.expert_actions()
            assert np.array_equal(actions, minigrids.expert_actions())
        step = ours.step(actions)
        assert_same_steps(step, minigrids.step(actions))
        ends += int(step.done.sum())
    assert ends >= 5
    assert ours.state() == minigrids.state()
    ours.close()


def test_saved_states_are_minigrids_and_come_back() -> None:
    ours, minigrids = workers(), make_batched_env(LEVEL, 3, seed=3, backend="minigrid")
    ours.reset()
    minigrids.reset()
    for _ in range(12):
        advice = ours.expert_actions()
        step = ours.step(advice)
        minigrids.expert_actions()
        minigrids.step(advice)
    state = json.loads(json.dumps(ours.state()))
    assert state == minigrids.state()
    fresh = workers(num_workers=1)
    assert_same_observations(fresh.restore(state), step.current)
    for _ in range(15):
        advice = ours.expert_actions()
        assert np.array_equal(advice, fresh.expert_actions())
        assert_same_steps(ours.step(advice), fresh.step(advice))
    for env in (ours, fresh):
        env.close()


def test_closing_twice_leaves_no_process_and_a_reset_starts_anew() -> None:
    env = workers(num_envs=2, num_workers=5)
    assert env.pids == [], "nothing runs before it is needed"
    first = env.reset()
    pids = env.pids
    assert len(pids) == 2, "a worker without a copy would be idle"
    env.close()
    env.close()
    assert env.pids == [] and all(is_gone(pid) for pid in pids)
    with pytest.raises(LevelError, match="reset"):
        env.step(np.zeros(2, dtype=np.int64))
    assert_same_observations(env.reset(), first)
    pids = env.pids
    del env
    gc.collect()
    assert all(is_gone(pid) for pid in pids), "a batch that is forgotten ends its processes"


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_every_process_leaves_the_end_to_the_client(sent: signal.Signals) -> None:
    """Slurm sends it to workers too; the client saves first, for which it may need them."""
    env = workers()
    env.reset()
    for pid in env.pids:
        os.kill(pid, sent)
    env.step(np.zeros(3, dtype=np.int64))
    pids = env.pids
    env.close()
    assert all(is_gone(pid) for pid in pids)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0, "ended with exit status 0"),
        (7, "ended with exit status 7"),
        (-signal.SIGKILL, "died of SIGKILL"),
        (-(signal.SIGRTMIN + 1), f"died of signal {signal.SIGRTMIN + 1}"),  # it has no name
    ],
)
def test_the_end_of_a_process_has_one_wording(status: int, words: str) -> None:
    assert how_it_ended(status) == words


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGRTMIN + 1])
def test_a_worker_that_dies_is_reported_at_once_and_none_is_left(
    sent: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_pool, "_FAREWELL_S", 60.0)  # how it ended is known late when busy
    env = workers()
    env.reset()
    pids = env.pids
    os.kill(pids[1], sent)
    start = time.monotonic()
    words = f"environment worker 1 died of {signal_name(sent)}$"
    with pytest.raises(EnvWorkerError, match=words):
        for _ in range(3):
            env.step(np.zeros(3, dtype=np.int64))
    assert time.monotonic() - start < 60
    assert env.pids == [] and all(is_gone(pid) for pid in pids)
    env.close()
    env.reset()
    env.close()


def test_what_a_worker_raises_arrives_with_its_traceback() -> None:
    env = workers()
    env.reset()
    assert env._pool is not None
    pids = env.pids
    with pytest.raises(EnvWorkerError, match="worker 1 raised IndexError") as caught:
        env._pool.ask(
            {0: {"do": "spans"}, 1: {"do": "start", "copies": [7], "episodes": [0], "seeds": [0]}}
        )
    assert "level_copies.py" in caught.value.remote_traceback and "level_copies.py" in str(
        caught.value
    )
    assert all(is_gone(pid) for pid in pids)


def test_errors_of_this_package_are_raised_as_in_this_process() -> None:
    full = ProcessBatch("BabyAI-GoToLocalS5N2-v0", 1, "en", training_seeds(0), num_distractors=16)
    with pytest.raises(LevelError, match="too many objects"):
        full.reset()
    env = workers(num_envs=1, level=PLAIN)
    with pytest.raises(CheckpointError, match="^environment 0: the saved actions .* too early"):
        env.restore({"episodes": [0], "lengths": [64], "actions": [6] * 64, "experts": [-1, -1]})
    for state in ({}, {"episodes": [0, 0], "lengths": [0, 0], "actions": [], "experts": [-1] * 4}):
        with pytest.raises(CheckpointError):
            env.restore(state)  # type: ignore[arg-type]
    for level, number, words in (("BabyAI-GoToLocal", 1, "did you mean"), (LEVEL, 0, "at least 1")):
        with pytest.raises(LevelError, match=words):
            make_batched_env(level, 1, backend="processes", num_workers=number)


def test_where_the_system_refuses_another_process_the_worker_is_named_and_none_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def only_one(*args: Any, **kwargs: Any) -> subprocess.Popen[bytes]:
        if started:
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
        started.append(popen(*args, **kwargs))
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", only_one)
    with pytest.raises(EnvWorkerError, match="worker 1 cannot start: .*temporarily unavailable"):
        workers().reset()
    assert is_gone(started[0].pid)


def test_a_worker_that_is_stuck_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    env = workers(num_envs=1)
    env.reset()
    (pid,) = env.pids
    monkeypatch.setattr(worker_pool, "_PATIENCE_S", 1.0)
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(EnvWorkerError, match="no answer for 1 s"):
        env.step(np.zeros(1, dtype=np.int64))
    assert is_gone(pid)


def test_workers_end_with_the_process_that_started_them() -> None:
    """However it ends; and a script without a guard around its main part can start them."""
    script = (
        "import os, signal, sys; from lamorel_ext.envs.babyai.batched import make_batched_env\n"
        f"env = make_batched_env('{PLAIN}', 2, backend='processes', num_workers=2); env.reset()\n"
        "print(*env.pids, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    root = str(Path(__file__).resolve().parents[2])
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=root, timeout=300
    )
    pids = [int(pid) for pid in ended.stdout.split()]
    assert len(pids) == 2 and ended.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 60
    while not all(has_ended(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert all(has_ended(pid) for pid in pids)


def has_ended(pid: int) -> bool:
    """True where it is gone, or dead and waits for an init process that may never collect it (in a
    container).
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return is_gone(pid)


def test_levels_that_only_minigrid_knows_go_to_the_workers_that_are_asked_for() -> None:
    assert type(make_batched_env(LEVEL, 2, num_workers=1)) is ProcessBatch
    assert isinstance(make_batched_env("BabyAI-GoToLocal-v0", 2, num_workers=1), VectorBatch)
    with pytest.raises(LevelError, match="num_workers must be at least 0, got -1"):
        make_batched_env(LEVEL, 2, num_workers=-1)


def test_the_configuration_chooses_backend_and_workers() -> None:
    env = make_env(
        load_config([f"env.level={LEVEL}", "env.num_workers=2", "env.num_envs=4"]), held_out=False
    )
    assert type(env) is ProcessBatch and env.num_envs == 4
    assert_same_observations(
        env.reset(),
        make_env(load_config([f"env.level={LEVEL}", "env.num_envs=4"]), held_out=False).reset(),
    )
    assert len(env.pids) == 2
    env.close()
    assert isinstance(
        make_env(load_config([f"env.level={PLAIN}", "env.backend=vector"]), held_out=True),
        VectorBatch,
    )
    for overrides, problem in (
        (["env.num_workers=-1"], "env.num_workers: must not be negative"),
        (["env.backend=processes"], "env.num_workers: must be at least 1"),
        (["env.backend=table", "env.num_workers=2"], "env.num_workers: must be 0"),
    ):
        with pytest.raises(ConfigError, match=problem):
            load_config(overrides)
