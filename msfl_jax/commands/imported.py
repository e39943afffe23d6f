"""`msfl import`, and fine-tuning that starts from what it would import."""

import dataclasses
from pathlib import Path
from typing import cast

import jax

from input_pipeline.errors import CheckpointError, UserError
from input_pipeline.tokenizer import ReportTokenizer
from msfl_jax.config import Config
from msfl_jax.config_init import RANDOM_START, InitFromConfig
from msfl_jax.export.detect import detect_format, pixels_of
from msfl_jax.export.importing import ROLES, Role, describe, imported_vision, overlay, read_weights, split_skip
from msfl_jax.export.names import PARTS, Format
from msfl_jax.export.weight_files import WeightFile, open_weights
from msfl_jax.finetune_config import FinetuneEncoderConfig
from msfl_jax.model import Model
from msfl_jax.segmentation_config import SegmentationEncoderConfig
from msfl_jax.tasks.run import Run

WORDS = 30000  # of a model whose configuration names no tokenizer; only tables of words depend on it


def import_report(path: Path, config: Config | None, *, role: str = "", skip: str = "") -> str:
    """What a file of weights is and, with a configuration, where it and the model differ; nothing is started or written.

    Args:
      path: file or folder.
      config: of a pretraining run; formats, pixels and names to skip of its `init_from` count here as they do there.
      role: "vision" or "report", to look at only what it would be read for; "" is all that it holds.
      skip: more names that may differ, as in `init_from.skip`.

    Returns:
      Lines for people.

    Raises:
      UserError: there is no such file, or no such role.
      CheckpointError: it is damaged or of no known format, or it differs in more than `skip` allows; then the differences are printed first.
    """
    if role and role not in ROLES:
        raise UserError(f"--as {role}: expected {' or '.join(ROLES)}")
    weights = open_weights(path)
    init = config.init_from if config else RANDOM_START
    form, roles = _read_as(weights, init, role)
    pixels = pixels_of(weights, form, init.pixels)
    held = ", ".join(PARTS[form]) if form != "msfl" else "all of a model"
    lines = [describe(weights, form), f"holds    {held}"]
    lines += [f"pixels   mean {_numbers(pixels.mean)}, deviation {_numbers(pixels.deviation)}"] if pixels else []
    if config is None:
        return "\n".join(lines)
    model = Model.create(config, vocab_size=_words(config))
    like = jax.eval_shape(model.init, jax.random.key(0))
    found = read_weights(path, config, like, roles=roles, form=form, pixels=init.pixels)
    left = found.diff.without([*split_skip(skip), *split_skip(init.skip)])
    lines += [
        f"model    {config.name}: {found.diff.loaded} of {len(weights.tensors)} tensors have their place",
        *left.lines(),
    ]
    if left or not found.params:
        print("\n".join(lines))
        raise CheckpointError(
            f"{path}: differs from '{config.name}' in {len(left.names)} names; name them in --skip or change the model"
        )
    return "\n".join(lines)


def with_imported_encoder(run: Run, encoder: FinetuneEncoderConfig | SegmentationEncoderConfig) -> Run:
    """The run as fine-tuning starts from it: itself, or, where `encoder.init` is "imported", with that file's image encoder in the place of its own.

    Raises:
      CheckpointError: the file is damaged, or differs from the run's encoder in more than `encoder.skip` allows.
    """
    if encoder.init != "imported":
        return run
    like = jax.eval_shape(run.model.init, jax.random.key(0))
    vision, found = imported_vision(encoder.weights, encoder.skip, encoder.pixels, run.config, like)
    fresh = jax.jit(run.model.init)(jax.random.key(0))["vision"]
    params = {**run.params, "vision": overlay(fresh, vision)}
    return dataclasses.replace(run, params=params, weights=found.weights.sha256, caveats=(f"encoder {found.caveat}",))


def _read_as(weights: WeightFile, init: InitFromConfig, role: str) -> tuple[Format, tuple[Role, ...]]:
    """The format that a run would read a file as, and what for: what its names say, unless `init_from` has a format for that."""
    roles = (cast(Role, role),) if role else _roles(detect_format(weights))
    chosen = {getattr(init, f"{one}_format") for one in roles}
    named = chosen.pop() if len(chosen) == 1 else "auto"
    return (detect_format(weights) if named == "auto" else named), roles


def _roles(form: Format) -> tuple[Role, ...]:
    """What a file of a format is read for."""
    parts = PARTS.get(form)
    return tuple(role for role, wanted in ROLES.items() if parts is None or set(parts) & set(wanted))


def _words(config: Config) -> int:
    return ReportTokenizer.load(Path(config.data.tokenizer)).vocab_size if config.data.tokenizer else WORDS


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4g}" for value in dict.fromkeys(values))
