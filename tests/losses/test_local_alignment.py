"""The local loss against plain loops, contexts that are really formed, and every degenerate batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads
from numpy.testing import assert_allclose, assert_array_equal

from msfl_jax.losses import local_alignment, local_blocks, local_scores

OPTIONS = ("attention", "region_scale", "sentence_scale", "aggregate", "block")
compiled_scores = jax.jit(local_scores, static_argnames=OPTIONS)
compiled_loss = jax.jit(local_alignment, static_argnames=(*OPTIONS, "logit_scale", "direction"))
compiled_gradients = jax.jit(jax.value_and_grad(local_alignment, argnums=(0, 1)), static_argnames=OPTIONS)

FORMS = ("gloria", "regions")
GRAM = {"reports": 5, "sentences": 3, "patches": 4, "width": 6}  # P < 1.33 E
CONTEXT = {"reports": 5, "sentences": 3, "patches": 9, "width": 2}


@pytest.fixture(autouse=True, scope="module")
def float64():
    with jax.enable_x64():
        yield


def make_batch(reports, sentences, patches, width, seed=0, size=1.0, lengths=None):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, sentences + 1, reports) if lengths is None else np.asarray(lengths)
    return (
        size * rng.normal(size=(reports, patches, width)),
        size * rng.normal(size=(reports, sentences, width)),
        np.arange(sentences) < lengths[:, None],
    )


def softmax(values):
    weights = np.exp(values - values.max())
    return weights / weights.sum()


def cosine(a, b):
    return a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-8)


def pair_score(regions, sentences, attention, region_scale, sentence_scale, aggregate):
    """Z of one image [P, E] and the real sentences [S, E] of one report, context by context."""
    if attention == "regions":
        regions = np.array([v / np.linalg.norm(v) for v in regions])
        sentences = np.array([t / np.linalg.norm(t) for t in sentences])
    among_sentences = np.array([softmax(sentences @ v) for v in regions])
    terms = []
    for i, sentence in enumerate(sentences):
        logits = among_sentences[:, i] if attention == "gloria" else regions @ sentence
        context = sum(a * v for a, v in zip(softmax(region_scale * logits), regions, strict=True))
        terms.append(np.exp(sentence_scale * cosine(context, sentence)))
    return np.log(np.mean(terms) if aggregate == "mean" else np.sum(terms))


def loop_scores(regions, sentences, mask, attention="gloria", region_scale=4.0, sentence_scale=5.0, aggregate="sum"):
    scores = np.zeros((len(regions), len(sentences)))
    for image, v in enumerate(regions):
        for report, (t, real) in enumerate(zip(sentences, mask, strict=True)):
            if real.any():
                scores[image, report] = pair_score(v, t[real], attention, region_scale, sentence_scale, aggregate)
    return scores


def loop_contrast(logits, direction="symmetric", ignore=None):
    rows, columns = [], []
    for i in range(len(logits)):
        kept = [j for j in range(len(logits)) if i == j or ignore is None or not ignore[i, j]]
        rows.append(np.log(np.sum(np.exp(logits[i, kept]))) - logits[i, i])
        kept = [j for j in range(len(logits)) if i == j or ignore is None or not ignore[j, i]]
        columns.append(np.log(np.sum(np.exp(logits[kept, i]))) - logits[i, i])
    values = {"image_to_report": np.mean(rows), "report_to_image": np.mean(columns)}
    return values.get(direction, np.mean(rows + columns))


def scores_from_contexts(regions, sentences, mask, attention, region_scale, sentence_scale, aggregate):
    """The same scores with every context [B, B, S, E] formed and no report empty, for gradients."""
    if attention == "regions":
        regions = regions / jnp.linalg.norm(regions, axis=-1, keepdims=True)
        sentences = sentences / jnp.linalg.norm(sentences, axis=-1, keepdims=True)
    logits = jnp.einsum("ape,bse->absp", regions, sentences)
    if attention == "gloria":
        logits = jax.nn.softmax(jnp.where(mask[None, :, :, None], logits, -1e30), axis=2)
    contexts = jnp.einsum("absp,ape->abse", jax.nn.softmax(region_scale * logits, axis=3), regions)
    lengths = jnp.linalg.norm(contexts, axis=-1) * jnp.linalg.norm(sentences, axis=-1)
    terms = jnp.where(mask, jnp.exp(sentence_scale * jnp.einsum("abse,bse->abs", contexts, sentences) / lengths), 0)
    return jnp.log(terms.sum(axis=-1) / (mask.sum(axis=-1) if aggregate == "mean" else 1))


@settings(max_examples=30)
@given(
    shape=st.sampled_from([GRAM, CONTEXT]),
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([0.05, 1.0, 6.0]),
    attention=st.sampled_from(FORMS),
    aggregate=st.sampled_from(["sum", "mean"]),
    block=st.sampled_from([None, 2]),
    lengths=st.lists(st.integers(0, 3), min_size=5, max_size=5),
)
def test_scores_equal_a_loop_over_pairs(shape, seed, size, attention, aggregate, block, lengths):
    regions, sentences, mask = make_batch(**shape, seed=seed, size=size, lengths=lengths)
    scores = compiled_scores(regions, sentences, mask, attention=attention, aggregate=aggregate, block=block)
    expected = loop_scores(regions, sentences, mask, attention, aggregate=aggregate)
    assert_allclose(scores, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("attention", FORMS)
def test_scales_act_where_the_equation_has_them(attention):
    batch = make_batch(**GRAM)
    scales = {"region_scale": 7.0, "sentence_scale": 3.0}
    scores = compiled_scores(*map(jnp.asarray, batch), attention=attention, **scales)
    assert_allclose(scores, loop_scores(*batch, attention, **scales), rtol=1e-9)
    loss = compiled_loss(*map(jnp.asarray, batch), attention=attention, logit_scale=2.5, **scales)
    assert_allclose(loss, loop_contrast(2.5 * loop_scores(*batch, attention, **scales)), rtol=1e-9)


@pytest.mark.parametrize("attention", FORMS)
def test_a_sharp_attention_on_regions_neither_overflows_nor_vanishes(attention):
    batch = make_batch(**GRAM)
    scores = compiled_scores(*(jnp.asarray(a) for a in batch), attention=attention, region_scale=3000.0)
    assert_allclose(scores, loop_scores(*batch, attention, region_scale=3000.0), rtol=1e-9)


def test_images_and_reports_need_not_be_equally_many():
    regions, sentences, mask = make_batch(**GRAM)
    scores = compiled_scores(jnp.asarray(regions[:2]), jnp.asarray(sentences), jnp.asarray(mask), block=3)
    assert_allclose(scores, loop_scores(regions[:2], sentences, mask), rtol=1e-9)


@pytest.mark.parametrize("direction", ["symmetric", "image_to_report", "report_to_image"])
def test_same_study_pairs_leave_the_denominators_but_matched_pairs_never_do(direction):
    batch = make_batch(**GRAM)
    same_study = np.zeros((5, 5), bool)
    same_study[[0, 1, 2, 2], [1, 0, 2, 4]] = True
    loss = compiled_loss(*map(jnp.asarray, batch), direction=direction, same_study=jnp.asarray(same_study))
    assert_allclose(loss, loop_contrast(10 * loop_scores(*batch), direction, same_study), rtol=1e-9)
    assert abs(loss - compiled_loss(*map(jnp.asarray, batch), direction=direction)) > 1e-3


@pytest.mark.parametrize("attention", FORMS)
@pytest.mark.parametrize("shape", [GRAM, CONTEXT], ids=["gram", "context"])
@pytest.mark.parametrize("aggregate, block", [("sum", None), ("mean", 2)])
def test_gradients_equal_those_through_formed_contexts(attention, shape, aggregate, block):
    regions, sentences, mask = map(jnp.asarray, make_batch(**shape))
    scales = {"attention": attention, "region_scale": 4.0, "sentence_scale": 5.0, "aggregate": aggregate}
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(5, 5)))

    def weighed(scores, **options):
        return lambda v, t: jnp.sum(weights * scores(v, t, mask, **scales, **options))

    actual = jax.jit(jax.grad(weighed(local_scores, block=block), argnums=(0, 1)))(regions, sentences)
    expected = jax.jit(jax.grad(weighed(scores_from_contexts), argnums=(0, 1)))(regions, sentences)
    for ours, formed in zip(actual, expected, strict=True):
        assert_allclose(ours, formed, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("attention", FORMS)
@pytest.mark.parametrize("shape", [GRAM, CONTEXT], ids=["gram", "context"])
@pytest.mark.parametrize(
    "limit, region_scale", [("SCORES_AT_ONCE", 20.0), ("SCORES_AT_ONCE", 50.0), ("_CACHED_SCORES", 4.0)]
)
def test_gradients_do_so_over_several_tiles_in_both_directions_and_with_sharp_attention(
    monkeypatch, attention, shape, limit, region_scale
):
    """Tiles of two images and two reports, the last of each filled up; above a scale of 20 a maximum is taken out of the weights.

    The first limit makes the batch a large one, which keeps nothing of its forward pass.
    """
    monkeypatch.setattr(local_blocks, limit, 2 * 2 * shape["patches"] * shape["sentences"])
    monkeypatch.setattr(local_blocks, "_REPORTS_AT_ONCE", 2)
    regions, sentences, mask = map(jnp.asarray, make_batch(**shape))
    regions = regions[:3]
    tiling = local_blocks.Tiling.of(regions.shape, sentences.shape, None, gram=shape == GRAM)
    assert tiling == local_blocks.Tiling(images=2, reports=2, keeps=limit == "_CACHED_SCORES")
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(3, 5)))
    scales = {"attention": attention, "region_scale": region_scale, "sentence_scale": 5.0, "aggregate": "sum"}

    def weighed(scores, **options):
        return lambda v, t: jnp.sum(weights * scores(v, t, mask, **scales, **options))

    actual = jax.jit(jax.grad(weighed(local_scores), argnums=(0, 1)))(regions, sentences)
    expected = jax.jit(jax.grad(weighed(scores_from_contexts), argnums=(0, 1)))(regions, sentences)
    for ours, formed in zip(actual, expected, strict=True):
        assert_allclose(ours, formed, rtol=1e-9, atol=1e-11)


def test_weights_as_small_as_they_get_still_have_a_direction():
    """Regions opposite to the sentence, at the sharpest scale without a maximum taken out, in float32."""
    rng = np.random.default_rng(0)
    sentence = np.eye(1, 6)
    regions = -sentence + 1e-3 * rng.normal(size=(1, 4, 6))
    arrays = (regions, sentence[None], np.ones((1, 1), bool))
    options = {"attention": "regions", "region_scale": 20.0}
    expected = loop_scores(*arrays, **options)
    scores = compiled_scores(*(jnp.asarray(a, "bool" if a.dtype == bool else "float32") for a in arrays), **options)
    assert_allclose(scores, expected, rtol=1e-5)


@pytest.mark.parametrize("shape", [GRAM, CONTEXT], ids=["gram", "context"])
def test_the_form_is_the_one_with_fewer_operations(shape):
    patches, width = shape["patches"], shape["width"]
    assert local_blocks.uses_gram(patches, width) == (4 * width + 3 * patches < 8 * width) == (shape == GRAM)


@pytest.mark.parametrize("images, reports", [(0, 5), (5, 0)])
def test_nothing_to_compare_is_no_score(images, reports):
    regions, sentences, mask = map(jnp.asarray, make_batch(**GRAM))
    assert local_scores(regions[:images], sentences[:reports], mask[:reports]).shape == (images, reports)


@pytest.mark.parametrize("attention", FORMS)
def test_gradients_equal_central_differences(attention):
    regions, sentences, mask = map(jnp.asarray, make_batch(**GRAM))
    loss = jax.jit(lambda v, t: local_alignment(v, t, mask, attention=attention, block=2))
    check_grads(loss, (regions, sentences), order=1, modes=["rev"], eps=1e-5, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("attention, shape", [("gloria", GRAM), ("regions", CONTEXT)], ids=["gram", "context"])
def test_the_block_size_does_not_change_the_scores(attention, shape):
    batch = make_batch(**shape)
    expected = compiled_scores(*batch, attention=attention)
    for block in (0, 1, 3, 64):
        assert_allclose(compiled_scores(*batch, attention=attention, block=block), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("attention", FORMS)
@pytest.mark.parametrize("garbage", [7.0, np.nan])
def test_padding_a_report_changes_nothing_and_gets_no_gradient(attention, garbage):
    regions, sentences, mask = make_batch(**GRAM)
    padded = np.concatenate([np.where(mask[..., None], sentences, garbage), np.full((5, 2, 6), garbage)], axis=1)
    padded_mask = np.concatenate([mask, np.zeros((5, 2), bool)], axis=1)
    value, gradients = compiled_gradients(regions, sentences, mask, attention=attention)
    padded_value, padded_gradients = compiled_gradients(regions, padded, padded_mask, attention=attention)
    assert_allclose(padded_value, value, rtol=1e-12)
    assert_allclose(padded_gradients[0], gradients[0], rtol=1e-10, atol=1e-13)
    assert_array_equal(np.asarray(padded_gradients[1])[~padded_mask], 0)


def test_with_one_sentence_gloria_attends_to_all_regions_alike():
    regions, sentences, mask = make_batch(**GRAM, lengths=[1] * 5)
    scores = compiled_scores(*map(jnp.asarray, (regions, sentences, mask)))
    expected = [[5 * cosine(v.mean(axis=0), t[0]) for t in sentences] for v in regions]
    assert_allclose(scores, expected, rtol=1e-12)


@pytest.mark.parametrize("attention", FORMS)
def test_a_report_without_sentences_scores_zero_and_gives_no_gradient(attention):
    regions, sentences, mask = map(jnp.asarray, make_batch(**GRAM, lengths=[2, 0, 3, 1, 3]))

    def column(v, t):
        return compiled_scores(v, t, mask, attention=attention)[:, 1]

    assert_array_equal(column(regions, sentences), 0)
    for jacobian in jax.jit(jax.jacrev(column, argnums=(0, 1)))(regions, sentences):
        assert_array_equal(jacobian, 0)


@pytest.mark.parametrize("attention, shape", [("gloria", GRAM), ("regions", CONTEXT)], ids=["gram", "context"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_degenerate_batches_stay_finite_with_finite_gradients(attention, shape, dtype):
    regions, sentences, mask = make_batch(**shape)
    nothing, first_only = np.zeros_like(mask), np.arange(3) < np.ones((5, 1))
    cases = {
        "one sentence each": (regions, sentences, first_only),
        "nothing but padding": (regions, sentences, nothing),
        "one report is padding": (regions, sentences, mask & (np.arange(5) != 2)[:, None]),
        "identical": (np.ones_like(regions), np.ones_like(sentences), mask),
        "zero regions": (np.zeros_like(regions), sentences, mask),
        "zero sentences": (regions, np.zeros_like(sentences), mask),
        "all zero": (np.zeros_like(regions), np.zeros_like(sentences), mask),
        "large": (30 * regions, 30 * sentences, mask),
    }
    if dtype != "float16":  # whose range the true gradient leaves
        cases["one sentence, regions that cancel"] = (
            regions - regions.mean(axis=1, keepdims=True),
            sentences,
            first_only,
        )
    compute = jax.jit(jax.value_and_grad(lambda v, t, m: local_alignment(v, t, m, attention=attention), argnums=(0, 1)))
    for name, (v, t, real) in cases.items():
        value, gradients = compute(jnp.asarray(v, dtype), jnp.asarray(t, dtype), jnp.asarray(real))
        assert np.isfinite(value), name
        for gradient in gradients:
            assert gradient.dtype == dtype
            assert np.isfinite(np.asarray(gradient, np.float64)).all(), name


@pytest.mark.parametrize("lengths", [[1], [3], [0]])
def test_a_batch_of_one_has_loss_zero(lengths):
    regions, sentences, mask = map(jnp.asarray, make_batch(**GRAM | {"reports": 1}, lengths=lengths))
    value, gradients = compiled_gradients(regions, sentences, mask)
    assert value == 0
    assert all(np.array_equal(gradient, np.zeros_like(gradient)) for gradient in gradients)


def test_identical_pairs_cost_the_logarithm_of_the_batch_in_both_directions():
    regions, sentences, mask = jnp.ones((5, 4, 6)), jnp.ones((5, 3, 6)), jnp.ones((5, 3), bool)
    assert_allclose(compiled_loss(regions, sentences, mask), np.log(5), rtol=1e-12)


def test_the_mean_takes_the_advantage_of_long_reports_away():
    regions, sentences, mask = jnp.ones((2, 4, 6)), jnp.ones((2, 3, 6)), jnp.asarray([[True] * 3, [True, False, False]])
    summed = compiled_scores(regions, sentences, mask)
    assert_allclose(summed[:, 0] - summed[:, 1], np.log(3), rtol=1e-12)
    assert_allclose(local_scores(regions, sentences, mask, aggregate="mean"), 5, rtol=1e-12)


def test_float16_is_computed_in_float32_and_float64_stays():
    regions, sentences, mask = map(jnp.asarray, make_batch(**GRAM))
    v, t = regions.astype("float16"), sentences.astype("float16")
    scores = compiled_scores(v, t, mask)
    assert scores.dtype == jnp.float32
    expected = loop_scores(np.asarray(v, np.float64), np.asarray(t, np.float64), np.asarray(mask))
    assert_allclose(scores, expected, rtol=2e-5, atol=2e-5)
    assert compiled_loss(regions.astype("bfloat16"), sentences.astype("float32"), mask).dtype == jnp.float32
    assert compiled_loss(regions, sentences, mask).dtype == jnp.float64


@pytest.mark.parametrize("attention", FORMS)
@pytest.mark.parametrize("shape", [GRAM, CONTEXT], ids=["gram", "context"])
def test_products_of_bfloat16_are_summed_in_float32(attention, shape):
    """Against float64 at the same rounded inputs: sums in bfloat16 would be 3 % off."""
    shape = shape | {"reports": 16, "patches": 8 * shape["patches"], "width": 8 * shape["width"]}
    regions, sentences, mask = map(jnp.asarray, make_batch(**shape, size=0.5))
    rounded = regions.astype("bfloat16"), sentences.astype("bfloat16")
    value, gradients = compiled_gradients(*rounded, mask, attention=attention)
    exact, expected = compiled_gradients(*(a.astype("float64") for a in rounded), mask, attention=attention)
    assert value.dtype == jnp.float32
    assert_allclose(value, exact, rtol=1e-3)
    for ours, theirs in zip(gradients, expected, strict=True):
        difference = np.linalg.norm(np.asarray(ours, np.float64) - theirs)
        assert difference < 0.015 * np.linalg.norm(theirs)


def test_unknown_words_are_refused():
    batch = tuple(map(jnp.asarray, make_batch(**GRAM)))
    for options in ({"attention": "region"}, {"aggregate": "max"}, {"direction": "both"}):
        with pytest.raises(Exception, match=str(next(iter(options.values())))):
            local_alignment(*batch, **options)


def all_shapes(jaxpr):
    """Shapes of every intermediate, inside loops and recomputed parts too."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        for parameter in jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from all_shapes(inner)


def shapes_of_value_and_gradient(shape, scores=local_scores, **options):
    regions, sentences, mask = map(jnp.asarray, make_batch(**shape))
    loss = jax.value_and_grad(lambda v, t: scores(v, t, mask, **options).sum(), argnums=(0, 1))
    return set(all_shapes(jax.make_jaxpr(loss)(regions, sentences).jaxpr))


@pytest.mark.parametrize("attention", FORMS)
@pytest.mark.parametrize("patches, width", [(11, 13), (31, 13)], ids=["gram", "context"])
@pytest.mark.parametrize("block", [None, 4])
def test_contexts_of_all_pairs_are_never_formed(attention, patches, width, block):
    shape = {"reports": 16, "sentences": 3, "patches": patches, "width": width}

    def contexts(shapes):
        return [found for found in shapes if width in found and np.prod(found) >= 16 * 16 * 3 * width]

    assert not contexts(shapes_of_value_and_gradient(shape, attention=attention, block=block))
    options = {"attention": attention, "region_scale": 4.0, "sentence_scale": 5.0, "aggregate": "sum"}
    assert contexts(shapes_of_value_and_gradient(shape, scores_from_contexts, **options))


@pytest.mark.parametrize("attention", FORMS)
@pytest.mark.parametrize("patches, width", [(11, 13), (31, 13)], ids=["gram", "context"])
def test_with_a_block_the_scores_of_all_pairs_are_never_formed_nor_kept(attention, patches, width):
    shape = {"reports": 16, "sentences": 3, "patches": patches, "width": width}
    largest = max(np.prod(found) for found in shapes_of_value_and_gradient(shape, attention=attention, block=2))
    assert largest < 16 * 16 * 3 * patches / 2
    assert largest <= max(
        16 * 2 * 3 * patches, 16 * patches * max(patches, width)
    )  # a block of scores, the regions or their gram


def test_a_batch_too_large_for_one_block_is_split_on_its_own():
    regions, sentences, mask = (
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in [((1024, 49, 64), "float32"), ((1024, 8, 64), "float32"), ((1024, 8), "bool")]
    )
    loss = jax.value_and_grad(local_alignment, argnums=(0, 1))
    largest = max(np.prod(found) for found in all_shapes(jax.make_jaxpr(loss)(regions, sentences, mask).jaxpr))
    assert 1024 * 8 * 49 < largest <= 2**24
