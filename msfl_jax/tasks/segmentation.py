"""Segmentation fine-tuning: masks of findings from a pretrained or a random encoder, measured in pixels of the source images.

`finetune_segmentation` trains on a build with masks, chooses the checkpoint with the best Dice on validation images, and evaluates it once on the
test split; `summarise` makes the numbers from predictions alone. An image is seen whole: scaled into the view, predicted, and the prediction
scaled back.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int64, UInt8, UInt32

from input_pipeline.errors import UserError
from input_pipeline.labelled_batches import labelled_records, view_spec
from input_pipeline.manifest import Manifest, read_manifest
from input_pipeline.mask_batches import evaluation_views, mask_batches, require_masks
from input_pipeline.reading import SplitRecords, open_split
from input_pipeline.records import Record
from input_pipeline.streams import BatchSpec
from msfl_jax.metrics import Interval, bootstrap, count_overlap, dice_statistics
from msfl_jax.model import Params
from msfl_jax.segmentation_config import Lists, SegmentationConfig
from msfl_jax.segmenter import Segmenter
from msfl_jax.tasks.grounding import to_pixels
from msfl_jax.tasks.leaks import leak_caveats
from msfl_jax.tasks.outcome import Outcome, identify_split, save_outcome
from msfl_jax.tasks.predictions import load_arrays, save_arrays
from msfl_jax.tasks.run import Run, on_mesh, to_host
from msfl_jax.train.adaptation import Adaptation, adapt, best_parameters
from msfl_jax.train.adaptation_optimizer import finetuning_optimizer, finetuning_rate

TASK = "segmentation"
ROWS = 16  # images at a time in evaluations
_THREADS = 4


@dataclasses.dataclass(frozen=True)
class MaskPredictions:
    """What every Dice variant and its interval follow from, without images or a model.

    Attributes:
      counts: [N, 4], common, predicted, true and all pixels of each image (see `msfl_jax.metrics.COUNTS`).
      patient_key, image_key: [N], hashed.
    """

    counts: Int64[np.ndarray, "N 4"]
    patient_key: UInt32[np.ndarray, "N"]
    image_key: UInt32[np.ndarray, "N"]

    def save(self, path: Path | str) -> None:
        """Writes an .npz file without pickle."""
        save_arrays(path, counts=self.counts, patient_key=self.patient_key, image_key=self.image_key)

    @classmethod
    def load(cls, path: Path | str) -> "MaskPredictions":
        """Reads what `save` wrote; raises a UserError where it is something else."""
        arrays = load_arrays(path)
        try:
            return cls(arrays["counts"], arrays["patient_key"], arrays["image_key"])
        except KeyError as error:
            found = f"{path}: array {error} is missing"
            raise UserError(f"{found}; expected predictions of `msfl finetune segmentation`") from error


@dataclasses.dataclass(frozen=True)
class SegmentationResult:
    """A fine-tuned run and what it scored on the test split.

    Attributes:
      outcome: as saved.
      predictions: from which its numbers follow.
      params: of the chosen checkpoint, on one device.
      segmenter: static.
    """

    outcome: Outcome
    predictions: MaskPredictions
    params: Params
    segmenter: Segmenter


def finetune_segmentation(
    config: SegmentationConfig,
    run: Run,
    workdir: Path,
    *,
    allow_leak: bool = False,
    replicates: int = 2000,
    progress: bool = True,
) -> SegmentationResult:
    """Trains in `workdir`, or goes on training there, then evaluates the best checkpoint and saves predictions and outcome.

    Args:
      config: with the build in `data.directory`.
      run: the pretrained model; with `encoder.init` "random" only its configuration is used.
      workdir: of the fine-tuned run, not the pretraining run's.
      allow_leak: see `leak_caveats`.
      replicates: of the bootstrap.
      progress: whether to print a line of progress.

    Raises:
      UserError: the build, a split or the lists are not what the configuration asks for, or `workdir` is the pretraining run's.
      DataError: the build has no masks, or the test split shares images or patients with what the run was trained on.
      CheckpointError, DivergedError, RetryError: see `msfl_jax.train.adaptation.adapt`.
    """
    if workdir.resolve() == run.directory.resolve():
        raise UserError(f"{workdir}: is the pretraining run itself; give a new --workdir")
    directory = Path(config.data.directory)
    manifest = read_manifest(directory)
    refuse_other_lists(config, manifest)
    caveats = _caveats(config, run, directory, manifest, allow_leak=allow_leak)
    segmenter = Segmenter.create(config, run.config)
    task = adaptation(config, run, segmenter, label="segmentation" if progress else "")
    adapt(task, config, workdir)
    params, step = best_parameters(workdir, jax.eval_shape(segmenter.init, jax.random.key(0)))
    predictions = predict(
        segmenter, params, _with_masks(directory, config.data.test), evaluation_spec(config, segmenter)
    )
    outcome = _outcome(config, manifest, predictions, step, caveats, replicates)
    predictions.save(outcome.predictions(workdir))
    save_outcome(outcome, workdir)
    return SegmentationResult(outcome, predictions, params, segmenter)


def adaptation(
    config: SegmentationConfig, run: Run, segmenter: Segmenter, *, label: str = "segmentation"
) -> Adaptation:
    """What is trained on what, for `msfl_jax.train.adaptation.adapt`."""
    directory, data, seed = Path(config.data.directory), config.data, config.seed
    train = require_masks(
        labelled_records(directory, data.fraction, seed=seed), directory, f"train ({data.fraction} %)"
    )
    validate = _with_masks(directory, data.validate)
    depth = run.config.model.vision.depth
    pretrained = run.params if config.encoder.init == "pretrained" else None

    def batches(start_step: int, index: int, count: int) -> Any:
        return mask_batches(
            train,
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
        best_metric=f"validation/{config.best_metric}",
        meta={
            "data": [data.fraction, len(train), identify_split(directory, "train")[1]],
            "init": _describe(config, run),
        },
        label=label,
    )


def predict(segmenter: Segmenter, params: Params, source: SplitRecords, spec: BatchSpec) -> MaskPredictions:
    """Compares the predicted masks of all records with theirs, in pixels of the source images.

    Raises:
      DataError: an image, a mask or a shard is damaged.
    """
    found = [source[index] for index in range(len(source))]
    counts = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(found), ROWS):
            part = found[start : start + ROWS]
            views, masks = evaluation_views(part, spec)
            predicted = predict_masks(segmenter, params, views, [mask.shape for mask in masks], fit=spec.fit, pool=pool)
            counts += list(pool.map(count_overlap, predicted, masks))
    return MaskPredictions(
        np.stack(counts),
        _keys(found, "patient_key"),
        _keys(found, "image_key"),
    )


def predict_masks(
    segmenter: Segmenter,
    params: Params,
    views: UInt8[np.ndarray, "n H W 1"],
    sizes: Sequence[tuple[int, ...]],
    *,
    fit: str,
    pool: ThreadPoolExecutor | None = None,
) -> list[Bool[np.ndarray, "_ _"]]:
    """Masks of whole images in pixels of their sources: the class with the larger logit, after both were enlarged bilinearly.

    Args:
      segmenter: static.
      params: its parameters, on one device or a mesh.
      views: at most `ROWS` evaluation views.
      sizes: (height, width) of each source image.
      fit: how the views were cut; what a view does not show is background.
      pool: threads for the enlargement.
    """
    margins = to_host(_margin(params, *on_mesh(params, views, rows=ROWS), segmenter=segmenter))[: len(views)]
    return list((pool.map if pool else map)(functools.partial(_mask_of, fit=fit), margins, sizes))


def training_spec(config: SegmentationConfig, segmenter: Segmenter) -> BatchSpec:
    """Views of training, moved at random with their masks."""
    data = config.data
    moved = {"scale": data.scale, "shift": data.shift, "zoom": data.zoom, "rotation": data.rotation, "flip": data.flip}
    return view_spec(segmenter.image_size, fit=data.fit, **moved)


def evaluation_spec(config: SegmentationConfig, segmenter: Segmenter) -> BatchSpec:
    """Views of evaluations, as they are."""
    return view_spec(segmenter.image_size, fit=config.data.fit)


def summarise(counts: Int64[np.ndarray, "N 4"], patients: np.ndarray, *, replicates: int = 2000) -> dict[str, Interval]:
    """The four Dice variants with 95 % patient-bootstrap intervals, by name."""
    return {
        name: bootstrap(statistic, patients, replicates=replicates)
        for name, statistic in dice_statistics(counts).items()
    }


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


@functools.partial(jax.jit, static_argnames="segmenter")
def _margin(params: Params, image: UInt8[Array, "B H W 1"], *, segmenter: Segmenter) -> Float32[Array, "B H W"]:
    return segmenter.margin(params, image)


def _mask_of(margin: Float[np.ndarray, "H W"], size: tuple[int, int], *, fit: str) -> Bool[np.ndarray, "_ _"]:
    return to_pixels(margin, size, fit=fit) > 0  # NaN, where the view shows nothing, is not


def _validate(
    segmenter: Segmenter, source: SplitRecords, spec: BatchSpec, params: Any, step: int
) -> Mapping[str, float]:
    counts = predict(segmenter, params, source, spec).counts
    weights = np.ones(len(counts))
    return {f"validation/{name}": statistic(weights) for name, statistic in dice_statistics(counts).items()}


def _with_masks(directory: Path, split: str) -> SplitRecords:
    return require_masks(open_split(directory, split), directory, split)


def _caveats(
    config: SegmentationConfig, run: Run, directory: Path, manifest: Manifest, *, allow_leak: bool
) -> tuple[str, ...]:
    """A random encoder has seen nothing; then only the build itself has something to say."""
    if config.encoder.init == "random":
        return manifest.caveats
    return leak_caveats(run, directory, config.data.test, allow_leak=allow_leak)


def _describe(config: SegmentationConfig, run: Run) -> list[Any]:
    """What the encoder starts from: a resumed run must start from the same."""
    return [config.encoder.init, run.config.name, run.step if config.encoder.init == "pretrained" else 0]


def _keys(found: Sequence[Record], name: str) -> UInt32[np.ndarray, "N"]:
    return np.asarray([int(getattr(record, name)[:8], 16) for record in found], np.uint32)


def _outcome(
    config: SegmentationConfig,
    manifest: Manifest,
    predictions: MaskPredictions,
    step: int,
    caveats: tuple[str, ...],
    replicates: int,
) -> Outcome:
    data, init, head = config.data, config.encoder.init, config.head.kind
    metrics = summarise(predictions.counts, predictions.patient_key, replicates=replicates)
    reasons = {"dice_positive_only": "no image with a mask", "dice_pooled_foreground": "no pixel predicted or true"}
    reasons["dice_pooled_with_background"] = reasons["dice_pooled_foreground"]
    return Outcome(
        task=TASK,
        dataset=manifest.name,
        split=data.test,
        split_hash=identify_split(data.directory, data.test)[1],
        variant=f"{init}-{head}-{data.fraction}-seed{config.seed}",
        options={
            "init": init,
            "head": head,
            "fraction": data.fraction,
            "seed": config.seed,
            "lists": lists_of(manifest),
        },
        step=step,
        records=len(predictions.counts),
        patients=len(np.unique(predictions.patient_key)),
        metrics=metrics,
        reasons={name: reasons[name] for name, interval in metrics.items() if np.isnan(interval.value)},
        caveats=caveats,
    )
