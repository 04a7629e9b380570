"""Where the time of a run goes: functions at the seams of the program are timed while it runs in
one process.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch

from lamorel_ext.llm.answers import Answerer, TextEncoder
from lamorel_ext.llm.handlers import RequestHandler
from lamorel_ext.llm.host import ModelHost
from lamorel_ext.llm.updaters import CandidateUpdater
from lamorel_ext.llm.updaters.gradients import GradientStepper
from lamorel_ext.prompts import PromptHistory
from lamorel_ext.rpc.caller import Caller

CLIENT = "student"
"""The part of what is on no list: acting, advantages, the student's own update."""
MODEL_PARTS = ("forward", "backward", "optimiser")
SERVER_PARTS = ("server", "memory", "tokenising", "loss", *MODEL_PARTS)

Seam = tuple[object, str, str]
"""Class or module, its function, and the part that the function's own time belongs to; what it
calls on the same list counts for itself.
"""
SEAMS: tuple[Seam, ...] = (
    (PromptHistory, "reset", "prompts"),
    (PromptHistory, "step", "prompts"),
    (Caller, "score_batch", "waiting"),
    (Caller, "update_batch", "waiting"),
    (Caller, "generate_batch", "waiting"),
    (RequestHandler, "handle", "server"),
    (ModelHost, "score", "memory"),
    (TextEncoder, "encode", "tokenising"),
    (TextEncoder, "encode_prompts", "tokenising"),
    (Answerer, "answer", "forward"),
    (CandidateUpdater, "update", "loss"),
    (torch.Tensor, "backward", "backward"),
    (GradientStepper, "clear", "optimiser"),
    (GradientStepper, "collect", "optimiser"),
    (GradientStepper, "reduce", "optimiser"),
    (GradientStepper, "step", "optimiser"),
)
"""Of a training run, its environments aside."""


class Stopwatch:
    """Own time of parts of the program, in seconds.

    It is made on the client's thread. What the client does with the server's functions (a student
    has a backward pass too) is its own.
    """

    def __init__(self) -> None:
        self._client = threading.get_ident()
        self._stacks = threading.local()
        self._lock = threading.Lock()
        self.seconds: dict[str, float] = {}

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its own time added to ``part``."""

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            stack: list[float] = self._stacks.__dict__.setdefault("inner", [])
            stack.append(0.0)
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                elapsed = time.perf_counter() - start
                inner = stack.pop()
                if stack:
                    stack[-1] += elapsed
                own = (
                    CLIENT
                    if part in SERVER_PARTS and threading.get_ident() == self._client
                    else part
                )
                with self._lock:
                    self.seconds[own] = self.seconds.get(own, 0.0) + elapsed - inner

        return run


@contextmanager
def watching(seams: Iterable[Seam], watch: Stopwatch) -> Iterator[None]:
    """Time the seams while the block runs."""
    with ExitStack() as patches:
        for owner, name, part in seams:
            patches.enter_context(
                mock.patch.object(owner, name, watch.timed(part, getattr(owner, name)))
            )
        yield


def seams_with(env: object) -> tuple[Seam, ...]:
    """``SEAMS``, and the steps of environments like ``env``."""
    own = ((type(env), name, "environment") for name in ("reset", "step"))
    return (*SEAMS, *own)


def shares(watch: Stopwatch, total: float) -> dict[str, float]:
    """Share of each part in ``total`` seconds of the client.

    The server works in a thread while the client waits, so waiting is the server's parts and what
    lies between: transport, here the hand-over between threads.
    """
    parts = {
        part: seconds for part, seconds in watch.seconds.items() if part not in ("waiting", CLIENT)
    }
    waited = watch.seconds.get("waiting", 0.0)
    served = sum(parts.get(part, 0.0) for part in SERVER_PARTS)
    parts[CLIENT] = total - waited - (sum(parts.values()) - served)
    parts["transport"] = waited - served
    return {
        part: seconds / total for part, seconds in sorted(parts.items(), key=lambda item: -item[1])
    }
