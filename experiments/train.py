"""Train one arm with one seed: ``python -m experiments.train arm=teacher_feedback run.seed=1
run.output_dir=runs/one``.

The same command resumes a run that was stopped, and does nothing for a complete one. With ``-m``
each value of a sweep is run, one after the other: ``python -m experiments.train -m arm=npae,drrn
run.seed=0,1``.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.runs.build import clients_of, for_all, llm_of, run_as_ranked
from experiments.runs.checks import check_configs
from experiments.runs.entry import add_sweep_argument, make_parser, run_main, say, start_log
from experiments.runs.planning import problems_of
from experiments.runs.progress import Ticker
from experiments.runs.versions import config_hash, describe_versions
from lamorel_ext.config import Config, load_config, search_folders, sweep
from lamorel_ext.errors import ConfigError
from lamorel_ext.processes import stopping
from lamorel_ext.processes.ranks import rank_of_log

if TYPE_CHECKING:
    from experiments.runs.run_folder import ProgressListener
    from lamorel_ext.rpc.caller import Caller
    from lamorel_ext.rpc.clients import Clients
    from lamorel_ext.types import LlmClient

log = logging.getLogger(__name__)


def train_one(
    config: Config,
    llm: LlmClient,
    versions: dict[str, object],
    listener: ProgressListener | None = None,
    clients: Clients | None = None,
) -> None:
    """Train into ``run.output_dir``, from its checkpoint where it has one; of several clients the
    first one writes.

    Raises:
        ConfigError: The folder holds another run.
        CheckpointError: A file cannot be written or read.
        RpcError: A server is gone.
        Stopped: This process was asked to end.
    """
    from experiments.runs.run_folder import RunFolder
    from lamorel_ext.training.loop import train
    from lamorel_ext.training.shared import ONE_CLIENT, LedRecorder, agreed_stop

    clients = clients or ONE_CLIENT
    recorded = {**versions, "config_sha256": config_hash(config)}
    folder = RunFolder(Path(config.run.output_dir), config, recorded, listener)
    with ExitStack() as held:

        def begin() -> None:
            held.enter_context(folder)

        clients.lead(begin)
        first = folder if clients.rank == 0 else None
        recorder = folder if clients.size == 1 else LedRecorder(first, clients)
        train(config, llm_of(config, llm), recorder, clients=clients)
    if clients.size > 1 and (stop := agreed_stop(clients)) is not None:
        raise stopping.leave("this run is complete", stop)
    stopping.check()


def planned(options: argparse.Namespace) -> list[Config]:
    """The runs that a command line asks for: one, or with ``-m`` each of a sweep, in a folder of
    its own below ``run.output_dir``.

    Raises:
        ConfigError: With what is wrong with any of them.
    """
    where = (options.config_name, options.config_dir)
    if not options.multirun:
        return [load_config(options.overrides, *where)]
    if rank_of_log() is not None:
        raise ConfigError("-m: in one process, or lamorel-ext-launch train -m; no rank sweeps")
    configs: list[Config] = []
    problems: list[str] = []
    for swept in sweep(options.overrides, search_folders(options.config_dir)):
        try:
            config = load_config(swept.overrides, *where)
        except ConfigError as error:
            problems += problems_of(swept.name, error)
            continue
        folder = Path(config.run.output_dir) / swept.name
        configs.append(replace(config, run=replace(config.run, output_dir=str(folder))))
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return configs


def run(argv: Sequence[str]) -> int:
    """Do what the command line asks; every rank calls it."""
    parser = make_parser("lamorel-ext-train", "Train one arm with one seed, or each of a sweep.")
    add_sweep_argument(parser)
    configs = planned(parser.parse_intermixed_args(argv))
    start_log(configs[0].lamorel_args.log_level)
    # Here, as it takes seconds.
    from experiments.runs.run_folder import check_folders, complete_already, steps_done

    check_configs(configs)
    check_folders([(Path(config.run.output_dir), config) for config in configs])
    ticker = Ticker(sum(config.run.total_steps for config in configs))

    def train_planned(config: Config, place: str) -> int:
        folder = Path(config.run.output_dir)

        def client(caller: Caller) -> int:
            clients = clients_of(caller, [config])
            if clients.lead(lambda: complete_already(folder, config)):
                log.info("%s is complete already", folder)
                ticker.leave_out(config.run.total_steps)
            else:
                ticker.skip(steps_done(folder))
                name = f"{place}{config.arm.name}, seed {config.run.seed}"
                versions = describe_versions("train", argv, config.lamorel_args)
                llm = for_all(caller, clients)
                train_one(config, llm, versions, ticker.listener(name), clients)
            if clients.rank == 0:
                say(f"run: {folder}")
            return 0

        return run_as_ranked(config, client, every_client=True)

    for number, config in enumerate(configs, start=1):
        place = f"[{number}/{len(configs)}] " if len(configs) > 1 else ""
        if status := train_planned(config, place):
            return status
    return 0


def main() -> int:
    """Entry of ``lamorel-ext-train``."""
    return run_main(run)


if __name__ == "__main__":
    sys.exit(main())
