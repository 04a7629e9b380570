"""Reading Lamorel's configurations, those of 0.2 and of the branch v0.3, into the package's own.

What is not needed here is accepted and named once, in one line.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from lamorel_ext.config import (
    AccelerateArgs,
    DistributedSetupArgs,
    LamorelArgs,
    LlmArgs,
    LoraArgs,
    ParallelismArgs,
)
from lamorel_ext.config.typed import build
from lamorel_ext.errors import ConfigError
from lamorel_ext.options import out_of_bounds

logger = logging.getLogger("lamorel_logger")

Version = Literal["0.2", "0.3"]
DEFAULT_SEED = 42
"""Lamorel's, where ``llm_args.seed`` is missing."""
DEFAULT_TIMEOUT_S, DEFAULT_PEER_TIMEOUT_S = 1800, 300
"""Where ``gloo_timeout``, or 0.3's ``timeout``, and ``peer_timeout`` are missing."""

THREADS = "num_cpu_threads_per_process"
"""Accelerate's, which Lamorel's launcher hands on as every key of ``accelerate_args``."""
_NEEDED_LATER = frozenset(
    {"handler", "constructor_kwargs", "pad_token_id", "allow_subgraph_use_whith_gradient"}
)
_SETUP_03 = frozenset(
    {
        "n_rl_processes",
        "llm_processes",
        "timeout",
        "init_timeout",
        "backend",
        "multinode",
        "multinode_args",
    }
)
_DTYPE_NAMES = {"torch_dtype": "dtype", "dtype": "dtype"}
_HOW_IT_IS_LOADED = frozenset(
    {
        "attn_implementation",
        "cache_dir",
        "device_map",
        "force_download",
        "local_files_only",
        "low_cpu_mem_usage",
        "max_memory",
        "offload_folder",
        "proxies",
        "resume_download",
        "token",
        "use_auth_token",
        "use_cache",
        "use_safetensors",
    }
)
"""Of transformers' ``from_pretrained``: they choose no weights and no arithmetic but rounding."""


@dataclass(frozen=True)
class LlmSettings:
    """One LLM of a launch.

    Attributes:
        name: Its key in ``llm_configs``; ``""`` in 0.2, which has one.
        version: Of the configuration, which decides what updaters and module functions are given.
        args: The package's own keys.
        servers: Numbers of its servers among all.
        devices: 0.3's ``devices_per_process``: for each server ``"cpu"`` or its GPUs; empty in
            0.2, which places servers by ``parallelism``.
        pad_token_id: For tokenizers without one.
        raw: The configuration as the user's functions see it.
    """

    name: str
    version: Version
    args: LlmArgs
    servers: range
    devices: tuple[tuple[int, ...], ...] = ()
    pad_token_id: int | None = None
    raw: Any = None


@dataclass(frozen=True)
class Multinode:
    """0.3's ``multinode_args``: where launches of one process each meet."""

    main_process_ip: str = ""
    main_process_port: int = 0
    experiment_id: int | str = 0


@dataclass(frozen=True)
class Settings:
    """A launch: Lamorel's keys for roles and addresses, and the LLMs; with ``multinode`` a launch
    is one process of it.

    Attributes:
        unused: Keys that are not needed here.
        threads: Of each process for PyTorch; 0 where no key says it.
    """

    args: LamorelArgs
    llms: tuple[LlmSettings, ...]
    unused: tuple[str, ...] = field(default=())
    multinode: Multinode | None = None
    threads: int = 0

    @property
    def version(self) -> Version:
        """Of the configuration."""
        return self.llms[0].version


def read_settings(config: Any) -> Settings:
    """Read ``lamorel_args``.

    Args:
        config: OmegaConf's or a plain mapping.

    Raises:
        ConfigError: A value is missing or cannot be; every problem in a line of its own.
    """
    problems: list[str] = []
    unused: list[str] = []
    plain = _plain(config)
    new = "llm_configs" in plain
    if not new and "llm_args" not in plain:
        raise ConfigError("lamorel_args: expected llm_args (Lamorel 0.2) or llm_configs (0.3)")
    read = _read_03 if new else _read_02
    args, llms = read(plain, config, problems, unused)
    problems += out_of_bounds(args, "lamorel_args.")  # 0.2's LLM is among them
    for llm in llms:
        if llm.name:
            problems += out_of_bounds(llm.args, f"lamorel_args.llm_configs.{llm.name}.")
    multinode = _multinode(plain, problems, unused) if new else None
    accelerate = _section(plain, "accelerate_args", [])
    threads = _number(accelerate, THREADS, problems, "accelerate_args.", default=0)
    threads = threads or max((llm.args.num_threads for llm in llms), default=0)
    if problems:
        raise ConfigError(problems)
    return Settings(args, llms, tuple(unused), multinode, threads)


def say_unused(settings: Settings) -> None:
    """Name the keys that are not needed here; once."""
    if settings.unused:
        logger.warning(f"not used here: {', '.join(settings.unused)}")


# --- 0.2 ------------------------------------------------------------------------------------------


def _read_02(
    plain: Mapping[str, Any], config: Any, problems: list[str], unused: list[str]
) -> tuple[LamorelArgs, tuple[LlmSettings, ...]]:
    known = {each.name for each in fields(LamorelArgs)}
    unused += [f"lamorel_args.{key}" for key in plain if key not in known]
    setup = _take(
        DistributedSetupArgs,
        _section(plain, "distributed_setup_args", problems),
        "distributed_setup_args",
        problems,
        unused,
    )
    accelerate = _section(plain, "accelerate_args", problems)
    for key in ("num_processes", THREADS):  # the launcher's own
        accelerate.pop(key, None)
    accelerated = _take(AccelerateArgs, accelerate, "accelerate_args", problems, unused)
    llm = _llm_args(_section(plain, "llm_args", problems), "llm_args", problems, unused)
    args = _lamorel_args(plain, problems, setup, accelerated, llm)
    raw = getattr(config, "llm_args", None)
    return args, (LlmSettings("", "0.2", llm, range(setup.n_llm_processes), raw=raw),)


def _lamorel_args(
    plain: Mapping[str, Any],
    problems: list[str],
    setup: DistributedSetupArgs,
    accelerate: AccelerateArgs,
    llm: LlmArgs,
) -> LamorelArgs:
    level = str(plain.get("log_level", "info")).lower()
    level = {"warn": "warning", "notset": "debug"}.get(level, level)  # Python's own other names
    if not isinstance(getattr(logging, level.upper(), None), int):
        problems.append(f"lamorel_args.log_level: no level of logging is called {level!r}")
        level = "info"
    subgraphs = bool(plain.get("allow_subgraph_use_whith_gradient", False))
    if level not in ("debug", "info", "warning", "error"):
        level = "error"
    return LamorelArgs(
        log_level=level,  # type: ignore[arg-type]
        gloo_timeout=_number(plain, "gloo_timeout", problems, default=DEFAULT_TIMEOUT_S),
        peer_timeout=_number(plain, "peer_timeout", problems, default=DEFAULT_PEER_TIMEOUT_S),
        allow_subgraph_use_whith_gradient=subgraphs,
        distributed_setup_args=setup,
        accelerate_args=accelerate,
        llm_args=llm,
    )


# --- 0.3 ------------------------------------------------------------------------------------------


def _read_03(
    plain: Mapping[str, Any], config: Any, problems: list[str], unused: list[str]
) -> tuple[LamorelArgs, tuple[LlmSettings, ...]]:
    known = {"log_level", "llm_configs", "distributed_setup_args", "peer_timeout"}
    unused += [f"lamorel_args.{key}" for key in plain if key not in known]
    setup = _section(plain, "distributed_setup_args", problems)
    unused += [f"distributed_setup_args.{key}" for key in setup if key not in _SETUP_03]
    processes = _section(setup, "llm_processes", problems, "distributed_setup_args.")
    configs = _section(plain, "llm_configs", problems)
    if not processes and not configs:
        problems.append("lamorel_args.llm_configs: must name at least one LLM")
    if processes.keys() != configs.keys():
        problems.append(
            f"distributed_setup_args.llm_processes names {', '.join(processes) or 'none'},"
            f" llm_configs {', '.join(configs) or 'none'}; expected the same LLMs in both"
        )
    llms: list[LlmSettings] = []
    first = 0
    for name in processes:
        where = f"distributed_setup_args.llm_processes.{name}"
        own = _section(processes, name, problems, "distributed_setup_args.llm_processes.")
        count = _number(own, "n_processes", problems, f"{where}.")
        own.pop("n_processes", None)
        devices = _devices(own.pop("devices_per_process", None), count, where, problems)
        if own.pop("ddp_kwargs", None):
            unused.append(f"{where}.ddp_kwargs")
        unused += [f"{where}.{key}" for key in own]
        values = _section(configs, name, problems, "llm_configs.")
        pad = _number(values, "pad_token_id", problems, f"llm_configs.{name}.", None, at_least=0)
        llm = _llm_args(values, f"llm_configs.{name}", problems, unused)
        servers = range(first, first + count)
        raw = config.llm_configs.get(name) if configs and hasattr(config, "llm_configs") else values
        llms.append(LlmSettings(name, "0.3", llm, servers, devices, pad, raw))
        first = servers.stop
    within = "distributed_setup_args."
    rl = _number(setup, "n_rl_processes", problems, within)
    timeout = _number(setup, "timeout", problems, within, DEFAULT_TIMEOUT_S)
    args = _lamorel_args(
        {**plain, "gloo_timeout": timeout},
        problems,
        DistributedSetupArgs(rl, max(1, first)),
        AccelerateArgs(),
        LlmArgs(),
    )
    return args, tuple(llms)


def _multinode(
    plain: Mapping[str, Any], problems: list[str], unused: list[str]
) -> Multinode | None:
    setup = _section(plain, "distributed_setup_args", [])
    if not setup.get("multinode"):
        return None
    where = "distributed_setup_args.multinode_args"
    given = _section(setup, "multinode_args", problems, "distributed_setup_args.")
    found: Multinode = _take(Multinode, given, where, problems, unused)
    if not found.main_process_ip or not found.main_process_port:
        problems.append(
            f"lamorel_args.{where}: multinode needs main_process_ip and main_process_port, got"
            f" {given!r:.80}"
        )
    return found


def _devices(raw: Any, count: int, where: str, problems: list[str]) -> tuple[tuple[int, ...], ...]:
    key = f"{where}.devices_per_process"
    if not isinstance(raw, (list, tuple)) or len(raw) != count:
        problems.append(
            f"{key}: expected one entry for each of the {count} processes, got {raw!r:.80}"
        )
        return ((),) * count
    found = []
    for entry in raw:
        if entry == "cpu":
            found.append(())
        elif (
            isinstance(entry, (list, tuple))
            and entry
            and all(type(gpu) is int and gpu >= 0 for gpu in entry)
        ):
            found.append(tuple(entry))
        else:
            problems.append(f"{key}: expected 'cpu' or a list of GPUs, got {entry!r:.80}")
            found.append(())
    return tuple(found)


# --- both -----------------------------------------------------------------------------------------


def _llm_args(
    values: dict[str, Any], where: str, problems: list[str], unused: list[str]
) -> LlmArgs:
    values = dict(values)
    parallelism = _section(values, "parallelism", problems, f"{where}.")
    lora = _section(values, "lora", problems, f"{where}.")
    constructor = _section(values, "constructor_kwargs", problems, f"{where}.")
    for key in ("synchronize_gpus_after_scoring", "empty_cuda_cache_after_scoring"):
        if key in values:  # 0.3 has them here
            parallelism[key] = values.pop(key)
    for key, value in constructor.items():
        if key in _DTYPE_NAMES and value == "auto":
            problems.append(
                f"{where}.constructor_kwargs.{key}: auto, the checkpoint's own dtype, is not here;"
                " name float32 or bfloat16"
            )
        elif key in _DTYPE_NAMES and value is not None:
            values["dtype"] = str(value).removeprefix("torch.")
        elif key in ("trust_remote_code", "load_in_4bit"):
            values[key] = value
        elif key in _HOW_IT_IS_LOADED or value is None:
            unused.append(f"{where}.constructor_kwargs.{key}")
        else:
            problems.append(
                f"{where}.constructor_kwargs.{key}: {value!r:.80} may change what the model says,"
                " and is not here; there are dtype, load_in_4bit and trust_remote_code"
            )
    if values.get("model_path") is None:  # else it would be our own programs' default
        problems.append(
            f"lamorel_args.{where}.model_path: a value is missing; name a model, or embedded, which"
            " is this package's own"
        )
    if values.get("handler") not in (None, "hf_llm"):
        problems.append(f"{where}.handler: {values['handler']!r} is not here; hf_llm is")
    if not values.get("seed"):  # Lamorel takes 0 for none, too
        values["seed"] = DEFAULT_SEED
    for key in (*_NEEDED_LATER, "parallelism", "lora"):
        values.pop(key, None)
    # for our own programs
    for key in ("initializer", "cache_size", "value_head_hidden", "quantize"):
        if values.pop(key, None) is not None:
            unused.append(f"{where}.{key}")
    adapters = _take(LoraArgs, lora, f"{where}.lora", problems, unused)
    options = _take(ParallelismArgs, parallelism, f"{where}.parallelism", problems, unused)
    if options.fsdp:
        problems.append(
            f"{where}.parallelism.fsdp: not through Lamorel's interface: its updaters step on whole"
            " parameters; the programs of this project take it"
        )
    taken: LlmArgs = _take(LlmArgs, values, where, problems, unused)
    return replace(taken, parallelism=options, lora=adapters)


def _take(
    kind: Any, values: Mapping[str, Any], where: str, problems: list[str], unused: list[str]
) -> Any:
    """A dataclass of the keys that it knows; a null keeps its default where it has another one."""
    known = {each.name for each in fields(kind)}
    unused += [f"{where}.{key}" for key in values if key not in known]
    given = {key: value for key, value in values.items() if key in known and value is not None}
    missing = [key for key, value in given.items() if value == "???"]
    problems += [f"lamorel_args.{where}.{key}: a value is missing (???)" for key in missing]
    for key in missing:
        del given[key]
    return build(kind, given, f"lamorel_args.{where}.", problems)


def _number(
    values: Mapping[str, Any],
    key: str,
    problems: list[str],
    within: str = "",
    default: Any = 1,
    at_least: int = 1,
) -> Any:
    value = values.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        problems.append(
            f"lamorel_args.{within}{key}: expected a whole number of at least {at_least}, got"
            f" {value!r:.80}"
        )
        return default
    return value


def _section(
    values: Mapping[str, Any], key: str, problems: list[str], within: str = ""
) -> dict[str, Any]:
    section = values.get(key)
    if section is None:
        section = {}
    if not isinstance(section, Mapping):
        problems.append(
            f"lamorel_args.{within}{key}: expected keys and values, got {section!r:.80}"
        )
        section = {}
    return dict(section)


def _plain(config: Any) -> dict[str, Any]:
    """Plain dictionaries and lists; a value that is missing stays ``???``."""
    if isinstance(config, Mapping) and not hasattr(config, "_metadata"):
        return {str(key): value for key, value in config.items()}
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
    except (OmegaConfBaseException, ValueError) as error:
        raise ConfigError(f"lamorel_args: {' '.join(str(error).split())}") from error
    if not isinstance(plain, dict):
        raise ConfigError(f"lamorel_args: expected keys and values, got a {type(plain).__name__}")
    return {str(key): value for key, value in plain.items()}
