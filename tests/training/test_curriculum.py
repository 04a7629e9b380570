"""A curriculum: when stages end, what changes with them, and that a run goes on in the middle of
one.
"""

import dataclasses
import json

import numpy as np
import pytest

from lamorel_ext.config import StageArgs
from lamorel_ext.errors import CheckpointError
from lamorel_ext.experience import Rollout
from lamorel_ext.training.curriculum import WINDOW, Curriculum
from lamorel_ext.training.loop import train
from tests.training.student_fakes import CorridorEnv, MemoryRecorder, TableLlm, small_config
from tests.training.test_training import ARMS, FragileRecorder, Stops, without_seconds

STAGES = (StageArgs("Short", steps=40), StageArgs("Middle", 3, steps=30))


def make(*stages, num_envs=4):
    return Curriculum(small_config(env={"num_envs": num_envs, "curriculum": stages}))


def steps(num_steps, successes=0, failures=0, num_envs=4):
    """A rollout in which so many episodes end."""
    rewards, done = np.zeros(num_steps * num_envs), np.zeros(num_steps * num_envs, dtype=bool)
    done[: successes + failures] = True
    rewards[:successes] = 0.5
    shape = (num_steps, num_envs)
    empty = np.zeros(shape)
    return Rollout(
        (),
        rewards.reshape(shape),
        done.reshape(shape),
        done.reshape(shape),
        empty,
        empty,
        empty,
        empty,
    )


def test_without_a_curriculum_nothing_ever_changes():
    curriculum = make()
    assert curriculum.steps_left == np.inf and not curriculum.note(steps(100, 400))
    assert curriculum.config is curriculum._config


def test_a_stage_ends_after_its_steps_and_the_level_of_the_run_comes_last():
    curriculum = make(*STAGES)
    seen = []
    for num_steps in (8, 2, 8, 8, 8):
        env = curriculum.config.env
        seen.append((env.level, env.num_distractors, curriculum.steps_left))
        changed = curriculum.note(steps(int(min(num_steps, curriculum.steps_left))))
        seen[-1] += (changed,)
    assert seen == [
        ("Short", None, 10, False),
        ("Short", None, 2, True),
        ("Middle", 3, 8, True),
        ("Corridor", None, np.inf, False),
        ("Corridor", None, np.inf, False),
    ]  # fmt: skip  (30 steps are eight steps of four environments)


def test_a_stage_ends_once_enough_of_its_last_episodes_succeeded():
    curriculum = make(StageArgs("Short", success=0.8))
    assert not curriculum.note(steps(40, successes=99))  # not yet a hundred episodes
    assert not curriculum.note(steps(40, failures=30))  # 70 of the last hundred
    assert not curriculum.note(steps(40, successes=79))  # 21 failures among them
    assert curriculum.note(steps(40, successes=1))
    assert curriculum.stage == 1 and curriculum.steps_left == np.inf


def test_successes_of_a_stage_do_not_count_in_the_next():
    curriculum = make(StageArgs("Short", success=0.5), StageArgs("Middle", success=0.5))
    assert curriculum.note(steps(60, successes=WINDOW))
    assert not curriculum.note(steps(60, successes=WINDOW - 1)) and curriculum.note(
        steps(1, successes=1)
    )


def test_whichever_condition_comes_first_ends_a_stage():
    both = StageArgs("Short", steps=400, success=0.9)
    mastered, slow = make(both), make(both)
    assert mastered.note(steps(50, successes=100))
    assert slow.steps_left == 100 and slow.note(steps(100, failures=100))


def test_a_saved_state_goes_on_where_it_was():
    one, two = (
        make(*STAGES, StageArgs("Long", success=0.5)),
        make(*STAGES, StageArgs("Long", success=0.5)),
    )
    for rollout in (steps(10), steps(8), steps(40, successes=60)):
        one.note(rollout)
    two.restore(json.loads(json.dumps(one.state())))
    assert two.stage == 2 and two.config == one.config
    assert two.note(steps(40, successes=40)) and one.note(steps(40, successes=40))
    with pytest.raises(CheckpointError, match="at stage 3, this one has 2"):
        make(*STAGES).restore(one.state())
    with pytest.raises(CheckpointError, match="not a saved curriculum"):
        make(*STAGES).restore({"stage": 0})


# --- in a run -------------------------------------------------------------------------------------


class Spy:
    """An env_factory whose corridors differ by level; notes what was made, met and closed."""

    def __init__(self):
        self.made, self.starts, self.envs = [], [], []

    def __call__(self, config, held_out, copies=None):
        seed = {"Short": 50, "Middle": 60, "Corridor": 0}[config.env.level] + config.run.seed
        env = (
            CorridorEnv(config.run.eval_episodes, config.run.eval_seed)
            if held_out
            else CorridorEnv(config.env.num_envs, seed)
        )
        if not held_out:
            self.made.append((config.env.level, config.env.num_distractors))
            self.envs.append(env)
            reset = env.reset
            env.reset = lambda: self.starts.append(reset()) or self.starts[-1]
        else:
            assert config.env.level == "Corridor"
        return env


def run(arm, recorder, factory, stages=STAGES):
    groups = {
        **ARMS[arm],
        "env": {"curriculum": stages},
        "run": {"total_steps": 128, "eval_every": 32},
    }
    config = small_config(**groups)
    train(config, TableLlm() if config.asks_llm else None, recorder, factory)
    return recorder


def test_training_changes_level_and_evaluation_does_not(tmp_path):
    spy = Spy()
    rows = run("teacher_feedback", MemoryRecorder(tmp_path), spy).rows
    assert spy.made == [("Short", None), ("Middle", 3), ("Corridor", None)]
    assert all(env.closed for env in spy.envs)
    # Rollouts of eight steps of four environments: 32, 40 (the stage's end), 72 (32 in the second),
    # 104, 128.
    assert [(row["env_steps"], row["stage"]) for row in rows] == [
        (0, 0),
        (32, 0),
        (72, 2),
        (104, 2),
        (128, 2),
    ]


def test_every_arm_meets_the_same_episodes_in_every_stage(tmp_path):
    starts = []
    for arm in ("teacher_feedback", "llm_policy", "drrn", "previous_online"):
        spy = Spy()
        run(arm, MemoryRecorder(tmp_path / arm), spy)
        starts.append([observations.images.tobytes() for observations in spy.starts])
    assert len(starts[0]) == 3 == len(set(starts[0])) and starts.count(starts[0]) == 4


def test_nothing_is_left_of_the_episodes_that_a_change_of_level_cut_off(tmp_path):
    class Watching(MemoryRecorder):
        def checkpoint(self, checkpoint, save_llm):
            super().checkpoint(checkpoint, save_llm)
            states.append(checkpoint.state)

    states = []
    run("previous_online", Watching(tmp_path), Spy())
    fresh = [
        state
        for state in states
        if state["curriculum"] == {"stage": 1, "steps": 0, "successes": []}
    ]
    assert len(fresh) == 1
    assert (
        fresh[0]["signals"]["previous"] == [None] * 4
        and fresh[0]["progress"]["running_returns"] == []
        and fresh[0]["said"] is None
    )
    assert fresh[0]["env"]["env"]["steps"] == [0] * 4


@pytest.mark.parametrize("stops_after", [1, 2, 3])
@pytest.mark.parametrize("arm", ["previous_online", "student_alone"])
def test_a_run_that_was_stopped_in_a_stage_goes_on_as_if_it_had_not_been(
    arm, stops_after, tmp_path
):
    stages = (*STAGES, StageArgs("Short", success=0.9, steps=24))
    unbroken = run(arm, MemoryRecorder(tmp_path / "whole"), Spy(), stages)
    fragile = FragileRecorder(tmp_path / "broken")
    fragile.rollouts_left = stops_after
    with pytest.raises(Stops):
        run(arm, fragile, Spy(), stages)
    fragile.rollouts_left = 99
    run(arm, fragile, Spy(), stages)
    assert without_seconds(fragile.rows) == without_seconds(unbroken.rows)
    assert fragile.last.state["env"] == unbroken.last.state["env"]


def test_a_checkpoint_from_before_there_were_curricula_still_fits(tmp_path):
    recorder = run("student_alone", MemoryRecorder(tmp_path), Spy(), stages=())
    assert "stage" not in recorder.rows[0]
    state = {name: value for name, value in recorder.last.state.items() if name != "curriculum"}
    recorder.last = dataclasses.replace(recorder.last, state=state)
    run("student_alone", recorder, Spy(), stages=())
