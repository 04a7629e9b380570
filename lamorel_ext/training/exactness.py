"""Where a policy can be evaluated exactly. Free of torch, so that a launcher can ask."""

from __future__ import annotations

from lamorel_ext.config import EnvArgs
from lamorel_ext.envs.babyai.enumeration import LEVEL


def can_enumerate(args: EnvArgs) -> bool:
    """True where the states of a level can be listed."""
    return args.level == LEVEL and args.num_distractors is None and not args.own


def why_not_exact(
    env: EnvArgs, reads_prompts: bool, enumerable: bool, told: bool, offered: bool = False
) -> str:
    """Why a policy cannot be evaluated exactly; empty where it can.

    Args:
        env: The level and its prompts.
        reads_prompts: See ``Actor``.
        enumerable: See ``Actor``.
        told: True where prompts tell feedback.
        offered: True where an environment of the user's own offers ``exact_evaluator``.
    """
    if env.own and not offered:
        return (
            f"env._target_: {env.own.target} offers no exact_evaluator"
            " (lamorel_ext.training.building.EnumerableEnvs)"
        )
    if not env.own and not can_enumerate(env):
        return f"the states of env.level={env.level} cannot be listed"
    if not enumerable:
        return "free guidance cannot be listed, nor an agent that is not `enumerable`"
    if told:
        return "prompts that tell feedback depend on the past (feedback.channel)"
    if reads_prompts and env.prompt == "glam" and env.history > 1:
        return f"prompts depend on the past (env.history={env.history})"
    return ""
