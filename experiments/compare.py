"""Every arm with every seed on every task, one after the other in one launch: ``python -m launchers
compare --config-name demo``.

The servers stay up between runs and go back to their first weights. Complete runs are skipped, a
stopped one goes on from its checkpoint, so the same command finishes what was interrupted. Ends
with the report; its path is printed last.

``--part 1/2`` and ``--part 2/2``, started side by side, share a comparison between two processes;
each does every second run.

With ``-m`` arms, seeds and tasks can be swept as every key can, ``-m arm=a,b run.seed=range(0,3)
student.lr=1e-3,3e-4``: a sweep over another key makes a comparison for each of its values.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.runs.build import clients_of, for_all, run_as_ranked
from experiments.runs.checks import check_configs
from experiments.runs.entry import add_sweep_argument, make_parser, run_main, say, start_log
from experiments.runs.planning import Planned, plan, plan_sweep
from experiments.runs.progress import Ticker
from experiments.runs.versions import describe_versions
from experiments.train import train_one
from experiments.viewer.__main__ import make_viewer
from lamorel_ext.errors import CheckpointError, ConfigError
from lamorel_ext.processes.ranks import rank_of_log

if TYPE_CHECKING:
    from lamorel_ext.rpc.caller import Caller
    from lamorel_ext.rpc.clients import Clients
    from lamorel_ext.types import LlmClient

log = logging.getLogger(__name__)


def compare(
    runs: Sequence[Planned],
    llm: LlmClient,
    versions: dict[str, object],
    clients: Clients | None = None,
) -> None:
    """Train every run that is not complete. The first failure ends the comparison; what is complete
    stays.

    Raises:
        LamorelExtError: As ``train_one``.
    """
    from experiments.runs.run_folder import steps_done
    from lamorel_ext.training.shared import ONE_CLIENT

    clients = clients or ONE_CLIENT
    complete = clients.lead(lambda: note_complete(runs))
    to_do = [planned for planned, done in zip(runs, complete, strict=True) if not done]
    if len(to_do) < len(runs):
        log.info("%d of %d runs are complete already", len(runs) - len(to_do), len(runs))
    ticker = Ticker(sum(planned.config.run.total_steps for planned in to_do))
    for number, planned in enumerate(to_do, start=1):
        name = f"[{number}/{len(to_do)}] {planned.name}"
        ticker.skip(steps_done(planned.folder))
        train_one(planned.config, llm, versions, ticker.listener(name), clients)


def note_complete(runs: Sequence[Planned]) -> list[bool]:
    """Which runs are complete; they are told that they are part of this comparison."""
    from experiments.runs.run_folder import complete_already, note_comparison

    complete = [complete_already(planned.folder, planned.config) for planned in runs]
    for planned, done in zip(runs, complete, strict=True):
        if done:
            note_comparison(planned.folder, planned.config.compare)
    return complete


def show_loop(folder: Path) -> None:
    """Make the viewer's page, where anything was recorded; the report links to it, and is made
    without it where a recorded rollout cannot be read.
    """
    from experiments.report.results import read_runs
    from experiments.runs.run_folder import trace_files

    if not any(trace_files(run.folder) for run in read_runs(folder)):
        return
    try:
        say(f"viewer: {make_viewer(folder)}")
    except CheckpointError as error:
        log.warning("no viewer: %s", error)


def part_of(text: str) -> tuple[int, int]:
    """``2/3`` as (1, 3): which part, counted from zero, of how many."""
    number, separator, parts = text.partition("/")
    if not (
        separator and number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)
    ):
        raise argparse.ArgumentTypeError(f"expected K/N with K from 1 to N, got {text!r}")
    return int(number) - 1, int(parts)


def run(argv: Sequence[str]) -> int:
    """Do what the command line asks; every rank calls it."""
    parser = make_parser(
        "lamorel-ext-compare", "Train every arm with every seed on every task, and report."
    )
    parser.add_argument(
        "--part",
        type=part_of,
        default=(0, 1),
        metavar="K/N",
        help="do every N-th run from the K-th on, and no report",
    )
    add_sweep_argument(parser)
    options = parser.parse_intermixed_args(argv)
    comparisons = planned_comparisons(options)
    runs = [run for whole in comparisons for run in whole]
    start_log(runs[0].config.lamorel_args.log_level)
    # Here, as they take seconds: help and mistakes in the configuration come before them.
    from experiments.runs.run_folder import check_folders

    seeds = {whole[0].config.run.seed for whole in comparisons}
    check_configs(run.config for run in runs if run.config.run.seed in seeds)
    check_folders((run.folder, run.config) for run in runs)
    for whole in comparisons:
        if status := compare_whole(whole, options.part, argv):
            return status
    return 0


def planned_comparisons(options: argparse.Namespace) -> list[list[Planned]]:
    """The comparisons that a command line asks for: one, or with ``-m`` each of a sweep.

    Raises:
        ConfigError: With what is wrong with any of them.
    """
    where = (options.overrides, options.config_name, options.config_dir)
    if not options.multirun:
        return [plan(*where)]
    if rank_of_log() is not None:
        raise ConfigError("-m: in one process, or lamorel-ext-launch compare -m; no rank sweeps")
    return plan_sweep(*where)


def compare_whole(whole: Sequence[Planned], share: tuple[int, int], argv: Sequence[str]) -> int:
    """One comparison, or a part of it, from its servers to its report; every rank calls it."""
    from experiments.report.making import make_report
    from lamorel_ext.rpc.distributed import launched_role

    part, parts = share
    config, runs = whole[0].config, whole[part::parts]
    folder = Path(config.compare.output_dir)

    def client(caller: Caller) -> int:
        clients = clients_of(caller, [planned.config for planned in runs])
        versions = describe_versions("compare", argv, config.lamorel_args)
        compare(runs, for_all(caller, clients), versions, clients)
        return 0 if clients.rank else report()

    def report() -> int:
        if parts > 1:
            say(f"part {part + 1} of {parts} is complete: {folder}")
            return 0
        show_loop(folder)
        say(f"report: {make_report(folder)}")
        return 0

    # A report asks no model, and loading one takes seconds.
    if launched_role(config.lamorel_args) is None and all(note_complete(runs)):
        log.info("all %d runs are complete already", len(runs))
        return report()
    others = [planned.config for planned in whole]
    return run_as_ranked(config, client, every_client=True, others=others)


def main() -> int:
    """Entry of ``lamorel-ext-compare``."""
    return run_main(run)


if __name__ == "__main__":
    sys.exit(main())
