"""The checks that need a GPU, on a machine without one: they say so, and what they compare is right
on the CPU.
"""

from __future__ import annotations

import pytest
import torch

from tests import gpu


def test_without_a_gpu_every_check_says_that_it_did_not_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(gpu.CHECKS) and all("not run here: no GPU" in line for line in lines)


@pytest.mark.parametrize(("good", "status"), [(True, 0), (False, 1)])
def test_the_status_tells_of_a_failed_check_and_too_few_gpus_are_said(
    good: bool, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(gpu, "CHECKS", {"one": (1, lambda: good), "two": (2, lambda: False)})
    assert gpu.main() == status
    assert "two: not run here: 1 of 2 GPUs" in capsys.readouterr().out


@pytest.mark.slow
def test_what_is_compared_is_right_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    make = gpu.make
    monkeypatch.setattr(gpu, "make", lambda gpus, dtype="float32": make(0, dtype))
    assert gpu.apart(1) == gpu.apart(1, "bfloat16") == 0
    assert gpu.tiny_steps_moved()
    rounded = {0: "float32", 1: "bfloat16"}
    monkeypatch.setattr(gpu, "make", lambda gpus, dtype="float32": make(0, rounded[gpus]))
    assert gpu.apart(1) > gpu.BFLOAT16 > gpu.FLOAT32
