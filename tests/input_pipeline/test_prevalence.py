"""Prevalences are counted per image or study and judged where most of the release is there."""

import json
import math
from pathlib import Path

import pytest

from input_pipeline import prevalence
from input_pipeline.datasets.chexpert import LABEL_NAMES as CHEXPERT
from input_pipeline.datasets.mimic_cxr import LABEL_NAMES as MIMIC
from input_pipeline.datasets.nih_chestxray14 import LABEL_NAMES as NIH
from input_pipeline.prevalence import Prevalence, compare_prevalence
from input_pipeline.sources import ImageRow


def row(number, *labels, study=None):
    return ImageRow(f"p{number}", study or f"s{number}", f"i{number}", "x.jpg", "PA", labels)


@pytest.fixture
def published(monkeypatch):
    table = {
        "of images": {"unit": "image", "units": 1000, "positive": {"Edema": 100}},
        "of studies": {"unit": "study", "units": 1000, "positive": {"Edema": 100}},
    }
    monkeypatch.setattr(prevalence, "_published", lambda: table)


def test_images_are_counted_once_each_over_all_splits(published):
    rows = {
        "train": [row(1, 1.0, -1.0), row(2, 0.0, 1.0), row(3, math.nan, 1.0)],
        "test": [row(4, 1.0, 0.0), row(4, 1.0, 0.0)],
    }
    edema, other = compare_prevalence("of images", ["Edema", "Other"], rows)
    assert (edema.positive, edema.units, edema.published, edema.judged) == (2, 4, 0.1, False)
    assert (other.positive, other.units) == (2, 4)
    assert math.isnan(other.published)
    assert not edema.odd
    assert not other.odd


def test_studies_are_counted_where_the_release_labels_those(published):
    rows = {"train": [row(1, 1.0, study="a"), row(2, 1.0, study="a"), row(3, 0.0, study="b")]}
    (edema,) = compare_prevalence("of studies", ["Edema"], rows)
    assert (edema.positive, edema.units) == (1, 2)


@pytest.mark.parametrize(
    "positive, units, odd",
    [
        (100, 1000, False),
        (110, 1000, False),
        (152, 1000, False),  # 0.1 + 5 · sqrt(0.1 · 0.9 / 1000) + 0.005 = 0.1524
        (153, 1000, True),
        (47, 1000, True),
        (0, 499, False),  # less than half of the release
        (0, 500, True),
    ],
)
def test_a_share_is_odd_beyond_chance_and_choice_of_views(published, positive, units, odd):
    rows = {"train": [row(number, float(number < positive)) for number in range(units)]}
    (edema,) = compare_prevalence("of images", ["Edema"], rows)
    assert edema.odd == odd
    assert ("DIFFERS" in str(edema)) == odd


def test_without_rows_and_without_anything_published_there_is_no_verdict(published):
    (empty,) = compare_prevalence("of images", ["Edema"], {})
    assert not empty.odd
    assert "n/a" in str(empty)
    (unknown,) = compare_prevalence("of nobody", ["Edema"], {"train": [row(1, 1.0)]})
    assert str(unknown) == f"label  {'Edema':<28}{1:>9} of 1  100.00%"


def test_published_counts_are_of_labels_that_the_sources_have():
    table = json.loads((Path(prevalence.__file__).parent / "published_prevalence.json").read_text())
    names = {"mimic_cxr": MIMIC, "chexpert": CHEXPERT, "nih_chestxray14": NIH}
    for source, labels in names.items():
        assert set(table[source]["positive"]) == set(labels)
    for entry in table.values():
        assert entry["unit"] in ("image", "study")
        assert all(0 < count < entry["units"] for count in entry["positive"].values())


def test_lines_are_aligned():
    lines = [str(Prevalence(label, 1, 20, 0.05, True)) for label in ("Edema", "Enlarged Cardiomediastinum")]
    assert len({line.index(" of ") for line in lines}) == 1
