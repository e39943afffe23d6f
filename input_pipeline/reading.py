"""Reading the records of a build: whole splits for training, texts for the tokenizer, boxes for grounding."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from input_pipeline import records
from input_pipeline.errors import DataError, UserError
from input_pipeline.manifest import SplitEntry, read_manifest


def open_split(directory: Path, split: str) -> Sequence[dict[str, Any]]:
    """The TFDS data source of a split, images still encoded; elements are for `records.decode`.

    Raises:
      UserError: no finished build, or no such split in it.
      DataError: a shard is missing or has another size than the manifest says.
    """
    directory = Path(directory)
    _check_shards(directory, _entry(directory, split))
    builder = tfds.builder_from_directory(builder_dir=directory)
    return builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})


def label_names(directory: Path) -> tuple[str, ...]:
    """Names of the labels of a build, in the order of a record's `labels`."""
    return read_manifest(directory).label_names


def record_count(directory: Path, split: str) -> int:
    """Number of records of a split."""
    return _entry(Path(directory), split).records


def read_records(directory: Path, split: str) -> Iterator[records.Record]:
    """All records of a split, in order."""
    source = open_split(directory, split)
    return (records.decode(source[index]) for index in range(len(source)))


def text_sentences(directory: Path, split: str) -> Iterator[str]:
    """All sentences of a split, report by report, as the tokenizer is trained on them; images are not decoded."""
    return (sentence for record in read_records(directory, split) for sentence in record.sentences)


def grounding_records(directory: Path, split: str) -> list[records.Record]:
    """The records of a split that have boxes: one phrase each, with its finding and boxes in pixels of the source image.

    Raises:
      DataError: none has boxes.
    """
    found = [record for record in read_records(directory, split) if len(record.boxes)]
    if not found:
        raise DataError(
            f"{directory}: no record of split '{split}' has boxes; expected a build of `msfl data build ms-cxr`"
        )
    return found


def _entry(directory: Path, split: str) -> SplitEntry:
    manifest = read_manifest(directory)
    if split not in manifest.readable_splits():
        names = ", ".join(manifest.readable_splits())
        raise UserError(f"{directory}: no split '{split}'; this build has {names}")
    return manifest.splits[split]


def _check_shards(directory: Path, entry: SplitEntry) -> None:
    """Sizes only: reading 26 GB for their hashes would delay every start, and ArrayRecord checks each chunk it reads."""
    for shard in entry.shards:
        path = directory / shard.file
        size = path.stat().st_size if path.is_file() else None
        if size != shard.bytes:
            found = "is missing" if size is None else f"has {size} bytes, expected {shard.bytes}"
            raise DataError(f"{path}: the shard {found}; run the same `msfl data build` again to repair it")
