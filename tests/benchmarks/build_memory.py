"""Peak memory of scanning tables at their full size: `python tests/benchmarks/build_memory.py [IMAGES [mimic|chexpert|nih]]`.

The tables are fabricated, MIMIC-CXR's with every optional list of the release; no image is made and none is read.
"""

import contextlib
import csv
import gzip
import hashlib
import random
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

from input_pipeline.datasets import mimic_tables
from input_pipeline.datasets.mimic_cxr import LABEL_NAMES, MimicCxr
from input_pipeline.reports import open_reports
from input_pipeline.sources import Scan, Source

IMAGES = {"mimic": 377_110, "chexpert": 223_648, "nih": 112_120}
EVERY = 100_000
VALUES = ("", "", "", "", "", "1.0", "0.0", "-1.0")
NIH_COLUMNS = (
    "Image Index",
    "Finding Labels",
    "Follow-up #",
    "Patient ID",
    "Patient Age",
    "Patient Gender",
    "View Position",
)
REPORT = b" FINDINGS:  The lungs are clear.\n"


def resident() -> float:
    """Megabytes of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def peak() -> float:
    """Megabytes of this process at most until now; `getrusage` would count those of the process that started it."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) * 1024 / 1e6


def fabricate_mimic(root: Path, images: int) -> None:
    """Writes all tables and lists, and the zip of reports: 5 images in 3 studies of each patient, as in the release."""
    rng = random.Random(0)
    patterns = [[rng.choice(VALUES) for _ in LABEL_NAMES] for _ in range(4000)]
    header = ["dicom_id", "subject_id", "study_id"]
    with contextlib.ExitStack() as stack:
        split, metadata, labels = (_table(stack, root, role) for role in ("split", "metadata", "chexpert"))
        names, sums = (stack.enter_context((root / name).open("w")) for name in ("IMAGE_FILENAMES", "SHA256SUMS.txt"))
        reports = stack.enter_context(zipfile.ZipFile(root / "mimic-cxr-reports.zip", "w"))
        split.writerow([*header, "split"])
        metadata.writerow([*header, "ViewPosition", "ViewCodeSequence_CodeMeaning"])
        labels.writerow(["subject_id", "study_id", *LABEL_NAMES])
        for number in range(images):
            patient, study = 10000000 + number // 5, 50000000 + number // 5 * 3 + number % 5 // 2
            digits = hashlib.sha1(b"%d" % number).hexdigest()
            image = "-".join(digits[i : i + 8] for i in range(0, 40, 8))
            identity = [image, patient, study]
            split.writerow([*identity, "train" if patient % 50 else "test"])
            metadata.writerow([*identity, rng.choice(("AP", "PA")), "postero-anterior"])
            path = f"files/p{patient // 10**6}/p{patient}/s{study}"
            names.write(f"{path}/{image}.jpg\n")
            sums.write(f"{hashlib.sha256(digits.encode()).hexdigest()}  {path}/{image}.jpg\n")
            if number % 5 in (0, 2, 4):
                labels.writerow([patient, study, *rng.choice(patterns)])
                reports.writestr(f"{path}.txt", REPORT)
    (root / "MS_CXR_Local_Alignment_v1.1.0.csv").write_text(f"path\nfiles/p10/p10000000/s50000000/{'0' * 8}.jpg\n")


def _table(stack: contextlib.ExitStack, root: Path, role: str):
    path = root / f"mimic-cxr-2.0.0-{role}.csv.gz"
    return csv.writer(stack.enter_context(gzip.open(path, "wt", compresslevel=1, newline="")))


def fabricate_chexpert(root: Path, images: int) -> None:
    """Writes train.csv: 4 images of each patient."""
    rng = random.Random(0)
    with (root / "train.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *LABEL_NAMES])
        for number in range(images):
            patient, study, view = number // 4, number % 4 // 2 + 1, number % 2
            path = f"CheXpert-v1.0-small/train/patient{patient:05d}/study{study}/view{view + 1}_frontal.jpg"
            side = ("Lateral", "") if view and number % 3 else ("Frontal", "AP")
            table.writerow([path, "Male", 60, *side, *(rng.choice(VALUES) for _ in LABEL_NAMES)])


def fabricate_nih(root: Path, images: int) -> None:
    """Writes the table and the two official lists: 3.6 images of each patient; `images` has a file of no bytes for each."""
    (root / "images").mkdir()
    names = [f"{number * 10 // 36 + 1:08d}_{number % 1000:03d}.png" for number in range(images)]
    with (root / "Data_Entry_2017.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(NIH_COLUMNS)
        table.writerows(
            [name, "Mass|Nodule" if k % 3 else "No Finding", 0, int(name[:8]), 58, "M", "PA"]
            for k, name in enumerate(names)
        )
    cut = next(place for place in range(images * 7 // 10, images) if names[place][:8] != names[place - 1][:8])
    for list_name, part in (("train_val_list.txt", names[:cut]), ("test_list.txt", names[cut:])):
        (root / list_name).write_text("\n".join(part) + "\n")
    for name in names:
        (root / "images" / name).touch()


def report_progress() -> None:
    """Makes the reader of the metadata say how much memory the scan holds, every 100,000 rows."""
    read = mimic_tables.read_images

    def counted(path: Path, scan: Scan, index: mimic_tables.Index) -> Iterator[mimic_tables.Image]:
        for number, image in enumerate(read(path, scan, index)):
            if number % EVERY == 0:
                print(f"{number:>12,}{resident():>12,.0f}{peak():>12,.0f}", flush=True)
            yield image

    mimic_tables.read_images = counted


def source_of(name: str, root: Path) -> Source:
    """The data set whose tables lie in a folder."""
    # What they import takes memory, which is not to be counted for MIMIC-CXR.
    if name == "chexpert":
        from input_pipeline.datasets.chexpert import Chexpert

        return Chexpert(root)
    if name == "nih":
        from input_pipeline.datasets.nih_chestxray14 import NihChestXray14

        return NihChestXray14(root)
    reports = root / "mimic-cxr-reports.zip"
    open_reports(reports)
    print(f"{'zip of reports':>12}{resident():>10,.0f}{peak():>12,.0f}")
    return MimicCxr(root, reports)


def main() -> None:
    """Fabricates in a process of its own, so that only the scan counts."""
    name = sys.argv[2] if len(sys.argv) > 2 else "mimic"
    images = int(sys.argv[1]) if len(sys.argv) > 1 else IMAGES[name]
    if len(sys.argv) > 3:
        {"mimic": fabricate_mimic, "chexpert": fabricate_chexpert, "nih": fabricate_nih}[name](
            Path(sys.argv[3]), images
        )
        return
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        subprocess.run([sys.executable, __file__, str(images), name, folder], check=True)
        print(f"{name}: {images:,} images fabricated in {time.monotonic() - started:.0f} s; megabytes:\n")
        print(f"{'rows':>12}{'now':>12}{'peak':>12}\n{'start':>12}{resident():>12,.0f}{peak():>12,.0f}")
        started = time.process_time()
        report_progress()
        scan = source_of(name, Path(folder)).scan()
        used = time.process_time() - started
        print(f"{scan.input_rows:>12,}{resident():>12,.0f}{peak():>12,.0f}   in {used:.0f} s of CPU time")


if __name__ == "__main__":
    main()
