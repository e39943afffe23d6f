"""AdamW with linear warm-up and a half cosine to 0, no decay where it does harm, and clipping."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from msfl_jax.config import OptimizerConfig
from msfl_jax.parallel.sharding import path_name

# Offsets, scales, and rows that stand alone rather than map one width to another (as MAE and FLIP exclude them).
NOT_DECAYED = re.compile(
    r"(^|/)(bias|scale|log_scale|cls_token|mask_token|pos_embed|position_embeddings/embedding|token_type_embeddings/embedding)$"
)


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Rate at a step: 0 at step 0, linear to `peak_rate` at `warmup_steps`, half cosine to 0 at `steps` (MAE's `lr_sched`).

    The configuration has made sure that the warm-up is shorter than the run.
    """
    if not config.warmup_steps:
        return optax.cosine_decay_schedule(config.peak_rate, steps)
    return optax.warmup_cosine_decay_schedule(0.0, config.peak_rate, config.warmup_steps, steps)


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clips the gradient by its global norm, then AdamW at `learning_rate` with decay on kernels and word embeddings only.

    Args:
      config: rates and moments.
      steps: length of the run, at whose end the rate is 0.
    """
    adam = optax.adamw(
        learning_rate(config, steps), b1=config.b1, b2=config.b2, weight_decay=config.weight_decay, mask=decayed
    )
    return optax.chain(clip_by_global_norm(config.clip_norm), adam)


def clip_by_global_norm(limit: float) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm` by one factor for all gradients, which the update multiplies in.

    Optax divides every gradient, and XLA writes and reads each array of quotients once more: a kernel for every shape, and traffic as of a copy.

    Args:
      limit: norm of all gradients as one vector, above which they are scaled down to it.
    """

    def clip(gradients: Any, _params: Any) -> Any:
        factor = jnp.minimum(1.0, limit / optax.global_norm(gradients))
        return jax.tree.map(lambda gradient: gradient * factor.astype(gradient.dtype), gradients)

    return optax.stateless(clip)


def updates_taken(opt_state: Any) -> int:
    """Updates that an optimizer has made, by its own count: fewer than steps where some were skipped."""
    return max((int(count) for _, count in optax.tree_utils.tree_get_all_with_path(opt_state, "count")), default=0)


def decayed(params: Any) -> Any:
    """True for each parameter that weight decay applies to: none that is a bias, norm, position, class or mask token, or temperature."""
    return jax.tree_util.tree_map_with_path(lambda path, _: not NOT_DECAYED.search(path_name(path)), params)
