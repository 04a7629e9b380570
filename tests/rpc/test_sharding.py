"""Splitting requests and merging answers, for any number of shards."""

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lamorel_ext.rpc.requests import (
    PromptPlaces,
    merge_generate,
    merge_score,
    merge_update,
    put_back,
    split_generate,
    split_score,
    split_update,
    take_score,
)
from lamorel_ext.types import (
    GenerateRequest,
    GenerateResult,
    ScoreRequest,
    ScoreResult,
    UpdateRequest,
    UpdateResult,
)

prompt_numbers = st.integers(1, 7)
shard_numbers = st.integers(1, 10)


def score_alone(request: ScoreRequest) -> ScoreResult:
    """The answer of one server, prompt after prompt."""
    scores = [
        float(10 * len(prompt) + place)
        for prompt, texts in zip(request.prompts, request.candidates, strict=True)
        for place in range(len(texts))
    ]
    values = torch.tensor([[float(len(prompt))] for prompt in request.prompts]).reshape(
        len(request.prompts), 1
    )
    return ScoreResult(
        torch.tensor(scores),
        tuple(map(len, request.candidates)),
        {"value": values},
        {"tokens": float(len(scores))},
    )


@given(st.lists(st.booleans(), min_size=1, max_size=9), shard_numbers)
def test_known_prompts_stay_known_in_their_shards(known: list[bool], num_shards: int) -> None:
    prompts = tuple(f"p{i % 5} {known[i]}" for i in range(len(known)))
    places = tuple(i for i, flag in enumerate(known) if flag)
    request = ScoreRequest(prompts, (("a",),) * len(prompts), known=places)
    rows = PromptPlaces(num_shards).cut(request)
    for shard in (*split_score(request, num_shards), *(take_score(request, part) for part in rows)):
        told = [shard.prompts[place] for place in shard.known]
        assert told == [prompt for prompt in shard.prompts if prompt.endswith("True")]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=7), shard_numbers)
def test_merged_scores_are_those_of_one_server(widths: list[int], num_shards: int) -> None:
    request = ScoreRequest(
        tuple("p" * (i + 1) for i in range(len(widths))),
        tuple(tuple("abcd"[:width]) for width in widths),
        ("value",),
    )
    shards = split_score(request, num_shards)
    assert len(shards) == num_shards
    whole, merged = score_alone(request), merge_score([score_alone(shard) for shard in shards])
    assert torch.equal(merged.log_probs, whole.log_probs) and merged.counts == whole.counts
    assert (
        torch.equal(merged.modules["value"], whole.modules["value"]) and merged.stats == whole.stats
    )


@given(prompt_numbers, shard_numbers)
def test_prompts_of_the_shards_are_those_of_the_request_and_only_the_last_shards_are_empty(
    num_prompts: int, num_shards: int
) -> None:
    request = ScoreRequest(tuple(f"p{i}" for i in range(num_prompts)), (), ("value",), score=False)
    shards = split_score(request, num_shards)
    assert tuple(prompt for shard in shards for prompt in shard.prompts) == request.prompts
    sizes = [len(shard.prompts) for shard in shards]
    assert sizes == sorted(sizes, reverse=True) and max(sizes) - min(sizes) <= 1
    assert all(
        shard.candidates == () and shard.modules == ("value",) and not shard.score
        for shard in shards
    )


@given(prompt_numbers, shard_numbers)
def test_every_sample_of_an_update_reaches_one_server_with_its_place_and_data(
    num_prompts: int, num_shards: int
) -> None:
    places = torch.arange(num_prompts).flip(0)
    data = {"actions": places * 2, "hidden": places[:, None].float().expand(-1, 3)}
    request = UpdateRequest(
        "ppo",
        tuple(f"p{i}" for i in places.tolist()),
        (("a",),) * num_prompts,
        places,
        num_prompts,
        data,
        {"lr": 0.1},
    )
    shards = split_update(request, num_shards)
    assert len(shards) == num_shards
    assert torch.equal(torch.cat([shard.indices for shard in shards]), places)
    for shard in shards:
        assert (
            shard.total == num_prompts
            and shard.options == {"lr": 0.1}
            and len(shard.candidates) == len(shard.prompts)
        )
        assert shard.prompts == tuple(f"p{i}" for i in shard.indices.tolist())
        assert torch.equal(shard.data["actions"], shard.indices * 2)
        assert shard.data["hidden"].shape == (len(shard.prompts), 3)


@given(prompt_numbers, shard_numbers, st.integers(1, 3))
def test_merged_texts_keep_their_prompts_and_tokens(
    num_prompts: int, num_shards: int, per_prompt: int
) -> None:
    def answer(request: GenerateRequest) -> GenerateResult:
        numbers = [int(prompt) for prompt in request.prompts]
        lengths = tuple(number + place for number in numbers for place in range(per_prompt))
        tokens = torch.tensor(
            [token for length in lengths for token in range(length)], dtype=torch.int64
        )
        texts = tuple(
            tuple(f"{number}.{place}" for place in range(per_prompt)) for number in numbers
        )
        return GenerateResult(
            texts, tokens, -tokens.float(), lengths, {"tokens": float(len(tokens))}
        )

    request = GenerateRequest(tuple(str(i) for i in range(num_prompts)), {"do_sample": True})
    merged, whole = (
        merge_generate([answer(shard) for shard in split_generate(request, num_shards)]),
        answer(request),
    )
    assert (
        merged.texts == whole.texts
        and merged.lengths == whole.lengths
        and merged.stats == whole.stats
    )
    assert torch.equal(merged.tokens, whole.tokens) and torch.equal(
        merged.token_log_probs, whole.token_log_probs
    )


def test_shards_of_a_seeded_generation_do_not_repeat_each_other() -> None:
    shards = split_generate(GenerateRequest(("same",) * 5, {"seed": 7}), 2)
    assert [shard.options["seed"] for shard in shards] == [7, 10]
    assert split_generate(GenerateRequest(("same",) * 5, {"do_sample": True}), 2)[1].options == {
        "do_sample": True
    }


@pytest.mark.parametrize("servers", [1, 2, 4])
def test_counters_of_servers_add_up_and_their_seconds_pass_at_once(servers: int) -> None:
    """How long a request waited at its servers is no longer with more of them."""
    told = [
        {"tokens": 10.0, "seconds": 1.0 + place, "queue_seconds": 4.0 - place}
        for place in range(servers)
    ]
    scores = [ScoreResult(torch.zeros(1), (1,), stats=stats) for stats in told]
    texts = [
        GenerateResult((("a",),), torch.zeros(1), torch.zeros(1), (1,), stats) for stats in told
    ]
    expected = {"tokens": 10.0 * servers, "seconds": float(servers), "queue_seconds": 4.0}
    assert merge_score(scores).stats == merge_generate(texts).stats == expected


def test_an_update_is_told_once_with_the_seconds_of_the_slowest() -> None:
    merged = merge_update(
        [UpdateResult({"loss": 0.5, "seconds": 1.0}), UpdateResult({"loss": 0.5, "seconds": 3.0})]
    )
    assert merged.stats == {"loss": 0.5, "seconds": 3.0}


# --- shards cut by prompt -------------------------------------------------------------------------


def with_rows_per_candidate(request: ScoreRequest, scored: bool) -> ScoreResult:
    """An answer whose module gives a row for each candidate."""
    answer = score_alone(request)
    rows = torch.tensor(
        [
            [float(len(prompt)), float(len(text))]
            for prompt, texts in zip(request.prompts, request.candidates, strict=True)
            for text in texts
        ]
    )
    counts = answer.counts if scored else (0,) * len(request.prompts)
    return ScoreResult(
        answer.log_probs if scored else torch.zeros(0), counts, {"full": rows}, answer.stats
    )


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(2, 4)), min_size=1, max_size=12),
    shard_numbers,
    st.booleans(),
)
def test_shards_cut_by_prompt_give_the_whole_answer(
    asked: list[tuple[int, int]], num_shards: int, scored: bool
) -> None:
    prompts, candidates = (
        tuple("p" * length for length, _ in asked),
        tuple(tuple("abcd"[:width]) for _, width in asked),
    )
    request = ScoreRequest(prompts, candidates, ("value",))
    rows = [part for part in PromptPlaces(num_shards).cut(request) if part]
    shards = [take_score(request, part) for part in rows]
    whole, merged = (
        score_alone(request),
        put_back([score_alone(shard) for shard in shards], rows, request),
    )
    assert torch.equal(merged.log_probs, whole.log_probs) and merged.counts == whole.counts
    assert (
        torch.equal(merged.modules["value"], whole.modules["value"]) and merged.stats == whole.stats
    )
    full = put_back([with_rows_per_candidate(shard, scored) for shard in shards], rows, request)
    assert torch.equal(
        full.modules["full"], with_rows_per_candidate(request, scored).modules["full"]
    )


@given(
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=12), min_size=1, max_size=5),
    st.integers(1, 4),
)
def test_a_prompt_has_one_server_until_the_servers_forget(
    batches: list[list[int]], num_shards: int
) -> None:
    places = PromptPlaces(num_shards)
    seen: dict[int, int] = {}
    for numbers in batches:
        request = ScoreRequest(tuple(f"p{number}" for number in numbers), (("a",),) * len(numbers))
        fresh = [0] * num_shards
        rows = places.cut(request)
        assert sorted(row for part in rows for row in part) == list(range(len(numbers)))
        for server, part in enumerate(rows):
            for row in part:
                if numbers[row] not in seen:
                    fresh[server] += 1
                assert seen.setdefault(numbers[row], server) == server
        assert max(fresh) - min(fresh) <= 1  # what is new is divided evenly
    places.forget()
    assert places.cut(ScoreRequest(("p9",), (("a",),)))[0] == [0]


def test_another_thread_may_have_the_servers_forget_while_a_batch_is_cut() -> None:
    places = PromptPlaces(2)
    threads: list[threading.Thread] = []

    class Prompt(str):
        """Looked up, it has another thread forget."""

        def __hash__(self) -> int:
            threads.append(threading.Thread(target=places.forget))
            threads[-1].start()
            threads[-1].join(0.02)
            return super().__hash__()

    assert places.cut(ScoreRequest((Prompt("p"), Prompt("q")), (("a",),) * 2)) == [[0], [1]]
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_one_prompt_with_other_candidates_is_another_question() -> None:
    places = PromptPlaces(2)
    assert places.cut(ScoreRequest(("p", "p"), (("a",), ("b",)))) == [[0], [1]]
    assert places.cut(ScoreRequest(("p", "p"), (), ("value",), score=False)) == [[0, 1], []]


@given(st.lists(st.lists(st.integers(0, 9), min_size=1), min_size=2), st.integers(1, 4))
def test_clients_that_ask_alone_choose_the_same_server_for_a_prompt(
    batches: list[list[int]], num_shards: int
) -> None:
    chosen: dict[str, int] = {}
    for batch in batches:  # each from a client of its own, which knows nothing of the others
        places = PromptPlaces(num_shards)
        places.by_text = True
        request = ScoreRequest(tuple(f"p{k}" for k in batch), (("a",),) * len(batch))
        rows = places.cut(request)
        assert sorted(row for part in rows for row in part) == list(range(len(batch)))
        for server, part in enumerate(rows):
            for row in part:
                assert chosen.setdefault(request.prompts[row], server) == server
