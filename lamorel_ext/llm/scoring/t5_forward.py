"""T5's forward pass over packed rows, on the weights of transformers' own modules.

It computes what transformers' ``T5ForConditionalGeneration`` computes without dropout (tests hold
it to that, in float64), but: the encoder sees no padding outside attention; the decoder takes
prefix trees instead of one padded sequence per candidate; cross-attention over a short tree attends
to the encoder's states directly instead of projecting every one of them to a key and a value in
every layer.

Architecture: Raffel et al. 2020 (arXiv 1910.10683) for relu, Shazeer 2020 (arXiv 2002.05202) for
gated-gelu; positions enter by a learned bias on attention scores, one per head and bucket of
distance; scores are not scaled.
"""

from __future__ import annotations

import copy
import itertools
import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import MT5ForConditionalGeneration, PreTrainedModel, T5ForConditionalGeneration
from transformers.activations import NewGELUActivation

from lamorel_ext.errors import RequestError
from lamorel_ext.llm.devices import put, put_integers
from lamorel_ext.llm.scoring.candidate_tree import (
    CandidateTree,
    Tokens,
    TreeBatch,
    batch_trees,
)
from lamorel_ext.llm.scoring.gradient_sums import look_up
from lamorel_ext.llm.scoring.packing import Packing, cut_rows, make_packing
from lamorel_ext.llm.scoring.products import apply_linear, attend
from lamorel_ext.llm.scoring.scorer import Reading
from lamorel_ext.llm.scoring.vocabulary_head import compute_logits, edge_log_probs

CALLED = frozenset(
    {"shared", "embed_tokens", "relative_attention_bias", "act", "lm_head"}
    | {"q", "k", "v", "o", "wi", "wi_0", "wi_1", "wo"}
)
"""Names of the parts that are called as transformers calls them, so that anything may take their
place; of all others the weights are read.
"""


def is_t5(model: nn.Module) -> bool:
    """Whether this file's forward pass is the model's own."""
    return isinstance(model, (T5ForConditionalGeneration, MT5ForConditionalGeneration))


def decoder_start(model: Any) -> int:
    """The token that the decoder begins with: the configuration's, or where it names none the one
    that transformers' ``generate`` would take, or the padding.

    Raises:
        RequestError: There is none.
    """
    config, settings = model.config, getattr(model, "generation_config", None)
    for holder, name in (
        (config, "decoder_start_token_id"),
        (settings, "decoder_start_token_id"),
        (settings, "bos_token_id"),
        (config, "pad_token_id"),
    ):
        if (token := getattr(holder, name, None)) is not None:
            return int(token)
    raise RequestError(
        f"this {config.model_type} has no decoder_start_token_id in its config.json, and no other"
        " token that its decoder could begin with"
    )


def has_its_parts(model: Any) -> bool:
    """Whether every part of a T5 whose weights are read is of the class, and has the settings, that
    this file computes with.
    """
    home = vars(sys.modules[type(model).__module__])
    own = type(model).__name__.removesuffix("ForConditionalGeneration")
    norm, attention = home[f"{own}LayerNorm"], home[f"{own}Attention"]
    for stack, cross in ((model.encoder, ()), (model.decoder, ("LayerCrossAttention",))):
        kinds = [home[own + part] for part in ("LayerSelfAttention", *cross, "LayerFF")]
        blocks = list(stack.block)
        if not blocks or any(type(block) is not home[f"{own}Block"] for block in blocks):
            return False
        if any([type(layer) for layer in block.layer] != kinds for block in blocks):
            return False
        layers = [layer for block in blocks for layer in block.layer]
        inner: list[Any] = [getattr(block.layer[-1], "DenseReluDense", None) for block in blocks]
        feeds = [home[f"{own}{name}"] for name in ("DenseActDense", "DenseGatedActDense")]
        at: list[Any] = [getattr(block.layer[0], "SelfAttention", None) for block in blocks]
        across: list[Any] = [
            getattr(block.layer[1], "EncDecAttention", None) for block in blocks if cross
        ]
        if not (
            all(type(part) in feeds for part in inner)
            and all(type(part) is attention and _is_usual(part) for part in (*at, *across))
            and at[0].has_relative_attention_bias
            and not any(part.has_relative_attention_bias for part in across)
            and all(part.is_decoder == bool(cross) for part in at)
            and type(stack.final_layer_norm) is norm
            and all(type(layer.layer_norm) is norm for layer in layers)
            and all(
                type(getattr(part, "dropout", None)) in (nn.Dropout, nn.Identity)
                for part in (stack, *layers, *inner)
            )
        ):
            return False
    return True


def _is_usual(attention: Any) -> bool:
    """Scores are not scaled (older transformers have no word for it), heads equally wide."""
    wide = attention.n_heads * attention.key_value_proj_dim
    return getattr(attention, "scaling", 1.0) == 1.0 and wide == attention.inner_dim


class T5Engine:
    """See ``scorer.Engine``: the encoder once per prompt, the decoder once over each tree."""

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
        """See ``scorer.Engine``."""
        nodes = sum(tree.num_nodes for tree in itertools.chain(*rounds))
        return sum(map(len, prompts)) + nodes


class T5Forward:
    """The encoder, the tree decoder and the output head of one T5.

    Args:
        model: Stays the owner of the weights; its modules are called, so modules put in their place
            (such as LoRA layers) take part.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model: Any = model
        self.config: Any = model.config

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def _start(self) -> int:
        return decoder_start(self.model)

    def words(self, prompts: Sequence[tuple[int, ...]], trees: Iterable[CandidateTree]) -> Words:
        """The tokens of a call: prompts and trees are all that will be encoded and decoded."""
        tokens = itertools.chain(
            [self._start], *prompts, *({id(tree): tree.node_tokens[1:] for tree in trees}.values())
        )
        return Words(tokens, self.device)

    def encode(self, prompts: Sequence[tuple[int, ...]], words: Words) -> tuple[Tensor, Packing]:
        """Last hidden states of the encoder.

        An empty prompt has no position to attend to; it gets one row of zeros instead, which adds
        exactly nothing in cross-attention.

        Args:
            prompts: At least one, in ascending length.
            words: Has their tokens.

        Returns:
            ``(rows, d)`` and where each prompt's rows are.
        """
        stack, device = self.model.encoder, self.device
        texts = [prompt for prompt in prompts if prompt]
        empty = len(prompts) - len(texts)
        weight = stack.final_layer_norm.weight
        states = [weight.new_zeros(empty, self.config.d_model)] if empty else []
        if texts:
            bias = self.encoder_bias(len(texts[-1]))
            for chunk in cut_rows([len(text) for text in texts], [0] * len(texts), device):
                packing = make_packing([len(text) for text in texts[chunk]], bias.device)
                tokens = put_integers(itertools.chain(*texts[chunk]), device)
                states.append(self.encode_rows(tokens, packing, bias, words))
        return torch.cat(states), make_packing([max(1, len(prompt)) for prompt in prompts], device)

    def encoder_bias(self, length: int) -> Tensor:
        """What attention adds for so many positions, ``(1, heads, length, length)``."""
        stack = self.model.encoder
        return _Bias(stack, bidirectional=True).toeplitz(length, _home(stack.block[0]))

    def encode_rows(self, tokens: Tensor, packing: Packing, bias: Tensor, words: Words) -> Tensor:
        """Last hidden states of the encoder, ``(rows, d)``.

        Args:
            tokens: ``(rows,)``.
            packing: Where the rows are.
            bias: ``encoder_bias`` of so many positions at least.
            words: Has the tokens.
        """
        stack = self.model.encoder
        bias = bias[:, :, : packing.width, : packing.width]
        if packing.mask is not None:
            bias = bias.masked_fill(~packing.mask[:, None, None, :], torch.finfo(bias.dtype).min)
        x = words.embed(stack.embed_tokens, tokens)
        for block in stack.block:
            device = _home(block)
            x, packing, bias = x.to(device), packing.to(device), bias.to(device)
            x = _plus(x, self._self_attention(block.layer[0], x, packing, bias))
            x = _plus(x, _feed_forward(block.layer[-1], x))
        return _last_norm(stack, x)

    def decode(
        self,
        states: Tensor,
        prompts: Packing,
        trees: TreeBatch,
        words: Words,
        layers: list[Tensor] | None = None,
    ) -> Tensor:
        """Last hidden states of the decoder.

        Args:
            states: ``(rows, d)``, as ``encode`` gave them.
            prompts: Their packing.
            trees: One tree per prompt.
            words: Has their tokens.
            layers: Takes what each block reads, ``(total_nodes, d)``.

        Returns:
            ``(total_nodes, d)``.
        """
        stack = self.model.decoder
        first = _home(stack.block[0])
        packing = make_packing(trees.counts, first)
        bias = _Bias(stack, bidirectional=False).between(trees.depths.to(first))
        bias = bias.masked_fill(~trees.attends[:, None].to(first), torch.finfo(bias.dtype).min)
        memory = _Memory(states.to(first), prompts.to(first), packing, self.config)
        x = words.embed(
            stack.embed_tokens, trees.node_tokens.masked_fill(trees.node_tokens < 0, self._start)
        )
        for block in stack.block:
            device = _home(block)
            x, packing, bias = x.to(device), packing.to(device), bias.to(device)
            memory = memory.to(device)
            if layers is not None:
                layers.append(x if torch.is_grad_enabled() else x.clone())  # it is added to
            x = _plus(x, self._self_attention(block.layer[0], x, packing, bias))
            x = _plus(x, memory.attend(block.layer[1], x))
            x = _plus(x, _feed_forward(block.layer[-1], x))
        return _last_norm(stack, x)

    def head(self, states: Tensor) -> Tensor:
        """``(n, d)`` decoder states to ``(n, vocab_size)`` logits."""
        scaled = getattr(
            self.config, "scale_decoder_outputs", False
        )  # MT5 has no such entry and never scales
        return compute_logits(
            self.model.lm_head, states, self.model.model_dim**-0.5 if scaled else 1.0
        )

    def _self_attention(self, layer: Any, x: Tensor, packing: Packing, bias: Tensor) -> Tensor:
        attention, normed = layer.SelfAttention, _rms_norm(layer.layer_norm, x)
        projects = attention.q, attention.k, attention.v
        if x.device.type == "cuda":  # fewer calls there are worth a little padding multiplied
            padded = packing.pad(normed)
            projected = [apply_linear(project, padded) for project in projects]
        else:
            projected = [packing.pad(apply_linear(project, normed)) for project in projects]
        q, k, v = (
            each.unflatten(-1, (attention.n_heads, -1)).transpose(1, 2) for each in projected
        )
        mixed = attend(q, k, v, bias)
        return apply_linear(attention.o, packing.unpad(mixed.transpose(1, 2)).flatten(1))


class Words:
    """Embeddings of the tokens that one call needs, so that a gradient passes the table of all
    tokens once.

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
            # A module of somebody else's may keep what it gives, and sums go on in place.
            return found if type(table) is nn.Embedding else found.clone()
        # A module in the place of a plain table may do more than look up.
        plain = type(table) is nn.Embedding
        key = id(table.weight) if plain else id(table)
        if key not in self._rows:
            self._rows[key] = look_up(table, self._distinct) if plain else table(self._distinct)
        rows = self._rows[key]
        return F.embedding(self._places[tokens].to(rows.device), rows)


class _Memory:
    """What the decoder's nodes attend to across: the encoder's states, in the cheaper of two orders
    of multiplication.
    """

    def __init__(self, states: Tensor, prompts: Packing, nodes: Packing, config: Any) -> None:
        self.states, self.prompts, self.nodes = states, prompts, nodes
        self.padded = prompts.pad(states)
        self.bias: Tensor | None = None
        if prompts.mask is not None:
            zeros = torch.zeros(prompts.mask.shape, dtype=states.dtype, device=states.device)
            self.bias = zeros.masked_fill_(~prompts.mask, torch.finfo(states.dtype).min)
        inner, d = config.num_heads * config.d_kv, config.d_model
        # Multiplications per prompt: keys and values of every position, against queries carried
        # into the encoder's space and back.
        projecting = 2 * d * inner * len(states) + 2 * inner * prompts.width * sum(nodes.lengths)
        carrying = (2 * d * inner + 2 * config.num_heads * d * prompts.width) * sum(nodes.lengths)
        self.carry = carrying < projecting

    def to(self, device: torch.device) -> _Memory:
        """The same on a device."""
        if self.states.device == device:
            return self
        moved = copy.copy(self)
        moved.states, moved.padded = self.states.to(device), self.padded.to(device)
        moved.prompts, moved.nodes = self.prompts.to(device), self.nodes.to(device)
        moved.bias = None if self.bias is None else self.bias.to(device)
        return moved

    def attend(self, layer: Any, x: Tensor) -> Tensor:
        attention = layer.EncDecAttention
        normed = _rms_norm(layer.layer_norm, x)
        queries = apply_linear(attention.q, normed).unflatten(-1, (attention.n_heads, -1))
        # A module in the place of a plain linear one (LoRA) hides what it multiplies by, and one
        # that somebody gave a bias (BitFit) does more.
        plain = all(
            type(project) is nn.Linear and project.bias is None
            for project in (attention.k, attention.v)
        )
        mixed = (
            self._carry(attention, queries)
            if self.carry and plain
            else self._project(attention, queries)
        )
        return apply_linear(attention.o, mixed.flatten(1))

    def _project(self, attention: Any, queries: Tensor) -> Tensor:
        """The textbook's order: keys and values of every encoder position, then attention. ``(rows,
        heads, d_kv)`` both ways.
        """
        k, v = (
            self.prompts.pad(apply_linear(project, self.states))
            .unflatten(-1, (attention.n_heads, -1))
            .transpose(1, 2)
            for project in (attention.k, attention.v)
        )
        bias = None if self.bias is None else self.bias[:, None, None, :]
        mixed = attend(self.nodes.pad(queries).transpose(1, 2), k, v, bias)
        return self.nodes.unpad(mixed.transpose(1, 2))

    def _carry(self, attention: Any, queries: Tensor) -> Tensor:
        """The same by associativity: q (K h) = (q K) h and p (h V) = (p h) V, with h the encoder's
        states. ``(rows, heads, d_kv)`` both ways.
        """
        heads, (n, _, d) = attention.n_heads, self.padded.shape
        keys, values = (
            project.weight.unflatten(0, (heads, -1)) for project in (attention.k, attention.v)
        )
        carried = torch.bmm(queries.transpose(0, 1), keys).transpose(0, 1)
        scores = torch.bmm(self.nodes.pad(carried).reshape(n, -1, d), self.padded.transpose(1, 2))
        if self.bias is not None:
            scores = scores + self.bias[:, None, :]
        weights = torch.softmax(
            scores, dim=-1, dtype=torch.float32 if scores.dtype != torch.float64 else None
        ).to(scores.dtype)
        mixed = self.nodes.unpad(torch.bmm(weights, self.padded).view(n, -1, heads, d))
        return torch.bmm(mixed.transpose(0, 1), values.transpose(1, 2)).transpose(0, 1)


class _Bias:
    """Relative position bias of one stack: the first block's table serves all blocks."""

    def __init__(self, stack: Any, bidirectional: bool) -> None:
        attention = stack.block[0].layer[0].SelfAttention
        self.table = attention.relative_attention_bias
        self.buckets, self.max_distance = (
            attention.relative_attention_num_buckets,
            attention.relative_attention_max_distance,
        )
        self.bidirectional = bidirectional

    def toeplitz(self, length: int, device: torch.device) -> Tensor:
        """``(1, heads, length, length)`` for positions 0, 1, 2, ..."""
        by_distance = self.table(self._bucket(torch.arange(1 - length, length, device=device)))
        positions = torch.arange(length, device=device)
        distances = positions[None, :] - positions[:, None]
        biases: Tensor = by_distance.t()[:, distances + length - 1][None]
        return biases

    def between(self, positions: Tensor) -> Tensor:
        """``(b, n)`` positions to ``(b, heads, n, n)``."""
        values: Tensor = self.table(self._bucket(positions[:, None, :] - positions[:, :, None]))
        return values.permute(0, 3, 1, 2)

    def _bucket(self, distance: Tensor) -> Tensor:
        """Key position minus query position to a bucket: one each for short distances, logarithmic
        up to ``max_distance``, one for the rest.
        """
        if self.bidirectional:
            buckets, first = self.buckets // 2, (distance > 0).long() * (self.buckets // 2)
            distance = distance.abs()
        else:
            buckets, first = self.buckets, torch.zeros_like(distance)
            distance = (-distance).clamp(min=0)
        exact = buckets // 2
        # In float32 and in this order, as the checkpoints were trained: a boundary may lie within a
        # rounding error.
        ratio = torch.log(distance.clamp(min=1).float() / exact) / math.log(
            self.max_distance / exact
        )
        far = (exact + (ratio * (buckets - exact)).long()).clamp(max=buckets - 1)
        numbers: Tensor = first + torch.where(distance < exact, distance, far)
        return numbers


def _home(block: Any) -> torch.device:
    """Where a block is: a model of several GPUs has its blocks on all of them, each on one."""
    device: torch.device = block.layer[0].layer_norm.weight.device
    return device


def _last_norm(stack: Any, x: Tensor) -> Tensor:
    norm = stack.final_layer_norm
    return _rms_norm(norm, x.to(norm.weight.device))


def _feed_forward(layer: Any, x: Tensor) -> Tensor:
    inner, normed = layer.DenseReluDense, _rms_norm(layer.layer_norm, x)
    if hasattr(inner, "wi_0"):
        gate = _activate(inner.act, apply_linear(inner.wi_0, normed))
        hidden = apply_linear(inner.wi_1, normed)
        # What another activation gives may be kept by whoever made it.
        hidden = _times(gate, hidden) if type(inner.act) is NewGELUActivation else gate * hidden
    else:
        hidden = _activate(inner.act, apply_linear(inner.wi, normed))
    return apply_linear(inner.wo, hidden.to(_weight_dtype(inner.wo, hidden)))


def _weight_dtype(linear: Any, like: Tensor) -> torch.dtype:
    """Transformers may keep this one matrix in float32."""
    weight = getattr(linear, "weight", None)
    return weight.dtype if isinstance(weight, Tensor) and weight.is_floating_point() else like.dtype


def _activate(act: nn.Module, x: Tensor) -> Tensor:
    if type(act) is not NewGELUActivation:
        activated: Tensor = act(x)
        return activated
    if torch.is_grad_enabled() or x.device.type != "cpu" or x.dtype == torch.bfloat16:
        return F.gelu(x, approximate="tanh")
    # The tanh form is x sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)); in place, that takes half the
    # time of the library's kernel on a CPU.
    gate = x * x
    return (
        gate.mul_(2 * math.sqrt(2 / math.pi) * 0.044715)
        .add_(2 * math.sqrt(2 / math.pi))
        .mul_(x)
        .sigmoid_()
        .mul_(x)
    )


def _rms_norm(norm: Any, x: Tensor) -> Tensor:
    """Scale by the root mean square; like transformers, the mean is taken in float32 whatever the
    precision of ``x``.
    """
    if x.device.type == "cuda" and x.dtype == norm.weight.dtype != torch.float64:
        return F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)  # one kernel
    if x.dtype == torch.float32 and not torch.is_grad_enabled():
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = size.square_().div_(x.shape[-1]).add_(norm.variance_epsilon).rsqrt_()
        normed: Tensor = (x * scale).mul_(norm.weight)
        return normed
    variance = x.float().square().mean(-1, keepdim=True)
    x = x * torch.rsqrt(variance + norm.variance_epsilon)
    weight: Tensor = norm.weight
    return weight * x.to(
        weight.dtype if weight.dtype in (torch.float16, torch.bfloat16) else x.dtype
    )


def _plus(x: Tensor, y: Tensor) -> Tensor:
    """The residual sum; in place where no gradient needs the old value, which spares the
    allocation.
    """
    return x + y if torch.is_grad_enabled() or x.dtype != y.dtype else x.add_(y)


def _times(x: Tensor, y: Tensor) -> Tensor:
    return x * y if torch.is_grad_enabled() or x.dtype != y.dtype else x.mul_(y)
