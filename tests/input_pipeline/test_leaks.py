"""Overlaps are counted exactly and said in counts alone; refused unless allowed; within lists and across builds."""

import dataclasses
import itertools
import shutil
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline import build_keys, leaks, splits
from input_pipeline.build import build, read_manifest
from input_pipeline.build_keys import SplitKeys, keys_file, read_keys
from input_pipeline.datasets.mimic_cxr import MimicCxr
from input_pipeline.errors import DataError, UserError
from input_pipeline.leaks import compare_builds, find_overlaps, published_overlaps, refuse_overlaps, refuse_shared
from input_pipeline.reading import SplitRecords


@given(st.dictionaries(st.sampled_from(["train", "validate", "test"]), st.lists(st.integers(0, 30), max_size=12)))
def test_counts_equal_a_loop_over_pairs(numbers):
    named = {split: [f"{number // 3}_{number}" for number in found] for split, found in numbers.items()}
    overlaps = find_overlaps(named, patient_of=lambda name: name.split("_")[0])
    assert len(overlaps.pairs) == len(named) * (len(named) - 1) // 2
    for first, second in itertools.permutations(named, 2):
        pair = overlaps.between(first, second)
        images = [name for name in dict.fromkeys(named[first]) if name in named[second]]
        patients = {a // 3 for a in numbers[first] for b in numbers[second] if a // 3 == b // 3}
        assert (pair.images, pair.patients) == (len(images), len(patients))
    assert all(pair.shared for pair in overlaps.found)
    assert sum(not pair.shared for pair in overlaps.pairs) == len(overlaps.pairs) - len(overlaps.found)


LEAKY = {"train": ["a1", "a2", "b1", "c1"], "validate": ["a2", "b2"], "test": ["d1"]}


def test_overlaps_are_said_in_counts():
    assert str(find_overlaps(LEAKY, patient_of=lambda name: name[0])).splitlines() == [
        "train and validate share 1 image and 2 patients",
        "train and test share 0 images and 0 patients",
        "validate and test share 0 images and 0 patients",
    ]
    many = {"train": [str(i) for i in range(2000)], "test": [str(i) for i in range(1200)]}
    assert str(find_overlaps(many, patient_of=None)) == "train and test share 1,200 images"


def test_overlaps_are_refused_in_one_line_unless_allowed():
    overlaps = find_overlaps(LEAKY, patient_of={name: name[0] for names in LEAKY.values() for name in names})
    with pytest.raises(DataError) as error:
        refuse_overlaps("siim_acr", overlaps)
    assert error.value.exit_code == 3
    assert str(error.value) == (
        "siim_acr: train and validate share 1 image and 2 patients; expected nothing shared. "
        "Use the clean variant, or pass --allow-leak to go on"
    )
    refuse_overlaps("siim_acr", overlaps, allow_leak=True)
    refuse_overlaps("siim_acr", find_overlaps(splits.disjoint(LEAKY), patient_of=None))


def test_shared_patients_alone_are_refused():
    overlaps = find_overlaps({"train": ["a1"], "test": ["a2"]}, patient_of=lambda name: name[0])
    with pytest.raises(DataError, match="train and test share 0 images and 1 patient; "):
        refuse_overlaps("x", overlaps)


def test_an_image_of_no_known_patient_is_named_by_its_place():
    with pytest.raises(DataError) as error:
        find_overlaps({"train": ["secret1", "secret2"]}, patient_of={"secret1": "p"})
    assert str(error.value) == "train: the patient of image 2 is not known"
    with pytest.raises(DataError) as error:
        find_overlaps({"train": ["00000001_000.png", "secret"]}, patient_of=splits.nih_patient)
    assert str(error.value).startswith("train: image 2: the image's name is none of NIH ChestX-ray14's")


def published(**names):
    found = {key: tuple(value) for key, value in names.items()}
    return splits.PublishedSplits(
        {key: found[key] for key in ("train", "validate", "test")}, {"train_1": found["subset"]}, {}
    )


def test_a_subset_may_lie_in_the_training_split_and_nowhere_else():
    overlaps = published_overlaps(published(train="abc", validate="de", test="fg", subset="ad"), patient_of=None)
    assert [str(pair) for pair in overlaps.found] == ["validate and train_1 share 1 image"]
    with pytest.raises(KeyError):
        overlaps.between("train", "train_1")


def test_the_clean_part_of_a_test_split_is_no_published_list_of_its_own():
    lists = published(train="abc", validate="cde", test="afg", subset="ab")
    assert lists.with_clean_test().subsets.keys() == {"train_1", "test_clean"}
    plain, more = (published_overlaps(one, patient_of=None) for one in (lists, lists.with_clean_test()))
    assert more == plain


def counts(overlaps, second, firsts=("validate", "test"), *, kind="images"):
    return [getattr(overlaps.between(first, second), kind) for first in firsts]


def test_siim_lists_share_what_is_known_of_them(real_data):
    lists = splits.read_published(real_data / "splits" / "SIIM-ACR_Pneumothorax", labels=0)
    overlaps = published_overlaps(lists, patient_of=None)
    assert str(overlaps).splitlines()[:3] == [
        "train and validate share 478 images",
        "train and test share 494 images",
        "validate and test share 124 images",
    ]
    assert counts(overlaps, "train_1") == [3, 4]
    assert counts(overlaps, "train_10") == [55, 49]
    with pytest.raises(DataError, match="train and test share 494 images"):
        refuse_overlaps("siim_acr", overlaps)
    refuse_overlaps("siim_acr", published_overlaps(lists.clean(), patient_of=None))


def test_nih_lists_share_nothing(real_data):
    lists = splits.read_published(real_data / "splits" / "NIH_ChestX-ray", labels=14)
    overlaps = published_overlaps(lists, patient_of=splits.nih_patient)
    assert len(overlaps.pairs) == 7
    assert not overlaps.found


def test_rsna_lists_share_nothing(real_data):
    lists = splits.read_published(real_data / "splits" / "RSNA_Pneumonia", labels=1)
    overlaps = published_overlaps(lists, patient_of=splits.rsna_patient)
    assert len(overlaps.pairs) == 7
    assert not overlaps.found


def test_chexpert_lists_share_patients(real_data):
    folder = real_data / "splits" / "CheXpert"
    names = {
        key: [e.name for e in splits.read_list(folder / f"{key}.txt", labels=5)] for key in ("val_list", "train_10")
    }
    known = list(dict.fromkeys([*names["val_list"], *names["train_10"]]))  # of train.csv, which is not among the files
    lists = splits.read_published(folder, labels=5, table=known)
    overlaps = published_overlaps(lists, patient_of=splits.chexpert_patient)
    assert counts(overlaps, "train_10", kind="patients") == [1837, 0]
    assert counts(overlaps, "train_1", kind="patients") == [315, 0]
    assert counts(overlaps, "train") == counts(overlaps, "train_1") == counts(overlaps, "train_10") == [0, 0]
    with pytest.raises(DataError, match="validate and train_10 share 0 images and 1,837 patients"):
        refuse_overlaps("chexpert", overlaps)
    clean = lists.clean(splits.chexpert_patient)
    refuse_overlaps("chexpert", published_overlaps(clean, patient_of=splits.chexpert_patient))
    assert clean.splits["validate"] == lists.splits["validate"]


@pytest.fixture(scope="module")
def other_build(layout, mimic_build, tmp_path_factory):
    """The studies of `mimic_build`, under the same salt, with patients 0, 1 and 2 (of its training split) to be tested on."""
    root = layout.write_mimic(tmp_path_factory.mktemp("other"))
    rows = layout.table_rows()["split"]
    moved = {item.subject for item in layout.studies() if item.patient < 3}
    for row in rows:
        row["split"] = "test" if row["subject_id"] in moved else row["split"]
    layout.write_table(root / "mimic-cxr-2.0.0-split.csv.gz", rows)
    out = mimic_build.parent / "other"
    build(MimicCxr(root, root), out, short_side=32, workers=1, progress=False)
    return out


def test_builds_are_compared_by_their_keys(layout, mimic_build, other_build):
    train, other = {}, {}
    for item in layout.studies():
        if item.study in (4, 6, 12, 14):  # without text or image
            continue
        if item.split == "train":
            train[item.image] = item.subject
        split = "test" if item.patient < 3 else item.split
        other.setdefault(split, {})[item.image] = item.subject
    comparison = compare_builds(mimic_build, other_build)
    assert comparison.comparable
    for split in ("train", "validate", "test"):
        pair = comparison.overlaps.between("pretraining", split)
        assert pair.images == len(train.keys() & other[split].keys())
        assert pair.patients == len(set(train.values()) & set(other[split].values()))
    assert comparison.overlaps.between("pretraining", "test").images == 5
    with pytest.raises(DataError) as error:
        refuse_shared(comparison)
    assert str(error.value) == (
        "pretraining and test share 5 images and 3 patients; expected nothing shared. "
        "Train without these patients, or pass --allow-leak to go on"
    )
    refuse_shared(comparison, allow_leak=True)
    refuse_shared(comparison, splits=["validate"])


def test_a_build_shares_nothing_with_its_own_test_split(mimic_build):
    comparison = compare_builds(mimic_build, mimic_build)
    assert [pair.second for pair in comparison.overlaps.found] == ["train"]
    refuse_shared(comparison)


def test_builds_of_two_salts_are_not_compared(mimic_build, mimic_root, tmp_path):
    build(MimicCxr(mimic_root, mimic_root), tmp_path / "mimic", short_side=32, workers=1, progress=False)
    comparison = compare_builds(mimic_build, tmp_path / "mimic")
    assert not comparison.comparable
    assert str(comparison).startswith("not comparable: the builds have keys of different salts")
    with pytest.raises(UserError, match="make both builds below one data root, or pass --allow-leak"):
        refuse_shared(comparison)
    refuse_shared(comparison, allow_leak=True)


def test_a_folder_without_a_build_is_said(mimic_build, tmp_path):
    with pytest.raises(UserError, match="no finished build"):
        compare_builds(mimic_build, tmp_path)


def record(patient, image, **more):
    return SimpleNamespace(patient_key=patient, image_key=image, **more)


@pytest.fixture
def fake_builds(monkeypatch):
    """Makes `leaks` read records from a dictionary {(folder, split): records}."""

    def install(found):
        def manifest(folder):
            names = tuple(split for place, split in found if place == folder)
            return SimpleNamespace(key_check="same", readable_splits=lambda: names, dataset=f"data set {folder}")

        monkeypatch.setattr(leaks, "read_manifest", manifest)
        monkeypatch.setattr(leaks, "keys_file", lambda *_: None)
        monkeypatch.setattr(build_keys, "open_split", lambda folder, split: found[folder, split])

    return install


def test_the_same_pixels_under_another_identifier_are_the_same_image(fake_builds):
    train = [record("p1", "i1", pixel_key="x"), record("p2", "i2", pixel_key="y"), record("p2", "i2", pixel_key="y")]
    test = [record("q1", "j1", pixel_key="x"), record("q1", "j1", pixel_key="x"), record("q2", "j2", pixel_key="z")]
    fake_builds({("a", "train"): train, ("b", "test"): test})
    comparison = compare_builds("a", "b")
    assert comparison.pixels
    assert str(comparison) == "pretraining and test share 1 image and 0 patients"
    with pytest.raises(DataError, match="share 1 image and 0 patients"):
        refuse_shared(comparison)


def test_builds_without_hashes_of_pixels_say_so_and_share_no_empty_hash(fake_builds):
    old = {"pixel_key": ""}
    fake_builds({("a", "train"): [record("p1", "i1", **old)], ("b", "test"): [record("q1", "j1", **old)]})
    comparison = compare_builds("a", "b")
    assert not comparison.pixels
    first, second = str(comparison).splitlines()
    assert first == "pretraining and test share 0 images and 0 patients"
    assert second.startswith("pixels not compared")
    refuse_shared(comparison)


def test_keys_are_kept_beside_a_build_and_read_again_only_when_its_shards_change(
    mimic_build, other_build, tmp_path, monkeypatch
):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    shutil.copytree(mimic_build, ours, ignore=shutil.ignore_patterns(".keys"))
    shutil.copytree(other_build, theirs, ignore=shutil.ignore_patterns(".keys"))
    first = compare_builds(ours, theirs)
    kept = sorted((theirs / ".keys").iterdir())
    assert [path.suffix for path in kept] == [".npz"] * 3
    monkeypatch.setattr(SplitRecords, "__getitem__", lambda self, index: pytest.fail("a record was read"))
    assert compare_builds(ours, theirs) == first
    monkeypatch.undo()
    kept[0].write_bytes(kept[0].read_bytes()[:-9])
    kept[1].write_bytes(kept[2].read_bytes()[:40] + b"x" * 40)
    assert compare_builds(ours, theirs) == first
    shutil.rmtree(ours / ".keys")
    (ours / ".keys").write_text("no folder")
    assert compare_builds(ours, theirs) == first
    names = {keys_file(folder, read_manifest(folder), "train").name for folder in (ours, theirs, mimic_build)}
    assert len(names) == 2


def test_many_records_are_read_with_an_estimate(mimic_build, monkeypatch, capfd):
    monkeypatch.setattr(build_keys, "_MANY", 1)
    read_keys(mimic_build, "train", None, progress=True)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("keys of records  12/12 records")
    read_keys(mimic_build, "train", None)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "first, second, told",
    [
        ("nih_chestxray14", "rsna_pneumonia", True),
        ("nih_boxes", "siim_acr", True),
        ("siim_acr", "rsna_pneumonia", True),
        ("nih_chestxray14", "nih_boxes", False),  # one set of names
        ("nih_chestxray14", "synthetic_siim_acr", False),
        ("mimic_cxr", "siim_acr", False),
        ("siim_acr", "siim_acr", False),
    ],
)
def test_builds_of_images_of_nih_under_other_names_are_said_to_be_unchecked(
    mimic_build, other_build, monkeypatch, first, second, told
):
    real = read_manifest
    names = {mimic_build: first, other_build: second}
    monkeypatch.setattr(leaks, "read_manifest", lambda folder: dataclasses.replace(real(folder), name=names[folder]))
    lines = str(compare_builds(mimic_build, other_build)).splitlines()
    assert any(line.startswith("not checked: ") and "NIH ChestX-ray14" in line for line in lines) == told
    assert len(lines) == 3 + told


@given(
    st.dictionaries(st.binary(min_size=16, max_size=16), st.one_of(st.just(b""), st.binary(min_size=16, max_size=16)))
)
def test_keys_survive_being_kept(tmp_path_factory, images):
    pixels_of = {image.hex(): key.hex() for image, key in images.items() if key != bytes(16)}
    keys = SplitKeys({image[::-1] for image in pixels_of}, pixels_of)
    file = tmp_path_factory.mktemp("keys") / ".keys" / "a.npz"
    build_keys._save(keys, file)
    assert build_keys._load(file) == keys
