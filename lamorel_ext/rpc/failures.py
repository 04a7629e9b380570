"""Exceptions on their way to another process: as a ``Failure`` on the wire, as a ``RemoteError``
over there.
"""

from __future__ import annotations

import traceback

from lamorel_ext.errors import PeerDiedError, RemoteError
from lamorel_ext.types import Failure

MAX_TRACEBACK_CHARACTERS = 100_000


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
    return Failure(rank, role, type(error).__name__, str(error), text[-MAX_TRACEBACK_CHARACTERS:])


def error_of(failure: Failure) -> RemoteError | PeerDiedError:
    """The exception to raise where the failure arrives."""
    if failure.type_name == PeerDiedError.__name__:
        return PeerDiedError(failure.rank, failure.role, failure.message)
    return RemoteError(
        failure.rank, failure.role, failure.type_name, failure.message, failure.remote_traceback
    )
