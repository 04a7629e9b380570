"""Replay recorded BabyAI-Text transcripts against this package.

    python -m experiments.check_oracle FILE.jsonl.gz

Every state is rebuilt and described anew, every episode is stepped anew, and every level that can
be drawn is drawn anew from its seed. The last line of the output is one JSON object with the number
of states, of mismatches, and of comparisons of each kind. The exit status is 0 when nothing
differs, 1 when something does, 2 when the file cannot be read.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lamorel_ext.errors import LamorelExtError
from lamorel_ext.prompts.templates import action_name, glam_prompt, lamorel_prompt

if TYPE_CHECKING:
    from lamorel_ext.envs.babyai.describe import Language

REWARD_TOLERANCE = 1e-9
GLAM_HISTORY = 3
SHOWN = 20
FIELDS = """
    id level seed episode t width height grid box_contents agent_pos agent_dir carrying mission
    step_count max_steps see_through_walls rooms instr image descriptions descriptions_fr
    glam_prompt lamorel_prompt action_id after
""".split()

Record = dict[str, Any]


class TranscriptError(LamorelExtError):
    """The file is no transcript; the message names the file and the line."""


class Comparison:
    """Counts comparisons by kind, and keeps the first differences.

    Attributes:
        compared: Comparisons of each kind.
        differing: Those that differ.
        skipped: Comparisons of each kind that could not be made.
    """

    def __init__(self) -> None:
        self.compared: Counter[str] = Counter()
        self.differing: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self.shown: list[str] = []

    def check(self, kind: str, record: Record, ours: object, recorded: object) -> None:
        """Compare one thing."""
        self.compared[kind] += 1
        if ours != recorded:
            self.differing[kind] += 1
            if len(self.shown) < SHOWN:
                self.shown.append(
                    f"{record['level']} line {record['id']} (t = {record['t']}), {kind}:\n  ours   "
                    f"  {ours}\n  recorded {recorded}"
                )


def read_episodes(path: Path) -> Iterator[list[Record]]:
    """Yield the lines of one episode after the other.

    Raises:
        TranscriptError: The file is missing, damaged, or a line is not a state.
    """
    episode: list[Record] = []
    for record in _read_records(path):
        if episode and record["episode"] != episode[-1]["episode"]:
            yield episode
            episode = []
        if record["t"] != len(episode):
            raise TranscriptError(
                f"{path}: line id {record['id']} has t = {record['t']} where t = {len(episode)} was"
                " expected"
            )
        episode.append(record)
    if not episode:
        raise TranscriptError(f"{path}: holds no states")
    yield episode


def check_file(path: Path) -> Comparison:
    """Compare everything in a transcript file."""
    comparison = Comparison()
    for episode in read_episodes(path):
        try:
            check_episode(episode, comparison)
        except (LookupError, ValueError, TypeError, AttributeError, AssertionError) as error:
            raise TranscriptError(
                f"{path}: episode {episode[0]['episode']} describes no possible state: {error!r}"
            ) from error
    return comparison


def check_episode(episode: list[Record], comparison: Comparison) -> None:
    """Compare one episode."""
    language = recorded_language(episode)
    for record in episode:
        check_text(record, comparison, language)
    check_prompts(episode, comparison)
    check_draw(episode[0], comparison)
    check_replay(episode, comparison, language)


def recorded_language(episode: list[Record]) -> Language:
    """That of ``descriptions``: English, or French throughout in a level that insists on it."""
    from lamorel_ext.envs.babyai.levels import level_ids, level_spec

    level = episode[0]["level"]
    insists = level in level_ids() and level_spec(level).language == "fr"
    french = all(record["descriptions"] == record["descriptions_fr"] for record in episode)
    return "fr" if insists and french else "en"


def check_text(record: Record, comparison: Comparison, language: Language = "en") -> None:
    """Rebuild one state; compare the view and the sentences in both languages.

    Args:
        language: That of ``descriptions``.
    """
    from lamorel_ext.envs.babyai.describe import describe
    from lamorel_ext.envs.babyai.transcripts import rebuild
    from lamorel_ext.envs.babyai.view import symbolic_view

    image = symbolic_view(rebuild(record))
    comparison.check("image", record, image.reshape(-1).tolist(), record["image"])
    comparison.check(
        "descriptions", record, list(describe(image, language)), record["descriptions"]
    )
    comparison.check(
        "descriptions_fr", record, list(describe(image, language="fr")), record["descriptions_fr"]
    )


def check_prompts(episode: list[Record], comparison: Comparison) -> None:
    """Compare both prompts of every state that has them."""
    actions: list[str] = []
    for t, record in enumerate(episode):
        if record["lamorel_prompt"] is not None:
            comparison.check(
                "lamorel_prompt",
                record,
                lamorel_prompt(record["mission"], record["descriptions"]),
                record["lamorel_prompt"],
            )
        if record["glam_prompt"] is not None:
            first = max(0, t + 1 - GLAM_HISTORY)
            observations = [earlier["descriptions"] for earlier in episode[first : t + 1]]
            comparison.check(
                "glam_prompt",
                record,
                glam_prompt(record["mission"], observations, actions[first:t]),
                record["glam_prompt"],
            )
        if record["action_id"] is not None:
            actions.append(action_name(record["action_id"]))


def check_draw(first: Record, comparison: Comparison) -> None:
    """Draw the level from the episode's seed; compare the first state."""
    from lamorel_ext.envs.babyai.levels import level_ids, make_level

    if first["level"] not in level_ids():
        comparison.skipped["draw"] += 1
        return
    level = make_level(first["level"])
    level.reset(seed=first["seed"])
    ours = [*_state(level), level.mission, level.max_steps]
    recorded = [*_recorded_state(first), first["mission"], first["max_steps"]]
    comparison.check("draw", first, ours, recorded)


def check_replay(episode: list[Record], comparison: Comparison, language: Language = "en") -> None:
    """Step from the first state with the recorded actions; compare mission, states, rewards and
    ends, as far as the rules are known.

    Args:
        language: That of ``descriptions``.
    """
    from lamorel_ext.envs.babyai.describe import describe
    from lamorel_ext.envs.babyai.transcripts import (
        RecordedLevel,
        moves_otherwise,
        rebuild,
        rules_known,
    )

    if moves_otherwise(episode[0]):
        comparison.skipped["replay"] += len(episode)
        return
    level, scored = rebuild(episode[0]), rules_known(episode[0])
    mission, max_steps = episode[0]["mission"], episode[0]["max_steps"]
    if isinstance(level, RecordedLevel):
        mission, max_steps = level.start_episode(), level.natural_max_steps()
    for record in episode:
        comparison.check("mission", record, mission, record["mission"])
        comparison.check("max_steps", record, max_steps, record["max_steps"])
        comparison.check(
            "state",
            record,
            [*_state(level), level.step_count],
            [*_recorded_state(record), record["step_count"]],
        )
        if record["action_id"] is None:
            continue
        observation, reward, terminated, truncated, _ = level.step(record["action_id"])
        after = record["after"]
        said = list(describe(observation["image"], language))
        comparison.check("after", record, said, after["descriptions"])
        if not scored:
            comparison.skipped["reward"] += 1
            continue
        close = abs(float(reward) - after["reward"]) <= REWARD_TOLERANCE
        comparison.check(
            "reward", record, after["reward"] if close else float(reward), after["reward"]
        )
        comparison.check("done", record, bool(terminated or truncated), after["done"])


def main(arguments: list[str] | None = None) -> int:
    """Check the file named on the command line; gives the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.check_oracle", description="Replay BabyAI-Text transcripts."
    )
    parser.add_argument("file", type=Path, help="transcript, gzipped JSON lines")
    path = parser.parse_args(arguments).file
    try:
        comparison = check_file(path)
    except LamorelExtError as error:
        print(error, file=sys.stderr)
        return 2
    for text in comparison.shown:
        print(text, file=sys.stderr)
    mismatches = sum(comparison.differing.values())
    report = {
        "states": comparison.compared["image"],
        "mismatches": mismatches,
        "compared": dict(comparison.compared),
        "differing": dict(comparison.differing),
        "skipped": dict(comparison.skipped),
    }
    print(json.dumps(report))
    return 1 if mismatches else 0


def _state(level: Any) -> list[Any]:
    from lamorel_ext.envs.babyai.transcripts import box_contents, grid_codes, thing_record

    position = [int(coordinate) for coordinate in level.agent_pos]
    return [
        grid_codes(level.grid),
        box_contents(level.grid),
        position,
        int(level.agent_dir),
        thing_record(level.carrying),
    ]


def _recorded_state(record: Record) -> list[Any]:
    boxes = sorted(record["box_contents"], key=lambda box: (box[1], box[0]))
    return [record["grid"], boxes, record["agent_pos"], record["agent_dir"], record["carrying"]]


def _read_records(path: Path) -> Iterator[Record]:
    number = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                yield _checked(json.loads(line), path, number)
    except json.JSONDecodeError as error:
        raise TranscriptError(f"{path}: line {number} is not JSON: {error}") from error
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise TranscriptError(f"{path}: cannot be read after line {number}: {error}") from error


def _checked(record: Any, path: Path, number: int) -> Record:
    if not isinstance(record, dict):
        raise TranscriptError(f"{path}: line {number} is not a JSON object")
    missing = [name for name in FIELDS if name not in record]
    if missing:
        raise TranscriptError(f"{path}: line {number} lacks {', '.join(missing)}")
    image = record["image"]
    if (
        not isinstance(image, list)
        or len(image) != 147
        or np.asarray(image, dtype=object).ndim != 1
    ):
        raise TranscriptError(f"{path}: line {number}: image must hold 147 numbers")
    return record


if __name__ == "__main__":
    sys.exit(main())
