"""Initialisers with the distributions of MAE's ViT and of BERT, tensor by tensor."""

from collections.abc import Callable
from typing import Any

from flax import linen as nn

Initializer = Callable[..., Any]

# MAE: every dense kernel, on its two-dimensional form [in, out]; the patch embedding too, on flattened grey patches [p * p, width].
xavier: Initializer = nn.initializers.xavier_uniform()

# MAE draws query, key and value as one kernel [width, 3 * width], whose bound is sqrt(6 / (4 * width)): the same numbers for three kernels.
third_of_fused: Initializer = nn.initializers.variance_scaling(0.5, "fan_avg", "uniform")

# BERT's kernels and embeddings; MAE's class and mask tokens. Not truncated: truncation would lower the deviation to .0176.
normal: Initializer = nn.initializers.normal(0.02)
