"""Q-learning over texts: the DRRN agent that GLAM is compared with (Carta et al. 2023)."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lamorel_ext.agents.drrn_network import DrrnNetwork
from lamorel_ext.agents.optimizer import FlatAdam, below, expect_tensor, load_weights, weights_of
from lamorel_ext.agents.replay import Replay, Transitions
from lamorel_ext.agents.word_places import word_places
from lamorel_ext.config import DrrnArgs
from lamorel_ext.experience import BABYAI, Actor, Decision, Discount, Rollout, Scene
from lamorel_ext.randomness import Draws, log_softmax, sample_rows
from lamorel_ext.types import TaskSpec

DRRN_STATS = ("loss", "q", "grad_norm")
"""Numbers of an update: Huber loss, mean Q of the actions taken, norm before clipping."""


class DrrnAgent:
    """Acts on Q-values of the prompt and the actions' texts, and learns them from a memory of
    transitions.

    Targets are ``r + gamma max Q(reached, .)``, without the second term where the task ended the
    episode; a cut-off episode goes on in the state reached.

    Args:
        args: Sizes, schedule and exploration.
        seed: Fixes the initial weights.
        task: What the environment asks of an agent.
    """

    reads_prompts = True
    enumerable = True
    follower: Actor | None = None
    columns: tuple[str, ...] = tuple(f"drrn_{name}" for name in DRRN_STATS)

    def __init__(self, args: DrrnArgs, seed: int, task: TaskSpec = BABYAI) -> None:
        self.args = args
        self._by_state = task.by_state
        self.network = DrrnNetwork(args.embedding_size, args.hidden_size, seed, task.action_texts)
        self.target = copy.deepcopy(self.network) if args.target_every else self.network
        self.optimizer = FlatAdam(list(self.network.parameters()), eps=1e-8, name="drrn")
        self.replay = Replay(args.replay_size, task.by_state)
        self.discount = Discount(args.gamma, 1.0, args.reward_scale)
        self._env_steps = self._updates = 0

    def decide(self, scene: Scene, draws: Draws) -> Decision:
        """See ``Actor``."""
        q = self._q(scene)
        log_probs = self._log_policy(q)
        actions = sample_rows(log_probs, draws.actions)
        taken = log_probs[np.arange(len(actions)), actions]
        return Decision(actions, taken, _mean_q(log_probs, q))

    def values(self, scene: Scene) -> np.ndarray:
        """Mean Q under the policy."""
        q = self._q(scene)
        return _mean_q(self._log_policy(q), q)

    def action_probs(self, scene: Scene) -> np.ndarray:
        """See ``Actor``."""
        probs: np.ndarray = np.exp(self._log_policy(self._q(scene)))
        return probs

    def update(self, rollout: Rollout, rng: np.random.Generator) -> dict[str, float]:
        """Remember the rollout, then take the gradient steps that are due; see ``Agent``."""
        before = self._env_steps // self.args.update_every
        for turn, rewards in zip(rollout.turns, rollout.learnt_rewards, strict=True):
            self.replay.add(
                turn.prompts,
                turn.decision.actions,
                rewards,
                turn.stepped.reached.prompts,
                turn.step.terminated,
                *((turn.candidates, turn.stepped.reached.candidates) if self._by_state else ()),
            )
        self._env_steps += rollout.rewards.size
        full = len(self.replay) >= self.args.batch_size
        due = self._env_steps // self.args.update_every - before if full else 0
        seen = [self._learn(self.replay.sample(self.args.batch_size, rng)) for _ in range(due)]
        if not seen:
            return {}
        means = torch.stack(seen).mean(dim=0).tolist()
        return {f"drrn_{name}": value for name, value in zip(DRRN_STATS, means, strict=True)}

    def tensors(self) -> dict[str, Tensor]:
        """Weights as ``drrn.<name>``, the target's as ``target.<name>``, Adam's state, the memory,
        and the two counters.
        """
        saved = weights_of(self.network, "drrn.") | self.optimizer.tensors()
        if self.target is not self.network:
            saved |= weights_of(self.target, "target.")
        saved |= {f"replay.{key}": tensor for key, tensor in self.replay.tensors().items()}
        return saved | {"counters": torch.tensor([self._env_steps, self._updates])}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Come back to saved tensors.

        Raises:
            CheckpointError: A tensor is missing or has another shape.
        """
        load_weights(self.network, tensors, "drrn.")
        if self.target is not self.network:
            load_weights(self.target, tensors, "target.")
        self.optimizer.load(tensors)
        self.replay.load(below("replay.", tensors))
        self._env_steps, self._updates = expect_tensor(
            tensors, "counters", torch.Size([2])
        ).tolist()

    def _q(self, scene: Scene) -> np.ndarray:
        with torch.inference_mode():
            states = [word_places(prompt) for prompt in scene.prompts]
            q: np.ndarray = self.network(states, self._offered(scene)).double().numpy()
        return q

    def _offered(self, scene: Scene) -> list[list[tuple[int, ...]]] | None:
        if not self._by_state:
            return None
        # A state in which an episode ended may list nothing; nobody acts there.
        return [[word_places(text) for text in texts or ("",)] for texts in scene.candidates]

    def _log_policy(self, q: np.ndarray) -> np.ndarray:
        """``(n, actions)`` in nats."""
        if self.args.exploration == "softmax":
            return log_softmax(q / self.args.temperature)
        offered = np.isfinite(q)
        counts = offered.sum(axis=1, keepdims=True)
        probs = np.where(offered, self.args.epsilon / counts, 0.0)
        probs[np.arange(len(q)), q.argmax(axis=1)] += 1.0 - self.args.epsilon
        with np.errstate(divide="ignore"):
            log_probs: np.ndarray = np.log(probs)
        return log_probs

    def _learn(self, batch: Transitions) -> Tensor:
        """One gradient step; gives ``DRRN_STATS``."""
        if self.args.target_every and self._updates % self.args.target_every == 0:
            self.target.load_state_dict(self.network.state_dict())
        targets = drrn_targets(self.target, batch, self.args)
        taken = torch.from_numpy(batch.actions)[:, None]
        q = self.network(batch.before, batch.offered_before).gather(1, taken).squeeze(1)
        loss = F.smooth_l1_loss(q, targets)
        norm = self.optimizer.minimise(loss, self.args.lr, self.args.max_grad_norm)
        self._updates += 1
        return torch.stack([loss.detach(), q.detach().mean(), norm])


def _mean_q(log_probs: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Mean Q under a policy, ``(n,)``; what is not offered does not count."""
    mean: np.ndarray = (np.exp(log_probs) * np.where(np.isfinite(q), q, 0.0)).sum(axis=1)
    return mean


def drrn_targets(network: DrrnNetwork, batch: Transitions, args: DrrnArgs) -> Tensor:
    """What Q of each transition should be, ``(n,)``, without gradient."""
    with torch.no_grad():
        offered = () if batch.offered_after is None else (batch.offered_after,)
        best = network(batch.after, *offered).max(dim=1).values
    going_on = torch.from_numpy(~batch.ended)
    return torch.from_numpy(batch.rewards) * args.reward_scale + args.gamma * torch.where(
        going_on, best, 0.0
    )
