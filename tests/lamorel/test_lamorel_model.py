"""What module functions, scores and generation give under Lamorel's names."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lamorel_ext import BaseModuleFunction
from lamorel_ext.config import LlmArgs
from lamorel_ext.errors import RequestError
from lamorel_ext.lamorel import model as lamorel_model
from lamorel_ext.lamorel.model import SCORE_KEY, LamorelModel, initialised
from lamorel_ext.lamorel.settings import LlmSettings
from lamorel_ext.llm.loading import load_model
from lamorel_ext.llm.module_functions import LogScores

SETTINGS = LlmSettings("", "0.2", LlmArgs(minibatch_size=3), range(1))
CONTEXTS = ["You see a red ball", "go", "You see a green ball 2 steps left"]
CANDIDATES = [["turn left", "go forward"], ["drop"], ["turn right", "toggle", "pick up"]]


class Recorder(BaseModuleFunction):
    """Gives dictionaries, and remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, Any]] = []

    def initialize(self) -> None:
        self.width = self.llm_config.hidden_size

    def forward(
        self, forward_outputs: Any, minibatch: Any, tokenized_contexts: Any, **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        self.seen.append({"rows": len(tokenized_contexts), **kwargs})
        return {
            "ones": torch.ones(len(tokenized_contexts)),
            "wide": torch.zeros(len(tokenized_contexts), self.width),
        }


@pytest.fixture(params=["seq2seq", "causal"], scope="module")
def parts(request: pytest.FixtureRequest) -> Iterator[tuple[Any, Any]]:
    model, tokenizer, _ = load_model(LlmArgs(), torch.device("cpu"))
    if request.param == "causal":
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=model.config.vocab_size, hidden_size=32, intermediate_size=48,
            num_hidden_layers=2, num_attention_heads=4, bos_token_id=1, eos_token_id=1,
            pad_token_id=0,
        )  # fmt: skip
        yield LlamaForCausalLM(config).eval(), tokenizer
    else:
        yield model, tokenizer


def make(
    parts: tuple[Any, Any], settings: LlmSettings = SETTINGS, **functions: Any
) -> LamorelModel:
    return initialised(LamorelModel(*parts, settings), functions, settings, {})


@pytest.mark.parametrize("pre_encode", [True, False])
@pytest.mark.parametrize("version", ["0.2", "0.3"])
def test_every_layout_of_a_pass_gives_the_scores_of_the_fast_scorer(
    parts: Any, pre_encode: bool, version: Any
) -> None:
    settings = replace(
        SETTINGS, version=version, args=replace(SETTINGS.args, pre_encode_inputs=pre_encode)
    )
    model = make(parts, settings, plain=LogScores())
    fast = model([SCORE_KEY], CONTEXTS, candidates=CANDIDATES)
    slow = model(["plain"], CONTEXTS, candidates=CANDIDATES, require_grad=True)
    assert [len(row[SCORE_KEY]) for row in fast] == [2, 1, 3]
    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one[SCORE_KEY], other["plain"].detach(), atol=1e-4, rtol=1e-4)


def test_no_candidates_mean_the_empty_text_which_scores_nothing(parts: Any) -> None:
    model = make(parts)
    for candidates in (None, [[]], [[""]], []):
        (row,) = model([SCORE_KEY], ["go"], candidates=candidates)
        assert row[SCORE_KEY].tolist() == [0.0]


class Given(BaseModuleFunction):
    """Gives what a function of the number of rows gives."""

    def __init__(self, values: Callable[[int], Any]) -> None:
        super().__init__()
        self.values = values

    def initialize(self) -> None:
        pass

    def forward(
        self, forward_outputs: Any, minibatch: Any, tokenized_contexts: Any, **kwargs: Any
    ) -> Any:
        return self.values(len(tokenized_contexts))


@pytest.mark.parametrize("parts", ["seq2seq"], indirect=True)
def test_a_decoder_begins_alike_whether_contexts_are_shared_or_not(
    parts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where only the settings of ``generate`` say how."""
    monkeypatch.setattr(parts[0].config, "decoder_start_token_id", None)
    monkeypatch.setattr(parts[0].generation_config, "decoder_start_token_id", 7)
    found = []
    for shares in (True, False):
        monkeypatch.setattr(lamorel_model, "can_share", lambda _, shares=shares: shares)
        model = make(parts, head=Given(torch.zeros))  # scores alone always share them
        rows = model([SCORE_KEY, "head"], CONTEXTS, candidates=CANDIDATES)
        found.append(torch.cat([row[SCORE_KEY] for row in rows]))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_dictionaries_may_be_nested(parts: Any) -> None:
    head = Given(lambda n: {"actor": {"logits": torch.zeros(n, 2)}, "critic": torch.ones(n)})
    rows = make(parts, head=head)(["head"], CONTEXTS, candidates=CANDIDATES)
    assert [row["head"]["actor"]["logits"].shape for row in rows] == [(2, 2), (1, 2), (3, 2)]
    assert [row["head"]["critic"].shape for row in rows] == [(2,), (1,), (3,)]


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        (lambda n: torch.zeros(n, n), r"head gave rows of the shapes \(4,\), \(2,\) for"),
        (lambda n: {"a": torch.zeros(n, n)}, r"head\['a'\] gave rows of the shapes"),
        (lambda n: {f"of {n}": torch.zeros(n)}, r"head gave \['of 4'\] for one .*\['of 2'\] for"),
        (lambda n: torch.zeros(n) if n == 4 else {}, "head gave a dict, expected a tensor"),
    ],
)
def test_what_a_module_function_gives_must_fit_between_minibatches(
    values: Callable[[int], Any], complaint: str, parts: Any
) -> None:
    model = make(parts, head=Given(values))
    with pytest.raises(RequestError, match=f"module function {complaint}"):
        model(["head"], CONTEXTS, candidates=CANDIDATES, minibatch_size=4)


def test_keyword_arguments_reach_module_functions_and_the_minibatch_size_counts(parts: Any) -> None:
    recorder = Recorder()
    rows = make(parts, head=recorder)(
        ["head"], CONTEXTS, candidates=CANDIDATES, minibatch_size=4, temperature=2, names=["a"]
    )
    assert [each["rows"] for each in recorder.seen] == [4, 2]
    assert recorder.seen[0]["temperature"] == 2 and recorder.seen[0]["names"] == ["a"]
    assert [row["head"]["ones"].shape for row in rows] == [(2,), (1,), (3,)]
    assert "current_minibatch_ids" not in recorder.seen[0]


def test_03_tells_module_functions_which_rows_they_see(parts: Any) -> None:
    recorder = Recorder()
    make(parts, replace(SETTINGS, version="0.3"), head=recorder)(
        ["head"], CONTEXTS, candidates=CANDIDATES
    )
    assert [each["current_minibatch_ids"] for each in recorder.seen] == [[0, 1, 2], [3, 4, 5]]


def test_gradients_flow_only_where_they_are_asked_for(parts: Any) -> None:
    model = make(parts)
    asked = model([SCORE_KEY], CONTEXTS, candidates=CANDIDATES, require_grad=True)
    assert asked[0][SCORE_KEY].requires_grad
    assert not model([SCORE_KEY], CONTEXTS, candidates=CANDIDATES)[0][SCORE_KEY].requires_grad


def test_names_of_weights_are_lamorels(parts: Any) -> None:
    model = make(parts)
    assert all(
        name.startswith(("_LLM_model.", "_module_functions.")) for name in model.state_dict()
    )


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"module_function_keys": ["no"], "contexts": ["go"]}, "no module function 'no'"),
        (
            {"module_function_keys": [SCORE_KEY], "contexts": ["go"], "candidates": [["a"], ["b"]]},
            "2 lists, expected 1",
        ),
        (
            {"module_function_keys": [SCORE_KEY], "contexts": ["go"], "candidates": [[1]]},
            r"candidates\[0\]",
        ),
        (
            {"module_function_keys": [SCORE_KEY], "contexts": ["go"], "candidates": [5]},
            r"candidates\[0\] is 5, expected a list of texts",
        ),
        (
            {"module_function_keys": [SCORE_KEY], "contexts": [None]},
            r"contexts\[0\] is None, expected a text or a list of tokens",
        ),
        (
            {"module_function_keys": [SCORE_KEY], "contexts": ["go"], "minibatch_size": 0},
            "minibatch_size is 0",
        ),
        (
            {"module_function_keys": [SCORE_KEY], "contexts": ["go"], "peft_adapter": "x"},
            "no adapters",
        ),
    ],
)
def test_what_cannot_be_answered_says_why(
    parts: Any, options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(RequestError, match=complaint):
        make(parts)(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"max_length": 12},
        {
            "max_new_tokens": 4,
            "do_sample": True,
            "top_k": None,
            "temperature": 0.5,
            "num_return_sequences": 3,
            "seed": 1,
        },
        {"max_new_tokens": 4, "num_beams": 3, "num_return_sequences": 2},
        {
            "max_new_tokens": 3,
            "eos_token_id": 5,
            "pad_token_id": 0,
            "bad_words_ids": [[7]],
            "use_cache": False,
        },
        {"max_new_tokens": 3, "stop_strings": ["left"]},
    ],
)
def test_generation_takes_the_arguments_of_transformers(
    parts: Any, options: dict[str, Any]
) -> None:
    rows = make(parts).generate(CONTEXTS, return_logprobs=True, **options)
    assert len(rows) == 3 and all(
        len(own) == options.get("num_return_sequences", 1) for own in rows
    )
    for row in (row for own in rows for row in own):
        assert len(row["tokens"]) == len(row["tokens_logprob"]) == len(row["model_tokens_logprob"])
        np.testing.assert_allclose(
            row["text_logprob"], row["tokens_logprob"].sum(), rtol=1e-5, atol=1e-6
        )
        assert ("beam_score" in row) == (options.get("num_beams", 1) > 1)


def test_log_probabilities_are_those_after_the_temperature_and_the_models_own_beside_them(
    parts: Any,
) -> None:
    options: dict[str, Any] = {
        "max_new_tokens": 3,
        "do_sample": True,
        "top_k": 2,
        "temperature": 0.5,
        "seed": 3,
    }
    ((row,),) = make(parts).generate(["You see a red ball"], return_logprobs=True, **options)
    assert (row["tokens_logprob"] >= row["model_tokens_logprob"] - 1e-6).all()
    ((plain,),) = make(parts).generate(["You see a red ball"], **options)
    np.testing.assert_allclose(
        plain["tokens_probability"], np.exp(row["tokens_logprob"]), rtol=1e-5
    )


@pytest.mark.parametrize("sequences", [1, 2])
def test_log_probabilities_of_beams_are_those_of_the_beam_that_was_kept(
    parts: Any, sequences: int
) -> None:
    rows = make(parts).generate(
        CONTEXTS, return_logprobs=True, max_new_tokens=4, num_beams=3, length_penalty=0.0,
        num_return_sequences=sequences,
    )  # fmt: skip
    for row in (row for own in rows for row in own):
        assert row["beam_score"] == pytest.approx(float(row["text_logprob"]), abs=1e-4)


def test_what_is_no_text_is_not_continued_as_one(parts: Any) -> None:
    with pytest.raises(RequestError, match=r"contexts\[1\] is \[3, 4\], expected a text"):
        make(parts).generate(["go", [3, 4]])


def test_an_argument_that_transformers_does_not_have_is_named(parts: Any) -> None:
    with pytest.raises(RequestError, match="no_such_argument"):
        make(parts).generate(["go"], no_such_argument=1)


@pytest.mark.parametrize("name", ["decoder_input_ids", "input_ids", "attention_mask"])
def test_what_is_made_of_the_contexts_cannot_be_given_besides(parts: Any, name: str) -> None:
    """Tokens put in front would stand among the generated ones, with the numbers of others."""
    with pytest.raises(RequestError, match=f"^{name} of generate cannot be had"):
        make(parts).generate(["go"], max_new_tokens=2, **{name: torch.tensor([[0, 5, 6]])})


def test_a_configuration_that_is_none_is_named(parts: Any) -> None:
    with pytest.raises(RequestError, match="generate cannot be run with generation_config="):
        make(parts).generate(["go"], generation_config={"max_new_tokens": 2})
