"""Splitting requests and merging answers, for any number of shards."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lamorel_ext.rpc.sharding import merge_generate, merge_score, merge_update, split_generate, split_score, split_update
from lamorel_ext.types import GenerateRequest, GenerateResult, ScoreRequest, ScoreResult, UpdateRequest, UpdateResult

prompt_numbers = st.integers(1, 7)
shard_numbers = st.integers(1, 10)


def score_alone(request: ScoreRequest) -> ScoreResult:
    """The answer of one server, prompt after prompt."""
    scores = [
        float(10 * len(prompt) + place)
        for prompt, texts in zip(request.prompts, request.candidates, strict=True)
        for place in range(len(texts))
    ]
    values = torch.tensor([[float(len(prompt))] for prompt in request.prompts]).reshape(len(request.prompts), 1)
    return ScoreResult(torch.tensor(scores), tuple(map(len, request.candidates)), {"value": values}, {"tokens": float(len(scores))})


@given(st.lists(st.integers(1, 4), min_size=1, max_size=7), shard_numbers)
@settings(deadline=None)
def test_merged_scores_are_those_of_one_server(widths: list[int], num_shards: int) -> None:
    request = ScoreRequest(tuple("p" * (i + 1) for i in range(len(widths))), tuple(tuple("abcd"[:width]) for width in widths), ("value",))
    shards = split_score(request, num_shards)
    assert len(shards) == num_shards
    whole, merged = score_alone(request), merge_score([score_alone(shard) for shard in shards])
    assert torch.equal(merged.log_probs, whole.log_probs) and merged.counts == whole.counts
    assert torch.equal(merged.modules["value"], whole.modules["value"]) and merged.stats == whole.stats


@given(prompt_numbers, shard_numbers)
def test_prompts_of_the_shards_are_those_of_the_request_and_only_the_last_shards_are_empty(num_prompts: int, num_shards: int) -> None:
    request = ScoreRequest(tuple(f"p{i}" for i in range(num_prompts)), (), ("value",), score=False)
    shards = split_score(request, num_shards)
    assert tuple(prompt for shard in shards for prompt in shard.prompts) == request.prompts
    sizes = [len(shard.prompts) for shard in shards]
    assert sizes == sorted(sizes, reverse=True) and max(sizes) - min(sizes) <= 1
    assert all(shard.candidates == () and shard.modules == ("value",) and not shard.score for shard in shards)


@given(prompt_numbers, shard_numbers)
@settings(deadline=None)
def test_every_sample_of_an_update_reaches_one_server_with_its_place_and_data(num_prompts: int, num_shards: int) -> None:
    places = torch.arange(num_prompts).flip(0)
    data = {"actions": places * 2, "hidden": places[:, None].float().expand(-1, 3)}
    request = UpdateRequest("ppo", tuple(f"p{i}" for i in places.tolist()), (("a",),) * num_prompts, places, num_prompts, data, {"lr": 0.1})
    shards = split_update(request, num_shards)
    assert len(shards) == num_shards
    assert torch.equal(torch.cat([shard.indices for shard in shards]), places)
    for shard in shards:
        assert shard.total == num_prompts and shard.options == {"lr": 0.1} and len(shard.candidates) == len(shard.prompts)
        assert shard.prompts == tuple(f"p{i}" for i in shard.indices.tolist())
        assert torch.equal(shard.data["actions"], shard.indices * 2)
        assert shard.data["hidden"].shape == (len(shard.prompts), 3)


@given(prompt_numbers, shard_numbers, st.integers(1, 3))
@settings(deadline=None)
def test_merged_texts_keep_their_prompts_and_tokens(num_prompts: int, num_shards: int, per_prompt: int) -> None:
    def answer(request: GenerateRequest) -> GenerateResult:
        numbers = [int(prompt) for prompt in request.prompts]
        lengths = tuple(number + place for number in numbers for place in range(per_prompt))
        tokens = torch.tensor([token for length in lengths for token in range(length)], dtype=torch.int64)
        texts = tuple(tuple(f"{number}.{place}" for place in range(per_prompt)) for number in numbers)
        return GenerateResult(texts, tokens, -tokens.float(), lengths, {"tokens": float(len(tokens))})

    request = GenerateRequest(tuple(str(i) for i in range(num_prompts)), {"do_sample": True})
    merged, whole = merge_generate([answer(shard) for shard in split_generate(request, num_shards)]), answer(request)
    assert merged.texts == whole.texts and merged.lengths == whole.lengths and merged.stats == whole.stats
    assert torch.equal(merged.tokens, whole.tokens) and torch.equal(merged.token_log_probs, whole.token_log_probs)


def test_shards_of_a_seeded_generation_do_not_repeat_each_other() -> None:
    shards = split_generate(GenerateRequest(("same",) * 5, {"seed": 7}), 2)
    assert [shard.options["seed"] for shard in shards] == [7, 10]
    assert split_generate(GenerateRequest(("same",) * 5, {"do_sample": True}), 2)[1].options == {"do_sample": True}


def test_an_update_is_told_once_with_the_seconds_of_the_slowest() -> None:
    merged = merge_update([UpdateResult({"loss": 0.5, "seconds": 1.0}), UpdateResult({"loss": 0.5, "seconds": 3.0})])
    assert merged.stats == {"loss": 0.5, "seconds": 3.0}


def test_servers_that_evaluated_different_heads_cannot_be_merged() -> None:
    one, other = ScoreResult(torch.zeros(1), (1,), {"value": torch.zeros(1, 1)}), ScoreResult(torch.zeros(1), (1,), {})
    with pytest.raises(ValueError, match="different module functions"):
        merge_score([one, other])


@pytest.mark.parametrize("merge", [merge_score, merge_generate, merge_update])
def test_no_answers_cannot_be_merged(merge) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="no answers"):
        merge([])
