"""Roles, nodes and devices of ranks."""

import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamorel_ext.config import (
    AccelerateArgs,
    DistributedSetupArgs,
    LamorelArgs,
    LlmArgs,
    ParallelismArgs,
)
from lamorel_ext.errors import ConfigError
from lamorel_ext.rpc.topology import (
    Placement,
    Role,
    check_world_size,
    client_ranks,
    format_table,
    has_own_gpus,
    placements,
    placements_on,
    role_of,
    server_ranks,
    split_evenly,
)


def lamorel_args(
    clients: int, servers: int, machines: int = 1, use_gpu: bool = False, size: int = 1
) -> LamorelArgs:
    return LamorelArgs(
        distributed_setup_args=DistributedSetupArgs(clients, servers),
        accelerate_args=AccelerateArgs(num_machines=machines),
        llm_args=LlmArgs(parallelism=ParallelismArgs(use_gpu=use_gpu, model_parallelism_size=size)),
    )


def with_gpus(each: int, args: LamorelArgs) -> list[Placement]:
    """Every rank, on machines of so many GPUs."""
    nodes = range(args.accelerate_args.num_machines)
    return [place for node in nodes for place in placements_on(node, args, each)]


def test_first_ranks_are_clients_and_the_next_are_servers() -> None:
    setup = DistributedSetupArgs(2, 3)
    assert [str(role_of(rank, setup)) for rank in range(5)] == [
        "rl client 0",
        "rl client 1",
        "llm server 0",
        "llm server 1",
        "llm server 2",
    ]
    assert list(client_ranks(setup)) == [0, 1] and list(server_ranks(setup)) == [2, 3, 4]
    assert not role_of(1, setup).is_server and role_of(2, setup).is_server


def test_a_rank_beyond_the_configured_processes_has_no_role() -> None:
    with pytest.raises(
        ConfigError, match="rank 3 has no role.*asks for 3: n_rl_processes=1 and n_llm_processes=2"
    ):
        role_of(3, DistributedSetupArgs(1, 2))


def test_another_number_of_launched_processes_is_a_config_error() -> None:
    check_world_size(3, DistributedSetupArgs(1, 2))
    with pytest.raises(
        ConfigError, match="4 processes were launched .WORLD_SIZE=4., but .* asks for 3"
    ):
        check_world_size(4, DistributedSetupArgs(1, 2))


def test_gpus_of_a_machine_are_divided_among_its_servers() -> None:
    # 5 GPUs over 2 servers: shares 0-2 and 3-4; each takes the first two of its share.
    table = with_gpus(5, lamorel_args(1, 2, use_gpu=True, size=2))
    assert [place.gpus for place in table] == [(), (0, 1), (3, 4)]
    assert [place.device for place in table] == ["cpu", "cuda:0", "cuda:3"]


def test_several_machines_are_filled_one_after_the_other() -> None:
    # 8 processes on 2 machines: ranks 0-3 and 4-7; the two clients share the first machine with two
    # servers.
    table = with_gpus(4, lamorel_args(2, 6, machines=2, use_gpu=True))
    assert [place.node for place in table] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert [place.local_rank for place in table] == [0, 1, 2, 3, 0, 1, 2, 3]
    assert [place.gpus for place in table] == [(), (), (0,), (2,), (0,), (1,), (2,), (3,)]


def test_unknown_number_of_gpus_is_taken_as_just_enough() -> None:
    assert [place.gpus for place in placements(lamorel_args(1, 2, use_gpu=True, size=2))] == [
        (),
        (0, 1),
        (2, 3),
    ]


def test_without_gpus_everything_is_on_the_cpu() -> None:
    assert {place.device for place in with_gpus(8, lamorel_args(1, 2))} == {"cpu"}


@pytest.mark.parametrize(("machine", "servers"), [(0, 2), (1, 3)])
def test_too_few_gpus_of_a_machine_are_said(machine: int, servers: int) -> None:
    problem = f"{servers} LLM servers on machine {machine} need 2 GPUs each, {2 * servers} in all"
    with pytest.raises(ConfigError, match=f"{problem}, and it has 3"):
        placements_on(machine, lamorel_args(1, 5, machines=2, use_gpu=True, size=2), 3)


def laid_out(
    args: LamorelArgs, counts: tuple[int, ...] = (), devices: tuple[tuple[int, ...], ...] = ()
) -> LamorelArgs:
    return replace(
        args,
        accelerate_args=replace(args.accelerate_args, processes_per_machine=counts),
        distributed_setup_args=replace(args.distributed_setup_args, devices_per_process=devices),
    )


def test_nine_processes_on_two_machines_with_four_gpus_each() -> None:
    table = with_gpus(4, lamorel_args(1, 8, machines=2, use_gpu=True))
    assert [place.node for place in table] == [0] * 5 + [1] * 4
    assert [place.local_rank for place in table] == [0, 1, 2, 3, 4, 0, 1, 2, 3]
    assert [place.gpus for place in table] == [(), (0,), (1,), (2,), (3,), (0,), (1,), (2,), (3,)]


def test_clients_may_have_a_machine_of_their_own() -> None:
    args = laid_out(lamorel_args(2, 4, machines=3, use_gpu=True), (2, 1, 3))
    table = with_gpus(3, args)
    assert [(place.node, str(place.role), place.gpus) for place in table] == [
        (0, "rl client 0", ()),
        (0, "rl client 1", ()),
        (1, "llm server 0", (0,)),
        (2, "llm server 1", (0,)),
        (2, "llm server 2", (1,)),
        (2, "llm server 3", (2,)),
    ]
    # Two machines cut evenly would give the first one two servers of four.
    uneven = laid_out(lamorel_args(2, 8, machines=2, use_gpu=True), (6, 4))
    assert [len(place.gpus) for place in with_gpus(4, uneven)] == [0, 0, *[1] * 8]


def test_devices_may_be_named_by_hand_and_shared() -> None:
    args = lamorel_args(1, 4, machines=2, use_gpu=True)
    table = with_gpus(4, laid_out(args, (3, 2), ((3,), (3,), (), (1,))))
    assert [place.device for place in table] == ["cpu", "cuda:3", "cuda:3", "cpu", "cuda:1"]


@pytest.mark.parametrize(
    ("devices", "own"),
    [
        ((), True),
        (((3,), (3,), (0,), (1,)), True),  # the first is on the other machine
        (((3,), (2,), (0,), (0,)), False),
        (((3,), (2,), (), (1,)), False),
    ],
)
def test_nccl_is_for_servers_with_gpus_that_no_other_has(
    devices: tuple[tuple[int, ...], ...], own: bool
) -> None:
    args = lamorel_args(1, 4, machines=2, use_gpu=True)
    assert has_own_gpus(laid_out(args, (2, 3), devices)) == own
    assert not has_own_gpus(lamorel_args(1, 4))


def with_clients_on(args: LamorelArgs, *gpus: int) -> LamorelArgs:
    setup = replace(args.distributed_setup_args, client_devices=gpus)
    return replace(args, distributed_setup_args=setup)


def test_servers_leave_the_clients_gpus_to_them() -> None:
    args = with_clients_on(lamorel_args(1, 3, use_gpu=True), 0)
    for table in (list(placements(args)), with_gpus(4, args)):
        assert [place.gpus for place in table] == [(0,), (1,), (2,), (3,)]
    # Each client's is counted on its own machine, by hand nothing is divided, and a client alone
    # may have one.
    args = laid_out(lamorel_args(2, 3, machines=2, use_gpu=True), (1, 4))
    table = with_gpus(4, with_clients_on(args, 3, 1))
    assert [place.gpus for place in table] == [(3,), (1,), (0,), (2,), (3,)]
    shared = with_clients_on(laid_out(lamorel_args(1, 1, use_gpu=True), (), ((2,),)), 2)
    assert [place.device for place in placements(shared)] == ["cuda:2", "cuda:2"]
    alone = placements(with_clients_on(lamorel_args(1, 1), 1))
    assert [place.device for place in alone] == ["cuda:1", "cpu"]
    with pytest.raises(ConfigError, match="need 1 GPUs each, 3 in all, and it has 2 for them"):
        with_gpus(3, with_clients_on(lamorel_args(1, 3, use_gpu=True), 0))


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (
            with_clients_on(lamorel_args(2, 1), 0),
            "client_devices: expected a GPU for each of the n_rl_processes=2 clients, got 1",
        ),
        (with_clients_on(lamorel_args(1, 1), 4), "rl client 0 is to use GPU 4 of machine 0, which"),
        (laid_out(lamorel_args(1, 3, 2), (3,)), r"\[3\] are 3 processes on 1 machines; expected 2"),
        (laid_out(lamorel_args(1, 3, 2), (3, 2)), r"\[3, 2\] are 5 processes on 2 machines"),
        (laid_out(lamorel_args(1, 2, use_gpu=True), (), ((0,),)), "an entry for each of the n_llm"),
        (laid_out(lamorel_args(1, 1), (), ((0,),)), "use_gpu is false"),
        (laid_out(lamorel_args(1, 1, use_gpu=True), (), ((0, 1),)), "expected 1 GPUs"),
        (laid_out(lamorel_args(1, 1, use_gpu=True), (), ((-1,),)), "expected 1 GPUs"),
        (
            laid_out(lamorel_args(1, 1, use_gpu=True), (), ((4,),)),
            "llm server 0 is to use GPU 4 of machine 0, which has 4",
        ),
    ],
)
def test_a_layout_by_hand_that_cannot_be_is_said(args: LamorelArgs, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        with_gpus(4, args)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 6))
def test_every_rank_has_one_place(clients: int, servers: int, machines: int) -> None:
    if clients + servers < machines:
        return
    table = placements(lamorel_args(clients, servers, machines))
    assert [place.rank for place in table] == list(range(clients + servers))
    assert {place.node for place in table} == set(range(machines))
    assert [place.local_rank for place in table if place.local_rank == 0] == [0] * machines


def test_a_machine_is_placed_whatever_the_other_machines_have() -> None:
    table = placements_on(0, lamorel_args(1, 3, machines=2, use_gpu=True), num_gpus=1)
    assert [(place.rank, place.gpus) for place in table] == [(0, ()), (1, (0,))]


def test_more_machines_than_processes_are_refused() -> None:
    with pytest.raises(ConfigError, match="2 processes cannot be shared among 3 machines"):
        placements(lamorel_args(1, 1, machines=3))


def test_table_has_one_line_per_rank() -> None:
    assert format_table(placements(lamorel_args(1, 1, use_gpu=True, size=2))).splitlines() == [
        "rank  role          node  local rank  devices",
        "0     rl client 0   0     0           cpu",
        "1     llm server 0  0     1           cuda:0, cuda:1",
    ]


def test_launchers_can_plan_without_torch() -> None:
    code = "import sys, lamorel_ext.rpc.topology; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@given(
    st.integers(1, 5), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3), st.integers(0, 12)
)
def test_no_gpu_belongs_to_two_servers_and_every_rank_has_one_place(
    clients: int, servers: int, machines: int, size: int, gpus: int
) -> None:
    args = replace(lamorel_args(clients, servers, machines, use_gpu=True, size=size))
    try:
        table = with_gpus(gpus, args)
    except ConfigError:
        per_node = (clients + servers) / machines
        most = max(
            sum(
                clients <= rank < clients + servers
                for rank in range(int(n * per_node), int((n + 1) * per_node))
            )
            for n in range(machines)
        )
        assert not per_node.is_integer() or most * size > gpus
        return
    assert [place.rank for place in table] == list(range(clients + servers))
    assert sum(place.role.kind == "rl client" for place in table) == clients
    used = [(place.node, gpu) for place in table for gpu in place.gpus]
    assert len(used) == len(set(used)) == servers * size
    assert all(gpu < gpus for _, gpu in used)


@given(st.integers(0, 50), st.integers(1, 9))
def test_parts_cover_everything_and_differ_by_one_at_most(items: int, parts: int) -> None:
    ranges = split_evenly(items, parts)
    assert [item for part in ranges for item in part] == list(range(items))
    assert len(ranges) == parts and max(map(len, ranges)) - min(map(len, ranges)) <= 1


def test_role_reads_as_in_error_messages() -> None:
    assert str(Role("llm server", 3)) == "llm server 3"
