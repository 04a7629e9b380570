"""Rollouts with and without ``run.pipeline``: one half of the environments is stepped while the
server scores the prompts of the other.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from experiments.bench.harness import Contender, Detail, Row, make_row, ratios, rounded, take_turns
from experiments.bench.launching import run_ranks
from experiments.bench.subjects import PAPER_LEVEL, Subjects
from experiments.runs.build import build_server
from lamorel_ext.agents.making import make_agent
from lamorel_ext.config import Config, load_config
from lamorel_ext.llm.serving import serve
from lamorel_ext.methods.feedback.edge import FeedbackEdge
from lamorel_ext.methods.feedback.signals import FeedbackSignals
from lamorel_ext.randomness import Draws, make_rng
from lamorel_ext.rpc.caller import Caller
from lamorel_ext.rpc.distributed import launched_role
from lamorel_ext.rpc.runtime import connect
from lamorel_ext.training.building import make_env, make_halves, make_prompted_env
from lamorel_ext.training.pipeline import collect_rollout

Backend = Literal["auto", "minigrid"]
LEVELS: tuple[tuple[str, Backend], ...] = ((PAPER_LEVEL, "auto"), ("BabyAI-GoTo-v0", "minigrid"))
"""One that is stepped fast, one that is stepped slowly."""
Case = tuple[str, Backend, int]
"""Level, how it is stepped, and number of environments."""


@dataclass(frozen=True)
class Spec:
    """What the ranks do: each case's rollouts of ``num_steps`` steps, as often as ``repetitions``
    says, and the threads of each process.
    """

    cases: list[Case]
    num_steps: int
    repetitions: int
    num_threads: int


@dataclass(frozen=True)
class Report:
    """What the client saw in one case: seconds of each rollout, and the share of its actions that
    were the same both ways.
    """

    together: list[float]
    halves: list[float]
    same_actions: float


def pipeline(subjects: Subjects) -> list[Row]:
    """Seconds of a rollout without over with the pipeline: the embedded model frozen as teacher,
    its server a process behind TCP.

    The value is that of the slow environment with most copies, where ``run.pipeline=auto`` has it
    on; the details have all cases.
    """
    setting = subjects.setting
    cases: list[Case] = [
        (level, backend, num_envs)
        for level, backend in LEVELS
        for num_envs in (max(2, setting.num_envs // 2), setting.num_envs)
    ]
    spec = Spec(cases, setting.num_steps, setting.repetitions, subjects.num_threads)
    reports = [Report(**told) for told in run_ranks(__name__, asdict(spec))]
    detail: dict[str, Detail] = {"cores": os.cpu_count(), "processes": 2}
    for (level, _, num_envs), report in zip(cases, reports, strict=True):
        name = f"{level}_{num_envs}"
        detail[f"{name}_ratio"] = rounded(float(np.median(ratios(report.together, report.halves))))
        detail[f"{name}_ms_per_turn"] = rounded(
            1e3 * float(np.median(report.together)) / setting.num_steps
        )
        detail[f"{name}_same_actions"] = rounded(report.same_actions)
    return [
        make_row(
            "pipeline", ratios(reports[-1].together, reports[-1].halves), None, "x", detail=detail
        )
    ]


def main(path: Path) -> None:
    """Be the server or the client, as the environment says."""
    spec = Spec(**json.loads(path.read_text(encoding="utf-8")))
    torch.set_num_threads(spec.num_threads)
    args = _config(spec, PAPER_LEVEL, "auto", 2).lamorel_args
    role = launched_role(args)
    if role is not None and role.is_server:
        serve(args, lambda placement: build_server(args, placement))
    else:
        with connect(args) as caller:
            print(
                json.dumps(
                    [asdict(_measure(spec, _config(spec, *case), caller)) for case in spec.cases]
                )
            )


def _config(spec: Spec, level: str, backend: Backend, num_envs: int) -> Config:
    config = load_config(
        ["arm=teacher_frozen", f"lamorel_args.llm_args.num_threads={spec.num_threads}"]
    )
    env, student = (
        replace(config.env, level=level, backend=backend, num_envs=num_envs),
        replace(config.student, num_steps=spec.num_steps),
    )
    return replace(config, env=env, student=student)


def _measure(spec: Spec, config: Config, caller: Caller) -> Report:
    contenders = {
        "together": Collector(config, caller, False),
        "halves": Collector(config, caller, True),
    }
    seconds = take_turns(
        {name: Contender(each.collect, prepare=caller.forget) for name, each in contenders.items()},
        spec.repetitions,
    )
    actions = [np.stack(each.actions) for each in contenders.values()]
    return Report(seconds["together"], seconds["halves"], float(np.mean(actions[0] == actions[1])))


class Collector:
    """Collects one rollout after the other, from episodes of one seed.

    Args:
        config: The arm, the environments, and ``student.num_steps`` of a rollout.
        caller: Asks the servers.
        halved: Whether the environments are stepped in two halves.
    """

    def __init__(self, config: Config, caller: Caller, halved: bool) -> None:
        self._num_steps = config.student.num_steps
        self._agent = make_agent(config, caller)
        self._listener = FeedbackEdge(
            config,
            None,
            FeedbackSignals(config.feedback, config.env.num_envs, make_rng(0, "feedback")),
        )
        self._draws = Draws(make_rng(0, "actions"), make_rng(0, "guidance"))
        self._env = (
            make_halves(config, make_env)
            if halved
            else make_prompted_env(config, make_env(config, False))
        )
        self._scene = self._env.reset()
        self.actions: list[np.ndarray] = []

    def collect(self) -> None:
        rollout, self._scene = collect_rollout(
            self._env, self._agent, self._listener, self._scene, self._num_steps, self._draws
        )
        self.actions += [turn.decision.actions for turn in rollout.turns]
