"""Measure the expert on every level: ``python -m experiments.expert_table``.

Writes ``docs/experts.md`` for people and ``lamorel_ext/envs/babyai/experts.csv`` for programs,
which warn at their start where the expert that they rely on does not always succeed.
"""

from __future__ import annotations

import argparse
import csv
import io
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from experiments.runs.entry import run_main, say, start_log
from experiments.runs.files import folder_to_write, replace_text
from lamorel_ext.errors import ConfigError, LevelError

if TYPE_CHECKING:
    from lamorel_ext.envs.babyai.expert import Measured

log = logging.getLogger(__name__)

EPISODES = 20
FIRST_SEED = 1_000_000
HEAD = """# The expert, level by level

Made by `python -m experiments.expert_table --episodes {episodes}`: the BabyAI bot plays the
episodes of seeds {first} to {last} on each level. *Won* means a reward, *failed* that the mission
itself ended without one (a wrong door in a strict mission), *timeouts* that the steps ran out,
*gave up* how often the bot had no answer and a random action was taken
(`lamorel_ext/envs/babyai/expert.py`).

Where it falls short the cause is the bot or the level, as in the original:

* `OpenDoorsOrder...Debug`: a mission of two doors cannot be won by anybody. BabyAI holds the
  action that opens the first door against the second instruction too, and a strict instruction
  calls it the wrong door. Only missions of a single door can be won.
* `UnlockToUnlock`: in half of the missions the bot plans in a circle, which is cut off after
  `MAX_SEARCHES` searches; it then acts at random.
* `KeyInBox` and `PutNext...Carrying`: the bot's own authors name them as levels that it cannot
  solve.

The expert teaches in `teacher_oracle`, acts in `bot`, is imitated in `cloning`, and is a row of
`evaluate` and `balrog`; each warns at its start where a level's success in this table is under 1.

"""


def measure(level_id: str, episodes: int, first_seed: int) -> Measured:
    """The expert over the episodes of consecutive seeds."""
    from lamorel_ext.envs.babyai.expert import Expert, Measured
    from lamorel_ext.envs.babyai.levels import make_level

    level = make_level(level_id)
    won = failed = gave_up = 0
    returns = 0.0
    for seed in range(first_seed, first_seed + episodes):
        level.reset(seed=seed)
        expert, taken, ended = Expert(level, seed), list[int](), False
        while not ended:
            taken.append(expert.action(taken))
            _, reward, terminated, truncated, _ = level.step(taken[-1])
            ended = terminated or truncated
        won += reward > 0
        failed += terminated and not reward > 0
        returns += float(reward)
        gave_up += expert.failures
    level.close()
    timeouts = episodes - won - failed
    return Measured(level_id, episodes, won, failed, timeouts, gave_up, returns / episodes)


def as_csv(rows: Sequence[Measured]) -> str:
    """For programs."""
    from lamorel_ext.envs.babyai.expert import Measured

    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([Measured._fields, *rows])
    return text.getvalue()


def as_page(rows: Sequence[Measured], first_seed: int) -> str:
    """For people: levels on which it falls short first."""
    episodes = rows[0].episodes
    lines = [
        "| level | won | failed | timeouts | gave up | mean return |",
        "|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (row.success == 1, row.level)):
        counts = f"{row.won} of {row.episodes} | {row.failed} | {row.timeouts} | {row.gave_up}"
        lines.append(f"| `{row.level}` | {counts} | {row.mean_return:.3f} |")
    head = HEAD.format(episodes=episodes, first=first_seed, last=first_seed + episodes - 1)
    return head + "\n".join(lines) + "\n"


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.expert_table", description=__doc__)
    parser.add_argument("levels", nargs="*", help="level ids; none: all, and the files are written")
    parser.add_argument("--episodes", type=int, default=EPISODES, help="episodes per level")
    parser.add_argument("--docs", type=folder_to_write, default="docs", help="folder of experts.md")
    return parser.parse_args(argv)


def run(argv: Sequence[str]) -> int:
    """Measure, and write the two files where every level was measured."""
    options = parse(argv)
    from lamorel_ext.envs.babyai.expert import EXPERTS
    from lamorel_ext.envs.babyai.levels import level_ids, level_spec

    start_log("info")
    if options.episodes < 1:
        raise ConfigError("--episodes: must be at least 1")
    for level in options.levels:
        try:
            level_spec(level)
        except LevelError as error:  # before the others are measured
            raise ConfigError(str(error)) from error
    rows = []
    for level in options.levels or level_ids():
        rows.append(measure(level, options.episodes, FIRST_SEED))
        log.info("%s", rows[-1])
    if not options.levels:
        replace_text(EXPERTS, as_csv(rows))
        replace_text(options.docs / "experts.md", as_page(rows, FIRST_SEED))
        say(f"experts: {options.docs / 'experts.md'}")
    return 0


def main() -> int:
    """Entry of ``python -m experiments.expert_table``."""
    return run_main(run)


if __name__ == "__main__":
    sys.exit(main())
