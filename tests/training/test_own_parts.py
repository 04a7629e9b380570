"""What methods and agents of the user's own say reaches whoever it is for, or is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from lamorel_ext.agents.actors import FixedAgent, UniformActor
from lamorel_ext.agents.drrn import DrrnAgent
from lamorel_ext.agents.features import hashed_words
from lamorel_ext.agents.making import AgentSetting, make_agent
from lamorel_ext.agents.replay import Replay
from lamorel_ext.agents.student_ppo import ppo_losses
from lamorel_ext.agents.word_places import word_places
from lamorel_ext.as_json import changed_by_json
from lamorel_ext.config import Config, EnvArgs, Plug
from lamorel_ext.errors import CheckpointError, ConfigError, UpdateError
from lamorel_ext.experience import Rollout, Said
from lamorel_ext.methods.base import Method
from lamorel_ext.methods.feedback.credit import Lesson
from lamorel_ext.methods.feedback.edge import _less_mean, feedback_request
from lamorel_ext.prompts import PLAIN, Wording
from lamorel_ext.rl import normalise
from lamorel_ext.training.building import make_env
from lamorel_ext.training.loop import train
from lamorel_ext.training.run import TrainingRun, fingerprint
from tests.training.student_fakes import MemoryRecorder, TableLlm, make_corridor, small_config

SILENT = {"arm": {"teacher": "none"}, "feedback": {"signal": "none"}}


def config_with(method: type[Method], **groups: Any) -> Config:
    plug = Plug(f"{__name__}.{method.__name__}")
    return dataclasses.replace(small_config(**{**SILENT, **groups}), method=plug)


def drrn_config(method: type[Method]) -> Config:
    return config_with(method, arm={"agent": "drrn", "teacher": "none"})


class Pays(Method):
    """Seven for each step."""

    def rewards(self, turns: Any) -> np.ndarray:
        return np.full((len(turns), len(turns[0].step.rewards)), 7.0)


class Pulls(Method):
    def loss_term(self, rollout: Rollout) -> Any:
        return None


def test_what_a_method_pays_is_what_q_learning_remembers() -> None:
    with TrainingRun(drrn_config(Pays), TableLlm(), make_corridor) as run:
        run.start(None)
        run.rollout()
        assert isinstance(run.agent, DrrnAgent)
        drawn = run.agent.replay.sample(50, np.random.default_rng(0))
        assert set(drawn.rewards.tolist()) == {7.0}


@pytest.mark.parametrize("agent", ["drrn", "llm_policy", "random"])
def test_a_term_that_no_loss_takes_is_refused(agent: str) -> None:
    config = config_with(Pulls, arm={"agent": agent, "teacher": "none"})
    with pytest.raises(ConfigError, match=r"Pulls has a loss_term, which only a student's loss"):
        TrainingRun(config, TableLlm(), make_corridor)


def test_a_recorded_rollout_shows_what_was_learnt_from() -> None:
    config = config_with(Pays)
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, trace_every=1))
    with TrainingRun(config, TableLlm(), make_corridor) as run:
        run.start(None)
        trace = run.rollout()
        assert trace is not None
        steps = [line for line in trace.lines if line["kind"] == "step"]
        assert max(step["reward"] for step in steps) <= 1.0  # the environment's
        assert min(step["error"] for step in steps) > 5.0


# --- evaluations ----------------------------------------------------------------------------------


class Best(Method):
    """Asks in the wording that its weights, saved as tensors, choose."""

    def __init__(self, setting: Any) -> None:
        super().__init__(setting)
        self.worth, self.shown = torch.zeros(2), [-1]

    def learn(self, rollout: Rollout) -> dict[str, float]:
        self.worth[1] += 1
        return {}

    def begin_evaluation(self) -> None:
        self.shown.append(int(self.worth.argmax()))

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"worth": self.worth.clone()}

    def load_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        self.worth = tensors["worth"].clone()


def test_an_evaluation_of_a_checkpoint_begins_with_the_methods_weights_there(
    tmp_path: Path,
) -> None:
    config, recorder = config_with(Best), MemoryRecorder(tmp_path)
    train(config, TableLlm(), recorder, make_corridor)
    with TrainingRun(config, TableLlm(), make_corridor) as run:
        assert isinstance(run.method, Best)
        run.take_over(None)
        assert run.method.shown == [-1, 0]
        run.take_over(recorder.last)
        assert run.method.shown == [-1, 0, 1]


# --- resuming -------------------------------------------------------------------------------------


class Rewords(Method):
    """Another wording from the first lesson on."""

    again = False

    def learn(self, rollout: Rollout) -> dict[str, float]:
        self.setting.reword(Wording("moved", {"ball": "sphere"}))
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        if self.again:
            self.setting.reword(Wording("moved", {"ball": "sphere"}))


class RewordsAgain(Rewords):
    again = True


def saved_after_a_rollout(method: type[Method], folder: Path) -> tuple[Config, MemoryRecorder]:
    config, recorder = config_with(method), MemoryRecorder(folder)
    with TrainingRun(config, TableLlm(), make_corridor) as run:
        run.start(None)
        run.rollout()
        run.save(recorder)
    return config, recorder


@pytest.mark.parametrize("method", [Rewords, RewordsAgain])
def test_a_wording_that_is_not_said_again_ends_the_resume(
    method: type[Rewords], tmp_path: Path
) -> None:
    config, recorder = saved_after_a_rollout(method, tmp_path)
    with TrainingRun(config, TableLlm(), make_corridor) as run:
        run.start(recorder.last)
        if method.again:
            run.rollout()
            return
        with pytest.raises(CheckpointError, match=r"wording 'moved'.*reword there, or in begin_"):
            run.rollout()


class RewordsForRollouts(Rewords):
    def begin_rollout(self) -> None:
        self.setting.reword(Wording("moved", {"ball": "sphere"}))


class RewordsForEvaluations(RewordsForRollouts):
    def begin_evaluation(self) -> None:
        self.setting.reword(PLAIN)


@pytest.mark.parametrize("method", [RewordsForRollouts, RewordsForEvaluations, RewordsAgain])
def test_an_evaluation_of_a_checkpoint_is_not_in_plain_words_unasked(
    method: type[Rewords], tmp_path: Path
) -> None:
    config, recorder = saved_after_a_rollout(method, tmp_path)
    with TrainingRun(config, TableLlm(), make_corridor) as run:
        if method is not RewordsForRollouts:
            run.take_over(recorder.last)
            return
        with pytest.raises(CheckpointError, match=r"'moved'.*reword there, or in begin_eval"):
            run.take_over(recorder.last)


class Counts(Method):
    value: Any = None

    def state(self) -> dict[str, Any]:
        return {"own": self.value}


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({0: 1}, r"the key 0 of \['own'\] into a text"),
        ([1, (2, 3)], r"\['own'\]\[1\] from a tuple into a list"),
        (np.float32(1.0), r"\['own'\], a float32, which it cannot hold"),
        (float("nan"), r"\['own'\], nan, which is no JSON"),
    ],
)
def test_a_state_that_would_come_back_otherwise_is_not_saved(
    value: Any, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Counts, "value", value)
    recorder = MemoryRecorder(tmp_path)
    with TrainingRun(config_with(Counts), TableLlm(), make_corridor) as run:
        run.start(None)
        with pytest.raises(ConfigError, match=rf"Counts.state: JSON would change {told}"):
            run.save(recorder)
    assert recorder.last is None


def test_what_json_gives_back_is_taken() -> None:
    assert not changed_by_json({"a": [1, 2.5, None, True, "ü", {"b": []}], "c": -0.0})
    assert not changed_by_json({"numpy": [np.float64(0.1)]})


class Agent:
    """As little as an agent needs."""

    reads_prompts = enumerable = False
    follower = None
    columns: tuple[str, ...] = ()
    own_tensors: tuple[str, ...] = ()

    def __init__(self, setting: Any) -> None:
        from lamorel_ext.experience import Discount

        self.discount = Discount(0.9, 0.9, 1.0)

    def decide(self, scene: Any, draws: Any) -> Any:
        from lamorel_ext.experience import Decision

        n = len(scene.prompts)
        return Decision(np.full(n, 2), np.zeros(n), np.zeros(n))

    def values(self, scene: Any) -> np.ndarray:
        return np.zeros(len(scene.prompts))

    def action_probs(self, scene: Any) -> np.ndarray:
        return np.tile(np.eye(6)[2], (len(scene.prompts), 1))

    def update(self, rollout: Rollout, rng: np.random.Generator) -> dict[str, float]:
        return dict.fromkeys(self.columns, 1.0)

    def tensors(self) -> dict[str, torch.Tensor]:
        return {name: torch.zeros(1) for name in self.own_tensors}

    def load_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        pass


class Covers(Agent):
    columns = ("mood", "return")


class CoversTraining(Agent):
    columns = ("train_return",)


class Doubles(Agent):
    columns = ("mood", "mood")


class Talkative(Agent):
    def update(self, rollout: Rollout, rng: np.random.Generator) -> dict[str, float]:
        return {"mood": 1.0}


class Says(Agent):
    columns = ("mood",)
    mood: Any = None

    def update(self, rollout: Rollout, rng: np.random.Generator) -> dict[str, float]:
        return {"mood": self.mood}


class Silent(Agent):
    def update(self, rollout: Rollout, rng: np.random.Generator) -> None:  # type: ignore[override]
        pass


class Takes(Agent):
    own_tensors = ("body", "method.head")


def config_of(agent: type[Agent]) -> Config:
    config = small_config(arm={"agent": "own", "teacher": "none"}, feedback={"signal": "none"})
    return dataclasses.replace(
        config, agent=Plug(f"{__name__}.{agent.__name__}"), method=Plug(f"{__name__}.Best")
    )


@pytest.mark.parametrize(
    ("agent", "column"), [(Covers, "return"), (CoversTraining, "train_return"), (Doubles, "mood")]
)
def test_a_column_that_is_there_already_is_refused(agent: type[Agent], column: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"a column '{column}' already; agent \({agent.__name__}"
    ):
        TrainingRun(config_of(agent), TableLlm(), make_corridor)


@pytest.mark.parametrize(
    ("agent", "gives"),
    [
        (Talkative, r"mood, expected no others than its columns \(none\)"),
        (Silent, "None, expected"),
    ],
)
def test_what_an_agent_says_of_its_update_must_be_announced(agent: type[Agent], gives: str) -> None:
    with (
        TrainingRun(config_of(agent), TableLlm(), make_corridor) as run,
        pytest.raises(ConfigError, match=f"agent: {agent.__name__} gives {gives}"),
    ):
        run.start(None)
        run.rollout()


@pytest.mark.parametrize("mood", [np.float32(0.5), torch.tensor(0.5)])
def test_numbers_of_numpy_and_torch_are_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mood: Any
) -> None:
    monkeypatch.setattr(Says, "mood", mood)
    recorder = MemoryRecorder(tmp_path)
    with TrainingRun(config_of(Says), TableLlm(), make_corridor) as run:
        run.start(None)
        run.rollout()
        run.save(recorder)
        assert json.loads(json.dumps(run.progress.state()))["averages"]["totals"]["mood"] == 0.5
        assert run.evaluate()["mood"] == 0.5


@pytest.mark.parametrize("mood", [None, "good", torch.ones(2), np.ones(2)])
def test_what_is_no_number_is_named_with_its_column(
    monkeypatch: pytest.MonkeyPatch, mood: Any
) -> None:
    monkeypatch.setattr(Says, "mood", mood)
    with (
        TrainingRun(config_of(Says), TableLlm(), make_corridor) as run,
        pytest.raises(ConfigError, match="agent: Says: column mood: expected a number, got"),
    ):
        run.start(None)
        run.rollout()


def test_a_mean_of_nothing_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = MemoryRecorder(tmp_path)
    with TrainingRun(config_of(Says), TableLlm(), make_corridor) as run:
        run.start(None)
        for mood in (float("nan"), 0.5, np.float32("nan")):
            monkeypatch.setattr(Says, "mood", mood)
            run.rollout()
        run.save(recorder)  # refused where the mean were NaN
        assert run.evaluate()["mood"] == 0.5


class Decides(Agent):
    answer: Any = None
    worth: Any = None

    def decide(self, scene: Any, draws: Any) -> Any:
        return self.answer(super().decide(scene, draws))

    def values(self, scene: Any) -> Any:
        return self.worth(super().values(scene))


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda own: None, "decide: expected a Decision, got None"),
        ({"values": np.zeros((2, 1))}, r"decide: values: .*float64 of shape \(2, 1\)"),
        ({"log_probs": 0.0}, r"decide: log_probs: .*of shape \(\)"),
        ({"log_probs": torch.zeros(2, requires_grad=True)}, r"decide: log_probs: .*requires grad"),
        ({"actions": np.zeros(1, int)}, r"decide: actions: .* numbers, .*shape \(1,\)"),
        ({"actions": np.full(4, 0.7)}, r"decide: actions: .*here from 0 to 5, got 0.7"),
        ({"actions": np.full(4, -1)}, r"decide: actions: .*here from 0 to 5, got -1"),
        ({"actions": np.full(4, 6)}, r"decide: actions: .*here from 0 to 5, got 6"),
    ],
)
@pytest.mark.parametrize("evaluates", [False, True])
def test_what_is_no_decision_is_named(
    monkeypatch: pytest.MonkeyPatch, answer: Any, told: str, evaluates: bool
) -> None:
    replaced = answer if callable(answer) else lambda own: dataclasses.replace(own, **answer)
    monkeypatch.setattr(Decides, "answer", staticmethod(replaced))
    monkeypatch.setattr(Decides, "worth", staticmethod(lambda own: own))
    config = config_of(Decides)
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, eval_episodes=4))
    with TrainingRun(config, TableLlm(), make_corridor) as run:
        run.start(None)
        with pytest.raises(ConfigError, match=rf"agent: Decides\.{told}"):
            run.evaluate() if evaluates else run.rollout()


def test_values_of_another_shape_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Decides, "answer", staticmethod(lambda own: own))
    monkeypatch.setattr(Decides, "worth", staticmethod(lambda own: own[:, None]))
    with TrainingRun(config_of(Decides), TableLlm(), make_corridor) as run:
        run.start(None)
        with pytest.raises(ConfigError, match=r"agent: Decides\.values: .* of shape \(4, 1\)"):
            run.rollout()


@pytest.mark.parametrize("kind", [list, torch.tensor])
def test_lists_and_tensors_of_numbers_decide_too(
    monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    def answer(own: Any) -> Any:
        names = ("actions", "log_probs", "values")
        return dataclasses.replace(own, **{name: kind(getattr(own, name)) for name in names})

    monkeypatch.setattr(Decides, "answer", staticmethod(answer))
    monkeypatch.setattr(Decides, "worth", staticmethod(kind))
    with TrainingRun(config_of(Decides), TableLlm(), make_corridor) as run:
        run.start(None)
        run.rollout()
        assert isinstance(run.evaluate()["success"], float)


def test_a_tensor_with_a_name_of_the_methods_is_not_saved(tmp_path: Path) -> None:
    with TrainingRun(config_of(Takes), TableLlm(), make_corridor) as run:
        run.start(None)
        with pytest.raises(ConfigError, match=r"agent: its tensor 'method.head'"):
            run.save(MemoryRecorder(tmp_path))


class Keeps(Agent):
    kept: Any = None

    def tensors(self) -> Any:
        return self.kept


@pytest.mark.parametrize(
    ("kept", "told"),
    [
        (None, "expected torch tensors by name, got None"),
        ({"p": np.zeros(2)}, r"'p': expected a name and a torch tensor, got array\("),
        ({1: torch.zeros(2)}, "1: expected a name and a torch tensor"),
        ({"step": 3}, "'step': expected a name and a torch tensor, got 3"),
    ],
)
@pytest.mark.parametrize("whose", ["agent", "method"])
def test_what_is_no_tensor_is_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: Any, told: str, whose: str
) -> None:
    monkeypatch.setattr(Keeps, "kept", kept)
    if whose == "method":
        monkeypatch.setattr(Best, "tensors", Keeps.tensors)
        monkeypatch.setattr(Best, "kept", kept, raising=False)
    config = config_of(Agent if whose == "method" else Keeps)
    name = f"{__name__}.Best" if whose == "method" else "Keeps"
    recorder = MemoryRecorder(tmp_path)
    with TrainingRun(config, TableLlm(), make_corridor) as run:
        run.start(None)
        with pytest.raises(ConfigError, match=rf"{whose}: {name}.tensors: {told}"):
            run.save(recorder)
    assert recorder.last is None


class Ordered(gymnasium.Env[str, str]):
    """Its texts come in the order that is given, in every second copy the other way round."""

    made, turned = 0, False
    texts: tuple[str, ...] = ("stay", "go")

    def __init__(self) -> None:
        self.observation_space = self.action_space = gymnasium.spaces.Text(9)
        Ordered.made += 1
        odd = self.turned and Ordered.made % 2
        self.action_texts = self.texts[::-1] if odd else self.texts

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        return "a room", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return "a room", float(action == "go"), True, False, {}


def in_order() -> Config:
    env = EnvArgs(own=Plug(f"{__name__}.Ordered"), num_envs=2, name="rooms")
    config = dataclasses.replace(small_config(**SILENT), env=env)
    return dataclasses.replace(config, run=dataclasses.replace(config.run, evaluation="episodes"))


def test_a_students_actions_mean_the_same_in_every_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ordered, "turned", True)
    with TrainingRun(in_order(), None, make_env) as run:
        run.start(None)
        with pytest.raises(ConfigError, match=r"action_texts: rooms has .* need one order every"):
            run.rollout()


def test_a_checkpoints_actions_mean_the_same_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = MemoryRecorder(tmp_path)
    with TrainingRun(in_order(), None, make_env) as run:
        run.start(None)
        run.save(recorder)
    monkeypatch.setattr(Ordered, "texts", ("halt", "walk"))  # other words in their places
    with TrainingRun(in_order(), None, make_env) as run:
        run.take_over(recorder.last)
    monkeypatch.setattr(Ordered, "texts", ("go", "stay"))
    with TrainingRun(in_order(), None, make_env) as run:
        with pytest.raises(CheckpointError, match=r"numbers the actions \['stay', 'go'\], the env"):
            run.take_over(recorder.last)


class PaysOddly(Method):
    paid: Any = None

    def rewards(self, turns: Any) -> Any:
        return self.paid


@pytest.mark.parametrize(
    "paid", [[[1.0], [1.0, 2.0]], [["much"]], torch.zeros(4, 4, requires_grad=True), [[None]]]
)
def test_rewards_that_are_no_numbers_are_the_methods(
    monkeypatch: pytest.MonkeyPatch, paid: Any
) -> None:
    monkeypatch.setattr(PaysOddly, "paid", paid)
    with TrainingRun(config_with(PaysOddly), TableLlm(), make_corridor) as run:
        run.start(None)
        with pytest.raises(UpdateError, match="rewards of a method: expected finite numbers"):
            run.rollout()


# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [[0.1] * 24, [1000.1] * 7, [-0.3] * 3, [1e6 + 0.1] * 96])
def test_equal_numbers_are_not_told_apart_by_rounding(values: list[float]) -> None:
    assert not normalise(np.array(values)).any()
    network: Any = SimpleNamespace(
        policy=lambda *_: torch.zeros(len(values), 2).log_softmax(1),
        value=lambda _: torch.zeros(len(values)),
    )
    zeros = torch.zeros(len(values), dtype=torch.int64)
    advantages = torch.tensor(values)
    batch: Any = SimpleNamespace(
        features=None, codes=None, hints=None, offered=None, actions=zeros,
        old_log_probs=torch.full((len(values),), 0.5).log(), advantages=advantages,
        returns=advantages,
    )  # fmt: skip
    losses = ppo_losses(network, batch, small_config().student)
    assert float(losses.policy_loss) == 0.0


def test_a_small_difference_is_still_one() -> None:
    assert normalise(np.array([1.0, 1.0001])) == pytest.approx([-1.0, 1.0], abs=1e-3)


def test_as_many_minibatches_as_samples_still_teach() -> None:
    moved = []
    for minibatches in (4, 2):
        config = small_config(
            **SILENT,
            env={"num_envs": 1},
            student={"num_steps": 4, "num_minibatches": minibatches, "entropy_coef": 0.0},
        )
        with TrainingRun(config, None, make_corridor) as run:
            run.start(None)
            before = {key: value.clone() for key, value in run.agent.tensors().items()}
            for _ in range(4):
                run.rollout()
            after = run.agent.tensors()
        moved.append(
            max(
                float((after[key] - before[key]).abs().max())
                for key in before
                if "actor" in key and "adam" not in key
            )
        )
    assert moved[0] == moved[1] > 0


def test_the_baseline_is_the_mean_of_what_is_taught() -> None:
    said = Said(
        ("a", "b", "c"),
        (("x",), ("x", "y"), ("x", "y")),
        np.array([0, 0, 1]),
        np.zeros(3),
        np.zeros(3),
    )
    lesson = Lesson(said, np.array([1.0, -1.0, -1.0]), None, said.log_probs)
    taught = feedback_request(_less_mean([lesson], 2), {}).data["signals"]
    assert taught.tolist() == [0.0, 0.0]
    taught = feedback_request(_less_mean([lesson], 1), {"normalise": False}).data["signals"]
    assert taught.tolist() == pytest.approx([4 / 3, -2 / 3, -2 / 3])


def test_a_memory_holds_more_actions_than_a_byte_has_numbers() -> None:
    replay = Replay(8)
    replay.add(["a"], np.array([299]), np.zeros(1), ["b"], np.zeros(1, dtype=bool))
    assert replay.sample(1, np.random.default_rng(0)).actions.tolist() == [299]


@pytest.mark.parametrize("text", ["a \udc80", "\ud83d", "b\nc \udcffd"])
def test_a_text_with_half_a_letter_is_read_like_any_other(text: str) -> None:
    assert hashed_words(text, 8).any() and len(word_places(text)) >= 1
    whole = text.encode(errors="replace").decode()
    assert (hashed_words(text, 512) != hashed_words(whole, 512)).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.bool, torch.int8])
def test_agents_with_numbers_of_any_type_are_compared(dtype: torch.dtype) -> None:
    tensors = {"a": torch.ones(2, 3).to(dtype).t(), "b": torch.tensor(1).to(dtype)}
    same = {name: own.clone() for name, own in tensors.items()}
    assert fingerprint(tensors) == fingerprint(same)
    same["a"][0, 0] = 0
    assert fingerprint(tensors) != fingerprint(same)
    assert fingerprint({"c": torch.zeros(0, 3, dtype=dtype)})
    strides = torch.as_strided(torch.ones(1).to(dtype), (1,), (0,))  # NumPy makes such ones
    assert fingerprint({"c": strides}) == fingerprint({"c": torch.ones(1).to(dtype)})


class Placed(FixedAgent):
    """Says where its weights would be."""

    def __init__(self, setting: AgentSetting) -> None:
        super().__init__(UniformActor())
        self.device = setting.device


def test_an_agent_of_ones_own_is_told_the_gpu_of_its_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def made(client: int, *devices: int) -> Any:
        config = small_config(**SILENT | {"arm": {"agent": "own", "teacher": "none"}})
        lamorel = config.lamorel_args
        setup = dataclasses.replace(lamorel.distributed_setup_args, client_devices=devices)
        lamorel = dataclasses.replace(lamorel, distributed_setup_args=setup)
        own = Plug(f"{__name__}.{Placed.__name__}")
        config = dataclasses.replace(config, agent=own, lamorel_args=lamorel)
        return make_agent(config, TableLlm(), client=client)

    assert made(0).device == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [made(client, 3, 1).device for client in (0, 1)] == ["cuda:3", "cuda:1"]
    with pytest.raises(
        ConfigError, match="rl client 1 is to use GPU 4 of its machine, which has 4"
    ):
        made(1, 0, 4)
