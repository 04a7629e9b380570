"""Cells of a comparison: an arm's file with values of its own, in one line of text that is its name
too.

``teacher_feedback+signal=td+credit=posterior+student.kappa=5`` is
``configs/arm/teacher_feedback.yaml`` with three values; keys without a group are those of
``feedback``. An experiment's file may write the same as a mapping, ``{base: teacher_feedback,
feedback.signal: td, ...}``, in which a list of values stands for a cell each. The text names the
cell's folder, so it is the same in every comparison.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from lamorel_ext.config.schema import Config
from lamorel_ext.errors import ConfigError
from lamorel_ext.methods.feedback.options import Sign

USUAL_GROUP = "feedback."
BARE = ("signal", "credit", "loss", "channel", "kappa_mode")
"""Keys whose values say by themselves what they are about, so that labels leave the key out."""

_WORDS = {"true": True, "false": False, "null": None}


@dataclasses.dataclass(frozen=True)
class Cell:
    """An arm of a comparison.

    Attributes:
        base: Name of a file in ``configs/arm``.
        values: What differs from it, by full key.
    """

    base: str
    values: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The cell in one line; a folder's name."""
        return "+".join([self.base, *(each.removeprefix(USUAL_GROUP) for each in self.overrides)])

    @property
    def overrides(self) -> list[str]:
        """Its values as a command line has them."""
        return [f"{key}={_text(value)}" for key, value in self.values.items()]

    def label(self, base_name: str) -> str:
        """For reports, after the base's ``arm.name``."""
        parts = [base_name]
        for key, value in self.values.items():
            last = key.rpartition(".")[2]
            if last == "sign":
                parts.append(f"{value} sign")
            else:
                parts.append(_text(value) if last in BARE else f"{last}={_text(value)}")
        return "/".join(parts)

    def signed(self, sign: Sign) -> Cell:
        """The control of that kind."""
        return Cell(self.base, {**self.values, "feedback.sign": sign})


def read_cell(text: str) -> Cell:
    """A cell from its line of text.

    Raises:
        ConfigError: The base is empty, or a part is not ``key=value`` or names a key twice.
    """
    base, *parts = text.split("+")
    if not base:
        raise ConfigError(
            f"compare.arms: {text!r}: must begin with the name of a file in configs/arm"
        )
    values: dict[str, Any] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        full = key if "." in key else USUAL_GROUP + key
        if not (equals and key and value):
            raise ConfigError(f"compare.arms: {text}: expected base+key=value+..., got {part!r}")
        if full in values:
            raise ConfigError(f"compare.arms: {text}: names {full} twice")
        values[full] = _value(value)
    return Cell(base, values)


def expand_cells(items: Sequence[Any], problems: list[str]) -> list[Any]:
    """Mappings among ``compare.arms`` as lines of text, one for each combination of the values in
    their lists.
    """
    names: list[Any] = []
    for place, item in enumerate(items):
        if not isinstance(item, Mapping):
            names.append(item)
            continue
        base = item.get("base")
        if not isinstance(base, str):
            problems.append(
                f"compare.arms[{place}].base: must name a file in configs/arm, got {base!r}"
            )
            continue
        keys = [str(key) for key in item if key != "base"]
        choices = [
            item[key] if isinstance(item[key], (list, tuple)) else [item[key]] for key in keys
        ]
        pairs = zip(keys, choices, strict=True)
        odd = [key for key, values in pairs if not all(map(_plain, values))]
        problems += [
            f"compare.arms[{place}].{key}: expected a number, a word or a list of them"
            for key in odd
        ]
        if odd:
            continue
        full = [key if "." in key else USUAL_GROUP + key for key in keys]
        names += [
            Cell(base, dict(zip(full, values, strict=True))).name
            for values in itertools.product(*choices)
        ]
    return names


def named(config: Config, cell: Cell) -> Config:
    """The configuration of a cell under the cell's label."""
    if not cell.values:
        return config
    arm = dataclasses.replace(config.arm, name=cell.label(config.arm.name))
    return dataclasses.replace(config, arm=arm)


def _plain(value: Any) -> bool:
    return isinstance(value, (bool, int, float, type(None))) or (
        isinstance(value, str) and value != "" and not set(value) & set("+=/ ")
    )


def _value(text: str) -> Any:
    """What a command line means by it. YAML knows numbers and truths that it does not: ``on``,
    ``12:30``; and takes ``1e-5`` for a word.
    """
    if text in _WORDS:
        return _WORDS[text]
    for number in (int, float):
        with contextlib.suppress(ValueError):
            return number(text)
    return text


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:.12g}" if isinstance(value, float) else str(value)
