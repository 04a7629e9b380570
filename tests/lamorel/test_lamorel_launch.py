"""Scripts in Lamorel's own words, started as their users start them."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from experiments.bench.launching import free_port
from launchers import script
from launchers.script import launch_script, main
from tests import warm

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "lamorel_ppo"

SCRIPT_02 = """
import json
import hydra, numpy as np, torch
import gym
import babyai_text
import babyai.utils as utils
from babyai.paral_env_simple import ParallelEnv
from babyai.rl.utils import DictList
import distutils
from accelerate import Accelerator
from lamorel import Caller, lamorel_init
from lamorel import BaseUpdater, BaseModuleFunction, BaseModelInitializer

lamorel_init()
accelerator = Accelerator()
distutils.dir_util.copy_tree

class Head(BaseModuleFunction):
    def __init__(self):
        super().__init__()
    def initialize(self):
        self.op = torch.nn.Linear(self.llm_config.d_model, 1).to(self.device)
    def forward(self, forward_outputs, minibatch, tokenized_contexts, **kwargs):
        return self.op(forward_outputs["decoder_hidden_states"][-1][:, 0]) * kwargs.get("scale", 1)

class Initializer(BaseModelInitializer):
    def initialize_model(self, model):
        assert model._modules["_LLM_model"] is model._LLM_model
        for parameter in model._LLM_model.parameters():
            parameter.requires_grad = False
        return model

class Updater(BaseUpdater):
    def perform_update(self, contexts, candidates, _current_batch_ids, **kwargs):
        if not hasattr(self, "optimizer"):
            self.optimizer = torch.optim.Adam(
                self._llm_module.module._module_functions["value"].parameters(), lr=0.1
            )
        if contexts[0] is not None:
            labels = kwargs["exps"]["labels"][_current_batch_ids]
            rows = self._llm_module(
                ["value"], contexts=contexts, candidates=candidates, require_grad=True
            )
            loss = (
                torch.stack([row["value"][0] for row in rows]).squeeze(-1) - labels
            ).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return {"ids": _current_batch_ids,
                "kinds": [type(contexts).__name__, type(kwargs["exps"]["names"]).__name__],
                "weights": self._llm_module.module._module_functions["value"]
                .op.weight.detach().sum().item(),
                "rank": accelerator.process_index, "nothing": kwargs["nothing"],
                "keys": list(self._llm_module.state_dict())[:1]}

@hydra.main(config_path="config", config_name="config")
def main(config):
    lm = Caller(config.lamorel_args, custom_updater=Updater(),
                custom_module_functions={"value": Head()}, custom_model_initializer=Initializer())
    env = gym.make("BabyAI-GoToRedBall-v0")
    env.seed(100)
    envs = ParallelEnv([env])
    observations, infos = envs.reset()
    envs.step(np.array([2]))
    prompts = [f"You see a red ball {i} steps left" for i in range(5)]
    rows = lm.score(prompts, np.array([["turn left", "drop"]] * 5),
                    additional_module_function_keys=["value"], scale=0)
    exps = DictList()
    exps.labels = torch.arange(5.0)
    exps.names = np.array(prompts)
    first = lm.update([None] * 3, [[None]] * 3, exps=dict(exps), nothing=None)
    for _ in range(10):
        results = lm.update(prompts, None, exps=dict(exps), nothing=None)
    import torch.distributed as dist
    try:
        Caller(config.lamorel_args)
    except Exception as error:
        second = str(error)
    with open(config.rl_script_args.output, "w") as file:
        json.dump({"results": results, "scaled": rows[0]["value"].abs().sum().item(),
                   "rows": len(rows[0]["__score"]), "words": infos[0]["descriptions"],
                   "first": len(first), "empty": lm.score(["go"], [[]])[0].tolist(),
                   "group": dist.get_world_size(lm.get_rl_dist_group()),
                   "mean": utils.synthesize([1, 3])["mean"], "second": second}, file)
    lm.close()

if __name__ == "__main__":
    main()
"""

SCRIPT_03 = """
import os, json
rank = int(os.environ.get("RANK"))
import hydra, torch
from lamorel import BaseUpdater, BaseModuleFunction, Caller

class Head(BaseModuleFunction):
    def initialize(self):
        self.op = torch.nn.Linear(self.model_config.d_model, 1)
    def forward(
        self, forward_outputs, minibatch, tokenized_contexts, current_minibatch_ids, **kwargs
    ):
        state = forward_outputs["decoder_hidden_states"][-1][:, 0]
        return {"value": self.op(state),
                "pad": torch.full((len(state),), self.llm_config.pad_token)}

class Updater(BaseUpdater):
    def perform_update(self, contexts, candidates, _current_batch_ids, **kwargs):
        rows = self._llm_module(
            ["head"], contexts=contexts, candidates=candidates, require_grad=True
        )
        sum(row["head"]["value"].sum() for row in rows).backward()
        return {"ids": _current_batch_ids, "llm": self.current_process_config["llm"]}

@hydra.main(config_path="config", config_name="config")
def main(config):
    lm = Caller(config.lamorel_args, custom_updater={"a": Updater()},
                custom_module_functions={"a": {"head": Head()}, "b": {"head": Head()}})
    scores = {name: lm.score(["go", "see"], [["left"], ["right", "left"]], llm_to_call=name)
              for name in "ab"}
    row = lm.custom_module_fns(["head"], ["go"], llm_to_call="b", pad_contexts=False)[0]
    results = lm.update(
        ["go", "see", "go"], [["left"], ["right", "left"], ["left"]], llm_to_call="a"
    )
    with open(config.rl_script_args.output, "w") as file:
        json.dump({"same": all(torch.allclose(x, y, atol=1e-4)
                               for x, y in zip(scores["a"], scores["b"])),
                   "results": results, "head": sorted(row["head"]),
                   "pad": row["head"]["pad"].tolist()}, file)
    lm.close()

if __name__ == "__main__":
    main()
"""

LLM = (
    "model_type: seq2seq, model_path: embedded, pretrained: true, "
    "minibatch_size: 4, pre_encode_inputs: true, load_in_4bit: false"
)
CONFIG_02 = f"""
lamorel_args:
  log_level: info
  gloo_timeout: 300
  allow_subgraph_use_whith_gradient: false
  distributed_setup_args: {{n_rl_processes: 1, n_llm_processes: 1}}
  accelerate_args: {{config_file: accelerate/default_config.yaml, machine_rank: 0, num_machines: 1}}
  updater_args:
  llm_args:
    {{{LLM}, parallelism: {{use_gpu: false, model_parallelism_size: 1}}}}
rl_script_args: {{path: "???", output: "???"}}
"""
CONFIG_03 = f"""
lamorel_args:
  log_level: info
  llm_configs:
    a: {{handler: hf_llm, constructor_kwargs: null, {LLM}}}
    b: {{handler: hf_llm, constructor_kwargs: null, {LLM}}}
  distributed_setup_args:
    backend: gloo
    timeout: 300
    n_rl_processes: 1
    llm_processes:
      a: {{n_processes: 2, devices_per_process: [cpu, cpu], ddp_kwargs: null}}
      b: {{n_processes: 1, devices_per_process: [cpu], ddp_kwargs: null}}
rl_script_args: {{path: "???", output: "???"}}
"""


ACCELERATE = "lamorel_args.accelerate_args"
VARIABLES = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run(arguments: list[str], folder: Path, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "launchers", *arguments],
        cwd=folder,
        env=VARIABLES | variables,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def together(launches: list[list[str]], folder: Path, **variables: str) -> list[str]:
    """What launches say that are started at a time and end well."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "launchers", *arguments], cwd=folder, env=VARIABLES | variables,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for arguments in launches
    ]  # fmt: skip
    said = [each.communicate(timeout=400)[0] for each in processes]
    assert not any(each.returncode for each in processes), said
    return said


def written(folder: Path, script: str, config: str) -> list[str]:
    (folder / "main.py").write_text(script)
    (folder / "config.yaml").write_text(config)
    return [
        "--config-path",
        str(folder),
        "--config-name",
        "config",
        f"rl_script_args.output={folder / 'out.json'}",
    ]


def answer(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "out.json").read_text())
    return found


def test_the_example_learns_its_game_with_two_servers(tmp_path: Path) -> None:
    out = run(
        [
            "script",
            str(EXAMPLE / "main.py"),
            "--config-path",
            str(EXAMPLE),
            "--config-name",
            "config",
        ],
        tmp_path,
        PYTHON_EXEC=warm.interpreter(PYTHONPATH=str(ROOT)),
    )
    rewards = [float(line.split()[3]) for line in out.splitlines() if line.startswith("update")]
    assert len(rewards) == 30 and min(rewards[-3:]) > 0.9


def test_a_script_of_02_runs_under_the_alias(tmp_path: Path) -> None:
    servers = 3
    options = written(tmp_path, SCRIPT_02, CONFIG_02)
    override = f"lamorel_args.distributed_setup_args.n_llm_processes={servers}"
    out = run(["script", "--alias", str(tmp_path / "main.py"), *options, override], tmp_path)
    found = answer(tmp_path)
    assert [each["ids"] for each in found["results"]] == [[0, 1], [2, 3], [4]]
    assert len({each["weights"] for each in found["results"]}) == 1
    assert [each["rank"] for each in found["results"]] == list(range(1, servers + 1))
    assert (
        found["results"][0]["kinds"] == ["list", "ndarray"]
        and found["results"][0]["nothing"] is None
    )
    assert found["results"][0]["keys"][0].startswith("module._LLM_model.")
    assert (
        found["first"] == servers
        and found["scaled"] == 0
        and found["rows"] == 2
        and found["empty"] == [0.0]
    )
    assert found["words"] and found["group"] == 1 and found["mean"] == 2
    assert "Caller: this process has made one before" in found["second"]
    assert out.count("not used here: lamorel_args.updater_args") == 1


def test_lamorels_own_command_line_runs_under_the_alias(tmp_path: Path) -> None:
    options = written(tmp_path, SCRIPT_02, CONFIG_02)
    line = [
        sys.executable,
        "-m",
        "lamorel_launcher.launch",
        *options,
        f"rl_script_args.path={tmp_path / 'main.py'}",
    ]
    out = run(["alias", *line, "lamorel_args.accelerate_args.machine_rank=0"], tmp_path)
    assert "sitecustomize" not in out  # one launch within the other: each has such a file
    found = answer(tmp_path)
    assert found["first"] == 1 and found["scaled"] == 0 and found["group"] == 1
    (only,) = found["results"]
    assert only["ids"] == [0, 1, 2, 3, 4] and only["rank"] == 1
    assert only["keys"][0].startswith("module._LLM_model.")


def test_a_script_of_03_with_two_llms_runs(tmp_path: Path) -> None:
    run(
        ["script", "--alias", str(tmp_path / "main.py"), *written(tmp_path, SCRIPT_03, CONFIG_03)],
        tmp_path,
    )
    found = answer(tmp_path)
    assert found["same"] and found["head"] == ["pad", "value"] and found["pad"] == [0]
    assert [each["ids"]["contexts"] for each in found["results"]] == [[0, 1], [2]]
    assert (
        found["results"][0]["ids"]["candidates"] == [[0], [0, 1]]
        and found["results"][0]["llm"] == "a"
    )


def test_launches_of_one_process_each_of_03_meet(tmp_path: Path) -> None:
    place = f"{{main_process_ip: 127.0.0.1, main_process_port: {free_port()}, experiment_id: 3}}"
    config = CONFIG_03.replace(
        "    backend: gloo", f"    multinode: true\n    multinode_args: {place}"
    )
    config = config.replace(
        "n_processes: 2, devices_per_process: [cpu, cpu]",
        "n_processes: 1, devices_per_process: [cpu]",
    )
    options = ["script", "--alias", "main.py", *written(tmp_path, SCRIPT_03, config)]
    together([options] * 3, tmp_path, LAMOREL_EXT_TOKEN="a secret that all of them have")
    assert [each["ids"]["contexts"] for each in answer(tmp_path)["results"]] == [[0, 1, 2]]


def test_two_machines_of_lamorel_on_one_host_meet_at_127_0_0_1(tmp_path: Path) -> None:
    options = ["script", "--alias", "main.py", *written(tmp_path, SCRIPT_02, CONFIG_02)]
    meeting = [f"{ACCELERATE}.num_machines=2", f"+{ACCELERATE}.main_process_port={free_port()}"]
    said = together(
        [[*options, *meeting, f"{ACCELERATE}.machine_rank={rank}"] for rank in (0, 1)], tmp_path
    )
    assert all("at 127.0.0.1, which is this host alone" in each for each in said)
    assert [each["rank"] for each in answer(tmp_path)["results"]] == [1]


def test_an_updater_that_raises_ends_the_script_with_its_reason(tmp_path: Path) -> None:
    broken = SCRIPT_02.replace("labels = kwargs", "raise ValueError('the reason'); labels = kwargs")
    options = written(tmp_path, broken, CONFIG_02)
    with pytest.raises(AssertionError, match="the reason"):
        run(["script", "--alias", str(tmp_path / "main.py"), *options], tmp_path)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ["script", "no.py", "--config-path", ".", "--config-name", "config"],
            "no configuration 'config'",
        ),
        (
            ["script", "no.py", "--config-path", str(EXAMPLE), "--config-name", "config"],
            "there is no file",
        ),
        (
            ["script", "--config-path", str(EXAMPLE), "--config-name", "config"],
            "a script is missing",
        ),
        (["alias"], "expected a command"),
    ],
)
def test_what_cannot_be_started_says_why(
    arguments: list[str],
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments[0], arguments[1:]) != 0
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lamorel_args: {a: ü}".encode("latin-1"), "config.yaml with .*: 'utf-8' codec"),
        (b"x: &a {y: *a}", "lead back to themselves"),
        (b"defaults: [config]", "lead back to themselves"),
        (b"lamorel_args: ${nowhere}", "lamorel_args: Interpolation key 'nowhere' not found"),
        (b"lamorel_args: 5", "lamorel_args: expected keys with values, got 5"),
        (b"x: 1", "has no lamorel_args"),
    ],
)
def test_a_file_that_is_no_configuration_says_why(
    text: bytes, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_bytes(text)
    (tmp_path / "main.py").touch()
    options = ["--config-path", str(tmp_path), "--config-name", "config", "--dry-run"]
    assert main("script", [str(tmp_path / "main.py"), *options]) == 2
    assert re.search(said, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("${nowhere}", "rl_script_args: Interpolation key 'nowhere' not found"),
        ("5", "rl_script_args: expected keys with values, got 5"),
        ("[1]", r"rl_script_args: expected keys with values, got \[1\]"),
        ("null", "a script is missing"),
        ("{path: '???'}", "a script is missing"),
    ],
)
def test_a_section_for_the_script_that_is_none_says_so(
    value: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (EXAMPLE / "config.yaml").read_text().partition("rl_script_args:")[0]
    (tmp_path / "config.yaml").write_text(f"{text}\nrl_script_args: {value}\n")
    options = ["--config-path", str(tmp_path), "--config-name", "config", "--dry-run"]
    assert main("script", options) == 2
    assert re.search(said, capsys.readouterr().err)


@pytest.mark.parametrize("task", ["script", "alias"])
def test_help_of_lamorels_half_is_help(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        script.main(task, ["--help"])
    assert ended.value.code == 0
    assert f"usage: lamorel-ext-launch {task}" in capsys.readouterr().out


def test_options_of_a_command_are_the_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[str, ...]] = []
    monkeypatch.setattr(script, "run_here", lambda command: started.append(command.argv) or 0)
    for line in (["--", "python", "--help", "-x"], ["python", "--help", "-x"]):
        assert script.main("alias", line) == 0
    assert started == [("python", "--help", "-x")] * 2


@pytest.mark.parametrize("name", ["lr=1e-4", "mäin, (b)", "it's two words"])
def test_a_script_may_lie_in_a_folder_of_any_name(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``=`` makes an override elsewhere, and Hydra's values have a grammar."""
    folder = tmp_path / name
    folder.mkdir()
    (folder / "main.py").touch()
    where = ["--config-path", str(EXAMPLE), "--config-name", "config"]
    assert launch_script([str(folder / "main.py"), *where, "--dry-run"]) == 0
    words = shlex.split(capsys.readouterr().out)
    assert words.count(str(folder / "main.py")) == 1
    (told,) = [word for word in words if word.startswith("++rl_script_args.path=")]
    assert OverridesParser.create().parse_override(told).value() == str(folder / "main.py")


SETUP = "lamorel_args.distributed_setup_args"


@pytest.mark.parametrize(
    ("overrides", "exported", "threads"),
    [
        ([f"{SETUP}.n_llm_processes=1"], "3", 3),  # as accelerate reads it
        ([f"{SETUP}.n_llm_processes=1"], "", 8),
        ([f"{SETUP}.n_llm_processes=3"], "", 2),
        ([f"{SETUP}.n_rl_processes=5"], "", 1),
        ([f"{SETUP}.n_rl_processes=3", f"{SETUP}.n_llm_processes=3",
          f"{ACCELERATE}.num_machines=2", f"+{ACCELERATE}.main_process_port=4242"], "", 2),
        ([f"+{ACCELERATE}.num_cpu_threads_per_process=5"], "3", 5),
        (["+lamorel_args.llm_args.num_threads=6"], "3", 6),
        (["lamorel_args.llm_args.parallelism.use_gpu=true"], "", 1),
    ],
)  # fmt: skip
def test_a_server_has_the_threads_that_are_said_or_its_share_of_the_cores(
    overrides: list[str], exported: str, threads: int, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("OMP_NUM_THREADS", exported)
    monkeypatch.setattr(script, "usable_cores", lambda: 8)
    (tmp_path / "main.py").touch()
    where = ["--config-path", str(EXAMPLE), "--config-name", "config", "--dry-run"]
    assert launch_script([str(tmp_path / "main.py"), *overrides, *where]) == 0
    words = shlex.split(capsys.readouterr().out)
    assert words[words.index("--num_cpu_threads_per_process") + 1] == str(threads)


def test_a_configuration_may_name_the_folder_that_it_is_started_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "main.py").touch()
    monkeypatch.chdir(tmp_path)
    options = ["--config-path", str(EXAMPLE), "--config-name", "config", "--dry-run"]
    here = "${hydra:runtime.cwd}"
    keys = [f"rl_script_args.path={here}/main.py", f"lamorel_args.llm_args.model_path={here}/model"]
    assert main("script", [*keys, *options]) == 0
    assert str(tmp_path / "main.py") in shlex.split(capsys.readouterr().out)
    assert main("script", ["rl_script_args.path=${no.such}", *options]) == 2
    assert "rl_script_args.path: Interpolation key 'no.such'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"main_process_port: abc", "main_process_port is 'abc', expected a whole number"),
        (b"\xff\xfe", "default_config.yaml cannot be read: 'utf-8' codec"),
        (b"main_process_port: [1]", "expected a whole number"),
        (b'main_process_port: "12346"', ""),
    ],
)
def test_what_is_wrong_with_accelerates_file_is_said(
    text: bytes, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(EXAMPLE / "config.yaml", tmp_path)
    (tmp_path / "accelerate").mkdir()
    (tmp_path / "accelerate/default_config.yaml").write_bytes(text)
    own = "++lamorel_args.accelerate_args"
    options = [
        *("--config-path", str(tmp_path), "--config-name", "config", "--dry-run"),
        f"{own}.num_machines=2",
        f"{own}.config_file=accelerate/default_config.yaml",
    ]
    assert main("script", [str(EXAMPLE / "main.py"), *options]) == (2 if said else 0)
    out, err = capsys.readouterr()
    assert said in err and ("12346" in out) == (not said)


def test_nobody_finds_lamorel_who_did_not_ask_for_it() -> None:
    assert importlib.util.find_spec("lamorel_ext") is not None
    assert not any(
        type(finder).__module__ == "lamorel_ext.lamorel.alias" for finder in sys.meta_path
    )
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()}
    assert not folders & {"lamorel", "lamorel_launcher", "gym", "babyai", "babyai_text"}
