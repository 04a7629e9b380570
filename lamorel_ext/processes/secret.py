"""The secret that the ranks of a launch prove themselves with, and the private folder of this user.

It comes with the environment, which only this user's processes can read, or lies in a file that
only this user can open. It is never part of a command line, and never in the store, which every
machine that reaches the port can read.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
import tempfile
from pathlib import Path

from lamorel_ext.errors import ConfigError, RpcError

VARIABLE = "LAMOREL_EXT_TOKEN"
MIN_CHARACTERS = 16


def new_secret() -> str:
    """A random secret for one launch, as text for the variable or the file."""
    return secrets.token_hex(32)


def secret_of_environment(one_machine: bool) -> bytes | None:
    """The launch's secret; None where there is none and the ranks share a machine, so that a file
    will do.

    Raises:
        ConfigError: It is too short to be one, or the ranks of several machines have none in
            common.
    """
    text = os.environ.get(VARIABLE, "").strip()
    if text and len(text) < MIN_CHARACTERS:
        raise ConfigError(
            f"{VARIABLE} has {len(text)} characters, expected at least {MIN_CHARACTERS}"
        )
    if not text and not one_machine:
        raise ConfigError(
            f"{VARIABLE} is not set: ranks on several machines need a common secret; export the"
            f" same random text on each of them before the ranks start (export {VARIABLE}=$(openssl"
            " rand -hex 32)); a script of launchers --slurm does"
        )
    return hashlib.sha256(os.fsencode(text)).digest() if text else None


def write_secret(name: str) -> bytes:
    """Make a secret and lay it into a file of the private folder.

    Raises:
        RpcError: There is no private folder.
    """
    text = new_secret()
    file = os.open(
        private_folder() / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600
    )
    with os.fdopen(file, "w") as stream:
        stream.write(text)
    return hashlib.sha256(text.encode()).digest()


def read_secret(name: str) -> bytes:
    """What ``write_secret`` laid down under this name.

    Raises:
        RpcError: It is not there, or others could have read or written it.
    """
    path = private_folder() / Path(name).name
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(file) as stream:
            found = os.fstat(stream.fileno())
            if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
                raise RpcError(f"{path} does not belong to this user alone")
            return hashlib.sha256(stream.read().encode()).digest()
    except OSError as error:
        raise RpcError(
            f"the launch's secret cannot be read from {path}: {error.strerror}; where the ranks are"
            f" on several machines or in several containers, export {VARIABLE} with the same random"
            " text before they start"
        ) from error


def remove_secret(name: str) -> None:
    """Everybody has it."""
    (private_folder() / name).unlink(missing_ok=True)


def private_folder() -> Path:
    """A folder of this machine that only this user can enter.

    Raises:
        RpcError: Somebody else made it.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    root = (
        Path(runtime)
        if runtime and os.access(runtime, os.W_OK | os.X_OK)
        else Path(tempfile.gettempdir())
    )
    folder = root / f"lamorel_ext-{os.geteuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise RpcError(f"{folder} cannot be made: {error.strerror}") from error
    if (
        not stat.S_ISDIR(found.st_mode)
        or found.st_uid != os.geteuid()
        or stat.S_IMODE(found.st_mode) & 0o077
    ):
        raise RpcError(
            f"{folder} does not belong to this user alone; remove it, or set XDG_RUNTIME_DIR to a"
            " private folder"
        )
    return folder
