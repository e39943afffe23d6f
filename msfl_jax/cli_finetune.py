"""The commands `msfl finetune ...`: parse options, call one function, print what it returns."""

from pathlib import Path
from typing import Annotated

import typer

from msfl_jax.cli_options import OVERRIDES, AllowLeak, BuildDirectory, ConfigName, say

finetune = typer.Typer(no_args_is_help=True, help="Fine-tune a pretrained encoder on a build with labels or masks.")

PretrainedRun = Annotated[Path, typer.Option("--run", help="Run directory of `msfl pretrain`.")]


@finetune.command("classification", context_settings=OVERRIDES)
def finetune_classification(
    context: typer.Context,
    config: ConfigName,
    run: PretrainedRun,
    directory: BuildDirectory,
    workdir: Annotated[Path, typer.Option(help="Folder of the fine-tuned run; running again resumes.")],
    allow_leak: AllowLeak = False,
) -> None:
    """Fine-tune on a percentage of the labels, as in --config finetune_nih:1, and evaluate the best checkpoint on the test split.

    Takes --config.SECTION.KEY=VALUE as well.
    """
    from msfl_jax.commands.finetune import run_classification
    from msfl_jax.config_files import load_config
    from msfl_jax.finetune_config import finetune_config

    settings = load_config(config, context.args, make=finetune_config)
    say(run_classification(settings, workdir, run, directory, allow_leak=allow_leak))


@finetune.command("sweep", context_settings=OVERRIDES)
def finetune_sweep(
    context: typer.Context,
    config: ConfigName,
    run: PretrainedRun,
    directory: BuildDirectory,
    workdir: Annotated[Path, typer.Option(help="Holds one run per cell; running again goes on with what is left.")],
    fractions: Annotated[str, typer.Option(help="Percentages of the labels.")] = "1,10,100",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds per cell.")] = 3,
    inits: Annotated[
        str, typer.Option(help="Initialisations; imported takes --config.encoder.weights.")
    ] = "pretrained,random",
    allow_leak: AllowLeak = False,
) -> None:
    """Label efficiency: mean AUC by percentage of the labels, over seeds, pretrained beside random; a table and a plot.

    Takes --config.SECTION.KEY=VALUE as well.
    """
    from msfl_jax.commands.finetune import parse_fractions, run_sweep

    options = {"fractions": parse_fractions(fractions), "seeds": seeds, "inits": inits.split(",")}
    say(run_sweep(config, context.args, workdir, run, directory, **options, allow_leak=allow_leak))


@finetune.command("segmentation", context_settings=OVERRIDES)
def finetune_segmentation(
    context: typer.Context,
    config: ConfigName,
    run: PretrainedRun,
    directory: BuildDirectory,
    workdir: Annotated[Path, typer.Option(help="Folder of the fine-tuned run; running again resumes.")],
    overlays: Annotated[int, typer.Option(min=0, help="Test images whose masks are drawn.")] = 8,
    allow_leak: AllowLeak = False,
) -> None:
    """Segmentation: the four kinds of Dice with 95 % patient-bootstrap intervals, and overlays.

    Takes --config.SECTION.KEY=VALUE as well.
    """
    from msfl_jax.commands.segment import segmentation_report

    options = {"config": config, "overrides": context.args, "allow_leak": allow_leak, "overlays": overlays}
    say(segmentation_report(run, directory, workdir, **options))
