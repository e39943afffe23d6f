"""Files stored as they are: the same bytes where nothing but a grey picture is in them, another encoding wherever there is more."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from input_pipeline.build import build
from input_pipeline.datasets.labelled import SplitPlan
from input_pipeline.datasets.siim_acr import SiimAcr
from input_pipeline.images import decode_gray
from input_pipeline.passthrough import bare_jpeg
from input_pipeline.reading import open_split

PIXELS = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (48, 64), np.uint8), (0, 0), 2)


def saved(image=PIXELS, **options):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=90, **options)
    return file.getvalue()


def test_a_grey_baseline_jpeg_is_kept_byte_for_byte_without_what_trails_it():
    data = saved()
    assert bare_jpeg(data) == data
    kept = bare_jpeg(data + b"SECRET NAME")
    assert kept is not None
    assert kept == data
    np.testing.assert_array_equal(decode_gray(kept), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize(
    "data",
    [
        saved(comment=b"SECRET NAME"),
        saved(exif=b"Exif\0\0SECRET"),
        saved(progressive=True),
        saved(np.dstack([PIXELS] * 3)),
        saved()[:100],
        b"\xff\xd8\xff",
        b"",
        cv2.imencode(".png", PIXELS)[1].tobytes(),
    ],
    ids=["comment", "EXIF", "progressive", "colour", "cut", "three bytes", "empty", "PNG"],
)
def test_anything_else_is_not_bare(data):
    assert bare_jpeg(data) is None


def test_a_restart_interval_is_part_of_a_bare_jpeg():
    data = cv2.imencode(".jpg", PIXELS, [cv2.IMWRITE_JPEG_RST_INTERVAL, 1])[1].tobytes()
    assert b"\xff\xd0" in data
    assert bare_jpeg(data) == data


@pytest.mark.parametrize("options", [{}, {"equalize": True}, {"short_side": 512}])
def test_a_build_keeps_the_jpeg_of_a_dicom_only_where_nothing_has_to_change(tmp_path, options):
    pydicom = pytest.importorskip("pydicom")
    pixels = np.tile(PIXELS, (22, 16))[:1024, :1024]
    jpeg = saved(pixels)
    root = tmp_path / "siim"
    (root / "images").mkdir(parents=True)
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 1, 8, 8, 7
    dataset.PixelRepresentation, dataset.PhotometricInterpretation = 0, "MONOCHROME2"
    dataset.PixelData = pydicom.encaps.encapsulate([jpeg])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(root / "images" / "one.dcm", enforce_file_format=True)
    (root / "train-rle.csv").write_text("ImageId,EncodedPixels\none,-1\n")
    chosen = {"short_side": 1024, **options}
    manifest = build(SiimAcr(root, SplitPlan()), tmp_path / "out", workers=1, progress=False, **chosen)
    (record,) = open_split(tmp_path / "out", "train")
    assert (record.image == jpeg) == (not options)
    assert manifest.splits["train"].flags.get("stored_as_released", 0) == (not options)
