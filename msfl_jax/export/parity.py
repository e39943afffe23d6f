"""Whether PyTorch makes of an export's files what JAX made of the run: our module, and transformers' models where they are installed.

The only file here that runs PyTorch, and only where it is installed.
"""

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from input_pipeline.errors import CheckpointError
from msfl_jax.export.golden import FINDING, GOLDEN, INPUTS, OUTPUTS, PHRASES
from msfl_jax.export.layout import LANGUAGE, MAE, TEXT, VISION, WEIGHTS, read_description, read_tensors

PARITY = "parity.json"
LIMIT = (
    1e-4  # of the largest value of an output: float32 on another machine stays well below, a swapped weight does not
)
NOT_CHECKED = "not checked: PyTorch is not installed"

Tensors = Mapping[str, Any]  # of PyTorch


@dataclass(frozen=True)
class Parity:
    """Largest difference of an output from JAX, and that as a share of the output's largest value, or of 1 where that is less."""

    difference: float
    share: float


def has_torch() -> bool:
    """Whether PyTorch is installed; it is not imported."""
    return importlib.util.find_spec("torch") is not None


def compare_with_torch(folder: Path) -> dict[str, Parity]:
    """Every output of the models in the folder against the golden ones, as `image_embedding` of ours or `vision/patches` of transformers'.

    Raises:
      CheckpointError: an output is missing or of another shape.
    """
    golden = read_tensors(folder / GOLDEN)
    torch = importlib.import_module("torch")
    inputs = {n.removeprefix(INPUTS): torch.tensor(array) for n, array in golden.items() if n.startswith(INPUTS)}
    found: dict[str, Any] = {}
    with torch.no_grad():
        own = our_module().Msfl.load(folder)
        found |= _own(own, inputs)
        colour = own.pixels(own.views(inputs["image"]))[:, None].expand(-1, 3, -1, -1)
        for part, outputs in ((VISION, _vision), (TEXT, _text), (MAE, _mae)):
            if (folder / part / WEIGHTS).is_file() and importlib.util.find_spec("transformers"):
                found |= {f"{part}/{name}": value for name, value in outputs(folder, inputs, colour).items()}
    return {name: _compare(name, golden, tensor.numpy()) for name, tensor in found.items()}


def write_parity(folder: Path, found: Mapping[str, Parity] | None) -> None:
    """`parity.json`: differences by output, or that nothing was compared."""
    if found is None:
        values: dict[str, Any] = {"compared": NOT_CHECKED}
    else:
        versions = {name: importlib.import_module(name).__version__ for name in ("torch", "transformers", "jax")}
        outputs = {name: {"difference": one.difference, "share": one.share} for name, one in found.items()}
        values = {"compared": "float32 on CPU", "versions": versions, "outputs": outputs}
    (folder / PARITY).write_text(json.dumps(values, indent=2) + "\n")


def refuse_differences(folder: Path, found: Mapping[str, Parity]) -> None:
    """Raises a CheckpointError where an output is not what JAX made."""
    apart = {name: one for name, one in found.items() if not one.share <= LIMIT}
    if apart:
        worst = max(apart, key=lambda name: apart[name].share)
        raise CheckpointError(
            f"{folder}: {len(apart)} of {len(found)} outputs of PyTorch differ from those of JAX; {worst} by "
            f"{apart[worst].difference:.2g}, expected at most {LIMIT:g} of its largest value; export the run again"
        )


def _compare(name: str, golden: Mapping[str, np.ndarray], found: np.ndarray) -> Parity:
    alias = {
        f"{VISION}/patches": "vision_patches",
        f"{VISION}/cls": "vision_cls",
        f"{TEXT}/states": "text_states",
        f"{TEXT}/logits": "token_logits",
        f"{MAE}/prediction": "pixel_prediction",
    }
    expected = golden.get(OUTPUTS + alias.get(name, name))
    if expected is None or expected.shape != found.shape or (np.isnan(expected) != np.isnan(found)).any():
        raise CheckpointError(f"{GOLDEN}: no '{name}' of shape {found.shape}; export the run again")
    expected, found = np.nan_to_num(expected.astype(np.float64)), np.nan_to_num(found.astype(np.float64))
    difference = float(np.abs(expected - found).max(initial=0.0))
    return Parity(difference, difference / max(1.0, float(np.abs(expected).max(initial=0.0))))


def _own(model: Any, inputs: Tensors) -> Tensors:
    """Outputs of our module; its code is this package's, and nothing of the folder is run."""
    embedding, regions = model.encode_image(model.views(inputs["image"]))
    report, units, present = model.encode_report(inputs["token_ids"].long(), inputs["sentence_ids"].long())
    return {
        "image_embedding": embedding,
        "regions": regions,
        "report_embedding": report,
        "units": units * present[..., None],
        "unit_mask": present,
        "matching": model.match(embedding, report),
        "scores": model.zero_shot(inputs["image"], {"": (FINDING.positive, FINDING.negative)}, "cosine")[""],
        "heat": model.ground(inputs["image"][0], list(PHRASES)),
    }


def our_module() -> ModuleType:
    """`modeling_msfl` as the package ships it; it imports its neighbour by its bare name, as it does in an export."""
    source = str(code_folder())
    sys.path.insert(0, source)
    try:
        return importlib.import_module("modeling_msfl")
    finally:
        sys.path.remove(source)


def code_folder() -> Path:
    """Where the files of code that are copied into an export lie."""
    return Path(__file__).parent / "pytorch"


def _vision(folder: Path, _: Tensors, colour: Any) -> Tensors:
    tokens = _of_transformers("ViTModel", folder / VISION, add_pooling_layer=False)(colour).last_hidden_state
    return {"cls": tokens[:, 0], "patches": tokens[:, 1:]}


def _text(folder: Path, inputs: Tensors, _: Any) -> Tensors:
    ids = inputs["token_ids"].long()
    present = (ids != 0).long()
    if LANGUAGE in read_description(folder)["parts"]:
        model = _of_transformers("BertForMaskedLM", folder / TEXT)
        out = model(input_ids=ids, attention_mask=present, output_hidden_states=True)
        states = {"states": out.hidden_states[-1], "logits": out.logits}
    else:
        model = _of_transformers("BertModel", folder / TEXT, add_pooling_layer=False)
        states = {"states": model(input_ids=ids, attention_mask=present).last_hidden_state}
    return {name: value * present[..., None] for name, value in states.items()}


def _mae(folder: Path, inputs: Tensors, colour: Any) -> Tensors:
    """Of three predicted colours, which are alike, the first."""
    logits = _of_transformers("ViTMAEForPreTraining", folder / MAE)(colour, noise=inputs["noise"]).logits
    return {"prediction": logits.unflatten(-1, (-1, 3))[..., 0]}


def _of_transformers(kind: str, folder: Path, **options: Any) -> Any:
    """A model read from its folder, without the bar that transformers draws meanwhile, and its report of what the model leaves out."""
    model: Callable[..., Any] = getattr(importlib.import_module("transformers"), kind).from_pretrained
    said = importlib.import_module("transformers.utils.logging")
    level, bars = said.get_verbosity(), said.is_progress_bar_enabled()
    said.set_verbosity_error()
    said.disable_progress_bar()
    try:
        return model(folder, attn_implementation="eager", **options).eval()
    finally:
        said.set_verbosity(level)
        if bars:
            said.enable_progress_bar()
