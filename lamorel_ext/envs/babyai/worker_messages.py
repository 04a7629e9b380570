"""What the process of a batch and its workers say to each other: a JSON object, followed by raw
bytes. Nothing that arrives can run code.
"""

from __future__ import annotations

import json
from typing import Any

_LENGTH_BYTES = 4


def packed(fields: dict[str, Any], raw: bytes = b"") -> bytes:
    """A message."""
    text = json.dumps(fields).encode("ascii")
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text + raw


def unpacked(message: bytes) -> tuple[dict[str, Any], bytes]:
    """Fields and raw bytes of a message."""
    end = _LENGTH_BYTES + int.from_bytes(message[:_LENGTH_BYTES], "little")
    return json.loads(message[_LENGTH_BYTES:end]), message[end:]
