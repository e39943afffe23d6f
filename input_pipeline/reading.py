"""Reading the records of a build: whole splits for training, texts for the tokenizer, boxes for grounding."""

from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from input_pipeline import records
from input_pipeline.errors import DataError, UserError
from input_pipeline.manifest import SplitEntry, read_manifest


class SplitRecords:
    """Records of a split by index, images still encoded; pickles small and reopens its shards where it is used."""

    def __init__(self, directory: Path, split: str):
        """Opens a split whose shards are known to be there; `open_split` checks that first."""
        builder = tfds.builder_from_directory(directory)
        decoders = {"image": tfds.decode.SkipDecoding()}
        # TFDS hides the signature behind a decorator.
        self._source = builder.as_data_source(split, decoders=decoders)  # pyright: ignore[reportCallIssue]
        self._name = f"{directory}: split '{split}'"

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> records.Record:
        try:
            return records.decode(self._source[index])
        except RuntimeError:  # a checksum of ArrayRecord
            raise DataError(f"{self._name}: record {index} is damaged; run the same `msfl data build` again") from None

    def __iter__(self) -> Iterator[records.Record]:
        return (self[index] for index in range(len(self)))


def open_split(directory: Path | str, split: str) -> SplitRecords:
    """The records of a split.

    Raises:
      UserError: no finished build, or no such split in it.
      DataError: a shard is missing or has another size than the manifest says.
    """
    _check_shards(Path(directory), _entry(directory, split))
    return SplitRecords(Path(directory), split)


def label_names(directory: Path | str) -> tuple[str, ...]:
    """Names of the labels of a build, in the order of a record's `labels`."""
    return read_manifest(directory).label_names


def record_count(directory: Path | str, split: str) -> int:
    """Number of records of a split."""
    return _entry(directory, split).records


def text_sentences(directory: Path | str, split: str) -> Iterator[str]:
    """All sentences of a split, report by report, as the tokenizer is trained on them; images are not decoded."""
    return (sentence for record in open_split(directory, split) for sentence in record.sentences)


def grounding_records(directory: Path | str, split: str) -> list[records.Record]:
    """The records of a split that have boxes: one phrase each, with its finding and boxes in pixels of the source image.

    Raises:
      DataError: none has boxes.
    """
    found = [record for record in open_split(directory, split) if len(record.boxes)]
    if not found:
        raise DataError(
            f"{directory}: no record of split '{split}' has boxes; expected a build of `msfl data build ms-cxr`"
        )
    return found


def _entry(directory: Path | str, split: str) -> SplitEntry:
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
