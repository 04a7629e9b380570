"""Sentences from hand-made views; the recorded ones are replayed in test_oracle.py."""

from __future__ import annotations

import numpy as np
import pytest

from lamorel_ext.envs.babyai.describe import describe

EMPTY = (1, 0, 0)


def view(*cells: tuple[int, int, tuple[int, int, int]]) -> np.ndarray:
    """An empty view with the given cells as (x, y, code)."""
    image = np.zeros((7, 7, 3), dtype=np.uint8)
    image[:, :] = EMPTY
    for x, y, code in cells:
        image[x, y] = code
    return image


def test_an_empty_view_has_no_sentences() -> None:
    assert describe(view()) == ()


def test_walls_are_named_in_the_order_forward_left_right() -> None:
    image = view((3, 0, (2, 5, 0)), (2, 6, (2, 5, 0)), (6, 6, (2, 1, 0)))
    assert describe(image) == (
        "You see a wall 6 steps forward",
        "You see a wall 1 step left",
        "You see a wall 3 steps right",
    )
    assert describe(image, language="fr") == (
        "Tu vois un mur à 6 pas devant",
        "Tu vois un mur à 1 pas à gauche",
        "Tu vois un mur à 3 pas à droite",
    )


def test_anything_between_hides_a_wall_but_unseen_cells_do_not() -> None:
    open_door, floor, wall = (4, 0, 0), (3, 2, 0), (2, 5, 0)
    assert describe(view((3, 4, open_door), (3, 2, wall))) == (
        "You see a open red door 2 steps forward",
    )
    assert describe(view((2, 6, floor), (1, 6, wall))) == ("You see a blue floor 1 step left",)
    assert describe(view((3, 5, (0, 0, 0)), (3, 4, wall))) == ("You see a wall 2 steps forward",)


def test_walls_off_the_three_rays_are_not_named() -> None:
    assert describe(view((2, 5, (2, 5, 0)), (4, 3, (2, 5, 0)))) == ()


def test_things_come_by_column_and_from_far_to_near() -> None:
    image = view((4, 5, (6, 0, 0)), (2, 5, (7, 2, 0)), (2, 1, (5, 4, 0)), (3, 5, (8, 1, 0)))
    assert describe(image) == (
        "You see a yellow key 1 step left and 5 steps forward",
        "You see a blue box 1 step left and 1 step forward",
        "You see a green goal 1 step forward",
        "You see a red ball 1 step right and 1 step forward",
    )


def test_doors_say_their_state() -> None:
    image = view((0, 6, (4, 5, 2)), (3, 0, (4, 3, 1)))
    assert describe(image) == (
        "You see a locked grey door 3 steps left",
        "You see a closed purple door 6 steps forward",
    )
    assert describe(image, language="fr") == (
        "Tu vois une porte grise fermée à clef 3 pas à gauche",
        "Tu vois une porte violette fermée 6 pas devant",
    )


def test_what_is_carried_comes_first_and_is_read_from_the_agents_cell() -> None:
    image = view((3, 6, (5, 3, 0)), (3, 5, (9, 0, 0)))
    assert describe(image) == ("You carry a purple key", "You see a red lava 1 step forward")
    assert describe(image, language="fr") == (
        "Tu portes une key purple",
        "Tu vois une lave rouge 1 pas devant",
    )


def test_equal_things_are_not_merged() -> None:
    assert len(describe(view((0, 0, (6, 0, 0)), (1, 1, (6, 0, 0))))) == 2


@pytest.mark.parametrize("code", [(10, 0, 0), (6, 6, 0), (4, 0, 3)])
def test_a_code_that_no_view_contains_is_refused(code: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="no view contains"):
        describe(view((0, 0, code)))


def test_a_wrong_shape_or_language_is_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        describe(np.zeros((7, 6, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match="language"):
        describe(view(), language="de")  # type: ignore[arg-type]
