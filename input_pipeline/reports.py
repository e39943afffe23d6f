"""The free-text reports of MIMIC-CXR, read one by one from the unpacked tree or straight from the zip file."""

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from input_pipeline.archives import Archive, BadMember, open_archive
from input_pipeline.errors import UserError
from input_pipeline.sources import Dropped, inside

MAX_REPORT_BYTES = 64 * 1024
_FOLDER = "mimic-cxr-reports"
_MEMBER = re.compile(r"files/p[0-9]{2}/p[0-9]{2,20}/s[0-9]{2,20}\.txt")


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
      DataError: the zip file is damaged or hostile, see `open_archive`.
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
    archive = open_archive(path, _MEMBER, ("", f"{_FOLDER}/"))
    if archive is None:
        raise UserError(f"{path.name}: no reports; expected members files/p10/p.../s....txt")
    return ReportZip(archive)


@dataclass(frozen=True)
class ReportTree:
    """Reports unpacked below `root`."""

    root: Path

    def file(self, patient: str, study: str) -> Path:
        """The text file of a study; whether it is a link out of the folder is for `read` to see."""
        return self.root / _member(patient, study)

    def read(self, patient: str, study: str) -> Report:
        """The report of a study; raises Dropped("no_report"), and UserError where its file is a link out of the folder."""
        file = inside(self.root, _member(patient, study))
        try:
            if not file.is_file():  # a pipe would be waited for
                raise Dropped("no_report")
            with file.open("rb") as stream:
                return _report(stream.read(MAX_REPORT_BYTES + 1))
        except OSError:
            raise Dropped("no_report") from None


@dataclass(frozen=True)
class ReportZip:
    """Reports in a zip file; members are read as streams and nothing is unpacked."""

    archive: Archive

    def file(self, patient: str, study: str) -> Path:
        """The zip file, whatever the study."""
        return self.archive.path

    def read(self, patient: str, study: str) -> Report:
        """The report of a study; raises Dropped("no_report"), or Dropped("bad_report") for damaged data."""
        try:
            return _report(self.archive.read(_member(patient, study), MAX_REPORT_BYTES + 1))
        except KeyError:
            raise Dropped("no_report") from None
        except (BadMember, OSError):
            raise Dropped("bad_report") from None


def _member(patient: str, study: str) -> str:
    return f"files/p{patient[:2]}/p{patient}/s{study}.txt"


def _report(data: bytes) -> Report:
    kept = data[:MAX_REPORT_BYTES]
    text = kept.decode("utf-8", errors="replace")
    return Report(text, truncated=len(data) > len(kept), replaced="\ufffd" in text)
