"""Images of a build scored by a classifier, beside their truth: for validation in a training loop, for evaluation, and features for a probe."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Real, UInt8

from input_pipeline.errors import DataError, UserError
from input_pipeline.labelled_batches import labelled_evaluation_batches, view_spec
from input_pipeline.loader import Batches, label_names
from input_pipeline.manifest import read_manifest
from input_pipeline.reading import open_split
from input_pipeline.streams import BatchSpec
from msfl_jax.classifier import Classifier
from msfl_jax.config_build import nearest
from msfl_jax.finetune_config import FinetuneConfig
from msfl_jax.metrics import auc
from msfl_jax.tasks.finding_result import Predictions, truth_of_labels
from msfl_jax.tasks.gather import gather_rows
from msfl_jax.tasks.run import on_mesh, to_host

BEST_METRIC = "validate/mean_auc"
BATCH_SIZE = 64  # images at a time where nothing is trained


class Frozen(NamedTuple):
    """Features of images by a frozen encoder, and their truth: 1 present, 0 absent, NaN left out."""

    features: Float[np.ndarray, "N C"]
    truth: Float[np.ndarray, "N F"]
    patient_key: Real[np.ndarray, "N"]


def chosen_findings(listed: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """The findings of a comma-separated list, or all labels of a build.

    Raises:
      UserError: a finding is no label of the build.
    """
    chosen = tuple(word.strip() for word in listed.split(",") if word.strip()) or names
    for finding in chosen:
        if finding not in names:
            raise UserError(
                f"data.findings: '{finding}' is no label of the build{nearest(finding, names)}; expected some of {', '.join(names)}"
            )
    return chosen


def require_splits(config: FinetuneConfig, findings: tuple[str, ...]) -> None:
    """Refuses, before anything is trained, a build with which the run could not end: nothing to choose a checkpoint by, or to test it on.

    Raises:
      UserError: no finished build, or no such split for validation or test in it.
      DataError: no finding is both present and absent among the validation images.
    """
    directory, data = Path(config.data.directory), config.data
    found = read_manifest(directory).readable_splits()
    if data.validate not in found:
        raise UserError(
            f"{directory}: no split '{data.validate}' to choose the checkpoint by; found {', '.join(found)}: "
            "build it with --validation 0.1, or with --lists DIR where lists are published"
        )
    open_split(directory, data.test)
    columns = [label_names(directory).index(finding) for finding in findings]
    seen = np.zeros((2, len(findings)), bool)
    for record in open_split(directory, data.validate):  # a few records are enough, unless something is wrong
        truth = truth_of_labels(record.labels[None, columns], data.blank)
        seen |= np.concatenate([truth == 0, truth == 1])
        if seen.all(axis=0).any():
            return
    raise DataError(
        f"{directory}: no finding is both present and absent in split '{data.validate}', so no checkpoint can be chosen; "
        "build with a larger --validation, or choose other data.findings"
    )


def predict(
    classifier: Classifier,
    params: Any,
    findings: tuple[str, ...],
    config: FinetuneConfig,
    directory: Path,
    split: str,
) -> Predictions:
    """Logits and truth of every image of a split; `params` on one device, or on a mesh in a training loop.

    The truth of a finding that is no label of the build is not known.

    Raises:
      UserError: no such build or split.
    """
    score = functools.partial(_logits, classifier=classifier)
    batches = labelled_evaluation_batches(
        directory, evaluation_view_spec(classifier, config), batch_size=BATCH_SIZE, split=split
    )
    *columns, images = _scored(score, params, findings, batches, label_names(directory), config.data.blank)
    return Predictions(findings, *columns, image_key=images)


def frozen_features(
    classifier: Classifier,
    params: Any,
    findings: tuple[str, ...],
    config: FinetuneConfig,
    directory: Path,
    split: str,
) -> Frozen:
    """As `predict`, with the features of the encoder in the place of scores; of "train", the records of the configuration's fraction."""
    encode = functools.partial(_features, classifier=classifier)
    spec, data = evaluation_view_spec(classifier, config), config.data
    batches = labelled_evaluation_batches(
        directory,
        spec,
        batch_size=BATCH_SIZE,
        split=split,
        fraction=data.fraction,
        seed=config.seed,
        subsets=data.subsets,
    )
    return Frozen(*_scored(encode, params, findings, batches, label_names(directory), config.data.blank)[:3])


def validation_metrics(predictions: Predictions) -> dict[str, float]:
    """AUC of each finding and their mean without intervals, by the names of the metrics file; nan where undefined."""
    columns = zip(predictions.findings, predictions.scores.T, predictions.truth.T, strict=True)
    values = {f"validate/auc/{name}": auc(scores, truth) for name, scores, truth in columns}
    defined = [value for value in values.values() if not np.isnan(value)]
    return {BEST_METRIC: float(np.mean(defined)) if defined else float("nan")} | values


def evaluation_view_spec(classifier: Classifier, config: FinetuneConfig) -> BatchSpec:
    """Size and fit of images that are evaluated."""
    return view_spec(classifier.side, fit=config.data.fit)


def _scored(
    score: Callable[..., Array],
    params: Any,
    findings: Sequence[str],
    batches: Batches,
    labels: Sequence[str],
    blank: str,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Scores, truth, patient and image of every record, without rows that only fill the last batch; labels that the build lacks are NaN."""
    scores, marks, patients, images = gather_rows(
        batches,
        lambda batch: (
            to_host(score(params, *on_mesh(params, batch["image"], rows=BATCH_SIZE))),
            batch["labels"],
            batch["patient_key"],
            batch["image_key"],
        ),
    )
    known = [column for column, finding in enumerate(findings) if finding in labels]
    truth = np.full((len(marks), len(findings)), np.nan, np.float32)
    truth[:, known] = truth_of_labels(marks[:, [labels.index(findings[column]) for column in known]], blank)
    return scores, truth, patients, images


@functools.partial(jax.jit, static_argnames="classifier")
def _logits(params: Any, image: UInt8[Array, "B H W 1"], *, classifier: Classifier) -> Float[Array, "B L"]:
    return classifier.logits(params, image)


@functools.partial(jax.jit, static_argnames="classifier")
def _features(params: Any, image: UInt8[Array, "B H W 1"], *, classifier: Classifier) -> Float[Array, "B C"]:
    return classifier.features(params, image)
