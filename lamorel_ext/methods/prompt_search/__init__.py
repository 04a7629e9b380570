"""The agent's success teaches how to ask: a bandit over instructions that are put before every
prompt, while the LLM stays as it is. Discrete prompts found by reinforcement are those of Deng et
al. 2022 (RLPrompt, arXiv 2205.12548) and Zhang et al. 2023 (TEMPERA, arXiv 2211.11890).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from lamorel_ext.errors import ConfigError
from lamorel_ext.experience import Note, Rollout
from lamorel_ext.methods.base import Method, MethodSetting
from lamorel_ext.options import number
from lamorel_ext.prompts import Wording

EDITS = (
    "",
    "You guide a robot in a room.",
    "Say which action brings the robot closer to its goal.",
    "If you see the goal on your left, turn left; on your right, turn right; ahead, go forward.",
    "If you do not see the goal, turn. If it is ahead, go forward.",
    "Never pick up, drop or toggle unless the goal says so.",
)


@dataclass(frozen=True)
class PromptSearchOptions:
    """Options of ``PromptSearch``.

    Attributes:
        edits: Instructions to choose from; an empty one leaves the prompts alone.
        exploration: Weight of the confidence bound (UCB1); 0 always takes the best mean so far.
        choice: ``random`` draws an edit for each rollout, whatever came of it, as a control.
    """

    edits: tuple[str, ...] = EDITS
    exploration: float = number(0.2, at_least=0)
    choice: Literal["bandit", "random"] = "bandit"


@dataclass(frozen=True)
class Instruction(Wording):
    """The same words, with an instruction before them.

    Attributes:
        before: The instruction; empty for none.
    """

    before: str = ""

    def __bool__(self) -> bool:
        return bool(self.before)

    def prompt(self, prompt: str) -> str:
        """See ``Wording``."""
        return f"{self.before}\n{prompt}" if self.before else prompt


class PromptSearch(Method):
    """See the module. What an edit is worth is the change of the mean reward of a step against the
    run's mean so far, in the rollouts that were collected with it.

    Its columns: ``edit``, the place of the one that was used, and ``worth``, the present estimate;
    in a row of the curve, means over the rollouts since the last one.
    """

    name = "prompt_search"
    columns = ("edit", "worth")
    arguments_type: ClassVar[type | None] = PromptSearchOptions
    controls = {"choice": ("random",)}

    def __init__(self, setting: MethodSetting, options: PromptSearchOptions) -> None:
        super().__init__(setting, options)
        if not setting.llm_guides:
            raise ConfigError("method: prompt_search needs an LLM that acts or gives guidance")
        if not options.edits or len(set(options.edits)) < len(options.edits):
            raise ConfigError(
                f"method.edits: expected different instructions, got {list(options.edits)}"
            )
        if broken := [edit for edit in options.edits if r"\n" in edit]:
            raise ConfigError(
                f"method.edits: {broken[0]!r} has a backslash and an n where a new line seems"
                " meant; a shell makes one in $'...'"
            )
        self._args = options
        self._tries = np.zeros(len(options.edits))
        self._worth = np.zeros(len(options.edits))
        self._mean, self._rollouts, self._edit = 0.0, 0, 0

    def begin_rollout(self) -> None:
        """See ``Method``: the bandit tries an edit."""
        self._ask_with(self._edit)

    def begin_evaluation(self) -> None:
        """See ``Method``: of the edits that were tried the one that is thought to be worth most; as
        a control the one in use.
        """
        random = self._args.choice == "random"
        tried = np.where(self._tries > 0, self._worth, -np.inf)
        self._ask_with(self._edit if random else int(tried.argmax()))

    def learn(self, rollout: Rollout) -> dict[str, float]:
        """See ``Method``: credits the edit in use, and chooses the one for the next rollout."""
        used, reward = self._edit, float(rollout.rewards.mean())
        change = reward - self._mean if self._rollouts else 0.0
        self._rollouts += 1
        self._mean += (reward - self._mean) / self._rollouts
        self._tries[used] += 1
        self._worth[used] += (change - self._worth[used]) / self._tries[used]
        found = {"edit": float(used), "worth": float(self._worth[used])}
        self._edit = self._choose()
        answered = f"{reward:.5f} a step, {change:+.5f} against the mean so far"
        changed = f"the next rollout is asked with: {self._args.edits[self._edit]!r}"
        asked = f"Instruction before every prompt: {self._args.edits[used]!r}"
        self.notes.append(Note(asked, answered, changed))
        return found

    def state(self) -> dict[str, Any]:
        """See ``Method``."""
        return {
            "tries": self._tries.tolist(),
            "worth": self._worth.tolist(),
            "mean": self._mean,
            "rollouts": self._rollouts,
            "edit": self._edit,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """See ``Method``."""
        self._tries, self._worth = np.array(state["tries"]), np.array(state["worth"])
        self._mean, self._rollouts = float(state["mean"]), int(state["rollouts"])
        self._edit = int(state["edit"])
        if len(self._tries) != len(self._args.edits):
            raise ValueError(
                f"method.edits: {len(self._args.edits)} of them, saved were {len(self._tries)}"
            )

    def _choose(self) -> int:
        if self._args.choice == "random":
            return int(self.setting.rng.integers(len(self._tries)))
        untried = np.flatnonzero(self._tries == 0)
        if len(untried):
            return int(untried[0])
        bound = np.sqrt(2.0 * np.log(self._tries.sum()) / self._tries)
        # In units of how much a rollout's reward varies: rewards of a step are small.
        spread = max(float(np.abs(self._worth).max()), 1e-6)
        return int(np.argmax(self._worth + self._args.exploration * spread * bound))

    def _ask_with(self, edit: int) -> None:
        self.setting.reword(Instruction(f"instruction {edit}", before=self._args.edits[edit]))
