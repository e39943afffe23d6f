"""Segmentation fine-tuning: masks of findings from a pretrained or a random encoder, measured in pixels of the source images.

`finetune_segmentation` trains on a build with masks, chooses the checkpoint with the best Dice on validation images, and evaluates it once on the
test split; `summarise` makes the numbers from predictions alone. An image is seen whole: scaled into the view, predicted, and the prediction
scaled back.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from input_pipeline.errors import CheckpointError, UserError
from input_pipeline.labelled_batches import labelled_records, view_spec
from input_pipeline.manifest import Manifest, read_manifest
from input_pipeline.mask_batches import Balanced, mask_batches, require_masks
from input_pipeline.reading import SplitRecords, open_split
from input_pipeline.streams import BatchSpec
from msfl_jax.config import from_config_dict, to_dict
from msfl_jax.metrics import dice_statistics
from msfl_jax.model import Params
from msfl_jax.parallel import distributed
from msfl_jax.segmentation_config import Lists, SegmentationConfig, segmentation_config
from msfl_jax.segmenter import Segmenter
from msfl_jax.tasks.leaks import leak_caveats
from msfl_jax.tasks.mask_predictions import predict
from msfl_jax.tasks.mask_result import MaskPredictions, summarise
from msfl_jax.tasks.outcome import Outcome, identify_split, save_outcome
from msfl_jax.tasks.run import CONFIG_FILE, Run, encoder_parameters, refuse_pretraining_run
from msfl_jax.train.adaptation import Adaptation, adapt, best_parameters
from msfl_jax.train.adaptation_optimizer import finetuning_optimizer, finetuning_rate
from msfl_jax.train.provenance import read_caveats, write_provenance

TASK = "segmentation"
ENCODER_FILE = "encoder.json"

UNDEFINED = {
    "dice_per_image_with_empty": "no image",
    "dice_positive_only": "no image with a mask",
    "dice_pooled_foreground": "no pixel predicted or true",
    "dice_pooled_with_background": "no pixel predicted or true",
}


@dataclasses.dataclass(frozen=True)
class SegmentationRun:
    """A fine-tuned model with all that is needed to use it.

    Attributes:
      directory: its run directory.
      config: as it was made.
      segmenter: static.
      params: of the best checkpoint, unless another was asked for.
      step: of the parameters.
      caveats: what its training data make it necessary to say beside every number.
    """

    directory: Path
    config: SegmentationConfig
    segmenter: Segmenter
    params: Params
    step: int
    caveats: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class SegmentationResult:
    """What a fine-tuned run scored on a split.

    Attributes:
      outcome: as saved.
      predictions: from which its numbers follow.
    """

    outcome: Outcome
    predictions: MaskPredictions


def finetune_segmentation(
    config: SegmentationConfig,
    workdir: Path,
    run: Run,
    *,
    caveats: tuple[str, ...] = (),
    progress: bool = True,
    replicates: int = 2000,
) -> SegmentationResult:
    """Trains a decoder and its encoder, chooses the checkpoint by `best_metric` on the validation split, and evaluates it once on the test split.

    Every process of a run calls it with the same arguments; calling it again resumes.

    Args:
      config: with the build in `data.directory`.
      workdir: of the fine-tuned run, not the pretraining run's.
      run: the pretrained model, or one with an imported encoder where `encoder.init` is "imported"; with "random" only its configuration is used.
      caveats: of the build against what the model was pretrained on (see `segmentation_caveats`).
      progress: whether to print a line of progress.
      replicates: of the bootstrap.

    Returns:
      What was saved in `workdir`/results and `workdir`/predictions.

    Raises:
      UserError: the build, a split or the lists are not what the configuration asks for, or `workdir` is the pretraining run's.
      DataError: the build has no masks, or an image or a shard is damaged.
      CheckpointError, DivergedError, RetryError: see `msfl_jax.train.adaptation.adapt`.
    """
    refuse_pretraining_run(workdir, run)
    directory = Path(config.data.directory)
    refuse_other_lists(config, read_manifest(directory))
    with_masks(directory, config.data.test)
    segmenter = Segmenter.create(config, run.config)
    task = adaptation(config, run, segmenter, label="segmentation" if progress else "")
    _prepare(config, workdir, run, caveats)
    adapt(task, config, workdir)
    return evaluate_segmentation(open_segmentation(workdir), directory, config.data.test, replicates=replicates)


def open_segmentation(workdir: Path, *, step: int | str | None = "best") -> SegmentationRun:
    """Opens a run directory of `finetune_segmentation`.

    Args:
      workdir: holds config.json, encoder.json and checkpoints/.
      step: "best", a step with a checkpoint, or None for the latest.

    Raises:
      UserError: not such a run directory.
      CheckpointError: the checkpoint is missing, damaged or of another configuration.
    """
    try:
        config = segmentation_config(json.loads((workdir / CONFIG_FILE).read_text()))
        pretraining = from_config_dict(json.loads((workdir / ENCODER_FILE).read_text())["config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        found = f"{workdir}: no fine-tuned segmenter ({type(error).__name__})"
        raise UserError(f"{found}; expected a folder of `msfl finetune segmentation`") from error
    segmenter = Segmenter.create(config, pretraining)
    params, found = best_parameters(workdir, jax.eval_shape(segmenter.init, jax.random.key(0)), step=step)
    return SegmentationRun(workdir, config, segmenter, params, found, read_caveats(workdir))


def evaluate_segmentation(
    run: SegmentationRun, directory: Path, split: str, *, seed: int = 0, replicates: int = 2000
) -> SegmentationResult:
    """Measures a fine-tuned run on a split with masks and saves predictions and outcome in its directory.

    Raises:
      UserError: there is no such build or split.
      DataError: the split has no masks, or an image or a shard is damaged.
    """
    spec = evaluation_spec(run.config, run.segmenter)
    predictions = predict(run.segmenter, run.params, with_masks(directory, split), spec)
    metrics = summarise(predictions.counts, predictions.patient_key, seed=seed, replicates=replicates)
    config, (dataset, split_hash) = run.config, identify_split(directory, split)
    options = {
        "init": config.encoder.init,
        "head": config.head.kind,
        "fraction": config.data.fraction,
        "seed": config.seed,
        "config": config.name,
        "lists": lists_of(read_manifest(directory)),
        "bootstrap_seed": seed,
        "replicates": replicates,
    }
    outcome = Outcome(
        task=TASK,
        dataset=dataset,
        split=split,
        split_hash=split_hash,
        variant=variant(config),
        options=options,
        step=run.step,
        records=len(predictions.counts),
        patients=len(np.unique(predictions.patient_key)),
        metrics=metrics,
        reasons={name: UNDEFINED[name] for name, interval in metrics.items() if np.isnan(interval.value)},
        caveats=run.caveats,
    )
    if distributed.is_lead():
        predictions.save(outcome.predictions(run.directory))
        save_outcome(outcome, run.directory)
    return SegmentationResult(outcome, predictions)


def variant(config: SegmentationConfig) -> str:
    """Of the run's results: where the encoder came from, the head, the percentage of the labels and the seed."""
    return f"{config.encoder.init}-{config.head.kind}-{config.data.fraction}-seed{config.seed}"


def segmentation_caveats(config: SegmentationConfig, run: Run, *, allow_leak: bool = False) -> tuple[str, ...]:
    """What must stand beneath the numbers: see `leak_caveats`. A random encoder has seen nothing; then only the build itself has something to say.

    Raises:
      DataError: the test split shares images or patients with what the run was trained on.
      UserError: there is no such build or split.
    """
    directory = Path(config.data.directory)
    if config.encoder.init != "pretrained":
        own = run.caveats if config.encoder.init == "imported" else ()
        return (*own, *read_manifest(directory).caveats)
    return leak_caveats(run, directory, config.data.test, allow_leak=allow_leak)


def adaptation(
    config: SegmentationConfig, run: Run, segmenter: Segmenter, *, label: str = "segmentation"
) -> Adaptation:
    """What is trained on what, for `msfl_jax.train.adaptation.adapt`."""
    directory, data, seed = Path(config.data.directory), config.data, config.seed
    train = require_masks(
        labelled_records(directory, data.fraction, seed=seed), directory, f"train ({data.fraction} %)"
    )
    shown = Balanced(train) if data.sampling == "balanced" else train
    validate = with_masks(directory, data.validate)
    depth = run.config.model.vision.depth
    pretrained = encoder_parameters(run, config.encoder.init)

    def batches(start_step: int, index: int, count: int) -> Any:
        return mask_batches(
            shown,
            training_spec(config, segmenter),
            batch_size=data.batch_size,
            seed=seed,
            start_step=start_step,
            process_index=index,
            process_count=count,
            workers=data.workers,
        )

    return Adaptation(
        params=segmenter.initial(jax.random.key(seed), pretrained),
        loss=segmenter.loss,
        optimizer=finetuning_optimizer(config.optimizer, config.train.steps, depth=depth),
        rate=finetuning_rate(config.optimizer, config.train.steps),
        batches=batches,
        batch_size=data.batch_size,
        evaluate=functools.partial(_validate, segmenter, validate, evaluation_spec(config, segmenter)),
        best_metric=f"validate/{config.best_metric}",
        meta={
            "data": [data.fraction, len(train), identify_split(directory, "train")[1]],
            "init": _describe(config, run),
        },
        label=label,
    )


def training_spec(config: SegmentationConfig, segmenter: Segmenter) -> BatchSpec:
    """Views of training, moved at random with their masks."""
    data = config.data
    moved = {"scale": data.scale, "shift": data.shift, "zoom": data.zoom, "rotation": data.rotation, "flip": data.flip}
    return view_spec(segmenter.image_size, fit=data.fit, **moved)


def evaluation_spec(config: SegmentationConfig, segmenter: Segmenter) -> BatchSpec:
    """Views of evaluations, as they are."""
    return view_spec(segmenter.image_size, fit=config.data.fit)


def with_masks(directory: Path, split: str) -> SplitRecords:
    """The records of a split of a build; raises a DataError where they have no masks."""
    return require_masks(open_split(directory, split), directory, split)


def lists_of(manifest: Manifest) -> Lists:
    """Which lists made the splits of a build: the published ones as they are, without what they share, or none: its own."""
    if manifest.settings.get("splits") != "listed":
        return "own"
    return "clean" if manifest.settings.get("variant") == "clean" else "as_published"


def refuse_other_lists(config: SegmentationConfig, manifest: Manifest) -> None:
    """Raises a UserError where the configuration asks for lists that the build was not made with."""
    found, wanted = lists_of(manifest), config.data.lists
    if wanted not in ("any", found):
        advice = f"build it with --lists DIR --variant {wanted}"
        raise UserError(f"{config.data.directory}: made with lists '{found}'; expected '{wanted}': {advice}")


def _validate(
    segmenter: Segmenter, source: SplitRecords, spec: BatchSpec, params: Any, step: int
) -> Mapping[str, float]:
    counts = predict(segmenter, params, source, spec).counts
    weights = np.ones(len(counts))
    return {f"validate/{name}": statistic(weights) for name, statistic in dice_statistics(counts).items()}


def _prepare(config: SegmentationConfig, workdir: Path, run: Run, caveats: tuple[str, ...]) -> None:
    """Writes encoder.json and data.json, so that the run directory can be evaluated on its own.

    Raises:
      CheckpointError: it holds a run on another encoder.
    """
    values = json.loads(json.dumps({"config": to_dict(run.config)}))
    file = workdir / ENCODER_FILE
    if file.is_file() and json.loads(file.read_text()) != values:
        raise CheckpointError(f"{workdir}: begun with another encoder; use a new workdir")
    if distributed.is_lead():
        workdir.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values, indent=2) + "\n")
        write_provenance(read_manifest(config.data.directory), "train", workdir, inherited=caveats)
    distributed.barrier("encoder")


def _describe(config: SegmentationConfig, run: Run) -> list[Any]:
    """What the encoder starts from: a resumed run must start from the same."""
    start = {"pretrained": run.step, "imported": run.weights}
    return [config.encoder.init, run.config.name, start.get(config.encoder.init, 0)]
