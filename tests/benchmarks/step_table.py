"""Rows of `step.py` made complete and printed: visits merged, work by formula, shares of what the device reaches."""

import dataclasses
import statistics
from collections.abc import Mapping
from typing import Any

import step_common as common

from msfl_jax.config import Config
from msfl_jax.train.flops import decoder_flops, flops_per_pair, text_flops, vit_flops

H100_TFLOPS = 989.0  # dense bfloat16, also of an H200
HOPPER = ("H100", "H200")
COLUMNS = (
    "row",
    "batch",
    "ms",
    "IQR",
    "n",
    "images/s",
    "TFLOP/s",
    "% matmul",
    "% 989",
    "peak GB",
    "compile s",
    "loss",
    "vs torch",
)


def merge(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for both visits: steps pooled, compilation from the first, which had no cache."""
    merged: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("side", "part", "variant", "batch"))
        before = merged.get(key)
        if before is None or "error" in before:
            merged[key] = row
        elif "error" not in row:
            before["steps"] += row["steps"]
            before["peak_bytes"] = max(before["peak_bytes"] or 0, row["peak_bytes"] or 0) or None
    return list(merged.values())


def flops(config: Config, vocab_size: int, part: str, rows: int) -> float:
    """Floating-point operations of a row's step, by formula."""
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=rows))
    vision, ratio, model = config.model.vision, config.image.mask_ratio, config.model
    units = rows * (config.text.max_sentences + config.objective.local_alignment.include_cls)
    patches, width = common.count_regions(config), model.region_width
    lengths = 2.0 * units * patches**2 + 2.0 * patches**2 * width
    of_pair = {
        "full": lambda: flops_per_pair(config, vocab_size) / 3,
        "vision": lambda: vit_flops(vision),
        "masked": lambda: vit_flops(vision, ratio),
        "text": lambda: text_flops(model.text),
        "decoder": lambda: decoder_flops(model.pixel_decoder, vision, ratio),
        "local": lambda: 2.0 * units * patches * width + lengths,
    }
    return 3.0 * rows * of_pair[part]()


def complete(
    rows: list[dict[str, Any]], config: Config, vocab_size: int, ceilings: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Rows with what follows from their steps; those that failed as they are.

    "best_torch_over_this" compares with the fastest PyTorch row of the same part and batch: above 1, this row is faster.
    """
    timed = [row | _times(row) if "steps" in row else row for row in rows]
    best: dict[tuple[str, int], float] = {}
    for row in timed:
        if row["side"] == "torch" and "ms" in row:
            key = (row["part"], row["batch"])
            best[key] = min(best.get(key, row["ms"]), row["ms"])
    return [_rates(row, best, config, vocab_size, ceilings) if "ms" in row else row for row in timed]


def _times(row: Mapping[str, Any]) -> dict[str, float]:
    steps = row["steps"]
    first, _, third = statistics.quantiles(steps, n=4) if len(steps) > 1 else steps * 3
    return {"ms": 1e3 * statistics.median(steps), "iqr_ms": 1e3 * (third - first), "n": len(steps)}


def _rates(
    row: dict[str, Any],
    best: Mapping[tuple[str, int], float],
    config: Config,
    vocab_size: int,
    ceilings: Mapping[str, Any],
) -> dict[str, Any]:
    seconds, reached = row["ms"] / 1e3, ceilings.get("matmul_tflops")
    tera = flops(config, vocab_size, row["part"], row["batch"]) / seconds / 1e12
    hopper = any(name in ceilings.get("device", "") for name in HOPPER)
    fastest = best.get((row["part"], row["batch"]))
    return {name: value for name, value in row.items() if name != "steps"} | {
        "images_per_s": row["batch"] / seconds,
        "tflops": tera,
        "of_matmul": tera / reached if reached else None,
        "of_989": tera / H100_TFLOPS if hopper else None,
        "best_torch_over_this": fastest / row["ms"] if fastest else None,
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    """Aligned columns; a row that failed says why."""
    cells = [_cells(row) for row in rows]
    widths = [max(len(line[i]) for line in [COLUMNS, *(c for c in cells if len(c) > 3)]) for i in range(len(COLUMNS))]
    widths[0] = max([widths[0], *(len(line[0]) for line in cells)])
    for line in [list(COLUMNS), *cells]:
        left = f"{line[0]:<{widths[0]}}  "
        print(left + "  ".join(f"{cell:>{width}}" for cell, width in zip(line[1:], widths[1:], strict=False)))


def _cells(row: Mapping[str, Any]) -> list[str]:
    name = f"{row['side']} {row['part']} {row['variant']}".strip()
    if "error" in row:
        return [name, str(row["batch"] or ""), row["error"]]
    numbers = [("ms", 1, ".2f"), ("iqr_ms", 1, ".2f"), ("n", 1, "d"), ("images_per_s", 1, ".1f"), ("tflops", 1, ".3g")]
    numbers += [("of_matmul", 100, ".1f"), ("of_989", 100, ".1f"), ("peak_bytes", 1e-9, ".2f"), ("first_s", 1, ".1f")]
    numbers += [("loss", 1, ".5g"), ("best_torch_over_this", 1, ".2f")]
    shown = ["-" if row[key] is None else format(row[key] * times, form) for key, times, form in numbers]
    return [name, str(row["batch"]), *shown]
