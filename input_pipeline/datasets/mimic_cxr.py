"""MIMIC-CXR-JPG 2.0.0 and 2.1.0 with the reports of MIMIC-CXR: images, splits, views, labels, sentences.

Layout and tables: physionet.org/content/mimic-cxr-jpg/2.1.0 (most tables keep "2.0.0" in their names in both releases).
"""

import contextlib
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from input_pipeline import checksums, progress, tables
from input_pipeline.compact import Column
from input_pipeline.datasets import mimic_tables
from input_pipeline.datasets.mimic_grounding import Grounding, find_boxes, read_grounding
from input_pipeline.datasets.mimic_rows import Kept
from input_pipeline.datasets.mimic_tables import LABEL_NAMES, UNKNOWN, Image, Index
from input_pipeline.errors import UserError
from input_pipeline.reports import open_reports
from input_pipeline.section_rules import SectionRules
from input_pipeline.sections import normalise_name, report_sentences
from input_pipeline.sources import (
    NO_SPLIT,
    Dropped,
    ImageRow,
    ImagesOnly,
    Scan,
    Sentences,
    read_image,
    synthetic_setting,
)

__all__ = ["LABEL_NAMES", "MimicCxr"]

# The views of each choice, as MIMIC-CXR's own statistics group them; None is every view.
VIEWS = {"frontal": frozenset({"PA", "AP"}), "lateral": frozenset({"LATERAL", "LL"}), "all": None}
LABELLERS = ("chexpert", "negbio")


class _Labels(NamedTuple):
    """Labels by study: a labeller's of the reports, and radiologists' of some test studies."""

    labeller: mimic_tables.Labels
    radiologists: mimic_tables.Labels

    def of(self, study: str, split: str) -> tuple[float, ...]:
        """The best labels that there are of a study in this split."""
        if split == "test" and study in self.radiologists:
            return self.radiologists[study]
        return self.labeller.get(study, UNKNOWN)


@dataclass(frozen=True)
class MimicCxr(ImagesOnly):
    """MIMIC-CXR-JPG as a source of records, one per image.

    MS-CXR, on which grounding is measured, is made of MIMIC-CXR's images, most of them of its train split: a build leaves them
    and their patients out of train, or says that it keeps them.

    Attributes:
      jpg: folder that holds `files` and the tables.
      reports: folder or zip file of the reports.
      views: "frontal" keeps PA and AP, "lateral" LATERAL and LL, "all" every image.
      policy: sections whose sentences are kept, in this order.
      fallback: section that is read where none of them has text, or None.
      exclude: MS-CXR's box file, CSV or JSON; None takes those that lie in `jpg`.
      keep_grounding_patients: keep the images and patients of MS-CXR in train.
      labels: "chexpert" or "negbio", the labeller of the reports.
      radiologist_labels: take the labels of test studies from release 2.1.0's table of radiologists where it has them.
      splits: CSV file of dicom_id,split or subject_id,split that replaces the official split.
      section_rules: where the text of single studies is, before all general rules; None reads those studies by the general rules.
    """

    jpg: Path
    reports: Path
    views: str = "frontal"
    policy: tuple[str, ...] = ("findings", "impression")
    fallback: str | None = "last_paragraph"
    exclude: Path | None = None
    keep_grounding_patients: bool = False
    labels: str = "chexpert"
    radiologist_labels: bool = True
    splits: Path | None = None
    section_rules: SectionRules | None = None

    @property
    def name(self) -> str:
        """TFDS name of the data set."""
        return "mimic_cxr"

    def label_names(self) -> tuple[str, ...]:
        """The fourteen CheXpert labels, in the order of MIMIC-CXR's table, which is not CheXpert's own."""
        return LABEL_NAMES

    def settings(self) -> Mapping[str, Any]:
        """Options that change the records."""
        return {
            "views": self.views,
            "policy": list(self.policy),
            "fallback": self.fallback,
            "labels": self.labels,
            "radiologist_labels": self.radiologist_labels,
            "splits": "official" if self.splits is None else "own",
            "grounding_patients": "kept" if self.keep_grounding_patients else "excluded",
            **({} if self.section_rules is None else {"section_rules": self.section_rules.sha256}),
            **synthetic_setting(self.jpg),
        }

    def scan(self, *, lenient: bool = False) -> Scan:
        """Joins the tables on `dicom_id`; every image of a table or of IMAGE_FILENAMES is one input row.

        Raises:
          UserError: an option, table or column is missing or wrong, or a value is none of those that MIMIC-CXR uses.
          DataError: an image is listed twice, the tables disagree or have another checksum, or a patient is in two splits.
        """
        self._check_options()
        open_reports(self.reports)
        scan, index = Scan(lenient=lenient), Index()
        inputs = checksums.Inputs.open(self.jpg, scan.refuse, index.images)
        scan.inputs = inputs.hashes
        self._add_reports(inputs)
        kept, labels = self._kept(scan, inputs, index)
        for split, images in kept.items():
            scan.rows[split] = images.rows(functools.partial(_row, split=split, labels=labels, inputs=inputs))
        names = progress.counted((name for images in kept.values() for name in images.names()), "checksums", "images")
        inputs.note_unchecked(sum(not inputs.image(name) for name in names))
        self._note_rules(scan, kept)
        return scan

    def _kept(self, scan: Scan, inputs: checksums.Inputs, index: Index) -> tuple[dict[str, Kept], _Labels]:
        """The images of each split that become rows, and their labels; all other images are counted."""
        kept: dict[str, Kept] = {}
        splits, labels = self._splits(scan, inputs, index), self._labels(scan, inputs, index)
        excluded, listed = self._excluded(inputs), self._listed(scan, inputs, index)
        for image in mimic_tables.read_images(self._table(inputs, "metadata"), scan, index):
            with scan.row(image.name):
                split = splits.take(image)
                unlisted = _take(index, listed, image.name)
                if reason := self._reason(split, image, excluded) or unlisted:
                    scan.drop(split, reason)
                    continue
                if split not in kept:
                    kept[split] = Kept(index)  # a few files: not to be made for every image
                kept[split].add(image)
        for name, split in splits.left():
            _take(index, listed, name)
            scan.drop(split, "no_metadata")
        for _ in range(0 if listed is None else len(listed)):
            scan.drop(NO_SPLIT, "in_no_table")
        return kept, labels

    def files(self, row: ImageRow) -> tuple[Path, ...]:
        """The image, and the file that holds the report."""
        return self.jpg / row.path, open_reports(self.reports).file(row.patient, row.study)

    def sentences(self, row: ImageRow) -> Sentences:
        """Sentences of the study's report; raises Dropped("no_report", "bad_report", "no_text" or "no_text_by_rule")."""
        report = open_reports(self.reports).read(row.patient, row.study)
        ruled = self.section_rules.sentences(row.study, report.text) if self.section_rules else None
        if ruled == []:
            raise Dropped("no_text_by_rule")
        texts = ruled or report_sentences(report.text, policy=self.policy, fallback=self.fallback)
        if not texts:
            raise Dropped("no_text")
        flags = {
            "truncated_report": report.truncated,
            "replaced_characters": report.replaced,
            "section_rule": ruled is not None,
        }
        return Sentences(tuple(texts), tuple(name for name, raised in flags.items() if raised))

    def image(self, row: ImageRow) -> bytes:
        """The image file; raises Dropped("missing_image")."""
        return read_image(self.jpg, row.path)

    def _check_options(self) -> None:
        if self.views not in VIEWS:
            raise UserError(f"found views '{self.views}'; expected 'frontal', 'lateral' or 'all'")
        if self.labels not in LABELLERS:
            raise UserError(f"found labels '{self.labels}'; expected 'chexpert' or 'negbio'")
        if not self.policy:
            raise UserError("found no section to read; expected some such as findings and impression")
        for name in (*self.policy, *([self.fallback] if self.fallback else [])):
            if normalise_name(name) != name:
                raise UserError(f"found section '{name}'; expected its usual name '{normalise_name(name)}'")

    def _note_rules(self, scan: Scan, kept: Mapping[str, Kept]) -> None:
        """Notes how many of the rules for single studies are of studies of the build, and tries each: a wrong one ends the build at once."""
        if self.section_rules is None:
            return
        studies = self.section_rules.rules
        ruled = {image.study: image for images in kept.values() for image in images.of_studies(studies)}
        for study, image in ruled.items():
            with contextlib.suppress(Dropped):
                self.section_rules.sentences(study, open_reports(self.reports).read(image.patient, study).text)
        scan.inputs["section_rules"] = f"{len(ruled)} of {len(studies)} rules of {self.section_rules.sha256}"

    def _add_reports(self, inputs: checksums.Inputs) -> None:
        """A tree of 227,835 files is not hashed; each shard compares the sizes and times of its own."""
        if self.reports.is_file():
            inputs.add("reports", self.reports, checksums.listed_hash(self.reports))
        else:
            inputs.hashes["reports"] = "not hashed"

    def _splits(self, scan: Scan, inputs: checksums.Inputs, index: Index) -> mimic_tables.Splits:
        if self.splits is None:
            return mimic_tables.read_official_splits(self._table(inputs, "split"), scan, index)
        splits = mimic_tables.read_own_splits(self.splits, scan, index)
        inputs.hashes["split"] = tables.file_hash(self.splits)
        return splits

    def _labels(self, scan: Scan, inputs: checksums.Inputs, index: Index) -> _Labels:
        labeller, radiologists = mimic_tables.Labels(index.studies), mimic_tables.Labels(index.studies)
        if path := self._find(inputs, self.labels):
            labeller = mimic_tables.read_labels(path, scan, index)
        elif self.labels != LABELLERS[0]:
            raise UserError(f"{self.jpg}: no {self.labels} table; expected mimic-cxr-2.0.0-{self.labels}.csv.gz")
        if scan.lenient and (path := self._find(inputs, LABELLERS[self.labels == LABELLERS[0]])):
            # A build does not need the other labeller's table; the doctor reads it.
            mimic_tables.read_labels(path, scan, index)
        if self.radiologist_labels and (path := self._find(inputs, "test-set-labeled")):
            radiologists = mimic_tables.read_labels(path, scan, index)
        return _Labels(labeller, radiologists)

    def _excluded(self, inputs: checksums.Inputs) -> Grounding:
        """Who must not be trained on: nobody where that was asked for in so many words."""
        if self.keep_grounding_patients:
            if self.exclude is not None:
                raise UserError("MS-CXR's patients are both excluded and kept; give one of the two options")
            return Grounding(frozenset(), frozenset())
        files = find_boxes(self.jpg) if self.exclude is None else (self.exclude,)
        if not files:
            raise UserError(
                f"{self.jpg}: no MS_CXR_Local_Alignment file names the patients that grounding is measured on; "
                "leave them out of train with --exclude FILE, or keep them with --keep-grounding-patients"
            )
        found = read_grounding(files)
        for number, path in enumerate(files):
            inputs.hashes[f"exclude_{number}" if number else "exclude"] = tables.file_hash(path)
        return found

    def _listed(self, scan: Scan, inputs: checksums.Inputs, index: Index) -> Column | None:
        """Images that the release says it has; None where it does not say."""
        path = self.jpg / "IMAGE_FILENAMES"
        if not path.is_file():
            inputs.hashes["image_filenames"] = checksums.ABSENT
            return None
        return mimic_tables.read_filenames(inputs.add("image_filenames", path), scan, index)

    def _reason(self, split: str, image: Image, excluded: Grounding) -> str:
        """Why a row of the tables is left out, or an empty string."""
        views = VIEWS[self.views]
        reasons = {
            "no_split": split == NO_SPLIT,
            "no_view": views is not None and not image.view,
            f"not_{self.views}": views is not None and image.view not in views,
            "grounding_patient": split == "train" and image.patient in excluded.patients,
            "grounding_image": split == "train" and image.name in excluded.images,
        }
        return next((reason for reason, holds in reasons.items() if holds), "")

    def _table(self, inputs: checksums.Inputs, role: str) -> Path:
        path = self._find(inputs, role)
        if path is None:
            expected = f"mimic-cxr-2.0.0-{role}.csv.gz"
            raise UserError(f"{self.jpg}: no {role} table; expected {expected}. Is this the root of MIMIC-CXR-JPG?")
        return path

    def _find(self, inputs: checksums.Inputs, role: str) -> Path | None:
        """A table of the release, checked and noted."""
        path = tables.find_table(self.jpg, f"mimic-cxr-*-{role}.csv")
        if path is None:
            inputs.hashes[role] = checksums.ABSENT
            return None
        return inputs.add(role, path)


def _take(index: Index, listed: Column | None, name: str) -> str:
    """Takes an image off the list, at the end of which stand those of no table; "not_listed" where it is not on it."""
    number = index.images.find(name)
    if listed is None or not listed[number]:
        return "" if listed is None else "not_listed"
    listed[number] = 0
    return ""


def _row(image: Image, *, split: str, labels: _Labels, inputs: checksums.Inputs) -> ImageRow:
    path = f"files/p{image.patient[:2]}/p{image.patient}/s{image.study}/{image.name}.jpg"
    own, sha256 = labels.of(image.study, split), inputs.image(image.name)
    flags = (image.flag,) if image.flag else ()
    return ImageRow(image.patient, image.study, image.name, path, image.view, own, sha256=sha256, flags=flags)
