"""The Deep Reinforcement Relevance Network: how good each action is in a state, both given as
texts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from lamorel_ext.agents.word_places import VOCABULARY_SIZE, padded, word_places
from lamorel_ext.prompts import ACTION_NAMES


class DrrnNetwork(nn.Module):
    """Q(s, a) from a recurrent encoding of the observation's text and one of the action's (He et
    al. 2016, arXiv 1511.04636).

    As in the versions for text games the two are joined by a layer with rectified units rather than
    by an inner product.

    Args:
        embedding_size: Of a word; both encoders have the same embeddings.
        hidden_size: Of the encoders (gated recurrent units) and of the layer that joins them.
        seed: Fixes the initial weights.
        action_texts: Texts of the actions; where each state lists its own, ``forward`` gets them.
    """

    def __init__(
        self,
        embedding_size: int,
        hidden_size: int,
        seed: int,
        action_texts: tuple[str, ...] = ACTION_NAMES,
    ) -> None:
        super().__init__()
        self._actions: list[Sequence[int]] = [word_places(text) for text in action_texts]
        # Made without values and then filled from a generator of its own: torch's global one is not
        # this thread's alone.
        with torch.device("meta"):
            self.embedding = nn.Embedding(VOCABULARY_SIZE, embedding_size, padding_idx=0)
            self.state_encoder = nn.GRU(embedding_size, hidden_size, batch_first=True)
            self.action_encoder = nn.GRU(embedding_size, hidden_size, batch_first=True)
            self.join_state = nn.Linear(hidden_size, hidden_size)
            self.join_action = nn.Linear(hidden_size, hidden_size, bias=False)
            self.score = nn.Linear(hidden_size, 1)
        self.to_empty(device="cpu")
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.embedding.weight, generator=generator)
        with torch.no_grad():
            self.embedding.weight[0] = 0.0  # padding
        # As torch itself starts these layers: uniform within one over the root of the inputs.
        bound = hidden_size**-0.5
        encoders = (self.state_encoder, self.action_encoder)
        for layer in (*encoders, self.join_state, self.join_action, self.score):
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def forward(
        self,
        states: Sequence[Sequence[int]],
        offered: Sequence[Sequence[Sequence[int]]] | None = None,
    ) -> Tensor:
        """Q of every action, in their order.

        Args:
            states: ``n`` texts, as ``word_places`` gives them; repeated ones are read once.
            offered: The actions' texts in each state, where it lists its own.

        Returns:
            ``(n, actions)``, minus infinity behind the end of a list.
        """
        distinct = {text: row for row, text in enumerate(dict.fromkeys(map(tuple, states)))}
        seen = self.join_state(self._read(list(distinct), self.state_encoder))
        texts = self._actions if offered is None else _distinct(offered)
        acted = self.join_action(self._read(texts, self.action_encoder))
        if offered is not None:
            rows = [distinct[tuple(text)] for text in states]
            return self._score_offered(seen[rows], acted, offered)
        values = self.score(torch.relu(seen[:, None] + acted[None])).squeeze(-1)
        chosen: Tensor = values[[distinct[tuple(text)] for text in states]]
        return chosen

    def _score_offered(
        self, seen: Tensor, acted: Tensor, offered: Sequence[Sequence[Sequence[int]]]
    ) -> Tensor:
        """Q of the actions that each state lists, from the encodings of the distinct texts."""
        place = {tuple(text): row for row, text in enumerate(_distinct(offered))}
        longest = max(map(len, offered))
        table, known = torch.zeros(len(offered), longest, dtype=torch.int64), []
        for row, texts in enumerate(offered):
            table[row, : len(texts)] = torch.tensor([place[tuple(text)] for text in texts])
            known.append([column < len(texts) for column in range(longest)])
        values = self.score(torch.relu(seen[:, None] + acted[table])).squeeze(-1)
        masked: Tensor = values.masked_fill(~torch.tensor(known), float("-inf"))
        return masked

    def _read(self, texts: Sequence[Sequence[int]], encoder: nn.GRU) -> Tensor:
        """The encoder's state behind the last word of each text, ``(n, hidden_size)``."""
        table, lengths = padded(texts)
        words = self.embedding(torch.from_numpy(table))
        packed = pack_padded_sequence(
            words, torch.from_numpy(lengths), batch_first=True, enforce_sorted=False
        )
        last: Tensor = encoder(packed)[1][0]
        return last


def _distinct(offered: Sequence[Sequence[Sequence[int]]]) -> list[Sequence[int]]:
    return list(dict.fromkeys(tuple(text) for texts in offered for text in texts))
