"""What an arm is in a comparison: feedback or a control of it, what stands beside it without the edge, and which controls are missing."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from experiments.identity import differing_keys, method
from experiments.results import Arm
from lamorel_ext.config import CONFIG_DIR, ArmArgs, Config, FeedbackArgs

REQUIRED_CONTROLS = ("random", "shuffled", "inverted")
"""Signs without information, of information in the wrong place, and of the opposite: what a feedback arm must be held against."""
CONTROLS = (*REQUIRED_CONTROLS, "positive")
EXPERT_AGENTS = ("bot", "cloning")
SIGN_KEYS = ("feedback.signal", "feedback.inverts", "feedback.shuffles", "feedback.ties")
"""What a control may differ in from the arm that it controls."""


@dataclass(frozen=True)
class Missing:
    """Controls that no complete run has.

    Attributes:
        arm: Label of the feedback arm.
        kinds: Of ``REQUIRED_CONTROLS``.
        files: What would be the controls, in the order of ``kinds``: names of files in ``configs/arm``, or what to copy and to change in the copy.
    """

    arm: str
    kinds: tuple[str, ...]
    files: tuple[str, ...]


def has_edge(config: Config) -> bool:
    """True where signs travel back to an LLM, whatever they say."""
    taught = config.arm.agent == "llm_policy" or (config.arm.agent == "student" and config.arm.teacher == "llm")
    return taught and config.feedback.signal != "none"


def is_control(config: Config) -> bool:
    """True where the signs carry no information, or the opposite of it."""
    return has_edge(config) and config.feedback.signal in CONTROLS


def is_feedback(config: Config) -> bool:
    """True where the signs are those of a feedback rule."""
    return has_edge(config) and config.feedback.signal not in CONTROLS


def is_frozen(config: Config) -> bool:
    """True for a student's LLM teacher that gets no feedback."""
    return config.arm.agent == "student" and config.arm.teacher == "llm" and config.feedback.signal == "none"


def uses_expert(config: Config) -> bool:
    """True where the BabyAI bot acts or teaches: a bound, not something that learns from rewards."""
    return config.arm.agent in EXPERT_AGENTS or (config.arm.agent == "student" and config.arm.teacher == "oracle")


def is_online(config: Config) -> bool:
    """True where the teacher is updated every so many steps, not once per rollout."""
    return config.feedback.every != "rollout"


def step_size(config: Config) -> float | None:
    """Of the teacher's updates: ``feedback.lr_online`` where they come every so many steps, ``feedback.lr`` otherwise; None where none go out."""
    if not has_edge(config) or not config.feedback_trains:
        return None
    return config.feedback.lr_online if is_online(config) else config.feedback.lr


def is_literal_rule(config: Config) -> bool:
    """True for the paper's rule and nothing else: ``previous``, online or per rollout, every other value of the edge as it comes."""
    literal, given = FeedbackArgs(), config.feedback
    kept = ("ties", "loss", "channel", "warmup_steps")
    return is_feedback(config) and given.signal == "previous" and all(getattr(given, key) == getattr(literal, key) for key in kept)


def without_edge(arm: Arm, arms: Iterable[Arm]) -> Arm | None:
    """The arm with the same agent and teacher and no feedback: ``teacher_frozen``, or ``llm_policy``."""
    config = arm.config
    alike = [
        other
        for other in arms
        if (other.config.arm.agent, other.config.arm.teacher, other.config.feedback.signal)
        == (config.arm.agent, config.arm.teacher, "none")
    ]
    return _nearest(arm, alike)


def control_of(arm: Arm, kind: str, arms: Iterable[Arm]) -> Arm | None:
    """The control of this kind with the same agent, rhythm, channel and loss; of several the one that differs least otherwise."""
    same = [other for other in arms if other.config.feedback.signal == kind and has_edge(other.config) and _edge(other) == _edge(arm)]
    return _nearest(arm, same)


def foreign_base(arm: Arm, control: Arm) -> str | None:
    """The signal that a control turns around or permutes, where that is not the arm's own; None where it is, or where there is none.

    Ties count where the signal knows them: ``previous`` with ties as no feedback is another signal than ``previous``.
    """
    base = _base(control.config.feedback)
    if base is None or (base == arm.config.feedback.signal and not _ties_apart(arm, control)):
        return None
    return f"{base} with feedback.ties={control.config.feedback.ties}" if base == arm.config.feedback.signal else base


def other_differences(arm: Arm, control: Arm) -> list[str]:
    """Keys beyond the sign in which a control differs from the arm that it controls."""
    return [key for key in differing_keys([method(arm.config), method(control.config)]) if key not in SIGN_KEYS]


def impossible_control(config: Config, kind: str) -> str | None:
    """Why a control of this kind cannot be; None where it can."""
    if kind != "shuffled":
        return None
    if is_online(config):
        often = "every step" if config.feedback.every == 1 else f"every {config.feedback.every} steps"
        if config.env.num_envs == 1 and config.feedback.every == 1:
            return "updated after every step of one environment, an update has one sign and nothing to permute"
        return f"updated after {often}, an update cannot wait for the rollout whose signs would be permuted"
    if config.feedback.channel != "loss":
        return "the next prompt tells the sign before the rollout is over: there is nothing to permute yet"
    return None


def missing_controls(arms: Sequence[Arm]) -> list[Missing]:
    """Every feedback arm that lacks controls, with the files that would be them."""
    found = []
    for arm in arms:
        if not is_feedback(arm.config):
            continue
        kinds = [kind for kind in REQUIRED_CONTROLS if control_of(arm, kind, arms) is None and not impossible_control(arm.config, kind)]
        if kinds:
            found.append(Missing(arm.label, tuple(kinds), tuple(_advice(arm.config, kind) for kind in kinds)))
    return found


def _edge(arm: Arm) -> tuple[object, ...]:
    config = arm.config
    return config.arm.agent, config.arm.teacher, config.feedback.every, config.feedback.channel, config.feedback.loss


def _nearest(arm: Arm, others: Sequence[Arm]) -> Arm | None:
    """The one with the fewest differences; among equals the one that turns or permutes this arm's own signal, then the first."""

    def distance(other: Arm) -> tuple[int, bool, bool]:
        base = _base(other.config.feedback)
        return len(other_differences(arm, other)), base not in (None, arm.config.feedback.signal), _ties_apart(arm, other)

    return min(others, key=distance, default=None)


def _base(feedback: FeedbackArgs) -> str | None:
    return {"inverted": feedback.inverts, "shuffled": feedback.shuffles}.get(feedback.signal)


def _ties_apart(arm: Arm, control: Arm) -> bool:
    ours, theirs = arm.config.feedback, control.config.feedback
    return ours.signal == "previous" == _base(theirs) and ours.ties != theirs.ties


def _advice(config: Config, kind: str) -> str:
    """Name of a shipped file, or which one to copy and what to change in the copy."""
    wanted: dict[str, object] = {"arm.agent": config.arm.agent, "feedback.signal": kind}
    wanted |= {f"feedback.{key}": getattr(config.feedback, key) for key in ("every", "channel", "loss", "epochs")}
    verb = {"inverted": "inverts", "shuffled": "shuffles"}.get(kind)
    own: dict[str, object] = {f"feedback.{verb}": config.feedback.signal} if verb else {}
    if verb and config.feedback.signal == "previous":
        own["feedback.ties"] = config.feedback.ties

    def unlike(name: str, keys: Mapping[str, object]) -> list[str]:
        return [key for key, value in keys.items() if _shipped_controls()[name].get(key, _usual(key)) != value]

    def distance(name: str) -> tuple[bool, int, int]:
        return (
            bool(unlike(name, {key: wanted[key] for key in ("arm.agent", "feedback.signal")})),
            len(unlike(name, wanted)),
            len(unlike(name, own)),
        )

    nearest = min(_shipped_controls(), key=distance)
    changes = unlike(nearest, wanted)
    if not changes:
        return nearest
    # A signal that needs the whole rollout in the file to be copied may be impossible in the copy: the copy names the arm's own.
    every = wanted | own
    return f"a copy of configs/arm/{nearest}.yaml with " + " and ".join(f"{key}: {every[key]}" for key in unlike(nearest, every))


@functools.cache
def _shipped_controls() -> dict[str, dict[str, Any]]:
    """What each file of a control sets, by the file's name."""
    found = {}
    for path in sorted((CONFIG_DIR / "arm").glob("*control_*.yaml")):
        groups = yaml.safe_load(path.read_text(encoding="utf-8"))
        found[path.stem] = {f"{group}.{key}": value for group, values in groups.items() for key, value in values.items()}
    return found


def _usual(key: str) -> object:
    group, name = key.split(".")
    return getattr(ArmArgs() if group == "arm" else FeedbackArgs(), name)
