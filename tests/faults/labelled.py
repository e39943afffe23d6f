"""Corpora in the layouts of CheXpert, NIH ChestX-ray14, RSNA Pneumonia and SIIM-ACR."""

import hashlib
from pathlib import Path

from input_pipeline.datasets import chexpert, nih_chestxray14

from .files import (
    BAD_DICOMS,
    DICOMS,
    JPEGS,
    PNGS,
    Corpus,
    blank,
    dicom,
    nearly_blank,
    plant_damage,
    plant_stray,
    plant_twin,
    write_csv,
)

CHEXPERT_HEADER = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *chexpert.LABEL_NAMES]
NIH_HEADER = ["Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "Patient Gender"]
NIH_HEADER += ["View Position", "OriginalImage[Width", "Height]", "OriginalImagePixelSpacing[x", "y]", ""]
RSNA_HEADER = ["patientId", "x", "y", "width", "height", "Target"]
SIIM_HEADER = ["ImageId", " EncodedPixels"]
_PIXELS = 1024 * 1024


def _plant_pictures(corpus: Corpus, paths, held: Path | None) -> None:
    """Blank images, and one picture under two names, in one split and in two."""
    for place, code in enumerate(("blank_image", "blank_image", "nearly_blank_image", "nearly_blank_image")):
        path = next(paths)
        path.write_bytes(blank(0) if code == "blank_image" else nearly_blank(place))
        corpus.plant(code, path)
    next(paths).write_bytes(next(paths).read_bytes())
    corpus.plant("duplicate_pixels")
    if held is not None:
        held.write_bytes(next(paths).read_bytes())
        corpus.plant("duplicate_pixels_across_splits")


def write_chexpert(root: Path, seed: int, level: str) -> Corpus:
    """60 patients in train and 10 in valid, each with a frontal and a lateral image."""
    corpus = Corpus(root, seed)
    rows = {"train": [], "valid": []}
    for place in range(140):
        folder, side = ("train", "valid")[place >= 120], ("frontal", "lateral")[place % 2]
        path = f"{folder}/patient{place // 2 + 101:05d}/study1/view1_{side}.jpg"
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(list(JPEGS.values())[place % len(JPEGS)](place))
        labels = [("1.0", "0.0", "-1.0", "")[(place // 2 + column) % 4] for column in range(14)]  # of the study
        rows[folder].append(["CheXpert-v1.0-small/" + path, "Male", "50", side.title(), ("AP", "")[place % 2], *labels])
    # Frontal images of train, so that no fault is another's neighbour.
    free = iter(corpus.rng.sample(range(0, 120, 2), 60))
    paths = (root / rows["train"][place][0].partition("/")[2] for place in free)
    if level != "clean":
        _plant_pictures(corpus, paths, root / rows["valid"][2][0].partition("/")[2])
        plant_stray(corpus, root / "train/patient00099/study1/view1_frontal.jpg", JPEGS["grey"](2000))
        plant_damage(corpus, paths, times=2)
    if level == "all":
        _plant_chexpert_rows(corpus, rows, free)
    for folder, part in rows.items():
        write_csv(root / f"{folder}.csv", [CHEXPERT_HEADER, *part])
    return corpus


def _plant_chexpert_rows(corpus, rows, free) -> None:
    for code, column, value in (
        ("unknown_label", 7, "2.0"),
        ("unknown_label", 8, "nan"),
        ("unknown_label", 9, "yes"),
        ("bad_identifier", 0, "../../etc/passwd"),
        ("bad_identifier", 0, "CheXpert-v1.0-small/train/patient00001/../../x.jpg"),
        ("bad_row", 3, "Oblique"),
    ):
        rows["train"][next(free)][column] = value
        corpus.plant(code)
    for fields in (18, 20):
        place = next(free)
        rows["train"][place] = (rows["train"][place] + ["x"])[:fields]
        corpus.plant("bad_row")
    for _ in range(2):
        rows["train"].append(list(rows["train"][next(free)]))
        corpus.plant("duplicate_image")
    corpus.plant("file_in_no_table", count=4)  # of the paths that are none, and of rows that are too short or too long
    # The folder of a list is its split: a patient of train also in valid.
    place = next(free)
    path = rows["train"][place][0].replace("/train/", "/valid/")
    rows["valid"].append([path, *rows["train"][place][1:]])
    file = corpus.root / path.partition("/")[2]
    file.parent.mkdir(parents=True)
    file.write_bytes(JPEGS["grey"](1000))
    corpus.plant("patient_in_two_splits")


def write_nih(root: Path, seed: int, level: str, *, lists: bool = True) -> Corpus:
    """80 patients of one image each, and 10 with two; the images lie in two archives' folders."""
    corpus = Corpus(root, seed)
    rows, names = [], {"train_val_list.txt": [], "test_list.txt": []}
    for place in range(100):
        patient = place + 1 if place < 80 else 81 + (place - 80) // 2
        image = f"{patient:08d}_{place % 2:03d}.png"
        path = root / f"images_{place % 2 + 1:03d}" / "images" / image
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(list(PNGS.values())[place % len(PNGS)](place))
        labels = "|".join(nih_chestxray14.LABEL_NAMES[place % 12 : place % 12 + place % 3]) or "No Finding"
        rows.append([image, labels, place % 2, patient, "058Y", "M", "PA", 2682, 2749, 0.143, 0.143, ""])
        names["test_list.txt" if place % 5 == 4 and place < 80 else "train_val_list.txt"].append(image)
    free = iter(corpus.rng.sample([place for place in range(80) if place % 5 < 4], 64))
    paths = (root / f"images_{place % 2 + 1:03d}" / "images" / rows[place][0] for place in free)
    if level != "clean":
        held = root / "images_001" / "images" / rows[4][0]
        _plant_pictures(corpus, paths, held if lists else None)
        plant_stray(corpus, root / "images_001" / "images" / "00099998_000.png", PNGS["grey"](2000))
        plant_twin(corpus, root / "images_002" / "images" / rows[99][0], root / "images")
        plant_damage(corpus, paths, times=2)
    if level == "all":
        _plant_nih_rows(corpus, rows, free)
    if level == "all" and lists:
        corpus.drop("not_in_table", 7)  # the names of the lost rows
        _plant_nih_lists(corpus, rows, names, free)
    write_csv(root / "Data_Entry_2017_v2020.csv.gz", [NIH_HEADER, *rows])
    if lists:
        for name, members in names.items():
            (root / name).write_bytes("\r\n".join(members).encode())
    return corpus


def _plant_nih_rows(corpus, rows, free) -> None:
    for code, column, value in (
        ("unknown_label", 1, "Effusion|Infiltrate"),
        ("unknown_label", 1, ""),
        ("unknown_label", 1, "Mass|Mass"),
        ("bad_identifier", 0, "../00000001_000.png"),
        ("bad_identifier", 0, "1.png"),
        ("tables_disagree", 3, 99999),
    ):
        rows[next(free)][column] = value
        corpus.plant(code)
    rows[next(free)].pop()
    corpus.plant("bad_row")
    rows.append(list(rows[next(free)]))
    corpus.plant("duplicate_image")
    corpus.plant("file_in_no_table", count=3)  # of the names that are none, and of the short row


def _plant_nih_lists(corpus, rows, names, free) -> None:
    for name in names:
        names[name].append(names[name][0])
        corpus.plant("duplicate_image")
    names["test_list.txt"].append("00099999_000.png")
    corpus.drop("not_in_table")
    for _ in range(2):
        names["train_val_list.txt"].remove(rows[next(free)][0])
        corpus.drop("no_split")
    for _ in range(2):  # the image, and so its patient
        names["test_list.txt"].append(rows[next(free)][0])
        corpus.plant("image_in_two_splits")
        corpus.plant("patient_in_two_splits")
    for place in (80, 84, 86):  # the patient alone
        names["train_val_list.txt"].remove(rows[place][0])
        names["test_list.txt"].append(rows[place][0])
        corpus.plant("patient_in_two_splits")


def _write_dicoms(root: Path, corpus: Corpus, images, folder: str) -> dict[str, Path]:
    paths = {}
    for place, image in enumerate(images):
        path = root / folder.format(place) / f"{image}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(list(DICOMS.values())[place % len(DICOMS)](place))
        paths[image] = path
    return paths


def _plant_dicoms(corpus: Corpus, paths, folder: Path) -> None:
    plant_stray(corpus, folder / "stray.dcm", dicom(700))
    for number, bad in enumerate(BAD_DICOMS.values()):
        path = next(paths)
        path.write_bytes(bad(500 + number))
        corpus.plant("bad_image", path)
    path = next(paths)
    path.write_bytes(dicom(600, side=512))
    corpus.plant("wrong_size", path)
    next(paths).write_bytes(next(paths).read_bytes())
    corpus.plant("duplicate_pixels")
    plant_damage(corpus, paths)


def write_rsna(root: Path, seed: int, level: str) -> Corpus:
    """50 images, every one with one or two boxes but the last ten."""
    corpus = Corpus(root, seed)
    images = [hashlib.sha256(f"{seed} {place}".encode()).hexdigest()[:36] for place in range(50)]
    paths = _write_dicoms(root, corpus, images, "stage_2_train_images")
    rows = [[image, 264.0, 152.0, 213.0, 379.0 + place, 1] for place, image in enumerate(images[:40])]
    rows += [[image, "", "", "", "", 0] for image in images[40:]]
    rows += [[image, 562.0, 152.0, 256.0, 453.0, 1] for image in images[:5]]
    free = iter(corpus.rng.sample(range(5, 40), 35))
    if level != "clean":
        _plant_dicoms(corpus, (paths[images[place]] for place in free), root / "stage_2_train_images")
        for code, column, value in (
            ("box_outside_image", 1, 1024),
            ("clipped_box", 1, 1000),
            ("clipped_box", 2, -10),
        ):
            place = next(free)
            rows[place][column] = value
            corpus.plant(code, paths[images[place]])
    if level == "all":
        _plant_rsna_rows(corpus, rows, free)
    write_csv(root / "stage_2_train_labels.csv", [RSNA_HEADER, *rows])
    return corpus


def _plant_rsna_rows(corpus, rows, free) -> None:
    for code, column, value in (
        ("bad_box", 3, 0),
        ("bad_box", 4, -379),  # corners swapped
        ("bad_box", 1, "left"),
        ("unknown_label", 5, 2),
        ("bad_row", 5, 0),  # no pneumonia, and a box
    ):
        rows[next(free)][column] = value
        corpus.plant(code)
    rows[41][0] = "../../x"
    corpus.plant("bad_identifier")
    rows[42].append("")
    corpus.plant("bad_row")
    corpus.plant("file_in_no_table", count=2)
    for again in (rows[next(free)], [rows[43][0], 1, 2, 3, 4, 1]):
        rows.append(list(again))
        corpus.plant("duplicate_image")


BAD_RUNS = ("5", "1 2 3", "0 0", f"{_PIXELS} 1", "1 -2", "1 2.5", "", "9" * 400 + " 1")


def write_siim(root: Path, seed: int, level: str) -> Corpus:
    """40 images at any depth, half of them with one or two codes."""
    corpus = Corpus(root, seed)
    images = [f"1.2.276.0.7230010.3.1.4.8323329.{seed}.{place}" for place in range(44)]
    paths = _write_dicoms(root, corpus, images, "dicom-images-train/1.2.{0}/3.4.{0}")
    rows = [[image, " -1" if place >= 22 else f" {1000 + place} 50 974 50"] for place, image in enumerate(images)]
    rows += [[image, f" {_PIXELS - 6} 6"] for image in images[:2]]
    free = iter(corpus.rng.sample(range(2, 44), 42))
    if level != "clean":
        _plant_dicoms(corpus, (paths[images[place]] for place in free), root / "dicom-images-train")
    if level == "all":
        for code in BAD_RUNS:
            rows[next(free)][1] = f" {code}"
            corpus.plant("bad_runs")
        rows[next(free)][0] = "../../x"
        corpus.plant("bad_identifier")
        rows[next(free)].append("x")
        corpus.plant("bad_row")
        corpus.plant("file_in_no_table", count=2)
        rows.append(list(rows[next(free)]))
        corpus.plant("duplicate_image")
    write_csv(root / "stage_2_train.csv", [SIIM_HEADER, *rows])
    return corpus
