"""One shard from its rows: decode, resize, encode, write under a temporary name, rename, and note beside it what it was made from."""

import dataclasses
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from jaxtyping import Float32, UInt8

from input_pipeline import dicom, images, records, tables
from input_pipeline.errors import DataError, is_full, no_space, written_to
from input_pipeline.keys import Keyring
from input_pipeline.passthrough import bare_jpeg
from input_pipeline.pool import Advance
from input_pipeline.sources import Dropped, ImageRow, Sentences, Source

_SIDECAR = 3  # of what is noted beside a shard: 3 has the rows that were left out in a file of their own


@dataclass(frozen=True)
class ShardTask:
    """All that a worker needs to write one shard; `stem` is where its sidecar and temporary files go, `settings` are the source's."""

    source: Source
    rows: Sequence[ImageRow]
    path: Path
    stem: Path
    keyring: Keyring
    short_side: int
    quality: int
    equalize: bool
    settings: Mapping[str, Any]
    versions: dict[str, str]


@dataclass(frozen=True)
class ShardResult:
    """What became of a shard's rows; also the sidecar, by which a later run knows that the shard is finished.

    Attributes:
      made_from: hash of everything that decides the bytes of the shard.
      members: hash of the set of its images, see `set_hash`.
      quarantine: hash of `quarantine_file`, the rows that were left out.
      subsets: by name, which of the shard's records belong to it, counted from 0; `subset_members` are their hashes.
    """

    made_from: str
    records: int
    bytes: int
    sha256: str
    dropped: dict[str, int]
    flags: dict[str, int]
    members: str
    quarantine: str
    subsets: dict[str, list[int]]
    subset_members: dict[str, str]


def write_shard(task: ShardTask, advance: Advance) -> ShardResult:
    """Writes a shard, or returns the earlier result where the file is there, whole, and made from the same.

    Args:
      task: rows that fail become counts.
      advance: called with the number of rows done since the last call, or kept from an earlier run.

    Raises:
      RetryError: the disk is full.
      UserError: pydicom or a decoder is not installed, a file of a row is a link out of the data set, or the folder cannot be written to.
    """
    cv2.setNumThreads(0)
    made_from = _made_from(task)
    finished = _finished(task, made_from)
    if finished is not None:
        advance(len(task.rows), kept=True)
        return finished
    draft = task.stem.with_name(f"{task.stem.name}.{os.getpid()}.tmp")
    try:
        with written_to(task.path.parent):
            counts = _write_records(task, draft, advance)
            size, digest = draft.stat().st_size, tables.file_hash(draft)
            result = ShardResult(made_from=made_from, bytes=size, sha256=digest, **counts)
            os.replace(draft, task.path)
            _write_sidecar(task, result)
    except (RuntimeError, ValueError) as error:  # ArrayRecord's
        if is_full(error):
            raise no_space(task.path.parent) from None
        raise
    return result


def quarantine_file(stem: Path) -> Path:
    """Where the rows that a shard left out are named, one JSON object a line with the key of the image and the reason."""
    return stem.with_name(f"{stem.name}.quarantine.jsonl")


def set_hash(members: Iterable[str]) -> str:
    """64 hex digits for a set of hex numbers, as a sum modulo 2^256: any order, and unions are sums again."""
    return f"{sum(int(member, 16) for member in members) % 2**256:064x}"


def make_record(task: ShardTask, row: ImageRow) -> tuple[records.Record, tuple[str, ...]]:
    """One record and what was odd about it; raises Dropped where there is no record to make."""
    return record_of(task, row, task.source.sentences(row))


def record_of(task: ShardTask, row: ImageRow, sentences: Sentences) -> tuple[records.Record, tuple[str, ...]]:
    """`make_record` with the row's sentences read already."""
    data = _image_file(task, row)
    image, jpeg, untouched = _images(task, data)
    height, width = image.shape
    boxes, clipped = clip_boxes(row.boxes, height, width)
    mask = task.source.mask(row, height, width)
    flags = {"clipped_box": clipped, "blank_image": image.min() == image.max(), "stored_as_released": untouched}
    record = records.Record(
        image=jpeg,
        original_size=(height, width),
        sentences=sentences.texts,
        labels=np.asarray(row.labels, np.float32),
        view=_view(row, data),
        study_key=task.keyring.key("study", row.study),
        patient_key=task.keyring.key("patient", row.patient),
        image_key=task.keyring.key("image", row.image),
        boxes=boxes,
        category=row.category,
        mask=b"" if mask is None else images.encode_mask(mask),
        pixel_key=task.keyring.key("pixels", f"{height}x{width}:{hashlib.sha256(image.tobytes()).hexdigest()}"),
    )
    return record, (*row.flags, *sentences.flags, *(name for name, raised in flags.items() if raised))


def _image_file(task: ShardTask, row: ImageRow) -> bytes:
    """The image file of a row; raises Dropped, also where the release's checksum is another."""
    data = task.source.image(row)
    if row.sha256 and hashlib.sha256(data).hexdigest() != row.sha256:
        raise Dropped("wrong_checksum")
    return data


def _view(row: ImageRow, data: bytes) -> str:
    """The view that the tables give, or else the one in the header of a DICOM file, if that is one of those that there are."""
    if row.view or not dicom.is_dicom(data):
        return row.view
    try:
        return str(dicom.header_values(data).get("view_position", ""))
    except DataError:  # of a header that is damaged elsewhere than the pixels' own description
        return ""


def _images(task: ShardTask, data: bytes) -> tuple[UInt8[np.ndarray, "H W"], bytes, bool]:
    """The decoded image of a file, the file that a record stores, and whether that is the source's own; raises Dropped."""
    try:
        image = images.decode_gray(data)
        own = bare_jpeg(data) if min(image.shape) == task.short_side and not task.equalize else None
        if own is not None:
            return image, own, True
        stored = images.equalize(image) if task.equalize else image
        return image, images.encode_jpeg(images.resize_short_side(stored, task.short_side), task.quality), False
    except DataError:
        raise Dropped("bad_image") from None


def clip_boxes(
    boxes: Iterable[tuple[float, float, float, float]], height: int, width: int
) -> tuple[Float32[np.ndarray, "K 4"], bool]:
    """Boxes (x, y, width, height) cut to an image of `height` x `width` pixels, and whether that changed any.

    A box wholly outside is left out; raises Dropped("box_outside_image") where nothing is left of any box.
    """
    given = np.asarray(list(boxes), np.float32).reshape(-1, 4)
    low = np.clip(given[:, :2], 0, (width, height))
    high = np.clip(given[:, :2] + given[:, 2:], 0, (width, height))
    clipped = np.concatenate([low, high - low], axis=1).astype(np.float32)
    inside = (clipped[:, 2:] > 0).all(axis=1)
    if len(given) and not inside.any():
        raise Dropped("box_outside_image")
    return clipped[inside], not np.array_equal(clipped, given)


def _write_records(task: ShardTask, draft: Path, advance: Advance) -> dict[str, Any]:
    """Writes what can be written, names the rest in the quarantine file, and returns the fields of ShardResult that are about rows."""
    dropped, flags, kept, subsets = Counter(), Counter(), [], {}
    left_out = task.stem.with_name(f"{task.stem.name}.{os.getpid()}.quarantine.tmp")
    writer = ArrayRecordWriter(str(draft), "group_size:1")  # each record can be read on its own
    with left_out.open("w") as quarantine:
        for row in task.rows:
            try:
                record, odd = make_record(task, row)
            except Dropped as error:
                dropped[error.reason] += 1
                line = {"image": task.keyring.key("image", row.image), "reason": error.reason}
                quarantine.write(json.dumps(line) + "\n")
            else:
                writer.write(records.encode(record))
                flags.update(odd)
                for name in row.subsets:
                    subsets.setdefault(name, []).append(len(kept))
                kept.append(task.keyring.member(f"{row.image}\n{row.phrase}"))
            advance(1)
    writer.close()
    os.replace(left_out, quarantine_file(task.stem))
    return {
        "records": len(kept),
        "dropped": dict(sorted(dropped.items())),
        "flags": dict(sorted(flags.items())),
        "members": set_hash(kept),
        "quarantine": tables.file_hash(quarantine_file(task.stem)),
        "subsets": subsets,
        "subset_members": {name: set_hash(kept[index] for index in indices) for name, indices in subsets.items()},
    }


def _made_from(task: ShardTask) -> str:
    """SHA-256 over options, rows, package versions, and sizes and times of the files behind the rows."""
    digest = hashlib.sha256()
    options = [_SIDECAR, task.source.name, task.settings, task.short_side, task.quality, task.equalize, task.versions]
    digest.update(json.dumps([*options, task.keyring.check], sort_keys=True).encode())
    for row in task.rows:
        stamps = [_stamp(path) for path in task.source.files(row)]
        digest.update(json.dumps([dataclasses.astuple(row), stamps]).encode())
    return digest.hexdigest()


def _stamp(path: Path) -> list[int]:
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def _finished(task: ShardTask, made_from: str) -> ShardResult | None:
    """The sidecar's result, if the shard beside it is the one that it speaks of."""
    try:
        result = ShardResult(**json.loads(_sidecar(task).read_text()))
        whole = task.path.stat().st_size == result.bytes and tables.file_hash(task.path) == result.sha256
        whole = whole and tables.file_hash(quarantine_file(task.stem)) == result.quarantine
    except (OSError, ValueError, TypeError):
        return None
    return result if whole and result.made_from == made_from else None


def _write_sidecar(task: ShardTask, result: ShardResult) -> None:
    draft = task.stem.with_name(f"{task.stem.name}.{os.getpid()}.json.tmp")
    draft.write_text(json.dumps(dataclasses.asdict(result), sort_keys=True) + "\n")
    os.replace(draft, _sidecar(task))


def _sidecar(task: ShardTask) -> Path:
    return task.stem.with_name(f"{task.stem.name}.json")
