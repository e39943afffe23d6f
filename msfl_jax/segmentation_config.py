"""Frozen dataclasses of a segmentation run, made once from a ConfigDict; every field is explained in `msfl_jax.segmentation_presets`."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from ml_collections import ConfigDict

from msfl_jax import finetune_config
from msfl_jax.config import MeshConfig, TrainConfig
from msfl_jax.config_build import build_dataclass
from msfl_jax.config_init import SourcePixels
from msfl_jax.config_rules import Rule, in_ranges, refuse_first
from msfl_jax.finetune_config import FinetuneOptimizerConfig

Lists = Literal["as_published", "clean", "own"]

AT_LEAST = finetune_config.AT_LEAST | {"head.channels": 8}
WITHIN = finetune_config.WITHIN | {
    "head.focal_weight": (0.0, math.inf),
    "head.dice_weight": (0.0, math.inf),
    "head.auxiliary_focal_weight": (0.0, math.inf),
    "head.auxiliary_dice_weight": (0.0, math.inf),
}
RANGES = {"data.scale": (1e-3, 1.0), "data.zoom": (0.1, 10.0)}


@dataclasses.dataclass(frozen=True)
class SegmentationEncoderConfig:
    """Where the encoder's weights come from and at what size it sees; `layers` are the blocks, counted from 1, that the head reads.

    `image_size` 0 is the pretraining run's, and `layers` (0, 0, 0, 0) a third, half, two thirds and all of the depth. Of an "imported" encoder,
    `weights` is the file and `pixels` and `skip` are as in `InitFromConfig`; the run gives its sizes.
    """

    init: Literal["pretrained", "random", "imported"]
    image_size: int
    drop_path: float
    layers: tuple[int, int, int, int]
    weights: str = ""
    pixels: SourcePixels = "auto"
    skip: str = ""


@dataclasses.dataclass(frozen=True)
class SegmentationHeadConfig:
    """The decoder and the weights of its losses; those of the auxiliary head count for "upernet" alone."""

    kind: Literal["upernet", "linear"]
    channels: int
    focal_weight: float
    dice_weight: float
    auxiliary_focal_weight: float
    auxiliary_dice_weight: float


@dataclasses.dataclass(frozen=True)
class SegmentationDataConfig:
    """Which masks a run learns from, and how views are cut; `fraction` is a percentage of the training images.

    `lists` "any" takes whatever splits the build has; "as_published" and "clean" refuse a build with others.
    `sampling` "balanced" shows images with and without disease equally often.
    """

    directory: str
    fraction: int
    lists: Literal["any", "as_published", "clean"]
    sampling: Literal["all", "balanced"]
    validate: str
    test: str
    batch_size: int
    workers: int
    fit: Literal["crop", "pad", "squash"]
    scale: tuple[float, float]
    shift: float
    zoom: tuple[float, float]
    rotation: float
    flip: bool


@dataclasses.dataclass(frozen=True)
class SegmentationConfig:
    """One segmentation run, whole; `best_metric` is the Dice on validation images that chooses the checkpoint."""

    name: str
    seed: int
    best_metric: Literal[
        "dice_per_image_with_empty", "dice_positive_only", "dice_pooled_foreground", "dice_pooled_with_background"
    ]
    encoder: SegmentationEncoderConfig
    head: SegmentationHeadConfig
    data: SegmentationDataConfig
    optimizer: FinetuneOptimizerConfig
    train: TrainConfig
    mesh: MeshConfig


def segmentation_config(values: Mapping[str, Any] | ConfigDict) -> SegmentationConfig:
    """Makes the frozen configuration of a segmentation run.

    Args:
      values: a ConfigDict or the dictionary read from a run's config.json.

    Raises:
      UserError: a key is unknown or missing, a value has another type, is none of the choices or out of range.
    """
    config = build_dataclass(SegmentationConfig, values)
    refuse_first(config, in_ranges(config, AT_LEAST, WITHIN, RANGES))
    refuse_first(config, _together(config))
    return config


def _together(config: SegmentationConfig) -> Iterator[Rule]:
    layers = config.encoder.layers
    ascending = all(layer > 0 for layer in layers) and list(layers) == sorted(layers)
    yield ascending or not any(layers), "encoder.layers", "four blocks from 1, in ascending order, or four zeros"
    weights = config.head.focal_weight + config.head.dice_weight
    yield weights > 0, "head.focal_weight", "a weight above 0, or a head.dice_weight above 0"
    yield from finetune_config.fits(config)
