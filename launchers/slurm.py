"""Batch scripts for Slurm, as pure text: one job on one or several nodes, an array over tasks, arms
and seeds, and the report that follows it.

What a cluster asks for besides stands in ``SlurmOptions``. ``launchers.submit`` hands the texts to
``sbatch``.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lamorel_ext.config import Config
from lamorel_ext.config.overrides import key_of, quote
from lamorel_ext.errors import ConfigError
from lamorel_ext.processes.secret import VARIABLE
from lamorel_ext.processes.stopping import SAVE_S
from lamorel_ext.rpc.topology import placements, ranks_by_machine
from launchers.command import (
    MODULES,
    accelerate_arguments,
    num_processes,
    rank_environment,
    threads_per_process,
)

SRUN = 'srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1'
"""Since Slurm 22.05 a step does not inherit the job's ``--cpus-per-task``: without it every rank of
a node would share one core.
"""
PLACEHOLDER_PORT = 1
"""Stands for the port in the text until it is replaced by a variable of the script."""
FIRST_PORT, NUM_PORTS = 10000, 20000
"""Below 32768, where Linux begins to take ports for outgoing connections."""
ASKED = 138
"""Exit status after SIGUSR1, as a shell counts: the run was asked to end, and has saved."""
SLURM_SIGNAL_S = 60
"""Seconds before the time limit where ``--signal`` does not say."""
MAX_REQUEUES = 50
"""A job whose limit is too short for a single checkpoint must not come back forever."""
GPU_OPTIONS = ("gpus", "gres", "gpus-per-node", "gpus-per-task", "gpus-per-socket")
ABOUT_QUEUES = (
    "account", "chdir", "clusters", "comment", "constraint", "error", "exclude", "export",
    "export-file", "mail-type", "mail-user", "nice", "open-mode", "output", "partition", "qos",
    "reservation", "time", "wckey",
)  # fmt: skip
"""Options that the report's job takes over from the array's; the others are about its size."""
OWN_KEYS = ("arm", "run.seed", "run.output_dir")


@dataclass(frozen=True)
class SlurmOptions:
    """What a cluster and its user ask for.

    Attributes:
        sbatch: Further ``#SBATCH`` options, such as ``{"time": "02:00:00", "exclusive": None}``,
            None where there is no value; they win over the ones chosen here.
        setup: Lines of shell before everything else (``module load cuda``). They may use variables
            that are not set; one that fails ends the job.
        srun: Further arguments of ``srun``.
        max_concurrent: Jobs of an array that run at the same time; 0 means any number.
        save_before_limit_s: Seconds before the time limit at which the run is asked to save and to
            end; 0 never asks.
        requeue: True where the job then goes back into the queue by itself.
        python: The interpreter, on every node.
    """

    sbatch: Mapping[str, str | None] = field(default_factory=dict)
    setup: tuple[str, ...] = ()
    srun: tuple[str, ...] = ()
    max_concurrent: int = 0
    save_before_limit_s: int = 0
    requeue: bool = True
    python: str = "python"


def read_option(text: str) -> tuple[str, str | None]:
    """``time=02:00:00`` or ``exclusive`` as an ``#SBATCH`` option; leading dashes do no harm.

    Raises:
        ConfigError: It is none.
    """
    key, separator, value = text.partition("=")
    key = key.strip().removeprefix("--")
    if not re.fullmatch("[a-z][a-z0-9-]+", key) or "\n" in value or (separator and not value):
        raise ConfigError(
            f"--sbatch {text}: expected KEY=VALUE, or KEY for an option without a value, with"
            " sbatch's long names, such as time=02:00:00 or exclusive"
        )
    return key, value if separator else None


def batch_script(
    config: Config, task: str, arguments: Sequence[str], options: SlurmOptions | None = None
) -> str:
    """One job that runs ``task``.

    Args:
        config: Says how many ranks on how many nodes
            (``lamorel_args.accelerate_args.num_machines``).
        task: Key of ``MODULES``.
        arguments: Of the module.
        options: See ``SlurmOptions``.
    """
    module = f"-m {MODULES[task]} {shlex.join(arguments)}".rstrip()
    return _script(config, f"lamorel-ext-{task}", options or SlurmOptions(), {}, [], module)


def array_script(
    config: Config,
    task: str,
    arguments: Sequence[str],
    options: SlurmOptions | None = None,
) -> str:
    """An array with one job per task, arm and seed of the comparison; folders are those of
    ``experiments.compare``.

    Args:
        config: The comparison's first run.
        task: ``evaluate`` evaluates the runs, anything else trains them.
        arguments: Of the module, without what differs from job to job.
        options: See ``SlurmOptions``.

    Raises:
        ConfigError: A task, an arm, a seed or a folder is also set in ``arguments``.
    """
    options, compare = options or SlurmOptions(), config.compare
    own_keys = (*OWN_KEYS, *(["task"] if compare.tasks else []))
    own_keys += ("policy",) if task == "evaluate" else ()
    taken = [text for text in arguments if "=" in text and key_of(text) in own_keys]
    if taken:
        raise ConfigError(
            [
                f"{text}: an array sets this itself, from compare.arms, compare.seeds and"
                " compare.output_dir"
                for text in taken
            ]
        )
    jobs = max(len(compare.tasks), 1) * len(compare.arms) * len(compare.seeds)
    at_once = f"%{options.max_concurrent}" if options.max_concurrent else ""
    own = {"array": f"0-{jobs - 1}{at_once}", "output": "%x-%A_%a.out"}
    lines = _array_lines(config)
    if task == "evaluate":
        words = shlex.join(_of_run(arguments, config))
        name, last = task, f'-m {MODULES[task]} "policy=$folder" {words}'
    else:
        name = "train"
        # With the controls, which a run alone would not know to be part of its comparison.
        lines += ['every_arm=$(IFS=,; echo "${arms[*]}")', "export every_arm"]
        choice = '"task=$task" "arm=$arm"' if compare.tasks else '"arm=$arm"'
        # Without Hydra's quotes what follows a comma is another value.
        own_folder = "'$folder'" if "," in compare.output_dir else "$folder"
        last = (
            f'-m {MODULES["train"]} {shlex.join(arguments)} {choice} "run.seed=$seed"'
            f' "run.output_dir={own_folder}" "compare.arms=[$every_arm]"'
        )
    return _script(config, f"lamorel-ext-{name}", options, own, lines, last.rstrip())


def report_script(config: Config, options: SlurmOptions | None = None) -> str:
    """A job on one core that makes viewer and report of the comparison's folder."""
    options = options or SlurmOptions()
    own: dict[str, str | None] = {
        "job-name": "lamorel-ext-report",
        "ntasks": "1",
        "output": "%x-%j.out",
        "open-mode": "append",
    }
    taken = {
        key: _of_report(value) if key in ("output", "error") else value
        for key, value in options.sbatch.items()
        if key in ABOUT_QUEUES
    }
    folder = shlex.quote(config.compare.output_dir)
    python = shlex.quote(options.python)
    return _text(
        {**own, **taken},
        options,
        [
            f'{python} -m lamorel_ext viewer {folder} || echo "no viewer: see above"',
            f"{python} -m lamorel_ext report {folder}",
        ],
    )


def _of_report(path: str | None) -> str | None:
    """Where the report's job writes, from the path of an array's jobs: it is no part of an array,
    whose number (``%A``) and place in it (``%a``) it does not have.
    """
    if path is None:
        return None
    path = re.sub("%[0-9]*A", "%j", path)
    return re.sub("%[0-9]*a", "report", path)


def _array_lines(config: Config) -> list[str]:
    """From the number of a job in the array to its task, arm, seed and folder."""
    compare = config.compare
    task_lines = [
        f"tasks=({shlex.join(compare.tasks)})",
        "task=${tasks[SLURM_ARRAY_TASK_ID / (${#arms[@]} * ${#seeds[@]})]}",
    ]
    return [
        f"arms=({shlex.join(compare.arms)})",
        f"seeds=({' '.join(str(seed) for seed in compare.seeds)})",
        *(task_lines if compare.tasks else []),
        (
            "arm=${arms[SLURM_ARRAY_TASK_ID /"
            f" ${{#seeds[@]}}{' % ${#arms[@]}' if compare.tasks else ''}]}}"
        ),
        "seed=${seeds[SLURM_ARRAY_TASK_ID % ${#seeds[@]}]}",
        f"folder={shlex.quote(compare.output_dir)}/"
        f'"{"$task/" if compare.tasks else ""}$arm/seed_$seed"',
        f"export {'task ' if compare.tasks else ''}arm seed folder",
    ]


def _of_run(arguments: Sequence[str], config: Config) -> list[str]:
    """What is left of a comparison's command line where a run's own configuration is the base.

    The files of groups would go over what the experiment's file had set in their place: a run has
    its model's values already, and of a task those follow that the comparison has.
    """
    words = list(arguments)
    if "--config-name" in words:
        place = words.index("--config-name")
        del words[place : place + 2]
    words = [word for word in words if not word.lstrip("+").startswith(("compare.", "model="))]
    if any(word.lstrip("+").startswith("task=") for word in words):
        env = config.env
        number = "null" if env.num_distractors is None else env.num_distractors
        words += [f"env.level={quote(env.level)}", f"env.num_distractors={number}"]
        words.append(f"env.name={quote(env.name)}")
    return words


def _script(
    config: Config,
    name: str,
    options: SlurmOptions,
    own: Mapping[str, str | None],
    body: Sequence[str],
    module: str,
) -> str:
    ranks = ranks_by_machine(config.lamorel_args)
    _refuse_other_shapes(options.sbatch, len(ranks))
    # By hand a server may use the last GPU of a node alone; all before it must be there.
    gpus = 1 + max(
        (gpu for place in placements(config.lamorel_args) for gpu in place.gpus), default=-1
    )
    by_hand = any(key in options.sbatch for key in GPU_OPTIONS)
    asks = {"signal": f"USR1@{options.save_before_limit_s}"} if options.save_before_limit_s else {}
    header: dict[str, str | None] = {
        "job-name": name,
        "nodes": str(len(ranks)),
        "ntasks-per-node": "1",
        "cpus-per-task": str(max(map(len, ranks)) * threads_per_process(config)),
        "output": "%x-%j.out",
        "open-mode": "append",
        **({"gpus-per-node": str(gpus)} if gpus and not by_hand else {}),
        **asks,
        **({"requeue": None} if asks and options.requeue else {}),
        **own,
        **options.sbatch,
    }
    exports = [f"export {key}={value}" for key, value in rank_environment(config).items()]
    if left := _seconds_to_limit(header.get("signal")):
        exports.append(f"export {SAVE_S}={left}")
    # Srun hands the environment on to all nodes; nobody else can read it there, as they could a
    # command line.
    exports.append(
        f'export {VARIABLE}="${{{VARIABLE}:-$(od -An -N32 -tx1 /dev/urandom | tr -d " \\n")}}"'
    )
    launch = _launch_lines(config, module, options)
    if asks and options.requeue:
        launch[-1] += " || status=$?"
        launch = ["status=0", *launch, *_requeue_lines("array" in header)]
    return _text(header, options, [*exports, *body, *launch])


def _refuse_other_shapes(sbatch: Mapping[str, str | None], nodes: int) -> None:
    """What would start the launch more than once, or keep a signal from the run."""
    problems = [
        f"--sbatch {key}={sbatch[key]}: the script starts one task on each of {nodes} nodes,"
        f" expected {expected}; lamorel_args.accelerate_args.num_machines says how many nodes"
        for key, expected in (("nodes", nodes), ("ntasks", nodes), ("ntasks-per-node", 1))
        if key in sbatch and sbatch[key] != str(expected)
    ]
    if re.match("R?B", sbatch.get("signal") or ""):
        problems.append(
            f"--sbatch signal={sbatch['signal']}: B sends it to the batch shell alone, which it"
            " ends; without B it reaches the run"
        )
    if problems:
        raise ConfigError(problems)


def _seconds_to_limit(signal: str | None) -> int:
    """How long before the time limit the run is asked to save, by the option ``--signal``; 0 where
    it is not.
    """
    found = re.fullmatch(r"(?:[BR]+:)?(?:SIG)?(?:USR1|10)(?:@(\d+))?", signal or "")
    return int(found[1] or SLURM_SIGNAL_S) if found else 0


def _requeue_lines(of_array: bool) -> list[str]:
    # One job of an array has the array's own number, by which Slurm takes all of them.
    job = "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" if of_array else "$SLURM_JOB_ID"
    return [
        f"# {ASKED} is the signal before the time limit: the run has saved, and goes on later.",
        f'if [ "$status" = {ASKED} ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {MAX_REQUEUES} ]; then',
        f'    scontrol requeue "{job}"',
        "fi",
        'exit "$status"',
    ]


def _text(header: Mapping[str, str | None], options: SlurmOptions, lines: Sequence[str]) -> str:
    """The whole file. ``set -u`` comes after the lines of the setup, which are not ours."""
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            *(
                f"#SBATCH --{key}" + ("" if value is None else f"={shlex.quote(value)}")
                for key, value in header.items()
            ),
            "",
            "set -eo pipefail",
            *options.setup,
            "set -u",
            *lines,
            "",
        ]
    )


def _launch_lines(config: Config, module: str, options: SlurmOptions) -> list[str]:
    """On one node accelerate finds a free port; several nodes agree on one that the job's number
    gives.

    ``launchers.elastic`` is ``accelerate launch`` that hands signals on to the ranks.
    """
    srun = " ".join([SRUN, *(shlex.quote(word) for word in options.srun)])
    counts = _counts(config)
    inner = f"{shlex.quote(options.python)} -m lamorel_ext elastic {_spread(config)} {module}"
    if config.lamorel_args.accelerate_args.num_machines == 1:
        return [f"{srun} {inner}"]
    return [
        # Not `| head`: under pipefail a scontrol that is still writing would end the job.
        'read -r main_ip < <(scontrol show hostnames "$SLURM_JOB_NODELIST")',
        f"main_port=$(({FIRST_PORT} + SLURM_JOB_ID % {NUM_PORTS}))",
        "export main_ip main_port",
        # The signal before the time limit reaches every process of a step: a shell would end.
        f"{srun} bash -c {shlex.quote(f'{counts}exec {inner}')}",
    ]


def _counts(config: Config) -> str:
    """An array of ``--num_processes`` by node, where nodes differ."""
    counts = [
        num_processes(config, machine)
        for machine in range(config.lamorel_args.accelerate_args.num_machines)
    ]
    return "" if len(set(counts)) == 1 else f"processes=({' '.join(map(str, counts))}); "


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
        **({"--num_processes": '"${processes[SLURM_NODEID]}"'} if _counts(config) else {}),
        "--machine_rank": '"$SLURM_NODEID"',
        "--main_process_ip": '"$main_ip"',
        "--main_process_port": '"$main_port"',
    }
    words = accelerate_arguments(config)
    return " ".join(
        variables.get(before, shlex.quote(word))
        for before, word in zip(["", *words], words, strict=False)
    )
