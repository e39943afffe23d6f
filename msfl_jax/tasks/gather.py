"""Rows of evaluation batches gathered to whole columns."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from input_pipeline.loader import Batches


def gather_rows(
    batches: Batches, columns_of: Callable[[Mapping[str, np.ndarray]], Sequence[np.ndarray]], *, records: int = 0
) -> tuple[np.ndarray, ...]:
    """Columns of all records, or of the first `records`, in their order; `batches` are closed.

    Args:
      batches: with `valid`; rows that only fill the last batch are left out.
      columns_of: makes arrays [B, ...] of a batch, of which rows beyond the batch's are padding.
      records: 0 is all.
    """
    parts, count = [], 0
    with batches:
        for batch in batches:
            valid = np.flatnonzero(batch["valid"])[: records - count if records else None]
            parts.append([column[valid] for column in columns_of(batch)])
            count += len(valid)
            if 0 < records <= count:
                break
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))
