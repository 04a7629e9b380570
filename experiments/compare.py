"""Every arm with every seed on every task, one after the other in one launch: ``python -m launchers compare --config-name demo``.

The servers stay up between runs and go back to their first weights. Complete runs are skipped, a stopped one goes on from its checkpoint, so the
same command finishes what was interrupted. Ends with the report; its path is printed last.

``--part 1/2`` and ``--part 2/2``, started side by side, share a comparison between two processes; each does every second run.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.build import check_level, run_as_ranked
from experiments.entry import make_parser, run_main, start_log
from experiments.progress import Ticker
from experiments.report import make_report
from experiments.run_folder import check_folders, run_state, steps_done
from experiments.train import train_one
from experiments.versions import describe_versions
from experiments.viewer.__main__ import make_viewer
from lamorel_ext.config import CONFIG_DIR, Config, load_matrix
from lamorel_ext.errors import ConfigError
from lamorel_ext.types import LlmClient

log = logging.getLogger(__name__)

SET_HERE = {"task": "compare.tasks", "arm": "compare.arms", "run.seed": "compare.seeds", "run.output_dir": "compare.output_dir"}


@dataclass(frozen=True)
class Planned:
    """One run of a comparison.

    Attributes:
        name: For the log.
        config: With the arm's values, the seed and the folder.
    """

    name: str
    config: Config

    @property
    def folder(self) -> Path:
        """Where it goes."""
        return Path(self.config.run.output_dir)


def plan(overrides: Sequence[str], config_name: str = "default", config_dir: str | Path = CONFIG_DIR) -> list[Planned]:
    """Compose the configuration anew for each task and arm, so that the experiment's own values and the command line win over theirs.

    Returns:
        The runs, seed by seed, and task by task within a seed, so that an interrupted comparison has complete pairs.

    Raises:
        ConfigError: With the problems of every task and arm.
    """
    taken = [text for text in overrides if text.split("=")[0] in SET_HERE]
    if taken:
        raise ConfigError([f"{text}: a comparison sets this itself; set {SET_HERE[text.split('=')[0]]}" for text in taken])
    configs = load_matrix(overrides, config_name, config_dir)
    first = next(iter(configs.values()))
    others = [where for where, config in configs.items() if config.lamorel_args != first.lamorel_args]
    if others:
        words = ", ".join(f"task={task} arm={arm}" if task else f"arm={arm}" for task, arm in others)
        raise ConfigError(f"lamorel_args: one launch has one set of servers, but with {words} it differs from the first run's")
    return [_plan_one(task, arm, seed, config) for seed in first.compare.seeds for (task, arm), config in configs.items()]


def _plan_one(task: str, arm: str, seed: int, config: Config) -> Planned:
    folder = Path(config.compare.output_dir) / task / arm / f"seed_{seed}"
    run = dataclasses.replace(config.run, seed=seed, output_dir=str(folder))
    return Planned(f"{task + ', ' if task else ''}{arm}, seed {seed}", dataclasses.replace(config, run=run))


def compare(runs: Sequence[Planned], llm: LlmClient, versions: dict[str, object]) -> None:
    """Train every run that is not complete. The first failure ends the comparison; what is complete stays.

    Raises:
        LamorelExtError: As ``train_one``.
    """
    to_do = [planned for planned in runs if run_state(planned.folder) != "complete"]
    if len(to_do) < len(runs):
        log.info("%d of %d runs are complete already", len(runs) - len(to_do), len(runs))
    ticker = Ticker(sum(planned.config.run.total_steps for planned in to_do))
    for number, planned in enumerate(to_do, start=1):
        name = f"[{number}/{len(to_do)}] {planned.name}"
        ticker.skip(steps_done(planned.folder))
        train_one(planned.config, llm, versions, ticker.listener(name))


def show_loop(folder: Path) -> None:
    """Make the viewer's page, where anything was recorded; the report links to it."""
    if any(folder.rglob("traces/step_*.jsonl")):
        print(f"viewer: {make_viewer(folder)}")


def part_of(text: str) -> tuple[int, int]:
    """``2/3`` as (1, 3): which part, counted from zero, of how many."""
    number, separator, parts = text.partition("/")
    if not (separator and number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
        raise argparse.ArgumentTypeError(f"expected K/N with K from 1 to N, got {text!r}")
    return int(number) - 1, int(parts)


def run(argv: Sequence[str]) -> int:
    """Do what the command line asks; every rank calls it."""
    parser = make_parser("lamorel-ext-compare", "Train every arm with every seed on every task, and report.")
    parser.add_argument("--part", type=part_of, default=(0, 1), metavar="K/N", help="do every N-th run from the K-th on, and no report")
    options = parser.parse_intermixed_args(argv)
    whole = plan(options.overrides, options.config_name, options.config_dir)
    part, parts = options.part
    runs = whole[part::parts]
    config = whole[0].config
    start_log(config.lamorel_args.log_level)
    check_folders((planned.folder, planned.config) for planned in whole)
    for first in {planned.config.env: planned.config for planned in whole}.values():
        check_level(first)

    def client(llm: LlmClient) -> int:
        compare(runs, llm, describe_versions("compare", argv))
        folder = Path(config.compare.output_dir)
        if parts > 1:
            print(f"part {part + 1} of {parts} is complete: {folder}")
            return 0
        show_loop(folder)
        print(f"report: {make_report(folder)}")
        return 0

    return run_as_ranked(config, client)


def main() -> int:
    """Entry of ``lamorel-ext-compare``."""
    return run_main(run)


if __name__ == "__main__":
    sys.exit(main())
