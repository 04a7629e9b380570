"""The tables of GoToRedBallNoDists against minigrid, and the numbers that follow from them."""

from __future__ import annotations

import numpy as np
import pytest
from minigrid.core.grid import Grid
from minigrid.core.world_object import Ball
from minigrid.envs.babyai.core.roomgrid_level import RoomGridLevel
from minigrid.minigrid_env import MiniGridEnv

from lamorel_ext.envs.babyai.describe import describe
from lamorel_ext.envs.babyai.enumeration import (
    LEVEL,
    NUM_STATES,
    StateTable,
    evaluate_policy,
    start_states,
    state_table,
)
from lamorel_ext.envs.babyai.levels import make_level


@pytest.fixture(scope="module")
def table() -> StateTable:
    return state_table()


def level_in(state: int) -> RoomGridLevel:
    """A minigrid level put by hand into a state, decoded from its number."""
    level = make_level(LEVEL)
    level.reset(seed=0)
    pose, ball = divmod(state, 35)
    cell, level.agent_dir = divmod(pose, 4)
    ball += ball >= cell
    level.grid = Grid(8, 8)
    level.grid.wall_rect(0, 0, 8, 8)
    level.put_obj(Ball("red"), ball % 6 + 1, ball // 6 + 1)
    level.agent_pos = (cell % 6 + 1, cell // 6 + 1)
    level.instrs.reset_verifier(level)  # type: ignore[attr-defined]
    return level


def state_of(level: RoomGridLevel) -> int:
    """Number of the state that a level is in: undoes ``level_in``."""
    (place,) = (place for place, thing in enumerate(level.grid.grid) if isinstance(thing, Ball))
    x, y = (int(part) for part in level.agent_pos)
    cell, ball = 6 * (y - 1) + x - 1, 6 * (place // 8 - 1) + place % 8 - 1
    return (4 * cell + level.agent_dir) * 35 + ball - (ball > cell)


def test_states_look_and_move_as_in_minigrid(table: StateTable) -> None:
    generator = np.random.default_rng(0)
    for state in generator.choice(NUM_STATES, size=150, replace=False).tolist():
        for action in range(6) if not table.terminal[state] else ():
            level = level_in(state)
            assert state_of(level) == state
            image = MiniGridEnv.gen_obs(level)["image"]
            assert np.array_equal(table.images[table.views[state]], image)
            assert table.directions[table.views[state]] == level.agent_dir
            assert table.descriptions[table.texts[state]] == describe(image)
            assert table.descriptions_fr[table.texts[state]] == describe(image, language="fr")
            _, reward, terminated, _, _ = level.step(action)
            reached = state_of(level)
            assert reached == table.next_state[state, action]
            assert table.terminal[reached] == terminated == (reward > 0)


def test_ends_are_the_states_that_face_the_ball_and_absorb(table: StateTable) -> None:
    ends = np.flatnonzero(table.terminal)
    assert len(ends) == 120, "36 cells x 4 directions, less the 24 that face a wall"
    for state in ends[::10].tolist():
        assert isinstance(_front_cell(level_in(state)), Ball)
    assert (table.next_state[ends] == ends[:, None]).all()
    assert (table.initial[ends] == 0).all()


def _front_cell(level: RoomGridLevel) -> object:
    return level.grid.get(*level.front_pos)


def test_number_of_distinct_views_and_texts(table: StateTable) -> None:
    """A view is told by the distance to the wall ahead (1 to 6), the place between the side walls
    (1 to 6), and the ball.

    With a wall n steps ahead there are n rows of cells in view, and of the 6 columns those within 3
    on either side: 4, 5, 6, 6, 5, 4, by place. That makes 21 x 30 cells, of which 36 are the
    agent's own: 594 views with the ball. Without it there are 36, less the two in which the whole
    room is in view (6 rows and 6 columns): 34.
    """
    images = {image.tobytes() for image in table.images}
    assert len(images) == 21 * 30 - 36 + 36 - 2 == 628
    assert len(table.images) == len(table.directions) == 4 * 628
    assert (
        len(table.descriptions)
        == len(set(table.descriptions))
        == len(set(table.descriptions_fr))
        == 556
    )
    assert np.array_equal(table.view_texts[table.views], table.texts)


def test_start_states_are_those_of_minigrid() -> None:
    level = make_level(LEVEL)
    seeds = [*range(100), *np.random.default_rng(1).integers(0, 2**31, size=100).tolist()]
    for seed, state in zip(seeds, start_states(seeds), strict=True):
        level.reset(seed=seed)
        assert state == state_of(level)


def test_initial_distribution_fits_many_seeds(table: StateTable) -> None:
    count = 12_000
    observed = np.bincount(start_states(range(count)), minlength=NUM_STATES)
    assert table.initial.sum() == pytest.approx(1, abs=1e-12)
    assert (observed[table.initial == 0] == 0).all()
    possible = table.initial > 0
    statistic = (
        (observed - count * table.initial)[possible] ** 2 / (count * table.initial[possible])
    ).sum()
    freedom = possible.sum() - 1
    assert abs(statistic - freedom) < 4 * np.sqrt(2 * freedom), (
        "chi-square, four standard deviations"
    )


def exact_value(table: StateTable, policy: np.ndarray) -> tuple[float, float]:
    """Plain dynamic programming, backwards over the 64 steps: the slow reference of
    ``evaluate_policy``.
    """
    success, value = np.zeros(NUM_STATES), np.zeros(NUM_STATES)
    for step in range(64, 0, -1):
        new_success, new_value = np.zeros(NUM_STATES), np.zeros(NUM_STATES)
        for action in range(6):
            reached = table.next_state[:, action]
            ended = table.terminal[reached]
            new_success += policy[:, action] * np.where(ended, 1.0, success[reached])
            new_value += policy[:, action] * np.where(ended, 1 - 0.9 * step / 64, value[reached])
        success, value = (
            np.where(table.terminal, 0, new_success),
            np.where(table.terminal, 0, new_value),
        )
    return float(table.initial @ success), float(table.initial @ value)


@pytest.mark.parametrize(
    ("name", "success", "mean_return"),
    [("uniform", 0.2646, 0.1550), ("useful", 0.4342, 0.2652), ("optimal", 1.0, 0.9339)],
)
def test_exact_values_of_known_policies(
    table: StateTable, name: str, success: float, mean_return: float
) -> None:
    policies = {
        "uniform": np.full((NUM_STATES, 6), 1 / 6),
        "useful": np.repeat([[1 / 3] * 3 + [0.0] * 3], NUM_STATES, axis=0),
    }
    policy = policies.get(name, np.eye(6)[table.expert])
    reference = exact_value(table, policy)
    assert reference == pytest.approx((success, mean_return), abs=6e-5)
    value = evaluate_policy(policy)
    assert (value.success, value.mean_return) == pytest.approx(reference, abs=1e-12)


def test_evaluation_of_a_random_policy_agrees_with_the_reference(table: StateTable) -> None:
    policy = np.random.default_rng(3).dirichlet(np.ones(6), size=NUM_STATES)
    value = evaluate_policy(policy)
    assert (value.success, value.mean_return) == pytest.approx(
        exact_value(table, policy), abs=1e-12
    )


def test_expert_goes_down_the_distances(table: StateTable) -> None:
    """The distances are found from the ends on, step by step."""
    distance = np.where(table.terminal, 0, -1)
    for steps in range(1, 20):
        beside = (distance[table.next_state] == steps - 1).any(axis=1)
        distance[(distance < 0) & beside] = steps
    assert (distance >= 0).all()
    alive = np.flatnonzero(~table.terminal)
    assert (distance[table.next_state[alive, table.expert[alive]]] == distance[alive] - 1).all()


def test_policies_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        evaluate_policy(np.ones((10, 6)) / 6)
    with pytest.raises(ValueError, match="distribution"):
        evaluate_policy(np.ones((NUM_STATES, 6)))
