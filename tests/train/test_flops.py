"""The formula against published per-image tables and against XLA's count of a model without loops."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msfl_jax import presets
from msfl_jax.config import PixelDecoderSize, TextSize, from_config_dict
from msfl_jax.config_files import load_config
from msfl_jax.encoders import SegmentationDecoder, layers
from msfl_jax.encoders import segmentation_decoders as decoders
from msfl_jax.segmentation_config import segmentation_config
from msfl_jax.segmenter import Segmenter
from msfl_jax.tasks.segmentation import training_flops
from msfl_jax.train.flops import (
    decoder_flops,
    flops_per_pair,
    light_decoder_flops,
    mlm_head_flops,
    text_flops,
    upernet_flops,
    vit_flops,
)

B16 = from_config_dict(presets.pretraining("b16", presets.vit_b16())).model.vision
MAE_DECODER = PixelDecoderSize(512, 8, 16)
SIBLING_DECODER = PixelDecoderSize(768, 4, 6)
BERT12 = TextSize(vocab_size=0, max_tokens=128, width=768, depth=12, heads=12, mlp_ratio=4.0)
BERT6 = dataclasses.replace(BERT12, depth=6)
SIBLING_TEXT = TextSize(vocab_size=0, max_tokens=100, width=384, depth=6, heads=6, mlp_ratio=4.0)

# Mask ratio, decoder, its pixels per patch, text encoder, vocabulary, predicted positions, training GFLOP per pair with one pass of each.
TABLE = [
    (0.50, MAE_DECODER, 768, BERT12, 28996, 128, 168.8),
    (0.50, MAE_DECODER, 768, BERT12, 28996, 19.2, 153.9),
    (0.50, MAE_DECODER, 768, dataclasses.replace(BERT12, max_tokens=256), 28996, 38.4, 227.2),
    (0.50, MAE_DECODER, 768, BERT6, 28996, 19.2, 120.4),
    (0.75, MAE_DECODER, 768, BERT12, 28996, 19.2, 127.8),
    (0.75, MAE_DECODER, 768, BERT6, 28996, 128, 109.2),
    (0.75, MAE_DECODER, 768, BERT6, 28996, 19.2, 94.3),
    (0.50, SIBLING_DECODER, 3072, SIBLING_TEXT, 30000, 100, 103.6),
    (0.75, SIBLING_DECODER, 3072, SIBLING_TEXT, 30000, 100, 77.4),
]


@pytest.mark.parametrize(("ratio", "decoder", "pixels", "text", "vocab", "predicted", "gflop"), TABLE)
def test_training_flops_of_one_pass_each_equal_the_table(ratio, decoder, pixels, text, vocab, predicted, gflop):
    forward = vit_flops(B16, ratio) + decoder_flops(decoder, B16, ratio, pixels=pixels)
    forward += text_flops(text) + mlm_head_flops(text, vocab, predicted)
    assert 3 * forward / 1e9 == pytest.approx(gflop, rel=0.02)


@pytest.mark.parametrize(
    ("found", "gflop"),
    [
        (vit_flops(B16, 0.5), 17.2),
        (vit_flops(B16, 0.75), 8.6),
        (decoder_flops(MAE_DECODER, B16, 0.75, pixels=768), 10.8),
        (decoder_flops(SIBLING_DECODER, B16, 0.5, pixels=3072), 12.7),
        (text_flops(BERT12), 22.4),
        (text_flops(BERT6), 11.2),
        (text_flops(SIBLING_TEXT), 2.2),
        (mlm_head_flops(BERT12, 28996, 128), 5.9),
        (mlm_head_flops(SIBLING_TEXT, 30000, 100), 2.3),
    ],
)
def test_forward_flops_of_each_part_equal_the_table(found, gflop):
    assert found / 1e9 == pytest.approx(gflop, rel=0.02)


def test_a_stack_of_blocks_equals_what_xla_counts():
    spec = layers.BlockSpec("vit", depth=2, width=256, heads=4, hidden=1024)

    class Stack(layers.nn.Module):
        @layers.nn.compact
        def __call__(self, tokens):
            return layers.apply_blocks(spec, layers.Stream(tokens))[0].tokens

    tokens = jax.ShapeDtypeStruct((1, 50, 256), "float32")
    params = jax.eval_shape(Stack().init, jax.random.key(0), tokens)
    counted = jax.jit(Stack().apply).lower(params, tokens).compile().cost_analysis()["flops"]
    size = TextSize(vocab_size=0, max_tokens=50, width=256, depth=2, heads=4, mlp_ratio=4.0)
    assert text_flops(size) <= counted <= 1.06 * text_flops(size)


def flops_of(jaxpr):
    """Of all products of matrices and convolutions of a program, those within its parts too, by nothing but their shapes."""
    total = 0
    for equation in jaxpr.eqns:
        shapes = [
            variable.aval.shape for variable in (*equation.invars, *equation.outvars) if hasattr(variable, "aval")
        ]
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += 2 * np.prod(shapes[2]) * np.prod([shapes[0][axis] for axis in contracted])
        elif equation.primitive.name == "conv_general_dilated":
            outputs = equation.params["dimension_numbers"].rhs_spec[0]
            total += 2 * np.prod(shapes[2]) * np.prod(np.delete(shapes[1], outputs))
        for part in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "jaxpr")):
            total += flops_of(part.jaxpr) if hasattr(part, "jaxpr") else 0
    return float(total)


@pytest.mark.parametrize("head, formula", [("upernet", upernet_flops), ("linear", light_decoder_flops)])
@pytest.mark.parametrize("width, grid, channels", [(768, 32, 768), (384, 32, 64), (128, 12, 32)])
def test_decoders_of_masks_have_the_products_of_the_formula(head, formula, width, grid, channels, monkeypatch):
    """Of their programs all but resampling is counted."""
    monkeypatch.setattr(decoders, "enlarge", lambda one, size: jnp.zeros((len(one), *size, one.shape[-1]), one.dtype))
    monkeypatch.setattr(decoders, "adaptive_pool", lambda one, bins: decoders.enlarge(one, (bins, bins)))
    decoder = SegmentationDecoder(head, channels)
    tokens = (jax.ShapeDtypeStruct((1, grid**2, width), "float32"),) * 4
    params = jax.eval_shape(decoder.init, jax.random.key(0), tokens)
    assert flops_of(jax.make_jaxpr(decoder.apply)(params, tokens).jaxpr) == formula(width, grid, channels)


def test_a_training_image_of_siim_costs_what_the_readme_says():
    config = load_config("segment_siim", make=segmentation_config)
    segmenter = Segmenter.create(config, load_config("mimic_vit_b16"))
    at_512 = dataclasses.replace(B16, image_size=512)
    flops = training_flops(segmenter)
    assert flops == 3 * (vit_flops(at_512) + upernet_flops(768, 32, 768))
    assert flops / 1e12 == pytest.approx(3.6, abs=0.05)
    light = Segmenter.create(load_config("segment_siim:linear", make=segmentation_config), load_config("mimic_vit_b16"))
    assert training_flops(light) == 3 * (vit_flops(at_512) + light_decoder_flops(768, 32, 64))


def test_each_pass_that_a_configuration_runs_is_counted(changed):
    config = from_config_dict(presets.pretraining("b16", presets.vit_b16()))
    alone = changed(config, objective__lambda_local=0.0, objective__lambda_instance=0.0, data__batch_size=1)
    expected = vit_flops(B16) + vit_flops(B16, 0.75) + decoder_flops(SIBLING_DECODER, B16, 0.75)
    expected += 2 * text_flops(BERT6) + mlm_head_flops(BERT6, 30000, 20)
    assert flops_per_pair(alone, 30000) == pytest.approx(3 * expected, rel=1e-3)
    fine = changed(alone, image__target_scale=2)
    more = decoder_flops(SIBLING_DECODER, B16, 0.75, pixels=1024) - decoder_flops(SIBLING_DECODER, B16, 0.75)
    assert flops_per_pair(fine, 30000) == pytest.approx(3 * (expected + more), rel=1e-3)
    contrastive = changed(alone, objective__lambda_modality=0.0)
    assert flops_per_pair(contrastive, 30000) == pytest.approx(3 * (vit_flops(B16) + text_flops(BERT6)), rel=1e-3)
    shared = changed(alone, image__passes="shared", text__passes="shared")
    assert flops_per_pair(shared, 30000) == pytest.approx(3 * (expected - vit_flops(B16) - text_flops(BERT6)), rel=1e-3)


def test_reports_grouped_by_length_are_counted_at_the_lengths_of_their_groups(changed):
    config = from_config_dict(presets.pretraining("b16", presets.vit_b16(report_layers=6)))
    grouped = changed(config, text__length_buckets="32:0.5,64:0.25")
    text = config.model.text
    at = {tokens: text_flops(dataclasses.replace(text, max_tokens=tokens)) for tokens in (32, 64, text.max_tokens)}
    saved = at[text.max_tokens] - (0.5 * at[32] + 0.25 * at[64] + 0.25 * at[text.max_tokens])
    passes = 2  # one for alignment, one masked
    assert flops_per_pair(config, 30000) - flops_per_pair(grouped, 30000) == pytest.approx(3 * passes * saved)


def test_the_local_loss_grows_with_the_batch():
    """Gram form at 196 patches, 768 values, 17 units: forward 2PCBS + 2PPBS per pair, as much again twice for the backward pass."""
    config = from_config_dict(presets.pretraining("b16", presets.vit_b16()))
    per_study = 3 * 17 * (2 * 196 * 768 + 2 * 196**2) + 3 * 2 * 768
    double = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=8192))
    assert flops_per_pair(double, 30000) - flops_per_pair(config, 30000) == pytest.approx(4096 * per_study)


@pytest.mark.parametrize("width", [146, 147, 148, 149])
@pytest.mark.parametrize("kernel", ["xla", "pallas"])
def test_the_local_loss_is_counted_in_the_form_that_it_takes(changed, width, kernel):
    """196 regions: the Gram form from 148 values on, and in our own kernels always; contexts cost as much as scores."""
    config = from_config_dict(presets.pretraining("b16", presets.vit_b16()))
    local = dataclasses.replace(config.objective.local_alignment, kernel=kernel)
    narrow = changed(config, model__region_width=width, objective__local_alignment=local)
    gram = kernel == "pallas" or width >= 148
    per_study = 3 * 17 * 2 * 196 * (width + (196 if gram else width)) + 3 * 2 * config.model.embedding_width
    more = flops_per_pair(changed(narrow, data__batch_size=8192), 30000) - flops_per_pair(narrow, 30000)
    assert more == pytest.approx(4096 * per_study)
