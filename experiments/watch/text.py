"""What is shown of runs, as words and numbers: the same on a terminal and in a file."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from experiments.runs.progress import describe_seconds
from experiments.watch.reading import Seen, age, planned

HEADER = (
    "run", "state", "steps", "success", "return", "steps/s", "tokens/s", "memory hits", "queue",
    "changed",
)  # fmt: skip
LIVELY = ("running", "failed", "broken", "gone", "stopped", "complete")
"""Whose details are shown: the first of these, and of several the one that changed last."""


def headline(runs: Sequence[Seen]) -> str:
    """How many runs there are, by state."""
    states = Counter(seen.state for seen in runs)
    told = ", ".join(f"{states[state]} {state}" for state in LIVELY if states[state])
    of = f" of {number}" if (number := planned(runs)) > len(runs) else ""
    return f"{len(runs)}{of} run{'' if len(runs) == 1 and not of else 's'}: {told}"


def cells(seen: Seen) -> list[str]:
    """A row below ``HEADER``."""
    sample = seen.sample
    queue = seen.of_servers.get("queue_seconds")
    return [
        seen.name,
        seen.state,
        f"{seen.env_steps} of {seen.total_steps}" if seen.total_steps else "",
        _number(seen.success, ".3f"),
        _number(seen.returned, ".3f"),
        _number(sample.get("env_steps_per_s"), ".1f"),
        _number(sample.get("tokens_per_s"), ".0f"),
        _number(sample.get("memory_hits"), ".0%"),
        "" if queue is None else f"{1000 * queue:.1f} ms",
        f"{describe_seconds(age(seen))} ago" if seen.updated else "",
    ]


def liveliest(runs: Sequence[Seen]) -> Seen:
    """The run whose details are shown."""
    return min(runs, key=lambda seen: (_place(seen.state), -seen.updated))


def details(seen: Seen) -> list[tuple[str, str]]:
    """Name and text of what one run shows besides."""
    found = []
    if seen.phases:
        shares = sorted(seen.phases.items(), key=lambda item: -item[1])
        text = ", ".join(f"{name} {share:.0%}" for name, share in shares if share >= 0.005)
        found.append((f"last {describe_seconds(seen.sample['seconds'])}", text))
    if seen.of_servers:
        means = ", ".join(f"{name} {value:.4g}" for name, value in seen.of_servers.items())
        found.append(("a call, in the mean", means))
    if waits := seen.waits:
        told = ", ".join(f"{p} % within {1000 * seconds:.1f} ms" for p, seconds in waits.items())
        found.append(("answers", told))
    if seen.memory_mib:
        ranks = [f"rank {rank} {mib:.0f} MiB" for rank, mib in seen.memory_mib.items()]
        found.append(("memory", ", ".join(ranks)))
    if seen.problem:
        found.append((seen.state, seen.problem))
    found += [("warning", line) for line in seen.warnings]
    return found


def plain(runs: Sequence[Seen]) -> str:
    """Everything, without colours."""
    rows = [list(HEADER), *map(cells, runs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    lines = [headline(runs), ""]
    for row in rows:
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join(padded).rstrip())
    shown = liveliest(runs)
    for seen in runs:
        told = details(seen) if seen is shown else [(seen.state, seen.problem)]
        told = [(name, text) for name, text in told if text]
        if told:
            lines += ["", seen.name, *(f"  {name}: {_indented(text)}" for name, text in told)]
    return "\n".join(lines)


def _indented(text: str) -> str:
    return text.rstrip().replace("\n", "\n    ")


def _place(state: str) -> int:
    return LIVELY.index(state) if state in LIVELY else len(LIVELY)


def _number(value: float | None, form: str) -> str:
    return "" if value is None or math.isnan(value) else format(value, form)
