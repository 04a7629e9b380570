"""The recipes of docs/methods.md: every bonus, score and loss by hand, and each of them in runs
that are stopped and resumed.
"""

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lamorel_ext.agents.making import AgentSetting
from lamorel_ext.config import Config, Plug, load_config
from lamorel_ext.errors import CheckpointError, ConfigError, NotThereError, RequestError
from lamorel_ext.llm.updaters.batches import Scored
from lamorel_ext.methods.base import MethodSetting
from lamorel_ext.methods.constitution import (
    Constitution,
    ConstitutionOptions,
    judge_question,
    masked,
    verdicts,
)
from lamorel_ext.methods.goals import Goals, GoalsOptions, captions, goals_of
from lamorel_ext.methods.pairs import Pair, read_rankings
from lamorel_ext.methods.pairs.options import PairOptions
from lamorel_ext.methods.pairs.updater import PairUpdater
from lamorel_ext.methods.preferences import (
    Preferences,
    payments,
    ranked,
    weights_of_returns,
)
from lamorel_ext.methods.preferences.options import PreferencesOptions
from lamorel_ext.methods.preferences.reward_model import RewardModel, ranked_episodes
from lamorel_ext.methods.prompt_search import EDITS, PromptSearch, PromptSearchOptions
from lamorel_ext.methods.proxy_reward import ProxyReward, ProxyRewardOptions, question
from lamorel_ext.methods.skills import Skills, SkillsOptions, monologue, values_loss
from lamorel_ext.methods.told import Told, read_traces, told_in
from lamorel_ext.prompts import ACTION_NAMES, glam_prompt
from lamorel_ext.randomness import Draws, make_rng
from lamorel_ext.rpc.clients import Clients
from lamorel_ext.training.loop import train
from lamorel_ext.training.run import TrainingRun
from lamorel_ext.training.shared import LedRecorder, SharedClient
from lamorel_ext.training.trace_lines import _teacher_weights
from lamorel_ext.types import UpdateRequest, UpdateResult
from tests.training.student_fakes import MemoryRecorder, TableLlm, make_corridor, small_config
from tests.training.test_several_clients import together
from tests.training.test_traces import RememberingLlm
from tests.training.test_training import FragileRecorder, Stops, without_seconds
from tests.updaters.updater_fakes import FakeHost

RECIPES = (
    "prior",
    "proxy_reward",
    "goals",
    "preferences",
    "constitution",
    "prompt_search",
    "skills",
    "reward_program",
)
GAMMA = 0.9


class PairLlm(TableLlm):
    """Also learns from pairs: the better text's score goes up, the worse one's down."""

    def update_batch(self, request: UpdateRequest) -> UpdateResult:
        if request.updater != "preferences":
            return super().update_batch(request)
        self.requests.append(request)
        for prompt, texts in zip(request.prompts, request.candidates, strict=True):
            for text, sign in zip(texts, (1.0, -1.0), strict=True):
                moved = self._score(prompt, text) + sign * float(request.options["lr"])
                self.scores[f"{prompt}|{text}"] = moved
        return UpdateResult({"loss": 0.7, "margin": 0.0, "accuracy": 0.0, "steps": 1.0})


def setting(llm: TableLlm | None = None, num_envs: int = 1, **more: Any) -> MethodSetting:
    config = small_config(env={"num_envs": num_envs})
    agent: Any = SimpleNamespace(discount=SimpleNamespace(gamma=GAMMA), reads_prompts=True)
    rng = np.random.default_rng(0)
    told: dict[str, Any] = {"reword": lambda wording: None, **more}
    return MethodSetting(config, llm or PairLlm(), agent, rng, **told)


def turn(
    seen: str = "You see a wall 1 step forward",
    ended: str = "",
    prompt: str = "prompt",
    action: int = 2,
    reward: float = 0.0,
) -> Any:
    """One step of one environment; it ended by the task or by the step limit."""
    observations = SimpleNamespace(missions=("go",), descriptions=((*seen.split(", "),),))
    step = SimpleNamespace(
        rewards=np.array([reward]),
        terminated=np.array([ended == "task"]),
        done=np.array([bool(ended)]),
    )
    return SimpleNamespace(
        prompts=(prompt,),
        candidates=(ACTION_NAMES,),
        step=step,
        stepped=SimpleNamespace(reached=SimpleNamespace(observations=observations)),
        decision=SimpleNamespace(actions=np.array([action])),
    )


def config_of(recipe: str, **groups: Any) -> Config:
    # the runs here have room for one round of reward programs
    short = ["method.rounds=1"] if recipe == "reward_program" else []
    chosen = load_config([f"arm={recipe}", *short])
    config = small_config(**groups)
    return dataclasses.replace(
        config, arm=chosen.arm, feedback=chosen.feedback, method=chosen.method, agent=chosen.agent
    )


# --- in a run -------------------------------------------------------------------------------------


def check_resume(config: Config, folder: Path) -> None:
    """A run that was stopped goes on as if it had not been."""
    one = MemoryRecorder(folder / "one")
    train(config, PairLlm(), one, make_corridor)
    fragile = FragileRecorder(folder / "two")
    with pytest.raises(Stops):
        train(config, PairLlm(), fragile, make_corridor)
    fragile.rollouts_left = 9
    train(config, PairLlm(), fragile, make_corridor)
    assert without_seconds(fragile.rows) == without_seconds(one.rows)
    assert one.last is not None and fragile.last is not None
    assert all(
        torch.equal(tensor, fragile.last.tensors[key]) for key, tensor in one.last.tensors.items()
    )


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_that_was_stopped_goes_on_as_if_it_had_not_been(
    recipe: str, tmp_path: Path
) -> None:
    check_resume(config_of(recipe), tmp_path)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_curve_of_a_recipe_with_two_clients_is_that_of_one(recipe: str, tmp_path: Path) -> None:
    config = config_of(recipe)
    one, two = (MemoryRecorder(tmp_path / name) for name in ("one", "two"))
    train(config, PairLlm(), one, make_corridor)
    llm = PairLlm()

    def client(clients: Clients) -> None:
        led = LedRecorder(two if clients.rank == 0 else None, clients)
        train(config, SharedClient(llm, clients), led, make_corridor, clients)

    assert together(2, client) == [None, None]
    assert without_seconds(two.rows) == without_seconds(one.rows)
    assert one.last is not None and two.last is not None
    assert one.last.tensors.keys() == two.last.tensors.keys()
    assert all(torch.equal(own, two.last.tensors[key]) for key, own in one.last.tensors.items())


class RememberingPairLlm(RememberingLlm, PairLlm):
    """Both: a server that would notice a question too many, and learns from pairs."""


@pytest.mark.parametrize("recipe", RECIPES)
def test_recording_a_recipe_changes_nothing_and_tells_what_was_asked(
    recipe: str, tmp_path: Path
) -> None:
    recorded, plain = (MemoryRecorder(tmp_path / name) for name in ("traced", "plain"))
    made = []
    for every, recorder in ((1, recorded), (0, plain)):
        llm = RememberingPairLlm()
        train(config_of(recipe, run={"trace_every": every}), llm, recorder, make_corridor)
        made.append(llm.scores)
    assert without_seconds(recorded.rows) == without_seconds(plain.rows) and made[0] == made[1]
    notes = [
        line for trace in recorded.traces.values() for line in trace.lines if line["kind"] == "note"
    ]
    assert notes and all(note["answered"] and note["changed"] for note in notes)
    assert all(set(note) == {"kind", "step", "asked", "answered", "changed"} for note in notes)
    assert all(note["step"] is None or 0 <= note["step"] < 8 for note in notes)


@pytest.mark.parametrize("recipe", ["preferences", "constitution"])
def test_a_trace_has_the_teachers_scores_after_a_methods_update(
    recipe: str, tmp_path: Path
) -> None:
    recorder = MemoryRecorder(tmp_path)
    train(config_of(recipe, run={"trace_every": 1}), PairLlm(), recorder, make_corridor)
    steps = [
        line["llm"]
        for trace in recorder.traces.values()
        for line in trace.lines
        if line["kind"] == "step" and line["llm"]["later"] is not None
    ]
    assert steps and any(step["later"] != step["before"] for step in steps)


@pytest.mark.parametrize("recipe", ["constitution", "preferences", "prompt_search"])
@pytest.mark.parametrize("agent", ["drrn", "cloning", "random", "heads"])
def test_an_agent_to_which_no_llm_says_anything_is_refused(recipe: str, agent: str) -> None:
    own: dict[str, Any] = {"agent": "llm_policy", "action_heads": True, "weights": "fresh"}
    arm = own if agent == "heads" else {"agent": agent}
    config = config_of(recipe)
    config = dataclasses.replace(config, arm=dataclasses.replace(config.arm, **arm))
    if (recipe, agent) == ("prompt_search", "heads"):  # its prompts have the instruction too
        TrainingRun(config, PairLlm(), make_corridor)
        return
    with pytest.raises(ConfigError, match=f"method: {recipe} needs an LLM that"):
        TrainingRun(config, PairLlm(), make_corridor)


# --- proxy_reward ---------------------------------------------------------------------------------


def proxy(llm: TableLlm, **options: Any) -> ProxyReward:
    return ProxyReward(setting(llm), ProxyRewardOptions(**options))


def odds_of(llm: TableLlm, told: list[str]) -> float:
    asked = question("go", told)
    return llm._score(asked, "yes") - llm._score(asked, "no")


def test_shaped_rewards_by_hand_also_across_rollouts() -> None:
    llm = TableLlm()
    method = proxy(llm, coef=2.0, every=2, window=2)
    line = "go forward: You see a wall 1 step forward"
    phi = odds_of(llm, [line, line])
    # a question after every second step; nothing is known before it
    assert method.rewards([turn(reward=0.5)])[:, 0].tolist() == [0.5]
    again = proxy(llm, coef=2.0, every=2, window=2)
    again.restore(json.loads(json.dumps(method.state())))
    rest = [turn(), turn(), turn(ended="task", reward=1.0), turn()]
    expected = [
        2 * GAMMA * phi,  # the question's answer comes in
        2 * (GAMMA * phi - phi),  # it stands
        1.0 - 2 * phi,  # the task's end is worth nothing
        0.0,  # a new episode begins
    ]
    assert again.rewards(rest)[:, 0] == pytest.approx(expected)


def test_a_potential_changes_no_return_from_an_episodes_start() -> None:
    method = proxy(TableLlm(favourite="yes", strength=2.0), every=1)
    turns = [turn(f"You see a wall {step} steps forward") for step in range(2, 7)]
    bonus = method.rewards([*turns, turn(ended="task")])[:, 0]
    assert np.abs(bonus).max() > 0.05
    assert float(bonus @ GAMMA ** np.arange(6)) == pytest.approx(0.0, abs=1e-12)


def test_a_cut_off_episode_keeps_its_potential_for_the_value_behind_it() -> None:
    llm = TableLlm()
    method = proxy(llm, coef=1.0, every=1)
    line = "go forward: You see a wall 1 step forward"
    phi = odds_of(llm, [line])
    assert method.rewards([turn(ended="limit"), turn()])[:, 0] == pytest.approx(
        [GAMMA * phi, GAMMA * phi]
    )


def test_the_papers_own_form_pays_the_log_odds_at_questions_and_at_the_end() -> None:
    llm = TableLlm(favourite="yes", strength=50.0)
    method = proxy(llm, coef=0.1, every=3, limit=4.0, potential=False)
    paid = method.rewards([turn(), turn(ended="task"), turn(), turn(), turn()])[:, 0]
    assert paid == pytest.approx([0.0, 0.4, 0.0, 0.0, 0.4])  # 50 nats and more are cut off at 4


def test_shuffled_transcripts_pay_the_same_in_another_order() -> None:
    llm = TableLlm()
    turns = [turn(f"You see a wall {step} steps forward") for step in range(2, 40)]
    paid = {
        kind: proxy(llm, every=1, potential=False, transcripts=kind).rewards(turns)[:, 0]
        for kind in ("own", "shuffled")
    }
    assert sorted(paid["own"]) == pytest.approx(sorted(paid["shuffled"]))
    assert paid["own"].tolist() != paid["shuffled"].tolist()


@pytest.mark.parametrize("questions", [1, 2, 3])
def test_shuffled_transcripts_never_pay_their_own_answers_however_few_there_are(
    questions: int,
) -> None:
    methods = [proxy(TableLlm(), every=1, potential=False, transcripts="shuffled")]
    methods.append(proxy(TableLlm(), every=1, potential=False))
    alike = []
    for rollout in range(20):
        told = [turn(f"You see a wall {9 * rollout + i} steps forward") for i in range(questions)]
        mixed, own = (method.rewards(told)[:, 0].tolist() for method in methods)
        alike.append(mixed == own)
    assert not any(alike)


@pytest.mark.parametrize("questions", [2, 3, 4, 8, 128])
def test_no_question_keeps_its_own_answer(questions: int) -> None:
    method = proxy(TableLlm(), transcripts="shuffled")
    own = np.arange(float(questions))
    for _ in range(50):
        mixed = method._of_others(own)
        assert sorted(mixed) == own.tolist() and not (mixed == own).any()


def test_a_rollouts_only_question_gets_the_answer_to_the_one_before_also_after_a_resume() -> None:
    llm = TableLlm()
    method = proxy(llm, coef=1.0, every=1, potential=False, transcripts="shuffled")
    first, second = (turn(f"You see a wall {step} steps forward") for step in (2, 3))
    assert method.rewards([first])[:, 0].tolist() == [0.0]  # nothing was asked before
    again = proxy(llm, coef=1.0, every=1, potential=False, transcripts="shuffled")
    again.restore(json.loads(json.dumps(method.state())))
    own = odds_of(llm, ["go forward: You see a wall 2 steps forward"])
    assert again.rewards([second])[:, 0] == pytest.approx([own])


# --- goals ----------------------------------------------------------------------------------------


def test_goals_that_nobody_could_set_are_refused() -> None:
    for env, words in (
        ({"language": "fr"}, "env.language is fr"),
        ({"own": Plug("my_game.Game", "{}")}, "env._target_ is my_game.Game"),
    ):
        made = dataclasses.replace(setting(), config=small_config(env=env))
        with pytest.raises(ConfigError, match=words):
            Goals(made, GoalsOptions())


def test_goals_of_a_prompt_with_a_history_are_about_what_is_seen_now() -> None:
    before, now = ["You see a red ball 2 steps left"], ["You see a wall", "You see a grey key here"]
    prompt = glam_prompt("go", [before, now], ["turn right"])
    assert goals_of(prompt) == ("go to the grey key", "pick up the grey key", "look around")
    asked = Goals(setting(), GoalsOptions())._question(prompt)
    assert asked.endswith("You see a wall, You see a grey key here, \nNext goal:")


RED = (
    "Goal of the agent: go\n"
    "Observation: You see a red ball 2 steps forward, You see a wall\nAction:"
)


def test_goals_are_about_the_objects_seen() -> None:
    assert goals_of(RED) == ("go to the red ball", "pick up the red ball", "look around")
    assert goals_of("Observation: You see a wall 1 step left") == ("look around",)


def test_captions_tell_what_is_at_hand_and_what_was_picked_up() -> None:
    assert captions(("You see a red ball 1 step forward",), ()) == ["go to the red ball"]
    assert captions(("You carry a red ball",), ()) == ["pick up the red ball"]
    assert captions(("You carry a red ball",), ("red ball",)) == []
    assert captions(("You see a red ball 1 step left",), ()) == []


def test_a_goal_pays_once_an_episode() -> None:
    llm = TableLlm(favourite="go to the red ball", strength=9.0)
    method = Goals(setting(llm), GoalsOptions(coef=0.25))
    near = "You see a red ball 1 step forward"
    turns = [
        turn(near, prompt=RED),
        turn(near, prompt=RED),
        turn(near, prompt=RED, ended="task", reward=1.0),
        turn(near, prompt=RED),
    ]
    assert method.rewards(turns)[:, 0].tolist() == [0.25, 0.0, 1.0, 0.25]
    assert method.learn(None) == {"reached": 0.5, "bonus": 0.125}  # type: ignore[arg-type]


def test_goals_reached_are_counted_also_where_they_pay_nothing() -> None:
    llm = TableLlm(favourite="go to the red ball", strength=9.0)
    method = Goals(setting(llm), GoalsOptions(coef=0.0))
    turns = [turn("You see a red ball 1 step forward", prompt=RED), turn(prompt=RED)]
    assert method.rewards(turns)[:, 0].tolist() == [0.0, 0.0]
    assert method.learn(None) == {"reached": 0.5, "bonus": 0.0}  # type: ignore[arg-type]


def test_a_goal_word_for_word_is_reached_whatever_its_vector_rounds_to() -> None:
    llm = TableLlm(favourite="go to the red ball", strength=9.0)
    method = Goals(setting(llm), GoalsOptions(threshold=1.0))
    method._encode = lambda text: np.full(3, 0.57735, dtype=np.float32)  # a square of .99999
    turns = [turn("You see a red ball 1 step forward", prompt=RED)]
    assert method.rewards(turns)[:, 0].tolist() == [0.1]


def test_a_goal_that_the_llm_does_not_set_pays_nothing() -> None:
    llm = TableLlm(favourite="look around", strength=9.0)
    method = Goals(setting(llm), GoalsOptions())
    turns = [turn("You see a red ball 1 step forward", prompt=RED)]
    assert method.rewards(turns)[:, 0].tolist() == [0.0]


def test_lists_of_goals_of_any_length_are_asked_at_once_and_each_state_has_its_own() -> None:
    llm = TableLlm(favourite="go to the red ball", strength=9.0)
    method = Goals(setting(llm), GoalsOptions(num_goals=3))
    empty = "Observation: You see a wall 1 step left"
    near, far = method._listed((RED, empty))
    assert near[0] == "go to the red ball" and sorted(near) == sorted(goals_of(RED))
    assert far == ("look around",) and len(llm.requests) == 1


def test_random_goals_ask_no_llm() -> None:
    llm = TableLlm()
    method = Goals(setting(llm), GoalsOptions(choice="random"))
    near = turn("You see a red ball 1 step forward", prompt=RED, ended="task")
    paid = method.rewards([near] * 300)[:, 0]
    assert llm.requests == [] and 0.2 < float((paid > 0).mean()) < 0.47  # one goal in three


def test_goals_that_the_llm_writes_are_paid_and_empty_ones_are_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = {"Next goal:": "go to the red ball", "other\nNext goal:": ""}

    def write(llm: Any, prompts: tuple[str, ...], size: int, seed: int) -> Any:
        assert size == 5
        return [written[prompt] for prompt in prompts], np.zeros(len(prompts))

    monkeypatch.setattr("lamorel_ext.methods.goals.sample_texts", write)
    goals = Goals(setting(), GoalsOptions(coef=0.5, choice="written", max_new_tokens=5))
    seen = "You see a red ball 1 step forward"
    turns = [turn(prompt="other\nAction:", seen=seen), turn(prompt="Action:", seen=seen)]
    assert goals.rewards(turns)[:, 0].tolist() == [0.0, 0.5]
    assert goals.notes[0].answered == "" and goals.notes[1].asked == "Next goal:"


def test_a_missing_sentence_encoder_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"method.encoder: minilm is not installed"):
        Goals(setting(), GoalsOptions(encoder="minilm"))


# --- preferences and constitution -----------------------------------------------------------------


def said(prompt: str, chosen: int) -> Any:
    texts = ("left", "right", "")
    scores = np.log([[0.5, 0.25, 0.25]])
    words = SimpleNamespace(
        prompts=(prompt,), candidates=(texts,), chosen=np.array([chosen]), scores=scores
    )
    return SimpleNamespace(decision=SimpleNamespace(said=words))


def test_a_states_best_guidance_is_ranked_above_its_worst() -> None:
    turns = [said("a", 0), said("a", 1), said("a", 0), said("b", 0), said("c", 0), said("c", 1)]
    turns.append(said("b", 2))  # an empty text is no guidance
    advantages = np.array([[0.5], [0.1], [-0.5], [9.0], [1.0], [1.0], [0.0]])
    rollout: Any = SimpleNamespace(turns=turns, advantages=advantages)
    # a: left has (.5 - .5) / 2 = 0, right .1; b: one text; c: a tie
    assert ranked(told_in(rollout)) == [Pair("a", "right", "left")]


def told(prompt: str, chosen: int, advantage: float, log_probs: Any = ()) -> Told:
    return Told(prompt, ("left", "right"), chosen, advantage, np.array(log_probs))


def test_weights_of_returns_by_hand() -> None:
    # standardised: -1 and 1; e^-2 and 1 over their mean
    assert weights_of_returns(np.array([2.0, 6.0]), 1.0) == pytest.approx(
        [2 * math.exp(-2) / (1 + math.exp(-2)), 2 / (1 + math.exp(-2))]
    )
    assert weights_of_returns(np.array([3.0, 3.0]), 0.1).tolist() == [1.0, 1.0]


def test_returns_pull_the_guidance_by_its_weight() -> None:
    llm = PairLlm()
    method = Preferences(setting(llm), PreferencesOptions(learn="returns", temperature=0.5))
    rollout: Any = SimpleNamespace(
        turns=[said("a", 0), said("b", 1)], advantages=np.array([[1.0], [0.0]])
    )
    assert method.learn(rollout)["pairs"] == 2.0
    request = llm.requests[-1]
    assert request.updater == "feedback" and request.options["loss"] == "reinforce"
    assert request.data["chosen"].tolist() == [0, 1]
    assert request.data["signals"].tolist() == pytest.approx(
        weights_of_returns(np.array([1.0, 0.0]), 0.5).tolist()
    )
    assert [note.step for note in method.notes] == [0, 1]


def test_a_reward_models_loss_and_step_by_hand() -> None:
    model = RewardModel(8, torch.Generator().manual_seed(0))
    pair = ((("p", "good"),), (("p", "bad"), ("p", "worse")))
    paid = model.rewards([("p", "good"), ("p", "bad"), ("p", "worse")]).tolist()
    margin = paid[0] - paid[1] - paid[2]
    first = model.learn([pair], lr=0.0, epochs=2)
    assert first["loss"] == pytest.approx(math.log1p(math.exp(-margin)), abs=1e-6)
    assert first["margin"] == pytest.approx(margin, abs=1e-6)
    assert model.learn([pair], lr=0.01, epochs=60)["loss"] < first["loss"]
    assert model.learn([pair], lr=0.0, epochs=1)["accuracy"] == 1.0


@pytest.mark.parametrize(("better", "worse"), [("west", "examine"), ("exit", "lock")])
def test_a_reward_model_tells_single_words_apart(better: str, worse: str) -> None:
    model = RewardModel(8, torch.Generator().manual_seed(0))
    pair = ((("p", better),), (("p", worse),))
    model.learn([pair], lr=0.01, epochs=40)
    assert model.learn([pair], lr=0.0, epochs=1)["margin"] > 0.5


def test_a_payment_is_what_a_text_is_paid_above_the_mean() -> None:
    model = RewardModel(8, torch.Generator().manual_seed(0))
    left, right = model.rewards([("a", "left"), ("a", "right")]).tolist()
    mean = 0.75 * left + 0.25 * right
    found = payments(model, [told("a", 1, 0.0, np.log([0.75, 0.25]))])
    assert found.tolist() == pytest.approx([right - mean], abs=1e-6)
    alone = payments(model, [Told("a", ("left",), 0, 0.0, np.array([-9.0]))])
    assert alone.tolist() == pytest.approx([left], abs=1e-6)


def test_episodes_are_ranked_by_their_return() -> None:
    rewards = np.array([[0.0], [1.0], [0.0], [0.5], [0.2]])
    done = np.array([[False], [True], [True], [True], [False]])
    turns = [said(name, 0) for name in "abcde"]
    rollout: Any = SimpleNamespace(turns=turns, rewards=rewards, done=done)
    # returns 1 (a, b), 0 (c), .5 (d); e's episode has not ended, and the middle one has no partner
    assert ranked_episodes(rollout) == [((("a", "left"), ("b", "left")), (("c", "left"),))]


def test_a_reward_model_that_has_seen_no_pair_pays_nobody() -> None:
    """What its initial weights pay is noise, which would be scaled to the size of a signal."""
    llm = PairLlm()
    method = Preferences(setting(llm), PreferencesOptions(learn="reward_model"))
    a_tie: Any = SimpleNamespace(
        turns=[said("a", 0), said("a", 1)], advantages=np.array([[1.0], [1.0]])
    )
    assert method.learn(a_tie) == {"pairs": 0.0}
    assert not llm.requests
    a_pair: Any = SimpleNamespace(turns=a_tie.turns, advantages=np.array([[1.0], [0.0]]))
    assert method.learn(a_pair)["pairs"] == 1.0
    assert len(llm.requests) == 1
    resumed = Preferences(setting(llm), PreferencesOptions(learn="reward_model"))
    resumed.load_tensors(method.tensors())
    resumed.learn(a_tie)
    assert len(llm.requests) == 2


def test_a_reward_models_first_ratio_is_one_for_free_guidance_too() -> None:
    """The student was told what a generation said of a text, which counts its end token too."""
    llm = TableLlm()
    made = dataclasses.replace(setting(llm), config=small_config(guidance={"vocabulary": "free"}))
    method = Preferences(made, PreferencesOptions(learn="reward_model"))
    texts, prompts = ["turn left", "left"], ["p", "q"]
    told = [
        Told(prompt, (text,), 0, 0.5, np.array([-99.0]))
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    method._teach(told, np.array([1.0, -1.0]), "clipped")
    (request,) = [each for each in llm.requests if isinstance(each, UpdateRequest)]
    expected = [llm._score(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
    assert request.data["old_log_probs"].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "options",
    [{"learn": "returns"}, {"learn": "reward_model"}, {"learn": "reward_model", "of": "episodes"}],
)
def test_every_way_to_learn_preferences_goes_on_as_if_it_had_not_been_stopped(
    options: dict[str, str], tmp_path: Path
) -> None:
    plug = Plug("lamorel_ext.methods.preferences.Preferences", json.dumps(options))
    check_resume(dataclasses.replace(config_of("preferences"), method=plug), tmp_path)


def test_recorded_rollouts_are_learnt_from(tmp_path: Path) -> None:
    lines = [
        {"kind": "trace"},
        {"kind": "episode", "candidates": ["left", "right"]},
        {"kind": "step", "prompt": "p", "llm": {"text": "right"}, "advantage": 0.5},
        {"kind": "step", "prompt": "p", "llm": {"text": "left"}, "advantage": -0.5},
        {"kind": "step", "prompt": "q", "llm": None, "advantage": 0.5},
    ]
    (tmp_path / "traces").mkdir()
    path = tmp_path / "traces" / "000000.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    assert read_traces(tmp_path) == [told("p", 1, 0.5), told("p", 0, -0.5)]
    method = Preferences(setting(), PreferencesOptions(traces=str(tmp_path)))
    assert method.pairs(None) == [Pair("p", "right", "left")]  # type: ignore[arg-type]


def recorded(folder: Path, *lines: dict[str, Any], name: str = "000000") -> Path:
    """A folder of a run with one recorded rollout more."""
    (folder / "traces").mkdir(parents=True, exist_ok=True)
    (folder / "traces" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def step(text: str, advantage: float = 0.5, **more: Any) -> dict[str, Any]:
    return {"kind": "step", "prompt": "p", "llm": {"text": text}, "advantage": advantage, **more}


def test_a_recorded_state_with_a_list_of_its_own_is_learnt_from_with_that_list(
    tmp_path: Path,
) -> None:
    first, second = ["open", "take"], ["close", "take", "eat"]
    lines: list[dict[str, Any]] = [
        {"kind": "trace", "vocabulary": "action_hint"},
        {"kind": "episode", "candidates": first},
        step("open", offered=first),
        step("take", offered=second),
        step("eat", offered=second),
        step("take"),
    ]
    found = [(each.candidates, each.chosen) for each in read_traces(recorded(tmp_path, *lines))]
    own, other = tuple(first), tuple(second)
    assert found == [(own, 0), (other, 1), (other, 2), (own, 1)]


@pytest.mark.parametrize(
    "vocabulary, candidates, expected",
    [
        ("subgoal", ["go to the ball", "look"], ("go to the ball", "look")),
        ("free", None, ("look",)),
    ],
)
def test_guidance_that_is_no_action_is_not_sought_among_the_actions_offered(
    vocabulary: str, candidates: list[str] | None, expected: tuple[str, ...], tmp_path: Path
) -> None:
    lines: list[dict[str, Any]] = [
        {"kind": "trace", "vocabulary": vocabulary},
        {"kind": "episode", "candidates": candidates},
        step("look", offered=["open", "take"]),
    ]
    assert read_traces(recorded(tmp_path, *lines))[0].candidates == expected


def test_a_recorded_text_that_could_not_be_said_is_told(tmp_path: Path) -> None:
    episode = {"kind": "episode", "candidates": ["open", "take"]}
    with pytest.raises(ConfigError, match="line 2: llm: 'eat' is none of .*: open, take"):
        read_traces(recorded(tmp_path, episode, step("eat")))


@pytest.mark.parametrize(
    "header, own, words",
    [
        ({"vocabulary": "free"}, "action_hint", "guidance.vocabulary=free, but it is action_hint"),
        ({"vocabulary": "subgoal"}, "free", "guidance.vocabulary=subgoal, but it is free here"),
        ({"vocabulary": "action_hint"}, "subgoal", "=action_hint, but it is subgoal here"),
        # an LLM that acts says actions, whatever the key is
        ({"vocabulary": "free", "agent": "llm_policy"}, "subgoal", "=action_hint, but it is sub"),
        ({"vocabulary": "free", "agent": "llm_policy"}, "action_hint", ""),
        ({"vocabulary": "subgoal", "agent": "student"}, "subgoal", ""),
        ({}, "subgoal", ""),
    ],
)
def test_recorded_rollouts_of_another_vocabulary_are_refused(
    header: dict[str, str], own: str, words: str, tmp_path: Path
) -> None:
    episode = {"kind": "episode", "candidates": ["left", "right"]}
    recorded(tmp_path, {"kind": "trace", **header}, episode, step("left"))
    made = dataclasses.replace(setting(), config=small_config(guidance={"vocabulary": own}))
    if not words:
        assert Preferences(made, PreferencesOptions(traces=str(tmp_path)))._told(None)  # type: ignore[arg-type]
        return
    with pytest.raises(ConfigError, match="000000.jsonl, line 1: recorded with") as caught:
        Preferences(made, PreferencesOptions(traces=str(tmp_path)))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "header, words",
    [
        ({"level": "Other"}, "env.level=Other, here it is Corridor"),
        ({"language": "fr"}, "env.language=fr, here it is en"),
        ({"prompt": "glam"}, "env.prompt=glam, here it is lamorel"),
        ({"level": "Corridor", "language": "en", "prompt": "lamorel"}, ""),
        ({}, ""),
    ],
)
def test_recorded_rollouts_with_other_prompts_are_warned_of_once(
    header: dict[str, str], words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("000000", "000001"):
        recorded(tmp_path, {"kind": "trace", **header}, step("left"), name=name)
    Preferences(setting(), PreferencesOptions(traces=str(tmp_path)))
    assert len(caplog.messages) == bool(words)
    assert words in "".join(caplog.messages)


def check_source(options: dict[str, str], grow: Any, folder: Path, key: str) -> None:
    """A run whose source has changed is not resumed; what was learnt can be evaluated."""
    plug = Plug("lamorel_ext.methods.preferences.Preferences", json.dumps(options))
    config = dataclasses.replace(config_of("preferences"), method=plug)
    fragile = FragileRecorder(folder / "run")
    with pytest.raises(Stops):
        train(config, PairLlm(), fragile, make_corridor)
    fragile.rollouts_left, held = 9, grow()
    with pytest.raises(CheckpointError, match=rf"{key}: .* saved \(1 lines .* got 2 \("):
        train(config, PairLlm(), fragile, make_corridor)
    with TrainingRun(config, PairLlm(), make_corridor) as run:
        run.take_over(fragile.last)
        run.evaluate()
    held()  # what it held before
    train(config, PairLlm(), fragile, make_corridor)
    assert fragile.rows[-1]["env_steps"] == 128


@pytest.mark.parametrize("learn", ["pairs", "returns"])
def test_a_run_is_not_resumed_with_more_recorded_rollouts_than_it_began_with(
    learn: str, tmp_path: Path
) -> None:
    lines: list[dict[str, Any]] = [
        {"kind": "trace"},
        {"kind": "episode", "candidates": ["left", "right"]},
        step("left"),
    ]
    recorded(tmp_path, *lines)

    def grow() -> Any:
        recorded(tmp_path, *lines, name="000001")
        return (tmp_path / "traces" / "000001.jsonl").unlink

    check_source({"learn": learn, "traces": str(tmp_path)}, grow, tmp_path, "method.traces")


def test_a_run_is_not_resumed_with_another_file_of_rankings(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    line = '{"prompt": "p", "better": "a", "worse": "b"}\n'
    path.write_text(line)

    def grow() -> Any:
        path.write_text(line * 2)
        return lambda: path.write_text(line)

    check_source({"rankings": str(path)}, grow, tmp_path, "method.rankings")


def test_what_was_learnt_is_evaluated_without_the_file_that_it_was_learnt_from(
    tmp_path: Path,
) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "p", "better": "a", "worse": "b"}\n')
    plug = Plug("lamorel_ext.methods.preferences.Preferences", json.dumps({"rankings": str(path)}))
    config = dataclasses.replace(config_of("preferences"), method=plug)
    fragile = FragileRecorder(tmp_path / "run")
    with pytest.raises(Stops):
        train(config, PairLlm(), fragile, make_corridor)
    fragile.rollouts_left = 9
    path.unlink()
    for recorder in (fragile, MemoryRecorder(tmp_path / "anew")):
        with pytest.raises(NotThereError, match=r"method.rankings: .*mine.jsonl: no such file"):
            train(config, PairLlm(), recorder, make_corridor)
    with TrainingRun(config, PairLlm(), make_corridor) as run:
        run.take_over(fragile.last)
        run.evaluate()


def test_a_checkpoint_that_does_not_know_what_was_learnt_from_is_resumed(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "p", "better": "a", "worse": "b"}\n')
    method = Preferences(setting(), PreferencesOptions(rankings=str(path)))
    held = json.loads(json.dumps(method.state()))
    method.restore({})
    method.begin_rollout()
    method.restore({"source": held["source"] | {"sha256": "0" * 64}})
    with pytest.raises(CheckpointError, match="mine.jsonl: expected what it held"):
        method.begin_rollout()
    assert Preferences(setting(), PreferencesOptions()).state() == {}


@pytest.mark.parametrize(
    "line, words",
    [
        ('{"kind": "step", "prompt": "p", "llm": {"text": "a"}}', "line 2: not a line of a trace"),
        ('{"kind": "step", "prompt": "p", "llm": {"text": "a"}, "advantage": NaN}', "line 2: adv"),
        ("[]", "line 2: not a line of a trace"),
        ("[" * 100_000, "line 2: no JSON"),
        ('{"kind": "note"}', "no guidance of an LLM in it"),
    ],
)
def test_a_recorded_rollout_that_is_none_is_told_by_its_line(
    tmp_path: Path, line: str, words: str
) -> None:
    (tmp_path / "traces").mkdir()
    (tmp_path / "traces" / "000000.jsonl").write_text('{"kind": "trace"}\n' + line + "\n")
    with pytest.raises(ConfigError) as caught:
        read_traces(tmp_path)
    assert words in str(caught.value) and "000000.jsonl" in str(caught.value)
    with pytest.raises(NotThereError, match="no recorded rollouts"):
        read_traces(tmp_path / "traces")


@pytest.mark.parametrize(
    "options, words",
    [
        ({"rankings": "a", "traces": "b"}, "one of them"),
        ({"rankings": "a", "learn": "returns"}, "rankings have no returns"),
        ({"of": "episodes"}, "needs method.learn=reward_model"),
        ({"kl_coef": 0.1}, "method.kl_coef: is of method.learn=returns and reward_model, which is"),
        ({"learn": "returns", "loss": "filtered"}, "method.loss: is of method.learn=pairs"),
        ({"learn": "reward_model", "temperature": 2.0}, "method.temperature: is of"),
        ({"of": "episodes", "learn": "reward_model", "traces": "b"}, "own episodes"),
    ],
)
def test_what_cannot_be_learnt_from_is_told(options: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Preferences(setting(), PreferencesOptions(**options))


def test_the_loss_of_a_pair_by_hand() -> None:
    scores = torch.tensor([[-1.0, -3.0], [-2.0, -1.0]], dtype=torch.float64)
    reference = torch.tensor([[-2.0, -2.0], [-2.0, -2.0]], dtype=torch.float64)
    terms = PairUpdater().loss(Scored(scores, {}, reference), {}, PairOptions(beta=0.5))
    # margins 2 and -1: log(1 + e^-1) and log(1 + e^.5)
    assert terms["loss"].tolist() == pytest.approx([0.3132616875, 0.9740769842])
    assert terms["margin"].tolist() == [2.0, -1.0] and terms["accuracy"].tolist() == [1.0, 0.0]
    alone = PairUpdater().loss(Scored(scores, {}, reference), {}, PairOptions(loss="filtered"))
    assert alone["loss"].tolist() == [1.0, 2.0]


def test_the_gradient_of_a_pair_against_finite_differences() -> None:
    reference = torch.tensor([[-2.0, -1.5]], dtype=torch.float64)
    scores = torch.tensor([[-1.0, -1.7]], dtype=torch.float64, requires_grad=True)

    def loss(values: torch.Tensor) -> torch.Tensor:
        return PairUpdater().loss(Scored(values, {}, reference), {}, PairOptions(beta=1.3))["loss"]

    assert torch.autograd.gradcheck(loss, (scores,))


def pair_request(*candidates: tuple[str, ...], **options: Any) -> UpdateRequest:
    prompts = tuple(f"prompt {place}" for place in range(len(candidates)))
    rows = torch.arange(len(candidates))
    return UpdateRequest("preferences", prompts, candidates, rows, len(candidates), {}, options)


def test_pairs_move_the_better_text_ahead_of_the_worse() -> None:
    host, updater = FakeHost(), PairUpdater()
    updater.set_llm_module(host)
    request = pair_request(("left", "right"), ("up", "down"), lr=0.05, epochs=20)
    first = updater.update(dataclasses.replace(request, options={"lr": 0.0})).stats
    assert first["loss"] == pytest.approx(math.log(2)) and first["margin"] == 0.0
    updater.update(request)
    assert updater.update(request).stats["accuracy"] == 1.0


@pytest.mark.parametrize("texts", [("left",), ("left", "left"), ("a", "b", "c")])
def test_what_is_no_pair_is_refused(texts: tuple[str, ...]) -> None:
    updater = PairUpdater()
    updater.set_llm_module(FakeHost())
    with pytest.raises(RequestError, match=r"candidates\[1\]: expected two different texts"):
        updater.update(pair_request(("left", "right"), texts))


def test_a_file_of_rankings_is_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "p", "better": "a", "worse": "b"}\n\n')
    assert read_rankings(path) == [Pair("p", "a", "b")]


@pytest.mark.parametrize(
    "line, words",
    [
        ('{"prompt": "p", "better": "a", "worse": "a"}', "line 2: a tie: 'a'"),
        ('{"prompt": "p", "better": "a"}', "line 2: expected an object with prompt, better, worse"),
        ('{"prompt": "p", "better": "a", "worse": 3}', "line 2: prompt, better and worse must be"),
        ('{"prompt": "p", "better": "a", "worse": " a"}', "line 2: a tie: 'a'"),
        ('{"prompt": "p", "better": "a", "worse": " "}', "line 2: prompt, better and worse must"),
        ('{"prompt": "p", "better": "a", "worse": NaN}', "line 2: prompt, better and worse must"),
        ('{"prompt": "p", "better": "a", "worse": "\\ud800"}', "line 2: half a character"),
        ("better", "line 2: no JSON"),
        ("[" * 99999, "line 2: no JSON"),
        ("NaN", "line 2: expected an object"),
    ],
)
def test_a_ranking_that_is_none_is_told_by_its_line(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "p", "better": "a", "worse": "b"}\n' + line + "\n")
    with pytest.raises(ConfigError) as caught:
        read_rankings(path)
    assert words in str(caught.value)


def test_rankings_may_hold_what_editors_put_into_them(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    lines = ['{"prompt": "p\u2028q", "better": "à", "worse": "b"}', ""]
    path.write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    assert read_rankings(path) == [Pair("p\u2028q", "à", "b")]


def test_many_wrong_rankings_are_told_in_few_lines(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("{}\n" * 500)
    with pytest.raises(ConfigError) as caught:
        read_rankings(path)
    assert len(caught.value.problems) == 11 and "490 more" in caught.value.problems[-1]


def test_rankings_in_another_encoding_are_told(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes('{"prompt": "p", "better": "à", "worse": "b"}'.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"mine.jsonl: 'utf-8' codec can't decode"):
        read_rankings(path)


def test_a_file_of_rankings_that_is_missing_or_empty_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotThereError, match="no such file"):
        read_rankings(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ConfigError, match="no rankings in it"):
        read_rankings(tmp_path / "empty.jsonl")


def test_coins_turn_half_of_the_ranks(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    line = {"prompt": "p", "better": "a", "worse": "b"}
    path.write_text("\n".join([json.dumps(line)] * 200))
    arguments = json.dumps({"rankings": str(path), "ranks": "coin"})
    made = Plug("lamorel_ext.methods.preferences.Preferences", arguments).make("method", setting())
    turned = sum(pair.better == "b" for pair in made.pairs(None))
    assert 70 < turned < 130


def test_verdicts_cancel_a_liking_for_a_letter() -> None:
    proposed = [Pair("p", "a", "b"), Pair("q", "c", "d"), Pair("r", "e", "f")]
    odds = np.array([3.0, 2.0, 2.0, 3.0, 5.0, 5.0])  # A is liked throughout
    assert verdicts(proposed, odds) == [Pair("p", "a", "b"), Pair("q", "d", "c")]


def test_what_is_hardly_ever_said_is_not_judged() -> None:
    log_probs = np.log([[0.5, 0.1, 0.4], [0.05, 0.9, 0.05]])
    assert masked(log_probs, 1.0) is log_probs
    kept = np.exp(masked(log_probs, 0.8))
    assert kept == pytest.approx(np.array([[5 / 9, 0.0, 4 / 9], [0.0, 1.0, 0.0]]))


def test_a_question_to_the_judge_has_its_principles_or_none() -> None:
    assert judge_question(("Be kind.",), "Goal: go\nAction:", "left", "right") == (
        "Be kind.\nGoal: go\nAdvice A: left\nAdvice B: right\nBetter advice:"
    )
    assert judge_question((), "Goal: go\nAction:", "l", "r").startswith("Goal: go")
    made = Constitution(setting(), ConstitutionOptions(with_principles=False))
    assert made._principles == ()


def test_free_guidance_has_no_rival_to_judge() -> None:
    made = dataclasses.replace(setting(), config=small_config(guidance={"vocabulary": "free"}))
    with pytest.raises(ConfigError, match=r"guidance.vocabulary: constitution draws a rival"):
        Constitution(made, ConstitutionOptions())


# --- prompt_search --------------------------------------------------------------------------------


def search(**options: Any) -> tuple[PromptSearch, list[str]]:
    used: list[str] = []
    made = setting(reword=lambda wording: used.append(wording.prompt("p")))
    return PromptSearch(made, PromptSearchOptions(edits=("", "x", "y"), **options)), used


def paying(reward: float) -> Any:
    return SimpleNamespace(rewards=np.full((4, 2), reward))


def test_the_bandit_by_hand() -> None:
    method, used = search(exploration=0.0)
    numbers = []
    for reward in (0.1, 0.5, 0.2):
        method.begin_rollout()
        numbers.append(method.learn(paying(reward)))
    method.begin_rollout()
    # against the mean so far: nothing yet, .5 - .1, .2 - .3
    assert [row["worth"] for row in numbers] == pytest.approx([0.0, 0.4, -0.1])
    assert used == ["p", "x\np", "y\np", "x\np"]


def test_the_bandits_state_comes_back() -> None:
    method, _ = search()
    for reward in (0.1, 0.5, 0.2):
        method.learn(paying(reward))
    again, used = search()
    again.restore(json.loads(json.dumps(method.state())))
    again.begin_rollout()
    assert used == ["x\np"] and again.learn(paying(0.3)) == method.learn(paying(0.3))


def test_random_edits_come_whatever_they_were_worth() -> None:
    method, _ = search(choice="random")
    drawn = [method.learn(paying(0.0))["edit"] for _ in range(60)]
    assert set(drawn) == {0.0, 1.0, 2.0}


def test_what_is_evaluated_is_the_best_of_what_was_tried() -> None:
    method, used = search(exploration=10.0)
    method.begin_evaluation()
    for reward in (0.1, 0.5, 0.2, 0.3):
        method.learn(paying(reward))
    for begin in (method.begin_rollout, method.begin_evaluation):
        begin()
    # Worth 0, .217 and -.1, tried 1, 2 and 1 times: the bound sends the bandit back to the first.
    assert used == ["p", "p", "x\np"]


def test_the_llm_reads_the_instruction(tmp_path: Path) -> None:
    llm = PairLlm()
    train(config_of("prompt_search"), llm, MemoryRecorder(tmp_path), make_corridor)
    prompts = {prompt for request in llm.requests for prompt in request.prompts}
    assert any(prompt.startswith("You guide a robot in a room.\nGoal") for prompt in prompts)


def test_a_policy_that_is_evaluated_is_asked_with_the_best_instruction(tmp_path: Path) -> None:
    recorder, config = MemoryRecorder(tmp_path), config_of("prompt_search")
    train(config, PairLlm(), recorder, make_corridor)
    assert recorder.last is not None
    state = recorder.last.state["method"]
    state["tries"], state["worth"], edit = [1] * len(EDITS), [0.0] * len(EDITS), EDITS[2]
    state["worth"][2] = 1.0
    llm = PairLlm()
    with TrainingRun(config, llm, make_corridor) as run:
        run.take_over(recorder.last)
        run.evaluate()
        prompts = [prompt for request in llm.requests for prompt in request.prompts]
        assert prompts and all(prompt.startswith(f"{edit}\nGoal") for prompt in prompts)
        state["tries"], state["worth"] = [1] * 9, [0.0] * 9
        with pytest.raises(CheckpointError, match="method.edits: 6 of them, saved were 9"):
            run.take_over(recorder.last)
        del recorder.last.state["method"]["edit"]
        with pytest.raises(CheckpointError, match="lacks 'edit'"):
            run.take_over(recorder.last)


def test_an_edit_with_a_new_line_that_is_none_is_told() -> None:
    # what single quotes of a shell leave of it
    with pytest.raises(ConfigError, match="has a backslash and an n where a new line seems meant"):
        PromptSearch(setting(), PromptSearchOptions(edits=("", r"You see a ball\nAction: drop")))
    PromptSearch(setting(), PromptSearchOptions(edits=("", "You see a ball\nAction: drop")))


@pytest.mark.parametrize("edits", [(), ("a", "a")])
def test_edits_must_differ(edits: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"method.edits: expected different instructions"):
        PromptSearch(setting(), PromptSearchOptions(edits=edits))


# --- skills ---------------------------------------------------------------------------------------


def skills(llm: TableLlm, **options: Any) -> Skills:
    return Skills(AgentSetting(config_of("skills"), llm, 3), SkillsOptions(**options))


def test_skills_are_chosen_by_the_product_of_probability_and_value() -> None:
    from lamorel_ext.training.building import make_prompted_env

    llm, config = TableLlm(), config_of("skills")
    scene = make_prompted_env(config, make_corridor(config, False)).reset()
    chosen = {
        kind: skills(llm, choose=kind).teacher.distribution(scene)
        for kind in ("product", "llm", "values")
    }
    product = chosen["llm"] * chosen["values"]
    assert chosen["product"] == pytest.approx(product / product.sum(axis=1, keepdims=True))
    assert np.allclose(chosen["product"].sum(axis=1), 1.0)


def test_who_teaches_the_llm_of_skills_hears_what_it_says_itself() -> None:
    """The ratio of PPO is about its own probabilities, not about the product that was drawn by."""
    from lamorel_ext.training.building import make_prompted_env

    llm, config = TableLlm(), config_of("skills")
    scene = make_prompted_env(config, make_corridor(config, False)).reset()
    agent = skills(llm)
    teacher = agent.teacher
    heard = teacher.guide(scene, Draws(np.random.default_rng(0), np.random.default_rng(1)))
    own = np.log(skills(llm, choose="llm").teacher.distribution(scene))
    assert heard.said is not None and heard.said.scores == pytest.approx(own)
    chosen = own[np.arange(len(own)), heard.said.chosen]
    assert heard.said.log_probs == pytest.approx(chosen)
    assert heard.drawn == pytest.approx(teacher.distribution(scene))
    assert not np.allclose(heard.drawn, np.exp(own))
    # a recorded rollout mixes the student's policies by what was drawn by
    assert _teacher_weights(agent, heard, scene) == pytest.approx(heard.drawn[0])


def test_the_llm_is_told_how_the_last_action_came_out() -> None:
    seen = ["You see a wall"]
    same = glam_prompt("go", [["You see a ball"], seen, seen], ["turn left", "go forward"])
    assert monologue(same).splitlines()[-2:] == [
        " The last action, go forward, failed: you see the same as before. ",
        " Action 2: ",
    ]
    other = glam_prompt("go", [seen, ["You see a ball"]], ["turn left"])
    assert "The last action, turn left, succeeded." in monologue(other)
    first = glam_prompt("go", [seen], [])
    assert monologue(first) == first
    with pytest.raises(ConfigError, match="agent.told: needs prompts that tell the last action"):
        skills(TableLlm(), told=True)


def test_skills_ask_with_what_came_out() -> None:
    from lamorel_ext.training.building import make_prompted_env

    config = config_of("skills", env={"prompt": "glam", "history": 3})
    env = make_prompted_env(config, make_corridor(config, False))
    env.reset()
    scene = env.step(np.zeros(len(env.reset()), dtype=np.int64)).current
    agent = Skills(AgentSetting(config, TableLlm(), 3), SkillsOptions(told=True))
    agent.teacher.guide(scene, Draws(np.random.default_rng(0), np.random.default_rng(1)))
    assert "The last action" in agent.notes[0].asked


def test_the_loss_of_the_values_by_hand() -> None:
    logits = torch.tensor([[0.0, 9.0], [-7.0, 1.0]], dtype=torch.float64)
    codes = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    # log 2 whatever the return; -log sigmoid(1), a return of 1.5 counting as 1
    returns = torch.tensor([0.3, 1.5], dtype=torch.float64)
    expected = (math.log(2) + math.log(1 + math.exp(-1))) / 2
    assert float(values_loss(logits, codes, returns)) == pytest.approx(expected)


def test_the_gradient_of_the_values_against_finite_differences() -> None:
    logits = torch.tensor([[0.2, -0.4], [-0.7, 1.1]], dtype=torch.float64, requires_grad=True)
    codes = torch.eye(2, dtype=torch.float64)
    returns = torch.tensor([0.3, 0.9], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda given: values_loss(given, codes, returns), (logits,))


def test_values_learn_which_skill_pays() -> None:
    agent = skills(TableLlm(), lr=0.05, epochs=30)
    features = np.ones((6, agent.skill_values.first.shape[1]), dtype=np.float32) / 100
    from lamorel_ext.experience import Decision, Guidance

    codes = np.eye(6, dtype=np.float32)
    heard = Guidance(codes, np.arange(6))
    decision = Decision(
        np.zeros(6, dtype=np.int64), np.full(6, -1.8), np.zeros(6), None, features, heard
    )
    returns = np.array([[1.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    rollout: Any = SimpleNamespace(
        turns=(SimpleNamespace(decision=decision),), returns=returns, advantages=returns
    )
    agent.update(rollout, make_rng(0, "updates"))
    values = torch.sigmoid(agent.skill_values(torch.from_numpy(features[:1])))[0]
    assert values[0] > 0.8 and values[1:].max() < 0.2


@pytest.mark.parametrize(
    ("returns", "words"),
    [((-3.0, -1.0), "from -3 to -1"), ((0.5, 4.0), "from 0.5 to 4"), ((-0.05, 1.05), "")],
)
def test_returns_that_the_values_cannot_tell_apart_are_warned_of_once(
    returns: tuple[float, ...], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    agent = skills(TableLlm())
    for _ in range(2):
        agent._check_returns(torch.tensor(returns))
    assert len(caplog.messages) == bool(words) and words in "".join(caplog.messages)


def test_skills_refuse_rollouts_of_a_single_advantage() -> None:
    config = config_of("skills", env={"num_envs": 1}, student={"num_steps": 1})
    with pytest.raises(ConfigError, match=r"student.num_steps: skills need rollouts of more"):
        Skills(AgentSetting(config, TableLlm(), 3), SkillsOptions())


def test_an_agent_of_skills_acts() -> None:
    from lamorel_ext.training.building import make_prompted_env

    config = config_of("skills")
    scene = make_prompted_env(config, make_corridor(config, False)).reset()
    draws = Draws(np.random.default_rng(0), np.random.default_rng(1))
    decision = skills(TableLlm()).decide(scene, draws)
    assert decision.actions.shape == (4,) and decision.said is not None
    agent = skills(TableLlm(), choose="values")
    assert agent.decide(scene, draws).said is None and "100.0%" in agent.notes[0].answered
