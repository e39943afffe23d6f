"""The manifest of a build: what is in it, where it came from, and a count for every row of the input. No identifiers, no text."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from input_pipeline.checksums import ABSENT
from input_pipeline.errors import DataError, UserError

MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True)
class ShardEntry:
    """One shard file: its name, number of records, size in bytes and SHA-256."""

    file: str
    records: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class SplitEntry:
    """One split; `input_rows` = `records` + all of `dropped`.

    Attributes:
      dropped: rows left out, by reason.
      flags: records with something odd that were kept ("truncated_report", "blank_image", ...).
      members: keyed hash of the set of images, whatever their order, size or view; equal for equal sets of one data root (`key_check`), so
        that of a single image is not one that others could recognise it by.
    """

    input_rows: int
    records: int
    dropped: dict[str, int]
    flags: dict[str, int]
    members: str
    shards: tuple[ShardEntry, ...]


@dataclass(frozen=True)
class SubsetEntry:
    """A named part of a split, such as a tenth of its labels; `members` is its hash as that of a split is."""

    split: str
    records: int
    members: str


@dataclass(frozen=True)
class Manifest:
    """A finished build.

    Attributes:
      name: of the data set.
      label_names: order of a record's labels.
      short_side: of the stored images, in pixels.
      quality: of the stored JPEGs, 1 to 100.
      shard_records: input rows per shard.
      input_rows: rows of the input over all splits, and those of no split (split "none").
      splits: what became of them; a split without records has no shards and cannot be read.
      settings: options of the source.
      inputs: SHA-256 of the tables, and of the zip file of reports.
      key_check: equal for builds whose patient, study and image keys can be compared.
      versions: of the packages that decide the bytes; "code" is a hash of our own modules that do.
      table_rows: rows of every table that was read, by its file name; several may be about one image.
      equalize: whether histograms were equalised before images were stored.
      subsets: named parts of splits; `subsets.json` holds their records' indices.
      table_faults: rows of tables that are wrong, that the doctor's quarantine names, and that the build went on without, by reason. They are
        counted in `table_rows`, and as input rows only where something else tells of them.
    """

    name: str
    label_names: tuple[str, ...]
    short_side: int
    quality: int
    shard_records: int
    input_rows: int
    splits: dict[str, SplitEntry]
    settings: dict[str, object]
    inputs: dict[str, str]
    key_check: str
    versions: dict[str, str]
    table_rows: dict[str, int] = field(default_factory=dict)
    equalize: bool = False
    subsets: dict[str, SubsetEntry] = field(default_factory=dict)
    table_faults: dict[str, int] = field(default_factory=dict)

    @property
    def dataset(self) -> str:
        """What results call the data: "synthetic_mimic_cxr" for a synthetic study in the layout of MIMIC-CXR, else the name."""
        return dataset_name(self.name, self.settings)

    @property
    def counts(self) -> dict[str, int]:
        """Number of records of each split that has any."""
        return {name: split.records for name, split in self.splits.items() if split.records}

    @property
    def caveats(self) -> tuple[str, ...]:
        """What must be said beside every number of a model that was trained on this build."""
        known = {
            "MS-CXR patients were kept in training": self.settings.get("grounding_patients") == "kept",
            "splits overlap (allowed)": self.settings.get("allow_leak") is True,
        }
        return tuple(caveat for caveat, holds in known.items() if holds)

    def __str__(self) -> str:
        """One aligned line per split: records kept, rows dropped by reason, records flagged; then what the build went on without."""
        lines = [f"{self.name:<12}{self.input_rows:>10,} input rows, short side {self.short_side}"]
        for name, split in self.splits.items():
            dropped = ", ".join(f"{reason} {count:,}" for reason, count in split.dropped.items())
            flagged = "".join(f"; flagged {flag} {count:,}" for flag, count in split.flags.items())
            lines.append(
                f"{name:<12}{split.records:>10,} records" + (f"; dropped {dropped}" if dropped else "") + flagged
            )
        for name, subset in self.subsets.items():
            lines.append(f"{name:<16}{subset.records:>6,} records of {subset.split}")
        if self.table_faults:
            faults = ", ".join(f"{reason} {count:,}" for reason, count in self.table_faults.items())
            lines.append(f"{'tables':<12}{sum(self.table_faults.values()):>10,} wrong rows left out; {faults}")
        if absent := sorted(role for role, told in self.inputs.items() if told == ABSENT):
            lines.append(f"{'absent':<12}{', '.join(absent)}")
        return "\n".join(lines)

    def readable_splits(self) -> tuple[str, ...]:
        """Names of the splits that have records, and of their subsets."""
        return (*self.counts, *self.subsets)

    def split_of(self, name: str) -> str:
        """The split that `name` is, or is a subset of."""
        return self.subsets[name].split if name in self.subsets else name

    def members_of(self, name: str) -> str:
        """Hash of the images of a split or subset; "" where there is none of that name."""
        part = self.subsets.get(name) or self.splits.get(name)
        return part.members if part else ""

    def record_count(self, name: str) -> int:
        """Number of records of a split or subset."""
        return self.subsets[name].records if name in self.subsets else self.splits[name].records


def dataset_name(name: str, settings: Mapping[str, object]) -> str:
    """What results call data of this name that were built with these settings: see `Manifest.dataset`."""
    return f"synthetic_{name}" if settings.get("synthetic") is True else name


def write_manifest(manifest: Manifest, directory: Path) -> None:
    """Writes `manifest.json`; equal manifests give equal bytes."""
    text = json.dumps(dataclasses.asdict(manifest), indent=2)
    (directory / MANIFEST_NAME).write_text(text + "\n")


def read_manifest(directory: Path | str) -> Manifest:
    """Reads the manifest of a build.

    Raises:
      UserError: the folder holds no finished build.
      DataError: the manifest is damaged.
    """
    path = Path(directory) / MANIFEST_NAME
    try:
        text = path.read_text()
    except OSError:
        raise UserError(
            f"{directory}: no finished build; make one with `msfl data build ... --out {directory}`"
        ) from None
    try:
        values = json.loads(text)
        values["label_names"] = tuple(values["label_names"])
        values["splits"] = {name: _split(split) for name, split in values["splits"].items()}
        values["subsets"] = {name: SubsetEntry(**subset) for name, subset in values.get("subsets", {}).items()}
        return Manifest(**values)
    except (ValueError, TypeError, KeyError):
        raise DataError(f"{path}: not a manifest of this version; run the same `msfl data build` again") from None


def _split(values: dict) -> SplitEntry:
    return SplitEntry(**{**values, "shards": tuple(ShardEntry(**shard) for shard in values["shards"])})
