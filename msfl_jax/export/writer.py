"""A run written as an export: whole, or not at all."""

import dataclasses
import importlib.metadata
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from input_pipeline.errors import UserError
from input_pipeline.tables import file_hash
from msfl_jax.config import config_hash
from msfl_jax.export import parity, stablehlo
from msfl_jax.export.golden import GOLDEN, make_golden
from msfl_jax.export.huggingface import write_folders
from msfl_jax.export.layout import CONFIG, DECODER, LANGUAGE, WEIGHTS, describe_model, write_tensors
from msfl_jax.export.manifest import write_manifest
from msfl_jax.export.mapping import to_format
from msfl_jax.export.model_card import write_card
from msfl_jax.export.names import part_of
from msfl_jax.export.trees import flatten
from msfl_jax.tasks.run import Run, without

CARD = "README.md"


class Exported(NamedTuple):
    """What was written.

    Attributes:
      folder: the export.
      notes: what was left out and why, a line each.
      compared: differences of PyTorch from JAX; None where PyTorch is not installed.
    """

    folder: Path
    notes: tuple[str, ...]
    compared: Mapping[str, parity.Parity] | None


def export_run(
    run: Run, target: Path, *, decoders: bool = False, mlm_head: bool = False, to_stablehlo: bool = False
) -> Exported:
    """Writes a run's model for other libraries; see `msfl_jax.export.layout` for the folder.

    Everything is written beside `target` and moved there by one rename.

    Args:
      run: with parameters on one device.
      target: a folder that does not exist, or is empty.
      decoders: whether the decoder of masked patches leaves too, also as `mae/`.
      mlm_head: whether the masked-language head leaves too.
      to_stablehlo: whether compiled programs are written as well.

    Raises:
      UserError: `target` is taken.
      CheckpointError: PyTorch does not make of the export what JAX makes of the run.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target}: exists already; name a new folder, or delete it first")
    place = target.absolute()  # "." has no name of its own
    draft = place.with_name(f".{place.name}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        exported = _write(without_unwanted(run, decoders, mlm_head), draft, to_stablehlo)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    os.replace(draft, place)
    return exported._replace(folder=target)


def without_unwanted(run: Run, decoders: bool, mlm_head: bool) -> Run:
    """The run with host copies of the parameters that leave."""
    wanted = {DECODER: decoders, f"heads/{LANGUAGE}": mlm_head}
    kept = without(run.params, [path for path, leaves in wanted.items() if not leaves])
    return dataclasses.replace(run, params=jax.tree.map(np.asarray, kept))


def _write(run: Run, folder: Path, to_stablehlo: bool) -> Exported:
    parts = {part_of(path)[0] for path in flatten(run.params)}
    (folder / CONFIG).write_text(json.dumps(describe_model(run, parts), indent=2) + "\n")
    write_tensors(folder / WEIGHTS, to_format(run.params, "msfl", run.config))
    for file in sorted(parity.code_folder().glob("*_msfl.py")):
        shutil.copyfile(file, folder / file.name)
    notes = write_folders(run, folder)
    write_tensors(folder / GOLDEN, make_golden(run))
    if to_stablehlo:
        stablehlo.write_programs(run, folder)
    compared = parity.compare_with_torch(folder) if parity.has_torch() else None
    parity.refuse_differences(folder, compared or {})
    parity.write_parity(folder, compared)
    facts = _facts(run, folder / WEIGHTS)
    card = write_card(run, facts, notes, compared, programs=to_stablehlo)
    (folder / CARD).write_text(card, encoding="utf-8")
    write_manifest(folder, facts)
    return Exported(folder, tuple(notes), compared)


def _facts(run: Run, weights: Path) -> dict[str, Any]:
    return {
        "weights": file_hash(weights),
        "name": run.config.name,
        "step": run.step,
        "seed": run.config.seed,
        "configuration": config_hash(run.config),
        "tokenizer": run.tokenizer.hash,
        "msfl_jax": importlib.metadata.version("msfl_jax"),
    }
