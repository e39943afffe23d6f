"""The free-text reports of MIMIC-CXR, read one by one from the unpacked tree or straight from the zip file."""

import functools
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from input_pipeline.errors import DataError, UserError
from input_pipeline.sources import Dropped, inside, is_relative

MAX_REPORT_BYTES = 64 * 1024
MAX_MEMBERS = 400_000
_FOLDER = "mimic-cxr-reports"


@dataclass(frozen=True, slots=True)
class Report:
    """Text of a report; `truncated` after 64 KB, `replaced` where bytes were not UTF-8."""

    text: str
    truncated: bool
    replaced: bool


@runtime_checkable
class Reports(Protocol):
    """A set of reports."""

    def read(self, patient: str, study: str) -> Report:
        """The report of a study; raises Dropped("no_report")."""
        ...

    def file(self, patient: str, study: str) -> Path:
        """The file that holds the report."""
        ...


def open_reports(path: Path) -> Reports:
    """Opens reports; a zip file is opened once per process.

    Args:
      path: a folder with `files/p10/p.../s....txt` or `mimic-cxr-reports/files/...`, or a zip file of either.

    Raises:
      UserError: there is no such folder or file, or no reports in it.
      DataError: the zip file is damaged, encrypted, too large, or names files outside its own tree.
    """
    if path.is_dir():
        # The unpacked archive first: beside the images, `files` is the tree of images.
        for root in (path / _FOLDER, path):
            if (root / "files").is_dir():
                return ReportTree(root)
        raise UserError(f"{path}: no reports; expected a folder 'files' or '{_FOLDER}/files' in it, or a zip file")
    if not path.is_file():
        raise UserError(f"{path}: no such file or folder; expected the reports' folder or {_FOLDER}.zip")
    status = path.stat()
    return _open_zip(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=2)
def _open_zip(path: Path, size: int, modified: int) -> "ReportZip":
    """Reading the directory of 227,835 members takes seconds; a replaced file is another file."""
    return ReportZip(path)


@dataclass(frozen=True)
class ReportTree:
    """Reports unpacked below `root`."""

    root: Path

    def file(self, patient: str, study: str) -> Path:
        """The text file of a study."""
        return inside(self.root, _member(patient, study))

    def read(self, patient: str, study: str) -> Report:
        """The report of a study; raises Dropped("no_report")."""
        try:
            with self.file(patient, study).open("rb") as file:
                return _report(file.read(MAX_REPORT_BYTES + 1))
        except OSError:
            raise Dropped("no_report") from None


@dataclass(frozen=True)
class ReportZip:
    """Reports in a zip file; members are read as streams and nothing is unpacked."""

    path: Path
    _archive: zipfile.ZipFile = field(init=False, repr=False, compare=False)
    _prefix: str = field(init=False)

    def __post_init__(self):
        try:
            archive = zipfile.ZipFile(self.path)
        except (zipfile.BadZipFile, OSError):
            raise DataError(f"{self.path.name}: not a readable zip file; fetch it again") from None
        object.__setattr__(self, "_archive", archive)
        object.__setattr__(self, "_prefix", _check_members(self.path, archive))

    def file(self, patient: str, study: str) -> Path:
        """The zip file, whatever the study."""
        return self.path

    def read(self, patient: str, study: str) -> Report:
        """The report of a study; raises Dropped("no_report"), or Dropped("bad_report") for damaged data."""
        try:
            with self._archive.open(self._prefix + _member(patient, study)) as stream:
                return _report(stream.read(MAX_REPORT_BYTES + 1))
        except KeyError:
            raise Dropped("no_report") from None
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError):
            raise Dropped("bad_report") from None


def _check_members(path: Path, archive: zipfile.ZipFile) -> str:
    """Refuses hostile archives, and returns what stands before `files/` in the members' names."""
    members = archive.infolist()
    if len(members) > MAX_MEMBERS:
        raise DataError(f"{path.name}: {len(members)} members; expected at most {MAX_MEMBERS}")
    for number, member in enumerate(members, 1):
        if not is_relative(member.filename):
            raise DataError(f"{path.name}: the name of member {number} leads out of the archive; use the original file")
        if member.flag_bits & 1:
            raise DataError(f"{path.name}: member {number} is encrypted; expected the original file")
    for prefix in ("", f"{_FOLDER}/"):
        if any(member.filename.startswith(f"{prefix}files/") for member in members):
            return prefix
    raise UserError(f"{path.name}: no reports; expected members files/p10/p.../s....txt")


def _member(patient: str, study: str) -> str:
    return f"files/p{patient[:2]}/p{patient}/s{study}.txt"


def _report(data: bytes) -> Report:
    kept = data[:MAX_REPORT_BYTES]
    text = kept.decode("utf-8", errors="replace")
    return Report(text, truncated=len(data) > len(kept), replaced="\ufffd" in text)
