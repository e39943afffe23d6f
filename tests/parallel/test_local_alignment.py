"""Local alignment over eight virtual devices against one: values, gradients, groups, and what travels."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from input_pipeline.errors import UserError
from msfl_jax import losses
from msfl_jax.config_files import load_config
from msfl_jax.parallel.local_alignment import check_kernel, local_alignment
from msfl_jax.parallel.mesh import batch_sharding

MESHES = [(8, 1, 1), (2, 4, 1), (2, 2, 2), (1, 1, 8)]
EIGHT = {"data": 8, "fsdp": 1, "tensor": 1}


def make_batch(batch=32, sentences=3, patches=4, width=6, dtype="float64", seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, sentences + 1, batch)
    keys = rng.integers(0, batch, batch)
    return (
        rng.normal(size=(batch, patches, width)).astype(dtype),
        rng.normal(size=(batch, sentences, width)).astype(dtype),
        np.arange(sentences) < lengths[:, None],
        keys[:, None] == keys,
    )


def on_mesh(mesh, batch, **options):
    """Loss and gradients by regions and sentences, computed on the mesh."""

    def loss(regions, sentences, mask, same_study):
        return local_alignment(regions, sentences, mask, same_study=same_study, **options)

    with jax.set_mesh(mesh):
        placed = [jax.device_put(array, batch_sharding(mesh)) for array in batch]
        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(*placed)


def on_one_device(batch, group=None, **options):
    """The mean over groups of the plain loss, one group after the other."""
    rows = list(map(jnp.asarray, batch))
    size = len(rows[0]) if group is None else group
    groups = len(rows[0]) // size

    def loss(regions, sentences, mask, same_study):
        return losses.local_alignment(regions, sentences, mask, same_study=same_study, **options)

    one = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    spans = [slice(first, first + size) for first in range(0, len(rows[0]), size)]
    found = [one(*(array[span] for array in rows[:3]), rows[3][span, span]) for span in spans]
    value = sum(value for value, _ in found) / groups
    return value, tuple(jnp.concatenate(parts) / groups for parts in zip(*(by for _, by in found), strict=True))


def assert_same(found, expected, tolerance):
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("exchange", ["gather", "ring"])
@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_eight_devices_give_what_one_gives(mesh_of, shape, exchange):
    with jax.enable_x64():
        batch = make_batch()
        assert_same(on_mesh(mesh_of(*shape), batch, exchange=exchange), on_one_device(batch), 1e-10)


@pytest.mark.parametrize("exchange", ["gather", "ring"])
@pytest.mark.parametrize("options", [{"attention": "regions", "aggregate": "mean"}, {"direction": "report_to_image"}])
def test_so_they_do_in_every_form_and_in_float32(mesh_of, exchange, options):
    batch = make_batch(dtype="float32")
    assert_same(on_mesh(mesh_of(4, 2), batch, exchange=exchange, **options), on_one_device(batch, **options), 1e-5)


@pytest.mark.parametrize("group", [1, 2, 4, 8, 16])
def test_groups_are_each_others_only_negatives_on_any_mesh(mesh_of, group):
    """Smaller than what a device has, as large, and larger: only these are exchanged."""
    with jax.enable_x64():
        batch = make_batch(batch=16)
        expected = on_one_device(batch, group=group)
        for devices in (1, 4, 8):
            for exchange in ("gather", "ring") if group > 16 // devices else ("gather",):
                found = on_mesh(mesh_of(devices), batch, group=group, exchange=exchange)
                assert_same(found, expected, 1e-10)


@pytest.mark.parametrize(
    "shape, batch, group",
    [
        ((2, 2, 2), 12, None),  # rows do not divide by all devices: those of a tensor group hold the same
        ((2, 2, 2), 32, 8),  # groups of two devices
        ((2, 2, 2), 32, 16),
        ((2, 1, 4), 24, 4),  # fit two devices and not eight
        ((8, 1, 1), 48, 4),  # fit no number of devices
        ((8, 1, 1), 48, 12),
    ],
)
def test_rows_and_groups_that_do_not_fit_all_devices_give_the_same(mesh_of, shape, batch, group):
    with jax.enable_x64():
        rows = make_batch(batch=batch)
        assert_same(on_mesh(mesh_of(*shape), rows, group=group), on_one_device(rows, group=group), 1e-10)


def test_groups_that_do_not_divide_the_batch_are_refused(mesh_of):
    with pytest.raises(ValueError, match="groups of 5 negatives; expected a divisor of the batch size 32"):
        on_mesh(mesh_of(8), make_batch(), group=5)


def test_gradients_of_bfloat16_sentences_are_added_up_in_float32(mesh_of):
    """Gathered or passed around, against one device: sums of eight parts in bfloat16 would be further off than its last digit."""
    regions, sentences, mask, same_study = make_batch(dtype="float32")
    batch = (regions.astype("bfloat16"), sentences.astype("bfloat16"), mask, same_study)
    _, expected = on_one_device(tuple(map(jnp.asarray, (*(a.astype("float32") for a in batch[:2]), mask, same_study))))
    for exchange in ("gather", "ring"):
        _, found = on_mesh(mesh_of(8), batch, exchange=exchange)
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.dtype == jnp.bfloat16
            difference = np.asarray(ours, np.float32) - theirs
            assert np.linalg.norm(difference) < 0.01 * np.linalg.norm(theirs)


def collectives(mesh, exchange, group=None):
    """How often each collective stands in the compiled loss and gradient."""
    batch = make_batch(batch=64, patches=9, width=16, dtype="float32")

    def loss(regions, sentences, mask, same_study):
        return local_alignment(regions, sentences, mask, exchange=exchange, group=group, same_study=same_study)

    with jax.set_mesh(mesh):
        arrays = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=batch_sharding(mesh)) for a in batch]
        text = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*arrays).compile().as_text()
    names = ("all-gather", "reduce-scatter", "all-reduce", "collective-permute", "all-to-all")
    return {name: len(re.findall(rf"= [^=\n]* {name}(?:-start)?\(", text)) for name in names}, text


def test_only_sentences_are_gathered_and_their_gradient_scattered_once(mesh_of):
    found, _ = collectives(mesh_of(8), "gather")
    assert found["reduce-scatter"] == 1
    assert 1 <= found["all-gather"] <= 2
    assert found["all-to-all"] == found["collective-permute"] == 0


def test_groups_within_a_device_exchange_nothing_but_the_loss(mesh_of):
    found, _ = collectives(mesh_of(8), "gather", group=4)
    assert found["all-reduce"] == 1
    assert sum(found.values()) == 1


def test_the_ring_gathers_nothing(mesh_of):
    found, text = collectives(mesh_of(8), "ring")
    assert found["all-gather"] == found["reduce-scatter"] == found["all-to-all"] == 0
    assert found["collective-permute"] == 5  # sentences and mask in each pass, and the gradient backward
    assert "f32[64,3,16]" not in text  # the sentences of the global batch


@pytest.mark.parametrize("exchange", ["gather", "ring"])
def test_the_kernels_of_a_tpu_give_the_same_on_eight_devices(mesh_of, exchange):
    batch = make_batch(dtype="float32")
    found = on_mesh(mesh_of(4, 2), batch, exchange=exchange, kernel="interpreted")
    assert_same(found, on_one_device(batch), 2e-5)


@pytest.mark.parametrize(
    "platform, overrides, fault",
    [
        ("cpu", [], "the kernel is for TPUs, and the devices here are of kind cpu"),
        ("tpu", ["objective.local_alignment.negatives=group(96)"], "neither has a device whole groups of 96 rows"),
        ("tpu", ["text.max_sentences=64"], "65 sentences and 196 patches of 768 values need"),
        ("tpu", [], None),
        ("cpu", ["objective.lambda_local=0.0"], None),
        ("cpu", ["objective.local_alignment.kernel=xla"], None),
    ],
)
def test_where_the_kernels_cannot_run_they_are_refused_in_one_line(platform, overrides, fault):
    overrides = ["objective.local_alignment.kernel=pallas", "data.batch_size=4032", *overrides]
    config = load_config("mimic_vit_b16", [f"--config.{override}" for override in overrides])
    if fault is None:
        check_kernel(config, EIGHT, platform)
    else:
        with pytest.raises(UserError, match=rf"^config: '[a-z_.]*kernel' is 'pallas'; expected 'xla': {fault}.*$"):
            check_kernel(config, EIGHT, platform)
