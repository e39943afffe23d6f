"""What `msfl export` writes: folders that transformers loads, a card, hashes; and what it never leaves behind."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from input_pipeline.errors import CheckpointError, UserError
from input_pipeline.images import evaluation_view
from input_pipeline.manifest import Manifest
from msfl_jax.commands.export import export_report, verify_report
from msfl_jax.config import config_hash, from_config_dict
from msfl_jax.config_init import InitFromConfig
from msfl_jax.export import golden, huggingface, writer
from msfl_jax.export.importing import read_weights
from msfl_jax.export.layout import open_export, read_tensors, without_paths, write_tensors
from msfl_jax.export.model_card import write_card
from msfl_jax.export.parity import has_torch
from msfl_jax.export.trees import flatten
from msfl_jax.metrics import Interval
from msfl_jax.tasks.outcome import Outcome, save_outcome
from msfl_jax.train.provenance import inherit, read_caveats, write_provenance

from ..tasks.tiny import tiny, write_run
from .runs import tokenizer_in

ROOT = Path(__file__).parents[2]
OWN = {"image_embedding", "regions", "report_embedding", "units", "unit_mask", "matching", "scores", "heat"}
THEIRS = {"vision/cls", "vision/patches", "text/states", "text/logits", "mae/prediction"}


@pytest.mark.skipif(not has_torch(), reason="PyTorch is not installed")
@pytest.mark.parametrize("name", ["demo", "windowed", "global", "b16"])
def test_every_output_of_pytorch_is_that_of_jax(exported, name):
    """Also through ViTModel, BertForMaskedLM and ViTMAEForPreTraining with the same masks, where they can hold the model."""
    _, folder, said = exported(name)
    assert set(said.compared) == OWN | (THEIRS if name == "b16" else {"text/states", "text/logits"})
    assert max(one.difference for one in said.compared.values()) < 1e-5
    stored = json.loads((folder / "parity.json").read_text())["outputs"]
    assert {key: value["difference"] for key, value in stored.items()} == {
        key: one.difference for key, one in said.compared.items()
    }


@pytest.mark.skipif(not has_torch(), reason="PyTorch is not installed")
def test_what_leaves_without_options_is_compared_too(exported, tmp_path, capfd):
    """Then `text/` is a BertModel, and there is no `mae/`; models of transformers are read without a word."""
    run = exported("b16")[0]
    capfd.readouterr()
    said = writer.export_run(run, tmp_path / "plain")
    printed = capfd.readouterr()
    assert printed.out == ""
    assert not any(word in printed.err for word in ("%|", "REPORT"))
    assert said.compared.keys() == OWN | {"vision/cls", "vision/patches", "text/states"}
    assert max(one.difference for one in said.compared.values()) < 1e-5
    assert not (tmp_path / "plain" / "mae").exists()


def test_golden_outputs_are_made_of_products_that_no_device_rounds(exported, monkeypatch):
    seen = []

    def watched(name, original):
        def call(*args, **options):
            seen.append((name, jax.config.jax_default_matmul_precision))
            return original(*args, **options)

        return call

    for name in ("_outputs", "encode_texts", "ground_phrases"):
        monkeypatch.setattr(golden, name, watched(name, getattr(golden, name)))
    golden.make_golden(exported("global")[0])
    assert dict(seen) == dict.fromkeys(("_outputs", "encode_texts", "ground_phrases"), "highest")
    assert jax.config.jax_default_matmul_precision is None


@pytest.mark.parametrize("file", ["timm_vit.safetensors", "vision/model.safetensors", "mae/model.safetensors"])
def test_one_file_of_an_export_comes_back_bit_by_bit(exported, file, tmp_path):
    """With nothing beside it that says how pixels are normalised, and not as others usually are."""
    run, folder, _ = exported("b16")
    shutil.copy(folder / file, tmp_path / "w.safetensors")
    like = jax.eval_shape(run.model.init, jax.random.key(0))
    found = read_weights(tmp_path / "w.safetensors", run.config, like, roles=("vision",))
    assert not found.diff
    arrays, expected = flatten(found.params), flatten(run.params)
    assert "vision/patch_embed/bias" in arrays
    for path, array in arrays.items():
        np.testing.assert_array_equal(array, expected[path], err_msg=path)


def test_an_export_opens_as_the_run_bit_by_bit(exported):
    run, folder, _ = exported("b16")
    opened, expected = open_export(folder), writer.without_unwanted(run, True, True)
    found, wanted = flatten(opened.params), flatten(expected.params)
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[path], wanted[path]) for path in wanted)
    assert opened.step == run.step
    assert opened.tokenizer.hash == run.tokenizer.hash


def test_what_other_libraries_cannot_hold_is_left_out_and_said(exported):
    _, folder, said = exported("demo")
    assert [note.split()[0] for note in said.notes[:3]] == ["vision", "timm_vit.safetensors", "mae"]
    assert all("window" in note and "\n" not in note for note in said.notes[:3])
    assert [note.split(":")[0] for note in said.notes[3:]] == [
        "preprocessor_config.json cannot normalise an image by its own mean and deviation"
    ]
    assert not (folder / "vision").exists()
    assert (folder / "text" / "model.safetensors").is_file()


def test_transformers_reads_the_configs_and_the_tokenizer(exported):
    transformers = pytest.importorskip("transformers")
    run, folder, _ = exported("b16")
    vision = transformers.ViTConfig.from_pretrained(folder / "vision")
    assert (vision.layer_norm_eps, vision.hidden_size, vision.num_hidden_layers) == (1e-6, 768, 2)
    mae = transformers.ViTMAEConfig.from_pretrained(folder / "mae")
    assert (mae.mask_ratio, mae.norm_pix_loss) == (run.config.image.mask_ratio, run.config.image.norm_pix)
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder / "text")
    expected = run.tokenizer.encode_phrases(["The heart is normal."], max_tokens=16)[0][0]
    assert tokenizer("The heart is normal.")["input_ids"] == expected[expected != 0].tolist()
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    assert settings["image_mean"] == [run.config.image.mean] * 3


@pytest.mark.parametrize(("name", "kind"), [("b16", "clip"), ("global", "vit")])
@pytest.mark.parametrize("shape", [(64, 96), (160, 128), (192, 288)])
def test_the_image_processor_of_transformers_shows_what_ours_shows(exported, name, kind, shape):
    """Read from the export as its users do: centred square for "crop", all of the image for "squash", and the same pixels within few grey levels."""
    module = pytest.importorskip(f"transformers.models.{kind}.image_processing_pil_{kind}")
    run, folder, _ = exported(name)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    processor = getattr(module, f"{settings['image_processor_type']}Pil").from_pretrained(folder)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    image = np.uint8(128 + 60 * np.sin(rows / 15) + 60 * np.cos(columns / 20))
    pixels = processor(Image.fromarray(image), return_tensors="np")["pixel_values"][0]
    options, size = run.config.image, run.config.model.vision.image_size
    view = evaluation_view(image, size, run.config.data.fit)
    found = (pixels * options.deviation + options.mean) * 255
    assert found.shape == (3, size, size)
    assert np.abs(found - view).max() < (1e-3 if shape == (64, 96) and name == "b16" else 8)
    assert np.abs(found - view).mean() < 1


def test_what_an_image_processor_cannot_do_is_said(exported):
    run = exported("windowed")[0]
    assert "pad images to a square" in " ".join(exported("windowed")[2].notes)
    per_image = dataclasses.replace(run.config.image, normalisation="per_image")
    other = dataclasses.replace(run, config=dataclasses.replace(run.config, image=per_image), equalize=True)
    said = huggingface._left_to_the_user(other)
    assert [line.split()[2] for line in said] == ["equalise", "pad", "normalise"]
    assert "Histograms are equalised first" in write_card(other, {}, said, None)
    assert all(f"- {line}" in write_card(other, {}, said, None) for line in said)


def test_decoders_and_the_language_head_leave_on_request_alone(exported, tmp_path, monkeypatch):
    run, _, _ = exported("demo")
    monkeypatch.setattr(writer.parity, "has_torch", lambda: False)
    monkeypatch.setattr(writer, "make_golden", lambda run: {"inputs.image": np.zeros(1, np.uint8)})
    said = writer.export_run(run, tmp_path / "bare")
    names = read_tensors(tmp_path / "bare" / "model.safetensors")
    assert not any(name.startswith(("pixel_decoder", "heads.language")) for name in names)
    assert "not checked" in (tmp_path / "bare" / "parity.json").read_text()
    assert said.compared is None
    assert json.loads((tmp_path / "bare" / "text" / "config.json").read_text())["architectures"] == ["BertModel"]


def test_the_folder_one_stands_in_can_be_the_target(exported, tmp_path, monkeypatch):
    run, _, _ = exported("demo")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(writer.parity, "has_torch", lambda: False)
    monkeypatch.setattr(writer, "make_golden", lambda run: {"inputs.image": np.zeros(1, np.uint8)})
    writer.export_run(run, Path("."))
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
    assert (tmp_path / "here" / "manifest.json").is_file()


def test_a_folder_that_is_taken_is_refused(exported, tmp_path):
    run, folder, _ = exported("demo")
    with pytest.raises(UserError, match="exists"):
        writer.export_run(run, folder)


def test_no_path_of_this_machine_leaves(exported):
    run, folder, _ = exported("demo")
    sections = {field.name: getattr(run.config, field.name) for field in dataclasses.fields(run.config)}
    builds = {name: section for name, section in sections.items() if hasattr(section, "directory")}
    assert builds.keys() >= {"data", "zero_shot", "grounding", "retrieval", "probe"}
    moved = {name: dataclasses.replace(section, directory=f"/secret/{name}") for name, section in builds.items()}
    moved["data"] = dataclasses.replace(moved["data"], tokenizer="/secret/b")
    moved["zero_shot"] = dataclasses.replace(moved["zero_shot"], prompts="/secret/mine.json")
    started = InitFromConfig(vision="/secret/mae.pth", report="/secret/bert/")
    config = dataclasses.replace(run.config, **moved, init_from=started)
    values = without_paths(config)
    assert (values["init_from"]["vision"], values["init_from"]["report"]) == ("mae.pth", "bert")
    config = dataclasses.replace(run.config, init_from=started)
    assert config_hash(from_config_dict(without_paths(config))) == config_hash(config)
    assert "secret" not in json.dumps(values)
    assert values["zero_shot"]["prompts"] == "mine.json"
    texts = [file.read_text() for file in folder.rglob("*") if file.suffix in (".json", ".md")]
    assert not any(str(run.directory) in text or str(folder) in text for text in texts)


def test_a_killed_export_leaves_no_folder(tmp_path):
    """A child is killed while it writes the golden outputs: what is there then has another name, and the next export clears it away."""
    code = (
        "import sys; from pathlib import Path; from msfl_jax.export import writer\n"
        "writer._write = lambda run, folder, _: ((folder / 'half').write_text('x'), print('writing', flush=True), __import__('time').sleep(60))\n"
        "writer.without_unwanted = lambda run, *_: run\n"
        "writer.export_run(None, Path(sys.argv[1]))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"writing\n"
        child.send_signal(signal.SIGKILL)
    assert [path.name for path in tmp_path.iterdir()] == [".out.partial"]


def test_a_failed_export_leaves_nothing(exported, tmp_path, monkeypatch):
    run, _, _ = exported("demo")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(writer, "write_folders", fail)
    with pytest.raises(OSError, match="full"):
        writer.export_run(run, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def evaluated(exported, tmp_path):
    """The demo's run in a folder with data and one result."""
    run = dataclasses.replace(exported("demo")[0], directory=tmp_path, caveats=("splits overlap (allowed)",))
    started = InitFromConfig(vision="/secret/mae.pth")
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, init_from=started))
    data = {"name": "mimic_cxr", "split": "train", "members": "ab" * 32, "settings": {}, "caveats": list(run.caveats)}
    (tmp_path / "data.json").write_text(json.dumps(data))
    metrics = {"mean_auc": Interval(0.875, 0.812, 0.931), "ece": Interval(float("nan"), float("nan"), float("nan"))}
    common = {
        "task": "zero_shot",
        "dataset": "nih_chestxray14",
        "split": "test",
        "split_hash": "cd" * 32,
        "variant": "cosine",
    }
    outcome = Outcome(
        **common, options={}, step=7, records=40, patients=30, metrics=metrics, caveats=("12 patients shared",)
    )
    save_outcome(outcome, tmp_path)
    return run


def test_the_card_says_data_terms_leaks_and_numbers_with_their_intervals(evaluated):
    card = write_card(evaluated, {"tokenizer": "f00d"}, ["vision is left out: a window"], None)
    for text in (
        "PhysioNet Credentialed",
        "started from mae.pth: the terms of those weights",
        "split: train, images by hash abab",
        "nih_chestxray14 | test cdcdcd | cosine",
        "no image, no report, no identifier",
        "data: mimic_cxr",
        "| mean_auc | 0.875 | 0.812 to 0.931 | 40 | 30 |",
        "| ece | undefined |",
        "splits overlap (allowed); 12 patients shared",
        "vision is left out: a window",
        "Not checked: PyTorch is not installed",
        "tokenizer: f00d",
        "not for clinical use",
    ):
        assert text in card


def test_the_card_of_a_synthetic_study_is_not_called_by_the_data_set_whose_layout_it_has(evaluated):
    values = json.loads((evaluated.directory / "data.json").read_text())
    (evaluated.directory / "data.json").write_text(json.dumps(values | {"settings": {"synthetic": True}}))
    card = write_card(evaluated, {}, [], None)
    assert "synthetic study in the layout of mimic_cxr" in card
    assert "PhysioNet" not in card


def test_the_card_of_a_run_that_went_on_from_another_has_the_data_and_the_terms_of_both(evaluated, tmp_path):
    """A run on MIMIC-CXR, one on a synthetic study from its parameters, and one more from those."""
    synthetic = Manifest("mimic_cxr", (), 64, 95, 1, 0, {}, {"synthetic": True}, {}, "", {})
    parent, child, grandchild = evaluated.directory, tmp_path / "child", tmp_path / "grandchild"
    for start, folder in ((parent, child), (child, grandchild)):
        folder.mkdir()
        caveats, before = inherit(start, synthetic, "train")
        write_provenance(synthetic, "train", folder, inherited=caveats, before=before)
    for folder, earlier in ((child, 1), (grandchild, 2)):
        run = dataclasses.replace(evaluated, directory=folder, caveats=read_caveats(folder))
        card = write_card(run, {}, [], None)
        assert "- data: drawn by a program" in card
        assert "- data that it was trained on before, mimic_cxr: PhysioNet Credentialed" in card
        assert "- trained before on: mimic_cxr, split train" in card
        assert card.count("- trained before on: ") == earlier
        caveat = "started from a run trained on mimic_cxr, split train; not checked: whether it saw these patients"
        assert caveat in card
        assert "splits overlap (allowed)" in card


def test_the_commands_read_a_run_directory_and_its_export(tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    workdir.mkdir()
    write_run(workdir, tiny(), tokenizer_in(tmp_path / "tokenizer"), step=3)
    monkeypatch.setattr(writer.parity, "has_torch", lambda: False)
    monkeypatch.setattr(writer, "make_golden", lambda run: {"inputs.image": np.zeros(1, np.uint8)})
    said = export_report(workdir, tmp_path / "out")
    assert "PyTorch is not installed" in said
    assert said.endswith(f"export   {tmp_path / 'out'}, step 3")
    assert "agree with the manifest" in verify_report(tmp_path / "out")
    with pytest.raises(CheckpointError, match="no checkpoint '4'"):
        export_report(workdir, tmp_path / "other", step="4")
    assert not (tmp_path / "other").exists()


def test_a_scalar_stays_a_scalar(tmp_path):
    write_tensors(tmp_path / "x.safetensors", {"x": np.asarray(2.0, np.float32)})
    assert read_tensors(tmp_path / "x.safetensors")["x"].shape == ()
