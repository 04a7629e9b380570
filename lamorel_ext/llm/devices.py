"""What a model's device asks for: numbers that get there without the host waiting, seeds, and the
right attention kernels.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lamorel_ext.config import ParallelismArgs
from lamorel_ext.processes.cores import CPUINFO, said_of_cpu

BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
_GENERATORS = threading.RLock()


@cache
def has_bfloat16(cpuinfo: Path = CPUINFO) -> bool:
    """Whether the CPU has instructions for products of bfloat16."""
    return not BFLOAT16_FLAGS.isdisjoint(said_of_cpu("flags", cpuinfo).split())


def put(values: np.ndarray, device: torch.device) -> Tensor:
    """An array as a tensor on the device. On the CPU it may be the array's own memory.

    A copy to a GPU from ordinary memory makes the host wait until all work queued there is done;
    from pinned memory it queues up behind it.
    """
    tensor = torch.from_numpy(values)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def put_integers(values: Iterable[int], device: torch.device) -> Tensor:
    """``(n,)`` int64."""
    return put(np.fromiter(values, dtype=np.int64), device)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from a seed, on the CPU and on the device, and leave every generator of the process as
    it was.

    ``torch.manual_seed`` would also reseed the generators of all other GPUs, which nothing puts
    back. The generators are the process's: its threads draw one after the other.
    """
    with _GENERATORS, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def tidy(device: torch.device, options: ParallelismArgs) -> None:
    """What Lamorel's keys ask of a GPU after scoring."""
    if device.type == "cuda":
        if options.synchronize_gpus_after_scoring:
            torch.cuda.synchronize(device)
        if options.empty_cuda_cache_after_scoring:
            torch.cuda.empty_cache()


def choose_attention(device: torch.device) -> None:
    """Keep PyTorch from cuDNN's attention where a model is about to run on a GPU; it holds for the
    whole process.

    From sm90 on PyTorch prefers cuDNN's kernels in half precision (2.11 and later, whose wheels
    bring a cuDNN that is new enough). They build a plan for every new shape (pytorch pull request
    155958), and here nearly every call has a shape of its own; what that costs has not been
    measured here. Their backward pass also gave NaN gradients with an attention mask at lengths of
    64 modulo 128 (pytorch issue 196678). The memory-efficient kernels take the same masks.
    """
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)
