"""What a client remembers of an LLM: asked about all states once per weights, and never of other
weights.
"""

import numpy as np
import pytest
import torch

from lamorel_ext.agents.llm_teachers import distribution_over
from lamorel_ext.agents.metering import MeteredClient
from lamorel_ext.experience import AllStates, Scene
from lamorel_ext.prompts import PLAIN, WORDINGS, Wording
from lamorel_ext.training.rewording import RewordedClient
from lamorel_ext.types import ObservationBatch, ScoreRequest, ScoreResult, UpdateRequest

TEXTS = (("left", "right"),) * 2


class CountingLlm:
    """Prefers the first candidate by ``strength``; says how often it was asked."""

    remote = False

    def __init__(self) -> None:
        self.asked, self.strength = 0, 0.0

    def score_batch(self, request: ScoreRequest) -> ScoreResult:
        self.asked += 1
        n = len(request.prompts)
        return ScoreResult(torch.tensor([self.strength, 0.0] * n), (2,) * n, {}, {"tokens": 5.0})

    def update_batch(self, request):
        self.strength += 1.0
        return type("Result", (), {"stats": {}})()

    def reset(self, seed, weights="pretrained", unused=()):
        self.strength = 0.0 if weights == "pretrained" else float(seed)

    def load(self, folder):
        self.strength = 9.0

    def forget(self, reference: bool = True) -> None:
        pass


def scene(kind: type[Scene] = AllStates) -> Scene:
    seen = ObservationBatch(
        ("m", "m"), ((), ()), np.zeros((2, 7, 7, 3), np.uint8), np.zeros(2, np.int64)
    )
    return kind(seen, ("one", "two"))


def client(llm: CountingLlm) -> MeteredClient:
    meter = MeteredClient(llm)
    meter.reset(0)
    return meter


def nothing() -> UpdateRequest:
    return UpdateRequest("", (), (), torch.arange(0), 0)


def test_the_same_weights_are_asked_once_over_several_runs() -> None:
    llm = CountingLlm()
    for meter in (client(llm), client(llm)):
        for _ in range(3):
            assert distribution_over(meter, scene(), TEXTS).tolist() == [[0.5, 0.5]] * 2
    assert llm.asked == 1


def test_an_update_a_load_and_fresh_weights_are_asked_anew() -> None:
    llm = CountingLlm()
    meter = client(llm)
    changes = [
        lambda: meter.update_batch(nothing()),
        lambda: meter.load("x"),
        lambda: meter.reset(4, "fresh"),
        lambda: meter.reset(5, "fresh"),
    ]
    for change in changes:
        change()
        expected = 1 / (1 + np.exp(-llm.strength))
        assert np.allclose(distribution_over(meter, scene(), TEXTS)[:, 0], expected, atol=1e-6)
    assert llm.asked == len(changes)


def test_single_scenes_are_never_answered_from_memory_so_that_each_is_counted() -> None:
    llm = CountingLlm()
    meter = client(llm)
    for _ in range(2):
        distribution_over(meter, scene(Scene), TEXTS)
    assert llm.asked == 2 and meter.counts["llm_tokens"] == 10.0


def test_other_servers_are_another_memory() -> None:
    first, second = CountingLlm(), CountingLlm()
    for llm in (first, second):
        distribution_over(client(llm), scene(), TEXTS)
    assert first.asked == second.asked == 1


@pytest.mark.parametrize("behind", [0, 1, 2])
def test_another_wording_is_asked_anew_whichever_client_says_it(behind: int) -> None:
    llm = CountingLlm()
    rewording = speaker = RewordedClient(llm)  # type: ignore[arg-type]
    for _ in range(behind):  # a method's own, around those of whoever tests it
        rewording = RewordedClient(rewording)
    meter = MeteredClient(rewording)
    meter.reset(0)
    for wording in (PLAIN, WORDINGS["other_nouns"], WORDINGS["other_nouns"], PLAIN):
        with speaker.speaking(wording):
            distribution_over(meter, scene(), TEXTS)
    assert llm.asked == 2  # of the pretrained weights every answer is remembered


class Hint(Wording):
    """Of a user's own, whose text is no field of the dataclass: equal to every other hint."""

    def __init__(self, text: str) -> None:
        super().__init__("hint")
        object.__setattr__(self, "text", text)


def test_wordings_of_ones_own_are_told_apart_by_all_that_they_hold() -> None:
    llm = CountingLlm()
    rewording = RewordedClient(llm)  # type: ignore[arg-type]
    meter = MeteredClient(rewording)
    meter.reset(0)
    assert Hint("look") == Hint("turn")
    for text in ("look", "turn", "look"):
        rewording.reword(Hint(text))
        distribution_over(meter, scene(), TEXTS)
    assert llm.asked == 2
