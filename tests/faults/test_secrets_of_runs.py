"""Two hundred strings and identifiers planted in reports, phrases and names of files: none comes out of training, evaluation, fine-tuning or export.

Where the doctor and builds are asked the same: test_secrets.py, and tests/input_pipeline/test_canaries.py.
"""

import functools
import logging
import string

import matplotlib.figure
import pytest
from matplotlib.text import Text
from PIL import Image

from input_pipeline.datasets.mimic_cxr import LABEL_NAMES
from msfl_jax.commands import evaluate, finetune, retrieval, zero_shot
from msfl_jax.commands.pretrain import run_pretraining
from msfl_jax.config_files import load_config
from msfl_jax.finetune_config import finetune_config

from ..input_pipeline.test_canaries import (
    IMAGES,
    LABELS,
    NUMBERS,
    PATIENTS,
    STUDIES,
    WORDS,
    leaks,
    place,
    write,
    write_corpus,
)
from ..small import OVERRIDES
from .mimic import BOX_HEADER

TRAINING = [
    *("--config.train.steps=2", "--config.train.log_every=1", "--config.data.batch_size=8"),
    "--config.model.text.max_tokens=96",  # one a letter
]
FINE_TUNING = [
    *("--config.train.steps=1", "--config.train.log_every=1", "--config.train.evaluate_every=1"),
    *("--config.data.batch_size=8", "--config.optimizer.warmup_steps=0"),
]
TEST = [study for study in range(STUDIES) if study // 2 % 5 == 4]


@pytest.fixture
def drawn(monkeypatch):
    """All texts of the figures that were saved, hidden ones among them."""
    texts, save = [], matplotlib.figure.Figure.savefig

    def saving(figure, *arguments, **options):
        texts.extend(text.get_text() for text in figure.findobj(Text))
        return save(figure, *arguments, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", saving)
    return texts


@pytest.fixture
def few_replicates(monkeypatch):
    """Of every bootstrap: their number changes no word."""
    for module in (zero_shot, evaluate, retrieval):
        if hasattr(module, "REPLICATES"):
            monkeypatch.setattr(module, "REPLICATES", 20)
    quick = functools.partial(finetune.finetune_classification, replicates=20)
    monkeypatch.setattr(finetune, "finetune_classification", quick)


@pytest.fixture
def data(tmp_path, msfl):
    """Builds of a corpus in the layouts of MIMIC-CXR and MS-CXR, full of canaries, and a vocabulary of letters, which has none of them."""
    root, out = write_corpus(tmp_path / "in" / "corpus"), tmp_path / "out" / "data"
    rows = [
        (PATIENTS[k // 2], NUMBERS[k], *(f"{float((k + n) % 2)}" for n in range(len(LABEL_NAMES))))
        for k in range(STUDIES)
    ]
    write(root / LABELS, [("subject_id", "study_id", *LABEL_NAMES), *rows])
    phrases = [
        [
            "Pneumonia",
            f"{WORDS[k]} at the left base",
            f"{place(k)}/{IMAGES[k]}.jpg",
            IMAGES[k],
            5,
            5,
            20,
            20,
            "test",
            40,
            40,
        ]
        for k in TEST
    ]
    write(tmp_path / "in" / "boxes.csv", [BOX_HEADER, *phrases])
    signs = [*string.ascii_lowercase, *string.digits, *".,()-"]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *signs, *(f"##{sign}" for sign in signs)]
    (tmp_path / "in" / "vocab.txt").write_text("\n".join(words) + "\n")
    small = ("--short-side", 32, "--workers", 1)
    boxes = ("--boxes", tmp_path / "in" / "boxes.csv")
    for command in (
        ("data", "build", "mimic-cxr", "--jpg", root, "--reports", root, "--out", out / "mimic", *small),
        ("data", "build", "ms-cxr", "--jpg", root, *boxes, "--out", out / "ms", *small),
        ("data", "tokenizer", "--from", tmp_path / "in" / "vocab.txt", "--out", out / "tokenizer"),
    ):
        assert msfl(*command)[0] == 0
    return out


def test_nothing_that_is_done_with_a_model_tells_who_or_what(
    data, tmp_path, msfl, drawn, few_replicates, capfd, caplog
):
    caplog.set_level(logging.INFO)
    run, told = tmp_path / "out" / "run", ""
    paths = (f"--config.data.directory={data / 'mimic'}", f"--config.data.tokenizer={data / 'tokenizer'}")
    run_pretraining(load_config("demo", [*paths, *OVERRIDES, *TRAINING]), run)
    for command in (
        ("eval", "zero-shot", run, "--data", data / "mimic", "--prompts", "chexpert"),
        ("eval", "retrieval", run, "--data", data / "mimic"),
        ("eval", "grounding", run, "--data", data / "ms"),
        ("eval", "grounding", run, "--data", data / "mimic"),
    ):
        told += "".join(succeeded(msfl(*command)))
        assert not overlays(run), "an image of a patient was drawn unasked"
    for build in ("ms", "mimic"):
        told += "".join(succeeded(msfl("eval", "grounding", run, "--data", data / build, "--overlays", 2)))
    assert overlays(run) == ["overlay_00.png", "overlay_01.png", "report_test_00.png", "report_test_01.png"]
    assert "sentence 1" in " ".join(drawn)
    tuning = load_config("finetune_chexpert", FINE_TUNING, make=finetune_config)
    told += finetune.run_classification(tuning, tmp_path / "out" / "tuned", run, data / "mimic")
    told += "".join(capfd.readouterr())
    for command in (("export", run, "--to", tmp_path / "out" / "export"), ("verify", tmp_path / "out" / "export")):
        told += "".join(succeeded(msfl(*command)))
    assert leaks(told + caplog.text + " ".join(drawn)) == []
    assert leaks(written(tmp_path / "out")) == []
    # Who asks for sentences gets them: what is looked for above is found where it is.
    succeeded(msfl("eval", "grounding", run, "--data", data / "ms", "--overlays", 2, "--show-text"))
    assert 0 < len(leaks(" ".join(drawn))) <= len(TEST)


def succeeded(answer):
    code, out, err = answer
    assert code == 0, err
    return out, err


def overlays(run):
    return sorted(path.name for path in run.glob("figures/*.png") if path.name.startswith(("overlay_", "report_")))


def written(folder):
    """Names and contents of all files, and the texts in those of pictures, but for shards, whose purpose the reports are."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    kept = [path for path in files if "array_record-" not in path.name or path.suffix == ".json"]
    pictures = (Image.open(path).info for path in kept if path.suffix == ".png")
    names = "\n".join(str(path.relative_to(folder)) for path in files)
    return names + "".join(path.read_bytes().decode("latin-1") for path in kept) + "".join(map(str, pictures))
