"""Prompt sets: the shipped ones load, others are checked and refused in one line."""

import json

import pytest

from input_pipeline.errors import UserError
from msfl_jax.tasks.prompts import Prompts, load_prompts, shipped_prompts


@pytest.mark.parametrize("name", ["synthetic", "chexpert"])
def test_shipped_sets_load_by_bare_name(name):
    assert name in shipped_prompts()
    prompts = load_prompts(name)
    assert "Pneumonia" in prompts
    assert all(finding.positive and finding.negative for finding in prompts.values())


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
