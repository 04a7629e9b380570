"""Composing, reading and writing configurations. The only file that knows OmegaConf and Hydra.

A configuration is made of ``configs/default.yaml``, one file per chosen group (``model=flan_t5_small``, ``task=go_to_local``), and single values
(``feedback.loss=clipped``), in Hydra's syntax. Whatever is wrong with it is reported at once, every problem in a line of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from lamorel_ext.config.cells import Cell, expand_cells, named, read_cell
from lamorel_ext.config.former import translated
from lamorel_ext.config.possible import impossible_values
from lamorel_ext.config.schema import CompareArgs, Config, EnvArgs
from lamorel_ext.config.typed import build, did_you_mean
from lamorel_ext.errors import ConfigError

CONFIG_DIR = Path(__file__).resolve().parents[2] / "configs"


def load_config(overrides: Sequence[str] = (), config_name: str = "default", config_dir: Path | str = CONFIG_DIR) -> Config:
    """Compose the configuration and check it as a whole.

    Args:
        overrides: Hydra's syntax: ``model=flan_t5_small`` chooses a file of a group, ``feedback.lr=1e-5`` sets a value.
        config_name: File in ``config_dir`` to start from, without ``.yaml``.
        config_dir: Folder of the files.

    Raises:
        ConfigError: With every problem found.
    """
    return from_mapping(compose_mapping(overrides, config_name, config_dir))


def load_matrix(
    overrides: Sequence[str] = (), config_name: str = "default", config_dir: Path | str = CONFIG_DIR
) -> dict[tuple[str, str], Config]:
    """The configuration of each arm on each task of a comparison, composed anew, so that the experiment's own values win over theirs.

    Returns:
        By task and arm, task after task; the controls that ``compare.controls`` asks for are among the
        arms, and in each configuration's ``compare.arms``. The task is empty where ``compare.tasks`` names none.

    Raises:
        ConfigError: With the problems of every task and arm; what all have in common is said once. Or two tasks are the same.
    """
    mapping = compose_mapping(overrides, config_name, config_dir)
    compare = from_mapping({"compare": mapping["compare"]} if "compare" in mapping else {}).compare
    cells = {name: read_cell(name) for name in compare.arms}
    _check_cells_alone(cells, overrides)
    configs: dict[tuple[str, str], Config] = {}
    problems: dict[str, list[tuple[str, str]]] = {}
    for task in compare.tasks or ("",):
        for arm, cell in cells.items():
            groups = [*([f"task={task}"] if task else []), f"arm={cell.base}"]
            try:
                composed = load_config([*overrides, *groups, *cell.overrides], config_name, config_dir)
            except ConfigError as error:
                for problem in error.problems:
                    problems.setdefault(problem, []).append((task, arm))
            else:
                configs[task, arm] = named(composed, cell)
    if problems:
        raise ConfigError([_concerning(problem, concerned, compare) for problem, concerned in problems.items()])
    configs = _with_controls(configs, cells)
    arms = tuple(dict.fromkeys(arm for _, arm in configs))
    configs = {
        key: dataclasses.replace(config, compare=dataclasses.replace(config.compare, arms=arms))
        for key, config in configs.items()
    }
    _check_tasks_differ(configs, compare)
    return configs


def _check_cells_alone(cells: Mapping[str, Cell], overrides: Sequence[str]) -> None:
    """A value on the command line would make two cells the same, or a folder's name wrong."""
    given = {text.partition("=")[0].lstrip("+") for text in overrides}
    problems = []
    for name, cell in cells.items():
        problems += [f"{key}: set by the cell {name}; leave it out" for key in cell.values if key in given]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))


def _with_controls(configs: Mapping[tuple[str, str], Config], cells: Mapping[str, Cell]) -> dict[tuple[str, str], Config]:
    """Behind each feedback arm its controls, where they are possible and not there already."""
    found: dict[tuple[str, str], Config] = {}
    for (task, arm), config in configs.items():
        found[task, arm] = config
        if config.feedback.signal == "none" or config.feedback.sign != "own":
            continue
        for sign in config.compare.controls:
            cell = cells[arm].signed(sign)
            control = dataclasses.replace(config, feedback=dataclasses.replace(config.feedback, sign=sign))
            label = f"{config.arm.name}/{sign} sign"
            control = dataclasses.replace(control, arm=dataclasses.replace(control.arm, name=label))
            if (task, cell.name) not in configs and not impossible_values(control):
                found[task, cell.name] = control
    return found


def _concerning(problem: str, concerned: Sequence[tuple[str, str]], compare: CompareArgs) -> str:
    """A problem behind the tasks and arms that have it, where not all of them do."""
    tasks, arms = (tuple(dict.fromkeys(names)) for names in zip(*concerned, strict=True))
    words = [f"task={', '.join(tasks)}"] if len(tasks) < len(compare.tasks) else []
    words += [f"arm={', '.join(arms)}"] if len(arms) < len(compare.arms) else []
    return f"with {' and '.join(words)}: {problem}" if words else problem


def _check_tasks_differ(configs: Mapping[tuple[str, str], Config], compare: CompareArgs) -> None:
    """A value of the experiment, or of the command line, may win over what sets two tasks apart."""
    seen: dict[EnvArgs, str] = {}
    for task in compare.tasks:
        env = dataclasses.replace(configs[task, compare.arms[0]].env, name="")
        if env in seen:
            raise ConfigError(f"compare.tasks: {seen[env]} and {task} have the same env values; is one of them set besides?")
        seen[env] = task


def compose_mapping(overrides: Sequence[str] = (), config_name: str = "default", config_dir: Path | str = CONFIG_DIR) -> dict[str, Any]:
    """Compose the plain values, unchecked. See ``load_config``."""
    folder = Path(config_dir).resolve()
    if not (folder / f"{config_name}.yaml").is_file():
        known = sorted(path.stem for path in folder.glob("*.yaml"))
        raise ConfigError(f"no configuration {config_name!r} in {folder}{did_you_mean(config_name, known)}")
    groups, values, problems = _split_overrides(overrides, folder)
    if problems:
        raise ConfigError(problems)
    try:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(folder), version_base=None):
            composed = compose(config_name, overrides=groups)
        OmegaConf.set_struct(composed, False)
        for key, value in values:
            OmegaConf.update(composed, key, value, force_add=True)
        plain = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"{config_name}.yaml with {list(overrides)}: {' '.join(str(error).split())}") from error
    if not isinstance(plain, dict):
        raise ConfigError(f"{config_name}.yaml is not a mapping of keys to values")
    return {str(key): value for key, value in plain.items()}


def from_mapping(mapping: Mapping[str, Any]) -> Config:
    """Build the typed configuration from plain values.

    Raises:
        ConfigError: With every unknown key, wrong type and impossible value.
    """
    problems: list[str] = []
    mapping = translated(mapping)
    compare = mapping.get("compare")
    if isinstance(compare, Mapping) and isinstance(compare.get("arms"), (list, tuple)):
        mapping = {**mapping, "compare": {**compare, "arms": expand_cells(compare["arms"], problems)}}
    config = build(Config, mapping, "", problems)
    problems += impossible_values(config)
    if problems:
        raise ConfigError(problems)
    return config


def to_mapping(config: Config) -> dict[str, Any]:
    """Plain dictionaries and lists, as ``from_mapping`` takes them."""
    plain: dict[str, Any] = dataclasses.asdict(config)
    return plain


def save_config(config: Config, path: Path) -> None:
    """Write the resolved configuration as YAML."""
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(_lists(to_mapping(config)))), encoding="utf-8")


def read_config(path: Path) -> Config:
    """Read what ``save_config`` wrote.

    Raises:
        ConfigError: The file is missing, no YAML, or does not fit the schema.
    """
    try:
        plain = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OSError, OmegaConfBaseException, YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(plain, dict):
        raise ConfigError(f"{path} is not a mapping of keys to values")
    return from_mapping({str(key): value for key, value in plain.items()})


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


def _split_overrides(overrides: Sequence[str], folder: Path) -> tuple[list[str], list[tuple[str, Any]], list[str]]:
    """Hydra composes the groups; single values are set afterwards, so that all of them can be checked together."""
    groups: list[str] = []
    values: list[tuple[str, Any]] = []
    problems: list[str] = []
    for text in overrides:
        try:
            (parsed,) = OverridesParser.create().parse_overrides([text])
        except HydraException:
            problems.append(f"{text!r} is not of the form key=value")
            continue
        if parsed.is_sweep_override() or parsed.is_delete():
            problems.append(f"{text!r}: exactly one value is needed here")
            continue
        key = parsed.key_or_group
        if (folder / key).is_dir():
            choices = sorted(path.stem for path in (folder / key).glob("*.yaml"))
            if str(parsed.value()) in choices:
                groups.append(text)
            else:
                problems.append(f"{key}={parsed.value()}: no such file in {folder / key}; there are: {', '.join(choices)}")
        else:
            values.append((key, _plain(parsed.value())))
    return groups, values, problems


def _plain(value: Any) -> Any:
    """Values of Hydra's override grammar as plain Python."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)
