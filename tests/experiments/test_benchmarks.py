"""Every benchmark runs in miniature, on a tiny model, and gives well-formed rows.

No time is judged here.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from experiments.bench import __main__ as program
from experiments.bench import (
    breakdown,
    gpu,
    launching,
    runtimes,
    scoring,
    transport,
    whole,
    workloads,
)
from experiments.bench.__main__ import BENCHMARKS
from experiments.bench.harness import Row
from experiments.bench.peers.lamorel_way import LamorelPpo
from experiments.bench.peers.onnx_t5 import make_scorers
from experiments.bench.peers.plain import score_pairs
from experiments.bench.scale.measure import cpu_seconds
from experiments.bench.scale.simulate import CLIENTS
from experiments.bench.subjects import MINIATURE, PAPER_LEVEL, Subjects
from experiments.bench.updates import Transitions
from experiments.runs.versions import processor_name
from lamorel_ext.config import Config, load_config
from lamorel_ext.envs.babyai.batched import make_batched_env
from lamorel_ext.llm.answers import TextEncoder
from lamorel_ext.llm.updaters import PPOUpdater
from tests import warm

ROWS = {
    "score_distinct": ["score_distinct", "score_limit"],
    "update_64": ["update_64", "update_64_distinct"],
    "env_text": ["env_text", "env_text_16"],
    "env_paper": ["env_paper", "env_paper_16"],
    "env_navix": ["env_navix", "env_navix_16"],
    "transport_share": ["transport_share", "rpc_round_trip"],
    "update_shares": ["update_shares_2", "update_shares_4", "update_shares_8"],
    "two_servers": ["two_servers_score", "two_servers_update", "rollout_256"],
    "simulate": ["simulate_costs", "simulate_check", *(f"simulate_{n}" for n in CLIENTS)],
    "iterations": [
        "iteration_llm_policy",
        "iteration_llm_policy_feedback",
        "iteration_teacher_frozen",
        "iteration_teacher_feedback",
        "iteration_student_alone",
    ],
    "score_gpu": ["score_gpu", "score_gpu_call", "update_gpu"]
    if torch.cuda.is_available()
    else ["score_gpu"],
}
"""Benchmarks whose rows are not just one of their own name."""

BARS = {
    "score_rollout": 8.0, "score_distinct": 2.5, "score_limit": 0.6, "score_two": 1.5,
    "score_growth": 3.0, "update_64": 2.2, "update_320": 5.0, "update_script": 3.0,
    "update_shares_2": 1.9, "update_shares_4": 3.6, "update_shares_8": 6.5,
    "two_servers_score": 1.7, "two_servers_update": 1.7, "update_64_distinct": 6.0,
    "env_text_16": 50.0, "transport_share": 0.05, "env_text": 50.0, "env_paper": 300.0,
    "figure2_2100": 40.0, "score_gpu": 20_000.0, "simulate_check": 0.15,
    "score_bf16": 0.85, "env_maze_16": 15.0, "help_s": 1.0, "demo_s": 60.0,
    "env_navix": 1.0, "score_two_onnx": 1.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def subjects(cache: None) -> Subjects:
    return Subjects(MINIATURE)


@pytest.fixture(scope="module")
def rows(subjects: Subjects) -> dict[str, list[Row]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    python = warm.interpreter(PYTHONPATH=str(launching.REPOSITORY))
    with pytest.MonkeyPatch.context() as patch:
        for module in (launching, whole):
            patch.setattr(module, "sys", SimpleNamespace(executable=python))
        found = {name: run(subjects) for name, run in BENCHMARKS.items()}
    torch.set_num_threads(threads)
    return found


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_gives_well_formed_rows(rows: dict[str, list[Row]], name: str) -> None:
    assert [row.name for row in rows[name]] == ROWS.get(name, [name])
    for row in rows[name]:
        written = json.loads(row.to_json())
        assert set(written) == {
            "name",
            "value",
            "bar",
            "unit",
            "spread",
            "threads",
            "better",
            "detail",
            "processor",
            "passed",
        }
        assert written["processor"] == processor_name()
        assert written["bar"] == BARS.get(row.name)
        assert written["threads"] == (2 if name == "figure2_2100" else 1)
        if row.value is None:
            assert isinstance(row.detail["reason"], str)
        else:
            assert math.isfinite(row.value) and row.value > 0
        assert isinstance(row.detail.get("in_the_way"), str) == (row.passed is False)
        assert all(
            value is None or isinstance(value, (bool, int, float, str))
            for value in row.detail.values()
        )


def test_contenders_are_compared_on_the_same_numbers(rows: dict[str, list[Row]]) -> None:
    differences = [
        value
        for name in ("score_rollout", "score_distinct", "score_two")
        for row in rows[name]
        for key, value in row.detail.items()
        if key.endswith("max_difference_nats")
    ]
    assert len(differences) == 4
    assert all(isinstance(value, float) and value < 1e-4 for value in differences)


def test_a_cpus_bfloat16_is_held_to_its_own_products_and_to_float32(subjects: Subjects) -> None:
    row = scoring.bfloat16_row(subjects)
    assert (row.name, row.bar) == ("score_bf16", 0.85) and row.value is not None and row.value > 0
    off = row.detail["max_difference_nats"]
    assert isinstance(off, float) and 0 < off < 1  # rounded differently, of the same prompts


def test_onnxruntimes_int8_is_compared_with_each_of_ours_and_errors_are_said(
    subjects: Subjects,
) -> None:
    pytest.importorskip("onnxruntime.quantization", reason="onnxruntime, onnx: extra bench")
    ours = runtimes.variations(subjects.llm_args)
    row = runtimes.onnx_row(subjects, ours, "ours_bfloat16")
    assert row.value is not None and row.value > 0
    assert row.detail["ours_bfloat16_x"] == pytest.approx(row.value, rel=1e-3)  # is rounded
    assert isinstance(row.detail["ours_float32_x"], float)
    errors = [
        row.detail[f"{name}_max_error_nats"]
        for name in ("onnx_float32", "ours_bfloat16", "onnx_int8")
    ]
    exact, half, eighth = (error for error in errors if isinstance(error, float))
    assert exact < 1e-4 < half < 1 and exact < eighth < 1


def test_onnxruntime_scores_prompts_and_candidates_of_all_lengths_as_transformers_does(
    subjects: Subjects,
) -> None:
    pytest.importorskip("onnxruntime.quantization", reason="onnxruntime, onnx: extra bench")
    prompts = ["go " * count for count in (9, 1, 30, 4, 150, 2)]
    candidates = [("toggle", "pick up the red ball", "turn left")] * 6
    model, tokenizer = subjects.plain_model, subjects.tokenizer
    whole, _ = make_scorers(model, tokenizer, num_threads=1)
    expected = score_pairs(model, tokenizer, prompts, candidates)
    torch.testing.assert_close(whole.score(prompts, candidates), expected, rtol=0, atol=1e-4)


def test_without_onnxruntime_its_row_is_missing_and_says_how_to_get_it(
    subjects: Subjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime.quantization", None)  # as if not installed
    (row,) = BENCHMARKS["score_two_onnx"](subjects)
    assert row.value is None and row.bar == 1.0
    assert "pip install -e '.[bench]'" in str(row.detail["reason"])


def test_shares_of_a_maze_are_of_our_time(rows: dict[str, list[Row]]) -> None:
    detail = rows["env_maze_16"][0].detail
    shares = [value for key, value in detail.items() if key.startswith("share_")]
    assert len(shares) == 4 and all(isinstance(share, float) and share > 0 for share in shares)
    assert sum(float(share or 0) for share in shares) < 1


def test_a_launch_answers_line_by_line_and_says_which_rank_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    python = warm.interpreter(PYTHONPATH=str(launching.REPOSITORY))
    monkeypatch.setattr(launching, "sys", SimpleNamespace(executable=python))
    module = "tests.experiments.echoing_rank"
    with launching.launched(module, {"n": 1}) as ask:
        assert [ask("one"), ask("two")] == [["one", {"n": 1}], ["two", {"n": 1}]]
    with pytest.raises(RuntimeError, match=r"(?s)a rank failed \[1, .*rank 0 has had enough"):
        with launching.launched(module, {"n": 1}) as ask:
            ask("end")


def test_the_measurement_for_gpus_holds_bfloat16_to_float32(
    subjects: Subjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    measurement = gpu.Measurement(subjects, torch.device("cpu"))
    large, small, update = measurement.rows()
    assert update.value is not None and update.value > 0
    assert update.detail["transitions"] == len(measurement._taught)
    assert large.value is not None and large.value > 0 and large.bar == 20_000
    assert (large.detail["prompts_per_call"], small.detail["prompts_per_call"]) == (6, 3)
    assert large.detail["minibatch_size"] == small.detail["minibatch_size"] == 36
    for what in ("scores", "values"):
        off, wide = large.detail[f"{what}_rms_difference_to_float32"], large.detail[f"{what}_std"]
        assert isinstance(off, float) and isinstance(wide, float) and 0 < off < gpu.MAX_ERROR * wide
    monkeypatch.setattr(gpu, "MAX_ERROR", 0.0)
    (missing,) = measurement.rows()
    reason = str(missing.detail["reason"])
    assert (
        missing.value is None
        and "scores are" in reason
        and "values are" in reason
        and "off float32" in reason
    )


def test_the_answers_of_other_prompts_are_no_figure(
    subjects: Subjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    measurement = gpu.Measurement(subjects, torch.device("cpu"))
    score = measurement._score
    monkeypatch.setattr(measurement, "_score", lambda prompts: score([*prompts[1:], prompts[0]]))
    (missing,) = measurement.rows()
    assert missing.value is None and "scores are" in str(missing.detail["reason"])


def test_the_breakdown_of_a_call_names_its_kernels(subjects: Subjects) -> None:
    found = gpu.Measurement(subjects, torch.device("cpu")).breakdown()
    kernels = found["kernels"]
    assert isinstance(kernels, list) and json.loads(json.dumps(found)) == found
    shares = [kernel["share"] for kernel in kernels]
    assert (
        shares == sorted(shares, reverse=True)
        and 0 < sum(float(share or 0) for share in shares) <= 1.01
    )
    assert "aten::mm" in {kernel["name"] for kernel in kernels}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_the_programme_says_so_and_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main(["--output", str(tmp_path / "gpu.json")]) == 1
    assert "no GPU on this machine" in capsys.readouterr().err
    assert not (tmp_path / "gpu.json").exists()


def test_loading_the_models_prints_nothing(cache: None, capfd: pytest.CaptureFixture[str]) -> None:
    subjects = Subjects(MINIATURE)
    model = subjects.plain_model
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    assert subjects.host is not None
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("steps", [whole.FIGURE_STEPS, 8])
def test_a_whole_run_is_the_papers_but_for_model_and_seeds(
    subjects: Subjects, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    launched: list[Config] = []
    monkeypatch.setattr(
        whole,
        "_launch",
        lambda arm, given: launched.append(load_config([f"arm={arm}", *given], "figure2_2100")),
    )
    (row,) = BENCHMARKS["figure2_2100"](Subjects(replace(MINIATURE, whole_steps=steps)))
    assert [config.arm.name for config in launched] == [
        "llm_policy",
        "teacher_feedback/previous/every=1/epochs=1",  # as every online cell of figure2_2100
    ]
    assert [config.feedback.every for config in launched] == ["rollout", 1]
    for config in launched:
        assert (config.run.total_steps, config.env.num_envs, config.ppo.num_steps) == (
            steps,
            1,
            min(steps, 256),
        )
        assert config.lamorel_args.llm_args.model_path == str(subjects.folder)
    assert row.detail["estimate"] is False and row.detail["steps_per_arm"] == steps
    assert row.bar == (40.0 if steps == 2100 else None)


def test_a_launch_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 2, stdout="", stderr="error: no such arm")
    monkeypatch.setattr(whole.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(RuntimeError, match="status 2.*no such arm"):
        whole._launch("nobody", ())


def test_lamorels_value_head_is_ours(subjects: Subjects) -> None:
    prompts = workloads.rollout_calls(subjects.make_env(PAPER_LEVEL), 1)[0]
    ours = subjects.host.score(
        prompts, workloads.same_candidates(prompts), modules=("value",)
    ).modules["value"]
    theirs = torch.stack(
        [
            answer["value"][0]
            for answer in subjects.lamorel.forward(prompts, workloads.same_candidates(prompts))
        ]
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_both_updates_step_to_the_same_weights(cache: None) -> None:
    """One minibatch of PPO in float64, Lamorel's way and ours, nothing clipped (Lamorel never
    clips).
    """
    subjects = Subjects(MINIATURE)
    prompts = tuple(
        prompt
        for call in workloads.rollout_calls(subjects.make_env(PAPER_LEVEL), 3)
        for prompt in call
    )
    assert len(set(prompts)) < len(prompts)  # repeated prompts are what ours computes once
    transitions = Transitions(
        prompts,
        {
            key: values.double() if values.is_floating_point() else values
            for key, values in workloads.ppo_data(9, 1).items()
        },
    )
    ours, lamorel = subjects.host.double(), LamorelPpo(subjects.lamorel, lr=1e-2, adam_eps=1e-2)
    for module in (subjects.lamorel.model, subjects.lamorel.value_head):
        module.double()
    subjects.lamorel.value_head.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
    before = ours.model.lm_head.weight.detach().clone()
    updater = PPOUpdater()
    updater.set_llm_module(ours)
    request = transitions.request(minibatch_size=9)
    request.options.update({"lr": 1e-2, "adam_eps": 1e-2, "max_grad_norm": 1e9})
    updater.update(request)
    lamorel.update(transitions.prompts, transitions.candidates, transitions.data)
    moved = float((ours.model.lm_head.weight - before).detach().abs().max())
    assert moved > 1e-3
    theirs = dict(subjects.plain_model.named_parameters())
    for name, parameter in ours.model.named_parameters():
        torch.testing.assert_close(parameter, theirs[name], rtol=0, atol=1e-5 * moved)


def test_distinct_calls_repeat_nothing_and_show_whole_histories() -> None:
    calls = workloads.distinct_calls(
        make_batched_env(PAPER_LEVEL, 4), num_calls=3, size=5, history=3
    )
    prompts = [prompt for call in calls for prompt in call]
    assert len(set(prompts)) == len(prompts) == 15
    assert "Observation 2" in prompts[0]


def test_a_rollout_is_the_same_every_time() -> None:
    first, second = (workloads.rollout_calls(make_batched_env(PAPER_LEVEL, 4), 6) for _ in range(2))
    assert first == second
    assert [len(call) for call in first] == [4] * 6


def test_a_sample_of_calls_is_spread_over_the_rollout() -> None:
    calls = [(str(number),) for number in range(40)]
    assert workloads.spaced(calls, 4) == [("0",), ("13",), ("26",), ("39",)]


def test_the_stopwatch_gives_each_part_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter((0.0, 1.0, 5.0, 6.5)).__next__
    monkeypatch.setattr(breakdown, "time", SimpleNamespace(perf_counter=looks))
    watch = breakdown.Stopwatch()
    watch.timed("prompts", watch.timed("environment", lambda: None))()
    assert watch.seconds == {"environment": 4.0, "prompts": 2.5}


def test_ranks_meet_at_a_port_that_the_system_gives_to_nobody_else() -> None:
    assert all(20_000 <= launching.free_port() < 32_000 for _ in range(8))


def test_the_cpu_time_of_a_process_holds_that_of_threads_that_have_ended() -> None:
    thread = threading.Thread(target=lambda: sum(range(200_000)))
    thread.start()
    thread.join()
    before, found, after = time.process_time(), cpu_seconds(os.getpid()), time.process_time()
    assert before <= found <= after


def test_shares_of_a_run_add_up_to_one() -> None:
    watch = breakdown.Stopwatch()
    watch.seconds |= {
        "environment": 1.0,
        "waiting": 6.0,
        "forward": 3.0,
        "server": 1.5,
        "student": 0.2,
    }
    shares = breakdown.shares(watch, 10.0)
    assert shares == {
        "environment": 0.1,
        "forward": 0.3,
        "server": 0.15,
        "transport": 0.15,
        "student": 0.3,
    }


def test_seams_are_put_back(subjects: Subjects) -> None:
    encode = TextEncoder.encode
    seams = breakdown.seams_with(make_batched_env(PAPER_LEVEL, 1))
    with breakdown.watching(seams, breakdown.Stopwatch()):
        assert TextEncoder.encode is not encode
    assert TextEncoder.encode is encode


def test_the_program_prints_json_lines_and_writes_the_same(
    cache: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.bench.subjects.QUICK", MINIATURE)
    status = program.main(
        ["env_paper", "score_two", "--quick", "--output", str(tmp_path / "bench.json")]
    )
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert status == 0
    assert [row["name"] for row in printed] == ["env_paper", "env_paper_16", "score_two"]
    assert json.loads((tmp_path / "bench.json").read_text()) == printed


def test_a_benchmark_that_fails_leaves_the_others_their_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(subjects: Subjects) -> list[Row]:
        raise RuntimeError("no such model")

    monkeypatch.setitem(program.BENCHMARKS, "env_text", broken)
    monkeypatch.setattr("experiments.bench.subjects.QUICK", MINIATURE)
    assert (
        program.main(["env_text", "env_paper", "--quick", "--output", str(tmp_path / "bench.json")])
        == 1
    )
    failed, measured, _ = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert failed["value"] is None and "no such model" in failed["detail"]["reason"]
    assert measured["value"] > 0


def test_an_unknown_benchmark_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        program.main(["score_everything"])
    assert "no benchmark score_everything" in capsys.readouterr().err


def test_the_steps_of_a_whole_run_are_not_passed_over_without_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit, match="2"):
        program.main(["env_text", "--whole-steps", "100"])
    assert "--whole-steps: only with --whole" in capsys.readouterr().err


def test_more_repetitions_than_greetings_leave_one_greeting_to_each_median() -> None:
    assert transport._medians([1e-6, 3e-6], 51) == [1.0, 3.0]
    assert transport._medians([1e-6, 3e-6, 5e-6, 7e-6], 2) == [2.0, 6.0]
