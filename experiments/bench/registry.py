"""All benchmarks by name, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable

from experiments.bench.environments import env_paper, env_text
from experiments.bench.gpu import score_gpu
from experiments.bench.harness import Row
from experiments.bench.iterations import figure2_2100, iterations
from experiments.bench.pipeline import pipeline
from experiments.bench.scoring import score_distinct, score_growth, score_rollout, score_two
from experiments.bench.subjects import Subjects
from experiments.bench.transport import transport_share
from experiments.bench.updates import update_64, update_320, update_script

BENCHMARKS: dict[str, Callable[[Subjects], list[Row]]] = {
    "score_rollout": score_rollout,
    "score_distinct": score_distinct,
    "score_two": score_two,
    "score_growth": score_growth,
    "update_64": update_64,
    "update_320": update_320,
    "update_script": update_script,
    "transport_share": transport_share,
    "pipeline": pipeline,
    "env_text": env_text,
    "env_paper": env_paper,
    "figure2_2100": figure2_2100,
    "iterations": iterations,
    "score_gpu": score_gpu,
}
