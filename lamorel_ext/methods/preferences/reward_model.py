"""A model of what is preferred: the better of two is to be paid more (Bradley & Terry 1952; Ouyang
et al. 2022, arXiv 2203.02155).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lamorel_ext.agents.features import TEXT_SIZE, hashed_words, word_signs
from lamorel_ext.agents.network import TwoLayers
from lamorel_ext.agents.optimizer import FlatAdam, load_weights, weights_of
from lamorel_ext.experience import Rollout

Texts = tuple[tuple[str, str], ...]
"""Prompts, each with what was said after it: one guidance, or all of an episode's."""


class RewardModel:
    """Pays guidance by the words of prompt and text, hashed; those of the text, which may be a
    single word, by ``word_signs``.

    Args:
        size: Of the hidden layer.
        generator: Draws the initial weights.
    """

    def __init__(self, size: int, generator: torch.Generator) -> None:
        self._network = TwoLayers(1, 2 * TEXT_SIZE, size, generator)
        self._optimizer = FlatAdam(list(self._network.parameters()), name="reward model")

    @property
    def has_learnt(self) -> bool:
        """False until the first pair: it pays by its initial weights."""
        return self._optimizer.steps > 0

    def rewards(self, said: Sequence[tuple[str, str]]) -> Tensor:
        """What each text after its prompt is paid, ``(n,)``."""
        rows = [
            np.concatenate([hashed_words(prompt, TEXT_SIZE), word_signs(text)])
            for prompt, text in said
        ]
        paid: Tensor = self._network(torch.from_numpy(np.stack(rows))).squeeze(1)
        return paid

    def learn(
        self, pairs: Sequence[tuple[Texts, Texts]], lr: float, epochs: int
    ) -> dict[str, float]:
        """Steps on -log sigmoid(what the better is paid - what the worse is paid).

        Args:
            pairs: The better first.
            lr: Adam's step size.
            epochs: Steps, each on all pairs.

        Returns:
            Means over pairs and steps, before each: ``loss``; ``margin``, the difference;
            ``accuracy``, the share of pairs in which the better one is paid more.
        """
        sides = [side for pair in pairs for side in pair]
        texts = [said for side in sides for said in side]
        place = torch.repeat_interleave(torch.tensor([len(side) for side in sides]))
        seen = []
        for _ in range(epochs):
            sums = torch.zeros(len(sides)).index_add(0, place, self.rewards(texts))
            margin = sums[0::2] - sums[1::2]
            loss = F.softplus(-margin).mean()
            self._optimizer.minimise(loss, lr, max_grad_norm=1.0)
            numbers = (loss, margin.mean(), (margin > 0).float().mean())
            seen.append([float(number.detach()) for number in numbers])
        return dict(zip(("loss", "margin", "accuracy"), np.mean(seen, axis=0), strict=True))

    def tensors(self) -> dict[str, Tensor]:
        """Everything that learns, for a checkpoint."""
        return weights_of(self._network) | self._optimizer.tensors()

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Come back to saved ``tensors``."""
        load_weights(self._network, tensors)
        self._optimizer.load(tensors)


def ranked_episodes(rollout: Rollout) -> list[tuple[Texts, Texts]]:
    """The episodes that ended in a rollout in pairs, the better first: the one with the highest
    return and that with the lowest, the next ones, and so on; a tie is no pair.

    Of an episode that began before the rollout, what came before it does not count.
    """
    found: list[tuple[float, Texts]] = []
    for env in range(rollout.rewards.shape[1]):
        said: list[tuple[str, str]] = []
        earned = 0.0
        for step, turn in enumerate(rollout.turns):
            words = turn.decision.said
            if words is not None and (text := words.candidates[env][words.chosen[env]]):
                said.append((words.prompts[env], text))
            earned += float(rollout.rewards[step, env])
            if rollout.done[step, env]:
                if said:
                    found.append((earned, tuple(said)))
                said, earned = [], 0.0
    order = sorted(found, key=lambda episode: -episode[0])
    return [
        (best[1], worst[1])
        for best, worst in zip(order[: len(order) // 2], reversed(order), strict=False)
        if best[0] > worst[0]
    ]
