"""Programs in processes that find torch, transformers and our modules imported already.

A program of ours imports for five CPU seconds before it does anything. ``run`` gives what
``subprocess.run`` would, but the process is a fork of a helper, one per interpreter and environment
variables, which has done that once. What a start itself does (options of Python's, packages that
hide ours, ranks) is for tests that start processes from nothing.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

IMPORTED_LATE = (
    "lamorel_ext.envs.babyai.backends lamorel_ext.llm.fresh lamorel_ext.llm.loading"
    " lamorel_ext.llm.updaters lamorel_ext.rpc.runtime lamorel_ext.training.building"
    " torch.utils.tensorboard"
).split()
"""What a training run imports besides its program's own imports."""


def run(
    *words: str, cwd: Path, timeout_s: float = 300, **variables: str
) -> subprocess.CompletedProcess[str]:
    """A process of Python's, as ``subprocess.run`` would give it.

    Args:
        *words: The interpreter; then ``-m`` and a module, or the path of an installed command; then
            the arguments.
        cwd: Working folder.
        timeout_s: Seconds after which the process is killed.
        **variables: Environment variables besides this process's.
    """
    return _helper(words[0], tuple(sorted(variables.items()))).run(words[1:], cwd, timeout_s)


class _Helper:
    """The process that is forked."""

    def __init__(self, python: str, variables: dict[str, str]) -> None:
        ours = {key: text for key, text in os.environ.items() if key != "PYTHONPATH"}
        self._process = subprocess.Popen(
            [python, "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**ours, "OMP_NUM_THREADS": "1", **variables},
            text=True,
        )
        atexit.register(self._process.kill)

    def run(
        self, words: Sequence[str], cwd: Path, timeout_s: float
    ) -> subprocess.CompletedProcess[str]:
        to, back = self._process.stdin, self._process.stdout
        assert to is not None and back is not None
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            command = [*words]
            print(json.dumps([command, str(cwd), folder, timeout_s]), file=to, flush=True)
            status = json.loads(back.readline())
            said, complained = ((place / name).read_text("utf-8") for name in ("out", "err"))
        if status is None:
            raise subprocess.TimeoutExpired(command, timeout_s, said, complained)
        return subprocess.CompletedProcess(command, status, said, complained)


@functools.cache
def _helper(python: str, variables: tuple[tuple[str, str], ...]) -> _Helper:
    return _Helper(python, dict(variables))


def _import_all() -> None:
    """What programs import, but not the programs, which a child runs as ``__main__``."""
    from lamorel_ext.programs import PROGRAMS, put_home_first

    put_home_first()
    for name in [*PROGRAMS.values(), *IMPORTED_LATE]:
        importlib.import_module(name)
    for name in PROGRAMS.values():
        del sys.modules[name]


def _obey(requests: TextIO, answers: TextIO) -> None:
    """Fork for each request; returns in the child, with the process made ready for its program."""
    before = list(sys.path)
    _import_all()
    for line in requests:
        words, cwd, folder, timeout_s = json.loads(line)
        if not (child := os.fork()):
            requests.close()
            answers.close()
            _become(words, cwd, Path(folder), before)
            return
        print(json.dumps(_status_of(child, timeout_s)), file=answers, flush=True)
    os._exit(0)


def _status_of(child: int, timeout_s: float) -> int | None:
    """The exit status as ``subprocess`` has it; None where the time was up."""
    signal.signal(signal.SIGALRM, lambda *_: os.killpg(child, signal.SIGKILL))
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    _, status = os.waitpid(child, 0)
    in_time = signal.setitimer(signal.ITIMER_REAL, 0)[0] > 0
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(status) if in_time else None


def _become(words: list[str], cwd: str, folder: Path, path: list[str]) -> None:
    """Have files for what is printed, and ``sys.path`` and ``sys.argv`` as Python would."""
    os.setsid()
    os.chdir(cwd)
    for number, name in enumerate(("out", "err"), start=1):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    is_module = words[0] == "-m"
    sys.path[:] = [cwd if is_module else str(Path(words[0]).parent), *path]
    sys.argv[:] = words
    # The packages listen for signals, and look for the user's modules, as they are imported.
    if not is_module:
        from lamorel_ext.programs import put_home_first

        put_home_first()
    for name in ("experiments", "launchers"):
        importlib.reload(sys.modules[name])


def _end(code: object) -> None:
    """What Python does at the end, but for freeing all that was imported, which takes seconds."""
    if isinstance(code, str):
        print(code, file=sys.stderr)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _obey(os.fdopen(os.dup(0)), answers)
    try:
        if sys.argv[0] == "-m":
            del sys.argv[0]
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as ended:
        _end(ended.code)
