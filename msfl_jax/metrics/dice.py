"""Overlap of a predicted and a true mask."""

import numpy as np
from jaxtyping import Bool, Real


def dice(
    predicted: Bool[np.ndarray, "H W"] | Real[np.ndarray, "H W"],
    target: Bool[np.ndarray, "H W"] | Real[np.ndarray, "H W"],
    *,
    empty: float = 1.0,
) -> float:
    """Twice the common pixels over the pixels of both masks, of one image.

    Args:
      predicted: non-zero is foreground.
      target: non-zero is foreground.
      empty: the value when both masks are empty; nan leaves such images out of a nan-mean.

    Returns:
      In 0..1; 0 when exactly one mask is empty.
    """
    predicted, target = predicted != 0, target != 0
    pixels = int(predicted.sum()) + int(target.sum())
    return 2.0 * int((predicted & target).sum()) / pixels if pixels else empty
