"""First states drawn for many seeds together, against the draws of single seeds, which other tests
hold to minigrid.
"""

from __future__ import annotations

import numpy as np
import pytest

from lamorel_ext.envs.babyai.arrays import block_levels
from lamorel_ext.envs.babyai.arrays.room_draws import Words
from lamorel_ext.envs.babyai.arrays.room_levels import RoomLevel, room_level
from lamorel_ext.envs.babyai.arrays.scene_blocks import Scenes
from lamorel_ext.envs.babyai.arrays.streams import random_words, words_of
from lamorel_ext.envs.babyai.levels import level_ids
from lamorel_ext.errors import LevelError

LEVELS = [
    level
    for level in level_ids()
    if level != "BabyAI-GoToLocalS8N16-v0" and room_level(level) is not None
]


def known(level: str) -> RoomLevel:
    rules = room_level(level)
    assert rules is not None
    return rules


@pytest.mark.parametrize("level", LEVELS)
def test_states_drawn_together_are_those_drawn_alone(level: str) -> None:
    rules = known(level)
    seeds = [*np.random.default_rng(0).integers(0, 2**32, 300).tolist(), 2**32 - 1]
    alone = [
        rules.draw(seed, words)
        for seed, words in zip(seeds, random_words(np.array(seeds), 192).tolist(), strict=True)
    ]
    assert rules.draw_many(seeds) == alone
    assert rules.draw_many(seeds[:3]) == alone[:3], "few are not drawn in arrays"


def test_more_things_than_cells_are_said_to_be_too_many() -> None:
    rules = room_level("BabyAI-GoToLocal-v0", num_distractors=40)
    assert rules is not None
    with pytest.raises(LevelError, match="are there too many objects for the room?"):
        rules.draw_many(range(120))


def test_seeds_beyond_32_bits_are_drawn_too() -> None:
    rules = known("BabyAI-GoToLocalS5N2-v0")
    seeds = [2**40 + seed for seed in range(120)]
    assert rules.draw_many([*seeds, seeds[0]]) == [
        rules.draw(seed, words_of(seed, 0, 2)) for seed in [*seeds, seeds[0]]
    ]


@pytest.mark.parametrize(
    "level",
    [
        "GoToRedBallGrey",
        "PickupLoc",
        "PutNextLocalS6N4",
        "PickUpSeqGoToLocal",
        "GoToRedBlueBall",
        "GoToLocal2",
    ],
)
def test_seeds_whose_words_do_not_suffice_are_left_out_and_the_others_are_right(level: str) -> None:
    """Few words, so that they end in every part of a scene."""
    rules = known(f"BabyAI-{level}-v0")
    law = rules._law_in_arrays()
    assert law is not None
    drawn = left_out = 0
    for num_words in (20, 60, 100):
        words = random_words(np.arange(400), num_words)
        for seed, start in enumerate(block_levels.draw_block(law, rules.size, 36, words)):
            drawn, left_out = drawn + (start is not None), left_out + (start is None)
            assert start is None or start == rules.draw(seed, words_of(seed, 0, 2))
    assert drawn > 20 and left_out > 20


def test_draws_follow_each_other_as_those_of_one_seed() -> None:
    """Whole numbers below bounds of which one rejects a quarter of the words, and floats at even
    and odd places.
    """
    bounds = [6, 3, 1, 8, 5]
    scenes = Scenes(8, random_words(np.arange(50), 100), 4)
    singles = [Words(seed, words_of(seed, 0, 100)) for seed in range(50)]
    rows = np.arange(50)
    for t in range(40):
        bound = bounds[t % len(bounds)]
        assert scenes.below(rows, bound).tolist() == [words.below(bound) for words in singles]
        if t % 7 == 0:
            scenes.skip_float(rows)
            for words in singles:
                words.skip_float()
    accepted = [words.below(3 * 2**30) for words in singles]
    numbers = scenes.below(rows, 3 * 2**30)
    lost = scenes.lost(rows)
    assert 3 < lost.sum() < 25, "a rejected word is left to the draws of single seeds"
    assert numbers[~lost].tolist() == [
        number for number, gone in zip(accepted, lost, strict=True) if not gone
    ]
