"""LayerNorm with its gradient written out: each pass reads tokens and their gradient as they are, and none writes a float32 copy of them."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float


class LayerNorm(nn.Module):
    """Layer normalisation (Ba et al. 2016) over the last axis; parameters `scale` and `bias` are float32.

    Attributes:
      epsilon: added to the variance.
      dtype: of the result; what leads to it is at least float32.
    """

    epsilon: float
    dtype: str

    @nn.compact
    def __call__(self, tokens: Float[Array, "*n D"]) -> Float[Array, "*n D"]:
        """Normalised tokens."""
        width = tokens.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, width)
        bias = self.param("bias", nn.initializers.zeros, width)
        return normalise(tokens, scale, bias, self.epsilon, self.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalise(
    tokens: Float[Array, "*n D"], scale: Float[Array, " D"], bias: Float[Array, " D"], epsilon: float, dtype: str
) -> Float[Array, "*n D"]:
    """Tokens less their mean over their deviation, times `scale` plus `bias`, as `dtype`.

    The variance is the mean of squared distances to the mean: a mean of squares would cancel.
    """
    return _forward(tokens, scale, bias, epsilon, dtype)[0]


def _forward(tokens: Array, scale: Array, bias: Array, epsilon: float, dtype: str) -> tuple[Array, tuple[Array, ...]]:
    wide = tokens.astype(jnp.promote_types(tokens.dtype, jnp.float32))
    mean = wide.mean(axis=-1, keepdims=True)
    rate = jax.lax.rsqrt(jnp.mean((wide - mean) ** 2, axis=-1, keepdims=True) + epsilon)
    return ((wide - mean) * rate * scale + bias).astype(dtype), (tokens, scale, bias, mean, rate)


def _backward(epsilon: float, dtype: str, kept: tuple[Array, ...], slope: Array) -> tuple[Array, Array, Array]:
    """Of the loss by tokens, scale and bias.

    What is small, a value or two of each token, is computed before what is large: XLA would otherwise write the large in float32 to read it again.
    """
    del epsilon, dtype
    tokens, scale, bias, mean, rate = kept
    mean, rate = jax.lax.optimization_barrier((mean, rate))
    wide = tokens.astype(mean.dtype)

    def unit() -> Array:
        return (wide - mean) * rate

    slope = slope.astype(mean.dtype)
    level, along = (jnp.mean(value, axis=-1, keepdims=True) for value in (slope * scale, slope * scale * unit()))
    level, along = jax.lax.optimization_barrier((level, along))
    by_tokens = rate * (slope * scale - level - unit() * along)
    rows = tuple(range(tokens.ndim - 1))
    by_scale, by_bias = (value.sum(axis=rows).astype(bias.dtype) for value in (slope * unit(), slope))
    return by_tokens.astype(tokens.dtype), by_scale, by_bias


normalise.defvjp(_forward, _backward)
