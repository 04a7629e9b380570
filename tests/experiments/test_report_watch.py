"""``report --watch``: the page follows the runs."""

import io
import shutil
import sys
from pathlib import Path

import pytest
from made_runs import make_config, make_run

from experiments import publish
from experiments.report import making


class Over(Exception):
    """The test has seen enough."""


def watched(folder: Path, *events: object) -> None:
    """Watch while ``events`` happen, one between two looks."""
    left = list(events)

    def sleep(seconds: float) -> None:
        assert seconds == 2.5
        if not left:
            raise Over
        event = left.pop(0)
        if callable(event):
            event()

    with pytest.raises(Over):
        making.watch(folder, None, 2.5, sleep)


def test_the_page_is_made_when_a_run_is_complete_and_again_when_another_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(seed: int) -> None:
        made = make_run(make_config("llm_policy", seed, tmp_path, ["llm_policy"]), [0.5, 0.75])
        (made / "checkpoints" / "step-64").mkdir(parents=True, exist_ok=True)
        shutil.copy(made / "metrics.csv", made / "checkpoints" / "step-64")

    made: list[float] = []
    page = tmp_path / "report.html"
    watched(
        tmp_path,
        lambda: run(1),
        lambda: made.append(page.stat().st_mtime_ns),
        lambda: made.append(page.stat().st_mtime_ns),
        lambda: run(2),
        lambda: made.append(page.stat().st_mtime_ns),
    )
    assert made[0] == made[1] < made[2]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("no report yet: ")
    assert lines[1:] == [f"report: {page}, 1 runs", f"report: {page}, 2 runs"]


def test_a_curve_that_is_half_written_is_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(make_config("llm_policy", 1, tmp_path, ["llm_policy"]), [0.5, 0.75])
    whole = (folder / "metrics.csv").read_text()
    (folder / "metrics.csv").write_text(whole[:-20] + "\n")
    watched(tmp_path, lambda: (folder / "metrics.csv").write_text(whole), None)
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("no report yet: ") and last.startswith("report: ")


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon"])
def test_seconds_that_are_none_are_refused(
    seconds: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        making.parse(["runs", "--watch", seconds])
    assert ended.value.code == 2 and "_seconds" not in capsys.readouterr().err


class Closed(io.StringIO):
    """A pipe whose reader has gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_a_reader_that_is_gone_fails_no_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(make_config("llm_policy", 1, tmp_path, ["llm_policy"]), [0.5, 0.75])
    monkeypatch.setattr(sys, "stdout", Closed())
    assert making.report([str(tmp_path)]) == 0
    watched(tmp_path)
    assert publish.run([str(tmp_path), str(tmp_path / "published")]) == 0


def test_tables_link_their_files(tmp_path: Path) -> None:
    make_run(make_config("llm_policy", 1, tmp_path, ["llm_policy"]), [0.5, 0.75])
    page = making.make_report(tmp_path).read_text()
    assert '<a href="tables/summary.csv">' in page
    assert (tmp_path / "tables" / "summary.csv").is_file()
