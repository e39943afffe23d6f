"""`msfl ablate`: the paper's table 5, one run for each combination of objectives and seed, all on the same data."""

import dataclasses
import datetime
import json
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from input_pipeline.errors import MsflError, RetryError, UserError
from input_pipeline.loader import text_sentences
from input_pipeline.tokenizer import train_tokenizer
from msfl_jax.commands.ablation_caveats import confounders, selection_caveats
from msfl_jax.commands.ablation_stages import Builds, all_finished, kept_programs, results_of, run_stages
from msfl_jax.commands.demo import Folders, estimated_minutes, prepare
from msfl_jax.commands.table import write_whole
from msfl_jax.config import Config
from msfl_jax.config_files import load_config
from msfl_jax.finetune_config import finetune_config
from msfl_jax.results.ablation import (
    Combination,
    Gain,
    as_json,
    combinations_of,
    gains_of_local,
    measure_combinations,
    plus,
    remembering_pool,
)
from msfl_jax.results.ablation_figure import save_ablation
from msfl_jax.results.formats import FORMATS, write_table
from msfl_jax.results.own_results import ALL_COMBINATIONS, OBJECTIVES
from msfl_jax.results.paper_tables import PaperTable, paper_table
from msfl_jax.results.published import load_published

SUFFIXES = {"text": "txt", "markdown": "md", "latex": "tex", "csv": "csv"}
TABLE = 5


@dataclasses.dataclass(frozen=True)
class Planned:
    """One run: its name, where it lies and what it is."""

    objectives: str
    seed: int
    workdir: Path
    config: Config

    def __str__(self) -> str:
        return f"{plus(self.objectives)}, seed {self.seed}"


def run_ablation(
    workdir: Path,
    *,
    config: str,
    seeds: int,
    objectives: str = "",
    overrides: Sequence[str] = (),
    studies: int = 6600,
    study_seed: int = 0,
    data: Path | None = None,
    phrases: Path | None = None,
    split: str = "test",
    finetune: str = "",
    labels: Path | None = None,
) -> int:
    """Trains and evaluates every run that is not finished, then prints table 5 and writes it with figure and numbers into `workdir`.

    All runs of a seed see the same batches in the same order and begin with the same weights wherever they have the same; seeds differ in both.
    What else differs between the combinations, as the regions of the demo, stands as caveats beneath the table.

    Args:
      workdir: of the ablation; running again goes on.
      config: as for `--config`; words of its argument that are no objectives stay.
      seeds: runs of each combination, with the seeds 0, 1, ...
      objectives: combinations separated by semicolons, as "global;global,local"; "" takes all eight.
      overrides: `--config.a.b=value` each, for all runs.
      studies, study_seed: of the synthetic study, which is made where `data` is None.
      data, phrases: builds to train on and, for it, with boxes to ground.
      split: that is held out, in every build that is measured on.
      finetune: configuration of fine-tuning with its percentage, as "finetune_rsna:1"; "" is the demo's with 1 % for the synthetic study and none
        for `data`, "none" leaves it out. Table 5 has a column for 1 %.
      labels: build to classify, zero-shot and fine-tuned; None takes the build that is trained on. The paper's rows stand in the table where this one
        is RSNA Pneumonia, and `phrases` MS-CXR.

    Returns:
      Exit code: 0, or 1 where a run failed.

    Raises:
      UserError: the configuration, a combination or a build is wrong.
      RetryError: the ablation was asked to stop.
    """
    started = time.monotonic()
    if phrases is not None and data is None:
        raise UserError("--phrases needs --data; the synthetic study has its own")
    combinations = choose_combinations(objectives)
    list(_plans(workdir, config, combinations, seeds, overrides))  # refuses a wrong configuration before any work
    chosen = finetune or ("finetune_demo:1" if data is None else "none")
    if chosen != "none":
        load_config(chosen, make=finetune_config)
    builds, fixed = _prepare(workdir, config, overrides, studies, study_seed, data, phrases, split)
    builds = dataclasses.replace(builds, labels=labels, finetune="" if chosen == "none" else chosen)
    plans = list(_plans(workdir, config, combinations, seeds, [*overrides, *fixed]))
    guess = estimated_minutes(0, plans[0].config.train.steps) * 60 if data is None else 0.0
    with kept_programs(workdir / "compiled"):
        failed = _run_all(plans, builds, guess)
    given = {"config": config, "overrides": list(overrides), "split": split, "seeds": seeds}
    _conclude(workdir, builds, plans, failed, given, started)
    return 1 if failed else 0


def choose_combinations(objectives: str = "") -> list[str]:
    """The combinations asked for, in the order of table 5; all eight with global alignment for "".

    Raises:
      UserError: one has a word that is no objective, or lacks "global".
    """
    if not objectives.strip():
        return list(ALL_COMBINATIONS)
    found = []
    for part in filter(None, (part.strip() for part in objectives.split(";"))):
        words = [word.strip() for word in part.split(",")]
        if "global" not in words or not set(words) <= set(OBJECTIVES):
            raise UserError(
                f"--objectives: '{part}' is no combination; expected 'global' and some of {', '.join(OBJECTIVES[1:])}"
            )
        found.append(",".join(name for name in OBJECTIVES if name in words))
    return combinations_of(found)


def config_of(config: str, objectives: str) -> str:
    """A configuration with its objectives replaced: `demo:global,short` becomes `demo:global,local,short`."""
    base, _, argument = config.partition(":")
    kept = [word for word in argument.split(",") if word and word not in OBJECTIVES]
    return f"{base}:{','.join([objectives, *kept])}"


def _plans(
    workdir: Path, config: str, combinations: Sequence[str], seeds: int, overrides: Sequence[str]
) -> Iterator[Planned]:
    """Seed by seed, so that a table without gaps is there as early as can be."""
    for seed in range(seeds):
        for objectives in combinations:
            settings = load_config(config_of(config, objectives), [*overrides, f"--config.seed={seed}"])
            name = f"{objectives.replace(',', '-')}-seed{seed}"
            yield Planned(objectives, seed, workdir / "runs" / name, settings)


def _prepare(
    workdir: Path,
    config: str,
    overrides: Sequence[str],
    studies: int,
    study_seed: int,
    data: Path | None,
    phrases: Path | None,
    split: str,
) -> tuple[Builds, list[str]]:
    """The builds, and the overrides that name them: the same study and tokenizer for all runs."""
    folders = Folders(workdir)
    if data is None:
        prepare(folders, studies=studies, seed=study_seed)
        data, phrases = folders.records, folders.phrases
    tokenizer = load_config(config, overrides).data.tokenizer
    if not tokenizer:
        tokenizer = str(folders.tokenizer)
        if not folders.tokenizer.is_dir():
            train_tokenizer(text_sentences(data, "train"), folders.tokenizer)
    return Builds(data, phrases, split), [f"--config.data.directory={data}", f"--config.data.tokenizer={tokenizer}"]


def _run_all(plans: Sequence[Planned], builds: Builds, guess: float) -> dict[str, str]:
    """Runs what is not finished; returns what went wrong by run. `guess` is the seconds of a run before any has been timed; 0 is unknown."""
    failed: dict[str, str] = {}
    took: list[float] = []
    for index, plan in enumerate(plans):
        name = f"{index + 1}/{len(plans)}  {plan}"
        if all_finished(plan.config, plan.workdir, builds):
            took.append(run_stages(plan.config, plan.workdir, builds))
            print(f"{name}: finished before", flush=True)
            continue
        each = sum(took) / len(took) if took else guess
        left = datetime.timedelta(seconds=round(each * (len(plans) - index)))
        print(f"\n{name}" + (f"   about {left} left" if each else ""), flush=True)
        try:
            took.append(run_stages(plan.config, plan.workdir, builds))
        except RetryError:
            raise
        except Exception as error:  # one run out of many: the others are worth going on for
            known = isinstance(error, MsflError)
            failed[str(plan)] = str(error) if known else f"{type(error).__name__}: {' '.join(str(error).split())}"
            print(f"failed  {plan}: {failed[str(plan)]}", file=sys.stderr, flush=True)
            if not known:
                traceback.print_exc()
    return failed


def _report(
    workdir: Path, builds: Builds, plans: Sequence[Planned], failed: Mapping[str, str]
) -> tuple[PaperTable, list[Combination], list[Gain]]:
    """Table 5, its numbers and the gains of local alignment, of the runs that did not fail, written into `workdir` as they are computed."""
    plans = [plan for plan in plans if str(plan) not in failed]
    said = [*confounders([(plan.objectives, plan.config) for plan in plans], builds), *selection_caveats(builds)]
    published, pool = load_published()[TABLE], remembering_pool()
    results = [one for plan in plans for one in results_of(plan.config, plan.workdir, builds)]
    names = {one.outcome.dataset for one in results}
    foreign = not names <= {column.dataset for column in published.columns}
    table = paper_table(published, results, dataset=",".join(sorted(names)) if foreign else "", pool=pool)
    table = dataclasses.replace(table, caveats=(*table.caveats, *said))
    rows = measure_combinations(published, results, pool)
    for form in FORMATS:
        write_whole(workdir / f"table5.{SUFFIXES[form]}", write_table(table, form))
    if rows:
        save_ablation(rows, workdir / "ablation.png")
    return table, rows, gains_of_local(published, results)


def _conclude(
    workdir: Path,
    builds: Builds,
    plans: Sequence[Planned],
    failed: dict[str, str],
    given: Mapping[str, Any],
    started: float,
) -> None:
    """Writes table, figure and ablation.json, which begins with what was `given`, and prints the table."""
    table, rows, gains = _report(workdir, builds, plans, failed)
    found = {"rows": as_json(rows), "gains": as_json(gains), "caveats": list(table.caveats), "failed": failed}
    found["seconds_of_this_session"] = round(time.monotonic() - started, 1)
    write_whole(workdir / "ablation.json", json.dumps({**given, **found}, indent=2) + "\n")
    _say(workdir, table, gains, failed)


def _say(workdir: Path, table: PaperTable, gains: Sequence[Gain], failed: dict[str, Any]) -> None:
    print(f"\n{write_table(table, 'text')}")
    for gain in gains:
        print(gain)
    for name, reason in failed.items():
        print(f"failed    {name}: {reason}")
    print(f"\nablation  {workdir}  (ablation.json, ablation.png, table5.txt, .md, .tex and .csv, runs/)")
