"""The client of the LLM servers: what a training loop talks to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

from torch import Tensor

from lamorel_ext.config import Shards
from lamorel_ext.errors import ProtocolError, RpcError
from lamorel_ext.processes.memory import MEMORY, MEMORY_OF_SERVER
from lamorel_ext.processes.stopping import Stopped
from lamorel_ext.rpc import lamorel_shape
from lamorel_ext.rpc.clients import ClientGroup
from lamorel_ext.rpc.requests import (
    PromptPlaces,
    check_generate,
    check_score,
    check_update,
    merge_generate,
    merge_score,
    merge_update,
    put_back,
    split_generate,
    split_score,
    split_update,
    take_score,
)
from lamorel_ext.rpc.transport import Transport, check_may_wait, gather
from lamorel_ext.types import (
    Answer,
    CallRequest,
    CallResult,
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
    UpdateRequest,
    UpdateResult,
    Weights,
)

A = TypeVar("A", ScoreResult, GenerateResult, UpdateResult, InfoResult, CallResult, Done)
R = TypeVar("R", ScoreResult, GenerateResult)
_Whole = Callable[[Sequence[ScoreResult]], ScoreResult]

COUNTERS = (
    "llm_calls",
    "llm_prompts",
    "llm_tokens",
    "update_calls",
    "server_seconds",
    "transport_seconds",
    "queue_seconds",
    "merged_calls",
)


@dataclass(frozen=True)
class ScoreShare:
    """A client's part of a batch under way.

    Attributes:
        own: Waits for this client's answers, and gives them by server. Raises as ``score_batch``.
        whole: The answer to the whole batch, from those of every server that was asked, in their
            order.
    """

    own: Callable[[], dict[int, ScoreResult]]
    whole: _Whole


class Caller:
    """Asks the LLM servers, in types (``score_batch`` and its like) or in Lamorel's call shape
    (``score`` and its like).

    A batch is cut into one shard per server. Everything that cannot be answered raises
    ``RequestError`` before anything is sent; an exception on a server raises ``RemoteError`` here,
    a server that died ``PeerDiedError``, one that is silent too long ``RequestTimeout``.

    As a context manager it takes leave of the servers at the end; where the block ends with an
    exception, they learn of it and end too.

    Args:
        transport: Carries the requests.
        first_server: Server that gets the first shard, so that the small requests of several
            clients do not all go to one server.
        rl_group: Process group of the RL clients among themselves, for ``get_rl_dist_group``.
        clients: The same for the clients of one training run; None where there is one.
        shards: ``distinct`` computes equal prompts on one server only, see ``PromptPlaces``;
            ``contiguous`` cuts a batch where it is.

    Attributes:
        clients: See above.
    """

    def __init__(
        self,
        transport: Transport,
        first_server: int = 0,
        rl_group: Any = None,
        clients: ClientGroup | None = None,
        shards: Shards = "contiguous",
    ) -> None:
        self.clients = clients
        self._places = PromptPlaces(transport.num_servers) if shards == "distinct" else None
        self.ask_alone(clients is not None)
        self._transport, self._first_server, self._rl_group = transport, first_server, rl_group
        self._counters = dict.fromkeys(COUNTERS, 0.0)
        self._lock = threading.Lock()

    @property
    def num_servers(self) -> int:
        """Number of LLM servers."""
        return self._transport.num_servers

    @property
    def remote(self) -> bool:
        """True where the servers are processes of their own."""
        return self._transport.remote

    @property
    def stats(self) -> dict[str, float]:
        """Counters since the start.

        ``llm_calls``, ``llm_prompts``, ``llm_tokens`` count what was scored or generated,
        ``update_calls`` the updates; ``server_seconds`` is the time that the slowest server of each
        call spent on it, ``transport_seconds`` all the rest between asking and having the answer,
        of which ``queue_seconds`` is the longest that a part of a call waited at its server;
        ``merged_calls`` had a part that was answered together with other clients' requests.
        """
        with self._lock:
            return dict(self._counters)

    # --- typed ------------------------------------------------------------------------------------

    def submit_score(self, request: ScoreRequest) -> Future[ScoreResult]:
        """Ask for scores and go on; the future raises what ``score_batch`` would. Its callbacks
        run where answers arrive: they may ask for more in this way, unless several clients ask
        servers that hold one model together, and wait for nothing.

        Raises:
            RequestError: The request can never be answered.
        """
        check_score(request)
        started = time.perf_counter()
        num_prompts = len(request.prompts)
        shards, whole = self._cut(request)

        def finish(answers: Sequence[Answer]) -> ScoreResult:
            result = whole(self._counted(ScoreResult, answers, started, num_prompts))
            if len(result.counts) != num_prompts or result.log_probs.shape != (sum(result.counts),):
                raise ProtocolError(
                    f"expected the scores of {num_prompts} prompts, got {len(result.counts)} with"
                    f" {len(result.log_probs)} numbers"
                )
            return result

        # Who cuts by prompt has chosen the server itself.
        send = self._send if self._places is None else self._transport.submit
        return gather([send(place, shard) for place, shard in shards.items()], finish)

    def submit_share(self, request: ScoreRequest, place: int, of: int) -> ScoreShare:
        """Ask for one client's part of a batch of which ``of`` clients ask a part each.

        The batch is cut as one client would cut it, and every server gets its whole shard from one
        client: it answers to the last bit what it would have answered to one client.

        Args:
            request: The whole batch.
            place: Which of the clients this is; it asks the servers ``place``, ``place + of`` and
                so on.
            of: How many clients there are.
        """
        check_score(request)
        started = time.perf_counter()
        all_shards, whole = self._cut(request)
        shards = {server: shard for server, shard in all_shards.items() if server % of == place}
        num_prompts = sum(len(shard.prompts) for shard in shards.values())

        def finish(answers: Sequence[Answer]) -> dict[int, ScoreResult]:
            results = self._counted(ScoreResult, answers, started, num_prompts)
            return dict(zip(shards, results, strict=True))

        if not shards:
            return ScoreShare(dict, whole)
        pending = gather(
            [self._transport.submit(server, shard) for server, shard in shards.items()], finish
        )
        return ScoreShare(pending.result, whole)

    def ask_alone(self, alone: bool) -> None:
        """Whether other clients ask requests of their own, as they do until a training run takes
        all of them for one: equal prompts then go to one server by their text alone.
        """
        if self._places is not None:
            self._places.by_text = alone

    def forget_places(self) -> None:
        """Another client has had the servers forget what they remember."""
        if self._places is not None:
            self._places.forget()

    def score_batch(self, request: ScoreRequest) -> ScoreResult:
        """Score candidates and evaluate module functions.

        Raises:
            RequestError: The request can never be answered.
            RpcError: No answer comes.
        """
        check_may_wait()
        return self.submit_score(request).result()

    def generate_batch(self, request: GenerateRequest) -> GenerateResult:
        """Continue prompts. Raises as ``score_batch``."""
        check_may_wait()
        check_generate(request)
        started = time.perf_counter()
        num_prompts = len(request.prompts)
        shards = [shard for shard in split_generate(request, self.num_servers) if shard.prompts]

        def finish(answers: Sequence[Answer]) -> GenerateResult:
            result = merge_generate(self._counted(GenerateResult, answers, started, num_prompts))
            if len(result.texts) != num_prompts or not len(result.tokens) == len(
                result.token_log_probs
            ) == sum(result.lengths):
                raise ProtocolError(
                    f"expected texts for {num_prompts} prompts, got {len(result.texts)} with"
                    f" {len(result.tokens)} tokens"
                )
            return result

        asked = [self._send(place, shard) for place, shard in enumerate(shards)]
        return gather(asked, finish).result()

    def update_batch(self, request: UpdateRequest) -> UpdateResult:
        """Apply an updater to a whole batch on all servers. Raises as ``score_batch``."""
        return merge_update(self._update(request))

    def reset(
        self, seed: int, weights: Weights = "pretrained", unused: tuple[str, ...] = ()
    ) -> None:
        """Bring back the weights of the start, or draw fresh ones; heads and optimisers start anew
        from ``seed``. See ``ResetRequest``.
        """
        self._everywhere(ResetRequest(seed, weights, unused))

    def save(self, folder: str) -> None:
        """Let the first server write weights, heads and optimiser states below ``folder``, a path
        on its machine.
        """
        self._everywhere(SaveRequest(str(folder)))

    def load(self, folder: str) -> None:
        """Let every server read what ``save`` wrote. The reference stays what the last ``reset``
        made it: after fresh weights, reset with the same seed and weights before, as runs do.
        """
        self._everywhere(LoadRequest(str(folder)))

    def forget(self, reference: bool = True) -> None:
        """Let every server drop the answers it remembers: costs and rounding then do not depend on
        what was asked before. See ``ForgetRequest``.
        """
        self._everywhere(ForgetRequest(reference))

    def info(self) -> Mapping[str, Scalar]:
        """What the first server hosts, ``num_servers``, and how much memory each server holds that
        is a process of its own (``memory_mib_server_N``).
        """
        check_may_wait()
        asked = [self._transport.submit(each, InfoRequest()) for each in range(self.num_servers)]
        answers = _wait(InfoResult, asked)
        memory = {
            f"{MEMORY_OF_SERVER}{server}": answer.info[MEMORY]
            for server, answer in enumerate(answers)
            if MEMORY in answer.info
        }
        own = {name: value for name, value in answers[0].info.items() if name != MEMORY}
        return {**own, "num_servers": self.num_servers, **memory}

    def call(
        self, requests: Mapping[int, CallRequest], together: bool = False
    ) -> list[dict[str, Any]]:
        """Call servers that host a model in Lamorel's way.

        Args:
            requests: By number of the server.
            together: True where these servers talk among themselves about it: then all of them get
                it, and other requests, in the same order. A server without a request sits by.

        Returns:
            The answers, in the order of ``requests``.
        """
        check_may_wait()
        if not together:
            asked = [self._transport.submit(server, each) for server, each in requests.items()]
            return [answer.values for answer in _wait(CallResult, asked)]
        everybody = [
            requests.get(server, CallRequest("sit_by")) for server in range(self.num_servers)
        ]
        answers = _wait(CallResult, self._transport.submit_together(everybody))
        return [answers[server].values for server in requests]

    # --- Lamorel's call shape ---------------------------------------------------------------------

    def score(
        self,
        contexts: Sequence[str],
        candidates: Sequence[Sequence[str]],
        additional_module_function_keys: Sequence[str] = (),
        **kwargs: Any,
    ) -> list[Tensor] | list[dict[str, Tensor]]:
        """Log-probability of each candidate after its context.

        Args:
            contexts: ``n`` prompts.
            candidates: ``n`` lists.
            additional_module_function_keys: Module functions to evaluate besides.
            **kwargs: Lamorel's ``require_grad=False`` and ``minibatch_size`` are accepted and
                change nothing.

        Returns:
            One tensor ``(num_candidates,)`` per context, in nats; with additional keys one
            dictionary per context, with the tensor as ``__score`` and a row ``(1, ...)`` of each
            module function.
        """
        more = lamorel_shape.texts_of(
            additional_module_function_keys, "additional_module_function_keys"
        )
        keys = (lamorel_shape.SCORE_KEY, *more)
        rows = self.custom_module_fns(keys, contexts, candidates, **kwargs)
        return rows if more else [row[lamorel_shape.SCORE_KEY] for row in rows]

    def custom_module_fns(
        self,
        module_function_keys: Sequence[str],
        contexts: Sequence[str],
        candidates: Sequence[Sequence[str]] | None = None,
        **kwargs: Any,
    ) -> list[dict[str, Tensor]]:
        """Evaluate module functions; one dictionary per context, with a row ``(1, ...)`` of each,
        and ``__score`` where the keys have it.
        """
        request = lamorel_shape.score_request(contexts, candidates, module_function_keys, kwargs)
        return lamorel_shape.rows_of_score(self.score_batch(request), request)

    def generate(
        self, contexts: Sequence[str], return_logprobs: bool = False, **kwargs: Any
    ) -> list[list[dict[str, Any]]]:
        """Continue each context.

        Args:
            contexts: ``n`` prompts.
            return_logprobs: Give ``text_logprob`` and ``tokens_logprob`` (nats) in place of
                ``text_probability`` and ``tokens_probability``.
            **kwargs: Arguments of transformers' ``generate``; ``seed`` fixes the sampling.

        Returns:
            For each context a list with one dictionary per sequence: ``text``, ``tokens`` and the
                two above.
        """
        return lamorel_shape.rows_of_generate(
            self.generate_batch(lamorel_shape.generate_request(contexts, kwargs)), return_logprobs
        )

    def update(
        self, contexts: Sequence[str], candidates: Sequence[Sequence[str]], **kwargs: Any
    ) -> list[dict[str, float]]:
        """Apply an updater to a batch; see ``lamorel_shape.update_request`` for the arguments.

        Returns:
            What the update did, one dictionary per server.
        """
        return [
            result.stats
            for result in self._update(lamorel_shape.update_request(contexts, candidates, kwargs))
        ]

    def get_rl_dist_group(self) -> Any:
        """The ``torch.distributed`` group of the RL clients among themselves.

        Raises:
            RpcError: This process was not launched as one of several ranks.
        """
        if self._rl_group is None:
            raise RpcError(
                "there is no group of RL processes: this caller was not made by connect()"
            )
        return self._rl_group

    # --- the end ----------------------------------------------------------------------------------

    def fail(self, error: BaseException) -> None:
        """Tell the servers that this process ends because of ``error``; they end too."""
        self._transport.fail(error)

    def close(self) -> None:
        """Take leave of the servers. May be called twice."""
        self._transport.close()

    def __enter__(self) -> Caller:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        well = isinstance(error, SystemExit) and not error.code
        if error is None or well or isinstance(error, Stopped):
            self.close()
        else:
            self.fail(error)

    # --- inside -----------------------------------------------------------------------------------

    def _send(self, place: int, shard: Request) -> Future[Answer]:
        return self._transport.submit((self._first_server + place) % self.num_servers, shard)

    def _cut(self, request: ScoreRequest) -> tuple[dict[int, ScoreRequest], _Whole]:
        """One shard per server that is asked, by its number, and how their answers become one."""
        if self.num_servers == 1:
            return {0: request}, merge_score
        if self._places is None:
            cut = enumerate(split_score(request, self.num_servers))
            return {place: shard for place, shard in cut if shard.prompts}, merge_score
        rows = {place: part for place, part in enumerate(self._places.cut(request)) if part}
        parts = list(rows.values())
        shards = {place: take_score(request, part) for place, part in rows.items()}
        return shards, lambda answers: put_back(answers, parts, request)

    def _everywhere(self, request: Request) -> None:
        check_may_wait()
        self.forget_places()
        _wait(Done, self._transport.submit_together([request] * self.num_servers))

    def _update(self, request: UpdateRequest) -> list[UpdateResult]:
        check_may_wait()
        check_update(request)
        self.forget_places()
        started = time.perf_counter()

        def finish(answers: Sequence[Answer]) -> list[UpdateResult]:
            results = _expect(UpdateResult, answers)
            self._count(started, results, update_calls=1)
            return results

        alone = self.num_servers == 1
        shards = [request] if alone else split_update(request, self.num_servers)
        return gather(self._transport.submit_together(shards), finish).result()

    def _counted(
        self, kind: type[R], answers: Sequence[Answer], started: float, num_prompts: int
    ) -> list[R]:
        """The answers to a call that scores or generates, once they are counted."""
        results = _expect(kind, answers)
        tokens = sum(result.stats.get("tokens", 0.0) for result in results)
        self._count(started, results, llm_calls=1, llm_prompts=num_prompts, llm_tokens=tokens)
        return results

    def _count(
        self,
        started: float,
        results: Sequence[ScoreResult | GenerateResult | UpdateResult],
        **counts: float,
    ) -> None:
        seconds = time.perf_counter() - started
        slowest, queued, merged = (
            max(result.stats.get(name, 0.0) for result in results)
            for name in ("seconds", "queue_seconds", "merged")
        )
        with self._lock:
            for name, count in {
                **counts,
                "server_seconds": slowest,
                "transport_seconds": max(0.0, seconds - slowest),
                "queue_seconds": queued,
                "merged_calls": float(merged > 0),
            }.items():
                self._counters[name] += count


def _wait(kind: type[A], asked: Sequence[Future[Answer]]) -> list[A]:
    """The answers of all servers that were asked, in this order."""
    return gather(asked, lambda answers: _expect(kind, answers)).result()


def _expect(kind: type[A], answers: Sequence[Answer]) -> list[A]:
    expected = [answer for answer in answers if isinstance(answer, kind)]
    if len(expected) < len(answers):
        raise ProtocolError(
            f"expected {kind.__name__} from every server, got"
            f" {[type(answer).__name__ for answer in answers]}"
        )
    return expected
