"""A run directory of fine-tuning: what all tasks write into it before they train, and read from it to be evaluated on its own."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from input_pipeline.errors import CheckpointError, UserError
from input_pipeline.manifest import read_manifest
from msfl_jax.config import Config, config_hash, from_config_dict, to_dict
from msfl_jax.finetune_config import FinetuneConfig, FinetuneDataConfig
from msfl_jax.parallel import distributed
from msfl_jax.segmentation_config import SegmentationConfig, SegmentationDataConfig
from msfl_jax.tasks.run import CONFIG_FILE, Run
from msfl_jax.train.provenance import TrainingData, read_provenance, read_training_data, write_provenance

ENCODER_FILE = "encoder.json"

Settings = TypeVar("Settings")


@dataclass(frozen=True)
class Origin:
    """What encoder.json says; what runs begun by earlier versions lack is empty.

    Attributes:
      config: of the pretraining run that the encoder is of.
      findings: what the outputs of a classifier stand for.
      trained_on: by that run; None where it is not known. An encoder that started at random has its sizes from there, and nothing else.
      tested: hash of the images of the test split.
      leaks: what the test split, and no other, made it necessary to say beside its numbers: what it shares with the images of pretraining, or that
        this could not be checked.
      chosen: hash of the images by which the checkpoint was chosen.
    """

    config: Config
    findings: tuple[str, ...]
    trained_on: TrainingData | None
    tested: str = ""
    leaks: tuple[str, ...] = ()
    chosen: str = ""


@dataclass(frozen=True)
class FinetunedRun:
    """A fine-tuned model of any task.

    Attributes:
      directory: the run directory.
      config: of the fine-tuning; its paths may no longer exist.
      origin: of its encoder.
      params: of the best checkpoint, unless another was asked for.
      step: of the parameters; 0 for a probe.
      caveats: what its training data make it necessary to say beside every number of its test split.
    """

    directory: Path
    config: FinetuneConfig | SegmentationConfig
    origin: Origin
    params: Mapping[str, Any]
    step: int
    caveats: tuple[str, ...]


def prepare_finetuning(
    data: FinetuneDataConfig | SegmentationDataConfig,
    workdir: Path,
    run: Run,
    caveats: Sequence[str],
    *,
    findings: Sequence[str] = (),
) -> None:
    """Writes encoder.json and data.json, so that the run directory can be evaluated on its own; what they say already stays.

    Every process of a run calls it.

    Args:
      data: the build that is fine-tuned on, and its splits.
      workdir: of the fine-tuned run.
      run: the pretraining run.
      caveats: of the test split, see `tasks.leaks`.
      findings: of a classifier.

    Raises:
      CheckpointError: `workdir` holds a run on another encoder or of other findings.
    """
    manifest, file = read_manifest(data.directory), workdir / ENCODER_FILE
    wanted = json.loads(json.dumps({"config": to_dict(run.config)} | ({"findings": findings} if findings else {})))
    found = json.loads(file.read_text()) if file.is_file() else {}
    same = found.get("findings") == wanted.get("findings", found.get("findings"))
    if found and not (same and _is_experiment(found.get("config", {}), run.config)):
        other = "another encoder or other findings" if findings else "another encoder"
        raise CheckpointError(f"{workdir}: begun with {other}; use a new workdir")
    general = {*run.caveats, *manifest.caveats}
    noted = {
        "trained_on": read_provenance(run.directory),
        "tested": manifest.members_of(data.test),
        "leaks": [caveat for caveat in caveats if caveat not in general],
        "chosen": manifest.members_of(data.validate),
    }
    if distributed.is_lead():
        workdir.mkdir(parents=True, exist_ok=True)
        draft = file.with_name(f"{file.name}.tmp")
        draft.write_text(json.dumps(wanted | noted | found, indent=2) + "\n")
        os.replace(draft, file)  # whole, as other processes may be reading it
        write_provenance(manifest, "train", workdir, inherited=caveats)
    distributed.barrier("encoder")


def _is_experiment(values: Mapping[str, Any], config: Config) -> bool:
    """Whether a configuration as it was saved has the hash of another: where and how the two computed does not count."""
    try:
        return config_hash(from_config_dict(values)) == config_hash(config)
    except UserError:
        return False


def read_finetuning(
    workdir: Path, make: Callable[[Mapping[str, Any]], Settings], *, task: str
) -> tuple[Settings, Origin]:
    """The configuration of a fine-tuned run and what its encoder.json says.

    Args:
      workdir: holds config.json and encoder.json.
      make: the configuration from the contents of config.json.
      task: of `msfl finetune`.

    Raises:
      UserError: not a run directory of the task.
    """
    try:
        config = make(json.loads((workdir / CONFIG_FILE).read_text()))
        values = json.loads((workdir / ENCODER_FILE).read_text())
        return config, _origin(values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UserError) as error:
        reason = str(error) if isinstance(error, UserError) else type(error).__name__
        raise UserError(
            f"{workdir}: no fine-tuned run of {task} ({reason}); expected a folder of `msfl finetune {task}`"
        ) from error


def mark_of_other_build(run: FinetunedRun, directory: Path) -> dict[str, str]:
    """The option of an outcome that says, where it is not the build that is evaluated, what a run was fine-tuned on: name and start of its hash.

    Raises:
      UserError: `directory` is no build.
    """
    data, manifest = read_training_data(run.directory), read_manifest(directory)
    if data is None or data.members == manifest.members_of(data.split):
        return {}
    return {"fine_tuned_on": f"{data.dataset} ({data.members[:8]})"}


def _origin(values: Mapping[str, Any]) -> Origin:
    trained_on = values.get("trained_on")
    return Origin(
        config=from_config_dict(values["config"]),
        findings=tuple(map(str, values.get("findings", ()))),
        trained_on=TrainingData.of(trained_on) if trained_on else None,
        tested=str(values.get("tested", "")),
        leaks=tuple(map(str, values.get("leaks", ()))),
        chosen=str(values.get("chosen", "")),
    )
