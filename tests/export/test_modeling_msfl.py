"""The PyTorch module of an export against the JAX model, output by output, for every option of the configurations."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from input_pipeline.images import evaluation_view
from msfl_jax.export.parity import our_module
from msfl_jax.metrics import smoothing
from msfl_jax.tasks import grounding, zero_shot
from msfl_jax.tasks.run import encode_images, encode_regions, encode_texts, to_host

from .runs import SENTENCES

torch = pytest.importorskip("torch")

ROOT = Path(__file__).parents[2]
TEXTS = [*SENTENCES[:2], " ".join(SENTENCES)]
LISTS = [*SENTENCES[:2], list(SENTENCES)]
PROMPTS = {"Opacity": (SENTENCES[:1], SENTENCES[1:3]), "Edema": (SENTENCES[3:], SENTENCES[2:3])}
EQUAL = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module", params=["demo", "windowed", "global", "b16"])
def pair(request, exported):
    """A JAX run and the PyTorch model of its export."""
    run, folder, _ = exported(request.param)
    return run, our_module().Msfl.load(folder)


@pytest.fixture(scope="module")
def images(pair):
    size = pair[0].config.model.vision.image_size
    return np.random.default_rng(0).integers(0, 256, (1, size, size), np.uint8)


def test_images_are_embedded_alike(pair, images):
    run, model = pair
    embedding, regions = encode_images(run, images[..., None], batch_size=1)
    assert_allclose(model.embed_image(images), embedding, **EQUAL)
    with torch.no_grad():
        assert_allclose(model.encode_image(torch.tensor(images))[1], regions, **EQUAL)
    assert_allclose(model.regions(images), encode_regions(run, images[..., None], batch_size=1), **EQUAL)


def test_texts_are_embedded_alike(pair):
    run, model = pair
    expected = encode_texts(run, TEXTS)
    units, present = model.sentences(LISTS)
    assert_allclose(model.embed_text(LISTS), expected.report_embedding, **EQUAL)
    assert_array_equal(present, expected.sentence_mask)
    assert_allclose(units[present], expected.sentences[expected.sentence_mask], **EQUAL)


def test_pairs_are_matched_alike(pair, images):
    run, model = pair
    reports = encode_texts(run, TEXTS).report_embedding[:1]
    embedding = np.asarray(encode_images(run, images[..., None], batch_size=1)[0])
    with torch.no_grad():
        found = model.match(torch.tensor(embedding), torch.tensor(reports))
    assert_allclose(found, jax.jit(run.model.match)(run.params, embedding, reports), **EQUAL)
    assert_allclose(model.cosine_temperature(), run.model.temperature(run.params), rtol=1e-6)


@pytest.mark.parametrize("rule", ["cosine", "maco", "chexzero", "gloria"])
def test_findings_are_scored_alike(pair, images, rule):
    run, model = pair
    if rule == "gloria" and not run.aligns_locally:
        with pytest.raises(ValueError, match="without"):
            model.zero_shot(images, PROMPTS, rule)
        return
    embedding, regions = to_host(encode_images(run, images[..., None], batch_size=1))
    found = model.zero_shot(images, PROMPTS, rule)
    scale = run.config.objective.local_alignment.region_scale
    for name, sides in PROMPTS.items():
        positive, negative = (encode_texts(run, side) for side in sides)
        near = zero_shot.local_similarity(regions, positive.sentences, positive.sentence_mask, region_scale=scale)
        both = positive.report_embedding, negative.report_embedding
        expected = zero_shot.score(embedding, *both, rule, local_positive=np.asarray(near))
        assert_allclose(found[name], expected, **(EQUAL | _products(embedding, both) if rule == "maco" else EQUAL))


def _products(image, sides):
    """Absolute tolerance of raw products, whose rounding grows with the lengths of the vectors."""
    positive, negative = (side.mean(axis=0) for side in sides)
    return {"atol": EQUAL["atol"] * max(1.0, np.linalg.norm(image[0]) * np.linalg.norm(positive - negative))}


def test_the_rule_is_the_runs_own_unless_one_is_given(pair, images):
    run, model = pair
    own = zero_shot.choose_rule(run, None)
    expected = model.zero_shot(images, PROMPTS, own)
    for name, scores in model.zero_shot(images, PROMPTS).items():
        assert_array_equal(scores, expected[name])


@pytest.mark.parametrize("shape", [(64, 96), (100, 80)])
def test_phrases_are_grounded_alike(pair, shape):
    """In an image of another size, whose view may differ by one grey level: so the one that the module sees is given to both."""
    run, model = pair
    image = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    side = run.config.model.vision.image_size
    image = np.kron(image, np.ones((-(-side // 32),) * 2, np.uint8))
    found = model.ground(image, LISTS)
    regions = to_host(encode_regions(run, model.views(image).numpy()[..., None], batch_size=1))
    texts = encode_texts(run, TEXTS)
    count = texts.sentence_mask.sum(axis=1, keepdims=True)
    phrases = (texts.sentences * texts.sentence_mask[..., None]).sum(axis=1) / count
    phrases = phrases if run.aligns_locally else texts.report_embedding
    protocol = grounding.own_geometry(run)
    maps = np.asarray(grounding.similarity_map(regions, phrases[None], cosine=protocol.cosine))[0]
    options = run.config.grounding
    expected = protocol.heat(smoothing(maps, options.sigma * options.shifts), image.shape, run.config.data.fit)
    assert_allclose(found, expected, **EQUAL)


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("shape", [(90, 64), (64, 91), (40, 33), (20, 20), (32, 32)])
def test_views_are_those_of_the_library_but_for_rounding(fit, shape):
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    our_module()
    found = importlib.import_module("processing_msfl").square_views(torch.tensor(image)[None], 32, fit)[0].numpy()
    difference = np.abs(found.astype(int) - evaluation_view(image, 32, fit))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.02


def test_three_lines_of_the_readme_and_of_the_card_work_without_jax(exported):
    folder = exported("demo")[1]
    lines = re.search(r"```python\n(from modeling_msfl.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
    assert lines in re.sub(r"(?<=import Msfl\n)\n", "", (ROOT / "README.md").read_text())
    before = "import numpy as np, sys; image = np.zeros((64, 96), np.uint8)\n"
    after = "assert heat.shape == (1, 64, 96); assert 'jax' not in sys.modules and 'msfl_jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", before + lines + after], cwd=folder, check=True)
