"""Vision transformer over grey patches, whole or with only the visible ones present.

Parameter paths: `patch_embed` (`patch_hidden` before it where `patch_layers` is 2), `cls_token`, `pos_embed` (learned positions only),
the blocks of `layers`, `norm`.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from msfl_jax.encoders import initializers
from msfl_jax.encoders.layers import ALL_BLOCKS, BlockSpec, Layers, Stream, apply_blocks, dense, gelu, layer_norm
from msfl_jax.encoders.positions import sincos_positions, window_mask


class VisionTokens(NamedTuple):
    """Tokens of an image.

    Attributes:
      patches: Float [B, n, D] after the final norm, in the order given.
      cls: Float [B, D] after the final norm; None without a class token.
      regions: Float [B, n, D], the raw tokens after block `region_layer`, or `patches` where that is 0.
      layers: Float [B, n, D] each, the raw tokens after each block of `taps`.
    """

    patches: Float[Array, "B n D"]
    cls: Float[Array, "B D"] | None
    regions: Float[Array, "B n D"]
    layers: tuple[Float[Array, "B n D"], ...] = ()


class VisionTransformer(nn.Module):
    """ViT (Dosovitskiy et al. 2021) with MAE's fixed positions and initialisers.

    Attributes:
      spec: the blocks.
      grid: patches along one side of the image.
      pretrained_grid: patches along one side in pretraining, in which fixed positions are counted; 0 stands for `grid`.
      patch_layers: dense layers of the patch embedding; with 2, a GELU between them.
      positions: "sincos" fixed, "learned" drawn from normal(.02).
      class_token: whether one token more stands before the patches.
      region_layer: block after which regions are taken; 0 takes them after the final norm.
      window_radius: above 0, blocks up to `region_layer` (all, where that is 0) see only patches this near.
      taps: blocks, counted from 1, whose tokens are handed out too; they change no parameter and no other result.
      final_norm: whether tokens are normalised behind the last block; fine-tuning may do without, and then there is no `norm`.
    """

    spec: BlockSpec
    grid: int
    patch_layers: int = 1
    positions: Literal["sincos", "learned"] = "sincos"
    class_token: bool = True
    region_layer: int = 0
    window_radius: int = 0
    taps: tuple[int, ...] = ()
    final_norm: bool = True
    pretrained_grid: int = 0

    def __call__(self, patches: Float[Array, "B n K"], indices: Int[Array, "B n"] | None = None) -> VisionTokens:
        """Encodes patches.

        Args:
          patches: normalised pixels of the patches that are present. Leaving patches out before they are embedded gives exactly what leaving out
            their tokens would, and saves their embedding.
          indices: where each patch stands in the image; None where all are present in order.
        """
        return self.together((patches, indices))[0]

    @nn.compact
    def together(self, *views: tuple[Float[Array, "B _ K"], Int[Array, "B _"] | None]) -> tuple[VisionTokens, ...]:
        """Encodes several views, each as a call would, block by block side by side (see `apply_blocks`).

        Args:
          views: (patches, indices) as of a call; the number of patches may differ.

        Returns:
          Tokens of each view, in the order given.
        """
        embed, first = self._embedding(), int(self.class_token)
        norm = layer_norm("vit", self.spec.dtype, "norm") if self.final_norm else None
        taps = (*self.taps, self.region_layer) if self.region_layer else self.taps

        def stream(patches: Array, indices: Array | None) -> Stream:
            places = jnp.arange(patches.shape[1])[None] if indices is None else indices
            return Stream(embed(patches, places), self._window(places), self.region_layer or ALL_BLOCKS)

        def named(layers: Layers) -> VisionTokens:
            tokens = layers.tokens if norm is None else norm(layers.tokens)
            return VisionTokens(
                patches=tokens[:, first:],
                cls=tokens[:, 0] if first else None,
                regions=(layers.tapped[-1] if self.region_layer else tokens)[:, first:],
                layers=tuple(layer[:, first:] for layer in layers.tapped[: len(self.taps)]),
            )

        streams = (stream(*view) for view in views)
        return tuple(named(layers) for layers in apply_blocks(self.spec, *streams, taps=taps))

    def _embedding(self) -> Callable[[Array, Array], Array]:
        """From patches and where they stand to tokens with positions; a class token, if any, first."""
        hidden = dense(self.spec, self.spec.width, "patch_hidden") if self.patch_layers == 2 else None
        linear, (first, table) = dense(self.spec, self.spec.width, "patch_embed"), self._positions()
        cls = (
            self.param("cls_token", initializers.normal, (1, 1, self.spec.width)) + first if self.class_token else None
        )

        def embed(patches: Array, indices: Array) -> Array:
            tokens = linear(patches if hidden is None else gelu(hidden(patches)))
            tokens = tokens + table[indices].astype(tokens.dtype)
            if cls is None:
                return tokens
            front = jnp.broadcast_to(cls.astype(tokens.dtype), (tokens.shape[0], 1, self.spec.width))
            return jnp.concatenate([front, tokens], axis=1)

        return embed

    def _positions(self) -> tuple[Array, Array]:
        """Positions of the class token (0 where they are fixed) and of the patches."""
        if self.positions == "sincos":
            table = sincos_positions(self.grid, self.spec.width, pretrained=self.pretrained_grid)
            return jnp.zeros(()), jnp.asarray(table)
        table = self.param("pos_embed", initializers.normal, (1, self.grid**2 + self.class_token, self.spec.width))[0]
        return (table[0], table[1:]) if self.class_token else (jnp.zeros(()), table)

    def _window(self, indices: Array) -> Bool[Array, "B N N"] | None:
        if not self.window_radius:
            return None
        return window_mask(indices, self.grid, self.window_radius, class_token=self.class_token)
