"""Compiled programs of an export, run in a process that has JAX and NumPy and none of this package."""

import subprocess
import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose

from msfl_jax.export.stablehlo import write_programs
from msfl_jax.metrics import smoothing
from msfl_jax.tasks import grounding
from msfl_jax.tasks.run import encode_images, encode_regions, encode_texts, to_host

from .runs import SENTENCES

pytest.importorskip("flatbuffers")

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


@pytest.mark.parametrize("name", ["demo", "global"])
def test_programs_run_without_the_package(runs_by_name, tmp_path, name):
    """With batches of two and of three, from the same program."""
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
    equal = {"rtol": 1e-5, "atol": 1e-5}
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
