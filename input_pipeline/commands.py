"""Commands that can be pasted: what to type where a diagnosis of `msfl data doctor` has an option or a tool that helps."""

import re
import shlex
from pathlib import Path
from typing import Any

from input_pipeline.checksums import SUMS_NAME
from input_pipeline.datasets.mimic_grounding import find_boxes
from input_pipeline.quarantine import OF_ROWS, QUARANTINE_NAME
from input_pipeline.sources import Source, synthetic_setting
from input_pipeline.splits import OFFICIAL_NIH

_FILES = frozenset({"missing_image", "bad_image"})
_CHECKED = frozenset({"wrong_checksum", "wrong_table_checksum"})
_TABLES = frozenset({"no_rows", "no_metadata", "not_listed"})
_ODD = frozenset({"blank_image", "nearly_blank_image", "duplicate_pixels"})
_SHARED = frozenset({"image_in_two_splits", "patient_in_two_splits"})
_REPORTS = frozenset({"no_report", "bad_report"})
# Rows that a build must not or need not read: it goes on without those that the doctor has named.
_LEFT_OUT = OF_ROWS | {"duplicate_pixels_across_splits", "wrong_size", "box_outside_image"}
_BY_FOLDER = {
    "chexpert": "chexpert",
    "nih_chestxray14": "nih",
    "nih_boxes": "nih --boxes",
    "rsna_pneumonia": "rsna",
    "siim_acr": "siim",
}
# Folders of builds as the README calls them, where that is not the name of the data set.
_FOLDERS = {"nih_chestxray14": "nih", "rsna_pneumonia": "rsna", "siim_acr": "siim"}
_PHYSIONET = "https://physionet.org/files"
_LOGIN = "--user USERNAME --ask-password"
_RELEASE = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+")  # as PhysioNet names the folder of one
_LATEST = "2.1.0"  # of MIMIC-CXR and of MIMIC-CXR-JPG


def command_for(code: str, source: Source, out: Path) -> str:
    """The command that helps against a fault, with the user's own folders, or "" where none does.

    Args:
      code: of the fault.
      source: that was examined.
      out: the doctor's folder.
    """
    root = getattr(source, "jpg", None) or getattr(source, "root", None)
    command = _fetch(code, source, root) if root is not None else ""
    if command or not (build := _build(source)):
        return command
    quarantine = f"--quarantine {_quoted(out / QUARANTINE_NAME)}"
    if code in _SHARED:
        return _with_lists(source, f"{build} {quarantine} --allow-leak") if source.name in _BY_FOLDER else ""
    if code in _ODD:
        return _with_lists(source, f"{build} {quarantine} --drop-noted {code}")
    return _with_lists(source, f"{build} {quarantine}") if code in _LEFT_OUT else ""


def _fetch(code: str, source: Source, root: Path) -> str:
    """What checks files, or fetches them again from where a release is."""
    if code in _CHECKED and (root / SUMS_NAME).is_file():
        return f"(cd {_quoted(root)} && sha256sum --quiet -c {SUMS_NAME})"
    reports = getattr(source, "reports", None)
    if code in _REPORTS and reports is not None and reports.is_file():
        return f"unzip -tq {_quoted(reports)}"
    if source.name not in ("mimic_cxr", "ms_cxr") or synthetic_setting(root):
        return ""
    if code in _REPORTS:
        return f"wget -c -P {_quoted(root)} {_LOGIN} {_PHYSIONET}/mimic-cxr/{_LATEST}/mimic-cxr-reports.zip"
    base = f"{_PHYSIONET}/mimic-cxr-jpg/{root.name if _RELEASE.fullmatch(root.name) else _LATEST}/"
    into = f"-nH --cut-dirs=3 -P {_quoted(root)} {_LOGIN}"
    if code in _FILES:
        names = root / "IMAGE_FILENAMES"
        return (
            f"wget -x -N -c {into} -i {_quoted(names)} -B {base}"
            if names.is_file()
            else f"wget -r -N -c -np {into} {base}"
        )
    if code in _TABLES:
        return f"wget -r -l 1 -np -A 'mimic-cxr-*.csv*,IMAGE_FILENAMES,{SUMS_NAME}' {into} {base}"
    return ""


def _build(source: Any) -> str:
    """The command that builds a source as it was examined, or "" where there is none for it."""
    words = ""
    if source.name == "mimic_cxr":
        words = f"mimic-cxr --jpg {_quoted(source.jpg)} --reports {_quoted(source.reports)}"
        words += "" if find_boxes(source.jpg) else " --keep-grounding-patients"
    elif source.name == "ms_cxr":
        words = f"ms-cxr --jpg {_quoted(source.jpg)} --boxes {_quoted(source.boxes)}"
    elif source.name in _BY_FOLDER:
        table = getattr(source, "table", None)
        words = f"{_BY_FOLDER[source.name]} {_quoted(source.root)}" + (f" --table {_quoted(table)}" if table else "")
    return f"msfl data build {words} --out data/{_FOLDERS.get(source.name, source.name)}" if words else ""


def _with_lists(source: Any, build: str) -> str:
    """A build of NIH needs lists of its splits, without which the doctor examines it: the command then says what is missing."""
    official = OFFICIAL_NIH.values()
    if source.name != "nih_chestxray14" or all((source.root / name).is_file() for name in official):
        return build
    return f"{build} --lists DIR   # needs --lists DIR with published lists, or instead {' and '.join(official)} in the folder"


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
