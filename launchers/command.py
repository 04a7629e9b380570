"""The ``accelerate launch`` line of a configuration, as pure text."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from lamorel_ext.config import Config
from lamorel_ext.config.overrides import key_of
from lamorel_ext.errors import ConfigError
from lamorel_ext.rpc.topology import ranks_by_machine, world_size

MODULES = {task: f"lamorel_ext {task}" for task in ("train", "compare", "evaluate")}
"""What can be launched on several ranks, and the module behind it with its first argument."""
LATE_S = 60
"""Seconds by which a machine may come later than the others, where ``peer_timeout`` is less."""
ACCELERATE = ("accelerate", "launch")


@dataclass(frozen=True)
class Command:
    """A command and the environment variables it adds.

    Attributes:
        argv: The program and its arguments.
        environment: Added to the surrounding environment.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)

    def shell(self) -> str:
        """One line for a shell, quoted where needed."""
        assignments = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*assignments, shlex.join(self.argv)])


def accelerate_arguments(config: Config, threads: int = 0) -> list[str]:
    """What stands between ``accelerate launch`` and the module.

    ``--multi_gpu`` is also the way to several processes on CPUs: accelerate's own CPU mode starts
    one process only, and the environment variable ``ACCELERATE_USE_CPU`` keeps the ranks off the
    GPUs.

    Args:
        config: The launch.
        threads: That PyTorch starts with in each process; 0 for ``threads_per_process``.

    Raises:
        ConfigError: This machine has an impossible number, or several machines have no fixed port
            to meet on.
    """
    accelerate = config.lamorel_args.accelerate_args
    _check_machines(config)
    # Without a file that the key names accelerate reads the user's own, whose GPUs are for others.
    file = accelerate.config_file
    arguments = [
        *(("--config_file", file) if file else ("--gpu_ids", "all")),
        "--multi_gpu",
        "--num_processes",
        str(num_processes(config, accelerate.machine_rank)),
        "--num_machines",
        str(accelerate.num_machines),
    ]
    if accelerate.num_machines > 1:
        arguments += [
            "--machine_rank",
            str(accelerate.machine_rank),
            "--main_process_ip",
            accelerate.main_process_ip,
            "--rdzv_conf",
            f"timeout={max(config.lamorel_args.peer_timeout, LATE_S)}",
        ]
    arguments += [
        "--main_process_port",
        str(accelerate.main_process_port),
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--num_cpu_threads_per_process",
        str(threads or threads_per_process(config)),
    ]
    return arguments


def num_processes(config: Config, machine: int) -> int:
    """accelerate starts a share of ``--num_processes`` on each machine: where the shares differ, it
    is told the number that gives this machine its own.
    """
    ranks = ranks_by_machine(config.lamorel_args)
    if len({len(each) for each in ranks}) == 1:
        return world_size(config.lamorel_args.distributed_setup_args)
    return len(ranks[machine]) * len(ranks)


def machine_commands(config: Config, task: str, arguments: Sequence[str]) -> list[Command]:
    """The line of each machine.

    Raises:
        ConfigError: Several machines have no fixed port to meet on.
    """
    key = "lamorel_args.accelerate_args.machine_rank"
    commands = []
    for machine in range(config.lamorel_args.accelerate_args.num_machines):
        accelerate = replace(config.lamorel_args.accelerate_args, machine_rank=machine)
        lamorel = replace(config.lamorel_args, accelerate_args=accelerate)
        words = [word for word in arguments if key_of(word) != key]
        words += [f"{key}={machine}"] if machine else []
        commands.append(accelerate_launch(replace(config, lamorel_args=lamorel), task, words))
    return commands


def accelerate_launch(config: Config, task: str, arguments: Sequence[str]) -> Command:
    """The whole line: ``accelerate launch ... -m lamorel_ext <task> <arguments>``."""
    module = ("-m", *MODULES[task].split())
    argv = (*ACCELERATE, *accelerate_arguments(config), *module, *arguments)
    return Command(argv, rank_environment(config))


def one_process(task: str, arguments: Sequence[str], python: str = "python") -> Command:
    """Both roles in one process, without ``accelerate``: for debugging, and where one CPU is all
    there is.
    """
    return Command((python, "-m", *MODULES[task].split(), *arguments))


def rank_environment(config: Config) -> dict[str, str]:
    """Variables that every rank needs."""
    args = config.lamorel_args
    gpus = args.llm_args.parallelism.use_gpu or args.distributed_setup_args.client_devices
    return {} if gpus else {"ACCELERATE_USE_CPU": "true"}


def threads_per_process(config: Config) -> int:
    """Threads that PyTorch starts with; each rank then takes its own ``num_threads``."""
    return max(1, config.lamorel_args.llm_args.num_threads, config.run.num_threads)


def _check_machines(config: Config) -> None:
    accelerate, problems = config.lamorel_args.accelerate_args, []
    if accelerate.num_machines > 1 and not accelerate.main_process_port:
        problems.append(
            "lamorel_args.accelerate_args.main_process_port: must be a fixed port with several"
            " machines, got 0; a Slurm job takes one from its number"
        )
    if not 0 <= accelerate.machine_rank < accelerate.num_machines:
        problems.append(
            "lamorel_args.accelerate_args.machine_rank: must be between 0 and"
            f" {accelerate.num_machines - 1}, got {accelerate.machine_rank}"
        )
    if problems:
        raise ConfigError(problems)
