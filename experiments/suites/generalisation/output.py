"""Figures, table and page of the tests."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.report import page
from experiments.report.figures import Picture, dots
from experiments.report.sections import with_interval
from experiments.report.statistics import Interval
from experiments.report.summary import UNKNOWN, plain, signed
from experiments.runs.files import writing
from experiments.suites.generalisation.conditions import GROUPS, TEXT_GROUPS, Condition
from experiments.suites.generalisation.outcomes import LeftOut
from experiments.suites.generalisation.summary import Cell, headline, rows_of


def write_output(
    output: Path, cells: Sequence[Cell], left_out: Sequence[LeftOut], command: str
) -> Path:
    """Write ``generalisation.csv``, ``figures/`` and ``generalisation.html`` into a folder.

    Returns:
        Path of the page.

    Raises:
        CheckpointError: Something cannot be written.
    """
    pictures = [
        _picture(
            "change_by_test", cells, lambda cell: cell.change, "success, minus success as trained"
        ),
        _picture("success_by_test", cells, lambda cell: cell.success, "success rate"),
    ]
    target = output / "generalisation.html"
    with writing(output):
        (output / "figures").mkdir(parents=True, exist_ok=True)
        for drawn in pictures:
            (output / "figures" / f"{drawn.name}.svg").write_text(drawn.svg, encoding="utf-8")
            (output / "figures" / f"{drawn.name}.png").write_bytes(drawn.png)
        with (output / "generalisation.csv").open("w", newline="", encoding="utf-8") as file:
            rows = rows_of(cells)
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
        target.write_text(
            page.page(
                "What trained policies keep under other conditions",
                headline(cells),
                _sections(cells, left_out, pictures, command),
            ),
            encoding="utf-8",
        )
    return target


def _picture(
    name: str, cells: Sequence[Cell], number: Callable[[Cell], Interval], label: str
) -> Picture:
    conditions = _conditions(cells)
    series = {
        arm: [_find(cells, arm, condition, number) for condition in conditions]
        for arm in _arms(cells)
    }
    caption = f"{label[0].upper()}{label[1:]}, test by test. {_bars(cells)}"
    return dots(name, caption, label, [condition.title for condition in conditions], series)


def _sections(
    cells: Sequence[Cell], left_out: Sequence[LeftOut], pictures: Sequence[Picture], command: str
) -> list[str]:
    change, success = pictures
    return [
        page.section(
            "What each test costs",
            page.picture(change),
            _table(cells, lambda cell: cell.change, signed),
            page.note(_bars(cells)),
        ),
        page.section(
            "How often they still succeed",
            page.picture(success),
            _table(cells, lambda cell: cell.success, plain),
        ),
        page.section(
            "What was changed",
            page.table(["test", "kind", "what", "replaced"], _replacements(cells)),
            page.note(_HOW),
        ),
        *_left_out(left_out),
        page.section(
            "How this was made", page.preformatted(command), page.note(_evaluation(cells))
        ),
    ]


_HOW = (
    "Weights are those of the end of training; nothing learns here. Words are replaced in missions,"
    " sentences and candidates on their way to the language model; what a student sees itself stays"
    " as it was. A text's score is the sum over its tokens: a new name that is cut into more tokens"
    " than the old one scores lower for that alone. In the groups "
    + ", ".join(GROUPS[group] for group in TEXT_GROUPS)
    + " the episodes are the same as in the unchanged condition, in the others only their seeds"
    " are."
)


def _table(
    cells: Sequence[Cell], number: Callable[[Cell], Interval], show: Callable[[float], str]
) -> str:
    arms = _arms(cells)
    rows = [
        [
            condition.title,
            *(
                with_interval(_find(cells, arm, condition, number) or UNKNOWN.interval, show)
                for arm in arms
            ),
        ]
        for condition in _conditions(cells)
    ]
    return page.table(["test", *arms], rows)


def _replacements(cells: Sequence[Cell]) -> list[list[str]]:
    rows = []
    for condition in _conditions(cells):
        pairs = {**condition.wording.words, **condition.wording.actions, **condition.env}
        rows.append(
            [
                condition.name,
                GROUPS[condition.group],
                condition.title,
                ", ".join(f"{key} → {value}" for key, value in pairs.items()),
            ]
        )
    return rows


def _left_out(left_out: Sequence[LeftOut]) -> list[str]:
    if not left_out:
        return []
    lines = dict.fromkeys(f"{item.arm}, {item.condition.name}: {item.reason}" for item in left_out)
    return [page.section("Tests that were left out", page.preformatted("\n".join(lines)))]


def _bars(cells: Sequence[Cell]) -> str:
    seeds = {len(cell.outcomes) for cell in cells}
    over = (
        "seeds"
        if min(seeds) > 1
        else (
            "episodes"
            if max(seeds) == 1
            else "seeds, or over episodes where an arm has a single seed"
        )
    )
    return (
        f"Brackets and bars are 95 % intervals over {over}; an exact number of a single seed has"
        " none."
    )


def _evaluation(cells: Sequence[Cell]) -> str:
    exact = dict.fromkeys(cell.condition.name for cell in cells if cell.outcomes[0].result.exact)
    simulated = [cell.outcomes[0] for cell in cells if not cell.outcomes[0].result.exact]
    parts = [f"Exact, by enumeration of all states: {', '.join(exact)}."] if exact else []
    if simulated:
        run = simulated[0].config.run
        names = ", ".join(dict.fromkeys(outcome.condition.name for outcome in simulated))
        parts.append(
            f"By {run.eval_episodes} held-out episodes each, seeds from {run.eval_seed} on:"
            f" {names}."
        )
    seeds = sorted({outcome.seed for cell in cells for outcome in cell.outcomes})
    return " ".join([*parts, f"Seeds of the runs: {', '.join(map(str, seeds))}."])


def _arms(cells: Sequence[Cell]) -> list[str]:
    return list(dict.fromkeys(cell.arm for cell in cells))


def _conditions(cells: Sequence[Cell]) -> list[Condition]:
    """In the order of the groups, and as tested within each."""
    found = {cell.condition.name: cell.condition for cell in cells}
    return sorted(found.values(), key=lambda condition: list(GROUPS).index(condition.group))


def _find(
    cells: Sequence[Cell], arm: str, condition: Condition, number: Callable[[Cell], Interval]
) -> Interval | None:
    return next(
        (
            number(cell)
            for cell in cells
            if cell.arm == arm and cell.condition.name == condition.name
        ),
        None,
    )
