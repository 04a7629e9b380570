"""Q-learning over texts: the vocabulary, the memory, the network, targets worked out by hand, and
that it learns.
"""

import dataclasses
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest
import torch

from lamorel_ext.agents.drrn import drrn_targets
from lamorel_ext.agents.drrn_network import DrrnNetwork
from lamorel_ext.agents.making import make_agent
from lamorel_ext.agents.replay import Replay, Transitions
from lamorel_ext.agents.word_places import WORDS, padded, word_places
from lamorel_ext.config import DrrnArgs
from lamorel_ext.envs.babyai.batched import make_batched_env
from lamorel_ext.errors import CheckpointError
from lamorel_ext.prompts import ACTION_NAMES, PromptHistory
from lamorel_ext.randomness import Draws
from lamorel_ext.training.collecting import collect
from lamorel_ext.training.scenes import PromptedEnv
from tests.training.student_fakes import CorridorEnv, small_config

FIRST_BUCKET = 1 + len(WORDS)


# --- words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", ["en", "fr"])
@pytest.mark.parametrize("level", ["GoToRedBallNoDists", "MixedTrainLocal", "BossLevel"])
def test_the_vocabulary_knows_every_word_that_prompts_are_made_of(level, language):
    rng = np.random.default_rng(0)
    with closing(make_batched_env(f"BabyAI-{level}-v0", 8, language)) as env:
        history = PromptHistory("glam" if language == "en" else "lamorel", 3, language)
        prompts = list(history.reset(env.reset()))
        for _ in range(20):
            actions = rng.integers(6, size=8)
            prompts += history.step(actions, env.step(actions)).current
    places = {place for prompt in prompts for place in word_places(prompt)}
    assert max(places) < FIRST_BUCKET and min(places) > 0 and len(places) > 20


def test_a_word_has_the_same_place_in_every_process():
    assert word_places("Turn, zebra") == (
        1 + WORDS.index("turn"),
        1 + WORDS.index(","),
        *(FIRST_BUCKET + zlib.crc32(b"zebra") // 64**digit % 64 for digit in range(3)),
    )
    assert word_places("") == (0,)
    assert len(set(WORDS)) == len(WORDS)


def test_words_that_the_vocabulary_does_not_know_are_told_apart():
    words = """north south east west up down look wait sleep eat jump swim walk take unlock climb
    enter exit examine read listen light fight attack hit help quit cook slice prepare""".split()
    assert len({word_places(word) for word in words}) == len(words)


def test_texts_are_padded_behind_their_ends():
    table, lengths = padded([(3, 4), (5,), (6, 7, 8)])
    assert table.tolist() == [[3, 4, 0], [5, 0, 0], [6, 7, 8]] and lengths.tolist() == [2, 1, 3]


# --- the memory -----------------------------------------------------------------------------------


def remember(replay, first, count):
    """Transition ``k`` goes from ``step k`` to ``step k + 1``, with reward ``k``."""
    for k in range(first, first + count):
        replay.add(
            [f"step {k}"],
            np.array([k % 6]),
            np.array([float(k)]),
            [f"step {k + 1}"],
            np.array([k % 2 == 0]),
        )


def contents(replay):
    drawn = replay.sample(400, np.random.default_rng(0))
    return set(
        zip(
            drawn.before,
            drawn.actions.tolist(),
            drawn.rewards.tolist(),
            drawn.after,
            drawn.ended.tolist(),
            strict=True,
        )
    )


def transition(k):
    return (word_places(f"step {k}"), k % 6, float(k), word_places(f"step {k + 1}"), k % 2 == 0)


def test_the_oldest_transitions_are_overwritten():
    replay = Replay(5)
    remember(replay, 0, 3)
    assert len(replay) == 3 and contents(replay) == {transition(k) for k in range(3)}
    remember(replay, 3, 60)  # texts of overwritten transitions are dropped on the way
    assert len(replay) == 5 and contents(replay) == {transition(k) for k in range(58, 63)}
    assert len(replay._texts) <= 4 * 5 + 2


def test_several_environments_are_remembered_at_once_also_around_the_end():
    replay = Replay(4)
    for start in (0, 3):
        names = [f"step {start + i}" for i in range(3)]
        replay.add(names, np.arange(3), np.arange(3.0), names, np.zeros(3, dtype=bool))
    assert len(replay) == 4
    assert {before for before, *_ in contents(replay)} == {
        word_places(f"step {k}") for k in (2, 3, 4, 5)
    }


def test_a_saved_memory_gives_the_same_samples_and_goes_on_alike():
    one, two = Replay(7), Replay(7)
    remember(one, 0, 25)
    two.load(one.tensors())
    for replay in (one, two):
        remember(replay, 25, 4)
    first, second = (replay.sample(64, np.random.default_rng(5)) for replay in (one, two))
    for name in ("before", "after"):
        assert getattr(first, name) == getattr(second, name)
    for name in ("actions", "rewards", "ended"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_a_foreign_memory_is_refused():
    replay = Replay(7)
    remember(replay, 0, 6)
    saved = replay.tensors()
    with pytest.raises(CheckpointError, match="does not fit one of 5"):
        Replay(5).load(saved)
    with pytest.raises(CheckpointError, match="lacks after"):
        Replay(7).load({name: tensor for name, tensor in saved.items() if name != "after"})
    with pytest.raises(CheckpointError, match="does not fit"):
        Replay(7).load({**saved, "before": saved["before"] + 99})


# --- the network ----------------------------------------------------------------------------------


def test_what_stands_beside_a_text_in_a_batch_does_not_change_its_values():
    network = DrrnNetwork(8, 12, seed=3)
    texts = [
        word_places(text)
        for text in ("go to the red ball", "You see a wall 3 steps left", "go to the red ball", "a")
    ]
    with torch.no_grad():
        together = network(texts)
        torch.testing.assert_close(
            together, torch.cat([network([text]) for text in texts]), rtol=0, atol=1e-6
        )
    assert together.shape == (4, 6) and torch.equal(together[0], together[2])
    assert together.std() > 0.01 and not torch.equal(together[0], together[1])


def test_values_are_those_of_a_plain_reading_word_by_word():
    network, text = DrrnNetwork(5, 7, seed=1), word_places("You see a wall 3 steps left")

    def read(words, encoder):
        state = torch.zeros(1, 7)
        for word in words:
            i_r, i_z, i_n = (
                encoder.weight_ih_l0 @ network.embedding.weight[word] + encoder.bias_ih_l0
            ).chunk(3)
            h_r, h_z, h_n = (encoder.weight_hh_l0 @ state[0] + encoder.bias_hh_l0).chunk(3)
            fresh = torch.tanh(i_n + torch.sigmoid(i_r + h_r) * h_n)
            keep = torch.sigmoid(i_z + h_z)
            state = ((1 - keep) * fresh + keep * state[0])[None]
        return state[0]

    with torch.no_grad():
        seen = network.join_state(read(text, network.state_encoder))
        for place, name in enumerate(ACTION_NAMES):
            acted = network.join_action(read(word_places(name), network.action_encoder))
            torch.testing.assert_close(
                network([text])[0, place],
                network.score(torch.relu(seen + acted))[0],
                rtol=0,
                atol=1e-6,
            )


def test_the_same_seed_gives_the_same_network_and_leaves_the_global_stream_alone():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first, second, other = (DrrnNetwork(4, 4, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.score.weight, second.score.weight) and not torch.equal(
        first.score.weight, other.score.weight
    )


def test_targets_are_the_reward_and_the_best_value_of_the_state_reached_unless_the_task_ended():
    best = torch.tensor([[1.0, 3.0, -1.0], [2.0, 0.0, 0.0], [7.0, 8.0, 9.0]])
    batch = Transitions(
        [()] * 3,
        np.zeros(3),
        np.array([0.0, 0.25, 0.5], dtype=np.float32),
        [()] * 3,
        np.array([False, False, True]),
    )
    targets = drrn_targets(lambda texts: best, batch, DrrnArgs(gamma=0.5, reward_scale=20.0))
    assert targets.tolist() == [1.5, 6.0, 10.0]


# --- the agent ------------------------------------------------------------------------------------


def make(**drrn):
    sizes = {
        "embedding_size": 8,
        "hidden_size": 16,
        "num_steps": 8,
        "batch_size": 16,
        "replay_size": 500,
    }
    return small_config(arm={"agent": "drrn"}, feedback={"signal": "none"}, drrn={**sizes, **drrn})


def rollout_of(agent, num_steps):
    env = PromptedEnv(CorridorEnv(4, 0), PromptHistory())
    draws = Draws(np.random.default_rng(0), np.random.default_rng(1))
    return collect(
        env,
        agent,
        type("Deaf", (), {"online": False, "after_step": lambda *_: None})(),
        env.reset(),
        num_steps,
        draws,
    )[0]


def test_a_cut_off_episode_is_remembered_with_the_state_it_was_cut_off_in():
    agent = make_agent(make(), None)
    rollout = rollout_of(agent, 30)
    agent.update(rollout, np.random.default_rng(0))
    cut = np.argwhere(rollout.done & ~rollout.terminated)[0]
    row = cut[0] * 4 + cut[1]
    place = agent.replay._columns["after"][row]
    turn = rollout.turns[cut[0]]
    assert agent.replay._texts[place] == word_places(turn.stepped.reached.prompts[cut[1]])
    assert turn.stepped.reached.prompts[cut[1]] != turn.stepped.current.prompts[cut[1]]
    assert not agent.replay._columns["ended"][row]
    ended = np.argwhere(rollout.terminated)
    assert all(agent.replay._columns["ended"][step * 4 + env] for step, env in ended)


def test_a_gradient_step_is_taken_every_so_many_environment_steps_once_there_is_a_batch(
    monkeypatch,
):
    agent = make_agent(make(update_every=5, batch_size=40), None)
    learnt = []
    monkeypatch.setattr(
        agent, "_learn", lambda batch: learnt.append(len(batch.before)) or torch.zeros(3)
    )
    counts = []
    for _ in range(3):
        agent.update(rollout_of(agent, 7), np.random.default_rng(0))  # 28 environment steps
        counts.append(len(learnt))
    assert counts == [0, 56 // 5 - 28 // 5, 84 // 5 - 28 // 5] and set(learnt) == {40}


def test_exploration_is_a_softmax_or_the_best_action_with_a_share_of_random_ones():
    q = np.array([[0.0, 2.0, 0.0, 0.0, 0.0, 0.0]])
    warm, greedy = (
        make_agent(make(temperature=2.0), None),
        make_agent(make(exploration="epsilon", epsilon=0.3), None),
    )
    np.testing.assert_allclose(
        np.exp(warm._log_policy(q))[0, :2], [1 / (5 + np.e), np.e / (5 + np.e)]
    )
    np.testing.assert_allclose(
        np.exp(greedy._log_policy(q))[0], [0.05, 0.75, 0.05, 0.05, 0.05, 0.05]
    )


def test_a_target_network_stands_still_between_two_copies():
    agent = make_agent(make(target_every=3, lr=0.01), None)
    agent.update(rollout_of(agent, 8), np.random.default_rng(0))
    batch = agent.replay.sample(16, np.random.default_rng(0))
    distances = []
    agent._updates = 0
    for _ in range(4):
        agent._learn(batch)
        distances.append(
            (agent.network.score.weight - agent.target.score.weight).abs().max().item()
        )
    assert 0 < distances[0] < distances[2] and distances[3] < distances[2]


@pytest.mark.parametrize("target_every", [0, 10])
def test_values_approach_those_of_value_iteration(target_every):
    # From a, going forward leads to b; from b, to the end with reward .5; everything else leaves
    # the state as it is.
    agent = make_agent(
        make(target_every=target_every, lr=0.01, gamma=0.5, reward_scale=4.0, batch_size=32), None
    )
    for action in range(6):
        on = action == 2
        reached = ["b" if on else "a", "b"]
        agent.replay.add(
            ["a", "b"],
            np.array([action] * 2),
            np.array([0.0, 0.5 if on else 0.0]),
            reached,
            np.array([False, on]),
        )
    rng = np.random.default_rng(0)
    for lr in (0.01, 0.001):
        agent.args = dataclasses.replace(agent.args, lr=lr)
        for _ in range(300):
            agent._learn(agent.replay.sample(32, rng))
    with torch.no_grad():
        found = agent.network([word_places("a"), word_places("b")]).numpy()
    # Q(b, forward) = 4 * .5, Q(a, forward) = .5 * 2; a step that leaves the state as it is halves
    # the best value there.
    expected = np.array([[0.5, 0.5, 1.0, 0.5, 0.5, 0.5], [1.0, 1.0, 2.0, 1.0, 1.0, 1.0]])
    np.testing.assert_allclose(
        found, expected, atol=0.03
    )  # stochastic gradient steps of a fixed size do not settle exactly


def test_weights_come_from_the_seed_however_many_threads_make_networks() -> None:
    alone = DrrnNetwork(8, 12, seed=3).state_dict()
    state = torch.random.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: DrrnNetwork(8, 12, seed=3).state_dict(), range(64)))
    assert all(torch.equal(each[name], alone[name]) for each in made for name in alone)
    assert torch.equal(torch.random.get_rng_state(), state)
