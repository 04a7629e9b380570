"""What an arm is in a comparison: feedback or a control of it, what stands beside it without the
edge, and which controls cannot be.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from experiments.report.results import Arm
from experiments.runs.identity import differing_keys, method
from lamorel_ext.config import Config, FeedbackArgs, Plug

REQUIRED_CONTROLS = ("random", "shuffled", "inverted")
"""Signs without information, of information in the wrong place, and of the opposite: what a
feedback arm must be held against.
"""
EXPERT_AGENTS = ("bot", "cloning")


def has_edge(config: Config) -> bool:
    """True where signs travel back to an LLM, whatever they say."""
    taught = config.arm.agent == "llm_policy" or (
        config.arm.agent == "student" and config.arm.teacher == "llm"
    )
    return taught and config.feedback.signal != "none"


def is_control(config: Config) -> bool:
    """True where the signs carry no information, or the opposite of it."""
    return has_edge(config) and config.feedback.sign != "own"


def is_feedback(config: Config) -> bool:
    """True where the signs are those of a feedback rule."""
    return has_edge(config) and config.feedback.sign == "own"


def is_frozen(config: Config) -> bool:
    """True for a student's LLM teacher that gets no feedback, and that no method teaches."""
    return (
        config.arm.agent == "student"
        and config.arm.teacher == "llm"
        and config.feedback.signal == "none"
        and not config.method
    )


def uses_expert(config: Config) -> bool:
    """True where the BabyAI bot acts or teaches: a bound, which learns from no reward."""
    return config.arm.agent in EXPERT_AGENTS or (
        config.arm.agent == "student" and config.arm.teacher == "oracle"
    )


def is_online(config: Config) -> bool:
    """True where the teacher is updated every so many steps, not once per rollout."""
    return config.feedback.every != "rollout"


def step_size(config: Config) -> float | None:
    """Of the teacher's updates: ``feedback.lr_online`` where they come every so many steps,
    ``feedback.lr`` otherwise; None where none go out.
    """
    if not has_edge(config) or not config.feedback_trains:
        return None
    return config.feedback.lr_online if is_online(config) else config.feedback.lr


def is_literal_rule(config: Config) -> bool:
    """True for the paper's rule and nothing else: ``previous``, online or per rollout, every other
    value of the edge as it comes.
    """
    literal, given = FeedbackArgs(), config.feedback
    kept = ("ties", "channel", "warmup_steps", "credit", "baseline")
    return (
        is_feedback(config)
        and given.signal == "previous"
        and given.loss != "unlikelihood"  # a bound leaves the first step as it is
        and all(getattr(given, key) == getattr(literal, key) for key in kept)
    )


def own_controls(arm: Arm, arms: Iterable[Arm]) -> list[Arm]:
    """The arms that differ from a method's, or an agent's, in nothing but an option whose value
    takes the information out (``controls`` of its class).
    """
    own = method(arm.config)
    found = []
    for group, option, values in _declared_controls(arm.config):
        key = f"{group}.{option}"
        if own.get(key) in values:
            return []  # it is a control itself
        found += [
            other
            for other in arms
            if method(other.config).get(key) in values
            and differing_keys([own, method(other.config)]) == [key]
        ]
    return found


def _declared_controls(config: Config) -> list[tuple[str, str, tuple[Any, ...]]]:
    """Group, option and values, of the method and the agent."""
    found = []
    for group, plug in _plugs(config).items():
        declared = getattr(plug.known(), "controls", None)
        if isinstance(declared, Mapping):
            found += [(group, option, tuple(values)) for option, values in declared.items()]
    return found


def unknown_controls(arms: Iterable[Arm]) -> list[str]:
    """Why methods and agents whose code is not imported here stand beside no controls of their own,
    in a sentence each.
    """
    plugs = [plug for arm in arms for plug in _plugs(arm.config).values()]
    return [
        f"The controls of {target} are unknown: a report made from run folders does not import its"
        " code; the one that lamorel-ext-compare makes has them."
        for target in dict.fromkeys(plug.target for plug in plugs if plug.known() is None)
    ]


def _plugs(config: Config) -> dict[str, Plug]:
    """The method and the agent that the configuration names, by their groups."""
    named = {"method": config.method, "agent": config.agent}
    return {group: plug for group, plug in named.items() if plug}


def without_edge(arm: Arm, arms: Iterable[Arm]) -> Arm | None:
    """The same arm without feedback, ``teacher_frozen`` or ``llm_policy``: nothing but keys of
    ``feedback`` differ.
    """
    nearest = nearly_without_edge(arm, arms)
    return None if nearest is None or beyond_feedback(arm, nearest) else nearest


def nearly_without_edge(arm: Arm, arms: Iterable[Arm]) -> Arm | None:
    """Of those with the same agent and teacher and no feedback, the one with the fewest differences
    outside ``feedback``, which may be too many to compare it with, then with the fewest at all;
    among equals the first.
    """
    kind = (arm.config.arm.agent, arm.config.arm.teacher, "none")
    return min(
        (
            other
            for other in arms
            if (other.config.arm.agent, other.config.arm.teacher, other.config.feedback.signal)
            == kind
        ),
        key=lambda other: (
            len(beyond_feedback(arm, other)),
            len(differing_keys([method(arm.config), method(other.config)])),
        ),
        default=None,
    )


def beyond_feedback(arm: Arm, other: Arm) -> list[str]:
    """Keys outside ``feedback`` in which two arms differ: where there are any, their difference is
    not that of the feedback.
    """
    keys = differing_keys([method(arm.config), method(other.config)])
    return [key for key in keys if not key.startswith("feedback.")]


def control_of(arm: Arm, kind: str, arms: Iterable[Arm]) -> Arm | None:
    """The arm with the same configuration but for ``feedback.sign``, which is ``kind``.

    A control whose signal is ``constant`` has no meaning that could be the arm's or another's, as
    those of earlier run folders: it controls every arm that differs in nothing but the signal.
    """
    for other in arms:
        if other.config.feedback.sign != kind or not has_edge(other.config):
            continue
        free = {"feedback.sign"}
        if other.config.feedback.signal == "constant":
            free |= {"feedback.signal", "feedback.ties"}
        if free.issuperset(differing_keys([method(arm.config), method(other.config)])):
            return other
    return None


def impossible_control(config: Config, kind: str) -> str | None:
    """Why a control of this kind cannot be; None where it can."""
    if kind != "shuffled" or config.env.num_envs > 1:
        return None
    if is_online(config):
        often = (
            "every step" if config.feedback.every == 1 else f"every {config.feedback.every} steps"
        )
        return (
            f"updated after {often} of one environment, a step has one sign and nothing to permute"
        )
    if config.feedback.channel != "loss":
        return (
            "the next prompt tells the sign of one environment at once: there is nothing to permute"
        )
    return None
