"""Train one arm with one seed: ``python -m experiments.train arm=teacher_feedback_gae run.seed=1 run.output_dir=runs/one``.

The same command resumes a run that was stopped, and does nothing for a complete one.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.build import llm_of, run_as_ranked
from experiments.checks import check_configs
from experiments.entry import make_parser, run_main, start_log
from experiments.progress import Ticker
from experiments.versions import describe_versions
from lamorel_ext.config import Config, load_config
from lamorel_ext.processes import stopping

if TYPE_CHECKING:
    from experiments.run_folder import ProgressListener
    from lamorel_ext.types import LlmClient

log = logging.getLogger(__name__)


def train_one(config: Config, llm: LlmClient, versions: dict[str, object], listener: ProgressListener | None = None) -> None:
    """Train into ``run.output_dir``, from its checkpoint where it has one.

    Raises:
        ConfigError: The folder holds another run.
        CheckpointError: A file cannot be written or read.
        RpcError: A server is gone.
        Stopped: This process was asked to end.
    """
    from experiments.run_folder import RunFolder
    from lamorel_ext.student.loop import train

    with RunFolder(Path(config.run.output_dir), config, versions, listener) as recorder:
        train(config, llm_of(config, llm), recorder)
    stopping.check()


def run(argv: Sequence[str]) -> int:
    """Do what the command line asks; every rank calls it."""
    options = make_parser("lamorel-ext-train", "Train one arm with one seed.").parse_intermixed_args(argv)
    config = load_config(options.overrides, options.config_name, options.config_dir)
    start_log(config.lamorel_args.log_level)
    folder = Path(config.run.output_dir)
    from experiments.run_folder import check_folders, run_state, steps_done  # takes seconds

    check_configs([config])
    check_folders([(folder, config)])

    def client(llm: LlmClient) -> int:
        if run_state(folder) == "complete":
            log.info("%s is complete already", folder)
        else:
            ticker = Ticker(config.run.total_steps)
            ticker.skip(steps_done(folder))
            train_one(config, llm, describe_versions("train", argv), ticker.listener(f"{config.arm.name}, seed {config.run.seed}"))
        print(f"run: {folder}")
        return 0

    return run_as_ranked(config, client)


def main() -> int:
    """Entry of ``lamorel-ext-train``."""
    return run_main(run)


if __name__ == "__main__":
    sys.exit(main())
