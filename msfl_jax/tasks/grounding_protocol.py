"""How published evaluations of MS-CXR go from similarities on the patch grid to heat-maps and masks, step by step, in NumPy.

                 biovil                        maco                           afloc
  similarity     cosine                        raw product                    raw product
  smoothing      gaussian on the patch grid, reflected at its edges, in all three (`msfl_jax.metrics.smoothing`)
  enlarging      bilinear, pixel centres aligned, in all three (`msfl_jax.metrics.upsample`)
  boxes          a record each                 merged over the findings of an image's phrase, whatever its case
  several boxes  one union                     pixels in more than one count on neither side of the CNR
  margin         none                          none                           the outer sixteenth of the view

Two things are chosen beside the protocol, and belong to its name wherever numbers are printed.

The scaling of the heat before thresholds of .1 to .5: "minmax" stretches each map to -1..1 between its extremes, as MaCo and AFLoc do; "raw" takes
cosines as they are, which BioViL's published code leaves open, and whose IoU depends on the model's temperature. CNR and pointing game do not change.

The geometry: "own" looks at what the model was trained to see and measures in pixels of the source image, with edges of boxes rounded. "published"
cuts and measures as the published code does:
  biovil    the centred 480 of 512 parts of the shorter side, in pixels of the source image
  maco      the image padded to a square, in 224 x 224 pixels; boxes are shrunk with it and rounded down, so that the whole of an image of 3,056
            pixels is 223 wide (224 / 3056 * 3056 is a little less than 224 in binary) and boxes below a pixel vanish
  afloc     as maco, and its margin is 14 of the 224 pixels
There, only pixels that were seen count as inside a box; in the own geometry those of a box that the model did not see count against its IoU.

MaCo's learned positional prior and AFLoc's enlarged input belong to their weights and are not imitated.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8

from input_pipeline.errors import UserError
from input_pipeline.images import view_rectangle
from input_pipeline.records import Record
from msfl_jax.config_build import nearest
from msfl_jax.metrics import normalise_heatmap, upsample

Name = Literal["biovil", "maco", "afloc"]
Scaling = Literal["minmax", "raw"]
Geometry = Literal["own", "published"]

AFLOC_MARGIN = 1 / 16  # 14 of 224 pixels
_BIOVIL_CROP, _BIOVIL_RESIZE = 480, 512
_FRAME = 224  # pixels of a side in which MaCo and AFLoc measure
_SCALINGS = {"minmax": "heat scaled to -1..1 per map", "raw": "heat as it is"}
_VIEWS = {"own": "the run's own view, in source pixels", "published": "view and pixels of the published code"}


@dataclass(frozen=True)
class GroundingProtocol:
    """One way to measure; the text above says what its three parts mean."""

    name: Name
    scaling: Scaling = "minmax"
    geometry: Geometry = "own"

    def __str__(self) -> str:
        """`biovil/minmax`, and `maco/minmax/published` in the geometry of the published code."""
        return "/".join((self.name, self.scaling, *([self.geometry] if self.geometry != "own" else [])))

    @property
    def variant(self) -> str:
        """Short name for files: the protocol, and what differs from its default."""
        return "-".join((self.name, *(part for part in (self.scaling, self.geometry) if part not in ("minmax", "own"))))

    @property
    def explanation(self) -> str:
        """Scaling and geometry in words."""
        return f"{_SCALINGS[self.scaling]}; {_VIEWS[self.geometry]}"

    @property
    def cosine(self) -> bool:
        """Whether similarities are cosines; else they are raw products."""
        return self.name == "biovil"

    def view(self, image: UInt8[np.ndarray, "H W"], fit: str) -> tuple[UInt8[np.ndarray, "h w"], str]:
        """The image to look at, and how `input_pipeline.images.evaluation_view` makes it square.

        Args:
          image: any size, the shape of the source image.
          fit: the run's own.
        """
        if self.geometry == "own":
            return image, fit
        if self.name != "biovil":
            return image, "pad"
        top, left, side = _biovil_square(*image.shape)
        return image[top : top + side, left : left + side], "crop"

    def heat(self, grid: Float[np.ndarray, "*n G G"], size: tuple[int, int], fit: str) -> Float[np.ndarray, "*n H W"]:
        """Maps on the patch grid in the pixels that are measured; NaN where nothing was seen or nothing counts.

        Args:
          grid: smoothed similarities.
          size: (height, width) of the source image.
          fit: the run's own.
        """
        margin = AFLOC_MARGIN if self.name == "afloc" else 0.0
        if self.geometry == "own":
            return to_pixels(grid, size, fit=fit, margin=margin)
        if self.name != "biovil":
            return to_pixels(grid, (_FRAME, _FRAME), fit="squash", margin=margin)
        top, left, side = _biovil_square(*size)
        return _enlarge(grid, size, (top, left, side, side))

    def counts(self, boxes: Float[np.ndarray, "K 4"], size: tuple[int, int]) -> UInt8[np.ndarray, "H W"]:
        """In how many boxes each of the measured pixels lies; boxes and `size` are in pixels of the source image."""
        if self.geometry == "own" or self.name == "biovil":
            return count_boxes(boxes, size)
        counts = np.zeros((_FRAME, _FRAME), np.uint8)
        for x, y, width, height in transfer_boxes(boxes, size):
            counts[max(0, y) : max(0, y + height), max(0, x) : max(0, x + width)] += 1
        return counts

    def scaled(self, heat: Float[np.ndarray, "H W"]) -> Float[np.ndarray, "H W"]:
        """Heat as it meets the thresholds."""
        return normalise_heatmap(heat) if self.scaling == "minmax" else heat

    def merged(self, records: Sequence[Record]) -> list[Record]:
        """Records as they are measured: "maco" and "afloc" put the boxes of an image's phrase together, the first finding counts."""
        if self.name == "biovil":
            return list(records)
        groups: dict[tuple[str, str], Record] = {}
        for record in records:
            key = record.image_key, phrase_of(record).lower()
            known = groups.get(key)
            groups[key] = replace(known, boxes=np.concatenate([known.boxes, record.boxes])) if known else record
        return list(groups.values())


def known_protocol(name: str, scaling: str = "minmax", geometry: str = "own") -> GroundingProtocol:
    """A protocol by the words of a command line.

    Raises:
      UserError: a word is unknown, or raw products are to meet thresholds made for cosines.
    """
    for kind, word, choices in (
        ("protocol", name, get_args(Name)),
        ("scaling", scaling, get_args(Scaling)),
        ("geometry", geometry, get_args(Geometry)),
    ):
        if word not in choices:
            hint = nearest(word, choices)
            raise UserError(f"grounding: no {kind} '{word}'{hint}; expected one of {', '.join(choices)}")
    if scaling == "raw" and name != "biovil":
        raise UserError(
            f"grounding: scaling 'raw' compares thresholds of .1 to .5 with cosines, but '{name}' has raw products; "
            "take protocol 'biovil' or scaling 'minmax'"
        )
    return GroundingProtocol(cast(Name, name), cast(Scaling, scaling), cast(Geometry, geometry))


def phrase_of(record: Record) -> str:
    """The text that is searched for in a record's image."""
    return " ".join(record.sentences)


def to_pixels(
    grid: Float[np.ndarray, "*n G G"], size: tuple[int, int], *, fit: str = "crop", margin: float = 0.0
) -> Float[np.ndarray, "*n H W"]:
    """Enlarges maps on the patch grid into the part of an image that the model saw; NaN everywhere else.

    Args:
      grid: smoothed similarities.
      size: (height, width) of the image in pixels.
      fit: how the view was cut from the image (see `input_pipeline.images.view_rectangle`).
      margin: share of the view's side that is left out on each of its edges.
    """
    top, left, height, width = view_rectangle(*size, fit)
    rectangle = int(np.floor(top)), int(np.floor(left)), max(1, round(height)), max(1, round(width))
    return _enlarge(grid, size, rectangle, margin)


def count_boxes(boxes: Float[np.ndarray, "K 4"], size: tuple[int, int]) -> UInt8[np.ndarray, "H W"]:
    """In how many of the boxes (x, y, width, height) each pixel lies.

    Edges are rounded to whole pixels and cut at the image; a box thinner than a pixel keeps one.
    """
    counts = np.zeros(size, np.uint8)
    for x, y, width, height in boxes:
        left, top = round(float(x)), round(float(y))
        right, bottom = max(left + 1, round(float(x + width))), max(top + 1, round(float(y + height)))
        counts[max(0, top) : max(0, bottom), max(0, left) : max(0, right)] += 1
    return counts


def scale_boxes(
    boxes: Float[np.ndarray, "K 4"], original_size: tuple[int, int], size: tuple[int, int]
) -> Float[np.ndarray, "K 4"]:
    """Boxes (x, y, width, height) in pixels of the source image as those of the same image resized to (height, width)."""
    vertical, horizontal = size[0] / original_size[0], size[1] / original_size[1]
    return (boxes * np.asarray([horizontal, vertical, horizontal, vertical])).astype(boxes.dtype)


def transfer_boxes(
    boxes: Shaped[np.ndarray, "K 4"], size: tuple[int, int], frame: int = _FRAME
) -> Int[np.ndarray, "K 4"]:
    """Boxes of an image that is shrunk to `frame` pixels and padded to a square, all rounded down as MaCo and AFLoc do.

    Args:
      boxes: x, y, width and height in pixels of the source image.
      size: (height, width) of the source image.
      frame: side of the square; its longer padding is at the right or the bottom.

    Returns:
      x, y, width and height; a side below a pixel is 0.
    """
    scale = frame / max(size)
    down, right = ((frame - int(side * scale)) // 2 if side < max(size) else 0 for side in size)
    return np.floor(np.asarray(boxes, np.float64) * scale + [right, down, 0, 0]).astype(int)


def _biovil_square(height: int, width: int) -> tuple[int, int, int]:
    """Top, left and side of what is left of an image after a resize to 512 and a centre crop of 480, in its own pixels."""
    side = max(1, _BIOVIL_CROP * min(height, width) // _BIOVIL_RESIZE)
    return (height - side) // 2, (width - side) // 2, side


def _enlarge(
    grid: Float[np.ndarray, "*n G G"], size: tuple[int, int], rectangle: tuple[int, int, int, int], margin: float = 0.0
) -> Float[np.ndarray, "*n H W"]:
    """Maps enlarged to a rectangle (top, left, height, width) that may reach beyond the image."""
    top, left, height, width = rectangle
    view = upsample(grid, (height, width))
    rows, columns = round(height * margin), round(width * margin)
    pixels = np.full((*grid.shape[:-2], *size), np.nan, grid.dtype)
    shown = (_overlap(top + rows, height - 2 * rows, size[0]), _overlap(left + columns, width - 2 * columns, size[1]))
    inside = (slice(shown[0].start - top, shown[0].stop - top), slice(shown[1].start - left, shown[1].stop - left))
    pixels[..., *shown] = view[..., *inside]
    return pixels


def _overlap(start: int, length: int, limit: int) -> slice:
    """The pixels from `start` that lie within 0..limit."""
    first = min(max(start, 0), limit)
    return slice(first, max(first, min(start + length, limit)))
