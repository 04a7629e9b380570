"""What a teacher can say, and what is heard in it."""

import numpy as np
import pytest

from lamorel_ext.agents.guidance import NO_HINT, SUBGOALS, hinted_action, make_vocabulary, subgoals
from lamorel_ext.prompts import ACTION_NAMES


def test_action_hints_are_the_six_action_texts_and_hint_at_themselves():
    vocabulary = make_vocabulary("action_hint")
    assert vocabulary.candidates("go to the red ball") == ACTION_NAMES
    assert vocabulary.hints.tolist() == [0, 1, 2, 3, 4, 5]


def test_subgoals_speak_of_the_object_that_the_mission_names():
    said = subgoals("go to the red ball")
    assert "turn until you see the red ball" in said
    assert "drop what you carry next to the red ball" in said
    assert len(set(said)) == len(said) == len(SUBGOALS)


@pytest.mark.parametrize(
    ("mission", "first", "second"),
    [
        ("put the red ball next to a green box", "the red ball", "a green box"),
        ("go to a key behind you", "a key behind you", "a key behind you"),
        ("open the door", "the door", "the door"),
        (
            "pick up the object on your left, then go to the grey key",
            "the object on your left",
            "the grey key",
        ),
        ("dance", "the goal", "the goal"),
    ],
)
def test_subgoals_name_the_first_and_the_last_object(mission, first, second):
    said = subgoals(mission)
    assert f"pick up {first}" in said
    assert f"drop what you carry next to {second}" in said


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("turn left until you see the red ball", 0),
        ("Turn RIGHT towards it", 1),
        ("first go forward, then turn left", 2),
        ("pick up the ball", 3),
        ("drop what you carry", 4),
        ("toggle the door", 5),
        ("turn until you see the red ball", NO_HINT),
        ("the raindrops fall", NO_HINT),  # a word, not a part of one
        ("", NO_HINT),
    ],
)
def test_a_text_hints_at_the_action_it_names_first(text, action):
    assert hinted_action(text) == action


def test_the_hints_of_subgoals_do_not_depend_on_the_mission():
    vocabulary = make_vocabulary("subgoal")
    for mission in (
        "go to the red ball",
        "put the blue key next to the box",
        "open a door on your right",
    ):
        assert [
            hinted_action(text) for text in vocabulary.candidates(mission)
        ] == vocabulary.hints.tolist()
    assert set(np.unique(vocabulary.hints)) == {0, 1, 2, 3, 4, 5, NO_HINT}
