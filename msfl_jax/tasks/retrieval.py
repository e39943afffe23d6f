"""Retrieval: the report of an image among all reports of a split, and the image of a report among all its images.

The pool is the whole split. Reports that read alike, but for case and white space, are one candidate (their `study_key`, a hash of 32 bits, is equal:
of 200,000 different reports some five pairs are taken for one). So an image has one right report among the distinct ones, and a report as many right
images as carry it, of which the nearest counts; images of the same report are never wrong. Every image-report pair asks once in each direction, so a
report that many images share weighs as much as they do. Numbers depend on the size of the pool: compare those of one split only.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt32

from input_pipeline.errors import DataError
from input_pipeline.loader import evaluation_batches
from msfl_jax.metrics.retrieval import rank_pairs
from msfl_jax.tasks.gather import gather_rows
from msfl_jax.tasks.retrieval_result import Ranks, RetrievalResult, summarise
from msfl_jax.tasks.run import Run, batch_spec, encode_images, encode_reports, to_host


def evaluate_retrieval(
    run: Run,
    directory: Path | str,
    split: str,
    *,
    batch_size: int = 64,
    records: int = 0,
    block: int = 1024,
    seed: int = 0,
    replicates: int = 2000,
) -> RetrievalResult:
    """Ranks all pairs of a split by the cosine of the global embeddings.

    Args:
      run: the model.
      directory: a build with reports.
      split: of the build.
      batch_size: images at a time through the encoders.
      records: how many records, from the split's first; 0 is all.
      block: images at a time in the ranking, see `rank_pairs`; all pairs are never held at once.
      seed: of the shuffled control and the bootstrap.
      replicates: of the bootstrap; 0 leaves intervals nan.

    Raises:
      UserError: there is no such build or split.
      DataError: no record has a report, or a shard is damaged.
    """
    found = _embed(run, directory, split, batch_size, records)
    image, report = found.image, found.report
    if not len(image):
        raise DataError(
            f"{directory}: no record of split '{split}' has a report; expected a build such as of `msfl data build mimic-cxr`"
        )
    _, first, own = np.unique(found.study_key, return_index=True, return_inverse=True)
    other = np.random.default_rng(seed).permutation(own)
    pairs = [rank_pairs(image, report[first], owner, block=block) for owner in (own, other)]
    columns = [
        np.stack([ranks.of_report, ranks.of_image[owner]], axis=1)
        for ranks, owner in zip(pairs, (own, other), strict=True)
    ]
    pool, sharing = np.asarray([len(first), len(image)]), np.bincount(own)
    # Under the permutation a pair's report has as many images as before.
    ranks = Ranks(columns[0], columns[1], pool, sharing[own], found.patient_key, found.image_key)
    return summarise(ranks, split=split, step=run.step, left_out=found.left_out, seed=seed, replicates=replicates)


class _Pairs(NamedTuple):
    """Embeddings of images and of their reports, hashed keys, and how many records have no report and are left out."""

    image: Float[np.ndarray, "N D"]
    report: Float[np.ndarray, "N D"]
    study_key: UInt32[np.ndarray, "N"]
    patient_key: UInt32[np.ndarray, "N"]
    image_key: UInt32[np.ndarray, "N"]
    left_out: int


def _embed(run: Run, directory: Path | str, split: str, batch_size: int, records: int) -> _Pairs:
    """Every record of a split that has a report, or of its first `records`."""
    batches = evaluation_batches(Path(directory), batch_spec(run), batch_size=batch_size, split=split)

    def columns_of(batch: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        image, _ = encode_images(run, batch["image"], batch_size=batch_size)
        report = encode_reports(run, batch["token_ids"], batch["sentence_ids"], batch_size=batch_size)
        written = np.asarray((batch["sentence_ids"] > 0).any(axis=1))
        keys = (batch[name] for name in ("study_key", "patient_key", "image_key"))
        return *to_host((image, report)), *keys, written

    *columns, written = gather_rows(batches, columns_of, records=records)
    return _Pairs(*(column[written] for column in columns), left_out=int((~written).sum()))
