"""Who may connect: both ends of a new connection prove that they know the launch's token, without
showing it.

The server sends a random challenge; the peer answers with its rank, a challenge of its own and a
keyed hash over all of it; the server answers with a keyed hash in turn, and the peer says that it
is still there: one that was stopped or cut off for too long has given up and tries again on another
connection. Everything has a fixed size, so that a stranger can make nobody read or store more than
that.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import socket
import struct

from lamorel_ext.errors import ProtocolError
from lamorel_ext.rpc.wire.codec import MAGIC, VERSION

_CHALLENGE = struct.Struct("!4sB16s")
_REPLY = struct.Struct("!4sBI16s32s")
_PROOF_BYTES = 32
_REFUSAL = bytes(_PROOF_BYTES)
"""In place of a server's proof: who does not know the token must not try again and again."""

_HERE = b"\1"
"""The peer's last word: it has not given up."""


def introduce(sock: socket.socket, token: bytes, my_rank: int, server_rank: int) -> None:
    """Prove to the server at the other end who we are, and let it prove that it is ours.

    Raises:
        ProtocolError: It is not a server of this launch, or it refused us.
        OSError: The connection broke or nothing came in time.
    """
    magic, version, challenge = _CHALLENGE.unpack(_receive(sock, _CHALLENGE.size))
    if (magic, version) != (MAGIC, VERSION):
        raise ProtocolError(
            f"rank {server_rank} speaks another protocol: {magic!r} version {version}"
        )
    mine = secrets.token_bytes(16)
    sock.sendall(
        _REPLY.pack(MAGIC, VERSION, my_rank, mine, _proof(token, b"peer", challenge, mine, my_rank))
    )
    answer = _receive(sock, _PROOF_BYTES)
    if hmac.compare_digest(answer, _REFUSAL):
        raise ProtocolError(
            f"rank {server_rank} refused rank {my_rank}: the two do not have the same token"
        )
    if not hmac.compare_digest(answer, _proof(token, b"server", challenge, mine, server_rank)):
        raise ProtocolError(
            f"what listens in the place of rank {server_rank} does not know this launch's token"
        )
    sock.sendall(_HERE)


def examine(sock: socket.socket, token: bytes, server_rank: int) -> int:
    """Let a peer that has just connected prove who it is.

    Returns:
        Its global rank.

    Raises:
        ProtocolError: It does not belong to this launch.
        OSError: The connection broke, nothing came in time, or the peer had given up.
    """
    challenge = secrets.token_bytes(16)
    sock.sendall(_CHALLENGE.pack(MAGIC, VERSION, challenge))
    magic, version, rank, theirs, proof = _REPLY.unpack(_receive(sock, _REPLY.size))
    expected = _proof(token, b"peer", challenge, theirs, rank)
    known = hmac.compare_digest(proof, expected)
    if (magic, version) == (MAGIC, VERSION) and not known:
        sock.sendall(_REFUSAL)
    if (magic, version) != (MAGIC, VERSION) or not known:
        raise ProtocolError("a stranger connected; it does not know this launch's token")
    sock.sendall(_proof(token, b"server", challenge, theirs, server_rank))
    sock.settimeout(None)  # one of ours: it says that it is there, or closes
    if _receive(sock, len(_HERE)) != _HERE:
        raise ProtocolError(f"rank {rank} broke off the handshake")
    return int(rank)


def _proof(token: bytes, side: bytes, challenge: bytes, mine: bytes, rank: int) -> bytes:
    return hmac.digest(token, side + challenge + mine + rank.to_bytes(4, "big"), hashlib.sha256)


def _receive(sock: socket.socket, num_bytes: int) -> bytes:
    received = b""
    while len(received) < num_bytes:
        part = sock.recv(num_bytes - len(received))
        if not part:
            raise ConnectionError("the connection was closed during the handshake")
        received += part
    return received
