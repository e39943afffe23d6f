"""Values of the original implementations on inputs given by closed formulas (GLoRIA, MaCo, AFLoc, ALBEF, MAE)."""

from math import log

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from msfl_jax.encoders import normalise_patches
from msfl_jax.losses import (
    global_alignment,
    hard_negative_probabilities,
    image_reconstruction,
    instance_matching,
    local_alignment,
    local_scores,
)


@pytest.fixture(autouse=True, scope="module")
def float64():
    with jax.enable_x64():
        yield


@pytest.fixture(scope="module")
def local_batch():
    """Three images of four regions, and reports of two, one and three sentences."""
    b, p, d = np.ogrid[:3, :4, :4]
    units = np.cos(0.5 + 4 * np.arange(6)[:, None] + np.arange(4))
    sentences, mask = np.zeros((3, 3, 4)), np.zeros((3, 3), bool)
    for report, rows in enumerate((units[:2], units[2:3], units[3:])):
        sentences[report, : len(rows)], mask[report, : len(rows)] = rows, True
    return jnp.asarray(np.sin(1 + 16 * b + 4 * d + p)), jnp.asarray(sentences), jnp.asarray(mask)


def test_local_scores_are_those_of_gloria(local_batch):
    expected = [
        [0.951477, 0.764879, 1.943880],
        [1.542515, -0.418048, 1.647467],
        [1.429502, 0.014906, 1.936893],
    ]
    assert_allclose(local_scores(*local_batch), expected, atol=6e-7)


@pytest.mark.parametrize(
    "logit_scale, aggregate, expected",
    [
        (10.0, "sum", {"symmetric": 8.277142, "image_to_report": 10.295219, "report_to_image": 6.259064}),
        (10.0, "mean", {"symmetric": 6.341540, "image_to_report": 6.424015, "report_to_image": 6.259064}),
        (1.0, "sum", {"symmetric": 1.516560}),
        (1.0, "mean", {"symmetric": 1.429267}),
    ],
)
@pytest.mark.parametrize("block", [None, 2])
def test_local_losses_are_those_of_gloria_maco_and_afloc(local_batch, logit_scale, aggregate, expected, block):
    for direction, value in expected.items():
        options = {"logit_scale": logit_scale, "aggregate": aggregate, "direction": direction, "block": block}
        assert_allclose(local_alignment(*local_batch, **options), value, atol=6e-7)


@pytest.mark.parametrize("block", [None, 1])
def test_local_gradients_have_the_norms_of_the_original(local_batch, block):
    regions, sentences, mask = local_batch
    gradients = jax.jit(jax.grad(lambda v, t: local_alignment(v, t, mask, block=block), argnums=(0, 1)))(
        regions, sentences
    )
    assert_allclose([jnp.linalg.norm(g.ravel()) for g in gradients], [20.085339, 22.450697], atol=6e-7)


@pytest.fixture(scope="module")
def embeddings():
    i, d = np.ogrid[:3, :4]
    return jnp.asarray(np.sin(2 + 4 * i + d)), jnp.asarray(np.cos(1 + 3 * i + d))


COSINES = [[0.864211, -0.926967, 0.968753], [-0.949521, 0.895270, -0.827775], [0.208626, -0.067451, -0.066356]]


@pytest.mark.parametrize(
    "temperature, to_report, to_image, symmetric",
    [
        (0.1, 1.405404, 3.450870, (1.405404 + 3.450870) / 2),
        (0.07, 1.887563, 4.929120, 3.408342),
        (0.03, 4.227072, 11.501213, 7.864143),
    ],
)
def test_global_losses_are_those_of_gloria(embeddings, temperature, to_report, to_image, symmetric):
    for direction, expected in [
        ("image_to_report", to_report),
        ("report_to_image", to_image),
        ("symmetric", symmetric),
    ]:
        loss = global_alignment(*embeddings, temperature=temperature, direction=direction)
        assert_allclose(loss, expected, atol=1.1e-6)


def test_identical_embeddings_cost_the_logarithm_of_the_batch():
    assert_allclose(global_alignment(jnp.ones((3, 4)), jnp.ones((3, 4)), temperature=0.07), log(3), atol=1e-12)


def test_hard_negatives_have_the_probabilities_of_albef(embeddings):
    images, reports = (x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in embeddings)
    assert_allclose(images @ reports.T, COSINES, atol=6e-7)
    for_image, for_report = hard_negative_probabilities(images @ reports.T / 0.07, exclude=jnp.eye(3, dtype=bool))
    assert_allclose(for_image, [[0, 0, 1], [0.149411, 0, 0.850589], [0.980997, 0.019003, 0]], atol=6e-7)
    assert_allclose(for_report, [[0, 0, 1], [5e-6, 0, 0.999995], [1, 0, 0]], atol=6e-7)


def test_similarities_on_which_albef_fails_still_have_probabilities():
    similarity = jnp.asarray([[1.0, -1.0], [-1.0, 1.0]], jnp.float32) / 0.01
    for probabilities in hard_negative_probabilities(similarity, exclude=jnp.eye(2, dtype=bool)):
        assert_array_equal(probabilities, [[0, 1], [1, 0]])


def test_answering_one_third_everywhere_costs_the_entropy_of_one_matched_pair_in_three():
    matched = jnp.asarray([True, False, False] * 4)
    assert_allclose(instance_matching(jnp.full(12, log(1 / 2)), matched), 0.636514, atol=6e-7)


def patchify(image, size):
    """[C, H, W] to [P, size * size * C], values in MAE's order: row, column, colour."""
    colours, height, width = image.shape
    patches = image.reshape(colours, height // size, size, width // size, size)
    return patches.transpose(1, 3, 2, 4, 0).reshape(-1, size * size * colours)


def test_patches_of_colour_images_come_in_the_order_of_mae():
    first = patchify(np.arange(48).reshape(3, 4, 4), 2)[0]
    assert_array_equal(first, [0, 16, 32, 1, 17, 33, 4, 20, 36, 5, 21, 37])
    assert_array_equal(patchify(np.arange(16).reshape(1, 4, 4), 2)[0], [0, 1, 4, 5])


@pytest.mark.parametrize("colours, expected", [(3, 0.998698), (1, 255 / 256)], ids=["colour as MAE", "grey as here"])
def test_predicting_zero_for_normalised_patches_costs_what_the_unbiased_variance_leaves(colours, expected):
    patches = patchify(np.random.default_rng(0).uniform(0, 255, (colours, 32, 32)), 16)[None]
    target = normalise_patches(jnp.asarray(patches))
    loss = image_reconstruction(jnp.zeros_like(target), target, jnp.ones((1, 4), bool))
    assert_allclose(loss, expected, atol=6e-7)
