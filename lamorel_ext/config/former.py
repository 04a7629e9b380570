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
    same numbers.
    """
    feedback = mapping.get("feedback")
    if not isinstance(feedback, Mapping):
        return mapping
    own = {key: value for key, value in feedback.items() if key not in ("inverts", "shuffles")}
    beneath = {
        "inverted": feedback.get("inverts", "gae"),
        "shuffled": feedback.get("shuffles", "gae"),
    }
    signal = own.get("signal")
    if signal in ("inverted", "shuffled"):
        own |= {"sign": signal, "signal": beneath[signal]}
        signal = own["signal"]
        if signal in (
            "random",
            "positive",
        ):  # a random sign turned around or permuted is a random sign
            own |= {"signal": "constant", "sign": "random" if signal == "random" else own["sign"]}
    elif signal in ("random", "positive"):
        own |= {"sign": signal, "signal": "constant"}
    return {**mapping, "feedback": own}
