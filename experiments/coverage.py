"""How often the report's 95 % intervals hold the truth: ``python -m experiments.coverage``, as
JSON.

Simulates what a comparison does: two arms, one run per seed, a share of the variance common to both
arms of a seed. ``tests/experiments/test_coverage.py`` holds the result to 93 to 97 %.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Sequence

import numpy as np

from experiments.report.statistics import contrast, mean_interval

SEEDS = (3, 5, 10, 20)
EFFECT = 0.8
"""Of the cases with an effect, in standard deviations of the arm without it; the arm with it varies
half as much.
"""
Draw = Callable[[np.random.Generator, int], np.ndarray]


def normal(generator: np.random.Generator, seeds: int) -> np.ndarray:
    """Around zero."""
    return generator.normal(size=seeds)


def skewed(generator: np.random.Generator, seeds: int) -> np.ndarray:
    """Exponential, with mean zero."""
    return generator.exponential(size=seeds) - 1


def bounded(generator: np.random.Generator, seeds: int) -> np.ndarray:
    """Success rates near 1, Beta(9, 1), minus their mean; scaled to a standard deviation of about
    1.
    """
    return (generator.beta(9, 1, size=seeds) - 0.9) / 0.09


SHAPES: dict[str, Draw] = {"normal": normal, "skewed": skewed, "bounded": bounded}


def of_differences(draw: Draw, seeds: int, effect: float, shared: float, sets: int) -> float:
    """Share of ``sets`` comparisons whose interval holds ``effect``.

    Args:
        draw: Of what an arm has on its own, and of what a seed gives to both arms.
        seeds: Runs per arm.
        effect: Ours minus theirs.
        shared: Correlation of the two arms over seeds.
        sets: Comparisons.
    """
    generator, held = np.random.default_rng(0), 0
    for _ in range(sets):
        common = shared**0.5 * draw(generator, seeds)
        ours, theirs = (common + (1 - shared) ** 0.5 * draw(generator, seeds) for _ in "xy")
        if effect:  # runs near the ceiling differ less
            ours = ours / 2 + effect
        interval = contrast([(ours, theirs)]).interval
        held += interval.low <= effect <= interval.high
    return held / sets


def of_one_arm(draw: Draw, seeds: int, sets: int) -> float:
    """Share of ``sets`` arms whose interval holds their mean, which is that of a difference to a
    constant too.
    """
    generator, held = np.random.default_rng(0), 0
    for _ in range(sets):
        interval = mean_interval([draw(generator, seeds)])
        held += interval.low <= 0 <= interval.high
    return held / sets


def table(sets: int) -> list[dict[str, object]]:
    """Every case with its coverage."""
    rows: list[dict[str, object]] = []
    for seeds, (shape, draw) in itertools.product(SEEDS, SHAPES.items()):
        case = {"seeds": seeds, "shape": shape}
        for effect, shared in itertools.product((0.0, EFFECT), (0.0, 0.15, 0.5)):
            found = of_differences(draw, seeds, effect, shared, sets)
            cell = {"effect": effect, "correlation": shared, "coverage": found}
            rows.append({"of": "difference", **case, **cell})
        rows.append({"of": "one arm", **case, "coverage": of_one_arm(draw, seeds, sets)})
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.coverage", description="Simulate the coverage of the intervals."
    )
    parser.add_argument("--sets", type=int, default=4000, help="simulated comparisons per case")
    sets = parser.parse_args(argv).sets
    if sets < 1:
        parser.error(f"--sets: expected at least 1, got {sets}")
    print(json.dumps(table(sets), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
