"""Run folders with numbers chosen by hand, written the way a run writes them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

from experiments.runs.run_folder import RunFolder
from lamorel_ext.config import Config, load_config
from lamorel_ext.config.cells import named, read_cell

VERSIONS = {
    "command": "python -m launchers compare --config-name hand",
    "python": "3.11.7",
    "commit": "abc",
    "dirty": False,
}


@functools.cache
def compose(*overrides: str) -> Config:
    """Composed once: it takes longer than most of what is tested with it."""
    return load_config(overrides)


def compose_cell(name: str, *overrides: str) -> Config:
    """An arm, or a cell, as a comparison composes it."""
    cell = read_cell(name)
    return named(compose(f"arm={cell.base}", *overrides, *cell.overrides), cell)


def make_config(arm: str, seed: int, root: Path, arms: Sequence[str], *overrides: str) -> Config:
    """The configuration of one run of a comparison in ``root``; ``arm`` may be a cell."""
    config = compose_cell(arm, "run.total_steps=20", "run.eval_every=10", *overrides)
    run = dataclasses.replace(config.run, seed=seed, output_dir=str(root / arm / f"seed_{seed}"))
    compare = dataclasses.replace(
        config.compare, name="by hand", arms=tuple(arms), bootstrap_samples=200
    )
    return dataclasses.replace(config, run=run, compare=compare)


def make_row(steps: float, success: float, **more: float) -> dict[str, float]:
    """One evaluation; the return is half the success, a step costs two calls of ten tokens."""
    return {
        "env_steps": steps, "success": success, "return": success / 2, "eval_exact": 1.0,
        "llm_calls": 2 * steps, "llm_tokens": 20 * steps, "seconds": steps / 10, **more,
    }  # fmt: skip


def make_run(config: Config, curve: Sequence[float]) -> Path:
    """A complete run whose evaluations at 0, 10, 20, ..., or further apart where that is needed to
    reach the budget, have the given success.
    """
    folder = Path(config.run.output_dir)
    apart = max(10.0, config.run.total_steps / max(1, len(curve) - 1))
    with RunFolder(folder, config, VERSIONS) as run:
        for point, success in enumerate(curve):
            run.write(make_row(apart * point, success))
    return folder
