"""A corpus in the layout of MIMIC-CXR-JPG with reports, and MS-CXR's boxes on its images."""

import hashlib
import json
import zipfile
from pathlib import Path
from typing import NamedTuple

from input_pipeline.datasets.mimic_cxr import LABEL_NAMES

from .files import DAMAGED, JPEGS, Corpus, blank, nearly_blank, picture, plant_damage, write_csv

PATIENTS = 60
PREFIX = "mimic-cxr-2.0.0-"
BOX_HEADER = ["category_name", "label_text", "path", "dicom_id", "x", "y", "w", "h", "split"]
BOX_HEADER += ["image_width", "image_height"]
_SPLITS = ("train",) * 8 + ("validate", "test")
_WORDS = ("opacity", "effusion", "nodule", "consolidation", "granuloma", "edema", "base", "apex", "lobe", "left")


class Image(NamedTuple):
    """One frontal image, alone in its study; two studies a patient."""

    patient: str
    study: str
    name: str
    split: str

    @property
    def folder(self) -> str:
        return f"files/p{self.patient[:2]}/p{self.patient}"

    @property
    def jpg(self) -> str:
        return f"{self.folder}/s{self.study}/{self.name}.jpg"

    @property
    def txt(self) -> str:
        return f"{self.folder}/s{self.study}.txt"


def images(corpus: Corpus, patients: int = PATIENTS) -> list[Image]:
    found = []
    for place in range(2 * patients):
        digits = hashlib.sha256(f"{corpus.seed} {place}".encode()).hexdigest()[:40]
        name = "-".join(digits[i : i + 8] for i in range(0, 40, 8))
        numbers = str(10_000_000 + 37 * (place // 2)), str(50_000_000 + 101 * place)
        found.append(Image(*numbers, name, _SPLITS[place // 2 % len(_SPLITS)]))
    return found


def report(place: int) -> bytes:
    finding, site = _WORDS[place % 6], _WORDS[6 + place % 3]
    text = f" FINAL REPORT\n INDICATION:  Cough.\n \n FINDINGS:\n \n There is {finding} at the left\n {site}.  No other.\n \n"
    return f"{text} IMPRESSION:  Probable {finding}.\n".encode()


def long_text(corpus: Corpus, size: int, separator: str) -> bytes:
    """Words that do not compress beyond what a zip file may."""
    words = corpus.rng.randbytes(size // 2).hex().replace("0", separator)
    return f" FINDINGS:  {words}\n".encode()


ODD_REPORTS = {  # in order, all of them
    "no sections": lambda corpus: b" FINAL REPORT\n \n The lungs are clear and the heart is normal.\n",
    "zero bytes": lambda corpus: b" FINDINGS:  Clear\0 lungs\0 on both sides.\n",
    "byte order mark": lambda corpus: b"\xef\xbb\xbf FINDINGS:  Clear lungs on both sides.\n",
    "line ends": lambda corpus: b" FINDINGS:\r\n \r\n Clear lungs\r\n on both sides.\r\n",
    "emoji": lambda corpus: " FINDINGS:  Clear lungs \u202eon both\u202c sides \U0001fac1.\n".encode(),
}
BAD_REPORTS = {
    "no bytes": ("no_text", lambda corpus: b""),
    "empty sections": ("no_text", lambda corpus: b" FINAL REPORT\n FINDINGS:\n \n IMPRESSION:\n"),
    "two words": ("no_text", lambda corpus: b" FINAL REPORT\n \n See above.\n"),
    "many words": ("truncated_report", lambda corpus: long_text(corpus, 200_000, ".\n ")),
    "one line": ("truncated_report", lambda corpus: long_text(corpus, 1_000_000, " ")),
    "latin": (
        "replaced_characters",
        lambda corpus: " FINDINGS:  Épanchement pleural gauche modéré.\n".encode("latin-1"),
    ),
    "surrogate": ("replaced_characters", lambda corpus: b" FINDINGS:  Clear \xed\xa0\x80 lungs on both sides.\n"),
}


def write_mimic(root: Path, seed: int, level: str, *, sums: bool = False, zipped: bool = False) -> Corpus:
    """Writes the corpus: with `sums` damaged images show by their checksums, without by decoding."""
    corpus = Corpus(root, seed)
    found = images(corpus)
    texts = {image: report(place) for place, image in enumerate(found)}
    contents = {image: list(JPEGS.values())[place % len(JPEGS)](place) for place, image in enumerate(found)}
    for image, text in zip(found[::4], ODD_REPORTS.values(), strict=False):
        texts[image] = text(corpus)
    # Whole patients of train, so that no fault is another's neighbour.
    free = iter(corpus.rng.sample([image for image in found[::2] if image.split == "train"], 8 * PATIENTS // 10))
    damaged = [next(free) for _ in range(DAMAGED)]
    held = [image for image in found if image.split != "train"]
    if level != "clean":
        _plant_contents(corpus, contents, [next(free) for _ in range(8)], held)
        _plant_reports(corpus, texts, free, zipped)
    for image, data in contents.items():
        path = root / image.jpg
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    _write_reports(corpus, texts, zipped)
    tables = _tables(corpus, found)
    names = [image.jpg for image in found] + _laterals(corpus, tables, found)
    if level == "all":
        _plant_rows(corpus, tables, names, free, found)
    for role, rows in tables.items():
        write_csv(root / f"{PREFIX}{role}.csv.gz", rows)
    (root / "IMAGE_FILENAMES").write_text("".join(f"{name}\n" for name in names))
    if sums:
        _write_sums(corpus, level)
    if level != "clean":
        if sums:
            _plant_bit_rot(corpus, [root / next(free).jpg for _ in range(3)])
        plant_damage(corpus, [root / image.jpg for image in damaged], code="wrong_checksum" if sums else "bad_image")
    if zipped:
        corpus.arguments = ("--reports", str(root / "mimic-cxr-reports.zip"))
    return corpus


def _plant_contents(corpus, contents, chosen, held) -> None:
    """Pictures that are in the release as they are: blank ones, and the same twice."""
    for image in chosen[:2]:
        contents[image] = blank(0)
        corpus.plant("blank_image", corpus.root / image.jpg)
    for place, image in enumerate(chosen[2:5]):
        contents[image] = nearly_blank(place)
        corpus.plant("nearly_blank_image", corpus.root / image.jpg)
    contents[chosen[5]] = contents[chosen[6]]
    corpus.plant("duplicate_pixels")
    contents[held[corpus.rng.randrange(4)]] = contents[chosen[7]]
    corpus.plant("duplicate_pixels_across_splits")


def _plant_reports(corpus, texts, free, zipped) -> None:
    for code, text in BAD_REPORTS.values():
        image = next(free)
        texts[image] = text(corpus)
        corpus.plant(code, corpus.root / image.jpg)
    for _ in range(2):
        image = next(free)
        del texts[image]
        corpus.plant("no_report", corpus.root / image.jpg)
    if zipped:
        image = next(free)
        texts[image] = b" FINDINGS:  A marker that is unique: spoiled.\n"
        corpus.plant("bad_report", corpus.root / image.jpg)


def _write_reports(corpus, texts, zipped) -> None:
    if not zipped:
        for image, data in texts.items():
            path = corpus.root / "mimic-cxr-reports" / image.txt
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return
    path = corpus.root / "mimic-cxr-reports.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for image, data in texts.items():
            method = zipfile.ZIP_STORED if b"spoiled" in data else zipfile.ZIP_DEFLATED
            archive.writestr(zipfile.ZipInfo(f"mimic-cxr-reports/{image.txt}"), data, method)
    path.write_bytes(path.read_bytes().replace(b"spoiled", b"sp0iled"))


def _tables(corpus, found) -> dict[str, list[list[str]]]:
    """Header first, then a row for each of `found`."""
    values = ("1.0", "0.0", "-1.0", "")
    split = [["dicom_id", "study_id", "subject_id", "split"]]
    metadata = [["dicom_id", "subject_id", "study_id", "ViewPosition", "ViewCodeSequence_CodeMeaning"]]
    labels = [["subject_id", "study_id", *LABEL_NAMES]]
    for place, (patient, study, name, part) in enumerate(found):
        split.append([name, study, patient, part])
        metadata.append([name, patient, study, *(("PA", ""), ("ap", ""), ("", "Antero-Posterior"))[place % 3]])
        labels.append([patient, study, *(values[(place + column) % 4] for column in range(len(LABEL_NAMES)))])
    return {"split": split, "metadata": metadata, "chexpert": labels}


def _laterals(corpus, tables, found) -> list[str]:
    """Some studies have a second image, whose view a build leaves out and the doctor looks at; none of them has a fault."""
    chosen = [image for image in found[1::2] if image.split != "train"][:10]
    paths = []
    for place, image in enumerate(chosen):
        name = image.name[::-1]
        tables["split"].append([name, image.study, image.patient, image.split])
        tables["metadata"].append([name, image.patient, image.study, "LATERAL", ""])
        paths.append(image.jpg.replace(image.name, name))
        (corpus.root / paths[-1]).write_bytes(next(iter(JPEGS.values()))(10_000 + place))
    return paths


def _plant_rows(corpus, tables, names, free, found) -> None:
    """Rows of the tables; what a lost row entails in the other tables is found as well."""
    row_of = {image: place for place, image in enumerate(found, 1)}

    def change(role, column, value):
        image = next(free)
        tables[role][row_of[image]][column] = value
        return image

    for code, column, value in (("unknown_split", 3, "dev"), ("bad_identifier", 2, "../../x"), ("bad_row", 3, None)):
        change("split", column, value)
        corpus.plant(code)
        corpus.drop("no_split")
    for row in tables["split"]:
        row[:] = [value for value in row if value is not None]  # fields too few
    # Copies stand behind the short row, which must not spoil the message about them.
    for role in ("split", "metadata", "chexpert"):
        tables[role].append(list(tables[role][row_of[next(free)]]))
        corpus.plant("duplicate_image")
    change("metadata", 2, "50999999")
    corpus.plant("tables_disagree")
    corpus.drop("in_no_table")  # the row is lost, and so IMAGE_FILENAMES lists an image of no table
    change("chexpert", 7, "2.0")
    corpus.plant("unknown_label")
    change("split", 3, "test")
    corpus.plant("patient_in_two_splits")
    gone = next(free)
    tables["metadata"].remove(tables["metadata"][row_of[gone]])
    corpus.drop("no_metadata")
    names.remove(next(free).jpg)
    corpus.drop("not_listed")
    names.append("files/p10/p10999999/s50999999/00000000-00000000.jpg")
    corpus.drop("in_no_table")
    names.append(names[3])
    corpus.plant("duplicate_image")
    names.append("files/p10/index.html")
    corpus.plant("bad_row")


def _write_sums(corpus, level) -> None:
    """As PhysioNet lists a release; of one table it has another sum."""
    lines = []
    for path in sorted(corpus.root.rglob("*")):
        name = path.relative_to(corpus.root).as_posix()
        if path.is_file() and not name.startswith("mimic-cxr-reports"):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            if level == "all" and name == f"{PREFIX}chexpert.csv.gz":
                digest = digest[::-1]
                corpus.plant("wrong_table_checksum")
            lines.append(f"{digest}  {name}\n")
    (corpus.root / "SHA256SUMS.txt").write_text("".join(lines))


def _plant_bit_rot(corpus, paths) -> None:
    """One bit of the scan, of which the decoder notices nothing."""
    from input_pipeline.images import decode_gray

    for path in paths:
        data = bytearray(path.read_bytes())
        for place in range(len(data) - 40, 0, -1):
            data[place] ^= 1
            try:
                decode_gray(bytes(data))
            except Exception:
                data[place] ^= 1
            else:
                break
        path.write_bytes(data)
        corpus.plant("wrong_checksum", path)


def write_ms_cxr(root: Path, seed: int, level: str, *, as_json: bool = False) -> Corpus:
    """Boxes in one folder, images of MIMIC-CXR-JPG in another; they are 44 pixels high and 52 wide."""
    corpus = Corpus(root / "ms-cxr", seed)
    jpg = root / "mimic-cxr-jpg"
    corpus.arguments = ("--jpg", str(jpg))
    found = images(corpus, patients=60)[::2]
    for place, image in enumerate(found):
        path = jpg / image.jpg
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(JPEGS["grey"](place))
    assert picture(0).shape == (44, 52)
    rows = [_box_row(image, place) for place, image in enumerate(found)]
    rows += [
        [*_box_row(image, place)[:4], 1, 2, 3, 4, *_box_row(image, place)[8:]] for place, image in enumerate(found[:5])
    ]
    free = iter(corpus.rng.sample(range(5, len(found)), len(found) - 5))
    if level != "clean":
        _plant_boxes(corpus, jpg, rows, found, free)
        plant_damage(corpus, [jpg / found[next(free)].jpg for _ in range(DAMAGED)])
    if level == "all":
        _plant_box_rows(corpus, rows, free)
    if as_json:
        (corpus.root / "MS_CXR_Local_Alignment_v1.1.0.json").write_text(json.dumps(_coco(rows)))
    else:
        write_csv(corpus.root / "MS_CXR_Local_Alignment_v1.1.0.csv", [BOX_HEADER, *rows])
    return corpus


def _box_row(image, place) -> list:
    split = {"train": "train", "validate": "val", "test": "test"}[image.split]
    phrase = f"{_WORDS[place % 6]} at the {_WORDS[6 + place % 3]}"
    return ["Pneumonia", phrase, image.jpg, image.name, 4, 5, 20 + place % 9, 12, split, 52, 44]


def _plant_boxes(corpus, jpg, rows, found, free) -> None:
    def change(code, **values):
        place = next(free)
        for name, value in values.items():
            rows[place][BOX_HEADER.index(name)] = value
        corpus.plant(code, jpg / found[place].jpg)

    change("box_outside_image", x=52)
    change("box_outside_image", x=-50, w=40)
    change("clipped_box", x=40, w=40)
    change("clipped_box", y=-3)
    change("wrong_size", image_width=104, image_height=88)
    rows[next(free)][1] = " "
    corpus.drop("no_text")


def _plant_box_rows(corpus, rows, free) -> None:
    def change(code, **values):
        place = next(free)
        for name, value in values.items():
            rows[place][BOX_HEADER.index(name)] = value
        corpus.plant(code)
        return place

    change("bad_box", w=0)
    change("bad_box", x=30, y=30, w=-20, h=-20)  # corners swapped
    change("bad_box", h="nan")
    change("bad_box", x="")
    change("path_outside", path="../../etc/passwd")
    change("path_outside", path="/files/p10/p10000000/s50000000/x.jpg")
    change("bad_row", path="x.jpg")
    change("bad_row", image_width="wide")
    change("unknown_split", split="dev")
    change("unknown_label", category_name="Pneumothorrax")
    change("unknown_label", category_name="pneumonia")
    twin = list(rows[next(free)])
    rows.append([*twin[:8], "test" if twin[8] == "train" else "train", *twin[9:]])
    corpus.plant("tables_disagree")
    twin = list(rows[next(free)])
    rows.append([twin[0], "another phrase", *twin[2:8], "test" if twin[8] == "train" else "train", *twin[9:]])
    corpus.plant("patient_in_two_splits")


def _coco(rows) -> dict:
    places = {row[3]: place for place, row in enumerate(rows)}
    images_of = {row[3]: row for row in rows}
    categories = {name: number for number, name in enumerate(sorted({row[0] for row in rows}), 1)}
    return {
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
        "images": [
            {"id": places[name], "path": row[2], "file_name": f"{name}.jpg", "width": row[9], "height": row[10]}
            for name, row in images_of.items()
        ],
        "annotations": [
            {
                "image_id": places[row[3]],
                "category_id": categories[row[0]],
                "label_text": row[1],
                "bbox": row[4:8],
                "split": row[8],
            }
            for row in rows
        ],
    }
