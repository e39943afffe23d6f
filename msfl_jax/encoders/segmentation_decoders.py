"""Decoders that turn the tokens of several encoder blocks into class logits per pixel: UPerNet with its pyramid, and a light one.

Where the siblings normalise over the batch (SyncBN), groups of channels are normalised within each image (GroupNorm, Wu and He 2018). Statistics of
batches would be state beside the parameters, would make an image's mask depend on its neighbours and on the number of devices, and are noisy at
the siblings' two images per device; GroupNorm is what detection and segmentation use there. The siblings' dropout of .1 before the last layer is
left out.

Parameter paths: `pyramid/{up0, up0_norm, up1, up2}`, `upernet/{lateral<i>, pool<s>, bottleneck, fpn<i>, fusion, logits}`,
`auxiliary/{conv, logits}`, `light/{norm<i>, mix, up<i>, logits}`; a block of convolution, norm and ReLU has `conv` and `norm`.
"""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Float32

from msfl_jax.encoders import initializers
from msfl_jax.encoders.layers import gelu, layer_norm

CLASSES = 2  # background, foreground
POOL_SCALES = (1, 2, 3, 6)
AUXILIARY_CHANNELS = 256
LEVELS = 4

he = nn.initializers.he_normal()
small: initializers.Initializer = nn.initializers.normal(0.01)

Grid = Float[Array, "B _ _ _"]  # height, width and channels differ from grid to grid


class Masks(NamedTuple):
    """Logits of background and foreground at the decoder's own resolutions; no auxiliary ones where there is no such head."""

    logits: Float32[Array, "B h w 2"]
    auxiliary: Float32[Array, "B g k 2"] | None


def spread_layers(depth: int) -> tuple[int, int, int, int]:
    """Four blocks, counted from 1, at a third, half, two thirds and the end: of 12 the siblings' 4, 6, 8 and 12 (3, 5, 7, 11 from 0)."""
    first, second, third, last = (math.ceil(depth * share) for share in (1 / 3, 1 / 2, 2 / 3, 1))
    return first, second, third, last


def tokens_to_grid(tokens: Float[Array, "B P D"]) -> Float[Array, "B G G D"]:
    """Patch tokens, row by row, as the square they come from.

    Raises:
      ValueError: the number of tokens is no square.
    """
    side = math.isqrt(tokens.shape[1])
    if side * side != tokens.shape[1]:
        raise ValueError(f"found {tokens.shape[1]} tokens; expected a square number of patches")
    return tokens.reshape(len(tokens), side, side, tokens.shape[-1])


def enlarge(grid: Grid, size: tuple[int, ...]) -> Grid:
    """Bilinear resampling to (height, width), pixel centres aligned and edges repeated (PyTorch's align_corners=False)."""
    return jax.image.resize(grid, (len(grid), *size, grid.shape[-1]), "bilinear", antialias=False)


def adaptive_pool(grid: Grid, bins: int) -> Grid:
    """Means over `bins` x `bins` cells that cover the grid and may overlap by one row (PyTorch's adaptive_avg_pool2d)."""
    rows, columns = (jnp.asarray(_cells(size, bins), grid.dtype) for size in grid.shape[1:3])
    return jnp.einsum("sh,bhwc,tw->bstc", rows, grid, columns)


def _cells(size: int, bins: int) -> Float32[np.ndarray, "s h"]:
    place, cell = np.arange(size), np.arange(bins)[:, None]
    inside = (place >= cell * size // bins) & (place < -(-(cell + 1) * size // bins))
    return (inside / inside.sum(axis=1, keepdims=True)).astype(np.float32)


def group_norm(channels: int, name: str | None = None) -> nn.GroupNorm:
    """GroupNorm in float32 with up to 32 groups of at least 8 channels: a group of one channel would erase a grid of one pixel."""
    groups = math.gcd(32, max(1, channels // 8))
    return nn.GroupNorm(groups if channels % groups == 0 else 1, epsilon=1e-5, use_fast_variance=False, name=name)


class ConvBlock(nn.Module):
    """Convolution without bias, GroupNorm, ReLU; the grid keeps its size."""

    channels: int
    kernel: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, grid: Grid) -> Grid:
        """Filters a grid."""
        size = (self.kernel, self.kernel)
        conv = nn.Conv(self.channels, size, use_bias=False, kernel_init=he, dtype=jnp.dtype(self.dtype), name="conv")
        return nn.relu(group_norm(self.channels, "norm")(conv(grid))).astype(self.dtype)


class Doubling(nn.Module):
    """Transposed convolution of kernel 2 and stride 2: its cells do not overlap, so it is one dense layer to four pixels per pixel."""

    channels: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, grid: Grid) -> Grid:
        """Doubles height and width."""
        batch, height, width, _ = grid.shape
        four = nn.Dense(4 * self.channels, dtype=jnp.dtype(self.dtype), kernel_init=initializers.xavier, name="dense")
        cells = four(grid).reshape(batch, height, width, 2, 2, self.channels)
        return cells.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height, 2 * width, self.channels)


class Pyramid(nn.Module):
    """Grids of one resolution as a pyramid of 4, 2, 1 and 1/2 times it (BEiT's and MAE's Feature2Pyramid)."""

    dtype: str = "float32"

    @nn.compact
    def __call__(self, grids: tuple[Grid, ...]) -> tuple[Grid, ...]:
        """Four grids [B, G, G, D], earlier blocks first; G is 2 or more."""
        width = grids[0].shape[-1]
        finest = Doubling(width, self.dtype, name="up0")(grids[0])
        finest = gelu(group_norm(width, "up0_norm")(finest).astype(self.dtype))
        return (
            Doubling(width, self.dtype, name="up1")(finest),
            Doubling(width, self.dtype, name="up2")(grids[1]),
            grids[2],
            nn.max_pool(grids[3], (2, 2), strides=(2, 2)),
        )


class UPerNet(nn.Module):
    """Pyramid pooling on the coarsest grid, then top-down fusion (Xiao et al. 2018)."""

    channels: int = 768
    pool_scales: tuple[int, ...] = POOL_SCALES
    dtype: str = "float32"

    @nn.compact
    def __call__(self, pyramid: tuple[Grid, ...]) -> Float32[Array, "B h w 2"]:
        """Logits at the resolution of the first, finest grid."""
        levels = [
            ConvBlock(self.channels, 1, self.dtype, name=f"lateral{index}")(grid)
            for index, grid in enumerate(pyramid[:-1])
        ]
        levels.append(self._pool(pyramid[-1]))
        for index in reversed(range(len(levels) - 1)):
            levels[index] = levels[index] + enlarge(levels[index + 1], levels[index].shape[1:3])
        filtered = [
            ConvBlock(self.channels, 3, self.dtype, name=f"fpn{index}")(level)
            for index, level in enumerate(levels[:-1])
        ]
        size = pyramid[0].shape[1:3]
        together = jnp.concatenate([enlarge(level, size) for level in (*filtered, levels[-1])], axis=-1)
        return _logits(ConvBlock(self.channels, 3, self.dtype, name="fusion")(together))

    def _pool(self, grid: Grid) -> Grid:
        """The grid beside its means over ever smaller cells."""
        pooled = [
            ConvBlock(self.channels, 1, self.dtype, name=f"pool{bins}")(adaptive_pool(grid, bins))
            for bins in self.pool_scales
        ]
        together = jnp.concatenate([grid, *(enlarge(part, grid.shape[1:3]) for part in pooled)], axis=-1)
        return ConvBlock(self.channels, 3, self.dtype, name="bottleneck")(together)


class AuxiliaryHead(nn.Module):
    """One convolution and the logits (FCN): a shorter way for gradients to the middle of the encoder; unused after training."""

    channels: int = AUXILIARY_CHANNELS
    dtype: str = "float32"

    @nn.compact
    def __call__(self, grid: Grid) -> Float32[Array, "B h w 2"]:
        """Logits at the resolution of the grid."""
        return _logits(ConvBlock(self.channels, 3, self.dtype, name="conv")(grid))


class LightDecoder(nn.Module):
    """All four grids through one dense layer, then doubled `doublings` times (SETR-PUP, Zheng et al. 2021, cut down for small machines)."""

    channels: int = 64
    doublings: int = 2
    dtype: str = "float32"

    @nn.compact
    def __call__(self, grids: tuple[Grid, ...]) -> Float32[Array, "B h w 2"]:
        """Logits at 2^doublings times the resolution of the grids."""
        normed = [layer_norm("vit", self.dtype, f"norm{index}")(grid) for index, grid in enumerate(grids)]
        dense = nn.Dense(self.channels, dtype=jnp.dtype(self.dtype), kernel_init=initializers.xavier, name="mix")
        grid = gelu(dense(jnp.concatenate(normed, axis=-1)))
        for index in range(self.doublings):
            size = (2 * grid.shape[1], 2 * grid.shape[2])
            grid = ConvBlock(self.channels, 3, self.dtype, name=f"up{index}")(enlarge(grid, size))
        return _logits(grid)


class SegmentationDecoder(nn.Module):
    """From the tokens of four blocks to the logits of background and foreground.

    Attributes:
      head: "upernet" with pyramid and auxiliary head, or "linear", the light decoder.
      channels: width of the head.
      dtype: of products and grids; parameters, norms and logits are float32.
    """

    head: Literal["upernet", "linear"]
    channels: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, layers: tuple[Float[Array, "B P D"], ...]) -> Masks:
        """Logits of the tokens of four blocks, earlier ones first.

        Raises:
          ValueError: another number of blocks, or of tokens that is no square.
        """
        if len(layers) != LEVELS:
            raise ValueError(f"found tokens of {len(layers)} blocks; expected {LEVELS}")
        grids = tuple(tokens_to_grid(tokens).astype(self.dtype) for tokens in layers)
        if self.head == "linear":
            return Masks(LightDecoder(self.channels, dtype=self.dtype, name="light")(grids), None)
        pyramid = Pyramid(self.dtype, name="pyramid")(grids)
        auxiliary = AuxiliaryHead(min(AUXILIARY_CHANNELS, self.channels), self.dtype, name="auxiliary")(pyramid[2])
        return Masks(UPerNet(self.channels, dtype=self.dtype, name="upernet")(pyramid), auxiliary)


def _logits(grid: Grid) -> Float32[Array, "B h w 2"]:
    """The last layer, near 0 at first; called inside a compact method, whose module owns the parameters."""
    return nn.Dense(CLASSES, dtype=jnp.float32, kernel_init=small, name="logits")(grid)
