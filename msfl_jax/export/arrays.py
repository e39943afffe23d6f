"""How single arrays change between our parameters and the tensors of other formats: grey and colour, transposed, on another grid.

NumPy only. Sums are made in float64 and rounded once, so that what an export spreads over three colours an import puts together bit by bit.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32

COLOURS = 3


class Pixels(NamedTuple):
    """How a model's pixels in [0, 1] are normalised, one mean and one deviation for each colour."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @classmethod
    def grey(cls, mean: float, deviation: float) -> "Pixels":
        """The same for all three colours."""
        return cls((mean,) * COLOURS, (deviation,) * COLOURS)


IMAGENET = Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = Pixels.grey(0.5, 0.5)
CLIP = Pixels((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
CHEST = Pixels.grey(0.4978, 0.2449)


def colour_kernel(kernel: Float32[np.ndarray, "K D"]) -> Float32[np.ndarray, "D 3 p p"]:
    """A grey patch kernel as a convolution over three colours, a third for each: equal where the three colours are.

    The last colour gets what the rounded thirds leave over (exact, it differs in the last bit), so that the three add up to the kernel bit by bit.
    """
    side = round(kernel.shape[0] ** 0.5)
    whole = kernel.T.reshape(-1, side, side)
    third = whole / np.float32(COLOURS)
    return np.ascontiguousarray(np.stack([third, third, whole - 2 * third], axis=1))  # files are written as memory lies


def grey_kernel(
    weight: Float[np.ndarray, "D C p p"], source: Pixels, ours: Pixels
) -> tuple[Float32[np.ndarray, "K D"], Float[np.ndarray, " D"]]:
    """A convolution over colours as a kernel over grey pixels, exact for grey input.

    With z our normalised pixel, x = z * deviation + mean is what the other model normalises by its own numbers of each colour; both are linear, so
    a factor goes into the kernel and a constant into the bias.

    Args:
      weight: C is 3, or 1 for a model of grey images.
      source: what the weight was trained with.
      ours: what our model normalises with; its first colour counts.

    Returns:
      The kernel, and what is to be added to the bias (float64; 0 where both normalise alike).
    """
    weight = np.asarray(weight, np.float64)
    deviation = np.asarray(source.deviation[: weight.shape[1]])
    gain = ours.deviation[0] / deviation
    shift = (ours.mean[0] - np.asarray(source.mean[: weight.shape[1]])) / deviation
    kernel = np.einsum("dchw,c->dhw", weight, gain).reshape(len(weight), -1).T
    return kernel.astype(np.float32), np.einsum("dchw,c->d", weight, shift)


def colour_pixels(tensor: Float32[np.ndarray, "K *rest"]) -> Float32[np.ndarray, "3*K *rest"]:
    """Rows that predict grey pixels as rows that predict three equal colours, colours innermost (MAE's order)."""
    return np.repeat(tensor, COLOURS, axis=0)


def grey_pixels(tensor: Float[np.ndarray, "R *rest"]) -> Float32[np.ndarray, "R//3 *rest"]:
    """Rows that predict three colours as rows that predict their mean."""
    each = np.asarray(tensor, np.float64).reshape(-1, COLOURS, *tensor.shape[1:])
    return (each.sum(axis=1) / COLOURS).astype(np.float32)


def square_grid(rows: int, class_token: bool) -> int:
    """Patches along one side of a table of positions; 0 where the rows are no square."""
    patches = rows - class_token
    side = round(max(patches, 0) ** 0.5)
    return side if side * side == patches else 0
