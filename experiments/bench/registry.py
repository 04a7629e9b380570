"""All benchmarks by name, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from experiments.bench.harness import Row
    from experiments.bench.subjects import Subjects

    Benchmark = Callable[[Subjects], list[Row]]

MODULES = {
    "scoring": ("score_rollout", "score_distinct", "score_two", "score_growth"),
    "updates": ("update_64", "update_320", "update_script"),
    "transport": ("transport_share",),
    "servers": ("update_shares", "two_servers"),
    "pipeline": ("pipeline",),
    "environments": ("env_text", "env_paper"),
    "iterations": ("figure2_2100", "iterations"),
    "scale.simulate": ("simulate",),
    "gpu": ("score_gpu",),
}


def _imported_late(module: str, name: str) -> Benchmark:
    """Imports the benchmark when it runs: help comes before all that takes seconds."""

    def run(subjects: Subjects) -> list[Row]:
        benchmark: Benchmark = getattr(import_module(f"experiments.bench.{module}"), name)
        return benchmark(subjects)

    return run


BENCHMARKS: dict[str, Benchmark] = {
    name: _imported_late(module, name) for module, names in MODULES.items() for name in names
}
