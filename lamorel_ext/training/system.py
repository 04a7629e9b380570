"""How a run uses its machines: seconds by phase, work in a second, memory of each rank. It changes
nothing of the run, and no number of the learning curve.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np

from lamorel_ext.agents.metering import Phases
from lamorel_ext.processes.memory import MEMORY_OF_RANK, MEMORY_OF_SERVER
from lamorel_ext.types import Scalar

PHASES = ("collecting", "scoring", "updating", "learning", "evaluating", "saving")
"""``scoring`` and ``updating`` are waits for the servers, which are left out of the others:
``collecting`` is then what the environments and the agent take.
"""
PERCENTILES = (50, 95, 99)
LEAST_S, MOST_S, SHARE = 5.0, 60.0, 0.005
"""Seconds between two samples: a share of the time so far, within bounds."""


class SystemMeter:
    """Samples of what a run does.

    Args:
        phases: Counts the seconds, and what the servers say about their work.
        clock: Seconds, for tests.
    """

    def __init__(self, phases: Phases, clock: Callable[[], float] = time.perf_counter) -> None:
        self._phases, self._clock = phases, clock
        self._sampled = False
        self.start(0)

    def start(self, env_steps: int) -> None:
        """The run begins, or goes on, at this step."""
        self._before: dict[str, float] = {"env_steps": float(env_steps)}
        self._begun = self._last = self._clock()

    @property
    def due(self) -> bool:
        """True after the first rollout, and when some time has gone by since the last sample."""
        now = self._clock()
        pause = min(max(LEAST_S, SHARE * (now - self._begun)), MOST_S)
        return not self._sampled or now - self._last >= pause

    def sample(
        self, counters: Mapping[str, float], memory_mib: Mapping[int, float]
    ) -> dict[str, float]:
        """What has been done since the last sample, or the start of this process.

        Args:
            counters: Of the whole run; ``env_steps`` is needed.
            memory_mib: Of each rank.

        Returns:
            ``env_steps`` of the run; ``seconds`` since the last sample, and how they divide
            (``seconds_PHASE``); ``env_steps_per_s``; where there is an LLM, ``tokens_per_s`` and
            ``prompts_per_s``, ``memory_hits``, the share of prompts that a server answered from
            memory, ``server_NAME``, the mean over calls for scores of what else the servers said,
            and ``answer_seconds_p50`` (95, 99), percentiles of this client's waits for an answer;
            ``memory_mib_rank_R``.
        """
        now = self._clock()
        seconds = max(now - self._last, 1e-9)
        spent = {f"seconds_{name}": self._phases.seconds.get(name, 0.0) for name in PHASES}
        told = dict(self._phases.told)
        totals = {**spent, **told, "env_steps": counters["env_steps"]}
        since = {name: value - self._before.get(name, 0.0) for name, value in totals.items()}
        row = {"env_steps": counters["env_steps"], "seconds": seconds}
        row |= {name: since[name] for name in spent}
        row["env_steps_per_s"] = since["env_steps"] / seconds
        row |= _of_servers({name: since[name] for name in told}, seconds)
        if waits := list(self._phases.waits):
            values = np.percentile(waits, PERCENTILES)
            row |= {
                f"answer_seconds_p{p}": float(v) for p, v in zip(PERCENTILES, values, strict=True)
            }
            self._phases.waits.clear()
        row |= {f"{MEMORY_OF_RANK}{rank}": value for rank, value in sorted(memory_mib.items())}
        self._before, self._last, self._sampled = totals, now, True
        return row


def _of_servers(told: Mapping[str, float], seconds: float) -> dict[str, float]:
    """Rates and means of what the servers said within so many seconds."""
    if not told:
        return {}
    calls, prompts = told["calls"], told.get("prompts", 0.0)
    means = {
        f"server_{name}": value / max(calls, 1.0)
        for name, value in told.items()
        if name not in ("calls", "tokens", "prompts", "cached_prompts")
    }
    return {
        "tokens_per_s": told.get("tokens", 0.0) / seconds,
        "prompts_per_s": prompts / seconds,
        "memory_hits": told.get("cached_prompts", 0.0) / prompts if prompts else 0.0,
        **means,
    }


def memory_of_ranks(clients: list[float], told: Mapping[str, Scalar] | None) -> dict[int, float]:
    """MiB by rank: clients first, then servers.

    Args:
        clients: MiB of each.
        told: What the servers say about themselves; None without an LLM.
    """
    found = dict(enumerate(clients))
    for name, value in (told or {}).items():
        server = name.removeprefix(MEMORY_OF_SERVER)
        if name.startswith(MEMORY_OF_SERVER) and server.isdecimal():
            found[len(clients) + int(server)] = float(value)
    return found
