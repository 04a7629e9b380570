"""BabyAI-Text as a Gymnasium environment: minigrid's BabyAI levels, with every state also said in
words.
"""

from __future__ import annotations

import operator
import string
from typing import Any

import gymnasium

from lamorel_ext.envs.babyai.describe import Language, describe
from lamorel_ext.envs.babyai.levels import level_ids, level_spec, make_level
from lamorel_ext.envs.texts import SharedText
from lamorel_ext.errors import LevelError

NAMESPACE = "BabyAI-Text"
NUM_ACTIONS = 7
LONGEST_TEXT = 4_096
"""Characters of a state's sentences at most: 52 of them, none longer than 70."""
LONGEST_MISSION = 512
"""Characters of a mission at most: four tasks with two objects each."""
LETTERS = string.ascii_letters + string.digits + " ,\n" + "àéîû"
"""What sentences and missions are written in, French ones too."""


class BabyAITextEnv(gymnasium.Env[dict[str, Any], int]):
    """One level, with sentences.

    Observations are minigrid's and the sentences of the state: ``image`` ``(7, 7, 3)`` uint8,
    ``direction``, ``mission``, and ``text``, one sentence a line. Every ``info`` holds
    ``descriptions``, the same sentences as a list, and ``mission``. Equal seeds give equal
    episodes, those of the original BabyAI-Text. A copy of a running environment, by ``copy`` or
    ``pickle``, goes on as the environment does.

    A success gives ``1 - 0.9 * step / max_steps`` and terminates the episode, every other step
    gives 0. The step limit truncates it; a success on the last allowed step does both.

    Args:
        level: Id of a level, see ``levels.level_ids``.
        language: Language of the sentences; the mission stays English. None takes the level's own,
            English but for ``GoToFrench``.
        num_distractors: See ``levels.make_level``.
        max_steps: See ``levels.make_level``.
        render_mode: ``human``, ``rgb_array`` or None, as in minigrid.

    Raises:
        LevelError: See ``levels.make_level``; or the language is unknown.
    """

    metadata = {"render_modes": ["human", "rgb_array"], "render_fps": 10}

    def __init__(
        self,
        level: str = "BabyAI-GoToRedBallNoDists-v0",
        language: Language | None = None,
        num_distractors: int | None = None,
        max_steps: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.level_id = level
        self.language: Language = sentence_language(level, language)
        built = make_level(level, num_distractors, max_steps)
        built.render_mode = self.render_mode = render_mode
        self.observation_space = _with_sentences(built.observation_space)
        self.action_space = built.action_space
        self._running: bool | None = None
        self.level = built  # last: what it has is set there from now on

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode. Without a seed it follows from the episode before."""
        super().reset(seed=seed)
        observation, _ = self.level.reset(seed=seed)
        if (
            self.level.carrying is not None
        ):  # levels that begin with something in the hand put it there after minigrid looked
            observation = self.level.gen_obs()
        self._running = True
        return observation, self._say(observation)

    def step(self, action: int) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Take an action, 0 to 6.

        Raises:
            LevelError: There is no such action, or no episode is running.
        """
        if not self._running:
            raise LevelError(
                "step before reset"
                if self._running is None
                else "step after the end of an episode: reset first"
            )
        try:
            number = operator.index(action)
        except TypeError:  # half an action is none
            number = -1
        if not 0 <= number < NUM_ACTIONS:
            raise LevelError(f"actions are 0 to {NUM_ACTIONS - 1}, got {action!r}")
        observation, reward, terminated, truncated, _ = self.level.step(number)
        self._running = not (terminated or truncated)
        info = self._say(observation)
        return observation, float(reward), bool(terminated), bool(truncated), info

    def render(self) -> Any:
        """As minigrid renders."""
        return self.level.render()

    def close(self) -> None:
        """Free the window, if any."""
        self.level.close()

    def __getattr__(self, name: str) -> Any:
        """What minigrid's wrappers ask of the environment they are put around: the level has it."""
        if name.startswith("_") or name == "level":  # a copy asks before there is a level
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.level, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """What is set of the level, such as the agent's place, is set where the level is stepped;
        what this object has itself, here.
        """
        level = self.__dict__.get("level")
        of_level = name in getattr(level, "__dict__", ()) and name not in self.__dict__
        if of_level and not name.startswith("_"):
            setattr(level, name, value)
        else:
            super().__setattr__(name, value)

    def _say(self, observation: dict[str, Any]) -> dict[str, Any]:
        """Put the sentences into the observation; gives what ``info`` holds."""
        sentences = list(describe(observation["image"], language=self.language))
        observation["text"] = "\n".join(sentences)
        return {"descriptions": sentences, "mission": self.level.mission}


def _with_sentences(seen: Any) -> gymnasium.spaces.Dict:
    """minigrid's space of observations with the sentences; the mission's space is a plain one,
    since Gymnasium's vector environments do not know minigrid's.
    """
    texts = {"mission": LONGEST_MISSION, "text": LONGEST_TEXT}
    spaces = {
        name: SharedText(longest, min_length=0, charset=LETTERS) for name, longest in texts.items()
    }
    return gymnasium.spaces.Dict({**seen.spaces, **spaces})


def sentence_language(level: str, language: Language | None) -> Language:
    """The language a level speaks: its own where it insists on one, else the one asked for, else
    English.
    """
    chosen = level_spec(level).language or language or "en"
    if chosen not in ("en", "fr"):
        raise LevelError(f"{level}: the language must be en or fr, got {chosen!r}")
    return chosen


def register() -> None:
    """Make every level known to Gymnasium as ``BabyAI-Text/<name>``; twice does no harm.

    ``gymnasium.make("lamorel_ext.envs:BabyAI-Text/GoToLocal-v0", language="fr")`` imports this
    package and builds the level.
    """
    for level_id in level_ids():
        name = f"{NAMESPACE}/{level_id.removeprefix('BabyAI-')}"
        if name not in gymnasium.registry:
            gymnasium.register(
                name, entry_point=f"{__name__}:BabyAITextEnv", kwargs={"level": level_id}
            )
