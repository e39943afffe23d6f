"""Images to normalised patches, and the random masking of patches (MAE)."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from msfl_jax.vectors import at_least_float32

VARIANCE_FLOOR = 1e-6  # an image of one grey value becomes 0 everywhere


class PatchMasking(NamedTuple):
    """Which patches are seen.

    Attributes:
      kept: Int [B, n], positions of the visible patches, in random order.
      restore: Int [B, P], where each position stands in (visible patches, then masked ones).
      masked: Bool [B, P], True where the patch is hidden.
    """

    kept: Int[Array, "B n"]
    restore: Int[Array, "B P"]
    masked: Bool[Array, "B P"]


def normalise_image(
    image: UInt8[Array, "B H W 1"], *, normalisation: Literal["fixed", "per_image"], mean: float, deviation: float
) -> Float[Array, "B H W 1"]:
    """Pixels as float32 around 0.

    Args:
      image: grey values 0 to 255.
      normalisation: "fixed" subtracts `mean` and divides by `deviation`, "per_image" uses the image's own.
      mean, deviation: of pixels in [0, 1]; unused for "per_image".
    """
    pixels = image.astype(jnp.float32) / 255.0
    if normalisation == "fixed":
        return (pixels - mean) / deviation
    centred = pixels - pixels.mean(axis=(1, 2, 3), keepdims=True)
    return centred * jax.lax.rsqrt(jnp.square(centred).mean(axis=(1, 2, 3), keepdims=True) + VARIANCE_FLOOR)


def shrink(image: UInt8[Array, "B H W 1"], scale: int) -> UInt8[Array, "B h w 1"]:
    """Images at a whole fraction of their resolution: each pixel the mean of scale x scale, rounded as a file of that size would be."""
    batch, height, width, _ = image.shape
    if scale == 1:
        return image
    cut = image.astype(jnp.float32).reshape(batch, height // scale, scale, width // scale, scale)
    return jnp.round(cut.mean(axis=(2, 4)))[..., None].astype(jnp.uint8)


def patchify(image: Float[Array, "B H W 1"], patch_size: int) -> Float[Array, "B P K"]:
    """Cuts images into patches, row by row, and each patch into its K = patch_size squared pixels, row by row."""
    batch, height, width, _ = image.shape
    rows, columns = height // patch_size, width // patch_size
    cut = image.reshape(batch, rows, patch_size, columns, patch_size)
    return cut.transpose(0, 1, 3, 2, 4).reshape(batch, rows * columns, patch_size * patch_size)


def normalise_patches(patches: Float[Array, "*rows K"], eps: float = 1e-6) -> Float[Array, "*rows K"]:
    """Patches with mean 0 and deviation 1 each, the targets of MAE's "norm-pix" option.

    The variance is the unbiased one, as in MAE's code, so the mean square of a target is (K - 1) / K. `eps` is added to it; a patch of
    one grey level becomes 0. At least float32; K must be 2 or more.
    """
    patches = at_least_float32(patches)
    centred = patches - jnp.mean(patches, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.var(patches, axis=-1, keepdims=True, ddof=1) + eps)


def count_visible(patches: int, mask_ratio: float) -> int:
    """How many patches MAE keeps: int(P * (1 - ratio))."""
    return int(patches * (1.0 - mask_ratio))


def random_masking(key: Key[Array, ""], batch: int, patches: int, visible: int) -> PatchMasking:
    """Hides all but `visible` patches of each image, each subset equally likely; a function of the key alone."""
    return masking_from_noise(jax.random.uniform(key, (batch, patches)), visible)


def masking_from_noise(noise: Float[Array, "B P"], visible: int) -> PatchMasking:
    """Keeps the patches with the smallest noise, as MAE does."""
    order = jnp.argsort(noise, axis=1)
    restore = jnp.argsort(order, axis=1)
    return PatchMasking(kept=order[:, :visible], restore=restore, masked=restore >= visible)


def take(rows: Float[Array, "B P D"], indices: Int[Array, "B n"]) -> Float[Array, "B n D"]:
    """The rows of each example at its own indices."""
    return jnp.take_along_axis(rows, indices[:, :, None], axis=1)
