"""The training loop on a corridor with a tabular LLM: budgets, columns, equality of curves,
resuming.
"""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

from lamorel_ext.agents.metering import Phases
from lamorel_ext.config import Plug, Plugs
from lamorel_ext.training import run as training_run
from lamorel_ext.training.building import make_env
from lamorel_ext.training.loop import train
from lamorel_ext.training.recorder import Checkpoint
from lamorel_ext.training.run import TrainingRun
from lamorel_ext.training.system import SystemMeter, memory_of_ranks
from lamorel_ext.types import ScoreRequest
from tests.training.student_fakes import MemoryRecorder, TableLlm, make_corridor, small_config

ARMS = {
    "llm_policy": {"arm": {"agent": "llm_policy"}, "feedback": {"signal": "none"}},
    "llm_policy+feedback": {"arm": {"agent": "llm_policy"}, "feedback": {"signal": "gae"}},
    "llm_policy+online": {"arm": {"agent": "llm_policy"}, "feedback": {"signal": "td", "every": 2}},
    "teacher_feedback": {"feedback": {"signal": "gae"}},
    "previous_online": {"feedback": {"signal": "previous", "every": 3}},
    "both": {"feedback": {"signal": "previous", "channel": "both"}},
    "prompt": {"feedback": {"signal": "state", "channel": "prompt"}},
    "shuffled": {"feedback": {"signal": "gae", "sign": "shuffled"}},
    "random": {"feedback": {"signal": "constant", "sign": "random"}},
    "warmup": {"feedback": {"signal": "gae", "warmup_steps": 50}},
    "warmup_online": {"feedback": {"signal": "previous", "every": 3, "warmup_steps": 70}},
    "warmup_prompt": {"feedback": {"signal": "state", "channel": "prompt", "warmup_steps": 70}},
    "free": {"guidance": {"vocabulary": "free"}},
    "subgoal": {"guidance": {"vocabulary": "subgoal"}},
    "glam": {"env": {"prompt": "glam"}},
    "student_alone": {"arm": {"teacher": "none"}, "feedback": {"signal": "none"}},
    "teacher_random": {"arm": {"teacher": "random"}, "feedback": {"signal": "none"}},
    "teacher_oracle": {"arm": {"teacher": "oracle"}, "feedback": {"signal": "none"}},
    "llm_policy heads": {
        "arm": {"agent": "llm_policy", "action_heads": True, "weights": "fresh"},
        "feedback": {"signal": "none"},
    },
    "random_actions": {"arm": {"agent": "random"}, "feedback": {"signal": "none"}},
    "bot": {"arm": {"agent": "bot"}, "feedback": {"signal": "none"}},
    "drrn": {
        "arm": {"agent": "drrn"},
        "feedback": {"signal": "none"},
        "drrn": {
            "num_steps": 8,
            "hidden_size": 8,
            "embedding_size": 8,
            "batch_size": 16,
            "replay_size": 90,
            "target_every": 3,
        },
    },
    "cloning": {
        "arm": {"agent": "cloning"},
        "feedback": {"signal": "none"},
        "cloning": {"num_steps": 8, "lr": 0.1},
    },
}


def run(tmp_path, recorder=None, **groups):
    recorder = recorder or MemoryRecorder(tmp_path)
    config = small_config(**groups)
    llm = TableLlm() if config.asks_llm else None
    return train(config, llm, recorder, make_corridor), recorder, llm


def without_seconds(rows):
    return [{key: repr(value) for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.fixture(scope="module", params=list(ARMS))
def whole(request, tmp_path_factory):
    """Each arm, and an uninterrupted run of it."""
    summary, recorder, _ = run(tmp_path_factory.mktemp("whole"), **ARMS[request.param])
    return request.param, summary, recorder


def test_two_runs_give_the_same_curve(whole, tmp_path):
    arm, _, recorder = whole
    assert without_seconds(run(tmp_path, **ARMS[arm])[1].rows) == without_seconds(recorder.rows)


def test_another_seed_gives_another_curve(tmp_path):
    curves = [without_seconds(run(tmp_path, run={"seed": seed})[1].rows) for seed in (0, 1)]
    assert curves[0] != curves[1]


def test_rows_come_at_the_start_when_due_and_at_the_end_with_the_same_columns(whole):
    arm, summary, recorder = whole
    assert [row["env_steps"] for row in recorder.rows] == [0, 64, 128]
    assert len({tuple(row) for row in recorder.rows}) == 1
    for row in recorder.rows[1:]:
        missing = [name for name, value in row.items() if math.isnan(value)]
        cold = arm.startswith("warmup") and row["env_steps"] == 64
        # The table does not give all numbers of PPO and cloning, and there is no feedback during a
        # warm-up.
        expected = arm.startswith(("llm_policy", "cloning")) or (
            cold and all(name.startswith("feedback_") for name in missing)
        )
        assert not missing or expected, missing
    assert summary.env_steps == 128
    assert summary.last_row["success"] == recorder.rows[-1]["success"]


class Stops(Exception):
    """The power went out."""


class FragileRecorder(MemoryRecorder):
    """Raises after a number of rollouts, before the checkpoint that comes after them."""

    rollouts_left = 2

    def checkpoint(self, checkpoint, save_llm):
        self.rollouts_left -= 1
        if self.rollouts_left < 0:
            raise Stops
        super().checkpoint(checkpoint, save_llm)
        state = json.loads(
            json.dumps(self.last.state, allow_nan=False)
        )  # what a file would give back
        self.last = Checkpoint(self.last.env_steps, self.last.tensors, state, self.last.llm_folder)


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(whole, tmp_path):
    arm, _, unbroken = whole
    fragile = FragileRecorder(tmp_path)
    with pytest.raises(Stops):
        run(tmp_path, fragile, **ARMS[arm])
    assert len(fragile.rows) == 2 and fragile.last.env_steps == 64
    fragile.rollouts_left = 9
    run(tmp_path, fragile, **ARMS[arm])
    assert without_seconds(fragile.rows) == without_seconds(unbroken.rows)
    assert fragile.last.tensors.keys() == unbroken.last.tensors.keys()
    for name, tensor in unbroken.last.tensors.items():
        assert torch.equal(tensor, fragile.last.tensors[name]), name
    if unbroken.last.llm_folder:
        tables = [
            Path(recorder.last.llm_folder, "table.json").read_text()
            for recorder in (unbroken, fragile)
        ]
        assert tables[0] == tables[1]


def test_a_finished_run_is_not_run_again(tmp_path):
    _, recorder, _ = run(tmp_path)
    rows = list(recorder.rows)
    summary, _, llm = run(tmp_path, recorder)
    assert recorder.rows == rows and llm.requests == []
    assert summary.last_row["success"] == rows[-1]["success"]


@pytest.mark.parametrize(
    "total, num_envs, expected", [(40, 16, 48), (40, 4, 40), (2100, 12, 2100), (5, 1, 5)]
)
def test_the_budget_is_exact_where_the_number_of_copies_divides_it(
    total, num_envs, expected, tmp_path
):
    groups = {
        "env": {"num_envs": num_envs},
        "run": {
            "total_steps": total,
            "eval_every": 10_000,
            "checkpoint_every": 0,
            "eval_episodes": 2,
        },
    }
    summary, recorder, _ = run(
        tmp_path, **groups, arm={"teacher": "none"}, feedback={"signal": "none"}
    )
    assert summary.env_steps == expected
    assert [row["env_steps"] for row in recorder.rows] == [0, expected]
    assert recorder.last.env_steps == expected


def test_training_rows_count_finished_episodes(tmp_path):
    _, recorder, _ = run(
        tmp_path,
        arm={"teacher": "oracle"},
        feedback={"signal": "none"},
        student={"kappa": 50.0, "lr": 0.0},
    )
    last = recorder.rows[-1]
    # The expert, obeyed: at most a turn and six steps forward, so every episode ends in success.
    assert (
        last["train_success"] == 1.0 and last["success"] == 1.0 and last["teacher_success"] == 1.0
    )
    assert last["episodes"] >= 128 / 7 - 4
    assert 1 - 0.9 * 7 / 12 <= last["train_return"] <= 1.0


LONG = {
    "env": {"num_envs": 16},
    "student": {"lr": 5e-3, "hidden_size": 64},
    "run": {"total_steps": 1536, "eval_every": 2048, "checkpoint_every": 0, "eval_episodes": 100},
}


SEEDS = range(6)
"""A single seed's success hangs on the last bits of its arithmetic, which differ between
processors; how many of six learn does not.
"""


def curves_of(folder, **groups):
    """The first and last row of each seed's run."""
    rows = []
    for seed in SEEDS:
        _, recorder, _ = run(
            folder / str(seed), **{**LONG, **groups, "run": {**LONG["run"], "seed": seed}}
        )
        rows.append((recorder.rows[0], recorder.rows[-1]))
    return rows


def gaining(rows, name, gain=0.25):
    """How many seeds' last row is at least ``gain`` ahead of their first."""
    return sum(last[name] > first[name] + gain for first, last in rows)


def test_the_student_learns_alone(tmp_path):
    rows = curves_of(tmp_path, arm={"teacher": "none"}, feedback={"signal": "none"})
    # Measured: 0.60 to 0.96 after 0.05 to 0.09 at the start, all of six.
    assert all(first["success"] < 0.2 for first, _ in rows) and gaining(rows, "success") >= 4


def test_the_feedback_edge_makes_a_better_teacher(tmp_path):
    student = {
        **LONG["student"],
        "kappa": 50.0,
    }  # a student that obeys: what it achieves is the teacher's doing
    taught = curves_of(tmp_path, student=student, feedback={"signal": "gae", "lr": 0.1})
    _, frozen, _ = run(tmp_path, **{**LONG, "student": student}, feedback={"signal": "none"})
    before = taught[0][0]["teacher_success"]
    assert frozen.rows[0]["teacher_success"] == frozen.rows[-1]["teacher_success"] == before
    # Measured: five of six, 0.53 to 0.92 after 0.02 to 0.06.
    assert gaining(taught, "teacher_success") >= 3


def test_the_llm_policy_learns(tmp_path):
    # Measured: all of six, 0.37 to 0.90 after 0.03 to 0.06.
    assert gaining(curves_of(tmp_path, **ARMS["llm_policy"]), "success") >= 4


def test_the_bot_always_succeeds_and_random_actions_do_as_well_at_the_end_as_at_the_start(tmp_path):
    bot, random = (run(tmp_path / arm, **ARMS[arm])[1].rows for arm in ("bot", "random_actions"))
    assert [row["success"] for row in bot] == [1.0] * 3 and bot[-1]["train_success"] == 1.0
    assert len({row["success"] for row in random}) == 1 and random[0]["success"] < 0.5
    assert bot[-1]["llm_calls"] == random[-1]["llm_calls"] == 0


def test_missions_that_end_in_failure_are_counted_apart_from_those_that_ran_out_of_time(tmp_path):
    recorder = MemoryRecorder(tmp_path)
    env = {"level": "BabyAI-OpenDoorsOrderN4Debug-v0", "num_envs": 4}
    length = {"total_steps": 512, "eval_every": 512, "evaluation": "episodes", "eval_episodes": 2}
    train(small_config(**ARMS["bot"], env=env, run=length), None, recorder, make_env)
    last = recorder.rows[-1]
    # The bot fails missions of two doors, which nobody can win, and is never out of time.
    assert 0 < last["train_failed"] == 1 - last["train_success"] < 1
    corridor = run(tmp_path / "corridor", **ARMS["random_actions"])[1].rows[-1]
    assert corridor["train_failed"] == 0.0 and corridor["train_success"] < 1


def test_cloning_learns_from_the_experts_actions_and_is_evaluated_acting_alone(tmp_path):
    groups = {**LONG, **ARMS["cloning"], "cloning": {"num_steps": 8, "lr": 0.5}}
    _, recorder, llm = run(tmp_path, **groups)
    first, last = recorder.rows[0], recorder.rows[-1]
    # Measured over six seeds: 0.03 to 0.06 at the start, 1.0 at the end; the expert's labels leave
    # no room for luck.
    assert first["success"] < 0.3 and last["success"] > 0.9 and last["train_success"] == 1.0
    request = llm.updates()[0]
    facing = ["forward" in prompt for prompt in request.prompts]
    assert request.updater == "supervised" and request.data["targets"].tolist() == [
        2 if f else 0 for f in facing
    ]
    assert (
        last["llm_calls"] == len(llm.updates()) == 1536 / (16 * 8)
    )  # training asks the LLM nothing


def test_a_run_says_what_weights_it_starts_from_and_which_heads_it_needs(tmp_path):
    for arm, expected in (
        ("llm_policy", ("pretrained", ("actions",))),
        ("llm_policy heads", ("fresh", ())),
    ):
        assert run(tmp_path / arm, **ARMS[arm], run={"total_steps": 4})[2].started_from == expected


def test_a_head_of_another_arm_is_no_part_of_a_run(tmp_path):
    class Shared(TableLlm):
        def info(self):
            return {"module_functions": "value,actions,theirs,mine"}

    llm = Shared()
    heads = Plugs((("mine", Plug("torch.nn.Identity")),))
    config = dataclasses.replace(small_config(run={"total_steps": 4}), heads=heads)
    train(config, llm, MemoryRecorder(tmp_path), make_corridor)
    assert llm.started_from == ("pretrained", ("actions", "theirs"))


def test_an_llm_with_action_heads_learns_as_one_whose_texts_have_those_scores(tmp_path):
    # The table's logits are the texts' scores, so that the two must do the same.
    rows = {}
    for name, heads in (("texts", False), ("heads", True)):
        arm = {"agent": "llm_policy", "action_heads": heads}
        _, recorder, llm = run(tmp_path / name, arm=arm, feedback={"signal": "none"})
        rows[name] = [
            {key: value for key, value in row.items() if key != "seconds"} for row in recorder.rows
        ]
        options = llm.updates()[0].options
        assert options.get("policy_module") == ("actions" if heads else None)
        asked = [request for request in llm.requests if isinstance(request, ScoreRequest)]
        assert {request.score for request in asked} == ({False} if heads else {False, True})
    for one, other in zip(rows["texts"], rows["heads"], strict=True):
        assert one == pytest.approx(other, abs=1e-6, nan_ok=True)


def test_evaluation_costs_nothing_and_training_is_counted(tmp_path):
    _, recorder, llm = run(tmp_path)
    assert recorder.rows[0]["llm_calls"] == 0
    # 32 steps of scoring four prompts, and four updates of 32 samples
    assert recorder.rows[-1]["llm_calls"] == 32 + 4
    assert recorder.rows[-1]["llm_prompts"] == 32 * 4 + 4 * 32
    assert len(llm.requests) > 36
    assert llm.reset_seeds == [0]


def test_arms_of_one_seed_meet_the_same_episodes(tmp_path):
    seen = []

    def spy(config, held_out):
        env = make_corridor(config, held_out)
        reset = env.reset
        env.reset = lambda: seen.append((held_out, reset())) or seen[-1][1]
        return env

    for arm in ("llm_policy", "teacher_feedback", "student_alone"):
        config = small_config(**ARMS[arm])
        train(config, TableLlm(), MemoryRecorder(tmp_path), spy)
    starts = [observations.images.tobytes() for held_out, observations in seen if not held_out]
    held_out = [observations.images.tobytes() for held_out, observations in seen if held_out]
    assert len(starts) == 3 and len(set(starts)) == 1
    assert len(held_out) >= 9 and len(set(held_out)) == 1


# --- how a run uses its machines ------------------------------------------------------------------


class Clock:
    """Stands still until it is moved."""

    now = 100.0

    def __call__(self):
        return self.now


def test_a_phase_takes_its_seconds_from_the_one_around_it():
    phases = Phases(clock := Clock())
    with phases.phase("collecting"):
        clock.now += 1
        for _ in range(2):
            with phases.phase("scoring"):
                clock.now += 3
        with pytest.raises(Stops), phases.phase("scoring"):
            clock.now += 5
            raise Stops
        clock.now += 1
    assert phases.seconds == {"collecting": 2, "scoring": 11}


def test_a_sample_tells_of_what_was_done_since_the_last_one():
    phases = Phases(clock := Clock())
    meter = SystemMeter(phases, clock)
    meter.start(100)  # of a resumed run
    assert meter.due
    for wait in (1, 3):
        with phases.phase("scoring"):
            clock.now += wait
    phases.hear({"tokens": 80.0, "prompts": 10.0, "cached_prompts": 5.0, "queue_seconds": 0.25})
    phases.hear({"tokens": 80.0, "prompts": 10.0, "cached_prompts": 0.0, "queue_seconds": 0.75})
    first = meter.sample({"env_steps": 140.0}, {1: 5.0, 0: 7.0})
    assert first["seconds"] == 4 and first["seconds_scoring"] == 4 and first["seconds_saving"] == 0
    assert first["env_steps"] == 140 and first["env_steps_per_s"] == 10
    assert (first["tokens_per_s"], first["prompts_per_s"], first["memory_hits"]) == (40, 5, 0.25)
    assert first["server_queue_seconds"] == 0.5 and first["memory_mib_rank_1"] == 5
    assert first["answer_seconds_p50"] == 2 and 2.9 < first["answer_seconds_p99"] < 3
    clock.now += 4
    assert not meter.due
    clock.now += 1
    assert meter.due
    phases.hear({"tokens": 10.0, "prompts": 1.0})
    second = meter.sample({"env_steps": 145.0}, {})
    assert (second["env_steps_per_s"], second["tokens_per_s"], second["memory_hits"]) == (1, 2, 0)
    assert "answer_seconds_p50" not in second  # nothing was waited for meanwhile
    clock.now += 5
    assert meter.sample({"env_steps": 145.0}, {})["tokens_per_s"] == 0


def test_samples_grow_rarer_with_a_long_run_but_not_rarer_than_once_a_minute():
    meter = SystemMeter(Phases(clock := Clock()), clock)
    pauses = []
    for age in (0, 500, 4000, 1e6):
        clock.now = 100.0 + age
        meter.sample({"env_steps": 0.0}, {})
        begun = clock.now
        while not meter.due:
            clock.now += 1
        pauses.append(clock.now - begun)
    assert pauses == [5, 5, 21, 60]


def test_clients_stand_before_servers_in_the_memory_of_ranks():
    told = {"name": "t5", "num_servers": 2, "memory_mib_server_1": 4.0, "memory_mib_server_0": 3.0}
    assert memory_of_ranks([1.0, 2.0], told) == {0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0}
    assert memory_of_ranks([1.0], None) == {0: 1.0}


@pytest.mark.parametrize("arm", ["teacher_feedback", "student_alone", "bot"])
def test_samples_change_no_curve(tmp_path, arm, monkeypatch):
    told = []
    monkeypatch.setattr(training_run, "return_freed_memory", lambda: told.append("returned"))
    monkeypatch.setattr(training_run, "resident_mib", lambda: told.append("read") or 11.0)
    _, watched, _ = run(tmp_path, **ARMS[arm])
    assert told == ["returned", "read"] * len(watched.samples)
    monkeypatch.setattr(TrainingRun, "system_sample", lambda self: None)
    assert without_seconds(watched.rows) == without_seconds(run(tmp_path, **ARMS[arm])[1].rows)
    last = watched.samples[-1]
    assert last["env_steps"] == watched.rows[-1]["env_steps"]
    phases = sum(value for name, value in last.items() if name.startswith("seconds_"))
    assert 0 < phases <= last["seconds"] and last["memory_mib_rank_0"] == 11
    assert ("tokens_per_s" in last) == (arm == "teacher_feedback")
