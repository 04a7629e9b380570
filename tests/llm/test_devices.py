"""What a GPU would ask for, checked without one: nothing waits for values, nothing lies on the
wrong device, bfloat16 is good enough.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lamorel_ext.config import LlmArgs
from lamorel_ext.errors import ModelLoadError
from lamorel_ext.llm import loading
from lamorel_ext.llm.loading import load_host, load_model
from lamorel_ext.llm.module_functions import ValueHead
from lamorel_ext.llm.scoring import t5_forward as t5
from lamorel_ext.llm.scoring.candidate_tree import make_tree
from lamorel_ext.llm.scoring.causal import CausalEngine
from lamorel_ext.llm.scoring.engines import make_engine
from lamorel_ext.llm.scoring.vocabulary_head import compute_logits
from tests.llm.tiny_models import (
    ACTIONS,
    PROMPTS,
    WORDS,
    ids,
    make_causal,
    make_host,
    make_t5,
    make_tokenizer,
    plain_scores,
)

MODELS = {
    "t5": make_t5,
    "t5-tied-relu": lambda **a: make_t5("relu", own_head=False, **a),
    "llama": make_causal,
    "gpt2": lambda **a: make_causal("gpt2", **a),
}
LONG = [
    "turn left and go forward 2 steps",
    "turn left and go right",
    "pick up the ball",
    "go forward",
]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("gradients", [False, True])
def test_reading_never_waits_for_the_device(name: str, gradients: bool) -> None:
    """Tensors on the device "meta" have shapes and no values: whatever asks for one there, or mixes
    devices up, raises.
    """
    engine = make_engine(MODELS[name](dtype=torch.bfloat16).to("meta"), 64)
    tokenizer = make_tokenizer()
    texts = [
        "you see a red ball 1 step left and a wall",
        "you see a red ball 1 step left and a wall and a ball",
        "go",
        "go left",
    ]
    prompts = sorted((tuple(ids(tokenizer, text)) for text in texts), key=len)
    trees = [make_tree([tuple(ids(tokenizer, text)) for text in own]) for own in (ACTIONS, LONG)]
    one, other = trees
    with torch.set_grad_enabled(gradients):
        for rounds in ([[one] * 4], [[one, other, one, other], [other] * 4]):
            reading = engine.read(prompts, rounds, with_states=True)
            assert [len(edges) for edges in reading.edges] == [
                sum(tree.num_edges for tree in own) for own in rounds
            ]
            assert all(edges.device.type == "meta" for edges in reading.edges)
            assert reading.states is not None and reading.states.shape == (4, 16)


def test_a_gpu_reads_what_prompts_begin_with_by_itself_only_where_that_spares_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A pass takes it as long for hundreds of positions as for one."""
    engine = CausalEngine(make_causal())
    tree = make_tree([(1,), (2,)])  # a root, which is the prompt's end
    few, many = ([(*range(10), 20, last) for last in range(n)] for n in (3, 1700))
    assert engine.count(few, [[tree] * 3]) == 11 + 3
    monkeypatch.setattr(CausalEngine, "_device", torch.device("cuda"))
    assert engine.count(few, [[tree] * 3]) == 3 * 12
    assert engine.count(many, [[tree] * 1700]) == 11 + 1700


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_scores_are_float32_scores_rounded(name: str) -> None:
    """Beside the same weights in float32: no further off than plain transformers is when it
    computes in bfloat16 itself.
    """
    model = MODELS[name](dtype=torch.bfloat16)
    candidates = [[*ACTIONS, *LONG]] * len(PROMPTS)
    ours = make_host(model).score(PROMPTS, candidates).log_probs
    with torch.no_grad():
        plain = plain_scores(model, make_tokenizer(), PROMPTS, candidates).float()
    exact = (
        make_host(MODELS[name](dtype=torch.bfloat16).float()).score(PROMPTS, candidates).log_probs
    )
    assert ours.dtype == torch.float32
    # bfloat16 has 8 significant bits; sums of up to seven tokens' log-probabilities, about -20
    # nats, come out right to some tenths.
    assert _rms(ours - exact) < 1.25 * _rms(plain - exact) + 0.01
    assert _rms(ours - exact) < 0.05 * float(exact.std())


@pytest.mark.parametrize("name", MODELS)
def test_logits_of_bfloat16_states_are_not_rounded(name: str) -> None:
    """Against float64 from the very same states, with gradients and without; large logits, of which
    bfloat16 would lose the tenths.
    """
    model = MODELS[name](dtype=torch.bfloat16)
    layer, scale = model.get_output_embeddings(), 0.25 if name == "t5-tied-relu" else 1.0
    torch.nn.init.normal_(layer.weight, std=3.0)
    states = torch.randn(300, 16).to(torch.bfloat16).requires_grad_()
    exact = (scale * states.double()) @ layer.weight.double().t()
    logits = _head(model)(states)
    assert logits.dtype == torch.float32 and exact.abs().max() > 8
    torch.testing.assert_close(logits.double(), exact, rtol=1e-6, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(_head(model)(states), logits)

    into = torch.randn(logits.shape)
    logits.backward(into)
    expected = torch.autograd.grad(exact, [states, layer.weight], into.double())
    for tensor, gradient in zip((states, layer.weight), expected, strict=True):
        assert tensor.grad is not None and tensor.grad.dtype == torch.bfloat16
        # Gradients are rounded to eight bits on their way in and out.
        assert _rms(tensor.grad - gradient) < 2**-7 * _rms(gradient)


def test_a_head_with_a_bias_and_one_that_is_no_plain_layer() -> None:
    states, layer = (
        torch.randn(5, 16).to(torch.bfloat16),
        torch.nn.Linear(16, 40, dtype=torch.bfloat16),
    )
    exact = states.double() @ layer.weight.double().t() + layer.bias.double()
    torch.testing.assert_close(compute_logits(layer, states).double(), exact, rtol=1e-6, atol=1e-6)
    compute_logits(layer, states).sum().backward()
    assert torch.equal(layer.bias.grad, torch.full((40,), 5.0, dtype=torch.bfloat16))
    stack = torch.nn.Sequential(layer)
    assert torch.equal(compute_logits(stack, states, 0.5), stack(states * 0.5))


@pytest.mark.parametrize("name", MODELS)
def test_the_head_in_full_precision_is_the_models_own(name: str) -> None:
    model = MODELS[name](dtype=torch.float32)
    states = torch.randn(7, 16)
    assert torch.equal(
        _head(model)(states),
        model.get_output_embeddings()(states * 0.25 if name == "t5-tied-relu" else states),
    )


def _head(model: Any) -> Any:
    return (
        t5.T5Forward(model).head
        if t5.is_t5(model)
        else partial(compute_logits, model.get_output_embeddings())
    )


def test_gradients_in_bfloat16_point_where_those_in_float32_do() -> None:
    """As well as the gradients of plain transformers in bfloat16 do."""

    def gradient(dtype: torch.dtype, plainly: bool) -> Tensor:
        model = make_t5(dtype=torch.bfloat16).to(dtype)
        texts = [ACTIONS] * len(PROMPTS)
        if plainly:
            scores = plain_scores(model, make_tokenizer(), PROMPTS, texts)
        else:
            scores = make_host(model).score(PROMPTS, texts, require_grad=True).log_probs
        scores.sum().backward()
        return torch.cat([parameter.grad.float().flatten() for parameter in model.parameters()])

    exact = gradient(torch.float32, plainly=True)
    ours, plain = (
        F.cosine_similarity(gradient(torch.bfloat16, plainly), exact, dim=0)
        for plainly in (False, True)
    )
    assert ours > 0.95 and ours > plain - 0.01


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_the_norm_in_one_kernel_is_the_same_norm(dtype: torch.dtype, tolerance: float) -> None:
    # It is used on GPUs; two bits of bfloat16 are 0.8 %, on values up to 2.5.
    norm: Any = make_t5(dtype=dtype).encoder.final_layer_norm
    x = torch.randn(5, 16).to(dtype)
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients):
            torch.testing.assert_close(
                F.rms_norm(x, (16,), norm.weight, norm.variance_epsilon),
                t5._rms_norm(norm, x),
                rtol=0,
                atol=tolerance,
            )


def test_cudnns_attention_is_off_where_a_model_goes_to_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        load_host(LlmArgs(), torch.device("cpu"))
        assert torch.backends.cuda.cudnn_sdp_enabled()
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        moved: list[torch.device] = []
        monkeypatch.setattr(loading, "_move", lambda model, device: moved.append(device))
        load_model(LlmArgs(), torch.device("cuda", 0))
        assert moved == [torch.device("cuda", 0)] and not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def test_a_gpu_that_is_not_there_is_named() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(ModelLoadError, match="use_gpu"):
        load_host(LlmArgs(), torch.device("cuda", 0))


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


class _Counter(TorchDispatchMode):
    """Counts the operations that PyTorch is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["t5", "llama"])
@pytest.mark.parametrize("gradients", [False, True])
def test_no_operation_is_asked_for_prompt_by_prompt_or_token_by_token(
    name: str, gradients: bool
) -> None:
    host = make_host(MODELS[name](), {"value": ValueHead(8)}, cache_size=0)
    counts = []
    for places, candidates in ((2, ACTIONS[:2]), (12, (*ACTIONS, *LONG))):
        # As long as each other in both calls, so that padding is a matter of neither.
        prompts = [f"{first} you see {second} ball" for first in WORDS[:3] for second in WORDS[:4]][
            :places
        ]
        prompts = [prompt + " and a wall" * (places // 6) for prompt in prompts]
        with _Counter() as counter:
            host.score(prompts, [candidates] * places, ("value",), require_grad=gradients)
        counts.append(counter.count)
    few, many = counts
    # Six times the prompts, five times the candidates, more tokens each: not one operation more but
    # for the order of the results.
    assert many - few <= 4, counts
