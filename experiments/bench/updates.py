"""PPO updates of the paper's rollout, against Lamorel's way."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from experiments.bench.harness import (
    Contender,
    Detail,
    Row,
    Seconds,
    make_row,
    rates,
    ratios,
    rounded,
    take_turns,
    warm,
)
from experiments.bench.operations import MultiplyLimit, StepLimit, work_of
from experiments.bench.peers.lamorel_way import Answer, LamorelPpo, LamorelScorer
from experiments.bench.subjects import LOCAL_LEVEL, PAPER_LEVEL, Subjects
from experiments.bench.workloads import (
    distinct_calls,
    ppo_data,
    rollout_calls,
    same_candidates,
)
from lamorel_ext.lamorel.model import LamorelModel
from lamorel_ext.lamorel.optimisers import fused_adam
from lamorel_ext.lamorel.settings import LlmSettings
from lamorel_ext.llm.module_functions import LogScores
from lamorel_ext.llm.updaters import PPOUpdater
from lamorel_ext.prompts import ACTION_NAMES
from lamorel_ext.types import Scalar, UpdateRequest


def update_64(subjects: Subjects) -> list[Row]:
    """One epoch in minibatches of 64 transitions: over a rollout, and over distinct prompts."""
    setting = subjects.setting
    every = distinct_calls(subjects.make_env(LOCAL_LEVEL), setting.distinct_calls, setting.num_envs)
    distinct = [prompt for call in every for prompt in call]
    num_minibatches = setting.update_minibatches[0]
    return [
        _update_row(subjects, "update_64", rollout_prompts(subjects), 64, num_minibatches, bar=2.2),
        _update_row(subjects, "update_64_distinct", distinct, 64, 1, bar=6.0),
    ]


def update_320(subjects: Subjects) -> list[Row]:
    """One epoch over a rollout in minibatches of 320 transitions."""
    num_minibatches = subjects.setting.update_minibatches[1]
    return [
        _update_row(
            subjects, "update_320", rollout_prompts(subjects), 320, num_minibatches, bar=5.0
        )
    ]


def update_script(subjects: Subjects) -> list[Row]:
    """Lamorel's PPO example, the same updater on Lamorel's way and on our module for Lamorel's
    scripts.

    Both have a minibatch of 8 transitions with gradients of 4 at a time, one process, plain
    ``torch.optim.Adam``; what is timed is ``perform_update`` alone.
    """
    subjects = Subjects(subjects.setting, subjects.num_threads)
    prompts = rollout_prompts(subjects)
    sample = Transitions(tuple(prompts), ppo_data(len(prompts), seed=0)).sample(8)
    ways: dict[str, LamorelPpo] = {
        "lamorel": LamorelPpo(subjects.lamorel, gradient_batch_size=4),
        "ours": LamorelPpo(_ScriptScorer(subjects), gradient_batch_size=4),
    }

    def epoch(name: str) -> None:
        with fused_adam() if name == "ours" else nullcontext():
            ways[name].update(sample.prompts, sample.candidates, sample.data)

    contenders = {name: Contender(partial(epoch, name)) for name in ways}
    seconds = take_turns(
        contenders | {"needed": _needed(subjects, sample, 4, 1)}, subjects.setting.repetitions
    )
    detail: dict[str, Detail] = {"transitions": 8, "distinct_prompts": len(set(sample.prompts))}
    most, in_the_way = _most(seconds)
    detail |= most | rates(8, "transitions", seconds)
    values = ratios(seconds["lamorel"], seconds["ours"])
    return [make_row("update_script", values, 3.0, "x", "higher", detail, in_the_way)]


class _ScriptScorer(LamorelScorer):
    """Asks the module that an updater of Lamorel's gets here."""

    def __init__(self, subjects: Subjects) -> None:
        model, head = subjects.host.model, subjects.host.module_functions["value"]
        super().__init__(model, subjects.tokenizer, head)
        settings = LlmSettings("", "0.2", subjects.llm_args, range(1))
        self.module = LamorelModel(model, subjects.tokenizer, settings)
        self.module.register_module_functions({"score": LogScores(), "value": head})

    def forward(
        self,
        prompts: Sequence[str],
        candidates: Sequence[Sequence[str]],
        with_value: bool = True,
        require_grad: bool = False,
        minibatch_size: int | None = None,
    ) -> list[Answer]:
        """See ``LamorelScorer``."""
        keys = ["score", "value"] if with_value else ["score"]
        answers: list[Answer] = self.module(keys, prompts, candidates, require_grad, minibatch_size)
        return answers


def rollout_prompts(subjects: Subjects) -> list[str]:
    """Prompts of a rollout of the paper's task."""
    env = subjects.make_env(PAPER_LEVEL)
    return [p for call in rollout_calls(env, subjects.setting.num_steps) for p in call]


def _update_row(
    shared: Subjects,
    name: str,
    prompts: list[str],
    minibatch_size: int,
    num_minibatches: int,
    bar: float,
) -> Row:
    # Updates change weights, so they get subjects of their own.
    subjects = Subjects(shared.setting, shared.num_threads)
    setting = subjects.setting
    transitions = Transitions(tuple(prompts), ppo_data(len(prompts), seed=0))
    minibatch_size = min(minibatch_size, len(prompts) // num_minibatches)
    steps = len(prompts) / minibatch_size
    ours = transitions.sample(num_minibatches * minibatch_size)
    theirs = transitions.sample(setting.lamorel_transitions)
    updater = PPOUpdater()
    updater.set_llm_module(subjects.host)
    lamorel = LamorelPpo(subjects.lamorel)
    seconds = take_turns(
        {
            "lamorel": Contender(
                lambda: _lamorel_epoch(lamorel, theirs, len(prompts), steps),
                warm_up=lambda: _lamorel_epoch(lamorel, theirs.sample(2), 2, 1),
            ),
            "ours": Contender(
                lambda: updater.update(ours.request(minibatch_size)),
                scale=steps / num_minibatches,
                warm_up=lambda: updater.update(
                    ours.sample(min(8, minibatch_size)).request(minibatch_size)
                ),
            ),
            "needed": _needed(
                subjects, ours, minibatch_size, num_minibatches, steps / num_minibatches
            ),
        },
        setting.repetitions,
    )
    detail: dict[str, Detail] = {
        "transitions": len(prompts),
        "distinct_prompts": len(set(prompts)),
        "minibatch_size": minibatch_size,
        "lamorel_sample": (
            f"gradients of {len(theirs.prompts)} transitions one by one, and one step of Adam,"
            f" scaled to {len(prompts)} and {steps:g}"
        ),
        "our_sample": (
            f"{num_minibatches} of {steps:g} minibatches, drawn at random"
            + (", scaled" if num_minibatches < steps else "")
        ),
    }
    most, in_the_way = _most(seconds)
    detail |= most | rates(len(prompts), "transitions", seconds)
    values = ratios(seconds["lamorel"], seconds["ours"])
    return make_row(name, values, bar, "x", "higher", detail, in_the_way)


def _needed(
    subjects: Subjects, sample: Transitions, gradients_of: int, steps: int, scale: float = 1.0
) -> Contender:
    """What any exact way of computing an epoch has to do: the products of matrices for gradients,
    each distinct prompt once in ``gradients_of`` transitions, and the optimiser's steps.
    """
    tokenizer, shape = subjects.tokenizer, subjects.setting.shape
    parts = [
        work_of(tokenizer, sample.prompts[i : i + gradients_of], ACTION_NAMES)
        for i in range(0, len(sample.prompts), gradients_of)
    ]
    products = MultiplyLimit.of(shape, parts[0], with_gradients=True)
    share = sum(map(products.needed, parts)) / products.operations
    optimiser = StepLimit(sum(p.numel() for p in subjects.host.model.parameters()))

    def run() -> Seconds:
        seconds = products.run().value * share
        return Seconds(seconds + optimiser.run(steps, len(parts)).value)

    return Contender(run, scale=scale, warm_up=warm)


def _most(seconds: dict[str, list[float]]) -> tuple[dict[str, Detail], str]:
    """What the ratio to Lamorel's way would be if nothing but what is needed took time; and that in
    words.
    """
    most = statistics.median(ratios(seconds["lamorel"], needed := seconds.pop("needed")))
    share = statistics.median(ratios(needed, seconds["ours"]))
    in_the_way = (
        f"the products of matrices that any exact gradient needs, and the steps of Adam, are"
        f" {share:.0%} of our time: with nothing else it would be {most:.3g} x"
    )
    return {"needed_alone_x": rounded(most), "needed_share": rounded(share)}, in_the_way


@dataclass(frozen=True)
class Transitions:
    """What a PPO update learns from: prompts, the six actions as candidates, and data ``(n,)``
    each.
    """

    prompts: tuple[str, ...]
    data: dict[str, Tensor]

    @cached_property
    def candidates(self) -> tuple[tuple[str, ...], ...]:
        return same_candidates(self.prompts)

    def sample(self, count: int, seed: int = 0) -> Transitions:
        """Drawn at random without replacement: prompts repeat in it as often as they would in a
        minibatch of that size.
        """
        places = torch.randperm(len(self.prompts), generator=torch.Generator().manual_seed(seed))[
            :count
        ]
        return Transitions(
            tuple(self.prompts[place] for place in places.tolist()),
            {key: values[places] for key, values in self.data.items()},
        )

    def request(self, minibatch_size: int) -> UpdateRequest:
        """One epoch of PPO over all of them."""
        n = len(self.prompts)
        options: dict[str, Scalar] = {"epochs": 1, "minibatch_size": minibatch_size}
        return UpdateRequest(
            "ppo", self.prompts, self.candidates, torch.arange(n), n, self.data, options
        )


def _lamorel_epoch(
    lamorel: LamorelPpo, transitions: Transitions, num_transitions: int, num_steps: float
) -> Seconds:
    """Gradients of a sample and one step of the optimiser, scaled apart: their numbers in an epoch
    differ.
    """
    lamorel.gradient_seconds = lamorel.step_seconds = 0.0
    n = len(transitions.prompts)
    lamorel.update(transitions.prompts, transitions.candidates, transitions.data)
    return Seconds(
        lamorel.gradient_seconds * num_transitions / n + lamorel.step_seconds * num_steps
    )
