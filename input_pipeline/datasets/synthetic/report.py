"""The report of a study as MIMIC-CXR prints it, with the sentence that states each finding and the findings it denies."""

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from input_pipeline.datasets.synthetic import templates, vocabulary
from input_pipeline.datasets.synthetic.anatomy import LEFT
from input_pipeline.datasets.synthetic.study import FINDINGS, Finding, Study

UNUSABLE_SHARE = 0.005
_LINE = 78  # characters after the leading space
_NO_LOBE = {"Pleural Effusion": "pleura", "Pneumothorax": "pleura", "Edema": "hila"}
_TITLE = " " * 33 + "FINAL REPORT\n"
_CONTEXT = (
    ("EXAMINATION", ("CHEST (PA AND LAT)", "CHEST (PORTABLE AP)", "CHEST RADIOGRAPH")),
    (
        "TECHNIQUE",
        (
            "Frontal view of the chest.",
            "Single view of the chest was obtained.",
            "Chest radiograph, standard technique.",
        ),
    ),
    ("COMPARISON", ("___.", "None.", "Chest radiograph of ___.", "Prior study of ___.")),
)
_REASONS = ("cough", "fever", "chest pain", "shortness of breath", "fall", "a new line", "weakness")


@dataclass(frozen=True, slots=True)
class Report:
    """Text of one report, `stated` = per finding of the study the sentence that states it ("" if unusable), `denied` = absent findings named."""

    text: str
    stated: tuple[str, ...]
    denied: frozenset[str]


def write_report(study: Study) -> Report:
    """Writes the report of a study, a function of (seed, index, counts); needs no drawing."""
    rng = study.generator("report")
    if rng.random() < UNUSABLE_SHARE:
        return Report(_unusable(rng), ("",) * len(study.findings), frozenset())
    bank = templates.BANKS[study.split]
    stated = [state_finding(rng, bank, finding) for finding in study.findings]
    denials = _deny(rng, bank, study.findings)
    layout = rng.random()
    if 0.85 <= layout < 0.95:  # an impression alone is short and states everything itself
        denials = dict(list(denials.items())[:1])
        sections = [("IMPRESSION", [*(stated or [_pick(rng, bank.nothing_acute)]), *denials])]
    else:
        body = [*stated, *denials, *_choose(rng, bank.distractors, int(rng.integers(0, 3)))]
        sections = [("FINDINGS", [body[i] for i in rng.permutation(len(body))])]
    if layout < 0.85:
        again = [state_finding(rng, bank, finding) for finding in study.findings]
        sections.append(("IMPRESSION", again or [_pick(rng, bank.nothing_acute)]))
    return Report(_print_report(rng, study, sections), tuple(stated), frozenset().union(*denials.values()))


def state_finding(rng: np.random.Generator, bank: templates.Bank, finding: Finding) -> str:
    """One sentence of the bank that states a finding with its side, place and severity."""
    name, side = finding.name, _side_word(finding.side)
    noun = _pick(rng, vocabulary.NOUNS[name])
    grade = _pick(rng, vocabulary.GRADES[name][finding.grade])
    return _sentence(
        _pick(rng, bank.positive[name]),
        grade=grade,
        gradely=_adverb(grade),
        noun=noun,
        side=side,
        place=_place(rng, bank, finding),
        lobe=_pick(rng, bank.lobe[finding.zone]).format(side=side),
        size=str(_millimetres(finding)),
        device=_pick(rng, vocabulary.DEVICES[finding.kind]).format(side=side) if finding.kind else "",
    )


def _sentence(template: str, **slots: str) -> str:
    """Fills a template, puts "an" before vowels, collapses the spaces of empty slots and starts with a capital."""
    text = re.sub(r" +", " ", template.format(**slots)).strip()
    text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)
    return text[0].upper() + text[1:]


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _choose(rng: np.random.Generator, options: Sequence[str], count: int) -> list[str]:
    return [options[int(i)] for i in rng.permutation(len(options))[:count]]


def _side_word(side: int) -> str:
    return "bilateral" if side == 0 else "left" if side == LEFT else "right"


def _adverb(grade: str) -> str:
    """mild -> mildly, moderate -> moderately, marked -> markedly."""
    return grade + "ly"


def _place(rng: np.random.Generator, bank: templates.Bank, finding: Finding) -> str:
    zone = _NO_LOBE.get(finding.name, finding.zone)
    phrases = bank.place_both[zone] if finding.side == 0 else bank.place[zone]
    return _pick(rng, phrases).format(side=_side_word(finding.side))


def _millimetres(finding: Finding) -> int:
    """Diameter of the first lesion where the image is 36 cm wide, in steps of 3 mm."""
    return 3 * round(finding.lesions[0].radius * 360 / 3)


def _deny(rng: np.random.Generator, bank: templates.Bank, findings: Sequence[Finding]) -> dict[str, frozenset[str]]:
    """One to three sentences on what is absent, each with the findings it denies."""
    absent = _choose(rng, [name for name in FINDINGS if name not in {finding.name for finding in findings}], 5)
    denials: dict[str, frozenset[str]] = {}
    for _ in range(int(rng.integers(1, 4))):
        group, absent = absent[: int(rng.integers(1, 4))], absent[3:]
        if group == ["Cardiomegaly"]:
            denials[_pick(rng, bank.normal_heart)] = frozenset(group)
        elif group:
            names = dict(zip("abc", (_pick(rng, vocabulary.ABSENT[name]) for name in group), strict=False))
            denials[_sentence(_pick(rng, bank.negative[len(group)]), **names)] = frozenset(group)
    return denials


def _print_report(rng: np.random.Generator, study: Study, sections: Sequence[tuple[str, list[str]]]) -> str:
    """Header, context and sections with MIMIC's line shape; half of the reports set the body below its heading."""
    age_and_sex = "___ year old " + ("woman" if study.patient.sex == "F" else "man")
    heading = _pick(rng, ("INDICATION", "HISTORY", "REASON FOR EXAM"))
    context = [(name, _pick(rng, options)) for name, options in _CONTEXT]
    context.insert(1, (heading, f"{age_and_sex} with {_pick(rng, _REASONS)}."))
    kept = [context[i] for i in range(len(context)) if rng.random() < 0.8]
    below, numbered = rng.random() < 0.5, rng.random() < 0.3
    blocks = [_block(f"{name}:  {text}") for name, text in kept]
    for name, sentences in sections:
        if numbered and name == "IMPRESSION" and len(sentences) > 1:
            items = [_block(f"{number}.  {sentence}") for number, sentence in enumerate(sentences, 1)]
            blocks += [_block(f"{name}:"), "".join(items)]
        elif below:
            blocks += [_block(f"{name}:"), _block(" ".join(sentences))]
        else:
            blocks.append(_block(f"{name}:  {' '.join(sentences)}"))
    return _TITLE + " \n" + " \n".join(blocks)


def _block(text: str) -> str:
    """One paragraph: lines of at most 79 characters, each starting with a space."""
    lines = textwrap.wrap(text, _LINE, break_long_words=False, break_on_hyphens=False)
    return "".join(f" {line}\n" for line in lines)


def _unusable(rng: np.random.Generator) -> str:
    """A report with headings and blanks but nothing to read, as real archives hold a few."""
    bodies = (
        [_block("FINDINGS:"), _block("___")],
        [_block("EXAMINATION:  ___"), _block("IMPRESSION:"), _block("___.")],
        [_block("FINDINGS:"), _block("IMPRESSION:")],
        [],
    )
    return _TITLE + " \n" + " \n".join(bodies[int(rng.integers(len(bodies)))])
