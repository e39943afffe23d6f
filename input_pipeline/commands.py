"""Commands that can be pasted: what to type where a diagnosis of `msfl data doctor` has an option or a tool that helps."""

import shlex
from pathlib import Path
from typing import Any

from input_pipeline.checksums import SUMS_NAME
from input_pipeline.quarantine import QUARANTINE_NAME
from input_pipeline.sources import Source

_CHECKED = frozenset({"missing_image", "bad_image", "wrong_checksum", "wrong_table_checksum"})
_ODD = frozenset({"blank_image", "nearly_blank_image", "duplicate_pixels"})
_SHARED = frozenset({"image_in_two_splits", "patient_in_two_splits"})
_REPORTS = frozenset({"no_report", "bad_report"})
_BY_FOLDER = {
    "chexpert": "chexpert",
    "nih_chestxray14": "nih",
    "nih_boxes": "nih --boxes",
    "rsna_pneumonia": "rsna",
    "siim_acr": "siim",
}
# Folders of builds as the README calls them, where that is not the name of the data set.
_FOLDERS = {"nih_chestxray14": "nih", "rsna_pneumonia": "rsna", "siim_acr": "siim"}


def command_for(code: str, source: Source, out: Path) -> str:
    """The command that helps against a fault, with the user's own folders, or "" where none does.

    Args:
      code: of the fault.
      source: that was examined.
      out: the doctor's folder.
    """
    root = getattr(source, "jpg", None) or getattr(source, "root", None)
    reports = getattr(source, "reports", None)
    build = _build(source)
    quarantine = f"--quarantine {_quoted(out / QUARANTINE_NAME)}"
    if code in _CHECKED and root is not None and (root / SUMS_NAME).is_file():
        return f"(cd {_quoted(root)} && sha256sum --quiet -c {SUMS_NAME})"
    if code in _REPORTS and reports is not None and reports.is_file():
        return f"unzip -tq {_quoted(reports)}"
    if code == "duplicate_pixels_across_splits" and build:
        return f"{build} {quarantine}"
    if code in _ODD and build:
        return f"{build} {quarantine} --drop-noted {code}"
    if code in _SHARED and source.name in _BY_FOLDER:
        return f"{build} --allow-leak"
    return ""


def _build(source: Any) -> str:
    """The command that builds a source as it was examined, or "" where there is none for it."""
    words = ""
    if source.name == "mimic_cxr":
        words = f"mimic-cxr --jpg {_quoted(source.jpg)} --reports {_quoted(source.reports)}"
    elif source.name == "ms_cxr":
        words = f"ms-cxr --jpg {_quoted(source.jpg)} --boxes {_quoted(source.boxes)}"
    elif source.name in _BY_FOLDER:
        table = getattr(source, "table", None)
        words = f"{_BY_FOLDER[source.name]} {_quoted(source.root)}" + (f" --table {_quoted(table)}" if table else "")
    return f"msfl data build {words} --out data/{_FOLDERS.get(source.name, source.name)}" if words else ""


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
