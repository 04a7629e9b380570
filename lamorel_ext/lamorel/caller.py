"""Lamorel's ``Caller``: every process of a launch makes one. On an LLM rank it serves and ends the
process; on an RL rank it asks.
"""

from __future__ import annotations

import logging
import operator
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lamorel_ext.errors import ConfigError, RequestError
from lamorel_ext.lamorel.settings import LlmSettings, Settings, logger, read_settings, say_unused
from lamorel_ext.rpc.lamorel_shape import SCORE_KEY, texts_of
from lamorel_ext.rpc.topology import Placement, split_evenly
from lamorel_ext.types import CallRequest


def lamorel_init() -> None:
    """Join the launch that this process belongs to.

    Does nothing a second time, or outside a launch.
    """
    from lamorel_ext.rpc.distributed import meet

    meet()


class Caller:
    """Lamorel's interface to the LLM servers of a launch.

    Args:
        config: ``lamorel_args``, of 0.2 or 0.3.
        custom_updater: Changes the model; in 0.3 a dictionary by name of the LLM.
        custom_module_functions: By name; in 0.3 such a dictionary for each LLM.
        custom_model_initializer: Changes the model before it is served; in 0.3 by name of the LLM.

    Raises:
        ConfigError: The configuration cannot be used, or this process is no rank of a launch.
        SystemExit: This is an LLM rank, and every client is done.
    """

    _connected = False
    """Whether this process has made one."""

    def __init__(
        self,
        config: Any,
        custom_updater: Any = None,
        custom_module_functions: Mapping[str, Any] | None = None,
        custom_model_initializer: Any = None,
    ) -> None:
        from lamorel_ext.rpc.distributed import launched_role, server_subgroups

        if Caller._connected:
            raise ConfigError(
                "Caller: this process has made one before; a launch's servers answer that one alone"
            )
        self._settings = read_settings(config)
        custom = {
            "custom_updater": custom_updater,
            "custom_module_functions": custom_module_functions,
            "custom_model_initializer": custom_model_initializer,
        }
        _check_names(self._settings, custom)
        args = self._settings.args
        logger.setLevel(getattr(logging, args.log_level.upper()))
        role = launched_role(args)
        if role is None:
            raise ConfigError(
                "Caller: this process is no rank of a launch; start the script with"
                " lamorel-ext-launch script"
            )
        lamorel_init()
        first = args.distributed_setup_args.n_rl_processes
        groups: Sequence[Any] = [None]
        if len(self._settings.llms) > 1:
            ranks = [[first + server for server in llm.servers] for llm in self._settings.llms]
            groups = server_subgroups(ranks, args.gloo_timeout)
        if role.is_server:
            which = next(
                i for i, llm in enumerate(self._settings.llms) if role.index in llm.servers
            )
            _serve(
                self._settings,
                self._settings.llms[which],
                groups[which],
                role.index,
                *self._own(which, tuple(custom.values())),
            )
            sys.exit(0)
        if role.index == 0:
            say_unused(self._settings)
        from lamorel_ext.rpc.runtime import connect

        self._caller = connect(args)
        Caller._connected = True

    # --- Lamorel's calls -------------------------------------------------------------------------

    def score(
        self,
        contexts: Sequence[str],
        candidates: Sequence[Sequence[str]] | None = None,
        additional_module_function_keys: Sequence[str] = (),
        **kwargs: Any,
    ) -> list[Any]:
        """Log-probability of each candidate after its context, in nats, summed over its tokens.

        Args:
            contexts: ``n`` texts.
            candidates: ``n`` lists; an empty one, or None, means ``""``.
            additional_module_function_keys: Module functions to evaluate besides.
            **kwargs: As for ``custom_module_fns``.

        Returns:
            For each context a tensor ``(num_candidates,)``; with additional functions a dictionary
            that has it as ``__score``.
        """
        more = texts_of(additional_module_function_keys, "additional_module_function_keys")
        keys = [SCORE_KEY, *more]
        rows = self.custom_module_fns(keys, contexts, candidates=candidates, **kwargs)
        return rows if len(keys) > 1 else [row[SCORE_KEY] for row in rows]

    def custom_module_fns(
        self,
        module_function_keys: Sequence[str],
        contexts: Sequence[Any],
        candidates: Sequence[Sequence[str]] | None = None,
        pad_contexts: bool = True,
        forced_context_len: int | None = None,
        forced_sequence_len: int | None = None,
        add_eos_on_candidates: bool = False,
        require_grad: bool = False,
        minibatch_size: int | None = None,
        peft_adapter: str | None = None,
        llm_to_call: str | None = None,
        **kwargs: Any,
    ) -> list[dict[str, Any]]:
        """Evaluate module functions.

        Args:
            module_function_keys: Their names.
            contexts: ``n`` texts (or lists of tokens).
            candidates: ``n`` lists; None means ``[""]`` for each.
            pad_contexts: Of a causal model: whether contexts are padded to one length.
            forced_context_len: Tokens to pad contexts to.
            forced_sequence_len: Tokens to pad contexts with their candidates to.
            add_eos_on_candidates: Whether the end token follows each candidate.
            require_grad: Whether gradients flow on the server; what comes back has none.
            minibatch_size: Rows of a pass; None takes the configured number.
            peft_adapter: Adapter to activate before, on all servers of the LLM.
            llm_to_call: Which LLM, where there are several.
            **kwargs: Reach the module functions.

        Returns:
            For each context a dictionary, with a row per candidate of each function.
        """
        llm = self._llm(llm_to_call)
        shared = {
            "module_function_keys": list(texts_of(module_function_keys, "module_function_keys")),
            "pad_contexts": pad_contexts,
            "forced_context_len": forced_context_len,
            "forced_sequence_len": forced_sequence_len,
            "add_eos_on_candidates": add_eos_on_candidates,
            "require_grad": require_grad,
            "minibatch_size": minibatch_size,
            "peft_adapter": peft_adapter,
            **kwargs,
        }
        batch = {"contexts": _listed(contexts, "contexts")}
        _check("contexts", batch["contexts"], _can_be_read, "a text or a list of tokens")
        if candidates is not None and len(candidates):
            batch["candidates"] = _listed(candidates, "candidates", like=batch["contexts"])
            _check("candidates", batch["candidates"], _are_texts, "a list of texts")
        return self._rows(llm, "forward", batch, shared)

    def generate(
        self,
        contexts: Sequence[str],
        return_logprobs: bool = False,
        peft_adapter: str | None = None,
        llm_to_call: str | None = None,
        **kwargs: Any,
    ) -> list[list[dict[str, Any]]]:
        """Continue each context; see ``generation.generate`` for arguments and results."""
        batch = {"contexts": _listed(contexts, "contexts")}
        _check("contexts", batch["contexts"], lambda each: isinstance(each, str), "a text")
        shared = {"return_logprobs": return_logprobs, "peft_adapter": peft_adapter, **kwargs}
        return self._rows(self._llm(llm_to_call), "generate", batch, shared)

    def update(
        self,
        contexts: Sequence[Any],
        candidates: Sequence[Sequence[Any]] | None = None,
        llm_to_call: str | None = None,
        **kwargs: Any,
    ) -> list[Any]:
        """Let the updater change the model, on all servers of an LLM together.

        Contexts and candidates are cut along the batch, one part per server; the updater finds the
        places of its part in ``_current_batch_ids``. Everything else reaches it whole.

        Args:
            contexts: ``n`` texts.
            candidates: ``n`` lists, or None.
            llm_to_call: Which LLM, where there are several.
            **kwargs: Nested dictionaries and lists of numbers, strings, None, tensors and arrays.

        Returns:
            What the updater returned, one entry per server that had a part of the batch.
        """
        llm = self._llm(llm_to_call)
        texts = _listed(contexts, "contexts")
        if not texts:
            raise RequestError("contexts is empty, expected at least one")
        lists = None if candidates is None else _listed(candidates, "candidates", like=texts)
        requests: dict[int, CallRequest] = {}
        parts = split_evenly(len(texts), len(llm.servers))
        for server, part in zip(llm.servers, parts, strict=True):
            rows = slice(part.start, part.stop)
            own = None if lists is None else lists[rows]
            values = {
                "contexts": texts[rows],
                "candidates": own,
                "_current_batch_ids": _places(llm, part, own),
                **kwargs,
            }
            requests[server] = CallRequest("update", values)
        answers = self._caller.call(requests, together=True)
        return [answer["result"] for answer in answers if "result" in answer]

    def get_rl_dist_group(self) -> Any:
        """The ``torch.distributed`` group of the RL processes among themselves."""
        return self._caller.get_rl_dist_group()

    def close(self, llm_to_call: str | None = None) -> None:
        """Take leave of the servers, which end once every RL process has. May be called twice.

        Args:
            llm_to_call: 0.3 can stop one LLM; here its servers stay idle until all are stopped.
        """
        if llm_to_call is None:
            self._caller.close()
        else:
            self._llm(llm_to_call)

    # --- inside ----------------------------------------------------------------------------------

    def _own(self, which: int, custom: tuple[Any, ...]) -> tuple[Any, Mapping[str, Any], Any]:
        """Updater, module functions and initialiser of one LLM."""
        if self._settings.version == "0.3":
            name = self._settings.llms[which].name
            updater, functions, initializer = ((each or {}).get(name) for each in custom)
        else:
            updater, functions, initializer = custom
        return updater, dict(functions or {}), initializer

    def _llm(self, name: str | None) -> LlmSettings:
        llms = self._settings.llms
        if name is None and len(llms) == 1:
            return llms[0]
        for llm in llms:
            if llm.name == name:
                return llm
        raise RequestError(
            f"llm_to_call is {name!r}; there are:"
            f" {', '.join(llm.name or 'one without a name' for llm in llms)}"
        )

    def _rows(
        self,
        llm: LlmSettings,
        method: str,
        batch: Mapping[str, list[Any]],
        shared: Mapping[str, Any],
    ) -> list[Any]:
        """The rows of all contexts, each server having answered for a part of them."""
        if not batch["contexts"]:
            raise RequestError("contexts is empty, expected at least one")
        requests: dict[int, CallRequest] = {}
        # An adapter stays active, so that a server without a part of this batch needs it too.
        everywhere = shared.get("peft_adapter") is not None
        parts = split_evenly(len(batch["contexts"]), len(llm.servers))
        for server, part in zip(llm.servers, parts, strict=True):
            if len(part) or everywhere:
                own: dict[str, Any] = {
                    name: values[part.start : part.stop] for name, values in batch.items()
                }
                seed = shared.get("seed")
                if method == "generate" and seed is not None:
                    # With one seed everywhere a text in two parts would be continued alike.
                    own["seed"] = _whole(seed, "seed") + part.start
                requests[server] = CallRequest(method, {**shared, **own})
        return [row for answer in self._caller.call(requests) for row in answer["rows"]]


def _check_names(settings: Settings, custom: Mapping[str, Any]) -> None:
    """In 0.3 what is given is given by LLM."""
    if settings.version == "0.2":
        return
    names = [llm.name for llm in settings.llms]
    problems = []
    for key, given in custom.items():
        if given is not None and not isinstance(given, Mapping):
            problems.append(
                f"{key} is a {type(given).__name__}, expected a dictionary by name of the LLM"
            )
            continue
        problems += [
            f"{key}: there is no LLM {name!r} in llm_configs, which has {', '.join(names)}"
            for name in given or {}
            if name not in names
        ]
    if problems:
        raise ConfigError(problems)


def _places(llm: LlmSettings, part: range, candidates: Sequence[Sequence[Any]] | None) -> Any:
    places = list(part)
    if llm.version == "0.2":
        return places
    own = (
        [None] * len(places)
        if candidates is None
        else [list(range(len(each))) for each in candidates]
    )
    return {"contexts": places, "candidates": own}


def _listed(values: Any, name: str, like: list[Any] | None = None) -> list[Any]:
    """Rows as a list, a numpy array's too."""
    if isinstance(values, (str, bytes)) or not hasattr(values, "__len__"):
        raise RequestError(f"{name} is {values!r:.80}, expected a list")
    rows = [row.tolist() if hasattr(row, "tolist") else row for row in values]
    if like is not None and len(rows) != len(like):
        raise RequestError(f"{name} has {len(rows)} lists, expected {len(like)}, one per context")
    return rows


def _whole(value: Any, name: str) -> int:
    try:
        return operator.index(value)
    except TypeError as error:
        raise RequestError(f"{name} is {value!r:.80}, expected a whole number") from error


def _check(name: str, rows: Sequence[Any], fits: Callable[[Any], bool], expected: str) -> None:
    """Here and not on a server, which knows the place of a row in its own part of the batch."""
    for place, row in enumerate(rows):
        if not fits(row):
            raise RequestError(f"{name}[{place}] is {row!r:.80}, expected {expected}")


def _can_be_read(context: Any) -> bool:
    return isinstance(context, str) or _is_list_of(int, context)


def _are_texts(candidates: Any) -> bool:
    return _is_list_of(str, candidates)


def _is_list_of(kind: type, values: Any) -> bool:
    return (
        isinstance(values, Sequence)
        and not isinstance(values, str)
        and all(isinstance(each, kind) for each in values)
    )


def _serve(
    settings: Settings,
    llm: LlmSettings,
    group: Any,
    index: int,
    updater: Any,
    functions: Mapping[str, Any],
    initializer: Any,
) -> None:
    import torch

    from lamorel_ext.lamorel.hosting import make_host
    from lamorel_ext.llm.serving import Hosted, serve

    rank = settings.args.distributed_setup_args.n_rl_processes + index

    def build(placement: Placement) -> Hosted:
        gpus = llm.devices[index - llm.servers.start] if llm.devices else placement.gpus
        if gpus:
            torch.cuda.set_device(gpus[0])
        devices = [torch.device("cuda", gpu) for gpu in gpus] or [torch.device("cpu")]
        host = make_host(llm, devices, rank, updater, functions, initializer)
        return Hosted(host, {"lamorel": host})

    # In 0.3 each LLM has a seed, which what is drawn without another one follows.
    llm_args = replace(settings.args.llm_args, seed=llm.args.seed)
    serve(replace(settings.args, llm_args=llm_args), build, group)
