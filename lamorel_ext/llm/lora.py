"""Low-rank adapters through peft: a few weights that are trained in the place of all others."""

from __future__ import annotations

import importlib.util
from typing import Any

from lamorel_ext.config import LoraArgs
from lamorel_ext.errors import ModelLoadError


def with_adapters(model: Any, args: LoraArgs, seed: int) -> Any:
    """The model with adapters in it, or itself where ``args.r`` is 0.

    Args:
        model: Of transformers, encoder-decoder or decoder-only; its own weights take no gradients
            afterwards.
        args: Rank, scale and layers.
        seed: Draws the adapters.

    Raises:
        ModelLoadError: peft is not installed, or the model has no layers of these names.
    """
    if not args.r:
        return model
    if importlib.util.find_spec("peft") is None:
        raise ModelLoadError(
            "llm_args.lora needs the package peft: pip install 'lamorel-ext[lora]'"
        )
    from peft import LoraConfig, get_peft_model

    from lamorel_ext.llm.devices import seeded

    config = LoraConfig(
        r=args.r,
        lora_alpha=args.alpha or 2 * args.r,
        target_modules=list(args.target_modules) or None,
        lora_dropout=0.0,
        bias="none",
        task_type="SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM",
    )
    try:
        with seeded(seed, model.device):
            return get_peft_model(model, config).eval()
    except ValueError as error:
        names = ", ".join(args.target_modules) or "peft's choice"
        raise ModelLoadError(
            f"llm_args.lora.target_modules: {names}: {' '.join(str(error).split())}"
        ) from error
