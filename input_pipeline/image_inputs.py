"""An image in whatever form a program has it, as the grey levels that the decoder of files gives.

What is no file follows the rules of `rasters.decode_raster`: colour becomes luma, transparency is dropped, and 16 bits are scaled from the image's
own minimum and maximum. No message names a path: those of radiographs hold identifiers.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from jaxtyping import Shaped, UInt8

from input_pipeline import rasters
from input_pipeline.errors import DataError, MsflError, UserError
from input_pipeline.images import decode_gray

if TYPE_CHECKING:
    from PIL.Image import Image

    ImageInput = str | Path | bytes | Image | np.ndarray
else:  # Pillow is an extra
    ImageInput = Any

EXPECTED = "a path or the bytes of a JPEG, PNG or DICOM file, a PIL image, or a NumPy array"
_SHAPES = "[H, W], [H, W, 1], or [H, W, 3] in the order red, green, blue; give several images as a list"


def as_list(images: ImageInput | Sequence[ImageInput]) -> list[ImageInput]:
    """The images of a list or tuple, or the one that is neither."""
    if isinstance(images, list | tuple):
        return list(images)
    return [cast(ImageInput, images)]


def read_image(image: ImageInput) -> UInt8[np.ndarray, "H W"]:
    """Grey levels of one image.

    Args:
      image: a path (str or Path) or the content (bytes) of a JPEG, PNG or DICOM file, a PIL image, or an array: uint8, uint16 or int16, [H, W] or
        [H, W, C] with 1 grey, 3 red-green-blue or 4 channels (the last is transparency). Arrays of pixels that a DICOM file inverts or windows
        must have been treated so: give the file instead.

    Raises:
      UserError: there is no such file, it cannot be read, or this is no image; or DICOM needs a package.
      DataError: the image is damaged, empty or too large.
    """
    if isinstance(image, str | Path):
        return decode_gray(_content(Path(image)))
    if isinstance(image, bytes):
        return decode_gray(image)
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if "PIL.Image" in sys.modules and isinstance(image, sys.modules["PIL.Image"].Image):
        return _from_pil(image)
    raise UserError(f"found {type(image).__name__}; expected {EXPECTED}")


def read_numbered(image: ImageInput, number: int, count: int) -> UInt8[np.ndarray, "H W"]:
    """`read_image`, its errors with the image's number, from 1, where it is one of several."""
    try:
        return read_image(image)
    except MsflError as error:
        which = f"image {number} of {count}" if count > 1 else "image"
        raise type(error)(f"{which}: {error}", code=error.code) from None


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        why = getattr(error, "strerror", None) or "no path"
        raise UserError(f"cannot be read ({why}); expected a JPEG, PNG or DICOM file") from None


def _from_array(pixels: Shaped[np.ndarray, "..."]) -> UInt8[np.ndarray, "H W"]:
    """Grey levels of an array whose colours are red, green and blue."""
    if pixels.dtype.newbyteorder("=") not in (np.uint8, np.uint16, np.int16):
        raise UserError(f"found an array of {pixels.dtype}; expected uint8, or uint16 or int16 for more than 8 bits")
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if pixels.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise UserError(f"found an array of {' x '.join(map(str, pixels.shape))}; expected {_SHAPES}")
    rasters.check_size(pixels.shape[0], pixels.shape[1], rasters.MAX_PIXELS)
    if pixels.dtype.kind == "i":  # scaled from the minimum later, so it may be 0
        pixels = pixels.astype(np.int32) - pixels.min().astype(np.int32)
    pixels = pixels.astype(np.uint8 if pixels.dtype == np.uint8 else np.uint16, copy=False)
    ordered = pixels[..., 2::-1] if channels > 1 else pixels.reshape(pixels.shape[:2])
    return rasters.gray_levels(np.ascontiguousarray(ordered))


def _from_pil(image: Any) -> UInt8[np.ndarray, "H W"]:
    """Grey levels of a PIL image; decodes it now if Pillow has not yet done so."""
    rasters.check_size(image.height, image.width, rasters.MAX_PIXELS)
    try:
        if image.mode == "I" or image.mode.startswith("I;16"):
            return _from_array(_sixteen_bits(np.asarray(image)))
        plain = image.mode in ("L", "RGB", "RGBA", "F")  # "F" is refused for its dtype; converted, it would be clipped
        return _from_array(np.asarray(image if plain else image.convert("RGB")))
    except (OSError, ValueError, SyntaxError):  # what Pillow raises where a file is damaged or a mode has no colours
        raise DataError(
            f"PIL image of mode '{image.mode}' cannot be decoded; expected an intact image; give the file's path"
        ) from None


def _sixteen_bits(values: Shaped[np.ndarray, "H W"]) -> Shaped[np.ndarray, "H W"]:
    """Values that Pillow keeps in 32 bits, in the 16 that they had in the file."""
    low, high = int(values.min()), int(values.max())
    if not 0 <= low <= high < 2**16:
        raise UserError(f"found a PIL image with values from {low} to {high}; expected 0 to 65535")
    return values.astype(np.uint16)
