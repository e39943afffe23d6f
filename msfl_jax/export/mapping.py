"""Parameters to the tensors of a format and back, by the table of `msfl_jax.export.names`; arrays in NumPy, nothing read or written here.

Our image encoder is grey; other formats see three colours. Export gives each colour a third of the patch kernel, import adds them up with the other
model's normalisation folded in: both exact for grey input (see `msfl_jax.export.arrays`). A library that gives an exported model pixels normalised by
`image.mean` and `image.deviation`, the same for all colours, gets what ours computes.
"""

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from input_pipeline.errors import UserError
from msfl_jax.config import Config
from msfl_jax.encoders import sincos_positions
from msfl_jax.export.arrays import HALF, Pixels
from msfl_jax.export.changes import write_array
from msfl_jax.export.diff import Diff
from msfl_jax.export.names import ALIASES, ANCHORS, NO_PATCH_BIAS, PARTS, READ_ONLY, TIED, Format, part_of, rows
from msfl_jax.export.reading import Reading, Tensors
from msfl_jax.export.trees import flatten, shapes, unflatten


def to_format(
    params: Mapping[str, Any], form: Format, config: Config, *, parts: Collection[str] | None = None
) -> dict[str, np.ndarray]:
    """A model's parameters as the named tensors of a format, float32.

    Args:
      params: as `Model.init` makes them; blocks stacked or not, arrays on this host.
      form: "msfl" holds everything; the others the parts that `names.PARTS` lists.
      config: of the model.
      parts: of these, which; None is all. A pooler leaves only where it is BERT's own (tanh follows it, and it is square).

    Raises:
      UserError: the format cannot express this model.
    """
    refuse_inexpressible(form, config, parts)
    own = flatten(params)
    if form != "msfl":
        own |= fixed_positions(config)
    if form != "msfl" and not _pooler_is_berts(own, config):
        own = {path: array for path, array in own.items() if part_of(path)[0] != "pooler"}
    table = [row for row in rows(form, own) if parts is None or part_of(row.path)[0] in parts]
    pieces: dict[str, list[np.ndarray]] = {row.name: [] for row in table}
    for row in sorted(table, key=lambda row: row.part):
        pieces[row.name].append(write_array(own[row.path], row))
    return {name: piece[0] if len(piece) == 1 else np.concatenate(piece) for name, piece in pieces.items()}


def from_format(
    tensors: Tensors,
    form: Format,
    config: Config,
    like: Mapping[str, Any],
    *,
    parts: Collection[str] | None = None,
    source: Pixels | None = None,
) -> tuple[dict[str, Any], Diff]:
    """The parameters that a format's tensors hold for a model, and what the two do not have in common.

    Args:
      tensors: by name, any float dtype.
      form: of the names.
      config: of the model.
      like: shapes of its parameters, as `jax.eval_shape(model.init, key)` gives them; blocks stacked or not.
      parts: which are wanted; tensors of others are passed over. None is all. A part of which the tensors hold nothing is not missed.
      source: how the other model's pixels are normalised; None is as ours, which an export of ours is.

    Returns:
      A nested dictionary with float32 arrays for what was found, blocks as in `like`, where tables of words and stacked blocks may lack the last
      rows (see `overlay`); and the difference.
    """
    tensors = {_today(name): tensor for name, tensor in tensors.items()}
    prefixes = find_prefixes(tensors, form)
    fixed = {} if form == "msfl" else fixed_positions(config)
    known = shapes(like) | {path: table for path, table in fixed.items() if path.split("/")[0] in like}
    wanted = {path: leaf for path, leaf in known.items() if parts is None or part_of(path)[0] in parts}
    ours = own_pixels(config) or HALF
    reading = Reading(
        tensors,
        fixed=fixed,
        source=(source or ours) if own_pixels(config) else ours,
        ours=ours,
        class_token=config.model.vision.cls_token,
    )
    reading.fill(rows(form, wanted, prefixes), wanted, patch_bias=form not in NO_PATCH_BIAS)
    reading.pass_over_copies(_copies(prefixes))
    others = {row.name for row in rows(form, known.keys() - wanted.keys(), prefixes)}
    others |= {name for name in tensors if _claimed_by_others(name, form, prefixes, parts)}
    found, diff = unflatten(reading.found, like), reading.diff(others)
    if lost := reading.found.keys() - flatten(found).keys():
        note = (
            f"{len(lost)} tensors behind a layer that is not there start fresh: stacked layers load up to the first gap"
        )
        diff = dataclasses.replace(diff, notes=(*diff.notes, note))
    return found, diff


def refuse_inexpressible(form: Format, config: Config, parts: Collection[str] | None = None) -> None:
    """Raises a UserError that says why a format of other libraries cannot hold this model; "msfl" holds every model."""
    vision = config.model.vision
    chosen = [part for part in PARTS.get(form, ()) if parts is None or part in parts]
    reasons = ["it is only read"] if form in READ_ONLY else []
    if "vision" in chosen:
        reasons += ["attention sees only a window of patches"] if config.regions.window_radius else []
        reasons += ["the patch embedding has two layers"] if vision.patch_layers != 1 else []
        reasons += ["there is no class token"] if not vision.cls_token else []
    if "pixel_decoder" in chosen and form == "hf_vit_mae" and config.image.target_scale != 1:
        reasons.append("the decoder predicts images of twice the size")
    if reasons:
        raise UserError(f"model '{config.name}' cannot be written as {form}: {', '.join(reasons)}; use format msfl")


def fixed_positions(config: Config) -> dict[str, np.ndarray]:
    """Tables of positions that are no parameters of ours, by the path that they would have; the class token's is 0."""
    vision = config.model.vision
    tables = {"pixel_decoder/pos_embed": _table(vision.grid, config.model.pixel_decoder.width, vision.cls_token)}
    if vision.positions == "sincos":
        tables["vision/pos_embed"] = _table(vision.grid, vision.width, vision.cls_token)
    return tables


def own_pixels(config: Config) -> Pixels | None:
    """How our model's pixels are normalised; None where each image is by its own mean and deviation."""
    options = config.image
    return Pixels.grey(options.mean, options.deviation) if options.normalisation == "fixed" else None


def find_prefixes(tensors: Iterable[str], form: Format) -> dict[str, str]:
    """What stands before each part's names in a file: the format's own prefix, another, or that behind a wrapper's ("module.")."""
    if form == "msfl":
        return {}
    names, known = sorted(tensors, key=len), PARTS[form]
    found: dict[str, str] = {}
    wrapper = ""
    for part, module in ANCHORS.items():
        anchor = f"{known[part].outside[module]}.weight" if part in known else ""
        prefix = next((n.removesuffix(anchor) for n in names if anchor and f".{n}".endswith(f".{anchor}")), None)
        if prefix is not None:
            found[part] = prefix
            own = known[part].prefix
            wrapper = prefix.removesuffix(own) if prefix.endswith(own) else wrapper
    prefixes = {part: found.get(part, wrapper + names_of.prefix) for part, names_of in known.items()}
    if "text" in known:
        prefixes |= {"pooler": prefixes["text"], "language": prefixes["text"].removesuffix("bert.")}
    return prefixes


def _today(name: str) -> str:
    """A tensor's name as releases of today write it."""
    for pattern, replacement in ALIASES:
        name = pattern.sub(replacement, name)
    return name


def _copies(prefixes: Mapping[str, str]) -> dict[str, str]:
    """Tied tensors that some files hold twice, and what they are tied to."""
    return {
        prefixes[part] + copy: prefixes[other] + own
        for (part, copy), (other, own) in TIED.items()
        if part in prefixes and other in prefixes
    }


def _claimed_by_others(name: str, form: Format, prefixes: Mapping[str, str], parts: Collection[str] | None) -> bool:
    """Whether a tensor is of a part that the format holds and nobody asked for, whatever its size."""
    return any(
        parts is not None
        and part not in parts
        and name.startswith(prefix)
        and PARTS[form][part].claims(name[len(prefix) :])
        for part, prefix in prefixes.items()
    )


def _table(grid: int, width: int, class_token: bool) -> np.ndarray:
    table = sincos_positions(grid, width)
    return np.concatenate([np.zeros((int(class_token), width), np.float32), table])[None]


def _pooler_is_berts(own: Mapping[str, np.ndarray], config: Config) -> bool:
    kernel = own.get("heads/pooler/kernel")
    return config.text.pool == "cls" and kernel is not None and kernel.shape[0] == kernel.shape[1]
