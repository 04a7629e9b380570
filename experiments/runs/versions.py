"""What a run was made with: interpreter, packages, commit, command, machine, and a hash of its
configuration.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import subprocess
import time
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path

from experiments.runs.identity import run_identity
from lamorel_ext.config import Config, LamorelArgs
from lamorel_ext.processes.cores import CPUINFO, said_of_cpu
from lamorel_ext.processes.ranks import rank_of_log
from lamorel_ext.programs import HOME, INSTALLED

PACKAGES = "transformers accelerate minigrid gymnasium numpy scipy safetensors tokenizers".split()


def describe_versions(task: str, argv: Sequence[str], args: LamorelArgs) -> dict[str, object]:
    """Everything that is needed to make the run again, apart from its configuration.

    Args:
        task: Name of the module below ``experiments``.
        argv: Its arguments.
        args: Of the launch, where there is one.
    """
    import torch

    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no") if commit else None
    return {
        "command": command_line(task, argv),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "torch": torch.__version__,  # with the build, +cpu or +cu130
        **{package: _version(package) for package in PACKAGES},
        "platform": platform.platform(),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        # Their gradients are added up, which rounds differently with each number of them.
        "servers": 1 if rank_of_log() is None else args.distributed_setup_args.n_llm_processes,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        "commit": commit,
        "dirty": None if changes is None else bool(changes),
    }


def command_line(task: str, argv: Sequence[str]) -> str:
    """The line that does the same again: through the launcher where this is one rank of several."""
    launched = rank_of_log() is not None
    module = f"launchers {task}" if launched else f"experiments.{task}"
    if INSTALLED:
        module = f"lamorel_ext {'launch ' if launched else ''}{task}"
    return f"python -m {module} {shlex.join(argv)}".rstrip()


def config_hash(config: Config) -> str:
    """SHA-256 of the keys that make the run the run it is; where and how fast it runs is not among
    them.
    """
    return hashlib.sha256(
        json.dumps(run_identity(config), sort_keys=True, default=str).encode()
    ).hexdigest()


@cache
def processor_name(cpuinfo: Path = CPUINFO) -> str:
    """The processor's name as the system has it, on x86 with family and model: virtual machines
    have one name for several processors, such as AMD EPYC, which round differently.
    """
    name = said_of_cpu("model name", cpuinfo) or platform.processor()
    told = ((key, said_of_cpu(key, cpuinfo)) for key in ("cpu family", "model"))
    kind = [f"{key.split()[-1]} {value}" for key, value in told if value]
    return f"{name} ({', '.join(kind)})" if kind else name


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """What git says about this source tree, or None where it is no checkout or git is silent."""
    if not (HOME / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(HOME), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
