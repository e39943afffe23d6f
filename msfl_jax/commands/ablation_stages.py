"""The stages of one run of an ablation: pretraining, evaluation and fine-tuning, each done once and noted in stages.json when it is."""

import dataclasses
import gc
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from msfl_jax.commands.pretrain import run_pretraining
from msfl_jax.commands.table import write_whole
from msfl_jax.config import Config, config_hash
from msfl_jax.metrics import Interval
from msfl_jax.tasks.grounding import evaluate_grounding
from msfl_jax.tasks.leaks import leak_caveats
from msfl_jax.tasks.outcome import Option, Outcome, identify_split, save_outcome
from msfl_jax.tasks.prompts import load_prompts
from msfl_jax.tasks.run import Run, open_run
from msfl_jax.tasks.zero_shot import evaluate_zero_shot

STAGES_FILE = "stages.json"


@dataclasses.dataclass(frozen=True)
class Builds:
    """What an ablation trains on and measures with.

    Attributes:
      records: build that is trained on, whose `split` is classified.
      phrases: build with boxes, whose `split` is grounded; None leaves grounding out.
      split: held out.
    """

    records: Path
    phrases: Path | None
    split: str

    def key(self, config: Config) -> dict[str, str]:
        """Equal for the same images in every role."""
        parts = {"train": (self.records, config.data.split), "classified": (self.records, self.split)}
        parts |= {"grounded": (self.phrases, self.split)} if self.phrases else {}
        return {role: identify_split(*part)[1] for role, part in parts.items()}


Stage = Callable[[Config, Path, Builds], None]


def pretrain_stage(config: Config, workdir: Path, builds: Builds) -> None:
    """Trains, or goes on training, to the last step."""
    run_pretraining(config, workdir, quiet=True)


def evaluation_stage(config: Config, workdir: Path, builds: Builds) -> None:
    """Zero-shot classification and, where there are boxes, grounding; results and predictions go to `workdir`.

    Raises:
      DataError: the split shares images or patients with what the run was trained on.
    """
    run = open_run(workdir)
    save_zero_shot(run, builds.records, builds.split)
    if builds.phrases:
        save_grounding(run, builds.phrases, builds.split)


STAGES: Mapping[str, Stage] = {"pretraining": pretrain_stage, "evaluation": evaluation_stage}


def run_stages(config: Config, workdir: Path, builds: Builds) -> float:
    """Does what is not done yet, and forgets what was compiled for it.

    Args:
      config: of the run.
      workdir: its directory; files of finished stages are left as they are.
      builds: what is trained on and measured with.

    Returns:
      Seconds that all stages took, over all sessions in which they ended.

    Raises:
      MsflError: a stage failed.
    """
    key = {"config": config_hash(config), **builds.key(config)}
    for name, stage in STAGES.items():
        if name in finished_stages(workdir, key):
            continue
        started = time.monotonic()
        stage(config, workdir, builds)
        done = finished_stages(workdir, key) | {name: round(time.monotonic() - started, 1)}
        write_whole(workdir / STAGES_FILE, json.dumps({"key": key, "seconds": done}, indent=2) + "\n")
        jax.clear_caches()  # the next run's steps are compiled anew: without this, memory would grow with every run
        gc.collect()
    return sum(finished_stages(workdir, key).values())


def finished_stages(workdir: Path, key: Mapping[str, str]) -> dict[str, float]:
    """Seconds of each stage that was done with this key; none where the note is of another configuration or of other images."""
    try:
        note: Any = json.loads((workdir / STAGES_FILE).read_text())
        return dict(note["seconds"]) if note["key"] == dict(key) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def all_finished(config: Config, workdir: Path, builds: Builds) -> bool:
    """Whether there is nothing left to do in `workdir`."""
    return finished_stages(workdir, {"config": config_hash(config), **builds.key(config)}).keys() >= STAGES.keys()


def save_zero_shot(run: Run, directory: Path, split: str) -> Outcome:
    """Classifies a split with the run's own prompts and rule, and saves predictions and result in its directory."""
    result = evaluate_zero_shot(run, directory, split, prompts=load_prompts(run.config.zero_shot.prompts))
    metrics = {"mean_auc": result.mean, "mean_auc_shuffled_images": result.shuffled}
    metrics |= {f"auc/{name}": value for name, value in result.auc.items()}
    reasons = {f"auc/{finding.name}": finding.reason for finding in result.findings if finding.reason}
    options = {"rule": result.rule, "prompts": Path(run.config.zero_shot.prompts).name}
    outcome = _outcome(run, "zero_shot", directory, split, result, result.rule, options, metrics, reasons)
    result.predictions.save(outcome.predictions(run.directory))
    save_outcome(outcome, run.directory)
    return outcome


def save_grounding(run: Run, directory: Path, split: str) -> Outcome:
    """Grounds the phrases of a split with the run's own protocol, and saves scores and result in its directory."""
    result = evaluate_grounding(run, directory, split)
    metrics = result.metrics | {f"category/{name}": value for name, value in result.category_average.items()}
    for category in result.categories:
        metrics |= {f"{category.name}/{name}": value for name, value in category.metrics.items()}
    protocol, own = result.protocol, run.config.grounding
    options = {"protocol": protocol, "sigma": own.sigma, "shifts": own.shifts}
    variant = protocol.replace("/", "-")
    outcome = _outcome(run, "grounding", directory, split, result, variant, options, metrics, {})
    result.scores.save(outcome.predictions(run.directory))
    save_outcome(outcome, run.directory)
    return outcome


def _outcome(
    run: Run,
    task: str,
    directory: Path,
    split: str,
    result: Any,
    variant: str,
    options: Mapping[str, Option],
    metrics: Mapping[str, Interval],
    reasons: Mapping[str, str],
) -> Outcome:
    dataset, members = identify_split(directory, split)
    return Outcome(
        task=task,
        dataset=dataset,
        split=split,
        split_hash=members,
        variant=variant,
        options=options,
        step=run.step,
        records=result.records,
        patients=result.patients,
        metrics=metrics,
        reasons=reasons,
        caveats=_caveats(run, directory, split),
    )


_KNOWN_CAVEATS: dict[tuple[str, ...], tuple[str, ...]] = {}


def _caveats(run: Run, directory: Path, split: str) -> tuple[str, ...]:
    """`leak_caveats`, which reads all records of both builds, once for all runs that are trained on the same images."""
    key = (run.config.data.directory, run.config.data.split, str(directory), split, *run.caveats)
    if key not in _KNOWN_CAVEATS:
        _KNOWN_CAVEATS[key] = leak_caveats(run, directory, split)
    return _KNOWN_CAVEATS[key]
