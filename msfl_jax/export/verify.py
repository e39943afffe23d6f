"""Whether an export is whole: its files, the tensors in them, and what PyTorch makes of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from input_pipeline.errors import CheckpointError
from msfl_jax.export import parity
from msfl_jax.export.golden import GOLDEN, OUTPUTS
from msfl_jax.export.layout import DECODER, LANGUAGE, MAE, TEXT, TIMM, VISION, WEIGHTS, open_export, read_tensors
from msfl_jax.export.manifest import refuse_changes
from msfl_jax.export.mapping import to_format
from msfl_jax.export.names import Format
from msfl_jax.export.stablehlo import FOLDER, PROGRAM_WEIGHTS
from msfl_jax.export.trees import leaves
from msfl_jax.export.weight_files import refuse_code
from msfl_jax.tasks.run import Run

# What stands beside the whole model, by the file: the format and the parts that may be in it.
DERIVED: dict[str, tuple[Format, tuple[str, ...]]] = {
    f"{VISION}/{WEIGHTS}": ("hf_vit", ("vision",)),
    f"{TEXT}/{WEIGHTS}": ("hf_bert", ("text", "pooler", LANGUAGE)),
    f"{MAE}/{WEIGHTS}": ("hf_vit_mae", ("vision", DECODER)),
    TIMM: ("timm", ("vision",)),
}


class Verified(NamedTuple):
    """What was found to be right.

    Attributes:
      files: how many agree with the manifest.
      tensors: how many have the right name, shape and dtype and are finite, over all files of weights.
      compared: differences of PyTorch from JAX; None where PyTorch is not installed.
    """

    files: int
    tensors: int
    compared: Mapping[str, parity.Parity] | None


def verify_export(folder: Path) -> Verified:
    """Checks an export from its bytes to its outputs.

    Raises:
      UserError: the folder is no export.
      CheckpointError: a file is missing, has changed, asks for code or is not of the export; a tensor is missing, has another shape or dtype, is not
        finite, or is not the same in two formats; PyTorch makes something else of the weights than JAX.
    """
    files = refuse_changes(folder)
    run = open_export(folder)
    tensors = _refuse_other_tensors(folder / WEIGHTS, to_format(run.params, "msfl", run.config))
    for file in sorted(folder.rglob("*config.json")):
        refuse_code(file, advice="export the run again")
    for name, (form, parts) in DERIVED.items():
        if (folder / name).is_file():
            tensors += _refuse_other_tensors(
                folder / name, to_format(run.params, form, run.config, parts=_own(run, parts))
            )
    if (programs := folder / FOLDER / PROGRAM_WEIGHTS).is_file():
        tensors += _refuse_other_tensors(programs, dict(leaves(run.params)))
    if any(not np.isfinite(array).all() for name, array in read_tensors(folder / GOLDEN).items() if _is_finite(name)):
        raise CheckpointError(f"{folder / GOLDEN}: an output of JAX is not finite; export another step")
    compared = parity.compare_with_torch(folder) if parity.has_torch() else None
    parity.refuse_differences(folder, compared or {})
    return Verified(files, tensors, compared)


def _own(run: Run, parts: tuple[str, ...]) -> set[str]:
    """Those parts of a format that were exported."""
    known = {*run.params, *run.params["heads"]}
    return known & set(parts)


def _is_finite(name: str) -> bool:
    """A heat-map is NaN where the model did not look."""
    return name.startswith(OUTPUTS) and name != f"{OUTPUTS}heat"


def _refuse_other_tensors(file: Path, expected: Mapping[str, np.ndarray]) -> int:
    """How many tensors a file holds, all of them float32, finite and as expected bit by bit."""
    found = _read_arrays(file) if file.suffix == ".npz" else read_tensors(file)
    if odd := sorted(found.keys() ^ expected.keys()):
        where = "missing" if odd[0] in expected else "unexpected"
        raise CheckpointError(
            f"{file}: {len(odd)} tensors are missing or unexpected; '{odd[0]}' is {where}; export the run again"
        )
    for name, tensor in found.items():
        if tensor.dtype != np.float32 or tensor.shape != expected[name].shape:
            told = f"{tensor.dtype}{list(tensor.shape)}, expected float32{list(expected[name].shape)}"
            raise CheckpointError(f"{file}: '{name}' is {told}; export the run again")
        if not np.isfinite(tensor).all():
            raise CheckpointError(f"{file}: '{name}' is not finite; export another step")
        if not np.array_equal(tensor, expected[name]):
            raise CheckpointError(f"{file}: '{name}' is not that of {WEIGHTS}; export the run again")
    return len(found)


def _read_arrays(file: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file; objects, which NumPy would unpickle, are refused."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except Exception as error:  # of many kinds, by what is wrong with the zip or with an array in it
        raise CheckpointError(f"{file}: no arrays ({type(error).__name__}); export the run again") from None
