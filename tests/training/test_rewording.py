"""The client that says everything in other words, in front of an LLM that writes down what it
hears.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from lamorel_ext.prompts import PLAIN, Wording
from lamorel_ext.training.rewording import RewordedClient
from lamorel_ext.types import (
    GenerateRequest,
    GenerateResult,
    Scalar,
    ScoreRequest,
    ScoreResult,
    UpdateRequest,
    UpdateResult,
)

WORDING = Wording("test", {"ball": "xolo"}, {"drop": "release"})


class Listener:
    """Remembers requests and calls; answers with nothing."""

    remote = True

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def submit_score(self, request: ScoreRequest) -> Listener:
        self.heard.append(request)
        return self

    def result(self) -> ScoreResult:
        return ScoreResult(torch.zeros(0), ())

    def score_batch(self, request: ScoreRequest) -> ScoreResult:
        return self.submit_score(request).result()

    def generate_batch(self, request: GenerateRequest) -> GenerateResult:
        self.heard.append(request)
        return GenerateResult((("the ball",),), torch.zeros(0), torch.zeros(0), (0,))

    def update_batch(self, request: UpdateRequest) -> UpdateResult:
        self.heard.append(request)
        return UpdateResult()

    def reset(self, seed: int, *more: object) -> None:
        self.heard.append(("reset", seed))

    def save(self, folder: str) -> None:
        self.heard.append(("save", folder))

    def load(self, folder: str) -> None:
        self.heard.append(("load", folder))

    def forget(self, reference: bool = True) -> None:
        self.heard.append("forget")

    def info(self) -> Mapping[str, Scalar]:
        return {"name": "listener"}


@pytest.fixture
def llm() -> Listener:
    return Listener()


SCORE = ScoreRequest(
    ("a ball", "a ballroom"), (("drop", "drop the ball"), ("drop", "drop the ball")), ("value",)
)


def test_questions_reach_the_llm_in_the_wording_in_force_and_as_they_are_afterwards(
    llm: Listener,
) -> None:
    client = RewordedClient(llm)
    with client.speaking(WORDING):
        client.score_batch(SCORE)
        client.submit_score(SCORE).result()
    client.score_batch(SCORE)
    assert client.wording is PLAIN and llm.heard[2] is SCORE
    for heard in llm.heard[:2]:
        assert (
            heard.prompts == ("a xolo", "a ballroom")
            and heard.candidates == (("release", "release the xolo"),) * 2
        )
        assert heard.modules == ("value",) and heard.score


def test_a_question_without_candidates_stays_one(llm: Listener) -> None:
    client = RewordedClient(llm)
    with client.speaking(WORDING):
        client.score_batch(ScoreRequest(("a ball",), (), ("value",), score=False))
    assert llm.heard == [ScoreRequest(("a xolo",), (), ("value",), score=False)]


def test_updates_and_generation_are_reworded_and_generated_text_comes_back_as_written(
    llm: Listener,
) -> None:
    client = RewordedClient(llm)
    with client.speaking(WORDING):
        written = client.generate_batch(GenerateRequest(("a ball",), {"seed": 1}))
        client.update_batch(UpdateRequest("ppo", ("a ball",), (("drop",),), torch.tensor([3]), 9))
    assert written.texts == (("the ball",),)
    assert llm.heard[0] == GenerateRequest(("a xolo",), {"seed": 1})
    assert (
        llm.heard[1].prompts == ("a xolo",)
        and llm.heard[1].candidates == (("release",),)
        and llm.heard[1].total == 9
    )


def test_the_wording_ends_with_an_error_too(llm: Listener) -> None:
    client = RewordedClient(llm)
    with pytest.raises(RuntimeError), client.speaking(WORDING):
        raise RuntimeError
    assert client.wording is PLAIN


def test_everything_else_is_passed_on(llm: Listener) -> None:
    client = RewordedClient(llm)
    client.reset(3)
    client.save("s")
    client.load("l")
    client.forget()
    assert (
        llm.heard == [("reset", 3), ("save", "s"), ("load", "l"), "forget"]
        and client.info() == {"name": "listener"}
        and client.remote
    )
