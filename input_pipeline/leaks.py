"""Leak checks: images and patients that splits of one data set share, or a pretraining build and the build a model is tested on."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from input_pipeline.build_keys import keys_file, read_keys
from input_pipeline.compact import Members
from input_pipeline.errors import DataError, UserError
from input_pipeline.manifest import read_manifest
from input_pipeline.splits import PatientOf, PublishedSplits, keys_of, split_of_subset


@dataclass(frozen=True)
class Overlap:
    """What two splits share.

    Attributes:
      first, second: names of the splits.
      images: number of shared images.
      patients: number of patients with images in both, or None where the source does not tell patients apart.
    """

    first: str
    second: str
    images: int
    patients: int | None

    @property
    def shared(self) -> bool:
        """Whether they share anything."""
        return bool(self.images or self.patients)

    def __str__(self) -> str:
        """ "train and test share 494 images", with patients where they are known."""
        counts = [_count(self.images, "image")]
        if self.patients is not None:
            counts.append(_count(self.patients, "patient"))
        return f"{self.first} and {self.second} share {' and '.join(counts)}"


@dataclass(frozen=True)
class Overlaps:
    """What each pair of splits shares, pairs that share nothing included."""

    pairs: tuple[Overlap, ...]

    @property
    def found(self) -> tuple[Overlap, ...]:
        """The pairs that share something."""
        return tuple(pair for pair in self.pairs if pair.shared)

    def between(self, first: str, second: str) -> Overlap:
        """The pair of two splits, in either order; KeyError where they were not compared."""
        pairs = {frozenset((pair.first, pair.second)): pair for pair in self.pairs}
        return pairs[frozenset((first, second))]

    def __str__(self) -> str:
        """One line per pair."""
        return "\n".join(map(str, self.pairs))


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def find_overlaps(splits: Mapping[str, Collection[str]], *, patient_of: PatientOf | None) -> Overlaps:
    """Counts the images and patients that each pair of splits shares.

    Args:
      splits: image names of each split; equal names are the same image.
      patient_of: gives the patient of an image, or None where the source does not tell.

    Raises:
      DataError: an image whose patient is not known.
    """
    images = {split: frozenset(names) for split, names in splits.items()}
    patients = {
        split: None if patient_of is None else frozenset(keys_of(names, patient_of, split))
        for split, names in splits.items()
    }
    pairs = []
    for first, second in itertools.combinations(splits, 2):
        mine, yours = patients[first], patients[second]
        shared = None if mine is None or yours is None else len(mine & yours)
        pairs.append(Overlap(first, second, len(images[first] & images[second]), shared))
    return Overlaps(tuple(pairs))


def overlaps_of(splits: Sequence[str], images: Members, patients: Members | None = None) -> Overlaps:
    """Counts what each pair of splits shares, as `find_overlaps` does, where images and patients are too many for sets in memory.

    Args:
      splits: names of sets of `images` and `patients`.
      images: the splits of each image.
      patients: those of each patient, or None where the source does not tell.
    """
    return Overlaps(
        tuple(
            Overlap(*pair, images.size(*pair), None if patients is None else patients.size(*pair))
            for pair in itertools.combinations(splits, 2)
        )
    )


def published_overlaps(published: PublishedSplits, *, patient_of: PatientOf | None) -> Overlaps:
    """Overlaps of the published splits, and of each training subset with "validate" and "test".

    A subset is part of "train", and subsets may be parts of one another: these pairs are no leaks and are not listed.

    Raises:
      DataError: as in `find_overlaps`.
    """
    subsets = {name: names for name, names in published.subsets.items() if split_of_subset(name) == "train"}
    overlaps = find_overlaps({**published.splits, **subsets}, patient_of=patient_of)
    training = {"train", *subsets}
    return Overlaps(tuple(pair for pair in overlaps.pairs if not {pair.first, pair.second} <= training))


def refuse_overlaps(name: str, overlaps: Overlaps, *, allow_leak: bool = False) -> None:
    """Does nothing where no pair of splits shares anything, or where that is allowed.

    Args:
      name: of the data set, for the message.
      overlaps: counts of `find_overlaps`.
      allow_leak: the user's `--allow-leak`; callers write it and the counts into what they make.

    Raises:
      DataError: otherwise.
    """
    if overlaps.found and not allow_leak:
        raise DataError(
            f"{name}: {_listed(overlaps)}; expected nothing shared. Use the clean variant, or pass --allow-leak to go on"
        )


def _listed(overlaps: Overlaps) -> str:
    return ", ".join(map(str, overlaps.found))


@dataclass(frozen=True)
class BuildComparison:
    """What a pretraining build's training split shares with the splits of another build.

    Attributes:
      comparable: whether patients and images have the same keys in both builds; where not, nothing was counted.
      pixels: whether both builds hold hashes of the pixels, so that one image under two identifiers counts as shared.
      overlaps: one pair per split of the other build; the first of each is called "pretraining", or as `compare_builds` was told.
      origin: what no hash can see, see `common_origin`; "" where there is nothing.
    """

    comparable: bool
    pixels: bool
    overlaps: Overlaps
    origin: str = ""

    def __str__(self) -> str:
        """One line per split of the other build, and what could not be compared."""
        lines = [str(self.overlaps) if self.comparable else _NOT_COMPARABLE]
        lines += [_NO_PIXELS] if self.comparable and not self.pixels else []
        lines += [f"not checked: {self.origin}"] if self.origin else []
        return "\n".join(lines)


# Data sets made of images of NIH ChestX-ray14, by whose identifiers they are called: RSNA's and SIIM-ACR's have names and files of their own.
_FROM_NIH = {"nih_chestxray14": "nih", "nih_boxes": "nih", "rsna_pneumonia": "rsna", "siim_acr": "siim"}


def common_origin(first: str, second: str) -> str:
    """What must be said of two data sets whose images come from one place under names that cannot be compared, or "".

    Args:
      first, second: names of the data sets, as `Manifest.dataset` gives them.
    """
    names = _FROM_NIH.get(first), _FROM_NIH.get(second)
    if None in names or names[0] == names[1]:
        return ""
    return f"images of {first} and of {second} come from NIH ChestX-ray14, whose patients may be in both"


_NOT_COMPARABLE = (
    "not comparable: the builds have keys of different salts, so shared patients and images cannot be counted"
)
_NO_PIXELS = (
    "pixels not compared: a build holds no hashes of them; build it again to find one image under two identifiers"
)


def compare_builds(
    pretraining: Path | str,
    other: Path | str,
    *,
    train: str = "train",
    splits: Collection[str] | None = None,
    name: str = "pretraining",
    progress: bool = True,
) -> BuildComparison:
    """Counts what the training split of one build shares with each split of another.

    Patients are compared by their keyed hashes. Images are the same when their keys are, or the hashes of their pixels. Reads every
    record, but decodes no image; what is read of a build is kept in its folder `.keys` for the next time.

    Args:
      pretraining: folder of the build that a model was pretrained on.
      other: folder of the build that it will be fine-tuned or tested on.
      train: split of the first that was trained on.
      splits: of the other; None is all.
      name: of what was trained on the first, in the counts.
      progress: shows rate and remaining time on stderr while many records are read.

    Raises:
      UserError, DataError: as in `reading.open_split`.
    """
    manifests = read_manifest(pretraining), read_manifest(other)
    origin = common_origin(manifests[0].dataset, manifests[1].dataset)
    if manifests[0].key_check != manifests[1].key_check:
        return BuildComparison(comparable=False, pixels=False, overlaps=Overlaps(()), origin=origin)
    trained = read_keys(pretraining, train, keys_file(pretraining, manifests[0], train), progress=progress)
    pixels = bool(trained.pixels)
    pairs = []
    for split in manifests[1].readable_splits() if splits is None else splits:
        keys = read_keys(other, split, keys_file(other, manifests[1], split), progress=progress)
        pixels = pixels and bool(keys.pixels)
        pairs.append(Overlap(name, split, keys.images_in(trained), len(keys.patients & trained.patients)))
    return BuildComparison(comparable=True, pixels=pixels, overlaps=Overlaps(tuple(pairs)), origin=origin)


def refuse_shared(
    comparison: BuildComparison, *, splits: Collection[str] = ("validate", "test"), allow_leak: bool = False
) -> None:
    """Does nothing where the splits that numbers are reported on share nothing with the pretraining data, or where that is allowed.

    Args:
      comparison: counts of `compare_builds`.
      splits: of the other build; its own "train" may have been pretrained on, since no number is reported on it.
      allow_leak: the user's `--allow-leak`; callers write it and the counts into what they make.

    Raises:
      DataError: one of the splits shares a patient or an image.
      UserError: the builds cannot be compared.
    """
    if allow_leak:
        return
    if not comparison.comparable:
        raise UserError(f"{_NOT_COMPARABLE}; make both builds below one data root, or pass --allow-leak")
    pairs = Overlaps(tuple(pair for pair in comparison.overlaps.pairs if pair.second in splits))
    if pairs.found:
        raise DataError(
            f"{_listed(pairs)}; expected nothing shared. Train without these patients, or pass --allow-leak to go on"
        )
