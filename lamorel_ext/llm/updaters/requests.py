"""Checks of an ``UpdateRequest``, all of them before anything is changed."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from lamorel_ext.errors import RequestError
from lamorel_ext.options import why_out_of_bounds
from lamorel_ext.types import Scalar, UpdateRequest

OptionsT = TypeVar("OptionsT")


@dataclass(frozen=True)
class DataSpec:
    """Tensors that come with the samples, each ``(n,)`` where nothing else is said.

    Attributes:
        choices: Keys of integers that point into each sample's candidates.
        numbers: Keys of finite numbers.
        tables: Keys of finite numbers by candidate, ``(n, k)``; a sample with fewer than ``k``
            candidates uses the first ones of its row.
        optional: Keys of numbers that may be left out.
    """

    choices: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """All keys."""
        return self.choices + self.numbers + self.tables


def read_options(kind: type[OptionsT], options: Mapping[str, Scalar], updater: str) -> OptionsT:
    """Build the options dataclass ``kind`` from a request's options; what is not named keeps its
    default.

    Raises:
        RequestError: An option is unknown, of the wrong type or out of range; all problems at once.
    """
    hints = get_type_hints(kind)
    problems = [_unknown("option", key, hints) for key in options if key not in hints]
    values = {}
    for spec in dataclasses.fields(kind):  # type: ignore[arg-type]
        if spec.name in options:
            value, problem = _convert(
                hints[spec.name], options[spec.name], spec.metadata.get("bounds", {})
            )
            values[spec.name] = value
            problems += [f"options[{spec.name!r}] {problem}"] if problem else []
    if problems:
        raise RequestError(f"{updater}: " + "; ".join(problems))
    return kind(**values)


def check_samples(request: UpdateRequest) -> None:
    """Check prompts, candidates and indices.

    Raises:
        RequestError: Lengths disagree, a candidate list is empty, or an index is double or outside
            the whole batch.
    """
    n = len(request.prompts)
    name, indices = request.updater, request.indices
    if request.total < 1:
        raise RequestError(
            f"{name}: total must be at least 1, got {request.total}: there is nothing to learn from"
        )
    if len(request.candidates) != n:
        raise RequestError(f"{name}: {n} prompts, but candidates for {len(request.candidates)}")
    for i, candidates in enumerate(request.candidates):
        if len(candidates) == 0:
            raise RequestError(f"{name}: candidates[{i}] is empty")
    if tuple(indices.shape) != (n,) or indices.dtype != torch.int64:
        raise RequestError(
            f"{name}: indices must be ({n},) int64, got {tuple(indices.shape)} {indices.dtype}"
        )
    if n and (int(indices.min()) < 0 or int(indices.max()) >= request.total):
        raise RequestError(
            f"{name}: indices must be in [0, {request.total}), got {int(indices.min())} to"
            f" {int(indices.max())}"
        )
    if len(indices.unique()) != n:
        raise RequestError(f"{name}: indices name a sample twice")


def read_data(request: UpdateRequest, spec: DataSpec) -> dict[str, Tensor]:
    """Check the per-sample tensors; choices become int64, numbers float64.

    Raises:
        RequestError: A key is missing or unknown, a shape or type is wrong, a number is not finite,
            or a choice is outside its
        candidates.
    """
    name, n = request.updater, len(request.prompts)
    for key in request.data:
        if key not in spec.keys:
            raise RequestError(f"{name}: {_unknown('data', key, spec.keys)}")
    missing = [key for key in spec.keys if key not in request.data and key not in spec.optional]
    if missing:
        raise RequestError(
            f"{name}: data lacks {', '.join(repr(key) for key in missing)}; there are"
            f" {sorted(request.data)}"
        )
    counts = torch.tensor([len(candidates) for candidates in request.candidates], dtype=torch.int64)
    width = int(counts.max()) if n else 0
    for key, values in request.data.items():
        shape = tuple(values.shape)
        if key in spec.tables and not (len(shape) == 2 and shape[0] == n and shape[1] >= width):
            raise RequestError(
                f"{name}: data[{key!r}] must have shape ({n}, at least {width}): a number for each "
                f"candidate, got {shape}"
            )
        if key not in spec.tables and shape != (n,):
            raise RequestError(f"{name}: data[{key!r}] must have shape ({n},), got {shape}")
    data = {key: _choices(name, key, request.data[key], counts) for key in spec.choices}
    numbers = [key for key in (*spec.numbers, *spec.tables) if key in request.data]
    return data | {key: _numbers(name, key, request.data[key]) for key in numbers}


def _choices(name: str, key: str, values: Tensor, counts: Tensor) -> Tensor:
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise RequestError(f"{name}: data[{key!r}] must hold integers, got {values.dtype}")
    values = values.to("cpu", torch.int64)
    outside = ((values < 0) | (values >= counts)).nonzero().flatten()
    if len(outside):
        i = int(outside[0])
        raise RequestError(
            f"{name}: data[{key!r}][{i}] is {int(values[i])}, but there are {int(counts[i])}"
            " candidates"
        )
    return values


def _numbers(name: str, key: str, values: Tensor) -> Tensor:
    if values.is_complex():
        raise RequestError(f"{name}: data[{key!r}] must hold real numbers, got {values.dtype}")
    bad = (~torch.isfinite(values)).nonzero()
    if len(bad):
        place = tuple(bad[0].tolist())
        where = f"data[{key!r}][{', '.join(map(str, place))}]"
        raise RequestError(
            f"{name}: {where} is {float(values[place])}; it must be finite ({len(bad)} of"
            f" {values.numel()} are not)"
        )
    return values.double()


def _convert(hint: Any, value: Scalar, bounds: Mapping[str, Any]) -> tuple[Scalar, str]:
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


def _unknown(what: str, key: str, known: Iterable[str]) -> str:
    names = sorted(known)
    close = difflib.get_close_matches(key, names, n=1)
    return f"unknown {what} {key!r}" + (
        f" (did you mean {close[0]!r}?)" if close else f" (known: {', '.join(names)})"
    )
