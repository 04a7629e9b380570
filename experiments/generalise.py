"""Test what trained policies keep when words, sentences, distractors or tasks change: ``python -m
experiments.generalise runs/demo``.

GLAM's generalisation tests (Carta et al. 2023, arXiv 2302.02662, section 4.3) on the runs of a
comparison, or on a single run folder: each policy, frozen as training left it, is evaluated under
every condition of ``experiments/suites/generalisation/conditions.py`` and in the one that it was
trained in, exactly where that is possible and on the same held-out seeds otherwise. Beside them
stand the language model before training (zero-shot) and, where the level changes, random actions.
Writes ``generalisation.csv``, ``figures/`` and ``generalisation.html`` into
``FOLDER/generalisation`` (or ``--output``); prints the path last. The servers stay up; each run's
weights are loaded into them.

    python -m experiments.generalise runs/demo
    python -m experiments.generalise runs/demo --tests words,french --arms llm_policy,teacher_frozen
    python -m experiments.generalise runs/demo/llm_policy/seed_0 --episodes 500
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.report.results import Run, group_arms, read_runs
from experiments.runs.build import run_as_ranked
from experiments.runs.checks import check_configs
from experiments.runs.entry import add_trust_argument, run_main, say, start_log
from experiments.runs.files import folder_to_write, why_not_writable
from experiments.runs.planning import policy_config
from experiments.runs.versions import command_line
from experiments.suites.generalisation.conditions import CONDITIONS, GROUPS, Condition, choose
from lamorel_ext.config import ArmArgs, Config, Plug
from lamorel_ext.config.overrides import key_of
from lamorel_ext.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from experiments.suites.generalisation.outcomes import LeftOut, Outcome, Policy
    from lamorel_ext.types import LlmClient

log = logging.getLogger(__name__)

SET_HERE = {
    "run.eval_episodes": "take --episodes",
    "run.evaluation": "exact where that is possible, else on --episodes episodes",
    "run.seed": "each run keeps its own",
    "arm": "each run keeps its own; lamorel-ext-evaluate policy=RUN takes another",
}
"""Keys that mean nothing on the command line, and what does."""


def plan(
    folder: Path,
    arms: Sequence[str],
    episodes: int,
    overrides: Sequence[str],
    zero_shot: bool = True,
    trusted: Sequence[str] = (),
) -> list[Policy]:
    """Who is to be tested: every complete run below a folder, the language model before training,
    and random actions.

    Args:
        folder: A comparison, or one run.
        arms: Names of folders, or labels; all where empty.
        episodes: Of a simulated evaluation.
        overrides: Work on the configuration of every run.
        zero_shot: False leaves the untrained language model out.
        trusted: See ``policy_config``.

    Raises:
        CheckpointError: There is no complete run.
        ConfigError: There is no such arm, or the runs have different language models: one launch
            has one set of servers.
    """
    from experiments.runs.run_folder import read_checkpoint
    from experiments.suites.generalisation.outcomes import Policy

    runs = [run for run in read_runs(folder) if run.state == "complete"]
    if not runs:
        raise CheckpointError(f"{folder} holds no complete run")
    groups = group_arms(runs)
    known = {
        name
        for arm in groups
        for name in (arm.label, *(_folder_name(run) for run in arm.runs.values()))
    }
    if unknown := [name for name in arms if name not in known]:
        raise ConfigError(
            f"arms: no {', '.join(unknown)} in {folder}; there are {', '.join(sorted(known))}"
        )
    policies = [
        Policy(
            arm.label,
            _config(run.folder, episodes, overrides, trusted),
            partial(read_checkpoint, run.folder),
        )
        for arm in groups
        for run in arm.runs.values()
        if not arms or arm.label in arms or _folder_name(run) in arms
    ]
    return [*policies, *_references(policies, zero_shot)]


def _folder_name(run: Run) -> str:
    return run.folder.absolute().parent.name


def _config(
    folder: Path, episodes: int, overrides: Sequence[str], trusted: Sequence[str]
) -> Config:
    config = policy_config(str(folder), overrides, trusted=trusted)
    return dataclasses.replace(
        config, run=dataclasses.replace(config.run, eval_episodes=episodes, evaluation="auto")
    )


def _references(policies: Sequence[Policy], zero_shot: bool) -> list[Policy]:
    """The model before training, as policy, and random actions."""
    from experiments.suites.generalisation.outcomes import RANDOM, ZERO_SHOT, Policy

    readers = [policy.config for policy in policies if policy.config.asks_llm]
    others = [
        config
        for config in readers
        if config.lamorel_args.llm_args != readers[0].lamorel_args.llm_args
    ]
    if others:
        raise ConfigError(
            "lamorel_args.llm_args: the runs have different language models; one launch has one set"
            " of servers, so test them apart"
        )
    levels = {policy.config.env for policy in policies}
    if len(levels) > 1:
        raise ConfigError("env: the runs were trained in different environments; test them apart")
    found = [Policy(RANDOM, policies[0].config, acts=False)]
    if readers and zero_shot:
        untrained = dataclasses.replace(
            readers[0],
            arm=ArmArgs(name="llm_policy", agent="llm_policy"),
            feedback=dataclasses.replace(readers[0].feedback, signal="none"),
            agent=Plug(),
            method=Plug(),
        )
        found.insert(0, Policy(ZERO_SHOT, untrained))
    return found


def examine(
    policies: Sequence[Policy], conditions: Sequence[Condition], llm: LlmClient
) -> tuple[list[Outcome], list[LeftOut]]:
    """Test one policy after the other.

    Raises:
        LamorelExtError: As ``examine_policy``.
    """
    from experiments.suites.generalisation.outcomes import examine_policy
    from lamorel_ext.training.rewording import RewordedClient

    client = RewordedClient(llm)
    outcomes: list[Outcome] = []
    left_out: list[LeftOut] = []
    for number, policy in enumerate(policies, start=1):
        log.info("[%d/%d] %s, seed %d", number, len(policies), policy.arm, policy.config.run.seed)
        found, missing = examine_policy(policy, conditions, client)
        outcomes += found
        left_out += missing
    if not outcomes:
        raise ConfigError(
            "tests: none of them can be taken:\n"
            + "\n".join(f"{item.condition.name}: {item.reason}" for item in left_out)
        )
    return outcomes, left_out


def make_parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    parser = argparse.ArgumentParser(
        prog="lamorel-ext-generalise", description="Test trained policies under other conditions."
    )
    parser.add_argument("folder", type=Path, help="folder of a comparison, or of one run")
    parser.add_argument(
        "overrides", nargs="*", help="key=value, for the configuration of every run"
    )
    parser.add_argument(
        "--tests",
        default="",
        help=(
            f"names separated by commas, all if not given: groups {', '.join(GROUPS)}; single tests"
            f" {', '.join(CONDITIONS)}"
        ),
    )
    parser.add_argument(
        "--arms", default="", help="names of arms, separated by commas; all if not given"
    )
    parser.add_argument(
        "--episodes", type=int, default=100, help="episodes where the level has no exact evaluation"
    )
    parser.add_argument(
        "--output",
        type=folder_to_write,
        default=None,
        help="where to write; FOLDER/generalisation if not given",
    )
    parser.add_argument(
        "--no-zero-shot", action="store_true", help="do not evaluate the untrained language model"
    )
    add_trust_argument(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """Do what the command line asks; every rank calls it."""
    options = make_parser().parse_intermixed_args(argv)
    from experiments.suites.generalisation.output import write_output
    from experiments.suites.generalisation.summary import summarise

    problems = [
        f"{text}: {instead}"
        for text in options.overrides
        for key, instead in SET_HERE.items()
        if f"{key_of(text)}.".startswith(f"{key}.")
    ]
    if options.episodes < 1:
        problems.append(f"--episodes: must be at least 1, got {options.episodes}")
    if problems:
        raise ConfigError(problems)
    output = options.output or options.folder / "generalisation"
    if os.path.isdir(options.folder) and (reason := why_not_writable(output)):
        raise ConfigError(f"--output: {output} cannot be written: {reason}")
    conditions = choose(_names(options.tests))
    policies = plan(
        options.folder,
        _names(options.arms),
        options.episodes,
        options.overrides,
        not options.no_zero_shot,
        options.trust,
    )
    config = next(
        (policy.config for policy in policies if policy.config.asks_llm), policies[0].config
    )
    start_log(config.lamorel_args.log_level)
    check_configs(policy.config for policy in policies)

    def client(llm: LlmClient) -> int:
        outcomes, left_out = examine(policies, conditions, llm)
        target = write_output(
            output,
            summarise(outcomes),
            left_out,
            command_line("generalise", argv),
        )
        say(f"generalisation: {target}")
        return 0

    return run_as_ranked(config, client, others=[policy.config for policy in policies])


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def main() -> int:
    """Entry of ``lamorel-ext-generalise``."""
    return run_main(run, reads=True)


if __name__ == "__main__":
    sys.exit(main())
