"""The section of a configuration that names weights to start from, and how configurations that are older than a field are read."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, Literal, cast

WeightFormat = Literal[
    "auto", "msfl", "hf_vit", "hf_vit_mae", "hf_bert", "timm", "mae", "maco", "mrm", "clip", "openai"
]
SourcePixels = Literal["auto", "own", "imagenet", "half", "clip", "chest"]


@dataclasses.dataclass(frozen=True)
class InitFromConfig:
    """Weights that a run starts from, in files that `msfl_jax.export` reads; "" starts at random. Used once, before the first step.

    `skip` names, comma-separated, what may be missing, left over or of another shape. `pixels` says how the other model's images were normalised.
    """

    vision: str = ""
    report: str = ""
    vision_format: WeightFormat = "auto"
    report_format: WeightFormat = "auto"
    pixels: SourcePixels = "auto"
    skip: str = ""

    def __bool__(self) -> bool:
        """Whether there is a file to start from."""
        return bool(self.vision or self.report)


RANDOM_START = InitFromConfig()


def hashed(section: Mapping[str, str]) -> dict[str, Any]:
    """What of this section makes an experiment another one: nothing where no file is named, and of paths the last name."""
    names = {role: section[role].rstrip("/").rpartition("/")[2] for role in ("vision", "report")}
    return {"init_from": {**section, **names}} if any(names.values()) else {}


def with_defaults(kind: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Sections of an older config.json, with the fields that it lacks as their defaults say what was done then.

    Args:
      kind: the dataclass of the section.
      values: of config.json; what is no field stays.
    """
    hints, filled = typing.get_type_hints(kind), dict(values)
    for field in dataclasses.fields(kind):
        default, found = field.default, filled.get(field.name)
        if field.name not in filled and default is not dataclasses.MISSING:
            is_section = dataclasses.is_dataclass(default) and not isinstance(default, type)
            filled[field.name] = dataclasses.asdict(cast(Any, default)) if is_section else default
        elif dataclasses.is_dataclass(hints[field.name]) and isinstance(found, Mapping):
            filled[field.name] = with_defaults(hints[field.name], found)
    return filled
