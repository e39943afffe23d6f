"""A model small enough to compile in seconds, with every objective on, and batches for it."""

import dataclasses
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from input_pipeline.build import build
from input_pipeline.datasets.mimic_cxr import MimicCxr
from input_pipeline.datasets.synthetic import synthesize
from input_pipeline.loader import text_sentences
from input_pipeline.tokenizer import train_tokenizer
from msfl_jax import presets
from msfl_jax.config import Config, from_config_dict, to_dict

ROOT = Path(__file__).parents[2]
VOCAB_SIZE = 61


@pytest.fixture(scope="session")
def config() -> Config:
    """Two layers of width 32 for 32 px images and one for reports; windowed regions, all objectives, masking and hard negatives."""
    sizes = presets.model(
        presets.vision(32, 2, 2, image_size=32, patch_size=8),
        presets.report(32, 1, 2, max_tokens=16),
        presets.pixel_decoder(16, 1, 2),
        embedding=32,
        region=16,
    )
    sizes.vision.cls_token = False
    sizes.scan_layers = False
    sizes.flat_products = True
    sizes.compute_dtype = "float32"
    values = presets.pretraining("tiny", sizes)
    values.text.max_sentences = 4
    values.regions.layer = 1
    values.regions.window_radius = 1
    values.regions.projection = "own"
    values.objective.instance_matching.ramp = (0.0, 0.1)
    values.data.batch_size = 8
    values.optimizer.warmup_steps = 0
    values.train.steps = 40
    values.train.log_every = 1
    values.train.checkpoint_every = 10
    return from_config_dict(values)


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """A build of 76 synthetic training studies and its tokenizer: folders `records` and `tokenizer`."""
    folder = tmp_path_factory.mktemp("study")
    synthesize(folder / "raw", studies=100, seed=0, size=64, workers=1, progress=False)
    build(MimicCxr(folder / "raw", folder / "raw"), folder / "records", short_side=32, workers=1, progress=False)
    train_tokenizer(text_sentences(folder / "records", "train"), folder / "tokenizer", vocab_size=200)
    return folder


@pytest.fixture(scope="session")
def run_config(config, changed, study):
    """The configuration of a run on the study: one step per log line."""
    return changed(config, data__directory=str(study / "records"), data__tokenizer=str(study / "tokenizer"))


DRIVER = """
import json, sys
from pathlib import Path
from input_pipeline.errors import MsflError
from msfl_jax.config import from_config_dict
from msfl_jax.train.loop import pretrain

if __name__ == "__main__":  # a loader worker imports this file as well
    try:
        pretrain(from_config_dict(json.loads(Path(sys.argv[1]).read_text())), Path(sys.argv[2]))
    except MsflError as error:
        print(error)
        sys.exit(error.exit_code)
"""


@pytest.fixture(scope="session")
def command_in():
    """The command line of a run in a process of its own, whose files lie in a folder, and the environment it needs."""

    def make(folder: Path, config: Config, workdir: Path) -> tuple[list[str], dict[str, str]]:
        (folder / "driver.py").write_text(DRIVER)
        (folder / "run.json").write_text(json.dumps(to_dict(config)))
        environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        return [sys.executable, str(folder / "driver.py"), str(folder / "run.json"), str(workdir)], environment

    return make


@pytest.fixture
def command(tmp_path, command_in):
    """`command_in` the test's own folder."""
    return lambda config, workdir: command_in(tmp_path, config, workdir)


@pytest.fixture(scope="session")
def changed():
    """A configuration with dotted keys replaced."""

    def change(config, **keys):
        for key, value in keys.items():
            section, name = key.split("__")
            part = dataclasses.replace(getattr(config, section), **{name: value})
            config = dataclasses.replace(config, **{section: part})
        return config

    return change


@pytest.fixture(scope="session")
def random_batch():
    """A batch of noise images and reports of two sentences: a function of its number."""

    def make(number: int, size: int = 8) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(number)
        token_ids = rng.integers(6, VOCAB_SIZE, (size, 16)).astype(np.int32)
        sentence_ids = np.repeat(np.array([[1, 2]], np.int32), 8, axis=1).repeat(size, axis=0)
        length = rng.integers(8, 16, size)
        padding = np.arange(16) >= length[:, None]
        return {
            "image": rng.integers(0, 256, (size, 32, 32, 1)).astype(np.uint8),
            "token_ids": np.where(padding, 0, token_ids),
            "sentence_ids": np.where(padding, 0, sentence_ids),
            "study_key": rng.integers(0, size - 1, size).astype(np.uint32),
        }

    return make
