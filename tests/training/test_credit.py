"""Whom feedback is given to, against brute force over all guidances and finite differences."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from lamorel_ext.agents.features import FEATURE_SIZE
from lamorel_ext.agents.guidance import make_vocabulary
from lamorel_ext.agents.network import StudentNetwork
from lamorel_ext.agents.student import StudentAgent
from lamorel_ext.agents.teachers import RandomTeacher
from lamorel_ext.config import StudentArgs, load_config
from lamorel_ext.errors import ConfigError
from lamorel_ext.experience import Decision, Guidance, Said
from lamorel_ext.llm.updaters.batches import Scored
from lamorel_ext.methods.feedback.credit import Lesson, credit_followed, make_credit, pair_log_probs
from lamorel_ext.methods.feedback.edge import _less_mean
from lamorel_ext.methods.feedback.updater import FeedbackOptions, FeedbackUpdater
from lamorel_ext.randomness import log_softmax
from lamorel_ext.rl import pair_log_probs as pair_on_the_server

N, K, A = 5, 6, 6
VOCABULARY = make_vocabulary("action_hint")


def make_agent() -> StudentAgent:
    network = StudentNetwork(K, 8, 4, 1.5, torch.Generator().manual_seed(1))
    with torch.no_grad():
        network.actor_out.mul_(100.0)  # so that the state matters
    return StudentAgent(network, RandomTeacher(VOCABULARY), StudentArgs(), reads_prompts=False)


def make_step(agent: StudentAgent) -> tuple[Decision, Said, np.ndarray]:
    rng = np.random.default_rng(4)
    scores, chosen = rng.normal(size=(N, K)), rng.integers(0, K, N)
    log_probs = log_softmax(scores)
    said = Said(
        ("p",) * N,
        (tuple("abcdef"),) * N,
        chosen,
        log_probs[np.arange(N), chosen],
        np.zeros(N),
        scores,
    )
    features = rng.normal(size=(N, FEATURE_SIZE)).astype(np.float32)
    heard = VOCABULARY.choose((), chosen, said)
    decision = Decision(rng.integers(0, A, N), np.zeros(N), np.zeros(N), said, features, heard)
    return decision, said, rng.normal(size=N)


def brute(agent: StudentAgent, decision: Decision, said: Said) -> np.ndarray:
    """P(a | x, s) one by one, ``(N, K)``."""
    assert decision.features is not None
    table = np.zeros((N, K))
    for i, x in itertools.product(range(N), range(K)):
        one: Guidance = VOCABULARY.choose((), np.array([x]))
        features = torch.from_numpy(decision.features[[i]])
        with torch.no_grad():
            logs = agent.network.policy(
                features, torch.from_numpy(one.codes), torch.from_numpy(one.hints)
            )
        table[i, x] = float(logs[0, decision.actions[i]].exp())
    return table


def lessons_of(credit: str) -> tuple[StudentAgent, Decision, Said, np.ndarray, list[Lesson]]:
    agent = make_agent()
    decision, said, f = make_step(agent)
    config = load_config([f"feedback.credit={credit}"])
    return (
        agent,
        decision,
        said,
        f,
        make_credit(config, agent, np.random.default_rng(0))(decision, said, f),
    )


def test_followed_keeps_the_feedback_of_hints_that_were_obeyed() -> None:
    agent = make_agent()
    decision, said, f = make_step(agent)
    (lesson,) = credit_followed(decision, said, f)
    np.testing.assert_array_equal(
        lesson.signals, [f[i] if said.chosen[i] == decision.actions[i] else 0.0 for i in range(N)]
    )


def test_ratio_is_how_much_likelier_the_guidance_made_the_action() -> None:
    agent, decision, said, f, (lesson,) = lessons_of("ratio")
    probs, teacher = brute(agent, decision, said), np.exp(log_softmax(said.scores))
    expected = [f[i] * np.log(probs[i, said.chosen[i]] / (teacher[i] @ probs[i])) for i in range(N)]
    np.testing.assert_allclose(lesson.signals, expected, rtol=1e-5)


CREDITS = ("chosen", "followed", "ratio", "posterior", "rival")


@pytest.mark.parametrize("credit", CREDITS)
def test_without_its_mean_a_praise_of_everything_teaches_nothing_whoever_is_credited(
    credit: str,
) -> None:
    lessons = [dataclasses.replace(each, f=np.ones(N)) for each in lessons_of(credit)[-1]]
    assert any(lesson.signals.any() for lesson in lessons)
    assert not any(lesson.signals.any() for lesson in _less_mean(lessons, 2))


@pytest.mark.parametrize("credit", CREDITS)
def test_the_mean_is_that_of_the_feedback_that_gets_credit(credit: str) -> None:
    f, lessons = lessons_of(credit)[-2:]
    f[0] = 0.0  # no feedback, and none afterwards
    counted = (lessons[0].credit != 0) & (f != 0)
    assert counted.any() and f[counted].mean() != 0
    for lesson, less in zip(lessons, _less_mean(lessons, 2), strict=True):
        expected = np.where(counted, (f - f[counted].mean()) * lesson.credit, 0.0)
        np.testing.assert_allclose(less.signals, expected, atol=1e-12)


def test_posterior_gives_the_gradient_of_the_pair_seen_as_one_policy() -> None:
    agent, decision, said, f, (lesson,) = lessons_of("posterior")
    probs, teacher = brute(agent, decision, said), np.exp(log_softmax(said.scores))
    assert lesson.likelihoods is not None
    np.testing.assert_allclose(np.exp(lesson.likelihoods), probs, rtol=1e-5)
    scores = torch.tensor(said.scores, requires_grad=True)
    data = {
        "signals": torch.tensor(f),
        "chosen": torch.tensor(said.chosen),
        "likelihoods": torch.tensor(lesson.likelihoods),
    }
    options = FeedbackOptions(posterior=True)
    FeedbackUpdater().loss(Scored(scores, {}, scores.detach()), data, options)[
        "loss"
    ].sum().backward()

    def objective(table: np.ndarray) -> float:
        return float(sum(f[i] * np.log(np.exp(log_softmax(table))[i] @ probs[i]) for i in range(N)))

    assert scores.grad is not None
    for i, x in itertools.product(range(N), range(K)):
        share = teacher[i, x] * probs[i, x] / (teacher[i] @ probs[i])
        # Every candidate x' has its share of the gradient of log M(x'), which is (x == x') - M(x).
        assert float(-scores.grad[i, x]) == pytest.approx(f[i] * (share - teacher[i, x]), abs=1e-6)
        up, down = said.scores.copy(), said.scores.copy()
        up[i, x] += 1e-5
        down[i, x] -= 1e-5
        assert float(-scores.grad[i, x]) == pytest.approx(
            (objective(up) - objective(down)) / 2e-5, abs=1e-5
        )


def test_the_expected_posterior_gradient_is_the_policy_gradient_of_the_return() -> None:
    """One state, a return for each action: sum over what may be said and done, against the
    derivative of the expected return.
    """
    rng = np.random.default_rng(2)
    scores, policy, returns = (
        rng.normal(size=K),
        np.exp(log_softmax(rng.normal(size=(K, A)))),
        rng.normal(size=A),
    )

    def expected_return(table: np.ndarray) -> float:
        return float(np.exp(log_softmax(table[None]))[0] @ policy @ returns)

    teacher = np.exp(log_softmax(scores[None]))[0]
    advantages = returns - expected_return(scores)
    gradient = np.zeros(K)
    for x, a in itertools.product(range(K), range(A)):
        shares = teacher * policy[:, a] / (teacher @ policy[:, a])
        gradient += teacher[x] * policy[x, a] * advantages[a] * (shares - teacher)
    slope = [
        (expected_return(scores + 1e-5 * row) - expected_return(scores - 1e-5 * row)) / 2e-5
        for row in np.eye(K)
    ]
    np.testing.assert_allclose(gradient, slope, atol=1e-8)


def test_the_clipped_ratio_is_that_of_the_pair_and_starts_at_one() -> None:
    _, _, said, f, (lesson,) = lessons_of("posterior")
    assert lesson.likelihoods is not None
    ours = pair_on_the_server(
        torch.tensor(log_softmax(said.scores)), torch.tensor(lesson.likelihoods)
    )
    np.testing.assert_allclose(lesson.old_log_probs, ours.numpy(), rtol=1e-12)
    np.testing.assert_allclose(
        lesson.old_log_probs, pair_log_probs(said, lesson.likelihoods), rtol=1e-12
    )
    scores = torch.tensor(said.scores, requires_grad=True)
    data = {
        "signals": torch.tensor(f),
        "chosen": torch.tensor(said.chosen),
        "likelihoods": torch.tensor(lesson.likelihoods),
        "old_log_probs": torch.tensor(lesson.old_log_probs - np.sign(f)),
    }
    # The ratio has moved by a factor e in the direction of f: beyond the range, so nothing pulls
    # any further.
    FeedbackUpdater().loss(
        Scored(scores, {}, scores.detach()), data, FeedbackOptions(loss="clipped", posterior=True)
    )["loss"].sum().backward()
    assert scores.grad is not None and float(scores.grad.abs().max()) == 0.0


def test_a_rival_gets_the_opposite_of_what_the_guidance_gets() -> None:
    agent, decision, said, f, (own, other) = lessons_of("rival")
    probs = brute(agent, decision, said)
    np.testing.assert_array_equal(other.signals, -own.signals)
    for i, (x, y) in enumerate(zip(said.chosen, other.said.chosen, strict=True)):
        assert own.signals[i] == pytest.approx(
            0.0 if x == y else f[i] * np.sign(probs[i, x] - probs[i, y])
        )


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (
            ["feedback.credit=posterior", "guidance.vocabulary=free"],
            "feedback.credit: posterior needs a list of candidates",
        ),
        (
            ["feedback.credit=ratio", "guidance.vocabulary=free"],
            "feedback.credit: ratio needs a list of candidates",
        ),
        (
            ["arm=llm_policy_feedback", "feedback.credit=followed"],
            "feedback.credit: must be chosen where arm.agent is llm_policy",
        ),
        (
            ["feedback.credit=ratio", "feedback.loss=unlikelihood"],
            "feedback.loss: unlikelihood knows signs only",
        ),
        (["feedback.signal=none", "feedback.sign=random"], "feedback.sign: must be own"),
        (
            ["feedback.signal=td", "feedback.sign=shuffled", "feedback.every=1", "env.num_envs=1"],
            "nothing to permute",
        ),
    ],
)
def test_what_means_nothing_is_refused(overrides: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        load_config(overrides)
