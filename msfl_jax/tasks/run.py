"""A run directory opened for evaluation, and its encoders applied to any number of texts and images."""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Float32, Int32, UInt8

from input_pipeline.errors import CheckpointError, UserError
from input_pipeline.images import equalize
from input_pipeline.loader import BatchSpec
from input_pipeline.tokenizer import ReportTokenizer
from msfl_jax.config import Config, config_hash, from_config_dict
from msfl_jax.model import Model, Params, SpecialTokens
from msfl_jax.parallel.mesh import BATCH_AXES, batch_sharding
from msfl_jax.parallel.sharding import sharded_shapes
from msfl_jax.train.checkpoint import restore_parameters
from msfl_jax.train.provenance import read_training_data

CONFIG_FILE = "config.json"
TOKENIZER_DIRECTORY = "tokenizer"
DECODERS = ("pixel_decoder", "heads/language")  # which reconstruct: only training, and exports that ask, need them
BATCH_SIZES = (1, 4, 16, 64)  # what is encoded on request is padded to one of these, each compiled once


@dataclass(frozen=True)
class Run:
    """A pretrained model with all that is needed to use it.

    Attributes:
      directory: the run directory.
      config: as the run was made; its paths may no longer exist.
      model: static.
      params: on one device, or sharded over a mesh, in a training loop.
      tokenizer: the run's own copy.
      step: of the parameters.
      caveats: what its training data make it necessary to say beside every number.
      weights: SHA-256 of imported weights whose image encoder stands in the place of the run's own; "" where it is the run's own.
      equalize: whether the histograms of its training images were equalised, see `prepare_image`.
    """

    directory: Path
    config: Config
    model: Model
    params: Params
    tokenizer: ReportTokenizer
    step: int
    caveats: tuple[str, ...] = ()
    weights: str = ""
    equalize: bool = False

    @property
    def aligns_locally(self) -> bool:
        """Whether region and sentence embeddings were trained against each other; else they are as they were initialised."""
        return self.config.objective.lambda_local > 0


class Texts(NamedTuple):
    """Embeddings of texts; the sentences are those of each text, without the [CLS] unit."""

    report_embedding: Float32[np.ndarray, "N D"]
    sentences: Float32[np.ndarray, "N S E"]
    sentence_mask: Bool[np.ndarray, "N S"]


def open_run(
    workdir: Path | str, *, step: int | str | None = None, mesh: Mesh | None = None, decoders: bool = False
) -> Run:
    """Opens a run directory of `msfl pretrain` or `msfl demo`; reads parameters alone, without the optimizer.

    Args:
      workdir: holds config.json, tokenizer/ and checkpoints/.
      step: a step with a checkpoint, "best", or None for the latest.
      mesh: over which the parameters are sharded as they are read, as in training; None puts them on this process's first device.
      decoders: whether the parameters of `DECODERS` are read too; they only reconstruct what training has hidden.

    Raises:
      UserError: not a run directory.
      CheckpointError: the checkpoint is missing, damaged or of another configuration, or the tokenizer is not the one it was trained with.
    """
    workdir = Path(workdir)
    config = _read_config(workdir)
    tokenizer = ReportTokenizer.load(workdir / TOKENIZER_DIRECTORY)
    model = Model.create(
        config, vocab_size=tokenizer.vocab_size, special=SpecialTokens(tokenizer.mask_id, tokenizer.special_ids)
    )
    shapes, unread = jax.eval_shape(model.init, jax.random.key(0)), () if decoders else DECODERS
    shapes = without(shapes, unread)
    params, meta = restore_parameters(
        workdir,
        sharded_shapes(shapes, mesh) if mesh else shapes,
        step=step,
        unread=tuple(f"{part}/" for part in unread),
    )
    if meta["tokenizer_hash"] != tokenizer.hash:
        raise CheckpointError(
            f"{workdir / TOKENIZER_DIRECTORY}: sha256 {tokenizer.hash[:12]} is not the checkpoint's "
            f"{meta['tokenizer_hash'][:12]}; put the run's own tokenizer back"
        )
    data = read_training_data(workdir)
    caveats, equalized = (data.caveats, data.equalize) if data else ((), False)
    return Run(workdir, config, model, params, tokenizer, meta["step"], caveats, equalize=equalized)


def prepare_image(run: Run, image: UInt8[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W"]:
    """An image that is in no build as the run's build stored its own: equalised where that was built with `--equalize`."""
    return equalize(image) if run.equalize else image


def without(params: Params, parts: Sequence[str]) -> Params:
    """Nested parameters, or their shapes, without the parts at some paths."""
    inner = {path.partition("/")[::2] for path in parts}
    return {
        name: without(value, [rest for first, rest in inner if first == name]) if isinstance(value, Mapping) else value
        for name, value in params.items()
        if (name, "") not in inner
    }


def refuse_pretraining_run(workdir: Path, run: Run) -> None:
    """Raises a UserError where fine-tuning would write into the run that it starts from."""
    if workdir.resolve() == run.directory.resolve():
        raise UserError(f"{workdir}: is the pretraining run itself; give a new --workdir")


def encoder_parameters(run: Run, init: str) -> Params | None:
    """What fine-tuning starts from: the parameters of the run, or None where its encoder starts at random.

    Raises:
      UserError: `init` is "imported" and the run's encoder is its own, or the other way round.
    """
    if init != "random" and (init == "imported") != bool(run.weights):
        raise UserError(
            f"encoder.init is '{init}'; expected a run whose encoder is {'imported' if run.weights else 'its own'}"
        )
    return None if init == "random" else run.params


def describe_start(run: Run, init: str) -> dict[str, Any]:
    """What a fine-tuned checkpoint must agree with to be resumed: how its encoder started."""
    start = {"pretrained": {"step": run.step}, "imported": {"weights": run.weights}}
    return {"kind": init, "config_hash": config_hash(run.config), **start.get(init, {})}


def batch_spec(run: Run) -> BatchSpec:
    """What the loader needs to know to feed this run's model: evaluation views and the run's tokenizer."""
    return BatchSpec(
        tokenizer=str(run.tokenizer.directory),
        image_size=run.config.model.vision.image_size,
        max_tokens=run.config.model.text.max_tokens,
        max_sentences=run.config.text.max_sentences,
        fit=run.config.data.fit,
    )


def encode_texts(run: Run, texts: Sequence[str], *, batch_size: int | None = None) -> Texts:
    """Embeds texts, each as a report of its own.

    Args:
      run: whose report encoder is used.
      texts: prompts, phrases or reports; one that holds several sentences is split, and cut as the loader cuts reports.
      batch_size: texts at a time, to which the last batch is padded; None takes `fixed_batches`.
    """
    ids, sentence_ids = run.tokenizer.encode_phrases(
        texts, max_tokens=run.config.model.text.max_tokens, max_sentences=run.config.text.max_sentences
    )
    parts = []
    sizes = (batch_size,) if batch_size else BATCH_SIZES
    for start, end, size in fixed_batches(len(texts), sizes):
        rows = on_mesh(run.params, ids[start:end], sentence_ids[start:end], rows=size)
        embedded = to_host(_encode_report(run.params, *rows, model=run.model))
        parts.append([array[: end - start] for array in embedded])
    report, sentences, mask = (np.concatenate(column) for column in zip(*parts, strict=True))
    first = int(run.config.objective.local_alignment.include_cls)
    return Texts(report, sentences[:, first:], mask[:, first:])


def encode_reports(
    run: Run, token_ids: Int32[np.ndarray, "b T"], sentence_ids: Int32[np.ndarray, "b T"], *, batch_size: int = 64
) -> Array:
    """Embeds one batch of at most `batch_size` reports as the loader gives them; [B, D] on the devices, as `encode_images`."""
    return _encode_report(run.params, *on_mesh(run.params, token_ids, sentence_ids, rows=batch_size), model=run.model)[
        0
    ]


def encode_images(run: Run, image: UInt8[np.ndarray, "b H W 1"], *, batch_size: int = 64) -> tuple[Array, Array]:
    """Embeds one batch of at most `batch_size` images and leaves the result on the devices.

    Returns:
      image_embedding [B, D] and regions [B, P, E], where B >= b is `batch_size`, raised to what divides over the mesh; rows beyond b are padding.
    """
    return _encode_image(run.params, *on_mesh(run.params, image, rows=batch_size), model=run.model)


def encode_regions(run: Run, image: UInt8[np.ndarray, "b H W 1"], *, batch_size: int = 64) -> Array:
    """What phrases are compared with: regions [B, P, E], or, where local alignment was not trained, patches seen globally [B, P, D].

    With `grounding.shifts` n above 1, each image is looked at n x n times, moved by fractions of a patch in between, and the regions of all looks
    are woven into one grid n times as fine: P is n * n times the number of patches, row by row.
    """
    size, shifts = run.config.model.vision, run.config.grounding.shifts
    steps = [size.patch_size * (2 * k + 1 - shifts) // (2 * shifts) for k in range(shifts)]
    looks = [_look(run, np.asarray(shift(image, down, right)), batch_size) for down in steps for right in steps]
    return looks[0] if shifts == 1 else weave(looks, size.grid, shifts)


def shift(image: UInt8[Array | np.ndarray, "b H W 1"], down: int, right: int) -> UInt8[Array | np.ndarray, "b H W 1"]:
    """The view `down` and `right` pixels further on in the image (negative: up, left); edges are repeated beyond it."""
    height, width = image.shape[1:3]
    rows, columns = (np.arange(height) + down).clip(0, height - 1), (np.arange(width) + right).clip(0, width - 1)
    return image[:, rows][:, :, columns]


def _look(run: Run, image: np.ndarray, batch_size: int) -> Array:
    if run.aligns_locally:
        return encode_images(run, image, batch_size=batch_size)[1]
    return _encode_patches(run.params, *on_mesh(run.params, image, rows=batch_size), model=run.model)


@functools.partial(jax.jit, static_argnames=("grid", "shifts"))
def weave(looks: list[Array], grid: int, shifts: int) -> Array:
    """Regions of shifted looks, moved down first, in one fine grid: look (a, b) holds every n-th row from a and column from b."""
    batch, _, width = looks[0].shape
    cells = jnp.stack(looks).reshape(shifts, shifts, batch, grid, grid, width)
    return cells.transpose(2, 3, 0, 4, 1, 5).reshape(batch, (grid * shifts) ** 2, width)


def fixed_size(count: int, sizes: Sequence[int] = BATCH_SIZES) -> int:
    """The number of rows to which `count` of them are padded: the smallest of the sizes that holds them, else a multiple of the last."""
    return next((size for size in sizes if size >= count), -(-count // sizes[-1]) * sizes[-1])


def fixed_batches(count: int, sizes: Sequence[int] = BATCH_SIZES) -> list[tuple[int, int, int]]:
    """Start, end and padded size of each batch; one empty batch where there is nothing, so that results keep their shapes."""
    spans = [(start, min(start + sizes[-1], count)) for start in range(0, max(count, 1), sizes[-1])]
    return [(start, end, fixed_size(end - start, sizes)) for start, end in spans]


def on_mesh(params: Params, *arrays: np.ndarray, rows: int) -> tuple[Any, ...]:
    """Arrays padded with zeros to `rows` and spread over the mesh on which the parameters lie, if they lie on one.

    Where several processes share the mesh, all of them hold the same arrays and come here together.
    """
    mesh = _mesh_of(params)
    parts = int(np.prod([mesh.shape[axis] for axis in BATCH_AXES])) if mesh else 1
    rows = -(-rows // parts) * parts
    padded = [pad_rows(array, rows) for array in arrays]
    return tuple(jax.device_put(array, batch_sharding(mesh)) if mesh else array for array in padded)


def pad_rows(array: np.ndarray, rows: int) -> np.ndarray:
    """The array with zeros behind it, `rows` in all."""
    return np.pad(array, [(0, rows - len(array))] + [(0, 0)] * (array.ndim - 1))


def to_host(tree: Any) -> Any:
    """NumPy copies of arrays, also of those of which other processes hold a part; then all of them come here together."""
    return jax.tree.map(_fetch, tree)


@functools.partial(jax.jit, static_argnames="model")
def _encode_image(params: Params, image: UInt8[Array, "B H W 1"], *, model: Model) -> tuple[Array, Array]:
    return model.encode_image(params, image)


@functools.partial(jax.jit, static_argnames="model")
def _encode_patches(params: Params, image: UInt8[Array, "B H W 1"], *, model: Model) -> Array:
    return model.encode_patches(params, image)


@functools.partial(jax.jit, static_argnames="model")
def _encode_report(
    params: Params, token_ids: Int32[Array, "B T"], sentence_ids: Int32[Array, "B T"], *, model: Model
) -> tuple[Array, Array, Array]:
    return model.encode_report(params, token_ids, sentence_ids)


def _fetch(array: Any) -> np.ndarray:
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def _mesh_of(params: Params) -> Mesh | None:
    leaf = jax.tree.leaves(params)[0] if jax.tree.leaves(params) else None
    sharding = getattr(leaf, "sharding", None)
    return sharding.mesh if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh) else None


def _read_config(workdir: Path) -> Config:
    file = workdir / CONFIG_FILE
    try:
        values = json.loads(file.read_text())
    except OSError as error:
        raise UserError(f"{workdir}: no {CONFIG_FILE}; expected a run directory of `msfl pretrain`") from error
    except ValueError as error:
        raise UserError(f"{file}: no JSON; expected the configuration that `msfl pretrain` wrote") from error
    return from_config_dict(values)
