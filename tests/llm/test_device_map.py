"""Layers over several GPUs: the map of models too large to build here, on the device "meta", and
the forward pass of one that lies on two devices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, T5Config

from lamorel_ext.config import LlmArgs, ParallelismArgs, load_config
from lamorel_ext.errors import ModelLoadError
from lamorel_ext.llm import loading
from lamorel_ext.llm.device_map import make_device_map, spread
from lamorel_ext.llm.module_functions import ValueHead
from lamorel_ext.llm.scoring.candidate_tree import make_tree
from lamorel_ext.llm.scoring.engines import make_engine
from lamorel_ext.llm.updaters import make_updaters
from lamorel_ext.rpc.groups import make_thread_groups
from lamorel_ext.rpc.topology import placements
from lamorel_ext.types import UpdateRequest
from tests.llm.tiny_models import (
    ACTIONS,
    PROMPTS,
    ids,
    make_causal,
    make_host,
    make_t5,
    make_tokenizer,
)

GIB = 2**30


def flan_t5_xxl() -> Any:
    config = T5Config(
        vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("meta"):
        return AutoModelForSeq2SeqLM.from_config(config, dtype=torch.bfloat16)


def causal_7b() -> Any:
    config = AutoConfig.for_model(
        "llama", vocab_size=32000, hidden_size=4096, num_hidden_layers=32, num_attention_heads=32,
        intermediate_size=11008,
    )  # fmt: skip
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


def gib_by_gpu(model: Any, found: dict[str, int]) -> dict[int, float]:
    """Weights on each GPU; every parameter must be on exactly one."""
    sizes: dict[int, float] = {}
    for name, tensor in model.named_parameters():
        (gpu,) = {gpu for part, gpu in found.items() if f"{name}.".startswith(f"{part}.")}
        sizes[gpu] = sizes.get(gpu, 0.0) + tensor.numel() * tensor.element_size() / GIB
    return sizes


@pytest.mark.parametrize("build", [flan_t5_xxl, causal_7b])
@pytest.mark.parametrize("num_gpus", [2, 8])
def test_layers_are_shared_out_evenly_in_their_order_and_none_is_cut(
    build: Callable[[], Any], num_gpus: int
) -> None:
    model = build()
    found = make_device_map(model, dict.fromkeys(range(num_gpus), 80 * GIB))
    sizes = gib_by_gpu(model, found)
    assert sorted(sizes) == list(range(num_gpus))
    largest = max(tensor.numel() * 2 for tensor in model.state_dict().values()) / GIB
    block = sum(sizes.values()) / (48 if model.config.is_encoder_decoder else 32)
    assert max(sizes.values()) < sum(sizes.values()) / num_gpus + largest + block
    layers = [gpu for part, gpu in found.items() if ".block." in part or ".layers." in part]
    assert layers == sorted(layers)
    cut = {part.split(".block.")[1].count(".") for part in found if ".block." in part}
    assert cut <= {0}


def test_a_gpu_with_less_memory_gets_less_and_too_little_is_an_error() -> None:
    model = causal_7b()  # 12.6 GiB
    sizes = gib_by_gpu(model, make_device_map(model, {0: 80 * GIB, 3: 4 * GIB}))
    assert sizes[3] < 4 < sizes[0]
    with pytest.raises(ModelLoadError, match=r"big: 12\.6 GiB .* 0 \(4\.0 GiB free\), 1 .*size"):
        make_device_map(model, {0: 4 * GIB, 1: 4 * GIB}, "big")
    with pytest.raises(ModelLoadError, match="do not fit"):
        make_device_map(flan_t5_xxl(), dict.fromkeys(range(8), 2 * GIB))


def test_two_servers_of_four_gpus_each_and_the_placement_of_both() -> None:
    args = load_config(
        [
            "lamorel_args.llm_args.parallelism.use_gpu=true",
            "lamorel_args.llm_args.parallelism.model_parallelism_size=4",
            "lamorel_args.distributed_setup_args.n_llm_processes=2",
        ]
    ).lamorel_args
    assert [place.gpus for place in placements(args)] == [(), (0, 1, 2, 3), (4, 5, 6, 7)]
    for place in placements(args)[1:]:
        model = flan_t5_xxl()
        sizes = gib_by_gpu(model, make_device_map(model, dict.fromkeys(place.gpus, 40 * GIB)))
        assert tuple(sorted(sizes)) == place.gpus


MODELS = {
    "t5": make_t5,
    "t5-tied": lambda **a: make_t5("relu", own_head=False, **a),
    "llama": make_causal,
    "gpt2": lambda **a: make_causal("gpt2", **a),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_spread_model_scores_trains_and_comes_back_as_one_on_one_device(
    name: str, tmp_path: Any
) -> None:
    """With Accelerate's hooks on every module, and all of them on the CPU."""
    hosts = []
    for spread_out in (False, True):
        model = MODELS[name]()
        if spread_out:
            spread(model, {"": "cpu"})
        hosts.append(make_host(model, {"value": ValueHead(8)}, cache_size=0))
    one, several = hosts
    assert any(hasattr(module, "_hf_hook") for module in several.model.modules())
    for _ in range(2):
        scores = [host.score(PROMPTS, [ACTIONS] * len(PROMPTS), ("value",)) for host in hosts]
        torch.testing.assert_close(scores[1].log_probs, scores[0].log_probs, rtol=0, atol=1e-12)
        torch.testing.assert_close(
            scores[1].modules["value"], scores[0].modules["value"], rtol=0, atol=1e-12
        )
        for host in hosts:
            teach(host)
    assert not torch.equal(scores[0].log_probs, one.score(PROMPTS, [ACTIONS] * 5).log_probs)
    several.save(tmp_path / "saved")
    one.reset(0)
    one.load(tmp_path / "saved")
    for first, second in zip(one.parameters(), several.parameters(), strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-12)
    reference = [host.score_reference(PROMPTS, [ACTIONS] * 5).log_probs for host in hosts]
    torch.testing.assert_close(reference[1], reference[0], rtol=0, atol=1e-12)


def teach(host: Any) -> None:
    updater = make_updaters()["ppo"]
    updater.set_llm_module(host)
    updater.set_group(make_thread_groups(1)[0])
    n = len(PROMPTS)
    scores = host.score(PROMPTS, [ACTIONS] * n).padded().log_softmax(-1)
    data = {
        "actions": torch.arange(n) % 6,
        "advantages": torch.linspace(-1, 1, n),
        "returns": torch.zeros(n),
        "old_log_probs": scores[torch.arange(n), torch.arange(n) % 6].float(),
        "values": torch.zeros(n),
    }
    request = UpdateRequest("ppo", PROMPTS, (ACTIONS,) * n, torch.arange(n), n, data, {"lr": 1e-2})
    updater.update(request)


@pytest.mark.parametrize("name", ["t5", "t5-tied"])
@pytest.mark.parametrize("gradients", [False, True])
def test_a_t5_on_two_devices_takes_everything_along(name: str, gradients: bool) -> None:
    """Its second half on "meta", from where nothing comes back: what is left behind would raise."""
    model = MODELS[name](dtype=torch.bfloat16)
    halves = {"encoder.block.1": "meta", "encoder.final_layer_norm": "meta"}
    halves |= {"decoder.block.0": "meta", "decoder.block.1": "meta"}
    halves |= {"decoder.final_layer_norm": "meta", "lm_head": "cpu" if "tied" in name else "meta"}
    rest = {"shared": "cpu", "encoder.embed_tokens": "cpu", "encoder.block.0": "cpu"}
    spread(model, rest | {"decoder.embed_tokens": "cpu"} | halves)
    if "tied" in name:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.to("meta"))
    engine = make_engine(model, 64)
    tokenizer = make_tokenizer()
    texts = ["go", "go left", "you see a red ball", "you see a red ball and a wall"]
    trees = [make_tree([tuple(ids(tokenizer, text)) for text in own]) for own in (ACTIONS, ("go",))]
    prompts = [tuple(ids(tokenizer, text)) for text in texts]
    with torch.set_grad_enabled(gradients):
        reading = engine.read(prompts, [[trees[0], trees[1]] * 2, [trees[1]] * 4], True)
    assert {edges.device.type for edges in reading.edges} == {"meta"}
    assert reading.states is not None and reading.states.device.type == "meta"


def test_a_server_of_two_gpus_spreads_its_model_over_both(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[torch.device]] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(loading, "choose_attention", lambda device: None)
    monkeypatch.setattr(loading, "spread_over_gpus", lambda model, gpus, name: asked.append(gpus))
    gpus = [torch.device("cuda", 1), torch.device("cuda", 3)]
    args = LlmArgs(parallelism=ParallelismArgs(use_gpu=True, model_parallelism_size=2))
    loading.load_host(args, gpus[0], devices=gpus)
    assert asked == [gpus]
    with pytest.raises(ModelLoadError, match="model_parallelism_size=2, but 1 GPUs were given"):
        loading.load_host(args, gpus[0])
