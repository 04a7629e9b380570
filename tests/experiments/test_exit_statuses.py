"""Every program ends with one message: 2 for what the user said wrong, 1 for what went wrong."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from made_runs import make_config, make_run

from tests import warm

ROOT = Path(__file__).parents[2]
MISSING = "not_there"
SAID_WRONG = [
    ["experiments.train", "student.lr=nan"],
    ["experiments.train", "--config-name", MISSING],
    ["experiments.train", "--config-dir", MISSING],
    ["experiments.train", f"lamorel_args.llm_args.model_path={MISSING}"],
    ["experiments.compare", "compare.arms=[nobody]"],
    ["experiments.compare", "--config-dir", MISSING],
    ["experiments.evaluate", f"policy={MISSING}"],
    ["experiments.evaluate", "run.total_steps=x"],
    ["experiments.generalise", MISSING],
    ["experiments.balrog", f"policy={MISSING}"],
    ["experiments.report", MISSING],
    ["experiments.recompute", MISSING],
    ["experiments.viewer", MISSING],
    ["experiments.watch", MISSING],
    ["experiments.publish", MISSING, "published"],
    ["experiments.reproduce", MISSING],
    ["experiments.pretrain_embedded"],
    ["experiments.check_oracle", MISSING],
    ["experiments.expert_table", "--episodes", "0"],
    ["experiments.expert_table", "BabyAI-Nope-v0"],
    ["experiments.coverage", "--nonsense"],
    ["experiments.bench", "nothing"],
    ["experiments.bench.gpu", "--nonsense"],
    ["experiments.bench.scale.soak", "--nonsense"],
    ["launchers", "train", "arm=nobody"],
    ["launchers", "nothing"],
]
FULL = {
    "run/report.html": ["experiments.report", "run"],
    "new/versions.json.part": ["experiments.train", "arm=student_alone", "run.output_dir=new"],
    "new/student_alone/seed_0/versions.json.part": [
        "experiments.compare",
        "compare.arms=[student_alone]",
        "compare.seeds=[0]",
        "compare.output_dir=new",
    ],
}
"""Commands by a file that they write."""


def status(words: list[str], folder: Path) -> tuple[int, str]:
    # The hub's client tries again for long where there is no network.
    python = warm.interpreter(PYTHONPATH=str(ROOT), HF_HUB_OFFLINE="1")
    done = subprocess.run(
        [python, "-m", *words], cwd=folder, capture_output=True, text=True, timeout=300
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("words", SAID_WRONG, ids=" ".join)
def test_what_the_user_said_wrong_ends_with_two(words: list[str], tmp_path: Path) -> None:
    code, said = status(words, tmp_path)
    assert code == 2 and "Traceback" not in said, said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file", FULL)
def test_a_full_disk_ends_with_one(file: str, tmp_path: Path) -> None:
    make_run(make_config("student_alone", 0, tmp_path / "run", ["student_alone"]), [0.25, 0.5])
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).symlink_to("/dev/full")
    code, said = status(FULL[file], tmp_path)
    assert code == 1 and "No space left" in said and "Traceback" not in said, said


@pytest.mark.parametrize(
    "words",
    [
        ["experiments.watch", "run", "--once"],
        ["experiments.train", "--cfg", "job"],
        ["launchers", "compare", "-m", "student.lr=1e-3,1e-4", "--dry-run"],
    ],
    ids=" ".join,
)
def test_a_reader_that_is_gone_changes_no_status(words: list[str], tmp_path: Path) -> None:
    make_run(make_config("student_alone", 0, tmp_path / "run", ["student_alone"]), [0.25, 0.5])
    read, write = os.pipe()
    os.close(read)
    python = warm.interpreter(PYTHONPATH=str(ROOT), PYTHONUNBUFFERED="1")
    with os.fdopen(write, "w") as gone:
        done = subprocess.run(
            [python, "-m", *words], cwd=tmp_path, stdout=gone, stderr=subprocess.PIPE, timeout=300
        )
    assert (done.returncode, done.stderr) == (0, b"")


def test_every_program_is_walked() -> None:
    """A program is a module that ends in ``if __name__ == "__main__"``."""
    found = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
        for top in ("experiments", "launchers")
        for path in (ROOT / top).rglob("*.py")
        if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
    }
    started_by_others = {"launchers.elastic", "launchers.as_lamorel", "experiments.bench.launching"}
    assert found - started_by_others <= {words[0] for words in SAID_WRONG}
