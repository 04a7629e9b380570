"""Watch a run or a comparison: ``lamorel-ext-watch runs/demo``. On a terminal it redraws a picture
every two seconds; elsewhere, and with ``--once``, it prints a text once.

Only reads the folders, and changes nothing there: for runs that are under way, complete, stopped or
broken, on this machine or another one that shares the disk. The details are those of the run
that changed last; ``lamorel-ext-watch runs/demo/ARM/seed_0`` shows another one's. TensorBoard has
the same numbers below ``system/``.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.runs.entry import run_main, say
from lamorel_ext.errors import NotThereError

if TYPE_CHECKING:
    from experiments.watch.reading import Reader, Seen

COLOURS = {
    "running": "cyan", "complete": "green", "stopped": "yellow", "failed": "red", "broken": "red",
    "gone": "red",
}  # fmt: skip


def run(argv: Sequence[str]) -> int:
    """Do what the command line asks."""
    parser = argparse.ArgumentParser(
        prog="lamorel-ext-watch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="RUN|COMPARISON", help="folder of runs")
    parser.add_argument("--once", action="store_true", help="print what there is, and end")
    parser.add_argument(
        "--every", type=seconds, default=2.0, metavar="SECONDS", help="seconds between looks (2)"
    )
    options = parser.parse_args(argv)
    from experiments.watch.reading import Reader
    from experiments.watch.text import plain

    reader = Reader(options.folder)
    logging.disable(logging.WARNING)  # what is wrong with a folder stands in the picture
    try:
        runs = reader.look()
        if options.once or not sys.stdout.isatty():
            say(plain(runs))
        else:
            show(reader, runs, options.every)
    finally:
        logging.disable(logging.NOTSET)
    return 0


def show(
    reader: Reader,
    runs: Sequence[Seen],
    every_s: float,
    sleep: Callable[[float], None] = time.sleep,
    console: Any = None,
) -> None:
    """Draw the runs again and again, until every one is complete.

    Args:
        reader: Looks again.
        runs: What it has seen first.
        every_s: Seconds between two looks.
        sleep: Waits for so many seconds.
        console: Of rich; None means the terminal.
    """
    from rich.live import Live

    with Live(picture(runs), console=console, auto_refresh=False) as live:
        while not over(runs):
            sleep(every_s)
            try:
                runs = reader.look()
            except NotThereError:  # the folder is being moved, or was removed
                continue
            live.update(picture(runs), refresh=True)


def over(runs: Sequence[Seen]) -> bool:
    """True once nothing is left to happen: every run that is planned is complete."""
    from experiments.watch.reading import planned

    return len(runs) >= planned(runs) and all(seen.state == "complete" for seen in runs)


def picture(runs: Sequence[Seen]) -> Any:
    """A table of the runs and the details of the liveliest one, for rich."""
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table

    from experiments.watch.text import HEADER, cells, details, headline, liveliest

    table = Table(title=headline(runs), title_justify="left", expand=False)
    for name in HEADER:
        table.add_column(name, justify="left" if name in ("run", "state") else "right")
    for seen in runs:
        row = [escape(cell) for cell in cells(seen)]
        row[1] = f"[{COLOURS.get(seen.state, 'white')}]{row[1]}[/]"
        table.add_row(*row)
    shown = liveliest(runs)
    own = Table.grid(padding=(0, 2))
    own.title = escape(shown.name)
    for name, text in details(shown):
        own.add_row(f"[bold]{escape(name)}[/]", escape(text))
    return Group(table, own) if own.row_count else table


def seconds(text: str) -> float:
    """Of ``--every``; argparse names a type by its function."""
    value = float(text)
    if not 0.1 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"must be between 0.1 and 3600 seconds, got {text}")
    return value


def main() -> int:
    """Entry of ``lamorel-ext-watch``."""
    return run_main(run, reads=True)


if __name__ == "__main__":
    sys.exit(main())
