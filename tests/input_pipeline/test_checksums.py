"""SHA256SUMS.txt: what it lists is compared, what it does not list is said to be unchecked."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline.build import build
from input_pipeline.checksums import Inputs, listed_hash, read_checksums
from input_pipeline.datasets.mimic_cxr import MimicCxr
from input_pipeline.errors import DataError, UserError
from input_pipeline.reports import open_reports
from input_pipeline.sources import Scan


def write_sums(root, *, separator="  ", skip=()):
    """The list of a folder's files, as `sha256sum` writes it."""
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.name not in ("SHA256SUMS.txt", *skip))
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}{separator}{path.relative_to(root)}\n"
        for path in files
        if path.suffix != ".txt"
    ]
    (root / "SHA256SUMS.txt").write_text("".join(lines))


def made(root, out):
    return build(MimicCxr(root, root), out, short_side=32, workers=1, shard_records=5, progress=False)


@given(
    st.dictionaries(st.from_regex(r"[a-z]{1,9}\.(csv|gz|jpg)", fullmatch=True), st.binary(), max_size=6),
    st.sampled_from([" ", "  ", " *"]),
)
def test_lists_of_every_spelling_are_read(tmp_path_factory, files, separator):
    path = tmp_path_factory.mktemp("sums") / "SHA256SUMS.txt"
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    path.write_text("\n".join(f"{digest.upper()}{separator}{name}" for name, digest in hashes.items()))
    assert read_checksums(path).files == hashes
    path.write_text("".join(f"{digest}{separator}files/p10/{name}\r\n" for name, digest in hashes.items()))
    images = {name[:-4]: digest for name, digest in hashes.items() if name.endswith(".jpg")}
    assert read_checksums(path).images == images


@pytest.mark.parametrize("line", ["x", "<html>", "0" * 63 + "  a.csv", "0" * 64, "0" * 64 + "a.csv"])
def test_a_line_that_is_no_checksum_is_named(tmp_path, line):
    path = tmp_path / "SHA256SUMS.txt"
    path.write_text(f"{'0' * 64}  secret.csv\n\n{line}\n")
    with pytest.raises(UserError) as error:
        read_checksums(path)
    assert str(error.value) == "SHA256SUMS.txt: line 3 is no checksum; expected 64 hex digits and a path"


def test_without_a_list_the_manifest_says_so(mimic_build, own_mimic_root, tmp_path):
    manifest = made(own_mimic_root, tmp_path / "out")
    assert manifest.inputs["checksums"] == "absent"
    assert "unchecked" not in manifest.inputs
    assert Inputs.open(own_mimic_root, Scan().refuse).image("anything") == ""


@pytest.mark.parametrize("separator", [" ", "  "])
def test_a_build_with_a_complete_list_has_the_same_records(mimic_build, own_mimic_root, tmp_path, separator):
    write_sums(own_mimic_root, separator=separator)
    manifest = made(own_mimic_root, tmp_path / "out")
    expected = hashlib.sha256((own_mimic_root / "SHA256SUMS.txt").read_bytes()).hexdigest()
    assert manifest.inputs["checksums"] == expected
    # One image is missing on disk, and so in this list.
    assert manifest.inputs["unchecked"] == "0 files, 1 images"
    assert manifest.counts == {"train": 12, "validate": 4, "test": 4}


@pytest.mark.parametrize("role", ["split", "metadata", "chexpert"])
def test_a_table_that_differs_from_the_list_is_refused_by_name(own_mimic_root, layout, tmp_path, role):
    write_sums(own_mimic_root)
    rows = layout.table_rows()[role]
    layout.write_table(own_mimic_root / f"mimic-cxr-2.0.0-{role}.csv.gz", rows[:-1])
    with pytest.raises(DataError) as error:
        made(own_mimic_root, tmp_path / "out")
    expected = f"mimic-cxr-2.0.0-{role}.csv.gz: its sha256 differs from SHA256SUMS.txt's; fetch it again"
    assert str(error.value) == expected


def test_every_flipped_bit_of_an_image_is_caught(own_mimic_root, layout, tmp_path):
    write_sums(own_mimic_root)
    damaged = [item for item in layout.studies() if item.split == "test"]
    for number, item in enumerate(damaged):
        path = own_mimic_root / item.jpg
        data = bytearray(path.read_bytes())
        data[(number + 1) * len(data) // 6] ^= 1 << number
        path.write_bytes(data)
    manifest = made(own_mimic_root, tmp_path / "out")
    assert manifest.splits["test"].dropped == {"wrong_checksum": len(damaged)}
    assert manifest.splits["validate"].records == 4


def test_tables_and_images_that_the_list_leaves_out_are_counted(own_mimic_root, layout, tmp_path):
    first, second = (item.jpg.rsplit("/", 1)[1] for item in layout.studies()[:2])
    write_sums(own_mimic_root, skip=("mimic-cxr-2.0.0-split.csv.gz", first, second))
    assert made(own_mimic_root, tmp_path / "out").inputs["unchecked"] == "1 files, 3 images"


def test_the_zip_of_reports_is_compared_with_the_list_beside_it(own_mimic_root, tmp_path):
    import zipfile

    other = tmp_path / "mimic-cxr"
    other.mkdir()
    with zipfile.ZipFile(other / "mimic-cxr-reports.zip", "w") as archive:
        for path in (own_mimic_root / "mimic-cxr-reports").rglob("*.txt"):
            archive.write(path, path.relative_to(own_mimic_root / "mimic-cxr-reports"))
    zipped = other / "mimic-cxr-reports.zip"
    source = MimicCxr(own_mimic_root, zipped)
    assert listed_hash(zipped) is None
    (other / "SHA256SUMS.txt").write_text(f"{'1' * 64}  cxr-study-list.csv.gz\n{'0' * 64}  {zipped.name}\n")
    assert listed_hash(zipped) == "0" * 64
    with pytest.raises(DataError, match=r"mimic-cxr-reports\.zip: its sha256 differs"):
        source.scan()
    digest = hashlib.sha256(zipped.read_bytes()).hexdigest()
    (other / "SHA256SUMS.txt").write_text(f"{digest}  {zipped.name}\n")
    assert source.scan().inputs["reports"] == digest
    assert open_reports(zipped).file("10", "50") == zipped
