"""Numbers that are not finite end a run with a name, and never reach a checkpoint."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from lamorel_ext.agents.optimizer import FlatAdam
from lamorel_ext.errors import CheckpointError, UpdateError
from lamorel_ext.finite import not_finite, not_finite_value
from lamorel_ext.randomness import sample_rows
from lamorel_ext.training.loop import train
from lamorel_ext.training.recorder import Checkpoint
from tests.training.student_fakes import MemoryRecorder, make_corridor, small_config

ALONE = {"arm": {"teacher": "none"}, "feedback": {"signal": "none"}}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_tensor_and_the_place_that_are_not_finite_are_named(value):
    tensors = {
        "a": torch.ones(3),
        "empty": torch.zeros(0),
        "whole": torch.ones(2, dtype=torch.int64),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "b": torch.ones(2, 2),
    }
    assert not_finite(tensors) == "" and not_finite_value({"x": [1.0, {"y": 2}]}, "state") == ""
    tensors["b"][1, 0] = value
    assert not_finite(tensors) == "b is not finite in 1 of 4 numbers"
    assert not_finite_value({"x": [1.0, {"y": value}]}, "state") == f"state.x[1].y is {value}"


@pytest.mark.parametrize(
    ("loss", "lr", "limit", "message"),
    [
        (
            lambda p: p.sum() * math.nan,
            0.1,
            1.0,
            "student: not finite: loss in optimiser step 1, which was not taken",
        ),
        (
            lambda p: (p - 1.0).sqrt().sum(),
            0.1,
            1.0,
            "gradient norm inf in optimiser step 1, which was not taken",
        ),
        (
            lambda p: (0.1 * p).sum(),
            1e39,
            10.0,
            "weights is not finite in 3 of 3 numbers after optimiser step",
        ),
    ],
)
def test_every_step_of_the_clients_optimiser_checks_loss_gradient_and_result(
    loss, lr, limit, message
):
    parameter = torch.nn.Parameter(torch.full((3,), 1.0 if lr < 1 else -3.3e38))
    optimizer = FlatAdam([parameter])
    with pytest.raises(UpdateError, match=message):
        optimizer.minimise(loss(parameter), lr, limit)
    if "not taken" in message:
        assert parameter.tolist() == [1.0] * 3 and int(optimizer.tensors()["adam.steps"]) == 0


def blow_up(folder, **groups):
    """Run until the weights explode after the first checkpoint; give the error and recorder."""
    config = small_config(**groups)
    recorder = MemoryRecorder(folder)
    half = dataclasses.replace(config, run=dataclasses.replace(config.run, total_steps=64))
    train(half, None, recorder, make_corridor)
    broken = dataclasses.replace(
        config,
        student=dataclasses.replace(config.student, lr=1e30),
        drrn=dataclasses.replace(config.drrn, lr=1e30),
    )
    with pytest.raises((UpdateError, CheckpointError)) as caught:
        train(broken, None, recorder, make_corridor)
    return str(caught.value), recorder


@pytest.mark.parametrize("agent", ["student", "drrn"])
def test_a_run_whose_weights_explode_says_where_and_leaves_the_last_good_checkpoint(
    agent, tmp_path
):
    groups = ALONE if agent == "student" else {
        "arm": {"agent": "drrn"}, "feedback": {"signal": "none"},
        "drrn": {
            "num_steps": 8, "hidden_size": 8, "embedding_size": 8, "batch_size": 16,
            "replay_size": 90,
        },
    }  # fmt: skip
    message, recorder = blow_up(tmp_path, **groups)
    assert (
        f"{agent}: not finite" in message
        and "environment steps" in message
        and "optimiser step" in message
    )
    assert recorder.last.env_steps == 64
    recorder.last.check_finite()


def test_no_checkpoint_is_handed_on_or_taken_up_with_a_number_that_is_not_finite(tmp_path):
    recorder = MemoryRecorder(tmp_path)
    train(small_config(**ALONE), None, recorder, make_corridor)
    good = recorder.last
    name = next(iter(good.tensors))
    good.tensors[name].view(-1)[0] = math.inf
    recorder.last = Checkpoint(64, good.tensors, good.state)
    with pytest.raises(
        CheckpointError, match=f"step 64 cannot be used: {name} is not finite in 1 of"
    ):
        train(small_config(**ALONE), None, recorder, make_corridor)


def test_what_is_no_distribution_is_never_sampled_from():
    rows = np.array([[0.0, -1.0], [math.nan, 0.0]])
    with pytest.raises(UpdateError, match="row 1 of 2"):
        sample_rows(rows, np.random.default_rng(0))
    with pytest.raises(UpdateError, match="row 0 of 1"):
        sample_rows(np.full((1, 2), -math.inf), np.random.default_rng(0))
    assert sample_rows(np.array([[-math.inf, 0.0]]), np.random.default_rng(0)).tolist() == [1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_numbers_whose_squares_overflow_are_finite(dtype):
    largest = torch.finfo(dtype).max
    tensors = {
        "small": torch.ones(3, dtype=dtype),
        "large": torch.full((70, 70), largest, dtype=dtype),
    }
    assert not_finite(tensors) == ""
    tensors["large"][3, 4] = -math.inf
    assert not_finite(tensors) == "large is not finite in 1 of 4900 numbers"


def test_tensors_without_numbers_and_of_integers_are_finite():
    assert not_finite({"none": torch.zeros(0), "whole": torch.full((2,), 2**62)}) == ""
    assert not_finite({}) == ""
