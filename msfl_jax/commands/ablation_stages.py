"""The stages of one run of an ablation: pretraining, evaluation and fine-tuning, each done once and noted in stages.json when it is."""

import contextlib
import dataclasses
import gc
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from input_pipeline.manifest import read_manifest
from msfl_jax.commands.evaluate import grounding_report
from msfl_jax.commands.finetune import run_classification
from msfl_jax.commands.pretrain import run_pretraining
from msfl_jax.commands.table import write_whole
from msfl_jax.commands.zero_shot import zero_shot_report
from msfl_jax.config import Config, config_hash
from msfl_jax.config_files import load_config
from msfl_jax.finetune_config import FinetuneConfig, finetune_config
from msfl_jax.results.ablation import Wanted, measured_by
from msfl_jax.results.own_results import Result, find_results
from msfl_jax.tasks.outcome import identify_split
from msfl_jax.tasks.prompts import choose_set, load_prompts, prompts_hash

STAGES_FILE = "stages.json"
RULE = "cosine"  # of table 5: a run without local alignment has no other half for "gloria"
FINETUNED = "finetune"  # folder of the fine-tuned run, in that of the run it starts from; "-SPLIT" follows where that is not "test"


@dataclass(frozen=True)
class Builds:
    """What an ablation trains on and measures with.

    Attributes:
      records: build that is trained on.
      phrases: build with boxes, whose `split` is grounded; None leaves grounding out.
      split: held out, of every build that is measured on.
      labels: build to classify, fine-tuned and zero-shot; None takes `records`.
      finetune: configuration of the fine-tuning with its argument, as "finetune_demo:1"; "" leaves fine-tuning out.
    """

    records: Path
    phrases: Path | None
    split: str
    labels: Path | None = None
    finetune: str = ""

    @property
    def classified(self) -> Path:
        """The build whose `split` is classified: table 5 has zero-shot and fine-tuned classification of one data set, RSNA."""
        return self.labels or self.records

    def finetuning(self, seed: int) -> FinetuneConfig:
        """The configuration of the fine-tuning, which is measured on `split` as everything else.

        Raises:
          UserError: there is no such configuration.
        """
        settings = load_config(self.finetune, [f"--config.seed={seed}"], make=finetune_config)
        return dataclasses.replace(settings, data=dataclasses.replace(settings.data, test=self.split))

    def wanted(self, config: Config) -> dict[str, Wanted]:
        """By task, which results of a run with this configuration are those of its stages."""
        own = config.grounding
        grounding = {"protocol": own.protocol, "scaling": "minmax", "geometry": "own"}
        grounding |= {"sigma": own.sigma, "shifts": own.shifts}
        manifest = read_manifest(self.classified)
        asked = load_prompts(choose_set(config.zero_shot.prompts, manifest.name, manifest.label_names))
        zero_shot = {"rule": RULE, "prompts_hash": prompts_hash(asked)}
        found = {"zero_shot": Wanted(self.split, self._members(self.classified), zero_shot)}
        if self.phrases:
            found["grounding"] = Wanted(self.split, self._members(self.phrases), grounding)
        if self.finetune:
            settings = self.finetuning(config.seed)
            options = {"init": "pretrained", "mode": settings.mode, "fraction": settings.data.fraction}
            found["classification"] = Wanted(self.split, self._members(self.classified), options)
        return found

    def _members(self, build: Path) -> str:
        return identify_split(build, self.split)[1]

    def finetuned(self, workdir: Path) -> Path:
        """Folder of the fine-tuned run in that of its pretraining run; each split has its own."""
        return workdir / (FINETUNED if self.split == "test" else f"{FINETUNED}-{self.split}")


@dataclass(frozen=True)
class Stage:
    """A part of a run: what it does, and a key that is equal as long as it would do the same to the same images."""

    run: Callable[[Config, Path, Builds], object]
    key: Callable[[Config, Builds], list[str]]


@contextlib.contextmanager
def kept_programs(folder: Path) -> Iterator[None]:
    """Keeps what is compiled in a folder, from which runs that differ in their seed alone take it: compiling is a large part of a short run.

    Where JAX has such a folder already (JAX_COMPILATION_CACHE_DIR), that one is used.
    """
    if jax.config.values["jax_compilation_cache_dir"]:
        yield
        return
    jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))
    compilation_cache.reset_cache()  # JAX looks at the setting once only
    try:
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", None)
        compilation_cache.reset_cache()


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
    notes = _read_notes(workdir)
    for name, stage in STAGES.items():
        key = stage.key(config, builds)
        if _done(notes, name, key):
            continue
        started = time.monotonic()
        stage.run(config, workdir, builds)
        notes[name] = {"key": key, "seconds": round(time.monotonic() - started, 1)}
        write_whole(workdir / STAGES_FILE, json.dumps(notes, indent=2) + "\n")
        jax.clear_caches()  # without this, memory would grow with every run; see `kept_programs`
        gc.collect()
    return sum(notes[name]["seconds"] for name in STAGES)


def all_finished(config: Config, workdir: Path, builds: Builds) -> bool:
    """Whether there is nothing left to do in `workdir`."""
    notes = _read_notes(workdir)
    return all(_done(notes, name, stage.key(config, builds)) for name, stage in STAGES.items())


def results_of(config: Config, workdir: Path, builds: Builds) -> list[Result]:
    """What the stages of a run measured; other results in its directory, as of another split, protocol or initialisation, are left out."""
    if not workdir.is_dir():
        return []
    own = (workdir, builds.finetuned(workdir))
    return measured_by((one for one in find_results([workdir]) if one.workdir in own), builds.wanted(config))


def _pretrain(config: Config, workdir: Path, builds: Builds) -> None:
    run_pretraining(config, workdir, quiet=True)


def _evaluate(config: Config, workdir: Path, builds: Builds) -> None:
    """Zero-shot classification with table 5's rule and, where it is another one, the run's own; grounding where there are boxes."""
    own = "" if config.zero_shot.rule == "gloria" and not config.objective.lambda_local else config.zero_shot.rule
    for rule in dict.fromkeys(rule for rule in (RULE, own) if rule):
        zero_shot_report(workdir, builds.classified, split=builds.split, rule=rule)
    if builds.phrases:
        grounding_report(workdir, builds.phrases, split=builds.split, overlays=0)


def _finetune(config: Config, workdir: Path, builds: Builds) -> None:
    if builds.finetune:
        run_classification(builds.finetuning(config.seed), builds.finetuned(workdir), workdir, builds.classified)


def _pretraining_key(config: Config, builds: Builds) -> list[str]:
    return [config_hash(config), identify_split(builds.records, config.data.split)[1]]


def _evaluation_key(config: Config, builds: Builds) -> list[str]:
    measured = [build for build in (builds.classified, builds.phrases) if build]
    return [*_pretraining_key(config, builds), RULE, *(identify_split(build, builds.split)[1] for build in measured)]


def _finetuning_key(config: Config, builds: Builds) -> list[str]:
    if not builds.finetune:
        return ["none"]
    settings = builds.finetuning(config.seed)
    members = identify_split(builds.classified, settings.data.test)[1]
    return [*_pretraining_key(config, builds), builds.finetune, members]


STAGES: Mapping[str, Stage] = {
    "pretraining": Stage(_pretrain, _pretraining_key),
    "evaluation": Stage(_evaluate, _evaluation_key),
    "fine_tuning": Stage(_finetune, _finetuning_key),
}


def _read_notes(workdir: Path) -> dict[str, Any]:
    """What stages.json says; nothing where there is none or it is damaged, and then the stages find out themselves what is left to do."""
    try:
        notes = json.loads((workdir / STAGES_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return notes if isinstance(notes, dict) else {}


def _done(notes: Mapping[str, Any], name: str, key: list[str]) -> bool:
    note = notes.get(name)
    return isinstance(note, dict) and note.get("key") == key and isinstance(note.get("seconds"), int | float)
