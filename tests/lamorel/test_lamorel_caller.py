"""What a client asks of the servers, and what it refuses before anything is sent."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lamorel_ext import BaseModelInitializer, BaseModuleFunction, BaseUpdater
from lamorel_ext.config import LlmArgs
from lamorel_ext.errors import ConfigError, ModelLoadError, RequestError
from lamorel_ext.lamorel.caller import Caller, _serve
from lamorel_ext.lamorel.hosting import LamorelHost, make_host
from lamorel_ext.lamorel.model import SCORE_KEY, LamorelModel, initialised
from lamorel_ext.lamorel.settings import LlmSettings, read_settings
from lamorel_ext.llm.loading import load_model
from lamorel_ext.llm.module_functions import LogScores
from lamorel_ext.rpc.groups import LockstepGroup, make_thread_groups
from tests.lamorel.test_lamorel_settings import new, old
from tests.updaters.updater_fakes import on_servers

CPU = torch.device("cpu")


class Recorded:
    """Stands for the connection: keeps the requests, answers a row for each context."""

    def __init__(self) -> None:
        self.requests: dict[int, Any] = {}

    def call(self, requests: Any, together: bool = False) -> list[dict[str, Any]]:
        self.requests = {server: request.values for server, request in requests.items()}
        if together:
            return [{"result": 1} if each["contexts"] else {} for each in self.requests.values()]
        return [
            {"rows": [{SCORE_KEY: 0}] * len(each["contexts"])} for each in self.requests.values()
        ]


def client(config: dict[str, Any]) -> tuple[Any, Recorded]:
    caller: Any = object.__new__(Caller)
    caller._settings, caller._caller = read_settings(config), Recorded()
    return caller, caller._caller


def test_arguments_in_the_order_of_03_are_what_they_are_there() -> None:
    caller, sent = client(new())
    caller.custom_module_fns(["a"], ["go"], [["x"]], False, 7, 9, True, True, 2, "b", "other")
    assert sent.requests.keys() == {2}
    assert sent.requests[2] == {
        "module_function_keys": ["a"], "contexts": ["go"], "candidates": [["x"]],
        "pad_contexts": False, "forced_context_len": 7, "forced_sequence_len": 9,
        "add_eos_on_candidates": True, "require_grad": True, "minibatch_size": 2,
        "peft_adapter": "b",
    }  # fmt: skip
    caller.generate(["go"], True, "b", "other", max_new_tokens=3)
    assert sent.requests[2]["peft_adapter"] == "b" and sent.requests[2]["max_new_tokens"] == 3


def test_an_adapter_is_activated_on_servers_without_a_part_of_the_batch_too() -> None:
    caller, sent = client(old())
    for ask in (
        lambda: caller.score(["go"], [["x"]], peft_adapter="b"),
        lambda: caller.generate(["go"], peft_adapter="b"),
        lambda: caller.custom_module_fns(["a"], ["go"], peft_adapter="b"),
    ):
        assert len(ask()) == 1
        assert [each["contexts"] for each in sent.requests.values()] == [["go"], [], []]
        assert {each["peft_adapter"] for each in sent.requests.values()} == {"b"}
    caller.custom_module_fns(["a"], ["go"])
    assert sent.requests.keys() == {0}


@pytest.mark.parametrize(
    ("ask", "complaint"),
    [
        (lambda lm: lm.score(["a", "b", "c"], [["x"], ["y"], "z"]), r"candidates\[2\] is 'z'"),
        (lambda lm: lm.score(["a", "b", "c"], [["x"], ["y"], [1]]), r"candidates\[2\] is \[1\]"),
        (lambda lm: lm.score(["a", [1, 2], None], [["x"]] * 3), r"contexts\[2\] is None"),
        (lambda lm: lm.generate(["a", "b", [1, 2]]), r"contexts\[2\] is \[1, 2\], expected a text"),
        (
            lambda lm: lm.custom_module_fns("value", ["a"]),
            "module_function_keys is a single string",
        ),
    ],
)
def test_a_mistake_is_told_by_its_place_in_the_call_and_not_in_a_servers_part(
    ask: Any, complaint: str
) -> None:
    caller, sent = client(old())
    with pytest.raises(RequestError, match=complaint):
        ask(caller)
    assert not sent.requests


def test_a_seed_gives_one_text_in_two_parts_of_a_batch_two_continuations() -> None:
    caller, sent = client(old())
    caller.generate(["go"] * 4, seed=np.int64(5), do_sample=True)
    assert [each["seed"] for each in sent.requests.values()] == [5, 7, 8]
    caller.generate(["go"] * 4, seed=torch.tensor(5), do_sample=True)
    assert [each["seed"] for each in sent.requests.values()] == [5, 7, 8]
    with pytest.raises(RequestError, match=r"seed is 5\.0, expected a whole number"):
        caller.generate(["go"] * 4, seed=5.0, do_sample=True)
    caller.custom_module_fns(["a"], ["go"] * 4, seed=5)  # the module function's affair
    assert [each["seed"] for each in sent.requests.values()] == [5, 5, 5]


def test_a_server_of_03_draws_from_the_seed_of_its_llm(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(
        "lamorel_ext.llm.serving.serve", lambda args, *_: seeds.append(args.llm_args.seed)
    )
    config = new()
    config["llm_configs"]["main"]["seed"] = 7
    settings = read_settings(config)
    _serve(settings, settings.llms[0], None, 0, None, {}, None)
    assert seeds == [7]


def test_an_update_reaches_every_server_whole_and_answers_for_those_with_a_part() -> None:
    caller, sent = client(old())
    exps = {"labels": torch.arange(2), "deep": {"names": ["a", "b"]}}
    assert caller.update(["go", "see"], None, exps=exps) == [1, 1]
    assert [each["_current_batch_ids"] for each in sent.requests.values()] == [[0], [1], []]
    assert all(each["exps"] is exps for each in sent.requests.values())


@pytest.mark.parametrize(
    ("custom", "complaint"),
    [
        ({"custom_updater": {"man": 1}}, "custom_updater: there is no LLM 'man'"),
        ({"custom_module_functions": {"value": 1}}, "there is no LLM 'value'"),
        ({"custom_model_initializer": {"Main": 1, "main": 1}}, "no LLM 'Main'.*main, other"),
        ({"custom_updater": object()}, "custom_updater is a object, expected a dictionary"),
    ],
)
def test_names_that_no_llm_of_03_has_are_refused(custom: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Caller(new(), **custom)


class Wraps(BaseModelInitializer):
    def initialize_model(self, model: Any) -> Any:
        model._LLM_model = torch.nn.Sequential(model._LLM_model)
        return model


def test_a_model_of_ones_own_needs_a_configuration() -> None:
    settings = LlmSettings("", "0.2", LlmArgs(), range(1))
    with pytest.raises(TypeError, match="put a Sequential in the place of _LLM_model.* no config"):
        make_host(settings, [CPU], 1, None, {}, Wraps())


@pytest.mark.parametrize("given", [{"main": 1}, object(), "x"])
@pytest.mark.parametrize("place", [3, 5])
def test_what_is_no_updater_or_initialiser_is_refused(place: int, given: Any) -> None:
    settings = LlmSettings("", "0.2", LlmArgs(), range(1))
    arguments: list[Any] = [settings, [CPU], 1, None, {}, None]
    arguments[place] = given
    with pytest.raises(TypeError, match="not a Base(Updater|ModelInitializer)"):
        make_host(*arguments)


@pytest.mark.parametrize(
    ("place", "given", "complaint"),
    [
        (3, BaseUpdater, r"custom_updater is the class .*: hand over BaseUpdater\(\)"),
        (5, BaseModelInitializer, "custom_model_initializer is the class BaseModelInitializer"),
    ],
)
def test_a_class_in_the_place_of_an_object_is_refused_by_its_name(
    place: int, given: Any, complaint: str
) -> None:
    arguments: list[Any] = [LlmSettings("", "0.2", LlmArgs(), range(1)), [CPU], 1, None, {}, None]
    arguments[place] = given
    with pytest.raises(TypeError, match=complaint):
        make_host(*arguments)


# --- the updater ----------------------------------------------------------------------------------


class Drawn(BaseModuleFunction):
    def initialize(self) -> None:
        self.layer = torch.nn.Linear(8, 1)
        self.register_buffer("drawn", torch.randn(4))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


class Copies(BaseUpdater):
    """Keeps the heads as they were when it was handed the model."""

    def set_llm_module(self, llm_module: Any) -> None:
        super().set_llm_module(llm_module)
        head = llm_module.module._module_functions["head"]
        self.kept = [*head.layer.weight.detach().clone().flatten(), *head.drawn.clone()]


def test_an_updater_sees_weights_that_the_servers_have_in_common() -> None:
    updaters = [Copies() for _ in range(2)]
    settings = LlmSettings("", "0.2", LlmArgs(), range(2))
    hosts = [
        make_host(settings, [CPU], rank, updater, {"head": Drawn()}, None)
        for rank, updater in enumerate(updaters)
    ]
    answers = on_servers(2, lambda group: hosts[group.rank].set_group(LockstepGroup(group)))
    assert answers == [None, None]
    assert updaters[0].kept == updaters[1].kept


def test_an_update_without_an_updater_is_ignored_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    host = LamorelHost(served("0.2"), None)
    (group,) = (LockstepGroup(each) for each in make_thread_groups(1))
    host.set_group(group)
    assert host.call("update", {"contexts": ["go"]}, group) == {"result": None}
    assert "given no custom_updater: ignored" in caplog.text
    assert host.call("update", {"contexts": []}, group) == {}


# --- the model behind it --------------------------------------------------------------------------


def served(version: Any = "0.3", **changes: Any) -> LamorelModel:
    args = LlmArgs(**changes)
    settings = LlmSettings("m", version, args, range(1), raw={})
    model, tokenizer, _ = load_model(args, CPU)
    return initialised(
        LamorelModel(model, tokenizer, settings), {"score": LogScores()}, settings, {}
    )


def test_an_adapter_is_activated_by_a_call_without_contexts() -> None:
    peft = pytest.importorskip("peft", reason="the extra lora is not installed")
    model = served()
    config = peft.LoraConfig(r=2, target_modules=["q"])
    model._LLM_model = peft.get_peft_model(model._LLM_model, config, adapter_name="a")
    model._LLM_model.add_adapter("b", config)
    assert model([SCORE_KEY], [], candidates=[], peft_adapter="b") == []
    assert model._LLM_model.active_adapter == "b"
    assert model.generate([], peft_adapter="a") == []
    assert model._LLM_model.active_adapter == "a"


def test_numpys_numbers_are_sizes_and_a_missing_end_token_is_said() -> None:
    model = served()
    assert len(model([SCORE_KEY], ["go"], minibatch_size=np.int64(2))) == 1
    model._LLM_tokenizer.eos_token = None
    with pytest.raises(RequestError, match="add_eos_on_candidates: the tokenizer has no end token"):
        model([SCORE_KEY], ["go"], [["left"]], add_eos_on_candidates=True)


@pytest.mark.parametrize("version", ["0.2", "0.3"])
def test_a_generated_text_scores_what_generation_said_once_its_end_token_counts(
    version: str,
) -> None:
    model = served(version)
    prompts = ["Goal of the agent : go to the red ball . You see a red ball 2 steps left .", "go"]
    found = model.generate(
        prompts, return_logprobs=True, num_return_sequences=6, do_sample=True, top_k=None,
        max_new_tokens=5, seed=1,
    )  # fmt: skip
    texts = [[each["text"] for each in own] for own in found]
    plain = model(["score"], prompts, candidates=texts)
    ended = model(["score"], prompts, candidates=texts, add_eos_on_candidates=True)
    ends = 0
    for place, own in enumerate(found):
        for row, each in enumerate(own):
            end = each["tokens"][-1] == model._LLM_tokenizer.eos_token_id
            scores = ended if end else plain
            ends += int(end)
            score = float(scores[place]["score"][row])
            assert score == pytest.approx(float(each["text_logprob"]), abs=1e-4)
    assert 0 < ends < 12


def test_words_that_the_tokenizer_learns_between_calls_are_read_as_such() -> None:
    model = served()

    def scores(key: str) -> list[float]:
        return [float(row[key]) for row in model([key], ["go left"] * 2, [["left"], ["drop"]])]

    before = scores(SCORE_KEY)
    model._LLM_tokenizer.add_tokens(["left"])
    model._LLM_model.resize_token_embeddings(len(model._LLM_tokenizer))
    assert scores(SCORE_KEY) == pytest.approx(scores("score"), abs=1e-4)
    assert scores(SCORE_KEY)[0] != pytest.approx(before[0], abs=1e-2)


@pytest.mark.parametrize("version", ["0.2", "0.3"])
def test_fresh_weights_follow_from_the_seed_and_drop_nothing_out(version: str) -> None:
    def scores(seed: int) -> list[float]:
        args = LlmArgs(pretrained=False, seed=seed)
        settings = LlmSettings("m", version, args, range(1), raw={})  # type: ignore[arg-type]
        host = make_host(settings, [CPU], 1, None, {}, None)
        assert not host._model._LLM_model.training
        values = {"module_function_keys": [SCORE_KEY], "contexts": ["go"], "candidates": [["a"]]}
        (row,) = host.call("forward", values, None)["rows"]
        found: list[float] = row[SCORE_KEY].tolist()
        return found

    assert scores(5) == scores(5) != scores(6)


# --- four bits ------------------------------------------------------------------------------------


def four_bits(version: str) -> LlmSettings:
    if version == "0.2":
        config = old()
        config["llm_args"].update(load_in_4bit=True, model_path="no/such")
        return read_settings(config).llms[0]
    config = new()
    main = config["llm_configs"]["main"]
    if version == "0.3":
        main["load_in_4bit"] = True
    else:
        main["constructor_kwargs"] = {"load_in_4bit": True}
    return read_settings(config).llms[0]


@pytest.mark.parametrize("version", ["0.2", "0.3", "0.3, constructor_kwargs"])
def test_four_bits_are_read_and_refused_without_a_gpu(version: str) -> None:
    settings = four_bits(version)
    assert settings.args.load_in_4bit
    with pytest.raises(ModelLoadError, match="load_in_4bit needs a GPU.*on the cpu"):
        make_host(settings, [CPU], 1, None, {}, None)


def test_four_bits_need_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    with pytest.raises(ModelLoadError, match="load_in_4bit needs the package bitsandbytes"):
        make_host(four_bits("0.2"), [torch.device("cuda")], 1, None, {}, None)


@pytest.mark.parametrize(
    ("changes", "devices", "beside"),
    [({"pretrained": False}, 1, "pretrained: false"), ({}, 2, "several GPUs.*model_parallelism")],
)
def test_what_does_not_go_with_four_bits_is_refused_by_name(
    changes: dict[str, Any], devices: int, beside: str
) -> None:
    settings = four_bits("0.2")
    settings = replace(settings, args=replace(settings.args, **changes))
    cards = [torch.device("cuda", card) for card in range(devices)]
    with pytest.raises(ModelLoadError, match=f"load_in_4bit does not go with {beside}"):
        make_host(settings, cards, 1, None, {}, None)


def test_four_bits_are_asked_of_transformers_as_lamorel_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import transformers

    asked: dict[str, Any] = {}

    def stop(path: str, **options: Any) -> None:
        asked.update(options, path=path)
        raise RuntimeError("no GPU here")

    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *args: object() if name == "bitsandbytes" else find(name, *args),
    )
    config = transformers.T5Config()
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", lambda *a, **k: config)
    monkeypatch.setattr(transformers.AutoModelForSeq2SeqLM, "from_pretrained", stop)
    monkeypatch.setattr(transformers.BitsAndBytesConfig, "post_init", lambda self: None)
    with pytest.raises(ModelLoadError, match="no/such cannot be loaded in 4 bits: no GPU here"):
        make_host(four_bits("0.2"), [torch.device("cuda", 0)], 1, None, {}, None)
    wanted = asked["quantization_config"]
    assert asked["path"] == "no/such" and asked["device_map"] == {"": torch.device("cuda", 0)}
    assert wanted.load_in_4bit and wanted.bnb_4bit_quant_type == "nf4"
    assert wanted.bnb_4bit_use_double_quant and wanted.bnb_4bit_compute_dtype == torch.bfloat16
    assert "dtype" not in asked
    settings = four_bits("0.2")
    settings = replace(settings, args=replace(settings.args, dtype="bfloat16"))
    with pytest.raises(ModelLoadError, match="no GPU here"):
        make_host(settings, [torch.device("cuda", 0)], 1, None, {}, None)
    assert asked["dtype"] == torch.bfloat16
