"""What a file is, what it lends to a model, and when it is refused before anything starts."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from input_pipeline.errors import CheckpointError, UserError
from input_pipeline.tokenizer import ReportTokenizer, train_tokenizer
from msfl_jax.commands.imported import import_report, with_imported_encoder
from msfl_jax.config import config_hash, from_config_dict, to_dict
from msfl_jax.config_files import load_config
from msfl_jax.config_init import InitFromConfig, with_defaults
from msfl_jax.export.arrays import CHEST, HALF, IMAGENET, Pixels
from msfl_jax.export.detect import detect_format, pixels_of
from msfl_jax.export.importing import imported_parameters, join, overlay, read_weights
from msfl_jax.export.mapping import from_format, to_format
from msfl_jax.export.names import FORMATS, NO_PATCH_BIAS
from msfl_jax.export.trees import leaves
from msfl_jax.finetune_config import FinetuneEncoderConfig
from msfl_jax.parallel.mesh import make_mesh
from msfl_jax.tasks.run import Run, describe_start, encoder_parameters
from msfl_jax.train import loop
from msfl_jax.train.checkpoint import Checkpoints
from msfl_jax.train.optimizer import make_optimizer
from msfl_jax.train.provenance import Inherited
from msfl_jax.train.state import place_imported

from .models import as_file, random_params, shapes, tiny, written
from .runs import SENTENCES

save_file = pytest.importorskip("safetensors.numpy").save_file


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_is_recognised_and_read_bit_by_bit(form, model, small):
    tensors = written(form, small, model.config)
    assert detect_format(as_file(tensors)) == form
    found, diff = from_format(tensors, form, model.config, shapes(model))
    assert set(diff.unexpected) <= {"bert_mlp.weight"}
    assert not diff.without(("bert_mlp",))
    expected = dict(leaves(small))
    for path, array in leaves(found):
        if path != "vision/patch_embed/bias" or form not in NO_PATCH_BIAS:
            assert_array_equal(array, expected[path], err_msg=path)


def test_an_export_lends_its_weights_and_settings_that_differ_are_named(model, small, tmp_path):
    values = {"model_type": "msfl", "config": to_dict(model.config)}
    path = folder(tmp_path / "export", to_format(small, "msfl", model.config), **values)
    init = InitFromConfig(vision=str(path), report=str(path))
    found, _ = imported_parameters(init, model.config, shapes(model))
    assert jax.tree.all(jax.tree.map(np.array_equal, found["vision"], small["vision"]))
    assert jax.tree.all(jax.tree.map(np.array_equal, found["text"], small["text"]))
    changes = {
        **{"model__vision__heads": 4, "model__pixel_decoder__heads": 4, "image__mean": 0.3, "image__pool": "cls"},
        **{"regions__layer": 1, "model__text__heads": 1, "text__pool": "cls_linear"},
    }
    other = tiny(image__target_scale=2, **changes)
    found = read_weights(path, other.config, shapes(other), roles=("vision",)).diff.misshapen
    found += read_weights(path, other.config, shapes(other), roles=("report",)).diff.misshapen
    assert [name for name, _ in found] == [f"config.json:{key.replace('__', '.')}" for key in changes]
    with pytest.raises(CheckpointError, match=r"image\.mean"):
        imported_parameters(init, other.config, shapes(other))


def test_words_of_another_tokenizer_are_a_difference_whatever_their_number(model, small, tmp_path):
    """Two vocabularies of one size: a row is then another word, which no shape shows."""
    own, other = (
        train_tokenizer(sentences, tmp_path / name, vocab_size=60)
        for name, sentences in (("own", SENTENCES[:2]), ("other", SENTENCES[2:]))
    )
    data = {**to_dict(model.config)["data"], "tokenizer_hash": own.hash}
    tensors = to_format(small, "msfl", model.config)
    path = folder(tmp_path / "export", tensors, config={**to_dict(model.config), "data": data})

    def differing(directory):
        data = dataclasses.replace(model.config.data, tokenizer=str(directory))
        config = dataclasses.replace(model.config, data=data)
        return [name for name, _ in read_weights(path, config, shapes(model), roles=("report",)).diff.misshapen]

    assert differing(other.directory) == ["config.json:data.tokenizer_hash"]
    assert differing(own.directory) == []
    assert [name for name, _ in read_weights(path, model.config, shapes(model)).diff.misshapen] == []


def test_a_role_that_there_is_not_is_one_line(model, small, tmp_path):
    save_file(to_format(small, "timm", model.config), tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="--as image: expected vision or report"):
        import_report(tmp_path / "w.safetensors", None, role="image")


def test_an_unknown_file_is_no_format():
    with pytest.raises(CheckpointError, match="no known format"):
        detect_format(as_file({"a": np.zeros(1), "b": np.zeros(1)}))


@pytest.mark.parametrize(
    ("beside", "form", "choice", "expected"),
    [
        ({}, "mae", "auto", IMAGENET),
        ({}, "hf_vit", "auto", HALF),
        ({}, "maco", "auto", CHEST),
        (
            {"processor": {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]}},
            "hf_vit",
            "auto",
            Pixels((0.1, 0.2, 0.3), (1, 2, 3)),
        ),
        ({"config": {"pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}}, "timm", "auto", HALF),
        ({"processor": {"image_mean": "x", "image_std": [0, 0, 0]}}, "hf_vit", "auto", HALF),
        ({"processor": {"image_mean": [0.1] * 3, "image_std": [1, float("nan"), 1]}}, "hf_vit", "auto", HALF),
        ({"processor": {"image_mean": [0.1, 0.1, 10**400], "image_std": [1] * 3}}, "hf_vit", "auto", HALF),
        ({"processor": {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}}, "hf_vit", "imagenet", IMAGENET),
        ({}, "timm", "own", None),
    ],
)
def test_how_the_other_models_pixels_are_normalised(beside, form, choice, expected):
    assert pixels_of(as_file({}, **beside), form, choice) == expected


def folder(path, tensors, **config):
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "vit", **config}))
    save_file(tensors, path / "model.safetensors")
    return path


def test_a_run_starts_from_two_files_and_says_so(model, small, tmp_path):
    vision = tmp_path / "mae.safetensors"
    save_file(to_format(small, "mae", model.config), vision)
    report = folder(tmp_path / "bert", to_format(small, "hf_bert", model.config), num_attention_heads=2)
    init = InitFromConfig(vision=str(vision), report=str(report), pixels="own")
    found, caveats = imported_parameters(init, model.config, shapes(model))
    assert found.keys() == {"vision", "pixel_decoder", "text", "heads"}
    assert found["heads"].keys() == {"pooler", "language"}
    assert_array_equal(found["vision"]["blocks"]["fc1"]["kernel"], small["vision"]["blocks"]["fc1"]["kernel"])
    assert len(caveats) == 2
    assert "not known" in caveats[0]


def test_other_names_end_it_with_a_list_unless_they_are_skipped(model, small, tmp_path):
    tensors = to_format(small, "hf_bert", model.config)
    tensors["cls.seq_relationship.weight"] = np.zeros((2, 8), np.float32)
    tensors["bert.encoder.layer.0.output.dense.bias"] = np.zeros(3, np.float32)
    del tensors["bert.encoder.layer.1.output.dense.bias"]
    file = tmp_path / "w.safetensors"
    save_file(tensors, file)
    with pytest.raises(CheckpointError) as caught:
        imported_parameters(InitFromConfig(report=str(file)), model.config, shapes(model))
    text = str(caught.value)
    assert caught.value.exit_code == 4
    assert "\n" not in text
    for part in (
        "1 missing: bert.encoder.layer.1.output.dense.bias",
        "1 unexpected: cls.seq",
        "[3] for [8]",
        "init_from.skip",
    ):
        assert part in text
    skip = "cls.seq_relationship, bert.encoder.layer.?.output.dense.bias"
    found, _ = imported_parameters(InitFromConfig(report=str(file), skip=skip), model.config, shapes(model))
    assert "blocks" in found["text"]
    assert "bias" not in found["text"]["blocks"]["fc2"]


@pytest.mark.parametrize(
    "settings", [{"num_attention_heads": 4}, {"hidden_act": "relu"}, {"position_embedding_type": "relative_key"}]
)
def test_settings_that_no_shape_shows_are_differences(settings, model, small, tmp_path):
    path = folder(tmp_path / "bert", to_format(small, "hf_bert", model.config), **settings)
    diff = read_weights(path, model.config, shapes(model)).diff
    assert [name for name, _ in diff.misshapen] == [f"config.json:{next(iter(settings))}"]


def test_the_heads_of_maes_decoder_are_compared(model, small, tmp_path):
    plain = tiny()
    tensors = to_format(random_params(plain), "hf_vit_mae", plain.config)
    for heads, expected in ((2, []), (4, ["config.json:decoder_num_attention_heads"])):
        settings = {"num_attention_heads": 2, "decoder_num_attention_heads": heads}
        path = folder(tmp_path / str(heads), tensors, **settings)
        assert [name for name, _ in read_weights(path, plain.config, shapes(plain)).diff.misshapen] == expected


@pytest.mark.parametrize(
    ("form", "settings", "noted"),
    [
        ("hf_vit", {"layer_norm_eps": 1e-12}, True),
        ("hf_vit", {"layer_norm_eps": 1e-6}, False),
        ("hf_vit", {}, True),  # transformers takes its default, 1e-12
        ("hf_bert", {"layer_norm_eps": 1e-12}, False),
        ("hf_bert", {"layer_norm_eps": 1e-5}, True),
        ("hf_bert", {}, False),
        ("timm", {}, False),
    ],
)
def test_another_epsilon_is_noted(form, settings, noted, model, small, tmp_path):
    plain = tiny()
    path = folder(tmp_path / "w", to_format(random_params(plain), form, plain.config), **settings)
    diff = read_weights(path, plain.config, shapes(plain)).diff
    assert not diff
    assert any("layer_norm_eps" in note and "close" in note for note in diff.notes) == noted


def test_a_file_with_nothing_for_a_role_is_refused(model, small, tmp_path):
    save_file(to_format(small, "hf_bert", model.config), tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="nothing in it"):
        imported_parameters(InitFromConfig(vision=str(tmp_path / "w.safetensors")), model.config, shapes(model))


def test_words_of_our_own_at_the_end_of_a_vocabulary_start_fresh(model, small):
    tensors = to_format(small, "hf_bert", model.config)
    for name in ("bert.embeddings.word_embeddings.weight", "cls.predictions.bias"):
        tensors[name] = tensors[name][:-2]
    found, diff = from_format(tensors, "hf_bert", model.config, shapes(model))
    assert not diff
    fresh = random_params(model, seed=1)
    table = overlay(fresh, found)["text"]["word_embeddings"]["embedding"]
    assert_array_equal(table[:-2], small["text"]["word_embeddings"]["embedding"][:-2])
    assert_array_equal(table[-2:], fresh["text"]["word_embeddings"]["embedding"][-2:])
    mesh = make_mesh(dataclasses.replace(model.config.mesh, data=4, fsdp=2))
    here = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    placed = place_imported(
        {"a": jax.device_put(np.zeros((4, 2), np.float32), split), "b": jax.device_put(np.ones(3, np.float32), here)},
        {"a": np.full((2, 2), 7, np.float32), "b": np.float32([1, 2, 3])},
    )
    assert_array_equal(placed["a"], [[7, 7], [7, 7], [0, 0], [0, 0]])
    assert_array_equal(placed["b"], [1, 2, 3])
    assert placed["a"].sharding.is_equivalent_to(split, 2)


def test_joining_keeps_both_sides():
    assert join({"a": {"b": 1}, "c": 2}, {"a": {"d": 3}, "c": 4}) == {"a": {"b": 1, "d": 3}, "c": 4}


class NoCheckpoints(Checkpoints):
    """The checkpoints of a run that has none, or of one that can be resumed."""

    def __init__(self, state=None):
        self.state = state

    @property
    def steps(self):
        return []

    def restore(self, like):
        return (
            None
            if self.state is None
            else (self.state, dict.fromkeys(("tokenizer_hash", "data", "batch_size", "seed")))
        )


def a_run(model, **init):
    config = dataclasses.replace(model.config, init_from=InitFromConfig(**init))
    meta = dict.fromkeys(("tokenizer_hash", "data", "batch_size", "seed"))
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    run = object.__new__(loop._Run)
    vars(run).update(config=config, model=model, mesh=make_mesh(config.mesh), optimizer=optimizer, meta=meta)
    vars(run).update(workdir=Path("run"))
    return run


def test_imported_weights_are_there_at_step_0_and_never_when_a_run_resumes(model, small, tmp_path):
    save_file(to_format(small, "mae", model.config), tmp_path / "w.safetensors")
    run = a_run(model, vision=str(tmp_path / "w.safetensors"), pixels="own")
    calls = []

    def initial(like):
        calls.append(like)
        return imported_parameters(run.config.init_from, run.config, like)

    with jax.set_mesh(run.mesh):
        state, inherited = loop.first_state(run, NoCheckpoints(), None, initial)
        assert_array_equal(state.params["vision"]["patch_embed"]["kernel"], small["vision"]["patch_embed"]["kernel"])
        assert_array_equal(state.params["pixel_decoder"]["mask_token"], small["pixel_decoder"]["mask_token"])
        fresh, _ = loop.first_state(a_run(model), NoCheckpoints(), None, initial)
        assert_array_equal(
            state.params["text"]["blocks"]["fc1"]["kernel"], fresh.params["text"]["blocks"]["fc1"]["kernel"]
        )
        assert len(calls) == len(inherited.caveats) == 1
        resumed, inherited = loop.first_state(run, NoCheckpoints(fresh), None, initial)
        assert resumed is fresh
        assert inherited == Inherited()
        assert len(calls) == 1
        for wrong in ({"init_from": tmp_path, "initial": initial}, {"init_from": None, "initial": None}):
            with pytest.raises(UserError, match="init_from"):
                loop.first_state(run, NoCheckpoints(), **wrong)


def test_a_run_without_imported_weights_keeps_its_hash_and_its_configuration(model):
    plain = model.config
    older = to_dict(plain)
    del older["init_from"]
    assert from_config_dict(older) == plain
    assert with_defaults(type(plain), older) == to_dict(plain)

    def started(**init):
        return config_hash(dataclasses.replace(plain, init_from=InitFromConfig(**init)))

    assert started() == started(skip="x") == config_hash(plain)
    assert started(vision="/a/mae.pth") == started(vision="/b/mae.pth") != config_hash(plain)
    assert started(vision="mae.pth") != started(vision="mae.pth", skip="x")


def test_fine_tuning_starts_from_an_imported_encoder(model, small, tmp_path):
    save_file(to_format(small, "timm", model.config), tmp_path / "w.safetensors")
    encoder = FinetuneEncoderConfig(
        "imported", 0, "mean", False, 0.0, weights=str(tmp_path / "w.safetensors"), pixels="own"
    )
    own = random_params(model, seed=3)

    run = Run(tmp_path, model.config, model, own, object.__new__(ReportTokenizer), 7)
    started = with_imported_encoder(run, encoder)
    assert jax.tree.all(jax.tree.map(np.array_equal, started.params["vision"], small["vision"]))
    assert len(started.weights) == 64
    assert encoder_parameters(started, "imported") is started.params
    assert encoder_parameters(run, "random") is None
    for given, init in ((run, "imported"), (started, "pretrained")):
        with pytest.raises(UserError, match="expected a run"):
            encoder_parameters(given, init)
    assert describe_start(started, "imported") != describe_start(run, "pretrained")
    assert "not known" in started.caveats[0]


def test_the_report_says_what_a_file_is_and_what_differs(tmp_path, capsys):
    overrides = [
        *(
            f"--config.model.vision.{key}"
            for key in ("patch_layers=1", "cls_token=True", "width=8", "heads=2", "depth=2")
        ),
        *(f"--config.model.text.{key}" for key in ("width=8", "heads=2")),
        *("--config.model.pixel_decoder.width=8", "--config.model.pixel_decoder.heads=2"),
    ]
    model = tiny(model__vision__patch_size=8)  # 64 px in patches of 8, as the demo's
    tensors = to_format(random_params(model), "timm", model.config)
    tensors["head.weight"] = np.zeros((3, 8), np.float32)
    file = tmp_path / "vit.safetensors"
    save_file(tensors, file)
    text = import_report(file, None)
    assert "timm" in text
    assert "0.485" in text
    config = load_config("demo", overrides)
    with pytest.raises(CheckpointError, match="in 1 names"):
        import_report(file, config)
    out = capsys.readouterr().out
    assert "unexpected  head.weight" in out
    assert "missing" not in out
    assert "unexpected" not in import_report(file, config, skip="head")
    start = "--config.init_from"
    assert "unexpected" not in import_report(file, load_config("demo", [*overrides, f"{start}.skip=head"]))
    own = load_config("demo", [*overrides, f"{start}.skip=head", f"{start}.pixels=own", f"{start}.vision_format=mae"])
    text = import_report(file, own)
    assert "format   mae" in text
    assert "0.485" not in text
    assert "unexpected" not in import_report(file, own, role="vision")
