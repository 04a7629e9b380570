"""Methods beside the feedback edge: their hooks in a run, the KL prior by hand, and methods,
agents, updaters and heads of the user's own.
"""

import dataclasses
import math
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lamorel_ext.agents.student_ppo import LossTerm
from lamorel_ext.config import Config, Plug
from lamorel_ext.errors import CheckpointError, ConfigError, UpdateError
from lamorel_ext.experience import Discount, Rollout
from lamorel_ext.methods.base import Method, MethodSetting, make_method
from lamorel_ext.methods.prior import Prior, PriorOptions
from lamorel_ext.prompts import ACTION_NAMES
from lamorel_ext.rl import gae
from lamorel_ext.training.collecting import with_rewards
from lamorel_ext.training.loop import train
from lamorel_ext.training.run import TrainingRun
from tests.training.student_fakes import MemoryRecorder, TableLlm, make_corridor, small_config
from tests.training.test_training import FragileRecorder, Stops, without_seconds

SILENT = {"arm": {"teacher": "none"}, "feedback": {"signal": "none"}}
PRIOR = "lamorel_ext.methods.prior.Prior"


def config_with(method: Plug, **groups: Any) -> Config:
    return dataclasses.replace(small_config(**{**SILENT, **groups}), method=method)


def run_of(method: Plug, llm: TableLlm | None = None, **groups: Any) -> MemoryRecorder:
    recorder = MemoryRecorder(Path(tempfile.mkdtemp()))
    train(config_with(method, **groups), llm or TableLlm(), recorder, make_corridor)
    return recorder


def prior_of(llm: TableLlm, **options: Any) -> Prior:
    config = config_with(Plug(PRIOR))
    with TrainingRun(config, llm, make_corridor) as run:
        rng = np.random.default_rng(0)
        setting = MethodSetting(config, llm, run.agent, rng, lambda wording: None)
        return Prior(setting, PriorOptions(**options))


class Told(Method):
    """Notes what it is asked, pays every step, and says a number."""

    name = "told"
    columns = ("calls",)

    def __init__(self, setting: MethodSetting, pay: float = 0.0) -> None:
        super().__init__(setting)
        self.calls: list[str] = []
        self._pay, self._draws = pay, 0.0

    def rewards(self, turns: Any) -> np.ndarray:
        self.calls.append("rewards")
        return np.full((len(turns), turns[0].step.rewards.shape[0]), self._pay)

    def loss_term(self, rollout: Rollout) -> LossTerm | None:
        self.calls.append("loss_term")
        return None

    def learn(self, rollout: Rollout) -> dict[str, float]:
        self.calls.append("learn")
        self._draws += float(self.setting.rng.random())
        return {"calls": self._draws}

    def state(self) -> dict[str, Any]:
        return {"draws": self._draws}

    def restore(self, state: dict[str, Any]) -> None:
        self._draws = state["draws"]

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"draws": torch.tensor(self._draws)}

    def load_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        assert tensors["draws"].item() == pytest.approx(self._draws)


class Wrong(Told):
    def rewards(self, turns: Any) -> np.ndarray:
        return np.array([[math.nan]])


class Pays(Method):
    def rewards(self, turns: Any) -> np.ndarray:
        return np.stack([turn.step.rewards for turn in turns])


class Talkative(Told):
    def learn(self, rollout: Rollout) -> dict[str, float]:
        return {"calls": 1.0, "moods": 2.0}


TOLD = Plug(f"{__name__}.Told", '{"pay": 0.5}')


def test_the_hooks_come_in_their_order_and_their_numbers_in_their_columns() -> None:
    config = config_with(TOLD)
    with TrainingRun(config, TableLlm(), make_corridor) as run:
        run.start(None)
        run.rollout()
        assert isinstance(run.method, Told)
        assert run.method.calls == ["rewards", "loss_term", "learn"]
        assert run.evaluate()["told_calls"] > 0


def test_a_method_resumes_with_its_state_its_weights_and_its_random_numbers(
    tmp_path: Path,
) -> None:
    config = config_with(TOLD)
    one = MemoryRecorder(tmp_path / "one")
    train(config, TableLlm(), one, make_corridor)
    fragile = FragileRecorder(tmp_path / "two")
    with pytest.raises(Stops):
        train(config, TableLlm(), fragile, make_corridor)
    fragile.rollouts_left = 9
    train(config, TableLlm(), fragile, make_corridor)
    assert without_seconds(fragile.rows) == without_seconds(one.rows)


def test_other_rewards_change_what_is_learnt_and_not_what_is_reported() -> None:
    plain, paid = run_of(Plug(f"{__name__}.Told")), run_of(TOLD)
    assert plain.rows[0]["return"] == paid.rows[0]["return"]
    assert plain.rows[-1]["student_value_loss"] != paid.rows[-1]["student_value_loss"]


def test_advantages_of_other_rewards_by_hand() -> None:
    rewards, values = np.array([[0.0], [1.0]]), np.array([[0.2], [0.4]])
    errors = np.array([[0.3], [0.6]])
    done = np.array([[False], [True]])
    discount = Discount(0.9, 0.5, reward_scale=2.0)
    rollout = Rollout((), rewards, done, done, values, errors, gae(errors, done, 0.9, 0.5), rewards)
    shaped = with_rewards(rollout, np.array([[1.0], [0.5]]), discount)
    # errors: .3 + 2 * 1 = 2.3 and .6 - 2 * .5 = -.4; advantages: 2.3 + .45 * -.4 = 2.12 and -.4
    assert np.allclose(shaped.errors[:, 0], [2.3, -0.4])
    assert np.allclose(shaped.advantages[:, 0], [2.12, -0.4])
    assert (shaped.rewards == rewards).all()
    listed = with_rewards(rollout, [[1.0], [0.5]], discount)
    assert (listed.advantages == shaped.advantages).all() and listed.learnt_rewards.shape == (2, 1)


def test_rewards_that_are_none_end_the_run_with_their_shape() -> None:
    with pytest.raises(UpdateError, match=r"rewards of a method: expected .*\(16, 4\)|shape"):
        run_of(Plug(f"{__name__}.Wrong"))


@pytest.mark.parametrize("agent", ["random", "bot", "cloning"])
def test_rewards_are_refused_beside_an_agent_that_learns_from_none(agent: str) -> None:
    with pytest.raises(ConfigError, match=rf"Pays gives rewards, but arm.agent={agent} learn"):
        run_of(Plug(f"{__name__}.Pays"), arm={"agent": agent})


def test_rewards_at_the_rollouts_end_are_refused_where_feedback_needs_them_at_once() -> None:
    groups = {"arm": {"teacher": "llm"}, "feedback": {"signal": "previous", "every": 1}}
    with pytest.raises(ConfigError, match=r"method: .*Told gives rewards when a rollout is over"):
        run_of(TOLD, **groups)


# --- the prior ------------------------------------------------------------------------------------


def test_the_priors_divergence_by_hand() -> None:
    prior = prior_of(TableLlm(), coef=0.5, source="uniform")
    rollout = Rollout((_turn(2),), *[np.zeros((1, 2))] * 7)
    term = prior.loss_term(rollout)
    assert term is not None
    probs = torch.tensor([[0.5, 0.5, 0, 0, 0, 0], [1 / 6] * 6]).clamp_min(1e-30)
    # KL to uniform: log 6 - entropy = log 6 - log 2 = log 3 and 0; half of their mean
    assert term(torch.tensor([0, 1]), probs.log()).item() == pytest.approx(math.log(3) / 4)
    assert prior.learn(rollout) == {"weight": 0.5, "kl": pytest.approx(math.log(3) / 2)}


@pytest.mark.parametrize("direction", ["student", "llm"])
def test_the_priors_pull_is_the_derivative_of_the_divergence_it_names(direction: str) -> None:
    llm = TableLlm(favourite="turn left", strength=1.3)
    prior = prior_of(llm, coef=2.0, direction=direction, temperature=2.0)
    rollout = Rollout((_turn(3),), *[np.zeros((1, 3))] * 7)
    term = prior.loss_term(rollout)
    assert term is not None
    table = prior._log_probs(rollout)
    rows = torch.tensor([2, 0])

    def divergence(logits: np.ndarray) -> float:
        own = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        given = table[rows.numpy()]
        first, second = (own, given) if direction == "student" else (given, own)
        return float(2.0 * (np.exp(first) * (first - second)).sum(axis=1).mean())

    logits = np.random.default_rng(1).normal(size=(2, len(ACTION_NAMES)))
    tensor = torch.tensor(logits, requires_grad=True)
    value = term(rows, torch.log_softmax(tensor, 1))
    value.backward()  # type: ignore[no-untyped-call]
    assert value.item() == pytest.approx(divergence(logits), rel=1e-5)
    for place in np.ndindex(*logits.shape):
        step = np.zeros_like(logits)
        step[place] = 1e-5
        slope = (divergence(logits + step) - divergence(logits - step)) / 2e-5
        assert tensor.grad is not None
        assert tensor.grad[place].item() == pytest.approx(slope, abs=1e-5)


def test_the_priors_weight_anneals_in_a_straight_line_and_then_asks_nothing() -> None:
    llm = TableLlm()
    prior = prior_of(llm, coef=1.0, anneal_steps=4, source="llm")
    rollout = Rollout((_turn(2),), *[np.zeros((1, 2))] * 7)
    weights = []
    for _ in range(3):
        term = prior.loss_term(rollout)
        weights.append(prior.learn(rollout)["weight"])
    assert weights == [1.0, 0.5, 0.0] and term is None
    again = prior_of(llm, coef=1.0, anneal_steps=4)
    again.restore(prior.state())
    assert again.loss_term(rollout) is None


def test_a_student_with_a_good_prior_learns_what_one_with_a_uniform_one_does_not() -> None:
    told = TableLlm(favourite="go forward", strength=4.0)
    options = '{"coef": 2.0, "source": "%s"}'
    with_llm, without = (
        run_of(Plug(PRIOR, options % source), told, run={"total_steps": 128, "eval_every": 128})
        for source in ("llm", "uniform")
    )
    assert with_llm.rows[-1]["prior_kl"] < with_llm.rows[-1]["student_entropy"] + 2.0
    assert with_llm.rows[-1]["llm_prompts"] > 0 and without.rows[-1]["llm_prompts"] == 0
    assert with_llm.rows[-1]["success"] > without.rows[-1]["success"]


def test_numbers_that_a_method_did_not_announce_are_named() -> None:
    with pytest.raises(ConfigError, match=r"Talkative gives moods, expected no others .*\(calls\)"):
        run_of(Plug(f"{__name__}.Talkative"))


@pytest.mark.parametrize("target", ["types.SimpleNamespace", "builtins.dict", "builtins.object"])
def test_what_is_no_method_is_refused(target: str) -> None:
    made = {"types.SimpleNamespace": SimpleNamespace(), "builtins.dict": {}}.get(target, object())
    plug = SimpleNamespace(target=target, make=lambda key, setting: made)
    setting: Any = SimpleNamespace(config=SimpleNamespace(method=plug))
    with pytest.raises(ConfigError, match=rf"method: {target} gives a .*, expected a lamorel_ext"):
        make_method(setting)


def test_a_prior_without_a_student_is_refused() -> None:
    with pytest.raises(ConfigError, match="method: a prior draws a student, but arm.agent is llm"):
        run_of(Plug(PRIOR), arm={"agent": "llm_policy"})


def _turn(num_envs: int) -> Any:
    class Shown:
        prompts = tuple(f"prompt {place}" for place in range(num_envs))
        candidates = (ACTION_NAMES,) * num_envs

    return Shown()


def test_a_checkpoint_without_the_methods_state_is_refused(tmp_path: Path) -> None:
    recorder = MemoryRecorder(tmp_path)
    train(small_config(**SILENT), None, recorder, make_corridor)
    assert recorder.last is not None
    with TrainingRun(config_with(TOLD), TableLlm(), make_corridor) as run:
        with pytest.raises(CheckpointError):
            run.start(recorder.last)
