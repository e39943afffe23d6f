"""Synthetic pneumothoraces in the layout of SIIM-ACR: DICOM files of 1024 pixels a side at three levels of folders, and train-rle.csv.

One image per patient, because the challenge does not say which images share one. The patients are others than those of `synthesize`, whatever
the seeds, so that a model pretrained there can be tested here.
"""

import hashlib
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from input_pipeline.datasets.synthetic import tables
from input_pipeline.datasets.synthetic.findings import draw_frontal
from input_pipeline.datasets.synthetic.study import Plan, Study
from input_pipeline.errors import UserError

SIDE = 1024  # of the challenge's images, to which its run lengths belong
FOLDER, RLE_FILE = "dicom-images-train", "train-rle.csv"
POSITIVE_SHARE = 0.22  # of the challenge's images
FINDING = "Pneumothorax"
_DRAWN = 256  # the phantom has no finer detail; pixels are then enlarged by whole numbers, and masks stay exact
_JPEG_QUALITY = 92
_CHUNK = 32
_OTHER_PATIENTS = (
    2**31
)  # added to the seed; `synthesize` takes seeds as they are given. With 2^32, [seed, 1, 0] would seed as [seed, 1]
_UID = 10**38  # identifiers are 2.25 and a number below 2^128 (PS3.5, annex B.2)


@dataclass(frozen=True, slots=True)
class SiimSummary:
    """What `synthesize_siim` wrote."""

    directory: Path
    images: int
    positives: int
    seconds: float


def synthesize_siim(
    directory: Path, *, images: int, seed: int, positives: float = POSITIVE_SHARE, workers: int | None = None
) -> SiimSummary:
    """Writes synthetic images with outlines of pneumothoraces into a new folder, as the challenge shipped its first stage.

    The bytes are a function of (images, seed, positives), not of the number of workers. Everything is first written beside `directory` and moved
    there when complete. The challenge names no splits: `msfl data build siim` draws them.

    Args:
      directory: does not exist yet or is empty.
      images: as many patients.
      seed: of all that is drawn.
      positives: share of the images with a pneumothorax, rounded to whole images.
      workers: processes; all processors by default, 1 works in this process.

    Raises:
      UserError: a number out of range, a directory that is not empty, or pydicom is not installed.
    """
    started = time.monotonic()
    _check(directory, images, seed, positives, workers)
    directory = directory.absolute()
    draft = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    (draft / FOLDER).mkdir(parents=True)
    chosen = choose_studies(images, round(positives * images), _OTHER_PATIENTS + seed)
    rows = [row for part in _run(chosen, draft, workers or os.cpu_count() or 1) for row in part]
    tables.write_table(draft / RLE_FILE, tables.RLE_COLUMNS, sorted(rows))
    draft.rename(directory)
    found = sum(code != tables.NO_PIXELS for _, code in rows)
    return SiimSummary(directory, images, found, time.monotonic() - started)


def choose_studies(images: int, positives: int, seed: int) -> list[Study]:
    """The first studies, one per patient, of which exactly `positives` have a pneumothorax."""
    plan = Plan(seed, (64 * (images + 1), 0, 0))  # more patients than are ever needed; studies are sampled one by one
    wanted, chosen = {True: positives, False: images - positives}, []
    for index in np.unique(plan.patients, return_index=True)[1]:
        if not any(wanted.values()):
            break
        study = plan.study(int(index))
        positive = any(finding.name == FINDING for finding in study.findings)
        if wanted[positive]:
            wanted[positive] -= 1
            chosen.append(study)
    if any(wanted.values()):
        raise UserError(f"found too few patients for {images} images with {positives} pneumothoraces; ask for fewer")
    return chosen


def _check(directory: Path, images: int, seed: int, positives: float, workers: int | None) -> None:
    _pydicom()
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory}: exists and is not an empty folder; give a new one or remove it")
    none = workers is not None and workers < 1
    if images < 1 or not 0 <= seed < _OTHER_PATIENTS or not 0 <= positives <= 1 or none:
        found = f"{images} images, seed {seed}, a share of {positives} positives and {workers} workers"
        raise UserError(f"found {found}; expected at least 1 image and worker, a seed from 0 and a share from 0 to 1")


def _run(chosen: list[Study], directory: Path, workers: int) -> Iterator[list[tuple[str, str]]]:
    chunks = [chosen[start : start + _CHUNK] for start in range(0, len(chosen), _CHUNK)]
    write = partial(_write_images, directory)
    if workers == 1 or len(chunks) == 1:
        yield from map(write, chunks)
        return
    # spawn, because forking a process that has started threads (JAX has) can deadlock
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=cv2.setNumThreads, initargs=(0,)) as pool:
        yield from pool.map(write, chunks)


def _write_images(directory: Path, studies: Iterable[Study]) -> list[tuple[str, str]]:
    """Writes the images of some studies and returns their rows of the table."""
    rows = []
    for study in studies:
        drawing = draw_frontal(study, _DRAWN)
        masks = [mask for position, mask in drawing.masks if study.findings[position].name == FINDING]
        mask = np.logical_or.reduce(masks) if masks else np.zeros_like(drawing.image, bool)
        image = cv2.resize(drawing.image, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        names = [_identifier(study, kind) for kind in ("study", "series", "image")]
        path = directory / FOLDER / names[0] / names[1] / f"{names[2]}.dcm"
        path.parent.mkdir(parents=True)
        _write_dicom(path, image, study, names)
        larger = SIDE // _DRAWN
        rows.append((names[2], tables.encode_rle(mask.repeat(larger, axis=0).repeat(larger, axis=1))))
    return rows


def _identifier(study: Study, kind: str) -> str:
    digits = hashlib.blake2b(f"siim/{study.seed}/{study.index}/{kind}".encode(), digest_size=16).hexdigest()
    return f"2.25.{int(digits, 16) % _UID + 1}"


def _write_dicom(path: Path, image: UInt8[np.ndarray, "H W"], study: Study, names: list[str]) -> None:
    """A secondary capture with one baseline JPEG, as the challenge's files are."""
    pydicom = _pydicom()
    made = pydicom.Dataset()
    made.file_meta = pydicom.dataset.FileMetaDataset()
    made.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
    made.SOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    made.StudyInstanceUID, made.SeriesInstanceUID, made.SOPInstanceUID = names
    made.StudyDate, made.Modality, made.ConversionType = "19010101", "CR", "WSD"
    made.PatientName = made.PatientID = names[2]
    made.PatientSex, made.PatientAge = study.patient.sex, f"{study.patient.age:03d}Y"
    made.BodyPartExamined, made.ViewPosition = "CHEST", study.view
    made.PixelSpacing = ["0.168", "0.168"]
    made.Rows, made.Columns, made.SamplesPerPixel = *image.shape, 1
    made.PhotometricInterpretation, made.PixelRepresentation = "MONOCHROME2", 0
    made.BitsAllocated, made.BitsStored, made.HighBit = 8, 8, 7
    made.LossyImageCompression = "01"
    encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes()
    made.PixelData = pydicom.encaps.encapsulate([encoded])
    made["PixelData"].VR = "OB"
    made["PixelData"].is_undefined_length = True
    made.save_as(path, enforce_file_format=True)


def _pydicom() -> Any:
    try:
        import pydicom
        import pydicom.encaps
        import pydicom.uid
    except ImportError:
        raise UserError(
            "writing DICOM needs pydicom, which is not installed; expected the extra 'dicom': pip install 'msfl_jax[dicom]'"
        ) from None
    return pydicom
