"""Exceptions on their way to another process: as a ``Failure`` on the wire, as a ``RemoteError`` over there."""

from __future__ import annotations

import traceback

from lamorel_ext.errors import RemoteError
from lamorel_ext.types import Failure

MAX_TRACEBACK_CHARACTERS = 100_000


def failure_of(error: BaseException, rank: int, role: str) -> Failure:
    """The exception as a message, with its traceback as text.

    Args:
        error: What was raised here.
        rank: Global rank of this process.
        role: ``"llm server 0"`` or ``"rl client 0"``.
    """
    text = "".join(traceback.format_exception(error))
    return Failure(rank, role, type(error).__name__, str(error), text[-MAX_TRACEBACK_CHARACTERS:])


def error_of(failure: Failure) -> RemoteError:
    """The exception to raise where the failure arrives."""
    return RemoteError(failure.rank, failure.role, failure.type_name, failure.message, failure.remote_traceback)
