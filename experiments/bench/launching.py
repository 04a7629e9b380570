"""One client and its servers as processes of their own, for benchmarks of the real transport."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO, cast

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
    """What the client of a launch says, which measures once.

    Raises:
        RuntimeError: A rank failed.
    """
    with launched(module, spec, num_servers) as ask:
        return ask("")


@contextmanager
def launched(
    module: str, spec: Mapping[str, Any], num_servers: int = 1
) -> Iterator[Callable[[str], Any]]:
    """Client and servers, each of which calls ``main`` of ``module`` with the path of a file that
    holds ``spec`` as JSON.

    Yields:
        A function that writes a line to the client's standard input, and gives the next line of
        JSON that the client prints.

    Raises:
        RuntimeError: A rank failed, or the client gave no answer in ten minutes.
    """
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as ranks_end:
        path = Path(scratch) / "spec.json"
        path.write_text(json.dumps(spec), encoding="utf-8")
        port, size = free_port(), 1 + num_servers
        logs = [ranks_end.enter_context((path.parent / f"log {n}").open("w+")) for n in range(size)]
        ranks = [
            ranks_end.enter_context(_start(module, rank, size, port, path, log))
            for rank, log in enumerate(logs)
        ]
        client = ranks[0]
        asked, answers = cast(TextIO, client.stdin), cast(TextIO, client.stdout)

        def failure() -> RuntimeError:
            client.wait(TIMEOUT_S)
            said = "\n".join(Path(log.name).read_text() for log in logs)
            return RuntimeError(f"a rank failed {[rank.poll() for rank in ranks]}:\n{said}")

        def ask(question: str) -> Any:
            watchdog = threading.Timer(TIMEOUT_S, client.kill)
            watchdog.start()
            try:
                with suppress(BrokenPipeError):  # its end is told below
                    os.write(asked.fileno(), f"{question}\n".encode())
                for line in answers:
                    with suppress(ValueError):  # what libraries print
                        return json.loads(line)
            finally:
                watchdog.cancel()
            raise failure()

        try:
            yield ask
            client.communicate(timeout=TIMEOUT_S)
            if any([rank.wait(TIMEOUT_S) for rank in ranks]):
                raise failure()
        finally:
            for rank in ranks:
                rank.kill()


def be_rank(
    folder: str, num_threads: int, num_servers: int, measure: Callable[[Caller], Any]
) -> None:
    """Be one rank of a launch: a server of the model in ``folder``, with a value head and
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


def _start(
    module: str, rank: int, size: int, port: int, spec: Path, log: TextIO
) -> subprocess.Popen[str]:
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
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE if rank == 0 else log,
        stderr=log,
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
