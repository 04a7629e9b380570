"""What a request must be like, so that it can be answered at all.

The client checks before it sends, a server before it works.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lamorel_ext.errors import RequestError
from lamorel_ext.types import GenerateRequest, ScoreRequest, UpdateRequest


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
