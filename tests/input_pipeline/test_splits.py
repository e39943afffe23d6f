"""Lists are read whatever their line ends, faults are said by line and never by name, and clean splits share nothing."""

import csv
import gzip
import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from input_pipeline import splits
from input_pipeline.errors import DataError, UserError
from input_pipeline.splits import disjoint, read_list, read_published

NAMES = st.text("abcXYZ0123456789./_-", min_size=1, max_size=12)
BREAKS = st.sampled_from(["\n", "\r\n", " \r\n", "\t\n", "\n\n", "\r\n  \r\n"])


@st.composite
def lists(draw):
    """Entries, and a text that holds them in some writer's habits."""
    count = draw(st.integers(0, 3))
    names = draw(st.lists(NAMES, min_size=1, max_size=6, unique=True))
    values = [draw(st.lists(st.sampled_from("01"), min_size=count, max_size=count)) for _ in names]
    text = draw(st.sampled_from(["", "\ufeff"])) + draw(st.sampled_from(["", "\r\n"]))
    for name, own in zip(names, values, strict=True):
        text += draw(st.sampled_from([" ", "  ", "\t"])).join([name, *own]) + draw(BREAKS)
    if draw(st.booleans()):
        text = text.rstrip()
    return count, [(name, tuple(map(float, own))) for name, own in zip(names, values, strict=True)], text


@given(lists())
@example((1, [("a.dcm", (1.0,)), ("b.dcm", (0.0,))], "a.dcm 1 \nb.dcm 0 \n"))
def test_a_list_is_read_whatever_its_line_ends_and_blanks(tmp_path_factory, written):
    count, expected, text = written
    path = tmp_path_factory.mktemp("list") / "train_list.txt"
    path.write_bytes(text.encode())
    found = read_list(path, labels=count)
    assert [(entry.name, entry.labels) for entry in found] == expected
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")
    assert all(lines[entry.line - 1].split()[0] == entry.name for entry in found)


@pytest.mark.parametrize(
    "content, error, message",
    [
        (b"", UserError, "l.txt: the file is empty; expected one image a line"),
        (b"\xef\xbb\xbf\r\n \r\n", UserError, "l.txt: the file is empty; expected one image a line"),
        (b"secret 0 1\nsecret2 0\n", UserError, "l.txt: line 2 has 1 labels; expected 2"),
        (b"secret 0 1\n\nsecret2 0 1 1\n", UserError, "l.txt: line 3 has 3 labels; expected 2"),
        (b"secret 0 1\nsecret2 0 2\n", DataError, "l.txt: line 2 has a label other than 0 and 1"),
        (b"secret 0 1.0\n", DataError, "l.txt: line 1 has a label other than 0 and 1"),
        (
            b"secret 0 1\r\nb 0 0\r\nsecret 0 1",
            DataError,
            "l.txt: the image of line 3 is on line 1 too; expected each image once",
        ),
        ("secret 0 1\n".encode("utf-16"), UserError, "l.txt: not text in UTF-8; expected one image a line"),
    ],
)
def test_a_wrong_list_is_refused_in_one_line_that_names_no_image(tmp_path, content, error, message):
    path = tmp_path / "l.txt"
    path.write_bytes(content)
    with pytest.raises(error) as refused:
        read_list(path, labels=2)
    assert str(refused.value) == message


def test_a_missing_list_names_the_folder(tmp_path):
    with pytest.raises(UserError, match=r"^l\.txt: no such file in .*; expected a list of images$"):
        read_list(tmp_path / "l.txt", labels=0)
    with pytest.raises(UserError, match="Is a directory; expected a list of images"):
        read_list(tmp_path, labels=0)


def write_lists(folder, suffix=".txt", **names):
    for name, lines in names.items():
        (folder / f"{name}{suffix}").write_text("".join(f"{line}\n" for line in lines))


def test_published_lists_are_named_as_the_design_names_splits(tmp_path):
    write_lists(tmp_path, ".csv", train_list=["a 1", "b 0"], val_list=["c 0"], test_list=["d 1"], train_1=["b 0"])
    published = read_published(tmp_path, labels=1)
    assert published.splits == {"train": ("a", "b"), "validate": ("c",), "test": ("d",)}
    assert published.subsets == {"train_1": ("b",)}
    assert published.labels == {"a": (1.0,), "b": (0.0,), "c": (0.0,), "d": (1.0,)}


def test_what_is_wrong_with_a_folder_of_lists_is_said(tmp_path):
    write_lists(tmp_path, train_list=["a 1", "b 0"], val_list=["c 0"], train_10=["a 1", "b 1"])
    with pytest.raises(UserError, match=r"no test_list\.txt; expected train_list, val_list and test_list"):
        read_published(tmp_path, labels=1)
    write_lists(tmp_path, test_list=["d 1"])
    with pytest.raises(DataError, match=r"^train_10: the labels of line 2 differ from another list's$"):
        read_published(tmp_path, labels=1)
    with pytest.raises(UserError, match=r"^train_list\.txt: line 1 has 1 labels; expected 14$"):
        read_published(tmp_path, labels=14)


ROOT = "CheXpert-v1.0-small"


def chexpert(patient, folder="train", root=ROOT, view="view1_frontal"):
    return f"{root}/{folder}/patient{patient:05d}/study1/{view}.jpg"


def test_the_missing_training_list_is_the_table_without_the_validation_list(tmp_path):
    table = [chexpert(patient, root="CheXpert-v1.0") for patient in range(6)]
    write_lists(tmp_path, val_list=[f"{chexpert(2)} 1", f"{chexpert(4)} 0"], test_list=[f"{chexpert(9, 'valid')} 1"])
    published = read_published(tmp_path, labels=1, table=table)
    assert published.splits["train"] == tuple(chexpert(patient) for patient in (0, 1, 3, 5))
    with pytest.raises(UserError, match=r"no train_list\.txt"):
        read_published(tmp_path, labels=1)
    with pytest.raises(DataError, match=r"^train\.csv: 1 of 2 images of val_list are not in it"):
        read_published(tmp_path, labels=1, table=table[:4])
    with pytest.raises(DataError, match=r"^train\.csv: 1 images are listed twice"):
        read_published(tmp_path, labels=1, table=[*table, chexpert(0)])
    with pytest.raises(DataError, match=r"^train\.csv: image 7: the image's path is none of CheXpert's"):
        read_published(tmp_path, labels=1, table=[*table, "secret.jpg"])


SPLITS = st.fixed_dictionaries(
    {split: st.lists(st.sampled_from("abcdefghij"), unique=True, max_size=8) for split in ("train", "validate", "test")}
)


@given(SPLITS, st.permutations(["train", "validate", "test"]))
def test_each_image_stays_in_the_first_split_of_the_order_that_has_it(given_splits, order):
    kept = disjoint(given_splits, order=order)
    for name in set().union(*given_splits.values()):
        home = next(split for split in order if name in given_splits[split])
        assert [split for split in order if name in kept[split]] == [home]
    for split, names in kept.items():
        assert list(names) == [name for name in given_splits[split] if name in names]
    assert list(kept) == list(given_splits)


@given(SPLITS)
def test_by_patient_no_patient_is_left_in_two_splits(given_splits):
    patients = {name: str("abcdefghij".index(name) // 3) for name in "abcdefghij"}
    kept = disjoint(given_splits, patient_of=patients)
    homes = {split: {patients[name] for name in names} for split, names in kept.items()}
    assert all(not homes[a] & homes[b] for a, b in itertools.combinations(homes, 2))
    assert list(kept["test"]) == given_splits["test"]
    assert homes["validate"] == {patients[name] for name in given_splits["validate"]} - homes["test"]


def test_unknown_splits_and_variants_are_refused(tmp_path):
    with pytest.raises(UserError, match="found a split 'val'; expected one of test, validate, train"):
        disjoint({"val": ["a"]})
    with pytest.raises(UserError, match="found splits 'cleaned'; expected 'as_published' or 'clean'"):
        read_published(tmp_path, labels=0, variant="cleaned")


def test_clean_subsets_lose_what_the_training_split_loses(tmp_path):
    write_lists(tmp_path, train_list="abcdef", val_list="bxt", test_list="ct", train_10="abc", train_1="b")
    clean = read_published(tmp_path, labels=0, variant="clean")
    assert clean.splits == {"train": ("a", "d", "e", "f"), "validate": ("b", "x"), "test": ("c", "t")}
    assert clean.subsets == {"train_1": (), "train_10": ("a",)}
    same_patient = {name: {"d": "x", "e": "c"}.get(name, name) for name in "abcdefxt"}
    clean = read_published(tmp_path, labels=0, variant="clean", patient_of=same_patient)
    assert clean.splits["train"] == ("a", "f")


def test_as_published_the_test_images_that_no_other_list_has_are_a_subset(tmp_path):
    write_lists(tmp_path, train_list="abcdef", val_list="bxt", test_list="cytz", train_10="abc")
    published = read_published(tmp_path, labels=0)
    assert published.splits == {"train": tuple("abcdef"), "validate": tuple("bxt"), "test": tuple("cytz")}
    assert published.subsets == {"train_10": tuple("abc"), "test_clean": ("y", "z")}
    assert published.clean() == read_published(tmp_path, labels=0, variant="clean")
    same_patient = {name: {"d": "y"}.get(name, name) for name in "abcdefxtyz"}
    assert read_published(tmp_path, labels=0, patient_of=same_patient).subsets["test_clean"] == ("z",)


@pytest.mark.parametrize("test", ["yz", "ct"], ids=["all clean", "none clean"])
def test_there_is_no_such_subset_where_it_would_be_all_or_nothing(tmp_path, test):
    write_lists(tmp_path, train_list="abc", val_list="bt", test_list=test)
    assert read_published(tmp_path, labels=0).subsets == {}


@pytest.mark.parametrize(
    "patient_of, name, patient",
    [
        (splits.nih_patient, "00013774_026.png", "00013774"),
        (splits.nih_patient, "images_001/images/00013774_026.png", "00013774"),
        (splits.chexpert_patient, chexpert(42), "patient00042"),
        (splits.chexpert_patient, "valid/patient64541/study1/view1_frontal.jpg", "patient64541"),
        (splits.rsna_patient, "stage_2_train_images/0004cfab-14fd.dcm", "0004cfab-14fd"),
    ],
)
def test_the_patient_is_read_from_the_name(patient_of, name, patient):
    assert patient_of(name) == patient


@pytest.mark.parametrize("name", ["13774_026.png", "00013774_026.jpg", "a00013774_026.png", "", "train/patient1/x.jpg"])
def test_a_name_of_another_data_set_is_refused_without_quoting_it(name):
    for patient_of in (splits.nih_patient, splits.chexpert_patient):
        with pytest.raises(DataError) as error:
            patient_of(name)
        assert not name or name not in str(error.value)


def test_official_nih_lists_are_read_and_those_of_a_paper_refused(tmp_path):
    write_lists(tmp_path, train_val_list=["00000001_000.png", "00000002_000.png"], test_list=["00000003_000.png"])
    expected = {"train": ("00000001_000.png", "00000002_000.png"), "test": ("00000003_000.png",)}
    assert {split: tuple(names) for split, names in splits.official_nih(tmp_path).items()} == expected
    write_lists(tmp_path, test_list=["00000003_000.png 0 1"])
    with pytest.raises(UserError, match=r"^test_list\.txt: line 1 has 2 labels; expected 0$"):
        splits.official_nih(tmp_path)


def raw_names(path):
    """Names of a list, by nothing but splitting its bytes."""
    return [line.split()[0].decode() for line in path.read_bytes().splitlines() if line.strip()]


@pytest.mark.parametrize(
    "folder, labels, sizes",
    [
        ("NIH_ChestX-ray", 14, (78468, 11219, 22433, 785, 7847)),
        ("RSNA_Pneumonia", 1, (25184, 1500, 3000, 251, 2518)),
        ("SIIM-ACR_Pneumothorax", 0, (7969, 1898, 1904, 80, 797, 1286)),
    ],
)
def test_real_lists_are_read_whole(real_data, folder, labels, sizes):
    folder = real_data / "splits" / folder
    published = read_published(folder, labels=labels)
    found = {**published.splits, **published.subsets}
    assert tuple(len(names) for names in found.values()) == sizes
    for key, name in {"train": "train_list", "validate": "val_list", "test": "test_list", "train_1": "train_1"}.items():
        assert list(found[key]) == raw_names(folder / f"{name}.txt")
    everything = set().union(*found.values())
    assert len(published.labels) == (len(everything) if labels else 0)


def test_clean_siim_splits_are_disjoint_and_lose_no_image(real_data):
    folder = real_data / "splits" / "SIIM-ACR_Pneumothorax"
    written = {key: set(raw_names(folder / f"{key}_list.txt")) for key in ("train", "val", "test")}
    clean = read_published(folder, labels=0, variant="clean")
    train, validate, test = (set(clean.splits[split]) for split in ("train", "validate", "test"))
    assert test == written["test"]
    assert validate == written["val"] - written["test"]
    assert train == written["train"] - written["val"] - written["test"]
    assert (len(train), len(validate), len(test)) == (6997, 1774, 1904)
    assert len(train | validate | test) == 10675
    published = read_published(folder, labels=0)
    assert set(published.subsets["test_clean"]) == written["test"] - written["train"] - written["val"]
    assert len(published.subsets["test_clean"]) == 1286
    assert set(clean.subsets["train_1"]) <= set(clean.subsets["train_10"]) <= train
    assert (len(clean.subsets["train_1"]), len(clean.subsets["train_10"])) == (73, 693)


def test_siim_lists_of_both_suffixes_are_the_same(real_data):
    folder = real_data / "splits" / "SIIM-ACR_Pneumothorax"
    for name in ("train_list", "val_list", "test_list"):
        assert read_list(folder / f"{name}.csv", labels=0) == read_list(folder / f"{name}.txt", labels=0)


def test_nih_labels_stand_in_the_named_order(real_data):
    """Each column of the lists agrees best with the official table's finding of its name, though that was corrected since."""
    published = read_published(real_data / "splits" / "NIH_ChestX-ray", labels=14)
    with gzip.open(real_data / "nih_chestxray14" / "Data_Entry_2017_v2020.csv.gz", "rt") as file:
        findings = {row["Image Index"]: set(row["Finding Labels"].split("|")) for row in csv.DictReader(file)}
    assert findings.keys() == published.labels.keys()
    totals = {}
    for place, name in enumerate(splits.NIH_LABEL_NAMES):
        positive = {image for image, labels in published.labels.items() if labels[place]}
        agreement = {}
        for finding in splits.NIH_LABEL_NAMES:
            listed = {image for image, found in findings.items() if finding in found}
            agreement[finding] = len(positive & listed) / len(positive | listed)
        assert max(agreement, key=agreement.__getitem__) == name
        totals[name] = len(positive)
    # Totals of the labels of 2017, which differ from the table's.
    assert {"Atelectasis": 11535, "Cardiomegaly": 2772, "Infiltration": 19870}.items() <= totals.items()


def test_chexpert_labels_stand_in_the_named_order(real_data):
    """The radiologists' positives of the 234 images, as published for CheXpert's valid.csv."""
    entries = read_list(real_data / "splits" / "CheXpert" / "test_list.txt", labels=5)
    totals = [int(sum(column)) for column in zip(*(entry.labels for entry in entries), strict=True)]
    positives = {
        "Atelectasis": 80,
        "Cardiomegaly": 68,
        "Consolidation": 33,
        "Edema": 45,
        "Pleural Effusion": 67,
    }
    assert dict(zip(splits.CHEXPERT_LABEL_NAMES, totals, strict=True)) == positives


def test_rsna_labels_are_those_of_the_official_table(real_data):
    published = read_published(real_data / "splits" / "RSNA_Pneumonia", labels=len(splits.RSNA_LABEL_NAMES))
    with (real_data / "rsna_pneumonia" / "stage_2_train_labels.csv").open() as file:
        targets = {row["patientId"]: float(row["Target"]) for row in csv.DictReader(file)}
    listed = {*published.splits["train"], *published.splits["validate"]}
    found = {splits.rsna_patient(name): published.labels[name] for name in listed}
    assert found == {image: (target,) for image, target in targets.items()}
    assert not {splits.rsna_patient(name) for name in published.splits["test"]} & targets.keys()
