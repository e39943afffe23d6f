"""`msfl eval zero-shot`: zero-shot classification of a build, with its controls and its calibration."""

from collections.abc import Mapping
from pathlib import Path

from input_pipeline.manifest import Manifest, read_manifest
from msfl_jax.parallel import distributed
from msfl_jax.results.calibration import save_reliability
from msfl_jax.results.tables import with_caveats, zero_shot_table
from msfl_jax.tasks.leaks import leak_caveats
from msfl_jax.tasks.outcome import Outcome, save_outcome
from msfl_jax.tasks.prompts import OWN_SETS, Prompts, choose_set, load_prompts, prompts_hash, shipped_prompts
from msfl_jax.tasks.run import open_run
from msfl_jax.tasks.zero_shot import evaluate_zero_shot
from msfl_jax.tasks.zero_shot_result import describe

REPLICATES, SEED = 2000, 0  # of the bootstrap
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

    Returns:
      The table; "" in all processes but the lead, which alone writes.

    Raises:
      UserError: the run, the build, the split, the prompts or the rule do not exist.
      DataError: the split shares images or patients with what the run was trained on.
    """
    distributed.start()
    run = open_run(workdir)
    caveats = leak_caveats(run, directory, split, allow_leak=allow_leak)
    manifest = read_manifest(directory)
    own = choose_set(run.config.zero_shot.prompts, manifest.name, manifest.label_names)
    name = prompts or own
    chosen = load_prompts(name)
    result = evaluate_zero_shot(
        run, directory, split, prompts=chosen, rule=rule or None, seed=SEED, replicates=REPLICATES
    )
    if not distributed.is_lead():
        return ""
    said = {"prompts": name if name in shipped_prompts() else "file", "prompts_hash": prompts_hash(chosen)}
    options = said | {"blank": "negative", "seed": SEED, "replicates": REPLICATES}
    short = said["prompts"] if name in shipped_prompts() else f"file-{said['prompts_hash'][:6]}"
    outcome = describe(
        result, directory, options=options, caveats=caveats, prompts="" if name == own else short
    ).placed(workdir)
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
