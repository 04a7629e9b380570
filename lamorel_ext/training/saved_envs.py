"""Saved environments of a run that stepped them together or in two halves, each as the other needs
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lamorel_ext.envs.babyai.saved_states import cut_state, join_states
from lamorel_ext.errors import CheckpointError

Saved = dict[str, Any]
"""``env`` and ``history``, or ``halves``: two of these."""


def as_whole(state: Saved) -> Saved:
    """``env`` and ``history`` of all environments.

    Raises:
        CheckpointError: This is no saved environment.
    """
    try:
        if "halves" not in state:
            return {"env": state["env"], "history": state["history"]}
        halves = state["halves"]
        return {
            "env": join_states([half["env"] for half in halves]),
            "history": [window for half in halves for window in half["history"]],
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"not a saved environment: {error!r}") from error


def as_halves(state: Saved, sizes: Sequence[int]) -> list[Saved]:
    """``env`` and ``history`` of each half.

    Args:
        state: As it was saved; what was saved in such halves is taken as it is.
        sizes: Environments in each half.

    Raises:
        CheckpointError: This is no saved environment, or one that cannot be cut.
    """
    if "halves" in state and [_num_envs(half) for half in state["halves"]] == list(sizes):
        return list(state["halves"])
    whole = as_whole(state)
    if _num_envs(whole) != sum(sizes):
        raise CheckpointError(f"{_num_envs(whole)} saved environments, expected {sum(sizes)}")
    starts = [sum(sizes[:part]) for part in range(len(sizes))]
    histories = [
        whole["history"][start : start + size] for start, size in zip(starts, sizes, strict=True)
    ]
    return [
        {"env": env, "history": history}
        for env, history in zip(cut_state(whole["env"], sizes), histories, strict=True)
    ]


def _num_envs(saved: Saved) -> int:
    """Every environment has a history."""
    try:
        return len(saved["history"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"not a saved environment: {error!r}") from error
