"""Real hosts and updaters behind the caller: any number of servers gives what one gives."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lamorel_ext.llm.host import ModelHost
from lamorel_ext.llm.module_functions import ValueHead
from lamorel_ext.llm.serving import Hosted, in_process
from lamorel_ext.llm.updaters import make_updaters
from lamorel_ext.rpc.caller import Caller
from lamorel_ext.types import ScoreRequest
from tests.llm.tiny_models import ACTIONS, PROMPTS, make_host, make_t5

REQUEST = ScoreRequest(PROMPTS, (ACTIONS,) * len(PROMPTS), ("value",))


def started(num_servers: int) -> tuple[Caller, list[ModelHost]]:
    hosts = [make_host(make_t5(), {"value": ValueHead(8)}) for _ in range(num_servers)]
    return in_process([Hosted(host, make_updaters()) for host in hosts]), hosts


def weights(host: ModelHost) -> Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in host.trainable_parameters()])


def train(caller: Caller, seed: int) -> list[dict[str, float]]:
    """A PPO update on all prompts, with old log-probabilities of the policy itself."""
    scored = caller.score_batch(REQUEST)
    values = scored.modules["value"][:, 0]
    actions = torch.arange(len(PROMPTS)) % len(ACTIONS)
    old = scored.padded().log_softmax(-1)[torch.arange(len(PROMPTS)), actions]
    advantages = torch.tensor([1.0, -0.5, 0.25, -2.0, 0.75], dtype=torch.float64)
    options: dict[str, Any] = {"lr": 1e-3, "epochs": 2, "minibatch_size": 3, "seed": seed}
    return caller.update(
        PROMPTS, REQUEST.candidates, updater="ppo", actions=actions, old_log_probs=old,
        advantages=advantages, returns=values + advantages, values=values, **options,
    )  # fmt: skip


def test_scores_updates_resets_and_checkpoints_are_those_of_one_server(tmp_path: Path) -> None:
    outcomes = []
    for num_servers in (1, 2, 6):
        folder = str(tmp_path / str(num_servers))
        caller, hosts = started(num_servers)
        with caller:
            first = caller.score_batch(REQUEST)
            stats = train(caller, 0)
            assert len(stats) == num_servers
            caller.save(folder)
            trained = caller.score_batch(REQUEST)
            train(caller, 1)
            further = weights(hosts[0])
            caller.load(folder)
            torch.testing.assert_close(
                caller.score_batch(REQUEST).log_probs, trained.log_probs, rtol=0, atol=1e-12
            )
            train(caller, 1)
            for host in hosts:
                # Adam's state came back too, and every server stands where the first does.
                torch.testing.assert_close(weights(host), further, rtol=0, atol=1e-12)
            caller.reset(3)
            fresh = caller.score_batch(REQUEST)
            torch.testing.assert_close(fresh.log_probs, first.log_probs, rtol=0, atol=1e-12)
            assert float((trained.log_probs - first.log_probs).abs().max()) > 1e-3
            outcomes.append(
                (
                    first.log_probs,
                    trained.log_probs,
                    trained.modules["value"],
                    further,
                    fresh.modules["value"],
                    stats[0]["loss"],
                )
            )
    for outcome in outcomes[1:]:
        for ours, of_one in zip(outcome, outcomes[0], strict=True):
            torch.testing.assert_close(ours, of_one, rtol=0, atol=1e-8)


def test_texts_and_their_probabilities_come_from_any_server() -> None:
    for num_servers in (1, 3):
        caller, _ = started(num_servers)
        with caller:
            rows = caller.generate(PROMPTS, max_new_tokens=4, do_sample=False, return_logprobs=True)
            assert [len(row) for row in rows] == [1] * len(PROMPTS)
            for row in rows:
                assert float(row[0]["text_logprob"]) == pytest.approx(
                    float(row[0]["tokens_logprob"].sum()), abs=1e-9
                )
                assert len(row[0]["tokens"]) == len(row[0]["tokens_logprob"]) <= 4
