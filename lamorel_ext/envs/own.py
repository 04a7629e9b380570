"""Environments of the user's own, which ``env._target_`` names: any Gymnasium environment that
shows a text becomes a ``BatchedEnv``, in this process, one copy after the other, or with
``env.num_workers`` in the processes of Gymnasium's asynchronous vector environment.

What the environment has to offer (docs/own/environment/README.md has examples):

* **Observations**: a text, or a dictionary with ``text`` and optionally ``mission`` (a text; an
  observation without it keeps the one before) and ``features`` (numbers of any shape, always the
  same). Lines of the text become sentences.
* **Actions**: fixed ones, whose texts are ``env.action_texts`` or an attribute ``action_texts``; or
  each state's own, as a list of texts ``admissible`` (or ``admissible_commands``) in ``info``; not
  both. A list or tuple without repeats: its order numbers the actions. ``step`` gets the text's
  number where the action space is ``Discrete`` (from its ``start`` on), else the text itself.
* **Success**: ``success`` (or ``won``) in ``info`` where an episode ends, else whether its return
  is above ``env.success_above``.
* Optional methods: ``expert_action()``, the text of an action or its number, as ``step`` gets it;
  ``get_state()`` and ``set_state(state)``, which gives what ``reset`` gives, with a state that JSON
  gives back as it was. Without these two a saved episode comes back by its seed and its actions, so
  it has to be deterministic.
* **Wrappers**: the outermost that has a name decides. A state is only saved where the outermost of
  all has ``get_state`` and ``set_state``: those of what it wraps know nothing of the wrapper.
* In place of all that, an object with ``make_batch(num_envs, episode_seed)`` gives a ``BatchedEnv``
  of its own making; ``episode_seed(copy, episode)`` is the seed of an episode.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lamorel_ext.config import EnvArgs
from lamorel_ext.envs.own_copies import REST, CopiesHere, Shown, close_quietly
from lamorel_ext.envs.own_keys import made, offers
from lamorel_ext.envs.own_offers import (
    UNICODE,
    as_saved,
    fault_of_texts,
    finite_numbers,
    is_fraction,
    is_unicode,
)
from lamorel_ext.envs.own_workers import CopiesInWorkers
from lamorel_ext.errors import CheckpointError, EnvError
from lamorel_ext.types import BatchedEnv, ObservationBatch, StepBatch, TaskSpec

EpisodeSeed = Callable[[int, int], int]


class OwnBatch:
    """``BatchedEnv`` over copies of the user's environment.

    Args:
        args: The ``env`` group.
        num_envs: Copies.
        episode_seed: Seed of an episode, from copy and episode.
        first_copy: Number of the first one, for messages.

    Attributes:
        rest_action: The action that leaves a copy as it is, as an evaluation does with those whose
            episode has ended.
    """

    rest_action = REST

    def __init__(
        self, args: EnvArgs, num_envs: int, episode_seed: EpisodeSeed, first_copy: int = 0
    ) -> None:
        self.num_envs = num_envs
        self._args, self._seed = args, episode_seed
        self._first_copy = first_copy
        self._first: Shown | None = None
        self._episodes = [0] * num_envs
        self._copies: CopiesHere | CopiesInWorkers
        if args.num_workers:
            self._copies = CopiesInWorkers(args, num_envs, first_copy)
        else:
            self._copies = CopiesHere(args, num_envs, first_copy)

    @property
    def has_expert(self) -> bool:
        """True where the environment offers ``expert_action``."""
        return self._copies.has_expert

    @property
    def action_texts(self) -> tuple[str, ...]:
        """Those of every state; empty where each lists its own."""
        return self._copies.action_texts

    def reset(self) -> ObservationBatch:
        """See ``BatchedEnv``."""
        self._episodes = [0] * self.num_envs
        self._start(range(self.num_envs))
        return self._observe()

    def step(self, actions: np.ndarray) -> StepBatch:
        """See ``BatchedEnv``."""
        if len(actions) != self.num_envs:
            raise EnvError(f"env: expected {self.num_envs} actions, got {len(actions)}")
        steps = self._copies.step([int(action) for action in actions])
        reached = current = self._observe()
        terminated = np.array([step.terminated for step in steps])
        truncated = np.array([step.truncated for step in steps])
        ended: list[int] = np.flatnonzero(terminated | truncated).tolist()
        if ended:
            for index in ended:
                self._episodes[index] += 1
            self._start(ended)
            current = self._observe()
        rewards = np.array([step.reward for step in steps], dtype=np.float64)
        succeeded = np.array([step.succeeded for step in steps])
        return StepBatch(reached, current, rewards, terminated, truncated, succeeded)

    def expert_actions(self) -> np.ndarray:
        """See ``BatchedEnv``."""
        return np.array(self._copies.expert_actions(), dtype=np.int64)

    def state(self) -> dict[str, list[Any]]:
        """One entry per copy: episode, return so far, checksums of the text and of the rest that it
        shows, its mission, what the expert said of it where one is asked, and the environment's own
        state where it offers one; and the actions of the running episodes.
        """
        saved = self._copies.states()
        columns = {name: [own[name] for own in saved] for name in saved[0] if name != "actions"}
        lengths = [len(own["actions"]) for own in saved]
        actions = [action for own in saved for action in own["actions"]]
        return columns | {"lengths": lengths, "actions": actions}

    def restore(self, state: dict[str, list[Any]]) -> ObservationBatch:
        """See ``BatchedEnv``.

        Raises:
            CheckpointError: The state is of another batch, or the environment is not deterministic.
        """
        none = [None] * self.num_envs
        # what older ones have not
        state = {"shown": [{} for _ in none], "experts": none, "missions": none, **state}
        names = ("episodes", "totals", "texts", "shown", "missions", "experts", "own", "lengths")
        lists = [state.get(name) for name in (*names, "actions")]
        if any(not isinstance(values, list) for values in lists) or any(
            len(state[name]) != self.num_envs for name in names
        ):
            raise CheckpointError(
                f"not the saved state of {self.num_envs} copies of {self._args.own.target}"
            )
        taken = iter(state["actions"])
        saved: list[dict[str, Any]] = []
        for index in range(self.num_envs):
            own = {name: state[name][index] for name in names}
            saved.append(own | {"actions": [next(taken) for _ in range(own["lengths"])]})
        self._episodes = [int(own["episodes"]) for own in saved]
        self._copies.restore(saved, self._seeds(range(self.num_envs)))
        return self._observe()

    def close(self) -> None:
        """Free what is held. May be called twice."""
        self._copies.close()

    def _start(self, copies: Sequence[int]) -> None:
        episodes = [self._episodes[copy] for copy in copies]
        self._copies.start(copies, episodes, self._seeds(copies))

    def _seeds(self, copies: Sequence[int]) -> list[int]:
        return [int(self._seed(copy, self._episodes[copy])) for copy in copies]

    def _observe(self) -> ObservationBatch:
        shown = self._copies.shown
        self._first = self._first or shown[0]
        sizes = [len(one.features) for one in shown]
        for place, size in enumerate(sizes):
            if size != len(self._first.features):
                raise EnvError(
                    f"env: copy {self._first_copy + place}: features: expected"
                    f" {len(self._first.features)} numbers, as of the first copy, got {size}"
                )
        features = np.stack([one.features for one in shown])
        return ObservationBatch(
            missions=tuple(one.mission for one in shown),
            descriptions=tuple(sentences(one.text) for one in shown),
            features=features if features.size else np.zeros((0, 0), dtype=np.float32),
            actions=tuple(one.actions for one in shown),
        )


class BroughtBatch:
    """A ``BatchedEnv`` of the user's own making, held to what one has to give.

    Args:
        env: Theirs.
        args: The ``env`` group.
        num_envs: Copies asked for.
    """

    def __init__(self, env: BatchedEnv, args: EnvArgs, num_envs: int) -> None:
        self._env, self._target = env, args.own.target
        self._need("reset", "step")
        found = args.action_texts or getattr(env, "action_texts", ())
        if fault := fault_of_texts(found):
            raise self._error("action_texts", fault, found)
        self.action_texts = tuple(found)
        self.has_expert = hasattr(env, "expert_actions")
        self.num_envs = num_envs
        self._size: int | None = None
        if (own := getattr(env, "num_envs", None)) != num_envs:
            raise self._error("num_envs", num_envs, own)

    def reset(self) -> ObservationBatch:
        """See ``BatchedEnv``."""
        return self._checked(self._env.reset())

    def step(self, actions: np.ndarray) -> StepBatch:
        """See ``BatchedEnv``."""
        step = self._env.step(actions)
        terminated, truncated = (
            self._copied(name, getattr(step, name), np.bool_)
            for name in ("terminated", "truncated")
        )
        reached = self._checked(step.reached, terminated | truncated)
        same = step.current is step.reached and not (terminated | truncated).any()
        return StepBatch(
            reached,
            reached if same else self._checked(step.current),
            self._copied("rewards", step.rewards, np.float64),
            terminated,
            truncated,
            None if step.succeeded is None else self._copied("succeeded", step.succeeded, np.bool_),
        )

    def expert_actions(self) -> np.ndarray:
        """See ``BatchedEnv``."""
        return self._copied("expert_actions", self._env.expert_actions(), np.int64)

    def state(self) -> dict[str, list[int]]:
        """See ``BatchedEnv``."""
        self._need("state", "restore")
        saved: dict[str, list[int]] = as_saved(f"env: {self._target}: state", self._env.state())
        return saved

    def restore(self, state: dict[str, list[int]]) -> ObservationBatch:
        """See ``BatchedEnv``."""
        return self._checked(self._env.restore(state))

    def close(self) -> None:
        """See ``BatchedEnv``."""
        close_quietly(self._env, f"env: {self._target}")

    def _need(self, *names: str) -> None:
        if missing := [name for name in names if not callable(getattr(self._env, name, None))]:
            raise self._error("make_batch", f"a batch with {' and '.join(missing)}", self._env)

    def _copied(self, name: str, values: Any, kind: type[np.generic]) -> np.ndarray:
        """A number for each copy, in an array of our own: a batch may fill its own anew."""
        try:
            read = np.asarray(values, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            read = np.zeros(0)
        if read.shape != (self.num_envs,) or not np.isfinite(read).all():
            raise self._error(name, f"{self.num_envs} finite numbers", values)
        if kind is not np.float64 and is_fraction(read):
            raise self._error(name, f"{self.num_envs} whole numbers or truth values", values)
        return np.array(values, dtype=kind)

    def _checked(self, seen: ObservationBatch, ended: np.ndarray | None = None) -> ObservationBatch:
        """What is shown, where an action is still to be taken but for the copies that ``ended``."""
        num_envs = self.num_envs
        for name in ("missions", "descriptions"):
            if len(getattr(seen, name)) != num_envs:
                raise self._error(name, f"{num_envs} of them", getattr(seen, name))
        for texts in seen.actions:
            if fault := fault_of_texts(texts):
                raise self._error("actions", fault, texts)
            if texts and self.action_texts and tuple(texts) != self.action_texts:
                raise self._error("actions", f"its action_texts {self.action_texts}", texts)
        actions = seen.actions or (self.action_texts,) * num_envs
        over = np.zeros(len(actions), dtype=bool) if ended is None else ended
        if len(actions) != num_envs or not all(map(len, itertools.compress(actions, ~over))):
            raise self._error("actions", "action_texts, or a list of texts per copy", seen.actions)
        if (features := finite_numbers(seen.features)) is None or not features.ndim:
            raise self._error("features", "rows of finite numbers", seen.features)
        features = features.reshape(len(features), int(np.prod(features.shape[1:])))
        self._size = features.shape[1] if self._size is None else self._size
        if len(features) not in (0, num_envs) or features.shape[1] != self._size:
            raise self._error("features", f"shape ({num_envs}, {self._size})", features.shape)
        missions, said = tuple(seen.missions), tuple(tuple(one) for one in seen.descriptions)
        if not all(isinstance(mission, str) for mission in missions):
            raise self._error("missions", "texts", missions)
        if any(isinstance(one, str) for one in seen.descriptions) or not all(
            isinstance(sentence, str) for sentence in itertools.chain(*said)
        ):
            raise self._error("descriptions", "a tuple of sentences per copy", seen.descriptions)
        for name, shown in (("missions", missions), ("descriptions", itertools.chain(*said))):
            if broken := [text for text in shown if not is_unicode(text)]:
                raise self._error(name, UNICODE, broken[0])
        return ObservationBatch(
            missions, said, features=features, actions=tuple(map(tuple, actions))
        )

    def _error(self, what: str, expected: object, got: object) -> EnvError:
        return EnvError(f"env: {self._target}: {what}: expected {expected}, got {got!r:.200}")


def own_batch(
    args: EnvArgs, num_envs: int, episode_seed: EpisodeSeed, first_copy: int = 0
) -> OwnBatch | BroughtBatch:
    """Copies of the environment that ``env._target_`` names, still to be reset.

    Raises:
        ConfigError: It cannot be had.
        EnvError: It is no environment.
    """
    if offers(args, "make_batch"):
        brought = made(args).make_batch(num_envs, episode_seed)
        return BroughtBatch(brought, args, num_envs)
    return OwnBatch(args, num_envs, episode_seed, first_copy)


def look_at(args: EnvArgs, seed: int) -> TaskSpec:
    """What the environment asks of an agent: from the first observation of one copy.

    Raises:
        ConfigError: It cannot be had.
        EnvError: It is no environment.
    """
    env = own_batch(dataclasses.replace(args, num_workers=0), 1, lambda copy, episode: seed)
    try:
        seen = env.reset()
        size = seen.features.shape[1] if len(seen.features) else 0
        return TaskSpec(
            args.name or args.own.target, env.action_texts, size, has_expert=env.has_expert
        )
    finally:
        env.close()


def sentences(text: str) -> tuple[str, ...]:
    """The lines of a text that are not empty."""
    lines: Sequence[str] = [line.strip() for line in text.splitlines()]
    return tuple(line for line in lines if line) or ("",)
