"""Scoring in bfloat16 on a GPU, where there is one.

``python -m experiments.bench.gpu`` runs this alone, and writes beside the figures where the time of
a call goes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEventAvg
from torch.profiler import profile

from experiments.bench.harness import (
    Contender,
    Detail,
    Row,
    make_row,
    missing_row,
    rounded,
    take_turns,
)
from experiments.bench.operations import MultiplyLimit, work_of
from experiments.bench.subjects import FULL, LOCAL_LEVEL, QUICK, Subjects
from experiments.bench.updates import Transitions
from experiments.bench.workloads import distinct_calls, ppo_data, same_candidates
from experiments.runs.files import file_to_write
from lamorel_ext.llm.host import ModelHost
from lamorel_ext.llm.loading import load_host
from lamorel_ext.llm.module_functions import ValueHead
from lamorel_ext.llm.updaters import PPOUpdater
from lamorel_ext.prompts import ACTION_NAMES
from lamorel_ext.types import ScoreResult

BAR = 20_000.0
UNIT = "prompts/s"
CHECKED = 64
"""Prompts of the timed call whose answers are compared with float32 on the CPU."""
MAX_ERROR = 0.1
"""Root mean square of the difference to float32, over the standard deviation of a candidate's score
among prompts: bfloat16 keeps 8 bits, which some layers of rounding make some hundredths; the
answers of other prompts would be off by more than one. A figure of wrong numbers is none."""
NO_GPU = "no GPU on this machine"
UPDATED, UPDATED_TOGETHER = 640, 64
"""Transitions of the epoch of PPO, and of a minibatch."""
TOP = 12
"""Kernels in the breakdown."""

Breakdown = dict[str, float | list[dict[str, Detail]]]


def score_gpu(subjects: Subjects) -> list[Row]:
    """Distinct prompts of GoToLocal with six candidates and the value head, in bfloat16: one large
    call, and one as a rollout makes it.
    """
    if not torch.cuda.is_available():
        return [missing_row("score_gpu", BAR, UNIT, NO_GPU)]
    return Measurement(subjects, torch.device("cuda", 0)).rows()


class Measurement:
    """The measurement itself, on any device.

    Prompts were tokenised before: tokens are remembered from call to call, answers are not.
    """

    def __init__(self, subjects: Subjects, device: torch.device) -> None:
        self._subjects, self._device = subjects, device
        setting = subjects.setting
        calls = distinct_calls(
            subjects.make_env(LOCAL_LEVEL), setting.gpu_calls, setting.num_envs, template="lamorel"
        )
        self._small = calls[0]
        self._prompts = tuple(prompt for call in calls for prompt in call)
        self._minibatch_size = 6 * len(
            self._prompts
        )  # the whole call at a time: what a large card has room for
        args = replace(
            subjects.llm_args, dtype="bfloat16", cache_size=0, minibatch_size=self._minibatch_size
        )
        self._host: ModelHost = load_host(
            args, device, {"value": ValueHead(args.value_head_hidden)}
        )
        self._taught = self._prompts[:UPDATED]
        self._updater = PPOUpdater()
        self._updater.set_llm_module(self._host)

    def rows(self) -> list[Row]:
        """``score_gpu``, the large call's prompts in a second, and the milliseconds of a small call
        (``score_gpu_call``) and of an epoch of PPO over distinct prompts (``update_gpu``).
        """
        differences = self._differences_to_float32()
        wrong = [
            f"{name} are {off:.3g} off float32 where they spread by {wide:.3g}"
            for name, off, wide in differences
            if not off < MAX_ERROR * wide
        ]
        if wrong:
            return [
                missing_row(
                    "score_gpu",
                    BAR,
                    UNIT,
                    f"in bfloat16 {' and '.join(wrong)} (root mean square, standard deviation)",
                )
            ]
        repetitions = self._subjects.setting.repetitions
        seconds = take_turns(
            {
                "large": Contender(partial(self._score, self._prompts)),
                "small": Contender(partial(self._score, self._small), warm_up=self._capture_small),
            },
            repetitions,
        )
        whole, busy = 1e3 * statistics.median(seconds["large"]), self.breakdown()["device_ms"]
        in_the_way = (
            f"the device works {busy:.0f} of the {whole:.0f} ms of a call; in the rest the host"
            " tokenises, sorts, lays out and takes apart"
        )
        # By itself, and last: it changes the weights.
        epochs = take_turns({"update": Contender(self._epoch)}, repetitions)["update"]
        on_gpu = self._device.type == "cuda"
        setting: dict[str, Detail] = {
            "device": torch.cuda.get_device_name(self._device) if on_gpu else "cpu",
            "dtype": "bfloat16",
            "minibatch_size": self._minibatch_size,
        }
        detail = (
            setting
            | {"prompts_per_call": len(self._prompts)}
            | self._limit(statistics.median(seconds["large"]))
        )
        for name, off, wide in differences:
            detail |= {
                f"{name}_rms_difference_to_float32": rounded(off),
                f"{name}_std": rounded(wide),
            }
        small = setting | {"prompts_per_call": len(self._small)}
        update = setting | {"transitions": len(self._taught), "minibatch_size": UPDATED_TOGETHER}
        return [
            make_row(
                "score_gpu",
                [len(self._prompts) / turn for turn in seconds["large"]],
                BAR,
                UNIT,
                detail=detail,
                in_the_way=in_the_way,
            ),
            make_row(
                "score_gpu_call",
                [1e3 * turn for turn in seconds["small"]],
                None,
                "ms",
                better="lower",
                detail=small,
            ),
            make_row(
                "update_gpu",
                [1e3 * turn for turn in epochs],
                None,
                "ms",
                better="lower",
                detail=update,
            ),
        ]

    def breakdown(self) -> Breakdown:
        """Where the time of one large call goes: milliseconds of the host and of the device, and
        the kernels that take most of it.
        """
        self._score(self._prompts)
        with profile() as profiler:
            self._score(self._prompts)
        events = profiler.key_averages()
        on_device = self._device.type == "cuda"

        def own(event: FunctionEventAvg) -> float:
            return (
                float(event.self_device_time_total if on_device else event.self_cpu_time_total)
                / 1e3
            )

        # What the host calls carries the time of the kernels that it starts, which are listed
        # themselves.
        kernels = (
            [event for event in events if event.device_type == DeviceType.CUDA]
            if on_device
            else events
        )
        total = sum(own(event) for event in kernels)
        most = sorted(kernels, key=own, reverse=True)[:TOP]
        return {
            "host_ms": rounded(sum(event.self_cpu_time_total for event in events) / 1e3),
            "device_ms": rounded(total),
            "kernels": [
                {
                    "name": event.key,
                    "ms": rounded(own(event)),
                    "share": rounded(own(event) / max(total, 1e-9)),
                    "calls": event.count,
                }
                for event in most
            ],
        }

    def _score(self, prompts: Sequence[str]) -> ScoreResult:
        return self._host.score(prompts, same_candidates(prompts), modules=("value",))

    def _capture_small(self) -> None:
        """Its second call is the one that a CUDA graph is made of."""
        self._score(self._small)
        self._score(self._small)

    def _epoch(self) -> None:
        transitions = Transitions(self._taught, ppo_data(len(self._taught), seed=0))
        self._updater.update(transitions.request(UPDATED_TOGETHER))
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _differences_to_float32(self) -> list[tuple[str, float, float]]:
        """Of scores and values of prompts spread over the large call: name, root mean square, and
        the standard deviation among prompts.
        """
        places = (
            torch.linspace(0, len(self._prompts) - 1, min(CHECKED, len(self._prompts)))
            .round()
            .long()
        )
        checked = [self._prompts[place] for place in places.tolist()]
        ours = self._score(self._prompts)
        exact = self._subjects.host.score(checked, same_candidates(checked), modules=("value",))
        pairs = {
            "scores": (
                ours.log_probs.view(len(self._prompts), -1)[places],
                exact.log_probs.view(len(checked), -1),
            ),
            "values": (ours.modules["value"].cpu()[places].float(), exact.modules["value"]),
        }
        return [
            (name, float((found - right).square().mean().sqrt()), float(right.std(0).mean()))
            for name, (found, right) in pairs.items()
        ]

    def _limit(self, seconds: float) -> dict[str, Detail]:
        """How near the call comes to the card's own products of these sizes."""
        shape = self._subjects.setting.shape
        works = work_of(self._subjects.tokenizer, self._prompts, ACTION_NAMES)
        tokens = sum(work.prompt_tokens for work in works)
        limit = MultiplyLimit.of(shape, works, device=self._device, dtype=torch.bfloat16)
        rate = limit.operations / limit.run().value
        needed = limit.needed(works)
        return {
            "tokens_per_prompt": rounded(tokens / len(works)),
            "limit_tflop_per_s": rounded(rate / 1e12),
            "share_of_limit": rounded(needed / seconds / rate),
        }


def main(argv: Sequence[str] | None = None) -> int:
    """Print the rows and write them with the breakdown; gives 1, and a line that says so, where
    there is no GPU.
    """
    parser = argparse.ArgumentParser(prog="python -m experiments.bench.gpu", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two repetitions")
    parser.add_argument("--output", type=file_to_write, default="bench_gpu.json")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print(
            f"score_gpu: {NO_GPU} that PyTorch {torch.__version__} sees; nothing was measured",
            file=sys.stderr,
        )
        return 1
    measurement = Measurement(Subjects(QUICK if args.quick else FULL), torch.device("cuda", 0))
    rows = measurement.rows()
    for row in rows:
        print(row.to_json(), flush=True)
    found = {
        "rows": [json.loads(row.to_json()) for row in rows],
        "breakdown": measurement.breakdown(),
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
