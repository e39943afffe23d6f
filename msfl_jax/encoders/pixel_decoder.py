"""MAE's decoder: rebuilds the pixels of masked patches from the visible ones.

Parameter paths: `embed`, `mask_token`, the blocks of `layers`, `norm`, `prediction`.
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from msfl_jax.encoders import initializers
from msfl_jax.encoders.layers import BlockSpec, Stream, apply_blocks, dense, layer_norm
from msfl_jax.encoders.patches import take
from msfl_jax.encoders.positions import sincos_positions


class PixelDecoder(nn.Module):
    """MAE (He et al. 2022): mask tokens fill the gaps, fixed positions tell where they are.

    Attributes:
      spec: the blocks.
      grid: patches along one side of the image.
      pixels: of one patch.
    """

    spec: BlockSpec
    grid: int
    pixels: int

    @nn.compact
    def __call__(
        self, visible: Float[Array, "B n D"], cls: Float[Array, "B D"] | None, restore: Int[Array, "B P"]
    ) -> Float[Array, "B P K"]:
        """Predicted pixels of every patch, float32.

        Args:
          visible: tokens of the visible patches after the encoder's final norm.
          cls: the class token, if the encoder has one; it stands first, at position 0.
          restore: where each patch stands in (visible patches, then masked ones).
        """
        embed = dense(self.spec, self.spec.width, "embed")
        patches = self._fill(embed(visible), restore)
        tokens = patches if cls is None else jnp.concatenate([embed(cls[:, None]), patches], axis=1)
        tokens = apply_blocks(self.spec, Stream(tokens))[0].tokens
        tokens = layer_norm("vit", self.spec.dtype, "norm")(tokens)
        return dense(self.spec, self.pixels, "prediction")(tokens[:, tokens.shape[1] - restore.shape[1] :]).astype(
            jnp.float32
        )

    def _fill(self, visible: Array, restore: Array) -> Array:
        """All patches in their places, positions added."""
        token = self.param("mask_token", initializers.normal, (1, 1, self.spec.width)).astype(visible.dtype)
        missing = restore.shape[1] - visible.shape[1]
        gaps = jnp.broadcast_to(token, (len(visible), missing, self.spec.width))
        positions = jnp.asarray(sincos_positions(self.grid, self.spec.width), visible.dtype)
        return take(jnp.concatenate([visible, gaps], axis=1), restore) + positions
