"""The student's features, network, optimiser and PPO."""

import hashlib
import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from minigrid.core.constants import COLOR_NAMES

from lamorel_ext.agents.features import (
    FEATURE_SIZE,
    encode_actions,
    encode_observations,
    encode_states,
    feature_size,
    hashed_mission,
    hashed_words,
    word_signs,
)
from lamorel_ext.agents.guidance import NO_HINT
from lamorel_ext.agents.network import StudentNetwork
from lamorel_ext.agents.optimizer import FlatAdam
from lamorel_ext.agents.student_ppo import STATS, StudentBatch, ppo_losses, update_student
from lamorel_ext.config import StudentArgs
from lamorel_ext.types import ObservationBatch, TaskSpec
from tests.training.student_fakes import observe


def make_network(kappa=2.0, codes=6, seed=0):
    return StudentNetwork(codes, 8, 4, kappa, torch.Generator().manual_seed(seed))


def make_batch(n=16, seed=0):
    rng = torch.Generator().manual_seed(seed)
    hints = torch.randint(7, (n,), generator=rng)
    advantages = torch.randn(n, generator=rng)
    return StudentBatch(
        features=torch.rand(n, FEATURE_SIZE, generator=rng).round(),
        codes=torch.eye(7)[hints][:, :6],
        hints=hints,
        actions=torch.randint(6, (n,), generator=rng),
        old_log_probs=torch.full((n,), -math.log(6)),
        advantages=advantages,
        returns=advantages + 0.5,
    )


# --- features -------------------------------------------------------------------------------------


def test_every_cell_channel_and_direction_has_a_place_of_its_own():
    rng = np.random.default_rng(0)
    n = 30
    images = np.stack(
        [
            rng.integers(11, size=(n, 7, 7)),
            rng.integers(6, size=(n, 7, 7)),
            rng.integers(4, size=(n, 7, 7)),
        ],
        axis=-1,
    )
    seen = ObservationBatch(
        ("go",) * n, ((),) * n, images.astype(np.uint8), rng.integers(4, size=n)
    )
    features = encode_observations(seen)
    assert features.shape == (n, FEATURE_SIZE) and features.dtype == np.float32
    slow = np.zeros((n, 7, 7, 21))
    for i, x, y in np.ndindex(n, 7, 7):
        kind, colour, state = images[i, x, y]
        slow[i, x, y, [kind, 11 + colour, 17 + state]] = 1.0
    np.testing.assert_array_equal(features[:, : 49 * 21], slow.reshape(n, -1))
    np.testing.assert_array_equal(features[:, 49 * 21 : 49 * 21 + 4], np.eye(4)[seen.directions])


def test_missions_are_told_apart_by_words_and_by_their_order():
    things = [f"{colour} {kind}" for colour in COLOR_NAMES for kind in ("key", "ball", "box")]
    missions = [
        f"put the {one} next to the {other}" for one, other in itertools.permutations(things, 2)
    ]
    assert len({hashed_mission(each).tobytes() for each in missions}) == len(missions)
    texts = ["put the ball next to the box", "put the box next to the ball", "go to the ball"]
    for read in (hashed_mission, partial(hashed_words, size=64)):
        first, second, third = map(read, texts)
        assert not np.array_equal(first, second) and not np.array_equal(first, third)
        assert np.linalg.norm(first) == pytest.approx(1.0)
    # Where no word comes again the two are one: what was learnt of such missions holds.
    np.testing.assert_array_equal(hashed_mission(texts[2]), hashed_words(texts[2], 64))


@pytest.mark.parametrize("form", ["{}", "state {}", "you are at {}"])
def test_states_and_missions_of_ones_own_are_told_apart_by_their_last_word(form: str):
    """Also where their CRC-32, and with it those of all pairs that end in them, are alike."""
    texts = [form.format(number) for number in range(500)]
    task = TaskSpec("Mine", ("left", "right"))
    for missions, lines in ((texts, [()] * 500), (["go"] * 500, [(text,) for text in texts])):
        seen = ObservationBatch(
            tuple(missions), tuple(lines), np.zeros((500, 0)), np.zeros(500, np.int64)
        )
        features = encode_states(seen, task)
        assert features.shape == (500, feature_size(task))
        assert len({row.tobytes() for row in features}) == 500


def test_the_hash_of_words_is_the_same_in_every_process():
    # CRC-32's published check value: 0xCBF43926 for "123456789". It is even, so -1, at (0xCBF43926
    # >> 1) % 64 = 0x13.
    expected = np.zeros(64)
    expected[0x13] = -1.0
    np.testing.assert_array_equal(hashed_words("123456789", 64), expected)
    assert not hashed_words("", 64).any()


def test_actions_that_differ_in_a_single_word_do_not_look_alike():
    words = "west examine down attack right lock exit unlock go fight a b c d".split()
    texts = [*words, *(f"action {digit}" for digit in range(10))]
    table = encode_actions([texts, ["go", "lock"]])
    assert len(np.unique(table[0], axis=0)) == len(texts)
    np.testing.assert_array_equal(table[1, :2, 1:], [word_signs("go"), word_signs("lock")])
    assert not table[1, 2:].any() and not word_signs("").any()
    np.testing.assert_allclose(np.linalg.norm(table[0, :, 1:], axis=1), 1.0, rtol=1e-6)
    # BLAKE2b's first eight bytes for "go".
    bits = np.unpackbits(np.frombuffer(hashlib.blake2b(b"go", digest_size=8).digest(), np.uint8))
    np.testing.assert_array_equal(word_signs("go") > 0, bits == 1)


# --- network --------------------------------------------------------------------------------------


def test_the_first_policy_is_kappa_towards_the_hint():
    network, batch = make_network(kappa=2.0), make_batch()
    log_probs = network.policy(batch.features, batch.codes, torch.arange(16) % 6)
    hinted = log_probs.exp()[torch.arange(16), torch.arange(16) % 6]
    # softmax of (2, 0, 0, 0, 0, 0); the small last layer moves it a little
    torch.testing.assert_close(
        hinted, torch.full((16,), math.exp(2) / (math.exp(2) + 5)), atol=0.03, rtol=0
    )  # 0.01-gain layer
    unhinted = network.policy(batch.features, batch.codes, torch.full((16,), NO_HINT)).exp()
    torch.testing.assert_close(unhinted, torch.full((16, 6), 1 / 6), atol=0.03, rtol=0)  # the same


def test_the_weights_follow_from_the_generator_and_from_nothing_else():
    torch.manual_seed(1)
    one, before = make_network(), torch.get_rng_state()
    torch.manual_seed(2)
    other = make_network()
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    torch.manual_seed(1)
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(one.actor_in, make_network(seed=1).actor_in)


def test_the_critic_does_not_hear_guidance_and_the_policy_does():
    network = make_network()
    features = torch.from_numpy(encode_observations(observe(np.array([2]), np.array([1]))))
    loud, hint = torch.eye(6)[[3]], torch.tensor([NO_HINT])
    assert not torch.equal(
        network.policy(features, loud, hint), network.policy(features, torch.zeros(1, 6), hint)
    )
    network.value(features).sum().backward()
    touched = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert touched == {
        "critic_in",
        "critic_in_bias",
        "critic_mid",
        "critic_mid_bias",
        "critic_out",
        "critic_out_bias",
    }


# --- optimiser ------------------------------------------------------------------------------------


def test_flat_adam_is_adam_with_clipped_gradients():
    ours, theirs, batch = make_network(), make_network(), make_batch()
    flat = FlatAdam(list(ours.parameters()))
    adam = torch.optim.Adam(theirs.parameters(), lr=0.01, eps=1e-5)
    args = StudentArgs()
    for step in range(5):
        flat.zero_grad()
        ppo_losses(ours, batch, args).total.backward()
        adam.zero_grad()
        ppo_losses(theirs, batch, args).total.backward()
        expected = torch.nn.utils.clip_grad_norm_(list(theirs.parameters()), 0.1)
        norm = flat.step(0.01, 0.1)
        adam.step()
        torch.testing.assert_close(norm, expected, rtol=1e-4, atol=1e-6)
        for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(
                mine,
                other,
                rtol=1e-4,
                atol=1e-5,
                msg=lambda text, name=name, step=step: f"{name}, step {step}: {text}",
            )


def test_flat_adam_goes_on_from_its_saved_state():
    one, other = (FlatAdam([torch.nn.Parameter(torch.ones(3))]) for _ in range(2))
    for optimizer in (one, other):
        optimizer._gradients.copy_(torch.tensor([1.0, -2.0, 0.5]))
    one.step(0.1, 1.0)
    other.load(one.tensors())
    other._weights.copy_(one._weights)
    for optimizer in (one, other):
        optimizer._gradients.copy_(torch.tensor([0.3, 0.1, -0.5]))
        optimizer.step(0.1, 1.0)
    assert torch.equal(one._weights, other._weights)


# --- PPO ------------------------------------------------------------------------------------------


def test_ppo_losses_are_those_of_a_loop_over_samples():
    network, batch, args = make_network(), make_batch(), StudentArgs(clip_eps=0.05)
    losses = ppo_losses(network, batch, args)
    advantages = batch.advantages.double().numpy()
    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    policy, value, entropy, clipped = [], [], [], []
    for i in range(16):
        row = slice(i, i + 1)
        log_probs = network.policy(batch.features[row], batch.codes[row], batch.hints[row])[
            0
        ].tolist()
        ratio = math.exp(log_probs[batch.actions[i]] + math.log(6))
        policy.append(-min(ratio * advantages[i], min(max(ratio, 0.95), 1.05) * advantages[i]))
        value.append((network.value(batch.features[row]).item() - batch.returns[i].item()) ** 2)
        entropy.append(-sum(math.exp(p) * p for p in log_probs))
        clipped.append(abs(ratio - 1) > 0.05)
    assert 0 < np.mean(clipped) < 1
    assert losses.policy_loss.item() == pytest.approx(np.mean(policy), rel=1e-4)
    assert losses.value_loss.item() == pytest.approx(np.mean(value), rel=1e-4)
    assert losses.entropy.item() == pytest.approx(np.mean(entropy), rel=1e-4)
    assert losses.clip_fraction.item() == pytest.approx(np.mean(clipped))
    total = np.mean(policy) + 0.5 * np.mean(value) - 0.01 * np.mean(entropy)
    assert losses.total.item() == pytest.approx(total, rel=1e-4)


def test_an_update_makes_good_actions_likelier_and_the_critic_better():
    network, batch = make_network(), make_batch(64)
    args = StudentArgs(entropy_coef=0.0, epochs=20)
    before = ppo_losses(network, batch, args)
    stats = update_student(
        network, FlatAdam(list(network.parameters())), batch, args, np.random.default_rng(0)
    )
    after = ppo_losses(network, batch, args)
    assert (
        after.policy_loss < before.policy_loss - 0.05 and after.value_loss < 0.5 * before.value_loss
    )
    assert set(stats) == set(STATS) and all(math.isfinite(value) for value in stats.values())


def test_an_update_of_a_single_transition_stays_finite():
    network, batch = make_network(), make_batch(1)
    update_student(
        network,
        FlatAdam(list(network.parameters())),
        batch,
        StudentArgs(),
        np.random.default_rng(0),
    )
    assert all(torch.isfinite(parameter).all() for parameter in network.parameters())


def test_explained_variance_compares_errors_with_returns():
    network, batch = make_network(), make_batch(2)
    exact = StudentBatch(
        *(
            getattr(batch, name)
            for name in ("features", "codes", "hints", "actions", "old_log_probs")
        ),
        advantages=torch.tensor([1.0, -1.0]),
        returns=torch.tensor([2.0, -2.0]),
    )
    stats = update_student(
        network,
        FlatAdam(list(network.parameters())),
        exact,
        StudentArgs(),
        np.random.default_rng(0),
    )
    assert stats["explained_variance"] == pytest.approx(1 - 1 / 4)
