"""BALROG's tasks: which episodes they are, how a written text becomes an action, what is reported,
and the programme from end to end.
"""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_llm import save_tiny_llm

from experiments import balrog, train
from experiments.balrog import (
    LEVEL,
    TASKS,
    Row,
    WritingActor,
    apart,
    evaluate,
    progression,
    progressions,
    read_action,
    task_env,
    task_seeds,
    write,
)
from experiments.runs.entry import run_main
from lamorel_ext.agents.actors import ExpertActor
from lamorel_ext.config import Plug, load_config
from lamorel_ext.envs.babyai.levels import make_level
from lamorel_ext.experience import Scene
from lamorel_ext.methods.base import Method
from lamorel_ext.prompts import Wording
from lamorel_ext.randomness import Draws
from lamorel_ext.training.evaluate import Evaluation
from lamorel_ext.types import GenerateRequest, GenerateResult, ObservationBatch

STARTS = {
    "goto": "go to the ",
    "pickup": "pick up the ",
    "open": "open the ",
    "putnext": "put the ",
    "pick_up_seq_go_to": "",
}


@pytest.mark.parametrize("task", TASKS)
def test_a_tasks_episodes_are_held_out_and_of_its_kind(task: str) -> None:
    config = load_config(["env.prompt=glam", "env.history=16"])
    seeds = task_seeds(task, config.run.eval_seed, 4)
    assert seeds == sorted(set(seeds)) and seeds[0] >= config.run.eval_seed
    with task_env(config, task, 4, with_experts=False) as env:
        missions = env.reset().observations.missions
    assert all(mission.startswith(STARTS[task]) for mission in missions)
    if task == "pick_up_seq_go_to":
        assert all("pick up" in mission and "go to" in mission for mission in missions)
    level = make_level(LEVEL, num_distractors=0)
    for seed, mission in zip(seeds, missions, strict=True):
        level.reset(seed=seed)
        things = [
            cell
            for cell in level.grid.grid
            if cell is not None and cell.type in ("key", "ball", "box")
        ]
        assert level.mission == mission and len(things) == (
            2 if task in ("putnext", "pick_up_seq_go_to") else 1
        )
        assert level.max_steps == (64 if task in ("goto", "pickup") else 128)


def test_the_kinds_share_the_seeds_among_them() -> None:
    seeds = [seed for task in TASKS for seed in task_seeds(task, 1_000_000_000, 6)]
    assert len(set(seeds)) == len(seeds)


def test_a_clone_is_not_told_what_the_expert_does() -> None:
    with task_env(load_config(["arm=cloning"]), "goto", 2, with_experts=False) as env:
        assert env.reset().experts is None


def test_the_bot_solves_them() -> None:
    row = evaluate(load_config(), ExpertActor(), "bot", episodes=2)
    assert {task: result.success for task, result in row.tasks.items()} == dict.fromkeys(TASKS, 1.0)
    assert all(
        (result.lengths < 128).all() and (result.lengths > 0).all() for result in row.tasks.values()
    )


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("turn left", 0),
        (" pick up.\n", 3),
        ("**toggle**", 5),
        ("Turn left", None),
        ("go forward 2 steps", None),
        ("action: drop", None),
        ("", None),
    ],
)
def test_a_written_text_names_an_action_or_nothing(text: str, action: int | None) -> None:
    assert read_action(text) == action


class Writer:
    """Generates the same texts each time."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts
        self.heard: list[GenerateRequest] = []

    def generate_batch(self, request: GenerateRequest) -> GenerateResult:
        self.heard.append(request)
        return GenerateResult(
            tuple((text,) for text in self.texts),
            torch.zeros(0),
            torch.zeros(0),
            (0,) * len(self.texts),
        )


def test_what_names_no_action_goes_forward_and_is_counted() -> None:
    writer = Writer("toggle", "I would turn left")
    actor = WritingActor(writer, max_new_tokens=5)  # type: ignore[arg-type]  # it only writes
    observations = ObservationBatch(
        ("m", "m"), ((), ()), np.zeros((2, 7, 7, 3), dtype=np.uint8), np.zeros(2, dtype=np.int64)
    )
    draws = Draws.of_evaluation(0)
    for _ in range(2):
        assert actor.decide(Scene(observations, ("a", "b")), draws).actions.tolist() == [5, 2]
    assert (actor.written, actor.invalid) == (4, 2)
    first, second = writer.heard
    assert (
        first.prompts == ("a", "b")
        and first.options["temperature"] == 1.0
        and first.options["max_new_tokens"] == 5
    )
    assert first.options["seed"] != second.options["seed"]


class Asks(Method):
    """Has the LLM asked in other words."""

    def begin_evaluation(self) -> None:
        self.setting.reword(Wording("asked", {"Goal": "Wish"}))


@pytest.mark.parametrize("method", ["", f"{__name__}.Asks"])
def test_what_is_written_answers_the_words_of_the_runs_method(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Always(Writer):
        remote = False

        def generate_batch(self, request: GenerateRequest) -> GenerateResult:
            self.texts = ("turn left",) * len(request.prompts)
            return super().generate_batch(request)

        def info(self) -> dict[str, str]:
            return {"module_functions": "value"}

        def reset(self, *what: object) -> None:
            pass

    monkeypatch.setattr(balrog, "TASKS", {"goto": "goto"})
    config = load_config(["arm=llm_policy", "env.num_envs=1"])
    writer = Always()
    config = dataclasses.replace(config, method=Plug(method))
    balrog.evaluate_all(config, writer, None, "written", "written", 1, 4)  # type: ignore[arg-type]
    goal = "Wish" if method else "Goal"
    assert writer.heard and all(goal in request.prompts[0] for request in writer.heard)


def made(*successes: int, steps: int = 10) -> Evaluation:
    found = np.array(successes, dtype=bool)
    return Evaluation(float(found.mean()), 0.0, False, found, found / 2, np.full(len(found), steps))


def test_a_policy_whose_folder_is_called_random_keeps_its_numbers(tmp_path: Path) -> None:
    rows = [Row("random", {"goto": made(1, 1)}), Row("random", {"goto": made(0, 0)})]
    write(tmp_path, apart(rows), {})
    found = json.loads((tmp_path / "balrog.json").read_text())["progression"]
    assert {name: row["goto"]["mean"] for name, row in found.items()} == {
        "random": 100,
        "random (2)": 0,
    }


def test_progression_is_a_mean_in_percent_with_the_error_over_n() -> None:
    assert vars(progression([made(1, 0, 0, 0)])) == {
        "mean": 25.0,
        "standard_error": pytest.approx(21.6506, abs=1e-4),
        "episodes": 4,
        "average_steps": 10,
    }
    assert vars(progression([made(1, 1, 1)])) == {
        "mean": 100.0,
        "standard_error": 0.0,
        "episodes": 3,
        "average_steps": 10,
    }
    both = progressions(Row("a", {"goto": made(1, 1, steps=4), "open": made(0, 0, steps=8)}))[
        "average"
    ]
    assert (both.mean, both.standard_error, both.average_steps) == (
        50.0,
        25.0,
        6.0,
    )  # sqrt(.25 / 4)


# --- from end to end ------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    for programme in (balrog.entry, train):
        monkeypatch.setattr(programme, "start_log", lambda level: None)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides for a model that answers at once."""
    return [
        f"lamorel_args.llm_args.model_path={save_tiny_llm(tmp_path_factory.mktemp('tiny_llm'))}",
        "lamorel_args.llm_args.value_head_hidden=8",
    ]


def test_the_model_stands_beside_random_actions_and_the_bot(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert balrog.run([*tiny, "--episodes", "2", "--output", str(tmp_path), "env.history=1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"balrog: {tmp_path / 'balrog.json'}"
    assert [line.split()[0] for line in lines[1:7]] == [*TASKS, "average"] and lines[1].endswith(
        "100.0 ± 0.0"
    )
    found = json.loads((tmp_path / "balrog.json").read_text())
    assert (
        found["progression"]["bot"]["average"]["mean"] == 100.0
        and found["progression"]["zero_shot"]["average"]["episodes"] == 10
    )
    assert (
        found["prompt"] == "glam"
        and found["history"] == 1
        and min(found["first_seeds"].values()) >= 1_000_000_000
    )
    with (tmp_path / "balrog.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 3 * 6


def test_a_run_folder_keeps_its_prompt_and_may_write_only_where_the_llm_acts(
    tiny: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(balrog, "TASKS", {"goto": "goto"})
    small = [
        "env.num_envs=2",
        "ppo.num_steps=4",
        "student.num_steps=4",
        "run.total_steps=8",
        "run.evaluation=exact",
    ]
    for arm in ("llm_policy", "teacher_frozen"):
        assert train.run([*tiny, *small, f"arm={arm}", f"run.output_dir={tmp_path / arm}"]) == 0
    options = [
        "--episodes",
        "1",
        "--choose",
        "generate",
        "--max-new-tokens",
        "2",
        "--output",
        str(tmp_path),
    ]
    assert balrog.run([f"policy={tmp_path / 'llm_policy'}", *options]) == 0
    found = json.loads((tmp_path / "balrog.json").read_text())
    assert found["prompt"] == "lamorel" and found["history"] == 1 and found["choose"] == "generate"
    assert next(iter(found["progression"])).startswith(f"{tmp_path / 'llm_policy'}, writing (")
    other = [f"policy={tmp_path / 'llm_policy'}", "arm=random", *options[:2], *options[-2:]]
    assert balrog.run(other) == 0
    found = json.loads((tmp_path / "balrog.json").read_text())
    assert next(iter(found["progression"])) == f"{tmp_path / 'llm_policy'} with arm=random"
    assert run_main(balrog.run, [f"policy={tmp_path / 'teacher_frozen'}", *options]) == 2
    assert "the LLM acts itself only where arm.agent is llm_policy" in capsys.readouterr().err


def test_every_mistake_on_the_command_line_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run_main(balrog.run, ["policy=a", "policy=b", "--episodes", "0", "--max-new-tokens", "0"])
        == 2
    )
    errors = capsys.readouterr().err
    assert (
        "--episodes: must be at least 1" in errors
        and "--max-new-tokens: must be at least 1" in errors
        and "one at a time, got a, b" in errors
    )
