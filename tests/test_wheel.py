"""The wheel in a fresh environment, used from a folder that holds packages of our names.

A wheel is built and installed, pages' commands run, and a comparison on two ranks.
"""

import csv
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
pytest.importorskip("setuptools")

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = (
    "train compare evaluate generalise balrog report publish reproduce recompute viewer launch"
)
SHORT = (
    "run.total_steps=32 env.num_envs=2 student.num_steps=8 run.eval_every=16"
    " run.evaluation=episodes run.eval_episodes=2"
).split()
AGENT = """
from lamorel_ext.agents.actors import FixedAgent, UniformActor


class Stubborn(FixedAgent):
    def __init__(self, setting, action=2):
        super().__init__(UniformActor((action,)))
"""
ARM = """# @package _global_
arm: {name: stubborn}
feedback: {signal: none}
agent: {_target_: experiments.stubborn.Stubborn, action: 2}
"""


def run(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: text for key, text in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )


def built(folder: Path, source: Path) -> Path:
    """The wheel of a source tree, in a folder."""
    words = ["wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, source]
    made = run(sys.executable, "-m", "pip", *words, cwd=folder)
    assert made.returncode == 0, made.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


def commands_of(page: Path) -> list[str]:
    """The lines of a page's blocks of plain text, continued ones as one."""
    found: list[str] = []
    fence = None
    for line in page.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        if line.startswith("```"):
            fence = line if fence is None else None
        elif fence == "```" and line.strip():
            found.append(line)
    return found


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the commands of a fresh environment; what we need is taken from this one's."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip"]
    wheel = built(folder, ROOT)
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    (packages,) = (folder / "env").glob("lib/*/site-packages")
    ours = [place for place in sys.path if Path(place).name == "site-packages"]
    (packages / "taken.pth").write_text("\n".join(ours) + "\n")
    put = run(
        *pip, "--python", python, "install", "-q", "--no-deps", "--no-index", wheel, cwd=folder
    )
    assert put.returncode == 0, put.stderr
    return python.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder, with everyday names in it."""
    made = tmp_path_factory.mktemp("user")
    for name in ("experiments", "launchers"):
        (made / name).mkdir()
        (made / name / "__init__.py").write_text("raise SystemExit('the wrong package')\n")
    (made / "experiments" / "stubborn.py").write_text(AGENT)
    shutil.copytree(ROOT / "docs" / "own" / "example", made, dirs_exist_ok=True)
    for path in (ROOT / "docs" / "own" / "environment").glob("*.py"):
        shutil.copy(path, made)
    (made / "configs" / "arm" / "stubborn.yaml").write_text(ARM)
    return made


@pytest.mark.parametrize("program", PROGRAMS.split())
def test_every_command_is_ours_in_a_folder_with_packages_of_the_same_names(
    program: str, installed: Path, folder: Path
) -> None:
    ended = run(installed / f"lamorel-ext-{program}", "--help", cwd=folder)
    assert (ended.returncode, "usage" in ended.stdout) == (0, True), ended.stderr


def test_what_users_bring_runs_on_two_ranks_also_from_a_package_of_our_name(
    installed: Path, folder: Path
) -> None:
    ended = run(
        installed / "lamorel-ext-launch", "compare", "compare.arms=[mine,stubborn]", "compare.seeds=[0]",
        "compare.output_dir=out", "lamorel_args.llm_args.initializer._target_=mine.Loud",
        "lamorel_args.llm_args.initializer.word=hello", *SHORT, cwd=folder,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    page = (folder / "out" / "report.html").read_text()
    assert "experiments.stubborn.Stubborn" in page and "mine.Nudge" in page
    assert "initialised, hello" in ended.stdout
    curve = (folder / "out" / "mine" / "seed_0" / "metrics.csv").read_text().splitlines()
    assert (
        "0.25" in dict(zip(curve[0].split(","), curve[-1].split(","), strict=True))["nudge_moved"]
    )
    versions = (folder / "out" / "mine" / "seed_0" / "versions.json").read_text()
    assert "python -m lamorel_ext launch compare" in versions


def path_to(*places: Path) -> list[str]:
    """Before a line of shell, which finds the commands of these places first."""
    search = (*map(str, places), str(Path(sys.executable).parent), os.environ["PATH"])
    return ["env", f"PATH={os.pathsep.join(search)}", "bash", "-c"]


def page_is_run(name: str, installed: Path, folder: Path, *more: str) -> None:
    """Run a page's commands as they stand; ours with some words more."""
    commands = commands_of(ROOT / "docs" / name)
    assert commands
    for command in commands:
        if command.startswith("lamorel-ext-"):
            command = " ".join([command, *more])
        ended = run(*path_to(installed), command, cwd=folder)
        assert ended.returncode == 0, f"{command}: {ended.stderr[-2000:]}"


def last_row(run_folder: Path) -> dict[str, str]:
    with (run_folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))[-1]


def test_the_page_of_own_things_runs_as_it_stands(installed: Path, folder: Path) -> None:
    page_is_run("own/index.md", installed, folder)
    for place in ("mine", "both/mine/seed_0"):
        row = last_row(folder / "runs" / place)
        assert (float(row["nudge_mood"]), float(row["nudge_moved"])) == (7, 0.25)
    page = (folder / "runs/both/report.html").read_text()
    assert all(f"mine.{name}" in page for name in ("Stubborn", "Nudge", "Nudger", "Mood"))


def test_the_page_of_own_environments_runs_as_it_stands(installed: Path, folder: Path) -> None:
    page_is_run("own/environment/README.md", installed, folder)
    for place, steps in (("corridor", 512), ("kitchen", 256)):
        assert float(last_row(folder / "runs" / place)["env_steps"]) == steps
    for place, name in (("corridors", "my_game.Corridor"), ("kitchens", "my_kitchen.Kitchen")):
        assert name in (folder / "runs" / place / "report.html").read_text()


RECIPES = sorted(path.stem for path in (ROOT / "docs" / "methods").glob("*.md"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_page_of_a_recipe_runs_as_it_stands(
    recipe: str, installed: Path, folder: Path
) -> None:
    page_is_run(f"methods/{recipe}.md", installed, folder, *SHORT)
    alone = last_row(folder / "runs" / recipe)
    assert float(alone["env_steps"]) == 32
    assert any(name.startswith(f"{recipe}_") for name in alone)
    compared = folder / "runs" / f"{recipe}_control"
    assert {path.name for path in compared.glob("*/seed_0")} == {"seed_0"}
    page = (compared / "report.html").read_text()
    assert recipe in page and len([*compared.glob(f"{recipe}*/seed_0/metrics.csv")]) >= 2


def test_every_recipe_has_a_page_and_every_page_a_folder() -> None:
    methods = ROOT / "lamorel_ext" / "methods"
    without_page = {"feedback", "ppo", "cloning"}  # the method's own page, GLAM's, its experts'
    folders = {path.parent.name for path in methods.glob("*/__init__.py")}
    assert folders - without_page == set(RECIPES)
    listed = (ROOT / "docs" / "methods.md").read_text()
    assert all(f"methods/{recipe}.md" in listed for recipe in RECIPES)


@pytest.mark.parametrize("game", ["my_game.Corridor", "my_kitchen.Kitchen"])
def test_an_own_agent_of_an_own_arm_acts_in_an_own_environment(
    game: str, installed: Path, folder: Path
) -> None:
    words = ["arm=stubborn", "agent.action=0", f"env._target_={game}"]
    ended = run(
        installed / "lamorel-ext-train", *words, *SHORT, f"run.output_dir=own/{game}", cwd=folder
    )
    assert ended.returncode == 0, ended.stderr
    assert float(last_row(folder / "own" / game)["env_steps"]) == 32


def test_the_page_of_textworld_runs_as_it_stands(installed: Path, folder: Path) -> None:
    pytest.importorskip("textworld", reason="textworld is not installed (extra textworld)")
    page_is_run("textworld.md", installed, folder)
    page = (folder / "runs/textworld/report.html").read_text()
    assert "lamorel_ext.envs.text_world.TextWorldQuest" in page
    arms = "llm_policy", "student_alone", "teacher_frozen", "random sign"
    assert all(arm in page for arm in arms)


def test_the_first_run_of_the_docs_runs_as_it_stands(installed: Path, folder: Path) -> None:
    page_is_run("first_run.md", installed, folder)
    for name in ("report.html", "viewer.html"):
        assert (folder / "runs/second" / name).is_file()


def test_the_page_of_reproducing_runs_as_it_stands(installed: Path, folder: Path) -> None:
    page = ROOT / "docs" / "reproducing.md"
    for command in commands_of(page):
        short = ["compare.arms=[random,teacher_frozen]", "compare.seeds=[0]", *SHORT]
        more = short if command.startswith("lamorel-ext-compare") else []
        ended = run(*path_to(installed), f"{command} {' '.join(map(repr, more))}", cwd=folder)
        assert ended.returncode == 0, f"{command}: {ended.stderr[-2000:]}"
        if "reproduce" in command:
            assert ended.stdout.count("the same curve") == 2
    assert "largest deviation: 0.0e+00" in ended.stdout


def test_the_page_of_clusters_runs_as_it_stands_but_for_the_cluster(
    installed: Path, folder: Path, tmp_path: Path
) -> None:
    """What is for two machines is a dry run; ``sbatch`` keeps what it was given."""
    (tmp_path / "sbatch").write_text(f"#!/bin/sh\ncat >> {tmp_path}/queue\necho 7\n")
    (tmp_path / "sbatch").chmod(0o755)
    for command in commands_of(ROOT / "docs" / "clusters.md"):
        if "main_process_ip" in command:
            command = command.replace("lamorel-ext-launch", "lamorel-ext-launch --dry-run")
        ended = run(*path_to(tmp_path, installed), command, cwd=folder)
        assert ended.returncode == 0, f"{command}: {ended.stderr[-2000:]}"
    assert "machine_rank=1" in ended.stdout
    assert "#SBATCH" in (folder / "job.sbatch").read_text()
    queue = (tmp_path / "queue").read_text()
    assert queue.count("#!/usr/bin/env bash") == 4  # an array and its end, another array, a report
    assert "#SBATCH --time=01:00:00" in queue and "%4" in queue


def test_a_wheel_holds_what_the_tree_holds_now(tmp_path: Path) -> None:
    tree, folder = tmp_path / "tree", tmp_path / "wheels"
    for name in ("lamorel_ext", "launchers", "configs"):
        (tree / name).mkdir(parents=True)
        (tree / name / "__init__.py").touch()
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tree)
    folder.mkdir()
    gone = tree / "lamorel_ext" / "gone.py"
    gone.touch()
    assert "lamorel_ext/gone.py" in zipfile.ZipFile(built(folder, tree)).namelist()
    gone.unlink()
    before = sorted(tree.rglob("*"))
    assert "lamorel_ext/gone.py" not in zipfile.ZipFile(built(folder, tree)).namelist()
    assert sorted(tree.rglob("*")) == before and not (tree / "build").exists()


def test_the_module_is_the_commands_too(installed: Path, folder: Path) -> None:
    python = installed / "python"
    told = run(python, "-m", "lamorel_ext", "train", "--cfg", "job", "arm=stubborn", cwd=folder)
    assert "experiments.stubborn.Stubborn" in told.stdout, told.stderr
    wrong = run(python, "-m", "lamorel_ext", "trian", cwd=folder)
    assert (wrong.returncode, "one of train, compare" in wrong.stderr) == (2, True)


@pytest.mark.parametrize("name", ["experiments", "launchers", "configs"])
def test_nobody_else_gets_our_everyday_names(name: str, installed: Path, tmp_path: Path) -> None:
    found = f"import importlib.util as u; print(u.find_spec({name!r}))"
    assert run(installed / "python", "-c", found, cwd=tmp_path).stdout == "None\n"
