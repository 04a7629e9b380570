"""``make gpu-check``: what only a GPU can show. Says "not run here" of what this machine has no GPU
for; ends with 1 where a check fails.
"""

from __future__ import annotations

import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from lamorel_ext import BaseUpdater
from lamorel_ext.agents.actors import FixedAgent, UniformActor
from lamorel_ext.agents.making import AgentSetting, make_agent
from lamorel_ext.config import LlmArgs, LoraArgs, ParallelismArgs, load_config
from lamorel_ext.lamorel.hosting import make_host
from lamorel_ext.lamorel.settings import LlmSettings
from lamorel_ext.llm.host import ModelHost
from lamorel_ext.llm.loading import EMBEDDED, load_host
from lamorel_ext.llm.module_functions import ValueHead
from lamorel_ext.llm.scoring.graphs import GraphEngine
from lamorel_ext.llm.serving import Hosted, in_process
from lamorel_ext.llm.updaters import make_updaters
from lamorel_ext.prompts import ACTION_NAMES
from lamorel_ext.rpc.groups import LockstepGroup, make_thread_groups
from lamorel_ext.rpc.lamorel_shape import SCORE_KEY
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


class NotHere(Exception):
    """What a check needs is missing; the message says what."""


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


def graphs_answer_alike() -> bool:
    """Whether small calls give the very same numbers with a CUDA graph and without, for other
    prompts of its shape and for weights that have changed since.
    """
    host = make(1, "bfloat16")
    other = tuple(f"{prompt} and a wall" for prompt in PROMPTS)

    def ask(prompts: tuple[str, ...]) -> torch.Tensor:
        found = host.score(prompts, CANDIDATES[: len(prompts)], ("value",))
        return torch.cat([found.log_probs, found.modules["value"].flatten()])

    def both() -> list[torch.Tensor]:
        return [ask(prompts) for prompts in (PROMPTS, other, PROMPTS[:3])]

    engine: Any = host._answerer.scorer.engine
    alike, before = type(engine) is GraphEngine, None
    for _ in range(2):
        engine._calls.clear()
        plain, captured, replayed = both(), both(), both()
        for answers in (captured, replayed):
            alike &= all(map(torch.equal, answers, plain))
        alike &= before is None or not torch.equal(before, plain[0])
        before = plain[0]
        teach(host, 1e-3)
        alike &= torch.equal(ask(PROMPTS), both()[0])
    return alike


class Imitates(BaseUpdater):
    """Makes the first candidate likelier."""

    def perform_update(
        self,
        contexts: Sequence[str],
        candidates: Sequence[Sequence[str]],
        _current_batch_ids: Any,
        **kwargs: Any,
    ) -> float:
        module = self._llm_module
        taught = [parameter for parameter in module.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(taught, 1e-2)
        for _ in range(3):
            rows = module([SCORE_KEY], contexts, candidates=candidates, require_grad=True)
            scores = torch.stack([row[SCORE_KEY].flatten() for row in rows])
            loss = -scores.log_softmax(-1)[:, 0].mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return float(loss.detach())


def four_bits_learn() -> bool:
    """Whether a model in four bits learns by its adapters, through Lamorel's interface, while its
    own weights stay.
    """
    if find_spec("bitsandbytes") is None:
        raise NotHere("bitsandbytes is not installed")
    lora = LoraArgs(r=4, alpha=8, target_modules=("q", "v"))
    args = replace(LlmArgs(), model_path=str(EMBEDDED), load_in_4bit=True, lora=lora)
    settings = LlmSettings("", "0.2", args, range(1))
    host = make_host(settings, [torch.device("cuda", 0)], 1, Imitates(), {}, None)
    group = LockstepGroup(make_thread_groups(1)[0])
    host.set_group(group)
    whole = host.module.module
    kept = {name: value.clone() for name, value in whole.named_parameters()}
    batch = {"contexts": [*PROMPTS], "candidates": [[*each] for each in CANDIDATES]}
    losses = [
        host.call("update", {**batch, "_current_batch_ids": [*range(len(PROMPTS))]}, group)[
            "result"
        ]
        for _ in range(3)
    ]
    moved = {name for name, value in whole.named_parameters() if not torch.equal(value, kept[name])}
    quantised = any(type(module).__name__ == "Linear4bit" for module in whole.modules())
    return (
        quantised
        and bool(moved)
        and all("lora_" in name for name in moved)
        and losses[0] > losses[1] > losses[2]
    )


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
    "small calls by CUDA graphs": (1, graphs_answer_alike),
    "four bits with adapters (bitsandbytes)": (1, four_bits_learn),
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
        except NotHere as missing:
            print(f"{name}: not run here: {missing}")
            continue
        except Exception:  # the other checks are still worth their answer
            traceback.print_exc()
            good = False
        failed |= not good
        print(f"{name}: {'as it should be' if good else 'FAILED'}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
