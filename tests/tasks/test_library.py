"""A model in a program gives what the evaluations give, whatever form an image has and however many there are; the shown examples run."""

import dataclasses
import doctest
import io
import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image

import msfl_jax
from input_pipeline.errors import CheckpointError, DataError, UserError
from input_pipeline.images import decode_gray
from input_pipeline.loader import evaluation_batches, grounding_records
from input_pipeline.reading import open_split
from msfl_jax import library
from msfl_jax.commands.ground import ground_report
from msfl_jax.config import MeshConfig
from msfl_jax.export import writer
from msfl_jax.parallel.mesh import make_mesh
from msfl_jax.parallel.sharding import sharded_shapes
from msfl_jax.tasks import run as tasks_run
from msfl_jax.tasks.grounding import evaluate_grounding, own_geometry
from msfl_jax.tasks.run import batch_spec, encode_images, encode_reports
from msfl_jax.tasks.zero_shot import evaluate_zero_shot

from ..input_pipeline.dicom_files import file_of

ROOT = Path(__file__).parent.parent.parent
PROMPTS = {
    "Pneumonia": msfl_jax.Prompts(["Pneumonia is seen.", "There is pneumonia."], "No pneumonia."),
    "Edema": msfl_jax.Prompts("Edema is seen.", "No edema."),
}
SENTENCES = ["There is pneumonia.", "No edema is seen.", "The heart is normal.", "No pneumothorax.", "Edema is seen."]
CLOSE = {"rtol": 0, "atol": 1e-6}
PICTURES = np.random.default_rng(0).integers(0, 256, (5, 64, 96), dtype=np.uint8)


@pytest.fixture(scope="module")
def model(workdir):
    return msfl_jax.load(workdir)


def test_image_embeddings_are_those_of_the_evaluation(model, labelled_build):
    expected = []
    with evaluation_batches(labelled_build, batch_spec(model.run), batch_size=7, split="test") as batches:
        for batch in batches:
            rows = np.asarray(encode_images(model.run, batch["image"], batch_size=7)[0])
            expected.append(rows[batch["valid"]])
    found = model.embed_image([record.image for record in open_split(labelled_build, "test")])
    assert_allclose(found, np.concatenate(expected), **CLOSE)


def test_report_embeddings_are_those_of_the_loader_however_long_the_report(model):
    run, count = model.run, model.run.config.text.max_sentences
    reports = [SENTENCES[:1], SENTENCES[1:3], SENTENCES[:count], SENTENCES]
    assert len(SENTENCES) > count
    sizes = {"max_tokens": run.config.model.text.max_tokens, "max_sentences": count}
    ids, sentence_ids = map(np.stack, zip(*(run.tokenizer.encode_report(one, **sizes) for one in reports), strict=True))
    expected = np.asarray(encode_reports(run, ids, sentence_ids, batch_size=4))
    assert_allclose(model.embed_text([" ".join(report) for report in reports]), expected, **CLOSE)


def test_a_picture_has_one_embedding_in_every_form(model, tmp_path):
    grey = PICTURES[0]
    data = cv2.imencode(".png", grey)[1].tobytes()
    (tmp_path / "a.png").write_bytes(data)
    (tmp_path / "a.dcm").write_bytes(file_of(grey))
    forms = [data, tmp_path / "a.png", str(tmp_path / "a.dcm"), np.dstack([grey] * 3), Image.fromarray(grey)]
    expected = model.embed_image(grey)
    for row in model.embed_image(forms):
        np.testing.assert_array_equal(row, model.embed_image([grey] * len(forms))[0])
        assert_allclose(row, expected[0], **CLOSE)
    jpeg = cv2.imencode(".jpg", grey)[1].tobytes()
    forms = [jpeg, Image.open(io.BytesIO(jpeg)), decode_gray(jpeg)]
    assert len(np.unique(model.embed_image(forms), axis=0)) == 1


def test_rows_do_not_depend_on_how_many_there_are(model):
    images, texts = list(PICTURES), [*SENTENCES, " ".join(SENTENCES)]
    assert_allclose(model.embed_image(images), np.concatenate([model.embed_image(one) for one in images]), **CLOSE)
    assert_allclose(model.embed_text(texts), np.concatenate([model.embed_text(one) for one in texts]), **CLOSE)
    whole = model.zero_shot(images, PROMPTS, rule="gloria")
    alone = [model.zero_shot(one, PROMPTS, rule="gloria") for one in images]
    for name, scores in whole.items():
        assert_allclose(scores, np.concatenate([row[name] for row in alone]), **CLOSE)
    maps = model.ground(images[0], SENTENCES)
    assert_allclose(maps, [model.ground(images[0], text) for text in SENTENCES], equal_nan=True, **CLOSE)
    many = model.embed_image(images * 14)  # 70: more than the largest batch
    assert_allclose(many, np.tile(model.embed_image(images), (14, 1)), **CLOSE)


def test_nothing_has_no_rows(model):
    width = model.run.config.model.embedding_width
    assert model.embed_image([]).shape == model.embed_text([]).shape == (0, width)
    assert {name: scores.shape for name, scores in model.zero_shot([], PROMPTS).items()} == dict.fromkeys(PROMPTS, (0,))


@pytest.mark.parametrize("rule", [None, "cosine", "gloria"])
def test_zero_shot_scores_are_those_of_the_evaluation(model, labelled_build, rule):
    result = evaluate_zero_shot(model.run, labelled_build, "test", prompts=PROMPTS, rule=rule, replicates=0)
    found = model.zero_shot([record.image for record in open_split(labelled_build, "test")], PROMPTS, rule=rule)
    assert tuple(found) == result.predictions.findings
    assert_allclose(np.stack(list(found.values()), axis=1), result.predictions.scores, **CLOSE)


def test_heat_maps_are_those_of_the_evaluation(model, boxes_build):
    records = grounding_records(boxes_build, "test")[:5]
    maps = evaluate_grounding(model.run, boxes_build, "test", records=5, replicates=0).scores.maps[:, 0]
    protocol, fit = own_geometry(model.run), model.run.config.data.fit
    for record, grid in zip(records, maps, strict=True):
        expected = protocol.heat(grid, decode_gray(record.image).shape, fit)
        assert_allclose(model.ground(record.image, record.sentences[0]), expected, equal_nan=True, **CLOSE)


def test_the_heat_map_is_the_one_that_msfl_ground_prints(model, workdir, tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(cv2.imencode(".png", PICTURES[0])[1].tobytes())
    text = ground_report(workdir, image=file, phrase="Edema is seen.", out=tmp_path / "out.png")
    heat = model.ground(file, "Edema is seen.")
    assert heat.shape == PICTURES[0].shape
    row, column = np.unravel_index(np.nanargmax(heat), heat.shape)
    x, y = map(int, re.search(r"^1 +(\d+), (\d+)", text, re.MULTILINE).groups())
    assert heat[y, x] == heat[row, column]
    assert f" {np.nanmax(heat):.2f} " in text


def test_no_size_is_compiled_twice(model, caplog):
    images, texts = list(PICTURES), [f"{text} {other}" for text in SENTENCES for other in SENTENCES]

    def use(count):
        model.embed_image((images * 4)[:count])
        model.embed_text(texts[:count])
        sides = msfl_jax.Prompts(texts[:count], texts[:count])
        model.zero_shot((images * 4)[:count], {"Edema": sides, "Other": sides}, rule="gloria")
        model.ground(images[0], texts[:count])

    with jax.log_compiles(True):
        for count in (1, 4, 16):
            use(count)
        warm = len([record for record in caplog.records if "Compiling" in record.getMessage()])
        for count in (3, 2, 7, 11, 5, 13):
            use(count)
        jax.jit(lambda value: value + count)(1.0)  # what is compiled is seen here
        found = [record.getMessage() for record in caplog.records if "Compiling" in record.getMessage()]
    assert [message for message in found[warm:] if "lambda" not in message] == []
    assert len(found) > warm


def test_parameters_sharded_over_eight_devices_give_what_one_gives(model, workdir, monkeypatch):
    monkeypatch.setattr(tasks_run, "sharded_shapes", partial(sharded_shapes, threshold=16))
    sharded = msfl_jax.load(workdir, mesh=make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    leaves = jax.tree.leaves(sharded.run.params)
    assert all(len(leaf.sharding.device_set) == 8 for leaf in leaves)
    parts = [leaf.addressable_shards[0].data.size / leaf.size for leaf in leaves]
    assert min(parts) == 0.25  # over fsdp and tensor
    images = list(PICTURES[:3])
    assert_allclose(sharded.embed_image(images), model.embed_image(images), atol=1e-5)
    assert_allclose(sharded.embed_text(SENTENCES), model.embed_text(SENTENCES), atol=1e-5)
    for name, scores in sharded.zero_shot(images, PROMPTS, rule="gloria").items():
        assert_allclose(scores, model.zero_shot(images, PROMPTS, rule="gloria")[name], atol=1e-5)
    maps = [one.ground(images[0], SENTENCES[:2]) for one in (sharded, model)]
    assert_allclose(*maps, atol=1e-5, equal_nan=True)


def test_loading_says_nothing(workdir, caplog, capfd):
    """Orbax would warn of the optimizer that lies beside the parameters, in every program that loads a run."""
    assert (workdir / "checkpoints" / "3" / "opt_state").is_dir()
    msfl_jax.load(workdir)
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_a_checkpoint_is_loaded_by_its_folder_without_its_optimizer(model, workdir, tmp_path, monkeypatch, capfd):
    own = shutil.copytree(workdir, tmp_path / "own")
    shutil.rmtree(own / "checkpoints" / "3" / "opt_state")
    capfd.readouterr()
    monkeypatch.chdir(own / "checkpoints")
    for path, step in ((own, None), (own, 3), (str(own / "checkpoints" / "3"), None), ("3", None)):
        found = msfl_jax.load(path, step=step)
        assert found.run.step == 3
        assert repr(found) == f"LoadedModel('{found.run.directory}', step 3)"
        jax.tree.map(np.testing.assert_array_equal, found.run.params, model.run.params)
    assert capfd.readouterr() == ("", "")


@pytest.fixture(scope="module")
def export_folder(workdir, tmp_path_factory):
    """An export of the run with all that can leave; its comparison with PyTorch is tested elsewhere."""
    folder = tmp_path_factory.mktemp("export") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer.parity, "has_torch", lambda: False)
        patch.setattr(writer, "make_golden", lambda run: {"inputs.image": np.zeros(1, np.uint8)})
        writer.export_run(tasks_run.open_run(workdir, decoders=True), folder, decoders=True, mlm_head=True)
    return folder


def test_an_export_is_loaded_like_its_run_on_one_device_and_on_eight(model, export_folder):
    images, mesh = list(PICTURES[:2]), make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    for found, devices in ((msfl_jax.load(export_folder), 1), (msfl_jax.load(str(export_folder), mesh=mesh), 8)):
        assert found.run.step == 3
        jax.tree.map(np.testing.assert_array_equal, found.run.params, model.run.params)
        assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(found.run.params)} == {devices}
        assert_allclose(found.embed_image(images), model.embed_image(images), atol=1e-5)
        assert_allclose(found.embed_text(SENTENCES), model.embed_text(SENTENCES), atol=1e-5)
        for name, scores in found.zero_shot(images, PROMPTS).items():
            assert_allclose(scores, model.zero_shot(images, PROMPTS)[name], atol=1e-5)
        maps = [one.ground(images[0], "Edema is seen.") for one in (found, model)]
        assert_allclose(*maps, atol=1e-5, equal_nan=True)
    with pytest.raises(UserError, match="is an export, of one step"):
        msfl_jax.load(export_folder, step=3)


def test_an_export_knows_what_must_be_said_of_its_run_and_done_to_images(model, workdir, tmp_path, monkeypatch):
    run = dataclasses.replace(tasks_run.open_run(workdir), caveats=("splits overlap (allowed)",), equalize=True)
    monkeypatch.setattr(writer.parity, "has_torch", lambda: False)
    monkeypatch.setattr(writer, "make_golden", lambda run: {"inputs.image": np.zeros(1, np.uint8)})
    writer.export_run(run, tmp_path / "export")
    found = msfl_jax.load(tmp_path / "export").run
    assert (found.caveats, found.equalize) == (run.caveats, True)
    values = json.loads((tmp_path / "export" / "config.json").read_text())
    del values["caveats"], values["equalize"]  # as exports of earlier releases
    (tmp_path / "export" / "config.json").write_text(json.dumps(values))
    found = msfl_jax.load(tmp_path / "export").run
    assert (found.caveats, found.equalize) == ((), False)


def test_images_are_equalised_where_those_of_training_were(model, workdir, tmp_path):
    """By what the run has noted of its build, in every form of use; OpenCV does it for the expected values."""
    own = shutil.copytree(workdir, tmp_path / "own")
    data = {"name": "nih_chestxray14", "split": "train", "settings": {}, "caveats": [], "equalize": True}
    (own / "data.json").write_text(json.dumps(data))
    equalising, dark = msfl_jax.load(own), PICTURES[0] // 5 + 40
    shown = cv2.equalizeHist(dark)
    assert_allclose(equalising.embed_image(dark), model.embed_image(shown), **CLOSE)
    assert np.abs(equalising.embed_image(dark) - model.embed_image(dark)).max() > 1e-3
    expected = model.ground(shown, "Edema is seen.")
    assert_allclose(equalising.ground(dark, "Edema is seen."), expected, equal_nan=True, **CLOSE)
    for name, scores in equalising.zero_shot(dark, PROMPTS).items():
        assert_allclose(scores, model.zero_shot(shown, PROMPTS)[name], **CLOSE)
    tables = []
    for run, image in ((own, dark), (workdir, shown)):
        (tmp_path / "a.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
        tables.append(ground_report(run, image=tmp_path / "a.png", phrase="Edema is seen.", out=tmp_path / "out.png"))
    assert tables[0] == tables[1]


def test_what_only_reconstruction_needs_is_not_read(model, workdir, tmp_path):
    whole = tasks_run.open_run(workdir, decoders=True).params
    assert {"pixel_decoder", "vision"} < whole.keys()
    kept = model.run.params
    assert kept.keys() == whole.keys() - {"pixel_decoder"}
    assert kept["heads"].keys() == whole["heads"].keys() - {"language"}
    jax.tree.map(np.testing.assert_array_equal, kept, tasks_run.without(whole, tasks_run.DECODERS))


def test_an_export_that_asks_for_code_is_not_loaded(export_folder, tmp_path):
    own = shutil.copytree(export_folder, tmp_path / "own")
    values = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps(values | {"auto_map": {"AutoModel": "evil.Model"}}))
    (own / "evil.py").write_text("open('witness', 'w')\n")
    with pytest.raises(CheckpointError, match="asks for code"):
        msfl_jax.load(own)
    assert not list(tmp_path.rglob("witness"))


def test_without_local_alignment_the_map_says_what_it_is(model):
    objective = dataclasses.replace(model.run.config.objective, lambda_local=0.0)
    config = dataclasses.replace(model.run.config, objective=objective)
    other = dataclasses.replace(model.run.model, config=config)
    apart = library.LoadedModel(dataclasses.replace(model.run, config=config, model=other))
    with pytest.warns(UserWarning, match="trained without local alignment: the map compares patches"):
        heat = apart.ground(PICTURES[0], "Edema.")
    patches = np.asarray(tasks_run.encode_regions(apart.run, PICTURES[:1, :32, :32, None], batch_size=1))
    assert patches.shape[-1] == config.model.embedding_width
    assert np.isfinite(heat).any()
    assert not np.allclose(heat, model.ground(PICTURES[0], "Edema."), equal_nan=True)
    with pytest.raises(UserError, match="'gloria' needs local alignment"):
        apart.zero_shot(PICTURES[0], PROMPTS, rule="gloria")


def test_what_is_no_model_is_one_line(workdir, tmp_path):
    own = shutil.copytree(workdir, tmp_path / "own")
    shutil.rmtree(own / "tokenizer")
    devices = jax.make_mesh((8,), ("rows",))
    cases = [
        (tmp_path, {}, UserError, "expected a run directory"),
        (tmp_path / "absent", {}, UserError, "expected a run directory"),
        (workdir / "checkpoints", {}, UserError, "expected a run directory"),
        (workdir / "checkpoints" / "4", {}, CheckpointError, "no checkpoint '4'"),
        (workdir / "checkpoints" / "3", {"step": 3}, UserError, "is a step itself"),
        (own, {}, UserError, "tokenizer.json does not exist; expected the folder of a trained tokenizer"),
        (workdir, {"mesh": devices}, UserError, "found axes rows; expected data, fsdp, tensor"),
    ]
    for path, options, kind, message in cases:
        with pytest.raises(kind, match=message) as error:
            msfl_jax.load(path, **options)
        assert "\n" not in str(error.value)


def test_what_cannot_be_asked_is_one_line(model):
    grey, bad = PICTURES[0], b"no image"
    cases = [
        (lambda: model.embed_image([grey, bad]), DataError, "image 2 of 2: image of 8 bytes is neither"),
        (lambda: model.zero_shot([grey, grey, "absent.png"], PROMPTS), UserError, "image 3 of 3: cannot be read"),
        (lambda: model.ground("absent.png", "edema"), UserError, "image: cannot be read"),
        (lambda: model.embed_text(["edema", " ... "]), UserError, "text 2 of 2 has no word"),
        (lambda: model.embed_text(""), UserError, "text 1 of 1 has no word"),
        (lambda: model.ground(grey, " "), UserError, "phrase 1 of 1 has no word"),
        (lambda: model.ground(grey, "edema", protocol="biovll"), UserError, "did you mean 'biovil'"),
        (lambda: model.zero_shot(grey, {"Edema": msfl_jax.Prompts("-", "No edema.")}), UserError, "of 'Edema' has no"),
        (lambda: model.zero_shot(grey, PROMPTS, rule="cosin"), UserError, "did you mean 'cosine'"),
        (lambda: model.zero_shot(grey, {}), UserError, "found no finding"),
        (lambda: msfl_jax.Prompts([], "No edema."), UserError, "found no positive sentence"),
    ]
    for ask, kind, message in cases:
        with pytest.raises(kind, match=message) as error:
            ask()
        assert "\n" not in str(error.value)


@pytest.fixture
def examples(workdir, tmp_path, monkeypatch):
    """The folder in which the shown examples run."""
    (tmp_path / "runs").mkdir()
    os.symlink(workdir, tmp_path / "runs" / "b16")
    for number, name in enumerate(("radiograph.png", "another.jpg")):
        cv2.imwrite(str(tmp_path / name), PICTURES[number])
    (tmp_path / "study.dcm").write_bytes(file_of(PICTURES[2]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_examples_of_the_module_run(examples):
    results = doctest.testmod(library, optionflags=doctest.ELLIPSIS)
    assert results.attempted >= 8
    assert results.failed == 0


def test_the_lines_of_the_readme_run(examples):
    section = (ROOT / "README.md").read_text().split("\n## Use a model\n")[1].split("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    names = {}
    assert len([line for line in blocks[0].splitlines() if line]) == 3
    for block in blocks[:2]:
        exec(block, names)
    assert names["heat"].shape == PICTURES[2].shape
    assert names["scores"]["Pneumothorax"].shape == (2,)
    assert names["embeddings"].shape == (2, 16)


def test_importing_the_package_imports_neither_jax_nor_numpy():
    code = "import sys, msfl_jax; print(sorted({'jax', 'numpy', 'orbax'} & set(sys.modules)), dir(msfl_jax))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[] ['LoadedModel', 'Prompts', 'load']"
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        msfl_jax.lod  # noqa: B018
