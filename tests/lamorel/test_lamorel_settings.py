"""Configurations of Lamorel 0.2, of GLAM and of 0.3 are read; what is not needed is named."""

from typing import Any

import pytest
from omegaconf import OmegaConf

from lamorel_ext.errors import ConfigError
from lamorel_ext.lamorel.settings import Multinode, read_settings


def old(**changes: Any) -> dict[str, Any]:
    config: dict[str, Any] = {
        "log_level": "info", "gloo_timeout": 60, "allow_subgraph_use_whith_gradient": True,
        "distributed_setup_args": {"n_rl_processes": 1, "n_llm_processes": 3},
        "accelerate_args": {
            "config_file": "accelerate/default_config.yaml", "machine_rank": 0, "num_machines": 1,
            "num_processes": 4,
        },
        "llm_args": {
            "model_type": "seq2seq", "model_path": "t5-small", "pretrained": True,
            "minibatch_size": 192, "pre_encode_inputs": True, "load_in_4bit": False,
            "parallelism": {
                "use_gpu": False, "model_parallelism_size": 2,
                "synchronize_gpus_after_scoring": False, "empty_cuda_cache_after_scoring": False,
            },
        },
    }  # fmt: skip
    return {**config, **changes}


def new() -> dict[str, Any]:
    llm = {
        "handler": "hf_llm", "constructor_kwargs": {"torch_dtype": "bfloat16"},
        "model_type": "causal", "model_path": "a/b", "pretrained": True, "minibatch_size": 8,
        "pre_encode_inputs": False, "load_in_4bit": False,
        "allow_subgraph_use_whith_gradient": False, "synchronize_gpus_after_scoring": True,
        "empty_cuda_cache_after_scoring": False,
    }  # fmt: skip
    return {
        "log_level": "debug", "llm_configs": {"main": llm, "other": {**llm, "pad_token_id": 7}},
        "distributed_setup_args": {
            "backend": "gloo", "init_timeout": 120, "timeout": 30, "multinode": False,
            "multinode_args": {"experiment_id": 0}, "n_rl_processes": 2,
            "llm_processes": {
                "main": {"n_processes": 2, "devices_per_process": ["cpu", [1]], "ddp_kwargs": None},
                "other": {"n_processes": 1, "devices_per_process": [[0, 2]]},
            },
        },
    }  # fmt: skip


def test_a_configuration_of_02_is_read_with_lamorels_seed() -> None:
    settings = read_settings(OmegaConf.create(old()))
    assert settings.version == "0.2" and settings.unused == ()
    assert (
        settings.args.distributed_setup_args.n_llm_processes == 3
        and settings.args.gloo_timeout == 60
    )
    assert (
        settings.llms[0].args.seed == 42
        and settings.llms[0].args.parallelism.model_parallelism_size == 2
    )


def test_threads_are_accelerates_or_the_most_of_any_llm() -> None:
    said = changed(old(), "accelerate_args.num_cpu_threads_per_process", 5)
    said["llm_args"]["num_threads"] = 7
    settings = read_settings(said)
    assert (settings.threads, settings.unused) == (5, ())
    both = changed(new(), "llm_configs.main.num_threads", 2)
    both["llm_configs"]["other"]["num_threads"] = 3
    assert read_settings(both).threads == 3


def test_unknown_keys_are_accepted_and_named() -> None:
    config = old(updater_args=None, other={"a": 1})
    config["llm_args"].update(fancy=3, initializer={"_target_": "mine.Loud"}, quantize="int8")
    assert set(read_settings(config).unused) == {
        "lamorel_args.updater_args",
        "lamorel_args.other",
        "llm_args.fancy",
        "llm_args.initializer",
        "llm_args.quantize",
    }


def test_the_silence_that_a_network_may_have_is_read() -> None:
    assert read_settings(old()).args.peer_timeout == 300
    assert read_settings(old(peer_timeout=60)).args.peer_timeout == 60


def test_values_that_are_missing_matter_only_where_they_are_needed() -> None:
    config = old()
    config["accelerate_args"]["main_process_ip"] = "???"
    with pytest.raises(ConfigError, match="accelerate_args.main_process_ip: a value is missing"):
        read_settings(OmegaConf.create(config))


@pytest.mark.parametrize("version", ["0.2", "0.3"])
def test_a_model_must_be_named(version: str) -> None:
    config = old() if version == "0.2" else new()
    where = "llm_args" if version == "0.2" else "llm_configs.main"
    llm = config["llm_args"] if version == "0.2" else config["llm_configs"]["main"]
    llm["model_pth"] = llm.pop("model_path")
    with pytest.raises(ConfigError, match=f"lamorel_args.{where}.model_path: a value is missing"):
        read_settings(OmegaConf.create(config))


def test_every_problem_is_said_at_once() -> None:
    config = old(log_level="loud")
    config["llm_args"].update(minibatch_size="many", pretrained=3, model_type="rnn")
    with pytest.raises(ConfigError) as caught:
        read_settings(config)
    assert all(
        key in str(caught.value)
        for key in ("log_level", "minibatch_size", "pretrained", "model_type")
    )


def test_a_configuration_of_03_names_its_llms_and_their_devices() -> None:
    settings = read_settings(OmegaConf.create(new()))
    main, other = settings.llms
    assert settings.version == "0.3" and settings.args.gloo_timeout == 30
    assert (
        main.servers == range(0, 2) and main.devices == ((), (1,)) and main.args.dtype == "bfloat16"
    )
    assert other.servers == range(2, 3) and other.devices == ((0, 2),) and other.pad_token_id == 7
    assert settings.args.distributed_setup_args.n_llm_processes == 3
    assert main.args.parallelism.synchronize_gpus_after_scoring


@pytest.mark.parametrize("seed", [None, 0, "missing"])
def test_no_seed_is_lamorels(seed: Any) -> None:
    config = old()
    if seed != "missing":
        config["llm_args"]["seed"] = seed
    assert read_settings(config).llms[0].args.seed == 42
    config["llm_args"]["seed"] = 5
    assert read_settings(config).llms[0].args.seed == 5


@pytest.mark.parametrize("handler", ["unsloth", "vllm", 3])
def test_another_handler_is_refused_by_name(handler: Any) -> None:
    config = new()
    config["llm_configs"]["other"]["handler"] = handler
    with pytest.raises(ConfigError, match=f"llm_configs.other.handler: {handler!r} is not here"):
        read_settings(config)
    for same in ("hf_llm", None):
        config["llm_configs"]["other"]["handler"] = same
        assert read_settings(config).unused == ()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("torch_dtype", "auto"),
        ("dtype", "auto"),
        ("revision", "v2"),
        ("subfolder", "a"),
        ("load_in_8bit", True),
        ("max_seq_length", 100),
    ],
)
def test_what_would_load_another_model_is_refused(key: str, value: Any) -> None:
    config = new()
    config["llm_configs"]["main"]["constructor_kwargs"] = {key: value}
    with pytest.raises(ConfigError, match=f"main.constructor_kwargs.{key}: .* is not here"):
        read_settings(config)


def test_how_it_is_loaded_is_named_as_not_used() -> None:
    config = new()
    config["llm_configs"]["main"]["constructor_kwargs"] = {
        "attn_implementation": "sdpa", "device_map": "auto", "revision": None, "dtype": "float32",
    }  # fmt: skip
    settings = read_settings(config)
    assert [each.rpartition(".")[2] for each in settings.unused] == [
        "attn_implementation", "device_map", "revision",
    ]  # fmt: skip
    assert settings.llms[0].args.dtype == "float32"


@pytest.mark.parametrize(
    ("level", "read"),
    [
        ("debug", "debug"), ("INFO", "info"), ("warning", "warning"), ("warn", "warning"),
        ("NOTSET", "debug"), ("critical", "error"),
    ],
)  # fmt: skip
def test_levels_of_logging_and_timeouts_are_read(level: str, read: str) -> None:
    args = read_settings(old(log_level=level, gloo_timeout=7)).args
    assert args.gloo_timeout == 7 and args.log_level == read
    config = old()
    del config["gloo_timeout"], config["log_level"]
    args = read_settings(config).args
    assert args.gloo_timeout == 1800 and args.log_level == "info"


def test_what_is_not_needed_of_03_is_accepted() -> None:
    config = new()
    setup = config["distributed_setup_args"]
    setup.update(backend="nccl", init_timeout=None, timeout=None)
    setup["llm_processes"]["main"]["ddp_kwargs"] = {"find_unused_parameters": True}
    config["llm_configs"]["main"]["allow_subgraph_use_whith_gradient"] = True
    settings = read_settings(config)
    assert settings.unused == ("distributed_setup_args.llm_processes.main.ddp_kwargs",)
    assert settings.args.gloo_timeout == 1800


def test_launches_of_one_process_each_meet_at_an_address() -> None:
    config = new()
    assert read_settings(config).multinode is None
    setup = config["distributed_setup_args"]
    setup["multinode"] = True
    with pytest.raises(ConfigError, match="multinode needs main_process_ip and main_process_port"):
        read_settings(config)
    setup["multinode_args"].update(main_process_ip="host", main_process_port=25000)
    assert read_settings(config).multinode == Multinode("host", 25000, 0)


@pytest.mark.parametrize(
    ("key", "value"), [("main_process_ip", "???"), ("main_process_port", "25000"), ("a", 1)]
)
def test_a_meeting_place_that_cannot_be_is_refused(key: str, value: Any) -> None:
    config = new()
    place = {"main_process_ip": "host", "main_process_port": 25000, "experiment_id": "x"}
    config["distributed_setup_args"].update(multinode=True, multinode_args={**place, key: value})
    if key == "a":
        assert read_settings(config).unused == ("distributed_setup_args.multinode_args.a",)
        return
    with pytest.raises(ConfigError, match=f"multinode_args.{key}"):
        read_settings(config)


@pytest.mark.parametrize("devices", [None, ["cpu"], ["cpu", "gpu"], ["cpu", []], ["cpu", [-1]]])
def test_devices_that_do_not_fit_are_refused(devices: Any) -> None:
    config = new()
    config["distributed_setup_args"]["llm_processes"]["main"]["devices_per_process"] = devices
    with pytest.raises(ConfigError, match="llm_processes.main.devices_per_process"):
        read_settings(config)


def test_llms_without_processes_are_refused() -> None:
    config = new()
    del config["distributed_setup_args"]["llm_processes"]["other"]
    with pytest.raises(ConfigError, match="the same LLMs in both"):
        read_settings(config)


def changed(config: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """The configuration with a value in place of what is there."""
    *groups, last = key.split(".")
    place = config
    for group in groups:
        place = place[group]
    place[last] = value
    return config


SETUP = "distributed_setup_args"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (SETUP, 1), (f"{SETUP}.llm_processes", 1), (f"{SETUP}.llm_processes.main", 1),
        (f"{SETUP}.llm_processes.main.n_processes", 0), (f"{SETUP}.n_rl_processes", 0),
        (f"{SETUP}.timeout", "long"), ("llm_configs", "a/b"), ("llm_configs.main", "a/b"),
        ("llm_configs.main.minibatch_size", 0), ("llm_configs.main.parallelism", True),
        ("llm_configs.main.lora", 3), ("llm_configs.main.lora", {"target_modules": 3}),
        ("llm_configs.main.constructor_kwargs", True), ("llm_configs.main.pad_token_id", "abc"),
        ("llm_configs.main.pad_token_id", -1),
    ],
)  # fmt: skip
def test_a_mistake_in_03s_sections_is_told_by_its_key(key: str, value: Any) -> None:
    for config in (changed(new(), key, value), OmegaConf.create(changed(new(), key, value))):
        with pytest.raises(ConfigError) as caught:
            read_settings(config)
        assert any(f"lamorel_args.{key}" in problem for problem in caught.value.problems)
        assert "llm_args" not in str(caught.value) and "n_llm_processes" not in str(caught.value)


def test_03_needs_an_llm() -> None:
    config = changed(new(), f"{SETUP}.llm_processes", {})
    with pytest.raises(ConfigError, match="llm_configs: must name at least one LLM"):
        read_settings({**config, "llm_configs": None})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("distributed_setup_args.n_llm_processes", 0), ("llm_args.minibatch_size", 0),
        ("llm_args.parallelism", True), ("llm_args.parallelism.model_parallelism_size", 0),
        ("distributed_setup_args.merge_wait_s", "soon"),
        ("accelerate_args.num_cpu_threads_per_process", 0),
    ],
)  # fmt: skip
def test_a_mistake_in_02s_sections_is_told_by_its_key(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"- lamorel_args.{key}: ") as caught:
        read_settings(changed(old(), key, value))
    assert len(caught.value.problems) == 1


def test_each_entry_of_02s_devices_that_is_no_list_is_told_by_its_place() -> None:
    config = changed(old(), f"{SETUP}.devices_per_process", [1, [0], 1])
    with pytest.raises(ConfigError) as caught:
        read_settings(config)
    assert list(caught.value.problems) == [
        f"lamorel_args.{SETUP}.devices_per_process[{place}]: expected a list, got 1"
        for place in (0, 2)
    ]
    read = read_settings(changed(old(), f"{SETUP}.devices_per_process", [[1], [0], []]))
    assert read.args.distributed_setup_args.devices_per_process == ((1,), (0,), ())


@pytest.mark.parametrize("config", [{}, {"log_level": "info"}])
def test_it_must_be_one_of_both(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected llm_args"):
        read_settings(config)


def test_where_both_are_there_03_counts() -> None:
    settings = read_settings({**new(), "llm_args": {"model_type": "seq2seq"}})
    assert settings.version == "0.3" and settings.unused == ("lamorel_args.llm_args",)
