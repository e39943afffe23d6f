"""The command `msfl`: parses options, calls one function, prints what it returns."""

import contextlib
import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from input_pipeline.errors import MsflError

OVERRIDES = {"allow_extra_args": True, "ignore_unknown_options": True}

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Chest radiographs and reports, in JAX.")
data = typer.Typer(no_args_is_help=True, help="Make and build data sets.")
build = typer.Typer(no_args_is_help=True, help="Turn a data set as released into shards that training reads.")
evaluate = typer.Typer(no_args_is_help=True, help="Evaluate a run directory.")
app.add_typer(data, name="data")
data.add_typer(build, name="build")
app.add_typer(evaluate, name="eval")

Seed = Annotated[int, typer.Option(help="Everything random follows from it.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes; 0 takes all cores.")]
ConfigName = Annotated[str, typer.Option("--config", help="Path or bare name of a configuration, with :argument.")]
RunDirectory = Annotated[Path, typer.Argument(help="Run directory of `msfl pretrain`.")]
BuildDirectory = Annotated[Path, typer.Option("--data", help="Folder made by `msfl data build`.")]
Split = Annotated[str, typer.Option(help="Split to evaluate.")]
Output = Annotated[Path, typer.Option("--out", help="Folder to write.")]
JpgDirectory = Annotated[Path, typer.Option("--jpg", help="Root of MIMIC-CXR-JPG (holds files/ and the tables).")]
ShortSide = Annotated[int, typer.Option(min=16, help="Short side of stored images in pixels.")]
Quality = Annotated[int, typer.Option(min=1, max=100, help="JPEG quality of stored images.")]


def main() -> None:
    """Entry point: errors meant for users become one line on stderr and their exit code."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports on itself there
    try:
        status = app(standalone_mode=False)
    except MsflError as error:
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


@data.command()
def synthesize(
    directory: Annotated[Path, typer.Argument(help="Folder to write; MIMIC-CXR-JPG's layout.")],
    studies: Annotated[int, typer.Option(min=1, help="Number of studies.")] = 6600,
    seed: Seed = 0,
    workers: Workers = 0,
) -> None:
    """Make a synthetic chest-radiograph study in MIMIC-CXR-JPG's layout."""
    from input_pipeline.datasets.synthetic import synthesize as make

    print(make(directory, studies=studies, seed=seed, workers=workers or None))


@build.command("mimic-cxr")
def build_mimic_cxr(
    jpg: JpgDirectory,
    reports: Annotated[Path, typer.Option(help="Folder or zip of the reports.")],
    out: Output,
    views: Annotated[str, typer.Option(help="frontal, lateral or all.")] = "frontal",
    exclude: Annotated[
        Path | None, typer.Option(help="MS-CXR's boxes, CSV or JSON: their patients are left out of train.")
    ] = None,
    keep_grounding_patients: Annotated[
        bool, typer.Option("--keep-grounding-patients", help="Train on MS-CXR's patients as well.")
    ] = False,
    labels: Annotated[str, typer.Option(help="Labeller of the reports: chexpert or negbio.")] = "chexpert",
    radiologist_labels: Annotated[bool, typer.Option(help="Prefer radiologists' labels of test studies.")] = True,
    splits: Annotated[
        Path | None, typer.Option(help="CSV of dicom_id,split or subject_id,split instead of the official split.")
    ] = None,
    sections: Annotated[str, typer.Option(help="Sections of a report to read, in order.")] = "findings,impression",
    fallback: Annotated[str, typer.Option(help="Section to read where they have no text, or none.")] = "last_paragraph",
    equalize: Annotated[
        bool, typer.Option("--equalize", help="Equalise histograms; the release's are already.")
    ] = False,
    short_side: ShortSide = 512,
    quality: Quality = 95,
    workers: Workers = 0,
) -> None:
    """MIMIC-CXR-JPG and its reports."""
    from input_pipeline.build import build as write
    from input_pipeline.datasets.mimic_cxr import MimicCxr

    source = MimicCxr(
        jpg,
        reports,
        views=views,
        policy=tuple(name.strip() for name in sections.split(",") if name.strip()),
        fallback=None if fallback == "none" else fallback,
        exclude=exclude,
        keep_grounding_patients=keep_grounding_patients,
        labels=labels,
        radiologist_labels=radiologist_labels,
        splits=splits,
    )
    stored = {"short_side": short_side, "quality": quality, "equalize": equalize}
    print(write(source, out, **stored, workers=workers or os.cpu_count() or 1))


@build.command("ms-cxr")
def build_ms_cxr(
    jpg: JpgDirectory,
    boxes: Annotated[Path, typer.Option(help="MS-CXR's CSV of phrases and boxes.")],
    out: Output,
    short_side: ShortSide = 512,
    quality: Quality = 95,
    workers: Workers = 0,
) -> None:
    """MS-CXR: phrases and boxes on images of MIMIC-CXR-JPG."""
    from input_pipeline.build import build as write
    from input_pipeline.datasets.ms_cxr import MsCxr

    source = MsCxr(jpg, boxes)
    print(write(source, out, short_side=short_side, quality=quality, workers=workers or os.cpu_count() or 1))


@data.command()
def tokenizer(
    directory: Annotated[Path, typer.Argument(help="Folder made by `msfl data build mimic-cxr`.")],
    out: Output,
    vocab_size: Annotated[int, typer.Option(min=32, help="Largest number of words and word pieces.")] = 30000,
) -> None:
    """Train a WordPiece tokenizer on the training reports of a build."""
    from input_pipeline.loader import text_sentences
    from input_pipeline.tokenizer import train_tokenizer

    made = train_tokenizer(text_sentences(directory, "train"), out, vocab_size=vocab_size)
    print(f"{out}  {made.vocab_size} tokens  sha256 {made.hash}")


@evaluate.command("zero-shot")
def evaluate_zero_shot(
    run: RunDirectory,
    directory: BuildDirectory,
    split: Split = "test",
    prompts: Annotated[str, typer.Option(help="Prompt set or JSON file; default the run's own.")] = "",
    rule: Annotated[str, typer.Option(help="cosine, maco, chexzero or gloria; default the run's own.")] = "",
) -> None:
    """Zero-shot classification: AUC per finding with 95 % patient-bootstrap intervals."""
    from msfl_jax.commands.evaluate import zero_shot_report

    print(zero_shot_report(run, directory, split=split, prompts=prompts, rule=rule))


@evaluate.command("grounding")
def evaluate_grounding(
    run: RunDirectory,
    directory: BuildDirectory,
    split: Split = "test",
    protocol: Annotated[str, typer.Option(help="biovil, maco or afloc; default the run's own.")] = "",
    overlays: Annotated[int, typer.Option(min=0, help="Images for which overlays are drawn.")] = 8,
) -> None:
    """Phrase grounding: CNR, mIoU and pointing game with intervals, and overlays per sentence."""
    from msfl_jax.commands.evaluate import grounding_report

    print(grounding_report(run, directory, split=split, protocol=protocol, overlays=overlays))


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
