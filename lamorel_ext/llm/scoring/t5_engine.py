"""Reading with T5: the encoder once per prompt, the decoder once over each tree."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor
from transformers import PreTrainedModel

from lamorel_ext.llm.scoring.candidate_tree import CandidateTree, Tokens, batch_trees
from lamorel_ext.llm.scoring.scorer import Reading
from lamorel_ext.llm.scoring.t5_forward import T5Forward
from lamorel_ext.llm.scoring.vocabulary_head import edge_log_probs


class T5Engine:
    """See ``scoring.Engine``."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._forward = T5Forward(model)

    def read(
        self,
        prompts: Sequence[Tokens],
        rounds: Sequence[Sequence[CandidateTree]],
        with_states: bool,
    ) -> Reading:
        forward = self._forward
        words = forward.words(prompts, itertools.chain(*rounds))
        memory, packing = forward.encode(prompts, words)
        edges: list[Tensor] = []
        states = None
        for trees in rounds:
            batch = batch_trees(trees, forward.device)
            nodes = forward.decode(memory, packing, batch, words)
            if with_states and states is None:
                states = nodes[batch.roots.to(nodes.device)]
            edges.append(
                edge_log_probs(
                    forward.head,
                    nodes,
                    batch.edge_nodes,
                    batch.edge_tokens,
                    forward.config.vocab_size,
                )
            )
        return Reading(edges, states, self.count(prompts, rounds))

    def count(self, prompts: Sequence[Tokens], rounds: Sequence[Sequence[CandidateTree]]) -> int:
        """See ``scoring.Engine``."""
        nodes = sum(tree.num_nodes for tree in itertools.chain(*rounds))
        return sum(map(len, prompts)) + nodes
