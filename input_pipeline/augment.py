"""What a training view shows, as numbers drawn at random; `images.training_view` makes the pixels."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

Placement = Literal["centre", "anywhere"]


@dataclass(frozen=True)
class Motion:
    """How one training view differs from the evaluation view.

    Attributes:
      height: of what is shown, as a share of the evaluation view's height.
      width: likewise.
      down: displacement of its centre, as a share of the evaluation view's height.
      right: likewise, of its width.
      degrees: by which the content is turned about the view's centre, counter-clockwise.
      mirrored: whether left and right are swapped, after all else.
    """

    height: float
    width: float
    down: float
    right: float
    degrees: float
    mirrored: bool


def draw(
    rng: np.random.Generator,
    *,
    scale: tuple[float, float] = (1.0, 1.0),
    shift: float = 0.0,
    aspect: tuple[float, float] = (1.0, 1.0),
    placement: Placement = "centre",
    zoom: tuple[float, float] = (1.0, 1.0),
    rotation: float = 0.0,
    flip: bool = False,
) -> Motion:
    """Draws a crop, a displacement and a similarity, each independent of the others' settings.

    Three numbers are drawn from `rng`, whatever the settings, so that what is drawn after them stays the same. The others come from 2^128
    numbers further on in its stream: turning one on changes neither the crop nor the sentences that a record shows.

    Args:
      rng: of a bit generator that can jump, as PCG64 (NumPy's default) and Philox (grain's).
      scale: range of the crop's area, as a share of the evaluation view's; uniform.
      shift: largest displacement along each axis, as a share of the evaluation view's side; uniform.
      aspect: range of the crop's width over its height, relative to the evaluation view's; uniform in the logarithm. A side that
        would grow longer than the evaluation view's, though the area does not, is cut to it.
      placement: where the crop lies in the evaluation view, before it is displaced: in its centre, or anywhere inside, uniform.
      zoom: range of the magnification; uniform; 1.25 shows the middle 80 % of the crop's sides.
      rotation: largest angle in degrees, in both directions; uniform.
      flip: whether half of the views are mirrored.
    """
    moved = (aspect, zoom, rotation, placement, flip) != ((1.0, 1.0), (1.0, 1.0), 0.0, "centre", False)
    # Begun only where it is needed: it takes as long as all else here.
    later = np.random.Generator(rng.bit_generator.jumped()) if moved else None  # pyright: ignore[reportAttributeAccessIssue]
    side = np.sqrt(rng.uniform(*scale))
    down, right = rng.uniform(-shift, shift, size=2)
    if later is None:
        return Motion(float(side), float(side), float(down), float(right), degrees=0.0, mirrored=False)
    stretch = np.sqrt(np.exp(later.uniform(*np.log(aspect))))
    height, width = (min(length, max(1.0, side)) for length in (side / stretch, side * stretch))
    magnification = later.uniform(*zoom)
    degrees = later.uniform(-rotation, rotation)
    place = later.uniform(-0.5, 0.5, size=2)
    mirrored = later.random() < 0.5
    if placement == "anywhere":
        down, right = down + place[0] * max(0.0, 1 - height), right + place[1] * max(0.0, 1 - width)
    return Motion(
        height=float(height / magnification),
        width=float(width / magnification),
        down=float(down),
        right=float(right),
        degrees=float(degrees),
        mirrored=bool(flip and mirrored),
    )
