"""What changes the LLM: PPO, feedback and supervised updates over candidates, and the base class for updates of one's own."""

from lamorel_ext.updaters.base import BaseUpdater
from lamorel_ext.updaters.candidates import CandidateUpdater
from lamorel_ext.updaters.feedback import FeedbackUpdater
from lamorel_ext.updaters.ppo import PPOUpdater
from lamorel_ext.updaters.supervised import SupervisedUpdater

__all__ = ["BaseUpdater", "CandidateUpdater", "FeedbackUpdater", "PPOUpdater", "SupervisedUpdater", "make_updaters"]


def make_updaters() -> dict[str, BaseUpdater]:
    """The updaters that every server offers, by name."""
    updaters: tuple[BaseUpdater, ...] = (PPOUpdater(), FeedbackUpdater(), SupervisedUpdater())
    return {updater.name: updater for updater in updaters}
