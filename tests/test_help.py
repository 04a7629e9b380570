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
module, *arguments = sys.argv[1:]
sys.argv = [module, *arguments]
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
except SystemExit as end:
    loaded = [name for name in {SLOW} if name in sys.modules]
    print(loaded, end.code)
"""


def last_line(module: str, *arguments: str) -> str:
    command = [sys.executable, "-c", SCRIPT, module, *arguments]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()[-1]


@pytest.mark.parametrize("module", MODULES)
def test_help_loads_nothing_that_takes_long(module: str) -> None:
    assert last_line(module, "--help") == "[] 0"


@pytest.mark.parametrize("module", MODULES)
def test_a_wrong_option_is_refused_before_anything_that_takes_long(module: str) -> None:
    assert last_line(module, "--no-such-option") == "[] 2"


@pytest.mark.parametrize("module", ["experiments.train", "experiments.compare"])
def test_a_wrong_key_is_refused_before_anything_that_takes_long(module: str) -> None:
    assert last_line(module, "run.total_stepz=1") == "[] 2"


def test_the_configuration_is_printed_before_anything_that_takes_long() -> None:
    assert last_line("experiments.compare", "--cfg", "job") == "[] 0"
