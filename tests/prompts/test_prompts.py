"""Templates against strings written by hand, and the windows over episodes."""

from __future__ import annotations

import json
from typing import Literal

import numpy as np
import pytest

from lamorel_ext.errors import CheckpointError, ConfigError
from lamorel_ext.prompts import (
    PromptHistory,
    feedback_sentence,
    glam_prompt,
    glam_prompt_french,
    lamorel_prompt,
    present_of,
    state_of,
    with_feedback,
)
from lamorel_ext.prompts.templates import can_say
from lamorel_ext.types import ObservationBatch, StepBatch

HEAD = (
    "Possible action of the agent: turn left, turn right, go forward, pick up, drop, toggle \n "
    "Goal of the agent: go to the red ball"
)


def observe(*sentences: str, mission: str = "go to the red ball") -> ObservationBatch:
    """One environment per sentence."""
    count = len(sentences)
    images, directions = np.zeros((count, 7, 7, 3), dtype=np.uint8), np.zeros(count, dtype=np.int64)
    return ObservationBatch(
        (mission,) * count, tuple((sentence,) for sentence in sentences), images, directions
    )


def step_to(
    reached: ObservationBatch,
    current: ObservationBatch | None = None,
    terminated: tuple[bool, ...] | None = None,
) -> StepBatch:
    count = len(reached.missions)
    ended = np.zeros(count, dtype=bool) if terminated is None else np.array(terminated)
    return StepBatch(
        reached,
        reached if current is None else current,
        np.zeros(count),
        ended,
        np.zeros(count, dtype=bool),
    )


def test_lamorel_prompt_has_no_list_of_actions_and_no_space_at_the_end() -> None:
    assert (
        lamorel_prompt("go to the red ball", ["A", "B"])
        == "Goal of the agent: go to the red ball\nObservation: A, B\nAction:"
    )


def test_a_prompts_state_is_all_but_the_line_that_asks_for_an_action() -> None:
    plain = lamorel_prompt("go to the red ball", ["A", "B"])
    assert state_of(plain) == plain.removesuffix("Action:")
    past = glam_prompt("go", [("A", "B"), ("C",)], ["turn left"])
    assert state_of(past).endswith(" Action 0: turn left \n Observation 1: C, \n")


def test_a_prompts_present_is_its_last_observation() -> None:
    assert present_of(lamorel_prompt("go", ["A", "B"])) == ": A, B\nAction:"
    assert present_of(glam_prompt("go", [("A",), ("C",)], ["left"])) == " 1: C, \n Action 1: "


def test_glam_prompt_interleaves_observations_and_actions() -> None:
    assert glam_prompt("go to the red ball", [("A", "B"), ("C",)], ["turn left"]) == (
        HEAD + " \n Observation 0: A, B, \n Action 0: turn left \n Observation 1: C, \n Action 1: "
    )


def test_glam_prompt_of_an_empty_observation() -> None:
    assert glam_prompt("go to the red ball", [()], []) == HEAD + " \n Observation 0: \n Action 0: "


def test_glam_prompt_wants_an_action_between_every_two_observations() -> None:
    with pytest.raises(ValueError, match="got 0"):
        glam_prompt("go to the red ball", [("A",), ("B",)], [])


@pytest.mark.parametrize(
    ("mission", "goal"),
    [
        ("go to the red ball", "aller à une balle rouge"),
        ("go to the blue key", "aller à la clef bleue"),
        ("pick up a grey box", "aller à une boîte grise"),
        ("open the door", "aller à la  "),
    ],
)
def test_french_glam_prompt_translates_by_substrings(mission: str, goal: str) -> None:
    assert glam_prompt_french(mission, [("A",)], [], ["x", "y"]) == (
        "Actions possibles pour l'agent: x, y \n "
        f"But de l'agent: {goal} \n Observation 0: A, \n Action 0: "
    )


@pytest.mark.parametrize(
    "mission, said",
    [
        ("go to the red ball", True),
        ("go to a key", True),
        ("go to the red ball after you pick up the blue key", False),
        ("go to the blue key and go to the red ball", False),
        ("go to the red door", False),
        ("go to the ball on your left", False),
        ("pick up a grey box", False),
    ],
)
def test_only_missions_that_french_glam_prompts_say_wholly_are_put_in_them(
    mission: str, said: bool
) -> None:
    assert can_say(mission, "glam", "fr") is said
    assert can_say(mission, "glam", "en") and can_say(mission, "lamorel", "fr")


def test_feedback_is_a_line_before_the_last_one() -> None:
    assert with_feedback("Goal\nAction:", 1.0) == f"Goal\n{feedback_sentence(1.0)}\nAction:"
    assert (
        with_feedback("A, \n Action 2: ", -0.5) == f"A, \n {feedback_sentence(-0.5)} \n Action 2: "
    )
    assert "better" in feedback_sentence(1.0) and "worse" in feedback_sentence(-1.0)
    assert with_feedback("Goal\nAction:", 0.0) == "Goal\nAction:"


def test_window_grows_to_its_length_and_then_slides() -> None:
    history = PromptHistory("glam", history=3)
    assert history.reset(observe("o0")) == (glam_prompt("go to the red ball", [("o0",)], []),)
    for t in range(1, 5):
        prompts = history.step([t % 6], step_to(observe(f"o{t}")))
    assert prompts.current == (
        glam_prompt("go to the red ball", [("o2",), ("o3",), ("o4",)], ["pick up", "drop"]),
    )
    assert prompts.reached == prompts.current


def test_window_of_one_observation_shows_no_action() -> None:
    history = PromptHistory("glam", history=1)
    history.reset(observe("o0"))
    assert history.step([0], step_to(observe("o1"))).current == (
        glam_prompt("go to the red ball", [("o1",)], []),
    )


def test_an_ended_episode_is_seen_in_reached_and_forgotten_in_current() -> None:
    history = PromptHistory("glam", history=3)
    history.reset(observe("a0", "b0"))
    step = history.step(
        [2, 5], step_to(observe("a1", "b1"), observe("a1", "new"), terminated=(False, True))
    )
    kept = glam_prompt("go to the red ball", [("a0",), ("a1",)], ["go forward"])
    assert step.reached == (kept, glam_prompt("go to the red ball", [("b0",), ("b1",)], ["toggle"]))
    assert step.current == (kept, glam_prompt("go to the red ball", [("new",)], []))


@pytest.mark.parametrize("template", ["lamorel", "glam"])
def test_a_mission_that_changes_within_an_episode_is_the_one_of_the_present_state(
    template: Literal["lamorel", "glam"],
) -> None:
    history = PromptHistory(template, history=2)
    history.reset(observe("o0", mission="find the key"))
    (prompt,) = history.step([0], step_to(observe("o1", mission="open the door"))).current
    assert "open the door" in prompt and "find the key" not in prompt


def test_restored_history_goes_on_as_the_saved_one() -> None:
    one, other = PromptHistory("glam", history=2), PromptHistory("glam", history=2)
    one.reset(observe("o0"))
    before = one.step([1], step_to(observe("o1")))
    assert other.restore(json.loads(json.dumps(one.state()))) == before.current
    assert one.step([0], step_to(observe("o2"))) == other.step([0], step_to(observe("o2")))


def test_a_broken_saved_history_is_refused() -> None:
    with pytest.raises(CheckpointError, match="prompt history"):
        PromptHistory("glam").restore([{"mission": "go"}])


def test_french_glam_prompts_refuse_missions_they_cannot_say() -> None:
    assert (
        "But de l'agent: aller à une balle rouge"
        in PromptHistory("glam", language="fr").reset(observe("o0"))[0]
    )
    with pytest.raises(ConfigError, match="go-to missions"):
        PromptHistory("glam", language="fr").reset(observe("o0", mission="pick up the red ball"))


def test_an_unknown_template_or_an_empty_window_is_refused() -> None:
    with pytest.raises(ConfigError, match="env.prompt"):
        PromptHistory("gpt")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="env.history"):
        PromptHistory("glam", history=0)
