"""What is published can be run again: configurations, hashes, and how far a curve is off."""

from __future__ import annotations

import dataclasses
import json
import platform
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from made_runs import make_config, make_run

from experiments import reproduce
from experiments.publish import publish
from experiments.report.making import find
from experiments.report.results import RETURN, STEPS, SUCCESS
from experiments.reproduce import (
    check_fresh,
    deviation,
    plan,
    return_scale,
    run,
    unlike_code,
    unlike_machine,
    words,
)
from experiments.runs import run_folder, versions
from experiments.runs.entry import run_main
from experiments.runs.identity import run_identity
from experiments.runs.planning import Planned
from experiments.runs.provenance import configs, provenance, read_configs
from experiments.runs.versions import config_hash, processor_name
from lamorel_ext.config import Config, LamorelArgs, read_config
from lamorel_ext.errors import CheckpointError, ConfigError, NotThereError

ARMS = ["llm_policy", "teacher_frozen"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    for arm in ARMS:
        for seed in (4, 7):
            overrides = ("student.kappa=2",) if arm == "teacher_frozen" else ()
            make_run(make_config(arm, seed, root, ARMS, *overrides), [0.0, 0.25, 0.5])
    return root


@pytest.fixture(scope="module")
def published(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results") / "by_hand"
    publish(runs, folder)
    return folder


def test_publishing_copies_tables_figures_and_provenance_and_no_page(published: Path) -> None:
    assert {path.name for path in published.iterdir()} == {
        "configs.json", "curves.csv", "differences.csv", "provenance.json", "resampling.json",
        "success_by_steps.png", "summary.csv",
    }  # fmt: skip


def test_configurations_come_back_as_the_runs_had_them(runs: Path, published: Path) -> None:
    found = read_configs(published)
    for arm in find(runs).tasks[0].tasks[0].arms:
        for made in arm.runs.values():
            config = found["GoToRedBallNoDists", arm.label]
            again = dataclasses.replace(config, run=dataclasses.replace(config.run, seed=made.seed))
            assert run_identity(again) == run_identity(made.config)


def test_what_the_arms_share_stands_there_once(runs: Path) -> None:
    written = configs(find(runs).tasks)
    assert written["shared"]["run.total_steps"] == 20 and "student.kappa" not in written["shared"]
    assert [entry["config"]["student.kappa"] for entry in written["arms"]] == [5.0, 2.0]


def test_runs_with_one_set_of_versions_are_listed_together_with_their_hashes(runs: Path) -> None:
    written = provenance(find(runs).tasks)
    (made,) = written["made_with"]
    assert made["versions"]["commit"] == "abc" and len(made["runs"]) == 4
    assert len(set(written["config_sha256"].values())) == 4


def test_the_hash_follows_what_changes_a_result_and_nothing_else(tmp_path: Path) -> None:
    config = make_config("llm_policy", 0, tmp_path, ARMS)
    elsewhere = dataclasses.replace(
        config, run=dataclasses.replace(config.run, output_dir="there", num_threads=3)
    )
    other = dataclasses.replace(config, run=dataclasses.replace(config.run, seed=1))
    assert config_hash(elsewhere) == config_hash(config) != config_hash(other)


def test_the_lowest_seeds_of_the_arms_named_are_planned(published: Path, tmp_path: Path) -> None:
    found = plan(published, 1, ["teacher_frozen"], tmp_path)
    assert list(found) == [("GoToRedBallNoDists", "teacher_frozen", 4)]
    assert found["GoToRedBallNoDists", "teacher_frozen", 4].config.run.seed == 4
    assert len(plan(published, 9, [], tmp_path)) == 4


def test_an_arm_that_is_not_there_is_named(
    published: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(run, [str(published), "--arms", "teacher"]) == 2
    assert "--arms teacher: expected one of llm_policy, teacher_frozen" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "found no such file"), ("{}", "found no such file"),
     ('{"shared": {}}', "expected shared and arms"),
     ('{"shared": {}, "arms": []}', "configs.json names no arm"),
     ('{"shared": {"run.sead": 1}, "arms": [{"task": "t", "arm": "a", "config": {}}]}',
      "run.sead: unknown key")],
)  # fmt: skip
def test_a_folder_without_configurations_says_so(
    tmp_path: Path, text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / "configs.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        read_configs(tmp_path)


def test_a_curve_is_off_by_its_largest_difference() -> None:
    there = {STEPS: [0.0, 10.0], SUCCESS: [0.5, 0.75], RETURN: [0.25, 0.5]}
    steps, same = np.array([0.0, 10.0]), np.array([0.25, 0.5])
    assert deviation(there, {STEPS: steps, SUCCESS: np.array([0.5, 0.5]), RETURN: same}) == 0.25
    halved = {STEPS: steps, SUCCESS: np.array([0.5, 0.75]), RETURN: same / 2}
    assert deviation(there, halved) == 0.25
    with pytest.raises(CheckpointError, match="evaluated at"):
        deviation(there, {**halved, STEPS: np.array([0.0, 20.0])})


def test_returns_of_tens_may_move_by_as_large_a_share_as_those_of_babyai() -> None:
    there = {STEPS: [0.0, 10.0], SUCCESS: [0.5, 0.75], RETURN: [-80.0, -60.0]}
    scale = return_scale([there, {**there, RETURN: [-100.0, -95.0]}])
    assert scale == 40.0 and return_scale([{**there, RETURN: [0.25, 0.5]}]) == 1.0
    again = {name: np.array(values) for name, values in there.items()}
    again[RETURN] = again[RETURN] + np.array([0.0, 1.0])
    assert deviation(there, again, scale) == 1 / 40
    assert "as a share of 40, the range" in words(1 / 40, ["processor A here, B there"], scale=40.0)


def test_the_servers_are_for_every_arm(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = []

    def ranked(config: object, client: object, others: Iterable[Config]) -> int:
        arms.extend(one.arm.name for one in others)
        return 0

    monkeypatch.setattr(reproduce, "run_as_ranked", ranked)
    monkeypatch.setattr(reproduce, "start_log", lambda level: None)
    assert run([str(published), "--output", str(tmp_path)]) == 0
    assert arms == ARMS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: text.index("\n") + 1], "no row of GoToRedBallNoDists, llm_policy"),
        (lambda text: text[:-20], "holds no published curves"),
        (lambda text: text + "a,b\n", "holds no published curves: TypeError"),
        (lambda text: text.replace("teacher_frozen", "teacher"), "no row of .*, teacher_frozen"),
        (lambda text: "", "no row of GoToRedBallNoDists, llm_policy"),
        (lambda text: text.replace(",0.25,", ",nan,", 1), "holds no published curves: .*nan"),
    ],
)
def test_curves_that_are_not_there_are_named(
    published: Path, tmp_path: Path, change: Callable[[str], str], message: str
) -> None:
    folder = Path(shutil.copytree(published, tmp_path / "there"))
    text = (folder / "curves.csv").read_text()
    (folder / "curves.csv").write_text(change(text))
    with pytest.raises(NotThereError, match=message):
        plan(folder, 1, [], tmp_path)


def test_a_folder_that_cannot_be_looked_into_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="configs.json cannot be read: .*too long"):
        read_configs(tmp_path / ("x" * 300))


@pytest.mark.parametrize("text", [None, "{", "{}", '{"made_with": []}', '{"made_with": [{}]}'])
def test_a_folder_that_does_not_say_what_made_its_runs_is_refused_before_any_is_done(
    published: Path, tmp_path: Path, text: str | None
) -> None:
    folder = Path(shutil.copytree(published, tmp_path / "there"))
    path = folder / "provenance.json"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(CheckpointError, match="provenance.json"):
        plan(folder, 1, [], tmp_path)


@pytest.mark.parametrize(
    ("there", "here", "taken"),
    [
        ({"commit": "abc", "dirty": False}, {"commit": "abc", "dirty": False}, True),
        ({"commit": "abc", "dirty": False}, {"commit": "abd", "dirty": False}, False),
        ({"commit": "abc", "dirty": True}, {"commit": "abc", "dirty": True}, False),
        ({"commit": "abc", "dirty": None}, {"commit": "abc", "dirty": None}, False),
        ({"commit": None, "dirty": None}, {"commit": None, "dirty": None}, False),
    ],
)
def test_what_other_code_has_made_is_not_taken_for_todays(
    there: dict[str, object], here: dict[str, object], taken: bool, tmp_path: Path
) -> None:
    folder = make_run(make_config("llm_policy", 4, tmp_path, ARMS), [0.0, 0.25, 0.5])
    (folder / "versions.json").write_text(json.dumps(there))
    planned = [Planned("one", read_config(folder / "config.yaml"))]
    if taken:
        check_fresh(planned, here)
        return
    with pytest.raises(ConfigError, match=r"holds a run that other code may have made"):
        check_fresh(planned, here)


@pytest.mark.parametrize(("told", "dirty"), [("", False), (" M a.py", True), (None, None)])
def test_where_git_does_not_answer_nobody_knows_of_changes(
    told: str | None, dirty: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "_git", lambda word, *_: told if word == "status" else "abc")
    assert versions.describe_versions("train", [], LamorelArgs())["dirty"] is dirty


@pytest.mark.parametrize(
    ("there", "here", "taken"),
    [
        ({"commit": "abc", "dirty": True}, {"commit": "abc", "dirty": True}, True),
        ({"commit": "abc", "dirty": False}, {"commit": "abd", "dirty": False}, False),
    ],
)
def test_a_stopped_run_goes_on_with_the_code_that_began_it(
    there: dict[str, object],
    here: dict[str, object],
    taken: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = make_run(make_config("llm_policy", 4, tmp_path, ARMS), [0.0, 0.25, 0.5])
    (folder / "versions.json").write_text(json.dumps(there))
    (folder / "status.json").write_text('{"state": "stopped"}')
    planned = [Planned("one", read_config(folder / "config.yaml"))]
    check_fresh(planned, {"commit": "none of it is left"})  # without a checkpoint it begins anew
    monkeypatch.setattr(run_folder, "steps_done", lambda folder: 10)
    if taken:
        check_fresh(planned, here)
        return
    with pytest.raises(ConfigError, match=r"holds a run that other code may have made"):
        check_fresh(planned, here)


def test_words_tell_rounding_from_other_code() -> None:
    assert words(0.0, []) == "the same curve"
    assert "the code gives something else today" in words(0.01, [])
    assert words(2.5e-8, []).startswith("off by up to 2.5e-08 in success")  # rounding, by its looks
    assert "within the 0.05" in words(0.01, ["processor A here, B there"])
    assert "more than the 0.05" in words(0.2, ["processor A here, B there"])


@pytest.mark.parametrize(
    ("versions", "unlike"),
    [({"command": "python -m experiments.compare --config-name launch"}, []),
     ({"command": "python -m launchers compare"}, ["servers 1 here, None there"]),
     ({"command": "python -m lamorel_ext launch compare"}, ["servers 1 here, None there"]),
     ({"command": "python -m launchers compare", "servers": 1}, []),
     ({"command": "python -m launchers compare", "servers": 2}, ["servers 1 here, 2 there"])],
)  # fmt: skip
@pytest.mark.parametrize("portable", [False, True])
def test_another_number_of_servers_is_named(
    versions: dict[str, object], unlike: list[str], portable: bool, tmp_path: Path
) -> None:
    (tmp_path / "provenance.json").write_text(
        json.dumps({"made_with": [{"versions": versions, "runs": []}]})
    )
    assert unlike_machine(tmp_path, {"servers": 1}, portable) == unlike


def made_elsewhere(folder: Path) -> dict[str, object]:
    """A provenance in the folder, and the versions in it."""
    versions: dict[str, object] = {"processor": "A", "threads": 1, "servers": 1}
    versions |= {"torch": "2", "numpy": "2", "python": "3"}
    made_with = [{"versions": versions, "runs": []}]
    (folder / "provenance.json").write_text(json.dumps({"made_with": made_with}))
    return versions


def test_another_machine_is_named(tmp_path: Path) -> None:
    there = made_elsewhere(tmp_path)
    assert unlike_machine(tmp_path, there) == []
    assert unlike_machine(tmp_path, {**there, "threads": 2}) == ["threads 2 here, 1 there"]


def test_processors_of_one_name_are_told_apart(tmp_path: Path) -> None:
    def called(name: str, *lines: str) -> str:
        text = ["model name\t: AMD EPYC", *lines, "", "model\t: 0"]
        (tmp_path / name).write_text("\n".join(text))
        return processor_name(tmp_path / name)

    assert called("zen 3", "cpu family\t: 25", "model\t: 1") == "AMD EPYC (family 25, model 1)"
    assert called("zen 5", "cpu family\t: 26", "model\t: 2") == "AMD EPYC (family 26, model 2)"
    assert called("other", "CPU part\t: 0xd40") == "AMD EPYC"
    assert processor_name(tmp_path / "none") == platform.processor()


@pytest.mark.parametrize(
    ("machine", "here", "unlike"),
    [
        ("x86_64", {"processor": "B", "threads": 2}, []),
        ("AMD64", {"processor": "B", "numpy": "3"}, ["numpy 3 here, 2 there"]),
        ("arm64", {"processor": "B"}, ["processor B here, A there"]),
    ],
)
def test_a_portable_run_is_the_same_on_every_x86_machine(
    machine: str,
    here: dict[str, object],
    unlike: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = made_elsewhere(tmp_path)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert unlike_machine(tmp_path, {**there, **here}, portable=True) == unlike
    assert ("with run.portable" in words(0.01, unlike, True)) == (not unlike)


def test_another_commit_is_named_where_this_code_knows_its_own(tmp_path: Path) -> None:
    there = {"commit": "aaa", "dirty": False}
    (tmp_path / "provenance.json").write_text(
        json.dumps({"made_with": [{"versions": there, "runs": []}]})
    )
    assert unlike_code(tmp_path, there) == []
    assert unlike_code(tmp_path, {**there, "commit": "bbb"}) == ["commit bbb here, aaa there"]
    assert unlike_code(tmp_path, {**there, "dirty": True}) == ["dirty True here, False there"]
    assert unlike_code(tmp_path, {"commit": None, "dirty": None}) == []
