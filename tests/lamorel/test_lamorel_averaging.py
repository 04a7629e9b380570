"""Servers hold the same weights under an updater that knows nothing of averaging."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lamorel_ext.lamorel.averaging import AveragedModule
from lamorel_ext.rpc.groups import LockstepGroup
from tests.updaters.updater_fakes import on_servers

Update = Callable[[AveragedModule, int, int], None]


def layers() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def run(
    size: int,
    parts: Callable[[int, int], bool],
    update: Update,
    updates: int = 10,
    make: Callable[[], nn.Module] = layers,
) -> list[AveragedModule]:
    """``updates`` updates on ``size`` servers; ``parts(server, update)`` tells which have a part of
    the batch.
    """
    modules: list[AveragedModule] = []
    for server in range(size):
        torch.manual_seed(server)  # they begin with different weights
        modules.append(AveragedModule(make()))

    def serve(group: LockstepGroup) -> None:
        server = group.rank
        modules[server].begin(group)
        for number in range(updates):
            work = partial(update, modules[server], server, number)
            own = work if parts(server, number) else None
            group.together(partial(modules[server].update, own))

    for result in on_servers(size, lambda group: serve(LockstepGroup(group))):
        if isinstance(result, Exception):
            raise result
    return modules


def adam(module: AveragedModule, server: int, number: int, passes: int = 1) -> None:
    if not hasattr(module, "optimizer"):
        module.optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(100 * server + number)
    module.optimizer.zero_grad()
    for _ in range(passes):
        (module(torch.randn(4, 3, generator=generator)) ** 2).mean().backward()
    torch.nn.utils.clip_grad_norm_(module.parameters(), 0.1)
    module.optimizer.step()


def same(modules: list[AveragedModule]) -> bool:
    first = list(modules[0].parameters())
    return all(
        torch.equal(a, b)
        for other in modules[1:]
        for a, b in zip(first, other.parameters(), strict=True)
    )


@pytest.mark.parametrize("size", [2, 3])
def test_weights_agree_to_the_last_bit_after_ten_updates(size: int) -> None:
    assert same(run(size, lambda server, number: True, adam))


def test_steps_made_by_hand_are_averaged_too() -> None:
    def by_hand(module: AveragedModule, server: int, number: int) -> None:
        module.zero_grad()
        module(torch.full((2, 3), float(server + number))).sum().backward()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter -= 0.01 * parameter.grad  # type: ignore[operator]

    assert same(run(2, lambda server, number: True, by_hand))


def test_the_gradient_is_the_mean_over_servers_also_where_it_is_accumulated() -> None:
    found: dict[int, torch.Tensor] = {}

    def accumulate(module: AveragedModule, server: int, number: int) -> None:
        module.zero_grad()
        for scale in (1.0, 10.0):
            (module.module[2].bias * scale * (server + 1)).sum().backward()  # type: ignore[index]
        found[server] = module.module[2].bias.grad.clone()  # type: ignore[index]

    run(2, lambda server, number: True, accumulate, updates=1)
    assert found[0].item() == found[1].item() == pytest.approx(11 * 1.5)


def accumulated(inside: bool) -> Callable[[AveragedModule, int, int], None]:
    """Three passes, of which the last is averaged; before it the sum is each server's own."""

    def update(module: AveragedModule, server: int, number: int) -> None:
        module.zero_grad()
        bias = module.module[2].bias  # type: ignore[index]
        for scale in (1.0, 10.0):
            with module.no_sync():
                loss = module(torch.full((1, 3), float(server))).sum() * scale
                if inside:
                    loss.backward()
            if not inside:
                loss.backward()
        assert bias.grad.item() == pytest.approx(11.0)
        assert module._passes == 0
        module(torch.full((1, 3), float(server))).sum().mul(server + 1).backward()
        assert bias.grad.item() == pytest.approx(11.0 + 1.5)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter -= 0.01 * parameter.grad  # type: ignore[operator]

    return update


@pytest.mark.parametrize("inside", [True, False])
def test_no_sync_lets_gradients_add_up_until_a_pass_that_is_averaged(inside: bool) -> None:
    assert same(run(2, lambda server, number: True, accumulated(inside), updates=3))


def test_no_sync_of_one_update_does_not_reach_the_next() -> None:
    def alone(module: AveragedModule, server: int, number: int) -> None:
        if number == 0:
            module.zero_grad()
            with module.no_sync():
                module(torch.ones(1, 3)).sum().backward()
        else:
            adam(module, server, number)

    assert same(run(2, lambda server, number: True, alone, updates=3))


@pytest.mark.parametrize(
    "parts",
    [
        lambda server, number: server == 0,
        lambda server, number: server == number % 2,
        lambda server, number: server == 0 or number > 4,
    ],
)
def test_a_server_without_a_part_of_the_batch_keeps_up(parts: Callable[[int, int], bool]) -> None:
    assert same(run(2, parts, adam))


def test_an_updater_may_freeze_parts_where_another_server_has_no_part_of_the_batch() -> None:
    """Nobody freezes there, as nobody calls the updater."""

    def one_layer_at_a_time(module: AveragedModule, server: int, number: int) -> None:
        first, last = module.module[0], module.module[2]  # type: ignore[index]
        first.requires_grad_(number % 2 == 0)
        last.requires_grad_(number % 2 == 1)
        before = [first.weight.detach().clone(), last.weight.detach().clone()]
        torch.optim.SGD(module.parameters(), lr=0.1).zero_grad()
        (module(torch.full((2, 3), float(number + 1))) ** 2).mean().backward()
        torch.optim.SGD(module.parameters(), lr=0.1).step()
        kept = [
            torch.equal(*pair) for pair in zip(before, (first.weight, last.weight), strict=True)
        ]
        assert kept == [number % 2 == 1, number % 2 == 0]

    assert same(run(2, lambda server, number: server == 0 or number > 1, one_layer_at_a_time, 4))


class Frees(nn.Module):
    """Frees a layer when it is called, as naming another adapter does."""

    def __init__(self) -> None:
        super().__init__()
        self.adapter = nn.Linear(3, 1).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.adapter.requires_grad_(True)(x)
        return found


def test_parameters_that_a_pass_frees_are_averaged_in_it() -> None:
    def once(module: AveragedModule, server: int, number: int) -> None:
        module(torch.full((1, 3), float(server))).sum().backward()
        with torch.no_grad():
            module.module.adapter.weight -= module.module.adapter.weight.grad  # type: ignore[union-attr,operator]

    modules = run(2, lambda server, number: True, once, updates=1, make=Frees)
    assert same(modules)
    assert modules[0].module.adapter.weight.grad.tolist() == [[0.5] * 3]  # type: ignore[union-attr]


def test_unequal_numbers_of_passes_neither_hang_nor_part_the_weights() -> None:
    assert same(
        run(
            3,
            lambda server, number: True,
            lambda module, server, number: adam(module, server, number, 1 + server),
        )
    )


def test_an_update_counts_whoever_made_most_passes_before() -> None:
    """One server stops early in the first update, the other has no part of the second."""
    passes = [(1, 4), (2, 0)]

    def step(module: AveragedModule, server: int, number: int) -> None:
        for _ in range(passes[number][server]):
            module.zero_grad()
            bias = module.module[2].bias  # type: ignore[index]
            bias.sum().backward()
            with torch.no_grad():
                bias -= bias.grad

    def bias(updates: int) -> float:
        modules = run(2, lambda server, number: passes[number][server] > 0, step, updates)
        assert same(modules)
        return modules[0].module[2].bias.item()  # type: ignore[index]

    assert bias(1) - bias(2) == pytest.approx(2)


@pytest.mark.parametrize("first", [0, 1])
def test_weights_that_are_set_without_a_pass_reach_a_server_without_a_part(first: int) -> None:
    def load(module: AveragedModule, server: int, number: int) -> None:
        ones = {name: torch.ones_like(value) for name, value in module.state_dict().items()}
        module.load_state_dict(ones)

    modules = run(2, lambda server, number: server == first, load, updates=1)
    assert same(modules) and modules[1 - first].module[2].bias.item() == 1  # type: ignore[index]


def by_its_own_loss(module: AveragedModule, server: int, number: int) -> None:
    if number == 0:
        module.optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        module.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(module.optimizer, patience=0)
    module.zero_grad()
    module(torch.ones(2, 3)).sum().backward()
    module.optimizer.step()
    module.scheduler.step(-float(number * server))  # the first server sees no progress


def drawn_anew(module: AveragedModule, server: int, number: int) -> None:
    module.module[0].weight.data += server  # type: ignore[index]


@pytest.mark.parametrize("update", [by_its_own_loss, drawn_anew])
def test_weights_that_an_updater_lets_differ_become_one_servers(update: Update) -> None:
    assert same(run(3, lambda server, number: True, update, updates=3))


def test_after_unequal_passes_only_what_may_have_changed_travels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The frozen layer does not, unless the updater writes into it, here as an average that follows
    the trained weights pass by pass.
    """
    sizes: list[int] = []
    summed = LockstepGroup.all_reduce_sum

    def counted(self: LockstepGroup, *tensors: torch.Tensor) -> None:
        sizes.append(sum(each.numel() for each in tensors))
        summed(self, *tensors)

    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen = nn.Linear(40, 3, bias=False).requires_grad_(False)
            self.head = nn.Linear(3, 1)

    def update(module: AveragedModule, server: int, number: int, follow: bool) -> None:
        inner = module.module
        for _ in range(1 + server):
            module.zero_grad()
            inner.head(inner.frozen(torch.full((2, 40), 1.0 + server))).sum().backward()  # type: ignore[operator]
            with torch.no_grad():
                for each in inner.head.parameters():  # type: ignore[union-attr]
                    each -= 0.1 * each.grad
                if follow:
                    inner.frozen.weight.mul_(0.9)  # type: ignore[union-attr,operator]

    monkeypatch.setattr(LockstepGroup, "all_reduce_sum", counted)
    travelled = {}
    for follow in (False, True):
        sizes.clear()
        assert same(run(2, lambda *_: True, partial(update, follow=follow), 3, Frozen))
        travelled[follow] = sum(size >= 120 for size in sizes)
    # On both servers: once for everybody's first weights; then after each of three updates.
    assert travelled == {False: 2, True: 2 + 6}


def test_a_parameter_that_nobody_used_stays_without_a_gradient() -> None:
    def last_only(module: AveragedModule, server: int, number: int) -> None:
        module.module[2].bias.sum().backward()  # type: ignore[index]

    modules = run(2, lambda server, number: True, last_only, updates=1)
    assert all(
        m.module[0].weight.grad is None and m.module[2].bias.grad is not None for m in modules
    )  # type: ignore[index]


class Buffered(nn.Module):
    """Has what is drawn, what is counted and what is computed for the longest text so far."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        self.register_buffer("projection", torch.randn(3, 3))
        self.register_buffer("mask", torch.rand(40) > 0.5)
        self.register_buffer("highest", torch.zeros(()))
        self.register_buffer("drawn", torch.randn(5), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.highest = torch.maximum(self.highest, x.detach().max())
        if "computed" not in dict(self.named_buffers()) and x.max() > 1.5:
            self.register_buffer("computed", torch.arange(3.0), persistent=False)
        result: torch.Tensor = self.layers(x @ self.projection)
        return result


@pytest.mark.parametrize("parts", [lambda server, number: True, lambda server, number: server == 1])
def test_buffers_are_those_of_one_server_from_the_beginning_and_after_every_update(
    parts: Callable[[int, int], bool],
) -> None:
    def update(module: AveragedModule, server: int, number: int) -> None:
        module.zero_grad()
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(10 * server + number))
        module(x.clamp(max=1) + server).sum().backward()

    begun = run(3, parts, update, updates=0, make=Buffered)
    assert same(begun)
    modules = run(3, parts, update, updates=2, make=Buffered)
    assert same(modules)
    for later in (begun, modules):
        kept = [
            {**each.module.state_dict(), "drawn": each.module.drawn}  # type: ignore[dict-item]
            for each in later
        ]
        for other in kept[1:]:
            assert all(torch.equal(kept[0][key], other[key]) for key in kept[0])
    first = modules[0].module
    assert first.mask.dtype == torch.bool  # type: ignore[union-attr]
    assert int(first.layers[1].num_batches_tracked) == 2  # type: ignore[union-attr, index, arg-type]
    assert {"computed" in dict(each.module.named_buffers()) for each in modules} == {True, False}


def test_a_copy_is_a_servers_own_and_may_be_written_to_a_file(tmp_path: Path) -> None:
    """As a reference model, which DistributedDataParallel can be copied for too."""

    def update(module: AveragedModule, server: int, number: int) -> None:
        if number == 0:
            module.reference = [copy.deepcopy(module)]  # a list, so that it is no part of the model
        adam(module, server, number)
        torch.save(module, tmp_path / f"{server}.pt")
        (reference,) = module.reference
        reference(torch.full((1, 3), server + 2.0)).sum().backward()
        if server == 0:
            reference(torch.ones(1, 3)).sum().backward()  # alone, and nobody waits for it

    modules = run(2, lambda server, number: True, update, updates=2)
    assert same(modules)
    first, second = (module.reference[0] for module in modules)
    assert same([first, second]) and not same([first, modules[0]])
    assert not torch.equal(first.module[0].weight.grad, second.module[0].weight.grad)
    assert same([torch.load(tmp_path / "1.pt", weights_only=False), modules[1]])


def test_an_updater_that_fails_on_one_server_fails_on_all() -> None:
    def fail(module: AveragedModule, server: int, number: int) -> None:
        if server == 1:
            raise ValueError("the reason")
        adam(module, server, number)

    with pytest.raises(Exception, match="the reason|given up because llm server 1 failed"):
        run(2, lambda server, number: True, fail, updates=1)


def test_parameter_names_are_those_of_a_wrapped_model() -> None:
    module: Any = AveragedModule(nn.Linear(1, 1))
    assert set(module.state_dict()) == {"module.weight", "module.bias"}
