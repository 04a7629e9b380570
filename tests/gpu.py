"""``make gpu-check``: what only a GPU can show. Says "not run here" of what this machine has no GPU
for; ends with 1 where a check fails.
"""

from __future__ import annotations

import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lamorel_ext.agents.actors import FixedAgent, UniformActor
from lamorel_ext.agents.making import AgentSetting, make_agent
from lamorel_ext.config import LlmArgs, ParallelismArgs, load_config
from lamorel_ext.llm.host import ModelHost
from lamorel_ext.llm.loading import load_host
from lamorel_ext.llm.module_functions import ValueHead
from lamorel_ext.llm.serving import Hosted, in_process
from lamorel_ext.llm.updaters import make_updaters
from lamorel_ext.prompts import ACTION_NAMES
from lamorel_ext.rpc.groups import make_thread_groups
from lamorel_ext.types import UpdateRequest

PROMPTS = tuple(
    f"Goal of the agent: go to the red ball\nYou see a wall {k} steps left" for k in "1234"
)
CANDIDATES = (tuple(ACTION_NAMES),) * len(PROMPTS)
FLOAT32, BFLOAT16 = 1e-4, 0.3
"""Largest root mean square of the differences of scores, over the scores' standard deviation: GPUs
add up in another order, and bfloat16 keeps 8 bits: on the CPU alone such scores are .39 off
float32's, from rounded weights and sums alike.
"""


def make(gpus: int, dtype: str = "float32") -> ModelHost:
    """The embedded model on so many GPUs; 0 means the CPU."""
    args = replace(LlmArgs(), dtype=dtype, cache_size=0)  # type: ignore[arg-type]
    if not gpus:
        return load_host(args, torch.device("cpu"), {"value": ValueHead(8)})
    devices = [torch.device("cuda", gpu) for gpu in range(gpus)]
    args = replace(args, parallelism=ParallelismArgs(True, gpus))
    return load_host(args, devices[0], {"value": ValueHead(8)}, devices=devices)


def teach(host: ModelHost, lr: float, steps: int = 1) -> None:
    """Steps of PPO."""
    updater = make_updaters()["ppo"]
    updater.set_llm_module(host)
    updater.set_group(make_thread_groups(1)[0])
    n = len(PROMPTS)
    data = {
        "actions": torch.arange(n) % 6,
        "old_log_probs": torch.full((n,), -1.8),
        "advantages": torch.tensor([1.0, -1.0, 0.5, 2.0]),
        "returns": torch.zeros(n),
        "values": torch.zeros(n),
    }
    options = {"lr": lr, "epochs": 1}
    for _ in range(steps):
        updater.update(UpdateRequest("ppo", PROMPTS, CANDIDATES, torch.arange(n), n, data, options))


def apart(gpus: int, dtype: str = "float32") -> float:
    """How far scores are off the CPU's in the same precision, before and after a step.

    See ``FLOAT32``.
    """
    exact, found = make(0, dtype), make(gpus, dtype)
    most = 0.0
    for _ in range(2):
        scores = [host.score(PROMPTS, CANDIDATES, ("value",)).log_probs for host in (exact, found)]
        off = (scores[0] - scores[1]).square().mean().sqrt()
        most = max(most, float(off / scores[0].std()))
        for host in (exact, found):
            teach(host, 1e-4)
    return most


def tiny_steps_moved() -> bool:
    """Whether steps that bfloat16 alone would round away add up on a GPU."""
    host = make(1, "bfloat16")
    before = [parameter.detach().clone() for parameter in host.parameters()]
    teach(host, 1e-5, steps=60)
    return any(
        not torch.equal(old, new) for old, new in zip(before, host.parameters(), strict=True)
    )


def one_model(gpus: int) -> bool:
    """Whether GPUs that share one model answer, learn and save as the CPU does, in float64."""
    from tests.llm.test_fsdp import SAME, check, together

    with tempfile.TemporaryDirectory() as folder:
        check(together(gpus, Path(folder), "t5", "llama", device="cuda"), SAME)
    return True


class OnGpu(FixedAgent):
    """An agent of one's own with weights on its client's GPU."""

    def __init__(self, setting: AgentSetting) -> None:
        super().__init__(UniformActor())
        self.weights = torch.ones(3, device=setting.device)


def own_agent_on_a_gpu() -> bool:
    """Whether an agent of one's own has its client's GPU."""
    plain = load_config(
        [
            "arm.teacher=none",
            "feedback.signal=none",
            "agent._target_=tests.gpu.OnGpu",
            "lamorel_args.distributed_setup_args.client_devices=[0]",
        ]
    )
    hosted = Hosted(make(0), make_updaters())
    with in_process([hosted]) as caller:
        agent: Any = make_agent(plain, caller)
    return bool(agent.weights.device == torch.device("cuda", 0) and agent.weights.sum() == 3)


CHECKS: dict[str, tuple[int, Callable[[], bool]]] = {
    "float32 scores and a step on a GPU": (1, lambda: apart(1) < FLOAT32),
    "bfloat16 scores and a step on a GPU": (1, lambda: apart(1, "bfloat16") < BFLOAT16),
    "bfloat16 weights, float32 master copies": (1, tiny_steps_moved),
    "layers over two GPUs, float32": (2, lambda: apart(2) < FLOAT32),
    "fsdp on one GPU": (1, lambda: one_model(1)),
    "one model over two GPUs (fsdp)": (2, lambda: one_model(2)),
    "an agent of one's own on its client's GPU": (1, own_agent_on_a_gpu),
    "layers over two GPUs, bfloat16": (2, lambda: apart(2, "bfloat16") < BFLOAT16),
}
"""GPUs that each needs, and what it checks."""


def main() -> int:
    """Run what can be run here; a line for each."""
    there, failed = torch.cuda.device_count() if torch.cuda.is_available() else 0, False
    for name, (needed, check) in CHECKS.items():
        if needed > there:
            print(f"{name}: not run here: {'no GPU' if not there else f'{there} of {needed} GPUs'}")
            continue
        try:
            good = check()
        except Exception:  # the other checks are still worth their answer
            traceback.print_exc()
            good = False
        failed |= not good
        print(f"{name}: {'as it should be' if good else 'FAILED'}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
