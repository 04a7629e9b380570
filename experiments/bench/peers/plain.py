"""Scoring with plain transformers: every (prompt, candidate) pair is a row of one padded batch.
What one writes without a library.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def score_pairs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    candidates: Sequence[Sequence[str]],
) -> Tensor:
    """Summed token log-probability of each candidate after its prompt.

    Args:
        model: An encoder-decoder of transformers.
        tokenizer: Its tokenizer; pads with the model's padding token, on the right.
        prompts: ``n`` prompts.
        candidates: ``n`` tuples of candidates.

    Returns:
        ``(sum of counts,)`` in nats, prompt after prompt.
    """
    pairs = [
        (prompt, option)
        for prompt, options in zip(prompts, candidates, strict=True)
        for option in options
    ]
    inputs = tokenizer(
        [prompt for prompt, _ in pairs], add_special_tokens=False, padding=True, return_tensors="pt"
    )
    outputs = tokenizer(
        [option for _, option in pairs], add_special_tokens=False, padding=True, return_tensors="pt"
    )
    labels = outputs["input_ids"]
    with torch.no_grad():
        # Given labels, transformers would shift them for us, but would compute a loss that nobody
        # reads.
        start = torch.full((len(pairs), 1), model.config.decoder_start_token_id)
        decoder_input_ids = torch.cat([start, labels[:, :-1]], dim=1)
        logits = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            decoder_input_ids=decoder_input_ids,
        ).logits
        chosen = torch.log_softmax(logits, dim=-1).gather(2, labels[:, :, None]).squeeze(2)
    scores: Tensor = (chosen * outputs["attention_mask"]).sum(1)
    return scores
