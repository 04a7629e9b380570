"""A language model without a model, updaters that misbehave on demand, and launches whose ranks are
threads of this process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from lamorel_ext.config import DistributedSetupArgs
from lamorel_ext.llm.server import ALONE, Merging, Server
from lamorel_ext.rpc.caller import Caller
from lamorel_ext.rpc.groups import make_thread_groups
from lamorel_ext.rpc.rendezvous import connect_to_servers, meet_peers, peer_of
from lamorel_ext.rpc.tcp_listener import TcpListener
from lamorel_ext.rpc.tcp_transport import TcpTransport
from lamorel_ext.types import (
    GenerateRequest,
    GenerateResult,
    Scalar,
    ScoreResult,
    ServerGroup,
    UpdateRequest,
    UpdateResult,
)

ACTIONS = ("turn left", "turn right", "go forward", "pick up", "drop", "toggle")


def fake_log_prob(prompt: str, candidate: str) -> float:
    """What the fake host says of a candidate: easy to compute by hand."""
    return -len(prompt) - len(candidate) / 100


class FakeHost:
    """Scores by the lengths of texts; its weights are one number.

    Prompts that begin with ``raise`` make it raise, ``sleep <s>`` makes it wait, and ``wait`` until
    its gate opens, as the end of a ``threaded_launch`` does.
    """

    def __init__(self) -> None:
        self.gate, self.busy = threading.Event(), threading.Event()
        self.weight, self.weights_version = 0.0, 0
        self.log: list[str] = []

    def score(
        self,
        prompts: Sequence[str],
        candidates: Sequence[Sequence[str]],
        modules: Sequence[str] = (),
        with_score: bool = True,
    ) -> ScoreResult:
        self.log.append(f"score {prompts[0]}")
        for prompt in prompts:
            if prompt.startswith("raise"):
                raise ZeroDivisionError(f"the fake host was asked to: {prompt}")
            if prompt.startswith("sleep"):
                time.sleep(float(prompt.split()[1]))
            if prompt == "wait":
                self.busy.set()
                assert self.gate.wait(60)
        scores = (
            [
                fake_log_prob(p, c)
                for p, texts in zip(prompts, candidates, strict=False)
                for c in texts
            ]
            if with_score
            else []
        )
        counts = tuple(len(texts) for texts in candidates) if with_score else (0,) * len(prompts)
        heads = {
            name: torch.tensor([[float(len(prompt))] for prompt in prompts]) for name in modules
        }
        return ScoreResult(
            torch.tensor(scores),
            counts,
            heads,
            {"prompts": len(prompts), "tokens": float(sum(map(len, prompts)))},
        )

    def generate(self, request: GenerateRequest) -> GenerateResult:
        """Two tokens for the first sequence of a prompt, three for the second; each with
        probability one half.
        """
        per_prompt = int(request.options.get("num_return_sequences", 1))
        seed = request.options.get("seed", 0)
        lengths = tuple(2 + place for _ in request.prompts for place in range(per_prompt))
        texts = tuple(
            tuple(f"{prompt}+{seed}+{place}" for place in range(per_prompt))
            for prompt in request.prompts
        )
        total = sum(lengths)
        return GenerateResult(
            texts,
            torch.arange(total),
            torch.full((total,), 0.5).log(),
            lengths,
            {"tokens": float(total)},
        )

    def reset(self, seed: int, weights: str = "pretrained", unused: tuple[str, ...] = ()) -> None:
        start = (
            ""
            if weights == "pretrained" and not unused
            else f" {weights} without {', '.join(unused)}"
        )
        self.log.append(f"reset {seed}{start}")
        self.weight = 0.0
        self.weights_version += 1

    def save(self, folder: Path) -> None:
        (folder / "weight.txt").write_text(str(self.weight))

    def load(self, folder: Path) -> None:
        self.weight = float((folder / "weight.txt").read_text())
        self.weights_version += 1

    def forget(self, reference: bool = True) -> None:
        """This fake remembers nothing."""

    def info(self) -> dict[str, Scalar]:
        return {"name": "fake", "weight": self.weight}


class SumUpdater:
    """Adds the batch's ``signals`` to the weight, in ``steps`` sums over the servers.

    Options: ``fail_rank`` is the server that raises, ``fail_step`` before which sum (``steps``
        means after the last); ``skip_rank`` leaves out its
    first sum, as an updater that forgets about empty shards does; ``sleep_rank`` waits ``sleep``
    seconds before anything else.
    """

    def __init__(self) -> None:
        self.seed = 0

    def set_llm_module(self, llm_module: Any) -> None:
        self._host = llm_module

    def set_group(self, group: ServerGroup) -> None:
        self._group = group

    def update(self, request: UpdateRequest) -> UpdateResult:
        self._host.log.append(f"update {request.options.get('name', '')}")
        steps = int(request.options.get("steps", 1))
        if request.options.get("sleep_rank") == self._group.rank:
            time.sleep(float(request.options["sleep"]))
        total = torch.zeros(1)
        for step in range(steps):
            self._fail_if(request, step)
            if step == 0 and request.options.get("skip_rank") == self._group.rank:
                continue
            total = (
                request.data["signals"].sum().reshape(1) if len(request.prompts) else torch.zeros(1)
            )
            self._group.all_reduce_sum(total)
        self._fail_if(request, steps)
        self._host.weight += float(total)
        self._host.weights_version += 1
        return UpdateResult({"weight": self._host.weight, "shard": float(len(request.prompts))})

    def reset(self, seed: int) -> None:
        self.seed = seed

    def save(self, folder: Path) -> None:
        (folder / "seed.txt").write_text(str(self.seed))

    def load(self, folder: Path) -> None:
        self.seed = int((folder / "seed.txt").read_text())

    def _fail_if(self, request: UpdateRequest, step: int) -> None:
        if (
            request.options.get("fail_rank") == self._group.rank
            and request.options.get("fail_step", 0) == step
        ):
            raise ArithmeticError(f"server {self._group.rank} was asked to fail before sum {step}")


@dataclass
class ThreadedLaunch:
    """Ranks as threads that talk over real sockets.

    Attributes:
        ends: Lines with which a server would have ended its process.
        errors: What ``serve`` raised, by server index.
    """

    setup: DistributedSetupArgs
    callers: list[Caller] = field(default_factory=list)
    hosts: list[FakeHost] = field(default_factory=list)
    listeners: dict[int, TcpListener] = field(default_factory=dict)
    ends: list[str] = field(default_factory=list)
    errors: dict[int, BaseException] = field(default_factory=dict)
    threads: list[threading.Thread] = field(default_factory=list)
    merging: Merging = ALONE

    def join(self, timeout_s: float = 60.0) -> None:
        """Wait for the servers to end."""
        for thread in self.threads:
            thread.join(timeout_s)
            assert not thread.is_alive(), f"{thread.name} does not end"


@contextmanager
def threaded_launch(
    num_clients: int = 1,
    num_servers: int = 1,
    timeout_s: float = 30.0,
    grace_s: float = 0.3,
    group_timeout_s: float = 20.0,
    hosts: Sequence[Any] = (),
    merging: Merging = ALONE,
) -> Iterator[ThreadedLaunch]:
    """Start servers and clients; closes what is still open at the end. ``hosts`` are fakes where
    none are given.
    """
    setup = DistributedSetupArgs(num_clients, num_servers)
    launch = ThreadedLaunch(setup, merging=merging)
    store = dist.HashStore()
    groups = make_thread_groups(num_servers, group_timeout_s)
    launch.hosts = list(hosts) or [FakeHost() for _ in range(num_servers)]
    for index in range(num_servers):
        thread = threading.Thread(
            target=_serve,
            args=(launch, store, index, groups[index], grace_s),
            name=f"server {index}",
            daemon=True,
        )
        thread.start()
        launch.threads.append(thread)
    try:
        _in_parallel(
            [
                lambda rank=rank: _connect(launch, store, rank, timeout_s)
                for rank in range(num_clients)
            ]
        )  # type: ignore[misc]
        launch.callers.sort(key=lambda caller: caller.rank)  # type: ignore[attr-defined]
        deadline = time.monotonic() + 60
        while len(launch.listeners) < num_servers:
            assert time.monotonic() < deadline, "a server does not get through"
            time.sleep(0.001)
        yield launch
    finally:
        for host in launch.hosts:
            if isinstance(host, FakeHost):
                host.gate.set()
        for caller in launch.callers:
            caller.close()
        launch.join()


def _connect(launch: ThreadedLaunch, store: Any, rank: int, timeout_s: float) -> None:
    links = connect_to_servers(store, launch.setup, rank, 60.0)
    transport = TcpTransport(
        links, peer_of(rank, launch.setup), timeout_s, with_tickets=launch.setup.n_rl_processes > 1
    )
    caller = Caller(transport, first_server=rank % launch.setup.n_llm_processes)
    caller.rank = rank  # type: ignore[attr-defined]
    launch.callers.append(caller)


def _serve(
    launch: ThreadedLaunch, store: Any, index: int, group: ServerGroup, grace_s: float
) -> None:
    rank = launch.setup.n_rl_processes + index
    me = peer_of(rank, launch.setup)
    listener = TcpListener(
        *meet_peers(store, launch.setup, rank, "127.0.0.1", 60.0), me, grace_s, launch.ends.append
    )
    launch.listeners[index] = listener
    try:
        updaters = {"sum": SumUpdater()}
        Server(launch.hosts[index], updaters, listener, group, me, launch.merging).serve()
    except BaseException as error:
        launch.errors[index] = error
        listener.fail(error)
    listener.close()


def _in_parallel(works: Sequence[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a client does not get through"
