"""Servers hold the same: models as each has loaded them, and weights after an update of a user's
own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lamorel_ext.errors import ModelLoadError, RemoteError
from lamorel_ext.llm.module_functions import ValueHead
from lamorel_ext.llm.serving import Hosted, in_process
from lamorel_ext.llm.updaters import BaseUpdater
from lamorel_ext.llm.updaters.agreement import checksum
from tests.llm.tiny_models import ACTIONS, make_host, make_t5
from tests.rpc.rpc_fakes import threaded_launch

PROMPTS = ["you see a wall", "action :", "you see a red ball"]


class Own(BaseUpdater):
    """Steps on the mean score of the first candidate, as Lamorel's examples do; ``how`` says what
    it forgets.
    """

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def perform_update(
        self, contexts: Any, candidates: Any, _current_batch_ids: Any, **kwargs: Any
    ) -> dict[str, float]:
        parameters = self._llm_module.trainable_parameters()
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        if len(contexts):
            self._llm_module.score(
                contexts, candidates, require_grad=True
            ).log_probs.sum().backward()
        if self.how in ("averages", "one by data", "one stops before", "one stops after"):
            self.average_gradients()
        if self.how == "one stops before" and self._group.rank == 1:
            raise LookupError("before its step")
        optimizer.step()
        if self.how == "one stops after" and self._group.rank == 1:
            raise LookupError("after its step")
        optimizer.zero_grad()
        if self.how == "one by data" and self._group.rank == 1:
            parameters[3].data.view(-1)[5] += 1e-3
        if self.how == "nan":
            parameters[3].data.view(-1)[5] = float("nan")
        if self.how == "nan on one" and self._group.rank == 1:
            parameters[3].data.view(-1)[5] = float("nan")
        return {}

    def save(self, folder: Path) -> None:
        (folder / "nothing").write_text("")

    def load(self, folder: Path) -> None:
        """Nothing was kept."""


def updated(how: str, servers: int = 2) -> Any:
    hosts = [make_host(make_t5(dtype=torch.float32)) for _ in range(servers)]
    caller = in_process([Hosted(host, {"own": Own(how)}) for host in hosts])
    return caller, hosts


@pytest.mark.parametrize("servers", [2, 3])
def test_an_updater_that_averages_leaves_servers_alike(servers: int) -> None:
    caller, hosts = updated("averages", servers)
    with caller:
        for _ in range(2):
            caller.update(PROMPTS, [ACTIONS] * 3)
    sums = [[checksum(parameter) for parameter in host.parameters()] for host in hosts]
    assert all(other == sums[0] for other in sums[1:])


@pytest.mark.parametrize("servers", [2, 3])
def test_the_first_update_that_lets_servers_differ_fails_and_says_what_to_do(
    servers: int, tmp_path: Path
) -> None:
    caller, hosts = updated("forgets to average", servers)
    name = next(iter(dict(hosts[0].named_parameters())))
    with caller:
        caller.save(str(tmp_path / "good"))
        with pytest.raises(
            RemoteError,
            match=(
                "updater 'Own'.*llm server 1 has other weights "
                f"than llm server 0.*{name}.*average_gradients"
            ),
        ):
            caller.update(PROMPTS, [ACTIONS] * 3)
        with pytest.raises(RemoteError, match="no sound weights"):
            caller.update(PROMPTS, [ACTIONS] * 3)
        with pytest.raises(RemoteError, match="was not written: .* no sound weights"):
            caller.save(str(tmp_path / "bad"))
        assert not (tmp_path / "bad").exists()
        caller.load(str(tmp_path / "good"))
        caller.save(str(tmp_path / "bad"))


def test_servers_that_a_failed_update_left_apart_answer_nothing_until_they_are_alike(
    tmp_path: Path,
) -> None:
    caller, hosts = updated("one stops before", 2)
    asks = [
        lambda: caller.score(PROMPTS[:1], [ACTIONS]),
        lambda: caller.score(PROMPTS, [ACTIONS] * 3),
        lambda: caller.generate(PROMPTS, max_new_tokens=2),
        lambda: caller.update(PROMPTS, [ACTIONS] * 3),
        lambda: caller.save(str(tmp_path / "bad")),
    ]
    with caller:
        caller.save(str(tmp_path / "good"))
        with pytest.raises(RemoteError, match="LookupError: before its step") as failed:
            caller.update(PROMPTS, [ACTIONS] * 3)
        assert "the servers are not alike" in str(failed.value)
        for ask in asks:
            with pytest.raises(RemoteError, match="no sound weights"):
                ask()
        caller.load(str(tmp_path / "good"))
        scores = caller.score([PROMPTS[0]] * 2, [ACTIONS] * 2)
        assert torch.equal(scores[0], scores[1])


def test_servers_that_a_failed_update_left_alike_go_on(tmp_path: Path) -> None:
    caller, hosts = updated("one stops after", 2)
    with caller:
        for _ in range(2):
            with pytest.raises(RemoteError, match="LookupError: after its step") as failed:
                caller.update(PROMPTS, [ACTIONS] * 3)
            assert "the servers are not alike" not in str(failed.value)
        scores = caller.score([PROMPTS[0]] * 2, [ACTIONS] * 2)
        assert torch.equal(scores[0], scores[1])
        caller.save(str(tmp_path / "state"))


def test_one_number_of_one_tensor_changed_past_pytorchs_counting_is_enough() -> None:
    caller, _ = updated("one by data")
    with caller, pytest.raises(RemoteError, match="other weights"):
        caller.update(PROMPTS, [ACTIONS] * 3)


@pytest.mark.parametrize(("how", "servers"), [("nan", 1), ("nan", 2), ("nan on one", 2)])
def test_weights_that_are_not_finite_after_an_update_of_ones_own_are_named(
    how: str, servers: int, tmp_path: Path
) -> None:
    caller, hosts = updated(how, servers)
    with caller:
        with pytest.raises(RemoteError, match="updater 'Own': .* not finite"):
            caller.update(PROMPTS, [ACTIONS] * 3)
        with pytest.raises(RemoteError, match="CheckpointError: .*was not written"):
            caller.save(str(tmp_path / "state"))
    assert not (tmp_path / "state").exists()


def other_model(how: str) -> Any:
    if how == "precision":
        return make_host(make_t5(dtype=torch.bfloat16))
    if how == "heads":
        return make_host(make_t5(dtype=torch.float32), {"value": ValueHead(4)})
    host = make_host(make_t5(dtype=torch.float32), quantize="int8" if how == "answers" else None)
    with torch.no_grad():
        parameter = next(host.parameters())
        if how == "one number":
            parameter.view(-1)[7] += 0.1
        if how == "rounding":
            parameter *= 1 + 1e-7
    return host


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ("precision", "its dtype is 'bfloat16', not 'float32'"),
        ("answers", "its quantize is 'int8', not ''"),
        ("heads", "module_functions.value.layers.0.weight is there alone"),
        ("one number", "shared.weight has other numbers"),
        ("rounding", ""),
    ],
)
def test_servers_that_have_not_loaded_the_same_model_end_before_they_answer(
    how: str, named: str
) -> None:
    hosts = [make_host(make_t5(dtype=torch.float32)), other_model(how)]
    with threaded_launch(1, 2, hosts=hosts) as launch:
        if not named:
            assert len(launch.callers[0].score(PROMPTS, [ACTIONS] * 3)) == 3
            return
        with pytest.raises(RemoteError, match=f"ModelLoadError: llm server 1 .*{named}"):
            launch.callers[0].score(PROMPTS, [ACTIONS] * 3)
        launch.join()
        assert {type(error) for error in launch.errors.values()} == {ModelLoadError}


def test_a_checkpoint_that_is_another_one_on_another_machine_is_refused(tmp_path: Path) -> None:
    caller, hosts = updated("averages", 2)
    with caller:
        caller.save(str(tmp_path / "first"))
        caller.update(PROMPTS, [ACTIONS] * 3)
        caller.save(str(tmp_path / "second"))
        load = hosts[1].load
        hosts[1].load = lambda _: load(tmp_path / "first" / "model")
        with pytest.raises(RemoteError, match="is not the same on every machine.*llm server 1"):
            caller.load(str(tmp_path / "second"))
        with pytest.raises(RemoteError, match="no sound weights"):
            caller.score(PROMPTS, [ACTIONS] * 3)
        hosts[1].load = load
        caller.load(str(tmp_path / "second"))
        assert len(caller.score(PROMPTS, [ACTIONS] * 3)) == 3


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool]
)
def test_a_checksum_is_of_every_bit(dtype: torch.dtype) -> None:
    data = torch.arange(12).reshape(3, 4).to(dtype)
    other = data.clone()
    assert checksum(data) == checksum(other) == checksum(other.t().contiguous().t())
    other[0, 0] = 1
    assert checksum(data) != checksum(other)
    assert checksum(torch.zeros(0)) == checksum(torch.zeros(0, 3))
