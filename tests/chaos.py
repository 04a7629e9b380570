"""Faults thrown at real launches: ``make chaos ARGS='--faults 200 --seed 0 --jobs 2'``.

A run under ``launchers`` (one client, two servers) is disturbed at start-up, in rollouts and
updates, and around its checkpoints; after each fault the same command is given again. A run that
gets through is compared with an undisturbed one. What a fault is depends on the seed and the
fault's number alone, not on how many runs are disturbed side by side. Ends with one line of JSON:

    faults        how many were thrown
    hangs         launches that did not end, or a resumed run that did not move, within ``LIMIT_S``
    orphans       ranks that outlived their launch by more than ``ORPHAN_S``
    lost          runs that could not be resumed by the same command
    wrong_curves  curves that are not those of the undisturbed run
    unnamed       deaths whose message names neither a rank nor a signal, or a status that is not
                  the signal's
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S, ORPHAN_S, START_S, RUN_S = 30.0, 16.0, 120.0, 600.0
WHO = ("launcher", "agent", "rank 0", "rank 1", "rank 2")
SIGNALS = ("SIGKILL", "SIGSTOP", "SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")
FILES = ("full disk", "cut row", "flipped bit")
WHEN = ("start-up", "training", "checkpoint")
COUNTS = ("faults", "hangs", "orphans", "lost", "wrong_curves", "unnamed")
TRIES = 3
"""Launches in which a fault may miss its moment before it is given up."""
TRAINING = (
    "arm=teacher_feedback+signal=gae env.num_envs=2 student.num_steps=8 "
    "run.total_steps=160 run.eval_every=80 run.checkpoint_every=2 run.evaluation=episodes "
    "run.eval_episodes=2 lamorel_args.distributed_setup_args.n_llm_processes=2"
)


@dataclass(frozen=True)
class Fault:
    """What is done to a run.

    Attributes:
        number: From 1.
        kind: One of ``SIGNALS`` or ``FILES``.
        who: Gets the signal; one of ``WHO``.
        when: One of ``WHEN``, for a signal.
        delay_s: Seconds from the moment's begin.
        room: Bytes that a file may have on a full disk.
        instead: Signal in place of a harm to files that are not there yet.
        seed: Of the byte that is harmed.
    """

    number: int
    kind: str
    who: str
    when: str
    delay_s: float
    room: int
    instead: str
    seed: int

    def __str__(self) -> str:
        where = f" {self.who} at {self.when}" if self.kind in SIGNALS else ""
        return f"{self.number}: {self.kind}{where}"


def make_fault(seed: int, number: int) -> Fault:
    """The fault with this number."""
    draw = random.Random(f"{seed} {number}")
    kinds = [each for each in SIGNALS for _ in WHO] + [each for each in FILES for _ in range(2)]
    when = draw.choice(WHEN)
    return Fault(
        number=number,
        kind=draw.choice(kinds),
        who=draw.choice(WHO),
        when=when,
        delay_s=draw.uniform(0.0, {"start-up": 8.0, "training": 3.0, "checkpoint": 0.0}[when]),
        room=draw.choice((2, 16, 64)) * 1024,
        instead=draw.choice(SIGNALS),
        seed=draw.getrandbits(32),
    )


def make_runs(seed: int, num_faults: int) -> list[list[Fault]]:
    """Two to five faults for each run."""
    draw, runs, first = random.Random(f"{seed} runs"), [], 1
    while first <= num_faults:
        end = min(first + draw.randint(2, 5), num_faults + 1)
        runs.append([make_fault(seed, number) for number in range(first, end)])
        first = end
    return runs


class Launch:
    """One run of the command.

    Args:
        folder: Of the run.
        log: Where what it says goes.
        file_bytes: Size that no file may exceed: a disk that is full; 0 sets no limit.
    """

    def __init__(self, folder: Path, log: Path, file_bytes: int = 0) -> None:
        self.folder, self.log = folder, log
        limited = f"ulimit -f {file_bytes // 1024}; trap '' XFSZ; " if file_bytes else ""
        command = f'{limited}exec "$0" -m launchers train {TRAINING} run.output_dir={folder}'
        with log.open("w") as stream:
            self.process = subprocess.Popen(
                ["bash", "-c", command, sys.executable],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=stream,
                stderr=stream,
            )

    def members(self) -> dict[str, int]:
        """Processes of this launch that live, by what they are."""
        found = {}
        for path in Path("/proc").iterdir():
            if not path.name.isdecimal():
                continue
            try:
                command = (path / "cmdline").read_bytes().decode(errors="replace").split("\0")
                variables = (path / "environ").read_bytes().decode(errors="replace").split("\0")
                dead = (path / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
            except OSError:
                continue
            if dead or f"run.output_dir={self.folder}" not in command:
                continue
            rank = next((each[5:] for each in variables if each.startswith("RANK=")), "")
            agent = "elastic" in command
            found["agent" if agent else f"rank {rank}" if rank else "launcher"] = int(path.name)
        return found

    def wait(self, seconds: float) -> bool:
        """True where the launcher and all the others have ended by then."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None and not self.members():
                return True
            time.sleep(0.3)
        return False

    def kill(self) -> None:
        """End whoever is left."""
        for pid in self.members().values():
            send(pid, signal.SIGKILL)
        self.process.wait()

    def steps(self) -> int:
        """Of the last checkpoint."""
        try:
            found = json.loads((self.folder / "checkpoints" / "current.json").read_text())[
                "env_steps"
            ]
            return int(found)
        except (OSError, ValueError, KeyError):
            return 0


class Chaos:
    """Throws faults and counts what they break.

    Args:
        folder: For runs and logs.
        seed: Of the faults.
        stop_s: Seconds that a stopped process stays so.
        slow: Multiplies every limit, for a machine that is shared with other work.
        jobs: Runs that are disturbed side by side.
    """

    def __init__(
        self, folder: Path, seed: int, stop_s: float, slow: float = 1.0, jobs: int = 1
    ) -> None:
        self.folder, self.seed, self.stop_s, self.slow = folder, seed, stop_s, slow
        self.jobs = jobs
        self.curve: list[list[str]] = []
        self._counts = Counter(dict.fromkeys(COUNTS, 0))
        self._counting = threading.Lock()

    def run(self, num_faults: int) -> dict[str, int]:
        """Throw the faults, and give the counts."""
        calm = Launch(self.folder / "calm", self.folder / "calm.log")
        if not calm.wait(RUN_S * self.slow) or calm.process.returncode:
            calm.kill()
            raise SystemExit(f"the undisturbed run does not end well: {calm.log}")
        self.curve = curve(calm.folder)
        with ThreadPoolExecutor(self.jobs) as pool:
            disturbed = pool.map(self.disturb, make_runs(self.seed, num_faults))
            for _ in disturbed:
                pass  # an error of ours is raised here
        return {name: self._counts[name] for name in COUNTS}

    def count(self, name: str) -> None:
        """One more of ``COUNTS``."""
        with self._counting:
            self._counts[name] += 1

    def disturb(self, faults: Sequence[Fault]) -> None:
        """One run with these faults, then its end; where it ends before, another one."""
        folder, tries = self.folder / f"run-{faults[0].number}", 0
        waiting = list(faults)
        while waiting:
            fault, tries = waiting[0], tries + 1
            log = self.folder / f"{folder.name}-{fault.number}-{tries}.log"
            note = self.throw(fault, folder, log)
            if note is not None:
                self.count("faults")
            say(f"{fault}: {note or 'came too late'}")
            if note is not None or tries == TRIES:
                waiting.pop(0)
                tries = 0
            if complete(folder) and waiting:
                self.finish(folder)
                folder = self.folder / f"run-{waiting[0].number}-{tries}"
        self.finish(folder)

    def throw(self, fault: Fault, folder: Path, log: Path) -> str | None:
        """Start the command, harm it, see it end; gives a word on how, None where there was nothing
        left to harm.
        """
        kind = fault.kind
        if kind in ("cut row", "flipped bit"):
            done = harm_files(kind, folder, random.Random(fault.seed))
            if done:
                return done
            kind = fault.instead
        launch = Launch(folder, log, fault.room if kind == "full disk" else 0)
        if kind == "full disk":
            return self.judge(launch, START_S, kind)
        reached = self.reached(launch, fault)
        pid = launch.members().get(fault.who) if reached else None
        if pid is None or not send(pid, signal.Signals[kind]):
            self.judge(launch, RUN_S, "none")
            return None
        if kind == "SIGSTOP":
            time.sleep(self.stop_s)
            send(pid, signal.SIGCONT)
            return self.judge(launch, RUN_S, "none")
        return self.judge(launch, LIMIT_S, kind)

    def reached(self, launch: Launch, fault: Fault) -> bool:
        """Wait for the moment; False where the launch ended before it."""
        deadline, before = time.monotonic() + START_S * self.slow, launch.steps()
        while launch.process.poll() is None and time.monotonic() < deadline:
            if fault.when == "start-up":
                reached = fault.who in launch.members()
            elif fault.when == "training":
                reached = "steps" in launch.log.read_text(errors="replace")
            else:
                reached = launch.steps() > before or any(launch.folder.glob("checkpoints/*/llm/.*"))
            if reached:
                time.sleep(fault.delay_s)
                return launch.process.poll() is None
            time.sleep(0.2 if fault.when == "start-up" else 0.05)
        return False

    def judge(self, launch: Launch, limit_s: float, fault: str) -> str:
        """See the launch end within its time, and read its last words."""
        started = time.monotonic()
        with contextlib.suppress(subprocess.TimeoutExpired):
            launch.process.wait(limit_s * self.slow)
        ended = time.monotonic()
        if launch.process.poll() is None or not launch.wait(ORPHAN_S * self.slow):
            left = launch.members()
            self.count("orphans" if launch.process.poll() is not None else "hangs")
            launch.kill()
            return f"NOT ENDED: {left}, {launch.log}"
        took = f"{ended - started:.1f} s, ranks {time.monotonic() - ended:.1f} s more"
        said, status = launch.log.read_text(errors="replace"), launch.process.returncode
        if begun_anew(launch):
            return f"status {status}, refused what was harmed before"
        # Who kills the launcher itself hears from the shell what it was.
        named = re.search(r"rank \d|SIG[A-Z0-9]+|cannot be written|the loss of process", said)
        if (status > 0 and fault != "none" and not named) or not fits(status, fault):
            self.count("unnamed")
            return f"UNNAMED, status {status}: {launch.log}"
        return f"status {status}, step {launch.steps()}, {took}"

    def finish(self, folder: Path) -> None:
        """Give the same command until the run is complete, and compare its curve."""
        log = folder.with_name(f"{folder.name}-end.log")
        launch = Launch(folder, log)
        if launch.wait(RUN_S * self.slow) and begun_anew(launch):
            launch = Launch(folder, log.with_name(f"{folder.name}-anew.log"))
        if not launch.wait(RUN_S * self.slow):
            self.count("hangs")
            launch.kill()
        elif launch.process.returncode or not complete(folder):
            self.count("lost")
            say(f"LOST: {log}")
        elif curve(folder) != self.curve:
            self.count("wrong_curves")
            say(f"WRONG CURVE: {folder}")
        else:
            shutil.rmtree(folder)


def begun_anew(launch: Launch) -> bool:
    """Whether a launch that has ended refused its only checkpoint, which was harmed, and said what
    to take away; that is done then, as a user would.
    """
    checkpoints = launch.folder / "checkpoints"
    if f"Without {checkpoints} the run starts over" not in launch.log.read_text(errors="replace"):
        return False
    shutil.rmtree(checkpoints)
    return True


def fits(status: int, fault: str) -> bool:
    """Whether a launch that suffered this may end with this exit status."""
    if fault == "none":
        return status == 0
    if fault not in SIGNALS:
        return status >= 0
    return status in (0, 128 + signal.Signals[fault], -signal.Signals[fault])


def say(line: str) -> None:
    """For whoever watches."""
    print(line, file=sys.stderr, flush=True)


def send(pid: int, signum: int) -> bool:
    """A signal to a process; False where it has gone."""
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        return False
    return True


def harm_files(fault: str, folder: Path, draw: random.Random) -> str:
    """Cut the last row of the curve, or flip a bit of a checkpoint; empty where there is none."""
    if fault == "cut row":
        path = folder / "metrics.csv"
        if not path.exists():
            return ""
        os.truncate(path, max(0, path.stat().st_size - draw.randint(1, 20)))
        return f"{path} cut"
    files = sorted(
        path
        for path in folder.glob("checkpoints/step-*/**/*")
        if path.is_file() and path.stat().st_size
    )
    if not files:
        return ""
    path = draw.choice(files)
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    return f"{path} flipped"


def complete(folder: Path) -> bool:
    """True where the run says so."""
    try:
        found = json.loads((folder / "status.json").read_text())["state"] == "complete"
        return bool(found)
    except (OSError, ValueError, KeyError):
        return False


def curve(folder: Path) -> list[list[str]]:
    """The learning curve without its seconds."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    kept = [place for place, name in enumerate(rows[0]) if "seconds" not in name]
    return [[row[place] for place in kept] for row in rows]


def main() -> int:
    """Entry of ``make chaos``; 1 where anything was broken."""
    parser = argparse.ArgumentParser(
        prog="chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--faults", type=int, default=200, help="how many; each takes 20 seconds of a core"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    parser.add_argument(
        "--stop-seconds", type=float, default=60.0, help="how long a stopped process stays stopped"
    )
    parser.add_argument(
        "--slow", type=float, default=1.0, help="multiplies the limits, for a shared machine"
    )
    parser.add_argument(
        "--jobs", type=int, default=2, help="runs side by side; each has five processes"
    )
    options = parser.parse_args()
    # A job in a shell's background ignores SIGINT, one under nohup SIGHUP, and all that they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda signum, frame: None)
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    say(f"logs: {folder}")
    chaos = Chaos(folder, options.seed, options.stop_seconds, options.slow, options.jobs)
    counts = chaos.run(options.faults)
    print(json.dumps(counts))
    broken = any(count for name, count in counts.items() if name != "faults")
    return int(broken or counts["faults"] < options.faults)


if __name__ == "__main__":
    sys.exit(main())
