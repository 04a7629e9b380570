"""What an environment of the user's own offers beside ``reset`` and ``step``: how it is found in
wrappers, and what it has to be.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any

from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker

_TRANSPARENT = (OrderEnforcing, PassiveEnvChecker)
"""What ``gymnasium.make`` puts around everything: nothing of an episode is theirs."""


def offer_of(env: Any, name: str, default: Any = None) -> Any:
    """What an environment has under a name: the outermost wrapper that has it decides."""
    if hasattr(env, name):  # asked first: a wrapper not of Gymnasium's may pass the rest on
        return getattr(env, name)
    look = getattr(env, "get_wrapper_attr", None)
    try:
        return look(name) if callable(look) else getattr(env.unwrapped, name)
    except AttributeError:
        return default


def keeps_state(env: Any) -> bool:
    """True where the outermost object itself has ``get_state`` and ``set_state``. Those of what it
    wraps leave out what a wrapper may keep, such as the steps that ``TimeLimit`` counts, and give
    what no wrapper has seen.
    """
    while type(env) in _TRANSPARENT:
        env = env.env
    names = ("get_state", "set_state")
    return all(callable(inspect.getattr_static(env, name, None)) for name in names)


def fault_of_texts(texts: Any) -> str:
    """What actions' texts would have to be, empty where they are. A set is refused: its order, and
    with it the actions' numbers, would be another in every process.
    """
    if not isinstance(texts, (list, tuple)):
        return "a list or tuple of texts"
    if not all(isinstance(text, str) and text for text in texts):
        return "texts that are not empty"
    return "texts that differ" if len(set(texts)) < len(texts) else ""


def through_json(value: Any) -> Any:
    """What comes back of a value that is saved.

    Raises:
        TypeError: JSON cannot hold it, or makes something else of it.
        ValueError: Likewise.
    """
    back = json.loads(json.dumps(value))
    if change := _change(value, back, "it"):
        raise TypeError(change)
    return back


def _change(value: Any, back: Any, place: str) -> str:
    """What JSON has made of a value, empty where it is the same."""
    if isinstance(value, tuple):
        return f"{place} is a tuple, which becomes a list: {value!r:.100}"
    if isinstance(value, list):
        parts = [
            (one, own, f"{place}[{i}]")
            for i, (one, own) in enumerate(zip(value, back, strict=True))
        ]
    elif isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                return f"{place} has the key {key!r}, which becomes a text"
        parts = [(one, back[key], f"{place}[{key!r}]") for key, one in value.items()]
    else:
        same = value == back or (value != value and back != back)  # nan is not equal to itself
        return "" if same else f"{place} is {value!r:.100}, which becomes {back!r:.100}"
    return next(filter(None, (_change(*part) for part in parts)), "")
