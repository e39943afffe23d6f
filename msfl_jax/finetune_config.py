"""Frozen dataclasses of a fine-tuning run on labelled images, made once from a ConfigDict.

Every field is explained where its default is set, in `msfl_jax.finetune_presets`. Sections that segmentation needs too are classes of their own.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from ml_collections import ConfigDict

from msfl_jax.config import MeshConfig, TrainConfig, build_dataclass
from msfl_jax.config_rules import Rule, in_ranges, refuse_first

AT_LEAST = {
    "seed": 0,
    "encoder.image_size": 0,
    "data.fraction": 1,
    "data.batch_size": 1,
    "data.workers": 0,
    "optimizer.warmup_steps": 0,
    "train.steps": 1,
    "train.log_every": 0,
    "train.checkpoint_every": 0,
    "train.keep_checkpoints": 1,
    "train.evaluate_every": 0,
    "train.max_skipped_steps": 0,
    "probe.penalties": 1,
}
WITHIN = {
    "data.shift": (0.0, 0.5),
    "data.rotation": (0.0, 180.0),
    "optimizer.peak_rate": (0.0, math.inf),
    "optimizer.momentum": (0.0, 1.0),
    "optimizer.b1": (0.0, 1.0),
    "optimizer.b2": (0.0, 1.0),
    "optimizer.weight_decay": (0.0, math.inf),
    "optimizer.clip_norm": (1e-9, math.inf),
    "optimizer.layer_decay": (1e-3, 1.0),
    "optimizer.power": (0.0, math.inf),
    "encoder.drop_path": (0.0, 0.9),
}
RANGES = {"data.scale": (1e-3, 1.0), "data.aspect": (0.1, 10.0), "data.zoom": (0.1, 10.0), "probe.penalty": (1e-9, 1e9)}


@dataclasses.dataclass(frozen=True)
class FinetuneEncoderConfig:
    """Where the encoder's weights come from and how its tokens become a vector; `image_size` 0 is the pretraining run's."""

    init: Literal["pretrained", "random"]
    image_size: int
    pool: Literal["mean", "mean_max"]
    final_norm: bool
    drop_path: float


@dataclasses.dataclass(frozen=True)
class FinetuneDataConfig:
    """Which labels a run learns from, and how images are cut from the records; `fraction` is a percentage of the training images."""

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
    refuse_first(config, in_ranges(config, AT_LEAST, WITHIN, RANGES))
    refuse_first(config, _together(config))
    return config


def _together(config: FinetuneConfig) -> Iterator[Rule]:
    steps, mesh = config.train.steps, config.mesh
    yield config.optimizer.warmup_steps < steps, "optimizer.warmup_steps", f"fewer than train.steps, {steps}"
    yield config.data.fraction <= 100, "data.fraction", "a percentage from 1 to 100"
    axes = (mesh.data, mesh.fsdp, mesh.tensor)
    sizes = all(size == -1 or size >= 1 for size in axes) and axes.count(-1) <= 1
    yield sizes, "mesh", "1 or more devices along each axis, or -1 for what is left along one"
