"""DICOM files for tests, written by pydicom."""

import io
import warnings

import numpy as np
import pydicom
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

ROWS, COLUMNS = 40, 30
RAMP = np.add.outer(np.arange(ROWS) * 5, np.arange(COLUMNS) * 2)  # 0 to 253
CANARY = "XK7CANARY"


def dataset(pixels, *, photometric="MONOCHROME2", stored=None, syntax=uid.ExplicitVRLittleEndian, **elements):
    """A dataset around pixels [H, W] or [H, W, 3] of any integer type; `stored` is BitsStored."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = syntax
    made.SOPClassUID = uid.SecondaryCaptureImageStorage
    made.SOPInstanceUID = uid.generate_uid()
    made.Rows, made.Columns = pixels.shape[:2]
    made.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    if pixels.ndim == 3:
        made.PlanarConfiguration = 0
    made.PhotometricInterpretation = photometric
    made.BitsAllocated = 8 * pixels.itemsize
    made.BitsStored = stored or made.BitsAllocated
    made.HighBit = made.BitsStored - 1
    made.PixelRepresentation = int(pixels.dtype.kind == "i")
    made.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    made["PixelData"].VR = "OW" if pixels.itemsize > 1 else "OB"
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made


def written(made):
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # damaged on purpose, some of them
        made.save_as(file, enforce_file_format=True)
    return file.getvalue()


def file_of(pixels, **options):
    return written(dataset(pixels, **options))


def jpeg_file(picture, **options):
    """A file whose one frame is a JPEG made by Pillow."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=90)
    made = dataset(picture, syntax=uid.JPEGBaseline8Bit, **options)
    made.PixelData = encapsulate([file.getvalue()])
    made["PixelData"].VR = "OB"
    made["PixelData"].is_undefined_length = True
    return written(made), file.getvalue()


def stretched(values, low=None, high=None):
    low, high = (values.min() if low is None else low), (values.max() if high is None else high)
    return np.round((np.clip(values.astype(float), low, high) - low) * 255 / (high - low))


def look_up_table(entries, first, bits):
    item = Dataset()
    item.LUTDescriptor = [len(entries) % 65536, first, bits]
    item.LUTData = [int(entry) for entry in entries]
    item["LUTData"].VR = "US"
    return pydicom.Sequence([item])
