"""One client and its servers as processes of their own, for benchmarks of the real transport."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from lamorel_ext.config import DistributedSetupArgs, LamorelArgs, LlmArgs
from lamorel_ext.llm.loading import load_host
from lamorel_ext.llm.module_functions import ValueHead
from lamorel_ext.llm.serving import Hosted, serve
from lamorel_ext.llm.updaters import make_updaters
from lamorel_ext.rpc.caller import Caller
from lamorel_ext.rpc.distributed import launched_role
from lamorel_ext.rpc.runtime import connect

REPOSITORY = Path(__file__).resolve().parents[2]
TIMEOUT_S = 600.0


def run_ranks(module: str, spec: Mapping[str, Any], num_servers: int = 1) -> Any:
    """Start client and servers, each of which calls ``main`` of ``module`` with the path of a file
    that holds ``spec`` as JSON.

    Returns:
        What the client printed in its last line, read as JSON.

    Raises:
        RuntimeError: A rank failed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "spec.json"
        path.write_text(json.dumps(spec), encoding="utf-8")
        port = free_port()
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


def be_rank(
    folder: str, num_threads: int, num_servers: int, measure: Callable[[Caller], Any]
) -> None:
    """Be one rank of ``run_ranks``: a server of the model in ``folder``, with a value head and
    without memory (else nothing would be computed), or the client, which prints what ``measure``
    gives as JSON.
    """
    torch.set_num_threads(num_threads)
    args = LamorelArgs(
        distributed_setup_args=DistributedSetupArgs(n_llm_processes=num_servers),
        llm_args=LlmArgs(model_path=folder, cache_size=0, num_threads=num_threads),
    )
    role = launched_role(args)
    if role is not None and role.is_server:
        heads, cpu = {"value": ValueHead()}, torch.device("cpu")
        serve(args, lambda _: Hosted(load_host(args.llm_args, cpu, heads), make_updaters()))
    else:
        with connect(args) as caller:
            print(json.dumps(measure(caller)))


def _start(module: str, rank: int, size: int, port: int, spec: Path) -> subprocess.Popen[str]:
    launch = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
    }
    launch |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", "experiments.bench.launching", module, str(spec)]
    return subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=os.environ | launch,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port() -> int:
    """Below the ports that the system itself gives out: one of those may be another program's by
    the time that the ranks have imported everything and meet there.
    """
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no free port for the ranks to meet at, of 100 between 20000 and 32000")


if __name__ == "__main__":
    import_module(sys.argv[1]).main(Path(sys.argv[2]))
