"""Embeddings of the tokens that one call needs, so that a gradient passes the table of all tokens
once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamorel_ext.llm.devices import put


class Words:
    """Looks tokens up.

    The gradient of a look-up is as large as the table (66 MB in flan-t5-small), and those of
    several look-ups are added up. With gradients every distinct token of the call is therefore
    looked up once; from then on the few rows that came are the table. Stacks with one table share
    them.

    Args:
        tokens: All tokens that will be asked for; repeated ones at no cost.
        device: Where tokens are looked up.
    """

    def __init__(self, tokens: Iterable[int], device: torch.device) -> None:
        self._rows: dict[int, Tensor] = {}
        self._distinct = self._places = torch.zeros(0, dtype=torch.long)
        if torch.is_grad_enabled():
            distinct = np.unique(np.fromiter(tokens, dtype=np.int64))
            places = np.zeros(int(distinct[-1]) + 1, dtype=np.int64)
            places[distinct] = np.arange(len(distinct))
            self._distinct, self._places = (put(array, device) for array in (distinct, places))

    def embed(self, table: Any, tokens: Tensor) -> Tensor:
        """``(n,)`` tokens to ``(n, d)``.

        Args:
            table: The module that knows all tokens.
            tokens: Among those of the call.
        """
        if not len(self._distinct):
            found: Tensor = table(tokens)
            return found
        # A module in the place of a plain table may do more than look up.
        key = id(table.weight) if type(table) is nn.Embedding else id(table)
        if key not in self._rows:
            self._rows[key] = table(self._distinct)
        rows = self._rows[key]
        return F.embedding(self._places[tokens].to(rows.device), rows)
