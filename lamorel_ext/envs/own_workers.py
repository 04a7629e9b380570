"""Copies of an environment of the user's own in the processes of Gymnasium's asynchronous vector
environment.

A process holds several copies: evaluation has a hundred of them. What goes to and fro are actions
and observations in Gymnasium's sense, texts of JSON, so that an episode begins when and with the
seed that the batch says, whatever Gymnasium's own way of resetting.
"""

from __future__ import annotations

import atexit
import dataclasses
import json
import multiprocessing
import signal
import traceback
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import wait
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv

from lamorel_ext.config import EnvArgs
from lamorel_ext.envs.own_copies import CopiesHere, Shown, Stepped
from lamorel_ext.errors import CheckpointError, ConfigError, EnvError, EnvWorkerError
from lamorel_ext.processes.identity import how_it_ended
from lamorel_ext.processes.stopping import HEARD

_PATIENCE_S = 600.0
"""Without an answer for so long, a worker counts as stuck."""
_FAREWELL_S = 5.0
_OURS = {error.__name__: error for error in (CheckpointError, EnvError)}


class CopiesEnv(gymnasium.Env[str, str]):
    """What a worker has in the place of an environment. Nothing is made before it is told to: a
    process that cannot make it has to say so.

    Args:
        args: The ``env`` group.
        num_copies: Of the worker.
        first_copy: Number of its first one.
    """

    observation_space = gymnasium.spaces.Text(1, min_length=0)
    action_space = gymnasium.spaces.Text(1, min_length=0)

    def __init__(self, args: EnvArgs, num_copies: int, first_copy: int) -> None:
        self._wanted = (args, num_copies, first_copy)
        self._copies: CopiesHere  # made when told to

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Do what a command says. It never ends: the copies' episodes do."""
        command = json.loads(action)
        try:
            answer = getattr(self, f"_{command.pop('do')}")(**command)
        except Exception as error:  # whatever it is, the asking process must hear of it
            answer = {
                "type": type(error).__name__,
                "message": str(error),
                "problems": list(getattr(error, "problems", ())),
                "traceback": traceback.format_exc(),
            }
        return json.dumps(answer), 0.0, False, False, {}

    def _nothing(self) -> dict[str, Any]:
        return {}

    def _make(self) -> dict[str, Any]:
        # A terminal, or a batch system, signals every process; the one that started us decides.
        for signum in HEARD:
            signal.signal(signum, signal.SIG_IGN)
        self._copies = CopiesHere(*self._wanted)
        return {"texts": self._copies.action_texts, "expert": self._copies.has_expert}

    def _start(self, **what: list[int]) -> dict[str, Any]:
        self._copies.start(**what)
        return self._look()

    def _step(self, actions: list[int]) -> dict[str, Any]:
        steps = self._copies.step(actions)
        names = ("reward", "terminated", "truncated", "succeeded")
        return self._look() | {
            "steps": [{name: getattr(step, name) for name in names} for step in steps]
        }

    def _expert(self) -> dict[str, Any]:
        return {"actions": self._copies.expert_actions()}

    def _states(self) -> dict[str, Any]:
        return {"states": self._copies.states()}

    def _restore(self, saved: list[dict[str, Any]], seeds: list[int]) -> dict[str, Any]:
        self._copies.restore(saved, seeds)
        return self._look()

    def _close(self) -> dict[str, Any]:
        self._copies.close()
        return {}

    def _look(self) -> dict[str, Any]:
        shown = [
            dataclasses.asdict(one) | {"features": one.features.tolist()}
            for one in self._copies.shown
        ]
        return {"shown": shown}


class CopiesInWorkers:
    """``CopiesHere`` in ``env.num_workers`` processes, each with an equal share, not more than
    there are copies; the same steps as in this process. After an error no process is left.

    Args:
        args: The ``env`` group.
        num_copies: How many.
        first_copy: Number of the first one, for messages.

    Raises:
        ConfigError: The environment cannot be had.
        EnvError: It is no environment, or the processes cannot start.
        EnvWorkerError: A process died or is stuck.
    """

    def __init__(self, args: EnvArgs, num_copies: int, first_copy: int = 0) -> None:
        shares = np.array_split(np.arange(num_copies), min(args.num_workers, num_copies))
        self._shares: list[list[int]] = [share.tolist() for share in shares]
        self._patience_s = _PATIENCE_S
        self.shown = [Shown("") for _ in range(num_copies)]
        made = [partial(CopiesEnv, args, len(own), first_copy + own[0]) for own in self._shares]
        try:
            # Fresh interpreters: threads of this one, such as a server's, do not go with a fork.
            self._vector = AsyncVectorEnv(made, shared_memory=False, copy=False, context="spawn")
        except (OSError, EOFError) as error:
            raise EnvError(f"env: the processes of env.num_workers cannot start: {error!r}") from (
                error
            )
        # They do not hear SIGTERM, with which multiprocessing would end them: kill them before.
        self._kill = weakref.finalize(self, _kill, self._vector)
        atexit.register(self._kill)
        answers = self._ask([{"do": "make"}] * len(self._shares))
        self.action_texts = tuple(answers[0]["texts"])
        self.has_expert = bool(answers[0]["expert"])

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [int(process.pid or 0) for process in self._vector.processes]

    def start(self, copies: Sequence[int], episodes: Sequence[int], seeds: Sequence[int]) -> None:
        """See ``CopiesHere``."""
        commands: list[dict[str, Any]] = []
        for share in self._shares:
            own = [place for place, copy in enumerate(copies) if share[0] <= copy <= share[-1]]
            command = {
                "do": "start",
                "copies": [copies[place] - share[0] for place in own],
                "episodes": [episodes[place] for place in own],
                "seeds": [seeds[place] for place in own],
            }
            commands.append(command if own else {"do": "nothing"})
        self._look(self._ask(commands))

    def step(self, actions: Sequence[int]) -> list[Stepped]:
        """See ``CopiesHere``."""
        answers = self._ask(
            [{"do": "step", "actions": [actions[i] for i in share]} for share in self._shares]
        )
        self._look(answers)
        steps = [step for answer in answers for step in answer["steps"]]
        return [Stepped(shown, **own) for shown, own in zip(self.shown, steps, strict=True)]

    def expert_actions(self) -> list[int]:
        """See ``CopiesHere``."""
        return [action for answer in self._ask_all("expert") for action in answer["actions"]]

    def states(self) -> list[dict[str, Any]]:
        """See ``CopiesHere``."""
        return [state for answer in self._ask_all("states") for state in answer["states"]]

    def restore(self, saved: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> None:
        """See ``CopiesHere``."""
        commands = [
            {
                "do": "restore",
                "saved": [dict(saved[i]) for i in share],
                "seeds": [seeds[i] for i in share],
            }
            for share in self._shares
        ]
        self._look(self._ask(commands))

    def close(self) -> None:
        """See ``CopiesHere``."""
        if self._kill.alive:
            with suppress(Exception):  # they end all the same
                self._patience_s = _FAREWELL_S
                self._ask_all("close")
            self._end()

    def _look(self, answers: Sequence[Mapping[str, Any]]) -> None:
        for share, answer in zip(self._shares, answers, strict=True):
            for copy, own in zip(share, answer.get("shown", ()), strict=False):
                features = np.asarray(own["features"], dtype=np.float32)
                actions = tuple(own["actions"])
                self.shown[copy] = Shown(own["text"], own["mission"], features, actions)

    def _ask_all(self, what: str) -> list[dict[str, Any]]:
        return self._ask([{"do": what}] * len(self._shares))

    def _ask(self, commands: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Give each worker a command, and wait for all answers.

        Raises:
            ConfigError: A worker raised it. After any of these no process is left.
            CheckpointError: Likewise.
            EnvError: Likewise.
            EnvWorkerError: A worker raised something else, died or is stuck.
        """
        try:
            self._vector.step_async(tuple(map(json.dumps, commands)))
            texts = self._vector.step_wait(self._patience_s)[0]
            answers: list[dict[str, Any]] = [json.loads(text) for text in texts]
            for worker, answer in enumerate(answers):
                if "traceback" in answer:
                    raise _error_of(worker, **answer)
            return answers
        except BaseException as error:  # an interruption too: what is still to come is for nobody
            seen = self._seen(error)
            self._end()
            if seen is error:
                raise
            raise seen from error

    def _seen(self, error: BaseException) -> BaseException:
        """What is to be said of an error."""
        pipes = enumerate(self._vector.parent_pipes)
        if isinstance(error, multiprocessing.TimeoutError):
            silent = next((worker for worker, pipe in pipes if not pipe.poll(0)), 0)
            return EnvWorkerError(silent, f"gave no answer for {self._patience_s:g} s")
        if not isinstance(error, (OSError, EOFError)):
            return error
        processes = list(self._vector.processes)
        # One has ended, or is about to: a core dump may take longer than the end of its connection.
        ended = wait([process.sentinel for process in processes], _FAREWELL_S)
        for worker, process in enumerate(processes):
            if process.sentinel in ended:
                process.join(_FAREWELL_S)  # its files are closed a moment before it has ended
            if (code := process.exitcode) is not None:
                return EnvWorkerError(worker, how_it_ended(code))
        return EnvWorkerError(0, f"closed its connection: {error!r}")

    def _end(self) -> None:
        self._kill()
        atexit.unregister(self._kill)


def _kill(vector: AsyncVectorEnv) -> None:
    """End the processes without asking them, and collect them."""
    for process in vector.processes:
        process.kill()
    for process in vector.processes:
        process.join()
    for pipe in vector.parent_pipes:
        pipe.close()
    vector.closed = True


def _error_of(
    worker: int, type: str, message: str, problems: list[str], traceback: str
) -> Exception:
    """The error that a worker has raised, to be raised here."""
    error = EnvWorkerError(worker, f"raised {type}: {message}", traceback)
    if type == ConfigError.__name__:
        return ConfigError(problems)
    if type not in _OURS:
        return error
    shown = f"\n--- traceback of environment worker {worker} ---\n{traceback}"
    return _OURS[type](f"{message}{shown}")
