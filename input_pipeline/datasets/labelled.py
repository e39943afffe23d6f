"""What the sources of labelled images share: which image is in which split, where the files lie, and how boxes are written."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from input_pipeline import progress, tables
from input_pipeline.checksums import ABSENT
from input_pipeline.errors import DataError, UserError
from input_pipeline.leaks import Overlaps, find_overlaps
from input_pipeline.patient_splits import nested_fractions, seeded_splits
from input_pipeline.sources import NO_SPLIT, SPLITS, ImageRow, ImagesOnly, Note, Scan, read_image
from input_pipeline.splits import split_of_subset

Box = tuple[float, float, float, float]

SUFFIXES = (".dcm", ".png", ".jpg", ".jpeg")  # of two files of one image, the one with less loss is read
_LARGEST = 1e6  # of a coordinate, in pixels


@dataclass(frozen=True)
class SplitPlan:
    """Which images belong to which split and subset.

    Attributes:
      splits: image names of "train", "validate" and "test", as published lists write them; None stands for the official splits.
      subsets: image names of parts of splits; "train_1" is a part of "train".
      rest: where `splits` are given, the split of the images that they do not name; otherwise those are counted as "no_split".
      allow_leak: accepts images and patients in two splits. Such an image becomes a record of either, and counts as two input rows.
      validation, test: shares of the training images, by patient, that become these splits where the source has none.
      fractions: shares of the training images, by patient and nested, that become subsets "train_10_seed0" for each of `seeds`.
      seeds: of the fractions; the first is also that of the shares.
      variant: of the published lists behind `splits`, for the manifest: "as_published", "clean", or "" for lists of another origin.
    """

    splits: Mapping[str, Collection[str]] | None = None
    subsets: Mapping[str, Collection[str]] = field(default_factory=dict)
    rest: str = NO_SPLIT
    allow_leak: bool = False
    validation: float = 0.0
    test: float = 0.0
    fractions: tuple[float, ...] = ()
    seeds: tuple[int, ...] = (0,)
    variant: str = ""

    def settings(self) -> dict[str, Any]:
        """What a manifest says of the plan; the names themselves are only hashed."""
        kind = "official" if self.splits is None else "listed"
        drawn = {
            "validation": self.validation,
            "test": self.test,
            "fractions": list(self.fractions),
            "seeds": list(self.seeds),
        }
        lists = {"variant": self.variant} if self.variant else {}
        return {"splits": kind, **lists, "rest": self.rest, "allow_leak": self.allow_leak, **drawn}

    def hashes(self) -> dict[str, str]:
        """SHA-256 of the lists for `Scan.inputs`, whatever the order of their names; empty where there are none."""
        if self.splits is None and not self.subsets:
            return {}
        lists = [{name: sorted(lists[name]) for name in lists} for lists in (self.splits or {}, self.subsets)]
        return {"splits": hashlib.sha256(json.dumps(lists, sort_keys=True).encode()).hexdigest()}


class Found(NamedTuple):
    """One image of a source: its row, its official split, and why it will be no record, if it will not."""

    row: ImageRow
    split: str
    reason: str = ""


@dataclass(frozen=True)
class LabelledImages(ImagesOnly):
    """A folder of images with tables of labels.

    Attributes:
      root: the folder of the release.
      plan: of the splits.
    """

    root: Path
    plan: SplitPlan = field(default_factory=SplitPlan)

    def for_workers(self) -> Any:
        """Without the names of the plan, which are megabytes."""
        return dataclasses.replace(self, plan=SplitPlan())

    def files(self, row: ImageRow) -> tuple[Path, ...]:
        """The image."""
        return (self.root / row.path,)

    def image(self, row: ImageRow) -> bytes:
        """The image file; raises Dropped("missing_image")."""
        return read_image(self.root, row.path)


def distribute(scan: Scan, found: Iterable[Found], plan: SplitPlan, key: Callable[[str], str] = str) -> None:
    """Keeps or counts every image, and every listed name that is no image of the tables ("not_in_table").

    Args:
      scan: receives the rows, sorted, and the hash of the plan.
      found: each image once.
      plan: of the splits.
      key: turns a name of the plan into `ImageRow.image`.

    Raises:
      UserError: the plan names an unknown split, or a subset that does not begin with a split's name.
      DataError: a list names an image twice, an image or a patient is in two splits, or a subset leaves its split.
    """
    _check_plan(plan)
    listed = _lists_of_images(plan.splits or {}, key)
    subsets = _lists_of_images(plan.subsets, key)
    _check_images(scan, listed, plan)
    strays = {(name, image) for image, names in subsets.items() for name in names}
    missing = dict(listed)
    for row, official, reason in found:
        missing.pop(row.image, None)
        for split in (official,) if plan.splits is None else listed.get(row.image, [plan.rest]):
            own = tuple(name for name in subsets.get(row.image, ()) if split_of_subset(name) == split)
            strays.difference_update((name, row.image) for name in own)
            _place(scan, row, split, reason, own)
    for image, splits in missing.items():
        for split in splits:
            scan.drop(split, "not_in_table")
            strays.difference_update((name, image) for name in plan.subsets if split_of_subset(name) == split)
    if strays:
        name = min(strays)[0]
        count = sum(name == other for other, _ in strays)
        raise DataError(
            f"subset '{name}' names {count:,} images that are not in its split; use lists that belong together"
        )
    _check_patients(scan, plan)
    _finish(scan, plan)


def _check_plan(plan: SplitPlan) -> None:
    if not plan.seeds or len(set(plan.seeds)) < len(plan.seeds):
        raise UserError(f"found seeds {list(plan.seeds)}; expected one or more, each once")
    if len({_percent(fraction) for fraction in plan.fractions}) < len(plan.fractions):
        raise UserError(f"found fractions {list(plan.fractions)}; expected each once, to six digits of a percentage")
    for split in (*(plan.splits or ()), *(() if plan.rest == NO_SPLIT else (plan.rest,))):
        if split not in SPLITS:
            raise UserError(f"found split '{split}'; expected one of {', '.join(SPLITS)}")
    for name in plan.subsets:
        if split_of_subset(name) not in SPLITS or name in SPLITS:
            raise UserError(
                f"found subset '{name}'; expected the name of its split and an underscore, as in 'train_10'"
            )


def _lists_of_images(lists: Mapping[str, Collection[str]], key: Callable[[str], str]) -> dict[str, list[str]]:
    """Names of the lists that each image is in."""
    images: dict[str, list[str]] = {}
    for name, members in lists.items():
        own = {key(member) for member in members}
        if len(own) != len(members):
            raise DataError(f"the list of '{name}' names {len(members) - len(own):,} images twice; expected each once")
        for image in own:
            images.setdefault(image, []).append(name)
    return images


def _check_images(scan: Scan, listed: Mapping[str, Sequence[str]], plan: SplitPlan) -> None:
    images = {split: [image for image, splits in listed.items() if split in splits] for split in SPLITS}
    shared = [image for image, splits in listed.items() if len(splits) > 1]
    _refuse_overlaps(scan, find_overlaps(images, patient_of=None), plan, "image_in_two_splits", shared)


def _check_patients(scan: Scan, plan: SplitPlan) -> None:
    images = {split: [row.image for row in scan.rows.get(split, ())] for split in SPLITS}
    patient_of = {row.image: row.patient for rows in scan.rows.values() for row in rows}
    _refuse_overlaps(scan, find_overlaps(images, patient_of=patient_of), plan, "patient_in_two_splits")


def _refuse_overlaps(
    scan: Scan, overlaps: Overlaps, plan: SplitPlan, code: str, identifiers: Sequence[str] = ("",)
) -> None:
    """Refuses what is shared, once for each of `identifiers`."""
    if overlaps.found and not plan.allow_leak:
        found = ", ".join(map(str, overlaps.found))
        advice = "use --variant clean, or --allow-leak, which every table will say"
        for identifier in identifiers:
            scan.refuse(DataError(f"{found}; expected nothing in two splits; {advice}", code=code), identifier)


def _place(scan: Scan, row: ImageRow, split: str, reason: str, subsets: tuple[str, ...]) -> None:
    if split == NO_SPLIT:
        scan.drop(NO_SPLIT, "no_split")
    elif reason:
        scan.drop(split, reason)
    else:
        scan.keep(split, dataclasses.replace(row, subsets=subsets) if subsets else row)


def _finish(scan: Scan, plan: SplitPlan) -> None:
    scan.inputs.update(plan.hashes())
    scan.inputs.setdefault("checksums", ABSENT)  # none of these releases has any
    _hold_out(scan, plan)
    for split, rows in scan.rows.items():
        scan.rows[split] = sorted(rows, key=lambda row: (row.patient, row.study, row.image, row.phrase))
    _add_fractions(scan, plan)


def _hold_out(scan: Scan, plan: SplitPlan) -> None:
    """Moves whole patients from train to the splits that the source lacks."""
    shares = {split: share for split, share in (("test", plan.test), ("validate", plan.validation)) if share}
    for split in shares:
        if scan.rows.get(split):
            raise UserError(f"the splits have '{split}' already; expected none where a share of train is held out")
    if not shares:
        return
    train = scan.rows.get("train", [])
    for split, members in seeded_splits([row.patient for row in train], shares, seed=plan.seeds[0]).items():
        scan.rows[split] = [
            train[index] if split == "train" else dataclasses.replace(train[index], subsets=())
            for index in sorted(members)
        ]


def _percent(fraction: float) -> str:
    return f"{100 * fraction:g}"


def _add_fractions(scan: Scan, plan: SplitPlan) -> None:
    if not scan.rows.get("train"):
        return
    train = scan.rows["train"] = list(scan.rows["train"])
    patients = [row.patient for row in train]
    for seed in plan.seeds if plan.fractions else ():
        for fraction, members in nested_fractions(patients, plan.fractions, seed=seed).items():
            name = f"train_{_percent(fraction)}_seed{seed}"
            for index in members:
                train[index] = dataclasses.replace(train[index], subsets=(*train[index].subsets, name))


def find_images(root: Path, folders: Sequence[str], scan: Scan, image_of: Callable[[str], str] = str) -> dict[str, str]:
    """Paths of the image files, relative to `root`, by their names without suffix; each tree is walked once.

    Args:
      root: the folder of the release.
      folders: in it, walked to any depth; "" is the root itself, whose own files alone count. Of several files with one name that in
        the first folder counts, and within a folder that with the first of `SUFFIXES`.
      scan: notes the other files of such an image, if it is lenient.
      image_of: turns a file's name without suffix into `ImageRow.image`.
    """
    found: dict[str, str] = {}
    for folder in folders:
        here: dict[str, tuple[int, str]] = {}
        for path in progress.counted(image_files(root, folder), folder or "release", "image files"):
            stem, suffix = os.path.splitext(path.rpartition("/")[2])
            candidate = SUFFIXES.index(suffix.lower()), path
            if scan.lenient and (stem in here or stem in found):
                scan.notes.append(Note("two_files", image_of(stem), root / path))
            here[stem] = min(here.get(stem, candidate), candidate)
        found = {stem: path for stem, (_, path) in here.items()} | found
    return found


def note_strays(
    scan: Scan, root: Path, paths: Mapping[str, str], named: Collection[str], image_of: Callable[[str], str] = str
) -> None:
    """Notes files of images that no table names, not even in a row that is wrong; only a lenient scan does.

    Args:
      scan: that has read the tables.
      root: the folder of the release.
      paths: of files, as `find_images` gives them.
      named: images of the tables.
      image_of: as in `find_images`.
    """
    if scan.lenient:
        known = {*named, *(problem.identifier for problem in scan.problems)}
        strays = ((image_of(stem), path) for stem, path in sorted(paths.items()))
        scan.notes += [Note("file_in_no_table", image, root / path) for image, path in strays if image not in known]


def image_files(root: Path, folder: str) -> Iterator[str]:
    """Paths of the image files in a folder of `root`, to any depth and relative to `root`; of "" those in `root` itself."""
    for directory, below, names in os.walk(root / folder):
        prefix = Path(directory).relative_to(root).as_posix()
        for name in names:
            if name.lower().endswith(SUFFIXES):
                yield name if prefix == "." else f"{prefix}/{name}"
        if not folder:
            below.clear()


def image_of_name(name: str) -> str:
    """The image that a list or a path names: its last part without the suffix of an image; identifiers have dots of their own."""
    last = name.rpartition("/")[2]
    return next((last[: -len(end)] for end in SUFFIXES if last.lower().endswith(end)), last)


def find_one_table(root: Path, patterns: Sequence[str], chosen: Path | None = None) -> Path:
    """The table of a release: `chosen`, or the only file in `root` that fits a pattern, plain or gzipped.

    Raises:
      UserError: none or several; they may be different vintages.
    """
    if chosen is not None:
        return chosen
    found = sorted({path for pattern in patterns for end in ("", ".gz") for path in root.glob(pattern + end)})
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise UserError(f"{root}: expected one table {' or '.join(patterns)}, plain or .gz; found {names}; choose one")
    return found[0]


def listed_twice(
    scan: Scan, table: Path, number: int, column: str, image: str, image_of: Callable[[str], str] = str
) -> DataError:
    """The error of a row about an image that has a row already.

    Args:
      scan: a lenient one may meet many, and does not look for the first.
      table: that is read.
      number: of the row.
      column: with the image's name.
      image: that the row is about.
      image_of: turns a value of the column into an image.
    """
    first = ""
    if not scan.lenient:
        first = f", first in row {tables.first_row(table, column, lambda value: image_of(value) == image)}"
    found = f"{table.name}: the image of row {number} is listed twice{first}; expected each image once"
    return DataError(found, code="duplicate_image")


def contradicts(scan: Scan, table: Path, number: int, column: str, image: str) -> DataError:
    """The error of a row that does not go with the others of its image; arguments as in `listed_twice`."""
    other = "another row" if scan.lenient else f"row {tables.first_row(table, column, image.__eq__)}"
    return DataError(f"{table.name}: row {number} repeats or contradicts {other} of its image", code="duplicate_image")


def parse_box(where: str, values: Sequence[str]) -> Box:
    """A box (x, y, width, height) in pixels.

    Args:
      where: the file and the row, for the message.
      values: four numbers as the table writes them.

    Raises:
      UserError: they are no finite numbers, or the box has no area.
    """
    try:
        x, y, width, height = (float(value) for value in values)
    except ValueError:
        x = y = width = height = float("nan")
    if not all(abs(value) < _LARGEST for value in (x, y, width, height)) or width <= 0 or height <= 0:
        raise UserError(f"{where} has no box; expected numbers x, y, w, h with w and h above 0", code="bad_box")
    return x, y, width, height


def record_hash(scan: Scan, role: str, path: Path) -> Path:
    """Notes the hash of a table under its role, and returns the path."""
    scan.inputs[role] = tables.file_hash(path) if path.is_file() else ABSENT
    return path
