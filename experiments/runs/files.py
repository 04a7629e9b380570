"""Files that are whole or not there: atomic replacement, and one kind of error for a disk that is
full or closed.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import json
import logging
import math
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lamorel_ext.errors import CheckpointError, WriteError
from lamorel_ext.processes.identity import this_process

log = logging.getLogger(__name__)

LONGEST_NAME = 255
"""Bytes of a file's or folder's name, on the file systems that people have."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the operating system says about ``path`` into an error that names it.

    Raises:
        WriteError: The disk is full, the folder is read-only, and the like.
    """
    try:
        yield
    except OSError as error:
        raise WriteError(f"{path} cannot be written: {error.strerror or error}") from error


def why_not_writable(folder: Path) -> str:
    """Why nothing could be written into a folder that need not be there yet; empty where something
    could.
    """
    for part in folder.parts:
        if len(os.fsencode(part)) > LONGEST_NAME:
            return f"{part[:20]}...: a name has at most {LONGEST_NAME} bytes"
    # Path.exists would raise where a folder above it is closed to us.
    there = next(place for place in (folder, *folder.absolute().parents) if os.path.exists(place))
    if not there.is_dir():
        return f"{there} is not a folder"
    return "" if os.access(there, os.W_OK | os.X_OK) else f"{there} may not be written into"


def folder_to_write(text: str) -> Path:
    """A command line's folder, refused at once where it could not be written in the end; as
    ``type`` of an argument, whose default goes this way too where it is a text.
    """
    folder = Path(os.path.expanduser(text))  # a shell leaves the ``~`` of ``--output=~/x`` as it is
    if reason := why_not_writable(folder):
        raise argparse.ArgumentTypeError(f"{text} cannot be written: {reason}")
    return folder


def file_to_write(text: str) -> Path:
    """The same for a file."""
    file = Path(os.path.expanduser(text))
    if os.path.isdir(file):  # Path.is_dir would raise where a folder above it is closed to us
        raise argparse.ArgumentTypeError(f"{text} cannot be written: it is a folder")
    if reason := why_not_writable(file.parent):
        raise argparse.ArgumentTypeError(f"{text} cannot be written: {reason}")
    return file


@contextmanager
def held_alone(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder for as long as the context lasts; the system lets go of
    it when this process dies.

    Raises:
        CheckpointError: Another process holds it; names that process.
    """
    path = folder / ".lock"
    with writing(path):
        # Unbuffered: closing would try once more to write what found no room, outside ``writing``.
        file = path.open("ab+", buffering=0)
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.readline().decode(errors="replace").strip() or "another process"
            raise CheckpointError(
                f"{folder} is in use by {holder}: two processes cannot write one run"
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise CheckpointError(f"{path} cannot be locked: {error.strerror}") from error
            log.warning(
                "%s cannot be locked on this file system; nothing keeps a second process out of it",
                path,
            )
        with writing(path):
            file.truncate(0)
            own = this_process()
            file.write(f"{own} on {socket.gethostname()}\n{own.text}\n".encode())
        yield


def replace_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` so that a reader, or a crash, sees the old file or the new one and
    nothing between.

    Raises:
        CheckpointError: It cannot be written; the old file is still there.
    """
    part = path.with_name(path.name + ".part")
    with writing(path):
        try:
            with part.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except OSError:
            part.unlink(missing_ok=True)
            raise


def replace_json(path: Path, value: Mapping[str, Any]) -> None:
    """``replace_text`` with JSON."""
    replace_text(path, json.dumps(value, indent=1) + "\n")


def csv_cell(number: float | None) -> str:
    """A number in full precision; empty where there is none, or NaN."""
    if number is None or math.isnan(number):
        return ""
    return (
        repr(int(number))
        if math.isfinite(number) and number == int(number) and abs(number) < 1e15
        else repr(float(number))
    )
