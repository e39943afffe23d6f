"""Report text to sections to sentences, in linear time and with character offsets into the original text.

Section rules are those of MIMIC-CXR's own parser (MIT-LCP/mimic-cxr, txt/section_parser.py), so that "findings" and
"impression" mean what the literature means by them; one of its faults, the loss of a section that directly follows an empty
one, is not repeated. Its hand-made exceptions for single studies are the user's to bring, see `section_rules`.
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

DEIDENTIFIED = "[DEID]"
VIEW = "view"  # a section whose header names a view ("PORTABLE AP CHEST"): findings under another name


class Section(NamedTuple):
    """A named part of a report: `text[start:end]` is its body without surrounding white space, possibly empty."""

    name: str
    start: int
    end: int


class Span(NamedTuple):
    """A sentence: `text[start:end]`, without surrounding white space, list number or bullet."""

    start: int
    end: int


# A header needs a line break, one space, capitals and a colon: stripping or dedenting a report removes all its headers.
# The white space after the colon is only looked at, so that an empty section does not swallow the next header.
_HEADER = re.compile(r"(?:\A\ufeff?|\r?\n )([ ()/,-]*[A-Z][A-Z ()/,-]*):(?=\s|\Z)")
_BLANK_LINE = re.compile(r"\n[^\S\n]*\n")

_SECTION_NAMES = {
    "conclusion": "impression",
    "conclusions": "impression",
    "opinion": "impression",
    "mpression": "impression",
    "compared to": "comparison",
    "prior": "comparison",
    "pfi": "history",
    "clinical information": "history",
    "indication for study": "indication",
    "reason for exam": "indication",
    "reason for examination": "indication",
    "exam": "examination",
    "reference exam": "comparison",
    "study": "examination",
    "type of examination": "examination",
    "procedure": "technique",
    "recommendation(s)": "recommendation",
    "wetread": "wet read",
    "addenda": "addendum",
}
# A single word that is spelled almost like one of these is it: reports are dictated in a hurry ("IMPERSSION", "FINIDNGS", "IMPRESSIONS").
_USUAL_WORDS = (
    *("impression", "findings", "comparison", "indication", "technique", "examination", "history", "recommendation"),
    "notification",
)
_ONE_WORD = re.compile("[a-z]{6,16}")
_ALIKE = 0.85  # ratio of `difflib`; a letter lost, doubled or swapped leaves more
_NAME_PARTS = ("impression", "findings", "history", "comparison", "addendum")  # the first that a name contains decides
_VIEW_NAME = re.compile(r"\b(?:chest|portable|frontal|lateral|ap|pa|(?:single|one|two) views?|ribs)\b")


def parse_sections(text: str) -> list[Section]:
    """Splits a report at its headers; offsets slice `text`, which must not be stripped or dedented before.

    Text before the first header is "preamble", a report without headers is one section "full report". Headers that name a
    view ("PORTABLE AP CHEST") are findings, as in MIMIC-CXR's parser. Where neither findings nor impression has text, what
    follows the first blank line of the last section under a header is split off as "last_paragraph". No text is lost: what
    is in no section is header or white space.
    """
    headers = list(_HEADER.finditer(text))
    if not headers:
        return [_trim_section("full report", text, 0, len(text))] if text.strip() else []
    sections = [_trim_section("preamble", text, 0, headers[0].start())]
    ends = [header.start() for header in headers[1:]] + [len(text)]
    for header, end in zip(headers, ends, strict=True):
        name = normalise_name(header[1])
        sections.append(_trim_section("findings" if name == VIEW else name, text, header.end(), end))
    if sections[0].start == sections[0].end:
        sections.pop(0)
    if not any(name in ("findings", "impression") and start < end for name, start, end in sections):
        sections[-1:] = _split_last_paragraph(sections[-1], text, headers[-1].end())
    return sections


def report_sentences(
    text: str, *, policy: Sequence[str] = ("findings", "impression"), fallback: str | None = "last_paragraph"
) -> list[str]:
    """Returns the cleaned sentences of a report, in reading order; empty if there is no usable text.

    Args:
      text: the whole report file.
      policy: names of the sections to read, in this order; of several with one name the last that has text counts, because
        addenda and preliminary readings come first in a file. Sections whose headers name a view are read behind the findings: in
        MIMIC-CXR's parser the last of them replaces the findings.
      fallback: section to read where none of `policy` has text; a report without any header is then read whole. None: neither.

    Returns:
      Sentences as `clean_sentence` makes them. Those of at most one word are dropped, and so is a report of fewer than three
      words in all (the rule of MGCA); de-identified names are no words.
    """
    bodies = _bodies(text)
    order = [part for name in policy for part in ((name, VIEW) if name == "findings" else (name,))]
    chosen = [bodies[name] for name in order if name in bodies]
    if not chosen and fallback is not None:
        chosen = [bodies[name] for name in (fallback, "full report") if name in bodies][:1]
    return body_sentences(chosen)


def body_sentences(bodies: Iterable[str]) -> list[str]:
    """Cleaned sentences of texts without headers, one after the other, dropped as `report_sentences` says."""
    sentences = [clean_sentence(body[start:end]) for body in bodies for start, end in split_sentences(body)]
    counts = [len(_WORD.findall(sentence.replace(DEIDENTIFIED, " "))) for sentence in sentences]
    kept = [(sentence, count) for sentence, count in zip(sentences, counts, strict=True) if count > 1]
    return [sentence for sentence, _ in kept] if sum(count for _, count in kept) >= 3 else []


def _bodies(text: str) -> dict[str, str]:
    """The text of each section that has any, by name; all those under headers of views together."""
    headers = (header for header in _HEADER.finditer(text) if normalise_name(header[1]) == VIEW)
    views = {first.start() for header in headers if (first := _VISIBLE.search(text, header.end()))}
    bodies: dict[str, str] = {}
    for name, start, end in parse_sections(text):
        if start < end and start in views:
            bodies[VIEW] = "\n\n".join(body for body in (bodies.get(VIEW), text[start:end]) if body)
        elif start < end:
            bodies[name] = text[start:end]
    return bodies


def clean_sentence(sentence: str) -> str:
    """Unwraps lines, collapses white space and writes each run of underscores as `[DEID]`."""
    return " ".join(_UNDERSCORES.sub(DEIDENTIFIED, sentence).split())


def split_sentences(text: str) -> list[Span]:
    """Splits text into sentences by rules; each span slices `text`.

    Blank lines, lines of underscores, titles ("FINAL REPORT") and list items always end a sentence. A full stop or question mark
    does unless it belongs to a decimal, an abbreviation, initials or a query ("?pneumonia"). Every span holds a letter, digit or
    underscore, so that a doubled full stop makes no empty sentence.
    """
    spans = []
    for start, end in _split_items(text):
        for stop in [*_sentence_ends(text, start, end), end]:
            span = _trim(text, start, stop)
            start = stop
            if _CONTENT.search(text, *span):
                spans.append(span)
    return spans


_CONTENT = re.compile(r"\w")
_VISIBLE = re.compile(r"\S")
_WORD = re.compile(r"\w+")
_UNDERSCORES = re.compile(r"_{2,}")
_BREAK_LINE = re.compile(r"^[^\S\n]*(?:$|(?:_{4,}|FINAL REPORT|FINAL ADDENDUM|WET READ)[^\S\n]*$)", re.MULTILINE)
_ITEM = re.compile(r"(?<!\S)(?:\(?(?P<number>\d{1,2})[.)](?=\s|[A-Z])|[-*\u2022](?=\s))\s*")
_STOP = re.compile(r"(?P<mark>[.?!]+)(?P<closer>[\"')\]\u201d\u2019]*)(?P<space>\s*)")
_LAST_LETTERS = re.compile(r"[A-Za-z][A-Za-z.]*\Z")
_FIRST_LETTERS = re.compile(r"[A-Za-z]+")
_INITIALS = re.compile(r"(?:[a-z]\.)*[a-z]")
_GLUED_END = re.compile(r"[a-z\d_)%]\Z")
_GLUED_START = re.compile(r"[A-Z][a-z]|\d{1,2}[.)]\s")
_LOOK = 24  # characters looked at on either side of a full stop: bounded, so that the whole is linear

_NEVER_END = re.compile(r"drs?|mrs?|ms|prof|pt|vs|e\.g|i\.e|cf|ca|st|resp|approx|incl|esp")
_BEFORE_NUMBER = re.compile(r"nos?|figs?|se|im|ser|img")
_BEFORE_LOWER = re.compile(r"r|l")
# These end a sentence only before a capital, a digit or a word that opens report sentences.
_SELDOM_END = re.compile(r"[ap]\.?m|etc|al|cm|mm|in|ml|cc|kg|mg|hrs?|min|sec|yrs?|mo|wk|max|lat|post|ant|inf|sup")
_OPENERS = re.compile(r"no|there|the|heart|lungs?|this|these|mild|stable|unchanged")
_CONTINUERS = re.compile(r"vs|versus|or|and")


def _split_items(text: str) -> Iterator[tuple[int, int]]:
    """Yields the paragraphs, and within them the list items without their numbers or bullets."""
    number = 0
    for start, end in _split_paragraphs(text):
        for item in _ITEM.finditer(text, start, end):
            if _opens_item(text, start, item, number):
                yield start, item.start()
                start = item.end()
                number = int(item["number"] or 0)
        yield start, end


def _split_paragraphs(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    for line in _BREAK_LINE.finditer(text):
        yield start, line.start()
        start = line.end()
    yield start, len(text)


def _opens_item(text: str, start: int, item: re.Match[str], last_number: int) -> bool:
    """Whether a number or bullet opens a list item, and is not the end of a wrapped line such as "at T / 12. Stable."."""
    lead = text[max(start, item.start() - _LOOK) : item.start()]
    before = lead.rstrip()
    if not before:
        return True
    at_line_start = "\n" in lead[len(before) :]
    if item["number"] is None:
        return at_line_start
    number = int(item["number"])
    continues = number == last_number + 1 > 1 or (number == 1 and at_line_start)
    follows_stop = before[-1] in ".?!:;"
    return (continues or follows_stop) and (at_line_start or text[item.end() : item.end() + 1].isupper())


def _sentence_ends(text: str, start: int, end: int) -> Iterator[int]:
    for stop in _STOP.finditer(text, start, end):
        before = text[max(start, stop.start() - _LOOK) : stop.start()]
        after = text[stop.end() : min(end, stop.end() + _LOOK)]
        if after and _ends_sentence(before, stop, after):
            yield stop.end()
            start = stop.end()


def _ends_sentence(before: str, stop: re.Match[str], after: str) -> bool:
    """Whether the stop between these pieces of text, neither beyond the paragraph, ends a sentence."""
    letters = _LAST_LETTERS.search(before)
    word = letters[0].lower() if letters else ""
    opening = _FIRST_LETTERS.match(after)
    following = opening[0].lower() if opening else ""
    if not stop["space"]:
        return not _NEVER_END.fullmatch(word) and bool(_GLUED_END.search(before) and _GLUED_START.match(after))
    if stop["mark"][-1] != ".":
        return before[-1:].strip() != "" and not _CONTINUERS.fullmatch(following)
    if after[0] in ",;:/)" or (after[0].islower() and (stop["closer"] or len(stop["mark"]) > 2)):
        return False
    if _NEVER_END.fullmatch(word) or (_BEFORE_NUMBER.fullmatch(word) and after[0].isdigit()):
        return False
    if _BEFORE_LOWER.fullmatch(word) and after[0].islower():
        return False
    opener = _OPENERS.fullmatch(following) is not None
    opens = opener or after[0].isupper() or after[0].isdigit()
    if _INITIALS.fullmatch(word) and not opener:
        return opens and not _is_name(before[: -len(word)].split(), dotted="." in word)
    return opens or not _SELDOM_END.fullmatch(word)


def _is_name(words: list[str], *, dotted: bool) -> bool:
    """Whether initials after these words belong to a person: "Dr. J. Smith", "John R. Smith", "J. Smith"."""
    if not words:
        return not dotted
    return _NEVER_END.fullmatch(words[-1].rstrip(".").lower()) is not None or (not dotted and words[-1][0].isupper())


def _trim(text: str, start: int, end: int) -> Span:
    body = text[start:end]
    left = len(body) - len(body.lstrip())
    return Span(start + left, max(start + left, start + len(body.rstrip())))


def _trim_section(name: str, text: str, start: int, end: int) -> Section:
    return Section(name, *_trim(text, start, end))


def _split_last_paragraph(section: Section, text: str, start: int) -> list[Section]:
    """Splits the section at its first blank line; one directly under the header's own line does not count."""
    first_break = 2 if text.startswith("\r\n", start) else 1
    blank = _BLANK_LINE.search(text, start + first_break)
    if blank is None:
        return [section]
    paragraph = _trim_section("last_paragraph", text, blank.end(), len(text))
    return [_trim_section(section.name, text, start, blank.start()), paragraph]


def normalise_name(header: str) -> str:
    """The name under which a section is kept, from its header or from another spelling of it."""
    name = " ".join(header.lower().split()).strip("-,/ ")
    if name in _SECTION_NAMES:
        return _SECTION_NAMES[name]
    for part in _NAME_PARTS:
        if part in name:
            return part
    if _VIEW_NAME.search(name):
        return VIEW
    close = difflib.get_close_matches(name, _USUAL_WORDS, n=1, cutoff=_ALIKE) if _ONE_WORD.fullmatch(name) else []
    return close[0] if close else name
