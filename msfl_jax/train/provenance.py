"""What a run was trained on, noted once in its directory: data.json. No paths and no identifiers."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from input_pipeline.errors import CheckpointError
from input_pipeline.manifest import Manifest, dataset_name

DATA_FILE = "data.json"


@dataclass(frozen=True)
class TrainingData:
    """What is known of the images that parameters were trained on.

    Attributes:
      dataset: what results call them: "synthetic_mimic_cxr" for a synthetic study in the layout of MIMIC-CXR.
      synthetic: whether they are of a synthetic study.
      split: of their build, or a subset such as "train_10".
      members: keyed hash of the set of images, as in the build's manifest.
      key_check: equal for builds whose keys and hashes can be compared.
      caveats: what they make it necessary to say beside every number.
    """

    dataset: str
    synthetic: bool
    split: str
    members: str
    key_check: str
    caveats: tuple[str, ...]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "TrainingData":
        """From the contents of a data.json; raises a KeyError, TypeError or AttributeError where they are something else."""
        name, settings = str(values.get("name", "")), values.get("settings", {})
        return cls(
            dataset=dataset_name(name, settings),
            synthetic=settings.get("synthetic") is True,
            split=str(values.get("split", "")),
            members=str(values.get("members", "")),
            key_check=str(values.get("key_check", "")),
            caveats=tuple(str(caveat) for caveat in values["caveats"]),
        )


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
    values = {
        "name": manifest.name,
        "split": split,
        "members": manifest.members_of(split),
        "key_check": manifest.key_check,
        "settings": manifest.settings,
        "caveats": list(dict.fromkeys([*manifest.caveats, *inherited])),
    }
    draft = workdir / f"{DATA_FILE}.tmp"
    draft.write_text(json.dumps(values, indent=2) + "\n")
    os.replace(draft, workdir / DATA_FILE)


def read_provenance(workdir: Path) -> dict[str, Any] | None:
    """The contents of data.json, for `TrainingData.of`; None for runs that were begun before there was one.

    Raises:
      CheckpointError: data.json is damaged.
    """
    file = workdir / DATA_FILE
    if not file.is_file():
        return None
    try:
        values = json.loads(file.read_text())
        TrainingData.of(values)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise CheckpointError(f"{file}: damaged; expected what `msfl pretrain` wrote about the run's data") from None
    return values


def read_training_data(workdir: Path) -> TrainingData | None:
    """What data.json says; None and errors as of `read_provenance`."""
    values = read_provenance(workdir)
    return None if values is None else TrainingData.of(values)


def read_caveats(workdir: Path) -> tuple[str, ...]:
    """What must be said beside every number of a run; nothing for runs that were begun before there was a data.json.

    Raises:
      CheckpointError: data.json is damaged.
    """
    data = read_training_data(workdir)
    return data.caveats if data else ()
