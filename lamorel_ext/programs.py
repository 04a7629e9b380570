"""The programs' way in: the commands ``lamorel-ext-...`` and ``python -m lamorel_ext PROGRAM``.

The folders of the programs have everyday names, ``experiments``, ``launchers`` and ``configs``, and
a user's folder may have the same. A wheel therefore carries them within this package, out of the
way of everybody else's imports, and a program of ours puts their place at the front of the import
path before anything is imported from them. The user's working folder comes last: what it holds is
found there, and hides nothing of ours. Modules of a package of the user's that is called
``experiments`` too are found behind ours.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lamorel_ext.errors import ConfigError

_WITHIN = Path(__file__).resolve().parent / "_top"
INSTALLED = _WITHIN.is_dir()
"""False in a checkout."""
HOME = _WITHIN if INSTALLED else _WITHIN.parents[1]
"""Holds ``experiments``, ``launchers`` and ``configs``."""

PROGRAMS = {
    "train": "experiments.train",
    "compare": "experiments.compare",
    "evaluate": "experiments.evaluate",
    "generalise": "experiments.generalise",
    "balrog": "experiments.balrog",
    "report": "experiments.report.making",
    "publish": "experiments.publish",
    "reproduce": "experiments.reproduce",
    "recompute": "experiments.recompute",
    "viewer": "experiments.viewer.__main__",
    "watch": "experiments.watch.__main__",
    "launch": "launchers.__main__",
    "elastic": "launchers.elastic",
}
"""Modules with a ``main``; ``elastic`` is what the launcher runs in the place of ``accelerate``."""


def put_home_first() -> None:
    """Let ``experiments`` and ``launchers`` be ours in this process, whatever lies around it."""
    here = {"", os.getcwd()}
    if sys.path and sys.path[0] in here:
        del sys.path[0]  # where ``python -m`` puts the working folder
    if not here & set(sys.path):
        sys.path.append(os.getcwd())
    sys.path.insert(0, str(HOME))


def run_program(name: str) -> int:
    """Run a program on this process's arguments and give its exit status."""
    sys.argv[0] = f"lamorel-ext-{name}"
    put_home_first()
    main: Callable[[], int] = importlib.import_module(PROGRAMS[name]).main
    return main()


def from_module(argv: list[str]) -> int:
    """``python -m lamorel_ext PROGRAM ...``."""
    name = argv[1] if len(argv) > 1 else ""
    if name in ("-h", "--help"):
        print(f"usage: python -m lamorel_ext {{{','.join(PROGRAMS)}}} ...")
        return 0
    if name not in PROGRAMS:
        known = ", ".join(PROGRAMS)
        print(f"error: expected a program, one of {known}; got {name!r}", file=sys.stderr)
        return ConfigError.exit_status
    del argv[1]
    return run_program(name)


train = partial(run_program, "train")
compare = partial(run_program, "compare")
evaluate = partial(run_program, "evaluate")
generalise = partial(run_program, "generalise")
balrog = partial(run_program, "balrog")
report = partial(run_program, "report")
publish = partial(run_program, "publish")
reproduce = partial(run_program, "reproduce")
recompute = partial(run_program, "recompute")
viewer = partial(run_program, "viewer")
watch = partial(run_program, "watch")
launch = partial(run_program, "launch")
