"""What decides the bytes of a shard besides options and input: versions of packages, and our own code."""

import functools
import hashlib
import importlib.metadata
from collections.abc import Iterable
from pathlib import Path

FEATURES = "1.1.0"  # version of the record's features
_PACKAGES = ("array_record", "numpy", "opencv-python-headless", "tensorflow-datasets")
_DECODERS = ("pydicom", "pillow")  # of the extra `dicom`: absent where nothing needs them
# Modules between the files of a release and the bytes of a record; those of the source come on top.
_MODULES = (
    *("archives", "dicom", "images", "keys", "passthrough", "rasters", "records"),
    *("reports", "section_rules", "sections", "shards", "sources", "zip_directory"),
)
_HERE = Path(__file__).parent


def versions_of(source: object) -> dict[str, str]:
    """Versions by name for the manifest and for `shards.write_shard`, which writes a shard anew where one of them differs.

    Args:
      source: the data set; "code" is a hash of the modules that make its records.
    """
    packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"features": FEATURES, "code": code_hash(code_files(type(source))), **packages, **_installed(_DECODERS)}


def code_files(source: type) -> tuple[Path, ...]:
    """The files whose code decides the bytes of a source's records, by name: ours, and those of its class and its base classes."""
    package = __package__ or ""
    own = {base.__module__ for base in source.__mro__ if base.__module__.startswith(f"{package}.")}
    relative = {name.removeprefix(f"{package}.").replace(".", "/") for name in own}
    return tuple(_HERE / f"{name}.py" for name in sorted({*_MODULES, *relative}))


@functools.cache
def code_hash(files: tuple[Path, ...]) -> str:
    """SHA-256 over the files' names and contents, in hex."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _installed(packages: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
