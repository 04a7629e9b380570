"""Faults thrown at real launches: ``make chaos ARGS='--faults 200 --seed 0'``; about a minute each,
so that 200 take three to four hours.

A run under ``launchers`` (one client, two servers) is disturbed at start-up, in rollouts and
updates, and around its checkpoints; after each fault the same command is given again. A run that
gets through is compared with an undisturbed one. Ends with one line of JSON:

    faults        how many were thrown
    hangs         launches that did not end, or a resumed run that did not move, within ``LIMIT_S``
    orphans       ranks that outlived their launch by more than ``ORPHAN_S``
    lost          runs that could not be resumed by the same command
    wrong_curves  curves that are not those of the undisturbed run
    unnamed       deaths whose message names neither a rank nor a signal
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
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S, ORPHAN_S, START_S, RUN_S = 30.0, 16.0, 120.0, 600.0
WHO = ("launcher", "agent", "rank 0", "rank 1", "rank 2")
SIGNALS = ("SIGKILL", "SIGSTOP", "SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")
FILES = ("full disk", "cut row", "flipped bit")
WHEN = ("start-up", "training", "checkpoint")
COUNTS = ("faults", "hangs", "orphans", "lost", "wrong_curves", "unnamed")
TRAINING = (
    "arm=teacher_feedback_gae env.num_envs=2 student.num_steps=8 run.total_steps=160 run.eval_every=80 run.checkpoint_every=2"
    " run.evaluation=episodes run.eval_episodes=2 lamorel_args.distributed_setup_args.n_llm_processes=2"
)


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
                preexec_fn=hear_interrupts,
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
            agent = "launchers.elastic" in command
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
    """

    def __init__(self, folder: Path, seed: int, stop_s: float, slow: float = 1.0) -> None:
        self.folder, self.stop_s, self.slow = folder, stop_s, slow
        self.random = random.Random(seed)
        self.counts = Counter(dict.fromkeys(COUNTS, 0))
        self.curve: list[list[str]] = []

    def run(self, num_faults: int) -> dict[str, int]:
        """Throw the faults, and give the counts."""
        calm = Launch(self.folder / "calm", self.folder / "calm.log")
        if not calm.wait(RUN_S * self.slow):
            calm.kill()
            raise SystemExit(f"the undisturbed run does not end: {calm.log}")
        self.curve = curve(calm.folder)
        number = 0
        while self.counts["faults"] < num_faults:
            number += 1
            self.disturb(
                self.folder / f"run-{number}",
                min(self.random.randint(2, 5), num_faults - self.counts["faults"]),
            )
        return {name: self.counts[name] for name in COUNTS}

    def disturb(self, folder: Path, num_faults: int) -> None:
        """One run with some faults, then its end."""
        for _ in range(num_faults):
            files = FILES if any(folder.glob("checkpoints/step-*")) else FILES[:1]
            faults = [f"{each} {who}" for each in SIGNALS for who in WHO]
            fault = self.random.choice([*faults, *2 * files])
            when = self.random.choice(WHEN)
            self.counts["faults"] += 1
            log = folder.with_name(f"{folder.name}-{self.counts['faults']}.log")
            note = self.throw(fault, when, folder, log)
            print(
                f"{self.counts['faults']}: {fault} at {when}: {note}", file=sys.stderr, flush=True
            )
            if complete(folder):
                break
        self.finish(folder)

    def throw(self, fault: str, when: str, folder: Path, log: Path) -> str:
        """Start the command, harm it, see it end; gives a word on how."""
        if fault in ("cut row", "flipped bit"):
            return harm_files(fault, folder, self.random)
        room = self.random.choice((2, 16, 64)) * 1024 if fault == "full disk" else 0
        launch = Launch(folder, log, room)
        if fault == "full disk":
            return self.judge(launch, START_S, fault)
        name, _, who = fault.partition(" ")
        if not self.reached(launch, when, who):
            return self.judge(launch, RUN_S, "none")
        pid = launch.members().get(who)
        if pid is None:
            return self.judge(launch, RUN_S, "none")
        send(pid, signal.Signals[name])
        if name == "SIGSTOP":
            time.sleep(self.stop_s)
            send(pid, signal.SIGCONT)
            return self.judge(launch, RUN_S, "none")
        return self.judge(launch, LIMIT_S, fault)

    def reached(self, launch: Launch, when: str, who: str) -> bool:
        """Wait for the moment; False where the launch ended before it."""
        deadline, before = time.monotonic() + START_S * self.slow, launch.steps()
        if when == "start-up":
            while who not in launch.members() and time.monotonic() < deadline:
                time.sleep(0.1)
            time.sleep(self.random.uniform(0.0, 8.0))
            return launch.process.poll() is None
        while launch.process.poll() is None and time.monotonic() < deadline:
            if when == "checkpoint" and (
                launch.steps() > before or any(launch.folder.glob("checkpoints/*/llm/.*"))
            ):
                return True
            if when == "training" and "steps" in launch.log.read_text(errors="replace"):
                time.sleep(self.random.uniform(0.0, 3.0))
                return launch.process.poll() is None
            time.sleep(0.05)
        return False

    def judge(self, launch: Launch, limit_s: float, fault: str) -> str:
        """See the launch end within its time, and read its last words."""
        started = time.monotonic()
        with contextlib.suppress(subprocess.TimeoutExpired):
            launch.process.wait(limit_s * self.slow)
        ended = time.monotonic()
        if launch.process.poll() is None or not launch.wait(ORPHAN_S * self.slow):
            left = launch.members()
            self.counts["orphans" if launch.process.poll() is not None else "hangs"] += 1
            launch.kill()
            return f"NOT ENDED: {left}, {launch.log}"
        took = f"{ended - started:.1f} s, ranks {time.monotonic() - ended:.1f} s more"
        said, status = launch.log.read_text(errors="replace"), launch.process.returncode
        # Who kills the launcher itself hears from the shell what it was.
        if (
            status > 0
            and fault != "none"
            and not re.search(r"rank \d|SIG[A-Z0-9]+|cannot be written|the loss of process", said)
        ):
            self.counts["unnamed"] += 1
            return f"UNNAMED, status {status}: {launch.log}"
        return f"status {status}, step {launch.steps()}, {took}"

    def finish(self, folder: Path) -> None:
        """Give the same command until the run is complete, and compare its curve."""
        log = folder.with_name(f"{folder.name}-end.log")
        launch = Launch(folder, log)
        if not launch.wait(RUN_S * self.slow):
            self.counts["hangs"] += 1
            launch.kill()
        elif launch.process.returncode or not complete(folder):
            self.counts["lost"] += 1
            print(f"LOST: {log}", file=sys.stderr, flush=True)
        elif curve(folder) != self.curve:
            self.counts["wrong_curves"] += 1
            print(f"WRONG CURVE: {folder}", file=sys.stderr, flush=True)
        else:
            shutil.rmtree(folder)


def hear_interrupts() -> None:
    """A job in a shell's background ignores SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def send(pid: int, signum: int) -> None:
    """A signal to a process that may have gone."""
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        return


def harm_files(fault: str, folder: Path, draw: random.Random) -> str:
    """Cut the last row of the curve, or flip a bit of a checkpoint."""
    if fault == "cut row":
        path = folder / "metrics.csv"
        if not path.exists():
            return "no curve yet"
        os.truncate(path, max(0, path.stat().st_size - draw.randint(1, 20)))
        return f"{path} cut"
    files = sorted(
        path
        for path in folder.glob("checkpoints/step-*/**/*")
        if path.is_file() and path.stat().st_size
    )
    if not files:
        return "no checkpoint yet"
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
        "--faults", type=int, default=200, help="how many; each takes about a minute on two cores"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    parser.add_argument(
        "--stop-seconds", type=float, default=60.0, help="how long a stopped process stays stopped"
    )
    parser.add_argument(
        "--slow", type=float, default=1.0, help="multiplies the limits, for a shared machine"
    )
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    counts = Chaos(folder, options.seed, options.stop_seconds, options.slow).run(options.faults)
    print(f"logs: {folder}", file=sys.stderr)
    print(json.dumps(counts))
    return int(any(count for name, count in counts.items() if name != "faults"))


if __name__ == "__main__":
    sys.exit(main())
