"""How many of the project's files one call goes through: ``python -m tests.house``.

Counts, in a single process with one server, the files entered between a prompt and its
log-probability, and between a sign and the weights, and how often the call moves from one file to
another. One line of JSON.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from experiments.runs.build import alone, build_server
from lamorel_ext.config import load_config
from lamorel_ext.experience import Said
from lamorel_ext.llm.serving import in_process
from lamorel_ext.methods.feedback.credit import Lesson
from lamorel_ext.methods.feedback.edge import feedback_request
from lamorel_ext.prompts import ACTION_NAMES
from lamorel_ext.types import ScoreRequest

ROOT = Path(__file__).resolve().parents[1] / "lamorel_ext"


class Profile:
    """Notes the files that are entered while it is ``on``, in every thread that begins later."""

    def __init__(self) -> None:
        self.on = False
        self.entered: list[str] = []
        threading.setprofile(self._note)
        sys.setprofile(self._note)

    def of(self, work: Callable[[], Any]) -> dict[str, Any]:
        """The files that ``work`` enters, and how often it moves from one to another."""
        work()  # what is only done once is no part of it
        self.entered, self.on = [], True
        work()
        self.on = False
        moves = zip(self.entered, self.entered[1:], strict=False)
        files = list(dict.fromkeys(self.entered))
        switches = sum(one != other for one, other in moves)
        return {"files": len(files), "switches": switches, "names": files}

    def _note(self, frame: FrameType, event: str, argument: Any) -> None:
        file = frame.f_code.co_filename
        if self.on and event == "call" and file.startswith(str(ROOT)):
            self.entered.append(str(Path(file).relative_to(ROOT)))


def main() -> int:
    """Print the counts."""
    profile = Profile()
    args = load_config(["lamorel_args.llm_args.cache_size=0"]).lamorel_args
    with in_process([build_server(args, alone(args))]) as caller:
        prompts = ("Goal of the agent: go to the red ball\nObservation: You see a wall\nAction:",)
        request = ScoreRequest(prompts, (ACTION_NAMES,))
        scored = profile.of(lambda: caller.score_batch(request))
        log_probs = np.array([-1.5])
        said = Said(prompts, (ACTION_NAMES,), np.array([2]), log_probs, log_probs)
        lessons = [Lesson(said, np.array([1.0]), None, log_probs)]
        taught = profile.of(lambda: caller.update_batch(feedback_request(lessons, {"lr": 1e-4})))
    print(json.dumps({"prompt to log-probability": scored, "sign to weights": taught}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
