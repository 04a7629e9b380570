"""The LLM and learnt values choose skills together: what the LLM finds useful for the mission,
times what the student has learnt that it can do from here (Ahn et al. 2022, SayCan, arXiv
2204.01691). Neither trains the other.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lamorel_ext.agents.features import encode_states, feature_size
from lamorel_ext.agents.guidance import Vocabulary, make_vocabulary
from lamorel_ext.agents.llm_teachers import LlmTeacher, told_shares
from lamorel_ext.agents.making import AgentSetting, make_network
from lamorel_ext.agents.network import TwoLayers
from lamorel_ext.agents.optimizer import FlatAdam, load_weights, weights_of
from lamorel_ext.agents.student import StudentAgent, student_batch
from lamorel_ext.agents.student_ppo import LossTerm
from lamorel_ext.errors import ConfigError
from lamorel_ext.experience import Guidance, Note, Rollout, Said, Scene
from lamorel_ext.options import number
from lamorel_ext.prompts import with_line
from lamorel_ext.randomness import Draws, entropies, sample_rows
from lamorel_ext.types import LlmClient, TaskSpec

log = logging.getLogger(__name__)

MOST_CUT = 0.1
"""What may be cut off a return between 0 and 1 on average: an untrained critic is beside it too."""


@dataclass(frozen=True)
class SkillsOptions:
    """Options of ``Skills``.

    Attributes:
        choose: By the ``product``, or, as controls, by the ``llm`` or the ``values`` alone.
        lr: Adam's step size of the values.
        epochs: Passes of the values over a rollout.
        hidden_size: Width of the values' hidden layer.
        told: Whether a line of the prompt says how the last action came out (Huang et al. 2022,
            Inner Monologue, arXiv 2207.05608). What the LLM sees now is in the prompt already.
    """

    choose: Literal["product", "llm", "values"] = "product"
    lr: float = number(2e-3, at_least=0)
    epochs: int = number(4, at_least=1)
    hidden_size: int = number(64, at_least=1)
    told: bool = False


_TAKEN = re.compile(r"Observation (\d+): (.*)\n Action \1: (.*)")
"""A step in a ``glam`` prompt."""


def monologue(prompt: str) -> str:
    """The prompt with a line on how the last action in it came out; without one, as it is.

    Args:
        prompt: A ``glam`` prompt; see ``prompts.glam_prompt``.
    """
    steps = _TAKEN.findall(prompt)
    if len(steps) < 2:
        return prompt
    (_, before, action), (_, now, _) = steps[-2:]
    came_out = "failed: you see the same as before" if now == before else "succeeded"
    return with_line(prompt, f"The last action, {action.strip()}, {came_out}.")


class SkillTeacher:
    """Draws a skill in proportion to the LLM's probability times the value. See ``Teacher``."""

    def __init__(
        self,
        llm: LlmClient,
        vocabulary: Vocabulary,
        values: TwoLayers,
        options: SkillsOptions,
        task: TaskSpec,
    ) -> None:
        self._speaker, self._task = LlmTeacher(llm, vocabulary), task
        self._vocabulary, self._values = vocabulary, values
        self._choose, self._told = options.choose, options.told
        self.guidance_codes = vocabulary.size
        self.options: Guidance | None = vocabulary.options
        self.notes: list[Note] = []

    def guide(self, scene: Scene, draws: Draws) -> Guidance:
        """See ``Teacher``."""
        scene = self._shown(scene)
        llm, probs = self._chances(scene)
        log_probs = np.log(probs)
        chosen = sample_rows(log_probs, draws.guidance)
        texts = self._vocabulary.of(scene)
        own = texts[0][chosen[0]]
        answered = told_shares(texts[0], np.log(llm[0]))
        changed = f"with the values: {told_shares(texts[0], log_probs[0])}; chosen: {own}"
        self.notes.append(Note(scene.shown[0], answered, changed, len(self.notes)))
        if self._choose == "values":
            return self._vocabulary.choose(texts, chosen)
        own_logs = np.log(llm)  # who teaches the LLM needs what it says itself
        taken = own_logs[np.arange(len(chosen)), chosen]
        said = Said(scene.shown, texts, chosen, taken, entropies(log_probs), own_logs)
        return dataclasses.replace(self._vocabulary.choose(texts, chosen, said), drawn=probs)

    def distribution(self, scene: Scene) -> np.ndarray:
        """See ``Teacher``."""
        return self._chances(self._shown(scene))[1]

    def _shown(self, scene: Scene) -> Scene:
        """The scene as the LLM reads it."""
        if not self._told:
            return scene
        return dataclasses.replace(scene, prompts=tuple(map(monologue, scene.prompts)))

    def _chances(self, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
        """The LLM's probabilities, ones where it is not asked, and those by which a skill is drawn,
        ``(n, skills)`` each.
        """
        llm = values = np.ones((len(scene), self.guidance_codes))
        if self._choose != "values":
            llm = self._speaker.distribution(scene)
        if self._choose != "llm":
            features = torch.from_numpy(encode_states(scene.observations, self._task))
            with torch.inference_mode():
                values = torch.sigmoid(self._values(features)).double().numpy()
        weights = llm * values
        return llm, weights / weights.sum(axis=1, keepdims=True)


def values_loss(logits: Tensor, codes: Tensor, returns: Tensor) -> Tensor:
    """The cross-entropy of the chosen skills' values against the returns.

    Args:
        logits: ``(n, skills)``, of the values.
        codes: ``(n, skills)``, 1 at the skill chosen.
        returns: ``(n,)``; beyond 0 and 1 they are cut off.
    """
    chosen = (logits * codes).sum(dim=1)
    return F.binary_cross_entropy_with_logits(chosen, returns.clamp(0.0, 1.0))


class Skills(StudentAgent):
    """A student whose guidance is a skill, chosen anew in each state. See the module."""

    arguments_type: ClassVar[type | None] = SkillsOptions
    controls = {"choose": ("llm", "values")}

    def __init__(self, setting: AgentSetting, options: SkillsOptions) -> None:
        config, args = setting.config, setting.config.student
        kind = config.guidance.vocabulary
        if kind == "free":
            raise ConfigError("guidance.vocabulary: skills are a list, free text is none")
        if options.told and (config.env.prompt != "glam" or config.env.history < 2):
            raise ConfigError(
                "agent.told: needs prompts that tell the last action: env.prompt=glam and"
                " env.history=2 or more"
            )
        task = setting.task
        if task.by_state:
            raise ConfigError("agent: skills need the same actions in every state")
        if config.num_steps * config.env.num_envs == 1:
            raise ConfigError(
                "student.num_steps: skills need rollouts of more than one step of one environment:"
                " a single advantage is its own mean"
            )
        vocabulary = make_vocabulary(kind, task.action_texts)
        generator = torch.Generator().manual_seed(setting.seed)
        network = make_network(vocabulary.size, args, generator, task)
        self.skill_values = TwoLayers(
            vocabulary.size, feature_size(task), options.hidden_size, generator
        )
        teacher = SkillTeacher(setting.llm, vocabulary, self.skill_values, options, task)
        super().__init__(network, teacher, args, options.choose != "values", task)
        self.notes = teacher.notes
        self._options, self._warned = options, False
        self._skill_optimizer = FlatAdam(list(self.skill_values.parameters()))
        self.columns = (*self.columns, "skills_loss")

    def update(
        self, rollout: Rollout, rng: np.random.Generator, term: LossTerm | None = None
    ) -> dict[str, float]:
        """See ``Agent``; the values learn the returns of the skills that were chosen."""
        batch = student_batch(rollout)
        self._check_returns(batch.returns)
        losses = []
        for _ in range(self._options.epochs):
            loss = values_loss(self.skill_values(batch.features), batch.codes, batch.returns)
            self._skill_optimizer.minimise(loss, self._options.lr, self.args.max_grad_norm)
            losses.append(float(loss.detach()))
        numbers = super().update(rollout, rng, term)
        return numbers | {"skills_loss": float(np.mean(losses))}

    def _check_returns(self, returns: Tensor) -> None:
        """Warn once where values between 0 and 1 cannot tell the returns apart."""
        cut = float((returns - returns.clamp(0.0, 1.0)).abs().mean())
        if cut > MOST_CUT and not self._warned:
            self._warned = True
            log.warning(
                "agent: skills have values between 0 and 1, but returns go from %.3g to %.3g: what"
                " lies beyond is cut off, and values tell little",
                float(returns.min()),
                float(returns.max()),
            )

    def tensors(self) -> dict[str, Tensor]:
        """See ``Agent``."""
        found = super().tensors() | weights_of(self.skill_values, "skills.")
        return found | self._skill_optimizer.tensors("adam_skills.")

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """See ``Agent``."""
        super().load_tensors(tensors)
        load_weights(self.skill_values, tensors, "skills.")
        self._skill_optimizer.load(tensors, "adam_skills.")
