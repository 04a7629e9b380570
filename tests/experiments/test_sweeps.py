"""``train -m``: the runs of a sweep, and where they go."""

from pathlib import Path

import pytest

from experiments import compare, train
from experiments.runs.planning import plan, plan_sweep, swept_lines
from experiments.runs.run_folder import run_state
from lamorel_ext.config import CONFIG_DIR, read_config, sweep
from lamorel_ext.errors import ConfigError

SHORT = (
    "run.total_steps=16 env.num_envs=2 student.num_steps=8 run.eval_every=16"
    " run.evaluation=episodes run.eval_episodes=2 lamorel_args.log_level=warning"
).split()


def names(*overrides: str) -> list[str]:
    return [run.name for run in sweep(overrides, [CONFIG_DIR])]


def test_every_value_is_run_with_every_other_the_last_key_first() -> None:
    runs = sweep(["arm=npae,drrn", "run.seed=range(0,2)", "env.num_envs=4"], [CONFIG_DIR])
    assert [run.name for run in runs] == [
        f"arm={arm},run.seed={seed}" for arm in ("npae", "drrn") for seed in (0, 1)
    ]
    assert runs[1].overrides == ("arm=npae", "run.seed=1", "env.num_envs=4")


@pytest.mark.parametrize(
    "override, values",
    [
        ("student.lr=choice(1e-3,3e-4)", ["student.lr=0.001", "student.lr=0.0003"]),
        ("model=glob(flan*)", [f"model=flan_t5_{size}" for size in ("base", "large", "small")]),
        ("compare.seeds=[0],[1,2]", ["compare.seeds=[0]", "compare.seeds=[1,2]"]),
        ("arm='npae+student.lr=1','drrn'", ["arm=npae+student.lr=1", "arm=drrn"]),
        ("run.output_dir=a/b,c", ["run.output_dir=a_b", "run.output_dir=c"]),
    ],
)
def test_hydras_ways_to_write_a_sweep(override: str, values: list[str]) -> None:
    assert names(override) == values


def test_what_is_no_sweep_stays_as_it_is() -> None:
    odd = ["run.output_dir=/a=b/c#d", "compare.seeds=[0,1]", "nonsense"]
    assert [run.overrides for run in sweep(odd, [CONFIG_DIR])] == [tuple(odd)]


def test_names_that_are_not_names_of_folders_are_numbers() -> None:
    assert names("run.output_dir=a/b,a_b") == ["0", "1"]
    assert names("arm.name='" + 300 * "x" + "','b'") == ["0", "1"]


@pytest.mark.parametrize(
    "override, words",
    [
        ("student.lr=interval(0,1)", "an interval has no values"),
        ("model=glob(nobody*)", "this sweep has no values"),
        ("run.seed=range(0,20000)", "expected at most 10000 values"),
        ("run.seed=range(0,200) student.lr=range(1,101)", "the sweep has 20000"),
        ("run.seed=0,1 run.seed=7", "run.seed is given a second time"),
        ("++run.seed=7 run.seed=0,1", "run.seed is given a second time"),
    ],
)
def test_a_sweep_without_runs_or_with_too_many_or_of_a_key_given_again_is_refused(
    override: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words.replace("(", r"\(")):
        sweep(override.split(), [CONFIG_DIR])


@pytest.mark.slow
def test_the_runs_go_to_folders_of_their_own_and_the_same_command_finishes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["-m", "arm=random", "run.seed=3,4", f"run.output_dir={tmp_path}", *SHORT]
    for _ in range(2):
        assert train.run(command) == 0
        folders = [tmp_path / f"run.seed={seed}" for seed in (3, 4)]
        assert capsys.readouterr().out.splitlines() == [f"run: {folder}" for folder in folders]
        assert [run_state(folder) for folder in folders] == ["complete", "complete"]
    assert [read_config(folder / "config.yaml").run.seed for folder in folders] == [3, 4]


def test_what_is_wrong_with_one_run_is_said_before_any_begins(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"student.lr=-1: student.lr: must"):
        train.run(["-m", "student.lr=1e-3,-1", f"run.output_dir={tmp_path / 'out'}", *SHORT])
    assert not (tmp_path / "out").exists()


def test_a_mistake_without_a_sweep_is_not_behind_the_name_of_a_run() -> None:
    wrong = ["student.lr=-1"]
    for plan_runs in (lambda: train.run(["-m", *wrong]), lambda: swept_lines("train", wrong)):
        with pytest.raises(ConfigError, match="- student.lr: must"):
            plan_runs()


@pytest.mark.parametrize(
    "overrides, below, runs",
    [
        (["arm=npae,drrn", "run.seed=range(0,2)"], [""],
         ["npae/seed_0", "drrn/seed_0", "npae/seed_1", "drrn/seed_1"]),
        (["arm='drrn+student.lr=1'", "run.seed=3"], [""], ["drrn+student.lr=1/seed_3"]),
        (["task=go_to_local,pick_up_local", "compare.arms=[drrn]", "compare.seeds=[0]"], [""],
         ["go_to_local/drrn/seed_0", "pick_up_local/drrn/seed_0"]),
        (["arm=drrn", "run.seed=0", "student.lr=1e-3,3e-4"],
         ["student.lr=0.001", "student.lr=0.0003"], ["drrn/seed_0"]),
        (["compare.arms=[drrn],[random]", "compare.seeds=[0]"],
         ["compare.arms=[drrn]", "compare.arms=[random]"], None),
    ],
)  # fmt: skip
def test_a_sweep_of_comparisons(
    overrides: list[str], below: list[str], runs: list[str] | None
) -> None:
    found = plan_sweep([*overrides, "compare.output_dir=out"])
    assert [whole[0].config.compare.output_dir for whole in found] == [
        str(Path("out") / name) for name in below
    ]
    for whole, name in zip(found, below, strict=True):
        folders = [str(planned.folder.relative_to(Path("out") / name)) for planned in whole]
        assert runs is None or folders == runs


@pytest.mark.parametrize(
    "swept", [["arm=drrn", "student.lr=1e-3,3e-4"], ["compare.arms=[drrn],[npae]"]]
)
def test_the_launches_of_a_sweep_go_where_the_sweep_does(swept: list[str]) -> None:
    overrides = [*swept, "compare.output_dir=an 'odd' place, or=two"]
    plans = [whole[0].config.compare.output_dir for whole in plan_sweep(overrides)]
    lines = swept_lines("compare", overrides)
    assert [plan(line)[0].config.compare.output_dir for line in lines] == plans


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["arm=npae,drrn", "compare.arms=[random]"], "compare.arms is given too"),
        (["run.seed=0,1", "run.seed=2"], "run.seed, a second time"),
        (["run.seed=interval(0,1)"], "an interval has no values"),
        (["run.output_dir=a,b"], "set compare.output_dir"),
        (["student.lr=1e-3,-1"], "student.lr=-1: student.lr: must"),
        (["arm=npae,nobody"], "arm=nobody: no such file"),
    ],
)
def test_a_sweep_of_comparisons_that_cannot_be_is_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_sweep(overrides)
    assert words in str(caught.value)


@pytest.mark.slow
def test_compare_sweeps_arms_and_another_key_to_reports_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["-m", "arm=random,student_alone", "run.seed=3", "student.lr=1e-3,1e-2"]
    assert compare.run([*command, f"compare.output_dir={tmp_path}", *SHORT]) == 0
    reports = [tmp_path / f"student.lr={lr}" / "report.html" for lr in ("0.001", "0.01")]
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("report: ")]
    assert said == [f"report: {path}" for path in reports]
    for path, lr in zip(reports, (0.001, 0.01), strict=True):
        config = read_config(path.parent / "student_alone" / "seed_3" / "config.yaml")
        assert (config.student.lr, config.compare.arms) == (lr, ("random", "student_alone"))


def test_the_configurations_of_a_sweep_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    for program in (train, compare):
        with pytest.raises(SystemExit):
            program.run(["-m", "--cfg", "job", "arm=npae,drrn", "run.seed=1,2"])
        printed = capsys.readouterr().out.split("---\n")
        assert ["  agent: drrn" in text for text in printed] == [False, False, True, True]
        assert ["  seed: 2" in text for text in printed] == [False, True, False, True]
