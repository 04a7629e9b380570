"""What users write: overrides and files of every kind give a configuration or a ConfigError, never
anything else.

``python tests/test_config_input.py 20000 1`` tries that many of each kind and composes every one of
them whole; 100 in place of 1 composes every hundredth. Composing takes 0.1 seconds, so that 20,000
take an hour of one core. A third number is the seed.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from experiments.runs.entry import run_main
from experiments.runs.planning import plan
from lamorel_ext.config import (
    CONFIG_DIR,
    from_mapping,
    load_config,
    load_matrix,
    read_config,
    save_config,
    sweep,
)
from lamorel_ext.config.overrides import Parsed, parse_override, quote
from lamorel_ext.errors import (
    CheckpointError,
    ConfigError,
    LamorelExtError,
    ModelLoadError,
    NotThereError,
    RemoteError,
    WriteError,
)
from lamorel_ext.methods.told import read_lines, read_traces

KEYS = [
    "run.output_dir", "run.seed", "compare.seeds", "compare.seeds[0]", "arm", "task", "env", "run",
    "feedback.lr", "env.curriculum", "x.y", "", "hydra.searchpath", "ünï", "run.seed.x",
    "model@env",
]  # fmt: skip
PIECES = [
    "a", "1", "-", "e", ".", "=", "#", "~", "ü", "[", "]", "{", "}", "'", '"', ",", ":", "$", "${",
    "\\", " ", "(", ")", "\n", "\t", "\0", "\ud800", "/", "null", "true", "nan", "inf", "*", "&",
    "!", "|", "\u2028", "%", "@",
]  # fmt: skip
LINES = [
    "run:", "  seed: 1", "  output_dir: ", "- a", "a: &a [x]", "b: *a", "\tc: 1", "{", "[",
    "defaults: [x]", "? y", "!!python/name:os", "<<: *a", "~: 1", "'", "---", "# c",
    "env: {num_envs: .nan}", "1: 2", ": ",
]  # fmt: skip


def draw_override(rng: random.Random) -> str:
    value = "".join(rng.choices(PIECES, k=rng.randrange(8)))
    return (
        rng.choice(["", "", "", "+", "++", "~"])
        + rng.choice(KEYS)
        + rng.choice(["=", "=", "=", ""])
        + value
    )


def draw_file(rng: random.Random) -> bytes:
    text = "\n".join(
        rng.choices(LINES, k=rng.randrange(6)) + rng.choices(PIECES, k=rng.randrange(3))
    )
    content = bytearray(text.encode("utf-8", "surrogatepass"))
    for _ in range(rng.randrange(3)):
        if content:
            content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content)


def undocumented(number: int, whole: int, folder: Path, seed: int = 0) -> list[str]:
    """Inputs that end in anything but a value or a ConfigError.

    Args:
        number: Of command lines and of files.
        whole: Every so many are composed to a configuration, too.
        folder: For the files.
        seed: Of the inputs.
    """
    rng, found, path = random.Random(seed), [], folder / "file.yaml"
    for place in range(number):
        overrides = [draw_override(rng) for _ in range(rng.choice((1, 1, 2, 3)))]
        content = draw_file(rng)
        path.write_bytes(content)
        attempts: list[tuple[object, Callable[[], object]]] = [
            (overrides, partial(list, map(parse_override, overrides))),
            (content, partial(read_config, path)),
        ]
        if place % whole == 0:
            attempts += [
                (overrides, partial(load_config, overrides)),
                (content, partial(load_config, (), path.stem, folder)),
            ]
        for given, attempt in attempts:
            try:
                attempt()
            except ConfigError:
                pass
            except Exception as error:
                found.append(f"{given!r}: {error!r}")
    return found


def test_fuzzed_overrides_and_files_give_documented_errors_only(tmp_path: Path) -> None:
    assert undocumented(300, 20, tmp_path) == []


@pytest.mark.parametrize(
    "value",
    [
        "out/lr=1e-4", "a#b", "~x", "out/ünï", "a b", "C:\\runs\\a=b", "a{b}", "it's", "x=\\",
        "f(x)", "$HOME", "007",
    ],
)  # fmt: skip
def test_a_value_is_taken_as_it_is_written(value: str) -> None:
    found = parse_override(f"run.output_dir={value}")
    assert isinstance(found, Parsed) and (found.key, str(found.value)) == ("run.output_dir", value)


@pytest.mark.parametrize("value", ["a'b", "a\\'b", "a\\", "\\\\", "'", "[a,b]", "=", "#"])
def test_what_is_quoted_comes_back(value: str) -> None:
    found = parse_override(f"k={quote(value)}")
    assert isinstance(found, Parsed) and found.value == value


def test_list_items_and_trailing_commas_and_plus_signs_and_null_are_taken() -> None:
    given = [
        "compare.seeds[0]=5",
        "compare.arms=[llm_policy,]",
        "+task=go_to_local",
        "run.output_dir=2026",
    ]
    config = load_config(given)
    assert config.compare.seeds == (5, 1, 2) and config.compare.arms == ("llm_policy",)
    assert config.env.name == "go_to_local" and config.run.output_dir == "2026"
    assert load_config(["task=null"]).env.name == ""


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("run.output_dir=", "run.output_dir: must not be empty"),
        ("compare.output_dir=", "compare.output_dir: must not be empty"),
        ("lamorel_args.llm_args.model_path=", "model_path: must not be empty"),
        ("compare.seeds[7]=5", "compare.seeds[7]: there are 3 values"),
        ("run.output_dir='a", "stops at character 16"),
        ("compare.arms=[[a=b]]", "Hydra: no viable alternative at input '[[a='"),
        ("run.seed=1,2", "one run has one value here"),
        ("run.total_steps=1e6", "expected int, got 1000000.0; write 1000000"),
        ("env.num_workers=2.0", "expected int, got 2.0; write 2"),
        ("run.seed=1.5", "expected int, got 1.5"),
        ("compare.seeds={0: 1}", "compare.seeds: expected a list, got {'0': 1}"),
        ("env.curriculum={level: x}", "env.curriculum: expected a list, got {'level': 'x'}"),
        ("task=go_to_loca", "did you mean go_to_local?"),
        ("model=smolm2", "did you mean smollm2?"),
        ("arm=teacher_froze", "did you mean teacher_frozen?"),
    ],
)
def test_what_cannot_be_meant_is_said_with_its_reason(override: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config([override])
    assert words in str(caught.value)


def test_a_number_of_more_digits_than_python_reads_is_taken_as_a_text() -> None:
    digits = 5000 * "1"
    with pytest.raises(ConfigError, match="run.seed: expected int, got '111"):
        load_config([f"run.seed={digits}"])
    assert load_config([f"compare.name={digits}"]).compare.name == digits
    assert len(sweep([f"compare.name={digits}", "run.seed=0,1"], [CONFIG_DIR])) == 2


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("run.seed=range(0,3,0)", "must not be zero"),
        ("student.lr=range(0,0.5,0.0)", "Invalid range values"),
        ("student.lr=range(0,0.5,1e-320)", "expected at most 10000 values"),
        ("run.seed=range(0,1000000000)", "expected at most 10000 values"),
        ("run.seed=shuffle(range(0,1000000000))", "expected at most 10000 values"),
    ],
)
def test_a_range_without_end_is_refused_at_once(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        sweep([override], [CONFIG_DIR])


def test_a_file_of_a_group_that_leads_back_to_itself_is_not_blamed_on_another_one(
    tmp_path: Path,
) -> None:
    (tmp_path / "arm").mkdir()
    (tmp_path / "arm/loop.yaml").write_text("defaults: [loop]\n")
    with pytest.raises(ConfigError) as caught:
        load_config(["arm=loop"], config_dir=tmp_path)
    assert "default.yaml with ['arm=loop']: the defaults of a file that" in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        "env.num_envs=0",
        "student.num_steps=0",
        "compare.arms=[{feedback.signal: gae}]",
        "compare.seeds=[a]",
        "student.num_steps=x",
    ],
)
def test_what_follows_from_a_mistake_is_not_another_one(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config([override])
    assert len(caught.value.problems) == 1, caught.value


def test_both_mistakes_are_named() -> None:
    with pytest.raises(ConfigError) as caught:
        load_matrix(["feedback.lr=fast", "compare.seeds=[0,0]"])
    assert {problem.split(":")[0] for problem in caught.value.problems} == {
        "feedback.lr",
        "compare.seeds",
    }
    with pytest.raises(ConfigError, match="set compare.arms"):
        plan(["+arm=llm_policy"])


@pytest.mark.parametrize(
    "key",
    [
        "run.output_dir",
        "compare.output_dir",
        "lamorel_args.llm_args.model_path",
        "lamorel_args.accelerate_args.config_file",
    ],
)
def test_a_tilde_is_home_in_every_path(key: str) -> None:
    found: object = load_config([f"{key}=~/x"])
    for name in key.split("."):
        found = getattr(found, name)
    assert found == os.path.expanduser("~/x")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("run:\n  output_dir: ü\n".encode("latin-1"), "line 2: expected UTF-8"),
        (b"- a\n", "line 1: expected keys with values"),
        (b"1", "line 1: expected keys with values"),
        (b"# c\nword\n", "line 2: expected keys with values"),
        (b"2026-11-26\n", "line 1: expected keys with values"),
        (b"&a null\n", "line 1: expected keys with values"),
        (b"", "line 1: the file is empty"),
        (b"run:\n\tseed: 1\n", "line 2: no YAML"),
        (b"run: {seed: 1}\nrun: {seed: 2}\n", "line 2"),
        (b"\xef\xbb\xbfrun: {seed: 1}\n", "byte order mark"),
        (b"a: &a [*a]\n", "line 1: *a stands within its own anchor"),
        (b"defaults: [mine, _self_]\n", "lead back to themselves: mine -> mine"),
        (b"a: " + b"[" * 5000, "line 1: nested deeper"),
        (
            b"".join(
                b"%c: &%c [%s]\n" % (c, c, b",".join([b"*%c" % (c - 1) if c > 97 else b"1"] * 9))
                for c in range(97, 108)
            ),
            "its anchors stand for",
        ),
    ],
)
def test_a_file_that_is_no_configuration_is_named_with_its_line(
    content: bytes, words: str, tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config((), "mine", tmp_path)
    assert words in str(caught.value) and str(tmp_path / "mine.yaml") in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "feedback: {lr: 1e-4, kl_coef: 1_0, entropy_coef: .5}\nstudent: {lr: 3e-4}\n",
        "run: {output_dir: 2026-11-26, seed: 0x10}\n",
        "run: {output_dir: 1e3, portable: true}\ncompare: {name: 'yes'}\n",
        "run: {output_dir: '${compare.name}/x'}\ncompare: {name: y}\n",
    ],
)
def test_a_runs_file_is_read_as_omegaconf_reads_it(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    plain = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    assert isinstance(plain, dict)

    def found(read: Callable[[], object]) -> str:
        try:
            return repr(read())
        except ConfigError as error:
            return str(error)

    expected = found(lambda: from_mapping({str(key): value for key, value in plain.items()}))
    assert found(lambda: read_config(path)) == expected


@pytest.mark.parametrize(
    "text", ["${x}", "\\${x}", "\\\\${x", "a ${b}${c}\\", "$${", "$\\{", "???"]
)
def test_a_text_is_written_so_that_it_is_read_back(text: str, tmp_path: Path) -> None:
    own = {"_target_": "my_game.Game", "texts": [text, "a"]}
    config = from_mapping({"compare": {"name": text}, "env": own})
    save_config(config, tmp_path / "config.yaml")
    assert read_config(tmp_path / "config.yaml") == config
    assert load_config((), "config", tmp_path).compare.name == text


def test_a_key_that_stands_twice_in_a_runs_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("run: {seed: 1, seed: 2}\n")
    with pytest.raises(ConfigError, match=r"config\.yaml: .*duplicate key seed"):
        read_config(path)
    path.write_text("run: {seed: 3}\n")  # the same file, another text
    assert read_config(path).run.seed == 3


def test_single_files_of_a_group_are_found_in_folders_of_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, name in (("configs", "here"), ("other", "there")):
        (tmp_path / folder / "arm").mkdir(parents=True)
        text = (
            f"# @package _global_\narm: {{name: {name}, teacher: none}}\n"
            "feedback: {signal: none}\n"
        )
        (tmp_path / folder / "arm" / f"{name}.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert load_config(["arm=here"]).arm.name == "here"
    assert load_config(["arm=there"], config_dir="other").arm.name == "there"
    assert load_config(["arm=there", f"hydra.searchpath=[{tmp_path}/other]"]).arm.name == "there"


@pytest.mark.parametrize("name", ["tâche à moi", "my task", "2000", "a=b", "it's #1"])
def test_a_file_of_a_group_may_have_any_name(name: str, tmp_path: Path) -> None:
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / f"{name}.yaml").write_text(
        "# @package _global_\nenv: {level: BabyAI-OpenDoor-v0}\n"
    )
    chosen = load_config([f"task={quote(name)}"], config_dir=tmp_path)
    listed = load_matrix(
        [f"compare.tasks=[{quote(name)}]", "compare.arms=[bot]"], "default", tmp_path
    )
    assert {chosen.env.level, *(one.env.level for one in listed.values())} == {"BabyAI-OpenDoor-v0"}


def test_a_home_of_nobody_is_no_folder(tmp_path: Path) -> None:
    nobody = "~nosuchuser/x"
    with pytest.raises(ConfigError, match=f"--config-dir {nobody}: no such folder"):
        load_config((), config_dir=nobody)
    with pytest.raises(ConfigError, match=f"/{nobody}' exists"):
        load_config([f"hydra.searchpath=['{nobody}']"])
    with pytest.raises(NotThereError, match=f"method.traces: {nobody}"):
        read_traces(Path(nobody))
    with pytest.raises(NotThereError, match=f"method.rankings: {nobody}: no such file"):
        read_lines("method.rankings", Path(nobody), "rankings", str)


def test_a_search_path_that_names_an_unset_variable_is_told_with_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MY_CONFS", raising=False)
    (tmp_path / "mine.yaml").write_text(
        "defaults: [default, _self_]\nhydra: {searchpath: ['file://${oc.env:MY_CONFS}']}\n"
    )
    with pytest.raises(ConfigError, match=r"mine.yaml .*'MY_CONFS' not found"):
        load_config((), "mine", tmp_path)


def test_two_is_for_what_the_user_said_wrong_and_one_for_what_went_wrong() -> None:
    def status(error: LamorelExtError, reads: bool = False) -> int:
        def program(_: object) -> int:
            raise error

        return run_main(program, [], reads)

    assert [status(kind("x")) for kind in (ConfigError, ModelLoadError, NotThereError)] == [2, 2, 2]
    assert [status(kind("x")) for kind in (CheckpointError, WriteError, LamorelExtError)] == [
        1,
        1,
        1,
    ]
    assert [status(kind("x"), reads=True) for kind in (CheckpointError, WriteError)] == [2, 1]
    assert status(RemoteError(1, "llm server 0", "ModelLoadError", "x", "")) == 2
    assert status(RemoteError(1, "llm server 0", "KeyError", "x", "")) == 1


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        count, whole, seed = [int(each) for each in (*sys.argv[1:], "100", "0")[:3]]
        wrong = undocumented(count, whole, Path(temporary), seed)
    print("\n".join(wrong[:20]))
    print(f"{count} command lines and files, {len(wrong)} undocumented errors")
    sys.exit(1 if wrong else 0)
