"""Signs of life of ranks on several machines that have not met yet."""

from __future__ import annotations

import threading

import pytest
import torch.distributed as dist

from lamorel_ext.processes import heartbeat
from lamorel_ext.processes.heartbeat import Heart, tell_death


class BrokenStore:
    """Whoever kept it is gone."""

    def add(self, key: str, amount: int) -> int:
        raise RuntimeError("Connection reset by peer\nstack")

    set = get = add  # type: ignore[assignment]


def a_heart(
    store: object, rank: int = 0, silence_s: float = 90.0, size: int = 3
) -> tuple[Heart, list[str]]:
    said: list[str] = []
    heart = Heart(store, rank, size, f"host{rank}", silence_s, threading.Event(), said.append)  # type: ignore[arg-type]
    return heart, said


def test_a_rank_whose_number_stands_still_is_named_with_its_machine() -> None:
    store = dist.HashStore()
    heart, _ = a_heart(store)
    store.set("host of rank 2", "node7")
    store.add("rank 2", 1)
    assert [heart.look(now) for now in (0.0, 60.0, 90.0)] == ["", "", ""]
    assert (
        heart.look(90.5) == "no sign of life of rank 2 on node7 for 90 s before the ranks had met"
    )


def test_a_rank_that_was_stopped_for_a_minute_goes_on() -> None:
    store = dist.HashStore()
    heart, _ = a_heart(store)
    for now in (0.0, 60.0, 120.0, 180.0):
        store.add("rank 1", 1)
        assert heart.look(now) == ""


def test_a_rank_that_imports_or_has_met_the_others_is_not_waited_for_by_its_number() -> None:
    store = dist.HashStore()
    heart, _ = a_heart(store)
    other, _ = a_heart(store, rank=1)
    other.met.set()
    other.beat()
    assert [heart.look(now) for now in (0.0, 1000.0, 2000.0)] == ["", "", ""]


def test_word_of_a_death_on_another_machine_ends_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.01)
    store = dist.HashStore()
    heart, said = a_heart(store)
    tell_death(store, "rank 1 ended by SIGKILL on node7")
    heart.beat()
    assert said == ["rank 0 ends: rank 1 ended by SIGKILL on node7"]


def test_ranks_whose_store_is_gone_end_and_those_that_have_met_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.01)
    heart, said = a_heart(BrokenStore())
    heart.beat()
    assert said == ["rank 0 ends: the launch's store is gone: Connection reset by peer"]
    heart, said = a_heart(BrokenStore())
    heart.met.set()
    heart.beat()
    assert said == []


def test_a_silent_rank_ends_the_others_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.01)
    store = dist.HashStore()
    store.set("host of rank 1", "node7")
    store.add("rank 1", 5)
    heart, said = a_heart(store, silence_s=0.05)
    heart.beat()
    assert len(said) == 1 and "rank 0 ends: no sign of life of rank 1 on node7" in said[0]
