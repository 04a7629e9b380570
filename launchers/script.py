"""Start a script written for Lamorel: ``lamorel-ext-launch script S --config-path P --config-name N
key=value``.

The command line is Lamorel's. With ``--alias`` the script's ``import lamorel`` finds this package.
``lamorel-ext-launch alias COMMAND`` runs any command so that it, and what it starts, has these
names: ``lamorel-ext-launch alias python -m lamorel_launcher.launch ...`` is Lamorel's own line.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError, safe_load

from experiments.runs.entry import run_main, say
from lamorel_ext.config import Config, DistributedSetupArgs
from lamorel_ext.config.overrides import quote
from lamorel_ext.errors import ConfigError
from lamorel_ext.lamorel.alias import ROOT, environment
from lamorel_ext.lamorel.settings import Multinode, Settings, read_settings
from lamorel_ext.processes.cores import usable_cores
from lamorel_ext.rpc.topology import client_ranks, ranks_by_machine, world_size
from launchers.command import ACCELERATE, Command, accelerate_arguments, rank_environment
from launchers.local import run_here

DEFAULT_PORT = 12345
"""Lamorel's, where several launches have to meet and no port is given."""


def make_parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    parser = argparse.ArgumentParser(
        prog="lamorel-ext-launch script", description="Start a script written for Lamorel."
    )
    parser.add_argument(
        "script", nargs="?", help="the script; or rl_script_args.path=SCRIPT among the overrides"
    )
    parser.add_argument("overrides", nargs="*", help="key=value, in Hydra's syntax")
    parser.add_argument("--config-path", "-cp", required=True, help="folder of the configuration")
    parser.add_argument(
        "--config-name", "-cn", required=True, help="its file, with or without .yaml"
    )
    parser.add_argument(
        "--alias",
        action="store_true",
        help="let the script import lamorel (and gym, babyai, babyai_text)",
    )
    parser.add_argument("--dry-run", action="store_true", help="start nothing, print the command")
    return parser


def launch_script(argv: Sequence[str]) -> int:
    """Do what the command line asks; gives the exit status.

    Raises:
        ConfigError: The configuration or the script cannot be used.
    """
    options = make_parser().parse_intermixed_args(list(argv))
    overrides = list(options.overrides)
    script = options.script
    if script is not None and "=" in script and not Path(os.path.expanduser(script)).is_file():
        overrides.insert(0, script)
        script = None
    folder = Path(os.path.expanduser(options.config_path)).resolve()
    name = options.config_name.removesuffix(".yaml").removesuffix(".yml")
    if script is not None:
        path = quote(str(Path(os.path.expanduser(script)).resolve()))
        overrides.append(f"++rl_script_args.path={path}")
    command = script_command(folder, name, overrides)
    if options.dry_run:
        say(command.shell())
        return 0
    with ExitStack() as stack:
        added = (
            stack.enter_context(environment()) if options.alias else {"PYTHONPATH": _with_root()}
        )
        return run_here(replace(command, environment={**command.environment, **added}))


def lamorel_launch(argv: Sequence[str]) -> int:
    """``python -m lamorel_launcher.launch`` under the alias."""
    return run_main(launch_script, ["--alias", *argv])


def run_with_alias(argv: Sequence[str]) -> int:
    """Run a command whose Python processes have Lamorel's names.

    Raises:
        ConfigError: No command was given.
    """
    parser = argparse.ArgumentParser(
        prog="lamorel-ext-launch alias",
        description="Run a command that can import lamorel (and gym, babyai, babyai_text).",
    )
    parser.add_argument(
        "command", nargs=argparse.REMAINDER, help="python -m lamorel_launcher.launch ..."
    )
    command = list(parser.parse_args(argv).command)
    command = command[1:] if command[:1] == ["--"] else command
    if not command:
        raise ConfigError(
            "alias: expected a command, such as python -m lamorel_launcher.launch ..."
        )
    with environment() as added:
        return run_here(Command(tuple(command), added))


def main(task: str, argv: Sequence[str]) -> int:
    """``script`` or ``alias`` of ``lamorel-ext-launch``."""
    return run_main(launch_script if task == "script" else run_with_alias, argv)


def script_command(folder: Path, name: str, overrides: Sequence[str]) -> Command:
    """The ``accelerate launch`` line of a script; torch's launcher with 0.3's ``multinode``.

    Args:
        folder: Of the configuration.
        name: Its file, without ``.yaml``.
        overrides: Handed to the script as well.

    Raises:
        ConfigError: Something is missing or cannot be.
    """
    composed = _compose(folder, name, overrides)
    args = _section(composed, "lamorel_args")
    if args is None:
        raise ConfigError(f"{folder / name}.yaml has no lamorel_args")
    settings = read_settings(args)
    script = _script(composed)
    config = Config(lamorel_args=_accelerated(settings, args, folder))
    own = [*overrides, "hydra.run.dir=.", "--config-path", str(folder), "--config-name", name]
    gpus = any(llm.args.parallelism.use_gpu or any(llm.devices) for llm in settings.llms)
    surroundings = {} if gpus else rank_environment(config)
    threads = settings.threads or _threads(config, gpus)
    launcher = (*ACCELERATE, *accelerate_arguments(config, threads))
    if settings.multinode is not None:
        launcher = _one_of_many(settings.args.distributed_setup_args, settings.multinode)
    return Command((*launcher, str(script), *own), surroundings)


def _threads(config: Config, gpus: bool) -> int:
    """Of each process for PyTorch, where no key says it: ``OMP_NUM_THREADS``, which accelerate
    reads too; else, on CPUs, the machine's cores shared among those that compute at a time: its
    clients wait while its servers work.
    """
    if said := re.match(r"\s*(\d+)", os.environ.get("OMP_NUM_THREADS", "")):
        return max(1, int(said[1]))
    if gpus:
        return 1
    clients = client_ranks(config.lamorel_args.distributed_setup_args)
    at_a_time = 1
    for ranks in ranks_by_machine(config.lamorel_args):
        asking = sum(rank in clients for rank in ranks)
        at_a_time = max(at_a_time, asking, len(ranks) - asking)
    return max(1, usable_cores() // at_a_time)


def _one_of_many(setup: DistributedSetupArgs, meeting: Multinode) -> tuple[str, ...]:
    """0.3's ``multinode``: as many launches as processes, each of one, that meet at an address."""
    return (
        sys.executable, "-m", "torch.distributed.run", "--nnodes", str(world_size(setup)),
        "--nproc_per_node", "1", "--rdzv_backend", "c10d", "--rdzv_endpoint",
        f"{meeting.main_process_ip}:{meeting.main_process_port}",
        "--rdzv_id", str(meeting.experiment_id),
    )  # fmt: skip


def _compose(folder: Path, name: str, overrides: Sequence[str]) -> Any:
    if not any((folder / f"{name}{suffix}").is_file() for suffix in (".yaml", ".yml")):
        raise ConfigError(f"no configuration {name!r} in {folder}")
    try:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(folder), version_base=None):
            composed = compose(name, overrides=list(overrides), return_hydra_config=True)
        with open_dict(composed):
            composed.hydra.runtime.cwd = str(Path.cwd())
        HydraConfig.instance().set_config(composed)  # for ${hydra:runtime.cwd} in a value
        return composed
    except RecursionError as error:
        raise ConfigError(
            f"{name}.yaml with {list(overrides)}: its defaults or anchors lead back to themselves"
        ) from error
    except (HydraException, OmegaConfBaseException, YAMLError, OSError, ValueError) as error:
        raise ConfigError(
            f"{name}.yaml with {list(overrides)}: {' '.join(str(error).split())}"
        ) from error


def _section(composed: Any, key: str) -> DictConfig | None:
    found = _selected(composed, key)
    if found is not None and not isinstance(found, DictConfig):
        raise ConfigError(f"{key}: expected keys with values, got {found!r:.80}")
    return found


def _selected(composed: Any, key: str) -> Any:
    try:
        return OmegaConf.select(composed, key)  # None where it is not there, null or ???
    except OmegaConfBaseException as error:
        raise ConfigError(f"{key}: {' '.join(str(error).split())}") from error


def _script(composed: Any) -> Path:
    there = _section(composed, "rl_script_args") is not None
    path = _selected(composed, "rl_script_args.path") if there else None
    if path is None:
        raise ConfigError(
            "rl_script_args.path: a script is missing; give it as the first argument, or as"
            " rl_script_args.path=SCRIPT"
        )
    script = Path(os.path.expanduser(str(path))).resolve()
    if not script.is_file():
        raise ConfigError(f"rl_script_args.path: there is no file {script}")
    return script


def _accelerated(settings: Settings, args: Any, folder: Path) -> Any:
    """Lamorel's keys with the address where launches on several machines meet, from accelerate's
    own file if need be.
    """
    lamorel = settings.args
    accelerate = lamorel.accelerate_args
    file = _accelerate_file(folder, accelerate.config_file)
    given = OmegaConf.select(args, "accelerate_args") or {}
    port = accelerate.main_process_port
    if accelerate.num_machines > 1 and not port:
        told = str(file.get("main_process_port") or DEFAULT_PORT)
        if not told.isdecimal():
            raise ConfigError(
                f"{folder / str(accelerate.config_file)}: main_process_port is {told!r}, expected a"
                " whole number"
            )
        port = int(told)
    address = (
        given.get("main_process_ip") or file.get("main_process_ip") or accelerate.main_process_ip
    )
    found = replace(
        accelerate, config_file=None, main_process_port=port, main_process_ip=str(address)
    )
    return replace(lamorel, accelerate_args=found)


def _accelerate_file(folder: Path, name: str | None) -> Mapping[str, Any]:
    """accelerate's file, for its address alone: the rest follows from Lamorel's keys."""
    if name is None or not (folder / name).is_file():
        return {}
    try:
        read = safe_load((folder / name).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise ConfigError(
            f"{folder / name} cannot be read: {' '.join(str(error).split())}"
        ) from error
    return read if isinstance(read, dict) else {}


def _with_root() -> str:
    """The script's own folder comes first in its path; this package must be found too."""
    return os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH", "")) if part)
