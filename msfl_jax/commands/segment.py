"""`msfl finetune segmentation`: trains a decoder of masks on a pretrained encoder and says what it scores on the test split."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from msfl_jax.commands.imported import with_imported_encoder
from msfl_jax.config_files import load_config
from msfl_jax.parallel import distributed
from msfl_jax.results.segmentation import save_mask_overlays, segmentation_table
from msfl_jax.results.tables import with_caveats
from msfl_jax.segmentation_config import segmentation_config
from msfl_jax.tasks.outcome import RESULTS
from msfl_jax.tasks.run import open_run
from msfl_jax.tasks.segmentation import finetune_segmentation, open_segmentation, segmentation_caveats


def segmentation_report(
    run: Path,
    directory: Path,
    workdir: Path,
    *,
    config: str,
    overrides: Sequence[str] = (),
    allow_leak: bool = False,
    overlays: int = 8,
) -> str:
    """Fine-tunes and evaluates: the table as text; checkpoints, predictions, results and overlays go to `workdir`.

    Args:
      run: directory of the pretrained run, whose latest checkpoint is taken.
      directory: build with masks.
      workdir: of the fine-tuned run; the same command again resumes.
      config: as for `--config`.
      overrides: `--config.a.b=value` each.
      allow_leak: see `msfl_jax.tasks.segmentation.segmentation_caveats`.
      overlays: images of the test split that are drawn.

    Returns:
      The table; "" in all processes but the lead.

    Raises:
      MsflError: see `msfl_jax.tasks.segmentation.finetune_segmentation`.
    """
    settings = load_config(config, overrides, make=segmentation_config)
    settings = dataclasses.replace(settings, data=dataclasses.replace(settings.data, directory=str(directory)))
    distributed.start()
    pretrained = with_imported_encoder(open_run(run), settings.encoder)
    caveats = segmentation_caveats(settings, pretrained, allow_leak=allow_leak)
    result = finetune_segmentation(settings, workdir, pretrained, caveats=caveats)
    if not distributed.is_lead():
        return ""
    outcome = result.outcome
    save_mask_overlays(open_segmentation(workdir), result, directory, workdir / "figures", count=overlays)
    places = {
        "result": workdir / RESULTS / f"{outcome.placed(workdir).name}.json",
        "predictions": outcome.predictions(workdir),
        "overlays": workdir / "figures",
    }
    lines = [f"{name:<13}{place}" for name, place in places.items() if overlays or name != "overlays"]
    return "\n".join([with_caveats(segmentation_table(result), outcome.caveats), "", *lines])
