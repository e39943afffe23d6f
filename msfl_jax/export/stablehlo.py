"""The model as compiled programs that need JAX and NumPy only: `jax.export` artefacts with a free batch, for cpu, cuda and tpu.

    weights = dict(numpy.load("stablehlo/weights.npz"))
    embed_image = jax.export.deserialize(bytearray(open("stablehlo/embed_image.bin", "rb").read()))
    image_embedding, regions = embed_image.call(weights, images)          # uint8 [B, H, W, 1]

Weights are arguments, so that the three programs share one file of them. All is computed in float32, matrix products too: left to itself, JAX
rounds what they multiply to fewer bits on cuda and tpu.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Array

from msfl_jax.export.layout import full_precision, in_float32
from msfl_jax.export.trees import leaves
from msfl_jax.metrics import smoothing
from msfl_jax.model import Model
from msfl_jax.tasks.grounding import own_geometry, similarity_map
from msfl_jax.tasks.run import Run, shift, weave

FOLDER, PROGRAM_WEIGHTS = "stablehlo", "weights.npz"
PLATFORMS = ("cpu", "cuda", "tpu")
# JAX notes where each operation was written: the lines of all callers, with their folders, unless it is told otherwise.
LOCATIONS = {"jax_include_full_tracebacks_in_locations": False, "jax_hlo_source_file_canonicalization_regex": ".*/"}

Weights = Mapping[str, Array]


def write_programs(run: Run, folder: Path) -> None:
    """Writes `stablehlo/`: weights.npz, and a program for each of `programs`.

    Args:
      run: the model.
      folder: of the export.
    """
    run, target = in_float32(run), folder / FOLDER
    target.mkdir()
    weights = {path: np.asarray(leaf) for path, leaf in leaves(run.params)}
    np.savez(target / PROGRAM_WEIGHTS, allow_pickle=False, **weights)
    given = {path: jax.ShapeDtypeStruct(array.shape, array.dtype) for path, array in weights.items()}
    with full_precision(), _files_without_folders():
        for name, (function, inputs) in programs(run).items():
            program = export.export(jax.jit(function), platforms=PLATFORMS)(given, *inputs)
            (target / f"{name}.bin").write_bytes(program.serialize())


@contextlib.contextmanager
def _files_without_folders() -> Iterator[None]:
    """Within it, what is lowered names a file and a line for each operation, and no folder of this machine."""
    before = {name: getattr(jax.config, name) for name in LOCATIONS}
    try:
        for name, value in LOCATIONS.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def programs(run: Run) -> dict[str, tuple[Callable[..., Any], tuple[jax.ShapeDtypeStruct, ...]]]:
    """Each program by name, as a function of weights and inputs, and the shapes of those inputs.

    embed_image  images uint8 [B, H, W, 1] -> image embeddings [B, D], regions [B, P, E]
    embed_text   token ids and sentence ids int32 [B, T] -> report embeddings [B, D], sentences [B, S, E], which exist [B, S]
    ground       images, and token ids and sentence ids [B, T] of a phrase each -> smoothed similarities on the grid of patches [B, G, G]
    """
    config = run.config
    (batch,) = export.symbolic_shape("b")
    side, length = config.model.vision.image_size, config.model.text.max_tokens
    image = jax.ShapeDtypeStruct((batch, side, side, 1), jnp.uint8)
    tokens = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    return {
        "embed_image": (lambda weights, image: run.model.encode_image(_tree(weights), image), (image,)),
        "embed_text": (lambda weights, *ids: run.model.encode_report(_tree(weights), *ids), (tokens, tokens)),
        "ground": (lambda weights, *inputs: _ground(run, _tree(weights), *inputs), (image, tokens, tokens)),
    }


def _ground(run: Run, params: Mapping[str, Any], image: Array, token_ids: Array, sentence_ids: Array) -> Array:
    """As `tasks.grounding.phrase_maps`, one phrase for each image; a phrase without a word has similarity 0 everywhere, or that of its report."""
    options, size = run.config.grounding, run.config.model.vision
    steps = [size.patch_size * (2 * k + 1 - options.shifts) // (2 * options.shifts) for k in range(options.shifts)]
    looks = [_look(run, params, jnp.asarray(shift(image, down, right))) for down in steps for right in steps]
    phrases = _phrases(run.model, params, token_ids, sentence_ids, local=run.aligns_locally)
    maps = similarity_map(weave(looks, size.grid, options.shifts), phrases[:, None], cosine=own_geometry(run).cosine)
    side = size.grid * options.shifts
    matrix = jnp.asarray(smoothing(np.eye(side * side).reshape(-1, side, side), options.sigma * options.shifts))
    flat = maps.reshape(maps.shape[0], side * side)
    smoothed = jnp.einsum("bq,qp->bp", flat, matrix.reshape(side * side, -1).astype(jnp.float32), precision="highest")
    return smoothed.reshape(maps.shape[0], side, side)


def _look(run: Run, params: Mapping[str, Any], image: Array) -> Array:
    if run.aligns_locally:
        return run.model.encode_image(params, image)[1]
    return run.model.encode_patches(params, image)


def _phrases(model: Model, params: Mapping[str, Any], token_ids: Array, sentence_ids: Array, *, local: bool) -> Array:
    report, units, present = model.encode_report(params, token_ids, sentence_ids)
    if not local:
        return report
    first = int(model.config.objective.local_alignment.include_cls)
    units, present = units[:, first:], present[:, first:, None]
    return (units * present).sum(axis=1) / jnp.maximum(present.sum(axis=1), 1)


def _tree(weights: Weights) -> dict[str, Any]:
    """Nested parameters of arrays by path."""
    tree: dict[str, Any] = {}
    for path, array in weights.items():
        *sections, leaf = path.split("/")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = array
    return tree
