"""What a server does with each type of request.

One function per type; each may raise, ``RequestHandler.handle`` makes a ``Failure`` of it.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import nn

from lamorel_ext.errors import CheckpointError, LamorelExtError, RequestError, UpdateError
from lamorel_ext.rpc.failures import failure_of
from lamorel_ext.rpc.groups import (
    LockstepGroup,
    OtherServerFailed,
    gather_numbers,
    make_thread_groups,
)
from lamorel_ext.rpc.requests import check_generate, check_score, check_update
from lamorel_ext.types import (
    Answer,
    CallRequest,
    CallResult,
    CloseRequest,
    Done,
    ForgetRequest,
    GenerateRequest,
    GenerateResult,
    InfoRequest,
    InfoResult,
    LoadRequest,
    Request,
    ResetRequest,
    SaveRequest,
    Scalar,
    ScoreRequest,
    ScoreResult,
    ServerGroup,
    UpdateRequest,
    UpdateResult,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

UNSOUND = (
    "no sound weights since a reset or load that failed, or an update that did not leave the"
    " servers alike"
)


class Host(Protocol):
    """What a server needs of a ``lamorel_ext.llm.host.ModelHost``."""

    @property
    def weights_version(self) -> int: ...

    def score(
        self,
        prompts: Sequence[str],
        candidates: Sequence[Sequence[str]],
        modules: Sequence[str] = (),
        with_score: bool = True,
        *,
        known: Sequence[int] = (),
    ) -> ScoreResult: ...

    def generate(self, request: GenerateRequest) -> GenerateResult: ...

    def reset(
        self, seed: int, weights: Any = "pretrained", unused: tuple[str, ...] = ()
    ) -> None: ...

    def save(self, folder: Path) -> None: ...

    def load(self, folder: Path) -> None: ...

    def forget(self, reference: bool = True) -> None: ...

    def info(self) -> dict[str, Scalar]: ...


class Updater(Protocol):
    """What a server needs of an ``updaters.BaseUpdater``."""

    def set_llm_module(self, llm_module: Any) -> None: ...

    def set_group(self, group: ServerGroup) -> None: ...

    def update(self, request: UpdateRequest) -> UpdateResult: ...

    def reset(self, seed: int) -> None: ...

    def save(self, folder: Path) -> None: ...

    def load(self, folder: Path) -> None: ...


@dataclass
class RequestHandler:
    """Answers the requests of one server.

    Attributes:
        host: The language model.
        updaters: By name.
        group: The LLM servers among themselves.
        rank: Global rank of this process.
        role: Such as ``"llm server 0"``.
        known_version: Version of the weights when they were last the same on every server for sure:
            at the start, after a reset or a load. None after a reset or load that failed, or an
            update that left servers with different weights: until the next good one nothing is
            answered with them, and no checkpoint made of them.
        random_state: Held while random numbers are drawn: servers that are threads of one process
            share its random state.
        one_model: True where the servers of the group hold one model together: each gets the whole
            of every request, and they answer it in step.
    """

    host: Host
    updaters: Mapping[str, Updater]
    group: LockstepGroup
    rank: int
    role: str
    known_version: int | None = 0
    random_state: AbstractContextManager[Any] = field(default_factory=nullcontext)
    one_model: bool = False

    @property
    def together(self) -> Callable[[Sequence[ScoreRequest]], list[ScoreResult]] | None:
        """Answers several requests with one reading; a host of the user's own need not know how."""
        return getattr(self.host, "score_together", None)

    def open(self) -> None:
        """Hand host and group to the updaters."""
        self.known_version = self.host.weights_version
        for updater in self.updaters.values():
            updater.set_llm_module(self.host)
            updater.set_group(self.learners)

    @property
    def comparable(self) -> bool:
        """Whether there are other servers that hold the same, and it can be told."""
        return self.group.size > 1 and not self.one_model and isinstance(self.host, nn.Module)

    def unlike(self) -> str:
        """How another server's model differs from the first one's; empty where it does not, or
        cannot be told. Every server must call it.
        """
        if not (self.comparable and isinstance(self.host, nn.Module)):
            return ""
        # Here, so that a client, which has this file for servers of its own, need not load
        # updaters.
        from lamorel_ext.llm.updaters.agreement import unlike

        return unlike(self.host, self.host.info(), self.group)

    @property
    def learners(self) -> ServerGroup:
        """The servers that have each a part of a batch."""
        return make_thread_groups(1)[0] if self.one_model else self.group

    def in_step(self, work: Callable[[], T]) -> T:
        """Do what only this server needs to do, unless it holds its model together with others."""
        return self.group.together(work) if self.one_model else work()

    def handle(self, request: Request) -> Answer:
        """Answer a request; whatever goes wrong is an answer too."""
        try:
            return _HANDLERS[type(request)](self, request)
        except (Exception, SystemExit) as error:  # an updater's sys.exit(0) is no good end either
            return failure_of(error, self.rank, self.role)

    def handle_together(self, requests: Sequence[ScoreRequest]) -> list[Answer]:
        """Answer several requests of one kind at once; where that fails, one after the other, so
        that each gets what it would have got alone.
        """
        started = time.perf_counter()
        together = self.together
        if together is not None and len(requests) > 1 and self.known_version is not None:
            try:
                for request in requests:
                    check_score(request)
                return [
                    replace(
                        each,
                        stats={**_timed(each.stats, started), "merged": float(len(requests) - 1)},
                    )
                    for each in together(requests)
                ]
            except Exception as error:
                log.debug("%s answers %d requests one by one: %s", self.role, len(requests), error)
        return [self.handle(request) for request in requests]


def score(handler: RequestHandler, request: ScoreRequest) -> ScoreResult:
    """Score candidates and evaluate module functions."""
    check_score(request)
    started = time.perf_counter()

    def work() -> ScoreResult:
        _check_sound(handler)
        return handler.host.score(
            request.prompts,
            request.candidates,
            modules=request.modules,
            with_score=request.score,
            # Named only where there are any: a host of the user's own need not take them.
            **({"known": request.known} if request.known else {}),
        )

    result = handler.in_step(work)
    return replace(result, stats=_timed(result.stats, started))


def generate(handler: RequestHandler, request: GenerateRequest) -> GenerateResult:
    """Continue prompts."""
    check_generate(request)
    started = time.perf_counter()

    def work() -> GenerateResult:
        _check_sound(handler)
        return handler.host.generate(request)

    with handler.random_state:
        result = handler.in_step(work)
    return replace(result, stats=_timed(result.stats, started))


def update(handler: RequestHandler, request: UpdateRequest) -> UpdateResult:
    """Apply an updater to this server's shard, together with the other servers."""
    started = time.perf_counter()
    before, unseen = handler.host.weights_version, False

    def work() -> UpdateResult:
        nonlocal unseen
        check_update(request)
        updater = _updater(handler, request.updater)
        _check_same_weights(handler)
        unseen = not _is_ours(updater)
        with _unremembered(handler, updater):
            result = updater.update(request)
        _check_after(handler, updater, request.updater)
        return result

    try:
        result = handler.group.together(work)
    except (Exception, SystemExit) as error:
        name = request.updater or next(iter(handler.updaters), "")
        steps = handler.host.weights_version - before
        _compare_after_failure(handler, name, steps, unseen, error)
        raise
    return UpdateResult(_timed(result.stats, started))


def reset(handler: RequestHandler, request: ResetRequest) -> Done:
    """Bring back the weights of the start, or draw fresh ones."""

    def work() -> None:
        before, handler.known_version = handler.known_version, None
        with handler.random_state:
            try:
                handler.host.reset(request.seed, request.weights, request.unused)
            except RequestError:  # nothing was changed
                handler.known_version = before
                raise
            for updater in handler.updaters.values():
                updater.reset(request.seed)

    handler.group.together(work)
    handler.known_version = handler.host.weights_version
    return Done()


def save(handler: RequestHandler, request: SaveRequest) -> Done:
    """Write everything below the folder, on the first server only; the servers hold the same."""
    folder = Path(request.folder).resolve()  # a link stays one, and leads to what was written

    def work() -> None:
        if handler.known_version is None:
            raise CheckpointError(f"{folder} was not written: {handler.role} has {UNSOUND}")
        if handler.group.rank == 0:
            _save_whole(handler, folder)
        elif handler.one_model:
            _give_parts(handler)

    handler.group.together(work)
    return Done()


def load(handler: RequestHandler, request: LoadRequest) -> Done:
    """Read what ``save`` wrote. An updater that was not there then stays as it is: a comparison's
    servers have those of arms that joined it later, too.
    """
    folder = Path(request.folder).resolve()

    def work() -> None:
        if handler.group.rank == 0:
            _bring_back(folder)
        handler.group.barrier()
        if not _model(folder).is_dir():
            raise CheckpointError(
                f"{folder} is no checkpoint of a server: it has no folder {_model(folder).name!r}"
            )
        # Nobody begins unless everybody can.
        handler.group.barrier()
        handler.known_version = None
        try:
            handler.host.load(_model(folder))
            for name, updater in handler.updaters.items():
                if _state(folder, name).is_dir():
                    updater.load(_state(folder, name))
        except OSError as error:
            raise CheckpointError(f"{folder} cannot be read: {error}") from error
        if found := handler.unlike():
            raise CheckpointError(
                f"{folder} is not the same on every machine, as it must be: {found}"
            )

    handler.group.together(work)
    handler.known_version = handler.host.weights_version
    return Done()


def info(handler: RequestHandler, request: InfoRequest) -> InfoResult:
    """Tell what is hosted."""
    return InfoResult({**handler.host.info(), "updaters": ", ".join(sorted(handler.updaters))})


def forget(handler: RequestHandler, request: ForgetRequest) -> Done:
    """Drop remembered answers."""
    handler.host.forget(request.reference)
    return Done()


def call(handler: RequestHandler, request: CallRequest) -> CallResult:
    """Pass a call in Lamorel's shape on to a host that takes such."""
    answer = getattr(handler.host, "call", None)
    if answer is None:
        raise RequestError(
            f"{handler.role} hosts no model in Lamorel's way: {request.method} cannot be called"
        )
    with handler.random_state:
        return CallResult(answer(request.method, request.values, handler.group))


def close(handler: RequestHandler, request: CloseRequest) -> Done:
    """Nothing to do here: who listens counts the clients that are done."""
    return Done()


_HANDLERS: dict[type, Callable[[RequestHandler, Any], Answer]] = {
    ScoreRequest: score,
    GenerateRequest: generate,
    UpdateRequest: update,
    ResetRequest: reset,
    SaveRequest: save,
    LoadRequest: load,
    ForgetRequest: forget,
    InfoRequest: info,
    CallRequest: call,
    CloseRequest: close,
}


def _updater(handler: RequestHandler, name: str) -> Updater:
    if name in handler.updaters:
        return handler.updaters[name]
    if not name and len(handler.updaters) == 1:
        return next(iter(handler.updaters.values()))
    raise RequestError(
        f"no updater {name!r} on {handler.role}; there are:"
        f" {', '.join(sorted(handler.updaters)) or 'none'}"
    )


def _check_sound(handler: RequestHandler) -> int:
    """The version at which the servers were last the same for sure."""
    if handler.known_version is None:
        raise UpdateError(f"{handler.role} has {UNSOUND}; load a checkpoint or reset")
    return handler.known_version


def _check_same_weights(handler: RequestHandler) -> None:
    """Training must not go on where an updater of the user's own has made steps on some servers and
    not on others.
    """
    known = _check_sound(handler)
    if handler.group.size == 1:
        return
    steps = handler.host.weights_version - known
    handler.group.same(
        steps,
        "steps behind it since its weights were last known to be the same; load a checkpoint or"
        " reset",
    )


def _is_ours(updater: Updater) -> bool:
    """Whether an updater is one of ours, whose changes of weights are all announced; a subclass of
    the user's may do anything else besides.
    """
    # Here, so that a client, which has this file for servers of its own, need not load updaters.
    from lamorel_ext.llm.updaters.candidates import CandidateUpdater

    ours = type(updater).__module__.startswith("lamorel_ext.")
    return ours and isinstance(updater, CandidateUpdater)


def _unremembered(handler: RequestHandler, updater: Updater) -> AbstractContextManager[Any]:
    """While an updater of the user's own is at work: weights can change in ways that PyTorch does
    not count.
    """
    nothing = getattr(handler.host, "remembering_nothing", None)
    return nullcontext() if nothing is None or _is_ours(updater) else nothing()


def _check_after(handler: RequestHandler, updater: Updater, name: str) -> None:
    """Our updaters check each step; what one of the user's own has done to the weights is only seen
    afterwards.
    """
    # Here, as above.
    from lamorel_ext.llm.updaters.agreement import check_servers

    if _is_ours(updater) or not isinstance(handler.host, nn.Module):
        return
    handler.host.forget()  # a host of the user's own may remember too
    try:
        check_servers(handler.host, handler.learners, name or type(updater).__name__)
    except OtherServerFailed:  # all compare what it has left behind
        raise
    except UpdateError:
        handler.known_version = None
        raise


def _compare_after_failure(
    handler: RequestHandler, name: str, steps: int, unseen: bool, error: BaseException
) -> None:
    """After an update that failed, on every server: where it has left them with different weights
    they answer nothing with these.

    Args:
        name: Of the updater.
        steps: That this server has announced in it.
        unseen: Whether it may have changed weights without a word.
        error: Why it failed here; gets a note.
    """
    if handler.group.size == 1 or handler.one_model or handler.group.broken is not None:
        return
    # Here, as above.
    from lamorel_ext.llm.updaters.agreement import check_servers

    def work() -> None:
        taken = gather_numbers([steps, int(unseen)], handler.group)
        handler.group.same(steps, "steps of the update that failed")
        if taken.any() and isinstance(handler.host, nn.Module):
            check_servers(handler.host, handler.group, name)

    try:
        handler.group.together(work)
    except Exception as second:
        handler.known_version = None
        error.add_note(f"the servers are not alike since: {second}")


def _begin_part(handler: RequestHandler) -> None:
    """Where servers hold one model together: begin to write, or give, the next part of it; unless
    one of them has failed meanwhile.
    """
    if handler.one_model:
        handler.group.barrier()


def _give_parts(handler: RequestHandler) -> None:
    """The part of the other servers in ``_save_whole`` of the first."""
    for holder in (handler.host, *handler.updaters.values()):
        _begin_part(handler)
        if (give := getattr(holder, "give_parts", None)) is not None:
            give()


def _timed(stats: dict[str, float], started: float) -> dict[str, float]:
    """With all the seconds that the server spent on the request, whatever the host counted."""
    return {**stats, "seconds": time.perf_counter() - started}


def _model(folder: Path) -> Path:
    return folder / "model"


def _state(folder: Path, name: str) -> Path:
    return folder / "updaters" / name


def _unfinished(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.unfinished")


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _bring_back(folder: Path) -> None:
    """A process that was killed between the two renames of a save has left none of this name."""
    if not folder.exists() and _model(_old(folder)).is_dir():
        with suppress(OSError):
            _old(folder).rename(folder)


def _save_whole(handler: RequestHandler, folder: Path) -> None:
    """Write beside the place and move there in the end, so that a folder of this name is always a
    whole one. Only what was written so is replaced.
    """
    if (
        folder.exists()
        and not _model(folder).is_dir()
        and not (folder.is_dir() and not any(folder.iterdir()))
    ):
        raise CheckpointError(
            f"{folder} holds something else than a checkpoint of the servers; it was left as it is"
        )
    unfinished, old = _unfinished(folder), _old(folder)
    _bring_back(folder)
    try:
        for leftover in (unfinished, old):
            shutil.rmtree(leftover, ignore_errors=True)
        _model(unfinished).mkdir(parents=True)
        _begin_part(handler)
        handler.host.save(_model(unfinished))
        for name, updater in handler.updaters.items():
            _state(unfinished, name).mkdir(parents=True)
            _begin_part(handler)
            updater.save(_state(unfinished, name))
        if folder.exists():
            folder.rename(old)
        unfinished.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except LamorelExtError:
        raise
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {error}") from error
