"""What JSON makes of a value: what is saved must come back as it was."""

from __future__ import annotations

import json
import math
from typing import Any


def changed_by_json(value: Any, place: str = "") -> str:
    """What JSON cannot hold or would give back otherwise; empty where nothing is.

    Args:
        value: To be saved.
        place: Of it, such as ``['counts'][3]``.
    """
    if isinstance(value, dict):
        for key, own in value.items():
            if not isinstance(key, str):
                return f"the key {key!r} of {place or 'it'} into a text"
            if found := changed_by_json(own, f"{place}[{key!r}]"):
                return found
        return ""
    if type(value) is list:
        inside = (changed_by_json(own, f"{place}[{i}]") for i, own in enumerate(value))
        return next(filter(None, inside), "")
    if isinstance(value, float):  # NumPy's float64 too: the number is the same
        return "" if math.isfinite(value) else f"{place or 'it'}, {value}, which is no JSON"
    try:
        back = json.loads(json.dumps(value))
    except (TypeError, ValueError):
        return f"{place or 'it'}, a {type(value).__name__}, which it cannot hold"
    if type(back) is not type(value) or back != value:
        return f"{place or 'it'} from a {type(value).__name__} into a {type(back).__name__}"
    return ""
