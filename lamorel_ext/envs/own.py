"""Environments of the user's own, which ``env._target_`` names: any Gymnasium environment that
shows a text becomes a ``BatchedEnv``, in this process, one copy after the other.

What the environment has to offer (docs/own/environment/README.md has examples):

* **Observations**: a text, or a dictionary with ``text`` and optionally ``mission`` (a text) and
  ``features`` (numbers of any shape, always the same). Lines of the text become sentences.
* **Actions**: fixed ones, whose texts are ``env.action_texts`` or an attribute ``action_texts``; or
  each state's own, as a list of texts ``admissible`` (or ``admissible_commands``) in ``info``.
  ``step`` gets the text's number where the action space is ``Discrete``, else the text itself.
* **Success**: ``success`` (or ``won``) in ``info`` where an episode ends, else whether its return
  is above ``env.success_above``.
* Optional methods: ``expert_action()``, a number or text of an action; ``get_state()`` and
  ``set_state(state)``, which gives what ``reset`` gives, with a state that JSON can hold. Without
  these two a saved episode comes back by its seed and its actions, so it has to be deterministic.
* In place of all that, an object with ``make_batch(num_envs, episode_seed)`` gives a ``BatchedEnv``
  of its own making; ``episode_seed(copy, episode)`` is the seed of an episode.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np

from lamorel_ext.config import EnvArgs
from lamorel_ext.config.plugs import why
from lamorel_ext.errors import CheckpointError, EnvError, LamorelExtError
from lamorel_ext.types import BatchedEnv, ObservationBatch, StepBatch, TaskSpec

EpisodeSeed = Callable[[int, int], int]
ADMISSIBLE = ("admissible", "admissible_commands")
"""Names, in ``info``, of the texts of a state's actions."""
SUCCESS = ("success", "won")
"""Names, in ``info``, of whether an episode has succeeded."""
LONGEST = 10_000
"""Steps of an episode where ``env.max_steps`` does not say."""


@dataclass(frozen=True)
class Shown:
    """What one copy shows."""

    text: str
    mission: str = ""
    features: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    actions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stepped:
    """What one step of one copy gave."""

    shown: Shown
    reward: float
    terminated: bool
    truncated: bool
    succeeded: bool


class OwnCopy:
    """One copy of the user's environment, with its episode.

    Args:
        env: The environment.
        args: Its ``env`` group.
        place: Of the copy, for messages.
        first: What the first copy showed first; every observation is to be of its form.
    """

    def __init__(self, env: Any, args: EnvArgs, place: str, first: Shown | None = None) -> None:
        self._env, self._args, self._place, self._first = env, args, place, first
        self._bare = getattr(env, "unwrapped", env)
        self.action_texts = tuple(args.action_texts) or self._own_texts()
        self.episode = 0
        self.actions: list[int] = []
        self._total = 0.0
        self._shown = Shown("")

    @property
    def shown(self) -> Shown:
        """What it shows now."""
        return self._shown

    @property
    def has_expert(self) -> bool:
        """True where it offers ``expert_action``."""
        return hasattr(self._bare, "expert_action")

    def start(self, episode: int, seed: int) -> Shown:
        """Begin an episode."""
        self.episode, self.actions, self._total = episode, [], 0.0
        return self._note(self._call("reset", seed=seed), ended=False)

    def step(self, action: int) -> Stepped:
        """Take the action of that number.

        Raises:
            EnvError: The environment gives what is no step.
        """
        offered = self._shown.actions
        if not 0 <= action < len(offered):
            raise self._error("the action", f"0 to {len(offered) - 1}", action)
        answer = self._call("step", self._meant(action))
        if not isinstance(answer, tuple) or len(answer) != 5:
            kind = f"{len(answer)} values" if isinstance(answer, tuple) else type(answer).__name__
            raise self._error("step", "observation, reward, terminated, truncated, info", kind)
        seen, reward, terminated, truncated, info = answer
        self.actions.append(action)
        try:
            gained = float(reward)
        except (TypeError, ValueError):
            gained = float("nan")
        if not np.isfinite(gained):
            raise self._error("the reward", "a finite number", reward)
        self._total += gained
        truncated = self._cut(bool(terminated), bool(truncated))
        ended = bool(terminated) or truncated
        shown = self._note((seen, info), ended)
        succeeded = ended and self._success(info)
        return Stepped(shown, gained, bool(terminated), truncated, succeeded)

    def expert_action(self) -> int:
        """What the environment's own expert would do."""
        if not self.has_expert:
            raise EnvError(f"env: {self._args.own.target} offers no expert_action")
        action, offered = self._bare.expert_action(), self._shown.actions
        if isinstance(action, str) and action in offered:
            return offered.index(action)
        if isinstance(action, (int, np.integer)) and 0 <= action < len(offered):
            return int(action)
        raise self._error("expert_action", f"one of {list(offered)} or its number", action)

    def state(self) -> dict[str, Any]:
        """Where it stands; see ``OwnBatch.state``."""
        own = self._bare.get_state() if hasattr(self._bare, "get_state") else None
        try:
            json.dumps(own)
        except (TypeError, ValueError) as error:
            raise EnvError(f"{self._place}: get_state: JSON cannot hold it: {error}") from error
        return {
            "episodes": self.episode,
            "actions": list(self.actions),
            "totals": self._total,
            "texts": zlib.crc32(self._shown.text.encode()),
            "own": own,
        }

    def restore(self, saved: Mapping[str, Any], seed: int) -> Shown:
        """Come back there.

        Raises:
            CheckpointError: It looks different there.
        """
        self.start(int(saved["episodes"]), seed)
        if saved["own"] is not None:
            self._note(self._bare.set_state(saved["own"]), ended=False)
            self.actions, self._total = list(saved["actions"]), float(saved["totals"])
        else:
            for action in saved["actions"]:
                self.step(action)
        if zlib.crc32(self._shown.text.encode()) != saved["texts"]:
            raise CheckpointError(
                f"{self._place}: the saved episode looks different after its {len(self.actions)}"
                f" actions: {self._args.own.target} is not deterministic; get_state and set_state"
                " would bring it back"
            )
        return self._shown

    def close(self) -> None:
        """Free what is held."""
        self._env.close()

    def _call(self, name: str, *args: Any, **keywords: Any) -> Any:
        """Call the environment: whatever it raises ends the run with where that was."""
        try:
            return getattr(self._env, name)(*args, **keywords)
        except Exception as error:
            steps = f"episode {self.episode}, step {len(self.actions)}"
            raise EnvError(f"{self._place}, {steps}: {name}: {why(error)}") from error

    def _own_texts(self) -> tuple[str, ...]:
        found = getattr(self._bare, "action_texts", ())
        if isinstance(found, str) or not all(isinstance(text, str) and text for text in found):
            raise self._error("action_texts", "texts that are not empty", found)
        return tuple(found)

    def _note(self, answer: Any, ended: bool) -> Shown:
        """Read what ``reset`` or ``step`` gave."""
        if not isinstance(answer, tuple) or len(answer) != 2 or not isinstance(answer[1], Mapping):
            raise self._error("reset", "an observation and a dictionary", answer)
        seen, info = answer
        wanted = "a text, or a dictionary with text and optionally mission and features"
        if isinstance(seen, str):
            seen = {"text": seen}
        if not isinstance(seen, Mapping) or not isinstance(seen.get("text"), str):
            raise self._error("the observation", wanted, seen)
        if not isinstance(seen.get("mission", ""), str):
            raise self._error("the observation's mission", "a text", seen["mission"])
        shown = Shown(
            str(seen["text"]),
            str(seen.get("mission", "")),
            self._features(seen.get("features", ())),
            self._offered(info, ended),
        )
        self._first = self._first or shown
        if len(shown.features) != len(self._first.features):
            size = len(self._first.features)
            raise self._error("features", f"{size} numbers, as at first", len(shown.features))
        self._shown = shown
        return shown

    def _features(self, values: Any) -> np.ndarray:
        try:
            flat = np.asarray(values, dtype=np.float32).ravel()
        except (TypeError, ValueError):
            raise self._error("the observation's features", "numbers", values) from None
        if not np.isfinite(flat).all():
            raise self._error("the observation's features", "finite numbers", values)
        return flat

    def _offered(self, info: Mapping[str, Any], ended: bool) -> tuple[str, ...]:
        space = getattr(self._env, "action_space", None)
        if self.action_texts:
            discrete = isinstance(space, gymnasium.spaces.Discrete)
            if space is not None and discrete and int(space.n) != len(self.action_texts):
                raise self._error(
                    "env.action_texts", f"{space.n} texts, for {space}", list(self.action_texts)
                )
            return self.action_texts
        found = next((info[name] for name in ADMISSIBLE if name in info), None)
        texts = () if found is None or isinstance(found, str) else tuple(found)
        if ended and not texts:
            return ()
        if not texts or not all(isinstance(text, str) and text for text in texts):
            where = f"action_texts, or a list of texts in info[{ADMISSIBLE[0]!r}]"
            raise self._error("the actions", where, "neither" if found is None else found)
        if len(set(texts)) < len(texts):
            raise self._error(f"info[{ADMISSIBLE[0]!r}]", "texts that differ", list(texts))
        return texts

    def _meant(self, action: int) -> Any:
        """What the environment's ``step`` takes."""
        space = getattr(self._env, "action_space", None)
        if isinstance(space, gymnasium.spaces.Discrete):
            return int(space.start) + action
        if space is None or isinstance(space, gymnasium.spaces.Text):
            return self._shown.actions[action]
        raise self._error("action_space", "Discrete, Text or none", space)

    def _cut(self, terminated: bool, truncated: bool) -> bool:
        limit, steps = self._args.max_steps, len(self.actions)
        if limit is None and steps >= LONGEST and not (terminated or truncated):
            raise EnvError(
                f"{self._place}: its episode has not ended after {steps} steps; env.max_steps cuts"
                " episodes off"
            )
        return truncated or (limit is not None and steps >= limit and not terminated)

    def _success(self, info: Mapping[str, Any]) -> bool:
        told = next((info[name] for name in SUCCESS if name in info), None)
        return self._total > self._args.success_above if told is None else bool(told)

    def _error(self, what: str, expected: str, got: Any) -> EnvError:
        step = f"episode {self.episode}, step {len(self.actions)}" if self.actions else "at first"
        return EnvError(f"{self._place}, {step}: {what}: expected {expected}, got {got!r:.200}")


class OwnBatch:
    """``BatchedEnv`` over copies of the user's environment.

    Args:
        args: The ``env`` group.
        num_envs: Copies.
        episode_seed: Seed of an episode, from copy and episode.
        first_copy: Number of the first one, for messages.
    """

    def __init__(
        self, args: EnvArgs, num_envs: int, episode_seed: EpisodeSeed, first_copy: int = 0
    ) -> None:
        self.num_envs = num_envs
        self._args, self._seed = args, episode_seed
        self._copies: list[OwnCopy] = []
        self._first_copy = first_copy
        self._first: Shown | None = None
        for copy in range(num_envs):
            made = _made(args)
            for method in ("reset", "step", "close"):
                if not callable(getattr(made, method, None)):
                    raise EnvError(
                        f"env: {args.own.target} gives a {type(made).__name__} without {method}:"
                        " expected a Gymnasium environment, or an object with make_batch"
                    )
            self._copies.append(OwnCopy(made, args, f"env: copy {first_copy + copy}"))

    @property
    def has_expert(self) -> bool:
        """True where the environment offers ``expert_action``."""
        return self._copies[0].has_expert

    @property
    def action_texts(self) -> tuple[str, ...]:
        """Those of every state; empty where each lists its own."""
        return self._copies[0].action_texts

    def reset(self) -> ObservationBatch:
        """See ``BatchedEnv``."""
        for index, copy in enumerate(self._copies):
            copy.start(0, self._seed(index, 0))
        return self._observe()

    def step(self, actions: np.ndarray) -> StepBatch:
        """See ``BatchedEnv``."""
        if len(actions) != self.num_envs:
            raise EnvError(f"env: expected {self.num_envs} actions, got {len(actions)}")
        pairs = zip(self._copies, actions.tolist(), strict=True)
        steps = [copy.step(action) for copy, action in pairs]
        reached = current = self._observe()
        terminated = np.array([step.terminated for step in steps])
        truncated = np.array([step.truncated for step in steps])
        ended = np.flatnonzero(terminated | truncated)
        if len(ended):
            for index in ended.tolist():
                episode = self._copies[index].episode + 1
                self._copies[index].start(episode, self._seed(index, episode))
            current = self._observe()
        rewards = np.array([step.reward for step in steps], dtype=np.float64)
        succeeded = np.array([step.succeeded for step in steps])
        return StepBatch(reached, current, rewards, terminated, truncated, succeeded)

    def expert_actions(self) -> np.ndarray:
        """See ``BatchedEnv``."""
        return np.array([copy.expert_action() for copy in self._copies], dtype=np.int64)

    def state(self) -> dict[str, list[Any]]:
        """One entry per copy: episode, return so far, checksum of the text, and the environment's
        own state where it offers one; and the actions of the running episodes.
        """
        saved = [copy.state() for copy in self._copies]
        columns = {name: [own[name] for own in saved] for name in saved[0] if name != "actions"}
        lengths = [len(own["actions"]) for own in saved]
        actions = [action for own in saved for action in own["actions"]]
        return columns | {"lengths": lengths, "actions": actions}

    def restore(self, state: dict[str, list[Any]]) -> ObservationBatch:
        """See ``BatchedEnv``.

        Raises:
            CheckpointError: The state is of another batch, or the environment is not deterministic.
        """
        names = ("episodes", "totals", "texts", "own", "lengths")
        lists = [state.get(name) for name in (*names, "actions")]
        if any(not isinstance(values, list) for values in lists) or any(
            len(state[name]) != self.num_envs for name in names
        ):
            raise CheckpointError(
                f"not the saved state of {self.num_envs} copies of {self._args.own.target}"
            )
        taken = iter(state["actions"])
        for index, copy in enumerate(self._copies):
            saved = {name: state[name][index] for name in names}
            saved["actions"] = [next(taken) for _ in range(saved["lengths"])]
            try:
                copy.restore(saved, self._seed(index, int(saved["episodes"])))
            except EnvError as error:
                raise CheckpointError(f"the saved episode cannot be replayed: {error}") from error
        return self._observe()

    def close(self) -> None:
        """Free what is held. May be called twice."""
        for copy in self._copies:
            copy.close()

    def _observe(self) -> ObservationBatch:
        shown = [copy.shown for copy in self._copies]
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
        self.action_texts = tuple(args.action_texts) or tuple(getattr(env, "action_texts", ()))
        self.has_expert = hasattr(env, "expert_actions")
        self.num_envs = num_envs
        self._size: int | None = None
        if env.num_envs != num_envs:
            raise self._error("num_envs", num_envs, env.num_envs)

    def reset(self) -> ObservationBatch:
        """See ``BatchedEnv``."""
        return self._checked(self._env.reset())

    def step(self, actions: np.ndarray) -> StepBatch:
        """See ``BatchedEnv``."""
        step = self._env.step(actions)
        for name in ("rewards", "terminated", "truncated"):
            values = getattr(step, name)
            if np.shape(values) != (self.num_envs,) or not np.isfinite(values).all():
                raise self._error(name, f"{self.num_envs} finite numbers", values)
        reached = self._checked(step.reached)
        current = reached if step.current is step.reached else self._checked(step.current)
        return StepBatch(
            reached, current, step.rewards, step.terminated, step.truncated, step.succeeded
        )

    def expert_actions(self) -> np.ndarray:
        """See ``BatchedEnv``."""
        return self._env.expert_actions()

    def state(self) -> dict[str, list[int]]:
        """See ``BatchedEnv``."""
        return self._env.state()

    def restore(self, state: dict[str, list[int]]) -> ObservationBatch:
        """See ``BatchedEnv``."""
        return self._checked(self._env.restore(state))

    def close(self) -> None:
        """See ``BatchedEnv``."""
        self._env.close()

    def _checked(self, seen: ObservationBatch) -> ObservationBatch:
        num_envs = self.num_envs
        for name in ("missions", "descriptions"):
            if len(getattr(seen, name)) != num_envs:
                raise self._error(name, f"{num_envs} of them", getattr(seen, name))
        actions = seen.actions or (self.action_texts,) * num_envs
        if len(actions) != num_envs or not any(actions):
            raise self._error("actions", "action_texts, or a list of texts per copy", seen.actions)
        features = np.asarray(seen.features, dtype=np.float32)
        features = features.reshape(len(features), int(np.prod(features.shape[1:])))
        self._size = features.shape[1] if self._size is None else self._size
        if len(features) not in (0, num_envs) or features.shape[1] != self._size:
            raise self._error("features", f"shape ({num_envs}, {self._size})", features.shape)
        missions, said = tuple(seen.missions), tuple(tuple(one) for one in seen.descriptions)
        return ObservationBatch(missions, said, features=features, actions=tuple(actions))

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
        made = _made(args).make_batch(num_envs, episode_seed)
        return BroughtBatch(made, args, num_envs)
    return OwnBatch(args, num_envs, episode_seed, first_copy)


def _made(args: EnvArgs) -> Any:
    try:
        return args.own.make("env")
    except LamorelExtError:
        raise
    except Exception as error:
        raise EnvError(f"env: {args.own.target}: {why(error)}") from error


def offers(args: EnvArgs, name: str) -> bool:
    """True where what ``env._target_`` names has a method of that name, known before it is made."""
    return callable(getattr(args.own.locate("env"), name, None))


def look_at(args: EnvArgs, seed: int) -> TaskSpec:
    """What the environment asks of an agent: from the first observation of one copy.

    Raises:
        ConfigError: It cannot be had.
        EnvError: It is no environment.
    """
    env = own_batch(args, 1, lambda copy, episode: seed)
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
