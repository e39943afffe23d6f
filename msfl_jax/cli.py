"""The command `msfl`: parses options, calls one function, prints what it returns."""

import contextlib
import io
import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from input_pipeline.errors import MsflError, RetryError
from msfl_jax.cli_data import data
from msfl_jax.cli_finetune import finetune
from msfl_jax.cli_options import (
    OVERRIDES,
    AllowLeak,
    BuildDirectory,
    ConfigName,
    FinetunedDirectory,
    Protocol,
    RunDirectory,
    Seed,
    Sigma,
    Split,
    say,
)
from msfl_jax.cli_plan import plan
from msfl_jax.parallel.clusters import lead_before_start, refuse_several
from msfl_jax.parallel.xla_flags import PRESETS, use_preset

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Chest radiographs and reports, in JAX.")
evaluate = typer.Typer(no_args_is_help=True, help="Evaluate a run directory.")
app.add_typer(data, name="data")
app.add_typer(evaluate, name="eval")
app.add_typer(finetune, name="finetune")
app.command(context_settings=OVERRIDES)(plan)


def main() -> None:
    """Entry point: errors meant for users become one line on stderr and their exit code."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports on itself there
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names of files that are not UTF-8, as they lie on disk
    try:
        status = app(standalone_mode=False)
    except MsflError as error:
        # All processes of a run are asked to stop together; what else goes wrong may have gone wrong in one of them.
        if lead_before_start(os.environ) or not isinstance(error, RetryError):
            print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except typer.Abort:
        sys.exit(130)
    except Exception as error:
        # Typer's own errors of usage: from click or from its copy of it, by version; other exceptions are bugs and keep their traceback.
        describe = getattr(error, "format_message", None)
        if describe is None:
            raise
        if message := " ".join(describe().split()):  # empty where the help was printed
            print(f"error: {message}; see --help", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 2))
    sys.exit(status or 0)


@app.callback()
def prepare(
    xla_preset: Annotated[
        str,
        typer.Option(
            envvar="MSFL_XLA_PRESET", help=f"Compiler flags to add, before the command: {', '.join(PRESETS)}."
        ),
    ] = "none",
) -> None:
    """Chest radiographs and reports, in JAX."""
    for note in use_preset(xla_preset, os.environ):
        if lead_before_start(os.environ):
            print(f"warning: {note}", file=sys.stderr)


@app.command(context_settings=OVERRIDES)
def demo(
    context: typer.Context,
    workdir: Annotated[Path | None, typer.Option(help="Folder of the run; default runs/demo-DATE-seedSEED.")] = None,
    seed: Seed = 0,
    config: ConfigName = "demo",
    studies: Annotated[int, typer.Option(min=100, help="Studies of the synthetic data set.")] = 6600,
    split: Annotated[
        str, typer.Option(help="Held-out split that is evaluated: test, or validate while tuning.")
    ] = "test",
) -> None:
    """Make a synthetic study, pretrain on it and evaluate on held-out patients, in minutes.

    Takes --config.SECTION.KEY=VALUE as well.
    """
    refuse_several(os.environ, "msfl demo")
    from msfl_jax.commands.demo import run_demo

    run_demo(workdir, seed=seed, config=config, overrides=context.args, studies=studies, split=split)


@app.command(context_settings=OVERRIDES)
def pretrain(
    context: typer.Context,
    config: ConfigName,
    workdir: Annotated[Path, typer.Option(help="Folder of the run; running again resumes.")],
    init_from: Annotated[
        Path | None, typer.Option(help="Run directory whose parameters and tokenizer to start from.")
    ] = None,
) -> None:
    """Pretrain on a build; running the same command again resumes.

    Takes --config.SECTION.KEY=VALUE as well.
    """
    from msfl_jax.commands.pretrain import run_pretraining
    from msfl_jax.config_files import load_config

    run_pretraining(load_config(config, context.args), workdir, init_from=init_from)


@app.command("import", context_settings=OVERRIDES)
def import_weights(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(help="Weights: .safetensors, .pth, or a folder with config.json.")],
    config: Annotated[str, typer.Option(help="Configuration whose model they are for.")] = "",
    role: Annotated[str, typer.Option("--as", help="vision or report: only what it would be read for.")] = "",
    skip: Annotated[
        str, typer.Option(help="Names that may differ, comma-separated; init_from.skip is theirs too.")
    ] = "",
) -> None:
    """Say what a file of weights is and where it and a model differ, without starting anything; exit code 4 where they do.

    Takes --config.SECTION.KEY=VALUE as well.
    """
    from msfl_jax.commands.imported import import_report
    from msfl_jax.config_files import load_config

    settings = load_config(config, context.args) if config else None
    print(import_report(path, settings, role=role, skip=skip))


@evaluate.command("zero-shot")
def evaluate_zero_shot(
    run: RunDirectory,
    directory: BuildDirectory,
    split: Split = "test",
    prompts: Annotated[str, typer.Option(help="Prompt set or JSON file; default the run's own.")] = "",
    rule: Annotated[str, typer.Option(help="cosine, maco, chexzero or gloria; default the run's own.")] = "",
    allow_leak: AllowLeak = False,
) -> None:
    """Zero-shot classification: AUC per finding with 95 % patient-bootstrap intervals."""
    from msfl_jax.commands.zero_shot import zero_shot_report

    say(zero_shot_report(run, directory, split=split, prompts=prompts, rule=rule, allow_leak=allow_leak))


@evaluate.command("retrieval")
def evaluate_retrieval(
    run: RunDirectory, directory: BuildDirectory, split: Split = "test", allow_leak: AllowLeak = False
) -> None:
    """Retrieval: the report of an image among all reports of a split, and back: R@1, 5, 10 and median rank."""
    from msfl_jax.commands.retrieval import retrieval_report

    say(retrieval_report(run, directory, split=split, allow_leak=allow_leak))


@evaluate.command("classification")
def evaluate_classification(
    run: FinetunedDirectory, directory: BuildDirectory, split: Split = "test", allow_leak: AllowLeak = False
) -> None:
    """A fine-tuned classifier on any build with some of its findings: AUC per finding with 95 % patient-bootstrap intervals."""
    refuse_several(os.environ, "msfl eval classification")
    from msfl_jax.commands.finetuned import classification_report

    print(classification_report(run, directory, split=split, allow_leak=allow_leak))


@evaluate.command("segmentation")
def evaluate_segmentation(
    run: FinetunedDirectory,
    directory: BuildDirectory,
    split: Split = "test",
    overlays: Annotated[int, typer.Option(min=0, help="Images whose masks are drawn.")] = 8,
    allow_leak: AllowLeak = False,
) -> None:
    """A fine-tuned segmenter on any build with masks: the four kinds of Dice with 95 % patient-bootstrap intervals."""
    refuse_several(os.environ, "msfl eval segmentation")
    from msfl_jax.commands.finetuned import segmentation_report

    print(segmentation_report(run, directory, split=split, overlays=overlays, allow_leak=allow_leak))


@evaluate.command("again")
def evaluate_again(run: RunDirectory) -> None:
    """Compute every saved number again from the saved predictions, without a model; exit code 3 where one differs."""
    from msfl_jax.commands.again import again_report

    print(again_report(run))


@evaluate.command("grounding")
def evaluate_grounding(
    run: RunDirectory,
    directory: BuildDirectory,
    split: Split = "test",
    protocol: Protocol = "",
    scaling: Annotated[
        str, typer.Option(help="Heat before the thresholds of the IoU: minmax (-1..1 per map), or raw cosines.")
    ] = "minmax",
    geometry: Annotated[
        str,
        typer.Option(help="View and pixels: own (the run's, source pixels), or published (as the protocol's code)."),
    ] = "own",
    sigma: Sigma = None,
    shifts: Annotated[int, typer.Option(min=0, help="Looks per axis; 0 is the run's own.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of shuffled phrases and bootstrap.")] = 0,
    overlays: Annotated[
        int | None,
        typer.Option(min=0, help="Images to draw with heat-maps; default 8 of a synthetic study, else none."),
    ] = None,
    show_text: Annotated[
        bool, typer.Option("--show-text", help="Write the sentences of patients' reports into the overlays.")
    ] = False,
    allow_leak: AllowLeak = False,
) -> None:
    """Phrase grounding: CNR, IoU and pointing game with intervals, and overlays per sentence."""
    from msfl_jax.commands.evaluate import grounding_report

    options = {"protocol": protocol, "scaling": scaling, "geometry": geometry, "sigma": sigma, "shifts": shifts}
    options |= {"overlays": overlays, "show_text": show_text}
    say(grounding_report(run, directory, split=split, seed=seed, allow_leak=allow_leak, **options))


@evaluate.command("compare")
def evaluate_compare(
    run_a: Annotated[Path, typer.Argument(help="Run directory with results of `msfl eval`.")],
    run_b: Annotated[Path, typer.Argument(help="Another, evaluated on the same split.")],
    task: Annotated[str, typer.Option(help="grounding, zero_shot, classification, segmentation or retrieval.")],
    dataset: Annotated[str, typer.Option("--data-name", help="Name of the build, where several were evaluated.")] = "",
    split: Annotated[str, typer.Option(help="Split, where several were evaluated.")] = "",
    variant: Annotated[str, typer.Option(help="Rule or protocol, where several were evaluated.")] = "",
    variant_b: Annotated[str, typer.Option(help="That of the second run, where it is another.")] = "",
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    everything: Annotated[bool, typer.Option("--all", help="Also controls, single thresholds and categories.")] = False,
) -> None:
    """Difference between two runs in every metric, with paired 95 % patient-bootstrap intervals, from saved predictions."""
    from msfl_jax.commands.compare import comparison_report

    print(
        comparison_report(
            run_a,
            run_b,
            task=task.replace("-", "_"),
            dataset=dataset,
            split=split,
            variant=variant,
            variant_b=variant_b,
            seed=seed,
            everything=everything,
        )
    )


@app.command()
def ground(
    run: Annotated[Path, typer.Option("--run", help="Run directory of `msfl pretrain`.")],
    image: Annotated[Path | None, typer.Argument(help="JPEG, PNG or DICOM file.")] = None,
    phrase: Annotated[str, typer.Argument(help="What to look for, as 'opacity in the left lung'.")] = "",
    report: Annotated[Path | None, typer.Option(help="Text file: look for each of its sentences.")] = None,
    boxes: Annotated[
        list[str] | None, typer.Option(help="x,y,w,h of a known box in pixels; with a report 2:x,y,w,h. Repeatable.")
    ] = None,
    data: Annotated[Path | None, typer.Option("--data", help="Build, to take a record of it instead.")] = None,
    split: Split = "test",
    record: Annotated[int, typer.Option(min=0, help="Number of the record in the split, from 0.")] = 0,
    out: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("ground.png"),
    protocol: Protocol = "",
    sigma: Sigma = None,
) -> None:
    """Draw where a phrase, or each sentence of a report, is seen in one radiograph."""
    refuse_several(os.environ, "msfl ground")
    from msfl_jax.commands.ground import ground_report

    print(
        ground_report(
            run,
            image=image,
            phrase=phrase,
            report=report,
            boxes=boxes or (),
            data=data,
            split=split,
            record=record,
            out=out,
            protocol=protocol,
            sigma=sigma,
        )
    )


@app.command()
def export(
    run: RunDirectory,
    to: Annotated[Path, typer.Option("--to", help="New folder for the export.")],
    step: Annotated[str, typer.Option(help="Step of the checkpoint, or best; default the latest.")] = "",
    decoders: Annotated[bool, typer.Option("--decoders", help="The decoder of masked patches too, as mae/.")] = False,
    mlm_head: Annotated[bool, typer.Option("--mlm-head", help="The masked-language head too, in text/.")] = False,
    to_stablehlo: Annotated[
        bool, typer.Option("--to-stablehlo", help="Compiled programs too, which need only JAX and NumPy.")
    ] = False,
) -> None:
    """Write a run for PyTorch, transformers and timm, with a model card, hashes and a check of the outputs."""
    refuse_several(os.environ, "msfl export")
    from msfl_jax.commands.export import export_report

    wanted = {"decoders": decoders, "mlm_head": mlm_head, "to_stablehlo": to_stablehlo}
    print(export_report(run, to, step=step, **wanted))


@app.command()
def verify(folder: Annotated[Path, typer.Argument(help="Folder of `msfl export`.")]) -> None:
    """Check an export: hashes, tensors and, where PyTorch is installed, its outputs; exit code 4 where something is wrong."""
    from msfl_jax.commands.export import verify_report

    print(verify_report(folder))


@app.command()
def table(
    number: Annotated[int, typer.Argument(min=1, max=5, help="Which of the paper's tables.")],
    runs: Annotated[list[Path] | None, typer.Argument(help="Run directories, or folders that hold some.")] = None,
    form: Annotated[str, typer.Option("--format", help="text, markdown, latex or csv.")] = "text",
    out: Annotated[Path | None, typer.Option(help="File to write instead of printing.")] = None,
    dataset: Annotated[
        str,
        typer.Option(help="Show ours on these data sets instead, without the paper's rows: NAME,NAME or synthetic."),
    ] = "",
) -> None:
    """Print one of the paper's tables with our results beside its own."""
    from msfl_jax.commands.table import table_report

    print(table_report(number, runs or [], form=form, out=out, dataset=dataset), end="")


@app.command(context_settings=OVERRIDES)
def ablate(
    context: typer.Context,
    config: ConfigName,
    workdir: Annotated[Path, typer.Option(help="Folder of the ablation; running again goes on.")],
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each combination of objectives.")] = 1,
    objectives: Annotated[
        str, typer.Option(help='Combinations, as "global;global,local"; default all eight with global alignment.')
    ] = "",
    directory: Annotated[
        Path | None, typer.Option("--data", help="Build to train on; default a synthetic study.")
    ] = None,
    phrases: Annotated[Path | None, typer.Option(help="Build with boxes to ground, beside --data.")] = None,
    studies: Annotated[int, typer.Option(min=100, help="Studies of the synthetic data set.")] = 6600,
    study_seed: Annotated[int, typer.Option(help="Seed of the synthetic data set.")] = 0,
    split: Split = "test",
    finetuning: Annotated[
        str, typer.Option("--finetune", help="Configuration of fine-tuning, as finetune_rsna:1, or none.")
    ] = "",
    labels: Annotated[
        Path | None, typer.Option(help="Build to classify, zero-shot and fine-tuned; default the one to train on.")
    ] = None,
) -> None:
    """Pretrain and evaluate combinations of the objectives with several seeds: the paper's table 5.

    Takes --config.SECTION.KEY=VALUE as well.
    """
    refuse_several(os.environ, "msfl ablate")
    from msfl_jax.commands.ablate import run_ablation

    made = {"studies": studies, "study_seed": study_seed, "data": directory, "phrases": phrases, "split": split}
    made |= {"finetune": finetuning, "labels": labels}
    code = run_ablation(workdir, config=config, seeds=seeds, objectives=objectives, overrides=context.args, **made)
    if code:
        raise typer.Exit(code)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
