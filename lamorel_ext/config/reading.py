"""Composing, reading and writing configurations. Only this folder knows OmegaConf and Hydra.

A configuration is made of ``configs/default.yaml``, one file per chosen group
(``model=flan_t5_small``, ``task=go_to_local``), and single values (``feedback.loss=clipped``), in
Hydra's syntax. Whatever is wrong with it is reported at once, every problem in a line of its own.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, get_type_hints

from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from lamorel_ext.config.cells import Cell, expand_cells, named, read_cell
from lamorel_ext.config.former import translated
from lamorel_ext.config.overrides import (
    Parsed,
    key_of,
    parse_override,
    quote_if_needed,
    search_path,
)
from lamorel_ext.config.plugs import leaves, plain
from lamorel_ext.config.possible import PATH_KEYS, impossible_values
from lamorel_ext.config.schema import CompareArgs, Config, EnvArgs
from lamorel_ext.config.sources import (
    CONFIG_DIR,
    compose,
    group_choices,
    parse_yaml,
    read_text,
    read_yaml,
    search_folders,
)
from lamorel_ext.config.typed import build
from lamorel_ext.errors import ConfigError
from lamorel_ext.options import did_you_mean


def load_config(
    overrides: Sequence[str] = (), config_name: str = "default", config_dir: Path | str = CONFIG_DIR
) -> Config:
    """Compose the configuration and check it as a whole.

    Args:
        overrides: Hydra's syntax: ``model=flan_t5_small`` chooses a file of a group,
            ``feedback.lr=1e-5`` sets a value. ``arm`` may be a cell of a comparison, such as
            ``arm=teacher_feedback+signal=td``.
        config_name: File in ``config_dir`` to start from, without ``.yaml``.
        config_dir: Folder of the files.

    Raises:
        ConfigError: With every problem found.
    """
    overrides, cell = _with_cell(overrides)
    mapping, problems = _compose(overrides, config_name, config_dir)
    config = _checked(mapping, problems)
    return config if cell is None else named(config, cell)


def _with_cell(overrides: Sequence[str]) -> tuple[list[str], Cell | None]:
    """An override ``arm=base+key=value`` as those of base and values, and the cell itself.

    Raises:
        ConfigError: The cell cannot be read, a later override names another arm, or one sets a
            value of the cell.
    """
    found, cell = list(overrides), None
    for place, text in enumerate(overrides):
        if key_of(text) != "arm":
            continue
        if cell is not None:  # the other arm would keep the cell's values
            raise ConfigError(f"{text!r}: an arm is given already, {cell.name}; give one of them")
        value = text.partition("=")[2]
        if "+" in value:
            cell = read_cell(value.strip().strip("'\""))
            found[place] = f"arm={cell.base}"
    if cell is None:
        return found, None
    _check_cells_alone({cell.name: cell}, found)
    return found + cell.overrides, cell


TELLING_APART = ("feedback.signal", "arm.agent", "arm.teacher", "arm.weights", "arm.action_heads")
"""Keys by which the files of arms say what an arm is."""


def load_matrix(
    overrides: Sequence[str] = (), config_name: str = "default", config_dir: Path | str = CONFIG_DIR
) -> dict[tuple[str, str], Config]:
    """The configuration of each arm on each task of a comparison, composed anew, so that the
    experiment's own values win over theirs.

    Returns:
        By task and arm, task after task; the controls that ``compare.controls`` asks for are among
        the arms, and in each configuration's ``compare.arms``. The task is empty where
        ``compare.tasks`` names none.

    Raises:
        ConfigError: With the problems of every task and arm; what all have in common is said once.
            Or two tasks are the same.
    """
    mapping, _ = _compose(overrides, config_name, config_dir)
    # What is wrong with it is said below, together with the problems of each arm: every one of
    # them has its values.
    compare = build(CompareArgs, _expanded(mapping, []).get("compare", {}), "compare.", [])
    read = [read_cell(name) for name in compare.arms]
    parts = [sorted(cell.name.split("+")) for cell in read]  # the order of values means nothing
    if twice := [cell.name for cell, own in zip(read, parts, strict=True) if parts.count(own) > 1]:
        raise ConfigError(f"compare.arms: {twice[0]} is asked for twice")
    cells = {cell.name: cell for cell in read}
    if cells:
        compare = dataclasses.replace(compare, arms=tuple(cells))
    _check_cells_alone(cells, overrides)
    _check_arms_stay_apart(cells, overrides, config_name, config_dir)
    configs: dict[tuple[str, str], Config] = {}
    problems: dict[str, list[tuple[str, str]]] = {}
    tasks = tuple(dict.fromkeys(compare.tasks)) or ("",)
    choices: Mapping[str, Cell | None] = cells if cells else {"": None}
    for task, (arm, cell) in itertools.product(tasks, choices.items()):
        groups = [f"task={task}"] if task else []
        groups += [] if cell is None else [f"arm={cell.base}", *cell.overrides]
        try:
            composed = load_config([*overrides, *groups], config_name, config_dir)
        except ConfigError as error:
            for problem in error.problems:
                problems.setdefault(problem, []).append((task, arm))
        else:
            configs[task, arm] = composed if cell is None else named(composed, cell)
    if problems:
        raise ConfigError(
            [_concerning(problem, concerned, compare) for problem, concerned in problems.items()]
        )
    configs = _with_controls(configs, cells)
    _check_arms_differ(configs)
    arms = tuple(dict.fromkeys(arm for _, arm in configs))
    configs = {
        key: dataclasses.replace(config, compare=dataclasses.replace(config.compare, arms=arms))
        for key, config in configs.items()
    }
    _check_tasks_differ(configs, compare)
    return configs


def _check_cells_alone(cells: Mapping[str, Cell], overrides: Sequence[str]) -> None:
    """A value on the command line would make two cells the same, or a folder's name wrong."""
    given = {key for _, key, _ in _given(overrides)}
    problems = []
    for name, cell in cells.items():
        problems += [
            f"{key}: set by the cell {name}; leave it out" for key in cell.values if key in given
        ]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))


def _given(overrides: Sequence[str]) -> Iterator[tuple[str, str, Any]]:
    """Each key that is set, one by one where a group is given as a mapping: the override, the key
    and its value.
    """
    for text in overrides:
        parsed = parse_override(text)
        if isinstance(parsed, Parsed):
            yield from ((text, key, value) for key, value in leaves({parsed.key: parsed.value}))


def _check_arms_stay_apart(
    cells: Mapping[str, Cell], overrides: Sequence[str], config_name: str, config_dir: Path | str
) -> None:
    """A value on the command line goes over every arm's own: what tells arms apart would be gone,
    and their names would still say it.
    """
    problems = []
    for text, key, value in _given(overrides):
        if key not in TELLING_APART or len(cells) < 2:
            continue
        others = [each for each in overrides if each is not text]
        group, name = key.split(".")
        own = {}
        for arm, cell in cells.items():
            config = load_config([*others, f"arm={cell.base}"], config_name, config_dir)
            own[arm] = getattr(getattr(config, group), name)
        if len(set(own.values())) > 1:
            told = ", ".join(f"{each} of {arm}" for arm, each in own.items())
            problems.append(
                f"{key}: would go over what tells the arms apart ({told}); ask for a cell, such as"
                f" {{base: teacher_feedback, {key}: {value}}}"
            )
    if problems:
        raise ConfigError(problems)


def _with_controls(
    configs: Mapping[tuple[str, str], Config], cells: Mapping[str, Cell]
) -> dict[tuple[str, str], Config]:
    """Behind each feedback arm its controls, where they are possible and not there already."""
    found: dict[tuple[str, str], Config] = {}
    for (task, arm), config in configs.items():
        found[task, arm] = config
        if config.feedback.signal == "none" or config.feedback.sign != "own":
            continue
        for sign in config.compare.controls:
            cell = cells[arm].signed(sign)
            control = dataclasses.replace(
                config, feedback=dataclasses.replace(config.feedback, sign=sign)
            )
            label = f"{config.arm.name}/{sign} sign"
            control = dataclasses.replace(control, arm=dataclasses.replace(control.arm, name=label))
            if cell not in cells.values() and not impossible_values(control):
                found[task, cell.name] = control
    return found


def _concerning(problem: str, concerned: Sequence[tuple[str, str]], compare: CompareArgs) -> str:
    """A problem behind the tasks and arms that have it, where not all of them do."""
    tasks, arms = (tuple(dict.fromkeys(names)) for names in zip(*concerned, strict=True))
    words = [f"task={', '.join(tasks)}"] if len(tasks) < len(set(compare.tasks)) else []
    words += [f"arm={', '.join(arms)}"] if len(arms) < len(set(compare.arms)) else []
    return f"with {' and '.join(words)}: {problem}" if words else problem


def _check_arms_differ(configs: Mapping[tuple[str, str], Config]) -> None:
    """A cell may name a value that its base has already: two arms under the same seeds would be one
    arm, trained twice and counted twice in every correction.
    """
    seen: list[tuple[str, str, Config]] = []
    for (task, arm), config in configs.items():
        own = dataclasses.replace(config, arm=dataclasses.replace(config.arm, name=""))
        for its_task, other, theirs in seen:
            if its_task == task and theirs == own:
                raise ConfigError(
                    f"compare.arms: {other} and {arm} have the same values; leave one of them out"
                )
        seen.append((task, arm, own))


def _check_tasks_differ(configs: Mapping[tuple[str, str], Config], compare: CompareArgs) -> None:
    """A value of the experiment, or of the command line, may win over what sets two tasks apart."""
    seen: dict[EnvArgs, str] = {}
    for task in compare.tasks:
        env = dataclasses.replace(configs[task, compare.arms[0]].env, name="")
        if env in seen:
            raise ConfigError(
                f"compare.tasks: {seen[env]} and {task} have the same env values; is one of them"
                " set besides?"
            )
        seen[env] = task


def from_mapping(mapping: Mapping[str, Any]) -> Config:
    """Build the typed configuration from plain values.

    Raises:
        ConfigError: With every unknown key, wrong type and impossible value.
    """
    return _checked(mapping, [])


def _checked(mapping: Mapping[str, Any], known: Sequence[str]) -> Config:
    problems = list(known)
    mapping = _expanded(mapping, problems)
    config: Config = build(Config, mapping, "", problems)
    if config.agent:
        config = dataclasses.replace(config, arm=dataclasses.replace(config.arm, agent="own"))
    # A default stands in for what is wrong already: nothing more is to be said of its key.
    wrong = {re.split(r"[:\[]", problem)[0] for problem in problems}
    problems += [each for each in impossible_values(config) if each.split(":")[0] not in wrong]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return config


def _expanded(mapping: Mapping[str, Any], problems: list[str]) -> Mapping[str, Any]:
    """The values of older configurations under today's keys, and each cell of ``compare.arms`` as a
    name.
    """
    mapping = translated(mapping)
    compare = mapping.get("compare")
    if isinstance(compare, Mapping) and isinstance(compare.get("arms"), (list, tuple)):
        return {**mapping, "compare": {**compare, "arms": expand_cells(compare["arms"], problems)}}
    return mapping


def _compose(
    overrides: Sequence[str], config_name: str, config_dir: Path | str
) -> tuple[dict[str, Any], list[str]]:
    """The plain values of everything that could be understood, and what could not."""
    parsed, problems = [], []
    for text in overrides:
        found = parse_override(text)
        if isinstance(found, str):
            problems.append(found)
        else:
            parsed.append(found)
    added, wrong = search_path(parsed)
    problems += wrong
    primary = _find(config_name, search_folders(config_dir, added))
    try:
        folders = search_folders(config_dir, [*added, *_own_search_path(primary)])
        groups, values, more = _split(parsed, folders)
        problems += more
        composed = _compose_groups(config_name, groups, folders)
        problems += [problem for key, value in values if (problem := _set(composed, key, value))]
        values_of_all = OmegaConf.to_container(composed, resolve=True)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from error
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError([*problems, f"{primary} with {list(overrides)}: {reason}"]) from error
    except RecursionError as error:
        raise ConfigError(
            [*problems, f"{primary}: nested too deeply, or a value that holds itself"]
        ) from error
    assert isinstance(values_of_all, dict)  # what Hydra composes is one
    mapping = {str(key): value for key, value in values_of_all.items()}
    _expand_home(mapping)
    return mapping, problems


def _find(name: str, folders: Sequence[Path]) -> Path:
    """The file of a configuration's name in the first folder that has it."""
    if name and "\0" not in name and not name.startswith("/"):
        for folder in folders:
            if (folder / f"{name}.yaml").exists():
                return folder / f"{name}.yaml"
    known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    places = ", ".join(map(str, folders))
    raise ConfigError(
        f"--config-name {name}: no configuration {name!r} in {places}{did_you_mean(name, known)}"
    )


def _own_search_path(primary: Path) -> list[str]:
    """What the file itself adds to ``hydra.searchpath``; Hydra says what is wrong with it."""
    if "searchpath" not in read_text(primary):
        return []
    own = read_yaml(primary).get("hydra")
    added = own.get("searchpath") if isinstance(own, DictConfig) else None
    listed = list(added) if isinstance(added, ListConfig) else []
    return [item for item in listed if isinstance(item, str) and "pkg://" not in item]


def _compose_groups(name: str, chosen: Mapping[str, str], folders: Sequence[Path]) -> DictConfig:
    """Choose files of groups, also of those that the defaults list does not name."""
    listed = {
        key: f"~{key}" if file == "null" else f"{key}={quote_if_needed(file)}"
        for key, file in chosen.items()
    }
    while True:
        try:
            return compose(name, list(listed.values()), folders)
        except HydraException as error:
            missing = [key for key in listed if f"override '{key}'" in str(error)]
            added = [key for key in missing if not listed[key].startswith("+")]
            if not added or "No match in the defaults list" not in str(error):
                raise
            for key in added:
                listed[key] = f"+{key}={quote_if_needed(chosen[key])}"


def _set(composed: DictConfig, key: str, value: Any) -> str:
    """Set one value; gives what is wrong with the key."""
    try:
        if isinstance(value, Mapping) and isinstance(OmegaConf.select(composed, key), ListConfig):
            return f"{key}: expected a list, got {value!r}"
        OmegaConf.update(composed, key, value, force_add=True)
    except (OmegaConfBaseException, IndexError, ValueError, TypeError, AttributeError) as error:
        group, _, last = key.rpartition(".")
        try:
            there = OmegaConf.select(composed, group) if group else composed
        except (OmegaConfBaseException, ValueError, TypeError, IndexError, AttributeError):
            there = None
        if isinstance(there, ListConfig):
            return f"{group}[{last}]: there are {len(there)} values, counted from 0"
        reason = " ".join(str(error).split())
        return f"{key}: cannot be set: {reason}"
    return ""


def _expand_home(mapping: dict[str, Any]) -> None:
    """``~`` at the beginning of a path is the home folder, for every key that names a path."""
    for key in PATH_KEYS:
        *groups, last = key.split(".")
        place: Any = mapping
        for group in groups:
            place = place.get(group) if isinstance(place, dict) else None
        if isinstance(place, dict) and isinstance(place.get(last), str):
            place[last] = os.path.expanduser(place[last])


def to_mapping(config: Config) -> dict[str, Any]:
    """Plain dictionaries and lists, as ``from_mapping`` takes them."""
    found: dict[str, Any] = plain(config)
    return found


def save_config(config: Config, path: Path) -> None:
    """Write the resolved configuration as YAML."""
    path.write_text(to_yaml(config), encoding="utf-8")


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(_writable(to_mapping(config))))


def read_config(path: Path) -> Config:
    """Read what ``save_config`` wrote.

    Raises:
        ConfigError: The file is missing, no YAML, or does not fit the schema.
    """
    return _parsed(path, read_text(path))


@lru_cache(maxsize=4096)  # a comparison reads those of its runs several times
def _parsed(path: Path, text: str) -> Config:
    try:
        values = OmegaConf.to_container(parse_yaml(path, text), resolve=True)
    except (OmegaConfBaseException, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    assert isinstance(values, dict)  # what read_yaml reads is one
    return from_mapping({str(key): value for key, value in values.items()})


def _writable(value: Any) -> Any:
    """Tuples as lists, and ``${`` in a text so that OmegaConf reads the text back as it is."""
    if isinstance(value, dict):
        return {key: _writable(item) for key, item in value.items()}
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda found: 2 * found[1] + "\\${", value)
    return [_writable(item) for item in value] if isinstance(value, (list, tuple)) else value


def _split(
    parsed: Sequence[Parsed], folders: Sequence[Path]
) -> tuple[dict[str, str], list[tuple[str, Any]], list[str]]:
    """Hydra composes the groups; single values are set afterwards, so that all of them can be
    checked together.
    """
    groups: dict[str, str] = {}
    values: list[tuple[str, Any]] = []
    problems: list[str] = []
    for one in parsed:
        choices = group_choices(folders, one.key)
        if one.key == "hydra.searchpath":
            continue
        if one.deletes:
            problems.append(
                f"{one.text!r}: nothing can be taken away; " + _instead(one.key, choices)
            )
        elif not choices:
            values.append((one.key, one.raw if _is_word(one) else one.value))
        elif one.value is None or str(one.value) in choices:
            name = "null" if one.value is None else str(one.value)
            groups[f"{one.key}@{one.package}" if one.package else one.key] = name
        else:
            places = " or ".join(
                str(folder / one.key) for folder in folders if (folder / one.key).is_dir()
            )
            meant = did_you_mean(str(one.value), choices) if str(one.value) else ""
            meant = meant if "did you mean" in meant else ""
            problems.append(
                f"{one.key}={one.value}: no such file in {places}{meant}; there are:"
                f" {', '.join(choices)}"
            )
    return groups, values, problems


def _instead(key: str, choices: Sequence[str]) -> str:
    return f"{key}=null chooses no file" if choices else "a key that is not set has its default"


def _is_word(one: Parsed) -> bool:
    """Whether a text is wanted where the value looks like a number, such as
    ``run.output_dir=2026``.
    """
    if not isinstance(one.value, (bool, int, float)):
        return False
    kind: Any = Config
    for name in one.key.split("."):
        hints = get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
        kind = hints.get(name)
    return kind in (str, str | None)
