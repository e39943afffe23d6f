"""The paper's numbers: a handful of each table typed again, every one with a source, and a file of another form refused."""

import importlib.resources
import json
import re

import pytest

from input_pipeline.errors import DataError
from msfl_jax.results.published import load_published

TEXT = importlib.resources.files("msfl_jax.results").joinpath("published.json").read_text()

# (table, method, status, column) -> number, typed from the paper and, for MRM and BioViL-L, from what is known of theirs.
EXPECTED = {
    (1, "ConVIRT", "printed", "rsna/1"): 77.4,
    (1, "REFERS", "printed", "nih/100"): 84.7,
    (1, "MedKLIP", "printed", "rsna/10"): 88.0,
    (1, "M-FLAG", "printed", "nih/1"): 62.2,
    (1, "M3AE", "printed", "chexpert/100"): 87.9,
    (1, "BioViL", "printed", "rsna/100"): 89.1,
    (1, "the paper's method", "printed", "chexpert/1"): 88.2,
    (1, "the paper's method", "printed", "nih/10"): 82.3,
    (1, "the paper's method", "printed", "rsna/100"): 93.0,
    (1, "MRM", "not in the paper's table", "nih/1"): 79.4,
    (1, "MRM", "not in the paper's table", "rsna/1"): 91.3,
    (2, "ConVIRT", "reconstructed", "siim/1"): 25.0,
    (2, "GLoRIA", "reconstructed", "siim/10"): 46.9,
    (2, "MGCA", "reconstructed", "siim/100"): 64.2,
    (2, "M-FLAG", "reconstructed", "siim/1"): 52.5,
    (2, "Med-UniC", "reconstructed", "siim/10"): 62.2,
    (2, "the paper's method", "printed", "siim/100"): 84.4,
    (2, "MRM", "not in the paper's table", "siim/100"): 91.4,
    (3, "GLoRIA", "printed", "rsna"): 71.45,
    (3, "ConVIRT", "printed", "rsna"): 80.42,
    (3, "CheXzero", "printed", "rsna"): 85.79,
    (3, "MedKLIP", "printed", "rsna"): 86.94,
    (3, "the paper's method", "printed", "rsna"): 90.28,
    (4, "ConVIRT", "printed", "miou"): 0.238,
    (4, "GLoRIA", "printed", "cnr"): 0.930,
    (4, "BioViL", "printed", "cnr"): 1.027,
    (4, "BioViL-L", "not in the paper's table", "miou"): 0.284,
    (4, "the paper's method", "printed", "cnr"): 1.468,
}
ABLATION = {
    "global,local": (91.3, 89.5),
    "global,instance": (91.1, 89.5),
    "global,modality": (91.2, 85.4),
    "global,local,instance": (91.1, 90.0),
    "global,local,modality": (91.4, 88.6),
    "global,instance,modality": (91.6, 86.3),
    "global,local,instance,modality": (91.7, 90.3),
}


@pytest.fixture(scope="module")
def tables():
    return load_published()


@pytest.mark.parametrize("key", EXPECTED, ids=lambda key: f"{key[0]}-{key[1]}-{key[3]}")
def test_numbers_are_those_of_the_paper(tables, key):
    number, name, status, column = key
    (row,) = [row for row in tables[number].rows if row.name == name]
    assert row.status == status
    assert row.values[column].value == EXPECTED[key]


def test_the_ablation_has_seven_rows_and_none_of_global_alignment_alone(tables):
    found = {row.objectives: (row.values["fine_tuned"].value, row.values["zero_shot"].value) for row in tables[5].rows}
    assert found == ABLATION


def test_every_number_has_a_source_and_every_doubtful_row_a_note(tables):
    assert sorted(tables) == [1, 2, 3, 4, 5]
    for table in tables.values():
        assert table.caveats
        for caveat in table.caveats:
            assert caveat.sources
            assert all(re.search(r"\S \((printed|high|medium|inferred)\)$", source) for source in caveat.sources)
        for row in table.rows:
            assert all(value.source and value.certainty for value in row.values.values())
            assert row.status == "printed" or row.note
    mrm = next(row for row in tables[1].rows if row.name == "MRM")
    assert "issue threads" in mrm.values["nih/1"].source
    assert "issue threads" not in mrm.values["rsna/1"].source
    assert "siim/1" not in next(row for row in tables[2].rows if row.name == "MRM").values


def test_counts_of_images_in_caveats_are_of_the_lists_that_were_counted(tables):
    counts = ("494 of 1,904", "5,337 images, 1,218 positive", "3,000 images (1,094 positive)", "36.5 %", "22,433")
    said = {
        one: caveat.sources
        for table in tables.values()
        for caveat in table.caveats
        for one in counts
        if one in caveat.text
    }
    assert said.keys() == set(counts)
    for one, sources in said.items():
        assert any("lists of splits" in source for source in sources), one
    assert any("MedKLIP" in source for source in said["5,337 images, 1,218 positive"])


def test_what_is_known_of_mrm_stands_above_the_paper_in_all_but_one_cell(tables):
    rows = {row.name: row.values for row in tables[1].rows}
    below = [key for key, value in rows["MRM"].items() if value.value <= rows["the paper's method"][key].value]
    assert below == ["rsna/1"]


def change(path, value):
    """The file with one value replaced, or taken out where it is None."""
    values = json.loads(TEXT)
    place = values
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return json.dumps(values)


@pytest.mark.parametrize(
    "path, value, message",
    [
        (("tables", "3", "rows", 0, "source"), "hearsay", "no source 'hearsay'"),
        (("tables", "3", "rows", 0, "values"), [1.0, 2.0], "found 2 numbers; expected 1"),
        (("tables", "3", "rows", 0, "values"), ["high"], "'high'; expected a number"),
        (("tables", "3", "rows", 0, "values"), [True], "True; expected a number"),
        (("tables", "3", "rows", 0, "status"), "rumoured", "status is 'rumoured'"),
        (("tables", "3", "rows", 0, "status"), "reconstructed", "needs a note"),
        (("tables", "3", "rows", 0, "valeus"), [1.0], "unknown key 'valeus'"),
        (("tables", "3", "columns", 0, "digits"), None, "'digits' is missing"),
        (("tables", "3", "readings", 0, "metrics"), {"grounding": "cnr"}, "no metric for column 'rsna'"),
        (("tables", "1", "rows", 7, "sources"), {"nih/2": "mrm"}, "no column 'nih/2'"),
        (("tables", "1", "caveats"), "none", "'caveats' is str"),
        (("tables", "1", "caveats", 0), "a bare sentence", "tables.1.caveats.0 is str; expected an object"),
        (("tables", "1", "caveats", 0, "sources"), None, "tables.1.caveats.0: 'sources' is missing"),
        (("tables", "2", "caveats", 2, "sources"), [], "tables.2.caveats.2: a caveat needs sources"),
        (("tables", "2", "caveats", 2, "sources"), [["paper"]], "tables.2.caveats.2: a caveat needs sources by name"),
        (("tables", "2", "caveats", 2, "sources"), ["hearsay"], "tables.2.caveats.2: no source 'hearsay'"),
        (("sources", "paper"), "the paper", "sources.paper is str"),
    ],
)
def test_a_file_of_another_form_is_refused_by_place(path, value, message):
    with pytest.raises(DataError) as error:
        load_published(change(path, value))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_json_is_refused():
    with pytest.raises(DataError, match="no JSON"):
        load_published("{")
