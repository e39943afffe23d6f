"""All corpora by name, and the source that `msfl data doctor` makes of one."""

from collections.abc import Callable
from pathlib import Path

from input_pipeline.datasets.releases import detect
from input_pipeline.sources import Source

from .files import Corpus
from .labelled import write_chexpert, write_nih, write_rsna, write_siim
from .mimic import write_mimic, write_ms_cxr

CORPORA: dict[str, Callable[[Path, int, str], Corpus]] = {
    "mimic-cxr tree": write_mimic,
    "mimic-cxr zip and checksums": lambda root, seed, level: write_mimic(root, seed, level, sums=True, zipped=True),
    "ms-cxr csv": write_ms_cxr,
    "ms-cxr json": lambda root, seed, level: write_ms_cxr(root, seed, level, as_json=True),
    "chexpert": write_chexpert,
    "nih": write_nih,
    "nih without lists": lambda root, seed, level: write_nih(root, seed, level, lists=False),
    "rsna": write_rsna,
    "siim": write_siim,
}


def source_of(corpus: Corpus) -> Source:
    options = zip(corpus.arguments[::2], corpus.arguments[1::2], strict=True)
    return detect(corpus.root, **{name.removeprefix("--"): Path(value) for name, value in options})
