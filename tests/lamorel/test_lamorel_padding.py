"""Scores, module functions and texts of models for which padding is not nothing, under Lamorel's
names: each text as if it were alone.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lamorel_ext import BaseModuleFunction
from lamorel_ext.config import LlmArgs
from lamorel_ext.errors import RequestError
from lamorel_ext.lamorel.model import LamorelModel, _cache_of, initialised
from lamorel_ext.lamorel.settings import LlmSettings
from lamorel_ext.llm.module_functions import BaseModuleFunction as Function
from lamorel_ext.llm.module_functions import LogScores
from lamorel_ext.rpc.lamorel_shape import SCORE_KEY
from tests.llm.test_changed_models import LEARNT, with_prompt
from tests.llm.tiny_models import (
    UNPADDABLE,
    ids,
    make_causal,
    make_t5,
    make_tokenizer,
    make_unpaddable,
    plain_next,
    skip_where_a_cache_changes_texts,
)

CONTEXTS = ["you see a red ball", "action :", "goal of the agent : go left"]
CANDIDATES = [["turn left", "drop"], ["toggle"], ["go forward and turn right", "turn"]]
TOKENIZER = make_tokenizer()


def make_windowed() -> Any:
    """Attention reaches back less far than the contexts are long."""
    model = make_causal("mistral")
    model.config.sliding_window = 3
    return model


def make_pruned() -> Any:
    """An initialiser has cut off a layer, which the configuration still counts."""
    model = make_causal()
    del model.model.layers[-1]
    return model


MODELS = {
    "window": make_windowed,
    "pruned": make_pruned,
    **{name: lambda name=name: make_unpaddable(name) for name in UNPADDABLE},
    **{kind: lambda kind=kind: with_prompt(make_causal(), kind) for kind in LEARNT},
    **{
        f"{kind} of T5": lambda kind=kind: with_prompt(make_t5(d_kv=4, d_model=12), kind)
        for kind in LEARNT
    },
}
LAYOUTS = {
    "0.2, contexts apart": ("0.2", True),
    "0.2": ("0.2", False),
    "0.3": ("0.3", False),
}


class Again(BaseModuleFunction):
    """Lamorel's scores, from what a module function sees."""

    def initialize(self) -> None:
        self.scores: Function = LogScores()

    def forward(
        self, forward_outputs: Any, minibatch: Any, tokenized_contexts: Any, **kwargs: Any
    ) -> torch.Tensor:
        causal = "decoder_input_ids" not in minibatch
        given = minibatch["input_ids" if causal else "decoder_input_ids"]
        states = forward_outputs["hidden_states" if causal else "decoder_hidden_states"][-1]
        assert forward_outputs["logits"].shape[:2] == given.shape == states.shape[:2]
        found: torch.Tensor = self.scores(forward_outputs, minibatch, tokenized_contexts)
        return found


def served(model: Any, version: str, apart: bool) -> LamorelModel:
    args = LlmArgs(minibatch_size=2, pre_encode_inputs=apart)
    settings = LlmSettings("", version, args, range(1))
    wrapper = LamorelModel(model, TOKENIZER, settings)
    return initialised(wrapper, {"again": Again()}, settings, {})


def plain(model: Any, context: str, candidate: str) -> float:
    """One pass over this one pair; a learnt prompt makes its logits longer at the front."""
    before, behind = ids(TOKENIZER, context), ids(TOKENIZER, candidate)
    inputs = {"input_ids": [before + behind]}
    if model.config.is_encoder_decoder:
        inputs = {"input_ids": [before], "decoder_input_ids": [[0, *behind]]}
    given = {name: torch.tensor(values) for name, values in inputs.items()}
    given["attention_mask"] = torch.ones_like(given["input_ids"])
    with torch.no_grad():
        logits = model(**given, use_cache=False).logits[0, -1 - len(behind) : -1]
    return float(logits.log_softmax(-1)[range(len(behind)), behind].sum())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", MODELS)
def test_every_layout_gives_the_scores_of_plain_passes(name: str, layout: str) -> None:
    model = MODELS[name]()
    wrapper = served(model, *LAYOUTS[layout])
    right = [
        plain(model, context, candidate)
        for context, own in zip(CONTEXTS, CANDIDATES, strict=True)
        for candidate in own
    ]
    for keys, require_grad in (
        ([SCORE_KEY], False),
        ([SCORE_KEY], True),
        ([SCORE_KEY, "again"], False),
    ):
        found = wrapper(keys, CONTEXTS, CANDIDATES, require_grad=require_grad)
        for key in keys:
            rows = torch.cat([row[key] for row in found])
            assert rows.requires_grad == require_grad
            assert rows.tolist() == pytest.approx(right, abs=1e-4)


def test_gradients_reach_a_learnt_prompt_through_every_layout() -> None:
    found = []
    for version, apart in LAYOUTS.values():
        model = with_prompt(make_causal(), "PromptTuningConfig")
        rows = served(model, version, apart)([SCORE_KEY], CONTEXTS, CANDIDATES, require_grad=True)
        torch.cat([row[SCORE_KEY] for row in rows]).sum().backward()
        found.append(next(p.grad for p in model.parameters() if p.grad is not None))
    assert float(found[0].abs().max()) > 0
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", [*UNPADDABLE, *LEARNT])
@torch.no_grad()
def test_texts_are_the_same_in_any_company(name: str) -> None:
    model = MODELS[name]()
    if name in LEARNT:
        model.base_model.generation_config.eos_token_id = None
        model.generation_config.eos_token_id = None
    else:
        skip_where_a_cache_changes_texts(model)
    wrapper = served(model, "0.3", False)

    def texts(*contexts: str) -> list[list[int]]:
        rows = wrapper.generate(contexts, max_new_tokens=4, do_sample=False)
        return [row[0]["tokens"].tolist() for row in rows]

    together = texts(*CONTEXTS)
    assert together == [text for context in CONTEXTS for text in texts(context)]
    for context, tokens in zip(CONTEXTS, together, strict=True):
        if name not in LEARNT:
            first = plain_next(model, ids(TOKENIZER, context), tokens[:2])
            assert tokens[2] == int(first.argmax())


@pytest.mark.parametrize("make", [make_t5, make_causal])
@pytest.mark.parametrize("contexts", [[""], ["", "you see a wall"]])
def test_an_empty_context_is_the_same_with_gradients_and_module_functions(
    make: Any, contexts: list[str]
) -> None:
    wrapper = served(make(), "0.2", True)
    own = [["turn left", "drop"]] * len(contexts)
    answers = []
    for keys, require_grad in (
        ([SCORE_KEY], False),
        ([SCORE_KEY], True),
        ([SCORE_KEY, "again"], False),
    ):
        found = wrapper(keys, contexts, own, require_grad=require_grad)
        answers += [torch.cat([row[key] for row in found]) for key in keys]
    for other in answers[1:]:
        torch.testing.assert_close(other, answers[0], rtol=0, atol=1e-4)


def test_an_empty_context_that_nothing_can_stand_for_is_told_by_its_place() -> None:
    wrapper = served(make_causal(), "0.2", True)
    wrapper._LLM_tokenizer = make_tokenizer()
    wrapper._LLM_tokenizer.bos_token = wrapper._LLM_tokenizer.eos_token = None
    with pytest.raises(RequestError, match=r"contexts\[1\] is empty, and the tokenizer has no"):
        wrapper(["again"], ["go", ""], [["drop"]] * 2)
    with pytest.raises(RequestError, match=r"contexts\[1\] is empty, and the tokenizer has no"):
        wrapper.generate(["go", ""], max_new_tokens=1)


def test_what_was_read_is_taken_where_each_layer_is() -> None:
    layers = [tuple(torch.randn(2, 2, 1, 4, 3)), tuple(torch.zeros(2, 2, 1, 4, 3, device="meta"))]
    cache = _cache_of(layers, torch.tensor([1, 0, 1]))
    assert torch.equal(cache.layers[0].keys, layers[0][0][[1, 0, 1]])
    assert torch.equal(cache.layers[0].values, layers[0][1][[1, 0, 1]])
    assert cache.layers[1].keys.shape == (3, 1, 4, 3) and cache.layers[1].keys.is_meta


def test_rotary_positions_go_on_where_training_ended_and_learnt_ones_do_not() -> None:
    context = "go " * 66  # of a model of 64 positions
    wrapper = served(make_causal(), "0.2", False)
    right = plain(wrapper._LLM_model, context, "turn left")
    for keys, require_grad in (([SCORE_KEY], False), ([SCORE_KEY], True), (["again"], False)):
        (row,) = wrapper(keys, [context], [["turn left"]], require_grad=require_grad)
        assert float(row[keys[0]].detach()) == pytest.approx(right, abs=1e-4)
    with pytest.raises(RequestError, match="the model has 64 positions"):
        served(make_causal("gpt2"), "0.2", False)([SCORE_KEY], [context], [["turn left"]])


def test_a_model_that_cannot_share_what_was_read_says_what_to_set() -> None:
    import transformers

    config = transformers.AutoConfig.for_model(
        "switch_transformers", vocab_size=len(TOKENIZER), d_model=16, d_kv=8, d_ff=24, num_layers=2,
        num_heads=2, num_experts=2, decoder_start_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = transformers.AutoModelForSeq2SeqLM.from_config(config).eval()
    with pytest.raises(RequestError, match="set pre_encode_inputs to false"):
        served(model, "0.2", True)([SCORE_KEY], CONTEXTS, CANDIDATES, require_grad=True)
    served(model, "0.2", False)([SCORE_KEY], CONTEXTS, CANDIDATES, require_grad=True)
