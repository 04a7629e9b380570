"""What all updates over candidates share: checking, scoring each distinct pair once, summing over
servers, stepping.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar, cast

import torch
from torch import Tensor

from lamorel_ext.errors import RequestError, UpdateError
from lamorel_ext.llm.updaters.base import BaseUpdater, Host
from lamorel_ext.llm.updaters.batches import (
    COUNTERS,
    Batch,
    Chunk,
    DataSpec,
    Minibatch,
    Scored,
    cut_chunks,
    draw_minibatches,
    make_batch,
    read_data,
    score_chunk,
)
from lamorel_ext.llm.updaters.gradients import GradientStepper
from lamorel_ext.llm.weights import read_tensors, write_tensors, written_whole
from lamorel_ext.options import read_options
from lamorel_ext.rpc.groups import (
    OtherServerFailed,
    OtherServerRefused,
    gather_bytes,
    gather_numbers,
)
from lamorel_ext.rpc.requests import check_update
from lamorel_ext.rpc.wire.codec import decode, encode
from lamorel_ext.types import Scalar, UpdateRequest, UpdateResult

STATE_FILE = "{}.optimizer.safetensors"


class StepOptions(Protocol):
    """Options that every update over candidates has."""

    @property
    def lr(self) -> float: ...
    @property
    def adam_eps(self) -> float: ...
    @property
    def max_grad_norm(self) -> float: ...
    @property
    def gradient_minibatch_size(self) -> int: ...
    @property
    def minibatch_size(self) -> int: ...
    @property
    def epochs(self) -> int: ...
    @property
    def seed(self) -> int: ...


OptionsT = TypeVar("OptionsT", bound=StepOptions)


@dataclass(frozen=True)
class StepReport:
    """One optimiser step: the minibatch's size, means of the terms over it, ``COUNTERS``, and the
    gradient's norm before clipping.
    """

    size: int
    means: dict[str, float]
    counts: dict[str, float]
    grad_norm: float


class CandidateUpdater(BaseUpdater, Generic[OptionsT]):
    """An update whose loss is a mean over samples of a function of candidates' scores and module
    outputs.

    A sum over samples divided by the size of the whole minibatch can be cut into chunks of distinct
    pairs and into servers' shares with the same total gradient. Every server takes part in every
    all-reduce, whether it has samples or not, and also when it failed: then all of them give up.
    The parts of the batch that the client sent are exchanged first, so that each minibatch can be
    shared out evenly.
    Where a minibatch's gradient is exactly zero nothing is stepped, so that the optimiser's
    momentum alone never moves the weights.

    Attributes:
        options_type: Frozen dataclass of the options.
        modules: Module functions to evaluate.
        terms: Names of the per-sample terms that ``loss`` gives; the first is ``loss``.
        uses_reference: Whether ``loss`` needs the scores under the initial weights.
    """

    options_type: ClassVar[type[Any]]
    modules: tuple[str, ...] = ()
    terms: ClassVar[tuple[str, ...]] = ("loss",)
    uses_reference: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self._stepper: GradientStepper | None = None

    # --- what a subclass says

    def data_spec(self, options: OptionsT) -> DataSpec:
        """The tensors that must come with the samples."""
        raise NotImplementedError

    def check(self, request: UpdateRequest, data: dict[str, Tensor], options: OptionsT) -> None:
        """Further checks; raises RequestError."""

    def scored_candidates(
        self, request: UpdateRequest, data: dict[str, Tensor], options: OptionsT
    ) -> tuple[tuple[str, ...], ...]:
        """The candidates that need to be scored, one tuple per sample; here all of them."""
        return request.candidates

    def logits_module(self, options: OptionsT) -> str:
        """Name of the module function whose logits take the place of the candidates' scores; empty,
        as here, where the texts are scored.
        """
        return ""

    def reference_counts(self, options: OptionsT) -> bool:
        """Whether ``loss`` depends on the scores under the initial weights, so that their tokens
        are a cost of the update; where only a statistic needs them they are none.
        """
        return self.uses_reference

    def schedule(self, total: int, options: OptionsT) -> Iterable[Minibatch]:
        """The minibatches, one optimiser step each."""
        return draw_minibatches(total, options.minibatch_size, options.epochs, options.seed)

    def loss(self, scored: Scored, data: dict[str, Tensor], options: OptionsT) -> dict[str, Tensor]:
        """Per-sample terms ``(n,)``, named as in ``terms``; only ``loss`` is differentiated."""
        raise NotImplementedError

    def uses_old_log_probs(self, options: OptionsT) -> bool:
        """Whether ``loss`` looks at ``data["old_log_probs"]``."""
        return False

    def said_log_probs(self, scored: Scored, data: dict[str, Tensor], options: OptionsT) -> Tensor:
        """``(n,)``, what ``data["old_log_probs"]`` would be of the model as it is."""
        raise NotImplementedError

    def summarise(self, reports: Sequence[StepReport]) -> dict[str, float]:
        """Statistics of the update: means over all samples of all steps."""
        samples = sum(report.size for report in reports)
        stats = {
            name: sum(r.means[name] * r.size for r in reports) / samples for name in self.terms
        }
        stats |= {name: sum(report.counts[name] for report in reports) for name in COUNTERS}
        norms = [report.grad_norm for report in reports]
        steps = float(sum(norm > 0.0 for norm in norms))
        return stats | {
            "grad_norm": sum(norms) / len(norms),
            "steps": steps,
            "samples": float(samples),
        }

    # --- what the server calls

    def update(self, request: UpdateRequest) -> UpdateResult:
        """Check the request, then take one optimiser step per minibatch.

        Raises:
            RequestError: The request can never be answered; nothing was changed.
            UpdateError: A loss or gradient is not finite, or another server failed. The weights are
                those after the last good step. Or a step led to weights that are not finite: they
                are left so, and no checkpoint is made of them.
        """
        options, batch, stepper = self._agree(request)
        spent: dict[str, float] = {}
        if self._host.rounded and self.uses_old_log_probs(options):
            batch, spent = self._with_own_log_probs(batch, options)
        try:
            reports = [
                self._train_step(stepper, batch, minibatch, options)
                for minibatch in self.schedule(len(batch.pair_ids), options)
            ]
        finally:
            stepper.clear()
        stats = self.summarise(reports)
        return UpdateResult(stats | {name: stats[name] + count for name, count in spent.items()})

    def perform_update(
        self,
        contexts: Sequence[str],
        candidates: Sequence[Sequence[str]],
        _current_batch_ids: Any,
        **kwargs: Any,
    ) -> dict[str, float]:
        """Lamorel's shape of ``update``. See ``BaseUpdater``."""
        indices = torch.as_tensor(_current_batch_ids, dtype=torch.int64)
        given = {
            key: value if isinstance(value, Scalar) else self._numbers(key, value)
            for key, value in kwargs.items()
        }
        whole = {key: v for key, v in given.items() if isinstance(v, Tensor) and v.dim()}
        # Of all servers: there may be no data to tell it by.
        total = torch.tensor(len(contexts))
        self._group.all_reduce_sum(total)
        options = {
            key: value.item() if isinstance(value, Tensor) else value
            for key, value in given.items()
            if key not in whole
        }
        data = {key: values[indices] for key, values in whole.items()}
        lists = tuple(tuple(own) for own in candidates)
        prompts, count = tuple(contexts), int(total)
        request = UpdateRequest(self.name, prompts, lists, indices, count, data, options)
        return self.update(request).stats

    def _numbers(self, key: str, value: Any) -> Tensor:
        try:
            return torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise RequestError(f"{self.name}: {key} is {value!r:.80}, expected numbers") from error

    def reset(self, seed: int) -> None:
        """The optimiser starts anew."""
        self._stepper = None

    def save(self, folder: Path) -> None:
        """Write the optimiser's state, ``NAME.optimizer.safetensors``; without tensors before the
        first step.

        Raises:
            CheckpointError: It cannot be written, or a number is not finite; nothing was written.
        """
        tensors = self._stepper.whole_state() if self._stepper else {}
        with written_whole(folder) as scratch:
            write_tensors(tensors, scratch / STATE_FILE.format(self.name))

    def give_parts(self) -> None:
        """See ``BaseUpdater``."""
        if self._stepper:
            self._stepper.whole_state()

    def load(self, folder: Path) -> None:
        """Read the optimiser's state.

        Raises:
            CheckpointError: The file is missing or corrupt or does not fit the model; the state is
                left as it was.
        """
        fresh = self._new_stepper()
        path = folder / STATE_FILE.format(self.name)
        fresh.restore(read_tensors(path, fresh.expected(), or_none=True))
        self._stepper = fresh

    # --- the steps of an update

    @property
    def _host(self) -> Host:
        if self._llm_module is None:
            raise UpdateError(f"{self.name}: set_llm_module comes first")
        host: Host = self._llm_module
        return host

    def _agree(self, request: UpdateRequest) -> tuple[OptionsT, Batch, GradientStepper]:
        """Check this server's part of the batch, hear of the others whether theirs are sound, since
        one would refuse while the rest wait for it, and take theirs over.
        """
        try:
            options, part = self._checked(request)
            stepper = self._ready_stepper()
            packed = encode(part) if self._group.size > 1 else b""
        except Exception:
            gather_numbers([-1], self._group)
            raise
        sizes: list[int] = gather_numbers([len(packed)], self._group).flatten().tolist()
        if min(sizes) < 0:
            raise OtherServerRefused(f"{self.name}: another server refused its part of the batch")
        parts = [part]
        if self._group.size > 1:
            told = gather_bytes(packed, sizes, self._group)
            parts = [cast(UpdateRequest, decode(each)) for each in told]
        return options, make_batch(parts), stepper

    def _checked(self, request: UpdateRequest) -> tuple[OptionsT, UpdateRequest]:
        """The options, and the part with the candidates that are to be scored and checked data."""
        options: OptionsT = read_options(self.options_type, request.options, self.name)
        check_update(request)
        data = read_data(request, self.data_spec(options))
        self.check(request, data, options)
        candidates = self.scored_candidates(request, data, options)
        return options, replace(request, candidates=candidates, data=data, options={})

    def _new_stepper(self) -> GradientStepper:
        named = self._host.named_trainable_parameters()
        if not named:
            raise UpdateError(f"{self.name}: the model has no parameter that may be trained")
        return GradientStepper(named, self._group)

    def _ready_stepper(self) -> GradientStepper:
        """Made at the first update: an optimiser that is never asked for costs no memory."""
        if self._stepper is None:
            self._stepper = self._new_stepper()
        current = dict(self._host.named_trainable_parameters())
        known = dict(zip(self._stepper.names, self._stepper.parameters, strict=True))
        for name in dict.fromkeys((*known, *current)):
            if current.get(name) is not known.get(name):
                what = "replaced" if name in current else "frozen or taken out"
                what = what if name in known else "put in or unfrozen"
                raise UpdateError(
                    f"{self.name}: {name} was {what} since the last update, whose Adam knows other"
                    " parameters; reset or load first"
                )
        return self._stepper

    def _with_own_log_probs(
        self, batch: Batch, options: OptionsT
    ) -> tuple[Batch, dict[str, float]]:
        """The batch with the old log-probabilities of the model that is about to be trained, and
        ``COUNTERS``: those that came are of its weights in 8 bits, so that the first ratio would
        not be 1.
        """
        size = options.gradient_minibatch_size or options.minibatch_size
        own = torch.zeros(len(batch.pair_ids) + len(COUNTERS) + 1, dtype=torch.float64)
        counts = own[-1 - len(COUNTERS) : -1]

        def work(chunk: Chunk) -> None:
            scored, data, spent = self._read(batch, chunk, options, with_reference=False)
            said = self.said_log_probs(scored, data, options)
            own[chunk.rows] = said.detach().to("cpu", torch.float64)
            counts.add_(torch.tensor(spent, dtype=torch.float64))

        failure = self._do_share(batch, torch.arange(len(batch.pair_ids)), size, work)
        own[-1] = float(failure is not None)
        self._group.all_reduce_sum(own)
        if failure is not None:
            raise failure
        if own[-1]:
            raise OtherServerFailed(f"{self.name}: another server failed; no step was taken")
        data = batch.data | {"old_log_probs": own[: len(batch.pair_ids)]}
        return replace(batch, data=data), dict(zip(COUNTERS, counts.tolist(), strict=True))

    def _do_share(
        self, batch: Batch, places: Tensor, max_pairs: int, work: Callable[[Chunk], None]
    ) -> Exception | None:
        """Do this server's share of the samples at ``places``, chunk by chunk.

        Returns:
            What it failed of, to be raised once the other servers have heard of it; without others
            it is raised at once.
        """
        try:
            rows = batch.share(places, self._group.rank, self._group.size)
            for chunk in cut_chunks(batch, rows, max_pairs):
                work(chunk)
        except Exception as error:
            if self._group.size == 1:
                raise
            return error
        return None

    def _train_step(
        self, stepper: GradientStepper, batch: Batch, minibatch: Minibatch, options: OptionsT
    ) -> StepReport:
        size = len(minibatch.places)
        stepper.clear()
        sums = torch.zeros(len(self.terms) + len(COUNTERS) + 1, dtype=torch.float64)

        def work(chunk: Chunk) -> None:
            sums[:-1] += self._accumulate(batch, chunk, size, options)
            stepper.collect()

        failure = self._do_share(batch, minibatch.places, options.gradient_minibatch_size, work)
        sums[-1] = float(failure is not None)
        norm, totals = stepper.reduce(sums)
        *numbers, failures = totals.tolist()
        if failure is not None:
            raise failure
        if failures:
            raise OtherServerFailed(
                f"{self.name}: another server failed in {minibatch}; no step was taken"
            )
        counts = dict(zip(COUNTERS, numbers[len(self.terms) :], strict=True))
        means = {name: numbers[place] / size for place, name in enumerate(self.terms)}
        report = StepReport(size, means, counts, float(norm))
        return self._step(stepper, norm, report, minibatch, options)

    def _accumulate(self, batch: Batch, chunk: Chunk, size: int, options: OptionsT) -> Tensor:
        """Add a chunk's share to the gradients; gives its share of the sums ``(len(terms) +
        len(COUNTERS),)``.
        """
        scored, data, (pairs, tokens) = self._read(batch, chunk, options, self.uses_reference)
        terms = self.loss(scored, data, options)
        share = terms["loss"].sum() / size
        # Not where every candidate is the empty text, whose score is the constant 0.
        if share.requires_grad:
            share.backward()
        sums = torch.stack([terms[name].detach().sum() for name in self.terms])
        if self.reference_counts(options):
            tokens += scored.reference_tokens
        counts = torch.tensor([pairs, tokens], dtype=torch.float64)
        return torch.cat([sums.to("cpu", torch.float64), counts])

    def _read(
        self, batch: Batch, chunk: Chunk, options: OptionsT, with_reference: bool
    ) -> tuple[Scored, dict[str, Tensor], tuple[float, float]]:
        """What ``loss`` is made of, and the values of ``COUNTERS``."""
        scored, counts = score_chunk(
            self._host, chunk, self.modules, with_reference, self.logits_module(options)
        )
        scores = scored.scores
        data = {
            # Numbers in the precision of the scores.
            key: values[chunk.rows].to(
                scores.device, scores.dtype if values.is_floating_point() else None
            )
            for key, values in batch.data.items()
        }
        return scored, data, counts

    def _step(
        self,
        stepper: GradientStepper,
        norm: Tensor,
        report: StepReport,
        minibatch: Minibatch,
        options: OptionsT,
    ) -> StepReport:
        if not (
            math.isfinite(report.grad_norm)
            and all(math.isfinite(value) for value in report.means.values())
        ):
            values = ", ".join(f"{name} {value:.4g}" for name, value in report.means.items())
            raise UpdateError(
                f"{self.name}: not finite in {minibatch}: {values}, gradient norm"
                f" {report.grad_norm:.4g}; no step was taken there"
            )
        if report.grad_norm > 0.0:
            stepper.step(norm, options.lr, options.adam_eps, options.max_grad_norm)
            self._host.weights_changed()
            if found := stepper.not_finite():
                raise UpdateError(
                    f"{self.name}: {found} after the step of {minibatch}: gradient norm"
                    f" {report.grad_norm:.4g}, lr {options.lr:g}; load a checkpoint or reset"
                )
        return report
