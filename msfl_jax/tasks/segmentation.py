"""Segmentation fine-tuning: masks of findings from a pretrained or a random encoder, measured in pixels of the source images.

`finetune_segmentation` trains on a build with masks, chooses the checkpoint with the best Dice on validation images, and evaluates it once on the
test split; `summarise` makes the numbers from predictions alone. An image is seen whole: scaled into the view, predicted, and the prediction
scaled back.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from input_pipeline.errors import UserError
from input_pipeline.labelled_batches import labelled_records, view_spec
from input_pipeline.manifest import Manifest, read_manifest
from input_pipeline.mask_batches import Balanced, mask_batches, require_disease, require_masks
from input_pipeline.reading import SplitRecords, open_split
from input_pipeline.streams import BatchSpec
from msfl_jax.metrics import dice_statistics
from msfl_jax.parallel import distributed
from msfl_jax.segmentation_config import Lists, SegmentationConfig, segmentation_config
from msfl_jax.segmenter import Segmenter
from msfl_jax.tasks.finetuned import FinetunedRun, mark_of_other_build, prepare_finetuning, read_finetuning
from msfl_jax.tasks.mask_predictions import predict
from msfl_jax.tasks.mask_result import MaskPredictions, summarise
from msfl_jax.tasks.outcome import Outcome, identify_split, save_outcome
from msfl_jax.tasks.run import Run, encoder_parameters, refuse_pretraining_run
from msfl_jax.train.adaptation import Adaptation, adapt, best_parameters
from msfl_jax.train.adaptation_optimizer import finetuning_optimizer, finetuning_rate
from msfl_jax.train.flops import light_decoder_flops, upernet_flops, vit_flops
from msfl_jax.train.provenance import read_caveats

TASK = "segmentation"

UNDEFINED = {
    "dice_per_image_with_empty": "no image",
    "dice_positive_only": "no image with a mask",
    "dice_pooled_foreground": "no pixel predicted or true",
    "dice_pooled_with_background": "no pixel predicted or true",
}


@dataclasses.dataclass(frozen=True)
class SegmentationRun(FinetunedRun):
    """A fine-tuned model of masks."""

    config: SegmentationConfig
    segmenter: Segmenter


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
      caveats: of the build against what the model was pretrained on (see `tasks.leaks`).
      progress: whether to print a line of progress.
      replicates: of the bootstrap.

    Returns:
      What was saved in `workdir`/results and `workdir`/predictions.

    Raises:
      UserError: the build, a split or the lists are not what the configuration asks for, or `workdir` is the pretraining run's.
      DataError: the build has no masks, no validation image shows disease, or an image or a shard is damaged.
      CheckpointError, DivergedError, RetryError: see `msfl_jax.train.adaptation.adapt`.
    """
    refuse_pretraining_run(workdir, run)
    directory = Path(config.data.directory)
    refuse_other_lists(config, read_manifest(directory))
    with_masks(directory, config.data.test)
    segmenter = Segmenter.create(config, run.config)
    task = adaptation(config, run, segmenter, label="segmentation" if progress else "")
    prepare_finetuning(config.data, workdir, run, caveats)
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
    config, origin = read_finetuning(workdir, segmentation_config, task=TASK)
    segmenter = Segmenter.create(config, origin.config)
    params, found = best_parameters(workdir, jax.eval_shape(segmenter.init, jax.random.key(0)), step=step)
    return SegmentationRun(workdir, config, origin, params, found, read_caveats(workdir), segmenter)


def evaluate_segmentation(
    run: SegmentationRun,
    directory: Path,
    split: str,
    *,
    caveats: Sequence[str] | None = None,
    seed: int = 0,
    replicates: int = 2000,
) -> SegmentationResult:
    """Measures a fine-tuned run on a split with masks and saves predictions and outcome in its directory.

    Args:
      run: opened by `open_segmentation`.
      directory: a build with masks.
      split: of the build.
      caveats: what must be said beside the numbers; None is what holds for the run's own test split.
      seed, replicates: of the patient bootstrap.

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
        **mark_of_other_build(run, directory),
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
        caveats=run.caveats if caveats is None else tuple(caveats),
    )
    if distributed.is_lead():
        predictions.save(outcome.predictions(run.directory))
        save_outcome(outcome, run.directory)
    return SegmentationResult(outcome, predictions)


def variant(config: SegmentationConfig) -> str:
    """Of the run's results: where the encoder came from, the head, the percentage of the labels and the seed."""
    return f"{config.encoder.init}-{config.head.kind}-{config.data.fraction}-seed{config.seed}"


def adaptation(
    config: SegmentationConfig, run: Run, segmenter: Segmenter, *, label: str = "segmentation"
) -> Adaptation:
    """What is trained on what, for `msfl_jax.train.adaptation.adapt`."""
    directory, data, seed = Path(config.data.directory), config.data, config.seed
    validate = require_disease(with_masks(directory, data.validate), directory, data.validate)
    train = require_masks(
        labelled_records(directory, data.fraction, seed=seed), directory, f"train ({data.fraction} %)"
    )
    shown = Balanced(train) if data.sampling == "balanced" else train
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
        flops=training_flops(segmenter),
    )


def training_flops(segmenter: Segmenter) -> float:
    """FLOPs of training on one image: three times those of the encoder at the size of the masks, and of the decoder."""
    size = dataclasses.replace(segmenter.config.model.vision, image_size=segmenter.image_size)
    decode = upernet_flops if segmenter.head.kind == "upernet" else light_decoder_flops
    return 3.0 * (vit_flops(size) + decode(size.width, size.grid, segmenter.head.channels))


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


def _describe(config: SegmentationConfig, run: Run) -> list[Any]:
    """What the encoder starts from: a resumed run must start from the same."""
    start = {"pretrained": run.step, "imported": run.weights}
    return [config.encoder.init, run.config.name, start.get(config.encoder.init, 0)]
