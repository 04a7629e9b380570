"""One of several ranks that hold models together, each model beside the same one held whole; prints
one JSON line per comparison: the largest difference, relative to the largest number. The arguments
are a folder, ``cpu`` or ``cuda``, and names of models.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor

from lamorel_ext.llm.fsdp import divide, own_part, whole
from lamorel_ext.llm.handlers import RequestHandler
from lamorel_ext.llm.host import ModelHost
from lamorel_ext.llm.module_functions import ValueHead
from lamorel_ext.llm.updaters import make_updaters
from lamorel_ext.llm.weights import distinct_tensors
from lamorel_ext.rpc.distributed import TorchGroup
from lamorel_ext.rpc.groups import LockstepGroup, make_thread_groups
from lamorel_ext.types import (
    Answer,
    GenerateRequest,
    GenerateResult,
    LoadRequest,
    Request,
    ResetRequest,
    SaveRequest,
    Scalar,
    ScoreRequest,
    ScoreResult,
    UpdateRequest,
    UpdateResult,
)
from tests.llm.tiny_models import ACTIONS, PROMPTS, make_causal, make_host, make_t5

MODELS: dict[str, Callable[[], Any]] = {
    "t5": make_t5,
    "t5 with a tied head": lambda: make_t5(own_head=False),
    "llama": make_causal,
    "bfloat16 t5": lambda: make_t5(dtype=torch.bfloat16),
}
DEVICE = torch.device("cpu")
N = len(PROMPTS) - 1  # a decoder-only model has no answer to the empty prompt


def host_of(name: str, group: Any = None) -> ModelHost:
    model = MODELS[name]()
    if group is not None:
        divide(model, group, DEVICE)
    host = make_host(model, {"value": ValueHead(4)}, max_prompt_tokens=20)
    if group is None:
        # The engine that reads a divided model, or bfloat16 would round elsewhere.
        model.register_forward_hook(lambda *_: None)  # the engine of all models is right for any
    return host


def handler_of(host: ModelHost, group: Any, one_model: bool) -> RequestHandler:
    handler = RequestHandler(
        host, make_updaters(), LockstepGroup(group), group.rank, "llm server", one_model=one_model
    )
    handler.open()
    return handler


def texts() -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    prompts = tuple(prompt for prompt in PROMPTS if prompt)
    return prompts, (ACTIONS,) * N


def update_request(name: str, **options: Any) -> UpdateRequest:
    signals, chosen = torch.tensor([1.0, -1.0, 0.5, 2.0]), torch.arange(N) % 6
    data = {"chosen": chosen, "signals": signals}
    if name == "ppo":
        data = {"actions": chosen, "advantages": signals, "values": torch.zeros(N)}
        data["returns"], data["old_log_probs"] = torch.linspace(-1, 1, N), torch.full((N,), -1.8)
    return UpdateRequest(name, *texts(), torch.arange(N), N, data, options)


def numbers(answer: Answer) -> Tensor:
    """All that an answer says, as numbers."""
    if isinstance(answer, ScoreResult):
        return torch.cat([answer.log_probs, *(each.flatten() for each in answer.modules.values())])
    if isinstance(answer, GenerateResult):
        return torch.cat([answer.tokens.double(), answer.token_log_probs.double()])
    if isinstance(answer, UpdateResult):
        timeless = {key: value for key, value in answer.stats.items() if key != "seconds"}
        return torch.tensor([timeless[key] for key in sorted(timeless)])
    return torch.tensor([float(ord(letter)) for letter in type(answer).__name__])


def weights(host: Any) -> Tensor:
    return torch.cat(
        [whole(each).cpu().flatten().double() for each in distinct_tensors(host).values()]
    )


def compare(name: str, groups: tuple[Any, Any], folder: Path) -> None:
    control, model_group = groups
    rank = control.rank
    divided = handler_of(host_of(name, model_group), control, one_model=True)
    alone = handler_of(host_of(name), make_thread_groups(1)[0], one_model=False)
    # A share of the memory, not a copy.
    parts = sum(own_part(each).numel() for each in distinct_tensors(divided.host.model).values())
    all_of_it = sum(each.numel() for each in distinct_tensors(alone.host.model).values())
    say(rank, name, "share of the weights", parts / all_of_it)

    def both(what: str, request: Request, other: Request | None = None) -> None:
        one, two = divided.handle(request), alone.handle(other or request)
        found = [numbers(one).double(), numbers(two).double()]
        found += [weights(divided.host), weights(alone.host)]
        off = [
            float((a - b).abs().max() / b.abs().max()) if a.shape == b.shape else float("inf")
            for a, b in zip(found[::2], found[1::2], strict=True)
        ]
        say(rank, name, what, max(off), answer=type(one).__name__)

    score = ScoreRequest(*texts(), ("value",))
    both("scores", score)
    both("a step of PPO", update_request("ppo", lr=1e-3, epochs=2, minibatch_size=3))
    both("scores after it", score)
    both(
        "feedback with a KL term",
        update_request("feedback", lr=1e-3, kl_coef=0.5, gradient_minibatch_size=2),
    )
    both("greedy text", GenerateRequest(texts()[0], {"max_new_tokens": 5}))
    sampled: dict[str, Scalar] = {
        "max_new_tokens": 4,
        "do_sample": True,
        "seed": 3,
        "num_return_sequences": 2,
    }
    if DEVICE.type == "cpu":  # a GPU draws other numbers from a seed
        both("sampled text", GenerateRequest(texts()[0], sampled))
    mine, whole_ones = folder / "divided" / name, folder / "whole" / name
    if rank == 0:
        whole_ones.parent.mkdir(parents=True, exist_ok=True)
        both("a checkpoint", SaveRequest(str(mine)), SaveRequest(str(whole_ones)))
    else:
        divided.handle(SaveRequest(str(mine)))
        weights(divided.host)
    control.barrier()
    both("a step that is forgotten", update_request("ppo", lr=1e-2))
    # Each reads what the other has written.
    both("a checkpoint read", LoadRequest(str(whole_ones)), LoadRequest(str(mine)))
    both("a step of PPO after it", update_request("ppo", lr=1e-3))
    both("scores after all", score)
    in_the_way = folder / "a file"
    in_the_way.write_text("not a folder")
    refused = divided.handle(SaveRequest(str(in_the_way / "x")))
    say(rank, name, "a save that fails", 0.0, answer=getattr(refused, "type_name", ""))
    long = divided.handle(ScoreRequest(("wall " * 30,), (ACTIONS,)))
    say(rank, name, "a prompt too long", 0.0, answer=getattr(long, "type_name", ""))
    both("scores after failures", score)
    both("a reset", ResetRequest(1))
    both("scores of the start", score)
    both("embeddings kept", ResetRequest(2, "embeddings"))
    both("scores after that", score)
    files = ("model/model.safetensors", "updaters/ppo/ppo.optimizer.safetensors")
    for file in files:
        one, two = (
            {key: tuple(value.shape) for key, value in load_file(each / file).items()}
            for each in (mine, whole_ones)
        )
        say(rank, name, f"names and shapes in {Path(file).name}", float(one != two))


def say(rank: int, name: str, what: str, off: float, answer: str = "") -> None:
    if rank == 0:
        print(json.dumps({"model": name, "what": what, "off": off, "answer": answer}), flush=True)


def main() -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=180))
    ranks = list(range(dist.get_world_size()))
    global DEVICE
    folder, device, *names = sys.argv[1:]
    if device == "cuda":
        DEVICE = torch.device("cuda", dist.get_rank())
        torch.cuda.set_device(DEVICE)
    held = dist.new_group(ranks, backend="nccl" if device == "cuda" else "gloo")
    for name in names or MODELS:
        compare(name, (TorchGroup(dist.new_group(ranks)), held), Path(folder))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
