"""End to end: one iteration of each arm and where its time goes, and the paper's run of 2,100
steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from experiments.bench.breakdown import MODEL_PARTS, Stopwatch, seams_with, shares, watching
from experiments.bench.harness import Detail, Row, make_row, rounded, seconds_of
from experiments.bench.subjects import Subjects
from experiments.bench.whole import FIGURE_ARMS, FIGURE_BAR_MIN, FIGURE_THREADS, whole_figure
from experiments.runs.build import alone, build_server, llm_of
from lamorel_ext.config import Config, load_config
from lamorel_ext.envs.babyai.batched import make_batched_env
from lamorel_ext.envs.babyai.enumeration import state_table
from lamorel_ext.llm.serving import in_process
from lamorel_ext.training.building import make_env
from lamorel_ext.training.run import TrainingRun

ARMS = (
    "llm_policy",
    "llm_policy_feedback",
    "teacher_frozen",
    "teacher_feedback",
    "student_alone",
)
MAX_SHARE = 0.1
REASONS = {
    "student_alone": (
        "no language model: the student's own network, its update and the environment are all"
        " there is"
    ),
    "teacher_frozen": (
        "the language model answers each distinct prompt once and never again, so the student's own"
        " update is what remains"
    ),
}
"""Why something outside the models takes more than a tenth in these arms."""


def iterations(subjects: Subjects) -> list[Row]:
    """Seconds of one iteration (rollout, feedback, update) of each arm, with the share of every
    part.
    """
    return [_iteration(subjects, arm) for arm in ARMS]


def _iteration(subjects: Subjects, arm: str) -> Row:
    steps = subjects.setting.iteration_steps
    config = _config(subjects, [f"arm={arm}"], subjects.num_threads)
    # One epoch over the rollout: more would only enlarge the models' share.
    config = replace(
        config,
        env=replace(config.env, num_envs=subjects.setting.num_envs),
        ppo=replace(config.ppo, num_steps=steps, epochs=1),
        student=replace(config.student, num_steps=steps),
        run=replace(config.run, total_steps=10 * steps * subjects.setting.num_envs),
    )
    # A frozen model is not asked again what it has answered: there the first rollout is whole.
    learns = config.arm.agent == "llm_policy" or config.feedback_trains
    first = 1 if learns else steps
    watch = Stopwatch()
    seams = seams_with(make_batched_env(config.env.level, 1))
    with watching(seams, watch), _running(config) as run:
        run.config = replace(
            config,
            ppo=replace(config.ppo, num_steps=first),
            student=replace(config.student, num_steps=first),
        )
        run.rollout()  # optimisers are made, critics leave zero
        run.config = config
        watch.seconds.clear()
        seconds = seconds_of(run.rollout)
    parts = shares(watch, seconds)
    outside = {
        part: share
        for part, share in parts.items()
        if part not in MODEL_PARTS and share > MAX_SHARE
    }
    detail: dict[str, Detail] = {"env_steps": steps * subjects.setting.num_envs, "epochs": 1}
    detail |= {f"share_{part}": rounded(share) for part, share in parts.items()}
    if outside:
        detail["above_a_tenth"] = f"{', '.join(outside)}: {REASONS.get(arm, 'no reason is known')}"
    return make_row(f"iteration_{arm}", [seconds], None, "s", better="lower", detail=detail)


def figure2_2100(subjects: Subjects) -> list[Row]:
    """Minutes for one seed of 2,100 environment steps of the baseline and of online feedback,
    evaluations included, on two cores.

    An estimate from a few steps of each arm, unless the setting asks for the whole run.
    """
    if subjects.setting.whole_steps:
        return [whole_figure(subjects)]
    steps = subjects.setting.online_steps
    detail: dict[str, Detail] = {
        "estimate": True,
        "steps_measured_per_arm": steps,
        "threads_of_the_server": FIGURE_THREADS,
    }
    minutes = 0.0
    threads = torch.get_num_threads()
    try:
        for arm in FIGURE_ARMS:
            config = _config(subjects, [f"arm={arm}"], FIGURE_THREADS, "figure2_2100")
            seconds = _estimated_seconds(config, steps, detail)
            detail[f"{arm}_min"] = rounded(seconds / 60)
            minutes += seconds / 60
    finally:
        torch.set_num_threads(threads)  # building a server sets them
    row = make_row("figure2_2100", [minutes], FIGURE_BAR_MIN, "min", better="lower", detail=detail)
    return [replace(row, threads=FIGURE_THREADS)]


def _estimated_seconds(config: Config, steps: int, detail: dict[str, Detail]) -> float:
    """Seconds of the whole run, from at least ``steps`` environment steps in whole rollouts and one
    evaluation.

    The baseline's rollouts keep their length, which decides how many transitions an update has; a
    student that is taught online costs the same at every step. The tables that an evaluation needs
    are built before the clock runs.
    """
    name, run_args = config.arm.name, config.run
    state_table()
    config = replace(
        config, student=replace(config.student, num_steps=min(steps, config.student.num_steps))
    )
    with _running(config) as run:
        evaluation = seconds_of(run.evaluate)
        trained = 0.0
        while run.progress.env_steps < steps:
            trained += seconds_of(run.rollout)
        per_step = trained / run.progress.env_steps
    detail |= {
        f"{name}_s_per_step": rounded(per_step),
        f"{name}_s_per_evaluation": rounded(evaluation),
    }
    return per_step * run_args.total_steps + evaluation * (
        run_args.total_steps // run_args.eval_every + 2
    )


def _config(
    subjects: Subjects, overrides: Sequence[str], num_threads: int, name: str = "default"
) -> Config:
    """A shipped configuration on the benchmark's checkpoint."""
    config = load_config(overrides, name)
    llm = replace(subjects.llm_args, num_threads=num_threads)
    return replace(
        config,
        lamorel_args=replace(config.lamorel_args, llm_args=llm),
        run=replace(config.run, num_threads=subjects.num_threads),
    )


@contextmanager
def _running(config: Config) -> Iterator[TrainingRun]:
    """A started run, its server in a thread of this process."""
    args = config.lamorel_args
    with (
        in_process([build_server(args, alone(args))]) as caller,
        TrainingRun(config, llm_of(config, caller), make_env) as run,
    ):
        run.start(None)
        yield run
