"""What a run was trained on, noted once in its directory: data.json. No paths and no identifiers."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from input_pipeline.errors import CheckpointError
from input_pipeline.manifest import Manifest

DATA_FILE = "data.json"


def write_provenance(manifest: Manifest, split: str, workdir: Path, *, inherited: Sequence[str] = ()) -> None:
    """Writes data.json, unless the run has one: a resumed run says what it began with.

    Args:
      manifest: of the build that is trained on.
      split: that is trained on, or a subset such as "train_10".
      workdir: the run directory.
      inherited: caveats of the run whose parameters this one starts from.
    """
    if (workdir / DATA_FILE).exists():
        return
    part = manifest.subsets[split] if split in manifest.subsets else manifest.splits[split]
    values = {
        "name": manifest.name,
        "split": split,
        "members": part.members,
        "key_check": manifest.key_check,
        "settings": manifest.settings,
        "caveats": list(dict.fromkeys([*manifest.caveats, *inherited])),
    }
    draft = workdir / f"{DATA_FILE}.tmp"
    draft.write_text(json.dumps(values, indent=2) + "\n")
    os.replace(draft, workdir / DATA_FILE)


def read_caveats(workdir: Path) -> tuple[str, ...]:
    """What must be said beside every number of a run; nothing for runs that were begun before there was a data.json.

    Raises:
      CheckpointError: data.json is damaged.
    """
    file = workdir / DATA_FILE
    if not file.is_file():
        return ()
    try:
        caveats = json.loads(file.read_text())["caveats"]
        return tuple(str(caveat) for caveat in caveats)
    except (OSError, ValueError, TypeError, KeyError):
        raise CheckpointError(f"{file}: damaged; expected what `msfl pretrain` wrote about the run's data") from None
