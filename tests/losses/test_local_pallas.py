"""The TPU kernels of local alignment, interpreted on CPU, against the plain version in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu
from numpy.testing import assert_allclose, assert_array_equal

from msfl_jax.losses import local_alignment, local_scores
from msfl_jax.losses.local_pallas import Tiles

FORMS = ("gloria", "regions")


def make_batch(images, reports, sentences, patches, width, seed=0, size=1.0, lengths=None):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, sentences + 1, reports) if lengths is None else np.asarray(lengths)
    return (
        (size * rng.normal(size=(images, patches, width))).astype("float32"),
        (size * rng.normal(size=(reports, sentences, width))).astype("float32"),
        np.arange(sentences) < lengths[:, None],
    )


def scores_and_gradients(regions, sentences, mask, **options):
    """Scores, and the gradients of their sum with weights of both signs."""
    return program(tuple(sorted(options.items())))(*map(jnp.asarray, (regions, sentences, mask)))


@functools.cache
def program(options):
    """Compiled once for all batches of a shape."""

    @jax.jit
    def compute(regions, sentences, mask):
        scores, backward = jax.vjp(lambda v, t: local_scores(v, t, mask, **dict(options)), regions, sentences)
        weights = jnp.asarray(np.random.default_rng(1).normal(size=scores.shape), scores.dtype)
        return scores, *backward(weights)

    return compute


def in_float64(regions, sentences, mask, **options):
    """What the plain version gives in float64."""
    with jax.enable_x64():
        wide = (np.asarray(regions, "float64"), np.asarray(sentences, "float64"), mask)
        return [np.asarray(found) for found in scores_and_gradients(*wide, **options)]


def assert_equal_to_plain(batch, kernel="interpreted", **options):
    expected = in_float64(*batch, **options)
    for ours, exact in zip(scores_and_gradients(*batch, kernel=kernel, **options), expected, strict=True):
        assert ours.dtype == jnp.float32
        assert_allclose(ours, exact, rtol=2e-5, atol=2e-5 * max(1, np.abs(exact).max()))


SHAPES = {
    "one register": {"images": 3, "reports": 5, "sentences": 3, "patches": 8, "width": 128},
    "filled up": {"images": 3, "reports": 5, "sentences": 3, "patches": 5, "width": 6},
    "more patches than values": {"images": 2, "reports": 3, "sentences": 2, "patches": 19, "width": 3},
    "several tiles of both": {"images": 10, "reports": 130, "sentences": 2, "patches": 5, "width": 3},
    "one of each": {"images": 1, "reports": 1, "sentences": 1, "patches": 1, "width": 1},
}


@pytest.mark.parametrize("attention, aggregate", [("gloria", "sum"), ("regions", "mean")])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_scores_and_gradients_are_those_of_the_plain_version(shape, attention, aggregate):
    assert_equal_to_plain(make_batch(**shape), attention=attention, aggregate=aggregate)


@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([0.05, 1.0, 2.0]),
    attention=st.sampled_from(FORMS),
    aggregate=st.sampled_from(["sum", "mean"]),
    lengths=st.lists(st.integers(0, 3), min_size=5, max_size=5),
)
def test_they_are_for_ragged_reports(seed, size, attention, aggregate, lengths):
    batch = make_batch(**SHAPES["filled up"], seed=seed, size=size, lengths=lengths)
    assert_equal_to_plain(batch, attention=attention, aggregate=aggregate)


@pytest.mark.parametrize("attention", FORMS)
@pytest.mark.parametrize("region_scale", [20.0, 50.0])
def test_they_are_where_no_weight_may_come_from_what_fills_an_image_up(attention, region_scale):
    """All regions point away from all sentences: a zero vector would be the best of them."""
    regions, sentences, mask = make_batch(**SHAPES["filled up"])
    sentences = np.abs(sentences) + 0.5
    regions = -np.abs(regions) - 0.5
    assert_equal_to_plain((regions, sentences, mask), attention=attention, region_scale=region_scale)


@pytest.mark.parametrize("attention", FORMS)
def test_scales_act_where_the_equation_has_them(attention):
    batch = make_batch(**SHAPES["filled up"])
    assert_equal_to_plain(batch, attention=attention, region_scale=7.0, sentence_scale=3.0)


@pytest.mark.parametrize("attention", FORMS)
def test_a_core_that_starts_with_arbitrary_memory_computes_the_same(attention):
    """JAX's own model of a core: memory starts as NaN, copies are made when they are waited for, tiles come in any order where that is allowed."""
    batch = make_batch(**SHAPES["several tiles of both"])
    with pltpu.force_tpu_interpret_mode(pltpu.InterpretParams(random_seed=0)):
        assert_equal_to_plain(batch, kernel="pallas", attention=attention)


@pytest.mark.parametrize("attention", FORMS)
@pytest.mark.parametrize("patches, width", [(20, 48), (72, 16)])
def test_products_of_bfloat16_are_summed_in_float32(attention, patches, width):
    """Against float64 at the same rounded inputs: sums in bfloat16 would be 3 % off."""
    batch = make_batch(images=16, reports=16, sentences=3, patches=patches, width=width, size=0.5)
    mask = jnp.asarray(batch[2])
    rounded = [jnp.asarray(array, "bfloat16") for array in batch[:2]]

    def compute(arrays, kernel):
        loss = jax.value_and_grad(lambda v, t: local_alignment(v, t, mask, attention=attention, kernel=kernel), (0, 1))
        return jax.jit(loss)(*arrays)

    value, gradients = compute(rounded, "interpreted")
    with jax.enable_x64():
        exact, expected = compute([array.astype("float64") for array in rounded], "xla")
    assert value.dtype == jnp.float32
    assert_allclose(value, exact, rtol=1e-3)
    for ours, theirs in zip(gradients, expected, strict=True):
        assert ours.dtype == jnp.bfloat16
        difference = np.linalg.norm(np.asarray(ours, np.float64) - theirs)
        assert difference < 0.015 * np.linalg.norm(theirs)


@pytest.mark.parametrize("attention", FORMS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_degenerate_batches_stay_finite_with_finite_gradients(attention, dtype):
    regions, sentences, mask = make_batch(**SHAPES["filled up"])
    cases = {
        "nothing but padding": (regions, sentences, np.zeros_like(mask)),
        "zero regions": (np.zeros_like(regions), sentences, mask),
        "zero sentences": (regions, np.zeros_like(sentences), mask),
        "identical": (np.ones_like(regions), np.ones_like(sentences), mask),
        "large": (30 * regions, 30 * sentences, mask),
    }
    for name, (v, t, real) in cases.items():
        arrays = (jnp.asarray(v, dtype), jnp.asarray(t, dtype), real)
        scores, *gradients = scores_and_gradients(*arrays, attention=attention, kernel="interpreted")
        assert scores.dtype == jnp.float32
        assert_array_equal(np.asarray(scores)[:, ~real.any(axis=1)], 0)
        for gradient in gradients:
            assert gradient.dtype == dtype
            assert np.isfinite(np.asarray(gradient, np.float32)).all(), name
        assert_array_equal(np.asarray(gradients[1], np.float32)[~real], 0)


@pytest.mark.parametrize("images, reports", [(0, 5), (5, 0)])
def test_nothing_to_compare_is_no_score(images, reports):
    batch = make_batch(**SHAPES["filled up"] | {"images": images, "reports": reports})
    scores, *gradients = scores_and_gradients(*batch, kernel="interpreted")
    assert scores.shape == (images, reports)
    for gradient, array in zip(gradients, batch[:2], strict=True):
        assert_array_equal(gradient, np.zeros_like(array))


def test_float64_is_refused():
    with jax.enable_x64():
        arrays = (np.zeros((1, 2, 3)), np.zeros((1, 2, 3)), np.ones((1, 2), bool))
        with pytest.raises(ValueError, match="not in float64; expected kernel xla"):
            local_scores(*map(jnp.asarray, arrays), kernel="pallas")


@given(
    images=st.integers(1, 5000),
    patches=st.integers(1, 256),
    width=st.sampled_from([1, 96, 128, 512, 768]),
    sentences=st.integers(1, 17),
    itemsize=st.sampled_from([2, 4]),
)
def test_tiles_are_whole_registers_and_no_larger_than_needed(images, patches, width, sentences, itemsize):
    tiles = Tiles.of((images, patches, width), (64, sentences, width), itemsize)
    rows = 32 // itemsize
    assert tiles.patches % rows == 0 <= tiles.patches - patches < rows
    assert tiles.width % 128 == 0 <= tiles.width - width < 128
    assert tiles.columns == 128 * sentences
    assert 1 <= tiles.images <= min(8, images)
    assert tiles.images == 1 or tiles.vmem <= 16 * 2**20


def test_what_does_not_fit_into_fast_memory_is_refused_in_one_line():
    with pytest.raises(
        ValueError, match=r"^64 sentences and 576 patches of 1024 values need \d+ MiB .*; .* at most 48$"
    ):
        Tiles.of((64, 576, 1024), (64, 64, 1024), 2)
