"""Saved states of batched environments, joined and cut: those of several batches of one level as
the state of one batch, and back.
"""

from __future__ import annotations

from collections.abc import Sequence

from lamorel_ext.errors import CheckpointError

State = dict[str, list[int]]


def join_states(states: Sequence[State]) -> State:
    """The state of one batch that has the copies of several, in their order.

    Raises:
        CheckpointError: They are not of the same level and backend.
    """
    if len({tuple(sorted(state)) for state in states}) != 1:
        raise CheckpointError(
            f"saved environments of different kinds: {[sorted(state) for state in states]}"
        )
    return {name: [value for state in states for value in state[name]] for name in states[0]}


def cut_state(state: State, sizes: Sequence[int]) -> list[State]:
    """One state for each of several batches, which share the copies of one batch in their order.

    Each list has to hold equally many numbers per copy, one copy after the other; only those of
    ``actions`` differ, as ``lengths`` says.

    Args:
        state: Of one batch.
        sizes: Copies in each batch.

    Raises:
        CheckpointError: It has another form, or another number of copies.
    """
    return [
        dict(zip(state, lists, strict=True))
        for lists in zip(*(_cut(state, name, sizes) for name in state), strict=True)
    ]


def _cut(state: State, name: str, sizes: Sequence[int]) -> list[list[int]]:
    num_envs, values = sum(sizes), state[name]
    counts = (
        state["lengths"]
        if name == "actions" and "lengths" in state
        else [len(values) // num_envs] * num_envs
    )
    if len(counts) != num_envs or sum(counts) != len(values):
        raise CheckpointError(
            f"the saved state cannot be cut into {' and '.join(map(str, sizes))} environments:"
            f" {name} has {len(values)} numbers"
        )
    ends = [sum(counts[: sum(sizes[:part])]) for part in range(len(sizes) + 1)]
    return [values[start:stop] for start, stop in zip(ends[:-1], ends[1:], strict=True)]
