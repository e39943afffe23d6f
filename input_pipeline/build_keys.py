"""Keys of the patients, images and pixels of a build's splits: read from its records once, then kept beside its manifest."""

import contextlib
import hashlib
import os
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from input_pipeline.manifest import Manifest
from input_pipeline.progress import Progress
from input_pipeline.reading import open_split

_FOLDER = ".keys"
_BYTES = 16  # of a key
_MANY = 5_000  # records; fewer are read in a moment


@dataclass
class SplitKeys:
    """Keys of the patients and images of a split; `pixels_of` an image is "" in builds without hashes of pixels."""

    patients: set[str] = field(default_factory=set)
    pixels_of: dict[str, str] = field(default_factory=dict)

    @property
    def pixels(self) -> frozenset[str]:
        """Hashes of the pixels of all images."""
        return frozenset(filter(None, self.pixels_of.values()))

    def images_in(self, others: "SplitKeys") -> int:
        """Number of images that are among the others, under the same identifier or with the same pixels."""
        pixels = others.pixels
        return sum(image in others.pixels_of or key in pixels for image, key in self.pixels_of.items())


def read_keys(directory: Path | str, split: str, kept: Path | None, *, progress: bool = False) -> SplitKeys:
    """The keys of a split or subset.

    Args:
      directory: of the build.
      split: of it.
      kept: file that holds them, or will, as far as it can be written; see `keys_file`.
      progress: shows rate and remaining time on stderr while many records are read.

    Raises:
      UserError, DataError: as in `reading.open_split`.
    """
    records = open_split(directory, split)  # checks the shards, whether they are read or not
    if kept is not None and (known := _load(kept)) is not None:
        return known
    keys, total = SplitKeys(), len(records)
    with Progress("keys of records", total, "records", shown=progress and total >= _MANY) as shown:
        for number, record in enumerate(records, 1):
            keys.patients.add(record.patient_key)
            keys.pixels_of[record.image_key] = record.pixel_key
            shown.update(number)
    if kept is not None:
        _save(keys, kept)
    return keys


def keys_file(directory: Path | str, manifest: Manifest, split: str) -> Path:
    """Where the keys of a split are kept: the name is a hash of its shards, so that another build's are never taken for its own."""
    whole = manifest.split_of(split)
    digest = hashlib.sha256("\n".join(shard.sha256 for shard in manifest.splits[whole].shards).encode())
    if split != whole:
        digest.update(f"\n{split} {manifest.subsets[split].members}".encode())
    return Path(directory) / _FOLDER / f"{digest.hexdigest()[:32]}.npz"


def _load(file: Path) -> SplitKeys | None:
    """None where there is no such file, or not a whole one."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            patients, images, pixels = (arrays[name] for name in ("patients", "images", "pixels"))
            keys = _unpack(images), _unpack(pixels)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    nothing = bytes(_BYTES).hex()
    pixels_of = {image: "" if key == nothing else key for image, key in zip(*keys, strict=True)}
    return SplitKeys(set(_unpack(patients)), pixels_of)


def _save(keys: SplitKeys, file: Path) -> None:
    """A folder that cannot be written to costs the next check its time, nothing else."""
    draft = file.with_name(f"{file.name}.{os.getpid()}.tmp.npz")
    patients, images, pixels = (
        _pack(part) for part in (sorted(keys.patients), keys.pixels_of, keys.pixels_of.values())
    )
    with contextlib.suppress(OSError):
        file.parent.mkdir(exist_ok=True)
        np.savez(draft, patients=patients, images=images, pixels=pixels)
        os.replace(draft, file)


def _pack(keys: Iterable[str]) -> UInt8[np.ndarray, "N 16"]:
    return np.frombuffer(b"".join(bytes.fromhex(key).rjust(_BYTES, b"\0") for key in keys), np.uint8).reshape(
        -1, _BYTES
    )


def _unpack(keys: UInt8[np.ndarray, "N 16"]) -> list[str]:
    return [key.tobytes().hex() for key in keys]
