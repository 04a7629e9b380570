"""Cut requests into one shard per server and put the answers together again. Pure functions.

Shards are contiguous and differ by at most one prompt. With fewer prompts than shards the last ones are empty; an empty shard of an update still
goes to its server, because the servers sum gradients together, while an empty scoring shard need not be sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from lamorel_ext.rpc.topology import split_evenly
from lamorel_ext.types import GenerateRequest, GenerateResult, ScoreRequest, ScoreResult, UpdateRequest, UpdateResult


def split_score(request: ScoreRequest, num_shards: int) -> list[ScoreRequest]:
    """One shard per server. ``candidates`` stays ``()`` where the request has none."""
    return [
        replace(request, prompts=request.prompts[part.start : part.stop], candidates=request.candidates[part.start : part.stop])
        for part in split_evenly(len(request.prompts), num_shards)
    ]


def split_generate(request: GenerateRequest, num_shards: int) -> list[GenerateRequest]:
    """One shard per server.

    A ``seed`` grows by the place of the shard's first prompt: with one seed everywhere, the same prompt in two shards would get the same text twice.
    """
    shards = []
    for part in split_evenly(len(request.prompts), num_shards):
        options, seed = request.options, request.options.get("seed")
        if isinstance(seed, int) and part.start:
            options = {**options, "seed": seed + part.start}
        shards.append(GenerateRequest(request.prompts[part.start : part.stop], options))
    return shards


def split_update(request: UpdateRequest, num_shards: int) -> list[UpdateRequest]:
    """One shard per server; ``indices`` go with their samples and ``total`` stays the size of the whole batch."""
    shards = []
    for part in split_evenly(len(request.prompts), num_shards):
        rows = slice(part.start, part.stop)
        shards.append(
            replace(
                request,
                prompts=request.prompts[rows],
                candidates=request.candidates[rows],
                indices=request.indices[rows],
                data={name: tensor[rows] for name, tensor in request.data.items()},
            )
        )
    return shards


def merge_score(answers: Sequence[ScoreResult]) -> ScoreResult:
    """The answers of all shards, in the order of the shards.

    Raises:
        ValueError: There are no answers, or they name different module functions.
    """
    _same_keys([answer.modules for answer in answers])
    if len(answers) == 1:
        return answers[0]
    return ScoreResult(
        log_probs=torch.cat([answer.log_probs for answer in answers]),
        counts=tuple(count for answer in answers for count in answer.counts),
        modules={name: torch.cat([answer.modules[name] for answer in answers]) for name in answers[0].modules},
        stats=_summed([answer.stats for answer in answers]),
    )


def merge_generate(answers: Sequence[GenerateResult]) -> GenerateResult:
    """The answers of all shards, in the order of the shards.

    Raises:
        ValueError: There are no answers.
    """
    if not answers:
        raise ValueError("there are no answers to merge")
    if len(answers) == 1:
        return answers[0]
    return GenerateResult(
        texts=tuple(texts for answer in answers for texts in answer.texts),
        tokens=torch.cat([answer.tokens for answer in answers]),
        token_log_probs=torch.cat([answer.token_log_probs for answer in answers]),
        lengths=tuple(length for answer in answers for length in answer.lengths),
        stats=_summed([answer.stats for answer in answers]),
    )


def merge_update(answers: Sequence[UpdateResult]) -> UpdateResult:
    """The first server's answer, since each one tells about the whole batch; ``seconds`` is that of the slowest.

    Raises:
        ValueError: There are no answers.
    """
    if not answers:
        raise ValueError("there are no answers to merge")
    stats = dict(answers[0].stats)
    if "seconds" in stats:
        stats["seconds"] = max(answer.stats.get("seconds", 0.0) for answer in answers)
    return UpdateResult(stats)


def _same_keys(modules: Sequence[dict[str, torch.Tensor]]) -> None:
    if not modules:
        raise ValueError("there are no answers to merge")
    names = {tuple(sorted(each)) for each in modules}
    if len(names) > 1:
        raise ValueError(f"the servers evaluated different module functions: {sorted(names)}")


def _summed(stats: Sequence[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for each in stats for name in each)
    return {name: sum(each.get(name, 0.0) for each in stats) for name in names}
