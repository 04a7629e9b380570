"""The variables in which a launch tells a process its rank, and what they mean where something else
has set them.

Containers and batch systems set some of them for a single process too (``RANK=0 WORLD_SIZE=1``):
such a process is no rank.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from lamorel_ext.errors import ConfigError

LAUNCH_VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
)
"""What a launch sets anew for each of its ranks."""


def rank_and_size(environment: Mapping[str, str] = os.environ) -> tuple[int, int] | None:
    """Rank and number of processes of the launch that this process belongs to; None where it is
    alone.

    Raises:
        ConfigError: The variables contradict each other; names them with their values.
    """
    size, rank = _number("WORLD_SIZE", environment), _number("RANK", environment)
    if size is None or (size == 1 and rank in (None, 0)):
        return None
    said = f"WORLD_SIZE={size} and " + ("no RANK" if rank is None else f"RANK={rank}")
    if rank is None or not 0 <= rank < size:
        raise ConfigError(
            f"the environment has {said}, which no launch sets; start the ranks with"
            " lamorel-ext-launch, accelerate launch or torchrun, or unset both for one process"
        )
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not environment.get(name)]
    if missing:
        raise ConfigError(
            f"the environment has {said} but no {' and no '.join(missing)}: the ranks cannot meet;"
            " start them with lamorel-ext-launch, or unset RANK and WORLD_SIZE for one process"
        )
    return rank, size


def rank_of_log() -> int | None:
    """The rank for messages; None where this process is alone, or nobody can tell."""
    try:
        found = rank_and_size()
    except ConfigError:
        return None
    return found and found[0]


def speaks() -> bool:
    """True in the process that says what every rank would say alike: the first one, or the only
    one.
    """
    return not rank_of_log()


def _number(name: str, environment: Mapping[str, str]) -> int | None:
    text = environment.get(name, "").strip()
    if not text:
        return None
    try:
        return int(text)
    except ValueError as error:
        raise ConfigError(
            f"the environment has {name}={text!r}, expected a whole number"
        ) from error
