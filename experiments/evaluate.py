"""Evaluate a policy next to uniformly random actions and the BabyAI bot, on held-out episodes and,
where possible, exactly.

``lamorel-ext-evaluate model=flan_t5_small`` evaluates the language model as it is, as policy
(zero-shot); ``lamorel-ext-evaluate policy=runs/demo/teacher_feedback/seed_0
run.eval_episodes=1000`` what a run has learnt. Prints a table, and the same as one line of JSON.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.report.statistics import Interval, mean_interval, wilson_interval
from experiments.runs.build import llm_of, run_as_ranked
from experiments.runs.checks import check_configs
from experiments.runs.entry import add_trust_argument, make_parser, run_main, say, start_log
from experiments.runs.planning import (
    ZERO_SHOT,
    name_of_policy,
    policy_config,
    split_policy,
)
from lamorel_ext.config import Config
from lamorel_ext.errors import LamorelExtError

if TYPE_CHECKING:
    from lamorel_ext.experience import Actor
    from lamorel_ext.methods.feedback.signals import FeedbackSignals
    from lamorel_ext.training.recorder import Checkpoint
    from lamorel_ext.training.run import TrainingRun
    from lamorel_ext.types import LlmClient

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Score:
    """How one actor did.

    Attributes:
        name: Who.
        success: Rate over episodes, with Wilson's interval.
        returned: Mean unscaled return over episodes, with Student's t interval over episodes.
        failed: Episodes that the mission itself ended without a reward, a wrong door opened for
            instance.
        exact_success: By enumeration, where possible.
        exact_return: The same.
    """

    name: str
    success: Interval
    returned: Interval
    failed: int
    exact_success: float | None
    exact_return: float | None


def read_policy(
    policy: str,
    overrides: Sequence[str],
    config_name: str,
    config_dir: str | Path,
    trusted: Sequence[str] = (),
) -> tuple[Config, Checkpoint | None]:
    """Configuration and checkpoint of ``zero_shot`` or of a run folder, on which the overrides then
    work.

    Raises:
        ConfigError: The overrides do not fit.
        CheckpointError: It is no run folder, or its checkpoint is corrupt.
    """
    from experiments.runs.run_folder import read_checkpoint, run_state

    config = policy_config(policy, overrides, config_name, config_dir, trusted)
    check_configs([config])
    if policy == ZERO_SHOT:
        return config, None
    folder = Path(os.path.expanduser(policy))
    checkpoint = read_checkpoint(folder)
    if (state := run_state(folder)) != "complete":
        log.warning(
            "%s is %s: what is evaluated had learnt for %d of %d steps",
            policy,
            state,
            checkpoint.env_steps,
            config.run.total_steps,
        )
    return config, checkpoint


def take_over(
    run: TrainingRun, checkpoint: Checkpoint | None, policy: str, tries: int = 5
) -> Checkpoint | None:
    """Have ``run`` be what was learnt; gives the checkpoint that it came from.

    A run that goes on removes its checkpoints: where this one is gone, its next one is taken.

    Raises:
        LamorelExtError: As ``TrainingRun.take_over``.
    """
    from experiments.runs.run_folder import read_checkpoint

    try:
        run.take_over(checkpoint)
        return checkpoint
    except LamorelExtError:
        folder = None if checkpoint is None else checkpoint.llm_folder
        if tries < 2 or folder is None or os.path.isdir(folder):
            raise
    later = read_checkpoint(Path(os.path.expanduser(policy)))
    log.warning("%s went on meanwhile: now at %d steps", policy, later.env_steps)
    return take_over(run, later, policy, tries - 1)


def evaluate_all(
    config: Config, llm: LlmClient | None, checkpoint: Checkpoint | None, policy: str, name: str
) -> tuple[list[Score], int]:
    """The policy, called ``name``, its teacher followed blindly where it has one, random actions,
    and the bot where there is one, on the same episodes; and for how many environment steps the
    policy had learnt.
    """
    from lamorel_ext.agents.actors import ExpertActor, UniformActor
    from lamorel_ext.training.building import make_env, task_of
    from lamorel_ext.training.run import TrainingRun

    with TrainingRun(config, llm, make_env) as run:
        taken = take_over(run, checkpoint, policy)
        signals = run.edge.signals if run.edge.speaks else None
        scores = [evaluate(config, run.agent, name, signals)]
        if run.agent.follower is not None:
            scores.append(evaluate(config, run.agent.follower, "its teacher, followed", signals))
    scores.append(evaluate(config, UniformActor(), "random"))
    if task_of(config).has_expert:
        scores.append(evaluate(config, ExpertActor(), "bot", with_experts=True))
    return scores, 0 if taken is None else taken.env_steps


def evaluate(
    config: Config,
    actor: Actor,
    name: str,
    signals: FeedbackSignals | None = None,
    with_experts: bool = False,
) -> Score:
    """Simulate ``run.eval_episodes`` held-out episodes, and enumerate the states where
    ``run.evaluation`` has it so.

    Raises:
        ConfigError: ``run.evaluation`` is ``exact`` and this actor cannot be evaluated exactly.
    """
    from lamorel_ext.training.building import make_env, make_evaluator

    by_episodes = replace(config, run=replace(config.run, evaluation="episodes"))
    with (
        closing(make_evaluator(by_episodes, make_env, with_experts)) as simulator,
        closing(make_evaluator(config, make_env, with_experts)) as enumerator,
    ):
        seen = simulator.evaluate(actor, signals)
        kind = config.run.evaluation
        listed = kind == "exact" or (kind == "auto" and not enumerator.hindrance(actor, signals))
        exact = enumerator.evaluate(actor, signals) if listed else seen
    return Score(
        name=name,
        success=wilson_interval(int(seen.successes.sum()), len(seen.successes)),
        returned=mean_interval([seen.returns]),
        failed=int(seen.failures.sum()),
        exact_success=exact.success if exact.exact else None,
        exact_return=exact.expected_return if exact.exact else None,
    )


def show(config: Config, scores: Sequence[Score]) -> str:
    """The table."""
    width = max(24, *(len(score.name) + 2 for score in scores))
    lines = [
        (
            f"{config.env.own.target or config.env.level}, {config.run.eval_episodes} held-out"
            f" episodes from seed {config.run.eval_seed}; 95 % intervals"
        ),
        f"{'':{width}}{'success':>24}{'return':>26}{'exact success':>16}{'exact return':>15}",
    ]
    for score in scores:
        exact = [
            f"{value:.4f}" if value is not None else "–"
            for value in (score.exact_success, score.exact_return)
        ]
        lines.append(
            f"{score.name:{width}}{_interval(score.success):>24}{_interval(score.returned):>26}"
            f"{exact[0]:>16}{exact[1]:>15}"
        )
    failed = [f"{score.name} in {score.failed}" for score in scores if score.failed]
    if failed:
        lines.append(
            f"missions that ended in failure, before the steps ran out: {', '.join(failed)} of"
            f" {config.run.eval_episodes}"
        )
    return "\n".join(lines)


def as_json(config: Config, policy: str, scores: Sequence[Score], env_steps: int) -> str:
    """The same for programs, in one line."""
    found = {
        "policy": policy,
        "env_steps": env_steps,
        "level": config.env.own.target or config.env.level,
        "model": config.lamorel_args.llm_args.model_path if config.asks_llm else None,
        "episodes": config.run.eval_episodes,
        "eval_seed": config.run.eval_seed,
        "scores": [
            {key: _null_for_nan(value) for key, value in asdict(score).items()} for score in scores
        ],
    }
    return json.dumps(found)


def run(argv: Sequence[str]) -> int:
    """Do what the command line asks; every rank calls it."""
    parser = make_parser("lamorel-ext-evaluate", __doc__ or "", zero_shot=())
    add_trust_argument(parser)
    options = parser.parse_intermixed_args(argv)
    from lamorel_ext.envs.babyai.expert import expert_shortfall

    policy, overrides = split_policy(options.overrides)
    config, checkpoint = read_policy(
        policy, overrides, options.config_name, options.config_dir, options.trust
    )
    start_log(config.lamorel_args.log_level)

    if not config.env.own and (shortfall := expert_shortfall(config.env.level)):
        log.warning("%s", shortfall)

    # The LLM as it is is a policy; another arm is one that has not learnt.
    if checkpoint is not None:
        name = name_of_policy(policy, overrides)
    elif config.arm.agent in ("llm_policy", "own"):
        name = policy
    else:
        name = f"{config.arm.name}, untrained"

    def client(llm: LlmClient) -> int:
        scores, learnt = evaluate_all(config, llm_of(config, llm), checkpoint, policy, name)
        say(f"{show(config, scores)}\n{as_json(config, name, scores, learnt)}")
        return 0

    return run_as_ranked(config, client)


def _interval(interval: Interval) -> str:
    return f"{interval.estimate:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _null_for_nan(value: object) -> object:
    if isinstance(value, dict):
        return {key: _null_for_nan(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and np.isnan(value) else value


def main() -> int:
    """Entry of ``lamorel-ext-evaluate``."""
    return run_main(run, reads=True)


if __name__ == "__main__":
    sys.exit(main())
