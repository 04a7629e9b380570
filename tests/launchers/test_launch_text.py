"""Launch texts: against golden files, against a fake cluster, and with real ranks."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.runs.planning import plan
from lamorel_ext.config import Config, load_config, save_config
from lamorel_ext.errors import CheckpointError, ConfigError, LamorelExtError
from lamorel_ext.processes import stopping
from lamorel_ext.processes.identity import process, this_process
from lamorel_ext.processes.secret import VARIABLE
from lamorel_ext.processes.stopping import SAVE_S
from launchers import elastic
from launchers.__main__ import launch
from launchers.command import (
    Command,
    accelerate_arguments,
    accelerate_launch,
    machine_commands,
    one_process,
)
from launchers.local import child_environment, run_here
from launchers.slurm import SlurmOptions, array_script, batch_script, report_script
from launchers.submit import Job, submit

GOLDEN = Path(__file__).parent / "golden"
THREE_NODES = [
    "lamorel_args.accelerate_args.num_machines=3",
    "lamorel_args.llm_args.parallelism.use_gpu=true",
]
ROOT = Path(__file__).parents[2]


def demo(*overrides: str) -> Config:
    return load_config(overrides, "demo")


def arguments(*overrides: str) -> list[str]:
    return ["--config-name", "demo", *overrides]


# --- golden files ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "local.txt",
            accelerate_launch(demo(), "compare", arguments("feedback.loss=clipped")).shell() + "\n",
        ),
        (
            "one_node.sbatch",
            batch_script(
                demo(),
                "compare",
                arguments(),
                SlurmOptions(
                    {"time": "02:00:00", "output": "log.txt", "exclusive": None},
                    setup=("module load cuda", "conda activate me"),
                    srun=("--container-image=my image.sqsh",),
                    save_before_limit_s=120,
                ),
            ),
        ),
        (
            "three_nodes.sbatch",
            batch_script(demo(*THREE_NODES), "compare", arguments(*THREE_NODES)),
        ),
        (
            "array.sbatch",
            array_script(
                demo("compare.seeds=[0,4]"),
                "compare",
                arguments("compare.seeds=[0,4]"),
                SlurmOptions(max_concurrent=3),
            ),
        ),
        (
            "evaluation.sbatch",
            array_script(
                demo("compare.seeds=[0,4]"), "evaluate", arguments("compare.seeds=[0,4]", "a=1")
            ),
        ),
        ("report.sbatch", report_script(demo(), SlurmOptions({"time": "9", "gres": "gpu:1"}))),
    ],
)
def test_the_text_is_the_golden_one(name: str, text: str) -> None:
    assert text == (GOLDEN / name).read_text()


def test_a_dry_run_prints_ranks_command_and_script_and_starts_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert launch(["--dry-run", "compare", "--config-name", "demo"]) == 0
    printed = capsys.readouterr().out
    assert "2     llm server 1  0     2           cpu" in printed
    assert accelerate_launch(demo(), "compare", arguments()).shell() in printed
    here = SlurmOptions(python=sys.executable)
    assert batch_script(demo(), "compare", arguments(), here).rstrip() in printed


# --- the command line -----------------------------------------------------------------------------


def test_several_machines_meet_at_the_address_given() -> None:
    config = demo(
        "lamorel_args.accelerate_args.num_machines=3",
        "lamorel_args.accelerate_args.machine_rank=2",
        "lamorel_args.accelerate_args.main_process_ip=10.0.0.5",
        "lamorel_args.accelerate_args.main_process_port=29501",
    )
    words = accelerate_arguments(config)
    pairs = dict(zip(words, words[1:], strict=False))
    assert (pairs["--num_processes"], pairs["--num_machines"], pairs["--machine_rank"]) == (
        "3",
        "3",
        "2",
    )
    assert (pairs["--main_process_ip"], pairs["--main_process_port"]) == ("10.0.0.5", "29501")


@pytest.mark.parametrize(("patience_s", "waits_s"), [(300, 300), (900, 900), (10, 60)])
def test_machines_wait_for_each_other_as_long_as_for_a_silent_one(
    patience_s: int, waits_s: int
) -> None:
    words = accelerate_arguments(
        demo(
            "lamorel_args.accelerate_args.num_machines=3",
            f"lamorel_args.peer_timeout={patience_s}",
            "lamorel_args.accelerate_args.main_process_port=29501",
        )
    )
    assert words[words.index("--rdzv_conf") + 1] == f"timeout={waits_s}"


@pytest.mark.parametrize(
    ("machine", "machines", "listens", "said"),
    [
        (
            0,
            2,
            True,
            "machine 0 ({host}) waits at 127.0.0.1:{port} for the other one of 2 machines",
        ),
        (0, 3, True, "for the others of 3 machines; there main_process_ip must lead here: "),
        (
            1,
            3,
            True,
            "machine 1 ({host}) waits at 127.0.0.1:{port} (127.0.0.1) for others of the 3",
        ),
        (2, 3, False, "machine 2 ({host}) waits for machine 0 to listen at 127.0.0.1:{port}: "),
    ],
)
def test_a_machine_says_what_it_waits_for(
    machine: int, machines: int, listens: bool, said: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
        if not listens:
            door.close()
        found = elastic._who_waits(
            argparse.Namespace(
                machine_rank=machine,
                num_machines=machines,
                main_process_ip="127.0.0.1",
                main_process_port=port,
            )
        )
    assert said.format(host=socket.gethostname(), port=port) in found


def test_a_folder_that_is_not_the_users_alone_is_said_before_machines_of_one_host_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / f"lamorel_ext-{os.geteuid()}").mkdir(mode=0o755)
    meeting = argparse.Namespace(
        machine_rank=0, num_machines=2, main_process_ip="127.0.0.1", main_process_port=29501
    )
    assert "does not belong to this user alone" in elastic._meeting_problem(meeting)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "accelerate cannot read"),
        ("distributed_type: [", "accelerate cannot read"),
        ("distributed_type: NO\nmixed_precision: 'no'\nmine: 1\n", "unknown keys"),
        ("distributed_type: NO\nmixed_precision: 'no'\n", ""),
    ],
)
def test_a_file_that_accelerate_cannot_read_is_named_with_its_key(
    text: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    found = elastic._file_problem(str(path))
    assert said in found and bool(found) == bool(said)
    assert not found or found.startswith("lamorel_args.accelerate_args.config_file: ")


def test_a_file_of_accelerates_that_is_not_there_ends_the_launch_with_one_line(
    capfd: pytest.CaptureFixture[str],
) -> None:
    command = Command(("accelerate", "launch", "--config_file", "missing.yaml", "no.py"))
    assert run_here(command) == 2
    assert capfd.readouterr().err == (
        "launch: lamorel_args.accelerate_args.config_file: there is no file missing.yaml\n"
    )


NINE_PROCESSES = [
    "lamorel_args.distributed_setup_args.n_llm_processes=8",
    "lamorel_args.accelerate_args.num_machines=2",
]


def test_uneven_machines_are_each_told_their_own_share(tmp_path: Path) -> None:
    # accelerate starts num_processes / num_machines on each: 10 / 2 and 8 / 2.
    port = "lamorel_args.accelerate_args.main_process_port=20000"
    commands = machine_commands(demo(*NINE_PROCESSES, port), "train", arguments(*NINE_PROCESSES))
    assert [each.argv[each.argv.index("--num_processes") + 1] for each in commands] == ["10", "8"]
    assert [each.argv[each.argv.index("--machine_rank") + 1] for each in commands] == ["0", "1"]
    assert commands[1].argv[-1] == "lamorel_args.accelerate_args.machine_rank=1"

    script = batch_script(demo(*NINE_PROCESSES), "train", arguments(*NINE_PROCESSES))
    assert "#SBATCH --cpus-per-task=5\n" in script
    started = run_on_fake_cluster(script, tmp_path, FAKE_NODES="2")
    assert ["--num_processes 10 " in line for line in started] == [True, False]
    assert ["--num_processes 8 " in line for line in started] == [False, True]


def test_a_dry_run_prints_the_line_of_every_machine(capsys: pytest.CaptureFixture[str]) -> None:
    port = "lamorel_args.accelerate_args.main_process_port=20000"
    assert launch(["--dry-run", "train", "--config-name", "demo", *NINE_PROCESSES, port]) == 0
    printed = capsys.readouterr().out
    assert all(f"# on machine {number}\n" in printed for number in (0, 1))
    assert (
        "machine: export LAMOREL_EXT_TOKEN=..." in printed
        and "8     llm server 7  1     3" in printed
    )
    # Slurm gives them a port; by hand there is none yet.
    assert launch(["--dry-run", "train", "--config-name", "demo", *NINE_PROCESSES]) == 0
    printed = capsys.readouterr().out
    assert "# by hand: lamorel_args.accelerate_args.main_process_port: must be" in printed
    assert "main_port=$((10000 + SLURM_JOB_ID % 20000))" in printed


def test_a_node_has_every_gpu_up_to_the_last_one_in_use() -> None:
    by_hand = demo(
        "lamorel_args.llm_args.parallelism.use_gpu=true",
        "lamorel_args.distributed_setup_args.devices_per_process=[[0],[3]]",
    )
    assert "#SBATCH --gpus-per-node=4\n" in batch_script(by_hand, "train", [])


def test_servers_on_gpus_are_not_kept_off_them() -> None:
    assert accelerate_launch(demo(), "train", []).environment == {"ACCELERATE_USE_CPU": "true"}
    assert (
        accelerate_launch(
            demo("lamorel_args.llm_args.parallelism.use_gpu=true"), "train", []
        ).environment
        == {}
    )


def test_a_client_with_a_gpu_is_not_kept_off_it() -> None:
    config = load_config(
        [
            *("agent._target_=mine.Agent", "arm.teacher=none", "feedback.signal=none"),
            "lamorel_args.distributed_setup_args.client_devices=[2]",
        ]
    )
    assert accelerate_launch(config, "train", []).environment == {}
    assert "#SBATCH --gpus-per-node=3\n" in batch_script(config, "train", [])


def test_who_starts_only_a_part_of_the_ranks_makes_no_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or another launcher: ``alias`` starts Lamorel's own, perhaps one of several."""
    monkeypatch.delenv(VARIABLE, raising=False)
    port = "lamorel_args.accelerate_args.main_process_port=20000"
    several = machine_commands(demo(*NINE_PROCESSES, port), "train", [])
    alias = Command(("python", "-m", "lamorel_launcher.launch"))
    commands = (accelerate_launch(demo(), "train", []), *several, alias)
    assert [VARIABLE in child_environment(each) for each in commands] == [True] + [False] * 3


def test_the_ranks_end_with_any_of_the_launchers_above_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``alias`` starts Lamorel's own; who has ended already started nothing of this."""
    outer, ended = process(1).text, dataclasses.replace(this_process(), started=1).text
    monkeypatch.setenv(stopping.PARENTS, f"{outer},{ended}")
    named = child_environment(Command(("a",)))[stopping.PARENTS]
    assert named == f"{outer},{this_process().text}"


def test_an_accelerate_config_file_comes_first() -> None:
    words = accelerate_arguments(demo("lamorel_args.accelerate_args.config_file=my.yaml"))
    assert words[:2] == ["--config_file", "my.yaml"]


def test_one_process_goes_without_accelerate() -> None:
    assert one_process("train", ["run.seed=1"]).argv == (
        "python",
        "-m",
        "lamorel_ext",
        "train",
        "run.seed=1",
    )


def test_words_with_spaces_survive_the_shell() -> None:
    command = Command(("echo", "a b", "$x"), {"y": "1 2"})
    assert (
        subprocess.run(
            ["bash", "-c", command.shell()], capture_output=True, text=True, check=True
        ).stdout
        == "a b $x\n"
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["compare", "run.total_step=3"],
            "run.total_step: unknown key (did you mean total_steps?)",
        ),
        (["compare", "compare.arms=[llm_polic]"], "arm=llm_polic: no such file in"),
        (
            ["compare", "lamorel_args.accelerate_args.num_machines=3"],
            "2 processes cannot be shared among 3 machines",
        ),
        (
            ["compare", "lamorel_args.distributed_setup_args.n_llm_processes=0"],
            "n_llm_processes: must be between 1 and 65536, got 0",
        ),
        (
            ["compare", "lamorel_args.accelerate_args.num_machines=2"],
            "main_process_port: must be a fixed port",
        ),
        (
            ["compare", "lamorel_args.accelerate_args.machine_rank=1"],
            "machine_rank: must be between 0 and 0, got 1",
        ),
        (["compare", "feedback.every=1"], "weighted needs the whole rollout"),
        (["compare", "arm=llm_policy"], "arm=llm_policy: a comparison sets this itself"),
        (
            ["compare", "env.level=BabyAI-GoToLoca-v0"],
            "env.level: no level 'BabyAI-GoToLoca-v0'; did you mean",
        ),
        (
            ["--slurm", "train", "task=go_to_local", "run.evaluation=exact"],
            "run.evaluation: exact is not possible",
        ),
        (
            ["--slurm-array", "compare", "task=go_to_local", "env.backend=table"],
            "env.backend: the table backend knows",
        ),
        (["evaluate", "policy=a", "policy=b"], "policy: one at a time, got a, b"),
        (["--slurm-array", "compare", "run.seed=3"], "run.seed=3: an array sets this itself"),
        (
            [
                "--slurm-array",
                "compare",
                "compare.arms=[student_alone,"
                "'teacher_frozen+lamorel_args.distributed_setup_args.n_llm_processes=4']",
            ],
            "lamorel_args.distributed_setup_args: the jobs of one array start alike, but"
            " student_alone has",
        ),
        (["--slurm-array", "evaluate", "arm=bot"], "arm=bot: an array sets this itself"),
        (["--slurm-array", "evaluate", "policy=a"], "policy=a: an array sets this itself"),
        (["--slurm", "--sbatch", "time=", "compare"], "--sbatch time=: expected KEY=VALUE"),
        (["--slurm", "--sbatch=-p", "compare"], "with sbatch's long names"),
        (["--slurm", "--sbatch", "comment=a\nb", "compare"], "expected KEY=VALUE"),
        (["--submit", "compare"], "need --slurm, --slurm-array or --slurm-report"),
        (["--slurm", "--chain=2", "compare"], "--chain: needs --submit"),
        (["--slurm", "--max-concurrent=2", "compare"], "--max-concurrent: needs --slurm-array"),
        (["--slurm", "--save-before-limit=-1", "compare"], "must be at least 0, got -1"),
        (["train", "--trust", "mine", "--dry-run"], "--trust: only evaluate reads a run folder"),
    ],
)
def test_a_mistake_is_reported_before_any_rank_starts(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        launch(argv)
    assert message in str(caught.value)


def test_a_trained_policy_can_be_evaluated_on_several_ranks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(
        "lamorel_args: {distributed_setup_args: {n_llm_processes: 3}}\n"
    )
    assert launch(["evaluate", f"policy={tmp_path}", "--dry-run"]) == 0
    assert (
        "--num_processes 4 --num_machines 1 --main_process_port 0 "
        "--mixed_precision no --dynamo_backend no"
    ) in capsys.readouterr().out
    with pytest.raises(CheckpointError, match="neither zero_shot nor a run folder"):
        launch(["evaluate", f"policy={tmp_path / 'none'}", "--dry-run"])


def test_a_mistake_ends_with_one_message_and_no_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "launchers", "compare", "model=gpt9"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(
        "error: 1 problem in the configuration:\n  - model=gpt9: no such file"
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "line, started",
    [
        ("compare -m arm=random,npae run.seed=0,1",
         ["'compare.arms=['\"'\"'random'\"'\"','\"'\"'npae'\"'\"']' 'compare.seeds=[0,1]' "
          "'compare.output_dir='\"'\"'out'\"'\"''"]),
        ("compare -m compare.arms=[random] student.lr=1e-3,3e-4",
         ["student.lr=0.001 'compare.output_dir='\"'\"'out/student.lr=0.001'\"'\"''",
          "student.lr=0.0003 'compare.output_dir='\"'\"'out/student.lr=0.0003'\"'\"''"]),
        ("train --multirun arm=random,npae",
         ["arm=random 'run.output_dir='\"'\"'out/arm=random'\"'\"''",
          "arm=npae 'run.output_dir='\"'\"'out/arm=npae'\"'\"''"]),
    ],
)  # fmt: skip
def test_a_sweep_is_a_launch_for_each_value(
    line: str, started: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    task = line.split()[0]
    place = "compare.output_dir=out" if task == "compare" else "run.output_dir=out"
    assert launch(["--dry-run", *line.split(), place]) == 0
    text = capsys.readouterr().out
    found = [row for row in text.splitlines() if row.startswith("ACCELERATE_USE_CPU")]
    assert len(found) == len(started)
    for row, words in zip(found, started, strict=True):
        assert row.endswith(words) and f"-m lamorel_ext {task} " in row


@pytest.mark.parametrize("task", ["train", "compare"])
def test_an_array_of_a_sweep_lies_in_a_comparisons_folder(
    task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"{task} -m student.lr=1e-3,3e-4 --slurm-array --submit compare.output_dir=out"
    assert launch(["--dry-run", *line.split()]) == 0
    text = capsys.readouterr().out
    assert "out/student.lr=0.001" in text and "out/student.lr=0.0003" in text


@pytest.mark.parametrize(
    "line, words",
    [
        ("evaluate -m run.seed=0,1", "-m: evaluate has one policy at a time"),
        ("compare --slurm -m student.lr=1e-3,3e-4", "-m: 2 batch scripts; --submit hands in each"),
        ("train -m student.lr=1e-3,-1", "student.lr=-1: student.lr: must"),
        ("compare -m arm=npae,nobody", "arm=nobody: no such file"),
    ],
)
def test_a_sweep_that_cannot_be_launched_is_refused(line: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        launch(line.split())
    assert words in str(caught.value)


def test_launchers_never_import_torch() -> None:
    code = (
        "import sys, launchers.__main__, launchers.elastic; "
        "sys.exit(any(name.split('.')[0] in ('torch', 'transformers', 'accelerate') "
        "for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# --- a fake cluster -------------------------------------------------------------------------------

SRUN = """#!/usr/bin/env bash
[ "$1 $2" = "--cpus-per-task=7 --kill-on-bad-exit=1" ] || exit 1
shift 2
for node in $(seq 0 $((FAKE_NODES - 1))); do SLURM_NODEID=$node "$@" & done
wait
"""
PYTHON = """#!/usr/bin/env bash
[ "$1 $2 $3" = "-m lamorel_ext elastic" ] || exit 1
shift 3
echo "$SLURM_NODEID $ACCELERATE_USE_CPU: $*" >> "$FAKE_LOG"
"""


def run_on_fake_cluster(script: str, folder: Path, **environment: str) -> list[str]:
    """Run a batch script with ``srun``, ``scontrol`` and ``python`` replaced; gives what each
    node would start, in order.
    """
    programs = {
        "srun": SRUN,
        "scontrol": "#!/usr/bin/env bash\nseq -f 'node%g' 7 20000\n",
        "python": PYTHON,
    }
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    log = folder / "log.txt"
    job = {
        "SLURM_JOB_ID": "123456",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_CPUS_PER_TASK": "7",
        "FAKE_LOG": str(log),
        **environment,
    }
    subprocess.run(
        ["bash", "-c", script],
        env={"PATH": f"{folder}:{os.environ['PATH']}", **job},
        check=True,
        timeout=30,
    )
    return sorted(log.read_text().splitlines())


def test_each_node_starts_its_share_and_meets_the_others_at_the_first_node(tmp_path: Path) -> None:
    script = batch_script(
        demo("lamorel_args.accelerate_args.num_machines=3"),
        "compare",
        arguments("compare.name=two words"),
    )
    started = run_on_fake_cluster(script, tmp_path, FAKE_NODES="3")
    assert [line[:1] for line in started] == ["0", "1", "2"]
    for node, line in enumerate(started):
        # The port follows from the job's number: 10000 + 123456 % 20000.
        assert (
            f"--num_machines 3 --machine_rank {node} --main_process_ip node7 "
            "--rdzv_conf timeout=300 --main_process_port 13456"
        ) in line
        assert line.endswith("-m lamorel_ext compare --config-name demo compare.name=two words")


def test_an_array_covers_every_arm_and_seed_once(tmp_path: Path) -> None:
    overrides = ["compare.arms=[llm_policy,student_alone]", "compare.seeds=[0,4,7]"]
    script = array_script(demo(*overrides), "compare", arguments(*overrides))
    assert "#SBATCH --array=0-5\n" in script
    for task in range(6):
        run_on_fake_cluster(script, tmp_path, FAKE_NODES="1", SLURM_ARRAY_TASK_ID=str(task))
    ends = {
        line.split("seeds=[0,4,7] ")[1] for line in (tmp_path / "log.txt").read_text().splitlines()
    }
    expected = {
        f"arm={arm} run.seed={seed} run.output_dir=runs/demo/{arm}/seed_{seed}"
        " compare.arms=[llm_policy,student_alone]"
        for arm in ("llm_policy", "student_alone")
        for seed in (0, 4, 7)
    }
    assert ends == expected


def test_an_experiments_file_may_be_called_like_a_key_that_an_array_sets() -> None:
    assert "policy=$folder" in array_script(demo(), "evaluate", ["--config-name", "policy"])


def test_a_run_is_evaluated_with_what_the_experiments_file_sets_over_a_groups(
    tmp_path: Path,
) -> None:
    (tmp_path / "mine.yaml").write_text(
        "defaults: [default, _self_]\n"
        "env: {num_distractors: 2}\n"
        "lamorel_args: {llm_args: {value_head_hidden: 64}}\n"
    )
    own = ["model=embedded", "task=go_to_local", "run.eval_episodes=50"]
    config = load_config([*own, "arm=llm_policy"], "mine", tmp_path)
    save_config(config, tmp_path / "config.yaml")
    script = array_script(config, "evaluate", ["--config-name", "mine", *own])
    words = shlex.split(script.split('"policy=$folder" ')[1])
    evaluated = load_config(words, "config", tmp_path)
    assert evaluated.lamorel_args == config.lamorel_args
    assert evaluated.env == config.env
    assert evaluated.run.eval_episodes == 50


def test_an_array_over_tasks_covers_every_task_arm_and_seed_once(tmp_path: Path) -> None:
    overrides = [
        "compare.tasks=[go_to_local,open_door]",
        "compare.arms=[llm_policy,student_alone,teacher_frozen]",
        "compare.seeds=[0,4]",
    ]
    script = array_script(
        load_config([*overrides, "task=go_to_local"], "demo"), "compare", arguments(*overrides)
    )
    assert "#SBATCH --array=0-11\n" in script
    for task in range(12):
        run_on_fake_cluster(script, tmp_path, FAKE_NODES="1", SLURM_ARRAY_TASK_ID=str(task))
    ends = {
        line.split("seeds=[0,4] ")[1] for line in (tmp_path / "log.txt").read_text().splitlines()
    }
    assert ends == {
        f"task={task} arm={arm} run.seed={seed} run.output_dir=runs/demo/{task}/{arm}/seed_{seed}"
        " compare.arms=[llm_policy,student_alone,teacher_frozen]"
        for task in ("go_to_local", "open_door")
        for arm in ("llm_policy", "student_alone", "teacher_frozen")
        for seed in (0, 4)
    }


@pytest.mark.parametrize(
    ("nodes", "folder"), [(1, "runs/demo"), (2, "runs/demo"), (1, "a,b"), (2, "a,b")]
)
def test_a_run_of_an_array_is_the_one_of_the_comparison_and_knows_all_of_its_arms(
    tmp_path: Path, nodes: int, folder: str
) -> None:
    """Also the controls: whoever counts the runs that there are to be goes by ``compare.arms``."""
    overrides = ["compare.seeds=[4]", f"lamorel_args.accelerate_args.num_machines={nodes}"]
    overrides.append(f"compare.output_dir='{folder}'")
    planned = plan(overrides, "demo")
    script = array_script(planned[0].config, "compare", arguments(*overrides))
    assert f"#SBATCH --array=0-{len(planned) - 1}\n" in script
    for task, wanted in [*enumerate(planned)][3:6]:
        (tmp_path / "log.txt").unlink(missing_ok=True)
        started = run_on_fake_cluster(
            script, tmp_path, FAKE_NODES=str(nodes), SLURM_ARRAY_TASK_ID=str(task)
        )
        for line in started:
            words = line.split(" train --config-name demo ")[1].split()
            assert load_config(words, "demo") == wanted.config
    assert any("sign=inverted" in arm for arm in planned[0].config.compare.arms)


@pytest.mark.parametrize("status", [0, 7, 138, 143])
def test_only_the_signal_before_the_time_limit_puts_a_job_back_into_the_queue(
    tmp_path: Path, status: int
) -> None:
    options = SlurmOptions(save_before_limit_s=60)
    script = batch_script(demo(), "train", arguments(), options)
    assert "#SBATCH --signal=USR1@60\n#SBATCH --requeue\n" in script
    assert end_on_fake_cluster(script, tmp_path, status) == (status, status == 138)
    assert end_on_fake_cluster(script, tmp_path, status, SLURM_RESTART_COUNT="50")[1] is False
    chained = batch_script(
        demo(), "train", arguments(), dataclasses.replace(options, requeue=False)
    )
    assert "requeue" not in chained and "#SBATCH --signal=USR1@60\n" in chained
    assert end_on_fake_cluster(chained, tmp_path, status) == (status, False)


def test_a_job_of_an_array_goes_back_into_the_queue_without_the_others(tmp_path: Path) -> None:
    """Slurm gives one of them the number of the whole array."""
    options = SlurmOptions(save_before_limit_s=60)
    numbers = {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "3"}
    array = array_script(demo(), "train", arguments(), options)
    end_on_fake_cluster(array, tmp_path, 138, **numbers)
    assert (tmp_path / "requeued").read_text() == "requeue 5_3\n"
    # A job that was submitted from within an array may have the numbers of that one.
    numbers["SLURM_ARRAY_JOB_ID"] = "4"
    end_on_fake_cluster(batch_script(demo(), "train", [], options), tmp_path, 138, **numbers)
    assert (tmp_path / "requeued").read_text() == "requeue 5\n"


@pytest.mark.parametrize(
    ("options", "seconds"),
    [
        (SlurmOptions(save_before_limit_s=90), "90"),
        (SlurmOptions({"signal": "USR1@45"}), "45"),
        (SlurmOptions({"signal": "R:SIGUSR1"}), "60"),
        (SlurmOptions({"signal": "10@7"}, save_before_limit_s=90), "7"),
        (SlurmOptions({"signal": "TERM@45"}), ""),
        (SlurmOptions(), ""),
    ],
)
def test_the_ranks_know_how_long_before_the_time_limit_they_are_asked_to_save(
    options: SlurmOptions, seconds: str
) -> None:
    script = batch_script(demo(), "train", arguments(), options)
    exported = [line for line in script.splitlines() if line.startswith(f"export {SAVE_S}=")]
    assert exported == ([f"export {SAVE_S}={seconds}"] if seconds else [])


def end_on_fake_cluster(
    script: str, folder: Path, status: int, **environment: str
) -> tuple[int, bool]:
    """Exit status of a batch script whose step ends with ``status``; whether it was requeued."""
    requeued = folder / "requeued"
    requeued.unlink(missing_ok=True)
    for name, line in {"srun": f"exit {status}", "scontrol": f'echo "$*" > {requeued}'}.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{line}\n")
        (folder / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "5", "SLURM_CPUS_PER_TASK": "3", **environment}
    path = {"PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], env={**path, **job}, timeout=30)
    return done.returncode, requeued.exists()


def test_setup_lines_may_use_variables_that_are_not_set_and_a_failing_one_ends_the_job(
    tmp_path: Path,
) -> None:
    loose = SlurmOptions(setup=('PS1="$PS1"',))
    assert end_on_fake_cluster(batch_script(demo(), "train", [], loose), tmp_path, 0)[0] == 0
    failing = SlurmOptions(setup=("false",))
    assert end_on_fake_cluster(batch_script(demo(), "train", [], failing), tmp_path, 0)[0] == 1


@pytest.mark.parametrize("key", ["gres", "gpus", "gpus-per-task"])
def test_gpus_asked_for_by_hand_are_not_asked_for_twice(key: str) -> None:
    config = demo("lamorel_args.llm_args.parallelism.use_gpu=true")
    assert "--gpus-per-node=2\n" in batch_script(config, "train", [])
    by_hand = batch_script(config, "train", [], SlurmOptions({key: "gpu:2"}))
    assert f"#SBATCH --{key}=gpu:2\n" in by_hand and "gpus-per-node" not in by_hand


SBATCH = """#!/usr/bin/env bash
echo "$*" >> "$FAKE_LOG"
cat >> "$FAKE_LOG"
[ -z "${FAKE_REFUSAL:-}" ] || { echo "$FAKE_REFUSAL" >&2; exit 1; }
echo "$((10 + $(grep -c parsable "$FAKE_LOG")));cluster"
"""


def test_jobs_are_submitted_each_after_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [Job("array", "first\n"), Job("array", "first\n"), Job("report", "last\n")]
    (tmp_path / "sbatch").write_text(SBATCH)
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    assert submit(jobs) == 0
    lines = ["--parsable", "first", "--parsable --dependency=afterany:11", "first",
             "--parsable --dependency=afterany:12", "last"]  # fmt: skip
    assert (tmp_path / "log").read_text().splitlines() == lines
    assert capsys.readouterr().out == "array: 11\narray: 12, after 11\nreport: 13, after 12\n"

    # The lines of shell that a dry run prints do the same.
    (tmp_path / "log").unlink()
    text = "\n".join(job.shell() for job in jobs)
    subprocess.run(
        ["bash", "-c", text.replace('afterany:"$id"', 'afterany:"${id%;*}"')], check=True
    )
    assert (tmp_path / "log").read_text().splitlines() == lines

    monkeypatch.setenv("FAKE_REFUSAL", "sbatch: error: Invalid account")
    with pytest.raises(LamorelExtError, match="refused the array: sbatch: error: Invalid account"):
        submit(jobs)


def test_the_lines_of_a_dry_run_let_the_launches_of_a_sweep_wait_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As ``--submit`` does, also where the shell has a variable of that name."""
    words = ["--slurm-array", "--submit", "--dry-run", "-m", "student.lr=1e-3,1e-4"]
    assert launch(["compare", "--config-name", "demo", *words]) == 0
    (tmp_path / "sbatch").write_text(SBATCH)
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    subprocess.run(
        ["bash", "-c", capsys.readouterr().out], check=True, env={**os.environ, "id": "9"}
    )
    submitted = (tmp_path / "log").read_text().splitlines()
    assert [line for line in submitted if line.startswith("--parsable")] == [
        "--parsable", "--parsable --dependency=afterany:11",
        "--parsable", "--parsable --dependency=afterany:13",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("logs/%A_%a.out", "logs/%j_report.out"),
        ("logs/%x-%4A-%03a.log", "logs/%x-%j-report.log"),
        ("all.txt", "all.txt"),
    ],
)
@pytest.mark.parametrize("key", ["output", "error"])
def test_the_report_writes_where_the_array_was_told_to(key: str, given: str, taken: str) -> None:
    header = report_script(demo(), SlurmOptions({key: given})).split("\n\n")[0].splitlines()
    assert f"#SBATCH --{key}={taken}" in header
    assert len([line for line in header if f"--{key}=" in line]) == 1


def test_a_value_with_blanks_stays_one_value() -> None:
    options = SlurmOptions({"comment": "two words # and more", "gres": "gpu:a100:2"})
    script = batch_script(demo(), "train", arguments(), options)
    assert "#SBATCH --comment='two words # and more'\n#SBATCH --gres=gpu:a100:2\n" in script


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("nodes", "2", "expected 1; lamorel_args.accelerate_args.num_machines"),
        ("ntasks", "3", "expected 1"),
        ("ntasks-per-node", "4", "expected 1"),
        ("signal", "B:USR1@60", "batch shell alone"),
    ],
)
def test_what_would_start_a_launch_twice_or_lose_its_signal_is_refused(
    key: str, value: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        batch_script(demo(), "train", arguments(), SlurmOptions({key: value}))
    assert f"--sbatch {key}={value}" in str(error.value)
    batch_script(demo(), "train", arguments(), SlurmOptions({"nodes": "1", "signal": "R:USR1"}))


def test_without_sbatch_nothing_is_submitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="no sbatch on PATH"):
        submit([Job("job", "text")])


# --- real ranks -----------------------------------------------------------------------------------

RANKS = """
import os, pathlib, sys
pathlib.Path(sys.argv[1], os.environ["RANK"]).write_text(
    os.environ["WORLD_SIZE"] + " " + os.environ["ACCELERATE_USE_CPU"]
)
sys.exit(7 if os.environ["RANK"] == sys.argv[2] else 0)
"""


def launch_ranks(folder: Path, failing: str, monkeypatch: pytest.MonkeyPatch) -> int:
    (folder / "ranks_of_a_test.py").write_text(RANKS)
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{ROOT}")
    argv = (
        "accelerate",
        "launch",
        *accelerate_arguments(demo()),
        "-m",
        "ranks_of_a_test",
        str(folder),
        failing,
    )
    return run_here(Command(argv, {"ACCELERATE_USE_CPU": "true"}))


def test_every_rank_starts_and_the_launch_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert launch_ranks(tmp_path, "none", monkeypatch) == 0
    assert [(tmp_path / rank).read_text() for rank in "012"] == ["3 true"] * 3


def test_a_failed_rank_gives_its_exit_status_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert launch_ranks(tmp_path, "1", monkeypatch) == 7
    errors = capfd.readouterr().err
    assert "launch: rank 1 ended with exit status 7" in errors and "Traceback" not in errors


def wait_for(child: subprocess.Popen[str], *paths: Path) -> None:
    """Until all of them exist."""
    deadline = time.monotonic() + 240
    while not all(path.exists() for path in paths):
        assert time.monotonic() < deadline and child.poll() is None
        time.sleep(0.05)


def test_an_interruption_reaches_the_ranks_and_ends_with_one_line(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sys, time; "
        "pathlib.Path(sys.argv[1], os.environ['RANK']).touch(); time.sleep(60)"
    )
    (tmp_path / "ranks_of_a_test.py").write_text(code)
    start = (
        "import sys; from launchers.command import *; from launchers.local import run_here; "
        "from lamorel_ext.config import load_config;"
        "argv = ('accelerate', 'launch', *accelerate_arguments(load_config()), "
        "'-m', 'ranks_of_a_test', sys.argv[1]);"
        "sys.exit(run_here(Command(argv, {'ACCELERATE_USE_CPU': 'true'})))"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    child = subprocess.Popen(
        [sys.executable, "-c", start, str(tmp_path)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # a shell's background job, as this test may be, ignores it
    )
    wait_for(child, tmp_path / "1")
    child.send_signal(signal.SIGINT)
    errors = child.communicate(timeout=60)[1]
    assert child.returncode == 130 and "launch: stopped by SIGINT" in errors


SLOW_TO_END = """
import os, pathlib, signal, sys, time
def end(signum, frame):
    pathlib.Path(sys.argv[1], f"asked {os.environ['RANK']}").touch()
    time.sleep(2)
    os._exit(128 + signum)
for signum in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(signum, end)
pathlib.Path(sys.argv[1], os.environ["RANK"]).touch()
time.sleep(120)
"""


@pytest.mark.parametrize(
    ("statuses", "rank"),
    [
        ({0: 1, 1: 1, 2: -9}, 2),  # killed; the others ended because of it
        ({0: 1, 2: -11}, 2),
        ({1: 129, 2: -15}, 1),  # the agent ended the other one
        ({0: -15, 1: -15, 2: 1}, 0),  # as PyTorch has it
        ({2: 1}, 2),
    ],
)
@pytest.mark.parametrize("later_s", [0, 46])
def test_of_ranks_that_ended_together_one_that_was_killed_was_the_first(
    statuses: dict[int, int], rank: int, later_s: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.distributed.elastic.multiprocessing import errors

    clock = iter([1.0, *[1.0 + later_s] * 9])
    monkeypatch.setattr(time, "time", lambda: next(clock))
    failures = {at: errors.ProcessFailure(at, 7, code, "") for at, code in statuses.items()}
    if later_s:  # whoever is killed by then is killed by the agent
        rank = next(iter(statuses))
    found, failure = elastic.first_failure(errors.ChildFailedError("train", failures))
    assert (found, failure.exitcode) == (rank, statuses[rank])


def start_slow_ranks(folder: Path, *launcher: str) -> subprocess.Popen[str]:
    """Three ranks of ``SLOW_TO_END``, started by these arguments of Python; they are all there."""
    (folder / "ranks_of_a_test.py").write_text(SLOW_TO_END)
    words = [*accelerate_arguments(demo()), "-m", "ranks_of_a_test", str(folder)]
    child = subprocess.Popen(
        [sys.executable, *launcher, *words],
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"},
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(child, *(folder / rank for rank in "012"))
    return child


@pytest.mark.parametrize("signals", [["SIGUSR1", "SIGTERM"], ["SIGUSR1"]])
def test_the_first_of_several_signals_is_the_reason(tmp_path: Path, signals: list[str]) -> None:
    child = start_slow_ranks(tmp_path, "-m", "launchers.elastic")
    for name in signals:
        child.send_signal(signal.Signals[name])
        wait_for(child, tmp_path / "asked 0")
    errors = child.communicate(timeout=120)[1]
    assert child.returncode == 128 + signal.Signals[signals[0]]
    assert f"launch: stopped by {signals[0]};" in errors


@pytest.mark.parametrize(
    ("written", "first"),
    [
        ([signal.SIGTERM, signal.SIGUSR1], signal.SIGUSR1),  # both waited
        ([signal.SIGCHLD, signal.SIGINT, signal.SIGTERM], signal.SIGINT),
        ([], None),
    ],
)
def test_a_warning_before_a_time_limit_is_the_first_signal(
    written: list[signal.Signals], first: signal.Signals | None
) -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        theirs.sendall(bytes(written))
        assert elastic._first_signal(ours) == first


@pytest.mark.parametrize(
    ("later_s", "quits", "second"),
    [
        (0.02, False, signal.SIGTERM),  # of a batch system, and passed on by the launcher
        (0.5, True, stopping.INSISTS),
        (5.0, False, stopping.INSISTS),  # without a launcher of ours
    ],
)
def test_a_second_signal_tells_the_ranks_that_the_user_insists(
    later_s: float, quits: bool, second: int
) -> None:
    sent: list[int] = []
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        end_ranks = elastic.insisting(
            lambda agent, death_sig, timeout: sent.append(death_sig),
            lambda: elastic._user_insists(ours),
            iter([100.0, 100.0 + later_s]).__next__,
        )
        theirs.sendall(bytes([signal.SIGTERM]))
        end_ranks("agent", signal.SIGTERM, timeout=45)
        theirs.sendall(bytes([signal.SIGQUIT if quits else signal.SIGTERM]))
        end_ranks("agent", timeout=45)  # PyTorch's own, where a second signal broke off the first
        assert elastic._first_signal(ours) == signal.SIGTERM
    assert sent == [signal.SIGTERM, second]


SLOW_END = """
import time
class Slow:
    def __del__(self, sleep=time.sleep):
        sleep(5)
slow = Slow()
"""
"""Goes when Python has given the signals back to the system."""


def test_a_signal_at_the_very_end_does_not_change_the_exit_status(tmp_path: Path) -> None:
    """Slurm ends the other nodes of a step when one has ended."""
    (tmp_path / "slow_end_of_a_test.py").write_text(SLOW_END)
    start = "import sys, slow_end_of_a_test; from lamorel_ext.programs import from_module"
    child = start_slow_ranks(tmp_path, "-c", f"{start}; sys.exit(from_module(sys.argv))", "elastic")
    child.send_signal(signal.SIGUSR1)
    assert child.stderr is not None
    while "launch: stopped by SIGUSR1;" not in child.stderr.readline():
        assert child.poll() is None
    time.sleep(1.0)
    child.send_signal(signal.SIGTERM)
    assert child.wait(60) == 138


# --- what would be done otherwise than was said ---------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sbatch", "time=01:00:00"], "--sbatch: of a batch script; needs --slurm"),
        (["--setup", "module load cuda", "--srun=-v"], "--setup, --srun: of a batch script"),
        (["--save-before-limit", "60"], "--save-before-limit: of a batch script"),
        (["--python", "/opt/python"], "--python: of a batch script"),
        (["--slurm", "--slurm-array"], "--slurm, --slurm-array: one at a time"),
        (["--slurm-array", "--slurm-report"], "--slurm-array, --slurm-report: one at a time"),
        (["--slurm", "--one-process"], "--one-process: a batch script starts several ranks"),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launchers.__main__.run_here", lambda command: 99)
    with pytest.raises(ConfigError, match=said):
        launch(["train", "--config-name", "demo", *words])


def test_a_dry_run_shows_what_such_options_change(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch(["train", "--config-name", "demo", "--dry-run", "--sbatch", "time=9"]) == 0
    assert "#SBATCH --time=9\n" in capsys.readouterr().out


@pytest.mark.parametrize("program", ["no-such-program", "."])
def test_a_command_that_cannot_be_started_is_named(program: str) -> None:
    with pytest.raises(ConfigError, match=f"{program} cannot be started"):
        run_here(Command((program,)))


@pytest.mark.parametrize("gpus", ["'0'", "2,3", "all"])
def test_a_users_own_file_of_accelerate_decides_nothing(
    tmp_path: Path, gpus: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``accelerate config`` writes it, and accelerate reads it where no other is named."""
    (tmp_path / "accelerate").mkdir()
    (tmp_path / "accelerate/default_config.yaml").write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\nmixed_precision: fp16\n"
        f"gpu_ids: {gpus}\nmachine_rank: 1\nmain_process_ip: 10.1.2.3\nnum_machines: 2\n"
        "num_processes: 8\nrdzv_backend: c10d\nsame_network: false\nuse_cpu: false\n"
    )
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    (tmp_path / "show.py").write_text(
        "import os\nnames = ('RANK', 'WORLD_SIZE', 'CUDA_VISIBLE_DEVICES')\n"
        "line = ' '.join(map(os.environ.get, names)) + '\\n'\n"
        "os.write(1, line.encode())  # at once: the other rank writes there too\n"
    )
    config = demo("lamorel_args.distributed_setup_args.n_llm_processes=1")
    words = ("accelerate", "launch", *accelerate_arguments(config), str(tmp_path / "show.py"))
    assert run_here(Command(words)) == 0
    assert sorted(capfd.readouterr().out.split("\n")) == ["", "0 2 5", "1 2 5"]
