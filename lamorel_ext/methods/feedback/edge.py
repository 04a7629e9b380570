"""The feedback edge on the client: computes f_t, says it in words or sends it to the servers, every
k steps or per rollout.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch

from lamorel_ext.config import Config
from lamorel_ext.errors import ConfigError
from lamorel_ext.experience import Discount, Rollout, Said, Turn, join_rows
from lamorel_ext.methods.feedback.credit import Credit, Lesson, credit_chosen
from lamorel_ext.methods.feedback.options import FeedbackOptions
from lamorel_ext.methods.feedback.signals import FeedbackSignals
from lamorel_ext.options import in_common
from lamorel_ext.types import LlmClient, Scalar, UpdateRequest

UPDATE_STATS = ("loss", "log_prob", "entropy", "kl", "grad_norm")
"""Numbers of an update that are recorded; servers give them as they were before the step."""


Pending = Sequence[tuple[Said, np.ndarray]]
"""What was said at each step, with its f after credit, ``(num_envs,)``."""


class EdgeWatcher(Protocol):
    """Who is told what the edge does and has no say in it."""

    def before_update(self, pending: Pending) -> None:
        """An update of the teacher is about to go out."""

    def after_update(self, pending: Pending, stats: Mapping[str, float]) -> None:
        """It is done; ``stats`` is what the servers say of it."""

    def signalled(self, signals: np.ndarray) -> None:
        """What f was in the rollout's last steps, ``(steps, num_envs)``; all of them but those of a
        warm-up.
        """


class FeedbackEdge:
    """From the student back to the teacher.

    The signal is computed at every step where that is possible and needed (``feedback.every`` is a
    number, or the next prompt is to say it), and once per rollout otherwise. Updates go out every
    ``feedback.every`` steps, and with what is left at the end of a rollout. The first
    ``feedback.warmup_steps`` environment steps get no feedback at all.

    Where prompts tell feedback, an LLM's value of the state reached is that of the prompt without
    the sentence, which depends on this value.

    Args:
        config: Its ``feedback`` group says everything.
        llm: Receives the updates; None where nothing is sent.
        signals: Computes f_t.
        credit: Says whom f_t is given to.

    Attributes:
        watcher: Is told of updates and signals, if there is one.
    """

    def __init__(
        self,
        config: Config,
        llm: LlmClient | None,
        signals: FeedbackSignals,
        credit: Credit = credit_chosen,
    ) -> None:
        args = config.feedback
        if config.feedback_trains and llm is None:
            raise ConfigError(f"feedback.signal: {args.signal} needs an LLM server")
        self.active = args.signal != "none"
        self.speaks = self.active and args.channel != "loss"
        self.trains = config.feedback_trains
        self.every = args.every if isinstance(args.every, int) else 0
        self.online = self.speaks or (self.active and self.every > 0)
        if self.online and not signals.online:
            raise ConfigError(
                f"feedback.signal: {args.signal} needs the whole rollout, feedback.channel and"
                " feedback.every need it at once"
            )
        self.signals = signals
        self.watcher: EdgeWatcher | None = None
        self._llm = llm
        self._credit = credit
        self._options = _options(config)
        self._minibatches = config.feedback.minibatch_size > 0
        self._baseline = config.feedback.baseline
        self._pending: list[list[Lesson]] = []
        self._seen: list[np.ndarray] = []
        self._stats: list[Mapping[str, float]] = []

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the numbers that ``after_rollout`` gives."""
        if not self.active:
            return ()
        return ("f_positive", "f_zero", *(UPDATE_STATS if self.trains else ()))

    def after_step(self, turn: Turn, discount: Discount) -> np.ndarray | None:
        """Hear of a step; update the teacher if it is time.

        Returns:
            What the next prompts are to say, ``(num_envs,)``, or None. The first prompt of an
            episode says nothing.
        """
        if not self.online or self.signals.warm_up(1):
            return None
        done = turn.step.done
        f = self.signals.step(turn.errors(discount), turn.prompts, done)
        self._seen.append(f)
        if self.trains and turn.decision.said is not None:
            self._pending.append(self._credit(turn.decision, turn.decision.said, f))
            if len(self._pending) == self.every:
                self._send()
        return np.where(done, 0.0, f) if self.speaks else None

    def after_rollout(self, rollout: Rollout) -> dict[str, float]:
        """Send what has not been sent.

        Returns:
            Shares of f > 0 and f = 0, and means over the updates since the last call (absent where
            there was none). Steps of the warm-up do not count.
        """
        if not self.active:
            return {}
        if not self.online:
            cold = self.signals.warm_up(len(rollout.turns))
            turns = rollout.turns[cold:]
            if not turns:
                return {}
            prompts = [turn.prompts for turn in turns]
            f = self.signals.rollout(
                rollout.errors[cold:], rollout.advantages[cold:], prompts, rollout.done[cold:]
            )
            self._seen = list(f)
            if self.trains:
                decisions = [turn.decision for turn in turns]
                self._pending = [
                    self._credit(decision, decision.said, row)
                    for decision, row in zip(decisions, f, strict=True)
                    if decision.said is not None
                ]
        self._send()
        if not self._seen:
            return {}
        if self.watcher is not None:
            self.watcher.signalled(np.stack(self._seen))
        seen, stats = np.concatenate(self._seen), self._stats
        self._seen, self._stats = [], []
        numbers = {"f_positive": float(np.mean(seen > 0)), "f_zero": float(np.mean(seen == 0))}
        return numbers | {
            name: float(np.mean([row[name] for row in stats]))
            for name in UPDATE_STATS
            if stats and name in stats[0]
        }

    def _send(self) -> None:
        """One update from everything pending.

        Nothing goes out where no f pulls and no other term of the loss does.
        """
        pending, self._pending = self._pending, []
        if not pending or self._llm is None:
            return
        lessons = [lesson for step in pending for lesson in step]
        if self._baseline:
            lessons = _less_mean(lessons, _fewest(self._options))
        options = dict(self._options)
        if self._minibatches:
            options["seed"] = self.signals.draw_seed()
        request = feedback_request(lessons, options)
        pulls = (
            self._options["entropy_coef"]
            or self._options["kl_coef"]
            or bool(request.data["signals"].any())
        )
        if request.total and pulls:
            told = [(step[0].said, step[0].signals) for step in pending]
            if self.watcher is not None:
                self.watcher.before_update(told)
            stats = self._llm.update_batch(request).stats
            self._stats.append(stats)
            if self.watcher is not None:
                self.watcher.after_update(told, stats)


def _less_mean(lessons: list[Lesson], fewest: int) -> list[Lesson]:
    """Without the mean of the update's f; what is 0 stays 0, as it is no feedback, and what gets no
    credit or is not sent does not count.
    """
    every = np.concatenate([lesson.f for lesson in lessons])
    credited = np.concatenate([lesson.signals != 0 for lesson in lessons])
    sent = np.array([sends for lesson in lessons for sends in _sent(lesson.said, fewest)])
    told = every[sent & credited]
    mean = float(told.mean()) if len(told) else 0.0
    return [
        dataclasses.replace(lesson, f=np.where(lesson.f != 0, lesson.f - mean, 0.0))
        for lesson in lessons
    ]


def _fewest(options: Mapping[str, Scalar]) -> int:
    """Texts that there must have been to choose from, for the chosen one to have a probability that
    can change.
    """
    return 2 if options.get("normalise", FeedbackOptions.normalise) else 1


def _sent(said: Said, fewest: int) -> list[bool]:
    """Whether each prompt's text can be taught: an empty one has no probability to change."""
    return [
        bool(texts[choice]) and len(texts) >= fewest
        for texts, choice in zip(said.candidates, said.chosen, strict=True)
    ]


def feedback_request(lessons: Sequence[Lesson], options: dict[str, Scalar]) -> UpdateRequest:
    """The update that teaches what was said.

    Args:
        lessons: Empty texts are left out: they have no probability to change; nor has the only text
            of a state that lists no other.
        options: Of the server's feedback updater.
    """
    prompts = [prompt for lesson in lessons for prompt in lesson.said.prompts]
    candidates = [texts for lesson in lessons for texts in lesson.said.candidates]
    chosen = np.concatenate([lesson.said.chosen for lesson in lessons])
    signals = np.concatenate([lesson.signals for lesson in lessons])
    log_probs = np.concatenate([lesson.old_log_probs for lesson in lessons])
    likelihoods = [lesson.likelihoods for lesson in lessons if lesson.likelihoods is not None]
    sent = [sends for lesson in lessons for sends in _sent(lesson.said, _fewest(options))]
    kept = np.flatnonzero(sent).tolist()
    return UpdateRequest(
        updater="feedback",
        prompts=tuple(prompts[i] for i in kept),
        candidates=tuple(candidates[i] for i in kept),
        indices=torch.arange(len(kept)),
        total=len(kept),
        data={
            "chosen": torch.from_numpy(chosen[kept]),
            "signals": torch.from_numpy(signals[kept]),
            "old_log_probs": torch.from_numpy(log_probs[kept]),
            **(
                {"likelihoods": torch.from_numpy(join_rows(likelihoods, missing=0.0)[kept])}
                if likelihoods
                else {}
            ),
        },
        options=dict(options),
    )


def _options(config: Config) -> dict[str, Scalar]:
    args = config.feedback
    return in_common(FeedbackOptions, args) | {
        "lr": args.lr if args.every == "rollout" else args.lr_online,
        "posterior": args.credit == "posterior",
        "normalise": config.guidance.vocabulary != "free",
    }
