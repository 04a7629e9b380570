"""A T5 of a few thousand random weights with one token per word, in a folder as ``model_path``
takes it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import T5Config, T5ForConditionalGeneration

from tests.llm.tiny_models import make_tokenizer

WORDS = (
    "turn left right go forward pick up drop toggle Goal of the agent: to red ball Observation: "
    "You see a wall 1 2 3 4 5 6 step steps and Action: step, steps, left, right, forward,"
).split()


def save_tiny_llm(folder: Path) -> Path:
    """Write model and tokenizer into ``folder``."""
    tokenizer = make_tokenizer(WORDS)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
        relative_attention_num_buckets=8, feed_forward_proj="gated-gelu", decoder_start_token_id=0,
        pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder
