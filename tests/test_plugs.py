"""What a configuration names by ``_target_``: read, written, imported and refused."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from lamorel_ext.config import (
    Plug,
    check_trust,
    from_mapping,
    load_config,
    plugs_of,
    read_config,
    save_config,
    to_mapping,
)
from lamorel_ext.errors import ConfigError
from lamorel_ext.options import number

HERE = __name__
EVERY = [
    "env._target_=my_game.Game",
    "env.size=5",
    "agent._target_=my_agents:Mine",
    "method._target_=my_methods.Kind",
    "method.coef=2.5",
    "updaters.mine._target_=my_updaters.Mine",
    "heads.mine._target_=my_heads.Mine",
    "heads.mine.sizes=[3,4]",
    "lamorel_args.llm_args.initializer._target_=my_start.Mine",
    "feedback.signal=none",
]


@dataclass(frozen=True)
class Options:
    coef: float = number(1.0, at_least=0)
    size: int = number(3, at_least=1)


class Declared:
    arguments_type = Options

    def __init__(self, setting: object, options: Options) -> None:
        self.options = options


def plain_function(first: int, size: int = 2) -> tuple[int, int]:
    return first, size


NO_FUNCTION = 5


def test_plugs_are_read_written_and_read_again(tmp_path: Path) -> None:
    config = load_config(EVERY)
    assert [key for key, _ in plugs_of(config)] == [
        "lamorel_args.llm_args.initializer",
        "env",
        "agent",
        "method",
        "updaters.mine",
        "heads.mine",
    ]
    assert config.env.own.keywords == {"size": 5} and config.arm.agent == "own"
    assert dict(config.heads.named)["mine"].keywords == {"sizes": [3, 4]}
    assert from_mapping(to_mapping(config)) == config
    save_config(config, tmp_path / "config.yaml")
    assert read_config(tmp_path / "config.yaml") == config


def test_an_argument_may_be_infinite(tmp_path: Path) -> None:
    config = load_config(["env._target_=my_game.Game", "env.limit=inf", "env.name=NaN"])
    assert config.env.own.keywords == {"limit": float("inf")}
    save_config(config, tmp_path / "config.yaml")
    assert read_config(tmp_path / "config.yaml") == config


def test_a_configuration_without_plugs_has_no_keys_of_theirs() -> None:
    mapping = to_mapping(load_config([]))
    assert not {"agent", "method", "updaters", "heads"} & set(mapping)
    assert "_target_" not in mapping["env"]


@pytest.mark.parametrize(
    "override, words",
    [
        ("agent=5", "agent: expected {_target_: package.module.Name, ...}, got 5"),
        ("updaters=3", "updaters: expected names"),
        ("heads.mine.width=3", "heads.mine: expected"),
        ("env.size=5", "env.size: unknown key"),
        ("env={_target_: my_game.Game, sizes: [1, nan]}", "env: an argument is nan"),
        ("arm.agent=own", "agent._target_: must name the agent"),
        (
            "lamorel_args.distributed_setup_args.client_devices=[0]",
            "client_devices: only an agent of one's own (agent._target_) computes on a GPU",
        ),
    ],
)
def test_what_names_nothing_is_refused(override: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config([override, "feedback.signal=none"])
    assert words in str(caught.value)


def test_it_is_called_with_its_arguments() -> None:
    plug = Plug(f"{HERE}.plain_function", '{"size": 7}')
    assert plug.make("env", 1) == (1, 7)
    made = Plug(f"{HERE}:Declared", '{"coef": 0.5}').make("method", None)
    assert made.options == Options(0.5, 3)


@pytest.mark.parametrize(
    "target, arguments, words",
    [
        ("no_such_package.Name", "{}", "No module named 'no_such_package'"),
        (f"{HERE}.NoName", "{}", "NoName"),
        (f"{HERE}.NO_FUNCTION", "{}", "is a int, not a class or function"),
        (f"{HERE}.plain_function", '{"sise": 7}', "unexpected keyword argument 'sise'"),
        (f"{HERE}.Declared", '{"coeff": 1, "size": 0}', "method.coeff: unknown key (did you"),
        (f"{HERE}.Declared", '{"coeff": 1, "size": 0}', "method.size: must be at least 1"),
        (f"{HERE}.Declared", '{"coef": NaN}', "method.coef: must be a number"),
    ],
)
def test_what_cannot_be_called_is_told_by_its_key(target: str, arguments: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Plug(target, arguments).check("method", 1)
    assert words in str(caught.value)


def test_an_error_in_a_module_of_ones_own_is_told_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_broken.py").write_text("x = 1\nx = 1 / 0\n")
    (tmp_path / "my_needy.py").write_text("import my_missing\n")
    (tmp_path / "my_leaver.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"ZeroDivisionError: .*my_broken.py, line 2"):
        Plug("my_broken.Name").check("agent", 1)
    with pytest.raises(ConfigError, match="No module named 'my_missing'"):
        Plug("my_needy.Name").check("agent", 1)
    with pytest.raises(
        ConfigError, match=r"agent._target_: .*SystemExit: 0 .*my_leaver.py, line 2"
    ):
        Plug("my_leaver.Name").check("agent", 1)


def test_code_named_by_somebody_elses_configuration_needs_trust() -> None:
    config = load_config(EVERY)
    with pytest.raises(ConfigError) as caught:
        check_trust(config, "runs/sent/config.yaml", ["my_game", "my_agents", "my_methods.Kind"])
    message = str(caught.value)
    assert "updaters.mine._target_ is my_updaters.Mine" in message and "--trust my_start" in message
    assert "my_game" not in message and "my_methods" not in message
    check_trust(load_config(["method._target_=lamorel_ext.methods.x.Y"]), "run", [])
    with pytest.raises(ConfigError):
        check_trust(load_config(["method._target_=lamorel_extra.Y"]), "run", [])


def test_an_updater_with_options_of_its_requests_is_made_without_them() -> None:
    made = Plug("lamorel_ext.methods.pairs.updater.PairUpdater").make("updaters.mine")
    assert made.name == "preferences"
