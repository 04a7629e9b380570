"""The process of a worker: steps its share of the copies of a level when it is told to. Started by
``worker_pool``; imports no torch.
"""

from __future__ import annotations

import signal
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from lamorel_ext.envs.babyai.batch_checks import SavedEpisode
from lamorel_ext.envs.babyai.level_copies import LevelCopies
from lamorel_ext.envs.babyai.worker_messages import packed, unpacked
from lamorel_ext.processes.stopping import HEARD


def serve(handle: int) -> None:
    """Answer commands until the connection closes, or until one fails: then the traceback is the
    last answer.

    Args:
        handle: File descriptor of the connection to the process that started this one.
    """
    # A terminal, or a batch system, signals every process; the one that started us decides.
    for signum in HEARD:
        signal.signal(signum, signal.SIG_IGN)
    with Connection(handle) as connection:
        try:
            _answer_all(connection)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return  # whoever asked is gone
        except Exception as error:  # whatever it is, the asking process must hear of it
            failure = {
                "type": type(error).__name__,
                "message": str(error),
                "traceback": traceback.format_exc(),
            }
            connection.send_bytes(packed({"error": failure}))


def _answer_all(connection: Connection) -> None:
    options, _ = unpacked(connection.recv_bytes())
    share = Share(**options)
    connection.send_bytes(packed({}))
    while True:
        command, _ = unpacked(connection.recv_bytes())
        fields, images = share.answer(command)
        connection.send_bytes(packed(fields, images.tobytes()))


class Share:
    """The copies of one worker. Numbers of copies count within the share.

    Args:
        options: As of ``LevelCopies``.
    """

    def __init__(self, **options: Any) -> None:
        self._copies = LevelCopies(**options)

    def answer(self, command: dict[str, Any]) -> tuple[dict[str, Any], np.ndarray]:
        """Fields and images of the answer to a command.

        Commands are ``step`` (``actions``, one per copy), ``start`` (``copies``, ``episodes`` and
        ``seeds``; shows these copies alone), ``replay`` (``episodes``, ``seeds``, ``actions`` and
        ``consulted``, one per copy), ``expert`` and ``spans``.
        """
        handle = getattr(self, f"_{command.pop('do')}")
        answer: tuple[dict[str, Any], np.ndarray] = handle(**command)
        return answer

    def _step(self, actions: list[int]) -> tuple[dict[str, Any], np.ndarray]:
        rewards, terminated, truncated = self._copies.step(actions)
        shown, images = self._show(range(len(self._copies)))
        return {
            "rewards": rewards,
            "terminated": terminated,
            "truncated": truncated,
            **shown,
        }, images

    def _start(
        self, copies: list[int], episodes: list[int], seeds: list[int]
    ) -> tuple[dict[str, Any], np.ndarray]:
        for copy, episode, seed in zip(copies, episodes, seeds, strict=True):
            self._copies[copy].start(episode, seed)
        return self._show(copies)

    def _replay(
        self,
        episodes: list[int],
        seeds: list[int],
        actions: list[list[int]],
        consulted: list[list[int]],
    ) -> tuple[dict[str, Any], np.ndarray]:
        for copy, (episode, seed, taken, span) in enumerate(
            zip(episodes, seeds, actions, consulted, strict=True)
        ):
            self._copies[copy].replay(SavedEpisode(episode, taken, range(*span)), seed)
        return self._show(range(len(self._copies)))

    def _expert(self) -> tuple[dict[str, Any], np.ndarray]:
        return {"actions": self._copies.expert_actions()}, _NO_IMAGES

    def _spans(self) -> tuple[dict[str, Any], np.ndarray]:
        return {"spans": self._copies.expert_spans()}, _NO_IMAGES

    def _show(self, copies: Sequence[int]) -> tuple[dict[str, Any], np.ndarray]:
        shown = [self._copies[copy] for copy in copies]
        fields = {
            "missions": [copy.level.mission for copy in shown],
            "descriptions": [self._copies.describe(copy) for copy in shown],
            "directions": [int(copy.level.agent_dir) for copy in shown],
        }
        return fields, np.stack([copy.image for copy in shown])


_NO_IMAGES = np.zeros(0, dtype=np.uint8)
