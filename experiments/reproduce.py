"""Run published seeds again: ``python -m experiments.reproduce docs/results/bounds --seeds 1``.

Takes the configurations from the folder itself, trains with today's code, and says how far each
curve is off the published one. Exits with 1 where one is further off than rounding explains.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import math
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.compare import compare
from experiments.report.results import RETURN, STEPS, SUCCESS, read_json, read_run, readable_json
from experiments.report.statistics import TIE
from experiments.runs.build import run_as_ranked
from experiments.runs.checks import check_configs
from experiments.runs.entry import add_trust_argument, run_main, say, start_log
from experiments.runs.files import folder_to_write
from experiments.runs.planning import Planned
from experiments.runs.provenance import PROVENANCE, read_configs
from experiments.runs.versions import describe_versions
from lamorel_ext.config import Config, LamorelArgs, check_trust
from lamorel_ext.errors import CheckpointError, ConfigError, NotThereError

if TYPE_CHECKING:
    from lamorel_ext.types import LlmClient

TOLERANCE = 0.05
"""Other processors and other builds of torch round differently; a curve was seen to move by up to
this much per seed and evaluation, in BabyAI, whose returns lie between 0 and 1.
"""
SAME_VERSIONS = ("torch", "numpy", "python", "servers")
SAME_MACHINE = ("processor", "threads", *SAME_VERSIONS)
"""Where these are alike a seed gives the same curve to the last digit; of a run with
``run.portable`` the versions suffice, on x86.
"""
Key = tuple[str, str, int]
Curve = dict[str, list[float]]


def read_curves(folder: Path) -> dict[Key, Curve]:
    """The published curves by task, arm and seed.

    Raises:
        NotThereError: There is no such table, or a row of it lacks what a curve needs.
    """
    path = (
        folder / "curves.csv"
        if (folder / "curves.csv").exists()
        else folder / "tables" / "curves.csv"
    )
    found: dict[Key, Curve] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                curve = found.setdefault(
                    (row["task"], row["arm"], int(row["seed"])),
                    {STEPS: [], SUCCESS: [], RETURN: []},
                )
                for name, values in curve.items():
                    values.append(float(row[name]))
                    if not math.isfinite(values[-1]):
                        raise ValueError(f"{name} {row[name]}")
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise NotThereError(f"{path} holds no published curves: {error!r}") from error
    return found


def plan(
    folder: Path, seeds: int, arms: Sequence[str], output: Path, trusted: Sequence[str] = ()
) -> dict[Key, Planned]:
    """The first seeds of each task and arm, or of the arms named.

    Raises:
        ConfigError: An arm is not published there.
        CheckpointError: The folder holds no configurations, no curve of an arm, or does not say
            what made them.
    """
    configs, curves = read_configs(folder), read_curves(folder)
    made_with(folder)
    known = list(dict.fromkeys(arm for _, arm in configs))
    if unknown := [arm for arm in arms if arm not in known]:
        raise ConfigError([f"--arms {arm}: expected one of {', '.join(known)}" for arm in unknown])
    found = {}
    for place, ((task, arm), config) in enumerate(configs.items()):
        if arms and arm not in arms:
            continue
        check_trust(config, str(folder), trusted)
        published = sorted(
            seed for of_task, of_arm, seed in curves if (of_task, of_arm) == (task, arm)
        )
        if not published:
            raise NotThereError(f"{folder}: its curves have no row of {task}, {arm}")
        for seed in published[:seeds]:
            where = output / f"arm_{place}" / f"seed_{seed}"
            run = dataclasses.replace(config.run, seed=seed, output_dir=str(where))
            own = dataclasses.replace(config, run=run)
            found[task, arm, seed] = Planned(f"{task}, {arm}, seed {seed}", own)
    return found


def check_fresh(planned: Iterable[Planned], versions: Mapping[str, object]) -> None:
    """Runs of an earlier call are taken as they are where they are complete, and else go on, so
    they must be of this very code.

    Raises:
        ConfigError: One is of other code, or nobody can know.
    """
    from experiments.runs.run_folder import run_state, steps_done

    keys = ("commit", "dirty", *SAME_MACHINE)
    here = {key: versions.get(key) for key in keys}
    problems = []
    for one in planned:
        complete = run_state(one.folder) == "complete"
        if complete or steps_done(one.folder):
            there = {key: readable_json(one.folder / "versions.json").get(key) for key in keys}
            # Who has stopped a run of changed files may go on with it.
            if here != there or (complete and here["dirty"] is not False):
                problems.append(
                    f"--output: {one.folder} holds a run that other code may have made; choose"
                    " another folder, or remove it"
                )
    if problems:
        raise ConfigError(problems)


def return_scale(curves: Iterable[Curve]) -> float:
    """How far apart the returns of a task's published curves lie, at least 1."""
    return max(1.0, float(np.ptp(np.concatenate([curve[RETURN] for curve in curves]))))


def deviation(published: Curve, again: Mapping[str, np.ndarray], scale: float = 1.0) -> float:
    """Largest difference at an evaluation, of success or of the return.

    Args:
        scale: The return's difference is divided by it, see ``return_scale``.

    Raises:
        CheckpointError: The two were evaluated at other steps.
    """
    if list(again[STEPS]) != published[STEPS]:
        raise CheckpointError(
            f"evaluated at {list(again[STEPS])} environment steps, the published curve at"
            f" {published[STEPS]}"
        )
    return max(
        float(np.max(np.abs(again[name] - np.array(published[name])))) / unit
        for name, unit in ((SUCCESS, 1.0), (RETURN, scale))
    )


def unlike_machine(
    folder: Path, versions: Mapping[str, object], portable: bool = False
) -> list[str]:
    """In what this machine differs from those that made the published runs, as far as it may change
    their numbers.

    Args:
        portable: Of runs with ``run.portable``.
    """
    alike = portable and platform.machine().lower() in ("x86_64", "amd64")
    return _unlike(folder, versions, SAME_VERSIONS if alike else SAME_MACHINE)


def unlike_code(folder: Path, versions: Mapping[str, object]) -> list[str]:
    """In what this code differs from the one that made the published runs; empty also where
    ``versions`` knows no commit, as in an installed package.
    """
    return _unlike(folder, versions, ("commit", "dirty")) if versions.get("commit") else []


def made_with(folder: Path) -> list[Mapping[str, Any]]:
    """The machines, versions and code that made the published runs.

    Raises:
        NotThereError: The folder does not say it.
    """
    path = folder / PROVENANCE
    try:
        found: list[Mapping[str, Any]] = [
            _with_servers(dict(entry["versions"])) for entry in read_json(path)["made_with"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise NotThereError(f"{path} does not say what made the runs: {error!r}") from error
    if not found:
        raise NotThereError(f"{path} does not say what made the runs")
    return found


def _with_servers(versions: Mapping[str, Any]) -> Mapping[str, Any]:
    """With the number of LLM servers, which an earlier version did not note: of a launch it is not
    known, without one it is 1.
    """
    of_launches = ("python -m launchers ", "python -m lamorel_ext launch ")
    launched = str(versions.get("command", "")).startswith(of_launches)
    return versions if launched else {"servers": 1, **versions}


def _unlike(folder: Path, versions: Mapping[str, object], keys: Sequence[str]) -> list[str]:
    made = made_with(folder)
    return [
        f"{key} {versions.get(key)} here,"
        f" {' and '.join(dict.fromkeys(str(one.get(key)) for one in made))} there"
        for key in keys
        if any(one.get(key) != versions.get(key) for one in made)
    ]


def words(largest: float, unlike: Sequence[str], portable: bool = False, scale: float = 1.0) -> str:
    """How far off a curve is, and what that means on this machine; ``scale`` of ``deviation``."""
    if largest <= TIE:
        return "the same curve"
    share = f" (the return's as a share of {scale:.3g}, the range of the published ones)"
    off = f"off by up to {largest:.2g} in success or return at an evaluation"
    off += share if scale > 1 else ""
    if largest > TOLERANCE:
        return f"{off}: more than the {TOLERANCE} that rounding on another machine explains"
    if not unlike:
        where = "with run.portable and the same versions" if portable else "on the same machine"
        return f"{off}: {where} it should be the same, so the code gives something else today"
    return f"{off}: within the {TOLERANCE} that rounding on another machine explains"


def run(argv: Sequence[str]) -> int:
    """Do what the command line asks; every rank calls it."""
    parser = argparse.ArgumentParser(
        prog="lamorel-ext-reproduce",
        description="Run published seeds again and compare the curves.",
    )
    parser.add_argument("folder", type=Path, help="published folder, such as docs/results/bounds")
    parser.add_argument(
        "--seeds", type=int, default=1, help="how many of each arm's seeds, the lowest first"
    )
    parser.add_argument(
        "--arms",
        nargs="+",
        default=[],
        metavar="ARM",
        help="arms as the tables name them; all if not given",
    )
    parser.add_argument(
        "--output",
        type=folder_to_write,
        default=None,
        help="where the runs go; runs/reproduce/NAME if not given",
    )
    add_trust_argument(parser)
    options = parser.parse_args(argv)
    from experiments.runs.run_folder import check_folders  # takes seconds

    if options.seeds < 1:
        parser.error(f"--seeds: expected at least 1, got {options.seeds}")
    output = (
        options.output or Path("runs") / "reproduce" / Path(os.path.realpath(options.folder)).name
    )
    planned = plan(options.folder, options.seeds, options.arms, output, options.trust)
    servers: dict[LamorelArgs, list[Key]] = {}
    for key, one in planned.items():
        servers.setdefault(one.config.lamorel_args, []).append(key)
    first = next(iter(planned.values())).config
    start_log(first.lamorel_args.log_level)
    check_configs(one.config for one in planned.values())
    check_folders((one.folder, one.config) for one in planned.values())
    status = 0
    for keys in servers.values():
        status |= _run_again(options.folder, {key: planned[key] for key in keys}, argv)
    return status


def _run_again(folder: Path, planned: Mapping[Key, Planned], argv: Sequence[str]) -> int:
    config: Config = next(iter(planned.values())).config
    curves = read_curves(folder)

    def client(llm: LlmClient) -> int:
        versions = describe_versions("reproduce", argv, config.lamorel_args)
        check_fresh(planned.values(), versions)
        compare(list(planned.values()), llm, versions)
        unlike = unlike_machine(folder, versions)
        say(
            f"this machine is not the one that made them: {'; '.join(unlike)}"
            if unlike
            else "the same kind of machine and versions"
        )
        if changed := unlike_code(folder, versions):
            say(f"this code is not the one that made them: {'; '.join(changed)}")
        scales = {
            task: return_scale(curve for (its, *_), curve in curves.items() if its == task)
            for task, *_ in planned
        }
        found = {
            key: deviation(curves[key], read_run(one.folder).columns, scales[key[0]])
            for key, one in planned.items()
        }
        status = 0
        for key, largest in found.items():
            portable = planned[key].config.run.portable
            here = unlike_machine(folder, versions, portable)
            say(f"{planned[key].name}: {words(largest, here, portable, scales[key[0]])}")
            status |= int(largest > (TOLERANCE if here else TIE))
        return status

    return run_as_ranked(config, client, others=[one.config for one in planned.values()])


def main() -> int:
    """Entry of ``lamorel-ext-reproduce``."""
    return run_main(run)


if __name__ == "__main__":
    sys.exit(main())
