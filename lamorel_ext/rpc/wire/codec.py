"""The wire format: one frame is a fixed prefix, a JSON header and the raw bytes of the tensors.

========  =======  ===============================================================================
bytes     field    meaning
========  =======  ===============================================================================
4         magic    ``LMRX``
1         version  of this format; both ends must have the same
1         kind     what the frame is (``Kind``)
8         call id  ties an answer to its request
8         ticket   place in the global order of requests that make the servers talk among
                   themselves; 0 means none
4         length   of the header
8         length   of the payload
========  =======  ===============================================================================

The header is ASCII JSON: ``{"type": ..., "fields": {...}, "tensors": [{"dtype": ..., "shape":
[...]}, ...]}``; the payload holds the tensors one after the other, each at a multiple of 16 bytes,
little-endian as every machine that runs PyTorch has them. Only the message types of
``lamorel_ext.types`` can be built from it: no byte that arrives can make code run, and whatever
does not fit is a ``ProtocolError``.
"""

from __future__ import annotations

import enum
import json
import struct
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

from lamorel_ext.errors import ProtocolError, RequestError
from lamorel_ext.rpc.wire.fields import (
    FORMS,
    Form,
    TensorReader,
    TensorWriter,
    payload_bytes,
    read_specs,
)
from lamorel_ext.types import Answer, Request

MAGIC = b"LMRX"
VERSION = 3
PREFIX = struct.Struct("!4sBBQQIQ")
MAX_HEADER_BYTES = 64 * 2**20
MAX_PAYLOAD_BYTES = 2**30

Message = Request | Answer
Buffer = bytes | memoryview

_FORMS: dict[type, dict[str, Form]] = {
    kind: {name: FORMS[hint] for name, hint in get_type_hints(kind).items()}
    for kind in (*get_args(Request), *get_args(Answer))
}
_TYPES = {kind.__name__: kind for kind in _FORMS}


class Kind(enum.IntEnum):
    """What a frame is."""

    MESSAGE = 0
    """A request, or the answer with the same call id."""
    LAST_WORD = 1
    """A ``Failure``: the peer's process ends because of this exception."""
    TICKET = 2
    """Without ticket: a client asks for one; with ticket: the answer."""
    GOODBYE = 3
    """The peer is done and about to close the connection."""
    STOP = 4
    """A server was asked to end by the signal whose number is the call id; the client is asked to
    save and end the run.
    """


@dataclass(frozen=True)
class Prefix:
    """The fixed part of a frame."""

    kind: Kind
    call_id: int
    ticket: int
    header_bytes: int
    payload_bytes: int


@dataclass(frozen=True)
class Packed:
    """A message ready to be framed; packing can fail, so it comes before anything is sent."""

    header: bytes
    buffers: tuple[Buffer, ...]
    num_bytes: int


_NOTHING = Packed(b"", (), 0)


def pack(message: Message, limited: bool = True) -> Packed:
    """Turn a message into buffers; tensors on the CPU are not copied.

    Args:
        limited: False where no peer reads it from a connection, which is when its size matters.

    Raises:
        RequestError: A field has not the type that its dataclass says, or the message is too large.
    """
    writer = TensorWriter()
    name = type(message).__name__
    fields = {}
    for field, form in _FORMS[type(message)].items():
        try:
            fields[field] = form.pack(getattr(message, field), writer)
        except (ValueError, OverflowError) as error:
            raise RequestError(f"{name}.{field} cannot be sent: {error}") from error
    header = json.dumps(
        {"type": name, "fields": fields, "tensors": writer.specs}, separators=(",", ":")
    ).encode("ascii")
    if limited and (len(header) > MAX_HEADER_BYTES or writer.num_bytes > MAX_PAYLOAD_BYTES):
        raise RequestError(
            f"{name} is too large to be sent: {len(header)} bytes of text (at most"
            f" {MAX_HEADER_BYTES}) and {writer.num_bytes} bytes of tensors (at most"
            f" {MAX_PAYLOAD_BYTES})"
        )
    return Packed(header, tuple(writer.buffers), writer.num_bytes)


def frame(
    packed: Packed = _NOTHING, kind: Kind = Kind.MESSAGE, call_id: int = 0, ticket: int = 0
) -> list[Buffer]:
    """The buffers of one frame, to be written one after the other."""
    prefix = PREFIX.pack(
        MAGIC, VERSION, kind, call_id, ticket, len(packed.header), packed.num_bytes
    )
    return [prefix, packed.header, *packed.buffers] if packed.header else [prefix]


def encode(message: Message) -> bytes:
    """One whole frame that carries a message, however large, as ``decode`` reads it.

    Raises:
        RequestError: A field has not the type that its dataclass says.
    """
    return b"".join(frame(pack(message, limited=False)))


def decode_prefix(raw: bytes | bytearray, limited: bool = True) -> Prefix:
    """Read the fixed part of a frame.

    Args:
        limited: False where the whole frame is there already: nothing is allocated for it.

    Raises:
        ProtocolError: It is not ours, of another version, or announces more than a message may
            have.
    """
    if len(raw) != PREFIX.size:
        raise ProtocolError(f"expected {PREFIX.size} bytes at the start of a frame, got {len(raw)}")
    magic, version, kind, call_id, ticket, header_bytes, num_payload_bytes = PREFIX.unpack(raw)
    if magic != MAGIC:
        raise ProtocolError(f"a frame starts with {magic!r}, expected {MAGIC!r}")
    if version != VERSION:
        raise ProtocolError(
            f"the peer speaks version {version} of the wire format, this is version {VERSION}"
        )
    if kind not in Kind._value2member_map_:
        raise ProtocolError(f"unknown kind of frame: {kind}")
    if limited and (header_bytes > MAX_HEADER_BYTES or num_payload_bytes > MAX_PAYLOAD_BYTES):
        raise ProtocolError(
            f"a frame announces {header_bytes} bytes of text and {num_payload_bytes} bytes of"
            " tensors"
        )
    if num_payload_bytes and not header_bytes:
        raise ProtocolError("a frame has tensors and no header")
    return Prefix(Kind(kind), call_id, ticket, header_bytes, num_payload_bytes)


def decode_message(raw: bytes | bytearray, payload: bytearray) -> Message:
    """Build the message of a JSON header and a payload, whose memory its tensors share.

    Raises:
        ProtocolError: It is no header of ours, its tensors do not fill the payload, or a field is
            missing, unknown or of another type.
    """
    try:
        header = json.loads(raw.decode("ascii"))
        if type(header) is not dict or header.keys() != {"type", "fields", "tensors"}:
            raise ValueError("expected type, fields and tensors")
        name, fields = header["type"], header["fields"]
        if type(name) is not str or name not in _TYPES or type(fields) is not dict:
            raise ValueError(f"unknown type of message: {name!r:.80}")
        specs = read_specs(header["tensors"])
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not a header of ours: {error}") from error
    if payload_bytes(specs) != len(payload):
        raise ProtocolError(
            f"{name} announces {len(payload)} bytes of tensors, its header speaks of"
            f" {payload_bytes(specs)}"
        )
    forms = _FORMS[_TYPES[name]]
    if fields.keys() != forms.keys():
        raise ProtocolError(f"{name} has the fields {sorted(forms)}, got {sorted(fields)!r:.200}")
    reader = TensorReader(specs, payload)
    values: dict[str, Any] = {}
    field = "tensors"
    try:
        for field, form in forms.items():
            values[field] = form.unpack(fields[field], reader)
        field = "tensors"
        reader.finish()
    except (ValueError, OverflowError) as error:
        raise ProtocolError(f"{name}.{field}: {error}") from error
    message: Message = _TYPES[name](**values)
    return message


def decode(data: bytes | bytearray | memoryview) -> Message:
    """Read one whole frame that carries a message.

    Raises:
        ProtocolError: It is anything else.
    """
    raw = bytearray(data)
    prefix = decode_prefix(raw[: PREFIX.size], limited=False)
    if len(raw) != PREFIX.size + prefix.header_bytes + prefix.payload_bytes:
        raise ProtocolError(f"a frame of {len(raw)} bytes announces another length")
    end = PREFIX.size + prefix.header_bytes
    return decode_message(raw[PREFIX.size : end], raw[end:])
