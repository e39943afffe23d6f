"""The composed model: what its features are made of, what they do not depend on, what is refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.extend.core import jaxprs_in_params
from numpy.testing import assert_allclose, assert_array_equal

from input_pipeline.errors import UserError
from msfl_jax import presets
from msfl_jax.config import from_config_dict
from msfl_jax.encoders import cast_products, stack_layers
from msfl_jax.model import ENCODERS, Features, Keys, Model
from msfl_jax.vectors import unit

VOCAB = 30
KEYS = Keys.at(0, 0)
RECONSTRUCTION = [name for name in Features._fields if name.startswith(("pixel_", "token_"))]


def make(**changes):
    """A tiny model at 32 px with 16 patches; changes are given as {"image.pool": "mean", ...} with "." as "__"."""
    config = presets.pretraining("tiny", presets.vit_tiny())
    sizes = {
        "model__vision": {"image_size": 32, "width": 16, "depth": 2, "heads": 2, "cls_token": True},
        "model__text": {"width": 16, "depth": 1, "heads": 2, "max_tokens": 16},
        "model__pixel_decoder": {"width": 8, "depth": 1, "heads": 2},
        "model": {"embedding_width": 12, "region_width": 12, "matching_width": 8},
        "text": {"max_sentences": 3},
    }
    for path, values in sizes.items():
        functools.reduce(getattr, path.split("__"), config).update(values)
    for path, value in changes.items():
        *parents, name = path.split("__")
        setattr(functools.reduce(getattr, parents, config), name, value)
    return Model.create(from_config_dict(config), vocab_size=VOCAB)


@functools.cache
def initialise(model):
    return jax.jit(model.init)(jax.random.key(0))


@functools.partial(jax.jit, static_argnums=0)
def run(model, params, batch, keys=KEYS):
    return model.features(params, batch, keys)


def words(*sentences):
    """Token and sentence ids, 16 long, of sentences given as lists of word ids."""
    tokens = [2, *(word for sentence in sentences for word in sentence), 3]
    ids = [0, *(i + 1 for i, sentence in enumerate(sentences) for _ in sentence), 0]
    pad = [0] * (16 - len(tokens))
    return tokens + pad, ids + pad


@pytest.fixture(scope="module")
def batch():
    rows = [words([7, 8, 9], [10, 11]), words([12, 13]), words()]
    return {
        "image": jax.random.randint(jax.random.key(5), (3, 32, 32, 1), 0, 256).astype(jnp.uint8),
        "token_ids": jnp.asarray([row[0] for row in rows], jnp.int32),
        "sentence_ids": jnp.asarray([row[1] for row in rows], jnp.int32),
    }


def test_features_have_the_agreed_shapes_and_are_float32(batch):
    model = make(model__compute_dtype="bfloat16")
    features = run(model, initialise(make()), batch)
    shapes = {name: value.shape for name, value in features._asdict().items()}
    assert shapes == {
        "image_embedding": (3, 12),
        "report_embedding": (3, 12),
        "regions": (3, 16, 12),
        "sentences": (3, 4, 12),
        "sentence_mask": (3, 4),
        "temperature": (),
        "pixel_prediction": (3, 16, 64),
        "pixel_target": (3, 16, 64),
        "pixel_masked": (3, 16),
        "token_logits": (3, 3, VOCAB),
        "token_targets": (3, 3),
        "token_weights": (3, 3),
    }
    kinds = {name: value.dtype for name, value in features._asdict().items()}
    assert {name for name, kind in kinds.items() if kind != jnp.float32} == {
        "sentence_mask",
        "pixel_masked",
        "token_targets",
    }
    assert {leaf.dtype for leaf in jax.tree.leaves(initialise(model))} == {jnp.dtype("float32")}


def test_bfloat16_embeddings_are_close_to_float32_ones(batch):
    params = initialise(make())
    expected, found = (run(make(model__compute_dtype=kind), params, batch) for kind in ("float32", "bfloat16"))
    for name in ("image_embedding", "report_embedding"):
        cosine = (unit(getattr(expected, name)) * unit(getattr(found, name))).sum(axis=1)
        assert_allclose(cosine, 1, atol=2e-3)
    assert_allclose(found.pixel_prediction, expected.pixel_prediction, atol=0.1)


def test_scanned_layers_give_the_same_features(batch):
    model = make(regions__layer=1, regions__window_radius=1)
    scanned = make(regions__layer=1, regions__window_radius=1, model__scan_layers=True)
    expected = run(model, initialise(model), batch)
    found = run(scanned, stack_layers(initialise(model)), batch)
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-4, atol=2e-5), found, expected)


def test_reconstruction_is_left_out_where_its_weight_is_0_and_nothing_else_changes(batch):
    params = initialise(make())
    expected, found = (run(model, params, batch) for model in (make(), make(objective__lambda_modality=0.0)))
    assert [name for name, value in found._asdict().items() if value is None] == RECONSTRUCTION
    assert_allclose(found.image_embedding, expected.image_embedding, rtol=1e-5, atol=1e-6)
    assert_allclose(found.sentences, expected.sentences, rtol=1e-5, atol=1e-6)


def test_models_with_fewer_objectives_start_from_the_same_parameters():
    fewer = make(objective__lambda_local=0.0, objective__lambda_instance=0.0, objective__lambda_modality=0.0)
    jax.tree.map(assert_array_equal, initialise(fewer), initialise(make()))


def test_a_part_starts_the_same_whichever_others_exist():
    plain, more = initialise(make()), initialise(make(regions__layer=1, regions__projection="own"))
    assert set(more["heads"]) - set(plain["heads"]) == {"region_norm", "region_projection"}
    jax.tree.map(assert_array_equal, {name: more["heads"][name] for name in plain["heads"]}, plain["heads"])


def test_embeddings_of_evaluation_are_those_of_training(batch):
    model = make()
    params = initialise(model)
    features = run(model, params, batch)
    image_embedding, regions = jax.jit(model.encode_image)(params, batch["image"])
    report = jax.jit(model.encode_report)(params, batch["token_ids"], batch["sentence_ids"])
    found = (image_embedding, regions, *report)
    for value, expected in zip(found, (features[0], features[2], features[1], *features[3:5]), strict=True):
        assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


def test_masks_follow_from_the_key_and_leave_the_alignment_of_two_passes_alone(batch):
    model = make()
    params = initialise(model)
    first, again, other = (run(model, params, batch, Keys.at(0, step)) for step in (1, 1, 2))
    jax.tree.map(assert_array_equal, first, again)
    assert (first.pixel_masked != other.pixel_masked).any()
    assert_array_equal(first.image_embedding, other.image_embedding)
    assert_array_equal(first.report_embedding, other.report_embedding)


def test_a_shared_image_pass_pools_visible_patches_only(batch):
    model = make(image__passes="shared", image__mask_ratio=0.5)
    params = initialise(make())
    features = run(model, params, batch)
    assert features.regions.shape == (3, 8, 12)
    hidden = jnp.repeat(jnp.repeat(features.pixel_masked.reshape(3, 4, 4), 8, axis=1), 8, axis=2)[..., None]
    repainted = batch | {"image": jnp.where(hidden, 255 - batch["image"], batch["image"])}
    found = run(model, params, repainted)
    assert_allclose(found.image_embedding, features.image_embedding, rtol=1e-5, atol=1e-6)
    assert_allclose(found.pixel_prediction, features.pixel_prediction, rtol=1e-5, atol=1e-5)


def test_a_shared_text_pass_aligns_what_masking_leaves(batch):
    model = make(text__passes="shared", text__mask_replacement="mask_only")
    params = initialise(make())
    whole, found = run(make(), params, batch), run(model, params, batch)
    assert (np.abs(found.report_embedding - whole.report_embedding).max(axis=1) > 1e-6).tolist() == [True, True, False]
    assert_array_equal(found.sentence_mask, whole.sentence_mask)


def test_the_decoder_is_shown_visible_patches_only(batch):
    model = make()
    params = initialise(model)
    features = run(model, params, batch)
    hidden = jnp.repeat(jnp.repeat(features.pixel_masked.reshape(3, 4, 4), 8, axis=1), 8, axis=2)[..., None]
    found = run(model, params, batch | {"image": jnp.where(hidden, 0, batch["image"])})
    assert_allclose(found.pixel_prediction, features.pixel_prediction, rtol=1e-5, atol=1e-5)
    assert features.pixel_masked.sum(axis=1).tolist() == [12, 12, 12]


@pytest.mark.parametrize("norm_pix", [True, False])
def test_targets_are_the_patches_normalised_or_not(batch, norm_pix):
    model = make(image__norm_pix=norm_pix)
    target = run(model, initialise(make()), batch).pixel_target
    corner = (np.asarray(batch["image"])[1, :8, 8:16, 0].ravel() / 255.0 - 0.4978) / 0.2449  # second patch
    if norm_pix:
        corner = (corner - corner.mean()) / np.sqrt(corner.var(ddof=1) + 1e-6)
    assert_allclose(target[1, 1], corner, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_padding_a_report_changes_nothing(batch, pool):
    model = make(text__pool=pool)
    params = initialise(model)
    encode = jax.jit(model.encode_report)
    long = encode(params, batch["token_ids"], batch["sentence_ids"])
    short = encode(params, batch["token_ids"][:, :8], batch["sentence_ids"][:, :8])
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-5, atol=1e-6), short, long)


@pytest.mark.parametrize("include_cls", [False, True])
def test_the_sentence_mask_counts_sentences_and_the_class_unit(batch, include_cls):
    model = make(objective__local_alignment__include_cls=include_cls)
    features = run(model, initialise(make()), batch)
    first = [[True]] * 3 if include_cls else [[]] * 3
    rows = [[True, True, False], [True, False, False], [False, False, False]]
    assert features.sentence_mask.tolist() == [a + b for a, b in zip(first, rows, strict=True)]
    assert features.sentences.shape == (3, 3 + include_cls, 12)


def test_the_class_unit_is_the_first_state_through_the_sentence_projection(batch):
    model = make()
    params = initialise(model)
    states = jax.jit(model.text.apply)({"params": params["text"]}, batch["token_ids"])
    head = params["heads"]["sentence_projection"]
    features = run(model, params, batch)
    assert_allclose(features.sentences[:, 0], states[:, 0] @ head["kernel"] + head["bias"], rtol=1e-4, atol=1e-5)
    second = states[0, 4:6].mean(axis=0) @ head["kernel"] + head["bias"]
    assert_allclose(features.sentences[0, 2], second, rtol=1e-4, atol=1e-5)


def test_separate_sentences_are_read_as_if_each_were_a_report(batch):
    model = make(text__sentence_pool="separate", objective__local_alignment__include_cls=False)
    params = initialise(model)
    one, other = [7, 8, 9], [10, 11]
    tokens, ids = (jnp.asarray([row], jnp.int32) for row in words(one, other))
    _, sentences, present = jax.jit(model.encode_report)(params, tokens, ids)
    read = jax.jit(model.text.apply)
    assert present.tolist() == [[True, True, False]]
    for index, sentence in enumerate((one, other)):
        alone = jnp.asarray([[2, *sentence] + [0] * (15 - len(sentence))], jnp.int32)
        state = read({"params": params["text"]}, alone)[0, 0]
        projection = params["heads"]["sentence_projection"]
        assert_allclose(sentences[0, index], state @ projection["kernel"] + projection["bias"], atol=1e-5)


def test_the_linear_pooler_is_the_pooler_before_its_tanh(batch):
    linear, bent = (
        run(model, initialise(model), batch).report_embedding for model in (make(text__pool="cls_linear"), make())
    )
    assert_allclose(np.tanh(linear), bent, atol=1e-6)


def test_patches_seen_globally_average_to_the_image_embedding_of_mean_pooling(batch):
    model = make(image__pool="mean")
    params = initialise(model)
    patches = jax.jit(model.encode_patches)(params, batch["image"])
    assert_allclose(patches.mean(axis=1), jax.jit(model.encode_image)(params, batch["image"])[0], atol=1e-5)


def test_a_shared_projection_makes_the_mean_region_the_image_embedding(batch):
    model = make()
    features = run(model, initialise(model), batch)
    assert_allclose(features.regions.mean(axis=1), features.image_embedding, rtol=1e-4, atol=1e-5)


def test_gradients_of_all_features_are_finite_also_for_reports_without_sentences_or_tokens(batch):
    model = make(image__pool="mean_max", regions__projection="own", text__pool="mean", image__normalisation="per_image")
    empty = batch | {name: batch[name].at[0].set(0) for name in ("token_ids", "sentence_ids")}
    blank = empty | {"image": batch["image"].at[0].set(0)}

    def loss(params):
        features = model.features(params, blank, KEYS)
        floats = [value for value in features if jnp.issubdtype(value.dtype, jnp.floating)]
        return sum(jnp.sin(value).sum() for value in floats) + model.match(params, *features[:2]).sum()

    value, gradients = jax.jit(jax.value_and_grad(loss))(initialise(model))
    assert np.isfinite(value)
    untouched = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradients)
        if not np.isfinite(leaf).all() or not np.abs(leaf).max() > 0
    ]
    assert [path for path in untouched if "['key']['bias']" not in path] == []


def test_matching_does_not_depend_on_the_norms_of_embeddings():
    model = make()
    image, report = jax.random.normal(jax.random.key(0), (2, 5, 12))
    expected = model.match(initialise(model), image, report)
    assert expected.shape == (5,)
    assert_allclose(model.match(initialise(model), 7 * image, 0.1 * report), expected, rtol=1e-4, atol=1e-5)


def test_the_temperature_starts_as_configured_and_never_falls_below_001():
    model = make(objective__global_alignment__temperature=0.07)
    assert_allclose(model.temperature(initialise(model)), 0.07, rtol=1e-6)
    assert_allclose(model.temperature({"temperature": {"log_scale": jnp.float32(9.0)}}), 0.01, rtol=1e-5)


def test_a_temperature_beyond_its_limit_still_has_a_gradient_that_brings_it_back():
    model = make()
    gradient = jax.grad(lambda scale: model.temperature({"temperature": {"log_scale": scale}}))(jnp.float32(5.0))
    assert gradient < 0


@pytest.mark.parametrize("learned", [True, False])
def test_the_temperature_has_a_gradient_only_if_it_is_learned(learned):
    model = make(objective__global_alignment__learn_temperature=learned)
    gradient = jax.grad(model.temperature)({"temperature": {"log_scale": jnp.float32(2.0)}})
    assert (gradient["temperature"]["log_scale"] != 0) == learned


def loops(jaxpr):
    """The scans of a program, those inside of others too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from loops(inner)


def test_a_step_loops_once_over_the_blocks_of_each_part_and_reads_kernels_cast_before(batch):
    depths = {"model__vision__depth": 4, "model__text__depth": 5, "model__pixel_decoder__depth": 6}
    model = make(model__scan_layers=True, model__compute_dtype="bfloat16", **depths)
    params = jax.eval_shape(model.init, jax.random.key(0))
    program = jax.make_jaxpr(model.features)(params, batch, KEYS).jaxpr
    over_blocks = [loop for loop in loops(program) if loop.params["length"] in depths.values()]
    assert sorted(loop.params["length"] for loop in over_blocks) == sorted(depths.values())
    for loop in over_blocks:
        kernels = [
            value.aval
            for value in loop.invars
            if value.aval.shape[:1] == (loop.params["length"],) and value.aval.ndim == 3
        ]
        assert len(kernels) == 6
        assert {kernel.dtype for kernel in kernels} == {jnp.dtype("bfloat16")}


def test_of_an_encoder_kernels_and_their_biases_alone_are_cast():
    params = jax.eval_shape(make().init, jax.random.key(0))
    for name in ENCODERS:
        cast = flatten_dict(jax.eval_shape(lambda params: cast_products(params, "bfloat16"), params[name]))
        for path, leaf in cast.items():
            dense = (*path[:-1], "kernel") in cast
            assert leaf.dtype == jnp.dtype("bfloat16" if dense else "float32"), path


def test_keys_are_folded_in_one_by_one():
    base = jax.random.fold_in(jax.random.key(3), 17)
    for purpose, key in enumerate(Keys.at(3, 17)):
        assert_array_equal(jax.random.key_data(key), jax.random.key_data(jax.random.fold_in(base, purpose)))


def test_keys_differ_by_purpose_step_and_seed():
    keys = [*Keys.at(0, 0), *Keys.at(0, 1), *Keys.at(1, 0)]
    assert len({tuple(np.asarray(jax.random.key_data(key))) for key in keys}) == 9
    traced = jax.jit(Keys.at)(jnp.uint32(1), jnp.int32(0))
    assert_array_equal(jax.random.key_data(traced.negatives), jax.random.key_data(keys[8]))


def test_models_of_equal_configurations_are_equal_and_serve_as_static_arguments():
    assert make() == make()
    assert hash(make()) == hash(make())
    assert make() != make(image__pool="cls")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model__region_width": 8},
            r"'regions\.projection' is 'shared'; expected 'own', or model\.region_width equal",
        ),
        ({"image__pool": "mean_max"}, r"'regions\.projection' is 'shared'; expected 'own' with image\.pool 'mean_max'"),
        ({"image__mask_ratio": 0.97}, r"'image\.mask_ratio' is 0\.97; expected a ratio that leaves one of 16 patches"),
        (
            {"model__text__vocab_size": 20},
            r"'model\.text\.vocab_size' is 20; expected 0, or at least the tokenizer's 30",
        ),
        ({"model__pixel_decoder__width": 6}, r"'model\.pixel_decoder\.width' is 6; expected a multiple of 4"),
    ],
)
def test_parts_that_do_not_fit_each_other_are_refused_in_one_line(changes, message):
    with pytest.raises(UserError, match=message):
        make(**changes)


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match="40 x 40 pixels; expected 32 x 32"):
        make().encode_image({}, jnp.zeros((1, 40, 40, 1), jnp.uint8))


def test_targets_of_twice_the_resolution_show_the_same_patches_in_more_pixels(batch):
    """Each target patch, shrunk, is the patch that the encoder sees; alignment is that of the shrunk image."""
    fine = make(image__target_scale=2, image__norm_pix=False)
    image = jax.random.randint(jax.random.key(6), (3, 64, 64, 1), 0, 256).astype(jnp.uint8)
    features = run(fine, initialise(fine), batch | {"image": image})
    assert features.pixel_prediction.shape == features.pixel_target.shape == (3, 16, 256)
    expected = (np.asarray(image[1, 16:32, 32:48, 0]) / 255 - 0.4978) / 0.2449
    assert_allclose(features.pixel_target[1, 4 + 2].reshape(16, 16), expected, atol=1e-4)
    small = np.asarray(image, np.float32).reshape(3, 32, 2, 32, 2).mean(axis=(2, 4)).round()[..., None]
    embedding, regions = jax.jit(fine.encode_image)(initialise(fine), jnp.asarray(small, jnp.uint8))
    assert_allclose(features.image_embedding, embedding, atol=1e-5)
    assert_allclose(features.regions, regions, atol=1e-5)


def test_a_tokenizer_of_special_tokens_only_is_refused():
    with pytest.raises(UserError, match="words beside its special tokens"):
        Model.create(dataclasses.replace(make().config), vocab_size=6)


def test_a_larger_word_table_makes_room_for_more_words():
    model = make(model__text__vocab_size=40)
    assert initialise(model)["text"]["word_embeddings"]["embedding"].shape == (40, 16)
