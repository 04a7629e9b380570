"""Scores are those of plain transformers, whatever is batched with what."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lamorel_ext.llm.scoring import packing
from lamorel_ext.llm.scoring import t5_forward as t5
from lamorel_ext.llm.scoring import vocabulary_head as head
from lamorel_ext.llm.scoring.causal import TREE_MODELS
from lamorel_ext.llm.scoring.engines import make_engine
from lamorel_ext.llm.scoring.scorer import MAX_TREE, Scorer
from tests.llm.tiny_models import (
    ACTIONS,
    PROMPTS,
    SHARED,
    UNPADDABLE,
    WORDS,
    ids,
    make_causal,
    make_host,
    make_mt5,
    make_t5,
    make_tokenizer,
    make_unpaddable,
    plain_scores,
    plain_token_log_probs,
)

TOKENIZER = make_tokenizer()
T5 = make_t5()
LLAMA = make_causal()
MODELS = {"t5": T5, "llama": LLAMA, "gpt2": make_causal("gpt2")}
HOSTS = {name: make_host(model) for name, model in MODELS.items()}

texts = st.lists(st.sampled_from(WORDS), max_size=14).map(" ".join)
requests = st.lists(st.tuples(texts, st.lists(texts, max_size=4)), min_size=1, max_size=5)


def check(model: Any, prompts: Any, candidates: Any, tolerance: float = 1e-9, **args: Any) -> None:
    result = make_host(model, **args).score(prompts, candidates)
    assert result.counts == tuple(len(own) for own in candidates)
    with torch.no_grad():
        expected = plain_scores(copy.deepcopy(model).double(), TOKENIZER, prompts, candidates)
    torch.testing.assert_close(
        result.log_probs, expected, rtol=0, atol=tolerance, check_dtype=False
    )


@settings(max_examples=12)
@given(request=requests, name=st.sampled_from(sorted(MODELS)), minibatch_size=st.integers(1, 12))
def test_any_ragged_request_scores_as_plain_passes(
    request: list[tuple[str, list[str]]], name: str, minibatch_size: int
) -> None:
    # The same prompt may come with other candidates, candidates may be equal, empty, or go on from
    # one another.
    check(
        MODELS[name],
        [prompt for prompt, _ in request],
        [own for _, own in request],
        minibatch_size=minibatch_size,
    )


@pytest.mark.parametrize("ff", ["relu", "gated-gelu", "gated-silu"])
@pytest.mark.parametrize("own_head", [True, False])
def test_every_kind_of_t5(ff: str, own_head: bool) -> None:
    check(make_t5(ff, own_head), PROMPTS[1:4], [ACTIONS[::2], ACTIONS, ACTIONS[1:2]])


def test_mt5() -> None:
    assert make_host(make_mt5()).info()["engine"] == "T5Engine"
    check(make_mt5(), PROMPTS, [ACTIONS] * len(PROMPTS))


@pytest.mark.parametrize("architecture", sorted(TREE_MODELS))
def test_every_architecture_that_reads_trees(architecture: str) -> None:
    model = make_causal(architecture)
    host = make_host(model)
    assert host.info()["engine"] == "CausalEngine"
    prompts = [
        "you see a red ball 1 step left and a wall",
        "you see a red ball 1 step left",
        "you see a red ball 1 step left and 2 steps forward",
        "",
        "go",
    ]
    candidates = ["turn left", "turn left and go forward", "toggle", ""]
    check(model, prompts, [candidates] * len(prompts))
    check(model, prompts[:3], [candidates] * 3)  # these begin alike, which is read once


@pytest.mark.parametrize("architecture", sorted(UNPADDABLE))
def test_every_architecture_that_reads_padding(architecture: str) -> None:
    prompts = [*PROMPTS[:3], PROMPTS[4]]
    check(make_unpaddable(architecture), prompts, [ACTIONS] * 4, 1e-5)  # float32 within Mamba


@pytest.mark.parametrize(
    "model", [make_t5(dtype=torch.float32), make_causal(dtype=torch.float32)], ids=["t5", "llama"]
)
def test_float32_is_exact_to_four_digits(model: Any) -> None:
    check(
        model,
        PROMPTS,
        [[*ACTIONS, "turn left and go forward 2 steps"]] * len(PROMPTS),
        tolerance=1e-4,
    )


def test_bfloat16_is_near() -> None:
    model = make_t5(dtype=torch.bfloat16)
    result = make_host(model).score(PROMPTS[:3], [ACTIONS] * 3)
    exact = plain_scores(model.double(), TOKENIZER, PROMPTS[:3], [ACTIONS] * 3)
    assert result.log_probs.dtype == torch.float32
    # bfloat16 has 8 significant bits: states are right to about 1 %, logits of size 5 to about 0.1.
    assert (result.log_probs - exact).abs().max() < 0.5
    assert (result.log_probs - exact).abs().mean() < 0.15


def test_other_architectures_fall_back_to_plain_passes() -> None:
    sizes = {
        "vocab_size": 35,
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 24,
    }
    bart = _from_config(
        "bart",
        **sizes,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        max_position_embeddings=64,
        decoder_start_token_id=0,
    )
    bloom = _from_config(
        "bloom", vocab_size=35, hidden_size=16, n_layer=2, n_head=2, bos_token_id=1
    )
    for model in (bart, bloom):
        assert make_host(model).info()["engine"] == "PlainEngine"
        check(
            model,
            PROMPTS[:3],
            [["turn left", "turn", "", "go forward and turn left"], [], ["drop"]],
            minibatch_size=2,
        )
    check(bloom, PROMPTS, [ACTIONS] * len(PROMPTS))


def _from_config(architecture: str, **sizes: Any) -> Any:
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        architecture, **sizes, pad_token_id=0, eos_token_id=1, init_std=0.4, initializer_range=0.4
    )
    auto = (
        transformers.AutoModelForSeq2SeqLM
        if config.is_encoder_decoder
        else transformers.AutoModelForCausalLM
    )
    return auto.from_config(config).double().eval()


@pytest.mark.parametrize("name", sorted(MODELS))
def test_order_and_company_change_nothing(name: str) -> None:
    host, prompts = HOSTS[name], [prompt for prompt in PROMPTS for _ in range(2)]
    together = make_host(MODELS[name]).score(prompts, [ACTIONS] * len(prompts)).padded()
    backwards = (
        make_host(MODELS[name]).score(prompts[::-1], [ACTIONS[::-1]] * len(prompts)).padded()
    )
    torch.testing.assert_close(together, backwards.flip(0).flip(1), rtol=0, atol=1e-9)
    alone = torch.stack(
        [host.score([prompt], [[action]]).log_probs[0] for prompt in prompts for action in ACTIONS]
    )
    torch.testing.assert_close(together.flatten(), alone, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_probabilities_of_all_continuations_sum_to_one(name: str) -> None:
    words = [*TOKENIZER.get_vocab()]
    result = HOSTS[name].score(["turn", ""], [words, words])
    assert [own.exp().sum().item() for own in result.split()] == pytest.approx([1, 1], abs=1e-9)


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_more_candidates_than_fit_one_tree(name: str) -> None:
    # Two and three words each: their prefixes are shared, and the list does not come sorted.
    candidates = [f"{a} {b}{c}" for c in ("", " up") for a in WORDS[::-1][:9] for b in WORDS[:4]]
    assert len(candidates) == 72 > MAX_TREE
    check(
        MODELS[name], ["you see a red ball 1 step left and a wall", "drop"], [candidates, ACTIONS]
    )


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_small_pieces_of_work_give_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Limits that only large batches reach, pushed below these small ones: chunks of the encoder, of
    # the logits, of the padded batch.
    monkeypatch.setattr(packing, "CPU_ROWS", {"t5": 12, "llama": 20}[name])
    monkeypatch.setattr(head, "MAX_LOGITS", 3 * 35)
    check(
        MODELS[name],
        PROMPTS,
        [[*ACTIONS, "go left", ""], ["go"], ACTIONS, ACTIONS[:2], ["drop it"]],
    )


def test_long_candidates_attend_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    # Few nodes are carried to the encoder's states, many have keys and values projected for them;
    # both must be exact.
    orders = []
    built = t5._Memory.__init__
    monkeypatch.setattr(
        t5._Memory, "__init__", lambda self, *a: (built(self, *a), orders.append(self.carry))[0]
    )
    check(
        T5, ["you see a red ball 2 steps forward and 1 step left", "drop"], [["drop"], ["toggle"]]
    )
    check(T5, ["turn", "left right"], [[" ".join(WORDS)], [" ".join(WORDS[::-1]), "drop"]])
    assert set(orders) == {True, False}


def test_a_bias_that_somebody_gave_keys_and_values_takes_part() -> None:
    model = copy.deepcopy(T5)
    for block in model.decoder.block:
        attention = block.layer[1].EncDecAttention
        for project in (attention.k, attention.v):
            size = project.out_features
            project.bias = torch.nn.Parameter(torch.arange(size, dtype=torch.float64) / size)
    # Short enough to be carried to the encoder's states.
    check(model, ["you see a red ball 2 steps forward and 1 step left"], [["drop"]])


def test_token_log_probs_are_those_of_each_step() -> None:
    prompts = [tuple(ids(TOKENIZER, prompt)) for prompt in PROMPTS]
    candidates = (
        tuple(ids(TOKENIZER, "turn left and go forward")),
        (),
        tuple(ids(TOKENIZER, "turn right")),
    )
    scorer = Scorer(make_engine(T5, 4), 4, torch.float64)
    with torch.no_grad():
        rows = scorer.score(prompts, [candidates] * len(prompts), per_token=True).log_probs
        expected = [
            plain_token_log_probs(T5, prompt, candidate)
            for prompt in prompts
            for candidate in candidates
        ]
    assert rows.shape == (15, 5)
    for row, values in zip(rows, expected, strict=True):
        torch.testing.assert_close(
            row, torch.nn.functional.pad(values, (0, 5 - len(values))), rtol=0, atol=1e-9
        )


@pytest.mark.parametrize("length", [1, 7, 40, 300])
def test_position_buckets_are_transformers_own(length: int) -> None:
    model = make_t5(relative_attention_num_buckets=32)
    for stack, bidirectional in ((model.encoder, True), (model.decoder, False)):
        attention = stack.block[0].layer[0].SelfAttention
        attention.relative_attention_max_distance = 128
        ours = t5._Bias(stack, bidirectional)
        expected = attention.compute_bias(length, length)
        if bidirectional:
            assert torch.equal(ours.toeplitz(length, expected.device), expected)
        assert torch.equal(ours.between(torch.arange(length)[None]), expected)


def test_modules_in_the_place_of_linear_layers_take_part() -> None:
    class Adapted(torch.nn.Module):
        """A linear layer with a low-rank addition, as LoRA has it."""

        def __init__(self, base: torch.nn.Linear) -> None:
            super().__init__()
            self.base, self.weight = base, base.weight
            self.down = torch.nn.Linear(base.in_features, 2, bias=False, dtype=base.weight.dtype)
            self.up = torch.nn.Linear(2, base.out_features, bias=False, dtype=base.weight.dtype)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.base(x) + self.up(self.down(x))

    model = make_t5()
    before = make_host(model).score(PROMPTS[:3], [ACTIONS] * 3).log_probs
    for stack in (model.encoder, model.decoder):
        for block in stack.block:
            for layer in block.layer[:-1]:
                attention = (
                    layer.SelfAttention
                    if hasattr(layer, "SelfAttention")
                    else layer.EncDecAttention
                )
                attention.q, attention.v = Adapted(attention.q), Adapted(attention.v)
    check(model, PROMPTS[:3], [ACTIONS] * 3)
    assert (make_host(model).score(PROMPTS[:3], [ACTIONS] * 3).log_probs - before).abs().max() > 0.1


@pytest.mark.skipif(
    not (SHARED / "tokenizer.json").is_file(),
    reason="flan-t5's tokenizer lies beside a developer's checkout only",
)
def test_flan_t5_tokenizer_appends_nothing() -> None:
    from transformers import AutoTokenizer

    from lamorel_ext.config import LlmArgs
    from lamorel_ext.llm.host import ModelHost

    tokenizer = AutoTokenizer.from_pretrained(SHARED)
    model = make_t5(vocab=32128)
    host = ModelHost(model, tokenizer, LlmArgs())
    assert ids(tokenizer, "turn left") == [919, 646]
    prompts = [
        (
            "Goal of the agent: go to the red ball\n"
            "Observation: You see a wall 3 steps forward\nAction:"
        ),
        "",
    ]
    with torch.no_grad():
        expected = plain_scores(model, tokenizer, prompts, [ACTIONS, ACTIONS])
    torch.testing.assert_close(
        host.score(prompts, [ACTIONS, ACTIONS]).log_probs, expected, rtol=0, atol=1e-9
    )
