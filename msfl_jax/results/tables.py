"""Results as aligned plain text; the one place where numbers of a table are formatted."""

import math
from collections.abc import Mapping, Sequence

from msfl_jax.metrics import Interval
from msfl_jax.metrics.calibration import BINS
from msfl_jax.tasks.grounding_result import OVERLAPS, GroundingResult
from msfl_jax.tasks.retrieval_result import DEPTHS, DIRECTIONS, RetrievalResult
from msfl_jax.tasks.zero_shot_result import ZeroShotResult

MISSING = "-"
GAP = "   "

GROUNDING_ROWS = {
    "cnr": "grounding CNR",
    "absolute_cnr": "grounding |CNR|",
    "miou": "grounding mIoU (.1-.5)",
    "pointing_game": "pointing game",
}


def number(value: float | None, digits: int = 2) -> str:
    """`0.91`; a dash where there is no number, and never a minus before zero."""
    if value is None or not math.isfinite(value):
        return MISSING
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text


def interval(value: Interval, digits: int = 2) -> str:
    """`0.89 - 0.93`; a dash where there is none. Limits below zero are joined by "to"."""
    if not math.isfinite(value.low) or not math.isfinite(value.high):
        return MISSING
    between = " to " if value.low < 0 else " - "
    return f"{number(value.low, digits)}{between}{number(value.high, digits)}"


def seeds_text(count: int) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{count} {'seed' if count == 1 else 'seeds'}"


def format_table(rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> str:
    """Aligned plain text: the first column to the left without a heading, all others to the right under theirs.

    Args:
      rows: cells by column; a cell that is missing is empty.
      columns: names in order; the first names the rows.

    Returns:
      One line per row after the line of headings, without trailing spaces.
    """
    table = [["", *columns[1:]], *([row.get(column, "") for column in columns] for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(columns))]
    lines = [
        GAP.join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in table
    ]
    return "\n".join(line.rstrip() for line in lines)


def with_caveats(text: str, caveats: Sequence[str]) -> str:
    """A table and beneath it one line for each thing that must be said about the data its model was trained on."""
    return "\n".join([text, *([""] if caveats else []), *(f"caveat  {caveat}" for caveat in caveats)])


def demo_table(zero_shot: ZeroShotResult, grounding: GroundingResult) -> str:
    """The demo's summary. "Shuffled" is the same model with images shuffled against labels, or asked for another image's phrase."""
    rows = []
    if "Pneumonia" in zero_shot.auc:
        rows.append(_row("zero-shot pneumonia AUC", zero_shot.auc["Pneumonia"], "", "0.50"))
    rows.append(_row(_mean_name(zero_shot), zero_shot.mean, number(zero_shot.shuffled.value), "0.50"))
    rows += _grounding_rows(grounding)
    return format_table(rows, ["", "ours", "95 % interval", "shuffled", "chance"])


def zero_shot_table(result: ZeroShotResult) -> str:
    """AUC and calibration error of each finding, their means and controls, how many images are positive and negative, and reasons for gaps."""
    rows = [
        {
            "": finding.name,
            "AUC": number(finding.auc.value),
            "95 % interval": interval(finding.auc),
            "ECE": number(finding.ece.value),
            "positives": f"{finding.positives:,}",
            "negatives": f"{finding.negatives:,}",
            " ": f"n/a: {finding.reason}" if finding.reason else "",
        }
        for finding in result.findings
    ]
    rows.append(_auc_row(f"mean of {result.defined}", result.mean) | {"ECE": number(result.mean_ece.value)})
    rows.append(_auc_row("images shuffled", result.shuffled))
    if len(result.findings) > 1:
        rows.append(_auc_row("prompts of the next finding", result.swapped))
    rows.append(_auc_row("positive and negative exchanged", result.exchanged))
    columns = ["", "AUC", "95 % interval", "ECE", "positives", "negatives"]
    columns += [" "] if any(finding.reason for finding in result.findings) else []
    title = f"zero-shot, rule {result.rule}, {result.split}, step {result.step}: {result.records:,} images of {result.patients:,} patients"
    return f"{title}\n\n{format_table(rows, columns)}\n\n{calibration_line(result)}"


def retrieval_table(result: RetrievalResult) -> str:
    """Recalls and median rank in both directions, beside what shuffled reports give and, of recalls, what a random order would."""
    rows = []
    for direction in DIRECTIONS:
        for name in (*(f"recall@{depth}" for depth in DEPTHS), "median_rank"):
            digits = 0 if name == "median_rank" else 3
            value, shuffled = (result.metrics[f"{direction}/{name}{suffix}"] for suffix in ("", "_shuffled"))
            chance = result.metrics.get(f"{direction}/{name}_chance")
            rows.append(
                {
                    "": f"{direction} {name}".replace("_", " ").replace("recall", "R"),
                    "ours": number(value.value, digits),
                    "95 % interval": interval(value, digits),
                    "shuffled": number(shuffled.value, digits),
                    "chance": number(chance.value if chance else None, digits),
                }
            )
    reports, images = (int(size) for size in result.ranks.pool)
    title = (
        f"retrieval, {result.split}, step {result.step}: {images:,} images and {reports:,} distinct reports "
        f"of {result.patients:,} patients"
    )
    title += f"; {result.left_out:,} images without a report left out" if result.left_out else ""
    return f"{title}\n\n{format_table(rows, ['', 'ours', '95 % interval', 'shuffled', 'chance'])}"


def calibration_line(result: ZeroShotResult) -> str:
    """How scores became probabilities, and the mean error in both kinds of bins."""
    divided = f"1 / (1 + exp(-score / {result.temperature:.3g}))"
    probability = {"maco": "1 / (1 + exp(-score))", "chexzero": "score"}.get(result.rule, divided)
    means = f"{number(result.mean_ece.value, 3)}, in bins of equal mass {number(result.mean_ece_equal_mass.value, 3)}"
    return f"ECE  of probability = {probability}, in {BINS} bins of equal width: mean {means}"


def _auc_row(name: str, value: Interval) -> dict[str, str]:
    return {"": name, "AUC": number(value.value), "95 % interval": interval(value)}


def grounding_table(result: GroundingResult, explanation: str = "") -> str:
    """Means per phrase and per category with their control and the number of phrases that have none, then one row per category.

    Args:
      result: of `evaluate_grounding`.
      explanation: of the protocol, in words.
    """
    overall = []
    named = _named_grounding_rows(result)
    for name, row in [*named[:3], *_overlap_rows(result), *named[3:]]:
        average = {"per category": number(result.category_average[name].value)}
        overall.append(row | average | {"undefined": f"{result.undefined[name]:,}"})
    overall.append(_row("CNR over shuffled", result.metrics["cnr_over_shuffled"], "", "0"))
    for row in overall:
        row["per phrase"] = row["ours"]
    names = {"cnr": "CNR", "absolute_cnr": "|CNR|", "miou": "mIoU", "pointing_game": "pointing"}
    categories = [
        {"": category.name, "phrases": f"{category.phrases:,}"}
        | {heading: number(category.metrics[name].value) for name, heading in names.items()}
        for category in result.categories
    ]
    title = (
        f"grounding, protocol {result.protocol}, {result.split}, step {result.step}: "
        f"{result.records:,} phrases on {result.images:,} images of {result.patients:,} patients"
    )
    title += f"\n({explanation})" if explanation else ""
    headings = ["", "per phrase", "95 % interval", "shuffled", "chance", "per category", "undefined"]
    parts = [title, format_table(overall, headings), format_table(categories, ["", "phrases", *names.values()])]
    if result.unpredicted:
        parts.insert(
            2, f"nothing exceeds a threshold in {result.unpredicted:,} of {result.records:,} phrases: IoU 0 there"
        )
    return "\n\n".join(parts)


def _overlap_rows(result: GroundingResult) -> list[tuple[str, dict[str, str]]]:
    """The IoU at each threshold."""
    return [(name, _row(f"  IoU at {name.removeprefix('iou_0')}", result.metrics[name], "", "")) for name in OVERLAPS]


def _grounding_rows(result: GroundingResult) -> list[dict[str, str]]:
    return [row for name, row in _named_grounding_rows(result) if name != "absolute_cnr"]


def _named_grounding_rows(result: GroundingResult) -> list[tuple[str, dict[str, str]]]:
    """A non-localising model has a signed CNR of 0 and points at random, but |CNR| and mIoU of no fixed value."""
    chance = {"cnr": "0", "pointing_game": number(result.pointing_chance)}
    return [
        (
            name,
            _row(
                title,
                result.metrics[name],
                number(result.metrics[f"{name}_shuffled_phrases"].value),
                chance.get(name, MISSING),
            ),
        )
        for name, title in GROUNDING_ROWS.items()
    ]


def _mean_name(result: ZeroShotResult) -> str:
    return f"zero-shot mean AUC ({result.defined})"


def _row(name: str, value: Interval, shuffled: str, chance: str) -> dict[str, str]:
    return {
        "": name,
        "ours": number(value.value),
        "95 % interval": interval(value),
        "shuffled": shuffled,
        "chance": chance,
    }
