"""What the console says while a run goes on: a drawn line on a terminal, quiet lines elsewhere."""

import io
import logging
from collections.abc import Iterator

import pytest

from experiments.runs.entry import start_log
from experiments.runs.progress import Ticker

MEASURED = {"success": 0.25, "return": 0.125, "env_steps": 32.0}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def same_log_afterwards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    root, names = logging.getLogger(), ("", "experiments", "lamorel_ext", "__main__")
    kept, levels = root.handlers[:], [logging.getLogger(name).level for name in names]
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    yield
    root.handlers[:] = kept
    for name, level in zip(names, levels, strict=True):
        logging.getLogger(name).setLevel(level)


def told(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, level: str = "info") -> str:
    """What a run of three rollouts leaves on standard error, with a line of the log between."""
    monkeypatch.setattr("sys.stderr", stream)
    start_log(level)
    now = [0.0]
    ticker = Ticker(96, clock=lambda: now[0])
    for done in (32, 64, 96):
        now[0] += 1.0
        ticker.tell("a", done, 96, MEASURED)
        if done == 32:
            logging.getLogger("experiments.x").warning("beware")
    return stream.getvalue()


def test_a_terminal_has_one_line_that_is_drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    text = told(Terminal(), monkeypatch)
    first = "a: 32 of 96 steps, success 0.250, return 0.125, about 2 s left in all"
    assert text.startswith(f"\r\x1b[2K{first}\r\x1b[2Kbeware\n{first}\r\x1b[2Ka: 64 of 96")
    assert text.endswith("\r\x1b[2Ka: 96 of 96 steps, success 0.250, return 0.125\n")


def test_without_a_terminal_lines_are_few_and_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(io.StringIO(), monkeypatch).splitlines() == [
        "a: 32 of 96 steps, success 0.250, return 0.125, about 2 s left in all",
        "beware",
        "a: 96 of 96 steps, success 0.250, return 0.125",
    ]


def test_a_terminal_that_cannot_draw_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in told(Terminal(), monkeypatch)


def test_a_log_that_wants_warnings_only_has_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(Terminal(), monkeypatch, "warning") == "beware\n"


def test_what_was_not_measured_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="experiments"):
        Ticker(10, clock=lambda: 1.0).tell("a", 10, 10, {"success": float("nan"), "return": 0.5})
    assert caplog.messages == ["a: 10 of 10 steps, return 0.500"]


def test_a_run_outlives_the_terminal_that_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(Terminal):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(logging, "raiseExceptions", False)  # logging's own complaint about it
    told(Gone(), monkeypatch)
