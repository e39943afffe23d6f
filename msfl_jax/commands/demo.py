"""`msfl demo`: the whole method on a synthetic study, from files on disk to a report on held-out patients."""

import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from input_pipeline.build import build
from input_pipeline.datasets.mimic_cxr import MimicCxr
from input_pipeline.datasets.ms_cxr import MsCxr
from input_pipeline.datasets.synthetic import synthesize
from input_pipeline.errors import UserError
from input_pipeline.loader import text_sentences
from input_pipeline.tokenizer import ReportTokenizer, train_tokenizer
from msfl_jax.commands.pretrain import run_pretraining
from msfl_jax.commands.stages import stage
from msfl_jax.config import Config, config_hash
from msfl_jax.config_files import load_config
from msfl_jax.metrics import Interval
from msfl_jax.results.figures import save_curves, save_phrase_overlays
from msfl_jax.results.tables import demo_table, with_caveats
from msfl_jax.tasks.grounding import GroundingResult, evaluate_grounding
from msfl_jax.tasks.prompts import load_prompts
from msfl_jax.tasks.run import open_run
from msfl_jax.tasks.zero_shot import ZeroShotResult, evaluate_zero_shot

STORED_SHORT_SIDE = 128  # pixels: twice what the tiny model sees, so that shifts cost no resolution
OVERLAYS = 6


@dataclasses.dataclass(frozen=True)
class Folders:
    """Where the parts of a demo are, below its working directory, which is the run directory itself."""

    workdir: Path

    @property
    def study(self) -> Path:
        """The synthetic study, as PhysioNet would ship it."""
        return self.workdir / "study"

    @property
    def records(self) -> Path:
        """Image-report records."""
        return self.workdir / "data" / "mimic_cxr"

    @property
    def phrases(self) -> Path:
        """Phrases with boxes."""
        return self.workdir / "data" / "ms_cxr"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer trained on the study's training reports."""
        return self.workdir / "data" / "tokenizer"

    @property
    def figures(self) -> Path:
        """Curves and overlays."""
        return self.workdir / "figures"


def run_demo(
    workdir: Path | None, *, seed: int, config: str, overrides: Sequence[str], studies: int, split: str
) -> dict[str, Any]:
    """Runs every stage and prints the table; stages that a killed demo had finished are kept.

    Args:
      workdir: the run directory; None names one after today's date and the seed.
      seed: of the study and of the training.
      config: as for `--config`.
      overrides: `--config.a.b=value` each.
      studies: how many studies to synthesize over all splits.
      split: the held-out split that is evaluated.

    Returns:
      What was written to summary.json.

    Raises:
      UserError: the configuration is wrong.
    """
    started = time.monotonic()
    folders = Folders(workdir or Path("runs") / f"demo-{time.strftime('%Y-%m-%d')}-seed{seed}")
    settings = load_config(config, [f"--config.seed={seed}", *overrides])
    settings = dataclasses.replace(
        settings,
        data=dataclasses.replace(settings.data, directory=str(folders.records), tokenizer=str(folders.tokenizer)),
        grounding=dataclasses.replace(settings.grounding, directory=str(folders.phrases)),
    )
    print(f"{folders.workdir}: about {estimated_minutes(studies, settings.train.steps)} minutes on two cores\n")
    prepare(folders, studies=studies, seed=seed)
    run_pretraining(settings, folders.workdir, quiet=True)
    zero_shot, grounding, caveats = evaluate(folders, settings, split)
    save_curves(folders.workdir / "metrics.jsonl", folders.figures / "curves.png")
    summary = summarise(zero_shot, grounding, seconds=time.monotonic() - started, settings=settings)
    (folders.workdir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(f"\n{with_caveats(demo_table(zero_shot, grounding), caveats)}\n\n{where_to_go(folders)}")
    return summary


def estimated_minutes(studies: int, steps: int) -> int:
    """Minutes that the demo takes on two cores, from what a study, a step and everything else took there in 2026."""
    return max(1, round((0.009 * studies + 0.28 * steps + 60) / 60))


def prepare(folders: Folders, *, studies: int, seed: int) -> None:
    """Synthesizes the study, builds its shards and trains the tokenizer."""
    workers = os.cpu_count() or 1
    with stage("synthetic study") as current:
        if not same_study(folders, {"studies": studies, "seed": seed}):
            synthesize(folders.study, studies=studies, seed=seed, workers=workers)
        current.result = f"{studies:,} studies in MIMIC-CXR-JPG's layout"
    with stage("shards, tokenizer") as current:
        reports = MimicCxr(folders.study, folders.study / "mimic-cxr-reports")
        options = {"short_side": STORED_SHORT_SIDE, "workers": workers, "progress": sys.stderr.isatty()}
        records = build(reports, folders.records, **options)
        build(MsCxr(folders.study, next(folders.study.glob("MS_CXR_*.csv"))), folders.phrases, **options)
        if folders.tokenizer.is_dir():
            tokenizer = ReportTokenizer.load(folders.tokenizer)
        else:
            tokenizer = train_tokenizer(text_sentences(folders.records, "train"), folders.tokenizer)
        current.result = f"{sum(records.counts.values()):,} image-report pairs, {tokenizer.vocab_size} words"


def same_study(folders: Folders, wanted: dict[str, int]) -> bool:
    """Whether the study is there already; notes in study.json what it is made with.

    Raises:
      UserError: it was made with another seed or another number of studies.
    """
    note = folders.workdir / "study.json"
    if folders.study.is_dir() and note.is_file():
        if (found := json.loads(note.read_text())) != wanted:
            raise UserError(f"{folders.workdir}: holds a study of {found}, not of {wanted}; give another --workdir")
        return True
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(wanted))
    return False


def evaluate(folders: Folders, config: Config, split: str) -> tuple[ZeroShotResult, GroundingResult, tuple[str, ...]]:
    """Evaluates the latest checkpoint on a held-out split and draws overlays; returns the run's caveats as well."""
    with stage("evaluation") as current:
        run = open_run(folders.workdir)
        zero_shot = evaluate_zero_shot(run, folders.records, split, prompts=load_prompts(config.zero_shot.prompts))
        grounding = evaluate_grounding(run, folders.phrases, split)
        # The study is synthetic: nobody's report is read in these.
        save_phrase_overlays(run, folders.phrases, split, folders.figures, count=OVERLAYS, show_text=True)
        current.result = f"{zero_shot.records:,} images, {grounding.records:,} phrases of held-out patients ({split})"
    return zero_shot, grounding, run.caveats


def summarise(
    zero_shot: ZeroShotResult, grounding: GroundingResult, *, seconds: float, settings: Config
) -> dict[str, Any]:
    """The numbers of summary.json; `<name>_interval` is [low, high] of the 95 % patient-bootstrap interval, null where one is undefined."""

    def finite(value: float) -> float | None:
        return value if math.isfinite(value) else None  # JSON has no NaN

    def with_intervals(values: dict[str, Interval]) -> dict[str, Any]:
        plain: dict[str, Any] = {name: finite(interval.value) for name, interval in values.items()}
        limits = {f"{name}_interval": [finite(found.low), finite(found.high)] for name, found in values.items()}
        return plain | limits

    return {
        "zero_shot": with_intervals({"pneumonia_auc": zero_shot.auc["Pneumonia"], "mean_auc": zero_shot.mean}),
        "grounding": with_intervals(
            {name: grounding.metrics[name] for name in ("cnr", "miou", "pointing_game", "cnr_shuffled_phrases")}
        ),
        "seconds": round(seconds, 1),
        "config_hash": config_hash(settings),
    }


def where_to_go(folders: Folders) -> str:
    """Where everything was written and what to run next."""
    run = folders.workdir
    return "\n".join(
        [
            f"run       {run}  (config.json, metrics.jsonl, tensorboard/, checkpoints/, summary.json)",
            f"figures   {folders.figures}  (curves.png and one overlay per phrase)",
            f"study     {folders.study}  (MIMIC-CXR-JPG's layout), shards in {run / 'data'}",
            f"next      msfl eval zero-shot {run} --data {folders.records} --split validate",
            "          msfl data build mimic-cxr --help   to do the same with real data",
        ]
    )
