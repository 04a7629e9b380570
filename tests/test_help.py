"""Help is there at once: no program loads a library for models, environments or plots for it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SLOW = ("torch", "transformers", "accelerate", "minigrid", "pygame", "matplotlib", "tokenizers")
PROGRAMS = (
    "train compare evaluate generalise balrog report publish reproduce recompute viewer"
    " watch check_oracle expert_table bench"
)
MODULES = [f"experiments.{name}" for name in PROGRAMS.split()] + ["launchers"]
SCRIPT = f"""
import runpy, sys
module, *lines = sys.argv[1:]
for line in lines:
    sys.argv = [module, *line.split()]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        print("loaded", [name for name in {SLOW} if name in sys.modules], end.code)
"""


def ends(module: str, *lines: str) -> list[str]:
    """What was loaded, and the exit status, after each command line, one after the other."""
    command = [sys.executable, "-c", SCRIPT, module, *lines]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return [line for line in ended.stdout.splitlines() if line.startswith("loaded ")]


@pytest.mark.parametrize("module", MODULES)
def test_help_and_the_refusal_of_a_wrong_option_load_nothing_that_takes_long(module: str) -> None:
    assert ends(module, "--help", "--no-such-option") == ["loaded [] 0", "loaded [] 2"]


@pytest.mark.parametrize("module", ["experiments.train", "experiments.compare"])
def test_a_wrong_key_is_refused_before_anything_that_takes_long(module: str) -> None:
    assert ends(module, "run.total_stepz=1") == ["loaded [] 2"]


def test_the_configuration_is_printed_before_anything_that_takes_long() -> None:
    assert ends("experiments.compare", "--cfg job") == ["loaded [] 0"]
