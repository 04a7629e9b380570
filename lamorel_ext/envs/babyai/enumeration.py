"""GoToRedBallNoDists as tables: all of its states, what each action does, what each state looks
like.

A state is the agent's pose and the ball's cell: 36 x 4 x 35 = 5,040. The ball lies at a fixed
place, nothing else can be picked up or opened, and the episode ends before the ball could be
touched, so that only turning and walking change the state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from minigrid.core.constants import COLOR_TO_IDX

from lamorel_ext.envs.babyai.arrays.room_codes import EMPTY, KINDS, UNSEEN, empty_room, look_of
from lamorel_ext.envs.babyai.arrays.room_views import images_of, view_table, views_of
from lamorel_ext.envs.babyai.arrays.streams import words_of
from lamorel_ext.envs.babyai.describe import Language, describe
from lamorel_ext.envs.babyai.episodes import words_of_seeds

LEVEL = "BabyAI-GoToRedBallNoDists-v0"
MISSION = "go to the red ball"
MAX_STEPS = 64
NUM_STATES = 5040
NUM_ACTIONS = 6

_SIDE = 6  # free cells along a wall
_CELLS = _SIDE * _SIDE
_ROOM = _SIDE + 2  # with the walls
_LEFT, _RIGHT, _FORWARD = 0, 1, 2
_STEPS = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])  # right, down, left, up
_FIRST_WORDS = 32  # one episode in 4,000 needs more
_RED_BALL = look_of(KINDS.index("ball"), COLOR_TO_IDX["red"])


@dataclass(frozen=True, eq=False)
class StateTable:
    """The level in arrays. States in which the agent faces the ball are the successful ends:
    absorbing, never started in.

    Attributes:
        next_state: ``(5040, 6)`` int64.
        terminal: ``(5040,)`` bool, True where the agent faces the ball.
        initial: ``(5040,)`` float64, probability that an episode starts there.
        expert: ``(5040,)`` int64, first action of a shortest path to an end; of equals the lowest
            id. 0 in an end.
        views: ``(5040,)`` int64, index into the distinct symbolic views.
        images: ``(num_views, 7, 7, 3)`` uint8.
        directions: ``(num_views,)`` int64.
        texts: ``(5040,)`` int64, index into the distinct texts.
        view_texts: ``(num_views,)`` int64, text of each view.
        descriptions: Sentences of each distinct text, English.
        descriptions_fr: The same in French.
    """

    next_state: np.ndarray
    terminal: np.ndarray
    initial: np.ndarray
    expert: np.ndarray
    views: np.ndarray
    images: np.ndarray
    directions: np.ndarray
    texts: np.ndarray
    view_texts: np.ndarray
    descriptions: tuple[tuple[str, ...], ...]
    descriptions_fr: tuple[tuple[str, ...], ...]

    def sentences(self, language: Language) -> tuple[tuple[str, ...], ...]:
        """Sentences of each distinct text in one language."""
        return self.descriptions_fr if language == "fr" else self.descriptions


@dataclass(frozen=True)
class ExactValue:
    """What a policy achieves, without sampling error.

    Attributes:
        success: Probability that an episode succeeds within its 64 steps.
        mean_return: Expected unscaled, undiscounted return.
    """

    success: float
    mean_return: float


@cache
def state_table() -> StateTable:
    """Build the tables, once per process (some 0.2 s). Do not write to them."""
    x, y, direction, ball_x, ball_y = _coordinates()
    front_x, front_y = x + _STEPS[direction, 0], y + _STEPS[direction, 1]
    terminal = (front_x == ball_x) & (front_y == ball_y)
    next_state = _transitions(terminal, front_x, front_y)
    views, images, directions = _views()
    english = [describe(image) for image in images]
    french = [describe(image, language="fr") for image in images]
    descriptions = tuple(dict.fromkeys(english))
    place = {sentences: index for index, sentences in enumerate(descriptions)}
    view_texts = np.array([place[sentences] for sentences in english])
    french_of = dict(zip(english, french, strict=True))
    table = StateTable(
        next_state=next_state,
        terminal=terminal,
        initial=_initial_distribution(),
        expert=_shortest_paths(next_state, terminal),
        views=views,
        images=images,
        directions=directions,
        texts=view_texts[views],
        view_texts=view_texts,
        descriptions=descriptions,
        descriptions_fr=tuple(french_of[sentences] for sentences in descriptions),
    )
    for array in vars(table).values():
        if isinstance(array, np.ndarray):
            array.flags.writeable = False
    return table


def start_states(seeds: Sequence[int]) -> list[int]:
    """States in which the episodes of the seeds start: the draws of minigrid's
    ``reset(seed=seed)``, without its room.

    The agent's cell, its direction and the ball's cell are drawn in this order; a cell on a wall is
    drawn again, and so is a ball less than two steps from the agent. Bounds of the draws are powers
    of two: a draw is the upper bits of a 32-bit word.
    """
    if not len(seeds):
        return []
    words = words_of_seeds(seeds, _FIRST_WORDS)
    states = _first_states(words)
    for index in np.flatnonzero(states < 0).tolist():
        more = words
        while states[index] < 0:
            more = np.array([words_of(seeds[index], 0, 2 * more.shape[1])], dtype=np.uint32)
            states[index] = _first_states(more)[0]
    found: list[int] = states.tolist()
    return found


def _first_states(words: np.ndarray) -> np.ndarray:
    """``(n,)`` first states from ``(n, words)`` words, -1 where the words do not suffice."""
    rows = np.arange(len(words))
    eighths = (words >> np.uint32(29)).astype(np.int64)
    inner = (eighths >= 1) & (eighths <= _SIDE)
    agent = inner[:, 0:-2:2] & inner[:, 1:-2:2]
    first = 2 * agent.argmax(axis=1)
    x, y = eighths[rows, first], eighths[rows, first + 1]
    direction = eighths[rows, first + 2] >> 1  # of four: the upper two of the three bits
    ball_x, ball_y = eighths[:, 1:-1], eighths[:, 2:]
    allowed = (
        inner[:, 1:-1]
        & inner[:, 2:]
        & (np.abs(ball_x - x[:, None]) + np.abs(ball_y - y[:, None]) >= 2)
    )
    after = (
        np.arange(allowed.shape[1]) - (first + 2)[:, None]
    )  # pairs begin one word after the direction, and at every second one from there
    allowed &= (after >= 0) & (after % 2 == 0)
    second = allowed.argmax(axis=1)
    states = _index(x, y, direction, ball_x[rows, second], ball_y[rows, second])
    return np.where(agent.any(axis=1) & allowed.any(axis=1), states, -1)


def evaluate_policy(policy: np.ndarray) -> ExactValue:
    """Success and return of a memoryless policy, by carrying the distribution over states through
    64 steps.

    Args:
        policy: ``(5040, 6)``, probability of each action in each state; rows sum to 1.

    Raises:
        ValueError: The shape is another one, or a row is no distribution.
    """
    if policy.shape != (NUM_STATES, NUM_ACTIONS):
        raise ValueError(
            f"expected a policy of shape ({NUM_STATES}, {NUM_ACTIONS}), got {policy.shape}"
        )
    if (policy < 0).any() or not np.allclose(policy.sum(axis=1), 1, atol=1e-4):
        raise ValueError("every row of the policy must be a distribution over actions")
    table = state_table()
    weights = policy / policy.sum(axis=1, keepdims=True)
    alive, success, mean_return = table.initial, 0.0, 0.0
    for step in range(1, MAX_STEPS + 1):
        moved = np.bincount(
            table.next_state.reshape(-1),
            (alive[:, None] * weights).reshape(-1),
            minlength=NUM_STATES,
        )
        ended = float(moved[table.terminal].sum())
        success += ended
        mean_return += ended * reward_at(step)
        alive = np.where(table.terminal, 0.0, moved)
    return ExactValue(success, mean_return)


def reward_at(step: int) -> float:
    """Reward of a success at the given step, counted from 1."""
    return 1 - 0.9 * (step / MAX_STEPS)


def _index(
    x: np.ndarray, y: np.ndarray, direction: np.ndarray, ball_x: np.ndarray, ball_y: np.ndarray
) -> np.ndarray:
    """Number of a state: cell by cell, direction by direction, ball by ball; the ball skips the
    agent's cell.
    """
    cell, ball = (y - 1) * _SIDE + x - 1, (ball_y - 1) * _SIDE + ball_x - 1
    number: np.ndarray = (cell * 4 + direction) * (_CELLS - 1) + ball - (ball > cell)
    return number


def _coordinates() -> tuple[np.ndarray, ...]:
    """``x, y, direction, ball_x, ball_y`` of every state, each ``(5040,)``, walls included in the
    count.
    """
    cell, direction, ball = (part.reshape(-1) for part in np.indices((_CELLS, 4, _CELLS - 1)))
    ball = ball + (ball >= cell)
    return cell % _SIDE + 1, cell // _SIDE + 1, direction, ball % _SIDE + 1, ball // _SIDE + 1


def _transitions(terminal: np.ndarray, front_x: np.ndarray, front_y: np.ndarray) -> np.ndarray:
    """Turns always work, a step forward where there is neither wall nor ball; the other actions
    find nothing to act on.
    """
    x, y, direction, ball_x, ball_y = _coordinates()
    state = np.arange(NUM_STATES)
    next_state = np.repeat(state[:, None], NUM_ACTIONS, axis=1)
    free = (front_x >= 1) & (front_x <= _SIDE) & (front_y >= 1) & (front_y <= _SIDE) & ~terminal
    next_state[:, _LEFT] = _index(x, y, (direction - 1) % 4, ball_x, ball_y)
    next_state[:, _RIGHT] = _index(x, y, (direction + 1) % 4, ball_x, ball_y)
    next_state[free, _FORWARD] = _index(front_x, front_y, direction, ball_x, ball_y)[free]
    next_state[terminal] = state[terminal, None]
    return next_state


def _initial_distribution() -> np.ndarray:
    """Pose uniform; ball uniform over the cells at least two steps away, of which there are fewer
    around a central agent.
    """
    x, y, _, ball_x, ball_y = _coordinates()
    allowed = np.abs(x - ball_x) + np.abs(y - ball_y) >= 2
    per_pose = allowed.reshape(-1, _CELLS - 1)
    given_pose: np.ndarray = per_pose / per_pose.sum(axis=1, keepdims=True)
    return given_pose.reshape(-1) / len(per_pose)


def _shortest_paths(next_state: np.ndarray, terminal: np.ndarray) -> np.ndarray:
    """The action that begins a shortest path to the nearest end; distances by relaxation."""
    distance = np.where(terminal, 0, NUM_STATES)
    while True:
        relaxed = np.where(terminal, 0, 1 + distance[next_state].min(axis=1))
        if np.array_equal(relaxed, distance):
            first: np.ndarray = distance[next_state].argmin(axis=1)
            return first
        distance = relaxed


def _views() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Index per state, images and directions of the distinct symbolic views."""
    x, y, direction, ball_x, ball_y = _coordinates()
    state = np.arange(NUM_STATES)
    room = [*empty_room(_ROOM), UNSEEN, EMPTY]  # the agent carries nothing, see views_of
    rooms = np.tile(np.array(room, dtype=np.uint8), (NUM_STATES, 1))
    rooms[state, ball_y * _ROOM + ball_x] = _RED_BALL
    poses = 4 * (y * _ROOM + x) + direction
    looks = views_of(rooms.reshape(-1), state * rooms.shape[1], poses, view_table(_ROOM))
    rows = np.append(looks, direction[:, None].astype(np.uint8), axis=1)
    _, first, views = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    return views.reshape(-1), images_of(looks[first]), direction[first]
