"""Where the time of a profiled step goes: kernels of a device's trace, summed by what they compute."""

import collections
import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

STEPS = 3  # in a trace
SHOWN = 14  # kinds of kernels
# By the kernel's name; the first that fits.
KINDS = (
    ("attention", r"flash|fmha|sdpa|cudnn.*attention"),
    ("matrix product", r"gemm|nvjet|cutlass|xmma|cublas|matmul|_dot"),
    ("copy", r"memcpy|memset|copy|transpose"),
    ("sort or scatter", r"sort|scatter|gather|radix"),
    ("reduction", r"reduce|softmax"),
    ("other fusion", r"fusion|loop|wrapped|input"),
)


def kernels(path: Path) -> Iterator[tuple[str, str, float]]:
    """Name of a kernel, the operation of the program that it belongs to, and microseconds, of each that ran on a device's streams."""
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    process = {e["pid"]: e["args"]["name"] for e in events if e.get("ph") == "M" and e.get("name") == "process_name"}
    thread = {
        (e["pid"], e["tid"]): e["args"]["name"] for e in events if e.get("ph") == "M" and e.get("name") == "thread_name"
    }
    for event in events:
        place = (event.get("pid"), event.get("tid"))
        if (
            event.get("ph") != "X"
            or "/device:" not in process.get(place[0], "")
            or "Stream" not in thread.get(place, "")
        ):
            continue
        yield event["name"], str(event.get("args", {}).get("hlo_op", "")), event.get("dur", 0.0)


def kind(name: str) -> str:
    """What a kernel computes, as far as its name tells."""
    return next((found for found, pattern in KINDS if re.search(pattern, name, re.IGNORECASE)), "other")


def summary(path: Path) -> tuple[float, dict[str, float], list[tuple[str, float]]]:
    """Milliseconds per step of all kernels, by kind, and of the longest single kernels with their operation."""
    kinds: collections.Counter[str] = collections.Counter()
    single: collections.Counter[str] = collections.Counter()
    for name, operation, microseconds in kernels(path):
        share = microseconds / 1e3 / STEPS
        kinds[kind(name)] += share  # pyright: ignore[reportArgumentType]
        single[f"{operation or '?'}: {name[:60]}"] += share  # pyright: ignore[reportArgumentType]
    return sum(kinds.values()), dict(kinds), single.most_common(SHOWN)  # pyright: ignore[reportReturnType]


def print_profiles(folder: Path) -> None:
    """One block for each trace in a folder."""
    for path in sorted(folder.glob("*/plugins/profile/*/*.trace.json.gz")):
        total, kinds, single = summary(path)
        name: Any = path.relative_to(folder).parts[0]
        print(f"\n{name}: {total:.2f} ms of kernels a step")
        for kind_name, milliseconds in sorted(kinds.items(), key=lambda pair: -pair[1]):
            print(f"  {milliseconds:8.2f} ms {100 * milliseconds / total:5.1f} %  {kind_name}")
        for kernel, milliseconds in single:
            print(f"    {milliseconds:8.3f} ms  {kernel}")
