"""Environment steps with text and reward: batched environments against one minigrid environment
with the same text, and many copies against few.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping

import numpy as np

from experiments.bench.breakdown import Seam, Stopwatch, watching
from experiments.bench.harness import (
    UNKNOWN,
    Contender,
    Detail,
    Row,
    make_row,
    missing_row,
    ratios,
    rounded,
    seconds_of,
    take_turns,
)
from experiments.bench.peers.minigrid_text import VERSION, MinigridText
from experiments.bench.peers.navix_rooms import ROOM, make_rollout
from experiments.bench.subjects import LOCAL_LEVEL, PAPER_LEVEL, Subjects
from lamorel_ext.envs.babyai import level_copies, levels
from lamorel_ext.envs.babyai.batched import make_batched_env
from lamorel_ext.envs.babyai.level_copies import LevelCopy
from lamorel_ext.prompts import ACTION_NAMES
from lamorel_ext.types import BatchedEnv

DISTRACTOR_LEVELS = (
    LOCAL_LEVEL,
    "BabyAI-GoToRedBall-v0",
    "BabyAI-PickupLoc-v0",
    "BabyAI-PutNextLocal-v0",
)
"""Single rooms with distractors: going to, picking up, putting."""
MAZE_LEVEL = "BabyAI-GoTo-v0"
PARTS: tuple[Seam, ...] = (
    (LevelCopy, "step", "stepping"),
    (LevelCopy, "start", "levels"),
    (levels, "symbolic_view", "views"),
    (level_copies, "describe", "sentences"),
)
"""Of a level that minigrid steps; stepping and making levels is minigrid's own work."""


def env_paper(subjects: Subjects) -> list[Row]:
    """GoToRedBallNoDists, random policy, episodes resetting themselves."""
    many, few = subjects.setting.large_batch, subjects.setting.num_envs // 2
    return [
        _row("env_paper", _races((PAPER_LEVEL,), subjects, many), 300.0, many),
        _row("env_paper_16", _races((PAPER_LEVEL,), subjects, few), None, few),
    ]


def env_text(subjects: Subjects) -> list[Row]:
    """Single-room levels with distractors; judged by the slowest of them."""
    many, few = subjects.setting.large_batch, subjects.setting.num_envs // 2
    races = {number: _races(DISTRACTOR_LEVELS, subjects, number) for number in (many, few)}
    steps = {
        number: 1e6 * number * statistics.median(own[LOCAL_LEVEL]["ours"])
        for number, own in races.items()
    }
    in_the_way = (
        f"a step of {few} copies takes {steps[few]:.0f} microseconds where one of {many} takes"
        f" {steps[many]:.0f}: it is mostly calls of numpy, whose number is the same"
    )
    return [
        _row("env_text", races[many], 50.0, many),
        _row("env_text_16", races[few], 50.0, few, in_the_way=in_the_way),
    ]


def env_maze_16(subjects: Subjects) -> list[Row]:
    """Few copies of a maze of nine rooms with doors, which minigrid steps one after the other; with
    the shares of our time.
    """
    few = subjects.setting.num_envs // 2
    races = _races((MAZE_LEVEL,), subjects, few)
    parts = _parts(MAZE_LEVEL, few, subjects.setting.env_steps)
    minigrids = parts["stepping"] + parts["levels"]
    most = statistics.median(ratios(*races[MAZE_LEVEL].values())) / minigrids
    in_the_way = (
        f"minigrid itself steps and draws this level, which is {minigrids:.0%} of our time: with"
        f" nothing else it would be {most:.2g} x"
    )
    shares = {f"share_{part}": rounded(share) for part, share in parts.items()}
    return [_row("env_maze_16", races, 15.0, few, shares, in_the_way)]


def env_copies(subjects: Subjects) -> list[Row]:
    """What a step costs a copy among most copies of GoToLocal over what it costs among fewest:
    sentences and resets included, prompts and model not.
    """
    setting = subjects.setting
    seconds = take_turns(
        {str(n): _ours(LOCAL_LEVEL, n, setting.env_steps) for n in setting.copies},
        setting.repetitions,
    )
    detail: dict[str, Detail] = {}
    for number, turns in seconds.items():
        detail[f"copies_{number}_ms_per_step"] = rounded(
            1e3 * int(number) * statistics.median(turns)
        )
    few, *_, most = seconds.values()
    return [make_row("env_copies", ratios(most, few), None, "x", better="lower", detail=detail)]


def env_navix(subjects: Subjects) -> list[Row]:
    """One room with objects, our sentences included, against navix's nearest, which has none."""
    setting = subjects.setting
    rows = []
    for name, number, bar in (
        ("env_navix", setting.large_batch, 1.0),
        ("env_navix_16", setting.num_envs // 2, None),
    ):
        try:
            rollout = make_rollout(number, setting.env_steps)
        except ImportError as error:
            reason = f"navix is not installed (pip install -e '.[bench]'): {error}"
            rows.append(missing_row(name, bar, "x", reason))
            continue
        seconds = take_turns(
            {
                "navix": Contender(rollout, scale=1 / (number * setting.env_steps)),
                "ours": _ours(LOCAL_LEVEL, number, setting.env_steps),
            },
            setting.repetitions,
        )
        detail: dict[str, Detail] = {"num_envs": number, "navix": ROOM, "ours": LOCAL_LEVEL}
        detail |= {
            f"{who}_steps_per_s": rounded(1.0 / statistics.median(turns))
            for who, turns in seconds.items()
        }
        rows.append(make_row(name, ratios(*seconds.values()), bar, "x", detail=detail))
    return rows


Race = dict[str, list[float]]
"""Seconds of a step of one copy, one per turn: minigrid's, then ours."""


def _races(names: tuple[str, ...], subjects: Subjects, num_envs: int) -> dict[str, Race]:
    return {level: _race(level, subjects, num_envs) for level in names}


def _row(
    name: str,
    races: dict[str, Race],
    bar: float | None,
    num_envs: int,
    more: Mapping[str, Detail] | None = None,
    in_the_way: str = UNKNOWN,
) -> Row:
    """The slowest of the levels, with all of them in the details."""
    slowest = min(
        (ratios(seconds["minigrid"], seconds["ours"]) for seconds in races.values()),
        key=statistics.median,
    )
    detail: dict[str, Detail] = {"num_envs": num_envs, "minigrid": VERSION, **(more or {})}
    for level, seconds in races.items():
        detail[f"{level}_ratio"] = rounded(
            statistics.median(ratios(seconds["minigrid"], seconds["ours"]))
        )
        detail |= {
            f"{level}_{who}_steps_per_s": rounded(1.0 / statistics.median(turns))
            for who, turns in seconds.items()
        }
    return make_row(name, slowest, bar, "x", detail=detail, in_the_way=in_the_way)


def _race(level: str, subjects: Subjects, num_envs: int) -> Race:
    """Resets included."""
    setting, minigrid = subjects.setting, MinigridText(level)
    actions = _random_actions(setting.minigrid_steps, 1)[:, 0].tolist()
    return take_turns(
        {
            "minigrid": Contender(
                lambda: _step_minigrid(minigrid, actions), scale=1 / setting.minigrid_steps
            ),
            "ours": _ours(level, num_envs, setting.env_steps),
        },
        setting.repetitions,
    )


def _ours(level: str, num_envs: int, num_steps: int) -> Contender:
    """Timed by the step of one copy."""
    fresh, actions = _FreshBatches(level, num_envs), _random_actions(num_steps, num_envs)
    return Contender(
        lambda: _step_batch(fresh.env, actions), prepare=fresh.renew, scale=1 / actions.size
    )


def _random_actions(num_steps: int, num_envs: int) -> np.ndarray:
    return np.random.default_rng(0).integers(len(ACTION_NAMES), size=(num_steps, num_envs))


def _parts(level: str, num_envs: int, num_steps: int) -> dict[str, float]:
    """Shares of the time of a level that minigrid steps."""
    env, watch = make_batched_env(level, num_envs), Stopwatch()
    with watching(PARTS, watch):
        total = seconds_of(lambda: _step_batch(env, _random_actions(num_steps, num_envs)))
    return {part: seconds / total for part, seconds in watch.seconds.items()}


class _FreshBatches:
    """A new batch of environments each time, with episodes that nobody has met: nothing is drawn
    before the clock runs.
    """

    def __init__(self, level: str, num_envs: int) -> None:
        self._level, self._num_envs, self._seed = level, num_envs, 0
        self.renew()

    def renew(self) -> None:
        self._seed += 1
        self.env = make_batched_env(self._level, self._num_envs, seed=self._seed)


def _step_minigrid(env: MinigridText, actions: list[int]) -> None:
    env.reset()
    for action in actions:
        *_, done = env.step(action)
        if done:
            env.reset()


def _step_batch(env: BatchedEnv, batches: np.ndarray) -> None:
    env.reset()
    for actions in batches:
        env.step(actions)
