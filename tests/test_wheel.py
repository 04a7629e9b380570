"""The wheel in a fresh environment, used from a folder that holds packages of our names.

A wheel is built and installed, pages' commands run, and a comparison on two ranks.
"""

import shutil
import zipfile
from pathlib import Path

import pytest

from tests.wheel import (
    ROOT,
    SHORT,
    built,
    command_is_run,
    commands_of,
    last_row,
    page_is_run,
    path_to,
    run,
)

pytestmark = pytest.mark.slow
pytest.importorskip("setuptools")

PROGRAMS = (
    "train compare evaluate generalise balrog report publish reproduce recompute viewer launch"
)


@pytest.mark.parametrize("program", PROGRAMS.split())
def test_every_command_is_ours_in_a_folder_with_packages_of_the_same_names(
    program: str, installed: Path, user_folder: Path
) -> None:
    ended = run(installed / f"lamorel-ext-{program}", "--help", cwd=user_folder)
    assert (ended.returncode, "usage" in ended.stdout) == (0, True), ended.stderr


def test_what_users_bring_runs_on_two_ranks_also_from_a_package_of_our_name(
    installed: Path, user_folder: Path
) -> None:
    ended = run(
        installed / "lamorel-ext-launch", "compare", "compare.arms=[mine,stubborn]",
        "compare.seeds=[0]", "compare.output_dir=out",
        "lamorel_args.llm_args.initializer._target_=mine.Loud",
        "lamorel_args.llm_args.initializer.word=hello", *SHORT, cwd=user_folder,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    page = (user_folder / "out" / "report.html").read_text()
    assert "experiments.stubborn.Stubborn" in page and "mine.Nudge" in page
    assert "initialised, hello" in ended.stdout
    curve = (user_folder / "out" / "mine" / "seed_0" / "metrics.csv").read_text().splitlines()
    assert (
        "0.25" in dict(zip(curve[0].split(","), curve[-1].split(","), strict=True))["nudge_moved"]
    )
    versions = (user_folder / "out" / "mine" / "seed_0" / "versions.json").read_text()
    assert "python -m lamorel_ext launch compare" in versions


def test_the_page_of_own_things_runs_as_it_stands(installed: Path, user_folder: Path) -> None:
    page_is_run("own/index.md", installed, user_folder)
    for place in ("mine", "both/mine/seed_0"):
        row = last_row(user_folder / "runs" / place)
        assert (float(row["nudge_mood"]), float(row["nudge_moved"])) == (7, 0.25)
    page = (user_folder / "runs/both/report.html").read_text()
    assert all(f"mine.{name}" in page for name in ("Stubborn", "Nudge", "Nudger", "Mood"))


def test_the_page_of_own_environments_runs_as_it_stands(installed: Path, user_folder: Path) -> None:
    without = ["compare.controls=[]"]  # the page of TextWorld has them
    page_is_run("own/environment/README.md", installed, user_folder, compare_with=without)
    for place, steps in (("corridor", 512), ("kitchen", 256)):
        assert float(last_row(user_folder / "runs" / place)["env_steps"]) == steps
    for place, name in (("corridors", "my_game.Corridor"), ("kitchens", "my_kitchen.Kitchen")):
        assert name in (user_folder / "runs" / place / "report.html").read_text()


@pytest.mark.parametrize("game", ["my_game.Corridor", "my_kitchen.Kitchen"])
def test_an_own_agent_of_an_own_arm_acts_in_an_own_environment(
    game: str, installed: Path, user_folder: Path
) -> None:
    words = ["arm=stubborn", "agent.action=0", f"env._target_={game}", f"run.output_dir=own/{game}"]
    command_is_run(installed, "lamorel-ext-train", *words, *SHORT, folder=user_folder)
    assert float(last_row(user_folder / "own" / game)["env_steps"]) == 32


def test_the_page_of_textworld_runs_as_it_stands(installed: Path, user_folder: Path) -> None:
    pytest.importorskip("textworld", reason="textworld is not installed (extra textworld)")
    page_is_run("textworld.md", installed, user_folder)
    page = (user_folder / "runs/textworld/report.html").read_text()
    assert "lamorel_ext.envs.text_world.TextWorldQuest" in page
    arms = "llm_policy", "student_alone", "teacher_frozen", "random sign"
    assert all(arm in page for arm in arms)


def test_the_first_run_of_the_docs_runs_as_it_stands(installed: Path, user_folder: Path) -> None:
    page_is_run("first_run.md", installed, user_folder, compare_with=["run.total_steps=32"])
    for name in ("report.html", "viewer.html"):
        assert (user_folder / "runs/second" / name).is_file()


def test_the_page_of_reproducing_runs_as_it_stands(installed: Path, user_folder: Path) -> None:
    page = ROOT / "docs" / "reproducing.md"
    for command in commands_of(page):
        short = ["compare.arms=[random,teacher_frozen]", "compare.seeds=[0]", *SHORT]
        more = short if command.startswith("lamorel-ext-compare") else []
        ended = command_is_run(installed, command, *more, folder=user_folder, from_nothing=True)
        if "reproduce" in command:
            assert ended.stdout.count("the same curve") == 2
    assert "largest deviation: 0.0e+00" in ended.stdout


def test_the_page_of_clusters_runs_as_it_stands_but_for_the_cluster(
    installed: Path, user_folder: Path, tmp_path: Path
) -> None:
    """What is for two machines is a dry run; ``sbatch`` keeps what it was given."""
    (tmp_path / "sbatch").write_text(f"#!/bin/sh\ncat >> {tmp_path}/queue\necho 7\n")
    (tmp_path / "sbatch").chmod(0o755)
    for command in commands_of(ROOT / "docs" / "clusters.md"):
        if "main_process_ip" in command:
            command = command.replace("lamorel-ext-launch", "lamorel-ext-launch --dry-run")
        ended = run(*path_to(tmp_path, installed), command, cwd=user_folder)
        assert ended.returncode == 0, f"{command}: {ended.stderr[-2000:]}"
    assert "machine_rank=1" in ended.stdout
    assert "#SBATCH" in (user_folder / "job.sbatch").read_text()
    queue = (tmp_path / "queue").read_text()
    assert queue.count("#!/usr/bin/env bash") == 4  # an array and its end, another array, a report
    assert "#SBATCH --time=01:00:00" in queue and "%4" in queue


def test_a_wheel_holds_what_the_tree_holds_now(tmp_path: Path) -> None:
    tree, user_folder = tmp_path / "tree", tmp_path / "wheels"
    for name in ("lamorel_ext", "launchers", "configs"):
        (tree / name).mkdir(parents=True)
        (tree / name / "__init__.py").touch()
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tree)
    user_folder.mkdir()
    gone = tree / "lamorel_ext" / "gone.py"
    gone.touch()
    assert "lamorel_ext/gone.py" in zipfile.ZipFile(built(user_folder, tree)).namelist()
    gone.unlink()
    before = sorted(tree.rglob("*"))
    assert "lamorel_ext/gone.py" not in zipfile.ZipFile(built(user_folder, tree)).namelist()
    assert sorted(tree.rglob("*")) == before and not (tree / "build").exists()


def test_the_module_is_the_commands_too(installed: Path, user_folder: Path) -> None:
    python = installed / "python"
    told = run(
        python, "-m", "lamorel_ext", "train", "--cfg", "job", "arm=stubborn", cwd=user_folder
    )
    assert "experiments.stubborn.Stubborn" in told.stdout, told.stderr
    wrong = run(python, "-m", "lamorel_ext", "trian", cwd=user_folder)
    assert (wrong.returncode, "one of train, compare" in wrong.stderr) == (2, True)


@pytest.mark.parametrize("name", ["experiments", "launchers", "configs"])
def test_nobody_else_gets_our_everyday_names(name: str, installed: Path, tmp_path: Path) -> None:
    found = f"import importlib.util as u; print(u.find_spec({name!r}))"
    assert run(installed / "python", "-c", found, cwd=tmp_path).stdout == "None\n"
