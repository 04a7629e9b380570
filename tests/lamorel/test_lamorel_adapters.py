"""Several adapters in one model: chosen per call, trained and saved alone."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM

from lamorel_ext import BaseUpdater
from lamorel_ext.config import LlmArgs
from lamorel_ext.lamorel.hosting import LamorelHost
from lamorel_ext.lamorel.model import SCORE_KEY, LamorelModel, initialised
from lamorel_ext.lamorel.settings import LlmSettings
from lamorel_ext.llm.loading import load_model
from lamorel_ext.llm.module_functions import LogScores
from lamorel_ext.rpc.groups import LockstepGroup
from tests.updaters.updater_fakes import on_servers

peft = pytest.importorskip("peft", reason="the extra lora is not installed")
SETTINGS = LlmSettings("", "0.3", LlmArgs(), range(1))
QUESTION = (["You see a red ball"], [["turn left", "drop"]])


@pytest.fixture(params=["seq2seq", "causal"])
def model(request: pytest.FixtureRequest) -> LamorelModel:
    inner, tokenizer, _ = load_model(LlmArgs(), torch.device("cpu"))
    modules = ["q", "v"]
    if request.param == "causal":
        torch.manual_seed(0)
        modules = ["q_proj", "v_proj"]
        config = LlamaConfig(
            vocab_size=inner.config.vocab_size, hidden_size=32, intermediate_size=48,
            num_hidden_layers=2, num_attention_heads=4, bos_token_id=1, eos_token_id=1,
            pad_token_id=0,
        )  # fmt: skip
        inner = LlamaForCausalLM(config).eval()
    config = peft.LoraConfig(r=2, target_modules=modules, init_lora_weights=False)
    adapted = peft.get_peft_model(inner, config, adapter_name="first")
    adapted.add_adapter("second", config)
    wrapped = LamorelModel(adapted.eval(), tokenizer, SETTINGS)
    return initialised(wrapped, {"plain": LogScores()}, SETTINGS, {})


def scores(model: LamorelModel, key: str, adapter: str | None) -> torch.Tensor:
    row = model([key], *QUESTION, peft_adapter=adapter)[0]
    return row[key]


def test_each_call_is_answered_with_its_adapter_by_both_ways(model: LamorelModel) -> None:
    found: dict[str, torch.Tensor] = {}
    for adapter in ("first", "second", "first"):
        fast, slow = scores(model, SCORE_KEY, adapter), scores(model, "plain", adapter)
        torch.testing.assert_close(fast, slow, atol=1e-4, rtol=1e-4)
        assert torch.equal(found.setdefault(adapter, fast), fast)
    assert not torch.allclose(found["first"], found["second"])
    with model._LLM_model.disable_adapter():
        assert not torch.allclose(scores(model, SCORE_KEY, None), found["first"])


def test_gradients_reach_the_chosen_adapter_alone(model: LamorelModel) -> None:
    row = model(["plain"], *QUESTION, require_grad=True, peft_adapter="second")[0]
    row["plain"].sum().backward()
    named = [name for name, p in model.named_parameters() if p.grad is not None]
    assert named and all(".second." in name for name in named)


def test_adapters_are_saved_alone_and_come_back(model: LamorelModel, tmp_path: Path) -> None:
    expected = scores(model, SCORE_KEY, "second")
    adapted: Any = model._LLM_model
    adapted.save_pretrained(tmp_path, selected_adapters=["second"])
    with safe_open(tmp_path / "second" / "adapter_model.safetensors", "pt") as file:
        assert all("lora_" in name for name in file.keys())
    adapted.delete_adapter("second")
    adapted.load_adapter(tmp_path / "second", adapter_name="again")
    model.eval()
    torch.testing.assert_close(scores(model, SCORE_KEY, "again"), expected)


class Names(BaseUpdater):
    """Names the second adapter in its pass."""

    def perform_update(
        self, contexts: Any, candidates: Any, _current_batch_ids: Any, **kwargs: Any
    ) -> Any:
        return self._llm_module(
            ["plain"], contexts=contexts, candidates=candidates, peft_adapter="second"
        )[0]["plain"].tolist()


def test_a_server_without_a_part_of_an_update_follows_to_its_adapter(model: LamorelModel) -> None:
    updaters = [Names(), Names()]
    hosts = [
        LamorelHost(each, updater)
        for each, updater in zip((model, copy.deepcopy(model)), updaters, strict=True)
    ]

    def serve(group: LockstepGroup) -> list[float]:
        host = hosts[group.rank]
        host.set_group(group)
        texts, own = ([], []) if group.rank else QUESTION
        values = {"contexts": texts, "candidates": own, "_current_batch_ids": {}}
        host.call("update", values, group)
        return [float(each) for each in scores(host._model, SCORE_KEY, None)]

    first, second = on_servers(2, lambda group: serve(LockstepGroup(group)))
    assert first == pytest.approx(scores(model, SCORE_KEY, "second").tolist(), abs=1e-4)
    assert second == first
