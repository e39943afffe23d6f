"""Where patches are: fixed sin-cos embeddings, and masks that keep attention near."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int


def sincos_positions(grid: int, width: int, *, pretrained: int = 0) -> Float32[np.ndarray, "P D"]:
    """Two-dimensional sines and cosines of patch positions, as MAE's: the first half of the width codes the column, the second the row.

    At another resolution than that of pretraining, the middle of patch i lies at (i + .5) * pretrained / grid - .5 in patches of pretraining. There
    the functions are read, so that a place in the image keeps its code; bicubic interpolation of the table (MAE, MaCo) approximates the same.

    Args:
      grid: patches along one side; P = grid * grid, row by row.
      width: D, a multiple of 4.
      pretrained: patches along one side in pretraining; 0 stands for `grid`, and then positions are the whole numbers from 0.
    """
    row, column = (np.divmod(np.arange(grid * grid), grid) + np.array(0.5)) * ((pretrained or grid) / grid) - 0.5
    return np.concatenate([_sincos(column, width // 2), _sincos(row, width // 2)], axis=1).astype(np.float32)


def _sincos(position: np.ndarray, width: int) -> np.ndarray:
    frequency = 10000.0 ** (-np.arange(width // 2) / (width / 2))
    angle = position[:, None] * frequency
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)


def window_mask(indices: Int[Array, "B n"], grid: int, radius: int, *, class_token: bool) -> Bool[Array, "B N N"]:
    """Which tokens see which, when patches see only patches at most `radius` rows and columns away.

    Args:
      indices: positions of the patches that are present, row by row from 0.
      grid: patches along one side.
      radius: the largest Chebyshev distance that is seen.
      class_token: one more token stands first; it sees all, and no patch sees it (it would carry news from afar).

    Returns:
      True where a token (second axis) sees another (third axis); N = n, or n + 1 with a class token.
    """
    row, column = jnp.divmod(indices, grid)
    near = (jnp.abs(row[:, :, None] - row[:, None]) <= radius) & (
        jnp.abs(column[:, :, None] - column[:, None]) <= radius
    )
    if not class_token:
        return near
    near = jnp.pad(near, ((0, 0), (1, 0), (1, 0)))
    return near.at[:, 0].set(True)
