"""From the words of a command line to the configurations of the runs that it asks for.

Free of torch, so that a launcher reads them as its ranks do.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.runs.identity import HOW_IT_RUNS
from lamorel_ext.config import (
    CONFIG_DIR,
    Config,
    check_trust,
    listed,
    load_config,
    load_matrix,
    search_folders,
    sweep,
)
from lamorel_ext.config.overrides import key_of, quote
from lamorel_ext.errors import ConfigError, NotThereError

ZERO_SHOT = "zero_shot"
"""The language model as it is, as policy."""

SET_HERE = {
    "task": "compare.tasks",
    "arm": "compare.arms",
    "run.seed": "compare.seeds",
    "run.output_dir": "compare.output_dir",
}
LISTS = {key: own for key, own in SET_HERE.items() if key != "run.output_dir"}


@dataclass(frozen=True)
class Planned:
    """One run of a comparison.

    Attributes:
        name: For the log.
        config: With the arm's values, the seed and the folder.
    """

    name: str
    config: Config

    @property
    def folder(self) -> Path:
        """Where it goes."""
        return Path(self.config.run.output_dir)


def plan(
    overrides: Sequence[str],
    config_name: str = "default",
    config_dir: str | Path = CONFIG_DIR,
    below: str = "",
) -> list[Planned]:
    """Compose the configuration anew for each task and arm, so that the experiment's own values and
    the command line win over theirs.

    Args:
        below: Folder of the comparison within ``compare.output_dir``; empty for that itself.

    Returns:
        The runs, seed by seed, and task by task within a seed, so that an interrupted comparison
        has complete pairs.

    Raises:
        ConfigError: With the problems of every task and arm.
    """
    named = [(text, key_of(text)) for text in overrides]
    taken = [
        f"{text}: a comparison sets this itself; set {SET_HERE[key]}"
        for text, key in named
        if key in SET_HERE
    ]
    if taken:
        raise ConfigError(taken)
    configs = load_matrix(overrides, config_name, config_dir)
    first = next(iter(configs.values()))
    others = [
        where for where, config in configs.items() if config.lamorel_args != first.lamorel_args
    ]
    if others:
        words = ", ".join(
            f"task={task} arm={arm}" if task else f"arm={arm}" for task, arm in others
        )
        raise ConfigError(
            f"lamorel_args: one launch has one set of servers, but with {words} it differs from the"
            " first run's"
        )
    folder = Path(first.compare.output_dir) / below
    return [
        _plan_one(folder, task, arm, seed, config)
        for seed in first.compare.seeds
        for (task, arm), config in configs.items()
    ]


def place_of(task: str, arm: str, seed: int) -> Path:
    """Where a run lies in the folder of its comparison.

    Args:
        task: Empty where the comparison names none.
    """
    return Path(task, arm, f"seed_{seed}")


def _plan_one(whole: Path, task: str, arm: str, seed: int, config: Config) -> Planned:
    folder = whole / place_of(task, arm, seed)
    run = dataclasses.replace(config.run, seed=seed, output_dir=str(folder))
    compare = dataclasses.replace(config.compare, output_dir=str(whole))
    return Planned(
        f"{task + ', ' if task else ''}{arm}, seed {seed}",
        dataclasses.replace(config, run=run, compare=compare),
    )


def plan_sweep(
    overrides: Sequence[str], config_name: str = "default", config_dir: str | Path = CONFIG_DIR
) -> list[list[Planned]]:
    """A comparison for each value of a sweep, in a folder of its own below
    ``compare.output_dir``. A sweep over arms, seeds or tasks gives the lists of one comparison.

    Raises:
        ConfigError: As ``plan``, for any of them.
    """
    folders = search_folders(config_dir)
    swept = sweep(listed(overrides, folders, LISTS), folders)
    comparisons: list[list[Planned]] = []
    problems: list[str] = []
    for one in swept:
        try:
            comparisons.append(plan(one.overrides, config_name, config_dir, below=one.name))
        except ConfigError as error:
            problems += problems_of(one.name, error)
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return comparisons


def problems_of(name: str, error: ConfigError) -> list[str]:
    """What is wrong, behind the name of the run in its sweep; without a sweep it has none."""
    return [f"{name}: {problem}" if name else problem for problem in error.problems]


def swept_lines(
    task: str,
    overrides: Sequence[str],
    config_name: str = "default",
    config_dir: str | Path = CONFIG_DIR,
) -> list[list[str]]:
    """A sweep as command lines without ``-m``, one for each launch, in folders as ``plan_sweep``
    and ``train -m`` have them.

    Args:
        task: ``compare`` or ``train``.

    Raises:
        ConfigError: With what is wrong with any of them.
    """
    folders = search_folders(config_dir)
    key = SET_HERE["run.output_dir"] if task == "compare" else "run.output_dir"
    if task == "compare":
        overrides = listed(overrides, folders, LISTS)
    lines: list[list[str]] = []
    problems: list[str] = []
    for one in sweep(overrides, folders):
        try:
            config = load_config(one.overrides, config_name, config_dir)
        except ConfigError as error:
            problems += problems_of(one.name, error)
            continue
        whole = config.compare.output_dir if task == "compare" else config.run.output_dir
        kept = [text for text in one.overrides if key_of(text) != key]
        lines.append([*kept, f"{key}={quote(str(Path(whole) / one.name))}"])
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return lines


def split_policy(overrides: Sequence[str]) -> tuple[str, list[str]]:
    """Take ``policy=...`` out of a command line; gives ``zero_shot`` where there is none.

    Raises:
        ConfigError: There are several.
    """
    policies = [text.partition("=")[2] for text in overrides if text.startswith("policy=")]
    if len(policies) > 1:
        raise ConfigError(f"policy: one at a time, got {', '.join(policies)}")
    return (policies or [ZERO_SHOT])[0], [
        text for text in overrides if not text.startswith("policy=")
    ]


def name_of_policy(policy: str, overrides: Sequence[str]) -> str:
    """Of a run folder, with what the command line has it act with instead, such as ``arm=random``;
    where and how that is tested, and how it runs, is left out.
    """
    elsewhere = (*HOW_IT_RUNS, "run.", "env.", "task", "hydra.")
    changed = [text for text in overrides if not key_of(text).startswith(elsewhere)]
    return f"{policy} with {', '.join(changed)}" if changed else policy


def policy_config(
    policy: str,
    overrides: Sequence[str],
    config_name: str = "default",
    config_dir: str | Path = CONFIG_DIR,
    trusted: Sequence[str] = (),
) -> Config:
    """Configuration of ``zero_shot`` or of a run folder, on which the overrides then work.

    Args:
        trusted: Packages that the folder's configuration may name by ``_target_``.

    Raises:
        ConfigError: The overrides do not fit, or the folder names code of somebody's own.
        NotThereError: It is no run folder.
    """
    if policy == ZERO_SHOT:
        return load_config(["arm=llm_policy", *overrides], config_name, config_dir)
    folder = Path(os.path.expanduser(policy))
    if not os.path.exists(folder / "config.yaml"):  # False too where the folder is closed to us
        raise NotThereError(
            f"policy={policy}: neither {ZERO_SHOT} nor a run folder: no config.yaml in it"
        )
    check_trust(load_config([], "config", folder), str(folder / "config.yaml"), trusted)
    return load_config(overrides, "config", folder)
