"""A planted study: grey squares that stand for findings, and a model that sees exactly them and reads exactly their names."""

import dataclasses
from collections import Counter
from pathlib import Path

import cv2
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.build import build
from input_pipeline.sources import ImageRow, ImagesOnly, Scan, Sentences
from input_pipeline.tokenizer import train_tokenizer
from msfl_jax.model import Model
from msfl_jax.tasks.run import Run

from .tiny import tiny, write_run

FINDINGS = ("Pneumonia", "Edema", "Pneumothorax")  # the last one has no positives
LEVELS = (110, 230)  # grey of the squares of the first two
HEIGHT, WIDTH = 64, 96
STUDIES = 24


def place_of(number: int, finding: int) -> tuple[int, int, int, int]:
    """x, y, width and height of a finding's square: one patch of the centre crop, never in its outermost row."""
    return (16 + 16 * ((number // 2 + finding) % 4), 16 + 16 * finding, 16, 16)


def has(number: int, finding: int) -> bool:
    return finding < 2 and (number % 2 == 0 if finding == 0 else number % 3 == 0)


def draw(number: int) -> bytes:
    image = np.zeros((HEIGHT, WIDTH), np.uint8)
    for finding, level in enumerate(LEVELS):
        if has(number, finding):
            x, y, width, height = place_of(number, finding)
            image[y : y + height, x : x + width] = level
    return cv2.imencode(".png", image)[1].tobytes()


@dataclasses.dataclass(frozen=True)
class PlantedSource(ImagesOnly):
    """`boxes` gives one row per phrase, otherwise one per study."""

    boxes: bool
    name: str = "planted"
    splits: tuple[str, ...] = ("test",)  # all of the same studies

    def label_names(self):
        return () if self.boxes else FINDINGS

    def settings(self):
        return {}

    def files(self, row):
        return ()

    def scan(self):
        rows = [row for number in range(STUDIES) for row in self._rows(number)]
        return Scan(dict.fromkeys(self.splits, rows), {split: Counter() for split in self.splits}, {})

    def sentences(self, row):
        return Sentences((row.phrase or "The heart is normal.",))

    def image(self, row):
        return draw(int(row.study))

    def _rows(self, number):
        identity = (f"p{number // 2}", str(number), f"i{number}", "none", "PA")
        if not self.boxes:
            labels = [1.0 if has(number, f) else (float("nan"), 0.0)[number % 4 == 1] for f in range(len(FINDINGS))]
            labels[1] = -1.0 if number % 12 == 5 else labels[1]
            return [ImageRow(*identity, tuple(labels))]
        return [
            ImageRow(*identity, (), f"{FINDINGS[f]} is seen.", FINDINGS[f], (tuple(map(float, place_of(number, f))),))
            for f in range(2)
            if has(number, f)
        ]


@dataclasses.dataclass(frozen=True)
class PlantedModel(Model):
    """Each finding has one dimension; a text is negated by the word with id `no`."""

    words: tuple[int, int] = (0, 0)
    no: int = 0

    def temperature(self, params):
        return jnp.float32(0.1)

    def encode_image(self, params, image):
        patch, grid = self.config.model.vision.patch_size, self.config.model.vision.grid
        levels = (
            image[..., 0].astype(jnp.float32).reshape(-1, grid, patch, grid, patch).mean((2, 4)).reshape(-1, grid**2)
        )
        seen = jnp.stack([jnp.maximum(1 - jnp.abs(levels - level) / 50, 0) for level in LEVELS], axis=-1)
        regions = jnp.pad(seen + params["offset"], ((0, 0), (0, 0), (0, self.config.model.region_width - 2)))
        regions = regions.at[..., -1].set(0.3)
        embedding = jnp.pad(seen.max(axis=1), ((0, 0), (0, self.config.model.embedding_width - 2)))
        return embedding.at[:, -1].set(0.3), regions

    def encode_report(self, params, token_ids, sentence_ids):
        named = jnp.stack([(token_ids == word).any(axis=1) for word in self.words], axis=-1).astype(jnp.float32)
        sign = jnp.where((token_ids == self.no).any(axis=1, keepdims=True), -1.0, 1.0)
        report = jnp.pad(named * sign, ((0, 0), (0, self.config.model.embedding_width - 2)))
        unit = jnp.pad(named, ((0, 0), (0, self.config.model.region_width - 2)))
        units = 1 + int(self.config.objective.local_alignment.include_cls)
        sentences = jnp.stack([unit] * units, axis=1).at[:, : units - 1].set(-1.0)  # the [CLS] unit points elsewhere
        return report, sentences, jnp.ones(sentences.shape[:2], bool)


@pytest.fixture(scope="session")
def tiny_config():
    return tiny()


@pytest.fixture(scope="session")
def planted_tokenizer(tmp_path_factory):
    words = [f"there is no {name} seen." for name in FINDINGS] + ["the heart is normal."]
    return train_tokenizer(words, tmp_path_factory.mktemp("run") / "tokenizer", vocab_size=100)


@pytest.fixture(scope="session")
def planted_run(tiny_config, planted_tokenizer):
    ids, _ = planted_tokenizer.encode_phrases(["pneumonia edema no"], max_tokens=8)
    first, second, no = (int(token) for token in ids[0, 1:4])
    model = PlantedModel(tiny_config, planted_tokenizer.vocab_size, (first, second), no)
    params = {"offset": jnp.float32(0.0)}
    return Run(Path(planted_tokenizer.directory).parent, tiny_config, model, params, planted_tokenizer, 7)


@pytest.fixture(scope="session")
def labelled_build(tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "labels"
    build(PlantedSource(boxes=False), out, short_side=32, workers=1, progress=False)
    return out


@pytest.fixture(scope="session")
def split_build(labelled_build):
    out = labelled_build.parent / "splits"
    source = PlantedSource(boxes=False, splits=("train", "validate", "test"))
    build(source, out, short_side=32, workers=1, progress=False)
    return out


@pytest.fixture(scope="session")
def boxes_build(labelled_build):
    out = labelled_build.parent / "boxes"
    build(PlantedSource(boxes=True), out, short_side=32, workers=1, progress=False)
    return out


@pytest.fixture(scope="module")
def workdir(tiny_config, planted_tokenizer, tmp_path_factory):
    """A run directory as training leaves it, at step 3."""
    workdir = tmp_path_factory.mktemp("workdir")
    write_run(workdir, tiny_config, planted_tokenizer, step=3)
    return workdir
