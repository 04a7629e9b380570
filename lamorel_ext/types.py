"""The frozen dataclasses that cross a boundary: environment to prompts, client to server, server to
updater.

Nothing here has behaviour beyond small views of its own fields, and nothing here imports the rest
of the project.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

Scalar = bool | int | float | str
"""What an option of a request may be."""

Weights = Literal["pretrained", "embeddings", "fresh"]
"""What an LLM starts from, see ``ResetRequest``."""


# --- environments ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class ObservationBatch:
    """What ``num_envs`` environments show at one time.

    What an environment does not have has no rows.

    Attributes:
        missions: Mission in each state, empty where there is none.
        descriptions: Sentences of each state, in the order of BabyAI-Text.
        images: ``(num_envs, 7, 7, 3)`` uint8, the egocentric symbolic view; index ``[x, y,
            channel]``.
        directions: ``(num_envs,)`` int64, 0 right, 1 down, 2 left, 3 up.
        features: ``(num_envs, size)`` float32, what an environment of the user's own shows beside
            its text.
        actions: Texts of the actions that each state offers, of any number; the index is the
            action's id. BabyAI-Text, whose six are always the same, does not repeat them.
    """

    missions: tuple[str, ...]
    descriptions: tuple[tuple[str, ...], ...]
    images: np.ndarray = field(default_factory=lambda: np.zeros((0, 7, 7, 3), dtype=np.uint8))
    directions: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    features: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), dtype=np.float32))
    actions: tuple[tuple[str, ...], ...] = ()

    def take(self, indices: np.ndarray) -> ObservationBatch:
        """What some of the environments show."""
        rows = indices.tolist()
        return ObservationBatch(
            missions=tuple(self.missions[i] for i in rows),
            descriptions=tuple(self.descriptions[i] for i in rows),
            images=self.images[indices] if len(self.images) else self.images,
            directions=self.directions[indices] if len(self.directions) else self.directions,
            features=self.features[indices] if len(self.features) else self.features,
            actions=tuple(self.actions[i] for i in rows) if self.actions else (),
        )

    def replaced(self, rows: Sequence[int], new: ObservationBatch) -> ObservationBatch:
        """The same, but for some rows. Of BabyAI's levels alone: these have neither features nor
        actions of their own.
        """
        missions, descriptions = list(self.missions), list(self.descriptions)
        images, directions = self.images.copy(), self.directions.copy()
        images[rows], directions[rows] = new.images, new.directions
        for row, mission, sentences in zip(rows, new.missions, new.descriptions, strict=True):
            missions[row], descriptions[row] = mission, sentences
        return ObservationBatch(tuple(missions), tuple(descriptions), images, directions)


@dataclass(frozen=True)
class StepBatch:
    """What one step of ``num_envs`` environments gives.

    ``reached`` is the state that the action led to, before any reset: bootstrap from it.
    ``current`` is where the next action is taken: the same as ``reached`` except where an episode
    ended, there it is the first state of the next episode. No step is ever spent on a reset.

    Attributes:
        reached: States reached, before any reset.
        current: States in which the next actions are taken.
        rewards: ``(num_envs,)`` float64, unscaled.
        terminated: ``(num_envs,)`` bool, True where the task itself ended the episode.
        truncated: ``(num_envs,)`` bool, True where the step limit ended it.
        succeeded: ``(num_envs,)`` bool, True where an episode ended in success; None where that is
            a return above 0.
    """

    reached: ObservationBatch
    current: ObservationBatch
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    succeeded: np.ndarray | None = None

    @property
    def done(self) -> np.ndarray:
        """``(num_envs,)`` bool, True where the episode ended for either reason."""
        done: np.ndarray = np.logical_or(self.terminated, self.truncated)
        return done


@dataclass(frozen=True)
class TaskSpec:
    """What an environment asks of an agent.

    Attributes:
        name: Of the environment, in reports.
        action_texts: Texts of the actions, the same in every state; empty where each state lists
            its own in ``ObservationBatch.actions``.
        feature_size: Of ``ObservationBatch.features``; 0 where there is only text.
        symbolic: True where there are BabyAI's views and directions.
        has_expert: True where ``BatchedEnv.expert_actions`` can be asked.
    """

    name: str
    action_texts: tuple[str, ...]
    feature_size: int = 0
    symbolic: bool = False
    has_expert: bool = False

    @property
    def by_state(self) -> bool:
        """True where each state lists its own actions."""
        return not self.action_texts


class BatchedEnv(Protocol):
    """Several copies of one environment stepped together; each resets itself at the end of an
    episode.

    Episode ``k`` of environment ``i`` depends on the seed, ``i`` and ``k`` alone, not on the
    actions of earlier episodes, so that every arm of a comparison sees the same episodes.
    """

    num_envs: int

    def reset(self) -> ObservationBatch:
        """Start episode 0 everywhere."""

    def step(self, actions: np.ndarray) -> StepBatch:
        """Take ``actions`` ``(num_envs,)`` int64: places in the task's ``action_texts``, or in the
        texts that each state lists.
        """

    def expert_actions(self) -> np.ndarray:
        """``(num_envs,)`` int64: what an expert (shortest path, or the BabyAI bot) would do in the
        current states. A batch of the user's own need not have it.
        """

    def state(self) -> dict[str, list[int]]:
        """What is needed to come back here: plain lists that JSON can hold."""

    def restore(self, state: dict[str, list[int]]) -> ObservationBatch:
        """Come back to a saved state; gives the observations there."""

    def close(self) -> None:
        """Free what is held. May be called twice."""


# --- client to server -----------------------------------------------------------------------------


@dataclass(frozen=True)
class ScoreRequest:
    """Score candidate continuations, and evaluate module functions (heads), for each prompt.

    Attributes:
        prompts: ``n`` prompts.
        candidates: ``n`` tuples of at least one candidate; they may differ in length. With
            ``score=False`` it may be ``()``.
        modules: Names of module functions to evaluate besides, such as ``("value",)``.
        score: False to evaluate the module functions only.
        known: Places of prompts whose scores the client has already. They are counted in ``tokens``
            as if they were asked for, and get none. Not with ``modules``.
    """

    prompts: tuple[str, ...]
    candidates: tuple[tuple[str, ...], ...]
    modules: tuple[str, ...] = ()
    score: bool = True
    known: tuple[int, ...] = ()


@dataclass(frozen=True)
class ScoreResult:
    """Answer to a ``ScoreRequest``, in its order.

    Attributes:
        log_probs: ``(sum(counts),)`` summed token log-probability of each candidate in nats, prompt
            after prompt; float32, or float64 from a float64 model.
        counts: Number of candidates of each prompt.
        modules: What each module function gave: ``(n, ...)``, one row per prompt, where it needs
            states; ``(sum(counts), ...)``, one row per candidate, where it needs whole passes.
        stats: Additive counters and seconds: ``prompts``, ``distinct_prompts``, ``cached_prompts``,
            ``tokens``, ``seconds``. From servers in processes of their own also ``queue_seconds``
            (the wait before it was answered) and ``merged`` (other clients' requests in the same
            forward pass). Over several servers counters are summed, of seconds the largest is
            taken.
    """

    log_probs: Tensor
    counts: tuple[int, ...]
    modules: dict[str, Tensor] = field(default_factory=dict)
    stats: dict[str, float] = field(default_factory=dict)

    def split(self) -> list[Tensor]:
        """One tensor ``(counts[i],)`` per prompt."""
        return list(torch.split(self.log_probs, list(self.counts)))

    def padded(self) -> Tensor:
        """``(n, max(counts))``, minus infinity where a prompt has fewer candidates."""
        width = max(self.counts, default=0)
        if all(count == width for count in self.counts):
            return self.log_probs.reshape(len(self.counts), width)
        return torch.nn.utils.rnn.pad_sequence(
            self.split(), batch_first=True, padding_value=float("-inf")
        )


@dataclass(frozen=True)
class GenerateRequest:
    """Continue each prompt.

    Attributes:
        prompts: ``n`` prompts.
        options: Arguments of transformers' ``generate``: scalars only. ``seed`` fixes the sampling.
    """

    prompts: tuple[str, ...]
    options: dict[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True)
class GenerateResult:
    """Answer to a ``GenerateRequest``.

    Attributes:
        texts: ``n`` tuples of generated texts, one per returned sequence.
        tokens: ``(total,)`` int64, the generated tokens of all sequences, one after the other,
            without padding.
        token_log_probs: ``(total,)`` log-probability of each of them under the model in nats.
        lengths: Number of tokens of each sequence, prompt after prompt.
        stats: As in ``ScoreResult``.
    """

    texts: tuple[tuple[str, ...], ...]
    tokens: Tensor
    token_log_probs: Tensor
    lengths: tuple[int, ...]
    stats: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class UpdateRequest:
    """Apply an updater to a batch. A client sends the whole batch, ``indices`` ``0`` to ``n - 1``
    and ``total`` ``n``; a server receives its own shard of it.

    Attributes:
        updater: Name under which the updater is registered on the server.
        prompts: ``n`` prompts of this shard.
        candidates: ``n`` tuples of at least one candidate.
        indices: ``(n,)`` int64, place of each sample in the whole batch.
        total: Size of the whole batch, over all shards.
        data: Per-sample tensors, each ``(n, ...)``.
        options: Hyper-parameters, the same for all samples.
    """

    updater: str
    prompts: tuple[str, ...]
    candidates: tuple[tuple[str, ...], ...]
    indices: Tensor
    total: int
    data: dict[str, Tensor] = field(default_factory=dict)
    options: dict[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True)
class UpdateResult:
    """What an update did: means over the whole batch, the same on every server. Of an updater that
    gives others on each server the client gets the first server's.
    """

    stats: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ResetRequest:
    """Start anew: the LLM's weights go back to where a run begins, heads and optimisers start from
    ``seed``.

    Attributes:
        seed: Of everything that is drawn.
        weights: ``pretrained`` the weights that were loaded, ``fresh`` weights of the same shape
            drawn from ``seed``, ``embeddings`` those with the loaded token embeddings.
        unused: Names of module functions that take no part until the next reset: neither trained
            nor saved. Unknown names do no harm.
    """

    seed: int
    weights: str = "pretrained"
    unused: tuple[str, ...] = ()


@dataclass(frozen=True)
class SaveRequest:
    """Write weights, heads and optimiser states below ``folder`` (safetensors); only the first
    server writes.
    """

    folder: str


@dataclass(frozen=True)
class LoadRequest:
    """Read what a ``SaveRequest`` wrote, on every server."""

    folder: str


@dataclass(frozen=True)
class ForgetRequest:
    """Drop the answers remembered since the last change of the weights: what follows costs and
    rounds as on a server that just started.

    Attributes:
        reference: Whether those under the initial weights go too, which stay when weights change.
    """

    reference: bool = True


@dataclass(frozen=True)
class InfoRequest:
    """Ask what a server hosts."""


@dataclass(frozen=True)
class InfoResult:
    """What a server hosts: name, number of parameters, dtype, device, versions, counters."""

    info: dict[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True)
class CallRequest:
    """A call in Lamorel's own shape, for servers that host a model the way Lamorel does.

    Attributes:
        method: What is wanted, such as ``forward``.
        values: Its arguments: nested lists, tuples and dictionaries of plain values, tensors,
            arrays.
    """

    method: str
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CallResult:
    """Answer to a ``CallRequest``; values nested in the same way."""

    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CloseRequest:
    """The client is done; the server's ``serve`` returns once every client has said so."""


@dataclass(frozen=True)
class Done:
    """The answer that carries nothing."""


@dataclass(frozen=True)
class Failure:
    """The answer of a server (or the last word of a client) that raised."""

    rank: int
    role: str
    type_name: str
    message: str
    remote_traceback: str


Request = (
    ScoreRequest
    | GenerateRequest
    | UpdateRequest
    | ResetRequest
    | SaveRequest
    | LoadRequest
    | ForgetRequest
    | InfoRequest
    | CloseRequest
    | CallRequest
)
Answer = ScoreResult | GenerateResult | UpdateResult | InfoResult | CallResult | Done | Failure


# --- protocols at plug points ---------------------------------------------------------------------


class ServerGroup(Protocol):
    """The LLM servers among themselves: just what data-parallel updates need."""

    rank: int
    size: int

    def all_reduce_sum(self, *tensors: Tensor) -> None:
        """Replace each of ``tensors`` by its sum over all servers, in place.

        Every server must call it, in the same order.
        """

    def barrier(self) -> None:
        """Wait until every server is here."""


class PendingScores(Protocol):
    """Scores that a server may still be working on."""

    def result(self) -> ScoreResult:
        """Wait for them; raises what ``LlmClient.score_batch`` would. To be called once."""


class LlmClient(Protocol):
    """What agents and methods ask of the servers: the typed half of ``Caller``.

    A request that can never be answered raises ``RequestError`` before it is sent, an exception on
    a server ``RemoteError``, a server that died ``PeerDiedError``, one that is silent for too long
    ``RequestTimeout`` (``lamorel_ext.errors``).
    """

    @property
    def remote(self) -> bool:
        """True where the servers are processes of their own, which work while this one does
        something else.
        """

    def submit_score(self, request: ScoreRequest) -> PendingScores:
        """Send the request and return at once."""

    def score_batch(self, request: ScoreRequest) -> ScoreResult:
        """Score candidates and evaluate heads for the whole batch."""

    def generate_batch(self, request: GenerateRequest) -> GenerateResult:
        """Continue the prompts."""

    def update_batch(self, request: UpdateRequest) -> UpdateResult:
        """Have all servers update together from the whole batch."""

    def reset(
        self, seed: int, weights: Weights = "pretrained", unused: tuple[str, ...] = ()
    ) -> None:
        """See ``ResetRequest``; a run calls it at its start."""

    def save(self, folder: str) -> None:
        """See ``SaveRequest``; ``folder`` is a path on the first server's machine."""

    def load(self, folder: str) -> None:
        """See ``LoadRequest``."""

    def forget(self, reference: bool = True) -> None:
        """See ``ForgetRequest``."""

    def info(self) -> Mapping[str, Scalar]:
        """What the first server hosts, see ``InfoResult``, and ``num_servers``."""
