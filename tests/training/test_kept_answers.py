"""A model that is never trained is asked once: what it costs, how it rounds and how a stopped run
goes on do not depend on that.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from lamorel_ext.agents.kept_answers import KeptAnswers
from lamorel_ext.errors import CheckpointError
from lamorel_ext.training.loop import train
from lamorel_ext.types import ScoreRequest, ScoreResult
from tests.training.student_fakes import MemoryRecorder, TableLlm, make_corridor, small_config
from tests.training.test_several_clients import run as run_on_clients
from tests.training.test_training import FragileRecorder, Stops, without_seconds

FROZEN: dict[str, Any] = {
    "frozen": {"feedback": {"signal": "none"}},
    "told in words": {"feedback": {"signal": "state", "channel": "prompt"}},
    "subgoals": {"feedback": {"signal": "none"}, "guidance": {"vocabulary": "subgoal"}},
    "two halves": {"feedback": {"signal": "none"}, "run": {"pipeline": True}},
}


class Company(TableLlm):
    """As a server does it: each answer is rounded by what else was computed in its call, questions
    are computed and counted once until they are forgotten, and known ones are only counted.
    """

    def __init__(self, keeps: bool = True) -> None:
        super().__init__(remote=True)
        self._keeps = keeps
        self._remembered: dict[Any, torch.Tensor] = {}
        self.computed: list[Any] = []

    def score_batch(self, request: ScoreRequest) -> ScoreResult:
        if not self._keeps:
            request = dataclasses.replace(request, known=())
        exact = super().score_batch(request)
        if request.modules or not request.score:
            return exact
        asked = list(zip(request.prompts, request.candidates, strict=True))
        given = {asked[place] for place in request.known}
        unasked = [one for one in dict.fromkeys(asked) if one not in self._remembered]
        company = [one for one in unasked if one not in given]
        noise = 1e-6 * (len(company) + len("".join(prompt for prompt, _ in company)) % 7)
        self.computed += company
        nothing = torch.zeros(0)
        for one, row in zip(asked, exact.split(), strict=True):
            self._remembered.setdefault(one, nothing if one in given else row + noise)
        rows = [nothing if one in given else self._remembered[one] for one in asked]
        tokens = float(sum(len(prompt) for prompt, _ in unasked))
        return ScoreResult(torch.cat(rows), tuple(map(len, rows)), {}, {"tokens": tokens})

    def forget(self, reference: bool = True) -> None:
        self._remembered.clear()

    def update_batch(self, request: Any) -> Any:
        self.forget()
        return super().update_batch(request)


def curve(tmp_path: Path, llm: TableLlm, **groups: Any) -> MemoryRecorder:
    recorder = MemoryRecorder(tmp_path)
    train(small_config(**groups), llm, recorder, make_corridor)
    return recorder


@pytest.mark.parametrize("name", FROZEN)
def test_nothing_is_asked_twice_of_a_model_that_is_never_trained(name: str, tmp_path: Path) -> None:
    llm, forgetful = Company(), Company(keeps=False)
    kept = curve(tmp_path / "kept", llm, **FROZEN[name])
    asked = curve(tmp_path / "asked", forgetful, **FROZEN[name])
    assert len(llm.computed) == len(set(llm.computed))
    assert len(forgetful.computed) > 1.5 * len(llm.computed)
    costs = ("llm_calls", "llm_prompts", "llm_tokens", "env_steps", "success", "return")
    for row, other in zip(kept.rows, asked.rows, strict=True):
        assert [row[cost] for cost in costs] == [other[cost] for cost in costs]


@pytest.mark.parametrize("name", FROZEN)
def test_a_resumed_run_rounds_as_if_it_had_not_been_stopped(name: str, tmp_path: Path) -> None:
    unbroken = curve(tmp_path / "whole", Company(), **FROZEN[name])
    fragile = FragileRecorder(tmp_path / "stopped")
    config = small_config(**FROZEN[name])
    with pytest.raises(Stops):
        train(config, Company(), fragile, make_corridor)
    fragile.rollouts_left = 9
    train(config, Company(), fragile, make_corridor)
    assert without_seconds(fragile.rows) == without_seconds(unbroken.rows)
    assert fragile.last is not None and unbroken.last is not None
    for key, tensor in unbroken.last.tensors.items():
        assert torch.equal(tensor, fragile.last.tensors[key]), key


@pytest.mark.parametrize("name", ["frozen", "told in words"])
def test_several_clients_know_the_same(name: str, tmp_path: Path) -> None:
    one = curve(tmp_path / "one", Company(), **FROZEN[name])
    several = MemoryRecorder(tmp_path / "several")
    ended = run_on_clients(3, several, llm=Company(), **FROZEN[name])
    assert not [each for each in ended if isinstance(each, BaseException)]
    assert without_seconds(several.rows) == without_seconds(one.rows)


@pytest.mark.parametrize("signal", ["gae", "previous"])
def test_a_model_that_is_trained_is_asked_anew(signal: str, tmp_path: Path) -> None:
    llm = Company()
    recorder = curve(tmp_path, llm, feedback={"signal": signal})
    asked = [request for request in llm.requests if isinstance(request, ScoreRequest)]
    assert asked and not any(request.known for request in asked)
    assert recorder.last is not None
    assert not [name for name in recorder.last.tensors if name.startswith("kept.")]


def test_no_memory_on_the_servers_is_none_here_either(tmp_path: Path) -> None:
    config = small_config(feedback={"signal": "none"})
    llm_args = dataclasses.replace(config.lamorel_args.llm_args, cache_size=0)
    args = dataclasses.replace(config.lamorel_args, llm_args=llm_args)
    llm = Company()
    train(
        dataclasses.replace(config, lamorel_args=args), llm, MemoryRecorder(tmp_path), make_corridor
    )
    assert not any(getattr(request, "known", ()) for request in llm.requests)


# --- what is kept ---------------------------------------------------------------------------------

REQUEST = ScoreRequest(("one", "two", "one"), (("a", "b"), ("c",), ("a", "b")))
ANSWER = ScoreResult(torch.tensor([1.0, 2.0, 3.0, 1.0, 2.0]), (2, 1, 2), {}, {"tokens": 9.0})


def test_a_partly_known_request_becomes_a_whole_answer() -> None:
    kept = KeptAnswers()
    kept.keep(
        ScoreRequest(("one",), (("a", "b"),)), "", ScoreResult(torch.tensor([7.0, 8.0]), (2,))
    )
    asked = kept.look_up(REQUEST, "")
    assert asked.request.known == (0, 2) and not asked.complete
    answers = (ANSWER, ScoreResult(torch.tensor([3.0]), (0, 1, 0), {}, {"tokens": 9.0}))
    for told in answers:  # servers that know nothing of known prompts answer all
        whole = kept.fill(asked, told)
        assert whole.log_probs.tolist() == [7.0, 8.0, 3.0, 7.0, 8.0]
        assert whole.counts == (2, 1, 2) and whole.stats == {"tokens": 9.0}
    again = kept.look_up(REQUEST, "")
    assert again.complete and kept.fill(again, None).log_probs.tolist() == [7.0, 8.0, 3.0, 7.0, 8.0]


@pytest.mark.parametrize(
    "other",
    [
        (ScoreRequest(("one",), (("a", "c"),)), ""),
        (ScoreRequest(("one",), (("b", "a"),)), ""),
        (ScoreRequest(("one",), (("ab",),)), ""),
        (ScoreRequest(("one ",), (("a", "b"),)), ""),
        (ScoreRequest(("one",), (("a", "b"),)), "other words"),
    ],
)
def test_another_question_is_another_one(other: tuple[ScoreRequest, str]) -> None:
    kept = KeptAnswers()
    kept.keep(REQUEST, "", ANSWER)
    assert len(kept) == 2 and kept.look_up(*other).request.known == ()


def test_what_does_not_fit_or_is_not_finite_is_not_kept() -> None:
    small = KeptAnswers(limit=1)
    small.keep(REQUEST, "", ANSWER)
    assert len(small) == 1
    kept = KeptAnswers()
    kept.keep(
        ScoreRequest(("p", "q"), (("a",), ("a",))),
        "",
        ScoreResult(torch.tensor([-torch.inf, 0.5]), (1, 1)),
    )
    assert len(kept) == 1


def test_a_checkpoint_brings_back_what_was_kept() -> None:
    kept, other = KeptAnswers(), KeptAnswers()
    assert kept.tensors() == {}
    kept.keep(REQUEST, "", ANSWER)
    other.load(kept.tensors())
    asked = other.look_up(REQUEST, "")
    assert asked.complete and torch.equal(other.fill(asked, None).log_probs, ANSWER.log_probs)
    assert all(torch.equal(value, kept.tensors()[name]) for name, value in other.tensors().items())
    other.load({})
    assert not len(other)


@pytest.mark.parametrize(
    "change",
    [
        {"kept.keys": torch.zeros(3, 16, dtype=torch.uint8)},
        {"kept.counts": torch.tensor([2, 2])},
        {"kept.log_probs": None},
    ],
)
def test_a_checkpoint_whose_answers_do_not_fit_is_refused(change: dict[str, Any]) -> None:
    kept = KeptAnswers()
    kept.keep(REQUEST, "", ANSWER)
    changed = {
        name: value for name, value in (kept.tensors() | change).items() if value is not None
    }
    with pytest.raises(CheckpointError, match="kept.keys, kept.counts, kept.log_probs"):
        KeptAnswers().load(changed)
