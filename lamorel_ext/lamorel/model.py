"""The language model as Lamorel's updaters, heads and initialisers see it: same attributes, same
inputs, same results.

Where only scores are asked for, without gradients, the package's own scorer answers: it reads each
prompt once and shares what candidates have in common. Module functions read passes laid out as
Lamorel lays them out; with T5 these share the work too (``sharing``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import accumulate, compress, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

from lamorel_ext.errors import RequestError
from lamorel_ext.lamorel.generation import generate
from lamorel_ext.lamorel.settings import LlmSettings
from lamorel_ext.lamorel.sharing import SharedOutputs, can_share
from lamorel_ext.llm.answers import TextEncoder, beginning, merge
from lamorel_ext.llm.devices import tidy
from lamorel_ext.llm.generation import takes_left_padding
from lamorel_ext.llm.module_functions import LogScores, first_states
from lamorel_ext.llm.scoring.engines import callable_of, is_as_made, make_engine, unwrap
from lamorel_ext.llm.scoring.plain import rope_limit
from lamorel_ext.llm.scoring.scorer import Scorer
from lamorel_ext.llm.scoring.t5_forward import decoder_start
from lamorel_ext.rpc.lamorel_shape import SCORE_KEY

Sequences = dict[str, list[int]]
"""Lamorel's tokenised text: ``input_ids`` and ``attention_mask``."""

Read = list[tuple[Tensor, ...]]
"""What was read of contexts, with a row for each: an encoder's states alone, or a causal model's
keys and values of each layer, nothing for one that the model has lost; empty where no context has a
token but its last.
"""


@dataclass(frozen=True)
class _Options:
    """How passes are laid out; Lamorel 0.3's arguments."""

    minibatch_size: int
    pad_contexts: bool
    forced_context_len: int | None = None
    forced_sequence_len: int | None = None
    add_eos_on_candidates: bool | None = None


class LamorelModel(nn.Module):
    """A model with its tokenizer and module functions, under Lamorel's names.

    Args:
        model: On its device, in evaluation mode.
        tokenizer: Its tokenizer.
        settings: Of this LLM.

    Attributes:
        _LLM_model: The transformers model; an initialiser may put another one in its place.
        _LLM_tokenizer: Its tokenizer.
        _module_functions: By name, the scores as ``__score``.
        model_type: ``causal`` or ``seq2seq``.
        pad_token: Token that fills the rows of a minibatch.
        device: Where inputs go; ``main_device`` is the same.
    """

    def __init__(self, model: Any, tokenizer: Any, settings: LlmSettings) -> None:
        super().__init__()
        self._LLM_model = model
        self._LLM_tokenizer = tokenizer
        self._settings = settings
        self.model_type = "seq2seq" if model.config.is_encoder_decoder else "causal"
        self.pad_token = _pad_token(tokenizer, settings)
        self.device = self.main_device = model.device
        self._module_functions = nn.ModuleDict()
        self._scorer: tuple[tuple[int, ...], Scorer, TextEncoder] | None = None

    def get_model_config(self) -> Any:
        """The transformers configuration."""
        return self._LLM_model.config

    def get_additional_llm_config(self) -> dict[str, Any]:
        """What 0.3 adds to the configuration that module functions get."""
        return {"pad_token": self.pad_token}

    def get_trainable_module(self) -> Any:
        """The transformers model."""
        return self._LLM_model

    def register_module_functions(self, module_functions: Mapping[str, nn.Module]) -> None:
        """Take the module functions, already initialised."""
        self._module_functions = nn.ModuleDict(dict(module_functions))

    # --- calls -----------------------------------------------------------------------------------

    def generate(
        self,
        contexts: Sequence[str],
        return_logprobs: bool = False,
        peft_adapter: str | None = None,
        **kwargs: Any,
    ) -> list[list[dict[str, Any]]]:
        """See ``generation.generate``."""
        self._activate(peft_adapter)
        return generate(self._LLM_model, self._LLM_tokenizer, contexts, return_logprobs, kwargs)

    def forward(
        self,
        module_function_keys: Sequence[str],
        contexts: Sequence[Any],
        candidates: Sequence[Sequence[str]] | None = None,
        require_grad: bool = False,
        minibatch_size: int | None = None,
        peft_adapter: str | None = None,
        **kwargs: Any,
    ) -> list[dict[str, Any]]:
        """Evaluate module functions, ``__score`` among them.

        Args:
            module_function_keys: Their names.
            contexts: ``n`` texts, or lists of tokens.
            candidates: ``n`` lists; None or an empty one means ``[""]``.
            require_grad: Whether gradients flow.
            minibatch_size: Rows of a pass; None takes the configured number.
            peft_adapter: Adapter to activate before.
            **kwargs: ``pad_contexts``, ``forced_context_len``, ``forced_sequence_len`` and
                ``add_eos_on_candidates`` of 0.3; all others reach the module functions.

        Returns:
            For each context a dictionary: for each name a row per candidate.

        Raises:
            RequestError: The lists do not fit, or a module function is unknown.
        """
        keys = list(module_function_keys)
        functions = {key: self._function(key) for key in keys}
        layout = {name: kwargs.pop(name, None) for name in _LAYOUT}
        if layout["pad_contexts"] is None:
            layout["pad_contexts"] = self._settings.version == "0.2"
        options = _Options(self._minibatch_size(minibatch_size), **layout)
        texts = _candidates(candidates, len(contexts))
        self._activate(peft_adapter)
        if not contexts:
            return []
        with nullcontext() if require_grad else torch.no_grad():
            if keys == [SCORE_KEY] and not require_grad and self._plain_scores(contexts):
                columns: dict[str, Any] = {SCORE_KEY: self._scores(contexts, texts, options)}
            else:
                columns = self._passes(functions, contexts, texts, options, kwargs)
        tidy(self.device, self._settings.args.parallelism)
        return [
            {key: _rows(column, start, stop) for key, column in columns.items()}
            for start, stop in pairwise(accumulate(map(len, texts), initial=0))
        ]

    # --- inside ----------------------------------------------------------------------------------

    def _function(self, key: str) -> nn.Module:
        if key not in self._module_functions:
            known = ", ".join(name for name in self._module_functions if name != SCORE_KEY)
            raise RequestError(f"no module function {key!r}; there are: {known or 'none'}")
        return self._module_functions[key]

    def _minibatch_size(self, asked: int | None) -> int:
        size = self._settings.args.minibatch_size if asked is None else asked
        whole = isinstance(size, (int, np.integer)) and not isinstance(size, bool)
        if not whole or size < 1:
            raise RequestError(f"minibatch_size is {size!r}, expected an integer of at least 1")
        return int(size)

    def _activate(self, adapter: str | None) -> None:
        if adapter is None:
            return
        if not hasattr(self._LLM_model, "peft_config"):
            raise RequestError(f"peft_adapter is {adapter!r}, but the model has no adapters")
        if adapter not in self._LLM_model.peft_config:
            names = ", ".join(self._LLM_model.peft_config)
            raise RequestError(f"peft_adapter is {adapter!r}; the model has: {names}")
        self._LLM_model.set_adapter(adapter)

    def _plain_scores(self, contexts: Sequence[Any]) -> bool:
        """Whether the fast scorer gives what is asked for."""
        custom = type(self._module_functions[SCORE_KEY]) is not LogScores
        return (
            not custom
            and not unwrap(self._LLM_model).training
            and all(isinstance(context, str) for context in contexts)
            and is_as_made(self._LLM_model)  # last: it looks at every part of the model
        )

    def _scores(
        self, contexts: Sequence[str], candidates: Sequence[Sequence[str]], options: _Options
    ) -> Tensor:
        size, tokenizer = options.minibatch_size, self._LLM_tokenizer
        # An updater may put others in their places, or add words to the tokenizer.
        stamp = (id(self._LLM_model), size, id(tokenizer), len(tokenizer))
        if self._scorer is None or self._scorer[0] != stamp:
            scorer = Scorer(make_engine(self._LLM_model, size), size, torch.float32)
            encoder = TextEncoder(
                tokenizer,
                unwrap(self._LLM_model).config,
                self._settings.args.max_prompt_tokens,
                as_trained=False,  # as Lamorel, and as passes for module functions
            )
            self._scorer = (stamp, scorer, encoder)
        _, scorer, encoder = self._scorer
        texts = [self._with_end(own, options) for own in candidates]
        tokens = [tuple(encoder.encode(own)) for own in texts]
        longest = [max(map(len, own)) for own in tokens]
        prompts = encoder.encode_prompts(contexts, behind=longest)
        prompts = [prompt or (self.pad_token,) for prompt in prompts]  # as ``_context`` has it
        asked = merge(prompts, tokens)
        return scorer.score(*asked.distinct).log_probs.cpu()[asked.score_rows]

    def _with_end(self, texts: Sequence[str], options: _Options) -> list[str]:
        end = self._LLM_tokenizer.eos_token if options.add_eos_on_candidates else ""
        if end is None:
            raise RequestError("add_eos_on_candidates: the tokenizer has no end token")
        return [text + end for text in texts]

    def _passes(
        self,
        functions: Mapping[str, nn.Module],
        contexts: Sequence[Any],
        candidates: Sequence[Sequence[str]],
        options: _Options,
        kwargs: Mapping[str, Any],
    ) -> dict[str, Any]:
        inputs, rows = self._tokenised(contexts, candidates, options)
        owners = [place for place, own in enumerate(rows) for _ in own]
        outputs = [row for own in rows for row in own]
        shares = can_share(self._LLM_model)
        apart = self._settings.args.pre_encode_inputs
        compact = self.model_type == "causal" and not takes_left_padding(self._LLM_model)
        learnt = callable_of(self._LLM_model) is not unwrap(self._LLM_model)
        read: Read | None = None

        def read_once() -> Read | None:
            nonlocal read
            if read is None and apart:
                read = self._read(inputs, options)
            return read

        with_states = list(functions) != [SCORE_KEY]
        columns: dict[str, list[Any]] = {key: [] for key in functions}
        for start in range(0, len(outputs), options.minibatch_size):
            stop = min(start + options.minibatch_size, len(outputs))
            part = owners[start:stop]
            own = [inputs[place] for place in part]
            found: Any
            if shares:
                found, minibatch = self._shared(own, outputs[start:stop], options, read_once, part)
            elif compact:
                nothing: Read | None = [] if apart else None
                minibatch = self._minibatch(own, outputs[start:stop], options, nothing, part)
                found = self._unpadded_pass(own, outputs[start:stop], minibatch, with_states)
            else:
                # A learnt prompt is put before what the model itself reads.
                states = None if learnt else read_once()
                minibatch = self._minibatch(own, outputs[start:stop], options, states, part)
                found = self._pass(minibatch, with_states)
            more = dict(kwargs)
            if self._settings.version == "0.3":
                more["current_minibatch_ids"] = list(range(start, stop))
            for key, function in functions.items():
                extra = {} if key == SCORE_KEY else more
                seen: tuple[Any, Any] = found, minibatch
                if getattr(function, "needs", "full") == "state":  # one of ours
                    seen = first_states(found, minibatch, own), {}
                columns[key].append(
                    function(seen[0], minibatch=seen[1], tokenized_contexts=own, **extra)
                )
        return {key: _joined(key, parts, len(outputs)) for key, parts in columns.items()}

    def _pass(self, minibatch: dict[str, Any], with_states: bool) -> Any:
        """Transformers' own pass.

        Whether hidden states were asked for stands in the minibatch too.
        """
        if with_states:
            minibatch["output_hidden_states"] = True
        arguments = dict(minibatch)
        if self.model_type == "causal":
            arguments |= self._positions(
                minibatch["attention_mask"], minibatch["input_ids"].shape[1]
            )
        try:
            return self._LLM_model(**arguments)
        except AttributeError as error:
            if "encoder_outputs" not in minibatch:
                raise
            raise RequestError(
                f"{type(unwrap(self._LLM_model)).__name__} cannot be given what its encoder has"
                f" read: set pre_encode_inputs to false ({error})"
            ) from error

    def _unpadded_pass(
        self,
        inputs: Sequence[Sequences],
        outputs: Sequence[Sequences],
        minibatch: dict[str, Any],
        with_states: bool,
    ) -> CausalLMOutput:
        """A pass of a causal model that reads no padding before a text; what it gives is laid out
        as the minibatch is, without the positions of a learnt prompt.
        """
        texts = [
            _chain(_unpadded(before), behind)
            for before, behind in zip(inputs, outputs, strict=True)
        ]
        size = minibatch["input_ids"].shape[1]
        apart = minibatch["attention_mask"].shape[1] - size
        gaps = self._put([len(each["input_ids"]) - sum(each["attention_mask"]) for each in inputs])
        places = torch.arange(size, device=self.device) + apart - gaps[:, None]
        if with_states:
            minibatch["output_hidden_states"] = True
        limit = rope_limit(unwrap(self._LLM_model).config)
        sides: dict[bool, list[int]] = {}
        for row, text in enumerate(texts):
            far = limit is not None and len(text["input_ids"]) > limit
            sides.setdefault(far, []).append(row)
        parts = [
            self._read_texts([texts[row] for row in rows], places[rows], with_states)
            for rows in sides.values()
        ]
        logits, *states = parts[0]
        if len(parts) > 1:
            order = np.argsort([row for rows in sides.values() for row in rows])
            logits, *states = (torch.cat(pair)[order] for pair in zip(*parts, strict=True))
        return CausalLMOutput(logits=logits, hidden_states=tuple(states) if with_states else None)

    def _read_texts(
        self, texts: Sequence[Sequences], places: Tensor, with_states: bool
    ) -> list[Tensor]:
        """Logits, and hidden states of each layer, at these places ``(n, size)`` of the texts; what
        is outside of a text stands for padding.
        """
        width = max(len(each["input_ids"]) for each in texts)
        found = self._LLM_model(
            **self._batch(texts, width), output_hidden_states=with_states, use_cache=False
        )

        def at_places(values: Tensor) -> Tensor:
            inside = (places.clamp(0, width - 1) + values.shape[1] - width).to(values.device)
            return values[torch.arange(len(values), device=values.device)[:, None], inside]

        return [at_places(each) for each in (found["logits"], *(found.get("hidden_states") or ()))]

    def _positions(self, mask: Tensor, size: int) -> dict[str, Tensor]:
        """Positions of the last ``size`` columns, counted without the padding before a text."""
        return {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)[:, -size:]}

    def _shared(
        self,
        inputs: Sequence[Sequences],
        outputs: Sequence[Sequences],
        options: _Options,
        read_once: Callable[[], Read | None],
        owners: Sequence[int],
    ) -> tuple[SharedOutputs, dict[str, Any]]:
        """The pass that reads each context once, and the minibatch as module functions know it."""

        def whole_pass() -> Any:
            return self._pass(
                self._minibatch(inputs, outputs, options, read_once(), owners), with_states=True
            )

        minibatch = self._minibatch(inputs, outputs, options, None, owners)
        minibatch["output_hidden_states"] = True
        found = SharedOutputs(
            unwrap(self._LLM_model),
            [tuple(compress(each["input_ids"], each["attention_mask"])) for each in inputs],
            [tuple(each["input_ids"]) for each in outputs],
            (len(inputs[0]["input_ids"]), minibatch["decoder_input_ids"].shape[1]),
            whole_pass,
        )
        if self._settings.args.pre_encode_inputs:
            del minibatch["input_ids"]
            states = found["encoder_last_hidden_state"]
            minibatch["encoder_outputs"] = BaseModelOutput(last_hidden_state=states)
        return found, minibatch

    def _tokenised(
        self, contexts: Sequence[Any], candidates: Sequence[Sequence[str]], options: _Options
    ) -> tuple[list[Sequences], list[list[Sequences]]]:
        """Contexts as the pass reads them, and the rows behind each."""
        causal = self.model_type == "causal"
        read = [self._context(context, place) for place, context in enumerate(contexts)]
        width = max(len(each["input_ids"]) for each in read)
        if options.forced_context_len is not None:
            if options.forced_context_len < width:
                raise RequestError(
                    f"forced_context_len is {options.forced_context_len}, but a context has {width}"
                    " tokens"
                )
            width = options.forced_context_len
        same = options.pad_contexts or self._settings.args.pre_encode_inputs or not causal
        inputs, rows = [], []
        for context, own in zip(read, candidates, strict=True):
            sequences = [
                _text(self._LLM_tokenizer(text, add_special_tokens=False)["input_ids"])
                for text in self._with_end(own, options)
            ]
            if causal:
                last = _part(context, slice(-1, None))
                sequences = [_chain(last, each) for each in sequences]
                cut = _part(context, slice(None, -1))
                inputs.append(self._padded(cut, width - 1, right=False) if same else cut)
            else:
                inputs.append(self._padded(context, width) if same else context)
            rows.append(sequences)
        return inputs, rows

    def _context(self, context: Any, place: int) -> Sequences:
        if isinstance(context, str):
            tokens = list(self._LLM_tokenizer(context, add_special_tokens=False)["input_ids"])
        elif isinstance(context, Sequence) and all(isinstance(token, int) for token in context):
            tokens = list(context)
        else:
            raise RequestError(
                f"contexts[{place}] is {context!r:.80}, expected a text or a list of tokens"
            )
        if not tokens and self.model_type == "causal":
            tokens = [beginning(self._LLM_tokenizer, f"contexts[{place}]")]
        return _text(tokens or [self.pad_token])

    def _padded(self, sequence: Sequences, size: int, right: bool = True) -> Sequences:
        gap = size - len(sequence["input_ids"])
        padding = {"input_ids": [self.pad_token] * gap, "attention_mask": [0] * gap}
        return _chain(sequence, padding) if right else _chain(padding, sequence)

    def _batch(self, sequences: Sequence[Sequences], width: int) -> dict[str, Tensor]:
        """As tensors ``(n, width)``."""
        rows = [self._padded(each, width) for each in sequences]
        return {name: self._put([each[name] for each in rows]) for name in rows[0]}

    def _read(self, inputs: Sequence[Sequences], options: _Options) -> Read:
        """What the model makes of the contexts, read once for all their candidates, in parts of the
        minibatch's size.
        """
        read: list[Read] = []
        for start in range(0, len(inputs), options.minibatch_size):
            part = inputs[start : start + options.minibatch_size]
            batch = {name: self._put([each[name] for each in part]) for name in part[0]}
            if self.model_type == "seq2seq":
                read.append([(self._LLM_model.get_encoder()(**batch)[0],)])
            elif not batch["input_ids"].shape[1]:
                return []
            else:
                positions = self._positions(batch["attention_mask"], len(part[0]["input_ids"]))
                cache = _whole_cache(unwrap(self._LLM_model).config)
                found = self._LLM_model(**batch, **positions, past_key_values=cache, use_cache=True)
                read.append(_layers(found.past_key_values))
        return [
            tuple(torch.cat(each) for each in zip(*layer, strict=True))
            for layer in zip(*read, strict=True)
        ]

    def _minibatch(
        self,
        inputs: Sequence[Sequences],
        outputs: Sequence[Sequences],
        options: _Options,
        read: Read | None,
        owners: Sequence[int],
    ) -> dict[str, Any]:
        if self.model_type == "seq2seq":
            start = _text([self._decoder_start])
            width = max(len(each["input_ids"]) for each in outputs) + 1
            rows = self._batch([_chain(start, each) for each in outputs], width)
            minibatch: dict[str, Any] = {f"decoder_{name}": ids for name, ids in rows.items()}
            minibatch["attention_mask"] = self._put([each["attention_mask"] for each in inputs])
            if read is None:
                minibatch["input_ids"] = self._put([each["input_ids"] for each in inputs])
            else:
                ((states,),) = read
                minibatch["encoder_outputs"] = BaseModelOutput(
                    last_hidden_state=states[self._put(owners).to(states.device)]
                )
            return minibatch
        if read is None:
            whole = [_chain(before, behind) for before, behind in zip(inputs, outputs, strict=True)]
            width = max(len(each["input_ids"]) for each in whole)
            if options.forced_sequence_len is not None:
                if options.forced_sequence_len < width:
                    raise RequestError(
                        f"forced_sequence_len is {options.forced_sequence_len}, but a sequence has"
                        f" {width} tokens"
                    )
                width = options.forced_sequence_len
            return self._batch(whole, width)
        if options.forced_sequence_len is not None:
            raise RequestError(
                "forced_sequence_len cannot be had with pre_encode_inputs: contexts are apart"
            )
        width = max(len(each["input_ids"]) for each in outputs)
        minibatch = self._batch(outputs, width)
        before = self._put([each["attention_mask"] for each in inputs])
        minibatch["attention_mask"] = torch.cat((before, minibatch["attention_mask"]), 1)
        if read:
            minibatch["past_key_values"] = _cache_of(read, self._put(owners))
        return minibatch

    @property
    def _decoder_start(self) -> int:
        return decoder_start(unwrap(self._LLM_model))

    def _put(self, values: Any) -> Tensor:
        return torch.tensor(values, device=self.device, dtype=torch.int64)


_LAYOUT = ("pad_contexts", "forced_context_len", "forced_sequence_len", "add_eos_on_candidates")


def _candidates(candidates: Sequence[Sequence[str]] | None, num_contexts: int) -> list[list[str]]:
    if candidates is None or len(candidates) == 0:
        return [[""] for _ in range(num_contexts)]
    if len(candidates) != num_contexts:
        raise RequestError(
            f"candidates has {len(candidates)} lists, expected {num_contexts}, one per context"
        )
    found = []
    for place, own in enumerate(candidates):
        listed = isinstance(own, Iterable) and not isinstance(own, str)
        if not listed or not all(isinstance(text, str) for text in own):
            raise RequestError(f"candidates[{place}] is {own!r:.80}, expected a list of texts")
        found.append([str(text) for text in own] or [""])
    return found


def _pad_token(tokenizer: Any, settings: LlmSettings) -> int:
    """0 in 0.2, whose module functions look for it; in 0.3 the tokenizer's, which they are told."""
    if settings.version == "0.2":
        return 0
    for token in (tokenizer.pad_token_id, settings.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def _text(tokens: Iterable[int]) -> Sequences:
    """Tokens without padding."""
    ids = list(tokens)
    return {"input_ids": ids, "attention_mask": [1] * len(ids)}


def _unpadded(sequence: Sequences) -> Sequences:
    return _text(compress(sequence["input_ids"], sequence["attention_mask"]))


def _part(sequence: Sequences, part: slice) -> Sequences:
    return {name: values[part] for name, values in sequence.items()}


def _chain(first: Sequences, second: Sequences) -> Sequences:
    return {name: first[name] + second[name] for name in ("input_ids", "attention_mask")}


def _rows(column: Any, start: int, stop: int) -> Any:
    if isinstance(column, dict):
        return {name: _rows(values, start, stop) for name, values in column.items()}
    return column[start:stop]


def _joined(key: str, parts: Sequence[Any], num_rows: int) -> Any:
    """What a module function gave for all minibatches."""
    if all(isinstance(part, dict) for part in parts):
        for part in parts:
            if part.keys() != parts[0].keys():
                raise RequestError(
                    f"module function {key} gave {list(parts[0])} for one minibatch, {list(part)}"
                    " for another"
                )
        return {
            name: _joined(f"{key}[{name!r}]", [part[name] for part in parts], num_rows)
            for name in parts[0]
        }
    for part in parts:
        if not isinstance(part, Tensor):
            raise RequestError(
                f"module function {key} gave a {type(part).__name__}, expected a tensor or a"
                " dictionary of tensors"
            )
    columns = [part.reshape(1) if not part.dim() else part for part in parts]
    shapes = {tuple(part.shape[1:]): None for part in columns}
    if len(shapes) > 1:
        raise RequestError(
            f"module function {key} gave rows of the shapes {', '.join(map(str, shapes))} for the"
            " minibatches of one call; pad them to one"
        )
    column = torch.cat(columns)
    if len(column) != num_rows:
        raise RequestError(
            f"module function {key} gave {len(column)} rows for {num_rows} candidates"
        )
    return column


def _whole_cache(config: Any) -> Any:
    """The model's own, but that layers of a sliding window keep the whole context: each candidate's
    window begins elsewhere.
    """
    cache = DynamicCache(config=config)
    cache.layers = [
        DynamicLayer() if isinstance(layer, DynamicSlidingWindowLayer) else layer
        for layer in cache.layers
    ]
    return cache


def _cache_of(read: Read, rows: Tensor) -> Any:
    """Keys and values of these rows, each layer's on its device, as a cache of their own."""
    cache = DynamicCache()
    for place, layer in enumerate(read):
        if layer:
            keys, values = (each.index_select(0, rows.to(each.device)) for each in layer)
            cache.update(keys, values, place)
    return cache


def _layers(cache: Any) -> Read:
    try:
        return [() if layer.keys is None else (layer.keys, layer.values) for layer in cache.layers]
    except AttributeError as error:
        raise RequestError(
            f"a {type(cache).__name__} cannot be shared by candidates: set pre_encode_inputs to"
            " false"
        ) from error


def initialised(
    model: LamorelModel,
    functions: Mapping[str, Any],
    settings: LlmSettings,
    attributes: Mapping[str, Any],
) -> LamorelModel:
    """Give the module functions what Lamorel gives them, let them build their layers, and register
    them.

    Raises:
        TypeError: One is no ``BaseModuleFunction``.
    """
    everything: dict[str, Any] = {**functions}
    everything.setdefault(SCORE_KEY, LogScores())
    for name, function in everything.items():
        build = getattr(function, "initialize", None)
        if not isinstance(function, nn.Module) or not callable(build):
            raise TypeError(
                f"custom_module_functions[{name!r}] is a {type(function).__name__}, not a"
                " BaseModuleFunction"
            )
        give(
            function, {"device": model.device, "llm_config": model.get_model_config(), **attributes}
        )
        build()
    model.register_module_functions(everything)
    return model


def give(owner: Any, attributes: Mapping[str, Any]) -> None:
    """Set attributes: those of 0.3, none in 0.2."""
    for name, value in attributes.items():
        setattr(owner, name, value)
