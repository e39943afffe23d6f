"""A linear probe of a run: logistic regression on the image embeddings of one split of a build with labels, measured on another."""

from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt32

from input_pipeline.errors import DataError
from input_pipeline.loader import evaluation_batches, label_names
from msfl_jax.metrics import Interval
from msfl_jax.tasks.finding_result import Predictions, summarise_findings, truth_of_labels
from msfl_jax.tasks.gather import gather_rows
from msfl_jax.tasks.probe import fit_probe
from msfl_jax.tasks.run import Run, batch_spec, encode_images, to_host


def embed_split(
    run: Run, directory: Path | str, split: str, *, batch_size: int = 64, records: int = 0
) -> tuple[Float[np.ndarray, "N D"], Float[np.ndarray, "N L"], UInt32[np.ndarray, "N"]]:
    """Image embeddings, labels as the build has them and hashed patients of a split, or of its first `records`.

    Raises:
      UserError: there is no such build or split.
      DataError: a shard is damaged.
    """
    embedding, labels, patients = gather_rows(
        evaluation_batches(Path(directory), batch_spec(run), batch_size=batch_size, split=split),
        lambda batch: (
            to_host(encode_images(run, batch["image"], batch_size=batch_size)[0]),
            batch["labels"],
            batch["patient_key"],
        ),
        records=records,
    )
    return embedding, labels, patients


def evaluate_probe(
    run: Run,
    directory: Path | str,
    *,
    train_split: str,
    split: str,
    batch_size: int = 64,
    records: int = 0,
    l2: float = 1e-3,
    blank: str = "negative",
    seed: int = 0,
    replicates: int = 2000,
) -> dict[str, Interval]:
    """AUC of each label and their mean, of probes on frozen image embeddings.

    Args:
      run: the model, which is not changed.
      directory: a build with labels.
      train_split: split or subset that is fitted on.
      split: split that is measured on.
      batch_size: images at a time.
      records: how many records of each, from the split's first; 0 is all.
      l2: see `fit_probe`.
      blank: what a label that is not mentioned counts as. Uncertain labels are left out.
      seed, replicates: of the bootstrap.

    Returns:
      mean_auc, over the labels that have both classes in both splits, and NAME_auc of each of them.

    Raises:
      UserError: there is no such build or split.
      DataError: no label has both classes in both splits, or a shard is damaged.
    """
    features, labels, _ = embed_split(run, directory, train_split, batch_size=batch_size, records=records)
    weights, bias = fit_probe(features, truth_of_labels(labels, blank), l2)
    features, labels, patients = embed_split(run, directory, split, batch_size=batch_size, records=records)
    scores = (features @ weights + bias).astype(np.float32)
    predictions = Predictions(label_names(directory), scores, truth_of_labels(labels, blank), patients)
    result = summarise_findings(predictions, seed=seed, replicates=replicates)
    if not result.defined:
        raise DataError(
            f"{directory}: no label has both positives and negatives in '{train_split}' and in '{split}'; expected a build with labels"
        )
    each = {f"{finding.name}_auc": finding.auc for finding in result.findings if not finding.reason}
    return {"mean_auc": result.mean} | each
