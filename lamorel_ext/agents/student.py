"""An RL student that hears a teacher."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lamorel_ext.agents.features import encode_actions, encode_states
from lamorel_ext.agents.guidance import NO_HINT, AskingTeacher, OfferedActions, Teacher
from lamorel_ext.agents.network import StudentNetwork
from lamorel_ext.agents.optimizer import FlatAdam, expect_tensor, load_weights, weights_of
from lamorel_ext.agents.student_ppo import (
    STATS,
    LossTerm,
    StudentBatch,
    num_minibatches,
    update_student,
)
from lamorel_ext.config import StudentArgs
from lamorel_ext.errors import ConfigError
from lamorel_ext.experience import (
    BABYAI,
    Actor,
    Decision,
    Discount,
    Guidance,
    PendingDecision,
    Rollout,
    Scene,
)
from lamorel_ext.randomness import Draws, sample_rows, uniform
from lamorel_ext.types import TaskSpec


class StudentAgent:
    """A small network that acts on the symbolic view (or what else the environment shows) and its
    teacher's guidance, trained by PPO on the client.
    """

    def __init__(
        self,
        network: StudentNetwork,
        teacher: Teacher,
        args: StudentArgs,
        reads_prompts: bool,
        task: TaskSpec = BABYAI,
    ) -> None:
        self.network = network
        self.task = task
        self.teacher = teacher
        self.args = args
        self.optimizer = FlatAdam(network.own_parameters)
        learnt = network.trust if args.kappa_mode == "learnt" else None
        self.trust_optimizer = None if learnt is None else FlatAdam([learnt])
        self._steps_seen = 0
        self.discount = Discount(args.gamma, args.lam)
        self.reads_prompts = reads_prompts
        self.enumerable = teacher.options is not None and not task.by_state
        self.asks = isinstance(teacher, AskingTeacher)
        self.columns: tuple[str, ...] = (
            tuple(f"student_{name}" for name in STATS)
            + (("student_update_steps", "student_update_samples"))
            + (("student_kappa",) if teacher.guidance_codes > 1 else ())
            + (("teacher_entropy",) if reads_prompts else ())
        )
        self.follower: Actor | None = BlindFollower(self) if teacher.guidance_codes > 1 else None

    def decide(self, scene: Scene, draws: Draws) -> Decision:
        """See ``Actor``."""
        return self._act(scene, self.teacher.guide(scene, draws), draws)

    def ask(self, scene: Scene) -> PendingDecision:
        """See ``AskingActor``."""
        if not isinstance(self.teacher, AskingTeacher):
            raise ValueError("this student's teacher has nothing to ask beforehand")
        hearing = self.teacher.ask(scene)
        return lambda draws: self._act(scene, hearing(draws), draws)

    def values(self, scene: Scene) -> np.ndarray:
        """See ``Actor``."""
        with torch.inference_mode():
            seen = torch.from_numpy(self._encode(scene))
            values: np.ndarray = self.network.value(seen).double().numpy()
        return values

    def action_probs(self, scene: Scene) -> np.ndarray:
        """The sum over guidance of M(x | s) pi(a | x, s)."""
        weights = self.teacher.distribution(scene)
        policy = self._after_each(self._encode(scene), self._offered(scene), len(weights))
        probs: np.ndarray = np.einsum("nx,nxa->na", weights, np.exp(policy))
        return probs

    def action_likelihoods(self, decision: Decision) -> np.ndarray:
        """log P(a | x, s) of the actions of a decision after each guidance x, ``(n, options)`` in
        nats.

        With the network as it is: that of the decision until the next ``update``.
        """
        if decision.features is None:
            raise ValueError("this decision is not a student's")
        n = len(decision.actions)
        policy = self._after_each(decision.features, decision.offered, n)
        taken: np.ndarray = policy[np.arange(n), :, decision.actions]
        return taken

    @property
    def lists_guidance(self) -> bool:
        """True where everything that the teacher can say in a state can be listed."""
        by_state = isinstance(getattr(self.teacher, "vocabulary", None), OfferedActions)
        return self.teacher.options is not None or by_state

    def _after_each(
        self, features: np.ndarray, offered: tuple[tuple[str, ...], ...], n: int
    ) -> np.ndarray:
        """log pi(a | x, s) in nats after each guidance x, ``(n, options, actions)`` float64."""
        options = self.options_in(offered, n)
        codes, hints = torch.from_numpy(options.codes), torch.from_numpy(options.hints)
        size = len(hints) // n
        table = action_table(offered)
        with torch.inference_mode():
            seen = self.network.see(torch.from_numpy(features)).repeat_interleave(size, dim=0)
            wide = None if table is None else table.repeat_interleave(size, dim=0)
            policy = self.network.choose(seen, codes, hints, wide).double().numpy()
        after: np.ndarray = policy.reshape(n, size, -1)
        return after

    def options_in(self, offered: tuple[tuple[str, ...], ...], n: int) -> Guidance:
        """What the teacher can say in ``n`` states, one state after the other, equally many rows in
        each; a state with fewer has silence in their place.
        """
        options = self.teacher.options
        if options is not None:
            return Guidance(np.tile(options.codes, (n, 1)), np.tile(options.hints, n))
        if not self.lists_guidance:
            raise ValueError("this teacher's guidance cannot be enumerated")
        words = encode_actions(offered)
        size = words.shape[1]
        places = np.where(words[:, :, 0] > 0, np.arange(size), NO_HINT)
        return Guidance(words[:, :, 1:].reshape(n * size, -1), places.ravel())

    def update(
        self, rollout: Rollout, rng: np.random.Generator, term: LossTerm | None = None
    ) -> dict[str, float]:
        """See ``Agent``; ``term`` is what a method adds to the loss."""
        kappa = self.network.kappa
        batch = student_batch(rollout)
        stats = update_student(
            self.network, self.optimizer, batch, self.args, rng, self.trust_optimizer, term
        )
        numbers = {f"student_{name}": value for name, value in stats.items()}
        samples, epochs = len(batch.actions), self.args.epochs
        numbers["student_update_steps"] = float(epochs * num_minibatches(samples, self.args))
        numbers["student_update_samples"] = float(epochs * samples)
        if "student_kappa" in self.columns:
            numbers["student_kappa"] = kappa
        if self.args.kappa_mode == "annealed":
            self._steps_seen += samples
            self._anneal()
        said = [turn.decision.said for turn in rollout.turns]
        spread = [words.entropies for words in said if words is not None]
        return numbers | ({"teacher_entropy": float(np.mean(spread))} if spread else {})

    def tensors(self) -> dict[str, Tensor]:
        """Weights as ``student.<name>``, the optimiser's state as ``adam.<key>``."""
        found = weights_of(self.network, "student.") | self.optimizer.tensors()
        if self.trust_optimizer is not None:
            found |= self.trust_optimizer.tensors("adam_trust.")
        if self.args.kappa_mode == "annealed":
            found["steps_seen"] = torch.tensor(self._steps_seen)
        return found

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Come back to saved tensors.

        Raises:
            CheckpointError: A tensor is missing or has another shape.
        """
        load_weights(self.network, tensors, "student.")
        if self.args.kappa_mode == "annealed":
            self._steps_seen = int(expect_tensor(tensors, "steps_seen", torch.Size()))
        if self.trust_optimizer is not None:
            self.trust_optimizer.load(tensors, "adam_trust.")
        self.optimizer.load(tensors)

    def _anneal(self) -> None:
        """Move kappa to where it is to be after the steps seen: it stays as it is while a rollout
        is collected and learnt from.
        """
        if self.network.trust is None:
            raise ValueError("annealing needs a kappa of its own")
        args = self.args
        done = min(1.0, self._steps_seen / args.kappa_steps) if args.kappa_steps else 1.0
        with torch.no_grad():
            self.network.trust.fill_(args.kappa + done * (args.kappa_final - args.kappa))

    def _act(self, scene: Scene, heard: Guidance, draws: Draws) -> Decision:
        features, offered = self._encode(scene), self._offered(scene)
        with torch.inference_mode():
            seen = torch.from_numpy(features)
            codes, hints = torch.from_numpy(heard.codes), torch.from_numpy(heard.hints)
            policy = self.network.policy(seen, codes, hints, action_table(offered))
            log_probs = policy.double().numpy()
            values = self.network.value(seen).double().numpy()
        actions = sample_rows(log_probs, draws.actions)
        taken = log_probs[np.arange(len(actions)), actions]
        return Decision(actions, taken, values, heard.said, features, heard, offered)

    def _encode(self, scene: Scene) -> np.ndarray:
        return encode_states(scene.observations, self.task)

    def _offered(self, scene: Scene) -> tuple[tuple[str, ...], ...]:
        task = self.task
        if task.by_state:
            return scene.candidates
        if not task.symbolic:  # to the student an action is a number
            for texts in scene.candidates:
                if texts != task.action_texts:
                    raise ConfigError(
                        f"action_texts: {task.name} has {list(task.action_texts)} in one copy or"
                        f" process and {list(texts)} in another: they need one order everywhere,"
                        " which those of a set have not"
                    )
        return ()


class BlindFollower:
    """Does what the teacher of a student hints at, and acts uniformly at random where it hints at
    nothing.
    """

    def __init__(self, student: StudentAgent) -> None:
        self._student = student
        self.discount = student.discount
        self.reads_prompts = student.reads_prompts
        self.enumerable = student.enumerable

    def decide(self, scene: Scene, draws: Draws) -> Decision:
        """See ``Actor``."""
        heard = self._student.teacher.guide(scene, draws)
        with np.errstate(divide="ignore"):
            log_probs = np.log(_obey(heard.hints, scene.candidates))
        actions = sample_rows(log_probs, draws.actions)
        taken = log_probs[np.arange(len(actions)), actions]
        return Decision(actions, taken, self.values(scene), heard.said, heard=heard)

    def values(self, scene: Scene) -> np.ndarray:
        """The student's."""
        return self._student.values(scene)

    def action_probs(self, scene: Scene) -> np.ndarray:
        """See ``Actor``."""
        offered = scene.candidates[:1]  # the same in every state: see ``enumerable``
        hints = self._student.options_in(offered, 1).hints
        weights = self._student.teacher.distribution(scene)
        probs: np.ndarray = weights @ _obey(hints, offered * len(hints))
        return probs


def student_batch(rollout: Rollout) -> StudentBatch:
    """A rollout of a student's, flattened to ``(num_steps * num_envs, ...)``."""
    decisions = [turn.decision for turn in rollout.turns]
    heard = [decision.heard for decision in decisions if decision.heard is not None]
    features = [decision.features for decision in decisions if decision.features is not None]
    if len(heard) != len(decisions) or len(features) != len(decisions):
        raise ValueError("this rollout is not a student's")
    offered = tuple(texts for decision in decisions for texts in decision.offered)
    return StudentBatch(
        features=torch.from_numpy(np.concatenate(features)),
        codes=torch.from_numpy(np.concatenate([guidance.codes for guidance in heard])),
        hints=torch.from_numpy(np.concatenate([guidance.hints for guidance in heard])),
        actions=torch.from_numpy(np.concatenate([decision.actions for decision in decisions])),
        old_log_probs=torch.from_numpy(
            np.concatenate([decision.log_probs for decision in decisions])
        ).float(),
        advantages=torch.from_numpy(rollout.advantages.ravel()).float(),
        returns=torch.from_numpy(rollout.returns.ravel()).float(),
        offered=action_table(offered),
    )


def action_table(offered: tuple[tuple[str, ...], ...]) -> Tensor | None:
    """The actions that states list, as the network reads them; None where they list none."""
    return torch.from_numpy(encode_actions(offered)) if offered else None


def _obey(hints: np.ndarray, offered: Sequence[Sequence[str]]) -> np.ndarray:
    """``(n, actions)``: the hinted action surely, every action offered alike without a hint."""
    obeyed = uniform(offered)
    hinted = np.flatnonzero(hints != NO_HINT)
    obeyed[hinted] = 0.0
    obeyed[hinted, hints[hinted]] = 1.0
    return obeyed
