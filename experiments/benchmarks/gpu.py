"""Scoring in bfloat16 on a GPU, where there is one."""

from __future__ import annotations

import statistics
from dataclasses import replace

import torch

from experiments.benchmarks.harness import Contender, Detail, Row, make_row, missing_row, rounded, take_turns
from experiments.benchmarks.operations import MultiplyLimit, count_operations, work_of
from experiments.benchmarks.subjects import LOCAL_LEVEL, Subjects
from experiments.benchmarks.workloads import distinct_calls, same_candidates
from lamorel_ext.models.loading import load_host
from lamorel_ext.models.module_functions import ValueHead

BAR = 20_000.0
UNIT = "prompts/s"
CHECKED = 64
"""Prompts that are compared with float32 on the CPU."""


def score_gpu(subjects: Subjects) -> list[Row]:
    """Distinct prompts of GoToLocal with six candidates and the value head, one large call, in bfloat16."""
    if not torch.cuda.is_available():
        return [missing_row("score_gpu", BAR, UNIT, "no GPU on this machine")]
    return [score_on(subjects, torch.device("cuda", 0))]


def score_on(subjects: Subjects, device: torch.device) -> Row:
    """The measurement itself, on any device. Prompts were tokenised before: tokens are remembered from call to call, answers are not."""
    setting = subjects.setting
    calls = distinct_calls(subjects.make_env(LOCAL_LEVEL), setting.gpu_calls, setting.num_envs, template="lamorel")
    prompts = tuple(prompt for call in calls for prompt in call)
    candidates = same_candidates(prompts)
    args = replace(subjects.llm_args, dtype="bfloat16", cache_size=0, minibatch_size=len(prompts) * len(candidates[0]))
    host = load_host(args, device, {"value": ValueHead(args.value_head_hidden)})
    checked = prompts[:CHECKED]
    exact = subjects.host.score(checked, candidates[: len(checked)]).log_probs
    difference = host.score(checked, candidates[: len(checked)]).log_probs - exact
    seconds = take_turns({"ours": Contender(lambda: host.score(prompts, candidates, modules=("value",)))}, setting.repetitions)["ours"]
    works = work_of(subjects.tokenizer, prompts, candidates)
    tokens, nodes = sum(work.prompt_tokens for work in works), sum(len(work.node_depths) for work in works)
    limit = MultiplyLimit(setting.shape, tokens, nodes, device, torch.bfloat16)
    rate = limit.operations / limit.run().value
    needed = sum(count_operations(setting.shape, work) for work in works)
    detail: dict[str, Detail] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu", "dtype": "bfloat16", "prompts_per_call": len(prompts),
        "tokens_per_prompt": rounded(tokens / len(prompts)), "limit_tflop_per_s": rounded(rate / 1e12),
        "share_of_limit": rounded(needed / statistics.median(seconds) / rate),
        "rms_difference_to_float32_nats": rounded(float(difference.square().mean().sqrt())), "exact_std_nats": rounded(float(exact.std())),
    }  # fmt: skip
    return make_row("score_gpu", [len(prompts) / turn for turn in seconds], BAR, UNIT, detail=detail)
