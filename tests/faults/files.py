"""Images of a corpus: every variety that is in order, every way to damage one, and the account of what was planted."""

import csv
import functools
import gzip
import io
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pydicom
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

LEVELS = ("clean", "files", "all")  # no fault; faulty images, reports and boxes; these and faulty rows of tables
# Codes of rows that become no record; the others are oddities, or rows of tables.
LOST = frozenset(
    {
        *("missing_image", "bad_image", "wrong_checksum", "wrong_size", "path_outside"),
        *("no_report", "bad_report", "no_text", "box_outside_image"),
    }
)


class Corpus:
    """A data set on disk and what is wrong with it.

    `expected` has the count that the doctor must give for each code, `files` the images of those codes that are about files, `dropped`
    how many rows the tables leave out, and `arguments` what `msfl data doctor` needs besides the root.
    """

    def __init__(self, root: Path, seed: int):
        self.root, self.seed, self.rng = root, seed, random.Random(seed)
        self.expected: Counter[str] = Counter()
        self.files: dict[str, set[Path]] = {}
        self.dropped = 0
        self.arguments: tuple[str, ...] = ()
        root.mkdir(parents=True, exist_ok=True)

    def plant(self, code: str, path: Path | None = None, count: int = 1) -> None:
        """Notes a fault, of a file where `path` is given."""
        self.expected[code] += count
        if path is not None:
            self.files.setdefault(code, set()).add(path)

    def drop(self, code: str, count: int = 1) -> None:
        """Notes rows that the tables leave out."""
        self.plant(code, count=count)
        self.dropped += count

    @property
    def lost(self) -> int:
        """Rows of the scan that become no record."""
        return sum(len(self.files.get(code, ())) for code in LOST)


def picture(seed, height=44, width=52):
    """Clouds that no other seed gives."""
    rng = np.random.default_rng(seed)
    coarse = cv2.GaussianBlur(rng.integers(0, 256, (12, 12), dtype=np.uint8), (0, 0), 1)
    levels = cv2.resize(coarse, (width, height)).astype(np.float32)
    return ((levels - levels.min()) * (255 / np.ptp(levels))).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def grey(seed, **size) -> Image.Image:
    return Image.fromarray(picture(seed, **size))


def rotated_exif():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


# What releases and converters write: all of it is decoded, none of it is a fault.
JPEGS: dict[str, Callable[[int], bytes]] = {
    "grey": lambda seed: encoded(grey(seed), "JPEG"),
    "colour": lambda seed: encoded(grey(seed).convert("RGB"), "JPEG"),
    "cmyk": lambda seed: encoded(grey(seed).convert("CMYK"), "JPEG"),
    "progressive": lambda seed: encoded(grey(seed), "JPEG", progressive=True),
    "exif": lambda seed: encoded(grey(seed), "JPEG", exif=rotated_exif()),
}
PNGS: dict[str, Callable[[int], bytes]] = {
    "grey": lambda seed: encoded(grey(seed), "PNG"),
    "rgba": lambda seed: encoded(grey(seed).convert("RGBA"), "PNG"),
    "alpha": lambda seed: encoded(grey(seed).convert("LA"), "PNG"),
    "palette": lambda seed: encoded(grey(seed).convert("P"), "PNG"),
    "sixteen bits": lambda seed: encoded(Image.fromarray(picture(seed).astype(np.uint16) * 16), "PNG"),
    "one bit": lambda seed: encoded(grey(seed).convert("1"), "PNG"),
    "a line": lambda seed: encoded(grey(seed, height=1, width=20), "PNG"),
}


@functools.cache
def huge() -> bytes:
    """72 million pixels in few bytes."""
    return encoded(Image.new("1", (9000, 8000)), "PNG")


def blank(_seed) -> bytes:
    return encoded(Image.new("L", (52, 44), 90), "PNG")


def nearly_blank(seed) -> bytes:
    """Black but for a spot, whose level tells such images apart."""
    pixels = np.zeros((200, 200), np.uint8)
    pixels[60:64, 60:64] = 100 + seed % 150
    return encoded(Image.fromarray(pixels), "PNG")


DAMAGE: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "truncated": lambda data, rng: data[: len(data) * 2 // 3],
    "no bytes": lambda data, rng: b"",
    "html": lambda data, rng: b"<!DOCTYPE html><html><body>503 Service Unavailable</body></html>",
    "garbage": lambda data, rng: rng.randbytes(len(data)),
    "garbage behind the signature": lambda data, rng: data[:8] + rng.randbytes(len(data) - 8),
    "over the cap": lambda data, rng: huge(),
    "a long strip": lambda data, rng: encoded(Image.new("L", (4000, 1)), "PNG"),
}


def plant_damage(corpus: Corpus, paths: Iterable[Path], *, code: str = "bad_image", times: int = 1) -> None:
    """Damages images in every way, removes one and makes one a link to outside."""
    paths = iter(paths)
    for damage in list(DAMAGE.values()) * times:
        path = next(paths)
        path.write_bytes(damage(path.read_bytes(), corpus.rng))
        corpus.plant(code, path)
    for _ in range(times):
        path = next(paths)
        path.unlink()
        corpus.plant("missing_image", path)
    path = next(paths)
    outside = corpus.root.parent / f"outside-{corpus.root.name}"
    path.rename(outside)
    path.symlink_to(outside)
    corpus.plant("path_outside", path)


def plant_stray(corpus: Corpus, path: Path, data: bytes) -> None:
    """An image file that no table names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    corpus.plant("file_in_no_table")


def plant_twin(corpus: Corpus, path: Path, folder: Path) -> None:
    """A second file of an image, in another folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / path.name).write_bytes(path.read_bytes())
    corpus.plant("two_files")


DAMAGED = len(DAMAGE) + 2  # images that `plant_damage` takes


def write_csv(path: Path, rows: Sequence[Sequence]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data, 1) if path.suffix == ".gz" else data)


def dicom(seed, side=1024, *, raw=False, jpeg: bytes | None = None, **elements) -> bytes:
    """A DICOM file as the challenges have it, 8 bit JPEG Baseline, or `raw` pixels; None for an element removes it."""
    pixels = picture(seed, side, side)
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian if raw else uid.JPEGBaseline8Bit
    made.SOPClassUID, made.SOPInstanceUID = uid.SecondaryCaptureImageStorage, f"1.2.3.{seed + 1}"
    made.Rows = made.Columns = side
    made.SamplesPerPixel, made.PixelRepresentation = 1, 0
    made.BitsAllocated = made.BitsStored = 8
    made.HighBit = 7
    made.PhotometricInterpretation = "MONOCHROME2"
    frame = jpeg or cv2.imencode(".jpg", pixels)[1].tobytes()
    made.PixelData = pixels.tobytes() if raw else encapsulate([frame])
    made["PixelData"].VR = "OB"
    made["PixelData"].is_undefined_length = not raw
    for keyword, value in elements.items():
        if keyword == "TransferSyntaxUID":
            made.file_meta.TransferSyntaxUID = value
        elif value is None:
            delattr(made, keyword)
        else:
            setattr(made, keyword, value)
    file = io.BytesIO()
    pydicom.dcmwrite(file, made, enforce_file_format=True)
    return file.getvalue()


DICOMS: dict[str, Callable[[int], bytes]] = {
    "jpeg": lambda seed: dicom(seed),
    "raw": lambda seed: dicom(seed, raw=True),
    "inverted": lambda seed: dicom(seed, PhotometricInterpretation="MONOCHROME1"),
    "rescaled": lambda seed: dicom(seed, raw=True, RescaleSlope="2", RescaleIntercept="-100"),
}
BAD_DICOMS: dict[str, Callable[[int], bytes]] = {
    "no pixels": lambda seed: dicom(seed, PixelData=None),
    "no decoder": lambda seed: dicom(seed, TransferSyntaxUID=uid.UID("1.2.840.10008.1.2.4.103")),
    "bad rescaling": lambda seed: dicom(seed, RescaleSlope="0"),
    "frames": lambda seed: dicom(seed, NumberOfFrames=3),
    "damaged frame": lambda seed: dicom(seed, jpeg=b"\xff\xd8\xff\xe0" + bytes(400)),
    "whole file deflated": lambda seed: dicom(seed, raw=True, TransferSyntaxUID=uid.DeflatedExplicitVRLittleEndian),
}
