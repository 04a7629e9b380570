"""Where configuration files are found, and what a file must be before Hydra reads it."""

from __future__ import annotations

import contextlib
import copy
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.hydra import Hydra
from hydra._internal.sources_registry import SourcesRegistry
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import OmegaConfBaseException

from lamorel_ext.errors import ConfigError
from lamorel_ext.programs import HOME

CONFIG_DIR = HOME / "configs"
MAX_VALUES = 20_000
"""Keys and values of a file at most, with its anchors written out."""
MAX_BYTES = 1_000_000
MAX_DEPTH = 50
_NO_MAPPING = "{path}, line {line}: expected keys with values, got a list or a single value"
_READ: dict[tuple[str, str, str, str], ConfigResult] = {}
"""Files read before, by provider, folder, name and text: a comparison composes the same files for
each arm.
"""
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _quick_loader() -> Any:
    """OmegaConf's loader, with its rules for numbers and for keys that stand twice, on libyaml's
    parser, which takes a fifth of the time.
    """
    rules: Any = get_yaml_loader()
    if not yaml.__with_libyaml__:
        return rules

    class QuickLoader(yaml.cyaml.CParser, rules):  # type: ignore[misc]
        def __init__(self, stream: str) -> None:
            yaml.cyaml.CParser.__init__(self, stream)
            yaml.constructor.SafeConstructor.__init__(self)
            yaml.resolver.Resolver.__init__(self)

    return QuickLoader


_QUICK_LOADER: Any = _quick_loader()


def search_folders(config_dir: Path | str = CONFIG_DIR, more: Sequence[str] = ()) -> list[Path]:
    """Where files are looked for, the first first: the named folder, what ``hydra.searchpath``
    adds, ``configs/`` of the working folder, and the project's own.

    Raises:
        ConfigError: The named folder is none: every file of its owner's would be passed over.
    """
    own = Path(os.path.expanduser(config_dir))
    if not own.is_dir():
        raise ConfigError(f"--config-dir {config_dir}: no such folder")
    added = [Path(os.path.expanduser(folder.removeprefix("file://"))) for folder in more]
    named = [own] if own.resolve() != CONFIG_DIR else []
    here = Path.cwd() / "configs"
    folders = [*named, *added, *([here] if here.is_dir() else []), CONFIG_DIR]
    return list(dict.fromkeys(folder.resolve() for folder in folders))


def group_choices(folders: Sequence[Path], group: str) -> list[str]:
    """Names of the files of a group, over all folders; none where there is no such group."""
    if not group.replace("/", "").replace("_", "").replace("-", "").isalnum():
        return []
    found = {path.stem for folder in folders for path in (folder / group).glob("*.yaml")}
    return sorted(found)


def groups(folders: Sequence[Path]) -> dict[str, list[str]]:
    """The files of every group, by the group's name."""
    names = {path.parent.name for folder in folders for path in folder.glob("*/*.yaml")}
    return {name: group_choices(folders, name) for name in sorted(names)}


def read_yaml(path: Path) -> DictConfig:
    """Read a file that must be a mapping.

    Raises:
        ConfigError: With the file, and the line where there is one.
    """
    return parse_yaml(path, read_text(path))


def parse_yaml(path: Path, text: str) -> DictConfig:
    """``read_yaml`` of a file whose text is there already."""
    _check_size(path, text)
    try:
        found = OmegaConf.create(yaml.load(text, Loader=_QUICK_LOADER))
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: {_one_line(error)}") from error
    assert isinstance(found, DictConfig)  # anything else was refused above
    return found


def compose(name: str, overrides: Sequence[str], folders: Sequence[Path]) -> DictConfig:
    """Let Hydra compose, from files that were checked; once for as long as no file changes.

    Raises:
        ConfigError: A file cannot be read, or the defaults lead back to themselves.
        HydraException: Hydra's own objections.
    """
    files = {}
    for folder in folders:
        for pattern in ("*.yaml", "*/*.yaml", "*/*/*.yaml"):
            for path in folder.glob(pattern):
                with contextlib.suppress(OSError):  # Hydra says so where it needs the file
                    found = path.stat()
                    files[path] = (found.st_mtime_ns, found.st_size)
    stamps = tuple(sorted(files.items()))
    return copy.deepcopy(_composed(name, tuple(overrides), tuple(folders), stamps))


@functools.lru_cache(maxsize=128)
def _composed(
    name: str, overrides: tuple[str, ...], folders: tuple[Path, ...], stamps: object
) -> DictConfig:
    Plugins.instance()  # registers Hydra's own sources first
    sources, kept = SourcesRegistry.instance().types, GlobalHydra.instance().hydra
    plain_files = sources["file"]
    # Hydra builds its sources from this table. Both are given back as they were: the caller may use
    # Hydra itself.
    sources["file"] = _CheckedFiles
    GlobalHydra.instance().clear()
    try:
        path = create_config_search_path(str(folders[0]))
        for folder in folders[1:]:
            path.prepend("more", f"file://{folder}", SearchPathQuery(provider="schema"))
        hydra = Hydra.create_main_hydra2("lamorel_ext", path)
        composed = hydra.compose_config(name, list(overrides), RunMode.RUN, from_shell=False)
    except RecursionError as error:
        raise ConfigError(_describe_cycle(name, overrides, folders)) from error
    finally:
        sources["file"] = plain_files
        GlobalHydra.instance().clear()
        if kept is not None:
            GlobalHydra.instance().initialize(kept)
    OmegaConf.set_struct(composed, False)
    composed.pop("hydra", None)
    return composed


class _CheckedFiles(FileConfigSource):
    """Hydra's files, each looked at before it is loaded."""

    def load_config(self, config_path: str) -> ConfigResult:
        path = Path(self.path) / self._normalize_file_name(config_path)
        if not path.exists():
            return super().load_config(config_path)
        text = read_text(path)
        key = (self.provider, self.path, config_path, text)
        if key not in _READ:
            _check_size(path, text)
            _READ[key] = super().load_config(config_path)
        return copy.deepcopy(_READ[key])  # Hydra takes the defaults list out of what it gets


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        ConfigError: It cannot be read, is too large, or not in UTF-8.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = "it is a folder" if path.is_dir() else error.strerror or str(error)
        raise ConfigError(f"{path} cannot be read: {reason}") from error
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{path}: expected at most {MAX_BYTES} bytes, got {len(content)}")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ConfigError(f"{path}, line 1: expected UTF-8, got UTF-16")
    if content.startswith(b"\xef\xbb\xbf"):
        # Hydra would read it, and overlook the line "# @package _global_" behind it.
        raise ConfigError(
            f"{path}, line 1: begins with a byte order mark; save it as UTF-8 without one"
        )
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = content[error.start]
        raise ConfigError(
            f"{path}, line {line}: expected UTF-8, got the byte 0x{byte:02x}"
        ) from error


def _check_size(path: Path, text: str) -> None:
    """Refuse what Hydra would write out without end: anchors within anchors, and deep nesting."""
    try:
        size = _count_values(path, text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}" if mark else ""
        reason = f"{error.problem or error.context}{_tab(text, error)}"
        raise ConfigError(f"{path}{line}: no YAML: {reason}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: no YAML: {_one_line(error)}") from error
    if size == 0:
        raise ConfigError(f"{path}, line 1: the file is empty; expected keys with values")
    if size > MAX_VALUES:
        raise ConfigError(
            f"{path}: expected at most {MAX_VALUES} values, its anchors stand for {size}"
        )


def _count_values(path: Path, text: str) -> int:
    """Keys and values of a file, counting those of an anchor at each of its uses.

    Works on events, since a tree of the file could be deeper than the stack.
    """
    sizes: dict[str, int] = {}
    opened: list[tuple[str | None, int]] = []
    size = 0
    for event in yaml.parse(text, Loader=_LOADER):
        line = event.start_mark.line + 1
        if not opened and isinstance(event, (yaml.ScalarEvent, yaml.SequenceStartEvent)):
            raise ConfigError(_NO_MAPPING.format(path=path, line=line))
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in (name for name, _ in opened):
                raise ConfigError(
                    f"{path}, line {line}: *{event.anchor} stands within its own anchor"
                )
            size += sizes.get(event.anchor, 0)
        elif isinstance(event, yaml.CollectionStartEvent):
            opened.append((event.anchor, size))
            size += 1
            if len(opened) > MAX_DEPTH:
                raise ConfigError(f"{path}, line {line}: nested deeper than {MAX_DEPTH} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            if anchor:
                sizes[anchor] = size - before
        elif isinstance(event, yaml.ScalarEvent):
            size += 1
            if event.anchor:
                sizes[event.anchor] = 1
    return size


def _tab(text: str, error: yaml.MarkedYAMLError) -> str:
    lines, mark = text.splitlines(), error.problem_mark
    there = mark is not None and mark.line < len(lines) and "\t" in lines[mark.line]
    return "; a tab stands there, YAML wants spaces" if there else ""


def _describe_cycle(name: str, overrides: Sequence[str], folders: Sequence[Path]) -> str:
    """The files whose ``defaults`` lead back to the first of them; what chooses them where it is
    the file of a group.
    """
    chain: list[str] = []
    while name not in chain:
        chain.append(name)
        path = next(
            (folder / f"{name}.yaml" for folder in folders if (folder / f"{name}.yaml").is_file()),
            None,
        )
        entries = read_yaml(path).get("defaults", []) if path else []
        named = [entry for entry in entries if isinstance(entry, str) and entry != "_self_"]
        if not named:
            return (
                f"{chain[0]}.yaml with {list(overrides)}: the defaults of a file that it chooses"
                " lead back to themselves"
            )
        name = next((entry for entry in named if entry in chain), named[0])
    first = next(folder for folder in folders if (folder / f"{chain[0]}.yaml").is_file())
    lines = (first / f"{chain[0]}.yaml").read_text("utf-8").splitlines()
    line = next((i for i, text in enumerate(lines, start=1) if text.startswith("defaults")), 1)
    return (
        f"{first / chain[0]}.yaml, line {line}: its defaults lead back to themselves:"
        f" {' -> '.join([*chain, name])}"
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
