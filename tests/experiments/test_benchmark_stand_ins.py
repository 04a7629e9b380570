"""The programs that the benchmarks measure against give the right numbers; the harness and the
counting are right.
"""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5ForConditionalGeneration,
)

from experiments.bench import checkpoint, harness, operations
from experiments.bench.peers.lamorel_way import LamorelPpo, LamorelScorer
from experiments.bench.peers.minigrid_text import MinigridText
from experiments.bench.peers.plain import score_pairs
from lamorel_ext.envs import BabyAITextEnv
from tests.llm.tiny_models import SHARED

ACTIONS = ("turn left", "turn right", "go forward", "pick up", "drop", "toggle")
PROMPTS = (
    (
        "Goal of the agent: go to the red ball\n"
        "Observation: You see a wall 2 steps forward, You see a red ball 1 step left\nAction:"
    ),
    "Goal of the agent: go to the red ball\nObservation: You see a wall 5 steps left\nAction:",
    "Goal of the agent: go to the red ball\nObservation: You carry a grey key\nAction:",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "tiny"
    checkpoint.write_checkpoint(path, checkpoint.TINY)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> PreTrainedModel:
    return AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float64).eval()


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder)


def make_value_head() -> torch.nn.Module:
    torch.manual_seed(5)
    return torch.nn.Linear(checkpoint.TINY.d_model, 1)


def one_by_one(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, candidate: str
) -> float:
    """Log-probability of one candidate, alone, without padding."""
    labels = tokenizer(candidate, add_special_tokens=False, return_tensors="pt").input_ids
    inputs = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
    with torch.no_grad():
        logits = model(input_ids=inputs, labels=labels).logits
    return -float(cross_entropy(logits[0], labels[0], reduction="sum"))


@pytest.mark.parametrize("minibatch_size", [192, 5])
def test_lamorels_way_scores_like_one_pair_at_a_time(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, minibatch_size: int
) -> None:
    candidates = [ACTIONS, ACTIONS[:2], ACTIONS]
    scorer = LamorelScorer(model, tokenizer, make_value_head(), minibatch_size)
    for prompt, options, answer in zip(
        PROMPTS, candidates, scorer.forward(PROMPTS, candidates, with_value=False), strict=True
    ):
        expected = torch.tensor(
            [one_by_one(model, tokenizer, prompt, option) for option in options],
            dtype=torch.float64,
        )
        torch.testing.assert_close(answer["score"], expected, rtol=1e-9, atol=1e-9)


def test_lamorels_way_evaluates_the_value_head_on_the_first_decoder_state(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    head = make_value_head()
    answers = LamorelScorer(model, tokenizer, head).forward(PROMPTS, [ACTIONS] * 3)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.no_grad():
            states = model(
                input_ids=ids,
                decoder_input_ids=torch.zeros(1, 1, dtype=torch.long),
                output_hidden_states=True,
            )
            expected = head(states.decoder_hidden_states[-1][:, 0].float())
        torch.testing.assert_close(answer["value"], expected.expand(6, 1), rtol=1e-5, atol=1e-5)


def test_plain_transformers_scores_like_one_pair_at_a_time(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    candidates = [ACTIONS[:2], ACTIONS, ACTIONS[3:4]]
    expected = [
        one_by_one(model, tokenizer, prompt, option)
        for prompt, options in zip(PROMPTS, candidates, strict=True)
        for option in options
    ]
    scores = score_pairs(model, tokenizer, PROMPTS, candidates)
    torch.testing.assert_close(
        scores, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9
    )


def test_lamorels_update_does_not_depend_on_how_its_gradients_are_batched(
    folder: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    data = {
        "actions": torch.tensor([0, 3, 5]),
        "old_log_probs": torch.tensor([-1.5, -2.0, -1.8], dtype=torch.float64),
        "advantages": torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64),
        "returns": torch.tensor([0.3, 0.0, 1.0]),
        "values": torch.tensor([0.1, 0.2, 0.3]),
    }
    weights = []
    for gradient_batch_size in (1, 3):
        model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float64).eval()
        updater = LamorelPpo(
            LamorelScorer(model, tokenizer, make_value_head()), 1e-3, 1e-2, gradient_batch_size
        )
        before = model.lm_head.weight.detach().clone()
        updater.update(PROMPTS, [ACTIONS] * 3, data)
        assert not torch.equal(model.lm_head.weight, before)
        assert updater.gradient_seconds > 0 and updater.step_seconds > 0
        weights.append(
            torch.cat([parameter.detach().flatten() for parameter in updater.parameters])
        )
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=1e-7)


def test_the_checkpoint_keeps_its_untied_head(folder: Path) -> None:
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    assert isinstance(model, T5ForConditionalGeneration)
    assert not torch.equal(model.lm_head.weight, model.shared.weight)
    assert torch.equal(model.encoder.embed_tokens.weight, model.shared.weight)
    assert (
        abs(float(model.lm_head.weight.detach().std()) - checkpoint.HEAD_STD) < 2e-3
    )  # 16,384 draws: three standard errors are 1.3e-3


def test_flan_t5_smalls_shape_has_its_number_of_parameters() -> None:
    with torch.device("meta"):
        model = T5ForConditionalGeneration(checkpoint.FLAN_T5_SMALL.to_config())
        extra = (
            0 if model.lm_head.weight is not model.shared.weight else model.shared.weight.numel()
        )
    assert sum(parameter.numel() for parameter in model.parameters()) + extra == 76_961_152


def test_a_checkpoint_is_made_once_and_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = checkpoint.cached_checkpoint(checkpoint.TINY)
    stamp = (first / "model.safetensors").stat().st_mtime_ns
    assert checkpoint.cached_checkpoint(checkpoint.TINY) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == stamp
    assert tmp_path in first.parents


def test_the_stand_in_tokenizer_cuts_like_flan_t5() -> None:
    transcripts = (
        Path(__file__).resolve().parents[2].parent
        / "shared"
        / "oracle"
        / "babyai_text_train.jsonl.gz"
    )
    if not SHARED.is_dir() or not transcripts.is_file():
        pytest.skip(
            "flan-t5's tokenizer and the transcripts lie beside a developer's checkout only"
        )
    real, stand_in = (
        AutoTokenizer.from_pretrained(SHARED),
        checkpoint.make_stand_in_tokenizer(),
    )
    with gzip.open(transcripts, "rt", encoding="utf-8") as lines:
        prompts = [
            json.loads(line)["lamorel_prompt"]
            for number, line in enumerate(lines)
            if number % 50 == 0
        ]
    texts = [prompt for prompt in prompts if prompt] + list(ACTIONS)
    assert len(texts) > 60
    assert [stand_in.tokenize(text) for text in texts] == [real.tokenize(text) for text in texts]


def test_contenders_take_turns_and_samples_are_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds_pass = itertools.count().__next__  # one at every look
    monkeypatch.setattr(harness, "time", SimpleNamespace(perf_counter=seconds_pass))
    calls: list[str] = []
    contenders = {
        "a": harness.Contender(
            lambda: calls.append("a"), prepare=lambda: calls.append("prepare a"), scale=1000.0
        ),
        "b": harness.Contender(
            lambda: calls.append("b"), warm_up=lambda: calls.append("warm up b")
        ),
    }
    seconds = harness.take_turns(contenders, repetitions=2)
    assert calls == ["prepare a", "a", "warm up b", *["prepare a", "a", "b"] * 2]
    assert seconds == {"a": [1000.0, 1000.0], "b": [1.0, 1.0]}


def test_a_row_holds_median_and_spread_and_knows_its_bar(tmp_path: Path) -> None:
    floor = harness.make_row("speed", [2.0, 8.0, 4.0], bar=3.0, unit="x")
    assert (floor.value, floor.spread, floor.passed, floor.detail["repetitions"]) == (
        4.0,
        6.0,
        True,
        3,
    )
    ceiling = harness.make_row("share", [0.4], bar=0.3, unit="share", better="lower")
    assert (ceiling.spread, ceiling.passed) == (None, False)
    assert (ceiling.detail["in_the_way"], "in_the_way" in floor.detail) == (harness.UNKNOWN, False)
    absent = harness.missing_row("env", 50.0, "x", "not built")
    harness.write_rows([floor, ceiling, absent], tmp_path / "bench.json")
    rows = json.loads((tmp_path / "bench.json").read_text())
    assert [row["name"] for row in rows] == ["speed", "share", "env"]
    assert (
        rows[2]["value"] is None
        and rows[2]["passed"] is None
        and rows[2]["detail"]["reason"] == "not built"
    )


def test_internal_nodes_of_a_prefix_tree() -> None:
    # root -> 1 -> {2 -> 4, 3}; root -> 5: the root, 1 and 1-2 are continued, the leaves are not.
    assert operations.internal_node_depths([[1, 2, 4], [1, 3], [5]]) == (0, 1, 2)
    assert operations.internal_node_depths([[1, 2], [1, 2], [3, 2]]) == (0, 1, 1)


def test_operations_by_hand() -> None:
    shape = checkpoint.Shape(d_model=2, d_kv=1, d_ff=3, num_layers=1, num_heads=1, vocab_size=10)
    # One projection 2x1 costs 4, the feed-forward's three matrices 2x3 cost 36 a token.
    encoder = 2 * (4 * 4 + 36) + 2 * (
        4 * 1 * 2
    )  # projections and feed-forward of 2 tokens; each attends to 2
    projecting = 2 * (2 * 4) + 4 * 1 * (
        2 * 2
    )  # keys and values of 2 tokens; 2 nodes attend to 2 tokens
    nodes = 2 * (6 * 4 + 36) + 4 * 1 * (1 + 2)  # each attends to itself and its ancestors
    head = 2 * (2 * 2 * 10)
    assert (
        operations.count_operations(shape, operations.Work(2, (0, 1)))
        == encoder + projecting + nodes + head
    )


def test_cross_attention_is_counted_in_the_cheaper_order() -> None:
    shape = checkpoint.Shape(d_model=2, d_kv=1, d_ff=3, num_layers=1, num_heads=1, vocab_size=10)
    # One node, three tokens. Projecting would be 3 keys and values, and 3 scores and mixtures of
    # size 1. Carrying: there and back, the same of size 2.
    projecting, carrying = 3 * 2 * 4 + 3 * 4, 2 * 4 + 3 * 4 * 2
    assert carrying < projecting
    encoder, node, head = 3 * (4 * 4 + 36) + 3 * (4 * 1 * 3), 6 * 4 + 36 + 4 * 1, 2 * 2 * 10
    assert (
        operations.count_operations(shape, operations.Work(3, (0,)))
        == encoder + carrying + node + head
    )


def test_products_of_a_call_add_up_to_the_count_without_attention() -> None:
    shape, many, few = checkpoint.TINY, (0, 1, 1, 1, 1), (0, 1, 1)
    # So many nodes that projecting is cheaper, which is what the products are.
    works = [operations.Work(7, many), operations.Work(3, few)]
    products = operations.multiplies_of(shape, tokens=10, nodes=8)
    read = (7 * 7 + 3 * 3) + (1 + 4 * 2 + 5 * 7) + (1 + 2 * 2 + 3 * 3)
    attention = shape.num_layers * 4 * shape.num_heads * shape.d_kv * read
    total = sum(operations.count_operations(shape, work) for work in works)
    assert (
        sum(product.operations * times for product, times in products.items()) == total - attention
    )


def test_work_counts_a_repeated_prompt_once(tokenizer: PreTrainedTokenizerBase) -> None:
    works = operations.work_of(tokenizer, [PROMPTS[0], PROMPTS[1], PROMPTS[0]], ACTIONS[:2])
    assert len(works) == 2
    assert works[0].prompt_tokens == len(tokenizer.tokenize(PROMPTS[0]))
    assert works[0].node_depths == (0, 1)  # the start token, then "turn"


def test_the_multiply_limit_adds_up_the_seconds_of_all_products() -> None:
    limit = operations.MultiplyLimit(checkpoint.TINY, tokens=10, nodes=3)
    assert limit.operations == sum(
        p.operations * times
        for p, times in operations.multiplies_of(checkpoint.TINY, 10, 3).items()
    )
    assert 0.0 < limit.run().value < 10.0


def test_a_contender_may_look_at_the_clock_itself() -> None:
    assert harness.take_turns(
        {"a": harness.Contender(lambda: harness.Seconds(7.0), scale=2.0)}, 2
    ) == {"a": [14.0, 14.0]}


@pytest.mark.parametrize("level", ["BabyAI-GoToLocal-v0", "BabyAI-UnlockLocal-v0"])
def test_minigrid_with_text_says_what_this_package_says(level: str) -> None:
    ours, plain = BabyAITextEnv(level), MinigridText(level)
    _, info = ours.reset(seed=3)
    mission, said = plain.reset(seed=3)
    assert mission == info["mission"]
    met = set(said)
    for action in np.random.default_rng(0).integers(6, size=60).tolist():
        assert said == info["descriptions"]
        met.update(said)
        _, reward, terminated, truncated, info = ours.step(action)
        said, plain_reward, done = plain.step(action)
        assert (plain_reward, done) == (reward, terminated or truncated)
        if done:
            _, info = ours.reset()
            _, said = plain.reset()
    assert len(met) > 20
