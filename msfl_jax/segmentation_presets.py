"""Shared defaults of segmentation configurations, and how their arguments are read.

The comment behind a field names its source: (MaCo) the SIIM configuration of the authors' earlier code, or (ours).
"""

from collections.abc import Mapping

from ml_collections import ConfigDict

from input_pipeline.errors import UserError
from msfl_jax.finetune_presets import initialisation, name_weights, parse_argument

OPTIONS = ("clean", "as_published", "scratch", "imported", "linear")

Recipe = tuple[int, int, float, int]
"""Steps, warm-up steps, peak rate, and steps between two validations."""


def segmenting(name: str, arg: str, recipes: Mapping[int, Recipe]) -> ConfigDict:
    """The defaults of a segmentation run with the siblings' recipe for a percentage of the labels.

    Args:
      name: of the configuration.
      arg: a comma-separated percentage of the labels (default 100) and options: "clean" or "as_published" refuses a build with other lists,
        "scratch" starts the encoder at random, "imported" with the weights of `encoder.weights`, "linear" takes the light decoder.
      recipes: by percentage.

    Raises:
      UserError: an argument is none of these, or two percentages or both kinds of lists are given.
    """
    fraction, options = parse_argument(name, arg, recipes, OPTIONS)
    if {"clean", "as_published"} <= set(options):
        raise UserError(
            f"config {name}: argument '{arg}' has both 'clean' and 'as_published'; expected one kind of lists"
        )
    config = ConfigDict()
    config.name = name  # (ours) what the run is called in its reports
    config.seed = 0  # (ours) of the order of the data, the head, drop-path, and label fractions that were not published
    config.best_metric = "dice_pooled_foreground"  # (ours) MaCo's dice_per_image_with_empty would choose a model that predicts nothing: .78
    config.encoder = ConfigDict()
    config.encoder.init = initialisation(options)  # (ours) of the same size in any case
    config.encoder.image_size = 512  # (MaCo) pixels along a side; positions are brought to this size
    config.encoder.drop_path = 0.1  # (MaCo) of the last block, less in those before it
    config.encoder.layers = (0, 0, 0, 0)  # (MaCo) zeros: of 12 blocks 4, 6, 8 and 12, counted from 1
    name_weights(config.encoder)
    config.head = _head("linear" in options)
    config.data = _data(fraction, next((word for word in options if word in ("clean", "as_published")), "any"))
    steps, warmup, rate, validation = recipes[fraction]
    config.optimizer = _optimizer(warmup, rate)
    if config.encoder.init == "random":
        config.optimizer.layer_decay = 1.0  # (ours) early layers that know nothing yet must learn as fast as the rest
    config.train = ConfigDict()
    config.train.steps = steps  # (MaCo) by percentage of the labels
    config.train.log_every = 50  # (ours) steps between two lines of metrics
    config.train.checkpoint_every = 1000  # (ours) steps between two checkpoints; validations save as well
    config.train.keep_checkpoints = 1  # (ours) latest ones kept beside the best
    config.train.evaluate_every = validation  # (MaCo) steps between two validations, by percentage of the labels
    config.train.max_skipped_steps = (
        5  # (ours) steps in a row without a finite gradient before the run ends with exit code 5
    )
    config.mesh = ConfigDict()
    config.mesh.data = -1  # (ours) replicas; -1 takes all devices that are left
    config.mesh.fsdp = 1  # (ours) devices over which parameters are sharded
    config.mesh.tensor = 1  # (ours) devices over which single matrices are split
    config.mesh.shard_moments = False  # (ours) moments over data as well
    return config


def _head(light: bool) -> ConfigDict:
    head = ConfigDict()
    head.kind = "linear" if light else "upernet"  # (MaCo) UPerNet; "linear" is ours, for small machines
    head.channels = 64 if light else 768  # (MaCo) width of UPerNet; 64 is ours
    head.focal_weight = 2.0  # (MaCo)
    head.dice_weight = 1.0  # (MaCo) of the foreground alone, over two classes
    head.auxiliary_focal_weight = 0.8  # (MaCo)
    head.auxiliary_dice_weight = 0.4  # (MaCo)
    return head


def _data(fraction: int, lists: str) -> ConfigDict:
    data = ConfigDict()
    data.directory = ""  # (ours) folder made by `msfl data build siim`; --data sets it
    data.fraction = fraction  # (MaCo) percentage of the training images: published lists where the build has them
    data.lists = lists  # (ours) which lists the build must have been made with; "any" takes every build
    data.sampling = "all"  # (MaCo) every image once an epoch; "balanced" (GLoRIA, MGCA) shows disease in half of them
    data.validate = "validate"  # (MaCo) split that chooses the checkpoint
    data.test = "test"  # (MaCo) split that is evaluated once, with that checkpoint
    data.batch_size = 8  # (MaCo) 2 images on each of 4 GPUs
    data.workers = 0  # (ours) loader processes; 0 reads in threads
    data.fit = "pad"  # (MaCo) longer side to the encoder's size, black around the shorter one
    data.scale = (1.0, 1.0)  # (MaCo) no crop
    data.shift = 0.0  # (MaCo) none
    data.zoom = (1.0, 1.0)  # (MaCo) none
    data.rotation = 0.0  # (MaCo) none
    data.flip = True  # (MaCo) half of the images
    return data


def _optimizer(warmup: int, rate: float) -> ConfigDict:
    optimizer = ConfigDict()
    optimizer.kind = "adamw"  # (MaCo)
    optimizer.schedule = "poly"  # (MaCo)
    optimizer.peak_rate = rate  # (MaCo) by percentage of the labels
    optimizer.warmup_steps = warmup  # (MaCo) linear
    optimizer.momentum = 0.9  # (ours) unused by AdamW
    optimizer.b1 = 0.9  # (MaCo)
    optimizer.b2 = 0.999  # (MaCo)
    optimizer.weight_decay = 0.05  # (MaCo)
    optimizer.clip_norm = 1e3  # (MaCo) no clipping; so large that only a broken gradient is cut
    optimizer.layer_decay = 0.65  # (MaCo) rate of a layer over that of the next
    optimizer.power = 1.0  # (MaCo) of "poly": a straight line to 0
    return optimizer
