"""What a shard is made from includes our own code: every module between files and bytes, and no other."""

import ast
import hashlib
import importlib.metadata
from pathlib import Path

import pytest

import input_pipeline
from input_pipeline import versions
from input_pipeline.datasets.chexpert import Chexpert
from input_pipeline.datasets.mimic_cxr import MimicCxr
from input_pipeline.datasets.ms_cxr import MsCxr
from input_pipeline.datasets.nih_chestxray14 import NihBoxes, NihChestXray14
from input_pipeline.datasets.rsna_pneumonia import RsnaPneumonia
from input_pipeline.datasets.siim_acr import SiimAcr
from input_pipeline.versions import code_files, code_hash, versions_of

ROOT = Path(input_pipeline.__file__).parent
SOURCES = (Chexpert, MimicCxr, MsCxr, NihBoxes, NihChestXray14, RsnaPneumonia, SiimAcr)
# Modules that code of records imports and that change none of its bytes: how tables are read and rows are chosen (rows are hashed
# themselves), where tables lie meanwhile, errors and progress; and views of the loader.
OTHERS = {
    *(
        "augment",
        "checksums",
        "compact",
        "errors",
        "leaks",
        "patient_splits",
        "pool",
        "progress",
        "scratch",
        "splits",
        "tables",
    ),
    *("datasets/image_files", "datasets/labelled", "datasets/labelled_rows"),
    *("datasets/mimic_grounding", "datasets/mimic_rows", "datasets/mimic_tables"),
}


def imported(file):
    """Modules of the package that a file imports, as paths without suffix."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "input_pipeline":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name.removeprefix("input_pipeline.").replace(".", "/") for name in (node.module, *names)}
    return {name for name in found if (ROOT / f"{name}.py").is_file()}


@pytest.mark.parametrize("source", SOURCES)
def test_whatever_the_code_of_records_imports_is_code_of_records_or_known_to_change_none(source):
    files = code_files(source)
    names = {file.relative_to(ROOT).as_posix().removesuffix(".py") for file in files}
    assert {"shards", "images", source.__module__.removeprefix("input_pipeline.").replace(".", "/")} <= names
    assert set().union(*map(imported, files)) - names - OTHERS == set()


def test_the_hash_is_of_names_and_contents(tmp_path):
    for name, text in (("a.py", "x = 1\n"), ("b.py", "y = 2\n")):
        (tmp_path / name).write_text(text)
    files = (tmp_path / "a.py", tmp_path / "b.py")
    lines = [f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n" for file in files]
    expected = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert code_hash(files) == expected
    code_hash.cache_clear()
    files[1].write_text("y = 3\n")
    assert code_hash(files) != expected


def test_sources_of_one_module_and_another_have_hashes_of_their_own(tmp_path):
    assert versions_of(SiimAcr(tmp_path))["code"] != versions_of(RsnaPneumonia(tmp_path))["code"]
    assert versions_of(NihBoxes(tmp_path)) == versions_of(NihChestXray14(tmp_path))


def test_packages_of_an_extra_that_is_not_installed_have_no_version(tmp_path, monkeypatch):
    real = importlib.metadata.version

    def version(name):
        if name == "pydicom":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(versions.importlib.metadata, "version", version)
    found = versions_of(SiimAcr(tmp_path))
    assert "pydicom" not in found
    assert found["pillow"] == real("pillow")
