"""The figures in the embedded model's card: what its weak prior achieves before anybody has trained
it, without sampling error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from experiments.pretraining.noisy_bot import NoisyBot
from experiments.pretraining.reading import target_place
from experiments.pretraining.samples import draw_question
from experiments.pretraining.states import Episode, collect_episodes
from lamorel_ext.config import LlmArgs
from lamorel_ext.envs.babyai.enumeration import (
    MISSION,
    NUM_ACTIONS,
    ExactValue,
    evaluate_policy,
    state_table,
)
from lamorel_ext.llm.loading import load_host
from lamorel_ext.prompts import ACTION_NAMES, lamorel_prompt
from lamorel_ext.types import GenerateRequest

_UNSEEN_SEED = 100
_LONGEST_ANSWER = 20
_FIGURES = re.compile(r"```json\n(.*?)```", re.DOTALL)


def zero_shot_figures(folder: Path) -> dict[str, float]:
    """Exact figures of a saved model on GoToRedBallNoDists with Lamorel's prompt.

    Returns:
        ``success`` and ``mean_return`` when actions are sampled, ``greedy_success`` when the most
        probable one is taken, ``entropy`` of the actions in nats and ``action_mass`` (probability
        that the model says one of the six texts at all), both averaged over the distinct prompts.
    """
    table = state_table()
    prompts = [lamorel_prompt(MISSION, sentences) for sentences in table.descriptions]
    host = load_host(LlmArgs(model_path=str(folder), value_head_hidden=8), torch.device("cpu"))
    log_probs = host.score(prompts, [ACTION_NAMES] * len(prompts)).padded().double()
    probs = log_probs.softmax(dim=1).numpy()
    sampled = evaluate_policy(probs[table.texts])
    greedy = evaluate_policy(np.eye(NUM_ACTIONS)[probs.argmax(axis=1)][table.texts])
    return {
        "success": round(sampled.success, 4),
        "mean_return": round(sampled.mean_return, 4),
        "greedy_success": round(greedy.success, 4),
        "entropy": round(float(-(probs * np.log(probs)).sum(axis=1).mean()), 4),
        "action_mass": round(float(log_probs.exp().sum(dim=1).mean()), 4),
    }


def reading_figure(folder: Path, num_questions: int) -> float:
    """Share of questions about held-out states that a saved model answers word for word, by greedy
    decoding.
    """
    rng = np.random.default_rng(0)
    states = [state for episode in _unseen_episodes() for state in episode]
    pairs = [draw_question(states[rng.integers(len(states))], rng) for _ in range(num_questions)]
    host = load_host(LlmArgs(model_path=str(folder), value_head_hidden=8), torch.device("cpu"))
    request = GenerateRequest(
        tuple(question for question, _ in pairs),
        {"max_new_tokens": _LONGEST_ANSWER, "do_sample": False},
    )
    answers = [texts[0].strip() for texts in host.generate(request).texts]
    right = [answer == expected for answer, (_, expected) in zip(answers, pairs, strict=True)]
    return round(sum(right) / num_questions, 4)


def _unseen_episodes() -> list[Episode]:
    return collect_episodes(
        {"BabyAI-GoToRedBallNoDists-v0": 200, "BabyAI-GoToLocal-v0": 200}, _UNSEEN_SEED
    )


def label_value(bot: NoisyBot) -> ExactValue:
    """What a perfect learner of a noisy bot's labels would achieve on GoToRedBallNoDists: strength
    of the prior before any training.

    In each text the expert's actions are averaged over the states that look alike; where its place
    is misjudged, they are replaced.
    """
    table = state_table()
    policy = np.zeros((len(table.descriptions), NUM_ACTIONS))
    np.add.at(policy, (table.texts, table.expert), ~table.terminal)
    policy /= np.maximum(policy.sum(axis=1, keepdims=True), 1)
    for text, sentences in enumerate(table.descriptions):
        action = bot.misjudged.get(target_place(MISSION, sentences))
        if action is not None:
            policy[text] = np.eye(NUM_ACTIONS)[action]
    # Texts of ends alone: no action is taken there.
    policy[policy.sum(axis=1) == 0] = 1 / NUM_ACTIONS
    return evaluate_policy((bot.trust * policy + (1 - bot.trust) / NUM_ACTIONS)[table.texts])


def card_figures(card: str) -> dict[str, float]:
    """The figures in a model card: its only block of JSON.

    Raises:
        ValueError: There is no such block.
    """
    match = _FIGURES.search(card)
    if match is None:
        raise ValueError("the model card has no block of JSON with figures")
    figures: dict[str, float] = json.loads(match[1])
    return figures


def differences(
    measured: Mapping[str, float], written: Mapping[str, float], tolerance: float
) -> list[str]:
    """One line per figure that is missing on one side or further apart than ``tolerance``."""
    lines = []
    for name in sorted({*measured, *written}):
        if name not in measured or name not in written:
            lines.append(f"{name}: only {'in the card' if name in written else 'measured'}")
        elif abs(measured[name] - written[name]) > tolerance:
            lines.append(f"{name}: measured {measured[name]}, the card says {written[name]}")
    return lines
