"""Start an experiment on several ranks: ``python -m launchers compare --config-name demo
feedback.lr=1e-5``.

Without options the ranks start on this machine. ``--slurm`` prints a batch script instead,
``--slurm-array`` one with a job per task, arm and seed, ``--submit`` hands it to ``sbatch``
(``docs/clusters.md``). ``--dry-run`` starts nothing and prints the command, the batch script and
who is who among the ranks. ``-m`` starts a launch for each value of a sweep, one after the other.

``script`` starts a script written for Lamorel, ``alias`` runs a command under Lamorel's names; see
``launchers.script``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from operator import attrgetter

from experiments.runs.checks import check_configs
from experiments.runs.entry import (
    ConfigParser,
    add_config_arguments,
    add_sweep_argument,
    add_trust_argument,
    run_main,
    say,
)
from experiments.runs.planning import plan, policy_config, split_policy, swept_lines
from lamorel_ext.config import CONFIG_DIR, Config, load_config, load_matrix
from lamorel_ext.errors import ConfigError
from lamorel_ext.processes.secret import VARIABLE
from lamorel_ext.rpc.topology import format_table, placements
from launchers import script
from launchers.command import MODULES, accelerate_launch, machine_commands, one_process
from launchers.local import run_here
from launchers.slurm import SlurmOptions, array_script, batch_script, read_option, report_script
from launchers.submit import Job, submit


def make_parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    parser = ConfigParser(
        prog="lamorel-ext-launch", description="Start an experiment on several ranks."
    )
    parser.add_argument(
        "task",
        choices=sorted(MODULES),
        help="what to run; Lamorel's scripts: script --help, alias --help",
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="start nothing; print command, batch script and ranks",
    )
    parser.add_argument(
        "--one-process", action="store_true", help="both roles in one process, without accelerate"
    )
    add_sweep_argument(parser)
    add_trust_argument(parser)
    _add_slurm_arguments(parser)
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
        # a policy is refused where the script is written, which sets its own
        shared = split_policy(overrides)[1] if task == "evaluate" else overrides
        configs = list(load_matrix(shared, config_name, config_dir).values())
    elif task == "compare":
        configs = [planned.config for planned in plan(overrides, config_name, config_dir)]
    elif task == "evaluate":
        configs = [policy_config(*split_policy(overrides), config_name, config_dir, trusted)]
    else:
        configs = [load_config(overrides, config_name, config_dir)]
    check_configs(configs, imports=False)
    placements(configs[0].lamorel_args)
    if array:
        _check_servers_alike(configs)
    return configs[0]


def _check_servers_alike(configs: Sequence[Config]) -> None:
    """One script starts every job of an array."""
    first = configs[0]
    for name in ("distributed_setup_args", "accelerate_args", "llm_args.parallelism"):
        of = attrgetter(f"lamorel_args.{name}")
        for config in configs:
            if of(config) != of(first):
                raise ConfigError(
                    f"lamorel_args.{name}: the jobs of one array start alike, but {first.arm.name}"
                    f" has {of(first)} and {config.arm.name} has {of(config)}; make an array for"
                    " each"
                )


def launch(argv: Sequence[str]) -> int:
    """Do what the command line asks; gives the exit status.

    Raises:
        ConfigError: The configuration cannot be used.
    """
    options = make_parser().parse_intermixed_args(argv)
    slurm = _slurm_options(options)
    where = (options.config_name, options.config_dir)
    lines = [options.overrides]
    if options.trust and options.task != "evaluate":
        raise ConfigError(
            f"--trust: only evaluate reads a run folder; {options.task} imports what its own"
            " configuration names"
        )
    if options.multirun:
        if options.task == "evaluate":
            raise ConfigError("-m: evaluate has one policy at a time")
        comparison = options.slurm_array or options.slurm_report
        task = "compare" if comparison else options.task
        lines = swept_lines(task, options.overrides, *where)
    configs = [
        checked_config(options.task, line, *where, options.slurm_array, options.trust)
        for line in lines
    ]
    if len(lines) > 1 and _writes_batch_script(options) and not options.submit:
        raise ConfigError(f"-m: {len(lines)} batch scripts; --submit hands in each of them")
    for line, config in zip(lines, configs, strict=True):
        if status := _launch_one(options, line, config, slurm):
            return status
    return 0


def _launch_one(
    options: argparse.Namespace, overrides: Sequence[str], config: Config, slurm: SlurmOptions
) -> int:
    """One line of a sweep, or all that there is; gives the exit status."""
    arguments = ["--config-name", options.config_name, *overrides]
    if options.config_dir != str(CONFIG_DIR):
        arguments = ["--config-dir", options.config_dir, *arguments]
    for package in options.trust:
        arguments = ["--trust", package, *arguments]
    if _writes_batch_script(options):
        jobs = _jobs(options, config, arguments, slurm)
        if options.submit and not options.dry_run:
            return submit(jobs)
        # "id=": the first job of a launch waits for none.
        chain = "\n".join(["id=", *(job.shell() for job in jobs)])
        say(chain if options.submit else jobs[0].text.rstrip())
        return 0
    if options.dry_run:
        table = format_table(placements(config.lamorel_args), config.env.num_envs)
        text = batch_script(config, options.task, arguments, slurm).rstrip()
        say(f"# ranks\n{table}\n\n{_by_hand(options, config, arguments)}\n\n# for sbatch\n{text}")
        return 0
    if options.one_process:
        return run_here(one_process(options.task, arguments, sys.executable))
    return run_here(accelerate_launch(config, options.task, arguments))


def _by_hand(options: argparse.Namespace, config: Config, arguments: Sequence[str]) -> str:
    """What is typed on each machine where no scheduler does it."""
    if options.one_process:
        return f"# on this machine\n{one_process(options.task, arguments, sys.executable).shell()}"
    try:
        commands = machine_commands(config, options.task, arguments)
    except ConfigError as error:
        return "\n".join(f"# by hand: {problem}" for problem in error.problems)
    if len(commands) == 1:
        return f"# on this machine\n{commands[0].shell()}"
    lines = [f"# on machine {place}\n{each.shell()}" for place, each in enumerate(commands)]
    secret = f"# first, with the same random text on every machine: export {VARIABLE}=..."
    return "\n\n".join([secret, *lines])


def _jobs(
    options: argparse.Namespace, config: Config, arguments: Sequence[str], slurm: SlurmOptions
) -> list[Job]:
    """The jobs that the command line asks for, in order; an array that trains has its report behind
    it.
    """
    report = Job("report", report_script(config, slurm))
    if options.slurm_report:
        return [report]
    write = array_script if options.slurm_array else batch_script
    job = Job(
        "array" if options.slurm_array else "job", write(config, options.task, arguments, slurm)
    )
    reports = options.slurm_array and options.task != "evaluate"
    return [job] * options.chain + ([report] if reports else [])


def _slurm_options(options: argparse.Namespace) -> SlurmOptions:
    problems = [
        f"{name}: must be at least {least}, got {value}"
        for name, value, least in (
            ("--chain", options.chain, 1),
            ("--max-concurrent", options.max_concurrent, 0),
            ("--save-before-limit", options.save_before_limit, 0),
        )
        if value < least
    ]
    kinds = [kind for kind in ("slurm", "slurm_array", "slurm_report") if getattr(options, kind)]
    if len(kinds) > 1:
        named = ", ".join(f"--{kind.replace('_', '-')}" for kind in kinds)
        problems.append(f"{named}: one at a time; --slurm-array --submit hands in a report as well")
    if kinds and options.one_process:
        problems.append("--one-process: a batch script starts several ranks; leave one of them out")
    if not kinds and not options.dry_run:
        own = {
            "--sbatch": options.sbatch,
            "--setup": options.setup,
            "--srun": options.srun,
            "--save-before-limit": options.save_before_limit,
            "--python": options.python != sys.executable,
        }
        if given := [name for name, value in own.items() if value]:
            problems.append(
                f"{', '.join(given)}: of a batch script; needs --slurm, --slurm-array or"
                " --slurm-report, without which the launch starts here"
            )
    if (options.submit or options.chain > 1) and not _writes_batch_script(options):
        problems.append("--submit, --chain: need --slurm, --slurm-array or --slurm-report")
    elif options.chain > 1 and not options.submit:
        problems.append("--chain: needs --submit; the text of every job in the chain is the same")
    if options.max_concurrent and not options.slurm_array:
        problems.append("--max-concurrent: needs --slurm-array")
    if problems:
        raise ConfigError(problems)
    return SlurmOptions(
        dict(read_option(text) for text in options.sbatch),
        tuple(options.setup),
        tuple(options.srun),
        options.max_concurrent,
        options.save_before_limit,
        options.chain == 1,
        options.python,
    )


def _writes_batch_script(options: argparse.Namespace) -> bool:
    return bool(options.slurm or options.slurm_array or options.slurm_report)


def _add_slurm_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``docs/clusters.md`` describes."""
    add = parser.add_argument_group("Slurm").add_argument
    add("--slurm", action="store_true", help="print a batch script for sbatch")
    add(
        "--slurm-array",
        action="store_true",
        help="print a batch script with one job per task, arm and seed; evaluate: of each run",
    )
    add("--slurm-report", action="store_true", help="print a batch script that makes the report")
    add("--submit", action="store_true", help="hand it to sbatch; an array's report comes after it")
    add(
        "--sbatch",
        action="append",
        default=[],
        metavar="KEY[=VALUE]",
        help="a further #SBATCH option, such as time=02:00:00 or exclusive",
    )
    add(
        "--setup",
        action="append",
        default=[],
        metavar="LINE",
        help="a line of shell before everything else, such as 'module load cuda'",
    )
    add(
        "--srun",
        action="append",
        default=[],
        metavar="ARGUMENT",
        help="a further argument of srun, such as --srun=--container-image=image.sqsh",
    )
    add("--max-concurrent", type=int, default=0, metavar="N", help="jobs of an array at a time")
    add(
        "--save-before-limit",
        type=int,
        default=0,
        metavar="SECONDS",
        help="so long before the time limit the run saves, ends and goes back into the queue",
    )
    add(
        "--chain",
        type=int,
        default=1,
        metavar="N",
        help="with --submit: N times the same job, each after the one before, in place of requeues",
    )
    add(
        "--python",
        default=sys.executable,
        metavar="PATH",
        help="the interpreter on the nodes; otherwise the one that runs this command",
    )


def main() -> int:
    """Entry of ``lamorel-ext-launch``."""
    if sys.argv[1:2] in (["script"], ["alias"]):
        return script.main(sys.argv[1], sys.argv[2:])
    return run_main(launch)


if __name__ == "__main__":
    sys.exit(main())
