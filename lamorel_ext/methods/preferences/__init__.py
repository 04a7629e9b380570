"""Preferences teach the LLM: of two guidances for the same state the one after which the student
did better is to become likelier (Ouyang et al. 2022, arXiv 2203.02155, with the loss of Rafailov
et al. 2023, arXiv 2305.18290). A file of a human's rankings is read in the same form.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from lamorel_ext.agents.llm_teachers import rescored
from lamorel_ext.errors import CheckpointError, ConfigError, NotThereError
from lamorel_ext.experience import Note, Rollout
from lamorel_ext.methods.base import MethodSetting
from lamorel_ext.methods.feedback.options import FeedbackOptions
from lamorel_ext.methods.pairs import Pair, PairMethod, read_rankings
from lamorel_ext.methods.preferences.options import USED_BY, PreferencesOptions
from lamorel_ext.methods.preferences.reward_model import RewardModel, Texts, ranked_episodes
from lamorel_ext.methods.told import Told, fingerprint_of, read_traces, told_in
from lamorel_ext.options import in_common
from lamorel_ext.rl import normalise
from lamorel_ext.types import Scalar

Side = TypeVar("Side")


class Preferences(PairMethod):
    """See the module, and ``PreferencesOptions`` for what is learnt and from what."""

    name = "preferences"
    arguments_type: ClassVar[type | None] = PreferencesOptions
    controls = {"ranks": ("coin",)}

    def __init__(self, setting: MethodSetting, options: PreferencesOptions) -> None:
        super().__init__(setting, options)
        self._args = options
        _check(setting, options)
        self._file: list[Pair] | None = None
        self._recorded: list[Told] | None = None
        self._missing: NotThereError | None = None
        try:
            if options.rankings:
                self._file = read_rankings(Path(options.rankings))
            if options.traces:
                self._recorded = read_traces(Path(options.traces), setting.config)
        except NotThereError as error:  # what was learnt from it is evaluated without it
            self._missing = error
        known = self._file if self._recorded is None else self._recorded
        self._source: dict[str, Any] = {}
        if known is not None:
            self._source = {"lines": len(known), "sha256": fingerprint_of(known)}
        self._source_before: dict[str, Any] | None = None
        self._model: RewardModel | None = None
        if options.learn == "reward_model":
            generator = torch.Generator().manual_seed(int(setting.rng.integers(2**31)))
            self._model = RewardModel(options.model_size, generator)

    def begin_run(self) -> None:
        """See ``Method``.

        Raises:
            NotThereError: There is no such file or folder.
        """
        if self._missing is not None:
            raise self._missing

    def pairs(self, rollout: Rollout) -> list[Pair]:
        """See ``PairMethod``."""
        pairs = self._ranked(rollout)
        sides = [((pair.prompt, pair.better), (pair.prompt, pair.worse)) for pair in pairs]
        return [Pair(prompt, better, worse) for (prompt, better), (_, worse) in self._judged(sides)]

    def learn(self, rollout: Rollout) -> dict[str, float]:
        """See ``Method``."""
        if self._args.learn == "pairs":
            return super().learn(rollout)
        if self._model is None:
            return self._learn_returns(rollout)
        return self._learn_payments(rollout, self._model)

    def begin_rollout(self) -> None:
        """See ``Method``.

        Raises:
            CheckpointError: The run was saved when its file or folder held something else, or was
                there at all. An evaluation of what was learnt from it is none the worse for that.
        """
        if self._missing is not None:
            raise self._missing
        before, self._source_before = self._source_before, None
        if before and before != self._source:
            key = "rankings" if self._args.rankings else "traces"
            own = self._source
            raise CheckpointError(
                f"method.{key}: {getattr(self._args, key)}: expected what it held when this run was"
                f" saved ({before['lines']} lines to learn from, SHA-256 {before['sha256'][:12]}),"
                f" got {own['lines']} ({own['sha256'][:12]}): put that back, or begin anew in"
                " another run.output_dir"
            )

    def state(self) -> dict[str, Any]:
        """See ``Method``: what the file or the folder held."""
        return {"source": self._source} if self._source else {}

    def restore(self, state: dict[str, Any]) -> None:
        """See ``Method``."""
        self._source_before = state.get("source")

    def tensors(self) -> dict[str, Tensor]:
        """See ``Method``."""
        return {} if self._model is None else self._model.tensors()

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """See ``Method``."""
        if self._model is not None:
            self._model.load_tensors(tensors)

    def _told(self, rollout: Rollout) -> list[Told]:
        return self._recorded if self._recorded is not None else told_in(rollout)

    def _ranked(self, rollout: Rollout) -> list[Pair]:
        """The file's rankings, or those of guidance by the student's advantages."""
        return self._file if self._file is not None else ranked(self._told(rollout))

    def _judged(self, pairs: Sequence[tuple[Side, Side]]) -> list[tuple[Side, Side]]:
        """The pairs as they are, or each turned by a coin."""
        if self._args.ranks == "student":
            return list(pairs)
        coins = self.setting.rng.integers(2, size=len(pairs))
        return [
            (worse, better) if coin else (better, worse)
            for (better, worse), coin in zip(pairs, coins, strict=True)
        ]

    def _learn_returns(self, rollout: Rollout) -> dict[str, float]:
        told = self._told(rollout)
        if not told:
            return {"pairs": 0.0}
        advantages = np.array([each.advantage for each in told])
        if self._args.ranks == "coin":
            advantages = self.setting.rng.permutation(advantages)
        weights = weights_of_returns(advantages, self._args.temperature)
        stats = self._teach(told, weights, "reinforce")
        return {"pairs": float(len(told)), "loss": stats["loss"]}

    def _learn_payments(self, rollout: Rollout, model: RewardModel) -> dict[str, float]:
        pairs = self._judged(self._sides(rollout))
        numbers = {"pairs": float(len(pairs))}
        if pairs:
            numbers |= model.learn(pairs, self._args.model_lr, self._args.model_epochs)
        if model.has_learnt and (told := told_in(rollout)):
            self._teach(told, normalise(payments(model, told)), "clipped")
        return numbers

    def _sides(self, rollout: Rollout) -> list[tuple[Texts, Texts]]:
        """What the reward model learns from."""
        if self._args.of == "episodes":
            return ranked_episodes(rollout)
        pairs = self._ranked(rollout)
        return [(((own.prompt, own.better),), ((own.prompt, own.worse),)) for own in pairs]

    def _teach(self, told: Sequence[Told], weights: np.ndarray, loss: str) -> dict[str, float]:
        """An update in which each text is pulled by its weight, ``(n,)``, and a note of each step
        of the first environment.
        """
        listed = self.setting.config.guidance.vocabulary != "free"
        options: dict[str, Scalar] = in_common(FeedbackOptions, self._args) | self._shuffling()
        options |= {"loss": loss, "normalise": listed}
        data = {
            "chosen": torch.tensor([each.chosen for each in told]),
            "signals": torch.from_numpy(weights),
        }
        prompts = tuple(each.prompt for each in told)
        if loss == "clipped":
            said = np.array([each.log_probs[each.chosen] for each in told], dtype=np.float64)
            if not listed:
                said = rescored(self.setting.llm, prompts, [each.text for each in told], said)
            data["old_log_probs"] = torch.from_numpy(said)
        candidates = tuple(each.candidates for each in told)
        stats = self._update("feedback", prompts, candidates, data, options)
        for each, weight in zip(told, weights, strict=True):
            if each.step is not None:
                pulled = f"pulled with weight {weight:+.3f}"
                self.notes.append(Note(each.prompt, f"said: {each.text}", pulled, each.step))
        return stats


def ranked(told: Iterable[Told]) -> list[Pair]:
    """For each prompt after which different things were said the best and the worst of them, by the
    mean of the advantages after each; a tie is no pair.
    """
    by_prompt: dict[str, dict[str, list[float]]] = {}
    for each in told:
        by_prompt.setdefault(each.prompt, {}).setdefault(each.text, []).append(each.advantage)
    pairs = []
    for prompt, by_text in by_prompt.items():
        means = {text: float(np.mean(values)) for text, values in by_text.items()}
        better, worse = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
        if means[better] > means[worse]:
            pairs.append(Pair(prompt, better, worse))
    return pairs


def weights_of_returns(advantages: np.ndarray, temperature: float) -> np.ndarray:
    """``(n,)``: exponentials of the standardised advantages, scaled to a mean of 1."""
    exponents = normalise(advantages) / temperature
    weights = np.exp(exponents - exponents.max())
    scaled: np.ndarray = weights / weights.mean()
    return scaled


def payments(model: RewardModel, told: Sequence[Told]) -> np.ndarray:
    """``(n,)``: what each text is paid above what the LLM would have been paid on average."""
    asked = {(each.prompt, text): 0.0 for each in told for text in each.candidates if text}
    with torch.inference_mode():
        paid = dict(zip(asked, model.rewards(list(asked)).tolist(), strict=True))
    found = []
    for each in told:
        own = np.array([paid.get((each.prompt, text), 0.0) for text in each.candidates])
        expected = float(np.exp(each.log_probs[: len(own)]) @ own) if len(own) > 1 else 0.0
        found.append(own[each.chosen] - expected)
    return np.array(found)


def _check(setting: MethodSetting, options: PreferencesOptions) -> None:
    """Combinations that mean nothing.

    Raises:
        ConfigError: All of them.
    """
    problems = []
    offline = bool(options.rankings or options.traces)
    if not setting.llm_speaks and (not offline or options.learn == "reward_model"):
        problems.append("method: preferences needs an LLM that guides in words, or rankings")
    if options.rankings and options.traces:
        problems.append("method.rankings, method.traces: one of them")
    if options.rankings and options.learn == "returns":
        problems.append("method.rankings: rankings have no returns (method.learn=returns)")
    if options.of == "episodes" and (options.learn != "reward_model" or offline):
        problems.append(
            "method.of=episodes: needs method.learn=reward_model and this run's own episodes"
        )
    usual = PreferencesOptions()
    for name, learns in USED_BY.items():
        if options.learn not in learns and getattr(options, name) != getattr(usual, name):
            problems.append(
                f"method.{name}: is of method.learn={' and '.join(learns)}, which is"
                f" {options.learn} here"
            )
    if options.kl_coef and setting.config.guidance.vocabulary == "free":
        problems.append("method.kl_coef: free guidance has no distribution to stay close to")
    if problems:
        raise ConfigError(problems)
