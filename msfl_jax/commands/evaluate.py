"""`msfl eval ...`: evaluates a run directory, saves predictions and figures in it, and says what came out."""

from pathlib import Path

from input_pipeline.reading import open_split
from msfl_jax.results.figures import save_phrase_overlays, save_record_overlays
from msfl_jax.results.tables import grounding_table, with_caveats, zero_shot_table
from msfl_jax.tasks.grounding import evaluate_grounding
from msfl_jax.tasks.leaks import leak_caveats
from msfl_jax.tasks.prompts import load_prompts
from msfl_jax.tasks.run import Run, open_run
from msfl_jax.tasks.zero_shot import evaluate_zero_shot


def zero_shot_report(
    workdir: Path, directory: Path, *, split: str, prompts: str = "", rule: str = "", allow_leak: bool = False
) -> str:
    """Zero-shot classification of a build: the table as text; predictions go to `workdir`/predictions.

    Args:
      workdir: run directory.
      directory: build with labels.
      split: of the build.
      prompts, rule: "" takes the run's own.
      allow_leak: see `leak_caveats`.

    Raises:
      UserError: the run, the build, the split, the prompts or the rule do not exist.
      DataError: the split shares images or patients with what the run was trained on.
    """
    run = open_run(workdir)
    caveats = leak_caveats(run, directory, split, allow_leak=allow_leak)
    chosen = load_prompts(prompts or run.config.zero_shot.prompts)
    result = evaluate_zero_shot(run, directory, split, prompts=chosen, rule=rule or None)
    file = workdir / "predictions" / f"zero_shot_{split}.npz"
    result.predictions.save(file)
    return f"{with_caveats(zero_shot_table(result), caveats)}\n\npredictions  {file}"


def grounding_report(
    workdir: Path, directory: Path, *, split: str, protocol: str = "", overlays: int = 8, allow_leak: bool = False
) -> str:
    """Phrase grounding of a build: the table as text; predictions and overlays go to `workdir`.

    A build without boxes, as of image-report pairs, has nothing to measure: then the sentences of its reports are drawn and that is said.

    Args:
      workdir: run directory.
      directory: build with phrases and boxes.
      split: of the build.
      protocol: "" takes the run's own.
      overlays: images for which heat-maps are drawn.
      allow_leak: see `leak_caveats`.

    Raises:
      UserError: the run, the build, the split or the protocol does not exist.
      DataError: the split shares images or patients with what the run was trained on.
    """
    run = open_run(workdir)
    figures = workdir / "figures"
    if not has_boxes(directory, split):
        return sentence_overlays(run, directory, split, figures, count=overlays, protocol=protocol or None)
    caveats = leak_caveats(run, directory, split, allow_leak=allow_leak)
    result = evaluate_grounding(run, directory, split, protocol=protocol or None)
    file = workdir / "predictions" / f"grounding_{split}.npz"
    result.scores.save(file)
    save_phrase_overlays(run, directory, split, figures, count=overlays, protocol=protocol or None)
    table = with_caveats(grounding_table(result), caveats)
    return f"{table}\n\npredictions  {file}\noverlays     {figures}"


def has_boxes(directory: Path, split: str) -> bool:
    """Whether a build's first record has boxes: all records of a data set have them, or none."""
    return len(open_split(directory, split)[0].boxes) > 0


def sentence_overlays(
    run: Run, directory: Path, split: str, folder: Path, *, count: int, protocol: str | None = None
) -> str:
    """Draws every sentence of the first `count` reports of a split over its own image, and says where."""
    records = open_split(directory, split)
    drawn = min(count, len(records))
    for index in range(drawn):
        file = folder / f"report_{split}_{index:02d}.png"
        save_record_overlays(run, [records[index]], file, protocol=protocol)
    said = f"{directory} has no boxes: nothing to measure\noverlays     {folder}  ({drawn} reports, one panel per sentence)"
    return with_caveats(said, run.caveats)
