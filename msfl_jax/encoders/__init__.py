"""Pure functional encoders (Flax Linen): arrays in, arrays out, parameters in a plain nested dictionary."""

from msfl_jax.encoders.layers import BlockSpec, cast_products, stack_layers, unstack_layers
from msfl_jax.encoders.length_buckets import Buckets, read_both, read_by_length, useful_tokens
from msfl_jax.encoders.patches import (
    PatchMasking,
    count_visible,
    masking_from_noise,
    normalise_image,
    normalise_patches,
    patchify,
    random_masking,
    shrink,
    take,
)
from msfl_jax.encoders.pixel_decoder import PixelDecoder
from msfl_jax.encoders.pooling import pool_image, pool_report, pool_sentences, separate_sentences
from msfl_jax.encoders.positions import sincos_positions, window_mask
from msfl_jax.encoders.segmentation_decoders import Masks, SegmentationDecoder, enlarge, spread_layers
from msfl_jax.encoders.text import TextTransformer
from msfl_jax.encoders.token_masking import TRAINED_HERE, SpecialTokens, TokenMasking, mask_tokens
from msfl_jax.encoders.vision import VisionTokens, VisionTransformer

__all__ = [
    "TRAINED_HERE",
    "BlockSpec",
    "Buckets",
    "Masks",
    "PatchMasking",
    "PixelDecoder",
    "SegmentationDecoder",
    "SpecialTokens",
    "TextTransformer",
    "TokenMasking",
    "VisionTokens",
    "VisionTransformer",
    "cast_products",
    "count_visible",
    "enlarge",
    "mask_tokens",
    "masking_from_noise",
    "normalise_image",
    "normalise_patches",
    "patchify",
    "pool_image",
    "pool_report",
    "pool_sentences",
    "random_masking",
    "read_both",
    "read_by_length",
    "separate_sentences",
    "shrink",
    "sincos_positions",
    "spread_layers",
    "stack_layers",
    "take",
    "unstack_layers",
    "useful_tokens",
    "window_mask",
]
