"""Recording single rollouts step by step, for looking at them: what one environment showed, what
was said and done, and what was learnt from it.

A trace is a file of JSON lines, numbers rounded to six digits. The first line is the header, then
come the episodes, each followed by its steps, the updates of the teacher, and last the notes of
method and agent. Every line has a ``kind``::

    trace    version; env_steps and rollout before it began, env (always 0); seed, level, language,
             prompt (of env), num_distractors, arm, agent, teacher, vocabulary, signal, loss,
             channel, every; method (name of its class, null without one); gamma, lam, reward_scale;
             actions (texts by id; none where each state lists its own); left_out (steps of the
             rollout after the recorded ones). Of an environment of the user's own level is its
             dotted name
    episode  number of the environment's episode, and actions (ids) from its start to the first step
             recorded; both null where the run was resumed from a checkpoint that does not know;
             mission; candidates (what can be said, null where there is no list)
    step     prompt as the LLM read it; sentences; view (7 x 7 x 3 bytes ``[x, y, channel]`` in
             hexadecimal; empty where there is none); direction; offered (texts of the actions, only
             where each state lists its own); action and its probability; reward (unscaled); end
             (null, "terminated" or "truncated"); won (true where the episode that ends here is a
             success, null where nobody knows; only there); value V(s); error A' (the TD error),
             previous (the error of the episode's step before, null on its first); advantage (GAE),
             these of what was learnt from, a method's rewards too; signal f as it was sent or said,
             null where there was none; and three groups, each null where there is no such thing:
      llm       chosen (place in candidates, or 0), text; scores of the candidates in nats, summed
                over their tokens, under the weights that chose (before), after the update that this
                step's feedback went into (after), and after the policy's own PPO or a method's
                update (later); null for each that did not take place; update, its place among the
                updates below
      guidance  text that the student heard, hint (action id, or null), and of a teacher that is no
                LLM its probabilities by candidate
      policy    of an agent that is no LLM, by action: heard, after this guidance; silent, after
                none (code zero and the row of "no hint", an input that a taught student is not
                trained on); mixed, averaged over what the teacher could have said, sum_x M(x|s)
                pi(a|x,s); the last two null where nobody gives guidance
    update   number, samples, stats (what the server said of it; loss, entropy and the like as they
             were before the step)
    note     step (place among all steps of the file, null where it is of the whole rollout); asked,
             answered, changed: texts
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lamorel_ext.agents.making import Agent
from lamorel_ext.agents.metering import MeteredClient
from lamorel_ext.config import Config
from lamorel_ext.errors import CheckpointError
from lamorel_ext.experience import BABYAI, Discount, Note, Rollout, Said, Scene, Turn
from lamorel_ext.methods.feedback.edge import Pending
from lamorel_ext.training.trace_lines import (
    ENV,
    Course,
    Line,
    Scores,
    agent_entries,
    episode_line,
    header_line,
    note_lines,
    rounded,
    spoke,
    step_line,
)
from lamorel_ext.types import ScoreRequest, TaskSpec

MAX_STEPS = 128
"""Steps of a rollout that are recorded at most; keeps a file below 300 kB."""


@dataclass(frozen=True)
class Trace:
    """One recorded rollout.

    Attributes:
        env_steps: Environment steps of the run before it; names its file.
        lines: As the module says.
    """

    env_steps: int
    lines: tuple[Line, ...]

    def text(self) -> str:
        """The file."""
        return "".join(
            json.dumps(line, allow_nan=False, separators=(",", ":")) + "\n" for line in self.lines
        )


@dataclass
class _Recording:
    """A rollout that is being recorded, from ``scene`` on."""

    env_steps: int
    rollout: int
    scene: Scene
    discount: Discount = Discount(1.0, 1.0)
    scores: Scores = field(default_factory=Scores)
    entries: list[Line] = field(default_factory=list)
    signals: np.ndarray | None = None
    updates: list[Line] = field(default_factory=list)
    weights: Hashable = None

    def wanted(self, config: Config, pending: Pending) -> list[Said]:
        """What is to be scored: not the empty text, which has no probability, and not more than is
        shown.
        """
        said = [
            words
            for words, _ in pending
            if spoke(config, words) and words.candidates[ENV][words.chosen[ENV]]
        ]
        return said[: MAX_STEPS - len(self.scores.after)]


class Tracer:
    """Records every ``run.trace_every``-th rollout, the first one on each level, the last full one
    and what remains after it. An ``EdgeWatcher``.

    The run does not notice: nothing is drawn from its random streams, no call is counted, and the
    servers are asked only next to an update, when they forget their answers anyway; then they are
    told to forget what they were asked.

    Args:
        config: The run.
        llm: Asked for scores after updates.
        task: What the environment asks of the agent.

    Attributes:
        seconds: What recording the current rollout has taken so far.
    """

    def __init__(self, config: Config, llm: MeteredClient | None, task: TaskSpec = BABYAI) -> None:
        self._config = config
        self._task = task
        self._llm = llm
        self._course = Course()
        self._recording: _Recording | None = None
        self.seconds = 0.0

    # --- called by the run ------------------------------------------------------------------------

    def begin(self, config: Config, env_steps: int, rollouts: int, left: int, scene: Scene) -> None:
        """A rollout begins.

        Args:
            config: The run, with the level that is trained on now.
            env_steps: Environment steps done.
            rollouts: Rollouts done.
            left: Steps of each environment until the end of the run.
            scene: Where it begins.
        """
        self._config = config
        every, new_level = config.run.trace_every, self._course == Course()
        due = every > 0 and (new_level or rollouts % every == 0 or left < 2 * config.num_steps)
        self._recording = _Recording(env_steps, rollouts, scene) if due else None
        self.seconds = 0.0

    def collected(self, rollout: Rollout, agent: Agent) -> None:
        """It is collected, and the agent has not learnt from it yet."""
        recording = self._recording
        if recording is not None:
            with self._timed():
                places = _places(recording.scene, rollout)
                recording.discount = agent.discount
                recording.weights = self._weights
                recording.entries = [
                    agent_entries(self._config, agent, turn, scene) for turn, scene in places
                ]

    def finish(self, rollout: Rollout, notes: Sequence[Note] = ()) -> Trace | None:
        """Agent and method have learnt from it; gives what was recorded, if anything."""
        recording, self._recording = self._recording, None
        if recording is None:
            self._pass_over(rollout, 0)
            return None
        with self._timed():
            taught = bool(self._config.method) and self._weights != recording.weights
            if self._config.arm.agent == "llm_policy" or taught:
                words = [turn.decision.said for turn, _ in _places(recording.scene, rollout)]
                said = [one for one in words if one is not None and spoke(self._config, one)]
                recording.scores.later = dict(zip(map(id, said), self._ask(said), strict=True))
            left_out = max(0, len(rollout.turns) - MAX_STEPS)
            header = header_line(
                self._config,
                recording.discount,
                recording.env_steps,
                recording.rollout,
                left_out,
                self._task,
            )
            steps = self._steps(recording, rollout)
            lines = (header, *steps, *recording.updates, *note_lines(notes, MAX_STEPS))
            self._pass_over(rollout, MAX_STEPS)
        return Trace(recording.env_steps, lines)

    def forget_episodes(self) -> None:
        """Other environments take the old ones' place, at the start of their first episodes."""
        self._course = Course()

    def state(self) -> dict[str, Any]:
        """Where the watched environment stands, as JSON can hold it."""
        return dataclasses.asdict(self._course)

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Come back to a saved state; None where the checkpoint has none.

        Raises:
            CheckpointError: ``state`` is not what ``state()`` gives.
        """
        if state is None:
            self._course = Course(None, None, None, None)
            return
        try:
            known = (state["episode"], state["actions"], state["error"])
            # Checkpoints of earlier versions do not know the return.
            self._course = Course(*known, state.get("returned"))
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"not the state of a trace: {error!r}") from error

    # --- EdgeWatcher ------------------------------------------------------------------------------

    def before_update(self, pending: Pending) -> None:
        """Free text is scored here: while it was written, the end of the text counted too, in an
        update it does not.
        """
        if self._recording is not None and self._config.guidance.vocabulary == "free":
            with self._timed():
                said = self._recording.wanted(self._config, pending)
                self._recording.scores.before |= zip(map(id, said), self._ask(said), strict=True)

    def after_update(self, pending: Pending, stats: Mapping[str, float]) -> None:
        """The same texts are scored again."""
        recording = self._recording
        if recording is None or len(recording.scores.after) >= MAX_STEPS:
            return
        with self._timed():
            number = len(recording.updates)
            samples = sum(len(words.prompts) for words, _ in pending)
            numbers = {
                name: rounded(value) for name, value in stats.items() if math.isfinite(value)
            }
            recording.updates.append(
                {"kind": "update", "number": number, "samples": samples, "stats": numbers}
            )
            said = recording.wanted(self._config, pending)
            recording.scores.after |= {
                id(words): (number, row) for words, row in zip(said, self._ask(said), strict=True)
            }

    def signalled(self, signals: np.ndarray) -> None:
        """What f was, ``(num_steps, num_envs)``."""
        if self._recording is not None:
            self._recording.signals = signals

    # --- inside -----------------------------------------------------------------------------------

    @contextmanager
    def _timed(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - begin

    @property
    def _weights(self) -> Hashable:
        """Equal as long as nothing changes the LLM's weights."""
        return None if self._llm is None else self._llm.weights

    def _ask(self, said: Sequence[Said]) -> list[np.ndarray]:
        """Scores of what could have been said, with the weights as they are."""
        if not said or self._llm is None:
            return []
        request = ScoreRequest(
            tuple(words.prompts[ENV] for words in said),
            tuple(words.candidates[ENV] for words in said),
        )
        with self._llm.paused():
            rows = self._llm.score_batch(request).split()
        self._llm.forget(reference=False)  # an update's answers of the initial weights stay
        return [row.detach().double().numpy() for row in rows]

    def _steps(self, recording: _Recording, rollout: Rollout) -> Iterator[Line]:
        """Episodes and steps; the course goes along."""
        signals = [] if recording.signals is None else list(recording.signals)
        cold = len(rollout.turns) - len(signals)
        for t, (turn, scene) in enumerate(_places(recording.scene, rollout)):
            if t == 0 or rollout.done[t - 1, ENV]:
                yield episode_line(self._config, self._course, turn, scene)
            f = None if t < cold else float(signals[t - cold][ENV])
            yield step_line(
                self._config,
                rollout,
                t,
                scene,
                self._course,
                f,
                recording.scores,
                recording.entries[t],
                self._task,
            )
            self._course.advance(rollout, t)

    def _pass_over(self, rollout: Rollout, first: int) -> None:
        for t in range(first, len(rollout.turns)):
            self._course.advance(rollout, t)


def _places(first: Scene, rollout: Rollout) -> list[tuple[Turn, Scene]]:
    """The turns that are recorded, with the scene in which each was taken."""
    turns = rollout.turns[:MAX_STEPS]
    return list(zip(turns, [first, *(turn.stepped.current for turn in turns[:-1])], strict=True))
