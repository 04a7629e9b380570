"""One model held by several ranks together computes, learns and is saved as one held whole."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lamorel_ext.config import load_config
from lamorel_ext.errors import ConfigError, RemoteError
from lamorel_ext.lamorel.settings import _llm_args
from lamorel_ext.rpc.caller import Caller
from lamorel_ext.rpc.transport import Handler, InProcessTransport, OneModelTransport
from lamorel_ext.types import (
    Answer,
    Failure,
    InfoRequest,
    InfoResult,
    Request,
    ScoreRequest,
    ScoreResult,
)
from tests import warm
from tests.llm.fsdp_ranks import MODELS
from tests.llm.test_processes import ROOT, START_S, environment_with, ranks

SAME = 1e-5
BFLOAT16 = 0.05
"""Gradients that meet at the encoder's states are added up in another order, and Adam makes steps
of one size of small ones: of 8 bits the last two may differ, and so does what is learnt from them.
"""
FAILS = {"a save that fails": "CheckpointError", "a prompt too long": "RequestError"}
EXACT = ("scores", "scores of the start", "scores after that")
ROUNDED = ("a step of PPO", "scores after it", "feedback with a KL term", "a step of PPO after it")


def together(
    num_ranks: int, folder: Path, *names: str, device: str = "cpu"
) -> list[dict[str, Any]]:
    """What the first rank tells of each comparison."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(num_ranks)]
    command += ["--standalone", str(Path(__file__).with_name("fsdp_ranks.py")), str(folder)]
    command.append(device)
    run = subprocess.run(
        [*command, *names],
        env=environment_with({"PYTHON_EXEC": warm.interpreter(PYTHONPATH=str(ROOT))}),
        capture_output=True,
        text=True,
        timeout=2 * START_S,
        check=False,
        cwd=ROOT,
    )
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return together(2, tmp_path_factory.mktemp("two"))


def check(lines: list[dict[str, Any]], most: float, what: tuple[str, ...] = ()) -> None:
    assert lines
    for line in lines:
        assert line["answer"] == FAILS.get(line["what"], line["answer"]), line
        assert "Failure" not in line["answer"], line
        if line["what"] != "share of the weights" and (not what or line["what"] in what):
            assert line["off"] <= most, line


@pytest.mark.parametrize("name", [name for name in MODELS if name != "bfloat16 t5"])
def test_two_ranks_answer_learn_and_save_as_one(told: list[dict[str, Any]], name: str) -> None:
    lines = [line for line in told if line["model"] == name]
    check(lines, SAME)
    share = next(line["off"] for line in lines if line["what"] == "share of the weights")
    assert 0.5 <= share < 0.55


def test_in_bfloat16_two_ranks_differ_by_rounding_alone(told: list[dict[str, Any]]) -> None:
    lines = [line for line in told if line["model"] == "bfloat16 t5"]
    check(lines, 0.0, (*EXACT, "names and shapes in ppo.optimizer.safetensors"))
    check(lines, BFLOAT16, ROUNDED)


def test_three_ranks_hold_a_model_whose_sizes_three_does_not_divide(tmp_path: Path) -> None:
    check(together(3, tmp_path, "t5"), SAME)


def test_a_launch_with_one_model_answers_and_ends_when_one_of_its_servers_is_killed() -> None:
    with ranks(3, "one model") as (client, first, second):
        said = client.wait_for("answered")
        assert said["off"] < SAME and said["servers"] == 1
        assert set(said["memory"]) == {"memory_mib_server_0", "memory_mib_server_1"}
        second.process.kill()
        died = client.wait_for("asked again")
        assert died["error"] == "PeerDiedError" and "rank 2 (llm server 1) died" in died["text"]
        status, errors = first.end(START_S)
        assert status == 1 and "rank 1 (llm server 0) ends: rank 2 (llm server 1) died" in errors


def test_every_server_gets_every_request_and_what_fails_on_one_is_raised() -> None:
    seen: list[list[str]] = [[], []]

    def server(index: int) -> Handler:
        def handle(request: Request) -> Answer:
            assert isinstance(request, ScoreRequest | InfoRequest)
            seen[index].append(getattr(request, "prompts", ("info",))[0])
            if isinstance(request, InfoRequest):
                return InfoResult({"memory_mib": 5.0 + index, "device": "cpu"})
            if index and request.prompts[0] == "bad":
                return Failure(2, "llm server 1", "ArithmeticError", "not here", "")
            return ScoreResult(torch.tensor([float(index)]), (1,))

        return handle

    with Caller(OneModelTransport(InProcessTransport([server(0), server(1)]))) as caller:
        pending = [caller.submit_score(ScoreRequest((text,), (("x",),))) for text in "abc"]
        assert [each.result().log_probs.item() for each in pending] == [0.0, 0.0, 0.0]
        with pytest.raises(RemoteError, match="llm server 1.*not here"):
            caller.score_batch(ScoreRequest(("bad",), (("x",),)))
        assert caller.info() == {
            "device": "cpu",
            "num_servers": 1,
            "memory_mib_server_0": 5.0,
            "memory_mib_server_1": 6.0,
        }
    assert seen == [["a", "b", "c", "bad", "info"]] * 2


def test_lamorels_interface_refuses_it_by_name() -> None:
    parallelism = {"use_gpu": False, "model_parallelism_size": 1, "fsdp": True}
    problems: list[str] = []
    _llm_args({"model_path": "mine", "parallelism": parallelism}, "llm_args", problems, [])
    assert len(problems) == 1 and problems[0].startswith("llm_args.parallelism.fsdp:")


FSDP = "lamorel_args.llm_args.parallelism.fsdp=true"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lamorel_args.llm_args.parallelism.model_parallelism_size=2", "must be 1 where"),
        ("lamorel_args.llm_args.lora.r=4", "must be 0 where"),
    ],
)
def test_what_cannot_go_with_fsdp_is_said_before_anything_starts(
    override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        load_config([FSDP, override])
    assert override.split("=")[0] in str(error.value)
