"""`msfl eval ...`: evaluates a run directory, saves predictions and figures in it, and says what came out."""

from pathlib import Path
from typing import TypedDict

from input_pipeline.manifest import read_manifest
from input_pipeline.reading import open_split
from msfl_jax.config import GroundingConfig
from msfl_jax.parallel import distributed
from msfl_jax.results.figures import save_phrase_overlays, save_record_overlays
from msfl_jax.results.tables import grounding_table, with_caveats
from msfl_jax.tasks.grounding import evaluate_grounding, with_shifts
from msfl_jax.tasks.grounding_protocol import GroundingProtocol, known_protocol
from msfl_jax.tasks.grounding_result import GroundingResult, outcome_of
from msfl_jax.tasks.leaks import leak_caveats
from msfl_jax.tasks.outcome import Option, Outcome, identify_split, save_outcome
from msfl_jax.tasks.run import Run, open_run

REPLICATES = 2000  # of the bootstrap
_NONE_DRAWN = "none; --overlays N draws N images, and --show-text writes the sentences of their reports beneath"
OVERLAYS = 8  # of a synthetic study; of patients, as many as are asked for


class Drawn(TypedDict):
    """How many images are drawn, and whether with what their reports say."""

    count: int
    show_text: bool


class Drawing(Drawn):
    """Arguments of `save_phrase_overlays` and `sentence_overlays`."""

    protocol: GroundingProtocol
    sigma: float


def grounding_report(
    workdir: Path,
    directory: Path,
    *,
    split: str,
    protocol: str = "",
    scaling: str = "minmax",
    geometry: str = "own",
    sigma: float | None = None,
    shifts: int = 0,
    seed: int = 0,
    overlays: int | None = None,
    show_text: bool = False,
    allow_leak: bool = False,
) -> str:
    """Phrase grounding of a build: the table as text, "" in all processes but the lead; result, predictions and overlays go to `workdir`.

    A build without boxes, as of image-report pairs, has nothing to measure: then the sentences of its reports can be drawn, and that is said.

    Args:
      workdir: run directory.
      directory: build with phrases and boxes.
      split: of the build.
      protocol, scaling, geometry: see `msfl_jax.tasks.grounding_protocol`; a protocol of "" is the run's own.
      sigma, shifts: smoothing in patches, and looks per axis; None and 0 take the run's own.
      seed: of the shuffled phrases and the bootstrap.
      overlays: images for which heat-maps are drawn; None draws some of a synthetic study and none of patients.
      show_text: writes the sentences into the overlays of patients, too; of a synthetic study they always are.
      allow_leak: see `leak_caveats`.

    Raises:
      UserError: the run, the build, the split or the protocol does not exist.
      DataError: the split shares images or patients with what the run was trained on.
    """
    distributed.start()
    opened = open_run(workdir)
    run = with_shifts(opened, shifts) if shifts else opened
    sigma = run.config.grounding.sigma if sigma is None else sigma
    chosen = known_protocol(protocol or run.config.grounding.protocol, scaling, geometry)
    figures = workdir / "figures"
    drawing: Drawing = {**_drawn(directory, overlays, show_text), "protocol": chosen, "sigma": sigma}
    if not has_boxes(directory, split):
        return sentence_overlays(run, directory, split, figures, **drawing)
    caveats = leak_caveats(run, directory, split, allow_leak=allow_leak)
    result = evaluate_grounding(run, directory, split, protocol=chosen, sigma=sigma, seed=seed, replicates=REPLICATES)
    if not distributed.is_lead():
        return ""
    name, split_hash = identify_split(directory, split)
    outcome = outcome_of(
        result,
        dataset=name,
        split_hash=split_hash,
        variant=grounding_variant(opened.config.grounding, chosen, sigma, run.config.grounding.shifts),
        options=_grounding_options(run, chosen, sigma, seed),
        caveats=caveats,
    )
    saved = _save(outcome, result, workdir)
    save_phrase_overlays(run, directory, split, figures, **drawing)
    table = with_caveats(grounding_table(result, chosen.explanation), outcome.caveats)
    return f"{table}\n\n{saved}\noverlays     {figures if drawing['count'] else _NONE_DRAWN}"


def _save(outcome: Outcome, result: GroundingResult, workdir: Path) -> str:
    """Saves a result beside its predictions, and says where."""
    predictions = outcome.predictions(workdir)
    result.scores.save(predictions)
    return f"result       {save_outcome(outcome, workdir)}\npredictions  {predictions}"


def _drawn(directory: Path, overlays: int | None, show_text: bool) -> Drawn:
    """Of a synthetic study some images and always the text; of patients what was asked for."""
    synthetic = read_manifest(directory).settings.get("synthetic") is True
    count = overlays if overlays is not None else OVERLAYS if synthetic else 0
    return {"count": count, "show_text": show_text or synthetic}


def _grounding_options(run: Run, protocol: GroundingProtocol, sigma: float, seed: int) -> dict[str, Option]:
    """All that the numbers depend on beside the parameters and the data."""
    return {
        "protocol": protocol.name,
        "scaling": protocol.scaling,
        "geometry": protocol.geometry,
        "sigma": sigma,
        "shifts": run.config.grounding.shifts,
        "seed": seed,
        "replicates": REPLICATES,
    }


def grounding_variant(own: GroundingConfig, protocol: GroundingProtocol, sigma: float, shifts: int) -> str:
    """Short name for files: the protocol and what differs from its and the run's own settings."""
    parts = [protocol.variant]
    parts += [f"sigma{sigma:g}"] if sigma != own.sigma else []
    parts += [f"shifts{shifts}"] if shifts != own.shifts else []
    return "-".join(parts)


def has_boxes(directory: Path, split: str) -> bool:
    """Whether any record of a split has boxes; in RSNA's, images without pneumonia have none."""
    return any(len(record.boxes) for record in open_split(directory, split))


def sentence_overlays(
    run: Run,
    directory: Path,
    split: str,
    folder: Path,
    *,
    count: int,
    protocol: GroundingProtocol | None = None,
    sigma: float | None = None,
    show_text: bool = False,
) -> str:
    """Draws every sentence of the first `count` reports of a split over its own image, and says where; the lead process alone, the others say ""."""
    if not distributed.is_lead():
        return ""
    records = open_split(directory, split)
    drawn = min(count, len(records))
    for index in range(drawn):
        file = folder / f"report_{split}_{index:02d}.png"
        save_record_overlays(run, [records[index]], file, protocol=protocol, sigma=sigma, show_text=show_text)
    overlays = f"{folder}  ({drawn} reports, one panel per sentence)" if drawn else _NONE_DRAWN
    said = f"{directory} has no boxes: nothing to measure\noverlays     {overlays}"
    return with_caveats(said, run.caveats)
