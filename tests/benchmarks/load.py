"""Seconds to load and to use ViT-B/16 in a fresh process: `python tests/benchmarks/load.py [--keep DIR] [--repeats N]`.

The run is the shipped configuration `mimic_vit_b16` with parameters as they are initialised, a vocabulary of 30,000 tokens and an optimizer state
beside it, as training leaves it; and the export that `msfl export` makes of it. Each repeat is a process of its own, with the files in the page cache
and nothing compiled.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import jax

from input_pipeline.tokenizer import train_tokenizer
from msfl_jax.config import MeshConfig, to_dict
from msfl_jax.config_files import load_config
from msfl_jax.export.writer import export_run
from msfl_jax.model import Model
from msfl_jax.parallel.mesh import make_mesh
from msfl_jax.tasks.run import open_run
from msfl_jax.train.checkpoint import Checkpoints
from msfl_jax.train.optimizer import make_optimizer
from msfl_jax.train.state import create_state

VOCABULARY = 30_000
LETTERS = "abcdefghijklmnopqrstuvwxyz"

USE = """
import sys, time
import numpy as np

def timed(work):
    wall, cpu = time.perf_counter(), time.process_time()
    kept = work()
    print(time.perf_counter() - wall, time.process_time() - cpu)
    return kept

def first_use():
    import msfl_jax
    return msfl_jax.load

load = timed(first_use)
model = timed(lambda: load(sys.argv[1]))
model = timed(lambda: load(sys.argv[1]))
image = np.random.default_rng(0).integers(0, 256, (2544, 3056), dtype=np.uint8)
text = "Opacity in the left lower lobe."
for use in (lambda: model.embed_image(image), lambda: model.embed_text(text), lambda: model.ground(image, text)):
    timed(use)
    timed(use)
"""
ROWS = ("import", "load", "load again", "embed_image, first", "embed_image", "embed_text, first", "embed_text")
ROWS += ("ground, first", "ground")


def write_run(workdir: Path) -> None:
    """A run directory as training leaves it, at step 0."""
    words = [f"{a}{b}{c}{d}" for a in LETTERS for b in LETTERS for c in LETTERS for d in "aei"]
    tokenizer = train_tokenizer(words[: VOCABULARY - 100], workdir / "tokenizer", vocab_size=VOCABULARY)
    config = load_config("mimic_vit_b16", [f"--config.model.text.vocab_size={VOCABULARY}"])
    (workdir / "config.json").write_text(json.dumps(to_dict(config)))
    model = Model.create(config, vocab_size=tokenizer.vocab_size)
    mesh = make_mesh(MeshConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    state = create_state(model, make_optimizer(config.optimizer, config.train.steps), 0, mesh)
    print(f"{sum(leaf.size for leaf in jax.tree.leaves(state.params)) / 1e6:.0f} million parameters")
    with Checkpoints(workdir, keep=1) as checkpoints:
        checkpoints.save(state, 0, {"tokenizer_hash": tokenizer.hash})


def print_times(path: Path, repeats: int) -> None:
    """Prints the median of each stage and its extremes, and the processor time of all its threads."""
    command = [sys.executable, "-c", USE, str(path)]
    subprocess.run(command, check=True, capture_output=True)  # warms the page cache
    outputs = [subprocess.run(command, check=True, capture_output=True, text=True).stdout for _ in range(repeats)]
    found = [[[float(value) for value in line.split()] for line in output.splitlines()] for output in outputs]
    print(f"{'seconds':20}{'median':>8}{'least':>8}{'most':>8}{'CPU, median':>14}")
    for name, *stages in zip(ROWS, *found, strict=True):
        wall, cpu = zip(*stages, strict=True)
        print(f"{name:20}{statistics.median(wall):8.2f}{min(wall):8.2f}{max(wall):8.2f}{statistics.median(cpu):14.2f}")


def main() -> None:
    """Prints a table for a run directory and one for its export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, help="folder for the run, kept and used again")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    workdir = options.keep or Path(tempfile.mkdtemp())
    workdir.mkdir(parents=True, exist_ok=True)
    if not (workdir / "checkpoints").exists():
        write_run(workdir)
    if not (workdir / "export").exists():
        export_run(open_run(workdir), workdir / "export")
    for path in (workdir, workdir / "export"):
        print(f"\n{'export' if path.name == 'export' else 'run directory'}")
        print_times(path, options.repeats)
    if options.keep is None:
        shutil.rmtree(workdir)


if __name__ == "__main__":
    main()
