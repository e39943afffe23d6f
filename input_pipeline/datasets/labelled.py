"""What the sources of labelled images share: which image is in which split, where the files lie, and how boxes are written."""

import dataclasses
import hashlib
import itertools
import json
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from input_pipeline import tables
from input_pipeline.checksums import ABSENT
from input_pipeline.compact import Members, Names, alphabetical
from input_pipeline.datasets.labelled_rows import Kept
from input_pipeline.errors import DataError, UserError
from input_pipeline.leaks import Overlaps, overlaps_of
from input_pipeline.patient_splits import nested_fractions, seeded_splits
from input_pipeline.sources import NO_SPLIT, SPLITS, ImageRow, ImagesOnly, Scan, read_image
from input_pipeline.splits import split_of_subset

Box = tuple[float, float, float, float]

_LARGEST = 1e6  # of a coordinate, in pixels
_BLOCK = 1024  # names that are hashed at once


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
        digest = hashlib.sha256()
        for piece in _json([self.splits or {}, self.subsets]):
            digest.update(piece.encode())
        return {"splits": digest.hexdigest()}


def _json(lists: Sequence[Mapping[str, Collection[str]]]) -> Iterator[str]:
    """What `json.dumps` writes of the lists with all names sorted, piece by piece: there may be a name for every image."""
    for number, part in enumerate(lists):
        yield ", {" if number else "[{"
        for place, name in enumerate(sorted(part)):
            yield f"{', ' if place else ''}{json.dumps(name)}: ["
            members, comma = _in_order(part[name]), ""
            while block := list(itertools.islice(members, _BLOCK)):
                yield comma + json.dumps(block)[1:-1]
                comma = ", "
            yield "]"
        yield "}"
    yield "]"


def _in_order(names: Collection[str]) -> Iterator[str]:
    if isinstance(names, Names):
        return (names[number] for number in map(int, alphabetical(names)))
    return iter(sorted(names))


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
    listed, subsets = _lists_of_images(plan.splits or {}, key), _lists_of_images(plan.subsets, key)
    _check_images(scan, listed, plan)
    kept, missing, strays, images = Kept(subsets.sets), listed.copy(), subsets.copy(), Members(SPLITS)
    for row, official, reason in found:
        missing.clear(row.image)
        splits = (official,) if plan.splits is None else listed.of(row.image) or (plan.rest,)
        for split in splits:
            own = tuple(name for name in subsets.of(row.image) if split_of_subset(name) == split)
            strays.remove(row.image, *own)
            _place(scan, kept, dataclasses.replace(row, subsets=own) if own else row, split, reason)
            if len(splits) > 1 and not reason:
                images.add(row.image, split)
    for image, splits in missing.items():
        for split in splits:
            scan.drop(split, "not_in_table")
            strays.remove(image, *(name for name in plan.subsets if split_of_subset(name) == split))
    for name in sorted(plan.subsets):
        if count := strays.size(name):
            raise DataError(
                f"subset '{name}' names {count:,} images that are not in its split; use lists that belong together"
            )
    _refuse_overlaps(scan, overlaps_of(SPLITS, images, kept.patients), plan, "patient_in_two_splits")
    _finish(scan, kept, plan)


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


def _lists_of_images(lists: Mapping[str, Collection[str]], key: Callable[[str], str]) -> Members:
    """The lists that each image is in."""
    images = Members(tuple(lists))
    for name, members in lists.items():
        if twice := sum(not images.add(key(member), name) for member in members):
            raise DataError(f"the list of '{name}' names {twice:,} images twice; expected each once")
    return images


def _check_images(scan: Scan, listed: Members, plan: SplitPlan) -> None:
    splits = [split for split in SPLITS if split in listed.sets]
    _refuse_overlaps(scan, overlaps_of(splits, listed), plan, "image_in_two_splits", listed.shared())


def _refuse_overlaps(
    scan: Scan, overlaps: Overlaps, plan: SplitPlan, code: str, identifiers: Iterable[str] = ("",)
) -> None:
    """Refuses what is shared, once for each of `identifiers`."""
    if overlaps.found and not plan.allow_leak:
        found = ", ".join(map(str, overlaps.found))
        advice = "use --variant clean, or --allow-leak, which every table will say"
        for identifier in identifiers:
            scan.refuse(DataError(f"{found}; expected nothing in two splits; {advice}", code=code), identifier)


def _place(scan: Scan, kept: Kept, row: ImageRow, split: str, reason: str) -> None:
    if split == NO_SPLIT:
        scan.drop(NO_SPLIT, "no_split")
    elif reason:
        scan.drop(split, reason)
    else:
        kept.add(split, row)


def _finish(scan: Scan, kept: Kept, plan: SplitPlan) -> None:
    scan.inputs.update(plan.hashes())
    scan.inputs.setdefault("checksums", ABSENT)  # none of these releases has any
    _hold_out(kept, plan)
    for split in kept.places:
        kept.sort(split)
    _add_fractions(kept, plan)
    scan.rows.update({split: kept.rows(split) for split in kept.places})


def _hold_out(kept: Kept, plan: SplitPlan) -> None:
    """Moves whole patients from train to the splits that the source lacks."""
    shares = {split: share for split, share in (("test", plan.test), ("validate", plan.validation)) if share}
    for split in shares:
        if kept.places.get(split):
            raise UserError(f"the splits have '{split}' already; expected none where a share of train is held out")
    if not shares:
        return
    train = kept.places.setdefault("train", array("I"))
    for split, members in seeded_splits(kept.patients_of("train"), shares, seed=plan.seeds[0]).items():
        kept.places[split] = array("I", (train[index] for index in members))
        if split != "train":
            kept.unmark(kept.places[split])


def _percent(fraction: float) -> str:
    return f"{100 * fraction:g}"


def _add_fractions(kept: Kept, plan: SplitPlan) -> None:
    train = kept.places.get("train")
    if not train:
        return
    for seed in plan.seeds if plan.fractions else ():
        for fraction, members in nested_fractions(kept.patients_of("train"), plan.fractions, seed=seed).items():
            kept.mark(f"train_{_percent(fraction)}_seed{seed}", (train[index] for index in members))


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
