"""What an evaluation leaves in a run directory: results/NAME.json with every number, beside predictions/NAME.npz from which they follow.

Tables read these files and nothing else, so a number in a table can be traced to its predictions, its split and its caveats.
"""

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from input_pipeline.errors import UserError
from input_pipeline.manifest import read_manifest
from msfl_jax.metrics import Interval

RESULTS, PREDICTIONS = "results", "predictions"

_HASH = 6  # hex digits of a split's hash in a name

Option = str | int | float | bool


@dataclass(frozen=True)
class Outcome:
    """The numbers of one evaluation and all that must be known to read them.

    Attributes:
      task: "zero_shot", "grounding", "retrieval", "classification" or "segmentation".
      dataset: name of the build, as "rsna_pneumonia".
      split: of the build that was evaluated.
      split_hash: hash of the set of its images: equal numbers of different hashes are of different images.
      variant: short name, in file names, of what else was chosen: a rule, a protocol, a label fraction with its seed.
      options: choices by name; enough to compute `metrics` from the predictions again.
      step: of the parameters.
      records, patients: how many were scored.
      metrics: value and limits by name; nan where undefined.
      reasons: why, for each metric that is undefined.
      caveats: what must be said beside the numbers.
    """

    task: str
    dataset: str
    split: str
    split_hash: str
    variant: str
    options: Mapping[str, Option]
    step: int
    records: int
    patients: int
    metrics: Mapping[str, Interval]
    reasons: Mapping[str, str] = field(default_factory=dict)
    caveats: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of its two files, unless it is taken (see `placed`); the same evaluation of a later step replaces them."""
        return "-".join(part for part in (self.task, self.dataset, self.split, self.variant) if part)

    def placed(self, workdir: Path) -> "Outcome":
        """Itself or, where a result of its name in `workdir` is of other images, with the start of the split's hash in its variant: none is lost."""
        try:
            found = json.loads((workdir / RESULTS / f"{self.name}.json").read_text())["split_hash"]
        except (OSError, ValueError, TypeError, KeyError):
            return self
        words = (self.variant, self.split_hash[:_HASH])
        return self if found == self.split_hash else dataclasses.replace(self, variant="-".join(filter(None, words)))

    def predictions(self, workdir: Path) -> Path:
        """Where the predictions behind it are saved: under the name that its result has or gets."""
        return workdir / PREDICTIONS / f"{self.placed(workdir).name}.npz"


def identify_split(directory: Path | str, split: str) -> tuple[str, str]:
    """Name of a build's data and hash of the images of one of its splits or subsets, for an `Outcome`.

    A synthetic study is never called by the name of the data set whose layout it has: see `Manifest.dataset`.

    Raises:
      UserError: there is no such build or split.
    """
    manifest = read_manifest(directory)
    if split not in manifest.subsets.keys() | manifest.splits.keys():
        raise UserError(f"{directory}: no split '{split}'; found {', '.join(manifest.readable_splits())}")
    return manifest.dataset, manifest.members_of(split)


def save_outcome(outcome: Outcome, workdir: Path) -> Path:
    """Writes `workdir`/results/NAME.json, whole or not at all; undefined numbers are null. A result of other images is not replaced: see `placed`."""
    outcome = outcome.placed(workdir)
    values = dataclasses.asdict(outcome) | {
        "metrics": {name: [_finite(number) for number in interval] for name, interval in outcome.metrics.items()}
    }
    file = workdir / RESULTS / f"{outcome.name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f"{file.name}.partial")
    draft.write_text(json.dumps(values, indent=2) + "\n")
    os.replace(draft, file)
    return file


def load_outcome(file: Path) -> Outcome:
    """Reads what `save_outcome` wrote.

    Raises:
      UserError: the file is something else.
    """
    try:
        values = json.loads(file.read_text())
        values["metrics"] = {name: _interval(numbers) for name, numbers in values["metrics"].items()}
        return Outcome(**values | {"caveats": tuple(values["caveats"])})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{file}: no result ({type(error).__name__}); expected a file of `msfl eval`") from error


def load_outcomes(workdirs: Iterable[Path]) -> list[tuple[Path, Outcome]]:
    """Every result below the run directories, with the directory it was found in, in the order of their names."""
    return [
        (workdir, load_outcome(file))
        for workdir in workdirs
        for file in sorted((Path(workdir) / RESULTS).glob("*.json"))
    ]


def _finite(number: float) -> float | None:
    return float(number) if math.isfinite(number) else None  # JSON has no NaN


def _interval(numbers: Iterable[float | None]) -> Interval:
    return Interval(*(math.nan if number is None else float(number) for number in numbers))
