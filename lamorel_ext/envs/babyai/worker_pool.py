"""Worker processes: started, asked together, and ended, whatever happens to one of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

from lamorel_ext.errors import CheckpointError, EnvWorkerError, LevelError
from lamorel_ext.processes.identity import how_it_ended

_PATIENCE_S = 600.0
"""Without an answer for so long, a worker counts as stuck.

Drawing one crowded level can take minutes.
"""
_FAREWELL_S = 2.0
_OURS = {error.__name__: error for error in (LevelError, CheckpointError)}
"""What a worker raises because of what it was asked is raised again as it was."""


@dataclass(frozen=True)
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection


class WorkerPool:
    """One process per set of options; each runs ``env_worker.serve``.

    A process is a fresh interpreter, so that neither threads nor open files of this one reach it,
    and a script needs no guard around its main part. It ends when this process does, however that
    ends. After an error no worker is left.

    Args:
        options: Of each worker's ``Share``.

    Raises:
        EnvWorkerError: A worker cannot start.
    """

    def __init__(self, options: Sequence[Mapping[str, Any]]) -> None:
        self._workers: list[_Worker] = []
        self._end = weakref.finalize(self, _end, self._workers)
        for number in range(len(options)):
            try:
                self._workers.append(_start())
            except OSError as error:  # the system refuses another process
                self.close()
                raise EnvWorkerError(number, f"cannot start: {error}") from error
        self.ask(dict(enumerate(options)))

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.process.pid for worker in self._workers]

    def ask(self, commands: Mapping[int, Mapping[str, Any]]) -> dict[int, dict[str, Any]]:
        """Give some workers a command each, and wait for all answers.

        Args:
            commands: By number of the worker.

        Raises:
            EnvWorkerError: A worker raised, died or is stuck. All of them are ended then.
            LevelError: A worker raised it, for one because a level cannot be drawn. Likewise.
            CheckpointError: A worker raised it. Likewise.
        """
        try:
            for number, command in commands.items():
                self._tell(number, json.dumps(command).encode())
            return self._answers(commands)
        except (
            BaseException
        ):  # an interruption too: the answers that are still to come would be taken for later ones
            self._end.detach()
            _end(self._workers, kindly=False)
            raise

    def close(self) -> None:
        """End the workers. May be called twice."""
        self._end()

    def _tell(self, number: int, message: bytes) -> None:
        try:
            self._workers[number].connection.send_bytes(message)
        except OSError as error:
            raise self._death(number) from error

    def _answers(self, commands: Mapping[int, Mapping[str, Any]]) -> dict[int, dict[str, Any]]:
        waiting = {self._workers[number].connection: number for number in commands}
        answers = {}
        deadline = time.monotonic() + _PATIENCE_S
        while waiting:
            ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                raise EnvWorkerError(min(waiting.values()), f"gave no answer for {_PATIENCE_S:g} s")
            for connection in ready:
                # wait also takes sockets, which none of these is
                number = waiting.pop(connection)  # type: ignore[call-overload]
                answers[number] = self._read(number)
        return answers

    def _read(self, number: int) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = json.loads(self._workers[number].connection.recv_bytes())
        except (EOFError, OSError) as error:
            raise self._death(number) from error
        if "error" in answer:
            raise _error_of(number, **answer["error"])
        return answer

    def _death(self, number: int) -> EnvWorkerError:
        """What to say of a worker whose connection is closed."""
        try:
            code = self._workers[number].process.wait(_FAREWELL_S)
        except subprocess.TimeoutExpired:
            return EnvWorkerError(number, "closed its connection")
        return EnvWorkerError(number, how_it_ended(code))


def _start() -> _Worker:
    ours, theirs = Pipe()
    with theirs:
        handle = theirs.fileno()
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"from lamorel_ext.envs.babyai.env_worker import serve; serve({handle})",
            ],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                "OMP_NUM_THREADS": "1",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[handle],
        )
    return _Worker(process, ours)


def _end(workers: list[_Worker], kindly: bool = True) -> None:
    """End processes and collect them; kindly lets them finish what they do, for a moment."""
    for worker in workers:
        worker.connection.close()
        if not kindly:
            worker.process.kill()
    deadline = time.monotonic() + _FAREWELL_S
    for worker in workers:
        try:
            worker.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
    workers.clear()


def _error_of(number: int, type: str, message: str, traceback: str) -> Exception:
    """The error that a worker has raised, to be raised here."""
    error = EnvWorkerError(number, f"raised {type}: {message}", traceback)
    if type not in _OURS:
        return error
    ours = _OURS[type](message)
    ours.__cause__ = error
    return ours
