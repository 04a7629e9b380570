"""Exceptions on their way to another process: as a ``Failure`` on the wire, as a ``RemoteError``
over there.
"""

from __future__ import annotations

import traceback

from lamorel_ext.errors import PeerDiedError, RemoteError
from lamorel_ext.types import Failure

MAX_TRACEBACK_CHARACTERS = 100_000
MAX_MESSAGE_CHARACTERS = 100_000


def failure_of(error: BaseException, rank: int, role: str) -> Failure:
    """The exception as a message, with its traceback as text.

    News of a third rank, that it raised or died, is passed on as that rank's: whoever hears it from
    two sides hears the same.

    Args:
        error: What was raised here.
        rank: Global rank of this process.
        role: ``"llm server 0"`` or ``"rl client 0"``.
    """
    if isinstance(error, RemoteError):
        return Failure(
            error.rank, error.role, error.type_name, error.message, error.remote_traceback
        )
    if isinstance(error, PeerDiedError):
        return Failure(error.rank, error.role, PeerDiedError.__name__, error.detail, "")
    text = "".join(traceback.format_exception(error))
    return Failure(
        rank, role, type(error).__name__, _message_of(error), text[-MAX_TRACEBACK_CHARACTERS:]
    )


def _message_of(error: BaseException) -> str:
    """Whatever somebody's exception is like: it must not take the place of the failure."""
    try:
        return str(error)[:MAX_MESSAGE_CHARACTERS]
    except Exception as second:
        return f"without a text: its __str__ raised {type(second).__name__}"


def error_of(failure: Failure) -> RemoteError | PeerDiedError:
    """The exception to raise where the failure arrives."""
    if failure.type_name == PeerDiedError.__name__:
        return PeerDiedError(failure.rank, failure.role, failure.message)
    return RemoteError(
        failure.rank, failure.role, failure.type_name, failure.message, failure.remote_traceback
    )
