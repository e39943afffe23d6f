"""The PyTorch peer of the benchmarks against our own model: were its numbers others, its times would say nothing."""

import dataclasses
import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from msfl_jax import losses, objective
from msfl_jax.config import to_dict
from msfl_jax.export.mapping import to_format
from msfl_jax.model import Keys, Model

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import step
import step_common
import torch_losses
import torch_model
from step_ours import random_negatives

WIDTH, HEADS, ROWS, WORDS = 32, 2, 3, 40


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
        differentiated = jax.jit(jax.value_and_grad(ours, argnums=(0, 1)))
        value, gradients = differentiated(jnp.asarray(regions), jnp.asarray(sentences))
        value, gradients = float(value), [np.asarray(gradient) for gradient in gradients]
    for peer, more in [
        (torch_losses.local_loop, {}),
        (torch_losses.local_loop, {"copies": False}),
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


def small(size):
    """A shipped configuration with narrow, shallow parts and small images: every option as it is."""
    config, _ = step.benchmark_config(size)
    model, narrow = config.model, {"width": WIDTH, "heads": HEADS, "depth": 1}
    vision = dataclasses.replace(model.vision, **narrow, image_size=4 * model.vision.patch_size)
    model = dataclasses.replace(
        model,
        vision=vision,
        text=dataclasses.replace(model.text, **narrow, max_tokens=32),
        pixel_decoder=dataclasses.replace(model.pixel_decoder, **narrow),
        embedding_width=WIDTH,
        region_width=WIDTH,
        matching_width=WIDTH,
        compute_dtype="float32",
        scan_layers=False,
    )
    return random_negatives(dataclasses.replace(config, model=model))


@pytest.mark.parametrize("size", ["tiny", "s16-one-pass", "b16"])
def test_the_whole_step_has_our_loss_and_gradients(size):
    config = small(size)
    model = Model.create(config, vocab_size=WORDS)
    params, keys = step.random_params(model), Keys.at(config.seed, 0)
    batch = step.make_batch(config, WORDS, ROWS, seed=0)
    drawn = step.draw(model, batch, keys)
    loss = functools.partial(objective.total, model=model, weights=objective.Weights.create(config).at(1))
    (value, _), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, batch, keys)

    settings = step_common.named({"config": to_dict(config), "vocab_size": WORDS})
    tensors = {name: torch.tensor(array) for name, array in to_format(params, "msfl", config).items()}
    peer = torch_model.Pretraining(settings).load(tensors)
    found = peer(torch_model.to_torch(batch | drawn, "cpu"))
    found.backward()
    theirs = torch_model.split({name: leaf.grad for name, leaf in peer.named_parameters()})

    assert_allclose(found.item(), value, rtol=1e-5)
    ours = to_format(jax.device_get(gradients), "msfl", config)
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        if ".key.bias" not in name:  # its true gradient is 0
            difference = np.linalg.norm(theirs[name].numpy() - gradient)
            assert difference <= 1e-3 * np.linalg.norm(gradient), name
