"""A server that hosts a model in Lamorel's way: loads it, builds heads and adapters, and answers
calls.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import set_seed

from lamorel_ext.config import LlmArgs
from lamorel_ext.errors import ModelLoadError, RequestError
from lamorel_ext.lamorel.averaging import AveragedModule
from lamorel_ext.lamorel.model import LamorelModel, give, initialised
from lamorel_ext.lamorel.settings import LlmSettings, logger
from lamorel_ext.lamorel.upstream import for_lamorel
from lamorel_ext.llm.loading import DTYPES, auto_class, load_model
from lamorel_ext.llm.lora import with_adapters
from lamorel_ext.llm.updaters.candidates import CandidateUpdater
from lamorel_ext.rpc.lamorel_shape import SCORE_KEY
from lamorel_ext.types import ServerGroup


class LamorelHost:
    """What a server asks. See ``llm.handlers.Host``; typed requests are not for it.

    It also stands among its server's updaters, to be handed the group of servers.

    Args:
        model: With module functions, after the initialiser.
        updater: The user's, or None.
    """

    weights_version = 0

    def __init__(self, model: LamorelModel, updater: Any) -> None:
        self._model, self._updater = model, updater
        self.module = AveragedModule(model)

    def set_llm_module(self, llm_module: Any) -> None:
        """Nothing to keep: it is this host."""

    def set_group(self, group: ServerGroup) -> None:
        """Let the servers begin with the same weights, and the updater see those alone. Every
        server must call it, once.
        """
        self.module.begin(group)
        if self._updater is not None:
            self._updater.set_llm_module(self.module)

    def call(self, method: str, values: Mapping[str, Any], group: Any) -> dict[str, Any]:
        """Answer one call.

        Raises:
            RequestError: There is no such call, or it cannot be answered.
        """
        if method == "sit_by":
            return {}
        if method == "forward":
            return {"rows": self._model(**values)}
        if method == "generate":
            return {"rows": self._model.generate(**values)}
        if method == "update":
            said: dict[str, Any] = group.together(lambda: self._update(values, group))
            return said
        raise RequestError(f"{method} is no call of Lamorel's")

    def _update(self, values: Mapping[str, Any], group: ServerGroup) -> dict[str, Any]:
        mine = len(values["contexts"]) > 0  # else there are fewer contexts than servers

        def work() -> Any:
            return self._updater.perform_update(**values)

        if self._updater is None:
            logger.warning("update was called, but Caller was given no custom_updater: ignored")
            result = None
        elif getattr(self._updater, "averages_itself", False):
            result = work()
        else:
            result = self.module.update(work if mine else None)
            self._follow_adapter(mine, group)
        return {"result": result} if mine else {}

    def _follow_adapter(self, mine: bool, group: ServerGroup) -> None:
        """Activate the adapter that the updater left active where it was called."""
        model = self._model._LLM_model
        names = list(getattr(model, "peft_config", ()))
        if len(names) < 2 or group.size == 1:
            return
        active = torch.zeros(group.size, len(names))
        if mine:
            own = model.active_adapters  # a method of transformers' own models
            own = own() if callable(own) else own
            active[group.rank] = torch.tensor([float(name in own) for name in names])
        group.all_reduce_sum(active)
        (chosen,) = active[active.any(1).int().argmax()].nonzero(as_tuple=True)
        if not mine and len(chosen) == 1:
            model.set_adapter(names[int(chosen)])

    # --- what a server asks of other hosts --------------------------------------------------------

    def score(self, *args: Any, **kwargs: Any) -> Any:
        """Not here."""
        raise RequestError(
            "this server hosts a model in Lamorel's way; ask it through lamorel_ext.Caller"
        )

    generate = reset = save = load = update = score

    def forget(self, reference: bool = True) -> None:
        """Nothing is remembered."""

    def info(self) -> dict[str, Any]:
        """What is hosted."""
        config = self._model.get_model_config()
        return {
            "model_type": self._model.model_type,
            "architecture": type(self._model._LLM_model).__name__,
            "parameters": sum(parameter.numel() for parameter in self._model.parameters()),
            "vocab_size": int(config.vocab_size),
            "module_functions": ",".join(
                name for name in self._model._module_functions if name != SCORE_KEY
            ),
        }


def make_host(
    settings: LlmSettings,
    devices: Sequence[torch.device],
    rank: int,
    custom_updater: Any,
    custom_module_functions: Mapping[str, Any],
    custom_model_initializer: Any,
) -> LamorelHost:
    """Load the model and build everything around it, in Lamorel's order and from Lamorel's seeds.

    Args:
        settings: Of this LLM.
        devices: Where it goes; several GPUs share its layers, and inputs come in on the first.
        rank: Of this process.
        custom_updater: The user's, or None.
        custom_module_functions: By name.
        custom_model_initializer: The user's, or None; gets the wrapper.

    Raises:
        ModelLoadError: The model cannot be had.
        TypeError: Something is not what its name says.
    """
    set_seed(settings.args.seed)
    if settings.args.load_in_4bit:
        model, tokenizer = _load_in_4bit(settings.args, devices)
    else:
        model, tokenizer, _ = load_model(settings.args, devices[0], devices)
    model = with_adapters(model, settings.args.lora, settings.args.seed)
    wrapper = LamorelModel(model, tokenizer, settings)
    set_seed(settings.args.seed + rank)
    shared = _attributes(settings, wrapper, rank)
    wrapper = initialised(wrapper, custom_module_functions, settings, shared)
    if custom_model_initializer is not None:
        _check("custom_model_initializer", custom_model_initializer, "initialize_model")
        give(custom_model_initializer, shared)
        wrapper = custom_model_initializer.initialize_model(wrapper)
        if not isinstance(wrapper, LamorelModel):
            raise TypeError(
                f"initialize_model gave a {type(wrapper).__name__}, expected the model that it was"
                " given"
            )
        inner = wrapper._LLM_model
        if not hasattr(inner, "config"):
            raise TypeError(
                f"initialize_model put a {type(inner).__name__} in the place of _LLM_model, which"
                " has no config: give it the model's"
            )
    if custom_updater is not None:
        if isinstance(custom_updater, CandidateUpdater):  # one of ours, by itself
            custom_updater = for_lamorel(custom_updater)
        _check("custom_updater", custom_updater, "perform_update")
        give(custom_updater, shared)
    return LamorelHost(wrapper, custom_updater)


def _check(key: str, given: Any, method: str) -> None:
    kind = "BaseUpdater" if method == "perform_update" else "BaseModelInitializer"
    if isinstance(given, type):
        name = given.__name__
        raise TypeError(f"{key} is the class {name}, not a {kind}: hand over {name}()")
    if not callable(getattr(given, method, None)):
        raise TypeError(f"{key} is a {type(given).__name__}, not a {kind}")


def _attributes(settings: LlmSettings, model: LamorelModel, rank: int) -> dict[str, Any]:
    """What 0.3 gives to updaters, module functions and initialisers."""
    if settings.version == "0.2":
        return {}
    config = copy.deepcopy(settings.raw)
    if hasattr(config, "_metadata"):
        from omegaconf import OmegaConf

        for name, value in model.get_additional_llm_config().items():
            OmegaConf.update(config, name, value, force_add=True)
    else:
        config = {**config, **model.get_additional_llm_config()}
    return {
        "llm_config": config,
        "model_config": model.get_model_config(),
        "current_process_config": {"llm": settings.name, "process_index": rank},
    }


def _load_in_4bit(args: LlmArgs, devices: Sequence[torch.device]) -> tuple[Any, Any]:
    """Four bits through bitsandbytes as Lamorel has them: NF4, doubly quantised, bfloat16 sums."""
    import importlib.util

    device = devices[0]
    for beside, asked in (
        ("pretrained: false", not args.pretrained),
        ("several GPUs a server (model_parallelism_size, devices_per_process)", len(devices) > 1),
    ):
        if asked:
            raise ModelLoadError(f"{args.model_path}: load_in_4bit does not go with {beside}")
    if device.type != "cuda":
        raise ModelLoadError(
            f"{args.model_path}: load_in_4bit needs a GPU, and this server is on the {device.type};"
            " leave it out or set use_gpu"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelLoadError(
            f"{args.model_path}: load_in_4bit needs the package bitsandbytes: pip install"
            " bitsandbytes"
        )
    from transformers import AutoConfig, AutoTokenizer, BitsAndBytesConfig

    quantised = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    named = args.dtype not in ("auto", LlmArgs().dtype)  # of what is not quantised
    try:
        config = AutoConfig.from_pretrained(
            args.model_path, trust_remote_code=args.trust_remote_code
        )
        kind = auto_class("seq2seq" if config.is_encoder_decoder else "causal")
        model = kind.from_pretrained(
            args.model_path,
            quantization_config=quantised,
            device_map={"": device},
            use_safetensors=True,
            trust_remote_code=args.trust_remote_code,
            **({"dtype": DTYPES[args.dtype]} if named else {}),
        )
        return model.eval(), AutoTokenizer.from_pretrained(
            args.model_path, trust_remote_code=args.trust_remote_code
        )
    except (
        Exception
    ) as error:  # transformers, bitsandbytes and the hub's client have no error in common
        raise ModelLoadError(
            f"{args.model_path} cannot be loaded in 4 bits: {' '.join(str(error).split())}"
        ) from error
