"""The sha256 of every file of an export, in `manifest.json`, and whether a folder still agrees with it."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from input_pipeline.errors import CheckpointError, UserError
from input_pipeline.tables import file_hash

MANIFEST = "manifest.json"
_LISTED = 5  # names in an error, at most


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """Lists all files below `folder` with their sizes and hashes, after `facts`; the digest is of all the rest of the manifest."""
    files = {name: _entry(folder / name) for name in files_in(folder)}
    values = {**facts, "files": files}
    (folder / MANIFEST).write_bytes(_text(values | {"digest": _digest(values)}))


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an export.

    Raises:
      UserError: there is none.
      CheckpointError: a byte of it has changed.
    """
    try:
        data = (folder / MANIFEST).read_bytes()
    except OSError:
        raise UserError(f"{folder}: no {MANIFEST}; expected a folder of `msfl export`") from None
    try:
        values = json.loads(data)
        digest = values["digest"]
        rest = {key: value for key, value in values.items() if key != "digest"}
        whole = digest == _digest(rest) and data == _text(values) and isinstance(values["files"], dict)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise CheckpointError(f"{folder / MANIFEST}: damaged; expected what `msfl export` wrote; export the run again")
    return values


def refuse_changes(folder: Path) -> int:
    """How many files agree with the manifest, which is all of them.

    Raises:
      UserError: there is no manifest.
      CheckpointError: files are missing, have changed, or are not of the export; names some.
    """
    known, found = read_manifest(folder)["files"], set(files_in(folder))
    changed = sorted(name for name in known.keys() & found if _entry(folder / name) != known[name])
    causes = {
        "missing": known.keys() - found,
        "changed (sha256 differs)": changed,
        "not of the export": found - set(known),
    }
    text = "; ".join(f"{cause}: {_shortened(sorted(names))}" for cause, names in causes.items() if names)
    if text:
        raise CheckpointError(f"{folder}: {text}; export the run again")
    return len(known)


def refuse_other_bytes(file: Path, sha256: str) -> None:
    """Compares a file with the manifest of the export that it lies in, at its top or one folder below; other files pass.

    Args:
      file: of weights.
      sha256: of its bytes.

    Raises:
      CheckpointError: the manifest knows the file with other bytes, or is damaged.
    """
    file = file.absolute()
    for folder in (file.parent, file.parent.parent):
        if not _is_manifest(folder / MANIFEST):
            continue
        known = read_manifest(folder)["files"].get(file.relative_to(folder).as_posix())
        if isinstance(known, Mapping) and known.get("sha256") != sha256:
            raise CheckpointError(f"{file}: changed since it was exported (sha256 differs); export the run again")


def files_in(folder: Path) -> list[str]:
    """Paths of all files below a folder, sorted, without the manifest; links are files too."""
    found = [
        (Path(parent) / name).relative_to(folder).as_posix()
        for parent, folders, names in os.walk(folder)
        for name in [*names, *(name for name in folders if (Path(parent) / name).is_symlink())]
    ]
    return sorted(name for name in found if name != MANIFEST)


def _entry(file: Path) -> dict[str, Any]:
    """Size and hash of a file; those of a link are no export's."""
    if not file.is_file() or file.is_symlink():
        return {"bytes": -1, "sha256": ""}
    return {"bytes": file.stat().st_size, "sha256": file_hash(file)}


def _is_manifest(file: Path) -> bool:
    """Whether a file of that name is an export's: other programs write a `manifest.json` too."""
    try:
        values = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(values, dict) and {"files", "digest"} <= values.keys()


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(_text(values)).hexdigest()


def _text(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, sort_keys=True) + "\n").encode()


def _shortened(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
