"""Our results as they lie on disk: every Outcome below some folders, with the model and the seed that it is of."""

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from input_pipeline.errors import UserError
from input_pipeline.splits import TEST_CLEAN
from msfl_jax.config import Config
from msfl_jax.config_init import with_defaults
from msfl_jax.finetune_config import FinetuneConfig
from msfl_jax.segmentation_config import SegmentationConfig
from msfl_jax.tasks.outcome import RESULTS, Outcome, load_outcomes

OBJECTIVES = ("global", "local", "instance", "modality")
_TUNED_BY = {"classification": FinetuneConfig, "segmentation": SegmentationConfig}
FINE_TUNED = tuple(_TUNED_BY)

_CONFIG, _ENCODER, _DATA = "config.json", "encoder.json", "data.json"
_PRETRAINING, _TUNING = "pretraining.", "fine-tuning."  # before their settings
_PARENTS = 3  # folders above a fine-tuned run in which its pretraining run is looked for
_SKIPPED = frozenset({"checkpoints", "tensorboard", "figures", "tokenizer", "data", "study", "predictions", RESULTS})
# Keys anywhere, and one by its path: the local loss has an "attention" that is computed.
_NOT_THE_MODEL = frozenset(
    {
        *("seed", "directory", "tokenizer", "workers", "mesh", "test", "zero_shot", "grounding"),
        *("log_every", "checkpoint_every", "keep_checkpoints", "max_skipped_steps"),
        *("microbatches", "exchange", "kernel", "length_buckets", "remat", "model.attention"),
        *("retrieval", "probe"),
    }
)
# Of fine-tuning, what the siblings' recipes choose anew for each data set and share of the labels: the same row, though never the same mean.
_SCHEDULE = frozenset(
    {
        *("name", "data.fraction", "data.findings", "data.members"),
        *("train.steps", "train.evaluate_every", "optimizer.peak_rate", "optimizer.warmup_steps"),
        "optimizer.layer_decay",
    }
)

# The options, in this order, that name an evaluation of a model.
_VARIANT = {
    "zero_shot": ("rule",),
    "grounding": ("protocol", "scaling", "geometry"),
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
      identity: equal for runs that differ in nothing but their seed and where things lie; fine-tuned runs may differ in their schedule too.
      seed: of pretraining, or of fine-tuning for its tasks; -1 where unknown.
      settings: dotted keys and values of all that makes the model: the configurations of pretraining and fine-tuning, and the hashes of their data.
      schedule: equal for fine-tuned runs of one data set and share of the labels that were trained alike.
    """

    workdir: Path
    outcome: Outcome
    model: str
    objectives: str
    identity: str
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    schedule: str = ""

    @property
    def variant(self) -> str:
        """What else was chosen, without fraction and seed: a rule, a protocol as "biovil/minmax", an initialisation and a mode, what a
        run was fine-tuned on where that is another build than this one, and "test_clean" where the test images are those."""
        given = self.outcome.options
        words = [str(given[name]) for name in _VARIANT.get(self.outcome.task, ()) if name in given]
        words += [f"fine-tuned on {given['fine_tuned_on']}"] if "fine_tuned_on" in given else []
        words += [TEST_CLEAN] if self.outcome.split == TEST_CLEAN else []
        if self.outcome.task == "grounding":
            return "/".join(word for word in words if word != "own") or self.outcome.variant
        return ", ".join(words) or self.outcome.variant

    @property
    def details(self) -> str:
        """What makes two evaluations of one variant different: smoothing and looks of grounding, prompts of zero-shot classification."""
        given = self.outcome.options
        if self.outcome.task == "grounding":
            return ", ".join(f"{name} {given[name]}" for name in ("sigma", "shifts") if name in given)
        if self.outcome.task != "zero_shot":
            return ""
        found = [str(given["prompts"])] if "prompts" in given else []
        found += [f"(hash {str(given['prompts_hash'])[:8]})"] if "prompts_hash" in given else []
        return " ".join(["prompts", *found]) if found else ""

    @property
    def base(self) -> str:
        """Equal for runs of one pretraining, whatever was fine-tuned from it."""
        return _hash({key: value for key, value in self.settings.items() if not key.startswith(_TUNING)})

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


def differences(one: Result, others: Iterable[Result], *, tuning: bool = True) -> str:
    """Settings of `one` that some of the others do not share, as `pretraining.optimizer.peak_rate 0.001`; the first three.

    Args:
      one: to be told apart.
      others: from which.
      tuning: whether settings of fine-tuning count.
    """
    keys = [
        key
        for key in sorted({key for other in (one, *others) for key in other.settings})
        if (tuning or not key.startswith(_TUNING))
        and any(other.settings.get(key) != one.settings.get(key) for other in others)
    ]
    shown = [f"{key} {_short(one.settings.get(key, '-'))}" for key in keys[:3]]
    return ", ".join([*shown, *([f"and {len(keys) - 3} more"] if len(keys) > 3 else [])])


def _short(value: Any) -> str:
    """A value as it is printed; hashes by their first digits."""
    text = str(value)
    return text[:8] if len(text) == 64 and "/" not in text else text


def _run_directories(folder: Path) -> Iterator[Path]:
    for parent, names, _ in os.walk(folder):
        if RESULTS in names:
            yield Path(parent)
        names[:] = sorted(set(names) - _SKIPPED)


def _describe(workdir: Path, outcome: Outcome) -> Result:
    own, tuned = _read(workdir / _CONFIG), outcome.task in FINE_TUNED
    home, pretraining = _pretraining(workdir)
    origin = _read(workdir / _ENCODER) if tuned else {}
    encoder = _completed(Config, _part(origin, "config"))
    if encoder and dict(_flat(encoder, "")) != dict(_flat(pretraining, "")):
        home, pretraining = None, encoder  # the run that it lies in is not the one that it comes from
    settings = dict(_flat(pretraining, _PRETRAINING))
    trained_on = _part(origin, "trained_on") or (_read(home / _DATA) if home else {})
    if members := trained_on.get("members"):
        settings[f"{_PRETRAINING}data.members"] = members
    schedule = {}
    if tuned:
        tuning = dict(_flat(_completed(_TUNED_BY[outcome.task], own), "")) if "objective" not in own else {}
        tuning |= {"data.members": members} if (members := _read(workdir / _DATA).get("members")) else {}
        settings |= {f"{_TUNING}{key}": value for key, value in tuning.items()}
        schedule = {key: value for key, value in tuning.items() if key in _SCHEDULE}
    elif not home:
        settings["run"] = str(workdir.resolve())  # nothing is known of it: no two are alike
    identity = {key: value for key, value in settings.items() if key.removeprefix(_TUNING) not in schedule}
    return Result(
        workdir=workdir,
        outcome=outcome,
        model=str(pretraining.get("name", "")) or ("" if tuned else workdir.name),
        objectives=objectives_of(pretraining),
        identity=_hash(identity),
        seed=_seed(outcome.options if tuned else {}, own if tuned else pretraining),
        settings=settings,
        schedule=_hash(schedule),
    )


def _pretraining(workdir: Path) -> tuple[Path | None, Mapping[str, Any]]:
    """The nearest folder upwards with a pretraining configuration, and that configuration."""
    for folder in [workdir, *workdir.resolve().parents][: _PARENTS + 1]:
        config = _read(folder / _CONFIG)
        if "objective" in config:
            return folder, _completed(Config, config)
    return None, {}


def _completed(kind: type, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A configuration as it would have been saved today: keys that are newer than its run have their defaults. Nothing stays nothing."""
    return json.loads(json.dumps(with_defaults(kind, config))) if config else {}


def _read(file: Path) -> Mapping[str, Any]:
    """A file of JSON; empty where there is none."""
    try:
        values = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _part(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = values.get(name)
    return part if isinstance(part, dict) else {}


def _seed(*places: Mapping[str, Any]) -> int:
    return next((int(place["seed"]) for place in places if isinstance(place.get("seed"), int)), -1)


def _hash(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a configuration without its seed, its paths and what is only watched."""
    for key, value in values.items():
        path = f"{prefix}{key}"
        if key in _NOT_THE_MODEL or path.removeprefix(_PRETRAINING) in _NOT_THE_MODEL:
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}.")
        else:
            yield path, value
