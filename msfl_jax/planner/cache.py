"""Compiled steps on disk: what was measured of each, and the text of its program, under a hash of all that it depends on."""

import gzip
import hashlib
import importlib.metadata
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msfl_jax.config import Config, to_dict
from msfl_jax.planner.protocol import Compiled, TooLarge

# Sections and keys of a configuration that a compiled step does not depend on.
_ELSEWHERE = ("name", "zero_shot", "grounding", "retrieval", "probe", "init_from", "data")
# Distributions whose versions it depends on, and variables that compilers read.
_DISTRIBUTIONS = ("jax", "jaxlib", "libtpu", "jax-cuda13-plugin", "jax-cuda12-plugin", "flax", "optax")
_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_DEFAULT_MATMUL_PRECISION", "JAX_ENABLE_X64")
# Modules that a step is made of.
_SOURCES = ("encoders", "losses", "parallel", "train", "planner/compiler.py", "planner/topology.py")
_SOURCES += ("gradient_cache.py", "heads.py", "model.py", "objective.py", "vectors.py")
_PACKAGE = Path(__file__).parents[1]


class Cache:
    """A folder with two files for each compiled step; a file that cannot be read counts as missing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, key: str) -> Compiled | TooLarge | None:
        """What was found of a step before."""
        try:
            values = json.loads((self._folder / f"{key}.json").read_text())
            if "too_large" in values:
                return read_too_large(values["too_large"])
            found = Compiled.read(values["compiled"])
            read_text(self.program(key))
        except (OSError, ValueError, TypeError, KeyError, EOFError, zlib.error):
            return None
        return found

    def write(self, key: str, values: Mapping[str, Any]) -> None:
        """Keeps the answer of the process that compiled, whole or not at all; its program's text is there already."""
        self._folder.mkdir(parents=True, exist_ok=True)
        _replace(self._folder / f"{key}.json", json.dumps(values).encode())

    def program(self, key: str) -> Path:
        """Where the text of a step's program lies."""
        return self._folder / f"{key}.hlo.gz"


def default_folder(environment: Mapping[str, str]) -> Path:
    """`msfl_jax/plans` in XDG_CACHE_HOME, else in ~/.cache."""
    base = environment.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "msfl_jax" / "plans"


def key_of(
    config: Config, vocab_size: int, topology: str, environment: Mapping[str, str], *, quick: bool = False
) -> str:
    """A hash of everything that a compiled step depends on: configuration, machines, versions, compiler flags, and the sources of the step."""
    values = {name: value for name, value in to_dict(config).items() if name not in _ELSEWHERE}
    values["train"] = {name: values["train"][name] for name in ("steps", "microbatches")}
    parts = {
        "config": values | {"batch_size": config.data.batch_size},
        "vocab_size": vocab_size,
        "topology": topology,
        "quick": quick,
        "versions": versions(),
        "variables": {name: environment.get(name, "") for name in _VARIABLES},
        "sources": _hash_of_sources(_SOURCES),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def versions() -> dict[str, str]:
    """Versions of what compiles, as far as it is installed."""
    found = {}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def read_too_large(values: Mapping[str, float | None]) -> TooLarge:
    """From JSON, where a number that is not known is null."""
    return TooLarge(**{name: value for name, value in values.items() if value is not None})


def write_text(file: Path, text: str) -> None:
    """Writes a text compressed, whole or not at all; its folder is made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    _replace(file, gzip.compress(text.encode(), compresslevel=3))


def read_text(file: Path) -> str:
    """What `write_text` wrote.

    Raises:
      OSError, EOFError, zlib.error: the file is missing or damaged.
    """
    return gzip.decompress(file.read_bytes()).decode()


def _replace(file: Path, content: bytes) -> None:
    draft = file.with_name(f"{file.name}.{os.getpid()}.partial")
    draft.write_bytes(content)
    os.replace(draft, file)


def _hash_of_sources(names: Sequence[str]) -> str:
    files = sorted(file for name in names for file in _python_files(_PACKAGE / name))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _python_files(path: Path) -> list[Path]:
    return [path] if path.suffix == ".py" else list(path.glob("*.py"))
