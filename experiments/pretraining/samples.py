"""From states to training samples: spans to fill in, questions to answer, actions and subgoals to
choose.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from tokenizers import Tokenizer

from experiments.pretraining.noisy_bot import NoisyBot
from experiments.pretraining.reading import ask, ask_in_french
from experiments.pretraining.states import Episode, State
from experiments.pretraining.tokenizer import EOS_ID, FIRST_SENTINEL_ID, SENTINELS
from lamorel_ext.agents.guidance import NO_HINT, hinted_action, subgoals
from lamorel_ext.prompts import ACTION_NAMES, glam_prompt, lamorel_prompt, with_feedback

_FRENCH_SHARE, _GLAM_SHARE, _FEEDBACK_SHARE = 0.12, 0.1, 0.1
_MASKED_SHARE, _MEAN_SPAN = 0.2, 3
_LONGEST_SOURCE = 288
_GLAM_HISTORY = 3


@dataclass(frozen=True)
class Mixture:
    """What a stage of training is made of: shares of the kinds of samples, which sum to 1.

    Attributes:
        longest_text: Sentences of an observation that a question is asked about, at most.
    """

    spans: float
    question: float
    action: float
    subgoal: float
    longest_text: int = 64

    def draw_kind(self, rng: np.random.Generator) -> str:
        """``spans``, ``question``, ``action`` or ``subgoal``."""
        kinds = ("spans", "question", "action", "subgoal")
        return str(rng.choice(kinds, p=[getattr(self, kind) for kind in kinds]))


@dataclass(frozen=True)
class Sample:
    """Token ids of what is read and of what is to be said, the latter with the end-of-sequence
    token.
    """

    source: tuple[int, ...]
    target: tuple[int, ...]


def draw_samples(
    episodes: Sequence[Episode],
    bot: NoisyBot,
    tokenizer: Tokenizer,
    mixture: Mixture,
    rng: np.random.Generator,
) -> Iterator[Sample]:
    """Draw samples for ever, each from a state drawn uniformly; a source that is too long is
    dropped.
    """
    places = [(episode, t) for episode in episodes for t in range(len(episode))]
    while True:
        episode, t = places[rng.integers(len(places))]
        sample = _draw(episode, t, bot, tokenizer, mixture, rng)
        if sample is not None and len(sample.source) <= _LONGEST_SOURCE:
            yield sample


def _draw(
    episode: Episode,
    t: int,
    bot: NoisyBot,
    tokenizer: Tokenizer,
    mixture: Mixture,
    rng: np.random.Generator,
) -> Sample | None:
    kind = mixture.draw_kind(rng)
    state = episode[t]
    if kind == "spans":
        return span_corruption(_ids(tokenizer, _prompt(episode, t, rng) + _said(state, rng)), rng)
    if kind == "question":
        source, target = draw_question(_part_of(state, mixture.longest_text, rng), rng)
        return _sample(tokenizer, source, target, rng)
    action = bot.label(state, rng)
    if action is None:
        return None
    target = ACTION_NAMES[action] if kind == "action" else _subgoal(state.mission, action, rng)
    return _sample(tokenizer, _prompt(episode, t, rng), target, rng)


def span_corruption(ids: Sequence[int], rng: np.random.Generator) -> Sample:
    """Cut spans out of a text, a sentinel in place of each; the target says what was there (Raffel
    et al. 2020, section 3.1.4).

    Args:
        ids: Tokens of a text, without special tokens.
    """
    num_spans = int(np.clip(round(len(ids) * _MASKED_SHARE / _MEAN_SPAN), 1, len(SENTINELS)))
    starts = np.sort(rng.choice(len(ids), size=num_spans, replace=False))
    source: list[int] = []
    target: list[int] = []
    end = 0
    for index, start in enumerate(starts):
        begin = max(int(start), end)
        source += ids[end:begin]
        end = min(begin + int(rng.integers(1, 2 * _MEAN_SPAN)), len(ids))
        source.append(FIRST_SENTINEL_ID + index)
        target += [FIRST_SENTINEL_ID + index, *ids[begin:end]]
    return Sample((*source, *ids[end:], EOS_ID), (*target, EOS_ID))


def _prompt(episode: Episode, t: int, rng: np.random.Generator) -> str:
    """The prompt of a state in one of the forms that the environment side makes."""
    state = episode[t]
    if rng.random() < _GLAM_SHARE:
        window = episode[max(0, t + 1 - int(rng.integers(1, _GLAM_HISTORY + 1))) : t + 1]
        prompt = glam_prompt(
            state.mission,
            [each.english for each in window],
            [ACTION_NAMES[each.action] for each in window[:-1]],
        )
    else:
        prompt = lamorel_prompt(
            state.mission, state.french if rng.random() < _FRENCH_SHARE else state.english
        )
    return (
        with_feedback(prompt, rng.choice((-1.0, 1.0))) if rng.random() < _FEEDBACK_SHARE else prompt
    )


def _said(state: State, rng: np.random.Generator) -> str:
    """Something that may stand after ``Action:``, for texts to fill spans in; it says nothing about
    what is right.
    """
    texts = (*ACTION_NAMES, *subgoals(state.mission))
    return " " + texts[rng.integers(len(texts))]


def draw_question(state: State, rng: np.random.Generator) -> tuple[str, str]:
    """Prompt and answer of a question about a state, mostly in English."""
    if rng.random() < _FRENCH_SHARE:
        sentences, (question, answer) = state.french, ask_in_french(state, rng)
    else:
        sentences, (question, answer) = state.english, ask(state, rng)
    head = lamorel_prompt(state.mission, sentences).removesuffix("Action:")
    return f"{head}Question: {question}\nAnswer:", answer


def _part_of(state: State, longest: int, rng: np.random.Generator) -> State:
    """Some of the sentences, in their order: short texts are where a small model starts to read."""
    size = int(rng.integers(0, min(longest, len(state.english)) + 1))
    kept = np.sort(rng.choice(len(state.english), size=size, replace=False))
    return replace(
        state,
        english=tuple(state.english[i] for i in kept),
        french=tuple(state.french[i] for i in kept),
    )


def _subgoal(mission: str, action: int, rng: np.random.Generator) -> str:
    """A sentence that asks for the action; those that name none go with turning."""
    hints = {text: hinted_action(text) for text in subgoals(mission)}
    fitting = [
        text
        for text, hint in hints.items()
        if hint == action or (hint == NO_HINT and action in (0, 1))
    ]
    return fitting[rng.integers(len(fitting))]


def _sample(tokenizer: Tokenizer, source: str, target: str, rng: np.random.Generator) -> Sample:
    """Prompts are scored without the end-of-sequence token and generated from with it: half of the
    samples have it.
    """
    end = (EOS_ID,) if rng.random() < 0.5 else ()
    return Sample((*_ids(tokenizer, source), *end), (*_ids(tokenizer, target), EOS_ID))


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids
