"""What a segmentation scored: overlaps of every image, from which each Dice variant and its interval follow, without a model and without JAX."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64, Shaped, UInt32

from input_pipeline.errors import UserError
from msfl_jax.metrics import Interval, bootstrap_all, dice_statistics
from msfl_jax.tasks.predictions import load_arrays, save_arrays


@dataclass(frozen=True)
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


def summarise(
    counts: Int64[np.ndarray, "N 4"], patients: Shaped[np.ndarray, "N"], *, seed: int = 0, replicates: int = 2000
) -> dict[str, Interval]:
    """The four Dice variants with 95 % patient-bootstrap intervals, by name."""
    return bootstrap_all(dice_statistics(counts), patients, seed=seed, replicates=replicates)
