"""The PyTorch peer of the benchmarks against our own model: were its numbers others, its times would say nothing."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from msfl_jax import losses

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import torch_losses


@pytest.mark.parametrize("attention", ["gloria", "regions"])
@pytest.mark.parametrize("aggregate", ["sum", "mean"])
@pytest.mark.parametrize("patches, width", [(6, 8), (9, 4)], ids=["gram", "contexts"])
def test_local_losses_equal_ours_in_value_and_gradient(attention, aggregate, patches, width):
    rng = np.random.default_rng(0)
    regions, sentences = rng.normal(size=(5, patches, width)), rng.normal(size=(5, 4, width))
    mask = np.array([[1, 1, 0, 0], [1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0]], bool)
    same = np.eye(5, dtype=bool)
    same[0, 3] = same[3, 0] = True
    options = {"attention": attention, "aggregate": aggregate, "region_scale": 3.0, "sentence_scale": 5.0}
    options |= {"logit_scale": 2.0}

    def ours(v, t):
        return losses.local_alignment(v, t, jnp.asarray(mask), same_study=jnp.asarray(same), **options)

    with jax.enable_x64():
        value, gradients = jax.value_and_grad(ours, argnums=(0, 1))(jnp.asarray(regions), jnp.asarray(sentences))
        value, gradients = float(value), [np.asarray(gradient) for gradient in gradients]
    for peer, more in [
        (torch_losses.local_loop, {}),
        (torch_losses.local_vectorised, {}),
        (torch_losses.local_vectorised, {"gram": True}),
        (torch_losses.local_blockwise, {"block": 2}),
    ]:
        v, t = (torch.tensor(array, requires_grad=True) for array in (regions, sentences))
        found = peer(v, t, torch.tensor(mask), same_study=torch.tensor(same), **options, **more)
        found.backward()
        assert_allclose(found.item(), value, rtol=1e-9)
        for tensor, gradient in zip((v, t), gradients, strict=True):
            assert_allclose(tensor.grad.numpy(), gradient, rtol=1e-8, atol=1e-12)
