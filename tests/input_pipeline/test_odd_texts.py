"""Ten thousand texts that no report should be: offsets slice back, and nothing is in a sentence that is not in its text."""

import random
import re
from collections import Counter

from input_pipeline.sections import DEIDENTIFIED, parse_sections, report_sentences, split_sentences

# Zero bytes, byte-order marks, every line end, halves of surrogate pairs, right-to-left text and marks, emoji, digits of other scripts.
ODD = "\x00\ufeff\r\n\u0085\u2028\x0b\x0c\x1c\ud800\udfff\u05d0\u0627\u202e\u200f\u200d\U0001f600\u0663\u00bd\u0130\u00df\u3002\u00a0\x1b"
PIECES = [
    *ODD,
    *(
        "\r\n ",
        "\n \n",
        "\n ",
        " ",
        "  ",
        ".",
        "? ",
        "1. ",
        "2) ",
        "- ",
        "\u2022 ",
        "Dr. ",
        "5.3 cm. ",
        "T12. ",
        "___",
        "_____",
    ),
    *(
        "FINDINGS:",
        "IMPRESSION:",
        "FINAL REPORT",
        "WET READ",
        "CHEST 2 VIEWS:",
        "No edema",
        "lungs are clear",
        "p.m. ",
        "(",
        ":",
        "A",
        "z",
    ),
]


def any_text(rng: random.Random) -> str:
    """Pieces of reports, odd characters and characters of the whole of Unicode."""
    characters = (
        rng.choice(PIECES) if rng.random() < 0.9 else chr(rng.randrange(0x110000)) for _ in range(rng.randrange(60))
    )
    return "".join(characters)


def test_offsets_of_ten_thousand_odd_texts_slice_back():
    rng, seen = random.Random(0), Counter()
    for _ in range(10_000):
        text = any_text(rng)
        for finder in (parse_sections, split_sentences):
            position = 0
            for *_, start, end in finder(text):
                assert position <= start <= end <= len(text)
                assert text[start:end] == text[start:end].strip()
                position = end
        for sentence in report_sentences(text):
            # What was cleaned is in the text in its order, whatever was between its words.
            words = sentence.replace(DEIDENTIFIED, "_").split()
            assert "".join(words) in re.sub(r"\s+", "", re.sub(r"_{2,}", "_", text))
            seen["sentences"] += 1
        seen.update(set(text) & set(ODD))
    assert seen["sentences"] > 1000
    assert min(seen[character] for character in ODD) > 1000
