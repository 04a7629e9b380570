"""From plain values to the schema's types; every unknown key and wrong type is noted on the way."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from lamorel_ext.options import did_you_mean


def build(kind: type, mapping: Any, prefix: str, problems: list[str]) -> Any:
    """A dataclass from plain values. A type that has ``read_plain`` reads them itself, and a field
    ``beside`` gets the keys that the class does not know, where ``_target_`` is among them.
    """
    if hasattr(kind, "read_plain"):
        return kind.read_plain(mapping, prefix.removesuffix("."), problems)
    if not isinstance(mapping, Mapping):
        problems.append(
            f"{prefix.removesuffix('.') or 'the configuration'}: expected a group of keys, got"
            f" {mapping!r}"
        )
        return kind()
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for spec in dataclasses.fields(kind):
        if spec.metadata.get("beside"):
            own = hints.pop(spec.name)
            if "_target_" in mapping:
                beside = {key: value for key, value in mapping.items() if key not in hints}
                values[spec.name] = build(own, beside, prefix, problems)
                mapping = {key: value for key, value in mapping.items() if key in hints}
    for key in mapping:
        if key not in hints:
            problems.append(f"{prefix}{key}: unknown key{did_you_mean(str(key), hints)}")
    for name, hint in hints.items():
        if name not in mapping:
            continue
        if dataclasses.is_dataclass(hint):
            values[name] = build(hint, mapping[name], f"{prefix}{name}.", problems)  # type: ignore[arg-type]
        else:
            known = len(problems)
            value = _convert(hint, mapping[name], f"{prefix}{name}", problems)
            # Otherwise the default stands in, so that the rest can be checked too.
            if len(problems) == known:
                values[name] = value
    return kind(**values)


def _convert(hint: Any, value: Any, key: str, problems: list[str]) -> Any:
    """The value as the hint wants it; a problem is noted where it cannot be."""
    if dataclasses.is_dataclass(hint):
        return build(hint, value, f"{key}.", problems)  # type: ignore[arg-type]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            problems.append(f"{key}: expected a list, got {value!r}")
            return ()
        return tuple(
            _convert(arguments[0], item, f"{key}[{i}]", problems) for i, item in enumerate(value)
        )
    fitting = [option for option in _alternatives(hint) if _fits(option, value)]
    if not fitting:
        whole = int in _alternatives(hint) and isinstance(value, float) and value.is_integer()
        written = f"; write {int(value)}" if whole else ""
        problems.append(f"{key}: expected {_describe(hint)}, got {value!r}{written}")
        return value
    if isinstance(value, str) and any(
        letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in value
    ):
        problems.append(f"{key}: expected text in UTF-8 without NUL, got {value!r}")
        return value
    return _as_float(value) if fitting[0] is float else value


def _as_float(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:  # a whole number of more than 308 digits
        return math.inf if value > 0 else -math.inf


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _fits(hint: Any, value: Any) -> bool:
    if hint is type(None):
        return value is None
    if get_origin(hint) is Literal:
        return isinstance(value, str) and value in get_args(hint)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _describe(hint: Any) -> str:
    def one(option: Any) -> str:
        if option is type(None):
            return "null"
        return (
            "one of " + ", ".join(get_args(option))
            if get_origin(option) is Literal
            else option.__name__
        )

    return " or ".join(one(option) for option in _alternatives(hint))
