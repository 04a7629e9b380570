"""Optimiser states on disk: tensors as safetensors, the rest as JSON. Nothing that is read can run
code.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lamorel_ext.errors import CheckpointError
from lamorel_ext.finite import not_finite

FORMAT = 1


def write_state(folder: Path, name: str, tensors: dict[str, Tensor], steps: int) -> None:
    """Write ``NAME.optimizer.safetensors`` and ``NAME.optimizer.json`` into ``folder``, which is
    made if need be.

    Args:
        folder: Where to.
        name: Name of the updater.
        tensors: What to keep; may be empty.
        steps: Optimiser steps taken so far. It stands in both files: a pair of files from two
            moments is refused.

    Raises:
        CheckpointError: A file cannot be written, or a number is not finite; then none was.
    """
    tensor_file, json_file = _files(folder, name)
    plain = {key: tensor.detach().contiguous() for key, tensor in tensors.items()}
    if found := not_finite(plain):
        raise CheckpointError(f"{tensor_file.name} was not written: {found}")
    text = json.dumps({"format": FORMAT, "updater": name, "steps": steps}, indent=1)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part = tensor_file.with_suffix(".part")
        save_file(plain, part, metadata={"steps": str(steps)})
        os.replace(part, tensor_file)
        part = json_file.with_suffix(".part")
        part.write_text(text, encoding="utf-8")
        os.replace(part, json_file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{tensor_file} cannot be written: {error}") from error


def read_state(
    folder: Path, name: str, expected: dict[str, tuple[int, ...]]
) -> tuple[dict[str, Tensor], int]:
    """Read what ``write_state`` wrote.

    Args:
        folder: Where from.
        name: Name of the updater.
        expected: Names and shapes of the tensors, if there are any.

    Returns:
        The tensors, on the CPU, and the number of steps.

    Raises:
        CheckpointError: A file is missing or corrupt, belongs to another updater, or holds other
            tensors than expected, or numbers that are not finite.
    """
    tensor_file, json_file = _files(folder, name)
    steps = _read_steps(json_file, name)
    try:
        with safe_open(tensor_file, framework="pt") as file:
            written = (file.metadata() or {}).get("steps")
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{tensor_file} cannot be read: {error}") from error
    if written != str(steps):
        raise CheckpointError(
            f"{tensor_file} is from step {written}, but {json_file.name} beside it from step"
            f" {steps}"
        )
    _check_tensors(tensor_file, tensors, expected)
    if found := not_finite(tensors):
        raise CheckpointError(f"{tensor_file}: {found}")
    return tensors, steps


def _read_steps(file: Path, name: str) -> int:
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT or state.get("updater") != name:
        raise CheckpointError(
            f"{file}: expected format {FORMAT} of updater {name!r}, got {state!r}"
        )
    steps = state.get("steps")
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 0:
        raise CheckpointError(f"{file}: steps must be a number of steps, got {steps!r}")
    return steps


def _check_tensors(
    file: Path, tensors: dict[str, Tensor], expected: dict[str, tuple[int, ...]]
) -> None:
    if not tensors:
        return
    problems = [f"lacks {key}" for key in expected if key not in tensors]
    problems += [f"holds {key}, which the model has not" for key in tensors if key not in expected]
    problems += [
        f"{key} has shape {tuple(tensor.shape)}, the model's is {expected[key]}"
        for key, tensor in tensors.items()
        if key in expected and tuple(tensor.shape) != expected[key]
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(f"{file} does not fit the model: {'; '.join(problems[:3])}{more}")


def _files(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / f"{name}.optimizer.safetensors", folder / f"{name}.optimizer.json"
