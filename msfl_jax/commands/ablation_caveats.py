"""What must be said beneath an ablation: in what its rows differ beside the objectives that name them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from msfl_jax.commands.ablation_stages import RULE, Builds
from msfl_jax.config import Config, to_dict
from msfl_jax.results.ablation import plus
from msfl_jax.results.own_results import OBJECTIVES

_NAMED = tuple(f"objective.lambda_{name}" for name in OBJECTIVES)


def confounders(runs: Sequence[tuple[str, Config]], builds: Builds) -> list[str]:
    """One line for each difference between combinations that is none of their objectives.

    Args:
      runs: combination and configuration of every run; seeds are passed over.
      builds: what they are measured with.
    """
    settings = {objectives: dict(_flat(to_dict(config))) for objectives, config in runs}
    keys = dict.fromkeys(key for one in settings.values() for key in one if key not in (*_NAMED, "seed"))
    said = []
    for key in keys:
        values = {objectives: one.get(key) for objectives, one in settings.items()}
        if len({str(value) for value in values.values()}) > 1:
            said.append(
                f"Rows differ in more than their objectives: {key} is {_who(values)}. "
                f"--config.{key}=VALUE gives all rows the same."
            )
    local = {objectives: config.objective.lambda_local > 0 for objectives, config in runs}
    if builds.phrases and len(set(local.values())) > 1:
        said.append(
            "Grounding: rows with local alignment compare phrases with its regions, rows without with patches in the space of global alignment: "
            "their own regions were never trained."
        )
    rules = dict.fromkeys(config.zero_shot.rule for _, config in runs if config.zero_shot.rule != RULE)
    if rules:
        said.append(
            f"Zero-shot is of rule {RULE} in all rows. The configuration's own rule, {', '.join(rules)}, is measured too where the objectives "
            "allow it; its numbers stand in the runs' results."
        )
    return said


def selection_caveats(builds: Builds) -> list[str]:
    """Says where fine-tuning is measured on the images that chose its checkpoint."""
    if not builds.finetune or builds.finetuning(0).data.validate != builds.split:
        return []
    return [
        f"Fine-tuned: the checkpoint was chosen on '{builds.split}', on which it is measured: these numbers are too high."
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of a configuration and their values."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _who(values: Mapping[str, Any]) -> str:
    """`1 with local, 0 without`, or each value with its combinations where no objective decides."""
    for name in OBJECTIVES[1:]:
        sides = [{str(v) for o, v in values.items() if (name in o.split(",")) == wanted} for wanted in (True, False)]
        if all(len(side) == 1 for side in sides):
            return f"{sides[0].pop()} with {name}, {sides[1].pop()} without"
    found: dict[str, list[str]] = {}
    for objectives, value in values.items():
        found.setdefault(str(value), []).append(plus(objectives))
    return "; ".join(f"{value} with {' and '.join(names)}" for value, names in found.items())
