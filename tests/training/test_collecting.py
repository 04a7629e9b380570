"""Rollouts, and what the feedback edge and the LLM policy send to the servers."""

import dataclasses

import numpy as np
import pytest

from lamorel_ext.agents.making import make_agent
from lamorel_ext.agents.metering import MeteredClient
from lamorel_ext.errors import ConfigError
from lamorel_ext.experience import Decision, Discount
from lamorel_ext.methods.feedback.edge import FeedbackEdge
from lamorel_ext.methods.feedback.signals import FeedbackSignals
from lamorel_ext.prompts import ACTION_NAMES, PromptHistory, with_feedback
from lamorel_ext.randomness import Draws
from lamorel_ext.training.collecting import collect
from lamorel_ext.training.scenes import PromptedEnv
from lamorel_ext.types import GenerateRequest, ScoreRequest
from tests.training.student_fakes import LENGTH, MAX_STEPS, CorridorEnv, TableLlm, small_config


def draws(seed=0):
    return Draws(np.random.default_rng(seed), np.random.default_rng(seed + 1))


def make_parts(num_envs=4, **groups):
    """An LLM, an agent, an edge and a corridor for a configuration."""
    config = small_config(**{**groups, "env": {"num_envs": num_envs, **groups.get("env", {})}})
    llm = TableLlm()
    agent = make_agent(config, llm)
    edge = FeedbackEdge(
        config, llm, FeedbackSignals(config.feedback, num_envs, np.random.default_rng(5))
    )
    return llm, agent, edge, PromptedEnv(CorridorEnv(num_envs, 0), PromptHistory())


class Script:
    """An actor that does what it is told; a state is worth its distance from the start, plus a half
    when it faces the ball.
    """

    discount = Discount(0.5, 1.0, reward_scale=2.0)
    reads_prompts = enumerable = False

    def __init__(self, actions):
        self.actions = iter(actions)
        self.asked = []

    def decide(self, scene, draws):
        return Decision(np.array(next(self.actions)), np.zeros(len(scene)), self._worth(scene))

    def values(self, scene):
        self.asked.append(len(scene))
        return self._worth(scene)

    def _worth(self, scene):
        return scene.observations.images[:, :, 0, 0].argmax(axis=1) + 0.5 * (
            scene.observations.directions == 0
        )


class Deaf:
    """A listener that wants to know nothing, or everything at once."""

    def __init__(self, online=False):
        self.online = online

    def after_step(self, turn, discount):
        return None


def place(env, positions, facings, steps):
    history = [
        {"mission": "go to the red ball", "observations": [["nothing"]], "actions": []}
    ] * len(positions)
    corridor = {
        "episodes": [0] * len(positions),
        "steps": steps,
        "positions": positions,
        "facings": facings,
    }
    return env.restore({"env": corridor, "history": history})


@pytest.mark.parametrize("online", [False, True])
def test_values_after_a_success_a_cut_off_episode_and_the_last_step(online):
    env = PromptedEnv(CorridorEnv(3, 0), PromptHistory())
    # Walking towards the ball from the last cell, walking in place 2 with one step left, and just
    # walking on.
    scene = place(env, [LENGTH - 1, 2, 0], [1, 1, 1], [0, MAX_STEPS - 1, 0])
    actor = Script([[2, 2, 2], [3, 3, 2]])
    rollout, scene = collect(env, actor, Deaf(online), scene, 2, draws())
    reward = 1 - 0.9 / MAX_STEPS
    np.testing.assert_allclose(rollout.values[0], [5.5, 2.5, 0.5])
    assert rollout.terminated.tolist() == [[True, False, False], [False] * 3]
    assert rollout.done.tolist() == [[True, True, False], [False] * 3]
    # 2 r - 5.5;  cut off in cell 3, facing the ball: .5 * 3.5 - 2.5;  .5 * 1.5 - .5
    np.testing.assert_allclose(rollout.errors[0], [2 * reward - 5.5, -0.75, 0.25])
    # Step 1: two new episodes that stay where they are, v / 2 - v, and .5 * 2.5 - 1.5
    start = rollout.values[1]
    np.testing.assert_allclose(rollout.errors[1], [-start[0] / 2, -start[1] / 2, -0.25])
    np.testing.assert_allclose(rollout.advantages[0], [2 * reward - 5.5, -0.75, 0.25 + 0.5 * -0.25])
    np.testing.assert_allclose(rollout.returns, rollout.advantages + rollout.values)
    # One call for the episode that was cut off and the last step's three states; or all states
    # reached, at every step.
    assert actor.asked == ([3, 3] if online else [4])


@pytest.mark.parametrize("online", [False, True])
def test_a_student_gets_the_same_rollout_whether_or_not_its_values_are_asked_for_at_once(online):
    llm, agent, _, env = make_parts()
    scene = env.reset()
    rollout, _ = collect(env, agent, Deaf(False), scene, 20, draws())
    _, agent, _, env = make_parts()
    again, _ = collect(env, agent, Deaf(online), env.reset(), 20, draws())
    np.testing.assert_allclose(rollout.errors, again.errors, rtol=1e-5, atol=1e-7)


# --- the feedback edge ----------------------------------------------------------------------------


def test_one_update_per_rollout_carries_every_sample_in_order():
    llm, agent, edge, env = make_parts(
        feedback={"signal": "gae", "lr": 0.25, "loss": "clipped", "kl_coef": 0.5}
    )
    rollout, _ = collect(env, agent, edge, env.reset(), 5, draws())
    numbers = edge.after_rollout(rollout)
    (request,) = llm.updates()
    said = [turn.decision.said for turn in rollout.turns]
    assert (
        request.updater == "feedback"
        and request.total == 20
        and request.indices.tolist() == list(range(20))
    )
    assert request.prompts == tuple(prompt for words in said for prompt in words.prompts)
    assert request.candidates == (ACTION_NAMES,) * 20
    np.testing.assert_array_equal(
        request.data["chosen"], np.concatenate([words.chosen for words in said])
    )
    np.testing.assert_array_equal(request.data["signals"], np.sign(rollout.advantages).ravel())
    np.testing.assert_array_equal(
        request.data["old_log_probs"], np.concatenate([words.log_probs for words in said])
    )
    assert request.options == {
        "loss": "clipped", "lr": 0.25, "epochs": 1, "entropy_coef": 0.0, "kl_coef": 0.5,
        "clip_eps": 0.2, "max_grad_norm": 1.0, "minibatch_size": 0, "gradient_minibatch_size": 0,
        "normalise": True, "posterior": False,
    }  # fmt: skip
    assert numbers["f_positive"] == np.mean(rollout.advantages > 0)
    assert {"loss", "kl", "grad_norm"} <= set(numbers)


@pytest.mark.parametrize(
    ("every", "sizes"), [(1, [4] * 5), (2, [8, 8, 4]), (3, [12, 8]), (99, [20])]
)
def test_updates_go_out_every_k_steps_and_with_the_rest_of_a_rollout(every, sizes):
    llm, agent, edge, env = make_parts(feedback={"signal": "td", "every": every})
    rollout, _ = collect(env, agent, edge, env.reset(), 5, draws())
    edge.after_rollout(rollout)
    assert [request.total for request in llm.updates()] == sizes
    # The LLM's weights do not touch the student's critic, so the signs are those of the whole
    # rollout.
    signals = np.concatenate([request.data["signals"].numpy() for request in llm.updates()])
    np.testing.assert_array_equal(signals, np.sign(rollout.errors).ravel())


@pytest.mark.parametrize("every", [2, "rollout"])
@pytest.mark.parametrize(("warmup", "cold"), [(0, 0), (9, 3), (12, 3), (17, 5), (20, 5), (99, 5)])
def test_nothing_goes_out_or_is_counted_during_the_warm_up(warmup, cold, every):
    llm, agent, edge, env = make_parts(
        feedback={"signal": "td", "every": every, "warmup_steps": warmup}
    )
    rollout, _ = collect(env, agent, edge, env.reset(), 5, draws())  # four environments
    numbers = edge.after_rollout(rollout)
    expected = np.sign(rollout.errors[cold:]).ravel()
    sent = [request.data["signals"].numpy() for request in llm.updates()]
    np.testing.assert_array_equal(np.concatenate([*sent, []]), expected)
    assert (numbers == {}) if cold == 5 else (numbers["f_positive"] == np.mean(expected > 0))


def test_prompts_say_nothing_during_the_warm_up():
    llm, agent, edge, env = make_parts(
        feedback={"signal": "td", "channel": "prompt", "warmup_steps": 12}
    )
    rollout, scene = collect(env, agent, edge, env.reset(), 6, draws())
    told = ["last instruction" in " ".join(turn.decision.said.prompts) for turn in rollout.turns]
    assert told == [False] * 4 + [True] * 2 and scene.signals is not None


def test_the_teacher_is_asked_again_after_an_update_and_before_the_next_step():
    llm, agent, edge, env = make_parts(feedback={"signal": "td", "every": 1})
    rollout, _ = collect(env, agent, edge, env.reset(), 3, draws())
    edge.after_rollout(rollout)
    kinds = [
        "score" if isinstance(request, ScoreRequest) else request.updater
        for request in llm.requests
    ]
    assert kinds == ["score", "feedback"] * 3


def test_no_update_goes_out_where_nothing_pulls():
    llm, agent, edge, env = make_parts(
        feedback={"signal": "previous", "every": 1}
    )  # an episode's first step has no f
    rollout, _ = collect(env, agent, edge, env.reset(), 1, draws())
    numbers = edge.after_rollout(rollout)
    assert llm.updates() == [] and numbers == {"f_positive": 0.0, "f_zero": 1.0}


def test_the_prompt_channel_says_the_signal_in_the_next_prompt_and_trains_nothing():
    llm, agent, edge, env = make_parts(feedback={"signal": "td", "channel": "prompt"})
    rollout, scene = collect(env, agent, edge, env.reset(), 14, draws())
    edge.after_rollout(rollout)
    assert llm.updates() == []
    assert rollout.done.any()
    signs = np.where(rollout.done, 0.0, np.sign(rollout.errors))
    for turn, bare, f in zip(
        rollout.turns[1:], (turn.prompts for turn in rollout.turns[1:]), signs[:-1], strict=True
    ):
        assert turn.decision.said.prompts == tuple(
            with_feedback(prompt, sign) for prompt, sign in zip(bare, f, strict=True)
        )
    assert scene.signals.tolist() == signs[-1].tolist()
    assert any(
        "better" in prompt for turn in rollout.turns for prompt in turn.decision.said.prompts
    )


def test_both_channels_send_the_prompts_as_they_were_read():
    llm, agent, edge, env = make_parts(feedback={"signal": "td", "channel": "both"})
    rollout, _ = collect(env, agent, edge, env.reset(), 3, draws())
    edge.after_rollout(rollout)
    (request,) = llm.updates()
    assert request.prompts == tuple(
        prompt for turn in rollout.turns for prompt in turn.decision.said.prompts
    )
    assert any("last instruction" in prompt for prompt in request.prompts)


def test_free_guidance_sends_its_texts_alone_and_no_empty_ones():
    llm, agent, edge, env = make_parts(guidance={"vocabulary": "free"}, feedback={"signal": "td"})
    rollout, _ = collect(env, agent, edge, env.reset(), 6, draws())
    edge.after_rollout(rollout)
    (request,) = llm.updates()
    texts = [text for turn in rollout.turns for (text,) in turn.decision.said.candidates]
    assert "" in texts and request.total == len(request.prompts) < len(texts) == 24
    assert request.candidates == tuple((text,) for text in texts if text)
    assert request.options["normalise"] is False
    assert set(request.data["old_log_probs"].tolist()) == {
        -0.5 * 3,
        -0.5 * 4,
    }  # two or three words and an end, -.5 each
    generated = [request for request in llm.requests if isinstance(request, GenerateRequest)]
    assert len({request.options["seed"] for request in generated}) == 6
    assert all(
        request.options["do_sample"] is True and request.options["max_new_tokens"] == 12
        for request in generated
    )


def test_free_guidance_is_scored_as_an_update_scores_it_where_the_update_compares():
    llm, agent, edge, env = make_parts(
        guidance={"vocabulary": "free"}, feedback={"signal": "td", "loss": "clipped"}
    )
    rollout, _ = collect(env, agent, edge, env.reset(), 2, draws())
    edge.after_rollout(rollout)
    (request,) = llm.updates()
    fresh = TableLlm()
    expected = fresh.score_batch(ScoreRequest(request.prompts, request.candidates)).log_probs
    np.testing.assert_array_equal(request.data["old_log_probs"], expected)


@pytest.mark.parametrize(
    "feedback", [{"signal": "none"}, {"signal": "td", "channel": "prompt"}, {"loss": "reinforce"}]
)
def test_free_guidance_is_not_scored_again_where_no_update_compares(feedback):
    llm, agent, edge, env = make_parts(
        guidance={"vocabulary": "free"}, feedback={"loss": "clipped", **feedback}
    )
    collect(env, agent, edge, env.reset(), 2, draws())
    assert len(llm.requests) == 2
    assert all(isinstance(request, GenerateRequest) for request in llm.requests)


def test_a_signal_of_the_whole_rollout_cannot_be_said_at_once():
    with pytest.raises(ConfigError, match="gae needs the whole rollout"):
        make_parts(feedback={"signal": "gae", "channel": "prompt"})


# --- the LLM as policy ----------------------------------------------------------------------------


def test_the_llm_policy_sends_scaled_returns_and_normalised_advantages():
    llm, agent, edge, env = make_parts(
        arm={"agent": "llm_policy"}, feedback={"signal": "none"}, ppo={"lr": 0.125}
    )
    llm.values = {prompt: 3.0 for prompt in env.reset().prompts}
    rollout, _ = collect(env, agent, edge, env.reset(), 30, draws())
    assert rollout.rewards.any()
    agent.update(rollout, np.random.default_rng(0))
    agent.update(rollout, np.random.default_rng(0))
    request, again = llm.updates()
    assert request.updater == "ppo" and request.total == 120
    data = {name: tensor.numpy().reshape(30, 4) for name, tensor in request.data.items()}
    np.testing.assert_array_equal(
        data["actions"], [turn.decision.actions for turn in rollout.turns]
    )
    np.testing.assert_array_equal(data["values"], rollout.values)
    assert abs(data["advantages"].mean()) < 1e-9 and data["advantages"].std() == pytest.approx(1.0)
    t, i = (int(index[0]) for index in np.nonzero(rollout.terminated))
    np.testing.assert_allclose(
        data["returns"][t, i], 20 * rollout.rewards[t, i]
    )  # a success: nothing comes after it
    assert request.options["lr"] == 0.125 and request.options["minibatch_size"] == 64
    assert request.options["seed"] == again.options["seed"]
    old = data["old_log_probs"]
    assert (old < 0).all() and np.exp(old).mean() == pytest.approx(
        1 / 6, abs=0.1
    )  # six actions, of about the same score


def test_the_llm_policy_samples_from_the_softmax_of_summed_log_probabilities():
    llm, agent, _, env = make_parts(
        num_envs=2000, arm={"agent": "llm_policy"}, feedback={"signal": "none"}
    )
    scene = env.reset()
    prompt = scene.prompts[0]
    same = np.flatnonzero([other == prompt for other in scene.prompts])
    llm.scores = {
        f"{prompt}|{text}": score
        for text, score in zip(ACTION_NAMES, np.log([0.1, 0.2, 0.3, 0.1, 0.05, 0.05]), strict=True)
    }
    decision = agent.decide(scene.take(same), draws())
    expected = np.array([0.1, 0.2, 0.3, 0.1, 0.05, 0.05]) / 0.8
    shares = np.bincount(decision.actions, minlength=6) / len(same)
    assert len(same) > 150
    assert (
        np.abs(shares - expected) < 4 * np.sqrt(expected * (1 - expected) / len(same))
    ).all()  # four standard errors
    np.testing.assert_allclose(np.exp(decision.log_probs), expected[decision.actions], rtol=1e-6)


# --- arms without an LLM, and costs ---------------------------------------------------------------


def test_an_oracle_hints_at_the_experts_action_and_a_random_teacher_at_any():
    for teacher, hints in (("oracle", None), ("random", set(range(6)))):
        config = small_config(
            env={"num_envs": 200}, arm={"teacher": teacher}, feedback={"signal": "none"}
        )
        env = PromptedEnv(CorridorEnv(200, 0), PromptHistory(), with_experts=True)
        scene = env.reset()
        heard = make_agent(config, None).decide(scene, draws()).heard
        if hints is None:
            np.testing.assert_array_equal(heard.hints, scene.experts)
        else:
            assert set(heard.hints.tolist()) == hints
        np.testing.assert_array_equal(heard.codes.argmax(axis=1), heard.hints)
        assert heard.said is None


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"arm": {"agent": "llm_policy"}}, "llm_policy needs an LLM"),
        ({"arm": {"agent": "cloning"}}, "cloning needs an LLM"),
        ({"arm": {"teacher": "llm"}}, "llm needs an LLM"),
        ({"arm": {"teacher": "random"}, "guidance": {"vocabulary": "free"}}, "free cannot be said"),
        (
            {"arm": {"teacher": "oracle"}, "guidance": {"vocabulary": "subgoal"}},
            "subgoal cannot be said",
        ),
    ],
)
def test_an_agent_that_lacks_something_says_so(groups, message):
    with pytest.raises(ConfigError, match=message):
        make_agent(small_config(**groups), None)


def test_a_meter_counts_calls_prompts_and_tokens_but_not_while_paused():
    llm, agent, edge, env = make_parts(feedback={"signal": "gae"})
    meter = MeteredClient(llm)
    meter.score_batch(ScoreRequest(("a b", "c"), (("x",), ("y",))))
    with meter.paused():
        meter.score_batch(ScoreRequest(("a b", "c"), (("x",), ("y",))))
    rollout, _ = collect(env, agent, edge, env.reset(), 2, draws())
    edge.after_rollout(rollout)
    meter.update_batch(dataclasses.replace(llm.updates()[0]))
    assert meter.counts == {
        "llm_calls": 2.0,
        "llm_prompts": 2.0 + 8.0,
        "llm_tokens": 3.0 + 7.0,
        "llm_updates": 1.0,
        "llm_update_steps": 0.0,
        "llm_update_samples": 0.0,
    }
