"""What an environment of the user's own offers beside ``reset`` and ``step``: how it is found in
wrappers, and what it has to be.
"""

from __future__ import annotations

import inspect
import json
from typing import Any

import numpy as np
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker

from lamorel_ext.as_json import changed_by_json
from lamorel_ext.errors import EnvError

UNICODE = "text that UTF-8 can hold, without lone surrogates"
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
    if not all(map(is_unicode, texts)):
        return UNICODE
    return "texts that differ" if len(set(texts)) < len(texts) else ""


def is_unicode(text: str) -> bool:
    """False where half a character is in it, as ``errors="surrogateescape"`` leaves it: no
    tokenizer and no file takes that.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def finite_numbers(values: Any) -> np.ndarray | None:
    """A copy in float32, since an environment may fill its own anew; None where these are no finite
    numbers.
    """
    try:
        numbers = np.array(values, dtype=np.float32)
    except (TypeError, ValueError, OverflowError):
        return None
    return numbers if np.isfinite(numbers).all() else None


def is_fraction(values: Any) -> bool:
    """True where one of these numbers is not whole, as NaN is not."""
    try:
        numbers = np.asarray(values)
    except (TypeError, ValueError, RuntimeError):
        return False
    return numbers.dtype.kind == "f" and bool((numbers % 1 != 0).any())


def as_saved(place: str, state: Any) -> Any:
    """A state as it comes back from a checkpoint: a copy, which nobody goes on changing.

    Args:
        place: What gave it, for the message.
        state: What it gave.

    Raises:
        EnvError: JSON cannot hold it, or makes something else of it.
    """
    if changed := changed_by_json(state):
        raise EnvError(f"{place}: JSON would change {changed}")
    return json.loads(json.dumps(state))
