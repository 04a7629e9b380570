"""Adapters: they alone are trained, and answers change with them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lamorel_ext.config import LlmArgs, LoraArgs
from lamorel_ext.errors import ModelLoadError
from lamorel_ext.llm.loading import load_host
from lamorel_ext.llm.module_functions import ValueHead

CPU = torch.device("cpu")
ARGS = LlmArgs(lora=LoraArgs(r=4, target_modules=("q", "v")))


def test_without_peft_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelLoadError, match=r"lamorel-ext\[lora\]"):
        load_host(ARGS, CPU)


def test_no_rank_means_no_adapters() -> None:
    assert not hasattr(load_host(LlmArgs(), CPU).model, "peft_config")


@pytest.fixture
def peft() -> None:
    pytest.importorskip("peft", reason="the extra lora is not installed")


@pytest.mark.usefixtures("peft")
def test_only_adapters_and_heads_take_gradients() -> None:
    host = load_host(ARGS, CPU, {"value": ValueHead(8)})
    names = [name for name, _ in host.named_trainable_parameters()]
    assert names and all(
        "lora_" in name or name.startswith("module_functions.value.") for name in names
    )


@pytest.mark.usefixtures("peft")
def test_fresh_adapters_change_no_score_and_trained_ones_do() -> None:
    question = (["You see a red ball"], [["turn left", "drop"]])
    host, plain = load_host(ARGS, CPU), load_host(LlmArgs(), CPU)
    torch.testing.assert_close(host.score(*question).log_probs, plain.score(*question).log_probs)
    with torch.no_grad():
        for name, parameter in host.named_trainable_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    assert not torch.allclose(host.score(*question).log_probs, plain.score(*question).log_probs)


@pytest.mark.usefixtures("peft")
def test_equal_seeds_draw_equal_adapters_and_a_checkpoint_brings_them_back(tmp_path: Path) -> None:
    host, other, third = (
        load_host(ARGS, CPU),
        load_host(ARGS, CPU),
        load_host(replace(ARGS, seed=1), CPU),
    )
    values = [
        [p.detach().clone() for _, p in each.named_trainable_parameters()]
        for each in (host, other, third)
    ]
    assert all(torch.equal(a, b) for a, b in zip(values[0], values[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(values[0], values[2], strict=True))
    host.save(tmp_path)
    third.load(tmp_path)
    assert all(
        torch.equal(a, b)
        for a, (_, b) in zip(values[0], third.named_trainable_parameters(), strict=True)
    )


@pytest.mark.usefixtures("peft")
def test_layers_that_are_not_there_are_named() -> None:
    with pytest.raises(ModelLoadError, match="no_such_layer"):
        load_host(replace(ARGS, lora=LoraArgs(r=4, target_modules=("no_such_layer",))), CPU)
