"""The classifier: its loss against NumPy, what becomes of pretrained parameters, positions at another resolution."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from input_pipeline.errors import CheckpointError
from msfl_jax import presets
from msfl_jax.classifier import (
    Classifier,
    finetuned_vision,
    interpolate_positions,
    label_truth,
    masked_cross_entropy,
    transfer_vision,
)
from msfl_jax.config import from_config_dict
from msfl_jax.model import Model

NAN = float("nan")


@pytest.fixture(scope="module")
def config():
    values = presets.pretraining("tiny", presets.vit_tiny())
    values.model.vision.image_size = 32
    values.model.vision.width, values.model.vision.depth = 16, 1
    values.model.text.width, values.model.text.depth = 16, 1
    values.regions.projection = "own"
    return from_config_dict(values)


@pytest.fixture(scope="module")
def pretrained(config):
    """The encoder's parameters of a pretraining model, final norm included."""
    patches = jnp.zeros((1, 16, 64))
    return {"vision": jax.jit(Model(config, vocab_size=20).vision.init)(jax.random.key(4), patches)["params"]}


def with_vision(config, **changes):
    vision = dataclasses.replace(config.model.vision, **changes)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vision=vision))


def positions(vision):
    return np.asarray(vision.apply({}, method=lambda module: module._positions()[1]))


@pytest.fixture(scope="module")
def image():
    return jnp.asarray(np.random.default_rng(0).integers(0, 256, (3, 32, 32, 1)).astype(np.uint8))


def test_the_loss_is_the_mean_over_the_known_labels_with_its_gradient():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 4)).astype(np.float32) * 5
    truth = rng.integers(0, 2, (5, 4)).astype(np.float32)
    truth[rng.random((5, 4)) < 0.4] = NAN
    known = ~np.isnan(truth)

    def mean(values):
        total, count = masked_cross_entropy(values, jnp.asarray(truth))
        return total / count

    value, gradient = jax.value_and_grad(mean)(jnp.asarray(logits))
    plain = logits.astype(np.float64)
    assert_allclose(value, (np.logaddexp(0, plain) - plain * truth)[known].mean(), rtol=1e-5)
    slope = (1 / (1 + np.exp(-plain)) - truth) / known.sum()
    assert_allclose(np.asarray(gradient)[known], slope[known], rtol=1e-4, atol=1e-7)
    assert (np.asarray(gradient)[~known] == 0).all()


def test_without_a_known_label_the_sum_is_0_and_so_is_the_gradient():
    (total, known), gradient = (
        masked_cross_entropy(jnp.ones((2, 2)), jnp.full((2, 2), NAN)),
        jax.grad(lambda x: masked_cross_entropy(x, jnp.full((2, 2), NAN))[0])(jnp.ones((2, 2))),
    )
    assert (total, known) == (0, 0)
    assert_array_equal(gradient, np.zeros((2, 2)))


def test_uncertain_labels_are_left_out_and_blank_ones_count_as_configured():
    labels = jnp.asarray([[9.0, 1.0, 0.0, -1.0, NAN]])
    assert_array_equal(label_truth(labels, (1, 2, 3, 4), "negative"), [[1, 0, NAN, 0]])
    assert_array_equal(label_truth(labels, (4, 3, 1), "ignore"), [[NAN, NAN, 1]])


def test_the_head_starts_near_0_and_sees_normalised_means(config, image):
    classifier = Classifier(config, 3)
    params = jax.jit(classifier.init)(jax.random.key(0))
    assert 0 < float(jnp.abs(params["head"]["fc"]["kernel"]).max()) < 1e-4
    assert "norm" not in params["vision"]
    features = np.asarray(jax.jit(classifier.features)(params, image), np.float64)
    unit = (features - features.mean(1, keepdims=True)) / np.sqrt(features.var(1, keepdims=True) + 1e-6)
    expected = unit @ np.asarray(params["head"]["fc"]["kernel"]) + np.asarray(params["head"]["fc"]["bias"])
    assert_allclose(jax.jit(classifier.logits)(params, image), expected, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("pool", ["mean", "mean_max"])
def test_with_the_final_norm_features_are_the_pretrained_models_pooled_tokens(config, pretrained, image, pool):
    model = Model(config, vocab_size=20)
    classifier = Classifier(config, 2, pool=pool, final_norm=True)
    params = classifier.initial(jax.random.key(0), pretrained)
    jax.tree.map(assert_array_equal, params["vision"], pretrained["vision"])
    patches = np.asarray(jax.jit(lambda p, x: model._see(p, model._patches(x)))(pretrained, image).patches)
    expected = [patches.mean(1)] + ([patches.max(1)] if pool == "mean_max" else [])
    assert_allclose(jax.jit(classifier.features)(params, image), np.concatenate(expected, axis=1), rtol=1e-5, atol=1e-5)


def test_another_seed_changes_the_head_and_a_random_encoder_but_no_pretrained_one(config, pretrained):
    classifier = Classifier(config, 2)
    first, second = (classifier.initial(jax.random.key(seed), pretrained) for seed in (0, 1))
    jax.tree.map(assert_array_equal, first["vision"], second["vision"])
    assert (first["head"]["fc"]["kernel"] != second["head"]["fc"]["kernel"]).any()
    random = classifier.initial(jax.random.key(0), None)["vision"]["patch_embed"]["kernel"]
    assert (random != first["vision"]["patch_embed"]["kernel"]).any()


def test_positions_at_twice_the_resolution(config):
    """A table that is linear in row and column stays so in the middle, and the class token's position is kept as it is."""
    row, column = np.divmod(np.arange(36), 6)
    table = np.stack([row + 0.5, column + 0.5], axis=1).astype(np.float32)
    both = np.concatenate([[[7.0, 9.0]], table])[None]
    found = np.asarray(interpolate_positions(jnp.asarray(both), 145, class_token=True))
    assert_array_equal(found[0, 0], [7, 9])
    row, column = np.divmod(np.arange(144), 12)
    inner = (row > 2) & (row < 9) & (column > 2) & (column < 9)
    assert_allclose(found[0, 1:][inner], np.stack([row + 0.5, column + 0.5], axis=1)[inner] / 2, rtol=1e-5)


def test_positions_at_another_resolution_are_those_of_the_same_places_in_pretraining(config):
    learned = with_vision(config, positions="learned", cls_token=True)
    pretrained = {"vision": jax.jit(Classifier(learned, 2, final_norm=True).init)(jax.random.key(0))["vision"]}
    classifier = Classifier(learned, 2, image_size=64)
    params = classifier.initial(jax.random.key(1), pretrained)
    assert params["vision"]["pos_embed"].shape == (1, 65, 16)
    image = jax.ShapeDtypeStruct((1, 64, 64, 1), jnp.uint8)
    assert jax.eval_shape(classifier.logits, params, image).shape == (1, 2)
    fixed, same = (positions(finetuned_vision(config, image_size=side)) for side in (64, 32))
    assert_array_equal(same, positions(Model(config, vocab_size=20).vision))
    # A fine patch lies a quarter of a coarse one before or behind its middle: by hand, the first four columns of the first row.
    assert_allclose(
        fixed[:4, :4].sum(axis=1),
        np.sin(np.outer([-0.25, 0.25, 0.75, 1.25], 10.0 ** -np.arange(4))).sum(axis=1),
        rtol=1e-5,
    )


def test_what_does_not_fit_is_refused(config, image):
    with pytest.raises(CheckpointError, match="multiple of the model's patches of 8"):
        Classifier(config, 2, image_size=60).vision  # noqa: B018
    with pytest.raises(CheckpointError, match="has no blocks_1"):
        transfer_vision({"blocks_0": {}}, {"blocks_0": {}, "blocks_1": {}}, False)
    classifier = Classifier(config, 2, image_size=64)
    with pytest.raises(ValueError, match="expected 64 x 64"):
        classifier.logits({}, image)
