"""What changes the LLM: PPO, feedback and supervised updates over candidates, and the base class
for updates of one's own.
"""

from lamorel_ext.llm.updaters.base import BaseUpdater
from lamorel_ext.llm.updaters.candidates import CandidateUpdater
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


def make_updaters() -> dict[str, BaseUpdater]:
    """The updaters that every server offers, by name."""
    updaters: tuple[BaseUpdater, ...] = (PPOUpdater(), FeedbackUpdater(), SupervisedUpdater())
    return {updater.name: updater for updater in updaters}
