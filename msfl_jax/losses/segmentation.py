"""Losses of semantic segmentation: focal and dice on pixels, as mmsegmentation computes them, which the siblings fine-tune with."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from msfl_jax.vectors import at_least_float32

SMOOTH = 1.0  # pixels added to both sides of the dice: two empty masks agree, with a finite gradient


def focal(
    logits: Float[Array, "B H W C"],
    target: Bool[Array, "B H W"],
    *,
    gamma: float = 2.0,
    alpha: float = 0.5,
    class_weights: tuple[float, ...] | None = None,
) -> Float[Array, ""]:
    """Binary cross-entropy of each class against the rest, where pixels that are already right count less (Lin et al. 2017).

    For a pixel whose own class gets probability p (of a sigmoid, not of a softmax): -a (1 - p)^gamma ln p, a = `alpha` for the class that is
    there and 1 - `alpha` for one that is not.

    Args:
      logits: of background and foreground, C = 2.
      target: True is foreground.
      gamma: 0 gives the weighted cross-entropy.
      alpha: .5 weighs presence and absence alike, and halves both.
      class_weights: of background and foreground; None weighs both alike.

    Returns:
      Mean over pixels and classes in nats, at least float32. Zero logits give alpha 2^-gamma ln 2 at alpha .5, or .0866.
    """
    logits = at_least_float32(logits)
    there = _one_hot(target, logits)
    signed = jnp.where(there > 0, logits, -logits)
    balance = jnp.where(there > 0, alpha, 1 - alpha)
    losses = -balance * jax.nn.sigmoid(-signed) ** gamma * jax.nn.log_sigmoid(signed)
    return (losses * _weights(class_weights, logits)).mean()


def soft_dice(
    logits: Float[Array, "B H W C"],
    target: Bool[Array, "B H W"],
    *,
    class_weights: tuple[float, ...] | None = (0.0, 1.0),
) -> Float[Array, ""]:
    """One minus the overlap of probabilities and masks, image by image (V-Net, Milletari et al. 2016: squares in the denominator).

    Args:
      logits: of background and foreground, C = 2; probabilities are their softmax.
      target: True is foreground.
      class_weights: of background and foreground; the siblings count the foreground alone, and still divide by the number of classes.

    Returns:
      Mean over images and classes, at least float32, in 0..1: with the default weights, from 0 (perfect) to .5. An empty mask that is
      predicted empty gives 0.
    """
    logits = at_least_float32(logits)
    probabilities, there = jax.nn.softmax(logits, axis=-1), _one_hot(target, logits)
    common = 2 * (probabilities * there).sum(axis=(1, 2)) + SMOOTH
    either = (probabilities**2 + there**2).sum(axis=(1, 2)) + SMOOTH
    return ((1 - common / either) * _weights(class_weights, logits)).mean()


def segmentation(
    logits: Float[Array, "B H W C"],
    target: Bool[Array, "B H W"],
    *,
    focal_weight: float = 2.0,
    dice_weight: float = 1.0,
) -> Float[Array, ""]:
    """The siblings' sum for one head: 2 focal + 1 dice, or .8 and .4 for the auxiliary head."""
    return focal_weight * focal(logits, target) + dice_weight * soft_dice(logits, target)


def _one_hot(target: Bool[Array, "B H W"], logits: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    return jnp.stack([~target, target], axis=-1).astype(logits.dtype)


def _weights(weights: tuple[float, ...] | None, logits: Float[Array, "B H W C"]) -> Float[Array, "C"]:
    return jnp.asarray(weights or (1.0,) * logits.shape[-1], logits.dtype)
