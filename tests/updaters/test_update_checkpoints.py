"""Optimiser states come back exactly, and files that do not fit are refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lamorel_ext.errors import CheckpointError
from lamorel_ext.llm.updaters import BaseUpdater, FeedbackUpdater, PPOUpdater, make_updaters
from tests.updaters.updater_fakes import FakeHost, feedback_data, make_request, ppo_data

PPO = make_request("ppo", 6, ppo_data(6), lr=0.05, minibatch_size=3, epochs=1)
FEEDBACK = make_request("feedback", 6, feedback_data(6), lr=0.05)


def ready(updater: BaseUpdater, host: FakeHost) -> BaseUpdater:
    updater.set_llm_module(host)
    return updater


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("request_", [PPO, FEEDBACK], ids=["ppo", "feedback"])
def test_training_goes_on_bitwise_after_a_load(
    tmp_path: Path, dtype: torch.dtype, request_: object
) -> None:
    host = FakeHost(dtype)
    updater = ready(make_updaters()[request_.updater], host)  # type: ignore[attr-defined]
    for _ in range(2):
        updater.update(request_)  # type: ignore[arg-type]
    updater.save(tmp_path)
    weights = {key: value.clone() for key, value in host.state_dict().items()}
    for _ in range(2):
        updater.update(request_)  # type: ignore[arg-type]

    other = FakeHost(dtype, seed=1)
    again = ready(make_updaters()[request_.updater], other)  # type: ignore[attr-defined]
    again.update(request_)  # type: ignore[arg-type]
    other.load_state_dict(weights)
    other._initial = host._initial
    again.load(tmp_path)
    for _ in range(2):
        again.update(request_)  # type: ignore[arg-type]
    assert torch.equal(other.weights(), host.weights())


def test_weights_alone_would_not_be_enough(tmp_path: Path) -> None:
    results = []
    for keep in (True, False):
        host = FakeHost()
        updater = ready(PPOUpdater(), host)
        updater.update(PPO)
        if not keep:
            updater.reset(0)
        updater.update(PPO)
        results.append(host.weights())
    assert not torch.equal(*results)


def test_reset_starts_the_optimiser_anew() -> None:
    host, fresh = FakeHost(), FakeHost()
    updater = ready(PPOUpdater(), host)
    updater.update(PPO)
    host.load_state_dict(fresh.state_dict())
    updater.reset(7)
    updater.update(PPO)
    ready(PPOUpdater(), fresh).update(PPO)
    assert torch.equal(host.weights(), fresh.weights())


def test_a_checkpoint_from_before_the_first_update_forgets_what_came_after(tmp_path: Path) -> None:
    host, fresh = FakeHost(), FakeHost()
    updater = ready(PPOUpdater(), host)
    updater.save(tmp_path)
    updater.update(PPO)
    host.load_state_dict(fresh.state_dict())
    updater.load(tmp_path)
    updater.update(PPO)
    ready(PPOUpdater(), fresh).update(PPO)
    assert torch.equal(host.weights(), fresh.weights())


def test_several_updaters_share_a_folder(tmp_path: Path) -> None:
    host = FakeHost()
    ppo, feedback = ready(PPOUpdater(), host), ready(FeedbackUpdater(), host)
    ppo.update(PPO)
    feedback.update(FEEDBACK)
    ppo.save(tmp_path)
    feedback.save(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"{name}.optimizer.safetensors" for name in ("ppo", "feedback")}
    ppo.load(tmp_path)
    feedback.load(tmp_path)


def saved(folder: Path) -> tuple[BaseUpdater, FakeHost]:
    host = FakeHost()
    updater = ready(PPOUpdater(), host)
    updater.update(PPO)
    updater.save(folder)
    return updater, host


def test_files_that_are_missing_corrupt_or_of_another_model_are_named_and_change_nothing(
    tmp_path: Path,
) -> None:
    updater, host = saved(tmp_path)
    tensor_file = tmp_path / "ppo.optimizer.safetensors"
    tensors, bytes_ = load_file(tensor_file), tensor_file.read_bytes()
    twin = FakeHost()
    twin.load_state_dict(host.state_dict())

    def refuse(match: str) -> None:
        with pytest.raises(CheckpointError, match=match):
            updater.load(tmp_path)
        tensor_file.write_bytes(bytes_)

    tensor_file.unlink()
    refuse("ppo.optimizer.safetensors cannot be read")
    tensor_file.write_bytes(bytes_[:-8])
    refuse("ppo.optimizer.safetensors cannot be read")
    save_file(
        {key: value for key, value in tensors.items() if key != "step/value.bias"}, tensor_file
    )
    refuse("ppo.optimizer.safetensors lacks 1 tensors, the first is step/value.bias")
    save_file({**tensors, "exp_avg/more": torch.zeros(1)}, tensor_file)
    refuse("safetensors holds 1 tensors that this model has not, the first is exp_avg/more")
    save_file({**tensors, "exp_avg/value.bias": torch.zeros(2)}, tensor_file)
    refuse(r"safetensors: exp_avg/value.bias has shape \(2,\), the model's has \(1,\)")
    save_file({**tensors, "exp_avg/value.bias": torch.full((1,), torch.nan)}, tensor_file)
    refuse("safetensors: .*exp_avg/value.bias")

    updater.update(PPO)
    again = ready(PPOUpdater(), twin)
    again.load(tmp_path)
    again.update(PPO)
    assert torch.equal(host.weights(), twin.weights())


@pytest.mark.parametrize("steps", [0, 2])
def test_what_was_written_with_a_description_beside_it_is_read(tmp_path: Path, steps: int) -> None:
    _, host = saved(tmp_path)
    tensor_file = tmp_path / "ppo.optimizer.safetensors"
    tensors = load_file(tensor_file) if steps else {}
    save_file(tensors, tensor_file, metadata={"steps": str(steps)})
    (tmp_path / "ppo.optimizer.json").write_text("{}")
    updater = ready(PPOUpdater(), host)
    updater.load(tmp_path)
    updater.save(tmp_path / "again")
    again = load_file(tmp_path / "again" / tensor_file.name)
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[key], value) for key, value in tensors.items())


def test_a_state_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    updater, host = saved(tmp_path)
    before = (tmp_path / "ppo.optimizer.safetensors").read_bytes()
    assert isinstance(updater, PPOUpdater) and updater._stepper is not None
    updater._stepper.state()["exp_avg/value.bias"].fill_(torch.inf)
    with pytest.raises(CheckpointError, match="ppo.optimizer.safetensors was not written: "):
        updater.save(tmp_path)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    updater = ready(PPOUpdater(), FakeHost())
    with pytest.raises(CheckpointError, match="/file cannot be written: "):
        updater.save(tmp_path / "file")
