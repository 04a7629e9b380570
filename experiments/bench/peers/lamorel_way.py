"""How Lamorel 0.2 spends its time: a stand-in to measure against, written from the facts of its
public code, none of it copied.

What it does, and this does too: every text is tokenised on its own at every call; prompts are
    padded to the longest of the call; the encoder
runs once per prompt and its states are repeated for each candidate; each candidate is a padded
decoder sequence of its own; all hidden states and key-value caches are returned; the whole
vocabulary is normalised at every position; padding is masked by a Python loop over tokens. Its PPO
example computes the gradient of one transition at a time, with all its candidates, and steps an
Adam that is not fused.

What it does and this leaves out, to its advantage: pickling requests to the server,
    DistributedDataParallel, and the clipping of gradients, for
which it computes norms over an exhausted generator of parameters, so that nothing is clipped.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

PAD = 0
"""Lamorel's padding token and decoder start token; any other token counts as text."""

CLIP_EPS, ENTROPY_COEF, VALUE_LOSS_COEF = 0.2, 0.01, 0.5
Answer = dict[str, Tensor]


class LamorelScorer:
    """Scores candidates, and evaluates a value head, the way Lamorel's server does with an
    encoder-decoder.

    Args:
        model: A T5-like model of transformers.
        tokenizer: Its tokenizer.
        value_head: Takes the last hidden state of the first decoder position ``(n, d)``, gives
            ``(n, 1)``.
        minibatch_size: Sequences per forward pass.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        value_head: nn.Module,
        minibatch_size: int = 192,
    ) -> None:
        self.model, self.tokenizer, self.value_head, self.minibatch_size = (
            model,
            tokenizer,
            value_head,
            minibatch_size,
        )

    def forward(
        self,
        prompts: Sequence[str],
        candidates: Sequence[Sequence[str]],
        with_value: bool = True,
        require_grad: bool = False,
        minibatch_size: int | None = None,
    ) -> list[Answer]:
        """Per prompt ``score`` ``(candidates,)`` in nats and, if asked for, ``value``
        ``(candidates, 1)``, the same row repeated.
        """
        size = minibatch_size or self.minibatch_size
        with nullcontext() if require_grad else torch.no_grad():
            rows, masks = self._pad([self._tokenize(prompt) for prompt in prompts])
            counts = [len(options) for options in candidates]
            outputs = [self._tokenize(option) for options in candidates for option in options]
            states = self._encode(rows, masks, counts, size)
            repeated_masks = [
                mask for mask, count in zip(masks, counts, strict=True) for _ in range(count)
            ]
            parts = [
                self._decode(
                    states[i : i + size],
                    repeated_masks[i : i + size],
                    outputs[i : i + size],
                    with_value,
                )
                for i in range(0, len(outputs), size)
            ]
            merged = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
            return _per_prompt(merged, counts)

    def _tokenize(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    @staticmethod
    def _pad(sequences: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[list[int]]]:
        longest = max(len(sequence) for sequence in sequences)
        rows = [list(sequence) + [PAD] * (longest - len(sequence)) for sequence in sequences]
        masks = [[1] * len(sequence) + [0] * (longest - len(sequence)) for sequence in sequences]
        return rows, masks

    def _encode(
        self, rows: list[list[int]], masks: list[list[int]], counts: list[int], size: int
    ) -> Tensor:
        """Encoder states, each prompt's repeated once per candidate."""
        encoder = self.model.get_encoder()
        parts = []
        for i in range(0, len(rows), size):
            states = encoder(
                input_ids=torch.tensor(rows[i : i + size]),
                attention_mask=torch.tensor(masks[i : i + size]),
                return_dict=False,
            )[0]
            parts.append(torch.repeat_interleave(states, torch.tensor(counts[i : i + size]), dim=0))
        return torch.cat(parts)

    def _decode(
        self, states: Tensor, masks: list[list[int]], outputs: list[list[int]], with_value: bool
    ) -> Answer:
        rows, decoder_masks = self._pad([[PAD, *output] for output in outputs])
        # The start token is padding too, but it is read.
        decoder_ids = torch.tensor(rows)
        result = self.model(
            encoder_outputs=(states,),
            attention_mask=torch.tensor(masks),
            decoder_input_ids=decoder_ids,
            decoder_attention_mask=torch.tensor(decoder_masks),
            output_hidden_states=with_value,
        )
        answer = {"score": _score(result.logits[:, :-1, :], decoder_ids[:, 1:])}
        if with_value:
            answer["value"] = self.value_head(
                result.decoder_hidden_states[-1][:, 0, :].float()
            ).cpu()
        return answer


def _score(logits: Tensor, tokens: Tensor) -> Tensor:
    """Sum of the tokens' log-probabilities, ``(n,)``; padding is found token by token, as Lamorel
    does.
    """
    log_probs = torch.log_softmax(logits, dim=-1)
    chosen = torch.gather(log_probs, 2, tokens[:, :, None]).squeeze(-1)
    is_padding = torch.ones(chosen.shape, dtype=torch.bool)
    for i, row in enumerate(tokens):
        for j, token in enumerate(row):
            if token != PAD:
                is_padding[i, j] = False
    return chosen.masked_fill(is_padding, 0.0).sum(-1).cpu()


def _per_prompt(merged: Answer, counts: Sequence[int]) -> list[Answer]:
    split = {key: torch.split(tensor, list(counts)) for key, tensor in merged.items()}
    return [{key: parts[i] for key, parts in split.items()} for i in range(len(counts))]


class LamorelPpo:
    """The PPO update of Lamorel's example, one gradient batch after the other.

    Args:
        scorer: Model and value head; all their parameters are trained.
        lr: Step size of Adam.
        adam_eps: Adam's epsilon.
        gradient_batch_size: Transitions per backward pass; the example has 1.
    """

    def __init__(
        self,
        scorer: LamorelScorer,
        lr: float = 1e-6,
        adam_eps: float = 1e-8,
        gradient_batch_size: int = 1,
    ) -> None:
        self.scorer, self.gradient_batch_size = scorer, gradient_batch_size
        self.parameters = [*scorer.model.parameters(), *scorer.value_head.parameters()]
        self.optimizer = torch.optim.Adam(self.parameters, lr=lr, eps=adam_eps)
        self.gradient_seconds = 0.0
        self.step_seconds = 0.0

    def update(
        self,
        prompts: Sequence[str],
        candidates: Sequence[Sequence[str]],
        data: Mapping[str, Tensor],
    ) -> None:
        """One epoch over the transitions in their order, with a single optimiser step.

        Args:
            prompts: ``n`` prompts.
            candidates: ``n`` tuples of candidates.
            data: ``actions``, ``old_log_probs``, ``advantages``, ``returns``, ``values``, each
                ``(n,)``.
        """
        start = time.perf_counter()
        self.optimizer.zero_grad()
        size = self.gradient_batch_size
        parts = [slice(i, i + size) for i in range(0, len(prompts), size)]
        for part in parts:
            scores, values = self._evaluate(prompts[part], candidates[part])
            own = {key: tensor[part] for key, tensor in data.items()}
            loss = _ppo_loss(scores, values, own) / len(parts)
            loss.item()  # as Lamorel's example reads it
            loss.backward()
        middle = time.perf_counter()
        self.optimizer.step()
        self.gradient_seconds += middle - start
        self.step_seconds += time.perf_counter() - middle

    def _evaluate(
        self, prompts: Sequence[str], candidates: Sequence[Sequence[str]]
    ) -> tuple[Tensor, Tensor]:
        """Scores ``(n, candidates)`` and values ``(n,)`` with gradients, all sequences of the batch
        in one forward pass.
        """
        count = sum(len(options) for options in candidates)
        answers = self.scorer.forward(prompts, candidates, require_grad=True, minibatch_size=count)
        return torch.stack([answer["score"] for answer in answers]), torch.stack(
            [answer["value"][0, 0] for answer in answers]
        )


def _ppo_loss(scores: Tensor, values: Tensor, data: Mapping[str, Tensor]) -> Tensor:
    """Clipped policy loss, entropy bonus and clipped value loss, means over the batch (Schulman et
    al. 2017).
    """
    policy = torch.distributions.Categorical(logits=scores)
    ratio = torch.exp(policy.log_prob(data["actions"]) - data["old_log_probs"])
    clipped_ratio = torch.clamp(ratio, 1 - CLIP_EPS, 1 + CLIP_EPS)
    policy_loss = -torch.min(ratio * data["advantages"], clipped_ratio * data["advantages"]).mean()
    clipped_values = data["values"] + torch.clamp(values - data["values"], -CLIP_EPS, CLIP_EPS)
    value_loss = torch.max(
        (values - data["returns"]) ** 2, (clipped_values - data["returns"]) ** 2
    ).mean()
    loss: Tensor = (
        policy_loss - ENTROPY_COEF * policy.entropy().mean() + VALUE_LOSS_COEF * value_loss
    )
    return loss
