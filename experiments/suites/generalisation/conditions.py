"""The conditions a frozen policy is tested under: GLAM's generalisation tests (Carta et al. 2023,
section 4.3), as data.

Words, names of actions and the goal's phrasing change what the LLM reads; the language changes the
sentences of the observation; distractors and tasks change the level. Whatever a condition does not
name stays as the run was trained.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lamorel_ext.config import Config, EnvArgs
from lamorel_ext.errors import ConfigError
from lamorel_ext.prompts import PLAIN, WORDINGS, Wording

GROUPS = {
    "words": "other and invented words",
    "actions": "synonyms of the actions",
    "goal": "another phrase before the goal",
    "language": "French observations",
    "distractors": "other numbers of distractors",
    "tasks": "other tasks",
}
"""Kinds of conditions, in the order of the page."""
TEXT_GROUPS = ("words", "actions", "goal", "language")
"""Groups that change what the LLM reads and nothing else: the episodes are those of the unchanged
condition.
"""

BABYAI_GROUPS = ("actions", "language", "distractors", "tasks")
"""Groups that mean nothing in an environment of the user's own."""

ROOMIER = {"BabyAI-GoToRedBallNoDists-v0": "BabyAI-GoToRedBall-v0"}
"""Levels without an argument for distractors, and the level that differs in having one."""


@dataclass(frozen=True)
class Condition:
    """One test.

    Attributes:
        name: As on the command line.
        group: One of ``GROUPS``.
        title: What is changed, for people.
        wording: What the LLM reads instead.
        env: Values of the configuration's ``env`` group that are changed.
        by_default: False for a test that has to be asked for by name.
    """

    name: str
    group: str
    title: str
    wording: Wording = PLAIN
    env: Mapping[str, Any] = field(default_factory=dict)
    by_default: bool = True


UNCHANGED = Condition("unchanged", "", "as trained")


def _reworded(group: str, name: str, title: str) -> Condition:
    return Condition(name, group, title, WORDINGS[name])


def _distractors(number: int, by_default: bool = True) -> Condition:
    return Condition(
        f"distractors_{number}",
        "distractors",
        f"num_distractors={number}",
        env={"num_distractors": number},
        by_default=by_default,
    )


def _task(name: str, level: str, title: str) -> Condition:
    return Condition(
        name, "tasks", title, env={"level": f"BabyAI-{level}-v0", "num_distractors": None}
    )


CONDITIONS = {
    condition.name: condition
    for condition in (
        _reworded("words", "other_nouns", "nouns that exist: chair, table, car"),
        _reworded("words", "other_colours", "colours that exist: jade, ..."),
        _reworded("words", "invented_nouns", "invented nouns: dax, xolo, afze"),
        _reworded("words", "invented_colours", "invented colours: faze, ..."),
        _reworded("words", "invented_words", "invented nouns and colours"),
        _reworded("actions", "synonym_actions", "actions renamed: rotate left, ..."),
        _reworded("goal", "goal_as_wish", "the goal as a wish"),
        _reworded("goal", "goal_as_order", "the goal as an order"),
        Condition("french", "language", "sentences in French", env={"language": "fr"}),
        _distractors(0),
        _distractors(4),
        _distractors(8),
        _distractors(12),
        _distractors(16, by_default=False),
        _task("go_to_any", "GoToLocal", "go to any object"),
        _task("go_to_two", "GoToLocal2", "go to one object and to another"),
        _task("pick_up", "PickupLocal", "pick up an object"),
        _task("pick_up_go_to", "PickUpSeqGoToLocal", "pick up one object, go to another"),
        _task("pick_up_two", "PickUpSeqPickUpLocal", "pick up one object, then another"),
        _task("put_next", "PutNextLocal", "put one object next to another"),
        _task("unseen_pairs", "MixedTestLocal", "all kinds, pairs never trained on"),
    )
}
"""Every test by its name.

Sixteen distractors are not among the defaults: valid scenes are so rare that drawing them takes
most of the time.
"""


def choose(names: Sequence[str]) -> list[Condition]:
    """The conditions of these names, or groups of them; all defaults where there are none.

    Raises:
        ConfigError: There is no such name.
    """
    if not names:
        return [condition for condition in CONDITIONS.values() if condition.by_default]
    unknown = [name for name in names if name not in CONDITIONS and name not in GROUPS]
    if unknown:
        raise ConfigError(
            f"tests: no {', '.join(unknown)}; there are {', '.join([*GROUPS, *CONDITIONS])}"
        )
    return [
        condition
        for condition in CONDITIONS.values()
        if condition.name in names or (condition.group in names and condition.by_default)
    ]


def changed(config: Config, condition: Condition) -> Config:
    """The configuration of a run, put under a condition."""
    changes = dict(condition.env)
    if condition.group == "distractors":
        changes["level"] = ROOMIER.get(config.env.level, config.env.level)
    return dataclasses.replace(config, env=dataclasses.replace(config.env, **changes))


def hindrance(config: Config, condition: Condition) -> str:
    """Why a run cannot be tested under a condition; empty where it can."""
    if config.env.own and condition.group in BABYAI_GROUPS:
        return f"{GROUPS[condition.group]}: BabyAI's own; the run acts in {config.env.own.target}"
    from lamorel_ext.envs.babyai.gym_env import sentence_language
    from lamorel_ext.envs.babyai.levels import level_spec

    wanted = changed(config, condition).env
    read, asked = (sentence_language(env.level, env.language) for env in (config.env, wanted))
    goal_in_french = config.env.prompt == "glam" and config.env.language == "fr"
    if {"words": read == "fr", "goal": goal_in_french}.get(condition.group):
        return f"{GROUPS[condition.group]}: in place of English words; the run reads French"
    if condition.group == "language" and asked == read:
        return "it was trained so"
    if condition.group != "language" and asked != read:
        return f"{config.env.level} alone speaks French where env.language does not"
    if condition.group == "distractors" and level_spec(wanted.level).distractor_argument is None:
        return f"{config.env.level} takes no number of distractors"
    bare = (
        condition.group == "distractors"
        and config.env.level in ROOMIER
        and not wanted.num_distractors
    )
    if bare or (not condition.wording and _counted(wanted) == _counted(config.env)):
        return "it was trained so"
    return ""


def _counted(env: EnvArgs) -> EnvArgs:
    """With the level's own number of distractors, or objects, where ``env`` sets none."""
    from lamorel_ext.envs.babyai.levels import level_spec, make_level

    argument = level_spec(env.level).distractor_argument
    if env.num_distractors is not None or argument is None:
        return env
    return dataclasses.replace(env, num_distractors=getattr(make_level(env.level), argument))
