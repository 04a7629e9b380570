"""A launch of many environments, clients and servers that trains for a long time: does its memory
grow, how much does it do in a second, how long do its answers take?

``python -m experiments.bench.scale.soak --minutes 30`` starts 1,000 copies over 4 clients and 4
servers (KEY=VALUE changes that, and the arm), asks the launch to end after so many minutes, and
prints a row of JSON for each question. After the first five minutes no rank's memory is to grow by
more than 3 % (``soak_memory_growth``), nor to go up and down by more (``soak_memory``).

Growth is told from going up and down by windows of five minutes: how far the median of a later one,
or its highest sample, lies above that of an earlier one. What an update takes and gives back is in
every window; what leaks is more in each than in the one before: 1 MiB a minute are 20 MiB between
the first and the last of 25 minutes.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from experiments.bench.harness import Detail, Row, make_row, rounded
from experiments.runs.entry import run_main
from experiments.runs.samples import SYSTEM, read_samples
from experiments.watch.reading import ANSWER
from lamorel_ext.processes.memory import MEMORY_OF_RANK

BAR = 0.03
SETTLE_S = WINDOW_S = 300.0
TAIL = 3000
SETTING = (
    "task=go_to_local",
    "env.num_envs=1000",
    "lamorel_args.distributed_setup_args.n_rl_processes=4",
    "lamorel_args.distributed_setup_args.n_llm_processes=4",
    "student.num_steps=4",
    "feedback.epochs=1",
    "feedback.gradient_minibatch_size=64",  # or memory follows how many prompts are distinct
    "run.total_steps=100000000",
    "run.eval_every=100000000",
    "run.checkpoint_every=0",
    "run.trace_every=0",
)
SPEED = "env_steps_per_s"


def soak(minutes: float, overrides: Sequence[str], folder: Path) -> list[Row]:
    """Train for so many minutes, and read what the run says of itself.

    Args:
        overrides: After ``SETTING``.
        folder: For the run.

    Raises:
        RuntimeError: The launch ended before it was asked to, or otherwise than asked, or told too
            little of itself.
    """
    own = (*SETTING, *overrides, f"run.output_dir={folder / 'run'}")
    command = [sys.executable, "-m", "launchers", "train", *own]
    with (folder / "log").open("w+") as log:
        launch = subprocess.Popen(command, stdout=log, stderr=log)
        timer = threading.Timer(60 * minutes, launch.send_signal, (signal.SIGTERM,))
        timer.start()
        try:
            status = launch.wait()
        finally:
            timer.cancel()
            launch.terminate()  # where this process is to end before it
            launch.wait()
        if status != 128 + signal.SIGTERM:
            log.seek(0)
            raise RuntimeError(f"the launch ended with status {status}: {log.read()[-TAIL:]}")
    return rows(read_samples(folder / "run" / SYSTEM))


def rows(samples: Sequence[dict[str, float]], settle_s: float = SETTLE_S) -> list[Row]:
    """What the samples of a run say.

    Args:
        samples: In their order.
        settle_s: Seconds after the first one that do not count for memory.

    Raises:
        RuntimeError: There are not two samples after them.
    """
    settled = [each for each in samples if each["time"] - samples[0]["time"] >= settle_s]
    if len(settled) < 2:
        raise RuntimeError(f"{len(settled)} samples after {settle_s:g} s, expected at least 2")
    ranks = [name for name in settled[0] if name.startswith(MEMORY_OF_RANK)]
    spans = {rank: [each[rank] for each in settled] for rank in ranks}
    range_of = {rank: (max(own) - min(own)) / min(own) for rank, own in spans.items()}
    growth = {rank: growth_of(settled, rank) for rank in ranks}
    minutes = rounded((samples[-1]["time"] - samples[0]["time"]) / 60)
    seen: dict[str, Detail] = {"samples": len(settled), "minutes": minutes}
    memory = {rank: f"{min(own):.0f} to {max(own):.0f} MiB" for rank, own in spans.items()}
    grew: dict[str, Detail] = {rank: rounded(value) for rank, value in growth.items()}
    speeds = [each[SPEED] for each in settled]
    low, high = rounded(min(speeds)), rounded(max(speeds))
    found = [
        make_row("soak_memory_growth", [max(growth.values())], BAR, "growth", "lower", seen | grew),
        make_row("soak_memory", [max(range_of.values())], BAR, "range", "lower", seen | memory),
        make_row(
            "soak_steps", [statistics.median(speeds)], None, "steps/s",
            detail=seen | {"lowest": low, "highest": high},
        ),
    ]  # fmt: skip
    for name in sorted(name for name in settled[0] if name.startswith(ANSWER)):
        waits = [each[name] for each in settled if name in each]
        row_name = f"soak_answer_p{name.removeprefix(ANSWER)}"
        most: dict[str, Detail] = {"highest": rounded(max(waits))}
        middle = [statistics.median(waits)]
        found.append(make_row(row_name, middle, None, "s", "lower", seen | most))
    return found


def growth_of(samples: Sequence[dict[str, float]], rank: str) -> float:
    """By what share the memory of a rank grew, at most, from one window to a later one: in their
    medians, or in their highest samples.

    Args:
        samples: In their order, those that count; at least two, of different times. A window is
            half of their time where that is short.
        rank: The name of its memory in them.
    """
    begun, lasted = samples[0]["time"], samples[-1]["time"] - samples[0]["time"]
    number = max(2, int(lasted / WINDOW_S))  # a remainder of few samples goes with the last one
    windows: list[list[float]] = [[] for _ in range(number)]
    for each in samples:
        place = int((each["time"] - begun) / min(WINDOW_S, lasted / 2))
        windows[min(place, number - 1)].append(each[rank])
    return max(
        _rise([measure(own) for own in windows if own]) for measure in (statistics.median, max)
    )


def _rise(values: Sequence[float]) -> float:
    """The largest share by which a value exceeds an earlier one; 0 where none does."""
    lowest, most = values[0], 0.0
    for value in values:
        lowest = min(lowest, value)
        most = max(most, (value - lowest) / lowest)
    return most


def run(argv: Sequence[str]) -> int:
    """Do what the command line asks."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.bench.scale.soak", description=__doc__
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    args = parser.parse_args(argv)
    begun = time.time()
    with tempfile.TemporaryDirectory() as folder:
        for row in soak(args.minutes, args.overrides, Path(folder)):
            print(row.to_json(), flush=True)
    print(f"{time.time() - begun:.0f} s, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    return 0


def main() -> int:
    """Entry of ``python -m experiments.bench.scale.soak``."""
    return run_main(run)


if __name__ == "__main__":
    sys.exit(main())
