"""A wheel in a fresh environment, a user's folder, and pages whose commands are run there."""

import csv
import os
import shlex
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

from tests import warm

ROOT = Path(__file__).resolve().parent.parent
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


def install(folder: Path) -> Path:
    """The folder of the commands of a fresh environment; what we need is taken from this one's."""
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


def make_folder(made: Path) -> Path:
    """A user's folder, with everyday names in it."""
    for name in ("experiments", "launchers"):
        (made / name).mkdir()
        (made / name / "__init__.py").write_text("raise SystemExit('the wrong package')\n")
    (made / "experiments" / "stubborn.py").write_text(AGENT)
    shutil.copytree(ROOT / "docs" / "own" / "example", made, dirs_exist_ok=True)
    for path in (ROOT / "docs" / "own" / "environment").glob("*.py"):
        shutil.copy(path, made)
    (made / "configs" / "arm" / "stubborn.yaml").write_text(ARM)
    return made


def path_to(*places: Path) -> list[str]:
    """Before a line of shell, which finds the commands of these places first."""
    search = (*map(str, places), str(Path(sys.executable).parent), os.environ["PATH"])
    return ["env", f"PATH={os.pathsep.join(search)}", "bash", "-c"]


def command_is_run(
    installed: Path, command: str, *more: str, folder: Path, from_nothing: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run a line of shell, a single program of ours in a process with imports, and hold that it
    ends well.

    Args:
        *more: Arguments besides.
        from_nothing: A program that lacks an import would find it in a process with imports, and
            two such processes have the same order of sets.
    """
    try:
        words = [*shlex.split(command), *more]
    except ValueError:
        words = [""]
    cold = (
        from_nothing
        or "launch" in words[0]
        or "--help" in words
        or set(command) & set("|&;<>$()`*?~#")
    )
    if words[0].startswith("lamorel-ext-") and not cold:
        program = installed / words.pop(0)
        ended = run(warm.interpreter(str(installed / "python")), program, *words, cwd=folder)
    else:
        ended = run(*path_to(installed), " ".join([command, *map(repr, more)]), cwd=folder)
    assert ended.returncode == 0, f"{command}: {ended.stderr[-2000:]}"
    return ended


def page_is_run(
    name: str,
    installed: Path,
    folder: Path,
    *more: str,
    compare_with: Sequence[str] = (),
    train_again_with: Sequence[str] = (),
) -> None:
    """Run a page's commands as they stand; ours with more words, ``compare`` and each ``train`` but
    the first also with others.
    """
    trained = False
    commands = commands_of(ROOT / "docs" / name)
    assert commands
    for command in commands:
        if command.startswith("lamorel-ext-"):
            words = compare_with if command.startswith("lamorel-ext-compare") else ()
            if command.startswith("lamorel-ext-train"):
                words, trained = train_again_with if trained else (), True
            command_is_run(installed, command, *more, *words, folder=folder)
        else:
            command_is_run(installed, command, folder=folder)


def last_row(run_folder: Path) -> dict[str, str]:
    with (run_folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))[-1]
