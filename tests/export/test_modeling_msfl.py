"""The PyTorch module of an export against the JAX model, output by output, for every option of the configurations."""

import contextlib
import dataclasses
import importlib
import re
import subprocess
import sys
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from input_pipeline.images import evaluation_view
from input_pipeline.sections import split_sentences
from msfl_jax.export.parity import our_module
from msfl_jax.export.writer import export_run
from msfl_jax.metrics import smoothing
from msfl_jax.tasks import grounding, zero_shot
from msfl_jax.tasks.run import encode_images, encode_regions, encode_texts, to_host

from .runs import SENTENCES

torch = pytest.importorskip("torch")

ROOT = Path(__file__).parents[2]
TEXTS = [*SENTENCES[:2], " ".join(SENTENCES)]
LISTS = [*SENTENCES[:2], list(SENTENCES)]
PROMPTS = {"Opacity": (SENTENCES[:1], SENTENCES[1:3]), "Edema": (SENTENCES[3:], SENTENCES[2:3])}
EQUAL = {"rtol": 0, "atol": 1e-5}


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
        assert_allclose(found[name], expected, **EQUAL)


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


def test_histograms_are_equalised_as_opencv_does_it():
    our_module()
    equalized = importlib.import_module("processing_msfl").equalized
    rng = np.random.default_rng(0)
    images = [rng.integers(low, high, (61, 47), np.uint8) for low, high in ((0, 256), (40, 90), (250, 256), (7, 8))]
    images += [np.uint8(rng.exponential(20, (500, 700)).clip(0, 255)), np.zeros((3, 3), np.uint8)]
    for image in images:
        assert_array_equal(equalized(torch.tensor(image)), cv2.equalizeHist(image))


def test_a_model_of_equalised_images_equalises_them(runs_by_name, tmp_path):
    """In the comparison of the export with JAX, and given any image."""
    run = dataclasses.replace(runs_by_name("windowed"), equalize=True)
    said = export_run(run, tmp_path / "export")
    assert max(one.difference for one in said.compared.values()) < 1e-5
    model, image = (
        our_module().Msfl.load(tmp_path / "export"),
        np.uint8([[40, 44], [52, 41]]).repeat(16, 0).repeat(16, 1),
    )
    by_hand = encode_images(run, cv2.equalizeHist(image)[None, ..., None], batch_size=1)[0]
    assert_allclose(model.embed_image(image), by_hand, **EQUAL)
    plain = encode_images(run, image[None, ..., None], batch_size=1)[0]
    assert np.abs(np.asarray(plain) - by_hand).max() > 1e-3


PIECES = (
    "No edema",
    "edema",
    "Dr",
    "3",
    "12",
    ". ",
    ".",
    "? ",
    "!",
    "\n",
    "\n\n",
    "1. ",
    "2) ",
    "- ",
    " * ",
    '."',
    " ",
    ", ",
    "5 cm",
    "(2)A",
)


@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=8))
def test_no_text_that_the_library_splits_passes_for_one_sentence(pieces):
    our_module()
    one_sentence, text = importlib.import_module("processing_msfl").one_sentence, "".join(pieces)
    spans = [text[start:end] for start, end in split_sentences(text)]
    if len(spans) > 1 or (spans and spans[0] != text.strip()):
        with pytest.raises(ValueError, match="list of its sentences"):
            one_sentence(text)
    elif not spans:
        with contextlib.suppress(ValueError):
            assert one_sentence(text) == []


@pytest.mark.parametrize(
    "text", [*SENTENCES, "opacity in the left lower lobe", "nodule of 3.5 mm", "T12 fracture?", " Edema. "]
)
def test_usual_phrases_are_one_sentence(text):
    our_module()
    assert importlib.import_module("processing_msfl").one_sentence(text) == [text]


def test_a_string_of_several_sentences_is_refused_and_a_list_of_them_is_not(exported):
    run, folder, _ = exported("demo")
    model, image = our_module().Msfl.load(folder), np.zeros((32, 32), np.uint8)
    with pytest.raises(ValueError, match="several sentences"):
        model.ground(image, [" ".join(SENTENCES[:2])])
    with pytest.raises(ValueError, match="several sentences"):
        model.embed_text([" ".join(SENTENCES[:2])])
    with pytest.raises(ValueError, match="no word"):
        model.ground(image, ["..."])
    expected = grounding.ground_phrases(run, image, [" ".join(SENTENCES[:2])])
    assert_allclose(model.ground(image, [list(SENTENCES[:2])]), expected, **EQUAL)


def test_three_lines_of_the_readme_and_of_the_card_work_without_jax(exported):
    folder = exported("demo")[1]
    lines = re.search(r"```python\n(from modeling_msfl.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
    assert lines in re.sub(r"(?<=import Msfl\n)\n", "", (ROOT / "README.md").read_text())
    before = "import numpy as np, sys; image = np.zeros((64, 96), np.uint8)\n"
    after = "assert heat.shape == (1, 64, 96); assert 'jax' not in sys.modules and 'msfl_jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", before + lines + after], cwd=folder, check=True)
