"""Images per CPU-second of the image path, the whole loader and the shard writer, beside Pillow and a PyTorch DataLoader on the same files.

`python tests/benchmarks/loader.py [--images N] [--large N] [--repeats N] [--workers N]`; needs torch and Pillow. It takes a few minutes, or about one
with `--images 150 --large 24 --repeats 1`. The peer reads the same JPEGs, cuts the same rectangles (bicubic filter, clamped to the picture) and
uses the same tokenizer, on texts that it holds in memory. Each number is the best of the repeats, ours and the peer in turns. CPU time is that
of the process and its workers; other work on the machine disturbs it less than wall time. Without workers, ours and the peer are held on one
processor: ours reads in threads, which would count twice where two processors share a core. Splits below a few thousand records cost ours more
than larger ones: grain finds the next record of a shuffled split by trial, 85 us at 200 records, 20 at 1,000 and 4 at 200,000.
"""

import argparse
import contextlib
import datetime
import io
import itertools
import json
import os
import platform
import resource
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from input_pipeline import images
from input_pipeline.build import build
from input_pipeline.datasets.mimic_cxr import MimicCxr
from input_pipeline.datasets.synthetic import synthesize
from input_pipeline.loader import BatchSpec, text_sentences, train_batches
from input_pipeline.reading import open_split
from input_pipeline.tokenizer import ReportTokenizer, train_tokenizer

VIEW, SHORT_SIDE, BATCH = 224, 512, 32
SCALE, SHIFT = (0.6, 1.0), 0.05
STORED_GRAIN, FULL_GRAIN = 1.6, 1.8  # gives files as large as real ones: 68 kB at 512 pixels, 1.5 MB in full
STEPS, DRAIN = 24, 16  # batches measured, and before them at most as many as a loader makes before it is asked
STORED_SIZE, FULL_SIZE = (512, 624), (2544, 3056)  # width, height


class Rate(NamedTuple):
    """Images per CPU-second and per second of wall time."""

    cpu: float
    wall: float


def cpu_seconds() -> float:
    """User and system time of this process, its finished children and, on Linux, those still running."""
    ended = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in ended) + running_children() / os.sysconf("SC_CLK_TCK")


def running_children() -> int:
    """Clock ticks that living children have used."""
    ticks = 0
    for path in Path("/proc/self/task").glob("*/children"):
        for child in path.read_text().split():
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks


def measure(work: Callable[[], int]) -> Rate:
    """Rates of one run; `work` returns how many images it did."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    count = work()
    return Rate(count / (cpu_seconds() - cpu), count / (time.perf_counter() - wall))


@contextlib.contextmanager
def one_processor() -> Iterator[None]:
    """Holds this process, and the threads that it starts, on one processor, where the system can."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def best(first: Callable[[], int], second: Callable[[], int], repeats: int) -> tuple[Rate, Rate]:
    """The best rates of two pieces of work that take turns."""
    rates: tuple[list[Rate], list[Rate]] = ([], [])
    for _ in range(repeats):
        for work, found in zip((first, second), rates, strict=True):
            found.append(measure(work))
    return best_of(rates[0]), best_of(rates[1])


def best_of(rates: list[Rate]) -> Rate:
    """The best of each."""
    return Rate(max(rate.cpu for rate in rates), max(rate.wall for rate in rates))


def pillow_view(file: str | io.BytesIO, rng: np.random.Generator) -> np.ndarray:
    """The training view as one would write it with Pillow: the same rectangle, clamped to the picture."""
    with Image.open(file) as opened:
        width, height = opened.size
        zoom = np.sqrt(rng.uniform(*SCALE))
        shift = rng.uniform(-SHIFT, SHIFT, size=2)
        side = min(height, width)
        top = (height - side) / 2 + side * (shift[0] + (1 - zoom) / 2)
        left = (width - side) / 2 + side * (shift[1] + (1 - zoom) / 2)
        top, left = (float(np.clip(at, 0, end - side * zoom)) for at, end in ((top, height), (left, width)))
        box = (left, top, left + side * zoom, top + side * zoom)
        return np.asarray(opened.resize((VIEW, VIEW), Image.Resampling.BICUBIC, box=box))


class LooseFiles(Dataset):
    """Loose JPEGs and their sentences, read with Pillow."""

    def __init__(self, folder: Path, tokenizer: ReportTokenizer, max_tokens: int, max_sentences: int):
        self._files = sorted(str(path) for path in folder.glob("*.jpg"))
        self._sentences = json.loads((folder / "sentences.json").read_text())
        self._tokenizer, self._sizes = tokenizer, {"max_tokens": max_tokens, "max_sentences": max_sentences}

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        view = pillow_view(self._files[index], np.random.default_rng(index))
        token_ids, sentence_ids = self._tokenizer.encode_report(self._sentences[index], **self._sizes)
        arrays = {"image": view[..., None], "token_ids": token_ids, "sentence_ids": sentence_ids}
        return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}


def endless(loader: DataLoader) -> Iterator[dict[str, torch.Tensor]]:
    """Epoch after epoch."""
    while True:
        yield from loader


def compare_image_paths(stored: list[bytes], repeats: int) -> tuple[Rate, Rate]:
    """Decode, cut and resize in one thread."""

    def ours() -> int:
        for index, data in enumerate(stored):
            rng = np.random.default_rng(index)
            images.training_view(images.decode_gray(data), VIEW, rng, scale=SCALE, shift=SHIFT)
        return len(stored)

    def peer() -> int:
        for index, data in enumerate(stored):
            pillow_view(io.BytesIO(data), np.random.default_rng(index))
        return len(stored)

    return best(ours, peer, repeats)


def compare_loaders(records: Path, loose: Path, tokenizer: Path, workers: int, repeats: int) -> tuple[Rate, Rate]:
    """Batches from shards beside batches from loose files; a loader that is not measured is closed."""
    spec = BatchSpec(str(tokenizer), VIEW, 100, 20, scale=SCALE, shift=SHIFT)
    files = LooseFiles(loose, ReportTokenizer.load(tokenizer), spec.max_tokens, spec.max_sentences)
    more = {"persistent_workers": True, "multiprocessing_context": "spawn"} if workers else {}
    ours, peer = [], []
    for _ in range(repeats):
        with train_batches(records, spec, batch_size=BATCH, seed=0, workers=workers) as batches:
            ours.append(steady_rate(batches))
        loader = DataLoader(files, BATCH, shuffle=True, drop_last=True, num_workers=workers, **more)
        peer.append(steady_rate(endless(loader)))
        del loader
    return best_of(ours), best_of(peer)


def steady_rate(batches: Iterator) -> Rate:
    """Rate after what was made ahead is used up: from then on nothing is ahead, because nothing else takes time."""
    deque(itertools.islice(batches, DRAIN), maxlen=0)

    def take() -> int:
        deque(itertools.islice(batches, STEPS), maxlen=0)
        return STEPS * BATCH

    return measure(take)


def write_stored(root: Path, studies: int) -> tuple[Path, Path, Path]:
    """Returns a build of images of 512 pixels, the same JPEGs as loose files with their sentences, and a tokenizer."""
    source = root / "stored"
    synthesize(source, studies=studies, seed=0, progress=False)
    for index, path in enumerate(sorted(source.rglob("*.jpg"))):
        path.write_bytes(images.encode_jpeg(add_grain(read(path), STORED_SIZE, STORED_GRAIN, index)))
    records = root / "data" / "stored"
    build(MimicCxr(source, source), records, workers=1, shard_records=256, progress=False)
    loose = root / "loose"
    loose.mkdir()
    sentences = []
    for index, record in enumerate(open_split(records, "train")):
        (loose / f"{index:06d}.jpg").write_bytes(record.image)
        sentences.append(record.sentences)
    (loose / "sentences.json").write_text(json.dumps(sentences))
    train_tokenizer(text_sentences(records, "train"), root / "tokenizer")
    return records, loose, root / "tokenizer"


def read(path: Path) -> np.ndarray:
    """Grey levels of a JPEG."""
    return images.decode_gray(path.read_bytes())


def add_grain(image: np.ndarray, size: tuple[int, int], strength: float, seed: int) -> np.ndarray:
    """The image, its own grain smoothed away, at another size (width, height) with new grain."""
    grain = np.random.default_rng(seed).normal(0, strength, (size[1], size[0]))
    enlarged = cv2.resize(cv2.GaussianBlur(image, (0, 0), 1), size, interpolation=cv2.INTER_CUBIC)
    return np.clip(enlarged + grain, 0, 255).astype(np.uint8)


def write_full(root: Path, studies: int, name: str) -> MimicCxr:
    """A data set of full-size images; a few distinct ones under many names."""
    source = root / name
    synthesize(source, studies=studies, seed=1, progress=False)
    paths = sorted(source.rglob("*.jpg"))
    for index, path in enumerate(paths):
        if index < 8:
            path.write_bytes(images.encode_jpeg(add_grain(read(path), FULL_SIZE, FULL_GRAIN, index)))
        else:
            path.unlink()
            os.link(paths[index % 8], path)
    return MimicCxr(source, source)


def build_rate(root: Path, small: MimicCxr, large: MimicCxr, workers: int) -> Rate:
    """Rate of the images that a larger build has more than a smaller one, so that the start of workers does not count."""
    results = []
    for source in (small, large):
        with tempfile.TemporaryDirectory(dir=root) as folder:
            cpu, wall = cpu_seconds(), time.perf_counter()
            made = build(source, Path(folder) / "out", workers=workers, shard_records=8, progress=False)
            results.append((made.input_rows, cpu_seconds() - cpu, time.perf_counter() - wall))
    rows, cpu, wall = np.subtract(results[1], results[0])
    return Rate(rows / cpu, rows / wall)


def pillow_rate(source: MimicCxr) -> Rate:
    """The same with Pillow: decode, bicubic to a short side of 512, encode."""
    paths = sorted(source.jpg.rglob("*.jpg"))[:16]

    def work() -> int:
        for path in paths:
            with Image.open(path) as opened:
                scale = SHORT_SIDE / min(opened.size)
                size = round(opened.size[0] * scale), round(opened.size[1] * scale)
                opened.resize(size, Image.Resampling.BICUBIC).save(io.BytesIO(), "jpeg", quality=95)
        return len(paths)

    return measure(work)


def compare_builds(root: Path, images_of_large: int, workers: int) -> None:
    """Prints the rows of builds from full-size files."""
    small, large = write_full(root, 8, "small"), write_full(root, images_of_large, "large")
    size, peer = os.path.getsize(next(small.jpg.rglob("*.jpg"))) / 1e6, pillow_rate(small)
    for count in (1, workers):
        print_row(f"build from {size:.2f} MB, {count} workers", build_rate(root, small, large, count), peer)


def describe_machine() -> str:
    """Date, processor and versions, in one line."""
    model = platform.processor() or platform.machine()
    if (cpuinfo := Path("/proc/cpuinfo")).is_file():
        model = next((line.split(": ")[1] for line in cpuinfo.read_text().splitlines() if "model name" in line), model)
    packages = ("opencv-python-headless", "grain", "pillow", "torch")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    load = f"load {os.getloadavg()[0]:.1f}"
    return f"{datetime.date.today()}  {model}, {os.cpu_count()} processors ({load})  Python {platform.python_version()}, {versions}"


def print_row(name: str, ours: Rate, peer: Rate | None) -> None:
    """One row of the table."""
    cells = "".join(f"{value:10.0f}" for value in ours)
    if peer:
        cells += "".join(f"{value:10.0f}" for value in peer)
        cells += f"{ours.cpu / peer.cpu:10.2f}{ours.wall / peer.wall:8.2f}"
    print(f"{name:34}{cells}", flush=True)


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=1000, help="stored images (default 1000)")
    parser.add_argument(
        "--large", type=int, default=64, help="images of the larger build of full-size files (default 64); 0: no builds"
    )
    parser.add_argument("--repeats", type=int, default=3, help="runs of each, of which the best counts (default 3)")
    parser.add_argument("--workers", type=int, default=2, help="workers of the loader and the build (default 2)")
    options = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        records, loose, tokenizer = write_stored(root, options.images)
        stored = [path.read_bytes() for path in sorted(loose.glob("*.jpg"))]
        print(describe_machine())
        size = np.mean([len(data) for data in stored]) / 1000
        print(f"JPEG, quality 95, stored {size:.0f} kB; best of {options.repeats}; images per second\n")
        print(f"{'':34}{'ours/CPU':>10}{'ours/wall':>10}{'peer/CPU':>10}{'peer/wall':>10}{'ratio CPU':>10}{'wall':>8}")
        with one_processor():
            print_row("decode, cut, resize to 224", *compare_image_paths(stored[:300], options.repeats))
        for workers in (0, options.workers):
            with contextlib.nullcontext() if workers else one_processor():
                rates = compare_loaders(records, loose, tokenizer, workers, options.repeats)
            print_row(f"loader, {workers} workers", *rates)
        if options.large:
            compare_builds(root, options.large, options.workers)
        print("\npeer: Pillow; PyTorch DataLoader with Pillow; Pillow in one process")


if __name__ == "__main__":
    main()
