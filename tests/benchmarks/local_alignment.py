"""Milliseconds of the local loss with its gradient, ours beside PyTorch: `python tests/benchmarks/local_alignment.py [--size B,P,E ...]`.

Peers, written by us (`torch_losses.py`): "loop", a Python loop over reports as GLoRIA, MaCo and AFLoc have it; "lean loop", the same without the
copies that they make of transposed and repeated arrays; "contexts", all pairs at once with every context formed, which is that loop vectorised;
"at once", all pairs in the algebra of ours, without contexts where that is less work; "blocks", the same in blocks of reports whose backward pass
computes them anew. Values and gradients are compared with ours in the same run before anything more is timed. On a CPU there is one thread, and time
is that of the process.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import step_common as common

SIZES = ("32,49,128", "64,49,128", "64,196,128", "32,98,768", "64,98,768")  # B studies, P regions, E values of a vector
# Function in `torch_losses`, and its options.
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "torch loop": ("local_loop", {}),
    "torch lean loop": ("local_loop", {"copies": False}),
    "torch contexts": ("local_vectorised", {"gram": False}),
    "torch at once": ("local_vectorised", {}),
    "torch blocks": ("local_blockwise", {}),
    "torch at once, compiled": ("local_vectorised", {}),
}
SIDES = ("ours", *PEERS)
SENTENCES, FEWEST = 8, 2  # units of a report with padding; reports have 2 to 8
BLOCKS = (8, 16, 32, 64)  # reports; PyTorch's best is its row, ours chooses itself
TOLERANCE = {"float32": 2e-5, "bfloat16": 3e-2}
HEADER = ("B,P,E", "side", "ms", "IQR", "n", "TFLOP/s", "% matmul", "peak MB", "loss", "ours is faster by")


def make_batch(size: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Regions, sentences and their mask; raw scores have a deviation of about 3."""
    studies, patches, width = size
    rng = np.random.default_rng(size)
    scale = np.float32(np.sqrt(3) * width**-0.25)
    regions = scale * rng.standard_normal((studies, patches, width), dtype=np.float32)
    sentences = scale * rng.standard_normal((studies, SENTENCES, width), dtype=np.float32)
    return regions, sentences, np.arange(SENTENCES) < rng.integers(FEWEST, SENTENCES + 1, (studies, 1))


def flops(size: tuple[int, int, int]) -> float:
    """Of both passes in the form with the fewest operations, 4U + 3W or 8U, padding counted; ours takes one U less where it keeps similarities."""
    studies, patches, width = size
    pairs = 2.0 * studies**2 * SENTENCES * patches
    return pairs * min(4 * width + 3 * patches, 8 * width)


def ours(arrays: tuple[np.ndarray, ...], dtype: str) -> tuple[Callable[[], Any], Callable[[], Any], Any]:
    """Begins a loss with gradient, and returns what it found as arrays, and the compiled program."""
    import jax

    from msfl_jax.losses import local_alignment

    given = [jax.device_put(array.astype(dtype) if array.dtype != bool else array) for array in arrays]
    step = jax.jit(jax.value_and_grad(local_alignment, argnums=(0, 1))).lower(*given).compile()
    return lambda: step(*given), lambda: jax.device_get(step(*given)), step


def torch_side(side: str, arrays: tuple[np.ndarray, ...], dtype: str, block: int) -> tuple[Any, Any]:
    """Likewise in PyTorch; bfloat16 by autocast, which knows what needs float32."""
    import torch
    import torch_losses

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1 if device == "cpu" else torch.get_num_threads())
    regions, sentences, mask = (torch.from_numpy(array).to(device) for array in arrays)
    regions, sentences = (a.to(getattr(torch, dtype)).float().requires_grad_() for a in (regions, sentences))
    mixed = torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == "bfloat16")
    torch.set_float32_matmul_precision("highest" if dtype == "float32" else "high")
    name, options = PEERS[side]
    options = options | ({"block": block} if block else {})
    loss = getattr(torch_losses, name)
    if side.endswith("compiled"):
        loss = torch.compile(loss)

    def begin() -> Any:
        regions.grad = sentences.grad = None
        with mixed:
            value = loss(regions, sentences, mask, **options)
        value.backward()
        return value.detach()

    def result() -> Any:
        value = begin()
        return value.float().cpu().numpy(), tuple(a.grad.float().cpu().numpy() for a in (regions, sentences))

    return begin, result


def run_side(side: str, size: tuple[int, int, int], dtype: str, seconds: float, folder: Path) -> Iterator[dict]:
    """Rows of one side at one size, in a process of its own; its result lies in the folder, for the comparison."""
    if not _on_gpu():
        common.pin(1)
    clock = time.perf_counter if _on_gpu() else time.process_time
    arrays = make_batch(size)
    for block in BLOCKS if side == "torch blocks" else (0,):
        row: dict[str, Any] = {"side": side, "size": size, "block": block}
        try:
            if side == "ours":
                begin, result, program = ours(arrays, dtype)
                wait: Callable[[Any], Any] = lambda value: value[0].block_until_ready()  # noqa: E731
            else:
                begin, result = torch_side(side, arrays, dtype, block)
                wait = _synchronize
            value, gradients = result()
            regions, sentences = (np.asarray(gradient, np.float32) for gradient in gradients)
            np.savez(folder / f"{side}.npz", value=value, regions=regions, sentences=sentences)
            row["loss"] = float(value)
            row["steps"] = _times(begin, wait, clock, seconds)
            row["peak_bytes"] = _peak_of(program) if side == "ours" else _torch_peak()
        except Exception as error:  # the other rows are still worth having
            row["error"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:160]
        yield row


def _on_gpu() -> bool:
    """Whether there is an NVIDIA GPU; asked before a library counts the cores."""
    return Path("/proc/driver/nvidia/version").exists()


def _times(begin: Callable[[], Any], wait: Callable[[Any], Any], clock: Callable[[], float], seconds: float) -> list:
    """Seconds of single runs, at least 5, for about so long."""
    for _ in range(3):
        wait(begin())
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < 5 or (time.perf_counter() < end and len(taken) < 200):
        start = clock()
        wait(begin())
        taken.append(clock() - start)
    return taken


def _synchronize(_: Any) -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _torch_peak() -> int | None:
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


def _peak_of(program: Any) -> int | None:
    memory = program.memory_analysis()
    return None if memory is None else memory.temp_size_in_bytes + memory.argument_size_in_bytes


def matmul_tflops(dtype: str) -> float:
    """Of a large product in the same run, on the device of ours."""
    if not _on_gpu():
        common.pin(1)
    import jax
    import jax.numpy as jnp

    side = 8192 if _on_gpu() else 1024
    a = jax.random.normal(jax.random.key(0), (side, side), dtype)
    product = jax.jit(lambda a: jnp.matmul(a, a))
    product(a).block_until_ready()
    clock = time.perf_counter if _on_gpu() else time.process_time
    taken = []
    for _ in range(10):
        start = clock()
        product(a).block_until_ready()
        taken.append(clock() - start)
    return 2 * side**3 / statistics.median(taken) / 1e12


def in_child(arguments: list[str]) -> list[dict[str, Any]]:
    """What a call of this program prints as rows."""
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    rows = list(common.read_rows(done.stdout))
    if not rows:
        raise SystemExit(f"error: {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return rows


def compare(folder: Path, side: str, dtype: str) -> None:
    """Raises SystemExit unless a side found the value and gradients of ours."""
    with np.load(folder / "ours.npz") as expected, np.load(folder / f"{side}.npz") as found:
        apart = {
            name: np.linalg.norm(found[name].astype("f8") - expected[name])
            / np.linalg.norm(expected[name].astype("f8"))
            for name in ("value", "regions", "sentences")
        }
    if not all(each <= TOLERANCE[dtype] for each in apart.values()):  # nor where one is no number
        raise SystemExit(f"error: '{side}' differs from ours by {apart}; nothing more is timed")


def measure(sizes: list[str], sides: list[str], dtype: str, seconds: float, folder: Path) -> Iterator[list[dict]]:
    """The rows of one size after the other; PyTorch's blocks are those of its best size."""
    for size in sizes:
        kept = []
        for side in sides:
            results = folder / size
            results.mkdir(exist_ok=True)
            arguments = ["--side", side, "--size", size, "--dtype", dtype, "--seconds", str(seconds)]
            rows = in_child([*arguments, "--folder", str(results)])
            timed = [row for row in rows if "steps" in row]
            kept.append(min(timed, key=lambda row: statistics.median(row["steps"])) if timed else rows[0])
            if timed and side != "ours":
                compare(results, side, dtype)
        yield kept


def lines(rows: list[dict[str, Any]], matmul: float) -> Iterator[tuple[str, ...]]:
    """Cells of the table."""
    first = next((statistics.median(row["steps"]) for row in rows if row["side"] == "ours" and "steps" in row), None)
    for row in rows:
        size, block = ",".join(map(str, row["size"])), f" of {row['block']}" if row["block"] else ""
        if "error" in row:
            yield size, row["side"], row["error"]
            continue
        low, middle, high = statistics.quantiles(row["steps"], n=4)
        tera = flops(tuple(row["size"])) / middle / 1e12
        peak = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.0f}"
        ratio = "-" if first is None or row["side"] == "ours" else f"{middle / first:.2f}"
        cells = (f"{1e3 * middle:.2f}", f"{1e3 * (high - low):.2f}", f"{len(row['steps'])}", f"{tera:.3g}")
        yield size, row["side"] + block, *cells, f"{100 * tera / matmul:.1f}", peak, f"{row['loss']:.5f}", ratio


def main() -> None:
    """Compares, times, prints; or, as a child, runs one side."""
    options = parse()
    if options.side:
        size = tuple(map(int, options.size[0].split(",")))
        for row in run_side(options.side, size, options.dtype, options.seconds, options.folder):
            common.report(row)
        return
    if options.matmul:
        common.report({"matmul": matmul_tflops(options.dtype)})
        return
    matmul = in_child(["--matmul", "--dtype", options.dtype])[0]["matmul"]
    about = {name: version(name) for name in ("jax", "torch", "numpy")}
    print(
        f"{datetime.date.today()}, {platform.machine()}, python {platform.python_version()}, {about}, {options.dtype}"
    )
    print(
        f"a large matrix product reaches {matmul:.3g} TFLOP/s; {SENTENCES} sentences a report, {FEWEST} to {SENTENCES} of them real"
    )
    print("".join(f"{cell:<26}" if i == 1 else f"{cell:<14}" for i, cell in enumerate(HEADER)))
    with tempfile.TemporaryDirectory() as folder:
        for rows in measure(options.size, options.sides.split(";"), options.dtype, options.seconds, Path(folder)):
            for cells in lines(rows, matmul):
                print("".join(f"{cell:<26}" if i == 1 else f"{cell:<14}" for i, cell in enumerate(cells)), flush=True)
            if options.json:
                with options.json.open("a") as file:
                    file.writelines(json.dumps(row | {"matmul": matmul, "dtype": options.dtype}) + "\n" for row in rows)


def parse() -> argparse.Namespace:
    """The command line; `--side`, `--folder` and `--matmul` are for the program's own children."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", nargs="+", default=list(SIZES), help="B,P,E: studies, regions, values of a vector")
    parser.add_argument("--sides", default=";".join(SIDES[:6]), help=f"some of {'; '.join(SIDES)}")
    parser.add_argument("--dtype", choices=tuple(TOLERANCE), default="float32")
    parser.add_argument("--seconds", type=float, default=5, help="per row, and at least 5 runs")
    parser.add_argument("--json", type=Path, help="file to which one line per row is added")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--matmul", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
