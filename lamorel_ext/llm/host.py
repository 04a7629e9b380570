"""The language model as a server hosts it: scoring, heads, generation, a frozen reference, and what
training and checkpoints need of it.
"""

from __future__ import annotations

import copy
import json
import logging
import time
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

import torch
import transformers
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lamorel_ext.config import LlmArgs
from lamorel_ext.errors import RequestError
from lamorel_ext.llm.answers import (
    ELSEWHERE,
    Answer,
    Answerer,
    Question,
    TextEncoder,
    join,
)
from lamorel_ext.llm.devices import seeded, tidy
from lamorel_ext.llm.fresh import draw_model
from lamorel_ext.llm.fsdp import model_is_divided, own_class, own_part, whole_as
from lamorel_ext.llm.generation import Generator
from lamorel_ext.llm.module_functions import BaseModuleFunction
from lamorel_ext.llm.scoring.engines import callable_of, is_steady, make_engine, unwrap
from lamorel_ext.llm.scoring.int8 import Int8Engine, RoundedWeights
from lamorel_ext.llm.scoring.plain import PlainEngine, PlainForward
from lamorel_ext.llm.scoring.scorer import Scorer
from lamorel_ext.llm.start import Start, unsaved_buffers
from lamorel_ext.llm.state import Memory, State, state_of
from lamorel_ext.llm.ties import config_values, has_own_head
from lamorel_ext.llm.weights import (
    copy_into,
    distinct_tensors,
    read_tensors,
    shapes_of,
    whole_tensors,
    write_tensors,
    written_whole,
)
from lamorel_ext.types import (
    GenerateRequest,
    GenerateResult,
    Scalar,
    ScoreRequest,
    ScoreResult,
    Weights,
)

MODEL_FILE = "model.safetensors"
MODULES_FILE = "modules.safetensors"
COMPARED = 64
"""Questions that are answered in full precision too, to tell what 8 bits cost."""
KNOWN_SETTINGS = 64
"""Of a model that are told apart; one that comes back after so many others counts as new."""

log = logging.getLogger(__name__)


class ModelHost(nn.Module):
    """A language model with its tokenizer and module functions.

    Nothing here ever applies dropout, not with gradients either: what is trained is the very
    distribution that was sampled from.

    Args:
        model: On its device, in its precision.
        tokenizer: Its tokenizer.
        args: Minibatch size, limits and memory; ``args.seed`` draws the module functions.
        module_functions: By name; they are initialised here.

    Attributes:
        model_type: ``"seq2seq"`` or ``"causal"``.
        weights_version: Grows with every change of the weights.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        args: LlmArgs,
        module_functions: Mapping[str, BaseModuleFunction] | None = None,
    ) -> None:
        super().__init__()
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.args = args
        self.model_type: Literal["seq2seq", "causal"] = (
            "seq2seq" if model.config.is_encoder_decoder else "causal"
        )
        self.module_functions = nn.ModuleDict(dict(module_functions or {}))
        self.weights_version = 0
        model.config.dtype = model.dtype
        # As they are before they are initialized the first time: drawn anew, they start from there.
        self._uninitialized = copy.deepcopy(dict(self.module_functions))
        self._initialize(dict(self.module_functions), args.seed)
        self._initial, self._begun = Start(model), False
        self._divided = model_is_divided(model)
        self._encoder = TextEncoder(tokenizer, model.config, args.max_prompt_tokens)
        self._rounded = RoundedWeights(model.config.vocab_size) if args.quantize == "int8" else None
        self._rounding_is_told = False
        self._answerer = self._make_answerer(model, self._rounded)
        self._made_for = 0
        self._steady = self._told = self._remembers = True
        self._memory: Memory[tuple[Question, tuple[str, ...], bool, int], Answer] = Memory(
            args.cache_size
        )
        self._remembered_at: Hashable = None
        self._settings: Memory[Hashable, int] = Memory(KNOWN_SETTINGS)
        self._settings_met = 0
        self._start: Mapping[str, Tensor] = self._initial.weights
        self._reference: Answerer | None = None
        self._reference_settings = 0
        self._reference_memory: Memory[Question, Answer] = Memory(args.cache_size)
        self._unused: frozenset[str] = frozenset()

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.model.dtype
        return dtype

    @property
    def score_dtype(self) -> torch.dtype:
        """Of everything that leaves the host: float64 for a float64 model, else float32."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    @property
    def rounded(self) -> bool:
        """Whether answers without a gradient come from weights in 8 bits; those with one never."""
        return self._rounded is not None

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode: no dropout."""
        return super().train(False)

    # --- scoring ----------------------------------------------------------------------------------

    def score(
        self,
        prompts: Sequence[str],
        candidates: Sequence[Sequence[str]],
        modules: Sequence[str] = (),
        with_score: bool = True,
        require_grad: bool = False,
        known: Sequence[int] = (),
    ) -> ScoreResult:
        """Score candidates after prompts and evaluate module functions.

        A score is the sum of the candidate's token log-probabilities in nats, without special
        tokens; ``""`` scores 0. Without gradients, answers are remembered until the weights change,
        for each setting of the model (which adapter is on, say) by itself; none where hooks or
        parts of somebody else's may change them unseen.

        Args:
            prompts: ``n`` prompts, repeated ones at no cost; an empty one is allowed.
            candidates: Candidates of each prompt; may be ``()`` without scores.
            modules: Names of module functions.
            with_score: False to evaluate the module functions only.
            require_grad: Whether gradients are to flow into the weights. No dropout in either case.
            known: See ``ScoreRequest``. Not with gradients.

        Returns:
            Results on the CPU, float32 (float64 from a float64 model). A module function that needs
            states gives one row per prompt, one that needs whole passes gives one per candidate.
            ``stats``: ``prompts``; ``distinct_prompts`` read by the model; ``cached_prompts``
            answered from memory; ``tokens``, the positions that the model computed; ``seconds``.

        Raises:
            RequestError: The lists do not fit, a prompt is too long, or a module function is
                unknown.
        """
        started = time.perf_counter()
        questions = self._asked(prompts, candidates, modules, with_score)
        answers, stats, cached = self._answers(questions, modules, with_score, require_grad, known)
        log_probs, counts, results = join(
            [answers[question] for question in questions], tuple(modules), self.score_dtype
        )
        tidy(self.device, self.args.parallelism)
        stats |= {
            "prompts": float(len(prompts)),
            "cached_prompts": float(cached),
            "seconds": time.perf_counter() - started,
        }
        return ScoreResult(log_probs, counts, results, stats)

    def score_together(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """Answer requests for the same modules, none with ``known``, with one reading.

        Each counts what it would have cost right behind those before it, whatever was saved.

        Raises:
            RequestError: As in ``score``, for any of them.
        """
        started = time.perf_counter()
        modules, with_score = requests[0].modules, requests[0].score
        asked = [
            self._asked(each.prompts, each.candidates, modules, with_score) for each in requests
        ]
        costs = self._costs(asked, modules, with_score)
        every = [question for questions in asked for question in questions]
        answers = self._answers(every, modules, with_score, False, ())[0]
        tidy(self.device, self.args.parallelism)
        seconds = time.perf_counter() - started
        return [
            ScoreResult(
                *join([answers[question] for question in questions], modules, self.score_dtype),
                {**cost, "seconds": seconds},
            )
            for questions, cost in zip(asked, costs, strict=True)
        ]

    def _asked(
        self,
        prompts: Sequence[str],
        candidates: Sequence[Sequence[str]],
        modules: Sequence[str],
        with_score: bool,
    ) -> list[Question]:
        functions = self._functions(modules).values()
        whole = any(function.needs == "full" for function in functions)
        return _questions(prompts, candidates, with_score, whole)

    def _costs(
        self, asked: Sequence[Sequence[Question]], modules: Sequence[str], with_score: bool
    ) -> list[dict[str, float]]:
        """The counters that each of some requests would give, were they answered in this order."""
        functions, settings = self._functions(modules), self._present_settings()
        key = (tuple(modules), with_score, settings)
        seen: set[Question] = set()
        costs = []
        for questions in asked:
            found = {
                question: ELSEWHERE if question in seen else self._known((question, *key))
                for question in dict.fromkeys(questions)
            }
            fresh = [
                question
                for question, answer in found.items()
                if answer is None or (answer is ELSEWHERE and question not in seen)
            ]
            cost = {"distinct_prompts": 0.0, "tokens": 0.0}
            if fresh:
                with torch.no_grad():  # what is read together depends on it
                    cost = self._answerer.count(fresh, functions, with_score)
            costs.append(
                cost
                | {
                    "prompts": float(len(questions)),
                    "cached_prompts": float(sum(found[each] is not None for each in questions)),
                }
            )
            if self.args.cache_size and self._keeps:
                seen.update(found)
        return costs

    def _answers(
        self,
        questions: Sequence[Question],
        modules: Sequence[str],
        with_score: bool,
        require_grad: bool,
        known: Sequence[int],
    ) -> tuple[dict[Question, Answer], dict[str, float], int]:
        """Each question's answer, counters, and how many questions the memory answered."""
        functions, names = self._functions(modules), tuple(modules)
        distinct = dict.fromkeys(questions)
        answers: dict[Question, Answer] = {}
        settings = self._present_settings()
        if not require_grad:
            answers = {
                question: answer
                for question in distinct
                if (answer := self._known((question, names, with_score, settings))) is not None
            }
        cached = sum(question in answers for question in questions)
        unasked = [question for question in distinct if question not in answers]
        given = {questions[place] for place in known}
        answers |= dict.fromkeys(given, ELSEWHERE)
        missing = [
            question
            for question in distinct
            if question not in given and answers.get(question, ELSEWHERE) is ELSEWHERE
        ]
        stats = {"distinct_prompts": 0.0, "tokens": 0.0}
        if missing:
            with torch.set_grad_enabled(require_grad):
                fresh, stats = self._answerer.answer(missing, functions, with_score)
            answers |= zip(missing, fresh, strict=True)
            if not (self._rounding_is_told or require_grad) and self.rounded and with_score:
                self._tell_rounding_error(missing[:COMPARED], fresh[:COMPARED])
            # A module may count its calls: that is no other model.
            self._settings.put(self._state(with_weights=False).settings, settings)
        if given and unasked:
            with torch.no_grad():  # what is read together depends on it
                stats = self._answerer.count(unasked, {}, True)
        keeps = self._keeps and not require_grad
        for question in dict.fromkeys((*unasked, *missing)) if keeps else ():
            self._memory.put((question, names, with_score, settings), answers[question])
        return answers, stats, cached

    def score_reference(
        self, prompts: Sequence[str], candidates: Sequence[Sequence[str]]
    ) -> ScoreResult:
        """Scores under the weights of the start, or those of the last reset; without gradient, and
        remembered until ``forget`` where ``score`` remembers. ``stats``: ``tokens``, the positions
        that the model computed.

        The settings are those of the moment: with an adapter switched off, the start without it.

        Raises:
            RequestError: As in ``score``.
        """
        questions = _questions(prompts, candidates, True, False)
        distinct = dict.fromkeys(questions)
        settings = self._present_settings()
        if settings != self._reference_settings or not self._keeps:
            self._reference, self._reference_settings = None, settings
            self._reference_memory.clear()
        known = {
            question: answer
            for question in distinct
            if (answer := self._reference_memory.get(question)) is not None
        }
        tokens = 0.0
        if missing := [question for question in distinct if question not in known]:
            with torch.no_grad(), self._reference_answerer() as reference:
                fresh, stats = reference.answer(missing, {}, True)
            for question, answer in zip(missing, fresh, strict=True):
                known[question] = answer
                if self._keeps:
                    self._reference_memory.put(question, answer)
            tokens = stats["tokens"]
        found = join([known[question] for question in questions], (), self.score_dtype)
        return ScoreResult(*found, {"tokens": tokens})

    def generate(self, request: GenerateRequest) -> GenerateResult:
        """Continue prompts; see ``generation.Generator``.

        Raises:
            RequestError: An option is unknown or impossible, or a prompt too long.
        """
        self._present_settings()
        generator = Generator(
            callable_of(self.model), self.tokenizer, self._encoder, self._exact.scorer
        )
        return generator.generate(request, self.args.minibatch_size)

    # --- training ---------------------------------------------------------------------------------

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Parameters of model and module functions that take gradients, in a stable order."""
        return [parameter for _, parameter in self.named_trainable_parameters()]

    def named_trainable_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The same with their names."""
        unused = tuple(f"module_functions.{name}." for name in self._unused)
        return [
            (name, parameter)
            for name, parameter in self.named_parameters()
            if parameter.requires_grad and not name.startswith(unused)
        ]

    def weights_changed(self) -> None:
        """To be called after each change of the weights: what was remembered of the old ones is
        forgotten.
        """
        self.weights_version += 1

    def forget(self, reference: bool = True) -> None:
        """Drop the remembered answers, with ``reference`` its own too: what is asked beside a
        question changes its rounding, and a resumed run would ask another set.
        """
        self._memory.clear()
        if reference:
            self._reference_memory.clear()

    @contextmanager
    def remembering_nothing(self) -> Iterator[None]:
        """Answer anew whatever is asked meanwhile and right afterwards: for whoever may change
        weights in ways that PyTorch does not count.
        """
        before, self._remembers = self._remembers, False
        self.forget()
        try:
            yield
        finally:
            self._remembers = before
            self.forget()

    def reset(self, seed: int, weights: Weights = "pretrained", unused: Iterable[str] = ()) -> None:
        """Go back to the model weights of the start, or to fresh ones; draw the module functions
        anew. Parameters stay the same objects, and those that the start trained are trained.

        Args:
            seed: Of everything that is drawn.
            weights: See ``ResetRequest``.
            unused: Names of module functions that are neither trained nor saved until the next
                reset.

        Raises:
            RequestError: Fresh weights of a model with adapters, no such kind of weights, or the
                model or a module function has other tensors than at the start; nothing was changed.
        """
        self._begin()
        start: Mapping[str, Tensor] = self._initial.weights
        if weights != "pretrained":
            start = {**start, **self._fresh_weights(seed, weights)}
        self._initial.check(self.model, start)
        drawn = self._drawn_modules(seed)
        if start is not self._start:
            self._start, self._reference = start, None
            self._reference_memory.clear()
        self._initial.restore(self.model, start)
        self._unused = frozenset(unused)
        for name, function in drawn.items():
            # An optimiser holds the parameters: they stay the same objects.
            begun = Start(function)
            begun.restore(self.module_functions[name], begun.weights)
        self.weights_changed()

    # --- checkpoints ------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write ``model.safetensors``, configuration and tokenizer, as transformers has them, and
        ``modules.safetensors``.

        Raises:
            CheckpointError: Something cannot be written; files of an earlier save stay as they
                were.
        """
        self._begin()
        inner = unwrap(self.model)
        # First of all: ranks that hold parts of a divided model are giving them now.
        tensors = whole_tensors(self.model)
        with written_whole(Path(folder)) as scratch:
            write_tensors(tensors, scratch / MODEL_FILE)
            write_tensors(whole_tensors(self._modules_in_use()), scratch / MODULES_FILE)
            (scratch / "config.json").write_text(
                json.dumps(config_values(inner), indent=2, sort_keys=True) + "\n", encoding="utf-8"
            )
            if getattr(inner, "generation_config", None) is not None:
                inner.generation_config.save_pretrained(scratch)
            self.tokenizer.save_pretrained(scratch)

    def give_parts(self) -> None:
        """Take part in ``save`` of the first of the ranks that hold this model together."""
        whole_tensors(self.model, keep=False)

    def load(self, folder: Path) -> None:
        """Read the weights that ``save`` wrote. Nothing changes unless all of them fit.

        The reference stays what the last reset of this host made it: after fresh weights, reset
        with the same seed and weights before, as runs do.

        Raises:
            CheckpointError: A file is missing, corrupt or of another model; the message names it.
        """
        self._begin()
        values = read_tensors(Path(folder) / MODEL_FILE, shapes_of(self.model))
        in_use = self._modules_in_use()
        modules = read_tensors(Path(folder) / MODULES_FILE, shapes_of(in_use))
        copy_into(self.model, values)
        copy_into(in_use, modules)
        self.weights_changed()

    def info(self) -> dict[str, Scalar]:
        """What is hosted."""
        return {
            "model_path": self.args.model_path,
            "model_type": self.model_type,
            "architecture": own_class(unwrap(self.model)).__name__,
            "engine": type(self._answerer.scorer.engine).__name__,
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "trainable_parameters": sum(
                parameter.numel() for parameter in self.trainable_parameters()
            ),
            "vocab_size": int(self.model.config.vocab_size),
            "dtype": str(self.dtype).removeprefix("torch."),
            "quantize": self.args.quantize or "",
            "device": str(self.device),
            "module_functions": ",".join(self.module_functions),
            "weights_version": self.weights_version,
            "remembered_answers": len(self._memory),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    # --- inside -----------------------------------------------------------------------------------

    def _functions(self, names: Iterable[str]) -> dict[str, BaseModuleFunction]:
        functions: dict[str, BaseModuleFunction] = {}
        for name in names:
            function = self.module_functions[name] if name in self.module_functions else None
            if not isinstance(function, BaseModuleFunction):
                raise RequestError(
                    f"no module function {name!r}; there are:"
                    f" {', '.join(self.module_functions) or 'none'}"
                )
            functions[name] = function
        return functions

    def _modules_in_use(self) -> nn.ModuleDict:
        return nn.ModuleDict(
            {
                name: function
                for name, function in self.module_functions.items()
                if name not in self._unused
            }
        )

    def _fresh_weights(self, seed: int, weights: str) -> dict[str, Tensor]:
        """Freshly drawn weights of this model's shape, each in the precision of the model's own."""
        if weights not in ("fresh", "embeddings"):
            raise RequestError(f"weights can be pretrained, fresh or embeddings, got {weights!r}")
        model: Any = self.model
        if unwrap(model) is not model:
            raise RequestError(
                "fresh weights cannot be drawn for a model with adapters: only the adapters' own"
                " weights are trained"
            )
        name = next(
            name
            for name, tensor in model.named_parameters()
            if tensor is model.get_input_embeddings().weight
        )
        kept, initial = None, self._initial.weights
        if weights == "embeddings":
            kept = whole_as(initial[name], model.get_input_embeddings().weight).cpu()
        own_head = has_own_head(model)
        drawn = draw_model(
            lambda: own_class(model)(copy.deepcopy(model.config)), seed, own_head, kept
        )
        tensors = distinct_tensors(drawn)
        if own_head and not has_own_head(drawn):
            raise RequestError(
                f"fresh weights cannot be drawn: this {model.config.model_type} has an output head"
                " of its own, which its configuration ties to the input embeddings"
            )
        if other := [each for each in tensors if each not in initial]:
            raise RequestError(
                f"fresh weights cannot be drawn: {other[0]} of a {model.config.model_type} is not"
                " in this model"
            )
        return {each: tensor.to(initial[each].dtype) for each, tensor in tensors.items()}

    def _make_answerer(
        self, model: PreTrainedModel, rounded: RoundedWeights | None = None
    ) -> Answerer:
        size = self.args.minibatch_size
        plain = PlainForward(callable_of(model), self.model_type == "seq2seq", size)
        engine = make_engine(model, size)
        if rounded is not None and not isinstance(engine, PlainEngine):
            engine = Int8Engine(engine, rounded)
        scorer = Scorer(engine, size, self.score_dtype)
        return Answerer(self._encoder, scorer, plain, self.args.pre_encode_inputs)

    @property
    def _exact(self) -> Answerer:
        """In the model's own precision."""
        return self._make_answerer(self.model) if self.rounded else self._answerer

    def _tell_rounding_error(
        self, questions: Sequence[Question], rounded: Sequence[Answer]
    ) -> None:
        with torch.no_grad():
            exact, _ = self._exact.answer(questions, {}, True)
        off = torch.cat(
            [(a.log_probs - b.log_probs).abs() for a, b in zip(rounded, exact, strict=True)]
        )
        if len(off):
            self._rounding_is_told = True
            log.info(
                "lamorel_args.llm_args.quantize: int8: the first %d scores are off by %.3f nats on"
                " average, by %.3f at most",
                len(off),
                float(off.mean()),
                float(off.max()),
            )

    @contextmanager
    def _reference_answerer(self) -> Iterator[Answerer]:
        """Answers with the weights of the start.

        A divided model takes them for so long: a second one would need its room once more. So does
        one with hooks or parts of somebody else's: a copy's might still look at the model.
        """
        if self._reference is not None:
            yield self._reference
            return
        self._initial.check(self.model, self._start)
        if self._divided:
            present = {
                name: own_part(tensor).clone()
                for name, tensor in distinct_tensors(self.model).items()
            }
            copy_into(self.model, self._start)
            try:
                yield self._exact
            finally:
                copy_into(self.model, present)
            return
        if not (self._steady and self._told):
            with self._at_start():
                yield self._exact
            return
        self._reference = self._make_answerer(self._frozen_copy())
        yield self._reference

    @contextmanager
    def _at_start(self) -> Iterator[None]:
        """The model with the weights of the start; in their place, so that a gradient that is still
        to be taken with the present ones finds them as they were.
        """
        tensors = self.model.state_dict(keep_vars=True) | unsaved_buffers(self.model)
        start = {**self._start, **self._initial.buffers}
        present = {name: tensor.data for name, tensor in tensors.items() if name in start}
        try:
            for name, value in present.items():
                # A copy of a buffer: a pass may change it in place.
                copied = not isinstance(tensors[name], nn.Parameter)
                tensors[name].data = start[name].to(value.device, value.dtype, copy=copied)
            yield
        finally:
            for name, value in present.items():
                tensors[name].data = value

    def _frozen_copy(self) -> PreTrainedModel:
        """A model of its own with the weights of the start; on the CPU it is the remembered tensors
        themselves, not one more copy.
        """
        held = self._initial.held(self.model, self._start)
        copied: PreTrainedModel = copy.deepcopy(self.model, held).requires_grad_(False).eval()
        return copied

    def _begin(self) -> None:
        """Before the first question: what updaters did to the model belongs to its start."""
        if not self._begun:
            self._begun = True
            self._initial.take_in(self.model)
            self._start = self._initial.weights

    def _initialize(self, functions: Mapping[str, nn.Module], seed: int) -> None:
        for name, function in functions.items():
            if not isinstance(function, BaseModuleFunction):
                raise TypeError(
                    f"module function {name!r} is a {type(function).__name__}, not a"
                    " BaseModuleFunction"
                )
            function.device, function.llm_config = self.device, unwrap(self.model).config
            with seeded(seed, self.device):
                function.initialize()
            if lazy := [key for key, value in function.named_parameters() if is_lazy(value)]:
                raise TypeError(
                    f"module function {name!r}: {lazy[0]} has no size after initialize(), as in a"
                    " LazyLinear; llm_config says how wide states are"
                )

    def _drawn_modules(self, seed: int) -> dict[str, nn.Module]:
        """The module functions as they are at the start of a run with this seed."""
        drawn = copy.deepcopy(self._uninitialized)
        self._initialize(drawn, seed)
        for name, function in drawn.items():
            own = distinct_tensors(self.module_functions[name])
            if other := sorted(own.keys() ^ distinct_tensors(function).keys()):
                raise RequestError(
                    f"module function {name!r}: {other[0]} was put in or taken out since"
                    " initialize(); it cannot be drawn anew"
                )
        return drawn

    def _state(self, with_weights: bool = True) -> State:
        return state_of(self.model, self.module_functions, with_weights=with_weights)

    @property
    def _keeps(self) -> bool:
        """Whether answers may be remembered: nothing but what is looked at can change them."""
        return self._remembers and self._steady and self._told

    def _known(self, key: tuple[Question, tuple[str, ...], bool, int]) -> Answer | None:
        return self._memory.get(key) if self._keeps else None

    def _present_settings(self) -> int:
        """A number for the model's settings; what was remembered of other weights is forgotten, and
        after other settings the engine is chosen anew.
        """
        self._begin()
        state = self._state()
        stamp = self.weights_version, state.weights
        changed = stamp != self._remembered_at
        if changed:
            self._memory.clear()
            self._remembered_at = stamp
        if self._rounded is not None and (changed or not self._remembers):
            self._rounded.clear()
        number = self._settings.get(state.settings)
        if number is None:
            number = self._settings_met = self._settings_met + 1
            self._settings.put(state.settings, number)
        if number != self._made_for:
            self._answerer = self._make_answerer(self.model, self._rounded)
            self._made_for = number
            self._steady = is_steady(self.model)
        self._told = state.told
        return number


def _questions(
    prompts: Sequence[str], candidates: Sequence[Sequence[str]], with_score: bool, needed: bool
) -> list[Question]:
    """Each prompt with its candidates; without them where nobody asks, so that prompts are told
    apart by nothing else.
    """
    if not with_score and not candidates:
        candidates = [()] * len(prompts)
    if len(candidates) != len(prompts):
        raise RequestError(f"{len(prompts)} prompts but {len(candidates)} lists of candidates")
    for place, (prompt, own) in enumerate(zip(prompts, candidates, strict=True)):
        if not isinstance(prompt, str):
            raise RequestError(f"prompt {place} is a {type(prompt).__name__}, not a text")
        if isinstance(own, str) or not all(isinstance(candidate, str) for candidate in own):
            raise RequestError(f"the candidates of prompt {place} are not a list of texts")
    return [
        (prompt, tuple(own) if with_score or needed else ())
        for prompt, own in zip(prompts, candidates, strict=True)
    ]
