"""Runs that start from fresh weights: what is drawn, what stays, what the reference is, and heads
that take no part.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lamorel_ext.errors import CheckpointError, RequestError
from lamorel_ext.llm.fresh import LOGIT_STD
from lamorel_ext.llm.host import ModelHost
from lamorel_ext.llm.module_functions import ActionHeads, ValueHead
from lamorel_ext.types import GenerateRequest
from tests.llm.tiny_models import ACTIONS, PROMPTS, make_causal, make_host, make_t5

SIX = [ACTIONS] * len(PROMPTS)


def two_headed(model: object, seed: int = 0) -> ModelHost:
    return make_host(model, {"value": ValueHead(4), "actions": ActionHeads(4, 6)}, seed=seed)


def model_weights(host: ModelHost) -> torch.Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in host.model.parameters()])


@pytest.mark.parametrize("name", ["t5", "tied t5", "llama"])
def test_fresh_weights_follow_from_the_seed_alone(name: str) -> None:
    make = {
        "t5": make_t5,
        "tied t5": lambda seed: make_t5(own_head=False, seed=seed),
        "llama": lambda seed: make_causal(seed=seed),
    }[name]
    one, other = make_host(make(seed=0)), make_host(make(seed=1))
    parameters, loaded = one.trainable_parameters(), model_weights(one)
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    one.reset(3, "fresh")
    assert torch.equal(torch.random.get_rng_state(), state)
    other.reset(3, "fresh")
    assert torch.equal(model_weights(one), model_weights(other)) and not torch.equal(
        model_weights(one), loaded
    )
    assert all(old is new for old, new in zip(parameters, one.trainable_parameters(), strict=True))
    tied = name == "tied t5"
    assert (
        one.model.get_output_embeddings().weight is one.model.get_input_embeddings().weight
    ) == tied
    other.reset(4, "fresh")
    assert not torch.equal(model_weights(one), model_weights(other))
    one.reset(4)
    assert torch.equal(model_weights(one), loaded)


def test_drawing_on_the_cpu_seeds_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    host = two_headed(make_t5())
    seeded: list[int] = []
    for name in ("manual_seed", "manual_seed_all"):
        monkeypatch.setattr(torch.cuda, name, seeded.append)
    host.reset(3, "fresh")
    host.generate(GenerateRequest(("go",), {"do_sample": True, "seed": 4, "max_new_tokens": 2}))
    assert seeded == []


def test_fresh_logits_are_about_as_wide_as_a_trained_models() -> None:
    host = make_host(make_t5())
    host.reset(0, "fresh")
    with torch.no_grad():
        logits = host.model(
            input_ids=torch.randint(VOCAB_SIZE, (8, 12)),
            decoder_input_ids=torch.randint(VOCAB_SIZE, (8, 6)),
        ).logits
    assert float(logits.std()) == pytest.approx(
        LOGIT_STD, rel=0.25
    )  # measured on other random tokens


VOCAB_SIZE = int(make_t5().config.vocab_size)


@pytest.mark.parametrize("own_head", [True, False])
def test_the_loaded_embeddings_can_be_kept_and_nothing_else(own_head: bool) -> None:
    host = make_host(make_t5(own_head=own_head))
    loaded = {name: parameter.detach().clone() for name, parameter in host.model.named_parameters()}
    host.reset(0, "embeddings")
    same = {
        name
        for name, parameter in host.model.named_parameters()
        if torch.equal(parameter, loaded[name])
    }
    assert same == {"shared.weight"}
    other = make_host(make_t5(own_head=own_head))
    other.reset(0, "embeddings")
    assert torch.equal(model_weights(host), model_weights(other))


def test_the_reference_is_where_the_run_began() -> None:
    host = make_host(make_t5())
    loaded = host.score_reference(PROMPTS, SIX).log_probs
    host.reset(1, "fresh")
    begun = host.score(PROMPTS, SIX).log_probs
    with torch.no_grad():
        for parameter in host.trainable_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    host.weights_changed()
    assert (host.score(PROMPTS, SIX).log_probs - begun).abs().max() > 1e-3
    torch.testing.assert_close(
        host.score_reference(PROMPTS, SIX).log_probs, begun, rtol=0, atol=1e-12
    )
    host.reset(1)
    assert torch.equal(host.score_reference(PROMPTS, SIX).log_probs, loaded)


def test_another_kind_of_weights_is_refused_and_changes_nothing() -> None:
    host = make_host(make_t5())
    before = model_weights(host)
    with pytest.raises(RequestError, match="pretrained, fresh or embeddings, got 'stale'"):
        host.reset(0, "stale")  # type: ignore[arg-type]
    assert torch.equal(model_weights(host), before)


def test_heads_out_of_use_are_neither_trained_nor_saved_nor_asked_for(tmp_path: Path) -> None:
    host = two_headed(make_t5())
    count = len(host.trainable_parameters())
    host.reset(0, unused=("actions", "no such head"))
    assert len(host.trainable_parameters()) == count - 6  # three layers, weights and biases
    host.save(tmp_path)
    assert {name.split(".")[0] for name in load_file(tmp_path / "modules.safetensors")} == {"value"}
    # A server that has no such head at all reads it, and so does one where it is out of use; one
    # that uses it does not.
    make_host(make_t5(seed=1), {"value": ValueHead(4)}).load(tmp_path)
    other = two_headed(make_t5(seed=1))
    with pytest.raises(CheckpointError, match="lacks 6 tensors, the first is actions"):
        other.load(tmp_path)
    other.reset(5, unused=("actions",))
    other.load(tmp_path)
    result, expected = (each.score(PROMPTS, SIX, ("value",)) for each in (other, host))
    assert torch.equal(result.modules["value"], expected.modules["value"]) and torch.equal(
        result.log_probs, expected.log_probs
    )
    other.reset(5)
    assert len(other.trainable_parameters()) == count


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_action_heads_give_one_logit_per_action_from_the_state_that_the_critic_sees(
    name: str,
) -> None:
    model = make_t5() if name == "t5" else make_causal()
    seen: list[torch.Tensor] = []

    class Watching(ActionHeads):
        def forward(
            self,
            forward_outputs: object,
            minibatch: object,
            tokenized_contexts: object,
            **kwargs: object,
        ) -> torch.Tensor:
            key = "decoder_hidden_states" if name == "t5" else "hidden_states"
            seen.append(forward_outputs[key][-1][:, 0])  # type: ignore[index]
            return super().forward(forward_outputs, minibatch, tokenized_contexts)

    host = make_host(model, {"value": ValueHead(8), "actions": Watching(8, 6)})
    result = host.score(PROMPTS, (), ("value", "actions"), with_score=False)
    assert (
        result.modules["actions"].shape == (5, 6)
        and result.modules["value"].shape == (5, 1)
        and result.log_probs.shape == (0,)
    )
    (states,) = seen
    for head in ("value", "actions"):
        layers = host.module_functions[head].layers
        expected = layers[4](torch.sigmoid(layers[2](torch.sigmoid(layers[0](states)))))
        torch.testing.assert_close(result.modules[head], expected, rtol=0, atol=1e-9)
