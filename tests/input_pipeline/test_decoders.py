"""A decoder that is not installed ends a build before its first shard: it is wanting on the machine, not in the images."""

import numpy as np
import pytest
from pydicom import uid
from pydicom.encaps import encapsulate

from input_pipeline import dicom
from input_pipeline.build import build
from input_pipeline.datasets.mimic_cxr import MimicCxr
from input_pipeline.errors import UserError

from .dicom_files import RAMP, dataset, file_of, written


def lossless() -> bytes:
    made = dataset(RAMP.astype(np.uint8), syntax=uid.JPEGLosslessSV1)
    made.PixelData = encapsulate([b"\xff\xd8not a jpeg\xff\xd9"])
    return written(made)


def refusal(root, out) -> str:
    with pytest.raises(UserError) as error:
        build(MimicCxr(root, root), out, short_side=32, workers=1, progress=False)
    assert error.value.exit_code == 2
    return str(error.value)


def test_images_that_nothing_here_decodes_end_a_build_before_its_folder_is_made(own_mimic_root, tmp_path):
    for path in own_mimic_root.rglob("*.jpg"):
        path.write_bytes(lossless())
    assert "pip install pylibjpeg pylibjpeg-libjpeg" in refusal(own_mimic_root, tmp_path / "root" / "out")
    assert not (tmp_path / "root").exists()


def test_a_missing_pydicom_ends_a_build_before_its_folder_is_made(own_mimic_root, tmp_path, monkeypatch):
    def absent():
        raise UserError("expected the extra 'dicom'")

    for path in own_mimic_root.rglob("*.jpg"):
        path.write_bytes(file_of(RAMP.astype(np.uint8)))
    monkeypatch.setattr(dicom, "_pydicom", absent)
    assert refusal(own_mimic_root, tmp_path / "root" / "out") == "expected the extra 'dicom'"
    assert not (tmp_path / "root").exists()


def test_one_such_image_among_others_ends_it_too_and_is_not_called_damaged(own_mimic_root, layout, tmp_path):
    (own_mimic_root / layout.studies()[13].jpg).write_bytes(lossless())
    assert "has no decoder here" in refusal(own_mimic_root, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()
