"""Reward programs: what each says by hand, which are refused, and the search by a table's LLM."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lamorel_ext.agents.features import encode_observations, views_of
from lamorel_ext.config import Plug, load_config
from lamorel_ext.errors import ConfigError
from lamorel_ext.methods.base import MethodSetting
from lamorel_ext.methods.reward_program import RewardProgram, RewardProgramOptions
from lamorel_ext.methods.reward_program.language import EVENTS, derived, features_of, read_program
from lamorel_ext.training.loop import train
from lamorel_ext.training.run import TrainingRun
from lamorel_ext.types import ObservationBatch
from tests.training.student_fakes import MemoryRecorder, TableLlm, make_corridor
from tests.training.test_recipes import config_of

BALL, KEY, RED, BLUE = 6, 5, 0, 2


def view(*things: tuple[int, int, int, int]) -> np.ndarray:
    """Of an agent at (3, 6): things as (x, y, kind, colour), all else empty."""
    image = np.zeros((7, 7, 3), dtype=np.uint8)
    image[..., 0] = 1
    for x, y, kind, colour in things:
        image[x, y, :2] = kind, colour
    return image


def read(before: np.ndarray, reached: np.ndarray, mission: str, action: int = 2) -> dict[str, int]:
    found = features_of(before[None], reached[None], np.array([action]), (mission,))
    return {name: int(values[0]) for name, values in found.items()}


def search(
    llm: TableLlm | None = None, steps: int = 9999, **options: Any
) -> tuple[RewardProgram, TableLlm]:
    llm, config = llm or TableLlm(), config_of("reward_program", run={"total_steps": steps})
    with TrainingRun(config, llm, make_corridor) as run:
        rng = np.random.default_rng(0)
        setting = MethodSetting(config, llm, run.agent, rng, lambda wording: None)
    return RewardProgram(setting, RewardProgramOptions(**options)), llm


def turn(reward: float = 0.0, before: np.ndarray | None = None) -> Any:
    """A step forward towards the red ball, from two steps away to one."""
    start = view((3, 4, BALL, RED)) if before is None else before
    seen = ObservationBatch(
        ("go to the red ball",), ((),), view((3, 5, BALL, RED))[None], np.zeros(1, dtype=np.int64)
    )
    acted = ObservationBatch(("go to the red ball",), ((),), start[None], seen.directions)
    decision = SimpleNamespace(features=encode_observations(acted), actions=np.array([2]))
    step = SimpleNamespace(rewards=np.array([reward]))
    reached = SimpleNamespace(observations=seen)
    return SimpleNamespace(
        decision=decision, step=step, stepped=SimpleNamespace(reached=reached), prompts=("p",)
    )


def tried(method: RewardProgram, reward: float) -> dict[str, float]:
    """A rollout of one step."""
    method.rewards([turn(reward)])
    return method.learn(SimpleNamespace(rewards=np.array([[reward]])))  # type: ignore[arg-type]


# --- features and programs ------------------------------------------------------------------------


def test_features_of_a_step_by_hand() -> None:
    before = view((1, 3, BALL, RED), (3, 5, 2, 5))
    reached = view((3, 5, BALL, RED), (3, 6, KEY, BLUE), (2, 5, BALL, BLUE))
    found = read(before, reached, "go to the red ball", action=1)
    assert found == {
        "seen": 1, "distance": 1, "ahead": 1, "near": 1, "carrying": 1, "wall": 0,
        # two to the left and three ahead, behind a wall
        "seen_before": 1, "distance_before": 5, "ahead_before": 0, "near_before": 0,
        "carrying_before": 0, "wall_before": 1, "turned": 1, "moved": 0, "used": 0,
    }  # fmt: skip


@pytest.mark.parametrize("beside", [(2, 6), (4, 6)])
def test_a_goal_in_front_is_near_whatever_is_as_near_beside(beside: tuple[int, int]) -> None:
    side = (*beside, BALL, RED)
    found = read(view(side), view((3, 5, BALL, RED), side), "go to the red ball")
    assert (found["distance"], found["ahead"], found["near"]) == (1, 1, 1)
    assert (found["distance_before"], found["ahead_before"], found["near_before"]) == (1, 0, 0)


@pytest.mark.parametrize(
    "mission, distance",
    [
        ("go to a blue key", 3),
        ("pick up the key", 3),
        ("put the grey box next to the blue key", 10),
        ("go to the blue object", 3),
        ("go to the ball", 2),
        ("explore", 2),
    ],
)
def test_the_goal_is_the_first_object_that_the_mission_names(mission: str, distance: int) -> None:
    shown = view((3, 4, BALL, RED), (2, 4, KEY, BLUE))
    assert read(shown, shown, mission)["distance"] == distance


def test_views_come_back_from_what_the_student_saw() -> None:
    rng = np.random.default_rng(0)
    images = np.stack([rng.integers(size, size=(5, 7, 7)) for size in (11, 6, 4)], axis=-1)
    seen = ObservationBatch(
        ("go",) * 5, ((),) * 5, images.astype(np.uint8), np.zeros(5, dtype=np.int64)
    )
    assert (views_of(encode_observations(seen)) == images[..., :2]).all()


@pytest.mark.parametrize(
    "text, value",
    [
        ("distance_before - distance", 1.0),
        ("0.5 if near and not near_before else -1", 0.5),
        ("max(2 - distance, moved) * 3 - exp(0)", 2.0),
        ("2 ** distance_before / 8", 0.5),
        ("distance < distance_before", 1.0),
        ("7", 7.0),
    ],
)
def test_a_program_by_hand(text: str, value: float) -> None:
    features = features_of(
        view((3, 4, BALL, RED))[None], view((3, 5, BALL, RED))[None], np.array([2]), ("red ball",)
    )
    assert read_program(text).pays(features).tolist() == [value]


@pytest.mark.parametrize(
    "text, words",
    [
        ("1 / distance", "division by zero where distance = 0"),
        ("1 / (distance - 10)", "division by zero where distance = 10"),
        ("1 / 0", "division by zero"),
        ("while True: pass", "invalid syntax"),
        ("[seen for seen in (1, 2)]", "ListComp is not in the grammar"),
        ("(lambda: (yield))()", "Lambda is not in the grammar"),
        ("speed * 2", "unknown feature 'speed'; there are seen, distance"),
        ("distance ** 9 ** 9 ** 9", "Numerical result out of range where distance = 0"),
        ("9 ** 9 ** 9 ** 9", "out of range"),
        ("(-1) ** 0.5", "no finite number"),
        ("1e308 * 10", "no finite number"),
        ("exp(1000)", "math range error"),
        ("'a' * 9999999", "'a' is no number"),
        ("1j", "is no number"),
        ("seen.real", "Attribute is not in the grammar"),
        ("__import__('os')", "'os' is no number"),
        ("open(seen)", "Function 'open' not defined"),
        ("min(seen)", "not iterable"),
        ("seen in (1,)", "not in the grammar"),
        ("seen = 1", "invalid syntax"),
        ("seen; 1", "invalid syntax"),
        ("", "invalid syntax"),
        ("(" * 199, "was never closed"),
        ("1 + " * 60 + "1", "241 characters are more than 200"),
        ("-" * 198 + "1", None),
        ("\0", "null byte"),
        ("distance + distance_before + "
         "seen + ahead + near + wall + moved", "more than 2048 combinations"),
    ],
)  # fmt: skip
def test_what_is_no_program_is_refused_with_the_reason(text: str, words: str | None) -> None:
    if words is None:
        assert read_program(text).table == 1.0
        return
    with pytest.raises(ConfigError) as caught:
        read_program(text)
    assert words in str(caught.value) and "reward program" in str(caught.value)


def test_productions_make_a_program() -> None:
    chosen = iter(["turning", "bad", "coming closer to the goal", "very good", "nothing else"])
    offered: list[tuple[str, ...]] = []

    def choose(rule: str, options: tuple[str, ...]) -> str:
        offered.append(options)
        return next(chosen)

    program = derived(choose, 3)
    assert program.text == "-0.3*turned + 1*(distance_before - distance)"
    assert program.words == "turning is bad and coming closer to the goal is very good"
    assert offered[0] == tuple(EVENTS) and "turning" not in offered[2]
    assert "nothing else" not in offered[0] and "nothing else" in offered[2]


# --- the search -----------------------------------------------------------------------------------


def test_a_program_pays_beside_the_environment_within_its_limit() -> None:
    method, llm = search(programs=("distance_before - distance + 7",), coef=0.5, limit=3.0)
    rewards = method.rewards([turn(0.25), turn(before=view((3, 5, BALL, RED)))])
    assert rewards is not None and rewards[:, 0].tolist() == [0.25 + 0.5 * 3, 0.5 * 3]
    method, _ = search(programs=("distance_before - distance",), coef=0.5)
    rewards = method.rewards([turn(0.25), turn(before=view((3, 5, BALL, RED)))])
    assert rewards is not None and rewards[:, 0].tolist() == [0.75, 0.0]
    assert llm.requests == []


def test_each_program_starts_from_the_same_student_and_the_best_ones_goes_on() -> None:
    method, _ = search(programs=("1", "2", "3"))
    weights = next(method._agent.network.parameters())
    start, seen = weights.detach().clone(), []
    # rewards of the two rollouts of each trial: the second one counts
    for place, reward in enumerate([9.0, 0.1, 9.0, 0.3, 9.0, 0.2]):
        method.rewards([turn(reward)])
        if place % 2 == 0:
            assert torch.equal(weights, start)
        with torch.no_grad():
            weights.add_(place + 1)
        seen.append(method._search.place)
        numbers = method.learn(
            SimpleNamespace(rewards=np.array([[reward]]))  # type: ignore[arg-type]
        )
    assert seen == [0, 0, 1, 1, 2, 2]
    assert numbers["fitness"] == 0.3
    assert torch.equal(weights, start + 3 + 4)  # that of "2"
    assert method._program is not None and method._program.text == "2"
    assert tried(method, 0.0)["bonus"] == pytest.approx(0.1)  # cut off at 1, times 0.1


def test_the_next_question_tells_what_came_of_the_last_programs() -> None:
    method, llm = search(count=2, rounds=2)
    results = [0.1, 0.1, 0.2, 0.4]
    for reward in results:
        tried(method, reward)
    before = len(llm.requests)
    tried(method, 0.0)
    asked = llm.requests[before].prompts[0]
    first, second = method._search.tried[0][1], asked.splitlines()[1]
    assert asked.splitlines()[0] == "Goal of the agent: go to the red ball"
    assert second.startswith("Reward: ") and second.endswith(". Result: 0.1000")
    assert asked.splitlines()[2] == f"Reward: {first}. Result: 0.4000"  # the best, tried again
    assert asked.splitlines()[3] == "Better reward:"
    assert not any("Result" in prompt for one in llm.requests[:before] for prompt in one.prompts)


def test_a_favourite_production_is_chosen() -> None:
    llm = TableLlm(favourite="facing the goal", strength=50.0)
    method, _ = search(llm, count=1, max_terms=1)
    tried(method, 0.0)
    assert method._search.tried[0][1].startswith("facing the goal is ")


def test_random_programs_ask_no_llm_and_differ() -> None:
    method, llm = search(proposals="random", count=8)
    tried(method, 0.0)
    assert llm.requests == [] and len(method._search.tried) > 5


def test_a_written_program_that_is_none_costs_nothing_and_is_told() -> None:
    method, llm = search(proposals="written", count=4, rounds=2)
    # the table's LLM writes actions, which are no programs
    assert tried(method, 0.5) == {"bonus": 0.0, "refused": 4.0}
    assert method._program is None and method._search.tried == []
    tried(method, 0.5)
    asked = llm.requests[-1].prompts[0]
    assert "distance: steps to it, 0 (carried) to 9" in asked and "Error: reward program" in asked
    assert tried(method, 0.5)["refused"] == 8.0  # both rounds are over


def test_a_written_program_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    said = ["```\n1 / distance\n```", "`seen - 0.5`\nbecause", "seen - 0.5", ""]
    target = "lamorel_ext.methods.reward_program.sample_texts"
    monkeypatch.setattr(target, lambda *_: (said, np.zeros(4)))
    method, _ = search(proposals="written")
    assert tried(method, 0.0) == {"bonus": pytest.approx(0.05), "refused": 2.0}
    assert [text for text, _ in method._search.tried] == ["seen - 0.5"]


def test_the_searchs_state_comes_back_in_the_midst_of_a_trial() -> None:
    one, _ = search(programs=("1", "2"))
    for reward in (0.0, 0.4, 0.0):
        tried(one, reward)
    two, _ = search(programs=("1", "2"))
    two.restore(json.loads(json.dumps(one.state())))
    two.load_tensors(one.tensors())
    assert tried(two, 0.1) == tried(one, 0.1)
    assert one.state() == two.state()


def test_a_program_of_the_configuration_that_is_none_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        search(programs=("seen", "speed", "1 / 0"))
    assert [problem[:41] for problem in caught.value.problems] == [
        "method.programs[1]: reward program 'speed",
        "method.programs[2]: reward program '1 / 0",
    ]


@pytest.mark.parametrize("proposals", ["random", "chosen", "written"])
def test_programs_of_ones_own_have_no_random_control(proposals: str) -> None:
    if proposals != "random":
        search(programs=("seen",), proposals=proposals)
        return
    with pytest.raises(ConfigError, match="method.proposals: must not be random where method.prog"):
        search(programs=("seen",), proposals=proposals)


def test_an_agent_without_views_is_refused(tmp_path: Path) -> None:
    config = config_of("reward_program")
    config = dataclasses.replace(config, arm=dataclasses.replace(config.arm, agent="llm_policy"))
    with pytest.raises(ConfigError, match="reward_program needs a student that sees BabyAI's"):
        train(config, TableLlm(), MemoryRecorder(tmp_path), make_corridor)


def test_a_teacher_that_learns_from_trial_to_trial_is_refused(tmp_path: Path) -> None:
    config = config_of("reward_program")
    for channel in ("loss", "both"):
        taught = load_config(["arm=teacher_feedback+signal=td", f"feedback.channel={channel}"])
        with pytest.raises(ConfigError, match="feedback.signal: must be none beside reward_progr"):
            both = dataclasses.replace(config, arm=taught.arm, feedback=taught.feedback)
            train(both, TableLlm(), MemoryRecorder(tmp_path), make_corridor)


# --- within a run's budget ------------------------------------------------------------------------


def run_of(folder: Path, total_steps: int, **options: Any) -> MemoryRecorder:
    """Four corridors, eight steps a rollout: 32 steps each."""
    plug = Plug("lamorel_ext.methods.reward_program.RewardProgram", json.dumps(options))
    config = config_of("reward_program", run={"total_steps": total_steps})
    recorder = MemoryRecorder(folder)
    train(dataclasses.replace(config, method=plug), TableLlm(), recorder, make_corridor)
    return recorder


@pytest.mark.parametrize(
    "options, steps, words",
    [
        (
            {"count": 4},
            544,
            ("method.rounds=2", "method.count=4", "18 rollouts", "=544 are 17 of 32"),
        ),
        ({"count": 1, "rounds": 1, "trial_rollouts": 5}, 128, ("=5: ", "5 rollouts", "=160 are")),
        ({"programs": ["1", "2", "1"]}, 96, ("method.programs=", "4 rollouts", "=96 are 3 of 32")),
        ({}, 160, ("method.count=1", "6 rollouts", "run.total_steps=192 are enough")),
    ],
)
def test_a_search_that_the_run_has_no_room_for_is_refused_before_anything_is_recorded(
    options: dict[str, Any], steps: int, words: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        run_of(tmp_path, steps, **options)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options, steps",
    [
        ({"count": 4, "proposals": "random"}, 576),
        ({"count": 4, "proposals": "random"}, 548),  # the 18th rollout is a short one
        ({"count": 1, "rounds": 1, "trial_rollouts": 5}, 160),
        ({"programs": ["1", "2", "1"]}, 128),
        ({}, 192),
        ({"proposals": "random"}, 544),
    ],
)
def test_a_run_ends_with_the_best_programs_student(
    options: dict[str, Any], steps: int, tmp_path: Path
) -> None:
    last = run_of(tmp_path, steps, **options).last
    assert last is not None
    assert not any(name.startswith("method.") for name in last.tensors)
    assert last.state["method"]["tried"] == [] and last.state["method"]["best"]


@pytest.mark.parametrize(
    "total_steps, count", [(10, 1), (160, 1), (192, 1), (320, 2), (544, 3), (576, 4), (9999, 4)]
)
def test_as_many_programs_are_proposed_as_the_run_has_room_for(
    total_steps: int, count: int
) -> None:
    assert search(steps=total_steps)[0]._count == count
    assert search(steps=total_steps, count=3)[0]._count == 3


def test_a_checkpoint_of_a_run_without_room_is_gone_on_from_and_evaluated(tmp_path: Path) -> None:
    recorder = run_of(tmp_path, 192)
    plug = Plug("lamorel_ext.methods.reward_program.RewardProgram", '{"count": 4}')
    config = dataclasses.replace(config_of("reward_program"), method=plug)
    with TrainingRun(config, TableLlm(), make_corridor) as run:
        run.take_over(recorder.last)
        run.evaluate()
    with TrainingRun(config, TableLlm(), make_corridor) as run:
        run.start(recorder.last)
        assert run.finished


def test_an_annealed_kappa_goes_on_from_trial_to_trial(tmp_path: Path) -> None:
    # nothing is learnt, so that the column is the annealed number alone
    student = {"lr": 0.0, "kappa_mode": "annealed", "kappa_steps": 128}
    config = config_of("reward_program", student=student, run={"eval_every": 32})
    recorder = MemoryRecorder(tmp_path)
    config = dataclasses.replace(config, arm=dataclasses.replace(config.arm, teacher="oracle"))
    train(config, TableLlm(), recorder, make_corridor)
    kappas = [row["student_kappa"] for row in recorder.rows[1:]]
    assert kappas == pytest.approx([5.0, 3.75, 2.5, 1.25])
    assert recorder.last is not None and int(recorder.last.tensors["steps_seen"]) == 128
    assert float(recorder.last.tensors["student.trust"]) == 0.0
