"""Sweeps in Hydra's syntax, as the command lines of their runs: ``arm=a,b run.seed=range(0,3)``."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, RangeSweep
from hydra.errors import HydraException

from lamorel_ext.config.overrides import key_of
from lamorel_ext.config.sources import group_choices
from lamorel_ext.errors import ConfigError

LONGEST_NAME = 200
"""Letters of a run's name at most; file systems take 255 bytes."""
MAX_RUNS = 10_000


@dataclass(frozen=True)
class SweptRun:
    """One run of a sweep.

    Attributes:
        name: What sets it apart, as part of a path: ``arm=a,run.seed=0``.
        overrides: Its command line.
    """

    name: str
    overrides: tuple[str, ...]


def sweep(overrides: Sequence[str], folders: Sequence[Path]) -> list[SweptRun]:
    """The runs of a sweep, the last key changing first, as Hydra's own sweeper has them.

    Args:
        overrides: ``key=a,b``, ``choice``, ``range`` and ``glob`` (over a group's files) give a
            run for each value, all others are the same in every run.
        folders: Where the files of groups are looked for.

    Raises:
        ConfigError: A sweep has no values, is one over an interval or over a key that is given
            again, or there are too many runs.
    """
    choices: list[list[str]] = []
    swept: list[int] = []
    problems: list[str] = []
    keys = list(map(key_of, overrides))
    for text, key in zip(overrides, keys, strict=True):
        found = _values(text, folders)
        if isinstance(found, str):
            problems.append(f"{text!r}: {found}")
        elif found is not None and keys.count(key) > 1:
            problems.append(f"{text!r}: {key} is given a second time; give one of them")
        elif found is not None:
            swept.append(len(choices))
        choices.append([text] if found is None or isinstance(found, str) else found)
    if problems:
        raise ConfigError(problems)
    number = 1
    for texts in choices:
        number *= len(texts)
    if number > MAX_RUNS:
        raise ConfigError(f"-m: expected at most {MAX_RUNS} runs, the sweep has {number}")
    runs = [
        SweptRun(_name([words[place] for place in swept]), words)
        for words in itertools.product(*choices)
    ]
    names = [run.name for run in runs]
    if len(set(names)) == len(names) and max(map(len, names)) <= LONGEST_NAME:
        return runs
    return [SweptRun(str(place), run.overrides) for place, run in enumerate(runs)]


def listed(
    overrides: Sequence[str], folders: Sequence[Path], lists: Mapping[str, str]
) -> list[str]:
    """The same command line with one list of values in the place of a key and its sweep.

    Args:
        overrides: ``arm=a,b``, ``run.seed=range(0,3)`` and others.
        folders: Where the files of groups are looked for.
        lists: The lists' keys by the keys that they replace, such as ``compare.arms`` by ``arm``.

    Raises:
        ConfigError: A list is given as well, a key twice, or a sweep has no values.
    """
    found: list[str] = []
    problems: list[str] = []
    keys = list(map(key_of, overrides))
    for text, key in zip(overrides, keys, strict=True):
        if key not in lists:
            found.append(text)
            continue
        if keys.count(key) > 1 or lists[key] in keys:
            other = lists[key] if lists[key] in keys else f"{key}, a second time"
            problems.append(f"{text!r}: {other} is given too; give one of them")
            continue
        values = _values(text, folders)
        if isinstance(values, str):
            problems.append(f"{text!r}: {values}")
            continue
        words = [one.partition("=")[2].strip("'\"") for one in values or [text]]
        quoted = [word if word.lstrip("-").isdecimal() else f"'{word}'" for word in words]
        found.append(f"{lists[key]}=[{','.join(quoted)}]")
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return found


def _values(text: str, folders: Sequence[Path]) -> list[str] | str | None:
    """The override with each of its values; None where it has one, or a text of what is wrong."""
    try:
        (override,) = OverridesParser.create().parse_overrides([text])
    except (HydraException, RecursionError, ValueError):
        return None  # paths and the like, which are read less strictly; else heard of with its run
    if not override.is_sweep_override():
        return None
    if not override.is_discrete_sweep():
        return "an interval has no values to run one after the other; write a range or a list"
    try:
        values = _listed(override, folders)
    except (HydraException, ValueError, ArithmeticError) as error:
        return str(error)
    if len(values) > MAX_RUNS:
        return f"expected at most {MAX_RUNS} values"
    key = override.get_key_element()
    return [f"{key}={value}" for value in values] if values else "this sweep has no values"


def _listed(override: Override, folders: Sequence[Path]) -> list[str]:
    """Of a range that has too many values, which may be without end, one more than ``MAX_RUNS``."""
    values = override.value()
    if isinstance(values, Glob):
        return list(values.filter(group_choices(folders, override.key_or_group)))
    if isinstance(values, RangeSweep):
        first = [str(value) for value in itertools.islice(values.range(), MAX_RUNS + 1)]
        if len(first) > MAX_RUNS:
            return first
    return [str(value) for value in override.sweep_string_iterator()]


def _name(words: Sequence[str]) -> str:
    plain = ",".join(words).replace("'", "").replace('"', "")
    return re.sub(r"[^\w.+=,\[\]-]", "_", plain)
