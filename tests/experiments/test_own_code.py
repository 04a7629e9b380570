"""A user's own agent, method, updater, head and initialiser, from a folder of theirs, through the
programs that they type; and what is refused.
"""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import warm

ROOT = Path(__file__).resolve().parents[2]
MINE = """
from dataclasses import dataclass

import numpy as np
import torch
from lamorel_ext import BaseModelInitializer, BaseModuleFunction, BaseUpdater
from lamorel_ext.agents.actors import FixedAgent, UniformActor
from lamorel_ext.methods.base import Method
from lamorel_ext.options import number
from lamorel_ext.types import ScoreRequest, UpdateRequest


class Stubborn(FixedAgent):
    def __init__(self, setting, action=2):
        assert (
            setting.llm.score_batch(ScoreRequest(("a",), (("b",),), ("mood",))).modules["mood"] == 7
        )
        super().__init__(UniformActor((action,)))


@dataclass(frozen=True)
class NudgeOptions:
    step: float = number(0.5, above=0)


class Nudge(Method):
    name = "nudge"
    columns = ("moved",)
    arguments_type = NudgeOptions
    updaters = {"nudge": "mine.Nudger"}

    def learn(self, rollout):
        prompts = rollout.turns[0].prompts[:2]
        request = UpdateRequest(
            "nudge", prompts, (("go forward",),) * 2, torch.arange(2), 2, {},
            {"step": self.options.step},
        )
        return {"moved": self.setting.llm.update_batch(request).stats["moved"]}


class Nudger(BaseUpdater):
    def perform_update(self, contexts, candidates, _current_batch_ids, **kwargs):
        return {"moved": kwargs["step"]}


class Mood(BaseModuleFunction):
    def __init__(self, level):
        super().__init__()
        self.level = level

    def initialize(self):
        pass

    def forward(self, forward_outputs, minibatch, tokenized_contexts, **kwargs):
        return torch.full((len(tokenized_contexts), 1), float(self.level))


class Loud(BaseModelInitializer):
    def __init__(self, word):
        self.word = word

    def initialize_model(self, model):
        print(f"initialised, {self.word}", flush=True)
        return model
"""
ARM = """# @package _global_
arm: {name: mine}
feedback: {signal: none}
agent: {_target_: mine.Stubborn, action: 2}
method: {_target_: mine.Nudge, step: 0.25}
heads: {mood: {_target_: mine.Mood, level: 7}}
"""
SHORT = [
    "run.total_steps=32", "env.num_envs=2", "student.num_steps=8", "run.eval_every=16",
    "run.evaluation=episodes", "run.eval_episodes=2",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "configs" / "arm").mkdir(parents=True)
    (tmp_path / "configs" / "arm" / "mine.yaml").write_text(ARM)
    return tmp_path


def program(folder: Path, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [warm.interpreter(PYTHONPATH=str(ROOT)), "-m", f"experiments.{name}", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
    )


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_comparison_of_own_code_and_a_run_of_it_that_somebody_sent(folder: Path) -> None:
    made = program(
        folder, "compare", "compare.arms=[student_alone,mine]", "compare.seeds=[0]",
        "compare.output_dir=out", "lamorel_args.llm_args.initializer._target_=mine.Loud",
        "lamorel_args.llm_args.initializer.word=hello", *SHORT,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr[-2000:]
    assert "initialised, hello" in made.stdout
    run = folder / "out" / "mine" / "seed_0"
    assert float(rows(run / "metrics.csv")[-1]["nudge_moved"]) == 0.25
    assert "mine.Stubborn" in (folder / "out" / "report.html").read_text()
    refused = program(folder, "evaluate", f"policy={run}", "run.eval_episodes=2")
    assert refused.returncode == 2
    assert "agent._target_ is mine.Stubborn" in refused.stderr and "--trust mine" in refused.stderr
    trusted = program(folder, "evaluate", f"policy={run}", "--trust", "mine", "run.eval_episodes=2")
    assert trusted.returncode == 0, trusted.stderr[-2000:]


BROKEN = """
import os
from lamorel_ext import BaseModelInitializer
from lamorel_ext.agents.actors import FixedAgent, UniformActor


class Agent(FixedAgent):
    def __init__(self, setting):
        super().__init__(UniformActor())

    def decide(self, scene, draws):
        raise ArithmeticError("this rank broke")


class Initialiser(BaseModelInitializer):
    def initialize_model(self, model):
        if os.environ["RANK"] == "2":
            raise ArithmeticError("this rank broke")
        return model
"""


@pytest.mark.parametrize(
    ("rank", "override"),
    [
        (0, "agent._target_=broken.Agent"),
        (2, "lamorel_args.llm_args.initializer._target_=broken.Initialiser"),
    ],
)
def test_the_launcher_names_the_rank_that_raised(tmp_path: Path, rank: int, override: str) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "launchers", "train", "arm=student_alone"),
            *("run.output_dir=out", override, *SHORT),
            "lamorel_args.distributed_setup_args.n_llm_processes=2",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 1 and "this rank broke" in ended.stderr
    assert f"launch: rank {rank} ended with exit status 1" in ended.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["method._target_=mine.Nothing"], "method._target_: mine.Nothing"),
        (["method._target_=mine.Nudge", "method.step=0"], "method.step: must be above 0, got 0"),
        (["agent._target_=mine.Stubborn", "agent.act=1"], "unexpected keyword argument 'act'"),
        (
            ["heads.a._target_=nobody.Head"],
            "heads.a._target_: nobody.Head: No module named 'nobody'",
        ),
    ],
)
def test_own_code_that_cannot_be_had_ends_with_2(
    folder: Path, overrides: list[str], words: str
) -> None:
    ended = program(folder, "train", *overrides, "feedback.signal=none", *SHORT)
    assert (ended.returncode, words in ended.stderr) == (2, True), ended.stderr
    assert not (folder / "runs").exists()
