"""An agent, a method with its updater, a head and an initialiser of a user's own."""

from dataclasses import dataclass
from typing import Any

import torch

from lamorel_ext import BaseModelInitializer, BaseModuleFunction, BaseUpdater
from lamorel_ext.agents.actors import FixedAgent, UniformActor
from lamorel_ext.methods.base import Method
from lamorel_ext.options import number
from lamorel_ext.types import ScoreRequest, UpdateRequest


class Stubborn(FixedAgent):
    """Does one action, always."""

    def __init__(self, setting: Any, action: int = 2) -> None:
        super().__init__(UniformActor((action,)))


@dataclass(frozen=True)
class NudgeOptions:
    """The keys beside ``_target_``, with their bounds."""

    step: float = number(0.5, above=0)


class Nudge(Method):
    """The client's half: asks the servers for a head and an update after each rollout."""

    name = "nudge"
    columns = ("mood", "moved")  # nudge_mood and nudge_moved in metrics.csv
    arguments_type = NudgeOptions

    def learn(self, rollout: Any) -> dict[str, float]:
        """Ask for the head on two prompts of the rollout, then for an update with the option."""
        llm, prompts = self.setting.llm, rollout.turns[0].prompts[:2]
        candidates = (("go forward",),) * len(prompts)
        found = llm.score_batch(ScoreRequest(prompts, candidates, ("mood",)))
        rows = torch.arange(len(prompts))
        options = {"step": self.options.step}
        request = UpdateRequest("nudge", prompts, candidates, rows, len(prompts), {}, options)
        moved = llm.update_batch(request).stats["moved"]
        return {"mood": float(found.modules["mood"].mean()), "moved": moved}


class Nudger(BaseUpdater):
    """The servers' half. A real one scores with ``self._llm_module`` and steps an optimiser."""

    def perform_update(
        self, contexts: Any, candidates: Any, _current_batch_ids: Any, **kwargs: Any
    ) -> dict[str, float]:
        """Return the option that the request carried, as a statistic."""
        return {"moved": kwargs["step"]}


class Mood(BaseModuleFunction):
    """A head that answers the same number for every prompt."""

    def __init__(self, level: float) -> None:
        super().__init__()
        self.level = level

    def initialize(self) -> None:
        """Make layers here, where the model's sizes are known."""

    def forward(
        self, forward_outputs: Any, minibatch: Any, tokenized_contexts: Any, **kwargs: Any
    ) -> torch.Tensor:
        """One row for each pair of prompt and candidate."""
        return torch.full((len(tokenized_contexts), 1), float(self.level))


class Loud(BaseModelInitializer):
    """Sees the model before it serves, and may change it."""

    def __init__(self, word: str) -> None:
        self.word = word

    def initialize_model(self, model: Any) -> Any:
        """Print a line, and return the model unchanged."""
        print(f"initialised, {self.word}", flush=True)
        return model
