"""The commands `msfl data ...`: parse options, call one function, print what it returns."""

import dataclasses
import functools
import inspect
import itertools
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from input_pipeline.errors import DataError, UserError
from msfl_jax.cli_options import Seed
from msfl_jax.parallel.clusters import refuse_several

Command = Callable[..., Any]

data = typer.Typer(no_args_is_help=True, help="Make, build and examine data sets.")
data.callback()(lambda: refuse_several(os.environ, "msfl data"))
build = typer.Typer(no_args_is_help=True, help="Turn a data set as released into shards that training reads.")
data.add_typer(build, name="build")

Workers = Annotated[int, typer.Option(min=0, help="Processes; 0 takes all cores.")]
Output = Annotated[Path, typer.Option("--out", help="Folder to write.")]
Root = Annotated[Path, typer.Argument(help="Folder of the release.")]
JpgDirectory = Annotated[Path, typer.Option("--jpg", help="Root of MIMIC-CXR-JPG (holds files/ and the tables).")]
ShortSide = Annotated[int, typer.Option(min=16, help="Short side of stored images in pixels.")]
Quality = Annotated[int, typer.Option(min=1, max=100, help="JPEG quality of stored images.")]
Equalize = Annotated[
    bool, typer.Option("--equalize", help="Equalise histograms, as MIMIC-CXR-JPG and CheXpert are already.")
]
Quarantine = Annotated[
    Path | None, typer.Option(help="The doctor's quarantine.jsonl: its images are left out, counted by reason.")
]
DropNoted = Annotated[
    str,
    typer.Option(help="Reasons of the doctor's notes.jsonl, such as blank_image, whose images are left out as well."),
]
Lists = Annotated[
    Path | None, typer.Option("--lists", help="Folder of published lists: train_list, val_list, test_list, train_1 ...")
]
Variant = Annotated[
    str, typer.Option("--variant", help="Of the lists: as_published, or clean (nothing in two splits).")
]
_BY = "by patient, or by image where these are not told (RSNA, SIIM-ACR),"
Validation = Annotated[float, typer.Option("--validation", help=f"Share of train, {_BY} to validate on.")]
Test = Annotated[float, typer.Option("--test", help=f"Share of train, {_BY} to test on.")]
Fractions = Annotated[str, typer.Option("--fractions", help="Percentages of train that become subsets, nested.")]
Seeds = Annotated[str, typer.Option("--seeds", help="Of the fractions; the first also of the shares.")]
AllowLeak = Annotated[
    bool, typer.Option("--allow-leak", help="Accept images and patients in two splits; every table will say so.")
]


@data.command()
def synthesize(
    directory: Annotated[Path, typer.Argument(help="Folder to write.")],
    studies: Annotated[int, typer.Option(min=1, help="Number of studies; of images in SIIM-ACR's layout.")] = 6600,
    seed: Seed = 0,
    workers: Workers = 0,
    layout: Annotated[
        str, typer.Option(help="mimic-cxr, or siim: DICOM with outlines of pneumothoraces.")
    ] = "mimic-cxr",
) -> None:
    """Make a synthetic chest-radiograph study in the layout of MIMIC-CXR-JPG, or of SIIM-ACR."""
    if layout == "siim":
        from input_pipeline.datasets.synthetic.siim import synthesize_siim

        print(synthesize_siim(directory, images=studies, seed=seed, workers=workers or None))
    elif layout == "mimic-cxr":
        from input_pipeline.datasets.synthetic import synthesize as make

        print(make(directory, studies=studies, seed=seed, workers=workers or None))
    else:
        raise UserError(f"found --layout {layout}; expected mimic-cxr or siim")


def _choice(
    lists: Lists = None,
    variant: Variant = "as_published",
    validation: Validation = 0.0,
    test: Test = 0.0,
    fractions: Fractions = "1,10",
    seeds: Seeds = "0,1,2",
    allow_leak: AllowLeak = False,
) -> Any:
    from input_pipeline.datasets.releases import SplitChoice
    from input_pipeline.splits import VARIANTS

    if variant not in VARIANTS or (lists is None and variant != VARIANTS[0]):
        raise UserError(f"found --variant {variant}; expected {' or '.join(VARIANTS)}, of the lists of --lists DIR")
    shares = tuple(number / 100 for number in _numbers("--fractions", fractions, float))
    return SplitChoice(lists, variant, validation, test, shares, tuple(_numbers("--seeds", seeds, int)), allow_leak)


def _numbers(option: str, text: str, kind: type) -> list[Any]:
    try:
        return [kind(word) for word in text.split(",") if word.strip()]
    except ValueError:
        raise UserError(f"found {option} '{text}'; expected numbers joined by commas") from None


def _write(
    source: Any,
    *,
    out: Output,
    quarantine: Quarantine = None,
    drop_noted: DropNoted = "",
    equalize: Equalize = False,
    short_side: ShortSide = 512,
    quality: Quality = 95,
    workers: Workers = 0,
) -> None:
    from input_pipeline.build import build as write

    workers = workers or os.cpu_count() or 1
    stored = {"short_side": short_side, "quality": quality, "equalize": equalize}
    noted = [reason.strip() for reason in drop_noted.split(",") if reason.strip()]
    print(write(source, out, workers=workers, quarantine=quarantine, drop_noted=noted, **stored))


def _with_options(command: Command, shared: Command, own: str = "") -> tuple[tuple[str, ...], inspect.Signature]:
    """Names of the options of `shared`, and a signature of those of `command`, without `own`, and them."""
    more = [option for name, option in inspect.signature(shared).parameters.items() if name != "source"]
    options = [option for name, option in inspect.signature(command).parameters.items() if name != own]
    options = [option.replace(kind=inspect.Parameter.KEYWORD_ONLY) for option in (*options, *more)]
    return tuple(option.name for option in more), inspect.Signature(options)


def _split(command: Command) -> Command:
    """A command whose argument `choice` is made of the options about splits."""
    names, signature = _with_options(command, _choice, "choice")

    @functools.wraps(command)
    def run(**options: Any) -> Any:
        return command(choice=_choice(**{name: options.pop(name) for name in names}), **options)

    run.__dict__["__signature__"] = signature
    return run


def _built(command: Command) -> Command:
    """A command that builds the source that `command` returns, with the options of a build beside its own."""
    names, signature = _with_options(command, _write)

    @functools.wraps(command)
    def run(**options: Any) -> None:
        how = {name: options.pop(name) for name in names}
        _write(command(**options), **how)

    run.__dict__["__signature__"] = signature
    return run


@build.command("mimic-cxr")
@_built
def build_mimic_cxr(
    jpg: JpgDirectory,
    reports: Annotated[Path, typer.Option(help="Folder or zip of the reports.")],
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
    section_rules: Annotated[
        Path | None,
        typer.Option(
            help="Your copy of MIMIC-CXR's section_parser.py, or a CSV of study_id and section, or start and end: where the text of 54 "
            "single studies is. Without it, general rules read those too."
        ),
    ] = None,
) -> Any:
    """MIMIC-CXR-JPG and its reports."""
    from input_pipeline.datasets.mimic_cxr import MimicCxr
    from input_pipeline.section_rules import read_section_rules

    return MimicCxr(
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
        section_rules=read_section_rules(section_rules) if section_rules else None,
    )


@build.command("ms-cxr")
@_built
def build_ms_cxr(
    jpg: JpgDirectory,
    boxes: Annotated[Path, typer.Option(help="MS-CXR's CSV or JSON of phrases and boxes, or its folder.")],
) -> Any:
    """MS-CXR: phrases and boxes on images of MIMIC-CXR-JPG."""
    from input_pipeline.datasets.ms_cxr import MsCxr

    return MsCxr(jpg, boxes)


@build.command("chexpert")
@_built
@_split
def build_chexpert(
    root: Root,
    choice: Any,
    views: Annotated[str, typer.Option(help="frontal, or all as the published lists have it.")] = "frontal",
    uncertain: Annotated[str, typer.Option(help="What -1 becomes: keep, ones, zeros, ignore or published.")] = "keep",
    blank: Annotated[str, typer.Option(help="What is not mentioned: unknown or absent.")] = "unknown",
    valid_as: Annotated[str, typer.Option(help="The 234 images of valid are test or validate.")] = "test",
) -> Any:
    """CheXpert 1.0, full or small."""
    from input_pipeline.datasets import releases

    options = {"views": views, "uncertain": uncertain, "blank": blank, "valid_as": valid_as}
    return releases.chexpert(root, choice, **options)


@build.command("nih")
@_built
@_split
def build_nih(
    root: Root,
    choice: Any,
    boxes: Annotated[bool, typer.Option("--boxes", help="One record per image and finding with boxes.")] = False,
    table: Annotated[Path | None, typer.Option(help="Data_Entry_2017*.csv, where there are two vintages.")] = None,
) -> Any:
    """NIH ChestX-ray14: labels, or with --boxes its 984 boxes."""
    from input_pipeline.datasets import releases

    if boxes and table is not None:
        raise UserError("found --table with --boxes; the boxes have a table of their own")
    choice = dataclasses.replace(choice, fractions=()) if boxes else choice
    return releases.nih_boxes(root, choice) if boxes else releases.nih_chestxray14(root, choice, table=table)


@build.command("rsna")
@_built
@_split
def build_rsna(
    root: Root,
    choice: Any,
    detailed: Annotated[
        bool, typer.Option("--detailed", help="Adds the challenge's two classes without opacity.")
    ] = False,
) -> Any:
    """RSNA Pneumonia Detection Challenge, stage 2 (DICOM; extra `dicom`)."""
    from input_pipeline.datasets import releases

    return releases.rsna_pneumonia(root, choice, detailed=detailed)


@build.command("siim")
@_built
@_split
def build_siim(
    root: Root,
    choice: Any,
    table: Annotated[Path | None, typer.Option(help="The table of run-length codes, where there are two.")] = None,
) -> Any:
    """SIIM-ACR Pneumothorax Segmentation (DICOM; extra `dicom`)."""
    from input_pipeline.datasets import releases

    return releases.siim_acr(root, choice, table=table)


@data.command()
def doctor(
    root: Root,
    out: Output = Path("doctor"),
    reports: Annotated[Path | None, typer.Option(help="Reports of MIMIC-CXR, folder or zip.")] = None,
    jpg: Annotated[Path | None, typer.Option(help="MIMIC-CXR-JPG's folder, for MS-CXR.")] = None,
    table: Annotated[Path | None, typer.Option(help="Of NIH or SIIM-ACR, where there are several vintages.")] = None,
    boxes: Annotated[bool, typer.Option("--boxes", help="NIH's boxes instead of its labels.")] = False,
    sample: Annotated[int, typer.Option(min=0, help="Rows of each split to look at, evenly spread; 0 is all.")] = 0,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Share of unusable rows that is accepted.")] = 0.005,
    reveal: Annotated[
        str, typer.Option(help="Print the file, or the table's row, behind this key of quarantine.jsonl, and end.")
    ] = "",
    workers: Workers = 0,
) -> None:
    """Examine a data set as released: everything that is wrong with it, counted, and what to do; exit code 3 above the threshold."""
    from input_pipeline.datasets.releases import detect
    from input_pipeline.doctor import examine
    from input_pipeline.doctor import reveal as find

    source = detect(root, reports=reports, jpg=jpg, table=table, boxes=boxes)
    if reveal:
        found = find(source, out, reveal)
        if found is None:
            raise UserError(
                f"found nothing with this key; expected one of {out}/quarantine.jsonl, made with this --out"
            )
        print(found)
        return
    report = examine(source, out, workers=workers or os.cpu_count() or 1, sample=sample, threshold=threshold)
    print(report)
    if report.refused:
        raise DataError(
            f"{source.name}: {report.unusable_share:.2%} of the rows are unusable; expected at most {threshold:.2%}; see {out}"
        )


@data.command()
def leaks(
    pretraining: Annotated[Path, typer.Argument(help="Build that a model was pretrained on.")],
    other: Annotated[Path, typer.Argument(help="Build that it will be tested on.")],
    allow_leak: Annotated[bool, typer.Option("--allow-leak", help="Report, and end with exit code 0.")] = False,
) -> None:
    """Images and patients that two builds share; exit code 3 where a split to test on shares any with training."""
    from input_pipeline.leaks import compare_builds, refuse_shared

    comparison = compare_builds(pretraining, other)
    print(comparison)
    refuse_shared(comparison, allow_leak=allow_leak)


@data.command()
def lists(
    dataset: Annotated[str, typer.Argument(help="chexpert, nih, rsna or siim.")],
    folder: Annotated[Path, typer.Argument(help="Folder of its published lists.")],
    variant: Variant = "as_published",
    table: Annotated[
        Path | None, typer.Option(help="CheXpert's train.csv, for the images of the whole train split.")
    ] = None,
    allow_leak: Annotated[bool, typer.Option("--allow-leak", help="Report, and end with exit code 0.")] = False,
) -> None:
    """Images and patients that published lists share between splits; exit code 3 where they share any."""
    from input_pipeline.datasets.releases import list_overlaps
    from input_pipeline.leaks import refuse_overlaps

    overlaps = list_overlaps(dataset, folder, variant=variant, table=table)
    print(overlaps)
    refuse_overlaps(dataset, overlaps, allow_leak=allow_leak)


@data.command()
def tokenizer(
    directory: Annotated[
        Path | None, typer.Argument(help="Folder made by `msfl data build mimic-cxr`; its training reports are read.")
    ] = None,
    out: Output = Path("tokenizer"),
    source: Annotated[
        Path | None, typer.Option("--from", help="Import instead: vocab.txt, tokenizer.json, or a BERT folder.")
    ] = None,
    lowercase: Annotated[
        bool | None, typer.Option("--lowercase/--cased", help="Of an imported vocabulary; default what its files say.")
    ] = None,
    vocab_size: Annotated[int, typer.Option(min=32, help="Largest number of words and word pieces.")] = 30000,
) -> None:
    """Train a WordPiece tokenizer on a build, or import one (--from); with a build, its words are looked up in it."""
    from input_pipeline.loader import text_sentences
    from input_pipeline.tokenizer import train_tokenizer
    from input_pipeline.tokenizer_import import import_tokenizer

    if source is not None:
        if directory is not None:
            with tempfile.TemporaryDirectory() as draft:  # a vocabulary that is refused leaves nothing at --out
                _coverage(import_tokenizer(source, draft, lowercase=lowercase).tokenizer, directory)
        imported = import_tokenizer(source, out, lowercase=lowercase)
        made, notes = imported.tokenizer, imported.notes
    elif directory is not None:
        made, notes = train_tokenizer(text_sentences(directory, "train"), out, vocab_size=vocab_size), ()
    else:
        raise UserError("found neither a build to train on nor --from; expected one of them")
    print("\n".join([f"{out}  {made.vocab_size} tokens  sha256 {made.hash}", *notes]))
    if directory is not None:
        found, warning = _coverage(made, directory)
        print(found)
        if warning:
            print(f"warning: {warning}", file=sys.stderr)
    else:
        print("coverage not checked: give a build, whose words are then looked up")


def _coverage(made: Any, directory: Path) -> tuple[str, str]:
    """What a tokenizer makes of a build's words, and a warning; raises DataError where it knows too few of them."""
    from input_pipeline.loader import text_sentences
    from input_pipeline.token_coverage import check_coverage, coverage

    found = coverage(made, itertools.islice(text_sentences(directory, "train"), 50_000))  # more say no more
    told = f"{found.unknown_share:.2%} of {found.words:,} words unknown, {found.pieces_per_word:.2f} pieces per word"
    return told, check_coverage(found)
