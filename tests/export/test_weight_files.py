"""Files of weights: good ones are read, bad ones are refused in one line, and nothing that they hold is run."""

import argparse
import contextlib
import json
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from input_pipeline.errors import CheckpointError, MsflError, UserError
from msfl_jax.export import weight_files
from msfl_jax.export.arrays import IMAGENET, Pixels
from msfl_jax.export.detect import pixels_of
from msfl_jax.export.weight_files import open_weights, read_safetensors

from .files import BAD, GOOD, Trap, plain_pickle, zipped_pickle

save_file = pytest.importorskip("safetensors.numpy").save_file
TENSORS = {"x.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "x.bias": np.float16([1, 2])}


def refusal(path, kind=CheckpointError):
    with pytest.raises(kind) as caught:
        open_weights(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    return str(caught.value)


def test_tensors_come_back_as_they_were_saved(tmp_path):
    save_file(TENSORS, tmp_path / "w.safetensors", {"format": "pt"})
    weights = open_weights(tmp_path / "w.safetensors")
    assert weights.kind == "safetensors"
    assert weights.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert_array_equal(weights.tensors[name], tensor)


@pytest.mark.parametrize("value", ["0.5", "[0.5, 0.5, 0.5]", "[", "[" * 100_000, "NaN"])
def test_what_a_header_says_of_pixels_is_read_and_never_trusted(value, tmp_path):
    beside = {"format": "pt", "image_mean": value, "image_std": "[0.25, 0.25, 0.25]"}
    save_file(TENSORS, tmp_path / "w.safetensors", beside)
    found = pixels_of(open_weights(tmp_path / "w.safetensors"), "timm")
    assert found == (Pixels.grey(0.5, 0.25) if value == "[0.5, 0.5, 0.5]" else IMAGENET)


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_safetensors_file_is_refused(fault, tmp_path):
    file = tmp_path / "w.safetensors"
    file.write_bytes(BAD[fault])
    assert "w.safetensors" in refusal(file)


@given(data=st.data())
def test_no_damage_to_a_header_gets_beyond_a_refusal(data, tmp_path_factory):
    """One changed byte, or a cut, gives the same names and shapes or a refusal; never another exception."""
    file = tmp_path_factory.mktemp("w") / "w.safetensors"
    raw = bytearray(GOOD)
    raw[data.draw(st.integers(0, len(raw) - 9))] = data.draw(st.integers(0, 255))
    file.write_bytes(bytes(raw[: data.draw(st.integers(1, len(raw)))]))
    with contextlib.suppress(CheckpointError):
        assert all(tensor.nbytes <= 8 for tensor in read_safetensors(file).values())


def test_bfloat16_is_read_exactly(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    tensor = torch.randn(5, 3).to(torch.bfloat16)
    save_torch({"first": torch.ones(2), "w": tensor}, tmp_path / "w.safetensors")
    assert_array_equal(read_safetensors(tmp_path / "w.safetensors")["w"], tensor.float().numpy())


def folder(path, config=None, tensors=TENSORS):
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config or {"model_type": "vit"}))
    save_file(tensors, path / "model.safetensors")
    return path


@pytest.mark.parametrize(
    "config",
    [
        {"auto_map": {"AutoModel": "modeling_evil.Model"}},
        {"trust_remote_code": True},
        {"custom_pipelines": {"a": 1}},
        {"vision_config": {"layers": [{"auto_map": {"AutoModel": "modeling_evil.Model"}}]}},
    ],
)
@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_a_config_that_asks_for_code_is_refused_and_the_code_is_not_run(config, file, tmp_path):
    path = folder(tmp_path / "model")
    (path / file).write_text(json.dumps(config))
    (path / "modeling_evil.py").write_text(f"open({str(tmp_path / 'witness')!r}, 'w')\n")
    assert "asks for code" in refusal(path)
    assert not (tmp_path / "witness").exists()
    assert open_weights(path / "model.safetensors").tensors.keys() == TENSORS.keys()


@pytest.mark.parametrize("text", ["{", "[]", "\xff", "[" * 100000])
def test_a_damaged_config_is_refused(text, tmp_path):
    path = folder(tmp_path / "model")
    (path / "config.json").write_bytes(text.encode("latin-1"))
    refusal(path)


def test_shards_are_read_by_their_index(tmp_path):
    for name, tensor in TENSORS.items():
        save_file({name: tensor}, tmp_path / f"{name}.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: f"{name}.safetensors" for name in TENSORS}}))
    assert open_weights(tmp_path).tensors.keys() == TENSORS.keys()
    for wrong in (
        {"x.weight": "../secret.safetensors"},
        {"x.weight": "/etc/passwd"},
        {"x.weight": "missing.safetensors"},
        {"x.weight": "x.weight.safetensors", "other": "x.weight.safetensors"},
        {"x.weight": 3},
        {},
        [],
    ):
        index.write_text(json.dumps({"weight_map": wrong}))
        refusal(tmp_path)


@pytest.mark.parametrize("write", [plain_pickle, zipped_pickle])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
def test_a_booby_trapped_pickle_is_refused_and_nothing_is_run(write, suffix, tmp_path):
    pytest.importorskip("torch")
    witness = tmp_path / "witness"
    file = tmp_path / f"weights{suffix}"
    write(file, {"model": {"w": Trap(witness)}})
    assert "nothing was run" in refusal(file)
    assert not witness.exists()


def test_a_pickle_in_the_place_of_safetensors_is_no_safetensors(tmp_path):
    plain_pickle(tmp_path / "w.safetensors", Trap(tmp_path / "witness"))
    refusal(tmp_path / "w.safetensors")
    assert not (tmp_path / "witness").exists()


def test_checkpoints_of_training_scripts_are_read_with_their_options(tmp_path):
    torch = pytest.importorskip("torch")
    tensors = {"w": torch.ones(2, dtype=torch.bfloat16), "n": torch.tensor(3)}
    torch.save({"model": tensors, "args": argparse.Namespace(lr=1e-3), "epoch": 3}, tmp_path / "w.pth")
    weights = open_weights(tmp_path / "w.pth")
    assert weights.kind == "PyTorch"
    assert_array_equal(weights.tensors["w"], np.float32([1, 1]))
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    assert "no named tensors" in refusal(tmp_path / "none.pth")


ODD = {
    "sparse": lambda torch: torch.eye(3).to_sparse(),
    "complex": lambda torch: torch.ones(2, dtype=torch.complex64),
    "without data": lambda torch: torch.empty(3, device="meta"),
    "one number for a terabyte": lambda torch: torch.zeros(1).expand(2**20, 2**20),
}


@pytest.mark.parametrize("kind", ODD)
def test_tensors_that_are_no_plain_arrays_are_refused(kind, tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"model": {"w": ODD[kind](torch)}}, tmp_path / "w.pth")
    assert "'w'" in refusal(tmp_path / "w.pth")


def test_a_name_that_breaks_the_line_is_refused_in_torch_files_too(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"w\nerror: all is well": torch.ones(1)}, tmp_path / "w.pth")
    refusal(tmp_path / "w.pth")


@pytest.mark.parametrize("keep", [0, 10, 200, -20])
def test_a_cut_torch_file_is_refused(keep, tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.ones(100)}, tmp_path / "whole.pth")
    (tmp_path / "w.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:keep])
    refusal(tmp_path / "w.pth")


def test_without_pytorch_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "w.pth").write_bytes(b"PK")
    assert "msfl_jax[torch]" in refusal(tmp_path / "w.pth", UserError)


@pytest.mark.parametrize("name", ["nothing", "w.txt", "empty"])
def test_what_is_no_file_of_weights_is_refused(name, tmp_path):
    (tmp_path / "w.txt").write_text("weights")
    (tmp_path / "empty").mkdir()
    refusal(tmp_path / name, MsflError)


def test_the_hash_is_that_of_the_bytes(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(GOOD)
    first = open_weights(tmp_path / "a.safetensors").sha256
    changed = bytearray(GOOD)
    changed[-1] ^= 1
    (tmp_path / "b.safetensors").write_bytes(bytes(changed))
    assert open_weights(tmp_path / "b.safetensors").sha256 != first
    assert weight_files.open_weights(tmp_path / "a.safetensors").sha256 == first
