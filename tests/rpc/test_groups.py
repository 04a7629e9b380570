"""Sums among servers, and leaving them together when one server fails."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lamorel_ext.errors import UpdateError
from lamorel_ext.rpc.groups import LockstepGroup, OtherServerFailed, make_thread_groups


def on_servers(
    size: int, work: Callable[[LockstepGroup], Any], timeout_s: float = 10.0
) -> list[Any]:
    """What ``work`` gave, or raised, on each of ``size`` servers."""
    results: list[Any] = [None] * size

    def run(rank: int, group: LockstepGroup) -> None:
        try:
            results[rank] = work(group)
        except Exception as error:
            results[rank] = error

    groups = [LockstepGroup(group) for group in make_thread_groups(size, timeout_s)]
    threads = [
        threading.Thread(target=run, args=(rank, group), daemon=True)
        for rank, group in enumerate(groups)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(15)
        assert not thread.is_alive(), "a server hangs"
    return results


@pytest.mark.parametrize("size", [1, 2, 3])
def test_sums_are_the_same_everywhere_and_in_place(size: int) -> None:
    def work(group: LockstepGroup) -> Tensor:
        tensor = torch.tensor([1.0, 10.0]) * (group.rank + 1)

        def add() -> None:
            group.all_reduce_sum(tensor)
            group.barrier()

        group.together(add)
        return tensor

    factor = size * (size + 1) / 2
    for result in on_servers(size, work):
        assert torch.equal(result, torch.tensor([factor, 10 * factor]))


@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_everybody_leaves_when_one_server_fails_wherever_that_is(step: int) -> None:
    def work(group: LockstepGroup) -> int:
        done = 0

        def update() -> None:
            nonlocal done
            for place in range(3):
                if group.rank == 1 and place == step:
                    raise ArithmeticError("the loss is not finite")
                group.all_reduce_sum(torch.ones(4))
                done += 1
            if group.rank == 1 and step == 3:
                raise ArithmeticError("the loss is not finite")

        try:
            group.together(update)
        except ArithmeticError as error:
            return (done, str(error))  # type: ignore[return-value]
        except OtherServerFailed as error:
            return (done, str(error))  # type: ignore[return-value]
        raise AssertionError("nobody may finish")

    results = on_servers(3, work)
    # The same number of sums were completed everywhere: nobody has stepped further than another.
    assert [done for done, _ in results] == [step] * 3
    assert [text for _, text in results] == [
        "given up because llm server 1 failed",
        "the loss is not finite",
        "given up because llm server 1 failed",
    ]


class Huge:
    """Passes for a tensor of billions of numbers, of which two are there."""

    def __init__(self, numel: int) -> None:
        self.tensor, self._numel = torch.ones(2), numel

    def numel(self) -> int:
        return self._numel

    def detach(self) -> Tensor:
        return self.tensor


@pytest.mark.parametrize("size", [2, 3])
def test_a_gradient_of_billions_of_numbers_can_be_summed(size: int) -> None:
    def work(group: LockstepGroup) -> Any:
        equal, unequal = Huge(3 * 10**9), Huge(3 * 10**9 + group.rank)
        group.together(lambda: group.all_reduce_sum(equal))  # type: ignore[arg-type]
        with pytest.raises(OtherServerFailed, match=f"came to sum {unequal.numel()} numbers"):
            group.together(lambda: group.all_reduce_sum(unequal))  # type: ignore[arg-type]
        return equal.tensor

    for result in on_servers(size, work):
        assert torch.equal(result, torch.full((2,), float(size)))


@pytest.mark.parametrize("status", [0, 3])
def test_a_server_whose_updater_leaves_the_process_keeps_nobody_waiting(status: int) -> None:
    def work(group: LockstepGroup) -> None:
        def leave() -> None:
            if group.rank == 1:
                raise SystemExit(status)
            group.all_reduce_sum(torch.ones(1))

        try:
            group.together(leave)
        except SystemExit as error:
            raise RuntimeError(f"exit {error.code}") from error

    first, second = on_servers(2, work, timeout_s=60)  # longer than it waits for its servers
    assert isinstance(first, OtherServerFailed) and str(second) == f"exit {status}"


def test_several_that_fail_at_once_are_all_named() -> None:
    def work(group: LockstepGroup) -> None:
        def update() -> None:
            if group.rank != 1:
                raise ArithmeticError
            group.barrier()

        group.together(update)

    results = on_servers(3, work)
    assert [type(result) for result in results] == [
        ArithmeticError,
        OtherServerFailed,
        ArithmeticError,
    ]
    assert str(results[1]) == "given up because llm server 0 and llm server 2 failed"


def test_the_group_works_on_after_a_failure() -> None:
    def work(group: LockstepGroup) -> Tensor:
        def fail() -> None:
            if group.rank == 0:
                raise ArithmeticError
            group.barrier()

        with pytest.raises((ArithmeticError, OtherServerFailed)):
            group.together(fail)
        tensor = torch.ones(1)
        group.together(lambda: group.all_reduce_sum(tensor))
        return tensor

    assert [result.item() for result in on_servers(2, work)] == [2.0, 2.0]


@pytest.mark.parametrize("sizes", [(4, 5), (4, 6, 5), (0, 7)])
def test_sums_of_different_sizes_fail_instead_of_hanging(sizes: tuple[int, ...]) -> None:
    # (4, 6, 5): the mean of the sizes is one of them, so that comparing with the mean alone would
    # let one server through.
    results = on_servers(
        len(sizes),
        lambda group: group.together(lambda: group.all_reduce_sum(torch.ones(sizes[group.rank]))),
    )
    assert [type(result) for result in results] == [OtherServerFailed] * len(sizes)
    assert f"llm server 0 came to sum {sizes[0]} numbers" in str(results[0])


def test_a_forgotten_sum_fails_instead_of_hanging() -> None:
    results = on_servers(
        2,
        lambda group: group.together(
            lambda: group.all_reduce_sum(torch.ones(3)) if group.rank == 0 else None
        ),
    )
    assert "llm server 0 came to sum 3 numbers" in str(
        results[0]
    ) and "llm server 1 came to the end of the work" in str(results[1])


def test_who_swallows_the_failure_of_another_fails_at_the_end_all_the_same() -> None:
    def work(group: LockstepGroup) -> None:
        def update() -> None:
            if group.rank == 1:
                raise ArithmeticError
            for _ in range(3):
                with pytest.raises(OtherServerFailed):
                    group.all_reduce_sum(torch.ones(1))

        group.together(update)

    assert [type(result) for result in on_servers(2, work)] == [OtherServerFailed, ArithmeticError]


def test_a_server_that_never_comes_ends_the_wait_and_the_group() -> None:
    def work(group: LockstepGroup) -> str:
        if group.rank == 1:
            return "elsewhere"
        started = time.monotonic()
        with pytest.raises(UpdateError, match="one did not come within 0.2 s"):
            group.together(lambda: group.all_reduce_sum(torch.ones(1)))
        assert time.monotonic() - started < 14 and group.broken is not None
        with pytest.raises(UpdateError, match="lost touch"):
            group.together(lambda: None)
        return "gave up"

    assert on_servers(2, work, timeout_s=0.2) == ["gave up", "elsewhere"]
