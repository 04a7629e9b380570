"""The examples of docs/own/environment, from a folder of the user's own."""

import shutil
from pathlib import Path

import pytest

from tests.experiments.test_own_code import program, rows

EXAMPLES = Path(__file__).resolve().parents[2] / "docs/own/environment"
SHORT = [
    "run.total_steps=32", "env.num_envs=2", "student.num_steps=8", "ppo.num_steps=8",
    "run.eval_every=32", "run.eval_episodes=2",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for path in EXAMPLES.glob("*.py"):
        shutil.copy(path, tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "target, other", [("my_game.Corridor", "llm_policy"), ("my_kitchen.Kitchen", "drrn")]
)
def test_an_own_environment_is_compared_and_named_in_the_report(
    folder: Path, target: str, other: str
) -> None:
    made = program(
        folder, "compare", f"env._target_={target}",
        f"compare.arms=[{other},teacher_feedback+signal=gae]", "compare.seeds=[0]",
        "compare.controls=[]", "compare.output_dir=out", *SHORT,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr[-2000:]
    assert target in (folder / "out" / "report.html").read_text()
    run = next((folder / "out").glob("*feedback*/seed_0"))
    last = rows(run / "metrics.csv")[-1]
    assert float(last["env_steps"]) == 32 and float(last["eval_exact"]) == 0
    package = target.split(".")[0]
    tested = program(folder, "evaluate", f"policy={run}", "--trust", package, "run.eval_episodes=2")
    assert tested.returncode == 0, tested.stderr[-2000:]
    assert "random" in tested.stdout and f"{target}, 2 held-out episodes" in tested.stdout
    words = ["--trust", package, "--episodes", "2"]
    suite = program(folder, "generalise", str(run), *words, "--tests", "words,tasks")
    if "Kitchen" in target:  # has a key
        assert suite.returncode == 0, suite.stderr[-2000:]
        found = rows(folder / run / "generalisation" / "generalisation.csv")
        assert {(row["group"], row["level"]) for row in found} == {("words", target)}
    else:
        assert suite.returncode == 2 and "chooses from has these words" in suite.stderr
    refused = program(folder, "balrog", f"policy={run}", *words)
    assert refused.returncode == 2 and "BALROG's tasks are levels of BabyAI" in refused.stderr


@pytest.mark.parametrize(
    "overrides, status, words",
    [
        (["run.evaluation=exact"], 2, "offers no exact_evaluator"),
        (["arm=bot", "env._target_=my_kitchen.Kitchen"], 2, "offers no expert_action"),
        (["env.size=big"], 1, ""),
        (["env.language=fr"], 2, "env.language: must be en"),
        (["env.level=hard"], 2, "env.level: my_game.Corridor takes no argument level"),
        (["env.action_texts=[a,b]"], 1, "expected 3 texts"),
    ],
)
def test_what_an_own_environment_cannot_do_is_refused(
    folder: Path, overrides: list[str], status: int, words: str
) -> None:
    ended = program(
        folder, "train", "env._target_=my_game.Corridor", "arm=student_alone", *SHORT, *overrides
    )
    assert (ended.returncode, words in ended.stderr) == (status, True), ended.stderr[-1500:]


def test_worker_processes_give_the_curve_of_one_process_and_raise_what_they_hear(
    folder: Path,
) -> None:
    common = ["env._target_=my_kitchen.Kitchen", "arm=student_alone", *SHORT]
    curves = []
    for workers in (0, 2):
        place = f"out_{workers}"
        words = [f"env.num_workers={workers}", f"run.output_dir={place}"]
        made = program(folder, "train", *common, *words)
        assert made.returncode == 0, made.stderr[-2000:]
        last = rows(folder / place / "metrics.csv")
        curves.append([{k: v for k, v in row.items() if "seconds" not in k} for row in last])
    assert curves[0] == curves[1]
    game = folder / "my_kitchen.py"
    text = game.read_text().replace("self._steps += 1", "raise OSError('the stove is out')")
    game.write_text(text)
    ended = program(folder, "train", *common, "env.num_workers=2", "run.output_dir=out_3")
    assert ended.returncode == 1
    assert "copy 0, episode 0, step 0: step: OSError: the stove is out" in ended.stderr
    assert "--- traceback of environment worker 0 ---" in ended.stderr
