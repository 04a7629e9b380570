"""The parts of one training run: built from the configuration, saved and brought back together."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lamorel_ext.agents.action_heads import ACTION_HEADS
from lamorel_ext.agents.actors import FixedAgent
from lamorel_ext.agents.cloning import CloningAgent
from lamorel_ext.agents.kept_answers import MOST_ANSWERS, KeptAnswers
from lamorel_ext.agents.llm_policy import VALUE
from lamorel_ext.agents.making import make_agent
from lamorel_ext.agents.metering import LLM_COUNTERS, MeteredClient, Phases
from lamorel_ext.agents.optimizer import below
from lamorel_ext.agents.student import StudentAgent
from lamorel_ext.as_json import changed_by_json
from lamorel_ext.config import Config
from lamorel_ext.errors import CheckpointError, ConfigError, UpdateError
from lamorel_ext.experience import NoteTaker, Rollout, Scene
from lamorel_ext.methods.base import Method, MethodSetting, make_method
from lamorel_ext.methods.feedback.credit import make_credit
from lamorel_ext.methods.feedback.edge import FeedbackEdge
from lamorel_ext.methods.feedback.signals import FeedbackSignals
from lamorel_ext.processes.memory import resident_mib, return_freed_memory
from lamorel_ext.prompts import PLAIN
from lamorel_ext.randomness import Draws, make_rng, restore_rng_states, rng_states
from lamorel_ext.rpc.clients import Clients
from lamorel_ext.training.building import (
    EnvFactory,
    make_evaluator,
    make_training_env,
    task_of,
)
from lamorel_ext.training.collecting import with_rewards
from lamorel_ext.training.curriculum import Curriculum
from lamorel_ext.training.pipeline import HalvedEnv, collect_rollout
from lamorel_ext.training.progress import Progress
from lamorel_ext.training.recorder import Checkpoint, Recorder
from lamorel_ext.training.rewording import RewordedClient
from lamorel_ext.training.scenes import PromptedEnv
from lamorel_ext.training.shared import ONE_CLIENT, shared_factory
from lamorel_ext.training.system import SystemMeter, memory_of_ranks
from lamorel_ext.training.trace import Trace, Tracer
from lamorel_ext.types import LlmClient

COUNTERS = ("env_steps", "episodes", *LLM_COUNTERS, "seconds")
EVALUATION = ("success", "return", "eval_exact")
TRAINING = ("train_success", "train_return", "train_failed")
FOLLOWED = ("teacher_success", "teacher_return")
METHOD = "method."
"""Before the names of a method's tensors in a checkpoint."""
OF_THE_RUN = frozenset({*COUNTERS, *EVALUATION, *TRAINING, *FOLLOWED, "stage"})
"""Columns that no agent or method gives."""


class TrainingRun:
    """Everything that changes while a run trains. A context manager: leaving it closes the
    environments.

    Args:
        config: The run.
        llm: The servers, or None in an arm without an LLM.
        env_factory: Makes the environments.
        clients: Those that train the run together; ``llm`` is then a ``SharedClient``.
    """

    def __init__(
        self,
        config: Config,
        llm: LlmClient | None,
        env_factory: EnvFactory,
        clients: Clients = ONE_CLIENT,
    ) -> None:
        self.config = config
        self._clients = clients
        self._reworded = RewordedClient(llm) if config.method and llm is not None else None
        self.llm = None if llm is None else MeteredClient(self._reworded or llm)
        self._phases = Phases() if self.llm is None else self.llm.phases
        self._meter = SystemMeter(self._phases)
        self._streams = {
            name: make_rng(config.run.seed, name)
            for name in ("actions", "guidance", "feedback", "updates")
        }
        self._draws = Draws(self._streams["actions"], self._streams["guidance"])
        task = task_of(config, env_factory)
        self._action_texts = list(task.action_texts)  # what the numbers of actions mean
        self.agent = make_agent(config, self.llm, task, clients.rank)
        signals = FeedbackSignals(config.feedback, config.env.num_envs, self._streams["feedback"])
        self.edge = FeedbackEdge(
            config, self.llm, signals, make_credit(config, self.agent, self._streams["feedback"])
        )
        self.method: Method | None = None
        if self.llm is not None and self._reworded is not None:
            self.method = self._make_method(self.llm, self._reworded)
        self._check_columns()
        self.tracer = self.edge.watcher = Tracer(config, self.llm, task)
        self.curriculum = Curriculum(config)
        self._env_factory = shared_factory(env_factory, clients)
        self.env = self._make_env()
        self.evaluator = make_evaluator(config, env_factory)
        self.progress = Progress()
        self._scene: Scene | None = None
        self._wording_before = ""

    def __enter__(self) -> TrainingRun:
        return self

    def __exit__(self, *failure: object) -> None:
        self.env.close()
        self.evaluator.close()

    # --- where the run stands ---------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """True once the budget is used up."""
        return self.progress.env_steps >= self.config.budget

    @property
    def evaluation_due(self) -> bool:
        """True at the start, whenever another ``run.eval_every`` steps are over, and at the end."""
        return self.finished or self.progress.env_steps >= self.progress.next_eval

    @property
    def checkpoint_due(self) -> bool:
        """True after every ``run.checkpoint_every`` rollouts, and at the end."""
        every = self.config.run.checkpoint_every
        return self.finished or (every > 0 and self.progress.rollouts % every == 0)

    # --- what a run does --------------------------------------------------------------------------

    def start(self, checkpoint: Checkpoint | None) -> None:
        """Begin anew, or where ``checkpoint`` was made.

        Raises:
            CheckpointError: It does not belong to this configuration.
            ConfigError: The method cannot begin with it.
        """
        if checkpoint is None and self.method is not None:
            self.method.begin_run()
        self._reset_llm()
        if self.llm is not None and self.config.arm.agent == "student":
            if not self.config.feedback_trains and not self.config.method:
                most = self.config.lamorel_args.llm_args.cache_size
                self.llm.kept = KeptAnswers(min(MOST_ANSWERS, most))
        if checkpoint is None:
            self._scene = self.env.reset()
        else:
            self._restore(checkpoint)
        self._meter.start(self.progress.env_steps)

    def take_over(self, checkpoint: Checkpoint | None) -> None:
        """Be what was learnt until ``checkpoint``, or the untrained agent, to be evaluated:
        wherever, so its environments stay behind.

        Raises:
            CheckpointError: It does not belong to this configuration; or its LLM was asked in a
                wording of which the method says nothing.
        """
        self._reset_llm()
        if checkpoint is not None:
            self._take_over(checkpoint)
        if self.method is not None:
            self.method.begin_evaluation()
            before = "" if checkpoint is None else str(checkpoint.state.get("wording", ""))
            if before and self._reworded is not None and not self._reworded.told:
                raise self._unsaid(before, "begin_evaluation")

    def _take_over(self, checkpoint: Checkpoint) -> None:
        signals = checkpoint.state.get("signals", {})
        # The last advantages belong to the environments left behind.
        strangers = [None] * self.config.env.num_envs
        self.edge.signals.restore({**signals, "previous": strangers})
        if self.method is not None:  # how it has the LLM asked is part of the policy
            with _reading(checkpoint):
                self.method.restore(checkpoint.state["method"])
            self.method.forget_episodes()
        self._load_agent(checkpoint)

    def rollout(self) -> Trace | None:
        """Collect a rollout, give feedback to the teacher, update the agent; gives the rollout's
        trace if it was its turn to be recorded.
        """
        if self._scene is None:
            raise ValueError("start the run first")
        if self.llm is not None:
            # What an evaluation has asked must not make the rollout cheaper, nor a resumed run
            # round differently.
            self.llm.forget()
        takers = [own for own in (self.method, self.agent) if isinstance(own, NoteTaker)]
        for taker in takers:
            taker.notes.clear()
        if self.method is not None:
            self.method.begin_rollout()
            self._check_wording()
        begin = time.perf_counter()
        left = (self.config.budget - self.progress.env_steps) // self.env.num_envs
        self.tracer.begin(
            self.curriculum.config,
            self.progress.env_steps,
            self.progress.rollouts,
            left,
            self._scene,
        )
        num_steps = int(min(self.config.num_steps, left, self.curriculum.steps_left))
        with self._phases.phase("collecting"):
            rollout, self._scene = collect_rollout(
                self.env, self.agent, self.edge, self._scene, num_steps, self._draws
            )
        self.tracer.collected(rollout, self.agent)
        try:
            with self._phases.phase("learning"):
                numbers, learnt = self._learn(rollout)
        except UpdateError as error:
            taken = self.progress.env_steps + rollout.rewards.size
            raise UpdateError(f"after {taken} environment steps: {error}") from error
        trace = self.tracer.finish(learnt, [note for taker in takers for note in taker.notes])
        self.progress.averages.add(numbers)
        self.progress.note(rollout, time.perf_counter() - begin - self.tracer.seconds)
        if self.curriculum.note(rollout):
            self._change_env()
        return trace

    def _learn(self, rollout: Rollout) -> tuple[dict[str, float], Rollout]:
        """Teacher, agent and method learn from a rollout; gives their numbers by column, and the
        rollout with what they learnt from.
        """
        method, streams = self.method, self._streams
        if method is not None:
            rewards = method.rewards(rollout.turns)
            if rewards is not None:
                rollout = with_rewards(rollout, rewards, self.agent.discount)
        told = self.edge.after_rollout(rollout).items()
        feedback = {f"feedback_{name}": value for name, value in told}
        term = None if method is None else method.loss_term(rollout)
        if term is not None and isinstance(self.agent, StudentAgent):
            learning = self.agent.update(rollout, streams["updates"], term)
        else:
            learning = self.agent.update(rollout, streams["updates"])
        agent = f"agent: {type(self.agent).__name__}"
        learning = _announced(agent, learning, self.agent.columns)
        taught = {} if method is None else method.learn(rollout)
        return feedback | learning | self._own(taught), rollout

    def _own(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """The method's numbers, by column."""
        if self.method is None:
            return {}
        own = _announced(f"method: {self.config.method.target}", numbers, self.method.columns)
        return {f"{self.method.name}_{name}": value for name, value in own.items()}

    def evaluate(self) -> dict[str, float]:
        """Evaluate the policy, and the teacher followed blindly; gives the next row of the learning
        curve.

        Of several clients the first one evaluates.

        Raises:
            LamorelExtError: The clients' agents are not the same.
        """
        self._clients.same(
            lambda: fingerprint(self._agent_tensors()),
            f"at step {self.progress.env_steps} the agent",
        )
        if self.method is not None:
            self.method.begin_evaluation()
        row = dict.fromkeys(COUNTERS, 0.0) | self.counters() | self._clients.lead(self._evaluate)
        kept = None if self.llm is None else self.llm.kept
        if kept is not None and self._clients.size > 1:
            kept.load(self._clients.lead(kept.tensors))
        if self.config.env.curriculum:
            row["stage"] = float(self.curriculum.stage)
        row |= self.progress.averages.take((*TRAINING, *self._columns))
        self.progress.last_row = {
            name: None if math.isnan(value) else value for name, value in row.items()
        }
        every = self.config.run.eval_every
        self.progress.next_eval = (self.progress.env_steps // every + 1) * every
        return row

    def _evaluate(self) -> dict[str, float]:
        """The columns that an evaluation gives."""
        signals = self.edge.signals if self.edge.speaks else None
        # Evaluations are no cost of learning.
        unmetered = nullcontext() if self.llm is None else self.llm.paused()
        with unmetered, self._phases.phase("evaluating"):
            result = self.evaluator.evaluate(self.agent, signals)
            found = (result.success, result.expected_return, float(result.exact))
            row = dict(zip(EVALUATION, found, strict=True))
            if self.agent.follower is not None:
                followed = self.evaluator.evaluate(self.agent.follower, signals)
                row |= zip(FOLLOWED, (followed.success, followed.expected_return), strict=True)
        return row

    def counters(self) -> dict[str, float]:
        """What the run has cost so far, by ``COUNTERS``."""
        done = self.progress
        own = {
            "env_steps": float(done.env_steps),
            "episodes": float(done.episodes),
            "seconds": done.seconds,
        }
        return own | ({} if self.llm is None else self.llm.counts)

    def save(self, recorder: Recorder) -> None:
        """Hand everything to the recorder."""
        if self._scene is None:
            raise ValueError("start the run first")
        said = self._scene.signals
        state = {
            "progress": self.progress.state(),
            "action_texts": self._action_texts,
            "streams": rng_states(self._streams),
            "env": self.env.state(),
            "said": None if said is None else said.tolist(),
            "signals": self.edge.signals.state(),
            "curriculum": self.curriculum.state(),
            "trace": self.tracer.state(),
            "llm": {} if self.llm is None else dict(self.llm.counts),
        }
        kept = None if self.llm is None else self.llm.kept
        tensors = self._agent_tensors() | ({} if kept is None else kept.tensors())
        if self.method is not None:
            if taken := [name for name in tensors if name.startswith(METHOD)]:
                raise ConfigError(f"agent: its tensor {taken[0]!r} has a name of the method's")
            state["method"] = own_state = self.method.state()
            state["wording"] = self._wording
            if changed := changed_by_json(own_state):
                raise ConfigError(
                    f"method: {self.config.method.target}.state: JSON would change {changed}"
                )
            kept_by_it = _tensors(f"method: {self.config.method.target}", self.method.tensors())
            tensors |= {f"{METHOD}{name}": own for name, own in kept_by_it.items()}
        checkpoint = Checkpoint(self.progress.env_steps, tensors, state)
        checkpoint.check_finite()  # before anything is written: the last good one stays
        with self._phases.phase("saving"):
            recorder.checkpoint(checkpoint, None if self.llm is None else self.llm.save)

    def system_sample(self) -> dict[str, float] | None:
        """How the run uses its machines, see ``SystemMeter.sample``; None where it is not time yet.
        Every client calls it.
        """
        clients = self._clients
        if not clients.lead(lambda: self.finished or self._meter.due):
            return None
        return_freed_memory()  # or a client holds what the largest rollout so far took
        memory = clients.share(resident_mib)
        told = None if self.llm is None else self.llm.info()
        return self._meter.sample(self.counters(), memory_of_ranks(memory, told))

    def _agent_tensors(self) -> dict[str, Tensor]:
        return _tensors(f"agent: {type(self.agent).__name__}", self.agent.tensors())

    def _restore(self, checkpoint: Checkpoint) -> None:
        state: dict[str, Any] = checkpoint.state
        with _reading(checkpoint):
            self.progress = Progress.restored(state["progress"])
            restore_rng_states(self._streams, state["streams"])
            self.edge.signals.restore(state["signals"])
            self.tracer.restore(state.get("trace"))
            if "curriculum" in state:
                self.curriculum.restore(state["curriculum"])
            if self.curriculum.stage:
                self.env.close()
                self.env = self._make_env()
            self._scene = self.env.restore(state["env"]).saying(
                None if state["said"] is None else np.array(state["said"])
            )
            if self.llm is not None:
                self.llm.counts.update(state["llm"])
            if self.method is not None:
                self.method.restore(state["method"])
                self._wording_before = str(state.get("wording", ""))
        self._load_agent(checkpoint)

    def _reset_llm(self) -> None:
        if self.llm is not None:
            arm = self.config.arm
            used = {VALUE, *dict(self.config.heads.named)}
            if arm.action_heads:
                used.add(ACTION_HEADS)
            # The servers may have heads of other runs too, which are no part of this one's weights.
            hosted = str(self.llm.info().get("module_functions", "")).split(",")
            unused = tuple(name for name in hosted if name and name not in used)
            self.llm.reset(self.config.run.seed, arm.weights, unused)

    def _load_agent(self, checkpoint: Checkpoint) -> None:
        checkpoint.check_finite()
        learnt = checkpoint.state.get("action_texts", self._action_texts)  # older ones have none
        if learnt != self._action_texts and sorted(learnt) == sorted(self._action_texts):
            raise CheckpointError(
                f"action_texts: the checkpoint at step {checkpoint.env_steps} numbers the actions"
                f" {learnt}, the environment {self._action_texts}: they need one order in every"
                " process, which those of a set have not"
            )
        found = checkpoint.tensors
        self.agent.load_tensors({n: own for n, own in found.items() if not n.startswith(METHOD)})
        if self.method is not None:
            self.method.load_tensors(below(METHOD, found))
        if self.llm is not None:
            if checkpoint.llm_folder is None:
                raise CheckpointError(
                    f"the checkpoint at step {checkpoint.env_steps} has no LLM, this run has one"
                )
            self.llm.load(checkpoint.llm_folder)
            if self.llm.kept is not None:
                self.llm.kept.load(checkpoint.tensors)

    @property
    def _columns(self) -> tuple[str, ...]:
        """Columns of agent, edge and method."""
        own = () if self.method is None else self.method.columns
        feedback = (f"feedback_{name}" for name in self.edge.columns)
        return (*self.agent.columns, *feedback, *self._own(dict.fromkeys(own, 0.0)))

    def _check_columns(self) -> None:
        seen = set(OF_THE_RUN)
        for name in self._columns:
            if name in seen:
                raise ConfigError(
                    f"the curve has a column {name!r} already; agent"
                    f" ({type(self.agent).__name__}) and method must give theirs other names"
                )
            seen.add(name)

    @property
    def _wording(self) -> str:
        """The name of the method's wording; empty where the words are plain."""
        wording = PLAIN if self._reworded is None else self._reworded.wording
        return "" if wording is PLAIN else wording.name or type(wording).__name__

    def _check_wording(self) -> None:
        """A wording is no part of a checkpoint: the method must say it again.

        Raises:
            CheckpointError: It did not.
        """
        before, self._wording_before = self._wording_before, ""
        if before and not self._wording:
            raise self._unsaid(before, "begin_rollout")

    def _unsaid(self, wording: str, where: str) -> CheckpointError:
        return CheckpointError(
            f"the run had its LLM asked in the wording {wording!r} when it was saved, and"
            f" {self.config.method.target} says nothing of it after restore: reword there, or"
            f" in {where}"
        )

    def _make_method(self, llm: LlmClient, reworded: RewordedClient) -> Method:
        """The method of ``method._target_``, with a random stream of its own."""
        config = self.config
        self._streams["method"] = rng = make_rng(config.run.seed, "method")
        method = make_method(MethodSetting(config, llm, self.agent, rng, reworded.reword))
        if type(method).loss_term is not Method.loss_term and not isinstance(
            self.agent, StudentAgent
        ):
            raise ConfigError(
                f"method: {config.method.target} has a loss_term, which only a student's loss"
                f" takes; the agent is a {type(self.agent).__name__}"
            )
        pays = type(method).rewards is not Method.rewards
        if pays and isinstance(self.agent, (FixedAgent, CloningAgent)):
            raise ConfigError(
                f"method: {config.method.target} gives rewards, but arm.agent={config.arm.agent}"
                " learns from none"
            )
        if self.edge.online and pays:
            raise ConfigError(
                f"method: {config.method.target} gives rewards when a rollout is over, but"
                " feedback.every and feedback.channel need them at once"
            )
        return method

    def _make_env(self) -> PromptedEnv | HalvedEnv:
        """The training environments of the curriculum's stage."""
        remote = self.llm is not None and self.llm.remote
        return make_training_env(
            self.curriculum.config, self._env_factory, self.agent, self.edge, remote
        )

    def _change_env(self) -> None:
        """The next stage: new episodes everywhere, and nothing is left of the unfinished ones."""
        self.env.close()
        self.env = self._make_env()
        self._scene = self.env.reset()
        self.edge.signals.forget_episodes()
        if self.method is not None:
            self.method.forget_episodes()
        self.tracer.forget_episodes()
        self.progress.running_returns = []


@contextmanager
def _reading(checkpoint: Checkpoint) -> Iterator[None]:
    """What is wrong with a checkpoint's state is told with its step."""
    try:
        yield
    except KeyError as error:
        raise CheckpointError(
            f"the checkpoint at step {checkpoint.env_steps} lacks {error}"
        ) from error
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise CheckpointError(
            f"the checkpoint at step {checkpoint.env_steps} holds a wrong value: {error}"
        ) from error


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Equal where the tensors are, to the last bit."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu()  # from a GPU, and of types that NumPy does not know
        numbers = tensor.clone(memory_format=torch.contiguous_format).reshape(-1)
        found.update(name.encode() + numbers.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _tensors(whose: str, found: Any) -> dict[str, Tensor]:
    """What is to be saved, held to what can be."""
    if not isinstance(found, Mapping):
        raise ConfigError(f"{whose}.tensors: expected torch tensors by name, got {found!r:.80}")
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ConfigError(
                f"{whose}.tensors: {name!r}: expected a name and a torch tensor, got {tensor!r:.80}"
            )
    return dict(found)


def _announced(
    whose: str, numbers: Mapping[str, float], columns: Collection[str]
) -> dict[str, float]:
    """The numbers as plain floats: they may be NumPy's or torch's, which JSON cannot hold. NaN, as
    the mean of nothing is, means not measured as it does in a row.
    """
    if not isinstance(numbers, Mapping):
        raise ConfigError(f"{whose} gives {numbers!r:.80}, expected a dictionary of numbers")
    if strangers := set(numbers) - set(columns):
        raise ConfigError(
            f"{whose} gives {', '.join(sorted(strangers))}, expected no others than its columns"
            f" ({', '.join(columns) or 'none'})"
        )
    plain = {}
    for name, value in numbers.items():
        try:
            number = float(value)
        except (TypeError, ValueError, RuntimeError) as error:  # torch raises the last one
            raise ConfigError(
                f"{whose}: column {name}: expected a number, got {value!r:.80}"
            ) from error
        if not math.isnan(number):
            plain[name] = number
    return plain
