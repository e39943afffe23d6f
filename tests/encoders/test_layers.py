"""Transformer blocks: attention against a loop, scanned against unrolled, recomputed against stored."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.ad_checkpoint import print_saved_residuals
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import erf
from scipy.stats import norm

from msfl_jax.encoders.layers import (
    ALL_BLOCKS,
    BlockSpec,
    Stream,
    apply_blocks,
    attend,
    cast_products,
    gelu,
    stack_layers,
    unstack_layers,
)

SPEC = BlockSpec("vit", depth=3, width=16, heads=2, hidden=32)


class Tower(nn.Module):
    spec: BlockSpec
    masked_blocks: int = ALL_BLOCKS
    taps: tuple[int, ...] = ()

    def __call__(self, tokens, mask):
        return self.together((tokens, mask))[0]

    @nn.compact
    def together(self, *pairs):
        streams = (Stream(tokens, mask, self.masked_blocks) for tokens, mask in pairs)
        return apply_blocks(self.spec, *streams, taps=self.taps)


PADDED = jnp.arange(7) < jnp.asarray([7, 3, 1])[:, None]


@pytest.fixture(scope="module")
def tokens():
    return jax.random.normal(jax.random.key(0), (2, 5, 16))


@pytest.fixture(scope="module")
def mask():
    return jnp.abs(jnp.arange(5)[:, None] - jnp.arange(5))[None] <= 1


@functools.cache
def initialise(spec):
    return jax.jit(Tower(spec).init)(jax.random.key(1), jnp.zeros((1, 5, 16)), None)["params"]


def run(spec, params, tokens, mask, **options):
    return jax.jit(Tower(spec, **options).apply)({"params": params}, tokens, mask)


def attend_in_loops(query, key, value, mask):
    result = np.zeros_like(query)
    for b, q, h in np.ndindex(query.shape[:3]):
        seen = np.flatnonzero(mask[b % len(mask), q % mask.shape[1]])
        logits = np.array([query[b, q, h] @ key[b, n, h] for n in seen]) / np.sqrt(query.shape[-1])
        weights = np.exp(logits - logits.max())
        result[b, q, h] = sum(w * value[b, n, h] for w, n in zip(weights / weights.sum(), seen, strict=True))
    return result


@pytest.mark.parametrize("shape", [(2, 4, 6), (2, 1, 6), (1, 4, 6)])
def test_attention_equals_a_loop_over_queries(shape):
    rng = np.random.default_rng(0)
    query = rng.normal(size=(2, 4, 3, 5))
    key, value = rng.normal(size=(2, 2, 6, 3, 5))
    mask = rng.random(shape) < 0.5
    mask[..., 0] = True
    result = attend(*(jnp.asarray(x, jnp.float32) for x in (query, key, value)), jnp.asarray(mask))
    assert_allclose(result, attend_in_loops(query, key, value, mask), rtol=1e-5, atol=1e-6)


def test_a_query_that_sees_nothing_has_finite_values_and_gradients():
    query = jax.random.normal(jax.random.key(0), (1, 3, 1, 4))
    mask = jnp.zeros((1, 1, 3), bool)
    value, gradients = jax.value_and_grad(lambda q, k, v: attend(q, k, v, mask).sum(), argnums=(0, 1, 2))(
        query, query, query
    )
    assert np.isfinite(value)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("kind", ["vit", "bert"])
@pytest.mark.parametrize(
    "options", [{}, {"masked_blocks": 1, "taps": (1,)}, {"masked_blocks": 2, "taps": (3, 1, 2, 1)}]
)
def test_scanned_blocks_equal_unrolled_ones(kind, options, tokens, mask):
    spec = dataclasses.replace(SPEC, kind=kind)
    params = initialise(spec)
    expected = run(spec, params, tokens, mask, **options)
    scanned = dataclasses.replace(spec, scan_layers=True)
    found = run(scanned, stack_layers(params), tokens, mask, **options)
    assert len(found[1]) == len(options.get("taps", ()))
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)


STREAMED = [("vit", {}), ("vit", {"scan_layers": True, "remat": "dots", "flat_products": True})]
STREAMED += [("bert", {"scan_layers": True}), ("bert", {"remat": "full"})]


@pytest.mark.parametrize("kind, how", STREAMED)
@pytest.mark.parametrize("options", [{}, {"masked_blocks": 1, "taps": (1, 3)}])
def test_streams_go_through_the_blocks_as_if_each_were_alone(kind, how, options, tokens, mask):
    spec = dataclasses.replace(SPEC, kind=kind, **how)
    params, longer = initialise(spec), jax.random.normal(jax.random.key(2), (3, 7, 16))
    tower, pairs = Tower(spec, **options), ((tokens, mask), (longer, PADDED[:, None]), (longer[:2], None))

    def total(layers):
        return sum(jnp.sin(leaf).sum() for leaf in jax.tree.leaves(layers))

    def alone(params):
        return total([tower.apply({"params": params}, *pair) for pair in pairs])

    def together(params):
        return total(tower.apply({"params": params}, *pairs, method="together"))

    expected, found = (jax.jit(jax.value_and_grad(loss))(params) for loss in (alone, together))
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-5, atol=1e-4), found, expected)


def test_scanned_parameters_have_the_paths_and_shapes_of_stacked_ones(tokens, mask):
    stacked = stack_layers(initialise(SPEC))
    scanned = initialise(dataclasses.replace(SPEC, scan_layers=True))
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, scanned)
    kernel = scanned["blocks"]["fc1"]["kernel"]
    assert len({float(layer.sum()) for layer in kernel}) == SPEC.depth


def test_unstacking_then_stacking_gives_the_same_parameters_at_any_depth_of_the_tree(tokens, mask):
    spec = dataclasses.replace(SPEC, scan_layers=True)
    params = {"text": {**initialise(spec), "norm": {"scale": jnp.ones(3)}}}
    unstacked = unstack_layers(params)
    assert sorted(unstacked["text"]) == ["blocks_0", "blocks_1", "blocks_2", "norm"]
    jax.tree.map(assert_array_equal, stack_layers(unstacked), params)


def test_the_tapped_tokens_are_those_of_a_shorter_stack(tokens, mask):
    params = initialise(SPEC)
    last, tapped = run(SPEC, params, tokens, None, taps=(2, 1, 3))
    for depth, found in zip((2, 1, 3), tapped, strict=True):
        shorter, _ = run(dataclasses.replace(SPEC, depth=depth), params, tokens, None)
        assert_allclose(found, shorter, rtol=1e-6, atol=1e-6)
    assert_array_equal(last, tapped[-1])


@pytest.mark.parametrize("scan_layers", [False, True])
def test_taps_that_nobody_uses_cost_nothing(scan_layers, tokens):
    spec = dataclasses.replace(SPEC, scan_layers=scan_layers)
    params = initialise(spec)

    def operations(taps):
        return jax.jit(lambda p: Tower(spec, taps=taps).apply({"params": p}, tokens, None)[0]).lower(params).as_text()

    assert operations(()) == operations((SPEC.depth,))
    found = run(spec, params, tokens, None, taps=(1, 2))
    assert_allclose(found[0], run(spec, params, tokens, None)[0], rtol=1e-6, atol=1e-6)


def test_a_tap_beyond_the_blocks_is_refused(tokens):
    with pytest.raises(ValueError, match="expected blocks 1 to 3"):
        run(SPEC, initialise(SPEC), tokens, None, taps=(4,))


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("remat", ["dots", "full"])
def test_recomputation_changes_neither_values_nor_gradients(scan_layers, remat, tokens, mask):
    stored = dataclasses.replace(SPEC, scan_layers=scan_layers)
    params = initialise(stored)

    def loss(spec):
        return jax.jit(jax.value_and_grad(lambda p: jnp.sin(Tower(spec).apply({"params": p}, tokens, mask)[0]).sum()))

    expected = loss(stored)(params)
    found = loss(dataclasses.replace(stored, remat=remat))(params)
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)


@pytest.mark.parametrize("kind", ["vit", "bert"])
@pytest.mark.parametrize("flat", [False, True])
def test_recomputation_stores_what_its_policy_says(kind, flat, capsys):
    """In widths of a token: all of a block's input; with "dots" queries, keys, values, what attention found, residual sums, and the MLP's four."""
    spec, wide = dataclasses.replace(SPEC, kind=kind, hidden=64, flat_products=flat), jnp.zeros((8, 64, 16))

    def stored(remat):
        tower = Tower(dataclasses.replace(spec, depth=1, remat=remat))
        params = jax.eval_shape(tower.init, jax.random.key(1), wide, None)["params"]
        print_saved_residuals(lambda p, x: tower.apply({"params": p}, x, None)[0].sum(), params, wide)
        shapes = re.findall(r"^\w+\[8,64,([\d,]+)\]", capsys.readouterr().out, re.MULTILINE)
        return sum(math.prod(map(int, shape.split(","))) for shape in shapes) / 16

    sums = 1 if kind == "vit" else 2
    assert (stored("full"), stored("dots")) == (1, 1 + 4 + sums + 4)
    assert stored("none") > 1.5 * stored("dots")


def test_bfloat16_stays_close_to_float32_and_keeps_float32_parameters(tokens, mask):
    half = dataclasses.replace(SPEC, dtype="bfloat16")
    params = initialise(half)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    expected, found = run(SPEC, params, tokens, mask)[0], run(half, params, tokens, mask)[0]
    assert found.dtype == jnp.bfloat16
    assert_allclose(found.astype(jnp.float32), expected, rtol=0.02, atol=0.05)


def test_kernels_that_are_cast_once_give_what_blocks_cast_themselves(tokens, mask):
    tower, params = Tower(dataclasses.replace(SPEC, dtype="bfloat16", scan_layers=True)), stack_layers(initialise(SPEC))

    def loss(params, cast):
        taken = cast_products(params, "bfloat16") if cast else params
        found = tower.apply({"params": taken}, (tokens, mask), (tokens[:, :3], None), method="together")
        return sum(jnp.sin(layers.tokens.astype(jnp.float32)).sum() for layers in found)

    steps = [jax.jit(jax.value_and_grad(functools.partial(loss, cast=cast)))(params) for cast in (False, True)]
    assert steps[0][0] == steps[1][0]
    for ours, theirs in zip(*(jax.tree.leaves(gradients) for _, gradients in steps), strict=True):
        assert ours.dtype == theirs.dtype == jnp.float32
        assert_allclose(ours, theirs, rtol=2**-6, atol=2**-6 * float(jnp.abs(theirs).max()))


def test_key_biases_have_no_gradient_because_they_shift_all_logits_of_a_query_alike(tokens):
    params = initialise(SPEC)
    gradient = jax.jit(jax.grad(lambda p: jnp.sin(Tower(SPEC).apply({"params": p}, tokens, None)[0]).sum()))(params)
    for layer in range(SPEC.depth):
        assert_allclose(gradient[f"blocks_{layer}"]["attn"]["key"]["bias"], 0, atol=1e-5)


def test_gelu_is_x_times_the_normal_distribution_in_value_and_gradient():
    x = np.linspace(-8, 8, 401)
    assert_allclose(gelu(jnp.asarray(x, jnp.float32)), x * 0.5 * (1 + erf(x / np.sqrt(2))), atol=1e-6)
    slope = jax.vmap(jax.grad(gelu))(jnp.asarray(x, jnp.float32))
    assert_allclose(slope, norm.cdf(x) + x * norm.pdf(x), atol=2e-6)
    assert gelu(jnp.ones(2, jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("kind", ["vit", "bert"])
@pytest.mark.parametrize("how", [{}, {"scan_layers": True, "remat": "dots"}], ids=["unrolled", "scan dots"])
def test_flat_products_change_neither_values_nor_gradients(kind, how, tokens, mask):
    stacked = dataclasses.replace(SPEC, kind=kind, **how)
    params = initialise(stacked)

    def loss(spec):
        return jax.jit(jax.value_and_grad(lambda p: jnp.sin(Tower(spec).apply({"params": p}, tokens, mask)[0]).sum()))

    found = loss(dataclasses.replace(stacked, flat_products=True))(params)
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, loss(stacked)(params))


def queries_keys_values(length, dtype="bfloat16"):
    return (jax.random.normal(jax.random.key(i), (3, length, 2, 8), dtype) for i in range(3))


def outputs_and_gradients(attention, length, mask, **options):
    """Of a stack in bfloat16: its tokens behind blocks 1 and 3, and the gradients of tokens and parameters."""
    spec = dataclasses.replace(SPEC, dtype="bfloat16", attention=attention, **options)
    params, tokens = initialise(SPEC), jax.random.normal(jax.random.key(2), (3, length, 16))
    params = stack_layers(params) if spec.scan_layers else params

    def loss(params, tokens):
        last, (first,) = Tower(spec, taps=(1,)).apply({"params": params}, tokens, mask)
        return jnp.sum((last + first).astype(jnp.float32) * jnp.arange(length)[:, None]), (first, last)

    step = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    return step, (params, tokens)


MASKS = [(6, None), (7, None), (7, PADDED[:, None]), (7, PADDED[:1, None])]


def assert_close(found, expected):
    for ours, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        ours, other = (np.asarray(array, np.float32) for array in (ours, other))
        assert_allclose(ours, other, rtol=0.05, atol=0.02 * max(np.abs(other).max(), 0.1))


@pytest.mark.parametrize("length, mask", MASKS)
def test_what_cudnn_is_given_means_the_same_attention(monkeypatch, length, mask):
    """JAX's own attention in cuDNN's place, which refuses odd lengths as that does."""
    plain, asked = jax.nn.dot_product_attention, []

    def stand_in(query, key, value, *, key_value_seq_lengths, implementation):
        assert implementation == "cudnn"
        assert key.shape[1] % 2 == 0
        asked.append(query.shape)
        return plain(query, key, value, key_value_seq_lengths=key_value_seq_lengths, implementation="xla")

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    (cudnn, given), (xla, _) = (outputs_and_gradients(kind, length, mask) for kind in ("cudnn", "xla"))
    assert_close(cudnn(*given), xla(*given))
    assert len(asked) == SPEC.depth


def test_cudnn_is_given_an_even_length_of_each_stream(monkeypatch):
    plain, asked = jax.nn.dot_product_attention, []

    def stand_in(*given, implementation, **options):
        asked.append(given[0].shape[1])
        return plain(*given, **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    tower, params = Tower(dataclasses.replace(SPEC, dtype="bfloat16", attention="cudnn")), initialise(SPEC)
    views = [jax.random.normal(jax.random.key(length), (3, length, 16)) for length in (7, 4)]
    found = tower.apply({"params": params}, *((view, None) for view in views), method="together")
    assert asked == [8, 4] * SPEC.depth
    for view, layers in zip(views, found, strict=True):
        assert layers.tokens.shape == view.shape
        assert_close(layers.tokens, tower.apply({"params": params}, view, None)[0])


def test_cudnn_is_not_asked_for_what_it_does_not_know(monkeypatch):
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda *_, **__: pytest.fail("asked"))
    attend(*queries_keys_values(6, "float32"), None, "cudnn")
    attend(*queries_keys_values(6), jnp.ones((1, 6, 6), bool), "cudnn")
    attend(*queries_keys_values(7), None, "cudnn")


@pytest.mark.accelerator
@pytest.mark.parametrize("length, mask", MASKS)
def test_cudnn_gives_the_same_attention(length, mask):
    (cudnn, given), (xla, _) = (outputs_and_gradients(kind, length, mask) for kind in ("cudnn", "xla"))
    assert_close(cudnn(*given), xla(*given))


@pytest.mark.accelerator
def test_what_cudnn_found_is_not_computed_again():
    step, given = outputs_and_gradients("cudnn", 8, None, remat="dots")
    assert step.lower(*given).compile().as_text().count('"__cudnn$fmhaSoftmax"') == SPEC.depth
