"""Checkpoints: what is saved comes back, and what cannot be written or read says so and leaves
everything as it was.
"""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lamorel_ext.errors import CheckpointError
from lamorel_ext.llm.host import ModelHost
from lamorel_ext.llm.module_functions import ValueHead
from tests.llm.tiny_models import ACTIONS, PROMPTS, make_causal, make_host, make_t5

SIX = [ACTIONS] * len(PROMPTS)


def host_of(seed: int, **sizes: int) -> ModelHost:
    return make_host(make_t5(seed=seed, **sizes), {"value": ValueHead(4)}, seed=seed)


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_a_checkpoint_comes_back(tmp_path: Path, name: str) -> None:
    make = make_t5 if name == "t5" else make_causal
    saved, other = (
        make_host(make(seed=seed), {"value": ValueHead(4)}, seed=seed) for seed in (0, 1)
    )
    expected, first = saved.score(PROMPTS, SIX, ("value",)), other.score(PROMPTS, SIX, ("value",))
    assert not torch.allclose(first.log_probs, expected.log_probs)
    saved.save(tmp_path / "a" / "b")
    other.load(tmp_path / "a" / "b")
    result = other.score(PROMPTS, SIX, ("value",))
    assert torch.equal(result.log_probs, expected.log_probs) and torch.equal(
        result.modules["value"], expected.modules["value"]
    )
    assert result.stats["cached_prompts"] == 0
    # The weights of the start are still those of the start.
    assert torch.equal(other.score_reference(PROMPTS, SIX).log_probs, first.log_probs)
    other.reset(1)
    assert torch.equal(
        other.score(PROMPTS, SIX, ("value",)).modules["value"], first.modules["value"]
    )


def test_a_shared_tensor_is_saved_once(tmp_path: Path) -> None:
    make_host(make_t5(own_head=False)).save(tmp_path)
    names = [
        name
        for name in load_file(tmp_path / "model.safetensors")
        if "embed_tokens" in name or name in ("shared.weight", "lm_head.weight")
    ]
    assert names == ["shared.weight"]
    assert {"config.json", "tokenizer.json", "modules.safetensors"} <= {
        path.name for path in tmp_path.iterdir()
    }


def test_a_second_save_replaces_the_first_and_leaves_other_files_alone(tmp_path: Path) -> None:
    (tmp_path / "optimizer.safetensors").write_bytes(b"mine")
    host_of(0).save(tmp_path)
    second = host_of(1)
    second.save(tmp_path)
    third = host_of(2)
    third.load(tmp_path)
    assert torch.equal(third.score(PROMPTS, SIX).log_probs, second.score(PROMPTS, SIX).log_probs)
    assert (tmp_path / "optimizer.safetensors").read_bytes() == b"mine"
    assert not list(tmp_path.glob(".writing-*"))


@contextmanager
def files_at_most(size: int) -> Iterator[None]:
    """A disk with room for files of ``size`` bytes only."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [1000, 70_000])
def test_a_full_disk_leaves_the_earlier_checkpoint_whole(tmp_path: Path, room: int) -> None:
    earlier, later = host_of(0), host_of(1)
    earlier.save(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size > 70_000
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with files_at_most(room), pytest.raises(CheckpointError, match=f"{tmp_path} cannot be written"):
        later.save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(CheckpointError, match="taken cannot be written"):
        host_of(0).save(tmp_path / "taken")


def test_checkpoints_that_do_not_fit_change_nothing(tmp_path: Path) -> None:
    host = host_of(0)
    expected = host.score(PROMPTS, SIX).log_probs
    host_of(1).save(tmp_path)
    weights, modules = tmp_path / "model.safetensors", tmp_path / "modules.safetensors"
    good, good_modules = (
        {name: tensor.clone() for name, tensor in load_file(weights).items()},
        modules.read_bytes(),
    )

    def fails(message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            host.load(tmp_path)
        assert torch.equal(host.score(PROMPTS, SIX).log_probs, expected)

    modules.unlink()
    fails("modules.safetensors cannot be read")
    modules.write_bytes(good_modules[:50])
    fails("modules.safetensors cannot be read")
    modules.write_bytes(good_modules)
    save_file({**good, "more": torch.zeros(1)}, weights)
    fails("model.safetensors holds 1 tensors that this model has not, the first is more")
    save_file({**good, "lm_head.weight": torch.zeros(3, 16)}, weights)
    fails(r"model.safetensors: lm_head.weight has shape \(3, 16\), the model's has")
    good.pop("lm_head.weight")
    save_file(good, weights)
    fails("model.safetensors lacks 1 tensors, the first is lm_head.weight")
    weights.write_bytes(b"junk")
    fails("model.safetensors cannot be read")
    with pytest.raises(CheckpointError, match="nowhere/model.safetensors cannot be read"):
        host.load(tmp_path / "nowhere")


def test_saved_configuration_is_plain_json(tmp_path: Path) -> None:
    make_host(make_causal()).save(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["architectures"] == ["LlamaForCausalLM"] and values["dtype"] == "float64"
