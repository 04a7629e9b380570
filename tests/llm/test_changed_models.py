"""Models that a user changed are asked as they are: hooks, forward functions and parts of their own
make, learnt prompts. Each answer is held against a plain pass of the very same model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import T5ForConditionalGeneration

from lamorel_ext.llm.module_functions import BaseModuleFunction
from lamorel_ext.types import GenerateRequest
from tests.llm.tiny_models import ACTIONS, ids, make_causal, make_host, make_t5, make_tokenizer

PROMPTS = ("you see a red ball 2 steps forward", "you see a wall")


def expected(model: Any) -> torch.Tensor:
    """One pair at a time, by calling the model."""
    tokenizer, scores = make_tokenizer(), []
    for prompt in (ids(tokenizer, text) for text in PROMPTS):
        for candidate in (ids(tokenizer, text) for text in ACTIONS):
            if model.config.is_encoder_decoder:
                inputs = {"input_ids": [prompt], "decoder_input_ids": [[0, *candidate]]}
            else:
                inputs = {"input_ids": [prompt + candidate]}
            tensors = {name: torch.tensor(values) for name, values in inputs.items()}
            tensors["attention_mask"] = torch.ones_like(tensors["input_ids"])
            with torch.no_grad():
                logits = model(**tensors, use_cache=False).logits[0, -1 - len(candidate) : -1]
            rows = torch.log_softmax(logits, dim=-1)
            scores.append(rows[range(len(candidate)), candidate].sum())
    return torch.stack(scores)


def scored(host: Any) -> torch.Tensor:
    found: torch.Tensor = host.score(PROMPTS, [ACTIONS] * len(PROMPTS)).log_probs
    return found


def block_of(model: Any) -> Any:
    return model.decoder.block[1] if model.config.is_encoder_decoder else model.model.layers[1]


def steer_block(model: Any) -> None:
    def push(module: Any, inputs: Any, output: Any) -> Any:
        return (output[0] + 1.0, *output[1:]) if isinstance(output, tuple) else output + 1.0

    block_of(model).register_forward_hook(push)


def cool_the_whole_model(model: Any) -> None:
    def cool(module: Any, inputs: Any, output: Any) -> Any:
        output.logits = output.logits / 3.0
        return output

    model.register_forward_hook(cool)


def own_forward(model: Any) -> None:
    made = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = made(*args, **kwargs)
        output.logits = output.logits / 3.0
        return output

    model.forward = forward


def own_class(model: Any) -> None:
    class Cooler(type(model)):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(*args, **kwargs)
            output.logits = output.logits / 3.0
            return output

    model.__class__ = Cooler


CHANGES = [steer_block, cool_the_whole_model, own_forward, own_class]


@pytest.mark.parametrize("late", [False, True], ids=["before", "between two questions"])
@pytest.mark.parametrize("make", [make_t5, make_causal], ids=["t5", "causal"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_changed_model_answers_as_it_is(
    change: Callable[[Any], None], make: Callable[[], Any], late: bool
) -> None:
    model = make()
    before = expected(model)
    if not late:
        change(model)
    host = make_host(model)
    if late:
        torch.testing.assert_close(scored(host), before)
        change(model)
    after = expected(model)
    assert (after - before).abs().max() > 1e-2
    torch.testing.assert_close(scored(host), after)


def test_a_part_of_another_class_is_called() -> None:
    model = make_t5()
    layer = model.encoder.block[0].layer[1]

    class Doubled(type(layer)):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return 2.0 * super().forward(*args, **kwargs)

    before = expected(model)
    layer.__class__ = Doubled
    assert (expected(model) - before).abs().max() > 1e-2
    torch.testing.assert_close(scored(make_host(model)), expected(model))


def test_a_removed_hook_gives_the_fast_engine_back() -> None:
    model = make_t5()
    host = make_host(model)
    before = scored(host)
    handle = model.encoder.register_forward_hook(lambda *args: None)
    scored(host)
    assert host.info()["engine"] == "PlainEngine"
    handle.remove()
    assert torch.equal(scored(host), before)
    assert host.info()["engine"] == "T5Engine"


# --- learnt prompts -------------------------------------------------------------------------------


LEARNT = ("PromptTuningConfig", "PrefixTuningConfig", "PromptEncoderConfig")


def with_prompt(model: Any, kind: str) -> Any:
    peft = pytest.importorskip("peft", reason="the extra lora is not installed")
    seq2seq = model.config.is_encoder_decoder
    task = "SEQ_2_SEQ_LM" if seq2seq else "CAUSAL_LM"
    adapted = peft.get_peft_model(
        model, getattr(peft, kind)(task_type=task, num_virtual_tokens=3)
    ).double()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "prompt_encoder" in name:
                parameter.normal_()
    return adapted.eval()


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
@pytest.mark.parametrize("make", [make_t5, make_causal], ids=["t5", "causal"])
def test_learnt_prompts_take_part_in_scores_and_learn(make: Callable[[], Any], kind: str) -> None:
    if make is make_t5:
        model = make_t5(d_kv=4, d_model=12)  # a prefix is cut into heads of d_model / heads
    else:
        model = make_causal()
    before = expected(model)
    adapted = with_prompt(model, kind)
    host = make_host(adapted)
    assert (expected(adapted) - before).abs().max() > 1e-2
    torch.testing.assert_close(scored(host), expected(adapted))
    host.score(PROMPTS, [ACTIONS] * len(PROMPTS), require_grad=True).log_probs.sum().backward()
    learnt = [name for name, value in host.named_trainable_parameters() if value.grad is not None]
    assert learnt and all("prompt_encoder" in name for name in learnt)
    with adapted.disable_adapter():
        torch.testing.assert_close(scored(host), before)
    torch.testing.assert_close(scored(host), expected(adapted))


def test_generated_texts_follow_a_learnt_prompt() -> None:
    adapted = with_prompt(make_t5(), "PromptTuningConfig")
    found = make_host(adapted).generate(GenerateRequest(PROMPTS[:1], {"max_new_tokens": 4}))
    tokens = ids(make_tokenizer(), PROMPTS[0])
    own = adapted.generate(
        input_ids=torch.tensor([tokens]),
        attention_mask=torch.ones(1, len(tokens), dtype=torch.int64),
        max_new_tokens=4,
    )
    assert found.tokens.tolist() == own[0, 1 : 1 + len(found.tokens)].tolist()


class Shapes(BaseModuleFunction):
    """Lamorel's way to score, which needs outputs as long as the tokens it was given."""

    def initialize(self) -> None:
        pass

    def forward(
        self, forward_outputs: Any, minibatch: Any, tokenized_contexts: Any, **kwargs: Any
    ) -> torch.Tensor:
        tokens, states = minibatch["input_ids"], forward_outputs["hidden_states"][-1]
        logits = forward_outputs["logits"]
        assert logits.shape[1] == tokens.shape[1] == states.shape[1]
        behind = tokens.shape[1] - minibatch["attention_mask"].shape[1]
        start = len(tokenized_contexts[0]["input_ids"]) if not behind else 0
        chosen = logits[:, :-1].log_softmax(-1).gather(2, tokens[:, 1:, None]).squeeze(2)
        return chosen[:, start:].masked_fill(tokens[:, 1 + start :] == 0, 0).sum(-1)


@pytest.mark.parametrize("kind", LEARNT)
@pytest.mark.parametrize("cut", [True, False])
def test_module_functions_see_no_position_of_a_learnt_prompt(cut: bool, kind: str) -> None:
    host = make_host(
        with_prompt(make_causal(), kind),
        {"mine": Shapes()},
        pre_encode_inputs=cut,
        minibatch_size=4,
    )
    result = host.score(PROMPTS, [ACTIONS] * len(PROMPTS), ("mine",))
    torch.testing.assert_close(result.modules["mine"], result.log_probs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", LEARNT)
def test_texts_behind_a_learnt_prompt_are_the_same_in_any_company(kind: str) -> None:
    adapted = with_prompt(make_causal(), kind)
    adapted.base_model.generation_config.eos_token_id = None
    adapted.generation_config.eos_token_id = None
    host = make_host(adapted)

    def texts(*prompts: str) -> list[int]:
        return host.generate(GenerateRequest(prompts, {"max_new_tokens": 5})).tokens.tolist()

    prompts = [prompt for prompt in PROMPTS if prompt]
    assert texts(*prompts) == [token for prompt in prompts for token in texts(prompt)]


def test_a_subclass_that_changes_nothing_is_still_right() -> None:
    class Renamed(T5ForConditionalGeneration):
        pass

    model = make_t5()
    before = scored(make_host(model))
    model.__class__ = Renamed
    torch.testing.assert_close(scored(make_host(model)), before)
