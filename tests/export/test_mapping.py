"""Names and arrays out and in again: bit-equal, complete, and refused where a format cannot say what a model does."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as drawn
from numpy.testing import assert_allclose, assert_array_equal

from input_pipeline.errors import UserError
from msfl_jax.export.arrays import CHEST, IMAGENET, colour_kernel, colour_pixels, grey_kernel, grey_pixels
from msfl_jax.export.importing import overlay
from msfl_jax.export.mapping import from_format, refuse_inexpressible, to_format
from msfl_jax.export.names import rows
from msfl_jax.export.trees import flatten, leaves

from .models import make, random_params, shapes, tiny

ROUND_TRIPS = ("msfl", "hf_vit", "hf_vit_mae", "hf_bert", "timm", "mae")


@pytest.mark.parametrize("form", ROUND_TRIPS)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model__scan_layers": False},
        {"model__vision__positions": "learned"},
        {"text__pool": "mean"},
        {"model__embedding_width": 12, "regions__projection": "own"},
    ],
)
def test_export_then_import_is_bit_equal(form, changes):
    model = tiny(**changes)
    params = random_params(model)
    back, diff = from_format(to_format(params, form, model.config), form, model.config, shapes(model))
    assert not diff
    expected = dict(leaves(params))
    found = dict(leaves(back))
    assert found
    for path, array in found.items():
        assert array.dtype == np.float32
        assert_array_equal(array, expected[path], err_msg=path)
    if form == "msfl":
        assert found.keys() == expected.keys()


@pytest.mark.parametrize("positions", ["sincos", "learned"])
def test_each_format_holds_all_of_its_parts(positions):
    model = tiny(model__vision__positions=positions)
    own = flatten(random_params(model))
    held = {form: {row.path for row in rows(form, own)} for form in (*ROUND_TRIPS, "maco")}
    vision = {path for path in own if path.startswith("vision/")}
    decoder = {path for path in own if path.startswith("pixel_decoder/")}
    text = {path for path in own if path.startswith(("text/", "heads/pooler/", "heads/language/"))}
    assert held["hf_vit"] == held["timm"] == vision
    assert held["hf_vit_mae"] == held["mae"] == vision | decoder
    assert held["hf_bert"] == text
    assert held["maco"] == vision | decoder | text | {path for path in own if "image_projection" in path}
    assert held["msfl"] == own.keys()


def test_own_names_are_those_of_a_plain_torch_module():
    tensors = to_format(random_params(tiny()), "msfl", tiny().config)
    shapes_by_name = {name: tensor.shape for name, tensor in tensors.items()}
    assert shapes_by_name["vision.patch_embed.weight"] == (8, 256)
    assert shapes_by_name["vision.blocks.1.attn.query.bias"] == (8,)
    assert shapes_by_name["text.word_embeddings.weight"] == (60, 8)
    assert shapes_by_name["text.embeddings_norm.weight"] == (8,)
    assert shapes_by_name["heads.matching.logit.weight"] == (1, 4)
    assert shapes_by_name["heads.language.bias"] == (60,)
    assert shapes_by_name["temperature.log_scale"] == ()


@pytest.mark.parametrize("form", ROUND_TRIPS)
def test_tensors_lie_in_memory_as_files_are_written(form):
    model = tiny()
    assert all(tensor.flags.c_contiguous for tensor in to_format(random_params(model), form, model.config).values())


def test_the_pooler_leaves_only_as_bert_has_it():
    def names(**changes):
        model = tiny(**changes)
        return to_format(random_params(model), "hf_bert", model.config)

    assert "bert.pooler.dense.weight" in names()
    assert "bert.pooler.dense.weight" not in names(text__pool="cls_linear")
    assert "bert.pooler.dense.weight" not in names(model__embedding_width=12, regions__projection="own")


def test_parts_can_be_chosen_both_ways():
    model = tiny()
    tensors = to_format(random_params(model), "hf_bert", model.config, parts=("text",))
    assert all(name.startswith(("bert.embeddings.", "bert.encoder.")) for name in tensors)
    whole = to_format(random_params(model), "mae", model.config)
    found, diff = from_format(whole, "mae", model.config, shapes(model), parts=("vision",))
    assert found.keys() == {"vision"}
    assert not diff


@pytest.mark.parametrize(
    ("changes", "form", "reason"),
    [
        ({"regions__window_radius": 1, "regions__layer": 1}, "hf_vit", "window"),
        ({"model__vision__patch_layers": 2}, "timm", "two layers"),
        ({"model__vision__cls_token": False}, "mae", "no class token"),
        ({"image__target_scale": 2}, "hf_vit_mae", "twice the size"),
        ({}, "maco", "only read"),
    ],
)
def test_what_a_format_cannot_express_is_refused_in_one_line(changes, form, reason):
    with pytest.raises(UserError, match=reason) as caught:
        refuse_inexpressible(form, make(**changes).config)
    assert "\n" not in str(caught.value)
    refuse_inexpressible("msfl", make(**changes).config)
    refuse_inexpressible("hf_bert", make(**changes).config)


def test_windowed_models_leave_in_our_own_format():
    model = tiny(
        regions__window_radius=1, regions__layer=1, model__vision__patch_layers=2, model__vision__cls_token=False
    )
    params = random_params(model)
    back, diff = from_format(to_format(params, "msfl", model.config), "msfl", model.config, shapes(model))
    assert not diff
    assert jax.tree.all(jax.tree.map(np.array_equal, back, params))


FLOATS = st.floats(-1e6, 1e6, width=32)


@given(drawn(np.float32, (4, 2), elements=FLOATS))
def test_a_grey_kernel_survives_three_colours_bit_by_bit(kernel):
    back, shift = grey_kernel(colour_kernel(kernel), CHEST, CHEST)
    assert_array_equal(back, kernel)
    assert_array_equal(shift, 0)


@given(drawn(np.float32, (4, 3), elements=FLOATS))
def test_grey_predictions_survive_three_colours_bit_by_bit(tensor):
    assert_array_equal(grey_pixels(colour_pixels(tensor)), tensor)


def test_a_colour_kernel_sees_grey_pixels_as_its_own_normalisation_would():
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((5, 3, 4, 4)).astype(np.float32)
    x = rng.uniform(size=(16,))
    kernel, shift = grey_kernel(weight, IMAGENET, CHEST)
    ours = (x - CHEST.mean[0]) / CHEST.deviation[0] @ kernel + shift
    theirs = sum(weight[:, c].reshape(5, -1) @ ((x - IMAGENET.mean[c]) / IMAGENET.deviation[c]) for c in range(3))
    assert_allclose(ours, theirs, rtol=1e-5)


def test_layers_load_up_to_the_first_that_is_not_there():
    shallow, deep = tiny(), tiny(model__vision__depth=4)
    params = random_params(shallow)
    tensors = to_format(params, "timm", shallow.config)
    found, diff = from_format(tensors, "timm", deep.config, shapes(deep))
    assert {name.split(".")[1] for name in diff.missing} == {"2", "3"}
    assert not diff.without(("blocks.2", "blocks.3"))
    for path, array in leaves(found["vision"]["blocks"]):
        assert_array_equal(array, dict(leaves(params["vision"]["blocks"]))[path])
    fresh = random_params(deep, seed=1)
    blocks = overlay(fresh, found)["vision"]["blocks"]["fc1"]["kernel"]
    assert_array_equal(blocks[:2], params["vision"]["blocks"]["fc1"]["kernel"])
    assert_array_equal(blocks[2:], fresh["vision"]["blocks"]["fc1"]["kernel"][2:])
    gap = {name: tensor for name, tensor in tensors.items() if not name.startswith("blocks.0.")}
    found, diff = from_format(gap, "timm", shallow.config, shapes(shallow))
    assert "blocks" not in found["vision"]
    assert any("16 tensors behind a layer that is not there" in note for note in diff.notes)


def test_differences_are_named():
    model = tiny()
    tensors = to_format(random_params(model), "timm", model.config)
    tensors["head.weight"] = tensors.pop("norm.weight")
    tensors["blocks.1.attn.qkv.weight"] = tensors["blocks.1.attn.qkv.weight"][:, :4]
    _, diff = from_format(tensors, "timm", model.config, shapes(model))
    assert diff.missing == ("norm.weight",)
    assert diff.unexpected == ("head.weight",)
    assert diff.misshapen == (("blocks.1.attn.qkv.weight", "[24, 4] for [24, 8]"),)
    assert not diff.without(("norm", "head.*", "blocks.1.attn.qkv.weight"))
    assert diff.without(("norm.weight", "hea")).unexpected == ("head.weight",)
    assert "\n" not in diff.summary()


def test_learned_positions_are_interpolated_and_fixed_ones_compared():
    small, large = (tiny(model__vision__positions="learned", model__vision__image_size=side) for side in (64, 128))
    tensors = to_format(random_params(small), "hf_vit", small.config)
    found, diff = from_format(tensors, "hf_vit", large.config, shapes(large))
    assert not diff
    assert any("interpolated from 4 x 4 patches to 8 x 8" in note for note in diff.notes)
    table = found["vision"]["pos_embed"]
    assert table.shape == (1, 65, 8)
    assert_array_equal(table[0, 0], tensors["embeddings.position_embeddings"][0, 0])
    fixed = tiny()
    _, diff = from_format(tensors, "hf_vit", fixed.config, shapes(fixed))
    assert [name for name, _ in diff.misshapen] == ["embeddings.position_embeddings"]
    assert "learned" in diff.misshapen[0][1]


@pytest.mark.parametrize("wrapper", ["", "module.", "model.encoder."])
def test_wrappers_before_the_names_are_seen_through(wrapper):
    model = tiny()
    for form in ("timm", "hf_bert", "hf_vit", "mae"):
        tensors = to_format(random_params(model), form, model.config)
        wrapped = {wrapper + name: tensor for name, tensor in tensors.items()}
        _, diff = from_format(wrapped, form, model.config, shapes(model))
        assert not diff, form


def test_longer_reports_lend_their_first_positions():
    model, longer = tiny(), tiny(model__text__max_tokens=32)
    tensors = to_format(random_params(longer), "hf_bert", longer.config)
    found, diff = from_format(tensors, "hf_bert", model.config, shapes(model))
    assert not diff
    table = tensors["bert.embeddings.position_embeddings.weight"]
    assert_array_equal(found["text"]["position_embeddings"]["embedding"], table[:24])
    _, diff = from_format(
        to_format(random_params(model), "hf_bert", model.config), "hf_bert", longer.config, shapes(longer)
    )
    assert [name for name, _ in diff.misshapen] == ["bert.embeddings.position_embeddings.weight"]
