"""What a report's folder says of its runs: ``provenance.json``, and ``configs.json`` with every
arm's configuration.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.report.results import Run, read_json
from experiments.report.summary import Summary
from experiments.runs.files import replace_json
from experiments.runs.versions import config_hash
from lamorel_ext.config import Config, from_mapping, leaves, to_mapping
from lamorel_ext.errors import ConfigError, NotThereError

PROVENANCE, CONFIGS = "provenance.json", "configs.json"
OF_ONE_RUN = ("config_sha256", "started")
"""What every run has of its own; ``started`` would make no two reports alike."""


def write_provenance(tasks: Sequence[Summary], folder: Path) -> None:
    """Write both files into a report's folder.

    Raises:
        CheckpointError: One cannot be written.
    """
    replace_json(folder / PROVENANCE, provenance(tasks))
    replace_json(folder / CONFIGS, configs(tasks))


def provenance(tasks: Sequence[Summary]) -> dict[str, Any]:
    """What the runs were made with, each set of versions once with the runs that it holds for, and
    every run's hash.
    """
    made: list[dict[str, Any]] = []
    hashes: dict[str, str] = {}
    for task in tasks:
        for row in task.arms:
            for run in row.runs:
                name = f"{task.label}, {row.label}, seed {run.seed}"
                hashes[name] = config_hash(run.config)
                _note(made, run, name)
    return {"made_with": made, "config_sha256": hashes}


def _note(made: list[dict[str, Any]], run: Run, name: str) -> None:
    versions = {key: value for key, value in run.versions.items() if key not in OF_ONE_RUN}
    same = next((entry for entry in made if entry["versions"] == versions), None)
    if same is None:
        made.append({"versions": versions, "runs": [name]})
    else:
        same["runs"].append(name)


def configs(tasks: Sequence[Summary]) -> dict[str, Any]:
    """What all configurations share, and for each task and arm the keys in which it differs;
    without seeds and folders.
    """
    every = {
        (task.label, row.label): dict(leaves(to_mapping(_anywhere(row.arm.config))))
        for task in tasks
        for row in task.arms
    }
    first = next(iter(every.values()))
    shared = {
        key: value
        for key, value in first.items()
        if all(key in own and own[key] == value for own in every.values())
    }
    arms = [
        {
            "task": task,
            "arm": arm,
            "config": {key: value for key, value in own.items() if key not in shared},
        }
        for (task, arm), own in every.items()
    ]
    plain: dict[str, Any] = json.loads(json.dumps({"shared": shared, "arms": arms}))
    return plain


def read_configs(folder: Path) -> dict[tuple[str, str], Config]:
    """The configuration of every task and arm of a published folder, with seed 0 and no folder of
    its own yet.

    Raises:
        NotThereError: There is no such file, or it does not hold configurations.
    """
    path = folder / CONFIGS
    found = read_json(path)
    if not found:
        raise NotThereError(
            f"{path}: expected the configurations that lamorel-ext-publish writes, found no such"
            " file"
        )
    try:
        arms = {
            (entry["task"], entry["arm"]): from_mapping(
                _nested({**found["shared"], **entry["config"]})
            )
            for entry in found["arms"]
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise NotThereError(
            f"{path}: expected shared and arms, each arm with task, arm and config: {error!r}"
        ) from error
    except ConfigError as error:
        raise NotThereError(f"{path}: {error}") from error
    if not arms:
        raise NotThereError(f"{path} names no arm")
    return arms


def _anywhere(config: Config) -> Config:
    run = dataclasses.replace(config.run, seed=0, output_dir="runs")
    compare = dataclasses.replace(config.compare, output_dir="runs")
    return dataclasses.replace(config, run=run, compare=compare)


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """What has these ``leaves``."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        *groups, name = key.split(".")
        place = found
        for group in groups:
            place = place.setdefault(group, {})
        place[name] = value
    return found
