"""Releases as users have them: which data set lies in a folder, and its source with the splits that were asked for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from input_pipeline import tables
from input_pipeline.datasets.chexpert import Chexpert
from input_pipeline.datasets.labelled import SplitPlan
from input_pipeline.datasets.mimic_cxr import MimicCxr
from input_pipeline.datasets.ms_cxr import MsCxr
from input_pipeline.datasets.nih_chestxray14 import NihBoxes, NihChestXray14
from input_pipeline.datasets.rsna_pneumonia import RsnaPneumonia
from input_pipeline.datasets.siim_acr import SiimAcr
from input_pipeline.errors import UserError
from input_pipeline.leaks import Overlaps, published_overlaps
from input_pipeline.sources import Source
from input_pipeline.splits import (
    CHEXPERT_LABEL_NAMES,
    NIH_LABEL_NAMES,
    OFFICIAL_NIH,
    RSNA_LABEL_NAMES,
    PatientOf,
    PublishedSplits,
    chexpert_patient,
    nih_patient,
    read_list,
    read_published,
    rsna_patient,
)


@dataclass(frozen=True)
class SplitChoice:
    """Which splits a build has.

    Attributes:
      lists: folder of published lists (train_list, val_list, test_list, train_1, train_10), or None for the official splits.
      variant: of the lists, "as_published" or "clean": images and patients of test leave the others, those of validate leave train.
      validation, test: shares of train that become these splits where the source has none.
      fractions: shares of train that become subsets, for each of `seeds`.
      seeds: of all that is drawn.
      allow_leak: accepts images and patients in two splits; tables of results will say so.
    """

    lists: Path | None = None
    variant: str = "as_published"
    validation: float = 0.0
    test: float = 0.0
    fractions: tuple[float, ...] = ()
    seeds: tuple[int, ...] = (0,)
    allow_leak: bool = False

    def published(self, labels: int, patient_of: PatientOf | None, table: Any = None) -> PublishedSplits:
        """The lists; `labels` per line, and the names of the table where a list has to be rebuilt from it."""
        assert self.lists is not None
        return read_published(self.lists, labels=labels, variant=self.variant, patient_of=patient_of, table=table)

    def plan(self, published: PublishedSplits | None) -> SplitPlan:
        """The plan of a source."""
        drawn: dict[str, Any] = {
            "validation": self.validation,
            "test": self.test,
            "fractions": self.fractions,
            "seeds": self.seeds,
            "allow_leak": self.allow_leak,
        }
        if published is None:
            return SplitPlan(**drawn)
        return SplitPlan(published.splits, published.subsets, variant=self.variant, **drawn)


def chexpert(root: Path, choice: SplitChoice, **options: Any) -> Chexpert:
    """CheXpert; the list of all its training images was never published and is rebuilt from train.csv."""
    if choice.lists is None:
        return Chexpert(root, choice.plan(None), **options)
    source = Chexpert(root)
    names = [path for _, (path,) in tables.read_table(source.train_table(), ["Path"])]
    return Chexpert(root, choice.plan(choice.published(len(CHEXPERT_LABEL_NAMES), chexpert_patient, names)), **options)


def nih_chestxray14(root: Path, choice: SplitChoice, **options: Any) -> NihChestXray14:
    """NIH ChestX-ray14."""
    published = choice.published(len(NIH_LABEL_NAMES), nih_patient) if choice.lists else None
    return NihChestXray14(root, choice.plan(published), **options)


def nih_boxes(root: Path, choice: SplitChoice) -> NihBoxes:
    """The boxes of NIH ChestX-ray14."""
    published = choice.published(len(NIH_LABEL_NAMES), nih_patient) if choice.lists else None
    return NihBoxes(root, choice.plan(published))


def rsna_pneumonia(root: Path, choice: SplitChoice, **options: Any) -> RsnaPneumonia:
    """RSNA Pneumonia; published lists also bring the labels of the challenge's own test images."""
    if choice.lists is None:
        return RsnaPneumonia(root, choice.plan(None), **options)
    published = choice.published(len(RSNA_LABEL_NAMES), None)
    listed = {name: published.labels[name][0] for name in published.splits["test"] if "stage_2_test_images" in name}
    return RsnaPneumonia(root, choice.plan(published), listed=listed, **options)


def siim_acr(root: Path, choice: SplitChoice, **options: Any) -> SiimAcr:
    """SIIM-ACR Pneumothorax; its published lists share images between splits, so they need "clean" or `allow_leak`."""
    published = choice.published(0, None) if choice.lists else None
    return SiimAcr(root, choice.plan(published), **options)


def list_overlaps(name: str, folder: Path, *, variant: str = "as_published", table: Path | None = None) -> Overlaps:
    """What the published lists of a data set share between splits.

    Args:
      name: "chexpert", "nih", "rsna" or "siim".
      folder: of the lists.
      variant: "as_published" or "clean".
      table: CheXpert's train.csv, of which all that is not in val_list is train; without it train is what the lists of fractions name.

    Raises:
      UserError: an unknown data set, or a list is missing or wrong.
      DataError: a list is damaged.
    """
    if name not in _LISTED:
        raise UserError(f"found data set '{name}'; expected one of {', '.join(_LISTED)}")
    labels, patient_of = _LISTED[name]
    known = None
    if name == "chexpert" and table is not None:
        known = [path for _, (path,) in tables.read_table(table, ["Path"])]
    elif name == "chexpert":
        lists = [path for word in ("val_list", "train_1", "train_10") for path in folder.glob(f"{word}.txt")]
        known = list(dict.fromkeys(entry.name for path in lists for entry in read_list(path, labels=labels)))
    published = read_published(folder, labels=labels, variant=variant, patient_of=patient_of, table=known)
    return published_overlaps(published, patient_of=patient_of)


# Labels in a line of each data set's published lists, and who tells the patient of an image.
_LISTED: dict[str, tuple[int, PatientOf | None]] = {
    "chexpert": (len(CHEXPERT_LABEL_NAMES), chexpert_patient),
    "nih": (len(NIH_LABEL_NAMES), nih_patient),
    "rsna": (len(RSNA_LABEL_NAMES), rsna_patient),
    "siim": (0, None),
}


class _Release(NamedTuple):
    """A data set by the files that only its folder has."""

    name: str
    signs: tuple[str, ...]
    make: Callable[[Path, Mapping[str, Any]], Source]


def detect(
    root: Path,
    *,
    reports: Path | None = None,
    jpg: Path | None = None,
    table: Path | None = None,
    boxes: bool = False,
) -> Source:
    """The source whose release lies in a folder, with all its images and its official splits, for `msfl data doctor`.

    Args:
      root: the folder.
      reports: of MIMIC-CXR, where they do not lie in `root`.
      jpg: MIMIC-CXR-JPG's folder, for MS-CXR.
      table: of NIH or SIIM-ACR, where there are several vintages.
      boxes: NIH's boxes instead of its labels.

    Raises:
      UserError: none of the data sets is there.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; expected the root of a data set")
    for release in _RELEASES:
        if any(next(root.glob(f"{sign}{end}"), None) for sign in release.signs for end in ("", ".gz")):
            return release.make(root, {"reports": reports, "jpg": jpg, "table": table, "boxes": boxes})
    signs = "; ".join(f"{release.name}: {release.signs[0]}" for release in _RELEASES)
    raise UserError(f"{root}: no data set that is known; expected a folder with one of these tables: {signs}")


def _mimic_cxr(root: Path, others: Mapping[str, Any]) -> Source:
    zipped = root / "mimic-cxr-reports.zip"
    reports = others["reports"] or (zipped if zipped.is_file() else root)
    # Whatever a build leaves out is looked at as well.
    return MimicCxr(root, reports, views="all", keep_grounding_patients=True)


def _ms_cxr(root: Path, others: Mapping[str, Any]) -> Source:
    if others["jpg"] is None and not (root / "files").is_dir():
        raise UserError(f"{root}: MS-CXR has no images of its own; expected --jpg DIR, the folder of MIMIC-CXR-JPG")
    return MsCxr(others["jpg"] or root, root)


def _nih(root: Path, others: Mapping[str, Any]) -> Source:
    if others["boxes"]:
        return NihBoxes(root)
    official = all((root / name).is_file() for name in OFFICIAL_NIH.values())
    return NihChestXray14(root, SplitPlan() if official else SplitPlan({}, rest="train"), table=others["table"])


def _rsna(root: Path, _: Mapping[str, Any]) -> Source:
    return RsnaPneumonia(root, detailed=bool(tables.find_table(root, "stage_2_detailed_class_info.csv")))


_RELEASES = (
    _Release("MIMIC-CXR-JPG", ("mimic-cxr-*-split.csv", "mimic-cxr-*-metadata.csv"), _mimic_cxr),
    _Release("MS-CXR", ("MS_CXR_Local_Alignment*.csv", "MS_CXR_Local_Alignment*.json"), _ms_cxr),
    _Release("NIH ChestX-ray14", ("Data_Entry_2017*.csv",), _nih),
    _Release("RSNA Pneumonia", ("stage_2_train_labels.csv",), _rsna),
    _Release(
        "SIIM-ACR", ("*train-rle.csv", "stage_2_train.csv"), lambda root, others: SiimAcr(root, table=others["table"])
    ),
    _Release("CheXpert", ("train.csv", "*/train.csv"), lambda root, _: Chexpert(root, views="all")),
)
