"""Fuzz of the wire: ``python -m tests.rpc.fuzz_wire --cases 1000000 --seed 0``; about a thousand a
second.

Frames, headers and handshakes that were damaged at random, or made up by somebody who knows the
format, are read as a rank reads them. Whatever is no message must be a ``ProtocolError``; what
comes through must be a whole message that can be sent again. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import socket
import sys
import time
import traceback
from collections import Counter
from typing import Any

import numpy as np
import torch

from lamorel_ext.errors import ProtocolError
from lamorel_ext.rpc.handshake import examine, introduce
from lamorel_ext.rpc.wire.codec import (
    MAGIC,
    PREFIX,
    VERSION,
    Kind,
    Message,
    Packed,
    decode,
    encode,
    frame,
    pack,
)
from lamorel_ext.rpc.wire.fields import DTYPES, payload_bytes, read_specs
from lamorel_ext.types import (
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
    ResetRequest,
    SaveRequest,
    ScoreRequest,
    ScoreResult,
    UpdateRequest,
    UpdateResult,
)

_NESTED = {
    "a": [1, (2.5, None, {"k": True, 3: "x"})],
    "t": torch.arange(6).reshape(2, 3),
    "n": np.float32(0.5),
    "array": np.zeros((2, 0, 3)),
    "texts": np.array([["a", "bc"]]),
    "objects": np.array([None, {"z": 1}], dtype=object),
}
SAMPLES: tuple[Message, ...] = (
    ScoreRequest(("one", "zwei é"), (("a", "b"), ("a", "b")), ("value",)),
    ScoreResult(
        torch.tensor([0.5, -1.5]), (1, 1), {"m": torch.tensor([[True], [False]])}, {"s": 1.0}
    ),
    GenerateRequest(("p",), {"n": 3, "x": 0.5, "flag": True, "text": "t"}),
    GenerateResult(
        (("a", "b"),), torch.zeros(2), torch.ones(2, dtype=torch.int64), (2,), {"s": 1.0}
    ),
    UpdateRequest("u", ("p",), (("a",),), torch.rand(1), 3, {"e": torch.zeros(1, 2)}, {"o": 1}),
    UpdateResult({"loss": 0.5}),
    ForgetRequest(),
    ResetRequest(1, "fresh", ("x",)),
    SaveRequest("folder"),
    LoadRequest("folder"),
    InfoRequest(),
    InfoResult({"n": 1}),
    CallRequest("forward", _NESTED),
    CallResult(_NESTED),
    CloseRequest(),
    Done(),
    Failure(1, "llm server 0", "ValueError", "text", "trace"),
)
_SIZES = (0, 1, 2, 3, 2**31, 2**47, 2**48, 2**63, 10**30, -1)


def value(draw: random.Random, depth: int = 0) -> Any:
    """Anything that JSON can say, mostly what this format gives a meaning."""
    plain = (None, True, False, 0, 1, -1, 0.5, 10**400, 2**63, float("nan"), float("inf"), "", "a")
    kinds = 8 if depth < 4 else 3
    kind = draw.randrange(kinds)
    if kind == 0:
        return draw.choice(plain)
    if kind == 1:
        return draw.choice((*DTYPES, "value", "\ud800", "x" * draw.randrange(50), "os.system"))
    if kind == 2:
        return draw.choice(_SIZES)
    if kind == 3:
        return [value(draw, depth + 1) for _ in range(draw.randrange(4))]
    if kind == 4:
        return [draw.choice(_SIZES) for _ in range(draw.choice((0, 1, 2, 3, 8, 9, 70, 200)))]
    if kind == 5:
        tag = draw.choice(
            ("tensor", "array", "number", "dict", "tuple", "texts", "objects", "other")
        )
        found = {tag: value(draw, depth + 1)}
        return {**found, "shape": value(draw, depth + 1)} if tag in ("texts", "objects") else found
    if kind == 6:
        return {"distinct": value(draw, depth + 1), "places": value(draw, depth + 1)}
    return {"dtype": draw.choice((*DTYPES, "object", 3)), "shape": value(draw, depth + 1)}


def change(draw: random.Random, node: Any) -> Any:
    """The same JSON with one place of it replaced, left out, doubled or swapped."""
    if draw.random() < 0.06 or not isinstance(node, (dict, list)) or not node:
        return value(draw)
    keys = list(node) if isinstance(node, dict) else list(range(len(node)))
    key = draw.choice(keys)
    new = dict(node) if isinstance(node, dict) else list(node)
    how = draw.random()
    if key == "shape" and how < 0.5:
        new[key] = [draw.choice(_SIZES) for _ in range(draw.randint(0, 4))]
    elif how < 0.9:
        new[key] = change(draw, node[key])
    elif how < 0.93:
        del new[key]
    elif isinstance(new, list):
        new.append(node[key])
    else:
        new[draw.choice((*map(str, keys), "extra"))] = value(draw)
    return new


def made_up(draw: random.Random) -> bytes:
    """A frame whose lengths are right and whose header lies."""
    packed = pack(draw.choice(SAMPLES))
    header = json.loads(packed.header)
    for _ in range(draw.randint(1, 3)):
        header = change(draw, header)
    text = json.dumps(header).encode("ascii")
    num_bytes = announced(header)
    if not 0 <= num_bytes <= 2**16 or draw.random() < 0.1:
        num_bytes = draw.choice((packed.num_bytes, 0, 16))
    payload = b"".join(packed.buffers)[:num_bytes].ljust(num_bytes, b"\1")
    return b"".join(frame(Packed(text, (payload,), num_bytes)))


def announced(header: Any) -> int:
    """Bytes of tensors that a header speaks of; -1 where it is none."""
    try:
        return payload_bytes(read_specs(header["tensors"]))
    except (ValueError, TypeError, KeyError):
        return -1


def damaged(draw: random.Random) -> bytes:
    """A frame with some bytes of it changed, cut, doubled or from another one."""
    raw = bytearray(encode(draw.choice(SAMPLES)))
    for _ in range(draw.randint(1, 5)):
        place = draw.randrange(len(raw) + 1)
        how = draw.randrange(5)
        if how <= 1 and place < len(raw):
            raw[place] = draw.randrange(256)
        elif how == 2:
            del raw[place : place + draw.randrange(20)]
        elif how == 3:
            raw[place:place] = draw.randbytes(draw.randrange(20))
        else:
            other = encode(draw.choice(SAMPLES))
            raw[place:] = other[draw.randrange(len(other)) :]
    if len(raw) >= PREFIX.size and draw.random() < 0.5:
        # With lengths that are right, the damage is met further in.
        *first, header_bytes, _ = PREFIX.unpack(raw[: PREFIX.size])
        header_bytes = min(header_bytes, len(raw) - PREFIX.size)
        rest = len(raw) - PREFIX.size - header_bytes
        raw[: PREFIX.size] = PREFIX.pack(*first, header_bytes, rest)
    return bytes(raw)


def strange(draw: random.Random) -> bytes:
    """Bytes of a stranger, sometimes behind a prefix of ours."""
    raw = draw.randbytes(draw.randrange(100))
    if draw.random() < 0.5:
        numbers = [draw.choice((0, 1, len(raw), 2**31, 2**32 - 1)) for _ in range(2)]
        kind = draw.choice((*Kind, 99))
        raw = PREFIX.pack(MAGIC, draw.choice((VERSION, 0, 255)), kind, 1, 2, *numbers) + raw
    return raw


def read(raw: bytes) -> str:
    """Read as a rank does; says what became of it."""
    try:
        message = decode(raw)
    except ProtocolError:
        return "refused"
    assert dataclasses.is_dataclass(message)
    again = encode(message)
    assert encode(decode(again)) == again, "what comes through cannot be sent again"
    return "read"


def shake(draw: random.Random) -> str:
    """One handshake in which one end is a stranger."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(10.0)
        raw = draw.choice((b"LMRX\2" + draw.randbytes(120), draw.randbytes(draw.randrange(150))))
        theirs.sendall(raw[: draw.randrange(len(raw) + 1)])
        theirs.shutdown(socket.SHUT_WR)
        try:
            if draw.random() < 0.5:
                examine(ours, b"token", 1)
            else:
                introduce(ours, b"token", 0, 1)
        except (ProtocolError, OSError):
            return "refused"
    raise AssertionError("a stranger was let in")


def fuzz(num_cases: int, seed: int, limit_s: float = 1e9) -> tuple[dict[str, int], list[str]]:
    """Read so many inputs; gives counts, and what went wrong as text."""
    draw, counts, found = random.Random(seed), Counter({"cases": 0, "refused": 0, "read": 0}), []
    end = time.monotonic() + limit_s
    for number in range(num_cases):
        if time.monotonic() > end:
            break
        raw = b""
        counts["cases"] += 1
        try:
            how = draw.random()
            if how < 0.02:
                counts[shake(draw)] += 1
                continue
            raw = (made_up if how < 0.6 else damaged if how < 0.9 else strange)(draw)
            counts[read(raw)] += 1
        except Exception:
            counts["undocumented"] += 1
            found.append(f"case {number} of seed {seed}: {raw!r:.2000}\n{traceback.format_exc()}")
    return {**counts, "undocumented": counts["undocumented"]}, found


def main() -> int:
    """Entry; 1 where anything but a documented error came."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000, help="how many inputs")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs")
    parser.add_argument("--seconds", type=float, default=1e9, help="after which no more are tried")
    options = parser.parse_args()
    counts, found = fuzz(options.cases, options.seed, options.seconds)
    for text in found[:10]:
        print(text, file=sys.stderr)
    print(json.dumps(counts))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
