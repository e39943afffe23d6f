"""Prevalences are counted per image or study and judged where most of the release is there."""

import json
import math
import shutil
from pathlib import Path

import pytest

from input_pipeline import prevalence
from input_pipeline.datasets.chexpert import LABEL_NAMES as CHEXPERT
from input_pipeline.datasets.mimic_cxr import LABEL_NAMES as MIMIC
from input_pipeline.datasets.ms_cxr import CATEGORIES as MS_CXR
from input_pipeline.datasets.nih_chestxray14 import LABEL_NAMES as NIH
from input_pipeline.datasets.nih_chestxray14 import NihBoxes
from input_pipeline.prevalence import Prevalence, _published, compare_prevalence
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


def test_each_phrase_of_an_image_counts_for_its_own_finding(published):
    identity = ("p1", "s1", "i1", "x.jpg", "PA")
    rows = [
        ImageRow(*identity, (1.0, math.nan), "basal edema", "Edema"),
        ImageRow(*identity, (math.nan, 1.0), "something else", "Other"),
        ImageRow(*identity, (math.nan, 1.0), "yet another", "Other"),
        ImageRow(*identity, (math.nan, 1.0), "basal edema", "Other"),
    ]
    for order in (rows, rows[::-1]):
        edema, other = compare_prevalence("of nobody", ["Edema", "Other"], {"test": order})
        assert (edema.positive, other.positive) == (1, 3)
        assert edema.units == other.units == 4


def test_ms_cxr_with_its_published_findings_is_not_odd_and_without_one_it_is():
    counts = _published()["ms_cxr"]["positive"]
    rows = [
        ImageRow(
            "p",
            "s",
            f"i{number // 2}",
            "x.jpg",
            "",
            tuple(float(name == own) for own in counts),
            f"phrase {number}",
            name,
        )
        for number, name in enumerate(name for name, count in counts.items() for _ in range(count))
    ]
    assert len(rows) == 1162
    assert not any(label.odd for label in compare_prevalence("ms_cxr", list(counts), {"test": rows}))
    without = [row for row in rows if row.category != "Pneumothorax"]
    odd = {label.label for label in compare_prevalence("ms_cxr", list(counts), {"test": without}) if label.odd}
    assert "Pneumothorax" in odd


def test_the_boxes_of_nih_are_those_that_are_published(real_data, tmp_path):
    shutil.copy(real_data / "nih_chestxray14" / "BBox_List_2017.csv.gz", tmp_path)
    scan = NihBoxes(tmp_path).scan()
    found = compare_prevalence("nih_boxes", NIH, scan.rows)
    assert {label.label: label.positive for label in found if label.positive} == _published()["nih_boxes"]["positive"]
    assert {label.units for label in found} == {984}


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
    names = {"mimic_cxr": MIMIC, "chexpert": CHEXPERT, "nih_chestxray14": NIH, "ms_cxr": {*MS_CXR} - {"Lung Lesion"}}
    for source, labels in names.items():
        assert set(table[source]["positive"]) == set(labels)
    for entry in table.values():
        assert entry["unit"] in ("image", "study", "phrase")
        assert all(0 < count < entry["units"] for count in entry["positive"].values())


def test_lines_are_aligned():
    lines = [str(Prevalence(label, 1, 20, 0.05, True)) for label in ("Edema", "Enlarged Cardiomediastinum")]
    assert len({line.index(" of ") for line in lines}) == 1
