"""Copy what is to be shipped of a comparison: ``python -m experiments.publish runs/demo
docs/results/demo``.

Makes the report in a temporary folder and keeps its tables, two figures, ``provenance.json`` and
``configs.json``, from which ``python -m experiments.reproduce`` runs a seed again.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from experiments.report.making import earlier_files, make_report
from experiments.runs.entry import run_main, say
from experiments.runs.files import folder_to_write, writing
from experiments.runs.provenance import CONFIGS, PROVENANCE

FIGURES = ("success_by_steps.png", "controls.png")
"""Shipped figures; over several tasks with the task's name, or ``overall``, before them."""


def publish(runs: Path, target: Path) -> list[Path]:
    """Write the tables, figures and provenance of ``runs`` into ``target``, in place of those that
    an earlier publication left there.

    Returns:
        The files that were written.

    Raises:
        CheckpointError: There is no complete run, or a file cannot be read or written.
    """
    with tempfile.TemporaryDirectory() as made:
        make_report(runs, Path(made))
        files = [*Path(made, "tables").iterdir(), Path(made, PROVENANCE), Path(made, CONFIGS)]
        files += [path for path in Path(made, "figures").iterdir() if path.name.endswith(FIGURES)]
        with writing(target):
            target.mkdir(parents=True, exist_ok=True)
            stale = earlier_files(target, target)
            made_here = [Path(shutil.copyfile(path, target / path.name)) for path in sorted(files)]
            for path in stale.difference(made_here):
                path.unlink()
            return made_here


def run(argv: Sequence[str]) -> int:
    """Do what the command line asks."""
    parser = argparse.ArgumentParser(
        prog="lamorel-ext-publish", description="Copy what is to be shipped of a comparison."
    )
    parser.add_argument("runs", type=Path, help="folder of the runs")
    parser.add_argument(
        "target", type=folder_to_write, help="folder to ship, such as docs/results/mine"
    )
    options = parser.parse_args(argv)
    files = publish(options.runs, options.target)
    say(f"published: {options.target} ({len(files)} files)")
    return 0


def main() -> int:
    """Entry of ``lamorel-ext-publish``."""
    return run_main(run, reads=True)


if __name__ == "__main__":
    sys.exit(main())
