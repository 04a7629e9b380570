"""What a process frees, and whether the system has to find it again."""

import ctypes
import subprocess
import sys
from types import SimpleNamespace

import pytest

from lamorel_ext.config import LamorelArgs
from lamorel_ext.llm import serving
from lamorel_ext.processes import memory
from lamorel_ext.processes.memory import keep_freed_memory, return_freed_memory

glibc = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallopt"), reason="only glibc is told what to keep"
)
BLOCKS, BLOCK = 8, 16 * 2**20
TAKES_AND_FREES = f"""
import resource, sys
from lamorel_ext.processes.memory import keep_freed_memory, resident_mib, return_freed_memory

def take_and_free():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [bytearray(b"1") * {BLOCK} for _ in range({BLOCKS})]
    del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "keeps":
    assert keep_freed_memory({{}})
take_and_free()
print(resident_mib(), take_and_free(), resident_mib())
if sys.argv[1] == "keeps":
    return_freed_memory()
print(resident_mib())
"""


def _resident_and_pages(how: str) -> list[float]:
    """MiB before, pages that were asked for, MiB after and at the end."""
    done = subprocess.run(
        [sys.executable, "-c", TAKES_AND_FREES, how], check=True, capture_output=True, text=True
    )
    return [float(number) for number in done.stdout.split()]


@glibc
def test_what_was_freed_is_kept_and_taken_again_until_it_is_returned() -> None:
    before, pages, after, end = _resident_and_pages("keeps")
    assert before > 128 and after == pytest.approx(before, abs=1)
    assert pages < 200  # of 32768
    assert end < 128


@glibc
def test_glibc_by_itself_returns_what_was_freed_and_has_to_ask_again() -> None:
    before, pages, *_ = _resident_and_pages("returns")
    assert before < 128 and pages > 10_000


@pytest.mark.parametrize(
    "environment",
    [
        {"MALLOC_ARENA_MAX": "2"},
        {"GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2:glibc.malloc.perturb=1"},
    ],
)
def test_an_environment_that_says_how_malloc_works_is_obeyed(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", None)  # nothing is asked
    assert keep_freed_memory(environment) is False
    return_freed_memory()


def test_where_the_library_is_not_glibc_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    assert keep_freed_memory({}) is False
    return_freed_memory()


def test_tunables_of_the_processor_are_none_of_malloc(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}
    monkeypatch.setattr(memory, "_keeps", False)  # as it was, afterwards

    def mallopt(name: int, value: int) -> int:
        asked[name] = value
        return 1

    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    assert keep_freed_memory({"GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2"})
    assert asked == {-8: 1, -3: 2**25, -1: -1}  # as malloc.h of glibc has them


def test_a_server_of_a_launch_keeps_what_it_frees(monkeypatch: pytest.MonkeyPatch) -> None:
    def kept() -> bool:
        raise InterruptedError("before it meets the others")

    launch = SimpleNamespace(rank=1, role=SimpleNamespace(is_server=True))
    monkeypatch.setattr(serving, "join", lambda args: launch)
    monkeypatch.setattr(serving, "keep_freed_memory", kept)
    with pytest.raises(InterruptedError):
        serving.serve(LamorelArgs(), lambda placement: pytest.fail("built before"))
