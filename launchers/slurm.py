"""Batch scripts for Slurm, as pure text: one job on one or several nodes, or an array over tasks,
arms and seeds.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence

from lamorel_ext.config import Config
from lamorel_ext.errors import ConfigError
from lamorel_ext.processes.secret import VARIABLE
from lamorel_ext.rpc.topology import placements, world_size
from launchers.command import MODULES, accelerate_arguments, rank_environment, threads_per_process

SRUN = 'srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1'
"""Since Slurm 22.05 a step does not inherit the job's ``--cpus-per-task``: without it every rank of
a node would share one core.
"""
PLACEHOLDER_PORT = 1
"""Stands for the port in the text until it is replaced by a variable of the script."""


def batch_script(
    config: Config, task: str, arguments: Sequence[str], options: Mapping[str, str] | None = None
) -> str:
    """One job that runs ``task``.

    Args:
        config: Says how many ranks on how many nodes
            (``lamorel_args.accelerate_args.num_machines``).
        task: Key of ``MODULES``.
        arguments: Of the module.
        options: Further ``#SBATCH`` options, such as ``{"time": "02:00:00"}``; they win over the
            ones chosen here.
    """
    return _script(
        config,
        f"lamorel-ext-{task}",
        options,
        [],
        f"-m {MODULES[task]} {shlex.join(arguments)}".rstrip(),
    )


def array_script(
    config: Config, arguments: Sequence[str], options: Mapping[str, str] | None = None
) -> str:
    """An array with one training run per task, arm and seed of the comparison; folders are those of
    ``experiments.compare``.

    ``experiments.report.making`` on the comparison's folder makes the report once the array is
    through.

    Raises:
        ConfigError: A task, an arm, a seed or a folder is also set in ``arguments``.
    """
    compare = config.compare
    own_keys = ("arm", "run.seed", "run.output_dir", *(["task"] if compare.tasks else []))
    taken = [text for text in arguments if text.split("=")[0] in own_keys]
    if taken:
        raise ConfigError(
            [
                f"{text}: an array sets this itself, from compare.arms, compare.seeds and"
                " compare.output_dir"
                for text in taken
            ]
        )
    task_lines = [
        f"tasks=({shlex.join(compare.tasks)})",
        "task=${tasks[SLURM_ARRAY_TASK_ID / (${#arms[@]} * ${#seeds[@]})]}",
    ]
    body = [
        f"arms=({shlex.join(compare.arms)})",
        f"seeds=({' '.join(str(seed) for seed in compare.seeds)})",
        *(task_lines if compare.tasks else []),
        (
            "arm=${arms[SLURM_ARRAY_TASK_ID /"
            f" ${{#seeds[@]}}{' % ${#arms[@]}' if compare.tasks else ''}]}}"
        ),
        "seed=${seeds[SLURM_ARRAY_TASK_ID % ${#seeds[@]}]}",
        (
            f'folder={shlex.quote(compare.output_dir)}/"{"$task/" if compare.tasks else ""}$arm/seed_$seed"'  # noqa: E501
        ),
        f"export {'task ' if compare.tasks else ''}arm seed folder",
    ]
    jobs = max(len(compare.tasks), 1) * len(compare.arms) * len(compare.seeds)
    own = {"array": f"0-{jobs - 1}", "output": "%x-%A_%a.out"}
    choice = '"task=$task" "arm=$arm"' if compare.tasks else '"arm=$arm"'
    last = (
        f'-m {MODULES["train"]} {shlex.join(arguments)} {choice} "run.seed=$seed"'
        ' "run.output_dir=$folder"'
    )
    return _script(config, "lamorel-ext-train", {**own, **(options or {})}, body, last)


def _script(
    config: Config, name: str, options: Mapping[str, str] | None, body: Sequence[str], module: str
) -> str:
    nodes, ranks = (
        config.lamorel_args.accelerate_args.num_machines,
        world_size(config.lamorel_args.distributed_setup_args),
    )
    gpus = max(len(gpus_of) for gpus_of in _gpus_by_node(config))
    own = {
        "job-name": name,
        "nodes": str(nodes),
        "ntasks-per-node": "1",
        "cpus-per-task": str(-(-ranks // nodes) * threads_per_process(config)),
        "output": "%x-%j.out",
        **({"gpus-per-node": str(gpus)} if gpus else {}),
    }
    header = [f"#SBATCH --{key}={value}" for key, value in {**own, **(options or {})}.items()]
    exports = [f"export {key}={value}" for key, value in rank_environment(config).items()]
    # Srun hands the environment on to all nodes; nobody else can read it there, as they could a
    # command line.
    exports.append(
        f'export {VARIABLE}="${{{VARIABLE}:-$(od -An -N32 -tx1 /dev/urandom | tr -d " \\n")}}"'
    )
    lines = [
        "#!/usr/bin/env bash",
        *header,
        "",
        "set -euo pipefail",
        *exports,
        *body,
        *_launch_lines(config, module),
    ]
    return "\n".join(lines) + "\n"


def _gpus_by_node(config: Config) -> list[set[int]]:
    """The GPUs in use on each node."""
    table = placements(config.lamorel_args)
    return [
        {gpu for place in table if place.node == node for gpu in place.gpus}
        for node in {place.node for place in table}
    ]


def _launch_lines(config: Config, module: str) -> list[str]:
    """On one node accelerate finds a free port; several nodes agree on one that the job's number
    gives.
    """
    if config.lamorel_args.accelerate_args.num_machines == 1:
        return [f"{SRUN} accelerate launch {_spread(config)} {module}"]
    inner = f"accelerate launch {_spread(config)} {module}"
    return [
        'export main_ip=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        "export main_port=$((20000 + SLURM_JOB_ID % 20000))",
        f"{SRUN} bash -c {shlex.quote(inner)}",
    ]


def _spread(config: Config) -> str:
    """accelerate's arguments, with the node's own number, the first node and the port read from the
    job.
    """
    accelerate = config.lamorel_args.accelerate_args
    if accelerate.num_machines == 1:
        return shlex.join(accelerate_arguments(config))
    fixed = dataclasses.replace(accelerate, machine_rank=0, main_process_port=PLACEHOLDER_PORT)
    config = dataclasses.replace(
        config, lamorel_args=dataclasses.replace(config.lamorel_args, accelerate_args=fixed)
    )
    variables = {
        "--machine_rank": '"$SLURM_NODEID"',
        "--main_process_ip": '"$main_ip"',
        "--main_process_port": '"$main_port"',
    }
    words = accelerate_arguments(config)
    return " ".join(
        variables.get(before, shlex.quote(word))
        for before, word in zip(["", *words], words, strict=False)
    )
