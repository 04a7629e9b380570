"""Generation: the tokens of one prompt at a time without padding, their exact log-probabilities,
and refusals.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from lamorel_ext.errors import RequestError
from lamorel_ext.types import GenerateRequest
from tests.llm.tiny_models import (
    PROMPTS,
    UNPADDABLE,
    VOCAB,
    ids,
    make_causal,
    make_host,
    make_t5,
    make_unpaddable,
    plain_next,
    plain_token_log_probs,
    skip_where_a_cache_changes_texts,
)

MODELS = {
    "t5": lambda: make_t5(seed=2),
    "llama": lambda: make_causal(seed=2),
    "gpt2": lambda: make_causal("gpt2", seed=2),
}


def greedy(model: Any, prompt: list[int], steps: int) -> list[int]:
    """The most likely token, step by step, each from the probabilities of all tokens."""
    tokens: list[int] = []
    while len(tokens) < steps and tokens[-1:] != [1]:
        tokens.append(int(plain_next(model, prompt, tokens).argmax()))
    return tokens


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_greedy_tokens_and_their_log_probs_in_any_company(name: str) -> None:
    model = MODELS[name]()
    host = make_host(model, minibatch_size=2)
    prompts = [*PROMPTS, PROMPTS[0]]
    result = host.generate(GenerateRequest(tuple(prompts), {"max_new_tokens": 4}))
    backwards = host.generate(GenerateRequest(tuple(prompts[::-1]), {"max_new_tokens": 4}))
    assert backwards.texts[::-1] == result.texts
    start = 0
    for prompt, length, texts in zip(prompts, result.lengths, result.texts, strict=True):
        encoded = ids(host.tokenizer, prompt)
        tokens = result.tokens[start : start + length].tolist()
        assert tokens == greedy(model, encoded, 4)
        expected = plain_token_log_probs(model, encoded, tokens)
        torch.testing.assert_close(
            result.token_log_probs[start : start + length], expected, rtol=0, atol=1e-9
        )
        assert texts == (host.tokenizer.decode(tokens, skip_special_tokens=True),)
        start += length
    assert start == len(result.tokens) == len(result.token_log_probs)
    assert result.stats["distinct_prompts"] == 5


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_sequences_end_after_the_end_token_and_are_not_padded(name: str) -> None:
    model = MODELS[name]()
    with (
        torch.no_grad()
    ):  # all tokens about equally likely: a third of the sequences of 12 end before
        model.get_output_embeddings().weight.mul_(0.05)
    host = make_host(model)
    result = host.generate(
        GenerateRequest(
            ("go", "turn left"),
            {"max_new_tokens": 12, "do_sample": True, "num_return_sequences": 20, "seed": 0},
        )
    )
    assert [len(own) for own in result.texts] == [20, 20] and len(result.lengths) == 40
    assert len(set(result.lengths)) > 2 and sum(result.lengths) == len(result.tokens)
    for own in result.tokens.split(list(result.lengths)):
        assert 1 not in own[:-1].tolist()
        assert own[-1] == 1 or len(own) == 12
    rows = zip(
        result.tokens.split(list(result.lengths)),
        result.token_log_probs.split(list(result.lengths)),
        strict=True,
    )
    for i, (tokens, log_probs) in enumerate(rows):
        expected = plain_token_log_probs(
            model, ids(host.tokenizer, ("go", "turn left")[i // 20]), tokens.tolist()
        ).detach()
        torch.testing.assert_close(log_probs, expected, rtol=0, atol=1e-9)


def test_a_seed_fixes_the_sampling_and_leaves_the_random_state_alone() -> None:
    host = make_host(MODELS["t5"]())
    options = {
        "do_sample": True,
        "num_return_sequences": 5,
        "max_new_tokens": 5,
        "temperature": 1.5,
        "top_k": 10,
        "top_p": 0.9,
    }
    state = torch.random.get_rng_state()
    first, again, other = (
        host.generate(GenerateRequest(PROMPTS, {**options, "seed": seed})) for seed in (0, 0, 1)
    )
    assert first.texts == again.texts != other.texts
    assert torch.equal(torch.random.get_rng_state(), state)


def test_beams_give_their_best_sequences() -> None:
    model = MODELS["t5"]()
    host = make_host(model)
    result = host.generate(
        GenerateRequest(
            ("go", "go"), {"num_beams": 4, "num_return_sequences": 3, "max_new_tokens": 3}
        )
    )
    assert result.texts[0] == result.texts[1] and len(result.texts[0]) == 3
    own = [values.sum() for values in result.token_log_probs.split(list(result.lengths))][:3]
    best = host.generate(GenerateRequest(("go",), {"max_new_tokens": 3})).token_log_probs.sum()
    assert max(own) >= best - 1e-9


@pytest.mark.parametrize("start", [None, 5])
@pytest.mark.parametrize("architecture", ["t5", "longt5"])
@torch.no_grad()
def test_a_decoder_begins_as_generate_does_where_the_configuration_does_not_say(
    architecture: str, start: int | None
) -> None:
    """A T5's configuration need not name its first token; then the padding is it."""
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(architecture, vocab_size=VOCAB, **sizes)
    model = transformers.AutoModelForSeq2SeqLM.from_config(config).double().eval()
    model.generation_config.decoder_start_token_id = start
    model.shared.weight.normal_()
    host = make_host(model)
    prompt = torch.tensor([ids(host.tokenizer, "you see a wall")])
    inputs = {"input_ids": prompt, "decoder_input_ids": torch.tensor([[start or 0]])}
    first = model(**inputs).logits[0, -1].log_softmax(-1)
    drop = ids(host.tokenizer, "drop")[0]
    scored = host.score(["you see a wall"], [["drop"]]).log_probs
    assert float(scored) == pytest.approx(float(first[drop]), abs=1e-6)
    result = host.generate(GenerateRequest(("you see a wall",), {"max_new_tokens": 1}))
    assert result.tokens.tolist() == [int(first.argmax())]
    assert float(result.token_log_probs) == pytest.approx(float(first.max()), abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temprature": 1.0}, "unknown options of generate: temprature; there are: do_sample"),
        (
            {"max_new_tokens": 0},
            "max_new_tokens of generate must be an integer of at least 1, got 0",
        ),
        ({"num_return_sequences": 3}, "generate cannot be run with"),
        ({"do_sample": True, "temperature": -1.0}, "generate cannot be run with .*temperature"),
        ({"seed": "x"}, "seed of generate must be an integer, got 'x'"),
        ({"seed": 2**63}, "seed of generate must be within ±9223372036854775807"),
        (
            {"max_new_tokens": 60},
            "has 10 tokens and up to 60 behind it; the model has 64 positions",
        ),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    host = make_host(make_causal())
    with pytest.raises(RequestError, match=message):
        host.generate(GenerateRequest(("go", "go " * 10), options))


@torch.no_grad()
def test_padding_that_is_nan_in_float64_changes_nothing() -> None:
    sizes = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2, "head_dim": 8}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 24}
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model("gemma2", **sizes, sliding_window=4)
    model = transformers.AutoModelForCausalLM.from_config(config).double().eval()
    for parameter in model.parameters():
        parameter.normal_(0, 0.3)
    assert model.config._attn_implementation == "eager"
    host, prompts = make_host(model), [prompt for prompt in PROMPTS if prompt]
    found = host.generate(GenerateRequest(tuple(prompts), {"max_new_tokens": 4}))
    texts = [greedy(model, ids(host.tokenizer, prompt), 4) for prompt in prompts]
    assert [each.tolist() for each in found.tokens.split(list(found.lengths))] == texts
    candidates = ["turn left left turn left go forward", "drop"]
    for prompt in prompts:
        scores = host.score([prompt], [candidates]).log_probs
        for score, candidate in zip(scores, candidates, strict=True):
            tokens = ids(host.tokenizer, candidate)
            alone = plain_token_log_probs(model, ids(host.tokenizer, prompt), tokens).sum()
            assert float(score) == pytest.approx(float(alone), abs=1e-6)


@pytest.mark.parametrize("architecture", ["codegen", "rwkv"])
def test_a_configuration_without_padding(architecture: str) -> None:
    sizes = {"vocab_size": VOCAB, "n_embd": 16, "n_layer": 2, "n_head": 4, "rotary_dim": 4}
    sizes |= {"hidden_size": 16, "num_hidden_layers": 2, "bos_token_id": 1, "eos_token_id": 1}
    config = transformers.AutoConfig.for_model(architecture, **sizes)
    assert not hasattr(config, "pad_token_id")
    host = make_host(transformers.AutoModelForCausalLM.from_config(config))
    result = host.generate(GenerateRequest(("go", "you see a wall"), {"max_new_tokens": 3}))
    assert [len(texts) for texts in result.texts] == [1, 1]


def test_no_prompts_no_texts() -> None:
    result = make_host(make_t5()).generate(GenerateRequest(()))
    assert (result.texts, result.lengths, len(result.tokens), len(result.token_log_probs)) == (
        (),
        (),
        0,
        0,
    )


@pytest.mark.parametrize("name", UNPADDABLE)
@torch.no_grad()
def test_models_that_read_padding_continue_each_prompt_as_if_alone(name: str) -> None:
    model = make_unpaddable(name)
    skip_where_a_cache_changes_texts(model)
    host = make_host(model)
    prompts = [prompt for prompt in PROMPTS if prompt]
    prompts += [prompt.replace("go", "turn").replace("you", "the") for prompt in prompts]
    found = host.generate(GenerateRequest(tuple(prompts), {"max_new_tokens": 5})).tokens
    for prompt, tokens in zip(prompts, found.view(-1, 5).tolist(), strict=True):
        context = ids(host.tokenizer, prompt)
        for step, token in enumerate(tokens):
            assert token == int(plain_next(model, context, tokens[:step]).argmax())
