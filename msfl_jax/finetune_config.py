"""Frozen dataclasses of a fine-tuning run on labelled images, made once from a ConfigDict.

Every field is explained where its default is set, in `msfl_jax.finetune_presets`. Sections that segmentation needs too are classes of their own.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from ml_collections import ConfigDict

from msfl_jax.config import MeshConfig, TrainConfig
from msfl_jax.config_build import build_dataclass
from msfl_jax.config_init import SourcePixels
from msfl_jax.config_rules import AT_LEAST_OF_RUNS, WITHIN_OF_RUNS, Rule, in_ranges, of_runs, refuse_first

AT_LEAST = AT_LEAST_OF_RUNS | {"encoder.image_size": 0, "data.fraction": 1}
WITHIN = WITHIN_OF_RUNS | {
    "optimizer.momentum": (0.0, 1.0),
    "optimizer.layer_decay": (1e-3, 1.0),
    "optimizer.power": (0.0, math.inf),
    "encoder.drop_path": (0.0, 0.9),
}
RANGES = {"data.scale": (1e-3, 1.0), "data.aspect": (0.1, 10.0), "data.zoom": (0.1, 10.0), "probe.penalty": (1e-9, 1e9)}


@dataclasses.dataclass(frozen=True)
class FinetuneEncoderConfig:
    """Where the encoder's weights come from and how its tokens become a vector; `image_size` 0 is the pretraining run's.

    Of an "imported" encoder, `weights` is the file and `pixels` and `skip` are as in `InitFromConfig`; the run gives its sizes.
    """

    init: Literal["pretrained", "random", "imported"]
    image_size: int
    pool: Literal["mean", "mean_max"]
    final_norm: bool
    drop_path: float
    weights: str = ""
    pixels: SourcePixels = "auto"
    skip: str = ""


@dataclasses.dataclass(frozen=True)
class FinetuneDataConfig:
    """Which labels a run learns from, and how images are cut from the records; `fraction` is a percentage of the training images.

    `subsets` says whether it is the build's published list of that percentage, where there is one, or what the seed draws.
    """

    directory: str
    fraction: int
    findings: str
    blank: Literal["negative", "ignore"]
    validate: str
    test: str
    batch_size: int
    workers: int
    fit: Literal["crop", "pad", "squash"]
    scale: tuple[float, float]
    shift: float
    aspect: tuple[float, float]
    placement: Literal["centre", "anywhere"]
    zoom: tuple[float, float]
    rotation: float
    flip: bool
    subsets: Literal["published", "drawn"] = "published"


@dataclasses.dataclass(frozen=True)
class FinetuneOptimizerConfig:
    """SGD or AdamW, with linear warm-up and a cosine or polynomial fall to 0."""

    kind: Literal["sgd", "adamw"]
    schedule: Literal["cosine", "poly"]
    peak_rate: float
    warmup_steps: int
    momentum: float
    b1: float
    b2: float
    weight_decay: float
    clip_norm: float
    layer_decay: float
    power: float


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
    """Logistic regression on frozen features: `penalties` strengths of L2 between the ends of `penalty`, evenly in the logarithm."""

    penalty: tuple[float, float]
    penalties: int


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """One classification run, whole."""

    name: str
    seed: int
    mode: Literal["full", "probe"]
    encoder: FinetuneEncoderConfig
    data: FinetuneDataConfig
    optimizer: FinetuneOptimizerConfig
    train: TrainConfig
    probe: ProbeConfig
    mesh: MeshConfig


def finetune_config(values: Mapping[str, Any] | ConfigDict) -> FinetuneConfig:
    """Makes the frozen configuration of a fine-tuning run.

    Args:
      values: a ConfigDict or the dictionary read from a run's config.json.

    Raises:
      UserError: a key is unknown or missing, a value has another type, is none of the choices or out of range.
    """
    config = build_dataclass(FinetuneConfig, values)
    refuse_first(config, in_ranges(config, AT_LEAST | {"probe.penalties": 1}, WITHIN, RANGES))
    refuse_first(config, fits(config))
    return config


def fits(config: Any) -> Iterator[Rule]:
    """What must fit each other in every run that learns from a percentage of the labels."""
    yield config.data.fraction <= 100, "data.fraction", "a percentage from 1 to 100"
    named = config.encoder.init != "imported" or config.encoder.weights
    yield bool(named), "encoder.weights", "a file of weights, as encoder.init is 'imported'"
    whole = config.train.microbatches == 1
    yield whole, "train.microbatches", "1: no loss compares images of a batch, so a smaller data.batch_size does"
    yield from of_runs(config)
