"""Reading the records of a build: whole splits for training, texts for the tokenizer, boxes for grounding."""

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from jaxtyping import Int64
from tensorflow_datasets.proto import tf_example_pb2

from input_pipeline import records
from input_pipeline.errors import DataError, UserError
from input_pipeline.manifest import Manifest, ShardEntry, SplitEntry, read_manifest
from input_pipeline.subsets import read_subset

_TFDS_NAME = "dataset_info.json"
_LISTS = frozenset({"original_size", "sentences", "labels", "boxes"})  # other fields hold one value


class Pair(NamedTuple):
    """What pretraining reads of a record: the image, still encoded, and the sentences of the report."""

    image: bytes
    sentences: tuple[str, ...]


class SplitRecords:
    """Records of a split by index, images still encoded; pickles small and reopens its shards where it is used."""

    def __init__(
        self,
        directory: Path,
        split: str,
        shards: Sequence[ShardEntry],
        indices: Int64[np.ndarray, "n"] | None = None,
    ):
        """Opens a split whose shards are known to be there, or its records at `indices`; `open_split` checks first."""
        self._directory, self._split, self._shards, self._indices = directory, split, tuple(shards), indices
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        builder = tfds.builder_from_directory(directory)
        # TFDS hides the signature behind a decorator.
        self._source = builder.as_data_source(split, deserialize_method=raw)  # pyright: ignore[reportCallIssue]

    def at(self, indices: Int64[np.ndarray, "n"]) -> "SplitRecords":
        """The records at some places of the whole split."""
        return SplitRecords(self._directory, self._split, self._shards, indices)

    def __len__(self) -> int:
        return len(self._source) if self._indices is None else len(self._indices)

    def __getitem__(self, index: int) -> records.Record:
        return records.decode(parse_example(self._read(index)))

    def pair(self, index: int) -> Pair:
        """Two fields of a record alone, in half the time of all of them."""
        features = _features(self._read(index))
        sentences = features["sentences"].bytes_list.value
        return Pair(features["image"].bytes_list.value[0], tuple(sentence.decode() for sentence in sentences))

    def _read(self, index: int) -> bytes:
        """A record as it is stored; raises DataError where it is damaged."""
        index = index if self._indices is None else int(self._indices[index])
        try:
            return self._source[index]
        except (RuntimeError, OSError):  # the first is a checksum of ArrayRecord
            found = f"{self._directory / self._shard_of(index)}: record {index} of '{self._split}' is damaged"
            raise DataError(f"{found}; run the same `msfl data build` again") from None

    def _shard_of(self, index: int) -> str:
        """The file that holds a record of the split."""
        ends = itertools.accumulate(shard.records for shard in self._shards)
        return next((shard.file for shard, end in zip(self._shards, ends, strict=True) if index < end), "no shard")

    @property
    def indices(self) -> Int64[np.ndarray, "n"]:
        """Places of the records in their split."""
        return np.arange(len(self._source)) if self._indices is None else self._indices

    def __iter__(self) -> Iterator[records.Record]:
        return (self[index] for index in range(len(self)))


def parse_example(data: bytes) -> dict[str, Any]:
    """The fields of a serialised `tf.train.Example`, as `records.decode` takes them.

    TFDS's own parser, made for features of any shape, takes three times as long: a tenth of the loader's whole time.
    """
    fields = {}
    for name, feature in _features(data).items():
        kind = feature.WhichOneof("kind")
        values = getattr(feature, kind).value if kind else []
        fields[name] = values if name in _LISTS else values[0]
    return fields


def _features(data: bytes) -> Any:
    """The features of a serialised `tf.train.Example` by name; one that it lacks is empty."""
    example = tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue]  # made when the module is imported
    return example.FromString(data).features.feature


def open_split(directory: Path | str, split: str) -> SplitRecords:
    """The records of a split, or of a subset such as "train_10".

    Raises:
      UserError: no finished build, or no such split in it.
      DataError: a shard is missing, is no shard, or has another size than the manifest says; or TFDS's metadata name others.
    """
    manifest = _manifest_with(directory, split)
    directory, whole = Path(directory), manifest.split_of(split)
    entry = manifest.splits[whole]
    _check_shards(directory, entry)
    indices = None if split == whole else read_subset(directory, split, records=manifest.record_count(split))
    _check_metadata(directory, whole, entry)
    return SplitRecords(directory, whole, entry.shards, indices)


def label_names(directory: Path | str) -> tuple[str, ...]:
    """Names of the labels of a build, in the order of a record's `labels`."""
    return read_manifest(directory).label_names


def record_count(directory: Path | str, split: str) -> int:
    """Number of records of a split or subset."""
    return _manifest_with(directory, split).record_count(split)


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


def _manifest_with(directory: Path | str, split: str) -> Manifest:
    manifest = read_manifest(directory)
    if split not in manifest.readable_splits():
        names = ", ".join(manifest.readable_splits())
        raise UserError(f"{directory}: no split '{split}'; this build has {names}")
    return manifest


def _check_shards(directory: Path, entry: SplitEntry) -> None:
    """Sizes and ends alone: reading 26 GB for their hashes would delay every start, and ArrayRecord checks each chunk it reads."""
    for shard in entry.shards:
        path = directory / shard.file
        size = path.stat().st_size if path.is_file() else None
        found = (
            "is missing" if size is None else f"has {size} bytes, expected {shard.bytes}" if size != shard.bytes else ""
        )
        if not found and _length(path) != shard.records:
            found = "is damaged at its end, where the places of its records stand"
        if found:
            raise DataError(f"{path}: the shard {found}; run the same `msfl data build` again to repair it")


def _length(path: Path) -> int:
    """The number of records by the end of a shard; -1 where that is damaged, as of a lost block of a disk, which is zeros."""
    try:
        reader = ArrayRecordReader(str(path), "readahead_buffer_size:0,max_parallelism:0")
        length = reader.num_records()
        reader.close()  # where a damaged end shows at last
    except (RuntimeError, ValueError, OSError):
        return -1
    return length


def _check_metadata(directory: Path, split: str, entry: SplitEntry) -> None:
    """TFDS's metadata must name the shards of the manifest."""
    try:
        told = json.loads((directory / _TFDS_NAME).read_text())["splits"]
        lengths = next(list(map(int, found["shardLengths"])) for found in told if found["name"] == split)
    except (OSError, ValueError, TypeError, KeyError, StopIteration):
        lengths = []
    if lengths != [shard.records for shard in entry.shards]:
        found = (
            f"{directory}: {_TFDS_NAME} names {len(lengths)} shards of '{split}', and the manifest {len(entry.shards)}"
        )
        raise DataError(f"{found}, or others; run the same `msfl data build` again")
