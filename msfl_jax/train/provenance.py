"""What a run was trained on, noted once in its directory: data.json. No paths and no identifiers."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

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
      equalize: whether their histograms were equalised.
      before: name, split and settings of what the runs were trained on whose parameters they started from, the latest first.
    """

    dataset: str
    synthetic: bool
    split: str
    members: str
    key_check: str
    caveats: tuple[str, ...]
    equalize: bool = False
    before: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "TrainingData":
        """From the contents of a data.json; raises a KeyError, TypeError, ValueError or AttributeError where they are something else."""
        name, settings = str(values.get("name", "")), values.get("settings", {})
        return cls(
            dataset=dataset_name(name, settings),
            synthetic=settings.get("synthetic") is True,
            split=str(values.get("split", "")),
            members=str(values.get("members", "")),
            key_check=str(values.get("key_check", "")),
            caveats=tuple(str(caveat) for caveat in values["caveats"]),
            equalize=values.get("equalize") is True,
            before=tuple(dict(entry) for entry in values.get("before", ())),
        )


class Inherited(NamedTuple):
    """What a run takes over, beside parameters, from what it starts from.

    Attributes:
      caveats: what must be said beside its numbers because of that.
      before: as in `TrainingData`.
    """

    caveats: tuple[str, ...] = ()
    before: tuple[Mapping[str, Any], ...] = ()


def inherit(parent: Path, manifest: Manifest, split: str) -> Inherited:
    """What a run takes over from the run whose parameters it starts from.

    Evaluations look for shared patients in the build of a run alone. So, unless that is what the parent was trained on too, it has to be said what
    the parent saw, and that nobody has compared it.

    Args:
      parent: run directory.
      manifest: of the build that is trained on now.
      split: of it.

    Raises:
      CheckpointError: the parent's data.json is damaged.
    """
    unchecked = "not checked: whether it saw these patients"
    values = read_provenance(parent)
    if values is None:
        return Inherited((f"started from a run that does not say what it was trained on; {unchecked}",))
    data = TrainingData.of(values)
    same = data.members != "" and (data.key_check, data.members) == (manifest.key_check, manifest.members_of(split))
    found = () if same else (f"started from a run trained on {data.dataset}, split {data.split}; {unchecked}",)
    own = {key: values.get(key) for key in ("name", "split", "settings")}
    return Inherited((*data.caveats, *found), (own, *data.before))


def write_provenance(
    manifest: Manifest,
    split: str,
    workdir: Path,
    *,
    inherited: Sequence[str] = (),
    before: Sequence[Mapping[str, Any]] = (),
    fresh: bool = False,
) -> None:
    """Writes data.json, unless the run has one: a resumed run says what it began with.

    Args:
      manifest: of the build that is trained on.
      split: that is trained on, or a subset such as "train_10".
      workdir: the run directory.
      inherited: caveats of the run, or of the weights, that this one starts from.
      before: what was trained on before, see `TrainingData`.
      fresh: whether the run is at its beginning: then a data.json is that of a start that came to nothing, and is replaced.
    """
    if (workdir / DATA_FILE).exists() and not fresh:
        return
    values = {
        "name": manifest.name,
        "split": split,
        "members": manifest.members_of(split),
        "key_check": manifest.key_check,
        "equalize": manifest.equalize,
        "settings": manifest.settings,
        "before": list(before),
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
