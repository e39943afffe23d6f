"""JPEG and PNG files as grey levels, refused where OpenCV would fill in what is missing."""

import struct
import zlib

import cv2
import numpy as np
from jaxtyping import Shaped, UInt8

from input_pipeline.errors import DataError

MAX_PIXELS = 64_000_000

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_SIGNATURE = b"\xff\xd8"
_JPEG_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0..15 less DHT, JPG and DAC
_JPEG_MARKERS_WITHOUT_LENGTH = frozenset({0x00, 0x01, 0xFF, *range(0xD0, 0xDA)})
_JPEG_START_OF_SCAN = 0xDA


def decode_raster(data: bytes, *, max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "H W"]:
    """Decodes a JPEG or PNG file to grey levels; EXIF orientation is ignored.

    Colour becomes luma (ITU-R BT.601), transparency is dropped, palettes and 1, 2 and 4 bit samples are expanded, and 16 bit samples are
    scaled from the image's own minimum and maximum to 0..255, so that 12 bit radiographs are neither clipped nor black. A JPEG without its
    end marker and a PNG with a wrong checksum are refused: OpenCV would fill the rest with grey.

    Args:
      data: the whole file.
      max_pixels: more pixels than this are refused from the header, before anything is allocated.

    Raises:
      DataError: neither of the two, truncated, damaged, undecodable, or too large.
    """
    check_size(*declared_size(data), max_pixels)
    is_jpeg = data.startswith(_JPEG_SIGNATURE)
    flags = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION if is_jpeg else cv2.IMREAD_UNCHANGED
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        image = None
    if image is None:
        raise DataError(
            f"image of {len(data)} bytes cannot be decoded; expected a baseline or progressive JPEG, or a PNG"
        )
    return gray_levels(image)


def gray_levels(image: Shaped[np.ndarray, "H W"] | Shaped[np.ndarray, "H W C"]) -> UInt8[np.ndarray, "H W"]:
    """Pixels of 8 or 16 bits as grey levels, by the rules of `decode_raster`.

    Args:
      image: uint8 or uint16; colours as OpenCV has them: blue, green, red, and perhaps transparency.
    """
    return _to_uint8(_to_luma(image))


def is_raster(data: bytes) -> bool:
    """Whether a file begins as a JPEG or PNG."""
    return data.startswith((_JPEG_SIGNATURE, _PNG_SIGNATURE))


def declared_size(data: bytes) -> tuple[int, int]:
    """Returns (height, width) as the header of a JPEG or PNG says, after checking that the file has its end.

    Raises:
      DataError: neither of them, truncated or damaged.
    """
    if data.startswith(_PNG_SIGNATURE):
        return _inspect_png(data)
    if data.startswith(_JPEG_SIGNATURE):
        return _inspect_jpeg(data)
    raise DataError(f"image of {len(data)} bytes is neither JPEG nor PNG nor DICOM; expected one of them")


def check_size(height: int, width: int, max_pixels: int) -> None:
    """Refuses an image without pixels or with too many.

    Raises:
      DataError: says how many there are.
    """
    if not 0 < height * width <= max_pixels:
        raise DataError(f"image has {height} x {width} pixels; expected 1 to {max_pixels} in all; exclude or shrink it")


def _inspect_png(data: bytes) -> tuple[int, int]:
    """Returns (height, width) after checking every chunk's checksum up to IEND (PNG specification, sections 5.3 and 11.2)."""
    size = (0, 0)
    position = len(_PNG_SIGNATURE)
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            break
        if zlib.crc32(memoryview(data)[position + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise DataError(
                f"PNG is damaged: wrong checksum at byte {position}; expected an intact file; fetch it again"
            )
        if kind == b"IHDR" and length == 13:
            width, height = struct.unpack_from(">II", data, position + 8)
            size = (height, width)
        if kind == b"IEND":
            return size
        position = end + 4
    raise DataError(f"PNG is truncated: {len(data)} bytes without an end chunk; expected a whole file; fetch it again")


def _inspect_jpeg(data: bytes) -> tuple[int, int]:
    """Returns (height, width) after checking that an end marker follows the first scan."""
    size, scan = _read_jpeg_header(data)
    # An embedded thumbnail has an end marker of its own, so only one after the scan's start counts. It is the last bytes of nearly every file.
    if scan < 0 or data.rfind(b"\xff\xd9", scan) < 0:
        raise DataError(
            f"JPEG is truncated: {len(data)} bytes without an end marker; expected a whole file; fetch it again"
        )
    return size


def _read_jpeg_header(data: bytes) -> tuple[tuple[int, int], int]:
    """Returns (height, width) of the frame header and the offset of the first scan, -1 without one (ITU-T T.81, annex B)."""
    size = (0, 0)
    position = data.find(b"\xff", 2)
    while 0 <= position <= len(data) - 4:
        marker = data[position + 1]
        if marker == _JPEG_START_OF_SCAN:
            return size, position
        if marker in _JPEG_MARKERS_WITHOUT_LENGTH:
            position = data.find(b"\xff", position + 1)
            continue
        if marker in _JPEG_FRAME_MARKERS and position + 9 <= len(data):
            size = struct.unpack_from(">HH", data, position + 5)
        (length,) = struct.unpack_from(">H", data, position + 2)
        position = data.find(b"\xff", position + 2 + length)
    return size, -1


def _to_luma(image: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "H W"]:
    if image.ndim == 2:
        return image
    return cv2.cvtColor(image, cv2.COLOR_BGRA2GRAY if image.shape[2] == 4 else cv2.COLOR_BGR2GRAY)


def _to_uint8(image: Shaped[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W"]:
    if image.dtype == np.uint8:
        return image
    low, high = int(image.min()), int(image.max())
    return np.round((image - np.float32(low)) * (255 / max(1, high - low))).astype(np.uint8)
