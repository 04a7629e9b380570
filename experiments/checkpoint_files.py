"""A checkpoint on disk: a folder of files, and a manifest with the checksum of each.

    step-N/client.safetensors, state.json, llm/   what the run goes on from
    step-N/metrics.csv                            the learning curve up to here
    step-N/manifest.json                          written last: size and SHA-256 of every other file
    current.json                                  names the folder of the last one

A folder counts once its manifest is whole. The checkpoint before the last is kept while a run goes
on, so that one damaged file costs the way between two checkpoints and not the run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from experiments.report.results import read_json, readable_json
from experiments.runs.files import replace_json, writing
from lamorel_ext.errors import CheckpointError

if TYPE_CHECKING:  # reports read checksums alone, and PyTorch takes seconds
    from torch import Tensor

    from lamorel_ext.training.recorder import Checkpoint, SaveLlm

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
CURRENT = "current.json"
CURVE = "metrics.csv"
TENSORS = "client.safetensors"
STATE = "state.json"


@dataclass(frozen=True)
class Stored:
    """A checkpoint that was read.

    Attributes:
        checkpoint: What the run goes on from.
        folder: Where it lies.
        curve: Text of the learning curve up to it; None in one of an earlier version.
        rows: Rows of that curve.
        traces: SHA-256 of the recorded rollouts before it, by file name.
        identity: Keys of the configuration that it was made with, by name.
    """

    checkpoint: Checkpoint
    folder: Path
    curve: str | None
    rows: int
    traces: Mapping[str, str]
    identity: Mapping[str, Any]


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- writing -------------------------------------------------------------------------------------


def write_checkpoint(
    root: Path,
    checkpoint: Checkpoint,
    save_llm: SaveLlm | None,
    curve: str,
    facts: Mapping[str, Any],
) -> None:
    """Write a checkpoint beside the last one and make it the current one; the last one is kept.

    Args:
        root: The folder ``checkpoints``.
        checkpoint: As the recorder got it.
        save_llm: Likewise.
        curve: Text of ``metrics.csv``.
        facts: ``rows``, ``traces`` and ``identity`` of ``Stored``.

    Raises:
        CheckpointError: It cannot be written; the last one is still the current one.
    """
    from safetensors.torch import save_file

    last = readable_json(root / CURRENT).get("folder")
    remove_others(root, last)
    name = f"step-{checkpoint.env_steps}"
    target = root / (name if last != name else f"{last}-again")
    with writing(target):
        if target.exists():  # what a crash has left of the very first checkpoint
            shutil.rmtree(target)
        target.mkdir(parents=True)
        try:
            save_file(_apart(checkpoint.tensors), target / TENSORS)
        except SafetensorError as error:
            raise OSError(str(error)) from error
        (target / STATE).write_text(json.dumps(checkpoint.state), encoding="utf-8")
        (target / CURVE).write_text(curve, encoding="utf-8", newline="")
    if save_llm is not None:
        save_llm(str((target / "llm").resolve()))
    with writing(target):
        files = {path.relative_to(target).as_posix(): _flushed(path) for path in _files(target)}
    if save_llm is not None and not any(name.startswith("llm/") for name in files):
        raise CheckpointError(
            f"{target}: the LLM server wrote its part on another machine; run.output_dir must be a"
            " folder that all machines share"
        )
    content = {
        "env_steps": checkpoint.env_steps,
        "llm": save_llm is not None,
        **facts,
        "files": files,
    }
    replace_json(target / MANIFEST, {"content": content, "sha256": _own_digest(content)})
    _point_to(target, content)


def go_on_from(stored: Stored) -> None:
    """Make the checkpoint that was read the current one, where a damaged one was: the next one
    keeps it until it is whole itself.

    Raises:
        CheckpointError: It cannot be written.
    """
    if readable_json(stored.folder.parent / CURRENT).get("folder") != stored.folder.name:
        _point_to(stored.folder, _read_manifest(stored.folder))


def _point_to(folder: Path, content: Mapping[str, Any]) -> None:
    """Name a whole checkpoint, with this content of its manifest, as the current one."""
    pointer = {key: content[key] for key in ("env_steps", "rows", "llm")}
    replace_json(
        folder.parent / CURRENT,
        {"folder": folder.name, **pointer, "manifest": _own_digest(content)},
    )


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each in memory of its own, as the format has it: tied weights share theirs."""
    found: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().contiguous()
        memory = own.untyped_storage().data_ptr()
        found[name] = own.clone() if memory in taken else own
        taken.add(memory)
    return found


def remove_others(root: Path, kept: object) -> None:
    """Remove what a crash, or the checkpoints before, have left; nothing where none is kept. Files
    and links are somebody else's.
    """
    if not isinstance(kept, str):
        return
    with writing(root):
        for other in root.glob("step-*"):
            if other.name != kept and other.is_dir() and not other.is_symlink():
                shutil.rmtree(other)


def _flushed(path: Path) -> dict[str, Any]:
    """Bring a file to the disk, before anything names it; gives its entry in the manifest."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return {"size": path.stat().st_size, "sha256": digest(path)}


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST)


def _own_digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# --- reading -------------------------------------------------------------------------------------


def read_stored(root: Path) -> Stored | None:
    """The last whole checkpoint below ``root``; None where there never was one.

    A damaged one is passed over with a warning where an earlier one is whole.

    Raises:
        CheckpointError: There is one, but none is whole; the message names the damaged file.
    """
    problems = []
    for folder, known in _candidates(root):
        try:
            stored = _read_folder(folder, known)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        if problems:
            log.warning("DAMAGED CHECKPOINT: %s", "; ".join(problems))
            log.warning(
                "going on from %s, at step %d, instead", folder, stored.checkpoint.env_steps
            )
        return stored
    if not problems and _pointer_problem(root):
        problems.append(_pointer_problem(root))
    if problems:
        raise CheckpointError(f"{'; '.join(problems)}. Without {root} the run starts over")
    return None


def curve_is_damaged(folder: Path) -> bool:
    """True where the curve is not the one that the last checkpoint holds, so that resuming the run
    mends it.
    """
    files: Mapping[str, dict[str, str]] = _last_content(folder / "checkpoints").get("files", {})
    if CURVE not in files:
        return False
    try:
        return digest(folder / CURVE) != files[CURVE]["sha256"]
    except OSError:
        return True


def stored_identity(root: Path) -> Mapping[str, Any] | None:
    """Keys of the configuration that the last checkpoint was made with; None where it cannot be
    told.
    """
    return _last_content(root).get("identity")


def stored_steps(root: Path) -> int:
    """Environment steps up to the last checkpoint; 0 where there is none."""
    return int(_last_content(root).get("env_steps", 0))


def _last_content(root: Path) -> Mapping[str, Any]:
    """What the manifest of the last checkpoint says, or the pointer to one that has none."""
    for folder, known in _candidates(root):
        try:
            return known or _read_manifest(folder)
        except CheckpointError:
            continue
    return {}


def _candidates(root: Path) -> Iterator[tuple[Path, dict[str, Any] | None]]:
    """Folders that may hold the checkpoint, best first; with a pointer that has no manifest."""
    pointer = readable_json(root / CURRENT)
    named = pointer.get("folder")
    if isinstance(named, str) and named.startswith("step-") and named == Path(named).name:
        legacy = "manifest" not in pointer and not (root / named / MANIFEST).exists()
        if not legacy or _is_pointer(pointer):
            yield root / named, pointer if legacy else None
    else:
        named = None
    others = [
        path for path in root.glob("step-*") if path.name != named and (path / MANIFEST).is_file()
    ]
    yield from ((path, None) for path in sorted(others, key=_last_first, reverse=True))


def _last_first(folder: Path) -> tuple[int, float]:
    digits = folder.name.split("-")[1]
    return int(digits) if digits.isdecimal() else -1, (folder / MANIFEST).stat().st_mtime


def _is_pointer(found: Mapping[str, Any]) -> bool:
    """Whether this is what an earlier version wrote."""
    kinds = {"env_steps": int, "rows": int, "llm": bool}
    return all(type(found.get(key)) is kind and found[key] >= 0 for key, kind in kinds.items())


def _pointer_problem(root: Path) -> str:
    path = root / CURRENT
    if not path.exists():
        return ""
    try:
        return f"{path} names no checkpoint: {read_json(path)}"
    except CheckpointError as error:
        return str(error)


def _read_folder(folder: Path, pointer: Mapping[str, Any] | None) -> Stored:
    """Raises CheckpointError where a file is missing, damaged or not what the manifest says."""
    if pointer is None:
        facts: Mapping[str, Any] = _read_manifest(folder)
        for name, entry in facts["files"].items():
            _check_file(folder / name, entry)
    else:
        log.warning("%s is of an earlier version, without checksums: it is taken as it is", folder)
        facts = pointer
    from safetensors.torch import load_file

    from lamorel_ext.training.recorder import Checkpoint

    path = folder / TENSORS
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not (folder / STATE).exists():
        raise CheckpointError(f"{folder / STATE} is missing")
    llm = str((folder / "llm").resolve()) if facts["llm"] else None
    checkpoint = Checkpoint(facts["env_steps"], tensors, read_json(folder / STATE), llm)
    curve = None if pointer is not None else (folder / CURVE).read_text(encoding="utf-8")
    traces, identity = facts.get("traces", {}), facts.get("identity", {})
    return Stored(checkpoint, folder, curve, facts["rows"], traces, identity)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.exists():
        raise CheckpointError(f"{path} is missing")
    found = read_json(path)
    content = found.get("content")
    if not isinstance(content, dict) or _own_digest(content) != found.get("sha256"):
        raise CheckpointError(f"{path} is damaged: it does not have its own checksum")
    return content


def _check_file(path: Path, entry: Mapping[str, Any]) -> None:
    try:
        size = path.stat().st_size
        same = size == entry["size"] and digest(path) == entry["sha256"]
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    if not same:
        why = (
            "its checksum differs"
            if size == entry["size"]
            else f"{size} bytes, not {entry['size']}"
        )
        raise CheckpointError(f"{path} is damaged since it was written: {why}")
