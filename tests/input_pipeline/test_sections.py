"""Sections against the documented behaviour of MIMIC-CXR's parser; sentences against hand-split snippets; both for any text."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline import sections as sections_module
from input_pipeline.sections import clean_sentence, parse_sections, report_sentences, split_sentences

REPORT = """\
                                 FINAL REPORT
 EXAMINATION:  CHEST (PORTABLE AP)
 
 INDICATION:  ___ year old man with cough.  // eval for pneumonia
 
 COMPARISON:  ___.
 
 FINDINGS: 
 
 Heart size is normal.  There is a 5.3 cm opacity
 in the left lower lobe.
 
 No pleural effusion or pneumothorax
 
 IMPRESSION: 
 
 1.  Left lower lobe pneumonia.
 2.  No edema.
"""


def sections(text):
    return [(name, text[start:end]) for name, start, end in parse_sections(text)]


def sentences(text):
    return [text[start:end] for start, end in split_sentences(text)]


def test_a_report_of_the_usual_shape_is_split_at_its_headers():
    parsed = sections(REPORT)
    assert [name for name, _ in parsed] == [
        "preamble",
        "examination",
        "indication",
        "comparison",
        "findings",
        "impression",
    ]
    assert parsed[0][1] == "FINAL REPORT"
    assert parsed[4][1].startswith("Heart size")
    assert parsed[4][1].endswith("pneumothorax")
    assert parsed[5][1] == "1.  Left lower lobe pneumonia.\n 2.  No edema."


def test_windows_line_ends_change_nothing_but_themselves():
    windows = sections(REPORT.replace("\n", "\r\n"))
    assert [(name, body.replace("\r\n", "\n")) for name, body in windows] == sections(REPORT)
    assert report_sentences(REPORT.replace("\n", "\r\n")) == report_sentences(REPORT)


@pytest.mark.parametrize("start", ["", " ", "\ufeff", "\ufeff  "])
def test_a_first_line_may_be_a_header(start):
    assert sections(f"{start}FINDINGS: Clear lungs.\n IMPRESSION: Normal.") == [
        ("findings", "Clear lungs."),
        ("impression", "Normal."),
    ]


def test_an_empty_section_does_not_swallow_the_next_header():
    assert sections("x\n FINDINGS:\n IMPRESSION: Normal.")[1:] == [("findings", ""), ("impression", "Normal.")]
    assert sections("x\n FINDINGS:\n \n \n IMPRESSION: Normal.")[1:] == [("findings", ""), ("impression", "Normal.")]


def test_stripping_lines_removes_all_headers():
    dedented = "\n".join(line.strip() for line in REPORT.splitlines())
    assert [name for name, _ in sections(dedented)] == ["full report"]


@pytest.mark.parametrize("header", ["CHEST 2 VIEWS:", "Findings:", "IMPRESSION & PLAN:", "FINDINGS:clear"])
def test_digits_lower_case_and_glued_text_make_no_header(header):
    assert [name for name, _ in sections(f"x\n HISTORY: cough\n {header} text.")] == ["preamble", "history"]


def test_a_header_within_a_line_stays_in_its_section():
    assert sections("x\n HISTORY: cough.  COMPARISON: none.")[1] == ("history", "cough.  COMPARISON: none.")


def test_a_header_that_names_a_view_is_findings_and_replaces_none():
    text = "x\n FINDINGS: a small effusion.\n IMPRESSION: an effusion.\n PORTABLE AP VIEW: a clear chest."
    assert [name for name, _ in sections(text)] == ["preamble", "findings", "impression", "findings"]
    assert report_sentences(text) == ["a small effusion.", "a clear chest.", "an effusion."]
    text = "x\n PA VIEW: a small effusion.\n LATERAL VIEW: a clear chest."
    assert report_sentences(text) == ["a small effusion.", "a clear chest."]


def test_the_last_findings_count():
    text = "x\n FINDINGS: a preliminary reading.\n IMPRESSION: an effusion.\n FINDINGS: the final reading."
    assert report_sentences(text) == ["the final reading.", "an effusion."]


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("CLINICAL FINDINGS HISTORY", "findings"),
        ("FINDINGS AND IMPRESSION", "impression"),
        ("IMPRESSON", "impression"),
        ("IMORESSION", "impression"),
        ("IMPERSSION", "impression"),
        ("IMPRRESSION", "impression"),
        ("FINIDNGS", "findings"),
        ("FINDGINGS", "findings"),
        ("COMPARRISON", "comparison"),
        ("IDICATION", "indication"),
        ("COMPARISON FILM", "comparison"),
        ("REFERENCE EXAM", "comparison"),
        ("MEDICATION", "medication"),
        ("EXAMINATIONS", "examination"),
        ("CONCLUSION", "impression"),
        ("NDICATION", "indication"),
        ("PFI", "history"),
        ("WETREAD", "wet read"),
        ("CHEST, TWO VIEWS", "findings"),
        ("PA AND LATERAL CHEST RADIOGRAPH", "findings"),
        ("PATIENT  HISTORY", "history"),
        ("COMPARISON CHEST RADIOGRAPH", "comparison"),
        ("RECOMMENDATION(S)", "recommendation"),
        ("NOTIFICATION", "notification"),
        ("TECHNIQUE", "technique"),
    ],
)
def test_header_names_are_normalised(header, name):
    assert sections(f"x\n {header}: text")[1] == (name, "text")


def test_no_study_is_treated_by_its_number():
    # MIMIC-CXR's parser has hand-made rules for 54 studies, whose rows are then missing from its table of sections.
    assert list(inspect.signature(parse_sections).parameters) == ["text"]
    assert list(inspect.signature(report_sentences).parameters) == ["text", "policy", "fallback"]


def test_recommendations_and_notifications_stay_out_of_the_impression():
    text = "x\n IMPRESSION: New right effusion.\n \n RECOMMENDATION(S): Repeat it.\n \n NOTIFICATION: Dr. ___ was told."
    assert report_sentences(text) == ["New right effusion."]


def test_the_last_paragraph_stands_in_for_missing_findings_and_impression():
    text = "x\n EXAMINATION: chest.\n \n COMPARISON: none.\n \n Heart is normal.\n \n Lungs are clear.\n"
    assert sections(text)[-2:] == [
        ("comparison", "none."),
        ("last_paragraph", "Heart is normal.\n \n Lungs are clear."),
    ]
    assert report_sentences(text) == ["Heart is normal.", "Lungs are clear."]
    assert report_sentences(text, fallback=None) == []
    assert report_sentences(text, policy=("comparison", "last_paragraph")) == ["Heart is normal.", "Lungs are clear."]


def test_sections_with_text_keep_the_last_paragraph_where_it_is():
    text = "x\n FINDINGS:\n \n IMPRESSION: Normal chest film.\n \n COMPARISON: none.\n \n Dictated by ___ today."
    assert sections(text)[-1] == ("comparison", "none.\n \n Dictated by ___ today.")
    assert report_sentences(text) == ["Normal chest film."]


def test_a_report_without_headers_is_read_whole_and_without_its_title():
    text = "                 FINAL REPORT\n \n Heart is normal.\n Lungs are\n clear.\n"
    assert report_sentences(text) == ["Heart is normal.", "Lungs are clear."]
    assert report_sentences(text, fallback=None) == []


def test_sentences_are_cleaned_in_reading_order():
    assert report_sentences(REPORT) == [
        "Heart size is normal.",
        "There is a 5.3 cm opacity in the left lower lobe.",
        "No pleural effusion or pneumothorax",
        "Left lower lobe pneumonia.",
        "No edema.",
    ]
    assert report_sentences(REPORT, policy=("impression",)) == ["Left lower lobe pneumonia.", "No edema."]
    assert clean_sentence("seen by ___\n  at __, a_b") == "seen by [DEID] at [DEID], a_b"


def test_short_sentences_and_reports_are_dropped():
    assert report_sentences("x\n FINDINGS: Normal. Clear lungs. ___. No edema.") == ["Clear lungs.", "No edema."]
    assert report_sentences("x\n FINDINGS: Clear lungs. Normal.") == []
    assert report_sentences("x\n FINDINGS: ___ ___ ___ ___.") == []


@pytest.mark.parametrize(
    "text", ["", " \n \n", "FINAL REPORT", "\n FINDINGS:\n IMPRESSION:\n", "x\n COMPARISON: none at all.", "___"]
)
def test_reports_without_usable_text_give_nothing(text):
    assert report_sentences(text) == []


# Brackets stand around each sentence, as they were put by hand; what is outside of them belongs to none.
SNIPPETS = {
    "title": "[Discussed with Dr. ___ by phone.] [No edema.]",
    "decimal": "[A 5.3 cm mass is seen.] [It was 1.2 x 3.4 cm before.]",
    "leading decimal": "[The node is .5 cm wide.] [No change.]",
    "acronym": "[History of T.B. exposure.] [Lungs are clear.]",
    "acronym at the end": "[Patient has a history of T.B.] [Heart is normal.]",
    "time": "[Seen at 3:15 p.m. on ___ by phone.] [Lungs clear.]",
    "time at the end": "[The team was paged at 9 a.m.] [Heart is normal.]",
    "name after time": "[___ was told at 10:30 a.m. ___ agreed to this.]",
    "no full stop": "[Lungs are clear]\n \n [Heart is normal]",
    "unit": "[The tube ends 3 cm. above the carina.] [No edema.]",
    "unit at the end": "[The nodule measures 5 mm.] [No effusion is seen.]",
    "unit, then lower case": "[The nodule measures 5 mm.] [no effusion is seen.]",
    "vertebra": "[Wedge deformity of T12.] [Lungs are clear.]",
    "wrapped vertebra": "[There is a fracture of T\n 12.] [Lungs are clear.]",
    "question": "[Is there pneumonia?] [Lungs are clear.]",
    "query": "[Opacity at the left base ?pneumonia.] [No edema.]",
    "spaced query": "[Opacity ? pneumonia or atelectasis.] [No edema.]",
    "query with alternative": "[Pneumonia? vs. atelectasis at the base.] [No edema.]",
    "missing space": "[No effusion.][Heart is normal.]",
    "missing space after a name": "[Discussed with ___.][Heart is normal.]",
    "lower-case start": "[heart is normal.] [no effusion.]",
    "doubled full stop": "[No effusion..] [Heart is normal.]",
    "lone full stop": "[No effusion.] . [Heart is normal.]",
    "ellipsis": "[Possibly... a small effusion.] [Heart is normal.]",
    "versus": "[Atelectasis vs. pneumonia at the base.] [No edema.]",
    "for example": "[Devices, e.g. ETT, unchanged.] [No edema, i.e. normal.]",
    "right": "[Effusion on the R. lung base.] [L. lung is clear.]",
    "right at the end": "[The mediastinum is shifted to the R.] [Heart is normal.]",
    "initials": "[Read with Dr. J. R. Smith at once.] [No edema.]",
    "hepatitis": "[Known hepatitis B.] [No edema.]",
    "number sign": "[Compared with study No. 3 of today.] [No edema.]",
    "series and image number": "[A nodule (se. 3, im. 14) is seen.] [No edema.]",
    "image at the end": "[The nodule is best seen on image 14.] [No edema.]",
    "figure": "[A nodule (fig. 2) is seen (see arrow).] [Lungs clear.]",
    "closing bracket": "[(No change.)] [Heart is normal.]",
    "list": "1. [No edema]\n 2. [Stable effusion\n of the left side]",
    "list in one line": "1. [No edema.] 2. [Stable effusion.] 3. [Lines in place.]",
    "list with brackets": "1) [No edema] 2) [Stable effusion] 3) [Lines in place]",
    "list glued to its numbers": "1.[No edema]\n 2.[Stable effusion]",
    "list after a colon": "[There are:] 1. [No edema.] 2. [Stable effusion.]",
    "bullets": "- [No edema]\n - [Stable effusion]",
    "hyphen": "[A large - if stable - effusion.] [No edema.]",
    "addendum line": "[Wet read by ___]\n ______________________\n [Lungs are clear]",
    "etcetera": "[Lines, tubes, etc. are unchanged.] [No edema.]",
    "exclamation": "[No change!] [Heart is normal.]",
    "two names in a row": "[Films of Mr. John R. Smith.] [No edema.]",
    "full stop in time": "[Paged at 9.30 pm.] [No edema.]",
}
# A capital after "p.m." opens a sentence far more often than it names the person who was told.
KNOWN_FAILURE = "[Paged at 9 p.m. Smith and ___ agreed.]"


def marked(snippet):
    """A snippet without its brackets, and the sentences that they stand around."""
    return re.sub(r"[\[\]]", "", snippet), re.findall(r"\[([^\]]*)\]", snippet)


@pytest.mark.parametrize("kind", SNIPPETS)
def test_hard_snippets_are_split_as_by_hand(kind):
    text, expected = marked(SNIPPETS[kind])
    assert sentences(text) == expected


def test_one_snippet_is_known_to_be_split_wrongly():
    text, _ = marked(KNOWN_FAILURE)
    assert sentences(text) == ["Paged at 9 p.m.", "Smith and ___ agreed."]


def test_list_numbers_and_bullets_are_not_part_of_sentences():
    assert sentences("1. No edema. 2) Stable effusion\n 3. Lines") == ["No edema.", "Stable effusion", "Lines"]
    assert sentences(" - No edema\n * Clear lungs") == ["No edema", "Clear lungs"]


def test_sentences_keep_their_own_punctuation():
    text = "The tube ends 3 cm. above the carina.  Is there\n pneumonia?\tNo. 3 rib (old)."
    assert sentences(text) == ["The tube ends 3 cm. above the carina.", "Is there\n pneumonia?", "No. 3 rib (old)."]


FRAGMENTS = st.sampled_from(
    ["\n ", "\n \n", "\r\n ", "FINDINGS:", "IMPRESSION:", "CHEST:", " ", ".", "..", "? ", "1. ", "2) ", "- ", "Dr. ", "5.3", "cm. ",
     "No edema", "lungs", "T12.", "___", "_____", "a.m. ", "(", ")", "\ufeff", "\x00", "\u00e9", "\ud800", "\u0663"]
)  # fmt: skip
TEXTS = st.one_of(st.text(), st.lists(FRAGMENTS, max_size=40).map("".join))


@settings(max_examples=300)
@given(TEXTS)
def test_sections_of_any_text_lose_nothing_but_headers(text):
    position, outside = 0, []
    for name, start, end in parse_sections(text):
        assert name == name.strip()
        assert position <= start <= end <= len(text)
        assert text[start:end] == text[start:end].strip()
        outside.append(text[position:start])
        position = end
    outside.append(text[position:])
    for gap in outside:
        headers = [line.strip().removeprefix("\ufeff").strip() for line in gap.split("\n")]
        assert all(not line or (line.endswith(":") and line == line.upper()) for line in headers), gap


@settings(max_examples=500)
@given(TEXTS)
def test_spans_of_any_text_are_ordered_trimmed_and_never_empty(text):
    position = 0
    for start, end in split_sentences(text):
        assert position <= start < end <= len(text)
        assert text[start:end] == text[start:end].strip()
        assert any(character.isalnum() or character == "_" for character in text[start:end])
        position = end
    assert all(sentence == " ".join(sentence.split()) and sentence for sentence in report_sentences(text))


@settings(max_examples=200)
@given(st.lists(st.sampled_from(["No edema", "Heart is normal", "Lungs are clear", "5.3 cm mass"]), max_size=8))
def test_joined_sentences_come_apart_again(originals):
    assert sentences(" ".join(f"{sentence}." for sentence in originals)) == [f"{sentence}." for sentence in originals]
    assert sentences("\n \n".join(originals)) == originals


MEGABYTE = 1_000_000
UNITS = {
    "reports": REPORT,
    "capitals": "A",
    "spaces": " ",
    "underscores": "_",
    "stops": ".",
    "lines": "A \n",
    "numbers": "1. ",
    "times": "at 3 p.m. ___ ",
}


@pytest.mark.parametrize("kind", UNITS)
def test_time_grows_no_faster_than_the_text(kind):
    # In a process of its own: the annotations that tests check at every call would be most of the time.
    command = [sys.executable, str(Path(__file__).with_name("time_sections.py")), str(MEGABYTE)]
    root = Path(sections_module.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(root)}
    result = subprocess.run(command, input=UNITS[kind], capture_output=True, text=True, check=True, env=environment)
    times = np.array(result.stdout.split(), float).reshape(2, 3)
    # On a busy machine twice the text takes even a plain scan over twice the time: caches and new pages of memory are shared.
    growth, plain = (row[1:] / row[:-1] for row in times)
    # Below 20 ms the noise of the timer decides.
    assert all((growth < 2.5 * np.maximum(plain / 2, 1)) | (times[0, 1:] < [0.02, 0.04])), times
    print(kind, [f"{1000 * seconds / size:.0f} ms per MB" for seconds, size in zip(times[0], (1, 2, 4), strict=True)])


@pytest.mark.parametrize("kind", UNITS)
def test_a_report_of_ten_megabytes_takes_less_than_a_tenth_of_a_second_per_megabyte(kind, tmp_path):
    report = tmp_path / "files" / "p10" / "p10000000" / "s50000000.txt"
    report.parent.mkdir(parents=True)
    unit = UNITS[kind]
    report.write_text(unit * (10 * MEGABYTE // len(unit)))
    command = [sys.executable, "-c", READING, str(tmp_path)]
    root = Path(sections_module.__file__).parents[1]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    seconds, truncated = result.stdout.split()
    assert truncated == "True"
    assert float(seconds) <= 10 * 0.1


READING = """
import sys, time
from pathlib import Path
from input_pipeline.reports import open_reports
from input_pipeline.sections import report_sentences

start = time.process_time()
report = open_reports(Path(sys.argv[1])).read("10000000", "50000000")
report_sentences(report.text)
print(time.process_time() - start, report.truncated)
"""


def test_every_real_report_yields_sentences(real_data):
    reports = sorted((real_data / "real_pairs" / "mimic-cxr-reports").rglob("*.txt"))
    assert len(reports) == 44
    for report in reports:
        assert report_sentences(report.read_text(encoding="utf-8"))
