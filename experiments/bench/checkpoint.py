"""A checkpoint with the shape of google/flan-t5-small, made here, because a benchmark must not need
the network.

The weights are random. What a random model must share with a trained one is the spread of its
logits: transformers' own initialisation gives logits so large that most terms of a softmax are
denormal numbers, and a CPU then takes ten times longer. The head is therefore drawn with a standard
deviation of 0.08, which gives logits with a standard deviation near 2.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

HEAD_STD = 0.08
FORMAT = 2
"""Raised when the recipe changes, so that an older cached checkpoint is not taken for the new one.
"""

PIECES = (
    "▁ ▁You ▁see ▁steps ▁step ▁forward ▁1 ▁2 ▁3 ▁4 ▁5 ▁6 ▁left ▁right ▁and ▁wall ▁the ▁ball ▁key"
    " Observ ation ▁Action ▁box ▁of ▁agent ▁purple ▁turn ▁go ▁yellow ▁red ▁Goal ▁green ▁grey ▁blue"
    " ▁pick ▁up ▁door ▁toggle ▁to ▁drop ▁Possible ▁action ▁carry ▁open ▁closed ▁you ▁locked ▁put"
    " ▁next ▁after ▁behind ▁then ▁on ▁your ▁in ▁front"
).split()
"""Into these pieces flan-t5's vocabulary cuts BabyAI-Text's language; whatever else is written
falls into characters and bytes.
"""


@dataclass(frozen=True)
class Shape:
    """Sizes of a T5; the defaults are flan-t5-small's."""

    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 1024
    num_layers: int = 8
    num_heads: int = 6
    vocab_size: int = 32128

    def to_config(self) -> T5Config:
        """Configuration with gated-gelu and an untied head, as flan-t5 has them."""
        values: dict[str, Any] = {
            "vocab_size": self.vocab_size,
            "d_model": self.d_model,
            "d_kv": self.d_kv,
            "d_ff": self.d_ff,
            "num_layers": self.num_layers,
            "num_decoder_layers": self.num_layers,
            "num_heads": self.num_heads,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
            "decoder_start_token_id": 0,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "architectures": ["T5ForConditionalGeneration"],
        }
        return T5Config(**values)


FLAN_T5_SMALL = Shape()
TINY = Shape(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, vocab_size=512)


def cached_checkpoint(shape: Shape = FLAN_T5_SMALL, seed: int = 0) -> Path:
    """The folder of a checkpoint of this shape, made on first use.

    It lies in the user's cache folder (``XDG_CACHE_HOME``, else ``~/.cache``), outside the
    repository.
    """
    root = (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        / "lamorel_ext"
        / "benchmarks"
    )
    inner = (shape.d_model, shape.d_kv, shape.d_ff, shape.num_layers, shape.num_heads)
    sizes = "-".join(map(str, (*inner, shape.vocab_size)))
    folder = root / f"t5-{sizes}-stand-in-seed{seed}-v{FORMAT}"
    if not folder.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root) as scratch:
            write_checkpoint(Path(scratch) / "new", shape, seed)
            try:
                os.rename(Path(scratch) / "new", folder)
            except OSError:
                if not folder.is_dir():  # otherwise another run was first
                    raise
    return folder


def write_checkpoint(folder: Path, shape: Shape = FLAN_T5_SMALL, seed: int = 0) -> None:
    """Write configuration, weights and tokenizer into a new folder."""
    folder.mkdir(parents=True)
    # As flan-t5's own file has it. Transformers writes true for every T5, whatever it was told, and
    # then takes the head for a mistake.
    values = json.loads(shape.to_config().to_json_string()) | {"tie_word_embeddings": False}
    (folder / "config.json").write_text(
        json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )
    save_file(_draw_weights(shape, seed), folder / "model.safetensors", metadata={"format": "pt"})
    make_stand_in_tokenizer().save_pretrained(folder)


def make_stand_in_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that cuts BabyAI-Text's prompts into as many tokens as flan-t5's own does."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    words = [(piece, -5.0) for piece in PIECES]
    letters = [(chr(code), -10.0) for code in range(33, 127)]
    # Byte pieces stand for whatever is neither a word nor a letter above.
    every_byte = [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    tokenizer = Tokenizer(
        models.Unigram(special + words + letters + every_byte, unk_id=2, byte_fallback=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def _draw_weights(shape: Shape, seed: int) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = T5ForConditionalGeneration(shape.to_config())
        # The two stacks share one embedding; a file that holds it three times would be read as
        # three.
        weights = {
            name: tensor.detach().clone()
            for name, tensor in model.state_dict().items()
            if not name.endswith("embed_tokens.weight")
        }
        weights["lm_head.weight"] = torch.randn_like(weights["shared.weight"]) * HEAD_STD
    return weights
