"""Milliseconds of a pretraining step, ours beside a PyTorch model with the same weights: `python tests/benchmarks/step.py [--size s16] [--batch 64]`.

Loss and gradients of both sides are compared first, in float32; where they differ, nothing is timed. Then each side runs in processes of its own, in
turn, twice. Images and reports are random; no data set is needed. On a CPU with one thread, time is that of the process; elsewhere, between the ends
of consecutive steps.
"""

import argparse
import dataclasses
import datetime
import functools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import zlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import step_common as common
import step_table as table
import step_trace as trace
from safetensors.numpy import load_file, save_file
from step_common import Plan

from msfl_jax import encoders, losses
from msfl_jax.config import Config, to_dict
from msfl_jax.config_files import load_config
from msfl_jax.export.mapping import to_format
from msfl_jax.model import Keys, Model
from msfl_jax.parallel.sharding import path_name

# One pass over half of the patches and one over the masked report, half as long, and a decoder of a quarter of the width.
ONE_PASS = ("image.passes=shared", "image.mask_ratio=0.5", "text.passes=shared", "model.text.max_tokens=64")
ONE_PASS += ("model.pixel_decoder.width=192", "model.pixel_decoder.heads=3")
SIZES = {
    "tiny": ("demo", 512, ()),
    "s16": ("mimic_vit_s16", 30_000, ()),
    "s16-one-pass": ("mimic_vit_s16", 30_000, ONE_PASS),
    "b16": ("mimic_vit_b16", 30_000, ()),
}
CHECK_ROWS = 4
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-3
# Share of the time by whose end each visit begins no further row.
VISITS = (("ours", "main", 0.5), ("torch", "main", 0.8), ("ours", "main", 0.9), ("torch", "main", 0.95))
VISITS += (("ours", "extra", 1.0), ("torch", "extra", 1.0))
GRACE = 60  # seconds that a row begun in time may still take


def make_batch(config: Config, vocab_size: int, rows: int, seed: int) -> dict[str, np.ndarray]:
    """Random images and reports; lengths are those of radiology reports, sentences of about twelve tokens."""
    rng, text, size = np.random.default_rng([seed, rows]), config.model.text, config.model.vision.image_size
    tokens = np.clip(rng.lognormal(np.log(0.55 * text.max_tokens), 0.4, rows), 12, text.max_tokens).astype(int)
    place = np.arange(text.max_tokens)
    token_ids = rng.integers(6, vocab_size, (rows, text.max_tokens))
    token_ids = np.where(place < tokens[:, None], token_ids, 0)
    words = (place > 0) & (place < tokens[:, None] - 1)
    token_ids = np.where(words | (token_ids == 0), token_ids, 3)
    token_ids[:, 0] = 2
    sentence = np.minimum(np.cumsum(rng.random(token_ids.shape) < 1 / 12, axis=1) + 1, config.text.max_sentences)
    return {
        "image": rng.integers(0, 256, (rows, size, size, 1), dtype=np.uint8),
        "token_ids": token_ids.astype(np.int32),
        "sentence_ids": np.where(words, sentence, 0).astype(np.int32),
        "study_key": rng.permutation(rows).astype(np.uint32),
    }


def draw(model: Model, batch: dict[str, np.ndarray], keys: Keys) -> dict[str, np.ndarray]:
    """What our model draws for a batch: masks, and negatives as if all similarities were equal."""
    drawn = jax.jit(functools.partial(_drawn, model))(batch["token_ids"], batch["study_key"], keys)
    return {name: np.asarray(value) for name, value in drawn.items()}


def _drawn(model: Model, token_ids: jax.Array, study_key: jax.Array, keys: Keys) -> dict[str, jax.Array]:
    config, same = model.config, study_key[:, None] == study_key
    patches = config.model.vision.grid**2
    visible = encoders.count_visible(patches, config.image.mask_ratio)
    image = encoders.random_masking(keys.image_mask, len(token_ids), patches, visible)
    rules: Any = {"rate": config.text.mask_rate, "replacement": config.text.mask_replacement}
    text = encoders.mask_tokens(keys.text_mask, token_ids, **rules, vocab_size=model.vocab_size, special=model.special)
    drawn = losses.sample_hard_negatives(jnp.zeros(same.shape), keys.negatives, exclude=same)
    found = {"masked_ids": text.token_ids, "positions": text.positions, "targets": text.targets}
    found |= {"token_weights": text.weights, "report": drawn.report, "image_index": drawn.image}
    return found | {"has_report": drawn.has_report, "has_image": drawn.has_image, **image._asdict()}


def benchmark_config(size: str) -> tuple[Config, int]:
    """The shipped configuration of a size, instance matching at full weight from step 1, and how many words there are."""
    name, vocab_size, changed = SIZES[size]
    config = load_config(name, [f"--config.{change}" for change in changed])
    matching = dataclasses.replace(config.objective.instance_matching, ramp=(0.0, 0.0))
    return dataclasses.replace(
        config, objective=dataclasses.replace(config.objective, instance_matching=matching)
    ), vocab_size


def random_params(model: Model) -> Any:
    """Parameters without compiling an initialiser."""
    return jax.tree_util.tree_map_with_path(_random, jax.eval_shape(model.init, jax.random.key(0)))


def prepare(folder: Path, config: Config, vocab_size: int, batches: list[int]) -> None:
    """Writes the configuration, one set of weights and the batches."""
    model = Model.create(config, vocab_size=vocab_size)
    (folder / "config.json").write_text(json.dumps({"config": to_dict(config), "vocab_size": vocab_size}))
    save_file(to_format(random_params(model), "msfl", config), folder / "weights.safetensors")
    for rows in {CHECK_ROWS, *batches}:
        batch = make_batch(config, vocab_size, rows, config.seed)
        drawn = draw(model, batch, Keys.at(config.seed, 0))
        np.savez(folder / f"batch_{rows}.npz", **batch, **drawn)


def _random(path: Any, leaf: Any) -> np.ndarray:
    """Values for one parameter, scaled as initialisers do; no bias is 0 and no scale 1, or a swapped name would not show."""
    name = path_name(path)
    values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(leaf.shape, dtype=np.float32)
    if name.endswith("log_scale"):
        return np.float32(2.66) + 0 * values  # a temperature of .07
    if name.endswith("kernel"):
        return values * np.float32(leaf.shape[-2] ** -0.5)
    return np.float32(name.endswith("scale")) + np.float32(0.02) * values


def start(side: str, mode: str, plan: Plan, device: str) -> subprocess.Popen[str]:
    """One side in a process of its own; compiled programs are kept for its next visit."""
    folder = Path(plan.folder)
    environment = os.environ | {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "jax"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TRITON_CACHE_DIR": str(folder / "triton"),
    }
    if device == "cpu":
        environment |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    elif mode == "check":  # it runs once: looking for the fastest products would take minutes
        environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0"
    program = Path(__file__).with_name(f"step_{side}.py")
    command = [sys.executable, str(program), mode, plan.write()]
    with (folder / f"{side}_{mode}.log").open("a") as log:
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)


def check(plan: Plan, device: str) -> str:
    """Compares loss and gradients of both sides in float32; one line about it.

    Raises:
      SystemExit: they differ, or a side failed.
    """
    folder, sides = Path(plan.folder), ("ours", "torch")
    children = []
    for side in sides:
        children.append(start(side, "check", plan, device))
        if device == "cpu":
            children[-1].wait()
    for side, child in zip(sides, children, strict=True):
        if child.wait():
            raise SystemExit(
                f"error: the check of '{side}' failed:\n{(folder / f'{side}_check.log').read_text()[-3000:]}"
            )
    ours, theirs = (load_file(folder / f"check_{side}.safetensors") for side in sides)
    expected, found = (float(side.pop("loss")[0]) for side in (ours, theirs))
    loss = abs(found - expected) / abs(expected)
    # The true gradient of a key's bias is 0, and what is computed is rounding.
    worst = sorted(
        ((_apart(gradient, theirs.get(name)), name) for name, gradient in ours.items() if ".key.bias" not in name),
        reverse=True,
    )
    line = f"check: loss {expected:.6f}, relative difference {loss:.1e}; worst of {len(worst)} gradients {worst[0][0]:.1e} ({worst[0][1]})"
    if not (loss <= LOSS_TOLERANCE and worst[0][0] <= GRADIENT_TOLERANCE):
        raise SystemExit(
            f"error: the two sides differ, nothing is timed; torch's loss is {found:.6f}\n{line}\n{worst[:8]}"
        )
    return line


def _apart(ours: np.ndarray, theirs: np.ndarray | None) -> float:
    """Relative difference in norm; infinite where one is missing."""
    length = float(np.linalg.norm(ours))
    if theirs is None or not np.isfinite(length):
        return np.inf if length else 0.0
    difference = float(np.linalg.norm(ours - theirs))
    if not np.isfinite(difference):
        return np.inf
    return difference / length if length else (np.inf if difference else 0.0)


def visit(side: str, mode: str, plan: Plan, device: str) -> list[dict[str, Any]]:
    """The rows that one process measured, as far as it came."""
    child = start(side, mode, plan, device)
    try:
        output, _ = child.communicate(timeout=max(plan.deadline - time.time(), 0) + GRACE)
    except subprocess.TimeoutExpired:
        child.kill()
        output, _ = child.communicate()
    finally:
        child.kill()
    rows = list(common.read_rows(output))
    if child.returncode:
        log = (Path(plan.folder) / f"{side}_{mode}.log").read_text().strip().splitlines()
        said = f"process ended with {child.returncode}: {log[-1] if log else ''}"[:300]
        rows.append({"side": side, "part": f"({mode} rows)", "variant": "", "batch": 0, "error": said})
    return rows


def take_turns(plan: Plan, device: str, end: float) -> list[dict[str, Any]]:
    """All visits, until `end` of `time.time()`."""
    measured: list[dict[str, Any]] = []
    begin = time.time()
    for side, mode, share in VISITS:
        until = begin + share * (end - begin)
        if time.time() >= until:
            print(f"{side}, {mode} rows: left out, no time", flush=True)
            continue
        measured += visit(side, mode, dataclasses.replace(plan, deadline=until), device)
        print(f"{side}, {mode} rows: after {time.time() - begin:.0f} s", flush=True)
    return measured


def header(device: str, plan: Plan, size: str) -> dict[str, Any]:
    """When, where and with what; printed first and written with every row."""
    names = ("jax", "jaxlib", "flax", "torch", "numpy")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "size": size,
        "dtype": plan.dtype,
        "on": device,
        "threads": plan.threads,
        "machine": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names},
    }


def main() -> None:
    """Prepares, compares, times, prints."""
    jax.config.update("jax_platforms", "cpu")  # of this process: the device is for its children
    options = parse()
    device = options.device
    if device == "auto":
        device = "gpu" if Path("/proc/driver/nvidia/version").exists() else "cpu"
    threads = options.threads or (1 if device == "cpu" else len(os.sched_getaffinity(0)))
    begin = time.time()
    with tempfile.TemporaryDirectory(prefix="step_") as folder:
        plan = Plan(
            folder=folder,
            batches=tuple(options.batch),
            steps=-(-options.steps // 2),
            warmup=options.warmup,
            dtype=options.dtype,
            threads=threads,
            deadline=begin + options.seconds,
            rows=options.rows,
            profile=str(options.profile.resolve()) if options.profile else "",
        )
        about = header(device, plan, options.size)
        print(json.dumps(about))
        config, vocab_size = benchmark_config(options.size)
        prepare(Path(folder), config, vocab_size, options.batch)
        print(f"prepared in {time.time() - begin:.0f} s", flush=True)
        print(check(dataclasses.replace(plan, dtype="float32"), device), f"({time.time() - begin:.0f} s)", flush=True)
        measured = take_turns(plan, device, begin + options.seconds)
    ceilings = next((row for row in measured if "ceilings" in row), {})
    rows = table.merge([row for row in measured if "ceilings" not in row])
    rows = table.complete(rows, config, vocab_size, ceilings)
    print(json.dumps(ceilings))
    table.print_table(rows)
    if options.profile:
        trace.print_profiles(options.profile)
    if options.json:
        with options.json.open("a") as file:
            file.writelines(json.dumps(about | {"ceilings": ceilings} | row) + "\n" for row in rows)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--size",
        choices=SIZES,
        default="tiny",
        help="of the model; s16 and b16 are mimic_vit_*, s16-one-pass is a lighter s16",
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[8], help="studies per step, one or more")
    parser.add_argument("--steps", type=int, default=30, help="timed, over two visits")
    parser.add_argument("--warmup", type=int, default=10, help="steps before, each visit")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of matrix products")
    parser.add_argument("--seconds", type=float, default=900, help="after which no further row begins")
    parser.add_argument("--threads", type=int, default=0, help="0: one on a CPU, all beside a GPU")
    parser.add_argument("--rows", default="", help="regular expression, as 'full' or 'torch local'")
    parser.add_argument(
        "--profile", type=Path, help="folder for traces of three steps of our rows; what they spend is printed"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto")
    parser.add_argument("--json", type=Path, help="file to which one line per row is added")
    return parser.parse_args()


if __name__ == "__main__":
    main()
