"""Damage files of a run folder at random, and let everything that reads one have a go.

``python tests/experiments/fuzz_run_folders.py --cases 5000`` prints one line of JSON: ``cases``,
``refused`` (documented errors), ``accepted`` (reports, pages and resumes that came about) and
``unnamed`` (anything else that was raised), and ends with 1 where the last is not 0.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import random
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from experiments import recompute
from experiments.report.making import find, make_report
from experiments.runs.run_folder import RunFolder, run_state
from experiments.viewer.__main__ import make_viewer
from lamorel_ext.config import Config, load_config
from lamorel_ext.errors import LamorelExtError
from lamorel_ext.training.building import make_env
from lamorel_ext.training.run import TrainingRun
from tests.training.student_fakes import TableLlm

Damage = Callable[[bytes, random.Random], bytes]
SMALL = (
    "arm=teacher_feedback+signal=gae", "run.total_steps=32", "run.eval_every=16", "env.num_envs=2",
    "student.num_steps=8", "run.evaluation=episodes", "run.eval_episodes=2",
    "run.checkpoint_every=1", "run.trace_every=1", "student.hidden_size=8",
    "compare.bootstrap_samples=20",
)  # fmt: skip
STRANGE = [None, True, -1, 0, 3, 1e300, 2**70, "", "x", "\ud800", [], [1], {}, {"a": 1}]


def _json(data: bytes, draw: random.Random) -> bytes:
    """Another value, or none, in one place of a JSON object or of a line of JSON."""
    lines = data.decode().splitlines() if b'"kind"' in data else [data.decode()]
    place = draw.randrange(len(lines))
    value: Any = json.loads(lines[place])
    inner = value
    while isinstance(inner, dict) and inner:
        key = draw.choice(sorted(inner))
        if isinstance(inner[key], dict) and inner[key] and draw.random() < 0.7:
            inner = inner[key]
            continue
        if draw.random() < 0.3:
            del inner[key]
        else:
            inner[key] = draw.choice([*STRANGE, float("nan"), float("inf")])
        break
    lines[place] = json.dumps(value)
    return "\n".join(lines).encode()


def _flip(data: bytes, draw: random.Random) -> bytes:
    flipped = bytearray(data or b"x")
    for _ in range(draw.randint(1, 4)):
        flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
    return bytes(flipped)


def _words(data: bytes, draw: random.Random) -> bytes:
    """A cell, key or value in the place of another."""
    parts = data.decode().replace(",", " , ").split(" ")
    parts[draw.randrange(len(parts))] = draw.choice(
        ["nan", "inf", "-1", "", "x", "1e999", "[", "{a: b}", "99", "\x00", "ü"]
    )
    return " ".join(parts).replace(" , ", ",").encode()


DAMAGES: tuple[Damage, ...] = (
    _json, _json, _flip, _words, _words,
    lambda data, draw: data[: draw.randrange(len(data) + 1)],
    lambda data, draw: b"",
    lambda data, draw: draw.randbytes(draw.randint(1, 200)),
    lambda data, draw: data + bytes(draw.randint(1, 4096)),
    lambda data, draw: b"\xff\xfe" + data,
    lambda data, draw: b"[" * 100_000,
    lambda data, draw: data + data,
    lambda data, draw: b"\n".join(data.split(b"\n")[:1]),
)  # fmt: skip


def make_original(root: Path) -> Config:
    """A complete run of two rollouts, and its report."""
    config = load_config([*SMALL, f"run.output_dir={root / 'run'}"])
    with RunFolder(root / "run", config, {"python": "3"}) as recorder:
        _train(config, recorder)
    make_report(root)
    return config


def _train(config: Config, recorder: RunFolder) -> None:
    with TrainingRun(config, TableLlm(), make_env) as run:
        checkpoint = recorder.resume()
        run.start(checkpoint)
        if checkpoint is None:
            recorder.write(run.evaluate())
        while not run.finished:
            trace = run.rollout()
            if trace is not None:
                recorder.trace(trace)
            if run.evaluation_due:
                recorder.write(run.evaluate())
            run.save(recorder)


def damage(root: Path, draw: random.Random) -> list[str]:
    """Damage one to three files; gives what was done."""
    done = []
    for path in draw.sample(
        sorted(path for path in root.rglob("*") if path.is_file()), draw.randint(1, 3)
    ):
        kind = draw.randrange(len(DAMAGES) + 2)
        done.append(f"{path.relative_to(root)} by {kind}")
        if kind >= len(DAMAGES):
            path.unlink()
            if kind > len(DAMAGES):
                path.mkdir()
            continue
        with contextlib.suppress(ValueError, LookupError, UnicodeError):
            path.write_bytes(DAMAGES[kind](path.read_bytes(), draw))
    return done


def read_all(root: Path, config: Config, draws: bool) -> tuple[int, int, list[str]]:
    """Report, viewer, recomputation, state and resume; gives how many were accepted, refused, and
    what else was raised.

    Args:
        root: Of the comparison.
        config: Of its run.
        draws: True has the report's figures drawn too, which takes most of the time.
    """

    def resume() -> None:
        run_state(root / "run")
        with (
            RunFolder(root / "run", config, {}) as recorder,
            TrainingRun(config, TableLlm(), make_env) as run,
        ):
            run.start(recorder.resume())

    accepted, refused, unnamed = 0, 0, []
    for work in (
        lambda: make_report(root) if draws else find(root),
        lambda: make_viewer(root),
        lambda: recompute.main([str(root)]),
        resume,
    ):
        try:
            with (
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                work()
            accepted += 1
        except LamorelExtError:
            refused += 1
        except Exception:
            unnamed.append(traceback.format_exc())
    return accepted, refused, unnamed


def fuzz(cases: int, seed: int) -> tuple[dict[str, int], list[str]]:
    """Damage and read ``cases`` copies of a run folder; gives the counts and what was raised that
    is no documented error.
    """
    logging.disable(logging.CRITICAL)
    accepted = refused = 0
    found: list[str] = []
    try:
        with tempfile.TemporaryDirectory() as place:
            original, root = Path(place, "original"), Path(place, "copy")
            config = make_original(root)
            root.rename(original)
            for case in range(cases):
                shutil.rmtree(root, ignore_errors=True)
                shutil.copytree(original, root)
                done = damage(root, random.Random(f"{seed} {case}"))
                more, fewer, unnamed = read_all(root, config, draws=case % 10 == 0)
                accepted, refused = accepted + more, refused + fewer
                found += [f"case {case}, {'; '.join(done)}:\n{text}" for text in unnamed]
                if cases > 100 and case % 100 == 99:
                    print(
                        f"{case + 1} of {cases}, {len(found)} unnamed", file=sys.stderr, flush=True
                    )
                    print(*(text[-700:] for text in found), file=sys.stderr, flush=True)
    finally:
        logging.disable(logging.NOTSET)
    return {"cases": cases, "accepted": accepted, "refused": refused, "unnamed": len(found)}, found


def main() -> int:
    """Entry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    counts, found = fuzz(options.cases, options.seed)
    for text in found[:20]:
        print(text, file=sys.stderr)
    print(json.dumps(counts))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
