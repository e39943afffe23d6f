"""The folder of an export: its files, its `config.json`, and the run that it can be opened as again."""

import dataclasses
import json
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file, save

from input_pipeline.errors import CheckpointError, UserError
from input_pipeline.tables import file_hash
from input_pipeline.tokenizer import ReportTokenizer
from msfl_jax.config import Config, from_config_dict, to_dict
from msfl_jax.export.manifest import refuse_other_bytes
from msfl_jax.export.mapping import from_format
from msfl_jax.export.names import part_of, rows
from msfl_jax.export.trees import shapes
from msfl_jax.export.weight_files import refuse_code
from msfl_jax.model import Model, SpecialTokens
from msfl_jax.tasks.prompts import shipped_prompts
from msfl_jax.tasks.run import Run

CONFIG, WEIGHTS = "config.json", "model.safetensors"
TEXT, VISION, MAE, TIMM = "text", "vision", "mae", "timm_vit.safetensors"
MODEL_TYPE, FORMAT = "msfl", 1
DECODER, LANGUAGE = "pixel_decoder", "language"  # parts that leave on request


def describe_model(run: Run, parts: Collection[str]) -> dict[str, Any]:
    """What `config.json` says: the model, the step, the run's configuration without any path, and what must be said and done beside it.

    Args:
      run: the model.
      parts: those that are exported, by the names of `names.part_of`.
    """
    return {
        "model_type": MODEL_TYPE,
        "architectures": ["Msfl"],
        "dtype": "float32",
        "format": FORMAT,
        "vocab_size": run.model.vocab_size,
        "step": run.step,
        "parts": sorted(parts),
        "caveats": list(run.caveats),
        "equalize": run.equalize,
        "config": without_paths(run.config),
    }


def without_paths(config: Config) -> dict[str, Any]:
    """A configuration as plain values, in which folders are empty, and files of prompts and of weights that the run started from are bare names."""
    values = to_dict(config)
    for section in values.values():
        if isinstance(section, dict) and "directory" in section:
            section["directory"] = ""
    values["data"]["tokenizer"] = ""
    for role in ("vision", "report"):
        values["init_from"][role] = Path(values["init_from"][role]).name
    prompts = values["zero_shot"]["prompts"]
    values["zero_shot"]["prompts"] = prompts if prompts in shipped_prompts() else Path(prompts).name
    return values


def is_export(folder: Path) -> bool:
    """Whether a folder says that it is an export; run directories have a `config.json` too."""
    try:
        values = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(values, dict) and values.get("model_type") == MODEL_TYPE


def read_description(folder: Path) -> dict[str, Any]:
    """`config.json` of an export.

    Raises:
      UserError: the folder is no export.
      CheckpointError: it is one of a later release, or asks for code of its own.
    """
    if not is_export(folder):
        raise UserError(f"{folder}: no {CONFIG} of model type '{MODEL_TYPE}'; expected a folder of `msfl export`")
    values = refuse_code(folder / CONFIG, advice="export the run again")
    if values.get("format") != FORMAT:
        raise CheckpointError(f"{folder}: format {values.get('format')}; expected {FORMAT}; export the run again")
    return values


def open_export(folder: Path | str) -> Run:
    """An export as a run, without what was not exported; its parameters are NumPy arrays in float32.

    Raises:
      UserError: the folder is no export.
      CheckpointError: its tensors do not fit its configuration, its weights are not those of its manifest, its tokenizer is not that of the run, or
        it is damaged.
    """
    folder = Path(folder)
    values = read_description(folder)
    try:
        config, step, parts = from_config_dict(values["config"]), int(values["step"]), set(values["parts"])
        caveats = tuple(map(str, values.get("caveats", ())))  # exports of earlier releases have none
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / CONFIG}: damaged ({type(error).__name__}); export the run again") from None
    tokenizer = _tokenizer_of(folder, config)
    special = SpecialTokens(tokenizer.mask_id, tokenizer.special_ids)
    model = Model.create(config, vocab_size=tokenizer.vocab_size, special=special)
    like = jax.eval_shape(model.init, jax.random.key(0))
    refuse_other_bytes(folder / WEIGHTS, _sha256_of(folder / WEIGHTS))
    tensors = read_tensors(folder / WEIGHTS)
    params, diff = from_format(tensors, "msfl", config, like, parts=parts)
    missing = sorted({row.name for row in rows("msfl", shapes(like)) if part_of(row.path)[0] in parts} - tensors.keys())
    if diff or missing:
        found = diff.summary() or f"{len(missing)} missing: {missing[0]}"
        raise CheckpointError(f"{folder / WEIGHTS} does not fit its {CONFIG}: {found}; export the run again")
    equalize = values.get("equalize") is True
    return Run(folder, config, model, params, tokenizer, step, caveats, equalize=equalize)


def in_float32(run: Run) -> Run:
    """The run computed in float32, as every export is."""
    model = dataclasses.replace(run.config.model, compute_dtype="float32")
    config = dataclasses.replace(run.config, model=model)
    return dataclasses.replace(run, config=config, model=dataclasses.replace(run.model, config=config))


def full_precision() -> AbstractContextManager[Any]:
    """Within it, matrix products of float32 are float32 on every device: GPUs and TPUs else round what they multiply to 10 or 7 bits."""
    return jax.default_matmul_precision("highest")


def read_tensors(file: Path) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file.

    Raises:
      CheckpointError: there is none that can be read.
    """
    try:
        return load_file(file)  # maps the file: bytes in memory would be one copy more
    except OSError as error:
        raise _unreadable(file, error) from None
    except Exception as error:  # safetensors has an exception of its own for each kind of damage
        raise CheckpointError(f"{file}: no safetensors file ({type(error).__name__})") from None


def write_tensors(file: Path, tensors: Mapping[str, np.ndarray], *, beside: Mapping[str, Any] | None = None) -> None:
    """Writes a safetensors file that transformers reads too; its folder is made. `beside` goes into its header, values as JSON."""
    file.parent.mkdir(parents=True, exist_ok=True)
    whole = {name: np.asarray(array, order="C") for name, array in tensors.items()}  # a scalar stays one
    file.write_bytes(save(whole, {"format": "pt"} | {key: json.dumps(value) for key, value in (beside or {}).items()}))


def _tokenizer_of(folder: Path, config: Config) -> ReportTokenizer:
    """The tokenizer beside the weights; raises a CheckpointError where the run was trained with another."""
    tokenizer, wanted = ReportTokenizer.load(folder / TEXT), config.data.tokenizer_hash
    if wanted not in ("", tokenizer.hash):
        raise CheckpointError(
            f"{folder / TEXT / 'tokenizer.json'}: sha256 {tokenizer.hash[:12]} is not the run's {wanted[:12]}; export the run again"
        )
    return tokenizer


def _sha256_of(file: Path) -> str:
    try:
        return file_hash(file)
    except OSError as error:
        raise _unreadable(file, error) from None


def _unreadable(file: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"{file}: cannot be read ({error.strerror or type(error).__name__})")
