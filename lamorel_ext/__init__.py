"""An LLM teacher and an RL student that train each other; Lamorel's names are here too."""

from __future__ import annotations

from typing import Any

_PLACES = {
    "Caller": "lamorel_ext.lamorel.caller",
    "lamorel_init": "lamorel_ext.lamorel.caller",
    "BaseUpdater": "lamorel_ext.llm.updaters.base",
    "BaseModuleFunction": "lamorel_ext.llm.module_functions",
    "BaseModelInitializer": "lamorel_ext.llm.initializers",
}

__all__ = ["BaseModelInitializer", "BaseModuleFunction", "BaseUpdater", "Caller", "lamorel_init"]


def __getattr__(name: str) -> Any:
    """Lamorel's names, imported when they are asked for."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
