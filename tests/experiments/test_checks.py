"""A mistake in the configuration is heard of first: before folders, other ranks, devices and models
are looked at.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_llm import save_tiny_llm

from experiments import balrog, compare, evaluate, generalise, pretrain_embedded, train
from experiments.bench import __main__ as benchmarks
from experiments.bench import gpu
from experiments.runs.build import check_hosted
from experiments.runs.checks import check_configs
from experiments.runs.entry import run_main
from lamorel_ext.config import load_config, to_yaml
from lamorel_ext.errors import ConfigError
from launchers import __main__ as launcher

NO_MODEL = [
    "lamorel_args.llm_args.model_path=./no/such/model",
    "lamorel_args.llm_args.parallelism.use_gpu=true",
]
MISTAKE = "env.level=BabyAI-GoToRedBal-v0"


def launched_evaluation(words: Sequence[str]) -> int:
    launcher.make_parser().parse_intermixed_args(["evaluate", *words])
    return 0


PROGRAMMES = {"train": train, "compare": compare, "evaluate": evaluate, "balrog": balrog}


@pytest.fixture(autouse=True)
def nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model is asked for, and the log stays pytest's."""

    def load(*args: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("lamorel_ext.llm.loading.load_host", load)
    for programme in (train, compare, evaluate, generalise):
        monkeypatch.setattr(programme, "start_log", lambda level: None)
    monkeypatch.setattr("experiments.runs.entry.start_log", lambda level: None)


@pytest.fixture
def wrong_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven processes, where two are configured."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "7")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")  # a launch says where its ranks meet
    monkeypatch.setenv("MASTER_PORT", "1")


@pytest.mark.parametrize(
    ("rank", "local_rank", "said"),
    [
        ("0", "0", "error: "),
        ("1", "1", ""),
        ("3", "0", "[rank 3] error: "),
        ("1", None, "[rank 1] error: "),
    ],  # a launcher where a cluster sets RANK alone
)
def test_the_first_rank_of_each_machine_says_what_is_wrong_in_the_configuration(
    rank: str,
    local_rank: str | None,
    said: str,
    wrong_launch: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It may be wrong on that machine alone."""
    monkeypatch.setenv("RANK", rank)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)

    def program(argv: Sequence[str]) -> int:
        raise ConfigError("LAMOREL_EXT_TOKEN is not set")

    assert run_main(program, []) == 2
    found = capsys.readouterr().err
    assert found.startswith(said) and ("TOKEN" in found) == bool(said)


@pytest.mark.parametrize("name", PROGRAMMES)
def test_the_configuration_comes_before_folders_ranks_devices_and_models(
    name: str, wrong_launch: None, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = {"train": "run", "compare": "compare"}.get(name)
    words = [*NO_MODEL, *([f"{folder}.output_dir=/dev/null/x"] if folder else [])]
    assert run_main(PROGRAMMES[name].run, [*words, MISTAKE]) == 2
    errors = capsys.readouterr().err
    assert "env.level: no level 'BabyAI-GoToRedBal-v0'" in errors and errors.startswith(
        "error: 1 problem in the configuration"
    )
    # Without it, the next thing that is wrong is heard of.
    assert run_main(PROGRAMMES[name].run, words) != 0
    errors = capsys.readouterr().err
    assert (
        "/dev/null/x" if folder else "7 processes were launched"
    ) in errors and "env.level" not in errors


def test_a_policy_is_checked_before_its_checkpoint_is_read(
    wrong_launch: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(
        "env: {level: BabyAI-GoToRedBal-v0}\n"
    )  # and no checkpoint beside it
    for programme in (evaluate, balrog):
        assert run_main(programme.run, [f"policy={tmp_path}"]) == 2
        assert "env.level: no level 'BabyAI-GoToRedBal-v0'" in capsys.readouterr().err


def test_generalisation_hears_of_its_arguments_before_it_looks_for_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(generalise.run, [str(tmp_path / "none"), "--tests", "wrods"]) == 2
    assert "tests: no wrods" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (
            ["env.curriculum=[{level:BabyAI-GoToOb-v0,steps:9}]"],
            "env.curriculum[0].level: no level 'BabyAI-GoToOb-v0'",
        ),
        (
            ["task=go_to_local", "env.backend=table"],
            "env.backend: the table backend knows BabyAI-GoToRedBallNoDists-v0 alone",
        ),
        (
            ["env.level=BabyAI-Open-v0", "env.backend=vector"],
            "env.backend: the vector backend knows levels that lie in one room",
        ),
        (
            [
                "task=go_to_local",
                "env.backend=vector",
                "env.curriculum=[{level:BabyAI-Open-v0,steps:9}]",
            ],
            (
                "env.backend: the vector backend knows levels that lie in one room, "
                "with doors or without, not BabyAI-Open-v0"
            ),
        ),
        (
            ["task=put_next_local", "env.prompt=glam", "env.language=fr"],
            "env.prompt: BabyAI-PutNextLocal-v0: the French glam prompt",
        ),
        (
            ["task=go_to_local", "run.evaluation=exact"],
            "run.evaluation: exact is not possible: the states of env.level=BabyAI-GoToLocal-v0",
        ),
        (
            ["arm=llm_policy", "env.prompt=glam", "run.evaluation=exact"],
            "run.evaluation: exact is not possible: prompts depend on the past",
        ),
        (
            ["arm=drrn", "env.prompt=glam", "run.evaluation=exact"],
            "run.evaluation: exact is not possible: prompts depend on the past",
        ),
        (
            ["guidance.vocabulary=free", "feedback.credit=chosen", "run.evaluation=exact"],
            "run.evaluation: exact is not possible: free guidance cannot be listed",
        ),
        (
            [
                "arm=teacher_feedback+signal=td+every=1",
                "feedback.channel=both",
                "run.evaluation=exact",
            ],
            "run.evaluation: exact is not possible: prompts that tell feedback",
        ),
    ],
)
def test_what_cannot_be_had_is_found_beforehand(overrides: list[str], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_configs([load_config(overrides)])
    assert len(caught.value.problems) == 1 and caught.value.problems[0].count(problem) == 1


@pytest.mark.parametrize(
    "overrides",
    [
        ["run.evaluation=exact"],
        ["arm=student_alone", "env.prompt=glam", "run.evaluation=exact"],
        ["arm=bot", "run.evaluation=exact"],
        ["task=go_to_local", "env.prompt=glam", "env.language=fr"],
        ["env.level=BabyAI-Open-v0", "env.num_workers=2"],
        ["task=go_to_local", "env.num_distractors=3", "env.backend=vector"],
    ],
)
def test_what_can_be_had_is_not_refused(overrides: list[str]) -> None:
    check_configs([load_config(overrides)])


def test_every_problem_of_every_run_is_said_once() -> None:
    configs = [
        load_config([f"arm={arm}", MISTAKE, "env.curriculum=[{level:BabyAI-GoToOb-v0,steps:9}]"])
        for arm in ("bot", "llm_policy")
    ]
    with pytest.raises(ConfigError) as caught:
        check_configs(configs)
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "env.level", "env.curriculum[0].level",
    ]  # fmt: skip


def test_a_missing_tracker_is_found_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="run.tracker: wandb is not installed"):
        check_configs([load_config(["run.tracker=wandb"])])


def test_a_folder_of_a_trackers_name_is_not_the_tracker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """wandb leaves one where it ran."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(ConfigError, match="run.tracker: wandb is not installed"):
        check_configs([load_config(["run.tracker=wandb"])])


def test_a_student_cannot_be_asked_to_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["arm=student_alone", "--choose", "generate", "--output", str(tmp_path)]
    assert run_main(balrog.run, words) == 2
    assert (
        "--choose generate: the LLM acts itself only where arm.agent is llm_policy"
        in capsys.readouterr().err
    )


def test_the_balrog_tasks_must_be_sayable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(balrog.run, ["env.language=fr", "--output", str(tmp_path)]) == 2
    assert (
        "env.prompt: BabyAI-MixedTrainLocal-v0: the French glam prompt" in capsys.readouterr().err
    )


@pytest.mark.parametrize("word", ["x.json", "deeper/x.json"])
@pytest.mark.parametrize("main", [benchmarks.main, gpu.main])
def test_figures_that_could_not_be_kept_are_not_measured(
    main: Callable[[Sequence[str]], int],
    word: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="2"):
        main(["--output", str(tmp_path / "file" / word)])
    assert f"cannot be written: {tmp_path / 'file'} is not a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("main", "folder"),
    [(benchmarks.main, "bench.json"), (gpu.main, "bench_gpu.json"), (balrog.run, "runs")],
)
def test_nor_where_nobody_says_where_they_are_to_be_kept(
    main: Callable[[Sequence[str]], int],
    folder: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    place = tmp_path / folder
    place.mkdir() if folder.endswith("json") else place.touch()
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "cannot be written: " in capsys.readouterr().err


@pytest.mark.parametrize("name", ["generalisation", "."])
def test_a_policy_whose_test_could_not_be_kept_is_not_tested(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runs"
    if name == ".":
        folder.touch()
    else:
        folder.mkdir()
        (folder / name).touch()
    assert run_main(generalise.run, [str(folder)]) == 2
    told = capsys.readouterr().err
    wanted = f"--output: {folder / name} cannot be written" if name != "." else "holds no run"
    assert wanted in told


def test_a_model_that_could_not_be_kept_is_not_trained(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="2"):
        pretrain_embedded.main(["--output", str(tmp_path / "file" / "model")])


def test_a_whole_run_that_is_not_among_the_benchmarks_asked_for_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit, match="2"):
        benchmarks.main(["score_two", "--whole", "figure2_2100"])
    assert (
        "--whole figure2_2100: not among the benchmarks to run: score_two"
        in capsys.readouterr().err
    )


def test_the_tiny_model_would_be_found(tmp_path: Path) -> None:
    """What the first test counts on: with nothing wrong, the next thing is the model."""
    words = [
        f"lamorel_args.llm_args.model_path={save_tiny_llm(tmp_path)}",
        f"run.output_dir={tmp_path / 'run'}",
    ]
    with pytest.raises(AssertionError, match="a model was loaded"):
        train.run(words)


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        ([], ["agent: llm_policy", "prompt: lamorel"]),
        (["arm=teacher_frozen"], ["agent: student"]),
        (["env.history=2", "env.prompt=glam"], ["agent: llm_policy", "history: 2"]),
    ],
)
@pytest.mark.parametrize("program", [evaluate.run, balrog.run, launched_evaluation])
def test_the_configuration_that_is_printed_is_the_one_that_is_used(
    program: Callable[[Sequence[str]], int],
    words: list[str],
    printed: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    if program is balrog.run and not words:
        printed = ["agent: llm_policy", "prompt: glam", "history: 16", "num_envs: 1"]
    with pytest.raises(SystemExit):
        program([*words, "--cfg", "job"])
    found = capsys.readouterr().out
    assert all(f"  {line}\n" in found for line in printed), found


@pytest.mark.parametrize("program", [evaluate, balrog])
def test_the_configuration_of_a_trusted_run_is_printed(
    program: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = to_yaml(load_config(["arm=llm_policy"])).replace("env:", "env:\n  _target_: mine.Game")
    (tmp_path / "config.yaml").write_text(text)
    words = [f"policy={tmp_path}", "--cfg", "job"]
    with pytest.raises(SystemExit):
        program.run([*words, "--trust", "mine"])
    assert "_target_: mine.Game" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="--trust mine"):
        program.run(words)


@pytest.mark.parametrize(
    ("word", "instead"),
    [
        ("run.eval_episodes=500", "take --episodes"),
        ("arm=random", "each run keeps its own"),
        ("arm.agent=random", "each run keeps its own"),
        ("run.evaluation=episodes", "exact where that is possible"),
        ("++run.seed=3", "each run keeps its own"),
    ],
)
def test_what_generalisation_sets_itself_is_not_passed_over(
    word: str, instead: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(generalise.run, [str(tmp_path), word, "--episodes", "0"]) == 2
    told = capsys.readouterr().err
    assert f"{word}: {instead}" in told and "--episodes: must be at least 1" in told


@pytest.mark.parametrize("program", [evaluate.run, balrog.run])
@pytest.mark.parametrize("policy", ["~/of mine", "~/./of mine"])
def test_a_policy_lies_below_home_where_it_says_so(
    program: Callable[[Sequence[str]], int],
    policy: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "of mine").mkdir()
    (tmp_path / "of mine" / "config.yaml").write_text(to_yaml(load_config(["arm=llm_policy"])))
    assert run_main(program, [f"policy={policy}"], reads=True) == 2
    assert f"{tmp_path / 'of mine' / 'checkpoints'} holds no checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("hosted", "named"),
    [
        ({}, []),
        ({"dtype": "bfloat16"}, ["dtype: 'bfloat16' at the llm servers, 'float32' at the rl"]),
        ({"quantize": "int8", "model_path": "smollm2"}, ["quantize: 'int8'", "path: 'smollm2'"]),
        ({"model_path": "/scratch/embedded"}, []),
    ],
)
def test_a_client_whose_servers_host_another_model_than_its_runs_say_is_told_so(
    hosted: dict[str, Any], named: list[str]
) -> None:
    asked = load_config(["lamorel_args.llm_args.dtype=float32"]).lamorel_args.llm_args
    info = {"dtype": "float32", "quantize": "", "model_path": asked.model_path, **hosted}
    if not named:
        check_hosted(asked, info)
        return
    with pytest.raises(ConfigError) as refused:
        check_hosted(asked, info)
    assert all(words in str(refused.value) for words in named)
