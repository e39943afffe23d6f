"""Weights of other libraries, and of our own exports, as what a model starts from."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp

from input_pipeline.errors import CheckpointError, UserError
from input_pipeline.tokenizer import ReportTokenizer
from msfl_jax.config import Config, to_dict
from msfl_jax.config_init import InitFromConfig
from msfl_jax.export.detect import detect_format, pixels_of
from msfl_jax.export.diff import Diff
from msfl_jax.export.mapping import from_format, own_pixels
from msfl_jax.export.names import PARTS, Format
from msfl_jax.export.weight_files import WeightFile, open_weights

Role = Literal["vision", "report"]

# Which parts of a model a file is asked for, by what it is named as.
ROLES: dict[Role, tuple[str, ...]] = {
    "vision": ("vision", "pixel_decoder", "image_projection"),
    "report": ("text", "pooler", "language"),
}


# Of an export of ours, settings by which an encoder of the same shapes computes something else.
UNSEEN: dict[Role, tuple[str, ...]] = {
    "vision": (
        *("model.vision.heads", "model.pixel_decoder.heads", "image.normalisation", "image.mean", "image.deviation"),
        *("image.pool", "regions.layer", "regions.window_radius"),
    ),
    "report": ("model.text.heads", "text.pool", "data.tokenizer_hash"),
}
VIT_EPSILON, BERT_EPSILON = 1e-6, 1e-12  # of our norms; transformers' own default is the latter for both


@dataclasses.dataclass(frozen=True)
class Imported:
    """What a file holds for a model.

    Attributes:
      weights: the file.
      form: its format.
      params: a nested dictionary with what was found.
      diff: what was not, or has no place.
    """

    weights: WeightFile
    form: Format
    params: dict[str, Any]
    diff: Diff

    @property
    def caveat(self) -> str:
        """What must be said beside the numbers of whatever starts from it."""
        name = self.weights.path.name
        return f"started from imported weights ({self.form}, {name}, sha256 {self.weights.sha256[:12]}): what they were trained on is not known here"


def read_weights(
    path: Path,
    config: Config,
    like: Mapping[str, Any],
    *,
    roles: Sequence[Role] = ("vision", "report"),
    form: str = "auto",
    pixels: str = "auto",
) -> Imported:
    """Reads a file for a model and compares the two; refuses nothing of what merely differs.

    Args:
      path: file or folder.
      config: of the model.
      like: shapes of its parameters.
      roles: what is wanted of the file.
      form: a format, or "auto" to see from the names.
      pixels: how the other model's pixels are normalised, see `detect.pixels_of`.

    Raises:
      UserError, CheckpointError: see `open_weights` and `detect_format`.
    """
    weights = open_weights(path)
    found: Any = detect_format(weights) if form == "auto" else form
    parts = None if found == "msfl" and len(roles) == len(ROLES) else [part for role in roles for part in ROLES[role]]
    source = None if found == "msfl" else pixels_of(weights, found, pixels)
    params, diff = from_format(weights.tensors, found, config, like, parts=parts, source=source)
    notes = [*diff.notes, *_notes(weights, found, config, source is not None)]
    settings = _own_settings(weights, config, roles) if found == "msfl" else _settings(weights, config, found)
    diff = dataclasses.replace(diff, misshapen=(*diff.misshapen, *settings), notes=tuple(notes))
    return Imported(weights, found, params, diff)


def imported_parameters(
    init: InitFromConfig, config: Config, like: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What a pretraining run starts from instead of random numbers.

    Args:
      init: which files, and which differences are meant.
      config: of the run.
      like: shapes of its parameters.

    Returns:
      A nested dictionary with what was found (see `overlay`), and what must be said beside the run's numbers.

    Raises:
      UserError: there is no such file.
      CheckpointError: a file is damaged, or differs from the model in more than `init.skip` allows.
    """
    params: dict[str, Any] = {}
    caveats: list[str] = []
    roles: dict[Role, tuple[str, str]] = {
        "vision": (init.vision, init.vision_format),
        "report": (init.report, init.report_format),
    }
    for role, (path, form) in roles.items():
        if path:
            found = read_weights(Path(path), config, like, roles=(role,), form=form, pixels=init.pixels)
            refuse_differences(found, split_skip(init.skip), option="init_from.skip")
            params = join(params, found.params)
            caveats.append(f"{role} encoder {found.caveat}")
    return params, tuple(caveats)


def imported_vision(
    path: str, skip: str, pixels: str, config: Config, like: Mapping[str, Any]
) -> tuple[dict[str, Any], Imported]:
    """The image encoder alone, as a baseline for fine-tuning; arguments and errors as in `imported_parameters`.

    Raises:
      UserError: `path` is empty.
    """
    if not path:
        raise UserError("encoder.init is 'imported'; give --config.encoder.weights=PATH")
    found = read_weights(Path(path), config, like, roles=("vision",), pixels=pixels)
    refuse_differences(found, split_skip(skip), option="encoder.skip")
    return found.params.get("vision", {}), found


def refuse_differences(found: Imported, skip: Sequence[str], *, option: str) -> None:
    """Raises a CheckpointError that names what differs and is not skipped, or where nothing at all was found."""
    left = found.diff.without(skip)
    if not found.params:
        raise CheckpointError(
            f"{found.weights.path}: nothing in it for this model, read as {found.form}; see `msfl import`"
        )
    if left:
        advice = f"{option} may name what to leave out; `msfl import` lists all"
        raise CheckpointError(f"{found.weights.path} ({found.form}) and this model differ: {left.summary()}; {advice}")


def split_skip(text: str) -> tuple[str, ...]:
    """Names and patterns from a comma-separated list."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def join(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Two nested dictionaries as one; of the same leaf, the second's."""
    joined = dict(first)
    for name, value in second.items():
        both = isinstance(value, Mapping) and isinstance(joined.get(name), Mapping)
        joined[name] = join(joined[name], value) if both else value
    return joined


def overlay(fresh: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Fresh parameters with what was found in their place; of tables with fewer rows, the last stay fresh."""
    result = dict(fresh)
    for name, value in found.items():
        own = result[name]
        if isinstance(value, Mapping):
            result[name] = overlay(own, value)
        else:
            result[name] = (
                jnp.asarray(value) if value.shape == own.shape else jnp.asarray(own).at[: len(value)].set(value)
            )
    return result


def describe(weights: WeightFile, form: str) -> str:
    """What a file is, in a few lines."""
    sizes = [tensor.size for tensor in weights.tensors.values()]
    kinds = sorted({str(tensor.dtype) for tensor in weights.tensors.values()})
    lines = {
        "file": f"{weights.path} ({weights.kind})",
        "format": form,
        "tensors": f"{len(sizes):,} of {', '.join(kinds)}, {sum(sizes):,} numbers",
        "sha256": weights.sha256,
    }
    return "\n".join(f"{name:<9}{value}" for name, value in lines.items())


def _notes(weights: WeightFile, form: Format, config: Config, folded: bool) -> list[str]:
    """What the names cannot show and a reader should know."""
    notes = []
    if "vision" in PARTS.get(form, ()) and folded and own_pixels(config) is None:
        notes.append("our images are normalised one by one, so the other model's mean and deviation are not folded in")
    if form in ("clip", "openai"):
        notes.append("CLIP's GELU is approximate and its norms have another epsilon: close to its outputs, not equal")
    ours = BERT_EPSILON if form == "hf_bert" else VIT_EPSILON
    theirs = weights.config.get("layer_norm_eps", BERT_EPSILON)
    if form in ("hf_vit", "hf_vit_mae", "hf_bert") and weights.config and theirs != ours:
        notes.append(f"config.json: layer_norm_eps is {theirs!r:.20} for {ours!r}: close to its outputs, not equal")
    return notes


def _settings(weights: WeightFile, config: Config, form: Format) -> list[tuple[str, str]]:
    """Settings beside the weights of others that make another function of the same shapes."""
    size = config.model.text if form == "hf_bert" else config.model.vision
    expected: dict[str, Any] = {"num_attention_heads": size.heads, "position_embedding_type": "absolute"}
    expected |= {} if form in ("clip", "openai") else {"hidden_act": "gelu"}
    if form == "hf_vit_mae":
        expected["decoder_num_attention_heads"] = config.model.pixel_decoder.heads
    inner = weights.config.get("vision_config")
    settings = inner if isinstance(inner, Mapping) else weights.config
    return [
        (f"config.json:{key}", f"{settings[key]!r:.20} for {value!r}")
        for key, value in expected.items()
        if key in settings and settings[key] != value
    ]


def _own_settings(weights: WeightFile, config: Config, roles: Sequence[Role]) -> list[tuple[str, str]]:
    """Of an export's configuration, what `UNSEEN` lists and this model has otherwise; a bare file says nothing, nor does an empty value."""
    exported, own = weights.config.get("config"), to_dict(config)
    if "report" in roles and config.data.tokenizer:  # a configuration has the hash itself only when its run has started
        own["data"]["tokenizer_hash"] = ReportTokenizer.load(config.data.tokenizer).hash
    pairs = [(key, _at(exported, key), _at(own, key)) for role in roles for key in UNSEEN[role]]
    return [
        (f"config.json:{key}", f"{found!r:.20} for {wanted!r:.20}")
        for key, found, wanted in pairs
        if found not in (None, "", wanted) and wanted != ""
    ]


def _at(values: object, path: str) -> Any:
    """A nested value by its dotted path, None where there is none."""
    for key in path.split("."):
        values = values.get(key) if isinstance(values, Mapping) else None
    return values
