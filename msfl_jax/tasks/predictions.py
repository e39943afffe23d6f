"""Predictions on disk: .npz files of plain arrays, read without pickle, from which every number can be computed again."""

import os
from pathlib import Path

import numpy as np

from input_pipeline.errors import UserError


def save_arrays(path: Path | str, **arrays: np.ndarray | str | float) -> None:
    """Writes named arrays, whole or not at all; the folder is made where it is missing.

    Raises:
      TypeError: an array holds Python objects, which only pickle could store.
    """
    path = Path(path)
    converted = {name: np.asarray(array) for name, array in arrays.items()}
    objects = [name for name, array in converted.items() if array.dtype.hasobject]
    if objects:
        raise TypeError(f"{path}: {', '.join(objects)} hold Python objects; expected numbers or strings")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    with open(temporary, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **converted)
    os.replace(temporary, path)


def load_arrays(path: Path | str) -> dict[str, np.ndarray]:
    """Reads what `save_arrays` wrote.

    Raises:
      UserError: there is no such file, or it is something else.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: no predictions ({type(error).__name__}); expected an .npz file of `msfl eval`"
        ) from error
