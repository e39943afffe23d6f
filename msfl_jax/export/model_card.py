"""The README.md of an export: what the model is, what it was trained on and how it measured, from the files of its run and nothing else."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from msfl_jax.export.parity import NOT_CHECKED, Parity
from msfl_jax.metrics import Interval
from msfl_jax.tasks.outcome import Outcome, load_outcomes
from msfl_jax.tasks.run import Run
from msfl_jax.train.provenance import DATA_FILE

OBJECTIVES = ("global", "local", "instance", "modality")
_CREDENTIALED = (
    "PhysioNet Credentialed Health Data License 1.5.0 and its data use agreement. Weights that were trained on credentialed data may hold traces of "
    "it: share them only as the agreement allows, with credentialed users"
)
_TERMS = {
    "mimic_cxr": _CREDENTIALED,
    "ms_cxr": _CREDENTIALED,
    "chexpert": "Stanford University Dataset Research Use Agreement: research only, not to be passed on",
}
_SYNTHETIC = "drawn by a program; nothing of any patient is in it"
_PROGRAMS = [
    "",
    "With `jax` and `numpy` alone, on cpu, cuda or tpu; `embed_text` and `ground` take token ids and sentence ids int32 [B, T] too:",
    "",
    "```python",
    "import numpy",
    "from jax import export",
    "",
    'weights = dict(numpy.load("stablehlo/weights.npz"))',
    'embed_image = export.deserialize(bytearray(open("stablehlo/embed_image.bin", "rb").read()))',
    "image_embedding, regions = embed_image.call(weights, images)  # uint8 [B, H, W, 1]",
    "```",
]
_UNKNOWN_TERMS = "the terms of that data hold for weights that were trained on it"


def write_card(
    run: Run,
    facts: Mapping[str, Any],
    notes: Sequence[str],
    found: Mapping[str, Parity] | None,
    *,
    programs: bool = False,
) -> str:
    """The text of a model card.

    Args:
      run: the model; its directory is read for `data.json` and results.
      facts: hashes and counts, by name.
      notes: what could not be exported, a line each.
      found: differences of PyTorch from JAX; None where it is not installed.
      programs: whether compiled programs are in the folder.
    """
    data, outcomes = _data(run.directory), [outcome for _, outcome in load_outcomes([run.directory])]
    sections = {
        "Use": [*_use(run), *(_PROGRAMS if programs else [])],
        "Model": _model(run, notes),
        "Training data": _training(run, data),
        "Licence and use of the data": _licence(run, data),
        "Results": _results(run, outcomes),
        "Leaks between training and test data": _leaks(run, outcomes),
        "Agreement of the formats": _parity(found),
        "Hashes": [f"- {name}: {value}" for name, value in facts.items()],
    }
    head = ["---", "library_name: msfl_jax", "license: other", "tags: [chest-radiograph, vision-language]", "---", ""]
    lines = [*head, f"# {run.config.name}, step {run.step}", "", "Not a medical device; not for clinical use."]
    for title, body in sections.items():
        lines += ["", f"## {title}", "", *body]
    return "\n".join(lines) + "\n"


def _use(run: Run) -> list[str]:
    phrase = "opacity in the left lower lobe"
    return [
        "In this folder, with `torch`, `safetensors` and `tokenizers`; an image is a uint8 array of grey levels:",
        "",
        "```python",
        "from modeling_msfl import Msfl",
        "model = Msfl.load()",
        f'heat = model.ground(image, ["{phrase}"])',
        "```",
        "",
        f"Images are seen at {run.config.model.vision.image_size} pixels, `{run.config.data.fit}`, and are never flipped.",
        *(
            ["Histograms are equalised first, as in training: the module and `msfl_jax.load` do that."]
            if run.equalize
            else []
        ),
    ]


def _model(run: Run, notes: Sequence[str]) -> list[str]:
    vision, text = run.config.model.vision, run.config.model.text
    on = [name for name in OBJECTIVES if getattr(run.config.objective, f"lambda_{name}")]
    return [
        f"- image encoder: ViT, {vision.depth} blocks of width {vision.width}, {vision.grid} x {vision.grid} patches of {vision.patch_size} pixels",
        f"- report encoder: BERT, {text.depth} blocks of width {text.width}, {run.model.vocab_size} words",
        f"- objectives: {', '.join(on)}",
        f"- looks per axis in grounding: {run.config.grounding.shifts}; protocol {run.config.grounding.protocol}",
        *(f"- {note}" for note in notes),
    ]


def _data(directory: Path) -> Mapping[str, Any]:
    """What the run wrote about its data; empty for runs that were begun before there was such a file."""
    try:
        values = json.loads((directory / DATA_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _synthetic(data: Mapping[str, Any]) -> bool:
    settings = data.get("settings")
    return isinstance(settings, Mapping) and settings.get("synthetic") is True


def _before(data: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What the runs were trained on whose parameters the run started from, the latest first."""
    found = data.get("before")
    return [entry for entry in found if isinstance(entry, Mapping)] if isinstance(found, list) else []


def _named(data: Mapping[str, Any]) -> str:
    return f"{'synthetic study in the layout of ' if _synthetic(data) else ''}{data.get('name', 'unknown')}"


def _terms(data: Mapping[str, Any]) -> str:
    return _SYNTHETIC if _synthetic(data) else _TERMS.get(str(data.get("name")), _UNKNOWN_TERMS)


def _training(run: Run, data: Mapping[str, Any]) -> list[str]:
    if not data:
        return ["The run does not say what it was trained on."]
    control = (
        ["- control: every image was shown with the report of another patient"]
        if run.config.data.permute_reports
        else []
    )
    return [
        f"- data: {_named(data)}",
        f"- split: {data.get('split', 'unknown')}, images by hash {str(data.get('members', 'unknown'))[:16]}",
        *(f"- trained before on: {_named(entry)}, split {entry.get('split', 'unknown')}" for entry in _before(data)),
        *control,
        *(f"- caveat: {caveat}" for caveat in run.caveats),
    ]


def _licence(run: Run, data: Mapping[str, Any]) -> list[str]:
    started = [name for name in (run.config.init_from.vision, run.config.init_from.report) if name]
    return [
        f"- data: {_terms(data)}.",
        *(f"- data that it was trained on before, {_named(entry)}: {_terms(entry)}." for entry in _before(data)),
        *(
            f"- started from {Path(name).name}: the terms of those weights, and of what they saw, hold too."
            for name in started
        ),
        "- code in this folder: Apache-2.0.",
        "- content: weights, numbers and a vocabulary of words of the training reports; no image, no report, no identifier.",
    ]


def _results(run: Run, outcomes: Sequence[Outcome]) -> list[str]:
    if not outcomes:
        return ["None: the run was not evaluated."]
    lines = ["With 95 % patient-bootstrap intervals. Steps other than the exported one are named.", ""]
    lines += ["| task | data | split | variant | metric | value | interval | images | patients |", "|" + "---|" * 9]
    for outcome in outcomes:
        step = "" if outcome.step == run.step else f", step {outcome.step}"
        where = (
            f"{outcome.task}{step} | {outcome.dataset} | {outcome.split} {outcome.split_hash[:6]} | {outcome.variant}"
        )
        for name, value in outcome.metrics.items():
            lines.append(f"| {where} | {name} | {_interval(value)} | {outcome.records} | {outcome.patients} |")
    return lines


def _interval(value: Interval) -> str:
    if not math.isfinite(value.value):
        return "undefined | "
    between = f"{value.low:.3f} to {value.high:.3f}" if math.isfinite(value.low) and math.isfinite(value.high) else ""
    return f"{value.value:.3f} | {between}"


def _leaks(run: Run, outcomes: Sequence[Outcome]) -> list[str]:
    if not outcomes:
        return ["Not checked: the run was not evaluated."]
    return [line for outcome in outcomes for line in _leaks_of(run, outcome)]


def _leaks_of(run: Run, outcome: Outcome) -> Iterator[str]:
    caveats = list(dict.fromkeys([*run.caveats, *outcome.caveats]))
    said = (
        "; ".join(caveats)
        if caveats
        else "checked by image and patient; nothing is shared, and nothing else is to be said"
    )
    yield f"- {outcome.name}: {said}"


def _parity(found: Mapping[str, Parity] | None) -> list[str]:
    if found is None:
        return [f"{NOT_CHECKED[0].upper()}{NOT_CHECKED[1:]}."]
    lines = [
        "Largest difference of PyTorch in float32 on CPU from JAX, on random pixels and tokens (`parity.json`):",
        "",
    ]
    return [*lines, *(f"- {name}: {one.difference:.1e}" for name, one in found.items())]
