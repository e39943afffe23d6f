"""The global loss against plain loops and its closed-form limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads
from numpy.testing import assert_allclose, assert_array_equal

from msfl_jax.losses import global_alignment
from msfl_jax.vectors import unit

DIRECTIONS = ("symmetric", "image_to_report", "report_to_image")


@pytest.fixture(autouse=True, scope="module")
def float64():
    with jax.enable_x64():
        yield


def embeddings(batch=4, width=3, seed=0):
    return tuple(np.random.default_rng(seed).normal(size=(2, batch, width)))


def loop_loss(images, reports, temperature, direction, same_study):
    logits = np.array([[v @ t / np.linalg.norm(v) / np.linalg.norm(t) for t in reports] for v in images]) / temperature
    losses = []
    for i in range(len(logits)):
        columns = [j for j in range(len(logits)) if i == j or not same_study[i, j]]
        rows = [j for j in range(len(logits)) if i == j or not same_study[j, i]]
        to_report = -np.log(np.exp(logits[i, i]) / sum(np.exp(logits[i, j]) for j in columns))
        to_image = -np.log(np.exp(logits[i, i]) / sum(np.exp(logits[j, i]) for j in rows))
        losses.append(
            {"image_to_report": to_report, "report_to_image": to_image}.get(direction, (to_report + to_image) / 2)
        )
    return np.mean(losses)


@settings(max_examples=40)
@given(
    batch=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 2**32 - 1),
    temperature=st.floats(0.05, 5.0),
    direction=st.sampled_from(DIRECTIONS),
    pairs=st.lists(st.booleans(), min_size=16, max_size=16),
)
def test_the_loss_equals_a_loop_over_pairs(batch, seed, temperature, direction, pairs):
    images, reports = embeddings(batch, seed=seed)
    same_study = np.array(pairs).reshape(4, 4)[:batch, :batch]
    loss = jax.jit(global_alignment, static_argnames="direction")(
        images, reports, temperature=jnp.asarray(temperature), direction=direction, same_study=same_study
    )
    assert_allclose(loss, loop_loss(images, reports, temperature, direction, same_study), rtol=1e-9, atol=1e-12)


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(1e-3, 1e3))
def test_the_length_of_embeddings_does_not_matter(seed, scale):
    images, reports = embeddings(seed=seed)
    loss = jax.jit(global_alignment)
    assert_allclose(loss(scale * images, reports, temperature=0.07), loss(images, reports, temperature=0.07), rtol=1e-9)


def test_gradients_equal_central_differences_in_embeddings_and_temperature():
    images, reports = map(jnp.asarray, embeddings())
    same_study = jnp.zeros((4, 4), bool).at[0, 2].set(True)
    loss = jax.jit(lambda v, t, temperature: global_alignment(v, t, temperature=temperature, same_study=same_study))
    check_grads(loss, (images, reports, jnp.asarray(0.2)), order=1, modes=["rev"], eps=1e-5, atol=1e-6, rtol=1e-6)


def test_equal_embeddings_cost_the_logarithm_of_the_batch_and_aligned_ones_nothing():
    assert_allclose(global_alignment(jnp.ones((5, 3)), jnp.ones((5, 3)), temperature=0.07), np.log(5), rtol=1e-12)
    assert global_alignment(jnp.eye(5), jnp.eye(5), temperature=0.01) < 1e-12


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_degenerate_batches_stay_finite_with_finite_gradients(direction, dtype):
    images, reports = embeddings()
    loss = jax.jit(
        jax.value_and_grad(
            lambda v, t, same: global_alignment(v, t, temperature=0.07, direction=direction, same_study=same),
            argnums=(0, 1),
        )
    )
    for v, t, same in [
        (images, reports, np.ones((4, 4), bool)),
        (np.ones_like(images), np.ones_like(reports), np.eye(4, dtype=bool)),
        (np.zeros_like(images), reports, np.zeros((4, 4), bool)),
        (np.zeros_like(images), np.zeros_like(reports), np.zeros((4, 4), bool)),
    ]:
        value, gradients = loss(jnp.asarray(v, dtype), jnp.asarray(t, dtype), jnp.asarray(same))
        assert np.isfinite(value)
        assert all(np.isfinite(np.asarray(gradient, np.float64)).all() for gradient in gradients)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_batch_of_one_and_a_batch_of_one_study_cost_nothing(direction):
    images, reports = map(jnp.asarray, embeddings())
    assert global_alignment(images[:1], reports[:1], temperature=0.07, direction=direction) == 0
    one_study = jnp.ones((4, 4), bool)
    assert_allclose(
        global_alignment(images, reports, temperature=0.07, direction=direction, same_study=one_study), 0, atol=1e-15
    )


def test_half_precision_is_computed_in_float32_and_float64_stays():
    images, reports = map(jnp.asarray, embeddings())
    expected = loop_loss(
        *(np.asarray(x.astype("bfloat16"), float) for x in (images, reports)), 0.07, "symmetric", np.zeros((4, 4))
    )
    loss = global_alignment(images.astype("bfloat16"), reports.astype("bfloat16"), temperature=0.07)
    assert loss.dtype == jnp.float32
    assert_allclose(loss, expected, rtol=1e-5)
    assert global_alignment(images, reports, temperature=0.07).dtype == jnp.float64


def test_a_zero_vector_stays_zero_with_gradient_zero():
    assert_array_equal(unit(jnp.zeros((2, 3))), 0)
    assert_array_equal(jax.grad(lambda x: unit(x).sum())(jnp.zeros((2, 3))), 0)
    assert_allclose(jnp.linalg.norm(unit(jnp.asarray(embeddings()[0])), axis=-1), 1, rtol=1e-15)
