"""A few of the cases of ``fuzz_run_folders.py``, which runs thousands, and siblings that it may not
draw.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fuzz_run_folders import fuzz
from made_runs import make_config, make_run

from experiments.report.making import report
from experiments.runs.entry import run_main
from experiments.viewer.reading import read_trace
from lamorel_ext.errors import CheckpointError
from lamorel_ext.training.trace_lines import VERSION


def test_a_damaged_run_folder_ends_in_documented_errors_only() -> None:
    counts, found = fuzz(12, seed=1)
    assert found == [] and counts["accepted"] and counts["refused"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"steps,success\n1,0.5\n", "no column of numbers env_steps"),
        (b"env_steps,success\n", "no column"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"\x00" * 40, "no learning curve"),
        (b"", "no learning curve"),
        (b"env_steps,success,return,llm_calls,llm_tokens,seconds\n", "no row below its header"),
        (b"env_steps,success,return,llm_calls,llm_tokens,seconds\n0,1.5,0,0,0,0\n", "above 1"),
        (b"env_steps,success,return,llm_calls,llm_tokens,seconds\n0,0.5,inf,0,0,0\n", "not finite"),
        (
            b"env_steps,success,return,llm_calls,llm_tokens,seconds\n0,1,0,0,0,0\n0,1,0,0,0,0\n",
            "env_steps does not go up",
        ),
        (b"env_steps,env_steps\n0,0\n", "several columns"),
    ],
)
def test_a_curve_that_is_none_is_named(
    tmp_path: Path, content: bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(make_config("llm_policy", 0, tmp_path, ["llm_policy"]), [0.25, 0.5])
    (folder / "metrics.csv").write_bytes(content)
    assert run_main(report, [str(tmp_path)]) == 1
    errors = capsys.readouterr().err
    assert "metrics.csv" in errors and message in errors and "Traceback" not in errors


def test_a_share_that_is_rounded_to_just_above_one_is_read(tmp_path: Path) -> None:
    make_run(make_config("llm_policy", 0, tmp_path, ["llm_policy"]), [0.25, 1 + 2**-52])
    assert run_main(report, [str(tmp_path)]) == 0


HEADER = {
    "kind": "trace", "version": VERSION, "env_steps": 0, "rollout": 0, "env": 0, "seed": 0,
    "level": "x", "num_distractors": None, "agent": "student", "teacher": None, "vocabulary": "v",
    "signal": "none", "loss": "l", "channel": "c", "every": "rollout", "actions": ["a"],
    "left_out": 0,
}  # fmt: skip
EPISODE = {"kind": "episode", "number": 0, "actions": [], "mission": "go", "candidates": None}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([json.dumps({**HEADER, "env_steps": float("nan")})], "line 1 holds NaN"),
        (
            [json.dumps(HEADER), json.dumps(EPISODE).replace('"number": 0', '"number": 1e999')],
            "line 2 holds 1e999",
        ),
        ([json.dumps(HEADER), json.dumps(EPISODE)[:30]], "line 2 is cut off or damaged"),
        ([json.dumps({**HEADER, "actions": 3})], "actions is 3, expected list or null"),
        (
            [json.dumps(HEADER), json.dumps({**EPISODE, "candidates": [1]})],
            "candidates holds something else than texts",
        ),
        ([json.dumps({**HEADER, "env_steps": 2**60})], "too large"),
        ([json.dumps(HEADER), json.dumps({**EPISODE, "kind": [1]})], "line 2: not a line of a"),
        ([json.dumps({**HEADER, "kind": {"a": 1}})], "line 1: not a line of a trace"),
        (
            [json.dumps(HEADER), json.dumps({**EPISODE, "offered": 5})],
            "offered is 5, expected list",
        ),
        ([json.dumps(HEADER), "[1]"], "line 2: not a line of a trace, it lacks kind"),
        (["[" * 100_000], "cannot be read"),
        ([], "an empty file"),
    ],
)
def test_a_trace_that_a_page_cannot_show_is_named_with_its_line(
    tmp_path: Path, lines: list[str], message: str
) -> None:
    path = tmp_path / "step_000000.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(CheckpointError, match=message):
        read_trace(path)
