"""A pass of T5 for module functions that computes once what rows of a minibatch have in common.

Lamorel lays out a row for each pair of context and candidate. Here the encoder reads each distinct
context once, the decoder a tree of its candidates, and the results are put into the rows' places,
so that module functions find what transformers' own pass gives them, gradients too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lamorel_ext.llm.devices import put_integers
from lamorel_ext.llm.scoring.candidate_tree import CandidateTree, Tokens, batch_trees, make_tree
from lamorel_ext.llm.scoring.engines import is_as_made, unwrap
from lamorel_ext.llm.scoring.t5_forward import T5Forward, is_t5

_END = -2
"""Behind every candidate, so that its last token is read too. Never read itself."""


class SharedOutputs(Mapping[str, Any]):
    """What a module function reads of a pass: by key or by attribute.

    ``logits``, ``encoder_last_hidden_state`` and ``decoder_hidden_states`` are there; for anything
    else transformers' pass is made after all, once, when it is asked for. Padding of a decoder's
    row repeats its start, that of a context is zero.

    Args:
        model: A T5 of transformers, in evaluation mode.
        contexts: ``n`` rows of tokens without padding.
        candidates: ``n`` rows of tokens without start and padding.
        widths: Positions of a context's row, and of a decoder's row with the start.
        whole_pass: Makes transformers' pass.
    """

    def __init__(
        self,
        model: Any,
        contexts: Sequence[Tokens],
        candidates: Sequence[Tokens],
        widths: tuple[int, int],
        whole_pass: Callable[[], Mapping[str, Any]],
    ) -> None:
        self._make_whole = whole_pass
        self._whole: Mapping[str, Any] | None = None
        self._context_width, width = widths
        self._gradients = torch.is_grad_enabled()
        self._forward = T5Forward(model)
        self._layers: list[Tensor] = []
        owned: dict[Tokens, dict[Tokens, None]] = {each: {} for each in sorted(contexts, key=len)}
        for context, candidate in zip(contexts, candidates, strict=True):
            owned[context].setdefault((*candidate, _END))
        made: dict[tuple[Tokens, ...], CandidateTree] = {}
        for own in owned.values():
            if tuple(own) not in made:
                made[tuple(own)] = make_tree(tuple(own))
        trees = [made[tuple(own)] for own in owned.values()]
        words = self._forward.words(list(owned), trees)
        self._encoded, self._packing = self._forward.encode(list(owned), words)
        batch = batch_trees(trees, self._forward.device)
        self._nodes = self._forward.decode(self._encoded, self._packing, batch, words, self._layers)
        firsts = dict(zip(owned, batch.roots.tolist(), strict=True))
        places = {context: place for place, context in enumerate(owned)}
        steps = {
            id(tree): dict(zip(tree.candidates, _steps(tree), strict=True))
            for tree in made.values()
        }
        spots: list[int] = []
        for context, candidate in zip(contexts, candidates, strict=True):
            first = firsts[context]
            path = steps[id(trees[places[context]])][(*candidate, _END)]
            spots += [first + node for node in path] + [first] * (width - len(path))
        self._spots = put_integers(spots, self._forward.device).view(len(contexts), width)
        self._rows = put_integers([places[each] for each in contexts], self._forward.device)
        self._found: dict[str, Any] = {}

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return self._all()[key]
        if key not in self._found:
            make = {
                "logits": self._logits,
                "decoder_hidden_states": self._hidden,
                "encoder_last_hidden_state": self._read,
            }.get(key)
            self._found[key] = make() if make else self._all()[key]
        return self._found[key]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self[name] if name in _OWN else getattr(self._all(), name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def __contains__(self, key: object) -> bool:
        return key in _OWN or key in self._all()

    def _logits(self) -> Tensor:
        return self._forward.head(self._nodes)[self._spots]

    def _hidden(self) -> tuple[Tensor, ...]:
        return tuple(layer[self._spots] for layer in (*self._layers, self._nodes))

    def _read(self) -> Tensor:
        # Not through ``pad``: whoever reads these may send a gradient from padding too.
        spread = self._packing.spread
        states = self._packing.pad(self._encoded) if spread is None else self._encoded[spread]
        states = states[self._rows]
        return F.pad(states, (0, 0, 0, self._context_width - states.shape[1]))

    def _all(self) -> Mapping[str, Any]:
        if self._whole is None:
            with torch.set_grad_enabled(self._gradients):
                self._whole = self._make_whole()
        return self._whole


_OWN = ("logits", "decoder_hidden_states", "encoder_last_hidden_state")


def can_share(model: Any) -> bool:
    """Whether ``SharedOutputs`` gives what the model's own pass gives.

    Dropout draws for every row, and what is not as transformers made it wants to be called.
    """
    inner = unwrap(model)
    return (
        is_t5(inner)
        and is_as_made(model)
        and not any(module.training or "forward" in vars(module) for module in inner.modules())
    )


def _steps(tree: CandidateTree) -> list[list[int]]:
    """For each candidate the nodes that it runs over."""
    nodes = tree.edge_nodes
    return [nodes[row[row < tree.num_edges]].tolist() for row in tree.paths]
