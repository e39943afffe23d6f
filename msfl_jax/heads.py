"""What stands on the encoders: projections, the instance-matching head and the masked-language head."""

from typing import Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Float32

from msfl_jax.encoders import initializers
from msfl_jax.encoders.layers import gelu, layer_norm

Fusion = Literal["sum", "concat", "product", "sum_product"]
ACTIVATIONS = {"gelu": gelu, "relu": nn.relu, "none": lambda x: x}


def projection(width: int) -> nn.Dense:
    """A linear map to an embedding, in float32: similarities are sensitive to rounding, and the map is small."""
    return nn.Dense(width, dtype=jnp.float32, kernel_init=initializers.xavier)


def pooler(width: int) -> nn.Dense:
    """The dense layer of BERT's pooler, as BERT initialises it; tanh follows where it is applied."""
    return nn.Dense(width, dtype=jnp.float32, kernel_init=initializers.normal)


def region_norm() -> nn.Module:
    """The norm of tokens that are taken before the encoder's own final norm."""
    return layer_norm("vit", "float32")


def fuse(image: Float[Array, "N D"], report: Float[Array, "N D"], fusion: Fusion) -> Float[Array, "N F"]:
    """Two vectors of a pair as one; F is D, or 2D for "concat" and "sum_product"."""
    match fusion:
        case "sum":
            return image + report
        case "product":
            return image * report
        case "concat":
            return jnp.concatenate([image, report], axis=-1)
        case "sum_product":
            return jnp.concatenate([image + report, image * report], axis=-1)


class MatchingHead(nn.Module):
    """Does this report belong to this image? Fusion, then two dense layers (eq. 4), in float32.

    Parameter paths: `hidden`, `logit`.

    Attributes:
      width: of the hidden layer.
      fusion: how the pair becomes one vector.
      activation: between the layers. With "none" the two layers are one, and a sum of embeddings cannot say whether its parts fit each other.
    """

    width: int
    fusion: Fusion
    activation: Literal["gelu", "relu", "none"]

    @nn.compact
    def __call__(self, image: Float[Array, "N D"], report: Float[Array, "N D"]) -> Float32[Array, " N"]:
        """Logits of N pairs; embeddings of unit scale per coordinate (norm sqrt(D)) suit the initialisers."""
        hidden = nn.Dense(self.width, kernel_init=initializers.xavier, name="hidden")(fuse(image, report, self.fusion))
        return nn.Dense(1, kernel_init=initializers.xavier, name="logit")(ACTIVATIONS[self.activation](hidden))[:, 0]


class LanguageHead(nn.Module):
    """BERT's masked-language head: dense, GELU, norm, then the transposed word table and a bias.

    Parameter paths: `dense`, `norm`, `bias`; the table is the text encoder's.

    Attributes:
      dtype: of the two matrix products.
    """

    dtype: str

    @nn.compact
    def __call__(self, states: Float[Array, "B M W"], words: Float[Array, "V W"]) -> Float32[Array, "B M V"]:
        """Logits over the vocabulary for token states, float32."""
        hidden = nn.Dense(states.shape[-1], dtype=jnp.dtype(self.dtype), kernel_init=initializers.normal, name="dense")(
            states
        )
        hidden = layer_norm("bert", self.dtype, "norm")(gelu(hidden))
        logits = jnp.einsum("bmw,vw->bmv", hidden, words.astype(self.dtype), preferred_element_type=jnp.float32)
        return logits + self.param("bias", nn.initializers.zeros, (len(words),))
