"""Episodes of a user's environment: in wrappers, saved and brought back, in arrays used again."""

import dataclasses
import json
import string
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Discrete
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

from lamorel_ext.agents.actors import UniformActor
from lamorel_ext.config import EnvArgs, Plug
from lamorel_ext.envs.own import BroughtBatch, OwnBatch, own_batch
from lamorel_ext.errors import CheckpointError, EnvError
from lamorel_ext.prompts import PromptHistory
from lamorel_ext.randomness import Draws
from lamorel_ext.training.evaluate import run_episodes
from lamorel_ext.training.scenes import PromptedEnv
from lamorel_ext.types import ObservationBatch, StepBatch

SEEDS = lambda copy, episode: 100 * copy + episode  # noqa: E731
TEXTS = ("left", "right", "stop")


class Walk(gymnasium.Env[Any, Any]):
    """Walks from where the seed says; the third action stops."""

    action_texts: Any = TEXTS
    observation_space = gymnasium.spaces.Text(50, charset=string.printable)

    def __init__(self) -> None:
        self.action_space = Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place = int(self.np_random.integers(10))
        return self.seen(), self.info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.place += (-1, 1, 0)[action]
        return self.seen(), 0.0, bool(action == 2), False, self.info()

    def expert_action(self) -> Any:
        return 1

    def seen(self) -> Any:
        return f"place {self.place}"

    def info(self) -> dict[str, Any]:
        return {}


class Keeps(Walk):
    def get_state(self) -> Any:
        return {"place": self.place}

    def set_state(self, state: Any) -> tuple[Any, dict[str, Any]]:
        self.place = state["place"]
        return self.seen(), {}


class Wanders(Keeps):
    """Starts somewhere else each time: only its own state brings it back."""

    starts = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        Wanders.starts += 1
        self.place = Wanders.starts
        return self.seen(), {}


class Reversed(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Numbers the actions from behind, and says so."""

    action_texts = TEXTS[::-1]

    def step(self, action: Any) -> Any:
        return self.env.step(2 - action)

    def expert_action(self) -> Any:
        return 2 - self.get_wrapper_attr("env").expert_action()


class Tells(gymnasium.ObservationWrapper[Any, Any, Any]):
    def observation(self, observation: Any) -> Any:
        return f"You are at {observation}"


class Counts(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Keeps the number of its steps, and saves it."""

    def reset(self, **keywords: Any) -> Any:
        self.steps = 0
        return super().reset(**keywords)

    def step(self, action: Any) -> Any:
        self.steps += 1
        seen, reward, terminated, _, info = self.env.step(action)
        return seen, reward, terminated, self.steps >= 4, info

    def get_state(self) -> Any:
        return {"steps": self.steps, "inner": self.get_wrapper_attr("env").get_state()}

    def set_state(self, state: Any) -> Any:
        self.steps = state["steps"]
        return self.get_wrapper_attr("env").set_state(state["inner"])


class Forwards:
    """No wrapper of Gymnasium's: gives everything else of what it holds."""

    def __init__(self, env: Any) -> None:
        self.env, self.steps = env, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)

    def reset(self, *, seed: int) -> Any:
        self.steps = 0
        return self.env.reset(seed=seed)

    def step(self, action: Any) -> Any:
        self.steps += 1
        seen, reward, terminated, _, info = self.env.step(action)
        return seen, reward, terminated, self.steps >= 4, info


def limited() -> Any:
    return TimeLimit(Keeps(), 4)


def counting() -> Any:
    return Counts(Wanders())


def checked() -> Any:
    return PassiveEnvChecker(OrderEnforcing(Wanders()))


def limited_wandering() -> Any:
    return TimeLimit(Wanders(), 4)


def forwarding() -> Any:
    return Forwards(Keeps())


def telling() -> Any:
    return Tells(Keeps())


def reversing() -> Any:
    return TimeLimit(Reversed(Walk()), 9)


class FromOne(Walk):
    def __init__(self) -> None:
        self.action_space = Discrete(3, start=1)

    def step(self, action: Any) -> Any:
        return super().step(action - 1)

    def expert_action(self) -> Any:
        return 3


class FromFive(FromOne):
    """Lists what can be done in each state; the space counts from five."""

    action_texts = ()

    def __init__(self) -> None:
        self.action_space = Discrete(3, start=5)

    def step(self, action: Any) -> Any:
        return Walk.step(self, action - 5)

    def expert_action(self) -> Any:
        return np.int64(6)

    def info(self) -> dict[str, Any]:
        return {"admissible": list(TEXTS)}


class SaysStart(FromOne):
    def expert_action(self) -> Any:
        return "right"


class BelowStart(FromOne):
    def expert_action(self) -> Any:
        return 0


def own(name: str, **values: Any) -> EnvArgs:
    return EnvArgs(own=Plug(f"{__name__}.{name}"), **values)


def batch(name: str) -> OwnBatch:
    made = own_batch(own(name), 1, SEEDS)
    assert isinstance(made, OwnBatch)
    made.reset()
    return made


def resumed(name: str, env: OwnBatch) -> OwnBatch:
    other = own_batch(own(name), 1, SEEDS)
    assert isinstance(other, OwnBatch)
    other.restore(json.loads(json.dumps(env.state())))
    return other


@pytest.mark.parametrize("name", ["limited", "counting", "forwarding"])
def test_what_a_wrapper_counts_goes_on_after_a_resume(name: str) -> None:
    env, lasted = batch(name), 0
    while True:
        if lasted == 2:
            seen = env._observe().descriptions
            env = resumed(name, env)
            assert env._observe().descriptions == seen
        lasted += 1
        if env.step(np.array([1])).done[0]:
            break
    assert lasted == 4


@pytest.mark.parametrize("name", ["telling", "checked", "counting", "reversing"])
def test_what_a_wrapper_shows_is_shown_after_a_resume(name: str) -> None:
    env = batch(name)
    seen = env.step(np.array([0])).current
    assert resumed(name, env)._observe().descriptions == seen.descriptions


def test_a_state_that_no_wrapper_saves_does_not_stand_for_the_whole() -> None:
    env = batch("limited_wandering")
    assert env.state()["own"] == [None]
    with pytest.raises(CheckpointError, match="not deterministic.*outermost wrapper"):
        resumed("limited_wandering", env)


def test_a_state_saved_past_a_wrapper_gives_way_to_the_actions() -> None:
    env = batch("limited")
    env.step(np.array([0]))
    state = env.state()
    state["own"] = [{"place": -7}]
    other = own_batch(own("limited"), 1, SEEDS)
    assert other.restore(state).descriptions == env._observe().descriptions


def test_the_outermost_wrapper_says_what_the_actions_are_called_and_what_the_expert_does() -> None:
    env = batch("reversing")
    before = env._observe().descriptions
    assert env.action_texts == TEXTS[::-1] and env.expert_actions().tolist() == [1]
    step = env.step(np.array([2]))
    assert step.current.descriptions != before and not step.terminated[0]
    assert env.step(np.array([0])).terminated[0]


@pytest.mark.parametrize("name, expected", [("FromOne", 2), ("FromFive", 1), ("SaysStart", 1)])
def test_an_expert_counts_as_the_action_space_does(name: str, expected: int) -> None:
    env = batch(name)
    assert env.expert_actions().tolist() == [expected]
    assert env.step(env.expert_actions()).terminated[0] == (TEXTS[expected] == "stop")


def test_an_expert_below_the_first_number_is_named() -> None:
    with pytest.raises(EnvError, match="expert_action: expected .* its number, from 1 on, got 0"):
        batch("BelowStart").expert_actions()


@pytest.mark.parametrize(
    "state, words",
    [
        ({"seen": {0: 1}}, r"the key 0 of \['seen'\] into a text"),
        ({"place": (1, 2)}, r"\['place'\] from a tuple into a list"),
        ([[{"a": ()}]], r"\[0\]\[0\]\['a'\] from a tuple into a list"),
        ({True: 1}, "the key True of it into a text"),
        ({"a": np.zeros(2)}, r"\['a'\], a ndarray, which it cannot hold"),
        ({"a": {1, 2}}, r"\['a'\], a set, which it cannot hold"),
        ({"best": float("-inf")}, r"\['best'\], -inf, which is no JSON"),
    ],
)
def test_a_state_that_json_changes_is_refused(
    monkeypatch: pytest.MonkeyPatch, state: Any, words: str
) -> None:
    monkeypatch.setattr(Keeps, "get_state", lambda self: state)
    env = batch("Keeps")
    with pytest.raises(EnvError, match=f"copy 0: get_state: JSON would change {words}"):
        env.state()


def test_a_saved_state_is_the_one_of_then(monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"seen": {"0": [1, np.float64(0.1)]}, "place": 3}
    monkeypatch.setattr(Keeps, "get_state", lambda self: state)
    saved = batch("Keeps").state()["own"]
    state["seen"]["0"].append(2)  # type: ignore[index]
    assert saved == [{"seen": {"0": [1, 0.1]}, "place": 3}]


class Shows(Walk):
    """Hidden numbers make a part of what it shows another one at every start."""

    action_texts = ()
    part = ""
    starts = 0

    def __init__(self) -> None:
        self.action_space = gymnasium.spaces.Text(20)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        Shows.starts += 1
        self.hidden = Shows.starts
        return super().reset(seed=seed)

    def step(self, action: Any) -> Any:
        return self.seen(), 0.0, False, False, self.info()

    def of(self, part: str) -> int:
        return self.hidden if self.part == part else 0

    def seen(self) -> Any:
        features = [[float(self.of("features"))]]
        return {"text": "x", "mission": f"{self.of('mission')}", "features": features}

    def info(self) -> dict[str, Any]:
        return {"admissible": ["stay", f"go {self.of('actions')}"]}


class Errands(Keeps):
    """Says its mission where there is a new one."""

    def seen(self) -> Any:
        news = {"mission": f"leave {self.place}"} if self.place % 2 == 0 else {}
        return {"text": f"place {self.place}"} | news


def test_a_mission_said_before_the_saved_state_comes_back() -> None:
    env = batch("Errands")
    seen = [env.step(np.array([1])).current for _ in range(3)][-1]
    assert (seen.descriptions, seen.missions) == ((("place 11",),), ("leave 10",))
    assert resumed("Errands", env)._observe().missions == ("leave 10",)


class Pays(Walk):
    """What a step gives depends on how many were made in the process, as with a wrapper that
    normalises rewards.
    """

    steps = 0

    def step(self, action: Any) -> Any:
        Pays.steps += 1
        seen, _, *rest = super().step(action)
        return seen, float(Pays.steps), *rest


def test_rewards_that_come_out_differently_are_told_and_the_return_stays_what_it_was(
    caplog: pytest.LogCaptureFixture,
) -> None:
    env = batch("Pays")
    for _ in range(2):
        env.step(np.array([1]))
    earned = env.state()["totals"]
    again = resumed("Pays", env)
    assert again.state()["totals"] == earned
    (record,) = caplog.records
    assert "copy 0: the saved episode looks the same" in record.message
    assert "rewards of" in record.message and "Pays" in record.message


@pytest.mark.parametrize("part", ["features", "mission", "actions"])
def test_what_comes_back_is_compared_as_a_whole(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    monkeypatch.setattr(Shows, "part", part)
    env = batch("Shows")
    env.step(np.array([0]))
    with pytest.raises(CheckpointError, match=rf"\({part} of .*Shows\): it is not deterministic"):
        resumed("Shows", env)
    monkeypatch.setattr(Shows, "part", "")
    assert resumed("Shows", batch("Shows"))


def test_a_checkpoint_of_the_text_alone_can_still_be_read() -> None:
    env = batch("Walk")
    env.step(np.array([1]))
    state = env.state()
    del state["shown"]
    other = own_batch(own("Walk"), 1, SEEDS)
    assert other.restore(state).descriptions == env._observe().descriptions
    state["texts"] = [state["texts"][0] + 1]
    with pytest.raises(CheckpointError, match="text of .*Walk"):
        other.restore(state)


def test_a_set_state_that_goes_elsewhere_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Keeps, "set_state", lambda self, state: ("elsewhere", {}))
    with pytest.raises(CheckpointError, match="set_state does not bring back"):
        resumed("Keeps", batch("Keeps"))


class Ends(Walk):
    """Ends after as many steps as the seed says, whatever is done; counts what it is asked."""

    taken: list[int] = []

    def step(self, action: Any) -> Any:
        self.place -= 1
        Ends.taken.append(action)
        return self.seen(), 1.0, self.place < 0, False, {}


@pytest.mark.parametrize("prompt", ["lamorel", "glam"])
def test_an_evaluation_leaves_the_copies_alone_whose_episode_has_ended(prompt: Any) -> None:
    Ends.taken = []
    env = PromptedEnv(own_batch(own("Ends"), 6, SEEDS), PromptHistory(prompt))
    found = run_episodes(env, UniformActor(), Draws.of_evaluation(0))
    assert found.lengths.tolist() == found.returns.tolist() and len(set(found.lengths)) > 2
    assert len(Ends.taken) == found.lengths.sum()


@pytest.mark.parametrize("action", [-1, 3])
def test_an_action_out_of_range_is_no_rest(action: int) -> None:
    with pytest.raises(EnvError, match=f"the action: expected 0 to 2, got {action}"):
        batch("Walk").step(np.array([action]))


class Lists(Walk):
    action_texts = ()
    offered: Any = None

    def __init__(self) -> None:
        self.action_space = gymnasium.spaces.Text(20)

    def info(self) -> dict[str, Any]:
        return {"admissible": self.offered}


@pytest.mark.parametrize(
    "offered, words",
    [
        ({"go", "wait"}, "a list or tuple of texts"),
        ({"go": 1}, "a list or tuple of texts"),
        ("go", "a list or tuple of texts"),
        (frozenset(), "a list or tuple of texts"),
        (["go", "go"], "texts that differ"),
        (["go", ""], "texts that are not empty"),
        ([], "action_texts, or a list of texts"),
        (None, "action_texts, or a list of texts in .*neither"),
    ],
)
def test_what_lists_no_actions_in_an_order_is_refused(
    monkeypatch: pytest.MonkeyPatch, offered: Any, words: str
) -> None:
    monkeypatch.setattr(Lists, "offered", offered)
    with pytest.raises(EnvError, match=f"expected .*{words}"):
        batch("Lists")


def test_more_texts_than_the_space_has_numbers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FromFive, "info", lambda self: {"admissible": ["a", "b", "c", "d"]})
    with pytest.raises(EnvError, match="at most 3 texts, for Discrete"):
        batch("FromFive")


@pytest.mark.parametrize(
    "texts, words",
    [
        (("go", "go", "stop"), "texts that differ"),
        ({"go", "left", "stop"}, "a list or tuple of texts"),
        ("go", "a list or tuple of texts"),
        (("go", "", "stop"), "texts that are not empty"),
    ],
)
def test_fixed_texts_are_held_to_the_same(
    monkeypatch: pytest.MonkeyPatch, texts: Any, words: str
) -> None:
    monkeypatch.setattr(Walk, "action_texts", texts)
    with pytest.raises(EnvError, match=f"action_texts: expected {words}"):
        batch("Walk")
    if isinstance(texts, tuple):
        with pytest.raises(EnvError, match=f"env.action_texts: expected {words}"):
            own_batch(own("Lists", action_texts=texts), 1, SEEDS)


def test_fewer_texts_than_actions_name_who_gave_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EnvError, match="env.action_texts: expected 3 texts"):
        own_batch(own("Walk", action_texts=("go", "stop")), 1, SEEDS).reset()
    monkeypatch.setattr(Walk, "action_texts", ("go", "stop"))
    with pytest.raises(EnvError, match=": action_texts: expected 3 texts"):
        batch("Walk")


@pytest.mark.parametrize("name, fixed", [("Walk", ()), ("Lists", TEXTS)])
def test_fixed_actions_and_a_list_in_each_state_do_not_go_together(
    monkeypatch: pytest.MonkeyPatch, name: str, fixed: tuple[str, ...]
) -> None:
    monkeypatch.setattr(Walk, "info", lambda self: {"admissible_commands": ["left"]})
    monkeypatch.setattr(Lists, "offered", ["left"])
    with pytest.raises(EnvError, match="either fixed action_texts, or a list for each state"):
        own_batch(own(name, action_texts=fixed), 1, SEEDS).reset()


class Reuses:
    """A batch that fills the same arrays and lists at every step."""

    action_texts: Any = ()

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self.rewards = np.zeros(num_envs, dtype=np.float32)
        self.ends = [np.zeros(num_envs, dtype=bool) for _ in range(3)]
        self.experts = np.zeros(num_envs, dtype=np.int64)
        self.features = np.zeros((num_envs, 2), dtype=np.float32)
        self.texts = ["wait", "step 0"]
        self.saved: Any = {"k": [0]}

    def reset(self) -> ObservationBatch:
        self.k = 0
        return self.observe()

    def observe(self) -> ObservationBatch:
        self.features[:] = self.k
        self.texts[1] = f"step {self.k}"
        same: Any = (self.texts,) * self.num_envs
        none = ("",) * self.num_envs
        return ObservationBatch(none, (none,) * self.num_envs, features=self.features, actions=same)

    def step(self, actions: np.ndarray) -> StepBatch:
        self.k += 1
        self.rewards[:] = self.experts[:] = self.k
        for end in self.ends:
            end[:] = self.k % 2 == 0
        return StepBatch(self.observe(), self.observe(), self.rewards, *self.ends)

    def expert_actions(self) -> np.ndarray:
        return self.experts

    def state(self) -> Any:
        return self.saved

    def restore(self, state: Any) -> ObservationBatch:
        return self.observe()

    def close(self) -> None:
        pass


def brought(env: Any) -> BroughtBatch:
    return BroughtBatch(env, EnvArgs(), env.num_envs)


def test_what_a_batch_uses_again_stays_what_it_was() -> None:
    env = brought(Reuses(2))
    env.reset()
    steps, experts = [], []
    for _ in range(4):
        steps.append(env.step(np.zeros(2)))
        experts.append(env.expert_actions()[0])
    assert [step.rewards.tolist() for step in steps] == [[k, k] for k in (1, 2, 3, 4)]
    for name in ("terminated", "truncated", "succeeded"):
        assert [bool(getattr(step, name)[1]) for step in steps] == [False, True, False, True]
    for seen in ("reached", "current"):
        shown = [getattr(step, seen) for step in steps]
        assert [one.features[0, 1] for one in shown] == [1, 2, 3, 4]
        assert [one.actions[0][1] for one in shown] == [f"step {k}" for k in (1, 2, 3, 4)]
    assert experts == [1, 2, 3, 4]


class Fills(Walk):
    """A copy that shows the same array at every step, which all copies share."""

    shared = np.zeros(2, dtype=np.float32)

    def seen(self) -> Any:
        self.shared[:] = self.place
        return {"text": "x", "features": self.shared}


def test_what_copies_share_does_not_mix() -> None:
    env = own_batch(own("Fills"), 3, SEEDS)
    places = [[int(words.split()[1])] * 2 for (words,) in own_walks()]
    assert env.reset().features.tolist() == places


def own_walks() -> tuple[tuple[str, ...], ...]:
    return own_batch(own("Walk"), 3, SEEDS).reset().descriptions


@pytest.mark.parametrize(
    "change, words",
    [
        ({"texts": {"a", "b"}}, "actions: expected a list or tuple of texts"),
        ({"texts": ["a", "a"]}, "actions: expected texts that differ"),
        ({"action_texts": {"a", "b"}}, "action_texts: expected a list or tuple"),
        ({"action_texts": ("a", "a")}, "action_texts: expected texts that differ"),
        ({"action_texts": ("a", "b")}, r"actions: expected its action_texts \('a', 'b'\)"),
        ({"saved": {"k": {0: 1}}}, r"state: JSON would change the key 0 of \['k'\]"),
        ({"ends": [np.zeros(2)] * 2 + [np.zeros(3)]}, "succeeded: expected 2 finite numbers"),
    ],
)
def test_a_batch_of_ones_own_is_held_to_the_same(change: dict[str, Any], words: str) -> None:
    made = Reuses(2)
    vars(made).update(change)
    if "texts" in change:
        same: Any = (made.texts,) * 2
        made.observe = lambda: ObservationBatch(  # type: ignore[method-assign]
            ("", ""), (("",), ("",)), features=made.features, actions=same
        )
    with pytest.raises(EnvError, match=words):
        env = brought(made)
        env.reset()
        env.step(np.zeros(2))
        env.state()


def test_a_fraction_from_a_batch_of_ones_own_is_no_success_and_no_action(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = Reuses(2)
    monkeypatch.setattr(made, "expert_actions", lambda: [0.7, 1.0])
    env = brought(made)
    env.reset()
    with pytest.raises(EnvError, match="expert_actions: expected 2 whole numbers"):
        env.expert_actions()
    plain = made.step(np.zeros(2))
    graded = dataclasses.replace(plain, succeeded=np.array([0.3, 1.0]))
    monkeypatch.setattr(made, "step", lambda actions: graded)
    with pytest.raises(EnvError, match="succeeded: expected 2 whole numbers or truth values"):
        env.step(np.zeros(2))


@pytest.mark.parametrize(
    "shown, words",
    [
        ({"descriptions": ("You see", "a door")}, "descriptions: expected a tuple of sentences"),
        ({"descriptions": (("go",), (None,))}, "descriptions: expected a tuple of sentences"),
        ({"missions": (None, "go")}, "missions: expected texts"),
        ({"missions": ("go", "to \udc80")}, r"missions: .*UTF-8 .*, got 'to \\udc80'"),
        ({"descriptions": (("go",), ("\ud800",))}, "descriptions: .*UTF-8"),
        ({"actions": (("go",), ("\ud800",))}, "actions: .*UTF-8"),
        ({"features": np.array([[0.0], [np.nan]])}, "features: expected rows of finite numbers"),
        ({"features": [[0.0], [1.0, 2.0]]}, "features: expected rows of finite numbers"),
        ({"features": 3.0}, "features: expected rows of finite numbers"),
    ],
)
def test_what_a_batch_of_ones_own_shows_is_text_and_numbers(
    monkeypatch: pytest.MonkeyPatch, shown: dict[str, Any], words: str
) -> None:
    made = Reuses(2)
    monkeypatch.setattr(made, "reset", lambda: dataclasses.replace(Reuses.reset(made), **shown))
    with pytest.raises(EnvError, match=words):
        brought(made).reset()


def test_a_number_without_end_from_a_batch_of_ones_own_is_named() -> None:
    made = Reuses(2)
    made.experts = np.array([0, 10**400])
    with pytest.raises(EnvError, match="expert_actions: expected 2 finite numbers"):
        brought(made).expert_actions()


class Ended(Reuses):
    """Every episode has two steps in all copies, and a state in which it ended lists nothing."""

    def step(self, actions: np.ndarray) -> StepBatch:
        step = super().step(actions)
        if not step.done.any():
            return step
        none = dataclasses.replace(step.reached, actions=((),) * self.num_envs)
        return dataclasses.replace(step, reached=none)


@pytest.mark.parametrize("num_envs", [1, 3])
def test_episodes_of_a_batch_may_all_end_at_once_where_nothing_can_be_done(num_envs: int) -> None:
    env = brought(Ended(num_envs))
    env.reset()
    steps = [env.step(np.zeros(num_envs)) for _ in range(4)]
    assert [len(step.reached.actions[-1]) for step in steps] == [2, 0, 2, 0]
    assert [len(step.current.actions[-1]) for step in steps] == [2, 2, 2, 2]


class Lacks(Reuses):
    """One of its copies lists no action in a state that goes on."""

    place = ""

    def reset(self) -> ObservationBatch:
        return self.less(super().reset(), "reset")

    def step(self, actions: np.ndarray) -> StepBatch:
        step = super().step(actions)
        reached, current = self.less(step.reached, "reached"), self.less(step.current, "current")
        return dataclasses.replace(step, reached=reached, current=current)

    def less(self, seen: ObservationBatch, place: str) -> ObservationBatch:
        none = (("wait",), ())
        return dataclasses.replace(seen, actions=none) if place == self.place else seen


@pytest.mark.parametrize("place", ["reset", "reached", "current"])
def test_a_state_that_goes_on_lists_what_can_be_done(place: str) -> None:
    made = Lacks(2)
    made.place = place
    env = brought(made)
    with pytest.raises(EnvError, match="actions: expected action_texts, or a list of texts per"):
        env.reset()
        env.step(np.zeros(2))


@pytest.mark.parametrize(
    "lacks, words",
    [
        ("step", "make_batch: expected a batch with step"),
        ("num_envs", "num_envs: expected 2, got None"),
        ("restore", "make_batch: expected a batch with restore, got"),
    ],
)
def test_what_a_batch_lacks_is_named(
    monkeypatch: pytest.MonkeyPatch, lacks: str, words: str
) -> None:
    made = Reuses(2)
    if lacks == "num_envs":
        del made.num_envs
    else:
        monkeypatch.delattr(Reuses, lacks)
    with pytest.raises(EnvError, match=words):
        BroughtBatch(made, EnvArgs(), 2).state()


def test_a_function_that_gives_what_makes_batches_is_told_from_no_environment() -> None:
    with pytest.raises(EnvError, match="gives a Makes with make_batch; name that class itself"):
        own_batch(own("makes"), 1, SEEDS)


class Makes:
    def make_batch(self, num_envs: int, episode_seed: Any) -> Any:
        return Reuses(num_envs)


def makes() -> Makes:
    return Makes()


# --- experts, and the end -------------------------------------------------------------------------


class Plans(Walk):
    """Its expert draws a plan where it has none, and crosses off what it has said."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.plan: list[int] = []
        return super().reset(seed=seed)

    def step(self, action: Any) -> Any:
        self.place = int(self.np_random.integers(100))  # what the expert draws moves the walk too
        return self.seen(), 0.0, False, False, self.info()

    def expert_action(self) -> Any:
        if not self.plan:
            self.plan = self.np_random.integers(3, size=5).tolist()
        return self.plan.pop()


class KeepsPlans(Plans):
    def get_state(self) -> Any:
        return {"plan": self.plan, "place": self.place, "rng": self.np_random.bit_generator.state}

    def set_state(self, state: Any) -> tuple[Any, dict[str, Any]]:
        self.plan, self.place = list(state["plan"]), state["place"]
        self.np_random.bit_generator.state = state["rng"]
        return self.seen(), {}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("name", ["Plans", "KeepsPlans"])
def test_an_expert_that_plans_ahead_goes_on_after_a_resume(name: str, workers: int) -> None:
    def made() -> PromptedEnv:
        env = own_batch(own(name, num_workers=workers), 2, SEEDS)
        return PromptedEnv(env, PromptHistory("lamorel"), with_experts=True)

    lasting, other = made(), made()
    scene, resumed_scene = lasting.reset(), None
    for step in range(12):
        if step == 3:
            resumed_scene = other.restore(json.loads(json.dumps(lasting.state())))
        if resumed_scene is not None:
            assert resumed_scene.prompts == scene.prompts, step
            assert str(resumed_scene.experts) == str(scene.experts), step
            resumed_scene = other.step(np.array(resumed_scene.experts)).current
        scene = lasting.step(np.array(scene.experts)).current
    lasting.close()
    other.close()


def test_a_checkpoint_without_the_experts_words_can_still_be_read() -> None:
    env = batch("Walk")
    env.expert_actions()
    state = env.state()
    assert state.pop("experts") == [1]
    other = own_batch(own("Walk"), 1, SEEDS)
    assert other.restore(state).descriptions == env._observe().descriptions
    assert other.expert_actions().tolist() == [1]


class FailsToClose(Walk):
    def close(self) -> None:
        raise RuntimeError("the window is gone")


@pytest.mark.parametrize("kind", ["copies", "batch"])
def test_what_goes_wrong_in_closing_is_told_and_no_failure(
    kind: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "copies":
        env: Any = batch("FailsToClose")
    else:
        monkeypatch.setattr(Reuses, "close", FailsToClose.close)
        env = brought(Reuses(2))
    env.close()
    assert "close: RuntimeError: the window is gone" in caplog.text


def test_an_exit_in_closing_ends_nothing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FailsToClose, "close", lambda self: sys.exit(3))
    batch("FailsToClose").close()
    assert "close: SystemExit: 3" in caplog.text


@pytest.mark.parametrize("name, call", [("step", "step"), ("reset", "reset")])
def test_an_info_that_is_no_dictionary_is_named_by_where_it_came_from(
    monkeypatch: pytest.MonkeyPatch, name: str, call: str
) -> None:
    env = batch("Walk") if call == "step" else own_batch(own("Walk"), 1, SEEDS)
    monkeypatch.setattr(Walk, "info", lambda self: None)
    with pytest.raises(EnvError, match=f": {name}: expected an observation and a dictionary"):
        env.step(np.array([0])) if call == "step" else env.reset()


class Long(Reuses):
    """Ends after twelve steps."""

    def step(self, actions: np.ndarray) -> StepBatch:
        step = super().step(actions)
        over = np.full(self.num_envs, self.k == 12)
        return dataclasses.replace(step, terminated=over, truncated=over, succeeded=over)


@pytest.mark.parametrize("longest, told", [(5, [5, 10]), (12, []), (13, [])])
def test_an_evaluation_whose_episodes_do_not_end_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, longest: int, told: list[int]
) -> None:
    monkeypatch.setattr("lamorel_ext.training.evaluate.LONGEST", longest)
    env = PromptedEnv(brought(Long(2)), PromptHistory("lamorel"))
    assert run_episodes(env, UniformActor(), Draws.of_evaluation(0)).lengths.tolist() == [12, 12]
    words = [f"an evaluation waits for 2 of its 2 episodes to end, after {n} steps" for n in told]
    assert [record.getMessage() for record in caplog.records] == words
