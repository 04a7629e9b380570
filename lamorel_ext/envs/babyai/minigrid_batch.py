"""Any level, in several copies in this process, one stepped after the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lamorel_ext.envs.babyai.batch_checks import EpisodeSeed
from lamorel_ext.envs.babyai.describe import Language
from lamorel_ext.envs.babyai.level_copies import Share
from lamorel_ext.envs.babyai.process_batch import Answers, ProcessBatch


class MinigridBatch(ProcessBatch):
    """``ProcessBatch`` without other processes: its one share of copies is in this one.

    Args:
        level: Id of the level.
        num_envs: Copies.
        language: Language of the sentences.
        episode_seed: Seed of each episode.
        num_distractors: See ``levels.make_level``.
    """

    def __init__(
        self,
        level: str,
        num_envs: int,
        language: Language,
        episode_seed: EpisodeSeed,
        num_distractors: int | None = None,
    ) -> None:
        super().__init__(level, num_envs, language, episode_seed, num_distractors)
        self._share = Share(**self._options[0])

    def _ask(self, commands: Mapping[int, Mapping[str, Any]]) -> Answers:
        """After an error the batch does not run: some copies have gone on, others have not."""
        try:
            return {worker: self._share.answer(dict(own)) for worker, own in commands.items()}
        except BaseException:
            self._running = False
            raise
