"""`msfl eval ...`: evaluates a run directory, saves predictions and figures in it, and says what came out."""

from collections.abc import Mapping
from pathlib import Path

from input_pipeline.manifest import Manifest, read_manifest
from input_pipeline.reading import open_split
from msfl_jax.results.calibration import save_reliability
from msfl_jax.results.figures import save_phrase_overlays, save_record_overlays
from msfl_jax.results.tables import grounding_table, with_caveats, zero_shot_table
from msfl_jax.tasks.grounding import evaluate_grounding
from msfl_jax.tasks.leaks import leak_caveats
from msfl_jax.tasks.outcome import Outcome, save_outcome
from msfl_jax.tasks.prompts import OWN_SETS, Prompts, choose_set, load_prompts, prompts_hash, shipped_prompts
from msfl_jax.tasks.run import Run, open_run
from msfl_jax.tasks.zero_shot import evaluate_zero_shot
from msfl_jax.tasks.zero_shot_result import describe as describe_zero_shot

NO_FINDING = "No Finding"  # of CheXpert and MIMIC-CXR: the absence of all others, which nobody asks for


def zero_shot_report(
    workdir: Path, directory: Path, *, split: str, prompts: str = "", rule: str = "", allow_leak: bool = False
) -> str:
    """Zero-shot classification of a build: the table as text; result, predictions and a figure of its calibration go to `workdir`.

    Args:
      workdir: run directory.
      directory: build with labels.
      split: of the build.
      prompts, rule: "" takes the run's own; prompts of the data set where the run's have none of its labels.
      allow_leak: see `leak_caveats`.

    Raises:
      UserError: the run, the build, the split, the prompts or the rule do not exist.
      DataError: the split shares images or patients with what the run was trained on.
    """
    run = open_run(workdir)
    caveats = leak_caveats(run, directory, split, allow_leak=allow_leak)
    manifest = read_manifest(directory)
    name = prompts or choose_set(run.config.zero_shot.prompts, manifest.name, manifest.label_names)
    chosen = load_prompts(name)
    result = evaluate_zero_shot(run, directory, split, prompts=chosen, rule=rule or None)
    said = {"prompts": name if name in shipped_prompts() else "file", "prompts_hash": prompts_hash(chosen)}
    options = said | {"blank": "negative", "seed": 0, "replicates": 2000}
    outcome = describe_zero_shot(result, directory, options=options, caveats=caveats)
    result.predictions.save(outcome.predictions(workdir))
    lines = [with_caveats(zero_shot_table(result), caveats), "", f"prompts      {said['prompts']}"]
    lines += unasked_labels(manifest, name, chosen)
    lines += saved_files(outcome, workdir)
    if result.defined:
        figure = workdir / "figures" / f"calibration-{outcome.name}.png"
        save_reliability(result, figure)
        lines.append(f"calibration  {figure}")
    return "\n".join(lines)


def unasked_labels(manifest: Manifest, name: str, prompts: Mapping[str, Prompts]) -> list[str]:
    """One line where labels of a build have no prompts in the set, and which set has more of them."""
    missing = [label for label in manifest.label_names if label not in prompts and label != NO_FINDING]
    own = OWN_SETS.get(manifest.name, name)
    more = own != name and any(label in load_prompts(own) for label in missing)
    hint = f"; --prompts {own} has more" if more else ""
    return [f"not asked    {', '.join(missing)}: no prompts in this set{hint}"] if missing else []


def saved_files(outcome: Outcome, workdir: Path) -> list[str]:
    """Saves a result beside its predictions, which are there already, and says where both are."""
    return [f"result       {save_outcome(outcome, workdir)}", f"predictions  {outcome.predictions(workdir)}"]


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
