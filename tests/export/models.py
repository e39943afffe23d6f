"""Models of B/16's width and two layers, small images and few words, with random weights; and their outputs."""

import functools
from pathlib import Path

import jax
import numpy as np

from msfl_jax import presets
from msfl_jax.config import from_config_dict
from msfl_jax.encoders import masking_from_noise, take
from msfl_jax.export.changes import write_array
from msfl_jax.export.mapping import fixed_positions
from msfl_jax.export.names import NO_PATCH_BIAS, rows
from msfl_jax.export.trees import flatten
from msfl_jax.export.weight_files import WeightFile
from msfl_jax.model import Model

VOCAB = 60
SIDE, PATCH = 64, 16
GRID = SIDE // PATCH


def make(**changes):
    """A model; changes are given as `model__vision__depth=3`."""
    config = presets.pretraining("wide", presets.vit_b16(report_layers=2))
    sizes = {
        "model__vision": {"image_size": SIDE, "depth": 2},
        "model__text": {"max_tokens": 24},
        "model__pixel_decoder": {"width": 96, "depth": 2, "heads": 6},
        "model": {"compute_dtype": "float32", "matching_width": 32},
    }
    for path, values in sizes.items():
        functools.reduce(getattr, path.split("__"), config).update(values)
    for path, value in changes.items():
        *parents, name = path.split("__")
        setattr(functools.reduce(getattr, parents, config), name, value)
    return Model.create(from_config_dict(config), vocab_size=VOCAB)


def tiny(**changes):
    """The same with 8 wide layers, for what is about names alone."""
    small = {
        **dict.fromkeys(("model__vision__width", "model__text__width", "model__pixel_decoder__width"), 8),
        **dict.fromkeys(("model__vision__heads", "model__text__heads", "model__pixel_decoder__heads"), 2),
        **{"model__embedding_width": 8, "model__region_width": 8, "model__matching_width": 4},
    }
    return make(**small | changes)


@functools.cache
def shapes(model):
    return jax.eval_shape(model.init, jax.random.key(0))


def random_params(model, seed=0):
    """Random values everywhere, so that no bias is 0 and no scale 1, and a swapped name cannot hide."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        around = 1.0 if path[-1].key == "scale" else 0.0
        return (around + 0.05 * rng.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes(model))


def patches(seed=1, batch=2, grid=GRID):
    """Normalised grey patches [B, P, K]."""
    return np.random.default_rng(seed).standard_normal((batch, grid**2, PATCH**2)).astype(np.float32)


def colour_images(grey):
    """Patches as images of three equal colours [B, 3, H, W]."""
    batch, count, _ = grey.shape
    grid = round(count**0.5)
    rows = grey.reshape(batch, grid, grid, PATCH, PATCH).transpose(0, 1, 3, 2, 4)
    return np.repeat(rows.reshape(batch, 1, grid * PATCH, grid * PATCH), 3, axis=1)


@functools.partial(jax.jit, static_argnums=0)
def see(model, params, grey):
    """All tokens of images after the final norm, the class token first."""
    tokens = model.vision.apply({"params": params["vision"]}, grey)
    return jax.numpy.concatenate([tokens.cls[:, None], tokens.patches], axis=1)


@functools.partial(jax.jit, static_argnums=0)
def read(model, params, ids):
    """Token states of reports, and logits over the words."""
    states = model.text.apply({"params": params["text"]}, ids)
    words = params["text"]["word_embeddings"]["embedding"]
    return states, model._language.apply({"params": params["heads"]["language"]}, states, words)


@functools.partial(jax.jit, static_argnums=(0, 4))
def rebuild(model, params, grey, noise, visible):
    """Predicted pixels of all patches, from those with the smallest noise."""
    masking = masking_from_noise(noise, visible)
    tokens = model.vision.apply({"params": params["vision"]}, take(grey, masking.kept), masking.kept)
    decoder = {"params": params["pixel_decoder"]}
    return model.pixel_decoder.apply(decoder, tokens.patches, tokens.cls, masking.restore)


def token_ids(batch=3, length=20, seed=2):
    """Reports of several lengths, padded with 0."""
    ids = np.random.default_rng(seed).integers(5, VOCAB, (batch, length)).astype(np.int32)
    for row, end in enumerate(range(length, length - 5 * batch, -5)):
        ids[row, end:] = 0
    return ids


def written(form, params, config):
    """Tensors of any format, also of those that we only read, with the names of the table alone."""
    own = flatten(params) | (fixed_positions(config) if form != "msfl" else {})
    pieces = {}
    for row in sorted(rows(form, own), key=lambda row: row.part):
        if not (row.path == "vision/patch_embed/bias" and form in NO_PATCH_BIAS):
            pieces.setdefault(row.name, []).append(write_array(own[row.path], row))
    tensors = {name: np.concatenate(piece) if piece[0].ndim else piece[0] for name, piece in pieces.items()}
    return tensors | ({"bert_mlp.weight": np.zeros((2, 2), np.float32)} if form == "mrm" else {})


def as_file(tensors, **beside):
    """Tensors as if they had been read."""
    return WeightFile(Path("w"), "safetensors", tensors, "0" * 64, **beside)
