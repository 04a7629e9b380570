"""What the lines of a trace say; ``trace`` has the format."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from lamorel_ext.agents.guidance import NO_HINT, make_vocabulary
from lamorel_ext.agents.making import Agent
from lamorel_ext.agents.student import StudentAgent, action_table
from lamorel_ext.config import Config
from lamorel_ext.experience import Discount, Guidance, Note, Rollout, Said, Scene, Turn
from lamorel_ext.randomness import log_softmax
from lamorel_ext.types import TaskSpec

VERSION = 1
"""Of the format."""
ENV = 0
"""The environment that is watched."""

MAX_NOTES, MAX_TEXT = 32, 2000
"""Notes about a whole rollout that are recorded, and characters of each of their texts."""

Line = dict[str, Any]


@dataclass
class Course:
    """Where the watched environment stands in its episode.

    Attributes:
        episode: Number of its episode, None where that is unknown.
        actions: Taken in it so far, likewise.
        error: TD error of its last step, None where there is none.
        returned: Rewards of its steps so far, unscaled; None where that is unknown.
    """

    episode: int | None = 0
    actions: list[int] | None = field(default_factory=list)
    error: float | None = None
    returned: float | None = 0.0

    def won(self, rollout: Rollout, t: int) -> bool | None:
        """Whether the episode that ends with step ``t`` is a success, as the run counts it; None
        where nobody knows.
        """
        if (told := rollout.turns[t].step.succeeded) is not None:
            return bool(told[ENV])
        if self.returned is None:
            return None
        return self.returned + float(rollout.rewards[t, ENV]) > 0

    def advance(self, rollout: Rollout, t: int) -> None:
        """Count step ``t`` in."""
        if rollout.done[t, ENV]:
            if self.episode is not None:
                self.episode, self.actions = self.episode + 1, []
            self.error, self.returned = None, 0.0
            return
        self.error = float(rollout.errors[t, ENV])
        if self.returned is not None:
            self.returned += float(rollout.rewards[t, ENV])
        if self.actions is not None:
            self.actions.append(int(rollout.turns[t].decision.actions[ENV]))


@dataclass
class Scores:
    """Scores of what the watched environment's LLM could have said at single steps, by what it said
    (``id``).

    Attributes:
        before: Where they are not known from the choice itself.
        after: After the update that the step's feedback went into, with the update's number.
        later: After the policy's own update.
    """

    before: dict[int, np.ndarray] = field(default_factory=dict)
    after: dict[int, tuple[int, np.ndarray]] = field(default_factory=dict)
    later: dict[int, np.ndarray] = field(default_factory=dict)


def header_line(
    config: Config,
    discount: Discount,
    env_steps: int,
    rollout: int,
    left_out: int,
    task: TaskSpec,
) -> Line:
    """The first line."""
    arm, feedback = config.arm, config.feedback
    return {
        "kind": "trace",
        "version": VERSION,
        "env_steps": env_steps,
        "rollout": rollout,
        "env": ENV,
        "seed": config.run.seed,
        "level": config.env.own.target or config.env.level,
        "language": config.env.language,
        "prompt": config.env.prompt,
        "num_distractors": config.env.num_distractors,
        "arm": arm.name,
        "agent": arm.agent,
        "teacher": arm.teacher if arm.agent == "student" else None,
        "vocabulary": config.guidance.vocabulary,
        "signal": feedback.signal,
        "loss": feedback.loss,
        "channel": feedback.channel,
        "every": feedback.every,
        "method": config.method.target.rpartition(".")[2] or None,
        "gamma": discount.gamma,
        "lam": discount.lam,
        "reward_scale": discount.reward_scale,
        "actions": list(task.action_texts),
        "left_out": left_out,
    }


def episode_line(config: Config, course: Course, turn: Turn, scene: Scene) -> Line:
    """The line before an episode's first recorded step."""
    mission, said = scene.observations.missions[ENV], turn.decision.said
    kind, candidates = config.guidance.vocabulary, None
    if said is not None and said.scores is not None:
        candidates = list(said.candidates[ENV])
    elif (
        kind != "free"
        and config.arm.agent == "student"
        and config.arm.teacher in ("random", "oracle")
    ):
        candidates = list(_choices(kind, mission, turn))
    actions = None if course.actions is None else list(course.actions)
    return {
        "kind": "episode",
        "number": course.episode,
        "actions": actions,
        "mission": mission,
        "candidates": candidates,
    }


def spoke(config: Config, said: Said) -> bool:
    """True where texts were scored, or written: action heads choose without words."""
    return said.scores is not None or config.guidance.vocabulary == "free"


def step_line(
    config: Config,
    rollout: Rollout,
    t: int,
    scene: Scene,
    course: Course,
    f: float | None,
    scores: Scores,
    agent: Line,
    task: TaskSpec,
) -> Line:
    """One step.

    Args:
        config: The run.
        rollout: It is step ``t`` of this one.
        t: Place in the rollout.
        scene: Where it was taken.
        course: Of the episode before it.
        f: The signal.
        scores: Of all steps.
        agent: The entries ``guidance`` and ``policy``.
        task: What the environment asks of the agent.
    """
    turn, seen = rollout.turns[t], scene.observations
    said = turn.decision.said
    return {
        "kind": "step",
        "prompt": (turn.prompts if said is None else said.prompts)[ENV],
        "sentences": list(seen.descriptions[ENV]),
        "view": seen.images[ENV].astype(np.uint8).tobytes().hex() if len(seen.images) else "",
        "direction": int(seen.directions[ENV]) if len(seen.directions) else 0,
        **({"offered": list(turn.candidates[ENV])} if task.by_state else {}),
        "action": int(turn.decision.actions[ENV]),
        "probability": rounded(math.exp(turn.decision.log_probs[ENV])),
        "reward": rounded(rollout.rewards[t, ENV]),
        "end": "terminated"
        if rollout.terminated[t, ENV]
        else "truncated"
        if rollout.done[t, ENV]
        else None,
        **({"won": course.won(rollout, t)} if rollout.done[t, ENV] else {}),
        "value": rounded(rollout.values[t, ENV]),
        "error": rounded(rollout.errors[t, ENV]),
        "previous": rounded(course.error),
        "advantage": rounded(rollout.advantages[t, ENV]),
        "signal": rounded(f),
        "llm": _llm(said, scores) if said is not None and spoke(config, said) else None,
        **agent,
    }


def agent_entries(config: Config, agent: Agent, turn: Turn, scene: Scene) -> Line:
    """A step's ``guidance`` and ``policy``: what the watched agent heard, and its policy, where no
    LLM must be asked for it.
    """
    if isinstance(agent, StudentAgent):
        return _student_entries(config, agent, turn, scene)
    if config.asks_llm or not agent.enumerable:
        return {"guidance": None, "policy": None}
    own = row(agent.action_probs(scene.take(np.array([ENV])))[0])
    return {"guidance": None, "policy": {"heard": own, "silent": None, "mixed": None}}


def _student_entries(config: Config, agent: StudentAgent, turn: Turn, scene: Scene) -> Line:
    heard, features = turn.decision.heard, turn.decision.features
    if heard is None or features is None:
        raise ValueError("this rollout is not a student's")
    offered = turn.decision.offered[ENV : ENV + 1]
    if agent.teacher.guidance_codes == 1:
        own = row(_policy(agent, features, [_only(heard)], offered)[0])
        return {"guidance": None, "policy": {"heard": own, "silent": None, "mixed": None}}
    silence = Guidance(np.zeros_like(heard.codes[[ENV]]), np.array([NO_HINT]))
    weights = _teacher_weights(agent, heard, scene)
    options = [] if weights is None else [agent.options_in(offered, 1)]
    probs = _policy(agent, features, [_only(heard), silence, *options], offered)
    mixed = None if weights is None else row(weights[: len(probs) - 2] @ probs[2:])
    guidance = _guidance(config, turn, heard, scene, weights)
    return {
        "guidance": guidance,
        "policy": {"heard": row(probs[0]), "silent": row(probs[1]), "mixed": mixed},
    }


def note_lines(notes: Sequence[Note], steps: int) -> list[Line]:
    """The notes about the first ``steps`` steps, and about the whole rollout."""
    whole = [note for note in notes if note.step is None][:MAX_NOTES]
    told = [note for note in notes if note.step is not None and note.step < steps]
    texts = ("asked", "answered", "changed")
    return [
        {"kind": "note", "step": note.step}
        | {name: getattr(note, name)[:MAX_TEXT] for name in texts}
        for note in (*told[: 4 * steps], *whole)
    ]


def row(numbers: Sequence[float] | np.ndarray | None) -> list[float | None] | None:
    """Numbers as JSON has them."""
    return None if numbers is None else [rounded(number) for number in numbers]


def rounded(number: float | None) -> float | None:
    """Six digits; None for what is no number."""
    return None if number is None or not math.isfinite(number) else float(f"{number:.6g}")


def _only(heard: Guidance) -> Guidance:
    return Guidance(heard.codes[[ENV]], heard.hints[[ENV]])


def _policy(
    agent: StudentAgent,
    features: np.ndarray,
    guidances: Sequence[Guidance],
    offered: tuple[tuple[str, ...], ...],
) -> np.ndarray:
    """``(guidances, actions)`` probabilities of the actions in the watched state."""
    codes = torch.from_numpy(np.concatenate([guidance.codes for guidance in guidances]))
    hints = torch.from_numpy(np.concatenate([guidance.hints for guidance in guidances]))
    with torch.inference_mode():
        seen = agent.network.see(torch.from_numpy(features[[ENV]])).expand(len(hints), -1)
        table = action_table(offered)
        wide = None if table is None else table.expand(len(hints), -1, -1)
        probs: np.ndarray = agent.network.choose(seen, codes, hints, wide).double().exp().numpy()
    return probs


def _teacher_weights(agent: StudentAgent, heard: Guidance, scene: Scene) -> np.ndarray | None:
    """M(x | s) over a fixed vocabulary.

    An LLM is not asked again: what it said has its scores with it.
    """
    said = heard.said
    if not agent.lists_guidance:
        return None
    if heard.drawn is not None:
        drawn: np.ndarray = heard.drawn[ENV]
        return drawn
    if said is not None:
        return None if said.scores is None else np.exp(log_softmax(said.scores[[ENV]])[0])
    weights: np.ndarray = agent.teacher.distribution(scene.take(np.array([ENV])))[0]
    return weights


def _guidance(
    config: Config, turn: Turn, heard: Guidance, scene: Scene, weights: np.ndarray | None
) -> Line:
    said, hint = turn.decision.said, int(heard.hints[ENV])
    if said is not None:
        text, teacher = said.candidates[ENV][said.chosen[ENV]], None
    else:
        kind = config.guidance.vocabulary
        texts = _choices(kind, scene.observations.missions[ENV], turn)
        place = hint if kind == "action_hint" else int(heard.codes[ENV].argmax())
        text, teacher = texts[place], row(weights)
    return {"text": text, "hint": None if hint == NO_HINT else hint, "teacher": teacher}


def _choices(
    kind: Literal["action_hint", "subgoal", "free"], mission: str, turn: Turn
) -> tuple[str, ...]:
    """What a teacher that is no LLM could say."""
    if kind == "free":
        return ()
    offered = turn.candidates[ENV]
    return offered if kind == "action_hint" else make_vocabulary(kind).candidates(mission)


def _llm(said: Said, scores: Scores) -> Line:
    count = len(said.candidates[ENV])
    known = None if said.scores is None else said.scores[ENV, :count]
    before = scores.before.get(id(said), known)
    update, after = scores.after.get(id(said), (None, None))
    chosen = int(said.chosen[ENV])
    return {
        "chosen": chosen,
        "text": said.candidates[ENV][chosen],
        "before": row(before),
        "after": row(after),
        "update": update,
        "later": row(scores.later.get(id(said))),
    }
