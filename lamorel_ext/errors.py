"""Every error that this package raises on purpose::

    LamorelExtError
    ├── ConfigError         a key is unknown, has the wrong type or an impossible value
    ├── RequestError        cannot be answered: empty prompts, wrong candidates, prompt too long
    ├── ModelLoadError      a model, tokenizer or weights file is missing, corrupt or unfitting
    ├── CheckpointError     a checkpoint cannot be written or read
    │   ├── NotThereError   what the user named is not a run folder
    │   └── WriteError      a file cannot be written
    ├── UpdateError         an update was abandoned: not finite, or another server failed in it
    ├── LevelError          a level does not exist, or calls come in an illegal order
    ├── EnvError            an environment of the user's own returned something invalid
    ├── EnvWorkerError      a process that steps environments raised, died or fell silent
    └── RpcError
        ├── RemoteError     the peer raised; carries its rank, type and traceback
        ├── PeerDiedError   the peer's process is gone
        ├── ProtocolError   bytes on the wire that are not ours
        └── RequestTimeout  no answer within the time allowed

Everything a user can cause ends in one of these, with a message that names the key, file or rank.
``exit_status`` is what a program ends with (``experiments/runs/entry.py`` has the table): 2 for
what the user said wrong, 1 for what went wrong.
"""

from __future__ import annotations

from collections.abc import Sequence


class LamorelExtError(Exception):
    """Base of all errors raised on purpose by this package."""

    exit_status = 1


class ConfigError(LamorelExtError):
    """The configuration cannot be used.

    Args:
        problems: One line per problem, each naming its key.
    """

    exit_status = 2

    def __init__(self, problems: Sequence[str] | str) -> None:
        self.problems: tuple[str, ...] = (
            (problems,) if isinstance(problems, str) else tuple(problems)
        )
        head = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__(
            f"{head} in the configuration:\n" + "\n".join(f"  - {p}" for p in self.problems)
        )


class RequestError(LamorelExtError):
    """A request that can never be answered, whatever the state of the server."""


class ModelLoadError(LamorelExtError):
    """A model, tokenizer or weights file is missing, corrupt or of another shape."""

    exit_status = 2


class CheckpointError(LamorelExtError):
    """A checkpoint cannot be written or read; the message names the file."""


class NotThereError(CheckpointError):
    """What the user named is not a run folder."""

    exit_status = 2


class WriteError(CheckpointError):
    """A file cannot be written: the disk is full, the folder read-only, and the like."""


class UpdateError(LamorelExtError):
    """An update was abandoned: a loss or gradient is not finite, or another server failed in it."""


class LevelError(LamorelExtError):
    """A level does not exist, or an environment was called in an illegal order."""


class EnvError(LamorelExtError):
    """An environment of the user's own returned something invalid."""


class EnvWorkerError(LamorelExtError):
    """A process that steps environments raised, died or gave no answer in time; the others have
    been ended.

    Args:
        worker: Number of the process.
        detail: What was seen.
        remote_traceback: Its traceback, as text; empty where it died without one.
    """

    def __init__(self, worker: int, detail: str, remote_traceback: str = "") -> None:
        self.worker, self.detail, self.remote_traceback = worker, detail, remote_traceback
        shown = (
            f"\n--- traceback of environment worker {worker} ---\n{remote_traceback}"
            if remote_traceback
            else ""
        )
        super().__init__(f"environment worker {worker} {detail}{shown}")


class RpcError(LamorelExtError):
    """Base of everything that can go wrong between two ranks."""


class RemoteError(RpcError):
    """The peer raised while it worked on our request.

    Args:
        rank: Global rank of the peer.
        role: ``"llm server 0"`` or ``"rl client 0"``.
        type_name: Name of the exception's type over there.
        message: Its message.
        remote_traceback: Its traceback, as text.
    """

    def __init__(
        self, rank: int, role: str, type_name: str, message: str, remote_traceback: str
    ) -> None:
        self.rank, self.role = rank, role
        self.type_name, self.message, self.remote_traceback = type_name, message, remote_traceback
        super().__init__(
            f"rank {rank} ({role}) raised {type_name}: {message}\n--- traceback of rank {rank}"
            f" ---\n{remote_traceback}"
        )


class PeerDiedError(RpcError):
    """The peer's process ended without an answer.

    Args:
        rank: Global rank of the peer.
        role: ``"llm server 0"`` or ``"rl client 0"``.
        detail: What was seen (connection closed, reset, no heartbeat).
    """

    def __init__(self, rank: int, role: str, detail: str) -> None:
        self.rank, self.role, self.detail = rank, role, detail
        super().__init__(f"rank {rank} ({role}) died: {detail}")


class ProtocolError(RpcError):
    """The peer sent bytes that are not a message of ours."""


class RequestTimeout(RpcError):
    """No answer within the time allowed; the message names the rank and the seconds."""
