"""Images of a build scored by a classifier, beside their truth: for validation in a training loop, for evaluation, and features for a probe."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, UInt8

from input_pipeline.errors import UserError
from input_pipeline.labelled_batches import labelled_evaluation_batches, view_spec
from input_pipeline.loader import label_names
from input_pipeline.streams import BatchSpec
from msfl_jax.classifier import Classifier
from msfl_jax.config import nearest
from msfl_jax.finetune_config import FinetuneConfig
from msfl_jax.metrics import auc
from msfl_jax.tasks.run import on_mesh, to_host
from msfl_jax.tasks.zero_shot import Predictions, truth_of_labels

BEST_METRIC = "validate/mean_auc"
BATCH_SIZE = 64  # images at a time where nothing is trained


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


def predict(
    classifier: Classifier,
    params: Any,
    findings: tuple[str, ...],
    config: FinetuneConfig,
    directory: Path,
    split: str,
) -> Predictions:
    """Logits and truth of every image of a split; `params` on one device, or on a mesh in a training loop.

    Raises:
      UserError: no such build or split, or a finding is no label of it.
    """
    score = functools.partial(_logits, classifier=classifier)
    return _scored(score, params, findings, evaluation_view_spec(classifier, config), config, directory, split)


def frozen_features(
    classifier: Classifier,
    params: Any,
    findings: tuple[str, ...],
    config: FinetuneConfig,
    directory: Path,
    split: str,
) -> Predictions:
    """As `predict`, with the features of the encoder [N, C] in the place of scores; of "train", the records of the configuration's fraction."""
    encode = functools.partial(_features, classifier=classifier)
    return _scored(encode, params, findings, evaluation_view_spec(classifier, config), config, directory, split)


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
    spec: BatchSpec,
    config: FinetuneConfig,
    directory: Path,
    split: str,
) -> Predictions:
    """Every record of a split once; rows that only fill the last batch are taken out."""
    names = label_names(directory)
    columns = [names.index(finding) for finding in chosen_findings(",".join(findings), names)]
    scores, labels, patients = [], [], []
    batches = labelled_evaluation_batches(
        directory, spec, batch_size=BATCH_SIZE, split=split, fraction=config.data.fraction, seed=config.seed
    )
    with batches:
        for batch in batches:
            valid = batch["valid"]
            scores.append(
                to_host(score(params, *on_mesh(params, batch["image"], rows=BATCH_SIZE)))[: len(valid)][valid]
            )
            labels.append(batch["labels"][valid][:, columns])
            patients.append(batch["patient_key"][valid])
    truth = truth_of_labels(np.concatenate(labels), config.data.blank)
    return Predictions(tuple(findings), np.concatenate(scores), truth, np.concatenate(patients))


@functools.partial(jax.jit, static_argnames="classifier")
def _logits(params: Any, image: UInt8[Array, "B H W 1"], *, classifier: Classifier) -> Float[Array, "B L"]:
    return classifier.logits(params, image)


@functools.partial(jax.jit, static_argnames="classifier")
def _features(params: Any, image: UInt8[Array, "B H W 1"], *, classifier: Classifier) -> Float[Array, "B C"]:
    return classifier.features(params, image)
