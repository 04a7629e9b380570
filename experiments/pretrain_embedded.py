"""Make the embedded model from nothing: ``python -m experiments.pretrain_embedded --output DIR``;
``--check`` measures the shipped one. Other seeds, sizes and priors make other teachers, for
``lamorel_args.llm_args.model_path=DIR``.

Written down before the shipped one was trained, and kept:

* The checkpoint is the one after the last step of a fixed number of steps, with a learning rate
  that falls to zero there. Nothing is evaluated on the way and nothing is chosen along the curve.
* The strength of the prior is decided by the label noise alone (``noisy_bot``): half of the answers
  are random, and each place is misjudged with probability 0.6. Which places these are is drawn from
  the first seed, counted from 0, with which a perfect learner of the labels would succeed in 45 to
  55 % of the episodes of GoToRedBallNoDists (computed exactly, from the labels alone:
  ``label_value``).
* Training states come from seeds below 1,000,000,000; evaluation seeds begin there. No mission
  about a red ball has a labelled action.

Everything runs in one thread and depends on the seed alone: the same machine makes the same bytes.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from experiments.pretraining.card import write_card
from experiments.pretraining.measure import (
    card_figures,
    differences,
    label_value,
    reading_figure,
    zero_shot_figures,
)
from experiments.pretraining.noisy_bot import HELD_OUT_NAMES, NoisyBot, make_noisy_bot
from experiments.pretraining.samples import Mixture, Sample, draw_samples
from experiments.pretraining.states import (
    FIRST_HELD_OUT_SEED,
    SEEDS_PER_LEVEL,
    Episode,
    collect_episodes,
)
from experiments.pretraining.tokenizer import make_tokenizer, save_tokenizer
from experiments.pretraining.training import (
    ModelShape,
    TrainingPlan,
    make_batches,
    make_model,
    save_model,
    train,
)
from experiments.runs.entry import run_main, say, start_log
from experiments.runs.files import folder_to_write
from lamorel_ext.llm.loading import EMBEDDED
from lamorel_ext.options import number, why_out_of_bounds

_LOG = logging.getLogger(__name__)
_CHECK_TOLERANCE = 0.005  # other machines and versions of PyTorch round differently
_NUM_QUESTIONS = 500

LEVELS = {
    "GoToRedBallNoDists": 2000,
    "GoToRedBall": 2000,
    "GoToObj": 5000,
    "GoToLocal": 4000,
    "PickupLocal": 3000,
    "PickupLoc": 2000,
    "PutNextLocal": 2000,
    "OpenDoor": 2000,
    "UnlockLocal": 2000,
    "MixedTrainLocal": 4000,
    "GoToSeq": 1000,
}
"""States of each level."""
_LAST_SEED = FIRST_HELD_OUT_SEED // (len(LEVELS) * SEEDS_PER_LEVEL) - 1


@dataclass(frozen=True)
class Stage:
    """So many steps of one mixture."""

    num_steps: int
    mixture: Mixture


@dataclass(frozen=True)
class Recipe:
    """Everything that the bytes of the model depend on."""

    seed: int = number(0, at_least=0, at_most=_LAST_SEED)
    levels: Mapping[str, int] = field(default_factory=lambda: dict(LEVELS))
    shape: ModelShape = ModelShape()
    reading: Stage = Stage(
        2000, Mixture(spans=0.0, question=1.0, action=0.0, subgoal=0.0, longest_text=3)
    )
    mixed: Stage = Stage(2500, Mixture(spans=0.15, question=0.35, action=0.4, subgoal=0.1))
    tokens_per_batch: int = 2048
    trust: float = number(0.5, at_least=0, at_most=1)
    misjudged_share: float = number(0.6, at_least=0, at_most=1)
    misjudged_seed: int = number(7, at_least=0)
    num_questions: int = _NUM_QUESTIONS

    @property
    def command(self) -> str:
        """What makes the model, with every choice that is not the shipped one's."""
        ours, chosen = _choices(Recipe()), _choices(self)
        flags = (f" {_flag(key)} {chosen[key]}" for key in HELP if chosen[key] != ours[key])
        return "python -m experiments.pretrain_embedded --output DIR" + "".join(flags)


HELP = {
    "seed": "of the weights, the states and their order",
    "trust": "share of the labels that are not random",
    "misjudged_share": "share of the places that the labels misjudge",
    "misjudged_seed": "of the places that are",
    "d_model": "width",
    "d_kv": "width of an attention head",
    "d_ff": "width of the feed-forward layers",
    "num_heads": "attention heads",
    "num_layers": "layers of the encoder",
    "num_decoder_layers": "layers of the decoder",
}
"""What may be chosen on the command line: numbers of the recipe and of the model's shape."""


def main(argv: Sequence[str] | None = None) -> int:
    """Make or check the model; gives the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.pretrain_embedded",
        description="make or check the embedded model",
    )
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--output", type=folder_to_write, help="folder for the new model's files")
    task.add_argument(
        "--check", action="store_true", help="compare the shipped model's figures with its card"
    )
    ours = _choices(Recipe())
    for spec in (*fields(Recipe), *fields(ModelShape)):
        if spec.name in HELP:
            parser.add_argument(
                _flag(spec.name),
                type=_reader(type(ours[spec.name]), spec.metadata["bounds"]),
                default=ours[spec.name],
                help=f"{HELP[spec.name]} (default: %(default)s)",
            )
    args = parser.parse_args(argv)
    start_log("info")
    if args.check:
        return check(EMBEDDED)
    chosen = {name: getattr(args, name) for name in HELP}
    shape = ModelShape(**{spec.name: chosen.pop(spec.name) for spec in fields(ModelShape)})
    return pretrain(args.output, Recipe(**chosen, shape=shape))


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _choices(recipe: Recipe) -> dict[str, Any]:
    return {**vars(recipe), **vars(recipe.shape)}


def _reader(kind: Callable[[str], float], bounds: Mapping[str, Any]) -> Callable[[str], float]:
    def read(text: str) -> float:
        value = kind(text)
        if problem := why_out_of_bounds(value, bounds):
            raise argparse.ArgumentTypeError(problem)
        return value

    read.__name__ = "number"  # argparse says "invalid number value"
    return read


def pretrain(folder: Path, recipe: Recipe) -> int:
    """Make the model and write its files and card to ``folder``."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    bot = make_noisy_bot(recipe.trust, recipe.misjudged_share, recipe.misjudged_seed)
    episodes = collect_episodes(
        {f"BabyAI-{level}-v0": number for level, number in recipe.levels.items()}, recipe.seed
    )
    _LOG.info("%d states", sum(map(len, episodes)))
    model = make_model(recipe.shape, tokenizer.get_vocab_size(), recipe.seed)
    plan = TrainingPlan(recipe.reading.num_steps + recipe.mixed.num_steps)
    _log_losses(train(model, _batches(recipe, episodes, bot, tokenizer), plan))
    save_model(model, folder)
    save_tokenizer(tokenizer, folder)
    facts = {
        "command": recipe.command,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocabulary": tokenizer.get_vocab_size(),
        "num_states": sum(map(len, episodes)),
        "num_levels": len(recipe.levels),
        "reading_steps": recipe.reading.num_steps,
        "mixed_steps": recipe.mixed.num_steps,
        "random_share": 1 - recipe.trust,
        "label_success": label_value(bot).success,
        "held_out": ", ".join(HELD_OUT_NAMES),
        "num_questions": recipe.num_questions,
    }
    figures = measure(folder, recipe.num_questions)
    (folder / "README.md").write_text(
        write_card(facts, figures, shipped=recipe == Recipe()), encoding="utf-8"
    )
    _LOG.info("%s", figures)
    return 0


def check(folder: Path) -> int:
    """Compare the figures of a model with those in its card; gives 1 where they disagree."""
    figures = measure(folder)
    lines = differences(
        figures, card_figures((folder / "README.md").read_text(encoding="utf-8")), _CHECK_TOLERANCE
    )
    say("\n".join(lines) or f"as in the card: {figures}")
    return 1 if lines else 0


def measure(folder: Path, num_questions: int = _NUM_QUESTIONS) -> dict[str, float]:
    """The card's figures of a saved model."""
    return {**zero_shot_figures(folder), "reading": reading_figure(folder, num_questions)}


def _batches(
    recipe: Recipe, episodes: Sequence[Episode], bot: NoisyBot, tokenizer: Tokenizer
) -> Iterator[list[Sample]]:
    rng = np.random.default_rng(recipe.seed)

    def of(stage: Stage) -> Iterator[list[Sample]]:
        samples = draw_samples(episodes, bot, tokenizer, stage.mixture, rng)
        return islice(make_batches(samples, recipe.tokens_per_batch, rng), stage.num_steps)

    return chain(of(recipe.reading), of(recipe.mixed))


def _log_losses(losses: Iterator[float]) -> None:
    recent: list[float] = []
    for step, loss in enumerate(losses, start=1):
        recent.append(loss)
        if step % 100 == 0:
            _LOG.info("step %d: %.3f nats per token", step, sum(recent) / len(recent))
            recent.clear()


if __name__ == "__main__":
    raise SystemExit(run_main(main))
