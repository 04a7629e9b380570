"""What an environment of the user's own is called with: the keys beside ``env._target_``, and those
keys of the ``env`` group that mean the same to it as to us.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from lamorel_ext.config import EnvArgs, Plug
from lamorel_ext.config.plugs import why
from lamorel_ext.errors import ConfigError, EnvError, LamorelExtError

PASSED_ON = ("level", "action_texts", "success_above", "max_steps")
"""Keys of ours that it gets too, where they are set and it takes an argument of that name."""
NOT_OF_BATCHES = (("num_workers", 0), ("success_above", 0.0), ("max_steps", None))
"""Keys that only mean something where we step the copies, and what they have to be elsewhere."""


def own_plug(args: EnvArgs) -> Plug:
    """What ``env._target_`` names, with all of its arguments.

    Args:
        args: The ``env`` group; it names an environment of the user's own.

    Raises:
        ConfigError: It cannot be imported, or a key that was set would never reach it.
    """
    own, unset = args.own, EnvArgs()
    takes = own.parameters("env")
    keywords, problems = own.keywords, []
    for name in (spec.name for spec in dataclasses.fields(args) if spec.name != "own"):
        value = getattr(args, name)
        is_set = value != getattr(unset, name)
        if name in PASSED_ON:
            if is_set and name in takes:
                keywords[name] = value
            elif is_set and name == "level":
                problems.append(
                    f"env.level: {own.target} takes no argument level, and BabyAI's levels mean"
                    f" nothing to it, got {value!r}"
                )
        elif name in takes and (is_set or takes[name]):
            problems.append(
                f"env.{name}: is a key of the project's own and never reaches the argument {name}"
                f" of {own.target}; give that another name, or let env._target_ name a function"
                " that takes it under another name"
            )
    if offers(args, "make_batch"):
        problems += [
            f"env.{name}: must be {json.dumps(wanted)} where {own.target} makes its own batch"
            f" and takes no such argument, got {getattr(args, name)}"
            for name, wanted in NOT_OF_BATCHES
            if getattr(args, name) != wanted and name not in takes
        ]
    if problems:
        raise ConfigError(problems)
    return dataclasses.replace(own, arguments=json.dumps(keywords))


def offers(args: EnvArgs, name: str) -> bool:
    """True where what ``env._target_`` names has a method of that name, known before it is made."""
    return callable(getattr(args.own.locate("env"), name, None))


def made(args: EnvArgs) -> Any:
    """What ``env._target_`` names, called with its arguments.

    Raises:
        ConfigError: See ``own_plug``.
        EnvError: It raises.
    """
    try:
        return own_plug(args).make("env")
    except LamorelExtError:
        raise
    except Exception as error:
        raise EnvError(f"env: {args.own.target}: {why(error)}") from error
