"""What a run was made with: interpreter, packages, commit, command."""

from __future__ import annotations

import platform
import shlex
import subprocess
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from lamorel_ext.processes.ranks import rank_of_log

PACKAGES = ("transformers", "accelerate", "minigrid", "gymnasium", "numpy", "safetensors", "tokenizers")
ROOT = Path(__file__).resolve().parent.parent


def describe_versions(task: str, argv: Sequence[str]) -> dict[str, object]:
    """Everything that is needed to make the run again, apart from its configuration.

    Args:
        task: Name of the module below ``experiments``.
        argv: Its arguments.
    """
    import torch

    commit = _git("rev-parse", "HEAD")
    return {
        "command": command_line(task, argv),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "torch": torch.__version__,  # with the build, +cpu or +cu130
        **{package: _version(package) for package in PACKAGES},
        "platform": platform.platform(),
        "commit": commit,
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")) if commit else None,
    }


def command_line(task: str, argv: Sequence[str]) -> str:
    """The line that does the same again: through the launcher where this is one rank of several."""
    module = f"launchers {task}" if rank_of_log() is not None else f"experiments.{task}"
    return f"python -m {module} {shlex.join(argv)}".rstrip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """What git says about this source tree, or None where it is no checkout."""
    if not (ROOT / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
