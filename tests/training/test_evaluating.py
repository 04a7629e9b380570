"""Exact evaluation against simulation and known numbers, and evaluation on held-out episodes."""

import dataclasses
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from experiments.evaluate import evaluate
from lamorel_ext.agents.actors import ExpertActor, UniformActor
from lamorel_ext.agents.features import encode_observations
from lamorel_ext.agents.guidance import NO_HINT
from lamorel_ext.agents.making import make_agent
from lamorel_ext.config import ArmArgs, Config, EnvArgs, FeedbackArgs, GuidanceArgs, RunArgs
from lamorel_ext.envs.babyai.enumeration import evaluate_policy, state_table
from lamorel_ext.envs.babyai.expert import Expert, expert_shortfall, measured_experts
from lamorel_ext.envs.babyai.levels import level_ids, make_level
from lamorel_ext.errors import ConfigError
from lamorel_ext.methods.feedback.signals import FeedbackSignals
from lamorel_ext.prompts import PromptHistory
from lamorel_ext.randomness import Draws
from lamorel_ext.training.building import make_env, make_evaluator
from lamorel_ext.training.evaluate import run_episodes
from lamorel_ext.training.exact import ExactEvaluator
from lamorel_ext.training.exactness import can_enumerate
from lamorel_ext.training.scenes import PromptedEnv
from lamorel_ext.types import StepBatch
from tests.training.student_fakes import (
    LENGTH,
    MAX_STEPS,
    CorridorEnv,
    TableLlm,
    make_corridor,
    small_config,
)

EPISODES = 500


def evaluate_random(config, env_factory=make_env):
    with closing(make_evaluator(config, env_factory)) as evaluator:
        return evaluator.evaluate(UniformActor())


def evaluate_bot(config, env_factory=make_env):
    with closing(make_evaluator(config, env_factory, with_experts=True)) as evaluator:
        return evaluator.evaluate(ExpertActor())


def make_config(**groups):
    config = Config(feedback=FeedbackArgs(signal="none"), run=RunArgs(eval_episodes=EPISODES))
    return dataclasses.replace(config, **groups)


def trained(agent):
    """Move a student away from its first policy, so that guidance and state both matter."""
    rng = np.random.default_rng(0)
    for parameter in agent.network.parameters():
        parameter.data += 0.02 * parameter.data.new_tensor(rng.normal(size=parameter.shape))
    agent.network.actor_out.data *= 20
    return agent


class NeverRewards(CorridorEnv):
    def step(self, actions: np.ndarray) -> StepBatch:
        step = super().step(actions)
        return dataclasses.replace(step, rewards=np.zeros(self.num_envs))


def make_never(config: Config, held_out: bool, copies: range | None = None) -> NeverRewards:
    return NeverRewards(
        len(copies or range(config.run.eval_episodes if held_out else config.env.num_envs)), 0
    )


def test_an_environment_of_ones_own_is_evaluated_on_its_own_episodes() -> None:
    config = small_config(env={"level": EnvArgs().level}, run={"evaluation": "auto"})
    with closing(make_evaluator(config, make_never)) as evaluator:
        found = evaluator.evaluate(UniformActor())
    assert (found.success, found.exact, len(found.successes)) == (
        0.0,
        False,
        20,
    ) and found.failures.any()
    assert (
        evaluate_random(config, make_never).success == 0.0
        and evaluate_bot(config, make_never).failures.all()
    )


def test_its_exact_evaluation_is_refused_with_the_reason() -> None:
    config = small_config(env={"level": EnvArgs().level}, run={"evaluation": "exact"})
    with (
        closing(make_evaluator(config, make_never)) as evaluator,
        pytest.raises(ConfigError, match="environment of its own.*exact_evaluator"),
    ):
        evaluator.evaluate(UniformActor())


@pytest.mark.parametrize("actions", [(2,), (0, 7), (-1,)])
def test_an_action_that_a_state_does_not_offer_is_named(actions: tuple[int, ...]) -> None:
    scene: Any = SimpleNamespace(candidates=(("left", "stay", "right"), ("wait", "open the door")))
    with pytest.raises(ConfigError, match=r"agent: expected actions from 0 to 1, got .*open the"):
        UniformActor(actions).action_probs(scene)


@pytest.mark.parametrize(
    ("actor", "success", "expected_return"),
    [
        (UniformActor(), 0.264, 0.155),
        (UniformActor((0, 1, 2)), 0.434, None),
        (ExpertActor(), 1.0, 0.934),
    ],
)
def test_exact_evaluation_gives_the_numbers_known_of_the_level(actor, success, expected_return):
    found = ExactEvaluator(EnvArgs(), with_experts=True).evaluate(actor)
    assert found[0] == pytest.approx(success, abs=1e-3)
    if expected_return is not None:
        assert found[1] == pytest.approx(expected_return, abs=1e-3)


@pytest.mark.parametrize(
    "groups",
    [
        {"arm": ArmArgs(agent="llm_policy")},
        {"arm": ArmArgs(teacher="none")},
        {"arm": ArmArgs(teacher="random")},
        {"arm": ArmArgs(teacher="oracle")},
        {"arm": ArmArgs(agent="llm_policy", action_heads=True)},
        {"arm": ArmArgs(agent="random")},
        {"arm": ArmArgs(agent="bot")},
        {"arm": ArmArgs(agent="cloning")},
        {"arm": ArmArgs(teacher="llm"), "env": EnvArgs(prompt="glam", history=1)},
        {
            "arm": ArmArgs(teacher="llm"),
            "guidance": GuidanceArgs(vocabulary="subgoal"),
            "env": EnvArgs(language="fr"),
        },
    ],
    ids=lambda groups: "-".join(
        str(value) for value in (groups["arm"].agent, groups["arm"].teacher, *list(groups)[1:])
    ),
)
def test_exact_evaluation_agrees_with_simulation(groups):
    config = make_config(**groups)
    llm = TableLlm(favourite="turn left", strength=1.5)
    agent = make_agent(config, llm)
    if config.arm.agent == "student":
        trained(agent)
    with closing(make_evaluator(config, make_env)) as evaluator:
        exact = evaluator.evaluate(agent)
        simulated = evaluator._simulate(agent, None)
    assert exact.exact and not simulated.exact and len(simulated.successes) == EPISODES
    error = 4 * np.sqrt(exact.success * (1 - exact.success) / EPISODES)  # four standard errors
    assert abs(simulated.success - exact.success) <= error
    error = 4 * simulated.returns.std() / np.sqrt(EPISODES)  # likewise
    assert abs(simulated.expected_return - exact.expected_return) <= error


def test_following_blindly_is_the_teachers_distribution_over_actions():
    config = make_config(arm=ArmArgs(teacher="llm"))
    follower, llm_policy = (
        make_agent(config, TableLlm()).follower,
        make_agent(make_config(arm=ArmArgs(agent="llm_policy")), TableLlm()),
    )
    scene = ExactEvaluator(config.env).scene
    np.testing.assert_allclose(
        follower.action_probs(scene), llm_policy.action_probs(scene), rtol=1e-12
    )


def test_following_a_subgoal_without_an_action_is_acting_at_random():
    config = make_config(guidance=GuidanceArgs(vocabulary="subgoal"))
    agent = make_agent(config, TableLlm())
    scene = ExactEvaluator(config.env).scene
    probs, said = agent.follower.action_probs(scene), agent.teacher.distribution(scene)
    silent = agent.teacher.options.hints == NO_HINT
    assert silent.any()
    drop = agent.teacher.options.hints == 4
    np.testing.assert_allclose(
        probs[:, 4], said[:, drop].sum(axis=1) + said[:, silent].sum(axis=1) / 6, rtol=1e-12
    )


def test_the_policy_of_a_student_is_marginalised_over_guidance():
    config = make_config()
    agent = trained(make_agent(config, TableLlm(favourite="go forward", strength=1.0)))
    evaluator = ExactEvaluator(config.env)
    scene = evaluator.scene.take(np.arange(0, len(evaluator.scene), 97))
    probs, teacher = agent.action_probs(scene), agent.teacher.distribution(scene)
    features = torch.from_numpy(encode_observations(scene.observations))
    for i in range(len(scene)):
        slow = np.zeros(6)
        for x in range(6):
            with torch.no_grad():
                slow += (
                    teacher[i, x]
                    * agent.network.policy(features[[i]], torch.eye(6)[[x]], torch.tensor([x]))[0]
                    .exp()
                    .numpy()
                )
        np.testing.assert_allclose(probs[i], slow, rtol=1e-5)


def test_what_an_actor_is_shown_determines_its_policy_in_every_state():
    evaluator = ExactEvaluator(EnvArgs(), with_experts=True)
    policy, table = evaluator.policy(ExpertActor()), state_table()
    np.testing.assert_array_equal(policy.argmax(axis=1), table.expert)
    assert evaluate_policy(policy).success == 1.0


# --- by episodes ----------------------------------------------------------------------------------


def test_episodes_are_played_once_each_from_their_own_seed():
    config = small_config()
    env = PromptedEnv(make_corridor(config, True), PromptHistory(), with_experts=True)
    found = run_episodes(env, ExpertActor(), Draws.of_evaluation(0))
    scene = env.reset()
    places = scene.observations.images[:, :, 0, 0].argmax(axis=1)
    steps = LENGTH - places + (scene.observations.directions != 0)
    np.testing.assert_allclose(found.returns, 1 - 0.9 * steps / MAX_STEPS)
    assert found.successes.all() and found.success == 1.0 and not found.exact


def test_held_out_episodes_are_those_of_the_seeds_from_eval_seed_on():
    config = make_config(run=RunArgs(eval_episodes=3, eval_seed=1_000_000_005))
    shifted = make_config(run=RunArgs(eval_episodes=3, eval_seed=1_000_000_006))
    with closing(make_env(config, True)) as env, closing(make_env(shifted, True)) as other:
        images, moved = env.reset().images, other.reset().images
        np.testing.assert_array_equal(images[1:], moved[:-1])
        assert env.num_envs == 3
    with closing(make_env(config, False)) as env:
        assert env.num_envs == config.env.num_envs


@pytest.mark.parametrize("held_out", [False, True])
def test_a_level_has_as_many_distractors_as_are_asked_for(held_out):
    config = make_config(
        env=EnvArgs(level="BabyAI-GoToLocal-v0", num_distractors=1), run=RunArgs(eval_episodes=16)
    )
    with closing(make_env(config, held_out)) as env:
        sentences = env.reset().descriptions
    # The target is the only object there is: whoever sees one sees that one.
    assert all(
        sum(thing in sentence for thing in ("ball", "box", "key") for sentence in seen) <= 1
        for seen in sentences
    )
    with closing(
        make_env(
            make_config(env=EnvArgs(level="BabyAI-GoToLocal-v0"), run=RunArgs(eval_episodes=16)),
            held_out,
        )
    ) as env:
        assert any(
            sum(thing in sentence for thing in ("ball", "box", "key") for sentence in seen) > 1
            for seen in env.reset().descriptions
        )


def test_exact_evaluation_is_only_for_the_levels_own_number_of_distractors():
    assert can_enumerate(EnvArgs()) and not can_enumerate(EnvArgs(num_distractors=0))


def test_only_copies_whose_episode_runs_are_asked():
    asked = []

    class Watching(ExpertActor):
        def decide(self, scene, draws):
            asked.append(len(scene))
            return super().decide(scene, draws)

    run_episodes(
        PromptedEnv(CorridorEnv(50, 0), PromptHistory(), with_experts=True),
        Watching(),
        Draws.of_evaluation(0),
    )
    assert asked[0] == 50 and asked == sorted(asked, reverse=True) and 0 < asked[-1] < 50


def test_prompts_tell_feedback_in_evaluations_too_and_leave_the_memory_of_training_alone():
    config = small_config(feedback={"signal": "previous", "channel": "prompt"})
    llm = TableLlm()
    agent = make_agent(config, llm)
    signals = FeedbackSignals(config.feedback, config.env.num_envs, np.random.default_rng(0))
    before = signals.state()
    with closing(make_evaluator(config, make_corridor)) as evaluator:
        first = evaluator.evaluate(agent, signals)
        second = evaluator.evaluate(agent, signals)
    assert signals.state() == before
    np.testing.assert_array_equal(first.returns, second.returns)
    told = [
        prompt
        for request in llm.requests
        for prompt in request.prompts
        if "last instruction" in prompt
    ]
    assert any("better" in prompt for prompt in told) and any("worse" in prompt for prompt in told)
    assert not any("last instruction" in prompt for prompt in llm.requests[0].prompts)


@pytest.mark.parametrize(
    ("groups", "why"),
    [
        ({"env": EnvArgs(level="BabyAI-GoToLocal-v0")}, "cannot be listed"),
        ({"env": EnvArgs(level="BabyAI-GoToRedBall-v0", num_distractors=0)}, "cannot be listed"),
        ({"env": EnvArgs(prompt="glam", history=3)}, "env.history=3"),
        ({"guidance": GuidanceArgs(vocabulary="free")}, "free guidance"),
    ],
)
def test_exact_evaluation_is_refused_where_it_would_be_wrong(groups, why):
    config = make_config(**groups, run=RunArgs(evaluation="exact"))
    with (
        closing(make_evaluator(config, make_env)) as evaluator,
        pytest.raises(ConfigError, match=why),
    ):
        evaluator.evaluate(make_agent(config, TableLlm()))


def test_a_history_in_the_prompt_matters_only_to_those_who_read_it():
    config = make_config(env=EnvArgs(prompt="glam", history=3), arm=ArmArgs(teacher="none"))
    with closing(make_evaluator(config, make_env)) as evaluator:
        assert evaluator.evaluate(make_agent(config, None)).exact


def test_baselines_are_evaluated_exactly_or_on_held_out_episodes():
    config = make_config()
    assert evaluate_random(config).success == pytest.approx(0.264, abs=1e-3)
    assert evaluate_bot(config).expected_return == pytest.approx(0.934, abs=1e-3)
    other = make_config(env=EnvArgs(level="BabyAI-GoToObj-v0"), run=RunArgs(eval_episodes=5))
    found = evaluate_bot(other)
    assert not found.exact and found.success == 1.0 and found.expected_return > 0.5


@pytest.mark.parametrize(
    "level, evaluation, exact",
    [
        ("BabyAI-GoToObj-v0", "auto", False),
        ("BabyAI-GoToRedBallNoDists-v0", "auto", True),
        ("BabyAI-GoToRedBallNoDists-v0", "exact", True),
        ("BabyAI-GoToRedBallNoDists-v0", "episodes", False),
    ],
)
def test_a_program_that_evaluates_plays_the_episodes_once(monkeypatch, level, evaluation, exact):
    played = []
    counted = lambda *parts: played.append(1) or run_episodes(*parts)  # noqa: E731
    monkeypatch.setattr("lamorel_ext.training.evaluate.run_episodes", counted)
    run = RunArgs(eval_episodes=3, evaluation=evaluation)
    found = evaluate(make_config(env=EnvArgs(level=level), run=run), UniformActor(), "random")
    assert len(played) == 1 and (found.exact_success is not None) == exact


# --- what the expert is worth ---------------------------------------------------------------------


def test_the_expert_ends_where_the_bot_plans_in_a_circle() -> None:
    level = make_level("BabyAI-UnlockToUnlock-v0")
    level.reset(seed=1_000_001)
    expert = Expert(level, 1_000_001)
    taken = [expert.action([])]
    level.step(taken[0])
    for _ in range(4):
        taken.append(expert.action(taken))
        level.step(taken[-1])
    assert expert.failures


def test_a_level_on_which_the_expert_fails_is_told() -> None:
    assert "failed the mission in 8" in expert_shortfall("BabyAI-OpenDoorsOrderN4Debug-v0")
    assert "ran out of time in 19" in expert_shortfall("BabyAI-KeyInBox-v0")
    assert not expert_shortfall("BabyAI-GoToLocal-v0") and not expert_shortfall("Corridor")
    assert set(measured_experts()) == set(level_ids())


def test_a_strict_mission_of_two_doors_is_lost_with_the_right_door_already() -> None:
    level = make_level("BabyAI-OpenDoorsOrderN4Debug-v0")
    level.reset(seed=0)
    expert, taken, ended = Expert(level, 0), [], False
    while not ended:
        taken.append(expert.action(taken))
        _, reward, ended, _, _ = level.step(taken[-1])
    opened = level.grid.get(*level.front_pos)
    assert level.mission == "open the purple door after you open the red door"
    assert (opened.color, opened.is_open, reward) == ("red", True, 0)
