"""Shared defaults of fine-tuning configurations, and how their arguments are read.

The comment behind a field names its source: (MaCo) and (MRM) the fine-tuning code of the siblings, or (ours).
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence

from ml_collections import ConfigDict

from input_pipeline.errors import UserError

OPTIONS = ("mrm", "probe", "scratch", "imported")

Recipe = tuple[int, int, float]
"""Steps, warm-up steps and peak rate."""


def finetuning(name: str, arg: str, recipes: Mapping[int, Recipe], mrm: Mapping[int, Recipe]) -> ConfigDict:
    """The defaults of a classification run with the siblings' recipe for a percentage of the labels.

    Args:
      name: of the configuration.
      arg: a comma-separated percentage of the labels (default 100) and options: "mrm" takes MRM's recipe instead of MaCo's, "probe" freezes the
        encoder, "scratch" starts it at random, "imported" with the weights of `encoder.weights`.
      recipes: MaCo's, by percentage.
      mrm: MRM's.

    Raises:
      UserError: an argument is none of these, or two percentages are given.
    """
    fraction, options = parse_argument(name, arg, tuple(recipes), OPTIONS)
    steps, warmup, rate = (mrm if "mrm" in options else recipes)[fraction]
    config = ConfigDict()
    config.name = name  # (ours) what the run is called in its reports
    config.seed = 0  # (ours) of the order of the data, the head, drop-path, and label fractions that were not published
    config.mode = (
        "probe" if "probe" in options else "full"
    )  # (MaCo) all weights are trained; GLoRIA "probe" trains none
    config.encoder = _encoder(options)
    config.data = _data(fraction)
    config.optimizer = _optimizer(warmup, rate)
    config.train = _train(steps)
    config.probe = ConfigDict()
    config.probe.penalty = (
        1e-4,
        1e2,
    )  # (ours) range of L2 penalties on standardised features; validation images choose
    config.probe.penalties = 7  # (ours) how many, evenly in the logarithm
    config.mesh = ConfigDict()
    config.mesh.data = -1  # (ours) replicas; -1 takes all devices that are left
    config.mesh.fsdp = 1  # (ours) devices over which parameters are sharded
    config.mesh.tensor = 1  # (ours) devices over which single matrices are split
    return config


def parse_argument(
    name: str, arg: str, fractions: Iterable[int], options: Sequence[str]
) -> tuple[int, tuple[str, ...]]:
    """Percentage of the labels and options of an argument such as "10,probe".

    Raises:
      UserError: a word is neither, or two percentages are given.
    """
    words = [word for word in arg.split(",") if word]
    numbers = {str(fraction): fraction for fraction in fractions}
    known = [*numbers, *options]
    for word in words:
        if word not in known:
            close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
            hint = f" (did you mean '{close[0]}'?)" if close else ""
            raise UserError(f"config {name}: unknown argument '{word}'{hint}; expected some of {', '.join(known)}")
    given = [numbers[word] for word in words if word in numbers]
    if len(given) > 1:
        raise UserError(f"config {name}: argument '{arg}' has {len(given)} percentages; expected one of {given}")
    return (given or [100])[0], tuple(word for word in words if word in options)


def _encoder(options: tuple[str, ...]) -> ConfigDict:
    encoder = ConfigDict()
    encoder.init = initialisation(options)  # (ours) of the same size in any case
    encoder.image_size = 0  # (MaCo) 0: as in pretraining, 224; positions are interpolated for another size
    encoder.pool = "mean"  # (MaCo) mean of patch tokens; "mean_max" adds their maximum
    encoder.final_norm = "probe" in options  # (MaCo) dropped for a norm of the mean; frozen features keep it
    encoder.drop_path = 0.1  # (MaCo) of the last block, less in those before it
    return name_weights(encoder)


def initialisation(options: Sequence[str]) -> str:
    """Where an encoder's weights come from, by the options of an argument."""
    return "random" if "scratch" in options else "imported" if "imported" in options else "pretrained"


def name_weights(encoder: ConfigDict) -> ConfigDict:
    """The section of an encoder with the keys of imported weights."""
    encoder.weights = ""  # (ours) file or folder, for init "imported": other published weights as a baseline
    encoder.pixels = (
        "auto"  # (ours) how the other model's images were normalised: what its folder says, else its format's usual
    )
    encoder.skip = ""  # (ours) names of tensors that may differ; others end the run with exit code 4
    return encoder


def _data(fraction: int) -> ConfigDict:
    data = ConfigDict()
    data.directory = ""  # (ours) folder made by `msfl data build`; --data sets it
    data.fraction = fraction  # (MaCo) percentage of the training images: published lists where the build has them
    data.subsets = "published"  # (MaCo) those lists; "drawn" passes them over for nested ones of each seed
    data.findings = ""  # (ours) comma-separated labels of the build; "" is all
    data.blank = "negative"  # (MaCo) what a label counts as that was not mentioned; uncertain ones are left out
    data.validate = "validate"  # (MaCo) split that chooses the checkpoint
    data.test = "test"  # (MaCo) split that is evaluated once, with that checkpoint
    data.batch_size = 96  # (MaCo) images per step over all devices
    data.workers = 0  # (ours) loader processes; 0 reads in threads
    data.fit = "crop"  # (MaCo) shorter side to the encoder's size, then the centre square
    data.scale = (0.08, 1.0)  # (MaCo) RandomResizedCrop's default
    data.shift = 0.0  # (MaCo) none beside the crop's place
    data.aspect = (0.75, 1.3333)  # (MaCo) RandomResizedCrop's default
    data.placement = "anywhere"  # (MaCo) where a crop lies
    data.zoom = (1.0, 1.0)  # (MaCo) none
    data.rotation = 0.0  # (MaCo) none
    data.flip = True  # (MaCo) labels say neither left nor right
    return data


def _optimizer(warmup: int, rate: float) -> ConfigDict:
    optimizer = ConfigDict()
    optimizer.kind = "sgd"  # (MaCo) with momentum; or "adamw"
    optimizer.schedule = "cosine"  # (MaCo) half a cosine to 0; or "poly"
    optimizer.peak_rate = rate  # (MaCo) or (MRM), by percentage of the labels
    optimizer.warmup_steps = warmup  # (MaCo) linear from 0
    optimizer.momentum = 0.9  # (MaCo)
    optimizer.b1 = 0.9  # (MAE) of AdamW
    optimizer.b2 = 0.999  # (MAE) of AdamW
    optimizer.weight_decay = 0.0  # (MaCo)
    optimizer.clip_norm = 1.0  # (MaCo) global norm of the gradient
    optimizer.layer_decay = 1.0  # (MaCo) 1: all layers alike; MAE .65 with AdamW
    optimizer.power = 0.9  # (ours) of "poly"; mmseg's usual one
    return optimizer


def _train(steps: int) -> ConfigDict:
    train = ConfigDict()
    train.steps = steps  # (MaCo) by percentage of the labels
    train.log_every = 20  # (ours) steps between two lines of metrics
    train.checkpoint_every = 1000  # (ours) steps between two checkpoints
    train.keep_checkpoints = 1  # (ours) latest ones kept beside the best
    train.evaluate_every = max(
        1, steps // 20
    )  # (ours) steps between two validations; MaCo's every ten epochs are as rare
    train.max_skipped_steps = 5  # (ours) steps in a row without a finite gradient before the run ends with exit code 5
    return train
