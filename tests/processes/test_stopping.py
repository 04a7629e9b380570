"""How a process ends that was asked to, and who counts as alive and as a rank."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import pytest

from lamorel_ext.errors import ConfigError, EnvWorkerError, RpcError
from lamorel_ext.processes import presence, secret, stopping
from lamorel_ext.processes.identity import Process, process, read, this_process
from lamorel_ext.processes.presence import dead_peer
from lamorel_ext.processes.ranks import rank_and_size

ROOT = Path(__file__).resolve().parents[2]
MEETING = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}

WORK = """
import sys, time
from lamorel_ext.processes import stopping
stopping.begin()
try:
    with stopping.deferring():
        print("working", flush=True)
        while stopping.asked() is None:
            time.sleep(0.01)
        if sys.argv[1] == "never":
            print("asked", flush=True)
            time.sleep(60)
        raise stopping.leave("saved")
except stopping.Stopped as stopped:
    print(stopped, flush=True)
    sys.exit(stopped.stop.exit_status)
"""


def hear_all() -> None:
    """What a background job or ``nohup`` has its children ignore is heard again."""
    for name in (signal.SIGINT, signal.SIGHUP):
        signal.signal(name, signal.SIG_DFL)


def start(argument: str = "") -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", WORK, argument],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=hear_all,
    )
    assert child.stdout is not None and child.stdout.readline() == "working\n"
    return child


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"])
def test_a_signal_ends_deferred_work_where_it_can_end(name: str) -> None:
    child = start()
    child.send_signal(signal.Signals[name])
    said, _ = child.communicate(timeout=60)
    assert said == f"stopped by {name}: saved\n" and child.returncode == 128 + signal.Signals[name]


@pytest.mark.parametrize(
    ("left", "name", "patience_s", "limit_s"),
    [
        ("", "SIGUSR1", 20, 40),
        ("soon", "SIGUSR1", 20, 40),
        ("120", "SIGTERM", 20, 40),
        ("30", "SIGUSR1", 20, 25),
        ("120", "SIGUSR1", 80, 100),
        ("600", "SIGUSR1", 540, 570),
    ],
)
def test_before_a_time_limit_saving_has_the_time_that_is_left(
    monkeypatch: pytest.MonkeyPatch, left: str, name: str, patience_s: float, limit_s: float
) -> None:
    monkeypatch.setenv(stopping.SAVE_S, left)
    stop = stopping.stop_of(signal.Signals[name], " to rank 1")
    assert stop == stopping.Stop(signal.Signals[name], f"{name} to rank 1", patience_s, limit_s)


def test_a_second_signal_ends_work_at_once() -> None:
    child = start("never")
    child.send_signal(signal.SIGTERM)
    assert child.stdout is not None and child.stdout.readline() == "asked\n"
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(1.0)
    child.send_signal(signal.SIGTERM)
    said, _ = child.communicate(timeout=60)
    assert "at once" in said and child.returncode == 143


SLOW_END = """
import atexit, sys, time
from lamorel_ext.processes import stopping
stopping.begin()
from experiments.runs.entry import run_main

class Slow:
    def __del__(self, sleep=time.sleep):
        sleep(60)

slow = Slow()
atexit.register(print, "tidied up", flush=True)

def work(_):
    with stopping.deferring():
        print("working", flush=True)
        while stopping.asked() is None:
            time.sleep(0.01)
        if sys.argv[1] == "complete":
            stopping.settled()
            return 0
        raise stopping.leave("saved")

sys.exit(run_main(work))
"""


@pytest.mark.parametrize(
    ("name", "argument", "status"),
    [("SIGTERM", "", 143), ("SIGUSR1", "", 138), ("SIGTERM", "complete", 0)],
)
def test_the_exit_status_is_the_signals_also_where_pythons_own_end_takes_long(
    name: str, argument: str, status: int
) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", SLOW_END, argument], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdout.readline() == "working\n"
    child.send_signal(signal.Signals[name])
    said, _ = child.communicate(timeout=40)
    assert said == "tidied up\n" and child.returncode == status


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_just_before_the_signals_are_left_to_others_is_not_lost(
    name: str, begun: bool
) -> None:
    code = f"""
import os, signal, sys
from lamorel_ext.processes import stopping
stopping._watch.start()
if {begun}:
    stopping.begin()
sys.setswitchinterval(10)  # the thread that listens has no turn before the main thread waits
os.kill(os.getpid(), signal.{name})
try:
    stopping.release()
except stopping.Stopped as stopped:
    sys.exit(stopped.stop.exit_status)
"""
    ended = subprocess.run([sys.executable, "-c", code], preexec_fn=hear_all, timeout=60)
    assert ended.returncode == 128 + signal.Signals[name]


TIDIES = """
import os, signal, time
class Tidies:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(30)
"""
"""What is raised while an object ends, or an import tidies up, is printed and forgotten."""


def test_an_interrupt_that_was_dropped_is_heard_where_signals_are_left_to_others() -> None:
    code = f"""{TIDIES}
import sys
from lamorel_ext.processes import stopping
stopping.begin()
Tidies()
try:
    stopping.release()
except stopping.Stopped as stopped:
    sys.exit(stopped.stop.exit_status)
"""
    ended = subprocess.run([sys.executable, "-c", code], preexec_fn=hear_all, timeout=60)
    assert ended.returncode == 128 + signal.SIGINT


@pytest.mark.parametrize("deferred", [False, True])
def test_nothing_is_raised_within_an_import(deferred: bool, tmp_path: Path) -> None:
    (tmp_path / "drops.py").write_text(
        "import os, signal, time\n"
        "from lamorel_ext.processes import stopping\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    until = time.monotonic() + 30\n"
        "    while stopping.asked() is None and time.monotonic() < until:\n"
        "        time.sleep(0.01)\n"
        f"    time.sleep({1 if deferred else 30})\n"
        "    print('imported', flush=True)\n"
        "except BaseException:\n"
        "    print('raised', flush=True)\n"
    )
    code = f"""
import contextlib
from lamorel_ext.processes import stopping
from experiments.runs.entry import run_main
def program(argv):
    with stopping.deferring() if {deferred} else contextlib.nullcontext():
        import drops
        raise stopping.leave("saved")
raise SystemExit(run_main(program, []))
"""
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = (
        ("imported\n", "stopped by SIGTERM: saved\n") if deferred else ("", "stopped by SIGTERM\n")
    )
    assert (ended.stdout, ended.stderr) == said
    assert ended.returncode == 128 + signal.SIGTERM


def test_a_deferred_request_interrupts_the_work_now_and_then() -> None:
    code = """
import os, signal, time
from lamorel_ext.processes import stopping
stopping.begin()
heard = []
with stopping.deferring():
    signal.signal(signal.SIGALRM, lambda *_: heard.append(0))
    began = time.monotonic()
    os.kill(os.getpid(), signal.SIGTERM)
    while not heard and time.monotonic() < began + 20:
        time.sleep(0.01)
    time.sleep(1)
    print(len(heard), time.monotonic() - began, flush=True)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    times, seconds = map(float, ended.stdout.split())
    assert 1 <= times <= 4 + 4 * seconds, ended.stderr


@pytest.mark.parametrize("start", ["a command", "-m", "their own file", "-m of their own"])
def test_only_a_program_of_ours_ends_without_pythons_own_end(tmp_path: Path, start: str) -> None:
    """A file that was left open is written out all the same."""
    ours = start in ("a command", "-m")
    program = f"""
from experiments.runs.entry import run_main
class Freed:
    def __del__(self):
        print("freed", flush=True)
freed = Freed()
rows = open("rows.csv", "w")
rows.write("success,0.5")
sys.argv[1:] = []
status = run_main(lambda argv: 3)
sys.exit(status if {ours} else 4)
"""
    package = tmp_path / ("experiments" if start == "-m" else "mylab")
    package.mkdir()
    (package / "__init__.py").write_text("import experiments")
    (package / "sweep.py").write_text(f"import sys{program}")
    name = "lamorel-ext-train" if start == "a command" else "mine.py"
    code = ["-c", f"import sys; sys.argv[0] = {name!r}; import experiments{program}"]
    words = ["-m", f"{package.name}.sweep"] if start.startswith("-m") else code
    if start == "-m":  # of the package that is imported first, the rest being ours
        (package / "__init__.py").write_text(
            f"__path__.append({str(ROOT / 'experiments')!r})\n"
            "from lamorel_ext.processes.stopping import listen_early\nlisten_early()"
        )
    ended = subprocess.run(
        [sys.executable, *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.stdout, ended.returncode) == (("", 3) if ours else ("freed\n", 4)), ended.stderr
    assert (tmp_path / "rows.csv").read_text() == "success,0.5"


@pytest.mark.parametrize("fails", [False, True])
def test_whoever_has_lost_their_reader_ends_as_they_would_have(fails: bool) -> None:
    code = f"""
import sys
sys.argv[:] = ["lamorel-ext-train"]
import experiments
from experiments.runs.entry import run_main, say
from lamorel_ext.errors import ConfigError
def program(argv):
    say("run: runs/mine")
    say("run: runs/another")
    if {fails}:
        raise ConfigError("no such key")
    return 0
sys.exit(run_main(program))
"""
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, "-c", code]
    ended = subprocess.run(words, cwd=ROOT, stdout=write, stderr=write, timeout=60)
    os.close(write)
    assert ended.returncode == (2 if fails else 0)


def test_an_interrupt_that_a_library_dropped_is_no_mistake_of_the_users() -> None:
    code = f"""{TIDIES}
import sys
from experiments.runs.entry import run_main
from lamorel_ext.errors import ConfigError
def program(argv):
    Tidies()
    raise ConfigError("half a configuration")
sys.exit(run_main(program, []))
"""
    ended = subprocess.run(
        [sys.executable, "-c", code],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_all,
        timeout=60,
    )
    assert ended.returncode == 128 + signal.SIGINT
    assert ended.stderr.endswith("stopped by SIGINT\n") and "half" not in ended.stderr


def test_an_interrupt_ends_the_agent_whatever_its_imports_do(tmp_path: Path) -> None:
    folder = tmp_path / "accelerate" / "commands"
    folder.mkdir(parents=True)
    for each in (folder, folder.parent):
        (each / "__init__.py").touch()
    (folder / "launch.py").write_text(f"{TIDIES}\nTidies()\nraise SystemExit('went on')\n")
    root = Path(__file__).resolve().parents[2]
    code = "from launchers import elastic; elastic.main()"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_all,
        timeout=60,
    )
    assert ended.returncode == -signal.SIGINT and not ended.stderr


def test_an_interrupt_during_imports_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import sys; sys.argv[0] = 'lamorel-ext-train'\nimport experiments\n"
        "print('importing', flush=True)\nimport time; time.sleep(60)\n"
    )
    root = Path(__file__).resolve().parents[2]
    child = subprocess.Popen(
        [sys.executable, str(tmp_path / "slow.py")],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert child.stdout is not None and child.stdout.readline() == "importing\n"
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=20)
    assert errors == "stopped by SIGINT\n" and child.returncode == 130


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"RANK": "0", "WORLD_SIZE": "1"},
        {"WORLD_SIZE": "1"},
        {"WORLD_SIZE": "", "RANK": ""},
        {"RANK": "0"},
        {"LOCAL_RANK": "3", "SLURM_PROCID": "2", "SLURM_NTASKS": "4"},
    ],
)
def test_one_process_is_one_process(variables: dict[str, str]) -> None:
    assert rank_and_size(variables) is None


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"RANK": "1", "WORLD_SIZE": "1", **MEETING}, "WORLD_SIZE=1 and RANK=1"),
        ({"WORLD_SIZE": "3", **MEETING}, "WORLD_SIZE=3 and no RANK"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "no MASTER_ADDR and no MASTER_PORT"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE='two'"),
    ],
)
def test_a_contradiction_names_the_variables(variables: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        rank_and_size(variables)


def test_a_rank_of_a_launch_is_known() -> None:
    assert rank_and_size({"RANK": "2", "WORLD_SIZE": "3", **MEETING}) == (2, 3)


def test_a_zombie_is_dead_and_a_number_used_again_is_another_process() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    found = process(child.pid)
    assert found.alive and read(found.text) == found
    assert not Process(child.pid, found.started - 1, found.space).alive
    child.kill()
    os.waitid(
        os.P_PID, child.pid, os.WEXITED | os.WNOWAIT
    )  # dead, but nobody has asked for its status
    assert not found.alive
    child.communicate()


@pytest.mark.parametrize(
    ("name", "text", "age_s", "stays"),
    [
        ("launch-1-rank-0", "dead", 0, False),
        ("launch-1-machine-1", "dead", 0, False),
        ("launch-1-machine-0", "this one", 0, False),
        ("launch-1-rank-0", "alive", 0, True),
        ("launch-2-rank-0", "dead", 0, True),  # of this launch: it is being written
        ("launch-1-rank-0", "out of sight", 0, True),
        ("launch-1-rank-0", "out of sight", 2 * presence.OLD_S, False),
        ("launch-1-rank-0", "", 0, True),  # nothing stands in it yet
        ("secret-1", "0" * 64, 0, True),
        ("secret-1", "0" * 64, 2 * presence.OLD_S, False),
        ("another file", "dead", 2 * presence.OLD_S, True),
    ],
)
def test_what_killed_processes_have_left_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, age_s: float, stays: bool
) -> None:
    monkeypatch.setenv("MASTER_PORT", "2")
    child = subprocess.Popen(["true"])
    dead = process(child.pid)
    child.wait()
    kinds = {
        "dead": dead.text,
        "this one": this_process().text,
        "alive": process(os.getppid()).text,
        "out of sight": dataclasses.replace(dead, space="another").text,
    }
    path = tmp_path / name
    path.write_text(kinds.get(text, text))
    os.utime(path, (time.time() - age_s,) * 2)
    presence.tidy(tmp_path)
    assert path.exists() is stays


def test_a_peer_counts_as_dead_only_once_it_was_seen_alive(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    files = {1: tmp_path / "one", 2: tmp_path / "two"}
    files[1].write_text(process(child.pid).text)
    files[2].write_text(
        Process(this_process().pid, 1, this_process().space).text
    )  # of an earlier launch
    seen: dict[int, Process] = {}
    assert dead_peer(files, seen) is None and set(seen) == {1}
    child.kill()
    child.communicate()
    assert dead_peer(files, seen) == 1


def test_a_secret_is_read_only_where_nobody_else_could(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    written = secret.write_secret("one")
    path = secret.private_folder() / "one"
    assert secret.read_secret("one") == written and path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    with pytest.raises(RpcError, match="does not belong to this user alone"):
        secret.read_secret("one")
    secret.remove_secret("one")
    with pytest.raises(RpcError, match="export LAMOREL_EXT_TOKEN"):
        secret.read_secret("one")
    secret.private_folder().chmod(0o755)
    with pytest.raises(RpcError, match="does not belong to this user alone"):
        secret.private_folder()


def test_several_machines_need_a_secret_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(secret.VARIABLE, raising=False)
    assert secret.secret_of_environment(one_machine=True) is None
    with pytest.raises(ConfigError, match="LAMOREL_EXT_TOKEN is not set"):
        secret.secret_of_environment(one_machine=False)
    monkeypatch.setenv(secret.VARIABLE, "short")
    with pytest.raises(ConfigError, match="5 characters, expected at least 16"):
        secret.secret_of_environment(one_machine=True)
    monkeypatch.setenv(secret.VARIABLE, os.fsdecode(b"\xff" * 16))  # random bytes as they are
    assert secret.secret_of_environment(one_machine=False) == sha256(b"\xff" * 16).digest()


FAILING = """
import sys, time
from lamorel_ext.processes import stopping
stopping.begin()
try:
    with stopping.deferring(follows=sys.argv[1] == "follows"):
        print("working", flush=True)
        while stopping.asked() is None:
            time.sleep(0.01)
        if sys.argv[1] == "follows":
            time.sleep(1.5)
            print("followed", flush=True)
            sys.exit(3)
        raise OSError("the disk is full")
except OSError as error:
    time.sleep(1.0)  # it is noted, and nothing comes between
    print(f"noted: {error}", flush=True)
    sys.exit(1)
"""


def ended(argument: str, patience_s: float = 20.0) -> tuple[str, int]:
    script = FAILING.replace(
        "stopping.begin()",
        f"stopping.begin(); stopping.Stop.__init__.__defaults__ = ({patience_s}, 100.0)",
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, argument], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdout.readline() == "working\n"
    child.send_signal(signal.SIGTERM)
    said, _ = child.communicate(timeout=120)
    return said, child.returncode


def test_a_failure_on_its_way_out_is_not_replaced_by_the_request_to_end() -> None:
    assert ended("fails") == ("noted: the disk is full\n", 1)


def test_who_is_needed_by_others_outlasts_its_own_patience() -> None:
    assert ended("follows", patience_s=0.2) == ("followed\n", 3)


@pytest.mark.parametrize("error", [RpcError("is gone\nmore"), EnvWorkerError(0, "is gone", "more")])
def test_servers_and_workers_that_end_first_as_asked_are_no_failure(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lamorel_ext.training import loop

    monkeypatch.setattr(stopping, "asked", lambda: stopping.Stop(signal.SIGHUP, "SIGHUP"))
    with (
        pytest.raises(stopping.Stopped, match="gone; the last checkpoint stands"),
        loop._ending_together(),
    ):
        raise error
    monkeypatch.setattr(stopping, "asked", lambda: None)
    with pytest.raises(type(error)), loop._ending_together():
        raise error


def test_whoever_has_lost_their_reader_is_ended_all_the_same() -> None:
    code = """
import os, signal, time
from lamorel_ext.processes import stopping
stopping._watch.start()
read, write = os.pipe()
os.close(read)
os.dup2(write, 2)
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(30)
"""
    ended = subprocess.run([sys.executable, "-c", code], timeout=60)
    assert ended.returncode == 128 + signal.SIGTERM


def test_a_forked_process_hears_for_itself() -> None:
    code = """
import os, signal, time
from lamorel_ext.processes import stopping
stopping.begin()
read, write = os.pipe()
with stopping.deferring():
    if not (child := os.fork()):
        os.write(write, b"here")
        time.sleep(30)
        os._exit(0)
    os.read(read, 4)
    os.kill(child, signal.SIGTERM)
    _, status = os.waitpid(child, 0)
    time.sleep(0.5)
    print(os.waitstatus_to_exitcode(status), stopping.asked())
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.stdout == f"{-signal.SIGTERM} None\n", ended.stderr


@pytest.mark.parametrize("launched", [False, True])
def test_only_a_rank_waits_for_another_to_end_first(
    launched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "ANOTHER_S", 0.2)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if launched:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    started = time.monotonic()
    stopping.let_another_end_first()
    assert (time.monotonic() - started >= 0.2) == launched


def test_of_two_signals_that_came_together_the_warning_was_first() -> None:
    code = """
import os, signal, time
from lamorel_ext.processes import stopping
both = {signal.SIGUSR1, signal.SIGTERM}
signal.pthread_sigmask(signal.SIG_BLOCK, both)
stopping.begin()
with stopping.deferring():
    for each in both:
        os.kill(os.getpid(), each)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, both)
    while stopping.asked() is None:
        time.sleep(0.01)
    print(stopping.asked().why)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.stdout == "SIGUSR1\n", ended.stderr
