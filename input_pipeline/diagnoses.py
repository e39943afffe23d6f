"""What each reason and flag of a build means to a user: whether the row is unusable, what was expected, and what to do; and the doctor's report."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from input_pipeline.prevalence import Prevalence
from input_pipeline.quarantine import NOTES_NAME, QUARANTINE_NAME

_KINDS_SHOWN = 5


class Diagnosis(NamedTuple):
    """Attributes: `unusable` counts towards the threshold of `msfl data doctor`; `expected` and `advice` are halves of a sentence."""

    unusable: bool
    expected: str
    advice: str


@dataclass(frozen=True)
class Finding:
    """One kind of fault: how often, at whom first, and what to do.

    Attributes:
      code: one word, the reason in `quarantine.jsonl` and in the counts of a build.
      count: rows, images, studies or patients concerned.
      of: how many were looked at: a sample of the images, or all rows of the tables.
      where: the key of the first of them, or the split.
      kinds: the first message of each kind, and how many there are that differ from it by numbers alone.
      stops: whether a build ends at the first of them; else it goes on without the row.
      diagnosis: whether it makes rows unusable, what is expected, and what to do.
      command: that helps, to be pasted; "" where none does.
    """

    code: str
    count: int
    of: int
    where: str
    kinds: Mapping[str, int]
    stops: bool
    diagnosis: Diagnosis
    command: str = ""

    def __str__(self) -> str:
        """The count, then how it shows, what is expected and what to do."""
        mark = "stop" if self.stops else "fault" if self.diagnosis.unusable else "note"
        lines = [f"{mark:<7}{self.code:<32}{self.count:>9,} of {self.of:,}{'   ' if self.where else ''}{self.where}"]
        shown = list(self.kinds.items())[:_KINDS_SHOWN]
        lines += [f"{'':7}{count:,} x {message}" for message, count in shown]
        if others := sum(self.kinds.values()) - sum(count for _, count in shown):
            lines.append(f"{'':7}{others:,} x something else")
        lines += [f"{'':7}expected: {self.diagnosis.expected}", f"{'':7}to do:    {self.diagnosis.advice}"]
        lines += [f"{'':7}command:  {self.command}"] if self.command else []
        return "\n".join(lines)


@dataclass(frozen=True)
class Report:
    """What the doctor found.

    Attributes:
      name: of the data set.
      input_rows: rows of its tables that could be read, kept or left out.
      looked_at: rows whose image and text were read; fewer than the rows kept where only a sample was asked for.
      records: rows that a build would turn into records, of those that were looked at.
      findings: first those that stop a build, then others that make rows unusable; of these the most frequent first.
      prevalence: of each label, beside the published one.
      unchecked: what no SHA256SUMS.txt vouches for; "" where it vouches for all.
      threshold: share of unusable rows above which `refused` is true.
      repeated: how many findings are of rows that are unusable for another reason already.
    """

    name: str
    input_rows: int
    looked_at: int
    records: int
    findings: tuple[Finding, ...]
    prevalence: tuple[Prevalence, ...]
    unchecked: str
    threshold: float
    repeated: int = 0

    @property
    def counts(self) -> dict[str, int]:
        """How often each fault was found."""
        counts: Counter[str] = Counter()
        for finding in self.findings:
            counts[finding.code] += finding.count
        return dict(counts)

    @property
    def unusable(self) -> int:
        """Rows that were found unusable, each once."""
        return sum(finding.count for finding in self.findings if finding.diagnosis.unusable) - self.repeated

    @property
    def unusable_share(self) -> float:
        """Share of unusable rows, each kind of fault as a share of what was looked at for it."""
        shares = (finding.count / max(1, finding.of) for finding in self.findings if finding.diagnosis.unusable)
        return sum(shares, 0.0) - self.repeated / max(1, self.looked_at)

    @property
    def refused(self) -> bool:
        """Whether more rows are unusable than the threshold allows."""
        return self.unusable_share > self.threshold

    def __str__(self) -> str:
        """Counts, one block per finding, and the prevalence of labels."""
        lines = [
            f"{self.name:<16}{self.input_rows:,} input rows, {self.looked_at:,} looked at, {self.records:,} would be records",
            f"{'unusable':<16}{self.unusable:,} ({self.unusable_share:.2%}; limit {self.threshold:.2%})",
        ]
        stopping = dict.fromkeys(finding.code for finding in self.findings if finding.stops)
        if stopping:
            lines.append(f"{'a build stops':<16}at {', '.join(stopping)}: correct these first")
        if self.unchecked:
            lines.append(f"{'not checked':<16}{self.unchecked}: damage that still decodes would not be found")
        if self.findings:
            files = f"{QUARANTINE_NAME} (stop, fault) and {NOTES_NAME} (note)"
            lines.append(f"{'each by its key':<16}in {files}; --reveal KEY prints the file behind a key")
        blocks = ["\n".join(lines), *map(str, self.findings), "\n".join(map(str, self.prevalence))]
        return "\n\n".join(block for block in blocks if block)


def _fault(expected: str, advice: str) -> Diagnosis:
    return Diagnosis(True, expected, advice)


def _note(expected: str, advice: str) -> Diagnosis:
    return Diagnosis(False, expected, advice)


_FETCH = "fetch the file again; where the release has checksums, compare them (sha256sum -c SHA256SUMS.txt)"
_TABLE = "fetch the table again; quarantine.jsonl has the number of every such row"
_LEAK = "correct the splits, or accept it by --allow-leak where the build has that; its tables will say so"
_LOOK = "look at it, and leave it out if it shows nothing"

DIAGNOSES: dict[str, Diagnosis] = {
    # files of images
    "missing_image": _fault("every image of the tables on disk", "fetch the missing files; a build leaves them out"),
    "bad_image": _fault("a whole JPEG, PNG or DICOM file that decodes", _FETCH),
    "wrong_checksum": _fault("the file that SHA256SUMS.txt names", _FETCH),
    "wrong_size": _fault("images in their released size, in which boxes and masks are given", "use the original files"),
    "not_listed": _fault("every image of the tables in IMAGE_FILENAMES", "use tables and lists of one release"),
    "file_in_no_table": _note("every image file in a table", "use tables and files of one release; a build reads none"),
    "two_files": _note("one file for each image", "remove all but one: the first folder's is read"),
    "stored_as_released": _note("nothing", "nothing: a grey JPEG of the wanted size is stored as it is"),
    "blank_image": _note("more than one grey level", _LOOK),
    "nearly_blank_image": _note("more than 1 % of the pixels unlike the rest", _LOOK),
    "duplicate_pixels": _note("each picture once", "look at both, and leave one out"),
    "duplicate_pixels_across_splits": _fault(
        "no picture in two splits", "leave it out of train, with a split file or list of your own"
    ),
    # reports
    "no_report": _fault("a report for every study", "unpack mimic-cxr-reports.zip again, or read it as it is"),
    "bad_report": _fault("a member of the zip file that can be read", "fetch mimic-cxr-reports.zip again"),
    "no_text": _note(
        "findings, impression or a last paragraph of three words", "nothing: a build leaves such studies out"
    ),
    "no_text_by_rule": _note("text where the rules for single studies say", "nothing: a build leaves such studies out"),
    "section_rule": _note("nothing", "nothing: the text is where the rule for the study says"),
    "truncated_report": _note("reports of at most 64 KB", "nothing: the rest was cut"),
    "replaced_characters": _note("reports in UTF-8", "nothing: other bytes were replaced"),
    # tables
    "no_rows": _fault("rows below the header of the tables", "fetch the tables again"),
    "no_metadata": _fault("every image of the split table in the metadata table", "use tables of one release"),
    "in_no_table": _note("every image of IMAGE_FILENAMES in the tables", "use tables and lists of one release"),
    "no_split": _note("every image in a split", "nothing: a build leaves them out; a split file can place them"),
    "not_in_table": _fault("every image of the split lists in the table", "use lists made for this release"),
    "duplicate_image": _fault("each image once in a table", _TABLE),
    "tables_disagree": _fault("rows and tables that agree on an image", "use tables of one release"),
    "bad_row": _fault("rows as the release has them", _TABLE),
    "bad_identifier": _fault("identifiers that can name a file", _TABLE),
    "unknown_split": _fault("train, validate or test", _TABLE),
    "unknown_label": _fault("labels 1, 0, -1 or blank, or the names of the release", _TABLE),
    "path_outside": _fault(
        "paths and links inside the data folder",
        "correct the table, or replace the link by its file; nothing outside is read",
    ),
    "image_in_two_splits": _fault("each image in one split", _LEAK),
    "patient_in_two_splits": _fault("each patient in one split", _LEAK),
    "wrong_table_checksum": _fault("the table that SHA256SUMS.txt names", _FETCH),
    # boxes and segmentations
    "bad_box": _fault("numbers x, y, w, h with w and h above 0", _TABLE),
    "box_outside_image": _fault("boxes inside the image", "use the images for which the boxes were drawn"),
    "clipped_box": _note("boxes inside the image", "nothing: a build cuts them at the edge"),
    "bad_runs": _fault("pairs of start and length inside the image, or -1", _TABLE),
    # choices of the build
    "no_view": _note("a view in ViewPosition, or in the meaning of its code", "nothing, or --views all"),
    "view_from_code": _note("nothing", "nothing: the view is that of ViewCodeSequence_CodeMeaning"),
    "not_frontal": _note("PA and AP views", "nothing, or --views all"),
    "not_lateral": _note("lateral views", "nothing, or --views all"),
    "grounding_image": _note("images outside MS-CXR in train", "nothing: they are kept for testing"),
    "grounding_patient": _note("patients outside MS-CXR in train", "nothing: they are kept for testing"),
}
