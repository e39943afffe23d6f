"""Arithmetic on arrays that encoders, heads and losses share: precision and unit vectors."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def at_least_float32(values: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Half precision becomes float32; float32 and float64 stay as they are."""
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def safe_sqrt(values: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Square root that is 0, with gradient 0 instead of infinity, where `values` is not positive."""
    positive = values > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, values, 1)), 0)


def unit(vectors: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
    """Vectors scaled to length 1, at least float32; a zero vector stays zero and has gradient zero."""
    vectors = at_least_float32(vectors)
    length = safe_sqrt(jnp.sum(vectors**2, axis=-1, keepdims=True))
    return jnp.where(length > 0, vectors / jnp.where(length > 0, length, 1), 0)
