"""Keys of configurations that earlier versions wrote, in today's words, so that old run folders are
read and go on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def translated(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    """Controls were signals once: ``signal: inverted`` with ``inverts: td`` is ``signal: td`` with
    ``sign: inverted``.

    The random and the positive sign had no signal beneath: theirs is ``constant``, which gives the
    same numbers. A random sign that was turned around or permuted is a random sign.
    """
    feedback = mapping.get("feedback")
    if not isinstance(feedback, Mapping):
        return mapping
    own = dict(feedback)
    beneath = {"inverted": own.pop("inverts", "gae"), "shuffled": own.pop("shuffles", "gae")}
    signal = own.get("signal")
    if signal in ("inverted", "shuffled"):
        own |= {"sign": signal, "signal": beneath[signal]}
    if own.get("signal") == "random" or signal == "positive":
        own["sign"] = own["signal"]
    if own.get("signal") in ("random", "positive"):
        own["signal"] = "constant"
    return {**mapping, "feedback": own}
