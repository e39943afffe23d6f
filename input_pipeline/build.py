"""The shard writer behind `msfl data build`: parallel over shards, resumable after a kill, equal bytes on every run."""

import contextlib
import dataclasses
import fcntl
import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core import dataset_info
from tensorflow_datasets.core import splits as tfds_splits

from input_pipeline import images, records
from input_pipeline.checksums import ABSENT
from input_pipeline.compact import Part
from input_pipeline.errors import DataError, RetryError, UserError, written_to
from input_pipeline.keys import Keyring, open_keyring
from input_pipeline.manifest import (
    MANIFEST_NAME,
    Manifest,
    ShardEntry,
    SplitEntry,
    SubsetEntry,
    read_manifest,
    write_manifest,
)
from input_pipeline.pool import run_tasks
from input_pipeline.progress import Progress, showing_counts
from input_pipeline.quarantine import QUARANTINE_NAME, leave_out
from input_pipeline.shards import ShardResult, ShardTask, quarantine_file, set_hash, write_shard
from input_pipeline.sources import NO_SPLIT, SPLITS, Dropped, Scan, Source
from input_pipeline.subsets import write_subsets
from input_pipeline.versions import FEATURES, versions_of

__all__ = ["Manifest", "build", "read_manifest"]

_STATE = ".build"  # sidecars of finished shards, drafts, the lock
_TRIED = 8  # first images of a split; those that are missing or damaged are counted later


@dataclass(frozen=True)
class Stored:
    """How images are stored; fields as those of the manifest."""

    short_side: int
    quality: int
    equalize: bool
    shard_records: int


def build(
    source: Source,
    out: Path,
    *,
    short_side: int = 512,
    quality: int = 95,
    equalize: bool = False,
    workers: int = 2,
    shard_records: int = 1024,
    progress: bool = True,
    quarantine: Path | None = None,
    drop_noted: Collection[str] = (),
) -> Manifest:
    """Writes the records of a data set as ArrayRecord shards with TFDS metadata, and `manifest.json` last of all.

    Run again after a kill, it keeps every finished shard whose inputs have not changed. The same input and options give the same
    bytes for any number of workers, as long as the salt in the parent folder of `out` stays.

    Args:
      source: the data set; pickled to the workers.
      out: the folder that `tfds.builder_from_directory` reads; its parent is the data root that holds the salt of the keys.
      short_side: of the stored images, in pixels.
      quality: of the stored JPEGs, 1 to 100.
      equalize: equalises histograms first, as MIMIC-CXR-JPG and CheXpert were and the other data sets were not.
      workers: processes; 1 writes in this process.
      shard_records: input rows per shard; rows that are dropped leave a shard smaller.
      progress: shows rate and remaining time on stderr.
      quarantine: `quarantine.jsonl` of the doctor, whose rows are left out; see `quarantine.leave_out`.
      drop_noted: reasons of the doctor's `notes.jsonl` whose rows are left out too.

    Raises:
      UserError: options or tables are wrong, `out` holds something else, or what decodes the images is not installed.
      DataError: the data are damaged, or give no record at all.
      RetryError: another command is writing to `out`, or a worker was killed.
    """
    _check_options(short_side, quality, workers, shard_records)
    out = out.absolute()
    with showing_counts(progress):
        scan = _scan(source, quarantine, drop_noted)
    keyring = open_keyring(out.parent)
    stored = Stored(short_side, quality, equalize, shard_records)
    options = {**dataclasses.asdict(stored), **source.settings()}
    told, versions = _told(source, scan), versions_of(source)
    with _claimed(out, {"name": source.name, **options, "inputs": told["inputs"], "key_check": keyring.check}):
        tasks = _tasks(source, scan, out, keyring, stored, versions)
        results = _write_shards(tasks, workers, progress)
        subsets, indices = _subsets(results)
        manifest = Manifest(
            **dataclasses.asdict(stored),
            **told,
            splits=_split_entries(source.name, scan, results),
            key_check=keyring.check,
            versions=versions,
            subsets=subsets,
        )
        with written_to(out):
            _publish(manifest, results, indices, out)
    return manifest


def _told(source: Source, scan: Scan) -> dict[str, Any]:
    """What the manifest takes from the source and its tables as it is."""
    return {
        "name": source.name,
        "label_names": source.label_names(),
        "settings": dict(source.settings()),
        "input_rows": scan.input_rows,
        "inputs": dict(sorted(scan.inputs.items())),
        "table_rows": dict(sorted(scan.table_rows.items())),
        "table_faults": dict(sorted(scan.table_faults.items())),
    }


def _scan(source: Source, quarantine: Path | None, drop_noted: Collection[str]) -> Scan:
    """The source's rows without those that the doctor's files leave out; what decodes the others is installed."""
    if drop_noted and quarantine is None:
        raise UserError("found reasons to drop and no quarantine; expected the doctor's file as well")
    scan = source.scan() if quarantine is None else source.scan(lenient=True)
    if quarantine is not None:
        leave_out(scan, quarantine, drop_noted)
    _check_decoders(source, scan)
    return scan


def _check_options(short_side: int, quality: int, workers: int, shard_records: int) -> None:
    limits = {"short_side": (short_side, 16, 8192), "quality": (quality, 1, 100), "workers": (workers, 1, 1024)}
    limits["shard_records"] = (shard_records, 1, 1_000_000)
    for name, (value, low, high) in limits.items():
        if not low <= value <= high:
            raise UserError(f"{name} is {value}; expected {low} to {high}")


def _check_decoders(source: Source, scan: Scan) -> None:
    """Reads the first image of each split that can be read: a decoder that is not installed is seen before any shard is written."""
    for rows in scan.rows.values():
        for row in itertools.islice(rows, _TRIED):
            with contextlib.suppress(Dropped, DataError):
                images.decode_gray(source.image(row))
                break


@contextlib.contextmanager
def _claimed(out: Path, identity: Mapping[str, Any]) -> Iterator[None]:
    """Holds `out` for this build alone; the lock ends with the process, however it ends."""
    state = out / _STATE
    with written_to(out):
        if out.exists() and not state.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out}: holds something that is no build; expected a new or empty folder for --out")
        state.mkdir(parents=True, exist_ok=True)
        lock = (state / "lock").open("w")
    with lock:
        with written_to(out):
            _lock(lock, out)
            _check_identity(out, identity)
            for draft in state.glob("*.tmp"):
                draft.unlink()
        yield


def _lock(file: IO[str], out: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RetryError(f"{out}: another command is building here; wait for it, or use another --out") from None


def _check_identity(out: Path, identity: Mapping[str, Any]) -> None:
    """Refuses to mix two builds in one folder; a table that is absent is none, whether it was noted as such or not."""
    path = out / _STATE / "build.json"
    wanted = _present(json.loads(json.dumps(identity)))
    try:
        found = _present(json.loads(path.read_text()))
    except (OSError, ValueError):
        draft = path.with_suffix(".tmp")
        draft.write_text(json.dumps(wanted, sort_keys=True))
        os.replace(draft, path)
        return
    for name, value in wanted.items():
        if found.get(name) != value:
            shown = f"{name} was {found.get(name)} and is now {value}"
            shown = f"the {name} differ" if name in ("inputs", "key_check") else shown
            raise UserError(f"{out}: holds another build: {shown}; use another --out, or delete this one")


def _present(identity: dict[str, Any]) -> dict[str, Any]:
    return {**identity, "inputs": {role: told for role, told in identity.get("inputs", {}).items() if told != ABSENT}}


def _tasks(
    source: Source, scan: Scan, out: Path, keyring: Keyring, stored: Stored, versions: Mapping[str, str]
) -> dict[str, list[ShardTask]]:
    """Per split, the shards: `shard_records` rows each, the last one fewer."""
    tasks: dict[str, list[ShardTask]] = {}
    how = (keyring, stored.short_side, stored.quality, stored.equalize, source.settings(), dict(versions))
    light = source.for_workers()
    for split in SPLITS:
        rows = scan.rows.get(split, [])
        count = -(-len(rows) // stored.shard_records)
        for index in range(count):
            name = f"{source.name}-{split}.array_record-{index:05d}-of-{count:05d}"  # the TFDS file name template
            first = index * stored.shard_records
            part = Part(rows, range(first, min(first + stored.shard_records, len(rows))))
            task = ShardTask(light, part, out / name, out / _STATE / name, *how)
            tasks.setdefault(split, []).append(task)
    return tasks


def _write_shards(
    tasks: Mapping[str, Sequence[ShardTask]], workers: int, shown: bool
) -> dict[str, list[tuple[str, ShardResult]]]:
    """Results with their file names, per split, in order."""
    flat = [task for split in tasks.values() for task in split]
    with Progress("records", sum(len(task.rows) for task in flat), "images", shown=shown) as progress:
        results = run_tasks(write_shard, flat, workers, progress)
        return {split: [(task.path.name, next(results)) for task in tasks[split]] for split in tasks}


def _split_entries(
    name: str, scan: Scan, results: Mapping[str, Sequence[tuple[str, ShardResult]]]
) -> dict[str, SplitEntry]:
    """Adds up what the tables and the workers dropped; a DataError where that is not the input, or no row of data set `name` became a record."""
    entries = {}
    for split in (*SPLITS, NO_SPLIT):
        shards = [result for _, result in results.get(split, [])]
        dropped = sum((Counter(shard.dropped) for shard in shards), Counter(scan.dropped.get(split, {})))
        kept = sum(shard.records for shard in shards)
        if not kept and not dropped:
            continue
        entries[split] = SplitEntry(
            input_rows=kept + dropped.total(),
            records=kept,
            dropped=dict(sorted(dropped.items())),
            flags=dict(sorted(sum((Counter(shard.flags) for shard in shards), Counter()).items())),
            members=set_hash(shard.members for shard in shards),
            shards=tuple(ShardEntry(file, r.records, r.bytes, r.sha256) for file, r in results.get(split, [])),
        )
    told = sum(entry.input_rows for entry in entries.values())
    if told != scan.input_rows:
        found = f"{name}: {told} rows are accounted for and {scan.input_rows} were read"
        raise DataError(
            f"{found}; what is noted of finished shards is damaged: delete the build's folder and build again"
        )
    if not any(entry.records for entry in entries.values()):
        raise DataError(f"{name}: none of {scan.input_rows} input rows became a record ({_reasons(entries)})")
    return entries


def _subsets(
    results: Mapping[str, Sequence[tuple[str, ShardResult]]],
) -> tuple[dict[str, SubsetEntry], dict[str, list[int]]]:
    """What the manifest says of each subset, and the indices of its records in their split."""
    members: dict[str, list[str]] = {}
    indices: dict[str, list[int]] = {}
    split_of: dict[str, str] = {}
    for split, shards in results.items():
        first = 0
        for _, shard in shards:
            for name, own in shard.subsets.items():
                if split_of.setdefault(name, split) != split:
                    raise ValueError(f"subset '{name}' spans splits; expected rows of one split")
                members.setdefault(name, []).append(shard.subset_members[name])
                indices.setdefault(name, []).extend(first + index for index in own)
            first += shard.records
    entries = {
        name: SubsetEntry(split_of[name], len(indices[name]), set_hash(members[name])) for name in sorted(indices)
    }
    return entries, indices


def _reasons(splits: Mapping[str, SplitEntry]) -> str:
    total = sum((Counter(split.dropped) for split in splits.values()), Counter())
    return ", ".join(f"{reason} {count}" for reason, count in total.most_common()) or "the tables are empty"


def _publish(
    manifest: Manifest,
    results: Mapping[str, Sequence[tuple[str, ShardResult]]],
    subsets: Mapping[str, Sequence[int]],
    out: Path,
) -> None:
    """Moves the metadata into place, the manifest last: a folder with a manifest is a whole build."""
    draft = out / _STATE / "metadata"
    draft.mkdir(exist_ok=True)
    _tfds_info(manifest, out).write_to_directory(str(draft))
    with (draft / QUARANTINE_NAME).open("wb") as whole:
        for name, _ in (shard for shards in results.values() for shard in shards):
            with quarantine_file(out / _STATE / name).open("rb") as part:
                shutil.copyfileobj(part, whole)
    write_subsets(subsets, draft)
    write_manifest(manifest, draft)
    for path in sorted(draft.iterdir(), key=lambda path: path.name == MANIFEST_NAME):
        os.replace(path, out / path.name)
    draft.rmdir()


def _tfds_info(manifest: Manifest, out: Path) -> tfds.core.DatasetInfo:
    identity = dataset_info.DatasetIdentity(
        name=manifest.name, version=tfds.core.Version(FEATURES), data_dir=str(out), module_name=__name__
    )
    info = tfds.core.DatasetInfo(
        builder=identity, features=records.features(manifest.label_names), disable_shuffling=True
    )
    info.set_file_format("array_record")
    infos = [
        tfds_splits.SplitInfo(
            name=name,
            shard_lengths=[shard.records for shard in split.shards],
            num_bytes=sum(shard.bytes for shard in split.shards),
        )
        for name, split in manifest.splits.items()
        if split.records
    ]
    info.set_splits(tfds_splits.SplitDict(infos))
    return info
