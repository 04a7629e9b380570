"""What an agent answers, held to what it has to be: one of the user's own may give anything."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from lamorel_ext.errors import ConfigError
from lamorel_ext.experience import Actor, Decision, Scene
from lamorel_ext.randomness import Draws


def decide(actor: Actor, scene: Scene, draws: Draws) -> Decision:
    """What an actor decides.

    Raises:
        ConfigError: It is no decision for these states.
    """
    return checked(actor, scene, actor.decide(scene, draws))


def checked(actor: Actor, scene: Scene, decision: Decision) -> Decision:
    """A decision that an actor has given, with arrays.

    Raises:
        ConfigError: It is no decision for these states.
    """
    if not isinstance(decision, Decision):
        raise _error(actor, "decide", "a Decision", decision)
    actions, log_probs, values = (
        _numbers(actor, f"decide: {name}", len(scene), getattr(decision, name))
        for name in ("actions", "log_probs", "values")
    )
    offered = scene.candidates
    for place, action in enumerate(actions.tolist()):
        if not isinstance(action, int) or not 0 <= action < len(offered[place]):
            wanted = f"whole numbers, here from 0 to {len(offered[place]) - 1}"
            raise _error(actor, "decide: actions", wanted, action)
    return dataclasses.replace(decision, actions=actions, log_probs=log_probs, values=values)


def values(actor: Actor, scene: Scene) -> np.ndarray:
    """V of each state, ``(n,)``, as an actor sees it.

    Raises:
        ConfigError: It gives something else.
    """
    return _numbers(actor, "values", len(scene), actor.values(scene))


def _numbers(actor: Actor, name: str, count: int, given: Any) -> np.ndarray:
    try:
        found = np.asarray(given)
    except (TypeError, ValueError, RuntimeError) as error:  # torch raises the last one
        raise _error(actor, name, f"{count} numbers", error) from error
    if found.shape != (count,) or found.dtype.kind not in "iuf":
        told = f"{found.dtype} of shape {found.shape}"
        raise _error(actor, name, f"{count} numbers, one for each state", told)
    return found


def _error(actor: Actor, name: str, expected: str, got: Any) -> ConfigError:
    whose, shown = f"agent: {type(actor).__name__}", got if isinstance(got, str) else repr(got)
    return ConfigError(f"{whose}.{name}: expected {expected}, got {shown:.200}")
