"""From a configuration to the two sides of a launch: an LLM server with its updaters, or a client
that talks to the servers.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from experiments.runs.identity import differing_keys, run_identity
from lamorel_ext.config import Config, LamorelArgs, LlmArgs, Plug
from lamorel_ext.errors import ConfigError
from lamorel_ext.portable import hold_portable
from lamorel_ext.processes.memory import keep_freed_memory
from lamorel_ext.rpc.topology import Placement, Role

if TYPE_CHECKING:
    from lamorel_ext.llm.serving import Hosted
    from lamorel_ext.rpc.caller import Caller
    from lamorel_ext.rpc.clients import Clients
    from lamorel_ext.types import LlmClient, Scalar

log = logging.getLogger(__name__)

Client = Callable[["Caller"], int]
"""What the RL client does with the servers; gives the exit status."""

LLM_ARGS = "lamorel_args.llm_args"
INITIALIZER = f"{LLM_ARGS}.initializer"
ALIKE = "every machine needs the same command, configuration files and version"


def run_as_ranked(
    config: Config, client: Client, every_client: bool = False, others: Iterable[Config] = ()
) -> int:
    """Be what this rank is: an LLM server until every client is done, or the client.

    A process that was started on its own is both: one server in a thread of its own, behind the
    same caller.

    Args:
        config: Went through ``check_configs``.
        client: What rank 0 does.
        every_client: True where the other RL clients do it too, together with rank 0; else they
            have nothing to do.
        others: Further runs that the same servers are for: they get what all of them bring.

    Raises:
        ConfigError: The launch is not the one that is configured, also on another machine, or
            ``run.portable`` cannot be had in this process.
    """
    from lamorel_ext.rpc.distributed import launched_role
    from lamorel_ext.rpc.runtime import connect

    args = config.lamorel_args
    if config.run.portable:
        hold_portable()
    role = launched_role(args)
    if role is not None and not role.is_server:
        use_threads(config.run.num_threads)
        keep_freed_memory()
        with connect(args) as caller:
            if args.accelerate_args.num_machines > 1:
                check_hosted(args.llm_args, caller.info())
            return client(caller) if every_client or role.index == 0 else 0
    from lamorel_ext.llm.serving import in_process, serve  # never in a client, as below

    if role is not None:
        serve(args, lambda placement: build_server(args, placement, [config, *others]))
        return 0
    use_threads(config.run.num_threads)
    with in_process([build_server(args, alone(args), [config, *others])]) as caller:
        return client(caller)


def check_hosted(asked: LlmArgs, info: Mapping[str, Scalar]) -> None:
    """Make sure that the servers, which other machines may have started, host what this client's
    runs will say that they were made with. A model may lie elsewhere on each machine.

    Raises:
        ConfigError: They do not.
    """
    wanted: dict[str, Scalar] = {"dtype": asked.dtype, "quantize": asked.quantize or ""}
    if not any(map(os.path.isabs, (asked.model_path, str(info.get("model_path"))))):
        wanted["model_path"] = asked.model_path
    if asked.dtype == "auto":
        del wanted["dtype"]
    problems = [
        f"{LLM_ARGS}.{key}: {info[key]!r} at the llm servers, {value!r} at the rl client"
        for key, value in wanted.items()
        if info.get(key, value) != value
    ]
    if problems:
        raise ConfigError([*problems, ALIKE])


def build_server(args: LamorelArgs, placement: Placement, runs: Iterable[Config] = ()) -> Hosted:
    """Load the model with its heads, and make the updaters.

    Args:
        runs: Their ``updaters``, ``heads`` and methods are added to the project's own.

    Raises:
        ModelLoadError: The model cannot be had.
        ConfigError: What a run brings cannot be had, or two bring something else by one name.
    """
    # Here, so that a client never imports them: that takes longer than all the rest of its start.
    import torch

    from lamorel_ext.agents.action_heads import ACTION_HEADS
    from lamorel_ext.agents.guidance import NUM_ACTIONS
    from lamorel_ext.agents.llm_policy import VALUE
    from lamorel_ext.llm.lean import lean_imports

    llm = args.llm_args
    use_threads(llm.num_threads)
    width = llm.value_head_hidden
    updaters, brought = servers_half(runs)
    with lean_imports():
        from transformers.utils.logging import disable_progress_bar

        from lamorel_ext.llm.loading import load_host
        from lamorel_ext.llm.module_functions import ActionHeads, ValueHead
        from lamorel_ext.llm.serving import Hosted
        from lamorel_ext.llm.updaters import make_updaters

        disable_progress_bar()  # one per checkpoint would bury the log
        heads = {VALUE: ValueHead(width), ACTION_HEADS: ActionHeads(width, NUM_ACTIONS)}
        heads |= {name: plug.make(f"heads.{name}") for name, plug in brought.items()}
        initializer = llm.initializer.make(INITIALIZER) if llm.initializer else None
        gpus = [torch.device("cuda", gpu) for gpu in placement.gpus]
        device, group = torch.device(placement.device), placement.model_group
        host = load_host(llm, device, heads, initializer, gpus, group)
    if llm.dtype == "auto" and placement.role.index == 0:
        dtype = host.info()["dtype"]
        log.info("lamorel_args.llm_args.dtype: auto is %s for %s here", dtype, llm.model_path)
    made = make_updaters()
    for name, plug in updaters.items():
        made[name] = plug.make(f"updaters.{name}")
        made[name].name = name
    return Hosted(host, made)


def servers_half(runs: Iterable[Config]) -> tuple[dict[str, Plug], dict[str, Plug]]:
    """The updaters and the heads that runs bring to their servers, by name.

    Raises:
        ConfigError: A method cannot be imported, or two bring something else by one name.
    """
    updaters: dict[str, Plug] = {}
    heads: dict[str, Plug] = {}
    for config in runs:
        of_method: dict[str, str] = {}
        if config.method:
            of_method = getattr(config.method.locate("method"), "updaters", {})
        for name, target in of_method.items():
            _add(updaters, "updaters", name, Plug(target))
        for name, plug in config.updaters.named:
            _add(updaters, "updaters", name, plug)
        for name, plug in config.heads.named:
            _add(heads, "heads", name, plug)
    return updaters, heads


def _add(found: dict[str, Plug], group: str, name: str, plug: Plug) -> None:
    if found.setdefault(name, plug) != plug:
        raise ConfigError(
            f"{group}.{name}: one launch has one set of servers, but it is {found[name]} in one run"
            f" and {plug} in another"
        )


def alone(args: LamorelArgs) -> Placement:
    """Where a server lives that shares the client's process."""
    setup, parallelism = args.distributed_setup_args, args.llm_args.parallelism
    taken, size = setup.client_devices, parallelism.model_parallelism_size
    free = [gpu for gpu in range(size + len(taken)) if gpu not in taken][:size]
    gpus = setup.devices_per_process[0] if setup.devices_per_process else tuple(free)
    return Placement(0, Role("llm server", 0), 0, 0, gpus if parallelism.use_gpu else ())


def use_threads(num_threads: int) -> None:
    """Let PyTorch use as many threads in this process; 0 leaves its choice."""
    import torch

    if num_threads:
        torch.set_num_threads(num_threads)


def clients_of(caller: LlmClient, runs: Sequence[Config]) -> Clients:
    """The RL clients of this launch; one where this process was started on its own, whatever is
    configured.

    Args:
        runs: What this client was started for.

    Raises:
        ConfigError: Another client was started for other runs, on another machine.
    """
    from lamorel_ext.rpc.caller import Caller
    from lamorel_ext.rpc.clients import Clients

    clients = Clients(caller.clients if isinstance(caller, Caller) else None)
    if clients.size > 1:
        _check_started_alike(clients.share(lambda: [_started_for(config) for config in runs]))
    return clients


def _started_for(config: Config) -> dict[str, str]:
    """What clients must have alike; a model may lie elsewhere on each machine."""
    asked = run_identity(config).items()
    return {key: repr(value) for key, value in asked if key != f"{LLM_ARGS}.model_path"}


def _check_started_alike(told: Sequence[Sequence[dict[str, str]]]) -> None:
    first, *others = told
    for client, other in enumerate(others, start=1):
        if len(other) != len(first):
            raise ConfigError(
                f"rl client {client} was started for {len(other)} runs, rl client 0 for"
                f" {len(first)}: {ALIKE}"
            )
        problems = [
            f"{key}: {theirs.get(key)} at rl client {client}, {own.get(key)} at rl client 0"
            for own, theirs in zip(first, other, strict=True)
            for key in differing_keys([own, theirs])
        ]
        if problems:
            raise ConfigError([*dict.fromkeys(problems), ALIKE])


def for_all(caller: LlmClient, clients: Clients) -> LlmClient:
    """The servers, for requests that every client makes alike."""
    from lamorel_ext.training.shared import SharedClient

    return caller if clients.size == 1 else SharedClient(caller, clients)


def llm_of(config: Config, caller: LlmClient) -> LlmClient | None:
    """The servers, for an arm that has use for them."""
    return caller if config.asks_llm else None
