"""Reading the records of a build: whole splits for training, texts for the tokenizer, boxes for grounding."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int64
from tensorflow_datasets.proto import tf_example_pb2

from input_pipeline import records
from input_pipeline.errors import DataError, UserError
from input_pipeline.manifest import Manifest, SplitEntry, read_manifest
from input_pipeline.subsets import read_subset

_LISTS = frozenset({"original_size", "sentences", "labels", "boxes"})  # other fields hold one value


class SplitRecords:
    """Records of a split by index, images still encoded; pickles small and reopens its shards where it is used."""

    def __init__(self, directory: Path, split: str, indices: Int64[np.ndarray, "n"] | None = None):
        """Opens a split whose shards are known to be there, or its records at `indices`; `open_split` checks first."""
        builder = tfds.builder_from_directory(directory)
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        # TFDS hides the signature behind a decorator.
        self._source = builder.as_data_source(split, deserialize_method=raw)  # pyright: ignore[reportCallIssue]
        self._name = f"{directory}: split '{split}'"
        self._indices = indices

    def __len__(self) -> int:
        return len(self._source) if self._indices is None else len(self._indices)

    def __getitem__(self, index: int) -> records.Record:
        index = index if self._indices is None else int(self._indices[index])
        try:
            return records.decode(parse_example(self._source[index]))
        except RuntimeError:  # a checksum of ArrayRecord
            raise DataError(f"{self._name}: record {index} is damaged; run the same `msfl data build` again") from None

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
    example = tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue]  # made when the module is imported
    for name, feature in example.FromString(data).features.feature.items():
        kind = feature.WhichOneof("kind")
        values = getattr(feature, kind).value if kind else []
        fields[name] = values if name in _LISTS else values[0]
    return fields


def open_split(directory: Path | str, split: str) -> SplitRecords:
    """The records of a split, or of a subset such as "train_10".

    Raises:
      UserError: no finished build, or no such split in it.
      DataError: a shard is missing or has another size than the manifest says.
    """
    manifest = _manifest_with(directory, split)
    directory, whole = Path(directory), manifest.split_of(split)
    _check_shards(directory, manifest.splits[whole])
    if split == whole:
        return SplitRecords(directory, split)
    return SplitRecords(directory, whole, read_subset(directory, split, records=manifest.record_count(split)))


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
    """Sizes only: reading 26 GB for their hashes would delay every start, and ArrayRecord checks each chunk it reads."""
    for shard in entry.shards:
        path = directory / shard.file
        size = path.stat().st_size if path.is_file() else None
        if size != shard.bytes:
            found = "is missing" if size is None else f"has {size} bytes, expected {shard.bytes}"
            raise DataError(f"{path}: the shard {found}; run the same `msfl data build` again to repair it")
