"""Who learns to act: one protocol for the LLM as policy, the RL student and those to compare with,
and the choice between them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lamorel_ext.agents.action_heads import ActionHeadsAgent
from lamorel_ext.agents.actors import ExpertActor, FixedAgent, UniformActor
from lamorel_ext.agents.cloning import CloningAgent
from lamorel_ext.agents.drrn import DrrnAgent
from lamorel_ext.agents.features import feature_size
from lamorel_ext.agents.llm_policy import LlmPolicyAgent
from lamorel_ext.agents.network import StudentNetwork
from lamorel_ext.agents.student import StudentAgent
from lamorel_ext.agents.teachers import make_teacher
from lamorel_ext.config import Config, StudentArgs
from lamorel_ext.errors import ConfigError
from lamorel_ext.experience import BABYAI, Actor, Rollout
from lamorel_ext.randomness import make_rng
from lamorel_ext.rpc.topology import CLIENT_DEVICES
from lamorel_ext.types import LlmClient, TaskSpec


class Agent(Actor, Protocol):
    """An actor that learns.

    Attributes:
        columns: Names of the numbers that ``update`` gives.
        follower: An actor that does what the teacher hints at, evaluated to see how good the
            teacher is; None for an agent without a teacher.
    """

    columns: tuple[str, ...]
    follower: Actor | None

    def update(self, rollout: Rollout, rng: np.random.Generator) -> dict[str, float]:
        """Learn from a rollout.

        Args:
            rollout: What was collected; ``learnt_rewards`` and ``advantages`` are to be learnt
                from, ``rewards`` are the environment's.
            rng: The agent's own stream, saved with the run.

        Returns:
            Numbers by ``columns``; absent ones were not measured.
        """

    def tensors(self) -> dict[str, Tensor]:
        """Weights and optimiser state that live on the client."""

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Come back to saved ``tensors``."""


@dataclass(frozen=True)
class AgentSetting:
    """What an agent of the user's own is made from, which ``agent._target_`` names.

    Attributes:
        config: The run.
        llm: The servers.
        seed: For its initial weights.
        task: What the environment asks of it.
        device: Where its weights belong, as ``torch.device`` reads it: this client's of
            ``lamorel_args.distributed_setup_args.client_devices``, ``cpu`` without one.
    """

    config: Config
    llm: LlmClient
    seed: int
    task: TaskSpec = BABYAI
    device: str = "cpu"


def make_agent(
    config: Config, llm: LlmClient | None, task: TaskSpec = BABYAI, client: int = 0
) -> Agent:
    """The agent that the configuration names.

    Args:
        task: What the environment asks of it.
        client: The RL client that it is of.

    Raises:
        ConfigError: It needs an LLM and there is none, its teacher cannot speak the vocabulary, or
            it is one of the user's own that cannot be had or is no ``Agent``, or is to have a GPU
            that is not there.
    """
    kind = config.arm.agent
    if kind == "own":
        return _own_agent(config, llm, task, client)
    if kind in ("random", "bot"):
        return FixedAgent(UniformActor() if kind == "random" else ExpertActor())
    if kind in ("llm_policy", "cloning"):
        if llm is None:
            raise ConfigError(f"arm.agent: {kind} needs an LLM server")
        if kind == "cloning":
            return CloningAgent(llm, config.cloning)
        policy = ActionHeadsAgent if config.arm.action_heads else LlmPolicyAgent
        return policy(llm, config.ppo)
    seed = _weights_seed(config)
    if kind == "drrn":
        return DrrnAgent(config.drrn, seed, task)
    teacher, args = make_teacher(config, llm, task), config.student
    generator = torch.Generator().manual_seed(seed)
    network = make_network(teacher.guidance_codes, args, generator, task)
    return StudentAgent(network, teacher, args, config.arm.teacher == "llm", task)


def make_network(
    guidance_codes: int, args: StudentArgs, generator: torch.Generator, task: TaskSpec
) -> StudentNetwork:
    """The network of a student that hears guidance with codes of this size."""
    return StudentNetwork(
        guidance_codes,
        args.hidden_size,
        args.guidance_size,
        args.kappa,
        generator,
        args.kappa_mode != "initial",
        len(task.action_texts),
        feature_size(task),
    )


def _own_agent(config: Config, llm: LlmClient | None, task: TaskSpec, client: int) -> Agent:
    if llm is None:
        raise ConfigError("arm.agent: own needs an LLM server")
    setting = AgentSetting(config, llm, _weights_seed(config), task, _device(config, client))
    made: Agent = config.agent.make("agent", setting)
    needed = (*Actor.__annotations__, *Agent.__annotations__, *_methods(Actor), *_methods(Agent))
    missing = [name for name in needed if not hasattr(made, name)]
    if missing:
        raise ConfigError(
            f"agent: {config.agent.target} lacks {', '.join(missing)}; see"
            " lamorel_ext.agents.making.Agent"
        )
    return made


def _device(config: Config, client: int) -> str:
    devices = config.lamorel_args.distributed_setup_args.client_devices
    if not devices:
        return "cpu"
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if devices[client] >= there:
        raise ConfigError(
            f"{CLIENT_DEVICES}: rl client {client} is to use GPU {devices[client]} of its machine,"
            f" which has {there}"
        )
    return f"cuda:{devices[client]}"


def _methods(protocol: type) -> list[str]:
    return [name for name in vars(protocol) if not name.startswith("_")]


def _weights_seed(config: Config) -> int:
    return int(make_rng(config.run.seed, "weights").integers(2**31))
