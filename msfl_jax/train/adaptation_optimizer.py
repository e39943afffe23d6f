"""Optimizers and schedules of fine-tuning: SGD or AdamW, cosine or polynomial decay, and rates that fall from the head to the first layer.

Both schedules are read as optax reads them: the n-th update (from 1) uses the rate of step n - 1, so with a warm-up the first update has rate 0 and
the last one is above 0. The siblings' code (MRM, MaCo) advances its schedule before the optimizer, so that their n-th update uses the rate of step
n. Their rates come one step earlier than ours, which is one part in `warmup_steps` of the peak rate during the warm-up and nothing thereafter.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from msfl_jax.encoders.layers import BLOCK
from msfl_jax.finetune_config import FinetuneOptimizerConfig
from msfl_jax.parallel.sharding import path_name
from msfl_jax.train.optimizer import clip_by_global_norm, decayed

# What comes before the first block, wherever the encoder lies in the tree of parameters.
INPUT = re.compile(r"(^|/)(patch_hidden|patch_embed|cls_token|pos_embed)(/|$)")


def finetuning_rate(config: FinetuneOptimizerConfig, steps: int) -> optax.Schedule:
    """Rate at a step: a linear warm-up over `warmup_steps`, and down to 0 at `steps`.

    "cosine" rises to `peak_rate` and then falls as half a cosine over the rest (MRM's WarmupCosine). "poly" falls as (1 - step / steps) ** `power`
    from the first step on, and the warm-up multiplies that: the rate stays a little below `peak_rate` (mmseg, but for its warm-up from 1e-6, not 0).
    """
    warmup = config.warmup_steps
    if config.schedule == "poly":
        rise = optax.linear_schedule(0.0, 1.0, warmup) if warmup else optax.constant_schedule(1.0)
        whole = optax.polynomial_schedule(config.peak_rate, 0.0, config.power, steps)
        return lambda step: rise(step) * whole(step)
    fall = optax.cosine_decay_schedule(config.peak_rate, max(steps - warmup, 1))
    if not warmup:
        return fall
    return optax.join_schedules([optax.linear_schedule(0.0, config.peak_rate, warmup), fall], [warmup])


def finetuning_optimizer(
    config: FinetuneOptimizerConfig, steps: int, *, depth: int = 0
) -> optax.GradientTransformation:
    """Clips the gradient by its global norm, then SGD with momentum or AdamW; a `layer_decay` below 1 slows early layers.

    SGD's momentum is the siblings' (PyTorch's): v = momentum * v + g, step = rate * v. Weight decay spares biases, norms and positions.

    Args:
      config: kind, rates and moments.
      steps: length of the run, at whose end the rate is 0.
      depth: blocks of the encoder, for the layer decay.
    """
    rate = finetuning_rate(config, steps)
    if config.kind == "sgd":
        decay = (
            optax.add_decayed_weights(config.weight_decay, mask=decayed) if config.weight_decay else optax.identity()
        )
        update = optax.chain(decay, optax.sgd(rate, momentum=config.momentum))
    else:
        update = optax.adamw(rate, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay, mask=decayed)
    slow = optax.identity() if config.layer_decay == 1.0 else scale_by_layer(config.layer_decay, depth)
    return optax.chain(clip_by_global_norm(config.clip_norm), update, slow)


def scale_by_layer(decay: float, depth: int) -> optax.GradientTransformation:
    """Multiplies each update by its parameter's `layer_factors`: the last link of a chain, so that it scales the rate, weight decay included."""

    def scaled(updates: Any, _params: Any) -> Any:
        factors = layer_factors(updates, decay, depth)
        return jax.tree.map(lambda value, factor: value * factor.astype(value.dtype), updates, factors)

    return optax.stateless(scaled)


def layer_factors(params: Mapping[str, Any], decay: float, depth: int) -> Any:
    """Share of the rate for each parameter (BEiT, MAE): decay ** (depth + 1 - layer).

    Layer 0 is what comes before the blocks, layer i + 1 is block i, and layer depth + 1, with factor 1, all the rest: norms and heads.

    Args:
      params: arrays or shapes, of blocks that are unrolled (`blocks_<i>`) or scanned (`blocks`, layers along the first axis).
      decay: factor from one layer to the one before.
      depth: number of blocks.

    Returns:
      A scalar for each parameter, or for those of scanned blocks an array that broadcasts along the layers.
    """

    def factor(path: tuple[Any, ...], leaf: Any) -> jax.Array:
        name = path_name(path)
        if INPUT.search(name):
            return jnp.float32(decay ** (depth + 1))
        blocks = [match for part in name.split("/") if (match := BLOCK.fullmatch(part))]
        if blocks:
            return jnp.float32(decay ** (depth - int(blocks[0][1])))
        if "blocks" in name.split("/"):
            factors = decay ** (depth - jnp.arange(leaf.shape[0], dtype=jnp.float32))
            return factors.reshape(-1, *[1] * (len(leaf.shape) - 1))
        return jnp.float32(1.0)

    return jax.tree_util.tree_map_with_path(factor, params)
