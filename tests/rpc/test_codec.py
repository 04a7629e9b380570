"""The wire format: everything comes back as it was, and nothing that is not ours comes through."""

import dataclasses
import json
import math
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lamorel_ext.errors import ProtocolError, RequestError
from lamorel_ext.rpc.wire import codec
from lamorel_ext.rpc.wire.codec import (
    MAGIC,
    PREFIX,
    VERSION,
    Kind,
    decode,
    decode_prefix,
    encode,
    frame,
    pack,
)
from lamorel_ext.rpc.wire.fields import ALIGNMENT, DTYPES
from lamorel_ext.types import (
    Answer,
    CallRequest,
    CallResult,
    CloseRequest,
    Done,
    Failure,
    ForgetRequest,
    GenerateRequest,
    GenerateResult,
    InfoRequest,
    InfoResult,
    LoadRequest,
    Request,
    ResetRequest,
    SaveRequest,
    ScoreRequest,
    ScoreResult,
    UpdateRequest,
    UpdateResult,
)

texts = st.text(max_size=12)
names = st.text(max_size=6)
text_tuples = st.lists(texts, max_size=4).map(tuple)
candidate_tuples = st.lists(
    st.sampled_from([("a", "b"), ("turn left",), (), ("é", "\ud800")]), max_size=5
).map(tuple)
floats = st.floats(allow_nan=False)
integers = st.integers(-(2**63), 2**63 - 1)
scalars = st.one_of(st.booleans(), integers, floats, texts)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    dtype = DTYPES[draw(st.sampled_from(sorted(DTYPES)))]
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    raw = draw(
        st.binary(
            min_size=math.prod(shape) * dtype.itemsize, max_size=math.prod(shape) * dtype.itemsize
        )
    )
    if not raw:
        return torch.zeros(shape, dtype=dtype)
    octets = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
    return (
        (octets % 2).to(torch.bool).reshape(shape)
        if dtype == torch.bool
        else octets.view(dtype).reshape(shape)
    )


tensor_dictionaries = st.dictionaries(names, tensors(), max_size=3)
stats = st.dictionaries(names, floats, max_size=3)
options = st.dictionaries(names, scalars, max_size=3)
nested = st.recursive(
    st.one_of(st.none(), scalars, tensors()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(names, inner, max_size=3),
    ),
    max_leaves=6,
)
nested_dictionaries = st.dictionaries(names, nested, max_size=3)
of_each_type = {
    CallRequest: st.builds(CallRequest, texts, nested_dictionaries),
    CallResult: st.builds(CallResult, nested_dictionaries),
    ScoreRequest: st.builds(
        ScoreRequest, text_tuples, candidate_tuples, text_tuples, st.booleans()
    ),
    ScoreResult: st.builds(
        ScoreResult,
        tensors(),
        st.lists(integers, max_size=3).map(tuple),
        tensor_dictionaries,
        stats,
    ),
    GenerateRequest: st.builds(GenerateRequest, text_tuples, options),
    GenerateResult: st.builds(
        GenerateResult,
        candidate_tuples,
        tensors(),
        tensors(),
        st.lists(integers, max_size=3).map(tuple),
        stats,
    ),
    UpdateRequest: st.builds(
        UpdateRequest,
        texts,
        text_tuples,
        candidate_tuples,
        tensors(),
        integers,
        tensor_dictionaries,
        options,
    ),
    UpdateResult: st.builds(UpdateResult, stats),
    ForgetRequest: st.builds(ForgetRequest, st.booleans()),
    ResetRequest: st.builds(ResetRequest, integers, texts, st.lists(texts).map(tuple)),
    SaveRequest: st.builds(SaveRequest, texts),
    LoadRequest: st.builds(LoadRequest, texts),
    InfoRequest: st.builds(InfoRequest),
    InfoResult: st.builds(InfoResult, options),
    CloseRequest: st.builds(CloseRequest),
    Done: st.builds(Done),
    Failure: st.builds(Failure, integers, texts, texts, texts, texts),
}
messages = st.one_of(*of_each_type.values())


def same(left: Any, right: Any) -> bool:
    """Equality down to the bits of tensors and the types of scalars."""
    if isinstance(left, Tensor):
        raw = [tensor.reshape(-1).view(torch.uint8) for tensor in (left, right)]
        return left.dtype == right.dtype and left.shape == right.shape and torch.equal(*raw)
    if dataclasses.is_dataclass(left):
        return type(left) is type(right) and all(
            same(getattr(left, f.name), getattr(right, f.name)) for f in dataclasses.fields(left)
        )
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        alike = type(left) is type(right) and len(left) == len(right)
        return alike and all(same(one, other) for one, other in zip(left, right, strict=True))
    return type(left) is type(right) and bool(left == right)


def a_score_request() -> ScoreRequest:
    return ScoreRequest(("first", "second"), (("a", "b"), ("a", "b")), ("value",))


def a_score_result() -> ScoreResult:
    return ScoreResult(
        torch.tensor([0.5, -1.5]),
        (1, 1),
        {"mask": torch.tensor([[True], [False]])},
        {"tokens": 3.0},
    )


@given(messages)
@settings(max_examples=150)
def test_every_message_comes_back_as_it_was(message: codec.Message) -> None:
    assert same(decode(encode(message)), message)


def test_all_message_types_are_among_the_round_trips() -> None:
    assert set(of_each_type) == {*get_args(Request), *get_args(Answer)}


@given(messages, st.data())
@settings(max_examples=150)
def test_damaged_bytes_are_refused_or_give_a_whole_message(
    message: codec.Message, data: st.DataObject
) -> None:
    raw = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert dataclasses.is_dataclass(decode(raw))
    except ProtocolError:
        assert raw != encode(message)


@given(messages, st.data())
@settings(max_examples=60)
def test_cut_off_bytes_are_refused(message: codec.Message, data: st.DataObject) -> None:
    raw = encode(message)
    with pytest.raises(ProtocolError):
        decode(raw[: data.draw(st.integers(0, len(raw) - 1))])


@given(st.binary(max_size=200))
def test_strangers_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(raw)


def test_candidates_that_repeat_travel_once() -> None:
    actions = ("turn left", "turn right", "go forward")
    request = ScoreRequest(tuple(f"prompt {i}" for i in range(100)), (actions,) * 100)
    raw = encode(request)
    assert raw.count(b"turn left") == 1
    received = decode(raw)
    assert isinstance(received, ScoreRequest) and received == request
    assert all(each is received.candidates[0] for each in received.candidates)


def test_tensors_are_neither_copied_on_the_way_out_nor_on_the_way_in() -> None:
    tensor = torch.arange(1000, dtype=torch.float32)
    (raw,) = pack(ScoreResult(tensor, ())).buffers
    tensor[0] = 7.0
    assert bytes(raw[:4]) == np.float32(7.0).tobytes()
    received = decode(encode(ScoreResult(tensor, (), {"value": tensor})))
    assert isinstance(received, ScoreResult)
    # One buffer holds both: the second begins where the first ends, 4,000 being a multiple of the
    # alignment.
    assert 4000 % ALIGNMENT == 0
    assert received.modules["value"].data_ptr() - received.log_probs.data_ptr() == 4000
    received.log_probs[0] = 1.0
    assert received.log_probs[0] == 1.0


def test_views_and_parameters_travel_by_value() -> None:
    matrix = torch.arange(6.0).reshape(2, 3)
    received = decode(encode(ScoreResult(torch.nn.Parameter(matrix.t()), ())))
    assert isinstance(received, ScoreResult) and torch.equal(
        received.log_probs, torch.tensor([[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]])
    )
    assert not received.log_probs.requires_grad


def test_numbers_of_numpy_arrive_as_plain_ones() -> None:
    received = decode(
        encode(GenerateRequest(("a",), {"n": np.int64(3), "x": np.float32(0.5), "flag": True}))
    )  # type: ignore[dict-item]
    assert isinstance(received, GenerateRequest) and received.options == {
        "n": 3,
        "x": 0.5,
        "flag": True,
    }
    assert [type(value) for value in received.options.values()] == [int, float, bool]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_travel(value: float) -> None:
    received = decode(encode(UpdateResult({"loss": value})))
    assert isinstance(received, UpdateResult) and (
        received.stats["loss"] == value or math.isnan(value) and math.isnan(received.stats["loss"])
    )


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (ScoreRequest("a", ()), "ScoreRequest.prompts"),  # type: ignore[arg-type]
        (ScoreRequest((1,), ()), "ScoreRequest.prompts"),  # type: ignore[arg-type]
        (ScoreRequest(("a",), ("turn left",)), "ScoreRequest.candidates"),  # type: ignore[arg-type]
        (ScoreResult([0.5], ()), "ScoreResult.log_probs"),  # type: ignore[arg-type]
        (ScoreResult(torch.zeros(2).to_sparse(), ()), "ScoreResult.log_probs"),
        (UpdateResult({"loss": torch.zeros(())}), "UpdateResult.stats"),  # type: ignore[dict-item]
        (GenerateRequest(("a",), {"words": ["b"]}), "GenerateRequest.options"),  # type: ignore[dict-item]
        (ResetRequest(True), "ResetRequest.seed"),
    ],
)
def test_fields_of_another_type_cannot_be_sent(message: codec.Message, field: str) -> None:
    with pytest.raises(RequestError, match=field):
        encode(message)


def test_messages_beyond_the_limits_cannot_be_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "MAX_HEADER_BYTES", 100)
    with pytest.raises(RequestError, match="too large"):
        pack(SaveRequest("x" * 200))


def test_what_goes_from_client_to_client_has_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "MAX_HEADER_BYTES", 100)
    monkeypatch.setattr(codec, "MAX_PAYLOAD_BYTES", 100)
    message = CallResult({"value": torch.arange(50.0), "text": "x" * 200})
    assert same(decode(encode(message)), message)


def damaged(message: codec.Message, **changes: Any) -> bytes:
    """A frame whose header was changed by somebody who knows the format."""
    packed = pack(message)
    header = {**json.loads(packed.header), **changes}
    return b"".join(
        frame(codec.Packed(json.dumps(header).encode("ascii"), packed.buffers, packed.num_bytes))
    )


@pytest.mark.parametrize(
    "raw",
    [
        damaged(a_score_request(), type="os.system"),
        damaged(a_score_request(), type=["ScoreRequest"]),
        damaged(a_score_request(), fields={}),
        damaged(a_score_request(), fields=[]),
        damaged(a_score_request(), extra=1),
        damaged(ResetRequest(1), fields={"seed": "1", "weights": "fresh", "unused": []}),
        damaged(ResetRequest(1), fields={"seed": True, "weights": "fresh", "unused": []}),
        damaged(ResetRequest(1), fields={"seed": 1, "weights": "fresh", "unused": [2]}),
        damaged(ResetRequest(1), fields={"seed": 1, "weights": "fresh"}),
        damaged(ResetRequest(1), fields={"seed": 1, "weights": "fresh", "unused": [], "other": 2}),
        damaged(UpdateResult({"a": 1.0}), fields={"stats": {"a": 10**400}}),
        damaged(
            a_score_request(),
            fields={
                **json.loads(pack(a_score_request()).header)["fields"],
                "candidates": {"distinct": [], "places": [0]},
            },
        ),
        damaged(
            a_score_request(),
            fields={
                **json.loads(pack(a_score_request()).header)["fields"],
                "candidates": {"distinct": [["a"]], "places": [-1]},
            },
        ),
        damaged(a_score_result(), tensors=[]),
        damaged(a_score_result(), tensors=[{"dtype": "float32", "shape": [2]}]),
        damaged(
            a_score_result(),
            tensors=[{"dtype": "object", "shape": [2]}, {"dtype": "bool", "shape": [2, 1]}],
        ),
        damaged(
            a_score_result(),
            tensors=[{"dtype": "float32", "shape": [-2]}, {"dtype": "bool", "shape": [2, 1]}],
        ),
        damaged(
            a_score_result(),
            tensors=[{"dtype": "float32", "shape": [10**30]}, {"dtype": "bool", "shape": [2, 1]}],
        ),
        damaged(
            a_score_result(),
            fields={"log_probs": 0, "counts": [1, 1], "modules": {"mask": 0}, "stats": {}},
        ),
        damaged(
            a_score_result(), fields={"log_probs": 0, "counts": [1, 1], "modules": {}, "stats": {}}
        ),
        damaged(
            a_score_result(),
            fields={"log_probs": 2, "counts": [1, 1], "modules": {"mask": 1}, "stats": {}},
        ),
        encode(a_score_result())[:-1] + b"\x02",
        PREFIX.pack(MAGIC, VERSION, 0, 0, 0, 20_000, 0) + b"[" * 20_000,
        PREFIX.pack(MAGIC, VERSION, 0, 0, 0, 3, 0) + b"1e9",
        PREFIX.pack(MAGIC, VERSION, 0, 0, 0, 5000, 0) + b"1" * 5000,
    ],
)
def test_headers_that_lie_are_refused(raw: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(raw)


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        (PREFIX.pack(b"HTTP", VERSION, 0, 0, 0, 0, 0), "starts with b'HTTP'"),
        (
            PREFIX.pack(MAGIC, VERSION + 1, 0, 0, 0, 0, 0),
            f"version {VERSION + 1} of the wire format, this is version {VERSION}",
        ),
        (PREFIX.pack(MAGIC, VERSION, 99, 0, 0, 0, 0), "kind of frame: 99"),
        (PREFIX.pack(MAGIC, VERSION, 0, 0, 0, 2**31, 0), "announces 2147483648 bytes"),
        (PREFIX.pack(MAGIC, VERSION, 0, 0, 0, 10, 2**62), "announces"),
        (PREFIX.pack(MAGIC, VERSION, 0, 0, 0, 0, 8), "no header"),
    ],
)
def test_prefixes_that_are_not_ours_are_refused(prefix: bytes, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        decode_prefix(prefix)


def test_frames_without_message_carry_their_numbers() -> None:
    raw = b"".join(frame(kind=Kind.TICKET, call_id=5, ticket=2**40))
    prefix = decode_prefix(raw)
    assert (prefix.kind, prefix.call_id, prefix.ticket, prefix.header_bytes) == (
        Kind.TICKET,
        5,
        2**40,
        0,
    )
