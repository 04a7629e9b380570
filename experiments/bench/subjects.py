"""What is measured: sizes of a run, and the programs that all benchmarks share, built when first
asked for.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from experiments.bench.checkpoint import FLAN_T5_SMALL, TINY, Shape, cached_checkpoint
from experiments.bench.peers.lamorel_way import LamorelScorer
from lamorel_ext.config import LlmArgs
from lamorel_ext.envs.babyai.batched import make_batched_env
from lamorel_ext.llm.host import ModelHost
from lamorel_ext.llm.loading import load_host, load_model
from lamorel_ext.llm.module_functions import ValueHead
from lamorel_ext.types import BatchedEnv

DEVICE = torch.device("cpu")
PAPER_LEVEL = "BabyAI-GoToRedBallNoDists-v0"
LOCAL_LEVEL = "BabyAI-GoToLocal-v0"


@dataclass(frozen=True)
class Setting:
    """Sizes of a run.

    Attributes:
        shape: Of the language model.
        repetitions: Turns that are timed.
        num_envs: Environments of a rollout, prompts of a call.
        num_steps: Steps of a rollout.
        lamorel_calls: Calls of a rollout that Lamorel's way is timed on.
        distinct_calls: Calls of all-distinct prompts that ours is timed on.
        lamorel_distinct: All-distinct prompts that Lamorel's way is timed on, in calls of at most
            ``num_envs``.
        lamorel_transitions: Transitions whose gradients Lamorel's way is timed on.
        update_minibatches: Minibatches of 64 and of 320 transitions that our update is timed on; an
            epoch has 20 and 4.
        iteration_steps: Steps of each environment in an end-to-end iteration of an arm.
        online_steps: Environment steps of each arm from which ``figure2_2100`` is estimated.
        whole_steps: Environment steps of each arm where ``figure2_2100`` is launched and run from
            beginning to end; 0 estimates it.
        demo_steps: Steps of each arm of the demonstration.
        demo_seeds: Of its seeds those that are run; from fewer than all the rest is estimated.
        env_steps: Steps of the batched environments.
        minigrid_steps: Steps of one minigrid environment.
        large_batch: Environments in the environment benchmarks.
        copies: Copies of the level that ``env_copies`` compares, ascending.
        rollout_steps: Steps of a rollout of ``large_batch`` copies.
        check_servers: Servers of the launches from which ``simulate`` is fitted and on which it is
            checked; 1 and 2 among them.
        gpu_calls: The call on a GPU has this many times ``num_envs`` prompts.
    """

    shape: Shape = FLAN_T5_SMALL
    repetitions: int = 3
    num_envs: int = 32
    num_steps: int = 40
    lamorel_calls: int = 4
    distinct_calls: int = 4
    lamorel_distinct: int = 16
    lamorel_transitions: int = 12
    update_minibatches: tuple[int, int] = (3, 1)
    iteration_steps: int = 32
    online_steps: int = 40
    whole_steps: int = 0
    demo_steps: int = 2100
    demo_seeds: int = 3
    env_steps: int = 500
    minigrid_steps: int = 2000
    large_batch: int = 256
    copies: tuple[int, ...] = (16, 64, 256, 1024)
    rollout_steps: int = 2
    check_servers: tuple[int, ...] = (1, 2, 4)
    gpu_calls: int = 128


FULL = Setting()
QUICK = Setting(
    repetitions=2,
    lamorel_calls=2,
    distinct_calls=1,
    lamorel_transitions=10,
    update_minibatches=(2, 1),
    iteration_steps=2,
    online_steps=8,
    demo_steps=700,
    demo_seeds=1,
    env_steps=200,
    minigrid_steps=1000,
)
MINIATURE = Setting(
    shape=TINY,
    repetitions=1,
    num_envs=3,
    num_steps=4,
    lamorel_calls=2,
    distinct_calls=2,
    lamorel_distinct=4,
    lamorel_transitions=2,
    update_minibatches=(2, 1),
    iteration_steps=2,
    online_steps=2,
    demo_steps=16,
    demo_seeds=1,
    env_steps=5,
    minigrid_steps=5,
    large_batch=4,
    copies=(1, 2),
    rollout_steps=1,
    check_servers=(1, 2),
    gpu_calls=2,
)
"""For tests: every benchmark runs, no figure means anything."""


class Subjects:
    """The programs under measurement, all on the same weights.

    Args:
        setting: Sizes.
        num_threads: Threads of PyTorch in every process.
    """

    def __init__(self, setting: Setting, num_threads: int = 1) -> None:
        self.setting, self.num_threads = setting, num_threads

    def make_env(self, level: str) -> BatchedEnv:
        """The batched environment that training would take."""
        return make_batched_env(level, self.setting.num_envs, seed=0)

    @cached_property
    def folder(self) -> Path:
        return cached_checkpoint(self.setting.shape)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(self.folder)
        return tokenizer

    @property
    def llm_args(self) -> LlmArgs:
        return LlmArgs(model_path=str(self.folder), num_threads=self.num_threads)

    @cached_property
    def host(self) -> ModelHost:
        """Ours."""
        return load_host(
            self.llm_args, DEVICE, {"value": ValueHead(self.llm_args.value_head_hidden)}
        )

    @cached_property
    def plain_model(self) -> PreTrainedModel:
        """transformers' own, with its own forward pass.

        Our loader reads it, which does not believe transformers' advice to tie the head.
        """
        return load_model(self.llm_args, DEVICE)[0]

    @cached_property
    def lamorel(self) -> LamorelScorer:
        """The stand-in for Lamorel, with our weights, the value head's too."""
        head = copy.deepcopy(self.host.module_functions["value"].get_submodule("layers"))
        return LamorelScorer(self.plain_model, self.tokenizer, head)
