"""The independent check of a report's tables: it agrees with the report, and notices a falsified
cell.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from made_runs import make_config, make_run

from experiments import recompute
from experiments.report.making import find
from experiments.report.tables import all_tables, resampling_settings

ARMS = [
    "llm_policy",
    "student_alone",
    "teacher_frozen",
    "teacher_feedback+signal=gae",
    "teacher_feedback+signal=constant+sign=random",
]
TASKS = ["go_to_local_d4", "open_door"]


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables of a comparison with noisy curves, unequal numbers of seeds, ties and an arm that
    lacks a seed.
    """
    root, generator = tmp_path_factory.mktemp("noisy"), np.random.default_rng(3)
    for task in TASKS:
        for place, arm in enumerate(ARMS):
            for seed in range(3 if task == TASKS[0] else 4):
                if (arm, seed) != ("student_alone", 1):
                    curve = np.clip(
                        np.linspace(0, 0.2 * place + 0.1, 4) + generator.normal(0, 0.15, 4), 0, 1
                    )
                    curve = (
                        curve
                        if arm != "teacher_feedback+signal=constant+sign=random"
                        else np.full(4, 0.5)
                    )  # the same area everywhere: ties
                    config = make_config(
                        arm, seed, root / task, ARMS, f"task={task}", "run.total_steps=25"
                    )
                    few = dataclasses.replace(config.compare, bootstrap_samples=40)
                    make_run(dataclasses.replace(config, compare=few), curve.tolist())
    findings = find(root)
    (root / "tables").mkdir()
    for name, (header, rows) in all_tables(
        findings.tasks, findings.overall, findings.samples
    ).items():
        with (root / "tables" / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows])
    (root / "tables" / "resampling.json").write_text(
        json.dumps(resampling_settings(findings.samples))
    )
    return root


def test_every_number_of_every_table_is_found_again(
    tables: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recompute.main([str(tables)]) == 0
    deviations, problems, remarks = recompute.check(tables)
    assert not problems and not remarks and max(deviations.values()) < 1e-12
    written = {
        path.stem: set(path.read_text().splitlines()[0].split(","))
        for path in (tables / "tables").glob("*.csv")
    }
    names = {"task", "arm", "minus", "against", "seed", "area_above"}
    expected = {
        f"{table}.{column}"
        for table, columns in written.items()
        if table != "curves"
        for column in columns - names - {"p_corrected", "compared"}
    }  # checked as a whole
    never = {
        key
        for key in expected - set(deviations)
        if key.split(".")[1].startswith(("steps_to", "llm_", "seconds_to"))
    }
    assert set(deviations) == expected - never  # nobody reaches 95 %: those columns are empty
    assert capsys.readouterr().out.splitlines()[-1].endswith("0 other problem(s)")


@pytest.mark.parametrize(
    ("table", "column"),
    [("summary", "area_iqm_high"), ("summary", "llm_tokens"), ("differences", "low"),
     ("differences", "evaluated_alike"), ("differences", "area_by_seconds_difference_low"),
     ("differences", "area_by_llm_calls_until"), ("differences", "area_difference"),
     ("overall", "mean_rank_low"), ("overall_differences", "probability_of_improvement_high"),
     ("profiles", "share")],
)  # fmt: skip
def test_a_falsified_cell_is_noticed(
    tables: Path, tmp_path: Path, table: str, column: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change(
        tables,
        tmp_path,
        table,
        lambda rows: next(row for row in rows if row[column]).update({column: "0.123456"}),
    )
    assert recompute.main([str(tmp_path)]) == 1
    printed = capsys.readouterr().out.splitlines()
    (line,) = [line for line in printed if line.endswith(f"  {table}.{column}")]
    assert float(line.split()[0]) > 1e-6 and float(printed[-1].split()[2].strip(";")) > 1e-6


def test_a_falsified_curve_is_noticed(tables: Path, tmp_path: Path) -> None:
    change(tables, tmp_path, "curves", lambda rows: rows[5].update({"success": "0.999"}))
    assert max(recompute.check(tmp_path)[0].values()) > 1e-6


@pytest.mark.parametrize(
    "table", ["summary", "differences", "overall", "overall_differences", "profiles"]
)
def test_a_missing_row_is_noticed(tables: Path, tmp_path: Path, table: str) -> None:
    change(tables, tmp_path, table, lambda rows: rows.pop(1))
    assert [
        problem
        for problem in recompute.check(tmp_path)[1]
        if problem.startswith(f"{table}.csv has no row for")
    ]


@pytest.mark.parametrize(
    "table", ["summary", "differences", "overall", "overall_differences", "profiles"]
)
def test_a_missing_table_is_noticed(tables: Path, tmp_path: Path, table: str) -> None:
    shutil.copytree(tables / "tables", tmp_path / "tables")
    (tmp_path / "tables" / f"{table}.csv").unlink()
    problems = recompute.check(tmp_path)[1]
    assert any(problem.startswith(f"{table}.csv has no row for") for problem in problems)


def test_a_number_where_the_curves_give_none_is_noticed(tables: Path, tmp_path: Path) -> None:
    change(tables, tmp_path, "summary", lambda rows: rows[0].update({"steps_to_95": "10"}))
    assert any(
        "steps_to_95 is '10', the curves give nan" in problem
        for problem in recompute.check(tmp_path)[1]
    )


def test_a_folder_without_a_report_ends_with_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recompute.main([str(tmp_path)]) == 2
    assert "holds no report that can be checked" in capsys.readouterr().err


def published(name: str, folder: Path) -> Path:
    return shutil.copytree(Path(__file__).parents[2] / "docs" / "results" / name, folder / name)


def test_the_published_tables_can_be_checked_where_they_lie(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = published("figure2_40_smollm2", tmp_path)
    assert recompute.main([str(folder)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("0 other problem(s)")
    path = folder / "summary.csv"
    (first, rest) = path.read_text().split("\n", 1)
    with path.open(newline="") as file:
        area = next(csv.DictReader(file))["area"]
    path.write_text(first + "\n" + rest.replace(area, "0.123456", 1))
    assert recompute.main([str(folder)]) == 1


def test_columns_that_only_one_version_writes_are_named(
    tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(
        tables,
        tmp_path,
        "differences",
        lambda rows: [row.update({"other": row.pop("evaluated_alike")}) for row in rows],
    )
    assert recompute.main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert (
        "columns that are not there, as in tables of an earlier version: "
        "differences.evaluated_alike\n"
    ) in printed
    assert (
        "columns that nothing is compared with, "
        "as in tables of an earlier version: differences.other\n"
    ) in printed


def test_nothing_of_the_report_is_imported() -> None:
    imports = [
        line
        for line in Path(recompute.__file__).read_text().splitlines()
        if line.startswith(("import ", "from "))
    ]
    assert not [line for line in imports if "experiments" in line or "lamorel_ext" in line]


def change(tables: Path, folder: Path, table: str, edit: object) -> None:
    shutil.copytree(tables / "tables", folder / "tables")
    path = folder / "tables" / f"{table}.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    edit(rows)  # type: ignore[operator]
    names = list(rows[0])
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
