"""Weights in and out of files: safetensors only, each file whole or not there at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lamorel_ext.errors import CheckpointError
from lamorel_ext.finite import not_finite
from lamorel_ext.llm.fsdp import own_part, part_of, whole


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers by name; a tensor shared under several names comes once, under
    the first.
    """
    names: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if names.setdefault(id(tensor), name) == name:
            tensors[name] = tensor
    return tensors


def distinct_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The same without gradients."""
    return {name: tensor.detach() for name, tensor in named_tensors(module).items()}


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Their shapes, whole where this rank holds a part."""
    return {name: tuple(tensor.shape) for name, tensor in named_tensors(module).items()}


def copy_into(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copy values, named as by ``distinct_tensors``, into the module's own tensors, whatever their
    precision and device; of a divided tensor a value may be all of it, or this rank's part.
    """
    own = distinct_tensors(module)
    with torch.no_grad():
        for name, value in values.items():
            own_part(own[name]).copy_(part_of(value, own[name]))


def whole_tensors(module: nn.Module, keep: bool = True) -> dict[str, Tensor]:
    """Copies of a module's tensors in main memory; of a divided one every rank must ask for them.

    Args:
        module: Its tensors.
        keep: False on a rank that only gives its parts: it gets none.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in distinct_tensors(module).items():
        value = whole(tensor)
        if keep:
            tensors[name] = value.to("cpu", copy=True).contiguous()
    return tensors


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors that share no memory. Use within ``written_whole``.

    Raises:
        CheckpointError: A tensor holds a number that is not finite; nothing was written.
    """
    if found := not_finite(tensors):
        raise CheckpointError(f"{path.name} was not written: {found}")
    plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    save_file(plain, path, metadata={"format": "pt"})


def read_tensors(
    path: Path, shapes: Mapping[str, Sequence[int]], or_none: bool = False
) -> dict[str, Tensor]:
    """Read a file of tensors.

    Args:
        path: The file.
        shapes: Of every tensor that must be in it.
        or_none: Whether it may also hold none at all.

    Raises:
        CheckpointError: The file is missing, corrupt, or holds tensors of other names or shapes, or
            numbers that are not finite.
    """
    try:
        values = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if or_none and not values:
        return values
    if missing := sorted(shapes.keys() - values.keys()):
        raise CheckpointError(f"{path} lacks {len(missing)} tensors, the first is {missing[0]}")
    if extra := sorted(values.keys() - shapes.keys()):
        raise CheckpointError(
            f"{path} holds {len(extra)} tensors that this model has not, the first is {extra[0]}"
        )
    for name, shape in shapes.items():
        if values[name].shape != torch.Size(shape):
            raise CheckpointError(
                f"{path}: {name} has shape {tuple(values[name].shape)}, the model's has"
                f" {tuple(shape)}"
            )
    if found := not_finite(values):
        raise CheckpointError(f"{path}: {found}")
    return values


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """A scratch folder whose files move to ``folder`` when the block ends well, each at once; a
    failure leaves ``folder`` as it was.

    Raises:
        CheckpointError: Something cannot be written; the message names the folder and the cause.
    """
    scratch: str | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.mkdtemp(prefix=".writing-", dir=folder)
        yield Path(scratch)
        for path in sorted(Path(scratch).rglob("*")):
            target = folder / path.relative_to(scratch)
            target.mkdir(exist_ok=True) if path.is_dir() else os.replace(path, target)
    except Exception as error:  # the tokenizers library reports a full disk as a bare Exception
        raise CheckpointError(f"{folder} cannot be written: {error}") from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
