"""The losses against PyTorch in float64: the local loss as a loop over reports in GLoRIA's manner, the others from torch.nn.functional."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.testing import assert_allclose

from msfl_jax.encoders import normalise_patches
from msfl_jax.losses import (
    global_alignment,
    image_reconstruction,
    instance_matching,
    local_alignment,
    masked_language_modeling,
)


@pytest.fixture(autouse=True, scope="module")
def float64():
    with jax.enable_x64():
        yield


def gradients_of(loss, *arrays):
    tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
    value = loss(*tensors)
    value.backward()
    return value.item(), [tensor.grad.numpy() for tensor in tensors]


def assert_same(ours, theirs, arrays):
    """Value and gradients of both to 1e-9."""
    value, gradients = jax.jit(jax.value_and_grad(ours, argnums=tuple(range(len(arrays)))))(*map(jnp.asarray, arrays))
    expected_value, expected_gradients = gradients_of(theirs, *arrays)
    assert_allclose(value, expected_value, rtol=1e-9)
    for actual, expected in zip(gradients, expected_gradients, strict=True):
        assert_allclose(actual, expected, rtol=1e-9, atol=1e-12)


def both_directions(logits):
    matched = torch.arange(len(logits))
    return (F.cross_entropy(logits, matched) + F.cross_entropy(logits.T, matched)) / 2


def report_scores(regions, sentences, attention):
    """Scores of all images [B, P, E] with the sentences [S, E] of one report, contexts formed."""
    if attention == "regions":
        regions, sentences = F.normalize(regions, dim=-1), F.normalize(sentences, dim=-1)
    logits = regions @ sentences.T
    if attention == "gloria":
        logits = logits.softmax(dim=-1)
    contexts = (4.0 * logits).softmax(dim=1).transpose(1, 2) @ regions
    cosines = F.cosine_similarity(contexts, sentences[None].expand_as(contexts), dim=-1)
    return (5.0 * cosines).logsumexp(dim=-1)


@pytest.mark.parametrize("attention", ["gloria", "regions"])
@pytest.mark.parametrize("width, block", [(8, None), (3, 2)], ids=["gram at once", "contexts in blocks"])
def test_local_alignment_equals_a_loop_over_reports(attention, width, block):
    rng = np.random.default_rng(0)
    lengths = [2, 1, 4, 3]
    regions, sentences = rng.normal(size=(4, 6, width)), rng.normal(size=(4, 4, width))
    mask = jnp.asarray(np.arange(4) < np.array(lengths)[:, None])

    def theirs(v, t):
        columns = [report_scores(v, t[report, :length], attention) for report, length in enumerate(lengths)]
        return both_directions(10.0 * torch.stack(columns, dim=1))

    assert_same(
        lambda v, t: local_alignment(v, t, mask, attention=attention, block=block), theirs, (regions, sentences)
    )


def test_global_alignment_equals_cross_entropy_of_cosines():
    images, reports = np.random.default_rng(0).normal(size=(2, 5, 7))

    def theirs(v, t, temperature):
        return both_directions(F.normalize(v, dim=-1) @ F.normalize(t, dim=-1).T / temperature)

    assert_same(
        lambda v, t, temperature: global_alignment(v, t, temperature=temperature),
        theirs,
        (images, reports, np.array(0.07)),
    )


def test_instance_matching_equals_binary_cross_entropy_with_logits():
    rng = np.random.default_rng(0)
    logits, matched, weights = 5 * rng.normal(size=9), rng.integers(0, 2, 9).astype(float), rng.uniform(size=9)

    def theirs(x):
        losses = F.binary_cross_entropy_with_logits(x, torch.tensor(matched), torch.tensor(weights), reduction="sum")
        return losses / weights.sum()

    assert_same(lambda x: instance_matching(x, jnp.asarray(matched), jnp.asarray(weights)), theirs, (logits,))


def test_image_reconstruction_of_normalised_patches_equals_the_masked_error_of_torch():
    rng = np.random.default_rng(0)
    predicted, image = rng.normal(size=(2, 5, 16)), rng.uniform(size=(2, 5, 16))
    masked = rng.integers(0, 2, (2, 5)).astype(bool)

    def theirs(prediction, patches):
        target = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
        return F.mse_loss(prediction[torch.tensor(masked)], target[torch.tensor(masked)])

    def ours(prediction, patches):
        return image_reconstruction(prediction, normalise_patches(patches), jnp.asarray(masked))

    assert_same(ours, theirs, (predicted, image))


def test_masked_language_modeling_equals_cross_entropy_with_an_ignored_index():
    rng = np.random.default_rng(0)
    logits, tokens, weights = 4 * rng.normal(size=(3, 4, 11)), rng.integers(0, 11, (3, 4)), rng.integers(0, 2, (3, 4))
    targets = torch.tensor(np.where(weights, tokens, -100)).flatten()

    def ours(x):
        return masked_language_modeling(x, jnp.asarray(tokens), jnp.asarray(weights, float))

    assert_same(ours, lambda x: F.cross_entropy(x.flatten(0, 1), targets, ignore_index=-100), (logits,))
