"""What updates promise besides their gradients: statistics, refusals, failures, learning, Lamorel's
shape.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lamorel_ext.errors import RequestError, UpdateError
from lamorel_ext.llm.module_functions import BaseModuleFunction
from lamorel_ext.llm.updaters import (
    BaseUpdater,
    FeedbackUpdater,
    PPOUpdater,
    SupervisedUpdater,
    make_updaters,
)
from lamorel_ext.llm.updaters.batches import Chunk, score_chunk
from lamorel_ext.llm.updaters.gradients import GradientStepper
from lamorel_ext.rpc.groups import ThreadGroup
from lamorel_ext.types import Scalar, ScoreResult, UpdateRequest
from tests.llm.tiny_models import make_host, make_t5
from tests.updaters.updater_fakes import (
    FakeHost,
    feedback_data,
    make_request,
    on_servers,
    ppo_data,
)

PPO_REQUEST = make_request("ppo", 6, ppo_data(6))
FEEDBACK_REQUEST = make_request("feedback", 6, feedback_data(6))


def ready(updater: BaseUpdater, **host: Any) -> FakeHost:
    fake = FakeHost(**host)
    updater.set_llm_module(fake)
    return fake


def log_p(host: FakeHost, request: UpdateRequest, key: str) -> Tensor:
    """Normalised log-probability of each sample's choice."""
    return torch.stack(
        [
            host.score([p], [c]).log_probs.log_softmax(-1)[i]
            for p, c, i in zip(request.prompts, request.candidates, request.data[key], strict=True)
        ]
    )


def test_feedback_of_the_pair_scores_each_prompt_once_and_moves_towards_what_the_student_did() -> (
    None
):
    updater = FeedbackUpdater()
    host = ready(updater)
    likelihoods = torch.log(torch.tensor([[0.7, 0.1, 0.1, 0.1]])).repeat(6, 1)
    data = {
        "chosen": torch.ones(6, dtype=torch.int64),
        "signals": torch.ones(6),
        "likelihoods": likelihoods,
    }
    request = make_request("feedback", 6, data, posterior=True, lr=0.01)
    before = log_p(host, with_data(request, chosen=torch.zeros(6, dtype=torch.int64)), "chosen")
    updater.update(request)
    after = log_p(host, with_data(request, chosen=torch.zeros(6, dtype=torch.int64)), "chosen")
    assert host.scored == [len(set(request.prompts))]
    # All praise was for what was likeliest after the first candidate, though the second was said.
    assert bool((after > before).all())


# --- refusals -------------------------------------------------------------------------------------


def with_data(request: UpdateRequest, **data: Tensor | None) -> UpdateRequest:
    merged = {**request.data, **data}
    return dataclasses.replace(
        request, data={key: value for key, value in merged.items() if value is not None}
    )


def pair_request(likelihoods: Tensor) -> UpdateRequest:
    return dataclasses.replace(
        with_data(FEEDBACK_REQUEST, likelihoods=likelihoods), options={"posterior": True}
    )


REFUSED: list[tuple[UpdateRequest, str]] = [
    (dataclasses.replace(PPO_REQUEST, total=0), "total"),
    (
        dataclasses.replace(PPO_REQUEST, candidates=PPO_REQUEST.candidates[:5]),
        "candidates has 5 lists, expected 6",
    ),
    (
        dataclasses.replace(PPO_REQUEST, candidates=(*PPO_REQUEST.candidates[:5], ())),
        r"candidates\[5\] is empty",
    ),
    (
        dataclasses.replace(PPO_REQUEST, indices=torch.arange(5)),
        r"expected torch.int64 of shape \(6,",
    ),
    (dataclasses.replace(PPO_REQUEST, indices=torch.arange(6.0)), "int64"),
    (
        dataclasses.replace(PPO_REQUEST, indices=torch.arange(6) + 1),
        "between 1 and 6, expected 0 to 5",
    ),
    (dataclasses.replace(PPO_REQUEST, indices=torch.tensor([0, 1, 2, 3, 4, 4])), "twice"),
    (dataclasses.replace(PPO_REQUEST, total=7), "0 to 6, each once; got 6"),
    (with_data(PPO_REQUEST, actions=None, returns=None), "lacks 'actions', 'returns'"),
    (
        with_data(PPO_REQUEST, advantage=torch.zeros(6)),
        r"unknown data 'advantage' \(did you mean advantages",
    ),
    (
        with_data(PPO_REQUEST, values=torch.zeros(6, 1)),
        r"data\['values'\] must have shape \(6,\), got \(6, 1\)",
    ),
    (with_data(PPO_REQUEST, actions=torch.zeros(6)), r"data\['actions'\] must hold integers"),
    (
        with_data(PPO_REQUEST, actions=torch.tensor([0, 0, 0, 9, 0, 0])),
        r"data\['actions'\]\[3\] is 9",
    ),
    (
        with_data(PPO_REQUEST, actions=torch.tensor([0, -1, 0, 0, 0, 0])),
        r"data\['actions'\]\[1\] is -1",
    ),
    (
        with_data(PPO_REQUEST, returns=torch.tensor([0, 0, math.nan, 0, math.inf, 0])),
        r"data\['returns'\]\[2\] is nan.*2 of 6",
    ),
    (
        dataclasses.replace(PPO_REQUEST, options={"learning_rate": 1.0}),
        "unknown option 'learning_rate'",
    ),
    (
        dataclasses.replace(PPO_REQUEST, options={"epoch": 1, "lr": -1.0}),
        r"'epoch' \(did you mean epochs\?\); options\['lr'\] must not be negative",
    ),
    (
        dataclasses.replace(PPO_REQUEST, options={"lr": math.inf}),
        "options\\['lr'\\] must be finite",
    ),
    (
        dataclasses.replace(PPO_REQUEST, options={"clip_eps": 0.0}),
        "options\\['clip_eps'\\] must be above 0",
    ),
    (
        dataclasses.replace(PPO_REQUEST, options={"epochs": 1.5}),
        "options\\['epochs'\\] must be of type int",
    ),
    (
        dataclasses.replace(PPO_REQUEST, options={"epochs": True}),
        "options\\['epochs'\\] must be of type int",
    ),
    (dataclasses.replace(PPO_REQUEST, options={"minibatch_size": 0}), "at least 1"),
    (
        dataclasses.replace(FEEDBACK_REQUEST, options={"loss": "reinforced"}),
        "must be one of reinforce, unlikelihood, clipped",
    ),
    (
        dataclasses.replace(FEEDBACK_REQUEST, options={"normalise": 1}),
        "options\\['normalise'\\] must be of type bool",
    ),
    (
        dataclasses.replace(FEEDBACK_REQUEST, options={"normalise": False, "kl_coef": 0.1}),
        "options\\['kl_coef'\\] must be 0 without normalise",
    ),
    (
        dataclasses.replace(FEEDBACK_REQUEST, options={"normalise": False, "entropy_coef": 0.1}),
        "options\\['entropy_coef'\\] must be 0",
    ),
    (
        dataclasses.replace(
            with_data(FEEDBACK_REQUEST, old_log_probs=None), options={"loss": "clipped"}
        ),
        "lacks 'old_log_probs'",
    ),
    (
        dataclasses.replace(
            with_data(FEEDBACK_REQUEST, signals=torch.full((6,), 0.5)),
            options={"loss": "unlikelihood"},
        ),
        "must be -1, 0 or 1",
    ),
    (with_data(FEEDBACK_REQUEST, likelihoods=torch.zeros(6, 4)), "unknown data 'likelihoods'"),
    (dataclasses.replace(FEEDBACK_REQUEST, options={"posterior": True}), "lacks 'likelihoods'"),
    (
        pair_request(torch.zeros(6)),
        r"data\['likelihoods'\] must have shape \(6, at least 4\).*got \(6,\)",
    ),
    (pair_request(torch.zeros(6, 3)), r"at least 4\): a number for each candidate, got \(6, 3\)"),
    (
        pair_request(torch.full((6, 4), -math.inf)),
        r"data\['likelihoods'\]\[0, 0\] is -inf.*24 of 24",
    ),
    (
        dataclasses.replace(
            pair_request(torch.zeros(6, 4)), options={"posterior": True, "normalise": False}
        ),
        "needs normalise",
    ),
    (
        UpdateRequest(
            "feedback",
            ("p",),
            (("c",),),
            torch.tensor([0]),
            1,
            {"chosen": torch.tensor([0]), "signals": torch.tensor([-1.0])},
            {"loss": "unlikelihood"},
        ),
        "only candidate",
    ),
]


@pytest.mark.parametrize(("request_", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_a_wrong_request_names_its_key_and_changes_nothing(
    request_: UpdateRequest, message: str
) -> None:
    updater = make_updaters()[request_.updater]
    host = ready(updater)
    before = host.weights()
    with pytest.raises(RequestError, match=message):
        updater.update(request_)
    assert torch.equal(host.weights(), before) and host.versions == 0 and host.scored == []


def test_a_row_is_named_as_in_the_whole_batch() -> None:
    backwards = dataclasses.replace(PPO_REQUEST, indices=torch.arange(5, -1, -1))
    for changed, message in (
        ({"actions": torch.tensor([0, 9, 0, 0, 0, 0])}, r"data\['actions'\]\[4\] is 9"),
        ({"returns": torch.tensor([math.nan, 0, 0, 0, 0, 0])}, r"data\['returns'\]\[5\] is nan"),
    ):
        with pytest.raises(RequestError, match=message):
            updater = PPOUpdater()
            ready(updater)
            updater.update(with_data(backwards, **changed))


def test_old_log_probs_may_be_left_out_where_the_loss_does_not_use_them() -> None:
    updater = FeedbackUpdater()
    host = ready(updater)
    updater.update(with_data(FEEDBACK_REQUEST, old_log_probs=None))
    assert host.versions == 1


def test_an_update_before_the_model_is_set_says_so() -> None:
    with pytest.raises(UpdateError, match="ppo: set_llm_module"):
        PPOUpdater().update(PPO_REQUEST)


def test_a_module_that_gives_two_numbers_is_refused() -> None:
    updater = PPOUpdater(value_module="spare")
    host = ready(updater)
    host.spare = torch.nn.Linear(6, 2, dtype=torch.float64)
    with pytest.raises(RequestError, match="'spare' must give one number per prompt"):
        updater.update(PPO_REQUEST)
    assert host.versions == 0


def test_a_critic_that_is_evaluated_on_every_candidate_counts_for_the_first() -> None:
    class PerCandidate(FakeHost):
        """Gives what a Lamorel-style head gives: one row for each candidate; all but the first are
        wrong.
        """

        def score(self, *args: Any, **kwargs: Any) -> ScoreResult:
            result = super().score(*args, **kwargs)
            rows = [
                torch.cat([value[None], value.new_full((count - 1, 1), 1e3)])
                for value, count in zip(result.modules["value"], result.counts, strict=True)
            ]
            return dataclasses.replace(result, modules={"value": torch.cat(rows)})

    weights = []
    for host in (FakeHost(), PerCandidate()):
        updater = PPOUpdater()
        updater.set_llm_module(host)
        updater.update(PPO_REQUEST)
        weights.append(host.weights())
    assert torch.equal(*weights)


def test_a_prompt_without_candidates_has_a_row_of_its_own_beside_others() -> None:
    class Numbered(BaseModuleFunction):
        def initialize(self) -> None:
            pass

        def forward(self, forward_outputs: Any, minibatch: Any, *args: Any, **kwargs: Any) -> Any:
            return forward_outputs["logits"][:, 0]

    host = make_host(make_t5(), {"first": Numbered()})
    prompts = ("you see a wall", "go", "you see a red ball")
    alone = [host.score([each], [("drop",)], ("first",)).modules["first"] for each in prompts]
    for lists in (((), ("drop", "turn left"), ()), (("drop", "toggle"), (), ("go",)), ((), (), ())):
        chunk = Chunk(prompts, lists, torch.arange(3), torch.arange(3))
        found = score_chunk(host, chunk, ["first"], False)[0].modules["first"]
        torch.testing.assert_close(found, torch.cat(alone), rtol=0, atol=1e-9)


# --- failures on the way --------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_names_updater_and_minibatch_and_leaves_the_weights() -> None:
    updater = PPOUpdater()
    host = ready(updater)
    with torch.no_grad():
        host.value.bias.fill_(1e200)  # squared: infinite
    before = host.weights()
    with pytest.raises(
        UpdateError,
        match=r"ppo: not finite in epoch 0, minibatch 1 of 2 \(3 samples\).*value_loss inf",
    ):
        updater.update(dataclasses.replace(PPO_REQUEST, options={"minibatch_size": 3, "lr": 1.0}))
    assert torch.equal(host.weights(), before) and host.versions == 0
    assert all(p.grad is None for p in host.parameters())


def test_a_gradient_that_is_not_finite_is_noticed_though_the_loss_is() -> None:
    updater = SupervisedUpdater()
    host = ready(updater)
    host.read.weight.register_hook(lambda gradient: gradient * math.nan)
    before = host.weights()
    with pytest.raises(UpdateError, match="supervised: not finite in .* gradient norm nan"):
        updater.update(
            make_request("supervised", 4, {"targets": torch.zeros(4, dtype=torch.int64)})
        )
    assert torch.equal(host.weights(), before)


def test_after_a_failure_the_next_update_is_as_if_nothing_had_happened() -> None:
    weights = []
    for fail in (True, False):
        updater = PPOUpdater()
        host = ready(updater)
        updater.update(PPO_REQUEST)
        if fail:
            host.fail_at = len(host.scored)
            with pytest.raises(MemoryError):
                updater.update(PPO_REQUEST)
            host.fail_at = -1
        updater.update(PPO_REQUEST)
        weights.append(host.weights())
    assert torch.equal(*weights)


def test_replaced_parameters_are_noticed() -> None:
    updater = FeedbackUpdater()
    host = ready(updater)
    updater.update(FEEDBACK_REQUEST)
    host.read.weight = torch.nn.Parameter(host.read.weight.detach().clone())
    with pytest.raises(UpdateError, match=r"read\.weight was replaced since the last update"):
        updater.update(FEEDBACK_REQUEST)


# --- statistics and learning ----------------------------------------------------------------------


def test_ppo_statistics_are_means_over_all_samples() -> None:
    updater = PPOUpdater()
    host = ready(updater)
    request = dataclasses.replace(
        PPO_REQUEST, options={"lr": 0.0, "epochs": 2, "minibatch_size": 4, "clip_eps": 0.2}
    )
    now = log_p(host, request, "actions")
    ratio = (now - request.data["old_log_probs"]).exp()
    a = request.data["advantages"]
    stats = updater.update(request).stats
    assert stats["policy_loss"] == pytest.approx(
        float(-torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a).mean()), rel=1e-6
    )
    assert stats["clip_fraction"] == pytest.approx(float(((ratio - 1).abs() > 0.2).double().mean()))
    assert stats["approx_kl"] == pytest.approx(float((ratio - 1 - ratio.log()).mean()), rel=1e-6)
    assert stats["loss"] == pytest.approx(
        stats["policy_loss"] - 0.01 * stats["entropy"] + 0.5 * stats["value_loss"], rel=1e-9
    )
    assert stats["steps"] == 4 and stats["scored_pairs"] == sum(host.scored)


def test_ratio_error_of_the_first_minibatch_is_zero_for_honest_old_log_probs() -> None:
    updater = PPOUpdater()
    host = ready(updater)
    request = with_data(PPO_REQUEST, old_log_probs=log_p(host, PPO_REQUEST, "actions"))
    stats = updater.update(
        dataclasses.replace(request, options={"lr": 0.05, "epochs": 3, "minibatch_size": 3})
    ).stats
    assert stats["initial_ratio_error"] < 1e-12
    assert stats["ratio_error"] > 1e-3


def test_feedback_statistics() -> None:
    updater = FeedbackUpdater()
    host = ready(updater)
    said = log_p(host, FEEDBACK_REQUEST, "chosen")
    first = updater.update(dataclasses.replace(FEEDBACK_REQUEST, options={"lr": 0.1})).stats
    second = updater.update(dataclasses.replace(FEEDBACK_REQUEST, options={"lr": 0.1})).stats
    assert first["log_prob"] == pytest.approx(float(said.mean()), rel=1e-9)
    assert first["loss"] == pytest.approx(
        float(-(said * FEEDBACK_REQUEST.data["signals"]).mean()), rel=1e-9
    )
    assert first["kl"] == pytest.approx(0.0, abs=1e-12) and second["kl"] > 1e-4
    assert 0.0 < first["entropy"] < math.log(4) and first["grad_norm"] > 0.0


def test_feedback_statistics_of_free_guidance_are_one_sample_estimates() -> None:
    updater = FeedbackUpdater()
    host = ready(updater)
    options: dict[str, Any] = {"normalise": False, "lr": 0.1}
    raw = [
        host.score([p], [c]).log_probs[i]
        for p, c, i in zip(*samples(FEEDBACK_REQUEST, "chosen"), strict=True)
    ]
    first = updater.update(dataclasses.replace(FEEDBACK_REQUEST, options=options)).stats
    after = [
        host.score([p], [c]).log_probs[i]
        for p, c, i in zip(*samples(FEEDBACK_REQUEST, "chosen"), strict=True)
    ]
    second = updater.update(dataclasses.replace(FEEDBACK_REQUEST, options=options)).stats
    assert (
        first["entropy"]
        == -first["log_prob"]
        == pytest.approx(-float(torch.stack(raw).mean()), rel=1e-9)
    )
    assert first["kl"] == pytest.approx(0.0, abs=1e-12)
    assert second["kl"] == pytest.approx(
        float((torch.stack(after) - torch.stack(raw)).mean()), rel=1e-9
    )


def samples(request: UpdateRequest, key: str) -> tuple[Any, Any, Any]:
    return request.prompts, request.candidates, request.data[key].tolist()


def test_feedback_is_clipped_from_the_second_epoch_on() -> None:
    def after(**options: Scalar) -> tuple[Tensor, float]:
        updater = FeedbackUpdater()
        host = ready(updater)
        old = log_p(host, FEEDBACK_REQUEST, "chosen").detach()
        data = {
            **feedback_data(6),
            "old_log_probs": old,
            "signals": torch.ones(6, dtype=torch.float64),
        }
        stats = updater.update(make_request("feedback", 6, data, lr=0.05, **options)).stats
        return (log_p(host, FEEDBACK_REQUEST, "chosen") - old).exp(), stats["steps"]

    ratios = {
        (loss, epochs): after(loss=loss, epochs=epochs)
        for loss in ("reinforce", "clipped")
        for epochs in (1, 12)
    }
    torch.testing.assert_close(ratios["clipped", 1][0], ratios["reinforce", 1][0])
    assert ratios["clipped", 1][1] == 1 and ratios["reinforce", 12][1] == 12
    assert (
        ratios["clipped", 12][0].mean() < ratios["reinforce", 12][0].mean() - 0.05
    )  # past 1.2 nothing pulls any further


def test_feedback_without_any_pull_takes_no_step_even_with_momentum() -> None:
    updater = FeedbackUpdater()
    host = ready(updater)
    updater.update(FEEDBACK_REQUEST)
    before = host.weights()
    stats = updater.update(with_data(FEEDBACK_REQUEST, signals=torch.zeros(6))).stats
    assert torch.equal(host.weights(), before) and host.versions == 1
    assert stats["steps"] == 0.0 and stats["grad_norm"] == 0.0 and stats["entropy"] > 0.0


@pytest.mark.parametrize("form", ["reinforce", "unlikelihood", "clipped"])
@pytest.mark.parametrize("normalise", [True, False])
def test_positive_feedback_makes_it_likelier_and_negative_less_likely(
    form: str, normalise: bool
) -> None:
    for sign in (1.0, -1.0):
        updater = FeedbackUpdater()
        host = ready(updater)
        candidates = tuple(f"candidate {k}" for k in range(4))
        chosen, signals = torch.tensor([1]), torch.tensor([sign])
        old = host.score(["p"], [candidates]).log_probs
        old_log_p = (old.log_softmax(-1) if normalise else old)[1:2]
        data = {"chosen": chosen, "signals": signals, "old_log_probs": old_log_p}
        request = UpdateRequest(
            "feedback",
            ("p",),
            (candidates,),
            torch.tensor([0]),
            1,
            data,
            {"loss": form, "normalise": normalise, "lr": 0.01},
        )
        before = updater.update(request).stats["log_prob"]
        after = updater.update(request).stats["log_prob"]
        assert (after - before) * sign > 1e-3


def test_supervised_learns_its_targets() -> None:
    updater = SupervisedUpdater()
    ready(updater, dtype=torch.float32)
    request = make_request("supervised", 6, {}, ragged=False, lr=0.01, epochs=80, minibatch_size=4)
    request = with_data(
        request,
        targets=torch.tensor([3 if prompt.endswith("1") else 2 for prompt in request.prompts]),
    )
    assert len(request.data["targets"].unique()) == 2
    before = updater.update(dataclasses.replace(request, options={"lr": 0.0})).stats
    updater.update(request)
    stats = updater.update(dataclasses.replace(request, options={"lr": 0.0})).stats
    assert (
        before["accuracy"] < 1.0
        and stats["accuracy"] == 1.0
        and stats["loss"] < 0.01 * before["loss"]
    )


def test_shuffling_depends_on_the_seed_alone() -> None:
    weights = []
    for seed in (1, 1, 2):
        updater = PPOUpdater()
        host = ready(updater)
        updater.update(
            dataclasses.replace(PPO_REQUEST, options={"minibatch_size": 2, "seed": seed, "lr": 0.1})
        )
        torch.rand(3)  # the global generator plays no part
        weights.append(host.weights())
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_steps_far_below_the_precision_of_bfloat16_add_up() -> None:
    # One step of 1e-4 on a weight near 0.4 is lost in bfloat16, whose spacing there is 2^-9 =
    # 0.002. Forty of them are not.
    updater = SupervisedUpdater()
    host = ready(updater, dtype=torch.bfloat16)
    before = host.weights().float()
    request = make_request(
        "supervised", 4, {"targets": torch.zeros(4, dtype=torch.int64)}, lr=1e-4, epochs=1
    )
    updater.update(request)
    large = before.abs() > 0.25
    assert torch.equal(host.weights().float()[large], before[large])
    for _ in range(39):
        updater.update(request)
    moved = (host.weights().float() - before).abs()[large]
    assert host.weights().dtype == torch.bfloat16
    assert 0.0019 < float(moved.max()) < 0.0081


@pytest.mark.parametrize("servers", [1, 2])
def test_gradients_of_many_chunks_are_added_up_in_float32(servers: int) -> None:
    # 1 and then 2^-9 three hundred times: in bfloat16, whose spacing at 1 is 2^-7, every later one
    # would be lost.
    def work(group: ThreadGroup) -> Tensor:
        weight, whole = (
            torch.nn.Parameter(torch.zeros(1, dtype=torch.bfloat16)),
            torch.nn.Parameter(torch.zeros(1)),
        )
        stepper = GradientStepper([("weight", weight), ("whole", whole)], group)
        for part in [1.0] + [2.0**-9] * 300:
            ((weight.float() + whole) * part).sum().backward()
            stepper.collect()
            assert weight.grad is None
        return stepper.reduce(torch.zeros(1))[0]

    expected = servers * (1 + 300 / 512) * 2**0.5  # two parameters with the same gradient
    for norm in on_servers(servers, work):
        assert float(norm) == pytest.approx(expected, rel=1e-6)


def test_a_parameter_that_lies_transposed_in_memory_steps_on_its_own_gradients() -> None:
    """Gradients that several servers have summed, and moments that were read, lie row by row."""

    def work(group: ThreadGroup, transposed: bool) -> Tensor:
        values = torch.arange(6.0).view(2, 3)
        laid = values.t().contiguous().t() if transposed else values.clone()
        parameter = torch.nn.Parameter(laid)
        stepper = GradientStepper([("weight", parameter)], group)
        for _ in range(2):
            (parameter * values.square()).sum().backward()
            stepper.step(stepper.reduce(torch.zeros(1))[0], 0.1, 1e-1, math.inf)
            stepper.restore(stepper.whole_state())
            stepper.clear()
        return parameter.detach()

    for plain, turned in zip(
        on_servers(2, lambda group: work(group, False)),
        on_servers(2, lambda group: work(group, True)),
        strict=True,
    ):
        torch.testing.assert_close(turned, plain)


def test_a_bfloat16_update_in_chunks_steps_on_the_float32_sum_of_their_gradients() -> None:
    updater = SupervisedUpdater()
    host = ready(updater, dtype=torch.bfloat16)
    sums = {parameter: torch.zeros(parameter.shape) for parameter in host.parameters()}

    def see(parameter: Tensor) -> None:
        assert parameter.grad is not None
        sums[parameter] += parameter.grad

    for parameter in host.parameters():
        parameter.register_post_accumulate_grad_hook(see)
    request = make_request(
        "supervised",
        12,
        {"targets": torch.zeros(12, dtype=torch.int64)},
        prompts=12,
        epochs=1,
        gradient_minibatch_size=1,
    )
    norm = updater.update(request).stats["grad_norm"]
    assert len(host.scored) > 3 and norm == pytest.approx(
        float(torch.cat([part.reshape(-1) for part in sums.values()]).norm()), rel=1e-6
    )


def test_weights_that_something_else_changed_are_where_a_bfloat16_step_starts() -> None:
    updater = SupervisedUpdater()
    host = ready(updater, dtype=torch.bfloat16)
    request = make_request("supervised", 4, {"targets": torch.zeros(4, dtype=torch.int64)}, lr=1e-4)
    updater.update(request)
    with torch.no_grad():
        host.read.weight.fill_(3.0)
    updater.update(request)
    torch.testing.assert_close(host.read.weight.float(), torch.full((6, 6), 3.0), rtol=1e-3, atol=0)


# --- Lamorel's shape ------------------------------------------------------------------------------


@pytest.mark.parametrize("note", [None, {"a": 1}, [[1], [2, 3]]])
def test_perform_update_names_the_argument_that_holds_no_numbers(note: Any) -> None:
    updater = PPOUpdater()
    updater.set_llm_module(FakeHost())
    with pytest.raises(RequestError, match=r"ppo: note is .*, expected numbers"):
        updater.perform_update(["go"], [["left"]], [0], note=note)


def test_perform_update_takes_the_whole_batch_data_and_this_servers_ids() -> None:
    request = dataclasses.replace(PPO_REQUEST, options={"lr": 0.01, "minibatch_size": 2})
    weights = []
    for lamorel in (False, True):
        updater = PPOUpdater()
        host = ready(updater)
        if lamorel:
            updater.perform_update(
                list(request.prompts),
                [list(c) for c in request.candidates],
                list(range(6)),
                **request.data,
                **request.options,
            )
        else:
            updater.update(request)
        weights.append(host.weights())
    assert torch.equal(*weights)


class LamorelStyle(BaseUpdater):
    """As the examples of Lamorel are written: data are indexed with the ids of this server's
    samples.
    """

    def perform_update(
        self, contexts: Any, candidates: Any, _current_batch_ids: Any, **kwargs: Any
    ) -> dict[str, float]:
        self.seen = kwargs["rewards"][_current_batch_ids]
        return {"mean": self.seen.mean(), "lr": kwargs["lr"]}


def test_a_lamorel_style_updater_gets_its_own_samples_by_their_ids() -> None:
    updater = LamorelStyle()
    request = UpdateRequest(
        "own",
        ("a", "b"),
        (("x",), ("x",)),
        torch.tensor([3, 1]),
        5,
        {"rewards": torch.tensor([7.0, 5.0])},
        {"lr": 0.5},
    )
    assert updater.update(request).stats == {"mean": 6.0, "lr": 0.5}
    assert updater.seen.tolist() == [7.0, 5.0]


@pytest.mark.parametrize("stats", [3, {"loss": torch.ones(3)}, {"loss": "x"}, torch.ones(2)])
def test_statistics_that_are_no_numbers_are_the_updaters(stats: Any) -> None:
    class Odd(BaseUpdater):
        def perform_update(self, *args: Any, **kwargs: Any) -> Any:
            return stats

    request = dataclasses.replace(FEEDBACK_REQUEST, updater="own")
    with pytest.raises(UpdateError, match=r"updater 'own': Odd.perform_update: expected statist"):
        Odd().update(request)


def test_the_base_class_alone_does_not_pretend_to_update() -> None:
    with pytest.raises(NotImplementedError, match="perform_update"):
        BaseUpdater().update(FEEDBACK_REQUEST)


def test_an_optimizer_that_is_not_saved_or_reset_is_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Own(LamorelStyle):
        pass

    class Saving(LamorelStyle):
        def save(self, folder: Path) -> None:
            super().save(folder)

    weight = torch.nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    adam, plain = torch.optim.Adam([weight]), torch.optim.SGD([weight])
    for kind, optimizer in ((Own, adam), (Own, plain), (Saving, adam)):
        updater = kind()
        updater.optimizers = {"policy": [optimizer]}
        updater.save(tmp_path)
        assert not caplog.records  # nothing has been learnt yet, or there is nothing to lose
    adam.step()
    plain.step()
    for kind, optimizer in ((Own, plain), (Saving, adam), (Own, adam), (Own, adam)):
        updater = kind()
        updater.optimizers = {"policy": [optimizer]}
        updater.save(tmp_path)
    assert [record.getMessage() for record in caplog.records] == [
        "Own: its optimizer (optimizers) is not in save(): a run that goes on from a checkpoint"
        " starts it anew"
    ]
    updater.reset(0)
    assert "Own: its optimizer (optimizers) is not in reset()" in caplog.records[-1].getMessage()
