"""SHA256SUMS.txt of a PhysioNet release: what its tables and images must hash to, and whether a source's tables do."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from input_pipeline import progress, tables
from input_pipeline.compact import Digests, Names
from input_pipeline.errors import DataError, UserError

SUMS_NAME = "SHA256SUMS.txt"
ABSENT = "absent"
_LINE = re.compile(r"([0-9A-Fa-f]{64}) [ *]?(\S.*)")


@dataclass(frozen=True)
class Checksums:
    """SHA-256 in hex: of the files beside the list by name, and of images by their name without folder and ".jpg"."""

    files: Mapping[str, str]
    images: Mapping[str, str]


@dataclass
class Inputs:
    """The tables that a scan reads: their hashes by role, each compared with the release's list where there is one.

    Attributes:
      checksums: of the release, or None where it has none.
      hashes: what a manifest keeps; "checksums" is the hash of the list itself, or "absent".
      refuse: called with the error of a file that is not what its list says; raises it, or goes on.
      unlisted: how many of these files the list does not name.
    """

    checksums: Checksums | None
    refuse: tables.Refuse
    hashes: dict[str, str] = field(default_factory=dict)
    unlisted: int = 0

    @classmethod
    def open(cls, root: Path, refuse: tables.Refuse, images: Names | None = None) -> "Inputs":
        """Reads the list in `root`, if there is one; `images` as in `read_checksums`."""
        path = root / SUMS_NAME
        checksums = read_checksums(path, images) if path.is_file() else None
        return cls(checksums, refuse, {"checksums": ABSENT if checksums is None else tables.file_hash(path)})

    def add(self, role: str, path: Path, expected: str | None = None) -> Path:
        """Hashes a file, notes it under its role, and returns its path.

        Args:
          role: what the file is to the source.
          path: of the file.
          expected: hash by another list; None takes this one's, by the file's name.

        Raises:
          DataError: the file has another hash than its list says, unless `refuse` goes on.
        """
        self.hashes[role] = digest = tables.file_hash(path)
        expected = expected or (self.checksums.files.get(path.name) if self.checksums else None)
        self.unlisted += self.checksums is not None and expected is None
        if expected not in (None, digest):
            found = f"{path.name}: its sha256 differs from {SUMS_NAME}'s; fetch it again"
            self.refuse(DataError(found, code="wrong_table_checksum"))
        return path

    def image(self, name: str) -> str:
        """What an image must hash to, or "" where no list says so."""
        return self.checksums.images.get(name, "") if self.checksums else ""

    def note_unchecked(self, images: int) -> None:
        """Notes how much no list vouches for, given the number of such images; nothing where it vouches for all."""
        if self.checksums and (self.unlisted or images):
            self.hashes["unchecked"] = f"{self.unlisted} files, {images} images"


def read_checksums(path: Path, images: Names | None = None) -> Checksums:
    """Reads lines of 64 hex digits and a path, as `sha256sum` and PhysioNet write them.

    Args:
      path: of the list.
      images: receives the names of the images, so that other tables of the release can share them.

    Raises:
      UserError: a line is something else.
    """
    files: dict[str, str] = {}
    digests = Digests(Names() if images is None else images)
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(progress.counted(lines, path.name, "lines"), 1):
            if not line.strip():
                continue
            found = _LINE.fullmatch(line.strip())
            if found is None:
                raise UserError(f"{path.name}: line {number} is no checksum; expected 64 hex digits and a path")
            folder, _, name = found[2].rpartition("/")
            if not folder:
                files[name] = found[1].lower()
            elif name.endswith(".jpg"):
                digests[name.removesuffix(".jpg")] = found[1]
    return Checksums(files, digests)


def listed_hash(path: Path) -> str | None:
    """What the list beside a file says it must hash to, or None; for files that another release brings with it."""
    sums = path.parent / SUMS_NAME
    if not sums.is_file():
        return None
    with sums.open(encoding="utf-8", errors="replace") as lines:
        found = (_LINE.fullmatch(line.strip()) for line in lines)
        return next((match[1].lower() for match in found if match and match[2] == path.name), None)
