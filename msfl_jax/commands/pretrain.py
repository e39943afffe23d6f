"""`msfl pretrain`: a training run with its evaluations in the loop."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from input_pipeline.errors import UserError
from input_pipeline.tokenizer import ReportTokenizer
from msfl_jax.config import Config
from msfl_jax.model import Model, SpecialTokens
from msfl_jax.parallel import distributed
from msfl_jax.tasks.grounding import evaluate_grounding
from msfl_jax.tasks.prompts import load_prompts
from msfl_jax.tasks.run import Run
from msfl_jax.tasks.zero_shot import evaluate_zero_shot
from msfl_jax.train.loop import RunResult, pretrain

REPLICATES_IN_LOOP = 200  # of the bootstrap; curves need no two thousand


def run_pretraining(config: Config, workdir: Path, *, init_from: Path | None = None, quiet: bool = False) -> RunResult:
    """Trains, or goes on training, in `workdir`.

    Args:
      config: of the run.
      workdir: the run directory.
      init_from: run directory whose parameters, and whose tokenizer where the configuration names none, the run starts from.
      quiet: say nothing but the line of progress.

    Raises:
      UserError: the configuration names no build or no tokenizer, or one that does not exist.
      MsflError: see `msfl_jax.train.loop.pretrain`.
    """
    config = with_tokenizer(config, init_from)
    if not config.data.directory:
        raise UserError("data.directory is empty; give --config.data.directory=DIR, made by `msfl data build`")
    evaluate = functools.partial(evaluate_in_loop, config, workdir) if config.train.evaluate_every else None
    result = pretrain(config, workdir, evaluate=evaluate, init_from=init_from)
    if distributed.is_lead() and not quiet:
        print(
            f"run   {workdir}  (step {result.step})\nnext  msfl eval zero-shot {workdir} --data {config.data.directory}"
        )
    return result


def with_tokenizer(config: Config, init_from: Path | None) -> Config:
    """The configuration with a tokenizer: its own, or that of the run it starts from."""
    if config.data.tokenizer:
        return config
    if init_from is None:
        raise UserError("data.tokenizer is empty; give --config.data.tokenizer=DIR, made by `msfl data tokenizer`")
    return dataclasses.replace(config, data=dataclasses.replace(config.data, tokenizer=str(init_from / "tokenizer")))


def evaluate_in_loop(config: Config, workdir: Path, params: Any, step: int) -> Mapping[str, float]:
    """Zero-shot and, where a build with boxes is named, grounding numbers of the parameters at one step, by the names of the metrics file."""
    tokenizer = ReportTokenizer.load(Path(config.data.tokenizer))
    model = Model.create(
        config, vocab_size=tokenizer.vocab_size, special=SpecialTokens(tokenizer.mask_id, tokenizer.special_ids)
    )
    run = Run(workdir, config, model, params, tokenizer, step)
    zero_shot = evaluate_zero_shot(
        run,
        Path(config.data.directory),
        config.zero_shot.split,
        prompts=load_prompts(config.zero_shot.prompts),
        records=config.zero_shot.records,
        replicates=REPLICATES_IN_LOOP,
    )
    values = {"zero_shot/mean_auc": zero_shot.mean.value}
    values |= {f"zero_shot/{name}_auc": interval.value for name, interval in zero_shot.auc.items()}
    if not config.grounding.directory:
        return values
    grounding = evaluate_grounding(
        run,
        Path(config.grounding.directory),
        config.grounding.split,
        records=config.grounding.records,
        replicates=REPLICATES_IN_LOOP,
    )
    return values | {f"grounding/{name}": interval.value for name, interval in grounding.metrics.items()}
