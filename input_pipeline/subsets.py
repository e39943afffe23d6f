"""Named parts of a build's splits, such as the 1 % and 10 % of labels: which records belong to them, by index and nothing else."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from input_pipeline.errors import DataError

SUBSETS_NAME = "subsets.json"


def write_subsets(subsets: Mapping[str, Sequence[int]], directory: Path) -> None:
    """Writes `subsets.json`: for each name the indices of its records in their split; equal subsets give equal bytes."""
    text = json.dumps({name: list(indices) for name, indices in sorted(subsets.items())})
    (directory / SUBSETS_NAME).write_text(text + "\n")


def read_subset(directory: Path, name: str, *, records: int) -> Int64[np.ndarray, "n"]:
    """Indices of a subset's records in their split, in ascending order.

    Args:
      directory: a build whose manifest names the subset.
      name: of the subset.
      records: how many it has by the manifest.

    Raises:
      DataError: the file is missing or damaged, or disagrees with the manifest.
    """
    path = Path(directory) / SUBSETS_NAME
    try:
        indices = np.asarray(json.loads(path.read_text())[name], np.int64)
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        indices = np.zeros(0, np.int64)
    if indices.shape != (records,) or (np.diff(indices) <= 0).any():
        raise DataError(f"{path}: subset '{name}' is not the manifest's; run the same `msfl data build` again")
    return indices
