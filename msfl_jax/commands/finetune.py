"""`msfl finetune ...`: fine-tunes a pretrained encoder on labels, once or for all label fractions, seeds and initialisations."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

from input_pipeline.errors import UserError
from input_pipeline.labelled_batches import describe_fractions
from msfl_jax.commands.imported import with_imported_encoder
from msfl_jax.commands.stages import stage
from msfl_jax.config_files import load_config
from msfl_jax.finetune_config import FinetuneConfig, finetune_config
from msfl_jax.parallel import distributed
from msfl_jax.results.label_efficiency import (
    advantages,
    classification_table,
    label_efficiency,
    label_efficiency_table,
    save_label_efficiency,
)
from msfl_jax.results.own_results import Result, find_results
from msfl_jax.results.paper_tables import findings_text
from msfl_jax.results.pooling import pooled_interval
from msfl_jax.results.tables import number, seeds_text, with_caveats
from msfl_jax.tasks.classification import finetune_classification, refuse_other_encoder, variant
from msfl_jax.tasks.leaks import finetuning_caveats
from msfl_jax.tasks.outcome import identify_split, load_outcomes
from msfl_jax.tasks.run import Run, open_run
from msfl_jax.train.adaptation import MAY_CHANGE
from msfl_jax.train.loop import refuse_other_config

INITS = {
    "pretrained": "",
    "random": "scratch",
    "imported": "imported",
}  # with the word that a configuration's argument has for it


def run_classification(
    config: FinetuneConfig, workdir: Path, run: Path, directory: Path, *, allow_leak: bool = False
) -> str:
    """Fine-tunes, or goes on fine-tuning, in `workdir`, evaluates the best checkpoint on the test split, and returns the table.

    Args:
      config: of the fine-tuning.
      workdir: its run directory.
      run: run directory of the pretrained model.
      directory: build with labels.
      allow_leak: see `leak_caveats`.

    Returns:
      The table; "" in all processes but the lead.

    Raises:
      UserError: the run, the build, a split or a finding does not exist.
      DataError: the test split shares images or patients with what the encoder was pretrained on.
      MsflError: see `finetune_classification`.
    """
    distributed.start()
    pretrained = with_imported_encoder(open_run(run), config.encoder)
    config = with_data(config, directory)
    caveats = finetuning_caveats(config, pretrained, allow_leak=allow_leak)
    outcome = finetune_classification(config, workdir, pretrained, caveats=caveats)
    if not distributed.is_lead():
        return ""
    table = with_caveats(classification_table(outcome), outcome.caveats)
    return f"{table}\n\nrun          {workdir}\npredictions  {outcome.predictions(workdir)}"


def run_sweep(
    name: str,
    overrides: Sequence[str],
    workdir: Path,
    run: Path,
    directory: Path,
    *,
    fractions: Sequence[int],
    seeds: int,
    inits: Sequence[str] = ("pretrained", "random"),
    allow_leak: bool = False,
) -> str:
    """Label efficiency: every fraction, seed and initialisation in a folder of its own below `workdir`; what is finished is kept.

    The records of a percentage and a seed are the same for every initialisation. Whether those of a seed are nested, which published lists need not
    be and drawn ones (`data.subsets`) are, stands beneath the table, and above it what each initialisation gains over random weights at each
    percentage.

    Args:
      name: of the configuration, whose argument may hold options but no percentage.
      overrides: `--config.a.b=value` each.
      workdir: holds one run directory per cell and the plot.
      run: run directory of the pretrained model.
      directory: build with labels.
      fractions: percentages of the labels.
      seeds: how many, from 0.
      inits: some of "pretrained", "random" and "imported", which starts from `encoder.weights`.
      allow_leak: see `leak_caveats`.

    Returns:
      The table: mean, deviation over seeds and 95 % interval over patients; "" in all processes but the lead.

    Raises:
      UserError: an initialisation or a configuration does not exist.
      MsflError: see `run_classification`.
    """
    cells = [
        with_data(sweep_config(name, overrides, fraction, seed, init), directory)
        for fraction in fractions
        for seed in range(seeds)
        for init in inits
    ]
    distributed.start()
    pretrained, first = open_run(run), {cell.encoder.init: cell for cell in reversed(cells)}
    starts = {init: with_imported_encoder(pretrained, first[init].encoder) for init in inits}
    caveats = {init: finetuning_caveats(first[init], starts[init], allow_leak=allow_leak) for init in inits}
    for cell in cells:
        _run_cell(cell, workdir, starts[cell.encoder.init], caveats[cell.encoder.init])
    if not distributed.is_lead():
        return ""
    plot = workdir / "label_efficiency.png"
    table = _sweep_table(_sweep_results(cells, workdir), seeds, plot)
    images = describe_fractions(directory, fractions, range(seeds), subsets=cells[0].data.subsets)
    said = {"images": images, "runs": workdir, "plot": plot}
    return "\n".join([f"{table}\n", *(f"{name:<8}{words}" for name, words in said.items() if words)])


def sweep_config(name: str, overrides: Sequence[str], fraction: int, seed: int, init: str) -> FinetuneConfig:
    """The configuration of one cell of a sweep.

    Raises:
      UserError: there is no such configuration or initialisation, or its argument has a percentage already.
    """
    if init not in INITS:
        raise UserError(f"--inits: no initialisation '{init}'; expected some of {', '.join(INITS)}")
    base, _, argument = name.partition(":")
    words = [str(fraction), *(word for word in (*argument.split(","), INITS[init]) if word)]
    return load_config(f"{base}:{','.join(words)}", [*overrides, f"--config.seed={seed}"], make=finetune_config)


def parse_fractions(text: str) -> tuple[int, ...]:
    """Percentages of the labels from "1,10,100".

    Raises:
      UserError: one is no whole number from 1 to 100.
    """
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if not word.isdecimal() or not 1 <= int(word) <= 100:
            raise UserError(f"--fractions: found '{word}'; expected whole percentages from 1 to 100, as in 1,10,100")
    return tuple(map(int, words))


def with_data(config: FinetuneConfig, directory: Path) -> FinetuneConfig:
    """The configuration with the folder of its build."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, directory=str(directory)))


def _run_cell(config: FinetuneConfig, workdir: Path, run: Run, caveats: tuple[str, ...]) -> None:
    """One run of a sweep, unless it is finished; raises a CheckpointError where that was with another configuration or encoder."""
    folder, images = workdir / variant(config), identify_split(config.data.directory, config.data.test)
    if any((outcome.dataset, outcome.split_hash) == images for _, outcome in load_outcomes([folder])):
        refuse_other_config(config, folder, may_change=MAY_CHANGE)
        refuse_other_encoder(config, folder, run)
        return
    train = functools.partial(finetune_classification, config, folder, run, caveats=caveats, progress=False)
    if not distributed.is_lead():
        train()
        return
    with stage(variant(config)) as current:
        outcome = train()
        current.result = f"mean AUC {number(outcome.metrics['mean_auc'].value, 3)}, step {outcome.step}"


def _sweep_results(cells: Sequence[FinetuneConfig], workdir: Path) -> list[Result]:
    """Those of the cells' own test split, beside their predictions; others in the same folders are of `msfl eval classification`."""
    images = identify_split(cells[0].data.directory, cells[0].data.test)
    found = find_results([workdir / variant(cell) for cell in cells])
    return [one for one in found if (one.outcome.dataset, one.outcome.split_hash) == images]


def _sweep_table(results: Sequence[Result], seeds: int, plot: Path) -> str:
    """Means with their intervals, gains over random weights and caveats; the plot of the means is saved."""
    outcomes, cells = [one.outcome for one in results], label_efficiency(results, pooled_interval)
    first = outcomes[0]
    save_label_efficiency(cells, plot, title=f"{first.dataset}, {first.split}: {first.records:,} images")
    title = f"mean AUC over {seeds_text(seeds)} with its 95 % interval over patients, {first.dataset}, {first.split}"
    title = "; ".join(filter(None, (title, findings_text(outcomes))))
    parts = [title, label_efficiency_table(cells), "\n".join(map(str, advantages(results)))]
    caveats = dict.fromkeys(caveat for outcome in outcomes for caveat in outcome.caveats)
    return with_caveats("\n\n".join(filter(None, parts)), list(caveats))
