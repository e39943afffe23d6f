"""The five losses of the method, and those of segmentation, as pure functions of arrays over the global batch."""

from msfl_jax.losses.global_alignment import global_alignment
from msfl_jax.losses.instance_matching import (
    Negatives,
    hard_negative_probabilities,
    instance_matching,
    sample_hard_negatives,
)
from msfl_jax.losses.local_alignment import Aggregate, Attention, local_alignment, local_scores
from msfl_jax.losses.reconstruction import image_reconstruction, masked_language_modeling
from msfl_jax.losses.segmentation import focal, segmentation, soft_dice
from msfl_jax.losses.similarity import Direction, contrast

__all__ = [
    "Aggregate",
    "Attention",
    "Direction",
    "Negatives",
    "contrast",
    "focal",
    "global_alignment",
    "hard_negative_probabilities",
    "image_reconstruction",
    "instance_matching",
    "local_alignment",
    "local_scores",
    "masked_language_modeling",
    "sample_hard_negatives",
    "segmentation",
    "soft_dice",
]
