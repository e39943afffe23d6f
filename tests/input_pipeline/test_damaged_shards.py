"""Whatever is wrong with the shards of a build is refused before training starts, or when a record is read, and names the shard."""

import json
import shutil

import numpy as np
import pytest

from input_pipeline import loader, reading
from input_pipeline.errors import DataError
from input_pipeline.manifest import read_manifest

TRAIN_SHARDS = [f"mimic_cxr-train.array_record-{number:05d}-of-00004" for number in range(4)]
DAMAGES = {
    "missing": lambda shard, _: shard.unlink(),
    "empty": lambda shard, _: shard.write_bytes(b""),
    "cut by a byte": lambda shard, data: shard.write_bytes(data[:-1]),
    "cut in half": lambda shard, data: shard.write_bytes(data[: len(data) // 2]),
    "a byte more": lambda shard, data: shard.write_bytes(data + b"\0"),
    "zeros": lambda shard, data: shard.write_bytes(bytes(len(data))),
    "zeros at its end": lambda shard, data: shard.write_bytes(data[: len(data) - 65536] + bytes(65536)),
    "a folder": lambda shard, _: (shard.unlink(), shard.mkdir()),
}


@pytest.mark.parametrize("name", TRAIN_SHARDS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_named_before_training_starts(mimic_build, batch_spec, tmp_path, damage, name):
    copy = shutil.copytree(mimic_build, tmp_path / "copy")
    DAMAGES[damage](copy / name, (copy / name).read_bytes())
    with pytest.raises(DataError, match=f"{name}: the shard .*; run the same `msfl data build` again") as error:
        loader.train_batches(copy, batch_spec, batch_size=4, seed=0)
    assert error.value.exit_code == 3


def test_the_shard_of_another_number_of_records_is_refused(mimic_build, batch_spec, tmp_path):
    copy = shutil.copytree(mimic_build, tmp_path / "copy")
    sizes = [shard.records for shard in read_manifest(copy).splits["train"].shards]
    other = next(number for number, size in enumerate(sizes) if size != sizes[0])
    shutil.copy(copy / TRAIN_SHARDS[other], copy / TRAIN_SHARDS[0])
    with pytest.raises(DataError, match=f"{TRAIN_SHARDS[0]}: the shard"):
        loader.train_batches(copy, batch_spec, batch_size=4, seed=0)


@pytest.mark.parametrize(
    "lengths", [["4", "3", "4"], ["4", "3", "4", "1", "1"], ["4", "3", "5", "0"], [], None, "no JSON"]
)
def test_metadata_of_other_shards_than_the_manifest_has_are_refused(mimic_build, batch_spec, tmp_path, lengths):
    copy = shutil.copytree(mimic_build, tmp_path / "copy")
    path = copy / "dataset_info.json"
    values = json.loads(path.read_text())
    (train,) = (split for split in values["splits"] if split["name"] == "train")
    assert train["shardLengths"] == ["4", "3", "4", "1"]
    if lengths is None:
        values["splits"].remove(train)
    train["shardLengths"] = lengths
    path.write_text("{" if lengths == "no JSON" else json.dumps(values))
    with pytest.raises(DataError, match=r"dataset_info\.json names . shards of 'train', and the manifest 4") as error:
        loader.train_batches(copy, batch_spec, batch_size=4, seed=0)
    assert error.value.exit_code == 3


def test_a_damaged_record_is_named_by_its_shard_and_its_place_in_the_split(mimic_build, tmp_path):
    copy = shutil.copytree(mimic_build, tmp_path / "copy")
    shard = copy / TRAIN_SHARDS[2]  # behind two of 4 and 3 records
    data = shard.read_bytes()
    middle = int(np.flatnonzero(np.frombuffer(data[:65536], np.uint8))[-1]) // 2
    shard.write_bytes(data[:middle] + bytes(byte ^ 255 for byte in data[middle : middle + 9]) + data[middle + 9 :])
    records = reading.open_split(copy, "train")
    told = {}
    for place in range(len(records)):
        try:
            assert records[place].image
        except DataError as error:
            told[place] = str(error)
    assert 1 <= len(told) < 4
    assert set(told) < set(range(7, 11))
    for place, message in told.items():
        assert f"{shard}: record {place} of 'train' is damaged; run the same" in message
        with pytest.raises(DataError, match=f"{shard.name}: record {place} of 'train' is damaged"):
            records.at(np.array([11, place]))[1]
