"""``python -m experiments.bench``: prints one JSON line per figure and writes them all into
``bench.json``.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from experiments.runs.files import file_to_write

if TYPE_CHECKING:
    from experiments.bench.harness import Row
    from experiments.bench.subjects import Subjects

MODULES = {
    "scoring": ("score_rollout", "score_distinct", "score_two", "score_growth", "score_bf16"),
    "runtimes": ("score_two_onnx",),
    "updates": ("update_64", "update_320", "update_script"),
    "transport": ("transport_share",),
    "servers": ("update_shares", "two_servers"),
    "pipeline": ("pipeline",),
    "environments": ("env_text", "env_paper", "env_maze_16", "env_copies", "env_navix"),
    "starting": ("help_s", "client_start_s"),
    "whole": ("demo_s",),
    "iterations": ("figure2_2100", "iterations"),
    "scale.simulate": ("simulate",),
    "gpu": ("score_gpu",),
}


def _run(module: str, name: str, subjects: Subjects) -> list[Row]:
    """Imports the benchmark when it runs: help comes before all that takes seconds."""
    rows: list[Row] = getattr(import_module(f"experiments.bench.{module}"), name)(subjects)
    return rows


BENCHMARKS: dict[str, Callable[[Subjects], list[Row]]] = {
    name: partial(_run, module, name) for module, names in MODULES.items() for name in names
}
"""All by name, in the order in which they run."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run benchmarks; gives 1 if one of them failed, else 0. A missed bar is a result, not a
    failure.
    """
    args = _parse(argv)
    # Here, as they take seconds: help and what is wrong with the arguments come before them.
    import torch

    from experiments.bench import subjects as settings
    from experiments.bench.harness import missing_row, write_rows
    from experiments.bench.whole import FIGURE_STEPS

    torch.set_num_threads(args.threads)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)  # for the processes that benchmarks start
    setting = settings.QUICK if args.quick else settings.FULL
    setting = replace(
        setting,
        repetitions=args.repetitions or setting.repetitions,
        whole_steps=(args.whole_steps or FIGURE_STEPS) if args.whole else 0,
    )
    subjects = settings.Subjects(setting, args.threads)
    rows, failed = [], False
    for name in args.names or ([args.whole] if args.whole else BENCHMARKS):
        start = time.perf_counter()
        try:
            found = BENCHMARKS[name](subjects)
        except Exception as error:  # the other figures are still wanted
            traceback.print_exc()
            found, failed = [missing_row(name, None, "", f"{type(error).__name__}: {error}")], True
        for row in found:
            print(row.to_json(), flush=True)
        rows += found
        write_rows(rows, args.output)  # each time: whoever stops it halfway keeps what there is
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    _summarise(rows)
    return int(failed)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments.bench", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"benchmarks to run; all without any: {', '.join(BENCHMARKS)}",
    )
    parser.add_argument("--quick", action="store_true", help="smaller samples and two repetitions")
    parser.add_argument("--repetitions", type=_positive, help="timed turns of each benchmark")
    parser.add_argument(
        "--threads", type=_positive, default=1, help="threads of PyTorch in each process"
    )
    parser.add_argument(
        "--whole",
        choices=["figure2_2100"],
        help="launch and run it from beginning to end instead of estimating it: half an hour",
    )
    parser.add_argument(
        "--whole-steps",
        type=_positive,
        help="its environment steps; fewer are a trial without a bar",
    )
    parser.add_argument("--output", type=file_to_write, default="bench.json", help="file to write")
    args = parser.parse_args(argv)
    unknown = [name for name in args.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are: {', '.join(BENCHMARKS)}")
    if args.whole_steps and not args.whole:
        parser.error("--whole-steps: only with --whole")
    if args.whole and args.names and args.whole not in args.names:
        parser.error(
            f"--whole {args.whole}: not among the benchmarks to run: {', '.join(args.names)}"
        )
    return args


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _summarise(rows: Sequence[Row]) -> None:
    """A table for people, on standard error: standard output is JSON alone."""
    for row in rows:
        value = "missing" if row.value is None else f"{row.value:10.4g}"
        bar = "" if row.bar is None else f"{'>=' if row.better == 'higher' else '<='} {row.bar:g}"
        verdict = {True: "reached", False: "MISSED", None: ""}[row.passed]
        print(f"{row.name:24} {value:>10} {row.unit:18} {bar:10} {verdict}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
