"""What a data set gives to the shard writer: rows found in its tables, and for each row its sentences and its image file."""

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Bool

from input_pipeline import progress, tables
from input_pipeline.compact import Log
from input_pipeline.errors import DataError, MsflError, RetryError, UserError

Row = TypeVar("Row")
SPLITS = ("train", "validate", "test")
MAX_IMAGE_BYTES = 512 * 2**20
NO_SPLIT = "none"  # rows of the input that belong to no split are counted here


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One future record.

    Attributes:
      patient, study, image: identifiers of the source; they become keyed hashes.
      path: of the image file, relative to the data set's folder.
      view: "PA", "AP", ... or "".
      labels: as in a record.
      phrase, category, boxes: of a grounding row; boxes are (x, y, width, height) in pixels of the source image.
      runs: run-length codes of a segmentation, as the source writes them.
      sha256: what the image file must hash to, in hex, or "" where the release has no checksums.
      subsets: names of the parts of the split that the row belongs to, such as "train_1" and "train_10".
      flags: what is odd about the row by its tables ("view_from_code").
    """

    patient: str
    study: str
    image: str
    path: str
    view: str
    labels: tuple[float, ...]
    phrase: str = ""
    category: str = ""
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    runs: tuple[str, ...] = ()
    sha256: str = ""
    subsets: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()

    @property
    def part(self) -> str:
        """Tells the rows of one image apart where each has a phrase of its own; "" where the image has one row."""
        return part_of(self.image, self.phrase, self.category) if self.phrase else ""


def part_of(image: str, phrase: str, category: str) -> str:
    """`ImageRow.part` of a row that is not made yet."""
    return f"{image}\n{phrase}\n{category}"


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong in the tables of a data set.

    Attributes:
      code: one word, such as "unknown_label".
      message: one line that names the table and the row's number and quotes nothing else.
      identifier: of the image, patient or study that it is about, or "" where there is none; never shown as it is.
      part: of the image's row that it is about, as `ImageRow.part`, where that is known.
      kind: of the error that ends a build.
    """

    code: str
    message: str
    identifier: str = ""
    part: str = ""
    kind: type[MsflError] = UserError


@dataclass(frozen=True, slots=True)
class Note:
    """A file that is odd and does no harm: its code, the image that it is of, and its path for the eyes of those who hold the data."""

    code: str
    identifier: str
    path: Path


def _problems() -> Log[Problem]:
    """There may be one for every row."""
    kinds = {kind.__name__: kind for kind in (MsflError, UserError, DataError)}
    return Log(
        lambda told: (told.code, told.message, told.identifier, told.part, told.kind.__name__),
        lambda code, message, identifier, part, kind: Problem(code, message, identifier, part, kinds[kind]),
    )


def _notes() -> Log[Note]:
    """There may be one for every file."""
    return Log(
        lambda told: (told.code, told.identifier, str(told.path)),
        lambda code, identifier, path: Note(code, identifier, Path(path)),
    )


@dataclass
class Scan:
    """What the tables of a data set say; records plus drops always add up to `input_rows`.

    Attributes:
      lenient: notes what is wrong and goes on, for `msfl data doctor`; a build stops at the first problem.
      problems: what a lenient scan noted.
      notes: odd files that a lenient scan met.
      table_faults: problems that a build has accepted, whose rows are left out, by code; see `quarantine.leave_out`.
      rows: per split, in the order in which records are stored; a large data set may make each when it is asked for.
      dropped: per split (or `NO_SPLIT`), the number of input rows left out, by reason.
      inputs: a hash of every table by its role; what was not hashed says so.
      table_rows: rows below the header of every table that was read, by its file name.
    """

    rows: dict[str, Sequence[ImageRow]] = field(default_factory=dict)
    dropped: dict[str, Counter[str]] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    table_rows: Counter[str] = field(default_factory=Counter)
    lenient: bool = False
    problems: Log[Problem] = field(default_factory=_problems)
    notes: Log[Note] = field(default_factory=_notes)
    table_faults: Counter[str] = field(default_factory=Counter)

    @property
    def input_rows(self) -> int:
        """Rows of the input, kept or dropped."""
        kept = sum(len(rows) for rows in self.rows.values())
        return kept + sum(sum(reasons.values()) for reasons in self.dropped.values())

    def keep(self, split: str, row: ImageRow) -> None:
        """Adds a row to a split, whose rows are a list."""
        rows = self.rows.setdefault(split, [])
        assert isinstance(rows, list)
        rows.append(row)

    def drop(self, split: str, reason: str) -> None:
        """Counts one row of the input that will not become a record."""
        self.dropped.setdefault(split, Counter())[reason] += 1

    def refuse(self, error: MsflError, identifier: str = "", part: str = "") -> None:
        """Notes an error in a lenient scan, whose caller then goes on without the row; else, or where the data are not to blame, raises it."""
        if not self.lenient or isinstance(error, RetryError):
            raise error
        self.problems.append(Problem(error.code, str(error), identifier, part, type(error)))

    def skip(self, path: Path) -> tables.Refuse:
        """`refuse` for rows of a table that never reach `counted`: these are counted as well."""

        def refuse(error: MsflError) -> None:
            self.table_rows[path.name] += 1
            self.refuse(error)

        return refuse

    def read(
        self, path: Path, columns: Sequence[str], *, optional: Sequence[str] = ()
    ) -> Iterator[tuple[int, list[str]]]:
        """`tables.read_table` with rows counted, and those of another length refused as everything is."""
        return self.counted(path, tables.read_table(path, columns, optional=optional, refuse=self.skip(path)))

    def counted(self, path: Path, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows of a table as they are, counted in `table_rows`, and on stderr where that takes long."""
        for row in progress.counted(rows, path.name, "rows"):
            self.table_rows[path.name] += 1
            yield row

    @contextlib.contextmanager
    def row(self, identifier: str = "", part: str = "") -> Iterator[None]:
        """Around what is done with one row of a table: an error in it ends the row, and the scan only where it is not lenient."""
        try:
            yield
        except MsflError as error:
            self.refuse(error, identifier, part)


@dataclass(frozen=True, slots=True)
class Sentences:
    """Cleaned sentences of a row, and what was odd about their text ("truncated_report", "replaced_characters")."""

    texts: tuple[str, ...]
    flags: tuple[str, ...] = ()


class Dropped(Exception):
    """A row that cannot become a record; `reason` is one word for the counts and never quotes the data."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


@runtime_checkable
class Source(Protocol):
    """A data set; it is pickled to worker processes and therefore holds paths and options, no data."""

    @property
    def name(self) -> str:
        """TFDS name of the data set, which begins the names of the shards."""
        ...

    def label_names(self) -> tuple[str, ...]:
        """Names of the labels of a record, in order."""
        ...

    def settings(self) -> Mapping[str, Any]:
        """Options that change the records, as JSON values without paths."""
        ...

    def scan(self, *, lenient: bool = False) -> Scan:
        """Reads the tables, not the images; where they are wrong, raises UserError or DataError, or notes it where `lenient`."""
        ...

    def for_workers(self) -> "Source":
        """The same source without what only `scan` needs: it is pickled with every shard."""
        ...

    def files(self, row: ImageRow) -> tuple[Path, ...]:
        """Files that a row is made from: a finished shard is kept while they are unchanged."""
        ...

    def sentences(self, row: ImageRow) -> Sentences:
        """Sentences of a row; raises Dropped."""
        ...

    def image(self, row: ImageRow) -> bytes:
        """The image file of a row; raises Dropped."""
        ...

    def mask(self, row: ImageRow, height: int, width: int) -> Bool[np.ndarray, "H W"] | None:
        """Segmentation of a row in pixels of the source image, or None where the source has none; raises Dropped."""
        ...


SYNTHETIC = (
    "SYNTHETIC"  # a file beside the tables of a synthetic study, which is otherwise laid out as the released data are
)


def synthetic_setting(root: Path) -> dict[str, Any]:
    """The part of a source's settings that tells a synthetic study from the data set whose layout it has; empty for released data."""
    return {"synthetic": True} if (root / SYNTHETIC).is_file() else {}


class ImagesOnly:
    """What sources without reports and segmentations share."""

    def for_workers(self) -> Any:
        """The source itself: paths and options are small."""
        return self

    def sentences(self, row: ImageRow) -> Sentences:
        """The phrase of a grounding row; nothing otherwise."""
        return Sentences((row.phrase,) if row.phrase else ())

    def mask(self, row: ImageRow, height: int, width: int) -> Bool[np.ndarray, "H W"] | None:
        """None: the source has no segmentations."""
        return None


def read_image(root: Path, path: str) -> bytes:
    """Reads an image file of a data set.

    Raises:
      Dropped: "missing_image", or "bad_image" where the file cannot be read, is no plain file, or is larger than any radiograph.
      UserError: the path leads out of the data set's folder.
    """
    file = inside(root, path)
    try:
        if file.exists() and not (file.is_file() and file.stat().st_size <= MAX_IMAGE_BYTES):
            raise Dropped("bad_image")
        return file.read_bytes()
    except FileNotFoundError:
        raise Dropped("missing_image") from None
    except OSError:
        raise Dropped("bad_image") from None


def check_size(height: int, width: int, expected: tuple[int, int]) -> None:
    """Boxes and run-length codes are in pixels of the original: a resized copy would carry them to the wrong place.

    Raises:
      Dropped: "wrong_size".
    """
    if (height, width) != expected:
        raise Dropped("wrong_size")


def inside(root: Path, path: str) -> Path:
    """`root / path`, refused where it leads out of `root`; the first folder of the path may itself be a link to another disk.

    Raises:
      UserError: the path is absolute, climbs with "..", or passes through a link to somewhere else.
    """
    target = root / path
    bases = (root, root / PurePosixPath(path).parts[0]) if is_relative(path) else ()
    if not any(target.resolve().is_relative_to(base.resolve()) for base in bases if base == root or base.is_dir()):
        found = "a path in the tables leads out of the data folder"
        raise UserError(f"{found}; expected relative paths without links", code="path_outside")
    return target


def is_relative(path: str) -> bool:
    """Whether a path from a table or an archive stays below its folder by its letters alone."""
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts and "\\" not in path and "\0" not in path
