"""Radiographs in DICOM files as grey levels, and the five header values that may be kept.

Nothing else of a header leaves this module: no message quotes a value that could hold a name, and what pydicom would log or warn about, with
such values, is silenced. Needs pydicom (extra `dicom`), which is imported when the first file is read.
"""

import contextlib
import functools
import io
import logging
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Shaped, UInt8

from input_pipeline import rasters
from input_pipeline.errors import DataError, MsflError, UserError

_COMPRESSED = "1.2.840.10008.1.2.4."
_JPEG_BASELINE = f"{_COMPRESSED}50"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_COLOURS = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"})
_PALETTE = "PALETTE COLOR"
_PHOTOMETRIC = frozenset({"MONOCHROME1", "MONOCHROME2", _PALETTE}) | _COLOURS
_VIEWS = frozenset({"AP", "PA", "LATERAL", "LL", "RL", "LLD", "RLD", "LLO", "RLO", "LPO", "RPO", "LAO", "RAO"}) | {
    *("AP AXIAL", "XTABLE LATERAL", "AP LLD", "AP RLD", "PA LLD", "PA RLD", "SWIMMERS")
}
_YEARS = {"": 1.0, "Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}
_HEADER_VALUES = ("PatientAge", "PatientSex", "ViewPosition", "PixelSpacing", "PhotometricInterpretation")
_PACKAGES = {  # what decodes a transfer syntax, by the end of its number; the others are in pydicom itself or not for still images
    "50": "pillow",
    **dict.fromkeys(("51", "57", "70"), "pylibjpeg pylibjpeg-libjpeg"),
    **dict.fromkeys(("80", "81"), "pyjpegls"),
    **dict.fromkeys(("90", "91", "201", "202", "203"), "pylibjpeg pylibjpeg-openjpeg"),
}


def is_dicom(data: bytes) -> bool:
    """Whether a file has the mark that stands after the preamble of a DICOM file (PS3.10, section 7.1), and is no JPEG or PNG."""
    return data[128:132] == b"DICM" and not rasters.is_raster(data)


def decode_dicom(data: bytes, *, max_pixels: int = rasters.MAX_PIXELS) -> UInt8[np.ndarray, "H W"]:
    """Decodes the one image of a DICOM file to grey levels, bright where it is meant to be bright.

    The order is the standard's (PS3.4, annex N.2): unused high bits are masked, the modality LUT or rescaling is applied, then the first VOI
    LUT, else the first window, whose ends become 0 and 255. Without either, 8 bit levels stay as they are and all others are scaled from their
    own minimum and maximum, as `rasters.decode_raster` does for 16 bit PNGs. MONOCHROME1 is inverted, padding pixels are black and count for no
    minimum, and colour becomes luma (ITU-R BT.601).

    Args:
      data: the whole file.
      max_pixels: more pixels than this are refused from the header, before anything is decoded.

    Raises:
      DataError: no DICOM file, damaged, without an image or with several, too large, or in a form that nothing decodes.
      UserError: pydicom, or the decoder of this form, is not installed; the message says what to install.
    """
    with _refusing(data):
        dataset = _read(data)
        _check_header(dataset, max_pixels)
        return _gray_levels(dataset, _stored_pixels(dataset, max_pixels))


def embedded_jpeg(data: bytes) -> bytes | None:
    """The JPEG file inside a DICOM file, if `rasters.decode_raster` of it gives the pixels that `decode_dicom` gives; else None.

    That takes one frame in 8 bit JPEG Baseline, MONOCHROME2, no padding value, and neither a rescaling nor a window that changes any level. RSNA's
    and SIIM-ACR's files are like this: they can be stored without losing anything, and need no decoding.

    Raises:
      DataError: as for `decode_dicom`, except that the scan itself is not decoded.
      UserError: pydicom is not installed.
    """
    with _refusing(data):
        dataset = _read(data)
        _check_header(dataset, rasters.MAX_PIXELS)
        if not _is_plain_jpeg(dataset) or dataset.PhotometricInterpretation != "MONOCHROME2":
            return None
        if "PixelPaddingValue" in dataset or not _keeps_levels(dataset):
            return None
        return _jpeg_frame(dataset)


def header_values(data: bytes) -> dict[str, float | str | tuple[float, float]]:
    """The values of a DICOM header that may be kept, where they are present and well-formed.

      age                          years
      sex                          M, F or O
      view_position                AP, PA, LATERAL, ...
      pixel_spacing                millimetres between rows and between columns
      photometric_interpretation   MONOCHROME1, MONOCHROME2, ...

    Words are kept only if they are among those that the standard or MIMIC-CXR has for them, so that no free text passes.

    Raises:
      DataError: no DICOM file, or a damaged one.
      UserError: pydicom is not installed.
    """
    with _refusing(data):
        dataset = _read(data, list(_HEADER_VALUES))
    values: dict[str, float | str | tuple[float, float]] = {}
    age = re.fullmatch(r"(\d{1,3})([YMWD]?)", _text(dataset, "PatientAge"))
    if age:
        values["age"] = int(age[1]) * _YEARS[age[2]]
    for name, keyword, known in (
        ("sex", "PatientSex", ("M", "F", "O")),
        ("view_position", "ViewPosition", _VIEWS),
        ("photometric_interpretation", "PhotometricInterpretation", _PHOTOMETRIC),
    ):
        if _text(dataset, keyword) in known:
            values[name] = _text(dataset, keyword)
    spacing = _spacing(dataset)
    if spacing:
        values["pixel_spacing"] = spacing
    return values


@functools.cache
def _pydicom() -> ModuleType:
    try:
        import pydicom
        import pydicom.encaps
        import pydicom.filereader
        import pydicom.pixels
    except ImportError:
        raise UserError(
            "reading DICOM needs pydicom, which is not installed; expected the extra 'dicom': pip install 'msfl_jax[dicom]'"
        ) from None
    # Both quote header values: of a damaged file, any of them.
    logging.getLogger("pydicom").propagate = False
    warnings.filterwarnings("ignore", module=r"pydicom\b")
    return pydicom


@contextlib.contextmanager
def _refusing(data: bytes) -> Iterator[None]:
    """Whatever pydicom raises about a damaged file, as one line that quotes nothing of it."""
    try:
        yield
    except (MsflError, MemoryError):
        raise
    except Exception:
        raise DataError(
            f"DICOM of {len(data)} bytes is damaged or truncated; expected an intact file with one image; fetch it again"
        ) from None


def _read(data: bytes, keywords: list[str] | None = None) -> Any:
    """The dataset of a file, or only the given elements of it."""
    if not is_dicom(data):
        raise DataError(f"file of {len(data)} bytes is no DICOM: 'DICM' is not at byte 128; fetch it again")
    pydicom = _pydicom()
    start = io.BytesIO(data)
    start.seek(132)
    meta = pydicom.filereader.read_dataset(start, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
    if meta.get("TransferSyntaxUID") == _DEFLATED:
        # A small file could fill the memory: pydicom inflates before anything can be checked.
        raise DataError("DICOM is deflated as a whole; expected another transfer syntax; convert it first")
    return pydicom.dcmread(io.BytesIO(data), specific_tags=keywords, stop_before_pixels=keywords is not None)


def _check_header(dataset: Any, max_pixels: int) -> None:
    if "PixelData" not in dataset:
        raise DataError("DICOM has no pixel data; expected a radiograph; exclude it")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise DataError(f"DICOM has {frames} frames; expected one; exclude it or split it")
    rasters.check_size(int(dataset.Rows), int(dataset.Columns), max_pixels)
    if dataset.PhotometricInterpretation not in _PHOTOMETRIC:
        raise DataError(
            f"DICOM has no known colours; expected one of {', '.join(sorted(_PHOTOMETRIC))}; convert it first"
        )


def _is_plain_jpeg(dataset: Any) -> bool:
    return (
        dataset.file_meta.TransferSyntaxUID == _JPEG_BASELINE
        and dataset.SamplesPerPixel == 1
        and dataset.BitsAllocated == dataset.BitsStored == 8
        and not dataset.get("PixelRepresentation")
    )


def _jpeg_frame(dataset: Any) -> bytes:
    frame = _pydicom().encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
    frame = frame[:-1] if frame.endswith(b"\xff\xd9\0") else frame  # padded to an even length
    if not frame.startswith(b"\xff\xd8") or rasters.declared_size(frame) != (dataset.Rows, dataset.Columns):
        raise DataError("DICOM holds no JPEG of the size that its header says; expected one; fetch it again")
    return frame


def _stored_pixels(dataset: Any, max_pixels: int) -> Shaped[np.ndarray, "H W"] | Shaped[np.ndarray, "H W C"]:
    """The pixels as stored: integers of BitsStored bits, colours as red, green and blue."""
    if _is_plain_jpeg(dataset):  # needs no Pillow, and gives its pixels ten times as fast
        return rasters.decode_raster(_jpeg_frame(dataset), max_pixels=max_pixels)
    syntax = dataset.file_meta.TransferSyntaxUID
    pixels = _pydicom().pixels
    package = _PACKAGES.get(syntax.removeprefix(_COMPRESSED))
    extra = "'msfl_jax[dicom]'" if package == "pillow" else package
    advice = f"pip install {extra}" if package else "convert it to another transfer syntax"
    try:
        available = pixels.get_decoder(syntax).is_available
    except NotImplementedError:
        available = False
    if not available:
        known = f", {syntax.name}," if syntax.type == "Transfer Syntax" else ""
        # What can be installed is wanting on this machine, not in the file.
        kind = UserError if package else DataError
        raise kind(f"DICOM's transfer syntax{known} has no decoder here; {advice}")
    try:
        return pixels.pixel_array(dataset, index=0)
    except Exception:
        if package is None or package == "pillow":
            raise
        # Pillow takes JPEG with 12 bits and some JPEG 2000 for its own, and then fails on them.
        raise DataError(f"DICOM's pixels, {syntax.name}, cannot be decoded; {advice}, if the file is intact") from None


def _gray_levels(
    dataset: Any, stored: Shaped[np.ndarray, "H W"] | Shaped[np.ndarray, "H W C"]
) -> UInt8[np.ndarray, "H W"]:
    padding = None
    if stored.ndim == 3 or dataset.PhotometricInterpretation == _PALETTE:
        values = _luma(dataset, stored)
        levels = values if values.dtype == np.uint8 else _stretch(values, None)
    else:
        padding = _padding(dataset, stored)
        levels = _displayed(dataset, stored, padding)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        levels = 255 - levels
    if padding is not None:
        levels = np.where(padding, np.uint8(0), levels)
    return levels


def _displayed(
    dataset: Any, stored: Shaped[np.ndarray, "H W"], padding: Bool[np.ndarray, "H W"] | None
) -> UInt8[np.ndarray, "H W"]:
    values = _rescaled(dataset, stored)
    shown = _windowed(dataset, values)
    if shown is not None:
        return np.rint(shown * 255).astype(np.uint8)
    if values is stored and stored.dtype == np.uint8 and dataset.BitsStored == 8:
        return stored
    return _stretch(values, padding)


def _keeps_levels(dataset: Any) -> bool:
    """Whether rescaling and window leave every 8 bit level as it is."""
    ramp = np.arange(256, dtype=np.uint8)[None]
    values = _rescaled(dataset, ramp)
    shown = _windowed(dataset, values)
    # Without a window, rescaled levels are scaled by a minimum and a maximum that only the pixels tell.
    return values is ramp if shown is None else np.array_equal(np.rint(shown * 255), ramp)


def _rescaled(dataset: Any, stored: Shaped[np.ndarray, "H W"]) -> Shaped[np.ndarray, "H W"]:
    """Modality LUT or rescaling (PS3.3, C.11.1); `stored` itself where there is nothing to do."""
    table = _table(dataset, "ModalityLUTSequence")
    if table is not None:
        return _look_up(table, stored)
    slope, intercept = _number(dataset, "RescaleSlope"), _number(dataset, "RescaleIntercept")
    if slope == 0:
        raise DataError("DICOM's RescaleSlope is 0; expected another number; exclude it")
    if (slope is None or slope == 1) and not intercept:
        return stored
    return stored.astype(np.float32) * np.float32(slope or 1) + np.float32(intercept or 0)


def _windowed(dataset: Any, values: Shaped[np.ndarray, "H W"]) -> Float32[np.ndarray, "H W"] | None:
    """VOI LUT or window (PS3.3, C.11.2), black 0 and white 1; None where there is neither."""
    table = _table(dataset, "VOILUTSequence")
    if table is not None:
        entries = table[1].astype(np.float32)
        low, high = entries.min(), entries.max()
        return (_look_up((table[0], entries), values) - low) / max(np.float32(1), high - low)
    centre, width = _number(dataset, "WindowCenter"), _number(dataset, "WindowWidth")
    if centre is None or width is None:
        return None
    function = _text(dataset, "VOILUTFunction") or "LINEAR"
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID") or width < (1 if function == "LINEAR" else 1e-6):
        raise DataError("DICOM's window has no width or no known function; expected a width of 1 or more; exclude it")
    values = values.astype(np.float32)
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -80, 80)))
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    if width == 0:
        return (values > centre).astype(np.float32)
    return np.clip((values - centre) / width + 0.5, 0, 1)


def _table(dataset: Any, sequence: str) -> tuple[int, Shaped[np.ndarray, "N"]] | None:
    """First mapped value and entries of a sequence's first look-up table."""
    item: Any = next(iter(dataset.get(sequence) or ()), None)
    if item is None or not item.get("LUTDescriptor") or not item.get("LUTData"):
        return None
    count, first, _ = (int(number) for number in item.LUTDescriptor)
    entries = item.LUTData
    if isinstance(entries, bytes):
        order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
        entries = np.frombuffer(entries, np.uint8 if len(entries) < 2 * (count or 65536) else f"{order}u2")
    return first, np.atleast_1d(entries)[: count or 65536]


def _look_up(
    table: tuple[int, Shaped[np.ndarray, "N"]], values: Shaped[np.ndarray, "H W"]
) -> Shaped[np.ndarray, "H W"]:
    first, entries = table
    return entries[np.clip(np.rint(values.astype(np.float32)) - first, 0, len(entries) - 1).astype(np.int32)]


def _padding(dataset: Any, stored: Shaped[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"] | None:
    """Pixels that fill the image up to a rectangle (PS3.3, C.7.5.1.1.2)."""
    first = _number(dataset, "PixelPaddingValue")
    if first is None:
        return None
    last = _number(dataset, "PixelPaddingRangeLimit")
    ends = [first, first if last is None else last]
    if stored.dtype.kind == "i":  # some writers give the bits of a negative value as an unsigned number
        ends = [end - 2**dataset.BitsAllocated if end >= 2 ** (dataset.BitsAllocated - 1) else end for end in ends]
    return (stored >= min(ends)) & (stored <= max(ends))


def _stretch(values: Shaped[np.ndarray, "H W"], padding: Bool[np.ndarray, "H W"] | None) -> UInt8[np.ndarray, "H W"]:
    """From the minimum to the maximum of what is no padding."""
    inside = values if padding is None or padding.all() else values[~padding]
    low, high = np.float32(inside.min()), np.float32(inside.max())
    if low == high:
        return np.zeros(values.shape, np.uint8)
    return np.clip(np.round((values - low) * (255 / (high - low))), 0, 255).astype(np.uint8)


def _luma(dataset: Any, stored: Shaped[np.ndarray, "H W"] | Shaped[np.ndarray, "H W C"]) -> Shaped[np.ndarray, "H W"]:
    if dataset.PhotometricInterpretation == _PALETTE:
        stored = _pydicom().pixels.apply_color_lut(stored, dataset)[..., :3]
        if stored.dtype == np.uint16:  # entries fill 16 bits, whatever the image shows of them
            stored = (stored >> 8).astype(np.uint8)
    return cv2.cvtColor(stored, cv2.COLOR_RGB2GRAY)


def _text(dataset: Any, keyword: str) -> str:
    """A word in capitals; empty where there is none or not one alone."""
    try:
        value = dataset.get(keyword)
    except Exception:  # a damaged element: pydicom converts it when it is asked for
        return ""
    return value.strip().upper() if isinstance(value, str) else ""


def _number(dataset: Any, keyword: str) -> float | None:
    """The first number of an element; None where there is none."""
    try:
        value = dataset.get(keyword)
        if isinstance(value, Sequence) and not isinstance(value, str):
            value = value[0] if len(value) else None
        number = None if value is None or value == "" else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if number is not None and not math.isfinite(number):
        raise DataError(f"DICOM's {keyword} is no number; expected one; exclude it")
    return number


def _spacing(dataset: Any) -> tuple[float, float] | None:
    try:
        rows, columns = (float(number) for number in dataset.PixelSpacing)
    except Exception:  # missing, one number, or none at all
        return None
    return (rows, columns) if 0 < rows < math.inf and 0 < columns < math.inf else None
