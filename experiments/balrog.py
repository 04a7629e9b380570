"""The BabyAI-Text part of BALROG: ``python -m experiments.balrog`` (Paglieri et al. 2024, arXiv
2411.13543; github.com/balrog-ai/BALROG).

    python -m experiments.balrog                                   # the model as it is, zero-shot
    python -m experiments.balrog model=smollm2 --choose generate   # it writes its action
    python -m experiments.balrog policy=runs/demo/llm_policy/seed_0 --episodes 100

The protocol, as its public configuration has it: five tasks (goto, pickup, open, putnext,
pick_up_seq_go_to) of BabyAI-MixedTrainLocal-v0 without distractors, ten episodes each, the level's
own step limits (64 for goto and pickup, else 128), six actions, sixteen observations of history. An
episode's progression is 1 when it ends with a positive reward, else 0; reported are mean and
standard error in %, of each task and of all episodes together. Random actions and the BabyAI bot
stand beside the model, on the same episodes. Writes ``balrog.json`` and ``balrog.csv`` into
``--output``.

Where this differs from the protocol:

* An action is chosen by scoring: one of the six texts, drawn from the softmax of their summed
  log-probabilities. There, the model writes at temperature 1. ``--choose generate`` does so too,
  and like there takes what names no action for "go forward"; the next prompt does not mention it,
  as it does there.
* Prompts are this project's: one string in GLAM's template (actions, mission, the last 16
  observations with the actions between them); a run folder keeps the prompt that it was trained
  with. There, it is a chat with instructions, a description of each action and advice. Sentences
  are whole here; there, "You see" is cut off and each stands in a line.
* The level is this project's, drawn by the laws of the original BabyAI-Text; there, it is a fork of
  minigrid with that level added. Both draw the kind of task apart from the scene: there,
  environments are made until one has the wanted kind; here, seeds are taken from ``run.eval_seed``
  on whose draw is the wanted kind. So every episode is held out, and the same for everybody; there,
  seeds are new in each run unless one is set.
* This is one of BALROG's six environments, and only its mode with text: no images, no chain of
  thought, no examples in the prompt.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import itertools
import json
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.report.results import distinct
from experiments.runs import entry
from experiments.runs.build import llm_of, run_as_ranked
from experiments.runs.checks import check_configs
from experiments.runs.files import csv_cell, folder_to_write, replace_json, writing
from experiments.runs.planning import ZERO_SHOT, name_of_policy, split_policy
from lamorel_ext.config import Config, EnvArgs
from lamorel_ext.errors import ConfigError
from lamorel_ext.prompts import ACTION_NAMES

if TYPE_CHECKING:
    from lamorel_ext.experience import Actor, Decision, Scene
    from lamorel_ext.methods.feedback.signals import FeedbackSignals
    from lamorel_ext.randomness import Draws
    from lamorel_ext.training.evaluate import Evaluation
    from lamorel_ext.training.recorder import Checkpoint
    from lamorel_ext.training.scenes import PromptedEnv
    from lamorel_ext.types import LlmClient, Scalar

log = logging.getLogger(__name__)

LEVEL = "BabyAI-MixedTrainLocal-v0"
TASKS = {
    "goto": "goto",
    "pickup": "pickup",
    "open": "open",
    "putnext": "putnext",
    "pick_up_seq_go_to": "pickup_goto",
}
"""The protocol's tasks, and the names of ``original_levels`` for them."""
PROTOCOL_PROMPT = ("env.prompt=glam", "env.history=16", "env.num_envs=1")
"""What a model is shown that was not trained on prompts of its own."""
NUM_DISTRACTORS = 0
EPISODES = 10
DEFAULT_ACTION = ACTION_NAMES.index("go forward")
"""Taken where a written text names no action."""


@dataclass(frozen=True)
class Row:
    """How one of those who act did in the five tasks.

    Attributes:
        name: Who.
        tasks: By the protocol's names.
    """

    name: str
    tasks: Mapping[str, Evaluation]


def task_seeds(task: str, first: int, episodes: int) -> list[int]:
    """The first seeds from ``first`` on whose episode of the Mixed level is of this task."""
    from lamorel_ext.envs.babyai.original_levels import MIXED_KINDS, kind_of_seed

    matching = (
        seed for seed in itertools.count(first) if kind_of_seed(MIXED_KINDS, seed) == TASKS[task]
    )
    return list(itertools.islice(matching, episodes))


def on_protocol(config: Config) -> Config:
    """The same in the protocol's level, evaluated as it says: on episodes."""
    env = EnvArgs(
        level=LEVEL,
        num_distractors=NUM_DISTRACTORS,
        prompt=config.env.prompt,
        language=config.env.language,
    )
    return dataclasses.replace(
        config, env=env, run=dataclasses.replace(config.run, evaluation="episodes")
    )


def task_env(config: Config, task: str, episodes: int, with_experts: bool) -> closing[PromptedEnv]:
    """The held-out episodes of a task, one in each copy."""
    from lamorel_ext.envs.babyai.batched import make_batched_env
    from lamorel_ext.training.building import make_prompted_env

    seeds = task_seeds(task, config.run.eval_seed, episodes)
    env = make_batched_env(
        LEVEL,
        episodes,
        config.env.language,
        episode_seed=lambda copy, episode: seeds[copy],
        num_distractors=NUM_DISTRACTORS,
    )
    return closing(make_prompted_env(config, env, with_experts, held_out=True))


def evaluate(
    config: Config, actor: Actor, name: str, episodes: int, signals: FeedbackSignals | None = None
) -> Row:
    """All tasks, one after the other."""
    from lamorel_ext.agents.actors import ExpertActor
    from lamorel_ext.randomness import Draws
    from lamorel_ext.training.evaluate import run_episodes

    found = {}
    for task in TASKS:
        with task_env(config, task, episodes, isinstance(actor, ExpertActor)) as env:
            copied = (
                None
                if signals is None
                else signals.fork(episodes, np.random.default_rng(config.run.seed))
            )
            found[task] = run_episodes(env, actor, Draws.of_evaluation(config.run.seed), copied)
    return Row(name, found)


class WritingActor:
    """The LLM writes what it does, at temperature 1.

    Args:
        llm: Writes.
        max_new_tokens: Length at most.

    Attributes:
        written: Texts so far.
        invalid: How many of them named no action.
    """

    reads_prompts = True
    enumerable = False

    def __init__(self, llm: LlmClient, max_new_tokens: int) -> None:
        from lamorel_ext.experience import Discount

        self.discount = Discount(1.0, 1.0)
        self._llm = llm
        self._max_new_tokens = max_new_tokens
        self.written = self.invalid = 0

    def decide(self, scene: Scene, draws: Draws) -> Decision:
        """See ``Actor``."""
        from lamorel_ext.experience import Decision
        from lamorel_ext.types import GenerateRequest

        options: dict[str, Scalar] = {
            "do_sample": True,
            "top_k": 0,
            "top_p": 1.0,
            "temperature": 1.0,
            "max_new_tokens": self._max_new_tokens,
            "seed": int(draws.guidance.integers(2**31)),
        }
        texts = self._llm.generate_batch(GenerateRequest(scene.shown, options)).texts
        actions = [read_action(sequences[0]) for sequences in texts]
        self.written += len(actions)
        self.invalid += actions.count(None)
        taken = np.array(
            [DEFAULT_ACTION if action is None else action for action in actions], dtype=np.int64
        )
        return Decision(taken, np.zeros(len(taken)), np.zeros(len(taken)))

    def values(self, scene: Scene) -> np.ndarray:
        """There is no critic."""
        return np.zeros(len(scene))

    def action_probs(self, scene: Scene) -> np.ndarray:
        """There is no list of texts."""
        raise ValueError("what is written freely cannot be enumerated")


def read_action(text: str) -> int | None:
    """The action that a text names and nothing else, once everything but letters, colons and space
    between them is gone; None where it does not.
    """
    kept = "".join(
        sign for sign in text if sign.isascii() and sign.isalpha() or sign.isspace() or sign == ":"
    ).strip()
    return ACTION_NAMES.index(kept) if kept in ACTION_NAMES else None


def evaluate_all(
    config: Config,
    llm: LlmClient,
    checkpoint: Checkpoint | None,
    policy: str,
    name: str,
    episodes: int,
    written_tokens: int | None,
) -> list[Row]:
    """The policy, random actions and the bot.

    Args:
        policy: ``zero_shot``, or the folder of ``checkpoint``.
        name: Of the policy's row.
        written_tokens: An LLM that is the policy writes its actions, this many tokens at most; None
            lets it choose.
    """
    from experiments.evaluate import take_over
    from lamorel_ext.agents.actors import ExpertActor, UniformActor
    from lamorel_ext.training.building import make_env
    from lamorel_ext.training.run import TrainingRun

    used = llm_of(config, llm)
    with TrainingRun(config, used, make_env) as run:
        take_over(run, checkpoint, policy)
        if written_tokens is None:
            signals = run.edge.signals if run.edge.speaks else None
            rows = [evaluate(config, run.agent, name, episodes, signals)]
        else:
            writer = WritingActor(run.llm or llm, written_tokens)  # in a method's wording, too
            rows = [_evaluate_writing(config, writer, name, episodes)]
    return apart(
        [
            *rows,
            evaluate(config, UniformActor(), "random", episodes),
            evaluate(config, ExpertActor(), "bot", episodes),
        ]
    )


def apart(rows: Sequence[Row]) -> list[Row]:
    """No two of one name, as a run folder called ``random`` would give."""
    names = distinct([row.name for row in rows], " ({})")
    return [Row(name, row.tasks) for name, row in zip(names, rows, strict=True)]


def _evaluate_writing(config: Config, actor: WritingActor, policy: str, episodes: int) -> Row:
    row = evaluate(config, actor, policy, episodes)
    return Row(
        f"{policy}, writing ({100 * actor.invalid / actor.written:.0f} % invalid)", row.tasks
    )


# --- what comes out -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Progression:
    """Of a set of episodes, in %; the standard error takes the deviation of the episodes
    themselves, as the protocol does: over n, not n - 1.
    """

    mean: float
    standard_error: float
    episodes: int
    average_steps: float


def progression(results: Sequence[Evaluation]) -> Progression:
    """Over the episodes of some tasks together."""
    reached = np.concatenate([result.successes for result in results]).astype(np.float64)
    steps = np.concatenate([result.lengths for result in results])
    return Progression(
        100 * float(reached.mean()),
        100 * float(reached.std()) / math.sqrt(len(reached)),
        len(reached),
        float(steps.mean()),
    )


def progressions(row: Row) -> dict[str, Progression]:
    """Of each task, and of all of them as ``average``."""
    return {
        **{task: progression([result]) for task, result in row.tasks.items()},
        "average": progression(list(row.tasks.values())),
    }


def show(rows: Sequence[Row]) -> str:
    """One line per task."""
    columns = [progressions(row) for row in rows]
    width = max(24, *(len(row.name) + 2 for row in rows))
    lines = [
        f"{'progression in %, ± standard error':40}"
        + "".join(f"{row.name:>{width}}" for row in rows)
    ]
    for task in columns[0]:
        cells = (
            f"{column[task].mean:.1f} ± {column[task].standard_error:.1f}" for column in columns
        )
        lines.append(f"{task:40}" + "".join(f"{cell:>{width}}" for cell in cells))
    return "\n".join(lines)


def write(output: Path, rows: Sequence[Row], facts: Mapping[str, object]) -> None:
    """``balrog.json`` and ``balrog.csv``.

    Raises:
        CheckpointError: They cannot be written.
    """
    found = {
        row.name: {task: vars(value) for task, value in progressions(row).items()} for row in rows
    }
    lines = [
        [name, task, *map(csv_cell, value.values())]
        for name, tasks in found.items()
        for task, value in tasks.items()
    ]
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        with (output / "balrog.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(
                [
                    ["who", "task", "progression", "standard_error", "episodes", "average_steps"],
                    *lines,
                ]
            )
    replace_json(output / "balrog.json", {**facts, "progression": found})


# --- the programme --------------------------------------------------------------------------------


def make_parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    parser = entry.make_parser(
        "lamorel-ext-balrog", "Evaluate in BALROG's BabyAI-Text tasks.", PROTOCOL_PROMPT
    )
    parser.add_argument("--episodes", type=int, default=EPISODES, help="episodes of each task")
    parser.add_argument(
        "--choose",
        choices=("score", "generate"),
        default="score",
        help="score the six action texts, or write the action",
    )
    parser.add_argument("--max-new-tokens", type=int, default=8, help="length of a written action")
    parser.add_argument(
        "--output", type=folder_to_write, default="runs/balrog", help="folder to write into"
    )
    entry.add_trust_argument(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """Do what the command line asks; every rank calls it."""
    options = make_parser().parse_intermixed_args(argv)
    from experiments.evaluate import read_policy
    from lamorel_ext.envs.babyai.expert import expert_shortfall

    problems = [
        f"--{name}: must be at least 1"
        for name in ("episodes", "max-new-tokens")
        if getattr(options, name.replace("-", "_")) < 1
    ]
    try:
        policy, overrides = split_policy(options.overrides)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    shown = PROTOCOL_PROMPT if policy == ZERO_SHOT else ()
    config, checkpoint = read_policy(
        policy, [*shown, *overrides], options.config_name, options.config_dir, options.trust
    )
    entry.start_log(config.lamorel_args.log_level)
    if options.choose == "generate" and config.arm.agent != "llm_policy":
        raise ConfigError(
            f"--choose generate: the LLM acts itself only where arm.agent is llm_policy, {policy}"
            f" has {config.arm.agent}"
        )
    if config.env.own and (policy == ZERO_SHOT or config.arm.agent != "llm_policy"):
        raise ConfigError(
            f"env._target_: BALROG's tasks are levels of BabyAI; what acts in"
            f" {config.env.own.target} is tested by evaluate, and only an llm_policy here"
        )
    check_configs([on_protocol(config)])

    if shortfall := expert_shortfall(LEVEL):
        log.warning("%s", shortfall)

    name = policy if checkpoint is None else name_of_policy(policy, overrides)

    def client(llm: LlmClient) -> int:
        rows = evaluate_all(
            config,
            llm,
            checkpoint,
            policy,
            name,
            options.episodes,
            options.max_new_tokens if options.choose == "generate" else None,
        )
        facts = {
            "policy": name,
            "model": config.lamorel_args.llm_args.model_path if config.asks_llm else None,
            "choose": options.choose,
            "level": LEVEL,
            "num_distractors": NUM_DISTRACTORS,
            "prompt": config.env.prompt,
            "history": config.env.history if config.env.prompt == "glam" else 1,
            "seed": config.run.seed,
            "first_seeds": {task: task_seeds(task, config.run.eval_seed, 1)[0] for task in TASKS},
        }
        write(options.output, rows, facts)
        entry.say(f"{show(rows)}\n{json.dumps(facts)}\nbalrog: {options.output / 'balrog.json'}")
        return 0

    return run_as_ranked(config, client)


def main() -> int:
    """Entry of ``lamorel-ext-balrog``."""
    return entry.run_main(run, reads=True)


if __name__ == "__main__":
    sys.exit(main())
