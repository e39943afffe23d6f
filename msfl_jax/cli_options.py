"""Options that several commands of `msfl` take, and how they print."""

from pathlib import Path
from typing import Annotated

import typer

OVERRIDES = {"allow_extra_args": True, "ignore_unknown_options": True}

Seed = Annotated[int, typer.Option(help="Everything random follows from it.")]
ConfigName = Annotated[str, typer.Option("--config", help="Path or bare name of a configuration, with :argument.")]
RunDirectory = Annotated[Path, typer.Argument(help="Run directory of `msfl pretrain`.")]
FinetunedDirectory = Annotated[Path, typer.Argument(help="Run directory of `msfl finetune`.")]
BuildDirectory = Annotated[Path, typer.Option("--data", help="Folder made by `msfl data build`.")]
AllowLeak = Annotated[
    bool, typer.Option("--allow-leak", help="Go on where the split shares images or patients with the training data.")
]
Split = Annotated[str, typer.Option(help="Split to evaluate.")]
Protocol = Annotated[str, typer.Option(help="biovil, maco or afloc; default the run's own.")]
Sigma = Annotated[float | None, typer.Option(min=0.0, help="Smoothing in patches; default the run's own.")]


def say(text: str) -> None:
    """Prints what the lead process has to say; the others have nothing."""
    if text:
        print(text)
