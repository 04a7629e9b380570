"""The same arithmetic on every x86 processor: the libraries' CPU kernels held to what all of them
have.

Libraries choose their kernels by the processor, once, when they begin to work; the variables that
hold them back must stand in the environment before that. A programme that finds them missing starts
itself anew with them (``experiments.runs.entry``); a library call can only refuse.
"""

from __future__ import annotations

import os
import sys

from lamorel_ext.errors import ConfigError

VARIABLES = {
    "ATEN_CPU_CAPABILITY": "default",  # PyTorch's own kernels
    # its matrix products; the only setting that processors of Intel and AMD share
    "MKL_CBWR": "COMPATIBLE",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "DNNL_MAX_CPU_ISA": "SSE41",
    "OPENBLAS_CORETYPE": "Prescott",  # numpy's matrix products
    # exp, log and the like
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2_Usable,-AVX2,-FMA_Usable,-FMA,-FMA4_Usable,-FMA4",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


class NotPortableError(ConfigError):
    """``run.portable`` is set, but the variables were not there when this process began."""


def variables() -> dict[str, str]:
    """What must stand in the environment, numpy's kernels included: those that it chooses by the
    processor are switched off.
    """
    from numpy._core._multiarray_umath import __cpu_dispatch__

    return VARIABLES | {"NPY_DISABLE_CPU_FEATURES": " ".join(__cpu_dispatch__)}


def hold_portable() -> None:
    """Make sure that this process computes as every other does; switches off what no variable
    reaches.

    Raises:
        NotPortableError: The environment is not the one that it takes.
    """
    import torch  # here, so that a launcher need not load it

    wanted = variables()
    missing = {key: value for key, value in wanted.items() if os.environ.get(key) != value}
    if missing or torch.backends.cpu.get_cpu_capability().lower() != "default":
        said = " ".join(f"{key}={value!r}" for key, value in (missing or wanted).items())
        raise NotPortableError(
            f"run.portable: these variables must be set before Python starts: {said}"
        )
    torch.backends.mkldnn.set_flags(False)
    torch.set_num_threads(1)


def start_anew() -> None:
    """Replace this process by the same programme in the right environment.

    Returns where that was done already.
    """
    marked = "LAMOREL_EXT_PORTABLE"
    if os.environ.get(marked) != str(os.getpid()):
        sys.stdout.flush()
        sys.stderr.flush()
        environment = {**os.environ, **variables(), marked: str(os.getpid())}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
