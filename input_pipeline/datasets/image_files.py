"""Where the image files of a release lie, and which of them no table names."""

import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from input_pipeline import progress
from input_pipeline.compact import Names, Texts, alphabetical
from input_pipeline.sources import Note, Scan

SUFFIXES = (".dcm", ".png", ".jpg", ".jpeg")  # of two files of one image, the one with less loss is read


def find_images(
    root: Path, folders: Sequence[str], scan: Scan, image_of: Callable[[str], str] = str
) -> Mapping[str, str]:
    """Paths of the image files, relative to `root`, by their names without suffix; each tree is walked once.

    Args:
      root: the folder of the release.
      folders: names of those in it, walked to any depth; "" is the root itself, whose own files alone count. Of several files with one name that in
        the first folder counts, and within a folder that with the first of `SUFFIXES`.
      scan: notes the other files of such an image, if it is lenient.
      image_of: turns a file's name without suffix into `ImageRow.image`.
    """
    found = Texts()
    for folder in folders:
        for path in progress.counted(image_files(root, folder), folder or "release", "image files"):
            stem = os.path.splitext(path.rpartition("/")[2])[0]
            other = found.get(stem)
            if scan.lenient and other is not None:
                scan.notes.append(Note("two_files", image_of(stem), root / path))
            if other is None or _preference(path, folders) < _preference(other, folders):
                found[stem] = path
    return found


def _preference(path: str, folders: Sequence[str]) -> tuple[int, int, str]:
    """The least is preferred."""
    folder, _, rest = path.partition("/")
    return folders.index(folder if rest else ""), SUFFIXES.index(os.path.splitext(path)[1].lower()), path


def note_strays(
    scan: Scan,
    root: Path,
    files: Iterable[tuple[str, str]],
    named: Container[str],
    image_of: Callable[[str], str] = str,
) -> None:
    """Notes files of images that no table names, not even in a row that is wrong; only a lenient scan does.

    Args:
      scan: that has read the tables.
      root: the folder of the release.
      files: name without suffix and path of each, as the items of `find_images`; of one name the last path is noted.
      named: images of the tables.
      image_of: as in `find_images`.
    """
    if not scan.lenient:
        return
    wrong, strays = Names(), Texts()
    for problem in scan.problems:
        wrong.add(problem.identifier)
    for stem, path in files:
        if (image := image_of(stem)) not in named and image not in wrong:
            strays[stem] = path
    for number in map(int, alphabetical(strays.names)):
        stem = strays.names[number]
        scan.notes.append(Note("file_in_no_table", image_of(stem), root / strays[stem]))


def image_files(root: Path, folder: str) -> Iterator[str]:
    """Paths of the image files in a folder of `root`, to any depth and relative to `root`; of "" those in `root` itself."""
    for directory, below, names in os.walk(root / folder):
        prefix = Path(directory).relative_to(root).as_posix()
        for name in names:
            if name.lower().endswith(SUFFIXES):
                yield name if prefix == "." else f"{prefix}/{name}"
        if not folder:
            below.clear()


def image_of_name(name: str) -> str:
    """The image that a list or a path names: its last part without the suffix of an image; identifiers have dots of their own."""
    last = name.rpartition("/")[2]
    return next((last[: -len(end)] for end in SUFFIXES if last.lower().endswith(end)), last)
