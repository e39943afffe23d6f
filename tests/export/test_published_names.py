"""Names of checkpoints that others have published, written by hand, against our table of names."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from input_pipeline.errors import CheckpointError
from msfl_jax.export.detect import detect_format
from msfl_jax.export.importing import read_weights, split_skip
from msfl_jax.export.mapping import fixed_positions, from_format
from msfl_jax.export.trees import leaves

from .models import as_file, shapes, tiny, written
from .published import published_clinical_bert, published_cxr_bert, published_maco, published_mrm, published_openai

GUIDE = (Path(__file__).parents[2] / "msfl_jax" / "export" / "README.md").read_text()


def test_macos_names_are_those_of_its_checkpoints(model, small):
    names = written("maco", small, model.config).keys()
    assert {
        "cls_token",
        "blocks.1.attn.qkv.weight",
        "decoder_blocks.0.mlp.fc1.bias",
        "decoder_pred.weight",
        "mask_token",
        "img_mlp.weight",
        "bert_encoder.model.bert.embeddings.word_embeddings.weight",
        "bert_encoder.model.bert.encoder.layer.1.attention.self.query.weight",
        "bert_encoder.model.bert.pooler.dense.weight",
        "bert_encoder.model.cls.predictions.transform.dense.weight",
    } <= names


PUBLISHED = {  # names, and what of them this model has no place for
    "mrm": (lambda sizes: published_mrm(sizes), "bert_mlp"),
    "maco": (lambda sizes: published_maco(sizes, 8), "logit_scale,Tpar,pos_weight_img,pos_weight_text,pos_cat"),
}


@pytest.mark.parametrize("form", PUBLISHED)
def test_published_names_all_have_their_place(form, model, small):
    """Tied words twice, as PyTorch saves them; the tables of positions are the fixed ones of their constructors."""
    names, skip = PUBLISHED[form]
    rng = np.random.default_rng(0)
    tensors = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in names(model.config.model).items()}
    fixed = fixed_positions(model.config)
    tensors |= {"pos_embed": fixed["vision/pos_embed"], "decoder_pos_embed": fixed["pixel_decoder/pos_embed"]}
    head = "bert_encoder.model.cls.predictions"
    words = tensors["bert_encoder.model.bert.embeddings.word_embeddings.weight"]
    tensors |= {f"{head}.decoder.weight": words, f"{head}.decoder.bias": tensors[f"{head}.bias"]}
    assert detect_format(as_file(tensors)) == form
    found, diff = from_format(tensors, form, model.config, shapes(model))
    assert {name.split(".")[0] for name in diff.names} == set(skip.split(","))
    assert not diff.without(split_skip(skip))
    assert skip in GUIDE or form == "mrm"
    parts = ("vision/", "pixel_decoder/", "text/", "heads/pooler/", "heads/language/")
    parts += ("heads/image_projection/",) if form == "maco" else ()
    assert {path for path, _ in leaves(found)} == {path for path, _ in leaves(small) if path.startswith(parts)}
    key = tensors["blocks.1.attn.qkv.weight"][8:16].T
    assert_array_equal(found["vision"]["blocks"]["attn"]["key"]["kernel"][1], key)


BERTS = {
    "clinical": (published_clinical_bert, "cls.seq_relationship", ("text/", "heads/language/", "heads/pooler/")),
    "cxr": (published_cxr_bert, "cls_projection_head", ("text/", "heads/language/")),
}


@pytest.mark.parametrize("kind", BERTS)
def test_published_berts_all_have_their_place(kind, model, small, tmp_path):
    """In their own files of PyTorch; CXR-BERT's folder asks for code of its own, so there it is the file alone."""
    torch = pytest.importorskip("torch")
    names, skip, parts = BERTS[kind]
    rng = np.random.default_rng(0)
    tensors = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in names(model.config.model).items()}
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]
    file = tmp_path / "pytorch_model.bin"
    torch.save({name: torch.tensor(tensor) for name, tensor in tensors.items()}, file)
    settings = {"model_type": "bert", "num_attention_heads": 2, "layer_norm_eps": 1e-12}
    code = {"auto_map": {"AutoModel": "modeling_cxrbert.CXRBertModel"}} if kind == "cxr" else {}
    (tmp_path / "config.json").write_text(json.dumps(settings | code))
    if code:
        with pytest.raises(CheckpointError, match="give the file of weights itself"):
            read_weights(tmp_path, model.config, shapes(model), roles=("report",))
    found = read_weights(file if code else tmp_path, model.config, shapes(model), roles=("report",))
    assert found.form == "hf_bert"
    assert {name.rpartition(".")[0].removesuffix(".dense_to_hidden") for name in found.diff.names} >= {skip}
    assert not found.diff.without(split_skip(skip))
    assert f"skip {skip}" in GUIDE or f"skip={skip}" in GUIDE
    assert {path for path, _ in leaves(found.params)} == {path for path, _ in leaves(small) if path.startswith(parts)}
    norms = "gamma" if kind == "clinical" else "weight"
    expected = tensors[f"bert.encoder.layer.1.output.LayerNorm.{norms}"]
    assert_array_equal(found.params["text"]["blocks"]["norm2"]["scale"][1], expected)
    table = tensors["bert.embeddings.position_embeddings.weight"]
    assert_array_equal(found.params["text"]["position_embeddings"]["embedding"], table[:24])


def test_the_image_tower_of_clips_authors_lends_what_fits():
    """By their names; the text tower, the norm before the blocks and the projections have no place here."""
    model = tiny(model__vision__positions="learned")
    sizes, rng = model.config.model, np.random.default_rng(0)
    tensors = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in published_openai(sizes).items()}
    assert detect_format(as_file(tensors)) == "openai"
    found, diff = from_format(tensors, "openai", model.config, shapes(model))
    text = "transformer,token_embedding,positional_embedding,ln_final,text_projection,logit_scale"
    assert not diff.without(split_skip(f"visual.ln_pre,visual.proj,{text}"))
    assert not diff.missing
    assert not diff.misshapen
    assert {path for path, _ in leaves(found)} == {
        path for path, _ in leaves(shapes(model)) if path.startswith("vision/")
    }
    value = tensors["visual.transformer.resblocks.1.attn.in_proj_weight"][16:].T
    assert_array_equal(found["vision"]["blocks"]["attn"]["value"]["kernel"][1], value)
    assert_array_equal(found["vision"]["cls_token"][0, 0], tensors["visual.class_embedding"])
