"""One training run on several RL clients: environments, LLM and recorder that are one client's to
whoever uses them.

Each copy of the environment belongs to one client, which alone steps it. What it shows goes to
every client, so that all of them take the same decisions from the same random streams, hold the
whole rollout and learn the same from it. So the curve is that of one client, to the last digit
where their processors round alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from lamorel_ext.config import Config
from lamorel_ext.envs.babyai.saved_states import cut_state, join_states
from lamorel_ext.errors import CheckpointError, LamorelExtError
from lamorel_ext.experience import join
from lamorel_ext.processes import stopping
from lamorel_ext.rpc.caller import Caller, ScoreShare
from lamorel_ext.rpc.clients import Clients
from lamorel_ext.rpc.requests import merge_score
from lamorel_ext.rpc.topology import split_evenly
from lamorel_ext.training.building import EnvFactory
from lamorel_ext.training.recorder import Checkpoint, Recorder, SaveLlm
from lamorel_ext.training.trace import Trace
from lamorel_ext.types import (
    BatchedEnv,
    GenerateRequest,
    GenerateResult,
    LlmClient,
    ObservationBatch,
    PendingScores,
    Scalar,
    ScoreRequest,
    ScoreResult,
    StepBatch,
    UpdateRequest,
    UpdateResult,
    Weights,
)

T = TypeVar("T")

ONE_CLIENT = Clients()


def own_copies(copies: range, clients: Clients) -> list[range]:
    """The copies of each client; the last have none where there are more clients than copies."""
    first = copies.start
    return [
        range(first + part.start, first + part.stop)
        for part in split_evenly(len(copies), clients.size)
    ]


def shared_factory(env_factory: EnvFactory, clients: Clients) -> EnvFactory:
    """The factory of a run's environments on each of its clients; with one client the factory
    itself.
    """
    if clients.size == 1:
        return env_factory

    def make(config: Config, held_out: bool, copies: range | None = None) -> BatchedEnv:
        if held_out:
            return env_factory(config, held_out, copies)
        wanted = range(config.env.num_envs) if copies is None else copies
        return SharedBatch(lambda own: env_factory(config, False, own), wanted, clients)

    return make


class SharedBatch:
    """A ``BatchedEnv`` whose copies are divided among the clients. Every client must do the same
    with it.

    Args:
        make: Makes the environments of consecutive copies.
        copies: Those of all clients together.
        clients: Of the run.
    """

    def __init__(
        self, make: Callable[[range], BatchedEnv], copies: range, clients: Clients
    ) -> None:
        self.num_envs = len(copies)
        self._clients = clients
        parts = own_copies(copies, clients)
        own = parts[clients.rank]
        self._sizes = [len(part) for part in parts]
        self._rows = slice(own.start - copies.start, own.stop - copies.start)
        self._env: BatchedEnv | None = None

        def build() -> None:
            self._env = make(own) if len(own) else None

        clients.share(build)

    def reset(self) -> ObservationBatch:
        """See ``BatchedEnv``."""
        return self._observed(lambda env: env.reset())

    def step(self, actions: np.ndarray) -> StepBatch:
        """See ``BatchedEnv``.

        Raises:
            LamorelExtError: The clients have not chosen the same actions.
        """
        own = np.asarray(actions)[self._rows]
        told = self._share(lambda env: _step_values(env.step(own), own))
        if not np.array_equal(np.concatenate([values["actions"] for values in told]), actions):
            raise LamorelExtError(
                "the rl clients do not choose the same actions: processors of different kinds round"
                " differently; run.portable=true makes them round alike"
            )
        return _step_of(told)

    def expert_actions(self) -> np.ndarray:
        """See ``BatchedEnv``."""
        return np.concatenate(self._share(lambda env: env.expert_actions()))

    def state(self) -> dict[str, list[int]]:
        """Of all copies, as a batch of one client has it; see ``BatchedEnv``.

        Raises:
            CheckpointError: The states of the clients cannot be joined.
        """
        states: list[dict[str, list[int]]] = self._share(lambda env: env.state())
        if len(states) == 1:
            return states[0]
        sizes = [size for size in self._sizes if size]
        joined: dict[str, list[int]] = _told_apart(lambda: join_states(states))
        if _told_apart(lambda: cut_state(joined, sizes)) != states:  # as a resume will do
            raise CheckpointError(
                "the environments' state would come back otherwise: several clients need lists of"
                " equally many numbers per copy"
            )
        return joined

    def restore(self, state: dict[str, list[int]]) -> ObservationBatch:
        """See ``BatchedEnv``.

        Raises:
            CheckpointError: The state cannot be divided among the clients.
        """
        sizes = [size for size in self._sizes if size]
        parts = [state] if len(sizes) == 1 else _told_apart(lambda: cut_state(state, sizes))
        own = self._clients.rank  # clients without copies are the last ones
        return self._observed(lambda env: env.restore(parts[own]))

    def close(self) -> None:
        """See ``BatchedEnv``."""
        if self._env is not None:
            self._env.close()

    def _observed(self, look: Callable[[BatchedEnv], ObservationBatch]) -> ObservationBatch:
        told = self._share(lambda env: vars(look(env)))
        return join([ObservationBatch(**values) for values in told])

    def _share(self, work: Callable[[BatchedEnv], Any]) -> list[Any]:
        """What came of it on every client that has copies."""
        env = self._env
        told = self._clients.share(lambda: None if env is None else work(env))
        return told[: sum(size > 0 for size in self._sizes)]


class SharedClient:
    """An ``LlmClient`` for the same requests from every client, each of which is made once.

    Scores are asked for together: a batch is cut into one shard per server as always, and the
    shards are asked for in turn by the clients. All else is asked for by the first client. Every
    client gets the whole answer, and counts it as one client would.

    Args:
        llm: This client's way to the servers.
        clients: Of the run.
    """

    def __init__(self, llm: LlmClient, clients: Clients) -> None:
        self._llm, self._clients = llm, clients
        if isinstance(llm, Caller):
            llm.ask_alone(False)

    @property
    def remote(self) -> bool:
        """See ``LlmClient``."""
        return self._llm.remote

    def submit_score(self, request: ScoreRequest) -> PendingScores:
        """See ``LlmClient``."""
        if self._clients.leading:
            return self._llm.submit_score(request)
        return _SharedScores(self._asked(request), self._clients)

    def score_batch(self, request: ScoreRequest) -> ScoreResult:
        """See ``LlmClient``."""
        if self._clients.leading:
            return self._llm.score_batch(request)
        return self.submit_score(request).result()

    def generate_batch(self, request: GenerateRequest) -> GenerateResult:
        """See ``LlmClient``."""
        values = self._clients.lead(lambda: vars(self._llm.generate_batch(request)))
        return GenerateResult(**{**values, "texts": tuple(map(tuple, values["texts"]))})

    def update_batch(self, request: UpdateRequest) -> UpdateResult:
        """See ``LlmClient``."""
        return UpdateResult(self._led(lambda: dict(self._llm.update_batch(request).stats)))

    def reset(
        self, seed: int, weights: Weights = "pretrained", unused: tuple[str, ...] = ()
    ) -> None:
        """See ``LlmClient``."""
        self._led(lambda: self._llm.reset(seed, weights, unused))

    def save(self, folder: str) -> None:
        """See ``LlmClient``."""
        self._clients.lead(lambda: self._llm.save(folder))

    def load(self, folder: str) -> None:
        """See ``LlmClient``."""
        self._led(lambda: self._llm.load(folder))

    def forget(self, reference: bool = True) -> None:
        """See ``LlmClient``."""
        self._led(lambda: self._llm.forget(reference))

    def info(self) -> Mapping[str, Scalar]:
        """See ``LlmClient``."""
        return self._clients.lead(lambda: dict(self._llm.info()))

    def _led(self, work: Callable[[], T]) -> T:
        """The first client has the servers do something, after which they remember nothing."""
        if isinstance(self._llm, Caller):
            self._llm.forget_places()
        return self._clients.lead(work)

    def _asked(self, request: ScoreRequest) -> ScoreShare:
        """Ask for this client's shards. What fails here is raised where the others hear of it."""
        clients, llm = self._clients, self._llm
        try:
            if isinstance(llm, Caller):
                return llm.submit_share(request, clients.rank, clients.size)
            if clients.rank:
                return ScoreShare(dict, merge_score)
            pending = llm.submit_score(request)
            return ScoreShare(lambda: {0: pending.result()}, merge_score)
        except Exception as error:
            failed = error

            def fail() -> dict[int, ScoreResult]:
                raise failed

            return ScoreShare(fail, merge_score)


class _SharedScores:
    """Scores under way. See ``PendingScores``."""

    def __init__(self, share: ScoreShare, clients: Clients) -> None:
        self._share, self._clients = share, clients

    def result(self) -> ScoreResult:
        """See ``PendingScores``."""
        told = self._clients.share(
            lambda: {server: vars(answer) for server, answer in self._share.own().items()}
        )
        answers = {server: values for part in told for server, values in part.items()}
        return self._share.whole([ScoreResult(**answers[server]) for server in sorted(answers)])


class LedRecorder:
    """The run's recorder on each client: the first one's writes, and all of them resume from what
    it reads.

    Args:
        recorder: Keeps rows and checkpoints on the first client; None on the others.
        clients: Of the run.
    """

    def __init__(self, recorder: Recorder | None, clients: Clients) -> None:
        self._recorder, self._clients = recorder, clients

    def write(self, row: Mapping[str, float]) -> None:
        """See ``Recorder``."""
        self._clients.lead(lambda: self._first.write(row))

    def trace(self, trace: Trace) -> None:
        """See ``Recorder``."""
        self._clients.lead(lambda: self._first.trace(trace))

    def checkpoint(self, checkpoint: Checkpoint, save_llm: SaveLlm | None) -> None:
        """See ``Recorder``."""
        self._clients.lead(lambda: self._first.checkpoint(checkpoint, save_llm))

    def resume(self) -> Checkpoint | None:
        """See ``Recorder``."""

        def read() -> dict[str, Any] | None:
            found = self._first.resume()
            return None if found is None else vars(found)

        values = self._clients.lead(read)
        return None if values is None else Checkpoint(**values)

    def progress(self, env_steps: int, total_steps: int, info: Mapping[str, float]) -> None:
        """See ``Recorder``."""
        if self._recorder is not None:
            self._recorder.progress(env_steps, total_steps, info)

    def system(self, sample: Mapping[str, float]) -> None:
        """See ``Recorder``."""
        self._clients.lead(lambda: self._first.system(sample))

    @property
    def _first(self) -> Recorder:
        if self._recorder is None:
            raise ValueError("the first client needs a recorder")
        return self._recorder


def agreed_stop(clients: Clients) -> stopping.Stop | None:
    """The first client's request to end that there is: all of them end after the same rollout."""

    def asked() -> dict[str, Any] | None:
        stop = stopping.asked()
        return None if stop is None else dataclasses.asdict(stop)

    found = [values for values in clients.share(asked) if values is not None]
    return stopping.Stop(**found[0]) if found else None


def _step_values(step: StepBatch, actions: np.ndarray) -> dict[str, Any]:
    """``reached`` only where an episode ended: elsewhere it is what ``current`` is."""
    return {
        "actions": actions,
        "current": vars(step.current),
        "ended": vars(step.reached.take(np.flatnonzero(step.done))),
        "rewards": step.rewards,
        "terminated": step.terminated,
        "truncated": step.truncated,
        "succeeded": step.succeeded,
    }


def _step_of(told: list[dict[str, Any]]) -> StepBatch:
    current, ended = (
        join([ObservationBatch(**values[name]) for values in told]) for name in ("current", "ended")
    )
    rewards, terminated, truncated = (
        np.concatenate([values[name] for values in told])
        for name in ("rewards", "terminated", "truncated")
    )
    succeeded = join([values["succeeded"] for values in told])
    step = StepBatch(current, current, rewards, terminated, truncated, succeeded)
    if not step.done.any():
        return step
    rows = np.arange(len(step.done))
    rows[step.done] = len(rows) + np.arange(step.done.sum())  # those of ``ended``, in their order
    return dataclasses.replace(step, reached=join([current, ended]).take(rows))


def _told_apart(work: Callable[[], Any]) -> Any:
    """States of environments that know no copies cannot be joined or cut."""
    try:
        return work()
    except (TypeError, AttributeError, KeyError, IndexError) as error:
        raise CheckpointError(
            "the environments' state is no list of numbers per copy, as several clients need it:"
            f" {error!r}"
        ) from error
