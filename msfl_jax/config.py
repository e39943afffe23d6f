"""Frozen dataclasses of a run, made once from a ConfigDict; the library never sees the ConfigDict itself.

Every field is explained where its default is set, in `msfl_jax.presets`. A field with a default here is younger than some run directories: where
their config.json lacks it, the default says what they did.
"""

import dataclasses
import functools
import hashlib
import json
import operator
from collections.abc import Mapping
from typing import Any, Literal

from ml_collections import ConfigDict

from msfl_jax.config_build import build_dataclass
from msfl_jax.config_init import RANDOM_START, InitFromConfig, hashed
from msfl_jax.config_rules import refuse_broken_rules

Direction = Literal["symmetric", "image_to_report", "report_to_image"]

# Where things lie, what is watched along a run, and how the same numbers are computed.
NOT_HASHED = (
    "data.directory",
    "data.tokenizer",
    "data.tokenizer_hash",
    "data.workers",
    "grounding.directory",
    "zero_shot.in_loop",
    "zero_shot.directory",
)
NOT_HASHED += ("retrieval", "probe", "train.microbatches", "model.attention", "mesh.shard_moments")
NOT_HASHED += ("text.length_buckets", "objective.global_alignment.exchange")
NOT_HASHED += ("objective.local_alignment.exchange", "objective.local_alignment.kernel")


@dataclasses.dataclass(frozen=True)
class VisionSize:
    """Size of the image encoder; lengths in pixels, `cls_token` adds one token before the patches."""

    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    mlp_ratio: float
    patch_layers: int
    positions: Literal["sincos", "learned"]
    cls_token: bool

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size


@dataclasses.dataclass(frozen=True)
class TextSize:
    """Size of the report encoder; `vocab_size` 0 is replaced by the tokenizer's."""

    vocab_size: int
    max_tokens: int
    width: int
    depth: int
    heads: int
    mlp_ratio: float


@dataclasses.dataclass(frozen=True)
class PixelDecoderSize:
    """Size of the decoder that rebuilds masked patches."""

    width: int
    depth: int
    heads: int


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes of all parts, and how they are computed; `attention` "cudnn" is for bfloat16 on NVIDIA GPUs, elsewhere it is "xla"."""

    vision: VisionSize
    text: TextSize
    pixel_decoder: PixelDecoderSize
    embedding_width: int
    region_width: int
    matching_width: int
    scan_layers: bool
    remat: Literal["none", "dots", "full"]
    compute_dtype: Literal["float32", "bfloat16"]
    flat_products: bool
    attention: Literal["xla", "cudnn"] = "xla"


@dataclasses.dataclass(frozen=True)
class ImageConfig:
    """How images are normalised, masked and pooled; pixels are rebuilt at `target_scale` times the encoder's resolution."""

    passes: Literal["two", "shared"]
    mask_ratio: float
    norm_pix: bool
    target_scale: int
    pool: Literal["mean", "mean_max", "cls"]
    normalisation: Literal["fixed", "per_image"]
    mean: float
    deviation: float


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """How reports are masked and pooled.

    `length_buckets`, as "64:0.5,96:0.3", reads the shortest half of a device's reports at 64 tokens, the next three in ten at 96 and the others at
    `model.text.max_tokens`, which changes nothing that is computed.
    """

    passes: Literal["two", "shared"]
    mask_rate: float
    mask_replacement: Literal["bert", "mask_only"]
    pool: Literal["cls", "cls_linear", "mean"]
    sentence_pool: Literal["mean", "sum", "separate"]
    subset_probability: float
    max_sentences: int
    length_buckets: str = ""

    @property
    def buckets(self) -> tuple[tuple[int, float], ...]:
        """(tokens, share of the rows) of each length below the largest, as the rules of configurations have let them pass."""
        pairs = [word.split(":") for word in self.length_buckets.split(",") if word]
        return tuple((int(tokens), float(share)) for tokens, share in pairs)


@dataclasses.dataclass(frozen=True)
class RegionsConfig:
    """Where region embeddings are taken: `layer` 0 is after the final norm, n after block n."""

    layer: int
    window_radius: int
    projection: Literal["own", "shared"]


@dataclasses.dataclass(frozen=True)
class GlobalAlignmentConfig:
    """Options of eq. 1; `exchange` is how report embeddings reach other devices, which changes nothing that is computed ("xla" leaves it to XLA)."""

    direction: Direction
    temperature: float
    learn_temperature: bool
    exchange: Literal["xla", "gather", "ring"] = "xla"


@dataclasses.dataclass(frozen=True)
class LocalAlignmentConfig:
    """Options of eq. 2-3; `block` 0 lets the loss choose how many reports it scores at once.

    `negatives` is "global", all reports of the global batch, or "group(N)", those of N consecutive rows of it. `exchange` is how sentences reach
    other devices, and `kernel` what computes the scores, "pallas" on TPUs only; neither changes what is computed.
    """

    attention: Literal["gloria", "regions"]
    region_scale: float
    sentence_scale: float
    logit_scale: float
    aggregate: Literal["sum", "mean"]
    include_cls: bool
    direction: Direction
    block: int
    negatives: str
    exchange: Literal["gather", "ring"] = "gather"
    kernel: Literal["xla", "pallas"] = "xla"

    @property
    def group(self) -> int | None:
        """Rows whose reports are each other's negatives; None for the whole batch."""
        return None if self.negatives == "global" else int(self.negatives.removeprefix("group(").removesuffix(")"))


@dataclasses.dataclass(frozen=True)
class InstanceMatchingConfig:
    """Options of eq. 4; `ramp` is the share of all steps at which its weight starts to rise and is full."""

    fusion: Literal["sum", "concat", "product", "sum_product"]
    activation: Literal["gelu", "relu", "none"]
    negatives: Literal["hard", "random"]
    ramp: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """The four objectives and their weights (eq. 7); weight 0 leaves an objective out of the computation.

    `reduction` says whether the two directions of an alignment are averaged or added.
    """

    lambda_global: float
    lambda_local: float
    lambda_instance: float
    lambda_modality: float
    reduction: Literal["mean", "sum"]
    global_alignment: GlobalAlignmentConfig
    local_alignment: LocalAlignmentConfig
    instance_matching: InstanceMatchingConfig


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which records a run reads and how images are cut from them; `batch_size` counts studies over all devices.

    `tokenizer_hash` is filled in when a run starts, so that its config.json says which tokenizer it was.
    """

    directory: str
    tokenizer: str
    tokenizer_hash: str
    split: str
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
    permute_reports: bool


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up and a half cosine to 0."""

    peak_rate: float
    warmup_steps: int
    weight_decay: float
    b1: float
    b2: float
    clip_norm: float


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Length of the run, what happens along it (`*_every` counts steps, 0 is never), and in how many parts encoders see a batch."""

    steps: int
    log_every: int
    checkpoint_every: int
    keep_checkpoints: int
    evaluate_every: int
    max_skipped_steps: int
    microbatches: int = 1


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; -1 takes what is left, for one axis at most.

    `shard_moments` splits the optimizer's moments over data as well, which changes nothing that is computed.
    """

    data: int
    fsdp: int
    tensor: int
    shard_moments: bool = False


@dataclasses.dataclass(frozen=True)
class ZeroShotConfig:
    """How prompts become a score, and what is evaluated in the loop unless `in_loop` is False.

    Of it, `directory` is the build with labels ("" is the training build), and `records` 0 is all.
    """

    rule: Literal["cosine", "maco", "chexzero", "gloria"]
    prompts: str
    split: str
    records: int
    in_loop: bool = True
    directory: str = ""


@dataclasses.dataclass(frozen=True)
class GroundingConfig:
    """How a heat-map is made: `sigma` is the smoothing in patches, `shifts` the looks per axis, `directory` the build with boxes."""

    protocol: Literal["biovil", "maco", "afloc"]
    sigma: float
    shifts: int
    directory: str
    split: str
    records: int


@dataclasses.dataclass(frozen=True)
class RetrievalConfig:
    """Retrieval in the loop: on which split of which build with reports (`directory` "" is the training build; `records` 0 is all)."""

    in_loop: bool = False
    directory: str = ""
    split: str = "validate"
    records: int = 1000


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
    """Linear probe in the loop: fitted on `train_split` and measured on `split` of a build with labels (`directory` "" is the training build)."""

    in_loop: bool = False
    directory: str = ""
    train_split: str = "train"
    split: str = "validate"
    records: int = 2000
    l2: float = 1e-3


@dataclasses.dataclass(frozen=True)
class Config:
    """One run, whole."""

    name: str
    seed: int
    model: ModelConfig
    image: ImageConfig
    text: TextConfig
    regions: RegionsConfig
    objective: ObjectiveConfig
    data: DataConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    mesh: MeshConfig
    zero_shot: ZeroShotConfig
    grounding: GroundingConfig
    retrieval: RetrievalConfig = RetrievalConfig()
    probe: ProbeConfig = ProbeConfig()
    init_from: InitFromConfig = RANDOM_START


def from_config_dict(values: Mapping[str, Any] | ConfigDict) -> Config:
    """Makes the frozen configuration of a run.

    Args:
      values: a ConfigDict or the dictionary read from a run's config.json.

    Raises:
      UserError: a key is unknown or missing, a value has another type or is none of the choices.
    """
    config = build_dataclass(Config, values)
    refuse_broken_rules(config)
    return config


def to_dict(config: Any) -> dict[str, Any]:
    """The configuration as plain nested dictionaries, as written to a run's config.json."""
    return dataclasses.asdict(config)


def config_hash(config: Config) -> str:
    """First 16 hex digits of the SHA-256 of the configuration without `NOT_HASHED`: equal for the same experiment anywhere."""
    values = to_dict(config)
    for path in NOT_HASHED:
        *sections, key = path.split(".")
        functools.reduce(operator.getitem, sections, values).pop(key)
    values["model"]["remat"] = "none"  # it changes no result, and most hashes were made with this
    values |= hashed(values.pop("init_from"))
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
