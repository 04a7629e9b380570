"""Nested values cross the wire as what they were, and nothing else does."""

from collections import Counter, OrderedDict, defaultdict, namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from lamorel_ext.errors import ProtocolError, RequestError
from lamorel_ext.rpc.wire.codec import decode, encode
from lamorel_ext.types import CallRequest


def sent(**values: Any) -> dict[str, Any]:
    message = decode(encode(CallRequest("update", values)))
    assert isinstance(message, CallRequest)
    return message.values


def test_plain_values_of_any_depth_come_back_the_same() -> None:
    values = {
        "a": None,
        "b": [1, 2.5, "x", True, [], {}],
        "c": {"d": {"e": (1, "y")}, 3: None},
        "n": float("inf"),
    }
    assert sent(**values) == values
    assert (
        type(sent(a=True)["a"]) is bool
        and type(sent(a=1)["a"]) is int
        and type(sent(a=1.0)["a"]) is float
    )


def test_tensors_and_arrays_keep_kind_type_and_shape() -> None:
    exps = {
        "action": torch.arange(6).reshape(2, 3),
        "prompt": np.array(["ab", "c"]),
        "adv": np.ones((2, 0), np.float32),
        "read": np.arange(3, dtype=">i4"),  # in the other order of bytes, as some files have it
    }
    back = sent(exps=exps)["exps"]
    assert torch.equal(back["action"], exps["action"])
    assert back["prompt"].tolist() == ["ab", "c"] and back["prompt"].dtype.kind == "U"
    assert back["adv"].shape == (2, 0) and back["adv"].dtype == np.float32
    assert back["read"].tolist() == [0, 1, 2] and back["read"].dtype == np.int32


def test_numpy_numbers_and_texts_stay_usable() -> None:
    back = sent(
        loss=np.float32(0.5),
        flag=np.bool_(True),
        text=np.str_("x"),
        rows=np.array([["a", "b"]]),
        mixed=np.array([None, "a"]),
    )
    assert isinstance(back["loss"], np.float32) and back["loss"] == 0.5
    assert back["flag"] == np.bool_(True) and back["text"] == "x" and type(back["text"]) is str
    assert back["rows"].shape == (1, 2) and back["mixed"].tolist() == [None, "a"]


@pytest.mark.parametrize(
    "value",
    [
        *(object(), {1, 2}, b"x", lambda: 0, {"a": [0, {"b": object()}]}, {(1, 2): 3}),
        torch.ones(1, device="meta"),
        torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]),
    ],
)
def test_what_cannot_be_sent_is_refused_by_name(value: Any) -> None:
    with pytest.raises(RequestError, match="CallRequest.values cannot be sent: odd"):
        encode(CallRequest("update", {"odd": value}))


@pytest.mark.parametrize(
    ("value", "instead"),
    [
        ({1}, "make it a list"),
        (OmegaConf.create({"lr": 1}), "is a DictConfig; .*OmegaConf.to_container"),
        (Counter("ab"), "is a Counter; .*make it a dict"),
        (namedtuple("Pair", "a b")(1, 2), "is a Pair; .*make it a tuple or a dict"),
        (np.ma.array([1.0, 2.0], mask=[0, 1]), "is a MaskedArray; .*make it an array and its mask"),
        (np.ones((1, 1)).view(np.matrix), "is a matrix; .*make it an array"),
    ],
)
def test_what_would_lose_its_class_is_refused_with_what_to_hand_in_its_place(
    value: Any, instead: str
) -> None:
    with pytest.raises(RequestError, match=rf"deep\[0\] {instead}|deep\[0\] is .*{instead}"):
        encode(CallRequest("update", {"deep": [value]}))


def test_ordered_and_default_dictionaries_and_lists_of_omegaconf_arrive_plain() -> None:
    given = {"a": OrderedDict(b=1), "c": defaultdict(int, d=2), "e": OmegaConf.create([1, "x"])}
    back = sent(**given)
    assert back == {"a": {"b": 1}, "c": {"d": 2}, "e": [1, "x"]}
    assert {type(each) for each in back.values()} == {dict, list}


def test_what_contains_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(RequestError, match="deep"):
        encode(CallRequest("update", {"loop": value}))


@pytest.mark.parametrize(
    "raw",
    [
        b'{"dict":1}',
        b'{"code":""}',
        b'{"tuple":1}',
        b'{"tensor":7}',
        b'{"texts":["a"],"shape":[2]}',
    ],
)
def test_bytes_that_are_nothing_of_the_kind_are_a_protocol_error(raw: bytes) -> None:
    whole = encode(CallRequest("update", {"a": "PLACEHOLDER"}))
    marker = b'"PLACEHOLDER"'
    changed = whole.replace(marker, raw.ljust(len(marker)) if len(raw) <= len(marker) else raw)
    grown = len(changed) - len(whole)
    from lamorel_ext.rpc.wire.codec import PREFIX

    magic, version, kind, call, ticket, header, payload = PREFIX.unpack(changed[: PREFIX.size])
    changed = (
        PREFIX.pack(magic, version, kind, call, ticket, header + grown, payload)
        + changed[PREFIX.size :]
    )
    with pytest.raises(ProtocolError):
        decode(changed)
