"""Global alignment over eight virtual devices, gathered and around the ring, against the global view on one."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from msfl_jax import losses
from msfl_jax.parallel.global_alignment import global_alignment
from msfl_jax.parallel.mesh import batch_sharding

NAMES = ("all-gather", "reduce-scatter", "all-reduce", "collective-permute", "all-to-all")


def make_batch(batch=32, width=6, dtype="float64"):
    rng = np.random.default_rng(batch)
    keys = rng.integers(0, batch, batch)
    images, reports = rng.normal(size=(2, batch, width)).astype(dtype)
    return images, reports, keys[:, None] == keys


def with_gradients(alignment, direction="symmetric"):
    """Value, and gradients by both embeddings and the temperature."""

    def loss(images, reports, temperature, same_study):
        return alignment(images, reports, temperature=temperature, direction=direction, same_study=same_study)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))


def on_mesh(mesh, batch, exchange, direction="symmetric"):
    images, reports, same_study = batch

    def alignment(*embeddings, **options):
        return global_alignment(*embeddings, exchange=exchange, **options)

    with jax.set_mesh(mesh):
        placed = [jax.device_put(array, batch_sharding(mesh)) for array in (images, reports)]
        temperature = jnp.asarray(0.07, images.dtype)
        return with_gradients(alignment, direction)(*placed, temperature, same_study)


@functools.cache
def expected(direction):
    images, reports, same_study = map(jnp.asarray, make_batch())
    return with_gradients(losses.global_alignment, direction)(
        images, reports, jnp.asarray(0.07, images.dtype), same_study
    )


def assert_as_the_global_view(mesh, exchange, direction):
    with jax.enable_x64():
        found = on_mesh(mesh, make_batch(), exchange, direction)
        for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected(direction)), strict=True):
            assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("exchange", ["gather", "ring"])
@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 4, 1), (2, 2, 2), (1, 1, 8)], ids=str)
def test_eight_devices_give_what_the_global_view_gives(mesh_of, shape, exchange):
    assert_as_the_global_view(mesh_of(*shape), exchange, "symmetric")


@pytest.mark.parametrize("exchange", ["gather", "ring"])
@pytest.mark.parametrize("direction", ["image_to_report", "report_to_image"])
def test_so_they_do_in_each_direction(mesh_of, direction, exchange):
    assert_as_the_global_view(mesh_of(4, 2), exchange, direction)


def collectives(mesh, exchange):
    images, _, same_study = make_batch(batch=64, width=16, dtype="float32")

    def loss(images, reports):
        excluded = jnp.asarray(same_study)
        return global_alignment(images, reports, temperature=0.07, same_study=excluded, exchange=exchange)

    with jax.set_mesh(mesh):
        shape = jax.ShapeDtypeStruct(images.shape, images.dtype, sharding=batch_sharding(mesh))
        text = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(shape, shape).compile().as_text()
    return {name: len(re.findall(rf"= [^=\n]* {name}(?:-start)?\(", text)) for name in NAMES}, text


def test_report_embeddings_are_gathered_and_their_gradient_scattered_once(mesh_of):
    found, text = collectives(mesh_of(8), "gather")
    assert found["reduce-scatter"] == 1
    assert 1 <= found["all-gather"] <= 2  # embeddings, and which of them exist
    assert found["all-to-all"] == found["collective-permute"] == 0
    assert "f32[64,64]" not in text  # the logits of the global batch


def test_the_ring_never_holds_the_global_batch(mesh_of):
    found, text = collectives(mesh_of(8), "ring")
    assert found["all-gather"] == found["reduce-scatter"] == found["all-to-all"] == 0
    assert "f32[64,16]" not in text
    assert "f32[64,64]" not in text
