"""What the backward pass reads from memory and what it computes again, where `remat` is "dots"."""

from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

_KEPT = "kept"


def keep(values: Array) -> Array:
    """Marks values that stay for the backward pass. They are marked behind biases and residual sums, which matrix products then include."""
    return checkpoint_name(values, _KEPT)


def kept(primitive: Any, *shapes: Any, **parameters: Any) -> bool:
    """A policy of `jax.checkpoint`: what `keep` marks, and what cuDNN's attention found, which its backward pass reads."""
    fused = primitive.name.startswith("dot_product_attention_fwd")
    return fused or jax.checkpoint_policies.save_only_these_names(_KEPT)(primitive, *shapes, **parameters)
