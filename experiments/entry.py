"""How every programme here begins and ends: arguments, log, and one clear message for whatever a user can cause."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence

from lamorel_ext.config import CONFIG_DIR
from lamorel_ext.errors import ConfigError, LamorelExtError, RemoteError
from lamorel_ext.portable import NotPortableError, start_anew

USER_ERROR = 2
FAILURE = 1
INTERRUPTED = 130


def run_main(program: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> int:
    """Run ``program`` and give its exit status.

    Errors raised on purpose end in one message without a traceback. A mistake in the configuration would be found by every rank alike; only
    the first one says it.
    """
    if argv is None:
        _use_utf8()
    try:
        return program(sys.argv[1:] if argv is None else argv)
    except ConfigError as error:
        if isinstance(error, NotPortableError) and argv is None:
            start_anew()
        if os.environ.get("RANK", "0") == "0":
            _complain(str(error))
        return USER_ERROR
    except RemoteError as error:
        explained = {kind.__name__ for kind in _all_kinds(LamorelExtError)}
        known = error.type_name in explained
        _complain(f"rank {error.rank} ({error.role}): {error.message}" if known else str(error))
        return FAILURE
    except LamorelExtError as error:
        _complain(str(error))
        return FAILURE
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _use_utf8() -> None:
    """Start this programme again in Python's UTF-8 mode where the locale knows only ASCII: names of files may hold any letter."""
    if sys.getfilesystemencoding() != "utf-8" and "PYTHON_UTF8_TRIED" not in os.environ:
        os.execve(
            sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "PYTHONUTF8": "1", "PYTHON_UTF8_TRIED": "1"}
        )


def make_parser(program: str, description: str) -> argparse.ArgumentParser:
    """A parser for ``--config-name``, ``--config-dir`` and overrides; use it with ``parse_intermixed_args``."""
    parser = argparse.ArgumentParser(prog=program, description=description)
    parser.add_argument("overrides", nargs="*", help="group=file or key=value")
    parser.add_argument("--config-name", default="default", help="file in the folder of configurations, without .yaml")
    parser.add_argument("--config-dir", default=str(CONFIG_DIR), help="folder of configurations")
    return parser


def start_log(level: str) -> None:
    """Log to standard error, each line with the rank that says it."""
    rank = os.environ.get("RANK")
    prefix = f"[rank {rank}] " if rank else ""
    logging.basicConfig(level=logging.WARNING, format=f"{prefix}%(message)s", stream=sys.stderr, force=True)
    for name in ("experiments", "lamorel_ext", "__main__"):
        logging.getLogger(name).setLevel(level.upper())


def _complain(message: str) -> None:
    rank = os.environ.get("RANK", "0")
    print(f"error: {message}" if rank == "0" else f"[rank {rank}] error: {message}", file=sys.stderr, flush=True)


def _all_kinds(kind: type[Exception]) -> list[type[Exception]]:
    return [kind, *(below for child in kind.__subclasses__() for below in _all_kinds(child))]
