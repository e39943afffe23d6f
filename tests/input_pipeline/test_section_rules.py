"""Rules for single studies: read from files of constants, never run, and put before all general rules; all identifiers are invented."""

import contextlib
import csv
import io
import string
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline.build import build, read_manifest
from input_pipeline.datasets.mimic_cxr import MimicCxr
from input_pipeline.errors import DataError, MsflError, UserError
from input_pipeline.reading import open_split
from input_pipeline.section_rules import Rule, read_section_rules
from input_pipeline.sections import report_sentences

PARSER = '''
"""Anything may stand here."""
import re, os
PATTERN = re.compile("\\n ([A-Z]+):")
raise SystemExit("this file must not be run")

def custom_mimic_cxr_rules():
    """Rules by hand."""
    custom_section_names = {
        's90000001': 'recommendations',  # a comment
        "s90000002": "wet read",
    }
    custom_indices = {
        's90000003': [5, 40],
        's90000004': (0, 0),
    }
    return custom_section_names, custom_indices
'''


def written(folder, text, name="section_parser.py"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def parser(names="{}", indices="{'s90000003': [5, 40]}", *, before="", after="", function="custom_mimic_cxr_rules"):
    return (
        f"def {function}():\n    custom_section_names = {names}\n    custom_indices = {indices}\n    {before}\n"
        f"    return custom_section_names, custom_indices\n{after}\n"
    )


def test_the_dictionaries_of_the_official_parser_are_read_and_nothing_is_run(tmp_path):
    path = written(tmp_path, PARSER)
    found = read_section_rules(path)
    assert dict(found.rules) == {
        "90000001": Rule(10, "recommendation"),
        "90000002": Rule(11, "wet read"),
        "90000003": Rule(14, "", 5, 40),
        "90000004": Rule(15, "", 0, 0),
    }
    assert found.file == "section_parser.py"


@pytest.mark.parametrize("columns", ["study_id,section,start,end", "end,study_id,start,section,note"])
def test_a_table_says_the_same(tmp_path, columns):
    rows = [("s90000001", "Recommendations", "", ""), ("90000003", "", "5", "40"), ("90000004", "", "0", "0")]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns.split(","), extrasaction="ignore")
    writer.writeheader()
    writer.writerows(dict(zip(("study_id", "section", "start", "end"), row, strict=True)) for row in rows)
    found = read_section_rules(written(tmp_path, text.getvalue(), "rules.csv")).rules
    assert {study: rule[1:] for study, rule in found.items()} == {
        "90000001": ("recommendation", 0, 0),
        "90000003": ("", 5, 40),
        "90000004": ("", 0, 0),
    }


def test_a_table_of_sections_or_of_places_alone_is_enough(tmp_path):
    sections = written(tmp_path, "study_id,section\n90000001,impression\n", "sections.csv")
    places = written(tmp_path, "study_id,start,end\n90000001,3,9\n", "places.csv")
    assert read_section_rules(sections).rules == {"90000001": Rule(2, "impression")}
    assert read_section_rules(places).rules == {"90000001": Rule(2, "", 3, 9)}


SMUGGLED = [
    parser(indices="dict(s90000003=[5, 40])"),
    parser(indices="{'s90000003': [5, __import__('os').getpid()]}"),
    parser(indices="{'s90000003': PLACE}"),
    parser(indices="{'s90000003': [len('x'), 40]}"),
    parser(indices="{'s90000003': [5 + 1, 40]}"),
    parser(indices="{'s90000003': [True, 40]}"),
    parser(indices="{**other()}"),
    parser(indices="{open('x'): [5, 40]}"),
    parser(indices="{'s9000' '0003' + x: [5, 40]}"),
    parser(indices="[(k, v) for k, v in other()]"),
    parser(names="{'s90000001': f'{open}'}"),
    parser(names="{'s90000001': str.upper('x')}"),
    parser(before="custom_indices = other()"),
    parser(before="custom_indices['s90000009'] = [1, 2]"),
    parser(before="custom_indices.update(other())"),
    parser(before="other(custom_section_names)"),
    parser(before="del custom_indices"),
    parser(before="(custom_indices := {})"),
]


@pytest.mark.parametrize("text", SMUGGLED)
def test_code_among_the_rules_is_refused_and_not_run(tmp_path, text):
    trap = "import pathlib\ndef other():\n    pathlib.Path('ran').touch()\n    return {}\nother()\n"
    with pytest.raises(UserError) as error:
        read_section_rules(written(tmp_path, trap + text))
    assert "\n" not in str(error.value)
    assert "section_parser.py: " in str(error.value)
    assert not list(tmp_path.rglob("ran"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def broken(:", "not Python"),
        ("x = 1\0", "not Python"),
        ("(" * 5000, "not Python"),
        ("x = 1\n", "0 such functions"),
        (parser(function="another"), "0 such functions"),
        (parser() + parser(), "2 such functions"),
        ("def custom_mimic_cxr_rules():\n    return {}, {}\n", "custom_section_names is not written out once"),
        (parser(indices="None"), "custom_indices is not written out once"),
        (parser(indices="{}"), "no rule"),
        (parser(indices="{'s90000003': [40, 5]}"), "place from 40 to 5"),
        (parser(indices="{'s90000003': [7, 7]}"), "place from 7 to 7"),
        (parser(indices="{'s90000003': [-7, 7]}"), "no place"),
        (parser(indices="{'s90000003': [1, 2, 3]}"), "no place"),
        (parser(indices="{'s90000003': [1.0, 2]}"), "no place"),
        (parser(indices="{'90000003x': [1, 2]}"), "names no study"),
        (parser(indices="{'p90000003': [1, 2]}"), "names no study"),
        (parser(indices="{90000003: [1, 2]}"), "names no study"),
        (parser(names="{'s90000001': ''}"), "section without a name"),
        (parser(names="{'s90000001': 3}"), "no section"),
        (parser(names="{'s90000003': 'impression'}"), "has a rule in line"),
        (parser(indices="{'s90000003': [1, 2], 's90000003': [1, 3]}"), "has a rule in line"),
    ],
)
def test_a_bad_parser_is_one_line(tmp_path, text, words):
    with pytest.raises(MsflError, match=words) as error:
        read_section_rules(written(tmp_path, text))
    assert "\n" not in str(error.value)
    assert "9000000" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("study,section\n90000001,impression\n", "column 'study_id' is missing"),
        ("study_id,start\n90000001,1\n", "no column 'section', nor 'start' and 'end'"),
        ("study_id,section,start,end\n90000001,impression,1,2\n", "row 2 has no rule"),
        ("study_id,section,start,end\n90000001,,,\n", "row 2 has no rule"),
        ("study_id,start,end\n90000001,1,-2\n", "row 2 has no rule"),
        ("study_id,start,end\n90000001,9,2\n", "place from 9 to 2"),
        ("study_id,section\npatient,impression\n", "names no study"),
        ("study_id,section\n90000001,impression\ns90000001,findings\n", "has a rule in line 2"),
        ("study_id,section\n", "no rule"),
    ],
)
def test_a_bad_table_is_one_line(tmp_path, text, words):
    with pytest.raises(MsflError, match=words) as error:
        read_section_rules(written(tmp_path, text, "rules.csv"))
    assert "\n" not in str(error.value)
    assert "9000000" not in str(error.value)


def test_other_files_and_none_are_user_errors(tmp_path):
    with pytest.raises(UserError, match=r"section_parser\.py or a CSV table"):
        read_section_rules(written(tmp_path, PARSER, "rules.json"))
    for name in ("absent.py", "absent.csv"):
        with pytest.raises(UserError, match=r"[Nn]o such file"):
            read_section_rules(tmp_path / name)
    with pytest.raises(UserError, match="more than 1000000 bytes"):
        read_section_rules(written(tmp_path, PARSER + "#" * 1_000_000))


STUDIES = st.lists(st.from_regex(r"s[0-9]{2,20}", fullmatch=True), min_size=2, max_size=8, unique=True)


@given(STUDIES, st.data())
def test_what_is_written_as_python_is_read_as_python_reads_it(tmp_path_factory, studies, data):
    cut = data.draw(st.integers(0, len(studies)))
    names = {study: data.draw(st.sampled_from(("impression", "findings", "full report"))) for study in studies[:cut]}
    places = {}
    for study in studies[cut:]:
        start = data.draw(st.integers(0, 500))
        places[study] = [start, start + data.draw(st.integers(1, 500))]
    path = written(tmp_path_factory.mktemp("rules"), parser(repr(names), repr(places)))
    found = read_section_rules(path).rules
    assert {f"s{study}": rule.section for study, rule in found.items() if rule.section} == names
    assert {f"s{study}": [rule.start, rule.end] for study, rule in found.items() if not rule.section} == places


@given(st.text(string.printable, max_size=60), st.text("{}[]()'s90123:,*=\n ", max_size=30))
def test_odd_files_give_rules_or_one_line(tmp_path_factory, text, literal):
    folder = tmp_path_factory.mktemp("odd")
    for content, name in ((text, "a.py"), (parser(indices=literal), "b.py"), (text, "c.csv"), (literal, "d.csv")):
        with contextlib.suppress(MsflError):
            assert read_section_rules(written(folder, content, name)).rules


REPORT = """
 FINDINGS:  The lungs are clear and well inflated.
 IMPRESSION:  No acute disease of the chest.
 RECOMMENDATIONS:  Repeat the film in two weeks.
"""


def ruled(tmp_path, text):
    return read_section_rules(written(tmp_path, text))


def test_a_rule_replaces_every_section_and_the_fallback(tmp_path):
    start = REPORT.index("acute")
    names = "{'s90000001': 'recommendations', 's90000002': 'comparison'}"
    places = f"{{'s90000003': [{start}, {start + 26}], 's90000004': [0, 0]}}"
    rules = ruled(tmp_path, parser(names, places))
    assert rules.sentences("90000001", REPORT) == ["Repeat the film in two weeks."]
    assert rules.sentences("90000002", REPORT) == []
    assert rules.sentences("90000003", REPORT) == ["acute disease of the chest"]
    assert rules.sentences("90000004", REPORT) == []
    assert rules.sentences("90000005", REPORT) is None
    with pytest.raises(DataError, match=f"ends at character {start + 26} of a report of 10;"):
        rules.sentences("90000003", REPORT[:10])


def test_headers_within_a_place_are_text(tmp_path):
    rules = ruled(tmp_path, parser(indices=f"{{'s90000003': [0, {len(REPORT)}]}}"))
    assert rules.sentences("90000003", REPORT)[0] == "FINDINGS: The lungs are clear and well inflated."
    assert report_sentences(REPORT)[0] == "The lungs are clear and well inflated."


def rule_file(layout, folder, *, end):
    """Rules of three studies of the tiny data set, and of one that is not in it."""
    studies = [study for study in layout.studies() if study.split == "train"]
    names = f"{{'s{studies[0].number}': 'findings', 's90000001': 'impression'}}"
    places = f"{{'s{studies[1].number}': [0, {end}], 's{studies[2].number}': [0, 0]}}"
    return written(folder, parser(names, places)), studies


def test_a_build_counts_its_rules_and_their_studies_without_text(mimic_root, layout, tmp_path):
    path, studies = rule_file(layout, tmp_path, end=200)
    plain = build(MimicCxr(mimic_root, mimic_root), tmp_path / "plain", short_side=32, progress=False)
    rules = read_section_rules(path)
    source = MimicCxr(mimic_root, mimic_root, section_rules=rules)
    build(source, tmp_path / "ruled", short_side=32, progress=False, workers=2, shard_records=4)
    made = read_manifest(tmp_path / "ruled")
    assert made.inputs["section_rules"] == f"3 of 4 rules of {rules.sha256}"
    assert made.settings["section_rules"] == rules.sha256
    assert "section_rules" not in plain.settings
    rows = Counter(row.study for row in source.scan().rows["train"])
    assert made.splits["train"].dropped["no_text_by_rule"] == rows[studies[2].number]
    assert made.splits["train"].flags["section_rule"] == rows[studies[0].number] + rows[studies[1].number]
    assert made.input_rows == plain.input_rows
    before = {record.image_key: record.sentences for record in open_split(tmp_path / "plain", "train")}
    after = {record.image_key: record.sentences for record in open_split(tmp_path / "ruled", "train")}
    changed = {key for key in before if before[key] != after.get(key)}
    assert len(changed) == sum(rows[study.number] for study in studies[:3])
    assert "9000" not in str(made)


def test_a_place_beyond_its_report_ends_a_build_before_its_first_shard(mimic_root, layout, tmp_path):
    path, studies = rule_file(layout, tmp_path, end=100_000)
    source = MimicCxr(mimic_root, mimic_root, section_rules=read_section_rules(path))
    with pytest.raises(DataError, match="ends at character 100000 of a report of") as error:
        build(source, tmp_path / "out", short_side=32, progress=False)
    assert "\n" not in str(error.value)
    assert studies[1].number not in str(error.value)
    assert not (tmp_path / "out").exists()
