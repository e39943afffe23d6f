"""Evaluations during pretraining: which of them run is the configuration's, what they return goes to metrics.jsonl and TensorBoard."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from input_pipeline.errors import MsflError
from input_pipeline.manifest import read_manifest
from input_pipeline.tokenizer import ReportTokenizer
from msfl_jax.config import Config
from msfl_jax.metrics import Interval
from msfl_jax.model import Model, SpecialTokens
from msfl_jax.parallel import distributed
from msfl_jax.tasks.grounding import evaluate_grounding
from msfl_jax.tasks.linear_probe import evaluate_probe
from msfl_jax.tasks.prompts import choose_set, load_prompts
from msfl_jax.tasks.retrieval import evaluate_retrieval
from msfl_jax.tasks.run import Run
from msfl_jax.tasks.zero_shot import evaluate_zero_shot

REPLICATES = 0  # a curve shows values; intervals are for what is reported

log = logging.getLogger(__name__)


def evaluate_in_loop(config: Config, workdir: Path, params: Any, step: int) -> Mapping[str, float]:
    """Numbers of the parameters at one step, by the names of the metrics file, of every evaluation that the configuration turns on.

    An evaluation that fails is named in one line and the run goes on without its numbers; where several processes take part, only failures that
    all of them meet, such as a missing build, are passed over.
    """
    tokenizer = ReportTokenizer.load(Path(config.data.tokenizer))
    model = Model.create(
        config, vocab_size=tokenizer.vocab_size, special=SpecialTokens(tokenizer.mask_id, tokenizer.special_ids)
    )
    run = Run(workdir, config, model, params, tokenizer, step)
    values: dict[str, float] = {}
    for name, evaluate in scheduled(config).items():
        try:
            values |= {f"{name}/{metric}": interval.value for metric, interval in evaluate(run).items()}
        except Exception as error:
            if jax.process_count() > 1 and not isinstance(error, MsflError):
                raise
            what = str(error) if isinstance(error, MsflError) else type(error).__name__
            if distributed.is_lead():  # the others have met it as well
                log.warning("evaluation '%s' failed at step %d: %s; training goes on without it", name, step, what)
    return values


def scheduled(config: Config) -> dict[str, Callable[[Run], Mapping[str, Interval]]]:
    """The evaluations that a configuration turns on, by name."""
    known = {
        "zero_shot": (config.zero_shot.in_loop, _zero_shot),
        "grounding": (bool(config.grounding.directory), _grounding),
        "retrieval": (config.retrieval.in_loop, _retrieval),
        "probe": (config.probe.in_loop, _probe),
    }
    return {name: evaluate for name, (wanted, evaluate) in known.items() if wanted}


def _zero_shot(run: Run) -> Mapping[str, Interval]:
    """With the prompts of the data set where the run's own have none of its labels, as in `msfl eval zero-shot`."""
    options = run.config.zero_shot
    directory = Path(options.directory or run.config.data.directory)
    manifest = read_manifest(directory)
    result = evaluate_zero_shot(
        run,
        directory,
        options.split,
        prompts=load_prompts(choose_set(options.prompts, manifest.name, manifest.label_names)),
        records=options.records,
        replicates=REPLICATES,
    )
    return {"mean_auc": result.mean} | {f"{name}_auc": interval for name, interval in result.auc.items()}


def _grounding(run: Run) -> Mapping[str, Interval]:
    options = run.config.grounding
    directory = Path(options.directory)
    return evaluate_grounding(run, directory, options.split, records=options.records, replicates=REPLICATES).metrics


def _retrieval(run: Run) -> Mapping[str, Interval]:
    """Without the controls: chance is a constant, and shuffled pairs tell nothing new at every step."""
    options = run.config.retrieval
    directory = Path(options.directory or run.config.data.directory)
    result = evaluate_retrieval(run, directory, options.split, records=options.records, replicates=REPLICATES)
    return {name: found for name, found in result.metrics.items() if not name.endswith(("_shuffled", "_chance"))}


def _probe(run: Run) -> Mapping[str, Interval]:
    options = run.config.probe
    return evaluate_probe(
        run,
        Path(options.directory or run.config.data.directory),
        train_split=options.train_split,
        split=options.split,
        records=options.records,
        l2=options.l2,
        replicates=REPLICATES,
    )
