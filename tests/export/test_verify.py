"""`msfl verify`: any change of an export is named and refused with exit code 4."""

import json
import shutil

import numpy as np
import pytest

import msfl_jax
from input_pipeline.errors import CheckpointError, UserError
from msfl_jax.export import parity, verify
from msfl_jax.export.layout import is_export, open_export, read_tensors, write_tensors
from msfl_jax.export.manifest import MANIFEST, files_in, read_manifest, write_manifest
from msfl_jax.export.trees import leaves
from msfl_jax.export.verify import verify_export
from msfl_jax.export.weight_files import open_weights


@pytest.fixture
def copy(exported, tmp_path):
    """The demo's export, to be spoilt."""
    return shutil.copytree(exported("demo")[1], tmp_path / "copy")


@pytest.fixture
def without_torch(monkeypatch):
    monkeypatch.setattr(parity, "has_torch", lambda: False)


def refused(folder):
    with pytest.raises(CheckpointError) as caught:
        verify_export(folder)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)
    return str(caught.value)


def forge(folder):
    """Makes the manifest agree with the files again, as an attacker or a careless editor would."""
    facts = {key: value for key, value in read_manifest(folder).items() if key not in ("files", "digest")}
    (folder / MANIFEST).unlink()
    write_manifest(folder, facts)


@pytest.mark.parametrize("name", ["demo", "b16"])
def test_an_export_verifies(exported, name):
    _, folder, said = exported(name)
    found = verify_export(folder)
    assert found.files == len(files_in(folder))
    assert (found.compared or {}).keys() == (said.compared or {}).keys()


def test_a_flipped_bit_of_any_file_is_refused(copy, without_torch):
    for name in [*files_in(copy), MANIFEST]:
        data = (copy / name).read_bytes()
        for place in {0, len(data) // 2, len(data) - 1}:
            (copy / name).write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            assert name in refused(copy)
        (copy / name).write_bytes(data)
    verify_export(copy)


def test_extra_missing_and_linked_files_are_named(copy, tmp_path, without_torch):
    (copy / "text" / "pickle.bin").write_bytes(b"x")
    (copy / "elsewhere").symlink_to(tmp_path)
    (copy / "golden.safetensors").unlink()
    said = refused(copy)
    assert "missing: golden.safetensors" in said
    assert "not of the export: elsewhere, text/pickle.bin" in said


def test_tensors_that_fit_neither_the_config_nor_each_other_are_refused(copy, without_torch):
    file = copy / "model.safetensors"
    tensors = read_tensors(file)
    name = "heads.sentence_projection.weight"
    changes = {
        "missing": {key: value for key, value in tensors.items() if key != name},
        "unexpected": tensors | {"extra": np.zeros(1, np.float32)},
        "mis-shaped": tensors | {name: tensors[name][:-1]},
        "float16": tensors | {name: tensors[name].astype(np.float16)},
        "not finite": tensors | {name: tensors[name] * np.float32(np.nan)},
    }
    for word, changed in changes.items():
        write_tensors(file, changed)
        forge(copy)
        assert word in refused(copy)
    write_tensors(file, tensors | {"text.embeddings_norm.bias": tensors["text.embeddings_norm.bias"] + 1})
    forge(copy)
    assert "text/model.safetensors" in refused(copy)


@pytest.mark.parametrize("name", ["config.json", "text/config.json", "text/tokenizer_config.json"])
def test_settings_that_ask_for_code_are_refused(copy, without_torch, name):
    values = json.loads((copy / name).read_text())
    (copy / name).write_text(json.dumps(values | {"auto_map": {"AutoModel": "evil.Model"}}))
    (copy / "evil.py").write_text("open('witness', 'w')\n")
    forge(copy)
    assert "asks for code" in refused(copy)
    assert not (copy / "witness").exists()


def test_weights_of_programs_are_those_of_the_model(copy, without_torch):
    (copy / "stablehlo").mkdir()
    weights = dict(leaves(open_export(copy).params))
    name = next(iter(weights))
    bad = {
        "is not that of": weights | {name: weights[name] + 1},
        "missing": {key: value for key, value in weights.items() if key != name},
        "no arrays": weights | {name: np.array([{"an": "object"}], object)},
    }
    for word, changed in bad.items():
        np.savez(copy / "stablehlo" / "weights.npz", **changed)
        forge(copy)
        assert word in refused(copy)
    np.savez(copy / "stablehlo" / "weights.npz", **weights)
    forge(copy)
    verify_export(copy)


def test_weights_that_are_not_the_manifests_are_neither_loaded_nor_imported(copy):
    """One bit of a weight, which no shape and no config shows; the whole model's file and one that is for other libraries."""
    open_weights(copy)
    for name, opened in (("model.safetensors", copy), ("text/model.safetensors", copy / "text")):
        data = (copy / name).read_bytes()
        (copy / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        for path in (opened, copy / name):
            with pytest.raises(CheckpointError, match="changed since it was exported"):
                open_weights(path)
        if opened == copy:
            with pytest.raises(CheckpointError, match="changed since it was exported"):
                msfl_jax.load(copy)
        (copy / name).write_bytes(data)
    msfl_jax.load(copy)
    (copy / MANIFEST).write_bytes((copy / MANIFEST).read_bytes().replace(b'"step"', b'"stop"'))
    for opens in (open_weights, msfl_jax.load):
        with pytest.raises(CheckpointError, match=r"manifest\.json: damaged"):
            opens(copy)
    (copy / MANIFEST).unlink()
    msfl_jax.load(copy)
    (copy / MANIFEST).write_text('{"files": ["of another program"]}')
    open_weights(copy)


def test_the_tokenizer_must_be_the_one_that_the_run_was_trained_with(copy):
    values = json.loads((copy / "config.json").read_text())
    tokenizer = open_export(copy).tokenizer
    for value, fits in ((tokenizer.hash, True), ("ab" * 32, False)):
        values["config"]["data"]["tokenizer_hash"] = value
        (copy / "config.json").write_text(json.dumps(values))
        if fits:
            assert open_export(copy).tokenizer.hash == value
        else:
            with pytest.raises(CheckpointError, match=r"tokenizer\.json: sha256 .* is not the run's abababababab"):
                open_export(copy)


def test_an_endlessly_nested_config_is_no_export(copy):
    (copy / "config.json").write_text("[" * 100_000)
    assert not is_export(copy)
    with pytest.raises(UserError, match="model type 'msfl'"):
        open_export(copy)


@pytest.mark.skipif(not parity.has_torch(), reason="PyTorch is not installed")
def test_outputs_that_pytorch_does_not_make_are_refused(copy):
    golden = read_tensors(copy / "golden.safetensors")
    write_tensors(copy / "golden.safetensors", golden | {"outputs.regions": golden["outputs.regions"] + 1})
    forge(copy)
    assert "regions" in refused(copy)


def test_a_damaged_safetensors_and_another_folder_are_refused_in_a_line(copy, tmp_path, without_torch):
    for data in (b"", b"\xff" * 64, (copy / "model.safetensors").read_bytes()[:-4]):
        (copy / "model.safetensors").write_bytes(data)
        forge(copy)
        assert "no safetensors file" in refused(copy)
    with pytest.raises(UserError, match=r"no manifest\.json"):
        verify_export(tmp_path)
    values = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(values | {"model_type": "bert", "auto_map": {"AutoModel": "x.Y"}}))
    forge(copy)
    with pytest.raises(UserError, match="model type 'msfl'"):
        verify.verify_export(copy)
