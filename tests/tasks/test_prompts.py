"""Prompt sets: the shipped ones load, others are checked and refused in one line."""

import json

import pytest

from input_pipeline.datasets import chexpert, mimic_tables, nih_chestxray14, rsna_pneumonia, siim_acr
from input_pipeline.errors import UserError
from msfl_jax.tasks.prompts import OWN_SETS, Prompts, choose_set, load_prompts, prompts_hash, shipped_prompts

LABELS = {
    "chexpert": set(chexpert.LABEL_NAMES) - {"No Finding"},
    "nih": set(nih_chestxray14.LABEL_NAMES),
    "rsna": set(rsna_pneumonia.LABEL_NAMES),
    "siim": set(siim_acr.LABEL_NAMES),
}


@pytest.mark.parametrize("name", ["synthetic", "chexpert"])
def test_shipped_sets_load_by_bare_name(name):
    assert name in shipped_prompts()
    prompts = load_prompts(name)
    assert "Pneumonia" in prompts
    assert all(finding.positive and finding.negative for finding in prompts.values())


@pytest.mark.parametrize("suffix", ["", "_maco"])
@pytest.mark.parametrize("name", LABELS)
def test_every_label_of_a_data_set_has_prompts_and_they_name_nothing_else(name, suffix):
    assert load_prompts(name + suffix).keys() == LABELS[name]


@pytest.mark.parametrize("name", sorted(shipped_prompts()))
def test_shipped_sentences_are_spelled_out_once_and_no_sentence_stands_on_both_sides(name):
    for sides in load_prompts(name).values():
        texts = [*sides.positive, *sides.negative]
        assert not any(mark in text for text in texts for mark in "{}_")
        assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("name", LABELS)
def test_a_data_sets_own_set_says_what_it_is_and_asks_with_every_synonym_on_both_sides(name):
    values = json.loads(shipped_prompts()[name].read_text())
    assert values.pop("about").startswith("Written for msfl_jax.")
    loaded = load_prompts(name)
    assert loaded.keys() == values.keys()
    for finding, sides in values.items():
        assert len(set(sides["synonyms"])) >= 2
        for word in sides["synonyms"]:
            for texts in (loaded[finding].positive, loaded[finding].negative):
                assert any(word in text for text in texts), (finding, word)


def test_published_templates_are_those_of_the_reference():
    assert load_prompts("rsna_maco")["Pneumonia"] == Prompts(
        ("There is lung opacity.",),
        ("the lung is clear.", "There is no lung opacity.", "no lung opacity.", "no evidence of lung opacity."),
    )
    assert load_prompts("nih_maco")["Pleural_Thickening"].positive == ("There is pleural thickening.",)
    assert [len(side) for side in vars(load_prompts("siim_maco")["Pneumothorax"]).values()] == [2, 5]
    assert all("MaCo" in shipped_prompts()[f"{name}_maco"].read_text() for name in LABELS)


def test_a_sentence_with_a_place_stands_for_one_per_synonym(tmp_path):
    file = tmp_path / "own.json"
    sides = {"synonyms": ["gas", "air"], "positive": ["{finding} and {finding}", "x"], "negative": ["no {finding}"]}
    unnamed = {"positive": ["{finding}"], "negative": ["none"]}
    file.write_text(json.dumps({"about": "a remark", "Some Gas": sides, "Other Thing": unnamed}))
    loaded = load_prompts(file)
    assert list(loaded) == ["Some Gas", "Other Thing"]
    assert loaded["Some Gas"] == Prompts(("gas and gas", "air and air", "x"), ("no gas", "no air"))
    assert loaded["Other Thing"] == Prompts(("other thing",), ("none",))
    changed = loaded | {"Other Thing": Prompts(("other thing",), ("nothing",))}
    assert prompts_hash(loaded) == prompts_hash(dict(loaded)) != prompts_hash(changed)


def test_the_runs_own_set_is_kept_where_it_has_a_label_and_else_the_data_sets_is_taken():
    assert choose_set("synthetic", "mimic_cxr", mimic_tables.LABEL_NAMES) == "synthetic"
    assert choose_set("rsna", "siim_acr", siim_acr.LABEL_NAMES) == "siim"
    assert choose_set("siim", "rsna_pneumonia", rsna_pneumonia.LABEL_NAMES) == "rsna"
    assert choose_set("siim", "planted", ("Zebra",)) == "siim"
    assert set(OWN_SETS.values()) == LABELS.keys()
    with pytest.raises(UserError, match="no set"):
        choose_set("gone", "siim_acr", siim_acr.LABEL_NAMES)


def test_a_file_of_ones_own_loads_in_its_order(tmp_path):
    file = tmp_path / "own.json"
    file.write_text(
        json.dumps(
            {"Zebra": {"positive": ["a"], "negative": ["b", "c"]}, "Ant": {"positive": ["d"], "negative": ["e"]}}
        )
    )
    loaded = load_prompts(file)
    assert list(loaded) == ["Zebra", "Ant"]
    assert loaded["Zebra"] == Prompts(("a",), ("b", "c"))


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"'chexprt' \(did you mean 'chexpert'\?\)"):
        load_prompts("chexprt")


@pytest.mark.parametrize(
    "content, complaint",
    [
        ("{", "no JSON"),
        ("[]", "no findings"),
        ("{}", "no findings"),
        ('{"about": "nothing"}', "no findings"),
        ("[" * 100_000, "no JSON"),
        ('{"A": {"synonyms": [], "positive": ["x"], "negative": ["y"]}}', "no usable 'synonyms'"),
        ('{"A": {"synonyms": ["a"], "positive": ["x"], "negative": [3]}}', "no usable 'negative'"),
        ('{"A": ["x"]}', "'A' is a list"),
        ('{"A": {"positive": ["x"], "negatives": ["y"]}}', r"'negatives' \(did you mean 'negative'\?\)"),
        ('{"A": {"positive": ["x"]}}', "no usable 'negative'"),
        ('{"A": {"positive": [], "negative": ["y"]}}', "no usable 'positive'"),
        ('{"A": {"positive": "x", "negative": ["y"]}}', "no usable 'positive'"),
        ('{"A": {"positive": [" "], "negative": ["y"]}}', "no usable 'positive'"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, content, complaint):
    file = tmp_path / "bad.json"
    file.write_text(content)
    with pytest.raises(UserError, match=complaint) as caught:
        load_prompts(str(file))
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_prompt_set(tmp_path):
    with pytest.raises(UserError, match="no set"):
        load_prompts(tmp_path)
