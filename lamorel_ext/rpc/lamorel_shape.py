"""Between Lamorel's call shape, lists and keyword arguments, and the typed messages.

Pure functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lamorel_ext.errors import RequestError
from lamorel_ext.types import (
    GenerateRequest,
    GenerateResult,
    Scalar,
    ScoreRequest,
    ScoreResult,
    UpdateRequest,
)

SCORE_KEY = "__score"
"""Lamorel's name for the candidates' scores among the module functions."""

_HARMLESS = {"require_grad": False, "minibatch_size": None}
"""Lamorel's arguments of a scoring call that may be given and change nothing: the server decides.
"""


def score_request(
    contexts: Sequence[str],
    candidates: Sequence[Sequence[str]] | None,
    keys: Sequence[str],
    arguments: Mapping[str, Any],
) -> ScoreRequest:
    """The request of ``score`` and ``custom_module_fns``.

    Args:
        contexts: ``n`` prompts.
        candidates: ``n`` lists, or None where only module functions are evaluated.
        keys: Module functions; ``__score`` among them asks for the scores.
        arguments: The other keyword arguments of the call.

    Raises:
        RequestError: An argument has no meaning here.
    """
    for name, value in arguments.items():
        if name not in _HARMLESS or (name == "require_grad" and value):
            raise RequestError(
                f"{name}={value!r:.80} has no meaning in a scoring request; gradients and batches"
                " are the server's affair"
            )
    modules = tuple(key for key in texts_of(keys, "module_function_keys") if key != SCORE_KEY)
    return ScoreRequest(
        texts_of(contexts, "contexts"),
        _candidates(() if candidates is None else candidates),
        modules,
        score=SCORE_KEY in keys,
    )


def rows_of_score(result: ScoreResult, request: ScoreRequest) -> list[dict[str, Tensor]]:
    """One dictionary per prompt: ``__score`` ``(num_candidates,)`` where it was asked for, and the
    rows of each module function.

    Most module functions have one row per prompt, ``(1, ...)``; those that look at whole passes
    have one per candidate.
    """
    columns = {SCORE_KEY: result.split()} if request.score else {}
    num_prompts, widths = len(request.prompts), [len(texts) for texts in request.candidates]
    for name in request.modules:
        rows = result.modules[name]
        columns[name] = list(torch.split(rows, 1 if len(rows) == num_prompts else widths))
    return [
        {name: column[index] for name, column in columns.items()} for index in range(num_prompts)
    ]


def generate_request(contexts: Sequence[str], arguments: Mapping[str, Any]) -> GenerateRequest:
    """The request of ``generate``; the arguments are those of transformers' ``generate``.

    Raises:
        RequestError: An argument is no number, bool or string.
    """
    return GenerateRequest(
        texts_of(contexts, "contexts"),
        {name: _option(name, value) for name, value in arguments.items()},
    )


def rows_of_generate(result: GenerateResult, return_logprobs: bool) -> list[list[dict[str, Any]]]:
    """One list per prompt, with one dictionary per sequence: ``text``, ``tokens``, and
    probabilities or log-probabilities of both.
    """
    lengths = list(result.lengths)
    pairs = zip(
        torch.split(result.tokens, lengths),
        torch.split(result.token_log_probs, lengths),
        strict=True,
    )
    rows = []
    for texts in result.texts:
        sequences: list[dict[str, Any]] = []
        for text in texts:
            tokens, log_probs = next(pairs)
            row: dict[str, Any] = {"text": text, "tokens": tokens}
            if return_logprobs:
                row |= {
                    "text_logprob": log_probs.sum().numpy(),
                    "tokens_logprob": log_probs.numpy(),
                }
            else:
                row |= {
                    "text_probability": log_probs.sum().exp().numpy(),
                    "tokens_probability": log_probs.exp().numpy(),
                }
            sequences.append(row)
        rows.append(sequences)
    return rows


def update_request(
    contexts: Sequence[str], candidates: Sequence[Sequence[str]], arguments: Mapping[str, Any]
) -> UpdateRequest:
    """The request of ``update``.

    Args:
        contexts: ``n`` prompts.
        candidates: ``n`` lists.
        arguments: Tensors, arrays and lists of numbers with ``n`` rows become data; numbers, bools
            and strings become options; ``updater`` is the updater's name, which may be missing
            where the servers have just one.

    Raises:
        RequestError: An argument is none of these.
    """
    prompts = texts_of(contexts, "contexts")
    num_prompts = len(prompts)
    data: dict[str, Tensor] = {}
    options: dict[str, Scalar] = {}
    for name, value in arguments.items():
        if name == "updater":
            continue
        if (
            isinstance(value, (Tensor, np.ndarray))
            and value.ndim
            or isinstance(value, (list, tuple))
        ):
            data[name] = _data(name, value, num_prompts)
        else:
            options[name] = _option(name, value)
    updater = arguments.get("updater", "")
    if not isinstance(updater, str):
        raise RequestError(f"updater is {updater!r:.80}, expected the name of an updater")
    return UpdateRequest(
        updater,
        prompts,
        _candidates(candidates),
        torch.arange(num_prompts),
        num_prompts,
        data,
        options,
    )


def texts_of(texts: Sequence[str], name: str) -> tuple[str, ...]:
    """A list of texts.

    Raises:
        RequestError: It is a single one, whose letters would be taken for texts, or no list.
    """
    if isinstance(texts, str):
        raise RequestError(f"{name} is a single string, expected a list of strings")
    return tuple(_listed(texts, name))


def _listed(values: Any, name: str) -> Iterable[Any]:
    if isinstance(values, (str, Mapping)) or not isinstance(values, Iterable):
        raise RequestError(f"{name} is {values!r:.80}, expected a list")
    return values


def _candidates(candidates: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    """As tuples, equal ones as one object; what is no list of strings is left for the check to
    complain about.
    """
    known: dict[tuple[str, ...], tuple[str, ...]] = {}
    kept: list[Any] = []
    for texts in _listed(candidates, "candidates"):
        if isinstance(texts, (list, tuple)) and all(isinstance(text, str) for text in texts):
            as_tuple = tuple(texts)
            kept.append(known.setdefault(as_tuple, as_tuple))
        else:
            kept.append(texts)
    return tuple(kept)


def _data(name: str, value: Any, num_prompts: int) -> Tensor:
    try:
        if (
            isinstance(value, (list, tuple))
            and value
            and all(isinstance(item, Tensor) for item in value)
        ):
            tensor = torch.stack([item.detach() for item in value])
        else:
            tensor = torch.as_tensor(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise RequestError(f"{name} is no tensor, array or list of numbers: {error}") from error
    if tensor.shape[0] != num_prompts:
        raise RequestError(
            f"{name} has {tensor.shape[0]} rows, expected {num_prompts}, one per prompt"
        )
    return tensor


def _option(name: str, value: Any) -> Scalar:
    if isinstance(value, (Tensor, np.ndarray, np.generic)) and value.ndim == 0:
        value = value.item()
    if not isinstance(value, (bool, int, float, str)):
        raise RequestError(
            f"{name} is {value!r:.80}, expected a number, a bool, a string, or one number per"
            " prompt"
        )
    return value
