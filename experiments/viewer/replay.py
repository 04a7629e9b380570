"""Play a recorded episode again, to see the whole grid: the trace has its actions, the run its
seed.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from minigrid.minigrid_env import MiniGridEnv

from experiments.viewer.reading import Episode, Line
from lamorel_ext.envs.babyai.batched import training_seeds
from lamorel_ext.envs.babyai.levels import make_level
from lamorel_ext.errors import LevelError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pose:
    """Where the agent is, and what is around it.

    Attributes:
        x: Column.
        y: Row.
        direction: 0 right, 1 down, 2 left, 3 up.
        grid: ``(width, height, 3)`` bytes ``[x, y, channel]`` of minigrid's encoding, in
            hexadecimal.
        width: Columns of the grid.
    """

    x: int
    y: int
    direction: int
    grid: str
    width: int


def replay(header: Line, episode: Episode) -> list[Pose] | None:
    """The poses at each recorded step, and the one that the last step led to.

    Every replayed view is held against the recorded one.

    Args:
        header: Of its trace.
        episode: What was recorded.

    Returns:
        One more than there are steps; None where the episode cannot be played again: its beginning
        is not known, there are no views, the level is not BabyAI's, or (with another
        version of a level) it looks different.
    """
    number, before = episode.line["number"], episode.line["actions"]
    shows_views = all(step["view"] for step in episode.steps)
    if number is None or before is None or not shows_views:
        return None
    try:
        return _play(header, number, before, episode)
    except (
        Exception
    ) as error:  # minigrid answers what it does not know with ValueErrors, assertions and worse
        log.warning(
            "episode %s of %s: its frames show the agent's view alone: %s",
            number,
            header["level"],
            error,
        )
        return None


def _play(header: Line, number: int, before: list[int], episode: Episode) -> list[Pose]:
    """Raises LevelError where the level is unknown or what is seen is not what was recorded."""
    level = make_level(header["level"], header["num_distractors"])
    level.reset(seed=training_seeds(header["seed"])(header["env"], number))
    for action in before:
        level.step(action)
    poses = []
    for step in episode.steps:
        seen = level.gen_obs()
        if seen["image"].tobytes().hex() != step["view"] or seen["direction"] != step["direction"]:
            raise LevelError("it looks different today")
        poses.append(_pose(level))
        level.step(step["action"])
    return [*poses, _pose(level)]


def _pose(level: MiniGridEnv) -> Pose:
    x, y = level.agent_pos
    return Pose(
        int(x),
        int(y),
        int(level.agent_dir),
        level.grid.encode().tobytes().hex(),
        int(level.grid.width),
    )
