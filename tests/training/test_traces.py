"""Recorded rollouts: they say what happened, and recording them changes nothing."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from lamorel_ext.errors import CheckpointError
from lamorel_ext.methods.feedback.signals import FeedbackSignals
from lamorel_ext.training.loop import train
from lamorel_ext.training.progress import Progress
from lamorel_ext.training.run import TrainingRun
from lamorel_ext.training.trace import MAX_STEPS, Tracer
from lamorel_ext.training.trace_lines import Course
from lamorel_ext.types import ScoreRequest, ScoreResult, UpdateResult
from tests.training.student_fakes import MemoryRecorder, TableLlm, make_corridor, small_config
from tests.training.test_training import ARMS, FragileRecorder, Stops, without_seconds

WATCHED = (
    "llm_policy", "llm_policy+feedback", "llm_policy+online", "teacher_feedback", "previous_online",
    "both", "free", "shuffled", "warmup_online", "student_alone", "teacher_oracle", "drrn",
    "cloning",
)  # fmt: skip
"""The arms in which recording does something different."""


class RememberingLlm(TableLlm):
    """Remembers answers until the weights change or it is told to forget, as a server does; how an
    answer is rounded depends on how many questions were answered afresh with it, and only those
    cost tokens. Those that a KL term asks the initial weights outlive updates."""

    def __init__(self):
        super().__init__()
        self.memory = {}
        self.reference = set()

    def score_batch(self, request: ScoreRequest) -> ScoreResult:
        exact = super().score_batch(request)
        rows = exact.split() if request.score else [None] * len(request.prompts)
        keys = [
            (prompt, request.candidates[i] if request.score else (), request.modules)
            for i, prompt in enumerate(request.prompts)
        ]
        fresh = [i for i, key in enumerate(keys) if key not in self.memory]
        for i in fresh:
            modules = {
                name: values[i].numpy() + 1e-3 * len(fresh)
                for name, values in exact.modules.items()
            }
            self.memory[keys[i]] = (
                None
                if rows[i] is None
                else rows[i].numpy() + 1e-3 * len(fresh) * np.arange(len(rows[i])),
                modules,
            )
        known = [self.memory[key] for key in keys]
        log_probs = (
            np.concatenate([scores for scores, _ in known]) if request.score else np.zeros(0)
        )
        modules = {name: np.stack([values[name] for _, values in known]) for name in exact.modules}
        as_tensor = exact.log_probs.new_tensor
        stats = {"tokens": float(len(fresh))}
        return dataclasses.replace(
            exact,
            log_probs=as_tensor(log_probs),
            modules={n: as_tensor(v) for n, v in modules.items()},
            stats=stats,
        )

    def update_batch(self, request):
        self.memory.clear()
        stats = super().update_batch(request).stats
        if request.options.get("kl_coef"):
            asked = set(zip(request.prompts, request.candidates, strict=True))
            stats = {**stats, "scored_tokens": 7.0 + len(asked - self.reference)}
            self.reference |= asked
        return UpdateResult(stats)

    def reset(self, *how):
        self.memory.clear()
        super().reset(*how)

    def load(self, folder):
        self.memory.clear()
        super().load(folder)

    def forget(self, reference=True):
        self.memory.clear()
        if reference:
            self.reference.clear()


def run(folder, trace_every, recorder=None, **groups):
    recorder = recorder or MemoryRecorder(folder)
    config = small_config(
        **{
            **groups,
            "run": {"eval_episodes": 6, **groups.get("run", {}), "trace_every": trace_every},
        }
    )
    llm = (
        RememberingLlm()
        if config.arm.teacher == "llm" or config.arm.agent == "llm_policy"
        else None
    )
    train(config, llm, recorder, make_corridor)
    return config, recorder, llm


def lines_of(trace, kind):
    return [line for line in trace.lines if line["kind"] == kind]


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """Arms by name, each trained once with every rollout recorded."""
    made = {}

    def get(arm):
        if arm not in made:
            made[arm] = run(tmp_path_factory.mktemp("traced"), 1, **ARMS[arm])
        return made[arm]

    return get


# --- nothing changes ------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", WATCHED)
def test_a_run_is_the_same_to_the_last_bit_whether_it_is_recorded_or_not(arm, traced, tmp_path):
    _, recorded, asked = traced(arm)
    _, plain, llm = run(tmp_path, 0, **ARMS[arm])
    assert len(recorded.traces) == 4 and plain.traces == {}
    assert without_seconds(recorded.rows) == without_seconds(plain.rows)
    assert {name: tensor.tolist() for name, tensor in recorded.last.tensors.items()} == {
        name: tensor.tolist() for name, tensor in plain.last.tensors.items()
    }
    unwatched = {key: value for key, value in plain.last.state.items() if key != "progress"}
    assert {
        key: value for key, value in recorded.last.state.items() if key != "progress"
    } == unwatched
    if llm is not None:
        assert (asked.scores, asked.values, asked.updates().__len__()) == (
            llm.scores,
            llm.values,
            len(llm.updates()),
        )


def test_recording_makes_no_kl_term_dearer(tmp_path):
    feedback = {"signal": "td", "every": 1, "kl_coef": 0.1}
    plain, recorded = (run(tmp_path, every, feedback=feedback)[1].rows for every in (0, 1))
    assert without_seconds(recorded) == without_seconds(plain)


def test_the_first_test_would_see_an_answer_too_many(traced, tmp_path, monkeypatch):
    class Careless(Tracer):
        def collected(self, rollout, agent):
            super().collected(rollout, agent)
            said = rollout.turns[0].decision.said
            self._llm.score_batch(
                ScoreRequest(("something else",) + said.prompts[:1], said.candidates[:2])
            )

    monkeypatch.setattr("lamorel_ext.training.run.Tracer", Careless)
    _, careless, _ = run(tmp_path, 1, **ARMS["teacher_feedback"])
    assert without_seconds(careless.rows) != without_seconds(traced("teacher_feedback")[1].rows)


# --- which rollouts -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "total", "expected"),
    [
        (0, 128, []),
        (1, 128, [0, 32, 64, 96]),
        (3, 128, [0, 96]),
        (100, 128, [0, 96]),
        (100, 140, [0, 96, 128]),
        (2, 160, [0, 64, 128]),
    ],
)
def test_the_first_every_nth_the_last_full_one_and_the_rest_are_recorded(
    every, total, expected, tmp_path
):
    run_args = {"total_steps": total, "eval_every": 10_000, "eval_episodes": 2}
    _, recorder, _ = run(tmp_path, every, **ARMS["student_alone"], run=run_args)
    assert list(recorder.traces) == expected


def test_a_long_rollout_is_cut_and_says_so(tmp_path):
    groups = {
        "student": {"num_steps": MAX_STEPS + 7},
        "env": {"num_envs": 1},
        "run": {"total_steps": 2 * (MAX_STEPS + 7), "eval_episodes": 2},
    }
    _, recorder, llm = run(tmp_path, 1, **groups, feedback={"signal": "td", "every": 1})
    first, second = recorder.traces.values()
    assert (
        lines_of(first, "trace")[0]["left_out"] == 7 and len(lines_of(first, "step")) == MAX_STEPS
    )
    assert len(lines_of(first, "update")) <= MAX_STEPS and all(
        step["llm"]["after"] for step in lines_of(first, "step") if step["signal"]
    )
    # The steps between are counted: episode numbers and actions of the second trace follow on.
    ends = sum(step["end"] is not None for step in lines_of(first, "step"))
    assert lines_of(second, "episode")[0]["number"] >= ends
    assert len(first.text()) < 300_000


# --- what is recorded -----------------------------------------------------------------------------


@pytest.mark.parametrize("arm", WATCHED)
def test_every_line_is_plain_json_and_steps_follow_their_episode(arm, traced):
    for trace in traced(arm)[1].traces.values():
        lines = [json.loads(line) for line in trace.text().splitlines()]
        assert lines == list(trace.lines)
        assert (
            lines[0]["kind"] == "trace"
            and lines[0]["version"] == 1
            and lines[1]["kind"] == "episode"
        )
        kinds = [line["kind"] for line in lines]
        for place, line in enumerate(lines[:-1]):
            if line["kind"] == "step" and kinds[place + 1] != "update":
                assert kinds[place + 1] == ("episode" if line["end"] else "step")


def test_episodes_follow_the_environment_through_all_rollouts(traced):
    """Actions before a trace, and in it, are those of the episode of that number, played again in
    an environment of its own.
    """
    config, recorder, _ = traced("teacher_feedback")
    env = make_corridor(config, False)
    observations, number, actions = env.reset(), 0, []
    for trace in recorder.traces.values():
        for line in trace.lines:
            if line["kind"] == "episode":
                assert (line["number"], line["actions"], line["mission"]) == (
                    number,
                    actions,
                    observations.missions[0],
                )
            if line["kind"] == "step":
                assert (
                    line["view"] == observations.images[0].tobytes().hex()
                    and line["direction"] == observations.directions[0]
                )
                assert tuple(line["sentences"]) == observations.descriptions[0]
                step = env.step(np.array([line["action"]] * 4))
                # The other three environments go their own ways; the first one does not depend on
                # them.
                assert (
                    line["reward"] == pytest.approx(step.rewards[0])
                    and (line["end"] is not None) == step.done[0]
                )
                observations, actions = (
                    step.current,
                    [] if step.done[0] else [*actions, line["action"]],
                )
                number += int(step.done[0])
    assert number >= 2


@pytest.mark.parametrize(
    ("rewards", "told", "won"),
    [
        ((0.0, 1.0), None, True),
        ((0.0, 0.0), None, False),
        ((1.0, 0.0), None, True),  # the return is above 0, the last reward is not
        ((0.0, 1.0), False, False),  # a reward for coming near
        ((0.0, 0.0), True, True),  # a success without a reward
        ((1.0, -2.0), None, False),
    ],
)
def test_an_episode_is_won_where_the_run_counts_it_so(rewards, told, won):
    done = np.array([[False], [True]])
    turns = [
        SimpleNamespace(
            step=SimpleNamespace(
                succeeded=None if told is None else np.array([told]),
                done=over,
                terminated=over,
            ),
            decision=SimpleNamespace(actions=np.zeros(1, dtype=int)),
        )
        for over in done
    ]
    rollout = SimpleNamespace(
        turns=turns,
        rewards=np.array(rewards)[:, None],
        done=done,
        terminated=done,
        errors=np.zeros((2, 1)),
    )
    course, progress = Course(), Progress()
    course.advance(rollout, 0)
    assert course.won(rollout, 1) is won
    progress.note(rollout, 1.0)
    assert progress.averages.take(("train_success",)) == {"train_success": float(won)}
    course.advance(rollout, 1)
    assert course == Course(1, [], None, 0.0)
    unknown = Course(None, None, None, None)  # resumed in the middle of an episode
    assert unknown.won(rollout, 1) is (None if told is None else won)


def test_only_the_last_step_of_an_episode_says_whether_it_was_won(traced):
    steps = [
        line
        for trace in traced("teacher_oracle")[1].traces.values()
        for line in lines_of(trace, "step")
    ]
    assert all(("won" in step) == (step["end"] is not None) for step in steps)
    assert {step["won"] for step in steps if step["end"]} == {True}
    assert all(step["reward"] > 0 for step in steps if step["end"])


def test_errors_and_advantages_follow_from_values_and_rewards(traced):
    kinds = set()
    for trace in traced("teacher_oracle")[1].traces.values():
        steps = lines_of(trace, "step")
        for now, then in zip(steps, steps[1:], strict=False):
            going_on = now["end"] is None
            ahead = 0.99 * then["value"] if going_on else 0.0
            if (
                now["end"] != "truncated"
            ):  # there the value ahead is that of a state that is not shown
                assert now["error"] == pytest.approx(now["reward"] + ahead - now["value"], abs=1e-5)
                assert now["advantage"] == pytest.approx(
                    now["error"] + 0.99 * 0.95 * then["advantage"] * going_on, abs=1e-5
                )
            assert then["previous"] == (now["error"] if going_on else None)
            kinds.add(now["end"])
    assert kinds >= {None, "terminated"}


@pytest.mark.parametrize("arm", ["previous_online", "both", "llm_policy+online"])
def test_the_signal_is_the_rule_applied_to_what_is_shown(arm, traced):
    """The sign of every step follows from the two errors beside it, by a FeedbackSignals of its
    own.
    """
    config, recorder, _ = traced(arm)
    rule = FeedbackSignals(config.feedback, 1, np.random.default_rng(0))
    seen = set()
    for trace in recorder.traces.values():
        for step in lines_of(trace, "step"):
            expected = rule.step(
                np.array([step["error"]]), [""], np.array([step["end"] is not None])
            )
            assert step["signal"] == expected[0]
            if config.feedback.signal == "previous" and step["previous"] is not None:
                assert step["signal"] == (-1.0 if step["previous"] > step["error"] else 1.0)
            seen.add(step["signal"])
    assert {-1.0, 1.0} <= seen


def test_probabilities_before_and_after_are_those_of_the_weights_before_and_after(traced, tmp_path):
    """One update per rollout: what a trace calls after is what a table says that was saved after
    that rollout.
    """
    config, recorder, _ = traced("teacher_feedback")
    trace = list(recorder.traces.values())[-1]
    llm = TableLlm()
    llm.load(recorder.last.llm_folder)
    moved = 0
    for step in lines_of(trace, "step"):
        said, candidates = step["llm"], lines_of(trace, "episode")[0]["candidates"]
        exact = np.array([llm._score(step["prompt"], text) for text in candidates])
        # RememberingLlm rounds: each answer is off by a multiple of the candidate's place.
        off = (np.array(said["after"]) - exact) / 1e-3
        assert off == pytest.approx(np.round(off[1]) * np.arange(6), abs=1e-2)
        assert said["update"] == 0 and said["text"] == candidates[said["chosen"]]
        moved += said["after"] != said["before"]
    assert moved and lines_of(trace, "update")[0]["stats"]["grad_norm"] == 1.0


def test_in_an_online_arm_each_step_names_the_update_that_it_went_into(traced):
    for trace in traced("previous_online")[1].traces.values():
        steps, updates = lines_of(trace, "step"), lines_of(trace, "update")
        assert [update["number"] for update in updates] == [0, 1, 2] and [
            update["samples"] for update in updates
        ] == [12, 12, 8]
        assert [step["llm"]["update"] for step in steps] == [0, 0, 0, 1, 1, 1, 2, 2]


def test_a_frozen_teacher_has_no_after(tmp_path):
    _, recorder, _ = run(tmp_path, 1, feedback={"signal": "none"})
    for trace in recorder.traces.values():
        assert lines_of(trace, "update") == []
        assert all(
            step["llm"]["before"] and step["llm"]["after"] is None and step["signal"] is None
            for step in lines_of(trace, "step")
        )


def test_the_llm_policy_shows_the_feedbacks_update_and_its_own_apart(traced):
    for trace in traced("llm_policy+feedback")[1].traces.values():
        for step in lines_of(trace, "step"):
            said = step["llm"]
            assert (
                said["chosen"] == step["action"]
                and step["guidance"] is None
                and step["policy"] is None
            )
            assert said["before"] != said["after"] and said["after"] != said["later"]
    said = lines_of(traced("llm_policy")[1].traces[0], "step")[0]["llm"]
    assert said["after"] is None and said["later"] != said["before"]


def test_free_guidance_is_scored_before_and_after_and_the_empty_text_is_not(traced):
    steps = [
        step for trace in traced("free")[1].traces.values() for step in lines_of(trace, "step")
    ]
    assert {step["llm"]["text"] for step in steps} == {"turn left", "go forward now", ""}
    for step in steps:
        assert step["policy"]["mixed"] is None and step["guidance"]["text"] == step["llm"]["text"]
        scored = [step["llm"][name] for name in ("before", "after")]
        assert (
            (scored == [None, None])
            if step["llm"]["text"] == ""
            else all(len(row) == 1 for row in scored)
        )


def test_the_policy_is_shown_as_it_was_when_it_acted_with_and_without_guidance(traced):
    config = small_config(**ARMS["teacher_feedback"])
    with TrainingRun(config, TableLlm(), make_corridor) as fresh:
        fresh.start(None)
        network = fresh.agent.network
    first = lines_of(traced("teacher_feedback")[1].traces[0], "step")[0]
    policy, said = first["policy"], first["llm"]
    assert sum(policy["heard"]) == pytest.approx(1, abs=1e-5) and sum(
        policy["silent"]
    ) == pytest.approx(1, abs=1e-5)
    # An untrained student: uniform without a hint, e^kappa at the hint against 1 elsewhere with
    # one; weights of gain 0.01 hardly matter.
    kappa = float(network.hint_bias.detach()[0, 0])
    obeyed = np.exp(kappa) / (np.exp(kappa) + 5)
    assert policy["heard"][first["guidance"]["hint"]] == pytest.approx(
        obeyed, abs=0.02
    )  # the small last layer moves it by a percent
    assert policy["silent"] == pytest.approx([1 / 6] * 6, abs=0.02)  # likewise
    teacher = np.exp(said["before"]) / np.exp(said["before"]).sum()
    mixed = teacher * obeyed + (1 - teacher) * (1 - obeyed) / 5
    assert policy["mixed"] == pytest.approx(mixed.tolist(), abs=0.02)  # likewise


def test_teachers_that_are_no_llm_show_what_they_would_say(traced):
    for step in lines_of(traced("teacher_random")[1].traces[0], "step"):
        assert step["llm"] is None and step["guidance"]["teacher"] == pytest.approx(
            [1 / 6] * 6, abs=1e-5
        )
    for step in lines_of(traced("teacher_oracle")[1].traces[0], "step"):
        assert step["guidance"]["teacher"][step["guidance"]["hint"]] == 1.0
        assert step["policy"]["mixed"] == pytest.approx(step["policy"]["heard"], abs=1e-5)
    for step in lines_of(traced("student_alone")[1].traces[0], "step"):
        assert (
            step["guidance"] is None
            and step["policy"]["silent"] is None
            and len(step["policy"]["heard"]) == 6
        )


def test_agents_to_compare_with_show_their_own_policy_unless_the_llm_would_have_to_be_asked(
    traced, tmp_path
):
    for step in lines_of(traced("drrn")[1].traces[0], "step"):
        assert step["llm"] is None and step["policy"]["silent"] is None
        assert step["policy"]["heard"][step["action"]] == pytest.approx(
            step["probability"], abs=1e-5
        )
    for step in lines_of(traced("cloning")[1].traces[0], "step"):
        assert (step["llm"], step["policy"], step["probability"]) == (None, None, 1.0)


def test_steps_of_a_warm_up_have_no_signal_and_those_after_it_have(traced):
    steps = [
        step
        for trace in traced("warmup_online")[1].traces.values()
        for step in lines_of(trace, "step")
    ]
    assert [step["signal"] is None for step in steps] == [True] * 18 + [
        False
    ] * 14  # 70 steps of 4 environments, rounded up


# --- resuming -------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ["teacher_feedback", "previous_online", "student_alone"])
def test_a_resumed_run_has_the_traces_of_one_that_was_not_stopped(arm, traced, tmp_path):
    unbroken = traced(arm)[1]
    fragile = FragileRecorder(tmp_path)
    with pytest.raises(Stops):
        run(tmp_path, 1, fragile, **ARMS[arm])
    assert list(fragile.traces) == [0, 32, 64] and fragile.last.env_steps == 64
    fragile.rollouts_left = 9
    run(tmp_path, 1, fragile, **ARMS[arm])
    assert {steps: trace.text() for steps, trace in fragile.traces.items()} == {
        steps: trace.text() for steps, trace in unbroken.traces.items()
    }


def test_a_checkpoint_without_a_course_leaves_the_episode_unknown():
    tracer = Tracer(small_config(), None)
    tracer.restore(None)
    assert tracer.state() == {"episode": None, "actions": None, "error": None, "returned": None}
    tracer.restore({"episode": 3, "actions": [1], "error": 0.5})  # of an earlier version
    assert tracer.state()["returned"] is None
    with pytest.raises(CheckpointError, match="'actions'"):
        tracer.restore({"episode": 3})
    assert Course() == Course(0, [], None)
