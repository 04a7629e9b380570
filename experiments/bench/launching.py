"""One client and its servers as processes of their own, for benchmarks of the real transport."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
TIMEOUT_S = 600.0


def run_ranks(module: str, spec: Mapping[str, Any], num_servers: int = 1) -> Any:
    """Start ``python -m module SPEC`` as client and as each server, where SPEC is a file with
    ``spec`` as JSON.

    Returns:
        What the client printed in its last line, read as JSON.

    Raises:
        RuntimeError: A rank failed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "spec.json"
        path.write_text(json.dumps(spec), encoding="utf-8")
        port = _free_port()
        size = 1 + num_servers
        ranks = [_start(module, rank, size, port, path) for rank in range(size)]
        try:
            printed, complaints = ranks[0].communicate(timeout=TIMEOUT_S)
            more = "\n".join(rank.communicate(timeout=TIMEOUT_S)[1] for rank in ranks[1:])
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
    if any(rank.returncode for rank in ranks):
        codes = [rank.returncode for rank in ranks]
        raise RuntimeError(f"a rank failed {codes}:\n{complaints}\n{more}")
    return json.loads(printed.splitlines()[-1])


def _start(module: str, rank: int, size: int, port: int, spec: Path) -> subprocess.Popen[str]:
    launch = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
    }
    launch |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", module, str(spec)]
    return subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=os.environ | launch,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
