"""The command `msfl plan`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from msfl_jax.cli_options import ConfigName
from msfl_jax.parallel.clusters import refuse_several


def plan(
    context: typer.Context,
    config: ConfigName,
    topology: Annotated[
        list[str], typer.Option(help="v5e:16x16, v5p:8x8x8, v6e:16x16, h200:8x8 (machines x GPUs) or cpu. Repeatable.")
    ],
    vocab_size: Annotated[
        int, typer.Option(min=32, help="Of the tokenizer, where the configuration names none.")
    ] = 30000,
    compilations: Annotated[
        int, typer.Option(min=1, max=4, help="For each topology at most; 1 looks for no largest batch.")
    ] = 4,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="For TPUs in half the time: memory is as good, predicted times are too long."),
    ] = False,
    cache: Annotated[Path | None, typer.Option(help="Folder of compiled steps; default in ~/.cache.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Numbers as JSON.")] = False,
) -> None:
    """Say what a run needs and how fast it will be on machines not rented yet: its step is compiled for them here.

    Takes --config.SECTION.KEY=VALUE as well.
    """
    refuse_several(os.environ, "msfl plan")
    from msfl_jax.commands.plan import plan_report
    from msfl_jax.config_files import load_config

    settings = load_config(config, context.args)
    options = {"vocab_size": vocab_size, "folder": cache, "tries": compilations, "quick": quick}
    print(plan_report(settings, topology, as_json=as_json, **options))
