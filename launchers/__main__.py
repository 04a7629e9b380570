"""Start an experiment on several ranks: ``python -m launchers compare --config-name demo
feedback.lr=1e-5``.

Without options the ranks start on this machine. ``--slurm`` prints a batch script instead,
``--slurm-array`` one with a job per task, arm and seed. ``--dry-run`` starts nothing and prints the
command, the batch script and who is who among the ranks.

``script`` starts a script written for Lamorel, ``alias`` runs a command under Lamorel's names; see
``launchers.script``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from experiments.runs.checks import check_configs
from experiments.runs.entry import ConfigParser, add_config_arguments, add_trust_argument, run_main
from experiments.runs.planning import plan, policy_config, split_policy
from lamorel_ext.config import CONFIG_DIR, Config, load_config, load_matrix
from lamorel_ext.errors import ConfigError
from lamorel_ext.rpc.topology import format_table, placements
from launchers import script
from launchers.command import MODULES, Command, accelerate_launch, one_process
from launchers.local import run_here
from launchers.slurm import array_script, batch_script


def make_parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    parser = ConfigParser(
        prog="lamorel-ext-launch", description="Start an experiment on several ranks."
    )
    parser.add_argument("task", choices=sorted(MODULES), help="what to run")
    add_config_arguments(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="start nothing; print command, batch script and ranks",
    )
    parser.add_argument(
        "--one-process", action="store_true", help="both roles in one process, without accelerate"
    )
    parser.add_argument("--slurm", action="store_true", help="print a batch script for sbatch")
    parser.add_argument(
        "--slurm-array",
        action="store_true",
        help="print a batch script with one job per task, arm and seed",
    )
    parser.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a further #SBATCH option, such as time=02:00:00",
    )
    add_trust_argument(parser)
    return parser


def checked_config(
    task: str,
    overrides: Sequence[str],
    config_name: str,
    config_dir: str,
    array: bool = False,
    trusted: Sequence[str] = (),
) -> Config:
    """The configuration, for a comparison of its first run. All of them are read and checked, so
    that a mistake is found before any rank starts.

    Args:
        array: True for jobs of their own, which need not share servers.
        trusted: See ``policy_config``.

    Raises:
        ConfigError: With every problem.
        CheckpointError: The policy to be evaluated is no run folder.
    """
    if array:
        configs = list(load_matrix(overrides, config_name, config_dir).values())
    elif task == "compare":
        configs = [planned.config for planned in plan(overrides, config_name, config_dir)]
    elif task == "evaluate":
        configs = [policy_config(*split_policy(overrides), config_name, config_dir, trusted)]
    else:
        configs = [load_config(overrides, config_name, config_dir)]
    check_configs(configs, imports=False)
    placements(configs[0].lamorel_args)
    return configs[0]


def launch(argv: Sequence[str]) -> int:
    """Do what the command line asks; gives the exit status.

    Raises:
        ConfigError: The configuration cannot be used.
    """
    options = make_parser().parse_intermixed_args(argv)
    config = checked_config(
        options.task,
        options.overrides,
        options.config_name,
        options.config_dir,
        options.slurm_array,
        options.trust,
    )
    sbatch = dict(_option(text) for text in options.sbatch)
    arguments = ["--config-name", options.config_name, *options.overrides]
    if options.config_dir != str(CONFIG_DIR):
        arguments = ["--config-dir", options.config_dir, *arguments]
    for package in options.trust:
        arguments = ["--trust", package, *arguments]
    if options.slurm_array:
        print(array_script(config, arguments, sbatch), end="")
    elif options.slurm:
        print(batch_script(config, options.task, arguments, sbatch), end="")
    else:
        command = (
            one_process(options.task, arguments, sys.executable)
            if options.one_process
            else accelerate_launch(config, options.task, arguments)
        )
        if not options.dry_run:
            return run_here(command)
        print(_dry_run(config, command, batch_script(config, options.task, arguments, sbatch)))
    return 0


def _dry_run(config: Config, command: Command, script: str) -> str:
    table = format_table(placements(config.lamorel_args), config.env.num_envs)
    return (
        f"# ranks\n{table}\n\n# on this machine\n{command.shell()}\n\n# for"
        f" sbatch\n{script.rstrip()}"
    )


def _option(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator:
        raise ConfigError(f"--sbatch {text}: expected KEY=VALUE")
    return key, value


def main() -> int:
    """Entry of ``lamorel-ext-launch``."""
    if sys.argv[1:2] in (["script"], ["alias"]):
        return script.main(sys.argv[1], sys.argv[2:])
    return run_main(launch)


if __name__ == "__main__":
    sys.exit(main())
