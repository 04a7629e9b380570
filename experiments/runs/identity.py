"""When two configurations mean the same run or arm: by the keys that can change a result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lamorel_ext.config import Config, leaves, to_mapping

HOW_IT_RUNS = (
    "compare.",
    "run.output_dir",
    "run.num_threads",
    "run.checkpoint_every",
    "run.trace_every",
    "run.tracker",
    "lamorel_args.log_level",
    "lamorel_args.gloo_timeout",
    "lamorel_args.peer_timeout",
    "lamorel_args.accelerate_args.",
    "lamorel_args.distributed_setup_args.",
    "lamorel_args.llm_args.num_threads",
    "lamorel_args.llm_args.parallelism.fsdp",
    "lamorel_args.llm_args.parallelism.model_parallelism_size",
)
"""Keys, and groups of keys, that say how and where a run runs; its numbers do not follow from them.
"""
WHICH_ONE = ("run.seed", "arm.name", "env.name")
"""Keys that tell runs of one arm, arms, and tasks apart without being part of the method."""


def flat(config: Config) -> dict[str, Any]:
    """Every key with its value, such as ``{"feedback.lr": 1e-4}``, in the schema's order."""
    return {key: _hashable(value) for key, value in leaves(to_mapping(config)) if value != {}}


def _hashable(value: Any) -> Any:
    """A list, also one of lists or of groups, as the stages of a curriculum are; each group in one
    line of text.
    """
    if not isinstance(value, tuple | list):
        return value
    return tuple(
        (
            ", ".join(f"{key}={own}" for key, own in item.items() if own is not None)
            if isinstance(item, dict)
            else _hashable(item)
        )
        for item in value
    )


def run_identity(config: Config) -> dict[str, Any]:
    """The keys that make a run the run it is."""
    return {key: value for key, value in flat(config).items() if not key.startswith(HOW_IT_RUNS)}


def method(config: Config) -> dict[str, Any]:
    """The keys that make an arm the arm it is."""
    return {key: value for key, value in run_identity(config).items() if key not in WHICH_ONE}


def differing_keys(mappings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys that do not have the same value everywhere."""
    every = dict.fromkeys(key for mapping in mappings for key in mapping)
    return [
        key
        for key in every
        if any(mapping.get(key) != mappings[0].get(key) for mapping in mappings[1:])
    ]
