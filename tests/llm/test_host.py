"""What a host does between two updates: memory, module functions, resets, the frozen reference,
refusals.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedTokenizerFast,
)

from lamorel_ext.errors import RequestError
from lamorel_ext.llm import answers
from lamorel_ext.llm.answers import TextEncoder
from lamorel_ext.llm.module_functions import BaseModuleFunction, ValueHead
from lamorel_ext.llm.state import Memory
from lamorel_ext.types import GenerateRequest
from tests.llm.tiny_models import (
    ACTIONS,
    PROMPTS,
    VOCAB,
    make_causal,
    make_host,
    make_t5,
    make_tokenizer,
    plain_scores,
)

SIX = [ACTIONS] * len(PROMPTS)


class LamorelScores(BaseModuleFunction):
    """Lamorel's own way to score, as a module function: it looks at logits, tokens and the length
    of the context.
    """

    def __init__(self, seq2seq: bool, cut: bool) -> None:
        super().__init__()
        self.seq2seq, self.cut = seq2seq, cut

    def initialize(self) -> None:
        pass

    def forward(
        self, forward_outputs: Any, minibatch: Any, tokenized_contexts: Any, **kwargs: Any
    ) -> Tensor:
        if self.seq2seq:
            logits, tokens = (
                forward_outputs["logits"][:, :-1],
                minibatch["decoder_input_ids"][:, 1:],
            )
        else:
            start = 0 if self.cut else len(tokenized_contexts[0]["input_ids"])
            logits, tokens = (
                forward_outputs["logits"][:, start:-1],
                minibatch["input_ids"][:, start + 1 :],
            )
        log_probs = logits.log_softmax(-1).gather(2, tokens[:, :, None]).squeeze(2)
        return log_probs.masked_fill(tokens == 0, 0).sum(-1)


class FirstState(BaseModuleFunction):
    """The sum of the state that predicts the first token."""

    def initialize(self) -> None:
        pass

    def forward(
        self, forward_outputs: Any, minibatch: Any, tokenized_contexts: Any, **kwargs: Any
    ) -> Tensor:
        key = (
            "decoder_hidden_states"
            if "decoder_hidden_states" in forward_outputs
            else "hidden_states"
        )
        return forward_outputs[key][-1][:, 0].sum(-1, keepdim=True)


class FirstStateFast(FirstState):
    needs = "state"


@pytest.mark.parametrize("name", ["t5", "llama", "bloom"])
@pytest.mark.parametrize("cut", [True, False])
def test_lamorels_module_functions_see_what_they_expect(name: str, cut: bool) -> None:
    model = make_t5() if name == "t5" else make_causal(name)
    host = make_host(
        model, {"mine": LamorelScores(name == "t5", cut)}, pre_encode_inputs=cut, minibatch_size=4
    )
    candidates = [ACTIONS, ["go forward and turn left", "drop"], ["up"], [""], ACTIONS[:1]]
    result = host.score(PROMPTS, candidates, ("mine",))
    assert result.counts == (6, 2, 1, 1, 1)
    torch.testing.assert_close(result.modules["mine"], result.log_probs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["t5", "llama", "bloom"])
def test_states_are_the_same_on_the_fast_and_the_full_way(name: str) -> None:
    model = make_t5() if name == "t5" else make_causal(name)
    host = make_host(model, {"full": FirstState(), "fast": FirstStateFast()})
    for with_score in (True, False):
        result = (
            host.score(PROMPTS, (), ("full", "fast"), with_score=False)
            if not with_score
            else host.score(PROMPTS, [["drop"]] * 5, ("full", "fast"))
        )
        assert result.modules["fast"].shape == (5, 1)
        torch.testing.assert_close(
            result.modules["fast"], result.modules["full"], rtol=0, atol=1e-9
        )
        assert result.counts == ((1,) * 5 if with_score else (0,) * 5)


@pytest.mark.parametrize("name", ["t5", "llama", "bloom", "gpt2"])
@pytest.mark.parametrize("cache_size", [0, 3, 100])
def test_known_prompts_are_counted_as_if_they_were_asked(name: str, cache_size: int) -> None:
    def host() -> Any:
        model = make_t5() if name == "t5" else make_causal(name)
        return make_host(model, minibatch_size=4, cache_size=cache_size)

    several = (ACTIONS, ("drop",), ("go forward and turn left", "go forward"), ACTIONS, ("",))
    asked, told = host(), host()
    batches: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
        ((0, 1, 2, 1), (1, 3)),
        ((3, 4, 0), (0, 1, 2)),
        ((1, 2, 4), ()),
        ((0, 3, 2), (0, 1)),
    ]
    for rows, known in batches:
        prompts, candidates = [PROMPTS[row] for row in rows], [several[row] for row in rows]
        whole = asked.score(prompts, candidates)
        part = told.score(prompts, candidates, known=known)
        for row, (own, answer) in enumerate(zip(part.split(), whole.split(), strict=True)):
            expected = answer[:0] if row in known else answer
            torch.testing.assert_close(own, expected, rtol=0, atol=1e-9)
        if rows != (1, 2, 4):  # here 1 and 4 are computed after all
            assert part.stats["tokens"] == whole.stats["tokens"], rows
            assert part.stats["distinct_prompts"] == whole.stats["distinct_prompts"]
            assert part.stats["cached_prompts"] == whole.stats["cached_prompts"]


def test_value_head_is_glams() -> None:
    host = make_host(make_t5(), {"value": ValueHead(8)})
    layers = host.module_functions["value"].layers
    assert [type(layer).__name__ for layer in layers] == [
        "Linear",
        "Sigmoid",
        "Linear",
        "Sigmoid",
        "Linear",
    ]
    assert [tuple(layer.weight.shape) for layer in layers[::2]] == [(8, 16), (8, 8), (1, 8)]
    assert host.score(PROMPTS, SIX, ("value",)).modules["value"].shape == (5, 1)


def test_answers_are_remembered_until_the_weights_change() -> None:
    host = make_host(make_t5(), {"value": ValueHead(8)})
    prompts = [PROMPTS[0], PROMPTS[1], PROMPTS[0]]
    first = host.score(prompts, SIX[:3], ("value",))
    assert (
        first.stats["prompts"],
        first.stats["distinct_prompts"],
        first.stats["cached_prompts"],
    ) == (3, 2, 0)
    # 7 + 12 prompt tokens, and each tree's 4 nodes: "", "turn", "go", "pick".
    assert first.stats["tokens"] == 7 + 12 + 2 * 4
    second = host.score([*prompts, PROMPTS[2]], SIX[:4], ("value",))
    assert (
        second.stats["distinct_prompts"],
        second.stats["cached_prompts"],
        second.stats["tokens"],
    ) == (1, 3, 4 + 4)
    assert torch.equal(second.log_probs[:18], first.log_probs) and torch.equal(
        second.modules["value"][:3], first.modules["value"]
    )
    assert (
        host.score(prompts, SIX[:3]).stats["cached_prompts"] == 0
    )  # other modules, another question
    host.weights_changed()
    assert host.score(prompts, SIX[:3], ("value",)).stats["cached_prompts"] == 0


def test_a_change_that_nobody_announced_is_noticed() -> None:
    model = make_t5()
    host = make_host(model)
    before = host.score(PROMPTS, SIX).log_probs
    with torch.no_grad():
        model.lm_head.weight.mul_(0.5)
    result = host.score(PROMPTS, SIX)
    assert result.stats["cached_prompts"] == 0
    torch.testing.assert_close(
        result.log_probs,
        plain_scores(model, make_tokenizer(), PROMPTS, SIX).detach(),
        rtol=0,
        atol=1e-9,
    )
    assert not torch.allclose(result.log_probs, before)


def test_memory_is_bounded_and_can_be_off() -> None:
    host = make_host(make_t5(), cache_size=2)
    host.score(PROMPTS, SIX)
    assert host.info()["remembered_answers"] == 2
    assert host.score(PROMPTS, SIX).stats["cached_prompts"] == 2  # the last two
    off = make_host(make_t5(), cache_size=0)
    off.score(PROMPTS, SIX)
    assert off.score(PROMPTS, SIX).stats["cached_prompts"] == 0


def test_remembered_texts_share_their_numbers() -> None:
    """Above 256 Python makes a number anew each time: 32 bytes in place of 8."""
    words = [f"word{place}" for place in range(400)]
    encoder = TextEncoder(make_tokenizer(words), make_t5(vocab=500).config)
    (first,), (second,) = encoder.encode([words[-1]]), encoder.encode([f"{words[0]} {words[-1]}"])
    assert first[0] > 256 and first[0] is second[1]


def test_remembered_texts_take_no_more_than_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "REMEMBERED_TEXTS_BYTES", 3000)
    encoder = TextEncoder(make_tokenizer(), make_t5().config)
    texts = [f"You see {number} doors, and {number} keys" for number in range(20)]
    told = encoder.encode(texts)
    sizes = [250 + len(own) + 8 * len(tokens) for own, tokens in zip(texts, told, strict=True)]
    last = [sum(sizes[-number:]) for number in range(20)]
    fit = max(number for number, size in enumerate(last) if size <= 3000)
    assert 2 < fit < 19 and len(encoder._known) == fit
    assert [encoder._known.get(own) for own in texts[-fit:]] == told[-fit:]
    assert encoder.encode(texts) == told


def test_a_memory_counts_what_is_put_in_again_once_and_what_is_too_large_not_at_all() -> None:
    memory: Memory[str, str] = Memory(10, lambda key, value: len(value))
    for key, value in [("a", "1234"), ("b", "12"), ("a", "123456"), ("c", "12")]:
        memory.put(key, value)
    assert [memory.get(key) for key in "abc"] == ["123456", "12", "12"]
    memory.put("d", "1")  # a is the least recently used one
    assert [memory.get(key) for key in "abcd"] == [None, "12", "12", "1"]
    memory.put("b", "12345678901")
    assert [memory.get(key) for key in "bcd"] == [None, "12", "1"]
    memory.clear()
    memory.put("f", "1234567890")
    assert memory.get("f") == "1234567890"


def test_with_gradients_nothing_comes_from_memory() -> None:
    host = make_host(make_t5())
    host.score(PROMPTS, SIX)
    result = host.score(PROMPTS, SIX, require_grad=True)
    assert result.stats["cached_prompts"] == 0 and result.log_probs.requires_grad
    assert not host.score(PROMPTS, SIX).log_probs.requires_grad


def test_the_same_prompt_with_other_candidates_is_read_once() -> None:
    host = make_host(make_t5())
    result = host.score([PROMPTS[0]] * 3, [["drop"], ["drop", "toggle"], ["toggle", "drop"]])
    assert result.stats["distinct_prompts"] == 1 and result.stats["tokens"] == 7 + 1
    assert result.log_probs[1] == result.log_probs[0] == result.log_probs[4]


def test_nothing_asked_nothing_answered() -> None:
    host = make_host(make_t5(), {"value": ValueHead(8)})
    result = host.score((), (), ("value",))
    assert (
        result.log_probs.shape == (0,) and result.counts == () and len(result.modules["value"]) == 0
    )
    result = host.score(["drop", "go"], [[], [""]])
    assert (
        result.counts == (0, 1)
        and result.log_probs.tolist() == [0.0]
        and result.stats["tokens"] == 0
    )


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_reset_and_reference_have_the_first_weights(name: str) -> None:
    model = make_t5() if name == "t5" else make_causal()
    host = make_host(model, {"value": ValueHead(8)}, seed=3)
    before = host.score(PROMPTS, SIX, ("value",))
    names, parameters = zip(*host.named_trainable_parameters(), strict=True)
    optimizer = torch.optim.Adam(host.trainable_parameters(), lr=0.1)
    loss = host.score(PROMPTS, SIX, ("value",), require_grad=True)
    (loss.log_probs.sum() + loss.modules["value"].sum()).backward()
    optimizer.step()
    host.weights_changed()
    trained = host.score(PROMPTS, SIX, ("value",))
    assert (trained.log_probs - before.log_probs).abs().min() > 1e-3
    # The reference is built only now, after training, and is not trained along.
    assert torch.equal(host.score_reference(PROMPTS, SIX).log_probs, before.log_probs)
    optimizer.step()
    assert torch.equal(
        host.score_reference(PROMPTS[::-1], SIX).log_probs.view(5, 6).flip(0).flatten(),
        before.log_probs,
    )
    assert host.named_trainable_parameters()[0][0] == names[0] and len(
        host.trainable_parameters()
    ) == len(names)

    host.reset(3)
    after = host.score(PROMPTS, SIX, ("value",))
    assert torch.equal(after.log_probs, before.log_probs) and torch.equal(
        after.modules["value"], before.modules["value"]
    )
    assert all(old is new for old, new in zip(parameters, host.trainable_parameters(), strict=True))
    host.reset(4)
    assert not torch.equal(
        host.score(PROMPTS, SIX, ("value",)).modules["value"], before.modules["value"]
    )


def test_the_reference_counts_the_positions_that_it_computed_and_none_that_it_remembers() -> None:
    host = make_host(make_t5())
    tokens = host.score(PROMPTS, SIX).stats["tokens"]
    assert host.score_reference(PROMPTS, SIX).stats["tokens"] == tokens > 0
    assert host.score_reference(PROMPTS[:2], SIX[:2]).stats["tokens"] == 0
    host.forget()
    some = host.score_reference(PROMPTS[:2], SIX[:2]).stats["tokens"]
    assert 0 < some < tokens
    host.score(PROMPTS, SIX)
    host.forget(reference=False)
    assert host.score_reference(PROMPTS[:2], SIX[:2]).stats["tokens"] == 0
    assert host.score(PROMPTS, SIX).stats["tokens"] == tokens


def test_forgotten_reference_answers_round_as_in_a_host_that_never_had_them() -> None:
    """What a resumed run asks of a new host, and an uninterrupted one of a host with a past."""
    long, new = make_host(make_t5()), make_host(make_t5())
    long.score_reference(PROMPTS[:2], SIX[:2])
    long.forget()
    asked: list[int] = []
    inner = long._reference
    assert inner is not None
    answer = inner.answer
    inner.answer = lambda prompts, *rest: asked.append(len(prompts)) or answer(prompts, *rest)  # type: ignore[method-assign, assignment]
    assert torch.equal(
        long.score_reference(PROMPTS, SIX).log_probs, new.score_reference(PROMPTS, SIX).log_probs
    )
    assert asked == [len(PROMPTS)]


def test_drawing_a_head_leaves_the_random_state_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    model = make_t5()
    torch.manual_seed(0)
    host = make_host(model, {"value": ValueHead(8)})
    host.reset(1)
    assert torch.equal(torch.rand(3), expected)


def test_frozen_parameters_are_not_trainable() -> None:
    model = make_t5()
    model.encoder.requires_grad_(False)
    host = make_host(model, {"value": ValueHead(8)})
    names = [name for name, _ in host.named_trainable_parameters()]
    assert "model.lm_head.weight" in names and "module_functions.value.layers.0.weight" in names
    # The encoder's embeddings are the decoder's, and frozen with it.
    assert not any("encoder" in name or "shared" in name for name in names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a"], []), "1 prompts but 0 lists of candidates"),
        ((["a", "b"], [["c"]]), "2 prompts but 1 lists"),
        ((["a", 5], [["c"], ["c"]]), "prompt 1 is a int"),
        ((["a"], ["turn left"]), "candidates of prompt 0 are not a list of texts"),
        ((["a"], [[None]]), "candidates of prompt 0"),
        ((["a"], [["c"]], ("value",)), "no module function 'value'; there are: critic"),
        (
            (["go"] * 4 + ["go " * 9], [["c"]] * 5),
            "the prompt 'go go go go go go go go go ' has 9 tokens; max_prompt_tokens allows 8",
        ),
    ],
)
def test_impossible_requests_are_refused(arguments: Any, message: str) -> None:
    host = make_host(make_t5(), {"critic": ValueHead(4)}, max_prompt_tokens=8)
    with pytest.raises(RequestError, match=message):
        host.score(*arguments)
    assert host.score(["go"], [["drop"]]).log_probs.isfinite().all()


def test_a_model_with_positions_has_a_limit_of_its_own_and_t5_has_none() -> None:
    llama = make_host(make_causal())
    llama.score(["go " * 60], [["drop"]])
    with pytest.raises(
        RequestError,
        match="has 63 tokens and up to 2 behind it; the model has 64 positions",
    ):
        llama.score(["go", "go " * 63], [["drop"], ["drop it", "up"]])
    model = make_t5()
    model.config.n_positions = 64
    assert make_host(model).score(["go " * 100], [["drop"]]).log_probs.isfinite().all()


@pytest.mark.parametrize(
    ("architecture", "sizes", "prompts", "steps"),
    [
        ("bart", {"max_position_embeddings": 16}, 16, 15),
        ("led", {"max_encoder_position_embeddings": 32, "attention_window": 4}, 32, 15),
        ("mpt", {"max_seq_len": 32, "n_heads": 2, "n_layers": 1}, 17, 15),
    ],
)
def test_positions_of_encoder_and_decoder_are_limits_each(
    architecture: str, sizes: dict[str, Any], prompts: int, steps: int
) -> None:
    sizes |= {"vocab_size": VOCAB, "d_model": 16, "max_decoder_position_embeddings": 16}
    sizes |= {"encoder_layers": 1, "decoder_layers": 1, "pad_token_id": 0, "eos_token_id": 1}
    sizes |= {
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "forced_eos_token_id": None,
    }
    config = AutoConfig.for_model(architecture, **sizes)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    host, go = make_host(auto.from_config(config)), "go " * prompts
    most = {"max_new_tokens": steps, "min_new_tokens": steps}
    assert host.score([go], [["go " * steps]]).log_probs.isfinite().all()
    assert host.generate(GenerateRequest((go,), most)).lengths == (steps,)
    for prompt, more in (("go " * (prompts + 1), steps), (go, steps + 1)):
        with pytest.raises(RequestError, match=r"has (up to )?\d+ tokens.* positions"):
            host.score([prompt], [["go " * more]])
    with pytest.raises(RequestError, match=r"has (up to )?\d+ tokens.* positions"):
        host.generate(GenerateRequest((go,), {"max_new_tokens": steps + 1}))


@pytest.mark.parametrize("model", [make_t5, make_causal])
def test_a_token_that_the_model_does_not_know_is_named(model: Callable[[], Any]) -> None:
    host = make_host(model())
    host.tokenizer.add_tokens(["zonk"])
    message = r"'go zonk' has the token 'zonk' with number 31; the model has 31 tokens"
    for arguments in ((["go zonk"], [["drop"]]), (["go"], [["drop", "go zonk"]])):
        with pytest.raises(RequestError, match=message):
            host.score(*arguments)
    with pytest.raises(RequestError, match=message):
        host.generate(GenerateRequest(("go zonk",)))


def test_a_text_of_which_the_tokenizer_knows_nothing_is_no_certain_candidate() -> None:
    host = make_host(make_t5())
    letters = Tokenizer(models.BPE({"<pad>": 0, "</s>": 1, "a": 2}, []))  # leaves out all others
    host._encoder._tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters)
    with pytest.raises(RequestError, match="'go' has no tokens: the tokenizer knows nothing of it"):
        host.score(["a"], [["a", "go"]])
    assert host.score(["a"], [[" ", "a"]]).log_probs[0] == 0


def test_an_empty_prompt_needs_something_to_stand_for_it() -> None:
    host = make_host(make_causal())
    host.tokenizer.eos_token = None
    with pytest.raises(
        RequestError, match="a prompt is empty, and the tokenizer has no beginning-of-text token"
    ):
        host.score(["go", ""], [["drop"], ["drop"]])


class InPlace(BaseModuleFunction):
    """Changes what it reads."""

    def initialize(self) -> None:
        pass

    def forward(
        self, forward_outputs: Any, minibatch: Any, tokenized_contexts: Any, **kwargs: Any
    ) -> Tensor:
        states: Tensor = forward_outputs["decoder_hidden_states"][-1]
        return states[:, 0].mul_(0).sum(-1)


class InPlaceFast(InPlace):
    needs = "state"


def test_a_module_function_that_works_in_place_changes_nothing_for_the_others() -> None:
    functions = {"full": InPlace(), "fast": InPlaceFast(), "sum": FirstStateFast()}
    host = make_host(make_t5(), functions)
    alone = host.score(PROMPTS, SIX, ("sum",)).modules["sum"]
    result = host.score(PROMPTS, SIX, ("fast", "sum"))
    assert torch.equal(result.modules["sum"], alone) and not result.modules["fast"].any()
    host.score(PROMPTS, SIX, ("full",))


def test_a_whole_pass_that_is_changed_in_place_before_others_read_it_is_refused() -> None:
    host = make_host(make_t5(), {"full": InPlace(), "sum": FirstState()})
    with pytest.raises(RequestError, match="'full' changed in place what the others read"):
        host.score(PROMPTS, SIX, ("full", "sum"))
    assert host.score(PROMPTS, SIX, ("sum", "full")).modules["sum"].abs().min() > 0


def test_a_module_function_of_the_wrong_shape_is_refused() -> None:
    class Scalar(FirstState):
        def forward(
            self, forward_outputs: Any, minibatch: Any, tokenized_contexts: Any, **kwargs: Any
        ) -> Tensor:
            return torch.zeros(1)

    with pytest.raises(
        RequestError,
        match=r"module function 'odd' gave a tensor of shape \(1,\); expected a tensor with 3 rows",
    ):
        make_host(make_t5(), {"odd": Scalar()}).score(["go"], [["drop", "up", "left"]], ("odd",))


def test_info_names_what_is_hosted() -> None:
    info = make_host(make_t5(), {"value": ValueHead(8)}, model_path="here").info()
    assert (info["model_path"], info["model_type"], info["engine"], info["dtype"]) == (
        "here",
        "seq2seq",
        "T5Engine",
        "float64",
    )
    assert (
        info["vocab_size"] == VOCAB
        and info["module_functions"] == "value"
        and info["weights_version"] == 0
    )
    head = 16 * 8 + 8 + 8 * 8 + 8 + 8 + 1
    assert int(info["trainable_parameters"]) - int(info["parameters"]) == head
