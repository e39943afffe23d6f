"""Whether a run may be measured on a build: nothing that it was trained on may be in the split, or the table says so."""

from pathlib import Path
from typing import Literal, NamedTuple

from input_pipeline.errors import UserError
from input_pipeline.leaks import common_origin, compare_builds, refuse_shared
from input_pipeline.manifest import Manifest, read_manifest
from input_pipeline.splits import TEST_CLEAN
from msfl_jax.finetune_config import FinetuneConfig
from msfl_jax.segmentation_config import SegmentationConfig
from msfl_jax.tasks.finetuned import FinetunedRun
from msfl_jax.tasks.run import Run
from msfl_jax.train.provenance import TrainingData, read_training_data


class Training(NamedTuple):
    """A set of images that parameters were trained on.

    Attributes:
      phase: what was done with it.
      directory: where its build was.
      split: of that build.
      data: what the run has noted of it; None where it has noted nothing.
    """

    phase: Literal["pretraining", "fine-tuning"]
    directory: str
    split: str
    data: TrainingData | None

    @property
    def verb(self) -> str:
        """How the run was trained."""
        return "trained" if self.phase == "pretraining" else "fine-tuned"


def leak_caveats(run: Run, directory: Path, split: str, *, allow_leak: bool = False) -> tuple[str, ...]:
    """What must stand beneath a number of this run on this split: the caveats of both builds, and of what they share.

    Reads every record of both once, without decoding images, unless they are one build: that has no patient in two splits.

    Args:
      run: with the folder of its training build in its configuration.
      directory: build that is evaluated.
      split: of it.
      allow_leak: goes on where images or patients are shared.

    Raises:
      DataError: the split shares images or patients with the training split.
      UserError: `directory` is no build, or has no such split.
    """
    manifest, data = read_manifest(directory), run.config.data
    trained = Training("pretraining", data.directory, data.split, read_training_data(run.directory))
    found = _caveats(trained, manifest, directory, split, allow_leak)
    return tuple(dict.fromkeys([*run.caveats, *manifest.caveats, *found]))


def finetuning_caveats(
    config: FinetuneConfig | SegmentationConfig, run: Run, *, allow_leak: bool = False
) -> tuple[str, ...]:
    """As `leak_caveats`, of the test split of a run that is about to be fine-tuned.

    An encoder that starts at random has seen nothing, and what an imported one has seen cannot be checked: then only the build itself, and the
    import, have something to say.

    Args:
      config: with the build in `data.directory`.
      run: the pretraining run.
      allow_leak: see `leak_caveats`.

    Raises:
      DataError, UserError: as in `leak_caveats`.
    """
    directory = Path(config.data.directory)
    if config.encoder.init != "pretrained":
        own = run.caveats if config.encoder.init == "imported" else ()
        return tuple(dict.fromkeys([*own, *read_manifest(directory).caveats]))
    return leak_caveats(run, directory, config.data.test, allow_leak=allow_leak)


def finetuned_caveats(run: FinetunedRun, directory: Path, split: str, *, allow_leak: bool = False) -> tuple[str, ...]:
    """As `leak_caveats`, of a fine-tuned run: neither what it was pretrained on nor what it was fine-tuned on may be in the split.

    The folder of the run is enough where the split is the one that it was tested on, or where a build of the same images is evaluated: for these it
    has noted what is needed. Otherwise the builds that it was trained on are read where they were.

    Raises:
      DataError, UserError: as in `leak_caveats`.
    """
    manifest, config, origin = read_manifest(directory), run.config, run.origin
    members = manifest.members_of(split)
    caveats = [caveat for caveat in run.caveats if caveat not in origin.leaks] + list(manifest.caveats)
    if members and members == origin.tested:
        caveats += origin.leaks
    elif config.encoder.init == "pretrained":
        data = origin.config.data
        trained = Training("pretraining", data.directory, data.split, origin.trained_on)
        caveats += _caveats(trained, manifest, directory, split, allow_leak)
    tuned = Training("fine-tuning", config.data.directory, "train", read_training_data(run.directory))
    caveats += _caveats(tuned, manifest, directory, split, allow_leak)
    if members and members == origin.chosen:
        caveats.append("its checkpoint was chosen by these images")
    return tuple(dict.fromkeys(caveats))


def _caveats(trained: Training, manifest: Manifest, directory: Path, split: str, allow_leak: bool) -> list[str]:
    """What one training set makes it necessary to say beside the numbers of a split of a build."""
    synthetic = trained.data is not None and trained.data.synthetic and manifest.dataset == manifest.name
    found = [f"{trained.verb} on {trained.data.dataset}, a synthetic study"] if trained.data and synthetic else []
    if split == TEST_CLEAN and split in manifest.subsets:
        found.append(f"{split} holds the test images that no other split has")
    unknown = f"not checked: whether it was {trained.verb} on these patients"
    build = _build_of(trained)
    dataset = trained.data.dataset if trained.data else build.dataset if build else ""
    if origin := common_origin(dataset, manifest.dataset):
        found.append(f"{unknown}; {origin}")
    if build == manifest or _holds(manifest, trained):
        seen = manifest.split_of(split) == manifest.split_of(trained.split)
        return [*found, f"these are the images that it was {trained.verb} on"] if seen else found
    if build is None:
        return [*found, f"{unknown}; the training build is not where it was"]
    if trained.data and not _holds(build, trained):
        found.append(f"{unknown}: the training build holds other images now")
    shared = compare_builds(trained.directory, directory, train=trained.split, splits=(split,), name=trained.phase)
    if not shared.comparable:
        return [*found, f"{unknown}; the builds have keys of different salts"]
    refuse_shared(shared, splits=(split,), allow_leak=allow_leak)
    return found + [str(pair) for pair in shared.overlaps.found]


def _holds(manifest: Manifest, trained: Training) -> bool:
    """Whether a build has the very training split that is noted, of the same images: then its other splits are apart from it."""
    data = trained.data
    if data is None or not data.members:
        return False
    return (data.key_check, data.members) == (manifest.key_check, manifest.members_of(data.split))


def _build_of(trained: Training) -> Manifest | None:
    try:
        return read_manifest(trained.directory)
    except UserError:
        return None
