"""Tiny random models and a tokenizer of words, and the slow obvious way to score: one pair at a
time, no padding, plain transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    MT5Config,
    MT5ForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.modeling_outputs import BaseModelOutput

from lamorel_ext.config import LlmArgs
from lamorel_ext.llm.host import ModelHost
from lamorel_ext.llm.module_functions import BaseModuleFunction

WORDS = (
    "turn left right go forward pick up drop toggle goal of the agent : "
    "red ball you see a wall 1 2 3 step steps and action observation"
).split()
SPECIAL = ["<pad>", "</s>", "<unk>"]
VOCAB = len(SPECIAL) + len(WORDS)
ACTIONS = ("turn left", "turn right", "go forward", "pick up", "drop", "toggle")
PROMPTS = (
    "goal of the agent : go left",
    "you see a red ball 2 steps forward and 1 step left",
    "you see a wall",
    "",
    "action :",
)
SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "models" / "flan-t5-small-shape"


def make_tokenizer(words: Sequence[str] = WORDS) -> PreTrainedTokenizerFast:
    """One token per word."""
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate([*SPECIAL, *words])}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def make_t5(
    ff: str = "gated-gelu",
    own_head: bool = True,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    vocab: int = VOCAB,
    **sizes: Any,
) -> Any:
    """A T5 with 2 + 2 layers whose distances reach every kind of bucket, and whose logits differ
    from word to word.
    """
    torch.manual_seed(seed)
    shape = {
        "d_model": 16,
        "d_kv": 5,
        "d_ff": 24,
        "num_layers": 2,
        "num_heads": 3,
        "relative_attention_num_buckets": 8,
        **sizes,
    }
    config = T5Config(
        vocab_size=vocab, relative_attention_max_distance=12, feed_forward_proj=ff,
        tie_word_embeddings=not own_head, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
        **shape,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Drawn anew: norms that are not 1 and biases that matter, or their mistakes would not
            # show.
            parameter.copy_(
                0.5 + torch.rand_like(parameter)
                if "layer_norm" in name
                else torch.randn_like(parameter) * 0.3
            )
        if own_head:
            model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.5)
    return model.to(dtype).eval()


def make_mt5() -> Any:
    """The same with MT5's own class, which never scales the decoder's output."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": VOCAB,
        "d_model": 16,
        "d_kv": 5,
        "d_ff": 24,
        "num_layers": 2,
        "num_heads": 3,
        "initializer_factor": 0.5,
    }
    model = MT5ForConditionalGeneration(
        MT5Config(**sizes, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)
    )
    return model.double().eval()


def make_causal(
    architecture: str = "llama", dtype: torch.dtype = torch.float64, seed: int = 0
) -> Any:
    """A decoder-only model of 2 layers."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "intermediate_size": 24, "max_position_embeddings": 64,
        "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1, "initializer_range": 0.4,
    }  # fmt: skip
    if architecture == "gpt2":
        sizes |= {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    if architecture == "opt":
        sizes |= {"ffn_dim": 24, "word_embed_proj_dim": 8}
    if architecture in ("qwen3", "smollm3"):
        sizes |= {"head_dim": 8}
    if architecture == "mistral":
        sizes |= {"sliding_window": None}
    config = transformers.AutoConfig.for_model(architecture, **sizes)
    return transformers.AutoModelForCausalLM.from_config(config).to(dtype).eval()


UNPADDABLE: dict[str, dict[str, Any]] = {
    "bart": {
        "d_model": 16, "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 24,
    },
    "mamba": {"state_size": 4},
    "openai-gpt": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "phi3": {
        "num_key_value_heads": 2, "original_max_position_embeddings": 8,
        "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4,
            "long_factor": [8.0] * 4, "original_max_position_embeddings": 8,
        },
    },
    "recurrent_gemma": {
        "lru_width": 16, "attention_window_size": 8, "block_types": ["recurrent", "attention"],
    },
    "roberta": {"is_decoder": True, "max_position_embeddings": 70, "pad_token_id": 2},
    "rwkv": {"attention_hidden_size": 16, "context_length": 64},
}  # fmt: skip
"""Decoder-only models that read the padding before a text, count positions by themselves, or count
otherwise beside a longer text.
"""


def skip_where_a_cache_changes_texts(model: Any) -> None:
    """transformers 5.17 goes on with keys of the short frequencies where a text of a model with
    LongRoPE grows beyond their limit; without a cache, and in 5.23, all keys are of the long ones.
    """
    prompt = torch.tensor([[5, 6, 7, 8, 9, 10, 11]])
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False}
    texts = [model.generate(prompt, use_cache=cached, **options) for cached in (True, False)]
    if model.config.model_type == "phi3" and not torch.equal(*texts):
        pytest.skip(f"transformers {transformers.__version__} continues otherwise with a cache")


def make_unpaddable(architecture: str) -> Any:
    """One of ``UNPADDABLE``, of 2 layers, that never ends a text."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 24, "max_position_embeddings": 64, "pad_token_id": 0,
        "eos_token_id": 1, "bos_token_id": 1,
    }  # fmt: skip
    config = transformers.AutoConfig.for_model(architecture, **sizes | UNPADDABLE[architecture])
    model = transformers.AutoModelForCausalLM.from_config(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    model.generation_config.eos_token_id = model.generation_config.forced_eos_token_id = None
    return model


def make_host(
    model: Any, module_functions: dict[str, BaseModuleFunction] | None = None, **args: Any
) -> ModelHost:
    """A host with the word tokenizer."""
    return ModelHost(model, make_tokenizer(), LlmArgs(**args), module_functions)


def ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def plain_log_probs(model: Any, prompt: Sequence[int], candidate: Sequence[int]) -> Tensor:
    """``(len(candidate) + 1, vocab)`` log-probabilities after the prompt and each token: one
    forward pass over this one pair.
    """
    if model.config.is_encoder_decoder:
        inputs: dict[str, Any] = {"decoder_input_ids": torch.tensor([[0, *candidate]])}
        if prompt:
            inputs["input_ids"] = torch.tensor([list(prompt)])
        # transformers refuses no positions at all; one of zeros adds nothing to cross-attention, as
        # T5 has no biases
        else:
            inputs["encoder_outputs"] = BaseModelOutput(
                last_hidden_state=torch.zeros(1, 1, model.config.d_model, dtype=model.dtype)
            )
        first = 0
    else:
        prompt = list(prompt) or [model.config.bos_token_id]
        inputs, first = {"input_ids": torch.tensor([[*prompt, *candidate]])}, len(prompt) - 1
    log_probs: Tensor = model(**inputs).logits[0, first:].log_softmax(-1)
    return log_probs


def plain_next(model: Any, prompt: Sequence[int], tokens: Sequence[int]) -> Tensor:
    """``(vocab,)`` log-probabilities of what follows."""
    return plain_log_probs(model, prompt, tokens)[-1]


def plain_token_log_probs(model: Any, prompt: Sequence[int], candidate: Sequence[int]) -> Tensor:
    """``(len(candidate),)``."""
    return plain_log_probs(model, prompt, candidate)[
        torch.arange(len(candidate)), torch.tensor(candidate, dtype=torch.long)
    ]


def plain_scores(
    model: Any, tokenizer: Any, prompts: Sequence[str], candidates: Sequence[Sequence[str]]
) -> Tensor:
    """``(sum(counts),)``, pair after pair."""
    pairs = [
        (prompt, candidate)
        for prompt, own in zip(prompts, candidates, strict=True)
        for candidate in own
    ]
    if not pairs:
        return torch.zeros(0, dtype=model.dtype)
    return torch.stack(
        [
            plain_token_log_probs(model, ids(tokenizer, prompt), ids(tokenizer, candidate)).sum()
            for prompt, candidate in pairs
        ]
    )
