"""From outcomes to arms: what each condition costs, with intervals over seeds, and the sentences
that say it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.report.statistics import Interval, mean_interval
from experiments.report.summary import SEEDS_FOR_A_CLAIM, bracket, plain, signed
from experiments.runs.files import csv_cell
from experiments.suites.generalisation.conditions import TEXT_GROUPS, Condition
from experiments.suites.generalisation.outcomes import RANDOM, Outcome


@dataclass(frozen=True)
class Cell:
    """One arm under one condition, over its seeds.

    Attributes:
        arm: Label of the arm.
        condition: The test.
        outcomes: One per seed.
        success: Mean success rate: intervals are over seeds, or over episodes where there is one
            seed.
        change: The same of the difference to the unchanged condition.
    """

    arm: str
    condition: Condition
    outcomes: tuple[Outcome, ...]
    success: Interval
    change: Interval


def summarise(outcomes: Sequence[Outcome]) -> list[Cell]:
    """Join the seeds of each arm under each condition, in the order in which they were tested."""
    together: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        together.setdefault((outcome.arm, outcome.condition.name), []).append(outcome)
    return [_cell(tuple(members)) for members in together.values()]


def _cell(outcomes: tuple[Outcome, ...]) -> Cell:
    first = outcomes[0]
    if len(outcomes) == 1:
        return Cell(first.arm, first.condition, outcomes, first.interval(), first.change_interval())
    success = mean_interval([[outcome.result.success for outcome in outcomes]]).within(0, 1)
    return Cell(
        first.arm,
        first.condition,
        outcomes,
        success,
        mean_interval([[outcome.change for outcome in outcomes]]).within(-1, 1),
    )


# --- for programs ---------------------------------------------------------------------------------


def rows_of(cells: Sequence[Cell]) -> list[dict[str, str]]:
    """One row per arm, test and seed, and one without a seed per arm; 0 episodes means exact."""
    rows = []
    for cell in cells:
        rows += [
            _row(each, str(each.seed), each.interval(), each.change_interval())
            for each in cell.outcomes
        ]
        rows.append(_row(cell.outcomes[0], "", cell.success, cell.change))
    return rows


def _row(outcome: Outcome, seed: str, success: Interval, change: Interval) -> dict[str, str]:
    env, result = outcome.config.env, outcome.result
    unchanged = outcome.unchanged.success if seed else success.estimate - change.estimate
    return {
        "arm": outcome.arm,
        "seed": seed,
        "group": outcome.condition.group,
        "test": outcome.condition.name,
        "level": env.own.target or env.level,
        "distractors": "" if env.num_distractors is None else str(env.num_distractors),
        "episodes": str(len(result.successes)),
        "success": csv_cell(success.estimate),
        "success_low": csv_cell(success.low),
        "success_high": csv_cell(success.high),
        "return": csv_cell(result.expected_return if seed else None),
        "unchanged": csv_cell(unchanged),
        "change": csv_cell(change.estimate),
        "change_low": csv_cell(change.low),
        "change_high": csv_cell(change.high),
    }


# --- for people -----------------------------------------------------------------------------------


def headline(cells: Sequence[Cell]) -> list[str]:
    """The answer, the most important sentence first."""
    reading = [cell for cell in cells if cell.outcomes[0].reads]
    texts = [cell for cell in reading if cell.condition.group in TEXT_GROUPS]
    distractors = [
        cell for cell in cells if cell.condition.group == "distractors" and cell.arm != RANDOM
    ]
    sentences = [
        *_losses("Said in other words, the same episodes", texts),
        *_harmless(texts),
        *_losses("Other numbers of distractors", distractors),
        *_tasks(cells),
    ]
    seeds = max((len(cell.outcomes) for cell in cells), default=0)
    if seeds < SEEDS_FOR_A_CLAIM:
        sentences.append(
            f"{seeds} {'seed shows' if seeds == 1 else 'seeds show'} a tendency; a claim needs"
            f" {SEEDS_FOR_A_CLAIM}."
        )
    return sentences


def _losses(what: str, cells: Sequence[Cell]) -> list[str]:
    """The single worst loss, and every arm's mean over the tests."""
    if not cells:
        return []
    worst = min(cells, key=lambda cell: cell.change.estimate)
    tests = len({cell.condition.name for cell in cells})
    means = ", ".join(
        f"{arm} {_with(mean_change(cells, arm))}"
        for arm in dict.fromkeys(cell.arm for cell in cells)
    )
    cost = (
        f"cost {worst.arm} most: {_with(worst.change)} under {worst.condition.title}, where it"
        f" still succeeds in {plain(worst.success.estimate)}"
        if worst.change.estimate < 0
        else f"cost no arm anything; the least change is {_with(worst.change)}, of {worst.arm}"
        f" under {worst.condition.title}"
    )
    return [
        f"{what} {cost}.",
        *([f"Mean change of success over these {tests} tests: {means}."] if tests > 1 else []),
    ]


def mean_change(cells: Sequence[Cell], arm: str) -> Interval:
    """An arm's change, averaged over tests, with an interval over seeds; none for a single seed."""
    by_seed: dict[int, list[float]] = {}
    for outcome in (outcome for cell in cells if cell.arm == arm for outcome in cell.outcomes):
        by_seed.setdefault(outcome.seed, []).append(outcome.change)
    return mean_interval([[sum(changes) / len(changes) for changes in by_seed.values()]]).within(
        -1, 1
    )


def _harmless(cells: Sequence[Cell]) -> list[str]:
    """The tests that cost nobody anything."""
    conditions = {cell.condition.name: cell.condition.title for cell in cells}
    harmless = [
        title
        for name, title in conditions.items()
        if all(c.change.estimate > -TOLERANCE for c in cells if c.condition.name == name)
    ]
    return (
        [f"No arm loses more than {TOLERANCE:.2f} under: {', '.join(harmless)}."]
        if harmless
        else []
    )


TOLERANCE = 0.02
"""A loss of success that is called none."""


def _tasks(cells: Sequence[Cell]) -> list[str]:
    """Whether anything learnt carries over: each new task's best arm, beside random actions."""
    told = []
    tasks = dict.fromkeys(cell.condition.name for cell in cells if cell.condition.group == "tasks")
    for name in tasks:
        here = [cell for cell in cells if cell.condition.name == name]
        acting = [cell for cell in here if cell.arm != RANDOM]
        chance = next((cell.success.estimate for cell in here if cell.arm == RANDOM), math.nan)
        if acting:
            best = max(acting, key=lambda cell: cell.success.estimate)
            told.append(
                f"{best.condition.title} {plain(best.success.estimate)} ({best.arm}; random actions"
                f" {plain(chance)})"
            )
    return [f"New tasks, the best arm of each: {'; '.join(told)}."] if told else []


def _with(interval: Interval) -> str:
    return signed(interval.estimate) + (
        "" if math.isnan(interval.low) else f" {bracket(interval, signed)}"
    )
