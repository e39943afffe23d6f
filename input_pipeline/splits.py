"""Splits as lists of images: those that papers published, and the official ones. Seeded ones are in `patient_splits`.

The published lists are those of MRM (Zhou et al., 2023) and MaCo (Huang et al., 2024), one folder per data set, for fine-tuning with
1 %, 10 % and 100 % of the labels. They are taken as they are, faults included: `leaks.published_overlaps` counts what their splits share.
"""

import collections
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from input_pipeline.compact import Names
from input_pipeline.errors import DataError, MsflError, UserError
from input_pipeline.scratch import Rows
from input_pipeline.sources import SPLITS

# Order of the labels of a line in the published lists.
NIH_LABEL_NAMES = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)
CHEXPERT_LABEL_NAMES = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
RSNA_LABEL_NAMES = ("Pneumonia",)

OFFICIAL_NIH = {"train": "train_val_list.txt", "test": "test_list.txt"}
VARIANTS = ("as_published", "clean")
TEST_CLEAN = "test_clean"  # subset of "test": what no other list names
Refuse = Callable[[MsflError, str], None]
PatientOf = Callable[[str], str] | Mapping[str, str]  # the patient of an image's name
_LISTS = {"train": "train_list", "validate": "val_list", "test": "test_list"}
_SUBSETS = ("train_1", "train_10")
_LABEL_VALUES = {"0": 0.0, "1": 1.0}
_NIH_NAME = re.compile(r"(?:.*/)?([0-9]{8})_[0-9]{3}\.png")
_CHEXPERT_NAME = re.compile(r"(?:[^/]+/)?((train|valid|test)/(patient[0-9]{5})/.+)")


@dataclass(frozen=True, slots=True)
class PublishedEntry:
    """One line of a list: the image's name as written, its labels (1 present, 0 absent), and the line's number from 1."""

    name: str
    labels: tuple[float, ...]
    line: int


@dataclass(frozen=True)
class PublishedSplits:
    """The lists of one data set.

    Attributes:
      splits: image names of "train", "validate" and "test".
      subsets: image names of "train_1" and "train_10", the published 1 % and 10 % of the training images, and of "test_clean" where the test
        split shares something with the other lists.
      labels: labels of the images that a list gives labels for, in the order of the list.
    """

    splits: dict[str, tuple[str, ...]]
    subsets: dict[str, tuple[str, ...]]
    labels: dict[str, tuple[float, ...]]

    def clean(self, patient_of: PatientOf | None = None) -> "PublishedSplits":
        """The lists without shared images: splits as `disjoint` makes them, subsets without images of "validate" and "test".

        SIIM's test split keeps its 1,904 images, its validation split loses 124, its training split 972 of 7,969.

        Args:
          patient_of: where given, images of patients of an earlier split leave too; CheXpert's lists share patients alone.

        Raises:
          DataError: an image whose patient is not known.
        """
        splits = disjoint(self.splits, patient_of=patient_of)
        held = {key: self.splits[key] for key in ("validate", "test") if key in self.splits}
        subsets = {}
        for subset, names in self.subsets.items():
            if split_of_subset(subset) == "test":
                continue  # all of the test split is clean now
            order = ("test", "validate", subset)
            subsets[subset] = disjoint({**held, subset: names}, order=order, patient_of=patient_of)[subset]
        return PublishedSplits(splits, subsets, self.labels)

    def with_clean_test(self, patient_of: PatientOf | None = None) -> "PublishedSplits":
        """The lists as they are and, where the test split shares images with others, the subset "test_clean" of those that it alone has.

        So a run on the published lists, whose other test images it was trained on or chosen by, can be measured on both; of SIIM's 1,904 images
        1,286 are clean.

        Args:
          patient_of: where given, images of patients of other splits are not clean either.

        Raises:
          DataError: an image whose patient is not known.
        """
        others = {**self.subsets, **{split: names for split, names in self.splits.items() if split != "test"}}
        test = self.splits.get("test", ())
        clean = disjoint({**others, "test": test}, order=(*others, "test"), patient_of=patient_of)["test"]
        if len(clean) in (0, len(test)):
            return self
        return PublishedSplits(self.splits, {**self.subsets, TEST_CLEAN: clean}, self.labels)


def read_list(path: Path, *, labels: int, refuse: Refuse | None = None) -> tuple[PublishedEntry, ...]:
    """Reads a list of one image a line: its name, then 0 or 1 for each label, separated by blanks.

    Args:
      path: text in UTF-8; line ends of any system, blanks at the end of a line and blank lines are no matter.
      labels: number of labels that each line must have; 0 for a list of names alone.
      refuse: called with the error of an image that is listed again, which then counts once, and with the image; by default it is raised.

    Raises:
      UserError: no such file, not text, empty, or a line with another number of labels.
      DataError: a label other than 0 and 1, or an image that is listed twice.
    """
    return tuple(_entries(path, labels, refuse, Names()))


def _entries(path: Path, labels: int, refuse: Refuse | None, names: Names) -> Iterator[PublishedEntry]:
    """The entries of `read_list`, of which only the names are kept: in `names`, which is empty."""
    lines = Rows("I")
    for line, text in enumerate(_lines(path), start=1):
        if not text.strip():
            continue
        name, *values = text.split()
        if len(values) != labels:
            raise UserError(f"{path.name}: line {line} has {len(values)} labels; expected {labels}")
        if not _LABEL_VALUES.keys() >= set(values):
            raise DataError(f"{path.name}: line {line} has a label other than 0 and 1")
        if (number := names.add(name)) < len(lines):
            where = f"the image of line {line} is on line {lines[number][0]} too"
            error = DataError(f"{path.name}: {where}; expected each image once", code="duplicate_image")
            if refuse is None:
                raise error
            refuse(error, name)
            continue
        lines.append(line)
        yield PublishedEntry(name, tuple(_LABEL_VALUES[value] for value in values), line)
    if not len(lines):
        raise UserError(f"{path.name}: the file is empty; expected one image a line")


def _lines(path: Path) -> Iterator[str]:
    """The lines of a file, whatever ends them, without a byte order mark."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from file
    except FileNotFoundError:
        raise UserError(f"{path.name}: no such file in {path.parent}; expected a list of images") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a list of images") from None
    except UnicodeDecodeError:
        raise UserError(f"{path.name}: not text in UTF-8; expected one image a line") from None


def read_published(
    folder: Path,
    *,
    labels: int,
    variant: str = "as_published",
    patient_of: PatientOf | None = None,
    table: Collection[str] | None = None,
) -> PublishedSplits:
    """Reads the published lists of a data set: train_list, val_list, test_list, and where they are there train_1 and train_10.

    Args:
      folder: holds the lists as .txt or .csv; .txt is read where both are there.
      labels: labels per line: 14 for NIH, 5 for CheXpert, 1 for RSNA, 0 for SIIM.
      variant: "as_published" for `PublishedSplits.with_clean_test(patient_of)`, or "clean" for `PublishedSplits.clean(patient_of)`.
      patient_of: gives the patient of an image; for what is clean alone.
      table: names of all images of CheXpert's train.csv, from which its missing train_list is rebuilt (`rebuild_train`).

    Raises:
      UserError: a list is missing, or as in `read_list`; or an unknown variant.
      DataError: as in `read_list` and `rebuild_train`, or two lists give an image different labels.
    """
    if variant not in VARIANTS:
        raise UserError(f"found splits '{variant}'; expected 'as_published' or 'clean'")
    paths = {split: _find_list(folder, name) for split, name in _LISTS.items()}
    paths |= {subset: _find_list(folder, subset) for subset in _SUBSETS}
    _check_present(folder, paths, table)
    entries = {key: read_list(path, labels=labels) for key, path in paths.items() if path}
    names = {key: tuple(entry.name for entry in found) for key, found in entries.items()}
    if "train" not in names and table is not None:
        names["train"] = rebuild_train(table, names["validate"])
    published = PublishedSplits(
        splits={split: names[split] for split in SPLITS},
        subsets={subset: names[subset] for subset in _SUBSETS if subset in names},
        labels=_merge_labels(entries) if labels else {},
    )
    return published.clean(patient_of) if variant == "clean" else published.with_clean_test(patient_of)


def split_of_subset(name: str) -> str:
    """The split that a list is a part of, or is itself, by its name: "train" of "train_10"."""
    return name.partition("_")[0]


def _find_list(folder: Path, name: str) -> Path | None:
    paths = (folder / f"{name}{suffix}" for suffix in (".txt", ".csv"))
    return next((path for path in paths if path.is_file()), None)


def _check_present(folder: Path, paths: Mapping[str, Path | None], table: Collection[str] | None) -> None:
    for split, name in _LISTS.items():
        if paths[split] is None and (split != "train" or table is None):
            raise UserError(f"{folder}: no {name}.txt; expected train_list, val_list and test_list (.txt or .csv)")


def _merge_labels(entries: Mapping[str, Sequence[PublishedEntry]]) -> dict[str, tuple[float, ...]]:
    labels: dict[str, tuple[float, ...]] = {}
    for key, found in entries.items():
        for entry in found:
            if labels.setdefault(entry.name, entry.labels) != entry.labels:
                raise DataError(f"{_LISTS.get(key, key)}: the labels of line {entry.line} differ from another list's")
    return labels


def rebuild_train(table: Collection[str], validation: Sequence[str]) -> tuple[str, ...]:
    """CheXpert's training list of 100 %, which was not published: every image of train.csv that is not in val_list.

    Args:
      table: names of all images of train.csv, below `CheXpert-v1.0` or `CheXpert-v1.0-small`.
      validation: names of val_list.

    Returns:
      Names in the order of the table, below the root that `validation` names.

    Raises:
      DataError: a name is none of CheXpert's, an image is twice in the table, or one of `validation` is not in it.
    """
    held = set(keys_of(validation, chexpert_image, "val_list"))
    images = keys_of(table, chexpert_image, "train.csv")
    if len(set(images)) != len(images):
        raise DataError(
            f"train.csv: {len(images) - len(set(images))} images are listed twice; expected each image once"
        )
    missing = len(held - set(images))
    if missing:
        raise DataError(
            f"train.csv: {missing:,} of {len(held):,} images of val_list are not in it; is this CheXpert v1.0?"
        )
    root = validation[0].removesuffix(chexpert_image(validation[0]))
    return tuple(root + image for image in images if image not in held)


def disjoint(
    splits: Mapping[str, Sequence[str]],
    *,
    order: Sequence[str] = ("test", "validate", "train"),
    patient_of: PatientOf | None = None,
) -> dict[str, tuple[str, ...]]:
    """Splits that share no image: each image stays in the first split of `order` that has it and leaves the others.

    With the default order a test split stays as it was published, "validate" loses what is in "test", and "train" loses the rest;
    no image is lost altogether.

    Args:
      splits: image names of each split; their order is kept.
      order: names of all splits, the one that keeps everything first.
      patient_of: where given, an image also leaves a split when its patient is in an earlier one; then images can be lost.

    Raises:
      UserError: a split is not in `order`.
      DataError: as in `keys_of`.
    """
    for split in splits:
        if split not in order:
            raise UserError(f"found a split '{split}'; expected one of {', '.join(order)}")
    taken: set[str] = set()
    kept: dict[str, tuple[str, ...]] = {}
    for split in order:
        names = splits.get(split, ())
        keys = names if patient_of is None else keys_of(names, patient_of, split)
        kept[split] = tuple(name for name, key in zip(names, keys, strict=True) if key not in taken)
        taken |= set(keys)
    return {split: kept[split] for split in splits}


def nih_patient(name: str) -> str:
    """The patient of an NIH image: the eight digits before the underscore of `00000001_000.png`; raises DataError."""
    match = _NIH_NAME.fullmatch(name)
    if not match:
        raise DataError("the image's name is none of NIH ChestX-ray14's; expected 8 digits, '_', 3 digits, '.png'")
    return match[1]


def chexpert_patient(name: str) -> str:
    """The patient of a CheXpert image: the folder `patient00001` of its path; raises DataError."""
    return _chexpert_parts(name)[2]


def chexpert_image(name: str) -> str:
    """A CheXpert path below its root, from `train/`, `valid/` or `test/` on: equal in all releases; raises DataError."""
    return _chexpert_parts(name)[0]


def rsna_patient(name: str) -> str:
    """What RSNA calls `patientId`: the file's name without folder and suffix.

    It tells images apart, not people: the images came from NIH ChestX-ray14 and each got an identifier of its own.
    """
    return name.rsplit("/", 1)[-1].removesuffix(".dcm")


def _chexpert_parts(name: str) -> tuple[str, str, str]:
    """Path below the root, folder of the release, patient."""
    match = _CHEXPERT_NAME.fullmatch(name)
    if not match:
        raise DataError("the image's path is none of CheXpert's; expected 'train/patient00001/...' below one folder")
    return match[1], match[2], match[3]


def keys_of(names: Collection[str], key_of: PatientOf, where: str) -> list[str]:
    """The patient, or another key, of each image; raises DataError naming `where` and the image's place from 1, never the image."""
    keys = []
    for place, name in enumerate(names, start=1):
        try:
            keys.append(key_of[name] if isinstance(key_of, Mapping) else key_of(name))
        except KeyError:
            raise DataError(f"{where}: the patient of image {place} is not known") from None
        except DataError as error:
            raise DataError(f"{where}: image {place}: {error}") from None
    return keys


def official_nih(folder: Path, *, refuse: Refuse | None = None) -> dict[str, Names]:
    """The official splits of NIH ChestX-ray14, "train" (train_val_list.txt) and "test" (test_list.txt).

    The published test_list of MaCo and MRM has the same name and other images. `refuse` as in `read_list`.

    Raises:
      UserError, DataError: as in `read_list`.
    """
    splits = {split: Names() for split in OFFICIAL_NIH}
    for split, name in OFFICIAL_NIH.items():
        collections.deque(_entries(folder / name, 0, refuse, splits[split]), maxlen=0)
    return splits
