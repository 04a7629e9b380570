"""Declared options: one dataclass field says type, bounds and default to the configuration, to the
request on the wire and to the updater that reads it.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field, fields, is_dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from lamorel_ext.errors import RequestError

OptionsT = TypeVar("OptionsT")

MAX_FLOAT = (2 - 2**-23) * 2.0**127
"""The largest float32: PyTorch refuses to compute float32 tensors with a larger number."""
MAX_WHOLE = 2**63 - 1
"""The largest whole number of NumPy and PyTorch: sizes and counts above it fit into no array."""


def number(
    default: Any,
    *,
    at_least: float = -math.inf,
    above: float = -math.inf,
    at_most: float = math.inf,
    finite: bool = True,
) -> Any:
    """A field of a dataclass that holds a number, or a tuple of numbers.

    Args:
        default: Its default.
        at_least: The smallest value; -inf for none.
        above: What every value must exceed; -inf for none.
        at_most: The largest value; inf for the largest float32, or whole number of 64 bits.
        finite: False where infinity means something, as "no limit" does. Not-a-number never does.
    """
    bounds = {"at_least": at_least, "above": above, "at_most": at_most, "finite": finite}
    return field(default=default, metadata={"bounds": bounds})


def why_out_of_bounds(value: float, bounds: Mapping[str, Any]) -> str:
    """What a value must be and is not, such as ``must be above 0, got -1``; empty where it fits.

    Args:
        value: An int or float.
        bounds: Of a field that ``number`` made: its ``metadata["bounds"]``; empty ones ask for a
            finite number.
    """
    at_least, above = bounds.get("at_least", -math.inf), bounds.get("above", -math.inf)
    at_most = bounds.get("at_most", math.inf)
    if value != value:
        return f"must be a number, got {value}"
    if bounds.get("finite", True) and not -math.inf < value < math.inf:
        return f"must be finite, got {value}"
    if at_least <= value <= at_most and value > above:
        if isinstance(value, int):
            return f"must be at most {MAX_WHOLE}, got {value}" if value > MAX_WHOLE else ""
        too_large = bounds.get("finite") and abs(value) > MAX_FLOAT
        return f"must be at most {MAX_FLOAT:.17g} in size, got {value}" if too_large else ""
    if value < at_least == 0:
        return f"must not be negative, got {value}"
    return f"must {_range(at_least, above, at_most)}, got {value}"


def out_of_bounds(group: Any, prefix: str = "") -> list[str]:
    """Every number below a dataclass that its field's bounds do not admit, by its
    key.
    """
    problems: list[str] = []
    for spec in fields(group):
        value, bounds = getattr(group, spec.name), spec.metadata.get("bounds", {})
        several = isinstance(value, tuple)
        for place, item in enumerate(_flat(value) if several else (value,)):
            key = f"{prefix}{spec.name}" + (f"[{place}]" if several and is_dataclass(item) else "")
            if is_dataclass(item):
                problems += out_of_bounds(item, f"{key}.")
            elif isinstance(item, (int, float)) and not isinstance(item, bool):
                if problem := why_out_of_bounds(item, bounds):
                    word = (
                        f" or {spec.default!r}, got" if isinstance(spec.default, str) else ", got"
                    )
                    problems.append(f"{key}: {problem.replace(', got', word)}")
    return problems


def _flat(values: tuple[Any, ...]) -> Iterator[Any]:
    """What a tuple, or a tuple of tuples, holds."""
    for value in values:
        if isinstance(value, tuple):
            yield from _flat(value)
        else:
            yield value


def _range(at_least: float, above: float, at_most: float) -> str:
    if at_most < math.inf:
        if above >= at_least:
            return f"be above {above:g} and at most {at_most:.17g}"
        return f"be between {at_least:g} and {at_most:.17g}"
    return f"be above {above:g}" if above >= at_least else f"be at least {at_least:g}"


def in_common(kind: type, args: Any) -> dict[str, Any]:
    """The values of ``args`` by those names of its fields that the dataclass ``kind`` has too."""
    own = {spec.name for spec in fields(args)}
    return {spec.name: getattr(args, spec.name) for spec in fields(kind) if spec.name in own}


def read_options(kind: type[OptionsT], options: Mapping[str, Any], updater: str) -> OptionsT:
    """Build the options dataclass ``kind`` from a request's options; what is not named keeps its
    default.

    Raises:
        RequestError: An option is unknown, of the wrong type or out of range; all problems at once.
    """
    hints = get_type_hints(kind)
    problems = [unknown_name("option", key, hints) for key in options if key not in hints]
    values = {}
    for spec in fields(kind):  # type: ignore[arg-type]
        if spec.name in options:
            value, problem = _convert(
                hints[spec.name], options[spec.name], spec.metadata.get("bounds", {})
            )
            values[spec.name] = value
            problems += [f"options[{spec.name!r}] {problem}"] if problem else []
    if problems:
        raise RequestError(f"{updater}: " + "; ".join(problems))
    return kind(**values)


def _convert(hint: Any, value: Any, bounds: Mapping[str, Any]) -> tuple[Any, str]:
    """The value as the hint wants it, and what is wrong with it."""
    if get_origin(hint) is Literal:
        allowed = get_args(hint)
        return (
            value,
            "" if value in allowed else f"must be one of {', '.join(allowed)}, got {value!r}",
        )
    fits = isinstance(value, (int, float) if hint is float else hint) and (
        hint is bool or not isinstance(value, bool)
    )
    if not fits:
        return value, f"must be of type {hint.__name__}, got {value!r}"
    if hint is bool or hint is str:
        return value, ""
    return hint(value), why_out_of_bounds(hint(value), bounds)


def unknown_name(what: str, key: str, known: Iterable[str]) -> str:
    """That a name is unknown, with the one that was meant, or those that there are."""
    return f"unknown {what} {key!r}{did_you_mean(key, sorted(known))}"


def did_you_mean(key: str, known: Iterable[str]) -> str:
    """Of an unknown name: the one that was meant, or those that there are, in brackets."""
    names = list(known)
    close = difflib.get_close_matches(key, names, n=1)
    return f" (did you mean {close[0]}?)" if close else f" (known: {', '.join(names)})"
