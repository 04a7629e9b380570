"""What users bring of their own: a dotted name in the configuration, ``_target_`` as Hydra has it,
with keyword arguments beside it.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import pkgutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lamorel_ext.config.typed import build
from lamorel_ext.errors import ConfigError
from lamorel_ext.options import out_of_bounds

TARGET = "_target_"
OWN_PACKAGES = ("lamorel_ext", "experiments")


@dataclass(frozen=True)
class Plug:
    """Something that the configuration names, to be imported where it is needed.

    Attributes:
        target: Dotted name of a class or function, such as ``my_game.Game``; empty for nothing.
        arguments: Its keyword arguments, as JSON, so that configurations can be compared.
    """

    target: str = ""
    arguments: str = "{}"

    def __bool__(self) -> bool:
        return bool(self.target)

    @classmethod
    def read_plain(cls, mapping: Any, key: str, problems: list[str]) -> Plug:
        """From plain values; null means nothing. What is wrong is noted."""
        if mapping is None or mapping == {}:
            return cls()
        target = mapping.get(TARGET) if isinstance(mapping, Mapping) else None
        if not isinstance(target, str) or not target.replace(":", ".").strip("."):
            problems.append(
                f"{key}: expected {{{TARGET}: package.module.Name, ...}}, got {mapping!r}"
            )
            return cls()
        keywords = {str(name): value for name, value in mapping.items() if name != TARGET}
        try:
            arguments = json.dumps(keywords)
            json.loads(arguments, parse_constant=_no_nan)
            return cls(target, arguments)
        except (TypeError, ValueError) as error:
            problems.append(f"{key}: {error}")
            return cls()

    @property
    def package(self) -> str:
        """The top-level package of its code."""
        return self.target.replace(":", ".").split(".")[0]

    @property
    def keywords(self) -> dict[str, Any]:
        """The arguments by name."""
        found: dict[str, Any] = json.loads(self.arguments)
        return found

    def locate(self, key: str) -> Any:
        """Import what is named.

        Args:
            key: Of the configuration, for the message.

        Raises:
            ConfigError: It cannot be imported, or is nothing that can be called.
        """
        try:
            found = _resolve(self.target)
        except (Exception, SystemExit) as error:  # whatever somebody's own module raises
            raise ConfigError(f"{key}.{TARGET}: {self.target}: {why(error)}") from error
        if not callable(found):
            raise ConfigError(
                f"{key}.{TARGET}: {self.target} is a {type(found).__name__}, not a class or"
                " function"
            )
        return found

    def known(self) -> Any:
        """What is named, without running code of others: the project's own is imported, other code
        is found where it has been imported already. None where it cannot be had so.
        """
        if not any(_within(self.target, package) for package in OWN_PACKAGES):
            module = self.target.partition(":")[0] if ":" in self.target else self.target
            if (module if ":" in self.target else module.rpartition(".")[0]) not in sys.modules:
                return None
        try:
            return _resolve(self.target)
        except (ImportError, AttributeError, ValueError):
            return None

    def parameters(self, key: str) -> dict[str, bool]:
        """The arguments that can be given by name, each with whether it has to be; those behind
        a ``**keywords`` are not known.

        Raises:
            ConfigError: See ``locate``.
        """
        made: Any = self.locate(key)
        declared = getattr(made, "arguments_type", None)
        called: Any = declared if dataclasses.is_dataclass(declared) else made
        try:
            known = inspect.signature(called)
        except ValueError:  # see ``_bound``
            return {}
        by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        return {
            one.name: one.default is one.empty
            for one in known.parameters.values()
            if one.kind in by_name
        }

    def make(self, key: str, *args: Any) -> Any:
        """Call what is named with ``args`` and its own arguments.

        Raises:
            ConfigError: See ``locate``, or it takes no such arguments.
        """
        made, args, keywords = self._bound(key, args)
        return made(*args, **keywords)

    def check(self, key: str, num_args: int) -> None:
        """Make sure that ``make`` could call it, without doing so.

        Args:
            num_args: How many arguments ``make`` will give.

        Raises:
            ConfigError: With every problem of its arguments.
        """
        self._bound(key, (None,) * num_args)

    def _bound(
        self, key: str, args: tuple[Any, ...]
    ) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        """What to call, and with what. What declares ``arguments_type``, a dataclass, gets its
        arguments as one of these, checked as the configuration's own groups are.
        """
        made, keywords = self.locate(key), self.keywords
        declared = getattr(made, "arguments_type", None)
        if declared is not None and dataclasses.is_dataclass(declared):
            problems: list[str] = []
            options = build(declared, keywords, f"{key}.", problems)  # type: ignore[arg-type]
            problems += out_of_bounds(options, f"{key}.")
            if problems:
                raise ConfigError(problems)
            return made, (*args, options), {}
        try:
            inspect.signature(made).bind(*args, **keywords)
        except TypeError as error:
            raise ConfigError(f"{key}: {self.target}: {error}") from error
        except ValueError:  # no signature to be had, as of some classes written in C
            pass
        return made, args, keywords


@dataclass(frozen=True)
class Plugs:
    """Several of them, each with a name.

    Attributes:
        named: Names and what they stand for.
    """

    named: tuple[tuple[str, Plug], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.named)

    @classmethod
    def read_plain(cls, mapping: Any, key: str, problems: list[str]) -> Plugs:
        """From plain values, name by name."""
        if mapping is None:
            return cls()
        if not isinstance(mapping, Mapping):
            problems.append(f"{key}: expected names, each with a {TARGET}, got {mapping!r}")
            return cls()
        named = [
            (str(name), Plug.read_plain(own, f"{key}.{name}", problems))
            for name, own in mapping.items()
        ]
        return cls(tuple((name, plug) for name, plug in named if plug))


def plain(value: Any) -> Any:
    """Dataclasses as dictionaries, without the plugs that name nothing."""
    if isinstance(value, Plug):
        return {TARGET: value.target, **value.keywords}
    if isinstance(value, Plugs):
        return {name: plain(own) for name, own in value.named}
    if isinstance(value, tuple):
        return tuple(plain(item) for item in value)
    if not dataclasses.is_dataclass(value):
        return value
    found: dict[str, Any] = {}
    for spec in dataclasses.fields(value):
        own = getattr(value, spec.name)
        if isinstance(own, (Plug, Plugs)) and not own:
            continue
        found |= plain(own) if spec.metadata.get("beside") else {spec.name: plain(own)}
    return found


def leaves(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value with its dotted key; lists are values, and so are groups without keys."""
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def plugs_of(config: Any) -> Iterator[tuple[str, Plug]]:
    """Every plug below a group of the configuration that names something, with its key."""
    for spec in dataclasses.fields(config):
        own = getattr(config, spec.name)
        if isinstance(own, Plug) and own:
            yield ("" if spec.metadata.get("beside") else spec.name), own
        elif isinstance(own, Plugs):
            yield from ((f"{spec.name}.{name}", plug) for name, plug in own.named)
        elif dataclasses.is_dataclass(own) and not isinstance(own, Plug):
            for key, plug in plugs_of(own):
                yield f"{spec.name}.{key}".rstrip("."), plug


def check_trust(config: Any, place: str, trusted: Sequence[str]) -> None:
    """Refuse a configuration that somebody else may have written, where it names code.

    Args:
        config: What was read.
        place: Where it was read.
        trusted: Packages whose code may be imported all the same.

    Raises:
        ConfigError: It names something outside the project and ``trusted``.
    """
    packages = {*OWN_PACKAGES, *trusted}
    problems = [
        f"{place}: {key}.{TARGET} is {plug.target}, code that does not belong to the project;"
        f" --trust {plug.package} lets it be imported"
        for key, plug in plugs_of(config)
        if not any(_within(plug.target, package) for package in packages)
    ]
    if problems:
        raise ConfigError(problems)


def _no_nan(constant: str) -> float:
    """Infinity means something, as "no limit" does."""
    if constant == "NaN":
        raise ValueError(
            "an argument is nan: equal to nothing, it would keep a run from being resumed"
        )
    return float(constant)


def _within(target: str, package: str) -> bool:
    return f"{target.replace(':', '.')}.".startswith(f"{package}.")


def _resolve(target: str) -> Any:
    try:
        return pkgutil.resolve_name(target)
    except AttributeError:
        module = target.replace(":", ".").rpartition(".")[0]
        if module and ":" not in target:
            importlib.import_module(module)  # says why, where the module itself is the trouble
        raise


def why(error: BaseException) -> str:
    """The reason, and where in somebody's own code it lies."""
    reason = " ".join(str(error).split()) or type(error).__name__
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    file = "" if trace is None else trace.tb_frame.f_code.co_filename
    if trace is None or isinstance(error, (ModuleNotFoundError, AttributeError, SyntaxError)):
        return reason
    return f"{type(error).__name__}: {reason} ({file}, line {trace.tb_lineno})"
