"""`msfl eval compare`: the difference between two runs in every metric of a task, with intervals, from their saved predictions."""

from pathlib import Path

from input_pipeline.errors import UserError
from msfl_jax.results.tables import format_table, interval, number, with_caveats
from msfl_jax.tasks.compare import Comparison, choose, compare
from msfl_jax.tasks.outcome import Outcome, load_outcomes

Chosen = tuple[Path, Outcome]


def comparison_report(
    first: Path,
    second: Path,
    *,
    task: str,
    dataset: str = "",
    split: str = "",
    variant: str = "",
    variant_b: str = "",
    seed: int = 0,
    replicates: int = 2000,
    everything: bool = False,
) -> str:
    """The table as text.

    Args:
      first, second: run directories with results; they may be the same where the variants differ.
      task: as in the names of result files.
      dataset, split, variant: which of the results; "" where only one fits both runs.
      variant_b: of the second run, where it is not that of the first.
      seed, replicates: of the bootstrap.
      everything: also controls, single thresholds and single categories.

    Raises:
      UserError: none or several results fit.
      DataError: the two are of different images or samples.
    """
    wanted = {"task": task, "dataset": dataset, "split": split}
    ones = choose(load_outcomes([first]), **wanted, variant=variant)
    others = choose(load_outcomes([second]), **wanted, variant=variant_b or variant)
    for workdir, found in ((first, ones), (second, others)):
        if not found:
            raise UserError(
                f"{workdir}: no such result of task '{task}'; expected one in results/, made by `msfl eval`"
            )
    one, other = _pair(ones, others)
    return comparison_table(one, other, compare(one, other, seed=seed, replicates=replicates), everything=everything)


def comparison_table(one: Chosen, other: Chosen, comparison: Comparison, *, everything: bool = False) -> str:
    """One row per metric: both values, first minus second, its interval, and which is higher where that leaves out 0."""
    shown = [found for found in comparison.differences if everything or not _is_detail(found.name)]
    rows = [
        {
            "": found.name,
            "A": number(found.first, 3),
            "B": number(found.second, 3),
            "A - B": number(found.difference.value, 3),
            "95 % interval": interval(found.difference, 3),
            "higher": "A" if found.difference.low > 0 else "B" if found.difference.high < 0 else "-",
        }
        for found in shown
    ]
    outcome = one[1]
    title = (
        f"{outcome.task}, {outcome.dataset} {outcome.split} (split hash {outcome.split_hash[:12]}): "
        f"{comparison.samples:,} samples of {comparison.patients:,} patients, resampled in pairs"
    )
    sides = [
        f"{name}  {workdir}, {found.variant or found.task}, step {found.step}"
        for name, (workdir, found) in (("A", one), ("B", other))
    ]
    hidden = len(comparison.differences) - len(shown)
    more = f"\n\n{hidden} more metrics with --all" if hidden else ""
    table = format_table(rows, ["", "A", "B", "A - B", "95 % interval", "higher"])
    return with_caveats("\n".join([title, *sides, "", table]) + more, comparison.notes)


def _pair(ones: list[Chosen], others: list[Chosen]) -> tuple[Chosen, Chosen]:
    """The only two that belong together: of one data set, split and, where there are several, variant."""
    pairs = [(one, other) for one in ones for other in others if _place(one) == _place(other)]
    alike = [(one, other) for one, other in pairs if one[1].variant == other[1].variant]
    fitting = pairs if len(pairs) == 1 else alike
    if len(fitting) != 1:
        names = [", ".join(sorted(outcome.name for _, outcome in side)) for side in (ones, others)]
        raise UserError(
            f"found results {names[0]} in A and {names[1]} in B; say which with --data-name, --split, --variant and --variant-b"
        )
    return fitting[0]


def _place(chosen: Chosen) -> tuple[str, str]:
    return chosen[1].dataset, chosen[1].split


def _is_detail(name: str) -> bool:
    """Controls, single thresholds, and categories on their own."""
    prefix, _, rest = name.partition("/")
    if rest.startswith("recall@") or rest == "median_rank":
        return False
    return "_shuffled" in name or "iou_0" in name or ("/" in name and prefix not in ("category", "auc"))
