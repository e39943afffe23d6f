"""Reports: held-out sentences recombine known words, findings are stated, lines have MIMIC's shape."""

import itertools
import json
import re
from pathlib import Path

import pytest

from input_pipeline.datasets.synthetic import FINDINGS, templates, vocabulary
from input_pipeline.datasets.synthetic.report import write_report
from input_pipeline.datasets.synthetic.study import SPLITS, plan_studies

PROMPTS = Path(__file__).parents[3] / "msfl_jax" / "tasks" / "prompts"
SAMPLE = 1500


def words(text):
    return set(re.findall(r"[a-z]+|[0-9]+", text.lower()))


def unwrapped(text):
    return " ".join(text.split())


@pytest.fixture(scope="module")
def reports():
    """1500 studies of training, 500 of each held-out split, as (study, report), by split; no pixel is drawn."""
    plan = plan_studies(SAMPLE + 1000, seed=11, validate=500, test=500)
    by_split = {split: [] for split in SPLITS}
    for index in range(SAMPLE + 1000):
        study = plan.study(index)
        by_split[study.split].append((study, write_report(study)))
    return by_split


def body_text(report):
    """A report from its FINDINGS or IMPRESSION on."""
    match = re.search(r"FINDINGS:|IMPRESSION:", report.text)
    return report.text[match.start() :] if match else ""


def slot_values(bank, finding):
    """Every value of every slot for a finding, as an exhaustive reader of the banks would list them."""
    sides = ("left", "right", "bilateral")
    grades = tuple(itertools.chain(*vocabulary.GRADES[finding]))
    places = [place.format(side=side) for place in bank.places() for side in sides]
    lobes = [lobe.format(side=side) for group in bank.lobe.values() for lobe in group for side in sides]
    devices = [device.format(side=side) for group in vocabulary.DEVICES.values() for device in group for side in sides]
    return {
        "grade": grades,
        "gradely": tuple(f"{grade}ly" for grade in grades),
        "noun": vocabulary.NOUNS[finding],
        "side": sides,
        "place": places,
        "lobe": lobes,
        "size": tuple(str(size) for size in range(15, 40)),
        "device": devices,
    }


def expanded(template, values):
    """All sentences a template can make, lower-cased and without the difference between "a" and "an"."""
    slots = re.findall(r"{(\w+)}", template)
    for choice in itertools.product(*(values[slot] for slot in slots)):
        yield plain(template.format(**dict(zip(slots, choice, strict=True))))


def plain(sentence):
    return re.sub(r"\ban\b", "a", sentence.lower())


def positive_sentences(bank):
    return {
        sentence
        for finding in FINDINGS
        for template in bank.positive[finding]
        for sentence in expanded(template, slot_values(bank, finding))
    }


def test_splits_share_no_sentence_template_and_no_location_phrase():
    for first, second in itertools.combinations(SPLITS, 2):
        one, other = templates.BANKS[first], templates.BANKS[second]
        assert not set(one.templates()) & set(other.templates())
        assert not set(one.places()) & set(other.places())


def test_no_held_out_positive_sentence_can_be_made_from_the_training_bank():
    train = positive_sentences(templates.TRAIN)
    assert len(train) > 10_000
    for bank in (templates.VALIDATE, templates.TEST):
        shared = positive_sentences(bank) & train
        assert not shared


def test_every_word_of_held_out_reports_occurs_in_a_training_sample(reports):
    known = set().union(*(words(report.text) for _, report in reports["train"]))
    for split in ("validate", "test"):
        unseen = set().union(*(words(report.text) for _, report in reports[split])) - known
        assert not unseen


def test_every_word_of_the_held_out_banks_occurs_in_the_training_sample(reports):
    known = set().union(*(words(body_text(report)) for _, report in reports["train"]))
    for bank in (templates.VALIDATE, templates.TEST):
        fixed = re.sub(r"{\w+}", " ", " ".join([*bank.templates(), *bank.places()]))
        assert not words(fixed) - known


def test_training_has_six_to_eight_ways_to_state_each_finding():
    assert {finding: 6 <= len(templates.TRAIN.positive[finding]) <= 8 for finding in FINDINGS} == dict.fromkeys(
        FINDINGS, True
    )


def test_every_finding_is_stated_word_for_word_unless_the_report_is_unusable(reports):
    for study, report in itertools.chain(*reports.values()):
        for sentence in report.stated:
            assert sentence == "" or sentence in unwrapped(report.text), study.index


def test_sides_and_zones_of_findings_are_those_of_their_sentences(reports):
    for study, report in itertools.chain(*reports.values()):
        for finding, sentence in zip(study.findings, report.stated, strict=True):
            said = words(sentence) & {"left", "right"}
            if finding.side != 0 and sentence:
                assert said == {"left" if finding.side == 1 else "right"}, sentence
            else:
                assert not said, sentence
            if finding.name in ("Pneumonia", "Atelectasis", "Lung Lesion") and sentence:
                assert zone_of(sentence) == finding.zone, sentence


def zone_of(sentence):
    cues = {
        "upper": ("upper", "apex", "apical"),
        "middle": ("mid", "middle"),
        "lower": ("lower", "base", "bases", "basal"),
    }
    found = [zone for zone, names in cues.items() if words(sentence) & set(names)]
    return found[0] if len(found) == 1 else f"ambiguous: {found}"


def test_a_denied_finding_is_absent_and_named_in_the_report(reports):
    for study, report in itertools.chain(*reports.values()):
        assert not report.denied & {finding.name for finding in study.findings}
        text = unwrapped(report.text).lower()
        for name in report.denied - {"Cardiomegaly"}:
            assert any(noun in text for noun in vocabulary.ABSENT[name]), study.index


def test_lines_have_the_shape_of_mimic_reports(reports):
    for _, report in itertools.chain(*reports.values()):
        first, *rest = report.text.removesuffix("\n").split("\n")
        assert first == " " * 33 + "FINAL REPORT"
        assert all(line.startswith(" ") and len(line) <= 79 for line in rest)
        assert " " in rest
        assert "" not in rest


def test_about_one_report_in_two_hundred_says_nothing(reports):
    everything = list(itertools.chain(*reports.values()))
    silent = [report for _, report in everything if len(words(body_text(report)) - {"findings", "impression"}) == 0]
    assert 0.001 <= len(silent) / len(everything) <= 0.01
    assert all(not any(report.stated) and not report.denied for report in silent)


def test_sections_and_prevalence_follow_the_recipe(reports):
    train = reports["train"]
    both = sum("FINDINGS:" in report.text and "IMPRESSION:" in report.text for _, report in train)
    healthy = sum(not study.findings for study, _ in train)
    pneumonia = sum(any(finding.name == "Pneumonia" for finding in study.findings) for study, _ in train)
    assert 0.81 < both / SAMPLE < 0.89
    assert 0.33 < healthy / SAMPLE < 0.43
    assert 0.16 < pneumonia / SAMPLE < 0.24
    assert len({body_text(report) for _, report in train}) > 0.95 * SAMPLE


def test_a_report_depends_on_seed_and_index_only():
    plan = plan_studies(200, seed=4)
    backwards = {index: write_report(plan.study(index)) for index in reversed(range(50))}
    assert backwards == {index: write_report(plan_studies(200, seed=4).study(index)) for index in range(50)}
    other = plan_studies(200, seed=5)
    assert sum(backwards[index].text != write_report(other.study(index)).text for index in range(50)) > 45


def test_synthetic_prompts_use_known_words_in_sentences_training_cannot_make(reports):
    prompts = json.loads((PROMPTS / "synthetic.json").read_text())
    known = set().union(*(words(body_text(report)) for _, report in reports["train"]))
    made = positive_sentences(templates.TRAIN) | {plain(sentence) for sentence in templates.TRAIN.templates()}
    absent = dict.fromkeys("abc", tuple(itertools.chain(*vocabulary.ABSENT.values())))
    made |= {
        sentence for group in templates.TRAIN.negative.values() for one in group for sentence in expanded(one, absent)
    }
    assert set(prompts) == set(FINDINGS)
    for sides in prompts.values():
        for prompt in sides["positive"] + sides["negative"]:
            assert not words(prompt) - known, prompt
            assert plain(prompt) not in made, prompt


@pytest.mark.parametrize("name", ["synthetic", "chexpert"])
def test_prompt_files_have_four_to_six_prompts_on_each_side(name):
    prompts = json.loads((PROMPTS / f"{name}.json").read_text())
    prompts.pop("about", None)
    assert len(prompts) == {"synthetic": 8, "chexpert": 13}[name]
    for sides in prompts.values():
        assert set(sides) - {"synonyms"} == {"positive", "negative"}
        for side in (sides["positive"], sides["negative"]):
            assert 4 <= len(side) <= 6
            assert len(set(side)) == len(side)
