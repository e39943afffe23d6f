"""Shipped segmentation configurations: what they say, and that they resolve to the shapes of a step at full size."""

import jax
import jax.numpy as jnp
import pytest

from input_pipeline.errors import UserError
from msfl_jax.config_files import load_config, shipped_configs
from msfl_jax.segmentation_config import segmentation_config
from msfl_jax.segmenter import Segmenter
from msfl_jax.train.adaptation_optimizer import finetuning_optimizer, finetuning_rate


def load(name, *overrides):
    return load_config(name, overrides, make=segmentation_config)


STEPS = [  # with the shapes of the logits and the auxiliary ones, and between how many million parameters
    ("segment_siim", "mimic_vit_b16", (8, 128, 128, 2), (8, 32, 32, 2), (160, 164)),
    ("segment_siim:1,linear", "mimic_vit_b16", (8, 128, 128, 2), None, (85, 86)),
    ("segment_siim:10", "mimic_vit_l16", (8, 128, 128, 2), (8, 32, 32, 2), (385, 400)),
    ("segment_siim:1", "mimic_vit_s16", (8, 128, 128, 2), (8, 32, 32, 2), (86, 89)),
    ("segment_demo:1", "demo", (16, 48, 48, 2), None, (0.6, 0.7)),
    ("segment_demo:10", "demo", (16, 48, 48, 2), None, (0.6, 0.7)),
    ("segment_demo:100", "demo", (16, 48, 48, 2), None, (0.6, 0.7)),
]


def test_every_segmentation_configuration_is_resolved_here():
    shipped = {name for name in shipped_configs() if name.startswith("segment_")}
    assert shipped == {name.partition(":")[0] for name, *_ in STEPS}


@pytest.mark.parametrize("name, model, logits, auxiliary, millions", STEPS)
def test_a_configuration_resolves_to_the_shapes_of_its_step(name, model, logits, auxiliary, millions):
    config = load(name)
    segmenter = Segmenter.create(config, load_config(model))
    params = jax.eval_shape(segmenter.init, jax.random.key(0))
    rows, side = config.data.batch_size, segmenter.image_size
    batch = {
        "image": jax.ShapeDtypeStruct((rows, side, side, 1), jnp.uint8),
        "mask": jax.ShapeDtypeStruct((rows, side, side), jnp.bool_),
    }
    found = jax.eval_shape(segmenter.masks, params, batch["image"])
    assert found.logits.shape == logits
    assert (found.auxiliary.shape if found.auxiliary else None) == auxiliary
    key = jax.random.key(1)
    gradients, tallies = jax.eval_shape(lambda p, b: jax.grad(segmenter.loss, has_aux=True)(p, b, key), params, batch)
    assert jax.tree.map(jnp.shape, gradients) == jax.tree.map(jnp.shape, params)
    assert set(tallies) == {"loss/masks", *(["loss/auxiliary"] if auxiliary else [])}
    depth = segmenter.config.model.vision.depth
    optimizer = finetuning_optimizer(config.optimizer, config.train.steps, depth=depth)
    state = jax.eval_shape(optimizer.init, params)
    jax.eval_shape(optimizer.update, gradients, state, params)
    low, high = millions
    assert low <= sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6 <= high


@pytest.mark.parametrize(
    "fraction, steps, warmup, peak", [(1, 1000, 100, 5e-6), (10, 5000, 100, 2e-5), (100, 160_000, 1500, 1.5e-5)]
)
def test_the_recipe_is_the_siblings(fraction, steps, warmup, peak):
    config = load(f"segment_siim:{fraction}")
    assert (config.train.steps, config.optimizer.warmup_steps, config.data.fraction) == (steps, warmup, fraction)
    rate = finetuning_rate(config.optimizer, steps)
    assert float(rate(warmup)) == pytest.approx(peak * (1 - warmup / steps))
    assert float(rate(steps // 2)) == pytest.approx(peak / 2)
    assert float(rate(warmup // 2)) == pytest.approx(peak / 2 * (1 - warmup // 2 / steps))
    assert (config.encoder.image_size, config.head.channels, config.data.fit, config.data.flip) == (
        512,
        768,
        "pad",
        True,
    )


def test_arguments_choose_lists_head_and_weights():
    config = load("segment_siim:10,clean,scratch,linear")
    assert (config.data.lists, config.encoder.init, config.head.kind) == ("clean", "random", "linear")
    assert load("segment_siim").data.lists == "any"
    assert load("segment_siim:as_published").data.lists == "as_published"


def test_a_random_encoder_learns_at_one_rate():
    for name, decay in (("segment_siim", 0.65), ("segment_demo", 0.3)):
        assert load(f"{name}:10").optimizer.layer_decay == decay
        assert load(f"{name}:10,scratch").optimizer.layer_decay == 1.0


@pytest.mark.parametrize(
    "argument, message",
    [
        ("segment_siim:5", "unknown argument '5'"),
        ("segment_siim:clan", r"unknown argument 'clan' \(did you mean 'clean'\?\)"),
        ("segment_siim:1,10", "has 2 percentages"),
        ("segment_siim:clean,as_published", "one kind of lists"),
    ],
)
def test_wrong_arguments_are_refused(argument, message):
    with pytest.raises(UserError, match=message):
        load(argument)


@pytest.mark.parametrize(
    "override, message",
    [
        ("encoder.layers=(4, 2, 8, 12)", "'encoder.layers' is .*; expected four blocks"),
        ("head.kind=unet", "'head.kind' is 'unet'; expected one of upernet, linear"),
        ("optimizer.warmup_steps=160000", "'optimizer.warmup_steps' is 160000; expected fewer than train.steps"),
        ("data.fraction=101", "'data.fraction' is 101; expected a percentage"),
        ("head.focal_weight=-1.0", "'head.focal_weight' is -1.0; expected at least 0"),
        ("head.colour=1", "unknown key 'head.colour'"),
    ],
)
def test_wrong_values_are_refused(override, message):
    with pytest.raises(UserError, match=message):
        load("segment_siim", f"--config.{override}")
