"""Our encoders against those of transformers in both directions: weights out and reloaded there, freshly initialised weights of theirs read here."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from msfl_jax.export.importing import overlay
from msfl_jax.export.mapping import from_format, to_format

from .models import (
    GRID,
    PATCH,
    SIDE,
    VOCAB,
    colour_images,
    make,
    patches,
    random_params,
    read,
    rebuild,
    see,
    shapes,
    token_ids,
)

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
save_file = pytest.importorskip("safetensors.numpy").save_file

CLOSE = {"rtol": 0, "atol": 1e-5}
VIT = {
    "hidden_size": 768,
    "num_hidden_layers": 2,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-6,
    "image_size": SIDE,
    "patch_size": PATCH,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
MAE = VIT | {
    "decoder_hidden_size": 96,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 6,
    "decoder_intermediate_size": 384,
    "mask_ratio": 0.75,
}
BERT = {
    "vocab_size": VOCAB,
    "hidden_size": 768,
    "num_hidden_layers": 2,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 24,
    "layer_norm_eps": 1e-12,
}


def reload(kind, config, tensors, folder, missing=()):
    """The model read from files as a user would; nothing may be left over, and nothing missing but what is said."""
    config.save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    model, info = kind.from_pretrained(folder, output_loading_info=True, attn_implementation="eager")
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert {key.split(".")[0] for key in info["missing_keys"]} <= set(missing)
    return model.eval()


def fresh(kind, config):
    """A freshly initialised model, its biases and norms moved from 0 and 1 so that a swapped name cannot hide."""
    torch.manual_seed(3)
    model = kind(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.05 * torch.randn_like(parameter))
            if name.endswith("cls_token"):
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def saved(model, folder):
    """Its tensors as `save_pretrained` writes them."""
    model.save_pretrained(folder)
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")


def read_bert(model, ids):
    with torch.no_grad():
        mask = torch.tensor(ids != 0).long()
        return model(torch.tensor(ids).long(), attention_mask=mask, output_hidden_states=True)


@pytest.mark.parametrize("positions", ["sincos", "learned"])
def test_an_exported_encoder_is_vit_model(positions, tmp_path):
    model = make(model__vision__positions=positions)
    params, grey = random_params(model), patches()
    tensors = to_format(params, "hf_vit", model.config)
    theirs = reload(transformers.ViTModel, transformers.ViTConfig(**VIT), tensors, tmp_path, missing=("pooler",))
    with torch.no_grad():
        found = theirs(torch.tensor(colour_images(grey))).last_hidden_state.numpy()
    assert_allclose(see(model, params, grey), found, **CLOSE)


def test_a_fresh_vit_model_is_our_encoder(tmp_path):
    model = make(model__vision__positions="learned")
    theirs = fresh(transformers.ViTModel, transformers.ViTConfig(**VIT, attn_implementation="eager"))
    params, diff = from_format(saved(theirs, tmp_path), "hf_vit", model.config, shapes(model))
    assert diff.unexpected == ("pooler.dense.bias", "pooler.dense.weight")
    assert not diff.without(("pooler",))
    grey = patches()
    with torch.no_grad():
        found = theirs(torch.tensor(colour_images(grey))).last_hidden_state.numpy()
    assert_allclose(see(model, params, grey), found, **CLOSE)


def test_a_model_of_another_normalisation_sees_the_same_picture(tmp_path):
    from msfl_jax.export.arrays import IMAGENET
    from msfl_jax.export.mapping import own_pixels

    model = make(model__vision__positions="learned")
    theirs = fresh(transformers.ViTModel, transformers.ViTConfig(**VIT, attn_implementation="eager"))
    params, _ = from_format(saved(theirs, tmp_path), "hf_vit", model.config, shapes(model), source=IMAGENET)
    pixels = np.random.default_rng(4).uniform(size=(2, GRID**2, PATCH**2)).astype(np.float32)
    ours = own_pixels(model.config)
    mean, deviation = (np.reshape(numbers, (1, 3, 1, 1)) for numbers in IMAGENET)
    image = ((colour_images(pixels) - mean) / deviation).astype(np.float32)
    with torch.no_grad():
        found = theirs(torch.tensor(image)).last_hidden_state.numpy()
    grey = ((pixels - ours.mean[0]) / ours.deviation[0]).astype(np.float32)
    assert_allclose(see(model, params, grey), found, **CLOSE)


def masked_noise(batch=2):
    return np.random.default_rng(5).uniform(size=(batch, GRID**2)).astype(np.float32)


def grey_of(logits):
    """The mean of the three colours of each predicted pixel [B, P, K]."""
    return logits.reshape(*logits.shape[:2], PATCH**2, 3).mean(axis=-1)


def test_an_exported_encoder_and_decoder_are_vit_mae(wide, params, tmp_path):
    grey, noise = patches(), masked_noise()
    tensors = to_format(params, "hf_vit_mae", wide.config)
    theirs = reload(transformers.ViTMAEForPreTraining, transformers.ViTMAEConfig(**MAE), tensors, tmp_path)
    with torch.no_grad():
        found = theirs(torch.tensor(colour_images(grey)), noise=torch.tensor(noise)).logits.numpy()
    ours = np.asarray(rebuild(wide, params, grey, noise, 4))
    assert_allclose(np.repeat(ours, 3, axis=2), found, **CLOSE)


def test_a_fresh_vit_mae_is_our_encoder_and_decoder(wide, tmp_path):
    theirs = fresh(transformers.ViTMAEForPreTraining, transformers.ViTMAEConfig(**MAE, attn_implementation="eager"))
    found, diff = from_format(saved(theirs, tmp_path), "hf_vit_mae", wide.config, shapes(wide))
    assert not diff
    grey, noise = patches(), masked_noise()
    with torch.no_grad():
        expected = theirs(torch.tensor(colour_images(grey)), noise=torch.tensor(noise)).logits.numpy()
    assert_allclose(rebuild(wide, found, grey, noise, 4), grey_of(expected), **CLOSE)


def test_exported_words_are_bert_for_masked_lm(wide, params, tmp_path):
    tensors = to_format(params, "hf_bert", wide.config, parts=("text", "language"))
    theirs = reload(transformers.BertForMaskedLM, transformers.BertConfig(**BERT), tensors, tmp_path)
    ids = token_ids()
    found, (states, logits) = read_bert(theirs, ids), read(wide, params, ids)
    assert_allclose(states[ids != 0], found.hidden_states[-1].numpy()[ids != 0], **CLOSE)
    assert_allclose(logits[ids != 0], found.logits.numpy()[ids != 0], **CLOSE)


def test_exported_words_are_bert_model_with_its_pooler(wide, params, tmp_path):
    tensors = to_format(params, "hf_bert", wide.config, parts=("text", "pooler"))
    theirs = reload(transformers.BertModel, transformers.BertConfig(**BERT), tensors, tmp_path)
    ids = token_ids()
    states, _ = read(wide, params, ids)
    pooler = params["heads"]["pooler"]
    expected = np.tanh(np.asarray(states)[:, 0] @ pooler["kernel"] + pooler["bias"])
    assert_allclose(expected, read_bert(theirs, ids).pooler_output.numpy(), **CLOSE)


@pytest.mark.parametrize("kind", ["BertForMaskedLM", "BertForPreTraining", "BertModel"])
def test_fresh_berts_are_our_report_encoder(kind, wide, params, tmp_path):
    theirs = fresh(getattr(transformers, kind), transformers.BertConfig(**BERT, attn_implementation="eager"))
    found, diff = from_format(saved(theirs, tmp_path), "hf_bert", wide.config, shapes(wide))
    assert not diff.without(("cls.seq_relationship",))
    ids = token_ids()
    states, logits = read(wide, overlay(params, found), ids)
    outputs = read_bert(theirs, ids)
    assert_allclose(states[ids != 0], outputs.hidden_states[-1].numpy()[ids != 0], **CLOSE)
    if kind != "BertModel":
        expected = outputs.logits if kind == "BertForMaskedLM" else outputs.prediction_logits
        assert_allclose(logits[ids != 0], expected.numpy()[ids != 0], **CLOSE)
    else:
        assert any("no language" in note for note in diff.notes)


def test_tied_words_are_read_once_and_others_are_refused(wide, tmp_path):
    theirs = fresh(transformers.BertForMaskedLM, transformers.BertConfig(**BERT))
    tensors = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    assert "cls.predictions.decoder.weight" in tensors
    assert not from_format(tensors, "hf_bert", wide.config, shapes(wide))[1]
    tensors["cls.predictions.decoder.weight"] = tensors["cls.predictions.decoder.weight"] + 1
    _, diff = from_format(tensors, "hf_bert", wide.config, shapes(wide))
    assert diff.unexpected == ("cls.predictions.decoder.weight",)


def test_what_transformers_saves_again_comes_back_bit_by_bit(wide, params, tmp_path):
    tensors = to_format(params, "hf_vit_mae", wide.config)
    (tmp_path / "first").mkdir()
    theirs = reload(transformers.ViTMAEForPreTraining, transformers.ViTMAEConfig(**MAE), tensors, tmp_path / "first")
    back, diff = from_format(saved(theirs, tmp_path / "second"), "hf_vit_mae", wide.config, shapes(wide))
    assert not diff
    for part in ("vision", "pixel_decoder"):
        for (path, own), (_, found) in zip(*(sorted(flat(tree[part]).items()) for tree in (params, back)), strict=True):
            assert_array_equal(own, found, err_msg=path)


def flat(tree):
    from msfl_jax.export.trees import flatten

    return flatten(tree)


def test_a_clip_tower_lends_what_fits(tmp_path):
    model = make(model__vision__positions="learned")
    sizes = {key: VIT[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")}
    theirs = fresh(
        transformers.CLIPVisionModel, transformers.CLIPVisionConfig(**sizes, image_size=SIDE, patch_size=PATCH)
    )
    params, diff = from_format(saved(theirs, tmp_path), "clip", model.config, shapes(model))
    assert {name.split(".")[0] for name in diff.unexpected} == {"pre_layrnorm"}
    assert not diff.without(("pre_layrnorm",))
    assert_array_equal(params["vision"]["patch_embed"]["bias"], 0)
    value = theirs.state_dict()["encoder.layers.1.self_attn.v_proj.weight"].numpy()
    assert_array_equal(params["vision"]["blocks"]["attn"]["value"]["kernel"][1], value.T)
