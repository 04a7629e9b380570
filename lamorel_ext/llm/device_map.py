"""A model's layers over the GPUs of one server, through Accelerate's device map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lamorel_ext.errors import ModelLoadError

STEP = 1.02
"""By how much the share of a device grows from one try to the next."""


def make_device_map(model: Any, max_memory: Mapping[int, int], name: str = "") -> dict[str, int]:
    """Which GPU each part of a model goes to: layers in their order, none cut, no GPU with more
    than it must have. Gradients and an optimiser's moments grow with the weights and follow them.

    Args:
        model: Of transformers, on any device, ``meta`` too.
        max_memory: Bytes that each GPU has for weights, in the order in which layers fill them.
        name: Of the model, for the message.

    Raises:
        ModelLoadError: The GPUs do not hold it.
    """
    from accelerate import infer_auto_device_map
    from accelerate.utils import compute_module_sizes

    sizes = compute_module_sizes(model)
    total, most = int(sizes[""]), max(max_memory.values())
    whole = list(getattr(model, "_no_split_modules", None) or [])
    blocks = [sizes[at] for at, part in model.named_modules() if type(part).__name__ in whole]
    first = next(iter(max_memory))
    share = total / len(max_memory)
    while True:
        limits = {gpu: int(min(share, memory)) for gpu, memory in max_memory.items()}
        # Accelerate keeps a layer's room free on the first, for layers that are not on any.
        limits[first] += int(max(blocks, default=0))
        found = infer_auto_device_map(model, limits, no_split_module_classes=whole)
        if set(found.values()) <= set(max_memory):
            return dict(found)
        if share >= most:
            room = ", ".join(f"{gpu} ({_gib(memory)} free)" for gpu, memory in max_memory.items())
            raise ModelLoadError(
                f"{name}: {_gib(total)} of weights do not fit the GPUs {room}"
                " layer by layer; raise lamorel_args.llm_args.parallelism.model_parallelism_size"
            )
        share *= STEP


def spread_over_gpus(model: Any, devices: Sequence[torch.device], name: str) -> None:
    """Move a model's layers to several GPUs, and let inputs follow them."""
    free = {int(device.index): int(torch.cuda.mem_get_info(device)[0]) for device in devices}
    spread(model, make_device_map(model, free, name))


def spread(model: Any, device_map: Mapping[str, Any]) -> None:
    """Move a model's layers as a device map says; the first one's device takes the inputs."""
    from accelerate import dispatch_model

    dispatch_model(
        model,
        dict(device_map),
        main_device=next(iter(device_map.values())),
        skip_keys=getattr(model, "_skip_keys_device_placement", None),
        force_hooks=True,
    )


def _gib(memory: int) -> str:
    return f"{memory / 2**30:.1f} GiB"
