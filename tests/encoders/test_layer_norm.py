"""LayerNorm against a loop in NumPy, and its written gradient against PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from msfl_jax.encoders.layer_norm import LayerNorm, normalise


def draw(seed, shape, level=0.0):
    rng = np.random.default_rng(seed)
    tokens, slope = (rng.standard_normal(shape) for _ in range(2))
    scale, bias = (rng.standard_normal(shape[-1]) for _ in range(2))
    return tokens + level, scale, bias, slope


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 99),
    shape=st.sampled_from([(3,), (4, 5), (2, 3, 8)]),
    level=st.sampled_from([0.0, 30.0]),
    epsilon=st.sampled_from([1e-6, 1e-12]),
)
def test_values_and_gradients_in_float64_are_those_of_pytorch(seed, shape, level, epsilon):
    *inputs, slope = draw(seed, shape, level)
    theirs = [torch.tensor(array, requires_grad=True) for array in inputs]
    expected = torch.nn.functional.layer_norm(theirs[0], shape[-1:], *theirs[1:], eps=epsilon)
    expected.backward(torch.tensor(slope))
    with jax.enable_x64():
        found, pull = jax.vjp(lambda *given: normalise(*given, epsilon, "float64"), *map(jnp.asarray, inputs))
        gradients = pull(jnp.asarray(slope))
    assert_allclose(found, expected.detach(), rtol=1e-9, atol=1e-9)
    for ours, other in zip(gradients, theirs, strict=True):
        assert_allclose(ours, other.grad, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_each_row_is_normalised_in_float32_whatever_its_dtype(dtype):
    tokens = jnp.asarray(draw(0, (6, 64), level=100.0)[0], dtype)
    norm = LayerNorm(1e-6, dtype)
    params = norm.init(jax.random.key(0), tokens)
    found = norm.apply(params, tokens)
    assert found.dtype == dtype
    for row, values in zip(np.asarray(tokens, np.float64), np.asarray(found, np.float64), strict=True):
        assert_allclose(
            values, (row - row.mean()) / np.sqrt(row.var() + 1e-6), atol=1e-4 if dtype == "float32" else 0.02
        )
    assert {name: (leaf.dtype, leaf.shape) for name, leaf in params["params"].items()} == dict.fromkeys(
        ("scale", "bias"), (jnp.float32, (64,))
    )


def test_a_row_of_equal_values_has_finite_gradients():
    slope = jnp.ones((2, 8))
    _, pull = jax.vjp(lambda x: normalise(x, jnp.ones(8), jnp.zeros(8), 1e-12, "float32"), jnp.full((2, 8), 3.0))
    assert np.isfinite(pull(slope)[0]).all()
