"""Our results as they lie on disk: every Outcome below some folders, with the model and the seed that it is of."""

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from input_pipeline.errors import UserError
from msfl_jax.tasks.outcome import RESULTS, Outcome, load_outcomes

OBJECTIVES = ("global", "local", "instance", "modality")
FINE_TUNED = ("classification", "segmentation")

_CONFIG = "config.json"
_PARENTS = 3  # folders above a fine-tuned run in which its pretraining run is looked for
_SKIPPED = frozenset({"checkpoints", "tensorboard", "figures", "tokenizer", "data", "study", "predictions", RESULTS})
_NOT_THE_MODEL = frozenset({"seed", "directory", "tokenizer", "tokenizer_hash", "workers", "zero_shot", "grounding"})

# The options, in this order, that tell two evaluations of one model apart.
_VARIANT = {
    "zero_shot": ("rule",),
    "grounding": ("protocol",),
    "classification": ("init", "mode"),
    "segmentation": ("init", "head", "lists"),
}


def combination_rank(objectives: str) -> tuple[int, tuple[bool, ...]]:
    """Orders combinations as table 5: by the number of objectives, then as the paper lists them; other words come last."""
    words = objectives.split(",")
    if not set(words) <= set(OBJECTIVES):
        return len(OBJECTIVES) + 1, ()
    return len(words), tuple(name not in words for name in OBJECTIVES)


ALL_COMBINATIONS = tuple(
    sorted(
        (
            ",".join(("global", *others))
            for count in range(len(OBJECTIVES))
            for others in itertools.combinations(OBJECTIVES[1:], count)
        ),
        key=combination_rank,
    )
)


@dataclass(frozen=True)
class Result:
    """An outcome and what it is of.

    Attributes:
      workdir: the run directory.
      outcome: as it was saved.
      model: name of the pretraining configuration; empty where no pretraining run is known.
      objectives: those that were on, as the argument of a configuration; empty where unknown.
      identity: equal for runs that differ in nothing but their seed and where things lie.
      seed: of pretraining, or of fine-tuning for its tasks; -1 where unknown.
    """

    workdir: Path
    outcome: Outcome
    model: str
    objectives: str
    identity: str
    seed: int

    @property
    def variant(self) -> str:
        """What else was chosen, without fraction and seed: a rule, a protocol, an initialisation and a mode."""
        given = self.outcome.options
        words = [str(given[name]) for name in _VARIANT.get(self.outcome.task, ()) if name in given]
        return ", ".join(words) or self.outcome.variant

    @property
    def run(self) -> str:
        """Name of the run directory, behind that of the pretraining run that it lies in."""
        nested = self.fine_tuned and self.objectives
        return f"{self.workdir.parent.name}/{self.workdir.name}" if nested else self.workdir.name

    @property
    def fine_tuned(self) -> bool:
        """Whether the parameters are those of a run of fine-tuning."""
        return self.outcome.task in FINE_TUNED


def find_results(folders: Iterable[Path]) -> list[Result]:
    """Every outcome in the run directories and in those below them, in the order of their names.

    Raises:
      UserError: a folder does not exist, or a file of results is something else.
    """
    found: dict[Path, Result] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; expected a run directory of `msfl pretrain` or `msfl finetune`")
        for workdir in _run_directories(folder):
            for _, outcome in load_outcomes([workdir]):
                found.setdefault((workdir / outcome.name).resolve(), _describe(workdir, outcome))
    return list(found.values())


def objectives_of(config: Mapping[str, Any]) -> str:
    """The objectives with a weight in a pretraining configuration, as its argument; empty for another configuration."""
    weights = config.get("objective", {})
    return ",".join(name for name in OBJECTIVES if weights.get(f"lambda_{name}", 0))


def _run_directories(folder: Path) -> Iterator[Path]:
    for parent, names, _ in os.walk(folder):
        if RESULTS in names:
            yield Path(parent)
        names[:] = sorted(set(names) - _SKIPPED)


def _describe(workdir: Path, outcome: Outcome) -> Result:
    own = _read_config(workdir)
    home, pretraining = _pretraining(workdir)
    # Labels of another share, or another data set, are trained with other steps and rates: they are one row all the same.
    tuned = outcome.task in FINE_TUNED
    fallback = str(workdir.resolve()) if not tuned else ""
    return Result(
        workdir=workdir,
        outcome=outcome,
        model=str(pretraining.get("name", "")) or ("" if tuned else workdir.name),
        objectives=objectives_of(pretraining),
        identity=_hash(pretraining) if home else fallback,
        seed=_seed(outcome.options if tuned else {}, own if tuned else pretraining),
    )


def _pretraining(workdir: Path) -> tuple[Path | None, Mapping[str, Any]]:
    """The nearest folder upwards with a pretraining configuration, and that configuration."""
    for folder in [workdir, *workdir.resolve().parents][: _PARENTS + 1]:
        config = _read_config(folder)
        if "objective" in config:
            return folder, config
    return None, {}


def _read_config(folder: Path) -> Mapping[str, Any]:
    try:
        values = json.loads((folder / _CONFIG).read_text())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _seed(*places: Mapping[str, Any]) -> int:
    return next((int(place["seed"]) for place in places if isinstance(place.get("seed"), int)), -1)


def _hash(config: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(_model_part(config), sort_keys=True).encode()).hexdigest()[:16]


def _model_part(values: Any) -> Any:
    """A configuration without its seed, its paths and what is only watched."""
    if not isinstance(values, Mapping):
        return values
    return {key: _model_part(value) for key, value in values.items() if key not in _NOT_THE_MODEL}
