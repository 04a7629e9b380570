"""Other words in prompts and candidates: whole words, all at once, names of actions only where
actions are named.
"""

from __future__ import annotations

import pytest

from lamorel_ext.prompts import (
    ACTION_NAMES,
    PLAIN,
    WORDINGS,
    Wording,
    glam_prompt,
    glam_prompt_french,
    lamorel_prompt,
)

TALK = Wording(
    "talk",
    {"red": "faze", "ball": "xolo"},
    {"turn left": "rotate left", "pick up": "take", "drop": "release"},
)


def test_whole_words_are_replaced_wherever_they_stand() -> None:
    prompt = lamorel_prompt(
        "go to the red ball",
        ["You see a red ball 2 steps left", "You see a reddish balloon, redball or ball_red"],
    )
    assert TALK.prompt(prompt) == (
        "Goal of the agent: go to the faze xolo\n"
        "Observation: You see a faze xolo 2 steps left, "
        "You see a reddish balloon, redball or ball_red\nAction:"
    )


def test_words_can_be_swapped() -> None:
    swap = Wording("swap", {"left": "right", "right": "left"})
    assert (
        swap.candidate("2 steps left and 1 step right, leftmost")
        == "2 steps right and 1 step left, leftmost"
    )


def test_the_longest_phrase_that_begins_at_a_place_is_replaced() -> None:
    phrases = Wording("phrases", {"red": "blue", "red ball": "green key"})
    assert phrases.candidate("a red ball, a red box") == "a green key, a blue box"


def test_names_of_actions_change_in_the_list_and_among_those_taken_but_not_in_the_mission() -> None:
    prompt = glam_prompt(
        "pick up the red ball", [("You carry a red ball",), ("Action 7: drop it",)], ["drop"]
    )
    assert TALK.prompt(prompt) == (
        "Possible action of the agent: rotate left, turn right, go forward, take, release, "
        "toggle \n Goal of the agent: pick up the faze xolo \n Observation 0: "
        "You carry a faze xolo, \n Action 0: release \n "
        "Observation 1: Action 7: drop it, \n Action 1: "
    )


def test_the_french_list_of_actions_is_one_too() -> None:
    prompt = glam_prompt_french("go to the red ball", [("Tu vois une balle rouge",)], [])
    assert TALK.prompt(prompt).startswith(
        "Actions possibles pour l'agent: "
        "rotate left, turn right, go forward, take, release, toggle \n"
    )


def test_candidates_are_reworded_with_their_objects() -> None:
    assert [
        TALK.candidate(text)
        for text in ("turn left", "toggle", "turn left until you see the red ball")
    ] == [
        "rotate left",
        "toggle",
        "rotate left until you see the faze xolo",
    ]


def test_the_plain_wording_is_false_and_changes_nothing() -> None:
    prompt = glam_prompt("go to the red ball", [("A",)], [])
    assert (
        not PLAIN
        and TALK
        and PLAIN.prompt(prompt) == prompt
        and PLAIN.candidate("turn left") == "turn left"
    )


def test_two_words_must_not_become_one() -> None:
    with pytest.raises(ValueError, match="would become the same one"):
        Wording("wrong", {"red": "faze", "blue": "faze"})
    with pytest.raises(ValueError, match="replaced by nothing"):
        Wording("wrong", actions={"drop": ""})


def test_every_wording_that_ships_touches_its_own_kind_of_words() -> None:
    prompt = glam_prompt(
        "pick up the red ball",
        [("You see a blue key 1 step left", "You see a grey box 1 step right")],
        [],
    )
    texts = {name: wording.prompt(prompt) for name, wording in WORDINGS.items()}
    assert len({prompt, *texts.values()}) == len(WORDINGS) + 1
    assert all(word in texts["invented_words"] for word in ("faze xolo", "croh dax", "sil afze"))
    assert (
        "the red table" in texts["other_nouns"] and "the vermilion ball" in texts["other_colours"]
    )
    assert (
        "I would like the agent to: pick up" in texts["goal_as_wish"]
        and "You have to: pick up" in texts["goal_as_order"]
    )
    renamed = [WORDINGS["synonym_actions"].candidate(name) for name in ACTION_NAMES]
    assert (
        f"agent: {', '.join(renamed)} \n Goal of the agent: pick up the red ball"
        in texts["synonym_actions"]
    )
    assert not set(renamed) & set(ACTION_NAMES)
