"""Phrase grounding: how a heat-map is smoothed and enlarged, and how well it points at a mask."""

import numpy as np
from jaxtyping import Bool, Float, Int, Integer

Mask = Bool[np.ndarray, "H W"] | Integer[np.ndarray, "H W"]

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Heat above which a pixel is predicted, in the mean IoU reported for MS-CXR."""


def contrast_to_noise(heatmap: Float[np.ndarray, "H W"], mask: Mask) -> float:
    """Heat inside the mask minus heat outside, over the noise of both: (mean_in - mean_out) / sqrt(var_in + var_out).

    Signed, with population variances, as in the evaluation code of MaCo and AFLoc; BioViL takes the absolute value.

    Args:
      heatmap: any scale; nan where the model saw nothing, and such pixels count on neither side.
      mask: 1 inside, 0 outside; pixels above 1, where boxes were added up, count on neither side.

    Returns:
      nan when a side is empty, or when the heat is constant on both (no noise to compare with).
    """
    seen = ~np.isnan(heatmap)
    inside, outside = heatmap[seen & (mask == 1)].astype(np.float64), heatmap[seen & (mask == 0)].astype(np.float64)
    if not len(inside) or not len(outside):
        return float("nan")
    noise = np.sqrt(inside.var() + outside.var())
    return float((inside.mean() - outside.mean()) / noise) if noise > 0 else float("nan")


def iou_at(heatmap: Float[np.ndarray, "H W"], mask: Mask, threshold: float) -> float:
    """Common pixels of mask and prediction over the pixels of either.

    Args:
      heatmap: pixels above `threshold` are predicted, as given and without scaling; nan is never predicted.
      mask: non-zero inside.
      threshold: in the units of the heat-map.

    Returns:
      In 0..1; nan when the prediction or the mask is empty.
    """
    predicted, inside = heatmap > threshold, mask != 0
    if not predicted.any() or not inside.any():
        return float("nan")
    return float((predicted & inside).sum() / (predicted | inside).sum())


def mean_iou(heatmap: Float[np.ndarray, "H W"], mask: Mask, thresholds: tuple[float, ...] = THRESHOLDS) -> float:
    """Mean of `iou_at` over thresholds.

    Where nothing exceeds a threshold it counts as 0, not as missing: a cold heat-map must not gain by what it fails to predict.

    Args:
      heatmap: usually `normalise_heatmap` of a similarity, so that .1 to .5 mean the same for every image.
      mask: non-zero inside.
      thresholds: in the units of the heat-map.

    Returns:
      In 0..1; nan when the mask is empty.
    """
    if not (mask != 0).any():
        return float("nan")
    return float(np.mean([np.nan_to_num(iou_at(heatmap, mask, threshold)) for threshold in thresholds]))


def pointing_game(heatmap: Float[np.ndarray, "H W"], mask: Mask) -> float:
    """1 if the hottest pixel lies inside the mask, else 0; if several are hottest, the share of them that does.

    Args:
      heatmap: any scale; nan pixels are never the hottest.
      mask: non-zero inside.

    Returns:
      In 0..1; nan when the mask is empty or the heat-map has no number.
    """
    if np.isnan(heatmap).all() or not (mask != 0).any():
        return float("nan")
    return float((mask != 0)[heatmap == np.nanmax(heatmap)].mean())


def normalise_heatmap(heatmap: Float[np.ndarray, "H W"]) -> Float[np.ndarray, "H W"]:
    """Heat scaled to -1..1 between its extremes, as MaCo and AFLoc do before thresholds; nan stays, constant heat becomes 0."""
    if np.isnan(heatmap).all():
        return heatmap
    low, high = np.nanmin(heatmap), np.nanmax(heatmap)
    return (heatmap - low) * (2 / (high - low)) - 1 if high > low else heatmap - low


def smoothing(heatmap: Float[np.ndarray, "*n H W"], sigma: float = 1.5) -> Float[np.ndarray, "*n H W"]:
    """Gaussian smoothing on the patch grid, cut off at 4 sigma and reflected at the edges (hi-ml, MaCo and AFLoc).

    Args:
      heatmap: one or many similarity maps.
      sigma: in patches; 1.5 in BioViL; 0 returns the map as it is.

    Raises:
      ValueError: sigma is negative.
    """
    if sigma < 0:
        raise ValueError(f"sigma is {sigma}; expected 0 or more patches")
    if sigma == 0:
        return heatmap
    rows, columns = (_gaussian_matrix(size, sigma) for size in heatmap.shape[-2:])
    return (rows @ heatmap.astype(np.float64) @ columns.T).astype(heatmap.dtype)


def upsample(heatmap: Float[np.ndarray, "*n h w"], size: tuple[int, int]) -> Float[np.ndarray, "*n H W"]:
    """Bilinear resampling to (height, width) in pixels, pixel centres aligned (align_corners=False) and edges repeated; the dtype stays."""
    low, high, share = _neighbours(heatmap.shape[-2], size[0], heatmap.dtype)
    rows = heatmap[..., low, :] + share[:, None] * (heatmap[..., high, :] - heatmap[..., low, :])
    low, high, share = _neighbours(heatmap.shape[-1], size[1], heatmap.dtype)
    return rows[..., low] + share * (rows[..., high] - rows[..., low])


def _gaussian_matrix(size: int, sigma: float) -> Float[np.ndarray, "H H"]:
    """Row i weighs the inputs of output i; what lies beyond an edge is folded back onto its mirror image."""
    radius = int(4 * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    period = (np.arange(size)[:, None] + offsets) % (2 * size)
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.arange(size)[:, None], np.minimum(period, 2 * size - 1 - period)), kernel / kernel.sum())
    return matrix


def _neighbours(
    size: int, enlarged: int, dtype: np.dtype
) -> tuple[Int[np.ndarray, "H"], Int[np.ndarray, "H"], Float[np.ndarray, "H"]]:
    """The two inputs around the centre of each output, and the share of the second."""
    centre = np.clip((np.arange(enlarged) + 0.5) * size / enlarged - 0.5, 0, size - 1)
    low = np.floor(centre).astype(int)
    return low, np.minimum(low + 1, size - 1), (centre - low).astype(dtype)
