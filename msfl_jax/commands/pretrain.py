"""`msfl pretrain`: a training run with its evaluations in the loop."""

import dataclasses
import functools
from pathlib import Path

from input_pipeline.errors import UserError
from msfl_jax.commands.in_loop import evaluate_in_loop
from msfl_jax.config import Config
from msfl_jax.export.importing import imported_parameters
from msfl_jax.parallel import distributed
from msfl_jax.train.loop import RunResult, pretrain


def run_pretraining(config: Config, workdir: Path, *, init_from: Path | None = None, quiet: bool = False) -> RunResult:
    """Trains, or goes on training, in `workdir`.

    Args:
      config: of the run; `init_from` may name files of weights to start from.
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
    initial = functools.partial(imported_parameters, config.init_from, config)
    result = pretrain(config, workdir, evaluate=evaluate, init_from=init_from, initial=initial)
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
