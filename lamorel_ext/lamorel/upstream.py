"""Our updaters, module functions and initialisers as parts of a Lamorel script.

The same line works under upstream's Lamorel, 0.2 and 0.3, where that is what ``import lamorel``
finds, and under ``lamorel_ext.Caller``. Nothing here imports more of transformers than upstream's
old versions of it have.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from lamorel_ext.errors import RequestError
from lamorel_ext.llm.initializers import BaseModelInitializer
from lamorel_ext.llm.module_functions import BaseModuleFunction, first_states
from lamorel_ext.llm.updaters.base import BaseUpdater
from lamorel_ext.rpc.groups import LockstepGroup
from lamorel_ext.rpc.lamorel_shape import SCORE_KEY
from lamorel_ext.types import ScoreResult


def for_lamorel(part: Any, scores: str = SCORE_KEY) -> Any:
    """A part of this package as one that Lamorel's ``Caller`` takes.

    Args:
        part: An updater (``PPOUpdater()``, ``FeedbackUpdater()`` or your own with this package's
            interface), a module function (``ValueHead()``, ``LogScores()``) or an initialiser,
            which gets the transformers model.
        scores: Of an updater: the module function that gives a candidate's log-probability.
            Lamorel 0.3's ``__score`` gives probabilities; there register
            ``for_lamorel(LogScores())`` and name it here.

    Returns:
        An object of a class of Lamorel's, with the part as ``.part``. The model of an updater is
        in evaluation mode: what is trained is the distribution that was sampled from.

    Raises:
        TypeError: It is none of these.
    """
    if isinstance(part, BaseUpdater):
        return _updater(_class_of_lamorel("BaseUpdater"), part, scores)
    if isinstance(part, BaseModuleFunction):
        return _module_function(_class_of_lamorel("BaseModuleFunction"), part)
    if isinstance(part, BaseModelInitializer):
        return _initializer(_class_of_lamorel("BaseModelInitializer"), part)
    raise TypeError(
        f"for_lamorel got a {type(part).__name__}, expected an updater, a module function or an"
        " initialiser of lamorel_ext's"
    )


class LamorelsHost:
    """What an updater asks of a server, of the model that Lamorel hands to updaters. See
    ``llm.updaters.base.Host``.

    Args:
        model: Lamorel's wrapper of the transformers model, not that of DistributedDataParallel:
            our updaters average by themselves.
        scores: See ``for_lamorel``.
    """

    rounded = False

    def __init__(self, model: Any, scores: str) -> None:
        self._model, self._scores = model.eval(), scores
        self._start: dict[str, Tensor] = {}

    @property
    def device(self) -> torch.device:
        return torch.device(getattr(self._model, "main_device", None) or self._model.device)

    def score(
        self,
        prompts: Sequence[str],
        candidates: Sequence[Sequence[str]],
        modules: Sequence[str] = (),
        with_score: bool = True,
        require_grad: bool = False,
    ) -> ScoreResult:
        """Candidates' scores, and module functions, which have a row per candidate.

        Raises:
            RequestError: A module function gives something else.
        """
        keys = [*([self._scores] if with_score else []), *modules]
        texts = [list(own) or [""] for own in candidates] or [[""]] * len(prompts)
        rows = self._model(
            keys, contexts=list(prompts), candidates=texts, require_grad=require_grad
        )
        found = {key: torch.cat([_rows(key, row[key]) for row in rows]) for key in keys}
        if not with_score:
            return ScoreResult(torch.zeros(0), (), found)
        log_probs = self._log_probs(found.pop(self._scores), sum(map(len, texts)))
        counts = tuple(map(len, texts))
        return ScoreResult(log_probs, counts, found)

    def score_reference(
        self, prompts: Sequence[str], candidates: Sequence[Sequence[str]]
    ) -> ScoreResult:
        """Scores under the weights of the first update's beginning."""
        named = dict(self._model.named_parameters())
        present = {name: named[name].data for name in self._start}
        try:
            # In their place: a gradient that is still to be taken finds the tensors as they were.
            for name, value in self._start.items():
                named[name].data = value
            with torch.no_grad():
                return self.score(prompts, candidates)
        finally:
            for name, value in present.items():
                named[name].data = value

    def keep_start(self) -> None:
        """Remember the weights, once."""
        if not self._start:
            named = self.named_trainable_parameters()
            self._start = {name: parameter.detach().clone() for name, parameter in named}

    def named_trainable_parameters(self) -> list[tuple[str, Parameter]]:
        """Of model and module functions, in a stable order."""
        return [pair for pair in self._model.named_parameters() if pair[1].requires_grad]

    def weights_changed(self) -> None:
        """Nothing is remembered."""

    def _log_probs(self, values: Tensor, expected: int) -> Tensor:
        flat = values.reshape(-1)
        if len(flat) != expected:
            raise RequestError(
                f"module function {self._scores} gave {tuple(values.shape)}, expected a"
                f" log-probability for each of {expected} candidates"
            )
        highest, lowest = (float(each) for each in torch.aminmax(flat.detach())[::-1])
        if highest > 1e-4 or (highest > 0 and lowest >= 0):
            raise RequestError(
                f"module function {self._scores} gave {highest:.3g}, expected log-probabilities;"
                " where it gives probabilities, as __score does in Lamorel 0.3, register"
                " for_lamorel(LogScores()) and name that in for_lamorel(updater, scores=...)"
            )
        return flat


def _rows(key: str, values: Any) -> Tensor:
    if not isinstance(values, Tensor):
        raise RequestError(
            f"module function {key} gave a {type(values).__name__}, expected a tensor: our updaters"
            " read no dictionaries"
        )
    return values.reshape(1) if not values.dim() else values


def _class_of_lamorel(name: str) -> Any:
    try:
        found = importlib.import_module("lamorel")
    except ModuleNotFoundError as error:
        if error.name != "lamorel":
            raise
        found = None
    # A mere folder of that name, as in this package's tests, has none.
    return getattr(found, name, None) or getattr(importlib.import_module("lamorel_ext"), name)


def _updater(base: Any, updater: BaseUpdater, scores: str) -> Any:
    class UpdaterForLamorel(base):  # type: ignore[misc]
        averages_itself = True
        """For ``hosting``: every server calls ``perform_update``, without contexts too."""

        def __init__(self) -> None:
            super().__init__()
            self.part = updater
            self._servers: tuple[Any, Callable[[Callable[[], Any]], Any]] | None = None

        def set_llm_module(self, llm_module: Any) -> None:
            super().set_llm_module(llm_module)
            self._host = LamorelsHost(llm_module.module, scores)
            self.part.set_llm_module(self._host)

        def perform_update(
            self, contexts: Any, candidates: Any, _current_batch_ids: Any, **kwargs: Any
        ) -> Any:
            ids = _current_batch_ids
            places = list(ids["contexts"] if isinstance(ids, Mapping) else ids)[: len(contexts)]
            lists = [()] * len(contexts) if candidates is None else candidates

            def work() -> Any:
                if getattr(self.part, "uses_reference", False):
                    self._host.keep_start()
                indices = torch.tensor(places, dtype=torch.int64)
                return self.part.perform_update(contexts, lists, indices, **kwargs)

            if self._servers is None:
                self._servers = _group(self._llm_module)
                self.part.set_group(self._servers[0])
            return self._servers[1](work)

    return UpdaterForLamorel()


def _group(llm_module: Any) -> tuple[Any, Callable[[Callable[[], Any]], Any]]:
    """The servers, and how work is done in which one that fails lets no other wait."""
    if hasattr(llm_module, "group"):  # ours, which is at such work already
        return llm_module.group, lambda work: work()
    import torch.distributed as dist

    from lamorel_ext.rpc.distributed import TorchGroup

    found = llm_module.process_group
    if dist.get_backend(found) == "gloo":
        group = LockstepGroup(TorchGroup(found))
    else:
        ranks = dist.get_process_group_ranks(found)
        gloo = dist.new_group(ranks, backend="gloo", use_local_synchronization=True)
        group = LockstepGroup(TorchGroup(gloo, found))
    return group, group.together


def _module_function(base: Any, function: BaseModuleFunction) -> Any:
    class ModuleFunctionForLamorel(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.part = function

        def initialize(self) -> None:
            self.part.device = torch.device(self.device)
            # In 0.3 llm_config is the user's, and the model's own is beside it.
            self.part.llm_config = getattr(self, "model_config", None) or self.llm_config
            self.part.initialize()

        def forward(
            self, forward_outputs: Any, minibatch: Any, tokenized_contexts: Any, **kwargs: Any
        ) -> Any:
            if self.part.needs == "state":
                forward_outputs = first_states(forward_outputs, minibatch, tokenized_contexts)
                minibatch = {}
            return self.part(
                forward_outputs,
                minibatch=minibatch,
                tokenized_contexts=tokenized_contexts,
                **kwargs,
            )

    return ModuleFunctionForLamorel()


def _initializer(base: Any, initializer: BaseModelInitializer) -> Any:
    class InitializerForLamorel(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.part = initializer

        def initialize_model(self, model: Any) -> Any:
            model._LLM_model = self.part.initialize_model(model._LLM_model)
            return model

    return InitializerForLamorel()
