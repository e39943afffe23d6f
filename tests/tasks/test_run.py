"""A run directory of a real, random model: opened, used on texts and images, evaluated and drawn; others are refused."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose

from input_pipeline.errors import CheckpointError, UserError
from input_pipeline.loader import grounding_records
from input_pipeline.tokenizer import train_tokenizer
from msfl_jax.commands import zero_shot
from msfl_jax.commands.evaluate import grounding_report
from msfl_jax.commands.zero_shot import zero_shot_report
from msfl_jax.config import MeshConfig
from msfl_jax.parallel.mesh import make_mesh
from msfl_jax.parallel.sharding import shardings
from msfl_jax.results.figures import save_phrase_overlays, save_record_overlays
from msfl_jax.tasks.grounding import evaluate_grounding
from msfl_jax.tasks.outcome import load_outcomes
from msfl_jax.tasks.prompts import Prompts, choose_set, load_prompts, prompts_hash
from msfl_jax.tasks.run import DECODERS, encode_images, encode_texts, open_run, to_host, without
from msfl_jax.tasks.zero_shot import evaluate_zero_shot

TEXTS = ["There is pneumonia.", "No edema. The heart is normal.", "pneumothorax", "Edema is seen."]
PROMPTS = {name: Prompts((f"{name} is seen.",), (f"No {name}.",)) for name in ("Pneumonia", "Edema")}


@pytest.fixture(scope="module")
def run(workdir):
    return open_run(workdir)


@pytest.fixture
def own_workdir(workdir, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(workdir, tmp_path / "own")


def test_an_opened_run_has_the_configuration_parameters_and_step_that_were_saved(run, tiny_config):
    assert (run.config, run.step) == (tiny_config, 3)
    expected = without(jax.jit(run.model.init)(jax.random.key(0)), DECODERS)  # as evaluations read it
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-5, atol=1e-6), run.params, expected)


def test_texts_are_embedded_alike_in_batches_of_any_size(run):
    whole, single = encode_texts(run, TEXTS), encode_texts(run, TEXTS, batch_size=3)
    jax.tree.map(lambda a, b: assert_allclose(a, b, atol=1e-5), whole, single)
    assert whole.report_embedding.shape == (4, 16)
    np.testing.assert_array_equal(whole.sentence_mask.sum(axis=1), [1, 2, 1, 1])


def test_the_cls_unit_is_no_sentence(run):
    local = dataclasses.replace(run.config.objective.local_alignment, include_cls=False)
    objective = dataclasses.replace(run.config.objective, local_alignment=local)
    config = dataclasses.replace(run.config, objective=objective)
    assert run.config.objective.local_alignment.include_cls
    other = dataclasses.replace(run, config=config, model=dataclasses.replace(run.model, config=config))
    jax.tree.map(lambda a, b: assert_allclose(a, b, atol=1e-6), encode_texts(run, TEXTS), encode_texts(other, TEXTS))


def test_no_texts_have_no_embeddings(run):
    texts = encode_texts(run, [])
    assert texts.report_embedding.shape == (0, 16)
    assert texts.sentences.shape[0] == 0


def test_padding_a_batch_of_images_changes_nothing(run):
    image = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 1), dtype=np.uint8)
    padded, exact = encode_images(run, image, batch_size=8), encode_images(run, image, batch_size=5)
    for a, b in zip(padded, exact, strict=True):
        assert len(a) == 8
        assert_allclose(a[:5], b, atol=1e-5)


def test_parameters_on_eight_devices_give_what_one_device_gives(run):
    mesh = make_mesh(MeshConfig(data=2, fsdp=4, tensor=1))
    params = jax.device_put(run.params, shardings(run.params, mesh, threshold=16))
    image = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 1), dtype=np.uint8)
    with jax.set_mesh(mesh):
        sharded = dataclasses.replace(run, params=params)
        texts, images = encode_texts(sharded, TEXTS, batch_size=3), to_host(encode_images(sharded, image, batch_size=3))
    assert len(images[0]) == 8  # raised to what divides over the mesh
    for a, b in zip(images, encode_images(run, image, batch_size=3), strict=True):
        assert_allclose(a[:3], b, atol=1e-5)
    jax.tree.map(lambda a, b: assert_allclose(a, b, atol=1e-5), texts, encode_texts(run, TEXTS))


@pytest.mark.parametrize("rule", ["cosine", "gloria"])
def test_a_random_model_is_evaluated_from_its_directory(run, labelled_build, rule):
    result = evaluate_zero_shot(run, labelled_build, "test", prompts=PROMPTS, rule=rule, replicates=20)
    assert result.rule == rule
    assert all(0 <= interval.low <= interval.value <= interval.high <= 1 for interval in result.auc.values())


def test_a_random_model_grounds_phrases_and_draws_them(run, boxes_build, tmp_path):
    result = evaluate_grounding(run, boxes_build, "test", records=9, replicates=20)
    assert result.records == 9
    assert np.isfinite(result.scores.values).all()
    files = save_phrase_overlays(run, boxes_build, "test", tmp_path / "figures", count=3)
    assert [file.name for file in files] == ["overlay_00.png", "overlay_01.png", "overlay_02.png"]
    assert all(file.stat().st_size > 10_000 for file in files)


def test_a_report_without_boxes_is_drawn_sentence_by_sentence(run, boxes_build, tmp_path):
    record = grounding_records(boxes_build, "test")[0]
    report = dataclasses.replace(record, sentences=tuple(TEXTS), boxes=record.boxes[:0])
    save_record_overlays(run, [report], tmp_path / "report.png")
    assert (tmp_path / "report.png").stat().st_size > 10_000


def test_caveats_of_a_run_stand_beneath_every_table(own_workdir, labelled_build, boxes_build, tmp_path):
    assert open_run(own_workdir).caveats == ()
    (tmp_path / "prompts.json").write_text(
        json.dumps({"Pneumonia": {"positive": ["Pneumonia."], "negative": ["No pneumonia."]}})
    )

    def reports():
        yield zero_shot_report(own_workdir, labelled_build, split="test", prompts=str(tmp_path / "prompts.json"))
        yield grounding_report(own_workdir, boxes_build, split="test", overlays=1)
        yield grounding_report(own_workdir, labelled_build, split="test", overlays=1)

    assert [text.count("\ncaveat  ") for text in reports()] == [1, 1, 0]  # the training build of this run is gone
    (own_workdir / "data.json").write_text(json.dumps({"caveats": ["MS-CXR patients were kept in training"]}))
    for text in reports():
        assert text.count("\ncaveat  MS-CXR patients were kept in training") == 1


def test_another_prompt_set_has_a_result_of_its_own(own_workdir, labelled_build, tmp_path, monkeypatch):
    monkeypatch.setattr(zero_shot, "REPLICATES", 20)
    monkeypatch.setattr(zero_shot, "save_reliability", lambda result, path: None)
    sides = {"positive": ["Pneumonia."], "negative": ["No pneumonia."]}
    (tmp_path / "prompts.json").write_text(json.dumps({"Pneumonia": sides}))
    for prompts in ("", str(tmp_path / "prompts.json"), "synthetic"):
        zero_shot_report(own_workdir, labelled_build, split="test", prompts=prompts)
    found = {outcome.variant: outcome.options["prompts_hash"] for _, outcome in load_outcomes([own_workdir])}
    own = choose_set(open_run(own_workdir).config.zero_shot.prompts, "planted", ["Pneumonia"])
    assert own != "synthetic"
    of_file = prompts_hash(load_prompts(tmp_path / "prompts.json"))
    assert found == {
        "cosine": prompts_hash(load_prompts(own)),
        f"cosine-file-{of_file[:6]}": of_file,
        "cosine-synthetic": prompts_hash(load_prompts("synthetic")),
    }
    assert len(list((own_workdir / "predictions").iterdir())) == 3


def test_a_step_that_was_not_saved_is_refused(workdir):
    with pytest.raises(CheckpointError, match="3"):
        open_run(workdir, step=4)


def test_another_folder_is_no_run_directory(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json; expected a run directory"):
        open_run(tmp_path)


def test_a_damaged_configuration_is_one_line(own_workdir):
    (own_workdir / "config.json").write_text("{")
    with pytest.raises(UserError, match="no JSON"):
        open_run(own_workdir)
    (own_workdir / "config.json").write_text("{}")
    with pytest.raises(UserError, match="missing"):
        open_run(own_workdir)


def test_another_tokenizer_of_the_same_size_is_refused(own_workdir, run, planted_tokenizer):
    other = [f"there is not {name} seen." for name in ("Pneumonia", "Edema", "Pneumothorax")] + ["the heart is normal."]
    shutil.rmtree(own_workdir / "tokenizer")
    replaced = train_tokenizer(other, own_workdir / "tokenizer", vocab_size=100)
    assert replaced.vocab_size == planted_tokenizer.vocab_size
    with pytest.raises(CheckpointError, match="put the run's own tokenizer back"):
        open_run(own_workdir)


def test_unknown_rules_and_protocols_are_answered_with_the_nearest(run, labelled_build, boxes_build):
    with pytest.raises(UserError, match="did you mean 'cosine'"):
        evaluate_zero_shot(run, labelled_build, "test", prompts=PROMPTS, rule="cosin")
    with pytest.raises(UserError, match="did you mean 'biovil'"):
        evaluate_grounding(run, boxes_build, "test", protocol="biovll")
