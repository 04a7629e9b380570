"""How every programme here begins and ends: arguments, log, and one clear message for whatever a
user can cause.

Exit statuses, of every program and of the launcher, which hands on that of the first rank that
failed:

    0    done (also: --help, --cfg, a run that is complete already)
    1    something went wrong: a file cannot be written, a checkpoint is corrupt when a run resumes,
         a server died or did not answer, a loss is not finite, a level failed; recompute and
         check_oracle found something that differs
    2    the user said something wrong: arguments, overrides, configuration files, a model, run
         folder or file that is not there, or whose content is not what it must be where reading it
         is all that the program does
    130  interrupted (128 + 2)
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from experiments.runs.progress import LiveHandler
from lamorel_ext.config import (
    CONFIG_DIR,
    Config,
    groups,
    load_config,
    search_folders,
    sweep,
    to_yaml,
)
from lamorel_ext.errors import (
    CheckpointError,
    ConfigError,
    LamorelExtError,
    RemoteError,
    WriteError,
)
from lamorel_ext.portable import NotPortableError, start_anew
from lamorel_ext.processes import stopping
from lamorel_ext.processes.ranks import rank_of_log, speaks

USER_ERROR = 2
FAILURE = 1
INTERRUPTED = 130


def run_main(
    program: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None, reads: bool = False
) -> int:
    """Run ``program`` and give its exit status. The working folder is importable meanwhile.

    Args:
        reads: True where the program only reads folders that the user names: what is wrong in them
            is then what the user said wrong.

    Errors raised on purpose end in one message without a traceback. A mistake in the configuration
    would be found by every rank of a machine alike; only the first one there says it.
    """
    if argv is None:
        _use_utf8()
        if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name may hold any bytes
            sys.stdout.reconfigure(errors="backslashreplace")
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(
            os.getcwd()
        )  # at the end: a folder of the user's hides no module of anybody's
    status = FAILURE
    try:
        status = _status_of(program, argv, reads)
    finally:
        if argv is None and not isinstance(sys.exception(), SystemExit):
            stopping.end_with(status)
    return status


def _status_of(
    program: Callable[[Sequence[str]], int], argv: Sequence[str] | None, reads: bool
) -> int:
    try:
        stopping.begin()
        return program(sys.argv[1:] if argv is None else argv)
    except ConfigError as error:
        # A library may drop an interrupt and go on with half of what it composed: no mistake of
        # the user's.
        if (stop := stopping.asked()) is not None:
            return _say_stopped(stopping.Stopped(stop))
        if isinstance(error, NotPortableError) and argv is None:
            start_anew()
        if speaks() or os.environ.get("LOCAL_RANK", "0") == "0":
            _complain(str(error))
        return USER_ERROR
    except RemoteError as error:
        explained = {kind.__name__: kind for kind in _all_kinds(LamorelExtError)}
        known = explained.get(error.type_name)
        _complain(f"rank {error.rank} ({error.role}): {error.message}" if known else str(error))
        return known.exit_status if known else FAILURE
    except LamorelExtError as error:
        _complain(str(error))
        misread = reads and isinstance(error, CheckpointError) and not isinstance(error, WriteError)
        return USER_ERROR if misread else error.exit_status
    except stopping.Stopped as stopped:
        return _say_stopped(stopped)
    except KeyboardInterrupt:
        if speaks():
            stopping.say_last("interrupted")
        return INTERRUPTED


def _say_stopped(stopped: stopping.Stopped) -> int:
    if speaks():
        stopping.say_last(str(stopped))
    return stopped.stop.exit_status


def _use_utf8() -> None:
    """Start this programme again in Python's UTF-8 mode where the locale knows only ASCII: names of
    files may hold any letter.
    """
    if sys.getfilesystemencoding() != "utf-8" and "PYTHON_UTF8_TRIED" not in os.environ:
        os.execve(
            sys.executable,
            [sys.executable, *sys.orig_argv[1:]],
            {**os.environ, "PYTHONUTF8": "1", "PYTHON_UTF8_TRIED": "1"},
        )


def make_parser(
    program: str, description: str, zero_shot: Sequence[str] | None = None
) -> argparse.ArgumentParser:
    """A parser for ``--config-name``, ``--config-dir`` and overrides; use it with
    ``parse_intermixed_args``.

    Args:
        zero_shot: Overrides for the model as it is, in a program that is about a policy.
    """
    parser = ConfigParser(prog=program, description=description)
    parser.zero_shot = zero_shot
    add_config_arguments(parser)
    return parser


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """``--config-name``, ``--config-dir``, ``--cfg`` and overrides."""
    parser.add_argument("overrides", nargs="*", help="group=file or key=value")
    parser.add_argument(
        "--config-name", default="default", help="file in a folder of configurations, without .yaml"
    )
    parser.add_argument(
        "--config-dir",
        "--config-path",
        default=str(CONFIG_DIR),
        help=(
            "a folder of configurations of your own, looked into before ./configs and the project's"
        ),
    )
    parser.add_argument("--cfg", choices=("job",), help="print the configuration and end")


def add_sweep_argument(parser: argparse.ArgumentParser) -> None:
    """``-m``, of the programs that train."""
    parser.add_argument(
        "-m",
        "--multirun",
        action="store_true",
        help="run each value of a sweep, such as arm=a,b run.seed=range(0,3)",
    )


def add_trust_argument(parser: argparse.ArgumentParser) -> None:
    """``--trust``, of the programs that read runs which somebody may have sent."""
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="allow a run folder's configuration to import this package (for its _target_ keys)",
    )


class ConfigParser(argparse.ArgumentParser):
    """Knows the groups of the configuration, and prints the configuration where ``--cfg`` asks for
    it.

    Attributes:
        zero_shot: See ``make_parser``.
    """

    zero_shot: Sequence[str] | None = None

    def format_help(self) -> str:
        """The usual help, and what there is to choose from."""
        lines = ["", "groups (group=file):"]
        for name, files in groups(search_folders()).items():
            words = textwrap.fill(
                ", ".join(files), 90, initial_indent="    ", subsequent_indent="    "
            )
            lines += [f"  {name}:", words]
        return super().format_help() + "\n".join(lines) + "\n"

    def parse_intermixed_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: None = None
    ) -> argparse.Namespace:
        """Parse; with ``--cfg job``, print the configuration, or each of a sweep, and exit."""
        options = super().parse_intermixed_args(args, namespace)
        if options.cfg:
            say("---\n".join(map(to_yaml, self._configurations(options))).removesuffix("\n"))
            self.exit()
        return options

    def _configurations(self, options: argparse.Namespace) -> list[Config]:
        from experiments.runs.planning import ZERO_SHOT, policy_config, split_policy

        where = (options.config_name, options.config_dir)
        if getattr(options, "multirun", False):
            runs = sweep(options.overrides, search_folders(options.config_dir))
            return [load_config(run.overrides, *where) for run in runs]
        policy, overrides = split_policy(options.overrides)
        shown = () if getattr(options, "task", "") == "evaluate" else self.zero_shot
        if policy == ZERO_SHOT and shown is None:
            return [load_config(overrides, *where)]
        words = [*(shown or ()), *overrides] if policy == ZERO_SHOT else overrides
        return [policy_config(policy, words, *where, getattr(options, "trust", ()))]


def start_log(level: str) -> None:
    """Log to standard error, each line with the rank that says it."""
    rank = rank_of_log()
    prefix = "" if rank is None else f"[rank {rank}] "
    handlers = [LiveHandler(sys.stderr)]
    logging.basicConfig(
        level=logging.WARNING, format=f"{prefix}%(message)s", handlers=handlers, force=True
    )
    for name in ("experiments", "lamorel_ext", "__main__"):
        logging.getLogger(name).setLevel(level.upper())


def _complain(message: str) -> None:
    where = "" if speaks() else f"[rank {rank_of_log()}] "
    stopping.say_last(f"{where}error: {message}")


def say(line: str) -> None:
    """Print where a result is. Whoever reads that may be gone, which is no failure of the work."""
    try:
        print(line, flush=True)
    except OSError:  # and what is left of the line is not tried again at the end
        with suppress(OSError, ValueError), Path(os.devnull).open("w") as nothing:
            os.dup2(nothing.fileno(), sys.stdout.fileno())


def _all_kinds(kind: type[LamorelExtError]) -> list[type[LamorelExtError]]:
    return [kind, *(below for child in kind.__subclasses__() for below in _all_kinds(child))]
