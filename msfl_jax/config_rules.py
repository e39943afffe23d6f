"""What the types of a configuration cannot say: ranges of single values, and values that must fit each other."""

import math
import operator
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from input_pipeline.errors import UserError

Rule = tuple[bool, str, str]  # whether it holds, the key at fault, what is expected there

# Whole numbers and real ones that every kind of run has; see `AT_LEAST` and `WITHIN`.
AT_LEAST_OF_RUNS = {
    "seed": 0,
    "data.batch_size": 1,
    "data.workers": 0,
    "optimizer.warmup_steps": 0,
    "train.steps": 1,
    "train.log_every": 0,
    "train.checkpoint_every": 0,
    "train.keep_checkpoints": 1,
    "train.evaluate_every": 0,
    "train.max_skipped_steps": 0,
}
WITHIN_OF_RUNS = {
    "data.shift": (0.0, 0.5),
    "data.rotation": (0.0, 180.0),
    "optimizer.peak_rate": (0.0, math.inf),
    "optimizer.weight_decay": (0.0, math.inf),
    "optimizer.b1": (0.0, 1.0),
    "optimizer.b2": (0.0, 1.0),
    "optimizer.clip_norm": (1e-9, math.inf),
}

# Smallest value of whole numbers.
AT_LEAST = AT_LEAST_OF_RUNS | {
    "model.vision.image_size": 1,
    "model.vision.patch_size": 1,
    "model.vision.width": 1,
    "model.vision.depth": 1,
    "model.vision.heads": 1,
    "model.text.vocab_size": 0,
    "model.text.max_tokens": 3,  # [CLS], a word, [SEP]
    "model.text.width": 1,
    "model.text.depth": 1,
    "model.text.heads": 1,
    "model.pixel_decoder.width": 1,
    "model.pixel_decoder.depth": 1,
    "model.pixel_decoder.heads": 1,
    "model.embedding_width": 1,
    "model.region_width": 1,
    "model.matching_width": 1,
    "regions.layer": 0,
    "regions.window_radius": 0,
    "text.max_sentences": 1,
    "objective.local_alignment.block": 0,
    "train.microbatches": 1,
    "zero_shot.records": 0,
    "grounding.records": 0,
    "grounding.shifts": 1,
    "retrieval.records": 0,
    "probe.records": 0,
}

# Lowest and highest value of real numbers; NaN lies in no range.
WITHIN = WITHIN_OF_RUNS | {
    "model.vision.mlp_ratio": (1e-3, math.inf),
    "model.text.mlp_ratio": (1e-3, math.inf),
    "image.mean": (0.0, 1.0),
    "image.deviation": (1e-6, math.inf),
    "text.subset_probability": (0.0, 1.0),
    "objective.lambda_global": (0.0, math.inf),
    "objective.lambda_local": (0.0, math.inf),
    "objective.lambda_instance": (0.0, math.inf),
    "objective.lambda_modality": (0.0, math.inf),
    "objective.global_alignment.temperature": (1e-6, math.inf),
    "objective.local_alignment.region_scale": (0.0, math.inf),
    "objective.local_alignment.sentence_scale": (1e-6, math.inf),
    "objective.local_alignment.logit_scale": (1e-6, math.inf),
    "grounding.sigma": (0.0, math.inf),
    "probe.l2": (1e-12, math.inf),
}

# Lowest and highest value of both ends of a range.
RANGES = {
    "data.scale": (1e-3, 1.0),
    "data.aspect": (0.1, 10.0),
    "data.zoom": (0.1, 10.0),
    "objective.instance_matching.ramp": (0.0, 1.0),
}


def refuse_broken_rules(config: Any) -> None:
    """Refuses a configuration whose values make no sense, alone or together.

    Args:
      config: an `msfl_jax.config.Config`; that module imports this one.

    Raises:
      UserError: names the first key at fault, what was found and what was expected.
    """
    refuse_first(config, _ranges(config))
    refuse_first(config, _sizes(config))
    refuse_first(config, _choices(config))


def refuse_first(config: Any, rules: Iterable[Rule]) -> None:
    """Raises a UserError that names the first key whose rule does not hold, what was found and what was expected."""
    for holds, path, expected in rules:
        if not holds:
            raise UserError(f"config: '{path}' is {operator.attrgetter(path)(config)!r}; expected {expected}")


def _ranges(config: Any) -> Iterator[Rule]:
    yield from in_ranges(config, AT_LEAST, WITHIN, RANGES)
    for path in ("image.mask_ratio", "text.mask_rate"):
        yield 0 < operator.attrgetter(path)(config) < 1, path, "a number between 0 and 1"


def in_ranges(
    config: Any,
    at_least: Mapping[str, int],
    within: Mapping[str, tuple[float, float]],
    ranges: Mapping[str, tuple[float, float]],
) -> Iterator[Rule]:
    """Rules for single values by dotted key, as `AT_LEAST`, `WITHIN` and `RANGES` are."""
    for path, least in at_least.items():
        yield operator.attrgetter(path)(config) >= least, path, f"at least {least}"
    for path, (low, high) in within.items():
        value = operator.attrgetter(path)(config)
        expected = f"at least {low:g}" if high == math.inf else f"a number from {low:g} to {high:g}"
        yield low <= value <= high and math.isfinite(value), path, expected
    for path, (low, high) in ranges.items():
        first, second = operator.attrgetter(path)(config)
        yield low <= first <= second <= high, path, f"two numbers from {low:g} to {high:g}, the smaller one first"


def _sizes(config: Any) -> Iterator[Rule]:
    """Sizes that must divide each other; none of them is 0 here."""
    vision, text, decoder = config.model.vision, config.model.text, config.model.pixel_decoder
    side, patch = vision.image_size, vision.patch_size
    yield side % patch == 0, "model.vision.image_size", f"a multiple of patch_size {patch}"
    for part, size in (("vision", vision), ("text", text), ("pixel_decoder", decoder)):
        yield size.width % size.heads == 0, f"model.{part}.width", f"a multiple of heads {size.heads}"
    yield vision.width % 4 == 0, "model.vision.width", "a multiple of 4 (sin-cos positions)"
    yield config.regions.layer <= vision.depth, "regions.layer", f"0 (final) to {vision.depth}"
    shifts = config.grounding.shifts
    fits = shifts == 1 or patch % (2 * shifts) == 0
    yield fits, "grounding.shifts", f"1, or a number whose double divides patch_size {patch}"


def _choices(config: Any) -> Iterator[Rule]:
    """Options that need each other."""
    vision = config.model.vision
    yield vision.patch_layers in (1, 2), "model.vision.patch_layers", "1 or 2"
    yield config.image.target_scale in (1, 2), "image.target_scale", "1 or 2"
    needed = "another pool, or a model with model.vision.cls_token"
    yield config.image.pool != "cls" or vision.cls_token, "image.pool", needed
    local = config.objective.local_alignment
    known = re.fullmatch(r"global|group\([1-9][0-9]{0,8}\)", local.negatives)
    yield bool(known), "objective.local_alignment.negatives", "global, or group(N) of N rows"
    fits = local.negatives == "global" or config.data.batch_size % local.group == 0
    yield fits, "objective.local_alignment.negatives", f"groups that divide data.batch_size, {config.data.batch_size}"
    yield from of_runs(config)


def of_runs(config: Any) -> Iterator[Rule]:
    """What must fit each other in every kind of run: the warm-up and the steps, the axes of the mesh."""
    steps, mesh = config.train.steps, config.mesh
    yield config.optimizer.warmup_steps < steps, "optimizer.warmup_steps", f"fewer than train.steps, {steps}"
    axes = (mesh.data, mesh.fsdp, mesh.tensor)
    positive = all(size == -1 or size >= 1 for size in axes)
    yield positive, "mesh", "1 or more devices along each axis, or -1 for what is left"
    yield axes.count(-1) <= 1, "mesh", "-1 for one axis at most"
