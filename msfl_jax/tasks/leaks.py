"""Whether a run may be measured on a build: nothing that it was trained on may be in the split, or the table says so."""

from pathlib import Path

from input_pipeline.errors import UserError
from input_pipeline.leaks import compare_builds, refuse_shared
from input_pipeline.manifest import Manifest, read_manifest
from msfl_jax.tasks.run import Run

_NOT_CHECKED = "not checked: whether it was trained on these patients"


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
    manifest = read_manifest(directory)
    trained = _training_build(run)
    caveats = [*run.caveats, *manifest.caveats]
    train = run.config.data.split
    if trained is None:
        caveats.append(f"{_NOT_CHECKED}; the training build is not where it was")
    elif trained == manifest:
        if manifest.split_of(split) == manifest.split_of(train):
            caveats.append("these are the images that it was trained on")
    else:
        shared = compare_builds(run.config.data.directory, directory, train=train, splits=(split,))
        if shared.comparable:
            refuse_shared(shared, splits=(split,), allow_leak=allow_leak)
        caveats += [str(pair) for pair in shared.overlaps.found]
        caveats += [] if shared.comparable else [f"{_NOT_CHECKED}; the builds have keys of different salts"]
    return tuple(dict.fromkeys(caveats))


def _training_build(run: Run) -> Manifest | None:
    try:
        return read_manifest(run.config.data.directory)
    except UserError:
        return None
