"""A tiny data set in MIMIC-CXR-JPG's layout with one of every reason to drop a row, its build and a tokenizer for it."""

import csv
import gzip
import io
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest

from input_pipeline.build import build
from input_pipeline.datasets.mimic_cxr import LABEL_NAMES, MimicCxr
from input_pipeline.loader import BatchSpec, text_sentences
from input_pipeline.tokenizer import train_tokenizer

PATIENTS = 12
SHORT_SIDE = 32
_SPLITS = ("train", "train", "train", "train", "validate", "test")
_SITES = ("left lower lobe", "right upper lobe", "left apex", "right base", "lingula")
_SIGNS = ("opacity", "effusion", "nodule", "pneumothorax", "atelectasis", "edema", "granuloma")


class Study(NamedTuple):
    patient: int
    study: int
    image: str
    split: str

    @property
    def subject(self) -> str:
        return str(10000000 + 37 * self.patient)

    @property
    def number(self) -> str:
        return str(50000000 + 101 * self.study)

    @property
    def jpg(self) -> str:
        return f"files/p{self.subject[:2]}/p{self.subject}/s{self.number}/{self.image}.jpg"

    @property
    def txt(self) -> str:
        return f"files/p{self.subject[:2]}/p{self.subject}/s{self.number}.txt"


def image_name(number: int) -> str:
    digits = f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}" + f"{number:024x}"
    return "-".join(digits[i : i + 8] for i in range(0, 40, 8))


def studies() -> list[Study]:
    """Two studies of one frontal image per patient."""
    return [Study(number // 2, number, image_name(number), _SPLITS[number // 2 % 6]) for number in range(2 * PATIENTS)]


def report(number: int) -> str:
    site, sign = _SITES[number % 5], _SIGNS[number % 7]
    return (
        "                                 FINAL REPORT\n EXAMINATION:  CHEST (PA AND LAT)\n \n INDICATION:  Cough.\n \n"
        f" FINDINGS:\n \n There is {sign} in the\n {site}.  The heart is normal in size.\n Compared with ___.\n \n"
        f" IMPRESSION:  Probable {sign} of the {site}.\n"
    )


def write_table(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_image(path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pixels = cv2.GaussianBlur(rng.integers(0, 256, (44 + seed % 3, 52), dtype=np.uint8), (0, 0), 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), pixels)


def table_rows() -> dict[str, list[dict]]:
    """Rows of the three tables, in PhysioNet's column order."""
    tables = {"split": [], "metadata": [], "chexpert": []}
    lateral = Study(0, 0, image_name(1000), "train")
    for item in [*studies(), lateral]:
        view = "LATERAL" if item is lateral else ("PA", "AP")[item.study % 2]
        meaning = {"PA": "postero-anterior", "AP": "antero-posterior", "LATERAL": "lateral"}[view]
        if item.study == 2:
            view = ""
        identity = {"dicom_id": item.image, "study_id": item.number, "subject_id": item.subject}
        tables["split"].append({**identity, "split": item.split})
        tables["metadata"].append({**identity, "ViewPosition": view, "ViewCodeSequence_CodeMeaning": meaning})
    for item in studies():
        labels = {name: ("1.0", "0.0", "-1.0", "")[(item.study + i) % 4] for i, name in enumerate(LABEL_NAMES)}
        tables["chexpert"].append({"subject_id": item.subject, "study_id": item.number, **labels})
    stranger = {"study_id": "59999999", "subject_id": "19999999"}
    tables["split"].append({"dicom_id": image_name(2000), **stranger, "split": "train"})
    tables["metadata"].append(
        {"dicom_id": image_name(2001), **stranger, "ViewPosition": "PA", "ViewCodeSequence_CodeMeaning": ""}
    )
    return tables


def write_mimic(root: Path) -> Path:
    """Writes the data set; study 4 has no report, 6 no text, 12 a cut image, 14 no image, 2 a view only in code.

    MS-CXR's box is on an image of the test split, so that it takes nobody out of train.
    """
    write_table(root / "MS_CXR_Local_Alignment_v1.1.0.csv", [{"path": studies()[10].jpg}])
    for role, rows in table_rows().items():
        write_table(root / f"mimic-cxr-2.0.0-{role}.csv.gz", rows)
    for item in studies():
        text = root / "mimic-cxr-reports" / item.txt
        text.parent.mkdir(parents=True, exist_ok=True)
        if item.study != 4:
            text.write_text(" FINAL REPORT\n INDICATION:  ___.\n" if item.study == 6 else report(item.study))
        if item.study != 14:
            write_image(root / item.jpg, item.study)
        if item.study == 12:
            (root / item.jpg).write_bytes((root / item.jpg).read_bytes()[:200])
    return root


class Layout(NamedTuple):
    """What tests need to make variants of the data set."""

    write_mimic: type(write_mimic)
    write_table: type(write_table)
    table_rows: type(table_rows)
    studies: type(studies)
    report: type(report)


@pytest.fixture(scope="session")
def layout():
    return Layout(write_mimic, write_table, table_rows, studies, report)


@pytest.fixture(scope="session")
def mimic_root(tmp_path_factory):
    """The data set; tests must not change it."""
    return write_mimic(tmp_path_factory.mktemp("mimic"))


@pytest.fixture
def own_mimic_root(tmp_path):
    """A copy of the data set that a test may damage."""
    return write_mimic(tmp_path / "mimic")


@pytest.fixture(scope="session")
def mimic_build(mimic_root, tmp_path_factory):
    """A build with several shards per split."""
    out = tmp_path_factory.mktemp("data") / "mimic"
    build(MimicCxr(mimic_root, mimic_root), out, short_side=SHORT_SIDE, workers=1, shard_records=5, progress=False)
    return out


@pytest.fixture(scope="session")
def tokenizer_folder(mimic_build, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(text_sentences(mimic_build, "train"), folder, vocab_size=200)
    return folder


@pytest.fixture(scope="session")
def batch_spec(tokenizer_folder):
    """Every kind of augmentation switched on."""
    return BatchSpec(str(tokenizer_folder), 24, 40, 6, fit="crop", scale=(0.6, 1.0), shift=0.1, subset_probability=0.5)
