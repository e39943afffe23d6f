"""SIIM's codes become the masks that a slow loop over columns draws, and go back to the same codes."""

import csv
import gzip
import shutil
from collections import Counter

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from input_pipeline.build import build
from input_pipeline.datasets.labelled import SplitPlan
from input_pipeline.datasets.siim_acr import SiimAcr, decode_runs, encode_runs
from input_pipeline.errors import DataError, UserError
from input_pipeline.images import decode_gray, decode_mask
from input_pipeline.reading import open_split

IMAGES = [f"1.2.276.0.7230010.3.1.4.8323329.{number}.1517875{number}.85081{number}" for number in range(101, 106)]
SIDE = 1024
ROWS = (
    (0, "-1"),
    (1, "0 3 1021 3"),
    (2, "1048570 6"),
    (1, "2048 10"),
    (3, "-1"),
)
masks = arrays.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)))
# A gap of 0 joins two runs; the encoder never writes it after the first, and the decoder must take it.
pairs = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 4)), max_size=6)


def slow_decode(code, height, width):
    """Walks the image pixel by pixel, down each column, and counts the numbers of the code down to 0."""
    mask = np.zeros((height, width), bool)
    numbers = [] if code == "-1" else [int(word) for word in code.split()]
    inside = False
    for x in range(width):
        for y in range(height):
            while numbers and numbers[0] == 0:
                numbers.pop(0)
                inside = not inside
            if not numbers:
                return mask
            mask[y, x] = inside
            numbers[0] -= 1
    return mask


def slow_encode(mask):
    """A pixel at a time, as the challenge describes it."""
    words, gap, length = [], 0, 0
    for value in [bool(mask[y, x]) for x in range(mask.shape[1]) for y in range(mask.shape[0])] + [False]:
        if value:
            length += 1
        elif length:
            words += [gap, length]
            gap, length = 1, 0
        else:
            gap += 1
    return " ".join(map(str, words)) or "-1"


@given(masks)
def test_a_mask_goes_to_a_code_and_back(mask):
    code = encode_runs(mask)
    assert code == slow_encode(mask)
    np.testing.assert_array_equal(decode_runs(code, *mask.shape), mask)


@given(pairs, st.integers(1, 7), st.integers(1, 7))
def test_a_code_gives_the_mask_of_a_loop_or_is_refused(runs, height, width):
    code = " ".join(f"{gap} {length}" for gap, length in runs) or "-1"
    if sum(map(sum, runs)) > height * width:
        with pytest.raises(DataError, match="the code ends at pixel"):
            decode_runs(code, height, width)
        return
    mask = decode_runs(code, height, width)
    np.testing.assert_array_equal(mask, slow_decode(code, height, width))
    np.testing.assert_array_equal(decode_runs(encode_runs(mask), height, width), mask)


def test_columns_are_counted_from_the_top_left_and_gaps_from_the_previous_end():
    np.testing.assert_array_equal(decode_runs("1 1 2 2", 2, 4), [[0, 0, 1, 0], [1, 0, 1, 0]])
    np.testing.assert_array_equal(decode_runs(" 0  8 ", 2, 4), np.ones((2, 4)))
    assert not decode_runs(" -1", 3, 2).any()
    assert encode_runs(np.ones((2, 4), bool)) == "0 8"


@given(st.one_of(st.text(max_size=12), st.lists(st.integers(-2, 40), max_size=5).map(lambda n: " ".join(map(str, n)))))
def test_any_text_is_a_code_or_refused_in_one_line(code):
    words = code.split()
    whole = bool(words) and all(word.isascii() and word.isdecimal() and len(word) < 10 for word in words)
    numbers = [int(word) for word in words] if whole else []
    if code.strip() == "-1" or (whole and len(words) % 2 == 0 and 0 not in numbers[1::2] and sum(numbers) <= 20):
        np.testing.assert_array_equal(decode_runs(code, 5, 4), slow_decode(code.strip(), 5, 4))
        return
    with pytest.raises(DataError, match=r"^the code [^\n]*$"):
        decode_runs(code, 5, 4)


@pytest.mark.parametrize(
    "code, message",
    [
        ("5", "the code has 1 numbers; expected pairs of gap and length, or -1"),
        ("1 2 3", "the code has 3 numbers"),
        ("", "the code has 0 numbers"),
        ("1 -2", "something other than whole numbers from 0"),
        ("-1 2", "something other than whole numbers from 0"),
        ("1.0 2", "something other than whole numbers"),
        ("1 ²", "something other than whole numbers"),
        ("0 " + "9" * 5000, "something other than whole numbers"),
        ("1 0", "a run without pixels"),
        ("1048000 577", "ends at pixel 1,048,577; expected at most 1,048,576"),
    ],
)
def test_a_wrong_code_names_its_row(tmp_path, code, message):
    with pytest.raises(DataError, match=message):
        decode_runs(code, SIDE, SIDE)
    write(tmp_path, (*ROWS, (4, code)))
    with pytest.raises(DataError) as error:
        SiimAcr(tmp_path).scan()
    assert str(error.value).startswith("train-rle.csv: row 7: the code ")
    assert message.split(";")[0] in str(error.value)
    assert IMAGES[4] not in str(error.value)
    assert "\n" not in str(error.value)


def write(root, rows=ROWS, header=("ImageId", " EncodedPixels"), space=" ", name="train-rle.csv"):
    """As released: the second column's name and values begin with a blank."""
    root.mkdir(exist_ok=True)
    with (root / name).open("w", newline="") as file:
        csv.writer(file).writerows([header, *((IMAGES[number], space + code) for number, code in rows)])
    return root


def test_rows_of_an_image_are_united_and_negatives_are_empty(tmp_path):
    source = SiimAcr(write(tmp_path))
    scan = source.scan()
    assert scan.input_rows == 4
    rows = {row.image: row for row in scan.rows["train"]}
    assert [rows[image].labels for image in IMAGES[:4]] == [(0.0,), (1.0,), (1.0,), (0.0,)]
    expected = slow_decode(ROWS[1][1], SIDE, SIDE) | slow_decode(ROWS[3][1], SIDE, SIDE)
    np.testing.assert_array_equal(source.mask(rows[IMAGES[1]], SIDE, SIDE), expected)
    assert np.argwhere(source.mask(rows[IMAGES[2]], SIDE, SIDE)).tolist() == [[y, 1023] for y in range(1018, 1024)]
    assert not source.mask(rows[IMAGES[0]], SIDE, SIDE).any()


@pytest.mark.parametrize("name", ["train-rle.csv", "stage_2_train.csv", "siim-pneumothorax-train-rle.csv"])
@pytest.mark.parametrize("space", ["", " "])
def test_both_spellings_and_names_of_the_table_give_the_same(tmp_path, name, space):
    found = SiimAcr(write(tmp_path / "a", name=name, header=("ImageId", space + "EncodedPixels"), space=space)).scan()
    expected = SiimAcr(write(tmp_path / "b")).scan()
    assert list(found.rows) == list(expected.rows) == ["train"]
    assert list(found.rows["train"]) == list(expected.rows["train"])


@pytest.mark.parametrize("row", [(0, "-1"), (0, "1 2"), (1, "-1"), (1, "2048 10")])
def test_rows_that_repeat_or_contradict_are_refused(tmp_path, row):
    first = next(other for other in ROWS if other[0] == row[0])
    with pytest.raises(
        DataError, match=rf"^train-rle.csv: row 7 repeats or contradicts row {2 + ROWS.index(first)} of its image$"
    ):
        SiimAcr(write(tmp_path, (*ROWS, row))).scan()


def test_an_identifier_that_cannot_name_a_file_is_refused(tmp_path):
    (tmp_path / "train-rle.csv").write_text("ImageId, EncodedPixels\n../x, -1\n")
    with pytest.raises(UserError, match="row 2 has an identifier that cannot name a file"):
        SiimAcr(tmp_path).scan()


def test_images_are_found_nested_flattened_or_converted(tmp_path):
    write(tmp_path)
    places = (
        f"dicom-images-train/1.2.3/4.5.6/{IMAGES[0]}.dcm",
        f"dicom-images-test/1.2.4/4.5.7/{IMAGES[1]}.dcm",
        f"images/{IMAGES[2]}.png",
        f"{IMAGES[3]}.dcm",
    )
    for place in places:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(place.encode())
    source = SiimAcr(tmp_path)
    rows = {row.image: row for row in source.scan().rows["train"]}
    assert [source.image(rows[image]).decode() for image in IMAGES[:4]] == list(places)


def test_published_lists_of_bare_identifiers(tmp_path):
    plan = SplitPlan({"train": IMAGES[:2], "test": [IMAGES[1], IMAGES[4]]}, {"train_10": IMAGES[:1]})
    with pytest.raises(DataError, match=r"share 1 image; expected nothing in two splits"):
        SiimAcr(write(tmp_path), plan).scan()
    leaky = SplitPlan(plan.splits, plan.subsets, allow_leak=True)
    scan = SiimAcr(tmp_path, leaky).scan()
    assert {split: [row.image for row in rows] for split, rows in scan.rows.items()} == {
        "train": IMAGES[:2],
        "test": [IMAGES[1]],
    }
    assert scan.dropped == {"none": Counter(no_split=2), "test": Counter(not_in_table=1)}


def test_a_build_holds_the_masks_and_drops_resized_copies(tmp_path):
    root = write(tmp_path / "siim")
    (root / "images").mkdir()
    rng = np.random.default_rng(0)
    for image, side in zip(IMAGES, (SIDE, SIDE, 512, SIDE), strict=False):
        pixels = cv2.resize(rng.integers(0, 256, (64, 64), dtype=np.uint8), (side, side))
        cv2.imwrite(str(root / "images" / f"{image}.png"), pixels)
    plan = SplitPlan({"train": IMAGES[:2], "test": IMAGES[2:4]}, {"train_10": IMAGES[1:2]})
    manifest = build(SiimAcr(root, plan), tmp_path / "out", short_side=64, workers=1, progress=False)
    assert manifest.splits["test"].dropped == {"wrong_size": 1}
    negative, positive = open_split(tmp_path / "out", "train")
    expected = slow_decode(ROWS[1][1], SIDE, SIDE) | slow_decode(ROWS[3][1], SIDE, SIDE)
    np.testing.assert_array_equal(decode_mask(positive.mask), expected)
    assert decode_mask(negative.mask).shape == (SIDE, SIDE)
    assert not decode_mask(negative.mask).any()
    (subset,) = open_split(tmp_path / "out", "train_10")
    assert (subset.image_key, subset.mask) == (positive.image_key, positive.mask)


def test_the_released_codes_are_decoded_and_encoded_to_themselves(real_data):
    folder = real_data / "siim_acr"
    source = SiimAcr(folder)
    scan = source.scan()
    with gzip.open(folder / "siim-pneumothorax-train-rle.csv.gz", "rt") as file:
        table = [(image.strip(), code.strip()) for image, code in list(csv.reader(file))[1:]]
    assert len(table) == 12_954
    assert scan.input_rows == len(scan.rows["train"]) == 12_047
    assert scan.table_rows == {"siim-pneumothorax-train-rle.csv.gz": 12_954}
    assert sum(not row.runs for row in scan.rows["train"]) == 9_378
    positives = {image for image, code in table if code != "-1"}
    assert all(row.labels == (float(row.image in positives),) for row in scan.rows["train"])
    for _, code in table:
        if code != "-1":
            mask = decode_runs(code, SIDE, SIDE)
            assert encode_runs(mask) == code, "a released code changed on the way"
            assert mask.sum() == sum(map(int, code.split()[1::2]))
    several = next(row for row in scan.rows["train"] if len(row.runs) == 3)
    union = np.any([slow_decode(code, SIDE, SIDE) for code in several.runs], axis=0)
    np.testing.assert_array_equal(source.mask(several, SIDE, SIDE), union)
    assert any(source.files(row)[0].is_file() for row in scan.rows["train"])


def test_the_published_lists_are_refused_for_their_leak(real_data):
    folder = real_data / "splits" / "SIIM-ACR_Pneumothorax"
    lists = {"train": "train_list", "validate": "val_list", "test": "test_list"}
    splits = {split: (folder / f"{name}.txt").read_text().split() for split, name in lists.items()}
    with pytest.raises(
        DataError,
        match="train and validate share 478 images, train and test share 494 images, validate and test share 124 images",
    ):
        SiimAcr(real_data / "siim_acr", SplitPlan(splits)).scan()
    scan = SiimAcr(real_data / "siim_acr", SplitPlan(splits, allow_leak=True)).scan()
    found = {split: len(rows) for split, rows in scan.rows.items()}
    assert found == {"train": 7_969, "validate": 1_898, "test": 1_904}
    assert scan.dropped == {"none": Counter(no_split=12_047 - 10_675)}


def test_both_real_dicoms_become_records_with_the_same_picture(real_data, tmp_path):
    pydicom = pytest.importorskip("pydicom")
    root = tmp_path / "siim"
    names = ("1.2.276.0.7230010.3.1.4.8323329.6904.1517875201.850819", "Fake_MONOHR1")
    for number, name in enumerate(names):
        folder = root / "dicom-images-train" / f"study{number}" / f"series{number}"
        folder.mkdir(parents=True)
        shutil.copy(real_data / "siim_acr" / f"{name}.dcm", folder)
    (root / "train-rle.csv").write_text(f"ImageId, EncodedPixels\n{names[0]}, -1\n{names[1]}, 387620 23 996 33\n")
    manifest = build(SiimAcr(root), tmp_path / "out", short_side=256, workers=1, progress=False)
    assert manifest.counts == {"train": 2}
    found = {float(record.labels[0]): record for record in open_split(tmp_path / "out", "train")}
    pixels = pydicom.dcmread(real_data / "siim_acr" / f"{names[0]}.dcm").pixel_array
    small = cv2.resize(pixels, (256, 256), interpolation=cv2.INTER_AREA).astype(int)
    for record, inverted in ((found[0.0], False), (found[1.0], True)):
        stored = decode_gray(record.image).astype(int)
        assert np.abs(stored - (255 - small if inverted else small)).mean() < 2
        assert record.original_size == (SIDE, SIDE)
    assert decode_mask(found[1.0].mask).sum() == 23 + 33
    assert not decode_mask(found[0.0].mask).any()


def intervals(codes):
    """First pixel and end of every stretch of the union of some codes, counted down the columns, in order and apart from one another."""
    found = []
    for code in codes:
        place, numbers = 0, [int(word) for word in code.split()]
        for gap, length in zip(numbers[::2], numbers[1::2], strict=True):
            found.append((place + gap, place + gap + length))
            place += gap + length
    united = []
    for start, end in sorted(found):
        if united and start <= united[-1][1]:
            united[-1] = (united[-1][0], max(end, united[-1][1]))
        else:
            united.append((start, end))
    return united


def test_every_released_image_has_the_mask_of_all_its_codes(real_data):
    source = SiimAcr(real_data / "siim_acr")
    scan = source.scan()
    masks = 0
    for row in scan.rows["train"]:
        flat = source.mask(row, SIDE, SIDE).T.reshape(-1)
        edges = np.flatnonzero(np.diff(flat, prepend=False, append=False))
        assert edges.tolist() == [place for stretch in intervals(row.runs) for place in stretch]
        masks += 1
    assert masks == 12_047
