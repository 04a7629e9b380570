"""Who may import whom: the process boundary is an import boundary. And what may be imported or
called by nobody.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BASICS = {
    "types", "errors", "options", "options of methods", "config", "finite", "as_json", "processes",
}  # fmt: skip
MAY_IMPORT = {
    "types": set(),
    "errors": set(),
    "finite": set(),
    "as_json": set(),
    "rl": set(),
    "randomness": {"errors"},
    "processes": {"errors"},
    "portable": {"errors"},
    "options": {"errors"},
    "options of methods": {"options"},
    "programs": {"errors"},
    "__main__": {"programs"},
    "config": {"errors", "options", "options of methods", "programs"},
    "envs": BASICS,
    "prompts": BASICS,
    "experience": BASICS | {"rl", "randomness", "prompts"},
    "rpc": BASICS,
    "llm": BASICS | {"rl", "rpc", "updaters of methods"},
    "methods": BASICS | {"rl", "randomness", "experience", "prompts", "agents"},
    "updaters of methods": BASICS | {"rl", "llm"},
    "agents": BASICS | {"rl", "randomness", "experience", "prompts", "rpc"},
    "training": BASICS
    | {"portable", "rl", "randomness", "experience", "prompts", "envs", "rpc", "agents", "methods"},
    "lamorel": BASICS | {"rpc", "llm", "envs", "programs"},
}
"""Parts of ``lamorel_ext`` by the parts that they may import, besides themselves."""

LAUNCHERS_MAY_IMPORT = {
    "lamorel_ext.config",
    "lamorel_ext.errors",
    "lamorel_ext.processes",
    "lamorel_ext.programs",
    "lamorel_ext.rpc.topology",
    "lamorel_ext.lamorel.alias",
    "lamorel_ext.lamorel.settings",
    "experiments.runs.checks",
    "experiments.runs.entry",
    "experiments.runs.planning",
}
"""From the experiments what reads a command line and checks it, so that nothing waits in a queue
with a mistake in it.
"""
LAUNCHERS_NEVER_IMPORT = {"torch", "transformers", "accelerate", "numpy"}
IN_ACCELERATES_PLACE = "launchers/elastic.py"
"""Runs as a process of its own in the place of ``accelerate launch``."""

RUNS_WHAT_ARRIVES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
FORBIDDEN_CALLS = {"eval", "exec", "torch.load", "torch.save", "numpy.load", "np.load"}
OBJECT_COLLECTIVES = {
    "gather_object",
    "broadcast_object_list",
    "scatter_object_list",
    "all_gather_object",
    "send_object_list",
    "recv_object_list",
}


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every imported module, inside functions too, absolute, with its line; ``from a import b``
    gives ``a.b``.
    """
    package = dotted(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((f"{origin}.{alias.name}", node.lineno) for alias in node.names)


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def part_of(name: str) -> str | None:
    pieces = name.split(".")
    if pieces[:2] == ["lamorel_ext", "methods"] and "updater" in pieces:
        return "updaters of methods"  # the server's half of a method
    if pieces[:2] == ["lamorel_ext", "methods"] and "options" in pieces:
        return "options of methods"
    return pieces[1] if pieces[0] == "lamorel_ext" and len(pieces) > 1 else None


def wrong_imports(path: Path) -> list[str]:
    own = part_of(dotted(path))
    if own is None:
        return []
    found = []
    for name, line in imports(path):
        top, part = name.split(".")[0], part_of(name)
        outside = top in {"experiments", "launchers", "configs", "tests"}
        if outside or (part is not None and part != own and part not in MAY_IMPORT[own]):
            found.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    return found


def test_every_part_of_the_package_has_its_arrows() -> None:
    parts = {
        path.stem
        for path in (ROOT / "lamorel_ext").iterdir()
        if (path.suffix == ".py" or (path / "__init__.py").exists())
    }
    assert parts - {"__init__", "__pycache__"} == set(MAY_IMPORT) - {
        "updaters of methods",
        "options of methods",
    }


def test_parts_import_only_along_the_arrows() -> None:
    assert [wrong for path in modules("lamorel_ext") for wrong in wrong_imports(path)] == []


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("rpc/x.py", "from lamorel_ext.llm import host"),
        ("rpc/x.py", "def f():\n    import lamorel_ext.llm.server"),
        ("agents/x.py", "from ..llm.host import ModelHost"),
        ("llm/x.py", "from lamorel_ext import envs"),
        ("methods/x/updater.py", "import lamorel_ext.envs"),
    ],
)
def test_a_wrong_arrow_is_found(
    place: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lamorel_ext" / place
    path.parent.mkdir(parents=True)
    path.write_text(source)
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert len(wrong_imports(path)) == 1


def test_launchers_import_neither_torch_nor_more_than_they_need() -> None:
    wrong = []
    for path in modules("launchers"):
        if str(path.relative_to(ROOT)) == IN_ACCELERATES_PLACE:
            continue
        for name, line in imports(path):
            ours = name.split(".")[0] in ("lamorel_ext", "experiments") and not any(
                name == one or name.startswith(f"{one}.") for one in LAUNCHERS_MAY_IMPORT
            )
            if ours or name.split(".")[0] in LAUNCHERS_NEVER_IMPORT:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert wrong == []


def test_collectives_live_in_three_files() -> None:
    users = [
        str(path.relative_to(ROOT))
        for path in modules("lamorel_ext")
        if any(name.startswith("torch.distributed") for name, _ in imports(path))
    ]
    # under upstream's Lamorel there are upstream's process groups in place of ours
    upstream = "lamorel_ext/lamorel/upstream.py"
    assert users == [upstream, "lamorel_ext/llm/fsdp.py", "lamorel_ext/rpc/distributed.py"]


def test_nothing_that_arrives_or_lies_on_a_disk_can_run_code() -> None:
    wrong = []
    for path in [*modules("lamorel_ext"), *modules("experiments"), *modules("launchers")]:
        where = path.relative_to(ROOT)
        wrong += [
            f"{where}:{line} imports {name}"
            for name, line in imports(path)
            if name.split(".")[0] in RUNS_WHAT_ARRIVES
        ]
        for name, call in calls(path):
            trusting = [
                word
                for word in call.keywords
                if word.arg == "trust_remote_code" and ast.unparse(word.value) == "True"
            ]
            if name in FORBIDDEN_CALLS or name.split(".")[-1] in OBJECT_COLLECTIVES or trusting:
                wrong.append(f"{where}:{call.lineno} calls {ast.unparse(call):.80}")
    assert wrong == []


def test_a_client_starts_without_transformers_and_the_model_side() -> None:
    programs = ["compare", "train", "evaluate", "generalise", "balrog"]
    server_side = ("transformers", "peft", "lamorel_ext.llm")
    used = (
        "experiments.runs.run_folder, lamorel_ext.rpc.runtime, "
        "lamorel_ext.training.run, lamorel_ext.training.building"
    )
    script = (
        f"import importlib, {used}, sys\n"
        f"for program in {programs!r}:\n"
        "    importlib.import_module(f'experiments.{program}')\n"
        f"    print(program, [n for n in {server_side!r} if n in sys.modules])"
    )
    started = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True
    )
    expected = [f"{program} []" for program in programs]  # the first that has one loaded it
    assert (started.stdout.splitlines(), started.returncode) == (expected, 0), started.stderr


@pytest.mark.parametrize("method", ["cloning", "feedback", "pairs", "ppo"])
def test_a_methods_updater_can_be_what_a_program_imports_first(method: str) -> None:
    """An updater of the user's own derives from it."""
    script = f"import lamorel_ext.methods.{method}.updater"
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


SLOW = ("torch._dynamo", "torch.distributed.tensor", "sympy", "accelerate", "scipy", "matplotlib")
LEARNS = """
import sys
from experiments.train import run
for arm, arguments in {runs!r}.items():
    status = run(arguments)
    print("loaded", arm, [name for name in {slow!r} if name in sys.modules], status)
"""


def test_a_run_loads_no_compiler(tmp_path: Path) -> None:
    arms = {
        "teacher_feedback": [],  # the servers' model is trained, and the student
        "llm_policy": [],
        "teacher_frozen": ["lamorel_args.llm_args.pretrained=false"],  # drawn, not read
    }
    short = ["run.total_steps=64", "run.eval_episodes=1"]
    runs = {
        arm: [f"arm={arm}", f"run.output_dir={tmp_path / arm}", *more, *short]
        for arm, more in arms.items()
    }
    ran = subprocess.run(
        [sys.executable, "-c", LEARNS.format(runs=runs, slow=SLOW)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    loaded = [line for line in ran.stdout.splitlines() if line.startswith("loaded ")]
    assert loaded == [f"loaded {arm} [] 0" for arm in arms], ran.stderr
