"""Scoring: a rollout as it comes, all-distinct prompts, two candidates, many candidates; and the
share of the machine's limit, in bfloat16 too.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from experiments.bench.harness import (
    Contender,
    Detail,
    Row,
    make_row,
    missing_row,
    rates,
    ratios,
    rounded,
    take_turns,
    warm,
)
from experiments.bench.operations import MultiplyLimit, count_operations, work_of
from experiments.bench.peers.plain import score_pairs
from experiments.bench.subjects import DEVICE, LOCAL_LEVEL, PAPER_LEVEL, Subjects
from experiments.bench.workloads import (
    SUBGOALS,
    Calls,
    cut,
    distinct_calls,
    rollout_calls,
    same_candidates,
    spaced,
)
from lamorel_ext.llm.loading import fitting_dtype, load_host
from lamorel_ext.prompts import ACTION_NAMES

HISTORIES = (1, 3)
BFLOAT16_BAR = 0.85
Measured = tuple[list[float], dict[str, Detail]]
"""The value of each turn, and what else was seen."""


def score_rollout(subjects: Subjects) -> list[Row]:
    """A rollout of the paper's task with scores and values, weights unchanged on the way, against
    Lamorel's way.
    """
    setting = subjects.setting
    calls = rollout_calls(subjects.make_env(PAPER_LEVEL), setting.num_steps)
    sample = spaced(calls, setting.lamorel_calls)
    difference = _difference(_ours(subjects, sample[0]), _lamorels(subjects, sample[0]))
    seconds = take_turns(
        {
            "lamorel": Contender(
                lambda: [_lamorels(subjects, call, True) for call in sample],
                scale=len(calls) / len(sample),
                warm_up=warm,
            ),
            "ours": Contender(
                lambda: [_ours(subjects, call, ("value",)) for call in calls],
                prepare=subjects.host.weights_changed,
                warm_up=warm,
            ),
        },
        setting.repetitions,
    )
    prompts = [prompt for call in calls for prompt in call]
    detail: dict[str, Detail] = {
        "prompts": len(prompts),
        "distinct_prompts": len(set(prompts)),
        "lamorel_sample": f"{len(sample)} of {len(calls)} calls, scaled",
    }
    detail |= difference | rates(len(prompts), "prompts", seconds)
    return [
        make_row(
            "score_rollout", ratios(seconds["lamorel"], seconds["ours"]), 8.0, "x", detail=detail
        )
    ]


def score_distinct(subjects: Subjects) -> list[Row]:
    """All-distinct prompts of GoToLocal against Lamorel's way and against the multiply limit, with
    one and with three observations.

    Each row's value is that of the worse history; its details have both.
    """
    speeds, shares = zip(*(_distinct(subjects, history) for history in HISTORIES), strict=True)
    return [
        _worse("score_distinct", 2.5, "x", speeds),
        _worse("score_limit", 0.6, "share", shares),
    ]


def _worse(name: str, bar: float, unit: str, measured: Sequence[Measured]) -> Row:
    both = dict(zip(HISTORIES, measured, strict=True))
    detail: dict[str, Detail] = {
        f"history_{history}": rounded(statistics.median(turns))
        for history, (turns, _) in both.items()
    }
    for history, (_, own) in both.items():
        detail |= {f"history_{history}_{key}": value for key, value in own.items()}
    worse = min((turns for turns, _ in measured), key=statistics.median)
    return make_row(name, worse, bar, unit, detail=detail)


def _distinct(subjects: Subjects, history: int) -> tuple[Measured, Measured]:
    """The ratio to Lamorel's way, and the share of the limit."""
    setting = subjects.setting
    calls = distinct_calls(
        subjects.make_env(LOCAL_LEVEL), setting.distinct_calls, setting.num_envs, history=history
    )
    prompts = [prompt for call in calls for prompt in call]
    sample = cut(prompts[: setting.lamorel_distinct], setting.num_envs)
    share_of_work = sum(map(len, sample)) / len(prompts)
    limit, needed, tokens = _limit(subjects, calls)
    difference = _difference(_ours(subjects, sample[0]), _lamorels(subjects, sample[0]))
    seconds = take_turns(
        {
            "lamorel": Contender(
                lambda: [_lamorels(subjects, call) for call in sample],
                scale=1 / share_of_work,
                warm_up=warm,
            ),
            "ours": Contender(
                lambda: [_ours(subjects, call) for call in calls],
                prepare=subjects.host.weights_changed,
                warm_up=warm,
            ),
            "limit": Contender(limit.run),
        },
        setting.repetitions,
    )
    most = [limit.operations / turn for turn in seconds.pop("limit")]
    shares = [needed / ours / rate for ours, rate in zip(seconds["ours"], most, strict=True)]
    speed: dict[str, Detail] = {
        "lamorel_sample": f"{sum(map(len, sample))} of {len(prompts)} prompts, scaled"
    }
    speed |= difference | rates(len(prompts), "prompts", seconds)
    share: dict[str, Detail] = {
        "tokens_per_prompt": rounded(tokens / len(prompts)),
        "gflop_per_prompt": rounded(needed / len(prompts) / 1e9),
        "limit_gflop_per_s": rounded(statistics.median(most) / 1e9),
        "limit_prompts_per_s": rounded(statistics.median(most) * len(prompts) / needed),
    }
    return (ratios(seconds["lamorel"], seconds["ours"]), speed), (shares, share)


def _limit(
    subjects: Subjects, calls: Calls, dtype: torch.dtype = torch.float32
) -> tuple[MultiplyLimit, float, int]:
    """The products of one of the calls, the operations that all need, and all their tokens."""
    shape, prompts = subjects.setting.shape, [prompt for call in calls for prompt in call]
    works = work_of(subjects.tokenizer, prompts, ACTION_NAMES)
    limit = MultiplyLimit.of(shape, works, len(calls), dtype=dtype)
    return limit, limit.needed(works), sum(work.prompt_tokens for work in works)


def score_bf16(subjects: Subjects) -> list[Row]:
    """All-distinct prompts of GoToLocal in bfloat16: the share of the CPU's own products in
    bfloat16, and how far the scores are off float32's; where ``dtype: auto`` takes it.
    """
    if fitting_dtype(subjects.setting.shape.to_config(), DEVICE) == "bfloat16":
        return [bfloat16_row(subjects)]
    reason = "dtype: auto takes float32: no instructions for bfloat16, or too narrow a model"
    return [missing_row("score_bf16", BFLOAT16_BAR, "share", reason)]


def bfloat16_row(subjects: Subjects) -> Row:
    """The measurement itself, on any CPU."""
    setting = subjects.setting
    env = subjects.make_env(LOCAL_LEVEL)
    calls = distinct_calls(env, setting.distinct_calls, setting.num_envs)
    host = load_host(replace(subjects.llm_args, dtype="bfloat16"), DEVICE)
    limit, needed, tokens = _limit(subjects, calls, torch.bfloat16)

    def ours() -> Tensor:
        return torch.cat([host.score(call, same_candidates(call)).log_probs for call in calls])

    difference = _difference(ours(), torch.cat([_ours(subjects, call) for call in calls]))
    seconds = take_turns(
        {
            "ours": Contender(ours, prepare=host.weights_changed, warm_up=warm),
            "limit": Contender(limit.run),
        },
        setting.repetitions,
    )
    most = [limit.operations / turn for turn in seconds.pop("limit")]
    shares = [needed / turn / rate for turn, rate in zip(seconds["ours"], most, strict=True)]
    prompts = sum(map(len, calls))
    detail = difference | rates(prompts, "prompts", seconds)
    detail |= {
        "tokens_per_prompt": rounded(tokens / prompts),
        "limit_gflop_per_s": rounded(statistics.median(most) / 1e9),
    }
    in_the_way = (
        f"products of matrices are {statistics.median(shares):.0%} of the time, the rest lies"
        " between them: attention, normalisations, activations and look-ups"
    )
    return make_row("score_bf16", shares, BFLOAT16_BAR, "share", "higher", detail, in_the_way)


def score_two(subjects: Subjects) -> list[Row]:
    """Two candidates, all-distinct prompts of the paper's task, against plain transformers pair by
    pair in one batch.
    """
    setting, host = subjects.setting, subjects.host
    (prompts,) = distinct_calls(
        subjects.make_env(PAPER_LEVEL), 1, setting.num_envs, template="lamorel"
    )
    two = same_candidates(prompts, ACTION_NAMES[:2])

    def plain() -> Tensor:
        return score_pairs(subjects.plain_model, subjects.tokenizer, prompts, two)

    difference = _difference(host.score(prompts, two).log_probs, plain())
    seconds = take_turns(
        {
            "plain": Contender(plain, warm_up=warm),
            "lamorel": Contender(lambda: subjects.lamorel.forward(prompts, two, with_value=False)),
            "ours": Contender(lambda: host.score(prompts, two), prepare=host.weights_changed),
        },
        setting.repetitions,
    )
    detail = difference | rates(len(prompts), "prompts", seconds)
    return [
        make_row("score_two", ratios(seconds["plain"], seconds["ours"]), 1.5, "x", detail=detail)
    ]


def score_growth(subjects: Subjects) -> list[Row]:
    """What sixty candidates that share prefixes cost over what the six actions cost."""
    setting, host = subjects.setting, subjects.host
    (prompts,) = distinct_calls(
        subjects.make_env(PAPER_LEVEL), 1, setting.num_envs, template="lamorel"
    )
    few, many = same_candidates(prompts), same_candidates(prompts, SUBGOALS)
    seconds = take_turns(
        {
            "many": Contender(lambda: host.score(prompts, many), prepare=host.weights_changed),
            "few": Contender(lambda: host.score(prompts, few), prepare=host.weights_changed),
        },
        setting.repetitions,
    )
    detail: dict[str, Detail] = {"few_candidates": len(few[0]), "many_candidates": len(many[0])}
    for name, candidates in (("few", few), ("many", many)):
        works = work_of(subjects.tokenizer, prompts, candidates[0])
        detail[f"{name}_nodes"] = len(works[0].node_depths)
        detail[f"{name}_gflop_per_prompt"] = rounded(
            sum(count_operations(setting.shape, work) for work in works) / len(works) / 1e9
        )
    detail |= rates(len(prompts), "prompts", seconds)
    return [
        make_row(
            "score_growth",
            ratios(seconds["many"], seconds["few"]),
            3.0,
            "x",
            better="lower",
            detail=detail,
        )
    ]


def _ours(subjects: Subjects, prompts: Sequence[str], modules: Sequence[str] = ()) -> Tensor:
    return subjects.host.score(prompts, same_candidates(prompts), modules=modules).log_probs


def _lamorels(subjects: Subjects, prompts: Sequence[str], with_value: bool = False) -> Tensor:
    answers = subjects.lamorel.forward(prompts, same_candidates(prompts), with_value=with_value)
    return torch.cat([answer["score"] for answer in answers])


def _difference(ours: Tensor, theirs: Tensor) -> dict[str, Detail]:
    """How far the numbers of two contenders lie apart: they are compared for speed only because
    they agree.
    """
    return {"max_difference_nats": rounded(float((ours - theirs).abs().max()))}
