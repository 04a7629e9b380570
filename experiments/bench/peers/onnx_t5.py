"""onnxruntime, where it is installed (extra ``bench``): a T5 exported as one graph, with weights in
float32 and, by dynamic quantisation, in int8.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

BATCH = 4
"""Prompts of a call: fastest in int8 of 1, 2, 4, 8, 16 and 32, with 97 and with 228 tokens a prompt
on a Zen 5; little padding is left, and what lies between two products stays in the caches.
"""
OPSET = 18
INPUTS = {
    "prompts": {0: "prompts", 1: "prompt_tokens"},
    "prompt_mask": {0: "prompts", 1: "prompt_tokens"},
    "candidates": {0: "prompts", 1: "candidates", 2: "tokens"},
    "candidate_mask": {0: "prompts", 1: "candidates", 2: "tokens"},
}
"""Names of the graph's inputs, and of their axes, all of any length."""


class OnnxScorer:
    """A session of onnxruntime with the graph, all its optimisations on.

    Args:
        path: The graph's file; it may be gone afterwards.
        tokenizer: The model's.
        num_threads: Threads of a product.
    """

    def __init__(self, path: Path, tokenizer: PreTrainedTokenizerBase, num_threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads, options.inter_op_num_threads = num_threads, 1
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self._tokenizer = tokenizer

    def score(self, prompts: Sequence[str], candidates: Sequence[Sequence[str]]) -> Tensor:
        """Summed token log-probability of each candidate after its prompt.

        Args:
            prompts: ``n`` prompts; those of like length are scored together.
            candidates: ``n`` tuples of ``c`` candidates.

        Returns:
            ``(n * c,)`` in nats, prompt after prompt.
        """
        ids = self._tokenize(prompts)
        options, option_mask = _pad(self._tokenize([text for own in candidates for text in own]))
        shape = (len(prompts), -1, options.shape[1])
        options, option_mask = options.reshape(shape), option_mask.reshape(shape)
        scores = np.empty(options.shape[:2], dtype=np.float32)
        order = np.argsort([len(own) for own in ids], kind="stable")
        for part in (order[i : i + BATCH] for i in range(0, len(order), BATCH)):
            words, word_mask = _pad([ids[place] for place in part])
            values = (words, word_mask, options[part], option_mask[part])
            (scores[part],) = self._session.run(None, dict(zip(INPUTS, values, strict=True)))
        return torch.from_numpy(scores.ravel())

    def _tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return ids


def make_scorers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, num_threads: int
) -> tuple[OnnxScorer, OnnxScorer]:
    """Export a T5 and quantise it.

    Args:
        model: In float32, in evaluation mode.
        tokenizer: Its tokenizer.
        num_threads: Threads of a product.

    Returns:
        The model in float32, and with its matrices in int8.

    Raises:
        ImportError: onnxruntime, or onnx, is not installed.
    """
    from onnxruntime.quantization import quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        whole, small = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        with _without_advice():
            _export(model, whole)
            quantize_dynamic(whole, small, per_channel=True)
        return (
            OnnxScorer(whole, tokenizer, num_threads),
            OnnxScorer(small, tokenizer, num_threads),
        )


class _Graph(nn.Module):
    """What is exported. The encoder reads each prompt once, and its states become keys and values
    once, whatever the number of candidates.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model: Any = model

    def forward(
        self, prompts: Tensor, prompt_mask: Tensor, candidates: Tensor, candidate_mask: Tensor
    ) -> Tensor:
        """The scores ``(n, c)`` of candidates ``(n, c, t)`` after prompts ``(n, l)``; masks are 1
        where a token is real.
        """
        count = candidates.shape[1]
        states = self.model.encoder(input_ids=prompts, attention_mask=prompt_mask).last_hidden_state
        cross = DynamicCache()
        for number, block in enumerate(self.model.decoder.block):
            attention = block.layer[1].EncDecAttention
            keys, values = (
                layer(states)
                .unflatten(2, (-1, attention.key_value_proj_dim))
                .transpose(1, 2)
                .repeat_interleave(count, 0)
                for layer in (attention.k, attention.v)
            )
            cross.update(keys, values, number)
        start = torch.full_like(candidates[:, :, :1], self.model.config.decoder_start_token_id)
        logits = self.model(
            encoder_outputs=(states.repeat_interleave(count, 0),),
            attention_mask=prompt_mask.repeat_interleave(count, 0),
            decoder_input_ids=torch.cat([start, candidates[:, :, :-1]], 2).flatten(0, 1),
            past_key_values=EncoderDecoderCache(DynamicCache(), cross),
        ).logits
        chosen = logits.log_softmax(2).gather(2, candidates.flatten(0, 1)[:, :, None])
        summed = (chosen.squeeze(2) * candidate_mask.flatten(0, 1)).sum(1)
        scores: Tensor = summed.unflatten(0, (-1, count))
        return scores


def _export(model: PreTrainedModel, path: Path) -> None:
    """By tracing: PyTorch's newer way would need another package, onnxscript."""
    words, options = torch.ones(3, 7, dtype=torch.int64), torch.ones(3, 2, 4, dtype=torch.int64)
    with torch.no_grad():
        torch.onnx.export(
            _Graph(model).eval(),
            (words, torch.ones_like(words), options, torch.ones_like(options)),
            path,
            input_names=list(INPUTS),
            output_names=["scores"],
            dynamic_axes=INPUTS | {"scores": {0: "prompts", 1: "candidates"}},
            opset_version=OPSET,
            dynamo=False,
        )


@contextmanager
def _without_advice() -> Iterator[None]:
    """No warnings of what tracing might miss, which a test looks at, nor of what onnxruntime would
    do to a graph before it quantises it and does in each session too.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _pad(rows: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token ids ``(n, longest)`` with zeros on the right, and a mask of them, 1 where real."""
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.zeros(mask.shape, dtype=np.int64)
    ids[mask] = np.concatenate(rows)
    return ids, mask.astype(np.int64)
