"""Radiographs as arrays: decode JPEG, PNG and DICOM to grey, resize, and cut the square views that models see.

Everything is uint8 [H, W]; normalisation happens on the device. Nothing flips an image unless told to, because reports say left and right.
"""

import math

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from input_pipeline import augment, dicom, rasters
from input_pipeline.errors import DataError, UserError

MAX_PIXELS = rasters.MAX_PIXELS
_BLURRED = (1.5, 2.3)  # from which to which ratio of sizes a view is blurred rather than averaged


def decode_gray(data: bytes, *, max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "H W"]:
    """Decodes a JPEG, PNG or DICOM file to grey levels: see `rasters.decode_raster` and `dicom.decode_dicom`.

    Args:
      data: the whole file.
      max_pixels: more pixels than this are refused from the header, before anything is allocated.

    Raises:
      DataError: none of these formats, truncated, damaged, undecodable, or too large.
      UserError: a DICOM file where pydicom, or what decodes it, is not installed.
    """
    if dicom.is_dicom(data):
        return dicom.decode_dicom(data, max_pixels=max_pixels)
    return rasters.decode_raster(data, max_pixels=max_pixels)


def equalize(image: UInt8[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W"]:
    """Spreads grey levels so that each share of the range holds as many pixels; almost nothing happens to an image that this was done to before."""
    return np.asarray(cv2.equalizeHist(np.ascontiguousarray(image)))


def resize_short_side(
    image: UInt8[np.ndarray, "H W"], short_side: int, *, max_pixels: int = MAX_PIXELS
) -> UInt8[np.ndarray, "h w"]:
    """Resizes so that the shorter side has `short_side` pixels; the other keeps the aspect ratio, rounded.

    Raises:
      DataError: the result would exceed `max_pixels` (a strip one pixel high, for instance).
    """
    height, width = image.shape
    scale = short_side / min(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if size[0] * size[1] > max_pixels:
        raise DataError(
            f"image of {height} x {width} pixels is too elongated for a short side of {short_side}; exclude it"
        )
    return _resize(image, size)


def encode_jpeg(image: UInt8[np.ndarray, "H W"], quality: int = 95) -> bytes:
    """Encodes grey levels as a baseline JPEG; the same pixels always give the same bytes."""
    encoded, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not encoded:
        raise DataError(
            f"image of {image.shape[0]} x {image.shape[1]} pixels cannot be stored as JPEG; sides end at 65500"
        )
    return data.tobytes()


def encode_mask(mask: Bool[np.ndarray, "H W"]) -> bytes:
    """Encodes a segmentation as a PNG of 0 and 255; the same mask always gives the same bytes."""
    return cv2.imencode(".png", mask.astype(np.uint8) * np.uint8(255))[1].tobytes()


def decode_mask(data: bytes) -> Bool[np.ndarray, "H W"]:
    """The segmentation of a record.

    Raises:
      DataError: not a mask that `encode_mask` wrote.
    """
    return decode_gray(data) > 0


def view_rectangle(height: int, width: int, fit: str) -> tuple[float, float, float, float]:
    """Returns what an evaluation view shows, as (top, left, height, width) in pixels of the given image.

      crop     the centred square of the shorter side; the ends of the longer side are not seen
      pad      the centred square around the longer side; top or left is negative, black outside the image
      squash   the whole image, stretched to a square

    A point x of the image lies at (x - left) * size / width of a view of `size` pixels, up to the half pixel by which
    `evaluation_view` rounds an odd margin.

    Raises:
      UserError: `fit` is none of the three.
    """
    if fit == "squash":
        return 0.0, 0.0, float(height), float(width)
    if fit not in ("crop", "pad"):
        raise UserError(f"found image fit '{fit}'; expected 'crop', 'pad' or 'squash'")
    side = float(min(height, width) if fit == "crop" else max(height, width))
    return (height - side) / 2, (width - side) / 2, side, side


def evaluation_view(image: UInt8[np.ndarray, "H W"], size: int, fit: str = "crop") -> UInt8[np.ndarray, "size size"]:
    """Renders the rectangle of `view_rectangle` at `size` x `size` pixels."""
    canvas = _square_canvas(image) if fit == "pad" else image
    height, width = canvas.shape
    return _render(canvas, view_rectangle(height, width, fit), size)


def training_view(
    image: UInt8[np.ndarray, "H W"],
    size: int,
    rng: np.random.Generator,
    *,
    scale: tuple[float, float] = (1.0, 1.0),
    shift: float = 0.0,
    fit: str = "crop",
    aspect: tuple[float, float] = (1.0, 1.0),
    placement: augment.Placement = "centre",
    zoom: tuple[float, float] = (1.0, 1.0),
    rotation: float = 0.0,
    flip: bool = False,
) -> UInt8[np.ndarray, "size size"]:
    """Renders the evaluation view cropped, shifted, magnified, turned and mirrored at random; never mirrored unless told to.

    Args:
      image: any size.
      size: side of the view in pixels.
      rng: three numbers are drawn from it, whatever the settings.
      scale: range of the shown area, as a fraction of the evaluation view's area; drawn uniformly.
      shift: largest displacement along each axis, as a fraction of the evaluation view's side; drawn uniformly.
      fit: as for `view_rectangle`; with "pad" the black margin belongs to the picture.
      aspect: as for `augment.draw`, like the four that follow.
      placement: where the crop lies in the evaluation view.
      zoom: range of the magnification.
      rotation: largest angle in degrees.
      flip: whether half of the views are mirrored.

    Returns:
      The view; what lies beyond the picture repeats its edge. With the defaults it is the evaluation view.
    """
    motion = augment.draw(
        rng, scale=scale, shift=shift, aspect=aspect, placement=placement, zoom=zoom, rotation=rotation, flip=flip
    )
    canvas = _square_canvas(image) if fit == "pad" else image
    top, left, height, width = view_rectangle(canvas.shape[0], canvas.shape[1], fit)
    top += height * (motion.down + (1 - motion.height) / 2)
    left += width * (motion.right + (1 - motion.width) / 2)
    rectangle = (top, left, height * motion.height, width * motion.width)
    view = (
        _render_turned(canvas, rectangle, motion.degrees, size) if motion.degrees else _render(canvas, rectangle, size)
    )
    return np.ascontiguousarray(view[:, ::-1]) if motion.mirrored else view


def _square_canvas(image: UInt8[np.ndarray, "H W"]) -> UInt8[np.ndarray, "side side"]:
    height, width = image.shape
    side = max(height, width)
    canvas = np.zeros((side, side), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    canvas[top : top + height, left : left + width] = image
    return canvas


def _render(
    image: UInt8[np.ndarray, "H W"], rectangle: tuple[float, float, float, float], size: int
) -> UInt8[np.ndarray, "size size"]:
    """Cuts the rectangle at whole pixels, repeating the image's edge outside it, and resizes it."""
    top, left = int(np.floor(rectangle[0])), int(np.floor(rectangle[1]))
    height, width = max(1, round(rectangle[2])), max(1, round(rectangle[3]))
    return _resize_view(_cut(image, top, left, height, width), (size, size))


def _render_turned(
    image: UInt8[np.ndarray, "H W"], rectangle: tuple[float, float, float, float], degrees: float, size: int
) -> UInt8[np.ndarray, "size size"]:
    """Resizes the rectangle to the view, its content turned counter-clockwise about its centre.

    A warp looks at few pixels around each point, so it aliases when it shrinks. Therefore everything that the turned view can see is first
    shrunk to the view's own resolution, as upright views are; what is left is a turn without a change of scale. Axes that are enlarged
    are not resized first: the warp's cubic interpolation does that.
    """
    top, left, height, width = rectangle
    step = np.array([width, height]) / size  # pixels of the image along x and y, per pixel of the view
    centre = np.array([left + width / 2, top + height / 2])
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    # Cubic interpolation looks two pixels further, and rounding must not make it three.
    reach = step * (abs(cosine) + abs(sine)) * size / 2 + 2 * np.maximum(step, 1) - 1e-9
    first, last = np.floor(centre - reach).astype(int), np.ceil(centre + reach).astype(int)
    cut = last - first
    shrunk = np.maximum(1, np.round(cut / np.maximum(step, 1))).astype(int)
    seen = _cut(image, int(first[1]), int(first[0]), int(cut[1]), int(cut[0]))
    pixels = _resize_view(seen, (int(shrunk[0]), int(shrunk[1])))
    # From a pixel of the view to the point of the image that it shows, and to that point among `pixels`; centres lie at halves.
    turn = step[:, None] * np.array([[cosine, -sine], [sine, cosine]]) * (shrunk / cut)[:, None]
    offset = (centre - first) * shrunk / cut - turn @ np.full(2, size / 2)
    matrix = np.column_stack([turn, turn @ np.full(2, 0.5) + offset - 0.5])
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(pixels, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_REPLICATE))


def _cut(image: UInt8[np.ndarray, "H W"], top: int, left: int, height: int, width: int) -> UInt8[np.ndarray, "h w"]:
    """The pixels of a rectangle; outside the image its edge is repeated."""
    rows, above, below = _clamp(top, height, image.shape[0])
    columns, before, after = _clamp(left, width, image.shape[1])
    inside = image[rows, columns]
    if not (above or below or before or after):
        return inside
    return np.asarray(cv2.copyMakeBorder(inside, above, below, before, after, cv2.BORDER_REPLICATE))


def _clamp(start: int, length: int, end: int) -> tuple[slice, int, int]:
    """Returns what of `length` places from `start` lies in 0..`end`, at least one, and how often its ends are repeated to fill up."""
    first, last = min(max(start, 0), end - 1), max(min(start + length, end), 1)
    before = min(max(-start, 0), length - 1)
    return slice(first, last), before, length - before - (last - first)


def _resize(image: UInt8[np.ndarray, "H W"], size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    """Area averaging when shrinking, cubic when enlarging: linear and cubic alias when shrinking radiographs.

    Args:
      image: at least one pixel.
      size: (width, height), OpenCV's order.
    """
    height, width = image.shape
    if size == (width, height):
        return np.ascontiguousarray(image)
    enlarging = width < size[0] and height < size[1]
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_CUBIC if enlarging else cv2.INTER_AREA))


def _resize_view(image: UInt8[np.ndarray, "H W"], size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    """`_resize` in less than half the time where a view is shrunk to about half: a blur over three pixels, then cubic interpolation.

    The blur's variance is (2 r^2 + 1) / 18 pixels^2 along an axis that shrinks by r; averaging areas has (r^2 + 1) / 12. With it
    the view is as near to that of Pillow's Lanczos filter as `_resize` comes, and as free of what is too fine for it to show, up to
    r = 2.3. It rounds to grey levels once more, which near r = 1 costs more than it gains; and whole numbers OpenCV averages fastest.

    Args:
      image: at least one pixel.
      size: (width, height), OpenCV's order.
    """
    across, down = (before / after for before, after in zip(image.shape[::-1], size, strict=True))
    if not (_BLURRED[0] <= min(across, down) <= max(across, down) <= _BLURRED[1]) or across == down == 2:
        return _resize(image, size)
    across, down = (math.sqrt((2 * ratio**2 + 1) / 18) for ratio in (across, down))
    blurred = cv2.GaussianBlur(image, (3, 3), sigmaX=across, sigmaY=down, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(cv2.resize(blurred, size, interpolation=cv2.INTER_CUBIC))
