"""Copies of an environment of the user's own: what each shows, and what it has to offer (see
``lamorel_ext.envs.own``). Free of torch, so that a process with copies starts soon.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import gymnasium
import numpy as np

from lamorel_ext.config import EnvArgs
from lamorel_ext.config.plugs import why
from lamorel_ext.envs.own_keys import made
from lamorel_ext.envs.own_offers import (
    UNICODE,
    as_saved,
    fault_of_texts,
    finite_numbers,
    is_fraction,
    is_unicode,
    keeps_state,
    offer_of,
)
from lamorel_ext.errors import CheckpointError, EnvError

log = logging.getLogger(__name__)

ADMISSIBLE = ("admissible", "admissible_commands")
"""Names, in ``info``, of the texts of a state's actions."""
SUCCESS = ("success", "won")
"""Names, in ``info``, of whether an episode has succeeded."""
REST = int(np.iinfo(np.int64).min)
"""The action that leaves a copy as it is; no agent's mistake looks like it."""
LONGEST = 10_000
"""Steps of an episode where ``env.max_steps`` does not say."""


@dataclass(frozen=True)
class Shown:
    """What one copy shows."""

    text: str
    mission: str = ""
    features: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    actions: tuple[str, ...] = ()

    def checksums(self) -> dict[str, int]:
        """Of each part, to be compared after a resume."""
        parts = {
            "text": self.text.encode(errors="surrogatepass"),
            "mission": self.mission.encode(errors="surrogatepass"),
            "features": (self.features + np.float32(0)).tobytes(),  # -0 is 0
            "actions": "\n".join(self.actions).encode(errors="surrogatepass"),
        }
        return {name: zlib.crc32(part) for name, part in parts.items()}


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

    Attributes:
        shown: What it shows now.
    """

    def __init__(self, env: Any, args: EnvArgs, place: str) -> None:
        self._env, self._args, self._place = env, args, place
        self._first: Shown | None = None
        self.episode = 0
        self.actions: list[int] = []
        self._total = 0.0
        self.shown = Shown("")
        self._advice: int | None = None
        self.action_texts = self._fixed_texts()

    @property
    def has_expert(self) -> bool:
        """True where it offers ``expert_action``."""
        return callable(offer_of(self._env, "expert_action"))

    def start(self, episode: int, seed: int) -> None:
        """Begin an episode."""
        self.episode, self.actions, self._total, self._advice = episode, [], 0.0, None
        self._note("reset", self._call("reset", seed=seed))

    def step(self, action: int) -> Stepped:
        """Take the action of that number; ``REST`` takes none.

        Raises:
            EnvError: The environment gives what is no step.
        """
        if action == REST:
            return Stepped(self.shown, 0.0, False, False, False)
        offered = self.shown.actions
        if not 0 <= action < len(offered):
            raise self._error("the action", f"0 to {len(offered) - 1}", action)
        answer = self._call("step", self._meant(action))
        if not isinstance(answer, tuple) or len(answer) != 5:
            kind = f"{len(answer)} values" if isinstance(answer, tuple) else type(answer).__name__
            raise self._error("step", "observation, reward, terminated, truncated, info", kind)
        seen, reward, terminated, truncated, info = answer
        self.actions.append(action)
        self._advice = None
        try:
            gained = float(reward)
        except (TypeError, ValueError, OverflowError):
            gained = float("nan")
        if not np.isfinite(gained):
            raise self._error("the reward", "a finite number", reward)
        self._total += gained
        terminated = self._truth("terminated", terminated)
        truncated = self._cut(terminated, self._truth("truncated", truncated))
        ended = terminated or truncated
        self._note("step", (seen, info), ended)
        succeeded = ended and self._success(info)
        return Stepped(self.shown, gained, terminated, truncated, succeeded)

    def expert_action(self) -> int:
        """What the environment's own expert would do. It may plan ahead or draw: it is asked once
        in a state.
        """
        if self._advice is None:
            self._advice = self._ask_expert()
        return self._advice

    def _ask_expert(self) -> int:
        if not self.has_expert:
            raise EnvError(f"env: {self._args.own.target} offers no expert_action")
        action, offered = self._call("expert_action"), self.shown.actions
        if isinstance(action, str) and action in offered:
            return offered.index(action)
        start = self._first_number
        if isinstance(action, (int, np.integer)) and 0 <= action - start < len(offered):
            return int(action) - start
        numbers = f"its number, from {start} on"
        raise self._error("expert_action", f"one of {list(offered)} or {numbers}", action)

    def state(self) -> dict[str, Any]:
        """Where it stands; see ``OwnBatch.state``."""
        own = self._call("get_state") if keeps_state(self._env) else None
        sums = self.shown.checksums()
        return {
            "episodes": self.episode,
            "actions": list(self.actions),
            "totals": self._total,
            "texts": sums.pop("text"),
            "shown": sums,
            "missions": self.shown.mission,
            "experts": self._advice,
            "own": as_saved(f"{self._place}: get_state", own),
        }

    def restore(self, saved: Mapping[str, Any], seed: int) -> None:
        """Come back there.

        Raises:
            CheckpointError: It looks different there.
        """
        self.start(int(saved["episodes"]), seed)
        by_state = saved["own"] is not None and keeps_state(self._env)
        advice = saved["experts"]  # None where nobody asks, else the expert is asked in each state
        if by_state:
            if saved["missions"] is not None:  # it stays where set_state's observation has none
                self.shown = replace(self.shown, mission=saved["missions"])
            self._note("set_state", self._call("set_state", saved["own"]))
            self.actions, self._total = list(saved["actions"]), float(saved["totals"])
        else:
            for action in saved["actions"]:
                if advice is not None:
                    self.expert_action()
                self.step(action)
            if advice is not None:
                self.expert_action()
        self._advice = advice
        sums, wanted = self.shown.checksums(), {"text": saved["texts"], **saved["shown"]}
        if differing := [name for name, value in wanted.items() if sums.get(name) != value]:
            why_so = (
                "set_state does not bring back what get_state saw"
                if by_state
                else "it is not deterministic; get_state and set_state, of the outermost wrapper,"
                " would bring it back"
            )
            raise CheckpointError(
                f"{self._place}: the saved episode looks different after its {len(self.actions)}"
                f" actions ({', '.join(differing)} of {self._args.own.target}): {why_so}"
            )
        if self._total != (total := float(saved["totals"])):
            log.warning(
                "%s: the saved episode looks the same after its %d actions, but they gave %g in all"
                " and gave %g before: rewards of %s do not follow from seed and actions, so that"
                " this run goes on otherwise than without the stop",
                self._place,
                len(self.actions),
                self._total,
                total,
                self._args.own.target,
            )
            self._total = total  # what was really earned says whether the episode succeeds

    def close(self) -> None:
        """Free what is held."""
        close_quietly(self._env, self._place)

    def _call(self, name: str, *args: Any, **keywords: Any) -> Any:
        """Call the environment: whatever it raises ends the run with where that was."""
        try:
            return offer_of(self._env, name)(*args, **keywords)
        except Exception as error:
            steps = f"episode {self.episode}, step {len(self.actions)}"
            raise EnvError(f"{self._place}, {steps}: {name}: {why(error)}") from error

    def _fixed_texts(self) -> tuple[str, ...]:
        given = self._args.action_texts
        found = given or offer_of(self._env, "action_texts")
        if found is None:
            return ()
        if fault := fault_of_texts(found):
            raise self._error("env.action_texts" if given else "action_texts", fault, found)
        return tuple(found)

    def _note(self, name: str, answer: Any, ended: bool = False) -> None:
        """Read what the environment's function of that name gave."""
        if not isinstance(answer, tuple) or len(answer) != 2 or not isinstance(answer[1], Mapping):
            raise self._error(name, "an observation and a dictionary", answer)
        seen, info = answer
        wanted = "a text, or a dictionary with text and optionally mission and features"
        if isinstance(seen, str):
            seen = {"text": seen}
        if not isinstance(seen, Mapping) or not isinstance(seen.get("text"), str):
            raise self._error("the observation", wanted, seen)
        if not isinstance(seen.get("mission", ""), str):
            raise self._error("the observation's mission", "a text", seen["mission"])
        for part in ("text", "mission"):
            if not is_unicode(seen.get(part, "")):
                raise self._error(f"the observation's {part}", UNICODE, seen[part])
        before = "" if name == "reset" else self.shown.mission
        self.shown = Shown(
            str(seen["text"]),
            str(seen.get("mission", before)),
            self._features(seen.get("features", ())),
            self._offered(info, ended),
        )
        self._first = self._first or self.shown
        if (size := len(self._first.features)) != len(self.shown.features):
            raise self._error("features", f"{size} numbers, as at first", len(self.shown.features))

    def _features(self, values: Any) -> np.ndarray:
        if (numbers := finite_numbers(values)) is None:
            raise self._error("the observation's features", "finite numbers", values)
        return numbers.ravel()

    def _offered(self, info: Mapping[str, Any], ended: bool) -> tuple[str, ...]:
        space = getattr(self._env, "action_space", None)
        name = next((name for name in ADMISSIBLE if info.get(name) is not None), None)
        if self.action_texts:
            if name is not None:
                wanted = "either fixed action_texts, or a list for each state"
                raise self._error(f"info[{name!r}]", wanted, "both")
            if isinstance(space, gymnasium.spaces.Discrete) and space.n != len(self.action_texts):
                name = "env.action_texts" if self._args.action_texts else "action_texts"
                raise self._error(name, f"{space.n} texts, for {space}", list(self.action_texts))
            return self.action_texts
        found = () if name is None else info[name]
        if fault := fault_of_texts(found):
            raise self._error(f"info[{name!r}]", fault, found)
        if not found and not ended:
            where = f"action_texts, or a list of texts in info[{ADMISSIBLE[0]!r}]"
            raise self._error("the actions", where, "neither" if name is None else found)
        if isinstance(space, gymnasium.spaces.Discrete) and space.n < len(found):
            raise self._error(f"info[{name!r}]", f"at most {space.n} texts, for {space}", found)
        return tuple(found)

    def _meant(self, action: int) -> Any:
        """What the environment's ``step`` takes."""
        space = getattr(self._env, "action_space", None)
        if isinstance(space, gymnasium.spaces.Discrete):
            return self._first_number + action
        if space is None or isinstance(space, gymnasium.spaces.Text):
            return self.shown.actions[action]
        raise self._error("action_space", "Discrete, Text or none", space)

    @property
    def _first_number(self) -> int:
        """That of the first action, as the environment counts."""
        space = getattr(self._env, "action_space", None)
        return int(space.start) if isinstance(space, gymnasium.spaces.Discrete) else 0

    def _cut(self, terminated: bool, truncated: bool) -> bool:
        limit, steps = self._args.max_steps, len(self.actions)
        if limit is None and steps >= LONGEST and not (terminated or truncated):
            raise EnvError(
                f"{self._place}: its episode has not ended after {steps} steps; env.max_steps cuts"
                " episodes off"
            )
        return truncated or (limit is not None and steps >= limit and not terminated)

    def _success(self, info: Mapping[str, Any]) -> bool:
        name = next((name for name in SUCCESS if name in info), "")
        told = info.get(name)
        if told is None:
            return self._total > self._args.success_above
        return self._truth(f"info[{name!r}]", told)

    def _truth(self, what: str, value: Any) -> bool:
        """``"False"`` would be true, and so would a success of 0.3."""
        try:
            if not isinstance(value, (str, bytes)) and not is_fraction(value):
                return bool(np.array(value) if isinstance(value, list) else value)
        except (TypeError, ValueError, RuntimeError):
            pass
        raise self._error(what, "one truth value", value)

    def _error(self, what: str, expected: str, got: Any) -> EnvError:
        step = f"episode {self.episode}, step {len(self.actions)}" if self.actions else "at first"
        return EnvError(f"{self._place}, {step}: {what}: expected {expected}, got {got!r:.200}")


def close_quietly(env: Any, place: str) -> None:
    """Close what a user brought; what it raises then is no failure of a run, and is warned of."""
    try:
        env.close()
    except (Exception, SystemExit) as error:  # as of pygame's quit(); exit()
        log.warning("%s: close: %s", place, why(error))


class CopiesHere:
    """Copies in this process, stepped one after the other.

    Args:
        args: The ``env`` group.
        num_copies: How many.
        first_copy: Number of the first one, for messages.

    Attributes:
        action_texts: Those of every state; empty where each lists its own.
        has_expert: True where the environment offers ``expert_action``.

    Raises:
        ConfigError: The environment cannot be had.
        EnvError: It is no environment.
    """

    def __init__(self, args: EnvArgs, num_copies: int, first_copy: int = 0) -> None:
        self._copies: list[OwnCopy] = []
        for copy in range(first_copy, first_copy + num_copies):
            env = made(args)
            for method in ("reset", "step", "close"):
                if not callable(getattr(env, method, None)):
                    if hasattr(env, "make_batch"):
                        raise EnvError(
                            f"env._target_: {args.own.target} gives a {type(env).__name__} with"
                            " make_batch; name that class itself, which is asked before it is made"
                        )
                    raise EnvError(
                        f"env: {args.own.target} gives a {type(env).__name__} without {method}:"
                        " expected a Gymnasium environment, or an object with make_batch"
                    )
            self._copies.append(OwnCopy(env, args, f"env: copy {copy}"))
        self.action_texts = self._copies[0].action_texts
        self.has_expert = self._copies[0].has_expert

    @property
    def shown(self) -> list[Shown]:
        """What each copy shows now."""
        return [copy.shown for copy in self._copies]

    def start(self, copies: Sequence[int], episodes: Sequence[int], seeds: Sequence[int]) -> None:
        """Begin an episode in each of these copies."""
        for copy, episode, seed in zip(copies, episodes, seeds, strict=True):
            self._copies[copy].start(episode, seed)

    def step(self, actions: Sequence[int]) -> list[Stepped]:
        """Take the action of that number in every copy."""
        pairs = zip(self._copies, actions, strict=True)
        return [copy.step(action) for copy, action in pairs]

    def expert_actions(self) -> list[int]:
        """What the environment's own expert would do in each copy."""
        return [copy.expert_action() for copy in self._copies]

    def states(self) -> list[dict[str, Any]]:
        """Where each stands; JSON can hold it."""
        return [copy.state() for copy in self._copies]

    def restore(self, saved: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> None:
        """Come back there."""
        for copy, own, seed in zip(self._copies, saved, seeds, strict=True):
            try:
                copy.restore(own, seed)
            except EnvError as error:
                raise CheckpointError(f"the saved episode cannot be replayed: {error}") from error

    def close(self) -> None:
        """Free what is held. May be called twice."""
        for copy in self._copies:
            copy.close()
