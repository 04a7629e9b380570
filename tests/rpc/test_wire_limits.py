"""What a peer may announce: sizes that no memory holds are refused, empty things travel."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from lamorel_ext.errors import ProtocolError
from lamorel_ext.rpc.wire.codec import Packed, decode, encode, frame
from lamorel_ext.rpc.wire.fields import MAX_ELEMENTS
from lamorel_ext.types import CallRequest, ScoreResult
from tests.rpc.fuzz_wire import fuzz


def framed(fields: dict[str, object], shape: list[int], kind: str = "CallRequest") -> bytes:
    tensors = [{"dtype": "float32", "shape": shape}]
    header = json.dumps({"type": kind, "fields": fields, "tensors": tensors})
    return b"".join(frame(Packed(header.encode(), (), 0)))


@pytest.mark.parametrize("shape", [[2**47, 2**47, 0], [2**47, 0, 2**47, 2**47], [0, MAX_ELEMENTS]])
def test_an_empty_tensor_whose_strides_no_machine_counts_is_refused(shape: list[int]) -> None:
    fields = {"log_probs": 0, "counts": [], "modules": {}, "stats": {}}
    with pytest.raises(ProtocolError, match="impossible shape"):
        decode(framed(fields, shape, "ScoreResult"))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1).expand(4)[:0],
        torch.empty(0, 3, dtype=torch.float64).t(),
        torch.zeros(2, 0, 3),
    ],
)
def test_an_empty_tensor_travels_whatever_its_strides(tensor: torch.Tensor) -> None:
    received = decode(encode(ScoreResult(tensor, ())))
    assert isinstance(received, ScoreResult)
    assert received.log_probs.shape == tensor.shape and received.log_probs.dtype == tensor.dtype


def test_a_received_message_with_empty_arrays_can_be_sent_again() -> None:
    raw = encode(CallRequest("f", {"a": np.zeros(0), "b": np.zeros((2, 0))}))
    assert encode(decode(raw)) == raw


def test_an_array_of_texts_that_takes_more_room_than_its_bytes_is_refused() -> None:
    texts = ["x" * 2**20, *[""] * 2**9]
    values = [["t", {"texts": texts, "shape": [len(texts)]}]]
    header = json.dumps(
        {"type": "CallRequest", "fields": {"method": "f", "values": values}, "tensors": []}
    )
    with pytest.raises(ProtocolError, match="no memory holds"):
        decode(b"".join(frame(Packed(header.encode(), (), 0))))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_made_up_messages_and_strangers_get_documented_errors(seed: int) -> None:
    counts, found = fuzz(700, seed)
    assert not found and counts["refused"] > 500 and counts["read"] > 0
