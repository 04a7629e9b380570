"""What the student's advantages say to the teacher: the sign (or weight) f_t of every signal
(docs/method.md; Gu 2024, Algorithm 1).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lamorel_ext.config import ONLINE_SIGNALS, FeedbackArgs
from lamorel_ext.errors import CheckpointError
from lamorel_ext.rl import normalise


class FeedbackSignals:
    """Computes f_t step by step or for a whole rollout, and remembers what its rule needs.

    ``previous`` remembers the last advantage of each environment's episode, ``state`` the running
    mean of the advantages met at each prompt. During the warm-up there is no signal, and nothing is
    remembered: what an untrained critic says is no measure for later.

    Args:
        args: Names the signal, and what is done to its sign; ``ties`` and ``warmup_steps`` refine
            it.
        num_envs: Environments whose memories are kept apart.
        rng: Stream of its own for the random and the shuffled sign.
    """

    def __init__(self, args: FeedbackArgs, num_envs: int, rng: np.random.Generator) -> None:
        self.signal = args.signal
        self.sign = args.sign
        self._tie = 1.0 if args.ties == "positive" else 0.0
        self._rng = rng
        self._warmup = args.warmup_steps
        self._silent = False
        self._previous = np.full(num_envs, np.nan)
        self._means: dict[str, tuple[int, float]] = {}

    @property
    def online(self) -> bool:
        """True where f_t is known as soon as the step is over."""
        return self.signal in ONLINE_SIGNALS

    def warm_up(self, num_steps: int) -> int:
        """Let ``num_steps`` steps of all environments pass; gives how many of them, the first ones,
        are still part of the warm-up.
        """
        cold = min(num_steps, math.ceil(self._warmup / len(self._previous)))
        self._warmup = max(0, self._warmup - cold * len(self._previous))
        return cold

    def step(
        self,
        errors: np.ndarray,
        prompts: Sequence[str],
        done: np.ndarray,
        envs: np.ndarray | None = None,
    ) -> np.ndarray:
        """f_t of one step, for signals that are ``online``; zeros in a copy that was made during
        the warm-up (see ``fork``).

        Args:
            errors: ``(n,)``, TD errors A'_t.
            prompts: ``n`` prompts of the states acted in, without feedback sentences.
            done: ``(n,)`` bool, True where the episode ended with this step.
            envs: ``(n,)`` int, which environments these are; None means all of them.

        Returns:
            ``(n,)`` float64.
        """
        if self._silent:
            return np.zeros(len(errors))
        who = np.arange(len(self._previous)) if envs is None else envs
        return self._signed(self._own_step(errors, prompts, done, who))

    def rollout(
        self,
        errors: np.ndarray,
        advantages: np.ndarray,
        prompts: Sequence[Sequence[str]],
        done: np.ndarray,
    ) -> np.ndarray:
        """f_t of a whole rollout, for every signal.

        It is what ``step`` would have given where that is possible, but for the shuffled sign,
        which is permuted over the whole rollout here.

        Args:
            errors: ``(num_steps, num_envs)``, TD errors.
            advantages: ``(num_steps, num_envs)``, generalised advantages, not normalised.
            prompts: ``num_steps`` sequences of ``num_envs`` prompts.
            done: ``(num_steps, num_envs)`` bool.

        Returns:
            ``(num_steps, num_envs)`` float64.
        """
        if self.signal == "gae":
            f = np.sign(advantages)
        elif self.signal == "weighted":
            f = normalise(advantages)
        else:
            who = np.arange(len(self._previous))
            f = np.stack(
                [self._own_step(errors[t], prompts[t], done[t], who) for t in range(len(errors))]
            )
        if self.sign == "shuffled":
            return self._rng.permutation(f.ravel()).reshape(f.shape)
        # Row by row, so that a coin is drawn as in ``step``.
        return np.stack([self._signed(row) for row in f])

    def draw_seed(self) -> int:
        """Of an update's minibatches."""
        return int(self._rng.integers(2**31))

    def forget_episodes(self) -> None:
        """Every environment begins an episode: the last advantages belong to others."""
        self._previous[:] = np.nan

    def fork(self, num_envs: int, rng: np.random.Generator) -> FeedbackSignals:
        """A copy for other environments: the prompts' means are taken along, the environments' last
        advantages are not.

        A copy made during the warm-up gives no feedback at all.
        """
        other = copy.copy(self)
        other._silent = self._warmup > 0
        other._rng, other._means = rng, dict(self._means)
        other._previous = np.full(num_envs, np.nan)
        return other

    def state(self) -> dict[str, Any]:
        """What is remembered, as JSON can hold it. The random stream is saved by its owner."""
        previous = [None if np.isnan(value) else float(value) for value in self._previous]
        means = {prompt: list(mean) for prompt, mean in self._means.items()}
        return {"previous": previous, "means": means, "warmup": self._warmup}

    def restore(self, state: dict[str, Any]) -> None:
        """Come back to a saved state.

        Raises:
            CheckpointError: ``state`` is of another number of environments, or not what ``state()``
                gives.
        """
        try:
            previous = np.array(
                [np.nan if value is None else value for value in state["previous"]],
                dtype=np.float64,
            )
            means = {
                str(prompt): (int(count), float(mean))
                for prompt, (count, mean) in state["means"].items()
            }
            warmup = int(state.get("warmup", 0))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"not a saved feedback memory: {error!r}") from error
        if previous.shape != self._previous.shape:
            raise CheckpointError(
                f"feedback memory of {len(previous)} environments, expected {len(self._previous)}"
            )
        self._previous, self._means, self._warmup = previous, means, warmup

    def _signed(self, f: np.ndarray) -> np.ndarray:
        """What becomes of the f ``(n,)`` of one step under ``feedback.sign``."""
        match self.sign:
            case "random":
                drawn: np.ndarray = np.abs(f) * (self._rng.integers(0, 2, size=len(f)) * 2.0 - 1.0)
                return drawn
            case "shuffled":
                return self._rng.permutation(f)
            case "inverted":
                return -f
            case "positive":
                positive: np.ndarray = np.abs(f)
                return positive
        return f

    def _own_step(
        self, errors: np.ndarray, prompts: Sequence[str], done: np.ndarray, who: np.ndarray
    ) -> np.ndarray:
        match self.signal:
            case "previous":
                return self._against_previous(errors, done, who)
            case "state":
                return np.array(
                    [
                        self._against_mean(prompt, float(error))
                        for prompt, error in zip(prompts, errors, strict=True)
                    ]
                )
            case "td":
                signs: np.ndarray = np.sign(errors)
                return signs
            case "constant":
                return np.ones(len(errors))
            case "none":
                return np.zeros(len(errors))
        raise ValueError(f"{self.signal} needs the whole rollout")

    def _against_previous(
        self, errors: np.ndarray, done: np.ndarray, who: np.ndarray
    ) -> np.ndarray:
        """-1 where A_prev > A', else +1; 0 on an episode's first step, where there is no A_prev."""
        previous = self._previous[who]
        f = np.where(previous > errors, -1.0, 1.0)
        f[previous == errors] = self._tie
        f[np.isnan(previous)] = 0.0
        self._previous[who] = np.where(done, np.nan, errors)
        return f

    def _against_mean(self, prompt: str, error: float) -> float:
        """Sign against the mean of the earlier visits; 0 on the first. Counting this visit in would
        not change the sign.
        """
        count, mean = self._means.get(prompt, (0, error))
        self._means[prompt] = (count + 1, mean + (error - mean) / (count + 1))
        return float(np.sign(error - mean))
