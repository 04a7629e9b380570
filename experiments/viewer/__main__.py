"""Make the loop viewer's page: ``python -m experiments.viewer runs/demo`` for a comparison, or the
folder of a single run.

Writes ``viewer.html`` into the folder (or ``--output``) and prints its path last. Each run records
its first and last rollouts, and every ``run.trace_every``-th.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.runs.entry import run_main, say, start_log
from experiments.runs.files import file_to_write, replace_text, writing
from experiments.viewer.page import MARK


def make_viewer(
    folder: Path,
    output: Path | None = None,
    arms: Sequence[str] = (),
    seeds: Sequence[int] = (),
    steps: Sequence[int] = (),
) -> Path:
    """Write the page of a run, or of a comparison.

    Args:
        folder: Holds the run, or the runs.
        output: File to write; ``viewer.html`` in the folder if None.
        arms: As in ``content.make_content``.
        seeds: Likewise.
        steps: Likewise.

    Returns:
        The file.

    Raises:
        CheckpointError: Nothing was recorded, or a file cannot be read or written.
    """
    from experiments.viewer.content import make_content
    from experiments.viewer.page import make_page

    recorded = make_content(folder, arms, seeds, steps)  # a folder that is not there is not made
    target = output or folder / "viewer.html"
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    # What each page holds must be known before the first is written; compressed, they take little
    # room until then.
    packed, contents = [], []
    for data in recorded:
        contents.append(_what_it_holds(data))
        packed.append(zlib.compress(json.dumps(data).encode()))
    parts = [_part(target, number) for number in range(1, len(packed) + 1)]
    listed = [{"file": part.name, "name": name} for part, name in zip(parts, contents, strict=True)]
    for number, (part, page) in enumerate(zip(parts, packed, strict=True)):
        replace_text(
            part, make_page({**json.loads(zlib.decompress(page)), "pages": listed, "page": number})
        )
    _remove_later_parts(target, len(parts))
    if len(parts) > 1:
        say(f"pages: {len(parts)}, each with a list of all of them")
    return target


def _part(target: Path, number: int) -> Path:
    return target if number == 1 else target.with_name(f"{target.stem}_{number}{target.suffix}")


def _remove_later_parts(target: Path, number: int) -> None:
    """Pages of an earlier, longer viewer: nothing leads to them, and what they show is old."""
    named = re.compile(re.escape(target.stem) + r"_(\d+)" + re.escape(target.suffix))
    for path in target.parent.iterdir():
        found = named.fullmatch(path.name)
        if found and int(found[1]) > max(number, 1) and path.is_file() and MARK in _beginning(path):
            with writing(path):
                path.unlink()


def _beginning(path: Path) -> str:
    """Enough of a page to tell whether it is a viewer's: any other file is left alone."""
    with writing(path), path.open(encoding="utf-8", errors="replace") as file:
        return file.read(2000)


def _what_it_holds(data: Mapping[str, Any]) -> str:
    """For the list of pages: its arms, seeds and steps of training."""
    runs = [
        f"{run['label']}, seed {run['seed']}: {len(run['rollouts'])} rollouts,"
        f" {run['rollouts'][0]['env_steps']} to {run['rollouts'][-1]['env_steps']} steps"
        for run in data["runs"]
    ]
    return "; ".join(runs[:2]) + (f"; and {len(runs) - 2} more runs" if len(runs) > 2 else "")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="lamorel-ext-viewer", description="Show recorded rollouts step by step."
    )
    parser.add_argument("folder", type=Path, help="folder of a run, or of a comparison")
    parser.add_argument(
        "--output",
        type=file_to_write,
        default=None,
        help="file to write; viewer.html in the folder if not given",
    )
    parser.add_argument(
        "--arm", action="append", default=[], help="show this arm; may be given several times"
    )
    parser.add_argument(
        "--seed",
        action="append",
        type=int,
        default=[],
        help="show this seed; may be given several times",
    )
    parser.add_argument(
        "--at",
        action="append",
        type=int,
        default=[],
        metavar="STEPS",
        help="show the rollouts recorded at this number of environment steps; may be given several"
        " times, to compare them on one page",
    )
    return parser.parse_args(argv)


def run(argv: Sequence[str]) -> int:
    """Make the page and print its path."""
    options = parse(argv)
    start_log("info")
    made = make_viewer(options.folder, options.output, options.arm, options.seed, options.at)
    say(f"viewer: {made}")
    return 0


def main() -> int:
    """Entry of ``lamorel-ext-viewer``."""
    return run_main(run, reads=True)


if __name__ == "__main__":
    sys.exit(main())
