"""The weighted sum of eq. 7: which losses it adds, with which weights, over which negatives."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from numpy.testing import assert_allclose

from msfl_jax import losses, objective
from msfl_jax.config_files import load_config
from msfl_jax.model import Keys, Model
from msfl_jax.objective import Weights
from msfl_jax.vectors import unit

from .small import OVERRIDES, VOCABULARY


@functools.cache
def made(arg=""):
    config = load_config(f"demo:{arg}", OVERRIDES)
    model = Model.create(config, vocab_size=VOCABULARY)
    return config, model, jax.jit(model.init)(jax.random.key(0))


@functools.cache
def total(arg=""):
    """The compiled objective of one combination as a function of (params, batch, step)."""
    config, model, _ = made(arg)
    weights = Weights.create(config)
    return jax.jit(
        lambda params, batch, step: objective.total(
            params, batch, Keys.at(0, step), model=model, weights=weights.at(step)
        )
    )


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    sentence_ids = np.zeros((6, 12), np.int32)
    sentence_ids[:, 1:5], sentence_ids[:4, 5:9] = 1, 2
    token_ids = np.where(sentence_ids > 0, rng.integers(6, VOCABULARY, (6, 12)), 0).astype(np.int32)
    token_ids[:, 0] = 2
    return {
        "image": jnp.asarray(rng.integers(0, 255, (6, 16, 16, 1)), jnp.uint8),
        "token_ids": jnp.asarray(token_ids),
        "sentence_ids": jnp.asarray(sentence_ids),
        "study_key": jnp.asarray([1, 2, 3, 4, 5, 5], jnp.uint32),
    }


def test_the_total_is_the_sum_of_the_losses_of_the_features(batch):
    config, model, params = made()
    step = 90
    value, metrics = total()(params, batch, step)
    features = jax.jit(model.features)(params, batch, Keys.at(0, step))
    same = batch["study_key"][:, None] == batch["study_key"][None, :]
    local = config.objective.local_alignment
    expected = losses.global_alignment(
        features.image_embedding, features.report_embedding, temperature=features.temperature, same_study=same
    )
    expected += losses.local_alignment(
        features.regions,
        features.sentences,
        features.sentence_mask,
        attention=local.attention,
        region_scale=local.region_scale,
        sentence_scale=local.sentence_scale,
        aggregate=local.aggregate,
        logit_scale=local.logit_scale,
        same_study=same,
    )
    expected += losses.image_reconstruction(features.pixel_prediction, features.pixel_target, features.pixel_masked)
    expected += losses.masked_language_modeling(features.token_logits, features.token_targets, features.token_weights)
    instance = metrics["loss/instance_matching"].total
    np.testing.assert_allclose(value, expected + instance, rtol=1e-5)


@pytest.mark.parametrize(
    ("arg", "absent"),
    [
        ("global", {"local_alignment", "instance_matching", "image_reconstruction", "masked_language_modeling"}),
        ("global,local", {"instance_matching", "image_reconstruction"}),
        ("global,modality", {"local_alignment", "instance_matching"}),
    ],
)
def test_an_objective_of_weight_zero_is_not_computed(batch, arg, absent):
    _, _, params = made(arg)
    value, metrics = total(arg)(params, batch, 0)
    assert not {f"loss/{name}" for name in absent} & metrics.keys()
    present = sum(
        float(t.total / t.count) for name, t in metrics.items() if name.startswith("loss/") and name != "loss/total"
    )
    np.testing.assert_allclose(value, present, rtol=1e-6)


def test_all_eight_combinations_start_from_the_same_parameters():
    """All that they share; only rows with local alignment take regions inside the encoder, through a norm of their own."""
    reference = flatten_dict(made()[2])
    for arg in ("global", "global,local", "global,instance,modality"):
        start = flatten_dict(made(arg)[2])
        assert all("region_norm" in path for path in reference.keys() ^ start.keys())
        assert ("local" in arg) == (reference.keys() == start.keys())
        for path in start:
            np.testing.assert_array_equal(start[path], reference[path])


def test_the_weight_of_instance_matching_rises_between_its_two_shares_of_the_run():
    weights = Weights.create(made()[0])
    assert made()[0].objective.instance_matching.ramp == (0.3, 0.45)
    shares = [float(weights.at(step).instance_share) for step in (0, 30, 36, 45, 100)]
    np.testing.assert_allclose(shares, [0, 0, 0.4, 1, 1], atol=1e-6)


def test_reports_shared_by_two_studies_are_never_negatives_of_each_other(batch):
    _, model, params = made()
    features = jax.jit(model.features)(params, batch, Keys.at(0, 0))
    cosines = unit(features.image_embedding) @ unit(features.report_embedding).T
    exclude = batch["study_key"][:, None] == batch["study_key"][None, :]
    for seed in range(20):
        drawn = losses.sample_hard_negatives(cosines, jax.random.key(seed), exclude=exclude)
        assert not np.asarray(exclude)[np.arange(6), drawn.report].any()
        assert not np.asarray(exclude)[drawn.image, np.arange(6)].any()


def changed_batch(batch, case):
    """A batch that leaves a loss with little or nothing to compare."""
    if case == "one report for all":
        return {name: jnp.repeat(value[:1], 6, axis=0) for name, value in batch.items()}
    if case == "batch of one":
        return {name: value[:1] for name, value in batch.items()}
    kept = batch["sentence_ids"] == 1
    if case == "one sentence each":
        return batch | {"sentence_ids": batch["sentence_ids"] * kept, "token_ids": batch["token_ids"] * kept}
    return batch | {name: batch[name] * 0 for name in ("sentence_ids", "token_ids")}


@pytest.mark.parametrize("arg", ["", "gloria"])
@pytest.mark.parametrize("case", ["one report for all", "batch of one", "one sentence each", "reports of padding"])
def test_loss_and_gradients_are_finite_where_there_is_little_to_compare(batch, arg, case):
    _, _, params = made(arg)
    value, gradients = jax.value_and_grad(lambda p: total(arg)(p, changed_batch(batch, case), 90)[0])(params)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_directions_are_averaged_or_added(batch):
    """GLoRIA's sum is twice the mean of both directions, and the same where there is only one."""
    config, model, params = made("global,local")
    for direction, factor in (("symmetric", 2.0), ("image_to_report", 1.0)):
        parts = {
            name: dataclasses.replace(getattr(config.objective, name), direction=direction)
            for name in ("global_alignment", "local_alignment")
        }
        values = {}
        for reduction in ("mean", "sum"):
            options = dataclasses.replace(config.objective, reduction=reduction, **parts)
            weights = Weights(options, steps=100)
            values[reduction] = objective.total(params, batch, Keys.at(0, 0), model=model, weights=weights)[0]
        assert_allclose(values["sum"], factor * values["mean"], rtol=1e-6)


def test_negatives_may_be_those_of_groups_of_rows(batch):
    config, model, params = made("global,local")
    features = jax.jit(model.features)(params, batch, Keys.at(0, 0))
    local = dataclasses.replace(config.objective.local_alignment, negatives="group(2)")
    weights = Weights(dataclasses.replace(config.objective, local_alignment=local), steps=100)
    _, metrics = objective.total(params, batch, Keys.at(0, 0), model=model, weights=weights)
    options = {name: getattr(local, name) for name in ("attention", "region_scale", "sentence_scale", "aggregate")}
    pairs = [
        losses.local_alignment(
            *(rows[first : first + 2] for rows in (features.regions, features.sentences, features.sentence_mask)),
            logit_scale=local.logit_scale,
            same_study=batch["study_key"][first : first + 2, None] == batch["study_key"][None, first : first + 2],
            **options,
        )
        for first in (0, 2, 4)
    ]
    assert_allclose(metrics["loss/local_alignment"].total, np.mean(pairs), rtol=1e-5)
