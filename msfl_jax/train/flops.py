"""Floating-point operations of training on one image-report pair, and of decoders of masks, by formula.

A multiply-add counts 2, training 3 times the forward pass, and only products of matrices count. XLA's own figure counts the body of a scan over
layers once, so it must not be used.
"""

import dataclasses
import math

from msfl_jax.config import Config, PixelDecoderSize, TextSize, VisionSize
from msfl_jax.encoders.segmentation_decoders import AUXILIARY_CHANNELS, CLASSES, LEVELS, POOL_SCALES
from msfl_jax.losses.local_blocks import uses_gram


def flops_per_pair(config: Config, vocab_size: int) -> float:
    """Training FLOPs of one image-report pair: every pass that this configuration runs, all-pairs losses included.

    Args:
      config: sizes, passes, weights of the objectives (weight 0 is not computed) and the global batch that all-pairs losses compare.
      vocab_size: of the tokenizer.
    """
    return 3.0 * (_image_flops(config) + _report_flops(config, vocab_size) + _alignment_flops(config))


def vit_flops(size: VisionSize, mask_ratio: float = 0.0) -> float:
    """Forward FLOPs of the image encoder on the patches that a mask leaves over, grey patch embedding included."""
    patches = visible_patches(size, mask_ratio)
    embedding = size.width * (size.patch_size**2 + (size.patch_layers - 1) * size.width)
    return 2.0 * patches * embedding + blocks_flops(patches + size.cls_token, size.width, size.depth, size.mlp_ratio)


def decoder_flops(
    size: PixelDecoderSize, vision: VisionSize, mask_ratio: float, *, pixels: int | None = None, mlp_ratio: float = 4.0
) -> float:
    """Forward FLOPs of the pixel decoder: all tokens of the image, `pixels` predicted per patch (grey: patch size squared)."""
    tokens = vision.grid**2 + vision.cls_token
    given = visible_patches(vision, mask_ratio) + vision.cls_token
    pixels = vision.patch_size**2 if pixels is None else pixels
    ends = 2.0 * size.width * (vision.width * given + pixels * vision.grid**2)
    return ends + blocks_flops(tokens, size.width, size.depth, mlp_ratio)


def upernet_flops(width: int, grid: int, channels: int) -> float:
    """Forward FLOPs of UPerNet on one image, with its pyramid of 4, 2, 1 and 1/2 times the grid and the auxiliary head; resampling is not counted.

    Args:
      width: of the encoder's tokens.
      grid: patches along a side, even.
      channels: of the head.
    """
    auxiliary = min(AUXILIARY_CHANNELS, channels)
    finest, finer, patches, coarse = 16 * grid**2, 4 * grid**2, grid**2, (grid // 2) ** 2
    pyramid = conv_flops(2 * patches + finer, 1, width, 4 * width)  # three doublings, each from the grid before it
    lateral = conv_flops(finest + finer + patches, 1, width, channels)
    pooled = sum(conv_flops(bins**2, 1, width, channels) for bins in POOL_SCALES)
    pooled += conv_flops(coarse, 3, width + len(POOL_SCALES) * channels, channels)
    filtered = conv_flops(finest + finer + patches, 3, channels, channels)
    fused = conv_flops(finest, 3, LEVELS * channels, channels) + conv_flops(finest, 1, channels, CLASSES)
    beside = conv_flops(patches, 3, width, auxiliary) + conv_flops(patches, 1, auxiliary, CLASSES)
    return pyramid + lateral + pooled + filtered + fused + beside


def light_decoder_flops(width: int, grid: int, channels: int) -> float:
    """As `upernet_flops`, of the light decoder, which doubles the grid twice."""
    patches = grid**2
    total = conv_flops(patches, 1, LEVELS * width, channels) + conv_flops(20 * patches, 3, channels, channels)
    return total + conv_flops(16 * patches, 1, channels, CLASSES)


def conv_flops(pixels: int, kernel: int, inputs: int, outputs: int) -> float:
    """Forward FLOPs of a convolution with `pixels` results of `outputs` channels, zeros beyond the edge included: they are computed too."""
    return 2.0 * pixels * kernel**2 * inputs * outputs


def text_flops(size: TextSize) -> float:
    """Forward FLOPs of one pass of the report encoder over `max_tokens` tokens, padding included: it is computed too."""
    return blocks_flops(size.max_tokens, size.width, size.depth, size.mlp_ratio)


def mlm_head_flops(size: TextSize, vocab_size: int, predicted: int | float) -> float:
    """Forward FLOPs of the masked-language head on `predicted` positions: a dense layer and the tied word embeddings."""
    return 2.0 * predicted * size.width * (size.width + vocab_size)


def blocks_flops(tokens: int, width: int, depth: int, mlp_ratio: float) -> float:
    """Forward FLOPs of `depth` transformer blocks: four projections, two products of attention and the MLP, for `tokens` tokens."""
    per_token = 2.0 * width * width * (4 + 2 * mlp_ratio)
    return depth * (tokens * per_token + 4.0 * tokens * tokens * width)


def visible_patches(size: VisionSize, mask_ratio: float) -> int:
    """Patches that a mask leaves over, rounded down as MAE does: 49 of 196 at 75 %."""
    return int(size.grid**2 * (1.0 - mask_ratio))


def _image_flops(config: Config) -> float:
    """Forward FLOPs of the image passes: one, or an unmasked one and a masked one where pixels are rebuilt."""
    vision, ratio, model = config.model.vision, config.image.mask_ratio, config.model
    rebuilt, shared = bool(config.objective.lambda_modality), config.image.passes == "shared"
    total = vit_flops(vision, ratio if shared else 0.0)
    if rebuilt:
        pixels = (vision.patch_size * config.image.target_scale) ** 2
        total += decoder_flops(model.pixel_decoder, vision, ratio, pixels=pixels)
        total += 0.0 if shared else vit_flops(vision, ratio)
    pooled = vision.width * (2 if config.image.pool == "mean_max" else 1)
    return total + 2.0 * (_regions(config) * vision.width * model.region_width + pooled * model.embedding_width)


def _report_flops(config: Config, vocab_size: int) -> float:
    """Forward FLOPs of the report passes and the masked-language head."""
    text, model = config.model.text, config.model
    modeled = bool(config.objective.lambda_modality)
    total = _reading_flops(config) * (2 if modeled and config.text.passes == "two" else 1)
    if modeled:
        total += mlm_head_flops(text, vocab_size, predicted=math.ceil(config.text.mask_rate * text.max_tokens))
    return total + 2.0 * text.width * (_sentences(config) * model.region_width + model.embedding_width)


def _reading_flops(config: Config) -> float:
    """Forward FLOPs of one pass over the mean report: at the lengths that reports are grouped by."""
    text, buckets = config.model.text, config.text.buckets
    shares = (*(share for _, share in buckets), 1.0 - sum(share for _, share in buckets))
    lengths = (*(tokens for tokens, _ in buckets), text.max_tokens)
    sizes = [dataclasses.replace(text, max_tokens=tokens) for tokens in lengths]
    return sum(share * text_flops(size) for share, size in zip(shares, sizes, strict=True))


def _alignment_flops(config: Config) -> float:
    """Forward FLOPs, per pair, of the losses that compare the whole batch: B^2 products divided by B; of contexts in the form that the loss takes."""
    batch, model, matching = config.data.batch_size, config.model, config.objective.instance_matching
    local = config.objective.local_alignment
    total = 2.0 * batch * model.embedding_width
    if config.objective.lambda_instance:
        fused = model.embedding_width * (2 if matching.fusion in ("concat", "sum_product") else 1)
        total += 3 * 2.0 * model.matching_width * (fused + 1)  # a matched pair and two wrong ones
    regions, units = _regions(config), (local.group or batch) * _sentences(config)
    scores = 2.0 * units * regions * model.region_width  # every sentence of the batch, or group, with every region
    if local.kernel == "xla" and not uses_gram(regions, model.region_width):
        return total + 2 * scores  # contexts are formed
    return total + scores + 2.0 * (units + model.region_width) * regions**2  # a'Ga, and G = VV' once per image


def _regions(config: Config) -> int:
    """Regions per image that are projected and compared; none without local alignment."""
    ratio = config.image.mask_ratio if config.image.passes == "shared" else 0.0
    return visible_patches(config.model.vision, ratio) if config.objective.lambda_local else 0


def _sentences(config: Config) -> int:
    """Units per report that are projected and compared, padding included; none without local alignment."""
    units = config.text.max_sentences + config.objective.local_alignment.include_cls
    return units if config.objective.lambda_local else 0
