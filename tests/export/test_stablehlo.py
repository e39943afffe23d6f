"""Compiled programs of an export, run in a process that has JAX and NumPy and none of this package."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax import export
from numpy.testing import assert_allclose

import msfl_jax
from msfl_jax.export import writer
from msfl_jax.export.stablehlo import write_programs
from msfl_jax.metrics import smoothing
from msfl_jax.tasks import grounding
from msfl_jax.tasks.run import encode_images, encode_regions, encode_texts, to_host

from ..tasks.tiny import tiny, write_run
from ..test_cli import msfl
from .runs import SENTENCES, tokenizer_in

pytest.importorskip("flatbuffers")
ROOT = Path(__file__).parents[2]

CHILD = """
import sys
sys.modules.update(msfl_jax=None, input_pipeline=None, flax=None)  # importing them fails
from pathlib import Path
import numpy as np
from jax import export
folder, inputs = Path(sys.argv[1]) / "stablehlo", dict(np.load(sys.argv[2]))
weights = dict(np.load(folder / "weights.npz", allow_pickle=False))
def program(name):
    return export.deserialize(bytearray((folder / f"{name}.bin").read_bytes()))
assert all(program(name).platforms == ("cpu", "cuda", "tpu") for name in ("embed_image", "embed_text", "ground"))
image, ids, sentences = inputs["image"], inputs["ids"], inputs["sentences"]
embedding, regions = program("embed_image").call(weights, image)
report, units, present = program("embed_text").call(weights, ids, sentences)
heat = program("ground").call(weights, image, ids[:len(image)], sentences[:len(image)])
np.savez(sys.argv[3], embedding=embedding, regions=regions, report=report, units=units, present=present, heat=heat)
"""


def test_the_lines_of_the_card_run_without_the_package(tmp_path, monkeypatch, capsys):
    """Programs that `msfl export --to-stablehlo` wrote, called as the README of the export says."""
    tokenizer = tokenizer_in(tmp_path / "tokenizer")
    workdir, folder = tmp_path / "run", tmp_path / "export"
    workdir.mkdir()
    write_run(workdir, tiny(), tokenizer, step=3)
    monkeypatch.setattr(writer.parity, "has_torch", lambda: False)
    code, _, error = msfl(monkeypatch, capsys, "export", workdir, "--to", folder, "--to-stablehlo")
    assert (code, error) == (0, "")
    assert {path.name for path in (folder / "stablehlo").iterdir()} == {
        *("weights.npz", "embed_image.bin", "embed_text.bin", "ground.bin")
    }
    assert msfl(monkeypatch, capsys, "verify", folder)[0] == 0
    code_of_card = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
    assert code_of_card in (ROOT / "msfl_jax" / "export" / "README.md").read_text()
    before = "import sys; sys.modules.update(msfl_jax=None, input_pipeline=None, flax=None)\n"
    before += "import numpy as np; images = np.load(sys.argv[1])\n"
    after = "np.save(sys.argv[2], image_embedding)"
    image = np.random.default_rng(3).integers(0, 256, (1, 32, 32, 1), np.uint8)
    np.save(tmp_path / "images.npy", image)
    command = [sys.executable, "-P", "-c", before + code_of_card + after, tmp_path / "images.npy", tmp_path / "out.npy"]
    subprocess.run(command, cwd=folder, check=True)
    expected = msfl_jax.load(workdir).embed_image(image[0, ..., 0])
    assert_allclose(np.load(tmp_path / "out.npy"), expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def programs_of_global(runs_by_name, tmp_path_factory):
    """The files of programs by name."""
    folder = tmp_path_factory.mktemp("global")
    write_programs(runs_by_name("global"), folder)
    return {file.stem: file.read_bytes() for file in (folder / "stablehlo").glob("*.bin")}


def test_no_device_rounds_what_is_multiplied(programs_of_global):
    """GPUs and TPUs would, to 10 or 7 bits, where a program does not say otherwise."""
    for name, data in programs_of_global.items():
        program = export.deserialize(bytearray(data))
        products = [line for line in program.mlir_module().splitlines() if "stablehlo.dot_general" in line]
        assert products
        assert all("precision = [HIGHEST, HIGHEST]" in line for line in products), name


def test_programs_name_no_folder_of_this_machine(programs_of_global):
    """Which JAX would note for every operation, and for all that called it; what was told to it is taken back."""
    assert programs_of_global.keys() == {"embed_image", "embed_text", "ground"}
    for name, data in programs_of_global.items():
        text = export.deserialize(bytearray(data)).mlir_module()
        assert "layers.py" in text
        assert not re.search(r'"/[^"]*"', text), name
        for folder in (ROOT, Path(np.__file__).parents[1], Path.home()):
            assert bytes(folder) not in data, name
    assert jax.config.jax_include_full_tracebacks_in_locations
    assert jax.config.jax_hlo_source_file_canonicalization_regex is None


def test_a_run_that_attends_with_cudnn_leaves_without_its_kernel(runs_by_name, tmp_path, monkeypatch):
    """Exported on the GPU that it was trained on, in float32: its programs are for CPUs and TPUs as well."""
    run = runs_by_name("global")
    computed = {"attention": "cudnn", "compute_dtype": "bfloat16", "remat": "dots"}
    config = dataclasses.replace(run.config, model=dataclasses.replace(run.config.model, **computed))
    run = dataclasses.replace(run, config=config, model=dataclasses.replace(run.model, config=config))
    gpu = SimpleNamespace(client=SimpleNamespace(platform_version="PJRT C API\ncuda 12090"))
    monkeypatch.setattr(jax, "devices", lambda: [gpu])
    assert run.model.vision.spec.attention == run.model.text.spec.attention == "cudnn"
    write_programs(run, tmp_path)
    for file in sorted((tmp_path / "stablehlo").glob("*.bin")):
        text = export.deserialize(bytearray(file.read_bytes())).mlir_module()
        assert "stablehlo.dot_general" in text
        assert "cudnn" not in text, file.name
        assert "bf16" not in text, file.name


@pytest.mark.parametrize("name", ["demo", "windowed", "global", "b16"])
def test_programs_run_without_the_package(runs_by_name, tmp_path, name):
    """With batches of two and of three, from the same program; B/16's blocks are scanned, windowed's sentences are read alone."""
    run, folder = runs_by_name(name), tmp_path
    write_programs(run, folder)
    size = run.config.model.vision.image_size
    image = np.random.default_rng(3).integers(0, 256, (2, size, size, 1), np.uint8)
    ids, sentences = run.tokenizer.encode_phrases(SENTENCES[:3], max_tokens=run.config.model.text.max_tokens)
    np.savez(tmp_path / "inputs.npz", image=image, ids=ids, sentences=sentences)
    command = [sys.executable, "-P", "-c", CHILD, folder, tmp_path / "inputs.npz", tmp_path / "outputs.npz"]
    subprocess.run(command, cwd=tmp_path, check=True)
    found = np.load(tmp_path / "outputs.npz")
    single = [to_host(encode_images(run, image[row : row + 1], batch_size=1)) for row in range(2)]
    embedding, regions = (np.concatenate(column) for column in zip(*single, strict=True))
    texts = encode_texts(run, SENTENCES[:3])
    first = int(run.config.objective.local_alignment.include_cls)
    equal = {"rtol": 0, "atol": 1e-5}
    assert_allclose(found["embedding"], embedding, **equal)
    assert_allclose(found["regions"], regions, **equal)
    assert_allclose(found["report"], texts.report_embedding, **equal)
    assert (found["present"][:, first:] == texts.sentence_mask).all()
    units = found["units"][:, first:]
    assert_allclose(units[texts.sentence_mask], texts.sentences[texts.sentence_mask], **equal)
    seen = np.concatenate([encode_regions(run, image[row : row + 1], batch_size=1) for row in range(2)])
    phrases = texts.sentences[:, :1] if run.aligns_locally else texts.report_embedding[:, None]
    cosine = grounding.own_geometry(run).cosine
    maps = np.asarray(grounding.similarity_map(seen, phrases[:2], cosine=cosine))[:, 0]
    options = run.config.grounding
    assert_allclose(found["heat"], smoothing(maps, options.sigma * options.shifts), **equal)
