"""Requests and answers of several servers. Pure functions: what a request must be like so that it
can be answered at all, requests cut into one shard per server, answers put together again.

The client checks before it sends, a server before it works. Shards are contiguous and differ by at
most one prompt. With fewer prompts than shards the last ones are empty; an empty shard of an update
still goes to its server, because the servers sum gradients together, while an empty scoring shard
need not be sent.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lamorel_ext.errors import RequestError
from lamorel_ext.rpc.topology import split_evenly
from lamorel_ext.types import (
    GenerateRequest,
    GenerateResult,
    ScoreRequest,
    ScoreResult,
    UpdateRequest,
    UpdateResult,
)

AT_ONCE = ("seconds", "queue_seconds")
"""What servers say of a time that passes on all of them."""

# --- checks ---------------------------------------------------------------------------------------


def check_score(request: ScoreRequest) -> None:
    """Raises ``RequestError`` naming the index of the first thing that is wrong."""
    _check_prompts(request.prompts)
    if request.score or request.candidates:
        _check_candidates(request.candidates, len(request.prompts))
    if not request.score and not request.modules:
        raise RequestError("nothing is asked for: score is False and modules is empty")
    _check_strings(request.modules, "modules")
    if request.known and (request.modules or not request.score):
        raise RequestError("known is for scores alone: modules is not empty, or score is False")
    for index, place in enumerate(request.known):
        if not isinstance(place, int) or not 0 <= place < len(request.prompts):
            raise RequestError(
                f"known[{index}] is {place!r:.80}, expected the place of one of"
                f" {len(request.prompts)} prompts"
            )


def check_generate(request: GenerateRequest) -> None:
    """Raises ``RequestError`` naming the index of the first thing that is wrong."""
    _check_prompts(request.prompts)
    _check_options(request.options)


def check_update(request: UpdateRequest) -> None:
    """Raises ``RequestError`` naming the key or index of the first thing that is wrong.

    A shard may be empty, a whole batch may not.
    """
    num_prompts = len(request.prompts)
    if request.total < 1:
        _check_prompts(request.prompts)
        raise RequestError(f"total is {request.total}, expected the size of the whole batch")
    if num_prompts:
        _check_prompts(request.prompts)
    _check_candidates(request.candidates, num_prompts)
    _check_indices(request.indices, num_prompts, request.total)
    for name, tensor in request.data.items():
        rows = tensor.shape[0] if tensor.dim() else "no"
        if rows != num_prompts:
            raise RequestError(
                f"data[{name!r}] has {rows} rows, expected {num_prompts}, one per prompt"
            )
    _check_options(request.options)


def _check_prompts(prompts: Sequence[str]) -> None:
    if isinstance(prompts, str):
        raise RequestError("prompts is a single string, expected a list of strings")
    if not prompts:
        raise RequestError("prompts is empty, expected at least one")
    _check_strings(prompts, "prompts")


def _check_strings(texts: Sequence[str], name: str) -> None:
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise RequestError(f"{name}[{index}] is {text!r:.80}, expected a string")


def _check_candidates(candidates: Sequence[Sequence[str]], num_prompts: int) -> None:
    if len(candidates) != num_prompts:
        raise RequestError(
            f"candidates has {len(candidates)} lists, expected {num_prompts}, one per prompt"
        )
    checked: set[int] = set()
    for index, texts in enumerate(candidates):
        # Most prompts share one tuple: look at it once.
        if id(texts) in checked:
            continue
        if isinstance(texts, str) or not isinstance(texts, (tuple, list)):
            raise RequestError(f"candidates[{index}] is {texts!r:.80}, expected a list of strings")
        if not texts:
            raise RequestError(f"candidates[{index}] is empty, expected at least one candidate")
        _check_strings(texts, f"candidates[{index}]")
        checked.add(id(texts))


def _check_indices(indices: torch.Tensor, num_prompts: int, total: int) -> None:
    if indices.dtype != torch.int64 or indices.shape != (num_prompts,):
        raise RequestError(
            f"indices is {indices.dtype} of shape {tuple(indices.shape)}, expected torch.int64 of"
            f" shape ({num_prompts},)"
        )
    if num_prompts and not (0 <= int(indices.min()) and int(indices.max()) < total):
        raise RequestError(
            f"indices lie between {int(indices.min())} and {int(indices.max())}, expected 0 to"
            f" {total - 1}"
        )
    if len(torch.unique(indices)) != num_prompts:
        raise RequestError("indices names a place twice")


def _check_options(options: dict[str, bool | int | float | str]) -> None:
    for name, value in options.items():
        if not isinstance(value, (bool, int, float, str)):
            raise RequestError(
                f"options[{name!r}] is {value!r:.80}, expected a number, a bool or a string"
            )


# --- shards ---------------------------------------------------------------------------------------


def split_score(request: ScoreRequest, num_shards: int) -> list[ScoreRequest]:
    """One shard per server. ``candidates`` stays ``()`` where the request has none."""
    return [take_score(request, part) for part in split_evenly(len(request.prompts), num_shards)]


class PromptPlaces:
    """Cuts a batch by prompt: equal ones go to one server, and one that was asked before to the
    server that remembers it. May be used from several threads.

    The other distinct prompts are divided evenly, in their order; or by their text alone, so that
    clients that ask each for themselves choose the same server, at the price of shards that are not
    of one size.

    Args:
        num_shards: One per server.

    Attributes:
        by_text: See above.
    """

    def __init__(self, num_shards: int) -> None:
        self._num_shards = num_shards
        self.by_text = False
        self._places: dict[tuple[str, tuple[str, ...]], int] = {}
        self._lock = threading.Lock()

    def forget(self) -> None:
        """The servers remember nothing any more."""
        with self._lock:
            self._places.clear()

    def cut(self, request: ScoreRequest) -> list[list[int]]:
        """The places in the batch of each server's prompts, in their order."""
        candidates = request.candidates or ((),) * len(request.prompts)
        asked = list(zip(request.prompts, candidates, strict=True))
        if self.by_text:
            places = [zlib.crc32(repr(each).encode()) % self._num_shards for each in asked]
            return [
                [row for row, place in enumerate(places) if place == shard]
                for shard in range(self._num_shards)
            ]
        rows: list[list[int]] = [[] for _ in range(self._num_shards)]
        with self._lock:
            if len(self._places) + len(asked) > MAX_PLACES:
                self._places.clear()
            fresh = [each for each in dict.fromkeys(asked) if each not in self._places]
            for server, part in enumerate(split_evenly(len(fresh), self._num_shards)):
                self._places.update(dict.fromkeys(fresh[part.start : part.stop], server))
            for row, each in enumerate(asked):
                rows[self._places[each]].append(row)
        return rows


MAX_PLACES = 2**17
"""Distinct prompts whose server is remembered at most."""


def take_score(request: ScoreRequest, rows: Sequence[int]) -> ScoreRequest:
    """The part of a request that asks about some of its prompts."""
    candidates = tuple(request.candidates[row] for row in rows) if request.candidates else ()
    known = frozenset(request.known)
    return replace(
        request,
        prompts=tuple(request.prompts[row] for row in rows),
        candidates=candidates,
        known=tuple(place for place, row in enumerate(rows) if row in known),
    )


def put_back(
    answers: Sequence[ScoreResult], rows: Sequence[Sequence[int]], request: ScoreRequest
) -> ScoreResult:
    """The answer to a batch from those to its parts, which ``take_score`` made.

    Args:
        answers: One per part.
        rows: The places of each part's prompts in the batch; every place once.
        request: The batch.
    """
    merged = merge_score(answers)
    places = torch.tensor([row for part in rows for row in part])
    order = places.argsort()
    counts = torch.tensor(merged.counts)
    by_score = _spans(counts, order)
    modules = dict(merged.modules)
    for name, values in modules.items():
        if len(values) == len(order):
            modules[name] = values[order]
        else:  # one row per candidate
            widths = torch.tensor([len(texts) for texts in request.candidates])
            modules[name] = values[_spans(widths[places], order)]
    return replace(
        merged,
        log_probs=merged.log_probs[by_score],
        counts=tuple(counts[order].tolist()),
        modules=modules,
    )


def _spans(counts: Tensor, order: Tensor) -> Tensor:
    """Where the values of each prompt lie, prompts in another order.

    Args:
        counts: ``(n,)``, values of each prompt, which lie one prompt after the other.
        order: ``(n,)``, the prompts wanted.
    """
    starts = (counts.cumsum(0) - counts)[order]
    widths = counts[order]
    first = (widths.cumsum(0) - widths).repeat_interleave(widths)
    return starts.repeat_interleave(widths) + torch.arange(int(widths.sum())) - first


def split_generate(request: GenerateRequest, num_shards: int) -> list[GenerateRequest]:
    """One shard per server.

    A ``seed`` grows by the place of the shard's first prompt: with one seed everywhere, the same
    prompt in two shards would get the same text twice.
    """
    shards = []
    for part in split_evenly(len(request.prompts), num_shards):
        options, seed = request.options, request.options.get("seed")
        if isinstance(seed, int) and part.start:
            options = {**options, "seed": seed + part.start}
        shards.append(GenerateRequest(request.prompts[part.start : part.stop], options))
    return shards


def split_update(request: UpdateRequest, num_shards: int) -> list[UpdateRequest]:
    """One shard per server; ``indices`` go with their samples and ``total`` stays the size of the
    whole batch.
    """
    parts = split_evenly(len(request.prompts), num_shards)
    return [
        replace(
            request,
            prompts=request.prompts[rows],
            candidates=request.candidates[rows],
            indices=request.indices[rows],
            data={name: tensor[rows] for name, tensor in request.data.items()},
        )
        for rows in (slice(part.start, part.stop) for part in parts)
    ]


def merge_score(answers: Sequence[ScoreResult]) -> ScoreResult:
    """The answers of all shards, in the order of the shards."""
    if len(answers) == 1:
        return answers[0]
    return ScoreResult(
        log_probs=torch.cat([answer.log_probs for answer in answers]),
        counts=tuple(count for answer in answers for count in answer.counts),
        modules={
            name: torch.cat([answer.modules[name] for answer in answers])
            for name in answers[0].modules
        },
        stats=_together([answer.stats for answer in answers]),
    )


def merge_generate(answers: Sequence[GenerateResult]) -> GenerateResult:
    """The answers of all shards, in the order of the shards."""
    if len(answers) == 1:
        return answers[0]
    return GenerateResult(
        texts=tuple(texts for answer in answers for texts in answer.texts),
        tokens=torch.cat([answer.tokens for answer in answers]),
        token_log_probs=torch.cat([answer.token_log_probs for answer in answers]),
        lengths=tuple(length for answer in answers for length in answer.lengths),
        stats=_together([answer.stats for answer in answers]),
    )


def merge_update(answers: Sequence[UpdateResult]) -> UpdateResult:
    """The first server's answer, since each one tells about the whole batch; ``seconds`` is that of
    the slowest.
    """
    stats = dict(answers[0].stats)
    if "seconds" in stats:
        stats["seconds"] = max(answer.stats.get("seconds", 0.0) for answer in answers)
    return UpdateResult(stats)


def _together(stats: Sequence[dict[str, float]]) -> dict[str, float]:
    """Counters are summed; of seconds, which pass on all servers at once, the most count."""
    names = dict.fromkeys(name for each in stats for name in each)
    told = {name: [each.get(name, 0.0) for each in stats] for name in names}
    return {name: max(values) if name in AT_ONCE else sum(values) for name, values in told.items()}
