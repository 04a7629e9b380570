"""Train one arm with one seed: ``python -m experiments.train arm=teacher_feedback_gae run.seed=1
run.output_dir=runs/one``.

The same command resumes a run that was stopped, and does nothing for a complete one.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.runs.build import clients_of, for_all, llm_of, run_as_ranked
from experiments.runs.checks import check_configs
from experiments.runs.entry import make_parser, run_main, start_log
from experiments.runs.progress import Ticker
from experiments.runs.versions import config_hash, describe_versions
from lamorel_ext.config import Config, load_config
from lamorel_ext.processes import stopping

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


def run(argv: Sequence[str]) -> int:
    """Do what the command line asks; every rank calls it."""
    options = make_parser(
        "lamorel-ext-train", "Train one arm with one seed."
    ).parse_intermixed_args(argv)
    config = load_config(options.overrides, options.config_name, options.config_dir)
    start_log(config.lamorel_args.log_level)
    folder = Path(config.run.output_dir)
    from experiments.runs.run_folder import check_folders, run_state, steps_done  # takes seconds

    check_configs([config])
    check_folders([(folder, config)])

    def client(caller: Caller) -> int:
        clients = clients_of(caller)
        if clients.lead(lambda: run_state(folder)) == "complete":
            log.info("%s is complete already", folder)
        else:
            ticker = Ticker(config.run.total_steps)
            ticker.skip(steps_done(folder))
            name = f"{config.arm.name}, seed {config.run.seed}"
            versions = describe_versions("train", argv)
            train_one(config, for_all(caller, clients), versions, ticker.listener(name), clients)
        if clients.rank == 0:
            print(f"run: {folder}")
        return 0

    return run_as_ranked(config, client, every_client=True)


def main() -> int:
    """Entry of ``lamorel-ext-train``."""
    return run_main(run)


if __name__ == "__main__":
    sys.exit(main())
