"""Encoders and reconstruction against the PyTorch models of transformers, with the same weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from msfl_jax.encoders import (
    BlockSpec,
    PixelDecoder,
    TextTransformer,
    VisionTransformer,
    masking_from_noise,
    sincos_positions,
    take,
)
from msfl_jax.heads import LanguageHead

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")

VIT = BlockSpec("vit", depth=2, width=16, heads=2, hidden=32)
DECODER = BlockSpec("vit", depth=2, width=8, heads=2, hidden=32)
BERT = BlockSpec("bert", depth=2, width=16, heads=2, hidden=32)
GRID, PATCH = 3, 4
VIT_CONFIG = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "layer_norm_eps": 1e-6,
    "image_size": GRID * PATCH,
    "patch_size": PATCH,
}


def shaken(params):
    """Random values everywhere, so that no bias is 0 and no scale 1 and a swapped name cannot hide."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(9), len(leaves))
    return jax.tree.unflatten(
        structure, [leaf + 0.3 * jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, keys, strict=True)]
    )


def initialise(module, *inputs):
    return shaken(jax.jit(module.init)(jax.random.key(0), *inputs)["params"])


def linear(params):
    """weight and bias of a dense layer, or of a norm."""
    weight = np.asarray(params["kernel"]).T if "kernel" in params else np.asarray(params["scale"])
    return {"weight": weight, "bias": np.asarray(params["bias"])}


def named(prefix, tensors):
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def vit_blocks(prefix, params, depth):
    """transformers' names of release 4, which release 5 still reads."""
    names = {
        "attention.attention.query": ("attn", "query"),
        "attention.attention.key": ("attn", "key"),
        "attention.attention.value": ("attn", "value"),
        "attention.output.dense": ("attn", "out"),
        "intermediate.dense": ("fc1",),
        "output.dense": ("fc2",),
        "layernorm_before": ("norm1",),
        "layernorm_after": ("norm2",),
    }
    return _blocks(prefix, params, depth, names)


def bert_blocks(prefix, params, depth):
    names = {
        "attention.self.query": ("attn", "query"),
        "attention.self.key": ("attn", "key"),
        "attention.self.value": ("attn", "value"),
        "attention.output.dense": ("attn", "out"),
        "attention.output.LayerNorm": ("norm1",),
        "intermediate.dense": ("fc1",),
        "output.dense": ("fc2",),
        "output.LayerNorm": ("norm2",),
    }
    return _blocks(prefix, params, depth, names)


def _blocks(prefix, params, depth, names):
    result = {}
    for i in range(depth):
        for theirs, ours in names.items():
            part = functools.reduce(lambda tree, key: tree[key], ours, params[f"blocks_{i}"])
            result |= named(f"{prefix}.{i}.{theirs}", linear(part))
    return result


def patch_kernel(params):
    """Grey kernel [p * p, D] as a convolution over three equal colours: a third each."""
    kernel = np.asarray(params["patch_embed"]["kernel"]).T.reshape(-1, 1, PATCH, PATCH)
    return {"weight": np.repeat(kernel / 3, 3, axis=1), "bias": np.asarray(params["patch_embed"]["bias"])}


def load(kind, config, tensors, folder):
    """The model read from files, as a user would; no tensor may be missing or left over."""
    config.save_pretrained(folder)
    safetensors.save_file(
        {k: torch.tensor(np.array(v, order="C")) for k, v in tensors.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    model, info = kind(folder, output_loading_info=True, attn_implementation="eager")
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model.eval()


def to_colour(patches):
    """Grey patches as images of three equal colours [B, 3, H, W]."""
    grey = np.asarray(patches).reshape(-1, GRID, GRID, PATCH, PATCH).transpose(0, 1, 3, 2, 4)
    return torch.tensor(grey.reshape(-1, 1, GRID * PATCH, GRID * PATCH)).repeat(1, 3, 1, 1)


@pytest.fixture(scope="module")
def patches():
    return jax.random.normal(jax.random.key(1), (2, GRID**2, PATCH**2))


def test_the_vision_transformer_equals_vit_model(patches, tmp_path):
    module = VisionTransformer(VIT, grid=GRID, positions="learned")
    params = initialise(module, patches)
    tensors = {
        "embeddings.cls_token": params["cls_token"],
        "embeddings.position_embeddings": params["pos_embed"],
        **named("embeddings.patch_embeddings.projection", patch_kernel(params)),
        **vit_blocks("encoder.layer", params, 2),
        **named("layernorm", linear(params["norm"])),
    }
    peer = load(
        functools.partial(transformers.ViTModel.from_pretrained, add_pooling_layer=False),
        transformers.ViTConfig(**VIT_CONFIG),
        tensors,
        tmp_path,
    )
    with torch.no_grad():
        expected = peer(to_colour(patches)).last_hidden_state.numpy()
    found = jax.jit(module.apply)({"params": params}, patches)
    assert_allclose(found.cls, expected[:, 0], rtol=1e-5, atol=1e-5)
    assert_allclose(found.patches, expected[:, 1:], rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def reports():
    return np.asarray([[2, 7, 9, 8, 3, 0, 0], [2, 11, 12, 13, 14, 15, 3]], np.int32)


@pytest.fixture(scope="module")
def bert():
    module = TextTransformer(BERT, vocab_size=20, max_tokens=12)
    params = initialise(module, jnp.zeros((1, 7), jnp.int32))
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=12,
        type_vocab_size=2,
    )
    tensors = {
        **{f"embeddings.{name}.weight": params[name]["embedding"] for name in params if name.endswith("_embeddings")},
        **named("embeddings.LayerNorm", linear(params["embeddings_norm"])),
        **bert_blocks("encoder.layer", params, 2),
    }
    return module, params, config, tensors


def ask(peer, reports):
    ids = torch.tensor(reports, dtype=torch.long)
    with torch.no_grad():
        return peer(input_ids=ids, attention_mask=(ids != 0).long())


def test_the_text_transformer_equals_bert_model(bert, reports, tmp_path):
    module, params, config, tensors = bert
    kind = functools.partial(transformers.BertModel.from_pretrained, add_pooling_layer=False)
    expected = ask(load(kind, config, tensors, tmp_path), reports).last_hidden_state.numpy()
    found = np.asarray(jax.jit(module.apply)({"params": params}, jnp.asarray(reports)))
    present = reports != 0
    assert_allclose(found[present], expected[present], rtol=1e-5, atol=1e-5)


def test_the_language_head_equals_bert_for_masked_lm(bert, reports, tmp_path):
    module, params, config, tensors = bert
    words = params["word_embeddings"]["embedding"]
    states = jax.jit(module.apply)({"params": params}, jnp.asarray(reports))
    head = LanguageHead("float32")
    head_params = initialise(head, states, words)
    mine = {
        "cls.predictions.bias": head_params["bias"],
        **named("cls.predictions.transform.dense", linear(head_params["dense"])),
        **named("cls.predictions.transform.LayerNorm", linear(head_params["norm"])),
    }
    peer = load(transformers.BertForMaskedLM.from_pretrained, config, mine | named("bert", tensors), tmp_path)
    expected = ask(peer, reports).logits.numpy()
    present = reports != 0
    found = np.asarray(jax.jit(head.apply)({"params": head_params}, states, words))
    assert_allclose(found[present], expected[present], rtol=1e-5, atol=2e-5)


def test_masked_reconstruction_equals_vit_mae(patches, tmp_path):
    encoder = VisionTransformer(VIT, grid=GRID)
    decoder = PixelDecoder(DECODER, grid=GRID, pixels=PATCH**2 * 3)
    noise = np.random.default_rng(0).random((2, GRID**2)).astype(np.float32)
    masking = masking_from_noise(jnp.asarray(noise), 4)
    params = initialise(encoder, patches)
    tokens = jax.jit(encoder.apply)({"params": params}, take(patches, masking.kept), masking.kept)
    decoder_params = initialise(decoder, tokens.patches, tokens.cls, masking.restore)
    tensors = {
        "vit.embeddings.cls_token": params["cls_token"],
        **named("vit.embeddings.patch_embeddings.projection", patch_kernel(params)),
        **vit_blocks("vit.encoder.layer", params, 2),
        **named("vit.layernorm", linear(params["norm"])),
        **named("decoder.decoder_embed", linear(decoder_params["embed"])),
        "decoder.mask_token": decoder_params["mask_token"],
        **vit_blocks("decoder.decoder_layers", decoder_params, 2),
        **named("decoder.decoder_norm", linear(decoder_params["norm"])),
        **named("decoder.decoder_pred", linear(decoder_params["prediction"])),
    }
    peer = mae_peer(tensors, tmp_path)
    with torch.no_grad():
        expected = peer(to_colour(patches), noise=torch.tensor(noise))
    found = jax.jit(decoder.apply)({"params": decoder_params}, tokens.patches, tokens.cls, masking.restore)
    assert_allclose(masking.masked, expected.mask.numpy())
    assert_allclose(found, expected.logits.numpy(), rtol=1e-5, atol=2e-5)


def mae_peer(tensors, folder):
    """Its positions are given: transformers 5.23 makes new ones with the row first, where MAE's weights have the column first."""
    config = transformers.ViTMAEConfig(
        **VIT_CONFIG,
        mask_ratio=1 - 4 / GRID**2 - 1e-6,
        decoder_hidden_size=8,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
    )
    positions = {
        "vit.embeddings.position_embeddings": np.pad(sincos_positions(GRID, 16), ((1, 0), (0, 0)))[None],
        "decoder.decoder_pos_embed": np.pad(sincos_positions(GRID, 8), ((1, 0), (0, 0)))[None],
    }
    return load(transformers.ViTMAEForPreTraining.from_pretrained, config, tensors | positions, folder)
