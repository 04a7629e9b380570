"""What changes the LLM: PPO, feedback and supervised updates over candidates, and the base class
for updates of one's own.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lamorel_ext.llm.updaters.base import BaseUpdater
from lamorel_ext.llm.updaters.candidates import CandidateUpdater

if TYPE_CHECKING:
    from lamorel_ext.methods.cloning.updater import SupervisedUpdater
    from lamorel_ext.methods.feedback.updater import FeedbackUpdater
    from lamorel_ext.methods.ppo.updater import PPOUpdater

__all__ = [
    "BaseUpdater",
    "CandidateUpdater",
    "FeedbackUpdater",
    "PPOUpdater",
    "SupervisedUpdater",
    "make_updaters",
]

_OF_METHODS = {
    "PPOUpdater": "lamorel_ext.methods.ppo.updater",
    "FeedbackUpdater": "lamorel_ext.methods.feedback.updater",
    "SupervisedUpdater": "lamorel_ext.methods.cloning.updater",
}


def __getattr__(name: str) -> Any:
    """The updaters of methods, imported when they are asked for: they import this package."""
    if name not in _OF_METHODS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_OF_METHODS[name]), name)


def make_updaters() -> dict[str, BaseUpdater]:
    """The updaters that every server offers, by name."""
    updaters: list[BaseUpdater] = [__getattr__(name)() for name in _OF_METHODS]
    return {updater.name: updater for updater in updaters}
