"""Scoring against another runtime, onnxruntime, which multiplies in int8."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from importlib.metadata import version

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
    seconds_of,
    take_turns,
    warm,
)
from experiments.bench.operations import work_of
from experiments.bench.peers.onnx_t5 import make_scorers
from experiments.bench.subjects import DEVICE, LOCAL_LEVEL, Subjects
from experiments.bench.workloads import distinct_calls, same_candidates
from lamorel_ext.config import LlmArgs
from lamorel_ext.llm.host import ModelHost
from lamorel_ext.llm.loading import fitting_dtype, load_host
from lamorel_ext.prompts import ACTION_NAMES

HISTORY = 3
BAR = 1.0


def variations(args: LlmArgs) -> dict[str, LlmArgs]:
    """Our contenders by name; the first is what the errors of all are measured against."""
    return {
        "ours_float32": replace(args, dtype="float32"),
        "ours_bfloat16": replace(args, dtype="bfloat16"),
        "ours_int8": replace(args, dtype="float32", quantize="int8"),
    }


def score_two_onnx(subjects: Subjects) -> list[Row]:
    """Two candidates after long all-distinct prompts, three observations of GoToLocal, against
    onnxruntime in int8: ours in bfloat16 where ``dtype: auto`` takes it, else in float32.
    """
    ours = variations(subjects.llm_args)
    judged = f"ours_{fitting_dtype(subjects.setting.shape.to_config(), DEVICE)}"
    if judged != "ours_bfloat16":
        del ours["ours_bfloat16"]  # without instructions for it, it would take minutes
    return [onnx_row(subjects, ours, judged)]


def onnx_row(subjects: Subjects, ours: Mapping[str, LlmArgs], judged: str) -> Row:
    """The measurement itself, on any CPU.

    Args:
        subjects: What is measured.
        ours: Our contenders by name, the exact one first.
        judged: The one whose ratio to onnxruntime in int8 is the row's value.
    """
    setting = subjects.setting
    env = subjects.make_env(LOCAL_LEVEL)
    (prompts,) = distinct_calls(env, 1, setting.num_envs, history=HISTORY)
    two = same_candidates(prompts, ACTION_NAMES[:2])
    try:
        whole, small = make_scorers(subjects.plain_model, subjects.tokenizer, subjects.num_threads)
    except ImportError as error:
        reason = f"onnxruntime and onnx are not installed (pip install -e '.[bench]'): {error}"
        return missing_row("score_two_onnx", BAR, "x", reason)
    hosts = {name: load_host(args, DEVICE) for name, args in ours.items()}

    def score(host: ModelHost) -> Tensor:
        return host.score(prompts, two).log_probs

    scores = {name: score(host) for name, host in hosts.items()}
    scores |= {"onnx_float32": whole.score(prompts, two), "onnx_int8": small.score(prompts, two)}
    contenders = {"onnx_int8": Contender(lambda: small.score(prompts, two), warm_up=warm)}
    for name, host in hosts.items():
        contenders[name] = Contender(partial(score, host), host.forget, warm_up=warm)
    seconds = take_turns(contenders, setting.repetitions)
    races = {name: ratios(seconds["onnx_int8"], seconds[name]) for name in hosts}
    # For the record, not for a ratio: once.
    seconds["onnx_float32"] = [seconds_of(lambda: whole.score(prompts, two))]

    tokens = sum(work.prompt_tokens for work in work_of(subjects.tokenizer, prompts, two[0]))
    detail: dict[str, Detail] = {
        "judged": judged,
        "prompts": len(prompts),
        "tokens_per_prompt": rounded(tokens / len(prompts)),
        "onnxruntime": version("onnxruntime"),
    }
    detail |= {f"{name}_x": rounded(statistics.median(turns)) for name, turns in races.items()}
    detail |= _errors(scores) | rates(len(prompts), "prompts", seconds)
    in_the_way = (
        "an instruction multiplies twice as many numbers of int8 as of bfloat16, four times as many"
        f" as of float32 (and int8 is {detail['onnx_int8_mean_error_nats']} nats off); what ours"
        " spends beside products is in score_bf16"
    )
    return make_row("score_two_onnx", races[judged], BAR, "x", "higher", detail, in_the_way)


def _errors(scores: Mapping[str, Tensor]) -> dict[str, Detail]:
    """How far the others are off the first."""
    (_, exact), *others = scores.items()
    detail: dict[str, Detail] = {}
    for name, found in others:
        off = (found - exact).abs()
        detail[f"{name}_mean_error_nats"] = rounded(float(off.mean()))
        detail[f"{name}_max_error_nats"] = rounded(float(off.max()))
    return detail
