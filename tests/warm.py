"""An interpreter that has imported torch, transformers and our modules before it starts.

A program of ours imports for five CPU seconds before it does anything. ``interpreter`` gives a file
that is used as Python is, ``[file, "-m", "experiments.train", ...]``. It hands its arguments,
folder, variables, files and signals to a fork of a helper, which has imported everything once.
PyTorch's agent starts its ranks with it where ``PYTHON_EXEC`` names it. What a start itself does
(options of Python's, packages that hide ours, imports that are missing, an order that changes with
each process's hashes) is for tests that start processes from nothing.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

IMPORTED_LATE = (
    "lamorel_ext.envs.babyai.backends lamorel_ext.llm.fresh lamorel_ext.llm.loading"
    " lamorel_ext.llm.updaters lamorel_ext.rpc.runtime lamorel_ext.training.building"
    " torch.utils.tensorboard"
).split()
"""What a training run imports besides its program's own imports."""

READ_AT_IMPORT = ("PYTHONPATH", "HF_HUB_OFFLINE")
"""Variables that a fork cannot be given."""

STAND_IN = """#!{python} -IS
import json, os, signal, socket, sys
helper = socket.socket(socket.AF_UNIX)
helper.connect({address!r})
for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
    if signal.getsignal(each) != signal.SIG_IGN:
        signal.signal(each, lambda signum, frame: helper.send(bytes([signum])))
socket.send_fds(helper, [b"."], [0, 1, 2])
helper.sendall(json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode() + b"\\n")
status = int(helper.recv(9) or b"255")
if status < 0:
    signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
os._exit(status)
"""
"""The file: it does what the helper's fork cannot, being the child of whoever started it."""


def interpreter(python: str = sys.executable, **variables: str) -> str:
    """The file; good until another one is asked for, or this process ends.

    Args:
        python: Which Python, by its file.
        **variables: Of ``READ_AT_IMPORT``, what they are; without them they are not set.
    """
    key = (python, variables)
    if _helpers and (_helpers[0].key != key or not _helpers[0].is_alive):
        _helpers.pop().end()
    if not _helpers:
        _helpers.append(_Helper(python, variables))
    return str(_helpers[0].stand_in)


class _Helper:
    """The process that is forked."""

    def __init__(self, python: str, variables: dict[str, str]) -> None:
        self.key = (python, variables)
        self._folder = tempfile.TemporaryDirectory()
        address = str(Path(self._folder.name) / "helper")
        self.stand_in = Path(self._folder.name) / "python"
        self.stand_in.write_text(STAND_IN.format(python=python, address=address))
        self.stand_in.chmod(0o755)
        ours = {key: text for key, text in os.environ.items() if key not in READ_AT_IMPORT}
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address)
            listener.listen()
            self._process = subprocess.Popen(
                [python, "-P", __file__, str(listener.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=[listener.fileno()],
                env={**ours, **variables, "OMP_NUM_THREADS": "1"},
            )
        atexit.register(self.end)

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._folder.cleanup()


_helpers: list[_Helper] = []
"""The one that was asked for last: each has 450 MB."""


# --- the helper -----------------------------------------------------------------------------------


def _import_all() -> None:
    """What programs import, but not the programs, which a child runs as ``__main__``."""
    from lamorel_ext.programs import PROGRAMS, put_home_first

    put_home_first()
    for name in [*PROGRAMS.values(), *IMPORTED_LATE]:
        importlib.import_module(name)
    for name in PROGRAMS.values():
        del sys.modules[name]
    gc.collect()
    gc.freeze()  # so that no child copies what it looks through for garbage


def _obey(listener: socket.socket) -> None:
    """Fork for each stand-in; returns in the grandchild, made ready for its program."""
    before = list(sys.path)
    _import_all()
    while True:
        ready, _, _ = select.select([listener, 0], [], [])
        if 0 in ready:  # whoever started this process is gone
            os._exit(0)
        stand_in, _ = listener.accept()
        if not os.fork():
            listener.close()
            _, files, _, _ = socket.recv_fds(stand_in, 1, 3)
            with stand_in.makefile("rb") as sent:
                words, folder, variables = json.loads(sent.readline())
            if child := os.fork():
                _stand_by(child, stand_in, files)
            stand_in.close()
            _become(words, folder, variables, files, before)
            return
        stand_in.close()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _stand_by(child: int, stand_in: socket.socket, files: list[int]) -> None:
    """Pass signals on to the program, and its end to the stand-in; a stand-in that is killed takes
    the program along.
    """
    for each in files:
        os.close(each)
    end = os.pidfd_open(child)
    while True:
        ready, _, _ = select.select([end, stand_in], [], [])
        if end in ready:
            break
        signums = stand_in.recv(9) or [signal.SIGKILL]
        for signum in signums:
            os.kill(child, signum)
        if signums == [signal.SIGKILL]:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(OSError):
        stand_in.send(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def _become(
    words: list[str], folder: str, variables: dict[str, str], files: list[int], path: list[str]
) -> None:
    """Have files, variables, ``sys.path`` and ``sys.argv`` as Python would."""
    if words[0] == "-u":  # as PyTorch's agent starts its ranks
        del words[0]
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    for number, each in enumerate(files):
        os.dup2(each, number)
        os.close(each)
    sys.stdout = open(1, "w", closefd=False)
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    is_module = words[0] == "-m"
    sys.path[:] = [folder if is_module else str(Path(words[0]).resolve().parent), *path]
    sys.argv[:] = words
    sys.orig_argv[:] = [sys.executable, *words]
    # The packages listen for signals, and look for the user's modules, as they are imported.
    if Path(words[0]).name.startswith("lamorel-ext-"):
        from lamorel_ext.programs import put_home_first

        put_home_first()
    for name in ("experiments", "launchers"):
        importlib.reload(sys.modules[name])


def _end(code: object) -> None:
    """What Python does at the end, but for freeing all that was imported, which takes seconds."""
    if isinstance(code, str):
        print(code, file=sys.stderr)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    _obey(socket.socket(fileno=int(sys.argv[1])))
    try:
        if sys.argv[0] == "-m":
            del sys.argv[0]
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as ended:
        _end(ended.code)
    _end(0)
