"""Hard negatives of a global batch over eight virtual devices, each with the similarities of its own rows: what is drawn and what travels."""

import functools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from msfl_jax import losses, objective
from msfl_jax.config_files import load_config
from msfl_jax.model import Features, Model
from msfl_jax.objective import Weights
from msfl_jax.parallel.mesh import batch_sharding

from ..small import OVERRIDES, VOCABULARY

TEMPERATURE = 0.3
BATCH, WIDTH = 64, 16
MESHES = [(8, 1, 1), (2, 2, 2)]


class Found(NamedTuple):
    """What one program gives: the draw, the loss and metrics of instance matching, and the loss's gradient by both embeddings."""

    drawn: losses.Negatives
    loss: Any
    metrics: Any
    gradients: Any


def make_batch():
    """Embeddings, and keys by which about half of the studies have a twin in the batch."""
    rng = np.random.default_rng(0)
    images, reports = rng.normal(size=(2, BATCH, WIDTH)).astype(np.float32)
    return images, reports, rng.integers(0, BATCH, BATCH).astype(np.uint32)


@functools.cache
def made():
    """A model, the full weight of instance matching alone, and random parameters of its head."""
    config = load_config("demo:global,instance", [*OVERRIDES, "--config.objective.lambda_global=0.0"])
    model = Model.create(config, vocab_size=VOCABULARY)
    shapes = jax.eval_shape(model.init, jax.random.key(0))["heads"]["matching"]
    rng = np.random.default_rng(1)
    matching = jax.tree.map(lambda leaf: 0.3 * rng.normal(size=leaf.shape).astype(np.float32), shapes)
    return model, Weights.create(config), {"heads": {"matching": matching}}


def instance_matching(images, reports, study_key):
    """The draw and the loss of `objective.across_studies`, which is given the same key."""
    model, weights, params = made()
    key = jax.random.key(3)
    same_study = study_key[:, None] == study_key[None, :]

    def loss(images, reports):
        unused = jnp.zeros((BATCH, 1, 1))
        features = Features(images, reports, unused, unused, unused[..., 0] > 0, jnp.float32(TEMPERATURE))
        return objective.across_studies(params, features, study_key, key, model=model, weights=weights)

    similarity = objective.unit(images) @ objective.unit(reports).T / TEMPERATURE
    drawn = losses.sample_hard_negatives(similarity, key, exclude=same_study)
    (value, metrics), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(images, reports)
    return Found(drawn, value, metrics, gradients)


@functools.cache
def on_mesh(mesh):
    """What is found for rows that lie over the mesh, and the text of the compiled program."""
    program = jax.jit(instance_matching)
    with jax.set_mesh(mesh):
        rows = jax.device_put(make_batch(), batch_sharding(mesh))
        return jax.device_get(program(*rows)), program.lower(*rows).compile().as_text()


def by_hand():
    """The largest sum of similarity and Gumbel noise in each row, over float64 in NumPy: reports of images, then images of reports."""
    images, reports, study_key = make_batch()
    images, reports = (rows / np.linalg.norm(rows.astype(np.float64), axis=1)[:, None] for rows in (images, reports))
    similarity = images @ reports.T / TEMPERATURE
    other = study_key[:, None] != study_key
    keys = jax.random.split(jax.random.key(3))
    noise = [np.asarray(jax.random.gumbel(key, (BATCH, BATCH))) for key in keys]
    both = zip((similarity, similarity.T), noise, strict=True)
    return [np.argmax(np.where(other, rows + extra, -np.inf), axis=1) for rows, extra in both]


@pytest.mark.parametrize("shape", [(1, 1, 1), *MESHES], ids=str)
def test_the_same_negatives_are_drawn_on_one_device_and_on_eight_as_by_hand(mesh_of, shape):
    drawn = on_mesh(mesh_of(*shape))[0].drawn
    assert drawn.has_report.all()
    assert drawn.has_image.all()
    for ours, theirs in zip((drawn.report, drawn.image), by_hand(), strict=True):
        assert_array_equal(ours, theirs)


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_eight_devices_give_the_loss_of_matching_and_its_gradients_as_one(mesh_of, shape):
    found, expected = on_mesh(mesh_of(*shape))[0], on_mesh(mesh_of(1))[0]
    assert expected.loss > 0
    for ours, theirs in zip(jax.tree.leaves(found[1:]), jax.tree.leaves(expected[1:]), strict=True):
        assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_no_device_holds_the_similarities_of_the_global_batch(mesh_of, shape):
    """Neither they, nor the noise, nor which pairs are of one study, of any type."""
    assert f"[{BATCH},{BATCH}]" in on_mesh(mesh_of(1))[1]
    text = on_mesh(mesh_of(*shape))[1]
    assert f"[{BATCH},{BATCH}]" not in text
    moved = re.findall(r"= \(?\w+\[([\d,]*)\][^=\n]* (?:all-gather|all-to-all|collective-permute|all-reduce)\(", text)
    sizes = [np.prod([int(size) for size in dims.split(",") if size]) for dims in moved]
    assert sizes
    assert max(sizes) <= BATCH * WIDTH, "embeddings and what is drawn travel, rows of similarities do not"
