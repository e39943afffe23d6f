"""`msfl eval classification` and `msfl eval segmentation`: a fine-tuned run measured on any build and split."""

from pathlib import Path

from msfl_jax.results.label_efficiency import classification_table
from msfl_jax.results.segmentation import save_mask_overlays, segmentation_table
from msfl_jax.results.tables import with_caveats
from msfl_jax.tasks.classification import evaluate_classification, open_finetuned
from msfl_jax.tasks.leaks import finetuned_caveats
from msfl_jax.tasks.outcome import RESULTS, Outcome
from msfl_jax.tasks.segmentation import evaluate_segmentation, open_segmentation

REPLICATES, SEED = 2000, 0  # of the bootstrap


def classification_report(workdir: Path, directory: Path, *, split: str, allow_leak: bool = False) -> str:
    """The best checkpoint of a fine-tuned classifier on a build with labels: the table as text; result and predictions go to `workdir`.

    Args:
      workdir: run directory of `msfl finetune classification`.
      directory: build with some of its findings among the labels.
      split: of the build.
      allow_leak: see `finetuned_caveats`.

    Raises:
      UserError: the run, the build or the split does not exist, or no finding is a label of the build.
      DataError: the split shares images or patients with what the run was pretrained or fine-tuned on.
      CheckpointError: the checkpoint is missing or damaged.
    """
    run = open_finetuned(workdir)
    caveats = finetuned_caveats(run, directory, split, allow_leak=allow_leak)
    outcome = evaluate_classification(run, directory, split, caveats=caveats, seed=SEED, replicates=REPLICATES)
    return _said(classification_table(outcome), outcome, workdir)


def segmentation_report(
    workdir: Path, directory: Path, *, split: str, overlays: int = 8, allow_leak: bool = False
) -> str:
    """The best checkpoint of a fine-tuned segmenter on a build with masks, as `classification_report`.

    Args:
      workdir: run directory of `msfl finetune segmentation`.
      directory: build with masks.
      split: of the build.
      overlays: images that are drawn, in a folder of the result's name.
      allow_leak: see `finetuned_caveats`.

    Raises:
      UserError: the run, the build or the split does not exist.
      DataError: the split has no masks, or shares images or patients with what the run was pretrained or fine-tuned on.
      CheckpointError: the checkpoint is missing or damaged.
    """
    run = open_segmentation(workdir)
    caveats = finetuned_caveats(run, directory, split, allow_leak=allow_leak)
    result = evaluate_segmentation(run, directory, split, caveats=caveats, seed=SEED, replicates=REPLICATES)
    said = _said(segmentation_table(result), result.outcome, workdir)
    if not overlays:
        return said
    figures = workdir / "figures" / result.outcome.placed(workdir).name
    save_mask_overlays(run, result, directory, figures, count=overlays)
    return f"{said}\noverlays     {figures}"


def _said(table: str, outcome: Outcome, workdir: Path) -> str:
    """A table with its caveats, and where the files behind it lie."""
    file = workdir / RESULTS / f"{outcome.placed(workdir).name}.json"
    places = f"result       {file}\npredictions  {outcome.predictions(workdir)}"
    return f"{with_caveats(table, outcome.caveats)}\n\n{places}"
